"""The frames of RFC 9000 section 19: parsed as views, written all or nothing.

A parsed frame points into the decrypted packet and copies nothing. Parsing checks
everything that a frame alone can get wrong, and whether its packet may carry it; what
depends on the state of the connection is left to the owners of that state.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from lightning._core.quic.buffer cimport (
    FRAME_ACK,
    FRAME_ACK_ECN,
    FRAME_CONNECTION_CLOSE,
    FRAME_CONNECTION_CLOSE_APP,
    FRAME_NEW_CONNECTION_ID,
    FRAME_PADDING,
    FRAME_PATH_CHALLENGE,
    FRAME_PATH_RESPONSE,
    OK,
    Reader,
    Writer,
    reader_varint,
)
from lightning._core.quic.ranges cimport Ranges


cdef enum FrameLimits:
    STREAMS_MAX = 0x1000000000000000  # 2^60 streams of a type (RFC 9000 section 4.6)
    PATH_DATA_SIZE = 8
    # Ranges that we write into one ACK frame; also the most that are kept.
    ACK_RANGES_WRITTEN = 64


# --- Kinds of frames ------------------------------------------------------------------

# Sets of frame types, as bits. All STREAM types count as FRAME_STREAM.
cdef enum FrameSets:
    NOT_ACK_ELICITING = (
        1 << FRAME_PADDING | 1 << FRAME_ACK | 1 << FRAME_ACK_ECN
        | 1 << FRAME_CONNECTION_CLOSE | 1 << FRAME_CONNECTION_CLOSE_APP
    )
    NOT_IN_FLIGHT = (
        1 << FRAME_ACK | 1 << FRAME_ACK_ECN
        | 1 << FRAME_CONNECTION_CLOSE | 1 << FRAME_CONNECTION_CLOSE_APP
    )
    PROBING = (
        1 << FRAME_PADDING | 1 << FRAME_NEW_CONNECTION_ID
        | 1 << FRAME_PATH_CHALLENGE | 1 << FRAME_PATH_RESPONSE
    )


cdef inline bint frame_is_ack_eliciting(uint8_t type) noexcept nogil:
    """Say if the receiver must acknowledge it (RFC 9000 section 13.2.1)."""
    return not NOT_ACK_ELICITING >> type & 1


cdef inline bint frame_is_in_flight(uint8_t type) noexcept nogil:
    """Say if it counts for congestion control (RFC 9002 section 2)."""
    return not NOT_IN_FLIGHT >> type & 1


cdef inline bint frame_is_probing(uint8_t type) noexcept nogil:
    """Say if it may probe a path without moving to it (RFC 9000 section 9.1)."""
    return PROBING >> type & 1


# --- Reading --------------------------------------------------------------------------

cdef struct AckFrame:  # ACK, ACK_ECN
    uint64_t largest
    uint64_t delay  # as sent: ack_delay scales it
    uint64_t first_range
    uint64_t range_count  # pairs of gap and length in `ranges`
    const uint8_t* ranges
    size_t ranges_size
    uint64_t ect0  # the three counts are 0 without ECN
    uint64_t ect1
    uint64_t ce


cdef struct DataFrame:  # CRYPTO, STREAM, NEW_TOKEN
    uint64_t stream_id  # 0 in CRYPTO and NEW_TOKEN
    uint64_t offset  # offset + size is at most VARINT_MAX
    const uint8_t* data
    size_t size
    bint fin


cdef struct StreamValueFrame:
    uint64_t stream_id
    # STOP_SENDING: error code. MAX_STREAM_DATA, STREAM_DATA_BLOCKED: bytes.
    uint64_t value


cdef struct ResetStreamFrame:
    uint64_t stream_id
    uint64_t error_code
    uint64_t final_size


cdef struct NewConnectionIdFrame:
    uint64_t sequence
    uint64_t retire_prior_to  # at most `sequence`
    const uint8_t* cid
    const uint8_t* token  # 16 bytes
    uint8_t cid_size  # 1 to 20


cdef struct CloseFrame:  # CONNECTION_CLOSE, CONNECTION_CLOSE_APP
    uint64_t error_code
    uint64_t frame_type  # 0 in CONNECTION_CLOSE_APP
    const uint8_t* reason  # said to be UTF-8; it is not checked
    size_t reason_size


cdef union FrameBody:
    # MAX_DATA, MAX_STREAMS_*, DATA_BLOCKED, STREAMS_BLOCKED_*, RETIRE_CONNECTION_ID;
    # of PADDING, how many there were in a row.
    uint64_t value
    const uint8_t* path_data  # PATH_CHALLENGE, PATH_RESPONSE: 8 bytes
    AckFrame ack
    DataFrame data
    StreamValueFrame stream_value
    ResetStreamFrame reset_stream
    NewConnectionIdFrame new_connection_id
    CloseFrame close


cdef struct Frame:
    # As on the wire, also after a failure: the frame type for our CONNECTION_CLOSE.
    uint64_t wire_type
    uint8_t type  # a FrameType; FRAME_STREAM for all of 0x08 to 0x0f
    FrameBody body


# Parse the next frame of a packet of the given PacketType; PADDING is taken as one
# frame for all that follow each other. OK, E_FRAME_ENCODING or E_PROTOCOL_VIOLATION.
# That a packet holds no frame at all is for the caller to see.
cdef int frame_parse(
    Frame* f, Reader* r, uint8_t packet_type, bint by_client
) noexcept nogil


# The acknowledged packet numbers, from the largest down, as [start, end).
cdef struct AckIterator:
    Reader reader
    uint64_t left  # ranges still to come, the first one included
    uint64_t largest  # of the next range
    uint64_t length  # of the next range, less one


cdef inline void ack_iterate(AckIterator* it, const AckFrame* ack) noexcept nogil:
    it.reader.pos = ack.ranges
    it.reader.end = ack.ranges + ack.ranges_size
    it.left = ack.range_count + 1
    it.largest = ack.largest
    it.length = ack.first_range


cdef inline bint ack_next(
    AckIterator* it, uint64_t* start, uint64_t* end
) noexcept nogil:
    """Give the next range down, or say that there is none.

    frame_parse has checked that all of them are there and that none is negative.
    """
    cdef uint64_t gap = 0
    if it.left == 0:
        return False
    start[0] = it.largest - it.length
    end[0] = it.largest + 1
    it.left -= 1
    if it.left:
        reader_varint(&it.reader, &gap)
        reader_varint(&it.reader, &it.length)
        it.largest = start[0] - gap - 2
    return True


cdef inline int64_t ack_delay(
    const AckFrame* ack, unsigned int exponent
) noexcept nogil:
    """Return the delay in microseconds; ``exponent`` is the peer's, at most 20.

    An absurd delay is cut to 2^42 microseconds, far above any that is allowed.
    """
    if ack.delay >> 22:
        return <int64_t> 1 << 42
    return <int64_t> (ack.delay << exponent)


# --- Writing --------------------------------------------------------------------------
# Each writes all or nothing: OK, or NO_SPACE, also for a value above VARINT_MAX.

cdef struct EcnCounts:
    uint64_t ect0
    uint64_t ect1
    uint64_t ce


# PING, HANDSHAKE_DONE.
cdef int frame_write_bare(Writer* w, uint8_t type) noexcept nogil
cdef int frame_write_padding(Writer* w, size_t count) noexcept nogil
# The frames of FrameBody.value, but for PADDING.
cdef int frame_write_value(Writer* w, uint8_t type, uint64_t value) noexcept nogil
cdef int frame_write_stream_value(
    Writer* w, uint8_t type, uint64_t stream_id, uint64_t value
) noexcept nogil
cdef int frame_write_reset_stream(
    Writer* w, uint64_t stream_id, uint64_t error_code, uint64_t final_size
) noexcept nogil
# The highest ranges of the set that fit, at most ACK_RANGES_WRITTEN; `delay` is already
# scaled; `ecn` may be NULL. NO_SPACE for an empty set.
cdef int frame_write_ack(
    Writer* w, const Ranges* received, uint64_t delay, const EcnCounts* ecn
) noexcept nogil
cdef int frame_write_new_token(
    Writer* w, const uint8_t* token, size_t size
) noexcept nogil
cdef int frame_write_new_connection_id(
    Writer* w, uint64_t sequence, uint64_t retire_prior_to, const uint8_t* cid,
    uint8_t cid_size, const uint8_t* token
) noexcept nogil
cdef int frame_write_path(Writer* w, uint8_t type, const uint8_t* data) noexcept nogil
# The reason is cut to what fits.
cdef int frame_write_close(
    Writer* w, uint8_t type, uint64_t error_code, uint64_t frame_type,
    const uint8_t* reason, size_t reason_size
) noexcept nogil

# Data: first ask how much fits, then begin the frame and copy that many bytes to where
# `data` points.
cdef size_t crypto_frame_size(uint64_t offset, size_t size) noexcept nogil
cdef size_t crypto_frame_fit(
    size_t room, uint64_t offset, size_t available
) noexcept nogil
cdef int frame_begin_crypto(
    Writer* w, uint64_t offset, size_t size, uint8_t** data
) noexcept nogil

# A `last` frame has no length: it reaches to the end of the packet, and nothing may
# follow it there, not even padding.
cdef size_t stream_frame_size(
    uint64_t stream_id, uint64_t offset, size_t size, bint last
) noexcept nogil
# Bytes of data that fit; `last` tells in which form. 0 if no byte does: then not even
# an empty frame may fit.
cdef size_t stream_frame_fit(
    size_t room, uint64_t stream_id, uint64_t offset, size_t available, bint* last
) noexcept nogil
cdef int frame_begin_stream(
    Writer* w, uint64_t stream_id, uint64_t offset, size_t size, bint fin, bint last,
    uint8_t** data
) noexcept nogil
