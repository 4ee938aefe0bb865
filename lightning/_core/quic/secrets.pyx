"""Randomness and address tokens."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from lightning._core.quic.buffer cimport load_u64, store_u64
from lightning._core.quic.packet cimport CID_MAX, cid_set
from lightning._core.quic.protection cimport (
    equal_in_constant_time, reset_token_derive
)


cdef void keyed(
    const uint8_t* key, size_t key_size, const uint8_t* data, uint8_t size,
    uint8_t* out
) noexcept nogil:
    """Write 16 bytes that depend on a key and on up to 20 bytes of data."""
    cdef Cid message
    cid_set(&message, data, size)
    if reset_token_derive(key, key_size, &message, out) != 0:
        # libcrypto has no memory. The callers' answers stay unpredictable to others
        # because nothing that was derived from them is accepted.
        memset(out, 0, 16)


cdef void random_bytes(Random* r, uint8_t* out, size_t size) noexcept nogil:
    cdef uint8_t block[16]
    cdef uint8_t counter[8]
    cdef size_t piece
    while size:
        store_u64(counter, r.counter)
        r.counter += 1
        keyed(r.seed, SECRET_SIZE, counter, 8, block)
        piece = min(size, <size_t> 16)
        memcpy(out, block, piece)
        out += piece
        size -= piece


cdef uint64_t random_below(Random* r, uint64_t bound) noexcept nogil:
    """Return a number below ``bound``; for bounds far below 2^64."""
    cdef uint8_t block[8]
    random_bytes(r, block, 8)
    return load_u64(block) % bound


# --- Address tokens -------------------------------------------------------------------
#
# kind (1) | time, masked (8) | nonce (8) | [length (1) | original CID] | tag (16)
#
# The mask hides when a token was made, so that its later use is not linked to the
# connection that it came from (RFC 9000 8.1.4).

cdef void token_tag(
    const Tokens* t, const Address* address, uint8_t kind, const uint8_t* time_nonce,
    const Cid* original, const Cid* scid, uint8_t* tag
) noexcept nogil:
    """Derive the tag: a cascade, each step keyed with the result of the last."""
    cdef uint8_t part[20]
    cdef uint8_t state[16]
    part[0] = kind
    part[1] = address.family
    memcpy(&part[2], address.ip, 16)
    # A token of NEW_TOKEN outlives the client's port.
    part[18] = <uint8_t> (address.port >> 8) if kind == TOKEN_RETRY else 0
    part[19] = <uint8_t> address.port if kind == TOKEN_RETRY else 0
    keyed(t.key, SECRET_SIZE, part, 20, state)
    keyed(state, 16, time_nonce, 16, state)
    if kind == TOKEN_RETRY:
        keyed(state, 16, original.bytes, original.size, state)
        keyed(state, 16, scid.bytes, scid.size, state)
    memcpy(tag, state, 16)


cdef uint64_t token_mask(
    const Tokens* t, uint8_t kind, const uint8_t* nonce
) noexcept nogil:
    cdef uint8_t part[9]
    cdef uint8_t block[16]
    part[0] = kind
    memcpy(&part[1], nonce, 8)
    keyed(t.key, SECRET_SIZE, part, 9, block)
    return load_u64(block)


cdef size_t make(
    Tokens* t, Random* r, uint8_t kind, const Address* address, const Cid* original,
    const Cid* scid, int64_t now, uint8_t* out
) noexcept nogil:
    cdef uint8_t time_nonce[16]
    cdef uint8_t* pos = out
    store_u64(time_nonce, <uint64_t> now)
    random_bytes(r, &time_nonce[8], 8)
    pos[0] = kind
    store_u64(pos + 1, <uint64_t> now ^ token_mask(t, kind, &time_nonce[8]))
    memcpy(pos + 9, &time_nonce[8], 8)
    pos += 17
    if kind == TOKEN_RETRY:
        pos[0] = original.size
        memcpy(pos + 1, original.bytes, original.size)
        pos += 1 + original.size
    token_tag(t, address, kind, time_nonce, original, scid, pos)
    return <size_t> (pos + 16 - out)


cdef size_t token_make_retry(
    Tokens* t, Random* r, const Address* address, const Cid* original,
    const Cid* scid, int64_t now, uint8_t* out
) noexcept nogil:
    return make(t, r, TOKEN_RETRY, address, original, scid, now, out)


cdef size_t token_make_new(
    Tokens* t, Random* r, const Address* address, int64_t now, uint8_t* out
) noexcept nogil:
    cdef Cid none
    none.size = 0
    return make(t, r, TOKEN_NEW, address, &none, &none, now, out)


cdef int token_check(
    Tokens* t, const Address* address, const Cid* dcid, const uint8_t* token,
    size_t size, int64_t now, Cid* original
) noexcept nogil:
    """Say what a token of an Initial proves (RFC 9000 8.1.3)."""
    cdef uint8_t time_nonce[16]
    cdef uint8_t tag[16]
    cdef uint8_t kind
    cdef size_t pos = 17
    cdef int64_t made
    cdef uint64_t nonce
    cdef int i
    original.size = 0
    if size < TOKEN_NEW_SIZE or size > TOKEN_MAX:
        return TOKEN_UNKNOWN
    kind = token[0]
    if kind == TOKEN_RETRY:
        if token[17] > CID_MAX or size != <size_t> TOKEN_NEW_SIZE + 1 + token[17]:
            return TOKEN_UNKNOWN
        cid_set(original, token + 18, token[17])
        pos = 18 + token[17]
    elif kind != TOKEN_NEW or size != TOKEN_NEW_SIZE:
        return TOKEN_UNKNOWN
    nonce = load_u64(token + 9)
    made = <int64_t> (load_u64(token + 1) ^ token_mask(t, kind, token + 9))
    store_u64(time_nonce, <uint64_t> made)
    store_u64(&time_nonce[8], nonce)
    token_tag(t, address, kind, time_nonce, original, dcid, tag)
    if not equal_in_constant_time(tag, token + pos, 16):
        # Another of our processes may have made it, or nobody: only what claims to
        # answer a Retry of ours is an error (section 8.1.3).
        return TOKEN_INVALID if kind == TOKEN_RETRY else TOKEN_UNKNOWN
    if kind == TOKEN_RETRY:
        if made > now or now - made > t.retry_lifetime:
            return TOKEN_INVALID
        return TOKEN_PROVES_RETRY
    if made > now or now - made > t.lifetime:
        return TOKEN_UNKNOWN
    for i in range(TOKENS_REMEMBERED):
        if t.used[i] == nonce:
            return TOKEN_UNKNOWN
    t.used[t.next_used] = nonce
    t.next_used = (t.next_used + 1) % TOKENS_REMEMBERED
    return TOKEN_PROVES_ADDRESS


# --- Python face --------------------------------------------------------------------

cdef int to_address(bytes ip, uint16_t port, Address* a) except -1:
    if len(ip) not in (4, 16):
        raise ValueError("an address has 4 or 16 bytes")
    memset(a, 0, sizeof(Address))
    a.family = 4 if len(ip) == 4 else 6
    a.port = port
    memcpy(a.ip, <const char*> ip, len(ip))
    return 0


cdef int to_cid(bytes data, Cid* cid) except -1:
    if len(data) > CID_MAX:
        raise ValueError("a connection ID has at most 20 bytes")
    cid_set(cid, data, len(data))
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class RandomFace:
    """A ``Random`` of its own, for tests and tools."""

    cdef Random r

    def __cinit__(self, bytes seed not None):
        if len(seed) != SECRET_SIZE:
            raise ValueError("a seed has 32 bytes")
        memcpy(self.r.seed, <const char*> seed, SECRET_SIZE)

    def take(self, size_t size):
        """Return that many bytes."""
        cdef bytearray out = bytearray(size)
        random_bytes(&self.r, <uint8_t*> <char*> out, size)
        return bytes(out)

    def below(self, uint64_t bound):
        """Return a number below ``bound``, which is not 0."""
        if bound == 0:
            raise ValueError("nothing is below 0")
        return random_below(&self.r, bound)


@cython.final
@cython.auto_pickle(False)
cdef class TokenFace:
    """A ``Tokens`` of its own, for tests and tools. Times are microseconds."""

    cdef Tokens t
    cdef Random r

    def __cinit__(
        self, bytes key not None, int64_t retry_lifetime, int64_t lifetime,
        bytes seed not None=bytes(32),
    ):
        if len(key) != SECRET_SIZE or len(seed) != SECRET_SIZE:
            raise ValueError("a key and a seed have 32 bytes")
        memcpy(self.t.key, <const char*> key, SECRET_SIZE)
        memcpy(self.r.seed, <const char*> seed, SECRET_SIZE)
        self.t.retry_lifetime = retry_lifetime
        self.t.lifetime = lifetime

    def make_retry(
        self, bytes ip not None, uint16_t port, bytes original not None,
        bytes scid not None, int64_t now,
    ):
        """Make the token of a Retry packet."""
        cdef uint8_t out[54]
        cdef Address address
        cdef Cid first, source
        to_address(ip, port, &address)
        to_cid(original, &first)
        to_cid(scid, &source)
        # `out` has TOKEN_MAX bytes.
        size = token_make_retry(&self.t, &self.r, &address, &first, &source, now, out)
        return bytes(out[:size])

    def make_new(self, bytes ip not None, uint16_t port, int64_t now):
        """Make a token for NEW_TOKEN."""
        cdef uint8_t out[54]
        cdef Address address
        to_address(ip, port, &address)
        size = token_make_new(&self.t, &self.r, &address, now, out)
        return bytes(out[:size])

    def check(
        self, bytes ip not None, uint16_t port, bytes dcid not None,
        bytes token not None, int64_t now,
    ):
        """Return the verdict, a ``TokenVerdict``, and the original identifier."""
        cdef Address address
        cdef Cid destination, original
        cdef int verdict
        to_address(ip, port, &address)
        to_cid(dcid, &destination)
        verdict = token_check(
            &self.t, &address, &destination, token, len(token), now, &original
        )
        return verdict, bytes(original.bytes[:original.size])
