"""An ordered set of disjoint half-open ranges of 64-bit numbers, bounded in count.

Two uses share it: received packet numbers, where the lowest range is dropped when
there are too many, and received stream offsets, where too many is an error. Ranges
that touch are one, so two neighbours always have a gap between them.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum RangesLimits:
    # Packet numbers: ACK ranges kept in each space (as aioquic and quinn keep 64).
    RANGES_PACKETS = 64
    # Stream offsets: fragments of a stream with gaps between (as quinn: 1,024).
    RANGES_STREAM = 1024


cdef enum RangesPolicy:
    RANGES_REFUSE = 0  # one range too many is RANGES_FULL, and nothing changes
    RANGES_DROP_LOWEST = 1  # one range too many drops the lowest and moves the floor


cdef enum RangesStatus:
    RANGES_FULL = -2


cdef struct Range:
    uint64_t start
    uint64_t end  # not in the range; always above start


cdef struct Ranges:
    Range* items  # ascending; NULL until the first range
    uint32_t count
    uint32_t capacity
    uint32_t limit
    uint8_t policy  # a RangesPolicy
    # Numbers below were dropped or forgotten: ranges_seen says yes to all of them,
    # and ranges_add ignores them. Always 0 with RANGES_REFUSE.
    uint64_t floor


# Life. Init allocates nothing; clear keeps the memory for the next use.
cdef void ranges_init(Ranges* r, uint32_t limit, uint8_t policy) noexcept nogil
cdef void ranges_free(Ranges* r) noexcept nogil
cdef void ranges_clear(Ranges* r) noexcept nogil

# Change. OK, OUT_OF_MEMORY or RANGES_FULL; an empty range changes nothing.
cdef int ranges_insert(Ranges* r, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_subtract(Ranges* r, uint64_t start, uint64_t end) noexcept nogil
# Drop everything below `bound`; with RANGES_DROP_LOWEST raise the floor to it.
cdef void ranges_forget(Ranges* r, uint64_t bound) noexcept nogil

# Look up. From the top: items[count - 1], items[count - 2] and so on.
cdef bint ranges_contains(const Ranges* r, uint64_t value) noexcept nogil
# The lowest number from `start` up that is not in the set.
cdef uint64_t ranges_first_gap(const Ranges* r, uint64_t start) noexcept nogil


cdef inline int ranges_add(Ranges* r, uint64_t start, uint64_t end) noexcept nogil:
    """Add [start, end) and merge it with what it overlaps or touches."""
    if r.count and r.items[r.count - 1].end == start and start < end:
        r.items[r.count - 1].end = end
        return 0
    return ranges_insert(r, start, end)


cdef inline bint ranges_seen(const Ranges* r, uint64_t value) noexcept nogil:
    """Say if ``value`` is in the set or too low to be known any more."""
    if r.count and value >= r.items[r.count - 1].end:
        return False
    return value < r.floor or ranges_contains(r, value)
