"""Streamed answers, on asyncio and for blocking callers."""

import asyncio
import gc
import threading

import pytest

from lightning import (
    AsyncLightning,
    BlockingStreamingResponse,
    Lightning,
    StreamingResponse,
)
from lightning import streaming as streaming_module
from lightning._core.io import transport
from lightning._core.wire.messages import StreamChunk, StreamEnd
from lightning.errors import ConnectionClosed, StreamError
from lightning.streaming import CHUNK_OVERHEAD, HIGH_WATER
from tests.support.identities import VALIDATOR, VALIDATOR_HOTKEY
from tests.support.inspection import connections, in_flight
from tests.support.raw_peer import raw_server
from tests.support.waiting import until, until_async

BIG = 256 * 1024
REQUEST = {"synapse_type": "s", "data": {}}
ECHO = {"synapse_type": "echo", "data": {"n": 1}}
CHUNKS = [b"one", b"", b"x" * 100_000, b"three"]


class Endless:
    """A handler that yields chunks for ever, and notes how far it came."""

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self.made = 0
        self.closed = threading.Event()

    def sync(self, data: dict):
        try:
            while True:
                self.made += 1
                yield bytes(self.size)
        finally:
            self.closed.set()

    async def asynchronous(self, data: dict):
        try:
            while True:
                self.made += 1
                yield bytes(self.size)
        finally:
            self.closed.set()


def streams(handler):
    return lambda server: server.register_streaming_handler("s", handler)


async def emit(data: dict):
    for chunk in CHUNKS:
        yield chunk


@pytest.fixture
def open_stream(start_server, connect):
    """Open a stream of a handler on a new connection."""

    async def open_stream(handler=emit, **settings):
        server = await start_server(streams(handler))
        client, axon = await connect(server, **settings)
        return await client.query_axon_stream(axon, REQUEST), client, axon, server

    return open_stream


# On asyncio.


async def test_chunks_come_as_they_were_sent(open_stream):
    stream, client, axon, _ = await open_stream()
    assert isinstance(stream, StreamingResponse)
    assert [chunk async for chunk in stream] == CHUNKS
    for _ in range(2):
        assert [chunk async for chunk in stream] == [], "after its end it stays ended"
        assert await stream.next_chunk() is None
        assert await stream.collect_all() == []
    stream.close()
    stream = await client.query_axon_stream(axon, REQUEST)
    assert await stream.next_chunk() == b"one"
    assert await stream.collect_all() == CHUNKS[1:]
    assert not in_flight(client)


async def test_a_stream_may_have_no_chunks(open_stream):
    stream, _, _, _ = await open_stream(lambda data: iter([]))
    assert await stream.collect_all() == []


@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_a_failure_is_raised_in_its_place(chunks, open_stream):
    """Field case C7: before the first chunk, in the middle, after the last."""

    async def fail(data: dict):
        for n in range(chunks):
            yield str(n).encode()
        raise RuntimeError("secret")

    stream, client, axon, _ = await open_stream(fail)
    for n in range(chunks):
        assert await stream.next_chunk() == str(n).encode()
    with pytest.raises(StreamError, match="stream processing failed"):
        await stream.next_chunk()
    assert await stream.next_chunk() is None
    assert (await client.query_axon(axon, ECHO)).success


async def test_chunks_are_delivered_as_soon_as_they_are_made(open_stream):
    steps = [asyncio.Event() for _ in range(3)]

    async def step_by_step(data: dict):
        for step in steps:
            await step.wait()
            yield b"x"

    stream, _, _, _ = await open_stream(step_by_step)
    for step in steps:
        waiting = asyncio.create_task(stream.next_chunk())
        await asyncio.sleep(0)
        assert not waiting.done()
        step.set()
        assert await waiting == b"x"
    assert await stream.next_chunk() is None


async def test_collecting_has_a_limit(start_server, connect, make_client, axon_of):
    """The sum of chunks may be the limit, but no byte more."""
    limit = 1 << 20

    async def sized(data: dict):
        left = data["size"]
        while left:
            piece = min(left, 100_000)
            left -= piece
            yield bytes(piece)

    server = await start_server(streams(sized))
    client, axon = await connect(
        server, max_frame_payload_bytes=limit, max_stream_payload_bytes=limit
    )
    for size, fits in ((limit, True), (limit + 1, False)):
        request = {"synapse_type": "s", "data": {"size": size}}
        stream = await client.query_axon_stream(axon, request)
        if fits:
            assert sum(map(len, await stream.collect_all())) == limit
        else:
            text = f"stream payload {size} bytes exceeds maximum {limit}"
            with pytest.raises(StreamError, match=text):
                await stream.collect_all()
            assert await stream.next_chunk() is None
    await until_async(lambda: not in_flight(client, server))


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
@pytest.mark.parametrize("way", ["close", "with", "break", "drop", "unread"])
async def test_whoever_drops_it_early_stops_the_handler(
    way, kind, start_server, connect
):
    handler = Endless()
    server = await start_server(streams(getattr(handler, kind)))
    client, axon = await connect(server)
    stream = await client.query_axon_stream(axon, REQUEST)
    if way == "close":
        assert await stream.next_chunk()
        stream.close()
        stream.close()
        assert await stream.next_chunk() is None
    elif way == "with":
        async with stream:
            assert await stream.next_chunk()
        assert await stream.next_chunk() is None
    elif way == "break":
        async for _ in stream:
            break
        del stream
    elif way == "drop":
        assert await stream.next_chunk()
        del stream
    else:
        await until_async(lambda: handler.made)
        del stream
    gc.collect()
    await until_async(handler.closed.is_set)
    await until_async(lambda: not in_flight(client, server) and not server._answering)
    assert (await client.query_axon(axon, ECHO)).success


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
async def test_who_does_not_read_holds_up_the_handler(kind, start_server, connect):
    """Field case A4: memory stays bounded, and it goes on when it is read."""
    handler = Endless(BIG)
    server = await start_server(streams(getattr(handler, kind)))
    client, axon = await connect(server)
    stream = await client.query_axon_stream(axon, REQUEST)
    (connection,) = connections(server)
    # The answer waits for the client's window.
    await until_async(lambda: stream._paused and connection._drains)
    ahead = server.config.streaming_channel_buffer if kind == "sync" else 1
    if kind == "sync":
        await until_async(lambda: handler.made > ahead)
    for _ in range(20):
        assert (await client.query_axon(axon, ECHO)).success, "others are served"
    window = 2 * transport.STREAM_WINDOW
    most = HIGH_WATER + window + transport.SEND_HIGH_WATER
    assert stream._buffered <= HIGH_WATER + window
    assert (handler.made - ahead) * BIG <= most + 3 * BIG
    made = handler.made
    for _ in range(60):
        assert len(await stream.next_chunk()) == BIG
    assert handler.made > made
    stream.close()
    await until_async(handler.closed.is_set)


async def test_empty_chunks_are_not_free(start_server, connect, monkeypatch):
    monkeypatch.setattr(streaming_module, "HIGH_WATER", 100 * CHUNK_OVERHEAD)
    handler = Endless(0)

    server = await start_server(streams(handler.asynchronous))
    client, axon = await connect(server)
    stream = await client.query_axon_stream(axon, REQUEST)
    await until_async(lambda: stream._paused)
    # A hundred, and what one piece of 64 KiB brings.
    assert len(stream._frames) <= 100 + 65536 // 8
    stream.close()
    await until_async(handler.closed.is_set)


async def test_two_hundred_streams_where_eight_are_allowed(start_server, connect):
    """Field case B7: those beyond the limit wait for their turn, none hangs."""

    async def count(data: dict):
        for n in range(3):
            yield bytes([data["n"], n])

    server = await start_server(streams(count), max_concurrent_bidi_streams=8)
    client, axon = await connect(server)

    async def collect(n: int) -> list[bytes]:
        request = {"synapse_type": "s", "data": {"n": n}}
        async with await client.query_axon_stream(axon, request) as stream:
            return await stream.collect_all()

    answers = await asyncio.gather(*(collect(n) for n in range(200)))
    assert answers == [[bytes([n, m]) for m in range(3)] for n in range(200)]


async def test_a_stream_that_waits_for_its_turn_can_be_dropped(start_server, connect):
    handler = Endless()
    server = await start_server(
        streams(handler.asynchronous), max_concurrent_bidi_streams=1
    )
    client, axon = await connect(server)
    first = await client.query_axon_stream(axon, REQUEST)
    assert await first.next_chunk()
    waiting = await client.query_axon_stream(axon, REQUEST)
    assert in_flight(client) == 2
    waiting.close()
    assert in_flight(client) == 1
    first.close()
    assert (await client.query_axon(axon, ECHO, 10)).success


async def test_a_cancelled_read_loses_nothing(open_stream):
    go_on = asyncio.Event()

    async def slowly(data: dict):
        yield b"one"
        await go_on.wait()
        yield b"two"

    stream, _, _, _ = await open_stream(slowly)
    assert await stream.next_chunk() == b"one"
    for turns in range(5):
        task = asyncio.create_task(stream.next_chunk())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    go_on.set()
    assert await stream.collect_all() == [b"two"]


async def test_one_reader_at_a_time(open_stream):
    async def silent(data: dict):
        await asyncio.Event().wait()
        yield b""

    stream, _, _, _ = await open_stream(silent)
    first = asyncio.create_task(stream.next_chunk())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task is already waiting"):
        await stream.next_chunk()
    assert not first.done()
    stream.close()
    assert await first is None, "a close wakes who waits"


async def test_what_came_before_the_end_of_the_connection_is_delivered(open_stream):
    async def two(data: dict):
        yield b"one"
        yield b"two"
        await asyncio.Event().wait()

    stream, _, axon, server = await open_stream(two)
    await until_async(lambda: len(stream._frames) == 2)
    await server.stop(0)
    await until_async(lambda: stream._error is not None)
    assert await stream.next_chunk() == b"one"
    assert await stream.next_chunk() == b"two"
    with pytest.raises(ConnectionClosed, match="server_shutdown") as caught:
        await stream.next_chunk()
    assert (caught.value.initiator, caught.value.code) == ("remote", 0)
    assert await stream.next_chunk() is None
    stream.close()
    assert axon


async def test_a_connection_that_ends_under_a_dropped_stream(open_stream):
    stream, client, _, _ = await open_stream()
    (connection,) = connections(client)
    del stream
    connection.close()
    assert not len(connection.exchanges)


async def test_a_stream_cannot_be_started_on_a_dead_connection(open_stream):
    stream, client, _, _ = await open_stream()
    (connection,) = connections(client)
    connection.close("why")
    with pytest.raises(ConnectionClosed, match="why"):
        StreamingResponse(connection.exchanges, b"", None, 1)
    with pytest.raises(ConnectionClosed, match="why"):
        await stream.collect_all()


async def test_chunks_after_the_end_are_ignored(make_client):
    """A peer's stream is over with its StreamEnd, whatever it sends then."""
    data = StreamChunk(b"x").to_frame() + StreamEnd(True, None).to_frame()
    data += StreamChunk(b"late").to_frame()
    async with raw_server(lambda c, s, kind, payload: c.send(s.id, data)) as raw:
        client = make_client()
        await client.initialize_connections([raw.axon])
        stream = await client.query_axon_stream(raw.axon, REQUEST)
        assert await stream.collect_all() == [b"x"]
        (answered,) = [s for s in raw.connections[0].streams.values() if s.data[0] == 3]
        await answered.until(lambda: answered.stopped == 0)
        raw.connections[0].reset(answered.id, 0)


async def test_what_is_there_can_be_taken_without_waiting(open_stream):
    stream, _, _, _ = await open_stream()
    await until_async(lambda: len(stream._frames) == 5)
    assert [stream.take() for _ in range(6)] == [*CHUNKS, None, None]


def test_a_stream_left_over_from_a_loop_that_is_gone(start_blocking_server, axon_of):
    """Collecting it is silent, and its connection is gone with the loop."""
    handler = Endless()
    server = start_blocking_server(streams(handler.sync))
    left = []

    async def begin() -> None:
        async with AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
            stream = await client.query_axon_stream(axon_of(server), REQUEST)
            assert await stream.next_chunk()
            left.append(stream)

    asyncio.run(begin())
    left.clear()
    gc.collect()
    assert handler.closed.wait(10)


# For blocking callers.


@pytest.fixture
def open_blocking(start_blocking_server, make_blocking_client, axon_of):
    """Open a blocking stream of a handler on a new connection."""

    def open_blocking(handler=emit, **settings):
        server = start_blocking_server(streams(handler))
        client = make_blocking_client(**settings)
        axon = axon_of(server)
        client.initialize_connections([axon])
        return client.query_axon_stream(axon, REQUEST), client, axon, server

    return open_blocking


def test_a_blocking_stream(open_blocking):
    stream, client, axon, _ = open_blocking()
    assert isinstance(stream, BlockingStreamingResponse)
    assert list(stream) == CHUNKS
    assert list(stream) == [], "after its end it stays ended"
    assert stream.next_chunk() is None
    with pytest.raises(StopIteration):
        next(stream)
    stream = client.query_axon_stream(axon, REQUEST)
    assert next(stream) == b"one"
    assert stream.collect_all() == CHUNKS[1:]
    stream.close()


def test_a_blocking_stream_that_fails(open_blocking):
    def fail(data: dict):
        yield b"one"
        raise RuntimeError("secret")

    stream, client, axon, _ = open_blocking(fail)
    assert next(stream) == b"one"
    with pytest.raises(StreamError, match="stream processing failed"):
        next(stream)
    assert list(stream) == []
    assert client.query_axon(axon, ECHO)["success"]


def test_a_blocking_stream_that_keeps_its_reader_waiting(open_blocking):
    release = threading.Event()

    def slowly(data: dict):
        yield b"one"
        release.wait(10)
        yield b"two"

    stream, _, _, _ = open_blocking(slowly, stream_chunk_timeout=0.1)
    assert next(stream) == b"one"
    with pytest.raises(StreamError, match="chunk read timed out"):
        next(stream)
    release.set()


@pytest.mark.parametrize("way", ["close", "with", "drop", "break"])
def test_whoever_drops_a_blocking_stream_stops_the_handler(way, open_blocking):
    handler = Endless()
    stream, client, axon, server = open_blocking(handler.sync)
    assert next(stream)
    if way == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif way == "with":
        with stream as same:
            assert same is stream
    elif way == "break":
        for _ in stream:
            break
        del stream
    else:
        del stream
    assert handler.closed.wait(10)
    until(lambda: not in_flight(client, server))
    assert client.query_axon(axon, ECHO)["success"]


def test_who_does_not_read_a_blocking_stream_holds_up_the_handler(open_blocking):
    handler = Endless(BIG)
    stream, _, _, server = open_blocking(handler.sync)
    (connection,) = connections(server)
    until(lambda: connection._drains and stream._stream._paused)
    until(lambda: handler.made > server.config.streaming_channel_buffer)
    made = handler.made
    for _ in range(60):
        assert len(next(stream)) == BIG
    assert handler.made > made
    stream.close()
    assert handler.closed.wait(10)


def test_a_client_that_is_closed_leaves_what_had_come(open_blocking):
    def two(data: dict):
        yield b"one"
        yield b"two"
        closed.wait(10)

    closed = threading.Event()
    stream, client, _, _ = open_blocking(two)
    until(lambda: len(stream._stream._frames) == 2)
    client.close()
    assert next(stream) == b"one"
    assert next(stream) == b"two"
    with pytest.raises(ConnectionClosed, match="client_shutdown"):
        next(stream)
    assert list(stream) == []
    stream.close()
    assert not client._io.is_running, "reading did not start it again"
    closed.set()


def test_what_had_come_can_be_collected_after_a_close(open_blocking):
    stream, client, _, _ = open_blocking()
    until(lambda: len(stream._stream._frames) == 5)
    client.close()
    assert stream.collect_all() == CHUNKS
    assert stream.collect_all() == []


def test_a_stream_of_an_older_life_of_the_client(open_blocking):
    """It does not read on the new loop what belongs to the old one."""
    stream, client, axon, _ = open_blocking()
    until(lambda: len(stream._stream._frames) == 5)
    client.close()
    client.initialize_connections([axon])
    assert stream.collect_all() == CHUNKS
    assert client.query_axon_stream(axon, REQUEST).collect_all() == CHUNKS


def test_a_stream_keeps_its_client(start_blocking_server, axon_of):
    """As in ``for chunk in Lightning(...).query_axon_stream(...)``."""
    server = start_blocking_server(streams(emit))

    def ask() -> BlockingStreamingResponse:
        client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
        client.initialize_connections([axon_of(server)])
        return client.query_axon_stream(axon_of(server), REQUEST)

    stream = ask()
    gc.collect()
    assert list(stream) == CHUNKS
    del stream
    gc.collect()
    until(
        lambda: not [t for t in threading.enumerate() if t.name == "lightning-client"]
    )
