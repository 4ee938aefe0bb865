"""Threads for handlers: bounded, reused, and never in the way of an exit."""

import asyncio
import gc
import inspect
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import CancelledError

import pytest

from lightning.config import LightningServerConfig
from lightning.errors import HandlerError
from lightning.pool import HandlerPool, Mailbox


class Gate:
    """Tasks that run until told to end."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)
        self.release = threading.Event()
        self.abandoned = 0

    def execute(self) -> None:
        self.running.release()
        self.release.wait(30)

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.release.set()


def test_defaults_are_those_of_the_settings() -> None:
    """As many threads as handler_threads, as many waiting as a server has streams."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(HandlerPool).parameters.items()
    }
    server = LightningServerConfig()
    assert defaults == {
        "max_workers": server.handler_threads,
        "max_waiting": server.max_connections * server.max_concurrent_bidi_streams,
    }


def test_runs_a_function_in_a_daemon_thread() -> None:
    """The result, the arguments and the thread are as for every executor."""
    with HandlerPool(2) as pool:
        assert pool.submit(divmod, 7, 2).result(30) == (3, 1)
        assert pool.submit(int, "ff", base=16).result(30) == 255
        thread = pool.submit(threading.current_thread).result(30)
    assert thread.daemon
    assert thread.name.startswith("lightning-handler-")


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_exception_belongs_to_its_future(error: type) -> None:
    """Whatever is raised is handed over; the thread lives on."""

    def fail() -> None:
        raise error

    with HandlerPool(1) as pool:
        with pytest.raises(error):
            pool.submit(fail).result(30)
        assert pool.submit(int).result(30) == 0


def test_threads_are_started_when_needed_and_no_more(gate) -> None:
    """A free thread is used again; a busy pool grows up to its limit."""
    pool = HandlerPool(3)
    first = pool.submit(threading.current_thread).result(30)
    deadline = time.monotonic() + 30
    while pool.unfinished and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    assert pool.submit(threading.current_thread).result(30) is first
    for _ in range(5):
        pool.post(gate)
    for _ in range(3):
        assert gate.running.acquire(timeout=30)
    assert not gate.running.acquire(blocking=False)
    assert pool.unfinished == 5
    assert len(pool._threads) == 3
    gate.release.set()
    pool.shutdown(wait=True, cancel_futures=False)
    assert pool.unfinished == 0


def test_too_many_waiting_tasks_are_refused(gate) -> None:
    """With every thread busy and the queue full, posting says so at once."""
    pool = HandlerPool(1, max_waiting=2)
    for _ in range(3):
        pool.post(gate)
    for _ in range(3):
        with pytest.raises(HandlerError, match="all 1 handler threads are busy"):
            pool.post(gate)
    with pytest.raises(HandlerError, match="busy"):
        pool.submit(int)
    gate.release.set()
    pool.shutdown(wait=True, cancel_futures=False)


def test_shutdown_abandons_what_waits(gate) -> None:
    """Running tasks go on, waiting ones are told, later ones refused."""
    pool = HandlerPool(1)
    pool.post(gate)
    assert gate.running.acquire(timeout=30)
    waiting = pool.submit(int)
    pool.post(gate)
    pool.shutdown()
    assert gate.abandoned == 1
    with pytest.raises(CancelledError):
        waiting.result(0)
    with pytest.raises(HandlerError, match="shut down"):
        pool.post(gate)
    assert pool.unfinished == 1
    pool.shutdown()
    gate.release.set()
    pool.shutdown(wait=True)
    assert pool.unfinished == 0


def test_shutdown_may_let_waiting_tasks_run(gate) -> None:
    """With cancel_futures=False what waits runs before the threads end."""
    pool = HandlerPool(1)
    pool.post(gate)
    waiting = pool.submit(int)
    pool.shutdown(cancel_futures=False)
    gate.release.set()
    assert waiting.result(30) == 0
    pool.shutdown(wait=True)


def test_a_cancelled_future_never_runs(gate) -> None:
    """Cancelling in time keeps the function from running."""
    pool = HandlerPool(1)
    pool.post(gate)
    ran = []
    waiting = pool.submit(ran.append, 1)
    assert waiting.cancel()
    gate.release.set()
    pool.submit(int).result(30)
    assert not ran
    pool.shutdown(wait=True)


def test_a_broken_task_is_logged_and_the_thread_lives(caplog) -> None:
    """A task that breaks its promise not to raise costs a log line."""

    class Broken:
        def execute(self) -> None:
            raise ZeroDivisionError

        def abandon(self) -> None: ...

    with HandlerPool(1) as pool:
        pool.post(Broken())
        assert pool.submit(int).result(30) == 0
    assert "ZeroDivisionError" in caplog.text


def test_an_idle_thread_keeps_nothing_alive() -> None:
    """What a task referred to is freed when it is done."""

    class Thing:
        pass

    with HandlerPool(1) as pool:
        thing = Thing()
        gone = weakref.ref(thing)
        future = pool.submit(lambda thing: None, thing)
        future.result(30)
        del thing, future
        pool.submit(int).result(30)
        gc.collect()
        assert gone() is None


def test_no_thread_to_be_had(monkeypatch, gate) -> None:
    """The system's refusal is an error only if there is no thread at all."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = HandlerPool(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(HandlerError, match="no handler thread: can't start"):
            pool.post(gate)
        assert pool.unfinished == 0
    pool.post(gate)
    assert gate.running.acquire(timeout=30)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        waiting = pool.submit(int)
    gate.release.set()
    assert waiting.result(30) == 0
    pool.shutdown(wait=True)


# The way back to the loop.


async def test_calls_from_a_thread_share_one_wake_up(monkeypatch) -> None:
    """Calls arrive in order; only the first of those that wait wakes the loop."""
    loop = asyncio.get_running_loop()
    mailbox = Mailbox(loop)
    wake_ups = []
    seen: list[int] = []
    original = loop.call_soon_threadsafe

    def counting(*args):
        wake_ups.append(1)
        return original(*args)

    def post_many() -> None:
        for i in range(100):
            mailbox.post(seen.append, i)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    thread = threading.Thread(target=post_many)
    thread.start()
    thread.join()
    await asyncio.sleep(0)
    assert seen == list(range(100))
    assert len(wake_ups) == 1
    mailbox.post(seen.append, 100)
    await asyncio.sleep(0)
    assert seen[-1] == 100
    assert len(wake_ups) == 2


async def test_a_call_made_by_a_call_comes_in_the_next_turn() -> None:
    """A callback that posts again does not keep the loop from its other work."""
    mailbox = Mailbox(asyncio.get_running_loop())
    seen = []

    def again() -> None:
        seen.append(1)
        mailbox.post(again)

    mailbox.post(again)
    for turns in range(1, 4):
        await asyncio.sleep(0)
        assert len(seen) == turns


def test_posting_to_a_closed_loop_keeps_nothing() -> None:
    """Nobody is there to be told."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    for _ in range(3):
        mailbox.post(print)
        assert not mailbox._calls


async def test_a_pool_keeps_one_mailbox_for_a_loop() -> None:
    """It is made again for another loop."""
    pool = HandlerPool(1)
    first = pool.mailbox()
    assert pool.mailbox() is first
    assert first.loop is asyncio.get_running_loop()

    def elsewhere() -> Mailbox:
        async def get() -> Mailbox:
            return pool.mailbox()

        return asyncio.run(get())

    assert await asyncio.to_thread(elsewhere) is not first
    assert pool.mailbox() is not first


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyboardInterrupt", 130),
        ("pool.shutdown()", 0),
        ("asyncio.run(serve())", 0),
        ("asyncio.run(exit_in_handler())", 0),
    ],
)
def test_stuck_handlers_do_not_hold_up_the_exit(ending: str, code: int) -> None:
    """A process whose handlers never return ends at once, with its own exit code."""
    program = """
        import asyncio, sys, threading
        from lightning.handlers import HandlerPool, HandlerTable, call, stream

        pool = HandlerPool(8)
        stuck = threading.Event()
        entered = threading.Semaphore(0)

        def wait_for_ever(data):
            entered.release()
            stuck.wait()

        def generate_for_ever(data):
            entered.release()
            stuck.wait()
            yield b""

        table = HandlerTable()
        plain = table.add("plain", wait_for_ever)
        chunks = table.add_streaming("chunks", generate_for_ever)

        def run(handler):
            return asyncio.wrap_future(pool.submit(call, handler, {}, None))

        async def serve():
            for one in (run(plain),
                        anext(stream(chunks, {}, None, pool))):
                try:
                    await asyncio.wait_for(one, 0.05)
                except TimeoutError:
                    pass
                entered.acquire()

        async def exit_in_handler():
            handler = table.add("exit", lambda data: sys.exit(7))
            try:
                await run(handler)
            except RuntimeError as error:
                assert "SystemExit: 7" in str(error)

        pool.submit(wait_for_ever, {})
        entered.acquire()
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program) + ending],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    elapsed = time.monotonic() - started
    # A process that a signal would have ended reports it as the shell does, or as such.
    assert done.returncode in ({code, -2} if code == 130 else {code}), done.stderr
    if code != 130:
        assert done.stderr == ""
    assert elapsed < 40
