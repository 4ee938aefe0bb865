"""How many connections each source address has and begins."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY
from lightning._core.quic.cidmap cimport lightning_fold

__all__ = ["SourceTable"]


# --- Life -------------------------------------------------------------------------

cdef int sources_init(
    Sources* s, uint64_t secret, uint32_t max_strangers, uint32_t max_new,
    uint32_t capacity
) noexcept nogil:
    cdef uint32_t buckets = 16
    memset(s, 0, sizeof(Sources))
    if not max_strangers and not max_new:
        return OK
    capacity = max(min(capacity, <uint32_t> SOURCES_MOST), <uint32_t> 1)
    while buckets < capacity:
        buckets <<= 1
    # Pages that no source has touched take no memory.
    s.entries = <Source*> calloc(<size_t> capacity + 1, sizeof(Source))
    s.buckets = <uint32_t*> calloc(buckets, sizeof(uint32_t))
    if s.entries is NULL or s.buckets is NULL:
        sources_free(s)
        return OUT_OF_MEMORY
    s.secret = secret
    s.mask = buckets - 1
    s.capacity = capacity
    s.max_strangers = max_strangers
    s.max_new = max_new
    return OK


cdef void sources_free(Sources* s) noexcept nogil:
    free(s.entries)
    free(s.buckets)
    s.entries = NULL
    s.buckets = NULL
    s.count = 0


# --- The table --------------------------------------------------------------------

cdef uint64_t key_of(const Address* a) noexcept nogil:
    """Return what tells sources apart: 64 bits, which no two share."""
    cdef uint8_t[12] mapped
    cdef uint8_t[8] part
    cdef uint64_t key = 0
    memset(mapped, 0, 10)
    mapped[10] = mapped[11] = 0xFF
    if a.family == 6 and memcmp(a.ip, mapped, 12) != 0:
        memcpy(part, a.ip, 8)
    else:
        # Before the four bytes what begins multicast addresses, which send nothing.
        memset(part, 0xFF, 4)
        memcpy(part + 4, a.ip + (12 if a.family == 6 else 0), 4)
    memcpy(&key, part, 8)
    return key


cdef inline uint32_t* bucket_of(Sources* s, uint64_t key) noexcept nogil:
    # Strangers choose addresses, and do not know the secret.
    return &s.buckets[
        <uint32_t> lightning_fold(key ^ s.secret, <uint64_t> 0x9E3779B97F4A7C15)
        & s.mask
    ]


cdef void unlist(Sources* s, uint32_t place) noexcept nogil:
    cdef Source* e = &s.entries[place]
    if e.before:
        s.entries[e.before].after = e.after
    else:
        s.first = e.after
    if e.after:
        s.entries[e.after].before = e.before
    else:
        s.last = e.before
    e.after = e.before = 0


cdef void list_last(Sources* s, uint32_t place) noexcept nogil:
    cdef Source* e = &s.entries[place]
    e.after = 0
    e.before = s.last
    if s.last:
        s.entries[s.last].after = place
    else:
        s.first = place
    s.last = place


cdef uint32_t forget_one(Sources* s) noexcept nogil:
    """Free the entry that was not used for longest; 0 if all have strangers."""
    cdef uint32_t place = s.first
    cdef uint32_t* link
    if not place:
        return 0
    unlist(s, place)
    link = bucket_of(s, s.entries[place].key)
    while link[0] != place:
        link = &s.entries[link[0]].chain
    link[0] = s.entries[place].chain
    memset(&s.entries[place], 0, sizeof(Source))
    return place


cdef uint32_t find(Sources* s, uint64_t key) noexcept nogil:
    cdef uint32_t place = bucket_of(s, key)[0]
    while place and s.entries[place].key != key:
        place = s.entries[place].chain
    return place


cdef uint32_t add(Sources* s, uint64_t key) noexcept nogil:
    """Make an entry, at the expense of another if need be; 0 is no room."""
    cdef uint32_t* link
    cdef uint32_t place
    if s.count < s.capacity:
        s.count += 1
        place = s.count
    else:
        place = forget_one(s)
        if not place:
            return 0
    link = bucket_of(s, key)
    s.entries[place].key = key
    s.entries[place].chain = link[0]
    link[0] = place
    list_last(s, place)
    return place


cdef int sources_admit(
    Sources* s, const Address* source, int64_t now, uint32_t* place
) noexcept nogil:
    cdef uint64_t key
    cdef uint32_t found
    cdef int64_t share = 0
    cdef int64_t paid_at = now
    cdef Source* e = NULL
    place[0] = 0
    if s.entries is NULL:
        return SOURCE_ADMITTED
    key = key_of(source)
    found = find(s, key)
    if found:
        e = &s.entries[found]
        if s.max_strangers and e.strangers >= s.max_strangers:
            return SOURCE_HAS_STRANGERS
        paid_at = max(e.paid_at, now)
    if s.max_new:
        share = <int64_t> SOURCES_WINDOW // s.max_new
        if paid_at - now > <int64_t> SOURCES_WINDOW - share:
            return SOURCE_TOO_FAST
    if not found:
        found = add(s, key)
        if not found:
            return SOURCE_NO_ROOM
        e = &s.entries[found]
    e.paid_at = paid_at + share
    if not e.strangers:
        unlist(s, found)
        if not s.max_strangers:
            list_last(s, found)
    if s.max_strangers:
        e.strangers += 1
        place[0] = found
    return SOURCE_ADMITTED


cdef void sources_leave(Sources* s, uint32_t place) noexcept nogil:
    if place == 0 or s.entries is NULL:
        return
    s.entries[place].strangers -= 1
    if not s.entries[place].strangers:
        list_last(s, place)


# --- Python face --------------------------------------------------------------------

cdef int address_of(bytes host, Address* a) except -1:
    memset(a, 0, sizeof(Address))
    if len(host) not in (4, 16):
        raise ValueError("an address has 4 or 16 bytes")
    a.family = 4 if len(host) == 4 else 6
    memcpy(a.ip, <const char*> host, len(host))
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class SourceTable:
    """A table of sources, for tests."""

    cdef Sources table

    def __init__(
        self, *, uint32_t max_strangers=0, uint32_t max_new=0, uint32_t capacity=16,
        uint64_t secret=1,
    ):
        sources_free(&self.table)
        if sources_init(
            &self.table, secret, max_strangers, max_new, capacity
        ) != OK:
            raise MemoryError

    def __dealloc__(self):
        sources_free(&self.table)

    def __len__(self):
        return self.table.count

    def admit(self, bytes host, double now):
        """Return a SourceVerdict as a number, and what `leave` takes."""
        cdef Address address
        cdef uint32_t place = 0
        cdef int verdict
        address_of(host, &address)
        verdict = sources_admit(
            &self.table, &address, <int64_t> (now * 1e6 + 0.5), &place
        )
        return verdict, place

    def leave(self, uint32_t place):
        """Count a connection no more; `place` is what `admit` gave."""
        if place > self.table.count:
            raise ValueError("no such place")
        sources_leave(&self.table, place)

    def strangers(self, bytes host):
        """Return how many a source has, None if it is not known."""
        cdef Address address
        cdef uint32_t place
        address_of(host, &address)
        place = find(&self.table, key_of(&address)) if self.table.entries else 0
        return self.table.entries[place].strangers if place else None
