"""Both faces behind one: a test is written once, with calls that block."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator

import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    Lightning,
    LightningClientConfig,
    LightningServer,
    LightningServerConfig,
    QuicAxonInfo,
    QuicResponse,
    StreamingResponse,
)
from tests.support.identities import MINER, VALIDATOR
from tests.support.inspection import connections, in_flight
from tests.support.waiting import until

Prepare = Callable[[object], object]


class OnLoop:
    """An object of the asyncio face; its calls are made on the loop, and block."""

    def __init__(self, inner: object, loop: asyncio.AbstractEventLoop) -> None:
        self.inner = inner
        self.loop = loop

    def __getattr__(self, name: str) -> object:
        thing = getattr(self.inner, name)
        if not callable(thing):
            return thing

        async def made(*args: object, **kwargs: object) -> object:
            result = thing(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        def call(*args: object, **kwargs: object) -> object:
            future = asyncio.run_coroutine_threadsafe(made(*args, **kwargs), self.loop)
            result = future.result(30)
            if isinstance(result, QuicResponse):
                return result.to_dict()
            return (
                OnLoop(result, self.loop)
                if isinstance(result, StreamingResponse)
                else result
            )

        return call

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.next_chunk, None)


class Face:
    """Makes clients and servers of one face, and closes them at the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.clients: list = []
        self.servers: list = []

    def _wrap(self, made: object) -> object:
        return made if self.loop is None else OnLoop(made, self.loop)

    def server(
        self,
        prepare: Prepare = lambda server: None,
        *,
        signer: object = MINER,
        port: int = 0,
        **settings: object,
    ) -> object:
        """Start a server on loopback, with a handler ``echo``."""
        # All tests come from one address.
        settings.setdefault("max_handshake_attempts_per_minute", 10_000)
        kind = LightningServer if self.loop is None else AsyncLightningServer
        server = self._wrap(
            kind(
                signer.ss58_address,
                "127.0.0.1",
                port,
                signer=signer,
                config=LightningServerConfig(**settings),
            )
        )
        self.servers.append(server)
        server.register_synapse_handler("echo", lambda data: data)
        prepare(server)
        server.start()
        return server

    def client(self, signer: object = VALIDATOR, **settings: object) -> object:
        """Make a client that is ready to dial."""
        kind = Lightning if self.loop is None else AsyncLightning
        client = self._wrap(
            kind(
                signer.ss58_address,
                signer=signer,
                config=LightningClientConfig(**settings),
            )
        )
        self.clients.append(client)
        client.create_endpoint()
        return client

    def connected(
        self, server: object, signer: object = VALIDATOR, **settings: object
    ) -> tuple:
        """Make a client that has tried to log in with a server; also gives the axon."""
        client, axon = self.client(signer, **settings), axon_of(server)
        client.initialize_connections([axon])
        return client, axon

    def pair(self, prepare: Prepare = lambda server: None, **settings: object) -> tuple:
        """Start a server, and make a client that has logged in; gives it and the axon."""
        client, axon = self.connected(self.server(prepare, **settings))
        assert client.authenticated_hotkeys() == {axon.hotkey}
        return client, axon

    def close(self) -> None:
        bare = [getattr(made, "inner", made) for made in self.clients + self.servers]
        try:
            until(lambda: not in_flight(*bare))
        finally:
            for client in self.clients:
                client.close()
            for server in self.servers:
                server.stop()


@pytest.fixture(params=["asyncio", "blocking"])
def face(request) -> Iterator[Face]:
    """Each of the two faces."""
    if request.param == "blocking":
        made = Face(None)
        yield made
        made.close()
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        made = Face(loop)
        yield made
        made.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def axon_of(server: object) -> QuicAxonInfo:
    """Describe a server as a miner."""
    ip, port = server.local_addr()
    return QuicAxonInfo(server.miner_hotkey, ip, port)


def alive(*made: object) -> list:
    """Return the connections of clients and servers that are not closed."""
    return list(connections(*(getattr(each, "inner", each) for each in made)))
