"""Reading the chain's answer about a subnet's neurons, in SCALE.

Wire: a ``Vec`` of ``hotkey [u8; 32], coldkey [u8; 32], uid Compact<u16>, netuid
Compact<u16>, active bool, axon {block u64, version u32, ip u128, port u16, ip_type u8,
protocol u8, placeholder1 u8, placeholder2 u8}, prometheus {block u64, version u32, ip
u128, port u16, ip_type u8}, stake Vec<([u8; 32], Compact<u64>)>, rank Compact<u16>,
emission Compact<u64>, incentive, consensus, trust, validator_trust, dividends
Compact<u16>, last_update Compact<u64>, validator_permit bool, pruning_score
Compact<u16>``. Older runtimes wrap all of it in a ``Vec<u8>``. Integers are
little-endian.
"""

from __future__ import annotations

import ipaddress
import struct
from functools import lru_cache
from typing import Final

from lightning import ss58
from lightning.chain.neurons import NeuronInfo
from lightning.errors import DecodeError

__all__ = ["MAX_ANSWER", "decode_neurons_lite"]

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Most bytes of an answer that are read; a subnet of 65 536 neurons has 12 MB."""

_AXON: Final = struct.Struct("<QIQQHBBBB")
_PROMETHEUS_SIZE: Final = struct.calcsize("<QIQQHB")
_STAKE_SIZE: Final = ss58.KEY_SIZE + 1
# Two keys, two infos, two bools and twelve compact numbers of a byte each at least.
_NEURON_SIZE: Final = 2 * ss58.KEY_SIZE + _AXON.size + _PROMETHEUS_SIZE + 2 + 12
_U16: Final = 0xFFFF
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
# The main network has some 40 000 neurons, a validator reads a subnet or a few; an
# entry costs 200 bytes.
_CACHED_KEYS: Final = 16_384


def decode_neurons_lite(data: bytes) -> list[NeuronInfo]:
    """Read the answer of ``NeuronInfoRuntimeApi_get_neurons_lite``.

    Args:
        data: The answer as it came, of today's or of an older runtime. Bytes after it
            are ignored, as the peer does.

    Returns:
        The neurons in the chain's order. A stake is the sum over those who gave it.

    Raises:
        DecodeError: That is no such answer: it ends too soon, counts more than it has,
            or holds a number beyond its width. `path` and `offset` say where.

    Cost: memory in proportion to ``data``, whatever it counts.
    """
    data = bytes(data)
    if len(data) > MAX_ANSWER:
        raise DecodeError(f"an answer of {len(data)} bytes is above {MAX_ANSWER}")
    reader = _Reader(data)
    count = reader.compact(_U64, "neurons")
    if count and count == len(data) - reader.pos:
        # Older runtimes: it is the number of bytes. A neuron has more than one.
        count = reader.compact(_U64, "neurons")
    if count > reader.left // _NEURON_SIZE:
        raise reader.wrong(f"{count} neurons in {reader.left} bytes", "neurons")
    return [_neuron(reader, f"neurons[{number}]") for number in range(count)]


class _Reader:
    """Bytes, and how far they have been read."""

    __slots__ = ("data", "pos")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.pos

    def wrong(self, detail: str, path: str) -> DecodeError:
        return DecodeError(detail, path=path, offset=self.pos)

    def skip(self, size: int, path: str) -> int:
        """Return where ``size`` bytes begin that are there."""
        if size > self.left:
            raise self.wrong(f"{size} bytes were due, {self.left} are left", path)
        begin = self.pos
        self.pos += size
        return begin

    def take(self, size: int, path: str) -> bytes:
        begin = self.skip(size, path)
        return self.data[begin : begin + size]

    def flag(self, path: str) -> bool:
        value = self.data[self.skip(1, path)]
        if value > 1:
            raise self.wrong(f"{value} is no bool", path)
        return value == 1

    def compact(self, largest: int, path: str) -> int:
        """Read a number that says how long it is in its two lowest bits."""
        first = self.data[self.skip(1, path)]
        mode = first & 3
        if mode == 0:
            value = first >> 2
        elif mode < 3:
            more = self.take(1 if mode == 1 else 3, path)
            value = (first | int.from_bytes(more, "little") << 8) >> 2
        else:
            value = int.from_bytes(self.take((first >> 2) + 4, path), "little")
        if value > largest:
            raise self.wrong(f"{value:#x} is above {largest:#x}", path)
        return value


def _neuron(reader: _Reader, path: str) -> NeuronInfo:
    hotkey = _address(reader.take(ss58.KEY_SIZE, path))
    coldkey = _address(reader.take(ss58.KEY_SIZE, path))
    uid = reader.compact(_U16, path)
    reader.compact(_U16, path)
    active = reader.flag(path)
    axon = _AXON.unpack_from(reader.data, reader.skip(_AXON.size, path))
    reader.skip(_PROMETHEUS_SIZE, path)
    stake = _stake(reader, path)
    for width in (_U16, _U64, _U16, _U16, _U16, _U16, _U16, _U64):
        reader.compact(width, path)
    permit = reader.flag(path)
    reader.compact(_U16, path)
    _, _, low, high, port, ip_type, protocol, _, _ = axon
    return NeuronInfo(
        uid=uid,
        hotkey=hotkey,
        stake=stake,
        is_active=active,
        axon_ip=ip_text(high << 64 | low, ip_type),
        axon_port=port,
        axon_protocol=protocol,
        validator_permit=permit,
        coldkey=coldkey,
    )


def _stake(reader: _Reader, path: str) -> int:
    count = reader.compact(_U64, path)
    if count > reader.left // _STAKE_SIZE:
        raise reader.wrong(f"{count} stakes in {reader.left} bytes", path)
    stake = 0
    for _ in range(count):
        reader.skip(ss58.KEY_SIZE, path)
        stake += reader.compact(_U64, path)
    return stake


def ip_text(number: int, ip_type: int) -> str:
    """Return the text of an axon's address.

    Args:
        number: As the chain has it.
        ip_type: 4 or 6.

    Returns:
        For 4 that of the low 32 bits; empty for another type.
    """
    if ip_type == 4:
        return str(ipaddress.IPv4Address(number & 0xFFFF_FFFF))
    if ip_type == 6:
        return str(ipaddress.IPv6Address(number))
    return ""


@lru_cache(maxsize=_CACHED_KEYS)
def _address(key: bytes) -> str:
    return ss58.encode(key)
