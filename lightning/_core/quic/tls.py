"""TLS 1.3 for the engine: aioquic's handshake, driven by our own CRYPTO streams.

A `Tls` takes the CRYPTO bytes of one level after the other and collects what comes of
them: bytes to send, secrets, the peer's transport parameters. It knows neither packets
nor locks. Source: RFC 9001 sections 4 and 8.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError
from aioquic.tls import (
    CipherSuite,
    Direction,
    Epoch,
    ExtensionType,
    Group,
    HandshakeType,
    State,
)
from cryptography.hazmat.primitives.serialization import Encoding

from lightning._core.quic import tlsmessages
from lightning._core.quic.keyschedule import KeySchedule, Offer
from lightning._core.quic.params import ParameterError, PeerParameters, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning._core.quic.config import EngineConfig, Identity

__all__ = ["Tls", "TlsError", "TlsOutput"]

# Bytes of one handshake message; the largest is a chain of certificates.
MAX_MESSAGE = 65536
# Bytes that one flight may produce: a Certificate message and little else.
MAX_FLIGHT = 65536

_PROTOCOL_VIOLATION = 0x0A
_INTERNAL_ERROR = 0x01
_CRYPTO_ERROR = 0x100

INITIAL, HANDSHAKE, APPLICATION = 0, 1, 2
# Of aioquic's epochs, by their values; there is no early data.
_LEVELS = {
    Epoch.INITIAL.value: INITIAL,
    Epoch.HANDSHAKE.value: HANDSHAKE,
    Epoch.ONE_RTT.value: APPLICATION,
}
_LABELS = {HANDSHAKE: "HANDSHAKE_TRAFFIC_SECRET", APPLICATION: "TRAFFIC_SECRET_0"}
# Tuples: members of an enumeration are compared faster than they are hashed.
_HELLOS = (State.CLIENT_EXPECT_SERVER_HELLO, State.SERVER_EXPECT_CLIENT_HELLO)
_DONE = (State.CLIENT_POST_HANDSHAKE, State.SERVER_POST_HANDSHAKE)


class TlsError(Exception):
    """The handshake cannot go on; the connection closes with ``code``."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class TlsOutput:
    """What came of some CRYPTO bytes, in the order in which it is to be applied.

    Attributes:
        secrets: ``(level, sealing, cipher suite, secret)`` each.
        parameters: The peer's, when they came.
        data: ``(level, bytes)`` to be sent on the CRYPTO streams.
        complete: The handshake is complete now (RFC 9001 4.1.1).
        error: Why the connection is to be closed.
    """

    secrets: list[tuple[int, bool, int, bytes]] = field(default_factory=list)
    parameters: PeerParameters | None = None
    data: list[tuple[int, bytes]] = field(default_factory=list)
    complete: bool = False
    error: TlsError | None = None


class _NoNames:
    """Stands in for `ipaddress`, which is slow to refuse the name that is not sent."""

    @staticmethod
    def ip_address(name: None) -> None:
        """Refuse it."""
        raise ValueError(name)


# aioquic's parts for which we have faster ones, which do the same.
PARTS: dict[str, Any] = {
    "KeySchedule": KeySchedule,
    "KeyScheduleProxy": Offer,
    "ipaddress": _NoNames,
    "push_message": tlsmessages.Hashing,
    **{
        name: getattr(tlsmessages, name)
        for name in tlsmessages.__dict__
        if name.startswith(("pull_", "push_"))
    },
}


def _with_parts(base: type[tls.Context]) -> type[tls.Context]:
    """Make a context of aioquic's own methods, which find our parts by their names.

    Two thirds of its time were its parts; its state machine and its checks stay.
    aioquic's module is not changed: others in this process may use it.
    """
    names = {**vars(tls), **PARTS}
    return type(
        base.__name__,
        (base,),
        {
            name: FunctionType(
                method.__code__, names, name, method.__defaults__, method.__closure__
            )
            for name, method in vars(base).items()
            if isinstance(method, FunctionType)
        },
    )


_Context = _with_parts(tls.Context)


class _Buffers(dict[Epoch, Buffer]):
    """What is to be sent, by epoch; each made when it is asked for."""

    def __missing__(self, epoch: Epoch) -> Buffer:
        buffer = self[epoch] = Buffer(capacity=MAX_FLIGHT)
        return buffer


class Tls:
    """The handshake of one connection.

    Args:
        config: The endpoint's settings.
        is_client: Which end we are.
        identity: The server's certificate and key.
        parameters: Our transport parameters, encoded.
        keylog: Called with each secret as a line of NSS's key log format, for
            programs that decrypt captures.

    Attributes:
        certificate: The peer's, in DER, once it is proven; else empty.
        suite: The cipher suite's TLS number, once the handshake is complete.
    """

    def __init__(
        self,
        config: EngineConfig,
        is_client: bool,
        identity: Identity | None,
        parameters: bytes,
        keylog: Callable[[str], object] | None = None,
    ) -> None:
        self._is_client = is_client
        self._keylog = keylog
        self._context: tls.Context | None
        self._context = context = _Context(
            is_client=is_client,
            alpn_protocols=[config.alpn],
            cipher_suites=[CipherSuite(suite) for suite in config.cipher_suites],
            # The chain proves nothing here: the login signs the certificate. That the
            # server holds its key is checked always (CertificateVerify).
            verify_mode=ssl.CERT_NONE,
        )
        # One key share, of the group that every peer has.
        groups = [Group.X25519] if is_client else [Group.X25519, Group.SECP256R1]
        context._supported_groups = groups
        context.handshake_extensions = [
            (ExtensionType.QUIC_TRANSPORT_PARAMETERS, parameters)
        ]
        if identity is not None:
            context.certificate = identity.certificate
            context.certificate_private_key = identity.key
        context.alpn_cb = self._on_extensions
        context.update_traffic_key_cb = self._on_secret
        self._buffers = _Buffers()
        self._pending = b""
        self._pending_level = INITIAL
        self._output = TlsOutput()
        self._complete = False
        self.certificate = b""
        self.suite = 0

    def start(self) -> TlsOutput:
        """Make a client's first message."""
        if self._context is not None:
            self._handle(self._context, b"")
        return self._take()

    def receive(self, level: int, data: bytes) -> TlsOutput:
        """Take bytes of a CRYPTO stream, in order.

        Args:
            level: 0 Initial, 1 Handshake, 2 after the handshake.
            data: The bytes that follow those of the last call for this level.

        Returns:
            What came of them; after an `error` nothing may be fed any more.
        """
        try:
            self._feed(level, data)
        except TlsError as error:
            self._output.error = error
        except ParameterError as error:
            self._output.error = TlsError(error.code, str(error))
        except tls.Alert as alert:
            text = str(alert) or alert.description.name
            self._output.error = TlsError(_CRYPTO_ERROR + int(alert.description), text)
        except BufferReadError:
            self._output.error = TlsError(_CRYPTO_ERROR + 50, "decode_error")
        except Exception as error:
            self._output.error = TlsError(_INTERNAL_ERROR, type(error).__name__)
        return self._take()

    def _feed(self, level: int, data: bytes) -> None:
        context = self._context
        if self._pending and level != self._pending_level:
            # A message does not go over a change of keys (RFC 9001 4.1.3).
            raise TlsError(_PROTOCOL_VIOLATION, "CRYPTO data of two levels is mixed")
        self._pending += data
        self._pending_level = level
        while self._pending:
            expected = APPLICATION
            if context is not None:
                expected = INITIAL if context.state in _HELLOS else HANDSHAKE
            if level != expected:
                raise TlsError(_PROTOCOL_VIOLATION, "CRYPTO data of another level")
            if len(self._pending) < 4:
                return
            size = 4 + int.from_bytes(self._pending[1:4])
            if size > MAX_MESSAGE:
                raise TlsError(_CRYPTO_ERROR + 50, "handshake message is too long")
            if len(self._pending) < size:
                return
            message = self._pending[:size]
            self._pending = self._pending[size:]
            if context is None:
                self._after(message[0])
                continue
            # RFC 9001 section 8.4: the byte says how long legacy_session_id is.
            if message[0] == HandshakeType.CLIENT_HELLO and message[38:39] > b"\0":
                raise TlsError(_PROTOCOL_VIOLATION, "middlebox compatibility mode")
            self._handle(context, message)
            if context.state in _DONE:
                self._finish(context)
                context = None

    def _handle(self, context: tls.Context, message: bytes) -> None:
        context.handle_message(message, self._buffers)

    def _after(self, kind: int) -> None:
        """Take a message after the handshake: tickets, which nobody uses."""
        if self._is_client and kind == HandshakeType.CERTIFICATE_REQUEST:
            # RFC 9001 section 4.4.
            raise TlsError(_PROTOCOL_VIOLATION, "authentication after the handshake")
        if not self._is_client or kind != HandshakeType.NEW_SESSION_TICKET:
            # RFC 9001 section 6: also KeyUpdate.
            raise tls.AlertUnexpectedMessage

    def _finish(self, context: tls.Context) -> None:
        """Keep what is asked for later, and no more: a context is large."""
        self._complete = self._output.complete = True
        certificate = context._peer_certificate
        if certificate is not None:
            self.certificate = certificate.public_bytes(Encoding.DER)
        if context.key_schedule is not None:
            self.suite = int(context.key_schedule.cipher_suite)
        self._context = None

    def _on_secret(
        self, direction: Direction, epoch: Epoch, suite: CipherSuite, secret: bytes
    ) -> None:
        level = _LEVELS[epoch.value]
        sealing = direction is Direction.ENCRYPT
        self._output.secrets.append((level, sealing, int(suite), secret))
        if self._keylog is not None and self._context is not None:
            owner = "CLIENT" if sealing == self._is_client else "SERVER"
            number = (self._context.client_random or b"").hex()
            self._keylog(f"{owner}_{_LABELS[level]} {number} {secret.hex()}")

    def _on_extensions(self, _alpn: str | None) -> None:
        received = self._context.received_extensions if self._context else None
        for kind, data in received or ():
            if kind == ExtensionType.QUIC_TRANSPORT_PARAMETERS:
                self._output.parameters = parse(data, by_client=not self._is_client)
                return
        # RFC 9001 section 8.2.
        raise tls.AlertMissingExtension("no transport parameters")

    def _take(self) -> TlsOutput:
        output, self._output = self._output, TlsOutput()
        for epoch, buffer in self._buffers.items():
            if buffer.tell():
                output.data.append((_LEVELS[epoch.value], buffer.data))
        output.data.sort()
        # Only for as long as they are filled: half-open connections are many.
        self._buffers.clear()
        return output
