"""Incoming bytes of one stream, or of one CRYPTO level, put back in order.

Data that is next in line needs no buffer: ``reassembly_direct`` says so, and the
consumer reads it where the datagram lies. What it leaves, and what came early, is
copied to the one place that its offset has, so overlap and repetition cost no memory.
Blocks cover only offsets that hold data above ``next``; flow control bounds these.

Bytes once received do not change, whatever the peer sends for the same offsets.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lightning._core.quic.buffer cimport (
    E_FINAL_SIZE, E_FRAME_ENCODING, OK, VARINT_MAX,
)
from lightning._core.quic.pool cimport Pool
from lightning._core.quic.ranges cimport Ranges


cdef enum ReassemblyLimits:
    # Bytes of a CRYPTO level kept above what TLS has consumed. RFC 9000 section 7.5
    # asks for 4096 at least; a chain of certificates has to fit.
    CRYPTO_BUFFER = 65536


cdef enum: FINAL_SIZE_UNKNOWN = 0x7FFFFFFFFFFFFFFF  # above any size


cdef struct Reassembly:
    uint64_t next  # everything below was consumed
    uint64_t highest  # everything received is below
    uint64_t final_size  # FINAL_SIZE_UNKNOWN until the FIN or a reset
    uint64_t buffered  # bytes held
    Ranges ranges  # offsets of the bytes held, RANGES_STREAM at most
    Pool* pool
    uint8_t** blocks  # a ring by block number, NULL where nothing is held
    uint32_t capacity  # of the ring: a power of two, 0 until the first block
    uint32_t held  # blocks in the ring


# Life. Init allocates nothing. Clear makes it as new, but keeps little arrays; drop
# gives back all data and keeps the offsets.
cdef void reassembly_init(Reassembly* r, Pool* pool) noexcept nogil
cdef void reassembly_free(Reassembly* r) noexcept nogil
cdef void reassembly_clear(Reassembly* r) noexcept nogil
cdef void reassembly_drop(Reassembly* r) noexcept nogil

# Copy what is new of a frame that passed `reassembly_check`. OK, OUT_OF_MEMORY, or
# E_INTERNAL if there would be too many gaps.
cdef int reassembly_store(
    Reassembly* r, uint64_t offset, const uint8_t* data, uint64_t size
) noexcept nogil
# All of the above for a CRYPTO frame; also E_FRAME_ENCODING, E_CRYPTO_BUFFER_EXCEEDED.
cdef int reassembly_on_crypto(
    Reassembly* r, uint64_t offset, const uint8_t* data, uint64_t size
) noexcept nogil

# Consume. Peek points `view` at bytes that are next and returns how many there are in
# one piece; they stay until consumed. Consume takes what was peeked or is direct.
cdef size_t reassembly_peek(const Reassembly* r, const uint8_t** view) noexcept nogil
cdef void reassembly_consume(Reassembly* r, uint64_t size) noexcept nogil


cdef inline int reassembly_check(
    const Reassembly* r, uint64_t offset, uint64_t size, bint fin
) noexcept nogil:
    """Hold a frame against the offsets there are and the final size.

    Returns OK, E_FRAME_ENCODING (RFC 9000 section 19.8) or E_FINAL_SIZE (section 4.5).
    """
    cdef uint64_t end
    if offset > <uint64_t> VARINT_MAX or size > <uint64_t> VARINT_MAX - offset:
        return E_FRAME_ENCODING
    end = offset + size
    if r.final_size != <uint64_t> FINAL_SIZE_UNKNOWN:
        if end > r.final_size or (fin and end != r.final_size):
            return E_FINAL_SIZE
    elif fin and end < r.highest:
        return E_FINAL_SIZE
    return OK


cdef inline void reassembly_note(Reassembly* r, uint64_t end, bint fin) noexcept nogil:
    """Note the end of a frame that was found good."""
    if end > r.highest:
        r.highest = end
    if fin:
        r.final_size = end


cdef inline uint64_t reassembly_direct(
    const Reassembly* r, uint64_t offset, uint64_t size
) noexcept nogil:
    """Return how many of the frame's last bytes may be consumed without a copy."""
    if offset > r.next or size <= r.next - offset:
        return 0
    # Buffered bytes come first: the consumer may have seen them already.
    if r.ranges.count and r.ranges.items[0].start <= r.next:
        return 0
    return size - (r.next - offset)


cdef inline bint reassembly_is_received(const Reassembly* r) noexcept nogil:
    """Say if all bytes up to the final size have come."""
    if r.next == r.final_size:
        return True
    return (
        r.ranges.count == 1
        and r.ranges.items[0].start <= r.next
        and r.ranges.items[0].end == r.final_size
    )
