"""Transport parameters.

Whatever comes is refused as such, or every value is one that RFC
9000 allows (section 18.2), fits the engine's records, and is read again from what aioquic
writes for it.
"""

from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicTransportParameters,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)

from lightning._core.quic.params import ParameterError, encode, parse

# What the records of the engine and RFC 9000 have room for.
VARINT = 2**62
BELOW = {
    "max_idle_timeout": VARINT,
    "max_udp_payload_size": VARINT,
    "initial_max_data": VARINT,
    "initial_max_stream_data_bidi_local": VARINT,
    "initial_max_stream_data_bidi_remote": VARINT,
    "initial_max_stream_data_uni": VARINT,
    "initial_max_streams_bidi": 2**60 + 1,
    "initial_max_streams_uni": 2**60 + 1,
    "ack_delay_exponent": 21,
    "max_ack_delay": 2**14,
    "active_connection_id_limit": VARINT,
}


def check(data):
    """The first bit says who sent the rest."""
    by_client = bool(data[:1] and data[0] & 1)
    data = data[1:]
    try:
        result = parse(data, by_client=by_client)
    except ParameterError:
        return
    for name, limit in BELOW.items():
        assert 0 <= getattr(result, name) < limit, name
    assert result.max_udp_payload_size >= 1200
    assert result.active_connection_id_limit >= 2
    assert len(result.stateless_reset_token) in (0, 16)
    cids = (
        result.original_destination_cid,
        result.initial_source_cid,
        result.retry_source_cid,
    )
    assert all(cid is None or len(cid) <= 20 for cid in cids)
    if by_client:
        assert cids[0] is cids[2] is None
        assert not result.stateless_reset_token
    buffer = Buffer(capacity=len(data) + 64)
    push_quic_transport_parameters(
        buffer, pull_quic_transport_parameters(Buffer(data=data))
    )
    assert parse(buffer.data, by_client=by_client) == result


def seeds():
    """What both ends say, each parameter alone, and none."""
    yield b""
    ours = QuicTransportParameters(
        max_idle_timeout=30_000,
        max_udp_payload_size=1472,
        initial_max_data=2**24,
        initial_max_stream_data_bidi_local=2**20,
        initial_max_stream_data_bidi_remote=2**20,
        initial_max_stream_data_uni=2**20,
        initial_max_streams_bidi=128,
        initial_max_streams_uni=3,
        ack_delay_exponent=3,
        max_ack_delay=25,
        disable_active_migration=True,
        active_connection_id_limit=4,
        initial_source_connection_id=b"12345678",
    )
    yield b"\x01" + encode(ours, b"\x00\x01\x02\x03")
    ours.original_destination_connection_id = b"abcdefgh"
    ours.retry_source_connection_id = b"ABCDEFGH"
    ours.stateless_reset_token = bytes(range(16))
    yield b"\x00" + encode(ours, b"\x00\x01\x02\x03")
    for kind in range(0x12):
        yield bytes([kind & 1, kind, 4, 0x80, 0, 0x20, 0])
        yield bytes([0, kind, 16]) + bytes(16)
    preferred = bytes(24) + b"\x08" + bytes(24)
    yield b"\x00\x0d" + bytes([len(preferred)]) + preferred
