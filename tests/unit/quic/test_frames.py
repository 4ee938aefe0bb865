"""Frames: what each may hold, where each may stand, and how each is written."""

import pytest

from lightning._core.quic.frames import (
    bench_parse,
    crypto_fit,
    kind,
    parse,
    scale_ack_delay,
    stream_fit,
    write,
)

OK, NO_SPACE = 0, -3
FRAME_ENCODING, PROTOCOL_VIOLATION = 0x07, 0x0A
INITIAL, ZERO_RTT, HANDSHAKE, ONE_RTT = 0, 1, 2, 5
MAX = 2**62 - 1
TOP = "ffffffffffffffff"  # the varint of MAX

# One of each, as the wire has it and as its fields; RFC 9000 section 19.
FRAMES = [
    ("00", {"type": 0x00, "value": 1}),
    ("01", {"type": 0x01}),
    (
        "02 05 07 00 02",
        {"type": 0x02, "delay": 7, "ranges": [(3, 6)], "ecn": (0, 0, 0)},
    ),
    (
        "02 4064 00 02 00 01 02 00 00",
        {
            "type": 0x02,
            "delay": 0,
            "ranges": [(100, 101), (95, 98), (93, 94)],
            "ecn": (0, 0, 0),
        },
    ),
    (
        "03 05 00 00 00 01 4002 03".replace("4002", "02"),
        {"type": 0x03, "delay": 0, "ranges": [(5, 6)], "ecn": (1, 2, 3)},
    ),
    ("04 04 05 06", {"type": 0x04, "stream_id": 4, "error_code": 5, "final_size": 6}),
    ("05 04 05", {"type": 0x05, "stream_id": 4, "value": 5}),
    ("06 4100 03 616263", {"type": 0x06, "offset": 256, "data": b"abc"}),
    ("06 00 00", {"type": 0x06, "offset": 0, "data": b""}),
    ("07 01 74", {"type": 0x07, "data": b"t"}),
    (
        "0a 04 03 616263",
        {"type": 0x08, "stream_id": 4, "offset": 0, "data": b"abc", "fin": False},
    ),
    (
        "0f 04 4100 03 616263",
        {"type": 0x08, "stream_id": 4, "offset": 256, "data": b"abc", "fin": True},
    ),
    (
        "0b 04 00",
        {"type": 0x08, "stream_id": 4, "offset": 0, "data": b"", "fin": True},
    ),
    ("10 05", {"type": 0x10, "value": 5}),
    ("11 04 05", {"type": 0x11, "stream_id": 4, "value": 5}),
    ("12 d000000000000000", {"type": 0x12, "value": 2**60}),
    ("13 05", {"type": 0x13, "value": 5}),
    ("14 05", {"type": 0x14, "value": 5}),
    ("15 04 05", {"type": 0x15, "stream_id": 4, "value": 5}),
    ("16 05", {"type": 0x16, "value": 5}),
    ("17 d000000000000000", {"type": 0x17, "value": 2**60}),
    (
        "18 02 02 01 63" + "74" * 16,
        {
            "type": 0x18,
            "sequence": 2,
            "retire_prior_to": 2,
            "cid": b"c",
            "token": b"t" * 16,
        },
    ),
    ("19 05", {"type": 0x19, "value": 5}),
    ("1a" + "70" * 8, {"type": 0x1A, "data": b"p" * 8}),
    ("1b" + "70" * 8, {"type": 0x1B, "data": b"p" * 8}),
    (
        "1c 0a 06 02 6869",
        {"type": 0x1C, "error_code": 10, "frame_type": 6, "reason": b"hi"},
    ),
    (
        "1d 4100 02 6869",
        {"type": 0x1D, "error_code": 256, "frame_type": 0, "reason": b"hi"},
    ),
    ("1e", {"type": 0x1E}),
]
EACH = pytest.mark.parametrize(("wire", "frame"), FRAMES)
# Frames whose end is not the end of what they need.
CUT = [(w, f) for w, f in FRAMES if f["type"] not in (0x00, 0x01, 0x1E)]


def of(wire):
    return bytes.fromhex(wire)


def parse_one(wire, packet_type=ONE_RTT, by_client=False):
    status, frames, wire_type = parse(of(wire), packet_type, by_client)
    return status, frames, wire_type


@EACH
def test_each_frame_is_parsed_into_its_fields(wire, frame):
    status, frames, wire_type = parse_one(wire)
    assert (status, frames, wire_type) == (OK, [frame], of(wire)[0])


@EACH
def test_each_frame_is_written_as_the_wire_has_it(wire, frame):
    assert write(frame) == (OK, of(wire))


@EACH
def test_a_frame_that_does_not_fit_writes_nothing(wire, frame):
    size = len(of(wire))
    assert write(frame, room=size) == (OK, of(wire))
    for room in range(size):
        status, data = write(frame, room=room)
        if frame["type"] in (0x1C, 0x1D) and status == OK:
            continue  # the reason is cut instead: see below
        if len(frame.get("ranges", ())) > 1 and status == OK:
            continue  # the oldest ranges are left out: see below
        assert (status, data) == (NO_SPACE, b""), room


@pytest.mark.parametrize(("wire", "frame"), CUT)
def test_a_frame_cut_anywhere_is_a_frame_encoding_error(wire, frame):
    data = of(wire)
    for size in range(1, len(data)):
        status, frames, wire_type = parse(data[:size], ONE_RTT, False)
        assert (status, frames, wire_type) == (FRAME_ENCODING, [], data[0])


def test_frames_follow_each_other():
    data = b"".join(of(wire) for wire, _ in FRAMES)
    assert parse(data, ONE_RTT, False)[:2] == (OK, [frame for _, frame in FRAMES])


def test_padding_is_taken_as_one_frame():
    assert parse(bytes(1000) + b"\x01" + bytes(3)) == (
        OK,
        [
            {"type": 0x00, "value": 1000},
            {"type": 0x01},
            {"type": 0x00, "value": 3},
        ],
        0,
    )
    assert write({"type": 0x00, "value": 1000}) == (OK, bytes(1000))


# RFC 9000 section 12.4, table 3: I(nitial), H(andshake), 0(-RTT), 1(-RTT).
ALLOWED = {
    0x00: "IH01",
    0x01: "IH01",
    0x02: "IH1",
    0x03: "IH1",
    0x04: "01",
    0x05: "01",
    0x06: "IH1",
    0x07: "1",
    0x08: "01",
    0x10: "01",
    0x11: "01",
    0x12: "01",
    0x13: "01",
    0x14: "01",
    0x15: "01",
    0x16: "01",
    0x17: "01",
    0x18: "01",
    0x19: "01",
    0x1A: "01",
    0x1B: "1",
    0x1C: "IH01",
    0x1D: "01",
    0x1E: "1",
}


@EACH
def test_each_frame_is_allowed_where_the_specification_says(wire, frame):
    for letter, packet_type in zip("IH01", (0, 2, 1, 5), strict=True):
        status, _, wire_type = parse_one(wire, packet_type)
        allowed = letter in ALLOWED[frame["type"]]
        assert status == (OK if allowed else PROTOCOL_VIOLATION), letter
        assert wire_type == of(wire)[0]


def test_every_kind_of_frame_is_tried_above():
    assert {frame["type"] for _, frame in FRAMES} == set(ALLOWED)


@EACH
def test_a_client_sends_no_tokens_and_no_confirmation(wire, frame):
    status, _, _ = parse_one(wire, ONE_RTT, by_client=True)
    refused = frame["type"] in (0x07, 0x1E)
    assert status == (PROTOCOL_VIOLATION if refused else OK)


@pytest.mark.parametrize("bits", range(8))
def test_every_form_of_a_stream_frame(bits):
    data = bytes([0x08 | bits, 0x04])
    data += b"\x07" if bits & 4 else b""
    data += b"\x03" if bits & 2 else b""
    status, frames, wire_type = parse(data + b"abc")
    assert (status, wire_type) == (OK, 0x08 | bits)
    assert frames == [
        {
            "type": 0x08,
            "stream_id": 4,
            "offset": 7 if bits & 4 else 0,
            "data": b"abc",
            "fin": bool(bits & 1),
        }
    ]


@pytest.mark.parametrize(
    "wire",
    [
        "1f",  # the first type that has no meaning
        "30 00",  # DATAGRAM was not negotiated
        "4052 00",
        "ffffffffffffffff",
        "40",  # a type cut short
        # More data than a stream can have.
        "0e 04 ffffffffffffffff 01 61",
        "0c 04 fffffffffffffffd 616263",
        "06 ffffffffffffffff 01 61",
        "07 00",
        "12 d000000000000001",
        "13 ffffffffffffffff",
        "16 d000000000000001",
        "17 d000000000000001",
        "18 02 03 01 63" + "74" * 16,
        "18 02 00 00" + "74" * 16,
        "18 02 00 15" + "63" * 21 + "74" * 16,
        # Negative packet numbers.
        "02 05 00 00 06",
        "02 05 00 01 05 00 00",
        "02 05 00 01 00 04 00",
        "02 05 00 01 00 03 01",
        f"02 05 00 01 00 {TOP} 00",
        f"02 05 00 01 00 00 {TOP}",
        f"02 {TOP} 00 01 {TOP} 00 00",
        # A range cut short, and more ranges than there are bytes.
        "02 4064 00 01 00 40 00",
        f"02 05 00 {TOP} 00 00 00",
        # A length that would wrap a pointer.
        f"0a 04 {TOP} 61",
        f"06 00 {TOP} 61",
        f"07 {TOP} 61",
        f"1c 00 00 {TOP} 61",
        f"1d 00 {TOP} 61",
    ],
)
def test_malformed_frames_are_frame_encoding_errors(wire):
    assert parse_one(wire)[:2] == (FRAME_ENCODING, [])


@pytest.mark.parametrize(
    "wire",
    [
        f"0e 04 {TOP} 00",
        "0e 04 fffffffffffffffe 01 61",
        "06 fffffffffffffffe 01 61",
        "02 05 00 01 00 03 00",
        f"02 {TOP} {TOP} 00 {TOP}",
        "18 02 00 14" + "63" * 20 + "74" * 16,
    ],
)
def test_the_extremes_that_are_still_right(wire):
    status, frames, _ = parse_one(wire)
    assert (status, len(frames)) == (OK, 1)


@pytest.mark.parametrize("wire", ["4001", "80000001", "c000000000000001", "4000"])
def test_a_type_in_more_bytes_than_it_needs_is_a_protocol_violation(wire):
    assert parse_one(wire)[:2] == (PROTOCOL_VIOLATION, [])


def test_the_frames_before_a_wrong_one_are_given():
    status, frames, wire_type = parse(b"\x01\x10\x05\x1f")
    assert (status, wire_type) == (FRAME_ENCODING, 0x1F)
    assert [frame["type"] for frame in frames] == [0x01, 0x10]


def test_kinds_of_frames():
    """RFC 9000 sections 9.1 and 13.2.1, RFC 9002 section 2."""
    for frame in ALLOWED:
        assert kind(frame) == (
            frame not in (0x00, 0x02, 0x03, 0x1C, 0x1D),
            frame not in (0x02, 0x03, 0x1C, 0x1D),
            frame in (0x00, 0x18, 0x1A, 0x1B),
        )


@pytest.mark.parametrize(
    ("delay", "exponent", "microseconds"),
    [
        (0, 3, 0),
        (100, 3, 800),
        (100, 0, 100),
        (2**22 - 1, 20, (2**22 - 1) << 20),
        (2**22, 0, 2**42),
        (MAX, 20, 2**42),
    ],
)
def test_ack_delays_are_scaled_and_cut(delay, exponent, microseconds):
    assert scale_ack_delay(delay, exponent) == microseconds


def ack(ranges, delay=0, ecn=None):
    return {
        "type": 0x03 if ecn else 0x02,
        "delay": delay,
        "ranges": ranges,
        "ecn": ecn or (0, 0, 0),
    }


@pytest.mark.parametrize("ecn", [None, (1, 2**14, 2**30)])
def test_an_ack_leaves_out_the_oldest_ranges_that_do_not_fit(ecn):
    ranges = [(10 * n, 10 * n + 3) for n in range(40, 0, -1)]
    full = write(ack(ranges, 7, ecn))[1]
    for room in range(len(full)):
        status, data = write(ack(ranges, 7, ecn), room=room)
        if status:
            assert (status, data) == (NO_SPACE, b"")
            assert room < 20
            continue
        frame = parse(data)[1][0]
        assert frame["ranges"] == ranges[: len(frame["ranges"])]
        assert frame["ecn"] == (ecn or (0, 0, 0))
        assert len(data) + 2 > room  # another range takes two bytes
    assert parse(full)[1] == [ack(ranges, 7, ecn)]


def test_an_ack_of_more_ranges_than_64_keeps_the_highest():
    ranges = [(2 * n, 2 * n + 1) for n in range(100, 0, -1)]
    assert parse(write(ack(ranges))[1])[1] == [ack(ranges[:64])]


def test_an_ack_of_nothing_is_not_written():
    assert write(ack([])) == (NO_SPACE, b"")


@pytest.mark.parametrize("frame_type", [0x1C, 0x1D])
def test_a_close_cuts_its_reason_to_what_fits(frame_type):
    frame = {
        "type": frame_type,
        "error_code": 300,
        "frame_type": 6 if frame_type == 0x1C else 0,
        "reason": b"r" * 100,
    }
    head = 4 if frame_type == 0x1C else 3
    for room in range(head + 1):
        assert write(frame, room=room) == (NO_SPACE, b"")
    for room in range(head + 1, head + 110):
        status, data = write(frame, room=room)
        assert (status, parse(data, ONE_RTT)[0]) == (OK, OK)
        reason = parse(data)[1][0]["reason"]
        assert reason == b"r" * min(100, max(room - head - 1 - (room - head > 64), 0))


@pytest.mark.parametrize("over", [2**62, 2**64 - 1])
def test_values_that_no_varint_holds_are_not_written(over):
    for frame in (
        {"type": 0x04, "stream_id": over, "error_code": 0, "final_size": 0},
        {"type": 0x04, "stream_id": 0, "error_code": over, "final_size": 0},
        {"type": 0x04, "stream_id": 0, "error_code": 0, "final_size": over},
        {"type": 0x05, "stream_id": over, "value": 0},
        {"type": 0x05, "stream_id": 0, "value": over},
        {"type": 0x06, "offset": over, "data": b""},
        {"type": 0x08, "stream_id": over, "offset": 0, "data": b"", "fin": False},
        {"type": 0x08, "stream_id": 0, "offset": over, "data": b"", "fin": False},
        {"type": 0x10, "value": over},
        {"type": 0x1C, "error_code": over, "frame_type": 0, "reason": b""},
        {"type": 0x1C, "error_code": 0, "frame_type": over, "reason": b""},
        ack([(0, 1)], over),
        {
            "type": 0x18,
            "sequence": over,
            "retire_prior_to": 0,
            "cid": b"c",
            "token": bytes(16),
        },
    ):
        assert write(frame) == (NO_SPACE, b"")


ROOMS = [*range(160), *range(16_370, 16_395)]


@pytest.mark.parametrize("offset", [0, 63, 64, 2**30])
@pytest.mark.parametrize("available", [0, 1, 62, 63, 64, 100, 16_383, 16_384, 10**6])
def test_crypto_data_fills_the_room(offset, available):
    for room in ROOMS:
        size, frame_size = crypto_fit(room, offset, available)
        assert size <= available
        if size:
            assert frame_size <= room
            # One byte more would not fit, but for two bytes above 16 KiB.
            _, more = crypto_fit(10**7, offset, size + 1)
            assert size == available or more > room or room > 16_384
        frame = {"type": 0x06, "offset": offset, "data": bytes(size)}
        if size:
            status, data = write(frame, room=room)
            assert (status, len(data)) == (OK, frame_size)


@pytest.mark.parametrize("stream_id", [0, 64])
@pytest.mark.parametrize("offset", [0, 1, 2**14])
@pytest.mark.parametrize("available", [0, 1, 62, 63, 64, 100, 10**6])
def test_stream_data_fills_the_room(stream_id, offset, available):
    head = 1 + (1 if stream_id < 64 else 2) + {0: 0, 1: 1, 2**14: 4}[offset]
    for room in ROOMS:
        size, last, frame_size = stream_fit(room, stream_id, offset, available)
        assert size == min(available, max(room - head, 0))
        frame = {
            "type": 0x08,
            "stream_id": stream_id,
            "offset": offset,
            "data": bytes(size),
            "fin": True,
        }
        status, data = write(frame, room=room, last=last)
        if room <= head:
            assert (size, status) == (0, NO_SPACE)
            continue
        assert (status, len(data)) == (OK, frame_size)
        assert parse(data)[:2] == (OK, [frame])
        # Without a length only if there is no room for one.
        assert last == (len(write(frame)[1]) > room if size < 1400 else last)


def test_the_face_refuses_what_would_be_out_of_bounds():
    token = {"type": 0x18, "sequence": 0, "retire_prior_to": 0, "cid": b"c"}
    for frame in (
        {**token, "token": b"short"},
        {"type": 0x1A, "data": b"short"},
    ):
        with pytest.raises(ValueError, match="bytes"):
            write(frame)
    with pytest.raises(KeyError):
        write({"type": 0x10})
    bench_parse(of("0a 04 03 616263 02 05 07 00 02"), 2)
