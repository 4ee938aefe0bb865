"""Which miner is where, and when an address may be tried again: policy, no I/O.

The clock is the caller's: seconds that never run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning.errors import LightningConnectionError

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable

    from lightning.config import LightningClientConfig
    from lightning.types import PeerAddr, QuicAxonInfo

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

    def check(
        self, target: Hashable, now: float, config: LightningClientConfig
    ) -> None:
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


@dataclass(slots=True)
class Changes:
    """What a new list of miners asks for."""

    removed: list[PeerAddr] = field(default_factory=list)
    """Addresses whose last hotkey is not in the list."""

    moved: list[PeerAddr] = field(default_factory=list)
    """Addresses whose last hotkey is now elsewhere."""

    wanted: dict[PeerAddr, list[str]] = field(default_factory=dict)
    """Hotkeys to log in, by address."""


class Registry:
    """Hotkeys that are logged in, each at one address, and back-off by target."""

    def __init__(self) -> None:
        self._address: dict[str, PeerAddr] = {}
        self._hotkeys: dict[PeerAddr, set[str]] = {}
        self._backoff: dict[Hashable, Backoff] = {}

    def __len__(self) -> int:
        return len(self._address)

    @property
    def hotkeys(self) -> Collection[str]:
        """All registered hotkeys."""
        return self._address.keys()

    @property
    def addresses(self) -> Collection[PeerAddr]:
        """All addresses with a registered hotkey."""
        return self._hotkeys.keys()

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
        return address

    def clear(self) -> None:
        """Forget everything."""
        self._address.clear()
        self._hotkeys.clear()
        self._backoff.clear()

    def backoff(self, target: Hashable) -> Backoff:
        """Return the back-off of an address, or of a hotkey at one."""
        return self._backoff.setdefault(target, Backoff())

    def succeeded(self, target: Hashable) -> None:
        """Forget the failures of a target."""
        self._backoff.pop(target, None)

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
        self, miners: Iterable[QuicAxonInfo], dead: Collection[PeerAddr]
    ) -> Changes:
        """Adapt to a new list of miners.

        Hotkeys that are not in the list, have moved, or sit at a dead address are
        deregistered; the back-off of every listed address is reset.

        Args:
            miners: All miners that there are; of a hotkey listed twice the last counts.
            dead: Addresses whose connection is gone.

        Returns:
            What to close and whom to log in.
        """
        changes = Changes()
        wanted = {miner.hotkey: miner.address for miner in miners}
        for hotkey, address in list(self._address.items()):
            new = wanted.get(hotkey)
            if new is None:
                if (vacated := self.deregister(hotkey)) is not None:
                    changes.removed.append(vacated)
            elif new != address:
                if (vacated := self.deregister(hotkey)) is not None:
                    changes.moved.append(vacated)
            elif address in dead:
                self.deregister(hotkey)
        targets = set(wanted.values())
        self._backoff = {
            target: backoff
            for target, backoff in self._backoff.items()
            if target not in targets
            and not (isinstance(target, tuple) and target[0] in targets)
        }
        for hotkey, address in wanted.items():
            if self._address.get(hotkey) != address:
                changes.wanted.setdefault(address, []).append(hotkey)
        return changes
