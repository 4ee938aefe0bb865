"""How long a call may take: to be sent, and then to be answered."""

import asyncio
import socket
import threading
import time

import pytest

from lightning._core.io.gathering import Gathering
from lightning._core.io.transport import ClientEndpoint, TransportConfig, write_budget
from lightning.errors import RequestTimeout
from tests.support.raw_peer import frame, raw_server
from tests.support.udp_relay import udp_relay
from tests.support.waiting import until_async
from tests.unit import test_transport
from tests.unit.test_transport import CONFIG

endpoints = test_transport.endpoints


@pytest.fixture
async def dial():
    """Connect to a port, on asyncio or for threads; closed at the end."""
    opened = []

    async def dial(port, *, threads=False):
        config = {**CONFIG, "max_frame_payload": 64 << 20}
        endpoint = ClientEndpoint(TransportConfig(**config), threads=threads)
        opened.append(endpoint)
        await endpoint.open(socket.AF_INET)
        return await endpoint.connect(("127.0.0.1", port))

    yield dial
    for endpoint in opened:
        endpoint.close("")
    await asyncio.sleep(0)


async def call(connection, body, timeout=None):
    """Ask on asyncio."""
    future = asyncio.get_running_loop().create_future()
    connection.call(frame(2, body), future, timeout)
    return (await future).answer()


async def ask(connection, body, timeout=None):
    """Ask in a thread."""
    answer = await asyncio.to_thread(connection.ask, frame(2, body), timeout)
    return answer.answer()


async def gather(connection, body, timeout=None):
    """Ask in a thread, with others."""

    def run():
        gathering = Gathering(connection)
        gathering.start(connection, frame(2, body), None, timeout)
        return gathering.wait()[0]

    return (await asyncio.to_thread(run)).answer()


async def stream(connection, body, timeout=None):
    """Ask for a streamed answer."""
    answer = asyncio.get_running_loop().create_future()
    connection.exchanges.start(
        frame(2, body),
        lambda exchange, kind, data: (
            exchange.complete(),
            answer.set_result((kind, data)),
        ),
        lambda exchange, error: answer.set_exception(error),
    )
    return await answer


WAYS = [(call, False), (ask, True), (gather, True), (stream, False)]


def test_the_write_budget_is_the_peers():
    """Five seconds, one more for each MiB that was begun, sixty at most."""
    sizes = (0, 1, 1 << 20, (1 << 20) + 1, 20_000_000, 55 << 20, 64 << 20)
    assert [write_budget(size) for size in sizes] == [5, 6, 6, 7, 25, 60, 60]


async def test_a_slow_transfer_is_not_cut_by_the_answers_timeout(endpoints, dial):
    """Of 1 MB over a path of half a MB/s, with 0.9 seconds for the answer."""
    server = await endpoints[0]()
    body = b"x" * 1_000_000

    async def transfer(way, threads):
        async with udp_relay("127.0.0.1", server.endpoint.local_addr.port) as relay:
            connection = await dial(relay.port, threads=threads)
            relay.rate = 5e5
            began = time.monotonic()
            assert await way(connection, body, 0.9) == (4, body)
            assert time.monotonic() - began > 1.6

    await asyncio.gather(*(transfer(*each) for each in WAYS[:3]))


@pytest.mark.parametrize(("way", "threads"), WAYS[:3])
async def test_the_answers_time_begins_when_the_request_is_sent(
    endpoints, dial, way, threads
):
    """It is neither over before, nor any longer after."""
    server = await endpoints[0]()
    server.answers = False
    async with udp_relay("127.0.0.1", server.endpoint.local_addr.port) as relay:
        connection = await dial(relay.port, threads=threads)
        relay.rate = 5e5
        began = time.monotonic()
        asked = asyncio.create_task(way(connection, b"x" * 300_000, 0.4))
        await until_async(lambda: server.requests)
        came = time.monotonic()
        with pytest.raises(RequestTimeout, match="query timed out") as caught:
            await asked
        assert caught.value.timeout == 0.4
        # Part of it waits in the relay, which is sent for the client already.
        assert came - began > 0.4
        assert 0.1 < time.monotonic() - came < 2
        assert not connection.under_way
        server.answers = True
        relay.rate = None
        assert await way(connection, b"again", 5) == (4, b"again")


@pytest.mark.parametrize(("way", "threads"), WAYS[:3])
async def test_a_small_request_has_the_timeout_from_the_start(
    endpoints, dial, way, threads
):
    server = await endpoints[0]()
    server.answers = False
    connection = await dial(server.endpoint.local_addr.port, threads=threads)
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match="query timed out"):
        await way(connection, b"q", 0.2)
    assert 0.2 <= time.monotonic() - began < 5  # Less than its budget.
    await until_async(lambda: not server.connections[0].under_way)


async def test_what_is_not_sent_in_its_budget_is_given_up(dial):
    """By every way to ask, with a timeout or without; the windows are the peer's.

    A server that goes on answering and takes no more of it.
    """

    def answer(connection, stream, kind, payload):
        connection.send(stream.id, frame(4, payload), True)

    async with raw_server(answer, max_data=1 << 20, max_stream_data=50_000) as server:
        connections = [await dial(server.port, threads=t) for _, t in WAYS]
        for raw in server.connections:
            raw._quic._write_stream_limits = lambda builder, space, stream: None
        tasks = [
            asyncio.create_task(way(connection, b"x" * 100_000, timeout))
            for (way, _), connection in zip(WAYS, connections, strict=True)
            for timeout in (None, 0.5)
        ]
        began = time.monotonic()
        small = connections[0]
        while not tasks[0].done():
            # A small one beside it goes through.
            assert await call(small, b"q", 20) == (4, b"q")
            await asyncio.sleep(0.5)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        took = time.monotonic() - began
        assert 5.9 < took < 20
        for error in done:
            assert type(error) is RequestTimeout
            assert error.timeout == 6
            text = "request transfer timed out after 6 s ("
            assert error.detail.startswith(text)
            left = int(error.detail.removeprefix(text).split()[0])
            assert 50_000 <= left <= 100_005
        for connection in connections:
            assert connection.under_way == 0
            assert connection.numbers().failures == 2
            assert connection.is_alive


async def test_calls_that_wait_for_a_stream(dial):
    """With a timeout they wait no longer, without one as long as it takes."""
    held = []

    def answer(connection, stream, kind, payload):
        held.append((connection, stream))

    async with raw_server(answer) as server:
        connection = await dial(server.port)
        raw = server.connections[0]
        raw._quic._local_max_streams_bidi.value = 128  # It stays at that.
        first = [connection.call(frame(2, b"q"), asyncio.Future()) for _ in range(128)]
        await until_async(lambda: len(held) == 128)
        patient = asyncio.create_task(call(connection, b"q"))
        with pytest.raises(RequestTimeout, match="query timed out"):
            await call(connection, b"q", 0.2)
        assert not patient.done()
        for one in first:
            one.cancel()
        patient.cancel()


def test_many_calls_end_in_time(start_blocking_server, make_blocking_client, axon_of):
    """Thousands, each with its own timeout: none early, and the rest goes on."""
    server = start_blocking_server(lambda server: None)
    client = make_blocking_client()
    axon = axon_of(server)
    client.initialize_connections([axon])
    gate = threading.Event()
    server.register_synapse_handler("wait", lambda data: gate.wait(20) and data)
    connection = client._client._connection_to(axon)
    gathering = Gathering(connection)
    request = client._client._encode({"synapse_type": "wait", "data": {}})
    began = time.monotonic()
    for i in range(3000):
        gathering.start(connection, request, i, 0.5 + i / 3000)
    late = []
    while len(late) < 3000:
        for each in gathering.wait():
            late.append((each.future, time.monotonic() - began, each))
    gate.set()
    for i, took, each in late:
        assert took >= 0.5 + i / 3000
        with pytest.raises(RequestTimeout):
            each.answer()
    assert time.monotonic() - began < 10


async def test_a_request_is_not_sent_because_an_earlier_one_was(endpoints, dial):
    """The records of streams are used again."""
    server = await endpoints[0]()
    async with udp_relay("127.0.0.1", server.endpoint.local_addr.port) as relay:
        connection = await dial(relay.port)
        for _ in range(20):
            await call(connection, b"x", 5)
        relay.is_open = False
        future = asyncio.get_running_loop().create_future()
        large = connection.call(frame(2, b"x" * (4 << 20)), future, 0.05)
        assert large.is_sending
        await asyncio.sleep(0.1)
        assert large.is_sending
        assert not future.done(), "its time has not begun"
        large.cancel()
        assert not large.is_sending
