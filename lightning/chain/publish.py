"""Publishing where a miner can be reached."""

from __future__ import annotations

import importlib
import ipaddress
import socket
from typing import Any, Final, NamedTuple

from lightning import ss58
from lightning.chain.calls import ask
from lightning.chain.metagraph import check_netuid
from lightning.chain.scale import ip_text
from lightning.chain.substrate import PALLET, SubstrateSource, interface_of
from lightning.errors import ChainError, ConfigError, LightningError
from lightning.signer import Signer, as_signer, sign_blocking
from lightning.types import PROTOCOL_QUIC, QuicAxonInfo, check_timeout

__all__ = ["Published", "serve_axon"]

PUBLISH_TIMEOUT: Final = 120.0
# What the chain's runtime calls sr25519 in a signature.
SR25519: Final = 1


class Published(NamedTuple):
    """What became of `serve_axon`."""

    axon: QuicAxonInfo
    """What the chain has now."""

    is_new: bool
    """False if the chain had it already: nothing was sent."""

    block_hash: str
    """The block that has it; empty where the chain's library does not tell."""


def serve_axon(
    chain: Any,
    netuid: int,
    ip: str,
    port: int,
    signer: Any,
    *,
    hotkey: str | None = None,
    protocol: int = PROTOCOL_QUIC,
    timeout_secs: float = PUBLISH_TIMEOUT,
) -> Published:
    """Publish a miner's address, so that validators find it; blocks.

    The port is UDP. The hotkey must be registered in the subnet, and signs; the chain
    lets it change its axon only now and then.

    Args:
        chain: A URL of a node, a `SubstrateSource` or a ``SubstrateInterface``; or a
            ``Subtensor`` of bittensor 10, or a synchronous client of bittensor 11.
        netuid: Number of the subnet.
        ip: IPv4 or IPv6 address that the world reaches the miner at; not 127.0.0.1.
        port: UDP port, 1 to 65535.
        signer: Anything `as_signer` takes; a wallet for bittensor 11.
        hotkey: SS58 address of the miner, if the signer has none of its own.
        protocol: 4, by convention, for QUIC.
        timeout_secs: Longest time for all of it, in seconds.

    Raises:
        ChainError: The chain refused it, or took too long: it may still take it.
        LightningConnectionError: The chain cannot be reached.
        ConfigError: The address makes no sense, or the extra ``subtensor`` is missing.
        SigningError: The signer failed.
    """
    address = _address(ip)
    axon = QuicAxonInfo(hotkey or _hotkey_of(signer), str(address), port, protocol)
    if axon.port == 0:
        raise ConfigError("a miner's port is 1 to 65535")
    timeout = check_timeout(timeout_secs) or PUBLISH_TIMEOUT
    number = check_netuid(netuid)
    if callable(getattr(chain, "execute", None)):
        return ask(
            lambda: _by_intent(chain, number, axon, signer), timeout, lambda: None
        )
    source = SubstrateSource(chain) if isinstance(chain, str) else None
    key = _Key(axon.hotkey, as_signer(signer))

    def publish() -> Published:
        interface = interface_of(chain if source is None else source)
        if interface is None:
            raise TypeError(f"{type(chain).__name__} cannot publish")
        return _by_call(interface, number, axon, address, key)

    try:
        return ask(publish, timeout, _nothing if source is None else source.close)
    finally:
        if source is not None:
            source.close()


def _nothing() -> None:
    """Leave the connection to its owner."""


def _address(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        raise ConfigError(f"{ip!r} is no IP address") from None
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"{ip} is no address that a miner can be reached at")
    if address == ipaddress.IPv4Address(socket.INADDR_LOOPBACK):
        raise ConfigError("the chain refuses 127.0.0.1; use 127.0.0.2 for tests")
    return address


def _hotkey_of(signer: Any) -> str:
    """Return the address of a signer, a keypair or a wallet."""
    for each in (signer, getattr(signer, "hotkey", None)):
        hotkey = getattr(each, "ss58_address", None)
        if isinstance(hotkey, str):
            return hotkey
    if isinstance(signer, bytes | bytearray):
        return _hotkey_of(as_signer(signer))
    raise ConfigError("this signer does not tell its hotkey: pass it as hotkey")


class _Key:
    """A signer, in the shape that substrate libraries sign with."""

    crypto_type = SR25519

    def __init__(self, hotkey: str, signer: Signer) -> None:
        self.ss58_address = hotkey
        self.public_key = ss58.decode(hotkey)
        self._signer = signer

    def sign(self, data: Any) -> bytes:
        """Sign bytes, or what has them in ``data``."""
        return sign_blocking(self._signer, bytes(getattr(data, "data", data)))


def _by_call(
    interface: Any,
    netuid: int,
    axon: QuicAxonInfo,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    key: _Key,
) -> Published:
    try:
        if _is_there(interface, netuid, axon):
            return Published(axon, is_new=False, block_hash="")
        call = interface.compose_call(
            call_module=PALLET,
            call_function="serve_axon",
            call_params={
                "netuid": netuid,
                "version": 0,
                "ip": int(address),
                "port": axon.port,
                "ip_type": address.version,
                "protocol": axon.protocol,
                "placeholder1": 0,
                "placeholder2": 0,
            },
        )
        extrinsic = interface.create_signed_extrinsic(call=call, keypair=key)
        receipt = interface.submit_extrinsic(extrinsic, wait_for_inclusion=True)
        is_done, trouble = receipt.is_success, receipt.error_message
    except LightningError:
        raise
    except Exception as error:
        raise ChainError(f"serve_axon failed: {error!r}") from error
    if not is_done:
        raise ChainError(f"the chain refused serve_axon: {trouble}")
    return Published(axon, is_new=True, block_hash=str(receipt.block_hash or ""))


def _is_there(interface: Any, netuid: int, axon: QuicAxonInfo) -> bool:
    """Tell whether the chain has this axon already."""
    found = interface.query(PALLET, "Axons", [netuid, axon.hotkey])
    there = getattr(found, "value", found)
    if not isinstance(there, dict):
        return False
    has = (ip_text(there["ip"], there["ip_type"]), there["port"], there["protocol"])
    return has == (axon.ip, axon.port, axon.protocol)


def _by_intent(chain: Any, netuid: int, axon: QuicAxonInfo, wallet: Any) -> Published:
    """Publish through bittensor 11, which has a class for each thing to be done."""
    # It is there already: the client is of it.
    package = importlib.import_module(type(chain).__module__.partition(".")[0])
    intent = package.ServeAxon(
        netuid=netuid, ip=axon.ip, port=axon.port, protocol=axon.protocol, version=0
    )
    try:
        result = chain.execute(intent, wallet)
    except Exception as error:
        raise ChainError(f"serve_axon failed: {error!r}") from error
    if getattr(result, "success", True) is False:
        raise ChainError(f"the chain refused serve_axon: {result}")
    return Published(
        axon, is_new=True, block_hash=str(getattr(result, "block_hash", "") or "")
    )
