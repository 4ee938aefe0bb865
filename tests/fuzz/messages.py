"""MessagePack, the six messages and their frames.

Whatever comes is refused with an error of ours, or is a value that is written and read
again as the same bytes. A stream cut anywhere gives the frames that it gives whole.
"""

import json
from pathlib import Path

from lightning._core.wire.framing import (
    MIN_FRAME_PAYLOAD_LIMIT,
    FrameReader,
    parse_frame_header,
)
from lightning._core.wire.messages import decode_message
from lightning._core.wire.msgpack import packb, unpackb
from lightning.errors import DecodeError, EncodeError, LightningError
from tests.fuzz.cutter import Cutter

VECTORS = Path(__file__).parents[1] / "vectors" / "wire.json"


def check(data):
    """Read the input as one of the three."""
    cutter = Cutter(data)
    kind = cutter.byte()
    if kind == 0:
        check_value(cutter.rest())
    elif kind < 7:
        check_message(kind, cutter.rest())
    else:
        check_frames(cutter)


def check_value(data):
    """One value."""
    try:
        value = unpackb(data)
    except DecodeError:
        return
    written = packb(value)
    assert packb(unpackb(written)) == written


def check_message(kind, payload):
    """The payload of one message."""
    try:
        message = decode_message(kind, payload)
        frame = message.to_frame()
    except (DecodeError, EncodeError):
        return
    again, payload = parse_frame_header(frame)
    assert again == kind
    assert decode_message(again, payload).to_frame() == frame


def check_frames(cutter):
    """A stream of frames, in pieces and whole."""
    cuts = cutter.take(cutter.byte() % 32)
    data = cutter.rest()
    pieces, pos = [], 0
    for size in cuts:
        pieces.append(data[pos : pos + size])
        pos += size
    pieces.append(data[pos:])
    assert read_frames(pieces) == read_frames([data])


def read_frames(pieces):
    """Return the frames, the error that ended them, and what is left over."""
    reader = FrameReader(MIN_FRAME_PAYLOAD_LIMIT)
    frames = []
    for piece in pieces:
        pos = 0
        while pos < len(piece):
            try:
                taken = reader.feed(piece, pos)
            except LightningError as error:
                return frames, repr(error), 0
            pos += taken
            assert reader.expected <= MIN_FRAME_PAYLOAD_LIMIT + 5
            if reader.ready:
                frames.append(reader.take())
            else:
                assert pos == len(piece)
    return frames, None, reader.received


def seeds():
    """Captured frames, and values of every form."""
    vectors = json.loads(VECTORS.read_text())
    frames = [bytes.fromhex(each["frame"]) for each in vectors["captured"]]
    payloads = [(frame[0], frame[5:]) for frame in frames]
    for group in ("tolerated", "refused"):
        payloads += [
            (each["kind"], bytes.fromhex(each["payload"])) for each in vectors[group]
        ]
    for kind, payload in payloads:
        yield bytes([kind]) + payload
        yield b"\x00" + payload
    stream = b"".join(frames)
    yield b"\x07\x00" + stream
    yield b"\x07\x04\x01\x03\x05\x09" + stream
    for value in (
        None, True, -1, -33, -200, -70_000, 2**63, 1.5, "x", "é" * 40, "y" * 300,
        b"", b"b" * 300, [], [1] * 20, {}, {"a": [{"b": None}]},
        {i: str(i) for i in range(20)}, {"z" * i: i for i in range(40)},
    ):  # fmt: skip
        yield b"\x00" + packb(value)
    yield b"\x00" + b"\x91" * 1100
    yield b"\x00\xdd\xff\xff\xff\xff\x01"
    yield b"\x00\xca\x7f\xc0\x00\x00"
    yield b"\x00\xc7\x03\x05abc\xd6\x01abcd"
