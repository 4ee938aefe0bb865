"""The connections of a client: which miner is logged in where, and how one gets there."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import secrets
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning import dialling
from lightning._core.io.base import FORKED
from lightning._core.io.transport import (
    ClientEndpoint,
    Connection,
    Numbers,
    TransportConfig,
)
from lightning._core.wire.exchange import read_login_answer
from lightning.config import LightningClientConfig
from lightning.errors import (
    ConnectionClosed,
    HandshakeError,
    LightningConnectionError,
    LightningError,
    SigningError,
)
from lightning.handshake import ClientLogin, certificate_fingerprint
from lightning.logs import BURST_OF_PEERS, INTERVAL_OF_PEERS, Throttled
from lightning.redialling import Redialling
from lightning.registry import Registry, Target
from lightning.reports import ConnectionStats, ConnectReport, MinerReport, Reached
from lightning.signer import Signer, Sr25519Signer, as_signer, sign
from lightning.types import PeerAddr, QuicAxonInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from lightning._core.io.links import Call
    from lightning.chain.monitor import MetagraphMonitor

# Miners that the log names one by one, of those that could not be reached.
NAMED = 5

log = Throttled(
    logging.getLogger("lightning.client"), BURST_OF_PEERS, INTERVAL_OF_PEERS
)

_DEFAULTS = LightningClientConfig()


class Session:
    """One connection, and who is logged in on it."""

    __slots__ = ("connection", "hotkeys", "since")

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection = connection
        self.since = now
        self.hotkeys: set[str] = set()

    def serves(self, hotkey: str) -> bool:
        """Whether a request to this miner can be sent on it."""
        return self.connection.is_alive and hotkey in self.hotkeys


class Sessions:
    """The half of `AsyncLightning` that keeps its connections; see there.

    Args:
        wallet_hotkey: SS58 address of the validator's hotkey.
        signer: Anything `as_signer` takes, or None.
        config: Settings; None for the defaults.
    """

    def __init__(
        self,
        wallet_hotkey: str,
        signer: object | None,
        config: LightningClientConfig | None,
    ) -> None:
        # The blocking face sets this: its callers move the datagrams.
        self._threads = False
        if not isinstance(wallet_hotkey, str):
            raise TypeError(
                f"wallet_hotkey must be a str, not {type(wallet_hotkey).__name__}"
            )
        self.wallet_hotkey = wallet_hotkey
        self.config = config or _DEFAULTS
        self._signer: Signer | None = None if signer is None else as_signer(signer)
        self._transport = TransportConfig(
            idle_timeout=self.config.idle_timeout,
            keep_alive_interval=self.config.keep_alive_interval,
            max_frame_payload=self.config.max_frame_payload_bytes,
            unresponsive_timeout=self.config.unresponsive_timeout,
            qlog_dir=self.config.qlog_dir,
            keylog_file=self.config.keylog_file,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # By address family; None until the endpoint is created.
        self._endpoints: dict[int, ClientEndpoint] | None = None
        self._sessions: dict[PeerAddr, Session] = {}
        self._registry = Registry()
        # Attempts under way, shared by all who need them: dials by their address,
        # logins by address and hotkey.
        self._attempts: dict[Target, asyncio.Task[Session]] = {}
        self._dialling = 0
        # Logins that are under way, or wait for a dial.
        self._logins_at: Counter[PeerAddr] = Counter()
        self._redialling = Redialling(self)
        self._monitor: MetagraphMonitor | None = None

    def connections(self) -> tuple[ConnectionStats, ...]:
        """Return how each connection is doing; any thread may ask.

        Returns:
            One for each address that is connected, has a registered miner, is being
            dialled, or may not be dialled yet after a failure.
        """
        if self._is_inherited():
            return ()  # They are the parent's.
        # Copies, which the event loop does not change meanwhile.
        sessions = self._sessions.copy()
        dialled = _by_address(list(self._attempts))
        failed = _by_address(self._registry.backed_off(time.monotonic()))
        addresses = [*sessions, *self._registry.addresses, *dialled, *failed]
        stats = []
        for address in dict.fromkeys(addresses):
            session = sessions.get(address)
            hotkeys = set(self._registry.hotkeys_at(address))
            hotkeys.update(dialled.get(address, ()), failed.get(address, ()))
            numbers = Numbers() if session is None else session.connection.numbers()
            if session is not None and session.connection.is_alive:
                state, hotkeys = "active", set(session.hotkeys)
            elif address in dialled:
                state = "connecting"
            else:
                state = "missing" if session is None else "closed"
            stats.append(
                ConnectionStats(
                    address=address,
                    hotkeys=tuple(sorted(hotkeys)),
                    state=state,
                    age=numbers.age,
                    idle=numbers.idle,
                    rtt=numbers.rtt,
                    min_rtt=numbers.min_rtt,
                    congestion_window=numbers.congestion_window,
                    bytes_sent=numbers.bytes_sent,
                    bytes_received=numbers.bytes_received,
                    packets_sent=numbers.packets_sent,
                    packets_lost=numbers.packets_lost,
                    requests=numbers.requests,
                    in_flight=numbers.in_flight,
                    failures=numbers.failures,
                    last_error=self._registry.last_error(address),
                )
            )
        return tuple(stats)

    # What the faces use.

    def _connection_to(self, axon: QuicAxonInfo) -> Connection | None:
        """Return the live connection on which a miner is logged in, if there is one."""
        # A plain tuple finds it, too, and costs less.
        session: Session | None
        session = self._sessions.get((axon.ip, axon.port))  # type: ignore[call-overload]
        if (
            session is None
            or session.connection.closed is not None
            or axon.hotkey not in session.hotkeys
        ):
            return None
        return session.connection

    def _require_endpoint(self) -> dict[int, ClientEndpoint]:
        self._require_loop()
        if self._endpoints is None:
            raise LightningConnectionError(
                "QUIC endpoint not initialized: call initialize_connections first"
            )
        return self._endpoints

    def _require_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._is_inherited():
            raise RuntimeError(FORKED)
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError(
                    "this client is in use on another event loop: close() it there "
                    "first"
                )
            # What lived on that loop is dead. Queries dial again.
            self._sessions.clear()
            self._attempts.clear()
            self._redialling.clear()
            self._monitor = None
            self._endpoints = {}
        self._loop = loop
        self._pid = os.getpid()

    def _is_inherited(self) -> bool:
        """Whether it was in use before a fork, by the parent of this process."""
        return (
            self._loop is not None
            and not self._loop.is_closed()
            and os.getpid() != self._pid
        )

    def _require_signer(self) -> Signer:
        if self._signer is None:
            raise SigningError("No signer configured: call set_signer first")
        return self._signer

    async def _route(self, axon: QuicAxonInfo) -> Connection:
        """Return a live connection with the miner logged in, making it if need be."""
        address, hotkey = axon.address, axon.hotkey
        session = self._sessions.get(address)
        if session is None or not session.serves(hotkey):
            self._require_signer()
            session = await self._reach_once(address, hotkey)
        return session.connection

    async def _reach_once(self, address: PeerAddr, hotkey: str) -> Session:
        """Log in at an address, together with all who want that now."""
        return await self._share(
            (address, hotkey), lambda: self._reach(address, hotkey)
        )

    def _begin(
        self, target: Target, attempt: Callable[[], Coroutine[Any, Any, Session]]
    ) -> asyncio.Task[Session]:
        """Begin an attempt, unless one is under way for the same target."""
        task = self._attempts.get(target)
        if task is None:
            task = asyncio.create_task(attempt(), name=f"lightning-reach {target}")
            self._attempts[target] = task
            task.add_done_callback(lambda done: self._forget_attempt(target, done))
        return task

    async def _share(
        self,
        target: Target,
        attempt: Callable[[], Coroutine[Any, Any, Session]],
        *,
        on_demand: bool = True,
    ) -> Session:
        """Wait for an attempt that all share who need its target.

        Args:
            target: What it is for: an address, or an address and a hotkey.
            attempt: Makes it.
            on_demand: Whether it must keep to the back-off.
        """
        if on_demand and target not in self._attempts:
            now = time.monotonic()
            self._registry.forget_idle(now)
            self._registry.backoff(target).check(_name(target), now, self.config)
        task = self._begin(target, attempt)
        # Whoever gives up waiting leaves the attempt to the others.
        over = asyncio.get_running_loop().create_future()
        task.add_done_callback(lambda _: None if over.done() else over.set_result(None))
        await over
        if task.cancelled():
            raise LightningConnectionError(
                f"the attempt to reach {_name(target)} was cut off by a close"
            )
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, LightningError):
            # One for each who waits: an exception gathers where it was raised.
            raise copy.copy(error) from error.__cause__
        raise error

    def _forget_attempt(self, target: Target, task: asyncio.Task[Session]) -> None:
        self._attempts.pop(target, None)
        if not task.cancelled():
            task.exception()  # Perhaps nobody is left who wants to know.

    async def _reach(
        self, address: PeerAddr, hotkey: str, *, on_demand: bool = True
    ) -> Session:
        """Log in at an address, on its live connection or on a new one."""
        deadline = asyncio.get_running_loop().time() + self.config.connect_timeout
        self._logins_at[address] += 1
        try:
            session = self._sessions.get(address)
            if session is None or not session.connection.is_alive:
                session = await self._share(
                    address,
                    lambda: self._connect(address, hotkey, on_demand=on_demand),
                    on_demand=on_demand,
                )
            await self._log_in(session, address, hotkey, deadline, on_demand=on_demand)
            return session
        finally:
            self._logins_at[address] -= 1
            if not self._logins_at[address]:
                del self._logins_at[address]
                last = self._sessions.get(address)
                if last is not None and not last.hotkeys:
                    self._drop(address, "no_authenticated_hotkeys")

    async def _log_in(
        self,
        session: Session,
        address: PeerAddr,
        hotkey: str,
        deadline: float,
        *,
        on_demand: bool,
    ) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._login(session.connection, address, hotkey)
            self._enrol(session, address, hotkey)
        except (LightningError, TimeoutError) as error:
            if on_demand:
                self._failed((address, hotkey))
            if self._registry.address_of(hotkey) == address:
                self._registry.deregister(hotkey)
            if isinstance(error, LightningError):
                raise
            raise HandshakeError(
                f"the login of {hotkey} at {address} timed out",
                hotkey=hotkey,
                address=str(address),
            ) from error

    async def _connect(
        self, address: PeerAddr, hotkey: str, *, on_demand: bool
    ) -> Session:
        """Dial an address for a hotkey, and log in again who was registered there."""
        self._require_room(address)
        self._dialling += 1
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                connection = await self._dial(address, hotkey)
        except (LightningError, TimeoutError) as error:
            if on_demand:
                self._failed(address)
            if isinstance(error, LightningError):
                raise
            raise LightningConnectionError(
                f"Reconnection to {address} timed out after "
                f"{self.config.connect_timeout:g}s",
                address=str(address),
            ) from error
        finally:
            self._dialling -= 1
        session = self._adopt(address, connection)
        for hotkey in self._registry.hotkeys_at(address):
            _ = self._begin(
                (address, hotkey), partial(self._log_in_again, address, hotkey)
            )
        return session

    async def _log_in_again(self, address: PeerAddr, hotkey: str) -> Session:
        try:
            return await self._reach(address, hotkey, on_demand=False)
        except LightningError as error:
            log.warning("no login of %s at %s: %s", hotkey, address, error)
            raise

    def _failed(self, target: Target) -> None:
        self._registry.backoff(target).failed(time.monotonic(), self.config)

    def _require_room(self, address: PeerAddr) -> None:
        """Refuse a new connection if there are too many, dials included."""
        self._drop(address, "")
        if len(self._sessions) + self._dialling >= self.config.max_connections:
            for other in self._dead():
                self._drop(other, "")
        if len(self._sessions) + self._dialling >= self.config.max_connections:
            raise self._no_room(address)

    def _no_room(self, address: PeerAddr) -> LightningConnectionError:
        return LightningConnectionError(
            f"no room for {address}: {self.config.max_connections} addresses are "
            "connected (max_connections)",
            address=str(address),
            no_room=True,
        )

    def _dead(self) -> list[PeerAddr]:
        return [a for a, s in self._sessions.items() if not s.connection.is_alive]

    async def _establish(self, axons: dict[str, PeerAddr]) -> ConnectReport:
        """Log in with hotkeys at their addresses, all at once; failures are logged."""
        skipped = self._without_room(axons.values())
        reports: dict[str, MinerReport] = {}

        async def reach(hotkey: str, address: PeerAddr) -> None:
            begun = time.monotonic()
            error: LightningError | None = None
            try:
                if address in skipped:
                    raise self._no_room(address)
                await self._share(
                    (address, hotkey),
                    lambda: self._reach(address, hotkey, on_demand=False),
                    on_demand=False,
                )
            except LightningError as failure:
                error = failure
            seconds = time.monotonic() - begun
            outcome = Reached.CONNECTED
            if error is not None:
                outcome = dialling.outcome_of(error)
                self._locate(error, seconds, address, hotkey)
            reports[hotkey] = MinerReport(hotkey, address, outcome, error, seconds)

        each = []
        for hotkey, address in axons.items():
            session = self._sessions.get(address)
            if session is not None and session.serves(hotkey):
                reports[hotkey] = MinerReport(
                    hotkey, address, Reached.CONNECTED, None, 0.0
                )
            else:
                each.append(reach(hotkey, address))
        # One alone needs no task of its own.
        await (each[0] if len(each) == 1 else asyncio.gather(*each))
        return ConnectReport(tuple(reports[hotkey] for hotkey in axons))

    def _without_room(self, addresses: Iterable[PeerAddr]) -> set[PeerAddr]:
        """Return the addresses that no connection is left for: the last ones."""
        used = {a for a, s in self._sessions.items() if s.connection.is_alive}
        used.update(a for a in self._attempts if isinstance(a, PeerAddr))
        free = self.config.max_connections - len(used)
        new = [address for address in dict.fromkeys(addresses) if address not in used]
        return set(new[max(free, 0) :])

    def _locate(
        self, error: LightningError, seconds: float, address: PeerAddr, hotkey: str
    ) -> LightningError:
        """Say in an error where it happened, and remember it; returns it."""
        self._registry.note(address, error.detail)
        return error.locate(address, hotkey, seconds)

    async def _dial(self, address: PeerAddr, hotkey: str) -> Connection:
        try:
            places = await dialling.resolve(address)
        except (OSError, UnicodeError) as error:
            raise LightningConnectionError(
                f"invalid remote address {address}: {error}", address=str(address)
            ) from error
        # Of several connections only the one that is kept may log in: a second login
        # ends the first one's.
        begin = partial(self._begin_login, hotkey) if len(places) == 1 else None
        try:
            return await dialling.first_success(
                [partial(self._dial_at, *place, begin) for place in places],
                dialling.HEAD_START,
            )
        except ConnectionClosed as error:
            raise LightningConnectionError(
                f"QUIC connection to {address} failed: {error.detail}",
                address=str(address),
            ) from error

    async def _dial_at(
        self,
        family: int,
        where: tuple[Any, ...],
        begin: Callable[[Connection], object] | None,
    ) -> Connection:
        endpoints = self._require_endpoint()
        endpoint = endpoints.get(family)
        if endpoint is None:
            endpoint = ClientEndpoint(
                self._transport, self.wallet_hotkey, threads=self._threads
            )
            await endpoint.open(family)
            if endpoints.setdefault(family, endpoint) is not endpoint:
                # Another dial was faster.
                endpoint.close("")
                endpoint = endpoints[family]
        return await endpoint.connect(where, begin)

    def _begin_login(self, hotkey: str, connection: Connection) -> None:
        """Send the login with what completes the handshake, if signing is quick."""
        if isinstance(self._signer, Sr25519Signer):
            # What cannot be signed is told by `_login`.
            with contextlib.suppress(LightningError):
                login = self._login_of(connection, hotkey)
                signature = self._signer.sign(login.message)
                frame = login.request(signature).to_frame()
                connection.begun = (login, *_send(connection, frame))

    def _login_of(self, connection: Connection, hotkey: str) -> ClientLogin:
        certificate = connection.certificate
        return ClientLogin(
            validator_hotkey=self.wallet_hotkey,
            miner_hotkey=hotkey,
            fingerprint=certificate_fingerprint(certificate) if certificate else "",
            timestamp=int(time.time()),
            nonce=secrets.token_hex(16),
        )

    async def _login(
        self, connection: Connection, address: PeerAddr, hotkey: str
    ) -> None:
        begun, connection.begun = connection.begun, None
        try:
            if begun is not None and begun[0].miner_hotkey == hotkey:
                login, call, answer = begun
            else:
                login = self._login_of(connection, hotkey)
                signature = await sign(self._require_signer(), login.message)
                call, answer = _send(connection, login.request(signature).to_frame())
            try:
                await answer
            except BaseException:
                call.cancel()
                raise
            login.check(read_login_answer(*call.answer()))
        except LightningError as error:
            error.locate(address, hotkey)
            raise

    def _adopt(self, address: PeerAddr, connection: Connection) -> Session:
        """Keep a new connection, in place of the dead one that may be there."""
        session = self._sessions[address] = Session(connection, time.monotonic())
        self._registry.succeeded(address)
        connection.on_closed = partial(self._lost, address, session)
        return session

    def _lost(self, address: PeerAddr, session: Session, _: object) -> None:
        """Take note that a connection is gone, and not by us."""
        ended = session.connection.closed
        error = ConnectionClosed() if ended is None else ended()
        self._registry.note(address, error.detail)
        # Miners come and go; what is not a clean close is worth a look.
        level = logging.WARNING if error.code or error.timed_out else logging.INFO
        log.log(level, "connection to %s lost: %s", address, error.detail)
        now = time.monotonic()
        if error.reason == "replaced":
            log.warning("another process has logged in at %s with our hotkey", address)
            self._registry.replaced(address, now, now - session.since, self.config)
        if self.config.background_reconnect:
            self._redialling.begin(address)

    def _enrol(self, session: Session, address: PeerAddr, hotkey: str) -> None:
        if self._sessions.get(address) is not session:
            # Dropped in this very moment.
            raise LightningConnectionError(
                f"the connection to {address} was closed", address=str(address)
            )
        session.hotkeys.add(hotkey)
        self._registry.succeeded((address, hotkey))
        vacated = self._registry.register(hotkey, address)
        if vacated is not None:
            self._drop(vacated, "miner_addr_changed")
        log.info("logged in with miner %s at %s", hotkey, address)

    def _drop(self, address: PeerAddr, reason: str) -> None:
        session = self._sessions.pop(address, None)
        if session is not None:
            session.connection.on_closed = None
            session.connection.close(reason)


def _send(connection: Connection, frame: bytes) -> tuple[Call, asyncio.Future[Call]]:
    """Send a frame; return the call and what is done when it has ended."""
    answer: asyncio.Future[Call] = connection.loop.create_future()
    return connection.call(frame, answer), answer


def _by_address(targets: Iterable[Target]) -> dict[PeerAddr, set[str]]:
    """Return the hotkeys of logins by their address; none for a dial alone."""
    found: dict[PeerAddr, set[str]] = {}
    for target in targets:
        if isinstance(target, PeerAddr):
            found.setdefault(target, set())
        else:
            found.setdefault(target[0], set()).add(target[1])
    return found


def _name(target: Target) -> str:
    if isinstance(target, PeerAddr):
        return str(target)
    address, hotkey = target
    return f"{hotkey} at {address}"


def log_report(report: ConnectReport) -> None:
    """Tell who could not be reached: each, or, of many, the first ones."""
    failed = [
        f"{miner.hotkey} at {miner.address}: {miner.error.kind} error: "
        f"{miner.error.detail}"
        for miner in report
        if miner.error is not None
    ]
    if len(failed) <= NAMED:
        for text in failed:
            log.warning("cannot reach %s", text)
    else:
        log.warning(
            "cannot reach %d of %d miners: %s; and %d more",
            len(failed),
            len(report),
            "; ".join(failed[:NAMED]),
            len(failed) - NAMED,
        )
    log.info("%s", report)
