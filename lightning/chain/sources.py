"""Where a metagraph comes from: one small protocol, and what satisfies it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from lightning.chain.neurons import Snapshot
from lightning.chain.shapes import block_of, neurons_of
from lightning.chain.substrate import SubstrateSource
from lightning.errors import ChainError, ConfigError

__all__ = [
    "BittensorSource",
    "ListSource",
    "MetagraphSource",
    "as_source",
]


@runtime_checkable
class MetagraphSource(Protocol):
    """Reads a subnet. It is called in a thread of its own, and may block there."""

    def read(self, netuid: int) -> Snapshot:
        """Return the subnet as it is now.

        Raises:
            ChainError: It cannot be read now.
            LightningConnectionError: The chain cannot be reached.
        """

    def close(self) -> None:
        """Let go of what it has open, from any thread: a `read` under way fails soon.

        A later `read` connects anew.
        """


class ListSource:
    """A subnet that is told: for tests and private networks.

    Args:
        neurons: An iterable of `NeuronInfo`, of mappings of its fields, or of what
            `QuicAxonInfo.coerce` takes (active miners without a permit, then); or a
            callable that returns one. Lists may change: they are read at each sync.
    """

    def __init__(self, neurons: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self._neurons = neurons
        self._block = 0
        self._lock = threading.Lock()

    def read(self, netuid: int) -> Snapshot:
        """Return the list as it is now; its block counts the reads."""
        neurons = self._neurons() if callable(self._neurons) else self._neurons
        found = tuple(neurons_of(neurons))
        with self._lock:
            self._block += 1
            return Snapshot(self._block, found)

    def close(self) -> None:
        """Do nothing: nothing is open."""


class BittensorSource:
    """A bittensor object that is handed in: read by its shape, never imported.

    Args:
        chain: A ``Subtensor`` of bittensor 9 or 10, or a synchronous client of
            bittensor 11, which is asked at each sync; or a ``Metagraph`` of any of
            them, which is taken as it is then: whoever made it keeps it in sync.

    Raises:
        TypeError: It is none of these.
    """

    def __init__(self, chain: Any) -> None:
        self._chain = chain
        self._busy = threading.Lock()
        subnets = getattr(chain, "subnets", None)
        if callable(getattr(chain, "neurons_lite", None)):
            self._read = self._of_subtensor
        elif callable(getattr(subnets, "metagraph", None)):
            self._read = self._of_client
        elif hasattr(chain, "hotkeys") or hasattr(chain, "neurons"):
            self._read = self._of_metagraph
        else:
            raise TypeError(
                "a source of a metagraph is an endpoint, a MetagraphSource, a "
                "SubstrateInterface, a bittensor Subtensor or Metagraph, or a list, "
                f"not {type(chain).__name__}"
            )

    def read(self, netuid: int) -> Snapshot:
        """Return the subnet as the object has it.

        Raises:
            ChainError: The object failed, or another `read` has not ended.
            ConfigError: It is an asynchronous one.
        """
        if not self._busy.acquire(blocking=False):
            raise ChainError("the read before has not ended")
        try:
            snapshot = self._read(netuid)
        finally:
            self._busy.release()
        if not snapshot.neurons:
            raise ChainError(f"the chain has no neurons in subnet {netuid}")
        return snapshot

    def close(self) -> None:
        """Do nothing: it belongs to whoever made it."""

    def _of_subtensor(self, netuid: int) -> Snapshot:
        # All of one block.
        block = _now(self._chain.get_current_block())
        neurons = _now(self._chain.neurons_lite(netuid=netuid, block=block))
        return Snapshot(int(block), tuple(neurons_of(neurons)))

    def _of_client(self, netuid: int) -> Snapshot:
        metagraph = _now(self._chain.subnets.metagraph(netuid))
        if metagraph is None:
            raise ChainError(f"the chain has no subnet {netuid}")
        return Snapshot(block_of(metagraph), tuple(neurons_of(metagraph)))

    def _of_metagraph(self, netuid: int) -> Snapshot:
        theirs = getattr(self._chain, "netuid", netuid)
        if int(theirs) != netuid:
            raise ConfigError(f"this metagraph is of subnet {theirs}, not {netuid}")
        return Snapshot(block_of(self._chain), tuple(neurons_of(self._chain)))


def _now(answer: Any) -> Any:
    """Return an answer that must be there already."""
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigError(
            "this bittensor object is asynchronous: hand in the synchronous one, which "
            "is called in a thread"
        )
    return answer


def as_source(source: Any) -> MetagraphSource:
    """Make a source of what callers have.

    Args:
        source: An endpoint such as ``wss://...`` or a ``SubstrateInterface``, for which
            the extra ``subtensor`` is needed; what `BittensorSource` or `ListSource`
            takes; or a `MetagraphSource`, returned as it is.

    Raises:
        TypeError: It is none of these.
        ConfigError: The endpoint is no URL of a WebSocket.
    """
    if isinstance(source, str):
        return SubstrateSource(source)
    if isinstance(source, MetagraphSource):
        return source
    if callable(getattr(source, "rpc_request", None)):
        return SubstrateSource(source)
    if isinstance(source, list | tuple | set | frozenset) or callable(source):
        return ListSource(source)
    if source is None or isinstance(source, bytes | Mapping):
        raise TypeError(f"{type(source).__name__} is no source of a metagraph")
    return BittensorSource(source)
