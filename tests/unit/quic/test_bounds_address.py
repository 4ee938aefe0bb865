"""What a stranger can make us send, hold or do, and what an address that is not proven.

Each test states its bound in bytes or in a count.
"""

import random

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.tls import Epoch

from tests.support.bounds import Memory, malloc_bytes
from tests.support.quic import (
    CLIENT,
    INVALID_TOKEN,
    SERVER,
    Attacker,
    Two,
    client,
    frame,
    server,
)
from tests.unit.quic.test_endpoint import first_datagram, header, negotiation, receive

ELSEWHERE = ("10.9.9.9", 9)


def sent_over(far, seconds, start=0.0):
    """Let time pass without a word from anybody; return the bytes that were sent."""
    size = 0
    for tick in range(int(seconds * 20)):
        now = start + tick / 20
        far.handle_timeout(now)
        size += sum(len(data) for data, _ in far.datagrams_to_send(now))
    return size


# Amplification: three bytes out for one in, at most (RFC 9000 section 8.1).


@pytest.mark.parametrize("tail", ["nothing", "garbage", "short", "coalesced"])
def test_a_stranger_cannot_have_more_sent_than_three_times(tail):
    """Whatever follows its Initial, with all probes, padding and closes counted."""
    far = server(handshake_timeout=60)
    noise = random.Random(7)
    first = first_datagram()[2]
    cid = header(first).destination_cid
    received = len(first)
    size = sum(map(len, receive(far, first)))
    for number in range(200):
        now = number / 10
        datagram = {
            "nothing": b"",
            "garbage": first[:18] + noise.randbytes(30),
            "short": b"\x41" + cid + noise.randbytes(21),
            "coalesced": (first[:18] + b"\0\x40\x20" + noise.randbytes(32)) * 20,
        }[tail]
        if datagram:
            received += len(datagram)
            size += sum(map(len, receive(far, datagram, now=now)))
        far.handle_timeout(now)
        size += sum(len(data) for data, _ in far.datagrams_to_send(now))
        assert size <= 3 * received
    assert size >= 1200


def test_whatever_room_is_left_it_is_not_exceeded():
    """However many bytes of the three times are left for the last datagram."""
    first = first_datagram()[2]
    sizes = header(first)
    start = first[: 7 + len(sizes.destination_cid) + len(sizes.source_cid)]
    for extra in range(20, 70):
        # An Initial in too small a datagram: dropped, and counted.
        small = start + b"\0" + (0x4000 | extra).to_bytes(2) + bytes(extra)
        far = server()
        size = sum(map(len, receive(far, first)))
        size += sum(map(len, receive(far, small)))
        size += sent_over(far, 8)
        assert 3600 < size <= 3 * (len(first) + len(small))


def test_a_stranger_cannot_have_a_close_sent_beyond_three_times():
    """A first datagram that breaks a rule is answered, and copies of it less and less."""
    attacker = Attacker(connect=False)
    (first, *_), *_ = attacker.quic.datagrams_to_send(0.0)
    attacker.end.receive(first, CLIENT, 0.0)
    sent = sum(len(data) for data, _ in attacker.end.datagrams_to_send(0.0))
    received = len(first)
    for _ in range(100):
        packet = attacker.seal(Epoch.INITIAL, frame(0x21).ljust(1170, b"\0"))
        received += len(packet)
        attacker.end.receive(packet, CLIENT, 0.0)
        sent += sum(len(data) for data, _ in attacker.end.datagrams_to_send(0.0))
        assert sent <= 3 * received
    assert attacker.end.half_open == 0


def test_answers_without_a_connection_are_smaller_than_what_they_answer():
    """Retry, negotiation, refusal and reset: at most 256 bytes, and for large datagrams."""
    first = first_datagram()[2]
    strange = first[:1] + b"\x0a\x1a\x2a\x3a" + first[5:]
    full = server(max_half_open=1)
    receive(full, first_datagram(102)[2], ("10.0.0.4", 4))
    for far, datagram in (
        (server(retry=True), first), (server(), strange), (full, first),
        (server(), b"\x41" + bytes(30)),
    ):  # fmt: skip
        (answer,) = receive(far, datagram)
        assert len(answer) <= min(256, len(datagram) - 1)
        assert sent_over(far, 1, 1.0) <= 3 * 1200


def test_a_flood_of_what_is_answered_is_answered_at_a_rate():
    """300 answers in the first second at most, whatever mix of resets and refusals."""
    far = server(max_half_open=1)
    receive(far, first_datagram(102)[2], ("10.0.0.4", 4))
    first = first_datagram()[2]
    strange = first[:1] + b"\x0a\x1a\x2a\x3a" + first[5:]
    count = 0
    for number in range(1500):
        datagram = (first, strange, b"\x41" + bytes(60))[number % 3]
        count += len(receive(far, datagram, ("10.1.1.1", 1 + number), number / 1500))
    assert 100 <= count <= 301


def test_waiting_answers_are_bounded():
    """64 of 256 bytes, when nothing can be sent."""
    far = server(retry=True)
    first = first_datagram()[2]
    for number in range(300):
        far.receive(first, ("10.1.1.1", 1 + number), 0.0)
    assert len(far.datagrams_to_send(0.0)) == 64
    assert far.stats()["datagrams_dropped"] == 300 - 64


# Floods of Initial packets.


def test_a_half_open_connection_costs_what_is_stated():
    """At most 64 KiB each, TLS and its Python objects included."""
    far = server()
    firsts = [first_datagram(200 + seed)[2] for seed in range(44)]
    for number in range(4):
        receive(far, firsts[number], ("10.1.1.1", 1 + number))
    with Memory() as memory:
        for number in range(4, 44):
            receive(far, firsts[number], ("10.1.1.1", 1 + number))
        each = memory.measure() / 40
    assert far.half_open == 44
    assert 4096 < each <= 64 * 1024


@pytest.mark.parametrize("addresses", [1, 60])
def test_a_flood_of_initials_cannot_lock_out_a_client(addresses):
    """With Retry a flood from forged addresses leaves nothing, and others get in."""
    far = server(retry=True, max_half_open=4)
    with Memory() as memory:
        for number in range(300):
            first = first_datagram(300 + number)[2]
            receive(far, first, ("10.1.1.1", 1 + number % addresses))
        assert memory.measure() < 300_000
    assert far.connections == far.half_open == 0
    Two(far=far, near=client(9)).connect()
    assert far.stats()["retries_sent"] == 301


def test_a_flood_after_retries_is_capped_and_expires():
    """Real addresses get as far as `max_half_open`; their places come back."""
    far = server(retry=True, max_half_open=6, handshake_timeout=3)
    for number in range(12):
        address = ("10.1.1.1", 1 + number)
        near, _, first = first_datagram(300 + number)
        near.receive(receive(far, first, address)[0], SERVER, 0.0)
        receive(far, near.datagrams_to_send(0.0)[0][0], address)
        assert far.half_open == min(number + 1, 6)
    sent_over(far, 4)
    assert far.connections == far.half_open == 0
    while far.next_event() is not None:
        pass
    Two(far=far, near=client(9), now=5.0).run(1)
    assert far.connections == 1


def test_one_initial_cannot_be_replayed_into_many_connections():
    """Copies of a first datagram belong to the one connection that it made."""
    far = server()
    first = first_datagram()[2]
    for number in range(50):
        far.receive(first, ("10.0.0.1", 1000 + number % 2), 0.0)
    assert far.connections == 1


def test_a_retry_token_proves_one_identifier():
    """Replayed with other identifiers it is refused; with its own it is one client."""
    far = server(retry=True)
    near, _, first = first_datagram()
    near.receive(receive(far, first)[0], SERVER, 0.0)
    second = near.datagrams_to_send(0.0)[0][0]
    for number in range(20):
        receive(far, second[:6] + bytes([number] * 8) + second[14:])
        receive(far, second)
    assert far.connections == 1
    assert far.stats()["refused"] == 20


def test_early_data_is_never_kept():
    """0-RTT packets, first or late or replayed, are dropped where they arrive."""
    far = server()
    first = first_datagram()[2]
    early = bytes([0xD1]) + first[1:16] + b"\x44\xb0" + bytes(1200)
    for number in range(100):
        assert receive(far, early, ("10.0.0.1", number + 1)) == []
    assert far.connections == 0
    assert far.stats()["datagrams_dropped"] == 100
    receive(far, first)
    with Memory() as memory:
        for _ in range(200):
            receive(far, early)
        assert memory.measure() < 16_384


def test_packets_before_their_keys_are_kept_up_to_sixteen():
    """At most 24 KiB a connection, and only while it is half open."""
    far = server(handshake_timeout=3)
    first = first_datagram()[2]
    receive(far, first)
    cid = header(first).destination_cid
    with Memory() as memory:
        for number in range(500):
            far.receive(b"\x41" + cid + bytes([number % 256]) * 1300, CLIENT, 0.0)
        held = memory.measure()
    assert held < 40_000
    if malloc_bytes() is not None:
        assert held > 16 * 1500
    sent_over(far, 4)
    while far.next_event() is not None:
        pass
    assert far.connections == 0


def test_a_slow_handshake_ends_in_time():
    """A ClientHello in pieces, one a second: gone after `handshake_timeout`."""
    far = server(handshake_timeout=3)
    attacker = Attacker(far, connect=False)
    attacker.quic.datagrams_to_send(0.0)
    for number in range(10):
        attacker.now = float(number)
        far.handle_timeout(attacker.now)
        attacker.send(
            frame(0x06, number, 1, b"\x01").ljust(1170, b"\0"), epoch=Epoch.INITIAL
        )
        far.datagrams_to_send(attacker.now)
        if number >= 4:
            break
    assert attacker.events[-1].connection.end.initiator == "handshake_timeout"


# Stateless resets (RFC 9000 section 10.3).


def test_a_reset_tells_nothing_of_another_identifier():
    """The tokens in answers to other identifiers, or of other secrets, all differ."""
    tokens = set()
    for secret in (bytes(32), b"\1" * 32):
        far = server(secret=secret)
        for number in range(40):
            cid = number.to_bytes(8)
            (answer,) = receive(far, b"\x41" + cid + bytes(40))
            tokens.add(answer[-16:])
            (again,) = receive(far, b"\x41" + cid + bytes(40))
            assert again[-16:] == answer[-16:]
            assert again[:-16] != answer[:-16]
    assert len(tokens) == 80


def test_no_reset_for_an_identifier_in_use():
    """Packets to a live connection that cannot be opened are dropped without a word."""
    attacker = Attacker().settle()
    for size in (30, 100, 1200):
        datagram = b"\x41" + attacker.quic._peer_cid.cid + bytes(size)
        assert receive(attacker.end, datagram, ELSEWHERE, attacker.now) == []
        assert receive(attacker.end, datagram, CLIENT, attacker.now) == []
    assert attacker.end.stats()["resets_sent"] == 0
    assert attacker.verdict is None


def test_a_forged_reset_does_not_end_a_connection():
    """15 of 16 bytes of a token are as good as none."""
    secret = bytes(range(32))
    two = Two(far=server(secret=secret)).connect()
    two.run(1)
    cid = {}
    two.lose = lambda to_server, number, data: cid.setdefault("is", data[1:9]) is None
    two.connection.ping()
    two.run(0.1)
    (reset,) = receive(server(secret=secret), b"\x41" + cid["is"] + bytes(60))
    for position in range(-16, 0):
        forged = bytearray(reset)
        forged[position] ^= 1
        two.near.receive(bytes(forged), SERVER, two.now)
    assert two.connection.end is None
    two.near.receive(reset, ELSEWHERE, two.now)
    assert two.connection.end is None
    two.near.receive(reset, SERVER, two.now)
    two.collect()
    assert two.connection.end.initiator == "reset"


# Forged packets of a server that anybody can write.


def test_a_forged_negotiation_must_repeat_both_identifiers():
    """Who has not seen the first datagram cannot end the attempt."""
    near, connection, first = first_datagram()
    true = negotiation(first, [0x6B3343CF])
    for position in range(5, len(true) - 4):
        forged = bytearray(true)
        forged[position] ^= 1
        near.receive(bytes(forged), SERVER, 0.0)
    assert near.next_event() is None
    assert connection.end is None


def test_a_late_retry_changes_nothing():
    """After a packet of the server a Retry is ignored, also a true one."""
    far = server(retry=True)
    near, connection, first = first_datagram()
    (retry,) = receive(far, first)
    other = server()
    for answer in receive(other, first):
        near.receive(answer, SERVER, 0.0)
    near.receive(retry, SERVER, 0.0)
    assert connection.stats()["packets_dropped"] >= 1
    sent = near.datagrams_to_send(0.0)
    assert all(header(data).packet_type != QuicPacketType.RETRY for data, _ in sent)
    assert all(not header(data).token for data, _ in sent)


def test_a_refusal_ends_a_client_once():
    """A server that refuses token after token is no loop: one close."""
    far = server(retry=True)
    near, connection, first = first_datagram()
    near.receive(receive(far, first)[0], SERVER, 0.0)
    second = near.datagrams_to_send(0.0)[0][0]
    (refusal,) = receive(far, second, ELSEWHERE)
    for _ in range(5):
        near.receive(refusal, SERVER, 0.0)
    assert [near.next_event().kind, near.next_event()] == ["closed", None]
    assert connection.end.code == INVALID_TOKEN
    assert near.datagrams_to_send(0.0) == []


# Addresses of a peer that is known (RFC 9000 section 9).


def test_a_moving_peer_cannot_have_more_than_three_times_sent_anywhere():
    """A new address every packet: 4 paths, and 3 times what came from each."""
    attacker = Attacker()
    attacker.send(frame(0x0B, 0, 1, b"x"))
    attacker.pump()
    attacker.victim.send(0, bytes(200_000), fin=True)
    received, sent = {}, {}
    with Memory() as memory:
        for number in range(600):
            source = (f"10.9.{number // 200}.{number % 200}", 9)
            packet = attacker.seal(Epoch.ONE_RTT, frame(0x01))
            received[source] = received.get(source, 0) + len(packet)
            attacker.end.receive(packet, source, attacker.now)
            attacker.now += 0.002
            attacker.end.handle_timeout(attacker.now)
            for data, to in attacker.end.datagrams_to_send(attacker.now):
                sent[to] = sent.get(to, 0) + len(data)
        assert memory.measure() < 700_000
    assert len(sent) > 100
    sent.pop(CLIENT, None)
    assert all(sent[to] <= 3 * received[to] for to in sent)
    assert attacker.victim.stats()["remote_cids"] <= 4


def test_copies_from_other_addresses_make_no_path():
    """What was received already proves nothing of where a copy comes from."""
    attacker = Attacker().settle()
    packet = attacker.seal(Epoch.ONE_RTT, frame(0x01))
    attacker.end.receive(packet, CLIENT, attacker.now)
    attacker.end.datagrams_to_send(attacker.now)
    for number in range(200):
        source = (f"10.9.9.{number}", 9)
        assert receive(attacker.end, packet, source, attacker.now) == []
    assert attacker.victim.address == CLIENT
    assert attacker.victim.stats()["path_changes"] == 0


def test_a_client_does_not_follow_its_server():
    """Packets of the server from another address are dropped (RFC 9000 section 9)."""
    two = Two().connect()
    two.run(1)
    two.peer.ping()
    dropped = two.connection.stats()["packets_dropped"]
    for data, _ in two.far.datagrams_to_send(two.now):
        two.near.receive(data, ELSEWHERE, two.now)
    assert two.connection.stats()["packets_dropped"] > dropped
    assert two.connection.address == SERVER


# Identifiers.


def test_a_chosen_identifier_does_not_reach_another_connection():
    """A first datagram to an identifier in use is that connection's, and dropped."""
    attacker = Attacker().settle()
    first = first_datagram()[2]
    cid = attacker.quic._peer_cid.cid
    for source in (CLIENT, ELSEWHERE):
        receive(attacker.end, first[:6] + cid + first[14:], source, attacker.now)
    assert attacker.end.connections == 1
    assert attacker.verdict is None


def test_first_datagrams_with_short_identifiers_are_dropped():
    """Below 8 bytes, and empty ones (RFC 9000 section 7.2)."""
    far = server(retry=True)
    first = first_datagram()[2]
    for size in range(8):
        datagram = first[:5] + bytes([size]) + first[6 : 6 + size] + first[14:]
        assert receive(far, datagram.ljust(1200, b"\0")) == []
    assert far.connections == 0
    assert far.stats()["datagrams_dropped"] == 8


def test_a_peer_with_our_identifier_gains_nothing():
    """Its packets reach us and ours, sent back to us, are dropped."""
    attacker = Attacker().settle()
    mine = attacker.quic._peer_cid.cid
    attacker.send(frame(0x18, 8, 8, b"\x08", mine, bytes(16)))
    attacker.victim.ping()
    for _ in range(20):
        out = attacker.end.datagrams_to_send(attacker.now)
        if not out:
            break
        for data, _ in out:
            attacker.end.receive(data, CLIENT, attacker.now)
    assert out == []
    assert attacker.verdict is None
    assert attacker.end.connections == 1


def test_a_peer_without_identifiers_works_and_may_issue_none():
    """Zero-length connection IDs (RFC 9000 section 5.1)."""

    def prepare(quic):
        quic._peer_cid.cid = quic._original_destination_connection_id = bytes(8)

    attacker = Attacker(connection_id_length=0, prepare=prepare)
    attacker.send(frame(0x0B, 0, 1, b"x"))
    assert attacker.victim.read(0) == b"x"
    attacker.send(frame(0x18, 1, 0, b"\x08", bytes(8), bytes(16)))
    assert attacker.verdict == 0x0A


# Datagrams.


def test_a_large_datagram_is_taken_whole():
    """65,527 bytes of PINGs, the most UDP carries, are one packet and one ACK."""
    attacker = Attacker().settle()
    attacker.send(frame(0x01) * 65_480)
    attacker.send(frame(0x01) * 65_480)
    assert len(attacker.end.datagrams_to_send(attacker.now)) == 1
    assert attacker.verdict is None


def test_a_datagram_of_tiny_packets_is_one_acknowledgement():
    """Hundreds of Handshake packets coalesced: each opened once, one datagram back."""
    attacker = Attacker(connect=False)
    for data, _ in attacker.quic.datagrams_to_send(0.0):
        attacker.end.receive(data, CLIENT, 0.0)
    for data, _ in attacker.end.datagrams_to_send(0.0):
        attacker.quic.receive_datagram(data, SERVER, 0.0)
    bomb = b"".join(attacker.seal(Epoch.HANDSHAKE, frame(0x01)) for _ in range(800))
    out = receive(attacker.end, bomb)
    assert len(out) == 1
    assert len(out[0]) <= 1200


def test_tiny_undecryptable_packets_are_counted_and_gone():
    """1,000 in a datagram leave no more than their number."""
    attacker = Attacker().settle()
    cid, own = attacker.quic._peer_cid.cid, attacker.quic.host_cid
    tiny = b"\xe1\0\0\0\1\x08" + cid + b"\x08" + own + b"\x14" + bytes(20)
    with Memory() as memory:
        for _ in range(10):
            receive(attacker.end, tiny * 1000, CLIENT, attacker.now)
        assert memory.measure() < 16_384
    assert attacker.victim.stats()["packets_dropped"] >= 10_000


def test_idle_peers_are_dropped():
    """Connections that say nothing end after `idle_timeout`, and leave nothing."""
    far = server(idle_timeout=5)
    for _ in range(5):
        Attacker(far)
    assert far.connections == 5
    sent_over(far, 8)
    while far.next_event() is not None:
        pass
    assert far.connections == 0
