"""A client's tokens by server."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY
from lightning._core.quic.paths cimport address_is


cdef void tokenstore_init(TokenStore* s) noexcept nogil:
    memset(s, 0, sizeof(TokenStore))


cdef void tokenstore_free(TokenStore* s) noexcept nogil:
    cdef uint32_t i
    for i in range(s.count):
        free(s.entries[i].data)
    free(s.entries)
    tokenstore_init(s)


cdef int tokenstore_put(
    TokenStore* s, const Address* address, const uint8_t* data, size_t size
) noexcept nogil:
    cdef KeptToken* entries
    cdef uint8_t* copy
    cdef uint32_t capacity
    cdef size_t ignored = 0
    if size == 0 or size > TOKEN_SIZE_KEPT:
        return OK
    copy = <uint8_t*> malloc(size)
    if copy is NULL:
        return OUT_OF_MEMORY
    free(tokenstore_take(s, address, &ignored))
    if s.count == TOKENS_KEPT:
        remove(s, 0)
    if s.count == s.capacity:
        # It doubles up to TOKENS_KEPT exactly.
        capacity = s.capacity << 1 if s.capacity else 8
        entries = <KeptToken*> realloc(s.entries, capacity * sizeof(KeptToken))
        if entries is NULL:
            free(copy)
            return OUT_OF_MEMORY
        s.entries = entries
        s.capacity = capacity
    memcpy(copy, data, size)
    s.entries[s.count].address = address[0]
    s.entries[s.count].data = copy
    s.entries[s.count].size = size
    s.count += 1
    return OK


cdef uint8_t* tokenstore_take(
    TokenStore* s, const Address* address, size_t* size
) noexcept nogil:
    cdef uint8_t* data
    cdef uint32_t i
    for i in range(s.count):
        if address_is(&s.entries[i].address, address):
            data = s.entries[i].data
            size[0] = s.entries[i].size
            s.entries[i].data = NULL
            remove(s, i)
            return data
    size[0] = 0
    return NULL


cdef void remove(TokenStore* s, uint32_t i) noexcept nogil:
    free(s.entries[i].data)
    s.count -= 1
    memmove(&s.entries[i], &s.entries[i + 1], (s.count - i) * sizeof(KeptToken))


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class TokenStoreFace:
    """A ``TokenStore`` of its own, for tests and tools. Addresses are IPv4's."""

    cdef TokenStore s

    def __cinit__(self):
        tokenstore_init(&self.s)

    def __dealloc__(self):
        tokenstore_free(&self.s)

    cdef int address(self, bytes ip, uint16_t port, Address* a) except -1:
        if len(ip) != 4:
            raise ValueError("an address has 4 bytes")
        memset(a, 0, sizeof(Address))
        a.family = 4
        a.port = port
        memcpy(a.ip, <const char*> ip, 4)
        return 0

    def put(self, bytes ip not None, uint16_t port, bytes token not None):
        """Keep a token, if it is not too large."""
        cdef Address a
        self.address(ip, port, &a)
        if tokenstore_put(&self.s, &a, token, len(token)) != OK:
            raise MemoryError

    def take(self, bytes ip not None, uint16_t port):
        """Take a server's token; empty if there is none."""
        cdef Address a
        cdef size_t size = 0
        cdef uint8_t* data
        cdef bytes token
        self.address(ip, port, &a)
        data = tokenstore_take(&self.s, &a, &size)
        token = data[:size] if data is not NULL else b""
        free(data)
        return token

    def free(self):
        """Forget all."""
        tokenstore_free(&self.s)

    def __len__(self):
        return self.s.count
