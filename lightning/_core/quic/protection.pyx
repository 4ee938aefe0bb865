"""AEAD and header protection, key derivation, and the other users of libcrypto.

Source: RFC 9001 sections 5 (packet protection) and 6 (key update), RFC 8446 section
7.1 (HKDF-Expand-Label), RFC 5869 (HKDF).
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from lightning._core.quic.buffer cimport (
    E_AEAD_LIMIT_REACHED,
    OK,
    OUT_OF_MEMORY,
    load_u64,
    store_u64,
)
from lightning._core.quic.packet cimport (
    CID_MAX,
    PACKET_TOO_SHORT,
    RESET_TOKEN_SIZE,
    SAMPLE_END,
    TAG_SIZE,
    Cid,
    cid_set,
    packet_number_decode,
)


cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_MD:
        pass
    ctypedef struct ENGINE:
        pass
    enum:
        EVP_CTRL_AEAD_GET_TAG
        EVP_CTRL_AEAD_SET_TAG
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX*)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX*, int, int, void*)
    int EVP_CIPHER_CTX_set_padding(EVP_CIPHER_CTX*, int)
    int EVP_CipherInit_ex(
        EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const uint8_t* key,
        const uint8_t* iv, int encrypt
    )
    int EVP_EncryptInit_ex(
        EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const uint8_t*, const uint8_t*
    )
    int EVP_EncryptUpdate(EVP_CIPHER_CTX*, uint8_t*, int*, const uint8_t*, int)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX*, uint8_t*, int*)
    int EVP_DecryptInit_ex(
        EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const uint8_t*, const uint8_t*
    )
    int EVP_DecryptUpdate(EVP_CIPHER_CTX*, uint8_t*, int*, const uint8_t*, int)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX*, uint8_t*, int*)
    const EVP_CIPHER* EVP_aes_128_gcm()
    const EVP_CIPHER* EVP_aes_256_gcm()
    const EVP_CIPHER* EVP_chacha20_poly1305()
    const EVP_CIPHER* EVP_aes_128_ecb()
    const EVP_CIPHER* EVP_aes_256_ecb()
    const EVP_CIPHER* EVP_chacha20()
    const EVP_MD* EVP_sha256()
    const EVP_MD* EVP_sha384()
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX*)
    int EVP_MD_CTX_copy_ex(EVP_MD_CTX*, const EVP_MD_CTX*)
    int EVP_DigestInit_ex(EVP_MD_CTX*, const EVP_MD*, ENGINE*)
    int EVP_DigestUpdate(EVP_MD_CTX*, const void*, size_t)
    int EVP_DigestFinal_ex(EVP_MD_CTX*, uint8_t* out, unsigned int* out_size)


cdef extern from "openssl/crypto.h" nogil:
    void OPENSSL_cleanse(void*, size_t)
    int CRYPTO_memcmp(const void*, const void*, size_t)


cdef enum:
    LABEL_MAX = 32  # of the labels that QUIC uses, with room to spare
    HASH_MAX = 64  # what a digest may write
    BLOCK_MAX = 128  # of SHA-384


# RFC 9001 sections 5.2 and 5.8: public constants of version 1.
cdef const uint8_t* INITIAL_SALT = (
    b"\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a"
)
cdef const uint8_t* RETRY_KEY = (
    b"\xbe\x0c\x69\x0b\x9f\x66\x57\x5a\x1d\x76\x6b\x54\xe3\x68\xc8\x4e"
)
cdef const uint8_t* RETRY_NONCE = b"\x46\x15\x99\xd3\x5d\x63\x2b\xf2\x23\x98\x25\xbb"


# --- HMAC (RFC 2104) ------------------------------------------------------------------
#
# libcrypto's own looks its parts up by name at each call, which costs as much as the
# hashing. A copy of a hash that has begun does not.

cdef EVP_MD_CTX* SHA256 = begin_hash(EVP_sha256())
cdef EVP_MD_CTX* SHA384 = begin_hash(EVP_sha384())


cdef EVP_MD_CTX* begin_hash(const EVP_MD* md) except NULL:
    cdef EVP_MD_CTX* ctx = EVP_MD_CTX_new()
    if ctx is NULL or not EVP_DigestInit_ex(ctx, md, NULL):
        raise MemoryError("libcrypto cannot hash")
    return ctx


cdef bint hmac(
    const EVP_MD_CTX* fresh, const uint8_t* key, size_t length,
    const uint8_t* data, size_t size, uint8_t* out
) noexcept nogil:
    """Write the HMAC of some data, up to HASH_MAX bytes; False if it cannot be made."""
    cdef uint8_t pad[BLOCK_MAX]
    cdef size_t block = 64 if fresh is SHA256 else BLOCK_MAX
    cdef unsigned int written = 0
    cdef EVP_MD_CTX* ctx
    cdef size_t i
    cdef bint done
    if length > block:
        return False
    ctx = EVP_MD_CTX_new()
    if ctx is NULL:
        return False
    memset(pad, 0x36, block)
    for i in range(length):
        pad[i] ^= key[i]
    done = (
        EVP_MD_CTX_copy_ex(ctx, fresh) and EVP_DigestUpdate(ctx, pad, block)
        and EVP_DigestUpdate(ctx, data, size)
        and EVP_DigestFinal_ex(ctx, out, &written)
    )
    for i in range(block):
        pad[i] ^= 0x36 ^ 0x5C
    done = (
        done and EVP_MD_CTX_copy_ex(ctx, fresh) and EVP_DigestUpdate(ctx, pad, block)
        and EVP_DigestUpdate(ctx, out, written)
        and EVP_DigestFinal_ex(ctx, out, &written)
    )
    EVP_MD_CTX_free(ctx)
    OPENSSL_cleanse(pad, block)
    return done


# --- Key derivation -------------------------------------------------------------------

cdef size_t hash_size(uint16_t suite) noexcept nogil:
    """Return the size of the suite's hash, and so of its secrets."""
    return 48 if suite == SUITE_AES_256_GCM else 32


cdef const EVP_MD_CTX* hash_of(uint16_t suite) noexcept nogil:
    return SHA384 if suite == SUITE_AES_256_GCM else SHA256


cdef size_t key_size(uint16_t suite) noexcept nogil:
    return 16 if suite == SUITE_AES_128_GCM else 32


cdef int expand_label(
    uint16_t suite, const uint8_t* secret, const char* label, uint8_t* out, size_t size
) noexcept nogil:
    """Derive ``size`` bytes from a secret, for a label and an empty context.

    No output of QUIC is longer than the hash, so HKDF-Expand is a single HMAC, over
    the info and a counter of one.
    """
    cdef uint8_t info[LABEL_MAX + 16]
    cdef uint8_t block[HASH_MAX]
    cdef size_t label_size = strlen(label)
    cdef size_t secret_size = hash_size(suite)
    cdef const EVP_MD_CTX* fresh = hash_of(suite)
    if label_size > LABEL_MAX or size > secret_size:
        return PROTECTION_UNAVAILABLE
    info[0] = 0
    info[1] = <uint8_t> size
    info[2] = <uint8_t> (6 + label_size)
    memcpy(&info[3], b"tls13 ", 6)
    memcpy(&info[9], label, label_size)
    info[9 + label_size] = 0
    info[10 + label_size] = 1
    if not hmac(fresh, secret, secret_size, info, 11 + label_size, block):
        return PROTECTION_UNAVAILABLE
    memcpy(out, block, size)
    OPENSSL_cleanse(block, HASH_MAX)
    return OK


cdef int initial_secrets(
    const uint8_t* cid, size_t size, uint8_t* client, uint8_t* server
) noexcept nogil:
    """Derive both 32-byte secrets of the Initial level (RFC 9001 section 5.2)."""
    cdef uint8_t secret[HASH_MAX]
    # HKDF-Extract is an HMAC keyed with the salt.
    if not hmac(SHA256, INITIAL_SALT, 20, cid, size, secret):
        return PROTECTION_UNAVAILABLE
    if (
        expand_label(SUITE_AES_128_GCM, secret, b"client in", client, 32)
        or expand_label(SUITE_AES_128_GCM, secret, b"server in", server, 32)
    ):
        return PROTECTION_UNAVAILABLE
    return OK


# --- Keys -----------------------------------------------------------------------------

cdef const EVP_CIPHER* aead_cipher(uint16_t suite) noexcept nogil:
    if suite == SUITE_AES_128_GCM:
        return EVP_aes_128_gcm()
    if suite == SUITE_AES_256_GCM:
        return EVP_aes_256_gcm()
    return EVP_chacha20_poly1305() if suite == SUITE_CHACHA20 else NULL


cdef const EVP_CIPHER* header_cipher(uint16_t suite) noexcept nogil:
    if suite == SUITE_AES_128_GCM:
        return EVP_aes_128_ecb()
    return EVP_aes_256_ecb() if suite == SUITE_AES_256_GCM else EVP_chacha20()


cdef int packet_key_init(
    PacketKey* key, uint16_t suite, const uint8_t* secret, bint sealing
) noexcept nogil:
    """Set a key up from the secret of its phase; the suite is known."""
    cdef uint8_t material[32]
    cdef int done
    key.suite = suite
    key.sealing = sealing
    key.sealed = 0
    if suite == SUITE_CHACHA20:
        key.seal_limit = CONFIDENTIALITY_LIMIT_CHACHA20
        key.open_limit = INTEGRITY_LIMIT_CHACHA20
    else:
        key.seal_limit = CONFIDENTIALITY_LIMIT_AES_GCM
        key.open_limit = INTEGRITY_LIMIT_AES_GCM
    key.secret_size = <uint8_t> hash_size(suite)
    memcpy(key.secret, secret, key.secret_size)
    if (
        expand_label(suite, secret, b"quic key", material, key_size(suite))
        or expand_label(suite, secret, b"quic iv", key.iv, NONCE_SIZE)
    ):
        return PROTECTION_UNAVAILABLE
    # All three AEADs have a 12-byte nonce by default.
    key.ctx = EVP_CIPHER_CTX_new()
    if key.ctx is NULL:
        done = OUT_OF_MEMORY
    elif EVP_CipherInit_ex(key.ctx, aead_cipher(suite), NULL, material, NULL, sealing):
        done = OK
    else:
        done = PROTECTION_UNAVAILABLE
    OPENSSL_cleanse(material, sizeof(material))
    return done


cdef int header_key_init(
    HeaderKey* key, uint16_t suite, const uint8_t* secret
) noexcept nogil:
    cdef uint8_t material[32]
    cdef int done
    key.suite = suite
    if expand_label(suite, secret, b"quic hp", material, key_size(suite)):
        return PROTECTION_UNAVAILABLE
    key.ctx = EVP_CIPHER_CTX_new()
    if key.ctx is NULL:
        done = OUT_OF_MEMORY
    # The mask is made by encrypting, in both directions.
    elif (
        EVP_EncryptInit_ex(key.ctx, header_cipher(suite), NULL, material, NULL)
        and EVP_CIPHER_CTX_set_padding(key.ctx, 0)
    ):
        done = OK
    else:
        done = PROTECTION_UNAVAILABLE
    OPENSSL_cleanse(material, sizeof(material))
    return done


cdef int keys_init(
    Keys* k, uint16_t suite, const uint8_t* secret, size_t size, bint sealing
) noexcept nogil:
    cdef int done
    memset(k, 0, sizeof(Keys))
    if aead_cipher(suite) is NULL or size != hash_size(suite):
        return PROTECTION_UNAVAILABLE
    done = header_key_init(&k.header, suite, secret)
    if done == OK:
        done = packet_key_init(&k.packet, suite, secret, sealing)
    if done:
        keys_free(k)
    return done


cdef int keys_init_initial(
    Keys* sealing, Keys* opening, const uint8_t* cid, size_t size, bint is_client
) noexcept nogil:
    cdef uint8_t client[32]
    cdef uint8_t server[32]
    cdef const uint8_t* ours = &client[0] if is_client else &server[0]
    cdef const uint8_t* theirs = &server[0] if is_client else &client[0]
    cdef int done
    memset(sealing, 0, sizeof(Keys))
    memset(opening, 0, sizeof(Keys))
    if initial_secrets(cid, size, client, server):
        return PROTECTION_UNAVAILABLE
    done = keys_init(sealing, SUITE_AES_128_GCM, ours, 32, True)
    if done == OK:
        done = keys_init(opening, SUITE_AES_128_GCM, theirs, 32, False)
        if done:
            keys_free(sealing)
    return done


cdef void keys_free(Keys* k) noexcept nogil:
    EVP_CIPHER_CTX_free(k.header.ctx)
    k.header.ctx = NULL
    packet_key_free(&k.packet)


cdef int packet_key_next(PacketKey* following, const PacketKey* key) noexcept nogil:
    cdef uint8_t secret[SECRET_MAX]
    cdef int done
    memset(following, 0, sizeof(PacketKey))
    if expand_label(key.suite, key.secret, b"quic ku", secret, key.secret_size):
        return PROTECTION_UNAVAILABLE
    done = packet_key_init(following, key.suite, secret, key.sealing)
    if done:
        packet_key_free(following)
    OPENSSL_cleanse(secret, SECRET_MAX)
    return done


cdef void packet_key_free(PacketKey* key) noexcept nogil:
    EVP_CIPHER_CTX_free(key.ctx)  # This also wipes the key that it holds.
    key.ctx = NULL
    OPENSSL_cleanse(key.secret, SECRET_MAX)
    OPENSSL_cleanse(key.iv, NONCE_SIZE)


# --- Packets --------------------------------------------------------------------------

cdef inline void make_nonce(
    uint8_t* nonce, const PacketKey* key, uint64_t pn
) noexcept nogil:
    """Exclusive-or the packet number into the end of the IV (RFC 9001 section 5.3)."""
    memcpy(nonce, key.iv, 4)
    store_u64(nonce + 4, load_u64(&key.iv[4]) ^ pn)


cdef inline int make_mask(
    HeaderKey* header, const uint8_t* sample, uint8_t* mask
) noexcept nogil:
    """Make the header protection mask: 5 bytes, with room for 16."""
    cdef int size = 0
    if header.suite == SUITE_CHACHA20:
        # The sample is the counter, little-endian, then the nonce (section 5.4.4);
        # that is just what libcrypto takes for an IV.
        memset(mask, 0, 5)
        return OK if (
            EVP_EncryptInit_ex(header.ctx, NULL, NULL, NULL, sample)
            and EVP_EncryptUpdate(header.ctx, mask, &size, mask, 5)
        ) else <int> PROTECTION_UNAVAILABLE
    if EVP_EncryptUpdate(header.ctx, mask, &size, sample, 16):
        return OK
    return PROTECTION_UNAVAILABLE


cdef int protection_seal(
    HeaderKey* header, PacketKey* key, uint64_t pn, uint8_t* packet,
    size_t header_size, size_t pn_size, const uint8_t* payload, size_t payload_size
) noexcept nogil:
    cdef uint8_t nonce[NONCE_SIZE]
    cdef uint8_t mask[16]
    cdef uint8_t* out = packet + header_size
    cdef uint8_t* at_pn = out - pn_size
    cdef size_t i
    cdef int size = 0
    if pn_size + payload_size < SEAL_MIN:
        return SEAL_TOO_SHORT
    if key.sealed >= key.seal_limit:
        return E_AEAD_LIMIT_REACHED
    key.sealed += 1
    make_nonce(nonce, key, pn)
    if not (
        EVP_EncryptInit_ex(key.ctx, NULL, NULL, NULL, nonce)
        and EVP_EncryptUpdate(key.ctx, NULL, &size, packet, <int> header_size)
        and EVP_EncryptUpdate(key.ctx, out, &size, payload, <int> payload_size)
        and EVP_EncryptFinal_ex(key.ctx, out + size, &size)
        and EVP_CIPHER_CTX_ctrl(
            key.ctx, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, out + payload_size
        )
    ):
        return PROTECTION_UNAVAILABLE
    if make_mask(header, at_pn + 4, mask):
        return PROTECTION_UNAVAILABLE
    packet[0] ^= mask[0] & (0x0F if packet[0] & 0x80 else 0x1F)
    for i in range(pn_size):
        at_pn[i] ^= mask[1 + i]
    return OK


cdef int protection_unmask(
    HeaderKey* header, uint8_t* packet, size_t size, size_t pn_offset,
    uint32_t* truncated_pn, unsigned int* pn_size
) noexcept nogil:
    cdef uint8_t mask[16]
    cdef uint8_t* at_pn = packet + pn_offset
    cdef uint32_t pn = 0
    cdef unsigned int i
    if pn_offset > size or size - pn_offset < SAMPLE_END:
        return PACKET_TOO_SHORT
    if make_mask(header, at_pn + 4, mask):
        return PROTECTION_UNAVAILABLE
    packet[0] ^= mask[0] & (0x0F if packet[0] & 0x80 else 0x1F)
    pn_size[0] = (packet[0] & 0x03) + 1
    for i in range(pn_size[0]):
        at_pn[i] ^= mask[1 + i]
        pn = pn << 8 | at_pn[i]
    truncated_pn[0] = pn
    return OK


cdef int protection_open(
    PacketKey* key, uint64_t pn, uint8_t* packet, size_t header_size, size_t size,
    uint64_t* failures
) noexcept nogil:
    cdef uint8_t nonce[NONCE_SIZE]
    cdef uint8_t* payload = packet + header_size
    cdef size_t payload_size
    cdef int written = 0
    if header_size > size or size - header_size < TAG_SIZE:
        return PACKET_TOO_SHORT
    payload_size = size - header_size - TAG_SIZE
    make_nonce(nonce, key, pn)
    if not (
        EVP_DecryptInit_ex(key.ctx, NULL, NULL, NULL, nonce)
        and EVP_CIPHER_CTX_ctrl(
            key.ctx, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, payload + payload_size
        )
        and EVP_DecryptUpdate(key.ctx, NULL, &written, packet, <int> header_size)
        and EVP_DecryptUpdate(
            key.ctx, payload, &written, payload, <int> payload_size
        )
    ):
        return PROTECTION_UNAVAILABLE
    if EVP_DecryptFinal_ex(key.ctx, payload + written, &written):
        return OK
    failures[0] += 1
    if failures[0] > key.open_limit:
        return E_AEAD_LIMIT_REACHED
    return OPEN_FAILED


# --- Retry and stateless reset --------------------------------------------------------

cdef int retry_tag(
    const Cid* original_dcid, const uint8_t* packet, size_t size, uint8_t* tag
) noexcept nogil:
    cdef EVP_CIPHER_CTX* ctx = EVP_CIPHER_CTX_new()
    cdef int written = 0
    cdef bint done
    if ctx is NULL:
        return OUT_OF_MEMORY
    # Nothing is encrypted: the tag covers a pseudo-packet of additional data, which
    # begins with the connection ID and its size (RFC 9001 section 5.8).
    done = (
        EVP_EncryptInit_ex(ctx, EVP_aes_128_gcm(), NULL, RETRY_KEY, RETRY_NONCE)
        and EVP_EncryptUpdate(ctx, NULL, &written, &original_dcid.size, 1)
        and EVP_EncryptUpdate(
            ctx, NULL, &written, original_dcid.bytes, original_dcid.size
        )
        and EVP_EncryptUpdate(ctx, NULL, &written, packet, <int> size)
        and EVP_EncryptFinal_ex(ctx, tag, &written)
        and EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, tag)
    )
    EVP_CIPHER_CTX_free(ctx)
    if not done:
        return PROTECTION_UNAVAILABLE
    return OK


cdef bint retry_tag_is_valid(
    const Cid* original_dcid, const uint8_t* packet, size_t size, const uint8_t* tag
) noexcept nogil:
    cdef uint8_t expected[TAG_SIZE]
    if retry_tag(original_dcid, packet, size, expected):
        return False
    return equal_in_constant_time(expected, tag, TAG_SIZE)


cdef int reset_token_derive(
    const uint8_t* key, size_t key_size, const Cid* cid, uint8_t* token
) noexcept nogil:
    cdef uint8_t digest[HASH_MAX]
    if not hmac(SHA256, key, key_size, cid.bytes, cid.size, digest):
        return PROTECTION_UNAVAILABLE
    memcpy(token, digest, RESET_TOKEN_SIZE)
    return OK


cdef bint equal_in_constant_time(
    const uint8_t* a, const uint8_t* b, size_t size
) noexcept nogil:
    return CRYPTO_memcmp(a, b, size) == 0


# --- What Python sees -----------------------------------------------------------------

cdef bytes to_bytes(const uint8_t* data, size_t size):
    return PyBytes_FromStringAndSize(<const char*> data, size)


cdef int check(int status) except -1:
    """Raise for a status that is not the peer's doing."""
    if status == OUT_OF_MEMORY:
        raise MemoryError
    if status == PROTECTION_UNAVAILABLE:
        raise ValueError("not available: no such cipher suite, or a wrong size")
    return 0


cdef int to_cid(Cid* cid, bytes data) except -1:
    if len(data) > CID_MAX:
        raise ValueError(f"a connection ID of {len(data)} bytes")
    cid_set(cid, data, len(data))
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class PacketProtection:
    """The keys of one direction at one level, for tests and tools.

    Args:
        suite: The cipher suite's TLS number, 0x1301 to 0x1303.
        secret: The traffic secret: 32 bytes, 48 for suite 0x1302.
        sealing: True for the keys to send with.

    Raises:
        ValueError: No such suite, or a secret of another size.
    """

    cdef Keys keys
    cdef readonly uint64_t failures

    def __cinit__(self, uint16_t suite, bytes secret not None, bint sealing):
        check(keys_init(&self.keys, suite, secret, len(secret), sealing))

    def __dealloc__(self):
        keys_free(&self.keys)

    @property
    def secret(self):
        """The secret of the present key phase."""
        return to_bytes(self.keys.packet.secret, self.keys.packet.secret_size)

    @property
    def left(self):
        """How many more packets this key may seal."""
        return packet_key_left(&self.keys.packet)

    def limit(self, uint64_t seal, uint64_t unopened):
        """Lower both limits of RFC 9001 section 6.6."""
        self.keys.packet.seal_limit = seal
        self.keys.packet.open_limit = unopened

    def update(self):
        """Go on to the next key phase."""
        cdef PacketKey following
        check(packet_key_next(&following, &self.keys.packet))
        packet_key_free(&self.keys.packet)
        self.keys.packet = following

    def free(self):
        """Wipe and free the keys; may be called twice."""
        keys_free(&self.keys)

    def seal(
        self, uint64_t pn, bytes header not None, bytes payload not None,
        bint in_place=True
    ):
        """Seal a packet; ``header`` ends with the packet number.

        Returns:
            The status and the sealed packet.
        """
        cdef size_t size = len(header)
        cdef size_t pn_size
        cdef bytearray packet
        cdef uint8_t* start
        cdef const uint8_t* source = payload
        cdef int status
        if self.keys.packet.ctx is NULL or not self.keys.packet.sealing:
            raise ValueError("there is no key to seal with")
        if not size or size < <size_t> (header[0] & 3) + 2:
            raise ValueError("the header has no room for its packet number")
        pn_size = (header[0] & 3) + 1
        packet = bytearray(header)
        packet += payload if in_place else bytes(len(payload))
        packet += bytes(TAG_SIZE)
        start = packet
        if in_place:
            source = start + size
        status = protection_seal(
            &self.keys.header, &self.keys.packet, pn, start, size, pn_size, source,
            len(payload),
        )
        check(status)
        return status, bytes(packet)

    def open(self, bytes packet not None, size_t pn_offset, uint64_t expected=0):
        """Open a packet.

        Args:
            packet: The packet, to its end.
            pn_offset: Where the packet number begins.
            expected: The packet number expected next.

        Returns:
            The status, the plain header, the payload and the packet number. After a
            failure, the payload is what is left of the packet behind the header.
        """
        cdef bytearray block = bytearray(packet)
        cdef uint8_t* start = block
        cdef uint32_t truncated = 0
        cdef unsigned int pn_size = 0
        cdef uint64_t pn
        cdef size_t end
        if self.keys.packet.ctx is NULL or self.keys.packet.sealing:
            raise ValueError("there is no key to open with")
        cdef int status = protection_unmask(
            &self.keys.header, start, len(block), pn_offset, &truncated, &pn_size
        )
        check(status)
        if status:
            return status, b"", b"", 0
        pn = packet_number_decode(truncated, pn_size, expected)
        end = pn_offset + pn_size
        status = protection_open(
            &self.keys.packet, pn, start, end, len(block), &self.failures
        )
        check(status)
        return (
            status, bytes(block[:end]),
            bytes(block[end:len(block) - (0 if status else TAG_SIZE)]), pn
        )


def initial(bytes cid not None, bint is_client):
    """Return the sealing and the opening keys of the Initial level."""
    cdef PacketProtection sealing = PacketProtection(
        SUITE_AES_128_GCM, bytes(32), True
    )
    cdef PacketProtection opening = PacketProtection(
        SUITE_AES_128_GCM, bytes(32), False
    )
    keys_free(&sealing.keys)
    keys_free(&opening.keys)
    check(
        keys_init_initial(&sealing.keys, &opening.keys, cid, len(cid), is_client)
    )
    return sealing, opening


def hkdf_expand_label(
    uint16_t suite, bytes secret not None, bytes label not None, size_t size
):
    """Derive ``size`` bytes, at most one hash, from a secret (RFC 8446 section 7.1)."""
    cdef uint8_t out[HASH_MAX]
    if <size_t> len(secret) != hash_size(suite):
        raise ValueError("a secret is as long as the suite's hash")
    check(expand_label(suite, secret, label, out, size))
    return to_bytes(out, size)


def retry_integrity_tag(bytes original_dcid not None, bytes packet not None):
    """Return the integrity tag of a Retry packet given without one."""
    cdef Cid cid
    cdef uint8_t tag[TAG_SIZE]
    to_cid(&cid, original_dcid)
    check(retry_tag(&cid, packet, len(packet), tag))
    return to_bytes(tag, TAG_SIZE)


def is_retry_valid(bytes original_dcid not None, bytes packet not None):
    """Say if a Retry packet, tag included, answers this connection attempt."""
    cdef Cid cid
    cdef const uint8_t* start = packet
    cdef size_t size = len(packet)
    to_cid(&cid, original_dcid)
    if size < TAG_SIZE:
        return False
    size -= TAG_SIZE
    return retry_tag_is_valid(&cid, start, size, start + size)


def reset_token(bytes key not None, bytes cid not None):
    """Return the stateless reset token of a connection ID."""
    cdef Cid made
    cdef uint8_t token[RESET_TOKEN_SIZE]
    to_cid(&made, cid)
    check(reset_token_derive(key, len(key), &made, token))
    return to_bytes(token, RESET_TOKEN_SIZE)


def is_equal(bytes a not None, bytes b not None):
    """Compare two values in constant time."""
    return len(a) == len(b) and equal_in_constant_time(a, b, len(a))


def bench_seal(uint16_t suite, size_t payload_size, unsigned int count):
    """Seal ``count`` short-header packets of a given payload size, in place."""
    cdef PacketProtection one = PacketProtection(suite, bytes(hash_size(suite)), True)
    cdef bytearray block = bytearray(11 + payload_size + TAG_SIZE)
    cdef uint8_t* packet = block
    cdef unsigned int pn
    cdef int status = OK
    with nogil:
        for pn in range(count):
            packet[0] = 0x41
            status |= protection_seal(
                &one.keys.header, &one.keys.packet, pn, packet, 11, 2, packet + 11,
                payload_size,
            )
    return status


def bench_open(uint16_t suite, size_t payload_size, unsigned int count):
    """Open one short-header packet ``count`` times, copying it anew each time."""
    cdef bytes secret = bytes(hash_size(suite))
    cdef PacketProtection one = PacketProtection(suite, secret, False)
    cdef bytes sealed = PacketProtection(suite, secret, True).seal(
        7, b"\x41" + bytes(10), bytes(payload_size)
    )[1]
    cdef bytearray block = bytearray(len(sealed))
    cdef const uint8_t* source = sealed
    cdef uint8_t* packet = block
    cdef size_t size = len(sealed)
    cdef uint32_t truncated = 0
    cdef unsigned int pn_size = 0
    cdef int status = OK
    with nogil:
        while count:
            memcpy(packet, source, size)
            status |= protection_unmask(
                &one.keys.header, packet, size, 9, &truncated, &pn_size
            )
            status |= protection_open(
                &one.keys.packet, 7, packet, 11, size, &one.failures
            )
            count -= 1
    return status


def bench_initial(unsigned int count):
    """Make and free both Initial keys ``count`` times."""
    cdef Keys sealing
    cdef Keys opening
    cdef const uint8_t* cid = INITIAL_SALT
    cdef int status = OK
    with nogil:
        while count:
            status |= keys_init_initial(&sealing, &opening, cid, 8, False)
            keys_free(&sealing)
            keys_free(&opening)
            count -= 1
    return status
