"""The slow paths of the store of sent packets: memory."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY


cdef int records_grow(RecordPool* pool) noexcept nogil:
    """Add a slab of 2.5 KiB to the free records."""
    cdef FrameSlab* slab = <FrameSlab*> malloc(sizeof(FrameSlab))
    cdef int i
    if slab is NULL:
        return OUT_OF_MEMORY
    slab.next = pool.slabs
    pool.slabs = slab
    for i in range(SLAB_FRAMES):
        slab.frames[i].next = pool.free
        pool.free = &slab.frames[i]
    return OK


cdef void records_free(RecordPool* pool) noexcept nogil:
    """Free all records, those in use too."""
    cdef FrameSlab* slab = pool.slabs
    cdef FrameSlab* following
    while slab is not NULL:
        following = slab.next
        free(slab)
        slab = following
    pool.slabs = NULL
    pool.free = NULL
    pool.in_use = 0


cdef int sent_reserve(SentStore* s, uint64_t pn) noexcept nogil:
    """Make room in the ring for ``pn``, or give back a ring that became too large."""
    if s.tracked == 0 and 0 < s.capacity <= SENT_KEPT_CAPACITY:
        return OK
    return sent_resize(s, pn)


cdef int sent_resize(SentStore* s, uint64_t pn) noexcept nogil:
    """Take the smallest ring that has room for ``pn``."""
    cdef SentPacket* ring
    cdef SentPacket* p = sent_oldest(s)
    cdef uint32_t capacity = SENT_FIRST_CAPACITY
    while p is not NULL and pn - p.pn >= capacity:
        capacity *= 2
    # The span of numbers is bounded by the caller, and so is the product.
    ring = <SentPacket*> malloc(capacity * sizeof(SentPacket))
    if ring is NULL:
        return OUT_OF_MEMORY
    while p is not NULL:
        ring[<uint32_t> p.pn & (capacity - 1)] = p[0]
        p = sent_newer(s, p)
    free(s.ring)
    s.ring = ring
    s.capacity = capacity
    return OK


cdef void sent_trim(SentStore* s, RecordPool* pool) noexcept nogil:
    cdef RecordPool smaller
    cdef SentPacket* p = sent_oldest(s)
    cdef SentFrame* frames
    cdef SentFrame* frame
    cdef SentFrame* copy
    cdef uint64_t count = 0
    cdef uint64_t room = 0
    while p is not NULL:
        frame = p.frames
        while frame is not NULL:
            count += 1
            frame = frame.next if frame.next != p.frames else NULL
        p = sent_newer(s, p)
    if count != pool.in_use:
        return
    memset(&smaller, 0, sizeof(RecordPool))
    while room < count:
        if records_grow(&smaller) != OK:
            records_free(&smaller)
            return
        room += SLAB_FRAMES
    p = sent_oldest(s)
    while p is not NULL:
        frames = NULL
        frame = record_pop(&p.frames)
        while frame is not NULL:
            copy = record_take(&smaller, frame.kind)
            copy[0] = frame[0]  # record_append sets its link
            record_append(&frames, copy)
            frame = record_pop(&p.frames)
        p.frames = frames
        p = sent_newer(s, p)
    records_free(pool)
    pool[0] = smaller
    if s.tracked == 0:
        sent_free(s)
    else:
        sent_resize(s, sent_at(s, s.newest).pn)


cdef void sent_free(SentStore* s) noexcept nogil:
    """Forget all packets."""
    free(s.ring)
    s.ring = NULL
    s.capacity = 0
    s.tracked = 0
    s.ack_eliciting = 0


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class PacketStore:
    """A store of packets with one record each, for tests and tools."""

    cdef RecordPool pool
    cdef SentStore s
    cdef SentFrame* settled

    def __dealloc__(self):
        sent_free(&self.s)
        records_free(&self.pool)

    def append(self, uint64_t pn, *, bint ack_eliciting=True):
        """Track a packet with a PING record that has its number.

        Raises:
            MemoryError: There is no memory for it.
        """
        cdef uint8_t flags = PACKET_ACK_ELICITING if ack_eliciting else 0
        cdef SentPacket* p = sent_append(&self.s, pn, flags)
        cdef SentFrame* frame = record_take(&self.pool, SENT_PING)
        if p is NULL or frame is NULL:
            raise MemoryError
        frame.id = pn
        p.frames = NULL
        record_append(&p.frames, frame)

    def trim(self):
        """Give back what the tracked packets do not need; none is settled just now."""
        sent_trim(&self.s, &self.pool)

    @property
    def slabs(self):
        """How many slabs of records there are."""
        cdef FrameSlab* slab = self.pool.slabs
        count = 0
        while slab is not NULL:
            count += 1
            slab = slab.next
        return count

    def remove(self, uint64_t pn):
        """Stop tracking a packet, and move its record to the settled ones.

        Raises:
            KeyError: It is not tracked.
        """
        cdef SentPacket* p = sent_oldest(&self.s)
        while p is not NULL and p.pn != pn:
            p = sent_newer(&self.s, p)
        if p is NULL:
            raise KeyError(pn)
        record_join(&self.settled, p.frames)
        sent_remove(&self.s, p)

    def drain(self):
        """Give back the settled records; return their packets' numbers in order."""
        cdef SentFrame* frame = record_pop(&self.settled)
        numbers = []
        while frame is not NULL:
            numbers.append(frame.id)
            record_give(&self.pool, frame)
            frame = record_pop(&self.settled)
        return numbers

    def __iter__(self):
        cdef SentPacket* p = sent_oldest(&self.s)
        numbers = []
        while p is not NULL:
            numbers.append(p.pn)
            p = sent_newer(&self.s, p)
        return iter(numbers)

    def __len__(self):
        return self.s.tracked

    @property
    def ack_eliciting(self):
        """How many of them are ack-eliciting."""
        return self.s.ack_eliciting

    @property
    def capacity(self):
        """How many packet numbers the ring spans."""
        return self.s.capacity

    @property
    def records(self):
        """How many records are in use."""
        return self.pool.in_use
