"""Measure all contenders in one run, taking turns, and write the report.

Usage: ``python -m bench.compare [--quick] [--sizes 256,1024] [--out build/compare]``.
``--only dendrite`` measures only dendrites and axons, and adds them to the last
run. With ``--tables FILE`` nothing is measured: page and charts are written again from an
earlier run. Ratios are what counts: absolute times are those of this machine at this
moment.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.compare import charts, dendrites, report
from bench.compare.contenders import BUILD, ROOT, contenders
from bench.compare.measure import LAYOUTS, SIZES, Plan, run

FULL = {
    "setups": 100,
    "latencies": 1000,
    "requests": 10_000,
    "seconds": 1.5,
    "turns": 5,
}
QUICK = {"setups": 10, "latencies": 200, "requests": 2000, "seconds": 0.2, "turns": 2}


def write(found: dict[str, Any], page: Path) -> None:
    """Write the page, and its charts beside it."""
    (page.parent / "charts").mkdir(parents=True, exist_ok=True)
    page.write_text(report.markdown(found))
    for name in charts.CHARTS:
        for theme in charts.THEMES:
            place = page.parent / "charts" / f"{name}-{theme}.svg"
            place.write_text(charts.svg(found, name, theme))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for."""
    sizes = tuple(map(int, options.sizes.split(","))) if options.sizes else SIZES
    plan = Plan(sizes=sizes, **(QUICK if options.quick else FULL))
    wanted = options.contenders.split(",") if options.contenders else None
    taking_part = [
        each for each in contenders() if wanted is None or each.name in wanted
    ]
    if options.only == "dendrite":
        earlier = options.out / "compare.json"
        found = json.loads(earlier.read_text()) if earlier.exists() else {}
    else:
        found = run(taking_part, plan, [options.layout] if options.layout else LAYOUTS)
    found["dendrites"] = dendrites.run(
        taking_part, turns=plan.turns, seconds=plan.seconds
    )
    return found


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="bench.compare")
    parser.add_argument("--quick", action="store_true", help="two minutes, for a look")
    parser.add_argument("--sizes", help="of payloads in bytes, with commas")
    parser.add_argument("--layout", choices=("one process", "two processes"))
    parser.add_argument("--contenders", help="names, with commas; all by default")
    parser.add_argument("--only", choices=("dendrite",), help="measure only these")
    parser.add_argument("--out", type=Path, default=BUILD, help="a folder")
    parser.add_argument("--tables", type=Path, help="an earlier run, to be shown again")
    parser.add_argument("--docs", action="store_true", help="write the page in docs/")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tables is None:
        found = measured(options)
        (options.out / "compare.json").write_text(json.dumps(found, indent=1))
    else:
        found = json.loads(options.tables.read_text())
    if "results" not in found:
        print("\n".join(dendrites.tables(found["dendrites"])))
        return
    page = ROOT / "docs/benchmarks.md" if options.docs else options.out / "compare.md"
    write(found, page)
    print(page.read_text())


if __name__ == "__main__":
    main()
