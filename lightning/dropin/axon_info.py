"""Where an axon is, by bittensor's name and fields."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["AxonInfo", "target_of"]

NOWHERE = "0.0.0.0"  # noqa: S104 - what the chain says of an axon that does not serve.
_KEYS = ("hotkey", "ip", "port", "protocol")


@dataclass(eq=False, repr=False)
class AxonInfo(Mapping[str, Any]):
    """Where a miner's axon is, as the chain says.

    It can be read as a dict of ``hotkey``, ``ip``, ``port`` and ``protocol`` as well.

    Attributes:
        version: Of the miner's software.
        ip: IPv4 or IPv6 address, or a host name; ``0.0.0.0`` of one that does not serve.
        port: UDP and TCP.
        ip_type: 4 or 6.
        hotkey: SS58 address of the miner.
        coldkey: SS58 address of its owner.
        protocol: 4, which does not tell who speaks QUIC.
        placeholder1: Unused.
        placeholder2: Unused.
    """

    version: int = 0
    ip: str = NOWHERE
    port: int = 0
    ip_type: int = 4
    hotkey: str = ""
    coldkey: str = ""
    protocol: int = 4
    placeholder1: int = 0
    placeholder2: int = 0

    def __getitem__(self, key: str) -> Any:
        if key in _KEYS:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    def __bool__(self) -> bool:
        return True

    def _identity(self) -> tuple[Any, ...]:
        return (
            self.version,
            self.ip,
            self.port,
            self.ip_type,
            self.coldkey,
            self.hotkey,
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AxonInfo):
            return self._identity() == other._identity()
        if isinstance(other, Mapping):
            return dict(self) == other
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # It can change, as bittensor's.

    def __str__(self) -> str:
        return (
            f"AxonInfo( {self.ip_str()}, {self.hotkey}, {self.coldkey}, "
            f"{self.version} )"
        )

    __repr__ = __str__

    @property
    def is_serving(self) -> bool:
        """Whether it says where it is."""
        return self.ip != NOWHERE

    def ip_str(self) -> str:
        """Return ``/ipv4/1.2.3.4:80``."""
        return f"/ipv{self.ip_type}/{self.ip}:{self.port}"

    def to_string(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_string(cls, json_string: str) -> Self:
        """Read what `to_string` wrote; what cannot be read gives one that is nowhere."""
        try:
            return cls(**json.loads(json_string))
        except (TypeError, ValueError):
            return cls(version=0, ip="", port=0, ip_type=0)

    @classmethod
    def from_neuron_info(cls, neuron_info: Mapping[str, Any]) -> Self:
        """Make it from a neuron's record on the chain, where the IP is a number."""
        info = neuron_info["axon_info"]
        return cls(
            version=info["version"],
            ip=str(ipaddress.ip_address(int(info["ip"]))),
            port=info["port"],
            ip_type=info["ip_type"],
            hotkey=neuron_info["hotkey"],
            coldkey=neuron_info["coldkey"],
        )

    def to_parameter_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return dict(self.__dict__)

    @classmethod
    def from_parameter_dict(cls, parameter_dict: Mapping[str, Any]) -> Self:
        """Make it from all fields."""
        return cls(**parameter_dict)


def target_of(axon: Any) -> AxonInfo:
    """Return where anything axon-like is.

    Args:
        axon: An `AxonInfo`, bittensor's, a mapping or an object with ``hotkey``,
            ``ip`` and ``port``, or an axon, which has ``info()``.

    Raises:
        TypeError: It says neither where it is nor has ``info()``.
    """
    if isinstance(axon, AxonInfo):
        return axon
    if isinstance(axon, Mapping):
        read: Any = axon.get
    elif hasattr(axon, "info") and callable(axon.info):
        return target_of(axon.info())
    elif hasattr(axon, "ip") and hasattr(axon, "port"):
        read = _reader(axon)
    else:
        raise TypeError(
            f"cannot ask a {type(axon).__name__}: give an AxonInfo, or anything with "
            "hotkey, ip and port"
        )
    known = {}
    for field in dataclasses.fields(AxonInfo):
        value = read(field.name)
        if value is not None:
            known[field.name] = value
    return AxonInfo(**known)


def _reader(thing: Any) -> Any:
    return lambda name: getattr(thing, name, None)
