"""Neurons in other libraries' shapes: bittensor 9, 10 and 11, and plain axons.

Everything is told by its attributes; none of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from lightning.chain.neurons import NeuronInfo
from lightning.chain.scale import ip_text
from lightning.errors import ChainError, LightningError
from lightning.types import PROTOCOL_QUIC, PeerAddr, QuicAxonInfo

__all__ = ["block_of", "neuron_of", "neurons_of"]

MAX_NEURONS: Final = 65_536
"""A uid has 16 bits."""

RAO: Final = 1_000_000_000
_FIELDS: Final = frozenset(each.name for each in fields(NeuronInfo))


def neurons_of(metagraph: Any) -> list[NeuronInfo]:
    """Return the neurons of a metagraph of bittensor, or of any iterable of them.

    Args:
        metagraph: bittensor 9's or 10's, which has a column for each property;
            bittensor 11's, which has neurons; or an iterable of what `neuron_of` takes.

    Raises:
        ChainError: It is none of these, or its columns differ in length.
    """
    if hasattr(metagraph, "axons") and hasattr(metagraph, "hotkeys"):
        return _columns(metagraph)
    raw = getattr(metagraph, "raw", None)
    axons = raw.get("axons") if isinstance(raw, Mapping) else None
    neurons = getattr(metagraph, "neurons", metagraph)
    if not isinstance(neurons, Iterable) or isinstance(neurons, str | bytes | Mapping):
        raise ChainError(f"{type(metagraph).__name__} has no neurons")
    found = []
    for number, each in enumerate(neurons):
        if number >= MAX_NEURONS:
            raise ChainError(f"more than {MAX_NEURONS} neurons")
        uid = int(getattr(each, "uid", number))
        record = axons[uid] if axons is not None and uid < len(axons) else None
        found.append(neuron_of(each, number, record))
    return found


def block_of(metagraph: Any) -> int:
    """Return the block of a metagraph, 0 where it does not tell."""
    block = getattr(metagraph, "block", 0)
    try:
        return int(block)
    except (TypeError, ValueError):
        return 0


def neuron_of(
    neuron: Any, uid: int, record: Mapping[str, Any] | None = None
) -> NeuronInfo:
    """Return a neuron of any known shape.

    Args:
        neuron: A `NeuronInfo` or a mapping of its fields; a neuron of bittensor; or
            what `QuicAxonInfo.coerce` takes, which counts as an active miner.
        uid: Its number where it does not tell.
        record: The axon as the chain has it, where that is known.

    Raises:
        ChainError: It is none of these, or a value is out of its range.
    """
    try:
        return _neuron_of(neuron, uid, record)
    except LightningError as error:
        raise ChainError(f"neuron {uid}: {error.detail}") from error
    except (AttributeError, TypeError, ValueError, OverflowError, KeyError) as error:
        raise ChainError(f"neuron {uid} cannot be read: {error!r}") from error


def _neuron_of(neuron: Any, uid: int, record: Mapping[str, Any] | None) -> NeuronInfo:
    if isinstance(neuron, NeuronInfo):
        return _checked(neuron)
    if isinstance(neuron, Mapping) and not neuron.keys() <= _FIELDS:
        axon = QuicAxonInfo.coerce(neuron)
        return _of_axon(uid, axon)
    if isinstance(neuron, Mapping):
        return _checked(NeuronInfo(**{"uid": uid, **neuron}))
    if record is None:
        raw = getattr(neuron, "raw", None)
        record = raw.get("axon_info") if isinstance(raw, Mapping) else None
    if hasattr(neuron, "axon_info"):
        axon = neuron.axon_info
        place = ("", 0, 0) if axon is None else _place(axon)
    elif record is not None:
        place = _of_record(record)
    elif hasattr(neuron, "axon"):
        place = _of_text(neuron.axon)
    else:
        return _of_axon(uid, QuicAxonInfo.coerce(neuron))
    stake = getattr(neuron, "total_stake", None)
    return _checked(
        NeuronInfo(
            uid=int(getattr(neuron, "uid", uid)),
            hotkey=neuron.hotkey,
            stake=_rao(getattr(neuron, "stake", 0) if stake is None else stake),
            is_active=bool(getattr(neuron, "active", True)),
            axon_ip=place[0],
            axon_port=place[1],
            axon_protocol=place[2],
            validator_permit=bool(getattr(neuron, "validator_permit", False)),
            coldkey=getattr(neuron, "coldkey", "") or "",
        )
    )


def _columns(metagraph: Any) -> list[NeuronInfo]:
    axons, hotkeys = list(metagraph.axons), list(metagraph.hotkeys)
    count = len(axons)
    if count > MAX_NEURONS:
        raise ChainError(f"more than {MAX_NEURONS} neurons")
    columns = {"hotkeys": hotkeys}
    for name, others in _COLUMNS.items():
        for each in (name, *others):
            column = getattr(metagraph, each, None)
            if column is not None:
                columns[name] = list(column)
                break
    for name, column in columns.items():
        # It may be in the middle of a sync, in another thread.
        if len(column) != count:
            raise ChainError(f"{count} axons, but {len(column)} {name}")
    nothing = [None] * count
    uids = columns.get("uids", list(range(count)))
    stakes = columns.get("stake", nothing)
    permits = columns.get("validator_permit", nothing)
    active = columns.get("active", [True] * count)
    coldkeys = columns.get("coldkeys", nothing)
    found = []
    for number, axon in enumerate(axons):
        try:
            ip, port, protocol = _place(axon)
            neuron = NeuronInfo(
                uid=int(uids[number]),
                hotkey=hotkeys[number],
                stake=_rao(stakes[number]),
                is_active=bool(active[number]),
                axon_ip=ip,
                axon_port=port,
                axon_protocol=protocol,
                validator_permit=bool(permits[number]),
                coldkey=coldkeys[number] or "",
            )
            found.append(_checked(neuron))
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ChainError(f"neuron {number} cannot be read: {error!r}") from error
    return found


# What the columns may be called.
_COLUMNS: Final = {
    "uids": (),
    "stake": ("total_stake", "S"),
    "validator_permit": (),
    "active": (),
    "coldkeys": (),
}


def _place(axon: Any) -> tuple[str, int, int]:
    """Return ip, port and protocol of a bittensor ``AxonInfo``."""
    ip = axon.ip
    if isinstance(ip, int):
        ip = ip_text(ip, int(getattr(axon, "ip_type", 4)))
    return ip, int(axon.port), int(getattr(axon, "protocol", PROTOCOL_QUIC))


def _of_record(record: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return the same of an axon as the chain has it."""
    ip = record["ip"]
    if not isinstance(ip, str):
        ip = ip_text(int(ip), int(record.get("ip_type", 4)))
    return ip, int(record["port"]), int(record.get("protocol", PROTOCOL_QUIC))


def _of_text(text: str | None) -> tuple[str, int, int]:
    """Return the same of ``ip:port``; which protocol it is, is not said."""
    if not text:
        return "", 0, 0
    ip, port = PeerAddr.parse(text)
    return ip, port, PROTOCOL_QUIC


def _of_axon(uid: int, axon: QuicAxonInfo) -> NeuronInfo:
    return NeuronInfo(
        uid=uid,
        hotkey=axon.hotkey,
        axon_ip=axon.ip,
        axon_port=axon.port,
        axon_protocol=axon.protocol,
    )


def _rao(stake: Any) -> int:
    """Return a stake in RAO; a ``float`` is in whole tokens, as bittensor has it."""
    if stake is None:
        return 0
    rao = getattr(stake, "rao", None)
    if rao is not None:
        return int(rao)
    if isinstance(stake, int):
        return stake
    return int(float(stake) * RAO)


def _checked(neuron: NeuronInfo) -> NeuronInfo:
    neuron.to_axon()
    if not 0 <= neuron.uid < MAX_NEURONS:
        raise ValueError(f"uid {neuron.uid}")
    if neuron.stake < 0:
        raise ValueError(f"stake {neuron.stake}")
    return neuron
