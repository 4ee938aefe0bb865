"""What frames, keys and parameters of a peer can make us do: bounds in counts."""

import pytest
from aioquic.tls import Epoch

from tests.support.bounds import HostileServer, Memory, last_number
from tests.support.quic import (
    CLIENT,
    FRAME_ENCODING,
    KEY_UPDATE,
    PROTOCOL_VIOLATION,
    TRANSPORT_PARAMETER,
    Attacker,
    frame,
    server,
)
from tests.unit.quic.test_connection import half_way, parameters

FLOODS = {
    "PADDING": b"\0" * 1100,
    "PING": frame(0x01) * 1100,
    "MAX_DATA": frame(0x10, 2**40) * 100,
    "MAX_STREAM_DATA": frame(0x11, 0, 2**40) * 100,
    "MAX_STREAMS": frame(0x12, 2**59) * 100,
    "DATA_BLOCKED": frame(0x14, 2**40) * 100,
    "STREAM_DATA_BLOCKED": frame(0x15, 0, 2**40) * 80,
    "STREAMS_BLOCKED": frame(0x16, 2**59) * 100,
    "STOP_SENDING": frame(0x05, 0, 1) * 300,
    "RESET_STREAM": frame(0x04, 0, 1, 0) * 250,
    "empty STREAM": frame(0x0A, 0, 0) * 300,
    "PATH_RESPONSE": frame(0x1B, b"no such!") * 120,
    "PATH_CHALLENGE": frame(0x1A, b"12345678") * 120,
    "NEW_CONNECTION_ID again": frame(0x18, 9, 9, b"\x08", bytes(8), bytes(16)) * 30,
    "RETIRE_CONNECTION_ID again": frame(0x19, 1) * 500,
    "ACK again": frame(0x02, 0, 0, 0, 0) * 200,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_is_answered_by_one_datagram_a_packet(name):
    """Also without an acknowledgement from the peer, and it holds no memory."""
    attacker = Attacker().settle()
    attacker.send(FLOODS[name])
    attacker.end.datagrams_to_send(attacker.now)
    with Memory() as memory:
        for _ in range(300):
            packet = attacker.seal(Epoch.ONE_RTT, FLOODS[name])
            attacker.end.receive(packet, CLIENT, attacker.now)
            out = attacker.end.datagrams_to_send(attacker.now)
            assert len(out) <= 2
            assert sum(map(len, (data for data, _ in out))) <= 1452
        assert memory.measure() < 64 * 1024
    attacker.collect()
    assert attacker.verdict is None
    stats = attacker.end.stats()
    assert stats["streams_in_use"] <= 1
    assert stats["blocks_in_use"] == 0


def test_padding_alone_is_never_answered():
    """No acknowledgement for what asks for none (RFC 9000 section 13.2.1)."""
    attacker = Attacker().settle()
    for _ in range(200):
        attacker.send(b"\0" * 1000)
    assert attacker.end.datagrams_to_send(attacker.now) == []


# Acknowledgements.


def test_ack_frames_of_any_number_of_ranges_are_read_up_to_256():
    """One of 30,000 ranges in a large datagram: no error, and no work beyond."""
    attacker = Attacker()
    last = last_number(attacker)
    attacker.send(frame(0x02, last(), 0, 0, 0))
    assert attacker.verdict is None
    # 30,000 pairs below a number that was never sent: refused for that alone.
    attacker.send(frame(0x02, 100_000, 0, 30_000, 0) + frame(0, 0) * 30_000)
    assert attacker.verdict == PROTOCOL_VIOLATION


def test_ranges_below_zero_are_refused():
    """Wherever they are in the frame, also beyond the 256 that are read."""
    attacker = Attacker().settle()
    attacker.send(frame(0x02, 600, 0, 400, 0) + frame(0, 0) * 400)
    assert attacker.verdict == FRAME_ENCODING


def test_many_acknowledgements_in_a_packet_cost_no_more_than_their_bytes():
    """13,000 of them are a loop over what is tracked, which they empty."""
    attacker = Attacker()
    last = last_number(attacker)
    attacker.victim.ping()
    attacker.end.datagrams_to_send(0.0)
    before = attacker.victim.stats()["bytes_in_flight"]
    attacker.send(frame(0x02, last(), 0, 0, 0) * 13_000)
    assert attacker.verdict is None
    assert attacker.victim.stats()["bytes_in_flight"] < before


@pytest.mark.parametrize("exponent", [0, 20])
@pytest.mark.parametrize("delay", [0, 2**22, 2**62 - 1])
def test_an_acknowledgement_delay_cannot_break_the_round_trip(exponent, delay):
    """Whatever it claims, the RTT is from 0 to the time that really passed."""
    attacker = Attacker(prepare=parameters(ack_delay_exponent=exponent))
    last = last_number(attacker)
    start = attacker.now
    for _ in range(20):
        attacker.now += 0.05
        attacker.victim.ping()
        attacker.end.handle_timeout(attacker.now)
        attacker.end.datagrams_to_send(attacker.now)
        attacker.now += 0.05
        attacker.send(frame(0x02, last(), delay, 0, 0))
    assert attacker.verdict is None
    assert 0 <= attacker.victim.stats()["rtt"] <= (attacker.now - start) * 1e6
    assert attacker.end.next_timeout() < attacker.now + 160


# Identifiers.


def test_new_identifiers_without_retirement_stop_at_four():
    """`active_cids` are held; one more is an error (RFC 9000 section 5.1.1)."""
    attacker = Attacker().settle()
    have = attacker.victim.stats()["remote_cids"]
    for number in range(20, 40):
        attacker.send(frame(0x18, number, 0, b"\x08", bytes([number] * 8), bytes(16)))
        if attacker.verdict is not None:
            break
        assert attacker.victim.stats()["remote_cids"] <= 4
    assert attacker.verdict == 0x09
    assert number == 20 + 4 - have


def test_a_storm_of_retirements_is_64_frames():
    """Retire Prior To rises with every frame: RETIRE_CONNECTION_ID is sent 64 times."""
    attacker = Attacker().settle()
    with Memory() as memory:
        for number in range(10, 600):
            attacker.send(
                frame(0x18, number, number, b"\x08", number.to_bytes(8), bytes(16))
            )
            if attacker.verdict is not None:
                break
        assert memory.measure() < 64 * 1024
    assert attacker.verdict == 0x09
    assert 55 <= number - 10 <= 64


def test_retiring_ours_without_end_holds_four():
    """Each is replaced by one; the table of routes does not grow."""
    attacker = Attacker().settle()
    for number in range(1, 50):
        attacker.send(frame(0x19, number))
    with Memory() as memory:
        for number in range(50, 5000):
            attacker.send(frame(0x19, number))
            attacker.end.datagrams_to_send(attacker.now)
        assert memory.measure() < 96 * 1024
    assert attacker.victim.stats()["local_cids"] == 4
    assert attacker.verdict is None


# Keys.


def test_a_forged_key_phase_changes_no_key():
    """The next key was made ahead: 1,000 forgeries are 1,000 dropped packets."""
    attacker = Attacker().settle()
    packets = [
        bytearray(attacker.seal(Epoch.ONE_RTT, frame(0x01), phase=1))
        for _ in range(1000)
    ]
    for packet in packets:
        attacker.end.receive(packet, CLIENT, attacker.now)
    stats = attacker.victim.stats()
    assert stats["key_updates"] == 0
    assert stats["packets_dropped"] == 1000
    attacker.send(frame(0x01))
    assert attacker.verdict is None


def test_key_updates_are_followed_once_an_acknowledgement():
    """A peer that updates with every packet is closed at the second."""
    attacker = Attacker().settle()
    crypto = attacker.quic._cryptos[Epoch.ONE_RTT]
    for count in range(1, 6):
        crypto.update_key()
        attacker.send(frame(0x01))
        attacker.now += 0.05
        attacker.end.handle_timeout(attacker.now)
        attacker.end.datagrams_to_send(attacker.now)
        assert attacker.victim.stats()["key_updates"] == count
    for _ in range(2):
        crypto.update_key()
        attacker.send(frame(0x01))
    assert attacker.verdict == KEY_UPDATE
    assert attacker.victim.stats()["key_updates"] == 6


# Frames where they may not be (RFC 9000 section 12.4).


@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.HANDSHAKE])
@pytest.mark.parametrize(
    "kind", [*range(0x04, 0x06), *range(0x07, 0x1C), 0x1D, 0x1E, 0x1F, 0x30]
)
def test_frames_of_the_application_end_a_handshake(epoch, kind):
    """All but PADDING, PING, ACK, CRYPTO and CONNECTION_CLOSE are an error."""
    attacker = half_way()
    payload = frame(kind).ljust(1180 if epoch == Epoch.INITIAL else 60, b"\0")
    attacker.send(payload, epoch=epoch)
    end = attacker.events[-1].connection.end
    assert end.code in (PROTOCOL_VIOLATION, FRAME_ENCODING)
    assert attacker.end.half_open == 0


# Transport parameters.

NUMBERS = (
    "max_idle_timeout", "max_udp_payload_size", "initial_max_data",
    "initial_max_stream_data_bidi_local", "initial_max_stream_data_bidi_remote",
    "initial_max_stream_data_uni", "initial_max_streams_bidi",
    "initial_max_streams_uni", "ack_delay_exponent", "max_ack_delay",
    "active_connection_id_limit",
)  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**62 - 1])
def test_extreme_parameters_are_refused_or_harmless(name, value):
    """Each alone: TRANSPORT_PARAMETER_ERROR, or a connection that works and ends."""
    far = server(idle_timeout=5)
    attacker = Attacker(far, connect=False, prepare=parameters(**{name: value}))
    attacker.pump(6)
    last = attacker.events[-1].connection
    if last.end is not None:
        assert last.end.code == TRANSPORT_PARAMETER
        return
    attacker.send(frame(0x0B, 0, 1, b"x"))
    last.send(0, bytes(100_000))
    for tick in range(1, 2000):
        attacker.now = tick / 50
        far.handle_timeout(attacker.now)
        for data, _ in far.datagrams_to_send(attacker.now):
            assert len(data) <= 1452
    assert last.stats()["local_cids"] <= 8
    attacker.collect()
    if name != "max_ack_delay":
        assert last.end.initiator == "idle"
    assert far.connections == 0


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
def test_truncated_parameters_are_refused(cut):
    """Any of them cut short closes with its error, and the next client is served."""
    far = server()
    for kind in range(0x11):
        extra = frame(0x3FFF + kind, 8, bytes(8))[:-cut]
        attacker = Attacker(far, connect=False, prepare=parameters(extra=extra))
        attacker.pump(2)
        assert attacker.events[-1].connection.end.code == TRANSPORT_PARAMETER
        if cut == 8:
            continue
        value = frame(kind, 8 - cut, b"\xff" * (8 - cut))
        attacker = Attacker(far, connect=False, prepare=parameters(extra=value))
        attacker.pump(2)
        assert attacker.events[-1].connection.end.code == TRANSPORT_PARAMETER
    assert Attacker(far).verdict is None


# A hostile server.


def test_tokens_from_a_server_are_kept_one_at_a_time():
    """The last, of 1,024 bytes at most; larger ones are ignored."""
    hostile = HostileServer()
    with Memory() as memory:
        for number in range(500):
            hostile.send(frame(0x07, 1024, bytes([number % 256] * 1024)))
        assert memory.measure() < 32 * 1024
    assert hostile.connection.token == bytes([499 % 256] * 1024)
    hostile.send(frame(0x07, 1025, bytes(1025)))
    assert hostile.connection.token == bytes([499 % 256] * 1024)


def test_an_empty_token_is_refused():
    """RFC 9000 section 19.7."""
    hostile = HostileServer()
    hostile.send(frame(0x07, 0))
    assert hostile.connection.end.code == FRAME_ENCODING


def test_tickets_from_a_server_are_not_kept():
    """1,000 NewSessionTicket messages hold nothing."""
    hostile = HostileServer()
    ticket = b"\x04\x00\x00\x64" + bytes(100)
    with Memory() as memory:
        for number in range(1000):
            hostile.send(frame(0x06, number * len(ticket), len(ticket), ticket))
        assert memory.measure() < 32 * 1024
    assert hostile.connection.end is None


def test_a_long_message_after_the_handshake_is_refused():
    """More than 64 KiB for one TLS message is never collected."""
    hostile = HostileServer()
    hostile.send(frame(0x06, 0, 4, b"\x04\xff\xff\xff"))
    assert hostile.connection.end.code == 0x100 + 50


def test_confirmations_again_and_again_do_nothing():
    """HANDSHAKE_DONE is idempotent."""
    hostile = HostileServer()
    hostile.send(frame(0x1E) * 1000)
    hostile.send(frame(0x1E) * 1000)
    assert hostile.connection.end is None
    assert len(hostile.two.near.datagrams_to_send(hostile.two.now)) <= 1
