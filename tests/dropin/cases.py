"""Calls that both libraries must answer alike: each names a synapse, a miner, a question.

Each case is made once per library, with that library's classes; the miner's half of one may
then answer the validator's half of another. Class names are routes: each case has its own.
"""

# ruff: noqa: RUF012 - pydantic copies what is mutable.
import asyncio
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pydantic

from tests.dropin.faces import Face
from tests.dropin.stubs import SAYINGS

MIB = 1 << 20


@dataclass
class Here:
    """What there is to ask.

    Attributes:
        face: Whose classes the validator has.
        miner: An axon that has attached all cases.
        dead: One where nobody listens.
        nowhere: One whose name nobody knows.
        unserved: One that says it does not serve.
        other: The miner, with a hotkey that it does not have.
        stub: Where somebody is who is no axon, by name.
    """

    face: Face
    miner: Any
    dead: Any
    nowhere: Any
    unserved: Any
    other: Any
    stub: dict[str, Any]


@dataclass
class Case:
    """One call.

    Attributes:
        ask: What the validator does; what it returns is compared.
        attach: What the miner gives to `attach`; None if it attaches nothing.
        is_plain: Whether `ask` is a plain function, called outside of any loop.
        only: Transports of ours that it can be made over.
    """

    ask: Callable[[Any, Here], Any]
    attach: dict[str, Any] | None = None
    is_plain: bool = False
    only: tuple[str, ...] = ("http", "quic")


MAKERS: dict[str, Callable[[Face], Case]] = {}


def case(make: Callable[[Face], Case]) -> Callable[[Face], Case]:
    """Take part under the function's name."""
    assert make.__name__ not in MAKERS
    MAKERS[make.__name__] = make
    return make


def full(synapse: Any, **other: Any) -> Callable[[Any, Here], Awaitable[Any]]:
    """Ask one miner and look at the whole synapse."""

    async def ask(dendrite: Any, here: Here) -> Any:
        told = {"timeout": 5, "deserialize": False, **other}
        return await dendrite(axons=here.miner, synapse=synapse, **told)

    return ask


async def tried(awaited: Awaitable[Any]) -> Any:
    """Await; give the exception if there is one."""
    try:
        return await awaited
    except Exception as error:
        return error


# --- Answers ---------------------------------------------------------------------------


@case
def success(bt: Face) -> Case:
    class Success(bt.Synapse):
        text: str
        answer: str | None = None

    def forward(synapse: Success) -> Success:
        synapse.answer = synapse.text.upper()
        return synapse

    return Case(full(Success(text="hello")), {"forward_fn": forward})


@case
def ping(bt: Face) -> Case:
    return Case(full(bt.Synapse()))


@case
def everything_defaulted(bt: Face) -> Case:
    class EverythingDefaulted(bt.Synapse):
        text: str = "text"
        number: int = 3
        real: float = 0.5
        flag: bool = True
        items: list[int] = [1, 2]
        table: dict[str, float] = {"a": 1.0}
        maybe: str | None = None
        made: list[str] = pydantic.Field(default_factory=lambda: ["made"])

    async def forward(synapse: EverythingDefaulted) -> EverythingDefaulted:
        synapse.number += 1
        synapse.items.append(3)
        synapse.maybe = "set"
        return synapse

    return Case(full(EverythingDefaulted()), {"forward_fn": forward})


@case
def default_arguments(bt: Face) -> Case:
    class DefaultArguments(bt.Synapse):
        text: str = "a"

        def deserialize(self) -> str:
            return "deserialized " + self.text

    def forward(synapse: DefaultArguments) -> DefaultArguments:
        synapse.text += "b"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        return [
            await dendrite([here.miner], DefaultArguments()),
            await dendrite.forward(here.miner, DefaultArguments()),
            await dendrite.forward([here.miner], DefaultArguments(), 5, False),
            await dendrite.call(here.miner, DefaultArguments()),
            await dendrite.call(here.miner, DefaultArguments(), 5.0, False),
            await dendrite.aquery([here.miner], DefaultArguments(), timeout=5),
        ]

    return Case(ask, {"forward_fn": forward})


@case
def shapes_of_the_result(bt: Face) -> Case:
    class ShapesOfTheResult(bt.Synapse):
        text: str = "a"

    def forward(synapse: ShapesOfTheResult) -> ShapesOfTheResult:
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        asked = ShapesOfTheResult()
        return {
            "two": await dendrite([here.miner, here.miner], asked),
            "one in a list": await dendrite([here.miner], asked),
            "one": await dendrite(here.miner, asked),
            "none": await dendrite([], asked),
            "in turn": await dendrite([here.miner] * 2, asked, run_async=False),
            "untouched": asked.dendrite.status_code,
        }

    return Case(ask, {"forward_fn": forward})


@case
def not_an_axon(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        return [
            await tried(dendrite((here.miner,), bt.Synapse())),
            await tried(dendrite(None, bt.Synapse())),
        ]

    return Case(ask)


@case
def order_of_mixed_miners(bt: Face) -> Case:
    class OrderOfMixedMiners(bt.Synapse):
        wait: float = 0
        text: str = "x"

    async def forward(synapse: OrderOfMixedMiners) -> OrderOfMixedMiners:
        synapse.text = "answered"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        found = await dendrite(
            [here.miner, here.dead, here.miner, here.unserved],
            OrderOfMixedMiners(),
            timeout=5,
            deserialize=False,
        )
        return [(each.text, each.dendrite.status_code) for each in found]

    return Case(ask, {"forward_fn": forward})


@case
def caller_keeps_its_synapse(bt: Face) -> Case:
    class CallerKeepsItsSynapse(bt.Synapse):
        items: list[int] = [1]
        text: str = "mine"

    def forward(synapse: CallerKeepsItsSynapse) -> CallerKeepsItsSynapse:
        synapse.items = [*synapse.items, 2]
        synapse.text = "yours"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        mine = CallerKeepsItsSynapse()
        theirs = await dendrite(here.miner, mine, deserialize=False)
        called = await dendrite.call(here.miner, mine, deserialize=False)
        return {"same object": called is mine, "is": mine, "first": theirs}

    return Case(ask, {"forward_fn": forward})


@case
def frozen_fields(bt: Face) -> Case:
    class FrozenFields(bt.Synapse):
        question: str = pydantic.Field("asked", frozen=True)
        answer: str = ""

    def forward(synapse: FrozenFields) -> FrozenFields:
        return FrozenFields(question="changed", answer="answered")

    return Case(full(FrozenFields(question="mine")), {"forward_fn": forward})


@case
def nested_models(bt: Face) -> Case:
    class Point(pydantic.BaseModel):
        x: int
        y: float = 0.5

    class Inner(pydantic.BaseModel):
        points: list[Point] = []
        by_name: dict[str, Point] = {}

    class NestedModels(bt.Synapse):
        inner: Inner = Inner()
        first: Point | None = None
        either: int | str | Point = 0
        kind: Literal["a", "b"] = "a"
        pair: tuple[int, str] = (1, "one")

    def forward(synapse: NestedModels) -> NestedModels:
        synapse.inner.points.append(Point(x=7))
        synapse.first = synapse.inner.by_name["p"]
        synapse.either = "text"
        synapse.kind = "b"
        return synapse

    asked = NestedModels(inner=Inner(by_name={"p": Point(x=1, y=2)}))
    return Case(full(asked), {"forward_fn": forward})


@case
def validators_run(bt: Face) -> Case:
    class ValidatorsRun(bt.Synapse):
        text: str = ""
        low: int = 0
        high: int = 1

        @pydantic.field_validator("text")
        @classmethod
        def strip(cls, value: str) -> str:
            return value.strip()

        @pydantic.model_validator(mode="after")
        def ordered(self) -> Any:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    def forward(synapse: ValidatorsRun) -> ValidatorsRun:
        synapse.text = synapse.text + "   and more  "
        synapse.high = 100
        synapse.low = 50
        return synapse

    return Case(full(ValidatorsRun(text="  text ")), {"forward_fn": forward})


@case
def one_mebibyte(bt: Face) -> Case:
    class OneMebibyte(bt.Synapse):
        payload: str = ""

    def forward(synapse: OneMebibyte) -> OneMebibyte:
        synapse.payload = synapse.payload[::-1]
        return synapse

    return Case(full(OneMebibyte(payload="ab" * (MIB // 2))), {"forward_fn": forward})


@case
def any_text(bt: Face) -> Case:
    class AnyText(bt.Synapse):
        text: str = ""
        words: dict[str, str] = {}

    def forward(synapse: AnyText) -> AnyText:
        synapse.text += " and the answer: ответ 答え \U0001f9e0\n\x00"
        return synapse

    asked = AnyText(text="вопрос 質問 \U0001f914\r\n", words={"ключ": "値"})
    return Case(full(asked), {"forward_fn": forward})


@case
def numbers(bt: Face) -> Case:
    class Numbers(bt.Synapse):
        whole: int = 0
        real: float = 0
        many: list[float] = []

    def forward(synapse: Numbers) -> Numbers:
        synapse.many = [each / 3 for each in synapse.many]
        return synapse

    asked = Numbers(whole=-(2**53), real=1e300, many=[1, 2.5, 1e-9])
    return Case(full(asked), {"forward_fn": forward})


@case
def hash_fields(bt: Face) -> Case:
    class HashFields(bt.Synapse):
        text: str = "text"
        items: list[float] = [1.5, 2.0]
        answer: str = ""
        required_hash_fields: ClassVar[tuple[str, ...]] = ("text", "items")

    def forward(synapse: HashFields) -> HashFields:
        synapse.answer = "answered"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        asked = HashFields()
        return {"hash": asked.body_hash, "is": await full(asked)(dendrite, here)}

    return Case(ask, {"forward_fn": forward})


@case
def old_hash_fields(bt: Face) -> Case:
    class OldHashFields(bt.Synapse):
        text: str = "text"
        answer: str = ""
        required_hash_fields: list[str] = ["text"]

    def forward(synapse: OldHashFields) -> OldHashFields:
        synapse.answer = "answered"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        asked = OldHashFields()
        return {"hash": asked.body_hash, "is": await full(asked)(dendrite, here)}

    return Case(ask, {"forward_fn": forward})


@case
def required_fields(bt: Face) -> Case:
    class RequiredFields(bt.Synapse):
        text: str
        number: int
        items: list[int]
        table: dict[str, int]

    def forward(synapse: RequiredFields) -> RequiredFields:
        synapse.number += 1
        return synapse

    asked = RequiredFields(text="t", number=1, items=[1], table={"a": 1})
    return Case(full(asked), {"forward_fn": forward})


@case
def required_and_constrained(bt: Face) -> Case:
    class RequiredAndConstrained(bt.Synapse):
        number: int = pydantic.Field(..., gt=0)
        text: str = pydantic.Field(..., min_length=1)

    def forward(synapse: RequiredAndConstrained) -> RequiredAndConstrained:
        synapse.number += 1
        return synapse

    return Case(
        full(RequiredAndConstrained(number=1, text="t")), {"forward_fn": forward}
    )


@case
def classes_of_two_versions(bt: Face) -> Case:
    class Answering(bt.Synapse):
        text: str = ""
        only_here: str = "from the miner"

    class ClassesOfTwoVersions(bt.Synapse):
        text: str = ""
        only_there: str = "from the validator"

    Answering.__name__ = "ClassesOfTwoVersions"

    def forward(synapse: Answering) -> Answering:
        synapse.text += f" {synapse.only_here}"
        return synapse

    return Case(full(ClassesOfTwoVersions(text="asked")), {"forward_fn": forward})


@case
def no_json(bt: Face) -> Case:
    class NoJson(bt.Synapse):
        raw: bytes = b""

    def forward(synapse: NoJson) -> NoJson:
        synapse.raw = synapse.raw[::-1]
        return synapse

    return Case(full(NoJson(raw=b"\x00\xff")), {"forward_fn": forward})


@case
def another_class_returned(bt: Face) -> Case:
    class Another(bt.Synapse):
        text: str = "another"

    class AnotherClassReturned(bt.Synapse):
        text: str = ""
        more: str = "kept?"

    def forward(synapse: AnotherClassReturned) -> Another:
        return Another()

    asked = AnotherClassReturned(text="asked", more="asked")
    return Case(full(asked), {"forward_fn": forward})


@case
def forward_sees(bt: Face) -> Case:
    class ForwardSees(bt.Synapse):
        seen: dict[str, typing.Any] = {}

    def forward(synapse: ForwardSees) -> ForwardSees:
        synapse.seen = {
            "hotkey": synapse.dendrite.hotkey,
            "ip": synapse.dendrite.ip,
            "has port": synapse.dendrite.port is not None,
            "has nonce": synapse.dendrite.nonce is not None,
            "has uuid": synapse.dendrite.uuid is not None,
            "version": type(synapse.dendrite.version).__name__,
            "timeout": synapse.timeout,
            "axon hotkey": synapse.axon.hotkey,
            "name": synapse.name,
        }
        return synapse

    return Case(full(ForwardSees(), timeout=4.5), {"forward_fn": forward})


@case
def blacklist_sees(bt: Face) -> Case:
    seen: dict[str, Any] = {}

    class BlacklistSees(bt.Synapse):
        text: str = "default"
        seen: dict[str, typing.Any] = {}

    def forward(synapse: BlacklistSees) -> BlacklistSees:
        synapse.seen = dict(seen)
        return synapse

    def blacklist(synapse: BlacklistSees) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        seen["text"] = synapse.text
        seen["hotkey"] = synapse.dendrite.hotkey
        seen["ip"] = synapse.dendrite.ip
        seen["has port"] = synapse.dendrite.port is not None
        seen["axon hotkey"] = synapse.axon.hotkey
        return False, ""

    return Case(
        full(BlacklistSees(text="asked")),
        {"forward_fn": forward, "blacklist_fn": blacklist},
    )


# --- Refusals of the axon --------------------------------------------------------------


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


# --- Trouble on the way ----------------------------------------------------------------


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


# --- Streams ---------------------------------------------------------------------------


def streaming(bt: Face, name: str) -> Any:
    """Make a class of streams as subnets write it."""

    class Streamed(bt.StreamingSynapse):
        question: str = "asked"
        completion: str = ""

        async def process_streaming_response(self, response):
            self.completion = ""
            async for chunk in response.content.iter_any():
                text = chunk.decode("utf-8")
                self.completion += text
                yield text

        def deserialize(self):
            return self.completion

        def extract_response_json(self, response):
            headers = {
                key.decode("utf-8"): value.decode("utf-8")
                for key, value in response.__dict__["_raw_headers"]
            }

            def part(prefix):
                return {
                    key.split("_")[-1]: value
                    for key, value in headers.items()
                    if key.startswith(prefix)
                }

            return {
                "name": headers.get("name", ""),
                "timeout": float(headers.get("timeout", 0)),
                "total_size": int(headers.get("total_size", 0)),
                "header_size": int(headers.get("header_size", 0)),
                "dendrite": part("bt_header_dendrite"),
                "axon": part("bt_header_axon"),
                "question": self.question,
                "completion": self.completion,
            }

    Streamed.__name__ = Streamed.__qualname__ = name
    return Streamed


def streamer(kind: Any, *said: Any) -> Any:
    """Make a miner's function that streams; an exception in it is raised there."""

    def forward(synapse: kind) -> kind:
        async def stream(send):
            for each in said:
                if isinstance(each, BaseException):
                    raise each
                await send(
                    {"type": "http.response.body", "body": each, "more_body": True}
                )

        return synapse.create_streaming_response(stream)

    return forward


async def gathered(generator: Any) -> Any:
    """Return the text of a stream and its last item."""
    chunks = []
    async for each in generator:
        chunks.append(each)
    texts = chunks[:-1]
    return {
        "texts": "".join(texts),
        "kinds": sorted({type(each).__name__ for each in texts}),
        "last": chunks[-1],
    }


def streamed(synapse: Any, **other: Any) -> Callable[[Any, Here], Awaitable[Any]]:
    """Ask one miner for a stream."""

    async def ask(dendrite: Any, here: Here) -> Any:
        told = {"timeout": 5, "deserialize": False, "streaming": True, **other}
        return await gathered(await dendrite(here.miner, synapse, **told))

    return ask


@case
def stream_of_nothing(bt: Face) -> Case:
    kind = streaming(bt, "StreamOfNothing")
    return Case(streamed(kind()), {"forward_fn": streamer(kind)})


@case
def stream_of_one(bt: Face) -> Case:
    kind = streaming(bt, "StreamOfOne")
    return Case(streamed(kind()), {"forward_fn": streamer(kind, b"one")})


@case
def stream_of_many(bt: Face) -> Case:
    kind = streaming(bt, "StreamOfMany")
    said = [f"word {i} ".encode() for i in range(300)]
    return Case(streamed(kind()), {"forward_fn": streamer(kind, *said)})


@case
def stream_with_a_large_chunk(bt: Face) -> Case:
    kind = streaming(bt, "StreamWithALargeChunk")
    return Case(streamed(kind()), {"forward_fn": streamer(kind, b"a" * MIB, b"b")})


@case
def streams_in_a_list(bt: Face) -> Case:
    kind = streaming(bt, "StreamsInAList")

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await dendrite([here.miner, here.miner], kind(), streaming=True)
        return [await gathered(each) for each in told]

    return Case(ask, {"forward_fn": streamer(kind, b"a", b"b")})


@case
def stream_by_call_stream(bt: Face) -> Case:
    kind = streaming(bt, "StreamByCallStream")

    async def ask(dendrite: Any, here: Here) -> Any:
        return await gathered(
            dendrite.call_stream(here.miner, kind(question="why"), 5.0, False)
        )

    return Case(ask, {"forward_fn": streamer(kind, b"a", b"b")})


@case
def stream_with_the_last_flag(bt: Face) -> Case:
    kind = streaming(bt, "StreamWithTheLastFlag")

    async def forward(synapse: kind) -> kind:
        async def stream(send):
            for each, more in ((b"a", True), (b"b", False)):
                await send(
                    {"type": "http.response.body", "body": each, "more_body": more}
                )

        return synapse.create_streaming_response(token_streamer=stream)

    return Case(streamed(kind()), {"forward_fn": forward})


@case
def stream_blacklisted(bt: Face) -> Case:
    kind = streaming(bt, "StreamBlacklisted")

    def blacklist(synapse: kind) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        return True, "no streams for you"

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await gathered(
            await dendrite(here.miner, kind(), deserialize=False, streaming=True)
        )
        # What a refusal says arrives where chunks do.
        return {"last": told["last"].dendrite.status_code}

    return Case(ask, {"forward_fn": streamer(kind, b"a"), "blacklist_fn": blacklist})


@case
def stream_that_fails_at_once(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatFailsAtOnce")

    def forward(synapse: kind) -> kind:
        raise RuntimeError("secret")

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await gathered(
            await dendrite(here.miner, kind(), deserialize=False, streaming=True)
        )
        return {"last": told["last"].dendrite.status_code}

    return Case(ask, {"forward_fn": forward})


@case
def stream_that_fails_before_a_chunk(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatFailsBeforeAChunk")
    return Case(
        streamed(kind()), {"forward_fn": streamer(kind, RuntimeError("secret"))}
    )


@case
def stream_that_fails_within(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatFailsWithin")
    said = (b"a", b"b", RuntimeError("secret"))
    return Case(streamed(kind()), {"forward_fn": streamer(kind, *said)})


@case
def stream_whose_reader_fails(bt: Face) -> Case:
    base = streaming(bt, "StreamWhoseReaderFails")

    class Failing(base):
        def extract_response_json(self, response):
            raise ValueError("no json")

    Failing.__name__ = "StreamWhoseReaderFails"

    def forward(synapse: Failing) -> Failing:
        return streamer(Failing, b"a")(synapse)

    return Case(streamed(Failing()), {"forward_fn": forward})


@case
def stream_that_is_too_slow(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatIsTooSlow")

    async def forward(synapse: kind) -> kind:
        async def stream(send):
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(1.5)
            await send({"type": "http.response.body", "body": b"b", "more_body": True})

        return synapse.create_streaming_response(stream)

    return Case(streamed(kind(), timeout=0.4), {"forward_fn": forward})


@case
def stream_from_nobody(bt: Face) -> Case:
    kind = streaming(bt, "StreamFromNobody")

    async def ask(dendrite: Any, here: Here) -> Any:
        return await gathered(
            await dendrite(here.dead, kind(), timeout=3, deserialize=False)
        )

    return Case(ask)


@case
def stream_that_is_left(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatIsLeft")

    async def ask(dendrite: Any, here: Here) -> Any:
        generator = await dendrite(here.miner, kind(), deserialize=False)
        first = await anext(generator)
        return {"first": first[:1], "left": await tried(generator.aclose())}

    return Case(ask, {"forward_fn": streamer(kind, *[b"a"] * 3)})


@case
def answer_without_a_stream(bt: Face) -> Case:
    kind = streaming(bt, "AnswerWithoutAStream")

    async def forward(synapse: kind) -> kind:
        synapse.completion = "no stream"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await gathered(await dendrite(here.miner, kind(), deserialize=False))
        return {"last": told["last"].dendrite.status_code}

    return Case(ask, {"forward_fn": forward})


# --- The dendrite itself ---------------------------------------------------------------


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

        class Own(type(dendrite)):
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

        dendrite.__class__ = Own
        first = await dendrite(here.miner, OverriddenHooks(), deserialize=False)
        answered = list(calls.names)
        calls.names.clear()
        await dendrite(here.dead, OverriddenHooks(), timeout=3)
        return {"code": first.dendrite.status_code, "ok": answered, "dead": calls.names}

    return Case(ask, {"forward_fn": forward})


@case
def own_forward(bt: Face) -> Case:
    class OwnForward(bt.Synapse):
        text: str = "asked"

    def forward(synapse: OwnForward) -> OwnForward:
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        class Mocked(type(dendrite)):
            async def forward(self, axons, synapse, timeout=12, **other):
                return "mocked"

        dendrite.__class__ = Mocked
        return [await dendrite.aquery(here.miner, OwnForward())]

    return Case(ask, {"forward_fn": forward})


@case
def history(bt: Face) -> Case:
    async def ask(dendrite: Any, here: Here) -> Any:
        await dendrite([here.miner, here.miner], bt.Synapse())
        await dendrite(here.dead, bt.Synapse(), timeout=3)
        return {
            "kind": type(dendrite.synapse_history[0]).__name__,
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
        return [
            dendrite.query(here.miner, bt.Synapse(), deserialize=False),
            dendrite.query([here.miner, here.dead], bt.Synapse(), timeout=3)[0],
            dendrite.query(axons=[here.miner], synapse=bt.Synapse(), timeout=3),
        ]

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
            wallet=_Wallet(here.miner.hotkey),
            port=here.miner.port,
            external_ip="127.0.0.1",
        )
        told = await dendrite(axon, AnAxonAsTarget(), deserialize=False)
        return {"status": told.dendrite.status_code, "hotkey": told.axon.hotkey}

    def forward(synapse: AnAxonAsTarget) -> AnAxonAsTarget:
        return synapse

    return Case(ask, {"forward_fn": forward})


class _Wallet:
    """A wallet of which only the names are known."""

    def __init__(self, ss58_address: str) -> None:
        self.hotkey = self.coldkeypub = self
        self.ss58_address = ss58_address
