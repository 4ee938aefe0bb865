"""Streams as their two users see them: the layer above, and the connection below.

A ``StreamTable`` is made by ``streams_init`` (module ``streamtable``); packets are
filled and settled by ``streams_write_frames`` and ``streams_on_frame_acked`` or
``_lost`` (module ``streamsend``); the rest is here. Every function is called with the
endpoint's mutex held.

After any call, the caller drains ``streams_next_event`` and, when it can send, asks
``streams_has_frames``. Owners of referenced bodies wait in ``memory.releases``.

Source: RFC 9000 sections 2 to 4 and 19.4 to 19.14.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from lightning._core.quic.streamtable cimport (
    PeerLimits, Stream, StreamEvent, StreamTable,
)


# What the verbs answer besides OK and OUT_OF_MEMORY.
cdef enum StreamStatus:
    # No more streams are allowed just now. EVENT_OPENABLE tells when to try again.
    STREAMS_LIMIT = -2
    # The sending part is finished or reset.
    STREAMS_CLOSED = -3
    # Too much waits to be acknowledged. EVENT_WRITABLE tells when to try again.
    STREAMS_FULL = -4


# --- The layer above ------------------------------------------------------------------

# Open a stream; `opened` is held until `streams_release`.
cdef int streams_open(
    StreamTable* t, bint unidirectional, int64_t now, Stream** opened
) noexcept nogil

# Append bytes to a stream, all or none, and finish it if `fin`. Send copies them; refer
# takes `owner` (not NULL) and releases it once, if it returns OK. With OUT_OF_MEMORY
# the connection is to be closed.
cdef int streams_send(
    StreamTable* t, Stream* s, const uint8_t* data, size_t size, bint fin
) noexcept nogil
cdef int streams_refer(
    StreamTable* t, Stream* s, const uint8_t* data, size_t size, void* owner, bint fin
) noexcept nogil

# Read, where no sink is set or the sink has paused: see reassembly_peek, _consume. A
# view is good until the next call. Consume nothing to take note of an end alone.
# Resume offers the sink what it left and what came since.
cdef size_t streams_peek(const Stream* s, const uint8_t** view) noexcept nogil
cdef void streams_consume(
    StreamTable* t, Stream* s, uint64_t size, int64_t now
) noexcept nogil
cdef int streams_resume(StreamTable* t, Stream* s, int64_t now) noexcept nogil


cdef inline bint stream_is_at_end(const Stream* s) noexcept nogil:
    """Say if everything up to the end that the peer set was consumed."""
    return s.recv.next == s.recv.final_size


# Give up one part: RESET_STREAM, STOP_SENDING. Without effect if it is done.
cdef void streams_reset(StreamTable* t, Stream* s, uint64_t code) noexcept nogil
cdef void streams_stop(
    StreamTable* t, Stream* s, uint64_t code, int64_t now
) noexcept nogil

# Let go of a stream; the pointer is void. Sending goes on if it was finished, else it
# is reset with code 0. Bytes that still come are discarded; STOP_SENDING is sent, with
# code 0, only if the peer sends more than the end.
cdef void streams_release(StreamTable* t, Stream* s, int64_t now) noexcept nogil

# Take the next event. False if there is none.
cdef bint streams_next_event(StreamTable* t, StreamEvent* event) noexcept nogil

# --- The connection: frames, in the order of their numbers ----------------------------
#
# OK, OUT_OF_MEMORY or a TransportErrorCode to close the connection with.

cdef int streams_on_reset_stream(
    StreamTable* t, uint64_t id, uint64_t code, uint64_t final_size, int64_t now
) noexcept nogil
cdef int streams_on_stop_sending(
    StreamTable* t, uint64_t id, uint64_t code, int64_t now
) noexcept nogil
cdef int streams_on_stream_frame(
    StreamTable* t, uint64_t id, uint64_t offset, const uint8_t* data, size_t size,
    bint fin, int64_t now,
) noexcept nogil
cdef void streams_on_max_data(StreamTable* t, uint64_t value) noexcept nogil
cdef int streams_on_max_stream_data(
    StreamTable* t, uint64_t id, uint64_t value, int64_t now
) noexcept nogil
cdef int streams_on_max_streams(
    StreamTable* t, bint unidirectional, uint64_t value
) noexcept nogil
# DATA_BLOCKED asks for nothing and has no function.
cdef int streams_on_stream_data_blocked(
    StreamTable* t, uint64_t id, int64_t now
) noexcept nogil
cdef int streams_on_streams_blocked(StreamTable* t, uint64_t value) noexcept nogil

# The peer's transport parameters, before the first stream.
cdef void streams_set_peer_limits(
    StreamTable* t, const PeerLimits* limits
) noexcept nogil
