"""Checks that every test leaves nothing behind, and the fixtures they share."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    LightningClientConfig,
    LightningServerConfig,
    QuicAxonInfo,
)
from tests.support.identities import MINER, VALIDATOR


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        # Handlers that never return keep their thread, and asyncio its executor's.
        if not thread.name.startswith(("asyncio_", "lightning-handler"))
    ]
    for thread in left:
        thread.join(2)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture
async def start_server() -> AsyncIterator[Callable[..., object]]:
    """Start servers on loopback; they are stopped at the end."""
    servers: list[AsyncLightningServer] = []

    async def start(
        prepare: Callable[[AsyncLightningServer], object] = lambda server: None,
        *,
        signer: object = MINER,
        host: str = "127.0.0.1",
        **settings: object,
    ) -> AsyncLightningServer:
        server = AsyncLightningServer(
            getattr(signer, "ss58_address", MINER.ss58_address),
            host,
            0,
            signer=signer,
            config=LightningServerConfig(**settings),
        )
        server.register_synapse_handler("echo", lambda data: data, inline=True)
        prepare(server)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()
    await asyncio.sleep(0)


@pytest.fixture
async def make_client() -> AsyncIterator[Callable[..., AsyncLightning]]:
    """Make clients; they are closed at the end."""
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
    for client in clients:
        await client.close()


@pytest.fixture
def axon_of() -> Callable[[AsyncLightningServer], QuicAxonInfo]:
    """Describe a server as a miner."""

    def describe(server: AsyncLightningServer) -> QuicAxonInfo:
        ip, port = server.local_addr()
        return QuicAxonInfo(server.miner_hotkey, ip, port)

    return describe
