"""Typed objects to data and back: every kind, every refusal, nothing lost."""

import dataclasses
import datetime
import decimal
import enum
import types
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
import pydantic
import pytest

from lightning import typed
from lightning.errors import ConfigError, DecodeError, EncodeError, EncodeTypeError
from lightning.typed import check_data_type, from_data, to_data


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Inner:
    n: int
    blob: bytes = b""


@dataclasses.dataclass
class Outer:
    inner: Inner
    items: list[Inner] = dataclasses.field(default_factory=list)
    table: dict[str, Inner] = dataclasses.field(default_factory=dict)
    color: Color = Color.RED
    level: Level = Level.HIGH
    maybe: str | None = None
    ratio: float = 0.5
    pair: tuple[int, str] = (1, "a")
    tags: set[int] = dataclasses.field(default_factory=set)


class InnerStruct(msgspec.Struct):
    n: int
    blob: bytes = b""


class Sparse(msgspec.Struct, omit_defaults=True):
    a: int
    b: str | None = None


class Positional(msgspec.Struct, array_like=True):
    a: int


class InnerDict(TypedDict):
    n: int
    blob: NotRequired[bytes]


class Model(pydantic.BaseModel):
    n: int
    blob: bytes = b""
    color: Color = Color.RED
    parts: list["Model"] = []


class Pair(NamedTuple):
    n: int
    m: int


@dataclasses.dataclass
class WithAny:
    value: Any = None


@dataclasses.dataclass
class WithModel:
    model: Model


class Circle(msgspec.Struct, tag=True):
    radius: int


class Square(msgspec.Struct, tag=True):
    side: int


class Plain:
    pass


# to_data.


@pytest.mark.parametrize(
    ("obj", "data"),
    [
        (Inner(1, b"\xff"), {"n": 1, "blob": b"\xff"}),
        (InnerStruct(1, b"\xff"), {"n": 1, "blob": b"\xff"}),
        (InnerDict(n=1, blob=b"\xff"), {"n": 1, "blob": b"\xff"}),
        (
            Model(n=1, parts=[Model(n=2)]),
            {
                "n": 1,
                "blob": b"",
                "color": "red",
                "parts": [{"n": 2, "blob": b"", "color": "red", "parts": []}],
            },
        ),
        (Sparse(1), {"a": 1}),
        (types.MappingProxyType({"a": Inner(1)}), {"a": {"n": 1, "blob": b""}}),
        (
            WithModel(Model(n=1)),
            {"model": {"n": 1, "blob": b"", "color": "red", "parts": []}},
        ),
        (WithAny(msgspec.UNSET), {}),
    ],
)
def test_every_kind_becomes_a_map(obj: object, data: dict) -> None:
    """Each kind of typed object becomes a plain dict by field name."""
    assert to_data(obj) == data
    assert type(to_data(obj)) is dict


def test_nested_values_become_plain() -> None:
    """Nested objects, enums, tuples and sets become what msgpack can say."""
    data = to_data(Outer(Inner(1), [Inner(2)], {"k": Inner(3)}, tags={7}))
    assert data == {
        "inner": {"n": 1, "blob": b""},
        "items": [{"n": 2, "blob": b""}],
        "table": {"k": {"n": 3, "blob": b""}},
        "color": "red",
        "level": 3,
        "maybe": None,
        "ratio": 0.5,
        "pair": (1, "a"),
        "tags": [7],
    }
    assert type(data["level"]) is int


@pytest.mark.parametrize("value", [b"\xff", bytearray(b"\xff"), memoryview(b"\xff")])
def test_binary_values_are_the_same_objects(value: object) -> None:
    """Binary values are neither copied nor turned into text."""
    assert to_data(WithAny(value))["value"] is value


@pytest.mark.parametrize(
    "value", [np.arange(3.0), np.float32(1.5), np.bool_(True), 1j, Plain()]
)
def test_unknown_values_pass_untouched(value: object) -> None:
    """What msgspec does not know is left to the encoder, wherever it is nested."""
    data = to_data(WithAny([{"deep": value}, value]))
    assert data["value"][0]["deep"] is value
    assert data["value"][1] is value


def test_more_unknown_types_than_are_remembered() -> None:
    """The memory of unknown types starts again when it is full."""
    for i in range(typed._MAX_OPAQUE + 10):
        value = type(f"Fresh{i}", (), {})()
        assert to_data(WithAny([b"x", value]))["value"][1] is value
    assert len(typed._opaque) <= typed._MAX_OPAQUE


@pytest.mark.parametrize(
    "obj",
    [
        None,
        1,
        1.5,
        "text",
        b"bytes",
        [1],
        (1,),
        {1},
        Pair(1, 2),
        Positional(1),
        Plain(),
    ],
)
def test_what_is_no_map_is_refused(obj: object) -> None:
    """Anything that does not become a map is a TypeError and a SerializationError."""
    with pytest.raises(EncodeTypeError, match="does not become a map") as caught:
        to_data(obj)
    assert isinstance(caught.value, TypeError)


def test_endless_values_are_refused() -> None:
    """A value that contains itself is an error, not a crash."""
    loop: list = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="nested too deeply"):
        to_data({"loop": loop})


def test_dates_and_ids_survive_through_their_annotation() -> None:
    """Dates, UUIDs and decimals travel as text and come back as themselves."""

    @dataclasses.dataclass
    class Stamp:
        at: datetime.datetime
        key: uuid.UUID
        price: decimal.Decimal

    stamp = Stamp(
        datetime.datetime(2026, 11, 25, 3, 4, 5, 6, datetime.UTC),
        uuid.UUID(int=5),
        decimal.Decimal("1.50"),
    )
    data = to_data(stamp)
    assert all(type(value) is str for value in data.values())
    assert from_data(Stamp, data) == stamp


# from_data.


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (Inner, Inner(1, b"\xff")),
        (InnerStruct, InnerStruct(1, b"\xff")),
        (InnerDict, {"n": 1, "blob": b"\xff"}),
        (Model, Model(n=1, blob=b"\xff")),
        (dict[str, Any], {"n": 1, "blob": b"\xff", "more": None}),
        (Mapping[str, Any], {"n": 1, "blob": b"\xff", "more": None}),
    ],
)
def test_every_kind_is_built(type_: Any, expected: object) -> None:
    """Each kind is built from a map; unknown keys are ignored."""
    built = from_data(type_, {"n": 1, "blob": b"\xff", "more": None})
    assert built == expected
    assert type(built) is type(expected)


@pytest.mark.parametrize("type_", [dict, Any])
def test_untyped_is_the_map_itself(type_: Any) -> None:
    """dict and Any give the data as it is."""
    data = {"a": 1}
    assert from_data(type_, data) is data


def test_nested_round_trip() -> None:
    """A nested object survives to data and back."""
    outer = Outer(Inner(1), [Inner(2)], {"k": Inner(3, b"\0")}, maybe="x", tags={1, 2})
    assert from_data(Outer, to_data(outer)) == outer
    assert from_data(WithModel, to_data(WithModel(Model(n=4)))) == WithModel(Model(n=4))


def test_defaults_are_written_again() -> None:
    """What is built and passed on keeps the fields that the sender left out."""

    @dataclasses.dataclass(frozen=True)
    class Leaf:
        a: int = 1
        b: str | None = None

    @dataclasses.dataclass(slots=True)
    class Slotted:
        leaf: Leaf
        c: int = 2

    class Branch(msgspec.Struct):
        slotted: Slotted
        leaves: list[Leaf]
        table: dict[str, Leaf | None]
        plain: list[int]
        anything: Any = None

    leaf = {"a": 1, "b": None}
    built = from_data(
        Branch,
        {
            "slotted": {"leaf": {}},
            "leaves": [{}, {"a": 1}],
            "table": {"k": {}, "none": None},
            "plain": [1],
        },
    )
    assert to_data(built) == {
        "slotted": {"leaf": leaf, "c": 2},
        "leaves": [leaf, leaf],
        "table": {"k": leaf, "none": None},
        "plain": [1],
        "anything": None,
    }
    assert to_data(from_data(dict[str, Leaf], {"k": {}})) == {"k": leaf}
    assert to_data(from_data(Ring, {"value": [1]})) == {"next": None, "value": [1]}
    assert to_data(from_data(Tree, {"children": [{}]})) == {
        "children": [{"children": [], "size": 0}],
        "size": 0,
    }


class Ring(msgspec.Struct):
    next: "Ring | None" = None
    value: list[int] = []


@dataclasses.dataclass
class Tree:
    children: "list[Tree]" = dataclasses.field(default_factory=list)
    size: int = 0


@pytest.mark.parametrize(
    ("type_", "data", "path"),
    [
        (Inner, {}, "data"),
        (Inner, {"n": 1.0}, "data.n"),
        (Inner, {"n": "1"}, "data.n"),
        (Inner, {"n": True}, "data.n"),
        (Inner, {"n": None}, "data.n"),
        (Inner, {"n": 1, "blob": "AQ=="}, "data.blob"),
        (Outer, {"inner": {"n": 1}, "items": [{"n": 1}, {"n": []}]}, "data.items[1].n"),
        (Outer, {"inner": {"n": 1}, "table": {"k": {}}}, "data.table[...]"),
        (Outer, {"inner": {"n": 1}, "color": "blue"}, "data.color"),
        (Model, {"n": 1, "parts": [{"n": 1}, {"n": []}]}, "data.parts[1].n"),
        (Model, {}, "data.n"),
        (WithModel, {"model": {"n": "secret"}}, "data.model"),
        (dict[str, int], {"a": "1"}, "data[...]"),
        (InnerDict, {"n": []}, "data.n"),
    ],
)
def test_a_value_that_does_not_fit_is_named(type_: Any, data: dict, path: str) -> None:
    """A wrong or missing value is a DecodeError with its path, without the value."""
    with pytest.raises(DecodeError) as caught:
        from_data(type_, data)
    assert caught.value.path == path
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_validators_complaint_is_a_decode_error() -> None:
    """A ValueError of the type's own checks keeps its text."""

    @dataclasses.dataclass
    class Even:
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise ValueError("odd")

    class Shaped:
        """Has a model's methods without being one of pydantic's."""

        @classmethod
        def model_validate(cls, obj: object) -> object:
            raise ValueError("never good")

        def model_dump(self, *, mode: str) -> dict:
            return {"mode": mode}

    @dataclasses.dataclass
    class Holder:
        shaped: Shaped

    with pytest.raises(DecodeError, match="odd"):
        from_data(Even, {"n": 1})
    with pytest.raises(DecodeError, match="never good at data"):
        from_data(Shaped, {})
    with pytest.raises(DecodeError, match=r"never good at data\.shaped"):
        from_data(Holder, {"shaped": {}})
    assert to_data(Shaped()) == {"mode": "python"}


def test_a_field_of_an_unknown_type_takes_only_its_instances() -> None:
    """A nested type that nothing can build is refused by name; an instance passes."""

    @dataclasses.dataclass
    class Holder:
        array: np.ndarray

    array = np.arange(3)
    assert from_data(Holder, {"array": array}).array is array
    with pytest.raises(DecodeError, match="Expected `ndarray`, got `list`") as caught:
        from_data(Holder, {"array": [0, 1, 2]})
    assert caught.value.path == "data.array"


def test_endless_data_is_refused() -> None:
    """Data nested beyond the interpreter's depth is an error, not a crash."""

    @dataclasses.dataclass
    class Node:
        next: "Node | None" = None

    globals()["Node"] = Node
    deep: dict = {}
    for _ in range(100_000):
        deep = {"next": deep}
    with pytest.raises(DecodeError, match="nested too deeply"):
        from_data(Node, deep)
    while deep:
        deep = deep["next"]


@pytest.mark.parametrize("type_", [Plain, int, list[int], Pair, Positional, "Inner"])
def test_building_a_type_that_is_no_map_is_a_config_error(type_: Any) -> None:
    """A wrong type is the caller's mistake, or at least never a crash."""
    with pytest.raises((ConfigError, DecodeError)):
        from_data(type_, {"n": 1})


# check_data_type.


@pytest.mark.parametrize(
    "type_",
    [
        Inner,
        InnerStruct,
        InnerDict,
        Model,
        dict,
        dict[str, int],
        Mapping[str, Any],
        Any,
        Circle | Square,
        Annotated[Inner, "note"],
    ],
)
def test_types_that_stand_for_a_map(type_: Any) -> None:
    """Every kind of typed object passes."""
    check_data_type(type_)


@pytest.mark.parametrize(
    "type_",
    [
        int,
        None,
        list[int],
        Pair,
        Positional,
        Plain,
        Inner | None,
        Literal["a"],
        "Inner",
        5,
        np.ndarray,
    ],
)
def test_types_that_do_not(type_: Any) -> None:
    """Everything else is a ConfigError that names the type."""
    with pytest.raises(
        ConfigError, match=r"does not stand for a map|not a usable type"
    ):
        check_data_type(type_)
