"""Ready-made blacklist functions: by permit, by stake, by how much one asks.

Each is made once and attached as ``blacklist_fn``; with ``|`` several make one, which
refuses what any of them refuses::

    metagraph = subtensor.metagraph(netuid)
    axon.attach(
        forward,
        blacklist_fn=permit(metagraph) | stake(metagraph, 1000) | rate(60),
    )

A metagraph is looked at again as time passes, so whoever syncs it need do no more. It may
be bittensor's, of any version, or anything of that shape:

* an object with ``hotkeys`` and, as sequences by uid, ``validator_permit`` and ``S``,
  ``stake`` or ``total_stake``;
* an iterable of neurons, or an object with ``neurons``, each with ``hotkey``,
  ``validator_permit`` and ``total_stake`` or ``stake``;
* for stakes, a mapping of numbers by hotkey; for permits, a collection of hotkeys;
* a callable without arguments that returns one of these. It is called in the
  constructor, and again in a thread when that is due; while it takes its time, and where
  it fails, what it said last holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from lightning.dropin.synapse import Synapse

__all__ = ["Blacklist", "permit", "rate", "stake"]

log = logging.getLogger("lightning.axon")

# Seconds between two looks at a metagraph: a block.
REFRESH = 12.0
# Seconds between two calls of a callable, which may ask the chain.
REFRESH_CALLABLE = 300.0
# Callers whose rate is remembered.
MAX_KNOWN = 4096
SECONDS = 60.0


class Blacklist:
    """A blacklist function that can be joined with others by ``|``.

    Args:
        check: Gives the reason to refuse a hotkey, or None to let it in. It must be
            quick, and may be called from any thread.
    """

    __slots__ = ("_checks",)

    def __init__(self, *check: Callable[[str], str | None]) -> None:
        self._checks = check

    def __or__(self, other: Blacklist) -> Blacklist:
        if not isinstance(other, Blacklist):
            return NotImplemented
        return Blacklist(*self._checks, *other._checks)

    def __call__(self, synapse: Synapse) -> tuple[bool, str]:
        """Say whether the sender of a synapse is refused, and why.

        Args:
            synapse: Its ``dendrite.hotkey`` is who asks.
        """
        hotkey = synapse.dendrite.hotkey if synapse.dendrite else None
        if not hotkey:
            return True, "Missing hotkey"
        for check in self._checks:
            if (reason := check(hotkey)) is not None:
                return True, reason
        return False, "Hotkey recognized"


def permit(metagraph: Any, *, refresh_secs: float | None = None) -> Blacklist:
    """Make a blacklist of all that hold no validator permit.

    Args:
        metagraph: See above.
        refresh_secs: Seconds between two looks at it, above 0; None for 12, or for 300
            if it is a callable.

    Raises:
        ConfigError: ``refresh_secs`` is not above 0.
        TypeError: The metagraph has no such shape.
    """
    known = _Known(metagraph, _permits, refresh_secs)

    def check(hotkey: str) -> str | None:
        held = known.current().get(hotkey)
        if held is None:
            return "Unrecognized hotkey"
        return None if held else "Non-validator hotkey"

    return Blacklist(check)


def stake(
    metagraph: Any, minimum: float, *, refresh_secs: float | None = None
) -> Blacklist:
    """Make a blacklist of all with less than a stake.

    Args:
        metagraph: See above.
        minimum: The stake that is enough, in the metagraph's unit.
        refresh_secs: As for `permit`.

    Raises:
        ConfigError: ``refresh_secs`` is not above 0.
        TypeError: The metagraph has no such shape.
    """
    known = _Known(metagraph, _stakes, refresh_secs)

    def check(hotkey: str) -> str | None:
        held = known.current().get(hotkey)
        if held is None:
            return "Unrecognized hotkey"
        # Not ``held < minimum``, by which what is no number would be enough.
        return None if held >= minimum else f"Stake below {minimum:g}"

    return Blacklist(check)


def rate(requests: float, seconds: float = SECONDS) -> Blacklist:
    """Make a blacklist of all that ask too often.

    As many requests may come at once; the time then earns further ones, evenly. What is
    refused counts for nothing. Every hotkey has its own account; to refuse strangers
    first, put it last.

    Args:
        requests: How many requests of one hotkey, at least 1.
        seconds: In how many seconds, default 60.

    Raises:
        ConfigError: A number is too small.
    """
    if not (requests >= 1 and seconds > 0):
        raise ConfigError("requests must be at least 1, and seconds above 0")
    # Tokens and when they were counted, of those that were quiet for longest first.
    accounts: OrderedDict[str, tuple[float, float]] = OrderedDict()
    lock = threading.Lock()

    def check(hotkey: str) -> str | None:
        now = time.monotonic()
        with lock:
            tokens, updated = accounts.pop(hotkey, (float(requests), now))
            tokens = min(tokens + (now - updated) * requests / seconds, requests)
            allowed = tokens >= 1
            accounts[hotkey] = tokens - allowed, now
            if len(accounts) > MAX_KNOWN:
                accounts.popitem(last=False)
        return None if allowed else f"More than {requests:g} requests in {seconds:g} s"

    return Blacklist(check)


class _Known:
    """What a metagraph says of its hotkeys, looked at again when it is due."""

    def __init__(
        self,
        metagraph: Any,
        read: Callable[[Any], dict[str, Any]],
        refresh_secs: float | None,
    ) -> None:
        self._metagraph = metagraph
        self._read = read
        self._asks = callable(metagraph) and not _has_shape(metagraph)
        if refresh_secs is None:
            refresh_secs = REFRESH_CALLABLE if self._asks else REFRESH
        if not refresh_secs > 0:
            raise ConfigError("refresh_secs must be above 0")
        self._interval = refresh_secs
        self._busy = threading.Lock()
        self._known = self._look()
        self._due_at = time.monotonic() + refresh_secs

    def current(self) -> dict[str, Any]:
        if time.monotonic() >= self._due_at and self._busy.acquire(blocking=False):
            # Before anything else: who comes meanwhile need not try.
            self._due_at = time.monotonic() + self._interval
            if self._asks:
                self._refresh_in_thread()
            else:
                self._refresh()
        return self._known

    def _refresh_in_thread(self) -> None:
        try:
            threading.Thread(
                target=self._refresh, name="lightning-handler-blacklist", daemon=True
            ).start()
        except RuntimeError:
            self._busy.release()  # The system has no more threads: later, perhaps.

    def _refresh(self) -> None:
        try:
            self._known = self._look()
        except Exception:
            log.exception("a blacklist's metagraph cannot be read, the old one holds")
        finally:
            self._busy.release()

    def _look(self) -> dict[str, Any]:
        return self._read(self._metagraph() if self._asks else self._metagraph)


def _has_shape(metagraph: Any) -> bool:
    return hasattr(metagraph, "hotkeys") or hasattr(metagraph, "neurons")


def _permits(metagraph: Any) -> dict[str, Any]:
    """Return by hotkey whether each holds a permit."""
    if isinstance(metagraph, Mapping):
        return {hotkey: bool(held) for hotkey, held in metagraph.items()}
    if isinstance(metagraph, Collection) and all(isinstance(k, str) for k in metagraph):
        return dict.fromkeys(metagraph, True)
    held = _column(metagraph, ("validator_permit",))
    return {hotkey: bool(value) for hotkey, value in held.items()}


def _stakes(metagraph: Any) -> dict[str, Any]:
    """Return the stake by hotkey."""
    if isinstance(metagraph, Mapping):
        return {hotkey: float(held) for hotkey, held in metagraph.items()}
    held = _column(metagraph, ("S", "total_stake", "stake"))
    return {hotkey: float(value) for hotkey, value in held.items()}


def _column(metagraph: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return one thing that is known of each neuron, by hotkey."""
    hotkeys = getattr(metagraph, "hotkeys", None)
    for name in names:
        values = getattr(metagraph, name, None)
        if hotkeys is not None and values is not None and not callable(values):
            return dict(zip(hotkeys, values, strict=False))
    neurons = getattr(metagraph, "neurons", metagraph)
    if not isinstance(neurons, Iterable):
        kind = type(metagraph).__name__
        raise TypeError(f"{kind} is no metagraph: it has neither hotkeys nor neurons")
    return {neuron.hotkey: _value(neuron, names) for neuron in neurons}


def _value(neuron: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if (value := getattr(neuron, name, None)) is not None:
            return value
    raise TypeError(f"{type(neuron).__name__} has none of {', '.join(names)}")
