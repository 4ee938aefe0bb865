"""The search for the datagram size, RFC 8899 and RFC 9000 section 14."""

from random import Random

import pytest

from lightning._core.quic.mtu import MtuSearch

SECOND = 1_000_000


def enabled(maximum=1452, peer_limit=65527):
    search = MtuSearch(maximum)
    search.enable(peer_limit)
    return search


def run(search, carries, now=0):
    """Let a search end on a path that carries so much; return the probed sizes."""
    sizes = []
    while size := search.next_probe(now):
        pn = len(sizes)
        sizes.append(size)
        search.on_probe_sent(pn)
        assert search.next_probe(now) == 0, "one probe at a time"
        if size <= carries:
            search.on_probe_acked(pn, now)
        else:
            search.on_probe_lost(pn, now)
        assert search.current <= carries
        assert len(sizes) < 100
    return sizes


def test_waits_until_it_is_allowed():
    search = MtuSearch()
    assert search.next_probe(0) == 0
    assert search.current == 1200
    search.enable(1472)
    assert search.next_probe(0) == 1452


def test_one_probe_finds_the_usual_maximum():
    search = enabled()
    assert run(search, 1500) == [1452]
    assert search.current == 1452
    assert search.probes_sent == 1


@pytest.mark.parametrize(
    ("maximum", "peer", "ceiling"),
    [(1452, 1472, 1452), (9000, 1472, 1472), (9000, 1000, 1200), (1100, 1472, 1200),
     (70000, 2**62 - 1, 65527)],
)  # fmt: skip
def test_never_looks_above_what_either_side_allows(maximum, peer, ceiling):
    search = enabled(maximum, peer)
    assert search.ceiling == ceiling
    sizes = run(search, 65527)
    assert max(sizes, default=1200) == search.current == ceiling


@pytest.mark.parametrize("carries", [1200, 1219, 1220, 1300, 1337, 1451])
def test_halving_ends_within_a_step(carries):
    """Three lost probes of a size are needed to rule it out (RFC 8899 5.1.2)."""
    search = enabled()
    sizes = run(search, carries)
    assert search.current <= carries < search.current + 21
    for size in sizes:
        assert sizes.count(size) == (3 if size > carries else 1)


@pytest.mark.parametrize(
    ("maximum", "sizes"), [(1220, [1220] * 3), (1221, [1221] * 3 + [1210])]
)
def test_less_than_a_step_is_not_searched_for(maximum, sizes):
    assert run(enabled(maximum), 1219) == sizes


def test_a_large_maximum_takes_few_probes():
    search = enabled(65527)
    sizes = run(search, 8972)
    assert 8952 <= search.current <= 8972
    assert len(sizes) <= 36


def test_two_lost_probes_do_not_rule_a_size_out():
    search = enabled()
    for pn in range(2):
        search.next_probe(0)
        search.on_probe_sent(pn)
        search.on_probe_lost(pn, 0)
    assert run(search, 1500) == [1452]


def test_looks_again_after_ten_minutes():
    """RFC 8899 5.1.1, PMTU_RAISE_TIMER."""
    search = enabled()
    run(search, 1300)
    assert search.next_probe(600 * SECOND - 1) == 0
    assert search.next_probe(600 * SECOND) == 1452
    run(search, 1500, 600 * SECOND)
    assert search.current == 1452
    assert search.next_probe(10_000 * SECOND) == 0, "nothing is left to find"


def test_a_raised_limit_is_looked_for():
    search = enabled(9000, 1472)
    run(search, 9000)
    search.enable(4000)
    assert search.next_probe(0) == 0
    search.reset()
    assert run(search, 9000) == [4000]


def test_answers_about_other_packets_are_ignored():
    """A late acknowledgement of a probe that was given up changes nothing."""
    search = enabled()
    search.next_probe(0)
    search.on_probe_sent(5)
    search.on_probe_acked(4, 0)
    search.on_probe_lost(4, 0)
    assert search.current == 1200
    search.on_probe_lost(5, 0)
    search.on_probe_acked(5, 0)
    assert search.current == 1200


def test_a_refusal_by_the_socket_ends_a_size_at_once():
    search = enabled(9000)
    assert search.next_probe(0) == 9000
    search.on_probe_sent(0)
    search.on_refused(9000, 0)
    assert search.ceiling == 8999
    search.on_probe_lost(0, 0)  # The packet that never left is found lost later.
    assert run(search, 8999)[0] == 5100
    assert search.current > 8979


def test_a_refusal_of_the_size_in_use_falls_back():
    search = enabled()
    run(search, 1500)
    search.on_refused(1452, 7)
    assert search.current == 1200
    assert run(search, 1400, 7)[0] == 1451
    assert 1380 <= search.current <= 1400


@pytest.mark.parametrize("size", [1200, 600, 1453])
def test_other_refusals_say_nothing_of_the_search(size):
    search = enabled()
    run(search, 1500)
    search.on_refused(size, 0)
    assert (search.current, search.ceiling) == (1452, 1452)


def test_a_refusal_below_the_probe_in_flight_narrows_the_search():
    search = enabled(9000)
    search.next_probe(0)
    search.on_probe_sent(0)
    search.on_refused(1300, 0)
    assert max(run(search, 9000)) <= 1299


# Black holes: packets above the base size vanish, smaller ones arrive.


def at_maximum():
    search = enabled()
    run(search, 1500)
    assert search.current == 1452
    return search


def lose(search, numbers, next_pn, now=0):
    return [search.on_large_lost(pn, next_pn, now) for pn in numbers]


def test_a_black_hole_falls_back_and_looks_again_after_a_minute():
    search = at_maximum()
    assert not any(lose(search, [10, 11], 20))
    assert not any(lose(search, [20, 21], 30))
    assert lose(search, [30, 31], 40) == [False, True]
    assert (search.current, search.black_holes) == (1200, 1)
    assert search.next_probe(60 * SECOND - 1) == 0
    assert search.next_probe(60 * SECOND) == 1452
    assert run(search, 1300, 60 * SECOND)
    assert 1280 <= search.current <= 1300


def test_one_burst_of_any_length_is_no_black_hole():
    """A full queue drops many packets in a row."""
    search = at_maximum()
    assert not any(lose(search, range(10, 500), 500))
    assert not any(lose(search, range(500, 900), 900))
    assert search.current == 1452


def test_a_few_lost_packets_are_no_black_hole():
    search = at_maximum()
    for pn in range(10, 60, 10):
        assert lose(search, [pn], pn + 5) == [False]
    assert lose(search, [60], 65) == [True]


def test_a_large_packet_that_arrives_clears_the_suspicion():
    search = at_maximum()
    for start in (10, 20):
        lose(search, range(start, start + 5), start + 10)
    search.on_large_acked(30)
    assert not any(lose(search, range(31, 36), 40))
    assert not any(lose(search, range(41, 46), 50))
    assert any(lose(search, range(51, 56), 60))


def test_an_older_packet_that_arrives_late_clears_nothing():
    search = at_maximum()
    for start in (10, 20):
        lose(search, range(start, start + 5), start + 10)
    search.on_large_acked(9)
    assert any(lose(search, range(30, 35), 40))


def test_losses_before_a_packet_that_arrived_are_ordinary():
    search = at_maximum()
    search.on_large_acked(100)
    for start in range(10, 90, 10):
        assert not any(lose(search, range(start, start + 5), start + 10))
    assert search.current == 1452


def test_at_the_base_size_there_is_no_black_hole():
    search = enabled()
    for start in range(10, 90, 10):
        assert not any(lose(search, range(start, start + 5), start + 10))


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_ordinary_loss_is_no_black_hole(loss):
    """Random loss of large and small packets alike never looks like one, in 2e5."""
    random = Random(4)
    search = at_maximum()
    pn = 100
    for _ in range(20_000):
        window = [(pn + i, random.random() < 0.8) for i in range(10)]
        pn += 10
        gone = {n for n, _ in window if random.random() < loss}
        arrived = [n for n, _ in window if n not in gone]
        for n, large in window:
            if large and n not in gone:
                search.on_large_acked(n)
        for n, large in window:
            if large and n in gone and arrived and n < arrived[-1]:
                assert not search.on_large_lost(n, pn, 0)
    assert search.current == 1452


def test_a_new_path_is_searched_anew():
    """RFC 9000 9.4: nothing that was learnt of the old path is kept but the limits."""
    search = at_maximum()
    search.on_refused(1452, 0)
    search.on_large_acked(1000)
    search.reset()
    assert (search.current, search.ceiling) == (1200, 1452)
    assert run(search, 1500) == [1452]
    for start in (10, 20):
        lose(search, range(start, start + 5), start + 10)
    assert any(lose(search, range(30, 35), 40))
