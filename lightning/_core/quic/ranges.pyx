"""Ordered sets of disjoint ranges, bounded in count.

One ascending array of [start, end) pairs. A search is O(log n), extending or adding
the highest range O(1), any other change one search and one ``memmove``.

Source: RFC 9000 sections 13.2.3 (limit the ACK ranges that are kept) and 2.2
(stream data arrives in any order, and more than once).
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY

cdef enum: FIRST_CAPACITY = 4


cdef void ranges_init(Ranges* r, uint32_t limit, uint8_t policy) noexcept nogil:
    r.items = NULL
    r.count = 0
    r.capacity = 0
    r.limit = limit
    r.policy = policy
    r.floor = 0


cdef void ranges_free(Ranges* r) noexcept nogil:
    free(r.items)
    r.items = NULL
    r.count = 0
    r.capacity = 0


cdef void ranges_clear(Ranges* r) noexcept nogil:
    r.count = 0
    r.floor = 0


cdef int ranges_insert(Ranges* r, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint32_t low
    cdef uint32_t high
    if start < r.floor:
        start = r.floor
    if start >= end:
        return OK
    # All of items[low:high] overlap or touch [start, end).
    low = first_ending_from(r, start)
    high = low
    while high < r.count and r.items[high].start <= end:
        high += 1
    if low == high:
        return insert_at(r, low, start, end)
    r.items[low].start = min(start, r.items[low].start)
    r.items[low].end = max(end, r.items[high - 1].end)
    remove_items(r, low + 1, high)
    return OK


cdef int ranges_subtract(Ranges* r, uint64_t start, uint64_t end) noexcept nogil:
    """Remove [start, end); RANGES_FULL if a split would make one range too many."""
    cdef uint32_t low
    cdef uint32_t high
    cdef uint64_t top
    if start >= end:
        return OK
    # All of items[low:high] lose something.
    low = first_ending_from(r, start + 1)
    high = low
    while high < r.count and r.items[high].start < end:
        high += 1
    if low == high:
        return OK
    if high - low == 1 and r.items[low].start < start and end < r.items[low].end:
        if r.count == r.limit:
            return RANGES_FULL
        if reserve_one(r):
            return OUT_OF_MEMORY
        top = r.items[low].end
        r.items[low].end = start
        place(r, low + 1, end, top)
        return OK
    if r.items[low].start < start:
        r.items[low].end = start
        low += 1
    if low < high and end < r.items[high - 1].end:
        r.items[high - 1].start = end
        high -= 1
    remove_items(r, low, high)
    return OK


cdef void ranges_forget(Ranges* r, uint64_t bound) noexcept nogil:
    cdef uint32_t high = first_ending_from(r, bound)
    remove_items(r, 0, high)
    if r.count and r.items[0].start < bound:
        if r.items[0].end == bound:
            remove_items(r, 0, 1)
        else:
            r.items[0].start = bound
    if r.policy == RANGES_DROP_LOWEST:
        r.floor = max(r.floor, bound)


cdef bint ranges_contains(const Ranges* r, uint64_t value) noexcept nogil:
    return ranges_first_gap(r, value) != value


cdef uint64_t ranges_first_gap(const Ranges* r, uint64_t start) noexcept nogil:
    # Numbers are varints, so one more does not wrap.
    cdef uint32_t low = first_ending_from(r, start + 1)
    if low < r.count and r.items[low].start <= start:
        return r.items[low].end
    return start


cdef uint32_t first_ending_from(const Ranges* r, uint64_t value) noexcept nogil:
    """Return the first index whose range ends at ``value`` or above, else the count."""
    cdef uint32_t low = 0
    cdef uint32_t high = r.count
    cdef uint32_t middle
    if high and r.items[high - 1].end < value:
        return high  # Appending is the common case.
    while low < high:
        middle = low + (high - low) // 2
        if r.items[middle].end < value:
            low = middle + 1
        else:
            high = middle
    return low


cdef int insert_at(
    Ranges* r, uint32_t index, uint64_t start, uint64_t end
) noexcept nogil:
    """Insert a range that touches none; at the limit, do as the policy says."""
    if r.count == r.limit:
        if r.policy == RANGES_REFUSE:
            return RANGES_FULL
        if index == 0:
            # The new range is the lowest: it is the one that is dropped.
            r.floor = end
            return OK
        r.floor = r.items[0].end
        remove_items(r, 0, 1)
        index -= 1
    if reserve_one(r):
        return OUT_OF_MEMORY
    place(r, index, start, end)
    return OK


cdef int reserve_one(Ranges* r) noexcept nogil:
    """Make room for one range more; the caller has checked the limit."""
    cdef uint32_t capacity
    cdef void* items
    if r.count < r.capacity:
        return OK
    capacity = FIRST_CAPACITY
    if r.capacity:
        capacity = r.limit if r.capacity > r.limit // 2 else r.capacity * 2
    items = realloc(r.items, <size_t> capacity * sizeof(Range))
    if items is NULL:
        return OUT_OF_MEMORY
    r.items = <Range*> items
    r.capacity = capacity
    return OK


cdef void place(Ranges* r, uint32_t index, uint64_t start, uint64_t end) noexcept nogil:
    """Shift the ranges from ``index`` up by one; reserve_one has made the room."""
    if index < r.count:
        memmove(
            &r.items[index + 1], &r.items[index], (r.count - index) * sizeof(Range)
        )
    r.items[index].start = start
    r.items[index].end = end
    r.count += 1


cdef void remove_items(Ranges* r, uint32_t low, uint32_t high) noexcept nogil:
    """Close the gap that items[low:high] leave."""
    if low < high:
        if high < r.count:
            memmove(
                &r.items[low], &r.items[high], (r.count - high) * sizeof(Range)
            )
        r.count -= high - low


@cython.final
@cython.auto_pickle(False)
cdef class RangeSet:
    """A ``Ranges`` of its own, for tests and tools.

    Args:
        limit: Most ranges kept.
        drop_lowest: At the limit, drop the lowest range instead of refusing.
    """

    cdef Ranges ranges

    def __cinit__(self, uint32_t limit=RANGES_STREAM, bint drop_lowest=False):
        ranges_init(
            &self.ranges, limit, RANGES_DROP_LOWEST if drop_lowest else RANGES_REFUSE
        )

    def __dealloc__(self):
        ranges_free(&self.ranges)

    def __len__(self):
        return self.ranges.count

    def __contains__(self, uint64_t value):
        return ranges_contains(&self.ranges, value)

    @property
    def items(self):
        """All ranges, ascending, as pairs (start, end)."""
        return [
            (self.ranges.items[i].start, self.ranges.items[i].end)
            for i in range(self.ranges.count)
        ]

    @property
    def floor(self):
        """The number below which everything was dropped or forgotten."""
        return self.ranges.floor

    def add(self, uint64_t start, uint64_t end):
        """Add [start, end) and return the status."""
        return ranges_add(&self.ranges, start, end)

    def subtract(self, uint64_t start, uint64_t end):
        """Remove [start, end) and return the status."""
        return ranges_subtract(&self.ranges, start, end)

    def forget(self, uint64_t bound):
        """Drop everything below ``bound``."""
        ranges_forget(&self.ranges, bound)

    def seen(self, uint64_t value):
        """Say if ``value`` is in the set or below the floor."""
        return ranges_seen(&self.ranges, value)

    def first_gap(self, uint64_t start):
        """Return the lowest number from ``start`` up that is not in the set."""
        return ranges_first_gap(&self.ranges, start)

    def clear(self):
        """Empty the set; it keeps its memory."""
        ranges_clear(&self.ranges)

    def free(self):
        """Give the memory back; the set is empty and may be used again."""
        ranges_free(&self.ranges)


def bench_append(uint32_t count):
    """Add ``count`` touching ranges, one by one, to one set: the in-order case."""
    cdef Ranges r
    cdef uint64_t i
    with nogil:
        ranges_init(&r, RANGES_STREAM, RANGES_REFUSE)
        for i in range(count):
            ranges_add(&r, i, i + 1)
        ranges_free(&r)
