"""How important a request is: for a server that cannot work on all at once."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from lightning.binding import HandlerContext

__all__ = ["Priority", "StakePriority"]

Priority: TypeAlias = "Callable[[HandlerContext], float]"
"""Gives a request's priority; higher ones first."""

log = logging.getLogger("lightning.server")


class StakePriority:
    """Gives each request the stake of its validator as its priority.

    For `AsyncLightningServer.set_priority`. Validators without a stake have 0.

    Args:
        stakes: By hotkey: a mapping, which may change, or a callable that returns one.
            The callable is run in a thread of its own; until it has answered, and
            where it fails, what it said last holds.
        refresh_secs: Seconds between two calls of the callable, above 0.

    Raises:
        ConfigError: ``refresh_secs`` is not above 0.
        TypeError: ``stakes`` is neither.
    """

    def __init__(
        self,
        stakes: Mapping[str, float] | Callable[[], Mapping[str, float]],
        refresh_secs: float = 300.0,
    ) -> None:
        if not refresh_secs > 0:
            raise ConfigError("refresh_secs must be above 0")
        self._resolve: Callable[[], Mapping[str, float]] | None = None
        self._stakes: Mapping[str, float] = {}
        if isinstance(stakes, Mapping):
            self._stakes = stakes
        elif callable(stakes):
            self._resolve = stakes
        else:
            raise TypeError(
                f"stakes must be a mapping or a callable, not {type(stakes).__name__}"
            )
        self._interval = refresh_secs
        self._due_at = -math.inf
        self._asking = threading.Lock()

    def __call__(self, context: HandlerContext) -> float:
        """Return the stake of the request's validator."""
        if self._resolve is not None and time.monotonic() >= self._due_at:
            self._ask(self._resolve)
        return self._stakes.get(context.hotkey, 0.0)

    def _ask(self, resolve: Callable[[], Mapping[str, float]]) -> None:
        if not self._asking.acquire(blocking=False):
            return  # It is being asked.
        try:
            threading.Thread(
                target=self._refresh,
                args=(resolve,),
                name="lightning-handler-stakes",
                daemon=True,
            ).start()
        except RuntimeError:
            # The system has no more threads: later, perhaps.
            self._due_at = time.monotonic() + self._interval
            self._asking.release()

    def _refresh(self, resolve: Callable[[], Mapping[str, float]]) -> None:
        try:
            self._stakes = _checked(resolve())
        except BaseException:
            log.exception("stakes not refreshed, the old ones stay")
        finally:
            self._due_at = time.monotonic() + self._interval
            self._asking.release()


def _checked(stakes: Any) -> Mapping[str, float]:
    if not isinstance(stakes, Mapping):
        raise TypeError(f"stakes must be a mapping, not {type(stakes).__name__}")
    return stakes
