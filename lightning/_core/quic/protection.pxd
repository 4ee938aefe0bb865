"""Packet protection of RFC 9001 on libcrypto, with every context made once a key.

A packet key is one direction and one key phase; a header key is one direction and
outlives key updates. Nothing here allocates once a key exists.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from lightning._core.quic.packet cimport Cid


cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MD_CTX:
        pass


# Cipher suites, by their TLS numbers (RFC 8446 appendix B.4).
cdef enum Suite:
    SUITE_AES_128_GCM = 0x1301
    SUITE_AES_256_GCM = 0x1302
    SUITE_CHACHA20 = 0x1303


cdef enum ProtectionStatus:
    PROTECTION_UNAVAILABLE = -9  # no such suite, or libcrypto would not have it
    OPEN_FAILED = -10  # not authentic: drop the packet
    SEAL_TOO_SHORT = -11  # packet number and payload below 4 bytes: add padding


cdef enum ProtectionSizes:
    SECRET_MAX = 48  # of SHA-384
    NONCE_SIZE = 12
    SEAL_MIN = 4  # packet number and payload together (RFC 9001 section 5.4.2)


# RFC 9001 section 6.6. The first limits the packets sealed with one key, the others
# the packets of a connection that were not authentic. ChaCha20 has no limit that a
# connection can reach on the first count.
cdef enum AeadLimits:
    CONFIDENTIALITY_LIMIT_AES_GCM = 0x800000  # 2^23
    CONFIDENTIALITY_LIMIT_CHACHA20 = 0x4000000000000000  # 2^62
    INTEGRITY_LIMIT_AES_GCM = 0x10000000000000  # 2^52
    INTEGRITY_LIMIT_CHACHA20 = 0x1000000000  # 2^36


cdef struct HeaderKey:
    EVP_CIPHER_CTX* ctx
    uint16_t suite


cdef struct PacketKey:
    EVP_CIPHER_CTX* ctx
    uint64_t sealed  # packets sealed with this key
    uint64_t seal_limit  # the confidentiality limit; may be lowered
    uint64_t open_limit  # the integrity limit; may be lowered
    uint16_t suite
    uint8_t sealing  # 1 for the direction that we send in
    uint8_t secret_size
    uint8_t iv[12]
    uint8_t secret[48]  # of this phase: the next one is derived from it


# One direction of one level.
cdef struct Keys:
    HeaderKey header
    PacketKey packet


# Life. A zeroed struct is one without a key: free may be called on it, and on a freed
# one. Init may be called on either. OK, OUT_OF_MEMORY or PROTECTION_UNAVAILABLE.
cdef int keys_init(
    Keys* k, uint16_t suite, const uint8_t* secret, size_t size, bint sealing
) noexcept nogil
# Both directions of the Initial level (RFC 9001 section 5.2); `cid` is the destination
# connection ID of the client's first Initial, or of its first one after a Retry.
cdef int keys_init_initial(
    Keys* sealing, Keys* opening, const uint8_t* cid, size_t size, bint is_client
) noexcept nogil
cdef void keys_free(Keys* k) noexcept nogil
# The key of the following phase (RFC 9001 section 6.1); the header key stays.
cdef int packet_key_next(PacketKey* following, const PacketKey* key) noexcept nogil
cdef void packet_key_free(PacketKey* key) noexcept nogil

# Seal a packet: `packet` starts with `header_size` bytes of header, of which the last
# `pn_size` are the packet number. The payload is encrypted to behind the header, from
# there (in place) or from elsewhere, the tag goes behind it, then the header is
# protected. The caller has checked that the payload and TAG_SIZE fit.
# OK, SEAL_TOO_SHORT, PROTECTION_UNAVAILABLE, or E_AEAD_LIMIT_REACHED: the key must not
# be used any more.
cdef int protection_seal(
    HeaderKey* header, PacketKey* key, uint64_t pn, uint8_t* packet,
    size_t header_size, size_t pn_size, const uint8_t* payload, size_t payload_size
) noexcept nogil

# Open a packet, in two steps because the packet number and the key phase decide which
# key the second one takes. First remove the header protection, in place: afterwards
# packet[0] is the plain first byte and the header ends at `pn_offset` + `pn_size`.
# OK, PACKET_TOO_SHORT or PROTECTION_UNAVAILABLE.
cdef int protection_unmask(
    HeaderKey* header, uint8_t* packet, size_t size, size_t pn_offset,
    uint32_t* truncated_pn, unsigned int* pn_size
) noexcept nogil
# Then decrypt in place; the payload is the `size` - `header_size` - TAG_SIZE bytes
# behind the header. `failures` counts over all keys of the connection.
# OK, PACKET_TOO_SHORT, OPEN_FAILED (the payload is destroyed, the last 16 bytes are
# not, so that a stateless reset can still be recognised), PROTECTION_UNAVAILABLE, or
# E_AEAD_LIMIT_REACHED.
cdef int protection_open(
    PacketKey* key, uint64_t pn, uint8_t* packet, size_t header_size, size_t size,
    uint64_t* failures
) noexcept nogil

# The integrity tag of a Retry: over the packet without it, and the destination
# connection ID that the client chose (RFC 9001 section 5.8).
cdef int retry_tag(
    const Cid* original_dcid, const uint8_t* packet, size_t size, uint8_t* tag
) noexcept nogil
cdef bint retry_tag_is_valid(
    const Cid* original_dcid, const uint8_t* packet, size_t size, const uint8_t* tag
) noexcept nogil

# Derive a stateless reset token: the first 16 bytes of HMAC-SHA256 (RFC 9000 section
# 10.3.2). The key is the endpoint's secret, of up to 64 bytes; it should survive a
# restart.
cdef int reset_token_derive(
    const uint8_t* key, size_t key_size, const Cid* cid, uint8_t* token
) noexcept nogil
# A hash of the suite that has begun, to be copied, and the HMAC by it: up to 64 bytes
# go to `out`; False if it cannot be made, or the key is longer than the hash's block.
cdef const EVP_MD_CTX* hash_of(uint16_t suite) noexcept nogil
cdef bint hmac(
    const EVP_MD_CTX* fresh, const uint8_t* key, size_t length,
    const uint8_t* data, size_t size, uint8_t* out
) noexcept nogil

# Compare without telling by the time taken where two values differ.
cdef bint equal_in_constant_time(
    const uint8_t* a, const uint8_t* b, size_t size
) noexcept nogil


cdef inline uint64_t packet_key_left(const PacketKey* key) noexcept nogil:
    """Return how many more packets the key may seal; update it before that is 0."""
    return key.seal_limit - key.sealed if key.seal_limit > key.sealed else 0
