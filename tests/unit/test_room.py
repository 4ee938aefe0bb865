"""The room for requests, through the wire: who begins, who waits, who is refused."""

import asyncio
import threading
import time

import pytest

from lightning import QuicAxonInfo, StakePriority
from lightning.errors import ConfigError, ServerBusy, StreamError
from tests.support.identities import VALIDATOR_HOTKEY, signer
from tests.support.waiting import until, until_async

ECHO = {"synapse_type": "echo", "data": {}}
KINDS = ("thread", "async", "stream", "stream_async")


class Gates:
    """Handlers of every kind that note who comes and wait to be let go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.begun: list[object] = []
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()

    def register(self, server) -> None:
        server.register_synapse_handler("thread", self.thread)
        server.register_synapse_handler("async", self.run_async)
        server.register_streaming_handler("stream", self.stream)
        server.register_streaming_handler("stream_async", self.stream_async)

    def enter(self, data: dict) -> None:
        with self._lock:
            self.begun.append(data.get("n"))
            self.inside += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1

    def thread(self, data: dict) -> dict:
        self.enter(data)
        try:
            assert self.release.wait(20)
            return data
        finally:
            self.leave()

    def stream(self, data: dict):
        self.thread(data)
        yield b"x"

    async def run_async(self, data: dict) -> dict:
        self.enter(data)
        try:
            await until_async(self.release.is_set, 20)
            return data
        finally:
            self.leave()

    async def stream_async(self, data: dict):
        await self.run_async(data)
        yield b"x"


@pytest.fixture
def gates():
    gates = Gates()
    yield gates
    gates.release.set()


async def ask(client, axon: QuicAxonInfo, kind: str, **data: object) -> str | None:
    """Ask for one kind of answer, and return what went wrong."""
    request = {"synapse_type": kind, "data": data}
    if not kind.startswith("stream"):
        return (await client.query_axon(axon, request, 20)).error
    async with await client.query_axon_stream(axon, request) as stream:
        try:
            assert await stream.collect_all() == [b"x"]
        except StreamError as error:
            return error.detail
    return None


def asking(client, axon, kind: str, *numbers: int) -> list[asyncio.Task]:
    return [asyncio.create_task(ask(client, axon, kind, n=n)) for n in numbers]


@pytest.mark.parametrize("kind", KINDS)
async def test_as_many_run_as_allowed_and_as_many_wait(
    kind, gates, start_server, connect
):
    server = await start_server(
        gates.register, max_concurrent_requests=2, max_queued_requests=3
    )
    client, axon = await connect(server)
    first = asking(client, axon, kind, 0, 1)
    await until_async(lambda: gates.inside == 2)
    waiting = asking(client, axon, kind, 2, 3, 4)
    await until_async(lambda: server.stats().queued == 3)
    assert server.stats().running == 2
    assert await ask(client, axon, kind) == "server busy"
    assert (await client.query_axon(axon, ECHO)).success, "inline ones have room"
    gates.release.set()
    assert await asyncio.gather(*first, *waiting) == [None] * 5
    assert sorted(gates.begun) == [0, 1, 2, 3, 4]
    assert gates.most == 2
    await until_async(lambda: server._room.work.running == 0)
    stats = server.stats()
    (counts,) = [h for h in stats.handlers if h.name == kind]
    assert (counts.ok, counts.busy) == (5, 1)
    assert (stats.running, stats.queued) == (0, 0)
    assert not server._room._tickets


@pytest.mark.parametrize("kind", KINDS)
async def test_the_time_that_a_request_waits_counts(kind, gates, start_server, connect):
    """Whatever did not begin in the handler's time is told so, and never begins."""
    server = await start_server(
        gates.register, max_concurrent_requests=1, handler_timeout_secs=1
    )
    client, axon = await connect(server)
    running = asking(client, axon, "thread", 0)
    await until_async(lambda: gates.inside == 1)
    assert await ask(client, axon, kind, n=1) == "handler timed out"
    assert await running[0] == "handler timed out"
    # The thread that is stuck has its place still.
    assert server._room.work.running == 1
    gates.release.set()
    assert await ask(client, axon, kind, n=2) is None
    assert gates.begun == [0, 2]


async def test_a_stream_that_waited_has_the_rest_of_its_time(
    gates, start_server, connect
):
    server = await start_server(
        gates.register, max_concurrent_requests=1, handler_timeout_secs=1
    )
    client, axon = await connect(server)
    began = time.monotonic()
    first = asking(client, axon, "stream_async", 0)
    await until_async(lambda: gates.inside == 1)
    await asyncio.sleep(0.6 - (time.monotonic() - began))
    (second,) = asking(client, axon, "stream_async", 1)
    await until_async(lambda: server.stats().queued == 1)
    assert await first[0] == "handler timed out"
    assert await second == "handler timed out"
    assert time.monotonic() - began < 2.2, "0.4 s of its time are left then"


async def test_a_client_that_leaves_gives_its_place_in_the_queue_away(
    gates, start_server, connect
):
    server = await start_server(gates.register, max_concurrent_requests=1)
    client, axon = await connect(server)
    (running,) = asking(client, axon, "thread", 0)
    await until_async(lambda: gates.inside == 1)
    waiting = [task for kind in KINDS for task in asking(client, axon, kind, kind)]
    (stays,) = asking(client, axon, "thread", 1)
    await until_async(lambda: server.stats().queued == 5)
    for task in waiting:
        task.cancel()
    await until_async(lambda: server.stats().queued == 1)
    gates.release.set()
    assert await asyncio.gather(running, stays) == [None, None]
    assert gates.begun == [0, 1]
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_asking_and_leaving_again_and_again_gains_nothing(
    gates, start_server, connect
):
    """A handler in a thread has its place until it ends, whoever has gone."""
    server = await start_server(gates.register, max_concurrent_requests_per_validator=2)
    client, axon = await connect(server)
    for n in range(10):
        (task,) = asking(client, axon, "thread", n)
        await until_async(lambda: server._answering == 1)
        await until_async(lambda n=n: gates.inside == min(n + 1, 2))
        task.cancel()
        await until_async(lambda: server._answering == 0)
    assert gates.begun == [0, 1]
    assert server._room.work.running == 2
    other, _ = await connect(server, signer(7))
    theirs = asking(other, axon, "thread", "other")
    await until_async(lambda: gates.inside == 3)
    gates.release.set()
    assert await theirs[0] is None
    await until_async(lambda: server._room.work.running == 0)
    assert len(server._room.work) == 0


async def test_the_validator_with_more_stake_comes_first(gates, start_server, connect):
    server = await start_server(
        gates.register, max_concurrent_requests=1, max_queued_requests=2
    )
    rich = signer(7)
    client, axon = await connect(server)
    other, _ = await connect(server, rich)
    # While it runs, and twice.
    server.set_priority(lambda context: 0)
    server.set_priority(StakePriority({rich.ss58_address: 10, VALIDATOR_HOTKEY: 1}))
    (running,) = asking(client, axon, "thread", 0)
    await until_async(lambda: gates.inside == 1)
    waiting = asking(client, axon, "async", 1)
    await until_async(lambda: server.stats().queued == 1)
    waiting += asking(client, axon, "stream", 2)
    await until_async(lambda: server.stats().queued == 2)
    theirs = asking(other, axon, "thread", "rich")
    assert await waiting.pop() == "server busy", "it has to make room"
    gates.release.set()
    assert await asyncio.gather(running, *waiting, *theirs) == [None] * 3
    assert gates.begun == [0, "rich", 1]


async def test_a_priority_alone_has_requests_wait_for_threads(
    gates, start_server, connect
):
    seen = []

    def priority(context) -> float:
        seen.append((context.hotkey, context.synapse_type, context.remaining() > 20))
        if context.synapse_type == "async":
            raise ZeroDivisionError
        return float("nan")

    server = await start_server(gates.register, handler_threads=1)
    assert server._room is None, "nothing is limited"
    server.set_priority(priority)
    client, axon = await connect(server)
    tasks = asking(client, axon, "thread", 0)
    await until_async(lambda: gates.inside == 1)
    tasks += asking(client, axon, "async", 1)
    await until_async(lambda: server.stats().queued == 1)
    server.set_priority(None)
    tasks += asking(client, axon, "thread", 2)
    await until_async(lambda: server.stats().queued == 2)
    gates.release.set()
    assert await asyncio.gather(*tasks) == [None] * 3
    assert gates.begun == [0, 1, 2]
    assert seen == [
        (VALIDATOR_HOTKEY, "thread", True),
        (VALIDATOR_HOTKEY, "async", True),
    ]
    with pytest.raises(TypeError, match="int cannot be called"):
        server.set_priority(3)


async def test_a_priority_function_that_fails_is_logged(start_server, connect, caplog):
    server = await start_server()
    server.register_synapse_handler("h", lambda data: data)
    server.set_priority(lambda context: 1 / 0)
    client, axon = await connect(server)
    for _ in range(20):
        assert await ask(client, axon, "h") is None
    assert caplog.text.count("the priority function failed") == 10, "and no more"


@pytest.mark.parametrize("kind", [*KINDS, "echo"])
async def test_a_validator_may_send_so_many_in_a_second(
    kind, gates, start_server, connect
):
    gates.release.set()
    server = await start_server(
        gates.register, max_requests_per_second=0.1, request_burst=3
    )
    client, axon = await connect(server)
    assert [await ask(client, axon, kind) for _ in range(3)] == [None] * 3
    assert await ask(client, axon, kind) == "too many requests"
    if kind == "thread":
        answer = await client.query_axon(axon, {"synapse_type": kind, "data": {}})
        with pytest.raises(ServerBusy, match="too many requests"):
            answer.into_result()
    # To connect again does not help; others have their own.
    await client.close()
    client, _ = await connect(server)
    assert await ask(client, axon, kind) == "too many requests"
    other, _ = await connect(server, signer(7))
    assert await ask(other, axon, kind) is None
    tally = server._handlers.tallies[kind]
    # It counts what it has sent.
    await until_async(lambda: tally.ok == 4)
    assert tally.limited == (3 if kind == "thread" else 2)


async def test_a_stop_ends_what_waits(gates, start_server, connect):
    server = await start_server(gates.register, max_concurrent_requests=1)
    client, axon = await connect(server)
    tasks = asking(client, axon, "async", 0)
    await until_async(lambda: gates.inside == 1)
    tasks += [task for kind in KINDS for task in asking(client, axon, kind, kind)]
    await until_async(lambda: server.stats().queued == 4)
    await server.stop(0)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, ConnectionError) for end in ends)
    assert gates.begun[0] == 0
    gates.release.set()
    await server.start()
    assert server._room.work.running == 0
    await server.stop()


# The blocking face.


def outcomes(client, axon, kind: str, count: int) -> list[threading.Thread]:
    """Ask in so many threads; each has its error in the end."""

    class Asking(threading.Thread):
        def run(self) -> None:
            request = {"synapse_type": kind, "data": {"n": self.name}}
            self.error = client.query_axon(axon, request, 20)["error"]

    threads = [Asking(name=f"{kind}-{n}") for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture
def pair(start_blocking_server, make_blocking_client, axon_of):
    def pair(prepare, **settings):
        server = start_blocking_server(prepare, **settings)
        axon = axon_of(server)
        client = make_blocking_client()
        client.initialize_connections([axon])
        return server, client, axon

    return pair


def test_a_blocking_server_refuses_while_all_its_threads_are_busy(gates, pair):
    server, client, axon = pair(
        gates.register,
        handler_threads=2,
        max_concurrent_requests=2,
        max_queued_requests=1,
    )
    threads = outcomes(client, axon, "thread", 2)
    until(lambda: gates.inside == 2)
    threads += outcomes(client, axon, "async", 1)
    until(lambda: server.stats().queued == 1)
    for kind in ("thread", "async"):
        request = {"synapse_type": kind, "data": {}}
        assert client.query_axon(axon, request, 5)["error"] == "server busy"
    with pytest.raises(StreamError, match="server busy"):
        client.query_axon_stream(axon, {"synapse_type": "stream"}).collect_all()
    assert client.query_axon(axon, ECHO, 5)["success"]
    gates.release.set()
    for thread in threads:
        thread.join(20)
        assert thread.error is None
    assert gates.most == 2
    for kind in ("stream", "stream_async"):
        stream = client.query_axon_stream(axon, {"synapse_type": kind})
        assert stream.collect_all() == [b"x"]
    until(lambda: server._server._room.work.running == 0)
    assert not server._server._room._tickets


def test_a_blocking_server_has_priorities_too(gates, pair, make_blocking_client):
    server, client, axon = pair(gates.register, handler_threads=1)
    rich = signer(7)
    other = make_blocking_client(rich)
    other.initialize_connections([axon])
    server.set_priority(StakePriority(lambda: {rich.ss58_address: 1}))
    context_free = outcomes(client, axon, "thread", 1)
    until(lambda: gates.inside == 1)
    priority = server._server._priority
    until(lambda: priority._stakes)
    context_free += outcomes(client, axon, "async", 1)
    until(lambda: server.stats().queued == 1)
    context_free += outcomes(other, axon, "stream_async", 0)
    context_free += outcomes(other, axon, "thread", 1)
    until(lambda: server.stats().queued == 2)
    gates.release.set()
    for thread in context_free:
        thread.join(20)
        assert thread.error is None
    assert gates.begun == ["thread-0", "thread-0", "async-0"]


def test_limits_that_make_no_sense_are_refused(start_blocking_server):
    with pytest.raises(ConfigError, match="max_concurrent_requests must be non-zero"):
        start_blocking_server(max_concurrent_requests=0)
