"""Loss detection, timers and the hand-back of records, as timelines in virtual time.

Times are microseconds. A record is (kind, id, offset, length, fin) going in and
(kind, space, id, offset, length, fin) coming out.
"""

import pytest

from lightning._core.quic.recovery import LossRecovery

MS = 1000
INITIAL, HANDSHAKE, APPLICATION = range(3)
FRAME_ENCODING_ERROR, PROTOCOL_VIOLATION = 0x07, 0x0A
STREAM, PING = 0, 17
RTT = 100 * MS


def frame(number):
    return (STREAM, number, 7 * number, 100 + number, number % 2 == 1)


def record(number, space=APPLICATION):
    return (STREAM, space, *frame(number)[1:])


def connected(*, rtt=RTT, **options):
    """Make an established client at time 0 with one RTT sample, and nothing sent."""
    r = LossRecovery(**options)
    r.discard_space(INITIAL, -rtt)
    r.discard_space(HANDSHAKE, -rtt)
    r.configure(handshake_confirmed=True)
    r.send(APPLICATION, 1200, -rtt)
    assert r.ack(APPLICATION, [(0, 1)], 0) == 0
    r.drain()
    return r


def send(r, count, now, size=1200, **options):
    """Send packets with a record of their own number; return the first number."""
    first = r.state()["next_pn"][APPLICATION]
    for _ in range(count):
        pn = r.state()["next_pn"][APPLICATION]
        r.send(APPLICATION, size, now, frames=[frame(pn)], **options)
    return first


def numbers(records):
    return [item[2] for item in records]


# Records and bookkeeping


def test_starts_with_nothing():
    r = LossRecovery()
    state = r.state()
    assert state["bytes_in_flight"] == 0
    assert state["room"] == state["cwnd"] == 12_000
    assert state["next_pn"] == [0, 0, 0]
    assert state["capacity"] == [0, 0, 0]
    assert r.drain() == ([], [])


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match="bbr"):
        LossRecovery(algorithm="bbr")  # type: ignore[arg-type]  # The point.


def test_records_come_back_with_their_space_and_operands():
    r = LossRecovery()
    for space in (INITIAL, HANDSHAKE, APPLICATION):
        assert r.send(space, 1200, 0, frames=[frame(1), frame(2), frame(3)]) == 0
        assert r.ack(space, [(0, 1)], RTT) == 0
        assert r.drain() == ([record(i, space) for i in (1, 2, 3)], [])
    assert r.state()["records"] == 0


def test_records_of_an_abandoned_packet_go_nowhere():
    r = connected()
    r.abandon([frame(1), frame(2)])
    assert r.state()["records"] == 0
    first = send(r, 1, 0)
    r.ack(APPLICATION, [(first, first + 1)], RTT)
    assert numbers(r.drain()[0]) == [first]


def test_many_records_are_recycled():
    """More than one slab, in flight at once and over and over."""
    r = connected(initial_window=1 << 20)
    for now in range(0, 5 * RTT, RTT):
        first = send(r, 200, now)
        assert r.state()["records"] == 200
        r.ack(APPLICATION, [(first, first + 200)], now + RTT)
        assert numbers(r.drain()[0]) == list(range(first, first + 200))
    assert r.state()["records"] == 0


def test_initialising_again_starts_over():
    r = connected()
    send(r, 5, 0)
    r.__init__()
    assert r.state()["records"] == 0
    assert r.state()["next_pn"] == [0, 0, 0]


def test_counts_what_is_in_flight():
    """RFC 9002 2: ack-eliciting or padded packets, and no others."""
    r = connected()
    send(r, 1, 0, size=1000)
    send(r, 1, 0, size=100, ack_eliciting=False)
    send(r, 1, 0, size=10, ack_eliciting=False, in_flight=False)
    send(r, 1, 0, size=1, ack_eliciting=True, in_flight=False)
    assert r.state()["bytes_in_flight"] == 1101
    assert [flags for _, _, _, flags in r.tracked(APPLICATION)] == [3, 2, 0, 3]
    assert r.state()["room"] == r.state()["cwnd"] - 1101
    assert r.ack(APPLICATION, [(1, 5)], RTT) == 0
    assert r.state()["bytes_in_flight"] == 0
    assert r.state()["packets_sent"] == 5
    assert r.state()["packets_acked"] == 5


# Acknowledgements


@pytest.mark.parametrize("order", [1, -1])
def test_ranges_may_ascend_or_descend(order):
    r = connected()
    first = send(r, 6, 0)
    ranges = [(first, first + 2), (first + 3, first + 4), (first + 5, first + 6)]
    assert r.ack(APPLICATION, ranges[::order], RTT) == 0
    assert numbers(r.drain()[0]) == [first, first + 1, first + 3, first + 5]


def test_repeated_ranges_return_nothing_twice():
    r = connected()
    first = send(r, 3, 0)
    for _ in range(3):
        assert r.ack(APPLICATION, [(0, first + 3)], RTT) == 0
    assert numbers(r.drain()[0]) == [first, first + 1, first + 2]


@pytest.mark.parametrize(
    "ranges",
    [
        [(4, 5)],
        [(0, 5)],
        [(3, 2**64 - 1)],
        [(2**63, 2**64 - 1), (0, 1)],
        [(0, 1), (4, 5)],
    ],
)
def test_packets_that_were_never_sent_are_a_violation(ranges):
    """RFC 9000 13.1, optimistic acknowledgement; and nothing else happens."""
    r = connected()
    send(r, 3, 0)
    before = r.state(), r.next_timeout()
    assert r.ack(APPLICATION, ranges, RTT) == PROTOCOL_VIOLATION
    assert (r.state(), r.next_timeout()) == before
    assert r.drain() == ([], [])


def test_a_space_that_sent_nothing_is_not_acknowledged():
    assert LossRecovery().ack(INITIAL, [(0, 1)], 0) == PROTOCOL_VIOLATION


@pytest.mark.parametrize("ranges", [[], [(1, 1)], [(2, 1)], [(0, 1), (3, 2)]])
def test_empty_and_inverted_ranges_are_refused(ranges):
    r = connected()
    send(r, 3, 0)
    assert r.ack(APPLICATION, ranges, RTT) == FRAME_ENCODING_ERROR
    assert r.drain() == ([], [])


def test_a_skipped_number_is_a_trap():
    """RFC 9000 21.4: only who did not receive acknowledges it."""
    r = connected()
    r.skip(APPLICATION, 2)
    first = send(r, 4, 0)
    sent = [pn for pn, *_ in r.tracked(APPLICATION)]
    assert sent == [first, first + 1, first + 3, first + 4]
    assert r.ack(APPLICATION, [(first, first + 5)], RTT) == PROTOCOL_VIOLATION
    assert r.ack(APPLICATION, [(first + 2, first + 3)], RTT) == PROTOCOL_VIOLATION
    assert r.drain() == ([], [])
    assert r.ack(APPLICATION, [(first, first + 2), (first + 3, first + 5)], RTT) == 0
    assert numbers(r.drain()[0]) == [first, first + 1, first + 2 + 1, first + 4]
    # It stays a trap after its neighbours are settled.
    assert r.ack(APPLICATION, [(first + 1, first + 4)], RTT) == PROTOCOL_VIOLATION


def test_the_newest_number_may_be_skipped():
    r = connected()
    r.skip(APPLICATION, 1)
    first = send(r, 1, 0)
    assert r.state()["next_pn"][APPLICATION] == first + 2
    assert r.ack(APPLICATION, [(first, first + 2)], RTT) == PROTOCOL_VIOLATION


def test_the_last_four_skipped_numbers_are_remembered():
    r = connected()
    skipped = []
    for _ in range(5):
        r.skip(APPLICATION, 0)
        skipped.append(send(r, 1, 0) + 1)
    assert r.ack(APPLICATION, [(skipped[0], skipped[0] + 1)], RTT) == 0
    for pn in skipped[1:]:
        assert r.ack(APPLICATION, [(pn, pn + 1)], RTT) == PROTOCOL_VIOLATION


# RTT samples


def test_the_largest_acknowledged_packet_gives_the_sample():
    """RFC 9002 5.1: if it is new, and something new is ack-eliciting."""
    r = connected()
    first = send(r, 2, 0)
    send(r, 1, 30 * MS)
    r.ack(APPLICATION, [(first, first + 3)], 130 * MS)
    assert r.state()["latest_rtt"] == 100 * MS
    send(r, 1, 200 * MS)
    r.ack(APPLICATION, [(first + 3, first + 4)], 290 * MS)
    assert r.state()["latest_rtt"] == 90 * MS
    # The largest is not new.
    send(r, 1, 300 * MS)
    send(r, 1, 300 * MS)
    r.ack(APPLICATION, [(first + 5, first + 6)], 380 * MS)
    r.ack(APPLICATION, [(first + 4, first + 6)], 395 * MS)
    assert r.state()["latest_rtt"] == 80 * MS
    # Nothing ack-eliciting.
    send(r, 1, 400 * MS, ack_eliciting=False)
    r.ack(APPLICATION, [(first + 6, first + 7)], 470 * MS)
    assert r.state()["latest_rtt"] == 80 * MS
    # The largest is not ack-eliciting itself, but another one is.
    send(r, 1, 500 * MS)
    send(r, 1, 500 * MS, ack_eliciting=False)
    r.ack(APPLICATION, [(first + 7, first + 9)], 570 * MS)
    assert r.state()["latest_rtt"] == 70 * MS


@pytest.mark.parametrize(
    ("space", "confirmed", "subtracted"),
    [(INITIAL, False, 0), (HANDSHAKE, False, 40), (APPLICATION, False, 40),
     (APPLICATION, True, 25)],
)  # fmt: skip
def test_the_acknowledgement_delay(space, confirmed, subtracted):
    """RFC 9002 5.3: not of Initials, and bounded by max_ack_delay once confirmed."""
    r = LossRecovery()
    r.configure(handshake_confirmed=confirmed)
    r.send(space, 1200, 0)
    r.ack(space, [(0, 1)], RTT)
    r.send(space, 1200, RTT)
    r.ack(space, [(1, 2)], RTT + 160 * MS, ack_delay=40 * MS)
    expected = (7 * RTT + (160 - subtracted) * MS) // 8
    assert r.state()["smoothed_rtt"] == expected


# Loss


def test_three_later_packets_make_a_loss():
    """RFC 9002 6.1.1."""
    r = connected()
    first = send(r, 5, 0)
    r.ack(APPLICATION, [(first + 2, first + 3)], RTT)
    assert r.drain() == ([record(first + 2)], [])
    r.ack(APPLICATION, [(first + 3, first + 4)], RTT)
    assert r.drain() == ([record(first + 3)], [record(first)])
    r.ack(APPLICATION, [(first + 4, first + 5)], RTT)
    assert r.drain() == ([record(first + 4)], [record(first + 1)])
    state = r.state()
    assert (state["packets_lost"], state["bytes_lost"]) == (2, 2400)
    assert state["bytes_in_flight"] == 0
    assert state["congestion_events"] == 1


def test_nine_eighths_of_the_rtt_make_a_loss():
    """RFC 9002 6.1.2: by a timer, for the last packets have none behind them."""
    r = connected()
    first = send(r, 2, 0)
    r.ack(APPLICATION, [(first + 1, first + 2)], RTT)
    r.drain()
    due = RTT * 9 // 8
    assert r.next_timeout() == due
    assert r.on_timeout(due - 1) == "none"
    assert r.drain() == ([], [])
    assert r.on_timeout(due) == "loss"
    assert r.drain() == ([], [record(first)])
    assert r.next_timeout() is None
    assert r.state()["timeouts"] == 0


def test_the_loss_delay_is_a_millisecond_at_least():
    r = connected(rtt=60)
    first = send(r, 2, 0)
    r.ack(APPLICATION, [(first + 1, first + 2)], 60)
    assert r.next_timeout() == MS


def test_old_packets_are_lost_with_the_acknowledgement():
    r = connected()
    first = send(r, 1, 0)
    send(r, 1, 20 * MS)
    r.ack(APPLICATION, [(first + 1, first + 2)], 20 * MS + RTT)
    assert numbers(r.drain()[1]) == [first]


def test_nothing_newer_than_the_largest_acknowledged_is_lost():
    r = connected()
    first = send(r, 3, 0)
    r.ack(APPLICATION, [(first, first + 1)], 50 * RTT)
    assert r.drain()[1] == []


def test_no_timer_waits_for_a_packet_of_acknowledgements():
    """It takes part in nothing, and is dropped when later ones are acknowledged."""
    r = connected()
    first = send(r, 1, 0, ack_eliciting=False, in_flight=False)
    send(r, 2, 0)
    r.ack(APPLICATION, [(first + 2, first + 3)], RTT)
    due = RTT * 9 // 8
    assert r.next_timeout() == due, "for the packet between"
    r.on_timeout(due)
    assert numbers(r.drain()[1]) == [first, first + 1]
    assert r.state()["packets_lost"] == 1
    send(r, 1, due, ack_eliciting=False, in_flight=False)
    send(r, 1, due)
    r.ack(APPLICATION, [(first + 4, first + 5)], due + RTT)
    assert r.next_timeout() is None
    assert r.state()["tracked"][APPLICATION] == 1


def test_a_lost_packet_that_arrives_late_is_a_spurious_loss():
    r = connected()
    first = send(r, 8, 0)
    r.ack(APPLICATION, [(first + 5, first + 8)], RTT)
    assert numbers(r.drain()[1]) == [first + i for i in range(5)]
    r.ack(APPLICATION, [(first + 1, first + 2), (first + 3, first + 8)], RTT)
    assert r.state()["spurious_losses"] == 3
    r.ack(APPLICATION, [(first + 3, first + 8), (first, first + 2)], RTT)
    assert r.state()["spurious_losses"] == 4
    assert r.drain() == ([], [])


def test_a_lost_packet_is_forgotten_after_three_ptos():
    for late, spurious in ((0, 1), (1, 0)):
        r = connected()
        first = send(r, 4, 0)
        r.ack(APPLICATION, [(first + 3, first + 4)], RTT)
        assert len(r.drain()[1]) == 1
        now = RTT + 3 * r.pto(INITIAL) + late
        r.ack(APPLICATION, [(first, first + 1)], now)
        assert r.state()["spurious_losses"] == spurious


def test_the_newest_256_lost_packets_are_remembered():
    r = connected(initial_window=1 << 20)
    first = send(r, 303, 0)
    r.ack(APPLICATION, [(first + 302, first + 303)], RTT)
    assert len(r.drain()[1]) == 300
    r.ack(APPLICATION, [(first, first + 303)], RTT)
    assert r.state()["spurious_losses"] == 256


def test_the_span_of_packet_numbers_is_bounded():
    """The oldest packet is given up, without a congestion event."""
    r = connected(initial_window=1 << 30)
    first = send(r, 1, 0)
    for _ in range(16_383):
        r.send(APPLICATION, 40, 0)
    assert r.drain() == ([], [])
    r.send(APPLICATION, 40, 0)
    assert r.drain() == ([], [record(first)])
    state = r.state()
    assert state["tracked"][APPLICATION] == state["capacity"][APPLICATION] == 16_384
    assert state["bytes_in_flight"] == 40 * 16_384
    assert (state["packets_lost"], state["congestion_events"]) == (1, 0)


def test_a_peer_that_never_answers_does_not_pin_memory():
    """It may ping us for ever; our acknowledgements are followed up to a number."""
    r = connected()
    first = send(r, 1, 0)
    send(r, 5000, 0, ack_eliciting=False, in_flight=False)
    state = r.state()
    assert state["tracked"][APPLICATION] == 513
    assert state["capacity"][APPLICATION] == 1024
    # Nobody asks for what is lost before there is an acknowledgement or a timeout.
    assert r.state()["records"] == 513
    assert r.drain()[1] == []
    pn = send(r, 1, 0)
    assert r.ack(APPLICATION, [(first + 10, pn + 1)], RTT) == 0
    assert numbers(r.drain()[0]) == [*range(first + 10, first + 513), pn]
    assert r.state()["tracked"][APPLICATION] == 0


# Congestion


def test_the_window_grows_by_packets_that_filled_it():
    """RFC 9002 7.8: an application that sends little does not earn a window."""
    r = connected()
    for now in range(0, 40 * RTT, RTT):
        first = send(r, 4, now)  # 4800 of 12000 bytes.
        r.ack(APPLICATION, [(first, first + 4)], now + RTT)
    assert r.state()["cwnd"] == 12_000
    first = send(r, 7, 50 * RTT)
    r.ack(APPLICATION, [(first, first + 7)], 51 * RTT)
    assert r.state()["cwnd"] == 12_000 + 7 * 1200


def test_a_loss_halves_the_window_once_a_round_trip():
    r = connected()
    first = send(r, 10, 0)
    r.ack(APPLICATION, [(first + 4, first + 5)], RTT)
    r.ack(APPLICATION, [(first + 9, first + 10)], RTT + 1)
    assert r.state()["congestion_events"] == 1
    # What was sent before the cut grows nothing.
    assert r.state()["cwnd"] == 6000
    first = send(r, 5, 2 * RTT)
    r.ack(APPLICATION, [(first + 3, first + 4)], 3 * RTT)
    assert r.state()["congestion_events"] == 2


def test_an_acknowledgement_that_reports_a_loss_grows_nothing():
    r = connected()
    first = send(r, 10, 0)
    r.ack(APPLICATION, [(first + 1, first + 10)], RTT)
    assert r.state()["cwnd"] == 6000
    first = send(r, 5, 2 * RTT)
    r.ack(APPLICATION, [(first, first + 4)], 3 * RTT)
    assert r.state()["cwnd"] == 6000, "nothing was kept of the growth either"


def test_the_loss_of_a_padded_packet_counts_and_that_of_acknowledgements_does_not():
    for in_flight, events in ((True, 1), (False, 0)):
        r = connected()
        first = send(r, 1, 0, ack_eliciting=False, in_flight=in_flight)
        send(r, 3, 0)
        r.ack(APPLICATION, [(first + 1, first + 4)], RTT)
        assert len(r.drain()[1]) == 1
        assert r.state()["congestion_events"] == events


def outage(r, times, *, skip_at=None):
    """Lose packets sent at the given times, and have a last one acknowledged."""
    first = r.state()["next_pn"][APPLICATION]
    for i, now in enumerate(times):
        if i == skip_at:
            r.skip(APPLICATION, 1)
        r.send(APPLICATION, 1200, now)
    end = times[-1] + 10 * RTT
    pn = r.send(APPLICATION, 1200, end)
    r.ack(APPLICATION, [(pn, pn + 1)], end + RTT)
    assert r.state()["tracked"][APPLICATION] == 0
    return first


# With an RTT of 100 ms and a variance of 50 ms before the last sample, 37.5 ms after:
# 3 * (100 + 4 * 37.5 + 25) ms.
PERSISTENT = 825 * MS


def test_persistent_congestion():
    """RFC 9002 7.6: two ack-eliciting packets further apart than three PTOs."""
    for apart, events in ((PERSISTENT, 0), (PERSISTENT + 1, 1)):
        r = connected()
        outage(r, [RTT, RTT + apart])
        state = r.state()
        assert state["persistent_events"] == events
        assert state["cwnd"] == (2400 if events else 6000)


def test_persistent_congestion_over_a_skipped_number():
    r = connected()
    outage(r, [RTT, 2 * RTT, RTT + PERSISTENT + 1], skip_at=1)
    assert r.state()["persistent_events"] == 1


def test_persistent_congestion_over_two_detections():
    """Most are lost by count with the acknowledgement, the last ones by the timer."""
    r = connected()
    for now in (RTT, 2 * RTT):
        r.send(APPLICATION, 1200, now)
    late = RTT + PERSISTENT + 1
    r.send(APPLICATION, 1200, late)
    pn = r.send(APPLICATION, 1200, late)
    r.ack(APPLICATION, [(pn, pn + 1)], late + RTT)
    assert r.state()["persistent_events"] == 0
    assert r.on_timeout(r.next_timeout()) == "loss"
    assert r.state()["persistent_events"] == 1
    assert r.state()["cwnd"] == 2400


def test_a_packet_that_arrived_between_ends_the_run():
    r = connected()
    first = r.send(APPLICATION, 1200, RTT)
    r.send(APPLICATION, 1200, 3 * RTT)
    r.ack(APPLICATION, [(first + 1, first + 2)], 4 * RTT)
    outage(r, [RTT + PERSISTENT + MS])
    assert r.state()["persistent_events"] == 0


def test_the_ends_of_the_run_are_ack_eliciting():
    r = connected()
    r.send(APPLICATION, 1200, RTT, ack_eliciting=False)
    r.send(APPLICATION, 1200, 2 * RTT)
    outage(r, [RTT + PERSISTENT + MS])
    assert r.state()["persistent_events"] == 0


def test_packets_before_the_first_sample_prove_nothing():
    """RFC 9002 7.6.2: the durations were not yet known."""
    r = LossRecovery()
    r.configure(handshake_confirmed=True)
    r.discard_space(INITIAL, 0)
    r.discard_space(HANDSHAKE, 0)
    outage(r, [0, 100 * RTT])
    assert r.state()["persistent_events"] == 0


def test_persistent_congestion_renews_the_minimum_rtt():
    """RFC 9002 5.2: the path may have changed."""
    r = connected()
    r.send(APPLICATION, 1200, RTT)
    r.send(APPLICATION, 1200, RTT + 2 * PERSISTENT)
    pn = r.send(APPLICATION, 1200, 30 * RTT)
    r.ack(APPLICATION, [(pn, pn + 1)], 33 * RTT)
    assert r.state()["persistent_events"] == 1
    assert r.state()["min_rtt"] == 3 * RTT


def test_a_busy_path_reaches_its_window_with_cubic_too():
    r = connected(algorithm="cubic", hystart=True)
    now = 0
    for _ in range(5):
        count = r.state()["room"] // 1200
        first = send(r, count, now)
        now += RTT
        r.ack(APPLICATION, [(first, first + count)], now)
        r.drain()
    assert r.state()["cwnd"] == 12_000 * 32
    first = send(r, 4, now)
    r.ack(APPLICATION, [(first + 3, first + 4)], now + RTT)
    assert r.state()["cwnd"] == int(12_000 * 32 * 0.7)


# The probe timeout

INITIAL_PTO = 999 * MS  # of an initial RTT of 333 ms


def test_the_probe_timeout_backs_off():
    """RFC 9002 6.2.1: srtt + 4 * rttvar + max_ack_delay, doubled each time."""
    r = connected()
    pto = 100 * MS + 4 * 50 * MS + 25 * MS
    first = send(r, 1, 0)
    assert r.pto(APPLICATION) == pto
    now = 0
    for count in range(6):
        assert r.next_timeout() == now + (pto << count)
        now = r.next_timeout()
        assert r.on_timeout(now - 1) == "none"
        assert r.on_timeout(now) == "probe"
        state = r.state()
        assert state["pto_count"] == count + 1
        assert state["probes"] == [0, 0, 2]
        first = send(r, 2, now)
        assert r.state()["probes"] == [0, 0, 0]
    assert r.state()["timeouts"] == 6
    r.ack(APPLICATION, [(first, first + 1)], now + RTT)
    assert r.state()["pto_count"] == 0


def test_the_back_off_is_bounded():
    """However often it fires, the deadline stays a number."""
    r = connected()
    send(r, 1, 0)
    for _ in range(40):
        r.on_timeout(r.next_timeout())
    assert r.state()["pto_count"] == 40
    assert r.next_timeout() < 2**62


def test_the_timer_runs_from_the_last_ack_eliciting_packet():
    r = connected()
    send(r, 1, 0)
    send(r, 1, 30 * MS)
    send(r, 1, 60 * MS, ack_eliciting=False)
    assert r.next_timeout() == 30 * MS + r.pto(APPLICATION)


def test_an_early_loss_timer_precedes_the_probe_timeout():
    r = connected()
    first = send(r, 3, 0)
    r.ack(APPLICATION, [(first + 1, first + 2)], RTT)
    assert r.next_timeout() == RTT * 9 // 8
    r.on_timeout(RTT * 9 // 8)
    assert r.next_timeout() == r.pto(APPLICATION)


def test_probes_carry_the_oldest_frames():
    """RFC 9002 6.2.4; the packets stay in flight, and their records come once."""
    r = connected()
    first = send(r, 1, 0, ack_eliciting=False, in_flight=False)
    r.send(APPLICATION, 40, 0)
    send(r, 3, 0)
    r.on_timeout(r.next_timeout())
    assert r.drain() == ([], [record(first + 2), record(first + 3)])
    assert r.state()["bytes_in_flight"] == 3640
    assert r.state()["packets_lost"] == 0
    r.ack(APPLICATION, [(first, first + 5)], 10 * RTT)
    assert r.drain() == ([record(first), record(first + 4)], [])


def test_an_acknowledgement_cancels_probes():
    r = connected()
    first = send(r, 2, 0)
    r.on_timeout(r.next_timeout())
    r.ack(APPLICATION, [(first, first + 1)], 10 * RTT)
    assert r.state()["probes"] == [0, 0, 0]


def test_a_probe_that_is_held_back_does_not_leave_the_timer_in_the_past():
    r = connected()
    send(r, 1, 0)
    late = 100 * r.next_timeout()
    assert r.on_timeout(late) == "probe"
    assert r.next_timeout() == late + 2 * r.pto(APPLICATION)


def test_an_idle_connection_has_no_timer():
    r = connected()
    assert r.next_timeout() is None
    send(r, 1, 0, ack_eliciting=False)
    assert r.next_timeout() is None
    assert r.on_timeout(10**12) == "none"


# The handshake


def test_application_data_waits_for_the_confirmation():
    """RFC 9002 6.2.1: without it the peer may not be able to read the data."""
    r = LossRecovery(is_client=False)
    r.send(APPLICATION, 1200, 0)
    assert r.next_timeout() is None
    r.configure(handshake_confirmed=True)
    assert r.next_timeout() == INITIAL_PTO + 25 * MS
    r.configure(max_ack_delay=40 * MS)
    assert r.next_timeout() == INITIAL_PTO + 40 * MS


def test_handshake_spaces_do_not_count_the_acknowledgement_delay():
    r = LossRecovery(is_client=False)
    r.send(INITIAL, 1200, 0)
    r.send(HANDSHAKE, 1200, 5)
    assert r.next_timeout() == INITIAL_PTO
    assert r.on_timeout(INITIAL_PTO) == "probe"
    # One for the other space too: the peer may have the keys of one of them only.
    assert r.state()["probes"] == [2, 1, 0]


def test_the_space_that_is_due_first_gets_two_probes():
    r = LossRecovery(is_client=False)
    r.send(HANDSHAKE, 1200, 0)
    r.send(INITIAL, 1200, 5, frames=[frame(1)])
    r.on_timeout(r.next_timeout())
    assert r.state()["probes"] == [1, 2, 0]
    assert r.drain() == ([], [record(1, INITIAL)])


def test_a_client_probes_against_the_deadlock():
    """RFC 9002 6.2.2.1: the server may have run out of what it may send."""
    r = LossRecovery()
    r.send(INITIAL, 1200, 0)
    r.ack(INITIAL, [(0, 1)], RTT)
    pto = RTT + 4 * RTT // 2
    assert r.next_timeout() == RTT + pto
    assert r.on_timeout(RTT + pto) == "probe"
    assert r.state()["probes"] == [1, 0, 0]
    assert r.next_timeout() == RTT + pto + 2 * pto
    r.configure(has_handshake_keys=True)
    assert r.on_timeout(r.next_timeout()) == "probe"
    assert r.state()["probes"] == [1, 1, 0]


def test_a_client_backs_off_until_its_server_is_known_to_be_validated():
    """RFC 9002 6.2.1: acknowledged Initials alone do not reset the count."""
    r = LossRecovery()
    r.send(INITIAL, 1200, 0)
    r.on_timeout(r.next_timeout())
    r.send(INITIAL, 1200, INITIAL_PTO)
    r.ack(INITIAL, [(1, 2)], INITIAL_PTO + RTT)
    assert r.state()["pto_count"] == 1
    r.send(HANDSHAKE, 1200, 2000 * MS)
    r.ack(HANDSHAKE, [(0, 1)], 2000 * MS + RTT)
    assert r.state()["pto_count"] == 0
    assert r.next_timeout() is None


def test_a_server_resets_its_back_off_at_once():
    r = LossRecovery(is_client=False)
    assert r.next_timeout() is None
    r.send(INITIAL, 1200, 0)
    r.on_timeout(r.next_timeout())
    r.ack(INITIAL, [(0, 1)], INITIAL_PTO + RTT)
    assert r.state()["pto_count"] == 0
    assert r.next_timeout() is None


def test_a_server_at_its_amplification_limit_waits():
    """RFC 9002 6.2.2.1: what it cannot send it does not time."""
    r = LossRecovery(is_client=False)
    r.send(INITIAL, 1200, 0)
    r.configure(blocked=True)
    assert r.next_timeout() is None
    assert r.on_timeout(10 * INITIAL_PTO) == "none"
    r.configure(blocked=False)
    assert r.on_timeout(10 * INITIAL_PTO) == "probe"


def test_a_discarded_space_takes_everything_along():
    """RFC 9002 6.4: bytes in flight, records, timers and the back-off."""
    r = LossRecovery(is_client=False)
    r.send(INITIAL, 1200, 0, frames=[frame(1), frame(2)])
    r.send(INITIAL, 100, 0, ack_eliciting=False, in_flight=False)
    r.send(HANDSHAKE, 1000, 0, frames=[frame(3)])
    r.on_timeout(r.next_timeout())
    r.drain()
    r.discard_space(INITIAL, INITIAL_PTO)
    state = r.state()
    assert state["bytes_in_flight"] == 1000
    assert state["pto_count"] == 0
    assert state["probes"] == [0, 1, 0]
    assert state["tracked"] == [0, 1, 0]
    assert r.next_timeout() == 2 * INITIAL_PTO
    r.discard_space(HANDSHAKE, INITIAL_PTO)
    assert r.state()["records"] == 0
    assert r.drain() == ([], [])
    assert r.next_timeout() is None


def test_a_discarded_space_takes_its_loss_timer_along():
    r = LossRecovery(is_client=False)
    for now in (0, 10):
        r.send(INITIAL, 1200, now)
    r.ack(INITIAL, [(1, 2)], RTT)
    assert r.next_timeout() is not None
    r.discard_space(INITIAL, RTT)
    assert r.next_timeout() is None


def test_a_client_without_a_validated_server_keeps_a_timer_after_discarding():
    r = LossRecovery()
    r.send(INITIAL, 1200, 0)
    r.configure(has_handshake_keys=True)
    r.discard_space(INITIAL, 7)
    assert r.next_timeout() == 7 + INITIAL_PTO
    r.on_timeout(r.next_timeout())
    assert r.state()["probes"] == [0, 1, 0]


def test_a_retry_starts_over_with_an_estimate():
    """RFC 9002 6.3: frames are sent again, numbers go on, the time is the RTT."""
    r = LossRecovery()
    r.send(INITIAL, 1200, 0, frames=[frame(1)])
    r.send(INITIAL, 1200, 10, ack_eliciting=False, in_flight=False)
    r.on_retry(40 * MS)
    assert r.drain() == ([], [record(1, INITIAL)])
    state = r.state()
    assert state["bytes_in_flight"] == 0
    assert state["smoothed_rtt"] == 40 * MS
    assert state["next_pn"] == [2, 0, 0]
    assert state["congestion_events"] == 0
    assert r.next_timeout() == 40 * MS + 120 * MS
    r.send(INITIAL, 1200, 41 * MS)
    r.ack(INITIAL, [(2, 3)], 91 * MS)
    assert r.state()["smoothed_rtt"] == 50 * MS


def test_a_retry_after_a_probe_gives_no_estimate():
    """Which of the packets it answers is not known."""
    r = LossRecovery()
    r.send(INITIAL, 1200, 0)
    r.on_timeout(r.next_timeout())
    r.on_retry(INITIAL_PTO + 40 * MS)
    assert r.state()["smoothed_rtt"] == 333 * MS
    assert r.state()["pto_count"] == 0
    r.on_retry(INITIAL_PTO + 50 * MS)
    assert r.state()["smoothed_rtt"] == 333 * MS


# A new path


def test_a_new_path_starts_over():
    """RFC 9000 9.4; packets of the old path are followed, but teach nothing."""
    r = connected()
    r.enable_mtu(65_527)
    first = send(r, 5, 0)
    r.on_timeout(r.next_timeout())
    r.drain()
    r.on_path_change(RTT)
    state = r.state()
    assert state["bytes_in_flight"] == 0
    assert state["smoothed_rtt"] == 333 * MS
    assert state["pto_count"] == 0
    assert state["cwnd"] == 12_000
    assert r.next_timeout() is not None
    r.ack(APPLICATION, [(first + 4, first + 5)], 2 * RTT)
    state = r.state()
    assert state["latest_rtt"] == 0
    assert state["cwnd"] == 12_000
    assert state["congestion_events"] == 0
    acked, lost = r.drain()
    assert (numbers(acked), numbers(lost)) == ([first + 4], [])
    send(r, 1, 3 * RTT)
    r.ack(APPLICATION, [(first + 5, first + 6)], 4 * RTT)
    assert r.state()["latest_rtt"] == RTT
    # Frames of 0 and 1 went back at the timeout.
    assert numbers(r.drain()[1]) == [first + 2, first + 3]
    assert r.state()["congestion_events"] == 0


def test_packets_that_prove_a_path_are_not_followed():
    """RFC 9000 9.4: their loss is no congestion, and their answers give no sample."""
    r = connected()
    numbers = [r.path_probe_sent() for _ in range(3)]
    assert r.next_timeout() is None
    last = send(r, 1, RTT)
    assert last == numbers[-1] + 1
    before = r.state()
    assert before["bytes_in_flight"] > 0
    assert r.ack(APPLICATION, [(numbers[0], numbers[-1] + 1)], 3 * RTT) == 0
    assert r.state()["latest_rtt"] == before["latest_rtt"]
    assert r.ack(APPLICATION, [(last, last + 1)], 3 * RTT) == 0
    assert r.state()["packets_lost"] == 0


def test_a_number_may_be_skipped_after_a_packet_that_proves_a_path():
    r = connected()
    r.skip(APPLICATION, 0)
    first = r.path_probe_sent()
    assert r.path_probe_sent() == first + 2
    assert r.ack(APPLICATION, [(first + 1, first + 2)], RTT) == PROTOCOL_VIOLATION


def test_packets_of_the_old_path_are_still_timed():
    r = connected()
    first = send(r, 2, 0)
    r.on_path_change(0)
    r.ack(APPLICATION, [(first + 1, first + 2)], RTT)
    assert r.next_timeout() == 333 * MS * 9 // 8
    assert r.on_timeout(r.next_timeout()) == "loss"
    assert numbers(r.drain()[1]) == [first]
    assert r.state()["packets_lost"] == 0


# ECN


def test_a_congestion_mark_is_a_congestion_event():
    """RFC 9002 7.1; the largest newly acknowledged packet says when."""
    r = connected(ecn=True)
    assert r.state()["marks_ecn"]
    first = send(r, 8, 0, ect0=True)
    r.ack(APPLICATION, [(first, first + 4)], RTT, ecn=(4, 0, 0))
    state = r.state()
    assert (state["ecn"], state["cwnd"]) == ("capable", 12_000 + 4 * 1200)
    r.ack(APPLICATION, [(first, first + 8)], RTT, ecn=(7, 0, 1))
    state = r.state()
    assert (state["ecn_ce"], state["congestion_events"]) == (1, 1)
    assert state["cwnd"] == (12_000 + 4 * 1200) // 2
    send(r, 1, RTT)
    r.ack(APPLICATION, [(first + 8, first + 9)], 2 * RTT, ecn=(7, 0, 1))
    assert r.state()["congestion_events"] == 1


def test_a_path_that_erases_marks_is_not_marked():
    r = connected(ecn=True)
    first = send(r, 1, 0, ect0=True)
    r.ack(APPLICATION, [(first, first + 1)], RTT)
    assert (r.state()["ecn"], r.state()["marks_ecn"]) == ("failed", False)


def test_reordered_frames_are_not_judged():
    """RFC 9000 13.4.2.1: their counts are old."""
    r = connected(ecn=True)
    first = send(r, 4, 0, ect0=True)
    r.ack(APPLICATION, [(first + 2, first + 4)], RTT, ecn=(2, 0, 0))
    r.ack(APPLICATION, [(first, first + 2)], RTT, ecn=(0, 0, 0))
    assert r.state()["ecn"] == "capable"


def test_the_loss_of_all_marked_packets_ends_marking_until_a_new_path():
    r = connected(ecn=True)
    first = send(r, 10, 0, ect0=True)
    send(r, 3, 0)
    r.ack(APPLICATION, [(first + 12, first + 13)], RTT)
    assert r.state()["ecn"] == "failed"
    r.on_path_change(RTT)
    assert r.state()["ecn"] == "testing"


def test_marks_can_be_switched_off():
    r = connected()
    assert not r.state()["marks_ecn"]
    r.on_path_change(0)
    assert not r.state()["marks_ecn"]


# The datagram size


def probed(**options):
    r = connected(max_datagram=1452, **options)
    r.enable_mtu(65_527)
    return r


def test_an_acknowledged_probe_raises_the_datagram_size():
    r = probed()
    size = r.next_mtu_probe(0)
    assert size == 1452
    pn = r.send(APPLICATION, size, 0, mtu_probe=True)
    assert r.next_mtu_probe(0) == 0
    assert r.datagram_size(APPLICATION) == 1200
    r.ack(APPLICATION, [(pn, pn + 1)], RTT)
    assert r.datagram_size(APPLICATION) == 1452
    assert r.state()["max_datagram"] == 1452


def test_a_lost_probe_is_no_congestion():
    """RFC 9000 14.4; after three the search goes below."""
    r = probed()
    now = 0
    for _ in range(3):
        assert r.next_mtu_probe(now) == 1452
        first = r.send(APPLICATION, 1452, now, mtu_probe=True)
        send(r, 3, now)
        now += RTT
        r.ack(APPLICATION, [(first + 1, first + 4)], now)
        assert r.drain()[1] == []
    state = r.state()
    assert (state["congestion_events"], state["bytes_in_flight"]) == (0, 0)
    assert state["mtu"] == 1200
    assert r.next_mtu_probe(now) == 1326


def test_a_probe_does_not_bound_persistent_congestion():
    r = probed()
    r.send(APPLICATION, 1452, RTT, mtu_probe=True)
    r.send(APPLICATION, 1200, 2 * RTT)
    outage(r, [RTT + PERSISTENT + MS])
    assert r.state()["persistent_events"] == 0


def test_a_probe_is_not_repeated_by_the_timer():
    r = probed()
    r.send(APPLICATION, 1452, 0, mtu_probe=True, frames=[(PING, 0, 0, 0, False)])
    assert r.on_timeout(r.next_timeout()) == "probe"
    assert r.drain() == ([], [])


def test_a_probe_that_is_given_up_lets_the_search_go_on():
    r = probed(initial_window=1 << 30)
    r.send(APPLICATION, r.next_mtu_probe(0), 0, mtu_probe=True)
    for _ in range(16_384):
        r.send(APPLICATION, 40, 0)
    assert r.next_mtu_probe(0) == 1452


def raised():
    r = probed(initial_window=1 << 20)
    pn = r.send(APPLICATION, r.next_mtu_probe(-RTT), -RTT, mtu_probe=True)
    r.ack(APPLICATION, [(pn, pn + 1)], 0)
    assert r.state()["mtu"] == 1452
    return r


@pytest.mark.parametrize("large", [2, 3])
def test_a_black_hole_is_found_by_its_probes(large):
    """Large packets vanish; the probes of each timeout are small and arrive.

    Two large packets a time are found lost by the timer, three with the ACK frame.
    """
    r = raised()
    now = 0
    rounds = 0
    while r.state()["mtu"] == 1452:
        send(r, large, now, size=r.datagram_size(APPLICATION))
        now = r.next_timeout()
        assert r.on_timeout(now) == "probe"
        assert r.datagram_size(APPLICATION) == 1200
        pn = send(r, 2, now, size=r.datagram_size(APPLICATION))
        now += RTT
        r.ack(APPLICATION, [(pn, pn + 2)], now)
        while (due := r.next_timeout()) is not None:
            now = due
            r.on_timeout(now)
        rounds += 1
        assert rounds <= 3
    state = r.state()
    assert (state["mtu"], state["max_datagram"], state["black_holes"]) == (
        1200,
        1200,
        1,
    )
    assert r.next_mtu_probe(now) == 0
    assert r.next_mtu_probe(now + 60_000 * MS) == 1452


def test_an_outage_is_no_black_hole():
    """Nothing arrives of any size; afterwards the large ones do."""
    r = raised()
    now = 0
    for _ in range(5):
        send(r, 3, now, size=1452)
        now = r.next_timeout()
        r.on_timeout(now)
        send(r, 2, now, size=1200)
    pn = send(r, 1, now, size=1452)
    r.ack(APPLICATION, [(pn, pn + 1)], now + RTT)
    assert r.state()["black_holes"] == 0
    assert r.state()["packets_lost"] > 15


def test_a_new_path_is_searched_anew():
    r = raised()
    r.on_path_change(0)
    state = r.state()
    assert (state["mtu"], state["max_datagram"]) == (1200, 1200)
    assert r.next_mtu_probe(0) == 1452


def test_late_answers_about_the_old_path_say_nothing_of_the_new_ones_size():
    r = probed()
    old = r.send(APPLICATION, r.next_mtu_probe(0), 0, mtu_probe=True)
    r.on_path_change(0)
    r.ack(APPLICATION, [(old, old + 1)], RTT)
    assert r.state()["mtu"] == 1200


# Pacing


def test_the_pacer_follows_the_path():
    """After the initial burst, and never on a path shorter than a millisecond."""
    for rtt, paced in ((RTT, True), (60, False)):
        r = connected(rtt=rtt, initial_window=120_000)
        when, now = 0, 0
        for _ in range(100):
            when = r.next_send_time(1200, now)
            if when > now:
                break
            send(r, 1, now)
        assert (when > now) is paced
        if paced:
            assert len(r.tracked(APPLICATION)) == 10


def test_acknowledgements_are_not_paced():
    r = connected(initial_window=120_000)
    for _ in range(100):
        assert r.next_send_time(1200, 0) == 0
        send(r, 1, 0, ack_eliciting=False, in_flight=False)


def test_the_exercise_of_benchmarks_returns_every_record():
    r = connected()
    assert r.exercise(1000, 4) == 1000
    assert r.state()["records"] == 0
