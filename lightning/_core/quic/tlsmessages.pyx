"""The messages of a plain TLS 1.3 handshake, read and written in one go.

They stand in for aioquic's functions of the same names and give what those give.
Whatever is not plain - malformed, resumed, of an extension that we do not use - is
left to aioquic, which also says what is wrong with it. Source: RFC 8446 section 4.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t

from aioquic import tls

__all__ = [
    "Hashing",
    "pull_certificate",
    "pull_certificate_verify",
    "pull_client_hello",
    "pull_encrypted_extensions",
    "pull_finished",
    "pull_server_hello",
    "push_certificate",
    "push_certificate_verify",
    "push_client_hello",
    "push_encrypted_extensions",
    "push_finished",
    "push_server_hello",
]

cdef enum:
    VERSION_1_2 = 0x0303  # what legacy_version says
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    ENCRYPTED_EXTENSIONS = 8
    CERTIFICATE = 11
    CERTIFICATE_VERIFY = 15
    FINISHED = 20

    SERVER_NAME = 0
    SUPPORTED_GROUPS = 10
    SIGNATURE_ALGORITHMS = 13
    ALPN = 16
    PRE_SHARED_KEY = 41
    EARLY_DATA = 42
    SUPPORTED_VERSIONS = 43
    PSK_KEY_EXCHANGE_MODES = 45
    KEY_SHARE = 51


# What is left of a message, or of a part of it. Once `bad`, it gives nothing more.
cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end
    bint bad


# --- Reading ----------------------------------------------------------------------

cdef uint32_t number(Cursor* c, int size) noexcept:
    """Take a number of 1 to 3 bytes; 0 and `bad` if there is none."""
    cdef uint32_t value = 0
    if c.bad or size > c.end - c.at:
        c.bad = True
        return 0
    while size:
        value = value << 8 | c.at[0]
        c.at += 1
        size -= 1
    return value


cdef Cursor part(Cursor* c, int size) noexcept:
    """Take a part with its length, a number of so many bytes, in front."""
    cdef Cursor inner
    cdef uint32_t length = number(c, size)
    if not c.bad and length > c.end - c.at:
        c.bad = True
    inner.bad = c.bad
    inner.at = inner.end = c.at
    if not c.bad:
        c.at += length
        inner.end = c.at
    return inner


cdef bytes octets(Cursor c):
    """Return all bytes of a part."""
    return PyBytes_FromStringAndSize(<const char*> c.at, c.end - c.at)


cdef bint is_left(const Cursor* c) noexcept:
    return not c.bad and c.at < c.end


cdef bint is_done(const Cursor* c) noexcept:
    return not c.bad and c.at == c.end


cdef list numbers(Cursor* c, int prefix, int size):
    """Take a list of numbers that fills a part; None if it does not."""
    cdef Cursor inner = part(c, prefix)
    cdef list found = []
    while is_left(&inner):
        found.append(number(&inner, size))
    return found if is_done(&inner) and is_done(c) else None


cdef list names(Cursor* c):
    """Take a list of ALPN's names that fills a part; None if it does not."""
    cdef Cursor inner = part(c, 2)
    cdef Cursor name
    cdef bytes text
    cdef list found = []
    while is_left(&inner):
        name = part(&inner, 1)
        text = octets(name)
        if not text.isascii():
            return None
        found.append(text.decode("ascii"))
    return found if is_done(&inner) and is_done(c) else None


cdef bytes rest_of(object buf):
    return buf.data_slice(buf.tell(), buf.capacity)


cdef Cursor message(bytes data, int kind) noexcept:
    """Begin to read a message, which is all there is."""
    cdef Cursor c
    cdef Cursor inner
    c.at = <const uint8_t*> <const char*> data
    c.end = c.at + len(data)
    c.bad = False
    if number(&c, 1) != <uint32_t> kind:
        c.bad = True
    inner = part(&c, 3)
    inner.bad = inner.bad or not is_done(&c)
    return inner


cdef object read_client_hello(bytes data):
    cdef Cursor c = message(data, CLIENT_HELLO)
    cdef Cursor extensions, body, inner, name
    cdef uint32_t kind, group
    cdef list shares
    cdef bytes random, session
    if number(&c, 2) != VERSION_1_2 or c.end - c.at < 32:
        return None
    random = PyBytes_FromStringAndSize(<const char*> c.at, 32)
    c.at += 32
    session = octets(part(&c, 1))
    inner = part(&c, 2)
    suites = []
    while is_left(&inner):
        suites.append(number(&inner, 2))
    body = part(&c, 1)
    if inner.bad or body.bad:
        return None
    hello = tls.ClientHello(random, session, suites, list(octets(body)))
    extensions = part(&c, 2)
    if not is_done(&c):
        return None
    while is_left(&extensions):
        kind = number(&extensions, 2)
        body = part(&extensions, 2)
        if kind == KEY_SHARE:
            inner = part(&body, 2)
            shares = []
            while is_left(&inner):
                group = number(&inner, 2)
                name = part(&inner, 2)
                shares.append((group, octets(name)))
            if not is_done(&inner) or not is_done(&body):
                return None
            hello.key_share = shares
        elif kind == SUPPORTED_VERSIONS:
            hello.supported_versions = made = numbers(&body, 1, 2)
            if made is None:
                return None
        elif kind == SIGNATURE_ALGORITHMS:
            hello.signature_algorithms = made = numbers(&body, 2, 2)
            if made is None:
                return None
        elif kind == SUPPORTED_GROUPS:
            hello.supported_groups = made = numbers(&body, 2, 2)
            if made is None:
                return None
        elif kind == PSK_KEY_EXCHANGE_MODES:
            hello.psk_key_exchange_modes = made = numbers(&body, 1, 1)
            if made is None:
                return None
        elif kind == ALPN:
            hello.alpn_protocols = made = names(&body)
            if made is None:
                return None
        elif kind in (SERVER_NAME, EARLY_DATA, PRE_SHARED_KEY):
            return None
        else:
            hello.other_extensions.append((kind, octets(body)))
    return None if extensions.bad else hello


cdef object read_server_hello(bytes data):
    cdef Cursor c = message(data, SERVER_HELLO)
    cdef Cursor extensions, body, inner
    cdef uint32_t kind, suite, compression, group
    cdef bytes random, session
    if number(&c, 2) != VERSION_1_2 or c.end - c.at < 32:
        return None
    random = PyBytes_FromStringAndSize(<const char*> c.at, 32)
    c.at += 32
    session = octets(part(&c, 1))
    suite = number(&c, 2)
    compression = number(&c, 1)
    extensions = part(&c, 2)
    if not is_done(&c):
        return None
    hello = tls.ServerHello(random, session, suite, compression)
    while is_left(&extensions):
        kind = number(&extensions, 2)
        body = part(&extensions, 2)
        if kind == SUPPORTED_VERSIONS:
            hello.supported_version = number(&body, 2)
        elif kind == KEY_SHARE:
            group = number(&body, 2)
            inner = part(&body, 2)
            hello.key_share = (group, octets(inner))
        elif kind == PRE_SHARED_KEY:
            return None
        else:
            hello.other_extensions.append((kind, octets(body)))
            continue
        if not is_done(&body):
            return None
    return None if extensions.bad else hello


cdef object read_encrypted_extensions(bytes data):
    cdef Cursor c = message(data, ENCRYPTED_EXTENSIONS)
    cdef Cursor extensions = part(&c, 2)
    cdef Cursor body
    cdef uint32_t kind
    if not is_done(&c):
        return None
    found = tls.EncryptedExtensions()
    while is_left(&extensions):
        kind = number(&extensions, 2)
        body = part(&extensions, 2)
        if kind == ALPN:
            made = names(&body)
            if made is None or len(made) != 1:
                return None
            found.alpn_protocol = made[0]
        elif kind == EARLY_DATA:
            return None
        else:
            found.other_extensions.append((kind, octets(body)))
    return None if extensions.bad else found


cdef object read_certificate(bytes data):
    cdef Cursor c = message(data, CERTIFICATE)
    cdef Cursor context = part(&c, 1)
    cdef Cursor entries = part(&c, 3)
    cdef Cursor certificate, extensions
    cdef list found = []
    if not is_done(&c):
        return None
    while is_left(&entries):
        certificate = part(&entries, 3)
        extensions = part(&entries, 2)
        found.append((octets(certificate), octets(extensions)))
    return None if entries.bad else tls.Certificate(octets(context), found)


cdef object read_certificate_verify(bytes data):
    cdef Cursor c = message(data, CERTIFICATE_VERIFY)
    cdef uint32_t algorithm = number(&c, 2)
    cdef Cursor signature = part(&c, 2)
    if not is_done(&c):
        return None
    return tls.CertificateVerify(algorithm, octets(signature))


def pull_client_hello(buf):
    """Read a ClientHello."""
    hello = read_client_hello(rest_of(buf))
    if hello is None:
        return tls.pull_client_hello(buf)
    buf.seek(buf.capacity)
    return hello


def pull_server_hello(buf):
    """Read a ServerHello."""
    hello = read_server_hello(rest_of(buf))
    if hello is None:
        return tls.pull_server_hello(buf)
    buf.seek(buf.capacity)
    return hello


def pull_encrypted_extensions(buf):
    """Read EncryptedExtensions."""
    found = read_encrypted_extensions(rest_of(buf))
    if found is None:
        return tls.pull_encrypted_extensions(buf)
    buf.seek(buf.capacity)
    return found


def pull_certificate(buf):
    """Read a Certificate message; the certificates are not parsed."""
    found = read_certificate(rest_of(buf))
    if found is None:
        return tls.pull_certificate(buf)
    buf.seek(buf.capacity)
    return found


def pull_certificate_verify(buf):
    """Read a CertificateVerify message; the signature is not checked."""
    found = read_certificate_verify(rest_of(buf))
    if found is None:
        return tls.pull_certificate_verify(buf)
    buf.seek(buf.capacity)
    return found


def pull_finished(buf):
    """Read a Finished message; its data is not checked."""
    cdef bytes data = rest_of(buf)
    cdef Cursor c = message(data, FINISHED)
    if c.bad:
        return tls.pull_finished(buf)
    buf.seek(buf.capacity)
    return tls.Finished(octets(c))


# --- Writing ----------------------------------------------------------------------

cdef bytes written(uint32_t value, int size):
    """Write a number of 1 to 3 bytes."""
    cdef uint8_t[3] out
    cdef int i
    for i in range(size):
        out[i] = <uint8_t> (value >> 8 * (size - 1 - i))
    return PyBytes_FromStringAndSize(<const char*> out, size)


cdef bytes sized(int size, bytes body):
    """Put the length of a body in front of it, a number of so many bytes."""
    if len(body) >> 8 * size:
        raise ValueError("too long for a TLS message")
    return written(<uint32_t> len(body), size) + body


cdef bytes extension(uint32_t kind, bytes body):
    return written(kind, 2) + sized(2, body)


cdef bytes listed(object values, int prefix, int size):
    return sized(prefix, b"".join([written(value, size) for value in values]))


cdef bytes share(object entry):
    return written(entry[0], 2) + sized(2, entry[1])


def push_client_hello(buf, hello):
    """Write a ClientHello."""
    cdef list parts
    if (
        hello.server_name is not None or hello.early_data
        or hello.pre_shared_key is not None
    ):
        tls.push_client_hello(buf, hello)
        return
    parts = [
        extension(
            KEY_SHARE, sized(2, b"".join([share(each) for each in hello.key_share]))
        ),
        extension(SUPPORTED_VERSIONS, listed(hello.supported_versions, 1, 2)),
        extension(SIGNATURE_ALGORITHMS, listed(hello.signature_algorithms, 2, 2)),
        extension(SUPPORTED_GROUPS, listed(hello.supported_groups, 2, 2)),
    ]
    if hello.psk_key_exchange_modes is not None:
        parts.append(
            extension(
                PSK_KEY_EXCHANGE_MODES, listed(hello.psk_key_exchange_modes, 1, 1)
            )
        )
    if hello.alpn_protocols is not None:
        parts.append(
            extension(ALPN, sized(2, b"".join(
                [sized(1, name.encode("ascii")) for name in hello.alpn_protocols]
            )))
        )
    for kind, body in hello.other_extensions:
        parts.append(extension(kind, body))
    buf.push_bytes(
        written(CLIENT_HELLO, 1) + sized(
            3,
            written(VERSION_1_2, 2) + hello.random + sized(1, hello.legacy_session_id)
            + listed(hello.cipher_suites, 2, 2)
            + listed(hello.legacy_compression_methods, 1, 1)
            + sized(2, b"".join(parts))
        )
    )


def push_server_hello(buf, hello):
    """Write a ServerHello."""
    cdef list parts = []
    if hello.supported_version is not None:
        parts.append(extension(SUPPORTED_VERSIONS, written(hello.supported_version, 2)))
    if hello.key_share is not None:
        parts.append(extension(KEY_SHARE, share(hello.key_share)))
    if hello.pre_shared_key is not None:
        parts.append(extension(PRE_SHARED_KEY, written(hello.pre_shared_key, 2)))
    for kind, body in hello.other_extensions:
        parts.append(extension(kind, body))
    buf.push_bytes(
        written(SERVER_HELLO, 1) + sized(
            3,
            written(VERSION_1_2, 2) + hello.random + sized(1, hello.legacy_session_id)
            + written(hello.cipher_suite, 2) + written(hello.compression_method, 1)
            + sized(2, b"".join(parts))
        )
    )


def push_encrypted_extensions(buf, extensions):
    """Write EncryptedExtensions."""
    cdef list parts = []
    if extensions.alpn_protocol is not None:
        name = sized(1, extensions.alpn_protocol.encode("ascii"))
        parts.append(extension(ALPN, sized(2, name)))
    if extensions.early_data:
        parts.append(extension(EARLY_DATA, b""))
    for kind, body in extensions.other_extensions:
        parts.append(extension(kind, body))
    buf.push_bytes(
        written(ENCRYPTED_EXTENSIONS, 1) + sized(3, sized(2, b"".join(parts)))
    )


def push_certificate(buf, certificate):
    """Write a Certificate message."""
    entries = b"".join(
        [sized(3, data) + sized(2, more) for data, more in certificate.certificates]
    )
    buf.push_bytes(
        written(CERTIFICATE, 1)
        + sized(3, sized(1, certificate.request_context) + sized(3, entries))
    )


def push_certificate_verify(buf, verify):
    """Write a CertificateVerify message."""
    body = written(verify.algorithm, 2) + sized(2, verify.signature)
    buf.push_bytes(written(CERTIFICATE_VERIFY, 1) + sized(3, body))


def push_finished(buf, finished):
    """Write a Finished message."""
    buf.push_bytes(written(FINISHED, 1) + sized(3, finished.verify_data))


@cython.final
@cython.auto_pickle(False)
cdef class Hashing:
    """A context manager, aioquic's ``push_message``: hashes what is written meanwhile.

    Args:
        key_schedule: Hashes it.
        buf: The buffer.
    """

    cdef object key_schedule
    cdef object buf
    cdef object start

    def __init__(self, key_schedule, buf):
        self.key_schedule = key_schedule
        self.buf = buf

    def __enter__(self):
        self.start = self.buf.tell()

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.key_schedule.update_hash(
                self.buf.data_slice(self.start, self.buf.tell())
            )
