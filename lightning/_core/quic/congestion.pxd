"""Congestion control of one path: NewReno (RFC 9002 7) or CUBIC (RFC 9438).

All windows are bytes, all times microseconds. NewReno is integer arithmetic; the cubic
function is evaluated in doubles, of which a window needs 30 of the 53 bits.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum CongestionAlgorithm:
    NEW_RENO = 0
    CUBIC = 1


cdef enum CongestionPhase:
    SLOW_START = 0
    CONSERVATIVE_SLOW_START = 1  # HyStart++ saw the RTT rise (RFC 9406 4.2)
    CONGESTION_AVOIDANCE = 2


cdef enum CongestionLimits:
    CONGESTION_INITIAL_PACKETS = 10  # RFC 9002 7.2
    CONGESTION_INITIAL_CAP = 14720  # bytes; RFC 9002 7.2
    CONGESTION_MINIMUM_PACKETS = 2  # RFC 9002 7.2
    # No path needs more (10 Gbit/s for 0.8 s), and products of windows fit 64 bits.
    CONGESTION_MAX_WINDOW = 1 << 30


cdef struct Congestion:
    # What the sender looks at.
    uint64_t cwnd
    uint64_t bytes_in_flight
    uint64_t ssthresh  # UINT64_MAX until the first congestion event
    uint32_t max_datagram
    uint8_t algorithm  # a CongestionAlgorithm
    bint hystart  # leave the first slow start on a rise of the RTT (RFC 9406)
    # Packets sent at this time or before belong to a congestion event that was
    # answered, and neither shrink nor grow the window (RFC 9002 7.3.2).
    int64_t recovery_start
    bint extra  # one packet may pass the window, as a recovery period starts
    uint64_t configured_window  # bytes; 0 asks for RFC 9002's initial window
    bint untouched  # the window is still the initial one
    uint64_t acked_bytes  # not yet turned into growth (NewReno)
    # CUBIC, RFC 9438 4.1.2. Windows here are bytes in doubles.
    bint has_epoch  # this congestion avoidance has seen its first acknowledgement
    int64_t epoch_start  # moved forward by the time in which the window was not used
    int64_t last_active  # up to here the epoch's age is settled
    double k  # seconds from the epoch's start until the window is w_max again
    double w_max
    double w_est
    double cwnd_prior
    # HyStart++, RFC 9406 4.2; RTTs are INT64_MAX while unknown.
    uint64_t round_end  # the round ends when this packet number is acknowledged
    int64_t round_rtt
    int64_t last_round_rtt
    int64_t baseline_rtt
    uint32_t round_samples
    uint8_t css_rounds
    bint css
    # Counters.
    uint64_t events
    uint64_t persistent_events


# Life. Nothing is allocated. A reset is for a new path (RFC 9000 9.4) and keeps the
# configuration, the counters and the bytes in flight.
cdef void congestion_init(
    Congestion* c, int algorithm, uint64_t initial_window, uint32_t max_datagram,
    bint hystart,
) noexcept nogil
cdef void congestion_reset(Congestion* c) noexcept nogil
cdef void congestion_set_max_datagram(Congestion* c, uint32_t size) noexcept nogil

# Input. The caller lowers bytes_in_flight itself, packet by packet.
cdef void congestion_on_rtt(
    Congestion* c, int64_t latest_rtt, uint64_t largest_acked, uint64_t next_pn
) noexcept nogil
cdef void congestion_on_acked(
    Congestion* c, uint64_t growth, int64_t smoothed_rtt, int64_t now
) noexcept nogil
cdef bint congestion_on_event(
    Congestion* c, int64_t time_sent, int64_t now
) noexcept nogil
cdef void congestion_on_persistent(Congestion* c) noexcept nogil


# Output.
cdef inline int congestion_phase(const Congestion* c) noexcept nogil:
    if c.cwnd >= c.ssthresh:
        return CONGESTION_AVOIDANCE
    return CONSERVATIVE_SLOW_START if c.css else SLOW_START


cdef inline uint64_t congestion_room(const Congestion* c) noexcept nogil:
    """Return how many bytes may still be put in flight."""
    cdef uint64_t room = 0
    if c.cwnd > c.bytes_in_flight:
        room = c.cwnd - c.bytes_in_flight
    return max(room, <uint64_t> c.max_datagram) if c.extra else room


cdef inline void congestion_on_sent(
    Congestion* c, uint32_t size, int64_t now
) noexcept nogil:
    """Count a packet that is in flight."""
    # A cubic epoch does not age while nothing is in flight (RFC 9438 5.8).
    if c.bytes_in_flight == 0 and c.has_epoch:
        c.epoch_start += now - c.last_active
        c.last_active = now
    c.bytes_in_flight += size
    c.extra = False


cdef inline bint congestion_is_full(const Congestion* c) noexcept nogil:
    """Say if what is in flight uses the window enough to let it grow.

    RFC 9002 7.8 leaves the measure open: no room for one more datagram, or half the
    window in slow start, where it doubles within the round trip.
    """
    if c.cwnd < c.ssthresh:
        return c.bytes_in_flight >= c.cwnd >> 1
    return c.bytes_in_flight + c.max_datagram > c.cwnd
