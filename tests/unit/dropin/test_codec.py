"""What travels of a synapse, and what comes of it at the other end."""

import dataclasses
import datetime
import decimal
import enum
import sys
import uuid
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    Base64Bytes,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from lightning._core.wire.messages import SynapsePacket, encode_synapse_packet
from lightning.dropin.codec import (
    NDARRAY,
    RESERVED,
    carefully,
    plan_of,
    set_terminals,
    terminal,
)
from lightning.dropin.exceptions import SynapseParsingError
from lightning.dropin.streaming import StreamingSynapse
from lightning.dropin.synapse import Synapse, TerminalInfo
from lightning.errors import EncodeError, EncodeTypeError

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
     ["f4,O", [1], bytes(12)], ["nonsense", [1], b"1"], ["f8", [2**70], b""],
     ["f8", 1, bytes(8)], ["f8", [1], "12345678"], ["f8", ["1"], bytes(8)],
     [["f8"], [1], bytes(8)], ["V8", [1], bytes(8)], ["f8", [1] * 99, bytes(8)]],
)  # fmt: skip
def test_what_is_no_array_is_refused(form):
    with pytest.raises(SynapseParsingError):
        plan_of(Rich).build({"array": {NDARRAY: form}})


def test_an_array_where_numpy_is_missing_is_a_named_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(SynapseParsingError, match="not installed"):
        plan_of(Rich).build({"free": {NDARRAY: ["f8", [0], b""]}})


def test_a_number_of_numpys_comes_as_a_number():
    data = plan_of(Rich).request_data(Rich(free=[np.float32(0.5), np.array(7)]), META)
    assert plan_of(Rich).build(over_the_wire(data))[0].free == [0.5, 7]


class Coded(Synapse):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    raw: Base64Bytes = b""
    hexed: Annotated[
        bytes,
        PlainSerializer(bytes.hex),
        BeforeValidator(lambda v: bytes.fromhex(v) if isinstance(v, str) else v),
    ] = b""
    digits: list[Annotated[int, PlainSerializer(str)]] = Field(default_factory=list)
    array: Annotated[
        np.ndarray, BeforeValidator(np.array), PlainSerializer(lambda a: a.tolist())
    ] = np.zeros(0)
    got: str = ""


def test_types_with_serializers_of_their_own_are_heard():
    sent = Coded(
        raw=b"AAEC", hexed=b"\1", digits=[1, 2], array=np.array([1.5]), got="x"
    )
    plan = plan_of(Coded)
    data = plan.request_data(sent, META)
    assert data["hexed"] == "01"
    assert data["digits"] == ["1", "2"]
    assert data["array"] == [1.5]
    made, _ = plan.build(over_the_wire(data))
    assert (made.raw, made.hexed, made.digits) == (b"\0\1\2", b"\1", [1, 2])


def test_a_partial_answer_leaves_the_rest_as_it_was_sent():
    """Its validators are given what travelled, not what they have made of it."""
    plan = plan_of(Coded)
    local = Coded(raw=b"AAEC", hexed=b"\1")
    made, _ = plan.build(over_the_wire(data := plan.request_data(local, META)))
    made.got = "x"
    answer = plan.answer_data(made, data, {"status_code": 200})
    assert answer.keys() == {"got", "digits", "array", RESERVED}
    plan.fill(local, over_the_wire(answer))
    assert (local.raw, local.hexed, local.got) == (b"\0\1\2", b"\1", "x")


def test_a_partial_answer_can_be_completed():
    sent = Coded(raw=b"AAEC", got="a")
    assert plan_of(Coded).completed(sent, {"got": "b"}) == {
        "raw": b"AAEC",
        "hexed": "",
        "digits": [],
        "array": [],
        "got": "b",
    }


def test_containers_that_did_not_change_are_left_out():
    class Long(Synapse):
        words: list[str] = Field(default_factory=list)
        table: dict[str, list[float]] | None = None
        mixed: list[int | bool] = Field(default_factory=list)
        either: Literal[1, True] = 1
        free: list = Field(default_factory=list)

    plan = plan_of(Long)
    sent = Long(words=["a"], table={"x": [1.0]}, mixed=[1], free=[[1]])
    data = over_the_wire(plan.request_data(sent, META))
    made, _ = plan.build(dict(data))
    made.free[0][0] = 2
    made.mixed = [True]
    answer = plan.answer_data(made, data, {})
    assert answer.keys() == {"mixed", "free", RESERVED}
    made.words.append("b")
    assert plan.answer_data(made, data, {})["words"] == ["a", "b"]


def test_excluded_fields_stay():
    class Kept(Synapse):
        here: str = Field(default="h", exclude=True)
        there: str = "t"

    assert plan_of(Kept).request_data(Kept(here="secret"), {}) == {
        "there": "t",
        RESERVED: {},
    }


def test_what_a_class_allows_besides_its_fields_travels():
    class Open(Synapse):
        model_config = ConfigDict(extra="allow")

    plan = plan_of(Open)
    data = over_the_wire(plan.request_data(Open(more={1, 2}), META))
    assert data["more"] == [1, 2]
    made, _ = plan.build({**data, "timeout": 3.0, "name": "forged"})
    assert (made.more, made.timeout, made.name) == ([1, 2], 12.0, "Open")
    made.more = "changed"
    local = Open(more=1)
    plan.fill(local, plan.answer_data(made, data, {"status_code": 200}))
    assert local.more == "changed"


def test_big_numbers_travel_as_digits_and_come_back():
    class Paid(Synapse):
        wei: int = 0
        many: dict[str, list[int]] = Field(default_factory=dict)

    big = 10**30
    sent = Paid(wei=big, many={"a": [-big, 2**64 - 1]})
    plan = plan_of(Paid)
    with pytest.raises(EncodeError):
        over_the_wire(plan.request_data(sent, {}))
    data = carefully(plan.request_data(sent, {}))
    assert data["many"] == {"a": [str(-big), 2**64 - 1]}
    made, _ = plan.build(over_the_wire(data))
    assert made == sent
    answer = carefully(plan.answer_data(made, None, {}))
    assert plan.fill(local := Paid(), over_the_wire(answer)) == {}
    assert local == sent


def test_what_a_validator_made_travels_with_care():
    class Made(Synapse):
        words: Annotated[list[str], AfterValidator(set)] = Field(default_factory=list)

    data = carefully(plan_of(Made).request_data(Made(words=["a", "a"]), {}))
    assert plan_of(Made).build(over_the_wire(data))[0].words == {"a"}


def test_keys_are_scalars():
    class Keyed(Synapse):
        table: Any = None

    plan = plan_of(Keyed)
    table = {1: 2, Colour.RED: 3, datetime.date(2020, 1, 1): 4, None: 5}
    assert over_the_wire(plan.request_data(Keyed(table=table), {}))["table"] == {
        1: 2,
        "red": 3,
        "2020-01-01": 4,
        None: 5,
    }
    with pytest.raises(EncodeTypeError, match="tuple cannot be a key"):
        plan.request_data(Keyed(table={(1, 2): 3}), {})


def test_validators_see_whom_the_synapse_belongs_to():
    class Seeing(Synapse):
        word: str = ""

        @model_validator(mode="after")
        def look(self):
            seen.append(self.dendrite.hotkey)
            return self

    seen = []
    local = Seeing(word="a")
    set_terminals(local, terminal(hotkey="me"), terminal())
    seen.clear()
    plan_of(Seeing).fill(local, {"word": "b"})
    assert seen == ["me"]
    assert (local.word, local.dendrite.hotkey) == ("b", "me")


def test_a_terminal_with_more_fields_has_their_defaults():
    class More(TerminalInfo):
        neuron_version: int = 3

    class Wide(Synapse):
        dendrite: More | None = Field(default_factory=More)
        axon: More | None = Field(default_factory=More)

    made, _ = plan_of(Wide).build({})
    assert made.dendrite == More()
    assert made.dendrite.neuron_version == 3


def test_serializers_that_fail_are_named():
    class Failing(Synapse):
        field: str

        @model_serializer
        def write(self):
            raise RuntimeError("no")

    class Listing(Failing):
        def model_dump(self, **options):
            return [options]

    for kind in (Failing, Listing):
        with pytest.raises(EncodeTypeError, match=kind.__name__):
            plan_of(kind).request_data(kind(field="x"), {})


def test_what_is_nested_too_deeply_is_refused_at_both_ends():
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    with pytest.raises(SynapseParsingError, match="nested"):
        plan_of(Rich).build({"free": deep})
    with pytest.raises(EncodeTypeError):
        plan_of(Rich).request_data(Rich(free=deep), {})


def test_a_refusals_text_is_short():
    with pytest.raises(SynapseParsingError) as caught:
        plan_of(Rich).build({"table": {"x" * 10_000: 3}})
    assert len(str(caught.value)) <= 500


@settings(max_examples=40)
@given(
    st.builds(
        Rich,
        many=st.lists(st.builds(Inner, n=st.integers(-(2**63), 2**64 - 1)), max_size=3),
        colour=st.sampled_from(Colour),
        when=st.datetimes() | st.datetimes(timezones=st.just(datetime.UTC)),
        day=st.dates(),
        span=st.timedeltas(),
        ident=st.uuids(),
        price=st.decimals(allow_nan=False, allow_infinity=False),
        names=st.sets(st.text(), max_size=3),
        pair=st.tuples(st.integers(-(2**63), 2**64 - 1), st.text()),
        raw=st.binary(),
        table=st.dictionaries(
            st.text(), st.lists(st.floats(allow_nan=False), max_size=3), max_size=3
        ),
        point=st.builds(Point, st.integers(-9, 9), st.integers(-9, 9)),
    )
)
def test_whatever_a_class_holds_comes_back_equal(sent):
    plan = plan_of(Rich)
    data = over_the_wire(plan.request_data(sent, META))
    assert plan.build(dict(data))[0] == sent
    plan.fill(local := Rich(), over_the_wire(plan.answer_data(sent, None, {})))
    assert local == sent
    assert plan.answer_data(sent, data, {})[RESERVED] == {"partial": True}


def test_bounds_and_validators_leave_a_field_as_fast_as_without():
    class Bounded(Synapse):
        number: Annotated[int, Field(gt=0)] = 1
        word: Annotated[str, StringConstraints(max_length=3), AfterValidator(str)] = ""
        secret: SecretStr | None = None
        keyed: dict[Annotated[str, Field(min_length=1)], list[Literal["a"]]] | None = (
            None
        )

    assert plan_of(Bounded)._plain == {"number", "word", "keyed"}


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


def test_care_looks_into_whatever_there_is():
    deep = {"a": Inner(n=1), "b": [Point(1, 2)], "c": bytearray(b"x"), "d": 1 << 64}
    assert carefully({"f": deep, RESERVED: META}) == {
        "f": {
            "a": {"n": 1, "at": None},
            "b": [{"x": 1, "y": 2}],
            "c": b"x",
            "d": "18446744073709551616",
        },
        RESERVED: META,
    }


def test_an_answer_without_fields_changes_nothing():
    local = Coded(raw=b"AAEC", got="a")
    meta = {"status_code": 200, "partial": True}
    assert plan_of(Coded).fill(local, {RESERVED: meta}) == meta
    assert (local.raw, local.got) == (b"\0\1\2", "a")


class Early(Synapse):
    later: "Later"


class Later(BaseModel):
    n: int


def test_a_class_whose_types_come_later_is_completed():
    assert not Early.__pydantic_complete__
    plan = plan_of(Early)
    assert plan.build({"later": {"n": 1}})[0].later.n == 1
    assert repr(plan) == "<Plan Early>"


def test_a_class_that_has_travelled_assigns_as_before():
    class Kept(Synapse):
        asked: str = Field(default="a", frozen=True)
        number: int | None = None

    class Checked(Kept):
        @field_validator("number")
        @classmethod
        def double(cls, value):
            return value * 2

    for kind, wanted in ((Kept, 3), (Checked, 6)):
        plan_of(kind)
        synapse = kind()
        synapse.number = 3
        assert synapse.number == wanted
        assert "number" in synapse.model_fields_set
        synapse.number = "4"
        assert synapse.number == wanted + wanted // 3
        for name, value in (("number", "x"), ("asked", "b"), ("other", 1)):
            with pytest.raises(ValueError, match=name):
                setattr(synapse, name, value)
        synapse.timeout = "3"
        assert synapse.timeout == 3.0
