"""NewReno (RFC 9002 7), CUBIC (RFC 9438) and HyStart++ (RFC 9406)."""

import pytest

from lightning._core.quic.congestion import Controller

MS = 1000
SECOND = 1_000_000
SIZE = 1200
BOTH = pytest.mark.parametrize("algorithm", ["new_reno", "cubic"])


def avoiding(algorithm, cwnd, now=SECOND):
    """Make a controller whose first congestion event has just cut it to ``cwnd``.

    A byte stays in flight, so that it is never idle.
    """
    factor = {"new_reno": 0.5, "cubic": 0.7}[algorithm]
    made = Controller(algorithm, round(cwnd / factor))
    assert made.on_event(now, now)
    assert made.cwnd == pytest.approx(cwnd, abs=1)
    made.on_sent(1, now)
    return made


def acknowledge(controller, size, now, rtt=50 * MS):
    controller.on_sent(size, now)
    controller.on_acked(size, rtt, now)


# Windows


@pytest.mark.parametrize(
    ("datagram", "configured", "window"),
    [
        (1200, 0, 12_000),
        (1452, 0, 14_520),
        (1500, 0, 14_720),
        (9000, 0, 18_000),
        (1200, 12_000, 12_000),
        (1452, 12_000, 12_000),
        (1200, 1, 2_400),
        (1200, 1 << 40, 1 << 30),
    ],
)
@BOTH
def test_the_initial_window(algorithm, datagram, configured, window):
    """RFC 9002 7.2, or what was configured, never below two datagrams."""
    controller = Controller(algorithm, configured, datagram)
    assert controller.cwnd == controller.room == window
    assert controller.ssthresh is None
    assert controller.phase == "slow start"


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match="bbr"):
        Controller("bbr")  # type: ignore[arg-type]  # The point of the test.


@BOTH
def test_bytes_in_flight_take_room(algorithm):
    controller = Controller(algorithm)
    controller.on_sent(5000, 0)
    assert (controller.bytes_in_flight, controller.room) == (5000, 7000)
    controller.on_sent(8000, 0)
    assert controller.room == 0
    controller.on_gone(12_000)
    assert (controller.bytes_in_flight, controller.room) == (1000, 11_000)
    with pytest.raises(ValueError, match="in flight"):
        controller.on_gone(1001)


def test_is_full_at_half_the_window_in_slow_start():
    """RFC 9002 7.8: such a window doubles within the round trip."""
    controller = Controller()
    controller.on_sent(5999, 0)
    assert not controller.is_full
    controller.on_sent(1, 0)
    assert controller.is_full


def test_is_full_without_room_for_a_datagram_later():
    controller = avoiding("new_reno", 12_000)
    controller.on_sent(10_799, SECOND)
    assert not controller.is_full
    controller.on_sent(1, SECOND)
    assert controller.is_full


@BOTH
def test_a_larger_datagram_raises_an_untouched_initial_window(algorithm):
    """RFC 9002 7.2."""
    controller = Controller(algorithm)
    controller.set_max_datagram(1452)
    assert controller.cwnd == 14_520
    acknowledge(controller, 1000, 0)
    controller.set_max_datagram(1200)
    assert controller.cwnd == 15_520


@BOTH
def test_a_larger_datagram_raises_the_minimum_window(algorithm):
    controller = Controller(algorithm, 2400)
    controller.on_event(1, 2)
    controller.set_max_datagram(9000)
    assert controller.cwnd == 18_000
    controller.set_max_datagram(9000)
    assert controller.cwnd == 18_000


# Slow start and recovery


@BOTH
def test_slow_start_grows_by_what_is_acknowledged(algorithm):
    controller = Controller(algorithm)
    acknowledge(controller, 3000, 0)
    assert controller.cwnd == 15_000
    controller.on_sent(3000, 0)
    controller.on_acked(3000, 50 * MS, 0, growth=0)
    assert controller.cwnd == 15_000, "limited by the application"


@BOTH
def test_the_window_is_bounded(algorithm):
    controller = Controller(algorithm, (1 << 30) - 5)
    acknowledge(controller, 1 << 29, 0)
    assert controller.cwnd == 1 << 30


@pytest.mark.parametrize(("algorithm", "left"), [("new_reno", 0.5), ("cubic", 0.7)])
def test_a_loss_cuts_the_window_once_a_round_trip(algorithm, left):
    """RFC 9002 7.3.2: losses of packets sent before the cut belong to it."""
    controller = Controller(algorithm, 100_000)
    assert controller.on_event(10 * MS, 60 * MS)
    assert controller.cwnd == controller.ssthresh == 100_000 * left
    assert controller.phase == "congestion avoidance"
    assert not controller.on_event(20 * MS, 70 * MS)
    assert not controller.on_event(60 * MS, 110 * MS)
    assert controller.cwnd == 100_000 * left
    assert controller.on_event(60 * MS + 1, 120 * MS)
    assert controller.cwnd == pytest.approx(100_000 * left * left)
    assert controller.events == 2


@BOTH
def test_one_packet_passes_the_window_as_recovery_starts(algorithm):
    """RFC 9002 7.3.2: what was lost does not wait for room in the smaller window."""
    controller = Controller(algorithm, 100_000)
    controller.on_sent(99_000, 0)
    controller.on_event(1, 2)
    assert controller.room == 1200
    controller.on_sent(1200, 2)
    assert controller.room == 0
    controller.on_gone(controller.bytes_in_flight)
    controller.on_event(3, 4)
    assert controller.room == controller.cwnd > 1200
    controller.on_sent(100_000, 4)
    controller.on_persistent()
    assert controller.room == 0


@BOTH
def test_the_window_never_falls_below_two_datagrams(algorithm):
    controller = Controller(algorithm)
    for i in range(20):
        assert controller.on_event(2 * i + 1, 2 * i + 1)
    assert controller.cwnd == controller.ssthresh == 2400


@BOTH
def test_persistent_congestion_starts_over(algorithm):
    """RFC 9002 7.6.2: the minimum window, then slow start up to the threshold."""
    controller = Controller(algorithm, 100_000)
    controller.on_event(10 * MS, 60 * MS)
    threshold = controller.ssthresh
    controller.on_persistent()
    assert (controller.cwnd, controller.ssthresh) == (2400, threshold)
    assert controller.phase == "slow start"
    assert controller.persistent_events == 1
    acknowledge(controller, 2400, 70 * MS)
    assert controller.cwnd == 4800
    acknowledge(controller, 100_000, 80 * MS)
    assert controller.phase == "congestion avoidance"
    assert controller.on_event(20 * MS, 90 * MS), "the recovery period is over"


@BOTH
def test_a_new_path_starts_over(algorithm):
    """RFC 9000 9.4; what is in flight stays counted."""
    controller = Controller(algorithm, 100_000)
    controller.on_sent(5000, 0)
    controller.on_event(10 * MS, 60 * MS)
    controller.reset()
    assert (controller.cwnd, controller.ssthresh) == (100_000, None)
    assert controller.bytes_in_flight == 5000
    assert controller.on_event(10 * MS, 60 * MS)


# NewReno


def test_reno_adds_a_datagram_a_window():
    """RFC 9002 7.3.3, by bytes: no rounding is lost over many small steps."""
    controller = avoiding("new_reno", 12_000)
    for _ in range(9):
        acknowledge(controller, 1200, SECOND)
        assert controller.cwnd == 12_000
    acknowledge(controller, 1200, SECOND)
    assert controller.cwnd == 13_200
    acknowledge(controller, 13_200 + 14_400 + 600, SECOND)
    assert controller.cwnd == 15_600


def test_reno_crosses_the_threshold_within_a_frame():
    """What is left after slow start counts for congestion avoidance."""
    controller = avoiding("new_reno", 12_000)
    controller.on_persistent()
    acknowledge(controller, 9_600 + 11_999, SECOND)
    assert controller.cwnd == 12_000
    acknowledge(controller, 1, SECOND)
    assert controller.cwnd == 13_200


def test_reno_forgets_partial_growth_at_a_loss():
    controller = avoiding("new_reno", 24_000)
    acknowledge(controller, 23_999, SECOND)
    controller.on_event(SECOND + 1, SECOND + 1)
    acknowledge(controller, 11_999, SECOND)
    assert controller.cwnd == 12_000


# CUBIC


def transfer(controller, start, duration, rtt):
    """Acknowledge a full window each round trip; return (time, window) pairs."""
    trace = []
    now = start
    while now <= start + duration:
        size = controller.cwnd
        for _ in range(10):
            acknowledge(controller, size // 10, now, rtt)
        trace.append((now - start, controller.cwnd))
        now += rtt
    return trace


def cubic(age, k, w_max):
    """RFC 9438 figure 1, in seconds and datagrams."""
    return 0.4 * (age - k) ** 3 + w_max


def test_cubic_follows_its_curve():
    """Concave up to the old maximum after K, convex beyond (RFC 9438 4.2 to 4.5)."""
    rtt = 100 * MS
    w_max = 1_000  # datagrams
    controller = avoiding("cubic", 0.7 * w_max * SIZE)
    k = (0.3 * w_max / 0.4) ** (1 / 3)
    assert k == pytest.approx(9.0856, abs=1e-3)
    for age, window in transfer(controller, SECOND, 14 * SECOND, rtt)[1:]:
        # Each round trip ends at what the curve says of the next one.
        expected = cubic((age + rtt) / SECOND, k, w_max)
        assert window / SIZE == pytest.approx(expected, rel=0.05), age
    assert controller.cwnd > 1.03 * w_max * SIZE


def test_cubic_is_as_fast_as_reno_on_a_short_path():
    """RFC 9438 4.3: alpha datagrams a round trip until the old window, then one."""
    controller = avoiding("cubic", 70 * SIZE)
    rtt = 5 * MS
    trace = transfer(controller, SECOND, 100 * rtt, rtt)
    windows = [window / SIZE for _, window in trace]
    alpha = 3 * 0.3 / 1.7
    assert windows[40] - windows[20] == pytest.approx(20 * alpha, rel=0.03)
    back = next(i for i, window in enumerate(windows) if window >= 100)
    assert back == pytest.approx(30 / alpha, abs=3)
    assert windows[back + 30] - windows[back + 10] == pytest.approx(20, rel=0.05)


def test_cubic_grows_by_half_a_round_trip_at_most():
    """RFC 9438 4.2 bounds the target by 1.5 times the window."""
    controller = avoiding("cubic", 100 * SIZE)
    acknowledge(controller, 1200, SECOND)
    before = controller.cwnd
    acknowledge(controller, before, 60 * SECOND)
    assert before * 1.49 < controller.cwnd <= before * 1.5


def test_cubic_never_shrinks_on_an_acknowledgement():
    controller = avoiding("cubic", 1000 * SIZE)
    last = 0
    for _, window in transfer(controller, SECOND, 5 * SECOND, 50 * MS):
        assert window >= last
        last = window


def test_cubic_gives_way_if_it_did_not_reach_its_maximum():
    """RFC 9438 4.7, fast convergence: the next plateau is lower than the cut."""
    rtt = 100 * MS
    controller = avoiding("cubic", 700 * SIZE)
    controller.on_event(SECOND + 1, SECOND + 1)  # At 700, below the maximum of 1000.
    assert controller.cwnd == 490 * SIZE
    w_max = 700 * 1.7 / 2
    k = ((w_max - 490) / 0.4) ** (1 / 3)
    trace = transfer(controller, SECOND + 2, round(k * SECOND), rtt)
    assert trace[-1][1] / SIZE == pytest.approx(w_max, rel=0.02)


def test_cubic_starts_its_curve_at_the_window_without_a_maximum():
    """RFC 9438 4.8 and 4.10: K is 0 after a timeout or a slow start left early."""
    controller = avoiding("cubic", 700 * SIZE)
    controller.on_persistent()
    acknowledge(controller, 698 * SIZE, SECOND)
    assert controller.cwnd == 700 * SIZE
    rtt = 100 * MS
    trace = transfer(controller, SECOND, 3 * SECOND, rtt)
    for age, window in trace[5:]:
        expected = max(
            cubic((age + rtt) / SECOND, 0, 700), 700 + 0.529 * (age + rtt) / rtt
        )
        assert window / SIZE == pytest.approx(expected, rel=0.02), age


@pytest.mark.parametrize("kind", ["idle", "limited"])
def test_cubic_does_not_age_while_it_is_not_used(kind):
    """RFC 9438 5.8: neither without data nor below its window."""
    rtt = 100 * MS
    used = avoiding("cubic", 700 * SIZE)
    rested = avoiding("cubic", 700 * SIZE)
    transfer(used, SECOND, SECOND, rtt)
    transfer(rested, SECOND, SECOND, rtt)
    assert used.cwnd == rested.cwnd
    pause = 20 * SECOND
    last = SECOND + SECOND
    if kind == "idle":
        rested.on_gone(1)
    else:
        for i in range(1, 200):
            now = last + i * rtt
            rested.on_sent(1200, now)
            rested.on_acked(1200, rtt, now, growth=0)
    rested.on_sent(1, last + pause + rtt)
    expected = transfer(used, last + rtt, 2 * SECOND, rtt)[-1][1]
    rested_window = transfer(rested, last + pause + rtt, 2 * SECOND, rtt)[-1][1]
    assert rested_window == pytest.approx(expected, rel=0.01)


# HyStart++


class Path:
    """Rounds of ten samples each, whose RTT the test chooses."""

    def __init__(self, *, algorithm="new_reno", hystart=True):
        self.controller = Controller(algorithm, hystart=hystart)
        self.pn = 0

    def round(self, rtt, samples=10):
        next_pn = self.pn + samples
        for _ in range(samples):
            self.controller.on_rtt(rtt, self.pn, next_pn + 1)
            self.pn += 1
        return self.controller.phase


def test_hystart_leaves_slow_start_when_the_rtt_rises():
    """RFC 9406 4.2: five rounds at a quarter of the growth, then avoidance."""
    path = Path()
    for _ in range(4):
        assert path.round(50 * MS) == "slow start"
    assert path.round(57 * MS) == "conservative slow start"
    before = path.controller.cwnd
    acknowledge(path.controller, 4000, 0)
    assert path.controller.cwnd == before + 1000
    for _ in range(4):
        assert path.round(57 * MS) == "conservative slow start"
    assert path.round(57 * MS) == "congestion avoidance"
    assert path.controller.ssthresh == path.controller.cwnd
    for _ in range(9):
        assert path.round(10 * MS) == "congestion avoidance"


def test_hystart_returns_to_slow_start_if_it_was_jitter():
    path = Path()
    path.round(50 * MS)
    path.round(50 * MS)
    assert path.round(60 * MS) == "conservative slow start"
    assert path.round(59 * MS) == "slow start"
    before = path.controller.cwnd
    acknowledge(path.controller, 4000, 0)
    assert path.controller.cwnd == before + 4000


@pytest.mark.parametrize(
    ("base", "rise"), [(8 * MS, 4 * MS), (80 * MS, 10 * MS), (400 * MS, 16 * MS)]
)
def test_hystart_needs_an_eighth_between_4_and_16_ms(base, rise):
    for late, phase in (
        (rise - 1, "slow start"),
        (rise, "conservative slow start"),
    ):
        path = Path()
        path.round(base)
        path.round(base)
        assert path.round(base + late) == phase


def test_hystart_needs_eight_samples_a_round():
    path = Path()
    path.round(50 * MS)
    path.round(50 * MS)
    assert path.round(90 * MS, samples=7) == "slow start"
    assert path.round(90 * MS, samples=8) == "slow start", "the last round was as slow"
    assert path.round(190 * MS, samples=8) == "conservative slow start"


def test_hystart_is_optional():
    path = Path(hystart=False)
    for rtt in range(50, 500, 50):
        assert path.round(rtt * MS) == "slow start"


def test_hystart_is_for_the_first_slow_start():
    path = Path()
    path.controller.on_event(1, 2)
    path.controller.on_persistent()
    for rtt in range(50, 500, 50):
        assert path.round(rtt * MS) == "slow start"


@BOTH
def test_a_loss_ends_conservative_slow_start(algorithm):
    path = Path(algorithm=algorithm)
    for rtt in (50, 50, 90):
        path.round(rtt * MS)
    assert path.controller.phase == "conservative slow start"
    path.controller.on_event(1, 2)
    assert path.controller.phase == "congestion avoidance"
    path.controller.on_persistent()
    assert path.controller.phase == "slow start"
