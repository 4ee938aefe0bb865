"""Validation of ECN, RFC 9000 sections 13.4.2 and A.4."""

import pytest

from lightning._core.quic.ecn import EcnPath


def marked(packets=10):
    path = EcnPath()
    assert [path.on_sent() for _ in range(packets)] == [True] * packets
    return path


def test_marks_ten_packets_and_waits():
    """A.4: the test ends after ten packets, and none is marked until it succeeded."""
    path = marked(9)
    assert path.state == "testing"
    assert path.on_sent()
    assert path.state == "unknown"
    assert not path.on_sent()


def test_correct_counts_make_it_capable():
    """Every newly acknowledged mark was counted, as ECT(0) or as CE."""
    path = marked()
    assert path.on_acked(3, (2, 0, 1)) == 1
    assert path.state == "capable"
    assert path.on_sent()
    assert path.on_acked(2, (4, 0, 1)) == 0
    assert path.on_acked(4, (5, 0, 4)) == 3


@pytest.mark.parametrize(
    ("newly", "counts", "why"),
    [
        (1, None, "no counts"),
        (1, (0, 0, 0), "the marks were erased"),
        (4, (3, 0, 0), "one mark was erased"),
        (2, (1, 1, 0), "ECT(1) was never sent"),
        (2, (11, 0, 0), "more than was sent"),
        (2, (5, 0, 6), "more than was sent in all"),
        (2, (0, 0, 2**64 - 1), "more than can be added"),
    ],
)
def test_impossible_counts_end_it(newly, counts, why):
    """13.4.2.1: marking stops for the path."""
    path = marked()
    assert path.on_acked(newly, counts) == 0, why
    assert path.state == "failed", why
    assert not path.on_sent()
    assert path.on_acked(newly, (10, 0, 0)) == 0
    assert path.state == "failed"


@pytest.mark.parametrize("counts", [(4, 0, 2), (5, 0, 1)])
def test_counts_that_fall_end_it(counts):
    path = marked()
    path.on_acked(7, (5, 0, 2))
    path.on_acked(0, counts)
    assert path.state == "failed"


def test_frames_without_marked_packets_prove_nothing():
    path = marked()
    assert path.on_acked(0, None) == 0
    assert path.on_acked(0, (0, 0, 0)) == 0
    assert path.state == "unknown"


def test_the_loss_of_all_marked_packets_ends_it():
    """A.4: the path may drop what is marked."""
    path = marked()
    for _ in range(9):
        path.on_lost()
    assert path.state == "unknown"
    path.on_lost()
    assert path.state == "failed"


def test_losses_during_the_test_are_counted_too():
    path = marked(9)
    for _ in range(9):
        path.on_lost()
    assert path.state == "testing"
    path.on_sent()
    path.on_lost()
    assert path.state == "failed"


def test_losses_do_not_end_a_capable_path():
    path = marked()
    path.on_acked(1, (1, 0, 0))
    for _ in range(12):
        path.on_lost()
    assert path.state == "capable"


def test_can_be_switched_off():
    path = EcnPath(enabled=False)
    assert not path.on_sent()
    assert path.on_acked(0, (5, 0, 5)) == 0
    assert path.state == "failed"
