"""The asyncio driver: endpoints on UDP sockets, with our engine.

Everything above knows an `Endpoint`, its `Connection`s and their `Exchanges`; no type
of the engine leaves this module but `Identity`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lightning._core.io.driver import Driver
from lightning._core.io.links import Link, ServerExchange
from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint as Engine
from lightning.errors import (
    ConnectionClosed,
    LightningConnectionError,
    RequestTimeout,
)
from lightning.logs import Throttled
from lightning.types import PeerAddr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from lightning._core.quic.engine import Connection as EngineConnection
    from lightning._core.quic.events import ConnectionEnd
    from lightning._core.wire.exchange import ClientExchange

__all__ = [
    "ClientEndpoint",
    "Connection",
    "Endpoint",
    "Identity",
    "Numbers",
    "ServerEndpoint",
    "TransportConfig",
    "open_socket",
]

# A streamed answer waits while this much of it is not yet acknowledged.
SEND_HIGH_WATER = 1024 * 1024
# A stream's first flow-control window, in bytes: the peer's.
STREAM_WINDOW = 1_250_000
# Up to which it grows while its bytes are read as fast as they come.
STREAM_WINDOW_MAX = 16 * 1024 * 1024
# Asked of the kernel; it grants what its limits allow.
SOCKET_BUFFER = 4 * 1024 * 1024
SMALL_BUFFER = 1024 * 1024
# Of connections: more than this of one source is no limit.
ANY_NUMBER = 2**24
INTERNAL_ERROR = 0x1  # RFC 9000 section 20.1

log = Throttled(logging.getLogger("lightning.transport"))


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """What the transport needs to know.

    Attributes:
        idle_timeout: Seconds without a packet after which a connection is dead.
        keep_alive_interval: Seconds without traffic after which a PING is sent.
        max_frame_payload: Largest frame payload accepted, in bytes.
        max_streams: Concurrent exchanges the other end may have on a connection.
        max_half_open: Connections that are not established, at a time.
        max_connections: Connections at a time, half-open ones included.
        handshake_timeout: Seconds for a connection to be established.
        retry: Answer an unproven source address with a Retry packet.
        unresponsive_timeout: Seconds of silence of a peer that owes an acknowledgement
            after which a connection is dead; None leaves it to the idle timeout.
        max_unauthenticated_per_source: Connections of one source that `Connection.vouch`
            was not called for; 0 is any number.
        max_connections_per_minute: New ones of one source in 60 seconds; likewise.
        max_tracked_rate_ips: Sources remembered for these.
        reset_secret: 32 bytes for stateless resets and tokens; empty for chance.
        qlog_dir: A directory for traces, or None.
        keylog_file: A file for secrets, or None.
    """

    idle_timeout: float
    keep_alive_interval: float
    max_frame_payload: int
    max_streams: int = 128
    max_half_open: int = 256
    max_connections: int = 4096
    handshake_timeout: float = 10.0
    retry: bool = True
    unresponsive_timeout: float | None = None
    max_unauthenticated_per_source: int = 0
    max_connections_per_minute: int = 0
    max_tracked_rate_ips: int = 10_000
    reset_secret: bytes = field(default=b"", repr=False)
    qlog_dir: str | None = None
    keylog_file: str | None = None


class Numbers(NamedTuple):
    """How a connection is doing, or how it did when it ended.

    Attributes:
        age: Seconds since it was established; 0 before.
        idle: Seconds since the last packet of the other end.
        rtt: Smoothed round trip in seconds; 0 before it was measured.
        min_rtt: Shortest round trip in seconds; likewise.
        congestion_window: Bytes that may be under way.
        bytes_sent: Of datagrams.
        bytes_received: Likewise.
        packets_sent: All, those sent again included.
        packets_lost: Those declared lost.
        requests: Exchanges begun, by whichever end does.
        in_flight: Those under way.
        failures: Those that ended without an answer.
        latencies: Calls answered in less than 1, 2, 4 ... microseconds; each place
            counts those that the ones before do not, the last one is open.
    """

    age: float = 0.0
    idle: float = 0.0
    rtt: float = 0.0
    min_rtt: float = 0.0
    congestion_window: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    packets_lost: int = 0
    requests: int = 0
    in_flight: int = 0
    failures: int = 0
    latencies: tuple[int, ...] = ()


class Connection(Link):
    """One QUIC connection: its exchanges, what became of it, and how it ends.

    Attributes:
        exchanges: The exchanges on it.
        dialled: Where a client's was asked to go.
        begun: What `on_established` leaves here for whoever dialled.
        on_established: Called with the connection when its handshake is complete.
        on_closed: Called once with the connection when it is gone.
        closed: Makes the exception that says how it ended; None while it lives.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        on_request: Callable[[Connection, ServerExchange, int, bytes], object] | None,
    ) -> None:
        super().__init__(endpoint.config.max_frame_payload, on_request)
        self._endpoint = endpoint
        self.loop = endpoint.loop
        self._established: asyncio.Future[bool] = endpoint.loop.create_future()
        self._drains: dict[int, list[asyncio.Future[None]]] = {}
        self._last: Numbers | None = None
        # Of streamed requests: until when each is to be sent, and its size.
        self._sending: list[tuple[float, ClientExchange, int]] = []
        self._prune_at = 16
        self._sending_timer: asyncio.TimerHandle | None = None
        self._sending_at = 0.0
        if on_request is None:
            self.exchanges.on_sending = self._on_sending
        self.on_established: Callable[[Connection], object] | None = None
        self.begun: Any = None
        self.dialled: tuple[Any, ...] = ()
        self.closed: Callable[[], ConnectionClosed] | None = None
        self.on_closed: Callable[[Connection], object] | None = None
        self._told: tuple[tuple[Any, ...], PeerAddr] | None = None

    # What the faces ask.

    @property
    def address(self) -> PeerAddr:
        """Where the other end is now; it may move during a connection's life."""
        address = self._engine.address
        told = self._told
        # The engine gives the same object for as long as it does not move.
        if told is None or told[0] is not address:
            self._told = told = address, _peer_addr(address)
        return told[1]

    @property
    def certificate(self) -> bytes:
        """The server's certificate in DER, whose key TLS has proven; for a client."""
        return self._engine.certificate

    @property
    def is_alive(self) -> bool:
        """Whether exchanges can be started on it."""
        return self.closed is None

    def numbers(self) -> Numbers:
        """Return how it is doing, or how it did when it ended; any thread may ask."""
        return self._last or self._look()

    def _look(self) -> Numbers:
        engine = self.engine_connection
        if engine is None:
            return Numbers()
        stats = engine.stats(time.monotonic())
        return Numbers(
            age=stats["age_us"] / 1e6,
            idle=stats["idle_us"] / 1e6,
            rtt=stats["rtt_us"] / 1e6,
            min_rtt=stats["min_rtt_us"] / 1e6,
            congestion_window=stats["cwnd"],
            bytes_sent=stats["bytes_sent"],
            bytes_received=stats["bytes_received"],
            packets_sent=stats["packets_sent"],
            packets_lost=stats["packets_lost"],
            requests=self.requests,
            in_flight=self.under_way,
            failures=self.failures,
            latencies=self.latencies,
        )

    def close(self, reason: str = "", code: int = 0) -> None:
        """Close it now, telling the other end.

        Args:
            reason: Short text for the other end.
            code: Application error code.
        """
        if self.closed is None:
            self.shut(reason.encode(), code)
            self._lose(ConnectionClosed(initiator="local", code=code, reason=reason))

    def sent(self, stream_id: int) -> Awaitable[None] | None:
        """Return what to await before sending more on a stream; None for nothing."""
        if self.closed is not None or not self.must_wait(stream_id):
            return None
        waiter: asyncio.Future[None] = self._endpoint.loop.create_future()
        self._drains.setdefault(stream_id, []).append(waiter)
        return waiter

    # The driver.

    @property
    def _engine(self) -> EngineConnection:
        return cast("EngineConnection", self.engine_connection)

    async def establish(self) -> None:
        """Wait until it is established; for a client.

        Raises:
            ConnectionClosed: The server refused, or cannot be reached.
        """
        if not await self._established:
            raise self.lost()

    def on_connected(self) -> None:
        """Take note that the handshake is complete."""
        if self.on_established is not None:
            self.on_established(self)
        if not self._established.done():
            self._established.set_result(True)

    def on_closed_by(self, end: ConnectionEnd) -> None:
        """Take note of how it ended."""
        remote = end.initiator in ("peer", "reset")
        reason = end.reason or _REASONS.get(end.initiator, "")
        self._lose(
            ConnectionClosed(
                initiator="remote" if remote else "local",
                code=end.code,
                reason=reason,
                timed_out=end.timed_out,
                application=end.application or end.initiator not in ("local", "peer"),
            )
        )

    def on_failure(self, error: Exception) -> None:
        """Give up a connection whose bytes led to an error that nobody foresaw."""
        log.error("giving up the connection with %s", self.address, exc_info=error)
        self.shut(b"", INTERNAL_ERROR)
        self._lose(ConnectionClosed(code=INTERNAL_ERROR, reason="internal error"))

    def on_room(self, stream_id: int) -> None:
        """Wake who waits to send more on a stream."""
        for waiter in self._drains.pop(stream_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _on_sending(self, exchange: ClientExchange, size: int) -> None:
        """Have a streamed request given up if it is not sent in its budget."""
        if len(self._sending) >= self._prune_at:
            self._sending = [each for each in self._sending if not each[1].ended]
            self._prune_at = 2 * len(self._sending) + 16
        due = self.loop.time() + write_budget(size)
        self._sending.append((due, exchange, size))
        self._check_at(due)

    def _check_at(self, due: float) -> None:
        if self._sending_timer is not None:
            if self._sending_at <= due:
                return
            self._sending_timer.cancel()
        self._sending_at = due
        self._sending_timer = self.loop.call_at(due, self._check_sending)

    def _check_sending(self) -> None:
        self._sending_timer = None
        now = self.loop.time()
        sending, self._sending = self._sending, []
        late = []
        for each in sending:
            due, exchange, size = each
            if exchange.ended:
                continue
            left = self.unsent(exchange.stream_id)
            if left and due <= now:
                late.append((exchange, size, left))
            elif left:
                self._sending.append(each)
        if self._sending:
            # A second late at most, for all are looked at each time.
            self._check_at(max(min(each[0] for each in self._sending), now + 1))
        for exchange, size, left in late:
            budget = write_budget(size)
            exchange.give_up(
                RequestTimeout(
                    f"request transfer timed out after {budget} s ({left} bytes "
                    "unacknowledged by peer)",
                    timeout=budget,
                )
            )

    def _lose(self, cause: ConnectionClosed) -> None:
        if self.closed is not None:
            return
        if self._sending_timer is not None:
            self._sending_timer.cancel()
            self._sending_timer = None

        def make_error() -> ConnectionClosed:
            return ConnectionClosed(
                initiator=cause.initiator,
                code=cause.code,
                reason=cause.reason,
                timed_out=cause.timed_out,
                application=cause.application,
            )

        self.closed = make_error
        if not self._established.done():
            # An exception kept here would keep the frame that awaits it, and that us.
            self._established.set_result(False)
        for stream_id in list(self._drains):
            self.on_room(stream_id)
        self.exchanges.connection_lost(make_error)
        self.hang_up()
        self._sending.clear()
        self._last = self._look()
        self._endpoint.note_end(self._last)
        # What has ended goes when nobody holds it, and does not wait for a collector.
        on_closed, self.on_closed, self.on_established = self.on_closed, None, None
        if on_closed is not None:
            on_closed(self)


def write_budget(size: int) -> int:
    """Return the seconds that a request of so many bytes has to be sent; the peer's."""
    return min(5 + -(-size // 1048576), 60)


_REASONS = {
    "reset": "the peer does not know this connection any more",
    "version": "the server speaks no version of ours",
    "path": "no path is left",
    "unreachable": "nobody listens there",
    "unresponsive": "the peer does not answer",
}


def _peer_addr(address: tuple[Any, ...]) -> PeerAddr:
    """Return a socket address; an IPv4 one on an IPv6 socket as what it is."""
    ip = address[0]
    if ip.startswith("::ffff:"):
        ip = str(ipaddress.IPv6Address(ip).ipv4_mapped or ip)
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


@cache  # Once is enough.
def _check_buffer(size: int) -> None:
    """Say how to get a larger socket buffer, where the system grants a small one."""
    granted = size // 2 if sys.platform == "linux" else size  # Linux counts double.
    if granted < SMALL_BUFFER:
        log.warning(
            "the system grants sockets %d KiB to receive: bursts may be lost and sent "
            "again. On Linux: sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d",
            granted >> 10,
            SOCKET_BUFFER,
            SOCKET_BUFFER,
        )


_TRANSFERRED = ("bytes_sent", "bytes_received", "packets_sent", "packets_lost")


class Endpoint:
    """One UDP socket and the connections on it; a client's or a server's.

    The event loop moves it along: when the socket is readable, when a timer is due and
    once a turn in which something was sent.

    Args:
        config: The transport's settings.
        engine: The engine.
        accept: For a server: makes the connection that a client has begun.
        threads: Leave the socket to the threads that ask or serve; the loop has what
            needs Python besides.
        on_busy: Called when requests wait and no thread is free to serve.
    """

    def __init__(
        self,
        config: TransportConfig,
        engine: Engine,
        accept: Callable[[EngineConnection], Connection] | None = None,
        *,
        threads: bool = False,
        on_busy: Callable[[], object] | None = None,
    ) -> None:
        self.config = config
        self._threads = threads
        self._on_busy = on_busy
        self.loop = asyncio.get_running_loop()
        self._engine = engine
        self._accept = accept
        # Of the connections that have ended, what `transferred` tells.
        self._past = dict.fromkeys(_TRANSFERRED, 0)
        self._driver: Driver | None = None
        self._local: PeerAddr | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._flush_handle: asyncio.Handle | None = None

    def __del__(self) -> None:
        # Nothing was opened by a constructor that failed.
        driver = getattr(self, "_driver", None)
        if driver is not None:
            # A forked child has it from its parent, who may well close it.
            if not driver.is_inherited:
                warnings.warn(
                    f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self
                )
            driver.close()

    async def open(self, family: int, address: tuple[Any, ...] | None = None) -> None:
        """Open the socket and start to receive.

        Raises:
            LightningConnectionError: It cannot be opened or bound.
        """
        if address is None:
            # Bound at once, so that it has a port.
            address = ("0.0.0.0", 0) if family == socket.AF_INET else ("::", 0)  # noqa: S104 - any interface may lead to a miner.
        sock = open_socket(family, address)
        try:
            local = _peer_addr(sock.getsockname())
            driver = Driver(
                self._engine,
                sock.fileno(),
                self._flush_soon,
                self._accept,
                owned=not self._threads,
                on_busy=self._on_busy,
            )
        except BaseException:
            sock.close()
            raise
        sock.detach()
        try:
            if not self._threads:
                self.loop.add_reader(driver.fileno(), self._on_readable)
            self.loop.add_reader(driver.notify_fd, self._on_notified)
        except BaseException:
            self.loop.remove_reader(driver.fileno())
            driver.close()
            raise
        self._driver, self._local = driver, local
        _check_buffer(driver.stats()["receive_buffer"])

    @property
    def connections(self) -> dict[int, Connection]:
        """What there is, closing ones included, by the engine's numbers."""
        if self._driver is None:
            return {}
        return {
            link.number: link for link in cast("list[Any]", self._driver.links_alive)
        }

    @property
    def local_addr(self) -> PeerAddr:
        """The address and port that the socket is bound to."""
        if self._driver is None or self._local is None:
            raise LightningConnectionError("the endpoint is closed")
        return self._local

    @property
    def is_inherited(self) -> bool:
        """Whether it was opened before a fork, by the parent of this process."""
        return self._driver is not None and self._driver.is_inherited

    def note_end(self, numbers: Numbers) -> None:
        """Add up what a connection has done that has ended."""
        for name in _TRANSFERRED:
            self._past[name] += getattr(numbers, name)

    def transferred(self) -> dict[str, int]:
        """Return the bytes and packets of all connections ever; any thread may ask.

        Read while a connection ends, it may be without that one's.
        """
        total = dict(self._past)
        for connection in self.connections.values():
            if connection.is_alive:
                numbers = connection.numbers()
                for name in _TRANSFERRED:
                    total[name] += getattr(numbers, name)
        return total

    def stats(self) -> dict[str, int]:
        """Return counters of the socket and of the engine."""
        if self._driver is None:
            return {}
        return {**self._engine.stats(), **self._driver.stats()}

    @property
    def latencies(self) -> tuple[int, ...]:
        """How long answers took, as `Numbers.latencies`, on all connections ever."""
        return () if self._driver is None else self._driver.latencies

    def close(self, reason: str) -> None:
        """Close every connection, telling the other ends, and the socket."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        for connection in cast("list[Connection]", driver.links_alive):
            connection.close(reason)
        driver.flush()
        self.loop.remove_reader(driver.fileno())
        self.loop.remove_reader(driver.notify_fd)
        driver.close()
        for handle in (self._timer, self._flush_handle):
            if handle is not None:
                handle.cancel()
        self._timer = self._flush_handle = None

    # The loop's callbacks.

    def _on_readable(self) -> None:
        if self._driver is not None:
            self._driver.attend()
            self._stepped()

    def _on_notified(self) -> None:
        if self._driver is not None:
            self._driver.notified()
            self._stepped()

    def _stepped(self) -> None:
        # A callback may have closed it.
        if self._driver is None:
            return
        if self._driver.took_answers():
            # Whoever awaited them runs next, and what they ask leaves in the same turn.
            self._flush_soon()
        self._set_timer()

    def _on_timer(self) -> None:
        self._timer = None
        self._on_readable()

    def _flush_soon(self) -> None:
        # All that one turn of the loop produces leaves together.
        if self._flush_handle is None:
            self._flush_handle = self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        self.flush()

    def flush(self) -> None:
        """Send what waits, now."""
        if self._driver is not None:
            self._driver.flush(not self._threads)
            self._stepped()

    def _set_timer(self) -> None:
        if self._threads:
            return
        at = None if self._driver is None else self._driver.deadline()
        if at is None:
            return  # A timer that is set finds nothing to do.
        if self._timer is not None:
            if self._timer_at <= at:
                return  # It will look again.
            self._timer.cancel()
        # Kept here: not every loop's handle tells when.
        self._timer_at = at
        self._timer = self.loop.call_at(at, self._on_timer)


def _engine_config(config: TransportConfig, **changes: Any) -> EngineConfig:
    return EngineConfig(
        idle_timeout=config.idle_timeout,
        keep_alive=config.keep_alive_interval,
        max_stream_data=STREAM_WINDOW,
        max_stream_window=STREAM_WINDOW_MAX,
        max_stream_buffered=SEND_HIGH_WATER,
        max_buffered=2**62 - 1,  # What is refused a stream waits here all the same.
        unresponsive_timeout=config.unresponsive_timeout or 0.0,
        qlog_dir=config.qlog_dir,
        keylog_file=config.keylog_file,
        **changes,
    )


# What servers gave for the next connection of the same hotkey, by hotkey and address:
# each is used once (RFC 9000 section 8.1.3), and saves the round trip of a Retry. A
# client's endpoint keeps them while it is open, this is for the next one.
_tokens: OrderedDict[tuple[str, tuple[Any, ...]], bytes] = OrderedDict()
TOKENS_KEPT = 1024


class ClientEndpoint(Endpoint):
    """A client's socket; one serves any number of servers of one address family.

    Args:
        config: The transport's settings.
        hotkey: Whose connections they are: what servers give to tell them again is
            kept for the same one only.
        threads: As for `Endpoint`.
    """

    def __init__(
        self, config: TransportConfig, hotkey: str = "", *, threads: bool = False
    ) -> None:
        engine = _engine_config(
            config,
            # Whoever dials has a timeout of its own; this is for the forgotten.
            handshake_timeout=max(config.idle_timeout, 0.001),
            max_streams=0,
        )
        super().__init__(config, Engine(engine, is_client=True), threads=threads)
        self._hotkey = hotkey

    def close(self, reason: str) -> None:
        """Do as `Endpoint.close`."""
        connections = [] if self._driver is None else self._driver.links_alive
        for connection in cast("list[Connection]", connections):
            if token := connection._engine.token:
                _tokens[self._hotkey, connection.dialled] = token
        while len(_tokens) > TOKENS_KEPT:
            _tokens.popitem(last=False)
        super().close(reason)

    async def connect(
        self,
        address: tuple[Any, ...],
        on_established: Callable[[Connection], object] | None = None,
    ) -> Connection:
        """Dial a server; the caller bounds the time.

        Args:
            address: As the socket layer writes it, already resolved.
            on_established: Called with the connection as soon as requests can be sent:
                they leave with what completes the handshake.

        Raises:
            ConnectionClosed: The server refused, or did not answer.
        """
        if self._driver is None:
            raise LightningConnectionError("the endpoint is closed")
        connection = Connection(self, None)
        connection.on_established = on_established
        connection.dialled = address
        token = _tokens.pop((self._hotkey, address), b"")
        self._driver.connect(address, connection, token)
        try:
            await connection.establish()
        except asyncio.CancelledError:
            connection.close()
            connection.begun = None
            raise
        return connection


class ServerEndpoint(Endpoint):
    """A server's socket.

    Args:
        config: The transport's settings.
        identity: The certificate to show.
        on_connection: Called with each new connection, before its handshake is
            complete; the client is not yet known.
        on_request: Called with ``(connection, exchange, type, payload)``.
        threads: As for `Endpoint`.
        on_busy: As for `Endpoint`.
    """

    def __init__(
        self,
        config: TransportConfig,
        identity: Identity,
        *,
        on_connection: Callable[[Connection], object],
        on_request: Callable[[Connection, ServerExchange, int, bytes], object],
        threads: bool = False,
        on_busy: Callable[[], object] | None = None,
    ) -> None:
        engine = _engine_config(
            config,
            handshake_timeout=config.handshake_timeout,
            max_streams=config.max_streams,
            max_half_open=config.max_half_open,
            max_connections=config.max_connections,
            retry=config.retry,
            max_unauthenticated_per_source=min(
                config.max_unauthenticated_per_source, ANY_NUMBER
            ),
            max_connections_per_minute=min(
                config.max_connections_per_minute, ANY_NUMBER
            ),
            max_tracked_rate_ips=config.max_tracked_rate_ips,
            secret=config.reset_secret,
        )
        super().__init__(
            config,
            Engine(engine, is_client=False, identity=identity),
            self._welcome,
            threads=threads,
            on_busy=on_busy,
        )
        self._on_connection = on_connection
        self._on_request = on_request

    def _welcome(self, engine: EngineConnection) -> Connection:
        connection = Connection(self, self._on_request)
        self._on_connection(connection)
        return connection

    def expire(self, before: float) -> None:
        """Give up on requests that began earlier, by the loop's clock, and lack bytes."""
        if self._driver is not None:
            self._driver.expire(before)

    def serve(
        self, handle: Callable[[Connection, ServerExchange, int, bytes], object]
    ) -> None:
        """Run requests in this thread until the endpoint is closed."""
        driver = self._driver
        if driver is not None:
            driver.serve(cast("Any", handle))

    def yield_lead(self) -> bool:
        """Have another thread serve; say if there is one free."""
        driver = self._driver
        return driver is None or driver.yield_lead()

    def set_sources(self, hosts: Iterable[str] | None) -> None:
        """Let only some IP addresses begin connections; None lets all."""
        if self._driver is not None:
            self._driver.set_sources(hosts)

    def set_open(self, is_open: bool) -> None:
        """Let connections begin, or none for now."""
        if self._driver is not None:
            self._driver.set_open(is_open)
