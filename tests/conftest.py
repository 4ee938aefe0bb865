"""Checks that every test leaves nothing behind, and the fixtures they share."""

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import hypothesis
import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    Lightning,
    LightningClientConfig,
    LightningServer,
    LightningServerConfig,
    QuicAxonInfo,
)
from tests.support.identities import MINER, VALIDATOR
from tests.support.inspection import in_flight
from tests.support.waiting import until, until_async

# Whoever runs the suite in the background has it ignored, and our children too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("lightning", deadline=None)
hypothesis.settings.load_profile("lightning")


def pytest_collection_finish() -> None:
    """Keep what was imported out of the collections that every test ends with."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def kept_out() -> Iterator[None]:
    """Keep what a module left for good out of the collections after later tests."""
    yield
    gc.collect()
    gc.freeze()


class Unforeseen(logging.Handler):
    """Collects what is only logged where something went wrong that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio" or record.msg in (
            "giving up the connection with %s",
            "request from %s failed",
            "answering by handler %r failed",
            "task %s failed",
            "answering by handler %r failed",
            "a thread of the server failed",
            "closing failed",
        ):
            self.records.append(record)


@pytest.fixture
def unforeseen() -> list[logging.LogRecord]:
    """What was collected; a test that expects it clears it."""
    return []


@pytest.fixture(autouse=True)
def nothing_left_behind(unforeseen: list[logging.LogRecord]) -> Iterator[None]:
    """Fail a test that leaves a thread behind, or an exception that nobody saw."""
    before = set(threading.enumerate())
    handler = Unforeseen()
    handler.records = unforeseen
    loggers = [logging.getLogger(name) for name in ("asyncio", "lightning")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    gc.collect()
    for logger in loggers:
        logger.removeHandler(handler)
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        # Handlers that never return keep their thread, and asyncio its executor's.
        if not thread.name.startswith(("asyncio_", "lightning-handler"))
    ]
    for thread in left:
        thread.join(2)
    assert not [thread for thread in left if thread.is_alive()]
    assert not [(record.getMessage(), record.exc_info) for record in unforeseen]


def _server_config(settings: dict[str, object]) -> LightningServerConfig:
    # All tests come from one address.
    settings.setdefault("max_handshake_attempts_per_minute", 10_000)
    return LightningServerConfig(**settings)


@pytest.fixture
async def start_server() -> AsyncIterator[Callable[..., object]]:
    """Start servers on loopback, with a handler ``echo``; stopped at the end.

    Nothing may be in flight then.
    """
    servers: list[AsyncLightningServer] = []

    async def start(
        prepare: Callable[[AsyncLightningServer], object] = lambda server: None,
        *,
        signer: object = MINER,
        host: str = "127.0.0.1",
        port: int = 0,
        **settings: object,
    ) -> AsyncLightningServer:
        server = AsyncLightningServer(
            getattr(signer, "ss58_address", MINER.ss58_address),
            host,
            port,
            signer=signer,
            config=_server_config(settings),
        )
        server.register_synapse_handler("echo", lambda data: data, inline=True)
        prepare(server)
        servers.append(server)
        await server.start()
        return server

    yield start
    try:
        await until_async(lambda: not in_flight(*servers))
    finally:
        for server in servers:
            await server.stop()
        await asyncio.sleep(0)
    for server in servers:
        assert not server._tasks
        assert not server._strangers
        assert not len(server._table)


@pytest.fixture
async def make_client() -> AsyncIterator[Callable[..., AsyncLightning]]:
    """Make clients; they are closed at the end, when nothing may be in flight."""
    clients: list[AsyncLightning] = []

    def make(signer: object = VALIDATOR, **settings: object) -> AsyncLightning:
        client = AsyncLightning(
            signer.ss58_address,
            signer=signer,
            config=LightningClientConfig(**settings),
        )
        clients.append(client)
        return client

    yield make
    try:
        await until_async(lambda: not in_flight(*clients))
    finally:
        for client in clients:
            await client.close()
    for client in clients:
        assert not client._attempts
        assert not client._sessions


@pytest.fixture
def connect(make_client, axon_of) -> Callable[..., object]:
    """Make a client that has logged in with a server; gives it and the axon."""

    async def connect(
        server: AsyncLightningServer, signer: object = VALIDATOR, **settings: object
    ) -> tuple[AsyncLightning, QuicAxonInfo]:
        client = make_client(signer, **settings)
        axon = axon_of(server)
        await client.initialize_connections([axon])
        assert await client.authenticated_hotkeys() == {axon.hotkey}
        return client, axon

    return connect


@pytest.fixture
def start_blocking_server() -> Iterator[Callable[..., LightningServer]]:
    """Start blocking servers on loopback, with a handler ``echo``."""
    servers: list[LightningServer] = []

    def start(
        prepare: Callable[[LightningServer], object] = lambda server: None,
        *,
        signer: object = MINER,
        **settings: object,
    ) -> LightningServer:
        server = LightningServer(
            signer.ss58_address,
            "127.0.0.1",
            0,
            signer=signer,
            config=_server_config(settings),
        )
        server.register_synapse_handler("echo", lambda data: data, inline=True)
        prepare(server)
        server.start()
        servers.append(server)
        return server

    yield start
    try:
        until(lambda: not in_flight(*servers))
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def make_blocking_client() -> Iterator[Callable[..., Lightning]]:
    """Make blocking clients; they are closed at the end."""
    clients: list[Lightning] = []

    def make(signer: object = VALIDATOR, **settings: object) -> Lightning:
        client = Lightning(
            signer.ss58_address,
            signer=signer,
            config=LightningClientConfig(**settings),
        )
        clients.append(client)
        return client

    yield make
    try:
        until(lambda: not in_flight(*clients))
    finally:
        for client in clients:
            client.close()


@pytest.fixture
def axon_of() -> Callable[[object], QuicAxonInfo]:
    """Describe a server as a miner."""

    def describe(server: AsyncLightningServer | LightningServer) -> QuicAxonInfo:
        ip, port = server.local_addr()
        return QuicAxonInfo(server.miner_hotkey, ip, port)

    return describe
