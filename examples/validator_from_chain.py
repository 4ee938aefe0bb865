"""A validator that finds its miners on the chain, keeps up with them, and asks them.

Without arguments it rehearses on this machine: two miners, and a list in the place of
the chain. With ``--endpoint`` it follows a subnet there, for which the extra
``subtensor`` is needed:

    python examples/validator_from_chain.py --endpoint wss://test.finney.opentensor.ai:443
"""

import argparse
import asyncio
import contextlib
from typing import Any

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    LightningClientConfig,
    MetagraphMonitorConfig,
    NeuronInfo,
    Sr25519Signer,
)
from lightning.metagraph import QuicProbe

VALIDATOR = Sr25519Signer.from_seed(bytes([7] * 32))


async def rehearse(stack: contextlib.AsyncExitStack) -> list[NeuronInfo]:
    """Start two miners, and return what a chain would say of them."""
    neurons = []
    for uid in range(2):
        miner = Sr25519Signer.from_seed(bytes([40 + uid] * 32))
        server = AsyncLightningServer(miner.ss58_address, "127.0.0.1", 0, signer=miner)
        server.register_synapse_handler(
            "square", lambda data: {"square": data["number"] ** 2}
        )
        await server.start()
        stack.push_async_callback(server.stop)
        ip, port = server.local_addr()
        neurons.append(NeuronInfo(uid, miner.ss58_address, axon_ip=ip, axon_port=port))
    return neurons


async def validate(chain: Any, netuid: int, *, private: bool) -> None:
    """Follow a subnet, and ask its miners once."""
    follow = MetagraphMonitorConfig(
        netuid, chain, allow_private=private, probe=QuicProbe()
    )
    config = LightningClientConfig(metagraph=follow, background_reconnect=True)
    async with AsyncLightning(
        VALIDATOR.ss58_address, signer=VALIDATOR, config=config
    ) as client:
        metagraph = client.metagraph
        assert metagraph is not None
        # From here on the connections follow the chain by themselves.
        reached = await client.authenticated_hotkeys()
        miners = [
            axon
            for axon in metagraph.quic_miners(include_inactive=True)
            if axon.hotkey in reached
        ]
        print(
            f"subnet {netuid} at block {metagraph.block}: {metagraph.n} neurons, "
            f"{len(miners)} miners answer"
        )
        request = {"synapse_type": "square", "data": {"number": 7}}
        answers = await client.query_many(miners, request, deadline_secs=10)
        for axon, answer in zip(miners, answers, strict=True):
            data = getattr(answer, "data", None)
            print(f"{axon.hotkey}: {data['square'] if data else answer}")


async def main() -> None:
    """Read the arguments and validate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", help="of a node: ws:// or wss://")
    parser.add_argument("--netuid", type=int, default=2)
    parser.add_argument("--private", action="store_true", help="dial any address")
    given = parser.parse_args()
    async with contextlib.AsyncExitStack() as stack:
        if given.endpoint is None:
            await validate(await rehearse(stack), given.netuid, private=True)
        else:
            await validate(given.endpoint, given.netuid, private=given.private)


if __name__ == "__main__":
    asyncio.run(main())
