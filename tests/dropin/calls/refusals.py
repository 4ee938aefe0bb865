"""Refusals of an axon, and what goes wrong in it."""

import asyncio
import typing
from typing import Any

from tests.dropin.cases import Case, Here, case, full
from tests.dropin.faces import Face


@case
def unknown_synapse(bt: Face) -> Case:
    class UnknownSynapse(bt.Synapse):
        text: str = "asked"

    return Case(full(UnknownSynapse()))


def _refusing(bt: Face, name: str, **functions: Any) -> tuple[Any, dict[str, Any]]:
    """Make a synapse class, and what attaches it with functions that take it."""
    kind = type(
        name, (bt.Synapse,), {"__annotations__": {"text": str}, "text": "asked"}
    )

    def forward(synapse: kind) -> kind:
        synapse.text = "answered"
        return synapse

    attach: dict[str, Any] = {"forward_fn": forward}
    for role, function in functions.items():
        function.__annotations__["synapse"] = kind
        if role == "forward_fn":
            function.__annotations__["return"] = kind
        attach[role] = function
    return kind, attach


@case
def blacklisted(bt: Face) -> Case:
    def blacklist(synapse) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        return True, "stake too low"

    kind, attach = _refusing(bt, "Blacklisted", blacklist_fn=blacklist)
    return Case(full(kind()), attach)


@case
def blacklisted_by_a_coroutine(bt: Face) -> Case:
    async def blacklist(synapse) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        await asyncio.sleep(0)
        return True, "nicht erwünscht"

    kind, attach = _refusing(bt, "BlacklistedByACoroutine", blacklist_fn=blacklist)
    return Case(full(kind()), attach)


@case
def blacklist_passes(bt: Face) -> Case:
    async def blacklist(synapse) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        return False, "known"

    kind, attach = _refusing(bt, "BlacklistPasses", blacklist_fn=blacklist)
    return Case(full(kind()), attach)


@case
def blacklist_raises(bt: Face) -> Case:
    def blacklist(synapse) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        raise RuntimeError("secret")

    kind, attach = _refusing(bt, "BlacklistRaises", blacklist_fn=blacklist)
    return Case(full(kind()), attach)


@case
def verify_raises(bt: Face) -> Case:
    def verify(synapse) -> None:
        raise RuntimeError("not today")

    kind, attach = _refusing(bt, "VerifyRaises", verify_fn=verify)
    return Case(full(kind()), attach)


@case
def verify_raises_in_a_coroutine(bt: Face) -> Case:
    async def verify(synapse) -> None:
        raise ValueError("not today")

    kind, attach = _refusing(bt, "VerifyRaisesInACoroutine", verify_fn=verify)
    return Case(full(kind()), attach)


@case
def verify_passes(bt: Face) -> Case:
    async def verify(synapse) -> None:
        return None

    kind, attach = _refusing(bt, "VerifyPasses", verify_fn=verify)
    return Case(full(kind()), attach)


@case
def priority_is_asked(bt: Face) -> Case:
    def priority(synapse) -> float:
        return 3.5

    kind, attach = _refusing(bt, "PriorityIsAsked", priority_fn=priority)
    return Case(full(kind()), attach)


@case
def priority_is_asked_in_a_coroutine(bt: Face) -> Case:
    async def priority(synapse) -> float:
        return 3.5

    kind, attach = _refusing(bt, "PriorityIsAskedInACoroutine", priority_fn=priority)
    return Case(full(kind()), attach)


@case
def priority_raises(bt: Face) -> Case:
    def priority(synapse) -> float:
        raise RuntimeError("secret")

    kind, attach = _refusing(bt, "PriorityRaises", priority_fn=priority)
    return Case(full(kind()), attach)


@case
def priority_times_out(bt: Face) -> Case:
    async def priority(synapse) -> float:
        raise TimeoutError

    kind, attach = _refusing(bt, "PriorityTimesOut", priority_fn=priority)
    return Case(full(kind()), attach)


@case
def forward_raises(bt: Face) -> Case:
    def forward(synapse):
        raise RuntimeError("secret")

    kind, attach = _refusing(bt, "ForwardRaises", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_raises_in_a_coroutine(bt: Face) -> Case:
    async def forward(synapse):
        raise KeyError("secret")

    kind, attach = _refusing(bt, "ForwardRaisesInACoroutine", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_returns_nothing(bt: Face) -> Case:
    def forward(synapse):
        return None

    kind, attach = _refusing(bt, "ForwardReturnsNothing", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_returns_a_dict(bt: Face) -> Case:
    async def forward(synapse):
        return {"text": "answered"}

    kind, attach = _refusing(bt, "ForwardReturnsADict", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_sets_a_status(bt: Face) -> Case:
    def forward(synapse):
        synapse.axon.status_code = 429
        synapse.axon.status_message = "later"
        synapse.text = "changed"
        return synapse

    kind, attach = _refusing(bt, "ForwardSetsAStatus", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_sets_a_status_as_text(bt: Face) -> Case:
    def forward(synapse):
        synapse.axon.status_code = "503"
        synapse.axon.status_message = "down"
        return synapse

    kind, attach = _refusing(bt, "ForwardSetsAStatusAsText", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_sets_a_message(bt: Face) -> Case:
    def forward(synapse):
        synapse.axon.status_message = "fine"
        synapse.text = "answered"
        return synapse

    kind, attach = _refusing(bt, "ForwardSetsAMessage", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def forward_sets_any_message(bt: Face) -> Case:
    def forward(synapse):
        synapse.axon.status_code = 200
        synapse.axon.status_message = "готово\nи ещё " + "x" * 9000
        synapse.text = "answered"
        return synapse

    kind, attach = _refusing(bt, "ForwardSetsAnyMessage", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def synapse_exception(bt: Face) -> Case:
    def forward(synapse):
        synapse.axon.status_code = 418
        raise bt.SynapseException("short and stout", synapse=synapse)

    kind, attach = _refusing(bt, "SynapseException", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def synapse_exception_without_status(bt: Face) -> Case:
    async def forward(synapse):
        raise bt.SynapseException("no reason", synapse=synapse)

    kind, attach = _refusing(bt, "SynapseExceptionWithoutStatus", forward_fn=forward)
    return Case(full(kind()), attach)


@case
def request_does_not_validate(bt: Face) -> Case:
    class Answering(bt.Synapse):
        number: int = 0

    class RequestDoesNotValidate(bt.Synapse):
        number: str = ""

    Answering.__name__ = "RequestDoesNotValidate"

    def forward(synapse: Answering) -> Answering:
        return synapse

    asked = RequestDoesNotValidate(number="no number")
    return Case(full(asked), {"forward_fn": forward})


@case
def answer_does_not_validate(bt: Face) -> Case:
    class Answering(bt.Synapse):
        number: str = ""

    class AnswerDoesNotValidate(bt.Synapse):
        number: int = 1

    Answering.__name__ = "AnswerDoesNotValidate"

    def forward(synapse: Answering) -> Answering:
        synapse.number = "no number"
        return synapse

    # A number passes where a text is wanted only if it is told so.
    Answering.model_config = {**bt.Synapse.model_config, "coerce_numbers_to_str": True}
    Answering.model_rebuild(force=True)
    return Case(full(AnswerDoesNotValidate()), {"forward_fn": forward})


@case
def wrong_hotkey(bt: Face) -> Case:
    class WrongHotkey(bt.Synapse):
        text: str = "asked"

    def forward(synapse: WrongHotkey) -> WrongHotkey:
        synapse.text = "answered"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await dendrite(here.other, WrongHotkey(), timeout=5, deserialize=False)
        # The text names what was signed.
        told.dendrite.status_message = told.dendrite.status_message[:27]
        if told.axon.status_message:
            told.axon.status_message = told.axon.status_message[:27]
        return told

    return Case(ask, {"forward_fn": forward})
