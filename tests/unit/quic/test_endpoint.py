"""Endpoints: who gets in, who is answered without a connection, and what it costs."""

import random
import sys
import threading

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint
from lightning.errors import ConfigError
from tests.support.quic import (
    CLIENT,
    IDENTITY,
    INVALID_TOKEN,
    SERVER,
    Two,
    client,
    original_cid,
    server,
)


def first_datagram(seed=101, **settings):
    """Return a new client and the first datagram it sends."""
    end = Endpoint(
        EngineConfig(**settings), is_client=True, random=random.Random(seed).randbytes
    )
    connection = end.connect(SERVER, 0.0)
    return end, connection, end.datagrams_to_send(0.0)[0][0]


def header(datagram):
    """Parse a datagram's first header."""
    return pull_quic_header(Buffer(data=datagram), host_cid_length=8)


def receive(end, datagram, address=CLIENT, now=0.0):
    """Give one datagram to an endpoint; return its answers."""
    end.receive(datagram, address, now)
    return [data for data, _ in end.datagrams_to_send(now)]


# Setting up.


def test_a_server_needs_an_identity():
    """Otherwise it could not prove itself."""
    with pytest.raises(ConfigError):
        Endpoint(EngineConfig(), is_client=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"active_cids": 1}, {"active_cids": 9}, {"max_datagram": 1199},
        {"max_udp_payload": 65528}, {"congestion": "bbr"}, {"secret": b"short"},
        {"cipher_suites": ()}, {"cipher_suites": (0x1305,)}, {"idle_timeout": -1},
        {"max_streams": 2**60 + 1}, {"ack_delay": 16.384},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    """Every setting has a range, and says so."""
    with pytest.raises(ConfigError):
        EngineConfig(**settings)


def test_an_ed25519_identity_works():
    """Not only P-256."""
    made = Identity.generate()
    key = Ed25519PrivateKey.generate()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(made.certificate.subject)
        .issuer_name(made.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(made.certificate.not_valid_before_utc)
        .not_valid_after(made.certificate.not_valid_after_utc)
        .sign(key, None)
    )
    far = Endpoint(EngineConfig(), is_client=False, identity=Identity(certificate, key))
    two = Two(far=far).connect()
    assert two.connection.certificate == Identity(certificate, key).der


@pytest.mark.parametrize("suite", [0x1301, 0x1302, 0x1303])
def test_every_cipher_suite_works(suite):
    """Each alone carries a connection."""
    two = Two(near=client(cipher_suites=(suite,))).connect()
    two.connection.send(two.connection.open_stream(), b"x" * 10_000, fin=True)
    two.run()
    assert two.peer.read(0) == b"x" * 10_000
    assert two.connection.suite == suite


def test_the_preferred_suite_is_aes_128():
    """Fastest of the three with AES in hardware."""
    assert Two().connect().connection.suite == 0x1301


# Retry and tokens.


def test_retry_proves_an_address():
    """One more round trip, no state before it."""
    two = Two(far=server(retry=True))
    two.run(0.0101)
    assert two.far.connections == 0
    two.connect()
    assert two.far.stats()["retries_sent"] == 1
    assert two.peer.stats()["packets_received"] > 0


def test_a_retry_token_is_bound():
    """Another address, port, identifier or time, or a flipped bit: INVALID_TOKEN."""
    far = server(retry=True)
    near, _, first = first_datagram()
    (retry,) = receive(far, first)
    assert header(retry).packet_type == QuicPacketType.RETRY
    near.receive(retry, SERVER, 0.0)
    ((second, _),) = near.datagrams_to_send(0.0)
    token = header(second).token
    at = second.index(token)
    cid_at = 6

    def flip(position):
        return (
            second[:position] + bytes([second[position] ^ 1]) + second[position + 1 :]
        )

    for datagram, address, now in (
        (second, ("10.0.0.1", 1001), 0.0),
        (second, ("10.0.0.3", 1000), 0.0),
        (flip(at + 1), CLIENT, 0.0),
        (flip(at + len(token) - 1), CLIENT, 0.0),
        (flip(cid_at), CLIENT, 0.0),
    ):
        (answer,) = receive(far, datagram, address, now)
        assert header(answer).packet_type == QuicPacketType.INITIAL
        assert len(answer) < 100
        assert far.connections == 0
    assert far.stats()["refused"] == 5
    receive(far, second, CLIENT, 1.0)
    assert far.connections == 1
    # Another process with the same secret.
    late = server(retry=True)
    (answer,) = receive(late, second, CLIENT, 16.0)
    assert header(answer).packet_type == QuicPacketType.INITIAL
    assert late.connections == 0


def test_an_invalid_token_closes_the_client():
    """With INVALID_TOKEN (RFC 9000 section 8.1.3)."""
    far = server(retry=True)
    near, connection, first = first_datagram()
    near.receive(receive(far, first)[0], SERVER, 0.0)
    second = near.datagrams_to_send(0.0)[0][0]
    near.receive(receive(far, second, ("10.0.0.7", 7))[0], SERVER, 0.0)
    assert near.next_event().kind == "closed"
    assert connection.end.code == INVALID_TOKEN


def test_garbage_in_place_of_a_token_gets_a_retry():
    """What is not one of ours proves nothing and is no error."""
    far = server(retry=True)
    near = client()
    near.connect(SERVER, 0.0, token=b"N" + bytes(60))
    first = near.datagrams_to_send(0.0)[0][0]
    assert header(receive(far, first)[0]).packet_type == QuicPacketType.RETRY


def test_a_token_of_before_saves_the_retry_once():
    """NEW_TOKEN (RFC 9000 section 8.1.3): good from any port, once, while fresh."""
    far = server(retry=True, token_lifetime=100)
    two = Two(far=far).connect()
    token = two.connection.token
    assert token
    sent = far.stats()["retries_sent"]
    again = Two(client(3), far, token=token, now=1.0).connect()
    assert far.stats()["retries_sent"] == sent
    Two(client(4), far, token=token, now=2.0).connect()
    assert far.stats()["retries_sent"] == sent + 1
    Two(client(5), far, token=again.connection.token, now=200.0).run(1)
    assert far.stats()["retries_sent"] == sent + 2


def test_a_client_uses_the_token_that_its_server_gave():
    """For the next connection to the same address (RFC 9000 section 8.1.3)."""
    far = server(retry=True)
    near = client()
    two = Two(near, far).connect()
    assert far.stats()["retries_sent"] == 1
    again = Two(near, far, now=two.now).connect()
    assert far.stats()["retries_sent"] == 1
    # It gave another one meanwhile; two at a time are one too many.
    for number in (0, 1):
        near.connect(SERVER, again.now)
        for data, _ in near.datagrams_to_send(again.now):
            far.receive(data, CLIENT, again.now)
        far.datagrams_to_send(again.now)
        assert far.stats()["retries_sent"] == 1 + number


def test_retry_from_a_number_of_half_open_connections():
    """Under load only."""
    far = server(retry=True, retry_from=2)
    for seed in range(4):
        receive(far, first_datagram(100 + seed)[2], ("10.0.1.1", seed + 1))
    assert far.half_open == 2
    assert far.stats()["retries_sent"] == 2


def test_a_client_takes_one_retry_and_only_a_true_one():
    """RFC 9000 section 17.2.5.2."""
    far = server(retry=True)
    near, connection, first = first_datagram()
    (retry,) = receive(far, first)
    near.receive(retry[:-1] + bytes([retry[-1] ^ 1]), SERVER, 0.0)
    assert near.datagrams_to_send(0.0) == []
    near.receive(retry, SERVER, 0.0)
    assert len(near.datagrams_to_send(0.0)) == 1
    near.receive(receive(far, first)[0], SERVER, 0.0)
    assert near.datagrams_to_send(0.0) == []
    assert connection.stats()["packets_dropped"] == 2


# Versions.


def test_an_unknown_version_is_answered_with_ours():
    """RFC 9000 section 6.1."""
    far = server()
    first = first_datagram()[2]
    strange = first[:1] + b"\x0a\x1a\x2a\x3a" + first[5:]
    (answer,) = receive(far, strange)
    told = header(answer)
    assert told.packet_type == QuicPacketType.VERSION_NEGOTIATION
    assert 1 in told.supported_versions
    assert told.destination_cid == header(first).source_cid
    assert told.source_cid == header(first).destination_cid
    # Not for a small one, and never for an answer itself.
    assert receive(far, strange[:1199]) == []
    assert receive(far, answer.ljust(1200, b"\0")) == []
    assert far.connections == 0


def negotiation(first, versions):
    """Build a Version Negotiation packet that answers a first datagram."""
    asked = header(first)
    return encode_quic_version_negotiation(
        source_cid=asked.destination_cid, destination_cid=asked.source_cid,
        supported_versions=versions,
    )  # fmt: skip


def test_a_client_gives_up_without_a_common_version():
    """RFC 9000 section 6.2."""
    near, connection, first = first_datagram()
    near.receive(negotiation(first, [0x6B3343CF]), SERVER, 0.0)
    assert near.next_event().kind == "closed"
    assert connection.end.initiator == "version"


def test_a_client_ignores_untrue_negotiation():
    """One that lists our version, or comes after a packet of the server."""
    near, connection, first = first_datagram()
    near.receive(negotiation(first, [1, 0x6B3343CF]), SERVER, 0.0)
    assert near.next_event() is None
    two = Two().connect()
    two.near.receive(negotiation(first, [0x6B3343CF]), SERVER, two.now)
    two.run()
    assert connection.end is None
    assert two.connection.end is None


# Bounds.


def test_garbage_leaves_nothing_behind():
    """An Initial that cannot be opened makes no connection."""
    far = server()
    first = first_datagram()[2]
    for _ in range(200):
        assert receive(far, first[:-1] + b"\xff") == []
    assert far.connections == far.half_open == 0
    assert far.next_timeout() is None
    assert far.next_event() is None


def test_half_open_connections_are_bounded():
    """Above the bound new clients are refused, and places come back in time."""
    far = server(max_half_open=5, handshake_timeout=3)
    for seed in range(10):
        receive(far, first_datagram(100 + seed)[2], ("10.0.1.1", seed + 1))
    assert far.half_open == 5
    assert far.stats()["refused"] == 5
    for tick in range(1, 500):
        far.handle_timeout(tick / 100)
        far.datagrams_to_send(tick / 100)
    assert far.connections == far.half_open == 0
    while far.next_event() is not None:
        pass
    Two(far=far).connect()


def test_connections_are_bounded():
    """A full server refuses; the client hears CONNECTION_REFUSED."""
    far = server(max_connections=1)
    Two(far=far).connect()
    near, connection, first = first_datagram(109)
    near.receive(receive(far, first)[0], SERVER, 0.0)
    assert near.next_event().kind == "closed"
    assert connection.end.code == 0x02


def test_an_unproven_client_gets_three_times_what_it_sent():
    """RFC 9000 section 8.1; also for probes, over ten seconds of silence."""
    far = server(handshake_timeout=60)
    first = first_datagram()[2]
    size = sum(map(len, receive(far, first)))
    for tick in range(1000):
        far.handle_timeout(tick / 100)
        size += sum(len(data) for data, _ in far.datagrams_to_send(tick / 100))
    assert 1200 <= size <= 3600


def test_small_first_datagrams_are_dropped():
    """RFC 9000 section 14.1."""
    far = server()
    assert receive(far, first_datagram()[2][:1199]) == []
    assert far.connections == 0


@pytest.mark.parametrize("size", [1, 5, 20, 21, 100, 1200, 65_536])
def test_noise_is_nothing(size):
    """Random datagrams of any size neither raise nor stay."""
    far = server()
    noise = random.Random(size)
    for _ in range(50):
        far.receive(noise.randbytes(size), CLIENT, 0.0)
        assert all(len(data) < max(size, 22) for data, _ in far.datagrams_to_send(0.0))
    assert far.connections == 0


def test_every_first_byte_of_a_real_handshake_may_be_damaged():
    """Any single damaged byte of the first datagram is dropped or does no harm."""
    first = first_datagram()[2]
    for position in range(400):
        far = server()
        damaged = bytearray(first)
        damaged[position] ^= 0x55
        receive(far, bytes(damaged))
        assert far.connections <= 1


# Stateless reset.


def test_a_restarted_server_says_so_at_once():
    """With the secret kept, its peers learn of it with their next packet."""
    secret = bytes(range(32))
    two = Two(far=server(secret=secret)).connect()
    two.run(1)
    two.far = server(secret=secret)
    two.connection.ping()
    two.run(0.05)
    assert two.connection.end.initiator == "reset"
    assert two.near.connections == 0


def test_another_secret_proves_nothing():
    """A reset with a token of somebody else is noise."""
    two = Two(far=server(secret=bytes(32))).connect()
    two.run(1)
    two.far = server(secret=b"\1" * 32)
    two.connection.ping()
    two.run(0.05)
    assert two.far.stats()["resets_sent"] == 1
    assert two.connection.end is None


def test_resets_are_shorter_and_rationed():
    """Each is smaller than what it answers; there is a limit to their number."""
    far = server()
    short = b"\x43" + bytes(40)
    (answer,) = receive(far, short)
    assert 21 <= len(answer) < len(short)
    assert receive(far, short[:21]) == []
    count = sum(len(receive(far, short)) for _ in range(1000))
    assert count <= 100
    assert len(receive(far, short, now=10.0)) == 1


def test_two_endpoints_do_not_reset_each_other_for_ever():
    """What one sends, the other may answer, but shorter every time."""
    ends = [server(), server(secret=bytes(32))]
    packet = b"\x43" + bytes(1000)
    for turn in range(100):
        out = receive(ends[turn % 2], packet)
        if not out:
            break
        packet = out[0]
    assert turn < 50


# Many.


def test_many_connections_find_their_own():
    """Fifty clients on one endpoint, each with its own bytes."""
    far = server()
    near = client()
    connections = [near.connect(SERVER, 0.0) for _ in range(50)]

    def pump(now):
        while True:
            out = near.datagrams_to_send(now)
            for data, _ in out:
                far.receive(data, CLIENT, now)
            back = far.datagrams_to_send(now)
            for data, _ in back:
                near.receive(data, SERVER, now)
            if not out and not back:
                return

    pump(0.0)
    for number, connection in enumerate(connections):
        assert connection.is_connected
        connection.send(connection.open_stream(), b"%d" % number, fin=True)
    pump(0.1)
    while (event := far.next_event()) is not None:
        if event.kind == "readable":
            body = event.connection.read(event.stream_id)
            event.connection.send(event.stream_id, body[::-1], fin=True)
    pump(0.2)
    for number, connection in enumerate(connections):
        assert connection.read(0) == (b"%d" % number)[::-1]
    assert near.connections == far.connections == 50


def carry(near, far, now):
    """Move what both have to send, once."""
    for data, _ in near.datagrams_to_send(now):
        far.receive(data, CLIENT, now)
    for data, _ in far.datagrams_to_send(now):
        near.receive(data, SERVER, now)
    for end in (near, far):
        if (end.next_timeout() or 1e9) <= now:
            end.handle_timeout(now)


def collect(far, received):
    """Read what has come to a server."""
    while (event := far.next_event()) is not None:
        if event.kind == "readable":
            body = event.connection.read(event.stream_id)
            received[event.stream_id] = received.get(event.stream_id, b"") + body


def test_threads_may_share_an_endpoint():
    """Writers in threads of their own, while this one moves datagrams."""
    near, far = client(), server()
    connection = near.connect(SERVER, 0.0)
    received = {}
    now = 0.0
    while not connection.is_confirmed:
        carry(near, far, now)

    def write(letter):
        for _ in range(20):
            stream = connection.open_stream()
            for _ in range(10):
                connection.send(stream, letter * 500)
            connection.send(stream, b"", fin=True)

    writing = [threading.Thread(target=write, args=(bytes([n]),)) for n in range(4)]
    for thread in writing:
        thread.start()
    for _ in range(20_000):
        now += 0.001
        carry(near, far, now)
        collect(far, received)
        if sum(map(len, received.values())) == 80 * 5000:
            break
    for thread in writing:
        thread.join(20)
    assert len(received) == 80
    assert all(len(set(body)) == 1 and len(body) == 5000 for body in received.values())


def test_nothing_is_left_after_many_streams():
    """Blocks and stream records come back to zero."""
    two = Two().connect()
    two.connection.open_stream()
    two.connection.release(0)
    for _ in range(20):
        for _ in range(20):
            stream = two.connection.open_stream()
            two.connection.send(stream, bytes(20_000), fin=True)
        two.run(0.5)
        for stream in {event.stream_id for event in two.far_events}:
            two.peer.read(stream)
            two.peer.send(stream, b"", fin=True)
            two.peer.release(stream)
        two.far_events.clear()
        two.run(0.5)
        for stream in {each.stream_id for each in two.near_events if each.stream_id}:
            two.connection.read(stream)
            two.connection.release(stream)
        two.near_events.clear()
        two.run(0.5)
    for end in (two.near, two.far):
        assert end.stats()["streams_in_use"] == 0
        assert end.stats()["blocks_in_use"] == 0


def test_large_bodies_are_given_back():
    """A referenced object is released once it is acknowledged, also after a close."""
    two = Two().connect()
    body = bytes(300_000)
    before = sys.getrefcount(body)
    stream = two.connection.open_stream()
    two.connection.send(stream, body, fin=True)
    assert sys.getrefcount(body) == before + 1
    while not two.peer.at_end(stream):
        two.step()
        two.peer.read(stream)
    two.run()
    assert sys.getrefcount(body) == before
    two.connection.send(two.connection.open_stream(), body)
    two.connection.close()
    two.run(5)
    two.near_events.clear()
    two.connection = None
    two.near.handle_timeout(two.now)
    assert sys.getrefcount(body) == before


def test_segments_are_of_one_size():
    """What one system call sends is cut into equal datagrams, the last but shorter."""
    two = Two(delay=0.001).connect().widen()
    two.connection.send(two.connection.open_stream(), bytes(100_000), fin=True)
    sent = two.near.transmit(two.now)
    assert len(sent) < 10
    data, _, _, segment = sent[0]
    assert segment == 1452
    assert len(data) > 5 * segment


def test_an_identity_is_presented():
    """The client sees the server's certificate."""
    assert Two().connect().connection.certificate == IDENTITY.der


def test_original_identifiers_differ():
    """Clients choose theirs at random."""
    assert original_cid(first_datagram(101)[2]) != original_cid(first_datagram(102)[2])


# Time.


def test_a_dial_has_no_timer_in_the_past_before_its_first_datagram_leaves():
    """A driver's thread may look at it between the dial and the first flush."""
    end = client()
    connection = end.connect(SERVER, 1000.0)
    assert end.next_timeout() > 1000.0
    end.handle_timeout(1000.5)
    assert connection.stats()["timeouts"] == 0
