"""A miner that learns from where its validators connect, and then answers nobody else."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    LearnedSources,
    LightningServerConfig,
    QuicAxonInfo,
    Sr25519Signer,
)

MINER = Sr25519Signer.from_seed(bytes([1] * 32))
VALIDATOR = Sr25519Signer.from_seed(bytes([2] * 32))


def stakes() -> dict[str, float]:
    """Return who holds a validator permit, with their stake; ask a metagraph here."""
    return {VALIDATOR.ss58_address: 1000.0}


def echo(data: dict[str, Any]) -> dict[str, Any]:
    """Answer what was asked."""
    return data


async def main(directory: Path) -> None:
    """Learn, enforce, and ask once more."""
    sources = LearnedSources(
        stakes,
        settle_secs=1,  # So that this ends soon; leave it at a tempo.
        path=directory / "sources.json",
    )
    server = AsyncLightningServer(
        MINER.ss58_address,
        "127.0.0.1",
        0,
        signer=MINER,
        config=LightningServerConfig(
            enforce_source_allowlist=True, source_allowlist_refresh_secs=1
        ),
    )
    server.register_synapse_handler("echo", echo)
    sources.attach(server)
    async with (
        server,
        AsyncLightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client,
    ):
        axon = QuicAxonInfo(MINER.ss58_address, *server.local_addr())
        # Nobody may connect before the stakes are known for the first time.
        while not await server.is_source_enforcement_bypassed():  # noqa: ASYNC110 - there is no event.
            await asyncio.sleep(0.05)
        await client.initialize_connections([axon])
        print(f"while learning:  {sources}")
        while not sources.is_enforcing:  # noqa: ASYNC110 - there is no event.
            await asyncio.sleep(0.1)
        print(f"from then on:    {sources}")
        print(f"who may connect: {sources.addresses[VALIDATOR.ss58_address]}")
        answer = await client.query_axon(
            axon, {"synapse_type": "echo", "data": {"n": 1}}
        )
        print(f"still answered:  {answer.data}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(main(Path(name)))
