"""The faces whose calls block: their I/O runs in a daemon thread.

They take the arguments and give the results of the peer's Python package, and add to
both. Every call may be made from any thread but the I/O thread itself.
"""

from __future__ import annotations

import dataclasses
import operator
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from lightning._core.io.gathering import Gathering
from lightning._core.io.loop import LoopThread
from lightning._core.wire.exchange import read_answer
from lightning.client import AsyncLightning
from lightning.config import LightningClientConfig, LightningServerConfig
from lightning.errors import ConfigError, LightningError
from lightning.fanout import BlockingFanOut, orders
from lightning.server import STOP_TIMEOUT, AsyncLightningServer
from lightning.serving import ServingThreads
from lightning.signals import on_sigterm
from lightning.streaming import BlockingStreamingResponse
from lightning.types import QuicAxonInfo, check_timeout
from lightning.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from lightning._core.io.links import Call
    from lightning._core.io.transport import Connection
    from lightning.chain.metagraph import Metagraph
    from lightning.chain.monitor import MetagraphMonitorConfig
    from lightning.priority import Priority
    from lightning.reports import ConnectionStats, ConnectReport, ServerStats
    from lightning.types import (
        ClientConnectionStats,
        PeerAddr,
        ServerConnectionStats,
        SynapseResponseDict,
    )


# Bytes of a frame whose memory matters.
LARGE = 1 << 20


class Lightning:
    """A validator's client whose calls block; its I/O runs in a daemon thread.

    Safe to use from many threads. Ctrl-C ends a call at once.

    Args:
        wallet_hotkey: SS58 address of the validator's hotkey.
        connect_timeout_secs: See `LightningClientConfig`, as for all that follow;
            None for the default.
        idle_timeout_secs: Seconds.
        keep_alive_interval_secs: Seconds.
        reconnect_initial_backoff_secs: Seconds.
        reconnect_max_backoff_secs: Seconds.
        reconnect_max_retries: Count.
        max_frame_payload_bytes: Bytes.
        max_stream_payload_bytes: Bytes.
        max_connections: Addresses.
        stream_chunk_timeout_secs: Seconds; 0 for no limit.
        signer: As for `AsyncLightning`.
        config: All settings at once; the arguments above override it.

    Raises:
        ConfigError: A setting breaks a rule.

    Example::

        with Lightning(hotkey, signer=keypair) as client:
            client.initialize_connections(miners)
            answer = client.query_axon(miners[0], {"synapse_type": "echo"})
    """

    def __init__(
        self,
        wallet_hotkey: str,
        connect_timeout_secs: int | None = None,
        idle_timeout_secs: int | None = None,
        keep_alive_interval_secs: int | None = None,
        reconnect_initial_backoff_secs: int | None = None,
        reconnect_max_backoff_secs: int | None = None,
        reconnect_max_retries: int | None = None,
        max_frame_payload_bytes: int | None = None,
        max_stream_payload_bytes: int | None = None,
        max_connections: int | None = None,
        stream_chunk_timeout_secs: int | None = None,
        *,
        signer: object | None = None,
        config: LightningClientConfig | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "connect_timeout": connect_timeout_secs,
            "idle_timeout": idle_timeout_secs,
            "keep_alive_interval": keep_alive_interval_secs,
            "reconnect_initial_backoff": reconnect_initial_backoff_secs,
            "reconnect_max_backoff": reconnect_max_backoff_secs,
            "reconnect_max_retries": reconnect_max_retries,
            "max_frame_payload_bytes": max_frame_payload_bytes,
            "max_stream_payload_bytes": max_stream_payload_bytes,
            "max_connections": max_connections,
            "stream_chunk_timeout": stream_chunk_timeout_secs,
        }
        settings: dict[str, Any] = {
            name: _unsigned(name, value)
            for name, value in given.items()
            if value is not None
        }
        if settings.get("stream_chunk_timeout") == 0:
            settings["stream_chunk_timeout"] = None
        if settings:
            config = dataclasses.replace(config or LightningClientConfig(), **settings)
        self._client = AsyncLightning(wallet_hotkey, signer=signer, config=config)
        self._client._threads = True
        self._io = LoopThread("lightning-client", self._client.close)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.wallet_hotkey}>"

    def __enter__(self) -> Self:
        try:
            self._io.call(self._client.create_endpoint)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Nothing was started by a constructor that failed.
        if io := getattr(self, "_io", None):
            io.stop(wait=False)

    @property
    def wallet_hotkey(self) -> str:
        """SS58 address of the validator's hotkey."""
        return self._client.wallet_hotkey

    @property
    def config(self) -> LightningClientConfig:
        """The settings in force."""
        return self._client.config

    def set_signer(self, signer: object) -> None:
        """Do as `AsyncLightning.set_signer`."""
        self._client.set_signer(signer)

    def set_validator_keypair(self, keypair_seed: bytes | list[int]) -> None:
        """Do as `AsyncLightning.set_validator_keypair`."""
        self._client.set_validator_keypair(keypair_seed)

    def set_python_signer(self, signer_callback: Callable[[bytes], Any]) -> None:
        """Do as `AsyncLightning.set_python_signer`."""
        self._client.set_python_signer(signer_callback)

    def set_wallet(
        self,
        wallet_name: str = "default",
        wallet_path: str = "~/.bittensor/wallets",
        hotkey_name: str = "default",
    ) -> None:
        """Do as `AsyncLightning.set_wallet`."""
        self._client.set_wallet(wallet_name, wallet_path, hotkey_name)

    def create_endpoint(self) -> None:
        """Do as `AsyncLightning.create_endpoint`."""
        self._io.call(self._client.create_endpoint)

    def initialize_connections(self, miners: Iterable[Any]) -> ConnectReport:
        """Do as `AsyncLightning.initialize_connections`."""
        return self._io.call(self._client.initialize_connections, miners)

    def update_miner_registry(self, miners: Iterable[Any]) -> ConnectReport:
        """Do as `AsyncLightning.update_miner_registry`."""
        return self._io.call(self._client.update_miner_registry, miners)

    def query_axon(
        self,
        axon_info: Any,
        request: Any,
        timeout_secs: float | None = None,
        *,
        total_timeout_secs: float | None = None,
    ) -> SynapseResponseDict:
        """Ask a miner and wait for its answer; see `AsyncLightning.query_axon`.

        Returns:
            A dict with ``success``, ``data``, ``latency_ms`` and ``error``.
        """
        client = self._client
        axon = QuicAxonInfo.coerce(axon_info)
        timeout = check_timeout(timeout_secs)
        connection = client._connection_to(axon)
        watch: Watch | None = None
        call: Call | None = None
        try:
            if connection is None or total_timeout_secs is not None:
                watch = Watch(check_timeout(total_timeout_secs))
            if connection is None:
                connection, frame = self._io.call(client._prepare, axon, request, watch)
            else:
                frame = client._encode(request)
            if len(frame) > LARGE or total_timeout_secs is not None:
                # It is freed when it has arrived, as nobody here keeps it.
                gathering = Gathering(connection)
                gathering.start(connection, frame, None, timeout)
                del frame
                call = _wait(gathering, connection, watch)
            else:
                call = connection.ask(frame, timeout)
            response = read_answer(call)
        except LightningError as error:
            client._tell(error, axon, call, watch)
            raise
        return {
            "success": response.success,
            "data": response.data,
            "latency_ms": call.seconds * 1e3,
            "error": response.error,
        }

    def query_axon_with_timeout(
        self,
        axon_info: Any,
        request: Any,
        timeout_secs: float,
        *,
        total_timeout_secs: float | None = None,
    ) -> SynapseResponseDict:
        """Do as `query_axon`, by the name it has in the peer's Rust crate."""
        return self.query_axon(
            axon_info, request, timeout_secs, total_timeout_secs=total_timeout_secs
        )

    def query_many(
        self,
        axons: Iterable[Any],
        request: Any,
        timeout_secs: float | None = None,
        *,
        deadline_secs: float | None = None,
    ) -> BlockingFanOut:
        """Ask any number of miners at once; see `AsyncLightning.query_many`.

        Returns:
            The outcomes: iterate over it to have each as it comes; its `collect_all`
            has all, in the order of the axons. It returns once the requests are on
            their way.
        """
        client = self._client
        timeout, deadline = check_timeout(timeout_secs), check_timeout(deadline_secs)
        wanted = orders(axons, request, client._encode)
        return BlockingFanOut(self, client, self._io, wanted, timeout, deadline)

    def query_axon_stream(
        self,
        axon_info: Any,
        request: Any,
        *,
        chunk_timeout_secs: float | None = None,
        total_timeout_secs: float | None = None,
    ) -> BlockingStreamingResponse:
        """Ask a miner for a streamed answer; see `AsyncLightning.query_axon_stream`.

        Returns:
            An iterator of ``bytes``.
        """
        ask = partial(
            self._client.query_axon_stream,
            chunk_timeout_secs=chunk_timeout_secs,
            total_timeout_secs=total_timeout_secs,
        )
        stream = self._io.call(ask, axon_info, request)
        return BlockingStreamingResponse(stream, self._io, self)

    def start_metagraph_monitor(
        self, config: MetagraphMonitorConfig | None = None
    ) -> None:
        """Do as `AsyncLightning.start_metagraph_monitor`."""
        self._io.call(self._client.start_metagraph_monitor, config)

    def stop_metagraph_monitor(self) -> None:
        """Do as `AsyncLightning.stop_metagraph_monitor`."""
        self._io.call(self._client.stop_metagraph_monitor)

    @property
    def metagraph(self) -> Metagraph | None:
        """Do as `AsyncLightning.metagraph`."""
        return self._client.metagraph

    def authenticated_hotkeys(self) -> set[str]:
        """Do as `AsyncLightning.authenticated_hotkeys`."""
        return self._io.call(self._client.authenticated_hotkeys)

    def get_connection_stats(self) -> ClientConnectionStats:
        """Do as `AsyncLightning.get_connection_stats`."""
        return self._io.call(self._client.get_connection_stats)

    def connections(self) -> tuple[ConnectionStats, ...]:
        """Do as `AsyncLightning.connections`."""
        return self._client.connections()

    def close_all_connections(self) -> None:
        """Do as `AsyncLightning.close_all_connections`."""
        self._io.call(self._client.close_all_connections)

    def close(self) -> None:
        """Close everything, the thread too. The object may be used again after."""
        self._io.stop()


class LightningServer:
    """A miner's server whose calls block; its I/O runs in a daemon thread.

    Args:
        miner_hotkey: SS58 address of the miner's hotkey.
        host: Address to listen on.
        port: UDP port; 0 lets the system choose, see `local_addr`.
        max_signature_age_secs: See `LightningServerConfig`, as for all that follow;
            None for the default.
        idle_timeout_secs: Seconds.
        keep_alive_interval_secs: Seconds.
        nonce_cleanup_interval_secs: Seconds.
        max_nonce_entries: Count.
        max_frame_payload_bytes: Bytes.
        max_connections: Validators.
        handshake_timeout_secs: Seconds.
        max_handshake_attempts_per_minute: Count for each source address.
        max_concurrent_bidi_streams: Requests at a time on a connection.
        require_validator_permit: Whether only holders of a permit may log in.
        validator_permit_refresh_secs: Seconds.
        handler_timeout_secs: Seconds.
        signer: As for `AsyncLightningServer`.
        config: All settings at once; the arguments above override it.

    Raises:
        ConfigError: A setting breaks a rule.
    """

    def __init__(
        self,
        miner_hotkey: str,
        host: str = "0.0.0.0",  # noqa: S104 - miners serve the world.
        port: int = 8443,
        max_signature_age_secs: int | None = None,
        idle_timeout_secs: int | None = None,
        keep_alive_interval_secs: int | None = None,
        nonce_cleanup_interval_secs: int | None = None,
        max_nonce_entries: int | None = None,
        max_frame_payload_bytes: int | None = None,
        max_connections: int | None = None,
        handshake_timeout_secs: int | None = None,
        max_handshake_attempts_per_minute: int | None = None,
        max_concurrent_bidi_streams: int | None = None,
        require_validator_permit: bool | None = None,
        validator_permit_refresh_secs: int | None = None,
        handler_timeout_secs: int | None = None,
        *,
        signer: object | None = None,
        config: LightningServerConfig | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "max_signature_age_secs": max_signature_age_secs,
            "idle_timeout_secs": idle_timeout_secs,
            "keep_alive_interval_secs": keep_alive_interval_secs,
            "nonce_cleanup_interval_secs": nonce_cleanup_interval_secs,
            "max_nonce_entries": max_nonce_entries,
            "max_frame_payload_bytes": max_frame_payload_bytes,
            "max_connections": max_connections,
            "handshake_timeout_secs": handshake_timeout_secs,
            "max_handshake_attempts_per_minute": max_handshake_attempts_per_minute,
            "max_concurrent_bidi_streams": max_concurrent_bidi_streams,
            "require_validator_permit": require_validator_permit,
            "validator_permit_refresh_secs": validator_permit_refresh_secs,
            "handler_timeout_secs": handler_timeout_secs,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        self._server = AsyncLightningServer(
            miner_hotkey,
            host,
            port,
            signer=signer,
            config=dataclasses.replace(config or LightningServerConfig(), **settings),
        )
        # The other half of this class.
        self._server._threads = ServingThreads(
            self._server.config.handler_threads, self._server._suspects
        )
        self._io = LoopThread("lightning-server", self._server.stop)

    def __repr__(self) -> str:
        return repr(self._server).replace("Async", "", 1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        # Nothing was started by a constructor that failed.
        if io := getattr(self, "_io", None):
            io.stop(wait=False)

    @property
    def miner_hotkey(self) -> str:
        """SS58 address of the miner's hotkey."""
        return self._server.miner_hotkey

    @property
    def config(self) -> LightningServerConfig:
        """The settings in force."""
        return self._server.config

    @property
    def is_started(self) -> bool:
        """Whether it listens."""
        return self._server.is_started

    def set_miner_signer(self, signer: object) -> None:
        """Do as `AsyncLightningServer.set_miner_signer`."""
        self._server.set_miner_signer(signer)

    def set_miner_keypair(self, keypair_seed: bytes | list[int]) -> None:
        """Do as `AsyncLightningServer.set_miner_keypair`."""
        self._server.set_miner_keypair(keypair_seed)

    def set_miner_wallet(
        self,
        wallet_name: str = "default",
        wallet_path: str = "~/.bittensor/wallets",
        hotkey_name: str = "default",
    ) -> None:
        """Do as `AsyncLightningServer.set_miner_wallet`."""
        self._server.set_miner_wallet(wallet_name, wallet_path, hotkey_name)

    def set_validator_permit_resolver(self, resolver: Any) -> None:
        """Do as `AsyncLightningServer.set_validator_permit_resolver`."""
        self._server.set_validator_permit_resolver(resolver)

    def set_source_address_resolver(self, resolver: Any) -> None:
        """Do as `AsyncLightningServer.set_source_address_resolver`."""
        self._server.set_source_address_resolver(resolver)

    def set_handshake_observer(self, observer: Any) -> None:
        """Do as `AsyncLightningServer.set_handshake_observer`."""
        self._server.set_handshake_observer(observer)

    def set_priority(self, priority: Priority | None) -> None:
        """Do as `AsyncLightningServer.set_priority`."""
        self._server.set_priority(priority)

    def register_synapse_handler(
        self, synapse_type: str, handler: Any, *, inline: bool = False
    ) -> None:
        """Do as `AsyncLightningServer.register_synapse_handler`."""
        self._server.register_synapse_handler(synapse_type, handler, inline=inline)

    def register_async_synapse_handler(self, synapse_type: str, handler: Any) -> None:
        """Do as `AsyncLightningServer.register_async_synapse_handler`."""
        self._server.register_async_synapse_handler(synapse_type, handler)

    def register_streaming_handler(self, synapse_type: str, handler: Any) -> None:
        """Do as `AsyncLightningServer.register_streaming_handler`."""
        self._server.register_streaming_handler(synapse_type, handler)

    def start(self) -> None:
        """Do as `AsyncLightningServer.start`; serving goes on in the daemon thread."""
        try:
            self._io.call(self._server.start)
        except BaseException:
            if not self.is_started:
                self._io.stop()
            raise

    def serve_forever(self, *, drain: float = STOP_TIMEOUT) -> None:
        """Block until `stop` is called from another thread; Ctrl-C works.

        SIGTERM, too, as for `AsyncLightningServer.serve_forever`.

        Args:
            drain: As there.

        Raises:
            ConfigError: As `AsyncLightningServer.serve_forever`.
        """
        if not self.is_started:
            raise ConfigError("server not started: call start() first")
        terminated = []

        def terminate() -> None:
            terminated.append(True)
            self._io.post(self._server._terminate, drain)

        with on_sigterm(terminate):
            self._io.call(self._server.serve_forever)
        if terminated:
            self.stop()

    def stop(self, drain: float = STOP_TIMEOUT) -> None:
        """Do as `AsyncLightningServer.stop`, and end the thread."""
        if self._io.is_running:
            self._io.call(self._server.stop, drain)
        self._io.stop()

    def local_addr(self) -> PeerAddr:
        """Do as `AsyncLightningServer.local_addr`."""
        return self._server.local_addr()

    def connections(self) -> tuple[ConnectionStats, ...]:
        """Do as `AsyncLightningServer.connections`."""
        return self._server.connections()

    def stats(self) -> ServerStats:
        """Do as `AsyncLightningServer.stats`."""
        return self._server.stats()

    def get_connection_stats(self) -> ServerConnectionStats:
        """Do as `AsyncLightningServer.get_connection_stats`."""
        return self._io.call(self._server.get_connection_stats)

    def cleanup_stale_connections(self, max_idle_seconds: float = 300) -> None:
        """Do as `AsyncLightningServer.cleanup_stale_connections`."""
        self._io.call(self._server.cleanup_stale_connections, max_idle_seconds)

    def get_active_nonce_count(self) -> int:
        """Do as `AsyncLightningServer.get_active_nonce_count`."""
        return self._io.call(self._server.get_active_nonce_count)

    def cleanup_expired_nonces(self) -> None:
        """Do as `AsyncLightningServer.cleanup_expired_nonces`."""
        self._io.call(self._server.cleanup_expired_nonces)

    def get_permitted_validator_count(self) -> int:
        """Do as `AsyncLightningServer.get_permitted_validator_count`."""
        return self._io.call(self._server.get_permitted_validator_count)

    def get_allowed_source_count(self) -> int:
        """Do as `AsyncLightningServer.get_allowed_source_count`."""
        return self._io.call(self._server.get_allowed_source_count)

    def is_source_enforcement_bypassed(self) -> bool:
        """Do as `AsyncLightningServer.is_source_enforcement_bypassed`."""
        return self._io.call(self._server.is_source_enforcement_bypassed)


def _unsigned(name: str, value: Any) -> int:
    """Check an argument as the peer's Python package does: whole, not negative."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = operator.index(value)
    if number < 0:
        raise OverflowError(f"{name} must not be negative")
    return number


def _wait(gathering: Gathering, connection: Connection, watch: Watch | None) -> Call:
    """Wait for the only call."""
    left = None if watch is None else watch.left
    until = None if left is None else time.monotonic() + left
    try:
        for call in gathering.wait(until):
            return call
        if watch is None:
            raise connection.lost()
        raise watch.waited(is_sending=gathering.is_sending)
    finally:
        gathering.cancel()
