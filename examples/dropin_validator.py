"""A validator with a dendrite, as bittensor's: only the import is another.

Three miners are asked at once: one speaks QUIC and HTTP, one HTTP only, one is not there.
Results come in the order of the miners; what failed is on its synapse.
"""

import asyncio
import socket

from lightning import Axon, AxonInfo, Dendrite, Sr25519Signer, Synapse


class Double(Synapse):
    """A number, and twice as much."""

    number: int
    doubled: int | None = None


async def double(synapse: Double) -> Double:
    """Answer; coroutines run on the axon's loop."""
    synapse.doubled = 2 * synapse.number
    return synapse


def free_port() -> int:
    """Find a port, as a miner would be told one."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def miner(number: int, *, quic: bool) -> Axon:
    """Start a miner of ours, so that there is somebody to ask."""
    signer = Sr25519Signer.from_seed(bytes([number] * 32))
    axon = Axon(signer, port=free_port(), external_ip="127.0.0.1", quic=quic)
    return axon.attach(double).start()


async def validate(axons: list[AxonInfo]) -> None:
    """Ask all, as validators do in each round."""
    async with Dendrite(Sr25519Signer.from_seed(bytes([2] * 32))) as dendrite:
        answers = await dendrite(axons, Double(number=21), timeout=5, deserialize=False)
    for axon, answer in zip(axons, answers, strict=True):
        told = answer.dendrite
        print(axon.ip, told.status_code, told.status_message, answer.doubled)


if __name__ == "__main__":
    running = [miner(3, quic=True), miner(4, quic=False)]
    away = AxonInfo(
        ip="127.0.0.1",
        port=free_port(),
        hotkey=Sr25519Signer.from_seed(bytes([5] * 32)).ss58_address,
    )
    asyncio.run(validate([axon.info() for axon in running] + [away]))
    for axon in running:
        axon.stop()
