"""Outgoing stream data: appended, written, written again, acknowledged.

Source: RFC 9000 sections 2.2, 3.1 and 13.3.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY
from lightning._core.quic.pool cimport (
    POOL_BLOCK, POOL_KEEP, Pool, pool_free, pool_give, pool_init, pool_take,
)
from lightning._core.quic.spans cimport (
    Span, spans_add, spans_first, spans_free, spans_from, spans_init, spans_remove,
    spans_take,
)

cdef enum:
    FIRST_RING = 4
    KEPT_RING = 16  # chunks of a ring that a cleared buffer may keep


cdef void releases_init(Releases* r) noexcept nogil:
    r.tokens = NULL
    r.count = 0
    r.capacity = 0
    r.held = 0


cdef void releases_free(Releases* r) noexcept nogil:
    free(r.tokens)
    releases_init(r)


cdef void sendbuf_init(SendBuffer* b, Pool* pool, Releases* releases) noexcept nogil:
    b.pool = pool
    b.releases = releases
    b.chunks = NULL
    b.capacity = 0
    b.first = 0
    b.count = 0
    b.fin = 0
    b.base = 0
    b.sent = 0
    b.end = 0
    spans_init(&b.acked)
    spans_init(&b.lost)


cdef void sendbuf_free(SendBuffer* b) noexcept nogil:
    sendbuf_drop(b)
    free(b.chunks)
    b.chunks = NULL
    b.capacity = 0


cdef void sendbuf_clear(SendBuffer* b) noexcept nogil:
    sendbuf_drop(b)
    if b.capacity > KEPT_RING:
        free(b.chunks)
        b.chunks = NULL
        b.capacity = 0
    b.first = 0
    b.base = 0
    b.sent = 0
    b.end = 0


cdef void sendbuf_drop(SendBuffer* b) noexcept nogil:
    while b.count:
        release_first(b)
    if b.acked.head is not NULL:
        spans_free(&b.acked)
    if b.lost.head is not NULL:
        spans_free(&b.lost)
    b.fin = 0
    b.base = b.sent
    b.end = b.sent


cdef int sendbuf_append(
    SendBuffer* b, const uint8_t* data, size_t size
) noexcept nogil:
    cdef SendChunk* chunk
    cdef uint8_t* block
    cdef size_t part
    while size:
        chunk = NULL
        if b.count:
            chunk = chunk_at(b, b.count - 1)
        if chunk is NULL or chunk.owner is not NULL or chunk.size >= POOL_BLOCK:
            if reserve_chunk(b):
                return OUT_OF_MEMORY
            block = pool_take(b.pool)
            if block is NULL:
                return OUT_OF_MEMORY
            chunk = push_chunk(b, block, 0, NULL)
        part = min(size, POOL_BLOCK - chunk.size)
        memcpy(chunk.data + chunk.size, data, part)
        chunk.size += part
        b.end += part
        data += part
        size -= part
    return OK


cdef int sendbuf_append_ref(
    SendBuffer* b, const uint8_t* data, size_t size, void* owner
) noexcept nogil:
    if reserve_release(b.releases) or reserve_chunk(b):
        return OUT_OF_MEMORY
    b.releases.held += 1
    if not size:
        # Nothing will be acknowledged that could release it.
        release_owner(b.releases, owner)
        return OK
    push_chunk(b, <uint8_t*> data, size, owner)
    b.end += size
    return OK


cdef bint sendbuf_take(
    SendBuffer* b, uint64_t offset, size_t size, uint8_t* target
) noexcept nogil:
    cdef uint64_t end = offset + size
    copy_out(b, offset, size, target)
    if offset < b.sent:
        spans_take(&b.lost, size)
    else:
        b.sent = end
    if end == b.end and b.fin & FIN_QUEUED:
        b.fin = (b.fin & ~FIN_DUE) | FIN_SENT
        return True
    return False


cdef int sendbuf_on_acked(
    SendBuffer* b, uint64_t offset, uint64_t size, bint fin
) noexcept nogil:
    cdef uint64_t end = min(offset + size, b.sent)
    cdef Span* span
    cdef SendChunk* chunk
    if fin:
        b.fin = (b.fin & ~FIN_DUE) | FIN_ACKED
    if end <= b.base or end <= offset:
        return OK
    if b.lost.count and spans_remove(&b.lost, offset, end):
        return OUT_OF_MEMORY
    if offset > b.base:
        return spans_add(&b.acked, offset, end)
    b.base = end
    span = spans_first(&b.acked)
    while span is not NULL and span.start <= b.base:
        b.base = max(b.base, span.end)
        spans_take(&b.acked, span.end - span.start)
        span = spans_first(&b.acked)
    while b.count:
        chunk = chunk_at(b, 0)
        # The last block goes as soon as it is empty of work, so that an idle stream
        # holds none.
        if chunk.start + chunk.size > b.base:
            break
        release_first(b)
    return OK


cdef int sendbuf_on_lost(
    SendBuffer* b, uint64_t offset, uint64_t size, bint fin
) noexcept nogil:
    cdef uint64_t end = min(offset + size, b.sent)
    cdef uint64_t start = max(offset, b.base)
    cdef Span* acked
    if fin and b.fin & FIN_QUEUED and not b.fin & FIN_ACKED:
        b.fin |= FIN_DUE
    acked = spans_from(&b.acked, start)
    while start < end:
        if acked is NULL or acked.start >= end:
            return spans_add(&b.lost, start, end)
        if spans_add(&b.lost, start, acked.start):
            return OUT_OF_MEMORY
        start = acked.end
        acked = acked.next[0]
    return OK


cdef inline SendChunk* chunk_at(SendBuffer* b, uint32_t index) noexcept nogil:
    return &b.chunks[(b.first + index) & (b.capacity - 1)]


cdef int reserve_chunk(SendBuffer* b) noexcept nogil:
    """Make room for one chunk more."""
    cdef uint32_t capacity
    cdef uint32_t turned
    cdef SendChunk* chunks
    if b.count < b.capacity:
        return OK
    capacity = b.capacity * 2 if b.capacity else FIRST_RING
    if not capacity:  # 2 ** 32 chunks; they wrapped.
        return OUT_OF_MEMORY
    chunks = <SendChunk*> malloc(<size_t> capacity * sizeof(SendChunk))
    if chunks is NULL:
        return OUT_OF_MEMORY
    turned = b.capacity - b.first  # chunks before the ring's turning point
    if b.count:
        memcpy(chunks, b.chunks + b.first, turned * sizeof(SendChunk))
        memcpy(chunks + turned, b.chunks, b.first * sizeof(SendChunk))
    free(b.chunks)
    b.chunks = chunks
    b.capacity = capacity
    b.first = 0
    return OK


cdef SendChunk* push_chunk(
    SendBuffer* b, uint8_t* data, size_t size, void* owner
) noexcept nogil:
    """Append a chunk; reserve_chunk has made the room."""
    cdef SendChunk* chunk = chunk_at(b, b.count)
    chunk.start = b.end
    chunk.size = size
    chunk.data = data
    chunk.owner = owner
    b.count += 1
    return chunk


cdef void release_first(SendBuffer* b) noexcept nogil:
    cdef SendChunk* chunk = chunk_at(b, 0)
    if chunk.owner is NULL:
        pool_give(b.pool, chunk.data)
    else:
        release_owner(b.releases, chunk.owner)
    b.first = (b.first + 1) & (b.capacity - 1)
    b.count -= 1


cdef int reserve_release(Releases* r) noexcept nogil:
    """Make room for the release of one reference more."""
    cdef uint32_t capacity
    cdef void* tokens
    if r.held < r.capacity - r.count:
        return OK
    capacity = r.capacity * 2 if r.capacity else 16
    if not capacity:  # 2 ** 32 references; they wrapped.
        return OUT_OF_MEMORY
    tokens = realloc(r.tokens, <size_t> capacity * sizeof(void*))
    if tokens is NULL:
        return OUT_OF_MEMORY
    r.tokens = <void**> tokens
    r.capacity = capacity
    return OK


cdef void release_owner(Releases* r, void* owner) noexcept nogil:
    r.tokens[r.count] = owner
    r.count += 1
    r.held -= 1


cdef void copy_out(
    SendBuffer* b, uint64_t offset, size_t size, uint8_t* target
) noexcept nogil:
    """Gather [offset, offset + size), which must be in the buffer."""
    cdef SendChunk* chunk
    cdef uint32_t low = 0
    cdef uint32_t high = b.count
    cdef uint32_t middle
    cdef size_t skip
    cdef size_t part
    # The last chunk that starts at or below the offset.
    while high - low > 1:
        middle = low + (high - low) // 2
        if chunk_at(b, middle).start <= offset:
            low = middle
        else:
            high = middle
    while size and low < b.count:
        chunk = chunk_at(b, low)
        skip = offset - chunk.start
        part = min(size, chunk.size - skip)
        memcpy(target, chunk.data + skip, part)
        target += part
        offset += part
        size -= part
        low += 1


@cython.final
@cython.auto_pickle(False)
cdef class SendQueue:
    """A ``SendBuffer`` with a pool of its own, for tests."""

    cdef SendBuffer buffer
    cdef Pool pool
    cdef Releases releases

    def __cinit__(self):
        pool_init(&self.pool, POOL_KEEP)
        releases_init(&self.releases)
        sendbuf_init(&self.buffer, &self.pool, &self.releases)

    def __dealloc__(self):
        sendbuf_free(&self.buffer)
        self.released()
        releases_free(&self.releases)
        pool_free(&self.pool)

    @property
    def base(self):
        """Offset below which everything is acknowledged."""
        return self.buffer.base

    @property
    def sent(self):
        """Offset below which everything was written at least once."""
        return self.buffer.sent

    @property
    def end(self):
        """Offset below which everything was appended."""
        return self.buffer.end

    @property
    def blocks_in_use(self):
        """Blocks that the buffer holds."""
        return self.pool.in_use

    @property
    def references_held(self):
        """Referenced bodies that were not released yet."""
        return self.releases.held

    @property
    def is_sent(self):
        """Whether everything, with the FIN, was written at least once."""
        return sendbuf_is_sent(&self.buffer)

    @property
    def is_acked(self):
        """Whether everything, with the FIN, was acknowledged."""
        return sendbuf_is_acked(&self.buffer)

    @property
    def size(self):
        """Bytes appended and not acknowledged in order."""
        return sendbuf_size(&self.buffer)

    def append(self, const uint8_t[::1] data not None):
        """Copy bytes to the end and return the status."""
        return sendbuf_append(
            &self.buffer, &data[0] if data.shape[0] else NULL, data.shape[0]
        )

    def append_ref(self, bytes data not None):
        """Reference an object's bytes at the end and return the status."""
        Py_INCREF(data)
        return sendbuf_append_ref(
            &self.buffer, <const uint8_t*> <const char*> data, len(data), <void*> data
        )

    def finish(self):
        """Make what was appended so far the whole stream."""
        sendbuf_finish(&self.buffer)

    def peek(self, uint64_t room=2**62):
        """Return the offset and the size of what is next, or None."""
        cdef uint64_t offset = 0
        cdef uint64_t size = 0
        if sendbuf_peek(&self.buffer, room, &offset, &size):
            return offset, size
        return None

    def write(self, uint64_t size, uint64_t room=2**62):
        """Take up to ``size`` bytes of what is next: offset, bytes and FIN, or None.

        Raises:
            MemoryError: There is no memory for the bytes.
        """
        cdef uint64_t offset = 0
        cdef uint64_t available = 0
        cdef uint8_t* target
        if not sendbuf_peek(&self.buffer, room, &offset, &available):
            return None
        size = min(size, available)
        # A block of exactly this size lets a sanitizer see a write past the end.
        target = <uint8_t*> PyMem_Malloc(size if size else 1)
        if target is NULL:
            raise MemoryError
        try:
            fin = sendbuf_take(&self.buffer, offset, size, target)
            return offset, (<char*> target)[:size], fin
        finally:
            PyMem_Free(target)

    def on_acked(self, uint64_t offset, uint64_t size, bint fin=False):
        """Take an acknowledgement and return the status."""
        return sendbuf_on_acked(&self.buffer, offset, size, fin)

    def on_lost(self, uint64_t offset, uint64_t size, bint fin=False):
        """Take a loss and return the status."""
        return sendbuf_on_lost(&self.buffer, offset, size, fin)

    def drop(self):
        """Give back all data; the offsets stay."""
        sendbuf_drop(&self.buffer)

    def clear(self):
        """Make the buffer as new."""
        sendbuf_clear(&self.buffer)

    def released(self):
        """Return the referenced objects that nothing points to any more."""
        tokens = []
        for index in range(self.releases.count):
            token = <object> self.releases.tokens[index]
            tokens.append(token)
            Py_DECREF(token)
        self.releases.count = 0
        return tokens
