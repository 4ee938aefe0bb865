"""The address that this machine has on the internet, asked only if somebody wants it."""

from __future__ import annotations

import ipaddress
import logging
import urllib.request
from typing import Final

__all__ = ["UNKNOWN", "external_ip"]

UNKNOWN: Final = "0.0.0.0"  # noqa: S104 - what stands for no address on the chain.
"""What is returned where nobody says."""

SERVICES: Final = (
    "https://checkip.amazonaws.com",
    "https://api.ipify.org",
    "https://icanhazip.com",
)
TIMEOUT: Final = 2.0
"""Seconds that each of the services has."""

log = logging.getLogger("lightning.dendrite")


def external_ip() -> str:
    """Ask some services which address we have; blocks for up to six seconds.

    Returns:
        An IPv4 or IPv6 address, `UNKNOWN` if none can be had. Never raises.
    """
    for service in SERVICES:
        try:
            with urllib.request.urlopen(service, timeout=TIMEOUT) as answer:  # noqa: S310 - fixed URLs.
                return str(ipaddress.ip_address(answer.read(64).decode().strip()))
        except (OSError, ValueError):
            continue
    log.debug("no service told our external address")
    return UNKNOWN
