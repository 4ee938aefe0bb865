# cython: cdivision=True
# No divisor here is zero, and no dividend negative.
"""NewReno and CUBIC behind one set of functions, with HyStart++ for a first slow start.

A switch on the algorithm and no virtual calls: both share slow start, the recovery
period and persistent congestion, and differ in two places, ``_reduce`` and ``_avoid``.
"""

cimport cython
from libc.math cimport cbrt
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT64_MAX, int64_t, uint32_t, uint64_t

# RFC 9438 4.1 and 4.6.
cdef double CUBIC_C = 0.4
cdef double CUBIC_BETA = 0.7
# 3 * (1 - beta) / (1 + beta): grows as fast as Reno with a beta of one half (4.3).
cdef double CUBIC_ALPHA = 0.9 / 1.7

# RFC 9406 4.3. Its limit L on a growth step is infinite for a sender that paces.
cdef enum:
    HYSTART_MIN_RTT_THRESH = 4000
    HYSTART_MAX_RTT_THRESH = 16000
    HYSTART_MIN_RTT_DIVISOR = 8
    HYSTART_RTT_SAMPLES = 8
    HYSTART_GROWTH_DIVISOR = 4
    HYSTART_ROUNDS = 5


# --- Life ---------------------------------------------------------------------------

cdef void congestion_init(
    Congestion* c, int algorithm, uint64_t initial_window, uint32_t max_datagram,
    bint hystart,
) noexcept nogil:
    """Start with an empty path.

    Args:
        c: What is set up; nothing in it needs freeing.
        algorithm: A CongestionAlgorithm.
        initial_window: Bytes; 0 asks for RFC 9002 7.2's ten datagrams, at most
            14720 bytes or two datagrams.
        max_datagram: Bytes of UDP payload, at least 1200.
        hystart: Use HyStart++ in the first slow start.
    """
    c.algorithm = <uint8_t> algorithm
    c.configured_window = initial_window
    c.max_datagram = max_datagram
    c.hystart = hystart
    c.bytes_in_flight = 0
    c.events = 0
    c.persistent_events = 0
    congestion_reset(c)


cdef void congestion_reset(Congestion* c) noexcept nogil:
    """Forget what was learnt of the path, as a new path asks for (RFC 9000 9.4)."""
    c.cwnd = _initial_window(c)
    c.untouched = True
    c.ssthresh = UINT64_MAX
    c.recovery_start = INT64_MIN
    c.extra = False
    c.acked_bytes = 0
    c.has_epoch = False
    c.epoch_start = 0
    c.last_active = 0
    c.k = 0
    c.w_max = 0
    c.w_est = 0
    c.cwnd_prior = 0
    c.round_end = 0
    c.round_rtt = INT64_MAX
    c.last_round_rtt = INT64_MAX
    c.baseline_rtt = INT64_MAX
    c.round_samples = 0
    c.css_rounds = 0
    c.css = False


cdef void congestion_set_max_datagram(Congestion* c, uint32_t size) noexcept nogil:
    """Follow a change of the path's datagram size (RFC 9002 7.2)."""
    if size == c.max_datagram:
        return
    c.max_datagram = size
    if c.untouched:
        c.cwnd = _initial_window(c)
    elif c.cwnd < _minimum_window(c):
        c.cwnd = _minimum_window(c)


cdef uint64_t _initial_window(const Congestion* c) noexcept nogil:
    cdef uint64_t datagram = c.max_datagram
    cdef uint64_t window = c.configured_window
    if window == 0:
        window = min(
            CONGESTION_INITIAL_PACKETS * datagram,
            max(<uint64_t> CONGESTION_INITIAL_CAP, 2 * datagram),
        )
    return min(max(window, _minimum_window(c)), <uint64_t> CONGESTION_MAX_WINDOW)


cdef inline uint64_t _minimum_window(const Congestion* c) noexcept nogil:
    return CONGESTION_MINIMUM_PACKETS * <uint64_t> c.max_datagram


# --- Growth -------------------------------------------------------------------------

cdef void congestion_on_rtt(
    Congestion* c, int64_t latest_rtt, uint64_t largest_acked, uint64_t next_pn
) noexcept nogil:
    """Watch for a rise of the RTT in the first slow start (RFC 9406 4.2).

    Call with each RTT sample of the application space, before congestion_on_acked.

    Args:
        c: The controller.
        latest_rtt: The sample.
        largest_acked: The packet number that gave it.
        next_pn: The packet number that will be sent next.
    """
    cdef int64_t threshold
    # Later slow starts have a threshold from a real loss: the RFC leaves them alone.
    if not c.hystart or c.ssthresh != UINT64_MAX:
        return
    if largest_acked + 1 >= c.round_end:
        c.round_end = next_pn
        c.last_round_rtt = c.round_rtt
        c.round_rtt = INT64_MAX
        c.round_samples = 0
        if c.css:
            c.css_rounds += 1
            if c.css_rounds >= HYSTART_ROUNDS:
                c.css = False
                c.ssthresh = c.cwnd
                return
    c.round_rtt = min(c.round_rtt, latest_rtt)
    c.round_samples += 1
    if c.round_samples < HYSTART_RTT_SAMPLES:
        return
    if c.css:
        if c.round_rtt < c.baseline_rtt:  # The rise was jitter.
            c.css = False
            c.baseline_rtt = INT64_MAX
    elif c.last_round_rtt != INT64_MAX:
        threshold = min(
            max(
                c.last_round_rtt // HYSTART_MIN_RTT_DIVISOR,
                <int64_t> HYSTART_MIN_RTT_THRESH,
            ),
            <int64_t> HYSTART_MAX_RTT_THRESH,
        )
        if c.round_rtt >= c.last_round_rtt + threshold:
            c.baseline_rtt = c.round_rtt
            c.css = True
            c.css_rounds = 0


cdef void congestion_on_acked(
    Congestion* c, uint64_t growth, int64_t smoothed_rtt, int64_t now
) noexcept nogil:
    """Grow the window by what one ACK frame acknowledged.

    Args:
        c: The controller.
        growth: Bytes newly acknowledged in packets that were sent after
            ``recovery_start`` and were in flight while the window was full; 0 while
            the application is the limit (RFC 9002 7.8).
        smoothed_rtt: Of the path.
        now: The time.
    """
    cdef uint64_t room
    if growth == 0:
        if c.has_epoch:  # Time in which the window is not used does not count.
            c.epoch_start += now - c.last_active
            c.last_active = now
        return
    c.untouched = False
    if c.cwnd < c.ssthresh:
        if c.css:
            growth //= HYSTART_GROWTH_DIVISOR
        room = c.ssthresh - c.cwnd
        c.cwnd += min(growth, room)
        growth -= min(growth, room)
    if growth:
        _avoid(c, growth, smoothed_rtt, now)
    c.cwnd = min(c.cwnd, <uint64_t> CONGESTION_MAX_WINDOW)


cdef void _avoid(
    Congestion* c, uint64_t growth, int64_t smoothed_rtt, int64_t now
) noexcept nogil:
    """Grow in congestion avoidance."""
    if c.algorithm == NEW_RENO:
        # One datagram a window of acknowledged bytes (RFC 9002 7.3.3).
        c.acked_bytes += growth
        while c.acked_bytes >= c.cwnd:
            c.acked_bytes -= c.cwnd
            c.cwnd += c.max_datagram
        return

    cdef double cwnd = <double> c.cwnd
    cdef double datagram = <double> c.max_datagram
    cdef double acked = <double> growth
    cdef double alpha = CUBIC_ALPHA
    cdef double age, target
    if not c.has_epoch:
        c.has_epoch = True
        c.epoch_start = now
        c.w_est = cwnd
        if c.w_max > cwnd:
            c.k = cbrt((c.w_max - cwnd) / datagram / CUBIC_C)
        else:  # No congestion event set w_max, or a timeout voided it (4.8, 4.10).
            c.k = 0
            c.w_max = cwnd
    c.last_active = now
    age = <double> (now - c.epoch_start) * 1e-6
    # Once Reno would have come back to where it was cut, it grows by one (4.3).
    if c.w_est >= c.cwnd_prior:
        alpha = 1.0
    c.w_est += alpha * acked / cwnd * datagram
    if _cubic(c, age, datagram) < c.w_est:
        c.cwnd = <uint64_t> max(cwnd, c.w_est)
        return
    target = _cubic(c, age + <double> smoothed_rtt * 1e-6, datagram)
    target = min(max(target, cwnd), 1.5 * cwnd)  # 4.2
    # The truncated fraction is less than a byte an ACK frame.
    c.cwnd += <uint64_t> ((target - cwnd) * min(acked / cwnd, 1.0))


cdef inline double _cubic(
    const Congestion* c, double age, double datagram
) noexcept nogil:
    """Evaluate RFC 9438's figure 1, in bytes."""
    cdef double offset = age - c.k
    return CUBIC_C * offset * offset * offset * datagram + c.w_max


# --- Reduction ----------------------------------------------------------------------

cdef bint congestion_on_event(
    Congestion* c, int64_t time_sent, int64_t now
) noexcept nogil:
    """Shrink the window for a loss or for a rise of the peer's ECN-CE count.

    Args:
        c: The controller.
        time_sent: Of the newest packet that was lost or marked.
        now: The time; it opens the recovery period.

    Returns:
        False if the event belongs to a recovery period and changed nothing.
    """
    if time_sent <= c.recovery_start:
        return False
    c.recovery_start = now
    c.untouched = False
    c.events += 1
    _reduce(c)
    # So that what was lost does not wait for the smaller window (RFC 9002 7.3.2).
    c.extra = True
    return True


cdef void _reduce(Congestion* c) noexcept nogil:
    cdef uint64_t minimum = _minimum_window(c)
    cdef double cwnd = <double> c.cwnd
    c.acked_bytes = 0
    c.css = False
    if c.algorithm == NEW_RENO:
        c.ssthresh = c.cwnd >> 1  # RFC 9002 7.3.2
    else:
        # A flow that did not reach its last maximum gives way (RFC 9438 4.7).
        c.w_max = cwnd * (1.0 + CUBIC_BETA) / 2.0 if cwnd < c.w_max else cwnd
        c.cwnd_prior = cwnd
        c.ssthresh = <uint64_t> (cwnd * CUBIC_BETA)
        c.has_epoch = False
    c.ssthresh = max(c.ssthresh, minimum)
    c.cwnd = c.ssthresh


cdef void congestion_on_persistent(Congestion* c) noexcept nogil:
    """Fall to the minimum window (RFC 9002 7.6.2); slow start follows."""
    c.cwnd = _minimum_window(c)
    c.recovery_start = INT64_MIN
    c.extra = False
    c.acked_bytes = 0
    c.untouched = False
    c.persistent_events += 1
    # The next congestion avoidance starts its own curve (RFC 9438 4.8).
    c.has_epoch = False
    c.w_max = 0


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Controller:
    """One congestion controller, for tests and tools. Bytes and microseconds."""

    cdef Congestion c

    def __init__(
        self, str algorithm="new_reno", uint64_t initial_window=0,
        uint32_t max_datagram=1200, bint hystart=False,
    ):
        """Set up an empty path.

        Raises:
            ValueError: The algorithm is not "new_reno" or "cubic".
        """
        if algorithm not in ("new_reno", "cubic"):
            raise ValueError(f"unknown congestion control {algorithm!r}")
        congestion_init(
            &self.c, CUBIC if algorithm == "cubic" else NEW_RENO, initial_window,
            max_datagram, hystart,
        )

    def on_sent(self, uint32_t size, int64_t now):
        """Count a packet in flight."""
        congestion_on_sent(&self.c, size, now)

    def on_rtt(self, int64_t latest_rtt, uint64_t largest_acked, uint64_t next_pn):
        """Take an RTT sample."""
        congestion_on_rtt(&self.c, latest_rtt, largest_acked, next_pn)

    def on_acked(
        self, uint64_t size, int64_t smoothed_rtt, int64_t now, object growth=None
    ):
        """Take ``size`` bytes out of flight and grow by ``growth`` or all of them."""
        self.on_gone(size)
        congestion_on_acked(
            &self.c, size if growth is None else growth, smoothed_rtt, now
        )

    def on_gone(self, uint64_t size):
        """Take bytes out of flight, and nothing else.

        Raises:
            ValueError: That many are not in flight.
        """
        if size > self.c.bytes_in_flight:
            raise ValueError("more bytes than are in flight")
        self.c.bytes_in_flight -= size

    def on_event(self, int64_t time_sent, int64_t now):
        """Take a congestion event; say if it changed the window."""
        return congestion_on_event(&self.c, time_sent, now)

    def on_persistent(self):
        """Take persistent congestion."""
        congestion_on_persistent(&self.c)

    def set_max_datagram(self, uint32_t size):
        """Change the datagram size."""
        congestion_set_max_datagram(&self.c, size)

    def reset(self):
        """Start on a new path."""
        congestion_reset(&self.c)

    @property
    def cwnd(self):
        """The congestion window."""
        return self.c.cwnd

    @property
    def ssthresh(self):
        """The slow start threshold, None before the first congestion event."""
        return None if self.c.ssthresh == UINT64_MAX else self.c.ssthresh

    @property
    def bytes_in_flight(self):
        """What was sent and neither acknowledged nor lost."""
        return self.c.bytes_in_flight

    @property
    def room(self):
        """How much may still be sent."""
        return congestion_room(&self.c)

    @property
    def is_full(self):
        """Whether the window is used well enough to grow."""
        return bool(congestion_is_full(&self.c))

    @property
    def phase(self):
        """One of "slow start", "conservative slow start", "congestion avoidance"."""
        return ("slow start", "conservative slow start", "congestion avoidance")[
            congestion_phase(&self.c)
        ]

    @property
    def events(self):
        """How many congestion events shrank the window."""
        return self.c.events

    @property
    def persistent_events(self):
        """How many times persistent congestion emptied it."""
        return self.c.persistent_events
