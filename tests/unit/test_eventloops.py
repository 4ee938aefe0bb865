"""The faces on event loops of other makes, on several at once, and what a turn costs."""

import asyncio
import importlib.util
import os
import threading

import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    LightningServerConfig,
    QuicAxonInfo,
)
from lightning.errors import (
    ConnectionClosed,
    LightningConnectionError,
    RequestTimeout,
)
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR, signer
from tests.support.inspection import in_flight
from tests.support.waiting import until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
PLAIN = bool(os.environ.get("LIGHTNING_PLAIN_UDP"))
LOOPS = [
    "asyncio",
    pytest.param(
        "uvloop",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("uvloop") is None,
            reason="uvloop is not installed (it is in the test dependencies)",
        ),
    ),
]


def run(main, kind="asyncio"):
    """Run a coroutine function on a new loop of that make, and return its result."""
    factory = None
    if kind == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        said = []
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        assert type(loop).__module__.startswith(kind)
        result = runner.run(main())
    assert not said
    return result


async def numbered(data):
    await asyncio.sleep(0)
    return {"n": data["n"] + 1}


def chunks(data):
    for number in range(data["n"]):
        yield bytes([number]) * 1000


async def start_server(miner=MINER) -> AsyncLightningServer:
    server = AsyncLightningServer(
        miner.ss58_address,
        "127.0.0.1",
        0,
        signer=miner,
        config=LightningServerConfig(max_handshake_attempts_per_minute=10_000),
    )
    server.register_synapse_handler("echo", lambda data: data, inline=True)
    server.register_synapse_handler("thread", lambda data: data)
    server.register_async_synapse_handler("next", numbered)
    server.register_async_synapse_handler("never", lambda _: asyncio.sleep(60))
    server.register_streaming_handler("stream", chunks)
    await server.start()
    return server


def axon_of(server) -> QuicAxonInfo:
    return QuicAxonInfo(server.miner_hotkey, *server.local_addr())


async def connect(*axons, validator=VALIDATOR) -> AsyncLightning:
    client = AsyncLightning(validator.ss58_address, signer=validator)
    await client.initialize_connections(axons)
    return client


# Other makes.


async def unary(client, axon):
    for kind, n in (("echo", 1), ("thread", 1), ("next", 2)):
        request = {"synapse_type": kind, "data": {"n": 1}}
        answer = await client.query_axon(axon, request, 10)
        assert answer.data == {"n": n}


async def many(client, axon):
    requests = [{"synapse_type": "next", "data": {"n": n}} for n in range(300)]
    answers = await asyncio.gather(*(client.query_axon(axon, r) for r in requests))
    assert [a.data["n"] for a in answers] == list(range(1, 301))
    answers = await client.query_many([axon] * 300, requests, 10, deadline_secs=20)
    assert [a.data["n"] for a in answers] == list(range(1, 301))


async def large(client, axon):
    request = {"synapse_type": "echo", "data": {"x": bytes(3_000_000)}}
    assert await client.query_axon(axon, request, 20)


async def streamed(client, axon):
    request = {"synapse_type": "stream", "data": {"n": 200}}
    stream = await client.query_axon_stream(axon, request)
    assert [c[0] for c in await stream.collect_all()] == list(range(200))


async def given_up(client, axon):
    never = {"synapse_type": "never"}
    with pytest.raises(RequestTimeout):
        await client.query_axon(axon, never, 0.05)
    task = asyncio.create_task(client.query_axon(axon, never))
    await until_async(lambda: in_flight(client))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_async(lambda: not in_flight(client))


async def not_there(client, axon):
    with pytest.raises(LightningConnectionError):
        await client.query_axon(QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", 9), ECHO)


async def closed(client, axon):
    task = asyncio.create_task(client.query_axon(axon, {"synapse_type": "never"}))
    await until_async(lambda: in_flight(client))
    await client.close()
    with pytest.raises(ConnectionClosed):
        await task
    await client.initialize_connections([axon])
    assert await client.query_axon(axon, ECHO, 10)


@pytest.mark.parametrize(
    "use", [unary, many, large, streamed, given_up, not_there, closed]
)
@pytest.mark.parametrize("kind", LOOPS)
def test_client_and_server_on_a_loop(kind, use):
    async def main():
        server = await start_server()
        client = await connect(axon_of(server))
        try:
            await use(client, axon_of(server))
        finally:
            await client.close()
            await server.stop()

    run(main, kind)


# Several at once.


@pytest.mark.parametrize("kind", LOOPS)
def test_several_loops_in_several_threads(kind):
    """Each with a client and a server of its own, and all ask all."""
    threads, axons, failures = 4, [], []
    ready = threading.Barrier(threads)
    asked = threading.Barrier(threads)

    async def main(number):
        server = await start_server(signer(number))
        axons.append(axon_of(server))
        await asyncio.to_thread(ready.wait, 20)
        client = await connect(*axons, validator=signer(100 + number))
        try:
            requests = [{"synapse_type": "next", "data": {"n": n}} for n in range(25)]
            for _ in range(4):
                outcomes = await asyncio.gather(
                    *(client.query_axon(a, r, 20) for a in axons for r in requests)
                )
                assert [o.data["n"] for o in outcomes] == [*range(1, 26)] * threads
                outcomes = await client.query_many(axons * 5, ECHO, 20)
                assert all(o.success for o in outcomes)
        finally:
            await asyncio.to_thread(asked.wait, 20)
            await client.close()
            await server.stop()

    def thread(number):
        try:
            run(lambda: main(number), kind)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=thread, args=(50 + n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(50)
    assert not failures


# What a turn of the loop costs.


@pytest.mark.parametrize("kind", LOOPS)
def test_what_is_asked_in_one_turn_leaves_in_one_flush(kind):
    """Whoever asks, and however many miners are asked."""

    async def main():
        servers = [await start_server(signer(50 + n)) for n in range(3)]
        axons = [axon_of(server) for server in servers]
        client = await connect(*axons)
        (endpoint,) = client._endpoints.values()
        for _ in range(3):
            await asyncio.gather(*(client.query_axon(a, ECHO) for a in axons * 20))
            # What is late of the last turn goes first.
            await asyncio.sleep(0.05)
            before = endpoint.stats()
            tasks = [
                asyncio.create_task(client.query_axon(a, ECHO)) for a in axons * 20
            ]
            await until_async(lambda: in_flight(client) == 60)
            await asyncio.sleep(0)
            after = endpoint.stats()
            # Sixty requests: a few datagrams, and one system call where it may.
            sent = after["sent"] - before["sent"]
            calls = after["send_calls"] - before["send_calls"]
            await asyncio.gather(*tasks)
            assert 3 <= sent < 20
            assert calls <= (sent if PLAIN else 2)
        await client.close()
        for server in servers:
            await server.stop()

    run(main, kind)


@pytest.mark.parametrize("kind", LOOPS)
def test_a_request_makes_no_task(kind):
    """Neither at the client nor, where the handler is inline, at the server."""

    async def main():
        server = await start_server()
        axon = axon_of(server)
        client = await connect(axon)
        made = []

        def make(loop, coroutine, **options):
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **options)

        loop = asyncio.get_running_loop()
        await client.query_axon(axon, ECHO)
        loop.set_task_factory(make)
        for timeout in (None, 10):
            for _ in range(20):
                await client.query_axon(axon, ECHO, timeout)
        assert made == []
        await asyncio.create_task(asyncio.sleep(0))
        assert len(made) == 1
        loop.set_task_factory(None)
        await client.close()
        await server.stop()

    run(main, kind)
