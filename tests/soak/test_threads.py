"""Ten minutes of many threads on one pair of endpoints."""

import os

import pytest

from tests.support.stress import stress_and_check

SECONDS = float(os.environ.get("LIGHTNING_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("LIGHTNING_STRESS_SEED", "100"))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_sixteen_threads_for_long():
    """No call hangs, traffic flows, and nothing is held at the end."""
    stress_and_check(SEED, SECONDS)
