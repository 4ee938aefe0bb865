"""Memory blocks of one size, kept for the next use.

Stream data, sent and received, lives in such blocks, so that the steady path neither
allocates nor fragments the heap. A pool has no lock: it belongs to an endpoint and is
used under the endpoint's mutex, by all of its connections.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc


cdef enum PoolSizes:
    # A block holds a small message with its frame header, or the payload of two to
    # three datagrams; waste is at most one block a stream and direction.
    POOL_SHIFT = 12
    POOL_BLOCK = 4096  # 1 << POOL_SHIFT
    # Blocks kept while unused: 1 MiB an endpoint.
    POOL_KEEP = 256


cdef struct PoolBlock:
    PoolBlock* next


cdef struct Pool:
    PoolBlock* unused
    uint32_t kept
    uint32_t keep  # most blocks kept
    uint64_t in_use  # blocks taken and not given back


# Life. Free releases the unused blocks only: those in use are their holders'.
cdef void pool_init(Pool* p, uint32_t keep) noexcept nogil
cdef void pool_free(Pool* p) noexcept nogil


cdef inline uint8_t* pool_take(Pool* p) noexcept nogil:
    """Return POOL_BLOCK bytes of any content, or NULL if there is no memory."""
    cdef PoolBlock* block = p.unused
    if block is not NULL:
        p.unused = block.next
        p.kept -= 1
    else:
        block = <PoolBlock*> malloc(POOL_BLOCK)
        if block is NULL:
            return NULL
    p.in_use += 1
    return <uint8_t*> block


cdef inline void pool_give(Pool* p, uint8_t* memory) noexcept nogil:
    """Give back a block that `pool_take` returned."""
    cdef PoolBlock* block = <PoolBlock*> memory
    p.in_use -= 1
    if p.kept >= p.keep:
        free(block)
        return
    block.next = p.unused
    p.unused = block
    p.kept += 1
