"""Typed conversion: what goes in comes out, through the wire's bytes as well."""

import dataclasses
import datetime
import enum
import sys
import uuid
from decimal import Decimal
from typing import Any, TypedDict

import msgpack
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning.errors import ConfigError, DecodeError, EncodeTypeError
from lightning.handlers import typed_handler
from lightning.typed import from_data, to_data
from lightning.types import PeerAddr, QuicRequest, QuicResponse, check_timeout

INTS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | INTS | FLOATS | TEXT | st.binary()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Leaf:
    n: int
    raw: bytes = b""
    color: Color = Color.RED
    anything: Any = None


class Branch(msgspec.Struct):
    leaf: Leaf
    level: Level
    more: list["Branch"] = []
    table: dict[str, Leaf] = {}
    maybe: Leaf | None = None
    pair: tuple[int, str] = (0, "")
    tags: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    at: datetime.datetime
    day: datetime.date
    key: uuid.UUID
    price: Decimal


class Model(pydantic.BaseModel):
    n: int
    raw: bytes = b""
    color: Color = Color.RED
    parts: list["Model"] = []


class Row(TypedDict):
    leaf: Leaf
    ratio: float


LEAVES = st.builds(
    Leaf, n=INTS, raw=st.binary(), color=st.sampled_from(Color), anything=PLAIN
)
BRANCHES = st.recursive(
    st.builds(
        Branch,
        leaf=LEAVES,
        level=st.sampled_from(Level),
        table=st.dictionaries(TEXT, LEAVES, max_size=3),
        maybe=st.none() | LEAVES,
        pair=st.tuples(INTS, TEXT),
        tags=st.frozensets(INTS, max_size=4),
    ),
    lambda inner: st.builds(
        Branch,
        leaf=LEAVES,
        level=st.sampled_from(Level),
        more=st.lists(inner, max_size=3),
    ),
    max_leaves=5,
)
STAMPS = st.builds(
    Stamp,
    at=st.datetimes(timezones=st.just(datetime.UTC)),
    day=st.dates(),
    key=st.uuids(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
)
MODELS = st.recursive(
    st.builds(
        Model,
        n=INTS,
        raw=st.binary(),
        color=st.sampled_from(Color),
        parts=st.just([]),
    ),
    lambda inner: st.builds(Model, n=INTS, parts=st.lists(inner, max_size=3)),
    max_leaves=5,
)
ROWS = st.fixed_dictionaries({"leaf": LEAVES, "ratio": FLOATS})


def over_the_wire(data: dict) -> dict:
    """Give what the other side's decoder would; the msgpack package is the oracle."""
    return msgpack.unpackb(msgpack.packb(data), strict_map_key=True)


def in_order(data: dict) -> dict:
    """Sort the arrays that were sets, whose order means nothing."""
    return data | {
        "tags": sorted(data["tags"]),
        "more": [in_order(branch) for branch in data["more"]],
    }


def round_trips(type_: Any, obj: Any) -> None:
    data = over_the_wire(to_data(obj))
    assert from_data(type_, data) == obj
    request = QuicRequest.from_typed("x", obj)
    response = QuicResponse(True, over_the_wire(request.data), 0.0)
    assert response.deserialize_data(type_) == obj


@given(LEAVES)
def test_dataclasses_round_trip(obj: Leaf) -> None:
    """Binary, enum and free values of a dataclass survive."""
    round_trips(Leaf, obj)


@given(BRANCHES)
def test_nested_structs_round_trip(obj: Branch) -> None:
    """So do recursive Structs with dataclasses in every container."""
    round_trips(Branch, obj)


@given(STAMPS)
def test_dates_ids_and_decimals_round_trip(obj: Stamp) -> None:
    """So do the values that travel as text."""
    round_trips(Stamp, obj)


@given(MODELS)
def test_pydantic_models_round_trip(obj: Model) -> None:
    """So do recursive pydantic models."""
    round_trips(Model, obj)


@given(ROWS)
def test_typed_dicts_round_trip(obj: Row) -> None:
    """So do TypedDicts with typed objects inside."""
    round_trips(Row, obj)


@given(st.dictionaries(TEXT, PLAIN, max_size=5))
def test_plain_maps_are_left_as_they_are(data: dict) -> None:
    """A map of plain values is the same before and after."""
    assert to_data(data) == data
    assert from_data(dict[str, Any], data) == data


@given(BRANCHES)
def test_what_was_built_is_written_the_same_again(obj: Branch) -> None:
    """A request that is read and passed on loses nothing, defaults included."""
    data = over_the_wire(to_data(obj))
    again = over_the_wire(to_data(from_data(Branch, data)))
    assert in_order(again) == in_order(data)
    sparse = {"leaf": {"n": 1}, "level": 2, "table": {"k": {"n": 2}}}
    again = to_data(from_data(Branch, sparse))
    assert again["leaf"] == {"n": 1, "raw": b"", "color": "red", "anything": None}
    assert again["table"]["k"] == again["leaf"] | {"n": 2}


@given(BRANCHES)
def test_a_typed_handler_echoes(obj: Branch) -> None:
    """Through a handler that returns its request, data stays equal."""

    @typed_handler
    def echo(request: Branch) -> Branch:
        return request

    data = over_the_wire(to_data(obj))
    assert in_order(over_the_wire(echo(data))) == in_order(data)


@given(st.dictionaries(TEXT | st.sampled_from(["leaf", "level", "more"]), PLAIN))
@settings(max_examples=200)
def test_foreign_data_is_built_or_refused_by_name(data: dict) -> None:
    """Whatever a peer sends gives an object or a DecodeError, never another error."""
    refusals = []
    for type_ in (Leaf, Branch, Stamp, Model, Row, dict[str, int]):
        try:
            from_data(type_, data)
        except DecodeError as error:
            refusals.append(error)
    assert all(error.path.startswith("data") for error in refusals)
    # Of these, every one that was refused needs at least one key.
    assert data or len(refusals) == 5


@given(
    st.recursive(
        SCALARS | st.complex_numbers() | st.builds(object) | st.just(Leaf),
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner)
            | st.dictionaries(TEXT | st.integers(), inner)
            | st.builds(Leaf, n=INTS, anything=inner)
        ),
        max_leaves=8,
    )
)
def test_any_value_becomes_a_map_or_is_refused(value: Any) -> None:
    """to_data gives a dict or an EncodeError, whatever it is given."""
    if isinstance(value, dict | Leaf):
        assert type(to_data(value)) is dict
    else:
        with pytest.raises(EncodeTypeError):
            to_data(value)


@given(
    st.ip_addresses().map(str) | st.from_regex(r"[a-z0-9.-]+", fullmatch=True),
    st.integers(0, 65535),
)
def test_addresses_round_trip(ip: str, port: int) -> None:
    """Every address is read back from its text."""
    assert PeerAddr.parse(str(PeerAddr(ip, port))) == (ip, port)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Reading any text gives an address that writes the same, or a ValueError."""
    try:
        address = PeerAddr.parse(text)
    except ValueError:
        return
    assert 0 <= address.port <= 65535
    assert PeerAddr.parse(str(address)) == address


@given(st.floats() | st.integers())
def test_any_number_is_a_timeout_or_refused(value: float) -> None:
    """A checked timeout is normal, positive and at most ten years."""
    if sys.float_info.min <= value <= 315_360_000:
        assert check_timeout(value) == value
    else:
        with pytest.raises(ConfigError, match="must be a finite positive number"):
            check_timeout(value)
