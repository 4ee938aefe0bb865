"""Whether a path carries ECN marks (RFC 9000 13.4.2 and A.4).

The first packets of a path are marked ECT(0). Marking goes on once the peer has counted
them as it must, and ends for the path when its counts are missing or impossible.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum EcnState:
    ECN_TESTING = 0  # the first packets are marked
    ECN_UNKNOWN = 1  # none is marked until one of those is acknowledged
    ECN_CAPABLE = 2
    ECN_FAILED = 3  # or switched off


cdef enum: ECN_TEST_PACKETS = 10  # RFC 9000 A.4


# One path's.
cdef struct Ecn:
    uint8_t state  # an EcnState
    uint32_t test_sent
    uint32_t test_lost


# One packet number space's; all zero at first.
cdef struct EcnSpace:
    uint64_t sent
    # What the peer has counted.
    uint64_t ect0
    uint64_t ce


# An ACK frame's.
cdef struct EcnCounts:
    uint64_t ect0
    uint64_t ect1
    uint64_t ce


cdef void ecn_init(Ecn* e, bint enabled) noexcept nogil
cdef uint64_t ecn_on_acked(
    Ecn* e, EcnSpace* space, uint64_t newly_acked, const EcnCounts* counts
) noexcept nogil
cdef void ecn_on_lost(Ecn* e) noexcept nogil


cdef inline bint ecn_marks(const Ecn* e) noexcept nogil:
    """Say if the next datagram is to be marked ECT(0)."""
    return e.state == ECN_TESTING or e.state == ECN_CAPABLE


cdef inline void ecn_on_sent(Ecn* e, EcnSpace* space) noexcept nogil:
    """Count a marked packet."""
    space.sent += 1
    if e.state == ECN_TESTING:
        e.test_sent += 1
        if e.test_sent >= ECN_TEST_PACKETS:
            e.state = ECN_UNKNOWN
