"""The matrix of docs/internals/interop.md: our engine and others', both ways."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop import matrix
from tests.interop.aioquic_end import Aioquic
from tests.interop.conftest import REQUIRED
from tests.interop.ends import Ends
from tests.interop.quicgo_end import QuicGo
from tests.interop.wheel_end import Wheel

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
CHACHA20 = 0x1303
CAPABLE = 2

WRITTEN: set[str] = set()


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
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    stack, role = request.param
    if stack == "quic-go":
        program = request.getfixturevalue("quicgo")
        made = Ends(stack, role, lambda: QuicGo(program))
    elif stack == "btlightning":
        peer = request.getfixturevalue("peer")
        made = Ends(stack, role, lambda: Wheel(peer))
    else:
        made = Ends(stack, role, Aioquic)
    yield made
    made.close()


def case(*slow: str) -> Any:
    """Run a test with every other end of its case; those stacks are slow in it."""

    def mark(function: Any) -> Any:
        name = function.__name__.removeprefix("test_").replace("_", "-")
        WRITTEN.add(name)
        return pytest.mark.parametrize(
            "ends",
            [
                pytest.param(
                    (stack, role),
                    id=f"{stack}-{role}",
                    marks=[pytest.mark.matrix]
                    if stack == "quic-go" or stack in slow
                    else [],
                )
                for stack, role in matrix.tested(name)
            ],
            indirect=True,
        )(function)

    return mark


@case()
def test_handshake(ends):
    """Both ends are connected, agree on everything, and bytes pass."""
    pair = ends.connect()
    pair.echo(1000)
    assert pair.mine.is_confirmed
    if pair.theirs is not None and not ends.framed:
        state = pair.ours.result(pair.other.state(pair.theirs))
        assert state["version"] == 1
        assert state["suite"] == pair.mine.suite


@case("aioquic")
def test_transfer(ends):
    """Ten megabytes arrive, each way."""
    pair = ends.connect()
    pair.echo(10 * MEGABYTE)
    assert pair.mine.stats()["mtu"] == 1452


@case("aioquic")
def test_multiplexing(ends):
    """More streams than may be open at a time are all answered."""
    pair = ends.connect()
    pair.echo(100, 1000)
