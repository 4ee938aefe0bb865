"""A pool of threads that takes what is most important first."""

from __future__ import annotations

import argparse
import heapq
import logging
import os
import queue
import threading
from concurrent.futures import Executor, Future
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.dropin.settings import Config, add_once, number_from

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrokenThreadPool", "PriorityThreadPoolExecutor"]

T = TypeVar("T")

log = logging.getLogger("lightning.axon")


class PriorityThreadPoolExecutor(Executor):
    """Runs functions in daemon threads, those of the highest priority first.

    Of equal ones the earliest is first. Whatever is submitted runs, however long it has
    waited, unless its future is cancelled: every future is resolved. Neither the
    interpreter's exit nor the end of this object waits for what runs.

    Args:
        maxsize: Functions that may wait; 0 or less for any number.
        max_workers: Threads; None for five a processor.
        thread_name_prefix: Of the threads' names.
        initializer: Called in each thread first. If it raises, the pool is broken.
        initargs: Its arguments.

    Raises:
        ValueError: ``max_workers`` is not above 0.
        TypeError: ``initializer`` cannot be called.
    """

    def __init__(
        self,
        maxsize: int = -1,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = (os.cpu_count() or 1) * 5
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers
        self._prefix = thread_name_prefix or "lightning-handler-pool"
        self._queue = _Queue(maxsize, initializer, initargs)

    def __del__(self) -> None:
        # Nothing was started by a constructor that failed.
        if waiting := getattr(self, "_queue", None):
            waiting.close(cancel=False)

    @classmethod
    def add_args(
        cls, parser: argparse.ArgumentParser, prefix: str | None = None
    ) -> None:
        """Add the arguments ``--priority.max_workers`` and ``--priority.maxsize``.

        Args:
            parser: Takes them; those that it has already stay as they are.
            prefix: Goes before their names, with a dot.
        """
        start = "--" if prefix is None else f"--{prefix}."
        add_once(
            parser,
            f"{start}priority.max_workers",
            type=int,
            help="maximum number of threads in the pool",
            default=number_from("BT_PRIORITY_MAX_WORKERS", 5),
        )
        add_once(
            parser,
            f"{start}priority.maxsize",
            type=int,
            help="maximum number of tasks that wait for a thread",
            default=number_from("BT_PRIORITY_MAXSIZE", 10),
        )

    @classmethod
    def config(cls) -> Config:
        """Read the arguments from the command line."""
        parser = argparse.ArgumentParser(add_help=False)
        cls.add_args(parser)
        return Config(parser)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for a thread."""
        return not self._queue.entries

    def submit(  # type: ignore[override]  # The priority is the point of this class.
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        priority: float | None = None,
        **kwargs: Any,
    ) -> Future[T]:
        """Run a function in a thread.

        Args:
            fn: The function.
            args: Its arguments.
            priority: Any number, higher ones first; None counts as 0.
            kwargs: Its keyword arguments.

        Raises:
            BrokenThreadPool: An initializer failed.
            RuntimeError: The pool is shut down.
            queue.Full: As many as ``maxsize`` wait.
        """
        future: Future[T] = Future()
        work = (future, fn, args, kwargs)
        if self._queue.put(float(priority or 0), work, self._max_workers):
            self._start_thread()
        return future

    def _start_thread(self) -> None:
        waiting = self._queue
        thread = threading.Thread(
            target=waiting.work,
            name=f"{self._prefix}_{waiting.count()}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            # The system's limit; those that exist carry on.
            if waiting.lose() == 0:
                waiting.fail(f"no thread can be started: {error}")

    def rest(self) -> None:
        """Let the threads end that have nothing to do; others start when needed."""
        self._queue.rest()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more functions.

        Args:
            wait: Whether to wait until all that were submitted have run.
            cancel_futures: Whether to cancel those that wait.
        """
        self._queue.close(cancel=cancel_futures)
        if wait:
            self._queue.join()


class _Queue:
    """What the threads of a pool share; it does not refer to the pool."""

    def __init__(
        self, maxsize: int, initializer: Any, initargs: tuple[Any, ...]
    ) -> None:
        self.entries: list[tuple[float, int, Any]] = []
        self._maxsize = maxsize
        self._initializer = initializer
        self._initargs = initargs
        self._changed = threading.Condition()
        self._order = 0
        self._threads = 0
        self._started = 0
        self._idle = 0
        self._epoch = 0
        self._closed = False
        self._broken = ""

    def put(self, priority: float, work: Any, most: int) -> bool:
        """Have work wait; say if there should be one thread more."""
        with self._changed:
            if self._broken:
                raise BrokenThreadPool(self._broken)
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if 0 < self._maxsize <= len(self.entries):
                raise queue.Full
            self._order += 1
            heapq.heappush(self.entries, (-priority, self._order, work))
            if self._idle >= len(self.entries):
                self._changed.notify()
                return False
            if self._threads >= most:
                return False
            self._threads += 1
            return True

    def count(self) -> int:
        """Return the number of the next thread."""
        self._started += 1
        return self._started - 1

    def lose(self) -> int:
        """Note that a thread is not there; return how many are."""
        with self._changed:
            self._threads -= 1
            self._changed.notify_all()
            return self._threads

    def rest(self) -> None:
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()

    def close(self, *, cancel: bool) -> None:
        with self._changed:
            self._closed = True
            entries: list[Any] = []
            if cancel:
                entries, self.entries = self.entries, entries
            self._changed.notify_all()
        for _, _, (future, *_) in entries:
            future.cancel()
            # Tells those that wait for it among others.
            future.set_running_or_notify_cancel()

    def fail(self, reason: str) -> None:
        """Let nothing run any more."""
        with self._changed:
            self._broken = reason
            entries, self.entries = self.entries, []
        for _, _, (future, *_) in entries:
            if future.set_running_or_notify_cancel():
                future.set_exception(BrokenThreadPool(reason))

    def join(self) -> None:
        with self._changed:
            while self._threads:
                self._changed.wait()

    def work(self) -> None:
        """Run what comes, in a thread."""
        try:
            if self._initializer is not None:
                try:
                    self._initializer(*self._initargs)
                except BaseException:
                    log.exception("the initializer of a pool of threads failed")
                    self.fail("an initializer failed, the pool is not usable any more")
                    return
            while (work := self._take()) is not None:
                _run(*work)
                # An idle thread must not keep the last function alive.
                del work
        finally:
            self.lose()

    def _take(self) -> Any:
        with self._changed:
            epoch = self._epoch
            while not self.entries:
                if self._closed or self._broken or epoch != self._epoch:
                    return None
                self._idle += 1
                try:
                    self._changed.wait()
                finally:
                    self._idle -= 1
            return heapq.heappop(self.entries)[2]


def _run(
    future: Future[Any], fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
