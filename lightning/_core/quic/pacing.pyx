# cython: cdivision=True
# No divisor here is zero, and no dividend negative.
"""The pacer's arithmetic.

The rate is 1.25 times the congestion window a smoothed round trip, so that the pacer
is never what keeps a window from being used (RFC 9002 7.7).
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef void pacing_init(Pacer* p, uint32_t max_burst) noexcept nogil:
    """Start unpaced, with nothing known of the path."""
    if max_burst == 0 or max_burst > PACING_MAX_BURST:
        max_burst = PACING_MAX_BURST
    p.max_burst = max_burst
    p.tokens = 0
    p.capacity = 0
    p.rate = 0
    p.refilled = 0
    p.cwnd = 0
    p.smoothed_rtt = 0
    p.max_datagram = 0


cdef void pacing_retune(
    Pacer* p, uint64_t cwnd, int64_t smoothed_rtt, uint32_t max_datagram, int64_t now
) noexcept nogil:
    """Set rate and capacity by the path's window, RTT and datagram size."""
    cdef bint started = p.rate != 0
    if started:
        _refill(p, now)
    p.cwnd = cwnd
    p.smoothed_rtt = smoothed_rtt
    p.max_datagram = max_datagram
    if smoothed_rtt < PACING_MIN_RTT:
        p.rate = 0
        return
    p.rate = 1.25 * <double> cwnd / <double> smoothed_rtt
    p.capacity = min(p.rate * PACING_BURST_TIME, <double> p.max_burst)
    p.capacity = max(p.capacity, PACING_BURST_PACKETS * <double> max_datagram)
    if not started:
        p.tokens = p.capacity
        p.refilled = now
    p.tokens = min(p.tokens, p.capacity)


cdef int64_t pacing_delay(Pacer* p, uint32_t size, int64_t now) noexcept nogil:
    """Refill the bucket, and find when it holds ``size``: ``now`` or later."""
    cdef double wanted = min(<double> size, p.capacity)
    _refill(p, now)
    if p.tokens >= wanted:
        return now
    wanted = max(wanted, min(p.capacity, p.tokens + p.rate * PACING_PAUSE))
    return now + 1 + <int64_t> ((wanted - p.tokens) / p.rate)


cdef inline void _refill(Pacer* p, int64_t now) noexcept nogil:
    if now > p.refilled:
        p.tokens = min(
            p.tokens + <double> (now - p.refilled) * p.rate, p.capacity
        )
        p.refilled = now


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class TokenBucket:
    """One pacer, for tests and tools. Bytes and microseconds."""

    cdef Pacer p

    def __init__(self, uint32_t max_burst=0):
        """Start unpaced; ``max_burst`` is bytes, 0 the largest."""
        pacing_init(&self.p, max_burst)

    def update(
        self, uint64_t cwnd, int64_t smoothed_rtt, uint32_t max_datagram, int64_t now
    ):
        """Follow the path's window, RTT and datagram size."""
        pacing_update(&self.p, cwnd, smoothed_rtt, max_datagram, now)

    def next_send_time(self, uint32_t size, int64_t now):
        """Return when a datagram of that size may leave."""
        return pacing_next_send_time(&self.p, size, now)

    def on_sent(self, uint32_t size):
        """Take the tokens of a sent packet."""
        pacing_on_sent(&self.p, size)

    @property
    def rate(self):
        """Bytes a microsecond, 0 while the path is not paced."""
        return self.p.rate

    @property
    def capacity(self):
        """The bucket's size."""
        return self.p.capacity
