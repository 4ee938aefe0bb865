"""Parsing and building of QUIC v1 packet headers.

Source: RFC 9000 section 17 and appendix A, RFC 8999 (what every version shares).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lightning._core.quic.buffer cimport (
    OK,
    VARINT_MAX,
    Reader,
    Writer,
    reader_bytes,
    reader_init,
    reader_left,
    reader_u8,
    reader_u32,
    reader_varint,
    store_u16,
    varint_size,
    writer_bytes,
    writer_init,
    writer_left,
    writer_size,
    writer_skip,
    writer_u8,
    writer_u32,
    writer_varint,
)

cdef enum:
    LONG_HEADER = 0x80
    FIXED_BIT = 0x40
    KEY_PHASE_BIT = 0x04
    # The length of a long header is always written in two bytes, so that it can be
    # filled in later.
    LENGTH_MAX = 0x3FFF


# --- Reading --------------------------------------------------------------------------

cdef int packet_parse(
    PacketHeader* h, const uint8_t* data, size_t size, size_t local_cid_size
) noexcept nogil:
    memset(h, 0, sizeof(PacketHeader))
    if size == 0:
        return PACKET_TRUNCATED
    if data[0] & LONG_HEADER:
        return parse_long(h, data, size)
    if not data[0] & FIXED_BIT:
        return PACKET_NO_FIXED_BIT
    if size - 1 < local_cid_size:
        return PACKET_TRUNCATED
    h.type = PACKET_ONE_RTT
    h.dcid = data + 1
    h.dcid_size = <uint8_t> local_cid_size
    h.pn_offset = 1 + local_cid_size
    h.size = size  # A short header has no length, so it is the last of its datagram.
    if size - h.pn_offset < SAMPLE_END:
        return PACKET_TOO_SHORT
    return OK


cdef int parse_long(PacketHeader* h, const uint8_t* data, size_t size) noexcept nogil:
    """Parse what all versions share, then what version 1 adds."""
    cdef Reader r
    reader_init(&r, data + 1, size - 1)
    if (
        reader_u32(&r, &h.version)
        or reader_u8(&r, &h.dcid_size)
        or reader_bytes(&r, h.dcid_size, &h.dcid)
        or reader_u8(&r, &h.scid_size)
        or reader_bytes(&r, h.scid_size, &h.scid)
    ):
        return PACKET_TRUNCATED
    if h.version == VERSION_NEGOTIATION:
        # An incomplete version and an empty list are both to be ignored
        # (RFC 8999 section 6). The fixed bit means nothing here.
        h.type = PACKET_VERSION_NEGOTIATION
        h.size = size
        h.token = r.pos
        h.token_size = reader_left(&r)
        if h.token_size == 0 or h.token_size % 4:
            return PACKET_TRUNCATED
        return OK
    if h.version != VERSION_1:
        return PACKET_UNKNOWN_VERSION
    if h.dcid_size > CID_MAX or h.scid_size > CID_MAX:
        return PACKET_CID_TOO_LONG
    if not data[0] & FIXED_BIT:
        return PACKET_NO_FIXED_BIT
    h.type = (data[0] >> 4) & 0x03
    return parse_version_1(h, &r, data, size)


cdef int parse_version_1(
    PacketHeader* h, Reader* r, const uint8_t* data, size_t size
) noexcept nogil:
    """Parse what follows the connection IDs; ``r`` stands behind them."""
    cdef uint64_t length = 0
    if h.type == PACKET_RETRY:
        if reader_left(r) < TAG_SIZE:
            return PACKET_TRUNCATED
        h.size = size
        h.token = r.pos
        h.token_size = reader_left(r) - TAG_SIZE
        h.integrity_tag = r.end - TAG_SIZE
        if h.token_size == 0:
            return PACKET_NO_TOKEN
        return OK
    if h.type == PACKET_INITIAL:
        if reader_varint(r, &length) or reader_bytes(r, length, &h.token):
            return PACKET_TRUNCATED
        h.token_size = <size_t> length
    if reader_varint(r, &length) or length > reader_left(r):
        return PACKET_TRUNCATED
    h.pn_offset = <size_t> (r.pos - data)
    h.size = h.pn_offset + <size_t> length
    if length < SAMPLE_END:
        return PACKET_TOO_SHORT
    return OK


cdef uint64_t packet_number_decode(
    uint64_t truncated, unsigned int pn_size, uint64_t expected
) noexcept nogil:
    cdef uint64_t window = <uint64_t> 1 << (8 * pn_size)
    cdef uint64_t half = window >> 1
    cdef uint64_t candidate = (expected & ~(window - 1)) | truncated
    # Both sums stay far below 2^64: packet numbers end at 2^62.
    if candidate + half <= expected and candidate + window <= <uint64_t> VARINT_MAX:
        return candidate + window
    if candidate > expected + half and candidate >= window:
        return candidate - window
    return candidate


# --- Writing --------------------------------------------------------------------------

cdef unsigned int packet_number_size(uint64_t pn, int64_t largest_acked) noexcept nogil:
    # The receiver may not have seen anything since the largest acknowledged, so the
    # number must name one of twice as many (RFC 9000 section 17.1).
    cdef uint64_t unacked = pn - <uint64_t> largest_acked
    if unacked <= 0x80:
        return 1
    if unacked <= 0x8000:
        return 2
    return 3 if unacked <= 0x800000 else 4


cdef size_t packet_long_size(
    uint8_t type, size_t dcid_size, size_t scid_size, size_t token_size,
    unsigned int pn_size
) noexcept nogil:
    cdef size_t size = 1 + 4 + 1 + dcid_size + 1 + scid_size + 2 + pn_size
    if type == PACKET_INITIAL:
        size += varint_size(token_size) + token_size
    return size


cdef void write_pn(Writer* w, PacketBuild* build, uint64_t pn) noexcept nogil:
    """Write the low bytes of the number; the caller has checked the room."""
    cdef unsigned int i
    build.pn = w.pos
    for i in range(build.pn_size):
        w.pos[i] = <uint8_t> (pn >> (8 * (build.pn_size - 1 - i)))
    w.pos += build.pn_size


cdef int packet_begin_long(
    Writer* w, PacketBuild* build, uint8_t type, const Cid* dcid, const Cid* scid,
    const uint8_t* token, size_t token_size, uint64_t pn, unsigned int pn_size
) noexcept nogil:
    if writer_left(w) < packet_long_size(
        type, dcid.size, scid.size, token_size, pn_size
    ):
        return PACKET_NO_SPACE
    build.start = w.pos
    build.pn_size = pn_size
    write_long_start(
        w, <uint8_t> (type << 4 | (pn_size - 1)), VERSION_1,
        dcid.bytes, dcid.size, scid.bytes, scid.size,
    )
    if type == PACKET_INITIAL:
        writer_varint(w, token_size)
        writer_bytes(w, token, token_size)
    writer_skip(w, 2, &build.length)
    write_pn(w, build, pn)
    return OK


cdef int packet_begin_short(
    Writer* w, PacketBuild* build, const Cid* dcid, bint key_phase, uint64_t pn,
    unsigned int pn_size
) noexcept nogil:
    if writer_left(w) < packet_short_size(dcid.size, pn_size):
        return PACKET_NO_SPACE
    build.start = w.pos
    build.length = NULL
    build.pn_size = pn_size
    # The spin bit stays 0, which an endpoint may choose (RFC 9000 section 17.4).
    writer_u8(
        w, <uint8_t> (FIXED_BIT | (KEY_PHASE_BIT if key_phase else 0) | (pn_size - 1))
    )
    writer_bytes(w, dcid.bytes, dcid.size)
    write_pn(w, build, pn)
    return OK


cdef int packet_set_length(PacketBuild* build, const Writer* w) noexcept nogil:
    cdef size_t length = <size_t> (w.pos - build.pn) + TAG_SIZE
    if build.length is NULL:
        return OK
    if length > LENGTH_MAX:
        return PACKET_NO_SPACE
    store_u16(build.length, <uint16_t> (0x4000 | length))
    return OK


cdef void write_long_start(
    Writer* w, uint8_t first, uint32_t version, const uint8_t* dcid, uint8_t dcid_size,
    const uint8_t* scid, uint8_t scid_size
) noexcept nogil:
    """Write what all versions share; the caller has checked the room."""
    writer_u8(w, LONG_HEADER | FIXED_BIT | first)
    writer_u32(w, version)
    writer_u8(w, dcid_size)
    writer_bytes(w, dcid, dcid_size)
    writer_u8(w, scid_size)
    writer_bytes(w, scid, scid_size)


cdef int packet_write_retry(
    Writer* w, uint8_t random, const Cid* dcid, const Cid* scid, const uint8_t* token,
    size_t token_size, uint8_t** tag
) noexcept nogil:
    cdef size_t left = writer_left(w)
    cdef size_t fixed = <size_t> 7 + dcid.size + scid.size + TAG_SIZE
    if left < fixed or token_size > left - fixed:
        return PACKET_NO_SPACE
    write_long_start(
        w, PACKET_RETRY << 4 | (random & 0x0F), VERSION_1,
        dcid.bytes, dcid.size, scid.bytes, scid.size,
    )
    writer_bytes(w, token, token_size)
    return writer_skip(w, TAG_SIZE, tag)


cdef int packet_write_version_negotiation(
    Writer* w, uint8_t random, const uint8_t* dcid, uint8_t dcid_size,
    const uint8_t* scid, uint8_t scid_size, const uint32_t* versions, size_t count
) noexcept nogil:
    cdef size_t left = writer_left(w)
    cdef size_t fixed = <size_t> 7 + dcid_size + scid_size
    cdef size_t i
    if left < fixed or count > (left - fixed) // 4:
        return PACKET_NO_SPACE
    # The fixed bit is set so that other protocols can share the port (section 17.2.1).
    write_long_start(
        w, random & 0x3F, VERSION_NEGOTIATION, dcid, dcid_size, scid, scid_size
    )
    for i in range(count):
        writer_u32(w, versions[i])
    return OK


cdef int packet_write_stateless_reset(
    Writer* w, const uint8_t* random, size_t size, const uint8_t* token
) noexcept nogil:
    if size < STATELESS_RESET_MIN or size > writer_left(w):
        return PACKET_NO_SPACE
    # Two fixed bits, then random bytes in the shape of a short header (section 10.3).
    writer_u8(w, FIXED_BIT | (random[0] & 0x3F))
    writer_bytes(w, random + 1, size - RESET_TOKEN_SIZE - 1)
    return writer_bytes(w, token, RESET_TOKEN_SIZE)


# --- What Python sees -----------------------------------------------------------------

cdef bytes view(const uint8_t* data, size_t size):
    return PyBytes_FromStringAndSize(<const char*> data, size) if size else b""


cdef int to_cid(Cid* cid, bytes data) except -1:
    if len(data) > CID_MAX:
        raise ValueError(f"a connection ID of {len(data)} bytes")
    cid_set(cid, data, len(data))
    return 0


def parse(const uint8_t[::1] data not None, size_t local_cid_size=8):
    """Parse the first packet of a datagram.

    Args:
        data: The datagram, or what is left of it.
        local_cid_size: Size of the connection IDs that we issue, in bytes.

    Returns:
        The status and the fields of the header as a dictionary; fields that a
        failure left unread are zero or empty.
    """
    cdef PacketHeader h
    cdef const uint8_t* start = &data[0] if data.shape[0] else NULL
    cdef int status = packet_parse(&h, start, data.shape[0], local_cid_size)
    return status, {
        "type": h.type,
        "version": h.version,
        "dcid": view(h.dcid, h.dcid_size) if h.dcid is not NULL else b"",
        "scid": view(h.scid, h.scid_size) if h.scid is not NULL else b"",
        "token": view(h.token, h.token_size),
        "integrity_tag": view(h.integrity_tag, TAG_SIZE if h.integrity_tag else 0),
        "pn_offset": h.pn_offset,
        "size": h.size,
    }


def decode_number(uint64_t truncated, unsigned int size, uint64_t expected):
    """Recover a packet number from its last ``size`` bytes, 1 to 4."""
    if not 1 <= size <= 4:
        raise ValueError("a packet number has 1 to 4 bytes")
    return packet_number_decode(truncated, size, expected)


def number_size(uint64_t number, int64_t largest_acked=-1):
    """Return how many bytes a packet number takes on the wire."""
    return packet_number_size(number, largest_acked)


def build(
    uint8_t packet_type, bytes dcid not None, bytes scid not None=b"", *,
    bytes token not None=b"", uint64_t pn=0, unsigned int pn_size=1,
    bint key_phase=False, bytes payload not None=b"", size_t room=1500
):
    """Build a packet that is not sealed: header, payload and room for the tag.

    Returns:
        The status, the bytes before the tag and the offset of the packet number.
    """
    cdef Cid destination
    cdef Cid source
    cdef PacketBuild b
    cdef Writer w
    cdef int status
    cdef uint8_t* block
    if not 1 <= pn_size <= 4:
        raise ValueError("a packet number has 1 to 4 bytes")
    to_cid(&destination, dcid)
    to_cid(&source, scid)
    block = <uint8_t*> malloc(room if room else 1)
    if block is NULL:
        raise MemoryError
    try:
        writer_init(&w, block, room)
        if packet_type == PACKET_ONE_RTT:
            status = packet_begin_short(&w, &b, &destination, key_phase, pn, pn_size)
        else:
            status = packet_begin_long(
                &w, &b, packet_type, &destination, &source, token, len(token), pn,
                pn_size,
            )
        if status:
            return status, view(block, writer_size(&w)), 0
        status = writer_bytes(&w, payload, len(payload)) or packet_set_length(&b, &w)
        return status, view(block, writer_size(&w)), b.pn - b.start
    finally:
        free(block)


def header_size(
    uint8_t packet_type, size_t dcid_size, size_t scid_size=0, size_t token_size=0,
    unsigned int pn_size=1
):
    """Return the size of a header, packet number included."""
    if packet_type == PACKET_ONE_RTT:
        return packet_short_size(dcid_size, pn_size)
    return packet_long_size(packet_type, dcid_size, scid_size, token_size, pn_size)


def build_retry(
    bytes dcid not None, bytes scid not None, bytes token not None, *,
    uint8_t random=0, size_t room=1500
):
    """Build a Retry packet whose integrity tag is still missing (16 zero bytes)."""
    cdef Cid destination
    cdef Cid source
    cdef Writer w
    cdef uint8_t* tag = NULL
    cdef int status
    cdef bytearray block = bytearray(room)
    to_cid(&destination, dcid)
    to_cid(&source, scid)
    writer_init(&w, block, room)
    status = packet_write_retry(
        &w, random, &destination, &source, token, len(token), &tag
    )
    return status, bytes(block[:writer_size(&w)])


def build_version_negotiation(
    bytes dcid not None, bytes scid not None, list versions not None, *,
    uint8_t random=0, size_t room=1500
):
    """Build a Version Negotiation packet of at most 16 versions."""
    cdef uint32_t numbers[16]
    cdef Writer w
    cdef int status
    cdef bytearray block = bytearray(room)
    if len(versions) > 16 or len(dcid) > 255 or len(scid) > 255:
        raise ValueError("too many versions or too long a connection ID")
    for i, version in enumerate(versions):
        numbers[i] = version
    writer_init(&w, block, room)
    status = packet_write_version_negotiation(
        &w, random, dcid, len(dcid), scid, len(scid), numbers, len(versions)
    )
    return status, bytes(block[:writer_size(&w)])


def build_stateless_reset(
    bytes random not None, bytes token not None, size_t room=1500
):
    """Build a stateless reset of ``len(random) + 16`` bytes."""
    cdef Writer w
    cdef int status
    cdef bytearray block = bytearray(room)
    if len(token) != RESET_TOKEN_SIZE:
        raise ValueError("a stateless reset token has 16 bytes")
    writer_init(&w, block, room)
    status = packet_write_stateless_reset(
        &w, random, len(random) + RESET_TOKEN_SIZE, token
    )
    return status, bytes(block[:writer_size(&w)])


def reserved_bits(uint8_t first):
    """Say if a reserved bit is set in an unprotected first byte."""
    return packet_reserved_bits(first)


def space(uint8_t packet_type):
    """Return the packet number space of a packet type."""
    return packet_space(packet_type)


def bench_parse(const uint8_t[::1] data not None, unsigned int count):
    """Parse the same packet ``count`` times."""
    cdef PacketHeader h
    cdef const uint8_t* start = &data[0]
    cdef size_t size = data.shape[0]
    with nogil:
        while count:
            packet_parse(&h, start, size, 8)
            count -= 1
