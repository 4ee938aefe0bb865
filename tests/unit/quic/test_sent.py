"""The store of sent packets and their records."""

from random import Random

import pytest

from lightning._core.quic.sent import PacketStore


def test_starts_empty_and_without_memory():
    store = PacketStore()
    assert (list(store), len(store), store.capacity, store.records) == ([], 0, 0, 0)
    assert store.drain() == []


def test_keeps_packets_in_order():
    store = PacketStore()
    for pn in (3, 4, 9):
        store.append(pn, ack_eliciting=pn != 4)
    assert list(store) == [3, 4, 9]
    assert (len(store), store.ack_eliciting, store.records) == (3, 2, 3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_removes_from_anywhere(order):
    """The oldest, the newest, one between and the only one; and begins again."""
    store = PacketStore()
    for pn in range(3):
        store.append(pn)
    left = [0, 1, 2]
    for pn in order:
        store.remove(pn)
        left.remove(pn)
        assert list(store) == left
    assert store.drain() == list(order)
    assert (store.records, store.ack_eliciting) == (0, 0)
    store.append(17)
    assert list(store) == [17]
    with pytest.raises(KeyError):
        store.remove(0)


def test_the_ring_grows_by_the_span_of_numbers():
    """It doubles from 16, and never moves a packet that is tracked."""
    store = PacketStore()
    for pn in range(17):
        store.append(pn)
    assert store.capacity == 32
    for pn in range(1, 17):
        store.remove(pn)
    store.append(40)
    assert store.capacity == 64
    store.append(300)
    assert store.capacity == 512
    assert list(store) == [0, 40, 300]


def test_a_moving_window_needs_no_growth():
    store = PacketStore()
    for pn in range(10_000):
        store.append(pn)
        if pn >= 15:
            store.remove(pn - 15)
        store.drain()
    assert store.capacity == 16
    assert len(store) == 15


def test_a_large_ring_is_given_back_once_it_is_empty():
    """Up to 4096 packets are kept; a burst beyond does not hold memory for ever."""
    for span, kept in ((4096, 4096), (4097, 16)):
        store = PacketStore()
        store.append(0)
        store.append(span - 1)
        store.remove(0)
        store.remove(span - 1)
        store.append(span)
        assert store.capacity == kept


def test_survives_low_bits_that_wrap():
    """Numbers are linked by their low 32 bits."""
    store = PacketStore()
    start = 2**32 - 10
    for pn in range(start, start + 40):
        store.append(pn)
    for pn in range(start + 3, start + 30):
        store.remove(pn)
    assert list(store) == [*range(start, start + 3), *range(start + 30, start + 40)]


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_dict(seed):
    """Whatever is appended and removed, order, counts and records agree."""
    random = Random(seed)
    store = PacketStore()
    model = {}
    settled = []
    pn = 0
    for _ in range(3000):
        if random.random() < 0.5 + 0.1 * (len(model) < 50):
            pn += random.choice([1, 1, 1, 2])
            eliciting = random.random() < 0.8
            store.append(pn, ack_eliciting=eliciting)
            model[pn] = eliciting
        elif model:
            gone = random.choice(list(model))
            store.remove(gone)
            del model[gone]
            settled.append(gone)
        if random.random() < 0.1:
            assert store.drain() == settled
            settled = []
    assert list(store) == list(model)
    assert store.ack_eliciting == sum(model.values())
    assert store.records == len(model) + len(settled)


@pytest.mark.parametrize("left", [[], [999], [3, 400, 401], list(range(900, 1000))])
def test_trimming_keeps_what_is_tracked(left):
    """Memory shrinks to what is left; packets, records and their order stay."""
    store = PacketStore()
    for pn in range(1000):
        store.append(pn, ack_eliciting=pn % 2 == 0)
    for pn in range(1000):
        if pn not in left:
            store.remove(pn)
    assert len(store.drain()) == 1000 - len(left)
    store.trim()
    span = left[-1] - left[0] + 1 if left else 0
    assert store.capacity < max(2 * span, 17)
    assert store.slabs == -(-len(left) // 63)
    assert list(store) == left
    assert store.records == len(left)
    assert store.ack_eliciting == sum(pn % 2 == 0 for pn in left)
    store.append(1000)
    for pn in [*left, 1000]:
        store.remove(pn)
    assert store.drain() == [*left, 1000]
    assert store.records == 0


def test_trimming_waits_for_records_that_are_elsewhere():
    """What was settled and not looked at yet is not the store's to move."""
    store = PacketStore()
    for pn in range(200):
        store.append(pn)
    for pn in range(200):
        store.remove(pn)
    slabs, capacity = store.slabs, store.capacity
    store.trim()
    assert (store.slabs, store.capacity) == (slabs, capacity)
    assert store.drain() == list(range(200))
