"""`bench/scale.py` with few connections."""

import re

import pytest

from bench import scale


@pytest.mark.parametrize("count", [1, 3, 4, 10, 1000])
def test_shares_are_all_numbers_once(count):
    """Every connection is some process's."""
    numbers = [
        number
        for first, own in scale.shares(count, 7)
        for number in range(first, first + own)
    ]
    assert numbers == list(range(7, 7 + count))


@pytest.mark.parametrize("who", ["server", "client"])
def test_idle_connections_are_made_and_measured(who, monkeypatch):
    """A row tells who has how many connections, and what each costs."""
    monkeypatch.setattr(scale, "SETTLE", 0.0)
    row = scale.idle(who, 6, seconds=0.05, keep_alive=1)
    assert row[:2] == [f"one {who}", "6"]
    before, after = map(float, row[3].split(", "))
    assert 10 < before < after + 5


@pytest.mark.parametrize("who", ["server", "client"])
def test_requests_go_through_all_connections(who):
    """A rate, and the processor time of a request at both ends."""
    rate, *micros = scale.busy(who, 3, requests=2 * scale.IN_FLIGHT)
    assert re.fullmatch(r"[\d,]+", rate)
    assert all(int(each) > 0 for each in micros)
