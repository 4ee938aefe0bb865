"""Calls that event loops wait for, on the connections of one client."""

import asyncio
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning._core.io.inbox import Inbox
from lightning._core.wire.exchange import read_answer
from lightning._core.wire.messages import encode_synapse_packet
from lightning.errors import ConnectionClosed, FrameTooLarge, RequestTimeout
from tests.support.identities import MINER as OTHER
from tests.support.waiting import until, until_async

LARGE = 1 << 18


def frame(name="echo", **data):
    return encode_synapse_packet(name, data, 0)


def ask(inbox, link, request, timeout=10, limit=0):
    call = inbox.start(link, request, asyncio.get_running_loop(), timeout, limit)
    return call, call.future


def open_inbox(link):
    """Make an inbox for the running loop, which hears of it."""
    inbox = Inbox(link)
    asyncio.get_running_loop().add_reader(inbox.fileno(), inbox.rung)
    return inbox


@pytest.fixture
def link(start_blocking_server, make_blocking_client, axon_of):
    """A connection of a client whose threads move the datagrams."""
    client = make_blocking_client()

    async def wait(data):
        await asyncio.Event().wait()

    server = start_blocking_server(
        lambda s: s.register_async_synapse_handler("wait", wait)
    )
    axon = axon_of(server)
    client.initialize_connections([axon])
    return client._client._connection_to(axon)


async def use(link, many=50):
    """Ask with an inbox of this loop, and close it."""
    inbox = open_inbox(link)
    try:
        for n in range(many):
            call, future = ask(inbox, link, frame(n=n))
            assert await future is call
            assert read_answer(call).data == {"n": n}
        assert len(inbox) == 0
    finally:
        inbox.close(asyncio.get_running_loop())


def test_answers_come_to_the_loop_that_asked(link):
    asyncio.run(use(link))
    assert link.under_way == 0


async def test_the_bell_alone_brings_answers_of_a_driver_that_has_an_owner(
    start_server, connect
):
    """Another loop asks over the client of this one."""
    server = await start_server()
    client, axon = await connect(server)
    link = client._connection_to(axon)
    await asyncio.to_thread(asyncio.run, use(link))


def test_it_takes_connections_of_its_own_driver_only(
    link, make_blocking_client, start_blocking_server, axon_of
):
    other = make_blocking_client(OTHER)
    axon = axon_of(start_blocking_server())
    other.initialize_connections([axon])

    async def main():
        inbox = open_inbox(link)
        there = other._client._connection_to(axon)
        loop = asyncio.get_running_loop()
        assert inbox.start(there, frame(), loop) is None
        assert len(inbox) == 0
        with pytest.raises(RuntimeError, match="twice"):
            inbox.__init__(there)
        inbox.close(loop)
        inbox.close(loop)
        assert inbox.is_stale
        with pytest.raises(RuntimeError, match="closed"):
            inbox.start(link, frame(), loop)

    asyncio.run(main())


def test_closing_ends_what_waits(link):
    """In the loop's thread every future has its result; without the loop none has."""

    async def main():
        inbox = open_inbox(link)
        calls = [ask(inbox, link, frame("wait")) for _ in range(3)]
        await until_async(lambda: not any(call.is_sending for call, _ in calls))
        inbox.close(asyncio.get_running_loop())
        for call, future in calls:
            assert await future is call
            with pytest.raises(ConnectionClosed):
                read_answer(call)
        dropped = open_inbox(link)
        return dropped, ask(dropped, link, frame("wait"))[1]

    dropped, future = asyncio.run(main())
    assert link.under_way == 1
    dropped.close()
    assert not future.done()
    assert link.under_way == 0


def test_a_connection_that_is_lost_ends_its_calls(link):
    async def main():
        inbox = open_inbox(link)
        calls = [ask(inbox, link, frame("wait")) for _ in range(100)]
        await asyncio.sleep(0)
        link._endpoint.loop.call_soon_threadsafe(link.close)
        for call, future in calls:
            await future
            with pytest.raises(ConnectionClosed):
                read_answer(call)
        with pytest.raises(ConnectionClosed):
            ask(inbox, link, frame())
        assert len(inbox) == 0
        assert not inbox.is_stale
        inbox.close(asyncio.get_running_loop())

    asyncio.run(main())


def test_a_call_is_cancelled_at_any_time(link):
    """Before it is sent, under way and when it has ended."""

    async def main():
        inbox = open_inbox(link)
        for pause in (0, 1, 2, 50):
            call, _future = ask(inbox, link, frame("wait" if pause == 50 else "echo"))
            for _ in range(pause):
                await asyncio.sleep(0)
            inbox.cancel(call)
            inbox.cancel(call)
        await until_async(lambda: len(inbox) == 0)
        assert link.under_way == 0
        inbox.close(asyncio.get_running_loop())

    asyncio.run(main())


def test_a_timeout_is_of_the_whole_call(link):
    """Also where the request is not wholly sent; the limit of an answer is the call's."""

    async def main():
        inbox = open_inbox(link)
        call, future = ask(inbox, link, frame("wait"), 0.05)
        await future
        with pytest.raises(RequestTimeout) as late:
            read_answer(call)
        assert late.value.timeout == 0.05
        # More than may be open: the last ones never have a stream.
        calls = [ask(inbox, link, frame("wait"), 0.1) for _ in range(200)]
        for call, future in calls:
            await future
            with pytest.raises(RequestTimeout):
                read_answer(call)
        call, future = ask(inbox, link, frame(x=b"x" * 100), 10, 50)
        await future
        with pytest.raises(FrameTooLarge) as large:
            read_answer(call)
        assert large.value.limit == 50
        inbox.close(asyncio.get_running_loop())

    asyncio.run(main())


def test_a_large_request_is_let_go_of(link):
    async def main():
        inbox = open_inbox(link)
        request = frame(x=b"x" * LARGE)
        before = sys.getrefcount(request)
        call, future = ask(inbox, link, request)
        await future
        assert len(read_answer(call).data["x"]) == LARGE
        # Its last bytes may be acknowledged after the answer.
        for n in range(100):
            if sys.getrefcount(request) == before:
                break
            _, future = ask(inbox, link, frame(n=n))
            await future
        assert sys.getrefcount(request) == before
        inbox.close(asyncio.get_running_loop())

    asyncio.run(main())


def test_another_loop_attends_when_the_first_one_rests(link):
    """The one that rests stays where it is, and is told by its bell from then on."""

    async def main():
        first = open_inbox(link)
        for _ in range(3):
            await ask(first, link, frame())[1]
        await asyncio.to_thread(asyncio.run, use(link))
        for _ in range(50):
            await ask(first, link, frame())[1]
        first.close(asyncio.get_running_loop())

    asyncio.run(main())


def test_a_loop_that_is_held_up_holds_up_no_other(link):
    """The pump's thread stands in for one that attends and does not look."""

    async def main():
        inbox = open_inbox(link)
        await ask(inbox, link, frame())[1]
        call, _future = ask(inbox, link, frame("wait"))
        await asyncio.sleep(0)
        done = []
        other = threading.Thread(target=lambda: done.append(asyncio.run(use(link, 5))))
        other.start()
        # Not a turn of this loop until the other one has its answers.
        until(lambda: done)
        other.join()
        inbox.cancel(call)
        inbox.close(asyncio.get_running_loop())

    asyncio.run(main())


def test_loops_come_and_go_while_others_ask(link):
    """Every call ends as it should, with closes and cancels at any moment."""
    stop = time.monotonic() + 2

    async def some(chance):
        loop = asyncio.get_running_loop()
        inbox = open_inbox(link)
        calls = []
        for n in range(chance.randrange(40)):
            data = {"n": n, "x": b"x" * chance.choice((0, 10, 5000, LARGE))}
            call, future = ask(inbox, link, frame(**data), 20)
            calls.append((call, future, data))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        for call, future, data in calls:
            if chance.random() < 0.2:
                inbox.cancel(call)
            else:
                await future
                assert read_answer(call).data == data
        for _ in range(chance.randrange(5)):
            ask(inbox, link, frame())
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        if chance.random() < 0.5:
            inbox.close(loop)
        return inbox

    def thread(seed):
        chance = random.Random(seed)
        while time.monotonic() < stop:
            # Some have calls under way, and their loop is closed.
            asyncio.run(some(chance)).close()

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(thread, seed) for seed in range(3)]:
            done.result(60)
    until(lambda: link.under_way == 0)
