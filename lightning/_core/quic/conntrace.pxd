"""What a connection leaves in its endpoint's trace.

Nothing here may be called unless ``shared.trace`` is set: the caller looks, so that a
connection that is not traced costs no call.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from lightning._core.quic.connection cimport PeerParameters
from lightning._core.quic.connstate cimport Conn


cdef void conn_trace_started(const Conn* c) noexcept nogil
# `payload` is not sealed yet, `size` is that of the packet once it is; `flags` are
# PacketFlags.
cdef void conn_trace_sent(
    const Conn* c, int space, uint64_t pn, size_t size, uint8_t flags,
    const uint8_t* payload, size_t length
) noexcept nogil
# `type` is a PacketType; Retry and Version Negotiation have no payload.
cdef void conn_trace_received(
    const Conn* c, uint8_t type, uint64_t pn, size_t size, uint8_t ecn,
    const uint8_t* payload, size_t length
) noexcept nogil
cdef void conn_trace_dropped(
    const Conn* c, uint8_t type, size_t size, uint8_t reason
) noexcept nogil
# After an ACK or a timer: the packets that were found lost at `now`, and the metrics.
cdef void conn_trace_recovery(const Conn* c, int64_t now) noexcept nogil
cdef void conn_trace_key(
    const Conn* c, int space, bint sealing, uint8_t trigger
) noexcept nogil
cdef void conn_trace_discarded(const Conn* c, int space) noexcept nogil
cdef void conn_trace_parameters(
    const Conn* c, const PeerParameters* p
) noexcept nogil
cdef void conn_trace_path(const Conn* c) noexcept nogil
cdef void conn_trace_closed(const Conn* c) noexcept nogil
cdef void conn_trace_ended(const Conn* c) noexcept nogil
