"""The report: one page in Markdown, with the ratio of each pair beside its goal."""

from collections.abc import Sequence
from typing import Any

from bench.compare import dendrites
from bench.compare.charts import CHARTS
from bench.compare.goals import Ratio, equal_messages, ratios
from bench.compare.words import duration, size_name


def row_name(row: dict[str, Any]) -> str:
    """Name a contender and how it made many requests at a time."""
    return f"{row['contender']}, {row['how']}" if row["how"] else row["contender"]


def markdown(found: dict[str, Any]) -> str:
    """Return the page; the charts are in the folder `charts` beside it."""
    rows = found["results"]
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    lines = ["# Side by side", "", *introduction(found), ""]
    for name, chart in CHARTS.items():
        lines += [picture(f"charts/{name}", chart.title), ""]
    lines += ["## Ratios", "", *ratio_table(list(ratios(rows)), found["messages"]), ""]
    for layout in layouts:
        mine = [row for row in rows if row["layout"] == layout]
        of = {name: [row for row in mine if row["op"] == name] for name in OPERATIONS}
        lines += [f"## {layout.capitalize()}", ""]
        for operation, (title, write) in OPERATIONS.items():
            if of[operation]:
                lines += [f"### {title}", "", *write(of[operation]), ""]
    if told := found.get("dendrites"):
        lines += dendrites.tables(told)
    lines += ["## Bytes on the wire", "", *wire_tables(found), ""]
    for layout in layouts:
        mine = [row for row in rows if row["layout"] == layout]
        lines += [
            f"## {layout.capitalize()}, in full",
            "",
            FULL,
            "",
            *details(mine),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def introduction(found: dict[str, Any]) -> list[str]:
    """Say who, where, when and how."""
    about, plan = found["about"], found["plan"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    names = "; ".join(f"`{k}` is {v}" for k, v in about["contenders"].items())
    where = (
        f"Measured by `make bench` on {about['date'][:10]} ({about['date'][11:16]} UTC) "
        f"on {about['machine']}; load before {about['load']:.1f}; "
        f"meanwhile {about['others']:.1%} of the processors went to other processes and "
        f"{about['stolen']:.1%} to other guests; {versions}."
    )
    how = (
        f"{names}. Each client talks to its own server over loopback; the handler "
        "echoes a payload of bytes 0x42. Both ends are in one process, or in two. "
        "Everybody's processes live through the run and take turns, "
        f"{plan['turns']} each, with at most {plan['seconds']:g} s of requests or "
        f"{plan['setups']} set-ups at a time; whoever's turn it is not is stopped. A "
        f"turn is up to {plan['latencies']:,} requests one after the other, or up to "
        f"{plan['requests']:,} requests 32 at a time. A set-up is a new client, its "
        "connection, its login and its first answer."
    )
    callers = (
        "Of 32 at a time, `executor` is a `ThreadPoolExecutor` that is handed all requests, "
        "`threads` and `tasks` are 32 that ask in a loop each. One after the other, the "
        "crate is asked by its main task, on a thread of its own as in its published "
        "benchmarks, and by a spawned `task` on a thread of its runtime. Blocking contenders in Python "
        "have a plain function as handler, the others an asynchronous one. bittensor's "
        "payload travels in base64 in a field of a synapse, as JSON has no bytes."
    )
    caution = (
        "Percentiles are over all samples, rates are the median of the turns. Times "
        "are those of that machine at that moment: ratios are what carries over."
    )
    failures = [f"Did not go through with it: {each}." for each in about["failures"]]
    return [where, "", how, "", callers, "", caution, *failures]


def picture(path: str, title: str) -> str:
    """Show a chart, as light or dark as the reader's page."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{path}-dark.svg"><img alt="{title}" src="{path}-light.svg"></picture>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return a table.

    Args:
        head: Names of the columns.
        rows: Their cells.
        align: "l" or "r" for each column; the last one goes on.
    """
    align = align.ljust(len(head), align[-1])
    rules = [{"l": "---", "r": "---:"}[side] for side in align[: len(head)]]
    return [f"| {' | '.join(cells)} |" for cells in (head, rules, *rows)]


def ratio_table(found: Sequence[Ratio], messages: list[dict[str, Any]]) -> list[str]:
    """Return what our times and rates are, as a multiple of theirs."""
    head = ("what", "ours / theirs", "payload", "ratio", "of turns", "goal", "")
    rows = []
    for ratio in found:
        goal = ratio.goal
        ours, theirs = (
            f"{name}, {how}" if how else name for name, how in (goal.ours, goal.theirs)
        )
        rows.append(
            (
                f"{ratio.layout}, {goal.operation}",
                f"{ours} / {theirs}",
                size_name(ratio.size),
                f"{ratio.value:.2f}",
                f"{ratio.low:.2f} to {ratio.high:.2f}",
                *judgement(ratio),
            )
        )
    names = ", ".join(dict.fromkeys(row["contender"] for row in messages))
    for size, is_equal in equal_messages(messages):
        verdict = "reached" if is_equal else "**not reached**"
        what = ("bytes of a message", names, size_name(size))
        rows.append((*what, "equal" if is_equal else "differ", "", "equal", verdict))
    meaning = (
        "Ours as a multiple of theirs: of times less is better, of rates more. The ratio "
        "is the median of the turns' ratios."
    )
    return [meaning, "", *table(head, rows, "lllrrl")]


def judgement(ratio: Ratio) -> tuple[str, str]:
    """Return the goal, and whether it is reached."""
    if ratio.floor is None:
        return "", ""
    wanted = f"at {'least' if ratio.goal.is_rate else 'most'} {ratio.floor:g}"
    if ratio.aim is not None:
        wanted += f", aim {ratio.aim:g}"
    if ratio.reaches(ratio.aim):
        return wanted, "aim reached"
    return wanted, "reached" if ratio.reaches(ratio.floor) else "**not reached**"


def overview(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one number of each contender, by size."""
    names = list(dict.fromkeys(row_name(row) for row in rows))
    cells = {
        (row["size"], row_name(row)): (
            f"{row['rate']:,.0f}" if "rate" in row else duration(row["p50_us"])
        )
        for row in rows
    }
    body = [
        (size_name(size), *(cells.get((size, name), "") for name in names))
        for size in sorted({row["size"] for row in rows})
    ]
    return table(("payload", *names), body, "lr")


def wire_tables(found: dict[str, Any]) -> list[str]:
    """Return sizes of messages, and of all that is sent for them."""
    about_messages = (
        "A message is what an end writes on a stream. Those of all contenders that "
        "speak the same protocol were taken down and compared, byte for byte but for "
        "the time in them."
    )
    about_all = (
        "All that is sent for a request, with acknowledgements, counted by a relay in "
        "the middle: payloads of UDP datagrams, or what passes through TCP connections "
        "(whose segments are not counted)."
    )
    verdicts = dict(equal_messages(found["messages"]))
    head = ("payload", "request, bytes", "answer, bytes", "all the same")
    rows = {}
    for row in found["messages"]:
        rows[row["size"]] = (
            size_name(row["size"]),
            f"{row['request_bytes']:,}",
            f"{row['answer_bytes']:,}",
            "yes" if verdicts[row["size"]] else "**no**",
        )
    messages = table(head, list(rows.values()), "lr")
    head = ("payload", "contender", "sent, bytes", "answered", "datagrams", "answered")
    body = [
        (
            size_name(row["size"]),
            row_name(row),
            f"{row['sent_bytes']:,.0f}",
            f"{row['answered_bytes']:,.0f}",
            *(
                f"{row[name]:,.1f}" if row[name] else ""
                for name in ("sent_datagrams", "answered_datagrams")
            ),
        )
        for row in sorted(found["wire"], key=lambda row: row["size"])
    ]
    return [about_messages, "", *messages, "", about_all, "", *table(head, body, "llr")]


def setups(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a new connection takes."""
    names = ("p50_us", "p95_us", "p99_us")
    body = [(row_name(row), *(duration(row[name]) for name in names)) for row in rows]
    return table(("contender", "p50", "p95", "p99"), body, "lr")


def details(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return all rows of a layout."""
    apart = rows[0]["server_peak_kib"] is not None
    head = [
        "what",
        "payload",
        "contender",
        "p50",
        "p95",
        "p99",
        "requests/s",
        "samples",
    ]
    head += (
        ["client CPU", "server CPU", "client MiB", "server MiB"]
        if apart
        else ["CPU", "MiB"]
    )
    body = []
    for row in sorted(rows, key=lambda row: (row["op"], row["size"] or 0)):
        rate = row["op"] == "throughput"
        cells = [row["op"], size_name(row["size"]), row_name(row)]
        times = ("p50_us", "p95_us", "p99_us")
        cells += ["" if rate else duration(row[name]) for name in times]
        cells += [f"{row['rate']:,.0f}" if rate else "", f"{row['requests']:,}"]
        ends = ("", "server_") if apart else ("",)
        cells += [duration(row[f"{end}cpu_us"]) for end in ends]
        cells += [f"{row[f'{end}peak_kib'] / 1024:,.0f}" for end in ends]
        body.append(cells)
    return table(head, body, "lllr")


OPERATIONS = {
    "setup": ("Connection, login and first answer", setups),
    "latency": ("Requests one after the other, p50", overview),
    "throughput": ("Requests a second, 32 at a time", overview),
}
FULL = (
    "CPU is processor time a request, or a set-up; MiB the most memory that was resident "
    "while it was measured, the whole process."
)
