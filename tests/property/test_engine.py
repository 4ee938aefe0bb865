"""The engine under arbitrary authentic input: always an error with a name, never more."""

import random

import pytest
from aioquic.tls import Epoch

from tests.support.quic import Attacker, Two, client, frame, server

KNOWN_CODES = {*range(0x01, 0x11), *range(0x100, 0x200)}


def some_number(choose):
    """Pick a varint, mostly from where limits are."""
    return choose.choice(
        (
            choose.randrange(8),
            choose.randrange(600),
            choose.randrange(2_000_000),
            choose.randrange(2**62),
            2**60 + choose.randrange(-1, 2),
            2**62 - 1 - choose.randrange(2),
        )
    )


def some_frame(choose):
    """Write a frame of any type with any fields, or noise."""
    kind = choose.choice((*range(0x1F), 0x21, 0x40, 2**40))
    if kind == 0x1C or kind == 0x1D:
        kind = 0x01
    number = [some_number(choose) for _ in range(4)]
    body = choose.randbytes(choose.randrange(40))
    if 0x08 <= kind <= 0x0F:
        fields = [number[0] % choose.choice((16, 600, 2**62))]
        if kind & 4:
            fields.append(number[1])
        if kind & 2:
            fields.append(len(body) + (choose.random() < 0.05))
        return frame(kind, *fields, body)
    if kind == 0x06:
        return frame(kind, number[0], len(body), body)
    if kind in (0x1A, 0x1B):
        return frame(kind, choose.randbytes(8))
    if kind == 0x18:
        size = choose.choice((0, 1, 8, 8, 20, 21))
        low = min(number[0], number[1]) if choose.random() < 0.8 else number[1]
        return frame(
            kind, number[0], low, bytes([size]), choose.randbytes(size),
            choose.randbytes(16),
        )  # fmt: skip
    if kind in (0x02, 0x03):
        largest = choose.randrange(40)
        return frame(
            kind, largest, number[1], choose.randrange(3), choose.randrange(8),
            choose.randrange(4), choose.randrange(4), *number,
        )  # fmt: skip
    if choose.random() < 0.05:
        return choose.randbytes(20)
    return frame(kind, *number[: choose.randrange(4)])


@pytest.mark.parametrize("seed", range(40))
def test_any_frames_in_1rtt_packets(seed):
    """The connection lives, or closes with a code of RFC 9000; others go on."""
    choose = random.Random(seed)
    far = server()
    for _ in range(6):
        attacker = Attacker(far)
        for _ in range(60):
            payload = b"".join(
                some_frame(choose) for _ in range(choose.randrange(1, 4))
            )
            attacker.send(payload[:1150])
            attacker.now += choose.choice((0, 0, 0.001, 0.1))
            far.handle_timeout(attacker.now)
            for data, _ in far.datagrams_to_send(attacker.now):
                assert len(data) <= 1452
            attacker.collect()
            if attacker.victim.end is not None:
                assert attacker.victim.end.code in KNOWN_CODES
                break
    # Time and the peers' silence give everything back.
    for tick in range(40):
        far.handle_timeout(1000.0 + 10 * tick)
        far.datagrams_to_send(1000.0 + 10 * tick)
    while far.next_event() is not None:
        pass
    attacker.victim = None
    attacker.events.clear()
    assert far.connections == 0
    assert far.stats()["streams_in_use"] == 0
    assert far.stats()["blocks_in_use"] == 0
    Two(client(seed + 1000), far, now=2000.0).connect()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.HANDSHAKE])
def test_any_frames_in_the_handshake(seed, epoch):
    """The same before anybody is known; half-open connections come back to zero."""
    choose = random.Random(seed)
    far = server(handshake_timeout=5)
    attacker = Attacker(far, connect=False)
    for data, _ in attacker.quic.datagrams_to_send(0.0):
        far.receive(data, ("10.0.0.1", 1000), 0.0)
    for data, _ in far.datagrams_to_send(0.0):
        attacker.quic.receive_datagram(data, ("10.0.0.2", 2000), 0.0)
    for _ in range(40):
        payload = b"".join(some_frame(choose) for _ in range(choose.randrange(1, 4)))
        if epoch == Epoch.INITIAL:
            payload = payload[:1100].ljust(1200, b"\0")
        attacker.send(payload[:1200], epoch=epoch)
        far.datagrams_to_send(0.0)
    for tick in range(20):
        far.handle_timeout(tick)
        far.datagrams_to_send(tick)
    assert far.connections == far.half_open == 0
    for event in attacker.events:
        if event.kind == "closed":
            assert event.connection.end.code in KNOWN_CODES | {0}


@pytest.mark.parametrize("seed", range(20))
def test_any_verbs(seed):
    """Calls in any order, over a network that loses: an answer or a named error."""
    choose = random.Random(seed)
    two = Two(
        client(seed), server(max_streams=8, max_stream_data=5000, max_data=20_000),
        lose=lambda *_: choose.random() < 0.1,
    )  # fmt: skip
    two.run(2)
    for _ in range(400):
        ends = [each for each in (two.connection, two.peer) if each is not None]
        end = choose.choice(ends)
        stream = choose.randrange(40)
        verb = choose.choice(
            ("open", "send", "send", "read", "read", "stop", "reset", "pause", "resume",
             "release", "ping", "update", "wait", "wait")
        )  # fmt: skip
        try:
            if verb == "open":
                end.open_stream()
            elif verb == "send":
                end.send(
                    stream, bytes(choose.choice((0, 10, 3000, 20_000))),
                    fin=choose.random() < 0.3,
                )  # fmt: skip
            elif verb == "read":
                end.read(stream)
                end.at_end(stream)
            elif verb == "ping":
                end.ping()
            elif verb == "update":
                end.update_keys()
            elif verb == "wait":
                two.run(choose.choice((0.001, 0.05, 0.5)))
            else:
                getattr(end, verb)(stream)
        except ValueError:
            pass
    assert two.connection.end is None
    two.connection.close("enough", 1)
    two.run(200)
    two.near_events.clear()
    two.far_events.clear()
    # The last references.
    two.connection = two.peer = end = None
    ends.clear()
    for end in (two.near, two.far):
        end.handle_timeout(two.now)
        assert end.connections == 0
        assert end.stats()["streams_in_use"] == 0
        assert end.stats()["blocks_in_use"] == 0
