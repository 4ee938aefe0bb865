"""Which miner is where, and when an address may be tried again: policy, no I/O.

The clock is the caller's: seconds that never run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning.errors import LightningConnectionError
from lightning.types import PeerAddr

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lightning.config import LightningClientConfig

# What an attempt is for: a dial, or a login.
Target = PeerAddr | tuple[PeerAddr, str]

# Targets whose back-off is remembered, if callers ask for ever new ones.
MAX_TARGETS = 10_000
# Doubling stops there, long before a float could overflow.
MAX_BACKOFF_EXPONENT = 20


@dataclass(slots=True)
class Backoff:
    """Failures in a row of one target, and when it may be tried again.

    The n-th failure waits ``initial x 2^(n-1)`` seconds, at most ``max``. From the
    ``max_retries``-th on it waits for the slow probe's interval, or for ever without
    one.
    """

    failures: int = 0
    """Failures since the last success."""

    retry_at: float = 0
    """When the next attempt is allowed; infinity for never."""

    def check(self, target: object, now: float, config: LightningClientConfig) -> None:
        """Refuse an attempt that comes too early.

        Raises:
            LightningConnectionError: Too early; it says when to come back.
        """
        if now >= self.retry_at:
            return
        wait = self.retry_at - now
        if wait == float("inf"):
            raise LightningConnectionError(
                f"Reconnection attempts exhausted for {target} "
                f"({self.failures}/{config.reconnect_max_retries}), "
                "awaiting registry refresh",
                address=str(target),
            )
        raise LightningConnectionError(
            f"Reconnection to {target} in backoff, next retry in {wait:.1f}s",
            address=str(target),
            retry_after=wait,
        )

    def failed(self, now: float, config: LightningClientConfig) -> None:
        """Note a failure."""
        self.failures += 1
        if self.failures < config.reconnect_max_retries:
            exponent = min(self.failures - 1, MAX_BACKOFF_EXPONENT)
            delay = min(
                config.reconnect_initial_backoff * 2**exponent,
                config.reconnect_max_backoff,
            )
        elif config.reconnect_slow_probe_interval is not None:
            delay = config.reconnect_slow_probe_interval
        else:
            delay = float("inf")
        self.retry_at = now + delay


def background_wait(
    left: float, chance: float, config: LightningClientConfig
) -> float | None:
    """Return how long a background reconnect waits, so that not all come at once.

    Args:
        left: Seconds until the back-off allows it, 0 for at once.
        chance: At random, from 0 to below 1.
        config: The share that is left to chance, and the first back-off.

    Returns:
        Seconds; None for never.
    """
    if left == float("inf"):
        return None
    return left + (left or config.reconnect_initial_backoff) * (
        config.reconnect_jitter * chance
    )


@dataclass(slots=True)
class Changes:
    """What a new list of miners asks for."""

    removed: list[PeerAddr] = field(default_factory=list)
    """Addresses whose last hotkey is not in the list."""

    unlisted: list[str] = field(default_factory=list)
    """Hotkeys that were registered and are not in the list."""

    moved: list[PeerAddr] = field(default_factory=list)
    """Addresses whose last hotkey is now elsewhere."""


class Registry:
    """Hotkeys that are logged in, each at one address, and back-off by target."""

    def __init__(self) -> None:
        self._address: dict[str, PeerAddr] = {}
        self._hotkeys: dict[PeerAddr, set[str]] = {}
        self._backoff: dict[Target, Backoff] = {}
        # Of addresses where another process logs in with our hotkey.
        self._contended: dict[PeerAddr, Backoff] = {}
        self._errors: dict[PeerAddr, str] = {}

    def __len__(self) -> int:
        return len(self._address)

    @property
    def hotkeys(self) -> Collection[str]:
        """All registered hotkeys."""
        return self._address.keys()

    @property
    def addresses(self) -> Collection[PeerAddr]:
        """All addresses with a registered hotkey; any thread may ask."""
        return list(self._hotkeys)

    def address_of(self, hotkey: str) -> PeerAddr | None:
        """Return where a hotkey is registered."""
        return self._address.get(hotkey)

    def hotkeys_at(self, address: PeerAddr) -> frozenset[str]:
        """Return the hotkeys registered at an address."""
        return frozenset(self._hotkeys.get(address, ()))

    def register(self, hotkey: str, address: PeerAddr) -> PeerAddr | None:
        """Note that a hotkey has logged in at an address.

        Returns:
            The address that lost its last hotkey by this, if one did; its connection
            is to be closed.
        """
        vacated = None
        old = self._address.get(hotkey)
        if old is not None and old != address:
            vacated = self.deregister(hotkey)
        self._address[hotkey] = address
        self._hotkeys.setdefault(address, set()).add(hotkey)
        return vacated

    def deregister(self, hotkey: str) -> PeerAddr | None:
        """Forget a hotkey; fine if it is not registered.

        Returns:
            The address that lost its last hotkey by this, if one did.
        """
        address = self._address.pop(hotkey, None)
        if address is None:
            return None
        left = self._hotkeys[address]
        left.discard(hotkey)
        if left:
            return None
        del self._hotkeys[address]
        self._backoff.pop(address, None)
        self._contended.pop(address, None)
        return address

    def clear(self) -> None:
        """Forget everything."""
        self._address.clear()
        self._hotkeys.clear()
        self._backoff.clear()
        self._contended.clear()
        self._errors.clear()

    def backoff(self, target: Target) -> Backoff:
        """Return the back-off of an address, or of a hotkey at one."""
        return self._backoff.setdefault(target, Backoff())

    def succeeded(self, target: Target) -> None:
        """Forget the failures of a target."""
        self._backoff.pop(target, None)

    def backed_off(self, now: float) -> list[Target]:
        """Return the targets that may not be tried again yet; any thread may ask."""
        return [
            t for t, backoff in list(self._backoff.items()) if backoff.retry_at > now
        ]

    def replaced(
        self, address: PeerAddr, now: float, lived: float, config: LightningClientConfig
    ) -> None:
        """Note that the server ended a connection for another one of our hotkey.

        Two processes that both come back at once would do so for ever. A connection
        that lived longer than the longest back-off starts the count anew.
        """
        if lived > config.reconnect_max_backoff:
            self._contended.pop(address, None)
        self._contended.setdefault(address, Backoff()).failed(now, config)

    def wait(self, address: PeerAddr, hotkey: str, now: float) -> float:
        """Return the seconds until a background reconnect is allowed, 0 for at once."""
        backoffs = [
            self._backoff.get(address),
            self._backoff.get((address, hotkey)),
            self._contended.get(address),
        ]
        return max(0.0, *(b.retry_at - now for b in backoffs if b is not None), 0.0)

    def note(self, address: PeerAddr, error: str) -> None:
        """Remember what went wrong last at an address; any thread may."""
        self._errors.pop(address, None)
        self._errors[address] = error
        while len(self._errors) > MAX_TARGETS:
            # Another thread may be faster.
            self._errors.pop(next(iter(list(self._errors))), None)

    def last_error(self, address: PeerAddr) -> str:
        """Return what went wrong last at an address, empty for nothing."""
        return self._errors.get(address, "")

    def forget_idle(self, now: float, max_entries: int = MAX_TARGETS) -> None:
        """Keep the back-off table bounded: first drop what may be tried again anyway.

        Args:
            now: The time.
            max_entries: Entries above which anything is dropped.
        """
        if len(self._backoff) > max_entries:
            waiting = [
                (target, backoff)
                for target, backoff in self._backoff.items()
                if backoff.retry_at > now
            ]
            # The oldest go where that is not enough.
            self._backoff = dict(waiting[-max_entries:])

    def reconcile(
        self, wanted: Mapping[str, PeerAddr], dead: Collection[PeerAddr]
    ) -> Changes:
        """Adapt to a new list of miners.

        Hotkeys that are not in the list, have moved, or sit at a dead address are
        deregistered; the back-off of every listed address is reset.

        Args:
            wanted: The address of every miner that there is.
            dead: Addresses whose connection is gone.

        Returns:
            What to close and whom to log in.
        """
        changes = Changes()
        for hotkey, address in list(self._address.items()):
            new = wanted.get(hotkey)
            if new is None:
                changes.unlisted.append(hotkey)
                if (vacated := self.deregister(hotkey)) is not None:
                    changes.removed.append(vacated)
            elif new != address:
                if (vacated := self.deregister(hotkey)) is not None:
                    changes.moved.append(vacated)
            elif address in dead:
                self.deregister(hotkey)
        targets = set(wanted.values())
        for address in targets:
            self._contended.pop(address, None)
        self._backoff = {
            target: backoff
            for target, backoff in self._backoff.items()
            if (target if isinstance(target, PeerAddr) else target[0]) not in targets
        }
        return changes
