"""One contender's server, client or both, in a process of its own.

Run as ``python -m bench.compare.ends ROLE CONTENDER [PORT]``. It prints a line when it is
ready (a server: with its port), then answers a JSON object a line on standard input with
one on standard output, until its input ends. The Rust program speaks the same::

    {"op": "setup", "count": 100}
    {"op": "latency", "size": 1024, "count": 1000}
    {"op": "throughput", "size": 1024, "count": 10000, "callers": 32, "how": "threads"}
    {"op": "usage"}

Answers have ``seconds`` (a list, one for each) or ``elapsed``, and ``cpu`` and
``peak_kib`` of the process.
"""

import asyncio
import contextlib
import importlib
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MINER_SEED, VALIDATOR_SEED = bytes([1] * 32), bytes([2] * 32)
MINER = "5CcyqxXnJucaCnQQvvUg5EPzj1uoNAxACZvzArHw5aVDvgNH"
VALIDATOR = "5CfCr47V5Dte6bwxNBE8K9oNnQd9fiay6aDEEkgYtFv7w4Fq"
TIMEOUT = 60
WARM_UP = 50
# The login limit of all is meant for strangers.
SERVER = {"max_handshake_attempts_per_minute": 1_000_000}


def request(size: int) -> dict[str, Any]:
    """Make the peer's published request: bytes of 0x42."""
    return {"synapse_type": "echo", "data": {"payload": b"\x42" * size}}


def usage() -> dict[str, float]:
    """Return CPU seconds and the peak of memory so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": used.ru_utime + used.ru_stime, "peak_kib": used.ru_maxrss}


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Blocking:
    """A package with the peer's blocking API."""

    def __init__(self, package: str) -> None:
        module = importlib.import_module(package)
        self._server_class = getattr(module, "RustLightningServer", None)
        self._server_class = self._server_class or module.LightningServer
        self._client_class = getattr(module, "RustLightning", None) or module.Lightning
        self._client: Any = None
        self._axon: dict[str, Any] = {}

    def serve(self, port: int) -> None:
        """Start the server and its thread."""
        server = self._server_class(MINER, "127.0.0.1", port, **SERVER)
        server.set_miner_keypair(MINER_SEED)
        server.register_synapse_handler("echo", lambda data: data)
        server.start()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._server = server

    def connect(self, port: int) -> None:
        """Make the client that is measured."""
        self._axon = {"hotkey": MINER, "ip": "127.0.0.1", "port": port}
        self._client = self._dial()
        for _ in range(WARM_UP):
            self._ask(self._client, request(256))

    def _dial(self) -> Any:
        client = self._client_class(VALIDATOR)
        client.set_validator_keypair(VALIDATOR_SEED)
        client.initialize_connections([self._axon])
        return client

    def _ask(self, client: Any, asked: dict[str, Any]) -> None:
        answer = client.query_axon(self._axon, asked, timeout_secs=TIMEOUT)
        if not answer["success"]:
            raise RuntimeError(answer["error"])

    def setup(self, count: int) -> dict[str, Any]:
        """Measure a new connection, its login and its first answer."""
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            client = self._dial()
            self._ask(client, request(256))
            seconds.append(time.perf_counter() - start)
            client.close_all_connections()
            if hasattr(client, "close"):
                client.close()
        return {"seconds": seconds}

    def latency(self, size: int, count: int) -> dict[str, Any]:
        """Measure requests, one after the other."""
        asked = request(size)
        run = lambda: self._ask(self._client, asked)  # noqa: E731 - shortest on the path.
        return {"seconds": [timed(run) for _ in range(count)]}

    def throughput(
        self, size: int, count: int, callers: int, how: str
    ) -> dict[str, Any]:
        """Measure requests of many callers at a time."""
        asked = request(size)
        if how == "executor":
            with ThreadPoolExecutor(callers) as pool:
                # All threads are there before the time starts.
                list(pool.map(lambda _: time.sleep(0.01), range(callers)))
                return {
                    "elapsed": timed(
                        lambda: list(
                            pool.map(
                                lambda _: self._ask(self._client, asked), range(count)
                            )
                        )
                    )
                }
        if how != "threads":
            raise ValueError(f"no way to do it: {how}")
        barrier = threading.Barrier(callers + 1)

        def call() -> None:
            barrier.wait()
            for _ in range(count // callers):
                self._ask(self._client, asked)
            barrier.wait()

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        barrier.wait()
        elapsed = timed(barrier.wait)
        for thread in threads:
            thread.join()
        return {"elapsed": elapsed * count / (count // callers * callers)}


class Asynchronous:
    """Our asyncio faces, on a loop of their own."""

    def __init__(self) -> None:
        self._module = importlib.import_module("lightning")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def serve(self, port: int) -> None:
        """Start the server on the loop."""

        async def start() -> Any:
            server = self._module.AsyncLightningServer(
                MINER,
                "127.0.0.1",
                port,
                config=self._module.LightningServerConfig(**SERVER),
            )
            server.set_miner_keypair(MINER_SEED)
            server.register_synapse_handler("echo", lambda data: data)
            await server.start()
            return server

        self._server = self._run(start())

    async def _dial(self) -> Any:
        client = self._module.AsyncLightning(VALIDATOR)
        client.set_validator_keypair(VALIDATOR_SEED)
        await client.initialize_connections([self._axon])
        return client

    async def _ask(self, client: Any, asked: dict[str, Any]) -> None:
        answer = await client.query_axon(self._axon, asked, timeout_secs=TIMEOUT)
        if not answer.success:
            raise RuntimeError(answer.error)

    def connect(self, port: int) -> None:
        """Make the client that is measured."""
        self._axon = self._module.QuicAxonInfo(MINER, "127.0.0.1", port)
        self._client = self._run(self._dial())
        self.latency(256, WARM_UP)

    def setup(self, count: int) -> dict[str, Any]:
        """Measure a new connection, its login and its first answer."""

        async def run() -> list[float]:
            seconds = []
            for _ in range(count):
                start = time.perf_counter()
                client = await self._dial()
                await self._ask(client, request(256))
                seconds.append(time.perf_counter() - start)
                await client.close()
            return seconds

        return {"seconds": self._run(run())}

    def latency(self, size: int, count: int) -> dict[str, Any]:
        """Measure requests, one after the other."""
        asked = request(size)

        async def run() -> list[float]:
            seconds = []
            for _ in range(count):
                start = time.perf_counter()
                await self._ask(self._client, asked)
                seconds.append(time.perf_counter() - start)
            return seconds

        return {"seconds": self._run(run())}

    def throughput(
        self, size: int, count: int, callers: int, how: str
    ) -> dict[str, Any]:
        """Measure requests of many tasks at a time."""
        if how != "tasks":
            raise ValueError(f"no way to do it: {how}")
        asked = request(size)

        async def call() -> None:
            for _ in range(count // callers):
                await self._ask(self._client, asked)

        async def run() -> float:
            start = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(callers)))
            return time.perf_counter() - start

        elapsed = self._run(run())
        return {"elapsed": elapsed * count / (count // callers * callers)}


CONTENDERS: dict[str, Callable[[], Any]] = {
    "ours": lambda: Blocking("lightning"),
    "ours-asyncio": Asynchronous,
    "peer": lambda: Blocking("btlightning"),
}


def main(role: str, contender: str, port: int) -> None:
    """Be one end until standard input ends."""
    end = CONTENDERS[contender]()
    if role in ("server", "both"):
        end.serve(port)
    if role in ("client", "both"):
        end.connect(port)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        operation = asked.pop("op")
        before = usage()["cpu"]
        answer = {} if operation == "usage" else getattr(end, operation)(**asked)
        used = usage()
        if operation != "usage":
            used["cpu"] -= before
        print(json.dumps({**answer, **used}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
