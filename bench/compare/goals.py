"""Who is compared with whom, and what the ratio is to be: a table, and its reading."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SMALL = (256, 1024, 10_240)
LARGE = (102_400, 1_048_576)
ONE, TWO = "one process", "two processes"
BOTH = (ONE, TWO)


@dataclass(frozen=True)
class Goal:
    """A ratio of ours to theirs, with its floor for each size.

    Attributes:
        layouts: Where it is to hold.
        operation: "latency", "setup" or "throughput".
        ours: Contender and its way, if it has ways.
        theirs: The same of who we are compared with.
        floors: The ratio to reach, by size; of set-ups by None. One that is None is not
            judged.
        aims: What to go for beyond, by size.
    """

    layouts: tuple[str, ...]
    operation: str
    ours: tuple[str, str | None]
    theirs: tuple[str, str | None]
    floors: dict[int | None, float | None]
    aims: dict[int | None, float]

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.operation == "throughput"


@dataclass(frozen=True)
class Ratio:
    """What was measured of one goal, in one layout, at one size.

    Attributes:
        goal: What was to be reached.
        layout: Where.
        size: Of the payload; None for set-ups.
        value: Median of the turns' ratios, ours to theirs.
        low: The smallest of them.
        high: The largest.
    """

    goal: Goal
    layout: str
    size: int | None
    value: float
    low: float
    high: float

    @property
    def floor(self) -> float | None:
        """The ratio to reach."""
        return self.goal.floors[self.size]

    @property
    def aim(self) -> float | None:
        """The ratio to go for."""
        return self.goal.aims.get(self.size)

    def reaches(self, wanted: float | None) -> bool:
        """Tell whether it is at least as good as that."""
        if wanted is None:
            return False
        return self.value >= wanted if self.goal.is_rate else self.value <= wanted


def by_size(
    small: float | None, hundred_kib: float | None, mib: float | None = None
) -> dict[int | None, float]:
    """Make a table of three small sizes and two large ones."""
    large = (hundred_kib, hundred_kib if mib is None else mib)
    pairs = [(size, small) for size in SMALL] + list(zip(LARGE, large, strict=True))
    return {size: value for size, value in pairs if value is not None}


def setup(floor: float) -> dict[int | None, float]:
    """Make a table of set-ups."""
    return {None: floor}


PEER, RUST, RUST_TASK = ("peer", None), ("peer-rust", None), ("peer-rust", "task")
UNJUDGED: dict[int | None, float | None] = dict.fromkeys(SMALL + LARGE)
RUST_MANY, BITTENSOR_MANY = ("peer-rust", "tasks"), ("bittensor", "tasks")
BITTENSOR_FLOORS = by_size(50, 5, 2)

GOALS = (
    Goal((ONE,), "latency", ("ours", None), PEER, by_size(0.6, 0.8), by_size(0.35, None)),
    *(
        Goal((ONE,), "throughput", ("ours", how), ("peer", how), floors, aims)
        for how, floors, aims in (
            ("executor", by_size(1.25, 1.5), by_size(1.6, None)),
            ("threads", by_size(2, 1.5), by_size(3, None)),
        )
    ),
    *(
        Goal((TWO,), "latency", (ours, None), RUST, by_size(0.9, 0.8), by_size(0.7, None))
        for ours in ("ours-asyncio", "ours-uvloop")
    ),
    *(
        Goal((TWO,), "throughput", (ours, "tasks"), RUST_MANY, by_size(1.3, 1.2), by_size(2, 1.5))
        for ours in ("ours-asyncio", "ours-uvloop")
    ),
    Goal((TWO,), "latency", ("ours", None), RUST, by_size(0.8, 0.8), by_size(0.5, None)),
    *(
        Goal((TWO,), "latency", (ours, None), RUST_TASK, UNJUDGED, {})
        for ours in ("ours", "ours-asyncio", "ours-uvloop")
    ),
    Goal(BOTH, "setup", ("ours", None), PEER, setup(0.6), {}),
    *(
        Goal(BOTH, "setup", (ours, None), RUST, setup(0.9), {})
        for ours in ("ours", "ours-asyncio", "ours-uvloop")
    ),
    *(
        Goal(BOTH, "throughput", ours, BITTENSOR_MANY, BITTENSOR_FLOORS, {})
        for ours in (("ours", "threads"), ("ours-asyncio", "tasks"))
    ),
)  # fmt: skip


def ratios(results: list[dict[str, Any]]) -> Iterator[Ratio]:
    """Yield the ratio of each goal whose two sides were measured."""
    rows = {
        (row["layout"], row["op"], row["contender"], row["how"], row["size"]): row
        for row in results
    }
    for goal in GOALS:
        for layout in goal.layouts:
            for size in goal.floors:
                mine = rows.get((layout, goal.operation, *goal.ours, size))
                other = rows.get((layout, goal.operation, *goal.theirs, size))
                if mine is None or other is None:
                    continue
                turns = [
                    ours / theirs
                    for ours, theirs in zip(mine["turns"], other["turns"], strict=True)
                ]
                yield Ratio(
                    goal,
                    layout,
                    size,
                    statistics.median(turns),
                    min(turns),
                    max(turns),
                )


def equal_messages(found: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """Tell for each size whether all contenders' messages are the same."""
    sizes: dict[int, list[dict[str, Any]]] = {}
    for row in found:
        sizes.setdefault(row["size"], []).append(row)
    return [
        (
            size,
            all(row["canonical"] for row in rows)
            and len({(row["request_bytes"], row["answer_bytes"]) for row in rows}) == 1,
        )
        for size, rows in sizes.items()
    ]
