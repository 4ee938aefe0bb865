"""Every exception that Lightning raises.

One root, one branch for each kind of the peer's ``LightningError``. Each branch is
also the builtin that the peer's Python package raises for that kind, so ``except``
lines written for it keep working::

    LightningError
    ├── LightningConnectionError   + ConnectionError   "connection error: …"
    ├── HandshakeError             + ConnectionError   "handshake error: …"
    │   ├── HandshakeRejected      the miner refused the login
    │   ├── HotkeyMismatch         another miner answered at this address
    │   ├── FingerprintMismatch    the signed certificate is not the one TLS saw
    │   ├── SignatureInvalid       a signature, key or encoding that does not verify
    │   ├── TimestampOutOfRange    too old or too far ahead of our clock
    │   ├── NonceInvalid           not 32 hexadecimal digits
    │   ├── NonceReplayed          used before, or no room left to remember it
    │   ├── PermitMissing          the hotkey holds no validator permit
    │   ├── RateLimited            too many logins from this address
    │   └── ServerFull             no place left in the connection table
    ├── TransportError             + ConnectionError   "transport error: …"
    │   ├── ConnectionClosed       who closed it, with which code and reason
    │   ├── StreamReset            the peer reset the stream
    │   ├── StreamClosedEarly      the stream ended inside a frame
    │   ├── FrameTooLarge          a frame above the limit, ours or received
    │   ├── UnknownMessageType     a type byte that no message has
    │   ├── UnexpectedMessage      a known message where another was due
    │   └── RequestTimeout         + TimeoutError
    ├── ConfigError                + ValueError        "config error: …"
    ├── SerializationError         + ValueError        "serialization error: …"
    │   ├── EncodeError            a value that msgpack cannot say
    │   │   └── EncodeTypeError    + TypeError
    │   └── DecodeError            bytes that are not the message they should be
    ├── SigningError               + RuntimeError      "signing error: …"
    ├── HandlerError               + RuntimeError      "handler error: …"
    │   ├── ServerBusy             no room, or too many requests; not begun
    │   └── ChainError             the chain gave no answer, or none of use
    ├── StreamError                + RuntimeError      "stream error: …"
    └── MissingField               + KeyError

The text of an exception is made from its fields; the fields are for programs, the
text is for people and may change.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

__all__ = [
    "ChainError",
    "ConfigError",
    "ConnectionClosed",
    "DecodeError",
    "EncodeError",
    "EncodeTypeError",
    "FingerprintMismatch",
    "FrameTooLarge",
    "HandlerError",
    "HandshakeError",
    "HandshakeRejected",
    "HotkeyMismatch",
    "LightningConnectionError",
    "LightningError",
    "MissingField",
    "NonceInvalid",
    "NonceReplayed",
    "PermitMissing",
    "RateLimited",
    "RequestTimeout",
    "SerializationError",
    "ServerBusy",
    "ServerFull",
    "SignatureInvalid",
    "SigningError",
    "StreamClosedEarly",
    "StreamError",
    "StreamReset",
    "TimestampOutOfRange",
    "TransportError",
    "UnexpectedMessage",
    "UnknownMessageType",
]

Initiator = Literal["local", "remote"]


class LightningError(Exception):
    """Root of the tree; never raised itself.

    Attributes:
        kind: The peer's name of the error variant, in lower case; it opens the text.
        detail: The sentence after the kind.
        address: ``ip:port`` of the other end, empty if it is not known or not concerned.
        hotkey: SS58 address of the other party, empty likewise.
        elapsed: Seconds from the beginning of what failed; None if not known.
    """

    kind: ClassVar[str] = "lightning"

    def __init__(self, detail: str = "") -> None:
        # One argument only: OSError reads two as errno and text.
        super().__init__(detail)
        self.detail = detail
        self.address = ""
        self.hotkey = ""
        self.elapsed: float | None = None

    def locate(
        self, address: object = "", hotkey: str = "", elapsed: float | None = None
    ) -> Self:
        """Fill in what is not known yet of where it happened, and return it."""
        self.address = self.address or str(address)
        self.hotkey = self.hotkey or hotkey
        if self.elapsed is None:
            self.elapsed = elapsed
        return self

    def __str__(self) -> str:
        text = f"{self.kind} error: {self.detail}"
        where = []
        if self.hotkey and self.hotkey not in self.detail:
            where.append(self.hotkey)
        if self.address and self.address not in self.detail:
            where.append(f"at {self.address}")
        if self.elapsed is not None:
            where.append(f"after {self.elapsed:.3g} s")
        return f"{text} ({' '.join(where)})" if where else text

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the finished sentence.
        return _restore, (type(self), self.detail, dict(self.__dict__))


def _restore(
    cls: type[LightningError], detail: str, fields: dict[str, Any]
) -> LightningError:
    """Rebuild a pickled exception without running its constructor."""
    error = cls.__new__(cls)
    LightningError.__init__(error, detail)
    error.__dict__.update(fields)
    return error


class LightningConnectionError(LightningError, ConnectionError):
    """The connection could not be made, or not yet again.

    Attributes:
        retry_after: Seconds until the next attempt is allowed, None if not backed off.
        no_room: True if it was not tried, as ``max_connections`` are connected.
    """

    kind = "connection"

    def __init__(
        self,
        detail: str = "",
        *,
        address: str = "",
        retry_after: float | None = None,
        no_room: bool = False,
    ) -> None:
        super().__init__(detail)
        self.address = address
        self.retry_after = retry_after
        self.no_room = no_room


class HandshakeError(LightningError, ConnectionError):
    """The login did not succeed."""

    kind = "handshake"

    def __init__(
        self, detail: str = "", *, hotkey: str = "", address: str = ""
    ) -> None:
        super().__init__(detail)
        self.hotkey = hotkey
        self.address = address


class HandshakeRejected(HandshakeError):
    """The miner answered the login with ``accepted = false``; it tells no reason.

    Attributes:
        clock_skew: Seconds by which the miner's clock is ahead of ours, negative if it
            is behind; what refuses many logins is a clock that is off by a minute.
    """

    def __init__(
        self,
        detail: str = "",
        *,
        clock_skew: int = 0,
        hotkey: str = "",
        address: str = "",
    ) -> None:
        super().__init__(detail, hotkey=hotkey, address=address)
        self.clock_skew = clock_skew


class HotkeyMismatch(HandshakeError):
    """The miner that answered is not the one that was asked for."""


class FingerprintMismatch(HandshakeError):
    """The fingerprint in the login is missing or not that of the TLS certificate."""


class SignatureInvalid(HandshakeError):
    """A signature, or the hotkey it should belong to, is malformed or does not verify."""


class TimestampOutOfRange(HandshakeError):
    """The login's timestamp is outside of the window that the server accepts.

    Attributes:
        age: Seconds between the timestamp and our clock, negative if it lies ahead.
    """

    def __init__(
        self, detail: str = "", *, age: int = 0, hotkey: str = "", address: str = ""
    ) -> None:
        super().__init__(detail, hotkey=hotkey, address=address)
        self.age = age


class NonceInvalid(HandshakeError):
    """The login's nonce is not 32 hexadecimal digits."""


class NonceReplayed(HandshakeError):
    """The login's nonce was used before, or cannot be remembered safely."""


class PermitMissing(HandshakeError):
    """The validator's hotkey is not in the permitted set."""


class RateLimited(HandshakeError):
    """Too many login attempts from this source address."""


class ServerFull(HandshakeError):
    """The server has no place for another validator."""


class TransportError(LightningError, ConnectionError):
    """The connection or a stream on it failed while in use."""

    kind = "transport"


class ConnectionClosed(TransportError):
    """The QUIC connection is gone.

    Attributes:
        initiator: ``"local"`` or ``"remote"``: who closed it. A timeout is local.
        code: The error code of the close, 0 for a clean close.
        reason: The reason text as it was given, of up to 256 bytes; empty if none was.
        timed_out: True if the other end was silent for too long.
        application: Whether the code is Lightning's, which are all 0 but for faults;
            else it is QUIC's (RFC 9000 section 20.1), see `code_name`.
    """

    def __init__(
        self,
        detail: str = "read error: connection lost",
        *,
        initiator: Initiator = "local",
        code: int = 0,
        reason: str = "",
        timed_out: bool = False,
        application: bool = True,
    ) -> None:
        self.initiator = initiator
        self.code = code
        self.reason = reason
        self.timed_out = timed_out
        self.application = application
        named = "" if application else f"{self.code_name} "
        closed = f"{initiator} close, {named or 'code '}{code:#x}"
        if reason:
            detail = f"{detail} ({closed}: {_printable(reason)})"
        elif timed_out:
            detail = f"{detail} (idle timeout)"
        elif code or initiator == "remote" or not application:
            detail = f"{detail} ({closed})"
        super().__init__(detail)

    @property
    def code_name(self) -> str:
        """What RFC 9000 section 20.1 calls the code; empty if it is Lightning's."""
        if self.application:
            return ""
        if self.code in _CODE_NAMES:
            return _CODE_NAMES[self.code]
        if 0x100 <= self.code <= 0x1FF:
            alert = _ALERT_NAMES.get(self.code - 0x100, f"alert {self.code - 0x100}")
            return f"CRYPTO_ERROR ({alert})"
        return "unknown error"


# RFC 9000 section 20.1.
_CODE_NAMES = {
    0x00: "NO_ERROR",
    0x01: "INTERNAL_ERROR",
    0x02: "CONNECTION_REFUSED",
    0x03: "FLOW_CONTROL_ERROR",
    0x04: "STREAM_LIMIT_ERROR",
    0x05: "STREAM_STATE_ERROR",
    0x06: "FINAL_SIZE_ERROR",
    0x07: "FRAME_ENCODING_ERROR",
    0x08: "TRANSPORT_PARAMETER_ERROR",
    0x09: "CONNECTION_ID_LIMIT_ERROR",
    0x0A: "PROTOCOL_VIOLATION",
    0x0B: "INVALID_TOKEN",
    0x0C: "APPLICATION_ERROR",
    0x0D: "CRYPTO_BUFFER_EXCEEDED",
    0x0E: "KEY_UPDATE_ERROR",
    0x0F: "AEAD_LIMIT_REACHED",
    0x10: "NO_VIABLE_PATH",
    0x11: "VERSION_NEGOTIATION_ERROR",  # RFC 9368 section 10.1.
}

# The alerts of RFC 8446 section 6 that a handshake can end with.
_ALERT_NAMES = {
    10: "unexpected_message",
    20: "bad_record_mac",
    40: "handshake_failure",
    42: "bad_certificate",
    47: "illegal_parameter",
    48: "unknown_ca",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    109: "missing_extension",
    110: "unsupported_extension",
    116: "certificate_required",
    120: "no_application_protocol",
}


def _printable(text: str) -> str:
    """Return text from the other end so that it cannot forge a line of a log."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


class StreamReset(TransportError):
    """The peer reset the stream, or asked us to stop sending on it.

    Attributes:
        code: The application error code that came with it.
        sending: True if it was our sending side that the peer stopped.
    """

    def __init__(self, code: int = 0, *, sending: bool = False) -> None:
        super().__init__(
            f"failed to write frame payload: sending stopped by peer: error {code}"
            if sending
            else f"read error: stream reset by peer: error {code}"
        )
        self.code = code
        self.sending = sending


class StreamClosedEarly(TransportError):
    """The stream ended before the frame did.

    Attributes:
        received: Bytes that came of the part that was due (the header or the payload).
        expected: Bytes that were due.
    """

    def __init__(self, received: int = 0, expected: int = 0) -> None:
        super().__init__(f"stream closed after {received} of {expected} bytes")
        self.received = received
        self.expected = expected


class FrameTooLarge(TransportError):
    """A frame's payload is larger than the limit allows.

    Attributes:
        size: Bytes of the payload.
        limit: Most bytes allowed (``max_frame_payload_bytes``).
    """

    def __init__(self, size: int = 0, limit: int = 0) -> None:
        super().__init__(f"frame payload {size} bytes exceeds maximum {limit}")
        self.size = size
        self.limit = limit


class UnknownMessageType(TransportError):
    """The frame's type byte is not one of the six messages.

    Attributes:
        value: The byte.
    """

    def __init__(self, value: int = 0) -> None:
        super().__init__(f"unknown message type: {value:#04x}")
        self.value = value


class UnexpectedMessage(TransportError):
    """A message of a known type came where another one was due.

    Attributes:
        message: Name of the message that came.
    """

    def __init__(self, detail: str = "", *, message: str = "") -> None:
        super().__init__(detail or f"unexpected response type: {message}")
        self.message = message


class RequestTimeout(TransportError, TimeoutError):
    """The time allowed for a request, or for a part of it, ran out.

    Attributes:
        timeout: The limit in seconds.
    """

    def __init__(self, detail: str = "query timed out", *, timeout: float = 0) -> None:
        super().__init__(detail)
        self.timeout = timeout


class ConfigError(LightningError, ValueError):
    """A setting, or the order of calls, makes no sense; nothing was started."""

    kind = "config"


class SerializationError(LightningError, ValueError):
    """A message could not be written or read.

    Attributes:
        path: Where in the value the trouble is, as ``data.items[3]``; empty if it
            is the message as a whole.
    """

    kind = "serialization"

    def __init__(self, detail: str = "", *, path: str = "") -> None:
        super().__init__(f"{detail} at {path}" if path else detail)
        self.path = path


class EncodeError(SerializationError):
    """A value that the wire has no form for; nothing was sent."""


class EncodeTypeError(EncodeError, TypeError):
    """A value of a type that msgpack cannot say without losing something."""


class DecodeError(SerializationError):
    """Bytes that are not valid msgpack, or not the message they should be.

    Attributes:
        offset: Byte in the payload where reading stopped, -1 if not known.
    """

    def __init__(self, detail: str = "", *, path: str = "", offset: int = -1) -> None:
        super().__init__(detail, path=path)
        self.offset = offset


class SigningError(LightningError, RuntimeError):
    """No signer, or the signer failed."""

    kind = "signing"


class HandlerError(LightningError, RuntimeError):
    """A handler failed, or a response reports that the other side's handler did."""

    kind = "handler"


class ServerBusy(HandlerError):
    """The server has no room for the request, or the validator sends too many.

    The request was not begun; it may be sent again later.
    """


class ChainError(HandlerError):
    """The chain did not answer in time, refused, or gave an answer of no use.

    What was read before still holds. A chain that cannot be reached at all is a
    `LightningConnectionError`.
    """


class StreamError(LightningError, RuntimeError):
    """A streamed answer ended with an error, or broke its own rules."""

    kind = "stream"


class MissingField(LightningError, KeyError):
    """A required field of an axon or a request is missing.

    Attributes:
        field: The field's name.
    """

    def __init__(self, field: str = "") -> None:
        super().__init__(f"Missing '{field}' field")
        self.field = field

    def __str__(self) -> str:
        return self.detail
