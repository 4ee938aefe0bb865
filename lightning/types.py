"""Addresses, requests and responses, and the shapes that handlers may have.

The ``TypedDict`` classes are those of the peer's Python package, for the dicts that the
blocking face takes and returns. One differs in name: ``SynapseResponse`` is a wire
message in the peer's Rust crate and a dict in its Python package; here it is the wire
message, and the dict is ``SynapseResponseDict``.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    NotRequired,
    Protocol,
    TypedDict,
    TypeVar,
)

from lightning.errors import ConfigError, HandlerError, MissingField, ServerBusy
from lightning.typed import from_data, to_data

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Iterable

__all__ = [
    "AsyncSynapseHandler",
    "AxonInfoDict",
    "BlockingStreamSender",
    "ClientConnectionStats",
    "PeerAddr",
    "QuicAxonInfo",
    "QuicRequest",
    "QuicResponse",
    "SendingSynapseHandler",
    "ServerConnectionStats",
    "StreamSender",
    "StreamingSynapseHandler",
    "SynapseHandler",
    "SynapseRequest",
    "SynapseResponseDict",
    "check_timeout",
]

_T = TypeVar("_T")

PROTOCOL_QUIC: Final = 4
"""The number in an axon's ``protocol`` that stands for QUIC, by the peer's convention."""

MAX_TIMEOUT: Final = 315_360_000.0
"""Longest timeout in seconds: ten years."""

NOT_BEGUN: Final = ("server busy", "too many requests")
"""The error texts of requests that a miner did not begin, for want of room."""


class PeerAddr(NamedTuple):
    """The address of one end of a connection.

    It is a tuple: hashable, ordered, and equal to the plain pair.
    """

    ip: str
    """IPv4 or IPv6 address without brackets, or a host name."""

    port: int
    """UDP port, 0 to 65535."""

    def __str__(self) -> str:
        ip, port = self
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    @classmethod
    def parse(cls, text: str) -> PeerAddr:
        """Read ``ip:port`` or ``[ip]:port``.

        Raises:
            ConfigError: The text has another form, or the port is above 65535.
        """
        ip, colon, port = text.rpartition(":")
        if ip.startswith("[") and ip.endswith("]"):
            ip = ip[1:-1]
        elif ":" in ip:
            raise ConfigError(f"address {text!r} needs brackets around its IPv6 part")
        if not (colon and ip and port.isascii() and port.isdigit()) or "]" in ip:
            raise ConfigError(f"address {text!r} is not ip:port")
        if len(port) > 5 or int(port) > 65535:
            raise ConfigError(f"address {text!r} has a port above 65535")
        return cls(ip, int(port))


@dataclass(slots=True)
class QuicAxonInfo:
    """A miner's place in the network. Every assignment is checked.

    Raises:
        TypeError: A text is not a ``str``, or a number not an ``int``.
        OverflowError: The port is outside of 0 to 65535, the protocol of 0 to 255.
    """

    hotkey: str
    """SS58 address of the miner."""

    ip: str
    """IPv4 or IPv6 address, or a host name."""

    port: int
    """UDP port, 0 to 65535."""

    protocol: int = PROTOCOL_QUIC
    """Protocol number on the chain, 0 to 255, default 4 (QUIC). Not used to connect."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "port":
            value = _bounded(name, value, 0xFFFF)
        elif name == "protocol":
            value = _bounded(name, value, 0xFF)
        elif not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
        object.__setattr__(self, name, value)

    @property
    def address(self) -> PeerAddr:
        """The address to dial, which is also the key of its connection."""
        return PeerAddr(self.ip, self.port)

    def addr_key(self) -> PeerAddr:
        """Return ``address``, by the name it has in the peer's Rust crate."""
        return PeerAddr(self.ip, self.port)

    @classmethod
    def coerce(cls, axon: Any) -> QuicAxonInfo:
        """Accept what callers have in place of a ``QuicAxonInfo``.

        Args:
            axon: A ``QuicAxonInfo``, returned as it is; a mapping with ``hotkey``,
                ``ip``, ``port`` and perhaps ``protocol``; or an object with these
                attributes, such as bittensor's ``AxonInfo``.

        Raises:
            MissingField: A mapping lacks ``hotkey``, ``ip`` or ``port``, looked for in
                this order.
            TypeError: Neither of the three, or a value of a wrong type.
            OverflowError: A number outside of its range.
        """
        if isinstance(axon, cls):
            return axon
        if type(axon) is dict or isinstance(axon, Mapping):
            try:
                return cls(
                    axon["hotkey"],
                    axon["ip"],
                    axon["port"],
                    axon.get("protocol", PROTOCOL_QUIC),
                )
            except KeyError:
                for name in ("hotkey", "ip", "port"):
                    if name not in axon:
                        raise MissingField(name) from None
                raise
        try:
            hotkey, ip, port = axon.hotkey, axon.ip, axon.port
        except AttributeError:
            raise TypeError(
                "an axon is a QuicAxonInfo, a mapping, or an object with hotkey, ip "
                f"and port, not {type(axon).__name__}"
            ) from None
        return cls(hotkey, ip, port, getattr(axon, "protocol", PROTOCOL_QUIC))


@dataclass(slots=True)
class QuicRequest:
    """A request to a miner.

    Raises:
        TypeError: ``synapse_type`` is not a ``str``, or ``data`` not a mapping. Keys
            and values of ``data`` are checked when it is encoded.
    """

    synapse_type: str
    """Name of the handler to reach."""

    data: dict[str, Any] = field(default=None)  # type: ignore[arg-type]  # None is {}.
    """The handler's argument: ``str`` keys, values that msgpack can say; default {}."""

    def __post_init__(self) -> None:
        if not isinstance(self.synapse_type, str):
            raise TypeError(
                f"synapse_type must be a str, not {type(self.synapse_type).__name__}"
            )
        if type(self.data) is dict:
            return
        # A caller without a type checker may have passed anything.
        data: Any = self.data
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"data must be a mapping, not {type(data).__name__}")
        self.data = {} if data is None else dict(data)

    @classmethod
    def from_typed(cls, type_name: str, obj: Any) -> QuicRequest:
        """Make a request from a typed object; see ``lightning.typed``.

        Args:
            type_name: Name of the handler to reach.
            obj: A dataclass, TypedDict, msgspec ``Struct`` or pydantic model.

        Raises:
            EncodeTypeError: The object does not become a map.
            EncodeError: It is nested too deeply, or contains itself.
        """
        return cls(type_name, to_data(obj))

    @classmethod
    def coerce(cls, request: Any) -> QuicRequest:
        """Accept a ``QuicRequest``, returned as it is, or a mapping of its fields.

        Raises:
            MissingField: A mapping lacks ``synapse_type``.
            TypeError: Neither of both, or a value of a wrong type.
        """
        if isinstance(request, cls):
            return request
        # A dict is asked for first: the abstract class answers slowly.
        if type(request) is not dict and not isinstance(request, Mapping):
            raise TypeError(
                f"a request is a QuicRequest or a mapping, not {type(request).__name__}"
            )
        try:
            synapse_type = request["synapse_type"]
        except KeyError:
            raise MissingField("synapse_type") from None
        data = request.get("data", {})
        if data is None:
            raise TypeError("data must be a mapping, not NoneType")
        return cls(synapse_type, data)

    @classmethod
    def parts(cls, request: Any) -> tuple[str, dict[str, Any]]:
        """Return type and data of what `coerce` accepts; raises as that does."""
        if type(request) is dict:
            synapse_type, data = request.get("synapse_type"), request.get("data")
            if type(synapse_type) is str and type(data) is dict:
                # Nothing to check or to convert, and nothing to keep.
                return synapse_type, data
        checked = cls.coerce(request)
        return checked.synapse_type, checked.data


@dataclass(slots=True)
class QuicResponse:
    """A miner's answer. A handler that failed gives one too, with ``success`` False."""

    success: bool
    """Whether the handler succeeded."""

    data: dict[str, Any]
    """What the handler returned; empty if it failed."""

    latency_ms: float
    """Milliseconds from sending the request to the last byte of the answer."""

    error: str | None = None
    """The miner's error text, generic by design; None on success."""

    def into_result(self) -> dict[str, Any]:
        """Return ``data`` of a successful answer.

        Raises:
            ServerBusy: The miner did not begin: it has no room, or had too many
                requests of this validator.
            HandlerError: The answer reports a failure, with its text if it has one.
        """
        if not self.success:
            if self.error in NOT_BEGUN:
                raise ServerBusy(self.error)
            raise HandlerError("request failed" if self.error is None else self.error)
        return self.data

    def deserialize_data(self, type_: type[_T]) -> _T:
        """Build a typed object from ``data``, whether or not the answer is a success.

        Args:
            type_: The type to build; see ``lightning.typed``.

        Raises:
            DecodeError: A key is missing or a value does not fit.
            ConfigError: The type cannot be built from a map.
        """
        return from_data(type_, self.data)

    def to_dict(self) -> SynapseResponseDict:
        """Return the dict that the peer's Python package returns for a query."""
        return {
            "success": self.success,
            "data": self.data,
            "latency_ms": self.latency_ms,
            "error": self.error,
        }


class AxonInfoDict(TypedDict):
    """A miner as a dict."""

    hotkey: str
    ip: str
    port: int
    protocol: NotRequired[int]


class SynapseRequest(TypedDict):
    """A request as a dict."""

    synapse_type: str
    data: NotRequired[dict[str, Any]]


class SynapseResponseDict(TypedDict):
    """An answer as a dict; the peer's Python package calls it ``SynapseResponse``."""

    success: bool
    data: dict[str, Any]
    latency_ms: float
    error: str | None


class ClientConnectionStats(TypedDict):
    """A client's statistics; further keys are ``connection_{ip}:{port}``."""

    total_connections: str
    active_miners: str


class ServerConnectionStats(TypedDict):
    """A server's statistics; further keys are ``connection_{hotkey}``."""

    total_connections: str
    verified_connections: str


class SynapseHandler(Protocol):
    """An object that answers requests, in a thread of the pool."""

    def handle(self, synapse_type: str, data: dict[str, Any]) -> Any:
        """Return the answer's map, or a typed object that becomes one."""


class AsyncSynapseHandler(Protocol):
    """An object that answers requests, on the event loop."""

    def handle(self, synapse_type: str, data: dict[str, Any]) -> Awaitable[Any]:
        """Return the answer's map, or a typed object that becomes one."""


class StreamingSynapseHandler(Protocol):
    """An object that answers with a stream, as a generator of chunks."""

    def handle(
        self, synapse_type: str, data: dict[str, Any]
    ) -> Iterable[bytes] | AsyncIterable[bytes]:
        """Yield the chunks; a plain generator runs in a thread of the pool."""


class SendingSynapseHandler(Protocol):
    """An object that answers with a stream, by sending the chunks."""

    def handle(self, synapse_type: str, data: dict[str, Any], sender: Any) -> Any:
        """Send the chunks and return.

        ``sender`` is a ``StreamSender`` if this is an ``async def``, otherwise a
        ``BlockingStreamSender``, and this runs in a thread of the pool.
        """


class StreamSender(Protocol):
    """Takes the chunks of a streamed answer, on the event loop."""

    async def send(self, chunk: bytes) -> None:
        """Hand over one chunk, waiting while the reader is behind.

        Raises:
            StreamError: The chunk is not bytes-like.
        """


class BlockingStreamSender(Protocol):
    """Takes the chunks of a streamed answer, in a thread."""

    def send(self, chunk: bytes) -> None:
        """Hand over one chunk, waiting while the reader is behind.

        Raises:
            StreamError: The chunk is not bytes-like, or the reader has gone.
        """


def check_timeout(timeout_secs: float | None) -> float | None:
    """Check a timeout given by a caller.

    Args:
        timeout_secs: Seconds, above 0 and up to ten years; None for no limit.

    Returns:
        The same as ``float``, or None.

    Raises:
        ConfigError: Zero, negative, subnormal, infinite, NaN, or above ten years.
        TypeError: Not a number.
    """
    if timeout_secs is None:
        return None
    if type(timeout_secs) in (float, int) and 1 <= timeout_secs <= MAX_TIMEOUT:
        return float(timeout_secs)
    try:
        seconds = float(timeout_secs) if _is_number(timeout_secs) else None
    except OverflowError:
        seconds = MAX_TIMEOUT * 2
    if seconds is None:
        raise TypeError(
            f"timeout_secs must be a number, not {type(timeout_secs).__name__}"
        )
    # NaN fails every comparison.
    if not sys.float_info.min <= seconds <= MAX_TIMEOUT:
        raise ConfigError(
            f"timeout_secs must be a finite positive number, got {seconds}"
        )
    return seconds


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and (
        hasattr(value, "__float__") or hasattr(value, "__index__")
    )


def _bounded(name: str, value: Any, largest: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = operator.index(value)
    if not 0 <= number <= largest:
        raise OverflowError(f"{name} must be 0 to {largest}")
    return number
