"""One contender's server, client or both, in a process of its own.

Run as ``python -m bench.compare.ends ROLE CONTENDER PORT``. It prints "ready", then
answers a JSON object a line on standard input with one on standard output, until its input
ends. The Rust program speaks the same::

    {"op": "setup", "count": 100}
    {"op": "latency", "size": 1024, "count": 1000}
    {"op": "throughput", "size": 1024, "count": 10000, "callers": 32, "how": "threads"}
    {"op": "usage"}

Answers have ``seconds`` (a list, one for each) or ``elapsed``, and ``cpu`` of the process.
At module level only the standard library is imported, for each contender has an environment
of its own.
"""

import abc
import asyncio
import contextlib
import importlib
import json
import logging
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


def payload(size: int) -> bytes:
    """Make the peer's published payload."""
    return b"\x42" * size


def request(size: int) -> dict[str, Any]:
    """Make a request with that payload."""
    return {"synapse_type": "echo", "data": {"payload": payload(size)}}


def processor_time() -> float:
    """Return the CPU seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


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


class OnLoop(abc.ABC):
    """What is asked on an event loop of its own."""

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        self._loop = new_loop()
        self._client: Any = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @abc.abstractmethod
    def serve(self, port: int) -> None:
        """Start the server."""

    @abc.abstractmethod
    def know(self, port: int) -> None:
        """Remember where the server is."""

    @abc.abstractmethod
    async def dial(self) -> Any:
        """Make a client, as connected as it can be."""

    @abc.abstractmethod
    def prepare(self, size: int) -> Any:
        """Make what `ask` is given."""

    @abc.abstractmethod
    async def ask(self, client: Any, asked: Any) -> None:
        """Make one request; the answer must be a success."""

    @abc.abstractmethod
    async def close(self, client: Any) -> None:
        """Close a client."""

    def run(self, coroutine: Any) -> Any:
        """Run on the loop, and wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def connect(self, port: int) -> None:
        """Make the client that is measured."""
        self.know(port)
        self._client = self.run(self.dial())
        self.latency(256, WARM_UP)

    def setup(self, count: int) -> dict[str, Any]:
        """Measure a new connection, its login and its first answer."""
        asked = self.prepare(256)

        async def run() -> list[float]:
            seconds = []
            for _ in range(count):
                start = time.perf_counter()
                client = await self.dial()
                await self.ask(client, asked)
                seconds.append(time.perf_counter() - start)
                await self.close(client)
            return seconds

        return {"seconds": self.run(run())}

    def latency(self, size: int, count: int) -> dict[str, Any]:
        """Measure requests, one after the other."""
        asked = self.prepare(size)

        async def run() -> list[float]:
            seconds = []
            for _ in range(count):
                start = time.perf_counter()
                await self.ask(self._client, asked)
                seconds.append(time.perf_counter() - start)
            return seconds

        return {"seconds": self.run(run())}

    def throughput(
        self, size: int, count: int, callers: int, how: str
    ) -> dict[str, Any]:
        """Measure requests of many tasks at a time."""
        if how != "tasks":
            raise ValueError(f"no way to do it: {how}")
        asked = self.prepare(size)

        async def call() -> None:
            for _ in range(count // callers):
                await self.ask(self._client, asked)

        async def run() -> float:
            start = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(callers)))
            return time.perf_counter() - start

        elapsed = self.run(run())
        return {"elapsed": elapsed * count / (count // callers * callers)}


class Asynchronous(OnLoop):
    """Our asyncio faces."""

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        super().__init__(new_loop)
        self._module = importlib.import_module("lightning")
        self._axon: Any = None

    def serve(self, port: int) -> None:
        """Start the server on the loop."""

        async def echo(data: dict[str, Any]) -> dict[str, Any]:
            return data

        async def start() -> Any:
            server = self._module.AsyncLightningServer(
                MINER,
                "127.0.0.1",
                port,
                config=self._module.LightningServerConfig(**SERVER),
            )
            server.set_miner_keypair(MINER_SEED)
            server.register_synapse_handler("echo", echo)
            await server.start()
            return server

        self._server = self.run(start())

    def know(self, port: int) -> None:
        """Remember where the server is."""
        self._axon = self._module.QuicAxonInfo(MINER, "127.0.0.1", port)

    async def dial(self) -> Any:
        """Make a client that is logged in."""
        client = self._module.AsyncLightning(VALIDATOR)
        client.set_validator_keypair(VALIDATOR_SEED)
        await client.initialize_connections([self._axon])
        return client

    def prepare(self, size: int) -> Any:
        """Make a request."""
        return request(size)

    async def ask(self, client: Any, asked: Any) -> None:
        """Make one request."""
        answer = await client.query_axon(self._axon, asked, timeout_secs=TIMEOUT)
        if not answer.success:
            raise RuntimeError(answer.error)

    async def close(self, client: Any) -> None:
        """Close a client."""
        await client.close()


def on_uvloop() -> Asynchronous:
    """Make our asyncio faces on uvloop's loop."""
    return Asynchronous(importlib.import_module("uvloop").new_event_loop)


def bittensor() -> OnLoop:
    """Make bittensor's dendrite and axon."""
    return importlib.import_module("bench.compare.bittensor_end").Bittensor()


CONTENDERS: dict[str, Callable[[], Any]] = {
    "ours": lambda: Blocking("lightning"),
    "ours-asyncio": Asynchronous,
    "ours-uvloop": on_uvloop,
    "peer": lambda: Blocking("btlightning"),
    "bittensor": bittensor,
}


def main(role: str, contender: str, port: int) -> None:
    """Be one end until standard input ends."""
    # Set-ups log in with the hotkey that is connected already, which is worth a warning.
    logging.getLogger("lightning").setLevel(logging.ERROR)
    end = CONTENDERS[contender]()
    if role in ("server", "both"):
        end.serve(port)
    if role in ("client", "both"):
        end.connect(port)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        operation = asked.pop("op")
        if operation == "usage":
            answer = {"cpu": processor_time()}
        else:
            before = processor_time()
            answer = getattr(end, operation)(**asked)
            answer["cpu"] = processor_time() - before
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
