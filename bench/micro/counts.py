"""Count the instructions of each case with callgrind, and compare with the last count.

    python bench/micro/counts.py [--write] [--only TEXT]

One run under valgrind does every case three times: to warm up, once, and twice. A call
of `getppid` has callgrind write down its counter before each, so that the difference of
the last two is what the case costs by itself. Counts hardly change from run to run; a
case that grew by more than 2 % is marked. `--write` keeps the counts in `counts.json`.

What libcrypto runs depends on the processor that valgrind shows it: AES-NI, but not the
wider instructions of newer ones. Times are for `test_times.py`.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.micro.cases import CASES

RESULTS = Path(__file__).with_name("counts.json")
SLACK = 0.02


def selected(only: str) -> list[str]:
    """Return the names of the cases that a text is a part of."""
    return [name for name in CASES if only in name]


def run(only: str) -> None:
    """Do the cases, with a call of getppid before and after each count."""
    for name in selected(only):
        make, count = CASES[name]
        case = make()
        case(count)
        gc.collect()
        gc.disable()
        for times in (1, 2):
            os.getppid()
            case(times * count)
            os.getppid()
        gc.enable()


def count(only: str) -> dict[str, int]:
    """Return the instructions of one operation of each case."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                "valgrind", "--tool=callgrind", "--dump-before=getppid",
                f"--callgrind-out-file={folder}/out", "--quiet",
                sys.executable, __file__, "--run", "--only", only,
            ],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        dumps = []
        for path in Path(folder).glob("out.*"):
            text = path.read_text()
            number = int(text.split("\npart: ")[1].split("\n")[0])
            dumps.append((number, int(text.split("\ntotals: ")[1].split("\n")[0])))
    totals = [total for _, total in sorted(dumps)]
    # Of each case: what came before, once, between, twice, and so on.
    return {
        name: round((totals[4 * i + 3] - totals[4 * i + 1]) / CASES[name][1])
        for i, name in enumerate(selected(only))
    }


def report(counts: dict[str, int], before: dict[str, int]) -> None:
    """Print a table of counts, and how they changed."""
    for name, value in counts.items():
        old = before.get(name)
        change = f"{value / old - 1:+8.1%}" if old else "     new"
        mark = "  <-" if old and value > old * (1 + SLACK) else ""
        print(f"{name:24}{value:14,}{change}{mark}")


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="cases with this text in the name")
    parser.add_argument("--write", action="store_true", help="keep the counts")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.only)
        return
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    counts = count(arguments.only)
    report(counts, before)
    if arguments.write:
        RESULTS.write_text(json.dumps(before | counts, indent=4) + "\n")


if __name__ == "__main__":
    main()
