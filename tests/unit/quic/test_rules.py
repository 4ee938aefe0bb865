"""Rules of RFC 9000 and 9001 that no module keeps alone, on packets and in virtual time."""

from itertools import pairwise

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicPacketType,
    QuicPreferredAddress,
    pull_ack_frame,
    pull_quic_header,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.tls import Epoch

from tests.support.bounds import HostileServer
from tests.support.quic import (
    CLIENT,
    IDENTITY,
    SERVER,
    STREAM_STATE,
    TRANSPORT_PARAMETER,
    Attacker,
    Two,
    client,
    frame,
    original_cid,
    server,
)
from tests.unit.quic.test_connection import half_way
from tests.unit.quic.test_endpoint import first_datagram, header, receive

MOVED = ("10.0.0.1", 1001)
ELSEWHERE = ("10.9.9.9", 9)


class Served:
    """A client of ours and an aioquic server that may say other transport parameters.

    Attributes:
        end: The client's endpoint.
        connection: Its connection.
        quic: The server.
    """

    def __init__(self, *, through_retry=False, retry_source=None, **changes):
        self.now = 0.0
        self.end = client()
        self.connection = self.end.connect(SERVER, self.now)
        first = latest = self.end.datagrams_to_send(self.now)[0][0]
        if through_retry:
            (retry,) = receive(server(retry=True), first)
            self.end.receive(retry, SERVER, self.now)
            latest = self.end.datagrams_to_send(self.now)[0][0]
            retry_source = retry_source or header(retry).source_cid
        configuration = QuicConfiguration(
            is_client=False, alpn_protocols=["btlightning"]
        )
        configuration.certificate = IDENTITY.certificate
        configuration.private_key = IDENTITY.key
        self.quic = QuicConnection(
            configuration=configuration,
            original_destination_connection_id=original_cid(first),
            retry_source_connection_id=retry_source,
        )
        ours = self.quic._serialize_transport_parameters

        def serialize():
            said = pull_quic_transport_parameters(Buffer(data=ours()))
            for name, value in changes.items():
                setattr(said, name, value)
            buffer = Buffer(capacity=2048)
            push_quic_transport_parameters(buffer, said)
            return buffer.data

        self.quic._serialize_transport_parameters = serialize
        self.quic.receive_datagram(latest, CLIENT, self.now)
        self.pump()

    def pump(self):
        """Let both talk for a second; return where the client's datagrams went."""
        went = set()
        for _ in range(20):
            self.now += 0.05
            for data, _ in self.quic.datagrams_to_send(self.now):
                self.end.receive(data, SERVER, self.now)
            self.end.handle_timeout(self.now)
            for data, to in self.end.datagrams_to_send(self.now):
                went.add(to)
                self.quic.receive_datagram(data, CLIENT, self.now)
            while self.end.next_event() is not None:
                pass
        return went


# Connection IDs (RFC 9000 sections 7.2 and 7.3).


@pytest.mark.parametrize(
    "changes",
    [
        {"original_destination_connection_id": None},
        {"original_destination_connection_id": b"another!"},
        {"initial_source_connection_id": None},
        {"initial_source_connection_id": b"another!"},
        {"retry_source_connection_id": b"no retry"},
    ],
)
def test_a_client_compares_what_its_server_vouches_for(changes):
    """Whoever rewrote the identifiers on the way is found out (7.3)."""
    served = Served(**changes)
    assert served.connection.end.code == TRANSPORT_PARAMETER
    assert served.connection.end.initiator == "local"
    assert Served().connection.is_confirmed


@pytest.mark.parametrize("said", [None, b"another!"])
def test_a_client_compares_the_identifier_of_its_retry(said):
    """Absent or another after a Retry: it was forged (7.3)."""
    served = Served(through_retry=True, retry_source_connection_id=said)
    assert served.connection.end.code == TRANSPORT_PARAMETER
    assert Served(through_retry=True).connection.is_confirmed


def test_a_source_identifier_does_not_change():
    """Authentic packets with another one are dropped (7.2)."""
    attacker = half_way()
    own = attacker.quic.host_cid
    attacker.quic.host_cid = b"another!"
    dropped = attacker.end.stats()["connections"]
    attacker.send(frame(0x1A, b"12345678"), epoch=Epoch.HANDSHAKE)
    assert attacker.end.connections == dropped
    assert not attacker.events
    attacker.quic.host_cid = own
    attacker.pump()
    assert attacker.victim.is_connected
    assert attacker.verdict is None
    assert attacker.victim.stats()["packets_dropped"] == 1


def test_a_preferred_address_is_not_followed():
    """The connection stays where it is (9.6); its identifier counts as issued."""
    preferred = QuicPreferredAddress(
        ipv4_address=("10.0.0.9", 9), ipv6_address=None, connection_id=b"preferred",
        stateless_reset_token=bytes(16),
    )  # fmt: skip
    served = Served(preferred_address=preferred)
    assert served.connection.is_confirmed
    served.connection.send(served.connection.open_stream(), b"x" * 5000, fin=True)
    assert served.pump() == {SERVER}
    assert served.connection.end is None


def test_a_server_has_no_token_for_its_client():
    """An Initial packet with one is dropped (17.2.2)."""
    near, connection, first = first_datagram()
    cid, own = header(first).destination_cid, header(first).source_cid
    keys = CryptoPair()
    keys.setup_initial(cid, is_client=False, version=1)
    for token in (b"\x05token", b"\0"):
        head = b"\xc1\0\0\0\1\x08" + own + b"\x08" + bytes(8) + token
        payload = frame(0x1C, 0x02, 0, 0).ljust(1100, b"\0")
        head += (0x4000 | (len(payload) + 18)).to_bytes(2) + b"\0\0"
        near.receive(keys.encrypt_packet(head, payload, 0), SERVER, 0.0)
        event = near.next_event()
        assert (event is None) is (token != b"\0")
    assert connection.end.code == 0x02


# Who is answered without a connection (sections 5.2.1 and 6).


def test_a_client_endpoint_lets_nobody_in():
    """First datagrams and unknown versions are for servers; nothing comes back."""
    near = client()
    first = first_datagram()[2]
    assert receive(near, first) == []
    assert receive(near, first[:1] + b"\x0a\x1a\x2a\x3a" + first[5:]) == []
    assert near.connections == 0
    assert near.stats()["datagrams_dropped"] == 2


def test_a_list_of_versions_has_one_that_nobody_speaks():
    """It follows the pattern that is reserved for this (6.3)."""
    first = first_datagram()[2]
    (answer,) = receive(server(), first[:1] + b"\x0a\x1a\x2a\x3a" + first[5:])
    strange = [each for each in header(answer).supported_versions if each != 1]
    assert strange
    assert all(each & 0x0F0F0F0F == 0x0A0A0A0A for each in strange)


# Acknowledgements.


def test_the_wait_for_keys_is_reported_as_delay():
    """A packet that came before its keys counts from when it came (13.2.5)."""
    far = server()
    attacker = Attacker(far, connect=False)
    for data, _ in attacker.quic.datagrams_to_send(0.0):
        far.receive(data, CLIENT, 0.0)
    for data, _ in far.datagrams_to_send(0.0):
        attacker.quic.receive_datagram(data, SERVER, 0.0)
    finished = attacker.quic.datagrams_to_send(0.0)
    attacker.send(frame(0x01))
    assert not attacker.events
    attacker.now = 0.05
    for data, _ in finished:
        far.receive(data, CLIENT, attacker.now)
    attacker.collect()
    delays = []
    crypto = attacker.quic._cryptos[Epoch.ONE_RTT]
    for data, _ in far.datagrams_to_send(attacker.now):
        buffer = Buffer(data=data)
        while not buffer.eof():
            start = buffer.tell()
            head = pull_quic_header(buffer, host_cid_length=8)
            end = start + head.packet_length
            if data[start] & 0x80 == 0:
                _, plain, _ = crypto.decrypt_packet(
                    data[start:end], buffer.tell() - start, 0
                )
                if plain[0] == 0x02:
                    delays.append(pull_ack_frame(Buffer(data=plain[1:]))[1] << 3)
            buffer.seek(end)
    assert delays == [50_000]


def answered(attacker):
    """Return the payload and the number of the one packet that comes back."""
    ((data, _),) = attacker.end.datagrams_to_send(attacker.now)
    crypto = attacker.quic._cryptos[Epoch.ONE_RTT]
    _, plain, number = crypto.decrypt_packet(data, 9, 0)
    return plain, number


def test_ranges_that_the_peer_knows_of_are_forgotten():
    """Once it has acknowledged the ACK that told them, but for 128 numbers (13.2.4)."""
    attacker = Attacker().settle()

    def told():
        attacker.seal(Epoch.ONE_RTT, frame(0x01))
        attacker.send(frame(0x01))
        plain, number = answered(attacker)
        assert plain[0] == 0x02
        ranges, _ = pull_ack_frame(Buffer(data=plain[1:]))
        return len(ranges), number

    counts = [told() for _ in range(100)]
    assert counts[-1][0] == 64
    attacker.send(frame(0x02, counts[-1][1], 0, 0, 0))
    attacker.end.datagrams_to_send(attacker.now)
    assert [told()[0] for _ in range(30)][-1] == 64
    attacker.send(frame(0x02, told()[1], 0, 0, 0))
    attacker.end.datagrams_to_send(attacker.now)
    for _ in range(70):
        attacker.send(frame(0x01))
        attacker.send(frame(0x01))
        last = answered(attacker)[1]
    attacker.send(frame(0x02, last, 0, 0, 0))
    attacker.end.datagrams_to_send(attacker.now)
    assert told()[0] <= 3


def test_acknowledgements_of_many_ranges_ask_for_one():
    """Every ninth that goes alone has a PING, or nothing would be forgotten (13.2.4)."""
    attacker = Attacker().settle()
    pings = []
    for number in range(40):
        attacker.seal(Epoch.ONE_RTT, frame(0x01))
        attacker.send(frame(0x01))
        plain, _ = answered(attacker)
        buffer = Buffer(data=plain[1:])
        pull_ack_frame(buffer)
        if plain[1 + buffer.tell() :].rstrip(b"\0") == b"\1":
            pings.append(number)
    assert len(pings) >= 3
    assert {after - before for before, after in pairwise(pings)} == {9}


# Moves (section 9).


def datagrams(two, seconds, address):
    """Let time pass; return the datagrams of the server to an address."""
    seen = []

    def watch(to_server, _number, data):
        if not to_server:
            seen.append(data)
        return False

    two.lose = watch
    until = two.now + seconds
    out = []
    while True:
        for data, to, ecn, segment in two.far.transmit(two.now):
            for start in range(0, len(data), segment):
                if to == address:
                    out.append(data[start : start + segment])
                two.flying.append(
                    (two.now + two.delay, False, data[start : start + segment], to, ecn)
                )
        if not two.step(until):
            return out


def test_a_challenge_is_large_where_it_may_be():
    """1200 bytes, or what the amplification limit leaves and 1200 afterwards (8.2.1)."""
    two = Two().connect().widen()
    two.source = MOVED
    two.connection.send(two.connection.open_stream(), bytes(1000), fin=True)
    assert max(map(len, datagrams(two, 1, MOVED))) == 1200
    two.source = ("10.0.0.1", 1002)
    two.connection.ping()
    sent = [len(data) for data in datagrams(two, 1, two.source)]
    assert 64 <= sent[0] < 200
    assert 1200 in sent[1:]
    assert two.peer.address == two.source
    assert two.peer.end is None


def test_an_answer_goes_where_its_challenge_came_from():
    """On that path, once, in 1200 bytes if they may be sent (8.2.2)."""
    attacker = Attacker().settle()
    packet = attacker.seal(Epoch.ONE_RTT, frame(0x1A, b"12345678").ljust(1160, b"\0"))
    attacker.end.receive(packet, ELSEWHERE, attacker.now)
    out = attacker.end.datagrams_to_send(attacker.now)
    assert [(len(data), to) for data, to in out] == [(1200, ELSEWHERE)]
    crypto = attacker.quic._cryptos[Epoch.ONE_RTT]
    _, plain, _ = crypto.decrypt_packet(out[0][0], 9, 0)
    assert plain.count(b"\x1b12345678") == 1
    assert attacker.end.datagrams_to_send(attacker.now + 1) == []
    assert attacker.victim.address == CLIENT


def test_another_address_gets_another_identifier():
    """An observer of both paths cannot tell that they are one connection's (9.5)."""
    two = Two().connect()
    two.run(1)
    before = {data[1:9] for data in datagrams(two, 0.1, CLIENT)}
    two.peer.ping()
    before |= {data[1:9] for data in datagrams(two, 0.1, CLIENT)}
    two.source = MOVED
    two.connection.ping()
    after = {data[1:9] for data in datagrams(two, 1, MOVED)}
    assert len(before) == 1
    assert after
    assert not after & before


def test_only_the_newest_packet_moves_a_connection():
    """What was sent before the move and arrives after it does not undo it (9.3)."""
    attacker = Attacker().settle()
    late = attacker.seal(Epoch.ONE_RTT, frame(0x0B, 0, 1, b"x"))
    attacker.send(frame(0x01), source=MOVED)
    assert attacker.victim.address == MOVED
    attacker.end.receive(late, CLIENT, attacker.now)
    assert attacker.victim.read(0) == b"x"
    assert attacker.victim.address == MOVED


def test_the_path_of_before_is_asked():
    """After a move it gets challenges until it fails, and nothing else (9.3.3)."""
    two = Two().connect()
    two.run(1)
    two.source = MOVED
    two.connection.ping()
    sent = datagrams(two, 20, CLIENT)
    assert [len(data) for data in sent] == [1200, 1200, 1200]
    assert two.peer.address == MOVED
    assert two.peer.end is None


def test_a_forwarder_cannot_keep_a_connection():
    """Copies that come first move it; the next answer from the true address moves it
    back (9.3.3)."""
    two = Two().connect()
    two.run(1)
    two.connection.ping()
    for data, _ in two.near.datagrams_to_send(two.now):
        two.far.receive(data, ELSEWHERE, two.now)
    assert two.peer.address == ELSEWHERE
    # As soon as its challenge is answered.
    two.run(0.021)
    assert two.peer.address == CLIENT
    two.run(20)
    assert two.peer.address == CLIENT
    assert two.peer.end is None
    assert two.peer.stats()["path_changes"] == 2


def test_an_address_that_changes_with_every_packet_is_no_endless_exchange():
    """Each answer moves the connection, but does not ask the other path again (9.3.3)."""
    two = Two().connect()
    two.run(1)

    def flap(to_server, number, _data):
        # As a network that takes two ways out would: each packet has another source.
        two.source = (CLIENT, MOVED)[number % 2]
        return False

    two.lose = flap
    two.connection.ping()
    two.run(30)
    before = two.count[False]
    two.run(30)
    assert two.peer.end is None
    assert two.count[False] - before < 10


def test_the_path_of_before_is_kept_until_the_new_one_is_proven():
    """Also when its own answer comes by the new one (8.2.3)."""
    attacker = Attacker().settle()
    attacker.send(frame(0x01).ljust(1100, b"\0"), source=MOVED)
    while attacker.now < 20 and attacker.victim.address == MOVED:
        attacker.now += 0.01
        attacker.end.handle_timeout(attacker.now)
        for data, to in attacker.end.datagrams_to_send(attacker.now):
            if to == CLIENT:
                attacker.quic.receive_datagram(data, SERVER, attacker.now)
        for data, _ in attacker.quic.datagrams_to_send(attacker.now):
            attacker.end.receive(data, MOVED, attacker.now)
    attacker.collect()
    assert attacker.victim.end is None
    assert attacker.victim.address == CLIENT


def test_a_narrow_path_is_better_than_none():
    """It takes no 1200 bytes, but there is no other (8.2.1)."""
    two = Two().connect()
    two.run(1)
    two.source = MOVED
    two.lose = lambda to_server, number, data: not to_server and len(data) >= 1200
    two.connection.ping()
    two.run(20)
    two.connection.send(two.connection.open_stream(), b"x", fin=True)
    two.run(1)
    assert two.peer.read(0) == b"x"
    assert two.peer.address == MOVED
    assert two.peer.end is None


def test_a_port_keeps_what_was_learnt_and_a_host_does_not():
    """A rebinding is on the path of before, most likely (9.4)."""
    for address, kept in ((MOVED, True), (ELSEWHERE, False)):
        two = Two().connect().widen()
        assert two.peer.stats()["mtu"] == 1452
        two.source = address
        two.connection.ping()
        two.step()
        while two.peer.stats()["path_changes"] == 0:
            two.step()
        stats = two.peer.stats()
        assert (stats["mtu"] == 1452) is kept
        assert (stats["rtt"] < 300_000) is kept


def test_challenges_that_are_lost_are_no_congestion():
    """The path of before is dead after a rebinding; the window stays (9.4)."""
    two = Two().connect()
    two.run(1)
    before = two.peer.stats()
    two.source = MOVED
    sent = []

    def watch(to_server, _number, data):
        sent.append((to_server, len(data)))
        return False

    two.lose = watch
    for _ in range(200):
        two.connection.ping()
        two.run(0.05)
    assert sent.count((False, 1200)) >= 4
    after = two.peer.stats()
    assert after["packets_lost"] == before["packets_lost"] == 0
    assert after["congestion_window"] >= before["congestion_window"]
    assert after["bytes_in_flight"] == 0
    assert after["timeouts"] == before["timeouts"]


def test_nobody_moves_before_the_handshake_is_confirmed():
    """Packets from elsewhere are dropped until then (9)."""
    attacker = half_way()
    finished = [data for data, _ in attacker.quic.datagrams_to_send(0.0)]
    for data in finished:
        attacker.end.receive(data, ELSEWHERE, 0.0)
    attacker.collect()
    assert not attacker.events
    for data in finished:
        attacker.end.receive(data, CLIENT, 0.0)
    attacker.collect()
    assert attacker.victim.is_connected


# The end (section 10).


def test_a_draining_end_says_nothing():
    """Whatever comes, until its time is over (10.2.2)."""
    attacker = Attacker().settle()
    attacker.send(frame(0x1D, 5, 3, b"bye"))
    assert attacker.victim.end.initiator == "peer"
    assert attacker.end.connections == 1
    for _ in range(50):
        attacker.send(frame(0x01))
        assert attacker.end.datagrams_to_send(attacker.now) == []
    attacker.now += 5
    attacker.end.handle_timeout(attacker.now)
    assert attacker.end.connections == 0
    assert attacker.end.datagrams_to_send(attacker.now) == []


# TLS (RFC 9001 section 4).


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_client_hello_may_take_two_datagrams(order):
    """In either order, as a large one is (4.3)."""

    def prepare(quic):
        names = [f"{n}" * 200 for n in range(8)]
        quic.configuration.alpn_protocols = [*names, "btlightning"]

    attacker = Attacker(connect=False, prepare=prepare)
    sent = [data for data, _ in attacker.quic.datagrams_to_send(0.0)]
    assert len(sent) == 2
    for number in order:
        attacker.end.receive(sent[number], CLIENT, 0.0)
    assert attacker.end.connections == 1
    attacker.pump()
    assert attacker.victim.is_connected


def test_lost_handshake_messages_are_sent_with_the_keys_of_their_level():
    """A ServerHello in Initial packets, also when newer keys are there (4)."""
    two = Two(lose=lambda to_server, number, data: not to_server and number <= 2)
    kinds = []
    lose = two.lose

    def watch(to_server, number, data):
        if not to_server and number > 2:
            kinds.append(header(data).packet_type)
        return lose(to_server, number, data)

    two.lose = watch
    two.run(5)
    assert two.connection.is_confirmed
    assert QuicPacketType.INITIAL in kinds


# Keys (RFC 9001 sections 4.1, 5.7 and 6).


def test_data_before_the_end_of_the_handshake_waits_for_it():
    """A server reads 1-RTT packets only after the client's Finished (5.7)."""
    attacker = half_way()
    finished = attacker.quic.datagrams_to_send(0.0)
    attacker.send(frame(0x0B, 0, 1, b"x"))
    assert not attacker.events
    for data, _ in finished:
        attacker.end.receive(data, CLIENT, 0.0)
    attacker.collect()
    assert [event.kind for event in attacker.events] == [
        "connected", "opened", "readable",
    ]  # fmt: skip
    assert attacker.victim.read(0) == b"x"


def test_keys_are_not_updated_before_the_handshake_is_confirmed():
    """By us not (6.1); a client that does so knows no better and is followed."""
    two = Two(delay=0.05)
    two.run(0.11)
    assert two.connection.is_connected
    assert not two.connection.is_confirmed
    assert not two.connection.update_keys()


def test_initial_keys_are_gone_after_the_first_handshake_packet():
    """A server takes no Initial any more, also not to close (4.9.1)."""
    attacker = half_way()
    attacker.send(frame(0x01), epoch=Epoch.HANDSHAKE)
    attacker.send(frame(0x21).ljust(1180, b"\0"), epoch=Epoch.INITIAL)
    assert not attacker.events
    attacker.pump()
    assert attacker.victim.is_connected
    assert attacker.verdict is None


def test_handshake_keys_are_gone_once_confirmed():
    """A Handshake packet does nothing then (4.9.2)."""
    attacker = half_way()
    late = attacker.seal(Epoch.HANDSHAKE, frame(0x21))
    attacker.pump()
    before = attacker.victim.stats()["packets_dropped"]
    attacker.end.receive(late, CLIENT, attacker.now)
    attacker.collect()
    assert attacker.verdict is None
    assert attacker.victim.stats()["packets_dropped"] == before + 1


def test_parameters_of_a_server_that_break_a_range_close():
    """What a client is told is checked as what a server is told (18.2)."""
    for changes in ({"ack_delay_exponent": 21}, {"active_connection_id_limit": 1}):
        assert Served(**changes).connection.end.code == TRANSPORT_PARAMETER


def test_a_server_may_not_use_a_stream_that_we_did_not_open():
    """Its own are odd; ours must be there (19.8)."""
    hostile = HostileServer()
    hostile.send(frame(0x0A, 0, 1, b"x"))
    assert hostile.connection.end.code == STREAM_STATE
