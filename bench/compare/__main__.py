"""Measure all contenders in one run, taking turns, and write the report.

Usage: ``python -m bench.compare [--quick] [--sizes 256,1024] [--out build/compare]``.
Ratios are what counts: absolute times are those of this machine at this moment.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare import report

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SIZES = (256, 1024, 10_240, 102_400, 1_048_576)
START_TIMEOUT = 60
CALLERS = 32


@dataclass(frozen=True)
class Contender:
    """Who takes part, and how its callers wait.

    Attributes:
        name: In the report.
        command: Of one end, without role and port.
        ways: How many callers at a time are made; see `ends`.
    """

    name: str
    command: tuple[str, ...]
    ways: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: Of payloads, in bytes.
        setups: New connections, a turn.
        latencies: Requests one after the other, a turn.
        requests: With many callers, a turn.
        turns: Of each contender.
    """

    sizes: tuple[int, ...]
    setups: int
    latencies: int
    requests: int
    turns: int

    def scaled(self, count: int, size: int) -> int:
        """Return fewer for larger payloads, and whole rounds of callers."""
        fewer = max(1, size // 10_240)
        return max(CALLERS, count // fewer // CALLERS * CALLERS)


class End:
    """A process that plays one end, or both."""

    def __init__(self, contender: Contender, role: str, port: int) -> None:
        python = contender.command[0] == sys.executable
        arguments = (
            [*contender.command[:3], role, *contender.command[3:], str(port)]
            if python
            else [*contender.command, role, str(port)]
        )
        self._process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready":
            raise RuntimeError(f"{contender.name}: the {role} did not start")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, **operation: object) -> dict[str, Any]:
        """Have it do something; return what it measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(operation) + "\n")
        self._process.stdin.flush()
        line = self._line()
        if not line:
            raise RuntimeError(f"an end is gone: {self._process.args}")
        return json.loads(line)

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def free_port() -> int:
    """Return a UDP port that is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def rust_program() -> str | None:
    """Build the program on the peer's crate; None without cargo."""
    if shutil.which("cargo") is None:
        return None
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "build/compare/target"))
    subprocess.run(
        ["cargo", "build", "--release", "--quiet"],
        cwd=HERE / "rust",
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        check=True,
    )
    return str(target / "release/lightning-compare")


def contenders() -> list[Contender]:
    """Return those that this machine has."""
    python = (sys.executable, "-m", "bench.compare.ends")
    found = [
        Contender("ours", (*python, "ours"), ("executor", "threads")),
        Contender("ours-asyncio", (*python, "ours-asyncio"), ("tasks",)),
    ]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("btlightning")
        found.append(Contender("peer", (*python, "peer"), ("executor", "threads")))
    rust = rust_program()
    if rust is not None:
        found.append(Contender("peer-rust", (rust,), ("tasks",)))
    return found


@contextlib.contextmanager
def ends(contender: Contender, layout: str) -> Iterator[tuple[End, End]]:
    """Start the client's and the server's process; they may be the same."""
    port = free_port()
    if layout == "one process":
        both = End(contender, "both", port)
        try:
            yield both, both
        finally:
            both.stop()
        return
    server = End(contender, "server", port)
    try:
        client = End(contender, "client", port)
        try:
            yield client, server
        finally:
            client.stop()
    finally:
        server.stop()


def wire_bytes() -> int:
    """Return the bytes that the loopback interface has carried."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def measure(
    contender: Contender, client: End, server: End, plan: Plan
) -> Iterator[dict[str, Any]]:
    """Measure one contender once, all sizes."""

    def run(**operation: object) -> dict[str, Any]:
        before = server.ask(op="usage")["cpu"], wire_bytes()
        answer = client.ask(**operation)
        after = server.ask(op="usage")
        answer["wire"] = wire_bytes() - before[1]
        if server is not client:
            answer["cpu"] += after["cpu"] - before[0]
            answer["server_peak_kib"] = after["peak_kib"]
        return {**operation, **answer}

    for size in plan.sizes:
        count = plan.scaled(plan.latencies, size)
        yield run(op="latency", size=size, count=count)
        for way in contender.ways:
            count = plan.scaled(plan.requests, size)
            yield run(op="throughput", size=size, count=count, callers=CALLERS, how=way)
    # At the end: a second login with the same hotkey ends the first one's connection.
    yield run(op="setup", count=plan.setups)


def run(plan: Plan, layouts: tuple[str, ...]) -> dict[str, Any]:
    """Measure everything, the contenders in turn."""
    taking_part = contenders()
    results: list[dict[str, Any]] = []
    for layout in layouts:
        for turn in range(plan.turns):
            for contender in taking_part:
                print(f"{layout}, turn {turn + 1}: {contender.name}", file=sys.stderr)
                with ends(contender, layout) as (client, server):
                    for result in measure(contender, client, server, plan):
                        result.update(
                            contender=contender.name, layout=layout, turn=turn
                        )
                        results.append(result)
    return {"about": about(), "plan": plan.__dict__, "results": summed_up(results)}


def about() -> dict[str, Any]:
    """Say where, when and with what."""
    versions = {"python": platform.python_version()}
    for package in ("bittensor-lightning", "btlightning", "aioquic", "uvloop"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}",
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def summed_up(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the turns: percentiles over all samples, the median of rates."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        names = ("layout", "contender", "op", "size", "how")
        groups.setdefault(tuple(result.get(n) for n in names), []).append(result)
    out = []
    for (layout, contender, operation, size, how), group in groups.items():
        requests = sum(each["count"] for each in group)
        row = {
            "layout": layout,
            "contender": contender,
            "op": operation,
            "size": size,
            "how": how,
            "requests": requests,
            "cpu_us": sum(each["cpu"] for each in group) / requests * 1e6,
            "wire_bytes": sum(each["wire"] for each in group) / requests,
            "peak_kib": max(each["peak_kib"] for each in group),
        }
        if operation == "throughput":
            rates = [each["count"] / each["elapsed"] for each in group]
            row["rate"] = statistics.median(rates)
            row["rates"] = rates
        else:
            seconds = sorted(s for each in group for s in each["seconds"])
            for name, part in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
                row[f"{name}_us"] = seconds[int(part * (len(seconds) - 1))] * 1e6
            row["turns_us"] = [statistics.median(e["seconds"]) * 1e6 for e in group]
        out.append(row)
    return out


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="bench.compare")
    parser.add_argument("--quick", action="store_true", help="a minute, for a look")
    parser.add_argument("--sizes", help="bytes, with commas")
    parser.add_argument("--layout", choices=("one process", "two processes"))
    parser.add_argument("--out", default=str(ROOT / "build/compare"))
    options = parser.parse_args()
    sizes = (
        SIZES if options.sizes is None else tuple(map(int, options.sizes.split(",")))
    )
    plan = Plan(sizes, setups=100, latencies=1000, requests=10_000, turns=3)
    if options.quick:
        plan = Plan(sizes[:3], setups=20, latencies=500, requests=2_000, turns=2)
    layouts = (options.layout,) if options.layout else ("one process", "two processes")
    found = run(plan, layouts)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps(found, indent=1))
    text = report.markdown(found)
    (out / "compare.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
