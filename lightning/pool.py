"""Threads for handlers, bounded and never in the way of an exit, and the way back."""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
from collections import deque
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from lightning.errors import HandlerError, ServerBusy
from lightning.logs import Throttled

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HandlerPool", "Mailbox", "Task"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

logger = Throttled(logging.getLogger("lightning.handlers"))


class Task(Protocol):
    """What a pool runs."""

    def execute(self) -> None:
        """Run in a thread of the pool; must not raise."""

    def abandon(self) -> None:
        """Learn that the pool was shut down first; must not block."""


class Mailbox:
    """Calls from threads to an event loop; calls made meanwhile share one wake-up."""

    __slots__ = ("_calls", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop, soon; it must not raise.

        Does nothing if the loop is closed. Called from any thread.
        """
        self._calls.append((callback, args))
        if self._woken:
            return
        self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            # The loop is closed, so nobody waits.
            self._calls.clear()
            self._woken = False

    def _deliver(self) -> None:
        # Before counting: what is not counted then wakes the loop again.
        self._woken = False
        for _ in range(len(self._calls)):
            callback, args = self._calls.popleft()
            callback(*args)


class HandlerPool(Executor):
    """Daemon threads for handlers, started when needed.

    A handler that never returns keeps its thread, but neither ``shutdown()`` nor the
    interpreter's exit waits for it.

    Args:
        max_workers: Most threads (``handler_threads``), default 512.
        max_waiting: Most tasks that wait for a thread; default 16384, as many as a
            server with default limits can have open.
    """

    def __init__(self, max_workers: int = 512, *, max_waiting: int = 16_384) -> None:
        self._max_workers = max_workers
        self._max_waiting = max_waiting
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False
        self._mailbox: Mailbox | None = None

    @property
    def unfinished(self) -> int:
        """Tasks that run or wait for a thread."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Tasks that wait for a thread."""
        return max(self._unfinished - self._max_workers, 0)

    def post(self, task: Task) -> None:
        """Run a task in a thread.

        Raises:
            ServerBusy: Every thread is busy and too many tasks wait.
            HandlerError: No thread can be started, or the pool is shut down.
        """
        with self._lock:
            if self._closed:
                raise HandlerError("the handler pool is shut down")
            if self._unfinished >= self._max_workers + self._max_waiting:
                raise ServerBusy(f"all {self._max_workers} handler threads are busy")
            if len(self._threads) < min(self._unfinished + 1, self._max_workers):
                self._start_thread()
            self._unfinished += 1
            self._tasks.put(task)

    def mailbox(self) -> Mailbox:
        """Return the way from a thread to the running event loop."""
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = Mailbox(loop)
        return mailbox

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_T]:
        """Run a function in a thread; see ``concurrent.futures.Executor``.

        Raises:
            HandlerError: As ``post``.
        """
        future: Future[_T] = Future()
        self.post(_Submitted(future, functools.partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Take no more tasks; those that run go on, those that wait are abandoned.

        Args:
            wait: Whether to wait for those that run; default False, unlike other
                executors, since handlers may be stuck.
            cancel_futures: False lets those that wait run first.
        """
        abandoned: list[Task] = []
        with self._lock:
            if not self._closed:
                self._closed = True
                if cancel_futures:
                    abandoned = self._drain()
                for _ in self._threads:
                    self._tasks.put(None)
        for task in abandoned:
            task.abandon()
        if wait:
            for thread in self._threads:
                thread.join()

    def _drain(self) -> list[Task]:
        tasks: list[Task] = []
        try:
            while (task := self._tasks.get_nowait()) is not None:
                tasks.append(task)
        except queue.Empty:
            pass
        self._unfinished -= len(tasks)
        return tasks

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work,
            name=f"lightning-handler-{len(self._threads)}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            # The system's limit; those that exist carry on.
            if not self._threads:
                raise HandlerError(f"no handler thread: {error}") from error
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task.execute()
            except BaseException:
                logger.exception("a task of the handler pool failed")
            # An idle thread must not keep the last request alive.
            del task
            with self._lock:
                self._unfinished -= 1


class _Submitted:
    __slots__ = ("_function", "_future")

    def __init__(self, future: Future[Any], function: Callable[[], Any]) -> None:
        self._future = future
        self._function = function

    def execute(self) -> None:
        if not self._future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)

    def abandon(self) -> None:
        self._future.cancel()
