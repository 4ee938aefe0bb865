"""Goodput under loss does not fall below aioquic's (`bench/recovery.py` compares more)."""

import logging
import statistics

import pytest

from bench.recovery import goodput

SIZE = 5_000_000
SEEDS = range(1, 4)

# Mbit/s of aioquic at both ends over the same network, CUBIC: the mean of 30 seeds.
AIOQUIC = {
    ("client", 0.0): 17.57,
    ("client", 0.01): 3.09,
    ("client", 0.02): 1.96,
    ("client", 0.05): 1.10,
    ("server", 0.0): 17.33,
    ("server", 0.01): 3.04,
    ("server", 0.02): 2.01,
    ("server", 0.05): 1.09,
}


@pytest.fixture(autouse=True)
def no_log():
    """aioquic logs each loss."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("sender", ["client", "server"])
def test_goodput_is_at_least_aioquics(sender):
    """Each mean of three seeds varies by a tenth; together they must be ahead."""
    assert goodput("ours-ours", "cubic", 0.0, 1, SIZE, sender) > AIOQUIC[sender, 0.0]
    ratios = []
    for loss in (0.01, 0.02, 0.05):
        reached = statistics.mean(
            goodput("ours-ours", "cubic", loss, seed, SIZE, sender) for seed in SEEDS
        )
        ratios.append(reached / AIOQUIC[sender, loss])
    assert min(ratios) > 0.9
    assert statistics.geometric_mean(ratios) > 1.02


def test_aioquic_still_reaches_what_we_are_measured_by():
    """A change of the simulated network would move it."""
    reached = goodput("aioquic-aioquic", "cubic", 0.05, 1, SIZE, "client")
    assert reached == pytest.approx(AIOQUIC["client", 0.05], rel=0.1)
