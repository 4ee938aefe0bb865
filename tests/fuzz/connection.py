"""A connection whose peer has the keys: arbitrary frames in authentic packets.

The input is a program: packets of every level, with any frames, numbers, key phases, in
any order, from several addresses; time; and what an application does meanwhile. The
connection lives or ends with a code of RFC 9000, its memory stays within the settings, an
address that is not proven gets at most three times what came from it, no timer spins, and
in the end everything is given back.
"""

from lightning._core.quic import frames
from lightning.errors import ConnectionClosed
from tests.fuzz.cutter import Cutter
from tests.fuzz.frames import every_frame
from tests.fuzz.peer import (
    APPLICATION,
    HANDSHAKE,
    HOME,
    INITIAL,
    PLACES,
    Peer,
    scripted,
)

TIMES = (0, 0.001, 0.01, 0.025, 0.1, 0.3, 1, 5, 20, 60, 200)
SIZES = (0, 1, 10, 1000, 5000, 20_000, 100_000)
(
    ONE_RTT, ONE_RTT_TOO, INITIAL_PACKET, HANDSHAKE_PACKET, RAW, WAIT, FLUSH, OPEN, VERB,
    READ, ANSWER, AGAIN, ACK, CONTROL,
) = range(14)  # fmt: skip
VERBS = ("send", "stop", "reset", "release", "pause", "resume", "read", "at_end")

NUMBERS = {
    "value", "stream_id", "offset", "error_code", "final_size", "sequence",
    "retire_prior_to", "delay",
}  # fmt: skip
# Flags of a packet.
UPDATE, OLD, FAR, HOLD, ELSEWHERE = 1, 2, 4, 8, 16


def check(data):
    """Run the program."""
    cutter = Cutter(data)
    setup, rest = cutter.byte(), cutter.byte()
    small = rest & 1
    settings = {
        "congestion": "newreno" if rest & 2 else "cubic",
        "ecn": bool(rest & 4),
        "keep_alive": 5.0 if rest & 8 else 0.0,
        "key_update_after": 20 if rest & 16 else 0,
        "max_uni_streams": 3 if rest & 32 else 0,
        "idle_timeout": 30.0,
        "hystart": not rest & 2,
    }
    if small:
        settings |= {
            "max_data": 20_000, "max_data_window": 40_000, "max_stream_data": 5000,
            "max_stream_window": 10_000, "max_streams": 4, "max_buffered": 100_000,
            "max_stream_buffered": 50_000, "max_local_streams": 6, "active_cids": 2,
        }  # fmt: skip
    with scripted(
        Peer, is_client=bool(setup & 1), suite=0x1301 + (setup >> 3 & 3) % 3,
        generous=not rest & 64, **settings,
    ) as peer:  # fmt: skip
        peer.capacity = (65536, 1200, 1300, 1452)[setup >> 5 & 3]
        peer.shake_hands(3 - (setup >> 1 & 3))
        held = b""
        while cutter:
            held = step(peer, cutter, held)
        peer.deliver(held)
        peer.finish(close=bool(rest & 128))


def step(peer, cutter, held):
    """Do what comes next; return what is held back of a datagram."""
    kind = cutter.byte() % 14
    if kind <= HANDSHAKE_PACKET:
        return step_packet(peer, cutter, kind, held)
    if kind in STEPS:
        STEPS[kind](peer, cutter)
    elif peer.connection is not None:
        try:
            act(peer.connection, kind, cutter)
        except (ValueError, ConnectionClosed):
            pass
    return held


def step_raw(peer, cutter):
    """Deliver noise."""
    place = PLACES[cutter.byte() % 4]
    peer.deliver(cutter.take(cutter.byte()), place)


def step_wait(peer, cutter):
    """Let time pass."""
    peer.wait(TIMES[cutter.byte() % len(TIMES)])


def step_flush(peer, _cutter):
    """Take what the endpoint sends."""
    peer.flush()


def step_answer(peer, cutter):
    """Answer the last challenge, from wherever."""
    place = PLACES[cutter.byte() % 4]
    if peer.challenges:
        peer.proven.update(PLACES)
        payload = b"\x1b" + peer.challenges.pop()
        peer.deliver(peer.seal(APPLICATION, payload), place)


def step_again(peer, cutter):
    """Deliver an earlier datagram again, maybe with a bit flipped."""
    number, where, bit = cutter.byte(), cutter.byte(), cutter.byte()
    if peer.sent:
        again = bytearray(peer.sent[-1 - number % len(peer.sent)])
        if bit & 8:
            again[where % len(again)] ^= 1 << (bit & 7)
        peer.deliver(bytes(again), PLACES[bit >> 4 & 3])


def step_ack(peer, cutter):
    """Acknowledge the last packet of a level, and no more: some numbers are skipped."""
    space = (APPLICATION, APPLICATION, HANDSHAKE, INITIAL)[cutter.byte() % 4]
    if peer.largest[space] >= 0:
        last = (peer.largest[space],) * 2
        ack = {"type": 2, "ranges": [last], "delay": 0, "ecn": (0, 0, 0)}
        peer.deliver(peer.seal(space, frames.write(ack)[1]))


STEPS = {
    RAW: step_raw,
    WAIT: step_wait,
    FLUSH: step_flush,
    ANSWER: step_answer,
    AGAIN: step_again,
    ACK: step_ack,
}


def step_packet(peer, cutter, kind, held):
    """Deliver a packet, or hold it back for one datagram with the next."""
    space = {INITIAL_PACKET: INITIAL, HANDSHAKE_PACKET: HANDSHAKE}.get(
        kind, APPLICATION
    )
    flags = cutter.byte()
    size = cutter.byte()
    if size > 250:
        size = cutter.number(2) % 1400
    payload = cutter.take(size)
    pn = None
    if flags & OLD:
        pn = max(peer.pn[space] - 1 - (flags >> 5), 0)
    elif flags & FAR:
        pn = peer.pn[space] + (1, 2, 5, 100, 10_000, 2**20, 2**29, 2**31)[flags >> 5]
    place = PLACES[1 + (flags >> 5) % 3] if flags & ELSEWHERE else HOME
    cid = flags >> 5 if flags & ELSEWHERE else 1 if len(peer.cids) > 1 else 0
    update = bool(flags & UPDATE) and space == APPLICATION
    spoil = 0x08 if flags & UPDATE and space != APPLICATION else 0
    if pn is not None and pn >= 2**62:
        pn = None
    held += peer.seal(space, payload, pn=pn, cid=cid, update=update, spoil=spoil)
    if flags & HOLD and len(held) < 1400:
        return held
    if space == INITIAL and not peer.is_client and not flags & FAR:
        held = held.ljust(1200, b"\0")
    peer.deliver(held, place, flags >> 6 & 3)
    return b""


def act(connection, kind, cutter):
    """Do what an application does."""
    if kind == OPEN:
        size = SIZES[cutter.byte() % len(SIZES)]
        flags = cutter.byte()
        stream = connection.open_stream(bool(flags & 1))
        if stream >= 0:
            connection.send(stream, bytes(size), fin=bool(flags & 2))
    elif kind == READ:
        for stream in range(24):
            connection.read(stream)
    elif kind == VERB:
        verb = VERBS[cutter.byte() % 8]
        stream = cutter.byte() % 64
        if verb == "send":
            size = SIZES[cutter.byte() % len(SIZES)]
            connection.send(stream, bytes(size), fin=bool(cutter.byte() & 1))
        elif verb in ("stop", "reset"):
            getattr(connection, verb)(stream, cutter.byte())
        else:
            getattr(connection, verb)(stream)
    elif kind == CONTROL:
        which = cutter.byte() % 8
        if which == 0:
            connection.update_keys()
        elif which == 1:
            connection.close("enough", cutter.byte())
        else:
            connection.ping()


# --- Mutations ------------------------------------------------------------------------


def mutate(data, choose):
    """Put a step before or behind the program, which chance alone rarely writes."""
    kind = choose.random()
    if kind < 0.4:
        step = packet_of(*(some_frame(choose) for _ in range(choose.randrange(1, 4))))
    elif kind < 0.7:
        # Limits are of things of one kind.
        one = choose.choice(every_frame())
        step = b"".join(
            packet_of(numbered(one, n)) for n in range(1, choose.randrange(2, 10))
        )
    else:
        step = bytes([choose.randrange(14)]) + choose.randbytes(choose.randrange(4))
    at = choose.choice((2, len(data)))
    return data[:at] + step + data[at:]


def some_frame(choose):
    """Write a frame of any type, mostly with small numbers."""
    frame = dict(choose.choice(every_frame()))
    for name in NUMBERS & frame.keys():
        frame[name] = choose.choice((
            choose.randrange(8), choose.randrange(200), choose.randrange(70_000),
            2**60 + choose.randrange(3), 2**62 - 1 - choose.randrange(2),
        ))  # fmt: skip
    for name in ("cid", "token"):
        if name in frame:
            frame[name] = choose.randbytes(len(frame[name]))
    if "ranges" in frame:
        top = choose.randrange(40)
        frame["ranges"] = [(choose.randrange(top + 1), top)]
    return frames.write(frame)[1]


def numbered(frame, number):
    """Write the frame of that number of a run."""
    if frame["type"] == 0x18:
        return cid(number)
    frame = frame | {"value": number, "offset": 2 * number, "final_size": number}
    if "stream_id" in frame:
        frame["stream_id"] = 4 * number
    return frames.write(frame)[1]


# --- Seeds ----------------------------------------------------------------------------


def packet_of(*written, flags=0, kind=ONE_RTT):
    """Write the step that delivers a packet of these frames."""
    payload = b"".join(written)
    size = len(payload).to_bytes(1) if len(payload) <= 250 else b"\xff"
    if len(payload) > 250:
        size += len(payload).to_bytes(2)
    return bytes([kind, flags]) + size + payload


def stream(stream_id, offset=0, data=b"data", fin=False):
    """Write a STREAM frame."""
    return frames.write(
        {"type": 8, "stream_id": stream_id, "offset": offset, "data": data, "fin": fin}
    )[1]


def cid(sequence, retire=0):
    """Write a NEW_CONNECTION_ID frame."""
    return frames.write(
        {
            "type": 0x18,
            "sequence": sequence,
            "retire_prior_to": retire,
            "cid": b"cid-%04d" % sequence,
            "token": bytes([sequence]) * 16,
        }
    )[1]


def limits():
    """Go to each limit, and then past it."""
    cids = [packet_of(cid(number)) for number in range(1, 6)]
    moves = [
        packet_of(b"\x01", flags=ELSEWHERE | place << 5) + bytes([FLUSH, ANSWER, place])
        for place in (1, 2, 0)
    ]
    for count in (1, 2, 3, 5):
        yield b"".join(cids[:count]) + bytes([FLUSH])
        yield b"".join(cids[:count]) + packet_of(cid(6, count)) + bytes([FLUSH])
        yield b"".join(cids[:count] + moves[:count]) + bytes([WAIT, 8, FLUSH])
        yield b"".join(packet_of(bytes([0x19, number])) for number in range(count))
        yield b"".join(packet_of(stream(4 * number)) for number in range(count))
        yield b"".join(
            packet_of(stream(0, 1200 * n, bytes(1200))) for n in range(count)
        )
        yield bytes([OPEN, 3, 2]) * count + packet_of(b"\x12\x05", b"\x10\x60\0")
        yield b"".join(packet_of(stream(0, 3 * n, b"x")) for n in range(9 * count))
    yield b"".join(packet_of(bytes([0x1A]) + bytes([n] * 8)) for n in range(9))
    yield packet_of(b"\x01", flags=UPDATE) * 3 + bytes([FLUSH, CONTROL, 0]) * 3


def seeds():
    """Every frame and every step, on both ends, at every stage."""
    written = [frames.write(each)[1] for each in every_frame()]
    open_two = bytes([OPEN, 2, 0, OPEN, 4, 2, FLUSH])
    programs = [
        *(open_two + packet_of(each) + bytes([FLUSH, WAIT, 5]) for each in written),
        packet_of(stream(0)) + packet_of(stream(0, 8, b"late", fin=True))
        + packet_of(stream(1, 2)) + packet_of(stream(0, 4)) + bytes([READ, FLUSH, WAIT, 3]),
        open_two + packet_of(b"\x04\x00\x07\x04", b"\x05\x04\x09") + bytes([FLUSH, ACK, 0]),
        bytes([OPEN, 6, 2, FLUSH, ACK, 0, WAIT, 4, FLUSH, ACK, 0, WAIT, 5, FLUSH]) * 3,
        bytes([OPEN, 6, 2, FLUSH, WAIT, 10]),
        packet_of(b"\x01", flags=ELSEWHERE | 0x20) + bytes([FLUSH, ANSWER, 1, WAIT, 6])
        + packet_of(b"\x01", flags=ELSEWHERE | 0x40) + bytes([WAIT, 8, ANSWER, 2]),
        packet_of(b"\x01", flags=UPDATE) + bytes([FLUSH, CONTROL, 0, FLUSH, ACK, 0])
        + packet_of(b"\x01", flags=OLD) + packet_of(b"\x01", flags=FAR | 0x60)
        + packet_of(b"\x01", flags=HOLD) + packet_of(b"\x01"),
        bytes([RAW, 0, 20]) + bytes(range(64, 84)) + bytes([RAW, 0, 37]) + b"A" * 21 + b"R" * 16,
        bytes([AGAIN, 0, 0, 0, AGAIN, 0, 30, 9, AGAIN, 1, 1, 0x1A, WAIT, 7, FLUSH]),
        packet_of(stream(0, 0, b"x" * 300, fin=True)) + bytes(
            [READ, VERB, 0, 0, 3, 1, FLUSH, ACK, 0, VERB, 3, 0, WAIT, 9]
        ),
        packet_of(stream(0)) + bytes(
            [VERB, 4, 0, VERB, 5, 0, VERB, 6, 0, VERB, 1, 0, 5, VERB, 2, 0, 6, FLUSH]
        ),
        bytes([CONTROL, 2, CONTROL, 1, 7, FLUSH]) + packet_of(b"\x01") * 4,
        packet_of(b"\x1d\x05\x03bye"),
    ]  # fmt: skip
    for number, program in enumerate((*programs, *limits())):
        for role in (0, 1):
            yield bytes([role, 0x24]) + program
            yield bytes([role | 32 * (number % 4), 0x65]) + program
            yield bytes([role | 2, 0xDB]) + program
    crypto = frames.write({"type": 6, "offset": 5, "data": b"c" * 50})[1]
    hello = frames.write({"type": 6, "offset": 0, "data": b"c" * 5})[1]
    for role in (0, 1):
        for suite in range(3):
            begin = bytes([role | 4 | suite << 3])
            for kind in (INITIAL_PACKET, HANDSHAKE_PACKET):
                late = packet_of(crypto, kind=kind) + packet_of(hello, kind=kind)
                yield begin + b"\x00" + late + bytes([FLUSH, ACK, kind, WAIT, 6, FLUSH])
                yield bytes([role | 6]) + b"\x00" + late + bytes([FLUSH, WAIT, 6])
