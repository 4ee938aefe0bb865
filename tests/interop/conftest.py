"""Other QUIC stacks on the other end, where this machine has them."""

import importlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.interop.wheel_end import free_port
from tests.support.identities import (
    MINER_HOTKEY,
    MINER_SEED,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
)
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("LIGHTNING_REQUIRE_INTEROP") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def peer() -> ModuleType:
    """The package btlightning 0.2.15; where it must be there, its absence fails."""
    try:
        return importlib.import_module("btlightning")
    except ImportError:
        if REQUIRED:
            raise
        pytest.skip("the peer's package is not installed on this machine")


@pytest.fixture(scope="session")
def quicgo() -> str:
    """The program in quicgo/, built."""
    if shutil.which("go") is None:
        pytest.skip("there is no Go on this machine")
    built = subprocess.run(
        [ROOT / "tools/quicgo.sh"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if built.returncode and not REQUIRED:
        pytest.skip(f"quic-go cannot be built: {built.stderr[-200:]}")
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


@pytest.fixture
def peer_server(peer) -> Iterator[Callable[..., dict]]:
    """Start servers of the peer; gives each as an axon."""
    running = []

    def start(
        prepare: Callable[[object], object] = lambda server: None, **settings: object
    ) -> dict:
        # Its port cannot be asked for, and its login limit is in the way of tests.
        port = free_port()
        settings.setdefault("max_handshake_attempts_per_minute", 10_000)
        server = peer.RustLightningServer(MINER_HOTKEY, "127.0.0.1", port, **settings)
        server.set_miner_keypair(MINER_SEED)
        server.register_synapse_handler("echo", lambda data: data)
        prepare(server)
        server.start()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        running.append((server, thread))
        return {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": port}

    yield start
    for server, thread in running:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def peer_client(peer) -> Iterator[Callable[..., object]]:
    """Make clients of the peer, logged in at axons."""
    clients = []

    def make(*axons: dict, seed: bytes = VALIDATOR_SEED) -> object:
        client = peer.Lightning(wallet_hotkey=VALIDATOR_HOTKEY)
        client.set_validator_keypair(seed)
        client.initialize_connections(list(axons))
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    return until
