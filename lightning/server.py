"""The server on asyncio."""

from __future__ import annotations

import asyncio
import logging
import operator
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lightning._core.io.base import FORKED
from lightning._core.io.transport import (
    Connection,
    Identity,
    ServerEndpoint,
    TransportConfig,
)
from lightning._core.wire.framing import MessageType
from lightning._core.wire.messages import (
    SynapsePacket,
)
from lightning.admission import (
    SourceAllowlist,
)
from lightning.answers import Answers, fail
from lightning.config import LightningServerConfig
from lightning.errors import (
    ConfigError,
    LightningConnectionError,
    SerializationError,
)
from lightning.handlers import (
    ERROR_AUTHENTICATION,
    ERROR_BUSY,
    ERROR_INVALID_REQUEST,
    ERROR_PROCESSING,
    ERROR_UNKNOWN_SYNAPSE,
    Handler,
    HandlerContext,
    HandlerKind,
    HandlerTable,
    Registered,
)
from lightning.handshake import (
    certificate_fingerprint,
)
from lightning.logins import Logins
from lightning.logs import Throttled
from lightning.refresh import refresh
from lightning.reports import ConnectionStats, HandlerStats, ServerStats
from lightning.room import Request, Room, is_limited
from lightning.signals import on_sigterm_in
from lightning.signer import (
    BtWalletSigner,
    Sr25519Signer,
    as_signer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from lightning._core.io.links import ServerExchange
    from lightning.priority import Priority
    from lightning.serving import ServingThreads
    from lightning.types import PeerAddr, ServerConnectionStats

T = TypeVar("T")

# Seconds that running handlers get to finish when the server is stopped.
STOP_TIMEOUT = 1.0
# Seconds that handlers which resist their cancellation are waited for.
CANCEL_TIMEOUT = 1.0
# Seconds between two looks for requests that never became complete.
SWEEP_INTERVAL = 1.0

SYNAPSE_PACKET = MessageType.SYNAPSE_PACKET.value
HANDSHAKE_REQUEST = MessageType.HANDSHAKE_REQUEST.value

log = logging.getLogger("lightning.server")


class AsyncLightningServer:
    """A miner's server on asyncio.

    Args:
        miner_hotkey: SS58 address of the miner's hotkey.
        host: IPv4 or IPv6 address, or a host name, to listen on.
        port: UDP port; 0 lets the system choose, see `local_addr`.
        signer: Anything `as_signer` takes: a signer, a keypair, a wallet, a callable
            or a seed; None to set one later.
        config: Settings; None for the defaults.

    Example::

        server = AsyncLightningServer(hotkey, port=8443, signer=keypair)
        server.register_synapse_handler("echo", lambda data: data)
        async with server:
            await server.serve_forever()
    """

    def __init__(
        self,
        miner_hotkey: str,
        host: str = "0.0.0.0",  # noqa: S104 - miners serve the world.
        port: int = 8443,
        *,
        signer: object | None = None,
        config: LightningServerConfig | None = None,
    ) -> None:
        if not isinstance(miner_hotkey, str):
            raise TypeError(
                f"miner_hotkey must be a str, not {type(miner_hotkey).__name__}"
            )
        if not isinstance(host, str):
            raise TypeError(f"host must be a str, not {type(host).__name__}")
        if not 0 <= operator.index(port) <= 65535:
            raise OverflowError("port must be between 0 and 65535")
        self.miner_hotkey = miner_hotkey
        self.host = host
        self.port = operator.index(port)
        self.config = config or LightningServerConfig()
        self._handlers = HandlerTable()
        self._permit_resolver: Any = None
        self._source_resolver: Any = None
        settings = self.config
        self._sources = SourceAllowlist.enforce(())
        # Connections without a login, and the timer that ends each.
        self._strangers: dict[Connection, asyncio.TimerHandle] = {}
        self._endpoint: ServerEndpoint | None = None
        self._answers = Answers(settings, self._flush)
        self._tasks: set[asyncio.Task[Any]] = set()
        # Those of the tasks that answer requests.
        self._requests: set[asyncio.Task[Any]] = set()
        self._stopped = asyncio.Event()
        # One for each call of serve_forever() that has not returned.
        self._serving: set[asyncio.Future[None]] = set()
        # What SIGTERM has begun.
        self._terminating: asyncio.Task[None] | None = None
        # False from stop() on; requests are then no longer begun.
        self._open = False
        # For what validators, and strangers, can have it say at will.
        self._log = Throttled(log)
        # Requests that no handler has had, by the text of the answer.
        self._refused: Counter[str] = Counter()
        self._logins = Logins(
            miner_hotkey, settings, self._log, self._spawn, self._on_accepted
        )
        self._table = self._logins.table
        if signer is not None:
            self._logins.signer = as_signer(signer)
        # The blocking face sets this: requests are run by these, and not by the loop.
        self._threads: ServingThreads | None = None
        # Has the loop call a function, from any thread.
        self._post: Callable[..., object] = lambda *_: None
        self._thread_id = 0
        self._priority: Priority | None = None
        # None while every request begins at once.
        self._room: Room | None = None

    @classmethod
    def with_config(
        cls, miner_hotkey: str, host: str, port: int, config: LightningServerConfig
    ) -> Self:
        """Make a server with settings, by the name it has in the peer's Rust crate."""
        return cls(miner_hotkey, host, port, config=config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.miner_hotkey} {self.host}:{self.port}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    # Who signs, who may come in, who is told.

    def set_miner_signer(self, signer: object) -> None:
        """Set who signs the answers to logins.

        Args:
            signer: Anything `as_signer` takes.
        """
        self._logins.signer = as_signer(signer)

    def set_miner_keypair(self, keypair_seed: bytes | list[int]) -> None:
        """Sign with the sr25519 key of a seed.

        Args:
            keypair_seed: 32 bytes.

        Raises:
            ConfigError: It is not 32 bytes long.
        """
        self._logins.signer = Sr25519Signer.from_seed(bytes(keypair_seed))

    def set_miner_wallet(
        self,
        wallet_name: str = "default",
        wallet_path: str = "~/.bittensor/wallets",
        hotkey_name: str = "default",
    ) -> None:
        """Sign with the hotkey of a wallet on disk; needs the extra ``wallet``.

        Raises:
            ConfigError: The wallet cannot be loaded.
        """
        self._logins.signer = BtWalletSigner.from_wallet(
            wallet_name, wallet_path, hotkey_name
        )

    def set_validator_permit_resolver(self, resolver: Any) -> None:
        """Set who knows the validators that hold a permit.

        Asked at the start and every ``validator_permit_refresh_secs``, if
        ``require_validator_permit`` is set. Validators that have lost theirs are
        disconnected.

        Args:
            resolver: A `ValidatorPermitResolver`, or a callable without arguments;
                sync (run in a thread) or async.
        """
        self._permit_resolver = resolver

    def set_source_address_resolver(self, resolver: Any) -> None:
        """Set who knows the source addresses that may connect.

        Asked at the start and every ``source_allowlist_refresh_secs``, if
        ``enforce_source_allowlist`` is set.

        Args:
            resolver: A `SourceAddressResolver`, or a callable without arguments; sync
                (run in a thread) or async.
        """
        self._source_resolver = resolver

    def set_handshake_observer(self, observer: Any) -> None:
        """Set who is told of every login that succeeded.

        Args:
            observer: A `HandshakeObserver`, or a callable with the hotkey and the IP;
                sync or async, run on the event loop.
        """
        self._logins.observer = observer

    def set_priority(self, priority: Priority | None) -> None:
        """Set who says which requests come first where not all can be worked on.

        Requests wait when ``max_concurrent_requests`` are worked on, or, without that
        setting, as many as ``handler_threads``. It may be set while the server runs.

        Args:
            priority: Called with the `HandlerContext` of each request, on the event
                loop or the thread that receives, so it must be quick; higher numbers
                come first. An exception counts as 0. `StakePriority` is one; None
                makes all equal.

        Raises:
            TypeError: It cannot be called.
        """
        if priority is not None and not callable(priority):
            raise TypeError(f"{type(priority).__name__} cannot be called")
        self._priority = priority
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.priority = self._priority
        elif self._priority is not None or is_limited(self.config):
            self._room = Room(
                self.config, self._priority, self._answers, self._begin_request
            )

    def _begin_request(self, request: Request) -> None:
        self._answer(*request)

    # Handlers; they may be registered while the server runs.

    def register_synapse_handler(
        self, synapse_type: str, handler: Any, *, inline: bool = False
    ) -> Any:
        """Register a handler that gives one answer; see `lightning.handlers`.

        Args:
            synapse_type: Name that requests ask for; registering again replaces.
            handler: A function of ``data``, or an object with ``handle``; run in a
                thread, or on the event loop if it is ``async``.
            inline: Run it on the I/O thread, for handlers of a few microseconds.

        Raises:
            ConfigError: It is a generator, or cannot be called with ``data``.
        """
        self._handlers.add(synapse_type, handler, inline=inline)
        return Registered()

    def register_async_synapse_handler(self, synapse_type: str, handler: Any) -> Any:
        """Register an async handler that gives one answer.

        Args:
            synapse_type: As for `register_synapse_handler`.
            handler: As there, returning an awaitable.
        """
        self._handlers.add_async(synapse_type, handler)
        return Registered()

    def register_streaming_handler(self, synapse_type: str, handler: Any) -> Any:
        """Register a handler that gives chunks of bytes.

        Args:
            synapse_type: As for `register_synapse_handler`.
            handler: A generator or async generator function of ``data``, or what
                else `HandlerTable.add_streaming` takes.
        """
        self._handlers.add_streaming(synapse_type, handler)
        return Registered()

    # Life.

    async def start(self) -> None:
        """Make a certificate, bind the socket and begin to serve.

        Nobody may come in before the permits and the allowlist, where they are asked
        for, have been resolved.

        Raises:
            ConfigError: It runs already, or the address cannot be bound.
        """
        self._check_process()
        if self._open or self._endpoint is not None:
            raise ConfigError("the server is already started: call stop() first")
        settings = self.config
        self._answers = Answers(settings, self._flush)
        self._stopped = asyncio.Event()
        self._sources = SourceAllowlist.enforce(())
        self._post = self._answers.pool.mailbox().post
        self._thread_id = threading.get_ident()
        self._room = None
        self._make_room()
        self._open = True
        try:
            endpoint = self._endpoint = await self._bind()
        except LightningConnectionError as error:
            raise ConfigError(f"failed to create QUIC endpoint: {error.detail}") from (
                error.__cause__
            )
        finally:
            self._open = self._endpoint is not None
        if self._logins.signer is None:
            log.warning("no signer is set: every login will be refused")
        self._spawn(self._sweep(endpoint), "sweep")
        self._spawn(self._answers.expire(), "handler timeouts")
        if self._threads is not None:
            self._threads.start(endpoint, self._serve)
        if settings.require_validator_permit:
            self._spawn(
                refresh(
                    "permits",
                    lambda: _method(
                        self._permit_resolver, "resolve_permitted_validators"
                    ),
                    settings.validator_permit_refresh_secs,
                    self._logins.take_permits,
                    self._answers.pool,
                    self._logins.permits_known,
                ),
                "permits",
            )
        if settings.enforce_source_allowlist:
            self._spawn(
                refresh(
                    "allowed sources",
                    lambda: _method(self._source_resolver, "resolve_allowed_sources"),
                    settings.source_allowlist_refresh_secs,
                    self._take_sources,
                    self._answers.pool,
                    asyncio.Event(),
                ),
                "sources",
            )
        log.info("miner %s serves on %s", self.miner_hotkey, self.local_addr())

    async def _bind(self) -> ServerEndpoint:
        settings = self.config
        identity = Identity.generate()
        endpoint = ServerEndpoint(
            TransportConfig(
                idle_timeout=settings.idle_timeout_secs,
                keep_alive_interval=settings.keep_alive_interval_secs,
                max_frame_payload=settings.max_login_frame_bytes,
                max_streams=settings.max_concurrent_bidi_streams,
                max_half_open=settings.max_unauthenticated_connections,
                max_connections=settings.max_connections
                + settings.max_unauthenticated_connections,
                handshake_timeout=settings.login_deadline_secs,
                retry=settings.require_address_validation,
                max_unauthenticated_per_source=settings.max_unauthenticated_per_source
                or max(settings.max_unauthenticated_connections // 4, 1),
                max_connections_per_minute=settings.max_connections_per_minute
                or 4 * settings.max_handshake_attempts_per_minute,
                max_tracked_rate_ips=settings.max_tracked_rate_ips,
                reset_secret=settings.reset_secret or self._reset_secret(),
                qlog_dir=settings.qlog_dir,
                keylog_file=settings.keylog_file,
            ),
            identity,
            on_connection=self._on_connection,
            on_request=self._on_request,
            threads=self._threads is not None,
            on_busy=None if self._threads is None else self._threads.add,
        )
        try:
            places = await asyncio.get_running_loop().getaddrinfo(
                self.host, self.port, type=socket.SOCK_DGRAM
            )
        except (OSError, UnicodeError) as error:
            raise LightningConnectionError(
                f"invalid host {self.host!r}: {error}"
            ) from error
        family, _, _, _, address = places[0]
        self._logins.begin(certificate_fingerprint(identity.der))
        await endpoint.open(family, address)
        if settings.enforce_source_allowlist:
            # Nobody, before the first answer.
            endpoint.set_sources(())
        return endpoint

    def _reset_secret(self) -> bytes:
        """Make what the next life of this server can make again, if that is possible.

        Two endpoints must not share it (RFC 9000 section 10.3.2).
        """
        signer = self._logins.signer
        if self.port and isinstance(signer, Sr25519Signer):
            return signer.derive(f"reset {self.host} {self.port}".encode())
        return b""

    async def serve_forever(self, *, drain: float = STOP_TIMEOUT) -> None:
        """Return when the server has been stopped.

        In the main thread, if SIGTERM would end the process, it stops the server
        instead for as long as this runs, and this returns; a second one cuts the drain.

        Args:
            drain: Seconds that running handlers get then, as for `stop`.

        Raises:
            ConfigError: It is not started, or a permit or the allowlist is asked for
                without a resolver.
        """
        self._check_process()
        stopped = self._stopped
        if self._endpoint is None:
            raise ConfigError("server not started: call start() first")
        if self.config.require_validator_permit and self._permit_resolver is None:
            raise ConfigError(
                "require_validator_permit needs a ValidatorPermitResolver: call "
                "set_validator_permit_resolver() first"
            )
        if self.config.enforce_source_allowlist and self._source_resolver is None:
            raise ConfigError(
                "enforce_source_allowlist needs a SourceAddressResolver: call "
                "set_source_address_resolver() first"
            )
        loop = asyncio.get_running_loop()
        returned = loop.create_future()
        self._serving.add(returned)
        try:
            with on_sigterm_in(loop, lambda: self._terminate(drain)):
                await stopped.wait()
        finally:
            self._serving.discard(returned)
            returned.set_result(None)
        if self._terminating is not None:
            # It has the last word, and no time to lose: it waited for us only.
            await asyncio.wait([self._terminating], timeout=CANCEL_TIMEOUT)
            self._terminating = None

    def _terminate(self, drain: float) -> None:
        """Stop at the first call, at once at the next; on the loop."""
        if self._terminating is not None:
            self._terminating.cancel()
            return
        log.info("SIGTERM: miner %s is stopped", self.miner_hotkey)
        self._terminating = asyncio.get_running_loop().create_task(
            self.stop(drain), name="lightning-server stop"
        )

    async def stop(self, drain: float = STOP_TIMEOUT) -> None:
        """Let running handlers finish, then close every connection and the socket.

        Connections are not accepted any more, and requests that come meanwhile are
        answered ``server busy``. What has not finished in time is
        cut off: async handlers are cancelled, those in threads run on unheard. The
        server can be started again, with a new certificate. Fine if it is not started.

        Args:
            drain: Longest wait in seconds for handlers and for their answers to
                arrive.
        """
        endpoint, stopped, pool = self._endpoint, self._stopped, self._answers.pool
        if endpoint is None or not self._open or endpoint.is_inherited:
            return
        self._open = False
        self._admit()
        try:
            await self._drain(endpoint, drain)
        finally:
            # Whoever does not want to wait cancels this, and has it stopped all the same.
            names = {task: task.get_name() for task in self._tasks}
            for task, handler in self._answers.tasks.items():
                names[task] = f"lightning-server {handler.name if handler else ''}"
            tasks = names.keys() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            endpoint.close("server_shutdown")
            if self._threads is not None:
                self._threads.stop()
            pool.shutdown()
            self._endpoint = None
            stopped.set()
            serving, self._serving = self._serving, set()
            for told in (self._log, self._logins.peers, self._answers.log):
                told.flush()
            log.info("miner %s has stopped", self.miner_hotkey)
        # Whoever waits in serve_forever() sees it return, not a cancelled call.
        await asyncio.wait(tasks | serving, timeout=CANCEL_TIMEOUT)
        for task in tasks:
            if not task.done():
                log.warning("%s does not end though cancelled", names[task])

    def _check_process(self) -> None:
        if self._endpoint is not None and self._endpoint.is_inherited:
            raise RuntimeError(FORKED)

    async def _drain(self, endpoint: ServerEndpoint, timeout: float) -> None:
        """Wait until nothing runs, and what was answered has arrived."""
        connections = set(endpoint.connections.values())
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            running = self._requests - {asyncio.current_task()}
            if running:
                await asyncio.wait(running, timeout=left)
            elif self._answers.others_run() or any(
                c.is_alive and c.has_unsent for c in connections
            ):
                await asyncio.sleep(min(left, 0.01))
            else:
                break

    @property
    def is_started(self) -> bool:
        """Whether it listens."""
        return self._endpoint is not None

    def local_addr(self) -> PeerAddr:
        """Return the address and port that the server listens on.

        Raises:
            ConfigError: It is not started.
        """
        if self._endpoint is None:
            raise ConfigError("server not started: call start() first")
        return self._endpoint.local_addr

    # What it knows.

    def connections(self) -> tuple[ConnectionStats, ...]:
        """Return how the connections with a login are doing.

        Any thread may ask.
        """
        return tuple(
            ConnectionStats.of(session.connection, tuple(session.logins))
            for session in list(self._table)
        )

    def stats(self) -> ServerStats:
        """Return counters since the server was made, and numbers of this moment.

        Any thread may ask.
        """
        logins, answers = self._logins, self._answers
        queued = answers.pool.waiting + len(answers.backlog)
        if self._room is not None:
            queued += self._room.work.waiting
        return ServerStats(
            handlers=tuple(
                HandlerStats(name, *tally.counts())
                for name, tally in list(self._handlers.tallies.items())
            ),
            unknown=self._refused[ERROR_UNKNOWN_SYNAPSE],
            unauthenticated=self._refused[ERROR_AUTHENTICATION],
            invalid=self._refused[ERROR_INVALID_REQUEST],
            logins=logins.accepted,
            logins_refused=dict(logins.refused),
            connections=len(logins.table),
            strangers=len(self._strangers),
            validators=len(logins.table.hotkeys),
            permits=len(logins.permits),
            nonces=len(logins.nonces),
            running=max(self._answering - queued, 0),
            queued=queued,
        )

    async def get_connection_stats(self) -> ServerConnectionStats:
        """Return the peer's table of texts.

        Returns:
            ``total_connections`` and ``verified_connections``: validators logged in;
            and for each ``connection_{hotkey}``: the name of its session.
        """
        stats = {}
        for session in self._table:
            for hotkey, login in session.logins.items():
                stats[f"connection_{hotkey}"] = login.connection_id
        count = str(len(stats))
        stats["total_connections"] = stats["verified_connections"] = count
        return stats  # type: ignore[return-value]  # Hotkeys make the other keys.

    async def cleanup_stale_connections(self, max_idle_seconds: float = 300) -> None:
        """Close connections whose last request is longer ago than this.

        Args:
            max_idle_seconds: Seconds.
        """
        for connection in self._table.stale(max_idle_seconds, time.time()):
            connection.close("cleanup")

    async def get_active_nonce_count(self) -> int:
        """Return how many nonces are remembered."""
        return len(self._logins.nonces)

    async def cleanup_expired_nonces(self) -> None:
        """Forget nonces that cannot be used again; done by itself as well."""
        self._logins.expire()

    async def get_permitted_validator_count(self) -> int:
        """Return how many validators hold a permit, as last resolved."""
        return len(self._logins.permits)

    async def get_allowed_source_count(self) -> int:
        """Return how many addresses the allowlist has; 0 if it is bypassed."""
        return self._sources.count

    async def is_source_enforcement_bypassed(self) -> bool:
        """Return whether the resolver lets every address in."""
        return self._sources.is_bypass

    # Connections.

    def _admit(self) -> None:
        """Let strangers come while there is room for them."""
        if self._endpoint is None:
            return
        has_room = len(self._strangers) < self.config.max_unauthenticated_connections
        self._endpoint.set_open(self._open and has_room)
        if not has_room:
            self._log.warning(
                "%d connections have no login: no more are accepted for now",
                len(self._strangers),
                burst=1,
            )

    def _on_connection(self, connection: Connection) -> None:
        connection.on_closed = self._on_closed
        self._strangers[connection] = asyncio.get_running_loop().call_later(
            self.config.login_deadline_secs, connection.close, "login deadline"
        )
        self._admit()

    def _on_accepted(self, connection: Connection) -> None:
        self._forget_stranger(connection)
        connection.vouch()
        connection.max_payload = self.config.max_frame_payload_bytes

    def _forget_stranger(self, connection: Connection) -> None:
        deadline = self._strangers.pop(connection, None)
        if deadline is not None:
            deadline.cancel()
            self._admit()

    def _on_closed(self, connection: Connection) -> None:
        self._forget_stranger(connection)
        self._logins.forget(connection)

    # Requests.

    @property
    def _answering(self) -> int:
        return len(self._requests) + self._answers.awaited

    def _suspects(self) -> list[Handler]:
        """Return the handlers that run."""
        return [handler for handler, _ in list(self._answers.running.values())]

    def _flush(self) -> None:
        if self._endpoint is not None:
            self._endpoint.flush()

    def _serve(self, *request: Any) -> None:
        """Run a request in a thread, or have the loop do what only that can."""
        if request[2] == SYNAPSE_PACKET:
            self._on_request(*request)
        else:
            self._post(self._on_request, *request)

    def _on_request(
        self, connection: Connection, exchange: ServerExchange, kind: int, payload: Any
    ) -> None:
        if not self._open:
            if kind == SYNAPSE_PACKET and isinstance(payload, SynapsePacket):
                # It is being stopped; others may answer.
                handler = self._handlers.find(payload.synapse_type)
                if fail(exchange, ERROR_BUSY, handler) and handler is not None:
                    handler.tally.busy += 1
            return  # It ends with the connection, in a moment.
        try:
            if kind == SYNAPSE_PACKET:
                self._on_packet(connection, exchange, payload)
            elif kind == HANDSHAKE_REQUEST:
                self._logins.on_login(connection, exchange, payload)
            else:
                exchange.respond(b"")
        except Exception:
            # Ours to mend, and no reason to lose the connection.
            self._log.exception("request from %s failed", connection.address)
            fail(exchange, ERROR_PROCESSING)

    def _on_packet(
        self,
        connection: Connection,
        exchange: ServerExchange,
        packet: SynapsePacket | SerializationError,
    ) -> None:
        if isinstance(packet, SerializationError):
            self._log.debug("request from %s refused: %s", connection.address, packet)
            self._refuse(exchange, ERROR_INVALID_REQUEST)
            return
        handler = self._handlers.find(packet.synapse_type)
        session = self._table.session(connection)
        if session is None:
            self._refuse(exchange, ERROR_AUTHENTICATION, handler)
            return
        session.last_activity = time.time()
        if handler is None:
            self._refuse(exchange, ERROR_UNKNOWN_SYNAPSE)
            return
        room = self._room
        context = None
        if handler.takes_context or (room is not None and room.priority is not None):
            hotkey = session.hotkey
            context = HandlerContext(
                hotkey,
                connection.address,
                packet.synapse_type,
                time.monotonic() + self.config.handler_timeout_secs,
                session.logins[hotkey].connection_id,
            )
        if room is not None:
            request = Request(connection, exchange, handler, packet.data, context)
            room.enter(request, session.hotkey)
            return
        answers, threads, data = self._answers, self._threads, packet.data
        if threads is None and handler.kind is HandlerKind.ASYNC:
            # As `_answer` does, which this one has no need of: it is the loop's thread.
            answers.in_task(exchange, handler, data, context)
        elif threads is None or handler.kind is not HandlerKind.THREAD:
            self._answer(connection, exchange, handler, data, context)
        elif threads.is_brief(handler):
            answers.here(exchange, handler, data, context)
            if answers.backlog:
                answers.work_off(threads)
        else:
            answers.in_turn(threads, exchange, handler, data, context)

    def _answer(
        self,
        connection: Connection,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Have a request answered, by the kind of its handler."""
        answers, kind = self._answers, handler.kind
        if kind is HandlerKind.INLINE:
            answers.inline(exchange, handler, data, context)
        elif kind is HandlerKind.THREAD:
            answers.in_thread(exchange, handler, data, context)
        elif kind is HandlerKind.ASYNC:
            self._call(answers.in_task, exchange, handler, data, context)
        else:
            self._call(self._begin, connection, exchange, handler, data, context)

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop: now, if this is its thread."""
        if self._thread_id == threading.get_ident():
            function(*args)
        else:
            self._post(function, *args)

    def _refuse(
        self, exchange: ServerExchange, text: str, handler: Handler | None = None
    ) -> None:
        self._refused[text] += 1
        fail(exchange, text, handler)

    def _begin(
        self,
        connection: Connection,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer chunk by chunk."""
        if exchange.cancelled or (
            self._room is not None and exchange not in self._answers.running
        ):
            self._answers.drop(exchange)
            return
        answer = self._answers.stream(exchange, handler, data, context, connection.sent)
        self._spawn(answer, handler.name, exchange, handler)

    # Background.

    def _spawn(
        self,
        coroutine: Coroutine[Any, Any, None],
        name: str,
        exchange: ServerExchange | None = None,
        handler: Handler | None = None,
    ) -> None:
        """Run a task that ends with the server.

        One that answers a request ends with that at the latest.
        """
        task = asyncio.get_running_loop().create_task(
            coroutine, name=f"lightning-server {name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        if exchange is None:
            return

        def on_done(task: asyncio.Task[None]) -> None:
            self._requests.discard(task)
            self._answers.drop(exchange)
            # A client must not wait for ever for what went wrong in an unforeseen way.
            if task.cancelled() or task.exception() is not None:
                fail(exchange, ERROR_PROCESSING, handler)

        self._requests.add(task)
        task.add_done_callback(on_done)
        exchange.on_cancel = task.cancel

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task %s failed", task.get_name(), exc_info=error)

    async def _sweep(self, endpoint: ServerEndpoint) -> None:
        next_cleanup = time.monotonic() + self.config.nonce_cleanup_interval_secs
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now = asyncio.get_running_loop().time()
            endpoint.expire(now - self.config.frame_timeout_secs)
            if time.monotonic() >= next_cleanup:
                next_cleanup += self.config.nonce_cleanup_interval_secs
                await self.cleanup_expired_nonces()
                if self._room is not None:
                    self._room.work.expire(time.monotonic())

    def _take_sources(self, sources: Any) -> None:
        if not isinstance(sources, SourceAllowlist):
            raise TypeError(
                "resolve_allowed_sources must return a SourceAllowlist, not "
                f"{type(sources).__name__}"
            )
        self._sources = sources
        if self._endpoint is not None:
            self._endpoint.set_sources(sources.addresses)


def _method(thing: Any, name: str) -> Any:
    """Return the method of an object, or the callable that stands in for it."""
    return getattr(thing, name, thing)
