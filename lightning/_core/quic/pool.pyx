"""The block pool's life; taking and giving back are inline in the .pxd."""

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport free


cdef void pool_init(Pool* p, uint32_t keep) noexcept nogil:
    p.unused = NULL
    p.kept = 0
    p.keep = keep
    p.in_use = 0


cdef void pool_free(Pool* p) noexcept nogil:
    cdef PoolBlock* block
    while p.unused is not NULL:
        block = p.unused
        p.unused = block.next
        free(block)
    p.kept = 0


@cython.final
@cython.auto_pickle(False)
cdef class BlockPool:
    """A pool for tests.

    Args:
        keep: Most unused blocks to keep, from 0.
    """

    cdef Pool pool
    cdef list taken

    def __cinit__(self, uint32_t keep=POOL_KEEP):
        pool_init(&self.pool, keep)
        self.taken = []

    def __dealloc__(self):
        pool_free(&self.pool)

    @property
    def in_use(self):
        """Blocks taken and not given back."""
        return self.pool.in_use

    @property
    def kept(self):
        """Unused blocks that wait for the next use."""
        return self.pool.kept

    def take(self):
        """Take a block and return its address.

        Raises:
            MemoryError: There is no memory.
        """
        cdef uint8_t* block = pool_take(&self.pool)
        if block is NULL:
            raise MemoryError
        self.taken.append(<size_t> block)
        return <size_t> block

    def give(self, address):
        """Give back a block.

        Raises:
            ValueError: The address is not that of a block in use.
        """
        self.taken.remove(address)
        pool_give(&self.pool, <uint8_t*> <size_t> address)
