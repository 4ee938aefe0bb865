"""Incoming stream data: stored in any order, read in the one that was sent.

Source: RFC 9000 sections 2.2, 4.5, 7.5 and 21.7.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from lightning._core.quic.buffer cimport (
    E_CRYPTO_BUFFER_EXCEEDED, E_FRAME_ENCODING, E_INTERNAL, OK, OUT_OF_MEMORY,
    VARINT_MAX,
)
from lightning._core.quic.pool cimport (
    POOL_BLOCK, POOL_KEEP, POOL_SHIFT, Pool, pool_free, pool_give, pool_init,
    pool_take,
)
from lightning._core.quic.ranges cimport (
    RANGES_FULL, RANGES_REFUSE, RANGES_STREAM, ranges_add, ranges_clear,
    ranges_forget, ranges_free, ranges_init,
)

cdef enum:
    FIRST_RING = 4
    KEPT_RING = 16  # blocks or ranges whose arrays a cleared reassembly may keep


cdef void reassembly_init(Reassembly* r, Pool* pool) noexcept nogil:
    r.next = 0
    r.highest = 0
    r.final_size = FINAL_SIZE_UNKNOWN
    r.buffered = 0
    ranges_init(&r.ranges, RANGES_STREAM, RANGES_REFUSE)
    r.pool = pool
    r.blocks = NULL
    r.capacity = 0
    r.held = 0


cdef void reassembly_free(Reassembly* r) noexcept nogil:
    reassembly_drop(r)
    ranges_free(&r.ranges)
    free_ring(r)


cdef void reassembly_clear(Reassembly* r) noexcept nogil:
    reassembly_drop(r)
    if r.ranges.capacity > KEPT_RING:
        ranges_free(&r.ranges)
    if r.capacity > KEPT_RING:
        free_ring(r)
    r.next = 0
    r.highest = 0
    r.final_size = FINAL_SIZE_UNKNOWN


cdef void reassembly_drop(Reassembly* r) noexcept nogil:
    cdef uint32_t slot
    if r.held:
        for slot in range(r.capacity):
            give_block(r, slot)
    if r.ranges.count:
        ranges_clear(&r.ranges)
    r.buffered = 0


cdef int reassembly_store(
    Reassembly* r, uint64_t offset, const uint8_t* data, uint64_t size
) noexcept nogil:
    cdef uint64_t end = offset + size
    cdef uint64_t start
    cdef uint64_t gap_end
    cdef uint64_t added = 0
    cdef uint32_t index
    cdef int status
    if end <= r.next or not size:
        return OK
    if offset < r.next:
        data += r.next - offset
        offset = r.next
    if reserve_ring(r, end):
        return OUT_OF_MEMORY
    # What is there already stays: only the gaps are filled.
    start = offset
    index = first_ending_above(r, start)
    while start < end:
        gap_end = end
        if index < r.ranges.count:
            gap_end = min(end, r.ranges.items[index].start)
        if start < gap_end:
            if copy_in(r, start, data + (start - offset), gap_end - start):
                return OUT_OF_MEMORY
            added += gap_end - start
        if index >= r.ranges.count:
            break
        start = r.ranges.items[index].end
        index += 1
    status = ranges_add(&r.ranges, offset, end)
    if status == OK:
        r.buffered += added
    return E_INTERNAL if status == RANGES_FULL else status


cdef int reassembly_on_crypto(
    Reassembly* r, uint64_t offset, const uint8_t* data, uint64_t size
) noexcept nogil:
    if offset > <uint64_t> VARINT_MAX or size > <uint64_t> VARINT_MAX - offset:
        return E_FRAME_ENCODING
    if offset + size > r.next and offset + size - r.next > CRYPTO_BUFFER:
        return E_CRYPTO_BUFFER_EXCEEDED
    return reassembly_store(r, offset, data, size)


cdef size_t reassembly_peek(const Reassembly* r, const uint8_t** view) noexcept nogil:
    cdef size_t inside = r.next & (POOL_BLOCK - 1)
    if not r.ranges.count or r.ranges.items[0].start > r.next:
        return 0
    view[0] = r.blocks[(r.next >> POOL_SHIFT) & (r.capacity - 1)] + inside
    return min(r.ranges.items[0].end - r.next, POOL_BLOCK - inside)


cdef void reassembly_consume(Reassembly* r, uint64_t size) noexcept nogil:
    cdef uint64_t number = r.next >> POOL_SHIFT
    cdef uint64_t stop
    cdef uint32_t index
    r.next += size
    if not r.held:
        return
    index = 0
    while index < r.ranges.count and r.ranges.items[index].start < r.next:
        r.buffered -= (
            min(r.ranges.items[index].end, r.next) - r.ranges.items[index].start
        )
        index += 1
    ranges_forget(&r.ranges, r.next)
    # The block that `next` lies in is done with too, if nothing is held any more.
    stop = r.next >> POOL_SHIFT
    if not r.ranges.count:
        stop += 1
    while number < stop and r.held:
        give_block(r, number & (r.capacity - 1))
        number += 1


cdef uint32_t first_ending_above(const Reassembly* r, uint64_t offset) noexcept nogil:
    """Return the index of the first range that ends above ``offset``."""
    cdef uint32_t low = 0
    cdef uint32_t high = r.ranges.count
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if r.ranges.items[middle].end <= offset:
            low = middle + 1
        else:
            high = middle
    return low


cdef int reserve_ring(Reassembly* r, uint64_t end) noexcept nogil:
    """Make the ring reach from ``next`` to ``end``."""
    cdef uint64_t first = r.next >> POOL_SHIFT
    cdef uint64_t needed = ((end - 1) >> POOL_SHIFT) - first + 1
    cdef uint64_t capacity = r.capacity if r.capacity else FIRST_RING
    cdef uint8_t** blocks
    cdef uint64_t number
    if needed <= r.capacity:
        return OK
    while capacity < needed:
        capacity *= 2
    if capacity > <uint64_t> 1 << 31:
        return OUT_OF_MEMORY
    blocks = <uint8_t**> calloc(capacity, sizeof(uint8_t*))
    if blocks is NULL:
        return OUT_OF_MEMORY
    for number in range(first, first + r.capacity):
        blocks[number & (capacity - 1)] = r.blocks[number & (r.capacity - 1)]
    free(r.blocks)
    r.blocks = blocks
    r.capacity = <uint32_t> capacity
    return OK


cdef int copy_in(
    Reassembly* r, uint64_t offset, const uint8_t* data, uint64_t size
) noexcept nogil:
    cdef size_t inside
    cdef size_t part
    cdef uint32_t slot
    while size:
        slot = (offset >> POOL_SHIFT) & (r.capacity - 1)
        if r.blocks[slot] is NULL:
            r.blocks[slot] = pool_take(r.pool)
            if r.blocks[slot] is NULL:
                return OUT_OF_MEMORY
            r.held += 1
        inside = offset & (POOL_BLOCK - 1)
        part = min(size, POOL_BLOCK - inside)
        memcpy(r.blocks[slot] + inside, data, part)
        offset += part
        data += part
        size -= part
    return OK


cdef inline void give_block(Reassembly* r, uint32_t slot) noexcept nogil:
    if r.blocks[slot] is not NULL:
        pool_give(r.pool, r.blocks[slot])
        r.blocks[slot] = NULL
        r.held -= 1


cdef void free_ring(Reassembly* r) noexcept nogil:
    free(r.blocks)
    r.blocks = NULL
    r.capacity = 0


@cython.final
@cython.auto_pickle(False)
cdef class ReceiveQueue:
    """A ``Reassembly`` with a pool of its own, for tests."""

    cdef Reassembly inner
    cdef Pool pool

    def __cinit__(self):
        pool_init(&self.pool, POOL_KEEP)
        reassembly_init(&self.inner, &self.pool)

    def __dealloc__(self):
        reassembly_free(&self.inner)
        pool_free(&self.pool)

    @property
    def next(self):
        """Offset below which everything was consumed."""
        return self.inner.next

    @property
    def highest(self):
        """Offset below which everything that was received lies."""
        return self.inner.highest

    @property
    def final_size(self):
        """The stream's final size, None until it is known."""
        if self.inner.final_size == FINAL_SIZE_UNKNOWN:
            return None
        return self.inner.final_size

    @property
    def buffered(self):
        """Bytes held."""
        return self.inner.buffered

    @property
    def ranges(self):
        """Offsets of the bytes held, ascending, as pairs (start, end)."""
        return [
            (self.inner.ranges.items[i].start, self.inner.ranges.items[i].end)
            for i in range(self.inner.ranges.count)
        ]

    @property
    def blocks_in_use(self):
        """Blocks that hold them."""
        return self.pool.in_use

    @property
    def slots(self):
        """Pointers to blocks that there is room for."""
        return self.inner.capacity

    @property
    def is_received(self):
        """Whether all bytes up to the final size have come."""
        return reassembly_is_received(&self.inner)

    def check(self, uint64_t offset, uint64_t size, bint fin=False):
        """Hold a frame against the final size, note nothing, and return the status."""
        return reassembly_check(&self.inner, offset, size, fin)

    def store(self, uint64_t offset, const uint8_t[::1] data not None, bint fin=False):
        """Check a frame, note its end, copy what is new, and return the status."""
        cdef uint64_t size = data.shape[0]
        cdef int status = reassembly_check(&self.inner, offset, size, fin)
        if status != OK:
            return status
        reassembly_note(&self.inner, offset + size, fin)
        return reassembly_store(&self.inner, offset, &data[0] if size else NULL, size)

    def store_crypto(self, uint64_t offset, const uint8_t[::1] data not None):
        """Take a CRYPTO frame and return the status."""
        cdef uint64_t size = data.shape[0]
        return reassembly_on_crypto(
            &self.inner, offset, &data[0] if size else NULL, size
        )

    def direct(self, uint64_t offset, uint64_t size):
        """Return how many of a frame's last bytes need no buffer."""
        return reassembly_direct(&self.inner, offset, size)

    def peek(self):
        """Return the bytes that are next, in one piece."""
        cdef const uint8_t* view = NULL
        cdef size_t size = reassembly_peek(&self.inner, &view)
        return (<const char*> view)[:size]

    def consume(self, uint64_t size):
        """Consume bytes that were peeked or are direct."""
        reassembly_consume(&self.inner, size)

    def read(self):
        """Peek and consume all bytes that are next."""
        parts = []
        while part := self.peek():
            parts.append(part)
            self.consume(len(part))
        return b"".join(parts)

    def drop(self):
        """Give back all data; the offsets stay."""
        reassembly_drop(&self.inner)

    def clear(self):
        """Make it as new."""
        reassembly_clear(&self.inner)
