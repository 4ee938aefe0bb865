"""The ring of trace records: order, wrapping, bounds."""

import random

import pytest

from lightning._core.quic.trace import TraceRing

RESERVE = 65536
HEAD = 40


def test_records_come_out_as_they_went_in():
    ring = TraceRing()
    ring.now = 5
    ring.append("sent", b"one", 1)
    ring.now = 6
    ring.append("metrics", b"", 2)
    assert ring.read() == (
        [(5, 7, "sent", 1, 0, 0, 0, 0, b"one"), (6, 7, "metrics", 2, 0, 0, 0, 0, b"")],
        0,
    )
    assert ring.read() == ([], 0)


@pytest.mark.parametrize("capacity", [0, 1, RESERVE, RESERVE + 1, 100_000])
def test_a_capacity_is_a_power_of_two_above_the_reserve(capacity):
    with pytest.raises(ValueError, match="power of two"):
        TraceRing(capacity)


def test_what_wraps_around_the_end_comes_out_whole():
    """Many laps, with sizes that put the end at every place of a record."""
    seed = 3
    source = random.Random(seed)
    ring = TraceRing(2 * RESERVE)
    waiting, wraps = [], 0
    for number in range(3000):
        data = source.randbytes(source.randrange(700))
        wraps += HEAD + len(data)
        ring.append("started", data, number)
        waiting.append((number, data))
        if source.random() < 0.05:
            records, dropped = ring.read()
            assert dropped == 0
            assert [(each[3], each[8]) for each in records] == waiting
            waiting.clear()
    assert wraps > 5 * 2 * RESERVE


def test_a_full_ring_drops_what_is_new_and_counts_it():
    ring = TraceRing(2 * RESERVE)
    for number in range(200):
        ring.append("sent", bytes(1000), number)
    fit = RESERVE // (HEAD + 1000)
    records, dropped = ring.read()
    assert [each[3] for each in records] == list(range(fit))
    assert dropped == 200 - fit
    ring.append("sent", b"", 300)
    assert [each[3] for each in ring.read()[0]] == [300]


def test_packets_leave_room_for_rare_records():
    """What began and ended is known, however many packets there were between."""
    ring = TraceRing(2 * RESERVE)
    for _ in range(200):
        ring.append("received", bytes(1000))
    for kind in ("lost", "metrics", "dropped"):
        ring.append(kind, bytes(1000))
    before = ring.read()[1]
    assert before > 3
    for _ in range(200):
        ring.append("received", bytes(1000))
    middle = ring.read()[1]
    for _ in range(200):
        ring.append("received", bytes(1000))
    rare = ("started", "key_updated", "parameters", "path", "closed", "ended")
    for kind in rare:
        ring.append(kind, bytes(1000))
    records, after = ring.read()
    assert [each[2] for each in records][-6:] == list(rare)
    assert after - middle == middle - before


def test_the_reserve_is_bounded_too():
    ring = TraceRing(2 * RESERVE)
    for _ in range(200):
        ring.append("closed", bytes(1000))
    assert ring.read()[1] == 200 - 2 * RESERVE // (HEAD + 1000)


def test_a_read_takes_whole_records_only():
    ring = TraceRing()
    for number in range(5):
        ring.append("sent", bytes(60_000), number)
    pieces = [[each[3] for each in ring.read()[0]] for _ in range(4)]
    assert pieces == [[0, 1], [2, 3], [4], []]


def test_the_largest_payload_fits_and_a_larger_one_does_not():
    ring = TraceRing()
    ring.append("sent", bytes(65_535), 1)
    ring.append("sent", bytes(65_536), 2)
    records, dropped = ring.read()
    assert [(each[3], len(each[8])) for each in records] == [(1, 65_535)]
    assert dropped == 1
