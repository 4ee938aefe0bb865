"""Connections: every rule that a peer can break, and timelines in virtual time."""

import pytest
from aioquic.quic.packet import QuicTransportParameters, push_quic_transport_parameters
from aioquic.tls import Epoch

from lightning.errors import ConnectionClosed
from tests.support.bounds import last_number
from tests.support.quic import (
    CLIENT,
    CONNECTION_ID_LIMIT,
    CRYPTO,
    CRYPTO_BUFFER_EXCEEDED,
    FINAL_SIZE,
    FLOW_CONTROL,
    FRAME_ENCODING,
    KEY_UPDATE,
    PROTOCOL_VIOLATION,
    SERVER,
    STREAM_LIMIT,
    STREAM_STATE,
    TRANSPORT_PARAMETER,
    Attacker,
    Two,
    client,
    frame,
    server,
    varint,
)

# Rules that a peer can break in a 1-RTT packet (RFC 9000 sections 4, 5, 12, 19).
BROKEN = {
    "stream beyond its window": (frame(0x0F, 0, 1_250_000, 1, b"x"), FLOW_CONTROL),
    "stream far beyond": (frame(0x0E, 0, 2**40, 1, b"x"), FLOW_CONTROL),
    "stream above the limit": (frame(0x0A, 4 * 128, 1, b"x"), STREAM_LIMIT),
    "stream absurdly high": (frame(0x0A, 2**60, 1, b"x"), STREAM_LIMIT),
    "unidirectional stream": (frame(0x0A, 2, 1, b"x"), STREAM_LIMIT),
    "data on our stream": (frame(0x0A, 1, 1, b"x"), STREAM_STATE),
    "data on our send-only stream": (frame(0x0A, 3, 1, b"x"), STREAM_STATE),
    "reset of our send-only stream": (frame(0x04, 3, 0, 0), STREAM_STATE),
    "stop of a stream not opened": (frame(0x05, 1, 0), STREAM_STATE),
    "stop of a receive-only stream": (frame(0x05, 2, 0), STREAM_STATE),
    "credit for a stream not opened": (frame(0x11, 1, 9), STREAM_STATE),
    "credit for a receive-only stream": (frame(0x11, 2, 9), STREAM_STATE),
    "blocked on our send-only stream": (frame(0x15, 3, 9), STREAM_STATE),
    "end below what came": (
        frame(0x0E, 0, 10, 1, b"x") + frame(0x0F, 0, 2, 1, b"x"), FINAL_SIZE,
    ),
    "data above the end": (
        frame(0x0B, 0, 1, b"x") + frame(0x0E, 0, 10, 1, b"x"), FINAL_SIZE,
    ),
    "reset below what came": (
        frame(0x0E, 0, 10, 1, b"x") + frame(0x04, 0, 0, 2), FINAL_SIZE,
    ),
    "offset past 2^62": (frame(0x0E, 0, 2**62 - 1, 1, b"x"), FRAME_ENCODING),
    "unknown frame": (frame(0x21), FRAME_ENCODING),
    "frame type in two bytes": (b"\x40\x01", PROTOCOL_VIOLATION),
    "cut frame": (b"\x04\x00\xff", FRAME_ENCODING),
    "length past the end": (frame(0x0A, 0, 2**62 - 1), FRAME_ENCODING),
    "too many streams granted": (frame(0x12, 2**60 + 1), FRAME_ENCODING),
    "blocked by too many streams": (frame(0x16, 2**60 + 1), FRAME_ENCODING),
    "token from a client": (frame(0x07, 1, b"t"), PROTOCOL_VIOLATION),
    "confirmation from a client": (frame(0x1E), PROTOCOL_VIOLATION),
    "identifier that retires itself": (
        frame(0x18, 1, 2, b"\x08", bytes(8), bytes(16)), FRAME_ENCODING,
    ),
    "empty identifier": (frame(0x18, 9, 0, b"\x00", bytes(16)), FRAME_ENCODING),
    "long identifier": (
        frame(0x18, 9, 0, b"\x15", bytes(21), bytes(16)), FRAME_ENCODING,
    ),
    "too many identifiers": (
        b"".join(
            frame(0x18, n, 0, b"\x08", bytes([n] * 8), bytes([n] * 16))
            for n in range(50, 60)
        ),
        CONNECTION_ID_LIMIT,
    ),
    "one identifier, two tokens": (
        frame(0x18, 5, 1, b"\x08", bytes([7] * 8), bytes([1] * 16))
        + frame(0x18, 5, 1, b"\x08", bytes([7] * 8), bytes([2] * 16)),
        PROTOCOL_VIOLATION,
    ),
    "retired what was never issued": (frame(0x19, 99), PROTOCOL_VIOLATION),
    "acknowledged what was never sent": (frame(0x02, 9999, 0, 0, 0), PROTOCOL_VIOLATION),
    "acknowledged below zero": (frame(0x02, 1, 0, 0, 5), FRAME_ENCODING),
    "TLS KeyUpdate": (
        frame(0x06, 0, 5, b"\x18\x00\x00\x01\x00"), CRYPTO + 10,
    ),
    "TLS EndOfEarlyData": (frame(0x06, 0, 4, b"\x05\x00\x00\x00"), CRYPTO + 10),
    "CRYPTO far ahead": (frame(0x06, 70_000, 1, b"x"), CRYPTO_BUFFER_EXCEEDED),
    "CRYPTO past 2^62": (frame(0x06, 2**62 - 1, 1, b"x"), FRAME_ENCODING),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_closes_with_its_code(name):
    """Each rule of RFC 9000 that a frame can break has its error."""
    payload, code = BROKEN[name]
    attacker = Attacker()
    attacker.send(payload)
    assert attacker.verdict == code


def test_the_peer_hears_why():
    """It gets the code and the frame, in one datagram."""
    attacker = Attacker()
    attacker.send(BROKEN["stream far beyond"][0])
    assert len(attacker.end.datagrams_to_send(0.0)) == 1
    attacker = Attacker()
    attacker.send(BROKEN["stream far beyond"][0])
    attacker.pump()
    attacker.quic.handle_timer(1e6)
    told = attacker.quic._close_event
    assert (told.error_code, told.frame_type) == (FLOW_CONTROL, 0x0E)


def test_frames_without_an_ack_of_them_are_fine():
    """What looks odd and is allowed does not close the connection."""
    attacker = Attacker()
    for payload in (
        frame(0x01), frame(0x10, 0), frame(0x14, 5), frame(0x0A, 0, 0),
        frame(0x12, 2**60), frame(0x16, 0), frame(0x1A, b"12345678"),
        frame(0x1B, b"no such!"), b"\0" * 30,
    ):  # fmt: skip
        attacker.send(payload)
        assert attacker.verdict is None


def test_a_packet_without_frames_closes():
    """RFC 9000 section 12.4."""
    attacker = Attacker()
    attacker.end.receive(
        attacker.quic._cryptos[Epoch.ONE_RTT].encrypt_packet(
            b"\x43" + attacker.quic._peer_cid.cid + (1000).to_bytes(4), b"", 1000
        ),
        ("10.0.0.1", 1000), 0.0,
    )  # fmt: skip
    attacker.collect()
    assert attacker.verdict == PROTOCOL_VIOLATION


def test_reserved_bits_close():
    """RFC 9000 section 17.3.1."""
    attacker = Attacker()
    attacker.send(frame(0x01), reserved=0x18)
    assert attacker.verdict == PROTOCOL_VIOLATION


def test_a_damaged_packet_is_dropped():
    """Nobody can end a connection with a packet that is not authentic."""
    attacker = Attacker()
    packet = bytearray(attacker.seal(Epoch.ONE_RTT, frame(0x21)))
    packet[-1] ^= 1
    attacker.end.receive(bytes(packet), ("10.0.0.1", 1000), 0.0)
    attacker.collect()
    assert attacker.verdict is None
    assert attacker.victim.stats()["packets_dropped"] == 1


def test_a_packet_twice_is_taken_once():
    """Duplicates do nothing (RFC 9000 section 12.3)."""
    attacker = Attacker()
    packet = attacker.seal(Epoch.ONE_RTT, frame(0x0B, 0, 1, b"x"))
    for _ in range(3):
        attacker.end.receive(packet, ("10.0.0.1", 1000), 0.0)
    assert attacker.victim.read(0) == b"x"
    assert attacker.victim.stats()["packets_dropped"] == 2


# Handshake packets.


def half_way(**settings):
    """Bring an aioquic client to where it has Handshake keys and was not confirmed."""
    attacker = Attacker(connect=False, **settings)
    for data, _ in attacker.quic.datagrams_to_send(0.0):
        attacker.end.receive(data, ("10.0.0.1", 1000), 0.0)
    for data, _ in attacker.end.datagrams_to_send(0.0):
        attacker.quic.receive_datagram(data, ("10.0.0.2", 2000), 0.0)
    return attacker


@pytest.mark.parametrize(
    ("payload", "reserved", "code"),
    [
        (frame(0x1A, b"12345678"), 0, PROTOCOL_VIOLATION),
        (frame(0x0A, 0, 1, b"x"), 0, PROTOCOL_VIOLATION),
        (frame(0x01), 0x0C, PROTOCOL_VIOLATION),
        (frame(0x06, 0, 5, b"\x18\x00\x00\x01\x00"), 0, CRYPTO + 10),
        (frame(0x06, 0, 4, b"\x05\x00\x00\x00"), 0, CRYPTO + 10),
        (frame(0x06, 0, 4, b"\x14\xff\xff\xff"), 0, CRYPTO + 50),
        (frame(0x06, 2**17, 1, b"x"), 0, CRYPTO_BUFFER_EXCEEDED),
    ],
    ids=[
        "challenge", "stream", "reserved bits", "KeyUpdate", "EndOfEarlyData",
        "long message", "gap",
    ],
)  # fmt: skip
def test_a_broken_rule_in_the_handshake_closes(payload, reserved, code):
    """The same for Handshake packets; nothing of it reaches the application."""
    attacker = half_way()
    attacker.send(payload, epoch=Epoch.HANDSHAKE, reserved=reserved)
    end = attacker.events[-1].connection.end
    assert (end.initiator, end.code) == ("local", code)
    assert [event.kind for event in attacker.events] == ["closed"]
    assert attacker.end.half_open == 0


def parameters(**changes):
    """Have an aioquic client send other transport parameters."""

    def prepare(quic):
        known = QuicTransportParameters(
            initial_source_connection_id=quic.host_cid, max_idle_timeout=60_000
        )
        for name, value in changes.items():
            setattr(known, name, value)

        def serialize():
            from aioquic.buffer import Buffer

            buffer = Buffer(capacity=2048)
            push_quic_transport_parameters(buffer, known)
            return buffer.data + changes.get("extra", b"")

        quic._serialize_transport_parameters = serialize

    return prepare


@pytest.mark.parametrize(
    "changes",
    [
        {"initial_source_connection_id": None},
        {"initial_source_connection_id": b"another"},
        {"original_destination_connection_id": bytes(8)},
        {"retry_source_connection_id": bytes(8)},
        {"stateless_reset_token": bytes(16)},
        {"max_udp_payload_size": 1199},
        {"ack_delay_exponent": 21},
        {"max_ack_delay": 1 << 14},
        {"active_connection_id_limit": 1},
        {"initial_max_streams_bidi": 2**60 + 1},
        {"extra": b"\x04\x01\x05\x04\x01\x05"},
        {"extra": b"\x0a\x05\x03"},
        {"extra": b"\x0c\x01\x00"},
    ],
)
def test_bad_transport_parameters_close(changes):
    """RFC 9000 sections 7.3, 7.4 and 18.2."""
    attacker = Attacker(connect=False, prepare=parameters(**changes))
    attacker.pump(2)
    end = attacker.events[-1].connection.end
    assert (end.initiator, end.code) == ("local", TRANSPORT_PARAMETER)


def test_unknown_transport_parameters_are_ignored():
    """RFC 9000 section 18.1."""
    extra = varint(31 * 5 + 27) + b"\x02ab"
    attacker = Attacker(prepare=parameters(extra=extra, initial_max_data=1 << 20))
    assert attacker.verdict is None


# Timelines.


def test_handshake_takes_one_round_trip_and_confirms_in_the_second():
    """Client: connected after one round trip, confirmed after two."""
    two = Two(delay=0.05)
    two.run(0.0999)
    assert not two.connection.is_connected
    two.run(0.0002)
    assert two.connection.is_connected
    assert not two.connection.is_confirmed
    two.run(0.1)
    assert two.connection.is_confirmed
    assert [size for _, _, size in two.log[:2]] == [1200, 1200]


def test_an_echo_takes_one_round_trip_and_two_packets():
    """The acknowledgement of the request travels with the answer."""
    two = Two().connect()
    two.run(1)
    two.log.clear()
    two.connection.send(two.connection.open_stream(), b"ping", fin=True)
    start = two.now
    two.run(0.0101)
    two.peer.send(0, two.peer.read(0), fin=True)
    two.run(0.0101)
    assert two.connection.read(0) == b"ping"
    assert two.now - start < 0.0203
    assert [to_server for _, to_server, _ in two.log] == [True, False]
    # The last acknowledgement is held back for 25 ms.
    two.run(0.1)
    assert len(two.log) == 3
    assert two.log[-1][0] - start == pytest.approx(0.02125, abs=0.0002)
    assert two.connection.stats()["bytes_in_flight"] == 0
    assert two.peer.stats()["bytes_in_flight"] == 0


def test_bytes_of_any_size_arrive():
    """Copied and referenced bodies, and what comes back, are whole."""
    two = Two().connect()
    for size in (0, 1, 16_384, 16_385, 1_000_000):
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        stream = two.connection.open_stream()
        assert two.connection.send(stream, body, fin=True)
        got = b""
        while not two.peer.at_end(stream):
            assert two.step()
            got += two.peer.read(stream)
        assert got == body


def test_a_lost_packet_is_sent_again():
    """A lost request comes after one probe timeout."""
    two = Two().connect()
    two.run(1)
    sent = two.count[True]
    two.lose = lambda to_server, number, data: to_server and number == sent + 1
    two.connection.send(two.connection.open_stream(), b"ping", fin=True)
    two.run(0.3)
    assert two.peer.read(0) == b"ping"
    assert two.connection.stats()["timeouts"] == 1


def test_window_holds_back_a_sender():
    """No more is sent than the reader's window, until it reads."""
    two = Two(far=server(max_stream_data=5000, max_data=8000)).connect()
    first, second = two.connection.open_stream(), two.connection.open_stream()
    two.connection.send(first, bytes(10_000), fin=True)
    two.connection.send(second, bytes(10_000), fin=True)
    two.run(2)
    assert two.peer.stats()["recv_buffered"] == 8000
    for _ in range(40):
        got = len(two.peer.read(first)), len(two.peer.read(second))
        two.run(0.2)
    assert two.peer.at_end(first)
    assert two.peer.at_end(second)
    assert got == (0, 0)


def test_streams_wait_for_credit():
    """Above the peer's limit no stream opens, until others have ended."""
    two = Two(far=server(max_streams=2)).connect()
    ids = [two.connection.open_stream() for _ in range(3)]
    assert ids == [0, 4, -1]
    for stream in (0, 4):
        two.connection.send(stream, b"x", fin=True)
    two.run()
    for stream in (0, 4):
        two.peer.read(stream)
        two.peer.send(stream, b"y", fin=True)
        two.peer.release(stream)
    two.run()
    assert "openable" in two.kinds(two.near_events)
    assert two.connection.open_stream() == 8


def test_reset_and_stop_reach_the_other_end():
    """With their codes; a stop is answered by a reset."""
    two = Two().connect()
    stream = two.connection.open_stream()
    two.connection.send(stream, b"begin")
    two.run()
    two.connection.reset(stream, 77)
    two.connection.stop(stream, 78)
    two.run()
    told = {event.kind: event.code for event in two.far_events}
    assert told["reset"] == 77
    assert told["stopped"] == 78
    with pytest.raises(ValueError, match="finished or reset"):
        two.peer.send(stream, b"more")


def test_pause_keeps_the_window_shut():
    """What is paused is not read and not granted again."""
    two = Two(far=server(max_stream_data=2000)).connect()
    stream = two.connection.open_stream()
    two.connection.send(stream, bytes(1000))
    two.run()
    two.peer.pause(stream)
    two.connection.send(stream, bytes(3000), fin=True)
    two.run()
    assert two.peer.stats()["recv_buffered"] == 2000
    two.peer.resume(stream)
    while not two.peer.at_end(stream):
        two.peer.read(stream)
        two.run(0.1)


# The end.


def test_close_tells_code_and_reason():
    """The other end learns both, at once; close costs the caller nothing."""
    two = Two().connect()
    two.connection.close("enough", 42)
    assert two.now == pytest.approx(0.5)
    two.run(0.05)
    end = two.far_events[-1].connection.end
    assert (end.initiator, end.application, end.code, end.reason) == (
        "peer", True, 42, "enough",
    )  # fmt: skip
    with pytest.raises(ConnectionClosed):
        two.peer.open_stream()
    # Three probe timeouts later nothing is left.
    two.run(2)
    assert two.near.connections == two.far.connections == 0
    assert two.near.next_timeout() is None
    assert two.far.next_timeout() is None


def test_a_closing_end_answers_less_and_less():
    """RFC 9000 section 10.2.1: the first, second, fourth, eighth packet and so on."""
    attacker = Attacker()
    attacker.victim.close("bye", 1)
    assert len(attacker.end.datagrams_to_send(0.0)) == 1
    answers = []
    for number in range(1, 33):
        attacker.send(frame(0x01))
        if attacker.end.datagrams_to_send(0.0):
            answers.append(number)
    assert answers == [1, 2, 4, 8, 16, 32]


def test_a_close_before_the_handshake_hides_the_reason():
    """Initial packets are readable by others (RFC 9000 section 10.2.3)."""
    two = Two()
    two.flush()
    two.connection.close("secret", 5)
    two.run(0.2)
    (event,) = two.far_events
    end = event.connection.end
    assert (end.initiator, end.application, end.code, end.reason) == (
        "peer", False, 0x0C, "",
    )  # fmt: skip


def test_idle_timeout_is_the_smaller_of_both():
    """Both ends give up, without a word."""
    two = Two(near=client(idle_timeout=30), far=server(idle_timeout=5)).connect()
    two.log.clear()
    two.run(4.4)
    assert two.near_events == []
    two.run(0.3)
    assert two.connection.end.initiator == "idle"
    assert two.connection.end.timed_out
    assert two.peer.end.timed_out
    assert two.log == []


def test_sending_into_silence_does_not_keep_a_connection():
    """Only the first ack-eliciting packet since the last receipt counts (10.1)."""
    two = Two(near=client(idle_timeout=5)).connect()
    two.lose = lambda *_: True
    start = two.now
    while two.connection.end is None and two.now < 60:
        two.connection.ping()
        two.run(0.5)
    assert two.connection.end.initiator == "idle"
    assert two.now - start < 7


def test_keep_alive_keeps_a_connection():
    """PINGs go out in the configured rhythm."""
    two = Two(
        near=client(idle_timeout=5, keep_alive=2), far=server(idle_timeout=5)
    ).connect()
    two.log.clear()
    two.run(60)
    assert two.connection.end is None
    assert 25 <= sum(1 for _, to_server, _ in two.log if to_server) <= 35


def test_handshake_deadline():
    """A server that says nothing is given up after the handshake timeout."""
    two = Two(near=client(handshake_timeout=3), lose=lambda *_: True)
    two.run(4)
    assert two.connection.end.initiator == "handshake_timeout"
    assert two.near.connections == 0


# Keys.


@pytest.mark.parametrize("end", ["connection", "peer"])
def test_key_update_in_either_direction(end):
    """Both ends change keys, and what flies across the change arrives."""
    two = Two().connect()
    two.connection.send(two.connection.open_stream(), b"a")
    two.run()
    initiator = getattr(two, end)
    for round_ in range(1, 4):
        assert initiator.update_keys()
        two.connection.send(0, b"b")
        initiator.ping()
        two.run()
        assert two.connection.stats()["key_updates"] == round_
        assert two.peer.stats()["key_updates"] == round_
    assert two.peer.read(0) == b"abbb"
    assert two.peer.stats()["packets_dropped"] == 0


def test_no_second_update_before_an_acknowledgement():
    """RFC 9001 section 6.1."""
    two = Two().connect()
    two.connection.ping()
    two.run()
    assert two.connection.update_keys()
    assert not two.connection.update_keys()


def test_keys_change_by_themselves():
    """Long before the AEAD's limit (RFC 9001 section 6.6)."""
    two = Two(near=client(key_update_after=20)).connect()
    for _ in range(100):
        two.connection.ping()
        two.run(0.1)
    assert two.connection.stats()["key_updates"] in (4, 5)
    assert two.connection.end is None


def test_a_peer_that_updates_too_often_is_closed():
    """A second update before the first was acknowledged (RFC 9001 section 6.2)."""
    attacker = Attacker()
    crypto = attacker.quic._cryptos[Epoch.ONE_RTT]
    for _ in range(2):
        crypto.update_key()
        attacker.send(frame(0x01))
    assert attacker.verdict == KEY_UPDATE


def test_old_keys_are_good_for_what_was_late():
    """Packets of the phase before are read for three probe timeouts."""
    attacker = Attacker()
    late = [attacker.seal(Epoch.ONE_RTT, frame(0x0A, 0, 1, b"a")),
            attacker.seal(Epoch.ONE_RTT, frame(0x0E, 0, 1, 1, b"b"))]  # fmt: skip
    attacker.quic._cryptos[Epoch.ONE_RTT].update_key()
    attacker.send(frame(0x01))
    attacker.end.receive(late[0], ("10.0.0.1", 1000), 0.0)
    assert attacker.victim.read(0) == b"a"
    attacker.end.receive(late[1], ("10.0.0.1", 1000), 60.0)
    assert attacker.victim.read(0) == b""


# Paths.


def test_a_new_port_is_followed_after_proof():
    """NAT rebinding: the server challenges the new address and goes on there."""
    two = Two().connect()
    two.source = ("10.0.0.1", 1001)
    two.connection.send(two.connection.open_stream(), b"moved", fin=True)
    two.run()
    assert two.peer.read(0) == b"moved"
    assert two.peer.address == ("10.0.0.1", 1001)
    assert two.peer.stats()["path_changes"] == 1
    two.peer.send(0, bytes(50_000), fin=True)
    two.run()
    assert len(two.connection.read(0)) == 50_000


def test_a_new_address_gets_three_times_what_it_sent():
    """Before it is proven (RFC 9000 section 9.3.1), and nothing more after that."""
    attacker = Attacker()
    attacker.send(frame(0x0B, 0, 1, b"x"))
    attacker.pump()
    attacker.victim.send(0, bytes(100_000), fin=True)
    attacker.send(frame(0x01).ljust(100, b"\0"), source=("10.9.9.9", 9))
    size = 0
    for tick in range(300):
        attacker.end.handle_timeout(tick / 100)
        for data, to in attacker.end.datagrams_to_send(tick / 100):
            if to == ("10.9.9.9", 9):
                size += len(data)
    assert 0 < size <= 3 * 129


@pytest.mark.parametrize("size", [4, 1100], ids=["small", "large"])
def test_a_peer_may_move_while_it_is_asked(size):
    """The answer to a challenge comes from a third address, and is no dead end."""
    attacker = Attacker().settle()
    second, third = ("10.0.0.1", 1002), ("10.0.0.1", 1003)
    attacker.send(frame(0x01).ljust(size, b"\0"), source=second)
    for data, to in attacker.end.datagrams_to_send(attacker.now):
        if to == second:
            attacker.quic.receive_datagram(data, SERVER, attacker.now)
    attacker.quic.send_stream_data(0, b"x", end_stream=True)
    for data, _ in attacker.quic.datagrams_to_send(attacker.now):
        attacker.end.receive(data, third, attacker.now)
    attacker.collect()
    assert attacker.victim.address == third
    assert attacker.victim.read(0) == b"x"
    # It is proven in its turn, or no more than three times what came would be sent.
    attacker.victim.send(0, bytes(50_000), fin=True)
    sent = 0
    for _ in range(200):
        attacker.now += 0.01
        attacker.end.handle_timeout(attacker.now)
        for data, to in attacker.end.datagrams_to_send(attacker.now):
            if to == third:
                sent += len(data)
                attacker.quic.receive_datagram(data, SERVER, attacker.now)
        for data, _ in attacker.quic.datagrams_to_send(attacker.now):
            attacker.end.receive(data, third, attacker.now)
    assert sent > 50_000
    assert attacker.verdict is None


def test_a_path_that_is_not_proven_is_left():
    """A spoofed address does not take the connection away (9.3.2)."""
    attacker = Attacker()
    attacker.send(frame(0x01), source=("10.9.9.9", 9))
    assert attacker.victim.address == ("10.9.9.9", 9)
    for tick in range(1000):
        attacker.end.handle_timeout(tick / 100)
        for data, to in attacker.end.datagrams_to_send(tick / 100):
            # The peer is where it was, and answers.
            if to == CLIENT:
                attacker.quic.receive_datagram(data, SERVER, tick / 100)
        for data, _ in attacker.quic.datagrams_to_send(tick / 100):
            attacker.end.receive(data, CLIENT, tick / 100)
    assert attacker.victim.address == CLIENT
    assert attacker.victim.end is None


def test_no_path_left_ends_a_connection_without_a_word():
    """Neither the new address nor the one of before answers (9.3.2)."""
    attacker = Attacker()
    attacker.send(frame(0x01), source=("10.9.9.9", 9))
    sent = []
    for tick in range(1000):
        attacker.end.handle_timeout(tick / 100)
        sent.append(len(attacker.end.datagrams_to_send(tick / 100)))
    attacker.collect()
    assert attacker.victim.end.initiator == "path"
    assert attacker.end.connections == 0
    assert sum(sent[-100:]) == 0


def test_challenges_are_answered_and_bounded():
    """Each PATH_CHALLENGE gets its answer; a flood does not fill memory."""
    attacker = Attacker()
    for _ in range(5):
        attacker.send(b"".join(frame(0x1A, bytes([n] * 8)) for n in range(120)))
    out = attacker.end.datagrams_to_send(0.0)
    assert 1 <= len(out) <= 4
    assert attacker.verdict is None


def test_probing_does_not_move():
    """A packet of probing frames alone leaves the path in use as it is (9.1)."""
    attacker = Attacker()
    attacker.send(frame(0x1A, b"12345678"), source=("10.9.9.9", 9))
    assert attacker.victim.address == ("10.0.0.1", 1000)
    answers = [to for _, to in attacker.end.datagrams_to_send(0.0)]
    assert ("10.9.9.9", 9) in answers


def test_identifiers_retired_are_replaced():
    """The peer retires ours and gets new ones; the old ones route no more."""
    attacker = Attacker()
    attacker.send(frame(0x19, 1) + frame(0x19, 2))
    assert attacker.verdict is None
    assert attacker.victim.stats()["local_cids"] == 4


def test_retiring_the_identifier_in_use_closes():
    """RFC 9000 section 19.16."""
    attacker = Attacker()
    attacker.send(frame(0x19, attacker.quic._peer_cid.sequence_number))
    assert attacker.verdict == PROTOCOL_VIOLATION


def test_a_flood_of_identifiers_is_stopped():
    """Each makes one retirement due, and none is acknowledged (section 5.1.2)."""
    attacker = Attacker()
    for number in range(10, 2000):
        attacker.send(
            frame(0x18, number, number, b"\x08", number.to_bytes(8), bytes(16))
        )
        if attacker.verdict is not None:
            break
    assert attacker.verdict == CONNECTION_ID_LIMIT
    assert number < 100


def test_retiring_what_was_issued_goes_on_for_ever():
    """Each retired identifier is replaced, at constant cost, by one that routes."""
    attacker = Attacker()
    for number in range(1, 300):
        attacker.send(frame(0x19, number))
        attacker.end.datagrams_to_send(0.0)
    assert attacker.verdict is None
    assert attacker.victim.stats()["local_cids"] == 4


# Memory and work that a peer can cause.


def test_gaps_are_bounded():
    """A stream of one-byte fragments with gaps between ends the connection."""
    attacker = Attacker()
    for number in range(3000):
        attacker.send(frame(0x0E, 0, 2 * number + 1, 1, b"x"))
        if attacker.verdict is not None:
            break
    assert attacker.verdict == 0x01
    assert 1000 < number < 1100


def test_a_window_is_not_opened_by_what_arrives():
    """Only what is read is granted again: the last byte of a window opens nothing."""
    attacker = Attacker().settle()
    limit = attacker.end.config.max_stream_data
    attacker.send(frame(0x0E, 0, limit - 1, 1, b"x"))
    attacker.send(frame(0x01))
    attacker.end.datagrams_to_send(1.0)
    assert attacker.victim.read(0) == b""
    assert attacker.end.stats()["blocks_in_use"] <= 2
    attacker.send(frame(0x0E, 0, limit, 1, b"x"))
    assert attacker.verdict == FLOW_CONTROL


def test_empty_frames_cost_nothing():
    """Ten thousand frames without a byte on one stream hold no memory."""
    attacker = Attacker()
    for _ in range(40):
        attacker.send(frame(0x0A, 0, 0) * 300)
    assert attacker.verdict is None
    assert attacker.victim.stats()["streams"] == 1
    assert attacker.end.stats()["blocks_in_use"] == 0


def test_crypto_data_is_bounded():
    """In every space, also with gaps that keep TLS from taking it."""
    for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE):
        attacker = half_way()
        for number in range(1, 200):
            attacker.send(
                frame(0x06, 5000 + number * 1000, 1000, bytes(1000)).ljust(1180, b"\0"),
                epoch=epoch,
            )
        end = attacker.events[-1].connection.end
        assert end.code == CRYPTO_BUFFER_EXCEEDED
        assert attacker.end.stats()["blocks_in_use"] <= 20


def test_other_connections_packets_in_a_datagram_are_ignored():
    """All packets of a datagram are for one connection (RFC 9000 section 12.2)."""
    far = server()
    first, second = Attacker(far), Attacker(far)
    long = half_way()
    mine = first.seal(Epoch.ONE_RTT, frame(0x0B, 0, 1, b"a"))
    other = second.seal(Epoch.ONE_RTT, frame(0x0B, 0, 1, b"b"))
    far.receive(
        long.seal(Epoch.HANDSHAKE, frame(0x01)) + mine + other, ("10.0.0.1", 1000), 0.0
    )
    assert first.victim.read(0) == b""
    assert second.victim.read(0) == b""
    far.receive(mine, ("10.0.0.1", 1000), 0.0)
    assert first.victim.read(0) == b"a"


# The path's size, its marks, and acknowledgements.


def test_the_datagram_size_is_found():
    """A clean path is searched up to 1452 bytes at once, and then left alone."""
    two = Two().connect().widen()
    assert two.connection.stats()["mtu"] == 1452
    assert two.peer.stats()["mtu"] == 1452
    assert max(size for _, _, size in two.log) == 1452


def test_nothing_is_searched_for_small_datagrams():
    """Whoever never fills one needs no larger ones, and no probes."""
    two = Two().connect()
    for _ in range(5):
        stream = two.connection.open_stream()
        two.connection.send(stream, bytes(1000), fin=True)
        two.run(0.5)
        two.peer.send(stream, bytes(1000), fin=True)
        two.run(0.5)
    assert two.connection.stats()["mtu"] == two.peer.stats()["mtu"] == 1200
    assert max(size for _, _, size in two.log) == 1200


def test_a_narrow_path_is_found():
    """What does not get through is not used."""
    two = Two(lose=lambda to_server, number, data: len(data) > 1300)
    two.connect().widen()
    for _ in range(200):
        two.connection.ping()
        two.run(0.1)
    assert 1270 <= two.connection.stats()["mtu"] <= 1300


def test_ecn_is_used_where_it_arrives():
    """Marks that come through and are counted keep being set."""
    two = Two().connect()
    for _ in range(20):
        two.connection.ping()
        two.run(0.1)
    assert two.connection.stats()["ecn_state"] == 2


def test_ecn_is_left_where_it_does_not():
    """A network that clears the bits ends their use."""
    two = Two()
    two.ecn = lambda bits: 0
    two.connect()
    for _ in range(20):
        two.connection.ping()
        two.run(0.1)
    assert two.connection.stats()["ecn_state"] == 3


def test_every_second_packet_is_acknowledged_at_once():
    """RFC 9000 section 13.2.2."""
    attacker = Attacker().settle()
    attacker.send(frame(0x01))
    assert attacker.end.datagrams_to_send(1.0) == []
    assert attacker.end.next_timeout() == pytest.approx(1.001)
    attacker.send(frame(0x01))
    assert len(attacker.end.datagrams_to_send(1.0)) == 1


def test_a_gap_is_acknowledged_at_once():
    """RFC 9000 section 13.2.1: it may be a loss."""
    attacker = Attacker().settle()
    attacker.seal(Epoch.ONE_RTT, frame(0x01))
    attacker.send(frame(0x01))
    assert len(attacker.end.datagrams_to_send(1.0)) == 1


def test_alternating_packet_numbers_are_bounded():
    """Gaps without end cost 64 ranges, in memory and in the ACK frame."""
    attacker = Attacker()
    for _ in range(500):
        attacker.seal(Epoch.ONE_RTT, frame(0x01))
        attacker.send(frame(0x01))
        out = attacker.end.datagrams_to_send(0.0)
        assert all(len(data) < 400 for data, _ in out)
    assert attacker.verdict is None


def test_the_skipped_packet_number_catches_a_liar():
    """Acknowledging what was never sent is found out (RFC 9000 section 21.4)."""
    attacker = Attacker()
    last = last_number(attacker)
    start = last()
    for round_ in range(3000):
        attacker.now = round_ / 1000
        attacker.victim.ping()
        attacker.end.handle_timeout(attacker.now)
        attacker.end.datagrams_to_send(attacker.now)
        attacker.send(frame(0x02, last(), 0, 0, last()))
        if attacker.verdict is not None:
            break
    assert attacker.verdict == PROTOCOL_VIOLATION
    # An honest packet number is no lie: the distance to the skipped one is random.
    assert 40 < last() - start < 1200
