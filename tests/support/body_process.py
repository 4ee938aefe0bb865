"""One end of an echo of large bodies, in a process of its own, and what it needs.

Run with ``python -m tests.support.body_process server|client asyncio|blocking``. A server
prints its port and ends with its standard input; it answers ``echo``, and ``memory`` with
its memory. A client takes the port and the size of the body as further arguments, and
prints the extra memory that an echo took at either end, in bytes.
"""

import asyncio
import os
import resource
import sys
from pathlib import Path

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    Lightning,
    LightningClientConfig,
    LightningServer,
    LightningServerConfig,
    QuicAxonInfo,
)
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR, VALIDATOR_HOTKEY

LIMIT = 80 << 20
SERVER = LightningServerConfig(max_frame_payload_bytes=LIMIT)
CLIENT = LightningClientConfig(
    max_frame_payload_bytes=LIMIT, max_stream_payload_bytes=LIMIT
)
MEMORY = {"synapse_type": "memory"}


def peak() -> int:
    """Return the most memory that this program ever had, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What getrusage() says begins with what the parent had when it forked.
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def register(server) -> None:
    server.register_synapse_handler("echo", lambda data: data)
    server.register_synapse_handler("memory", lambda _: {"peak": peak()})


async def serve_on_asyncio() -> None:
    async with AsyncLightningServer(
        MINER_HOTKEY, "127.0.0.1", 0, signer=MINER, config=SERVER
    ) as server:
        register(server)
        print(server.local_addr().port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def serve_blocking() -> None:
    server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER, config=SERVER)
    register(server)
    with server:
        print(server.local_addr().port, flush=True)
        sys.stdin.read()


def body_of(size: int) -> bytes:
    """Make a body that is really there, without a peak of its own."""
    return os.urandom(1024) * (size // 1024)


async def ask_on_asyncio(axon: QuicAxonInfo, size: int) -> tuple[int, int]:
    async with AsyncLightning(
        VALIDATOR_HOTKEY, signer=VALIDATOR, config=CLIENT
    ) as client:
        body = body_of(size)
        request = {"synapse_type": "echo", "data": {"body": body}}
        far = (await client.query_axon(axon, MEMORY)).data["peak"]
        near = peak()
        answer = await client.query_axon(axon, request)
        near = peak() - near
        assert answer.data["body"] == body
        return near, (await client.query_axon(axon, MEMORY)).data["peak"] - far


def ask_blocking(axon: QuicAxonInfo, size: int) -> tuple[int, int]:
    with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR, config=CLIENT) as client:
        body = body_of(size)
        request = {"synapse_type": "echo", "data": {"body": body}}
        far = client.query_axon(axon, MEMORY)["data"]["peak"]
        near = peak()
        answer = client.query_axon(axon, request)
        near = peak() - near
        assert answer["data"]["body"] == body
        return near, client.query_axon(axon, MEMORY)["data"]["peak"] - far


def main(end: str, face: str, port: str = "0", size: str = "0") -> None:
    """Be a server or a client."""
    if end == "server":
        if face == "asyncio":
            asyncio.run(serve_on_asyncio())
        else:
            serve_blocking()
        return
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", int(port))
    if face == "asyncio":
        print(*asyncio.run(ask_on_asyncio(axon, int(size))))
    else:
        print(*ask_blocking(axon, int(size)))


if __name__ == "__main__":
    main(*sys.argv[1:])
