"""The face for Python: what its calls take, answer and raise."""

import gc
import random
import sys

import pytest
from aioquic.tls import Epoch

from lightning._core.quic.config import EngineConfig
from lightning._core.quic.engine import Endpoint
from lightning.errors import ConfigError, ConnectionClosed
from tests.support.quic import (
    CLIENT,
    IDENTITY,
    SERVER,
    Attacker,
    Two,
    client,
    frame,
    server,
)

UNKNOWN = 400


# Endpoints.


def test_an_endpoint_is_initialised_once():
    end = client()
    with pytest.raises(RuntimeError, match="twice"):
        end.__init__(EngineConfig(), is_client=True)


def test_random_must_return_what_it_is_asked_for():
    with pytest.raises(ConfigError, match="as many bytes"):
        Endpoint(EngineConfig(), is_client=True, random=lambda size: b"")


def test_an_endpoint_that_failed_to_start_can_be_dropped():
    end = Endpoint.__new__(Endpoint)
    del end
    gc.collect()


def test_an_endpoint_without_connections_asks_for_nothing():
    end = server()
    assert end.next_timeout() is None
    assert end.next_event() is None
    assert end.datagrams_to_send(0.0) == []
    assert (end.connections, end.half_open) == (0, 0)
    end.handle_timeout(1e9)


@pytest.mark.parametrize("capacity", [0, 1199, 65537])
def test_a_send_buffer_holds_a_datagram_and_no_more_than_the_kernel_takes(capacity):
    with pytest.raises(ValueError, match="from 1200 to 65536"):
        client().transmit(0.0, capacity)


def test_a_datagram_is_copied_and_may_be_any_buffer():
    """It is decrypted in place, but not in the caller's."""
    attacker = Attacker().settle()
    for kind in (bytes, bytearray, memoryview):
        packet = attacker.seal(Epoch.ONE_RTT, frame(0x01))
        given = kind(packet)
        attacker.end.receive(given, CLIENT, attacker.now)
        assert bytes(given) == packet
    assert attacker.victim.stats()["packets_dropped"] == 0


@pytest.mark.parametrize("size", [0, 65_537, 100_000])
def test_what_no_socket_gives_is_ignored(size):
    end = server()
    end.receive(bytes(size), CLIENT, 0.0)
    assert end.stats()["datagrams_received"] == 0


def test_a_name_is_no_address():
    with pytest.raises(ValueError, match="localhost"):
        client().connect(("localhost", 1), 0.0)
    with pytest.raises(ValueError, match="localhost"):
        server().receive(b"x", ("localhost", 1), 0.0)


def test_time_never_goes_back():
    """Threads that read the clock before they waited come in another order."""
    two = Two().connect()
    two.run(5)
    two.connection.ping()
    two.near.transmit(two.now)
    deadline = two.near.next_timeout()
    two.near.handle_timeout(1.0)
    assert two.near.transmit(2.0) == []
    assert two.near.next_timeout() == deadline


def test_a_connection_that_says_nothing_is_nobodys():
    """Without a byte for TLS there is no face, and no event when it ends."""
    far = server(handshake_timeout=1)
    attacker = Attacker(far, connect=False)
    attacker.quic.datagrams_to_send(0.0)
    packet = attacker.seal(Epoch.INITIAL, frame(0x01).ljust(1180, b"\0"))
    far.receive(packet, CLIENT, 0.0)
    assert far.connections == 1
    far.handle_timeout(2.0)
    assert far.next_event() is None
    assert far.connections == 0


def test_an_endpoint_may_be_dropped_with_everything_in_use():
    """Bodies that it refers to are given back."""
    body = bytes(1_000_000)
    before = sys.getrefcount(body)
    two = Two().connect()
    two.connection.send(two.connection.open_stream(), body, fin=True)
    two.flush()
    assert sys.getrefcount(body) == before + 1
    del two
    gc.collect()
    assert sys.getrefcount(body) == before


def test_a_connection_keeps_its_endpoint():
    """Its methods work after the last other reference is gone."""
    connection = Two().connect().connection
    gc.collect()
    assert connection.is_connected
    connection.ping()
    assert connection.stats()["packets_sent"] > 0


def test_a_log_of_keys_that_fails_ends_the_connection_only():
    def fail(line):
        raise OSError(28, "No space left on device")

    far = Endpoint(
        EngineConfig(), is_client=False, identity=IDENTITY, keylog=fail,
        random=random.Random(2).randbytes,
    )  # fmt: skip
    two = Two(far=far)
    two.run(1)
    assert two.connection.end.code == 0x01
    assert far.half_open == 0


# Connections.


def test_events_name_the_connection_and_the_stream():
    two = Two().connect()
    stream = two.connection.open_stream()
    two.connection.send(stream, b"x", fin=True)
    two.run()
    kinds = [(event.kind, event.stream_id) for event in two.far_events]
    assert kinds == [("opened", stream), ("readable", stream)]
    assert {event.connection for event in two.far_events} == {two.peer}
    assert [event.kind for event in two.near_events] == ["acked"]


def test_verbs_on_a_stream_that_is_not_there():
    two = Two().connect()
    for call in (
        lambda: two.connection.send(UNKNOWN, b"x"),
        lambda: two.connection.send(UNKNOWN, bytes(100_000)),
        lambda: two.connection.stop(UNKNOWN),
        lambda: two.connection.reset(UNKNOWN),
        lambda: two.connection.pause(UNKNOWN),
        lambda: two.connection.resume(UNKNOWN),
    ):
        with pytest.raises(ValueError, match="no such stream"):
            call()
    assert two.connection.read(UNKNOWN) == b""
    assert not two.connection.at_end(UNKNOWN)
    two.connection.release(UNKNOWN)


def test_a_body_that_is_refused_is_not_kept():
    two = Two().connect()
    body = bytes(100_000)
    before = sys.getrefcount(body)
    with pytest.raises(ValueError, match="no such stream"):
        two.connection.send(UNKNOWN, body)
    stream = two.connection.open_stream()
    two.connection.send(stream, b"", fin=True)
    with pytest.raises(ValueError, match="finished"):
        two.connection.send(stream, body)
    assert sys.getrefcount(body) == before


def test_verbs_on_a_connection_that_ended():
    two = Two().connect()
    stream = two.connection.open_stream()
    two.connection.close("enough", 7)
    for call in (
        two.connection.open_stream,
        lambda: two.connection.send(stream, b"x"),
        lambda: two.connection.stop(stream),
        lambda: two.connection.reset(stream),
        lambda: two.connection.pause(stream),
        lambda: two.connection.resume(stream),
    ):
        with pytest.raises(ConnectionClosed) as caught:
            call()
        assert (caught.value.code, caught.value.reason) == (7, "enough")
    two.connection.ping()
    two.connection.release(stream)
    two.connection.close("again", 8)
    assert not two.connection.update_keys()
    assert not two.connection.is_connected
    two.run(1)
    assert two.connection.end.code == 7
    assert two.connection.end.initiator == "local"


def test_who_is_told_of_the_end_by_a_verb_is_told_who_ended_it():
    two = Two().connect()
    two.connection.close("enough", 7)
    two.flush()
    for _, to_server, data, _, ecn in two.flying:
        assert to_server
        two.far.receive(data, CLIENT, two.now, ecn)
    with pytest.raises(ConnectionClosed) as caught:
        two.peer.open_stream()
    assert caught.value.initiator == "remote"
    assert two.peer.end.initiator == "peer"
    two.far.next_event()
    assert two.peer.end.code == 7


def test_a_long_reason_is_cut():
    two = Two().connect()
    two.connection.close("é" * 300)
    two.run(0.1)
    assert two.connection.end.reason == "é" * 128
    assert two.peer.end.reason == "é" * 128


def test_a_stream_in_one_direction():
    two = Two(far=server(max_uni_streams=1)).connect()
    stream = two.connection.open_stream(unidirectional=True)
    assert stream == 2
    assert two.connection.open_stream(unidirectional=True) == -1
    two.connection.send(stream, b"one way", fin=True)
    two.run()
    assert two.peer.read(stream) == b"one way"
    assert two.peer.at_end(stream)
    with pytest.raises(ValueError, match="finished or reset"):
        two.peer.send(stream, b"back")


def test_a_full_connection_says_so_and_when_there_is_room():
    two = Two(near=client(max_stream_buffered=10_000)).connect()
    stream = two.connection.open_stream()
    assert two.connection.send(stream, bytes(9_000))
    assert two.connection.send(stream, bytes(9_000))
    assert not two.connection.send(stream, b"x")
    two.run()
    two.peer.read(stream)
    assert "writable" in two.kinds(two.near_events)
    assert two.connection.send(stream, b"x", fin=True)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [1, 16_384, 16_385, 40_000])
def test_any_buffer_can_be_sent(kind, size):
    two = Two().connect()
    body = random.Random(size).randbytes(size)
    stream = two.connection.open_stream()
    two.connection.send(stream, kind(body), fin=True)
    two.run()
    assert two.peer.read(stream) == body


def test_what_is_no_buffer_cannot_be_sent():
    two = Two().connect()
    stream = two.connection.open_stream()
    with pytest.raises(TypeError):
        two.connection.send(stream, "text")
    with pytest.raises(TypeError):
        two.connection.send(stream, 5)


def test_an_address_is_where_the_peer_is():
    two = Two().connect()
    assert two.connection.address == SERVER
    assert two.peer.address == CLIENT


def test_a_token_is_there_once_it_was_given():
    two = Two(far=server(token_lifetime=0)).connect()
    assert two.connection.token == b""
    two = Two().connect()
    assert len(two.connection.token) == 33
    assert two.peer.token == b""
