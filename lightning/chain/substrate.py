"""Reading a subnet from a node of the chain, through substrate-interface."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any, Final
from urllib.parse import urlsplit

from lightning import ss58
from lightning.chain.neurons import NeuronInfo, Snapshot
from lightning.chain.scale import decode_neurons_lite, ip_text
from lightning.errors import (
    ChainError,
    ConfigError,
    DecodeError,
    LightningConnectionError,
    LightningError,
)
from lightning.logs import Throttled

__all__ = ["SubstrateSource", "connect_subtensor", "interface_of"]

CONNECT_TIMEOUT: Final = 30.0
PALLET: Final = "SubtensorModule"
# Keys of a storage that are asked for at once.
BATCH: Final = 256
MAX_NEURONS: Final = 65_536

log = Throttled(logging.getLogger("lightning.metagraph"))


class SubstrateSource:
    """A node of the chain; needs the extra ``subtensor``.

    Each read is pinned to one block. It asks for
    ``NeuronInfoRuntimeApi_get_neurons_lite`` and reads the storage, entry by entry,
    where the node refuses that or its answer is of no use.

    Args:
        chain: A URL, ``ws://`` or ``wss://``, of which the connection is made at the
            first read and kept; or a ``SubstrateInterface``, which stays its owner's.
        connect_timeout_secs: For connecting, and for each answer.

    Raises:
        ConfigError: It is no such URL.
    """

    def __init__(
        self, chain: Any, *, connect_timeout_secs: float = CONNECT_TIMEOUT
    ) -> None:
        self.endpoint = (
            chain if isinstance(chain, str) else str(getattr(chain, "url", ""))
        )
        self._timeout = connect_timeout_secs
        self._given = None if isinstance(chain, str) else chain
        self._interface = self._given
        self._busy = threading.Lock()
        if isinstance(chain, str):
            parts = urlsplit(chain)
            if parts.scheme not in ("ws", "wss") or not parts.hostname:
                raise ConfigError(f"{chain!r} is no ws:// or wss:// URL")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"

    def connect(self) -> Any:
        """Return the ``SubstrateInterface``, connected if it was not.

        Raises:
            ConfigError: substrate-interface cannot be imported.
            LightningConnectionError: The node cannot be reached.
        """
        if self._interface is None:
            interface_class = _import()
            try:
                self._interface = interface_class(
                    url=self.endpoint,
                    ss58_format=42,
                    # The node says nothing that a local file does not.
                    use_remote_preset=False,
                    auto_discover=False,
                    # A request that is lost is not sent again to another state.
                    auto_reconnect=False,
                    ws_options={"timeout": self._timeout},
                )
            except Exception as error:
                raise LightningConnectionError(
                    f"cannot connect to subtensor: {_what(error)}",
                    address=self.endpoint,
                ) from error
        return self._interface

    def read(self, netuid: int) -> Snapshot:
        """Return a subnet at the newest block.

        Raises:
            ChainError: The node refused, or its answers are of no use; or another
                `read` has not ended.
            LightningConnectionError: It cannot be reached.
            ConfigError: substrate-interface cannot be imported.
        """
        if not 0 <= netuid < MAX_NEURONS:
            raise ConfigError(f"a netuid is a number below {MAX_NEURONS}, not {netuid}")
        if not self._busy.acquire(blocking=False):
            raise ChainError("the read before has not ended")
        interface = None
        try:
            interface = self.connect()
            node = _Node(interface)
            block_hash = node.head()
            block = node.number(block_hash)
            neurons = self._neurons(node, netuid, block_hash)
        except LightningError:
            raise
        except Exception as error:
            # The library's parts raise whatever they stumble over; what the
            # connection is good for then is not known.
            self.close()
            raise ChainError(f"{_what(error)} ({self.endpoint})") from error
        finally:
            if interface is not self._interface:
                # It was cut meanwhile.
                _close(getattr(interface, "websocket", None))
            self._busy.release()
        if not neurons:
            raise ChainError(f"the chain has no neurons in subnet {netuid}")
        return Snapshot(block, tuple(neurons))

    def close(self) -> None:
        """Close the connection, if it is this object's; a `read` under way fails."""
        if self._given is not None:
            return
        interface, self._interface = self._interface, None
        socket = getattr(interface, "websocket", None)
        if socket is None:
            return
        if self._busy.locked():
            # Wakes the thread that waits for its answer, which then closes it.
            with contextlib.suppress(Exception):
                socket.abort()
        else:
            _close(socket)

    def _neurons(self, node: _Node, netuid: int, block_hash: str) -> list[NeuronInfo]:
        try:
            return node.neurons_lite(netuid, block_hash)
        except LightningError as error:
            log.info("the chain's storage is read, as its API fails: %s", error.detail)
            try:
                return node.storage(netuid, block_hash)
            except LightningError as second:
                raise ChainError(
                    f"{error.detail}; and from the storage: {second.detail}"
                ) from second


def _close(socket: Any) -> None:
    """Close a library's WebSocket, without waiting for the node's goodbye."""
    with contextlib.suppress(Exception):
        socket.close(timeout=0)
    with contextlib.suppress(Exception):
        socket.shutdown()


class _Node:
    """The questions, each to be answered or to end in an error of ours."""

    def __init__(self, interface: Any) -> None:
        self._interface = interface

    def ask(self, method: str, params: list[Any]) -> Any:
        """Ask one question.

        Raises:
            ChainError: The node refused it, or said nothing.
        """
        try:
            answer = self._interface.rpc_request(method, params)
        except Exception as error:
            # The library's own class is not imported here: it may be a look-alike.
            if type(error).__name__ != "SubstrateRequestException":
                raise
            raise ChainError(f"{method} was refused: {_what(error)}") from error
        if not isinstance(answer, dict) or answer.get("result") is None:
            raise ChainError(f"{method} has no result")
        return answer["result"]

    def head(self) -> str:
        """Return the hash of the newest block."""
        found = self.ask("chain_getHead", [])
        if not isinstance(found, str):
            raise ChainError("chain_getHead gave no hash")
        return found

    def number(self, block_hash: str) -> int:
        header = self.ask("chain_getHeader", [block_hash])
        try:
            return int(header["number"], 16)
        except (KeyError, TypeError, ValueError) as error:
            raise ChainError("chain_getHeader gave no block number") from error

    def neurons_lite(self, netuid: int, block_hash: str) -> list[NeuronInfo]:
        """Return the neurons, of the runtime's API.

        Raises:
            ChainError: Refused, or no answer of it.
        """
        argument = "0x" + netuid.to_bytes(2, "little").hex()
        method = "NeuronInfoRuntimeApi_get_neurons_lite"
        text = self.ask("state_call", [method, argument, block_hash])
        try:
            return decode_neurons_lite(bytes.fromhex(text.removeprefix("0x")))
        except (AttributeError, TypeError, ValueError) as error:
            detail = (
                error.detail if isinstance(error, DecodeError) else "not hexadecimal"
            )
            raise ChainError(
                f"the answer of {method} cannot be read: {detail}"
            ) from error

    def storage(self, netuid: int, block_hash: str) -> list[NeuronInfo]:
        """Return the neurons, of the pallet's storage; needs the node's metadata.

        Raises:
            ChainError: Refused, or not what the metadata says.
        """
        count = self._one("SubnetworkN", netuid, block_hash) or 0
        permits = self._one("ValidatorPermit", netuid, block_hash) or []
        active = self._one("Active", netuid, block_hash) or []
        hotkeys = {}
        for uid, key in self._many(
            "Keys", [[netuid, uid] for uid in range(count)], block_hash
        ).items():
            if isinstance(key, str):
                hotkeys[uid] = _ss58(key)
        uids = list(hotkeys)
        axons = self._many(
            "Axons", [[netuid, hotkeys[uid]] for uid in uids], block_hash
        )
        stakes = self._stakes([hotkeys[uid] for uid in uids], block_hash)
        found = []
        for place, uid in enumerate(uids):
            axon = axons.get(place)
            axon = axon if isinstance(axon, dict) else _NO_AXON
            found.append(
                NeuronInfo(
                    uid=uid,
                    hotkey=hotkeys[uid],
                    stake=int(stakes.get(place) or 0),
                    is_active=uid < len(active) and bool(active[uid]),
                    axon_ip=ip_text(int(axon["ip"]), int(axon["ip_type"])),
                    axon_port=int(axon["port"]),
                    axon_protocol=int(axon["protocol"]),
                    validator_permit=uid < len(permits) and bool(permits[uid]),
                )
            )
        return found

    def _stakes(self, hotkeys: list[str], block_hash: str) -> dict[int, Any]:
        params = [[hotkey] for hotkey in hotkeys]
        try:
            return self._many("TotalHotkeyStake", params, block_hash)
        except ChainError as error:
            # Newer runtimes keep it elsewhere.
            log.info("stakes count as 0: %s", error.detail)
            return {}

    def _one(self, name: str, netuid: int, block_hash: str) -> Any:
        return self._many(name, [[netuid]], block_hash).get(0)

    def _many(
        self, name: str, params: list[list[Any]], block_hash: str
    ) -> dict[int, Any]:
        """Return the values of a storage's entries, by their number in ``params``."""
        found: dict[int, Any] = {}
        try:
            self._interface.init_runtime(block_hash=block_hash)
            for begin in range(0, len(params), BATCH):
                keys = [
                    self._interface.create_storage_key(PALLET, name, each)
                    for each in params[begin : begin + BATCH]
                ]
                places = {key.to_hex(): begin + at for at, key in enumerate(keys)}
                for key, value in self._interface.query_multi(keys, block_hash):
                    found[places[key.to_hex()]] = getattr(value, "value", None)
        except OSError:
            raise
        except Exception as error:
            if _is_gone(error):
                raise
            raise ChainError(
                f"the storage {name} cannot be read: {_what(error)}"
            ) from error
        return found


_NO_AXON: Final = {"ip": 0, "ip_type": 0, "port": 0, "protocol": 0}


def _ss58(key: str) -> str:
    """Return a hotkey as a text, whether the library gave that or hexadecimal."""
    return ss58.encode(bytes.fromhex(key[2:])) if key.startswith("0x") else key


def _is_gone(error: Exception) -> bool:
    """Tell whether the connection failed, and not an answer."""
    return any(each.__name__ == "WebSocketException" for each in type(error).__mro__)


def _what(error: Exception) -> str:
    """Return what an exception of the library says, in few words."""
    said = error.args[0] if error.args else ""
    if isinstance(said, dict):
        said = said.get("message", said)
    text = str(said)[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import() -> Any:
    try:
        from substrateinterface import SubstrateInterface  # noqa: PLC0415 - An extra.
    except ImportError as error:
        raise ConfigError(
            "reading the chain from a node needs substrate-interface: pip install "
            "'bittensor-lightning[subtensor]'. It cannot share an environment with "
            "bittensor 10, whose cyscale takes the place of its scalecodec: hand in "
            f"the Subtensor object there instead ({error})"
        ) from error
    return SubstrateInterface


def connect_subtensor(
    endpoint: str, connect_timeout_secs: float = CONNECT_TIMEOUT
) -> SubstrateSource:
    """Connect to a node of the chain; blocks.

    Args:
        endpoint: ``ws://`` or ``wss://``.
        connect_timeout_secs: For each step.

    Returns:
        A source for `Metagraph.sync`; close it.

    Raises:
        LightningConnectionError: It cannot be reached.
        ConfigError: It is no such URL, or the extra ``subtensor`` is missing.
    """
    source = SubstrateSource(endpoint, connect_timeout_secs=connect_timeout_secs)
    source.connect()
    return source


def interface_of(chain: Any) -> Any:
    """Return the ``SubstrateInterface`` of what was handed in, None if it has none."""
    if isinstance(chain, SubstrateSource):
        return chain.connect()
    for each in (chain, getattr(chain, "substrate", None)):
        if callable(getattr(each, "compose_call", None)):
            return each
    return None
