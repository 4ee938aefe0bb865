"""The thread that runs a blocking face's event loop."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lightning._core.io import loop as loop_module
from lightning._core.io.loop import LoopGone, LoopThread
from tests.support.waiting import until


class Owner:
    """Has a loop thread, and notes how it ends."""

    def __init__(self) -> None:
        self.closings: list[str] = []
        closings = self.closings

        async def closing() -> None:
            closings.append(threading.current_thread().name)

        self.io = LoopThread("owner", closing)

    def __del__(self) -> None:
        self.io.stop(wait=False)


@pytest.fixture
def owner():
    owner = Owner()
    yield owner
    owner.io.stop()


async def name_of_thread() -> str:
    return threading.current_thread().name


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "owner"]


def test_a_call_gives_the_result_or_raises(owner):
    async def fail(text: str) -> None:
        raise ZeroDivisionError(text)

    assert not owner.io.is_running
    assert owner.io.call(name_of_thread) == "owner"
    assert owner.io.is_running
    with pytest.raises(ZeroDivisionError, match="why"):
        owner.io.call(fail, "why")
    assert len(threads()) == 1
    assert threads()[0].daemon


def test_it_stops_and_starts_again(owner):
    for count in (1, 2, 3):
        owner.io.call(name_of_thread)
        owner.io.stop()
        owner.io.stop()
        assert owner.closings == ["owner"] * count
        assert not owner.io.is_running
        assert not threads()


def test_to_stop_what_never_ran_is_fine(owner):
    owner.io.stop()
    owner.io.post(lambda: None)
    assert owner.closings == []


def test_what_runs_is_cut_off_by_a_stop(owner):
    started = threading.Event()
    errors = []

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            owner.io.call(wait)
        except RuntimeError as error:
            errors.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert started.wait(10)
    owner.io.stop()
    caller.join(10)
    assert errors == ["the call was cut off: this object was closed"]


def test_calls_from_many_threads_race_with_stops(owner):
    """Each call gets a result or is cut off; none hangs."""
    outcomes = []

    def call_often() -> None:
        for _ in range(50):
            try:
                outcomes.append(owner.io.call(name_of_thread))
            except RuntimeError as error:
                outcomes.append(str(error))

    callers = [threading.Thread(target=call_often) for _ in range(4)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        owner.io.stop()
    assert len(outcomes) == 200
    assert set(outcomes) <= {"owner", "the call was cut off: this object was closed"}


def test_a_call_from_its_own_thread_says_so(owner):
    async def call_again() -> None:
        owner.io.call(name_of_thread)

    with pytest.raises(RuntimeError, match="would wait for itself"):
        owner.io.call(call_again)


def test_a_stop_from_its_own_thread_does_not_wait_for_itself(owner):
    async def stop() -> None:
        owner.io.stop()

    owner.io.call(stop)
    until(lambda: not threads())
    assert owner.closings == ["owner"]


def test_a_call_may_insist_on_its_loop(owner):
    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loop = owner.io.call(running)
    assert owner.io.call_in(loop, running) is loop
    owner.io.stop()
    for _ in range(2):
        with pytest.raises(LoopGone):
            owner.io.call_in(loop, running)
        assert owner.io.call(running) is not loop


def test_posting_does_not_wait_and_is_dropped_afterwards(owner):
    ran = threading.Event()
    owner.io.call(name_of_thread)
    owner.io.post(ran.set)
    assert ran.wait(10)
    loop = owner.io._loop
    owner.io.stop()
    owner.io.post(ran.clear)
    loop_module._call_soon(loop, ran.clear)
    assert ran.is_set()


def test_it_ends_with_its_owner():
    owner = Owner()
    closings = owner.closings
    owner.io.call(name_of_thread)
    del owner
    gc.collect()
    until(lambda: not threads())
    assert closings == ["owner"]


def test_a_closing_that_fails_or_hangs_does_not_keep_the_thread(
    unforeseen, monkeypatch
):
    monkeypatch.setattr(loop_module, "CLOSE_TIMEOUT", 0.1)

    async def fail() -> None:
        raise ZeroDivisionError

    async def hang() -> None:
        await asyncio.Event().wait()

    for closing in (fail, hang):
        io = LoopThread("owner", closing)
        io.call(name_of_thread)
        io.stop()
        assert not threads()
    assert [r.exc_info[0] for r in unforeseen] == [ZeroDivisionError, TimeoutError]
    unforeseen.clear()


def test_a_task_that_resists_its_cancellation_is_left(owner, unforeseen, monkeypatch):
    monkeypatch.setattr(loop_module, "TASKS_TIMEOUT", 0.1)
    started = threading.Event()

    async def resist() -> None:
        while True:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def begin() -> None:
        owner.tasks = [asyncio.create_task(resist())]

    owner.io.call(begin)
    assert started.wait(10)
    owner.io.stop()
    assert not threads()
    owner.tasks.clear()
    gc.collect()
    assert ["Task was destroyed" in r.getMessage() for r in unforeseen] == [True]
    unforeseen.clear()


def test_a_thread_that_cannot_start_leaves_it_stopped(owner, monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            owner.io.call(name_of_thread)
    assert owner.io.call(name_of_thread) == "owner"


def test_ctrl_c_ends_a_call_at_once_and_cancels_it(owner):
    cancelled = threading.Event()
    times = []

    async def wait() -> None:
        threading.Timer(0, interrupt).start()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def interrupt() -> None:
        times.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        owner.io.call(wait)
    assert time.monotonic() - times[0] < 2
    assert cancelled.wait(10)
    assert owner.io.call(name_of_thread) == "owner"


def test_a_call_that_is_cancelled_before_it_began_never_begins(owner):
    """Ctrl-C may come between any two lines."""
    begun = []

    async def begin() -> None:
        begun.append(1)

    owner.io.call(name_of_thread)
    call = loop_module._Call(begin, ())
    call.cancel()
    call.schedule(owner.io._loop)
    assert owner.io.call(name_of_thread) == "owner"
    assert not begun


def test_a_forked_child_gets_a_clear_error(owner):
    """And it neither hangs nor disturbs its parent when it exits."""
    owner.io.call(name_of_thread)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            owner.io.call(name_of_thread)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        assert not owner.io.is_running
        owner.io.post(lambda: None)
        owner.io.stop()
        loop_module._stop_all()
        os._exit(7)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        assert "made before a fork" in pipe.read()
    assert os.waitstatus_to_exitcode(status) == 7
    assert owner.io.call(name_of_thread) == "owner"


@pytest.mark.parametrize("run", range(4))
def test_an_exit_with_loops_left_running_is_silent(run):
    """Their closing runs, one that hangs is left, and the exit code is kept."""
    last = "hang" if run == 3 else "closing"
    code = """
import asyncio, contextlib, os, sys, threading
from lightning._core.io.loop import LoopThread

async def closing():
    os.write(1, b"closed;")

async def hang():
    await asyncio.Event().wait()

async def work():
    tasks.append(asyncio.create_task(asyncio.sleep(100)))

def call(io):
    with contextlib.suppress(RuntimeError):
        io.call(hang)

tasks = []
left = [LoopThread("a", closing), LoopThread("b", closing), LoopThread("c", LAST)]
for io in left:
    io.call(work)
threading.Thread(target=call, args=left[:1], daemon=True).start()
sys.exit(5)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code.replace("LAST", last)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    closed = "closed;" * (2 if last == "hang" else 3)
    assert (done.returncode, done.stdout, done.stderr) == (5, closed, "")
    assert time.monotonic() - began < 5
