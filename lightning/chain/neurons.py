"""What a subnet's neurons are, and which of their addresses can be dialled."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, NamedTuple

from lightning.types import PROTOCOL_QUIC, QuicAxonInfo

__all__ = ["NeuronInfo", "Snapshot", "is_valid_ip"]

# What of IPv4 is not globally routable, as the peer has it. Multicast and all above
# are one comparison.
_LOCAL: Final = tuple(
    (int(network.network_address), int(network.netmask))
    for network in map(
        ipaddress.IPv4Network,
        (
            "10.0.0.0/8",  # RFC 1918, as the two below.
            "172.16.0.0/12",
            "192.168.0.0/16",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "100.64.0.0/10",  # RFC 6598.
        ),
    )
)
_UNUSABLE: Final = tuple(
    (int(network.network_address), int(network.netmask))
    for network in map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "192.0.0.0/24",
            "192.0.2.0/24",  # RFC 5737, as the two of its kind below.
            "192.88.99.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
        ),
    )
)
_FIRST_MULTICAST: Final = int(ipaddress.IPv4Address("224.0.0.0"))


@dataclass(frozen=True, slots=True)
class NeuronInfo:
    """A neuron of a subnet, as the chain had it at one block."""

    uid: int
    """Its number in the subnet, 0 to 65535."""

    hotkey: str
    """SS58 address, prefix 42."""

    stake: int = 0
    """In RAO, 10^-9 of a token: of the subnet where it has a token of its own."""

    is_active: bool = True
    """Whether it has set weights of late, or has just registered."""

    axon_ip: str = ""
    """IPv4 or IPv6 address; empty or ``0.0.0.0`` if it has published none."""

    axon_port: int = 0
    """UDP port, 0 if it has published none."""

    axon_protocol: int = PROTOCOL_QUIC
    """Number on the chain, 0 to 255: 4 by convention for QUIC. Others than QUIC miners
    write 4, too."""

    validator_permit: bool = False
    """Whether it may validate."""

    coldkey: str = ""
    """SS58 address of the owner; empty where the source does not tell."""

    def to_axon(self) -> QuicAxonInfo:
        """Return what a client dials.

        Raises:
            OverflowError: The port or the protocol is out of its range.
        """
        return QuicAxonInfo(
            self.hotkey, self.axon_ip, self.axon_port, self.axon_protocol
        )


class Snapshot(NamedTuple):
    """A subnet at one block."""

    block: int
    """Its number; 0 where the source does not tell."""

    neurons: tuple[NeuronInfo, ...]
    """All of them, in the source's order."""


def is_valid_ip(
    ip: str, *, allow_private: bool = False, allow_ipv6: bool = False
) -> bool:
    """Tell whether an address may be dialled: by default, global IPv4 only.

    Args:
        ip: Text. What is no address is not valid.
        allow_private: Also addresses that are only reached nearby: loopback, private
            (RFC 1918, RFC 4193), link-local and shared (RFC 6598), for networks of
            one's own.
        allow_ipv6: Also global IPv6 addresses.

    Source: the rules of peer 0.2.15: no address of 0/8, 10/8, 100.64/10, 127/8,
    169.254/16, 172.16/12, 192.0.0/24, 192.0.2/24, 192.88.99/24, 192.168/16, 198.18/15,
    198.51.100/24, 203.0.113/24, no multicast, and none from 240.0.0.0 on.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if not allow_ipv6 or address.ipv4_mapped or address.scope_id:
            return False
        if address.is_loopback or address.is_link_local or address in _UNIQUE_LOCAL:
            return allow_private
        return address.is_global and not address.is_multicast
    number = int(address)
    if number >= _FIRST_MULTICAST or _is_in(number, _UNUSABLE):
        return False
    return allow_private or not _is_in(number, _LOCAL)


_UNIQUE_LOCAL: Final = ipaddress.IPv6Network("fc00::/7")


def _is_in(address: int, networks: tuple[tuple[int, int], ...]) -> bool:
    return any(address & mask == network for network, mask in networks)
