"""The client on asyncio."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Self

from lightning._core.io.transport import ClientEndpoint, Connection, TransportConfig
from lightning._core.wire.exchange import (
    ClientExchange,
    read_answer,
    read_login_answer,
)
from lightning._core.wire.messages import encode_synapse_packet
from lightning.config import LightningClientConfig
from lightning.errors import (
    ConnectionClosed,
    HandshakeError,
    LightningConnectionError,
    LightningError,
    RequestTimeout,
    SigningError,
)
from lightning.handshake import ClientLogin, certificate_fingerprint
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
    from collections.abc import Callable, Coroutine, Hashable, Iterable
    from types import TracebackType

log = logging.getLogger("lightning.client")


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
        if not isinstance(wallet_hotkey, str):
            raise TypeError(
                f"wallet_hotkey must be a str, not {type(wallet_hotkey).__name__}"
            )
        self.wallet_hotkey = wallet_hotkey
        self.config = config or LightningClientConfig()
        self._signer: Signer | None = None if signer is None else as_signer(signer)
        self._transport = TransportConfig(
            idle_timeout=self.config.idle_timeout,
            keep_alive_interval=self.config.keep_alive_interval,
            max_frame_payload=self.config.max_frame_payload_bytes,
        )
        # By address family; None until the endpoint is created.
        self._endpoints: dict[int, ClientEndpoint] | None = None
        self._connections: dict[PeerAddr, Connection] = {}
        # Hotkeys logged in on a connection that may have died since.
        self._logins: dict[Connection, set[str]] = {}
        self._registry = Registry()
        # Attempts under way, shared by all who need them.
        self._attempts: dict[Hashable, asyncio.Task[Any]] = {}

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
        await self._establish_all(wanted)

    async def update_miner_registry(self, miners: Iterable[Any]) -> None:
        """Bring connections in line with a new list of miners.

        Connections to miners that are not listed any more are closed, moved and new
        ones are dialled, all at once; the back-off of every listed address is reset.

        Args:
            miners: All miners that there are.

        Raises:
            LightningConnectionError: The endpoint is not initialized.
            SigningError: No signer is set.
        """
        axons = [QuicAxonInfo.coerce(miner) for miner in miners]
        self._require_endpoint()
        self._require_signer()
        dead = {a for a, c in self._connections.items() if not c.is_alive}
        for address in dead:
            self._drop(address, "")
        changes = self._registry.reconcile(axons, dead)
        for address in changes.removed:
            self._drop(address, "miner_deregistered")
        for address in changes.moved:
            self._drop(address, "miner_addr_changed")
        await self._establish_all(changes.wanted)

    async def authenticated_hotkeys(self) -> set[str]:
        """Return every hotkey that is registered, its connection alive or not."""
        return set(self._registry.hotkeys)

    async def get_connection_stats(self) -> ClientConnectionStats:
        """Return the peer's table of texts.

        Returns:
            ``total_connections``, ``active_miners``, and for each address
            ``connection_{ip:port}``: ``active`` or ``closed(...)``.
        """
        stats = {
            "total_connections": str(len(self._connections)),
            "active_miners": str(len(self._registry)),
        }
        for address, connection in self._connections.items():
            ended = connection.closed
            stats[f"connection_{address}"] = (
                "active" if ended is None else f"closed({ended().detail})"
            )
        return stats  # type: ignore[return-value]  # Addresses make the other keys.

    async def close_all_connections(self) -> None:
        """Close every connection and forget every miner; later queries dial again."""
        attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)
        for address in list(self._connections):
            self._drop(address, "client_shutdown")
        self._registry.clear()

    async def close(self) -> None:
        """Close everything, the sockets too. The object may be used again after."""
        await self.close_all_connections()
        endpoints, self._endpoints = self._endpoints, None
        for endpoint in (endpoints or {}).values():
            endpoint.close("client_shutdown")
        # The sockets' transports close in the loop's next turn.
        await asyncio.sleep(0)
        if endpoints is not None:
            self._endpoints = {}

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
        frame = self._encode(QuicRequest.coerce(request))
        connection = self._live(axon) or await self._route(axon)
        started, (kind, payload, ended) = await self._ask(connection, frame, timeout)
        response = read_answer(kind, payload)
        return QuicResponse(
            response.success, response.data, (ended - started) * 1e3, response.error
        )

    async def query_axon_with_timeout(
        self, axon_info: Any, request: Any, timeout_secs: float
    ) -> QuicResponse:
        """Do as `query_axon`, by the name it has in the peer's Rust crate."""
        return await self.query_axon(axon_info, request, timeout_secs)

    async def query_axon_stream(self, axon_info: Any, request: Any) -> StreamingResponse:
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
        frame = self._encode(QuicRequest.coerce(request))
        connection = self._live(axon) or await self._route(axon)
        stream = StreamingResponse(
            self.config.stream_chunk_timeout, self.config.max_stream_payload_bytes
        )
        stream.start(connection.exchanges, frame)
        return stream

    # How.

    def _encode(self, request: QuicRequest) -> bytes:
        self._require_endpoint()
        return encode_synapse_packet(
            request.synapse_type,
            request.data,
            int(time.time()),
            self.config.max_frame_payload_bytes,
        )

    def _require_endpoint(self) -> dict[int, ClientEndpoint]:
        if self._endpoints is None:
            raise LightningConnectionError(
                "QUIC endpoint not initialized: call initialize_connections first"
            )
        return self._endpoints

    def _require_signer(self) -> Signer:
        if self._signer is None:
            raise SigningError("No signer configured: call set_signer first")
        return self._signer

    def _live(self, axon: QuicAxonInfo) -> Connection | None:
        """Return the connection on which the miner is logged in, if it lives."""
        connection = self._connections.get(axon.address)
        if (
            connection is not None
            and connection.is_alive
            and axon.hotkey in self._logins[connection]
        ):
            return connection
        return None

    async def _route(self, axon: QuicAxonInfo) -> Connection:
        """Return a live connection with the miner logged in, making it if need be."""
        address = axon.address
        connection = self._connections.get(address)
        if connection is None or not connection.is_alive:
            await self._share(address, lambda: self._reconnect(address, axon.hotkey))
            connection = self._connections[address]
        if axon.hotkey not in self._logins[connection]:
            where = connection
            await self._share(
                (address, axon.hotkey),
                lambda: self._login_on_demand(where, address, axon.hotkey),
            )
        return connection

    async def _share(
        self, target: Hashable, attempt: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Run an attempt, or wait for the one that is under way for the same target."""
        task = self._attempts.get(target)
        if task is None:
            now = time.monotonic()
            self._registry.backoff(target).check(_name(target), now, self.config)
            self._registry.forget_idle(now, self.config.max_connections)
            task = asyncio.create_task(attempt(), name=f"lightning-dial {target}")
            self._attempts[target] = task
            task.add_done_callback(lambda done: self._forget_attempt(target, done))
        # Whoever gives up waiting leaves the attempt to the others.
        done, _ = await asyncio.wait([task])
        for finished in done:
            if finished.cancelled():
                raise LightningConnectionError(
                    f"the attempt to reach {_name(target)} was cut off by a close"
                )
            finished.result()

    def _forget_attempt(self, target: Hashable, task: asyncio.Task[Any]) -> None:
        self._attempts.pop(target, None)
        if not task.cancelled():
            task.exception()  # Perhaps nobody is left who wants to know.

    async def _reconnect(self, address: PeerAddr, hotkey: str) -> None:
        self._require_room(address)
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                connection = await self._dial(address)
                try:
                    await self._login(connection, address, hotkey)
                except BaseException:
                    connection.close()
                    raise
        except LightningError:
            self._failed(address)
            raise
        except TimeoutError:
            self._failed(address)
            raise LightningConnectionError(
                f"Reconnection to {address} timed out after "
                f"{self.config.connect_timeout:g}s",
                address=str(address),
            ) from None
        others = self._registry.hotkeys_at(address) - {hotkey}
        self._adopt(address, connection)
        self._enrol(address, connection, hotkey)
        await self._login_all(address, connection, others)

    async def _login_on_demand(
        self, connection: Connection, address: PeerAddr, hotkey: str
    ) -> None:
        target = (address, hotkey)
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await self._login(connection, address, hotkey)
        except (LightningError, TimeoutError) as error:
            self._failed(target)
            if isinstance(error, LightningError):
                raise
            raise HandshakeError(
                f"the login of {hotkey} timed out", hotkey=hotkey, address=str(address)
            ) from None
        self._registry.succeeded(target)
        self._enrol(address, connection, hotkey)

    def _failed(self, target: Hashable) -> None:
        self._registry.backoff(target).failed(time.monotonic(), self.config)

    def _require_room(self, address: PeerAddr) -> None:
        if (
            address not in self._connections
            and len(self._connections) >= self.config.max_connections
        ):
            raise LightningConnectionError(
                f"no room for {address}: {self.config.max_connections} addresses are "
                "connected (max_connections)",
                address=str(address),
            )

    async def _establish_all(self, wanted: dict[PeerAddr, list[str]]) -> None:
        room = self.config.max_connections - len(self._connections)
        chosen = []
        for address, hotkeys in wanted.items():
            if address not in self._connections:
                if room <= 0:
                    log.warning("skipping %s: max_connections reached", address)
                    continue
                room -= 1
            chosen.append((address, hotkeys))
        await asyncio.gather(*(self._establish(a, h) for a, h in chosen))

    async def _establish(self, address: PeerAddr, hotkeys: list[str]) -> None:
        """Connect to an address unless it is, and log in whoever is not yet there."""
        connection = self._connections.get(address)
        if connection is None or not connection.is_alive:
            try:
                async with asyncio.timeout(self.config.connect_timeout):
                    connection = await self._dial(address)
            except (LightningError, TimeoutError) as error:
                log.warning("cannot connect to %s: %s", address, _describe(error))
                return
            self._adopt(address, connection)
        missing = set(hotkeys) - self._logins[connection]
        await self._login_all(address, connection, missing)
        if not self._logins.get(connection):
            self._drop(address, "no_authenticated_hotkeys")

    async def _login_all(
        self, address: PeerAddr, connection: Connection, hotkeys: Iterable[str]
    ) -> None:
        async def login(hotkey: str) -> None:
            try:
                async with asyncio.timeout(self.config.connect_timeout):
                    await self._login(connection, address, hotkey)
            except (LightningError, TimeoutError) as error:
                log.warning(
                    "no login of %s at %s: %s", hotkey, address, _describe(error)
                )
                if self._registry.address_of(hotkey) == address:
                    self._registry.deregister(hotkey)
                return
            self._enrol(address, connection, hotkey)

        await asyncio.gather(*(login(hotkey) for hotkey in hotkeys))

    async def _dial(self, address: PeerAddr) -> Connection:
        endpoints = self._require_endpoint()
        try:
            family, _, _, _, where = (
                await asyncio.get_running_loop().getaddrinfo(
                    address.ip, address.port, type=socket.SOCK_DGRAM
                )
            )[0]
        except (OSError, UnicodeError) as error:
            raise LightningConnectionError(
                f"invalid remote address {address}: {error}", address=str(address)
            ) from error
        endpoint = endpoints.get(family)
        if endpoint is None:
            endpoint = ClientEndpoint(self._transport)
            await endpoint.open(family)
            if endpoints.setdefault(family, endpoint) is not endpoint:
                # Another dial was faster.
                endpoint.close("")
                endpoint = endpoints[family]
        try:
            return await endpoint.connect(where)
        except ConnectionClosed as error:
            raise LightningConnectionError(
                f"QUIC connection to {address} failed: {error.detail}",
                address=str(address),
            ) from error

    async def _login(
        self, connection: Connection, address: PeerAddr, hotkey: str
    ) -> None:
        login = ClientLogin(
            validator_hotkey=self.wallet_hotkey,
            miner_hotkey=hotkey,
            fingerprint=certificate_fingerprint(connection.certificate),
            timestamp=int(time.time()),
            nonce=secrets.token_hex(16),
        )
        try:
            signature = await sign(self._require_signer(), login.message)
            frame = login.request(signature).to_frame()
            _, (kind, payload, _) = await self._ask(connection, frame, None)
            login.check(read_login_answer(kind, payload))
        except HandshakeError as error:
            error.address = str(address)
            raise

    async def _ask(
        self, connection: Connection, frame: bytes, timeout: float | None
    ) -> tuple[float, tuple[int, bytes, float]]:
        """Send a frame and wait for the first frame of the answer.

        Returns:
            When it was sent, and the frame's type and payload and when it had come.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, bytes, float]] = loop.create_future()

        def on_frame(exchange: ClientExchange, kind: int, payload: bytes) -> None:
            exchange.complete()
            if not answer.done():
                answer.set_result((kind, payload, loop.time()))

        def on_error(exchange: ClientExchange, error: LightningError) -> None:
            if not answer.done():
                answer.set_exception(error)

        def on_timeout() -> None:
            if not answer.done():
                answer.set_exception(
                    RequestTimeout("query timed out", timeout=timeout or 0)
                )

        exchange = connection.exchanges.start(frame, on_frame, on_error)
        started = loop.time()
        timer = None if timeout is None else loop.call_later(timeout, on_timeout)
        try:
            return started, await answer
        except BaseException:
            exchange.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _adopt(self, address: PeerAddr, connection: Connection) -> None:
        """Keep a new connection, in place of the one that was there."""
        old = self._connections.get(address)
        self._connections[address] = connection
        self._logins[connection] = set()
        self._registry.succeeded(address)
        if old is not None:
            self._logins.pop(old, None)
            old.close()

    def _enrol(self, address: PeerAddr, connection: Connection, hotkey: str) -> None:
        logins = self._logins.get(connection)
        if logins is None:
            return  # Dropped while the login was under way.
        logins.add(hotkey)
        vacated = self._registry.register(hotkey, address)
        if vacated is not None:
            self._drop(vacated, "miner_addr_changed")

    def _drop(self, address: PeerAddr, reason: str) -> None:
        connection = self._connections.pop(address, None)
        if connection is not None:
            self._logins.pop(connection, None)
            connection.close(reason)


LightningClient = AsyncLightning
"""The client, by the name it has in the peer's Rust crate."""


def _name(target: Hashable) -> str:
    return str(target) if isinstance(target, PeerAddr) else "{1} at {0}".format(*target)  # type: ignore[misc]


def _describe(error: BaseException) -> str:
    return str(error) or "timed out"
