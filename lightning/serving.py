"""The threads of a blocking server: they receive requests, run handlers and answer."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning._core.io.transport import ServerEndpoint
    from lightning.binding import Handler

__all__ = ["ServingThreads"]

# Seconds that a handler mostly takes, above which another thread receives meanwhile.
BRIEF = 0.0002

log = logging.getLogger("lightning.handlers")


class ServingThreads:
    """Threads that take turns at a server's socket.

    The one whose turn it is receives, and runs the handler of what came. Where that is
    brief, nobody else need be woken for it: the answer leaves, and it receives again. A
    handler that is not known to be brief has another thread receive first. Should a
    brief one take long all of a sudden, the socket's own thread notices within some
    milliseconds.

    Args:
        most: Threads at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._endpoint: ServerEndpoint | None = None
        self._handle: Callable[..., object] | None = None
        self._count = 0

    def start(self, endpoint: ServerEndpoint, handle: Callable[..., object]) -> None:
        """Serve an endpoint.

        Args:
            endpoint: Open.
            handle: Called with ``(connection, exchange, type, payload)``.
        """
        with self._lock:
            self._endpoint, self._handle, self._count = endpoint, handle, 0
        self.add()

    def stop(self) -> None:
        """Let the threads end: those that run a handler, when it returns."""
        with self._lock:
            self._endpoint = self._handle = None

    def add(self) -> None:
        """Start another thread, unless there are enough."""
        with self._lock:
            endpoint, handle = self._endpoint, self._handle
            if endpoint is None or handle is None or self._count >= self._most:
                return
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
                return
            self._count += 1

    def about_to_run(self, handler: Handler) -> None:
        """Have somebody else receive, if a handler may take long."""
        if handler.typical_seconds <= BRIEF:
            return
        endpoint = self._endpoint
        if endpoint is not None and not endpoint.yield_lead():
            self.add()


def _serve(endpoint: ServerEndpoint, handle: Callable[..., Any]) -> None:
    try:
        endpoint.serve(handle)
    except Exception:
        log.exception("a thread of the server failed")
