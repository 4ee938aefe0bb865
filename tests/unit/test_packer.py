"""Writing MessagePack: smallest forms, lossless or an error that names the place."""

import array
import asyncio
import collections
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import mmap
import pathlib
import struct
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Mapping

import msgpack
import numpy as np
import pydantic
import pytest

from lightning._core.wire.msgpack import MAX_DEPTH, packb
from lightning._core.wire.packer import Writer
from lightning.errors import EncodeError, EncodeTypeError

CONVERT = "Failed to convert Python value to msgpack: "


def nested(depth, inner=0):
    for _ in range(depth):
        inner = [inner]
    return inner


def error_of(value, kind=EncodeTypeError):
    with pytest.raises(kind) as caught:
        packb(value)
    assert caught.value.detail.startswith(CONVERT)
    return caught.value


# --- forms ----------------------------------------------------------------------------

INTEGERS = {
    0: "00",
    127: "7f",
    128: "cc80",
    255: "ccff",
    256: "cd0100",
    65535: "cdffff",
    65536: "ce00010000",
    2**32 - 1: "ceffffffff",
    2**32: "cf0000000100000000",
    2**63 - 1: "cf7fffffffffffffff",
    2**63: "cf8000000000000000",
    2**64 - 1: "cfffffffffffffffff",
    -1: "ff",
    -32: "e0",
    -33: "d0df",
    -128: "d080",
    -129: "d1ff7f",
    -32768: "d18000",
    -32769: "d2ffff7fff",
    -(2**31): "d280000000",
    -(2**31) - 1: "d3ffffffff7fffffff",
    -(2**63): "d38000000000000000",
}


@pytest.mark.parametrize("value", INTEGERS)
def test_an_integer_takes_its_smallest_form(value):
    assert packb(value).hex() == INTEGERS[value]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "c0"),
        (False, "c2"),
        (True, "c3"),
        (1.0, "cb3ff0000000000000"),
        (float("-inf"), "cbfff0000000000000"),
        ("", "a0"),
        ("é", "a2c3a9"),
        (b"", "c400"),
        ([], "90"),
        ((), "90"),
        ({}, "80"),
        ({"a": [1, (2,)]}, "81a16192019102"),
    ],
)
def test_a_plain_value_takes_its_smallest_form(value, expected):
    assert packb(value).hex() == expected


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 475, 65535, 65536])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: "x" * n,
        lambda n: b"x" * n,
        lambda n: [1] * n,
        lambda n: (None,) * n,
        lambda n: dict.fromkeys(range(n)),
        lambda n: ["y" * n, "z" * n],
    ],
)
def test_each_length_takes_its_smallest_form(make, size):
    assert packb(make(size)) == msgpack.packb(make(size))


# --- what stands for a plain value ----------------------------------------------------


class Colour(enum.IntEnum):
    RED = 3


class Name(enum.StrEnum):
    A = "a"


class Text(str):
    __slots__ = ()


class Whole:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024  shorter than a class


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, 3),
        (Name.A, "a"),
        (Text("τ"), "τ"),
        (Whole(-5), -5),
        (Whole(2**64 - 1), 2**64 - 1),
        (type("F", (float,), {})(2.5), 2.5),
        (type("B", (bytes,), {})(b"x"), b"x"),
        (type("L", (list,), {})([1]), [1]),
        (Point(1, 2), [1, 2]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcdef")[1:3], b"bc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(b"abcd").cast("c"), b"abcd"),
        (memoryview(b"ab").cast("b"), b"ab"),
        (array.array("B", b"ab"), b"ab"),
        (array.array("b", b"ab"), b"ab"),
        (array.array("H", [1, 65535]), [1, 65535]),
        (array.array("q", [-1, 2**62]), [-1, 2**62]),
        (array.array("d", [1.5]), [1.5]),
        (memoryview(b"abcdef").cast("B", (2, 3)), [[97, 98, 99], [100, 101, 102]]),
        ((ctypes.c_char * 2)(b"a", b"b"), b"ab"),
        ((ctypes.c_int32 * 2)(-1, 7), [-1, 7]),
        (ctypes.c_uint16.__ctype_be__(258), 258),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.UserDict({"a": {"b": 1}}), {"a": {"b": 1}}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
        ({1: 2, None: 3, 2.5: 4, b"k": 5, False: 6}, None),
        ({Colour.RED: 1, Whole(9): 2, Text("t"): 3}, {3: 1, 9: 2, "t": 3}),
        ({memoryview(b"k"): 1}, {b"k": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_stands_for_another_is_written_as_that(value, plain):
    assert packb(value) == msgpack.packb(value if plain is None else plain)


def test_a_mapping_is_written_in_the_order_that_it_gives():
    ordered = collections.OrderedDict(a=1, b=2)
    ordered.move_to_end("a")
    assert packb(ordered) == msgpack.packb({"b": 2, "a": 1})


def test_a_map_of_memory_is_bytes():
    with mmap.mmap(-1, 3) as memory:
        memory[:] = b"abc"
        assert packb(memory) == msgpack.packb(b"abc")


def test_a_large_value_after_small_ones_grows_the_buffer_once_and_fits():
    value = ["x" * 400, b"y" * 100_000, list(range(5000)), "z" * 70_000]
    assert packb(value) == msgpack.packb(value)


# --- numpy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.uint8(200), 200),
        (np.int64(-(2**63)), -(2**63)),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(0.1), 0.1),
        (np.float16(1.5), 1.5),
        (np.str_("é"), "é"),
        (np.bytes_(b"ab"), b"ab"),
        (np.array(7), 7),
        (np.array(7, dtype="u1"), 7),
        (np.arange(3, dtype="u1"), b"\0\1\2"),
        (np.arange(-1, 2, dtype="i1"), b"\xff\0\1"),
        (np.arange(6, dtype="u1")[::-2], b"\5\3\1"),
        (np.arange(6, dtype="u1").reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.arange(6, dtype="i1").reshape(2, 3).T - 3, [[-3, 0], [-2, 1], [-1, 2]]),
        (np.array([1, -2], dtype=">i2"), [1, -2]),
        (np.array([1, -2], dtype="<i8"), [1, -2]),
        (np.array([2**63], dtype=">u8"), [2**63]),
        (np.array([0.1, -0.0], dtype=">f8"), [0.1, -0.0]),
        (np.array([0.5], dtype="<f2"), [0.5]),
        (np.array([0.5], dtype=">f2"), [0.5]),
        (np.array([True, False]), [True, False]),
        (np.zeros((2, 0, 3)), [[], []]),
        (np.zeros((0, 3), "i4"), []),
        (np.arange(24).reshape(2, 3, 4)[:, ::2, 1:3].transpose(2, 0, 1), None),
        (np.broadcast_to(np.int32(5), (2, 2)), [[5, 5], [5, 5]]),
    ],
    ids=lambda value: f"{getattr(value, 'dtype', '')}",
)
def test_numpy_numbers_keep_their_values(value, plain):
    assert packb(value) == msgpack.packb(value.tolist() if plain is None else plain)


def test_numpy_single_floats_stay_single():
    values = np.array([0.1, np.inf, 1e-45], "f4")
    assert packb(values[0]).hex() == "ca3dcccccd"
    plain = values.tolist()
    assert packb(values) == msgpack.packb(plain, use_single_float=True)
    swapped = values.astype(">f4")
    assert packb({"a": [swapped]}) == msgpack.packb(
        {"a": [plain]}, use_single_float=True
    )


def test_a_nan_keeps_its_bits():
    quiet = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
    assert packb(np.array([quiet])).hex() == "91cb7ff8000000000001"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.longdouble(1), "use float(value)"),
        (np.array([1], "g"), "use value.tolist()"),
        (np.complex64(1), "complex64 is not supported"),
        (np.array([1j]), "use value.tolist()"),
        (np.datetime64(3, "s"), "value.astype('int64')"),
        (np.timedelta64(3, "s"), "value.astype('int64')"),
        (np.array([3], "M8[s]"), "use value.tolist()"),
        (np.array([object()]), "use value.tolist()"),
        (np.array(["a"]), "use value.tolist()"),
        (np.array([b"a"]), "use value.tolist()"),
        (np.zeros(2, "i4,f8"), "use value.tolist()"),
        (np.ma.array([1, 2], mask=[0, 1]), "use value.filled()"),
        (type("Metres", (np.ndarray,), {})((1,), "u1"), "use value.tolist()"),
    ],
    ids=lambda value: f"{getattr(value, 'dtype', '')}",
)
def test_numpy_values_that_would_lose_something_are_refused(value, text):
    assert text in str(error_of([value]))


def test_numpy_is_not_imported_by_the_codec():
    code = (
        "import sys, array;"
        "from lightning._core.wire.msgpack import packb;"
        "packb([bytearray(2), array.array('d', [1.5]), {1: memoryview(b'x')}]);"
        "sys.exit('numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


# --- refusals -------------------------------------------------------------------------


@dataclasses.dataclass
class Record:
    x: int = 1


class Model(pydantic.BaseModel):
    x: int = 1


class Tensor:
    """What a tensor of one element looks like."""

    shape = (1,)

    def __index__(self):
        return 5

    def tolist(self):
        return [5]


class Level(enum.Enum):
    LOW = 1


class Structure(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int),)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({1}, "set is not supported; use a list, such as sorted(value)"),
        (frozenset(), "frozenset is not supported; use a list"),
        (range(3), "use list(value)"),
        ({}.keys(), "use list(value)"),
        (iter([]), "list_iterator is not supported; use list(value)"),
        ((x for x in ()), "use list(value)"),
        (collections.deque(), "use list(value)"),
        (datetime.datetime.now(datetime.UTC), "use value.isoformat()"),
        (datetime.date.today(), "use value.isoformat()"),  # noqa: DTZ011  any date
        (datetime.timedelta(1), "use value.total_seconds()"),
        (decimal.Decimal("1.1"), "use str(value)"),
        (fractions.Fraction(1, 3), "use str(value)"),
        (1j, "use [value.real, value.imag]"),
        (Level.LOW, "use value.value"),
        (uuid.uuid4(), "use str(value)"),
        (pathlib.Path("x"), "use str(value)"),
        (Record(), "use dataclasses.asdict(value)"),
        (Model(), "use value.model_dump()"),
        (Tensor(), "use value.tolist()"),
        (object(), "object is not supported; convert it to one that is"),
        (int, "type is not supported"),
        (Structure(), "Structure is not supported"),
        (ctypes.pointer(ctypes.c_int()), "is not supported"),
        (array.array("u", "a"), "array is not supported"),
        ((ctypes.c_char * 2 * 2)(), "is not supported"),
        ({(1, 2): 0}, "a tuple cannot be a map key ((1, 2))"),
        ({frozenset(): 0}, "a frozenset cannot be a map key (frozenset())"),
        ({Level.LOW: 0}, "a Level cannot be a map key"),
        (
            {memoryview(b"abcd").cast("B", (2, 2)): 0},
            "a memoryview cannot be a map key",
        ),
        ({1j: 0}, "a complex cannot be a map key (1j)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_value_that_would_turn_into_something_else_is_refused(value, text):
    error = error_of({"a": value})
    assert text in error.detail
    assert error.path == "value.a"
    assert isinstance(error, TypeError)
    assert isinstance(error, ValueError)


def test_a_coroutine_is_named_as_such():
    coroutine = asyncio.sleep(0)
    assert "coroutine is not supported; it was never awaited" in str(
        error_of(coroutine)
    )
    coroutine.close()


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, 2**200, -(2**200), Whole(2**64)]
)
@pytest.mark.parametrize("place", [lambda v: v, lambda v: {v: 1}])
def test_an_integer_beyond_64_bits_is_refused_with_the_peers_words(value, place):
    error = error_of(place(value), EncodeError)
    assert "Failed to convert Python value to msgpack: OverflowError: " in str(error)
    assert not isinstance(error, TypeError)


@pytest.mark.parametrize("value", ["\ud83d", "a\udfff", Text("\ud800")])
@pytest.mark.parametrize("place", [lambda v: [v], lambda v: {v: 1}])
def test_lone_surrogates_are_refused(value, place):
    error = error_of(place(value), EncodeError)
    assert "lone surrogates" in str(error)
    str(error).encode()


def test_the_path_leads_to_the_value():
    value = {"items": [0, (1, {"name": {b"k": [{2, 3}]}})]}
    assert error_of(value).path == "value.items[1][1].name[b'k'][0]"


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("a b", "['a b']"),
        ("", "['']"),
        (5, "[5]"),
        ("é", ".é"),
        ("x" * 41, f"['{'x' * 40}']"),
        (b"k" * 100, f"[b'{'k' * 40}']"),
    ],
)
def test_a_key_that_is_no_short_name_is_shown_in_brackets(key, step):
    assert error_of({key: {1}}).path == f"value{step}"


def test_the_path_of_a_mapping_names_its_key():
    assert error_of(collections.UserDict(x=[1, {2}])).path == "value.x[1]"


def test_a_writer_is_not_made_from_python():
    with pytest.raises(TypeError, match="made by new_writer"):
        Writer()


# --- depth ----------------------------------------------------------------------------


def test_the_depth_that_the_reader_takes_is_written():
    assert packb(nested(MAX_DEPTH - 1)) == b"\x91" * 1023 + b"\0"
    assert packb(np.zeros((1,) * 60, "i4")) == b"\x91" * 60 + b"\0"
    assert packb(nested(1020, np.zeros((1, 1, 1)))).startswith(b"\x91" * 1023)


@pytest.mark.parametrize(
    "value",
    [
        nested(MAX_DEPTH),
        nested(MAX_DEPTH - 1, {}),
        nested(MAX_DEPTH - 1, ()),
        nested(MAX_DEPTH - 1, collections.UserDict()),
        nested(MAX_DEPTH - 3, np.zeros((1, 1, 1), "i4")),
    ],
    ids=["list", "dict", "tuple", "Mapping", "array"],
)
def test_one_container_more_is_refused(value):
    error = error_of(value, EncodeError)
    assert "1024 containers one in the other, or a cycle" in error.detail
    assert error.path == "value" + "[0]" * 8 + "..." + "[0]" * 8


@pytest.mark.parametrize("kind", ["list", "dict", "mapping"])
def test_a_cycle_is_refused(kind):
    value = {
        "list": list,
        "dict": dict,
        "mapping": collections.UserDict,
    }[kind]()
    if kind == "list":
        value.extend([1, value])
    else:
        value["self"] = value
    assert "a cycle" in str(error_of(value, EncodeError))


def test_a_small_stack_is_enough_for_any_depth():
    outcome = []

    def run():
        outcome.append(len(packb(nested(MAX_DEPTH - 1))))
        try:
            packb(nested(100_000))
        except EncodeError as error:
            outcome.append(type(error))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert outcome == [1024, EncodeError]


# --- hooks and mutation ---------------------------------------------------------------


class Hook:
    """Runs code while it is encoded."""

    def __init__(self, action):
        self.action = action

    def __index__(self):
        self.action()
        return 1


@pytest.mark.parametrize(
    ("container", "action"),
    [
        ([0] * 5, lambda c: c.clear()),
        ([0] * 5, lambda c: c.append(1)),
        ([0] * 5, lambda c: c.pop()),
        ({i: i for i in range(5)}, lambda c: c.clear()),
        ({i: i for i in range(5)}, lambda c: c.update(x=1)),
        ({i: i for i in range(5)}, lambda c: c.pop(3)),
    ],
)
def test_a_container_that_changes_size_while_it_is_written_is_an_error(
    container, action
):
    container[2] = Hook(lambda: action(container))
    error = error_of({"a": container}, EncodeError)
    assert "changed size during encoding" in error.detail
    assert error.path == "value.a"


def test_a_container_that_changes_otherwise_does_no_harm():
    items = [Hook(lambda: items.__setitem__(1, "new")), "old"]
    assert packb(items) == msgpack.packb([1, "new"])

    pairs = {}

    def replace():
        del pairs["b"]
        pairs.update(c="new")

    pairs.update(a=Hook(replace), b="old")
    assert packb(pairs) == msgpack.packb({"a": 1, "c": "new"})


def test_a_dict_that_is_filled_anew_behind_the_cursor_is_an_error():
    """Its size is the same, but what is left of it comes too early."""
    pairs = dict.fromkeys("abcde")
    for key in "abc":
        del pairs[key]

    def replace():
        pairs.clear()
        pairs.update(x=1, y=2)

    pairs["d"] = Hook(replace)
    assert "changed size" in str(error_of(pairs, EncodeError))


def test_containers_outlive_a_hook_that_lets_go_of_them():
    """Only the encoder still holds the inner list when the hook has run."""
    outer = []
    inner = [Hook(outer.clear), bytearray(b"x"), "tail" * 100]
    outer.append(inner)
    del inner
    assert "changed size" in str(error_of(outer, EncodeError))


class Broken(Mapping):
    """A mapping whose items() do what the test says."""

    def __init__(self, items):
        self.given = items

    def items(self):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given

    def __getitem__(self, key):
        raise KeyError(key)

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


def test_items_are_what_a_mapping_says_they_are():
    assert packb(Broken(iter([("a", 1), ("b", 2)]))) == msgpack.packb({"a": 1, "b": 2})


@pytest.mark.parametrize("items", [[("a",)], [1], [["a", 1]], [("a", 1, 2)]])
def test_items_that_are_no_pairs_are_an_error(items):
    assert "items() gave no pairs" in str(error_of(Broken(items), EncodeError))


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize("cause", [ZeroDivisionError("x"), TypeError("y")])
@pytest.mark.parametrize(
    "make",
    [
        lambda cause: Hook(raising(cause)),
        Broken,
        lambda cause: {Hook(raising(cause)): 1},
    ],
)
def test_a_hook_that_fails_is_named_with_its_cause(make, cause):
    kind = EncodeTypeError if isinstance(cause, TypeError) else EncodeError
    error = error_of([make(cause)], kind)
    assert type(error) is kind
    assert error.__cause__ is cause
    assert f"{type(cause).__name__}: {cause}" in error.detail


@pytest.mark.parametrize("make", ["hook", "buffer", "mapping"])
def test_running_out_of_memory_in_a_hook_stays_what_it_is(make):
    error = MemoryError()
    makers = {
        "hook": Hook(raising(error)),
        "buffer": Buffer(error),
        "mapping": Broken(error),
    }
    with pytest.raises(MemoryError):
        packb(makers[make])


class Buffer(bytearray):
    """A buffer whose dtype fails."""

    def __new__(cls, cause):
        self = super().__new__(cls)
        self.cause = cause
        return self

    def __init__(self, cause):
        super().__init__()

    @property
    def dtype(self):
        raise self.cause


def test_a_buffer_whose_attributes_fail_is_named_with_its_cause():
    assert isinstance(error_of(Buffer(OSError()), EncodeError).__cause__, OSError)


def test_a_released_buffer_is_an_error():
    view = memoryview(b"x")
    view.release()
    assert isinstance(error_of(view, EncodeError).__cause__, ValueError)


def test_a_key_whose_repr_fails_is_still_refused():
    class Key:
        def __repr__(self):
            raise RuntimeError

    assert "its repr() failed: RuntimeError" in str(error_of({Key(): 1}))


@pytest.mark.parametrize("kind", [dict, collections.UserDict])
def test_a_failure_leaves_nothing_behind(kind):
    """A thousand failures deep inside hold no reference to keys and values."""
    marker, key = object(), "a key".upper()
    before = sys.getrefcount(marker), sys.getrefcount(key)
    for _ in range(1000):
        with pytest.raises(EncodeTypeError):
            packb(nested(30, kind({key: [marker]})))
    assert (sys.getrefcount(marker), sys.getrefcount(key)) == before
