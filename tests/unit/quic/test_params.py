"""Transport parameters: what we say, what is read, and what is refused."""

import os
import random

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicPreferredAddress,
    QuicTransportParameters,
    pull_quic_transport_parameters,
)

from lightning._core.quic.params import ParameterError, encode, parse
from tests.support.quic import TRANSPORT_PARAMETER, varint


def test_parameters_round_trip():
    """What we say is what is read, with a parameter for nobody beside it."""
    said = QuicTransportParameters(
        max_idle_timeout=150_000, max_udp_payload_size=1472,
        initial_max_data=5, initial_max_streams_bidi=128, max_ack_delay=25,
        initial_source_connection_id=b"12345678", active_connection_id_limit=8,
        initial_max_stream_data_bidi_local=1_250_000,
    )  # fmt: skip
    data = encode(said, os.urandom(8))
    heard = parse(data, by_client=True)
    assert heard.max_idle_timeout == 150_000
    assert heard.max_udp_payload_size == 1472
    assert heard.initial_max_stream_data_bidi_local == 1_250_000
    assert heard.initial_source_cid == b"12345678"
    assert heard.active_connection_id_limit == 8
    assert heard.retry_source_cid is None


def test_absent_parameters_have_their_defaults():
    """RFC 9000 section 18.2."""
    heard = parse(b"", by_client=False)
    assert heard.max_udp_payload_size == 65527
    assert heard.ack_delay_exponent == 3
    assert heard.max_ack_delay == 25
    assert heard.active_connection_id_limit == 2
    assert heard.initial_max_data == 0


@pytest.mark.parametrize(
    ("data", "by_client"),
    [
        (b"\x01", True),
        (b"\x01\x05\x00", True),
        (b"\x01\x02\x00\x00", True),
        (b"\x03\x02\x44\xaf", False),
        (b"\x0a\x01\x15", False),
        (b"\x0b\x04\x80\x00\x40\x00", False),
        (b"\x0e\x01\x01", False),
        (b"\x02\x0f" + bytes(15), False),
        (b"\x02\x10" + bytes(16), True),
        (b"\x00\x08" + bytes(8), True),
        (b"\x10\x08" + bytes(8), True),
        (b"\x0f\x15" + bytes(21), False),
        (b"\x0c\x01\x00", False),
        (b"\x01\x01\x05\x01\x01\x05", False),
        (varint(0x7777) + b"\x00" + varint(0x7777) + b"\x00", False),
        (b"\x08\x08" + varint(2**60 + 1), False),
        (b"\x0d\x05" + bytes(5), False),
    ],
)
def test_bad_parameters_are_refused(data, by_client):
    """Truncated, repeated, out of range, or not for that end to send."""
    with pytest.raises(ParameterError):
        parse(data, by_client=by_client)


def test_the_error_closes_with_its_code():
    """TRANSPORT_PARAMETER_ERROR (RFC 9000 section 20.1)."""
    with pytest.raises(ParameterError, match="ack_delay_exponent") as caught:
        parse(b"\x0a\x01\x15", by_client=True)
    assert caught.value.code == TRANSPORT_PARAMETER


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        (b"\x01\x01\x00", "max_idle_timeout", 0),
        (b"\x03\x02\x44\xb0", "max_udp_payload_size", 1200),
        (b"\x03\x08" + varint(2**62 - 1), "max_udp_payload_size", 2**62 - 1),
        (b"\x08\x08" + varint(2**60), "initial_max_streams_bidi", 2**60),
        (b"\x09\x08" + varint(2**60), "initial_max_streams_uni", 2**60),
        (b"\x0a\x01\x14", "ack_delay_exponent", 20),
        (b"\x0a\x01\x00", "ack_delay_exponent", 0),
        (b"\x0b\x02\x7f\xff", "max_ack_delay", 2**14 - 1),
        (b"\x0b\x01\x00", "max_ack_delay", 0),
        (b"\x0e\x01\x02", "active_connection_id_limit", 2),
        (b"\x04\x08" + varint(2**62 - 1), "initial_max_data", 2**62 - 1),
        (b"\x0f\x14" + bytes(20), "initial_source_cid", bytes(20)),
        (b"\x0f\x00", "initial_source_cid", b""),
        (b"\x00\x00", "original_destination_cid", b""),
        (b"\x10\x00", "retry_source_cid", b""),
        (b"\x02\x10" + bytes(16), "stateless_reset_token", bytes(16)),
    ],
)
def test_the_ends_of_each_range_are_taken(data, name, value):
    """A zero that was said is not a value that was left out, either (18.2)."""
    assert getattr(parse(data, by_client=False), name) == value


def test_each_parameter_keeps_its_own_value():
    """No two are taken for each other."""
    said = QuicTransportParameters(
        original_destination_connection_id=b"original", max_idle_timeout=1,
        stateless_reset_token=bytes(range(16)), max_udp_payload_size=1201,
        initial_max_data=2, initial_max_stream_data_bidi_local=3,
        initial_max_stream_data_bidi_remote=4, initial_max_stream_data_uni=5,
        initial_max_streams_bidi=6, initial_max_streams_uni=7, ack_delay_exponent=8,
        max_ack_delay=9, active_connection_id_limit=10,
        initial_source_connection_id=b"source", retry_source_connection_id=b"retry",
    )  # fmt: skip
    heard = parse(encode(said, bytes(4)), by_client=False)
    assert heard.original_destination_cid == b"original"
    assert heard.initial_source_cid == b"source"
    assert heard.retry_source_cid == b"retry"
    assert heard.stateless_reset_token == bytes(range(16))
    assert [
        heard.max_idle_timeout, heard.max_udp_payload_size, heard.initial_max_data,
        heard.initial_max_stream_data_bidi_local,
        heard.initial_max_stream_data_bidi_remote, heard.initial_max_stream_data_uni,
        heard.initial_max_streams_bidi, heard.initial_max_streams_uni,
        heard.ack_delay_exponent, heard.max_ack_delay,
        heard.active_connection_id_limit,
    ] == [1, 1201, 2, 3, 4, 5, 6, 7, 8, 9, 10]  # fmt: skip


def test_a_preferred_address_is_a_servers_to_name():
    """And has no effect (9.6); a client that names one breaks a rule (18.2)."""
    address = QuicPreferredAddress(
        ipv4_address=("10.0.0.1", 1), ipv6_address=None, connection_id=b"preferred",
        stateless_reset_token=bytes(16),
    )  # fmt: skip
    data = encode(QuicTransportParameters(preferred_address=address), bytes(4))
    assert parse(data, by_client=False) == parse(b"", by_client=False)
    with pytest.raises(ParameterError, match="preferred_address"):
        parse(data, by_client=True)


@pytest.mark.parametrize("number", [0, 1, 255, 65535])
def test_one_parameter_is_for_nobody(number):
    """Its identifier is 27 above a multiple of 31 (RFC 9000 section 18.1)."""
    data = encode(QuicTransportParameters(), number.to_bytes(2) + b"value")
    buffer = Buffer(data=data)
    kind = buffer.pull_uint_var()
    assert kind % 31 == 27
    assert buffer.pull_bytes(buffer.pull_uint_var()) == b"value"
    assert buffer.eof()
    pull_quic_transport_parameters(Buffer(data=data))


def test_noise_is_refused_or_read():
    """Whatever comes is an error of its own kind, never another exception."""
    read = 0
    choose = random.Random(9)
    for seed in range(3000):
        data = choose.randbytes(seed % 40)
        try:
            parse(data, by_client=bool(seed % 2))
        except ParameterError:
            continue
        read += 1
    assert 0 < read < 3000
