"""Trouble on the way."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.dropin.cases import Case, Here, case, full
from tests.dropin.faces import Face
from tests.dropin.stubs import SAYINGS


@case
def too_slow(bt: Face) -> Case:
    class TooSlow(bt.Synapse):
        text: str = "asked"

    async def forward(synapse: TooSlow) -> TooSlow:
        await asyncio.sleep(1.5)
        return synapse

    return Case(full(TooSlow(), timeout=0.3), {"forward_fn": forward})


@case
def nobody_listens(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        return await dendrite(here.dead, bt.Synapse(), timeout=3, deserialize=False)

    return Case(ask)


@case
def nobody_serves(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        return await dendrite(here.unserved, bt.Synapse(), timeout=3, deserialize=False)

    return Case(ask)


@case
def nobody_knows_the_name(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        told = await dendrite(here.nowhere, bt.Synapse(), timeout=5, deserialize=False)
        told.dendrite.status_message = told.dendrite.status_message[:20]
        return told

    return Case(ask)


def _stubbed(saying: str) -> Callable[[Face], Case]:
    def make(bt: Face) -> Case:
        class Stubbed(bt.Synapse):
            text: str = "asked"

        async def ask(dendrite: Any, here: Here) -> Any:
            timeout = 0.3 if saying == "is silent" else 5
            told = await dendrite(
                here.stub[saying], Stubbed(), timeout=timeout, deserialize=False
            )
            # Their texts name what Python and aiohttp call it.
            said = told.dendrite.status_message
            if said and told.dendrite.status_code not in (200, 408, 418):
                told.dendrite.status_message = said[:16]
            return told

        return Case(ask, only=("http",))

    make.__name__ = "a_peer_that_says_" + saying.replace(" ", "_").replace("'", "")
    return make


for _saying in SAYINGS:
    case(_stubbed(_saying))
