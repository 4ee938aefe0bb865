"""Reading MessagePack: every form, checked against the bytes that are there."""

import gc
import math
import struct
import sys
import threading
import time
import tracemalloc

import msgpack
import pytest

from lightning._core.wire.msgpack import (
    BUDGET_BASE,
    BUDGET_FACTOR,
    MAX_DEPTH,
    packb,
    unpackb,
)
from lightning.errors import DecodeError

MIB = 1 << 20


def error_of(data, **options):
    with pytest.raises(DecodeError) as caught:
        unpackb(data, **options)
    assert caught.value.detail.startswith("Failed to parse msgpack: ")
    return caught.value


def depth_of(value):
    depth = 0
    while isinstance(value, list | dict) and value:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
        depth += 1
    return depth


# --- forms ----------------------------------------------------------------------------

FORMS = {
    "00": 0,
    "7f": 127,
    "ff": -1,
    "e0": -32,
    "c0": None,
    "c2": False,
    "c3": True,
    "cc00": 0,
    "ccff": 255,
    "cd0001": 1,
    "cdffff": 65535,
    "ce00000001": 1,
    "ce7fffffff": 2**31 - 1,
    "ce80000000": 2**31,
    "ceffffffff": 2**32 - 1,
    "cf0000000000000001": 1,
    "cfffffffffffffffff": 2**64 - 1,
    "d07f": 127,
    "d080": -128,
    "d17fff": 32767,
    "d18000": -32768,
    "d27fffffff": 2**31 - 1,
    "d280000000": -(2**31),
    "d37fffffffffffffff": 2**63 - 1,
    "d38000000000000000": -(2**63),
    "ca3fc00000": 1.5,
    "ca00000001": 2**-149,
    "cb3ff8000000000000": 1.5,
    "a0": "",
    "a161": "a",
    "a3e28294": "\u2094",
    "d90161": "a",
    "da000161": "a",
    "db0000000161": "a",
    "c40161": b"a",
    "c5000161": b"a",
    "c60000000161": b"a",
    "90": [],
    "dc0000": [],
    "dd00000000": [],
    "dc0001c0": [None],
    "dd00000002c0c3": [None, True],
    "80": {},
    "de0000": {},
    "df00000000": {},
    "de0001a16101": {"a": 1},
    "df00000001a16101": {"a": 1},
    "d40561": b"a",
    "d5056162": b"ab",
    "d60561626364": b"abcd",
    "d7ff6162636465666768": b"abcdefgh",
    "d805" + "61" * 16: b"a" * 16,
    "c70005": b"",
    "c7010561": b"a",
    "c800010561": b"a",
    "c9000000010561": b"a",
    "92a1ffa2c328": [b"\xff", b"\xc3("],
    "81a1ff01": {b"\xff": 1},
    "8300000000a16100": {0: 0, "a": 0},
    "82cb7ff8000000000000c0c0c0": {None: None},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form):
    value = unpackb(bytes.fromhex(form))
    if form.startswith("82cb7ff8"):
        nan, nothing = value
        assert math.isnan(nan)
        assert nothing is None
    else:
        assert value == FORMS[form]
        assert type(value) is type(FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_cut_short_is_an_error(form):
    data = bytes.fromhex(form)
    for size in range(len(data)):
        error = error_of(data[:size])
        assert "unexpected end of the payload" in error.detail
        assert 0 <= error.offset <= size


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65535, 65536])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: "x" * n,
        lambda n: b"x" * n,
        lambda n: [1] * n,
        lambda n: {str(i): i for i in range(n)},
    ],
)
def test_each_length_is_read(make, size):
    assert unpackb(msgpack.packb(make(size))) == make(size)


def test_a_single_float_is_read_exactly():
    single = struct.unpack("f", struct.pack("f", 0.1))[0]
    assert unpackb(struct.pack(">Bf", 0xCA, 0.1)) == single
    assert str(unpackb(bytes.fromhex("ca80000000"))) == "-0.0"
    assert math.isnan(unpackb(bytes.fromhex("ca7fc00000")))


def test_the_last_of_equal_keys_wins():
    assert unpackb(bytes.fromhex("83a16101a16102a16103")) == {"a": 3}
    assert unpackb(bytes.fromhex("8201a161c3a162")) == {1: "b"}


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_contiguous_buffer_is_read(wrap):
    assert unpackb(wrap(b"\x92\x01\xa1a")) == [1, "a"]


def test_a_buffer_with_gaps_is_no_input():
    with pytest.raises(BufferError):
        unpackb(memoryview(b"\x01\x02\x03\x04")[::2])


def test_bytes_after_the_value_are_refused_with_their_place():
    error = error_of(b"\x93\x01\x02\x03\xc0\xc0")
    assert "2 bytes after the value" in error.detail
    assert error.offset == 4


def test_the_reserved_byte_is_refused_with_its_place():
    error = error_of(bytes.fromhex("82a16101a1629200c1"))
    assert "reserved byte 0xc1" in error.detail
    assert (error.path, error.offset) == ("value.b[1]", 8)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ("81a16181a3622063910", "value.a"),
        ("8105c1", "value[5]"),
        ("81c401ffc1", "value[b'\\xff']"),
        ("8280", "value"),
        ("9281a16192", "value[0].a"),
        ("92a16191c1", "value[1][0]"),
    ],
)
def test_the_path_leads_to_the_trouble(data, path):
    assert error_of(bytes.fromhex(data[: len(data) // 2 * 2])).path.startswith(path)


# --- keys -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["90", "9101", "80", "8101c0", "dc0000", "df00000000"])
def test_a_key_that_cannot_be_hashed_is_refused(key):
    error = error_of(bytes.fromhex("81a16181" + key + "01"))
    assert "a map key cannot be hashed" in error.detail
    assert error.path == "value.a"


@pytest.mark.parametrize("key", [None, True, 0, -1, 2**64 - 1, 1.5, "a", "é", b"k"])
def test_a_scalar_is_a_key(key):
    assert unpackb(packb({key: [key]})) == {key: [key]}


def test_names_that_come_again_are_read_right():
    """The memory of short names never mixes up any of many more than it holds."""
    names = [f"{i:x}" for i in range(3000)] + ["é" * i for i in range(1, 20)]
    names += ["x" * i for i in range(40)] + [chr(i) for i in range(256)]
    names += ["a\0", "a\0\0", "", "\0"]
    blob = msgpack.packb([{name: name} for name in names])
    for _ in range(3):
        assert unpackb(blob) == [{name: name} for name in names]
    invalid = b"\x81\xa1\xe9\x01"
    assert unpackb(b"\x81\xa2\xc3\xa9\x01") == {"é": 1}
    assert unpackb(invalid) == {b"\xe9": 1}


def test_bytes_that_are_no_text_are_never_taken_for_a_remembered_name():
    """A name's characters may have the codes of other bytes."""
    for code in range(128 * 128):
        name = chr(128 + code // 128) + chr(128 + code % 128)
        raw = name.encode("latin-1")
        assert unpackb(msgpack.packb({name: 0})) == {name: 0}
        try:
            raw.decode()
        except UnicodeDecodeError:
            assert unpackb(b"\x81\xa2" + raw + b"\0") == {raw: 0}


def test_a_remembered_name_is_shared():
    first, second = unpackb(msgpack.packb([{"field_name": 1}, {"field_name": 2}]))
    assert next(iter(first)) is next(iter(second))


# --- depth ----------------------------------------------------------------------------


def test_the_depth_is_the_peers():
    assert depth_of(unpackb(b"\x91" * 1022 + b"\x90")) == 1022
    assert depth_of(unpackb(b"\x91" * 1023 + b"\0")) == 1023
    assert depth_of(unpackb(b"\x81\0" * 1023 + b"\0")) == 1023
    for data in (b"\x91" * 1024 + b"\0", b"\x91" * 1023 + b"\x90", b"\x81\0" * 1024):
        error = error_of(data + b"\0")
        assert "depth limit exceeded" in error.detail
        assert len(error.path) < 100


@pytest.mark.parametrize("depth", [511, 512, 600, 1023])
def test_what_is_written_is_read_at_any_depth(depth):
    value = 0
    for i in range(depth):
        value = {"k": value} if i % 2 else [value]
    assert packb(unpackb(packb(value))) == packb(value)


def test_a_smaller_depth_can_be_asked_for():
    assert unpackb(b"\x91\x90", max_depth=3) == [[]]
    assert "depth" in error_of(b"\x91\x90", max_depth=2).detail
    assert unpackb(b"\x01", max_depth=1) == 1
    for depth in (0, -1, MAX_DEPTH + 1):
        with pytest.raises(ValueError, match="max_depth must be 1 to 1024"):
            unpackb(b"\x01", max_depth=depth)


def test_a_small_stack_is_enough_for_any_depth():
    outcome = []

    def run():
        outcome.append(depth_of(unpackb(b"\x91" * 1023 + b"\0")))
        try:
            unpackb(b"\x91" * 100_000 + b"\0")
        except DecodeError as error:
            outcome.append(type(error))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert outcome == [1023, DecodeError]


# --- memory and time ------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    ["ddffffffff", "dfffffffff", "c6ffffffff", "c9ffffffff05", "dbffffffff", "dcffff"],
)
def test_a_false_length_is_refused_without_allocating(head):
    data = bytes.fromhex(head) + b"\0" * 1000
    tracemalloc.start()
    try:
        error_of(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", ["93c0c0", "830000000000", "de0002000000", "c403c0c0"])
def test_a_length_that_cannot_be_true_is_refused_at_its_head(data):
    assert error_of(bytes.fromhex(data)).offset == 0


def test_false_lengths_one_in_the_other_allocate_no_more_than_the_budget():
    """Each array claims all the bytes that are left, and none of them is there."""
    data = b"".join(b"\xdd" + (MIB - 5 * i - 5).to_bytes(4, "big") for i in range(1000))
    data += b"\0" * (MIB - len(data))
    tracemalloc.start()
    try:
        assert "too many objects for its size" in error_of(data).detail
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 1.001 * (BUDGET_BASE + BUDGET_FACTOR * MIB)
    finally:
        tracemalloc.stop()


def array_head(count):
    return b"\xdd" + count.to_bytes(4, "big")


def array_of(item):
    count = (MIB - 5) // len(item)
    return array_head(count) + item * count


BOMBS = {
    "empty arrays": b"\x90",
    "empty maps": b"\x80",
    "maps of one": b"\x81\xa0\xc0",
    "maps of two": b"\x82\x00\xc0\x01\xc0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_small_containers_is_refused_within_its_budget(name):
    data = array_of(BOMBS[name])
    tracemalloc.start()
    try:
        error = error_of(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "too many objects for its size" in error.detail
    assert peak < 1.1 * (BUDGET_BASE + BUDGET_FACTOR * len(data))


HONEST = {
    "nils": b"\xc0",
    "small integers": b"\x07",
    "integers": b"\xcd\x7f\xff",
    "large integers": b"\xcf" + b"\x7f" * 8,
    "floats": b"\xcb" + b"\x11" * 8,
    "letters": b"\xa1x",
    "words": b"\xa5hello",
    "accents": b"\xa6\xc3\xa9\xc3\xa9\xc3\xa9",
    "wide words": b"\xa8ab\xf0\x9f\x8c\xa9cd",
    "binary": b"\xc4\x04abcd",
    "arrays of one": b"\x91\xc0",
    "points": b"\x82\xa1x\xcb" + b"\x11" * 8 + b"\xa1y\xcb" + b"\x22" * 8,
    "triples": b"\x93\xcd\x01\x02\xcd\x01\x02\xcd\x01\x02",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_values_fit_into_the_budget(name):
    unpackb(array_of(HONEST[name]))


def size_of(value, seen):
    """Count a value with all that is in it, as CPython allocates it."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value) + (16 if gc.is_tracked(value) else 0)
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    else:
        parts = value if isinstance(value, list) else []
    return size + sum(size_of(part, seen) for part in parts)


def price_of(item):
    """Find what the reader charges for an item, in bytes.

    Two maps that claim pairs which never come, 64 bytes each, leave as much of the
    budget as is wanted.
    """
    count = 10_000

    def bought(rest):
        """Return how many items can be paid for with so many bytes."""
        spare = BUDGET_BASE + BUDGET_FACTOR * MIB - 2 * 272 - 72 - 8 * count - rest
        first = MIB // 2 - 10
        data = b"\xdf" + first.to_bytes(4, "big") + b"\0"
        data += b"\xdf" + (spare // 64 - first).to_bytes(4, "big") + b"\0"
        data += array_head(count) + item * count
        data += b"\0" * (MIB - len(data))
        return int(error_of(data).path.split("[")[3].split("]")[0])

    return (160_000 - 16_000) / (bought(160_000) - bought(16_000))


@pytest.mark.parametrize(
    "name", sorted({*HONEST, *BOMBS} - {"nils", "small integers", "letters"})
)
def test_the_estimate_is_near_the_truth(name):
    item = {**HONEST, **BOMBS}[name]
    value = unpackb(array_head(10_000) + item * 10_000)
    shared = {id(key) for part in value if isinstance(part, dict) for key in part}
    truth = sum(size_of(part, shared) for part in value) / len(value)
    assert 0.9 * truth <= price_of(item) + 8 <= 2 * truth + 90


def test_a_name_costs_the_same_whether_it_is_remembered_or_not():
    """What one message may hold does not depend on the messages before it."""
    unnamed = price_of(b"\x81\xa0\xc0")
    assert price_of(b"\x81\xa8longname\xc0") - unnamed >= 72
    assert price_of(b"\x81\xd9\x28" + b"n" * 40 + b"\xc0") - unnamed >= 104


def test_dicts_of_any_size_fit_into_their_estimate():
    for count in [*range(1, 100), 170, 171, 341, 342, 1000, 5461, 5462, 10923]:
        pairs = {f"{i:05}": None for i in range(count)}
        table = sys.getsizeof(pairs) + 16
        assert table <= 80 + 192 + 64 * count


def numbers_that_collide(bits, fill):
    """Return integers that fill a dict's probe sequence, and one that walks it.

    A dict of 2 ** bits slots looks at i, then 5 * i + 1 and so on, once the key's
    high bits are used up.
    """
    mask = (1 << bits) - 1
    cycle, slot = [], 1
    for _ in range(fill):
        cycle.append(slot)
        slot = (5 * slot + 1) & mask
    occupied = set(cycle)

    def length(key):
        steps, perturb, slot = 0, key, key & mask
        while slot in occupied and steps < 2 * fill:
            perturb >>= 5
            slot = (5 * slot + perturb + 1) & mask
            steps += 1
        return steps

    return cycle, max((1 + (i << bits) for i in range(1, 3000)), key=length)


def test_chosen_integer_keys_cannot_take_a_minute():
    cycle, walker = numbers_that_collide(16, 40_000)
    body = b"".join(packb(key) + b"\0" for key in cycle)
    body += (packb(walker) + b"\0") * 100_000
    data = b"\xdf" + (len(cycle) + 100_000).to_bytes(4, "big") + body
    started = time.process_time()
    error = error_of(data)
    assert "too many map keys that are no str" in error.detail
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "keys", [range(11_000), [i * 0.5 for i in range(11_000)], range(-64, 64)]
)
def test_many_number_keys_in_one_map_are_read(keys):
    value = dict.fromkeys(keys, 0)
    assert unpackb(packb(value)) == value
    assert unpackb(packb([dict.fromkeys(range(64), 0)] * 5000))[-1] == dict.fromkeys(
        range(64), 0
    )


def test_text_and_bytes_as_keys_are_not_counted():
    value = {str(i): 0 for i in range(50_000)} | {
        str(i).encode(): 0 for i in range(50_000)
    }
    assert unpackb(packb(value)) == value


def test_a_large_body_passes():
    body = bytes(60 * MIB)
    assert unpackb(packb({"b": body}))["b"] == body


def test_a_reader_is_as_good_after_ten_thousand_bad_messages():
    bad = [bytes.fromhex(x) for x in ("c1", "92a161", "8190", "81a16191c1", "dd00ff")]
    for _ in range(2000):
        for data in bad:
            with pytest.raises(DecodeError):
                unpackb(data)
    assert unpackb(b"\x81\xa1a\x01") == {"a": 1}


def test_a_failure_leaves_nothing_behind():
    """Neither containers, nor what is in them, nor a key that waits for its value."""
    key = b"\xd9\xc8" + b"k" * 200
    data = b"\x91" * 30 + b"\x82" + key + b"\xc4\x64" + bytes(100) + key + b"\xc1"
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(300):
            error_of(data)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()
