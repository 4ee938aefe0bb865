"""Which requests are worked on, and in which order: policy without I/O or a clock.

A request begins at once where there is room for it. Otherwise it waits, those of the
highest priority first and of these the earliest. When too many wait, the one with the
lowest priority is refused, be it the newcomer; of these the one whose validator has the
most waiting. A validator that sends a lot so takes places from itself, not from others.

Use it from any thread: each call locks.
"""

from __future__ import annotations

import enum
import heapq
import threading
from collections import OrderedDict
from typing import Any, cast

__all__ = ["Ticket", "Verdict", "Work"]

# Dead entries that a heap may have more than live ones.
SLACK = 64


class Verdict(enum.Enum):
    """What becomes of a request that has come."""

    RUN = "run"
    """Begin it; `Work.end` is due when it has ended."""

    WAIT = "wait"
    """It has its turn when `Work.end` returns it."""

    BUSY = "busy"
    """Refuse it: there is no room to wait."""


class _State(enum.Enum):
    NEW = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
    OVER = enum.auto()


class Ticket:
    """One request.

    Args:
        hotkey: Its validator.
        priority: Any number but NaN; higher ones first.
        request: What the caller likes; it is let go of when the request is over.
    """

    __slots__ = ("_party", "_state", "hotkey", "priority", "request")

    def __init__(self, hotkey: str, priority: float, request: Any) -> None:
        self.hotkey = hotkey
        self.priority = priority
        self.request = request
        self._state = _State.NEW
        self._party: _Party | None = None


class _Party:
    """One validator: its requests, and how many more it may send."""

    __slots__ = ("held", "running", "tokens", "updated", "waiting")

    def __init__(self, tokens: float, now: float) -> None:
        self.running = 0
        self.waiting = 0
        # Those that had their turn while as many as allowed were running.
        self.held: list[tuple[float, int, Ticket]] = []
        self.tokens = tokens
        self.updated = now


class Work:
    """The room for requests, for all and for each validator.

    Args:
        most: Requests worked on at once; None for any number.
        most_each: The same for one validator.
        most_waiting: Requests that wait.
        rate: Requests of one validator in a second, on average; None for any number.
        burst: Requests of one validator at once under that.
        most_known: Validators whose rate is remembered while they have no request. At
            the cap the one that was quiet for the longest is forgotten, which gains it
            nothing: so many others must come meanwhile, each with a burst of its own.
    """

    def __init__(
        self,
        *,
        most: int | None = None,
        most_each: int | None = None,
        most_waiting: int = 16_384,
        rate: float | None = None,
        burst: int = 32,
        most_known: int = 1024,
    ) -> None:
        self._most = most
        self._most_each = most_each
        self._most_waiting = most_waiting
        self._rate = rate
        self._burst = burst
        self._most_known = most_known
        self._lock = threading.Lock()
        self._running = 0
        self._waiting = 0
        self._order = 0
        # Entries below that are over, at most.
        self._dead = 0
        # The next one first; and the next one to be refused first. Those that are over
        # stay until they come up, or are half of all.
        self._next: list[tuple[float, int, Ticket]] = []
        self._last: list[tuple[float, int, int, Ticket]] = []
        self._parties: OrderedDict[str, _Party] = OrderedDict()

    @property
    def running(self) -> int:
        """Requests that have begun and not ended."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._waiting

    def __len__(self) -> int:
        """Return how many validators are known."""
        return len(self._parties)

    def allow(self, hotkey: str, now: float) -> bool:
        """Count a request against its validator's rate, and say if it may go on.

        Args:
            hotkey: The validator.
            now: Monotonic seconds.
        """
        if self._rate is None:
            return True
        with self._lock:
            party = self._party(hotkey, now)
            self._refill(party, self._rate, now)
            if party.tokens < 1:
                return False
            party.tokens -= 1
            return True

    def admit(self, ticket: Ticket, now: float) -> tuple[Verdict, Ticket | None]:
        """Find room for a request.

        Returns:
            What becomes of it, and one that waited and is to be refused instead.
        """
        with self._lock:
            party = ticket._party = self._party(ticket.hotkey, now)
            if self._has_room(party):
                self._begin(ticket, party)
                return Verdict.RUN, None
            order = self._order = self._order + 1
            entry = (ticket.priority, -party.waiting, -order, ticket)
            displaced = None
            if self._waiting >= self._most_waiting:
                displaced = self._take_last(entry)
                if displaced is None:
                    ticket._state = _State.OVER
                    self._tidy(ticket)
                    return Verdict.BUSY, None
            ticket._state = _State.WAITING
            party.waiting += 1
            self._waiting += 1
            heapq.heappush(self._next, (-ticket.priority, order, ticket))
            heapq.heappush(self._last, entry)
            if displaced is not None:
                self._tidy(displaced)
            if self._dead > self._waiting + SLACK:
                self._compact()
            return Verdict.WAIT, displaced

    def withdraw(self, ticket: Ticket) -> bool:
        """Have a request wait no more; False if it does not wait (any more)."""
        with self._lock:
            if ticket._state is not _State.WAITING:
                return False
            self._drop(ticket)
            self._tidy(ticket)
            ticket.request = None
            return True

    def end(self, ticket: Ticket) -> list[Ticket]:
        """Note the end of a request, and return those that are to begin now."""
        with self._lock:
            if ticket._state is not _State.RUNNING:
                return []
            party = cast("_Party", ticket._party)
            ticket._state = _State.OVER
            ticket.request = None
            self._running -= 1
            party.running -= 1
            self._promote(party)
            begun = []
            while (following := self._take_next()) is not None:
                begun.append(following)
            self._tidy(ticket)
            return begun

    def expire(self, now: float) -> None:
        """Forget the validators that may send as many as one that never did."""
        if self._rate is None:
            return
        with self._lock:
            for hotkey, party in list(self._parties.items()):
                self._refill(party, self._rate, now)
                if party.tokens >= self._burst and not party.running + party.waiting:
                    del self._parties[hotkey]

    # Under the lock.

    def _party(self, hotkey: str, now: float) -> _Party:
        party = self._parties.get(hotkey)
        if party is None:
            while len(self._parties) >= self._most_known and self._forget_one():
                pass
            party = self._parties[hotkey] = _Party(self._burst, now)
        elif self._rate is not None:
            self._parties.move_to_end(hotkey)
        return party

    def _forget_one(self) -> bool:
        for hotkey, party in self._parties.items():
            if not party.running and not party.waiting:
                del self._parties[hotkey]
                return True
        return False

    def _refill(self, party: _Party, rate: float, now: float) -> None:
        earned = max(now - party.updated, 0) * rate
        party.tokens = min(party.tokens + earned, self._burst)
        party.updated = now

    def _has_room(self, party: _Party) -> bool:
        return (self._most is None or self._running < self._most) and (
            self._most_each is None or party.running < self._most_each
        )

    def _begin(self, ticket: Ticket, party: _Party) -> None:
        ticket._state = _State.RUNNING
        self._running += 1
        party.running += 1

    def _drop(self, ticket: Ticket) -> None:
        """Let a waiting one wait no more."""
        ticket._state = _State.OVER
        self._waiting -= 1
        self._dead += 1
        party = cast("_Party", ticket._party)
        party.waiting -= 1
        # It may have been the one that its validator had in line.
        self._promote(party)

    def _tidy(self, ticket: Ticket) -> None:
        """Forget a validator of whom nothing is left to know."""
        party = cast("_Party", ticket._party)
        if self._rate is None and not party.running and not party.waiting:
            self._parties.pop(ticket.hotkey, None)

    def _take_next(self) -> Ticket | None:
        while self._next and (self._most is None or self._running < self._most):
            entry = heapq.heappop(self._next)
            ticket = entry[2]
            if ticket._state is not _State.WAITING:
                continue
            party = cast("_Party", ticket._party)
            if not self._has_room(party):
                heapq.heappush(party.held, entry)
                continue
            self._waiting -= 1
            party.waiting -= 1
            self._dead += 1
            self._begin(ticket, party)
            return ticket
        return None

    def _take_last(self, newcomer: tuple[float, int, int, Ticket]) -> Ticket | None:
        """Take out who is to be refused for a newcomer; None if it is that itself."""
        while self._last and self._last[0][3]._state is not _State.WAITING:
            heapq.heappop(self._last)
        if not self._last or self._last[0] > newcomer:
            return None
        ticket = heapq.heappop(self._last)[3]
        self._drop(ticket)
        return ticket

    def _promote(self, party: _Party) -> None:
        """Put the first of those held back in line again."""
        while party.held:
            entry = heapq.heappop(party.held)
            if entry[2]._state is _State.WAITING:
                heapq.heappush(self._next, entry)
                return

    def _compact(self) -> None:
        """Let go of what is over."""
        self._dead = 0
        self._last = [e for e in self._last if e[3]._state is _State.WAITING]
        heapq.heapify(self._last)
        self._next = _waiting(self._next)
        for party in self._parties.values():
            party.held = _waiting(party.held)


def _waiting(
    entries: list[tuple[float, int, Ticket]],
) -> list[tuple[float, int, Ticket]]:
    left = [entry for entry in entries if entry[2]._state is _State.WAITING]
    heapq.heapify(left)
    return left
