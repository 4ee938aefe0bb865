"""Ordered sets of disjoint ranges without a bound."""

import random
import time

import pytest

from lightning._core.quic.spans import SpanSet

OK = 0


def spans(*items):
    made = SpanSet()
    for start, end in items:
        assert made.add(start, end) == OK
    return made


def pairs(numbers):
    """Group a set of numbers into ascending (start, end) pairs."""
    found = []
    for n in sorted(numbers):
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found


def test_starts_empty():
    made = SpanSet()
    assert (len(made), made.items, made.first_from(0)) == (0, [], None)
    assert 0 not in made
    assert made.remove(0, 10) == OK
    made.take(5)
    assert made.items == []


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ((0, 5), [(0, 5), (10, 20), (30, 40)]),
        ((22, 25), [(10, 20), (22, 25), (30, 40)]),
        ((50, 60), [(10, 20), (30, 40), (50, 60)]),
        ((5, 10), [(5, 20), (30, 40)]),
        ((20, 22), [(10, 22), (30, 40)]),
        ((20, 30), [(10, 40)]),
        ((15, 35), [(10, 40)]),
        ((12, 18), [(10, 20), (30, 40)]),
        ((0, 100), [(0, 100)]),
        ((25, 25), [(10, 20), (30, 40)]),
        ((25, 24), [(10, 20), (30, 40)]),
    ],
)
def test_add_merges_what_overlaps_or_touches(added, expected):
    made = spans((10, 20), (30, 40))
    assert made.add(*added) == OK
    assert made.items == expected
    assert len(made) == len(expected)


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ((0, 10), [(10, 20), (30, 40)]),
        ((20, 30), [(10, 20), (30, 40)]),
        ((40, 50), [(10, 20), (30, 40)]),
        ((12, 15), [(10, 12), (15, 20), (30, 40)]),
        ((10, 15), [(15, 20), (30, 40)]),
        ((15, 20), [(10, 15), (30, 40)]),
        ((15, 35), [(10, 15), (35, 40)]),
        ((10, 20), [(30, 40)]),
        ((0, 100), []),
        ((15, 15), [(10, 20), (30, 40)]),
        ((2**64 - 1, 2**64 - 1), [(10, 20), (30, 40)]),
    ],
)
def test_remove_cuts_and_splits(removed, expected):
    made = spans((10, 20), (30, 40))
    assert made.remove(*removed) == OK
    assert made.items == expected
    assert len(made) == len(expected)


def test_take_shortens_only_the_first_span():
    made = spans((10, 20), (30, 40))
    made.take(4)
    assert made.items == [(14, 20), (30, 40)]
    made.take(6)
    assert made.items == [(30, 40)]
    made.take(1000)
    assert made.items == []


def test_first_from_finds_the_span_that_ends_above():
    made = spans((10, 20), (30, 40))
    assert made.first_from(0) == (10, 20)
    assert made.first_from(19) == (10, 20)
    assert made.first_from(20) == (30, 40)
    assert made.first_from(40) is None


def test_may_be_used_again_after_free():
    made = spans((10, 20))
    made.free()
    made.free()
    assert (len(made), made.items) == (0, [])
    assert made.add(1, 2) == OK
    assert made.items == [(1, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_set_of_numbers(seed):
    rng = random.Random(seed)
    made, model = SpanSet(), set()
    for _ in range(3000):
        start = rng.randrange(600)
        end = start + rng.randrange(1, 40 if rng.random() < 0.1 else 5)
        if rng.random() < 0.5:
            assert made.add(start, end) == OK
            model.update(range(start, end))
        elif rng.random() < 0.9:
            assert made.remove(start, end) == OK
            model.difference_update(range(start, end))
        elif model:
            first_start, first_end = pairs(model)[0]
            made.take(end - start)
            model.difference_update(
                range(first_start, min(first_end, first_start + end - start))
            )
        expected = pairs(model)
        assert made.items == expected
        assert len(made) == len(expected)
        assert (start in made) == (start in model)
        assert made.first_from(start) == next(
            (p for p in expected if p[1] > start), None
        )


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_cost_does_not_grow_with_the_count(order):
    """64 times as many spans take far less than 64 times 64 times as long."""

    def cost(count):
        starts = list(range(0, 2 * count, 2))
        if order == "descending":
            starts.reverse()
        elif order == "shuffled":
            random.Random(1).shuffle(starts)
        made = SpanSet()
        begin = time.process_time()
        for start in starts:
            made.add(start, start + 1)
        for start in starts:
            made.remove(start, start + 1)
        return time.process_time() - begin

    small = min(cost(2_000) for _ in range(5))
    # A busy machine may be in the way of some, but not of each.
    assert any(cost(128_000) < 1000 * small for _ in range(3))
