"""What a dendrite does of itself."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tests.dropin.cases import Case, Here, case, tried
from tests.dropin.faces import Face, wallet
from tests.support.identities import MINER_SEED


@dataclass
class _Calls:
    names: list[str] = field(default_factory=list)


@case
def overridden_hooks(bt: Face) -> Case:
    class OverriddenHooks(bt.Synapse):
        text: str = "asked"

    def forward(synapse: OverriddenHooks) -> OverriddenHooks:
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        calls = _Calls()

        class Own(here.face.Dendrite):
            def preprocess_synapse_for_request(self, target, synapse, timeout=12.0):
                calls.names.append("preprocess")
                return super().preprocess_synapse_for_request(target, synapse, timeout)

            def process_server_response(self, server_response, json_response, synapse):
                calls.names.append("response")
                calls.names.append(f"status {server_response.status}")
                super().process_server_response(server_response, json_response, synapse)

            def process_error_message(self, synapse, request_name, exception):
                calls.names.append("error")
                return super().process_error_message(synapse, request_name, exception)

            def log_exception(self, exception):
                calls.names.append("log")

            def _log_outgoing_request(self, synapse):
                calls.names.append("out")

            def _log_incoming_response(self, synapse):
                calls.names.append("in")

            async def call(self, *args, **kwargs):
                calls.names.append("call")
                return await super().call(*args, **kwargs)

        async with here.derived(Own) as own:
            first = await own(here.miner, OverriddenHooks(), deserialize=False)
            answered = list(calls.names)
            calls.names.clear()
            await own(here.dead, OverriddenHooks(), timeout=3)
        return {"code": first.dendrite.status_code, "ok": answered, "dead": calls.names}

    return Case(ask, {"forward_fn": forward})


@case
def own_forward(bt: Face) -> Case:
    class OwnForward(bt.Synapse):
        text: str = "asked"

    def forward(synapse: OwnForward) -> OwnForward:
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        class Mocked(here.face.Dendrite):
            async def forward(self, axons, synapse, timeout=12, **other):
                return "mocked"

        async with here.derived(Mocked) as mocked:
            return [
                await mocked.aquery(here.miner, OwnForward()),
                await mocked.forward([here.miner], synapse=OwnForward(), timeout=3),
            ]

    return Case(ask, {"forward_fn": forward})


@case
def history(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        await dendrite([here.miner, here.miner], bt.Synapse())
        await dendrite(here.dead, bt.Synapse(), timeout=3)
        return {
            "codes": [each.dendrite.status_code for each in dendrite.synapse_history],
        }

    return Case(ask)


@case
def context_manager(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        async with dendrite as entered:
            told = await entered(here.miner, bt.Synapse(), deserialize=False)
        return {"same": entered is dendrite, "told": told, "is": str(dendrite)}

    return Case(ask)


@case
def after_closing(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        first = await dendrite(here.miner, bt.Synapse(), deserialize=False)
        await dendrite.aclose_session()
        await dendrite.aclose_session()
        second = await dendrite(here.miner, bt.Synapse(), deserialize=False)
        return [first.dendrite.status_code, second.dendrite.status_code]

    return Case(ask)


@case
def after_aquery(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        first = await dendrite.aquery(here.miner, bt.Synapse(), deserialize=False)
        second = await dendrite.aquery(here.miner, bt.Synapse(), deserialize=False)
        return [first.dendrite.status_code, second.dendrite.status_code]

    return Case(ask)


@case
def query(bt: Face) -> Case:
    def ask(dendrite: Any, here: Here) -> Any:
        found = [
            dendrite.query(here.miner, bt.Synapse(), deserialize=False),
            dendrite.query([here.miner, here.dead], bt.Synapse(), timeout=3)[0],
            dendrite.query(axons=[here.miner], synapse=bt.Synapse(), timeout=3),
        ]
        dendrite.close_session()
        return found

    return Case(ask, is_plain=True)


@case
def query_inside_a_loop(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        try:
            told = dendrite.query(here.miner, bt.Synapse(), deserialize=False)
        except RuntimeError as error:
            return error
        return {"status": told.dendrite.status_code}

    return Case(ask)


@case
def several_loops(bt: Face) -> Case:
    def ask(dendrite: Any, here: Here) -> Any:
        async def once() -> Any:
            told = await dendrite(here.miner, bt.Synapse(), deserialize=False)
            return told.dendrite.status_code

        found = [asyncio.run(once()) for _ in range(3)]
        asyncio.run(dendrite.aclose_session())
        return found

    return Case(ask, is_plain=True)


@case
def timeouts(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        whole = await dendrite(here.miner, bt.Synapse(), timeout=7, deserialize=False)
        none = await tried(dendrite(here.miner, bt.Synapse(), timeout=None))
        return {"whole": whole.timeout, "none": none}

    return Case(ask)


@case
def an_axon_as_target(bt: Face) -> Case:
    class AnAxonAsTarget(bt.Synapse):
        text: str = "asked"

    async def ask(dendrite: Any, here: Here) -> Any:
        axon = here.face.Axon(
            wallet=wallet(MINER_SEED),
            port=here.miner.port,
            external_ip="127.0.0.1",
        )
        told = await dendrite(axon, AnAxonAsTarget(), deserialize=False)
        return {"status": told.dendrite.status_code, "hotkey": told.axon.hotkey}

    def forward(synapse: AnAxonAsTarget) -> AnAxonAsTarget:
        return synapse

    return Case(ask, {"forward_fn": forward})
