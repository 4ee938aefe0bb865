"""How long a query and a stream may take as a whole, and in which phase it was late."""

import asyncio
import socket
import time

import pytest

from lightning import QuicAxonInfo
from lightning.errors import (
    ConfigError,
    LightningConnectionError,
    RequestTimeout,
    StreamError,
)
from lightning.watch import Watch
from tests.support.identities import MINER_HOTKEY
from tests.support.inspection import in_flight
from tests.support.udp_relay import udp_relay
from tests.support.waiting import until, until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
NEVER = {"synapse_type": "never"}
LARGE = {"synapse_type": "echo", "data": {"body": bytes(4 << 20)}}
STREAM = {"synapse_type": "stream"}


@pytest.fixture
def silent_axon():
    """A miner that does not answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", sock.getsockname()[1])


@pytest.fixture
def stopped():
    """The streams that were stopped, by the name they gave."""
    return []


@pytest.fixture
def prepare(stopped):
    """Handlers: one that never answers; streams that dawdle, end, or say one chunk."""

    async def never(data: dict) -> dict:
        await asyncio.Event().wait()
        return {}

    async def stream(data: dict):
        try:
            for _ in range(data.get("count", 1)):
                yield b"chunk"
                await asyncio.sleep(data.get("pause", 0))
            if not data.get("ends"):
                await asyncio.Event().wait()
        finally:
            stopped.append(data.get("count", 1))

    def prepare(server) -> None:
        server.register_async_synapse_handler("never", never)
        server.register_streaming_handler("stream", stream)

    return prepare


# Queries.


def test_a_watch_counts_from_its_beginning():
    watch = Watch(None)
    assert watch.left is None
    assert 0 <= watch.elapsed < 5
    assert 0 < Watch(5).left <= 5
    assert Watch(-1).left == 0
    assert Watch(2).expired("while testing").timeout == 2


async def test_another_timeout_is_not_the_watchs():
    async def connect() -> None:
        raise RequestTimeout("of a login")

    with pytest.raises(RequestTimeout, match="of a login"):
        await Watch(5).reached(connect())


async def test_the_total_time_is_checked(start_server, connect):
    client, axon = await connect(await start_server())
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="finite positive"):
            await client.query_axon(axon, ECHO, total_timeout_secs=wrong)
        with pytest.raises(ConfigError, match="finite positive"):
            await client.query_axon_stream(axon, ECHO, total_timeout_secs=wrong)
        with pytest.raises(ConfigError, match="finite positive"):
            await client.query_axon_stream(axon, ECHO, chunk_timeout_secs=wrong)


async def test_it_bounds_the_dial(make_client, silent_axon):
    """The attempt goes on for others, and for the back-off."""
    client = make_client(connect_timeout=2)
    await client.create_endpoint()
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match="while connecting") as caught:
        await client.query_axon(silent_axon, ECHO, total_timeout_secs=0.05)
    assert time.monotonic() - began < 1.8
    assert caught.value.timeout == 0.05
    assert caught.value.elapsed >= 0.05
    assert caught.value.address == str(silent_axon.address)
    with pytest.raises(RequestTimeout, match="while connecting"):
        await client.query_axon_stream(silent_axon, ECHO, total_timeout_secs=0.05)
    assert client._dialling == 1
    await until_async(lambda: not client._attempts)
    with pytest.raises(LightningConnectionError, match="in backoff"):
        await client.query_axon(silent_axon, ECHO, total_timeout_secs=5)


@pytest.mark.parametrize("warm", [True, False])
async def test_it_bounds_the_wait_for_the_answer(
    warm, start_server, make_client, axon_of, prepare
):
    server = await start_server(prepare)
    client, axon = make_client(), axon_of(server)
    await client.create_endpoint()
    if warm:
        assert (await client.query_axon(axon, ECHO, total_timeout_secs=5)).success
    with pytest.raises(RequestTimeout, match="while waiting for the answer") as caught:
        await client.query_axon(axon, NEVER, 5, total_timeout_secs=0.3)
    assert caught.value.timeout == 0.3
    assert 0.3 <= caught.value.elapsed < 5
    await until_async(lambda: not server._answering and not in_flight(client, server))
    with pytest.raises(RequestTimeout, match="query timed out") as own:
        await client.query_axon_with_timeout(axon, NEVER, 0.1, total_timeout_secs=5)
    assert own.value.detail == "query timed out"
    assert own.value.timeout == 0.1


async def test_it_bounds_the_sending(start_server, make_client):
    server = await start_server()
    async with udp_relay(*server.local_addr()) as relay:
        client = make_client()
        axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", relay.port)
        await client.initialize_connections([axon])
        relay.is_open = False
        with pytest.raises(RequestTimeout, match="while sending"):
            await client.query_axon(axon, LARGE, total_timeout_secs=0.1)
        relay.is_open = True
        assert (await client.query_axon(axon, ECHO, 10)).success
    await until_async(lambda: not in_flight(client, server))


def test_it_bounds_blocking_queries(
    start_blocking_server, make_blocking_client, axon_of, prepare, silent_axon
):
    server = start_blocking_server(prepare)
    client, axon = make_blocking_client(connect_timeout=0.4), axon_of(server)
    client.create_endpoint()
    assert client.query_axon(axon, ECHO, total_timeout_secs=5)["success"], "cold"
    assert client.query_axon(axon, ECHO, total_timeout_secs=5)["success"], "warm"
    assert client.query_axon(axon, LARGE, 5, total_timeout_secs=9)["success"]
    with pytest.raises(RequestTimeout, match="while connecting"):
        client.query_axon(silent_axon, ECHO, total_timeout_secs=0.05)
    with pytest.raises(RequestTimeout, match="while waiting for the answer") as caught:
        client.query_axon(axon, NEVER, 5, total_timeout_secs=0.1)
    assert caught.value.elapsed >= 0.1
    with pytest.raises(RequestTimeout) as own:
        client.query_axon_with_timeout(axon, NEVER, 0.1, total_timeout_secs=5)
    assert own.value.detail == "query timed out"
    with pytest.raises(ConfigError, match="finite positive"):
        client.query_axon(axon, ECHO, total_timeout_secs=0)
    until(lambda: not in_flight(client, server))


async def test_it_bounds_the_sending_of_a_blocking_query(
    start_server, make_blocking_client
):
    server = await start_server()
    async with udp_relay(*server.local_addr()) as relay:
        client = make_blocking_client()
        axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", relay.port)
        await asyncio.to_thread(client.initialize_connections, [axon])
        relay.is_open = False
        with pytest.raises(RequestTimeout, match="while sending"):
            await asyncio.to_thread(
                client.query_axon, axon, LARGE, total_timeout_secs=0.1
            )
        client.close()
    await until_async(lambda: not in_flight(server))


async def test_a_cancelled_query_frees_everything_at_once(
    start_server, connect, prepare
):
    """Its stream is reset, the server's handler stopped, and it counts as failed."""
    server = await start_server(prepare)
    client, axon = await connect(server)
    tasks = [asyncio.create_task(client.query_axon(axon, NEVER)) for _ in range(20)]
    await until_async(lambda: server._answering == 20)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    (stats,) = client.connections()
    assert stats.in_flight == 0
    assert stats.failures == 20
    await until_async(lambda: not server._answering)
    assert (await client.query_axon(axon, ECHO)).success


# Streams.


async def test_a_chunk_may_take_so_long(start_server, connect, prepare, stopped):
    server = await start_server(prepare)
    client, axon = await connect(server, stream_chunk_timeout=60)
    stream = await client.query_axon_stream(axon, STREAM, chunk_timeout_secs=0.05)
    assert await stream.next_chunk() == b"chunk"
    with pytest.raises(StreamError, match="chunk read timed out") as caught:
        await stream.next_chunk()
    assert caught.value.hotkey == axon.hotkey
    assert caught.value.elapsed >= 0.05
    assert await stream.next_chunk() is None, "it stays ended"
    await until_async(lambda: stopped)


async def test_a_whole_stream_may_take_so_long(start_server, connect, prepare, stopped):
    """Even if each chunk is in time, and the reader is not waiting when it is over."""
    server = await start_server(prepare)
    client, axon = await connect(server)
    request = {**STREAM, "data": {"count": 10_000, "pause": 0.01}}
    stream = await client.query_axon_stream(
        axon, request, chunk_timeout_secs=5, total_timeout_secs=0.2
    )
    with pytest.raises(StreamError, match="stream timed out after") as caught:
        await stream.collect_all()
    assert caught.value.detail == "stream timed out after 0.2s"
    assert 0.2 <= caught.value.elapsed < 5
    assert caught.value.address == str(axon.address)
    assert await stream.next_chunk() is None
    await until_async(lambda: stopped)
    idle = await client.query_axon_stream(axon, STREAM, total_timeout_secs=0.1)
    await until_async(lambda: len(stopped) == 2)
    assert await idle.next_chunk() == b"chunk", "what had come can be read"
    with pytest.raises(StreamError, match="stream timed out"):
        await idle.next_chunk()
    await until_async(lambda: not in_flight(client, server))


async def test_a_stream_that_ends_in_time_is_left_alone(start_server, connect, prepare):
    """Also where it is read, or let go of, only after its time."""
    server = await start_server(prepare)
    client, axon = await connect(server)
    request = {**STREAM, "data": {"count": 3, "ends": True}}
    stream = await client.query_axon_stream(axon, request, total_timeout_secs=0.1)
    late = await client.query_axon_stream(axon, request, total_timeout_secs=0.1)
    dropped = await client.query_axon_stream(axon, STREAM, total_timeout_secs=0.1)
    del dropped
    assert await stream.collect_all() == [b"chunk"] * 3
    await until_async(lambda: not in_flight(client, server))
    await asyncio.sleep(0.12)
    assert await stream.next_chunk() is None
    assert await late.collect_all() == [b"chunk"] * 3
    assert await late.next_chunk() is None


def test_blocking_streams_have_both_limits(
    start_blocking_server, make_blocking_client, axon_of, prepare, stopped, silent_axon
):
    server = start_blocking_server(prepare)
    client, axon = make_blocking_client(connect_timeout=0.4), axon_of(server)
    client.initialize_connections([axon])
    stream = client.query_axon_stream(axon, STREAM, chunk_timeout_secs=0.05)
    assert next(stream) == b"chunk"
    with pytest.raises(StreamError, match="chunk read timed out"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    request = {**STREAM, "data": {"count": 10_000, "pause": 0.01}}
    stream = client.query_axon_stream(axon, request, total_timeout_secs=0.2)
    with pytest.raises(StreamError, match="stream timed out after"):
        stream.collect_all()
    assert stream.next_chunk() is None
    with pytest.raises(RequestTimeout, match="while connecting"):
        client.query_axon_stream(silent_axon, STREAM, total_timeout_secs=0.05)
    until(lambda: len(stopped) == 2 and not in_flight(client, server))
