"""Ten minutes of many threads on one pair of endpoints."""

import os
import sys

import pytest

from tests.support.stress import BODY, Stress

SECONDS = float(os.environ.get("LIGHTNING_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("LIGHTNING_STRESS_SEED", "100"))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_sixteen_threads_for_long():
    """No call hangs, and nothing is held at the end."""
    print("seed", SEED)
    references = sys.getrefcount(BODY)
    stress = Stress(SEED)
    stress.run(SECONDS)
    for end in stress.finish():
        assert end["connections"] == end["half_open"] == 0
        assert end["blocks_in_use"] == end["streams_in_use"] == 0
    print(stress.done)
    del stress
    assert sys.getrefcount(BODY) == references
