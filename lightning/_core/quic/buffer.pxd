"""Bounds-checked reading and writing of wire integers over raw memory.

A reader or a writer is a pair of pointers; it owns nothing. Every primitive checks
the room that is left before it moves, and leaves its position untouched if it fails,
so a failed call may be followed by any other one.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


# What a function returns. A value above zero is a TransportErrorCode: the peer broke
# a rule and the connection closes with that code.
cdef enum Status:
    OK = 0
    OUT_OF_MEMORY = -1
    TRUNCATED = -2  # fewer bytes are left to read than the value needs
    NO_SPACE = -3  # fewer bytes are left to write to than the value needs


# RFC 9000 section 20.1.
cdef enum TransportErrorCode:
    E_NO_ERROR = 0x00
    E_INTERNAL = 0x01
    E_CONNECTION_REFUSED = 0x02
    E_FLOW_CONTROL = 0x03
    E_STREAM_LIMIT = 0x04
    E_STREAM_STATE = 0x05
    E_FINAL_SIZE = 0x06
    E_FRAME_ENCODING = 0x07
    E_TRANSPORT_PARAMETER = 0x08
    E_CONNECTION_ID_LIMIT = 0x09
    E_PROTOCOL_VIOLATION = 0x0A
    E_INVALID_TOKEN = 0x0B
    E_APPLICATION = 0x0C
    E_CRYPTO_BUFFER_EXCEEDED = 0x0D
    E_KEY_UPDATE = 0x0E
    E_AEAD_LIMIT_REACHED = 0x0F
    E_NO_VIABLE_PATH = 0x10
    E_CRYPTO = 0x0100  # plus a TLS alert, 0x00 to 0xff


# The packet number spaces of RFC 9000 section 12.3. Each is acknowledged on its own.
cdef enum Space:
    INITIAL = 0
    HANDSHAKE = 1
    APPLICATION = 2
    SPACE_COUNT = 3


# RFC 9000 section 19.
cdef enum FrameType:
    FRAME_PADDING = 0x00
    FRAME_PING = 0x01
    FRAME_ACK = 0x02
    FRAME_ACK_ECN = 0x03
    FRAME_RESET_STREAM = 0x04
    FRAME_STOP_SENDING = 0x05
    FRAME_CRYPTO = 0x06
    FRAME_NEW_TOKEN = 0x07
    FRAME_STREAM = 0x08  # to 0x0f: plus the three STREAM_ bits
    FRAME_MAX_DATA = 0x10
    FRAME_MAX_STREAM_DATA = 0x11
    FRAME_MAX_STREAMS_BIDI = 0x12
    FRAME_MAX_STREAMS_UNI = 0x13
    FRAME_DATA_BLOCKED = 0x14
    FRAME_STREAM_DATA_BLOCKED = 0x15
    FRAME_STREAMS_BLOCKED_BIDI = 0x16
    FRAME_STREAMS_BLOCKED_UNI = 0x17
    FRAME_NEW_CONNECTION_ID = 0x18
    FRAME_RETIRE_CONNECTION_ID = 0x19
    FRAME_PATH_CHALLENGE = 0x1A
    FRAME_PATH_RESPONSE = 0x1B
    FRAME_CONNECTION_CLOSE = 0x1C
    FRAME_CONNECTION_CLOSE_APP = 0x1D
    FRAME_HANDSHAKE_DONE = 0x1E
    FRAME_TYPE_COUNT = 0x1F


# RFC 9000 section 19.8.
cdef enum:
    STREAM_FIN = 0x01
    STREAM_LEN = 0x02
    STREAM_OFF = 0x04


# The largest value that a variable-length integer holds (RFC 9000 section 16); also
# of packet numbers, stream offsets and stream identifiers.
cdef enum: VARINT_MAX = 0x3FFFFFFFFFFFFFFF


cdef struct Reader:
    const uint8_t* pos
    const uint8_t* end


cdef struct Writer:
    uint8_t* pos
    uint8_t* end
    uint8_t* start


# --- Reader -------------------------------------------------------------------------

cdef inline void reader_init(
    Reader* r, const uint8_t* data, size_t size
) noexcept nogil:
    r.pos = data
    r.end = data + size


cdef inline size_t reader_left(const Reader* r) noexcept nogil:
    return <size_t> (r.end - r.pos)


cdef inline int reader_u8(Reader* r, uint8_t* value) noexcept nogil:
    if reader_left(r) < 1:
        return TRUNCATED
    value[0] = r.pos[0]
    r.pos += 1
    return OK


cdef inline int reader_u16(Reader* r, uint16_t* value) noexcept nogil:
    if reader_left(r) < 2:
        return TRUNCATED
    value[0] = load_u16(r.pos)
    r.pos += 2
    return OK


cdef inline int reader_u32(Reader* r, uint32_t* value) noexcept nogil:
    if reader_left(r) < 4:
        return TRUNCATED
    value[0] = load_u32(r.pos)
    r.pos += 4
    return OK


cdef inline int reader_u64(Reader* r, uint64_t* value) noexcept nogil:
    if reader_left(r) < 8:
        return TRUNCATED
    value[0] = load_u64(r.pos)
    r.pos += 8
    return OK


cdef inline int reader_varint(Reader* r, uint64_t* value) noexcept nogil:
    """Read a variable-length integer in any of its encodings (RFC 9000 section 16)."""
    cdef size_t left = reader_left(r)
    cdef uint8_t first
    if left < 1:
        return TRUNCATED
    first = r.pos[0]
    if first < 0x40:
        value[0] = first
        r.pos += 1
        return OK
    if left < (<size_t> 1 << (first >> 6)):
        return TRUNCATED
    if first < 0x80:
        value[0] = load_u16(r.pos) & 0x3FFF
        r.pos += 2
    elif first < 0xC0:
        value[0] = load_u32(r.pos) & 0x3FFFFFFF
        r.pos += 4
    else:
        value[0] = load_u64(r.pos) & <uint64_t> VARINT_MAX
        r.pos += 8
    return OK


cdef inline int reader_bytes(
    Reader* r, uint64_t size, const uint8_t** view
) noexcept nogil:
    """Point ``view`` at the next ``size`` bytes, without a copy, and step over them."""
    if size > reader_left(r):
        return TRUNCATED
    view[0] = r.pos
    r.pos += size
    return OK


cdef inline int reader_skip(Reader* r, uint64_t size) noexcept nogil:
    if size > reader_left(r):
        return TRUNCATED
    r.pos += size
    return OK


# --- Writer -------------------------------------------------------------------------

cdef inline void writer_init(Writer* w, uint8_t* data, size_t size) noexcept nogil:
    w.start = data
    w.pos = data
    w.end = data + size


cdef inline size_t writer_left(const Writer* w) noexcept nogil:
    return <size_t> (w.end - w.pos)


cdef inline size_t writer_size(const Writer* w) noexcept nogil:
    """Return how many bytes were written."""
    return <size_t> (w.pos - w.start)


cdef inline int writer_u8(Writer* w, uint8_t value) noexcept nogil:
    if writer_left(w) < 1:
        return NO_SPACE
    w.pos[0] = value
    w.pos += 1
    return OK


cdef inline int writer_u16(Writer* w, uint16_t value) noexcept nogil:
    if writer_left(w) < 2:
        return NO_SPACE
    store_u16(w.pos, value)
    w.pos += 2
    return OK


cdef inline int writer_u32(Writer* w, uint32_t value) noexcept nogil:
    if writer_left(w) < 4:
        return NO_SPACE
    store_u32(w.pos, value)
    w.pos += 4
    return OK


cdef inline int writer_u64(Writer* w, uint64_t value) noexcept nogil:
    if writer_left(w) < 8:
        return NO_SPACE
    store_u64(w.pos, value)
    w.pos += 8
    return OK


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    """Return the bytes of the shortest encoding, 0 above VARINT_MAX."""
    if value < 0x40:
        return 1
    if value < 0x4000:
        return 2
    if value < 0x40000000:
        return 4
    return 8 if value <= <uint64_t> VARINT_MAX else 0


cdef inline int writer_varint(Writer* w, uint64_t value) noexcept nogil:
    """Write the shortest encoding; NO_SPACE also for a value above VARINT_MAX."""
    cdef size_t size = varint_size(value)
    # A size of 0 wraps to the largest size_t here and is refused with the rest.
    if size - 1 >= writer_left(w):
        return NO_SPACE
    if size == 1:
        w.pos[0] = <uint8_t> value
    elif size == 2:
        store_u16(w.pos, <uint16_t> (value | 0x4000))
    elif size == 4:
        store_u32(w.pos, <uint32_t> value | <uint32_t> 0x80000000)
    else:
        store_u64(w.pos, value | (<uint64_t> 3 << 62))
    w.pos += size
    return OK


cdef inline int writer_bytes(
    Writer* w, const uint8_t* data, size_t size
) noexcept nogil:
    if size > writer_left(w):
        return NO_SPACE
    if size:  # memcpy must not be given a null pointer, even for no bytes.
        memcpy(w.pos, data, size)
        w.pos += size
    return OK


cdef inline int writer_skip(Writer* w, size_t size, uint8_t** hole) noexcept nogil:
    """Leave ``size`` bytes for later and point ``hole`` at them."""
    if size > writer_left(w):
        return NO_SPACE
    hole[0] = w.pos
    w.pos += size
    return OK


# --- Big-endian loads and stores; the caller has checked the room. ------------------

cdef inline uint16_t load_u16(const uint8_t* p) noexcept nogil:
    return <uint16_t> ((<unsigned int> p[0] << 8) | p[1])


cdef inline uint32_t load_u32(const uint8_t* p) noexcept nogil:
    return (
        (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16)
        | (<uint32_t> p[2] << 8) | p[3]
    )


cdef inline uint64_t load_u64(const uint8_t* p) noexcept nogil:
    return (<uint64_t> load_u32(p) << 32) | load_u32(p + 4)


cdef inline void store_u16(uint8_t* p, uint16_t value) noexcept nogil:
    p[0] = <uint8_t> (value >> 8)
    p[1] = <uint8_t> value


cdef inline void store_u32(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t> (value >> 24)
    p[1] = <uint8_t> (value >> 16)
    p[2] = <uint8_t> (value >> 8)
    p[3] = <uint8_t> value


cdef inline void store_u64(uint8_t* p, uint64_t value) noexcept nogil:
    store_u32(p, <uint32_t> (value >> 32))
    store_u32(p + 4, <uint32_t> value)
