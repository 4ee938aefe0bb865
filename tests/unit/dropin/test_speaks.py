"""What is remembered of miners, and when they are tried over QUIC again."""

from lightning.dropin import speaks
from lightning.dropin.speaks import FIRST_PAUSE, LONGEST_PAUSE, Speaks, Way

MINER = ("hotkey", "192.0.2.1", 8091)


def known(chance=0.5):
    return Speaks(chance=lambda: chance)


def test_of_a_stranger_nothing_is_known():
    """It is tried over both, and is not remembered for that."""
    book = known()
    assert book.way(MINER, 0.0) is Way.EITHER
    assert len(book) == 0


def test_who_spoke_quic_is_asked_over_quic():
    """As often as it is asked."""
    book = known()
    book.spoke_quic(MINER)
    book.spoke_quic(MINER)
    assert book.way(MINER, 0.0) is Way.QUIC
    assert book.way(MINER, 1e9) is Way.QUIC


def test_who_spoke_http_is_dialled_by_one_request_at_a_time():
    """After a minute, and then after twice as long each time, up to an hour."""
    book = known()
    now = 1000.0
    book.spoke_http(MINER, now)
    pauses = []
    for _ in range(8):
        begin = now
        while book.way(MINER, now) is Way.HTTP:
            now += 1
        pauses.append(now - begin)
        assert book.way(MINER, now) is Way.HTTP
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert (FIRST_PAUSE, LONGEST_PAUSE) == (60, 3600)


def test_an_answer_over_http_begins_no_new_pause():
    """The pause is counted from the first one."""
    book = known()
    book.spoke_http(MINER, 0.0)
    book.spoke_http(MINER, 59.0)
    assert book.way(MINER, 60.0) is Way.HTTP_AND_DIAL


def test_pauses_are_spread():
    """By a quarter to both sides, so that a fleet is not dialled all at once."""
    soon, late = known(0.0), known(1.0)
    for book in (soon, late):
        book.spoke_http(MINER, 0.0)
    assert soon.way(MINER, 44.9) is Way.HTTP
    assert soon.way(MINER, 45.0) is Way.HTTP_AND_DIAL
    assert late.way(MINER, 74.9) is Way.HTTP
    assert late.way(MINER, 75.0) is Way.HTTP_AND_DIAL


def test_who_spoke_http_and_then_quic_is_asked_over_quic():
    """What is newer counts."""
    book = known()
    book.spoke_http(MINER, 0.0)
    book.spoke_quic(MINER)
    assert book.way(MINER, 1e9) is Way.QUIC


def test_who_spoke_quic_is_tried_over_http_after_two_failures():
    """One is not enough, and a success begins anew."""
    book = known()
    book.spoke_quic(MINER)
    book.failed_quic(MINER)
    assert book.way(MINER, 0.0) is Way.QUIC
    book.spoke_quic(MINER)
    book.failed_quic(MINER)
    assert book.way(MINER, 0.0) is Way.QUIC
    book.failed_quic(MINER)
    assert book.way(MINER, 0.0) is Way.EITHER


def test_failures_of_strangers_are_not_remembered():
    """The next request tries them over both again."""
    book = known()
    book.failed_quic(MINER)
    assert len(book) == 0


def test_who_cannot_be_reached_over_http_is_a_stranger_again():
    """It may have moved on to QUIC in the meantime."""
    book = known()
    book.spoke_http(MINER, 0.0)
    book.failed_http(MINER)
    book.failed_http(MINER)
    assert book.way(MINER, 0.0) is Way.EITHER


def test_another_address_is_another_miner():
    """A miner that moved is asked anew."""
    book = known()
    book.spoke_http(MINER, 0.0)
    assert book.way((MINER[0], "192.0.2.2", 8091), 0.0) is Way.EITHER


def test_who_was_asked_long_ago_is_forgotten_first(monkeypatch):
    """There is an end to what is remembered."""
    monkeypatch.setattr(speaks, "MOST_KNOWN", 3)
    book = known()
    for name in "abc":
        book.spoke_http(name, 0.0)
    assert book.way("a", 0.0) is Way.HTTP
    book.spoke_quic("d")
    assert len(book) == 3
    assert [book.way(name, 0.0) for name in "abcd"] == [
        Way.HTTP,
        Way.EITHER,
        Way.HTTP,
        Way.QUIC,
    ]
    book.clear()
    assert len(book) == 0
