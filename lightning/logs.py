"""Logging of what a peer can cause as often as it likes.

`Throttled` stands before a logger and lets the first lines of each event pass; after
these one a minute, which says how many it stands for. All of the package's loggers are
below ``lightning``, which is silent until the program that uses it adds a handler.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Throttle", "Throttled"]

# Without it, Python would print warnings of a program that has not set up logging.
logging.getLogger("lightning").addHandler(logging.NullHandler())

# Lines of one event that pass at once, and seconds until another may.
BURST = 10
INTERVAL = 60.0
# For what happens as validators and miners come and go: as many as there may be.
BURST_OF_PEERS = 256
INTERVAL_OF_PEERS = 1.0
# Events that are told apart; more are counted as one.
MAX_EVENTS = 256


class _Event:
    """How often one event was told, and how often it was not."""

    __slots__ = ("held_back", "since", "tokens", "updated")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.updated = now
        self.held_back = 0
        self.since = now


class Throttle:
    """Says of each event whether it is to be told: policy, without a clock or a log.

    Each event may be told ``burst`` times at once, and again every ``interval``.
    Memory is bounded: the events beyond the first ``max_events`` share one budget.
    It does not lock.

    Args:
        burst: Times at once.
        interval: Seconds until one more time is earned.
        max_events: Events told apart.
    """

    __slots__ = ("_burst", "_events", "_interval", "_max_events")

    def __init__(
        self,
        burst: int = BURST,
        interval: float = INTERVAL,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self._burst = burst
        self._interval = interval
        self._max_events = max_events
        self._events: dict[Hashable, _Event] = {}

    def take(
        self, event: Hashable, now: float, burst: int | None = None
    ) -> tuple[int, float] | None:
        """Note an event.

        Args:
            event: What happened.
            now: Monotonic seconds.
            burst: Times at once, if other than for all.

        Returns:
            None if it is not to be told. Else how many of its kind were not, since
            the last that was, and for how many seconds.
        """
        burst = burst or self._burst
        state = self._events.get(event)
        if state is None:
            if len(self._events) >= self._max_events:
                event = None
                state = self._events.get(event)
            if state is None:
                state = self._events[event] = _Event(burst, now)
        earned = max(now - state.updated, 0) / self._interval
        state.tokens = min(state.tokens + earned, burst)
        state.updated = now
        if state.tokens < 1:
            if not state.held_back:
                state.since = now
            state.held_back += 1
            return None
        state.tokens -= 1
        held_back, state.held_back = state.held_back, 0
        return held_back, now - state.since if held_back else 0.0

    def drain(self) -> list[tuple[Hashable, int]]:
        """Return what was not told, with how often, and start anew."""
        events, self._events = self._events, {}
        return [(e, state.held_back) for e, state in events.items() if state.held_back]


class Throttled:
    """A logger for what a peer can cause; from any thread.

    An event is a message before its arguments are filled in, or that and a ``key``,
    which must come from a set that no peer can make grow. Each call takes the ``key``,
    a ``burst`` if other than for all, and ``exc_info`` as a logger does.

    Args:
        log: The logger behind it.
        burst: Lines of one event that pass at once.
        interval: Seconds until another may.
        clock: Monotonic seconds.
    """

    __slots__ = ("_clock", "_lock", "_log", "_throttle")

    def __init__(
        self,
        log: logging.Logger,
        burst: int = BURST,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._throttle = Throttle(burst, interval)

    def debug(self, message: str, *args: object, **more: Any) -> None:
        """Tell something that only matters while looking for a fault."""
        self._tell(logging.DEBUG, message, args, **more)

    def info(self, message: str, *args: object, **more: Any) -> None:
        """Tell something that is as it should be."""
        self._tell(logging.INFO, message, args, **more)

    def warning(self, message: str, *args: object, **more: Any) -> None:
        """Tell something that an operator should look at."""
        self._tell(logging.WARNING, message, args, **more)

    def error(self, message: str, *args: object, **more: Any) -> None:
        """Tell something that has to be mended."""
        self._tell(logging.ERROR, message, args, **more)

    def exception(self, message: str, *args: object, **more: Any) -> None:
        """Tell something that has to be mended, with the exception being handled."""
        self._tell(logging.ERROR, message, args, exc_info=True, **more)

    def log(self, level: int, message: str, *args: object, **more: Any) -> None:
        """Tell something at a level of `logging`."""
        self._tell(level, message, args, **more)

    def _tell(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        *,
        key: Hashable = None,
        burst: int | None = None,
        exc_info: Any = None,
    ) -> None:
        if not self._log.isEnabledFor(level):
            return
        with self._lock:
            told = self._throttle.take((message, key), self._clock(), burst)
        if told is None:
            return
        if told[0]:
            message += " (and %d more like this in %.0f s)"
            args = (*args, *told)
        # The caller is two functions up.
        self._log.log(level, message, *args, exc_info=exc_info, stacklevel=3)

    def flush(self) -> None:
        """Tell how many lines were held back; for when it ends."""
        with self._lock:
            left = self._throttle.drain()
        for event, count in left:
            message = "others" if event is None else event[0]  # type: ignore[index]  # A pair, by `_tell`.
            self._log.info("held back %d lines like: %s", count, message)
