"""Which miner speaks QUIC, and which only HTTP: remembered, and asked again later.

The chain does not say it. Whoever has not been asked yet is tried over QUIC for a short
time, and over HTTP after that. One that answered over HTTP is tried over QUIC again
beside a later request, after a minute and then half as often each time, up to an hour.
"""

from __future__ import annotations

import enum
import random
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Speaks", "Way"]

FIRST_PAUSE: Final = 60.0
"""Seconds until a miner that speaks HTTP is tried over QUIC again."""

LONGEST_PAUSE: Final = 3600.0
"""Seconds to which the pauses grow."""

FAILURES: Final = 2
"""Dials in a row that fail until a miner that spoke QUIC is tried over HTTP."""

MOST_KNOWN: Final = 16_384
"""Miners that are remembered; those that were asked long ago are forgotten."""


class Way(enum.Enum):
    """How to ask a miner."""

    QUIC = "quic"
    """It spoke QUIC."""

    HTTP = "http"
    """It spoke HTTP, and QUIC is not due."""

    HTTP_AND_DIAL = "http and dial"
    """It spoke HTTP; QUIC is to be tried beside the request."""

    EITHER = "either"
    """Nothing is known: QUIC for a short time, and then HTTP."""


class _Known:
    __slots__ = ("dial_at", "failures", "is_http", "pause")

    def __init__(self) -> None:
        self.is_http = False
        self.failures = 0
        self.pause = 0.0
        self.dial_at = 0.0


class Speaks:
    """What is known of miners, by their address and hotkey; safe for many threads.

    Args:
        chance: Gives numbers from 0 to 1, which spread the pauses.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def way(self, miner: Hashable, now: float) -> Way:
        """Return how to ask a miner.

        Args:
            miner: Its hotkey and address.
            now: Seconds of a monotonic clock.
        """
        with self._lock:
            known = self._known.get(miner)
            if known is None:
                return Way.EITHER
            self._known.move_to_end(miner)
            if not known.is_http:
                return Way.EITHER if known.failures >= FAILURES else Way.QUIC
            if now < known.dial_at:
                return Way.HTTP
            # The next one that asks need not dial.
            known.pause = min(2 * known.pause, LONGEST_PAUSE)
            known.dial_at = now + self._spread(known.pause)
            return Way.HTTP_AND_DIAL

    def spoke_quic(self, miner: Hashable) -> None:
        """Take note that a miner logged us in."""
        known = self._known.get(miner)
        if known is not None and not known.is_http and not known.failures:
            return  # As it was.
        with self._lock:
            known = self._note(miner)
            known.is_http, known.failures = False, 0

    def failed_quic(self, miner: Hashable) -> None:
        """Take note that a miner could not be reached over QUIC."""
        with self._lock:
            known = self._known.get(miner)
            if known is not None:
                known.failures += 1

    def spoke_http(self, miner: Hashable, now: float) -> None:
        """Take note that a miner answered over HTTP and not over QUIC."""
        with self._lock:
            known = self._note(miner)
            if not known.is_http:
                known.is_http, known.pause = True, FIRST_PAUSE
                known.dial_at = now + self._spread(FIRST_PAUSE)

    def failed_http(self, miner: Hashable) -> None:
        """Take note that a miner could not be reached over HTTP either."""
        with self._lock:
            self._known.pop(miner, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._known.clear()

    def _note(self, miner: Hashable) -> _Known:
        known = self._known.get(miner)
        if known is None:
            known = self._known[miner] = _Known()
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(miner)
        return known

    def _spread(self, pause: float) -> float:
        return pause * (0.75 + 0.5 * self._chance())
