"""Parsing and writing of frames.

Source: RFC 9000 sections 12.4 (which packet may carry which frame) and 19.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lightning._core.quic.buffer cimport (
    E_FRAME_ENCODING,
    E_PROTOCOL_VIOLATION,
    FRAME_CRYPTO,
    FRAME_HANDSHAKE_DONE,
    FRAME_MAX_STREAM_DATA,
    FRAME_MAX_STREAMS_BIDI,
    FRAME_MAX_STREAMS_UNI,
    FRAME_NEW_TOKEN,
    FRAME_PING,
    FRAME_RESET_STREAM,
    FRAME_STOP_SENDING,
    FRAME_STREAM,
    FRAME_STREAM_DATA_BLOCKED,
    FRAME_STREAMS_BLOCKED_BIDI,
    FRAME_STREAMS_BLOCKED_UNI,
    FRAME_TYPE_COUNT,
    NO_SPACE,
    STREAM_FIN,
    STREAM_LEN,
    STREAM_OFF,
    VARINT_MAX,
    reader_bytes,
    reader_init,
    reader_left,
    reader_u8,
    varint_size,
    writer_bytes,
    writer_init,
    writer_left,
    writer_size,
    writer_skip,
    writer_u8,
    writer_varint,
)
from lightning._core.quic.packet cimport (
    CID_MAX,
    PACKET_HANDSHAKE,
    PACKET_INITIAL,
    PACKET_ONE_RTT,
    RESET_TOKEN_SIZE,
)
from lightning._core.quic.ranges cimport (
    RANGES_REFUSE,
    Range,
    ranges_add,
    ranges_free,
    ranges_init,
)

# Which packet may carry which frame (RFC 9000 section 12.4, table 3).
cdef enum:
    ALLOWED_HANDSHAKE = (
        1 << FRAME_PADDING | 1 << FRAME_PING | 1 << FRAME_ACK | 1 << FRAME_ACK_ECN
        | 1 << FRAME_CRYPTO | 1 << FRAME_CONNECTION_CLOSE
    )
    FORBIDDEN_ZERO_RTT = (
        1 << FRAME_ACK | 1 << FRAME_ACK_ECN | 1 << FRAME_CRYPTO | 1 << FRAME_NEW_TOKEN
        | 1 << FRAME_PATH_RESPONSE | 1 << FRAME_HANDSHAKE_DONE
    )
    FORBIDDEN_TO_CLIENTS = 1 << FRAME_NEW_TOKEN | 1 << FRAME_HANDSHAKE_DONE


# --- Reading --------------------------------------------------------------------------

cdef int frame_parse(
    Frame* f, Reader* r, uint8_t packet_type, bint by_client
) noexcept nogil:
    cdef const uint8_t* start = r.pos
    cdef uint8_t bits = 0
    f.wire_type = 0
    if reader_varint(r, &f.wire_type) or f.wire_type >= FRAME_TYPE_COUNT:
        return E_FRAME_ENCODING
    if r.pos - start != 1:
        # A type in more bytes than it needs (section 12.4).
        return E_PROTOCOL_VIOLATION
    f.type = <uint8_t> f.wire_type
    if f.type & 0xF8 == FRAME_STREAM:
        bits = f.type & 0x07
        f.type = FRAME_STREAM
    if not is_allowed(f.type, packet_type, by_client):
        return E_PROTOCOL_VIOLATION
    # The fields are read in the order in which they stand.
    if f.type == FRAME_STREAM:
        return parse_stream(&f.body.data, r, bits)
    if f.type == FRAME_ACK or f.type == FRAME_ACK_ECN:
        return parse_ack(&f.body.ack, r, f.type == FRAME_ACK_ECN)
    if f.type == FRAME_PADDING:
        while r.pos < r.end and r.pos[0] == FRAME_PADDING:
            r.pos += 1
        f.body.value = <uint64_t> (r.pos - start)
        return OK
    if f.type == FRAME_PING or f.type == FRAME_HANDSHAKE_DONE:
        return OK
    if parse_fields(f, r):
        return E_FRAME_ENCODING
    return check_fields(f)


cdef bint is_allowed(uint8_t type, uint8_t packet_type, bint by_client) noexcept nogil:
    if packet_type == PACKET_INITIAL or packet_type == PACKET_HANDSHAKE:
        return ALLOWED_HANDSHAKE >> type & 1
    if by_client and FORBIDDEN_TO_CLIENTS >> type & 1:
        return False  # Only a server sends these (sections 19.7 and 19.20).
    return packet_type == PACKET_ONE_RTT or not FORBIDDEN_ZERO_RTT >> type & 1


cdef int parse_stream(DataFrame* f, Reader* r, uint8_t bits) noexcept nogil:
    cdef uint64_t size = 0
    f.offset = 0
    f.fin = bits & STREAM_FIN
    if (
        reader_varint(r, &f.stream_id)
        or (bits & STREAM_OFF and reader_varint(r, &f.offset))
        or (bits & STREAM_LEN and reader_varint(r, &size))
    ):
        return E_FRAME_ENCODING
    if not bits & STREAM_LEN:
        size = reader_left(r)
    # A stream ends at 2^62 - 1 (section 19.8).
    if reader_bytes(r, size, &f.data) or size > <uint64_t> VARINT_MAX - f.offset:
        return E_FRAME_ENCODING
    f.size = <size_t> size
    return OK


cdef int parse_ack(AckFrame* f, Reader* r, bint with_ecn) noexcept nogil:
    """Parse an ACK and walk its ranges once, so that they can be trusted later."""
    cdef uint64_t smallest
    cdef uint64_t gap
    cdef uint64_t length
    cdef uint64_t left
    f.ect0 = f.ect1 = f.ce = 0
    if (
        reader_varint(r, &f.largest)
        or reader_varint(r, &f.delay)
        or reader_varint(r, &f.range_count)
        or reader_varint(r, &f.first_range)
        or f.first_range > f.largest
        or f.range_count > reader_left(r) // 2  # A range takes two bytes or more.
    ):
        return E_FRAME_ENCODING
    f.ranges = r.pos
    smallest = f.largest - f.first_range
    left = f.range_count
    gap = length = 0
    while left:
        if reader_varint(r, &gap) or reader_varint(r, &length):
            return E_FRAME_ENCODING
        # The next largest is two below the gap (section 19.3.1). Both sums are below
        # 2^64, and no computed packet number may be negative.
        if gap + 2 + length > smallest:
            return E_FRAME_ENCODING
        smallest -= gap + 2 + length
        left -= 1
    f.ranges_size = <size_t> (r.pos - f.ranges)
    if with_ecn and (
        reader_varint(r, &f.ect0)
        or reader_varint(r, &f.ect1)
        or reader_varint(r, &f.ce)
    ):
        return E_FRAME_ENCODING
    return OK


cdef int parse_data(DataFrame* f, Reader* r) noexcept nogil:
    """Parse a length and that many bytes."""
    cdef uint64_t size = 0
    f.fin = False
    f.stream_id = 0
    if reader_varint(r, &size):
        return -1
    f.size = <size_t> size
    return reader_bytes(r, size, &f.data)


cdef int parse_fields(Frame* f, Reader* r) noexcept nogil:
    """Read the fields of the less frequent frames; not 0 if they are cut short."""
    cdef FrameBody* b = &f.body
    cdef uint64_t size = 0
    if f.type == FRAME_CRYPTO:
        return reader_varint(r, &b.data.offset) or parse_data(&b.data, r)
    if f.type == FRAME_NEW_TOKEN:
        b.data.offset = 0
        return parse_data(&b.data, r)
    if f.type == FRAME_RESET_STREAM:
        return (
            reader_varint(r, &b.reset_stream.stream_id)
            or reader_varint(r, &b.reset_stream.error_code)
            or reader_varint(r, &b.reset_stream.final_size)
        )
    if f.type == FRAME_NEW_CONNECTION_ID:
        return (
            reader_varint(r, &b.new_connection_id.sequence)
            or reader_varint(r, &b.new_connection_id.retire_prior_to)
            or reader_u8(r, &b.new_connection_id.cid_size)
            or reader_bytes(r, b.new_connection_id.cid_size, &b.new_connection_id.cid)
            or reader_bytes(r, RESET_TOKEN_SIZE, &b.new_connection_id.token)
        )
    if f.type == FRAME_PATH_CHALLENGE or f.type == FRAME_PATH_RESPONSE:
        return reader_bytes(r, PATH_DATA_SIZE, &b.path_data)
    if f.type == FRAME_CONNECTION_CLOSE or f.type == FRAME_CONNECTION_CLOSE_APP:
        b.close.frame_type = 0
        if (
            reader_varint(r, &b.close.error_code)
            or (
                f.type == FRAME_CONNECTION_CLOSE
                and reader_varint(r, &b.close.frame_type)
            )
            or reader_varint(r, &size)
        ):
            return -1
        b.close.reason_size = <size_t> size
        return reader_bytes(r, size, &b.close.reason)
    if (
        f.type == FRAME_STOP_SENDING
        or f.type == FRAME_MAX_STREAM_DATA
        or f.type == FRAME_STREAM_DATA_BLOCKED
    ):
        return (
            reader_varint(r, &b.stream_value.stream_id)
            or reader_varint(r, &b.stream_value.value)
        )
    return reader_varint(r, &b.value)


cdef int check_fields(const Frame* f) noexcept nogil:
    """Check what the definition of a frame forbids."""
    cdef const FrameBody* b = &f.body
    if f.type == FRAME_CRYPTO:
        # Section 19.6.
        if b.data.size > <uint64_t> VARINT_MAX - b.data.offset:
            return E_FRAME_ENCODING
    elif f.type == FRAME_NEW_TOKEN:
        if b.data.size == 0:  # Section 19.7.
            return E_FRAME_ENCODING
    elif FRAME_MAX_STREAMS_BIDI <= f.type <= FRAME_MAX_STREAMS_UNI:
        if b.value > <uint64_t> STREAMS_MAX:  # Section 19.11.
            return E_FRAME_ENCODING
    elif FRAME_STREAMS_BLOCKED_BIDI <= f.type <= FRAME_STREAMS_BLOCKED_UNI:
        if b.value > <uint64_t> STREAMS_MAX:  # Section 19.14.
            return E_FRAME_ENCODING
    elif f.type == FRAME_NEW_CONNECTION_ID:
        # Section 19.15.
        if (
            b.new_connection_id.retire_prior_to > b.new_connection_id.sequence
            or not 1 <= b.new_connection_id.cid_size <= CID_MAX
        ):
            return E_FRAME_ENCODING
    return OK


# --- Writing --------------------------------------------------------------------------

cdef inline bint fits(const Writer* w, size_t size) noexcept nogil:
    return size <= writer_left(w)


cdef inline bint is_varint(uint64_t value) noexcept nogil:
    return value <= <uint64_t> VARINT_MAX


cdef int frame_write_bare(Writer* w, uint8_t type) noexcept nogil:
    return writer_u8(w, type)


cdef int frame_write_padding(Writer* w, size_t count) noexcept nogil:
    if not fits(w, count):
        return NO_SPACE
    memset(w.pos, FRAME_PADDING, count)
    w.pos += count
    return OK


cdef int frame_write_value(Writer* w, uint8_t type, uint64_t value) noexcept nogil:
    if not is_varint(value) or not fits(w, 1 + varint_size(value)):
        return NO_SPACE
    writer_u8(w, type)
    return writer_varint(w, value)


cdef int frame_write_stream_value(
    Writer* w, uint8_t type, uint64_t stream_id, uint64_t value
) noexcept nogil:
    if (
        not is_varint(stream_id | value)
        or not fits(w, 1 + varint_size(stream_id) + varint_size(value))
    ):
        return NO_SPACE
    writer_u8(w, type)
    writer_varint(w, stream_id)
    return writer_varint(w, value)


cdef int frame_write_reset_stream(
    Writer* w, uint64_t stream_id, uint64_t error_code, uint64_t final_size
) noexcept nogil:
    cdef size_t size = (
        1 + varint_size(stream_id) + varint_size(error_code) + varint_size(final_size)
    )
    if not is_varint(stream_id | error_code | final_size) or not fits(w, size):
        return NO_SPACE
    writer_u8(w, FRAME_RESET_STREAM)
    writer_varint(w, stream_id)
    writer_varint(w, error_code)
    return writer_varint(w, final_size)


cdef int frame_write_ack(
    Writer* w, const Ranges* received, uint64_t delay, const EcnCounts* ecn
) noexcept nogil:
    cdef const Range* top
    cdef const Range* low
    cdef size_t size
    cdef size_t pair
    cdef uint64_t count = 0  # of ranges after the first
    if received.count == 0:
        return NO_SPACE
    top = &received.items[received.count - 1]
    # The count takes one byte, since it is below 64.
    size = (
        2 + varint_size(top.end - 1) + varint_size(delay)
        + varint_size(top.end - 1 - top.start)
    )
    if ecn is not NULL:
        size += varint_size(ecn.ect0) + varint_size(ecn.ect1) + varint_size(ecn.ce)
    if not is_varint(delay | (top.end - 1)) or not fits(w, size):
        return NO_SPACE
    low = top
    while count + 1 < received.count and count + 1 < ACK_RANGES_WRITTEN:
        pair = (
            varint_size(low.start - low[-1].end - 1)
            + varint_size(low[-1].end - 1 - low[-1].start)
        )
        if not fits(w, size + pair):
            break
        low -= 1
        size += pair
        count += 1
    writer_u8(w, FRAME_ACK if ecn is NULL else FRAME_ACK_ECN)
    writer_varint(w, top.end - 1)
    writer_varint(w, delay)
    writer_varint(w, count)
    writer_varint(w, top.end - 1 - top.start)
    while top != low:
        # A gap of 0 stands for one missing packet (section 19.3.1).
        writer_varint(w, top.start - top[-1].end - 1)
        top -= 1
        writer_varint(w, top.end - 1 - top.start)
    if ecn is not NULL:
        writer_varint(w, ecn.ect0)
        writer_varint(w, ecn.ect1)
        writer_varint(w, ecn.ce)
    return OK


cdef int frame_write_new_token(
    Writer* w, const uint8_t* token, size_t size
) noexcept nogil:
    cdef size_t left = writer_left(w)
    cdef size_t head = 1 + varint_size(size)
    if left < head or size > left - head:
        return NO_SPACE
    writer_u8(w, FRAME_NEW_TOKEN)
    writer_varint(w, size)
    return writer_bytes(w, token, size)


cdef int frame_write_new_connection_id(
    Writer* w, uint64_t sequence, uint64_t retire_prior_to, const uint8_t* cid,
    uint8_t cid_size, const uint8_t* token
) noexcept nogil:
    cdef size_t size = (
        2 + varint_size(sequence) + varint_size(retire_prior_to) + cid_size
        + RESET_TOKEN_SIZE
    )
    if not is_varint(sequence | retire_prior_to) or not fits(w, size):
        return NO_SPACE
    writer_u8(w, FRAME_NEW_CONNECTION_ID)
    writer_varint(w, sequence)
    writer_varint(w, retire_prior_to)
    writer_u8(w, cid_size)
    writer_bytes(w, cid, cid_size)
    return writer_bytes(w, token, RESET_TOKEN_SIZE)


cdef int frame_write_path(Writer* w, uint8_t type, const uint8_t* data) noexcept nogil:
    if not fits(w, 1 + PATH_DATA_SIZE):
        return NO_SPACE
    writer_u8(w, type)
    return writer_bytes(w, data, PATH_DATA_SIZE)


cdef int frame_write_close(
    Writer* w, uint8_t type, uint64_t error_code, uint64_t frame_type,
    const uint8_t* reason, size_t reason_size
) noexcept nogil:
    cdef size_t left = writer_left(w)
    cdef size_t head = 1 + varint_size(error_code)
    if type == FRAME_CONNECTION_CLOSE:
        head += varint_size(frame_type)
    if not is_varint(error_code | frame_type) or left <= head:
        return NO_SPACE
    reason_size = room_for_data(left - head, reason_size)
    writer_u8(w, type)
    writer_varint(w, error_code)
    if type == FRAME_CONNECTION_CLOSE:
        writer_varint(w, frame_type)
    writer_varint(w, reason_size)
    return writer_bytes(w, reason, reason_size)


cdef size_t room_for_data(size_t room, size_t available) noexcept nogil:
    """Return how many bytes fit into ``room`` behind their own length."""
    cdef size_t size
    if room < 2:
        return 0
    size = room - varint_size(room - 1)
    return min(size, available)


cdef size_t crypto_frame_size(uint64_t offset, size_t size) noexcept nogil:
    return 1 + varint_size(offset) + varint_size(size) + size


cdef size_t crypto_frame_fit(
    size_t room, uint64_t offset, size_t available
) noexcept nogil:
    cdef size_t head = 1 + varint_size(offset)
    return room_for_data(room - head, available) if room > head else 0


cdef int frame_begin_crypto(
    Writer* w, uint64_t offset, size_t size, uint8_t** data
) noexcept nogil:
    if not is_varint(offset) or not fits(w, crypto_frame_size(offset, size)):
        return NO_SPACE
    writer_u8(w, FRAME_CRYPTO)
    writer_varint(w, offset)
    writer_varint(w, size)
    return writer_skip(w, size, data)


cdef size_t stream_frame_size(
    uint64_t stream_id, uint64_t offset, size_t size, bint last
) noexcept nogil:
    cdef size_t head = 1 + varint_size(stream_id)
    if offset:
        head += varint_size(offset)
    if not last:
        head += varint_size(size)
    return head + size


cdef size_t stream_frame_fit(
    size_t room, uint64_t stream_id, uint64_t offset, size_t available, bint* last
) noexcept nogil:
    cdef size_t head = stream_frame_size(stream_id, offset, 0, True)
    last[0] = False
    if room <= head:
        return 0
    room -= head
    if available < room and varint_size(available) <= room - available:
        return available
    # No room is left for a length and data: give the rest of the packet to the data.
    last[0] = True
    return min(available, room)


cdef int frame_begin_stream(
    Writer* w, uint64_t stream_id, uint64_t offset, size_t size, bint fin, bint last,
    uint8_t** data
) noexcept nogil:
    cdef uint8_t type = FRAME_STREAM
    if (
        not is_varint(stream_id | offset)
        or not fits(w, stream_frame_size(stream_id, offset, size, last))
    ):
        return NO_SPACE
    if fin:
        type |= STREAM_FIN
    if offset:
        type |= STREAM_OFF
    if not last:
        type |= STREAM_LEN
    writer_u8(w, type)
    writer_varint(w, stream_id)
    if offset:
        writer_varint(w, offset)
    if not last:
        writer_varint(w, size)
    return writer_skip(w, size, data)


# --- What Python sees -----------------------------------------------------------------

cdef bytes view(const uint8_t* data, size_t size):
    return PyBytes_FromStringAndSize(<const char*> data, size) if size else b""


cdef dict describe_ack(const AckFrame* ack):
    cdef AckIterator it
    cdef uint64_t start = 0
    cdef uint64_t end = 0
    ranges = []
    ack_iterate(&it, ack)
    while ack_next(&it, &start, &end):
        ranges.append((start, end))
    return {
        "delay": ack.delay,
        "ranges": ranges,
        "ecn": (ack.ect0, ack.ect1, ack.ce),
    }


cdef dict describe(const Frame* f):
    """Return the fields of a frame by name."""
    cdef const FrameBody* b = &f.body
    if f.type in (FRAME_ACK, FRAME_ACK_ECN):
        return describe_ack(&b.ack)
    if f.type == FRAME_STREAM:
        return {
            "stream_id": b.data.stream_id,
            "offset": b.data.offset,
            "data": view(b.data.data, b.data.size),
            "fin": b.data.fin,
        }
    if f.type == FRAME_CRYPTO:
        return {"offset": b.data.offset, "data": view(b.data.data, b.data.size)}
    if f.type == FRAME_NEW_TOKEN:
        return {"data": view(b.data.data, b.data.size)}
    if f.type == FRAME_RESET_STREAM:
        return {
            "stream_id": b.reset_stream.stream_id,
            "error_code": b.reset_stream.error_code,
            "final_size": b.reset_stream.final_size,
        }
    if f.type == FRAME_NEW_CONNECTION_ID:
        return {
            "sequence": b.new_connection_id.sequence,
            "retire_prior_to": b.new_connection_id.retire_prior_to,
            "cid": view(b.new_connection_id.cid, b.new_connection_id.cid_size),
            "token": view(b.new_connection_id.token, RESET_TOKEN_SIZE),
        }
    if f.type in (FRAME_PATH_CHALLENGE, FRAME_PATH_RESPONSE):
        return {"data": view(b.path_data, PATH_DATA_SIZE)}
    if f.type in (FRAME_CONNECTION_CLOSE, FRAME_CONNECTION_CLOSE_APP):
        return {
            "error_code": b.close.error_code,
            "frame_type": b.close.frame_type,
            "reason": view(b.close.reason, b.close.reason_size),
        }
    if f.type in (FRAME_STOP_SENDING, FRAME_MAX_STREAM_DATA, FRAME_STREAM_DATA_BLOCKED):
        return {"stream_id": b.stream_value.stream_id, "value": b.stream_value.value}
    if f.type in (FRAME_PING, FRAME_HANDSHAKE_DONE):
        return {}
    return {"value": b.value}


def parse(
    const uint8_t[::1] payload not None, uint8_t packet_type=PACKET_ONE_RTT,
    bint by_client=True
):
    """Parse the frames of a packet up to the first that is wrong.

    Args:
        payload: The decrypted payload.
        packet_type: The packet's type, 5 for 1-RTT.
        by_client: True if a client sent it.

    Returns:
        The status, the frames as dictionaries with their ``type``, and the wire type
        of the last one looked at.
    """
    cdef Reader r
    cdef Frame f
    cdef int status = OK
    reader_init(&r, &payload[0] if payload.shape[0] else NULL, payload.shape[0])
    f.wire_type = 0
    frames = []
    while reader_left(&r):
        status = frame_parse(&f, &r, packet_type, by_client)
        if status:
            break
        frames.append({"type": f.type, **describe(&f)})
    return status, frames, f.wire_type


cdef int write_ack(Writer* w, uint8_t type, dict fields) except -1:
    cdef Ranges received
    cdef EcnCounts ecn
    cdef int status
    ecn.ect0, ecn.ect1, ecn.ce = fields["ecn"]
    ranges_init(&received, <uint32_t> len(fields["ranges"]) + 1, RANGES_REFUSE)
    try:
        for start, end in reversed(fields["ranges"]):
            ranges_add(&received, start, end)
        status = frame_write_ack(
            w, &received, fields["delay"], &ecn if type == FRAME_ACK_ECN else NULL
        )
    finally:
        ranges_free(&received)
    return status


cdef int write_data(Writer* w, uint8_t type, dict fields, bint last) except -1:
    cdef bytes data = fields["data"]
    cdef uint8_t* hole = NULL
    cdef Writer filler
    cdef int status
    if type == FRAME_STREAM:
        status = frame_begin_stream(
            w, fields["stream_id"], fields["offset"], len(data), fields["fin"], last,
            &hole,
        )
    else:
        status = frame_begin_crypto(w, fields["offset"], len(data), &hole)
    if status == OK:
        writer_init(&filler, hole, len(data))
        writer_bytes(&filler, data, len(data))
    return status


cdef int write_frame(Writer* w, uint8_t type, dict fields, bint last) except -1:
    if type in (FRAME_ACK, FRAME_ACK_ECN):
        return write_ack(w, type, fields)
    if type in (FRAME_STREAM, FRAME_CRYPTO):
        return write_data(w, type, fields, last)
    if type == FRAME_PADDING:
        return frame_write_padding(w, fields["value"])
    if type in (FRAME_PING, FRAME_HANDSHAKE_DONE):
        return frame_write_bare(w, type)
    if type == FRAME_NEW_TOKEN:
        return frame_write_new_token(w, fields["data"], len(fields["data"]))
    if type == FRAME_RESET_STREAM:
        return frame_write_reset_stream(
            w, fields["stream_id"], fields["error_code"], fields["final_size"]
        )
    if type == FRAME_NEW_CONNECTION_ID:
        if len(fields["token"]) != RESET_TOKEN_SIZE:
            raise ValueError("a stateless reset token has 16 bytes")
        return frame_write_new_connection_id(
            w, fields["sequence"], fields["retire_prior_to"], fields["cid"],
            len(fields["cid"]), fields["token"],
        )
    if type in (FRAME_PATH_CHALLENGE, FRAME_PATH_RESPONSE):
        if len(fields["data"]) != PATH_DATA_SIZE:
            raise ValueError("the data of a path frame has 8 bytes")
        return frame_write_path(w, type, fields["data"])
    if type in (FRAME_CONNECTION_CLOSE, FRAME_CONNECTION_CLOSE_APP):
        return frame_write_close(
            w, type, fields["error_code"], fields["frame_type"], fields["reason"],
            len(fields["reason"]),
        )
    if "stream_id" in fields:
        return frame_write_stream_value(w, type, fields["stream_id"], fields["value"])
    return frame_write_value(w, type, fields["value"])


def write(dict frame not None, *, bint last=False, size_t room=1500):
    """Write one frame, given as ``parse`` gives it.

    Args:
        frame: The type and the fields.
        last: Write a STREAM frame without its length.
        room: Bytes to write into.

    Returns:
        The status and what was written.

    Raises:
        KeyError: A field is missing.
        ValueError: A token or the data of a path frame has another size.
    """
    cdef Writer w
    cdef int status
    cdef uint8_t* block = <uint8_t*> malloc(room if room else 1)
    if block is NULL:
        raise MemoryError
    try:
        writer_init(&w, block, room)
        status = write_frame(&w, frame["type"], frame, last)
        return status, view(block, writer_size(&w))
    finally:
        free(block)


def crypto_fit(size_t room, uint64_t offset, size_t available):
    """Return how many bytes of CRYPTO data fit, and the size of that frame."""
    cdef size_t size = crypto_frame_fit(room, offset, available)
    return size, crypto_frame_size(offset, size)


def stream_fit(size_t room, uint64_t stream_id, uint64_t offset, size_t available):
    """Return how many bytes of STREAM data fit, if as the last frame, and its size."""
    cdef bint last = False
    cdef size_t size = stream_frame_fit(room, stream_id, offset, available, &last)
    return size, last, stream_frame_size(stream_id, offset, size, last)


def kind(uint8_t frame_type):
    """Say if a frame is ack-eliciting, in flight and probing."""
    return (
        frame_is_ack_eliciting(frame_type),
        frame_is_in_flight(frame_type),
        frame_is_probing(frame_type),
    )


def scale_ack_delay(uint64_t delay, unsigned int exponent):
    """Return an ACK delay in microseconds."""
    cdef AckFrame ack
    ack.delay = delay
    return ack_delay(&ack, exponent)


def bench_parse(const uint8_t[::1] payload not None, unsigned int count):
    """Parse all frames of the same 1-RTT payload ``count`` times."""
    cdef Reader r
    cdef Frame f
    cdef const uint8_t* start = &payload[0]
    cdef size_t size = payload.shape[0]
    with nogil:
        while count:
            reader_init(&r, start, size)
            while reader_left(&r) and frame_parse(&f, &r, PACKET_ONE_RTT, True) == OK:
                pass
            count -= 1
