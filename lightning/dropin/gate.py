"""How many functions of an axon run at once, and which comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.work import Ticket, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Gate", "Ticket"]


class Gate(Work):
    """A `Work` with a short way in and out for what need not wait.

    Args:
        most: Requests worked on at once.
        most_waiting: Requests that wait; the one of lowest priority is refused for
            one above that.
    """

    def __init__(self, most: int, most_waiting: int) -> None:
        super().__init__(most=most, most_waiting=most_waiting)
        self.most = most
        self.most_waiting = most_waiting

    def begin(self) -> bool:
        """Begin a request at once, if there is room and nobody waits.

        Returns:
            Whether it has begun: `leave` is due when it has ended. Otherwise `admit`.
        """
        with self._lock:
            if self._running >= self.most or self._waiting:
                return False
            self._running += 1
            return True

    def leave(self) -> Sequence[Ticket]:
        """Note the end of a request that `begin` began.

        Returns:
            Those that are to begin now; `end` is due for each.
        """
        with self._lock:
            self._running -= 1
            if not self._waiting:
                return ()
            begun = []
            while (following := self._take_next()) is not None:
                begun.append(following)
            return begun
