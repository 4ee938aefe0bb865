"""Outgoing bytes of one stream, or of one CRYPTO level, until they are acknowledged.

Three offsets divide the stream: below ``base`` all is acknowledged and gone, below
``sent`` all was written at least once, below ``end`` the application has appended.
Between base and sent, two span sets tell what was acknowledged out of order and what
is to be written again; the rest is in flight.

In order everything is O(1) amortised, in the worst order a peer can choose O(log n).
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lightning._core.quic.pool cimport Pool
from lightning._core.quic.spans cimport Span, Spans, spans_first


cdef enum SendBufferSizes:
    # A larger body may be referenced: a copy of 16 KiB costs less than the hand-over.
    SEND_COPY_MAX = 16384


cdef enum FinFlags:
    FIN_QUEUED = 1  # `end` is the final size
    FIN_DUE = 2  # has to be written, for the first time or again
    FIN_SENT = 4
    FIN_ACKED = 8


# Owners of referenced bytes that nothing here points to any more. Shared by the buffers
# of an endpoint. The caller reads tokens[:count], sets count to 0, and releases each.
cdef struct Releases:
    void** tokens
    uint32_t count
    uint32_t capacity  # at least count + held, so that a release cannot fail
    uint32_t held  # references not yet released


cdef struct SendChunk:
    uint64_t start  # stream offset of its first byte
    size_t size
    uint8_t* data
    void* owner  # of referenced bytes, which are only read; NULL for a pool's block


cdef struct SendBuffer:
    Pool* pool
    Releases* releases
    # A ring, ascending and without gaps from `base` or below to `end`.
    SendChunk* chunks
    uint32_t capacity  # a power of two, 0 until the first chunk
    uint32_t first
    uint32_t count
    uint8_t fin  # FinFlags
    uint64_t base
    uint64_t sent
    uint64_t end
    Spans acked
    Spans lost


# Life. Init allocates nothing. Clear makes a buffer as new, but keeps a small ring;
# drop gives back all data and forgets the FIN, but keeps `sent`, for RESET_STREAM.
cdef void releases_init(Releases* r) noexcept nogil
cdef void releases_free(Releases* r) noexcept nogil
cdef void sendbuf_init(SendBuffer* b, Pool* pool, Releases* releases) noexcept nogil
cdef void sendbuf_free(SendBuffer* b) noexcept nogil
cdef void sendbuf_clear(SendBuffer* b) noexcept nogil
cdef void sendbuf_drop(SendBuffer* b) noexcept nogil

# The application. OK or OUT_OF_MEMORY; then a part may have been copied, and a
# reference has not been taken. Nothing may be appended after `sendbuf_finish`.
cdef int sendbuf_append(
    SendBuffer* b, const uint8_t* data, size_t size
) noexcept nogil
# The bytes stay where they are, unchanged, until `owner` (not NULL) is released.
cdef int sendbuf_append_ref(
    SendBuffer* b, const uint8_t* data, size_t size, void* owner
) noexcept nogil

# Writing. Copy a part of what `sendbuf_peek` told, from its start, and count it as in
# flight. Returns True if the frame carries the FIN.
cdef bint sendbuf_take(
    SendBuffer* b, uint64_t offset, size_t size, uint8_t* target
) noexcept nogil

# The fate of a frame that was written. OK or OUT_OF_MEMORY. A range may be lost and
# acknowledged later, or more than once; one frame may be declared lost to have its
# data probed while it is still in flight.
cdef int sendbuf_on_acked(
    SendBuffer* b, uint64_t offset, uint64_t size, bint fin
) noexcept nogil
cdef int sendbuf_on_lost(
    SendBuffer* b, uint64_t offset, uint64_t size, bint fin
) noexcept nogil


cdef inline void sendbuf_finish(SendBuffer* b) noexcept nogil:
    """Make what was appended so far the whole stream."""
    b.fin |= FIN_QUEUED | FIN_DUE


cdef inline bint sendbuf_peek(
    const SendBuffer* b, uint64_t room, uint64_t* offset, uint64_t* size
) noexcept nogil:
    """Tell what is to be written next: lost data first, then new data, then the FIN.

    ``room`` is how many new bytes flow control allows; it does not hold back lost ones.
    Returns False if there is nothing; with a ``size`` of 0, there is only the FIN.
    """
    cdef Span* lost = spans_first(&b.lost)
    if lost is not NULL:
        offset[0] = lost.start
        size[0] = lost.end - lost.start
        return True
    offset[0] = b.sent
    size[0] = min(b.end - b.sent, room)
    return size[0] > 0 or (b.sent == b.end and b.fin & FIN_DUE)


cdef inline bint sendbuf_is_sent(const SendBuffer* b) noexcept nogil:
    """Say if everything, with the FIN, was written at least once."""
    return b.fin & FIN_SENT and b.sent == b.end


cdef inline bint sendbuf_is_acked(const SendBuffer* b) noexcept nogil:
    """Say if everything, with the FIN, was acknowledged."""
    return b.fin & FIN_ACKED and b.base == b.end


cdef inline uint64_t sendbuf_size(const SendBuffer* b) noexcept nogil:
    """Return the bytes appended and not acknowledged in order."""
    return b.end - b.base
