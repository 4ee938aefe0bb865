"""The RTT estimator, RFC 9002 section 5."""

import pytest

from lightning._core.quic.rtt import RttEstimator

MS = 1000


def test_starts_from_the_initial_rtt():
    """Section 6.2.2: 333 ms, and half of it as variation, so a PTO of 999 ms."""
    rtt = RttEstimator()
    assert (rtt.latest, rtt.smoothed, rtt.variance, rtt.minimum) == (
        0,
        333 * MS,
        166_500,
        0,
    )
    assert rtt.pto == 999 * MS
    assert RttEstimator(100 * MS).pto == 300 * MS


def test_the_first_sample_replaces_the_initial_rtt():
    """Section 5.3; its acknowledgement delay is not subtracted."""
    rtt = RttEstimator()
    rtt.update(40 * MS, ack_delay=10 * MS)
    assert (rtt.latest, rtt.smoothed, rtt.variance, rtt.minimum) == (
        40 * MS,
        40 * MS,
        20 * MS,
        40 * MS,
    )


def test_later_samples_are_averaged():
    """Section 5.3: an eighth of the new RTT, a quarter of the new deviation."""
    rtt = RttEstimator()
    rtt.update(40 * MS)
    rtt.update(56 * MS)
    assert rtt.variance == (3 * 20 * MS + 16 * MS) // 4
    assert rtt.smoothed == (7 * 40 * MS + 56 * MS) // 8
    assert rtt.minimum == 40 * MS
    rtt.update(26 * MS)
    assert rtt.minimum == 26 * MS
    assert rtt.variance == (3 * 19 * MS + 16 * MS) // 4
    assert rtt.smoothed == (7 * 42 * MS + 26 * MS) // 8


@pytest.mark.parametrize(
    ("delay", "adjusted"),
    [(16 * MS, 40 * MS), (16 * MS + 1, 56 * MS), (0, 56 * MS), (-(2**62), 56 * MS)],
)
def test_a_delay_counts_down_to_the_minimum_only(delay, adjusted):
    """Section 5.3: a delay that would leave less than the minimum is not believed."""
    rtt = RttEstimator()
    rtt.update(40 * MS)
    rtt.update(56 * MS, ack_delay=delay)
    assert rtt.smoothed == (7 * 40 * MS + adjusted) // 8


@pytest.mark.parametrize(("sample", "latest"), [(0, 1), (-5, 1), (2**62, 2**30)])
def test_samples_are_kept_within_bounds(sample, latest):
    """A clock that stands still or a peer that waits for years breaks no arithmetic."""
    rtt = RttEstimator()
    rtt.update(sample)
    assert rtt.latest == rtt.smoothed == latest


def test_derived_times_have_the_timer_granularity():
    """Sections 6.1.2 and 6.2.1: at least a millisecond, 9/8 and 4 deviations."""
    rtt = RttEstimator()
    rtt.update(80)
    for _ in range(20):
        rtt.update(80)
    assert rtt.variance < 5
    assert rtt.loss_delay == MS
    assert rtt.pto == 80 + MS
    rtt = RttEstimator()
    rtt.update(80 * MS)
    assert rtt.loss_delay == 90 * MS
    assert rtt.pto == 240 * MS
    rtt.update(160 * MS)  # The latest is longer than the smoothed one.
    assert rtt.loss_delay == 180 * MS
