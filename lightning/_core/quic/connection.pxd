"""A connection as its endpoint and the layer above use it: verbs, timers, parameters.

Verbs are called with the endpoint's mutex held and are followed by ``endpoint_touch``.
They answer OK, OUT_OF_MEMORY, CONNECTION_CLOSED, NO_STREAM, or a StreamStatus.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from lightning._core.quic.connstate cimport Conn
from lightning._core.quic.packet cimport Cid
from lightning._core.quic.streamtable cimport PeerLimits, Stream


cdef enum ConnectionStatus:
    CONNECTION_CLOSED = -20
    NO_STREAM = -21  # no such stream, or not any more


# The peer's transport parameters, in microseconds and bytes.
cdef struct PeerParameters:
    PeerLimits limits
    uint64_t idle_timeout  # 0 is none
    unsigned int ack_exponent
    int64_t max_ack_delay
    uint64_t max_udp_payload
    uint64_t active_cids
    Cid original
    Cid source
    Cid retry
    bint has_original
    bint has_source
    bint has_retry
    bint has_token
    uint8_t token[16]


# Check the connection IDs (RFC 9000 7.3) and take the rest over. OK or
# E_TRANSPORT_PARAMETER.
cdef int connection_set_parameters(
    Conn* c, const PeerParameters* p
) noexcept nogil

# --- Verbs ----------------------------------------------------------------------------

# STREAMS_LIMIT if the peer allows no more just now: EVENT_OPENABLE follows.
cdef int connection_open_stream(
    Conn* c, bint unidirectional, int64_t now, uint64_t* id
) noexcept nogil
cdef int connection_send(
    Conn* c, uint64_t id, const uint8_t* data, size_t size, bint fin
) noexcept nogil
# `owner` is given back through the endpoint's releases, once, if this returns OK.
cdef int connection_refer(
    Conn* c, uint64_t id, const uint8_t* data, size_t size, void* owner, bint fin
) noexcept nogil
cdef int connection_stop(
    Conn* c, uint64_t id, uint64_t code, int64_t now
) noexcept nogil
cdef int connection_reset(Conn* c, uint64_t id, uint64_t code) noexcept nogil
# No bytes go to the sink until the stream is resumed.
cdef int connection_pause(Conn* c, uint64_t id) noexcept nogil
cdef int connection_resume(Conn* c, uint64_t id, int64_t now) noexcept nogil
# Let go of a stream: nothing of it is wanted any more.
cdef int connection_release(Conn* c, uint64_t id, int64_t now) noexcept nogil
cdef void connection_close(
    Conn* c, uint64_t code, const uint8_t* reason, size_t size, int64_t now
) noexcept nogil
cdef void connection_ping(Conn* c) noexcept nogil
# Whatever state it is in: NULL if there is no such stream.
cdef Stream* connection_stream(Conn* c, uint64_t id) noexcept nogil

# --- Time -----------------------------------------------------------------------------

# INT64_MAX is none.
cdef int64_t connection_deadline(const Conn* c) noexcept nogil
cdef void connection_on_timeout(Conn* c, int64_t now) noexcept nogil
