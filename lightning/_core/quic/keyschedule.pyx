"""TLS 1.3's key schedule on libcrypto (RFC 8446 section 7.1).

It stands in for aioquic's, with the same methods, and makes the same secrets in a
fraction of the time. Tickets and pre-shared keys are not for it: nobody here has any.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from lightning._core.quic.protection cimport (
    EVP_MD_CTX, SUITE_AES_128_GCM, SUITE_AES_256_GCM, SUITE_CHACHA20, hash_of, hmac
)

__all__ = ["KeySchedule", "Offer"]

cdef extern from "openssl/evp.h" nogil:
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX*)
    int EVP_MD_CTX_copy_ex(EVP_MD_CTX*, const EVP_MD_CTX*)
    int EVP_DigestUpdate(EVP_MD_CTX*, const void*, size_t)
    int EVP_DigestFinal_ex(EVP_MD_CTX*, uint8_t* out, unsigned int* out_size)


cdef extern from "openssl/crypto.h" nogil:
    void OPENSSL_cleanse(void*, size_t)


cdef enum:
    HASH_MAX = 64  # what a digest may write
    LABEL_MAX = 32


cdef int check(bint done) except -1:
    if not done:
        raise MemoryError("libcrypto cannot hash")
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class KeySchedule:
    """The secrets of one handshake, and the hash of its messages so far.

    Args:
        cipher_suite: The suite's TLS number.

    Raises:
        ValueError: There is no such suite.

    Attributes:
        cipher_suite: As given.
        generation: How often `extract` was called: the handshake's secret is 2.
    """

    cdef readonly object cipher_suite
    cdef readonly int generation
    cdef const EVP_MD_CTX* fresh
    cdef EVP_MD_CTX* transcript
    cdef size_t size
    cdef uint8_t[HASH_MAX] secret

    def __cinit__(self, cipher_suite):
        cdef uint16_t suite = cipher_suite
        if suite not in (SUITE_AES_128_GCM, SUITE_AES_256_GCM, SUITE_CHACHA20):
            raise ValueError(f"unknown cipher suite {suite:#06x}")
        self.cipher_suite = cipher_suite
        self.size = 48 if suite == SUITE_AES_256_GCM else 32
        self.fresh = hash_of(suite)
        self.transcript = EVP_MD_CTX_new()
        check(
            self.transcript is not NULL
            and EVP_MD_CTX_copy_ex(self.transcript, self.fresh)
        )

    def __dealloc__(self):
        OPENSSL_cleanse(self.secret, HASH_MAX)
        EVP_MD_CTX_free(self.transcript)

    def update_hash(self, bytes data not None):
        """Hash a message that was sent or received."""
        check(EVP_DigestUpdate(self.transcript, <const char*> data, len(data)))

    def extract(self, bytes key_material=None):
        """Go on to the next secret (HKDF-Extract), from zeros if there is no other."""
        cdef uint8_t[HASH_MAX] zeros
        cdef uint8_t[HASH_MAX] digest
        cdef const uint8_t* material = zeros
        cdef size_t size = self.size
        memset(zeros, 0, HASH_MAX)
        if key_material is not None:
            material = <const uint8_t*> <const char*> key_material
            size = len(key_material)
        if self.generation:
            self.digest_of(self.fresh, digest)
            self.expand(self.secret, b"derived", 7, digest, self.size, self.secret)
        self.generation += 1
        # The salt is the key, the material the message.
        check(hmac(self.fresh, self.secret, self.size, material, size, self.secret))

    def derive_secret(self, bytes label not None):
        """Return a secret over all messages so far."""
        cdef uint8_t[HASH_MAX] digest
        cdef uint8_t[HASH_MAX] out
        self.digest_of(self.transcript, digest)
        self.expand(
            self.secret, <const char*> label, len(label), digest, self.size, out
        )
        return self.taken(out)

    def finished_verify_data(self, bytes secret not None):
        """Return what a Finished message holds (RFC 8446 section 4.4.4)."""
        cdef uint8_t[HASH_MAX] key
        cdef uint8_t[HASH_MAX] digest
        cdef uint8_t[HASH_MAX] out
        if <size_t> len(secret) != self.size:
            raise ValueError("a secret is as long as the hash")
        self.expand(
            <const uint8_t*> <const char*> secret, b"finished", 8, digest, 0, key
        )
        self.digest_of(self.transcript, digest)
        check(hmac(self.fresh, key, self.size, digest, self.size, out))
        OPENSSL_cleanse(key, HASH_MAX)
        return self.taken(out)

    def certificate_verify_data(self, bytes context_string not None):
        """Return what a CertificateVerify message signs (RFC 8446 section 4.4.3)."""
        cdef uint8_t[HASH_MAX] digest
        self.digest_of(self.transcript, digest)
        return (
            b" " * 64 + context_string + b"\0"
            + PyBytes_FromStringAndSize(<const char*> digest, self.size)
        )

    cdef int digest_of(self, const EVP_MD_CTX* ctx, uint8_t* out) except -1:
        cdef EVP_MD_CTX* copy = EVP_MD_CTX_new()
        cdef unsigned int written = 0
        cdef bint done = (
            copy is not NULL and EVP_MD_CTX_copy_ex(copy, ctx)
            and EVP_DigestFinal_ex(copy, out, &written)
        )
        EVP_MD_CTX_free(copy)
        return check(done)

    cdef int expand(
        self, const uint8_t* secret, const char* label, size_t label_size,
        const uint8_t* context, size_t context_size, uint8_t* out
    ) except -1:
        """HKDF-Expand-Label to the hash's size: one HMAC, over a counter of one."""
        cdef uint8_t[LABEL_MAX + HASH_MAX + 16] info
        cdef size_t at = 9 + label_size
        if label_size > LABEL_MAX or context_size > HASH_MAX:
            raise ValueError("label is too long")
        info[0] = 0
        info[1] = <uint8_t> self.size
        info[2] = <uint8_t> (6 + label_size)
        memcpy(&info[3], b"tls13 ", 6)
        memcpy(&info[9], label, label_size)
        info[at] = <uint8_t> context_size
        memcpy(&info[at + 1], context, context_size)
        info[at + 1 + context_size] = 1
        at += 2 + context_size
        return check(hmac(self.fresh, secret, self.size, info, at, out))

    cdef bytes taken(self, uint8_t* out):
        cdef bytes result = PyBytes_FromStringAndSize(<const char*> out, self.size)
        OPENSSL_cleanse(out, HASH_MAX)
        return result


@cython.final
@cython.auto_pickle(False)
cdef class Offer:
    """The key schedules of all suites that a ClientHello offers, until one is chosen.

    Args:
        cipher_suites: Their TLS numbers.
    """

    cdef list cipher_suites
    cdef list messages

    def __init__(self, cipher_suites):
        self.cipher_suites = list(cipher_suites)
        self.messages = []

    def extract(self, key_material=None):
        """Do nothing: the one that is chosen begins with zeros."""

    def update_hash(self, bytes data not None):
        """Keep a message for the one that is chosen."""
        self.messages.append(data)

    def select(self, cipher_suite):
        """Return the schedule of the suite that the server chose."""
        if cipher_suite not in self.cipher_suites:
            raise KeyError(cipher_suite)
        schedule = KeySchedule(cipher_suite)
        schedule.extract(None)
        for message in self.messages:
            schedule.update_hash(message)
        return schedule
