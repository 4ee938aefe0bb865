"""The threads of a blocking server: they receive requests, run handlers and answer."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lightning._core.io.transport import ServerEndpoint
    from lightning.binding import Handler

__all__ = ["ServingThreads"]

# Seconds that a handler mostly takes, above which another thread receives meanwhile.
BRIEF = 0.0002
# What is assumed of one that had been brief, and holds up a thread.
LONG = 0.002

log = logging.getLogger("lightning.handlers")


class ServingThreads:
    """Threads that take turns at a server's socket.

    The one whose turn it is receives, and runs the handler of what came. Where that is
    brief, nobody else need be woken for it: the answer leaves, and it receives again. A
    handler that is not known to be brief is run by whoever may `take`, and has another
    thread receive meanwhile; where nobody may, it waits for one that ends. Should a
    brief one take long all of a sudden, the socket's own thread notices within some
    milliseconds, and there is one thread more, up to twice as many and one.

    Args:
        most: Threads that run handlers at a time, but for brief ones.
        suspects: Gives the handlers that run.
    """

    def __init__(self, most: int, suspects: Callable[[], Iterable[Handler]]) -> None:
        self._most = most
        self._suspects = suspects
        self._lock = threading.Lock()
        self._endpoint: ServerEndpoint | None = None
        self._handle: Callable[..., object] | None = None
        self._count = 0
        # One for each handler that may run; a deque's ends are safe to use in threads.
        self._free: deque[None] = deque()

    def start(self, endpoint: ServerEndpoint, handle: Callable[..., object]) -> None:
        """Serve an endpoint.

        Args:
            endpoint: Open.
            handle: Called with ``(connection, exchange, type, payload)``.
        """
        with self._lock:
            self._endpoint, self._handle, self._count = endpoint, handle, 0
            # Of an earlier endpoint some may run still, and end: there are no more.
            self._free = deque([None] * self._most, self._most)
        self._add(1)

    def stop(self) -> None:
        """Let the threads end: those that run a handler, when it returns."""
        with self._lock:
            self._endpoint = self._handle = None

    def add(self) -> None:
        """Start another thread, as requests wait and none is free."""
        # What took a thread all of a sudden is not brief, or not any more.
        for handler in self._suspects():
            handler.typical_seconds = max(handler.typical_seconds, LONG)
        self._add(2 * self._most + 1)

    @staticmethod
    def is_brief(handler: Handler) -> bool:
        """Say if a handler may be run by whoever receives."""
        return handler.typical_seconds <= BRIEF

    def may_run(self, handler: Handler) -> bool:
        """Have somebody else receive, if a handler may take long; say if one does."""
        if handler.typical_seconds <= BRIEF:
            return True
        endpoint = self._endpoint
        return endpoint is None or endpoint.yield_lead() or self._add(self._most + 1)

    def take(self) -> bool:
        """Begin to run handlers that may take long, while somebody else receives.

        Returns:
            True if this thread may; `give` is due. False if as many as may do: each of
            them looks after its `give` if anything waits, so what waits is to be left
            where they look before this is called.
        """
        try:
            self._free.pop()
        except IndexError:
            return False
        endpoint = self._endpoint
        if endpoint is None or endpoint.yield_lead() or self._add(self._most + 1):
            return True
        if self._count <= 2 * self._most:
            # Somebody is about to receive, or is at what should be brief: see `add`.
            return True
        # All others may be held up, and this is the last to say no.
        self._free.append(None)
        return False

    def give(self) -> None:
        """Run no more of them, after `take`."""
        self._free.append(None)

    def _add(self, most: int) -> bool:
        with self._lock:
            endpoint, handle = self._endpoint, self._handle
            if endpoint is None or handle is None or self._count >= most:
                return False
            thread = threading.Thread(
                target=_serve,
                args=(endpoint, handle),
                name=f"lightning-handler-{self._count}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:
                # The system's limit; those that exist carry on.
                log.warning("only %d handler threads can be started", self._count)
                return False
            self._count += 1
            return True


def _serve(endpoint: ServerEndpoint, handle: Callable[..., Any]) -> None:
    try:
        endpoint.serve(handle)
    except Exception:
        log.exception("a thread of the server failed")
