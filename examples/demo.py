"""A miner and a validator on loopback: login, a query, a stream, 32 queries at once.

Run it with ``make demo``.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    HandlerContext,
    QuicAxonInfo,
    Sr25519Signer,
)

MINER = Sr25519Signer.from_seed(bytes([1] * 32))
VALIDATOR = Sr25519Signer.from_seed(bytes([2] * 32))


def word_count(data: dict[str, Any], context: HandlerContext) -> dict[str, Any]:
    """Count words; the context says for whom."""
    return {"words": len(data["text"].split()), "for": context.hotkey}


def countdown(data: dict[str, Any]) -> Iterator[bytes]:
    """Count down to zero, a chunk each."""
    for number in range(data["start"], -1, -1):
        yield str(number).encode()


def took(since: float) -> str:
    """Say how long ago that was."""
    return f"{(time.perf_counter() - since) * 1e3:.1f} ms"


async def main() -> None:
    """Run the demonstration."""
    server = AsyncLightningServer(MINER.ss58_address, "127.0.0.1", port=0, signer=MINER)
    server.register_synapse_handler("word_count", word_count)
    server.register_streaming_handler("countdown", countdown)
    client = AsyncLightning(VALIDATOR.ss58_address, signer=VALIDATOR)
    async with server, client:
        ip, port = server.local_addr()
        print(f"miner      {server.miner_hotkey} listens on {ip}:{port}")
        miner = QuicAxonInfo(server.miner_hotkey, ip, port)

        since = time.perf_counter()
        await client.initialize_connections([miner])
        print(f"validator  {client.wallet_hotkey} logged in, both ways: {took(since)}")

        request = {"synapse_type": "word_count", "data": {"text": "to be or not to be"}}
        answer = await client.query_axon(miner, request, timeout_secs=5)
        assert answer.data == {"words": 6, "for": client.wallet_hotkey}
        print(f"query      {answer.data['words']} words: {answer.latency_ms:.1f} ms")

        since = time.perf_counter()
        request = {"synapse_type": "countdown", "data": {"start": 5}}
        async with await client.query_axon_stream(miner, request) as stream:
            chunks = [chunk.decode() async for chunk in stream]
        assert chunks == ["5", "4", "3", "2", "1", "0"]
        print(f"stream     {' '.join(chunks)}: {took(since)}")

        since = time.perf_counter()
        answers = await asyncio.gather(
            *(
                client.query_axon(
                    miner,
                    {"synapse_type": "word_count", "data": {"text": "word " * n}},
                    timeout_secs=5,
                )
                for n in range(32)
            )
        )
        assert [a.data["words"] for a in answers] == list(range(32))
        print(f"at once    32 queries, all answered: {took(since)}")


if __name__ == "__main__":
    asyncio.run(main())
