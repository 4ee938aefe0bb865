"""The daemon thread in which the blocking faces run their event loop."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

# Seconds for the last coroutine of a loop, and again for tasks that were cancelled.
CLOSE_TIMEOUT = 2.0
TASKS_TIMEOUT = 0.5
# Seconds that the interpreter's exit waits for all loops together.
EXIT_TIMEOUT = 1.5

log = logging.getLogger("lightning.loop")


class LoopGone(RuntimeError):
    """The event loop that a call was meant for has ended."""


class LoopThread:
    """An event loop in a daemon thread, started by the first call.

    It can be started again after it was stopped. Safe to use from many threads.

    Args:
        name: Of the thread.
        closing: A last coroutine function, run however the loop ends; it must not
            refer to the owner of this object, whose finalizer is what ends the loop.
    """

    def __init__(
        self, name: str, closing: Callable[[], Coroutine[Any, Any, object]]
    ) -> None:
        self._name = name
        self._closing = closing
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        _all.add(self)

    @property
    def is_running(self) -> bool:
        """Whether there is a loop in this process."""
        return self._loop is not None and os.getpid() == self._pid

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run a coroutine in the loop and wait for its result.

        Ctrl-C ends the wait at once and cancels the coroutine.

        Raises:
            RuntimeError: In a forked child, from the loop's own thread, or the loop
                was stopped meanwhile.
        """
        return self.call_in(None, function, *args)

    def call_in(
        self,
        loop: asyncio.AbstractEventLoop | None,
        function: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
    ) -> T:
        """Do as `call`, but only in this very loop, unless it is None.

        Raises:
            LoopGone: It has ended; the function was not called.
            RuntimeError: As `call`.
        """
        self._check_caller()
        call = _Call(function, args)
        try:
            with self._lock:
                # Under the lock, so that nothing is scheduled after the loop's stop.
                call.schedule(self._current(loop))
                # After it, so that a new thread finds its work instead of sleeping.
                if self._thread is None:
                    self._start()
            return call.result()
        except BaseException:
            call.cancel()
            raise

    def begin(
        self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> concurrent.futures.Future[T]:
        """Run a coroutine in the loop without waiting.

        Returns:
            Its result to come. Cancelling it cancels the coroutine; the loop's end
            cancels it.

        Raises:
            RuntimeError: In a forked child, or from the loop's own thread.
        """
        self._check_caller()
        with self._lock:
            # Under the lock, as in `call_in`.
            future = asyncio.run_coroutine_threadsafe(
                function(*args), self._current(None)
            )
            if self._thread is None:
                self._start()
        return future

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function in the loop soon, without waiting; dropped if it is gone."""
        # Called by finalizers, at any moment: it must not take the lock.
        loop = self._loop
        if loop is not None and os.getpid() == self._pid:
            _call_soon(loop, function, *args)

    def stop(self, *, wait: bool = True) -> None:
        """End the loop and its thread; fine if there is none.

        Args:
            wait: False returns at once, for finalizers.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is None or thread is None:
                return
            _call_soon(loop, loop.stop)
        if wait and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT + 2 * TASKS_TIMEOUT)

    def _check_caller(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this object was made before a fork and cannot be used in the child: "
                "make a new one there"
            )
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a blocking call from the I/O thread would wait for itself: "
                "make it from another thread, or use the asyncio face"
            )

    def _current(
        self, wanted: asyncio.AbstractEventLoop | None
    ) -> asyncio.AbstractEventLoop:
        if wanted is None and self._loop is None:
            self._loop = asyncio.new_event_loop()
        elif wanted is not None and wanted is not self._loop:
            raise LoopGone("the event loop has ended")
        return cast("asyncio.AbstractEventLoop", self._loop)

    def _start(self) -> None:
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        self._thread = threading.Thread(
            target=_run, args=(loop, self._closing), name=self._name, daemon=True
        )
        _threads.add(self._thread)
        try:
            self._thread.start()
        except RuntimeError:
            # The system has no more threads for us.
            _threads.discard(self._thread)
            self._loop = self._thread = None
            loop.close()
            raise


class _Call(Generic[T]):
    """One call, begun in a loop and waited for in another thread.

    It can be cancelled at any moment: Ctrl-C may come between any two lines.
    """

    __slots__ = ("_args", "_cancelled", "_done", "_function", "_loop", "_task")

    def __init__(
        self, function: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]
    ) -> None:
        self._function = function
        self._args = args
        self._cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[T] | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.call_soon_threadsafe(self._begin, loop)

    def result(self) -> T:
        """Wait for it."""
        self._done.acquire()
        task = cast("asyncio.Task[T]", self._task)
        if task.cancelled():
            raise RuntimeError("the call was cut off: this object was closed")
        return task.result()

    def cancel(self) -> None:
        """Let nothing go on, whether it has begun or not; fine if it is over."""
        self._cancelled = True
        if self._loop is not None:
            _call_soon(self._loop, self._cancel_task)

    # In the loop.

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._cancelled:
            self._task = loop.create_task(self._function(*self._args))
            self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # Perhaps nobody waits any more.
        self._done.release()

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _call_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any
) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return  # Closed meanwhile.


def _run(
    loop: asyncio.AbstractEventLoop,
    closing: Callable[[], Coroutine[Any, Any, object]],
) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        try:
            loop.run_until_complete(_wind_up(closing))
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            _threads.discard(threading.current_thread())


async def _wind_up(closing: Callable[[], Coroutine[Any, Any, object]]) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await closing()
    except Exception:
        log.exception("closing failed")
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=TASKS_TIMEOUT)
    await asyncio.get_running_loop().shutdown_asyncgens()


_all: weakref.WeakSet[LoopThread] = weakref.WeakSet()
# Also those whose LoopThread is no more, but which are still winding up.
_threads: set[threading.Thread] = set()


@atexit.register
def _stop_all() -> None:
    # A loop that still runs while the interpreter is taken apart would be noisy, and
    # the other ends would wait for their idle timeout.
    for loop_thread in list(_all):
        loop_thread.stop(wait=False)
    deadline = time.monotonic() + EXIT_TIMEOUT
    for thread in list(_threads):
        thread.join(max(0, deadline - time.monotonic()))
