"""Settings of clients and servers, checked when they are made.

Names, defaults and rules are those of the peer (btlightning 0.2.15); the first rule
broken, in the peer's order, is the one reported. A client's times are seconds as
``float``; a server's fields that the peer has are whole seconds, as their names say.

Every field is converted first: a ``float`` or ``bool`` for an integer is a
``TypeError``, a negative number or one beyond the peer's integer width an
``OverflowError``. A setting that makes no sense is a ``ConfigError``.
"""

from __future__ import annotations

import math
import operator
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.chain.monitor import MetagraphMonitorConfig

__all__ = [
    "LightningClientConfig",
    "LightningClientConfigBuilder",
    "LightningServerConfig",
    "LightningServerConfigBuilder",
]

MIN_FRAME_PAYLOAD: Final = 1_048_576
MAX_FRAME_PAYLOAD: Final = 4_294_967_295
MAX_SIGNATURE_AGE: Final = 3600
# Ten years: what the peer allows for a timeout, and safe for every event loop's timer.
MAX_SECONDS: Final = 315_360_000
# The largest login is below 512 bytes: an SS58 name, a nonce and a signature.
MIN_LOGIN_FRAME: Final = 512
RESET_SECRET: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningClientConfig:
    """Settings of a client.

    Raises:
        ConfigError: A rule is broken; the text names the field, or both fields.
        TypeError: A value of the wrong type.
        OverflowError: A negative number, or one too large for the field.
    """

    connect_timeout: float = 10.0
    """Seconds for a dial and one login on it; above 0, default 10."""

    idle_timeout: float = 150.0
    """Seconds without a packet after which a connection is dead; above 0, default 150.

    The smaller of both ends' values holds.
    """

    keep_alive_interval: float = 30.0
    """Seconds without traffic after which a PING is sent; above 0 and below
    ``idle_timeout``, default 30."""

    reconnect_initial_backoff: float = 1.0
    """Seconds to wait after the first failed reconnect, doubled by each further one;
    above 0 and at most ``reconnect_max_backoff``, default 1."""

    reconnect_max_backoff: float = 60.0
    """Longest wait between reconnects in seconds; above 0, default 60."""

    reconnect_max_retries: int = 5
    """Failures after which a miner is given up to the slow probe; 1 and up, default 5."""

    reconnect_slow_probe_interval: float | None = 60.0
    """Seconds between attempts at a miner that was given up; above 0, default 60.

    None makes no further attempt before the registry is updated.
    """

    max_connections: int = 1024
    """Most connections, counted by address; 1 and up, default 1024."""

    max_frame_payload_bytes: int = 67_108_864
    """Largest payload of one frame in bytes, sent or received; 1 MiB to 4 GiB - 1,
    default 64 MiB.

    Memory: at most this times the requests in flight, and only as data arrives.
    """

    max_stream_payload_bytes: int = 67_108_864
    """Most bytes that collecting a streamed answer may gather; at least
    ``max_frame_payload_bytes``, default 64 MiB.

    Memory: at most this times the streams being collected.
    """

    stream_chunk_timeout: float | None = None
    """Most seconds between two chunks of a streamed answer; above 0, default None:
    no limit."""

    unresponsive_timeout: float | None = 10.0
    """Seconds without any packet from a miner that owes us an acknowledgement after
    which its connection is given up; above 0, default 10, None for ``idle_timeout``.

    Not in the peer. A miner that lost its power or was killed is noticed by this.
    """

    background_reconnect: bool = False
    """Whether a lost connection to a registered miner is dialled again by itself, so
    that a query rarely meets a dead one; default False: by the next query.

    Not in the peer. It keeps to the same back-off.
    """

    reconnect_jitter: float = 0.25
    """Part of each wait of a background reconnect that is left to chance, so that many
    validators do not come back to a miner at once; 0 to 1, default 0.25.

    Not in the peer.
    """

    qlog_dir: str | None = None
    """A directory that gets a trace in qlog format of each connection; default None.

    Not in the peer. It costs time and disk, at most 1 GiB for each socket: for looking
    into something.
    """

    keylog_file: str | None = None
    """A file to which the secrets of all connections are appended, in NSS's key log
    format, for Wireshark; default None. Who has it reads everything. Not in the peer.
    """

    metagraph: MetagraphMonitorConfig | None = None
    """The subnet whose miners it keeps connections to, as the chain has them; default
    None: those that it is told."""

    def __post_init__(self) -> None:
        _convert(self)
        _require_non_zero(
            self, "connect_timeout", "idle_timeout", "keep_alive_interval"
        )
        if self.keep_alive_interval >= self.idle_timeout:
            raise ConfigError(
                f"keep_alive_interval ({self.keep_alive_interval:g}s) must be less "
                f"than idle_timeout ({self.idle_timeout:g}s)"
            )
        _require_non_zero(self, "reconnect_initial_backoff", "reconnect_max_backoff")
        if self.reconnect_initial_backoff > self.reconnect_max_backoff:
            raise ConfigError(
                f"reconnect_initial_backoff ({self.reconnect_initial_backoff:g}s) must "
                f"be <= reconnect_max_backoff ({self.reconnect_max_backoff:g}s)"
            )
        _require_at_least_one(self, "reconnect_max_retries")
        _require_non_zero(self, "reconnect_slow_probe_interval")
        _require_at_least_one(self, "max_connections")
        _check_frame_limit(self.max_frame_payload_bytes)
        if self.max_stream_payload_bytes < self.max_frame_payload_bytes:
            raise ConfigError(
                f"max_stream_payload_bytes ({self.max_stream_payload_bytes}) must be "
                f">= max_frame_payload_bytes ({self.max_frame_payload_bytes})"
            )
        _require_non_zero(self, "stream_chunk_timeout", "unresponsive_timeout")
        if self.reconnect_jitter > 1:
            raise ConfigError(
                f"reconnect_jitter ({self.reconnect_jitter:g}) must not exceed 1"
            )
        _require_timer_range(self)

    @staticmethod
    def builder() -> LightningClientConfigBuilder:
        """Start a builder with all defaults."""
        return LightningClientConfigBuilder()


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningServerConfig:
    """Settings of a server.

    Raises:
        ConfigError: A rule is broken; the text names the field, or both fields.
        TypeError: A value of the wrong type.
        OverflowError: A negative number, or one too large for the field.
    """

    max_signature_age_secs: int = 300
    """Oldest login accepted, in seconds; 1 to 3600, default 300."""

    idle_timeout_secs: int = 150
    """Seconds without a packet after which a connection is dead; above 0, default 150.

    The smaller of both ends' values holds.
    """

    keep_alive_interval_secs: int = 30
    """Seconds without traffic after which a PING is sent; above 0 and below
    ``idle_timeout_secs``, default 30."""

    nonce_cleanup_interval_secs: int = 60
    """Seconds between two sweeps of used nonces; above 0, default 60."""

    max_connections: int = 128
    """Most validators connected at once; above 0, default 128."""

    max_nonce_entries: int = 100_000
    """Most used nonces remembered; above 0, default 100 000.

    Memory: about 100 bytes times this.
    """

    handshake_timeout_secs: int = 10
    """Seconds from a login's first byte to its answer; above 0 and below
    ``idle_timeout_secs``, default 10."""

    max_handshake_attempts_per_minute: int = 30
    """Logins accepted for checking from one IP address in 60 seconds; above 0,
    default 30."""

    max_concurrent_bidi_streams: int = 128
    """Requests that one connection may have open at once; above 0, default 128.

    Memory: at most this times ``max_frame_payload_bytes`` for one validator, times
    ``max_connections`` for all; only as data arrives.
    """

    require_validator_permit: bool = False
    """Whether only hotkeys of the permit resolver may log in; default False."""

    validator_permit_refresh_secs: int = 1800
    """Seconds between two questions to the permit resolver; above 0, default 1800."""

    max_tracked_rate_ips: int = 10_000
    """Most addresses whose logins are counted; above 0, default 10 000.

    Memory: about 100 bytes plus 8 times ``max_handshake_attempts_per_minute``, times
    this.
    """

    handler_timeout_secs: int = 30
    """Seconds for a handler, for a streaming one until its last chunk; above 0 and
    below ``idle_timeout_secs``, default 30."""

    max_frame_payload_bytes: int = 67_108_864
    """Largest payload of one frame in bytes, sent or received; 1 MiB to 4 GiB - 1,
    default 64 MiB. For its memory see ``max_concurrent_bidi_streams``."""

    streaming_channel_buffer: int = 32
    """Chunks that a streaming handler may be ahead of the network; above 0, default 32.

    Memory: this times the size of the handler's chunks, for each stream.
    """

    enforce_source_allowlist: bool = False
    """Whether packets from addresses that the source resolver does not name are
    ignored; default False."""

    source_allowlist_refresh_secs: int = 300
    """Seconds between two questions to the source resolver; above 0, default 300."""

    require_address_validation: bool = True
    """Whether a new client must first prove its address by a Retry (RFC 9000
    section 8.1.2); default True."""

    handler_threads: int = 512
    """Most handlers in threads at once, a thread each; above 0, default 512.

    Not in the peer. Threads start when needed. A plain handler has one while it runs, a
    sync generator until its stream ends; one that is stuck keeps it.
    """

    login_deadline_secs: float = 10.0
    """Seconds after which a connection without a login is closed; above 0, default 10.

    Not in the peer.
    """

    max_unauthenticated_connections: int = 256
    """Most connections without a login at once; above 0, default 256.

    Not in the peer. Memory: at most this times ``max_concurrent_bidi_streams`` times
    ``max_login_frame_bytes``.
    """

    max_login_frame_bytes: int = 65_536
    """Largest payload of a frame before the login, in bytes; 512 and up, at most
    ``max_frame_payload_bytes``, default 64 KiB.

    Not in the peer. A login takes below 512 bytes.
    """

    frame_timeout_secs: float = 60.0
    """Seconds for a request's frame to arrive whole, from its first byte; above 0,
    default 60, the longest that the peer's client takes to send one.

    Not in the peer. A large request on a slow path needs more: 64 MiB in 60 seconds
    are 9 Mbit/s.
    """

    max_unauthenticated_per_source: int | None = None
    """Most of ``max_unauthenticated_connections`` from one source address, IPv6 counted
    by /64; above 0, default None: a quarter of them.

    Not in the peer.
    """

    max_connections_per_minute: int | None = None
    """New connections accepted from one source address in 60 seconds, IPv6 counted by
    /64; above 0, default None: four times ``max_handshake_attempts_per_minute``.

    Not in the peer. Memory: 40 bytes for each of ``max_tracked_rate_ips``.
    """

    max_concurrent_requests: int | None = None
    """Most requests of all validators that are worked on at once; above 0, default
    None: as many as there are streams and handler threads.

    Not in the peer. Further ones wait, those of the highest priority first.
    """

    max_concurrent_requests_per_validator: int | None = None
    """The same for one validator; above 0, default None. Not in the peer."""

    max_queued_requests: int = 16_384
    """Requests that may wait for their turn; above 0, default 16384. Further ones are
    answered ``server busy``.

    Not in the peer. Memory: at most this times ``max_frame_payload_bytes``.
    """

    max_requests_per_second: float | None = None
    """Requests of one validator in a second, on average; above 0, default None: no
    limit. What comes above is answered ``too many requests``. Not in the peer."""

    request_burst: int = 32
    """Requests of one validator that may come at once under
    ``max_requests_per_second``; above 0, default 32. Not in the peer."""

    reset_secret: bytes | None = field(default=None, repr=False)
    """32 bytes by which a restarted server tells its old clients at once that their
    connections are gone (RFC 9000 section 10.3.2); default None: made from the signer's
    seed and the address, or by chance where the signer is not a seed.

    Not in the peer.
    """

    qlog_dir: str | None = None
    """A directory that gets a trace in qlog format of each connection; default None.

    Not in the peer. It costs time and disk, at most 1 GiB: for looking into something.
    """

    keylog_file: str | None = None
    """A file to which the secrets of all connections are appended, in NSS's key log
    format, for Wireshark; default None. Who has it reads everything. Not in the peer.
    """

    def __post_init__(self) -> None:
        _convert(self)
        _require_non_zero(self, "max_signature_age_secs")
        if self.max_signature_age_secs > MAX_SIGNATURE_AGE:
            raise ConfigError("max_signature_age_secs must not exceed 3600 (1 hour)")
        _require_non_zero(
            self,
            "nonce_cleanup_interval_secs",
            "idle_timeout_secs",
            "keep_alive_interval_secs",
        )
        self._require_below_idle_timeout("keep_alive_interval_secs")
        _require_non_zero(
            self, "max_connections", "max_nonce_entries", "handshake_timeout_secs"
        )
        self._require_below_idle_timeout("handshake_timeout_secs")
        _require_non_zero(
            self,
            "max_handshake_attempts_per_minute",
            "max_concurrent_bidi_streams",
            "validator_permit_refresh_secs",
            "max_tracked_rate_ips",
            "handler_timeout_secs",
        )
        self._require_below_idle_timeout("handler_timeout_secs")
        _check_frame_limit(self.max_frame_payload_bytes)
        _require_non_zero(
            self,
            "streaming_channel_buffer",
            "source_allowlist_refresh_secs",
            "handler_threads",
            "login_deadline_secs",
            "max_unauthenticated_connections",
            "frame_timeout_secs",
            "max_unauthenticated_per_source",
            "max_connections_per_minute",
            "max_concurrent_requests",
            "max_concurrent_requests_per_validator",
            "max_queued_requests",
            "max_requests_per_second",
            "request_burst",
        )
        self._check_login_frame_limit()
        if self.reset_secret is not None and len(self.reset_secret) != RESET_SECRET:
            raise ConfigError(
                f"reset_secret must have {RESET_SECRET} bytes, "
                f"not {len(self.reset_secret)}"
            )
        _require_timer_range(self)

    def _require_below_idle_timeout(self, name: str) -> None:
        value = getattr(self, name)
        if value >= self.idle_timeout_secs:
            raise ConfigError(
                f"{name} ({value}) must be less than idle_timeout_secs "
                f"({self.idle_timeout_secs})"
            )

    def _check_login_frame_limit(self) -> None:
        value = self.max_login_frame_bytes
        if value < MIN_LOGIN_FRAME:
            raise ConfigError(
                f"max_login_frame_bytes ({value}) must be at least {MIN_LOGIN_FRAME}"
            )
        if value > self.max_frame_payload_bytes:
            raise ConfigError(
                f"max_login_frame_bytes ({value}) must be <= max_frame_payload_bytes "
                f"({self.max_frame_payload_bytes})"
            )

    @staticmethod
    def builder() -> LightningServerConfigBuilder:
        """Start a builder with all defaults."""
        return LightningServerConfigBuilder()


_Value = TypeVar("_Value")
_ConfigT = TypeVar("_ConfigT")
_BuilderT = TypeVar("_BuilderT", bound="_Builder[Any]")


class _Setter(Generic[_Value]):
    """A builder's method that remembers one field's value and returns the builder."""

    __slots__ = ("_name",)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, builder: None, owner: type) -> _Setter[_Value]: ...
    @overload
    def __get__(
        self, builder: _BuilderT, owner: type
    ) -> Callable[[_Value], _BuilderT]: ...
    def __get__(self, builder: _BuilderT | None, owner: type) -> Any:
        if builder is None:
            return self

        def set_value(value: _Value) -> _BuilderT:
            builder._values[self._name] = value
            return builder

        return set_value


class _Builder(Generic[_ConfigT]):
    """Collects values; the config checks them when it is built."""

    __slots__ = ("_values",)

    _config: type[_ConfigT]

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def build(self) -> _ConfigT:
        """Make the config.

        Raises:
            ConfigError: A rule is broken.
            TypeError: A value of the wrong type.
            OverflowError: A negative number, or one too large for its field.
        """
        return self._config(**self._values)


class LightningClientConfigBuilder(_Builder[LightningClientConfig]):
    """Builds a ``LightningClientConfig`` by one chainable call for each field."""

    __slots__ = ()

    _config = LightningClientConfig

    connect_timeout = _Setter[float]()
    idle_timeout = _Setter[float]()
    keep_alive_interval = _Setter[float]()
    reconnect_initial_backoff = _Setter[float]()
    reconnect_max_backoff = _Setter[float]()
    reconnect_max_retries = _Setter[int]()
    reconnect_slow_probe_interval = _Setter[float | None]()
    max_connections = _Setter[int]()
    max_frame_payload_bytes = _Setter[int]()
    max_stream_payload_bytes = _Setter[int]()
    stream_chunk_timeout = _Setter[float]()
    unresponsive_timeout = _Setter[float | None]()
    background_reconnect = _Setter[bool]()
    reconnect_jitter = _Setter[float]()
    qlog_dir = _Setter[str | None]()
    keylog_file = _Setter[str | None]()
    metagraph = _Setter["MetagraphMonitorConfig"]()


class LightningServerConfigBuilder(_Builder[LightningServerConfig]):
    """Builds a ``LightningServerConfig`` by one chainable call for each field."""

    __slots__ = ()

    _config = LightningServerConfig

    max_signature_age_secs = _Setter[int]()
    idle_timeout_secs = _Setter[int]()
    keep_alive_interval_secs = _Setter[int]()
    nonce_cleanup_interval_secs = _Setter[int]()
    max_connections = _Setter[int]()
    max_nonce_entries = _Setter[int]()
    handshake_timeout_secs = _Setter[int]()
    max_handshake_attempts_per_minute = _Setter[int]()
    max_concurrent_bidi_streams = _Setter[int]()
    require_validator_permit = _Setter[bool]()
    validator_permit_refresh_secs = _Setter[int]()
    max_tracked_rate_ips = _Setter[int]()
    handler_timeout_secs = _Setter[int]()
    max_frame_payload_bytes = _Setter[int]()
    streaming_channel_buffer = _Setter[int]()
    enforce_source_allowlist = _Setter[bool]()
    source_allowlist_refresh_secs = _Setter[int]()
    require_address_validation = _Setter[bool]()
    handler_threads = _Setter[int]()
    login_deadline_secs = _Setter[float]()
    max_unauthenticated_connections = _Setter[int]()
    max_login_frame_bytes = _Setter[int]()
    frame_timeout_secs = _Setter[float]()
    max_unauthenticated_per_source = _Setter[int | None]()
    max_connections_per_minute = _Setter[int | None]()
    max_concurrent_requests = _Setter[int | None]()
    max_concurrent_requests_per_validator = _Setter[int | None]()
    max_queued_requests = _Setter[int]()
    max_requests_per_second = _Setter[float | None]()
    request_burst = _Setter[int]()
    reset_secret = _Setter[bytes | None]()
    qlog_dir = _Setter[str | None]()
    keylog_file = _Setter[str | None]()


# Fields that the peer, or a QUIC transport parameter, keeps in 32 bits.
_NARROW: Final = frozenset(
    {
        "reconnect_max_retries",
        "max_handshake_attempts_per_minute",
        "max_concurrent_bidi_streams",
    }
)


def _convert(config: LightningClientConfig | LightningServerConfig) -> None:
    """Bring every field to its declared type, in the order of declaration."""
    for each in fields(config):
        name, value = each.name, getattr(config, each.name)
        # Annotations are strings here: the module postpones their evaluation.
        kind, _, optional = str(each.type).partition(" | ")
        if value is not None or not optional:
            object.__setattr__(config, name, _CONVERTERS[kind](name, value))


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {_kind(value)}")
    return value


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, not {_kind(value)}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name}: {text!r} is no path")
    return text


def _binary(name: str, value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray):
        raise TypeError(f"{name} must be bytes, not {_kind(value)}")
    return bytes(value)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {_kind(value)}")
    number = operator.index(value)
    if number < 0:
        raise OverflowError(f"{name} must not be negative")
    bits = 32 if name in _NARROW else 64
    if number >> bits:
        raise OverflowError(f"{name} does not fit in {bits} bits")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not (
        hasattr(value, "__float__") or hasattr(value, "__index__")
    ):
        raise TypeError(f"{name} must be a number, not {_kind(value)}")
    number = float(value)
    if number < 0:
        raise OverflowError(f"{name} must not be negative")
    if math.isnan(number):
        raise ConfigError(f"{name} must be a number, not NaN")
    return number


def _followed(name: str, value: Any) -> Any:
    # Whoever follows a subnet has imported it.
    from lightning.chain.monitor import MetagraphMonitorConfig  # noqa: PLC0415

    if not isinstance(value, MetagraphMonitorConfig):
        raise TypeError(f"{name} must be a MetagraphMonitorConfig, not {_kind(value)}")
    return value


_CONVERTERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "bool": _boolean,
    "bytes": _binary,
    "float": _number,
    "int": _integer,
    "str": _path,
    "MetagraphMonitorConfig": _followed,
}


def _kind(value: Any) -> str:
    return type(value).__name__


def _require_non_zero(
    config: LightningClientConfig | LightningServerConfig, *names: str
) -> None:
    # None switches a setting off; 0 does not.
    for name in names:
        if getattr(config, name) == 0:
            raise ConfigError(f"{name} must be non-zero")


def _require_at_least_one(config: LightningClientConfig, name: str) -> None:
    if getattr(config, name) < 1:
        raise ConfigError(f"{name} must be at least 1")


def _require_timer_range(config: LightningClientConfig | LightningServerConfig) -> None:
    for each in fields(config):
        if each.type in ("float", "float | None") or each.name.endswith("_secs"):
            value = getattr(config, each.name)
            if value is not None and value > MAX_SECONDS:
                raise ConfigError(f"{each.name} must not exceed {MAX_SECONDS} seconds")


def _check_frame_limit(value: int) -> None:
    if value < MIN_FRAME_PAYLOAD:
        raise ConfigError(
            f"max_frame_payload_bytes ({value}) must be at least 1048576 (1 MB)"
        )
    if value > MAX_FRAME_PAYLOAD:
        raise ConfigError(
            f"max_frame_payload_bytes ({value}) must not exceed 4294967295 (u32::MAX)"
        )
