"""Many threads on one pair of endpoints: no deadlock, no crash, nothing left."""

import os

from tests.support.stress import stress_and_check

SECONDS = float(os.environ.get("LIGHTNING_STRESS_SECONDS", "8"))
SEED = int(os.environ.get("LIGHTNING_STRESS_SEED", "1"))


def test_sixteen_threads_do_what_they_like():
    """Every call returns, traffic flows, and at the end nothing is held."""
    stress_and_check(SEED, SECONDS)
