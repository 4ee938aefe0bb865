"""The endpoint: what arrives finds its connection, what is due is done."""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from lightning._core.quic.buffer cimport (
    E_CONNECTION_REFUSED, E_INVALID_TOKEN, FRAME_CONNECTION_CLOSE, OK, OUT_OF_MEMORY,
    SPACE_COUNT, Writer, load_u64, writer_init, writer_size
)
from lightning._core.quic.cidmap cimport CidEntry, cidmap_find, cidmap_hash
from lightning._core.quic.congestion cimport congestion_set_max_datagram
from lightning._core.quic.connection cimport connection_deadline, connection_on_timeout
from lightning._core.quic.connrecv cimport conn_is_reset, conn_receive, conn_unstash
from lightning._core.quic.connsend cimport SEND_ROOM_MIN, conn_write
from lightning._core.quic.connstate cimport (
    CLOSED_RESET, CLOSED_UNREACHABLE, CONN_EVENT_CLOSED, CONN_EVENT_CONNECTED,
    CONN_GONE, CONNS_EVENTS, CONNS_SEND, CONNS_TLS, LOCAL_CID_SIZE, conn_bury,
    conn_create, conn_is_alive, conn_list, conn_lose, conn_peer_key, conn_ref,
    conn_unlist, conn_unref, shared_free, shared_init
)
from lightning._core.quic.frames cimport frame_write_close
from lightning._core.quic.gate cimport gate_admits, gate_free, gate_init
from lightning._core.quic.mtu cimport mtu_on_refused
from lightning._core.quic.packet cimport (
    INITIAL_DATAGRAM_MIN, PACKET_INITIAL, PACKET_ONE_RTT, PACKET_TOO_SHORT,
    PACKET_UNKNOWN_VERSION, RESET_TOKEN_SIZE, STATELESS_RESET_MIN, TAG_SIZE, VERSION_1,
    Cid, PacketBuild, PacketHeader, cid_is, cid_set, packet_begin_long, packet_parse,
    packet_set_length, packet_write_retry, packet_write_stateless_reset,
    packet_write_version_negotiation
)
from lightning._core.quic.paths cimport PATHS_MAX, address_is
from lightning._core.quic.protection cimport (
    Keys, keys_free, keys_init_initial, protection_seal, reset_token_derive, retry_tag
)
from lightning._core.quic.reassembly cimport reassembly_consume, reassembly_peek
from lightning._core.quic.recovery cimport recovery_marks_ecn
from lightning._core.quic.secrets cimport (
    SECRET_SIZE, TOKEN_INVALID, TOKEN_PROVES_RETRY,
    TOKEN_UNKNOWN, random_bytes, token_check, token_make_retry
)
from lightning._core.quic.sources cimport (
    SOURCE_ADMITTED, SOURCE_TOO_FAST, sources_admit, sources_init, sources_leave
)
from lightning._core.quic.streams cimport streams_next_event
from lightning._core.quic.streamtable cimport LIST_EVENTS, StreamEvent
from lightning._core.quic.tokenstore cimport tokenstore_take

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <stdint.h>
    static uint32_t ln_forks;
    static void ln_count_fork(void) { ln_forks += 1; }
    /* If the system refuses, nobody is told of forks. */
    static void ln_count_forks(void) { pthread_atfork(0, 0, ln_count_fork); }
    #define ln_forks_now() ln_forks
    """
    void ln_count_forks()
    uint32_t process_forks "ln_forks_now"()

cdef enum:
    PEERS_LOOKED_AT = 64  # connections to one address, for a stateless reset


ln_count_forks()


# --- Life -------------------------------------------------------------------------

cdef int endpoint_init(
    EndpointCore* e, const Settings* settings, const uint8_t* seed,
    const uint8_t* secret, int64_t retry_lifetime, int64_t token_lifetime
) noexcept nogil:
    cdef uint8_t key[8]
    memset(e, 0, sizeof(EndpointCore))
    e.replies = <Reply*> malloc(REPLIES * sizeof(Reply))
    if e.replies is NULL:
        return OUT_OF_MEMORY
    memcpy(e.shared.random.seed, seed, SECRET_SIZE)
    memcpy(e.shared.tokens.key, secret, SECRET_SIZE)
    e.shared.tokens.retry_lifetime = retry_lifetime
    e.shared.tokens.lifetime = token_lifetime
    shared_init(&e.shared, settings)
    random_bytes(&e.shared.random, key, 8)
    if sources_init(
        &e.shared.sources, load_u64(key), settings.max_unauthenticated_per_source,
        settings.max_connections_per_minute, settings.max_tracked_rate_ips
    ) != OK:
        shared_free(&e.shared)
        free(e.replies)
        e.replies = NULL
        return OUT_OF_MEMORY
    e.reply_tokens = <int64_t> REPLY_BURST * 1000000
    gate_init(&e.gate)
    pthread_mutex_init(&e.mutex, NULL)
    e.forks = process_forks()
    return OK


cdef bint endpoint_is_inherited(const EndpointCore* e) noexcept nogil:
    return e.forks != process_forks()


cdef void endpoint_clear(EndpointCore* e) noexcept nogil:
    cdef Conn* c
    while True:
        c = e.heap[1] if e.heap_count else e.shared.first[CONNS_EVENTS]
        if c is NULL:
            return
        conn_bury(c)
        c.events = 0
        conn_unlist(c, CONNS_EVENTS)
        c.streams.first[LIST_EVENTS] = NULL
        c.streams.openable = 0
        settle(e, c)


cdef void endpoint_free(EndpointCore* e) noexcept nogil:
    """Free everything; connections that others refer to must be released before."""
    if e.replies is NULL:
        return
    endpoint_clear(e)
    shared_free(&e.shared)
    gate_free(&e.gate)
    free(e.heap)
    free(e.replies)
    e.heap = NULL
    e.replies = NULL
    pthread_mutex_destroy(&e.mutex)


cdef inline int64_t tick(EndpointCore* e, int64_t now) noexcept nogil:
    """Return the time for a call that was given ``now``."""
    e.now = max(e.now, now)
    return e.now


# --- Timers -----------------------------------------------------------------------

cdef void heap_place(EndpointCore* e, Conn* c, uint32_t i) noexcept nogil:
    """Move a connection from hole ``i`` up or down to where it belongs."""
    cdef uint32_t child
    while i > 1 and e.heap[i >> 1].deadline > c.deadline:
        e.heap[i] = e.heap[i >> 1]
        e.heap[i].heap_index = i
        i >>= 1
    while True:
        child = i << 1
        if child > e.heap_count:
            break
        if (
            child < e.heap_count
            and e.heap[child + 1].deadline < e.heap[child].deadline
        ):
            child += 1
        if e.heap[child].deadline >= c.deadline:
            break
        e.heap[i] = e.heap[child]
        e.heap[i].heap_index = i
        i = child
    e.heap[i] = c
    c.heap_index = i


cdef bint heap_add(EndpointCore* e, Conn* c) noexcept nogil:
    cdef uint32_t capacity
    cdef Conn** heap
    if e.heap_count + 1 >= e.heap_capacity:
        capacity = e.heap_capacity << 1 if e.heap_capacity else 16
        heap = <Conn**> realloc(e.heap, capacity * sizeof(Conn*))
        if heap is NULL:
            return False
        e.heap = heap
        e.heap_capacity = capacity
    e.heap_count += 1
    heap_place(e, c, e.heap_count)
    return True


cdef void heap_remove(EndpointCore* e, Conn* c) noexcept nogil:
    cdef uint32_t i = c.heap_index
    cdef Conn* last
    if i == 0:
        return
    c.heap_index = 0
    last = e.heap[e.heap_count]
    e.heap_count -= 1
    if last != c:
        heap_place(e, last, i)


cdef int64_t endpoint_next_deadline(const EndpointCore* e) noexcept nogil:
    return e.heap[1].deadline if e.heap_count else INT64_MAX


cdef void endpoint_timeout(EndpointCore* e, int64_t now) noexcept nogil:
    cdef Conn* c
    now = tick(e, now)
    while e.heap_count and e.heap[1].deadline <= now:
        c = e.heap[1]
        connection_on_timeout(c, now)
        settle(e, c)
        # What is due at once is looked at once.
        if e.heap_count and e.heap[1] == c and c.deadline <= now:
            c.deadline = now + 1
            heap_place(e, c, 1)


cdef void settle(EndpointCore* e, Conn* c) noexcept nogil:
    """Bring timers and lists up to date; a connection that is gone may be freed."""
    cdef int64_t deadline
    if c.streams.first[LIST_EVENTS] is not NULL or c.streams.openable:
        conn_list(c, CONNS_EVENTS)
    if c.state != CONN_GONE:
        deadline = connection_deadline(c)
        if deadline != c.deadline:
            c.deadline = deadline
            heap_place(e, c, c.heap_index)
        return
    if not c.settled:
        c.settled = True
        heap_remove(e, c)
        e.shared.connections -= 1
    # The layer above is told of the end before the record goes.
    if not c.events and not c.released:
        c.released = True
        conn_unref(c)


cdef void endpoint_touch(EndpointCore* e, Conn* c, int64_t now) noexcept nogil:
    settle(e, c)


cdef void endpoint_release(EndpointCore* e, Conn* c) noexcept nogil:
    conn_unref(c)


# --- Receiving --------------------------------------------------------------------

cdef void endpoint_receive(
    EndpointCore* e, uint8_t* data, size_t size, const Address* source, uint8_t ecn,
    int64_t now
) noexcept nogil:
    cdef PacketHeader h
    cdef Conn* c
    cdef int status
    now = tick(e, now)
    e.stats.datagrams_received += 1
    status = packet_parse(&h, data, size, LOCAL_CID_SIZE)
    if status == PACKET_UNKNOWN_VERSION:
        if (
            not e.shared.is_client and size >= INITIAL_DATAGRAM_MIN
            and gate_admits(&e.gate, source)
        ):
            negotiate(e, &h, source, now)
        else:
            e.stats.datagrams_dropped += 1
        return
    if status != OK:
        # A stateless reset may be shorter than any packet.
        if status != PACKET_TOO_SHORT or not take_reset(e, data, size, source):
            e.stats.datagrams_dropped += 1
        return
    c = <Conn*> cidmap_find(&e.shared.cids, h.dcid, h.dcid_size)
    if c is not NULL:
        conn_receive(c, data, size, source, ecn, now)
        settle(e, c)
    elif h.type == PACKET_ONE_RTT:
        if take_reset(e, data, size, source):
            return
        if gate_admits(&e.gate, source):
            send_reset(e, &h, size, source, now)
    elif (
        h.type == PACKET_INITIAL and not e.shared.is_client
        and size >= INITIAL_DATAGRAM_MIN and h.dcid_size >= INITIAL_CID_MIN
        and gate_admits(&e.gate, source)
    ):
        on_initial(e, &h, data, size, source, ecn, now)
    else:
        e.stats.datagrams_dropped += 1


cdef bint take_reset(
    EndpointCore* e, const uint8_t* data, size_t size, const Address* source
) noexcept nogil:
    """See if a datagram is a stateless reset for a connection to its source."""
    cdef Cid key
    cdef CidEntry* entry
    cdef Conn* c
    cdef int looked_at = 0
    if size < STATELESS_RESET_MIN or e.shared.peers.count == 0:
        return False
    conn_peer_key(source, &key)
    entry = e.shared.peers.buckets[
        cidmap_hash(&e.shared.peers, key.bytes, key.size)
        & (e.shared.peers.capacity - 1)
    ]
    while entry is not NULL and looked_at < PEERS_LOOKED_AT:
        c = <Conn*> entry.owner
        if cid_is(&entry.cid, key.bytes, key.size):
            looked_at += 1
            if conn_is_reset(c, data, size):
                conn_lose(c, CLOSED_RESET)
                settle(e, c)
                return True
        entry = entry.next
    return False


cdef void on_initial(
    EndpointCore* e, PacketHeader* h, uint8_t* data, size_t size,
    const Address* source, uint8_t ecn, int64_t now
) noexcept nogil:
    """Let a client in, or not (RFC 9000 8.1, 5.2.2)."""
    cdef Settings* settings = &e.shared.settings
    cdef Cid original, dcid, scid
    cdef int verdict = TOKEN_UNKNOWN
    cdef int admitted
    cdef uint32_t place = 0
    cdef Conn* c
    cid_set(&dcid, h.dcid, h.dcid_size)
    cid_set(&scid, h.scid, h.scid_size)
    if h.token_size:
        verdict = token_check(
            &e.shared.tokens, source, &dcid, h.token, h.token_size, now, &original
        )
    if verdict == TOKEN_INVALID:
        refuse(e, &dcid, &scid, E_INVALID_TOKEN, source, now)
        return
    if (
        verdict == TOKEN_UNKNOWN and settings.retry
        and e.shared.half_open >= settings.retry_from
    ):
        retry(e, &dcid, &scid, source, now)
        return
    admitted = sources_admit(&e.shared.sources, source, now, &place)
    if admitted != SOURCE_ADMITTED:
        if admitted == SOURCE_TOO_FAST:
            e.stats.sources_fast += 1
        else:
            e.stats.sources_full += 1
        e.stats.datagrams_dropped += 1
        return
    if (
        e.shared.connections >= settings.max_connections
        or e.shared.half_open >= settings.max_half_open
    ):
        sources_leave(&e.shared.sources, place)
        refuse(e, &dcid, &scid, E_CONNECTION_REFUSED, source, now)
        return
    if verdict != TOKEN_PROVES_RETRY:
        original = dcid
    c = conn_create(&e.shared, source, &original, &dcid, &scid, now)
    if c is NULL:
        sources_leave(&e.shared.sources, place)
        return
    c.stranger_of = place
    if verdict == TOKEN_PROVES_RETRY:
        c.has_retry = True
        c.retry_source = dcid
    c.paths[0].validated = verdict != TOKEN_UNKNOWN
    if not heap_add(e, c):
        conn_bury(c)
        settle(e, c)
        return
    conn_receive(c, data, size, source, ecn, now)
    if not c.authentic:
        # Nobody but a client can have sealed it; garbage leaves nothing behind.
        e.stats.datagrams_dropped += 1
        c.events = 0
        conn_bury(c)
    settle(e, c)


cdef void endpoint_unreachable(
    EndpointCore* e, const Address* peer, int error
) noexcept nogil:
    cdef Cid key
    cdef CidEntry* entry
    cdef CidEntry* following
    cdef Conn* c
    if not e.shared.is_client or e.shared.peers.count == 0:
        return
    conn_peer_key(peer, &key)
    entry = e.shared.peers.buckets[
        cidmap_hash(&e.shared.peers, key.bytes, key.size)
        & (e.shared.peers.capacity - 1)
    ]
    while entry is not NULL:
        following = entry.next
        c = <Conn*> entry.owner
        if (
            cid_is(&entry.cid, key.bytes, key.size) and conn_is_alive(c)
            and not c.authentic
        ):
            conn_lose(c, CLOSED_UNREACHABLE)
            c.close_code = error
            settle(e, c)
        entry = following


cdef void endpoint_refused(
    EndpointCore* e, const Address* to, size_t size, int64_t now
) noexcept nogil:
    cdef Conn* c
    cdef uint32_t i
    now = tick(e, now)
    # All of them: it is rare, once for each size that a search meets.
    for i in range(1, e.heap_count + 1):
        c = e.heap[i]
        if address_is(&c.paths[c.path].remote, to):
            mtu_on_refused(&c.recovery.mtu, <uint32_t> size, now)
            congestion_set_max_datagram(&c.recovery.cc, c.recovery.mtu.current)


# --- Answers without a connection -------------------------------------------------

cdef Reply* begin_reply(
    EndpointCore* e, const Address* to, bint counted, int64_t now
) noexcept nogil:
    """Return the room for an answer, NULL if too many were given."""
    cdef Reply* reply
    cdef int64_t most = <int64_t> REPLY_BURST * 1000000
    if e.reply_count == REPLIES:
        e.stats.datagrams_dropped += 1
        return NULL
    if counted:
        if not 0 <= now - e.reply_refilled <= 1000000:
            e.reply_tokens = most
        else:
            e.reply_tokens = min(
                most, e.reply_tokens + (now - e.reply_refilled) * REPLY_RATE
            )
        e.reply_refilled = now
        if e.reply_tokens < 1000000:
            e.stats.datagrams_dropped += 1
            return NULL
        e.reply_tokens -= 1000000
    reply = &e.replies[(e.reply_first + e.reply_count) % REPLIES]
    reply.to = to[0]
    reply.size = 0
    return reply


cdef void end_reply(EndpointCore* e, Reply* reply, const Writer* w) noexcept nogil:
    reply.size = <uint16_t> writer_size(w)
    e.reply_count += 1


cdef void negotiate(
    EndpointCore* e, PacketHeader* h, const Address* source, int64_t now
) noexcept nogil:
    """Answer a version that we do not speak (RFC 9000 6.1)."""
    cdef Reply* reply
    cdef Writer w
    cdef uint32_t versions[2]
    cdef uint8_t random[2]
    # The two identifiers of such a packet may be as long as 255 bytes each.
    if h.dcid_size > 64 or h.scid_size > 64:
        e.stats.datagrams_dropped += 1
        return
    reply = begin_reply(e, source, True, now)
    if reply is NULL:
        return
    random_bytes(&e.shared.random, random, 2)
    versions[0] = VERSION_1
    # One that nobody has, so that clients do not come to rely on the list (6.3).
    versions[1] = <uint32_t> 0x0A0A0A0A | (<uint32_t> (random[1] & 0xF0) << 16)
    writer_init(&w, reply.data, REPLY_SIZE)
    if packet_write_version_negotiation(
        &w, random[0], h.scid, h.scid_size, h.dcid, h.dcid_size, versions, 2
    ) == OK:
        e.stats.negotiations_sent += 1
        end_reply(e, reply, &w)


cdef void retry(
    EndpointCore* e, const Cid* dcid, const Cid* scid, const Address* source,
    int64_t now
) noexcept nogil:
    """Have the client prove its address (RFC 9000 8.1.2)."""
    cdef Reply* reply = begin_reply(e, source, False, now)
    cdef Writer w
    cdef Cid fresh
    cdef uint8_t token[54]
    cdef uint8_t random[1]
    cdef uint8_t* tag = NULL
    cdef size_t size
    if reply is NULL:
        return
    fresh.size = LOCAL_CID_SIZE
    random_bytes(&e.shared.random, fresh.bytes, LOCAL_CID_SIZE)
    random_bytes(&e.shared.random, random, 1)
    size = token_make_retry(
        &e.shared.tokens, &e.shared.random, source, dcid, &fresh, now, token
    )
    writer_init(&w, reply.data, REPLY_SIZE)
    if packet_write_retry(&w, random[0], scid, &fresh, token, size, &tag) == OK and (
        retry_tag(dcid, reply.data, <size_t> (tag - reply.data), tag) == OK
    ):
        e.stats.retries_sent += 1
        end_reply(e, reply, &w)


cdef void refuse(
    EndpointCore* e, const Cid* dcid, const Cid* scid, uint64_t code,
    const Address* source, int64_t now
) noexcept nogil:
    """Close a connection that was never made (RFC 9000 5.2.2, 8.1.3)."""
    cdef Reply* reply = begin_reply(e, source, True, now)
    cdef Writer w
    cdef PacketBuild build
    cdef Keys sealing, opening
    cdef Cid own
    cdef size_t header
    e.stats.refused += 1
    if reply is NULL:
        return
    memset(&sealing, 0, sizeof(Keys))
    memset(&opening, 0, sizeof(Keys))
    own.size = LOCAL_CID_SIZE
    random_bytes(&e.shared.random, own.bytes, LOCAL_CID_SIZE)
    writer_init(&w, reply.data, REPLY_SIZE - TAG_SIZE)
    if keys_init_initial(&sealing, &opening, dcid.bytes, dcid.size, False) == OK and (
        packet_begin_long(&w, &build, PACKET_INITIAL, scid, &own, NULL, 0, 0, 1) == OK
    ):
        header = writer_size(&w)
        if frame_write_close(&w, FRAME_CONNECTION_CLOSE, code, 0, NULL, 0) == OK:
            packet_set_length(&build, &w)
            if protection_seal(
                &sealing.header, &sealing.packet, 0, reply.data, header, 1,
                reply.data + header, writer_size(&w) - header
            ) == OK:
                w.pos += <int> TAG_SIZE
                end_reply(e, reply, &w)
    keys_free(&sealing)
    keys_free(&opening)


cdef void send_reset(
    EndpointCore* e, const PacketHeader* h, size_t size, const Address* source,
    int64_t now
) noexcept nogil:
    """Tell the peer that its connection is gone (RFC 9000 10.3)."""
    cdef Reply* reply
    cdef Writer w
    cdef Cid cid
    cdef uint8_t token[16]
    cdef uint8_t random[42]
    if size <= STATELESS_RESET_MIN:
        e.stats.datagrams_dropped += 1
        return
    reply = begin_reply(e, source, True, now)
    if reply is NULL:
        return
    cid_set(&cid, h.dcid, h.dcid_size)
    size = min(size - 1, <size_t> RESET_SIZE_MAX)
    random_bytes(&e.shared.random, random, size - RESET_TOKEN_SIZE)
    writer_init(&w, reply.data, REPLY_SIZE)
    if reset_token_derive(
        e.shared.settings.reset_key, SECRET_SIZE, &cid, token
    ) == OK and packet_write_stateless_reset(&w, random, size, token) == OK:
        e.stats.resets_sent += 1
        end_reply(e, reply, &w)


# --- Sending ----------------------------------------------------------------------

cdef size_t endpoint_poll_transmit(
    EndpointCore* e, uint8_t* out, size_t capacity, Address* to, uint8_t* ecn,
    size_t* segment, int64_t now
) noexcept nogil:
    cdef Reply* reply
    cdef Conn* c
    cdef size_t size
    now = tick(e, now)
    ecn[0] = 0
    if e.reply_count:
        reply = &e.replies[e.reply_first]
        e.reply_first = (e.reply_first + 1) % REPLIES
        e.reply_count -= 1
        to[0] = reply.to
        memcpy(out, reply.data, reply.size)
        segment[0] = reply.size
        return reply.size
    while True:
        c = e.shared.first[CONNS_SEND]
        if c is NULL:
            return 0
        size = conn_write(c, out, capacity, now, to, ecn)
        if size == 0 and c.close_due:
            # It failed over what it was about to send.
            size = conn_write(c, out, capacity, now, to, ecn)
        if size == 0:
            conn_unlist(c, CONNS_SEND)
            settle(e, c)
            continue
        segment[0] = size
        size = add_segments(c, out, size, capacity, ecn[0], now)
        # The others' turn.
        conn_unlist(c, CONNS_SEND)
        conn_list(c, CONNS_SEND)
        settle(e, c)
        return size


cdef size_t add_segments(
    Conn* c, uint8_t* out, size_t segment, size_t capacity, uint8_t ecn, int64_t now
) noexcept nogil:
    """Write more datagrams of one size, for the kernel to cut; return all bytes."""
    cdef size_t total = segment
    cdef size_t size
    cdef Address to
    cdef uint8_t mark = 0
    cdef int i
    if segment < SEND_ROOM_MIN or not c.confirmed:
        return total
    while capacity - total >= segment and conn_is_alive(c):
        for i in range(PATHS_MAX):
            if c.paths[i].used and (c.paths[i].challenge_due or c.paths[i].responses):
                return total
        if (ecn != 0) != recovery_marks_ecn(&c.recovery):
            return total
        size = conn_write(c, out + total, segment, now, &to, &mark)
        total += size
        if size < segment:
            break
    return total


# --- Connections ------------------------------------------------------------------

cdef Conn* endpoint_connect(
    EndpointCore* e, const Address* remote, const uint8_t* token, size_t token_size,
    int64_t now
) noexcept nogil:
    cdef Cid original
    cdef Conn* c
    now = tick(e, now)
    original.size = LOCAL_CID_SIZE
    random_bytes(&e.shared.random, original.bytes, LOCAL_CID_SIZE)
    c = conn_create(&e.shared, remote, &original, &original, &original, now)
    if c is NULL:
        return NULL
    if token_size:
        c.token = <uint8_t*> malloc(token_size)
        if c.token is not NULL:
            memcpy(c.token, token, token_size)
            c.token_size = token_size
    else:
        c.token = tokenstore_take(&e.shared.given, remote, &c.token_size)
    if not heap_add(e, c):
        conn_bury(c)
        settle(e, c)
        return NULL
    conn_ref(c)
    begin_tls(c)
    settle(e, c)
    return c


cdef void* endpoint_next_release(EndpointCore* e) noexcept nogil:
    if e.shared.memory.releases.count == 0:
        return NULL
    e.shared.memory.releases.count -= 1
    return e.shared.memory.releases.tokens[e.shared.memory.releases.count]


cdef bint endpoint_next_completion(EndpointCore* e, Completion* out) noexcept nogil:
    cdef Conn* c = e.shared.first[CONNS_EVENTS]
    cdef StreamEvent event
    while c is not NULL:
        if c.in_tls:
            # Whoever runs its TLS may be about to make its face, without which nobody
            # would hear of it; `endpoint_tls_done` lists it again.
            conn_unlist(c, CONNS_EVENTS)
            c = e.shared.first[CONNS_EVENTS]
            continue
        out.conn = c
        out.user = c.user
        out.stream_user = NULL
        out.number = c.number
        out.stream_id = 0
        out.code = 0
        if c.events & CONN_EVENT_CONNECTED:
            c.events &= ~CONN_EVENT_CONNECTED
            out.kind = COMPLETION_CONNECTED
            return True
        if streams_next_event(&c.streams, &event):
            out.kind = event.kind
            out.code = event.code
            if event.stream is not NULL:
                out.stream_id = event.stream.id
                out.stream_user = event.stream.user
            return True
        conn_unlist(c, CONNS_EVENTS)
        if c.events & CONN_EVENT_CLOSED:
            c.events &= ~CONN_EVENT_CLOSED
            out.kind = COMPLETION_CLOSED
            out.code = c.close_code
            # For the caller to read how it ended; it gives this reference back.
            conn_ref(c)
            settle(e, c)
            return True
        c = e.shared.first[CONNS_EVENTS]
    return False


# --- TLS --------------------------------------------------------------------------

cdef void begin_tls(Conn* c) noexcept nogil:
    c.in_tls = True
    conn_ref(c)


cdef Conn* endpoint_next_tls(EndpointCore* e) noexcept nogil:
    cdef Conn* c = e.shared.first[CONNS_TLS]
    while c is not NULL:
        conn_unlist(c, CONNS_TLS)
        # Who has it looks again before it is done.
        if not c.in_tls and conn_is_alive(c):
            begin_tls(c)
            return c
        c = e.shared.first[CONNS_TLS]
    return NULL


cdef size_t endpoint_take_crypto(
    EndpointCore* e, Conn* c, int space, uint8_t* out, size_t capacity
) noexcept nogil:
    cdef const uint8_t* view = NULL
    cdef size_t size
    cdef size_t total = 0
    if c.discarded[space] or not conn_is_alive(c):
        return 0
    while total < capacity:
        size = min(reassembly_peek(&c.crypto_in[space], &view), capacity - total)
        if size == 0:
            break
        memcpy(out + total, view, size)
        reassembly_consume(&c.crypto_in[space], size)
        total += size
    return total


cdef void endpoint_tls_done(EndpointCore* e, Conn* c, int64_t now) noexcept nogil:
    cdef const uint8_t* view = NULL
    cdef int space
    now = tick(e, now)
    c.in_tls = False
    if c.events:
        conn_list(c, CONNS_EVENTS)
    if conn_is_alive(c):
        conn_unstash(c, now)
    if conn_is_alive(c):
        for space in range(SPACE_COUNT):
            if not c.discarded[space] and reassembly_peek(&c.crypto_in[space], &view):
                conn_list(c, CONNS_TLS)
        conn_list(c, CONNS_SEND)
    settle(e, c)
    conn_unref(c)


# --- For tests --------------------------------------------------------------------

LOCK_RULES = bool(LIGHTNING_LOCK_RULES)  # whether this build checks them


def break_lock_rule(str rule not None):
    """Break a lock rule, which aborts the process if `LOCK_RULES` is set.

    Args:
        rule: ``waits`` for the mutex with the GIL, ``takes`` the GIL with the mutex,
            or locks ``twice``. Anything else breaks none.
    """
    cdef EndpointCore e
    memset(&e, 0, sizeof(EndpointCore))
    pthread_mutex_init(&e.mutex, NULL)
    if rule == "waits":
        endpoint_lock(&e)
        endpoint_unlock(&e)
    elif rule == "takes":
        with nogil:
            endpoint_lock(&e)
        with nogil:
            endpoint_unlock(&e)
    elif rule == "twice" and LIGHTNING_LOCK_RULES:  # Else it would wait for ever.
        with nogil:
            endpoint_lock(&e)
            endpoint_lock(&e)
    else:
        with nogil:
            endpoint_lock(&e)
            endpoint_unlock(&e)
    pthread_mutex_destroy(&e.mutex)
