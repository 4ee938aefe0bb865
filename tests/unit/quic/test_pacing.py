"""The pacer, RFC 9002 section 7.7."""

import pytest

from lightning._core.quic.pacing import TokenBucket

MS = 1000
SIZE = 1200


def bucket(cwnd=120_000, rtt=100 * MS, *, now=0, max_burst=0):
    made = TokenBucket(max_burst)
    made.update(cwnd, rtt, SIZE, now)
    return made


def drain(pacer, now, size=SIZE):
    """Send until the pacer says wait; return how many packets, and until when."""
    packets = 0
    while (when := pacer.next_send_time(size, now)) == now:
        pacer.on_sent(size)
        packets += 1
        assert packets < 10_000
    return packets, when


def test_is_off_until_the_path_is_known():
    pacer = TokenBucket()
    assert drain_stops(pacer) is False


def drain_stops(pacer):
    for _ in range(1000):
        if pacer.next_send_time(SIZE, 0) != 0:
            return True
        pacer.on_sent(SIZE)
    return False


@pytest.mark.parametrize(("rtt", "paced"), [(999, False), (1000, True)])
def test_a_path_shorter_than_a_millisecond_is_not_paced(rtt, paced):
    """A timer would cost more than the burst it spreads."""
    assert drain_stops(bucket(1_200_000, rtt)) is paced


def test_leaving_and_entering_pacing_starts_with_a_full_bucket():
    pacer = bucket()
    drain(pacer, 0)
    pacer.update(120_000, 500, SIZE, 0)
    assert pacer.rate == 0
    assert not drain_stops(pacer)
    pacer.update(120_000, 100 * MS, SIZE, 0)
    assert drain(pacer, 0)[0] == 10


def test_the_initial_window_leaves_at_once():
    """Ten packets, whatever the rate (section 7.7)."""
    packets, when = drain(bucket(12_000, 333 * MS), 0)
    assert packets == 10
    assert when > 0


def test_the_rate_is_five_quarters_of_the_window_a_round_trip():
    pacer = bucket(cwnd=120_000, rtt=100 * MS)
    assert pacer.rate == pytest.approx(1.5)
    sent, now = 0, 0
    while now < 1_000 * MS:
        packets, now = drain(pacer, now)
        sent += packets * SIZE
    assert sent == pytest.approx(1.5 * now + pacer.capacity, rel=0.002)


def test_a_long_run_in_small_steps_loses_nothing():
    """Refills a microsecond apart keep fractions of a byte."""
    pacer = bucket(cwnd=12_000, rtt=300 * MS)
    drain(pacer, 0)
    sent = 0
    for now in range(200 * MS):
        if pacer.next_send_time(SIZE, now) == now:
            pacer.on_sent(SIZE)
            sent += SIZE
    assert sent == pytest.approx(pacer.rate * 200 * MS, abs=SIZE + 10)


def test_waiting_until_the_answer_is_enough():
    """The packet may leave at exactly the time that was given, at any rate."""
    for cwnd in (2_400, 12_000, 99_999, 1_234_567, 1 << 30):
        for rtt in (1 * MS, 7_777, 333 * MS, 1 << 30):
            pacer = bucket(cwnd, rtt)
            now = 0
            for _ in range(50):
                packets, when = drain(pacer, now)
                assert packets >= 1
                assert when > now
                now = when


def test_a_pause_is_worth_its_timer():
    """A millisecond, or less if the bucket is full before."""
    slow = bucket(cwnd=1_200_000, rtt=100 * MS)  # 15 bytes a microsecond.
    assert slow.capacity == pytest.approx(30_000)
    _, when = drain(slow, 0)
    assert when == pytest.approx(1 * MS, abs=2)
    assert drain(slow, when)[0] == 12
    fast = bucket(cwnd=20_000_000, rtt=100 * MS)  # 250 bytes a microsecond.
    _, when = drain(fast, 0)
    assert when == pytest.approx(65_536 / 250, abs=8)


def test_a_burst_is_bounded():
    """64 KiB by default, less if asked for, never less than ten packets."""
    assert bucket(1 << 30, 10 * MS).capacity == 65_536
    assert bucket(1 << 30, 10 * MS, max_burst=1 << 30).capacity == 65_536
    assert bucket(1 << 30, 10 * MS, max_burst=20_000).capacity == 20_000
    assert bucket(1 << 30, 10 * MS, max_burst=5_000).capacity == 12_000


def test_more_than_a_bucket_leaves_from_a_full_one():
    """A size above the capacity waits for all tokens and then overdraws."""
    pacer = bucket()
    assert pacer.next_send_time(50_000, 0) == 0
    pacer.on_sent(50_000)
    when = pacer.next_send_time(50_000, 0)
    assert when == pytest.approx(50_000 / 1.5, abs=2)
    assert pacer.next_send_time(50_000, when) == when


def test_a_change_of_the_window_keeps_what_was_earned():
    pacer = bucket()
    drain(pacer, 0)
    pacer.update(240_000, 100 * MS, SIZE, 4 * MS)  # 6,000 bytes at the old rate.
    assert pacer.rate == pytest.approx(3.0)
    assert drain(pacer, 4 * MS)[0] == 5


def test_a_smaller_bucket_holds_less():
    pacer = bucket(1 << 30, 10 * MS)
    pacer.update(12_000, 10 * MS, SIZE, 0)
    assert drain(pacer, 0)[0] == 10


def test_a_clock_that_steps_back_gives_nothing():
    pacer = bucket(now=10 * MS)
    drain(pacer, 10 * MS)
    assert pacer.next_send_time(SIZE, 5 * MS) > 5 * MS
