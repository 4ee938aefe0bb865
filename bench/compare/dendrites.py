"""Dendrites: requests to one axon, and one call to many, ours beside bittensor's.

Axons are in several processes, the dendrite is in one of its own. bittensor is asked of as
many as it bears. Everybody takes turns; the median of the turns is told.
"""

import contextlib
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench.compare.contenders import ROOT, Contender
from bench.compare.words import duration, thousands

PROCESSES = 4
TITLES = {
    "plain": "`AsyncLightning`",
    "ours": "`Dendrite` and `Axon`",
    "bittensor": "bittensor's",
}
TARGETS = {"ours": 256, "bittensor": 32}
START_TIMEOUT = 120


def free_ports(count: int) -> list[int]:
    """Find ports that neither UDP nor TCP uses now."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            tcp = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                found.append(port)
    return found


@contextmanager
def started(
    python: str, environment: dict[str, str], *arguments: object
) -> Iterator[subprocess.Popen[str]]:
    """Start an end; give it when it is ready."""
    process = subprocess.Popen(
        [python, "-m", "bench.compare.dendrite_end", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        expect(process, "ready")
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return what an end prints next, but for what libraries print on their own."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("an end has gone")
            if line.startswith(("{", "ready")):
                return line.strip()
        elif process.poll() is not None:
            raise RuntimeError("an end has gone")
    raise RuntimeError("an end does not answer")


def expect(process: subprocess.Popen[str], wanted: str) -> None:
    """Wait for a line."""
    if line_of(process) != wanted:
        raise RuntimeError("an end did not start")


def ask(process: subprocess.Popen[str], **operation: object) -> dict[str, Any]:
    """Have an end measure."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(operation) + "\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(line_of(process))
    return found


def run(
    taking_part: list[Contender], *, turns: int, seconds: float
) -> list[dict[str, Any]]:
    """Measure.

    Args:
        taking_part: bittensor is compared with if it is among them.
        turns: Of each library.
        seconds: Of a block.

    Returns:
        A row for each of `TITLES`, with medians over the turns.
    """
    pythons = {"plain": (sys.executable, {}), "ours": (sys.executable, {})}
    for each in taking_part:
        if each.name == "bittensor":
            pythons["bittensor"] = (each.program[0], each.environment)
    with ExitStack() as stack:
        askers = {}
        for name, (python, environment) in pythons.items():
            print(f"starting axons, {name}", file=sys.stderr)
            count = TARGETS.get(name, 1)
            ports = free_ports(count)
            parts = min(PROCESSES, count)
            for part in range(parts):
                first = part * count // parts
                some = ports[first : (part + 1) * count // parts]
                stack.enter_context(
                    started(python, environment, "serve", name, first, *some)
                )
            askers[name] = stack.enter_context(
                started(python, environment, "ask", name, 0, *ports)
            )
        blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in askers}
        for turn in range(turns):
            print(f"dendrites, turn {turn + 1}", file=sys.stderr)
            for name, asker in list(askers.items())[:: -1 if turn % 2 else 1]:
                row = {"one": ask(asker, op="rate", seconds=seconds)}
                if name in TARGETS:
                    count = max(2, int(seconds * 5))
                    row["all"] = ask(asker, op="rounds", rounds=count)
                blocks[name].append(row)
    return [
        {
            "name": name,
            **{
                part: {
                    key: statistics.median(each[part][key] for each in rows)
                    for key in rows[0][part]
                }
                for part in rows[0]
            },
        }
        for name, rows in blocks.items()
    ]


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Return the section of the report."""
    lines = [
        "## Dendrite and axon",
        "",
        (
            "1 KiB of payload in a text field of a synapse, echoed. Axons and dendrite are in "
            "processes of their own. `AsyncLightning` with its server is what there is below "
            "`Dendrite` and `Axon`."
        ),
        "",
        "| | p50 | requests/s, 32 at a time | CPU of the asking end |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        one = row["one"]
        cells = duration(one["p50_us"]), thousands(one["rate"]), duration(one["cpu_us"])
        lines.append(f"| {TITLES[row['name']]} | {' | '.join(cells)} |")
    lines += [
        "",
        (
            f"One `forward` to many axons whose connections are warm, in {PROCESSES} "
            "processes; until the last answer is there."
        ),
        "",
        "| | axons | last answer | CPU for each axon |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        if told := row.get("all"):
            cells = (
                thousands(told["targets"]),
                duration(told["last_us"]),
                duration(told["cpu_us"]),
            )
            lines.append(f"| {TITLES[row['name']]} | {' | '.join(cells)} |")
    return [*lines, ""]
