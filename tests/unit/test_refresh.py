"""Asking resolvers now and then, whatever they do."""

import asyncio
import contextlib
import gc
import threading

import pytest

from lightning import refresh as refresh_module
from lightning.pool import HandlerPool
from lightning.refresh import refresh
from tests.support.waiting import until_async


@pytest.fixture
async def begin(monkeypatch):
    """Begin to ask a resolver every few milliseconds; gives what it said."""
    monkeypatch.setattr(refresh_module, "POLL_INTERVAL", 0.005)
    pool = HandlerPool(4)
    tasks = []

    def begin(resolver, take=None, asked=None, look_up=None, interval=0.005):
        taken = []
        coroutine = refresh(
            "things",
            look_up or (lambda: resolver),
            interval,
            take or taken.append,
            pool,
            asked or asyncio.Event(),
        )
        tasks.append(asyncio.create_task(coroutine))
        return taken

    yield begin
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    pool.shutdown(wait=True)


async def answer_later():
    await asyncio.sleep(0)
    return 1


class Resolver:
    async def __call__(self):
        return threading.current_thread().name


@pytest.mark.parametrize(
    "resolver", [lambda: 1, answer_later, lambda: asyncio.sleep(0, 1)], ids=range(3)
)
async def test_every_form_of_a_resolver_is_asked_again_and_again(begin, resolver):
    taken = begin(resolver)
    await until_async(lambda: taken[:3] == [1, 1, 1])


async def test_a_coroutine_that_comes_too_late_is_closed():
    """Whoever stops asking does not leave one behind that was never awaited."""
    pool = HandlerPool(1)
    begun, release = threading.Event(), threading.Event()

    def resolve():
        begun.set()
        release.wait(10)
        return asyncio.sleep(0)

    task = asyncio.create_task(refresh_module._ask(resolve, pool))
    await until_async(begun.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    pool.shutdown(wait=True)
    gc.collect()  # A warning would be an error.


async def test_plain_functions_run_in_a_thread_and_coroutines_on_the_loop(begin):
    in_thread = begin(lambda: threading.current_thread().name)
    on_loop = begin(Resolver())
    await until_async(lambda: in_thread and on_loop)
    assert in_thread[0].startswith("lightning-handler")
    assert on_loop[0] == threading.current_thread().name


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("why"), StopIteration("why"), SystemExit("why"), TimeoutError("why")],
    ids=repr,
)
async def test_a_failure_is_logged_and_it_goes_on(begin, error, asynchronous, caplog):
    """Not even what would end a thread's or a loop's work ends this."""
    errors = [error] * 2
    asked = asyncio.Event()

    def resolve():
        if errors:
            raise errors.pop()
        return "fine"

    async def resolve_later():
        return resolve()

    taken = begin(resolve_later if asynchronous else resolve, asked=asked)
    await until_async(lambda: taken)
    assert taken[0] == "fine"
    assert asked.is_set()
    assert caplog.text.count("things not refreshed, the old ones stay") == 2
    assert "why" in caplog.text


async def test_who_failed_is_asked_again_before_the_interval_is_over(
    begin, monkeypatch
):
    """A miner whose chain was away at the start does not turn away all for long."""
    monkeypatch.setattr(refresh_module, "RETRY_INTERVAL", 0.005)
    answers = iter([ValueError("away"), ValueError("still"), 7])

    def resolve():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    taken = begin(resolve, interval=3600)
    await until_async(lambda: taken == [7])


async def test_an_interrupt_in_a_thread_is_not_the_users(begin, caplog):
    def resolve():
        raise KeyboardInterrupt

    begin(resolve)
    await until_async(lambda: "things not refreshed" in caplog.text)
    assert "the resolver raised KeyboardInterrupt" in caplog.text


async def test_an_answer_that_is_not_taken_is_a_failure(begin, caplog):
    def take(answer):
        raise TypeError("nonsense")

    asked = asyncio.Event()
    begin(lambda: 1, take, asked)
    await until_async(lambda: "nonsense" in caplog.text)
    await until_async(asked.is_set)


async def test_it_waits_until_there_is_a_resolver(begin):
    resolvers, looks = [], []
    asked = asyncio.Event()

    def look_up():
        looks.append(1)
        return resolvers[0] if resolvers else None

    taken = begin(None, asked=asked, look_up=look_up)
    await until_async(lambda: len(looks) > 2)
    assert not asked.is_set()
    resolvers.append(lambda: 1)
    await until_async(lambda: taken)


async def test_who_does_not_answer_is_complained_of_and_not_asked_twice(
    begin, caplog, monkeypatch
):
    monkeypatch.setattr(refresh_module, "COMPLAINT_INTERVAL", 0.01)
    release = threading.Event()
    calls = []

    def resolve():
        calls.append(1)
        release.wait(10)
        return 1

    taken = begin(resolve)
    await until_async(lambda: caplog.text.count("has not answered yet") >= 3)
    assert (calls, taken) == ([1], [])
    release.set()
    await until_async(lambda: len(taken) > 1)


async def test_it_can_be_cancelled_while_it_waits(begin):
    release, waiting = threading.Event(), []

    async def wait():
        waiting.append(1)
        await asyncio.Event().wait()

    begin(lambda: (waiting.append(2), release.wait(10)))
    begin(wait)
    await until_async(lambda: set(waiting) == {1, 2})
    release.set()
