"""The report: tables in Markdown, with the ratio of each pair."""

from typing import Any

# What is compared, with whom, and by how much it is to be better: the layout, the
# operation, our contender and its way, theirs and their way.
PAIRS = (
    ("one process", "setup", "ours", None, "peer", None),
    ("two processes", "setup", "ours-asyncio", None, "peer-rust", None),
    ("one process", "latency", "ours", None, "peer", None),
    ("two processes", "latency", "ours", None, "peer-rust", None),
    ("two processes", "latency", "ours-asyncio", None, "peer-rust", None),
    ("one process", "throughput", "ours", "executor", "peer", "executor"),
    ("one process", "throughput", "ours", "threads", "peer", "threads"),
    ("two processes", "throughput", "ours", "threads", "peer-rust", "tasks"),
    ("two processes", "throughput", "ours-asyncio", "tasks", "peer-rust", "tasks"),
)


def size_name(size: int | None) -> str:
    """Write a size as people do."""
    if size is None:
        return ""
    if size % 1048576 == 0:
        return f"{size // 1048576} MiB"
    return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


def markdown(found: dict[str, Any]) -> str:
    """Return the page."""
    about = found["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        "# Side by side",
        "",
        f"{about['date']}; {about['machine']}; load {about['load']:.1f}; {versions}.",
        "Both ends on one machine over loopback; contenders took turns in one run.",
        "",
    ]
    for layout in dict.fromkeys(row["layout"] for row in found["results"]):
        rows = [row for row in found["results"] if row["layout"] == layout]
        lines += [f"## {layout.capitalize()}", ""]
        lines += table(rows, "latency", "Request, one after the other")
        lines += table(rows, "throughput", "Requests a second, 32 callers")
        lines += table(rows, "setup", "Connection, login and first answer")
    lines += ["## Ratios", "", *ratios(found["results"]), ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], operation: str, title: str) -> list[str]:
    """Return one operation's table."""
    rows = [row for row in rows if row["op"] == operation]
    rate = operation == "throughput"
    head = "| payload | contender | " + (
        "requests/s | " if rate else "p50 µs | p95 µs | p99 µs | "
    )
    lines = [
        f"### {title}",
        "",
        head + "CPU µs | bytes on the wire | peak MiB |",
        "|---|---|" + "---:|" * (4 if rate else 6),
    ]
    for row in rows:
        name = row["contender"] + (f", {row['how']}" if row["how"] else "")
        values = (
            f"{row['rate']:,.0f}"
            if rate
            else f"{row['p50_us']:,.0f} | {row['p95_us']:,.0f} | {row['p99_us']:,.0f}"
        )
        lines.append(
            f"| {size_name(row['size'])} | {name} | {values} | {row['cpu_us']:,.0f} | "
            f"{row['wire_bytes']:,.0f} | {row['peak_kib'] / 1024:,.0f} |"
        )
    return [*lines, ""]


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Return what our times and rates are, as a multiple of theirs."""
    lines = ["| what | ours / theirs | payload | ratio |", "|---|---|---|---:|"]
    for layout, operation, ours, our_way, theirs, their_way in PAIRS:
        for mine in rows:
            if (mine["layout"], mine["op"], mine["contender"], mine["how"]) != (
                layout, operation, ours, our_way,
            ):  # fmt: skip
                continue
            for other in rows:
                if (other["layout"], other["op"], other["contender"], other["how"]) != (
                    layout, operation, theirs, their_way,
                ) or other["size"] != mine["size"]:  # fmt: skip
                    continue
                key = "rate" if operation == "throughput" else "p50_us"
                lines.append(
                    f"| {layout}, {operation} | {ours} {our_way or ''} / {theirs} "
                    f"{their_way or ''} | {size_name(mine['size'])} | "
                    f"{mine[key] / other[key]:.2f} |"
                )
    return lines
