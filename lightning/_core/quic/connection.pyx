"""Verbs and timers of a connection."""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.quic.buffer cimport (
    APPLICATION, E_TRANSPORT_PARAMETER, OK, SPACE_COUNT
)
from lightning._core.quic.cids cimport local_cids_set_limit, remote_cids_set_token
from lightning._core.quic.connrecv cimport conn_settle
from lightning._core.quic.connstate cimport (
    CLOSED_HANDSHAKE_TIMEOUT, CLOSED_IDLE, CLOSED_NO_PATH, CLOSED_UNRESPONSIVE,
    CONN_GONE, CONN_OPEN, CONNS_SEND, TRIM_AFTER, UNRESPONSIVE_TIMEOUTS,
    conn_awaits_tls, conn_bury, conn_close_local, conn_fail, conn_forget_path,
    conn_is_alive, conn_keep_alive, conn_list, conn_lose, conn_pto, conn_route
)
from lightning._core.quic.conntrace cimport conn_trace_parameters, conn_trace_path
from lightning._core.quic.mtu cimport mtu_enable
from lightning._core.quic.packet cimport cid_is
from lightning._core.quic.paths cimport PATHS_MAX, path_on_timeout
from lightning._core.quic.recovery cimport (
    TIMER_NONE, Recovery, recovery_next_timeout, recovery_on_path_change,
    recovery_on_timeout
)
from lightning._core.quic.sent cimport sent_trim
from lightning._core.quic.streams cimport (
    streams_open, streams_refer, streams_release, streams_reset, streams_resume,
    streams_send, streams_set_peer_limits, streams_stop
)
from lightning._core.quic.streamtable cimport table_find


cdef bint is_same(const Cid* a, const Cid* b) noexcept nogil:
    return cid_is(a, b.bytes, b.size)


cdef int connection_set_parameters(
    Conn* c, const PeerParameters* p
) noexcept nogil:
    # RFC 9000 7.3: what went by in the clear is what the peer's TLS vouches for.
    if not p.has_source or not is_same(&p.source, &c.peer_source):
        return E_TRANSPORT_PARAMETER
    if c.is_client:
        if not p.has_original or not is_same(&p.original, &c.original):
            return E_TRANSPORT_PARAMETER
        if p.has_retry != c.has_retry:
            return E_TRANSPORT_PARAMETER
        if c.has_retry and not is_same(&p.retry, &c.retry_source):
            return E_TRANSPORT_PARAMETER
    c.has_parameters = True
    if c.shared.trace is not NULL:
        conn_trace_parameters(c, p)
    c.peer_idle_timeout = p.idle_timeout
    c.peer_ack_exponent = p.ack_exponent
    c.recovery.max_ack_delay = p.max_ack_delay
    mtu_enable(&c.recovery.mtu, p.max_udp_payload)
    local_cids_set_limit(
        &c.local, min(p.active_cids, <uint64_t> c.shared.settings.active_cids)
    )
    if p.has_token:
        remote_cids_set_token(&c.remote, p.token)
    streams_set_peer_limits(&c.streams, &p.limits)
    return OK


# --- Verbs ----------------------------------------------------------------------------

cdef Stream* connection_stream(Conn* c, uint64_t id) noexcept nogil:
    return table_find(&c.streams, id)


cdef inline int find(Conn* c, uint64_t id, Stream** found) noexcept nogil:
    if not conn_is_alive(c):
        return CONNECTION_CLOSED
    found[0] = table_find(&c.streams, id)
    if found[0] is NULL or not found[0].held:
        return NO_STREAM
    conn_list(c, CONNS_SEND)
    return OK


cdef int connection_open_stream(
    Conn* c, bint unidirectional, int64_t now, uint64_t* id
) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status
    if not conn_is_alive(c):
        return CONNECTION_CLOSED
    status = streams_open(&c.streams, unidirectional, now, &s)
    if status == OK:
        id[0] = s.id
    elif c.state == CONN_OPEN:
        conn_list(c, CONNS_SEND)  # STREAMS_BLOCKED.
    return status


cdef int connection_send(
    Conn* c, uint64_t id, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = find(c, id, &s)
    if status != OK:
        return status
    return streams_send(&c.streams, s, data, size, fin)


cdef int connection_refer(
    Conn* c, uint64_t id, const uint8_t* data, size_t size, void* owner, bint fin
) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = find(c, id, &s)
    if status != OK:
        return status
    return streams_refer(&c.streams, s, data, size, owner, fin)


cdef int connection_stop(
    Conn* c, uint64_t id, uint64_t code, int64_t now
) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = find(c, id, &s)
    if status == OK:
        streams_stop(&c.streams, s, code, now)
    return status


cdef int connection_reset(Conn* c, uint64_t id, uint64_t code) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = find(c, id, &s)
    if status == OK:
        streams_reset(&c.streams, s, code)
    return status


cdef int connection_pause(Conn* c, uint64_t id) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = find(c, id, &s)
    if status == OK:
        s.paused = True
    return status


cdef int connection_resume(Conn* c, uint64_t id, int64_t now) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = find(c, id, &s)
    if status != OK:
        return status
    return streams_resume(&c.streams, s, now)


cdef int connection_release(Conn* c, uint64_t id, int64_t now) noexcept nogil:
    cdef Stream* s = table_find(&c.streams, id)
    if s is NULL or not s.held:
        return NO_STREAM
    streams_release(&c.streams, s, now)
    if conn_is_alive(c):
        conn_list(c, CONNS_SEND)
    return OK


cdef void connection_close(
    Conn* c, uint64_t code, const uint8_t* reason, size_t size, int64_t now
) noexcept nogil:
    conn_close_local(c, True, code, 0, reason, size, now)


cdef void connection_ping(Conn* c) noexcept nogil:
    if conn_is_alive(c):
        c.ping_due = True
        conn_list(c, CONNS_SEND)


# --- Time -----------------------------------------------------------------------------

cdef int64_t connection_deadline(const Conn* c) noexcept nogil:
    cdef int64_t due
    cdef uint32_t i
    if not conn_is_alive(c):
        return c.close_at if c.state != CONN_GONE else INT64_MAX
    due = min(recovery_next_timeout(&c.recovery), c.idle_at)
    due = min(due, c.handshake_at)
    due = min(due, c.pacing_at)
    due = min(due, c.trim_at)
    if c.state == CONN_OPEN:
        due = min(due, c.keep_alive_at)
        due = min(due, c.unresponsive_at)
    # What is to be sent already waits for room or for TLS, and not for time.
    if (
        not c.recovery.blocked and not c.listed & (1 << CONNS_SEND)
        and not conn_awaits_tls(c)
    ):
        for i in range(SPACE_COUNT):
            if c.can_seal[i]:
                due = min(due, c.recv[i].ack_at)
    for i in range(PATHS_MAX):
        if c.paths[i].used:
            due = min(due, c.paths[i].next_step)
    return due


cdef void connection_on_timeout(Conn* c, int64_t now) noexcept nogil:
    """Do what has come due at ``now``."""
    cdef uint32_t i
    if not conn_is_alive(c):
        if c.close_at <= now:
            conn_bury(c)
        return
    if c.idle_at <= now:
        conn_lose(c, CLOSED_IDLE)
        return
    if c.handshake_at <= now:
        conn_lose(c, CLOSED_HANDSHAKE_TIMEOUT)
        return
    if c.unresponsive_at <= now and c.state == CONN_OPEN and not c.asked_again:
        # Probes are twice as far apart each time: between the last two, an outage half
        # as long as the timeout would go unnoticed.
        c.asked_again = True
        c.recovery.spaces[<int> APPLICATION].probes |= 1
        c.unresponsive_at += c.shared.settings.unresponsive_timeout // 4
    elif c.unresponsive_at <= now and c.state == CONN_OPEN:
        if c.recovery.stats.timeouts - c.timeouts_before >= UNRESPONSIVE_TIMEOUTS:
            conn_lose(c, CLOSED_UNRESPONSIVE)
            return
        # A path this long, or this lossy, needs more time than was set.
        c.unresponsive_at = now + conn_pto(c)
    for i in range(PATHS_MAX):
        if c.paths[i].used and path_on_timeout(&c.paths[i], now):
            on_path_failed(c, i, now)
            if not conn_is_alive(c):
                return
    if c.keep_alive_at <= now:
        c.ping_due = True
        c.keep_alive_at = now + conn_keep_alive(c)
    if recovery_on_timeout(&c.recovery, now) != TIMER_NONE:
        conn_settle(c, now)
    if conn_is_alive(c):
        if c.trim_at <= now:
            trim(c, now)
        c.pacing_at = INT64_MAX
        conn_list(c, CONNS_SEND)


cdef void trim(Conn* c, int64_t now) noexcept nogil:
    """Give back the memory of a transfer that is over; a live one is asked again."""
    cdef Recovery* r = &c.recovery
    if (
        r.cc.bytes_in_flight or not c.confirmed or r.pending is not NULL
        or r.acked is not NULL or r.lost is not NULL
    ):
        c.trim_at = now + TRIM_AFTER
        return
    c.trim_at = INT64_MAX
    sent_trim(&r.spaces[<int> APPLICATION].sent, &r.records)


cdef void on_path_failed(Conn* c, uint32_t path, int64_t now) noexcept nogil:
    """Fall back to a path that is proven (RFC 9000 9.3.2)."""
    cdef uint32_t i
    cdef int status = OK
    if path == c.path:
        for i in range(PATHS_MAX):
            if i != path and c.paths[i].used and c.paths[i].validated:
                status = conn_route(c, i)
                if c.shared.trace is not NULL:
                    conn_trace_path(c)
                recovery_on_path_change(&c.recovery, now)
                c.recovery.blocked = False
                break
        else:
            # One that is proven, but not for 1200 bytes, is better than none.
            if not c.paths[path].validated:
                conn_lose(c, CLOSED_NO_PATH)
            return
    if status == OK:
        status = conn_forget_path(c, path)
    if status != OK:
        conn_fail(c, status, 0, now)
