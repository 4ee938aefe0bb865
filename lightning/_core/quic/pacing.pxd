"""Pacing of one path: a token bucket over the congestion window (RFC 9002 7.7).

Tokens are bytes in doubles, so that refills a microsecond apart lose no fraction.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef enum PacingLimits:
    PACING_BURST_PACKETS = 10  # the smallest bucket: RFC 9002 7.7's initial window
    PACING_MAX_BURST = 65536  # bytes; what one segmentation-offload send carries
    # Microseconds. A bucket holds what leaves in the first, within the two bounds
    # above; a pause lasts at least the second, unless the bucket is full before.
    PACING_BURST_TIME = 2000
    PACING_PAUSE = 1000
    # Below this RTT (microseconds) nothing is paced. A timer of 50 us or more fires
    # 80 to 100 us late on the development machine (epoll_pwait2, median), which is
    # more than the whole loopback round trip of 66 us: a pause would cost more than
    # the burst that it spreads, and such a path has next to no queue to protect.
    PACING_MIN_RTT = 1000


cdef struct Pacer:
    double tokens
    double capacity
    double rate  # bytes a microsecond; 0 while the path is not paced
    int64_t refilled  # when tokens was right
    uint32_t max_burst
    # What rate and capacity were made from.
    uint64_t cwnd
    int64_t smoothed_rtt
    uint32_t max_datagram


# `max_burst` is bytes, at most PACING_MAX_BURST; 0 asks for that.
cdef void pacing_init(Pacer* p, uint32_t max_burst) noexcept nogil
cdef void pacing_retune(
    Pacer* p, uint64_t cwnd, int64_t smoothed_rtt, uint32_t max_datagram, int64_t now
) noexcept nogil
cdef int64_t pacing_delay(Pacer* p, uint32_t size, int64_t now) noexcept nogil


cdef inline void pacing_update(
    Pacer* p, uint64_t cwnd, int64_t smoothed_rtt, uint32_t max_datagram, int64_t now
) noexcept nogil:
    """Follow the path; call it before either of the two below."""
    if (
        cwnd != p.cwnd or smoothed_rtt != p.smoothed_rtt
        or max_datagram != p.max_datagram
    ):
        pacing_retune(p, cwnd, smoothed_rtt, max_datagram, now)


cdef inline int64_t pacing_next_send_time(
    Pacer* p, uint32_t size, int64_t now
) noexcept nogil:
    """Return when a datagram of ``size`` bytes may leave: ``now`` or a later time."""
    if p.rate == 0 or p.tokens >= size:
        return now
    return pacing_delay(p, size, now)


cdef inline void pacing_on_sent(Pacer* p, uint32_t size) noexcept nogil:
    """Take tokens for a packet in flight; a probe may overdraw the bucket."""
    if p.rate != 0:
        p.tokens -= size
