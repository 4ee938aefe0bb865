"""Life and end of a connection's record, its keys and its identifiers."""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lightning._core.quic.buffer cimport (
    E_INTERNAL, E_NO_ERROR, OK, OUT_OF_MEMORY, SPACE_COUNT, load_u64
)
from lightning._core.quic.cidmap cimport (
    cidmap_add, cidmap_find, cidmap_free, cidmap_init, cidmap_remove
)
from lightning._core.quic.cids cimport (
    local_cids_init, local_cids_issue, local_cids_wanted, remote_cids_free,
    remote_cids_init, remote_cids_retire, remote_cids_set_first
)
from lightning._core.quic.conntrace cimport (
    conn_trace_closed, conn_trace_discarded, conn_trace_ended, conn_trace_key,
    conn_trace_started
)
from lightning._core.quic.paths cimport PATHS_MAX, path_init
from lightning._core.quic.protection cimport (
    keys_free, keys_init, keys_init_initial, packet_key_free, packet_key_next,
    reset_token_derive
)
from lightning._core.quic.ranges cimport (
    RANGES_DROP_LOWEST, RANGES_PACKETS, ranges_free, ranges_init
)
from lightning._core.quic.reassembly cimport reassembly_free, reassembly_init
from lightning._core.quic.recovery cimport (
    recovery_config_init, recovery_discard_space, recovery_free, recovery_init,
    recovery_next_pn, recovery_skip
)
from lightning._core.quic.secrets cimport SECRET_SIZE, random_below, random_bytes
from lightning._core.quic.sendbuf cimport sendbuf_free, sendbuf_init
from lightning._core.quic.sources cimport sources_free, sources_leave
from lightning._core.quic.streamtable cimport (
    streamconfig_init, streammemory_free, streammemory_init, streams_free, streams_init
)
from lightning._core.quic.tokenstore cimport tokenstore_free, tokenstore_init
from lightning._core.quic.trace cimport (
    TRIGGER_LOCAL, TRIGGER_REMOTE, TRIGGER_TLS, trace_free
)


# --- What is shared -------------------------------------------------------------------

cdef void settings_init(Settings* s, bint is_client) noexcept nogil:
    memset(s, 0, sizeof(Settings))
    streamconfig_init(&s.streams, is_client)
    recovery_config_init(&s.recovery)
    s.recovery.is_client = is_client


cdef void shared_init(Shared* s, const Settings* settings) noexcept nogil:
    """Start with what the settings say; the random seed is in place already."""
    cdef uint8_t key[8]
    s.settings = settings[0]
    s.is_client = settings.streams.is_client
    streammemory_init(&s.memory)
    tokenstore_init(&s.given)
    random_bytes(&s.random, key, 8)
    cidmap_init(&s.cids, load_u64(key))
    cidmap_init(&s.peers, load_u64(key))


cdef void shared_free(Shared* s) noexcept nogil:
    cidmap_free(&s.cids)
    cidmap_free(&s.peers)
    streammemory_free(&s.memory)
    tokenstore_free(&s.given)
    sources_free(&s.sources)
    trace_free(s.trace)
    s.trace = NULL


# --- Life -----------------------------------------------------------------------------

cdef int conn_make_cid(Shared* s, Cid* cid, uint8_t* token) noexcept nogil:
    cid.size = LOCAL_CID_SIZE
    random_bytes(&s.random, cid.bytes, LOCAL_CID_SIZE)
    while cidmap_find(&s.cids, cid.bytes, cid.size) is not NULL:
        random_bytes(&s.random, cid.bytes, LOCAL_CID_SIZE)
    return reset_token_derive(s.settings.reset_key, SECRET_SIZE, cid, token)


cdef Conn* conn_create(
    Shared* s, const Address* remote, const Cid* original, const Cid* keyed,
    const Cid* dcid, int64_t now
) noexcept nogil:
    cdef Conn* c = <Conn*> calloc(1, sizeof(Conn))
    cdef uint8_t token[16]
    cdef Cid peer
    cdef RecvSpace* space
    cdef int i
    if c is NULL:
        return NULL
    c.shared = s
    c.refs = 1
    c.is_client = s.is_client
    c.number = s.next_number
    s.next_number += 1
    c.original = original[0]
    c.keyed = keyed[0]
    recovery_init(&c.recovery, &s.settings.recovery)
    c.recovery.timer_base = now
    streams_init(&c.streams, &s.memory, &s.settings.streams, now)
    c.streams.sink = s.sink
    c.streams.sink_context = c
    for i in range(SPACE_COUNT):
        reassembly_init(&c.crypto_in[i], &s.memory.blocks)
        sendbuf_init(&c.crypto_out[i], &s.memory.blocks, &s.memory.releases)
        space = &c.recv[i]
        ranges_init(&space.received, RANGES_PACKETS, RANGES_DROP_LOWEST)
        space.ack_at = INT64_MAX
    remote_cids_init(&c.remote, s.settings.active_cids)
    remote_cids_set_first(&c.remote, dcid)
    path_init(&c.paths[0], remote, dcid, 0)
    c.paths[0].validated = c.is_client
    c.peer_ack_exponent = 3  # RFC 9000 18.2
    c.open_start = <uint64_t> -1
    c.pacing_at = INT64_MAX
    c.trim_at = INT64_MAX
    c.close_at = INT64_MAX
    c.deadline = INT64_MAX
    c.keep_alive_at = INT64_MAX
    c.handshake_at = now + s.settings.handshake_timeout
    c.idle_at = INT64_MAX
    c.unresponsive_at = INT64_MAX
    c.received_at = now
    if s.settings.idle_timeout:
        c.idle_at = now + s.settings.idle_timeout
    c.half_open = True
    s.half_open += 1
    s.connections += 1
    conn_peer_key(remote, &peer)
    if (
        keys_init_initial(
            &c.sealing[<int> INITIAL], &c.opening[<int> INITIAL], keyed.bytes,
            keyed.size, c.is_client
        ) != OK
        or conn_make_cid(s, &c.source, token) != OK
        or cidmap_add(&s.cids, &c.source, c) != OK
        or cidmap_add(&s.peers, &peer, c) != OK
        or (not c.is_client and cidmap_add(&s.cids, keyed, c) != OK)
    ):
        conn_bury(c)
        c.settled = True
        s.connections -= 1
        conn_unref(c)
        return NULL
    local_cids_init(&c.local, &c.source, token)
    c.can_seal[<int> INITIAL] = True
    c.can_open[<int> INITIAL] = True
    if s.trace is not NULL:
        conn_trace_started(c)
        conn_trace_key(c, INITIAL, True, TRIGGER_TLS)
        conn_trace_key(c, INITIAL, False, TRIGGER_TLS)
    return c


cdef void conn_ref(Conn* c) noexcept nogil:
    c.refs += 1


cdef void conn_unref(Conn* c) noexcept nogil:
    """Give back a reference; the last one frees the record."""
    cdef int i
    c.refs -= 1
    if c.refs:
        return
    for i in range(CONNS_LISTS):
        conn_unlist(c, i)
    streams_free(&c.streams)
    for i in range(SPACE_COUNT):
        free_space(c, i)
    packet_key_free(&c.next_opening)
    packet_key_free(&c.old_opening)
    recovery_free(&c.recovery)
    remote_cids_free(&c.remote)
    free(c.token)
    free(c.new_token)
    free(c.stash)
    free(c)


cdef void conn_forget(Conn* c) noexcept nogil:
    cdef int i
    if conn_is_alive(c):
        return
    streams_free(&c.streams)
    for i in range(SPACE_COUNT):
        reassembly_free(&c.crypto_in[i])
        sendbuf_free(&c.crypto_out[i])


cdef void free_space(Conn* c, int space) noexcept nogil:
    keys_free(&c.sealing[space])
    keys_free(&c.opening[space])
    c.can_seal[space] = False
    c.can_open[space] = False
    reassembly_free(&c.crypto_in[space])
    sendbuf_free(&c.crypto_out[space])
    ranges_free(&c.recv[space].received)
    c.recv[space].ack_at = INT64_MAX
    c.recv[space].eliciting = 0


cdef void conn_bury(Conn* c) noexcept nogil:
    cdef Cid peer
    cdef uint32_t i
    if c.state == CONN_GONE:
        return
    if c.shared.trace is not NULL:
        conn_trace_ended(c)
    leave_half_open(c)
    conn_vouch(c)
    conn_peer_key(&c.paths[c.path].remote, &peer)
    cidmap_remove(&c.shared.peers, &peer, c)
    c.state = CONN_GONE
    cidmap_remove(&c.shared.cids, &c.source, c)
    if not c.is_client:
        cidmap_remove(&c.shared.cids, &c.keyed, c)
    for i in range(c.local.count):
        cidmap_remove(&c.shared.cids, &c.local.entries[i].cid, c)
    conn_unlist(c, CONNS_SEND)
    conn_unlist(c, CONNS_TLS)


cdef void leave_half_open(Conn* c) noexcept nogil:
    if c.half_open:
        c.half_open = False
        c.shared.half_open -= 1


cdef void conn_vouch(Conn* c) noexcept nogil:
    sources_leave(&c.shared.sources, c.stranger_of)
    c.stranger_of = 0


# --- Its end --------------------------------------------------------------------------

cdef void note_end(
    Conn* c, uint8_t initiator, bint app, uint64_t code, uint64_t frame,
    const uint8_t* reason, size_t size
) noexcept nogil:
    leave_half_open(c)
    conn_vouch(c)
    c.initiator = initiator
    c.close_app = app
    c.close_code = code
    c.close_frame = frame
    c.close_reason_size = <uint32_t> min(size, <size_t> REASON_MAX)
    if c.close_reason_size:
        memcpy(c.close_reason, reason, c.close_reason_size)
    if c.shared.trace is not NULL:
        conn_trace_closed(c)
    c.events |= CONN_EVENT_CLOSED
    conn_list(c, CONNS_EVENTS)
    conn_unlist(c, CONNS_TLS)
    free(c.stash)
    c.stash = NULL
    c.stashed = 0


cdef void conn_close_local(
    Conn* c, bint app, uint64_t code, uint64_t frame, const uint8_t* reason,
    size_t size, int64_t now
) noexcept nogil:
    if not conn_is_alive(c):
        return
    note_end(c, CLOSED_BY_US, app, code, frame, reason, size)
    c.state = CONN_CLOSING
    c.close_due = True
    c.close_at = now + 3 * conn_pto(c)
    conn_list(c, CONNS_SEND)


cdef void conn_fail(Conn* c, int status, uint64_t frame, int64_t now) noexcept nogil:
    conn_close_local(
        c, False, <uint64_t> (status if status > 0 else E_INTERNAL), frame, NULL, 0, now
    )


cdef void conn_drain(
    Conn* c, bint app, uint64_t code, uint64_t frame, const uint8_t* reason,
    size_t size, int64_t now
) noexcept nogil:
    note_end(c, CLOSED_BY_PEER, app, code, frame, reason, size)
    c.state = CONN_DRAINING
    c.close_at = now + 3 * conn_pto(c)
    conn_unlist(c, CONNS_SEND)


cdef void conn_lose(Conn* c, uint8_t initiator) noexcept nogil:
    if conn_is_alive(c):
        note_end(c, initiator, False, E_NO_ERROR, 0, NULL, 0)
    conn_bury(c)


# --- Keys -----------------------------------------------------------------------------

cdef int conn_install(
    Conn* c, int space, bint sealing, uint16_t suite, const uint8_t* secret,
    size_t size
) noexcept nogil:
    cdef int status
    if sealing:
        status = keys_init(&c.sealing[space], suite, secret, size, True)
        if status != OK:
            return status
        c.can_seal[space] = True
        if space == HANDSHAKE:
            c.recovery.has_handshake_keys = True
        if c.shared.trace is not NULL:
            conn_trace_key(c, space, True, TRIGGER_TLS)
        return OK
    status = keys_init(&c.opening[space], suite, secret, size, False)
    if status != OK:
        return status
    if space == APPLICATION:
        # Made ahead, so that the time taken does not tell of an update (RFC 9001 6.3).
        status = packet_key_next(&c.next_opening, &c.opening[space].packet)
    c.can_open[space] = status == OK
    if c.shared.trace is not NULL:
        conn_trace_key(c, space, False, TRIGGER_TLS)
    return status


cdef void conn_discard(Conn* c, int space, int64_t now) noexcept nogil:
    """Discard the keys of a space and all that belongs to it (RFC 9001 4.9)."""
    if c.discarded[space]:
        return
    c.discarded[space] = True
    if c.shared.trace is not NULL:
        conn_trace_discarded(c, space)
    recovery_discard_space(&c.recovery, space, now)
    free_space(c, space)


cdef int conn_complete(Conn* c, int64_t now) noexcept nogil:
    c.state = CONN_OPEN
    leave_half_open(c)
    c.handshake_at = INT64_MAX
    c.connected_at = now
    c.events |= CONN_EVENT_CONNECTED
    conn_list(c, CONNS_EVENTS)
    conn_list(c, CONNS_SEND)
    if not c.is_client:
        c.handshake_done_due = True
        c.token_due = c.shared.settings.sends_tokens
        conn_confirm(c, now)
    return conn_issue_cids(c)


cdef void conn_confirm(Conn* c, int64_t now) noexcept nogil:
    if c.confirmed:
        return
    c.confirmed = True
    c.recovery.handshake_confirmed = True
    conn_discard(c, INITIAL, now)
    conn_discard(c, HANDSHAKE, now)
    recovery_skip(
        &c.recovery, APPLICATION,
        SKIP_MIN + random_below(&c.shared.random, SKIP_SPREAD)
    )
    conn_list(c, CONNS_SEND)


cdef bint conn_may_update(const Conn* c) noexcept nogil:
    """Say if a key update may be started (RFC 9001 6.1, 6.5)."""
    return c.confirmed and c.seal_acked and c.seal_phase == c.open_phase


cdef int conn_update_sealing(Conn* c) noexcept nogil:
    cdef PacketKey following
    cdef int status
    memset(&following, 0, sizeof(PacketKey))
    status = packet_key_next(&following, &c.sealing[<int> APPLICATION].packet)
    if status != OK:
        return status
    packet_key_free(&c.sealing[<int> APPLICATION].packet)
    c.sealing[<int> APPLICATION].packet = following
    c.seal_phase = not c.seal_phase
    c.seal_start = recovery_next_pn(&c.recovery, APPLICATION)
    c.seal_acked = False
    c.stats.key_updates += 1
    if c.shared.trace is not NULL:
        conn_trace_key(
            c, APPLICATION, True,
            TRIGGER_REMOTE if c.seal_phase == c.open_phase else TRIGGER_LOCAL
        )
    return OK


# --- Connection IDs -------------------------------------------------------------------

cdef int conn_issue_cids(Conn* c) noexcept nogil:
    """Issue as many as the peer keeps and we want (RFC 9000 5.1.1)."""
    cdef Cid cid
    cdef uint8_t token[16]
    while local_cids_wanted(&c.local):
        if (
            conn_make_cid(c.shared, &cid, token) != OK
            or cidmap_add(&c.shared.cids, &cid, c) != OK
        ):
            return OUT_OF_MEMORY
        local_cids_issue(&c.local, &cid, token)
        c.control_due = True
    return OK


# --- Paths ----------------------------------------------------------------------------

cdef void conn_peer_key(const Address* address, Cid* key) noexcept nogil:
    key.size = 19
    memcpy(key.bytes, address.ip, 16)
    key.bytes[16] = <uint8_t> (address.port >> 8)
    key.bytes[17] = <uint8_t> address.port
    key.bytes[18] = address.family


cdef int conn_route(Conn* c, uint32_t path) noexcept nogil:
    cdef Cid peer
    conn_peer_key(&c.paths[c.path].remote, &peer)
    cidmap_remove(&c.shared.peers, &peer, c)
    c.path = path
    conn_peer_key(&c.paths[path].remote, &peer)
    return cidmap_add(&c.shared.peers, &peer, c)


cdef int conn_forget_path(Conn* c, uint32_t path) noexcept nogil:
    cdef Path* p = &c.paths[path]
    cdef uint32_t i
    p.used = False
    for i in range(PATHS_MAX):
        if c.paths[i].used and c.paths[i].sequence == p.sequence:
            return OK
    c.control_due = True
    return remote_cids_retire(&c.remote, p.sequence)
