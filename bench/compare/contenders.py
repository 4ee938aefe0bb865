"""Who takes part, and what has to be installed or built for it."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build/compare"
BITTENSOR = "10.5.0"
PEER = "0.2.15"


@dataclass(frozen=True)
class Contender:
    """Who takes part, and how its callers wait.

    Attributes:
        name: In the report.
        title: What it is, in the report.
        program: What starts an end; role, name if in Python, and port follow.
        ways: How many callers at a time are made; see `ends`.
        single_ways: How the one of requests one after the other is; None as usual.
        environment: Variables that its processes get besides ours.
        is_quic: Whether it speaks the peer's protocol.
    """

    name: str
    title: str
    program: tuple[str, ...]
    ways: tuple[str, ...]
    single_ways: tuple[str | None, ...] = (None,)
    environment: dict[str, str] = field(default_factory=dict)
    is_quic: bool = True

    def command(self, role: str, port: int) -> list[str]:
        """Return the command of one end."""
        name = [self.name] if "-m" in self.program else []
        return [*self.program, role, *name, str(port)]


def python_ends(python: str = sys.executable) -> tuple[str, ...]:
    """Return the program of the contenders in Python."""
    return (python, "-m", "bench.compare.ends")


def contenders() -> list[Contender]:
    """Return those that this machine has, and say on stderr who is missing."""
    found = [
        Contender(
            "ours",
            "lightning, blocking",
            python_ends(),
            ("executor", "threads"),
        ),
        Contender("ours-asyncio", "lightning, asyncio", python_ends(), ("tasks",)),
    ]
    found += _uvloop()
    found += _peer()
    found += _peer_rust()
    found += _bittensor()
    return found


def _missing(name: str, why: str) -> None:
    print(f"{name} does not take part: {why}", file=sys.stderr)


def _uvloop() -> Iterator[Contender]:
    if importlib.util.find_spec("uvloop") is None:
        return _missing("ours-uvloop", "uvloop is not installed")
    yield Contender("ours-uvloop", "lightning, uvloop", python_ends(), ("tasks",))


def _peer() -> Iterator[Contender]:
    try:
        version = importlib.metadata.version("btlightning")
    except importlib.metadata.PackageNotFoundError:
        return _missing("peer", "btlightning is not installed")
    title = f"btlightning {version}, Python"
    yield Contender("peer", title, python_ends(), ("executor", "threads"))


def _peer_rust() -> Iterator[Contender]:
    if shutil.which("cargo") is None:
        return _missing("peer-rust", "there is no cargo")
    target = Path(os.environ.get("CARGO_TARGET_DIR", BUILD / "target"))
    built = subprocess.run(
        ["cargo", "build", "--release", "--quiet", "--locked"],
        cwd=HERE / "rust",
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        check=False,
    )
    if built.returncode != 0:
        return _missing("peer-rust", "cargo could not build it")
    program = str(target / "release/lightning-compare")
    yield Contender(
        "peer-rust",
        f"btlightning {PEER}, Rust",
        (program,),
        ("tasks",),
        single_ways=(None, "task"),
    )


def _bittensor() -> Iterator[Contender]:
    """Make an environment for it: its dependencies are not ours."""
    place = Path(os.environ.get("LIGHTNING_BENCH_VENV", BUILD / "bittensor-venv"))
    python = place / "bin/python"
    show = [python, "-c", "import bittensor; print(bittensor.__version__)"]
    # Importing it makes folders in the user's home.
    home = BUILD / "home"
    home.mkdir(parents=True, exist_ok=True)
    environment = {"HOME": str(home)}
    if not _prints(show, environment, BITTENSOR):
        print(f"installing bittensor {BITTENSOR} in {place}", file=sys.stderr)
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, f"bittensor=={BITTENSOR}"], check=True)
    if not _prints(show, environment, BITTENSOR):
        return _missing("bittensor", f"pip could not install bittensor {BITTENSOR}")
    yield Contender(
        "bittensor",
        f"bittensor {BITTENSOR}",
        python_ends(str(python)),
        ("tasks",),
        environment=environment,
        is_quic=False,
    )


def _prints(command: list[str | Path], environment: dict[str, str], text: str) -> bool:
    """Tell whether a command runs and prints so."""
    try:
        run = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return False
    return run.stdout.strip() == text
