"""Measure what an idle connection costs in memory, each end by itself.

    python bench/micro/memory.py [--connections N]

Both ends are in this process, which runs itself again with every allocation of Python
going to malloc, so that malloc's own count of bytes in use has everything: records,
contexts of libcrypto, Python's objects. An end's part is what is given back when its
endpoint is dropped. Needs glibc.
"""

import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.micro.cases import MIB, Ends
from lightning._core.quic.bench import run_exchanges, struct_sizes
from tests.support.bounds import malloc_bytes

LIMIT = 40 * 1024
# What each connection has done before it is idle: exchanges, and bytes of each.
STATES = {
    "handshake": (0, 0),
    "100 times 1 KiB": (100, 1024),
    "1 MiB each way": (1, MIB),
}


def in_use() -> int:
    """Return the bytes that malloc has given out."""
    gc.collect()
    count = malloc_bytes()
    if count is None:
        raise SystemExit("malloc does not count what it gives out: this needs glibc")
    return count


def resident() -> int:
    """Return the process's resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(state: str, connections: int) -> tuple[int, int, int]:
    """Return the bytes of a connection: client, server, and both as the system sees."""
    # What is made once is there already.
    ends = Ends()
    ends.close(ends.connect()[0])
    start, start_resident = in_use(), resident()
    pairs = [ends.connect() for _ in range(connections)]
    ends.wait()
    times, size = STATES[state]
    body = bytes(size)
    for near, _ in pairs if times else ():
        done, _ = run_exchanges(near, ends.far, body, times)
        if done != times:
            raise RuntimeError(f"{done} of {times} exchanges were done")
    ends.now += 5.0
    ends.wait()
    alive = ends.near.connections, ends.far.connections
    if alive != (connections, connections):
        raise RuntimeError(f"{alive} connections are alive")
    total = in_use() - start
    total_resident = resident() - start_resident
    pairs = [far for _, far in pairs]
    near = None
    del ends.near
    server = in_use() - start
    return (
        (total - server) // connections,
        server // connections,
        total_resident // connections,
    )


def main() -> int:
    """Print a table; fail where an end is over the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.state:
        print(*measure(arguments.state, arguments.connections))
        return 0
    over = False
    print(f"{'idle after':20}{'client':>10}{'server':>10}{'resident, both':>16}")
    for state in STATES:
        # Each in a process of its own, for memory given back stays with a process.
        out = subprocess.run(
            [
                sys.executable, __file__, "--state", state,
                "--connections", str(arguments.connections),
            ],
            check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONMALLOC": "malloc"},
        ).stdout  # fmt: skip
        client, server, both = map(int, out.split())
        over |= max(client, server) > LIMIT
        print(f"{state:20}{client:10,}{server:10,}{both:16,}")
    for name, size in struct_sizes().items():
        print(f"sizeof({name}) is {size:,}")
    return over


if __name__ == "__main__":
    sys.exit(main())
