"""Asking miners from any event loop and any thread."""

import asyncio
import gc
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning import LightningClientConfig, QuicAxonInfo
from lightning.dropin import anywhere
from lightning.dropin.anywhere import Anywhere
from lightning.errors import (
    ConfigError,
    ConnectionClosed,
    EncodeError,
    FrameTooLarge,
    LightningConnectionError,
    RequestTimeout,
    StreamError,
)
from tests.support.census import census, grown
from tests.support.identities import MINER, VALIDATOR, VALIDATOR_HOTKEY
from tests.support.inspection import connections
from tests.support.waiting import until, until_async

BIG = 1 << 18


@pytest.fixture(autouse=True)
def close():
    """Have nothing linger."""
    yield
    gc.collect()
    Anywhere.close_idle()


@pytest.fixture
def shared():
    """Make shares of the validator's client; they are given back at the end."""
    made = []

    def make(**settings):
        config = LightningClientConfig(**settings) if settings else None
        made.append(Anywhere.shared(VALIDATOR_HOTKEY, VALIDATOR, config))
        return made[-1]

    yield make
    for each in made:
        each.release()


@pytest.fixture
def silent():
    """Describe a miner that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield QuicAxonInfo(MINER.ss58_address, *sock.getsockname())


@pytest.fixture
def waiting_server(start_blocking_server):
    """A server with handlers that never end, and what became of them."""
    begun, ended = [], []

    async def wait(data):
        begun.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def drip(data):
        begun.append(1)
        try:
            while True:
                yield b"x" * data.get("size", 1)
                await asyncio.sleep(0)
        finally:
            ended.append(1)

    async def fail(data):
        yield b"first"
        raise ValueError

    async def count(data):
        for n in range(data["n"]):
            yield b"%d" % n

    def prepare(server):
        server.register_async_synapse_handler("wait", wait)
        for handler in (drip, fail, count):
            server.register_streaming_handler(handler.__name__, handler)

    server = start_blocking_server(prepare)
    server.begun, server.ended = begun, ended
    return server


async def echo(way, axon, data, timeout=10, **limits):
    return await way.ask(axon, way.encode("echo", data), timeout, **limits)


def calls_of(way):
    """Count the calls that the inboxes know."""
    return sum(len(inbox) for c in way._core._corners.values() for inbox in c._inboxes)


def test_each_run_of_a_loop_finds_the_connection(
    start_blocking_server, axon_of, shared
):
    """The first ask dials, and says how long that took."""
    server = start_blocking_server()
    axon, way = axon_of(server), shared()
    assert not way.is_connected(axon)
    first = asyncio.run(echo(way, axon, {"n": 1}))
    assert (first.success, first.data, first.error) == (True, {"n": 1}, None)
    assert 0 < first.seconds < 10
    assert 0 < first.connect_seconds < 10
    assert way.is_connected(axon)
    for n in range(3):
        answer = asyncio.run(echo(way, axon, {"n": n}))
        assert answer.data == {"n": n}
        assert answer.connect_seconds == 0.0
    assert len(list(connections(server))) == 1


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_loops_of_several_threads_ask_at_once(
    kind, start_blocking_server, axon_of, shared
):
    """All get their own answers, over one connection."""
    run = asyncio.run if kind == "asyncio" else pytest.importorskip(kind).run
    server = start_blocking_server()
    axon, way = axon_of(server), shared()

    async def ask(who):
        async def some(part):
            for n in range(10):
                data = {"n": [who, part, n], "more": b"x" * (BIG if n == 5 else 1)}
                assert (await echo(way, axon, data)).data == data

        await asyncio.gather(*(some(part) for part in range(8)))
        for n in range(40):
            assert (await echo(way, axon, {"n": n})).data == {"n": n}

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(run, ask(who)) for who in range(3)]:
            done.result(25)
    assert len(list(connections(server))) == 1
    assert calls_of(way) == 0


def test_a_thousand_are_in_flight_at_once(start_blocking_server, axon_of, shared):
    """More than a connection may have: the others wait for a stream."""
    server = start_blocking_server()
    axon, way = axon_of(server), shared()

    async def main():
        asks = (echo(way, axon, {"n": n}) for n in range(1000))
        answers = await asyncio.gather(*asks)
        assert [answer.data["n"] for answer in answers] == list(range(1000))

    asyncio.run(main())


def test_many_are_asked_without_a_task_each(waiting_server, axon_of, shared):
    """Outcomes are in order, each with what `ask` would raise."""
    axon, way = axon_of(waiting_server), shared()
    dead = QuicAxonInfo(VALIDATOR_HOTKEY, "127.0.0.1", 9)

    async def main():
        await echo(way, axon, {})
        wanted = [(axon, way.encode("echo", {"n": n})) for n in range(20)]
        wanted[7] = (dead, wanted[7][1])
        wanted[9] = (axon, way.encode("wait", {}))
        wanted[11] = (axon, way.encode("echo", {"n": b"x" * BIG}))
        outcomes = await way.ask_many(wanted, 0.5, max_bytes=1000)
        assert isinstance(outcomes[7], LightningConnectionError)
        assert isinstance(outcomes[9], RequestTimeout)
        assert isinstance(outcomes[11], FrameTooLarge)
        for n in set(range(20)) - {7, 9, 11}:
            assert outcomes[n].data == {"n": n}
        assert {outcomes[n].hotkey for n in (9, 11)} == {axon.hotkey}
        many = asyncio.create_task(way.ask_many([(axon, wanted[9][1])] * 5, None))
        await until_async(lambda: calls_of(way) == 5)
        assert len(asyncio.all_tasks()) == 2
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many
        assert calls_of(way) == 0

    asyncio.run(main())


def test_whoever_is_cancelled_or_late_leaves_nothing(waiting_server, axon_of, shared):
    """The handler is stopped by the reset, and the desk forgets the call."""
    server, way = waiting_server, shared()
    axon = axon_of(server)

    async def main():
        frame = way.encode("wait", {})
        task = asyncio.create_task(way.ask(axon, frame, None))
        await until_async(lambda: server.begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_async(lambda: len(server.ended) == 1)
        with pytest.raises(RequestTimeout) as caught:
            await way.ask(axon, frame, 0.05)
        assert caught.value.timeout == 0.05
        assert caught.value.hotkey == axon.hotkey
        assert calls_of(way) == 0
        await until_async(lambda: len(server.ended) == 2)

    asyncio.run(main())


def test_the_time_of_a_dial_counts(waiting_server, axon_of, shared):
    """One limit for all of a call that has to connect first."""
    axon, way = axon_of(waiting_server), shared()

    async def main():
        with pytest.raises(RequestTimeout) as caught:
            await way.ask(axon, way.encode("wait", {}), 0.3)
        assert caught.value.timeout == 0.3

    asyncio.run(main())


def test_a_call_gives_up_its_own_wait_for_a_connection(silent, shared):
    """The attempt goes on for the others."""
    way = shared(connect_timeout=2.0)

    async def main():
        other = asyncio.create_task(echo(way, silent, {}))
        with pytest.raises(LightningConnectionError, match=r"within 0\.05s"):
            await echo(way, silent, {}, connect_timeout=0.05)
        with pytest.raises(RequestTimeout, match="while connecting"):
            await echo(way, silent, {}, 0.05)
        assert not other.done()
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other

    asyncio.run(main())


def test_bad_arguments_are_told_before_anything_is_sent(silent, shared):
    way = shared()
    with pytest.raises(EncodeError):
        way.encode("echo", {"x": object()})
    with pytest.raises(ConfigError):
        asyncio.run(echo(way, silent, {}, -1))
    with pytest.raises(ConfigError):
        asyncio.run(echo(way, silent, {}, 1, connect_timeout=-1))


def test_an_answer_has_the_limit_of_its_call(start_blocking_server, axon_of, shared):
    """Both below that of the client and above."""
    axon = axon_of(start_blocking_server())
    way = shared(max_frame_payload_bytes=1 << 20)

    async def main():
        with pytest.raises(FrameTooLarge) as caught:
            await echo(way, axon, {"x": b"x" * 500}, max_bytes=100)
        assert caught.value.limit == 100
        much = b"x" * ((1 << 20) - 60)
        with pytest.raises(FrameTooLarge):
            await way.ask(
                axon, way.encode("echo", {"x": much}), 10, max_bytes=1 << 20 >> 1
            )
        answer = await echo(way, axon, {"x": much}, max_bytes=2 << 20)
        assert answer.data["x"] == much

    asyncio.run(main())


def test_a_server_that_comes_back_is_reached_again(
    start_blocking_server, axon_of, shared
):
    """What was under way ends by name, also where nobody has read its answer."""
    server = start_blocking_server()
    axon, way = axon_of(server), shared()

    async def main():
        await echo(way, axon, {})
        unread = asyncio.create_task(echo(way, axon, {"n": 1}))
        await asyncio.sleep(0)
        unread.cancel()
        await asyncio.to_thread(server.stop)
        await until_async(lambda: not way.is_connected(axon))
        await asyncio.to_thread(server.start)
        again = QuicAxonInfo(axon.hotkey, *server.local_addr())
        assert (await echo(way, again, {"n": 2})).data == {"n": 2}

    asyncio.run(main())


def test_a_closed_client_ends_what_waits(waiting_server, axon_of, make_blocking_client):
    """No caller waits for ever, and the client may be used again."""
    client = make_blocking_client()
    way, axon = Anywhere.of(client), axon_of(waiting_server)

    async def main():
        task = asyncio.create_task(way.ask(axon, way.encode("wait", {}), None))
        await until_async(lambda: waiting_server.begun)
        await asyncio.to_thread(client.close)
        with pytest.raises(ConnectionClosed):
            await task
        assert (await echo(way, axon, {"n": 1})).data == {"n": 1}
        (corner,) = way._core._corners.values()
        assert len(corner._inboxes) == 1
        way.release()
        await until_async(lambda: not corner._inboxes)

    asyncio.run(main())


async def test_a_users_client_is_used_on_its_loop_and_on_others(
    start_server, make_client, axon_of
):
    """On its own one there is nothing between."""
    server = await start_server()
    client, axon = make_client(), axon_of(server)
    way = Anywhere.of(client)
    assert (await echo(way, axon, {"n": 0})).data == {"n": 0}
    assert client._loop is asyncio.get_running_loop()
    (corner,) = way._core._corners.values()
    assert corner._inboxes == []
    assert (await echo(way, axon, {"n": 1})).data == {"n": 1}

    async def elsewhere():
        for n in range(3):
            assert (await echo(way, axon, {"n": n})).data == {"n": n}
        stream = await way.stream(axon, "echo", {}, 5)
        with pytest.raises(StreamError):
            await anext(stream)

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert len(list(connections(server))) == 1


def test_a_loop_that_is_closed_with_calls_under_way_leaks_nothing(
    waiting_server, axon_of, shared
):
    """Its calls are dropped when another loop comes."""
    server, way = waiting_server, shared()
    axon = axon_of(server)
    asyncio.run(echo(way, axon, {}))

    async def begin():
        loop = asyncio.get_running_loop()
        corner, count = way._core.corner(loop), len(server.begun)
        connection = way._client._connection_to(axon)
        corner.start(connection, way.encode("wait", {}), loop, None, None)
        await until_async(lambda: len(server.begun) > count)

    descriptors = []
    for _ in range(20):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()
        del loop
        assert calls_of(way) == 1
        asyncio.run(echo(way, axon, {}))
        assert calls_of(way) == 0
        gc.collect()
        if os.path.isdir("/proc"):
            descriptors.append(len(os.listdir("/proc/self/fd")))
    until(lambda: len(server.ended) == 20)
    assert not descriptors or descriptors[-1] < descriptors[0] + 10


def test_asking_leaves_memory_as_it_is(start_blocking_server, axon_of, shared):
    axon, way = axon_of(start_blocking_server()), shared()

    async def some():
        for n in range(25):
            await asyncio.gather(*(echo(way, axon, {"n": n}) for _ in range(20)))

    asyncio.run(some())
    before = census(way)
    for _ in range(4):
        asyncio.run(some())

    # The allocators of sanitizers keep what was freed.
    room = 1 << 40 if "san.so" in os.environ.get("LD_PRELOAD", "") else 8 << 20
    kept = {"allocated": room, "engine.blocks_in_use": 64, "asyncio.Future": 64}
    found = {}

    def is_as_before():
        found.clear()
        found.update(grown(before, census(way), memory=room, allowed=kept))
        return not found

    try:
        until(is_as_before)
    finally:
        assert found == {}


# Sharing.


def test_users_of_a_hotkey_share_one_client(shared):
    """The first one's settings count until all have gone."""
    first = shared()
    assert first.config.max_connections == 4096
    second = shared(max_connections=7)
    assert second._client is first._client
    first.release()
    first.release()
    assert shared()._client is second._client
    assert repr(first) == f"<Anywhere {VALIDATOR_HOTKEY}>"


def test_another_config_makes_a_client_once_all_have_gone(
    start_blocking_server, axon_of, shared
):
    """A user with the same one, or none, finds the connections; the others dial."""
    axon = axon_of(start_blocking_server())
    way = shared(max_connections=7)
    asyncio.run(echo(way, axon, {}))
    way.release()
    for settings in ({"max_connections": 7}, {}):
        way = shared(**settings)
        assert way.is_connected(axon)
        way.release()
    way = shared(max_connections=8)
    assert not way.is_connected(axon)
    assert way.config.max_connections == 8
    asyncio.run(echo(way, axon, {}))


def test_a_client_without_users_is_closed_in_time(
    start_blocking_server, axon_of, shared, monkeypatch
):
    """Dropping a share is as good as to give it back; coming back in time keeps it."""
    monkeypatch.setattr(anywhere, "LINGER", 0.2)
    server = start_blocking_server()
    axon = axon_of(server)
    way = Anywhere.shared(VALIDATOR_HOTKEY, VALIDATOR)
    asyncio.run(echo(way, axon, {}))
    way.release()
    again = shared()
    assert again.is_connected(axon)
    del way
    threads = threading.active_count()
    again.release()
    until(lambda: not list(connections(server)))
    until(lambda: threading.active_count() < threads)
    assert not anywhere._share.clients
    asyncio.run(echo(shared(), axon, {}))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_is_told_and_may_have_its_own(start_blocking_server, axon_of, shared):
    """What it has of its parent is of no use to it, and the parent goes on."""
    server = start_blocking_server()
    axon, way = axon_of(server), shared()
    asyncio.run(echo(way, axon, {}))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                asyncio.run(echo(way, axon, {}))
            except RuntimeError as error:
                os.write(write, str(error).encode())
            own = Anywhere.shared(VALIDATOR_HOTKEY, VALIDATOR)
            os.write(write, repr(asyncio.run(echo(own, axon, {"n": 1})).data).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    assert "made before a fork" in told
    assert told.endswith("{'n': 1}")
    # The child's login took the connection, as another process' would.
    until(lambda: not way.is_connected(axon))


# Streams.


def test_a_stream_is_read_on_any_loop(waiting_server, axon_of, shared):
    """All chunks come, in order, and then its end and nothing else."""
    axon, way = axon_of(waiting_server), shared()

    async def read(n):
        stream = await way.stream(axon, "count", {"n": n}, 10)
        chunks = [chunk async for chunk in stream]
        assert [chunk async for chunk in stream] == []
        return chunks

    for n in (0, 1, 500):
        assert asyncio.run(read(n)) == [b"%d" % i for i in range(n)]


def test_leaving_a_stream_stops_its_handler(waiting_server, axon_of, shared):
    """Closed, dropped, left as a context or out of time."""
    server, way = waiting_server, shared()
    axon = axon_of(server)

    async def main():
        async with await way.stream(axon, "drip", {}, 10) as stream:
            assert await anext(stream) == b"x"
        await until_async(lambda: len(server.ended) == 1)
        stream = await way.stream(axon, "drip", {}, 10)
        assert await anext(stream) == b"x"
        del stream
        await until_async(lambda: len(server.ended) == 2)
        with pytest.raises(StreamError, match="timed out"):
            async for _ in await way.stream(axon, "drip", {}, 0.3):
                pass
        await until_async(lambda: len(server.ended) == 3)

    asyncio.run(main())


def test_a_stream_that_nobody_reads_is_held_up(waiting_server, axon_of, shared):
    """So much is read ahead and no more; it goes on when it is read."""
    axon, way = axon_of(waiting_server), shared()

    async def main():
        stream = await way.stream(axon, "drip", {"size": 1 << 16}, 20)
        pipe = stream._pipe
        await until_async(lambda: pipe._is_stuck)
        assert len(pipe._chunks) <= anywhere.CHUNKS_AHEAD
        assert pipe._size <= anywhere.BYTES_AHEAD + (1 << 16)
        for _ in range(100):
            assert len(await anext(stream)) == 1 << 16
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())


def test_a_handler_that_fails_ends_the_stream_by_name(waiting_server, axon_of, shared):
    axon, way = axon_of(waiting_server), shared()

    async def main():
        stream = await way.stream(axon, "fail", {}, 10)
        assert await anext(stream) == b"first"
        with pytest.raises(StreamError):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())


def test_a_dead_miner_is_a_named_error(shared):
    """Nobody listens there."""
    way = shared()
    axon = QuicAxonInfo(VALIDATOR_HOTKEY, "127.0.0.1", 9)

    async def main():
        with pytest.raises(LightningConnectionError, match=r"127\.0\.0\.1:9") as caught:
            await echo(way, axon, {})
        assert caught.value.hotkey == VALIDATOR_HOTKEY
        with pytest.raises(LightningConnectionError):
            await way.stream(axon, "count", {}, 5)

    asyncio.run(main())
