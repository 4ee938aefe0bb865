"""What travels of a synapse, and what comes of it at the other end."""

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from lightning._core.wire.messages import SynapsePacket, encode_synapse_packet
from lightning.dropin.codec import (
    NDARRAY,
    RESERVED,
    plan_of,
    set_terminals,
    terminal,
)
from lightning.dropin.exceptions import SynapseParsingError
from lightning.dropin.streaming import StreamingSynapse
from lightning.dropin.synapse import Synapse, TerminalInfo
from lightning.errors import EncodeTypeError

META = {"timeout": 12.0, "uuid": "u", "nonce": 1, "version": 2}


class Colour(enum.Enum):
    RED = "red"


class Inner(BaseModel):
    n: int
    at: datetime.datetime | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Echo(Synapse):
    text: str
    number: int = 0
    answer: str | None = None


class Rich(Synapse):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: Inner | None = None
    many: list[Inner] = Field(default_factory=list)
    colour: Colour = Colour.RED
    when: datetime.datetime | None = None
    day: datetime.date | None = None
    span: datetime.timedelta | None = None
    ident: uuid.UUID | None = None
    price: decimal.Decimal | None = None
    names: set[str] = Field(default_factory=set)
    pair: tuple[int, str] | None = None
    point: Point | None = None
    raw: bytes = b""
    array: np.ndarray | None = None
    free: Any = None
    kind: Literal["a", "b"] = "a"
    bounded: Annotated[int, Field(ge=0)] = 0
    table: dict[str, list[float]] = Field(default_factory=dict)


def over_the_wire(data: dict) -> dict:
    frame = encode_synapse_packet("S", data, 1, 1 << 26)
    return SynapsePacket.from_payload(frame[5:]).data


def test_a_request_has_the_own_fields_and_one_key():
    data = plan_of(Echo).request_data(Echo(text="hi"), META)
    assert data == {"text": "hi", "number": 0, "answer": None, RESERVED: META}


def test_a_request_is_built_with_the_terminals_that_are_known():
    data = over_the_wire(plan_of(Echo).request_data(Echo(text="hi"), META))
    dendrite = terminal(hotkey="h", ip="1.2.3.4", port=5)
    synapse, meta = plan_of(Echo).build(data, dendrite)
    assert (synapse.text, synapse.name, meta) == ("hi", "Echo", META)
    assert synapse.dendrite is dendrite
    assert synapse.axon == TerminalInfo()


def test_nobody_sends_what_the_login_proves():
    forged = {"text": "x", "dendrite": {"hotkey": "forged"}, "computed_body_hash": "f"}
    synapse, meta = plan_of(Echo).build(
        {**forged, "axon": 3, "name": 4, "timeout": "x"}
    )
    assert synapse.dendrite == TerminalInfo()
    assert (synapse.computed_body_hash, synapse.timeout, meta) == ("", 12.0, None)


def test_an_answer_has_what_changed():
    plan = plan_of(Echo)
    data = plan.request_data(Echo(text="hi"), META)
    local = Echo(text="hi")
    synapse, _ = plan.build(over_the_wire(data))
    synapse.answer = "there"
    answer = plan.answer_data(synapse, data, {"status_code": 200})
    assert answer == {
        "answer": "there",
        RESERVED: {"status_code": 200, "partial": True},
    }
    assert plan.fill(local, over_the_wire(answer)) == answer[RESERVED]
    assert local == Echo(text="hi", answer="there")


def test_a_value_of_another_type_is_a_change():
    class Loose(Synapse):
        value: Any = 1

    plan = plan_of(Loose)
    data = plan.request_data(Loose(), META)
    for value in (True, 1.0, "1"):
        answer = plan.answer_data(Loose(value=value), data, {})
        assert type(answer["value"]) is type(value)


def test_a_client_that_knows_no_key_gets_all_fields():
    plan = plan_of(Echo)
    assert plan.answer_data(Echo(text="a"), {"text": "a"}, None) == {
        "text": "a",
        "number": 0,
        "answer": None,
    }


def test_an_answer_of_a_plain_server_resets_what_it_does_not_have():
    local = Echo(text="a", number=5)
    assert plan_of(Echo).fill(local, {"text": "b", "unknown": 1}) is None
    assert local == Echo(text="b")


def test_an_answer_that_does_not_fit_changes_nothing_and_names_the_fields():
    local = Echo(text="a", number=5)
    with pytest.raises(SynapseParsingError, match="Echo: number: Input should"):
        plan_of(Echo).fill(local, {"text": "b", "number": "x"})
    assert local == Echo(text="a", number=5)


def test_the_text_of_a_refusal_has_no_values():
    with pytest.raises(SynapseParsingError) as caught:
        plan_of(Echo).build({"text": {"secret": 1}})
    assert "secret" not in str(caught.value)


def test_frozen_fields_keep_the_callers_value():
    class Frozen(Synapse):
        asked: str = Field(frozen=True)
        got: str = ""

    local = Frozen(asked="mine")
    plan_of(Frozen).fill(local, {"asked": "theirs", "got": "x"})
    assert (local.asked, local.got) == ("mine", "x")


def test_validators_of_a_class_run_at_both_ends():
    class Checked(Synapse):
        word: str = ""

        @field_validator("word")
        @classmethod
        def upper(cls, value):
            if value == "bad":
                raise ValueError("no such word")
            return value.upper()

    plan = plan_of(Checked)
    assert plan.build({"word": "a"})[0].word == "A"
    local = Checked()
    plan.fill(local, {"word": "b"})
    assert local.word == "B"
    with pytest.raises(SynapseParsingError, match="no such word"):
        plan.build({"word": "bad"})


def test_a_validator_that_breaks_is_an_answer_that_does_not_fit():
    class Broken(Synapse):
        word: str = ""

        @field_validator("word")
        @classmethod
        def fail(cls, value):
            raise KeyError(value)

    with pytest.raises(SynapseParsingError, match="Broken"):
        plan_of(Broken).build({"word": "a"})


def test_a_class_that_writes_its_fields_its_own_way_is_heard():
    class Written(Synapse):
        number: int = 1

        @field_serializer("number")
        def write(self, value):
            return value * 2

    assert plan_of(Written).request_data(Written(), {})["number"] == 2


def test_a_class_with_its_own_constructor_is_made_by_it():
    class Built(Synapse):
        word: str = ""

        def __init__(self, **fields):
            super().__init__(**{"word": "own", **fields})

    assert plan_of(Built).build({})[0].word == "own"


def test_rich_values_come_back_equal():
    sent = Rich(
        inner=Inner(n=1, at=datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)),
        many=[Inner(n=2)],
        when=datetime.datetime(2021, 1, 1, 3, 4, 5, 678),  # noqa: DTZ001 - naive ones, too
        day=datetime.date(2020, 2, 29),
        span=datetime.timedelta(seconds=90.5),
        ident=uuid.UUID(int=7),
        price=decimal.Decimal("1.10"),
        names={"a", "b"},
        pair=(1, "x"),
        point=Point(1, 2),
        raw=b"\0\xff",
        free={"a": [1, {"b": b"c"}]},
        table={"x": [1.0, float("inf")]},
    )
    plan = plan_of(Rich)
    made, _ = plan.build(over_the_wire(plan.request_data(sent, META)))
    assert made == sent
    local = Rich()
    plan.fill(local, over_the_wire(plan.answer_data(sent, None, {"status_code": 200})))
    assert local == sent


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="f4").reshape(2, 3),
        np.zeros((0, 2)),
        np.array([True]),
        np.array([1 + 2j]),
        np.arange(4, dtype=">i2"),
        np.arange(8)[::2],
    ],
    ids=str,
)
def test_arrays_come_back_with_type_and_shape(array):
    plan = plan_of(Rich)
    made, _ = plan.build(over_the_wire(plan.request_data(Rich(array=array), META)))
    assert made.array.dtype == array.dtype
    assert made.array.shape == array.shape
    assert (made.array == array).all()
    made.array[...] = 0


@pytest.mark.parametrize(
    "form",
    [None, [], ["f4", [1], b""], ["O", [1], bytes(8)], ["f4", [-2, 3], b""], [1, 2, 3],
     ["f4,O", [1], bytes(12)], ["nonsense", [1], b"1"]],
)  # fmt: skip
def test_what_is_no_array_is_refused(form):
    with pytest.raises(SynapseParsingError):
        plan_of(Rich).build({"array": {NDARRAY: form}})


def test_what_cannot_travel_is_named():
    class Holder(Synapse):
        thing: Any = None

    for thing in (object(), {"a": [object()]}, np.array([object()]), lambda: None):
        with pytest.raises(EncodeTypeError, match="thing"):
            plan_of(Holder).request_data(Holder(thing=thing), {})
    loop: list = []
    loop.append(loop)
    with pytest.raises(EncodeTypeError, match="nested"):
        plan_of(Holder).request_data(Holder.model_construct(thing=loop), {})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.recursive(
                st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
                | st.binary(max_size=3) | st.floats(),
                lambda inner: st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([NDARRAY, "a"]), inner, max_size=2),
                max_leaves=6,
            )
            for name in (*Rich.model_fields, RESERVED, "other")
        },
    )
)  # fmt: skip
def test_whatever_comes_is_a_synapse_or_a_named_error(data):
    plan = plan_of(Rich)
    for function in (plan.build, lambda data: plan.fill(Rich(), data)):
        try:
            function(dict(data))
        except SynapseParsingError:
            pass


def test_a_class_that_is_no_synapse_is_told():
    with pytest.raises(TypeError, match="derive it from"):
        plan_of(dict)


def test_terminals_are_made_and_set_without_validation_and_validate_after():
    synapse, end = Synapse(), terminal(status_code=200)
    set_terminals(synapse, end, TerminalInfo())
    assert synapse.dendrite is end
    assert end == TerminalInfo(status_code=200)
    end.status_code = "503"
    assert (end.status_code, synapse.is_failure) == (503, True)
    assert end.model_copy().model_dump() == end.model_dump()


def test_what_kind_of_class_it_is():
    class Stream(StreamingSynapse):
        required_hash_fields: ClassVar[tuple[str, ...]] = ("prompt",)
        prompt: str = ""

        async def process_streaming_response(self, response):
            yield b""

        def extract_response_json(self, response):
            return {}

    assert plan_of(Stream).is_streaming
    assert not plan_of(Echo).is_streaming
    assert plan_of(Stream).own == ("prompt",)
    assert plan_of(Stream).terminal_class is TerminalInfo
    assert plan_of(Stream) is plan_of(Stream)


class Plain(Synapse):
    """Takes the short way, where nothing is validated."""

    need: int
    text: str | None = None
    flag: bool = False
    timeout: float | None = 5.0


values = st.fixed_dictionaries(
    {},
    optional={
        "need": st.integers() | st.text(max_size=2) | st.booleans() | st.floats(),
        "text": st.none() | st.text(max_size=2) | st.binary(max_size=2),
        "flag": st.booleans() | st.integers(0, 2) | st.just("yes"),
    },
)


@given(values)
def test_the_short_way_gives_what_validation_gives(data):
    plan = plan_of(Plain)
    try:
        wanted = plan._make(dict(data))
    except SynapseParsingError:
        wanted = None
    short = plan._build_exact(dict(data), TerminalInfo(), TerminalInfo())
    if short is not None:
        assert short == wanted
        assert list(short.model_dump()) == list(wanted.model_dump())
        assert short.model_copy().timeout == 5.0
    local = Plain(need=7, text="old")
    if plan._fill_exact(local, dict(data), is_partial=False):
        assert local.model_dump(include=set(plan.own)) == wanted.model_dump(
            include=set(plan.own)
        )


def test_the_short_way_is_taken_where_it_can_be():
    assert plan_of(Plain)._build_exact({"need": 1}, None, None) is not None
    assert plan_of(Plain)._build_exact({"need": "1"}, None, None) is None
    assert plan_of(Plain)._build_exact({}, None, None) is None
