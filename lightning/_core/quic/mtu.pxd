"""The search for a path's datagram size, and its black holes (RFC 8899, RFC 9000 14.3).

Sizes are bytes of UDP payload, times microseconds. A probe is a packet of the
application space that is padded to the size under test. No timer is needed: the
search begins when a full datagram was sent, and goes on when there is something to
send anyway.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum MtuLimits:
    MTU_BASE = 1200  # BASE_PLPMTU: every QUIC path carries it (RFC 9000 14)
    MTU_DEFAULT_MAXIMUM = 1452  # fits IPv6 on Ethernet; quinn's default too
    MTU_LARGEST = 65527  # RFC 9000 18.2, max_udp_payload_size
    MTU_MAX_PROBES = 3  # lost probes of one size before it counts as too large
    MTU_MIN_STEP = 20  # no search for less than this (as quinn)
    # A black hole takes this many bursts of loss, and this many packets in them.
    # One burst is what a full queue does, and a few packets are what chance does.
    MTU_BLACK_HOLE_BURSTS = 3  # as quinn
    MTU_BLACK_HOLE_PACKETS = 6  # with 10 % of loss: one in 10^6


cdef enum:
    MTU_RAISE_TIME = 600000000  # PMTU_RAISE_TIMER
    MTU_COOLDOWN = 60000000  # after a black hole; quinn's default too


cdef struct Mtu:
    uint32_t current  # what every path of this connection may be sent now
    uint32_t base
    uint32_t maximum  # configured
    uint32_t peer_limit  # the peer's max_udp_payload_size; 0 until search is allowed
    uint32_t ceiling  # the least of maximum, peer_limit and what the socket refused
    # The search: sizes up to current work, sizes above high do not.
    bint searching
    bint probe_in_flight
    uint8_t probe_failures
    uint32_t high
    uint32_t probe_size  # under test
    uint64_t probe_pn
    int64_t next_search
    # Black holes: packets above base that were lost and newer than all of those
    # that were acknowledged.
    uint8_t bursts
    uint32_t suspects
    uint64_t suspect_pn  # the first of them
    uint64_t burst_end  # the next burst begins at this packet number or later
    uint64_t large_acked  # one more than the newest acknowledged one
    # Counters.
    uint64_t probes_sent
    uint64_t black_holes


# Life; nothing is allocated. A reset is for a new path.
cdef void mtu_init(Mtu* m, uint32_t base, uint32_t maximum) noexcept nogil
cdef void mtu_reset(Mtu* m) noexcept nogil
cdef void mtu_enable(Mtu* m, uint64_t peer_limit) noexcept nogil

# The search.
cdef uint32_t mtu_next_probe(Mtu* m, int64_t now) noexcept nogil
cdef void mtu_on_probe_sent(Mtu* m, uint64_t pn) noexcept nogil
cdef void mtu_on_probe_acked(Mtu* m, uint64_t pn, int64_t now) noexcept nogil
cdef void mtu_on_probe_lost(Mtu* m, uint64_t pn, int64_t now) noexcept nogil
cdef void mtu_on_refused(Mtu* m, uint32_t size, int64_t now) noexcept nogil

# Black holes, for packets of the application space that are larger than base.
cdef void mtu_on_large_acked(Mtu* m, uint64_t pn) noexcept nogil
cdef bint mtu_on_large_lost(
    Mtu* m, uint64_t pn, uint64_t next_pn, int64_t now
) noexcept nogil
