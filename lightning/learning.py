"""An allowlist of source addresses that is learned from logins, and then enforced.

Validators seldom publish where they connect from. `LearnedSources` watches from which
addresses those with a permit log in, and lets only these connect once it knows enough
of them, by stake and for long enough; should it know too few again, it lets all connect.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lightning.admission import SourceAllowlist
from lightning.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    Holders = Mapping[str, float]
    Addresses = Iterable[str]

__all__ = ["LearnedSources", "SourceLearner"]

# Below the share by so much, what is enforced is let go: stake moves.
HYSTERESIS = 0.1
# Holders of permits, and addresses that were told and not learned. Larger numbers are
# a mistake; a subnet has some hundred.
MAX_HOLDERS = 4096
MAX_EXTRA = 65_536
# Of the file, so that a wrong one is not read into memory: 4096 x 8 addresses fit.
MAX_FILE_SIZE = 8 * 1024 * 1024
FILE_VERSION = 1

log = logging.getLogger("lightning.learning")


class SourceLearner:
    """Which addresses were seen, and whether they are enough: policy without I/O.

    It does not lock. Memory: at most `MAX_HOLDERS` x ``max_ips_per_hotkey`` addresses.

    Args:
        share: Part of the holders' stake, above 0 and up to 1, that must have logged in.
        settle_secs: Seconds that are waited in any case.
        max_ips_per_hotkey: Addresses kept for one hotkey; the one that was not used for
            longest makes room.
        now: Unix seconds.

    Attributes:
        began: When it began to learn, in Unix seconds.
        is_enforcing: Whether it was decided to let only known addresses connect.
    """

    def __init__(
        self, share: float, settle_secs: float, max_ips_per_hotkey: int, now: float
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError("share must be above 0 and at most 1")
        if not 0 <= settle_secs < math.inf:
            raise ValueError("settle_secs must be a finite number, 0 or more")
        if max_ips_per_hotkey < 1:
            raise ValueError("max_ips_per_hotkey must be at least 1")
        self._share = share
        self._settle = settle_secs
        self._max_ips = max_ips_per_hotkey
        self._stakes: dict[str, float] | None = None
        # By hotkey, its addresses, the latest last.
        self._ips: dict[str, OrderedDict[str, None]] = {}
        self.began = now
        self.is_enforcing = False

    def take_holders(self, stakes: Mapping[str, float]) -> None:
        """Learn who holds a permit now; the addresses of all others are forgotten.

        Args:
            stakes: Stake by hotkey, in any unit.

        Raises:
            ValueError: It is empty, too large, or has a stake that is no finite number
                of 0 or more. Nothing has changed.
        """
        if not stakes:
            raise ValueError("nobody holds a permit: the metagraph is not there yet?")
        if len(stakes) > MAX_HOLDERS:
            raise ValueError(f"more than {MAX_HOLDERS} hotkeys hold a permit")
        checked = {hotkey: float(stake) for hotkey, stake in stakes.items()}
        for hotkey, stake in checked.items():
            if not 0 <= stake < math.inf:
                raise ValueError(f"the stake of {hotkey} is {stake}")
        self._stakes = checked
        for hotkey in self._ips.keys() - checked.keys():
            del self._ips[hotkey]

    def observe(self, hotkey: str, ip: str) -> bool:
        """Note a login.

        Before the first `take_holders` that of anybody, as far as there is room.

        Returns:
            Whether that was new.

        Raises:
            ValueError: It is no IP address.
        """
        ip = next(iter(SourceAllowlist.enforce((ip,)).addresses or ()))
        if self._stakes is not None and hotkey not in self._stakes:
            return False
        ips = self._ips.get(hotkey)
        if ips is None:
            if len(self._ips) >= MAX_HOLDERS:
                return False
            ips = self._ips[hotkey] = OrderedDict()
        is_new = ip not in ips
        ips[ip] = None
        ips.move_to_end(ip)
        if len(ips) > self._max_ips:
            ips.popitem(last=False)
        return is_new

    @property
    def share_seen(self) -> float:
        """The part of the holders' stake that has logged in, from 0 to 1."""
        stakes = self._stakes or {}
        total = math.fsum(stakes.values())
        if not 0 < total < math.inf:
            return 0.0
        return math.fsum(s for h, s in stakes.items() if h in self._ips) / total

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """By hotkey, the addresses it was seen at, the latest last."""
        return {hotkey: tuple(ips) for hotkey, ips in self._ips.items()}

    def seconds_left(self, now: float) -> float:
        """Return how long it must learn in any case."""
        # A clock that was set back must not have it wait for ever.
        self.began = min(self.began, now)
        return max(self.began + self._settle - now, 0.0)

    def decide(self, now: float) -> bool:
        """Decide whether to let only known addresses connect.

        Args:
            now: Unix seconds.
        """
        seen = self.share_seen
        if self.is_enforcing:
            self.is_enforcing = seen > 0 and seen >= self._share - HYSTERESIS
        else:
            self.is_enforcing = seen >= self._share and not self.seconds_left(now)
        return self.is_enforcing

    def to_state(self) -> dict[str, Any]:
        """Return what is to be remembered, as JSON has it."""
        return {
            "version": FILE_VERSION,
            "began": self.began,
            "enforcing": self.is_enforcing,
            "addresses": {hotkey: list(ips) for hotkey, ips in self._ips.items()},
        }

    def from_state(self, state: Any) -> None:
        """Remember what `to_state` has returned.

        Raises:
            ValueError: That is not what it has returned. Nothing has changed.
        """
        match state:
            case {
                "version": 1,
                "began": int() | float() as began,
                "enforcing": bool() as enforcing,
                "addresses": dict() as addresses,
            } if math.isfinite(began) and len(addresses) <= MAX_HOLDERS:
                pass
            case _:
                raise ValueError("not a state of this version")
        fresh = SourceLearner(self._share, self._settle, self._max_ips, began)
        for hotkey, ips in addresses.items():
            if not isinstance(ips, list) or not all(isinstance(ip, str) for ip in ips):
                raise ValueError(f"not a list of addresses: that of {hotkey!r}")
            for ip in ips[-self._max_ips :]:
                fresh.observe(hotkey, ip)
        self.began, self.is_enforcing = fresh.began, enforcing
        self._ips = fresh._ips


class LearnedSources:
    """Learns from which addresses validators log in, and then lets no others connect.

    It is a `SourceAddressResolver`, a `HandshakeObserver` and a
    `ValidatorPermitResolver` at once::

        sources = LearnedSources(lambda: stakes_of_permit_holders(metagraph))
        config = LightningServerConfig(enforce_source_allowlist=True)
        server = AsyncLightningServer(hotkey, signer=keypair, config=config)
        sources.attach(server)

    Everybody may connect until holders of ``share`` of the stake have logged in and
    ``settle_secs`` have passed since it began to learn; both are looked at when the
    server asks, every ``source_allowlist_refresh_secs``. From then on only the learned
    addresses and those of ``extra`` and `allow` may. If the holders that were seen have
    less than ``share`` - 0.1 of the stake, everybody may connect again, with a warning.

    **An address that was not seen cannot be learned any more once the list is
    enforced**: a validator that moves, or a new one, is not answered. Give ``extra``
    (such as the addresses that validators have on the chain), or call `allow`.
    IPv6 addresses count one by one, not by their network. Whoever shares an address with
    a validator may connect as well; the login still keeps them out.

    Args:
        holders: Returns the stake of each hotkey with a validator permit; sync (called
            in a thread) or async. An exception keeps what was decided last.
        share: Part of the stake, above 0 and up to 1.
        settle_secs: Seconds; the default is a tempo of 360 blocks.
        extra: Returns more addresses, sync or async; what is no address is left out.
        max_ips_per_hotkey: Addresses kept for one hotkey, the latest ones.
        path: A file that remembers it all over a restart, written when the server asks
            and by `save`; None for none. What cannot be read is ignored, with a warning.
        clock: Unix seconds.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        holders: Callable[[], Holders | Awaitable[Holders]],
        *,
        share: float = 0.67,
        settle_secs: float = 4320.0,
        extra: Callable[[], Addresses | Awaitable[Addresses]] | None = None,
        max_ips_per_hotkey: int = 8,
        path: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._holders = holders
        self._extra = extra
        self._clock = clock
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._allowed: set[str] = set()
        self._written = ""
        self._learner = SourceLearner(share, settle_secs, max_ips_per_hotkey, clock())
        if self._path is not None:
            self._load(self._path)

    def __repr__(self) -> str:
        state = "enforcing" if self.is_enforcing else "learning"
        return f"<{type(self).__name__} {state}, {self.share_seen:.0%} of stake seen>"

    def attach(self, server: Any) -> Self:
        """Make a server of either face use it, and return it.

        Raises:
            ConfigError: The server does not ask for an allowlist.
        """
        if not server.config.enforce_source_allowlist:
            raise ConfigError("LearnedSources needs enforce_source_allowlist=True")
        server.set_source_address_resolver(self)
        server.set_handshake_observer(self)
        return self

    def allow(self, ip: str) -> None:
        """Let an address connect for as long as this object lives.

        It holds from when the server asks next.

        Raises:
            ValueError: It is no IP address, or there are too many.
        """
        SourceAllowlist.enforce((ip,))
        with self._lock:
            if len(self._allowed) >= MAX_EXTRA:
                raise ValueError(f"more than {MAX_EXTRA} addresses")
            self._allowed.add(ip)

    @property
    def is_enforcing(self) -> bool:
        """Whether, as last decided, only known addresses may connect."""
        return self._learner.is_enforcing

    @property
    def share_seen(self) -> float:
        """The part of the holders' stake that has logged in, from 0 to 1."""
        with self._lock:
            return self._learner.share_seen

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """By hotkey, the addresses it was seen at, the latest last."""
        with self._lock:
            return self._learner.addresses

    # What a server calls.

    def observe_successful_handshake(self, hotkey: str, ip: str) -> None:
        """Note from where a validator has logged in."""
        with self._lock:
            self._learner.observe(hotkey, ip)

    def resolve_allowed_sources(self) -> SourceAllowlist | Awaitable[SourceAllowlist]:
        """Say who may connect.

        Returns:
            The list, or what to await for it where ``holders`` or ``extra`` is async.

        Raises:
            ValueError: ``holders`` has given nobody, or nonsense.
        """
        holders = self._holders()
        extra: Any = () if self._extra is None else self._extra()
        if inspect.isawaitable(holders) or inspect.isawaitable(extra):
            return self._resolve_later(holders, extra)
        return self._resolve(holders, extra)

    def resolve_permitted_validators(self) -> set[str] | Awaitable[set[str]]:
        """Return the hotkeys that hold a permit, as ``holders`` says."""
        holders = self._holders()
        if inspect.isawaitable(holders):
            return self._keys_later(holders)
        return set(holders)

    def save(self) -> None:
        """Write what is known to the file now; a failure is logged."""
        if self._path is None:
            return
        with self._lock:
            state = self._learner.to_state()
        # Logins do not wait for the disk.
        with self._writing:
            text = json.dumps(state, separators=(",", ":"))
            if text == self._written:
                return
            try:
                _replace(self._path, text)
            except OSError as error:
                log.warning("what was learned cannot be written: %s", error)
            else:
                self._written = text

    async def _keys_later(self, holders: Awaitable[Holders]) -> set[str]:
        return set(await holders)

    async def _resolve_later(self, holders: Any, extra: Any) -> SourceAllowlist:
        try:
            holders = await holders if inspect.isawaitable(holders) else holders
        except BaseException:
            if inspect.iscoroutine(extra):
                extra.close()
            raise
        extra = await extra if inspect.isawaitable(extra) else extra
        return await asyncio.to_thread(self._resolve, holders, extra)

    def _resolve(self, holders: Holders, extra: Addresses) -> SourceAllowlist:
        with self._lock:
            learner, was_enforcing = self._learner, self._learner.is_enforcing
            now = self._clock()
            learner.take_holders(holders)
            enforces = learner.decide(now)
            seen, left = learner.share_seen, learner.seconds_left(now)
            ips = {ip for each in learner.addresses.values() for ip in each}
            ips |= self._allowed
        if enforces:
            ips |= _valid(extra)
        self.save()
        if not enforces:
            if was_enforcing:
                log.warning(
                    "everybody may connect again: %.0f %% of the stake was seen",
                    seen * 100,
                )
            else:
                log.info(
                    "learning: %.0f %% of the stake was seen, at least %.0f s are left",
                    seen * 100,
                    left,
                )
            return SourceAllowlist.bypass()
        if not was_enforcing:
            log.info(
                "only %d addresses may connect from now on: %.0f %% of the stake "
                "was seen",
                len(ips),
                seen * 100,
            )
        return SourceAllowlist.enforce(ips)

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_SIZE)
            # What is cut off does not parse.
            self._learner.from_state(json.loads(data))
        except FileNotFoundError:
            return
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            log.warning("%s is ignored, learning begins anew: %s", path, error)


def _valid(extra: Addresses) -> set[str]:
    """Return those that are addresses."""
    valid: set[str] = set()
    others = 0
    for ip in extra:
        try:
            SourceAllowlist.enforce((ip,))
        except (ValueError, TypeError):
            others += 1
            continue
        if len(valid) >= MAX_EXTRA:
            raise ValueError(f"more than {MAX_EXTRA} extra addresses")
        valid.add(ip)
    if others:
        log.warning("%d of the extra addresses are none", others)
    return valid


def _replace(path: Path, text: str) -> None:
    """Write a file so that there is always a whole one, the old or the new."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
