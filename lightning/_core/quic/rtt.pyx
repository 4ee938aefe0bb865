# cython: cdivision=True
# No dividend here is negative.
"""The RTT estimator of RFC 9002 section 5, in whole microseconds."""

cimport cython
from libc.stdint cimport INT64_MAX, int64_t


cdef inline int64_t _clamp(int64_t rtt) noexcept nogil:
    # Not zero, to be divided by; and far from overflow when doubled for a PTO.
    return min(max(rtt, <int64_t> 1), <int64_t> RTT_LARGEST)


cdef void rtt_set(Rtt* rtt, int64_t initial) noexcept nogil:
    """Start without a sample (RFC 9002 5.3)."""
    rtt.initial = _clamp(initial)
    rtt.latest = 0
    rtt.smoothed = rtt.initial
    rtt.variance = rtt.initial // 2
    rtt.minimum = 0
    rtt.first_sample = INT64_MAX


cdef void rtt_update(
    Rtt* rtt, int64_t latest, int64_t ack_delay, int64_t now
) noexcept nogil:
    """Take a sample (RFC 9002 5.2, 5.3).

    Args:
        rtt: The estimator.
        latest: From sending a packet to its acknowledgement.
        ack_delay: How long the peer says it held the acknowledgement back: 0 in the
            Initial space, at most its max_ack_delay once the handshake is confirmed.
        now: The time.
    """
    cdef int64_t adjusted, difference
    latest = _clamp(latest)
    rtt.latest = latest
    if rtt.first_sample == INT64_MAX:
        rtt.first_sample = now
        rtt.minimum = latest
        rtt.smoothed = latest
        rtt.variance = latest // 2
        return
    rtt.minimum = min(rtt.minimum, latest)
    adjusted = latest
    # A delay that would leave less than the minimum is not believed.
    if 0 < ack_delay <= latest - rtt.minimum:
        adjusted = latest - ack_delay
    difference = rtt.smoothed - adjusted
    if difference < 0:
        difference = -difference
    # By the old smoothed value, as in RFC 6298 and RFC 9002 A.7.
    rtt.variance = (3 * rtt.variance + difference) // 4
    rtt.smoothed = (7 * rtt.smoothed + adjusted) // 8


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class RttEstimator:
    """One estimator, for tests and tools. Microseconds."""

    cdef Rtt rtt

    def __init__(self, int64_t initial=RTT_INITIAL):
        """Start without a sample."""
        rtt_set(&self.rtt, initial)

    def update(self, int64_t latest, int64_t ack_delay=0, int64_t now=0):
        """Take a sample."""
        rtt_update(&self.rtt, latest, ack_delay, now)

    @property
    def latest(self):
        """The last sample, 0 before the first."""
        return self.rtt.latest

    @property
    def smoothed(self):
        """The smoothed RTT."""
        return self.rtt.smoothed

    @property
    def variance(self):
        """Its mean deviation."""
        return self.rtt.variance

    @property
    def minimum(self):
        """The least sample, 0 before the first."""
        return self.rtt.minimum

    @property
    def pto(self):
        """The probe timeout."""
        return rtt_pto(&self.rtt)

    @property
    def loss_delay(self):
        """How old a packet is that counts as lost."""
        return rtt_loss_delay(&self.rtt)
