"""The hash table from connection IDs to connections."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY
from lightning._core.quic.packet cimport CID_MAX, cid_set


cdef void cidmap_init(CidMap* m, uint64_t key) noexcept nogil:
    memset(m, 0, sizeof(CidMap))
    m.key = key


cdef void cidmap_free(CidMap* m) noexcept nogil:
    cdef CidEntry* e
    cdef CidEntry* after
    cdef uint32_t i
    for i in range(m.capacity):
        e = m.buckets[i]
        while e is not NULL:
            after = e.next
            free(e)
            e = after
    free(m.buckets)
    m.buckets = NULL
    m.capacity = 0
    m.count = 0


cdef int grow(CidMap* m) noexcept nogil:
    cdef uint32_t capacity = m.capacity << 1 if m.capacity else 64
    cdef CidEntry** buckets = <CidEntry**> calloc(capacity, sizeof(CidEntry*))
    cdef CidEntry* e
    cdef CidEntry* after
    cdef CidEntry** slot
    cdef uint32_t i
    if buckets is NULL:
        return OUT_OF_MEMORY
    for i in range(m.capacity):
        e = m.buckets[i]
        while e is not NULL:
            after = e.next
            slot = &buckets[cidmap_hash(m, e.cid.bytes, e.cid.size) & (capacity - 1)]
            e.next = slot[0]
            slot[0] = e
            e = after
    free(m.buckets)
    m.buckets = buckets
    m.capacity = capacity
    return OK


cdef int cidmap_add(CidMap* m, const Cid* cid, void* owner) noexcept nogil:
    cdef CidEntry* e
    cdef CidEntry** slot
    if m.count >= m.capacity and grow(m) != OK:
        return OUT_OF_MEMORY
    e = <CidEntry*> malloc(sizeof(CidEntry))
    if e is NULL:
        return OUT_OF_MEMORY
    e.cid = cid[0]
    e.owner = owner
    slot = &m.buckets[cidmap_hash(m, cid.bytes, cid.size) & (m.capacity - 1)]
    e.next = slot[0]
    slot[0] = e
    m.count += 1
    return OK


cdef void cidmap_remove(CidMap* m, const Cid* cid, const void* owner) noexcept nogil:
    cdef CidEntry** slot
    cdef CidEntry* e
    if m.count == 0:
        return
    slot = &m.buckets[cidmap_hash(m, cid.bytes, cid.size) & (m.capacity - 1)]
    while slot[0] is not NULL:
        e = slot[0]
        if e.owner == owner and cid_is(&e.cid, cid.bytes, cid.size):
            slot[0] = e.next
            free(e)
            m.count -= 1
            return
        slot = &e.next


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class CidTable:
    """A ``CidMap`` of its own, for tests and tools. Owners are numbers from 1."""

    cdef CidMap m

    def __cinit__(self, uint64_t key=0):
        cidmap_init(&self.m, key)

    def __dealloc__(self):
        cidmap_free(&self.m)

    def add(self, bytes cid not None, uintptr_t owner):
        """Add an identifier that is not there."""
        cdef Cid made
        if len(cid) > CID_MAX:
            raise ValueError("a connection ID has at most 20 bytes")
        cid_set(&made, cid, len(cid))
        if cidmap_add(&self.m, &made, <void*> owner) != OK:
            raise MemoryError

    def remove(self, bytes cid not None, uintptr_t owner):
        """Remove an identifier, if it is that owner's."""
        cdef Cid made
        if len(cid) > CID_MAX:
            raise ValueError("a connection ID has at most 20 bytes")
        cid_set(&made, cid, len(cid))
        cidmap_remove(&self.m, &made, <const void*> owner)

    def find(self, bytes cid not None):
        """Return the owner of an identifier, None if it is not there."""
        return <uintptr_t> cidmap_find(&self.m, cid, len(cid)) or None

    def free(self):
        """Forget everything."""
        cidmap_free(&self.m)

    def __len__(self):
        return self.m.count

    @property
    def longest(self):
        """The most identifiers that share a bucket."""
        cdef CidEntry* e
        cdef uint32_t i
        lengths = [0]
        for i in range(self.m.capacity):
            e = self.m.buckets[i]
            length = 0
            while e is not NULL:
                length += 1
                e = e.next
            lengths.append(length)
        return max(lengths)
