"""The round-trip time of a path, and the times derived from it (RFC 9002 5, 6)."""

from libc.stdint cimport int64_t


# Microseconds.
cdef enum RttLimits:
    RTT_INITIAL = 333000  # RFC 9002 6.2.2
    RTT_GRANULARITY = 1000  # RFC 9002 6.1.2
    RTT_LARGEST = 1 << 30  # 18 minutes: idle timeouts come earlier


cdef struct Rtt:
    int64_t latest  # 0 before the first sample
    int64_t smoothed
    int64_t variance
    int64_t minimum  # 0 before the first sample
    int64_t first_sample  # when; INT64_MAX is none
    int64_t initial


# `initial` is what is believed before the first sample; set forgets all samples.
cdef void rtt_set(Rtt* rtt, int64_t initial) noexcept nogil
cdef void rtt_update(
    Rtt* rtt, int64_t latest, int64_t ack_delay, int64_t now
) noexcept nogil


cdef inline int64_t rtt_pto(const Rtt* rtt) noexcept nogil:
    """Return the probe timeout without the peer's delay (RFC 9002 6.2.1)."""
    return rtt.smoothed + max(4 * rtt.variance, <int64_t> RTT_GRANULARITY)


cdef inline int64_t rtt_loss_delay(const Rtt* rtt) noexcept nogil:
    """Return how old a packet is that counts as lost (RFC 9002 6.1.2)."""
    cdef int64_t longer = max(rtt.latest, rtt.smoothed)
    return max(longer + (longer >> 3), <int64_t> RTT_GRANULARITY)
