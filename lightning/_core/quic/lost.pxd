"""The memory of lost packets, which tells spurious losses (RFC 9002 6.1).

A loss was spurious if its packet is acknowledged after all. The newest losses of a
packet number space are kept for that, in order of their numbers.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from lightning._core.quic.ranges cimport Range


cdef enum:
    LOST_REMEMBERED = 256  # of each space; 4 KiB from its first loss on


cdef struct LostPacket:
    uint64_t pn  # UINT64_MAX once it was counted
    int64_t time_lost


# A ring, oldest first; all zero at first. Free is idempotent.
cdef struct LostRing:
    LostPacket* entries  # NULL until a loss
    uint32_t start
    uint32_t count


cdef void lost_free(LostRing* ring) noexcept nogil
cdef void lost_remember(LostRing* ring, uint64_t pn, int64_t now) noexcept nogil
cdef uint32_t lost_count_spurious(
    LostRing* ring, const Range* first, uint32_t count, int step, int64_t oldest
) noexcept nogil
