"""The daemon thread in which the blocking faces run their event loop."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
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
        self._check_caller()
        with self._lock:
            # Under the lock, so that nothing is scheduled after the loop's stop.
            loop = self._loop or self._start()
            future = asyncio.run_coroutine_threadsafe(function(*args), loop)
        return _result(future)

    def call_in(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
    ) -> T:
        """Do as `call`, but only in this very loop.

        Raises:
            LoopGone: It has ended; the function was not called.
            RuntimeError: As `call`.
        """
        self._check_caller()
        with self._lock:
            if self._loop is not loop:
                raise LoopGone("the event loop has ended")
            future = asyncio.run_coroutine_threadsafe(function(*args), loop)
        return _result(future)

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

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=_run, args=(loop, self._closing), name=self._name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # The system has no more threads for us.
            loop.close()
            raise
        _threads.add(thread)
        self._loop, self._thread = loop, thread
        return loop


def _result(future: concurrent.futures.Future[T]) -> T:
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise RuntimeError("the call was cut off: this object was closed") from None
    except BaseException:
        future.cancel()
        raise


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
