"""Frames: cut from any pieces, refused by their header, never ahead of the data."""

import sys
import tracemalloc

import pytest

from lightning._core.wire.framing import (
    DEFAULT_MAX_FRAME_PAYLOAD,
    HEADER_SIZE,
    MAX_FRAME_PAYLOAD_LIMIT,
    MIN_FRAME_PAYLOAD_LIMIT,
    FrameReader,
    MessageType,
    parse_frame_header,
)
from lightning.errors import (
    FrameTooLarge,
    StreamClosedEarly,
    TransportError,
    UnknownMessageType,
)

MIB = 1 << 20


def header(kind, length):
    return bytes([kind]) + length.to_bytes(4, "big")


def frame(kind, payload):
    return header(kind, len(payload)) + payload


def test_the_constants_are_the_peers():
    assert HEADER_SIZE == 5
    assert DEFAULT_MAX_FRAME_PAYLOAD == 64 * MIB
    assert MIN_FRAME_PAYLOAD_LIMIT == MIB
    assert MAX_FRAME_PAYLOAD_LIMIT == 2**32 - 1


def test_the_types_have_the_peers_numbers_and_names():
    assert {kind.wire_name: int(kind) for kind in MessageType} == {
        "HandshakeRequest": 1,
        "HandshakeResponse": 2,
        "SynapsePacket": 3,
        "SynapseResponse": 4,
        "StreamChunk": 5,
        "StreamEnd": 6,
    }


# --- a whole frame at once ------------------------------------------------------------


def test_a_frame_is_split_and_what_follows_it_ignored():
    kind, payload = parse_frame_header(bytearray(frame(1, b"hello") + b"junk"))
    assert kind is MessageType.HANDSHAKE_REQUEST
    assert payload == b"hello"
    assert type(payload) is bytes


def test_a_frame_without_payload_is_a_frame():
    assert parse_frame_header(header(6, 0)) == (MessageType.STREAM_END, b"")


@pytest.mark.parametrize("size", range(5))
def test_half_a_header_says_how_much_is_there(size):
    with pytest.raises(StreamClosedEarly) as caught:
        parse_frame_header(header(1, 0)[:size])
    assert (caught.value.received, caught.value.expected) == (size, 5)


def test_half_a_payload_says_how_much_is_there():
    with pytest.raises(StreamClosedEarly, match="after 5 of 10 bytes") as caught:
        parse_frame_header(header(1, 10) + b"hello")
    assert (caught.value.received, caught.value.expected) == (5, 10)


@pytest.mark.parametrize("value", [0, 7, 0x77, 255])
def test_an_unknown_type_is_refused(value):
    with pytest.raises(UnknownMessageType, match=f"unknown message type: {value:#04x}"):
        parse_frame_header(header(value, 0))


def test_the_limit_itself_is_allowed_and_one_byte_more_is_not():
    assert parse_frame_header(frame(3, b"12345"), 5)[1] == b"12345"
    with pytest.raises(FrameTooLarge) as caught:
        parse_frame_header(header(3, 6), max_payload=5)
    assert (caught.value.size, caught.value.limit) == (6, 5)


def test_the_largest_length_is_read_unsigned():
    with pytest.raises(FrameTooLarge) as caught:
        parse_frame_header(header(3, 2**32 - 1))
    assert caught.value.size == 2**32 - 1


def test_text_is_no_frame():
    with pytest.raises(TypeError):
        parse_frame_header("hello")


# --- as it arrives --------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
def test_frames_are_the_same_in_pieces_of_any_size(step):
    frames = [(5, b"chunk0"), (5, b""), (4, bytes(300)), (6, b"x")]
    stream = b"".join(frame(*each) for each in frames)
    reader = FrameReader()
    found = []
    for start in range(0, len(stream), step):
        piece = stream[start : start + step]
        taken = 0
        while taken < len(piece):
            taken += reader.feed(piece, taken)
            if reader.ready:
                found.append(reader.take())
    assert found == frames
    assert (reader.received, reader.expected) == (0, 5)


def test_nothing_is_taken_beyond_the_current_frame():
    reader = FrameReader()
    stream = frame(1, b"one") + frame(2, b"two")
    assert reader.feed(stream) == 8
    assert reader.feed(stream, 8) == 0
    assert reader.take() == (1, b"one")
    assert reader.feed(stream, 8) == 8
    assert reader.take() == (2, b"two")


def test_the_part_that_is_due_is_told_for_error_texts():
    reader = FrameReader()
    assert (reader.received, reader.expected) == (0, 5)
    reader.feed(header(3, 10)[:3])
    assert (reader.received, reader.expected) == (3, 5)
    reader.feed(header(3, 10)[3:])
    assert (reader.received, reader.expected) == (0, 10)
    reader.feed(b"1234")
    assert (reader.received, reader.expected) == (4, 10)
    reader.feed(b"567890")
    assert (reader.received, reader.expected) == (10, 10)
    assert reader.ready


def test_a_frame_that_is_not_ready_cannot_be_taken():
    reader = FrameReader()
    reader.feed(header(3, 1))
    with pytest.raises(RuntimeError, match="no frame is ready"):
        reader.take()


def test_any_contiguous_buffer_can_be_fed():
    reader = FrameReader()
    reader.feed(bytearray(header(3, 4)))
    reader.feed(memoryview(b"..ab")[2:])
    reader.feed(b"")
    assert reader.feed(memoryview(bytearray(b"cd"))) == 2
    assert reader.take() == (3, b"abcd")


@pytest.mark.parametrize("offset", [-1, 4])
def test_an_offset_outside_of_the_buffer_is_an_error(offset):
    with pytest.raises(ValueError, match="offset"):
        FrameReader().feed(b"abc", offset)


def test_text_cannot_be_fed():
    with pytest.raises(TypeError):
        FrameReader().feed("abc")


def test_an_unknown_type_is_refused_again_and_again():
    reader = FrameReader()
    for data in (header(7, 1), b"x", b"y"):
        with pytest.raises(UnknownMessageType) as caught:
            reader.feed(data)
        assert caught.value.value == 7
    assert not reader.ready


def test_a_length_above_the_limit_is_refused_before_any_payload():
    reader = FrameReader(10)
    with pytest.raises(FrameTooLarge) as caught:
        reader.feed(header(3, 11))
    assert (caught.value.size, caught.value.limit) == (11, 10)
    assert isinstance(caught.value, TransportError)


def test_the_limit_can_change_between_frames():
    reader = FrameReader(2)
    reader.feed(frame(1, b"ab"))
    reader.take()
    reader.max_payload = 3
    assert reader.max_payload == 3
    reader.feed(frame(1, b"abc"))
    assert reader.take() == (1, b"abc")


@pytest.mark.parametrize("limit", [-1, 2**32])
def test_a_limit_that_no_header_can_say_is_an_error(limit):
    with pytest.raises(ValueError, match="max_payload must be 0 to 4294967295"):
        FrameReader(limit)


def test_the_payload_is_handed_over_and_not_copied():
    reader = FrameReader()
    reader.feed(frame(3, bytes(MIB)))
    tracemalloc.start()
    try:
        _, payload = reader.take()
        assert tracemalloc.get_traced_memory()[1] < 1000
    finally:
        tracemalloc.stop()
    assert sys.getrefcount(payload) == 2


# --- memory ---------------------------------------------------------------------------


def test_a_large_payload_grows_with_the_data_and_arrives_whole():
    size = 5 * MIB + 12345
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    stream = frame(3, body)
    reader = FrameReader()
    tracemalloc.start()
    try:
        sent = 0
        while not reader.ready:
            sent += reader.feed(stream[sent : sent + 65536])
            held, _ = tracemalloc.get_traced_memory()
            assert held <= 2 * sent + MIB + 200_000
    finally:
        tracemalloc.stop()
    assert reader.take() == (3, body)


def test_a_false_length_allocates_no_more_than_a_mebibyte():
    reader = FrameReader(2**32 - 1)
    tracemalloc.start()
    try:
        reader.feed(header(3, 2**32 - 1) + b"x")
        assert tracemalloc.get_traced_memory()[1] < MIB + 100_000
    finally:
        tracemalloc.stop()
    assert (reader.received, reader.expected) == (1, 2**32 - 1)


def test_a_large_payload_in_one_piece_is_allocated_once():
    body = bytes(3 * MIB)
    reader = FrameReader()
    assert reader.feed(frame(4, body)) == 5 + len(body)
    assert reader.take() == (4, body)


def test_a_reader_let_go_inside_a_frame_leaves_nothing():
    tracemalloc.start()
    try:
        for _ in range(50):
            FrameReader().feed(header(3, MIB) + b"x")
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()
