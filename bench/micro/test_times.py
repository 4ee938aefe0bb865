"""Take the time of each case with pytest-benchmark: `make bench-micro`.

Its timer is the thread's own, so that other programs disturb it less.
"""

import pytest

from bench.micro.cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_time(benchmark, name):
    """Time a case; all columns are of one operation."""
    make, count = CASES[name]
    case = make()
    benchmark.pedantic(case, args=(count,), rounds=20, warmup_rounds=1)
    if benchmark.stats:
        # A round is many operations done by one call, so that no call counts.
        data = benchmark.stats.stats.data
        data[:] = [seconds / count for seconds in data]
