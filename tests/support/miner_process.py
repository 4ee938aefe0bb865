"""A miner in a process of its own, which says what it holds.

Run with ``python -m tests.support.miner_process SETTINGS``, a JSON object; `MinerProcess`
does. It prints its port, and then an answer to each line that it gets.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from lightning import (
    AsyncLightningServer,
    LightningServer,
    LightningServerConfig,
    QuicAxonInfo,
)
from tests.support.census import census, resident_of
from tests.support.identities import MINER, MINER_HOTKEY, MINER_SEED

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


class MinerProcess:
    """A miner that was started; ends with the context.

    Args:
        face: ``asyncio`` or ``blocking``.
        port: Where it listens; 0 lets the system choose.
        settings: Of its configuration.

    Attributes:
        axon: Where it is.
        pid: Its process.
    """

    def __init__(self, face: str = "asyncio", port: int = 0, **settings: Any) -> None:
        settings.setdefault("max_handshake_attempts_per_minute", 1_000_000)
        settings = {"face": face, "port": port, "config": settings}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, json.dumps(settings)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", self._read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                status = self._process.wait(PATIENCE)
            finally:
                self._process.kill()
            assert status == 0
        self._process.stdout.close()

    def _read(self) -> Any:
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, "the miner does not answer"
        line = self._process.stdout.readline()
        assert line, "the miner is gone"
        return json.loads(line)

    def ask(self, what: str) -> Any:
        """Return what it answers to ``census``, ``stats`` or ``errors``."""
        print(what, file=self._process.stdin, flush=True)
        return self._read()

    def memory(self) -> int:
        """Return the bytes of memory that it has at this moment."""
        return resident_of(self.pid)

    def kill(self) -> None:
        """Have it end like a machine that loses its power, and wait until it has."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process.stdin.close()

    def until(self, condition: Any, timeout: float = PATIENCE) -> dict[str, Any]:
        """Ask for ``stats`` until a condition on them holds; return them."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while not condition(stats := self.ask("stats")):
            assert time.monotonic() < deadline, stats
            pause.wait(0.05)
        return stats


PEER_MINER = """
import sys, threading, btlightning
hotkey, seed, port = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
server = btlightning.RustLightningServer(hotkey, "127.0.0.1", port)
server.set_miner_keypair(seed)
server.register_synapse_handler("echo", lambda data: data)
server.start()
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def peer_miner(port: int) -> Iterator[None]:
    """Run a miner of the peer's in a process of its own, which is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PEER_MINER, MINER_HOTKEY, MINER_SEED.hex(), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


async def _wait(data: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(data.get("seconds", 60))
    return data


def _chunks(data: dict[str, Any]):
    for number in range(data.get("count", 4)):
        yield bytes([number & 255]) * data.get("size", 100)


async def _async_chunks(data: dict[str, Any]):
    for chunk in _chunks(data):
        await asyncio.sleep(0)
        yield chunk


async def _async_echo(data: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return data


def _fail(data: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("on purpose")


def register(server: AsyncLightningServer | LightningServer) -> None:
    """Register handlers of all kinds."""
    server.register_synapse_handler("echo", lambda data: data, inline=True)
    server.register_synapse_handler("thread", lambda data: data)
    server.register_async_synapse_handler("async", _async_echo)
    server.register_async_synapse_handler("wait", _wait)
    server.register_synapse_handler("fail", _fail)
    server.register_streaming_handler("chunks", _chunks)
    server.register_streaming_handler("async chunks", _async_chunks)


class Unforeseen(logging.Handler):
    """Keeps what is logged as an error, but for handlers that fail on purpose."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "on purpose" not in (text := record.getMessage()) and len(self.texts) < 20:
            self.texts.append(text)


UNFORESEEN = Unforeseen()


def _answer(server: AsyncLightningServer, line: str) -> Any:
    """Answer a line, on the server's loop."""
    command = line.split(maxsplit=1)[0]
    if command == "census":
        return census(server)
    if command == "errors":
        return UNFORESEEN.texts
    if command == "stats":
        return {**server._endpoint.stats(), "validators": len(server._table)}
    raise ValueError(f"what is {line!r}?")


async def _on_loop(server: AsyncLightningServer, line: str) -> Any:
    return _answer(server, line)


async def _serve_on_asyncio(server: AsyncLightningServer) -> None:
    async with server:
        print(server.local_addr().port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(_answer(server, line)), flush=True)


def _serve_blocking(server: LightningServer) -> None:
    with server:
        print(server.local_addr().port, flush=True)
        for line in sys.stdin:
            answer = server._io.call(_on_loop, server._server, line)
            print(json.dumps(answer), flush=True)


def main(text: str) -> None:
    """Be a miner."""
    settings = json.loads(text)
    logging.basicConfig(handlers=[UNFORESEEN])
    config = LightningServerConfig()
    config = dataclasses.replace(config, **settings["config"])
    face = {"asyncio": AsyncLightningServer, "blocking": LightningServer}
    server = face[settings["face"]](
        MINER_HOTKEY, "127.0.0.1", settings["port"], signer=MINER, config=config
    )
    register(server)
    if settings["face"] == "asyncio":
        asyncio.run(_serve_on_asyncio(server))
    else:
        _serve_blocking(server)


if __name__ == "__main__":
    main(sys.argv[1])
