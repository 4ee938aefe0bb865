"""What a peer with a connection can make us hold: each bound in bytes or in a count."""

import pytest
from aioquic.tls import Epoch

from tests.support.bounds import Memory, last_number, malloc_bytes
from tests.support.quic import (
    CLIENT,
    FLOW_CONTROL,
    STREAM_LIMIT,
    Attacker,
    Two,
    client,
    frame,
    server,
)

BLOCK = 4096
INTERNAL = 0x01


# Received.


def test_a_byte_in_every_block_cannot_hold_more_than_the_window():
    """One byte each 4 KiB, the worst there is: the windows and a block a stream."""
    limit, window = 400_000, 100_000
    attacker = Attacker(server(max_data=limit, max_stream_data=window))
    for stream in range(0, 400, 4):
        for offset in range(1, window, BLOCK):
            attacker.send(frame(0x0E, stream, offset, 1, b"x"))
            if attacker.verdict is not None:
                break
        assert attacker.end.stats()["blocks_in_use"] * BLOCK <= limit + 16 * BLOCK
        if attacker.verdict is not None:
            break
    assert attacker.verdict == FLOW_CONTROL
    assert stream == 16


def test_highest_offsets_cannot_open_a_window():
    """The last byte of every stream's window, for ever: no MAX_DATA is sent."""
    attacker = Attacker(server(max_data=10_000, max_stream_data=1_000)).settle()
    attacker.pump()
    for stream in range(0, 40, 4):
        attacker.send(frame(0x0E, stream, 999, 1, b"x"))
        attacker.pump()
    quic = attacker.quic
    assert quic._remote_max_data == 10_000
    attacker.send(frame(0x0A, 40, 1, b"x"))
    assert attacker.verdict == FLOW_CONTROL


def test_a_window_that_follows_its_reader_stops_at_its_maximum():
    """However fast a peer sends and we read, and whatever RTT it pretends."""
    attacker = Attacker(
        server(
            max_data=4000, max_data_window=16_000, max_stream_data=4000,
            max_stream_window=16_000,
        )
    )  # fmt: skip
    attacker.quic.send_stream_data(0, b"x")
    attacker.pump()
    offset = 1
    for _ in range(400):
        attacker.now += 0.001
        attacker.send(frame(0x0E, 0, offset, 1000, bytes(1000)))
        attacker.victim.read(0)
        attacker.pump(2)
        offset += 1000
        assert attacker.quic._remote_max_data <= offset + 16_000
    assert attacker.quic._remote_max_data > 300_000


def test_one_byte_fragments_are_at_most_1024_a_stream():
    """Every other offset: 16 KiB of ranges a stream, and the connection ends."""
    attacker = Attacker()
    with Memory() as memory:
        for number in range(1024):
            attacker.send(frame(0x0E, 0, 2 * number + 1, 1, b"x"))
        assert attacker.verdict is None
        assert memory.measure() < 3 * 16_384 + 3 * BLOCK + 65_536
    attacker.send(frame(0x0E, 0, 2 * 1024 + 1, 1, b"x"))
    assert attacker.verdict == INTERNAL


def test_fragments_in_the_worst_order_are_cheap_to_place():
    """From the top down and back: a range moved is 16 bytes, 16 KiB a frame at most."""
    attacker = Attacker()
    for number in (*range(1000, 0, -1), *range(1, 1000)):
        attacker.send(frame(0x0E, 0, 2 * number, 1, b"x") * 20)
    assert attacker.verdict is None
    assert attacker.victim.stats()["recv_buffered"] == 1000
    assert attacker.end.stats()["blocks_in_use"] == 1


def test_overlapping_bytes_are_held_once():
    """The same bytes again and again, shifted: memory for each offset once."""
    attacker = Attacker()
    for shift in range(1, 500):
        attacker.send(frame(0x0E, 0, shift, 1000, bytes(1000)))
    assert attacker.victim.stats()["recv_buffered"] == 1498
    assert attacker.end.stats()["blocks_in_use"] == 1


def test_tiny_frames_out_of_order_are_put_together():
    """Backwards, a byte each: the bytes, one range, one block."""
    attacker = Attacker()
    for number in range(2000, 0, -1):
        attacker.send(frame(0x0E, 0, number - 1, 1, bytes([number % 256])))
    assert attacker.victim.read(0) == bytes(n % 256 for n in range(1, 2001))
    assert attacker.end.stats()["blocks_in_use"] == 0


def test_crypto_data_cannot_hold_more_than_64_kib_a_level():
    """With a gap at the front, so that TLS takes none: 17 blocks."""
    attacker = Attacker()
    for offset in range(1, 65_536, 1000):
        size = min(1000, 65_536 - offset)
        attacker.send(frame(0x06, offset, size, bytes(size)))
    assert attacker.verdict is None
    assert attacker.end.stats()["blocks_in_use"] <= 17
    attacker.send(frame(0x06, 65_536, 1, b"x"))
    assert attacker.verdict == 0x0D


def test_crypto_fragments_are_at_most_1024():
    """The same bound on gaps as for streams."""
    attacker = Attacker()
    for number in range(1025):
        attacker.send(frame(0x06, 2 * number + 1, 1, b"x"))
    assert attacker.verdict == INTERNAL


# Streams.


@pytest.mark.parametrize("how", ["reset", "finish", "stop"])
def test_rapid_reset_cannot_have_more_than_128_streams_live(how):
    """Who opens and resets at full rate gets credit only for what we have let go."""
    attacker = Attacker()
    live = 0
    for index in range(400):
        stream = 4 * index
        payload = {
            "reset": frame(0x0A, stream, 1, b"x") + frame(0x04, stream, 0, 1),
            "finish": frame(0x0B, stream, 1, b"x"),
            "stop": frame(0x05, stream, 7) + frame(0x04, stream, 0, 0),
        }[how]
        attacker.send(payload)
        if attacker.verdict is not None:
            break
        live = max(live, attacker.end.stats()["streams_in_use"])
    # Nobody released a stream: as many as were granted, and not one more.
    assert attacker.verdict == STREAM_LIMIT
    assert (index, live) == (128, 128)


def test_streams_let_go_stay_until_the_peer_has_acknowledged():
    """Our RESET_STREAM frames are records too: no credit for who never acknowledges."""
    attacker = Attacker()
    for index in range(400):
        attacker.send(frame(0x04, 4 * index, 0, 0))
        if attacker.verdict is not None:
            break
        attacker.victim.release(4 * index)
        attacker.end.datagrams_to_send(0.0)
        assert attacker.end.stats()["streams_in_use"] <= 128
    assert attacker.verdict == STREAM_LIMIT
    assert index == 128


def test_rapid_reset_of_a_peer_that_acknowledges_goes_on():
    """It is served, at a bounded number of records."""
    two = Two().connect()
    for _ in range(300):
        stream = two.connection.open_stream()
        two.connection.send(stream, b"x")
        two.connection.reset(stream, 1)
        two.connection.release(stream)
        two.run(0.05)
        for event in two.far_events:
            two.peer.release(event.stream_id)
        two.far_events.clear()
        assert two.far.stats()["streams_in_use"] <= 4
    assert stream == 4 * 299


def test_skipped_streams_cost_a_span_and_no_record():
    """Every second of 128 identifiers: 64 records, and no more when asked again."""
    attacker = Attacker()
    with Memory() as memory:
        for index in range(1, 128, 2):
            attacker.send(frame(0x15, 4 * index, 0))
        assert attacker.end.stats()["streams_in_use"] == 64
        assert memory.measure() < 64 * 1024 + 64 * 3000
    for index in range(1, 128, 2):
        attacker.send(frame(0x15, 4 * index, 0))
    assert attacker.end.stats()["streams_in_use"] == 64
    assert attacker.verdict is None


def test_grants_without_end_cannot_make_us_open_without_end():
    """MAX_STREAMS of 2^60 from a peer that ends none: `max_local_streams` of ours."""
    two = Two(near=client(max_local_streams=50), far=server(max_streams=2**60))
    two.connect()
    assert [two.connection.open_stream() for _ in range(60)].count(-1) == 10
    assert two.near.stats()["streams_in_use"] == 50


# To be sent.


def test_a_peer_that_never_reads_cannot_hold_more_than_is_configured():
    """`max_buffered`, and one write a stream that went past it."""
    attacker = Attacker(server(max_buffered=50_000, max_stream_buffered=20_000))
    taken = 0
    for stream in range(0, 80, 4):
        attacker.send(frame(0x0B, stream, 1, b"x"))
        for _ in range(40):
            if attacker.victim.send(stream, bytes(1000)):
                taken += 1000
        attacker.end.datagrams_to_send(0.0)
        attacker.collect()
    assert 50_000 <= taken <= 50_000 + 20 * 1000
    assert attacker.victim.stats()["send_buffered"] == taken
    assert attacker.end.stats()["blocks_in_use"] * BLOCK <= taken + 40 * BLOCK


def test_a_peer_that_never_acknowledges_is_not_sent_to_without_end():
    """The initial window, then probes: two a timeout that doubles, until it is gone."""
    attacker = Attacker(server(idle_timeout=20))
    attacker.send(frame(0x0A, 0, 1, b"x"))
    attacker.victim.send(0, bytes(300_000), fin=True)
    size = 0
    for tick in range(2000):
        attacker.now = tick / 50
        attacker.end.handle_timeout(attacker.now)
        size += sum(len(d) for d, _ in attacker.end.datagrams_to_send(attacker.now))
        attacker.collect()
    assert size < 60_000
    assert attacker.victim.end.initiator == "idle"
    assert attacker.end.connections == 0


def test_pings_without_an_acknowledgement_hold_16384_numbers():
    """The ACKs that we send are not noted for ever: 655 KiB for any number of them."""
    attacker = Attacker().settle()
    with Memory() as memory:
        for number in range(50_000):
            packet = attacker.seal(Epoch.ONE_RTT, frame(0x01))
            attacker.end.receive(packet, ("10.0.0.1", 1000), attacker.now)
            if number % 2:
                assert len(attacker.end.datagrams_to_send(attacker.now)) == 1
        assert memory.measure() < 16_384 * 40 + 65_536
    assert attacker.verdict is None


def test_challenges_without_an_acknowledgement_hold_no_more():
    """Their answers pass the congestion window, one each, and are not followed."""
    attacker = Attacker().settle()
    sent = 0
    with Memory() as memory:
        for _ in range(18_000):
            packet = attacker.seal(Epoch.ONE_RTT, frame(0x1A, bytes(8)))
            attacker.end.receive(packet, ("10.0.0.1", 1000), attacker.now)
            sent += len(attacker.end.datagrams_to_send(attacker.now))
        assert memory.measure() < 16_384 * 40 + 65_536
    # And an ACK for two of them.
    assert 18_000 <= sent <= 27_010
    assert attacker.verdict is None


def test_a_late_acknowledgement_is_taken():
    """After ten probe timeouts, and for packets that were given up: no error."""
    attacker = Attacker()
    last = last_number(attacker)
    attacker.send(frame(0x0A, 0, 1, b"x"))
    attacker.victim.send(0, bytes(20_000), fin=True)
    for tick in range(200):
        attacker.now = tick / 10
        attacker.end.handle_timeout(attacker.now)
        attacker.end.datagrams_to_send(attacker.now)
    assert attacker.victim.stats()["timeouts"] >= 4
    attacker.send(frame(0x02, last(), 0, 0, 0))
    attacker.send(frame(0x02, last(), 0, 0, last()))
    assert attacker.verdict is None
    assert attacker.victim.stats()["bytes_in_flight"] == 0


# Idle.


@pytest.mark.skipif(malloc_bytes() is None, reason="malloc does not count here")
def test_a_connection_that_sent_much_gives_the_memory_back():
    """A second after a transfer, room for all its packets is not kept."""
    two = Two().connect()
    with Memory() as memory:
        stream = two.connection.open_stream()
        assert two.connection.send(stream, bytes(2_000_000), fin=True)
        received = 0
        while received < 2_000_000:
            assert two.step()
            received += len(two.peer.read(stream))
        two.run(0.1)
        two.log.clear()
        busy = memory.measure()
        two.run(5)
        two.log.clear()
        assert memory.measure() < busy - 20_000


@pytest.mark.skipif(malloc_bytes() is None, reason="malloc does not count here")
def test_an_idle_connection_holds_little():
    """Both ends of 30 of them, Python's objects included: 80 KiB each at most."""
    near, far = client(), server()

    def settle():
        moved = True
        while moved:
            moved = False
            for source, target in ((near, far), (far, near)):
                for data, _ in source.datagrams_to_send(0.0):
                    target.receive(data, CLIENT, 0.0)
                    moved = True

    with Memory() as memory:
        connections = [near.connect(CLIENT, 0.0) for _ in range(30)]
        settle()
        assert all(each.is_confirmed for each in connections)
        while near.next_event() or far.next_event():
            pass
        assert memory.measure() < 30 * 80 * 1024
