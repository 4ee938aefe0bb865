"""The server on asyncio."""

from __future__ import annotations

import asyncio
import inspect
import logging
import operator
import socket
import time
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
    HandshakeRequest,
    SynapsePacket,
)
from lightning.admission import (
    LoginRateLimiter,
    NonceCache,
    PermitSet,
    SourceAllowlist,
    ValidatorTable,
)
from lightning.answers import Answers, fail
from lightning.config import LightningServerConfig
from lightning.errors import (
    ConfigError,
    HandshakeError,
    LightningConnectionError,
    LightningError,
    PermitMissing,
    RateLimited,
    SerializationError,
    ServerFull,
    SigningError,
)
from lightning.handlers import (
    ERROR_AUTHENTICATION,
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
    accept,
    certificate_fingerprint,
    rejection,
    verify_request,
)
from lightning.logs import BURST_OF_PEERS, INTERVAL_OF_PEERS, Throttled
from lightning.refresh import refresh
from lightning.signer import (
    BtWalletSigner,
    Signer,
    Sr25519Signer,
    as_signer,
    sign,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from lightning._core.io.links import ServerExchange
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
        self._signer: Signer | None = None if signer is None else as_signer(signer)
        self._handlers = HandlerTable()
        self._permit_resolver: Any = None
        self._source_resolver: Any = None
        self._observer: Any = None
        settings = self.config
        self._nonces = NonceCache(
            settings.max_nonce_entries, settings.max_signature_age_secs
        )
        self._logins = LoginRateLimiter(
            settings.max_handshake_attempts_per_minute,
            max_sources=settings.max_tracked_rate_ips,
        )
        self._permits = PermitSet()
        self._sources = SourceAllowlist.enforce(())
        self._table: ValidatorTable[Connection] = ValidatorTable(
            settings.max_connections
        )
        # Connections without a login, and the timer that ends each.
        self._strangers: dict[Connection, asyncio.TimerHandle] = {}
        self._fingerprint = ""
        self._endpoint: ServerEndpoint | None = None
        self._answers = Answers(settings, self._flush)
        self._tasks: set[asyncio.Task[Any]] = set()
        # Those of the tasks that answer requests.
        self._requests: set[asyncio.Task[Any]] = set()
        self._permits_known = asyncio.Event()
        self._stopped = asyncio.Event()
        # One for each call of serve_forever() that has not returned.
        self._serving: set[asyncio.Future[None]] = set()
        # False from stop() on; requests are then no longer begun.
        self._open = False
        # For what validators, and strangers, can have it say at will.
        self._log = Throttled(log)
        self._peers = Throttled(log, BURST_OF_PEERS, INTERVAL_OF_PEERS)
        # The blocking face sets this: requests are run by these, and not by the loop.
        self._threads: ServingThreads | None = None
        # Has the loop call a function, from any thread.
        self._post: Callable[..., object] = lambda *_: None

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
        self._signer = as_signer(signer)

    def set_miner_keypair(self, keypair_seed: bytes | list[int]) -> None:
        """Sign with the sr25519 key of a seed.

        Args:
            keypair_seed: 32 bytes.

        Raises:
            ConfigError: It is not 32 bytes long.
        """
        self._signer = Sr25519Signer.from_seed(bytes(keypair_seed))

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
        self._signer = BtWalletSigner.from_wallet(wallet_name, wallet_path, hotkey_name)

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
        self._observer = observer

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
        self._permits = PermitSet()
        self._permits_known = asyncio.Event()
        self._sources = SourceAllowlist.enforce(())
        self._post = self._answers.pool.mailbox().post
        self._open = True
        try:
            endpoint = self._endpoint = await self._bind()
        except LightningConnectionError as error:
            raise ConfigError(f"failed to create QUIC endpoint: {error.detail}") from (
                error.__cause__
            )
        finally:
            self._open = self._endpoint is not None
        if self._signer is None:
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
                    self._take_permits,
                    self._answers.pool,
                    self._permits_known,
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
        self._fingerprint = certificate_fingerprint(identity.der)
        await endpoint.open(family, address)
        if settings.enforce_source_allowlist:
            # Nobody, before the first answer.
            endpoint.set_sources(())
        return endpoint

    async def serve_forever(self) -> None:
        """Return when the server has been stopped.

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
        returned = asyncio.get_running_loop().create_future()
        self._serving.add(returned)
        try:
            await stopped.wait()
        finally:
            self._serving.discard(returned)
            returned.set_result(None)

    async def stop(self, timeout_secs: float = STOP_TIMEOUT) -> None:
        """Let running handlers finish, then close every connection and the socket.

        Requests that come meanwhile are not begun. What has not finished in time is
        cut off: async handlers are cancelled, those in threads run on unheard. The
        server can be started again, with a new certificate. Fine if it is not started.

        Args:
            timeout_secs: Longest wait for handlers and for their answers to arrive.
        """
        endpoint, stopped, pool = self._endpoint, self._stopped, self._answers.pool
        if endpoint is None or not self._open or endpoint.is_inherited:
            return
        self._open = False
        self._admit()
        try:
            await self._drain(endpoint, timeout_secs)
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
            for told in (self._log, self._peers, self._answers.log):
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
        return len(self._nonces)

    async def cleanup_expired_nonces(self) -> None:
        """Forget nonces that cannot be used again; done by itself as well."""
        self._nonces.expire(time.time())
        self._logins.expire(time.monotonic())

    async def get_permitted_validator_count(self) -> int:
        """Return how many validators hold a permit, as last resolved."""
        return len(self._permits)

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

    def _forget_stranger(self, connection: Connection) -> None:
        deadline = self._strangers.pop(connection, None)
        if deadline is not None:
            deadline.cancel()
            self._admit()

    def _on_closed(self, connection: Connection) -> None:
        self._forget_stranger(connection)
        ended = connection.closed
        for hotkey in self._table.remove_connection(connection):
            self._peers.info(
                "validator %s at %s is gone: %s",
                hotkey,
                connection.address,
                ended().detail if ended is not None else "",
            )

    # Requests.

    @property
    def _answering(self) -> int:
        return len(self._requests) + self._answers.awaited

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
            return  # It ends with the connection, in a moment.
        try:
            if kind == SYNAPSE_PACKET:
                self._on_packet(connection, exchange, payload)
            elif kind == HANDSHAKE_REQUEST:
                self._on_login(connection, exchange, payload)
            else:
                exchange.respond(b"")
        except Exception:
            # Ours to mend, and no reason to lose the connection.
            self._log.exception("request from %s failed", connection.address)
            fail(exchange, ERROR_PROCESSING)

    def _on_login(
        self, connection: Connection, exchange: ServerExchange, payload: bytes
    ) -> None:
        ip = connection.address.ip
        try:
            if not self._logins.allow(ip, time.monotonic()):
                raise RateLimited("too many logins from this address", address=ip)
            request = HandshakeRequest.from_payload(payload)
        except LightningError as error:
            level = logging.DEBUG if isinstance(error, RateLimited) else logging.INFO
            self._log.log(level, "login from %s refused: %s", connection.address, error)
            exchange.respond(rejection(time.time()).to_frame())
            return
        if isinstance(self._signer, Sr25519Signer) and (
            self._permits_known.is_set() or not self.config.require_validator_permit
        ):
            # Answered at once, with what completes the handshake.
            try:
                frame = _run_through(self._check_login(connection, request))
            except LightningError as error:
                self._refuse(connection, exchange, request, error)
            else:
                self._welcome(connection, exchange, request, frame)
            return
        self._spawn_for(exchange, self._login(connection, exchange, request), "login")

    async def _login(
        self,
        connection: Connection,
        exchange: ServerExchange,
        request: HandshakeRequest,
    ) -> None:
        try:
            async with asyncio.timeout(self.config.handshake_timeout_secs):
                frame = await self._check_login(connection, request)
        except (LightningError, TimeoutError) as error:
            self._refuse(connection, exchange, request, error)
        else:
            self._welcome(connection, exchange, request, frame)

    def _refuse(
        self,
        connection: Connection,
        exchange: ServerExchange,
        request: HandshakeRequest,
        error: Exception,
    ) -> None:
        # These two are ours to mend; the others are the validator's.
        ours = isinstance(error, SigningError | ServerFull)
        self._log.log(
            logging.WARNING if ours else logging.INFO,
            "login of %.64r from %s refused: %s",
            request.validator_hotkey,
            connection.address,
            str(error) or "timed out",
        )
        exchange.respond(rejection(time.time(), self.miner_hotkey).to_frame())

    def _welcome(
        self,
        connection: Connection,
        exchange: ServerExchange,
        request: HandshakeRequest,
        frame: bytes,
    ) -> None:
        exchange.respond(frame)
        if self._observer is not None:
            told = self._observe(request.validator_hotkey, connection.address.ip)
            self._spawn(told, "observe")

    async def _check_login(
        self, connection: Connection, request: HandshakeRequest
    ) -> bytes:
        """Check a login in the peer's order, and return the frame that accepts it."""
        hotkey = request.validator_hotkey
        verify_request(
            request,
            fingerprint=self._fingerprint,
            now=time.time(),
            max_age=self.config.max_signature_age_secs,
        )
        self._nonces.check_and_store(request.nonce, request.timestamp, time.time())
        if self.config.require_validator_permit:
            await self._permits_known.wait()
            self._require_permit(hotkey)
        if self._signer is None:
            raise SigningError("no miner signer configured")
        login = accept(
            request,
            miner_hotkey=self.miner_hotkey,
            fingerprint=self._fingerprint,
            now=time.time(),
        )
        frame = login.response(await sign(self._signer, login.message)).to_frame()
        # Signing may have taken a while.
        if not connection.is_alive:
            raise HandshakeError("the connection was closed meanwhile", hotkey=hotkey)
        self._require_permit(hotkey)
        replaced = self._table.register(
            hotkey, connection, login.connection_id, time.time()
        )
        self._peers.info(
            "validator %s has logged in from %s", hotkey, connection.address
        )
        if replaced is not None:
            self._peers.info(
                "validator %s was also connected from %s: that one is closed",
                hotkey,
                replaced.address,
            )
            replaced.close("replaced")
        self._forget_stranger(connection)
        connection.max_payload = self.config.max_frame_payload_bytes
        return frame

    def _require_permit(self, hotkey: str) -> None:
        if self.config.require_validator_permit and hotkey not in self._permits:
            raise PermitMissing("no validator permit", hotkey=hotkey)

    async def _observe(self, hotkey: str, ip: str) -> None:
        observer = self._observer
        tell = _method(observer, "observe_successful_handshake")
        try:
            result = tell(hotkey, ip)
            if inspect.isawaitable(result):
                await result
        except (Exception, SystemExit):
            self._log.exception("the handshake observer failed")

    def _on_packet(
        self,
        connection: Connection,
        exchange: ServerExchange,
        packet: SynapsePacket | SerializationError,
    ) -> None:
        if isinstance(packet, SerializationError):
            self._log.debug("request from %s refused: %s", connection.address, packet)
            fail(exchange, ERROR_INVALID_REQUEST)
            return
        handler = self._handlers.find(packet.synapse_type)
        session = self._table.session(connection)
        if session is None:
            fail(exchange, ERROR_AUTHENTICATION, handler)
            return
        session.last_activity = time.time()
        if handler is None:
            fail(exchange, ERROR_UNKNOWN_SYNAPSE)
            return
        context = None
        if handler.takes_context:
            hotkey = session.hotkey
            context = HandlerContext(
                hotkey,
                connection.address,
                packet.synapse_type,
                time.monotonic() + self.config.handler_timeout_secs,
                session.logins[hotkey].connection_id,
            )
        answers, kind, data = self._answers, handler.kind, packet.data
        if kind is HandlerKind.INLINE:
            answers.inline(exchange, handler, data, context)
        elif self._threads is None:
            if kind is HandlerKind.ASYNC:
                answers.in_task(exchange, handler, data, context)
            elif kind is HandlerKind.THREAD:
                answers.in_thread(exchange, handler, data, context)
            else:
                self._begin(connection, exchange, handler, data, context)
        elif kind is HandlerKind.THREAD:
            self._threads.about_to_run(handler)
            answers.here(exchange, handler, data, context)
        elif kind is HandlerKind.ASYNC:
            self._post(answers.in_task, exchange, handler, data, context)
        else:
            self._post(self._begin, connection, exchange, handler, data, context)

    def _begin(
        self,
        connection: Connection,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer chunk by chunk."""
        if exchange.cancelled:
            return
        answer = self._answers.stream(exchange, handler, data, context, connection.sent)
        self._spawn_for(exchange, answer, handler.name, handler)

    # Background.

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task that ends with the server."""
        self._tasks.add(self._create_task(coroutine, name))

    def _create_task(
        self, coroutine: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(
            coroutine, name=f"lightning-server {name}"
        )
        task.add_done_callback(self._on_task_done)
        return task

    def _spawn_for(
        self,
        exchange: ServerExchange,
        coroutine: Coroutine[Any, Any, None],
        name: str,
        handler: Handler | None = None,
    ) -> None:
        """Run a task that answers a request, and ends with it at the latest."""

        def on_done(task: asyncio.Task[None]) -> None:
            self._requests.discard(task)
            # A client must not wait for ever for what went wrong in an unforeseen way.
            if task.cancelled() or task.exception() is not None:
                fail(exchange, ERROR_PROCESSING, handler)

        task = self._create_task(coroutine, name)
        self._tasks.add(task)
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

    def _take_permits(self, permits: Any) -> None:
        self._permits.replace(permits)
        for hotkey in [h for h in self._table.hotkeys if h not in self._permits]:
            self._peers.info("validator %s has lost its permit", hotkey)
            connection = self._table.remove_hotkey(hotkey)
            if connection is not None:
                connection.close("validator_permit_lost")

    def _take_sources(self, sources: Any) -> None:
        if not isinstance(sources, SourceAllowlist):
            raise TypeError(
                "resolve_allowed_sources must return a SourceAllowlist, not "
                f"{type(sources).__name__}"
            )
        self._sources = sources
        if self._endpoint is not None:
            self._endpoint.set_sources(sources.addresses)


def _run_through(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("it waits for something")


def _method(thing: Any, name: str) -> Any:
    """Return the method of an object, or the callable that stands in for it."""
    return getattr(thing, name, thing)
