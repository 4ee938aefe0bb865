"""The memory of lost packets."""

import pytest

from lightning._core.quic.lost import LostPackets


def remembering(*numbers):
    lost = LostPackets()
    for pn in numbers:
        lost.remember(pn, pn)
    return lost


@pytest.mark.parametrize("order", [1, -1])
def test_a_late_packet_is_counted_once_in_either_order_of_the_ranges(order):
    lost = remembering(2, 3, 5, 8, 20)
    ranges = [(0, 3), (4, 6), (7, 8), (9, 10)]
    assert lost.count_spurious(ranges[::order]) == 2
    assert lost.count_spurious(ranges[::order]) == 0
    assert lost.count_spurious([(3, 4)]) == 1
    assert lost.count_spurious([(8, 21)]) == 2


def test_what_was_lost_too_long_ago_is_forgotten():
    lost = remembering(1, 2, 3, 4)
    assert lost.count_spurious([(1, 5)], oldest=3) == 2
    assert len(lost) == 2


def test_the_newest_256_are_kept():
    lost = remembering(*range(300))
    assert len(lost) == 256
    assert lost.count_spurious([(0, 44)]) == 0
    assert lost.count_spurious([(0, 300)]) == 256


def test_it_can_be_cleared_twice_and_used_again():
    lost = remembering(*range(10))
    lost.clear()
    lost.clear()
    assert len(lost) == 0
    assert lost.count_spurious([(0, 10)]) == 0
    lost.remember(7, 7)
    assert lost.count_spurious([(0, 10)]) == 1


def test_the_face_takes_one_to_sixteen_ranges():
    lost = LostPackets()
    for ranges in ([], [(i, i + 1) for i in range(0, 34, 2)]):
        with pytest.raises(ValueError, match="1 to 16"):
            lost.count_spurious(ranges)
