"""The frames that a connection's streams have due, written into packets.

First what keeps the peer going (limits raised, resets), then STREAM frames of one
stream after the other, a frame each: no stream waits for a longer one. Data to be sent
again comes first. A frame that was written comes back once, as acknowledged or lost,
with the operands of its ``StreamFrame``.

Source: RFC 9000 sections 2.3, 3.1, 4 and 13.3.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lightning._core.quic.buffer cimport Writer
from lightning._core.quic.streamtable cimport (
    LIST_CONTROL, LIST_READY, Stream, StreamTable,
)


cdef enum StreamSendLimits:
    # A fresh packet gives at least this room, so that something always fits.
    STREAMS_MIN_ROOM = 128
    # Bytes of a longer message that are worth a frame of their own.
    STREAMS_MIN_PIECE = 64


# A frame that was written.
cdef struct StreamFrame:
    uint64_t id  # of the stream, 0 for a frame of the connection
    uint64_t offset  # of STREAM; of MAX_* and *_BLOCKED the value
    uint32_t length  # of STREAM
    uint8_t kind  # a FrameType; FRAME_STREAM without its bits
    bint fin  # of STREAM


# Write frames while they fit into `w`, at most `limit`, and tell of each in `out`.
# Returns their number.
cdef uint32_t streams_write_frames(
    StreamTable* t, Writer* w, StreamFrame* out, uint32_t limit
) noexcept nogil

# The fate of a frame, with its StreamFrame's fields: OK or OUT_OF_MEMORY. To have the
# data of a frame in flight probed, call it lost; it may be acknowledged all the same.
cdef int streams_on_frame_acked(
    StreamTable* t, uint8_t kind, uint64_t id, uint64_t offset, uint32_t length,
    bint fin,
) noexcept nogil
cdef int streams_on_frame_lost(
    StreamTable* t, uint8_t kind, uint64_t id, uint64_t offset, uint32_t length,
    bint fin,
) noexcept nogil

# For `streams`. Reset is for a sending part that is not done; has_room is the test
# behind STREAMS_FULL.
cdef void send_reset(StreamTable* t, Stream* s, uint64_t code) noexcept nogil
cdef void send_unblock(StreamTable* t) noexcept nogil
cdef bint send_has_room(const StreamTable* t, const Stream* s) noexcept nogil


cdef inline bint streams_has_frames(const StreamTable* t) noexcept nogil:
    """Say if `streams_write_frames` is worth a call. It may still write nothing."""
    return (
        t.due
        or t.first[LIST_CONTROL] is not NULL
        or t.first[LIST_READY] is not NULL
    )
