"""Ordered sets of disjoint ranges."""

import random

import pytest

from lightning._core.quic.ranges import RangeSet, bench_append

OK, FULL = 0, -2


def ranges(*items, **options):
    made = RangeSet(**options)
    for start, end in items:
        assert made.add(start, end) == OK
    return made


def of(numbers):
    """Group a set of numbers into ascending (start, end) pairs."""
    pairs = []
    for n in sorted(numbers):
        if pairs and pairs[-1][1] == n:
            pairs[-1] = (pairs[-1][0], n + 1)
        else:
            pairs.append((n, n + 1))
    return pairs


def test_starts_empty():
    made = RangeSet()
    assert (len(made), made.items, made.floor) == (0, [], 0)
    assert 0 not in made
    assert not made.seen(0)
    assert made.first_gap(7) == 7
    made.forget(10)
    assert made.subtract(0, 5) == OK
    assert made.items == []


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ((0, 5), [(0, 5), (10, 20), (30, 40)]),
        ((22, 25), [(10, 20), (22, 25), (30, 40)]),
        ((50, 60), [(10, 20), (30, 40), (50, 60)]),
        ((5, 10), [(5, 20), (30, 40)]),
        ((20, 22), [(10, 22), (30, 40)]),
        ((40, 41), [(10, 20), (30, 41)]),
        ((20, 30), [(10, 40)]),
        ((15, 35), [(10, 40)]),
        ((12, 18), [(10, 20), (30, 40)]),
        ((0, 100), [(0, 100)]),
        ((9, 31), [(9, 40)]),
        ((35, 50), [(10, 20), (30, 50)]),
        ((25, 25), [(10, 20), (30, 40)]),
        ((25, 24), [(10, 20), (30, 40)]),
    ],
)
def test_add_merges_what_overlaps_or_touches(added, expected):
    made = ranges((10, 20), (30, 40))
    assert made.add(*added) == OK
    assert made.items == expected


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ((0, 10), [(10, 20), (30, 40)]),
        ((20, 30), [(10, 20), (30, 40)]),
        ((40, 50), [(10, 20), (30, 40)]),
        ((10, 20), [(30, 40)]),
        ((0, 100), []),
        ((12, 15), [(10, 12), (15, 20), (30, 40)]),
        ((0, 12), [(12, 20), (30, 40)]),
        ((15, 35), [(10, 15), (35, 40)]),
        ((15, 25), [(10, 15), (30, 40)]),
        ((25, 35), [(10, 20), (35, 40)]),
        ((10, 15), [(15, 20), (30, 40)]),
        ((35, 40), [(10, 20), (30, 35)]),
        ((15, 15), [(10, 20), (30, 40)]),
        ((15, 10), [(10, 20), (30, 40)]),
    ],
)
def test_subtract_trims_removes_and_splits(removed, expected):
    made = ranges((10, 20), (30, 40))
    assert made.subtract(*removed) == OK
    assert made.items == expected


def test_contains_and_first_gap_at_the_edges():
    made = ranges((10, 20), (30, 40))
    for n, inside in [(9, 0), (10, 1), (19, 1), (20, 0), (29, 0), (30, 1), (40, 0)]:
        assert (n in made) == bool(inside), n
    for n, gap in [(0, 0), (10, 20), (19, 20), (20, 20), (30, 40), (45, 45)]:
        assert made.first_gap(n) == gap


def test_a_full_set_refuses_and_stays_as_it_was():
    made = ranges((0, 1), (2, 3), (4, 5), limit=3)
    for one in (6, 7), (8, 9):
        assert made.add(*one) == FULL
    assert made.add(0, 2) == OK  # merging is not growing
    assert made.items == [(0, 3), (4, 5)]
    assert made.add(6, 7) == OK
    assert made.subtract(1, 2) == FULL  # a split is
    assert made.items == [(0, 3), (4, 5), (6, 7)]
    assert made.floor == 0


def test_a_full_set_drops_the_lowest_and_remembers_that_it_did():
    made = ranges((10, 11), (12, 13), (14, 15), limit=3, drop_lowest=True)
    assert made.add(16, 17) == OK
    assert (made.items, made.floor) == ([(12, 13), (14, 15), (16, 17)], 11)
    assert made.seen(10)
    assert made.seen(3)
    assert not made.seen(11)
    assert not made.seen(13)
    assert made.add(0, 11) == OK  # known to be too old
    assert made.items[0] == (12, 13)
    assert made.add(18, 19) == OK
    assert made.items == [(14, 15), (16, 17), (18, 19)]
    assert made.floor == 13


def test_a_range_below_all_others_of_a_full_set_is_itself_dropped():
    made = ranges((12, 13), (14, 15), limit=2, drop_lowest=True)
    assert made.add(5, 7) == OK
    assert (made.items, made.floor) == ([(12, 13), (14, 15)], 7)
    assert made.seen(6)


def test_an_addition_across_the_floor_is_cut_at_it():
    made = ranges((20, 30), limit=4, drop_lowest=True)
    made.forget(25)
    assert made.add(0, 40) == OK
    assert made.items == [(25, 40)]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (0, [(10, 20), (30, 40)]),
        (10, [(10, 20), (30, 40)]),
        (15, [(15, 20), (30, 40)]),
        (20, [(30, 40)]),
        (30, [(30, 40)]),
        (39, [(39, 40)]),
        (40, []),
        (90, []),
    ],
)
@pytest.mark.parametrize("drop", [False, True])
def test_forget_drops_everything_below(bound, expected, drop):
    made = ranges((10, 20), (30, 40), drop_lowest=drop)
    made.forget(bound)
    assert made.items == expected
    assert made.floor == (bound if drop else 0)
    if drop:
        assert all(made.seen(n) for n in range(bound))
        made.forget(0)
        assert made.floor == bound


def test_clear_and_free_leave_a_usable_set():
    made = ranges((10, 20), (30, 40), drop_lowest=True)
    made.forget(15)
    made.clear()
    assert (made.items, made.floor) == ([], 0)
    assert made.add(1, 2) == OK
    made.free()
    made.free()
    assert made.items == []
    assert made.add(3, 4) == OK
    assert made.items == [(3, 4)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 64, 1000])
def test_the_array_grows_to_the_limit_and_no_further(limit):
    made = RangeSet(limit=limit)
    for n in range(limit):
        assert made.add(2 * n, 2 * n + 1) == OK
    assert made.add(2 * limit, 2 * limit + 1) == FULL
    assert len(made) == limit
    assert made.add(0, 2 * limit) == OK
    assert made.items == [(0, 2 * limit)]


def test_reaches_the_largest_stream_offset():
    made = ranges((2**62 - 5, 2**62), (0, 1))
    assert made.items == [(0, 1), (2**62 - 5, 2**62)]
    assert 2**62 - 1 in made
    assert made.first_gap(2**62 - 3) == 2**62


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_plain_set_of_numbers(seed):
    """Random additions and removals on a small line, against a Python set."""
    rng = random.Random(seed)
    made, model = RangeSet(), set()
    for _ in range(400):
        start = rng.randrange(100)
        end = start + rng.randrange(12)
        if rng.random() < 0.55:
            assert made.add(start, end) == OK
            model |= set(range(start, end))
        else:
            assert made.subtract(start, end) == OK
            model -= set(range(start, end))
        assert made.items == of(model)
        n = rng.randrange(110)
        assert (n in made) == (n in model)
        assert made.first_gap(n) == next(g for g in range(n, 200) if g not in model)


@pytest.mark.parametrize("seed", range(20))
def test_dropping_keeps_the_highest_ranges_and_seen_never_forgets(seed):
    """What was added is always seen, and what is kept is the top of all of it."""
    rng = random.Random(seed)
    made, model = RangeSet(limit=8, drop_lowest=True), set()
    for _ in range(300):
        n = rng.randrange(400)
        assert made.add(n, n + 1) == OK
        model.add(n)
        assert all(made.seen(m) for m in model)
        assert len(made) <= 8
        assert made.items == of(m for m in model if m >= made.floor)
        assert all(not made.seen(m) for m in range(made.floor, 400) if m not in model)


def test_appending_in_order_takes_one_range():
    bench_append(1000)
    made = RangeSet(limit=1)
    for n in range(1000):
        assert made.add(n, n + 1) == OK
    assert made.items == [(0, 1000)]
