"""The daemon thread in which the blocking faces run their event loop."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

# Seconds that the interpreter's exit waits for a loop to stop.
EXIT_TIMEOUT = 1.0


class LoopThread:
    """An event loop in a daemon thread, started by the first call.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        _all.add(self)

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run a coroutine in the loop and wait for its result.

        Ctrl-C ends the wait at once and cancels the coroutine.

        Raises:
            RuntimeError: In a forked child, or from the loop's own thread.
        """
        loop = self._running_loop()
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a blocking call from the I/O thread would wait for itself: "
                "make it from another thread, or use the asyncio face"
            )
        future = asyncio.run_coroutine_threadsafe(function(*args), loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("the call was cut off: this object was closed") from None
        except BaseException:
            future.cancel()
            raise

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function in the loop soon, without waiting; dropped if it is gone."""
        loop = self._loop
        if loop is not None and os.getpid() == self._pid:
            try:
                loop.call_soon_threadsafe(function, *args)
            except RuntimeError:
                return  # Closed meanwhile.

    @property
    def is_running(self) -> bool:
        """Whether there is a loop in this process."""
        return self._loop is not None and os.getpid() == self._pid

    def finish(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a last coroutine and stop, without waiting; for finalizers."""
        loop = self._loop
        if loop is None or os.getpid() != self._pid:
            return

        def run() -> None:
            task = loop.create_task(function())
            task.add_done_callback(lambda _: loop.stop())

        self.post(run)
        self._loop = self._thread = None

    def stop(self) -> None:
        """Cancel what runs in the loop, and end the thread; fine if there is none."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or os.getpid() != self._pid:
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(EXIT_TIMEOUT)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this object was made before a fork and cannot be used in the child: "
                "make a new one there"
            )
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


_all: weakref.WeakSet[LoopThread] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    # A loop that still runs while the interpreter is taken apart would be noisy.
    for thread in list(_all):
        thread.stop()
