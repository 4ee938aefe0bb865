"""Asking many miners at once, on asyncio and blocking."""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time

import pytest

from lightning import BlockingFanOut, QuicAxonInfo, QuicRequest, QuicResponse
from lightning.errors import (
    ConfigError,
    ConnectionClosed,
    EncodeError,
    FrameTooLarge,
    HandshakeError,
    LightningConnectionError,
    MissingField,
    RequestTimeout,
)
from lightning.fanout import FanOut
from tests.support.identities import MINER_HOTKEY, signer
from tests.support.inspection import in_flight
from tests.support.waiting import until, until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
HOLD = {"synapse_type": "hold"}


class Hold:
    """A handler that answers when it is released; for both faces."""

    def __init__(self):
        self.released = threading.Event()
        self.begun = 0

    def register(self, server):
        server.register_async_synapse_handler("hold", self)

    async def handle(self, _name, _data):
        self.begun += 1
        await until_async(self.released.is_set, 60)
        return {"held": True}


@pytest.fixture
def hold():
    hold = Hold()
    yield hold
    hold.released.set()


@pytest.fixture
async def farm(start_server, make_client, axon_of, hold):
    """Start servers, and a client that has logged in with all."""

    async def farm(count=3, prepare=lambda server: None, **settings):
        servers = [
            await start_server(
                lambda server: (hold.register(server), prepare(server)),
                signer=signer(number),
                **settings,
            )
            for number in range(50, 50 + count)
        ]
        client = make_client(reconnect_initial_backoff=30)
        axons = [axon_of(server) for server in servers]
        await client.initialize_connections(axons)
        return client, servers, axons

    return farm


@pytest.fixture
def blocking_farm(start_blocking_server, make_blocking_client, axon_of, hold):
    """Do as `farm`, blocking."""

    def farm(count=3, prepare=lambda server: None, **settings):
        servers = [
            start_blocking_server(
                lambda server: (hold.register(server), prepare(server)),
                signer=signer(number),
                **settings,
            )
            for number in range(50, 50 + count)
        ]
        client = make_blocking_client(reconnect_initial_backoff=30)
        axons = [axon_of(server) for server in servers]
        client.initialize_connections(axons)
        return client, servers, axons

    return farm


def dead_port():
    """Return a port where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def silent_axon():
    """A miner that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield QuicAxonInfo(MINER_HOTKEY, *sock.getsockname())


def more_hotkeys(client, axons, count):
    """Return that many miners, all logged in, at the addresses of a few."""
    miners = [
        QuicAxonInfo(f"hotkey {number}", axon.ip, axon.port)
        for number, axon in zip(range(count), axons * count, strict=False)
    ]
    client = getattr(client, "_client", client)
    for miner in miners:
        client._sessions[miner.address].hotkeys.add(miner.hotkey)
    return miners


class Loop:
    """Counts the tasks that a loop makes, and the system calls of a client."""

    def __init__(self, client):
        self.client = client
        self.tasks = 0

    def __enter__(self):
        self.loop = asyncio.get_running_loop()
        self.loop.set_task_factory(self.make)
        self.before = self.send_calls()
        return self

    def __exit__(self, *_):
        self.loop.set_task_factory(None)
        self.sends = self.send_calls() - self.before

    def make(self, loop, coroutine, **options):
        self.tasks += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    def send_calls(self):
        return sum(e.stats()["send_calls"] for e in self.client._endpoints.values())


def numbers(outcomes):
    return [(o if isinstance(o, dict) else o.to_dict())["data"]["n"] for o in outcomes]


# What comes back.


async def test_outcomes_are_in_the_order_of_the_axons(farm):
    client, _, axons = await farm()
    requests = [{"synapse_type": "echo", "data": {"n": n}} for n in range(30)]
    outcomes = await client.query_many(axons * 10, requests)
    assert numbers(outcomes) == list(range(30))
    assert all(isinstance(o, QuicResponse) and o.latency_ms > 0 for o in outcomes)
    outcomes = await client.query_many(iter(axons), QuicRequest("echo", {"n": 7}))
    assert numbers(outcomes) == [7, 7, 7]
    assert await client.query_many([], ECHO) == []


def test_outcomes_of_the_blocking_face_are_dicts_in_order(blocking_farm):
    client, _, axons = blocking_farm()
    requests = [{"synapse_type": "echo", "data": {"n": n}} for n in range(30)]
    outcomes = client.query_many(axons * 10, requests).collect_all()
    assert numbers(outcomes) == list(range(30))
    assert set(outcomes[0]) == {"success", "data", "latency_ms", "error"}
    assert numbers(client.query_many(iter(axons), ECHO).collect_all()) == [1, 1, 1]
    assert client.query_many([], ECHO).collect_all() == []
    assert list(client.query_many([], ECHO)) == []


async def test_they_are_streamed_as_they_come(farm, hold):
    client, _, axons = await farm()
    fan = client.query_many(axons, [ECHO, HOLD, ECHO])
    assert len(fan) == 3
    first = [await anext(fan), await anext(fan)]
    assert sorted(index for index, _ in first) == [0, 2]
    assert repr(fan) == "<FanOut 2 of 3>"
    hold.released.set()
    index, outcome = await anext(fan)
    assert (index, outcome.data) == (1, {"held": True})
    assert [each async for each in fan] == []
    # Awaited after, it has them all the same.
    assert [o.data for o in await fan] == [{"n": 1}, {"held": True}, {"n": 1}]


def test_they_are_streamed_to_blocking_callers_as_they_come(blocking_farm, hold):
    client, _, axons = blocking_farm()
    fan = client.query_many(axons, [ECHO, HOLD, ECHO])
    assert len(fan) == 3
    first = [next(fan), next(fan)]
    assert sorted(index for index, _ in first) == [0, 2]
    assert repr(fan) == "<BlockingFanOut 2 of 3>"
    hold.released.set()
    index, outcome = next(fan)
    assert (index, outcome["data"]) == (1, {"held": True})
    assert list(fan) == []
    assert [o["data"] for o in fan.collect_all()] == [
        {"n": 1}, {"held": True}, {"n": 1},
    ]  # fmt: skip


def mixed(axons, silent_axon):
    """Miners and requests of all kinds, with what becomes of each."""
    alien = signer(99).ss58_address
    return (
        [
            axons[0],
            QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", dead_port()),
            axons[1],
            QuicAxonInfo(alien, axons[2].ip, axons[2].port),
            axons[2],
            silent_axon,
            axons[1],
        ],
        [ECHO, ECHO, HOLD, ECHO, {"synapse_type": "boom"}, ECHO, ECHO],
        [
            True, LightningConnectionError, RequestTimeout, HandshakeError, False,
            RequestTimeout, True,
        ],
    )  # fmt: skip


def boom(_data):
    raise ValueError("boom")


def kinds(outcomes):
    return [
        type(o) if isinstance(o, Exception)
        else o["success"] if isinstance(o, dict) else o.success
        for o in outcomes
    ]  # fmt: skip


def same_kinds(found, expected):
    return all(
        f is e or (isinstance(f, type) and issubclass(f, e))
        for f, e in zip(kinds(found), expected, strict=True)
    )


async def test_what_goes_wrong_with_one_miner_is_its_outcome(farm, silent_axon):
    client, _, axons = await farm(
        prepare=lambda s: s.register_synapse_handler("boom", boom)
    )
    miners, requests, expected = mixed(axons, silent_axon)
    outcomes = await client.query_many(miners, requests, 0.5, deadline_secs=0.8)
    assert same_kinds(outcomes, expected), outcomes
    assert (outcomes[2].timeout, outcomes[5].timeout) == (0.5, 0.8)
    # Back-off is kept to, as by a query.
    (again,) = await client.query_many(miners[1:2], ECHO)
    assert "backoff" in str(again)


def test_what_goes_wrong_with_one_miner_is_its_outcome_when_blocking(
    blocking_farm, silent_axon
):
    client, _, axons = blocking_farm(
        prepare=lambda s: s.register_synapse_handler("boom", boom)
    )
    miners, requests, expected = mixed(axons, silent_axon)
    outcomes = client.query_many(miners, requests, 0.5, deadline_secs=0.8).collect_all()
    assert same_kinds(outcomes, expected), outcomes
    assert (outcomes[2].timeout, outcomes[5].timeout) == (0.5, 0.8)
    (again,) = client.query_many(miners[1:2], ECHO).collect_all()
    assert "backoff" in str(again)


async def test_a_connection_that_ends_is_the_outcome_of_its_miners(farm, hold):
    client, servers, axons = await farm()
    fan = client.query_many(axons * 2, [HOLD, ECHO, ECHO] * 2)
    await until_async(lambda: hold.begun == 2)
    await servers[0].stop(0)
    outcomes = await fan
    assert [type(o) for o in outcomes] == [
        ConnectionClosed, QuicResponse, QuicResponse,
    ] * 2  # fmt: skip
    # One exception each: it gathers where it was raised.
    assert outcomes[0] is not outcomes[3]


MALFORMED = [
    ((["nonsense"], ECHO), {}, TypeError),
    (([{"hotkey": "h", "ip": "127.0.0.1"}], ECHO), {}, MissingField),
    ((None, {"data": {}}), {}, MissingField),
    ((None, "echo"), {}, TypeError),
    ((None, [ECHO]), {}, ConfigError),
    ((None, [ECHO, ECHO, {"synapse_type": "e", "data": {"x": {1}}}]), {}, EncodeError),
    ((None, {"synapse_type": "e", "data": {"x": bytes(2**21)}}), {}, FrameTooLarge),
    ((None, ECHO, 0), {}, ConfigError),
    ((None, ECHO), {"deadline_secs": float("nan")}, ConfigError),
    ((None, ECHO), {"deadline_secs": "soon"}, TypeError),
]


@pytest.mark.parametrize(("args", "options", "error"), MALFORMED)
async def test_what_is_malformed_is_raised_and_nothing_is_sent(
    start_server, connect, args, options, error
):
    server = await start_server()
    client, axon = await connect(server, max_frame_payload_bytes=2**20)
    axons, *rest = args
    with Loop(client) as loop, pytest.raises(error):
        client.query_many(axons or [axon] * 3, *rest, **options)
    assert (loop.tasks, loop.sends, in_flight(client)) == (0, 0, 0)


def test_what_is_malformed_is_raised_when_blocking(blocking_farm):
    client, _, axons = blocking_farm()
    for args, options, error in MALFORMED:
        if error is not FrameTooLarge:
            wanted, *rest = args
            with pytest.raises(error):
                client.query_many(wanted or axons, *rest, **options)
    assert not in_flight(client)


async def test_without_an_endpoint_it_says_so(make_client, make_blocking_client):
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", 1)
    with pytest.raises(LightningConnectionError, match="not initialized"):
        make_client().query_many([axon], ECHO)
    with pytest.raises(LightningConnectionError, match="not initialized"):
        await asyncio.to_thread(make_blocking_client().query_many, [axon], ECHO)


# What it costs.


async def test_a_thousand_miners_make_no_task_and_few_system_calls(farm):
    client, _, axons = await farm(4)
    miners = more_hotkeys(client, axons, 1000)
    await client.query_many(miners, ECHO)
    with Loop(client) as loop:
        outcomes = await client.query_many(miners, ECHO, 10, deadline_secs=10)
    assert numbers(outcomes) == [1] * 1000
    assert loop.tasks == 0
    # All leave in one flush, by as few calls as the system allows; the rest acknowledges.
    assert loop.sends < 100
    assert not in_flight(client)


def test_a_thousand_miners_for_a_blocking_caller(blocking_farm):
    client, _, axons = blocking_farm(4)
    miners = more_hotkeys(client, axons, 1000)
    (endpoint,) = client._client._endpoints.values()
    for _ in range(2):
        before = endpoint.stats()["send_calls"]
        with client.query_many(miners, ECHO, 10) as fan:
            assert sorted(index for index, _ in fan) == list(range(1000))
        assert endpoint.stats()["send_calls"] - before < 200
    assert threading.active_count() < 50


async def test_all_leave_before_the_loop_turns_twice(farm, hold):
    """Requests are with the miners although the caller awaits nothing of them."""
    client, _, axons = await farm()
    fan = client.query_many(axons * 5, HOLD)
    await until_async(lambda: hold.begun == 15)
    hold.released.set()
    assert len(await fan) == 15


async def test_more_requests_than_a_connection_takes_at_once(farm):
    client, _, axons = await farm(1, max_concurrent_bidi_streams=4)
    requests = [{"synapse_type": "echo", "data": {"n": n}} for n in range(100)]
    assert numbers(await client.query_many(axons * 100, requests)) == list(range(100))


def test_more_requests_than_a_connection_takes_when_blocking(blocking_farm):
    client, _, axons = blocking_farm(1, max_concurrent_bidi_streams=4)
    requests = [{"synapse_type": "echo", "data": {"n": n}} for n in range(100)]
    outcomes = client.query_many(axons * 100, requests).collect_all()
    assert numbers(outcomes) == list(range(100))


async def test_a_large_body_is_shared_and_given_back(farm):
    client, _, axons = await farm()
    body = bytes(range(256)) * 4096
    request = {"synapse_type": "echo", "data": {"x": body}}
    for outcome in await client.query_many(axons * 2, request):
        assert outcome.data["x"] == body


def test_a_large_body_when_blocking(blocking_farm):
    client, _, axons = blocking_farm()
    body = bytes(range(256)) * 4096
    request = {"synapse_type": "echo", "data": {"x": body}}
    for _, outcome in client.query_many(axons * 2, request):
        assert outcome["data"]["x"] == body


async def test_miners_that_are_not_connected_are_reached_first(
    farm, make_client, monkeypatch
):
    """One attempt for each miner and one dial for each address, however often asked."""
    _, _, axons = await farm()
    client = make_client()
    await client.create_endpoint()
    dials = []
    dial = client._dial

    async def noted(address, *args):
        dials.append(address)
        return await dial(address, *args)

    monkeypatch.setattr(client, "_dial", noted)
    assert numbers(await client.query_many(axons * 4, ECHO)) == [1] * 12
    assert sorted(dials) == sorted(axon.address for axon in axons)


def test_miners_that_are_not_connected_are_reached_first_when_blocking(
    blocking_farm, make_blocking_client
):
    _, _, axons = blocking_farm()
    client = make_blocking_client()
    client.initialize_connections(axons[:1])
    assert numbers(client.query_many(axons * 4, ECHO).collect_all()) == [1] * 12
    assert client.authenticated_hotkeys() == {axon.hotkey for axon in axons}


@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
def test_two_sockets_when_blocking(
    blocking_farm, start_server, make_blocking_client, axon_of, monkeypatch
):
    """Miners behind another socket than most: by the event loop, all the same."""
    client, _, axons = blocking_farm(2)
    # The same servers, by their mapped addresses.
    six = [QuicAxonInfo(a.hotkey, f"::ffff:{a.ip}", a.port) for a in axons]
    miners = [axons[0], six[0], axons[1], six[1]] * 5
    for _ in range(2):
        assert numbers(client.query_many(miners, ECHO).collect_all()) == [1] * 20
    assert len(client._client._endpoints) == 2
    assert sorted(i for i, _ in client.query_many(miners, ECHO)) == list(range(20))


# Ends before the end.


async def test_a_deadline_bounds_dials_too(farm, silent_axon, hold):
    client, _, axons = await farm()
    began = time.monotonic()
    fan = client.query_many([*axons, silent_axon], [ECHO, HOLD, ECHO, ECHO],
                            deadline_secs=0.2)  # fmt: skip
    outcomes = await fan
    assert time.monotonic() - began >= 0.2
    assert same_kinds(outcomes, [True, RequestTimeout, True, RequestTimeout])
    assert outcomes[3].timeout == 0.2
    assert not in_flight(client)
    # The attempt itself may serve others.
    assert client._attempts


def test_a_deadline_of_a_blocking_caller(blocking_farm, silent_axon, hold):
    client, servers, axons = blocking_farm()
    began = time.monotonic()
    fan = client.query_many(
        [*axons, silent_axon], [ECHO, HOLD, ECHO, ECHO], deadline_secs=0.2
    )
    outcomes = fan.collect_all()
    assert time.monotonic() - began >= 0.2
    assert same_kinds(outcomes, [True, RequestTimeout, True, RequestTimeout])
    # Although the object is still there.
    until(lambda: not fan._far._tasks and not in_flight(client, *servers))


async def test_the_timeout_of_a_miner_begins_with_its_request(
    farm, make_client, monkeypatch, hold
):
    """What the dial took is not counted."""
    _, _, axons = await farm()
    client = make_client()
    await client.create_endpoint()
    dial = client._dial

    async def slow(*args):
        await asyncio.sleep(0.3)
        return await dial(*args)

    monkeypatch.setattr(client, "_dial", slow)
    fan = client.query_many(axons, [HOLD, ECHO, ECHO], 0.25)
    assert same_kinds(await fan, [RequestTimeout, True, True])
    assert hold.begun == 1
    await until_async(lambda: not in_flight(client))


async def test_a_timeout_leaves_the_others(farm, hold):
    client, servers, axons = await farm()
    fan = client.query_many(axons, HOLD, 0.1)
    outcomes = await fan
    assert [o.timeout for o in outcomes] == [0.1] * 3
    # Although the object is still there.
    await until_async(lambda: not in_flight(client, *servers))
    assert numbers(await client.query_many(axons, ECHO, 10)) == [1] * 3


async def drop_by_cancelling(client, axons, hold):
    fan = client.query_many(axons, HOLD)
    task = asyncio.create_task(fan.collect_all())
    await until_async(lambda: hold.begun == len(axons))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_async(lambda: not in_flight(client))
    assert repr(fan) == "<FanOut 0 of 3>"


async def drop_by_cancelling_a_stream(client, axons, hold):
    async def read():
        async for _ in client.query_many(axons, HOLD):
            pass

    task = asyncio.create_task(read())
    await until_async(lambda: hold.begun == len(axons))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def drop_by_breaking(client, axons, hold):
    async for _ in client.query_many([*axons, axons[0]], [HOLD] * len(axons) + [ECHO]):
        break
    await until_async(lambda: not in_flight(client))


async def drop_by_leaving(client, axons, hold):
    async with client.query_many(axons, HOLD) as fan:
        await until_async(lambda: hold.begun == len(axons))
    assert [each async for each in fan] == []
    with pytest.raises(RuntimeError, match="was closed"):
        await fan
    fan.close()


async def drop_by_letting_go(client, axons, hold):
    client.query_many(axons, HOLD)
    await until_async(lambda: not in_flight(client))


async def drop_by_a_timeout(client, axons, hold):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.query_many(axons, HOLD)


@pytest.mark.parametrize(
    "drop",
    [
        drop_by_cancelling, drop_by_cancelling_a_stream, drop_by_breaking,
        drop_by_leaving, drop_by_letting_go, drop_by_a_timeout,
    ],
)  # fmt: skip
@pytest.mark.parametrize("warm", [True, False])
async def test_what_is_dropped_leaves_nothing(farm, make_client, hold, drop, warm):
    """Neither here nor at the miners, whose handlers are cancelled."""
    client, servers, axons = await farm()
    if not warm:
        client = make_client()
        await client.create_endpoint()
    await drop(client, axons, hold)
    await until_async(lambda: not client._attempts and not in_flight(client, *servers))
    await until_async(
        lambda: not [t for t in asyncio.all_tasks() if "_reach" in repr(t.get_coro())]
    )


async def test_closing_the_client_ends_it(farm, silent_axon, hold):
    client, _, axons = await farm()
    fan = client.query_many([*axons, silent_axon], HOLD)
    await until_async(lambda: hold.begun == 3)
    await client.close()
    outcomes = await fan
    assert [type(o) for o in outcomes] == [
        *[ConnectionClosed] * 3, LightningConnectionError,
    ]  # fmt: skip


def test_closing_the_client_ends_it_when_blocking(blocking_farm, silent_axon, hold):
    client, _, axons = blocking_farm()

    def close():
        until(lambda: hold.begun == 3)
        client.close()

    thread = threading.Thread(target=close)
    thread.start()
    outcomes = client.query_many([*axons, silent_axon], HOLD).collect_all()
    thread.join(10)
    assert same_kinds(outcomes, [ConnectionClosed] * 3 + [LightningConnectionError])


def test_what_a_blocking_caller_drops_leaves_nothing(blocking_farm, silent_axon, hold):
    client, servers, axons = blocking_farm()
    miners = [*axons, silent_axon]
    for _, outcome in client.query_many([*miners, axons[0]], [HOLD] * 4 + [ECHO]):
        assert outcome["data"] == {"n": 1}
        break
    until(lambda: not in_flight(client))
    client.query_many(miners, HOLD)
    until(lambda: not in_flight(client))
    with client.query_many(miners, HOLD) as fan:
        until(lambda: hold.begun >= 3)
    until(lambda: not fan._far._tasks)
    assert list(fan) == []
    with pytest.raises(RuntimeError, match="was closed"):
        fan.collect_all()
    until(lambda: not in_flight(client, *servers))


def test_another_thread_may_close_it(blocking_farm, silent_axon, hold):
    client, _, axons = blocking_farm()
    for miners in (axons, [silent_axon]):
        fan = client.query_many(miners, HOLD)
        thread = threading.Timer(0.05, fan.close)
        thread.start()
        with pytest.raises(RuntimeError, match="was closed"):
            fan.collect_all()
        thread.join()


def test_one_thread_at_a_time(blocking_farm, hold):
    client, _, axons = blocking_farm()
    fan = client.query_many(axons, HOLD)
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.extend(fan))
    thread.start()
    until(lambda: hold.begun == 3)
    with pytest.raises(RuntimeError, match="another thread is already waiting"):
        fan._gathering.wait()
    hold.released.set()
    thread.join(10)
    assert len(outcomes) == 3


def test_it_goes_on_while_nobody_looks(blocking_farm, hold):
    client, _, axons = blocking_farm()
    fan = client.query_many(axons, ECHO, 10)
    until(lambda: not in_flight(client))
    assert len(list(fan)) == 3


def test_from_the_io_thread_it_says_so(blocking_farm):
    client, _, axons = blocking_farm()
    said = []

    async def ask():
        for miners in (axons, [QuicAxonInfo("other", axons[0].ip, axons[0].port)]):
            try:
                client.query_many(miners, ECHO)
            except RuntimeError as error:
                said.append(str(error))

    client._io.call(ask)
    assert len(said) == 2
    assert all("from the I/O thread" in each for each in said)


def test_many_threads_fan_out_at_once(blocking_farm):
    client, _, axons = blocking_farm(2)
    failures = []

    def ask(number):
        for turn in range(20):
            n = number * 100 + turn
            request = {"synapse_type": "echo", "data": {"n": n}}
            outcomes = client.query_many(axons * 5, request, 20).collect_all()
            if numbers(outcomes) != [n] * 10:
                failures.append(outcomes)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not failures
    assert not in_flight(client)


@pytest.mark.parametrize("warm", [True, False])
def test_ctrl_c_drops_what_is_under_way(blocking_farm, silent_axon, hold, warm):
    client, servers, axons = blocking_farm()
    miners = axons if warm else [silent_axon]

    def interrupt():
        if warm:
            until(lambda: hold.begun == 3)
        until(lambda: "_step" in names(threading.main_thread()))
        os.kill(os.getpid(), signal.SIGINT)

    def names(thread):
        frame = sys._current_frames()[thread.ident]
        while frame is not None:
            yield frame.f_code.co_name
            frame = frame.f_back

    thread = threading.Thread(target=interrupt)
    thread.start()
    fan = client.query_many(miners, HOLD)
    with pytest.raises(KeyboardInterrupt):
        list(fan)
    thread.join(10)
    until(lambda: not in_flight(client, *servers))
    assert numbers(client.query_many(axons, ECHO).collect_all()) == [1] * 3


def test_a_fan_out_keeps_its_client(start_blocking_server, axon_of, hold):
    """A client is closed when it is dropped, but not while its outcomes are awaited."""
    from lightning import Lightning
    from tests.support.identities import VALIDATOR

    server = start_blocking_server(hold.register)

    def ask() -> BlockingFanOut:
        client = Lightning(VALIDATOR.ss58_address, signer=VALIDATOR)
        client.initialize_connections([axon_of(server)])
        return client.query_many([axon_of(server)], HOLD)

    fan = ask()
    gc.collect()
    hold.released.set()
    assert next(fan)[1]["success"]


def test_outside_of_a_loop_it_says_so(make_client):
    with pytest.raises(RuntimeError, match="no running event loop"):
        make_client().query_many([], ECHO)
    with pytest.raises(RuntimeError, match="no running event loop"):
        FanOut(None, [], None, None)
