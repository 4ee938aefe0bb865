"""What is measured, in which order, and how the turns are joined.

Everybody's processes live as long as the measuring of a layout lasts, and take turns block
by block: a block is a second or so of one operation, so a machine that drifts hits all.
"""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare import wire
from bench.compare.contenders import BITTENSOR, PEER, Contender
from bench.compare.processes import Ends, all_ends

SIZES = (256, 1024, 10_240, 102_400, 1_048_576)
LAYOUTS = ("one process", "two processes")
CALLERS = 32
MANY = ("threads", "tasks")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: Of payloads, in bytes.
        setups: New connections, a turn.
        latencies: Most requests one after the other, a turn.
        requests: Most requests of many callers, a turn.
        seconds: After which a block of requests should end, if it has not.
        turns: Of each contender.
    """

    sizes: tuple[int, ...]
    setups: int
    latencies: int
    requests: int
    seconds: float
    turns: int


def run(
    taking_part: Sequence[Contender], plan: Plan, layouts: Sequence[str]
) -> dict[str, Any]:
    """Measure everything."""
    found: dict[str, Any] = {"about": about(taking_part), "plan": plan.__dict__}
    before, own = machine_times(), own_times()
    found["messages"] = wire.messages(taking_part, plan.sizes)
    found["wire"] = wire.datagrams(taking_part, plan.sizes, CALLERS)
    blocks: list[dict[str, Any]] = []
    failures: list[str] = []
    for layout in layouts:
        print(f"starting everybody, {layout}", file=sys.stderr)
        with all_ends(taking_part, layout) as everybody:
            blocks += layout_blocks(everybody, plan, layout)
            failures += [each.failure for each in everybody if each.failure is not None]
    found["results"] = summed_up(blocks, plan.turns)
    found["about"]["failures"] = failures
    found["about"] |= quiet(before, own)
    return found


def layout_blocks(
    everybody: list[Ends], plan: Plan, layout: str
) -> Iterator[dict[str, Any]]:
    """Measure one layout: request sizes first, then set-ups."""
    for size in plan.sizes:
        for turn in range(plan.turns):
            print(f"{layout}, {size} bytes, turn {turn + 1}", file=sys.stderr)
            # Back and forth: nobody is always the first.
            order = everybody[:: -1 if turn % 2 else 1]
            for ends in order:
                for how in ends.contender.single_ways:
                    yield from attempt(layout, turn, ends, latency, plan, size, how)
            for ways in (("executor",), MANY):
                for ends in order:
                    for how in set(ways) & set(ends.contender.ways):
                        yield from attempt(
                            layout, turn, ends, throughput, plan, size, how
                        )
    # At the end: a second login with the same hotkey ends the first one's connection.
    for turn in range(plan.turns):
        print(f"{layout}, set-ups, turn {turn + 1}", file=sys.stderr)
        for ends in everybody[:: -1 if turn % 2 else 1]:
            yield from attempt(layout, turn, ends, setup, plan)


def attempt(
    layout: str,
    turn: int,
    ends: Ends,
    measure: Callable[..., dict[str, Any]],
    *how: Any,
) -> Iterator[dict[str, Any]]:
    """Measure a block of a contender that has not failed yet."""
    if ends.failure is not None:
        return
    try:
        with ends.awake():
            found = measure(ends, *how)
    except RuntimeError as error:
        ends.fail(error)
    else:
        yield {"layout": layout, "turn": turn, **found}


def setup(ends: Ends, plan: Plan) -> dict[str, Any]:
    """Measure new connections."""
    ends.client.ask(op="setup", count=2)
    return block(ends, op="setup", count=plan.setups)


def latency(ends: Ends, plan: Plan, size: int, how: str | None) -> dict[str, Any]:
    """Measure requests one after the other."""
    operation = {"op": "latency", "size": size} | ({"how": how} if how else {})
    pace = statistics.median(ends.client.ask(**operation, count=10)["seconds"])
    count = max(10, min(plan.latencies, int(plan.seconds / pace)))
    return block(ends, **operation, count=count)


def throughput(ends: Ends, plan: Plan, size: int, how: str) -> dict[str, Any]:
    """Measure requests of many callers at a time."""
    operation = {"op": "throughput", "size": size, "callers": CALLERS, "how": how}
    pace = ends.client.ask(**operation, count=CALLERS)["elapsed"] / CALLERS
    rounds = min(plan.requests, int(plan.seconds / pace)) // CALLERS
    return block(ends, **operation, count=CALLERS * max(1, rounds))


def block(ends: Ends, **operation: Any) -> dict[str, Any]:
    """Have it done, and say what it took: processor time and memory of both ends."""
    client, server = ends.client, ends.server
    client.forget_peak()
    server.forget_peak()
    before = server.ask(op="usage")["cpu"]
    answer = client.ask(**operation)
    after = server.ask(op="usage")["cpu"]
    apart = server is not client
    return {
        "contender": ends.contender.name,
        **operation,
        **answer,
        "server_cpu": after - before if apart else 0.0,
        "peak_kib": client.peak(),
        "server_peak_kib": server.peak() if apart else None,
    }


def summed_up(blocks: list[dict[str, Any]], turns: int) -> list[dict[str, Any]]:
    """Join the turns: percentiles over all samples, the median of rates.

    Args:
        blocks: What was measured.
        turns: What has fewer is not there: whoever did it failed.

    Returns:
        A row for each that a turn measures. ``turns`` in it keeps what each turn gave,
        the median or the rate, in order.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for each in blocks:
        names = ("layout", "contender", "op", "size", "how")
        groups.setdefault(tuple(each.get(n) for n in names), []).append(each)
    out = []
    for (layout, contender, operation, size, how), group in groups.items():
        if len(group) < turns:
            continue
        group.sort(key=lambda each: each["turn"])
        requests = sum(each["count"] for each in group)
        server_peaks = [each["server_peak_kib"] for each in group]
        row = {
            "layout": layout,
            "contender": contender,
            "op": operation,
            "size": size,
            "how": how,
            "requests": requests,
            "cpu_us": sum(each["cpu"] for each in group) / requests * 1e6,
            "server_cpu_us": sum(each["server_cpu"] for each in group) / requests * 1e6,
            "peak_kib": max(each["peak_kib"] for each in group),
            "server_peak_kib": None if None in server_peaks else max(server_peaks),
        }
        if operation == "throughput":
            rates = [each["count"] / each["elapsed"] for each in group]
            row |= {"rate": statistics.median(rates), "turns": rates}
        else:
            seconds = sorted(s for each in group for s in each["seconds"])
            for name, part in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
                row[f"{name}_us"] = percentile(seconds, part) * 1e6
            row["turns"] = [percentile(sorted(e["seconds"]), 0.5) * 1e6 for e in group]
        out.append(row)
    return out


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value at a part of sorted ones, as the peer's benchmarks do."""
    return values[round(part * (len(values) - 1))]


def about(taking_part: Sequence[Contender]) -> dict[str, Any]:
    """Say where, when and with what."""
    versions = {"python": platform.python_version()}
    for package in ("bittensor-lightning", "btlightning", "aioquic", "uvloop"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    names = [each.name for each in taking_part]
    if "peer-rust" in names:
        versions["btlightning (crate)"] = PEER
    if "bittensor" in names:
        versions["bittensor"] = BITTENSOR
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
        "contenders": {each.name: each.title for each in taking_part},
    }


def machine_times() -> list[int]:
    """Return what all processors have spent so far, by kind (proc(5), ``stat``)."""
    return [int(part) for part in Path("/proc/stat").read_text().split()[1:9]]


def own_times() -> float:
    """Return the processor time of this process and of all that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def quiet(before: list[int], own: float) -> dict[str, float]:
    """Say how much of the machine others have had since then.

    Args:
        before: What `machine_times` said.
        own: What `own_times` said.

    Returns:
        Parts of all processors' time: "stolen" by the hypervisor's other guests, and
        used by "others", processes that are none of ours.
    """
    spent = [late - early for early, late in zip(before, machine_times(), strict=True)]
    whole = max(1, sum(spent))
    # Idle and waiting for a disk are the fourth and fifth, stolen the eighth.
    busy = whole - spent[3] - spent[4] - spent[7]
    ours = (own_times() - own) * os.sysconf("SC_CLK_TCK")
    return {"stolen": spent[7] / whole, "others": max(0.0, busy - ours) / whole}
