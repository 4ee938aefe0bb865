"""Records of a connection, in the formats that ``trace.pxd`` names."""

from libc.stddef cimport size_t
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from lightning._core.quic.buffer cimport APPLICATION, INITIAL, SPACE_COUNT
from lightning._core.quic.connstate cimport REASON_MAX
from lightning._core.quic.lost cimport LOST_REMEMBERED, LostPacket, LostRing
from lightning._core.quic.packet cimport (
    PACKET_HANDSHAKE, PACKET_INITIAL, PACKET_ONE_RTT, Cid
)
from lightning._core.quic.paths cimport Address
from lightning._core.quic.sent cimport PACKET_ECT0, PACKET_MTU_PROBE
from lightning._core.quic.trace cimport (
    TRACE_CLOSED, TRACE_DROPPED, TRACE_ENDED, TRACE_KEY_DISCARDED, TRACE_KEY_UPDATED,
    TRACE_LOST, TRACE_METRICS, TRACE_PARAMETERS, TRACE_PATH, TRACE_RECEIVED,
    TRACE_SENT, TRACE_STARTED, TraceRecord, trace_append
)

cdef enum:
    ADDRESS_SIZE = 20
    CID_SIZE = 21
    ECN_ECT0 = 2


cdef inline void begin(const Conn* c, TraceRecord* record, uint8_t kind) noexcept nogil:
    memset(record, 0, sizeof(TraceRecord))
    record.connection = c.number
    record.kind = kind


cdef inline uint8_t type_of(int space) noexcept nogil:
    if space == APPLICATION:
        return PACKET_ONE_RTT
    return PACKET_INITIAL if space == INITIAL else PACKET_HANDSHAKE


cdef size_t write_address(uint8_t* out, const Address* address) noexcept nogil:
    cdef uint16_t words[2]
    words[0] = address.family
    words[1] = address.port
    memcpy(out, words, 4)
    memcpy(out + 4, address.ip, 16)
    return ADDRESS_SIZE


cdef size_t write_cid(uint8_t* out, const Cid* cid) noexcept nogil:
    out[0] = cid.size
    memcpy(out + 1, cid.bytes, cid.size)
    return 1 + <size_t> cid.size


cdef void conn_trace_started(const Conn* c) noexcept nogil:
    cdef TraceRecord record
    cdef uint8_t data[ADDRESS_SIZE + 2 * CID_SIZE]
    cdef size_t size = write_address(data, &c.paths[c.path].remote)
    begin(c, &record, TRACE_STARTED)
    size += write_cid(data + size, &c.original)
    size += write_cid(data + size, &c.source)
    trace_append(c.shared.trace, &record, data, size)


cdef void conn_trace_sent(
    const Conn* c, int space, uint64_t pn, size_t size, uint8_t flags,
    const uint8_t* payload, size_t length
) noexcept nogil:
    cdef TraceRecord record
    begin(c, &record, TRACE_SENT)
    record.type = type_of(space)
    record.number = pn
    record.size = <uint32_t> size
    record.ecn = ECN_ECT0 if flags & PACKET_ECT0 else 0
    record.detail = (flags & PACKET_MTU_PROBE) != 0
    trace_append(c.shared.trace, &record, payload, length)


cdef void conn_trace_received(
    const Conn* c, uint8_t type, uint64_t pn, size_t size, uint8_t ecn,
    const uint8_t* payload, size_t length
) noexcept nogil:
    cdef TraceRecord record
    begin(c, &record, TRACE_RECEIVED)
    record.type = type
    record.number = pn
    record.size = <uint32_t> size
    record.ecn = ecn
    trace_append(c.shared.trace, &record, payload, length)


cdef void conn_trace_dropped(
    const Conn* c, uint8_t type, size_t size, uint8_t reason
) noexcept nogil:
    cdef TraceRecord record
    begin(c, &record, TRACE_DROPPED)
    record.type = type
    record.size = <uint32_t> size
    record.detail = reason
    trace_append(c.shared.trace, &record, NULL, 0)


cdef void conn_trace_recovery(const Conn* c, int64_t now) noexcept nogil:
    cdef TraceRecord record
    cdef int64_t values[9]
    cdef int space
    for space in range(SPACE_COUNT):
        lost_at(c, space, now)
    begin(c, &record, TRACE_METRICS)
    values[0] = <int64_t> c.recovery.cc.cwnd
    values[1] = <int64_t> c.recovery.cc.bytes_in_flight
    values[2] = <int64_t> c.recovery.cc.ssthresh  # UINT64_MAX becomes -1.
    values[3] = c.recovery.rtt.smoothed
    values[4] = c.recovery.rtt.minimum
    values[5] = c.recovery.rtt.latest
    values[6] = c.recovery.rtt.variance
    values[7] = c.recovery.pto_count
    values[8] = <int64_t> c.recovery.stats.packets_lost
    trace_append(
        c.shared.trace, &record, <const uint8_t*> values, sizeof(values)
    )


cdef void lost_at(const Conn* c, int space, int64_t now) noexcept nogil:
    """Record the newest of the lost packets that recovery remembers."""
    cdef const LostRing* ring = &c.recovery.spaces[space].lost
    cdef const LostPacket* entry
    cdef TraceRecord record
    cdef uint32_t first = ring.count
    while first and ring.entries[
        (ring.start + first - 1) % LOST_REMEMBERED
    ].time_lost == now:
        first -= 1
    while first < ring.count:
        entry = &ring.entries[(ring.start + first) % LOST_REMEMBERED]
        first += 1
        if entry.pn == UINT64_MAX:
            continue
        begin(c, &record, TRACE_LOST)
        record.type = type_of(space)
        record.number = entry.pn
        trace_append(c.shared.trace, &record, NULL, 0)


cdef void conn_trace_key(
    const Conn* c, int space, bint sealing, uint8_t trigger
) noexcept nogil:
    cdef TraceRecord record
    begin(c, &record, TRACE_KEY_UPDATED)
    record.type = type_of(space)
    record.number = sealing
    record.detail = trigger
    trace_append(c.shared.trace, &record, NULL, 0)


cdef void conn_trace_discarded(const Conn* c, int space) noexcept nogil:
    cdef TraceRecord record
    cdef int sealing
    for sealing in range(2):
        begin(c, &record, TRACE_KEY_DISCARDED)
        record.type = type_of(space)
        record.number = sealing
        trace_append(c.shared.trace, &record, NULL, 0)


cdef void conn_trace_parameters(
    const Conn* c, const PeerParameters* p
) noexcept nogil:
    cdef TraceRecord record
    cdef uint64_t values[11]
    begin(c, &record, TRACE_PARAMETERS)
    values[0] = p.idle_timeout
    values[1] = p.ack_exponent
    values[2] = <uint64_t> p.max_ack_delay
    values[3] = p.max_udp_payload
    values[4] = p.active_cids
    values[5] = p.limits.max_data
    values[6] = p.limits.max_stream_data_bidi_local
    values[7] = p.limits.max_stream_data_bidi_remote
    values[8] = p.limits.max_stream_data_uni
    values[9] = p.limits.max_streams_bidi
    values[10] = p.limits.max_streams_uni
    trace_append(
        c.shared.trace, &record, <const uint8_t*> values, sizeof(values)
    )


cdef void conn_trace_path(const Conn* c) noexcept nogil:
    cdef TraceRecord record
    cdef uint8_t data[ADDRESS_SIZE]
    cdef size_t size = write_address(data, &c.paths[c.path].remote)
    begin(c, &record, TRACE_PATH)
    trace_append(c.shared.trace, &record, data, size)


cdef void conn_trace_closed(const Conn* c) noexcept nogil:
    cdef TraceRecord record
    cdef uint8_t data[8 + REASON_MAX]
    begin(c, &record, TRACE_CLOSED)
    record.number = c.close_code
    record.type = c.close_app
    record.detail = c.initiator
    memcpy(data, &c.close_frame, 8)
    # The reason has REASON_MAX bytes at most.
    memcpy(data + 8, c.close_reason, c.close_reason_size)
    trace_append(c.shared.trace, &record, data, 8 + c.close_reason_size)


cdef void conn_trace_ended(const Conn* c) noexcept nogil:
    cdef TraceRecord record
    begin(c, &record, TRACE_ENDED)
    trace_append(c.shared.trace, &record, NULL, 0)
