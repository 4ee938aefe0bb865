"""Tokens that servers gave in NEW_TOKEN frames, for the next connection to them.

One a server, the newest; each is used once, so that connections are not linked by it
(RFC 9000 8.1.3). When the store is full, the one that came first goes.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

from lightning._core.quic.paths cimport Address


cdef enum TokenStoreLimits:
    TOKENS_KEPT = 512  # servers; a validator knows 256 miners of a subnet
    TOKEN_SIZE_KEPT = 1024  # bytes; ours has 33, quinn's 60


cdef struct KeptToken:
    Address address
    size_t size
    uint8_t* data


cdef struct TokenStore:
    KeptToken* entries  # by age; NULL until the first
    uint32_t count
    uint32_t capacity


cdef void tokenstore_init(TokenStore* s) noexcept nogil
cdef void tokenstore_free(TokenStore* s) noexcept nogil
# Keep a copy; one that is too large is not kept. OK or OUT_OF_MEMORY.
cdef int tokenstore_put(
    TokenStore* s, const Address* address, const uint8_t* data, size_t size
) noexcept nogil
# Take the token for a server, which is the caller's to free; NULL if there is none.
cdef uint8_t* tokenstore_take(
    TokenStore* s, const Address* address, size_t* size
) noexcept nogil
