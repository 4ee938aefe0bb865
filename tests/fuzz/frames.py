"""The frames of a packet.

Whatever comes ends with OK or a transport error, and nothing is read past the end. Every
frame that was read is written as bytes that are read as the same frame; writing into too
little room is refused, or cuts what may be cut.
"""

from lightning._core.quic import frames, packet
from tests.fuzz.cutter import Cutter

OK = 0
ACK_RANGES_MAX = 64
FRAME_ENCODING, PROTOCOL_VIOLATION = 0x07, 0x0A


def check(data):
    """Parse, write, parse."""
    cutter = Cutter(data)
    first = cutter.byte()
    by_client = bool(first & 1)
    packet_type = first >> 1 & 7
    room = first >> 4
    payload = cutter.rest()
    status, found, _ = frames.parse(payload, packet_type, by_client)
    assert status in (OK, FRAME_ENCODING, PROTOCOL_VIOLATION), status
    packet.parse(payload, 8)
    for frame in found:
        status, written = frames.write(frame, room=2 * len(payload) + 64)
        assert status == OK
        again = frames.parse(written, packet_type, by_client)
        if "ranges" in frame:
            # As many as an ACK of ours has, the latest.
            frame["ranges"] = frame["ranges"][:ACK_RANGES_MAX]
        assert again[:2] == (OK, [frame])
        status, short = frames.write(frame, room=min(room, len(written) - 1))
        assert len(short) < len(written)
        # Reasons and ranges are cut to what fits.
        assert status != OK or frame.get("reason") or "ranges" in frame


def every_frame():
    """Give each frame once, or with and without what is optional."""
    return [
        {"type": 0x00, "value": 3},
        {"type": 0x01},
        {"type": 0x02, "ranges": [(4, 9)], "delay": 7, "ecn": (0, 0, 0)},
        {
            "type": 0x03,
            "ranges": [(90, 99), (20, 80), (0, 1)],
            "delay": 700,
            "ecn": (1, 2, 3),
        },
        {"type": 0x04, "stream_id": 4, "error_code": 7, "final_size": 2**20},
        {"type": 0x05, "stream_id": 4, "value": 9},
        {"type": 0x06, "offset": 0, "data": b"crypto"},
        {"type": 0x07, "data": b"token"},
        {"type": 0x08, "stream_id": 0, "offset": 0, "data": b"data", "fin": True},
        {"type": 0x08, "stream_id": 9, "offset": 2**30, "data": b"", "fin": False},
        {"type": 0x10, "value": 2**40},
        {"type": 0x11, "stream_id": 4, "value": 70_000},
        {"type": 0x12, "value": 100},
        {"type": 0x13, "value": 2**60},
        {"type": 0x14, "value": 5},
        {"type": 0x15, "stream_id": 4, "value": 5},
        {"type": 0x16, "value": 5},
        {"type": 0x17, "value": 5},
        {
            "type": 0x18,
            "sequence": 3,
            "retire_prior_to": 1,
            "cid": b"12345678",
            "token": bytes(16),
        },
        {"type": 0x19, "value": 2},
        {"type": 0x1A, "data": b"12345678"},
        {"type": 0x1B, "data": b"12345678"},
        {"type": 0x1C, "error_code": 10, "frame_type": 6, "reason": b"why"},
        {"type": 0x1D, "error_code": 10, "frame_type": 0, "reason": b"why"},
        {"type": 0x1E},
    ]


def seeds():
    """Every frame, alone and in packets of each kind."""
    written = [frames.write(frame)[1] for frame in every_frame()]
    assert all(written)
    for each in written:
        yield bytes([5 << 1]) + each
    for packet_type in range(8):
        for by_client in range(2):
            yield bytes([packet_type << 1 | by_client]) + b"".join(written[1:])
