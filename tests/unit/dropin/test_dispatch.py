"""The work on a request that comes by the event loop, as those over HTTP do."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from lightning.dropin.axon import Axon
from lightning.dropin.dispatch import Dispatch
from lightning.dropin.synapse import Synapse, TerminalInfo
from lightning.dropin.threadpool import PriorityThreadPoolExecutor
from tests.support.waiting import until, until_async


class Ask(Synapse):
    n: int = 0


@pytest.fixture
def make():
    pools = []

    def make(forward, most_workers=2, most_waiting=2, **functions):
        axon = SimpleNamespace(
            forward_class_types={"Ask": Ask},
            forward_fns={"Ask": forward},
            blacklist_fns={"Ask": functions.get("blacklist")},
            verify_fns={"Ask": functions.get("verify")},
            priority_fns={"Ask": functions.get("priority")},
        )
        pool = PriorityThreadPoolExecutor(max_workers=most_workers)
        pools.append(pool)
        dispatch = Dispatch(
            axon,
            Axon.default_verify,
            pool,
            most_workers=most_workers,
            most_waiting=most_waiting,
        )
        pools.append(dispatch._checkers)
        return dispatch

    yield make
    for pool in pools:
        pool.shutdown()


async def run(dispatch, n=0, *, timeout=20.0, authenticated=True):
    synapse = Ask(
        n=n, dendrite=TerminalInfo(hotkey="h"), axon=TerminalInfo(status_code=100)
    )
    outcome = await dispatch.run(
        synapse, "Ask", is_authenticated=authenticated, timeout=timeout
    )
    assert synapse.axon.status_code == outcome.status_code
    assert synapse.axon.status_message == outcome.status_message
    return outcome


async def test_a_plain_function_runs_in_a_thread(make):
    def forward(synapse):
        assert threading.current_thread() is not threading.main_thread()
        synapse.n += 1
        return synapse

    outcome = await run(make(forward), 5)
    assert (outcome.status_code, outcome.synapse.n) == (200, 6)
    assert outcome.process_time > 0


def plainly(function):
    def call(synapse):
        return function(synapse)

    return call


async def test_what_looks_plain_and_is_async_is_awaited(make):
    async def later(synapse):
        await asyncio.sleep(0)
        return synapse

    async def let_in(synapse):
        return False, ""

    dispatch = make(plainly(later), blacklist=plainly(let_in))

    for _ in range(2):
        assert (await run(dispatch)).status_code == 200
    assert dispatch.route("Ask").forward.is_async
    assert dispatch.route("Ask").blacklist.is_async


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit])
async def test_what_a_thread_raises_is_told_by_a_number(make, error, caplog):
    def forward(synapse):
        raise error("the secret")

    outcome = await run(make(forward))
    assert outcome.status_code == 500
    assert "secret" not in outcome.status_message
    assert "Ask failed, told as #" in caplog.text


async def test_an_exception_without_a_text_is_told_all_the_same(make):
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    def verify(synapse):
        raise Mute

    outcome = await run(make(lambda s: s, verify=verify))
    assert outcome.status_message == "Not Verified with error: Mute"


async def test_a_status_that_is_no_number_is_a_failure(make):
    def forward(synapse):
        synapse.axon.__dict__.update(status_code="many", status_message=5)
        return synapse

    outcome = await run(make(forward))
    assert (outcome.status_code, outcome.status_message) == (500, "5")


async def test_without_a_terminal_it_is_a_success(make):
    def forward(synapse):
        synapse.axon = None
        return synapse

    dispatch = make(forward)
    outcome = await dispatch.run(
        Ask(dendrite=TerminalInfo()), "Ask", is_authenticated=True, timeout=None
    )
    assert (outcome.status_code, outcome.status_message) == (200, "Success")


async def test_who_is_not_known_is_verified_by_default(make):
    dispatch, asked = make(lambda s: s), []

    class Owner(Axon):
        def __init__(self):
            pass

        __str__ = __repr__ = object.__repr__

    owner = Owner()
    dispatch._axon.verify_fns["Ask"] = owner.default_verify
    owner._gate = SimpleNamespace(check_synapse=asked.append)
    assert not dispatch.verifies_itself("Ask")
    assert (await run(dispatch, authenticated=False)).status_code == 200
    assert len(asked) == 1
    assert (await run(dispatch)).status_code == 200
    assert len(asked) == 1
    dispatch._axon.verify_fns["Ask"] = asked.append
    assert dispatch.verifies_itself("Ask")
    assert not dispatch.verifies_itself("Nope")


def blocking(order, gate):
    def forward(synapse):
        order.append(synapse.n)
        assert gate.wait(20)
        return synapse

    return forward


async def test_plain_functions_wait_by_priority(make):
    order, gate = [], threading.Event()
    dispatch = make(blocking(order, gate), 1, 2, priority=lambda s: s.n)
    tasks = {n: asyncio.create_task(run(dispatch, n)) for n in (0,)}
    await until_async(lambda: order == [0])
    for waiting, n in enumerate((1, 5), 1):
        tasks[n] = asyncio.create_task(run(dispatch, n))
        await until_async(lambda waiting=waiting: dispatch.gate.waiting == waiting)
    assert (await run(dispatch, 0)).status_code == 503
    tasks[7] = asyncio.create_task(run(dispatch, 7))
    assert (
        await tasks.pop(1)
    ).status_message == "Service busy: 2 requests wait already"
    gate.set()
    assert [(await task).status_code for task in tasks.values()] == [200] * 3
    assert order == [0, 7, 5]
    await until_async(lambda: dispatch.gate.running == 0)


async def test_who_leaves_does_not_wait_any_more(make):
    order, gate = [], threading.Event()
    dispatch = make(blocking(order, gate), 1)
    tasks = [asyncio.create_task(run(dispatch, 0))]
    await until_async(lambda: order == [0])
    tasks.append(asyncio.create_task(run(dispatch, 1)))
    await until_async(lambda: dispatch.gate.waiting == 1)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert dispatch.gate.waiting == 0
    outcome = await run(dispatch, 2, timeout=0.01)
    assert (outcome.status_code, outcome.status_message) == (
        408,
        "Response timeout after: 0.01s",
    )
    gate.set()
    assert (await tasks[0]).status_code == 200
    assert order == [0]


def test_a_loop_that_has_ended_is_not_told(make):
    order, gate = [], threading.Event()
    dispatch = make(blocking(order, gate))

    async def leave():
        task = asyncio.create_task(run(dispatch))
        await until_async(lambda: order == [0])
        task.cancel()

    asyncio.run(leave())
    gate.set()
    until(lambda: dispatch.gate.running == 0)
