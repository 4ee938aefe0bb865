"""The client on asyncio."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from lightning._core.wire.exchange import read_answer
from lightning._core.wire.messages import encode_synapse_packet
from lightning.chain.monitor import MetagraphMonitor
from lightning.errors import ConfigError, LightningError, RequestTimeout
from lightning.fanout import FanOut, orders
from lightning.sessions import Sessions, log_report
from lightning.signer import BtWalletSigner, CallbackSigner, Sr25519Signer, as_signer
from lightning.streaming import StreamingResponse
from lightning.types import (
    ClientConnectionStats,
    PeerAddr,
    QuicAxonInfo,
    QuicRequest,
    QuicResponse,
    check_timeout,
)
from lightning.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from lightning._core.io.links import Call
    from lightning._core.io.transport import Connection
    from lightning.chain.metagraph import Metagraph
    from lightning.chain.monitor import MetagraphMonitorConfig
    from lightning.config import LightningClientConfig
    from lightning.reports import ConnectReport


class AsyncLightning(Sessions):
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
        super().__init__(wallet_hotkey, signer, config)

    @classmethod
    def with_config(cls, wallet_hotkey: str, config: LightningClientConfig) -> Self:
        """Make a client with settings, by the name it has in the peer's Rust crate."""
        return cls(wallet_hotkey, config=config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.wallet_hotkey}>"

    async def __aenter__(self) -> Self:
        try:
            await self.create_endpoint()
        except BaseException:
            await self.close()
            raise
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
        """Get ready to dial; done by `initialize_connections` and ``async with``.

        With a ``metagraph`` in the config it also does as `start_metagraph_monitor`.
        """
        self._open()
        await self._follow()

    def _open(self) -> None:
        self._require_loop()
        if self._endpoints is None:
            self._endpoints = {}

    async def _follow(self) -> None:
        """Start to follow the metagraph of the config, if that is not done."""
        if self.config.metagraph is not None and self._monitor is None:
            await self.start_metagraph_monitor()

    async def start_metagraph_monitor(
        self, config: MetagraphMonitorConfig | None = None
    ) -> None:
        """Keep connections to the miners of a subnet from now on.

        Reads the subnet, does as `update_miner_registry` with its miners, and goes on
        so; a failure later on keeps what was read last, is logged once, and is tried
        again, sooner than the interval. A monitor that was there is stopped.

        Args:
            config: What to follow; None for ``metagraph`` of the settings.

        Raises:
            ConfigError: Neither is there, or the extra ``subtensor`` is missing.
            ChainError, LightningConnectionError: The subnet cannot be read; or the
                endpoint is not initialized.
            SigningError: No signer is set.
        """
        config = config or self.config.metagraph
        if config is None:
            raise ConfigError("no metagraph to follow: pass a MetagraphMonitorConfig")
        self._require_endpoint()
        self._require_signer()
        await self.stop_metagraph_monitor()
        monitor = self._monitor = MetagraphMonitor(
            config, self.wallet_hotkey, self.update_miner_registry
        )
        try:
            await monitor.start()
        except BaseException:
            if self._monitor is monitor:
                self._monitor = None
            raise

    async def stop_metagraph_monitor(self) -> None:
        """Follow the metagraph no more; connections stay as they are."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            await monitor.stop()

    @property
    def metagraph(self) -> Metagraph | None:
        """What the monitor has read last; None while there is no monitor."""
        monitor = self._monitor
        return None if monitor is None else monitor.metagraph

    async def initialize_connections(self, miners: Iterable[Any]) -> ConnectReport:
        """Connect to miners and log in, at all addresses at once.

        Addresses that are connected already are kept, and only hotkeys that are new
        there log in. Where there are more addresses than ``max_connections``, the last
        ones of the list are skipped. Who cannot be reached is also logged; a later
        query tries again.

        Args:
            miners: Anything `QuicAxonInfo.coerce` takes; of a hotkey listed twice the
                last address counts.

        Returns:
            What became of each miner.

        Raises:
            SigningError: No signer is set.
            MissingField, TypeError, OverflowError: A miner is malformed.
        """
        axons = _addresses(miners)
        self._require_signer()
        self._open()
        report = await self._establish(axons)
        log_report(report)
        await self._follow()
        return report

    async def update_miner_registry(self, miners: Iterable[Any]) -> ConnectReport:
        """Bring connections in line with a new list of miners.

        Connections to miners that are not listed any more are closed, moved and new
        ones are dialled, all at once; the back-off of every listed address is reset.
        Otherwise as `initialize_connections`.

        Args:
            miners: All miners that there are; of a hotkey listed twice the last
                address counts.

        Returns:
            What became of each miner, and who is not listed any more.

        Raises:
            LightningConnectionError: The endpoint is not initialized.
            SigningError: No signer is set.
            MissingField, TypeError, OverflowError: A miner is malformed.
        """
        axons = _addresses(miners)
        self._require_endpoint()
        self._require_signer()
        dead = self._dead()
        for address in dead:
            self._drop(address, "")
        changes = self._registry.reconcile(axons, dead)
        self._redialling.keep(axons)
        for address in changes.removed:
            self._drop(address, "miner_deregistered")
        for address in changes.moved:
            self._drop(address, "miner_addr_changed")
        report = await self._establish(axons)
        report = dataclasses.replace(report, removed=tuple(changes.unlisted))
        log_report(report)
        return report

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
        """Close every connection and forget every miner; later queries dial again.

        A metagraph is followed no more.
        """
        if self._is_inherited():
            return  # They are the parent's.
        self._require_loop()
        await self.stop_metagraph_monitor()
        attempts = [*self._redialling.stop(), *self._attempts.values()]
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
        self,
        axon_info: Any,
        request: Any,
        timeout_secs: float | None = None,
        *,
        total_timeout_secs: float | None = None,
    ) -> QuicResponse:
        """Ask a miner and wait for its answer.

        A miner that is not connected is dialled first, under the rules of back-off;
        queries that need the same connection share one attempt.

        Args:
            axon_info: Anything `QuicAxonInfo.coerce` takes.
            request: A `QuicRequest`, or a mapping with ``synapse_type`` and ``data``.
            timeout_secs: Longest wait for the answer once the request is on its way,
                in seconds; None waits as long as the connection lives.
            total_timeout_secs: Longest time for all of it: dial, login, request and
                answer, in seconds; None for no limit but those of its parts.

        Returns:
            The answer. A handler that failed is an answer too: ``success`` is False.

        Raises:
            MissingField, TypeError, OverflowError: The axon or the request is
                malformed.
            ConfigError: A timeout is not a finite positive number.
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
        connection = self._connection_to(axon)
        watch: Watch | None = None
        call: Call | None = None
        try:
            if connection is None:
                watch = Watch(check_timeout(total_timeout_secs))
                connection = await watch.reached(self._route(axon))
            elif total_timeout_secs is not None:
                watch = Watch(check_timeout(total_timeout_secs))
            answer: asyncio.Future[Call] = loop.create_future()
            call = connection.call(frame, answer, timeout)
            del frame  # A large one is freed when it has arrived.
            await (answer if watch is None else watch.answered(answer, call))
            response = read_answer(call)
        except BaseException as error:
            if call is not None:
                call.cancel()
            if isinstance(error, LightningError):
                self._tell(error, axon, call, watch)
            raise
        return QuicResponse(
            response.success, response.data, call.seconds * 1e3, response.error
        )

    async def query_axon_with_timeout(
        self,
        axon_info: Any,
        request: Any,
        timeout_secs: float,
        *,
        total_timeout_secs: float | None = None,
    ) -> QuicResponse:
        """Do as `query_axon`, by the name it has in the peer's Rust crate."""
        return await self.query_axon(
            axon_info, request, timeout_secs, total_timeout_secs=total_timeout_secs
        )

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
        self,
        axon_info: Any,
        request: Any,
        *,
        chunk_timeout_secs: float | None = None,
        total_timeout_secs: float | None = None,
    ) -> StreamingResponse:
        """Ask a miner for a streamed answer.

        Args:
            axon_info: Anything `QuicAxonInfo.coerce` takes.
            request: A `QuicRequest`, or a mapping with ``synapse_type`` and ``data``.
            chunk_timeout_secs: Longest wait for a chunk, in seconds; None for
                ``stream_chunk_timeout``.
            total_timeout_secs: Longest time from this call to the end of the stream, in
                seconds; None for no limit.

        Returns:
            The chunks to come; errors of the miner are raised where it is read. Close
            it, or read it to its end.

        Raises:
            The same as `query_axon`, but for the answer's errors.
        """
        axon = QuicAxonInfo.coerce(axon_info)
        chunk_timeout = check_timeout(chunk_timeout_secs)
        watch = Watch(check_timeout(total_timeout_secs))
        self._require_endpoint()
        frame = self._encode(request)
        try:
            connection = await watch.reached(self._route(axon))
            return StreamingResponse(
                connection.exchanges,
                frame,
                chunk_timeout or self.config.stream_chunk_timeout,
                self.config.max_stream_payload_bytes,
                watch,
                partial(self._locate, address=axon.address, hotkey=axon.hotkey),
            )
        except LightningError as error:
            self._tell(error, axon, None, watch)
            raise

    # How; the blocking face uses these, too.

    async def _prepare(
        self, axon: QuicAxonInfo, request: Any, watch: Watch
    ) -> tuple[Connection, bytes]:
        """Return the connection to a miner, made if need be, and the frame to send."""
        self._require_endpoint()
        frame = self._encode(request)
        return await watch.reached(self._route(axon)), frame

    def _tell(
        self,
        error: LightningError,
        axon: QuicAxonInfo,
        call: Call | None,
        watch: Watch | None,
    ) -> None:
        """Say in the error of a query where it happened."""
        seconds = 0.0
        if call is not None:
            seconds = time.monotonic() - call.began
        elif isinstance(error, RequestTimeout):
            seconds = error.timeout
        if watch is not None:
            seconds = watch.elapsed
        self._locate(error, seconds, axon.address, axon.hotkey)

    def _encode(self, request: Any) -> bytes:
        """Return the frame of what `QuicRequest.coerce` takes."""
        synapse_type, data = QuicRequest.parts(request)
        return encode_synapse_packet(
            synapse_type, data, int(time.time()), self.config.max_frame_payload_bytes
        )


LightningClient = AsyncLightning
"""The client, by the name it has in the peer's Rust crate."""


def _addresses(miners: Iterable[Any]) -> dict[str, PeerAddr]:
    """Return the address of each hotkey, in the order of the list."""
    axons = [QuicAxonInfo.coerce(miner) for miner in miners]
    return {axon.hotkey: axon.address for axon in axons}
