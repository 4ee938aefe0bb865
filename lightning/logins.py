"""Logins of a server: checked, accepted or refused, and what ends them again."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lightning._core.wire.messages import HandshakeRequest
from lightning.admission import (
    LoginRateLimiter,
    NonceCache,
    PermitSet,
    ValidatorTable,
)
from lightning.errors import (
    HandshakeError,
    LightningError,
    PermitMissing,
    RateLimited,
    ServerFull,
    SigningError,
)
from lightning.handshake import accept, rejection, verify_request
from lightning.logs import BURST_OF_PEERS, INTERVAL_OF_PEERS, Throttled
from lightning.signer import Signer, Sr25519Signer, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from lightning._core.io.links import ServerExchange
    from lightning._core.io.transport import Connection
    from lightning.config import LightningServerConfig

__all__ = ["Logins", "Spawn"]

T = TypeVar("T")

log = logging.getLogger("lightning.server")


class Spawn(Protocol):
    """Runs a coroutine as a task that ends with the server."""

    def __call__(
        self,
        coroutine: Coroutine[Any, Any, None],
        name: str,
        exchange: ServerExchange | None = None,
    ) -> None:
        """Run it; one that answers a request ends with that at the latest."""


class Logins:
    """Checks logins in the peer's order, and knows who is logged in where.

    Args:
        miner_hotkey: SS58 address of the miner.
        config: The server's settings.
        throttled: Log for what is refused.
        spawn: Runs what cannot be answered at once.
        on_accepted: Called with the connection of each login that succeeded.

    Attributes:
        signer: Who signs the answers; None refuses all.
        observer: Who is told of logins; may be None.
        fingerprint: Of the certificate that TLS shows.
        limiter: Counts logins by source.
        nonces: Those that were used.
        permits: Who may log in, where that is asked for.
        permits_known: Set once a resolver has answered.
        table: Who is logged in.
        peers: For what happens as validators come and go.
        accepted: Logins that succeeded.
        refused: Those that did not, by the exception's class.
    """

    def __init__(
        self,
        miner_hotkey: str,
        config: LightningServerConfig,
        throttled: Throttled,
        spawn: Spawn,
        on_accepted: Callable[[Connection], object],
    ) -> None:
        self._miner_hotkey = miner_hotkey
        self._config = config
        self._log = throttled
        self._spawn = spawn
        self._on_accepted = on_accepted
        self.signer: Signer | None = None
        self.observer: Any = None
        self.fingerprint = ""
        self.limiter = LoginRateLimiter(
            config.max_handshake_attempts_per_minute,
            max_sources=config.max_tracked_rate_ips,
        )
        self.nonces = NonceCache(
            config.max_nonce_entries, config.max_signature_age_secs
        )
        self.permits = PermitSet()
        self.permits_known = asyncio.Event()
        self.table: ValidatorTable[Connection] = ValidatorTable(config.max_connections)
        self.peers = Throttled(log, BURST_OF_PEERS, INTERVAL_OF_PEERS)
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    def begin(self, fingerprint: str) -> None:
        """Begin a life of the server: nobody has a permit yet.

        Args:
            fingerprint: Of its certificate.
        """
        self.fingerprint = fingerprint
        self.permits = PermitSet()
        self.permits_known = asyncio.Event()

    def on_login(
        self, connection: Connection, exchange: ServerExchange, payload: bytes
    ) -> None:
        """Answer a login, now or in a task."""
        ip = connection.address.ip
        try:
            if not self.limiter.allow(ip, time.monotonic()):
                raise RateLimited("too many logins from this address", address=ip)
            request = HandshakeRequest.from_payload(payload)
        except LightningError as error:
            self.refused[type(error).__name__] += 1
            level = logging.DEBUG if isinstance(error, RateLimited) else logging.INFO
            self._log.log(level, "login from %s refused: %s", connection.address, error)
            exchange.respond(rejection(time.time()).to_frame())
            return
        if isinstance(self.signer, Sr25519Signer) and (
            self.permits_known.is_set() or not self._config.require_validator_permit
        ):
            # Answered at once, with what completes the handshake.
            try:
                frame = _run_through(self.check(connection, request))
            except LightningError as error:
                self._refuse(connection, exchange, request, error)
            else:
                self._welcome(connection, exchange, request, frame)
            return
        self._spawn(self._login(connection, exchange, request), "login", exchange)

    async def _login(
        self,
        connection: Connection,
        exchange: ServerExchange,
        request: HandshakeRequest,
    ) -> None:
        try:
            async with asyncio.timeout(self._config.handshake_timeout_secs):
                frame = await self.check(connection, request)
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
        self.refused[type(error).__name__] += 1
        # These two are ours to mend; the others are the validator's.
        ours = isinstance(error, SigningError | ServerFull)
        self._log.log(
            logging.WARNING if ours else logging.INFO,
            "login of %.64r from %s refused: %s",
            request.validator_hotkey,
            connection.address,
            str(error) or "timed out",
        )
        exchange.respond(rejection(time.time(), self._miner_hotkey).to_frame())

    def _welcome(
        self,
        connection: Connection,
        exchange: ServerExchange,
        request: HandshakeRequest,
        frame: bytes,
    ) -> None:
        self.accepted += 1
        exchange.respond(frame)
        if self.observer is not None:
            told = self._observe(request.validator_hotkey, connection.address.ip)
            self._spawn(told, "observe")

    async def check(self, connection: Connection, request: HandshakeRequest) -> bytes:
        """Check a login in the peer's order, and return the frame that accepts it.

        Raises:
            HandshakeError: It is refused.
            SigningError: There is no signer, or it failed.
        """
        hotkey = request.validator_hotkey
        verify_request(
            request,
            fingerprint=self.fingerprint,
            now=time.time(),
            max_age=self._config.max_signature_age_secs,
        )
        self.nonces.check_and_store(request.nonce, request.timestamp, time.time())
        if self._config.require_validator_permit:
            await self.permits_known.wait()
            self._require_permit(hotkey)
        if self.signer is None:
            raise SigningError("no miner signer configured")
        login = accept(
            request,
            miner_hotkey=self._miner_hotkey,
            fingerprint=self.fingerprint,
            now=time.time(),
        )
        frame = login.response(await sign(self.signer, login.message)).to_frame()
        # Signing may have taken a while.
        if not connection.is_alive:
            raise HandshakeError("the connection was closed meanwhile", hotkey=hotkey)
        self._require_permit(hotkey)
        replaced = self.table.register(
            hotkey, connection, login.connection_id, time.time()
        )
        self.peers.info(
            "validator %s has logged in from %s", hotkey, connection.address
        )
        if replaced is not None:
            self.peers.info(
                "validator %s was also connected from %s: that one is closed",
                hotkey,
                replaced.address,
            )
            replaced.close("replaced")
        self._on_accepted(connection)
        return frame

    def _require_permit(self, hotkey: str) -> None:
        if self._config.require_validator_permit and hotkey not in self.permits:
            raise PermitMissing("no validator permit", hotkey=hotkey)

    async def _observe(self, hotkey: str, ip: str) -> None:
        tell = getattr(self.observer, "observe_successful_handshake", self.observer)
        try:
            result = tell(hotkey, ip)
            if inspect.isawaitable(result):
                await result
        except (Exception, SystemExit):
            self._log.exception("the handshake observer failed")

    def take_permits(self, permits: Any) -> None:
        """Let those in who hold a permit now, and close the others' connections."""
        self.permits.replace(permits)
        lost = [hotkey for hotkey in self.table.hotkeys if hotkey not in self.permits]
        if not self.permits:
            self._log.warning(
                "the resolver of permits names nobody: no validator may log in, and "
                "%d are disconnected",
                len(lost),
                burst=1,
            )
        for hotkey in lost:
            self.peers.info("validator %s has lost its permit", hotkey)
            connection = self.table.remove_hotkey(hotkey)
            if connection is not None:
                connection.close("validator_permit_lost")

    def forget(self, connection: Connection) -> None:
        """Log out whoever was logged in on a connection that is gone."""
        ended = connection.closed
        for hotkey in self.table.remove_connection(connection):
            self.peers.info(
                "validator %s at %s is gone: %s",
                hotkey,
                connection.address,
                ended().detail if ended is not None else "",
            )

    def expire(self) -> None:
        """Forget what cannot matter any more."""
        self.nonces.expire(time.time())
        self.limiter.expire(time.monotonic())


def _run_through(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("it waits for something")
