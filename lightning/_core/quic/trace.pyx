"""A ring of bytes; records wrap around its end."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset


cdef Trace* trace_new(const int64_t* clock, size_t capacity) noexcept nogil:
    cdef Trace* t = <Trace*> malloc(sizeof(Trace))
    if t is NULL:
        return NULL
    memset(t, 0, sizeof(Trace))
    t.clock = clock
    t.capacity = capacity
    t.ring = <uint8_t*> malloc(capacity)
    if t.ring is NULL:
        free(t)
        return NULL
    return t


cdef void trace_free(Trace* t) noexcept nogil:
    if t is not NULL:
        free(t.ring)
        free(t)


cdef void trace_append(
    Trace* t, TraceRecord* record, const uint8_t* data, size_t size
) noexcept nogil:
    cdef size_t room = t.capacity - <size_t> (t.written - t.taken)
    cdef size_t kept = 0
    if TRACE_SENT <= record.kind <= TRACE_METRICS:
        kept = TRACE_RESERVE
    # No datagram is longer than 65535 bytes, and so no payload.
    if size > 65535 or sizeof(TraceRecord) + size + kept > room:
        t.dropped += 1
        return
    record.time = t.clock[0]
    record.length = <uint16_t> size
    put(t, <const uint8_t*> record, sizeof(TraceRecord))
    put(t, data, size)


cdef inline void put(Trace* t, const uint8_t* data, size_t size) noexcept nogil:
    """Write bytes for which there is room."""
    cdef size_t start = <size_t> t.written & (t.capacity - 1)
    cdef size_t first = min(size, t.capacity - start)
    t.written += size
    if size == 0:
        return
    memcpy(t.ring + start, data, first)
    if first < size:
        memcpy(t.ring, data + first, size - first)


cdef inline void peek(const Trace* t, uint8_t* out, size_t size) noexcept nogil:
    """Copy the oldest bytes, of which there are as many."""
    cdef size_t start = <size_t> t.taken & (t.capacity - 1)
    cdef size_t first = min(size, t.capacity - start)
    memcpy(out, t.ring + start, first)
    if first < size:
        memcpy(out + first, t.ring, size - first)


cdef size_t trace_read(Trace* t, uint8_t* out, size_t capacity) noexcept nogil:
    cdef TraceRecord record
    cdef size_t total = 0
    cdef size_t size
    while t.taken != t.written:
        peek(t, <uint8_t*> &record, sizeof(TraceRecord))
        size = sizeof(TraceRecord) + record.length
        if size > capacity - total:
            break
        peek(t, out + total, size)
        t.taken += size
        total += size
    return total


cdef tuple NAMES = (
    "started", "sent", "received", "dropped", "lost", "metrics", "key_updated",
    "key_discarded", "parameters", "path", "closed", "ended",
)  # by TraceKind


cdef list trace_records(const uint8_t* data, size_t size):
    cdef list records = []
    cdef TraceRecord record
    cdef size_t pos = 0
    # The bytes are whole records of our own.
    while pos < size:
        memcpy(&record, data + pos, sizeof(TraceRecord))
        pos += sizeof(TraceRecord)
        records.append((
            record.time, record.connection, NAMES[<int> record.kind], record.number,
            record.size, record.type, record.detail, record.ecn,
            PyBytes_FromStringAndSize(<const char*> data + pos, record.length),
        ))
        pos += record.length
    return records


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class TraceRing:
    """A ring for tests, with a clock that is set.

    Attributes:
        now: The time of the next records, in microseconds.
    """

    cdef Trace* t
    cdef public int64_t now

    def __cinit__(self, size_t capacity=TRACE_CAPACITY):
        """Make a ring.

        Raises:
            ValueError: The capacity is no power of two, or not above 65536.
        """
        if capacity <= <size_t> TRACE_RESERVE or capacity & (capacity - 1):
            raise ValueError("the capacity must be a power of two above 65536")
        self.t = trace_new(&self.now, capacity)
        if self.t is NULL:
            raise MemoryError

    def __dealloc__(self):
        trace_free(self.t)

    def append(self, str kind not None, bytes data=b"", uint64_t number=0):
        """Append a record of connection 7, with the bytes that follow it."""
        cdef TraceRecord record
        memset(&record, 0, sizeof(TraceRecord))
        record.connection = 7
        record.kind = NAMES.index(kind)
        record.number = number
        trace_append(self.t, &record, <const uint8_t*> <const char*> data, len(data))

    def read(self):
        """Return the records of one piece, and how many did not fit until now."""
        cdef uint8_t* piece = <uint8_t*> malloc(TRACE_PIECE)
        cdef size_t size
        if piece is NULL:
            raise MemoryError
        size = trace_read(self.t, piece, TRACE_PIECE)
        try:
            return trace_records(piece, size), self.t.dropped
        finally:
            free(piece)
