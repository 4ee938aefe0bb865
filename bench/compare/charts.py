"""The charts: SVG written by hand, on logarithmic scales, one file light and one dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from bench.compare.words import duration, round_duration, size_name, thousands

WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM, GAP = 66, 20, 100, 44, 34
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours of the page around."""

    ground: str
    text: str
    faint: str
    line: str
    series: dict[str, str]


THEMES = {
    "light": Theme(
        "#ffffff", "#1f2328", "#59636e", "#d8dde3",
        {
            "ours": "#0a5dc2", "ours-asyncio": "#0f8a6d", "ours-uvloop": "#7a3fc0",
            "peer": "#c76a00", "peer-rust": "#c22b3c", "bittensor": "#6b7480",
        },
    ),
    "dark": Theme(
        "#0d1117", "#e6edf3", "#9198a1", "#2f363f",
        {
            "ours": "#58a6ff", "ours-asyncio": "#3fc9a5", "ours-uvloop": "#b78bf7",
            "peer": "#f0a04b", "peer-rust": "#ff7b85", "bittensor": "#98a2ad",
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """What a chart shows.

    Attributes:
        title: Above it.
        operation: Whose rows.
        key: The number shown.
        write: Writes a number.
        mark: Writes a round number at its axis.
        draw: Draws it.
    """

    title: str
    operation: str
    key: str
    write: Callable[[float], str]
    mark: Callable[[float], str]
    draw: Callable[["Canvas", "Chart", Sequence[dict[str, Any]], dict[str, str]], None]


class Canvas:
    """An SVG in the making."""

    def __init__(self, theme: Theme, title: str) -> None:
        self.theme = theme
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" font-family="{FONT}" '
            f'font-size="12">'
        )
        self._parts = [
            opening,
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{theme.ground}"/>',
        ]
        self.text(LEFT, 26, title, size=15, weight="600")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        size: int = 12,
        fill: str = "",
        weight: str = "400",
    ) -> None:
        """Write words; the anchor is "start", "middle" or "end"."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" fill="{fill or self.theme.text}">'
            f"{escape(words)}</text>"
        )

    def line(self, points: Sequence[tuple[float, float]], fill: str, width: float):
        """Draw a line through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{places}" fill="none" stroke="{fill}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"/>'
        )

    def dot(self, x: float, y: float, name: str) -> None:
        """Draw a contender's mark: ours round, others square."""
        fill = self.theme.series[name]
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}"/>'
            if name.startswith("ours")
            else f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" '
            f'fill="{fill}"/>'
        )

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


class Scale:
    """A logarithmic axis: values between two bounds become places between two.

    Args:
        values: What is shown; the bounds are a bit beyond.
        start: Where the smallest is.
        end: Where the largest is.
    """

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low, self._high = min(values) / 1.3, max(values) * 1.3
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Return where a value is."""
        part = math.log(value / self._low) / math.log(self._high / self._low)
        return self._start + part * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return the round values in range: powers of ten, and others if they are few."""
        ticks: list[float] = []
        powers = range(
            math.floor(math.log10(self._low)), 1 + math.ceil(math.log10(self._high))
        )
        for steps in ((1,), (1, 3), (1, 2, 5)):
            ticks = [
                step * 10.0**power
                for power in powers
                for step in steps
                if self._low <= step * 10.0**power <= self._high
            ]
            if len(ticks) >= 4:
                break
        return ticks


def panels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Return each layout with the left and right of its panel."""
    layouts = sorted({row["layout"] for row in rows})
    width = (WIDTH - LEFT - RIGHT - GAP * (len(layouts) - 1)) / len(layouts)
    lefts = [LEFT + place * (width + GAP) for place in range(len(layouts))]
    return [
        (layout, left, left + width)
        for layout, left in zip(layouts, lefts, strict=True)
    ]


def legend(canvas: Canvas, titles: dict[str, str]) -> None:
    """Say which mark is whose."""
    x = float(LEFT)
    for name, title in titles.items():
        canvas.dot(x + 4, 50, name)
        canvas.text(x + 14, 54, title)
        # Some six units a letter.
        x += 26 + 6 * len(title)


def lines(
    canvas: Canvas, chart: Chart, rows: Sequence[dict[str, Any]], titles: dict[str, str]
) -> None:
    """Draw a panel a layout, in it a line a contender, over payloads."""
    faint, grid = canvas.theme.faint, canvas.theme.line
    sizes = sorted({row["size"] for row in rows})
    scale = Scale([row[chart.key] for row in rows], HEIGHT - BOTTOM, TOP)
    legend(canvas, titles)
    for layout, left, right in panels(rows):
        canvas.text(left, TOP - 12, layout.capitalize(), weight="600")
        for tick in scale.ticks():
            y = scale.place(tick)
            canvas.line([(left, y), (right, y)], grid, 1)
            if left == LEFT:
                canvas.text(left - 8, y + 4, chart.mark(tick), anchor="end", fill=faint)
        step = (right - left) / len(sizes)
        places = {size: left + (n + 0.5) * step for n, size in enumerate(sizes)}
        for size, x in places.items():
            name = size_name(size)
            canvas.text(x, HEIGHT - BOTTOM + 22, name, anchor="middle", fill=faint)
        for name in reversed(titles):
            points = [
                (places[row["size"]], scale.place(row[chart.key]))
                for row in rows
                if (row["layout"], row["contender"]) == (layout, name)
            ]
            canvas.line(points, canvas.theme.series[name], 2)
            for x, y in points:
                canvas.dot(x, y, name)


def spans(
    canvas: Canvas, chart: Chart, rows: Sequence[dict[str, Any]], titles: dict[str, str]
) -> None:
    """Draw a panel a layout, in it a row a contender: the p50, and a line to the p95."""
    faint, grid = canvas.theme.faint, canvas.theme.line
    bottom = HEIGHT - BOTTOM
    step = (bottom - TOP) / len(titles)
    values = [row[key] for row in rows for key in (chart.key, "p95_us")]
    for layout, left, right in panels(rows):
        canvas.text(left, TOP - 12, layout.capitalize(), weight="600")
        # Names are written in the panel.
        scale = Scale(values, left + 165, right - 55)
        for tick in scale.ticks():
            x = scale.place(tick)
            canvas.line([(x, TOP), (x, bottom)], grid, 1)
            canvas.text(x, bottom + 22, chart.mark(tick), anchor="middle", fill=faint)
        for place, (name, title) in enumerate(titles.items()):
            y = TOP + (place + 0.5) * step
            canvas.text(left, y + 4, title)
            for row in rows:
                if (row["layout"], row["contender"]) != (layout, name):
                    continue
                x, far = scale.place(row[chart.key]), scale.place(row["p95_us"])
                canvas.line([(x, y), (far, y)], canvas.theme.series[name], 2)
                canvas.dot(x, y, name)
                canvas.text(far + 10, y + 4, chart.write(row[chart.key]), fill=faint)


CHARTS = {
    "throughput": Chart(
        "Requests a second, 32 at a time, by payload",
        "throughput", "rate", thousands, thousands, lines,
    ),
    "latency": Chart(
        "Time of a request, one after the other, median, by payload",
        "latency", "p50_us", duration, round_duration, lines,
    ),
    "setup": Chart(
        "Time of a connection, its login and its first answer, median and 95th percentile",
        "setup", "p50_us", duration, round_duration, spans,
    ),
}  # fmt: skip


def svg(found: dict[str, Any], name: str, theme: str) -> str:
    """Return a chart as SVG.

    Args:
        found: What was measured.
        name: Of the chart, in `CHARTS`.
        theme: "light" or "dark".
    """
    chart = CHARTS[name]
    mine = [row for row in found["results"] if row["op"] == chart.operation]
    # Of several ways to ask everybody's fastest: it comes last.
    mine.sort(key=lambda row: row["rate"] if "rate" in row else -row["p50_us"])
    best = {(row["layout"], row["contender"], row["size"]): row for row in mine}
    rows = sorted(best.values(), key=lambda row: row["size"] or 0)
    seen = {row["contender"] for row in rows}
    titles = {k: v for k, v in found["about"]["contenders"].items() if k in seen}
    canvas = Canvas(THEMES[theme], chart.title)
    chart.draw(canvas, chart, rows, titles)
    return str(canvas)
