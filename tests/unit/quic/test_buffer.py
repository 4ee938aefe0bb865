"""Bounds-checked integers over raw memory."""

import pytest

from lightning._core.quic.buffer import read, size_varint, write

OK, TRUNCATED, NO_SPACE = 0, -2, -3
VARINT_MAX = 2**62 - 1

# RFC 9000 appendix A.1: the four encodings, and a two-byte encoding of a one-byte value.
VARINTS = [
    ("c2197c5eff14e88c", 151_288_809_941_952_652),
    ("9d7f3e7d", 494_878_333),
    ("7bbd", 15_293),
    ("25", 37),
    ("4025", 37),
]
WIDTHS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


@pytest.mark.parametrize(("encoded", "value"), VARINTS)
def test_reads_the_varints_of_the_specification(encoded, value):
    data = bytes.fromhex(encoded)
    assert read("varint", data + b"\xff") == (OK, value, len(data))


@pytest.mark.parametrize(("encoded", "value"), VARINTS[:4])
def test_writes_the_varints_of_the_specification(encoded, value):
    data = bytes.fromhex(encoded)
    assert write("varint", value, len(data)) == (OK, data)
    assert size_varint(value) == len(data)


@pytest.mark.parametrize(("encoded", "value"), VARINTS)
def test_a_varint_cut_short_is_truncated_and_moves_nothing(encoded, value):
    data = bytes.fromhex(encoded)
    for size in range(len(data)):
        assert read("varint", data[:size]) == (TRUNCATED, None, 0)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 1),
        (63, 1),
        (64, 2),
        (16_383, 2),
        (16_384, 4),
        (2**30 - 1, 4),
        (2**30, 8),
        (VARINT_MAX, 8),
    ],
)
def test_varint_sizes_change_at_the_boundaries(value, size):
    assert size_varint(value) == size
    status, data = write("varint", value, 8)
    assert (status, len(data)) == (OK, size)
    assert read("varint", data) == (OK, value, size)
    assert write("varint", value, size - 1) == (NO_SPACE, b"")


@pytest.mark.parametrize("value", [VARINT_MAX + 1, 2**64 - 1])
def test_a_value_above_the_largest_varint_is_not_written(value):
    assert size_varint(value) == 0
    assert write("varint", value, 100) == (NO_SPACE, b"")


@pytest.mark.parametrize(("kind", "width"), WIDTHS.items())
def test_fixed_widths_are_big_endian_and_bounded(kind, width):
    data = bytes(range(0xF0, 0xF0 + width))
    value = int.from_bytes(data, "big")
    assert read(kind, data + b"\x00") == (OK, value, width)
    assert read(kind, data[:-1]) == (TRUNCATED, None, 0)
    assert write(kind, value, width) == (OK, data)
    assert write(kind, value, width - 1) == (NO_SPACE, b"")


def test_a_view_is_bounded_by_what_is_left():
    assert read("bytes", b"abcdef", 6) == (OK, b"abcdef", 6)
    assert read("bytes", b"abcdef", 0) == (OK, b"", 0)
    assert read("bytes", b"abcdef", 7) == (TRUNCATED, None, 0)
    # A length that would wrap the pointer if it were added to it.
    assert read("bytes", b"abcdef", 2**64 - 1) == (TRUNCATED, None, 0)


def test_skip_is_bounded_by_what_is_left():
    assert read("skip", b"abc", 3) == (OK, None, 3)
    assert read("skip", b"abc", 4) == (TRUNCATED, None, 0)


def test_bytes_are_written_whole_or_not_at_all():
    assert write("bytes", b"abc", 3) == (OK, b"abc")
    assert write("bytes", b"", 0) == (OK, b"")
    assert write("bytes", b"abc", 2) == (NO_SPACE, b"")


def test_a_hole_is_left_for_later():
    assert write("skip", 3, 3) == (OK, b"\xff\xff\xff")
    assert write("skip", 4, 3) == (NO_SPACE, b"")


def test_the_faces_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="unknown kind"):
        read("u24", b"")
    with pytest.raises(ValueError, match="unknown kind"):
        write("u24", 0, 1)
    with pytest.raises(ValueError, match="negative"):
        write("u8", 0, -1)
