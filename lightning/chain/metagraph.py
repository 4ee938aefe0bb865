"""A subnet as it was last read, and how it is read again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.chain.calls import ask, ask_async
from lightning.chain.neurons import NeuronInfo, Snapshot, is_valid_ip
from lightning.chain.sources import as_source
from lightning.errors import ChainError
from lightning.types import PROTOCOL_QUIC, QuicAxonInfo, check_timeout

if TYPE_CHECKING:
    from lightning.chain.sources import MetagraphSource

__all__ = ["SYNC_TIMEOUT", "Metagraph"]

SYNC_TIMEOUT = 60.0
"""Seconds that one sync may take, connecting included; the peer's."""


class _View(NamedTuple):
    block: int
    neurons: tuple[NeuronInfo, ...]
    by_uid: dict[int, NeuronInfo]
    by_hotkey: dict[str, NeuronInfo]


_EMPTY = _View(0, (), {}, {})


class Metagraph:
    """The neurons of a subnet.

    What a sync has read replaces the old view as a whole; if it fails, that stays. Any
    thread may read it at any time.

    Args:
        netuid: Number of the subnet, 0 to 65535.
        allow_private: Whether `quic_miners` and `validator_axon_ips` also give
            addresses that are only reached nearby; see `is_valid_ip`.
        allow_ipv6: Whether they give IPv6 addresses.

    Raises:
        TypeError: The number is none.
        OverflowError: It is out of its range.

    Example::

        metagraph = Metagraph(2)
        metagraph.sync("wss://entrypoint-finney.opentensor.ai:443")
        client.update_miner_registry(metagraph.quic_miners())
    """

    def __init__(
        self, netuid: int, *, allow_private: bool = False, allow_ipv6: bool = False
    ) -> None:
        self._netuid = check_netuid(netuid)
        self._allow_private = allow_private
        self._allow_ipv6 = allow_ipv6
        self._view = _EMPTY
        self._synced_at: float | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        view = self._view
        return (
            f"<{type(self).__name__} of subnet {self._netuid}: {len(view.neurons)} "
            f"neurons at block {view.block}>"
        )

    @property
    def netuid(self) -> int:
        """Number of the subnet."""
        return self._netuid

    @property
    def neurons(self) -> tuple[NeuronInfo, ...]:
        """All neurons, in the source's order; empty before the first sync."""
        return self._view.neurons

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self._view.neurons)

    @property
    def block(self) -> int:
        """The block they were read at; 0 before the first sync."""
        return self._view.block

    @property
    def age(self) -> float | None:
        """Seconds since they were read; None before the first sync."""
        synced_at = self._synced_at
        return None if synced_at is None else time.monotonic() - synced_at

    def sync(self, source: Any, timeout_secs: float = SYNC_TIMEOUT) -> None:
        """Read the subnet; blocks until it is there.

        Args:
            source: An endpoint of the chain, such as ``FINNEY_ENDPOINT``; what
                `connect_subtensor` returns, which keeps its connection; a
                ``Subtensor`` or ``Metagraph`` of bittensor; or a list of neurons.
            timeout_secs: Longest time for it, in seconds.

        Raises:
            ChainError: No answer in time, or none of use; the old view stays.
            LightningConnectionError: The chain cannot be reached; likewise.
            ConfigError: A timeout is not a finite positive number, or the extra
                ``subtensor`` is missing.
            TypeError: It is no source.
        """
        timeout = check_timeout(timeout_secs) or SYNC_TIMEOUT
        chain = as_source(source)
        try:
            self._take(ask(lambda: chain.read(self._netuid), timeout, chain.close))
        finally:
            if chain is not source:
                chain.close()

    async def sync_async(self, source: Any, timeout_secs: float = SYNC_TIMEOUT) -> None:
        """Do as `sync`, on an event loop, which goes on meanwhile."""
        timeout = check_timeout(timeout_secs) or SYNC_TIMEOUT
        chain = as_source(source)
        try:
            self._take(await self._read(chain, timeout))
        finally:
            if chain is not source:
                chain.close()

    async def _read(self, chain: MetagraphSource, timeout: float) -> Snapshot:
        return await ask_async(lambda: chain.read(self._netuid), timeout, chain.close)

    def _take(self, snapshot: Snapshot) -> None:
        """Let a snapshot be the view, once it is known to be one."""
        by_uid: dict[int, NeuronInfo] = {}
        by_hotkey: dict[str, NeuronInfo] = {}
        for neuron in snapshot.neurons:
            # The later one, as in a list of miners.
            by_uid[neuron.uid] = by_hotkey[neuron.hotkey] = neuron
        if len(by_uid) != len(snapshot.neurons):
            raise ChainError("a uid is there twice")
        with self._lock:
            self._view = _View(
                int(snapshot.block), tuple(snapshot.neurons), by_uid, by_hotkey
            )
            self._synced_at = time.monotonic()

    def quic_miners(self, *, include_inactive: bool = False) -> list[QuicAxonInfo]:
        """Return the miners that can be dialled.

        These have no validator permit, a valid address, a port and protocol 4. The
        protocol alone does not prove QUIC; a `QuicProbe` finds out.

        Args:
            include_inactive: Also those that the chain calls inactive, which miners
                are that never set weights: on the main network nearly all of them.
        """
        return [
            neuron.to_axon()
            for neuron in self._view.neurons
            if (include_inactive or neuron.is_active)
            and not neuron.validator_permit
            and neuron.axon_protocol == PROTOCOL_QUIC
            and neuron.axon_port > 0
            and self._is_valid(neuron.axon_ip)
        ]

    def validator_axon_ips(self) -> frozenset[str]:
        """Return the addresses that holders of a permit publish.

        Most validators publish none. An allowlist made of an empty set would lock out
        everybody: `MetagraphResolver` lets all in then.
        """
        return frozenset(
            neuron.axon_ip
            for neuron in self._view.neurons
            if neuron.validator_permit and self._is_valid(neuron.axon_ip)
        )

    def permitted_validators(self, min_stake: int = 0) -> dict[str, int]:
        """Return the stake in RAO of each holder of a permit.

        Args:
            min_stake: In RAO; those with less are left out.
        """
        return {
            neuron.hotkey: neuron.stake
            for neuron in self._view.neurons
            if neuron.validator_permit and neuron.stake >= min_stake
        }

    def get_neuron(self, uid: int) -> NeuronInfo | None:
        """Return the neuron with a number, None if there is none."""
        return self._view.by_uid.get(uid)

    def get_uid_by_hotkey(self, hotkey: str) -> int | None:
        """Return the number of a hotkey's neuron, None if it is not registered."""
        neuron = self._view.by_hotkey.get(hotkey)
        return None if neuron is None else neuron.uid

    def _is_valid(self, ip: str) -> bool:
        return is_valid_ip(
            ip, allow_private=self._allow_private, allow_ipv6=self._allow_ipv6
        )


def check_netuid(netuid: Any) -> int:
    """Return the number of a subnet.

    Raises:
        TypeError: It is no ``int``.
        OverflowError: It is not 0 to 65535.
    """
    if isinstance(netuid, bool) or not hasattr(netuid, "__index__"):
        raise TypeError(f"netuid must be an int, not {type(netuid).__name__}")
    number = netuid.__index__()
    if not 0 <= number <= 0xFFFF:
        raise OverflowError("netuid must be 0 to 65535")
    return int(number)
