"""Keeping a client's connections in step with the chain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from lightning.chain.metagraph import SYNC_TIMEOUT, Metagraph, check_netuid
from lightning.chain.sources import as_source
from lightning.errors import ChainError, ConfigError
from lightning.logs import Throttled
from lightning.types import check_timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from lightning.chain.probe import QuicProbe
    from lightning.chain.sources import MetagraphSource
    from lightning.reports import ConnectReport
    from lightning.types import QuicAxonInfo

__all__ = [
    "FINNEY_ENDPOINT",
    "LOCAL_ENDPOINT",
    "TESTNET_ENDPOINT",
    "MetagraphMonitor",
    "MetagraphMonitorConfig",
]

FINNEY_ENDPOINT: Final = "wss://entrypoint-finney.opentensor.ai:443"
"""The main network."""

TESTNET_ENDPOINT: Final = "wss://test.finney.opentensor.ai:443"
"""The test network."""

LOCAL_ENDPOINT: Final = "ws://127.0.0.1:9944"
"""A node on this machine."""

# Seconds after a failure, doubled by each further one up to the interval.
FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 60.0
# Of the lines of one outage: one.
log = Throttled(logging.getLogger("lightning.metagraph"), burst=10)


@dataclass(frozen=True, slots=True)
class MetagraphMonitorConfig:
    """Which subnet a client follows, and how.

    Raises:
        ConfigError: A time is not a finite positive number.
        TypeError, OverflowError: The netuid is none.
    """

    netuid: int
    """Number of the subnet, 0 to 65535."""

    subtensor_endpoint: Any = FINNEY_ENDPOINT
    """Where it is read: a URL, or anything else that `Metagraph.sync` takes."""

    sync_interval: float = 600.0
    """Seconds from one read to the next; above 0, default 600."""

    sync_timeout: float = SYNC_TIMEOUT
    """Longest time for one read in seconds; above 0, default 60. Not in the peer."""

    include_inactive: bool = True
    """Whether miners are dialled that the chain calls inactive; default True. Not in
    the peer, which leaves them out. See `Metagraph.quic_miners`."""

    allow_private: bool = False
    """Whether addresses are dialled that are only reached nearby; default False. Not
    in the peer."""

    allow_ipv6: bool = False
    """Whether IPv6 addresses are dialled; default False. Not in the peer."""

    probe: QuicProbe | None = None
    """Finds out who speaks QUIC before all are dialled; default None: nobody is asked.
    Not in the peer."""

    select: Callable[[Metagraph], Iterable[Any]] | None = None
    """Chooses the miners to connect to, in place of ``quic_miners``; it must not block.
    Default None. Not in the peer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "netuid", check_netuid(self.netuid))
        for name in ("sync_interval", "sync_timeout"):
            try:
                value = check_timeout(getattr(self, name))
            except ConfigError:
                value = None
            if value is None:
                raise ConfigError(f"{name} must be a finite number above 0")
            object.__setattr__(self, name, value)

    @classmethod
    def finney(cls, netuid: int, **more: Any) -> Self:
        """Follow a subnet of the main network, every ten minutes."""
        return cls(netuid, FINNEY_ENDPOINT, **more)

    @classmethod
    def testnet(cls, netuid: int, **more: Any) -> Self:
        """Follow a subnet of the test network, every ten minutes."""
        return cls(netuid, TESTNET_ENDPOINT, **more)

    @classmethod
    def local(cls, netuid: int, **more: Any) -> Self:
        """Follow a subnet of a node on this machine, whose miners may be there, too."""
        more = {"sync_interval": 12.0, "allow_private": True, **more}
        return cls(netuid, LOCAL_ENDPOINT, **more)


class MetagraphMonitor:
    """Reads a subnet now and then, and tells a client who its miners are.

    It belongs to the event loop that it is started in; the chain is asked in threads.

    Args:
        config: What to follow.
        hotkey: The client's own, which is not dialled.
        update: Takes the miners that there are now.

    Attributes:
        metagraph: What was read last.
        failures: Reads that failed since the last one that did not.
    """

    def __init__(
        self,
        config: MetagraphMonitorConfig,
        hotkey: str,
        update: Callable[[list[QuicAxonInfo]], Awaitable[ConnectReport]],
    ) -> None:
        self.config = config
        self.metagraph = Metagraph(
            config.netuid,
            allow_private=config.allow_private,
            allow_ipv6=config.allow_ipv6,
        )
        self.failures = 0
        self._hotkey = hotkey
        self._update = update
        self._source: MetagraphSource = as_source(config.subtensor_endpoint)
        self._owns = self._source is not config.subtensor_endpoint
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    @property
    def is_running(self) -> bool:
        """Whether it goes on reading."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Read the subnet, connect to its miners, and go on doing so.

        Raises:
            ChainError, LightningConnectionError: The first read failed.
            ConfigError: The extra ``subtensor`` is missing.
        """
        try:
            await self._sync()
        except BaseException:
            self._let_go()
            raise
        if self._is_stopped:
            self._let_go()
            raise ChainError("the monitor was stopped before it had begun")
        self._task = asyncio.create_task(self._follow(), name="lightning-metagraph")

    async def stop(self) -> None:
        """End it. Connections stay as they are."""
        self._is_stopped = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._let_go()

    def _let_go(self) -> None:
        if self._owns:
            self._source.close()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.config.sync_interval
        while True:
            await asyncio.sleep(max(due - loop.time(), 0))
            try:
                await self._sync()
            except Exception as error:
                # One that nobody foresaw must not end it, either.
                self._failed(error)
                due = loop.time() + self._backoff()
            else:
                if self.failures:
                    log.info(
                        "subnet %d is read again, after %d failures",
                        self.config.netuid,
                        self.failures,
                    )
                self.failures = 0
                # Ticks that were missed are not made up for.
                due = max(due, loop.time()) + self.config.sync_interval

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        level = logging.WARNING if self.failures == 1 else logging.DEBUG
        log.log(
            level,
            "subnet %d cannot be read, what was read at block %d holds: %s",
            self.config.netuid,
            self.metagraph.block,
            error,
            key=level,
        )
        # The next read makes a new connection.
        with contextlib.suppress(Exception):
            self._let_go()

    def _backoff(self) -> float:
        doubled = FIRST_BACKOFF * 2.0 ** min(self.failures - 1, 16)
        return min(doubled, MAX_BACKOFF, self.config.sync_interval)

    async def _sync(self) -> None:
        await self.metagraph.sync_async(self._source, self.config.sync_timeout)
        report = await self._update(await self._miners())
        if self.config.probe is not None:
            for miner in report:
                if miner.error is None:
                    self.config.probe.note(miner.address, speaks_quic=True)

    async def _miners(self) -> list[QuicAxonInfo]:
        config = self.config
        if config.select is not None:
            return list(config.select(self.metagraph))
        miners = [
            axon
            for axon in self.metagraph.quic_miners(
                include_inactive=config.include_inactive
            )
            if axon.hotkey != self._hotkey
        ]
        return miners if config.probe is None else await config.probe.filter(miners)
