"""Dendrites and axons, ours or bittensor's, in processes of their own; see `dendrites`.

Run as ``python -m bench.compare.dendrite_end serve LIBRARY FIRST PORT...``, which starts an
axon on each port, prints "ready" and stops when its standard input ends; or with ``ask`` and
the ports of all, which prints one JSON object a line for each line that names an operation.
At module level only the standard library is imported: each library has an environment.
"""

import asyncio
import base64
import importlib
import json
import logging
import sys
import time
import types
from collections.abc import Awaitable, Callable
from typing import Any

from bench.compare.ends import VALIDATOR_SEED, Asynchronous, payload, request

KIB = 1024
TIMEOUT = 60


def seed(number: int) -> bytes:
    """Return the seed of a miner."""
    return (1000 + number).to_bytes(32, "big")


class Library:
    """The names of one library, with what its ends need here.

    Args:
        name: "ours" or "bittensor".
    """

    def __init__(self, name: str) -> None:
        self.is_ours = name == "ours"
        self.module = importlib.import_module("lightning" if self.is_ours else name)
        if not self.is_ours:
            networking = importlib.import_module("bittensor.utils.networking")
            # Both constructors would ask servers on the internet.
            networking.get_external_ip = lambda: "203.0.113.7"
        base = self.module.Synapse
        self.echo = type(
            "Echo", (base,), {"__annotations__": {"text": str}, "text": ""}
        )

    def key(self, value: bytes) -> Any:
        """Make a hotkey."""
        if self.is_ours:
            return self.module.Sr25519Signer.from_seed(value)
        kind = importlib.import_module("bittensor_wallet").Keypair
        return kind.create_from_seed("0x" + value.hex())

    def serve(self, number: int, port: int) -> Any:
        """Start an axon that echoes."""
        kind = self.echo

        async def forward(synapse: kind) -> kind:
            return synapse

        wallet = types.SimpleNamespace(hotkey=self.key(seed(number)))
        more = {"http": False} if self.is_ours else {}
        axon = self.module.Axon(
            wallet=wallet, port=port, external_ip="127.0.0.1", **more
        )
        return axon.attach(forward_fn=forward).start()

    def dendrite(self) -> Any:
        """Make a dendrite."""
        more = {"http": False} if self.is_ours else {}
        return self.module.Dendrite(self.key(VALIDATOR_SEED), **more)

    def target(self, number: int, port: int) -> Any:
        """Describe an axon."""
        hotkey = self.key(seed(number)).ss58_address
        return self.module.AxonInfo(
            version=1,
            ip="127.0.0.1",
            port=port,
            ip_type=4,
            hotkey=hotkey,
            coldkey=hotkey,
        )


class Asker:
    """What asks axons of a library."""

    def __init__(self, name: str, ports: list[int]) -> None:
        library = Library(name)
        self._dendrite = library.dendrite()
        self._targets = [library.target(i, port) for i, port in enumerate(ports)]
        text = base64.b64encode(payload(KIB)).decode()
        self._asked = library.echo(text=text)

    async def one(self) -> None:
        """Ask the first axon."""
        await self._broadcast([self._targets[0]])

    async def all(self) -> None:
        """Ask all, in one call."""
        await self._broadcast(self._targets)

    async def _broadcast(self, targets: list[Any]) -> None:
        told = await self._dendrite(
            targets, self._asked, timeout=TIMEOUT, deserialize=False
        )
        for each in told:
            if not each.is_success or len(each.text) != len(self._asked.text):
                raise RuntimeError(each.dendrite.status_message)


class Plain:
    """`AsyncLightning` and its server, as what there is without a dendrite."""

    def __init__(self, ports: list[int]) -> None:
        self._end = Asynchronous()
        self._end.know(ports[0])
        self._client: Any = None
        self._asked = request(KIB)

    async def one(self) -> None:
        """Ask the server."""
        if self._client is None:
            self._client = await self._end.dial()
        await self._end.ask(self._client, self._asked)


async def rate(ask: Callable[[], Awaitable[None]], seconds: float) -> dict[str, Any]:
    """Measure requests one after the other, then 32 at a time."""
    for _ in range(30):
        await ask()
    single = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        await ask()
        single.append(time.perf_counter() - start)
    count = 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() - begun < seconds:
            await ask()
            count += 1

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(32)))
    elapsed = time.perf_counter() - begun
    return {
        "p50_us": sorted(single)[len(single) // 2] * 1e6,
        "rate": count / elapsed,
        "cpu_us": (time.process_time() - cpu) / count * 1e6,
    }


async def rounds(
    ask: Callable[[], Awaitable[None]], count: int, targets: int
) -> dict[str, Any]:
    """Measure broadcasts: until the last answer is there, and the processor's time."""
    for _ in range(3):
        await ask()
    elapsed = []
    cpu = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        await ask()
        elapsed.append(time.perf_counter() - start)
    return {
        "last_us": sorted(elapsed)[count // 2] * 1e6,
        "cpu_us": (time.process_time() - cpu) / count / targets * 1e6,
        "targets": targets,
    }


async def answer(asker: Any, ports: list[int]) -> None:
    """Do what each line of standard input says."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        told = json.loads(line)
        if told["op"] == "rate":
            found = await rate(asker.one, told["seconds"])
        else:
            found = await rounds(asker.all, told["rounds"], len(ports))
        print(json.dumps(found), flush=True)


def main(role: str, name: str, first: int, ports: list[int]) -> None:
    """Be one end until standard input ends."""
    logging.disable(logging.CRITICAL)
    if role == "serve":
        if name == "plain":
            Asynchronous().serve(ports[0])
        else:
            library = Library(name)
            running = [library.serve(first + i, port) for i, port in enumerate(ports)]
            assert running
        print("ready", flush=True)
        sys.stdin.read()
        return
    asker = Plain(ports) if name == "plain" else Asker(name, ports)
    print("ready", flush=True)
    asyncio.run(answer(asker, ports))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(p) for p in sys.argv[4:]])
