"""Answers of a miner."""

# ruff: noqa: RUF012 - pydantic copies what is mutable.
import typing
from typing import Any, ClassVar, Literal

import pydantic

from tests.dropin.cases import MIB, Case, Here, case, full, tried
from tests.dropin.faces import Face


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
