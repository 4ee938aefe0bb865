"""The asyncio driver: UDP sockets and QUIC connections, with aioquic's engine.

Everything above knows an `Endpoint`, its `Connection`s and their `Exchanges`; no type
of aioquic leaves this module.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # By a bare import.
from aioquic.quic import events
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from lightning._core.wire.exchange import Exchanges, ServerExchange
from lightning.errors import ConnectionClosed, LightningConnectionError
from lightning.types import PeerAddr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ALPN = "btlightning"

# Initial flow-control windows in bytes; a stream's is the peer's.
CONNECTION_WINDOW = 64 * 1024 * 1024
STREAM_WINDOW = 1_250_000
# A streamed answer waits while this much of it is not yet acknowledged.
SEND_HIGH_WATER = 1024 * 1024
# Asked of the kernel; it grants what its limits allow.
SOCKET_BUFFER = 4 * 1024 * 1024

log = logging.getLogger("lightning.transport")


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """What the transport needs to know.

    Attributes:
        idle_timeout: Seconds without a packet after which a connection is dead.
        keep_alive_interval: Seconds without traffic after which a PING is sent.
        max_frame_payload: Largest frame payload accepted, in bytes.
        max_streams: Concurrent exchanges the other end may have on a connection.
        retry: Answer an unproven source address with a Retry packet.
    """

    idle_timeout: float
    keep_alive_interval: float
    max_frame_payload: int
    max_streams: int = 128
    retry: bool = True


class Identity:
    """A server's self-signed certificate and its key, made anew for each start."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lightning")])
        # Nothing checks the dates: what counts is the key and the signed fingerprint.
        first = datetime.datetime(1975, 1, 1, tzinfo=datetime.UTC)
        last = datetime.datetime(4096, 1, 1, tzinfo=datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)


class _Quic(QuicConnection):
    """aioquic's connection, which opens a stream's window only for who reads it."""

    paused: set[int]

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        if stream.stream_id not in self.paused:
            super()._write_stream_limits(builder, space, stream)


class Connection:
    """One QUIC connection: the verbs of its exchanges, its timers and its end.

    Attributes:
        exchanges: The exchanges on it.
        on_closed: Called once with the connection when it is gone.
        closed: Makes the exception that says how it ended; None while it lives.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        quic: _Quic,
        address: tuple[str, int],
        on_request: Callable[[Connection, ServerExchange, int, bytes], object] | None,
    ) -> None:
        self._endpoint = endpoint
        self._loop = endpoint.loop
        self._quic = quic
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._last_activity = self._loop.time()
        self._keep_alive: asyncio.TimerHandle | None = None
        self._keep_alive_interval = endpoint.config.keep_alive_interval
        self._established: asyncio.Future[None] | None = None
        self._drains: dict[int, list[asyncio.Future[None]]] = {}
        self._first_address = address
        self.cids: set[bytes] = set()
        self.closed: Callable[[], ConnectionClosed] | None = None
        self.on_closed: Callable[[Connection], object] | None = None
        self.exchanges = Exchanges(
            self,
            endpoint.config.max_frame_payload,
            None
            if on_request is None
            else lambda exchange, kind, payload: on_request(
                self, exchange, kind, payload
            ),
        )

    # What the faces ask.

    @property
    def address(self) -> PeerAddr:
        """Where the other end is now; it may move during a connection's life."""
        return _peer_addr(self._quic.get_peer_address() or self._first_address)

    @property
    def certificate(self) -> bytes:
        """The server's certificate in DER, whose key TLS has proven; for a client."""
        certificate = self._quic.tls._peer_certificate  # Public nowhere.
        return certificate.public_bytes(Encoding.DER) if certificate else b""

    @property
    def is_alive(self) -> bool:
        """Whether exchanges can be started on it."""
        return self.closed is None

    def close(self, reason: str = "", code: int = 0) -> None:
        """Close it now, telling the other end.

        Args:
            reason: Short text for the other end.
            code: Application error code.
        """
        if self.closed is None:
            self._step(partial(self._quic.close, error_code=code, reason_phrase=reason))

    @property
    def has_unsent(self) -> bool:
        """Whether bytes of any stream are not yet acknowledged."""
        return any(self._buffered(stream_id) for stream_id in self._quic._streams)

    def sent(self, stream_id: int) -> Awaitable[None] | None:
        """Return what to await before sending more on a stream; None for nothing."""
        if self._buffered(stream_id) <= SEND_HIGH_WATER or self.closed is not None:
            return None
        waiter = self._loop.create_future()
        self._drains.setdefault(stream_id, []).append(waiter)
        return waiter

    # The verbs of the exchange layer.

    def open_stream(self) -> int:
        """Return the next stream id, -1 while the peer allows no more."""
        stream_id = self._quic.get_next_available_stream_id()
        if stream_id // 4 >= self._quic._remote_max_streams_bidi:
            return -1
        return stream_id

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Queue bytes of a stream."""
        self._quic.send_stream_data(stream_id, data, fin)
        self._flush_soon()

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to send no more on a stream."""
        self._quic.paused.discard(stream_id)
        try:
            self._quic.stop_stream(stream_id, code)
        except ValueError:
            return  # It has ended meanwhile.
        self._flush_soon()

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon our direction of a stream."""
        try:
            self._quic.reset_stream(stream_id, code)
        except ValueError:
            return  # It has ended meanwhile.
        self._flush_soon()

    def pause(self, stream_id: int) -> None:
        """Give the peer no more window on a stream."""
        self._quic.paused.add(stream_id)

    def resume(self, stream_id: int) -> None:
        """Give window again."""
        self._quic.paused.discard(stream_id)
        self._flush_soon()

    # The driver.

    async def establish(self) -> None:
        """Dial; for a client.

        Raises:
            ConnectionClosed: The server refused, or did not answer in the idle time.
        """
        self._established = self._loop.create_future()
        self._quic.connect(self._first_address, now=self._loop.time())
        self._register(self._quic.host_cid)
        self._flush()
        await self._established

    def receive(self, data: bytes, address: tuple[str, int]) -> None:
        """Take one datagram."""
        now = self._last_activity = self._loop.time()
        self._step(partial(self._quic.receive_datagram, data, address, now=now))

    def _step(self, advance: Callable[[], object]) -> None:
        """Let the engine advance, then do what it asks for."""
        try:
            advance()
            self._process_events()
            self._flush()
        except Exception:
            # The bytes are a stranger's, whatever they did.
            log.exception("giving up the connection with %s", self.address)
            self.release()
            self._lose(
                ConnectionClosed(
                    code=QuicErrorCode.INTERNAL_ERROR, reason="internal error"
                )
            )

    def _register(self, cid: bytes) -> None:
        self.cids.add(cid)
        self._endpoint.connections[cid] = self

    def _process_events(self) -> None:
        now = self._loop.time()
        exchanges = self.exchanges
        while (event := self._quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    exchanges.stream_data(
                        event.stream_id, event.data, event.end_stream, now
                    )
                case events.StreamReset():
                    exchanges.stream_reset(event.stream_id, event.error_code)
                case events.StopSendingReceived():
                    exchanges.stop_sending(event.stream_id, event.error_code)
                case events.ConnectionIdIssued():
                    self._register(event.connection_id)
                case events.ConnectionIdRetired():
                    self.cids.discard(event.connection_id)
                    self._endpoint.connections.pop(event.connection_id, None)
                case events.HandshakeCompleted():
                    self._on_established()
                case events.ConnectionTerminated():
                    self._on_terminated(event)
                case _:
                    pass  # Nothing that an exchange needs to know.
        close = self._quic._close_event  # Before its event.
        if close is not None and self.closed is None:
            self._on_terminated(close)
        if self.closed is None:
            exchanges.pump()

    def _on_established(self) -> None:
        if self._established is not None and not self._established.done():
            self._established.set_result(None)
        # A peer may give up sooner than we do: ask often enough for it, too.
        self._keep_alive_interval = min(
            self._endpoint.config.keep_alive_interval,
            self._quic._idle_timeout() / 2,  # Of both ends.
        )
        self._keep_alive_at(self._last_activity)

    def _keep_alive_at(self, since: float) -> None:
        self._keep_alive = self._loop.call_at(
            since + self._keep_alive_interval, self._on_keep_alive
        )

    def _on_keep_alive(self) -> None:
        now = self._loop.time()
        if now - self._last_activity < self._keep_alive_interval:
            self._keep_alive_at(self._last_activity)
            return
        self._keep_alive_at(now)
        self._step(partial(self._quic.send_ping, 0))

    def _on_terminated(self, event: events.ConnectionTerminated) -> None:
        # The reason may be the peer's words: only the state tells whose close it is.
        state = self._quic._state
        self._lose(
            ConnectionClosed(
                initiator=(
                    "remote" if state is QuicConnectionState.DRAINING else "local"
                ),
                code=event.error_code,
                reason=event.reason_phrase,
                timed_out=(
                    state is QuicConnectionState.TERMINATED
                    and event.reason_phrase == "Idle timeout"
                ),
            )
        )

    def _lose(self, cause: ConnectionClosed) -> None:
        if self.closed is not None:
            return

        def make_error() -> ConnectionClosed:
            return ConnectionClosed(
                initiator=cause.initiator,
                code=cause.code,
                reason=cause.reason,
                timed_out=cause.timed_out,
            )

        self.closed = make_error
        if self._keep_alive is not None:
            self._keep_alive.cancel()
        if self._established is not None and not self._established.done():
            self._established.set_exception(cause)
        self._wake_drains()
        self.exchanges.connection_lost(make_error)
        if self.on_closed is not None:
            self.on_closed(self)

    def _flush_soon(self) -> None:
        # All that one turn of the loop produces leaves together.
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._step, _nothing)

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        for data, address in self._quic.datagrams_to_send(now=self._loop.time()):
            self._endpoint.send(data, address)
        if self._drains:
            self._wake_drains()
        timer_at = self._quic.get_timer()
        if timer_at != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = (
                None
                if timer_at is None
                else self._loop.call_at(timer_at, self._on_timer)
            )
            self._timer_at = timer_at

    def _on_timer(self) -> None:
        now = max(cast("float", self._timer_at), self._loop.time())
        self._timer = self._timer_at = None
        self._step(partial(self._quic.handle_timer, now=now))
        if self.closed is not None and self._quic.get_timer() is None:
            self.release()

    def release(self) -> None:
        """Forget everything about it: its closing period is over."""
        for handle in (self._timer, self._flush_handle, self._keep_alive):
            if handle is not None:
                handle.cancel()
        self._timer = self._flush_handle = self._keep_alive = None
        for cid in self.cids:
            self._endpoint.connections.pop(cid, None)
        self.cids.clear()

    def _buffered(self, stream_id: int) -> int:
        stream = self._quic._streams.get(stream_id)
        if stream is None:
            return 0
        sender = stream.sender
        return sender._buffer_stop - sender._buffer_start

    def _wake_drains(self) -> None:
        for stream_id, waiters in list(self._drains.items()):
            if self.closed is None and self._buffered(stream_id) > SEND_HIGH_WATER:
                continue
            del self._drains[stream_id]
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _nothing() -> None:
    return


def _peer_addr(address: tuple[Any, ...]) -> PeerAddr:
    """Return a socket address; an IPv4 one on an IPv6 socket as what it is."""
    ip = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    return PeerAddr(ip, address[1])


def open_socket(family: int, address: tuple[Any, ...] | None) -> socket.socket:
    """Open a UDP socket with large buffers, bound if an address is given.

    Raises:
        LightningConnectionError: The system refuses the family or the address.
    """
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        if family == socket.AF_INET6:
            # A server on "::" is also reached over IPv4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if address is not None:
            sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        where = "a socket" if address is None else f"{address[0]}:{address[1]}"
        raise LightningConnectionError(f"cannot open {where}: {error}") from error
    return sock


class Endpoint(asyncio.DatagramProtocol):
    """One UDP socket and the connections on it; a client's or a server's.

    Attributes:
        connections: Connection ID to connection.
    """

    def __init__(self, config: TransportConfig, quic: QuicConfiguration) -> None:
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.connections: dict[bytes, Connection] = {}
        self._quic = quic
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self, family: int, address: tuple[Any, ...] | None = None) -> None:
        """Open the socket and start to receive.

        Raises:
            LightningConnectionError: It cannot be opened or bound.
        """
        sock = open_socket(family, address)
        try:
            await self.loop.create_datagram_endpoint(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise

    @property
    def local_addr(self) -> PeerAddr:
        """The address and port that the socket is bound to."""
        if self._transport is None:
            raise LightningConnectionError("the endpoint is closed")
        return _peer_addr(self._transport.get_extra_info("sockname"))

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        """Send one datagram."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, address)

    def close(self, reason: str) -> None:
        """Close every connection, telling the other ends, and the socket."""
        for connection in {id(c): c for c in self.connections.values()}.values():
            connection.close(reason)
            connection.release()
        if self._transport is not None:
            self._transport.close()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket's transport."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def error_received(self, exc: Exception) -> None:
        """Note what the system says of one datagram; the connection decides alone."""
        log.debug("socket error: %s", exc)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Route one datagram to its connection by the connection ID."""
        try:
            header = pull_quic_header(
                Buffer(data=data), host_cid_length=self._quic.connection_id_length
            )
        except ValueError:
            return
        connection = self.connections.get(header.destination_cid)
        if connection is None:
            connection = self._accept(header, data, addr)
        if connection is not None:
            connection.receive(data, addr)

    def _accept(
        self, header: Any, data: bytes, addr: tuple[str, int]
    ) -> Connection | None:
        return None  # A client accepts nobody.


def _configuration(config: TransportConfig, *, is_client: bool) -> QuicConfiguration:
    quic = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        congestion_control_algorithm="cubic",
        idle_timeout=config.idle_timeout,
        max_data=CONNECTION_WINDOW,
        max_stream_data=STREAM_WINDOW,
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )
    # No chain is checked, on purpose: the login's signatures vouch for the
    # certificate, and TLS proves that the server holds its key (CertificateVerify).
    quic.verify_mode = ssl.CERT_NONE
    return quic


class ClientEndpoint(Endpoint):
    """A client's socket; one serves any number of servers of one address family."""

    def __init__(self, config: TransportConfig) -> None:
        super().__init__(config, _configuration(config, is_client=True))

    async def connect(self, address: tuple[Any, ...]) -> Connection:
        """Dial a server; the caller bounds the time.

        Args:
            address: As the socket layer writes it, already resolved.

        Raises:
            ConnectionClosed: The server refused, or did not answer.
        """
        quic = _Quic(configuration=self._quic)
        quic.paused = set()
        connection = Connection(self, quic, cast("tuple[str, int]", address), None)
        try:
            await connection.establish()
        except asyncio.CancelledError:
            connection.close()
            connection.release()
            raise
        return connection


class ServerEndpoint(Endpoint):
    """A server's socket.

    Args:
        config: The transport's settings.
        identity: The certificate to show.
        admit: Called with a source IP before anything is done for it; False drops.
        accepting: Whether another connection may begin now; False drops.
        on_connection: Called with each new connection, before its first packet is
            processed; the client is not yet known.
        on_request: Called with ``(connection, exchange, type, payload)``.
    """

    def __init__(
        self,
        config: TransportConfig,
        identity: Identity,
        *,
        admit: Callable[[str], bool],
        accepting: Callable[[], bool],
        on_connection: Callable[[Connection], object],
        on_request: Callable[[Connection, ServerExchange, int, bytes], object],
    ) -> None:
        quic = _configuration(config, is_client=False)
        quic.certificate = identity.certificate
        quic.private_key = identity.key
        super().__init__(config, quic)
        self._admit = admit
        self._accepting = accepting
        self._on_connection = on_connection
        self._on_request = on_request
        self._retry = QuicRetryTokenHandler()

    def _accept(
        self, header: Any, data: bytes, addr: tuple[str, int]
    ) -> Connection | None:
        # Smaller datagrams start nothing and get no answer (RFC 9000 section 14.1).
        if len(data) < SMALLEST_MAX_DATAGRAM_SIZE or header.version is None:
            return None
        if not self._admit(addr[0]):
            return None
        if header.version not in self._quic.supported_versions:
            # Never in answer to another Version Negotiation packet.
            if header.packet_type != QuicPacketType.VERSION_NEGOTIATION:
                self._negotiate_version(header, addr)
            return None
        if header.packet_type != QuicPacketType.INITIAL:
            return None
        original_cid = header.destination_cid
        retry_cid = None
        if self.config.retry:
            try:
                original_cid = self._retry.validate_token(
                    address=addr,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=self.loop.time(),
                )
            except ValueError:
                # No token, or one from another life of ours: prove the address.
                self._send_retry(header, addr)
                return None
            retry_cid = header.destination_cid
        if not self._accepting():
            return None
        quic = _Quic(
            configuration=self._quic,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        quic.paused = set()
        limit = quic._local_max_streams_bidi  # Has no setting.
        limit.value = limit.sent = self.config.max_streams
        connection = Connection(self, quic, addr, self._on_request)
        for cid in (header.destination_cid, quic.host_cid):
            connection.cids.add(cid)
            self.connections[cid] = connection
        self._on_connection(connection)
        return connection

    def _negotiate_version(self, header: Any, addr: tuple[str, int]) -> None:
        self.send(
            encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=self._quic.supported_versions,
            ),
            addr,
        )

    def _send_retry(self, header: Any, addr: tuple[str, int]) -> None:
        source_cid = os.urandom(8)
        token = self._retry.create_token(
            address=addr,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source_cid,
            now=self.loop.time(),
        )
        self.send(
            encode_quic_retry(
                version=header.version,
                source_cid=source_cid,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            ),
            addr,
        )
