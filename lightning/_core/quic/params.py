"""Transport parameters: encoded, decoded and checked (RFC 9000 sections 7.4 and 18.2)."""

from __future__ import annotations

from dataclasses import dataclass

from aioquic._buffer import Buffer
from aioquic.quic.packet import (
    QuicTransportParameters,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)

__all__ = ["ParameterError", "PeerParameters", "encode", "parse"]

_CODE = 0x08  # TRANSPORT_PARAMETER_ERROR
_MAX_STREAMS = 1 << 60


class ParameterError(Exception):
    """The peer's transport parameters break a rule; ``code`` closes the connection."""

    code = _CODE


@dataclass(frozen=True, slots=True)
class PeerParameters:
    """A peer's transport parameters with the defaults filled in.

    Attributes:
        max_idle_timeout: Milliseconds, 0 is none.
        stateless_reset_token: 16 bytes, or empty.
        original_destination_cid: Of a server's; None if it is absent.
        initial_source_cid: None if it is absent.
        retry_source_cid: Of a server's; None if it is absent.

    The others are RFC 9000's, in its units.
    """

    original_destination_cid: bytes | None
    initial_source_cid: bytes | None
    retry_source_cid: bytes | None
    stateless_reset_token: bytes
    max_idle_timeout: int
    max_udp_payload_size: int
    initial_max_data: int
    initial_max_stream_data_bidi_local: int
    initial_max_stream_data_bidi_remote: int
    initial_max_stream_data_uni: int
    initial_max_streams_bidi: int
    initial_max_streams_uni: int
    ack_delay_exponent: int
    max_ack_delay: int
    active_connection_id_limit: int


def encode(parameters: QuicTransportParameters, grease: bytes) -> bytes:
    """Encode our parameters.

    Args:
        parameters: What to say.
        grease: Random bytes; they make a parameter that peers must ignore (RFC 9000
            18.1). The first two choose its identifier, the others are its value.
    """
    buffer = Buffer(capacity=1024)
    push_quic_transport_parameters(buffer, parameters)
    buffer.push_uint_var(31 * int.from_bytes(grease[:2]) + 27)
    buffer.push_uint_var(len(grease) - 2)
    buffer.push_bytes(grease[2:])
    return buffer.data


def parse(data: bytes, *, by_client: bool) -> PeerParameters:
    """Decode a peer's parameters and check all that stands alone.

    Connection IDs are for the caller to compare (RFC 9000 7.3).

    Args:
        data: The extension's bytes.
        by_client: Whether a client sent them.

    Raises:
        ParameterError: They are malformed, repeated, or out of range.
    """
    _refuse_repeats(data)
    try:
        p = pull_quic_transport_parameters(Buffer(data=data))
    except ValueError as error:
        raise ParameterError("malformed transport parameters") from error
    if by_client:
        for name in (
            "original_destination_connection_id",
            "preferred_address",
            "retry_source_connection_id",
            "stateless_reset_token",
        ):
            if getattr(p, name) is not None:
                raise ParameterError(f"{name} is not for a client to send")
    result = PeerParameters(
        original_destination_cid=p.original_destination_connection_id,
        initial_source_cid=p.initial_source_connection_id,
        retry_source_cid=p.retry_source_connection_id,
        stateless_reset_token=p.stateless_reset_token or b"",
        max_idle_timeout=p.max_idle_timeout or 0,
        max_udp_payload_size=_or(p.max_udp_payload_size, 65527),
        initial_max_data=p.initial_max_data or 0,
        initial_max_stream_data_bidi_local=p.initial_max_stream_data_bidi_local or 0,
        initial_max_stream_data_bidi_remote=p.initial_max_stream_data_bidi_remote or 0,
        initial_max_stream_data_uni=p.initial_max_stream_data_uni or 0,
        initial_max_streams_bidi=p.initial_max_streams_bidi or 0,
        initial_max_streams_uni=p.initial_max_streams_uni or 0,
        ack_delay_exponent=_or(p.ack_delay_exponent, 3),
        max_ack_delay=_or(p.max_ack_delay, 25),
        active_connection_id_limit=_or(p.active_connection_id_limit, 2),
    )
    _check(result)
    if p.stateless_reset_token is not None and len(p.stateless_reset_token) != 16:
        raise ParameterError("stateless_reset_token must have 16 bytes")
    for cid in (
        result.original_destination_cid,
        result.initial_source_cid,
        result.retry_source_cid,
    ):
        if cid is not None and len(cid) > 20:
            raise ParameterError("a connection ID is longer than 20 bytes")
    return result


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _check(p: PeerParameters) -> None:
    if p.max_udp_payload_size < 1200:
        raise ParameterError("max_udp_payload_size is below 1200")
    if p.ack_delay_exponent > 20:
        raise ParameterError("ack_delay_exponent is above 20")
    if p.max_ack_delay >= 1 << 14:
        raise ParameterError("max_ack_delay is not below 2^14")
    if p.active_connection_id_limit < 2:
        raise ParameterError("active_connection_id_limit is below 2")
    if max(p.initial_max_streams_bidi, p.initial_max_streams_uni) > _MAX_STREAMS:
        raise ParameterError("initial_max_streams is above 2^60")


def _refuse_repeats(data: bytes) -> None:
    """A parameter may not come twice (RFC 9000 7.4)."""
    buffer = Buffer(data=data)
    seen = set()
    try:
        while not buffer.eof():
            kind = buffer.pull_uint_var()
            if kind in seen:
                raise ParameterError(f"transport parameter {kind:#x} came twice")
            seen.add(kind)
            buffer.pull_bytes(buffer.pull_uint_var())
    except ValueError as error:
        raise ParameterError("malformed transport parameters") from error
