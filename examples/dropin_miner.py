"""A miner with an axon, as one of bittensor's: only the import is another.

Run alone it starts on a free port, is asked once, and stops; a subnet's miner would go on.
"""

import asyncio
import socket
import sys

from lightning import Axon, AxonInfo, Dendrite, Sr25519Signer, Synapse


class Double(Synapse):
    """A number, and twice as much."""

    number: int
    doubled: int | None = None

    def deserialize(self) -> int | None:
        """Return the answer alone."""
        return self.doubled


KNOWN = Sr25519Signer.from_seed(bytes([2] * 32))


def double(synapse: Double) -> Double:
    """Answer; plain functions run in threads."""
    synapse.doubled = 2 * synapse.number
    return synapse


def blacklist(synapse: Double) -> tuple[bool, str]:
    """Refuse whom we do not know; the hotkey is proved."""
    return synapse.dendrite.hotkey != KNOWN.ss58_address, "unknown hotkey"


def priority(synapse: Double) -> float:
    """Serve small numbers first."""
    return -synapse.number


def make_axon(port: int) -> Axon:
    """Make the miner's axon. A subnet would give its bittensor wallet."""
    axon = Axon(
        Sr25519Signer.from_seed(bytes([1] * 32)), port=port, external_ip="127.0.0.1"
    )
    return axon.attach(double, blacklist, priority)


def free_port() -> int:
    """Find a port, as a miner would be told one."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def ask(axon: AxonInfo) -> int:
    """Ask it once, as its validator would."""
    async with Dendrite(KNOWN) as dendrite:
        return await dendrite(axon, Double(number=21), timeout=5)


if __name__ == "__main__":
    axon = make_axon(int(sys.argv[1]) if len(sys.argv) > 1 else free_port()).start()
    print(f"mining on UDP and TCP port {axon.external_port}")
    print(asyncio.run(ask(axon.info())))
    axon.stop()
