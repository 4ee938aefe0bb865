"""The client on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import secrets
import socket
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lightning._core.io.base import FORKED
from lightning._core.io.transport import ClientEndpoint, Connection, TransportConfig
from lightning._core.wire.exchange import read_answer, read_login_answer
from lightning._core.wire.messages import encode_synapse_packet
from lightning.config import LightningClientConfig
from lightning.errors import (
    ConnectionClosed,
    HandshakeError,
    LightningConnectionError,
    LightningError,
    SigningError,
)
from lightning.fanout import FanOut, orders
from lightning.handshake import ClientLogin, certificate_fingerprint
from lightning.logs import BURST_OF_PEERS, INTERVAL_OF_PEERS, Throttled
from lightning.registry import Registry
from lightning.signer import (
    BtWalletSigner,
    CallbackSigner,
    Signer,
    Sr25519Signer,
    as_signer,
    sign,
)
from lightning.streaming import StreamingResponse
from lightning.types import (
    ClientConnectionStats,
    PeerAddr,
    QuicAxonInfo,
    QuicRequest,
    QuicResponse,
    check_timeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from types import TracebackType

    from lightning._core.io.links import Call

T = TypeVar("T")
# What an attempt is for: a dial, or a login.
Target = PeerAddr | tuple[PeerAddr, str]

# Seconds that the first address of a host name has before the next one is tried, too
# (RFC 8305 section 8).
HEAD_START = 0.25

log = Throttled(
    logging.getLogger("lightning.client"), BURST_OF_PEERS, INTERVAL_OF_PEERS
)

_DEFAULTS = LightningClientConfig()


class AsyncLightning:
    """A validator's client on asyncio.

    One connection to each address carries all requests to the miners there; the login
    is paid once a connection. An object belongs to the event loop it is first used in.

    Args:
        wallet_hotkey: SS58 address of the validator's hotkey.
        signer: Anything `as_signer` takes: a signer, a keypair, a wallet, a callable
            or a seed; None to set one later.
        config: Settings; None for the defaults.

    Example::

        async with AsyncLightning(hotkey, signer=keypair) as client:
            await client.initialize_connections(miners)
            answer = await client.query_axon(miners[0], {"synapse_type": "echo"})
    """

    def __init__(
        self,
        wallet_hotkey: str,
        *,
        signer: object | None = None,
        config: LightningClientConfig | None = None,
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
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # By address family; None until the endpoint is created.
        self._endpoints: dict[int, ClientEndpoint] | None = None
        self._sessions: dict[PeerAddr, _Session] = {}
        self._registry = Registry()
        # Attempts under way, shared by all who need them: dials by their address,
        # logins by address and hotkey.
        self._attempts: dict[Target, asyncio.Task[_Session]] = {}
        self._dialling = 0
        # Logins that are under way, or wait for a dial.
        self._logins_at: Counter[PeerAddr] = Counter()

    @classmethod
    def with_config(cls, wallet_hotkey: str, config: LightningClientConfig) -> Self:
        """Make a client with settings, by the name it has in the peer's Rust crate."""
        return cls(wallet_hotkey, config=config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.wallet_hotkey}>"

    async def __aenter__(self) -> Self:
        await self.create_endpoint()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # Who signs.

    def set_signer(self, signer: object) -> None:
        """Set who signs logins.

        Args:
            signer: Anything `as_signer` takes.
        """
        self._signer = as_signer(signer)

    def set_validator_keypair(self, keypair_seed: bytes | list[int]) -> None:
        """Sign with the sr25519 key of a seed.

        Args:
            keypair_seed: 32 bytes.

        Raises:
            ConfigError: It is not 32 bytes long.
        """
        self._signer = Sr25519Signer.from_seed(bytes(keypair_seed))

    def set_python_signer(self, signer_callback: Callable[[bytes], Any]) -> None:
        """Sign with a callable, which gets the message and returns 64 bytes."""
        self._signer = CallbackSigner(signer_callback)

    def set_wallet(
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

    # Connections.

    async def create_endpoint(self) -> None:
        """Get ready to dial; done by `initialize_connections` and ``async with``."""
        self._require_loop()
        if self._endpoints is None:
            self._endpoints = {}

    async def initialize_connections(self, miners: Iterable[Any]) -> None:
        """Connect to miners and log in, at all addresses at once.

        Addresses that are connected already are kept, and only hotkeys that are new
        there log in. Miners that cannot be reached are logged as warnings; a later
        query tries them again.

        Args:
            miners: Anything `QuicAxonInfo.coerce` takes.

        Raises:
            SigningError: No signer is set.
            MissingField, TypeError, OverflowError: A miner is malformed.
        """
        wanted: dict[PeerAddr, list[str]] = {}
        for axon in [QuicAxonInfo.coerce(miner) for miner in miners]:
            hotkeys = wanted.setdefault(axon.address, [])
            if axon.hotkey not in hotkeys:
                hotkeys.append(axon.hotkey)
        self._require_signer()
        await self.create_endpoint()
        await self._establish(wanted)

    async def update_miner_registry(self, miners: Iterable[Any]) -> None:
        """Bring connections in line with a new list of miners.

        Connections to miners that are not listed any more are closed, moved and new
        ones are dialled, all at once; the back-off of every listed address is reset.
        Miners that cannot be reached are logged as warnings.

        Args:
            miners: All miners that there are; of a hotkey listed twice the last
                counts.

        Raises:
            LightningConnectionError: The endpoint is not initialized.
            SigningError: No signer is set.
            MissingField, TypeError, OverflowError: A miner is malformed.
        """
        axons = [QuicAxonInfo.coerce(miner) for miner in miners]
        self._require_endpoint()
        self._require_signer()
        dead = self._dead()
        for address in dead:
            self._drop(address, "")
        changes = self._registry.reconcile(axons, dead)
        for address in changes.removed:
            self._drop(address, "miner_deregistered")
        for address in changes.moved:
            self._drop(address, "miner_addr_changed")
        await self._establish(changes.wanted)

    async def authenticated_hotkeys(self) -> set[str]:
        """Return every hotkey that is registered, its connection alive or not."""
        return set(self._registry.hotkeys)

    async def get_connection_stats(self) -> ClientConnectionStats:
        """Return the peer's table of texts.

        Returns:
            ``total_connections``, ``active_miners``, and for each address
            ``connection_{ip:port}``: ``active``, ``closed(...)``, or ``missing`` where
            a registered miner has no connection.
        """
        stats = {
            "total_connections": str(len(self._sessions)),
            "active_miners": str(len(self._registry)),
        }
        for address in self._registry.addresses:
            stats[f"connection_{address}"] = "missing"
        for address, session in self._sessions.items():
            ended = session.connection.closed
            stats[f"connection_{address}"] = (
                "active" if ended is None else f"closed({ended().detail})"
            )
        return stats  # type: ignore[return-value]  # Addresses make the other keys.

    async def close_all_connections(self) -> None:
        """Close every connection and forget every miner; later queries dial again."""
        if self._is_inherited():
            return  # They are the parent's.
        self._require_loop()
        attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)
        for address in list(self._sessions):
            self._drop(address, "client_shutdown")
        self._registry.clear()

    async def close(self) -> None:
        """Close everything, the sockets too. The object may be used again after."""
        await self.close_all_connections()
        if self._endpoints is None or self._is_inherited():
            return
        endpoints, self._endpoints = self._endpoints, {}
        for endpoint in endpoints.values():
            endpoint.close("client_shutdown")
        self._loop = None
        # The sockets' transports close in the loop's next turn.
        await asyncio.sleep(0)

    # Queries.

    async def query_axon(
        self, axon_info: Any, request: Any, timeout_secs: float | None = None
    ) -> QuicResponse:
        """Ask a miner and wait for its answer.

        A miner that is not connected is dialled first, under the rules of back-off;
        queries that need the same connection share one attempt.

        Args:
            axon_info: Anything `QuicAxonInfo.coerce` takes.
            request: A `QuicRequest`, or a mapping with ``synapse_type`` and ``data``.
            timeout_secs: Longest wait for the answer once the request is on its way,
                in seconds; None waits as long as the connection lives.

        Returns:
            The answer. A handler that failed is an answer too: ``success`` is False.

        Raises:
            MissingField, TypeError, OverflowError: The axon or the request is
                malformed.
            ConfigError: The timeout is not a finite positive number.
            EncodeError: ``data`` holds what the wire cannot say; nothing was sent.
            FrameTooLarge: The request is over our own limit; nothing was sent.
            LightningConnectionError: No connection, or not yet again.
            HandshakeError: The miner refused the login, or is another one.
            RequestTimeout: No answer in time.
            TransportError: The connection or the stream broke, or the answer is not
                one.
        """
        axon = QuicAxonInfo.coerce(axon_info)
        timeout = check_timeout(timeout_secs)
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._endpoints is None:
            self._require_endpoint()
        frame = self._encode(request)
        connection = self._connection_to(axon) or await self._route(axon)
        answer: asyncio.Future[Call] = loop.create_future()
        call = connection.call(frame, answer, timeout)
        del frame  # A large one is freed when it has arrived.
        try:
            await answer
        except BaseException:
            call.cancel()
            raise
        response = read_answer(call)
        return QuicResponse(
            response.success, response.data, call.seconds * 1e3, response.error
        )

    async def query_axon_with_timeout(
        self, axon_info: Any, request: Any, timeout_secs: float
    ) -> QuicResponse:
        """Do as `query_axon`, by the name it has in the peer's Rust crate."""
        return await self.query_axon(axon_info, request, timeout_secs)

    def query_many(
        self,
        axons: Iterable[Any],
        request: Any,
        timeout_secs: float | None = None,
        *,
        deadline_secs: float | None = None,
    ) -> FanOut:
        """Ask any number of miners at once; begins in this turn of the event loop.

        Requests to miners that are logged in leave together; the others are reached
        first, as by `query_axon`. What goes wrong with one miner is its outcome, and
        nothing to the others.

        Args:
            axons: The miners, each anything `QuicAxonInfo.coerce` takes.
            request: One for all, as for `query_axon`, or a sequence with one for each
                axon.
            timeout_secs: As for `query_axon`, for each miner.
            deadline_secs: Seconds from now after which what has not answered has
                timed out, dials included; None for no limit.

        Returns:
            The outcomes: await it for all, in the order of the axons, or iterate over
            it to have each as it comes.

        Raises:
            ConfigError: A time is not a finite positive number, or there are not as
                many requests as axons.
            MissingField, TypeError, OverflowError: An axon or a request is malformed.
            EncodeError, FrameTooLarge: A request cannot be sent; none was.
            LightningConnectionError: The endpoint is not initialized.
        """
        timeout, deadline = check_timeout(timeout_secs), check_timeout(deadline_secs)
        self._require_endpoint()
        return FanOut(self, orders(axons, request, self._encode), timeout, deadline)

    async def query_axon_stream(
        self, axon_info: Any, request: Any
    ) -> StreamingResponse:
        """Ask a miner for a streamed answer.

        Args:
            axon_info: Anything `QuicAxonInfo.coerce` takes.
            request: A `QuicRequest`, or a mapping with ``synapse_type`` and ``data``.

        Returns:
            The chunks to come; errors of the miner are raised where it is read. Close
            it, or read it to its end.

        Raises:
            The same as `query_axon`, but for the answer's errors.
        """
        axon = QuicAxonInfo.coerce(axon_info)
        self._require_endpoint()
        frame = self._encode(request)
        connection = await self._route(axon)
        return StreamingResponse(
            connection.exchanges,
            frame,
            self.config.stream_chunk_timeout,
            self.config.max_stream_payload_bytes,
        )

    # How; the blocking face uses the first three, too.

    def _connection_to(self, axon: QuicAxonInfo) -> Connection | None:
        """Return the live connection on which a miner is logged in, if there is one."""
        # A plain tuple finds it, too, and costs less.
        session: _Session | None
        session = self._sessions.get((axon.ip, axon.port))  # type: ignore[call-overload]
        if (
            session is None
            or session.connection.closed is not None
            or axon.hotkey not in session.hotkeys
        ):
            return None
        return session.connection

    async def _prepare(
        self, axon: QuicAxonInfo, request: Any
    ) -> tuple[Connection, bytes]:
        """Return the connection to a miner, made if need be, and the frame to send."""
        self._require_endpoint()
        frame = self._encode(request)
        return await self._route(axon), frame

    def _encode(self, request: Any) -> bytes:
        """Return the frame of what `QuicRequest.coerce` takes."""
        synapse_type, data = QuicRequest.parts(request)
        return encode_synapse_packet(
            synapse_type, data, int(time.time()), self.config.max_frame_payload_bytes
        )

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
            session = await self._share(
                (address, hotkey), lambda: self._reach(address, hotkey)
            )
        return session.connection

    def _begin(
        self, target: Target, attempt: Callable[[], Coroutine[Any, Any, _Session]]
    ) -> asyncio.Task[_Session]:
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
        attempt: Callable[[], Coroutine[Any, Any, _Session]],
        *,
        on_demand: bool = True,
    ) -> _Session:
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

    def _forget_attempt(self, target: Target, task: asyncio.Task[_Session]) -> None:
        self._attempts.pop(target, None)
        if not task.cancelled():
            task.exception()  # Perhaps nobody is left who wants to know.

    async def _reach(
        self, address: PeerAddr, hotkey: str, *, on_demand: bool = True
    ) -> _Session:
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
        session: _Session,
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
            ) from None

    async def _connect(
        self, address: PeerAddr, hotkey: str, *, on_demand: bool
    ) -> _Session:
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
            ) from None
        finally:
            self._dialling -= 1
        session = self._adopt(address, connection)
        for hotkey in self._registry.hotkeys_at(address):
            _ = self._begin(
                (address, hotkey), partial(self._log_in_again, address, hotkey)
            )
        return session

    async def _log_in_again(self, address: PeerAddr, hotkey: str) -> _Session:
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
            raise LightningConnectionError(
                f"no room for {address}: {self.config.max_connections} addresses are "
                "connected (max_connections)",
                address=str(address),
            )

    def _dead(self) -> list[PeerAddr]:
        return [a for a, s in self._sessions.items() if not s.connection.is_alive]

    async def _establish(self, wanted: dict[PeerAddr, list[str]]) -> None:
        """Log in hotkeys at addresses, all at once; failures are logged."""

        async def reach(address: PeerAddr, hotkey: str) -> None:
            session = self._sessions.get(address)
            if session is not None and session.serves(hotkey):
                return
            try:
                await self._share(
                    (address, hotkey),
                    lambda: self._reach(address, hotkey, on_demand=False),
                    on_demand=False,
                )
            except LightningError as error:
                log.warning("cannot reach %s at %s: %s", hotkey, address, error)

        each = [
            reach(address, hotkey)
            for address, hotkeys in wanted.items()
            for hotkey in hotkeys
        ]
        # One alone needs no task of its own.
        await (each[0] if len(each) == 1 else asyncio.gather(*each))

    async def _dial(self, address: PeerAddr, hotkey: str) -> Connection:
        try:
            places = await _resolve(address)
        except (OSError, UnicodeError) as error:
            raise LightningConnectionError(
                f"invalid remote address {address}: {error}", address=str(address)
            ) from error
        # Of several connections only the one that is kept may log in: a second login
        # ends the first one's.
        begin = partial(self._begin_login, hotkey) if len(places) == 1 else None
        try:
            return await first_success(
                [partial(self._dial_at, *place, begin) for place in places], HEAD_START
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
        except HandshakeError as error:
            error.address = str(address)
            raise

    def _adopt(self, address: PeerAddr, connection: Connection) -> _Session:
        """Keep a new connection, in place of the dead one that may be there."""
        session = self._sessions[address] = _Session(connection)
        self._registry.succeeded(address)
        connection.on_closed = partial(_log_loss, address)
        return session

    def _enrol(self, session: _Session, address: PeerAddr, hotkey: str) -> None:
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
            session.connection.close(reason)


def _send(connection: Connection, frame: bytes) -> tuple[Call, asyncio.Future[Call]]:
    """Send a frame; return the call and what is done when it has ended."""
    answer: asyncio.Future[Call] = connection.loop.create_future()
    return connection.call(frame, answer), answer


LightningClient = AsyncLightning
"""The client, by the name it has in the peer's Rust crate."""


class _Session:
    """One connection, and who is logged in on it."""

    __slots__ = ("connection", "hotkeys")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.hotkeys: set[str] = set()

    def serves(self, hotkey: str) -> bool:
        """Whether a request to this miner can be sent on it."""
        return self.connection.is_alive and hotkey in self.hotkeys


async def first_success(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]], head_start: float
) -> T:
    """Begin attempts one by one until one succeeds, and cancel the others.

    Args:
        attempts: At least one.
        head_start: Seconds after which the next one is begun while those before it
            are still under way.

    Raises:
        LightningError: All failed; this is the first one's.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    tasks: list[asyncio.Task[T]] = []
    try:
        for number, attempt in enumerate(attempts, 1):
            tasks.append(asyncio.create_task(attempt()))
            # Perhaps nobody will want to know how it failed.
            tasks[-1].add_done_callback(lambda t: t.cancelled() or t.exception())
            timeout = head_start if number < len(attempts) else None
            under_way = set(tasks)
            while under_way:
                done, under_way = await asyncio.wait(
                    under_way, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if task.exception() is None:
                        return task.result()
                if not done:
                    break
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _resolve(address: PeerAddr) -> list[tuple[int, tuple[Any, ...]]]:
    """Return address family and socket address of each place that a name stands for.

    Raises:
        OSError, UnicodeError: It stands for none.
    """
    ip, port = address
    with contextlib.suppress(OSError, UnicodeError):
        socket.inet_pton(socket.AF_INET, ip)
        return [(socket.AF_INET, (ip, port))]
    try:
        # An IP address needs no thread.
        found = socket.getaddrinfo(
            ip, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):
        found = await asyncio.get_running_loop().getaddrinfo(
            ip, port, type=socket.SOCK_DGRAM
        )
    return [(family, where) for family, _, _, _, where in found]


def _log_loss(address: PeerAddr, connection: Connection) -> None:
    ended = connection.closed
    error = None if ended is None else ended()
    if error is None or (error.initiator == "local" and not error.code):
        return  # We closed it.
    # Miners come and go; what is not a clean close is worth a look.
    level = logging.WARNING if error.code or error.timed_out else logging.INFO
    log.log(level, "connection to %s lost: %s", address, error.detail)
    if error.reason == "replaced":
        log.warning("another process has logged in at %s with our hotkey", address)


def _name(target: Target) -> str:
    if isinstance(target, PeerAddr):
        return str(target)
    address, hotkey = target
    return f"{hotkey} at {address}"
