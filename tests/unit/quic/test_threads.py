"""Many threads on one pair of endpoints: no deadlock, no crash, nothing left."""

import os
import sys

from tests.support.stress import BODY, Stress

SECONDS = float(os.environ.get("LIGHTNING_STRESS_SECONDS", "8"))
SEED = int(os.environ.get("LIGHTNING_STRESS_SEED", "1"))


def test_sixteen_threads_do_what_they_like():
    """Every call returns, traffic flows, and at the end nothing is held."""
    print("seed", SEED)
    references = sys.getrefcount(BODY)
    stress = Stress(SEED)
    stress.run(SECONDS)
    left = stress.finish()
    for end in left:
        assert end["connections"] == end["half_open"] == 0
        assert end["blocks_in_use"] == end["streams_in_use"] == 0
    print(stress.done)
    assert stress.done["connected"] >= 4
    assert stress.done["ends"] >= 20
    assert stress.done["bytes"] >= 100_000
    del stress
    assert sys.getrefcount(BODY) == references
