"""How many connections each source address has and begins, in a table of fixed size.

A source is an IPv4 address or an IPv6 /64; an IPv4 address mapped into IPv6 is IPv4.
Each may have some strangers at a time, which are connections that nobody vouches for,
and begin some connections a minute. Every function takes constant time, whoever comes.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from lightning._core.quic.paths cimport Address


cdef enum SourcesSizes:
    SOURCES_WINDOW = 60000000  # microseconds in which `max_new` may begin
    SOURCES_MOST = 1 << 24  # entries of a table


cdef enum SourceVerdict:
    SOURCE_ADMITTED = 0
    SOURCE_HAS_STRANGERS = 1  # as many as it may
    SOURCE_TOO_FAST = 2
    SOURCE_NO_ROOM = 3  # every entry of the table has strangers


cdef struct Source:
    uint64_t key
    # When all that it began is paid for, at an even rate: as much ahead of the time as
    # a window is full (a leaky bucket).
    int64_t paid_at
    uint32_t strangers
    uint32_t chain  # the next of the bucket; 0 is none
    # In the list of those without strangers, the least recently used first.
    uint32_t after
    uint32_t before


cdef struct Sources:
    Source* entries  # from 1; NULL where there are no limits
    uint32_t* buckets
    uint32_t mask
    uint32_t capacity
    uint32_t count
    uint32_t first
    uint32_t last
    uint64_t secret
    uint32_t max_strangers  # 0 is any number
    uint32_t max_new  # likewise


# With both limits 0 there is no table. OK or OUT_OF_MEMORY. Free is idempotent.
cdef int sources_init(
    Sources* s, uint64_t secret, uint32_t max_strangers, uint32_t max_new,
    uint32_t capacity
) noexcept nogil
cdef void sources_free(Sources* s) noexcept nogil
# Let a source begin a connection, or not: a SourceVerdict. If it may, the connection
# counts, and what is written to `place` is owed to `sources_leave`.
cdef int sources_admit(
    Sources* s, const Address* source, int64_t now, uint32_t* place
) noexcept nogil
# A connection is no stranger any more: it has ended, or somebody vouches for it. 0 is
# fine.
cdef void sources_leave(Sources* s, uint32_t place) noexcept nogil
