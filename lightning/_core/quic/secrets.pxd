"""Random bytes from one seed, and the tokens that an endpoint makes from its secret.

Everything rests on one keyed function, HMAC-SHA256 cut to 16 bytes: a generator in
counter mode, stateless reset tokens (RFC 9000 10.3.2), and address tokens (8.1.2 to
8.1.4), which carry what is checked in their tag and no state.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.quic.packet cimport Cid
from lightning._core.quic.paths cimport Address


cdef enum SecretSizes:
    SECRET_SIZE = 32
    # kind, time, nonce, tag; a Retry token has the original CID with its length too.
    TOKEN_NEW_SIZE = 33
    TOKEN_MAX = 54
    TOKEN_RETRY = 0x52
    TOKEN_NEW = 0x4E
    # Nonces of tokens that were presented: one is good once (RFC 9000 8.1.4).
    TOKENS_REMEMBERED = 1024


cdef struct Random:
    uint8_t seed[32]
    uint64_t counter


cdef enum TokenVerdict:
    TOKEN_UNKNOWN = 0  # not one of ours, too old, used, or of another address
    TOKEN_PROVES_RETRY = 1  # `original` is the CID of the client's first Initial
    TOKEN_PROVES_ADDRESS = 2
    TOKEN_INVALID = 3  # a Retry token that is not good: INVALID_TOKEN


cdef struct Tokens:
    uint8_t key[32]
    uint64_t used[1024]
    uint32_t next_used
    int64_t retry_lifetime
    int64_t lifetime


cdef void random_bytes(Random* r, uint8_t* out, size_t size) noexcept nogil
cdef uint64_t random_below(Random* r, uint64_t bound) noexcept nogil

# `out` has TOKEN_MAX bytes; the size is returned. `scid` is the source CID of the
# Retry, which the client's next Initial is sent to.
cdef size_t token_make_retry(
    Tokens* t, Random* r, const Address* address, const Cid* original,
    const Cid* scid, int64_t now, uint8_t* out
) noexcept nogil
cdef size_t token_make_new(
    Tokens* t, Random* r, const Address* address, int64_t now, uint8_t* out
) noexcept nogil
cdef int token_check(
    Tokens* t, const Address* address, const Cid* dcid, const uint8_t* token,
    size_t size, int64_t now, Cid* original
) noexcept nogil
