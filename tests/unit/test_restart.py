"""A server that is killed and comes back on its port, and how its clients learn."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time

import pytest

from lightning._core.io.transport import ClientEndpoint, TransportConfig
from lightning.errors import ConnectionClosed
from tests.support.echo_process import CONFIG
from tests.support.raw_peer import frame
from tests.unit.test_transport import ask

SECRET = bytes(range(32)).hex()
OTHER = bytes(32).hex()


class Process:
    """A server in a process of its own, killed and started again."""

    def __init__(self, stack):
        self.stack = stack
        self.port = "0"

    def start(self, secret):
        self.child = self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.echo_process", self.port, secret],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        self.port = self.child.stdout.readline().decode().strip()

    def kill(self):
        self.child.kill()
        self.child.wait(10)


@pytest.fixture
def process():
    """A server that was started; whatever runs of it is killed at the end."""
    with contextlib.ExitStack() as stack:
        process = Process(stack)
        process.start(SECRET)
        yield process
        process.kill()


@contextlib.asynccontextmanager
async def dialled(process, *, threads):
    """Connect to the process; idle connections live for two minutes."""
    config = TransportConfig(
        **{**CONFIG, "idle_timeout": 120, "unresponsive_timeout": 1.0}
    )
    endpoint = ClientEndpoint(config, threads=threads)
    await endpoint.open(socket.AF_INET)
    try:
        connection = await endpoint.connect(("127.0.0.1", int(process.port)))
        assert await question(connection, threads) == b"q"
        yield endpoint, connection
    finally:
        endpoint.close("")


async def question(connection, threads):
    """Ask on the loop, or in a thread."""
    if not threads:
        return await ask(connection)
    call = await asyncio.to_thread(connection.ask, frame(2, b"q"), 10)
    return call.answer()[1]


@pytest.mark.parametrize("threads", [False, True])
async def test_the_same_secret_tells_within_a_round_trip(process, threads):
    """The next question of an old connection ends it, and a new one can be made."""
    async with dialled(process, threads=threads) as (endpoint, connection):
        process.kill()
        process.start(SECRET)
        began = time.monotonic()
        with pytest.raises(ConnectionClosed, match="does not know") as caught:
            await question(connection, threads)
        assert time.monotonic() - began < 0.9  # Sooner than by its silence.
        assert (caught.value.initiator, caught.value.timed_out) == ("remote", False)
        assert not connection.is_alive
        again = await endpoint.connect(("127.0.0.1", int(process.port)))
        assert await question(again, threads) == b"q"


@pytest.mark.parametrize("threads", [False, True])
async def test_with_another_secret_its_silence_tells(process, threads):
    """What it says of the old connection cannot be told from a stranger's word."""
    async with dialled(process, threads=threads) as (_, connection):
        process.kill()
        process.start(OTHER)
        began = time.monotonic()
        with pytest.raises(ConnectionClosed, match="does not answer") as caught:
            await question(connection, threads)
        assert 0.9 < time.monotonic() - began < 5
        assert (caught.value.initiator, caught.value.timed_out) == ("local", True)


@pytest.mark.parametrize("threads", [False, True])
async def test_a_connection_that_waits_for_nothing_hears_of_it_too(process, threads):
    """By its keep-alive, with nobody at the socket but who stands in."""
    config = TransportConfig(
        **{**CONFIG, "idle_timeout": 120, "keep_alive_interval": 0.3}
    )
    endpoint = ClientEndpoint(config, threads=threads)
    await endpoint.open(socket.AF_INET)
    try:
        connection = await endpoint.connect(("127.0.0.1", int(process.port)))
        ended = asyncio.Event()
        connection.on_closed = lambda _: ended.set()
        process.kill()
        process.start(SECRET)
        async with asyncio.timeout(5):
            await ended.wait()
        assert connection.closed().initiator == "remote"
    finally:
        endpoint.close("")
