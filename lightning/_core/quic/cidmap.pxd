"""Which connection a connection ID belongs to: a hash table of an endpoint.

Entries are our own identifiers, which nobody else chooses, and the identifiers that
clients chose for their first packet; the hash is keyed for the sake of these.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lightning._core.quic.packet cimport Cid, cid_is


cdef struct CidEntry:
    CidEntry* next
    void* owner
    Cid cid


cdef struct CidMap:
    CidEntry** buckets  # a power of two of them, NULL until the first entry
    uint64_t key
    uint32_t capacity
    uint32_t count


cdef void cidmap_init(CidMap* m, uint64_t key) noexcept nogil
cdef void cidmap_free(CidMap* m) noexcept nogil
# OK or OUT_OF_MEMORY. The caller has seen that the identifier is not there.
cdef int cidmap_add(CidMap* m, const Cid* cid, void* owner) noexcept nogil
# Without effect if the identifier is another's.
cdef void cidmap_remove(CidMap* m, const Cid* cid, const void* owner) noexcept nogil


cdef extern from *:
    """
    // Fold the 128 bits of a product: each bit of it depends on most of both factors.
    static inline uint64_t lightning_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    uint64_t lightning_fold(uint64_t a, uint64_t b) noexcept nogil


cdef inline uint64_t cidmap_hash(
    const CidMap* m, const uint8_t* cid, size_t size
) noexcept nogil:
    """Mix up to 20 bytes with the key."""
    cdef uint64_t part = 0
    cdef uint64_t h = m.key
    while size >= 8:
        memcpy(&part, cid, 8)
        h = lightning_fold(h ^ part, <uint64_t> 0x9E3779B97F4A7C15)
        cid += 8
        size -= 8
    # Fewer than 8 are left; their number tells apart those that end in zeros.
    part = <uint64_t> size << 56
    memcpy(&part, cid, size)
    return lightning_fold(h ^ part, (m.key ^ <uint64_t> 0xD6E8FEB86659FD93) | 1)


cdef inline void* cidmap_find(
    const CidMap* m, const uint8_t* cid, size_t size
) noexcept nogil:
    """Return the owner, or NULL."""
    cdef CidEntry* e
    if m.count == 0:
        return NULL
    # The mask keeps the index within the table.
    e = m.buckets[cidmap_hash(m, cid, size) & (m.capacity - 1)]
    while e is not NULL:
        if cid_is(&e.cid, cid, size):
            return e.owner
        e = e.next
    return NULL
