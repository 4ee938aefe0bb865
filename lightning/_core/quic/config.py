"""Settings of the engine: what an endpoint grants, tolerates and waits for."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

__all__ = ["EngineConfig", "Identity"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's certificate and the private key that belongs to it.

    Attributes:
        certificate: Sent to clients as it is; nobody checks its chain, name or dates.
        key: Signs each handshake; P-256 or Ed25519.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Identity:
        """Make a new self-signed P-256 identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lightning")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(1975, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(4096, 1, 1, tzinfo=datetime.UTC))
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an endpoint grants its peers, tolerates of them and waits for.

    Sizes are bytes, times seconds, unless said otherwise.

    Attributes:
        alpn: The one application protocol.
        idle_timeout: A connection without a packet for this long is dead; the smaller
            value of both ends counts (RFC 9000 10.1). 0 is never.
        handshake_timeout: A connection that is not established by then is dropped.
        keep_alive: A PING is sent after this long without a packet; 0 is never.
        unresponsive_timeout: A peer that owes an acknowledgement and sends nothing at
            all for this long, and for three probe timeouts, is given up; 0 leaves it
            to ``idle_timeout``.
        max_data: Received and not consumed, of all streams of a connection.
        max_data_window: Up to which that window doubles on fast paths.
        max_stream_data: Received and not consumed, of a stream.
        max_stream_window: Up to which that window doubles on fast paths.
        max_streams: Bidirectional streams that the peer may have open at a time.
        max_uni_streams: The same for unidirectional streams.
        max_local_streams: Streams of ours that are alive at a time, at most.
        max_buffered: Appended and not acknowledged, of all streams of a connection.
        max_stream_buffered: Appended and not acknowledged, of a stream.
        active_cids: Connection IDs of ours that the peer may hold; 2 to 8.
        ack_delay: The longest that an acknowledgement is held back; below 2^14 ms.
        max_udp_payload: The largest datagram that we take, at least 1200.
        max_datagram: The largest datagram that we send, if the path carries it.
        initial_rtt: What a round trip is taken for before one was measured.
        congestion: ``"cubic"`` or ``"newreno"``.
        initial_window: Sent before the first acknowledgement; 0 is RFC 9002's.
        hystart: Leave slow start when the round trip grows (RFC 9406).
        ecn: Mark packets, and follow the counts that come back.
        retry: Make a client prove its address first, with a Retry packet; server only.
        retry_from: Half-open connections from which on ``retry`` applies.
        max_connections: Connections of the endpoint at a time; server only.
        max_half_open: Connections of the endpoint that are not established; server only.
        max_unauthenticated_per_source: Connections of one IPv4 address, or IPv6 /64,
            that nobody has vouched for; 0 is any number. More are not answered.
            Server only, as the next two.
        max_connections_per_minute: Connections that one source may begin in 60 seconds,
            and at once; 0 is any number. More are not answered.
        max_tracked_rate_ips: Sources that are remembered for these two, 40 bytes each.
        token_lifetime: How long a token of NEW_TOKEN proves an address; 0 sends none.
        retry_lifetime: How long a Retry token is good.
        key_update_after: Packets sealed with one key after which a new one is taken;
            0 is shortly before the AEAD's own limit.
        secret: 32 bytes from which stateless reset tokens and address tokens derive.
            Kept over a restart, it lets peers learn at once of connections that are
            gone. Empty takes random ones.
        cipher_suites: TLS numbers in order of preference; 0x1301 to 0x1303.
        qlog_dir: A directory that gets a file in qlog format for each connection; None
            for none. It costs time and disk: for looking into something.
        qlog_limit: Bytes written there by an endpoint until it stops to.
        keylog_file: A file to which the secrets of all connections are appended, in
            NSS's key log format; None for none. Who has it reads everything.
    """

    alpn: str = "btlightning"
    idle_timeout: float = 150.0
    handshake_timeout: float = 10.0
    keep_alive: float = 0.0
    unresponsive_timeout: float = 0.0
    max_data: int = 16 * _MIB
    max_data_window: int = 64 * _MIB
    max_stream_data: int = 1_250_000
    max_stream_window: int = 16 * _MIB
    max_streams: int = 128
    max_uni_streams: int = 0
    max_local_streams: int = 65536
    max_buffered: int = 64 * _MIB
    max_stream_buffered: int = 16 * _MIB
    active_cids: int = 4
    ack_delay: float = 0.025
    max_udp_payload: int = 1472
    max_datagram: int = 1452
    initial_rtt: float = 0.333
    congestion: str = "cubic"
    initial_window: int = 0
    hystart: bool = True
    ecn: bool = True
    retry: bool = False
    retry_from: int = 0
    max_connections: int = 4096
    max_half_open: int = 512
    max_unauthenticated_per_source: int = 0
    max_connections_per_minute: int = 0
    max_tracked_rate_ips: int = 10_000
    token_lifetime: float = 14 * 86400.0
    retry_lifetime: float = 15.0
    key_update_after: int = 0
    secret: bytes = field(default=b"", repr=False)
    cipher_suites: tuple[int, ...] = (0x1301, 0x1302, 0x1303)
    qlog_dir: str | os.PathLike[str] | None = None
    qlog_limit: int = 1024 * _MIB
    keylog_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value is out of its range.
        """
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, not {value}")
        if self.congestion not in ("cubic", "newreno"):
            raise ConfigError(f"congestion: unknown algorithm {self.congestion!r}")
        if len(self.secret) not in (0, 32):
            raise ConfigError(f"secret must have 32 bytes, not {len(self.secret)}")
        if not self.cipher_suites or set(self.cipher_suites) - {0x1301, 0x1302, 0x1303}:
            raise ConfigError("cipher_suites: 0x1301, 0x1302 and 0x1303 exist")
        for name in ("qlog_dir", "keylog_file"):
            path = getattr(self, name)
            if path is None:
                continue
            if not isinstance(path, str | os.PathLike):
                raise ConfigError(f"{name} must be a path, not {type(path).__name__}")
            text = os.fspath(path)
            if not isinstance(text, str) or not text or "\0" in text:
                raise ConfigError(f"{name}: {text!r} is no path")


_VARINT = 2**62 - 1
_YEAR = 31_536_000.0
_RANGES = (
    ("idle_timeout", 0, _YEAR),
    ("handshake_timeout", 0.001, _YEAR),
    ("keep_alive", 0, _YEAR),
    ("unresponsive_timeout", 0, _YEAR),
    ("max_data", 0, _VARINT),
    ("max_data_window", 0, _VARINT),
    ("max_stream_data", 0, _VARINT),
    ("max_stream_window", 0, _VARINT),
    ("max_streams", 0, 2**60),
    ("max_uni_streams", 0, 2**60),
    ("max_local_streams", 0, 2**32 - 1),
    ("max_buffered", 1, _VARINT),
    ("max_stream_buffered", 1, _VARINT),
    ("active_cids", 2, 8),
    ("ack_delay", 0, 16.383),
    ("max_udp_payload", 1200, 65527),
    ("max_datagram", 1200, 65527),
    ("initial_rtt", 0.001, 60),
    ("initial_window", 0, 2**30),
    ("retry_from", 0, 2**31),
    ("max_connections", 1, 2**31),
    ("max_half_open", 1, 2**31),
    ("max_unauthenticated_per_source", 0, 2**31),
    ("max_connections_per_minute", 0, 2**24),
    ("max_tracked_rate_ips", 1, 2**63 - 1),
    ("token_lifetime", 0, _YEAR),
    ("retry_lifetime", 0.001, _YEAR),
    ("key_update_after", 0, 2**23 - 1024),
    ("qlog_limit", 0, _VARINT),
)
