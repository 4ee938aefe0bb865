"""A slow, obvious model of one end's streams, and of their frames.

Bytes are held one by one in dictionaries, states are recomputed from what happened.
The model follows RFC 9000 sections 2 to 4 and 19; it knows nothing of packets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OK = 0
FLOW_CONTROL, STREAM_LIMIT, STREAM_STATE = 0x03, 0x04, 0x05
FINAL_SIZE, FRAME_ENCODING = 0x06, 0x07
MAX = 2**62 - 1
OPENED, STOPPED, READABLE, RESET, WRITABLE, ACKED, OPENABLE = (1 << n for n in range(7))

RESET_STREAM, STOP_SENDING, STREAM = 0x04, 0x05, 0x08
MAX_DATA, MAX_STREAM_DATA, MAX_STREAMS_BIDI, MAX_STREAMS_UNI = 0x10, 0x11, 0x12, 0x13
DATA_BLOCKED, STREAM_DATA_BLOCKED = 0x14, 0x15
STREAMS_BLOCKED_BIDI, STREAMS_BLOCKED_UNI = 0x16, 0x17

# Operands of the frames other than STREAM.
OPERANDS = {
    RESET_STREAM: 3,
    STOP_SENDING: 2,
    MAX_DATA: 1,
    MAX_STREAM_DATA: 2,
    MAX_STREAMS_BIDI: 1,
    MAX_STREAMS_UNI: 1,
    DATA_BLOCKED: 1,
    STREAM_DATA_BLOCKED: 2,
    STREAMS_BLOCKED_BIDI: 1,
    STREAMS_BLOCKED_UNI: 1,
}


def varint(value: int) -> bytes:
    """Encode a variable-length integer as short as possible."""
    for prefix, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError(value)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode a variable-length integer; also the position after it."""
    size = 1 << (data[at] >> 6)
    value = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    return value, at + size


def frame(kind: int, *operands: int) -> bytes:
    """Encode a frame that is not STREAM."""
    return bytes([kind]) + b"".join(map(varint, operands))


def stream_frame(
    sid: int, offset: int = 0, data: bytes = b"", fin: bool = False
) -> bytes:
    """Encode a STREAM frame with an offset and a length."""
    head = bytes([STREAM | 0x06 | fin]) + varint(sid) + varint(offset)
    return head + varint(len(data)) + data


def frames(payload: bytes) -> list[tuple]:
    """Decode a payload: (STREAM, sid, offset, data, fin) or (kind, *operands)."""
    found, at = [], 0
    while at < len(payload):
        kind, at = payload[at], at + 1
        if kind & 0xF8 == STREAM:
            sid, at = read_varint(payload, at)
            offset = 0
            if kind & 4:
                offset, at = read_varint(payload, at)
            size = len(payload) - at
            if kind & 2:
                size, at = read_varint(payload, at)
            data, at = payload[at : at + size], at + size
            assert len(data) == size
            found.append((STREAM, sid, offset, data, bool(kind & 1)))
            continue
        operands = []
        for _ in range(OPERANDS[kind]):
            value, at = read_varint(payload, at)
            operands.append(value)
        found.append((kind, *operands))
    return found


@dataclass
class Window:
    """A receive window: the limit follows consumption, by halves."""

    size: int
    limit: int = 0
    received: int = 0
    consumed: int = 0

    def __post_init__(self) -> None:
        self.limit = self.size

    def consume(self, size: int) -> None:
        self.consumed += size
        if self.limit - self.consumed <= self.size // 2:
            self.limit = max(self.limit, self.consumed + self.size)


@dataclass
class Stream:
    """One stream; both parts, of which a unidirectional one lacks one."""

    sid: int
    window: Window
    sends: bool = True
    receives: bool = True
    held: bool = True
    # Sending.
    size: int = 0
    finished: bool = False
    reset: bool = False
    written: set[int] = field(default_factory=set)
    acked: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)  # and neither written again nor acked
    fin_lost: bool = False
    fin_written: bool = False
    fin_acked: bool = False
    reset_acked: bool = False
    stopped: bool = False
    # Receiving.
    bytes: dict[int, int] = field(default_factory=dict)
    next: int = 0
    highest: int = 0
    final: int | None = None
    was_reset: bool = False
    discards: bool = False

    @property
    def send_done(self) -> bool:
        if not self.sends:
            return True
        if self.reset:
            return self.reset_acked
        return self.finished and self.fin_acked and len(self.acked) == self.size

    @property
    def all_written(self) -> bool:
        return self.finished and self.fin_written and len(self.written) == self.size

    @property
    def all_received(self) -> bool:
        return self.final is not None and (
            self.was_reset
            or self.discards
            or all(n in self.bytes for n in range(self.next, self.final))
        )

    @property
    def recv_done(self) -> bool:
        if not self.receives or self.was_reset:
            return True
        return self.final is not None and (self.discards or self.next == self.final)


class Table:
    """One end's streams: verbs of the application, frames, acknowledgements."""

    def __init__(
        self, is_client: bool, *, streams: int, stream_window: int, window: int
    ) -> None:
        self.is_client = is_client
        self.concurrent = [streams, streams]
        self.granted = [streams, streams]
        self.stream_window = stream_window
        self.window = Window(window)
        self.live: dict[int, Stream] = {}
        self.seen: set[int] = set()  # identifiers that ever had a record
        self.opened = [0, 0]  # of the peer, by direction
        self.closed = [0, 0]
        self.local = [0, 0]

    # --- Application ---

    def open(self, uni: bool) -> Stream:
        sid = self.local[uni] << 2 | uni << 1 | (not self.is_client)
        self.local[uni] += 1
        return self._make(sid)

    def read(self, sid: int, size: int = 2**62) -> tuple[bytes, bool]:
        s = self.live[sid]
        got = bytearray()
        while size and s.next in s.bytes:
            # Credit is given back a piece at a time, as pieces of 4096 are read.
            start = s.next
            while size and s.next in s.bytes:
                got.append(s.bytes.pop(s.next))
                s.next += 1
                size -= 1
                if s.next % 4096 == 0:
                    break
            s.window.consume(s.next - start)
            self.window.consume(s.next - start)
        return bytes(got), s.next == s.final

    def stop(self, sid: int) -> None:
        self._discard(self.live[sid])

    def reset(self, sid: int) -> None:
        s = self.live[sid]
        if s.sends and not s.send_done:
            s.reset = True

    def release(self, sid: int) -> None:
        s = self.live[sid]
        if not s.finished:
            self.reset(sid)
        s.held = False
        self._discard(s)
        self._settle(s)

    # --- Frames: each returns OK or the code to close the connection with ---

    def receive(self, kind: int, *operands) -> int:
        if kind in (MAX_STREAMS_BIDI, MAX_STREAMS_UNI):
            return FRAME_ENCODING if operands[0] > 2**60 else OK
        if kind in (STREAMS_BLOCKED_BIDI, STREAMS_BLOCKED_UNI):
            return FRAME_ENCODING if operands[0] > 2**60 else OK
        if kind in (MAX_DATA, DATA_BLOCKED):
            return OK
        sid = operands[0]
        status = self._find(sid, kind in (STREAM, RESET_STREAM, STREAM_DATA_BLOCKED))
        s = self.live.get(sid)
        if status or s is None:
            return status
        if kind == STREAM:
            return self._stream(s, *operands[1:])
        if kind == RESET_STREAM:
            return self._reset(s, operands[2])
        if kind == STOP_SENDING and s.sends and not s.reset and not s.send_done:
            if s.all_written and not s.lost and not s.fin_lost:
                s.stopped = True
            else:
                s.reset = True
        return OK

    def _find(self, sid: int, receiving: bool) -> int:
        uni, index = bool(sid & 2), sid >> 2
        local = bool(sid & 1) != self.is_client
        if uni and local == receiving:
            return STREAM_STATE
        if local:
            return STREAM_STATE if index >= self.local[uni] else OK
        if index >= self.granted[uni]:
            return STREAM_LIMIT
        if sid not in self.seen:
            self._make(sid)
            self.opened[uni] = max(self.opened[uni], index + 1)
            self._grant(uni)
        return OK

    def _stream(self, s: Stream, offset: int, data: bytes, fin: bool) -> int:
        was_done = s.recv_done
        status = self._count(s, offset, len(data), fin)
        if status or was_done:
            return status
        if s.discards:
            self._discard(s)
            self._settle(s)
            return OK
        for n, byte in enumerate(data, offset):
            if n >= s.next and n not in s.bytes:
                s.bytes[n] = byte
        return OK

    def _reset(self, s: Stream, final: int) -> int:
        was_received = s.all_received
        status = self._count(s, final, 0, True)
        if status or was_received:
            return status
        s.was_reset = True
        self._discard(s)
        self._settle(s)
        return OK

    def _count(self, s: Stream, offset: int, size: int, fin: bool) -> int:
        end = offset + size
        if end > MAX:
            return FRAME_ENCODING
        if s.final is not None and (end > s.final or (fin and end != s.final)):
            return FINAL_SIZE
        if fin and end < s.highest:
            return FINAL_SIZE
        grown = max(0, end - s.highest)
        for window in (s.window, self.window):
            if grown > window.limit - window.received:
                return FLOW_CONTROL
        s.window.received += grown
        self.window.received += grown
        s.highest += grown
        if fin:
            s.final = end
        return OK

    # --- What was written, and its fate; records are (kind, sid, offset, size, fin) ---

    def on_written(self, record: tuple) -> None:
        kind, sid, offset, size, fin = record
        if kind == STREAM:
            s = self.live[sid]
            s.written.update(range(offset, offset + size))
            s.lost.difference_update(range(offset, offset + size))
            s.fin_written = s.fin_written or fin
            s.fin_lost = s.fin_lost and not fin

    def on_acked(self, record: tuple) -> None:
        kind, sid, offset, size, fin = record
        s = self.live.get(sid)
        if s is None:
            return
        if kind == STREAM and not s.reset:
            s.acked.update(range(offset, offset + size))
            s.lost.difference_update(range(offset, offset + size))
            s.fin_acked = s.fin_acked or fin
            s.fin_lost = s.fin_lost and not fin
        elif kind == RESET_STREAM:
            s.reset_acked = True
        self._settle(s)

    def on_lost(self, record: tuple) -> None:
        kind, sid, offset, size, fin = record
        s = self.live.get(sid)
        if s is None or kind != STREAM or s.reset or s.send_done:
            return
        s.lost.update(set(range(offset, offset + size)) - s.acked)
        s.fin_lost = s.fin_lost or (fin and not s.fin_acked)
        if s.stopped and (s.lost or s.fin_lost):
            s.reset = True

    # --- Steps ---

    def _make(self, sid: int) -> Stream:
        local = bool(sid & 1) != self.is_client
        uni = bool(sid & 2)
        s = Stream(
            sid,
            Window(0 if local and uni else self.stream_window),
            sends=local or not uni,
            receives=not (local and uni),
        )
        self.live[sid] = s
        self.seen.add(sid)
        return s

    def _discard(self, s: Stream) -> None:
        s.discards = True
        s.bytes.clear()
        self.window.consume(s.highest - s.next)
        s.next = s.highest

    def _settle(self, s: Stream) -> None:
        if s.held or not s.send_done or not s.recv_done:
            return
        del self.live[s.sid]
        if bool(s.sid & 1) == self.is_client:
            uni = bool(s.sid & 2)
            self.closed[uni] += 1
            self._grant(uni)

    def _grant(self, uni: int) -> None:
        if self.granted[uni] - self.opened[uni] <= self.concurrent[uni] // 2:
            self.granted[uni] = self.closed[uni] + self.concurrent[uni]
