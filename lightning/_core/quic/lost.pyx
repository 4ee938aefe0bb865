"""A ring of lost packets that is walked beside the ranges of an ACK frame."""

cimport cython
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from lightning._core.quic.ranges cimport Range


cdef void lost_free(LostRing* ring) noexcept nogil:
    """Forget all."""
    free(ring.entries)
    ring.entries = NULL
    ring.start = 0
    ring.count = 0


cdef void lost_remember(LostRing* ring, uint64_t pn, int64_t now) noexcept nogil:
    """Keep a lost packet, the newest yet; the oldest of too many is forgotten."""
    cdef LostPacket* entry
    if ring.entries is NULL:
        ring.entries = <LostPacket*> malloc(LOST_REMEMBERED * sizeof(LostPacket))
        if ring.entries is NULL:
            return  # Only a statistic is lost.
    if ring.count == LOST_REMEMBERED:
        _forget_oldest(ring)
    entry = &ring.entries[(ring.start + ring.count) % LOST_REMEMBERED]
    entry.pn = pn
    entry.time_lost = now
    ring.count += 1


cdef inline void _forget_oldest(LostRing* ring) noexcept nogil:
    ring.start = (ring.start + 1) % LOST_REMEMBERED
    ring.count -= 1


cdef uint32_t lost_count_spurious(
    LostRing* ring, const Range* first, uint32_t count, int step, int64_t oldest
) noexcept nogil:
    """Count the lost packets that an ACK frame acknowledges, each once.

    Args:
        ring: The memory.
        first: The lowest range of the frame.
        count: How many ranges there are, from 1.
        step: Where the next higher range lies, 1 or -1.
        oldest: What was lost before is forgotten.
    """
    cdef LostPacket* entry
    cdef uint32_t i
    cdef uint32_t found = 0
    while ring.count and ring.entries[ring.start].time_lost < oldest:
        _forget_oldest(ring)
    for i in range(ring.count):
        entry = &ring.entries[(ring.start + i) % LOST_REMEMBERED]
        if entry.pn == UINT64_MAX:
            continue
        while entry.pn >= first.end:
            count -= 1
            if count == 0:
                return found
            first += step
        if entry.pn >= first.start:
            entry.pn = UINT64_MAX
            found += 1
    return found


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class LostPackets:
    """One memory, for tests and tools."""

    cdef LostRing ring

    def __dealloc__(self):
        lost_free(&self.ring)

    def remember(self, uint64_t pn, int64_t now):
        """Keep a lost packet."""
        lost_remember(&self.ring, pn, now)

    def count_spurious(self, list ranges, int64_t oldest=0):
        """Count what at most 16 ranges, ascending or descending, acknowledge."""
        cdef Range items[16]
        cdef uint32_t count = 0
        if not 0 < len(ranges) <= 16:
            raise ValueError("1 to 16 ranges")
        for start, end in ranges:
            items[count].start = start
            items[count].end = end
            count += 1
        if items[0].start > items[count - 1].start:
            return lost_count_spurious(
                &self.ring, &items[count - 1], count, -1, oldest
            )
        return lost_count_spurious(&self.ring, items, count, 1, oldest)

    def clear(self):
        """Forget all."""
        lost_free(&self.ring)

    def __len__(self):
        return self.ring.count
