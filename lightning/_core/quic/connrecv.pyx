"""Receiving: datagram, packet, frame."""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from lightning._core.quic.buffer cimport (
    APPLICATION, E_AEAD_LIMIT_REACHED, E_KEY_UPDATE, E_PROTOCOL_VIOLATION, FRAME_ACK,
    FRAME_ACK_ECN, FRAME_CONNECTION_CLOSE, FRAME_CONNECTION_CLOSE_APP, FRAME_CRYPTO,
    FRAME_HANDSHAKE_DONE, FRAME_MAX_DATA, FRAME_MAX_STREAM_DATA,
    FRAME_MAX_STREAMS_BIDI, FRAME_MAX_STREAMS_UNI, FRAME_NEW_CONNECTION_ID,
    FRAME_NEW_TOKEN, FRAME_PATH_CHALLENGE, FRAME_PATH_RESPONSE, FRAME_RESET_STREAM,
    FRAME_RETIRE_CONNECTION_ID, FRAME_STOP_SENDING, FRAME_STREAM,
    FRAME_STREAM_DATA_BLOCKED, FRAME_STREAMS_BLOCKED_BIDI, FRAME_STREAMS_BLOCKED_UNI,
    HANDSHAKE, INITIAL, OK, OUT_OF_MEMORY, Reader, load_u32, reader_init, reader_left
)
from lightning._core.quic.cidmap cimport cidmap_remove
from lightning._core.quic.cids cimport (
    RemoteCid, local_cids_lost, local_cids_retire, remote_cids_acked, remote_cids_add,
    remote_cids_find, remote_cids_is_reset, remote_cids_lost, remote_cids_set_first,
    remote_cids_take
)
from lightning._core.quic.connstate cimport (
    CLOSED_NO_VERSION, CLOSED_RESET, CONN_CLOSING, CONNS_SEND, CONNS_TLS,
    LOCAL_CID_SIZE, SENT_OF_STREAMS, SKIP_MIN, SKIP_SPREAD, STASH_PACKETS,
    STASH_PACKET_SIZE, RecvSpace, Stashed, conn_confirm, conn_discard, conn_drain,
    conn_fail, conn_forget_path, conn_idle_timeout, conn_is_alive, conn_issue_cids,
    conn_keep_alive, conn_list, conn_lose, conn_pto, conn_route, conn_update_sealing
)
from lightning._core.quic.conntrace cimport (
    conn_trace_dropped, conn_trace_key, conn_trace_path, conn_trace_received,
    conn_trace_recovery
)
from lightning._core.quic.ecn cimport EcnCounts
from lightning._core.quic.frames cimport (
    AckFrame, AckIterator, Frame, ack_delay, ack_iterate, ack_next,
    frame_is_ack_eliciting, frame_is_probing, frame_parse
)
from lightning._core.quic.packet cimport (
    INITIAL_DATAGRAM_MIN, PACKET_INITIAL, PACKET_ONE_RTT, PACKET_RETRY,
    PACKET_VERSION_NEGOTIATION, PACKET_ZERO_RTT, STATELESS_RESET_MIN, TAG_SIZE,
    VERSION_1, Cid, PacketHeader, cid_is, cid_set, packet_number_decode, packet_parse,
    packet_reserved_bits, packet_space
)
from lightning._core.quic.paths cimport (
    PATHS_MAX, Path, address_is, address_is_host, path_init, path_is_asked,
    path_on_challenge, path_on_response, path_validate
)
from lightning._core.quic.protection cimport (
    PacketKey, keys_init_initial, packet_key_free, packet_key_next, protection_open,
    protection_unmask, retry_tag_is_valid
)
from lightning._core.quic.ranges cimport Range, ranges_add, ranges_forget, ranges_seen
from lightning._core.quic.reassembly cimport reassembly_on_crypto, reassembly_peek
from lightning._core.quic.recovery cimport (
    recovery_next_acked, recovery_next_lost, recovery_on_ack_received,
    recovery_on_path_change, recovery_on_retry, recovery_release, recovery_skip
)
from lightning._core.quic.secrets cimport random_below
from lightning._core.quic.sendbuf cimport sendbuf_on_acked, sendbuf_on_lost
from lightning._core.quic.sent cimport (
    SENT_ACK, SENT_CRYPTO, SENT_HANDSHAKE_DONE, SENT_NEW_CONNECTION_ID, SENT_NEW_TOKEN,
    SENT_RETIRE_CONNECTION_ID, SentFrame
)
from lightning._core.quic.streams cimport (
    streams_on_max_data, streams_on_max_stream_data, streams_on_max_streams,
    streams_on_reset_stream, streams_on_stop_sending, streams_on_stream_data_blocked,
    streams_on_stream_frame, streams_on_streams_blocked
)
from lightning._core.quic.streamsend cimport (
    streams_has_frames, streams_on_frame_acked, streams_on_frame_lost
)
from lightning._core.quic.tokenstore cimport TOKEN_SIZE_KEPT, tokenstore_put
from lightning._core.quic.trace cimport (
    DROP_DUPLICATE, DROP_HEADER, DROP_INITIAL, DROP_NO_KEY, DROP_SOURCE,
    DROP_UNAUTHENTIC, DROP_UNEXPECTED, TRACE_UNKNOWN_TYPE, TRIGGER_REMOTE
)

cdef enum:
    # Ranges of an ACK frame that are looked at, from the top; packets below them are
    # taken for lost. We skip few numbers, so an honest peer has few gaps.
    ACK_RANGES_READ = 256
    # Packet numbers below an acknowledged ACK that are still told apart, for the sake
    # of packets that are merely late.
    ACK_MEMORY = 128
    # An ACK waits for a second packet a sixteenth of the RTT, so that a sender whose
    # window is a few packets does not stand still for long; a millisecond at least.
    ACK_DELAY_SHIFT = 4
    ACK_DELAY_MIN = 1000
    ECN_CE = 3


# What goes with a packet while its frames are handled.
cdef struct Arrival:
    PacketHeader header
    const Address* source
    uint64_t pn
    int64_t time  # when it came, also if its keys came later
    size_t datagram  # bytes of the datagram
    int space
    int path  # index, -1 for a new address
    uint8_t ecn
    bint eliciting
    bint moves  # it has a frame that is not for probing
    bint opened_old  # with the key before the last update


cdef void conn_receive(
    Conn* c, uint8_t* data, size_t size, const Address* source, uint8_t ecn,
    int64_t now
) noexcept nogil:
    cdef Arrival a
    cdef size_t pos = 0
    cdef const uint8_t* dcid = NULL
    cdef size_t dcid_size = 0
    cdef int status
    c.stats.datagrams_received += 1
    c.stats.bytes_received += size
    if not conn_is_alive(c):
        if c.state == CONN_CLOSING:
            # Fewer and fewer answers (RFC 9000 10.2.1).
            c.close_answers += 1
            if c.close_answers & (c.close_answers - 1) == 0:
                c.close_due = True
                conn_list(c, CONNS_SEND)
        return
    a.source = source
    a.ecn = ecn
    a.time = now
    a.datagram = size
    a.path = find_path(c, source)
    if a.path < 0:
        # Only clients move, and not before the handshake is confirmed (section 9).
        if c.is_client or not c.confirmed:
            count_drop(c, TRACE_UNKNOWN_TYPE, size, DROP_UNEXPECTED)
            return
    elif not c.paths[a.path].validated:
        c.paths[a.path].received += size
        if c.recovery.blocked:
            c.recovery.blocked = False
            conn_list(c, CONNS_SEND)
    while pos < size:
        status = packet_parse(&a.header, data + pos, size - pos, LOCAL_CID_SIZE)
        if status != OK:
            break
        if dcid is NULL:
            dcid = a.header.dcid
            dcid_size = a.header.dcid_size
        # All packets of a datagram are for one connection (section 12.2).
        elif a.header.dcid_size != dcid_size or memcmp(
            a.header.dcid, dcid, dcid_size
        ) != 0:
            break
        receive_packet(c, &a, data + pos, now)
        if not conn_is_alive(c):
            return
        pos += a.header.size


cdef inline int find_path(const Conn* c, const Address* source) noexcept nogil:
    cdef int i
    if address_is(&c.paths[c.path].remote, source):
        return <int> c.path
    for i in range(PATHS_MAX):
        if c.paths[i].used and address_is(&c.paths[i].remote, source):
            return i
    return -1


cdef bint conn_is_reset(const Conn* c, const uint8_t* data, size_t size) noexcept nogil:
    return size >= STATELESS_RESET_MIN and remote_cids_is_reset(
        &c.remote, data + size - 16
    )


# --- Packets --------------------------------------------------------------------------

cdef void receive_packet(
    Conn* c, Arrival* a, uint8_t* data, int64_t now
) noexcept nogil:
    """Open one packet and hand on its frames."""
    cdef PacketHeader* h = &a.header
    cdef RecvSpace* rs
    cdef PacketKey* key
    cdef uint32_t truncated = 0
    cdef unsigned int pn_size = 0
    cdef int space, status
    cdef bint updates = False
    if h.type == PACKET_RETRY:
        on_retry(c, h, data, now)
        return
    if h.type == PACKET_VERSION_NEGOTIATION:
        on_version_negotiation(c, h)
        return
    # 0-RTT is never offered. A server's Initial has no token (section 17.2.2), a
    # client's comes in a large datagram (section 14.1).
    if (
        h.type == PACKET_ZERO_RTT
        or (h.type == PACKET_INITIAL and c.is_client and h.token_size > 0)
        or (
            h.type == PACKET_INITIAL and not c.is_client
            and a.datagram < <size_t> INITIAL_DATAGRAM_MIN
        )
    ):
        count_drop(
            c, h.type, h.size,
            DROP_INITIAL if h.type == PACKET_INITIAL else DROP_UNEXPECTED
        )
        return
    a.space = space = packet_space(h.type)
    # The peer keeps its source connection ID (section 7.2).
    if h.type != PACKET_ONE_RTT and c.has_peer_source and not cid_is(
        &c.peer_source, h.scid, h.scid_size
    ):
        count_drop(c, h.type, h.size, DROP_SOURCE)
        return
    if not c.can_open[space]:
        stash(c, a, data, now)
        return
    status = protection_unmask(
        &c.opening[space].header, data, h.size, h.pn_offset, &truncated, &pn_size
    )
    if status != OK:
        count_drop(c, h.type, h.size, DROP_HEADER)
        return
    rs = &c.recv[space]
    a.pn = packet_number_decode(
        truncated, pn_size, rs.largest + 1 if rs.received.count else 0
    )
    if ranges_seen(&rs.received, a.pn):
        drop(c, a, data, DROP_DUPLICATE)
        return
    key = &c.opening[space].packet
    a.opened_old = False
    if space == APPLICATION and ((data[0] & 0x04) != 0) != c.open_phase:
        # Of the phase before or of the next: the packet number tells (RFC 9001 6.5).
        if a.pn < c.open_start and c.old_opening.ctx is not NULL:
            if now > c.old_until:
                drop(c, a, data, DROP_NO_KEY)
                return
            key = &c.old_opening
            a.opened_old = True
        else:
            key = &c.next_opening
            updates = True
    status = protection_open(
        key, a.pn, data, h.pn_offset + pn_size, h.size, &c.failures
    )
    if status != OK:
        if status == E_AEAD_LIMIT_REACHED:
            conn_fail(c, status, 0, now)
        else:
            drop(c, a, data, DROP_UNAUTHENTIC)
        return
    if c.shared.trace is not NULL:
        conn_trace_received(
            c, h.type, a.pn, h.size, a.ecn, data + h.pn_offset + pn_size,
            h.size - h.pn_offset - pn_size - TAG_SIZE
        )
    if updates:
        status = follow_update(c, a.pn, now)
        if status != OK:
            conn_fail(c, status, 0, now)
            return
    elif space == APPLICATION and not a.opened_old and a.pn < c.open_start:
        c.open_start = a.pn
    on_authentic(c, a, now)
    if packet_reserved_bits(data[0]):
        conn_fail(c, E_PROTOCOL_VIOLATION, 0, now)
        return
    on_payload(
        c, a, data + h.pn_offset + pn_size,
        h.size - h.pn_offset - pn_size - TAG_SIZE, now
    )


cdef void count_drop(
    Conn* c, uint8_t type, size_t size, uint8_t reason
) noexcept nogil:
    c.stats.packets_dropped += 1
    if c.shared.trace is not NULL:
        conn_trace_dropped(c, type, size, reason)


cdef void drop(
    Conn* c, Arrival* a, const uint8_t* data, uint8_t reason
) noexcept nogil:
    """Drop a packet, unless it is a stateless reset (RFC 9000 10.3.1)."""
    count_drop(c, a.header.type, a.header.size, reason)
    if a.header.type == PACKET_ONE_RTT and conn_is_reset(c, data, a.header.size):
        conn_lose(c, CLOSED_RESET)


cdef int follow_update(Conn* c, uint64_t pn, int64_t now) noexcept nogil:
    """Go on to the next key phase, which the peer has begun (RFC 9001 6.2)."""
    # It may not begin another one before this one was acknowledged; to follow ours is
    # another matter.
    if c.seal_phase == c.open_phase and not c.open_acked and c.old_until:
        return E_KEY_UPDATE
    packet_key_free(&c.old_opening)
    c.old_opening = c.opening[<int> APPLICATION].packet
    c.old_until = now + 3 * conn_pto(c)
    c.opening[<int> APPLICATION].packet = c.next_opening
    memset(&c.next_opening, 0, sizeof(PacketKey))
    c.open_phase = not c.open_phase
    if c.shared.trace is not NULL:
        conn_trace_key(c, APPLICATION, False, TRIGGER_REMOTE)
    c.open_start = pn
    c.open_acked = False
    if c.seal_phase != c.open_phase and conn_update_sealing(c) != OK:
        return OUT_OF_MEMORY
    return packet_key_next(&c.next_opening, &c.opening[<int> APPLICATION].packet)


cdef void on_authentic(Conn* c, Arrival* a, int64_t now) noexcept nogil:
    """Note what a packet proves that only the peer can have sent."""
    cdef PacketHeader* h = &a.header
    cdef Cid source
    cdef int64_t timeout = conn_idle_timeout(c)
    c.authentic = True
    c.stats.packets_received += 1
    if timeout:
        c.idle_at = now + timeout
    c.sent_since_received = False
    c.unresponsive_at = INT64_MAX
    c.received_at = now
    if c.shared.settings.keep_alive:
        c.keep_alive_at = now + conn_keep_alive(c)
    if a.space == APPLICATION:
        return
    if not c.has_peer_source:
        # packet_parse has checked the size.
        cid_set(&source, h.scid, h.scid_size)
        c.has_peer_source = True
        c.peer_source = source
        remote_cids_set_first(&c.remote, &source)
        c.paths[0].cid = source
    if a.space == HANDSHAKE and not c.is_client:
        # Who seals with Handshake keys has received our Initial (section 8.1).
        c.paths[0].validated = True
        c.recovery.blocked = False
        conn_discard(c, INITIAL, now)


cdef void stash(Conn* c, Arrival* a, const uint8_t* data, int64_t now) noexcept nogil:
    """Keep a packet whose keys are still to come (RFC 9001 5.7)."""
    cdef Stashed* kept
    if (
        c.discarded[a.space] or a.space == INITIAL or a.header.size > STASH_PACKET_SIZE
        or c.stashed == STASH_PACKETS or c.confirmed or a.path != 0
    ):
        count_drop(c, a.header.type, a.header.size, DROP_NO_KEY)
        return
    if c.stash is NULL:
        c.stash = <Stashed*> malloc(STASH_PACKETS * sizeof(Stashed))
        if c.stash is NULL:
            return
    kept = &c.stash[c.stashed]
    c.stashed += 1
    kept.size = <uint16_t> a.header.size
    kept.ecn = a.ecn
    kept.space = <uint8_t> a.space
    kept.time = now
    memcpy(kept.data, data, a.header.size)


cdef void conn_unstash(Conn* c, int64_t now) noexcept nogil:
    cdef Arrival a
    cdef uint32_t i = 0
    cdef Stashed* kept
    a.source = &c.paths[0].remote
    a.path = 0
    a.datagram = 0
    while i < c.stashed:
        kept = &c.stash[i]
        i += 1
        if not kept.size or not c.can_open[kept.space]:
            continue
        a.ecn = kept.ecn
        a.time = kept.time
        if packet_parse(&a.header, kept.data, kept.size, LOCAL_CID_SIZE) == OK:
            kept.size = 0
            receive_packet(c, &a, kept.data, now)
        if not conn_is_alive(c):
            return
    if c.confirmed or c.can_open[<int> APPLICATION]:
        free(c.stash)
        c.stash = NULL
        c.stashed = 0


cdef void on_retry(
    Conn* c, PacketHeader* h, const uint8_t* data, int64_t now
) noexcept nogil:
    """Begin again with the token of a Retry (RFC 9000 17.2.5)."""
    cdef Cid source
    cdef uint8_t* token
    if (
        not c.is_client or c.authentic or c.has_retry
        or cid_is(&c.original, h.scid, h.scid_size)
        or not retry_tag_is_valid(
            &c.original, data, h.size - TAG_SIZE, h.integrity_tag
        )
    ):
        count_drop(c, h.type, h.size, DROP_UNEXPECTED)
        return
    if c.shared.trace is not NULL:
        conn_trace_received(c, h.type, 0, h.size, 0, NULL, 0)
    token = <uint8_t*> malloc(h.token_size)
    cid_set(&source, h.scid, h.scid_size)
    if token is NULL or keys_init_initial(
        &c.sealing[<int> INITIAL], &c.opening[<int> INITIAL], source.bytes,
        source.size, True
    ) != OK:
        free(token)
        conn_fail(c, OUT_OF_MEMORY, 0, now)
        return
    memcpy(token, h.token, h.token_size)
    free(c.token)
    c.token = token
    c.token_size = h.token_size
    c.has_retry = True
    c.retry_source = source
    remote_cids_set_first(&c.remote, &source)
    c.paths[0].cid = source
    recovery_on_retry(&c.recovery, now)
    conn_settle(c, now)
    conn_list(c, CONNS_SEND)


cdef void on_version_negotiation(Conn* c, PacketHeader* h) noexcept nogil:
    """Give up if the server speaks no version of ours (RFC 9000 6.2)."""
    cdef size_t i
    if (
        not c.is_client or c.authentic or c.has_retry
        or not cid_is(&c.source, h.dcid, h.dcid_size)
        or not cid_is(&c.original, h.scid, h.scid_size)
    ):
        count_drop(c, h.type, h.size, DROP_UNEXPECTED)
        return
    if c.shared.trace is not NULL:
        conn_trace_received(c, h.type, 0, h.size, 0, NULL, 0)
    for i in range(0, h.token_size - 3, 4):
        if load_u32(h.token + i) == VERSION_1:
            return  # It lists what we have chosen: not a true answer.
    conn_lose(c, CLOSED_NO_VERSION)


# --- Frames ---------------------------------------------------------------------------

cdef void on_payload(
    Conn* c, Arrival* a, const uint8_t* data, size_t size, int64_t now
) noexcept nogil:
    cdef Reader r
    cdef Frame f
    cdef int status
    if size == 0:
        conn_fail(c, E_PROTOCOL_VIOLATION, 0, now)  # RFC 9000 12.4.
        return
    if a.path < 0:
        a.path = add_path(c, a)
        if a.path < 0:
            return
    a.eliciting = False
    a.moves = False
    reader_init(&r, data, size)
    while reader_left(&r):
        status = frame_parse(&f, &r, a.header.type, not c.is_client)
        if status == OK:
            if frame_is_ack_eliciting(f.type):
                a.eliciting = True
            if not frame_is_probing(f.type):
                a.moves = True
            status = on_frame(c, a, &f, now)
        if status != OK:
            conn_fail(c, status, f.wire_type, now)
            return
        if not conn_is_alive(c):
            return
    if c.discarded[a.space]:
        return
    note_received(c, a, now)
    # What was consumed meanwhile may have raised a limit.
    if streams_has_frames(&c.streams):
        conn_list(c, CONNS_SEND)
    if (
        a.space == APPLICATION and a.path != <int> c.path and a.moves
        and a.pn == c.recv[a.space].largest
        and c.paths[a.path].used  # It may have lost its connection ID just now.
    ):
        move(c, a.path, now)


cdef void note_received(Conn* c, Arrival* a, int64_t now) noexcept nogil:
    """Decide when the packet is acknowledged (RFC 9000 13.2.1, 13.2.2)."""
    cdef RecvSpace* rs = &c.recv[a.space]
    cdef bint first = rs.received.count == 0
    cdef bint in_order = a.pn == (0 if first else rs.largest + 1)
    if ranges_add(&rs.received, a.pn, a.pn + 1) != OK:
        conn_fail(c, OUT_OF_MEMORY, 0, now)
        return
    if a.ecn:
        rs.counts_ecn = True
        if a.ecn == ECN_CE:
            rs.ecn.ce += 1
        elif a.ecn == 2:
            rs.ecn.ect0 += 1
        else:
            rs.ecn.ect1 += 1
    if first or a.pn > rs.largest:
        rs.largest = a.pn
        # The wait for keys is a delay of ours, too (section 13.2.5).
        rs.largest_time = a.time
    if not a.eliciting:
        return
    rs.eliciting += 1
    if not in_order and not first:
        # The sender's window shrinks, and it may be too small for two packets an ACK.
        rs.prompt_until = now + c.recovery.rtt.smoothed
    if (
        rs.eliciting >= 2 or a.space != APPLICATION or not in_order
        or a.ecn == ECN_CE or now < rs.prompt_until
    ):
        rs.ack_at = now
        conn_list(c, CONNS_SEND)
    elif rs.ack_at == INT64_MAX:
        rs.ack_at = now + min(
            c.shared.settings.ack_delay,
            max(
                c.recovery.rtt.smoothed >> ACK_DELAY_SHIFT, <int64_t> ACK_DELAY_MIN
            ),
        )


cdef int on_frame(Conn* c, Arrival* a, Frame* f, int64_t now) noexcept nogil:
    """Hand one frame to whom it concerns: OK, OUT_OF_MEMORY or a code to close with."""
    cdef int status
    cdef const uint8_t* view = NULL
    if f.type == FRAME_STREAM:
        return streams_on_stream_frame(
            &c.streams, f.body.data.stream_id, f.body.data.offset, f.body.data.data,
            f.body.data.size, f.body.data.fin, now
        )
    if f.type == FRAME_ACK or f.type == FRAME_ACK_ECN:
        return on_ack(c, a, &f.body.ack, f.type == FRAME_ACK_ECN, now)
    if f.type == FRAME_CRYPTO:
        status = reassembly_on_crypto(
            &c.crypto_in[a.space], f.body.data.offset, f.body.data.data,
            f.body.data.size
        )
        if status == OK and reassembly_peek(&c.crypto_in[a.space], &view):
            conn_list(c, CONNS_TLS)
        return status
    if f.type == FRAME_MAX_DATA:
        streams_on_max_data(&c.streams, f.body.value)
        conn_list(c, CONNS_SEND)
        return OK
    if f.type == FRAME_MAX_STREAM_DATA:
        conn_list(c, CONNS_SEND)
        return streams_on_max_stream_data(
            &c.streams, f.body.stream_value.stream_id, f.body.stream_value.value, now
        )
    if f.type == FRAME_STOP_SENDING:
        conn_list(c, CONNS_SEND)
        return streams_on_stop_sending(
            &c.streams, f.body.stream_value.stream_id, f.body.stream_value.value, now
        )
    if f.type == FRAME_RESET_STREAM:
        return streams_on_reset_stream(
            &c.streams, f.body.reset_stream.stream_id, f.body.reset_stream.error_code,
            f.body.reset_stream.final_size, now
        )
    return on_rare_frame(c, a, f, now)


cdef int on_rare_frame(Conn* c, Arrival* a, Frame* f, int64_t now) noexcept nogil:
    if f.type == FRAME_MAX_STREAMS_BIDI or f.type == FRAME_MAX_STREAMS_UNI:
        return streams_on_max_streams(
            &c.streams, f.type == FRAME_MAX_STREAMS_UNI, f.body.value
        )
    if f.type == FRAME_STREAM_DATA_BLOCKED:
        return streams_on_stream_data_blocked(
            &c.streams, f.body.stream_value.stream_id, now
        )
    if f.type == FRAME_STREAMS_BLOCKED_BIDI or f.type == FRAME_STREAMS_BLOCKED_UNI:
        return streams_on_streams_blocked(&c.streams, f.body.value)
    if f.type == FRAME_NEW_CONNECTION_ID:
        return on_new_cid(c, f)
    if f.type == FRAME_RETIRE_CONNECTION_ID:
        return on_retire_cid(c, a, f.body.value)
    if f.type == FRAME_PATH_CHALLENGE:
        if path_on_challenge(&c.paths[a.path], f.body.path_data):
            conn_list(c, CONNS_SEND)
        return OK
    if f.type == FRAME_PATH_RESPONSE:
        return on_path_response(c, a, f.body.path_data, now)
    if f.type == FRAME_NEW_TOKEN:
        return on_new_token(c, f)
    if f.type == FRAME_HANDSHAKE_DONE:
        conn_confirm(c, now)
        return OK
    if f.type == FRAME_CONNECTION_CLOSE or f.type == FRAME_CONNECTION_CLOSE_APP:
        conn_drain(
            c, f.type == FRAME_CONNECTION_CLOSE_APP, f.body.close.error_code,
            f.body.close.frame_type, f.body.close.reason, f.body.close.reason_size, now
        )
    # PADDING, PING and DATA_BLOCKED ask for nothing.
    return OK


cdef int on_new_token(Conn* c, Frame* f) noexcept nogil:
    cdef uint8_t* token
    if f.body.data.size > TOKEN_SIZE_KEPT:
        return OK
    token = <uint8_t*> malloc(f.body.data.size)
    if token is NULL:
        return OUT_OF_MEMORY
    memcpy(token, f.body.data.data, f.body.data.size)
    free(c.new_token)
    c.new_token = token
    c.new_token_size = f.body.data.size
    return tokenstore_put(
        &c.shared.given, &c.paths[c.path].remote, token, f.body.data.size
    )


# --- Acknowledgements -----------------------------------------------------------------

cdef int on_ack(
    Conn* c, Arrival* a, AckFrame* ack, bint with_ecn, int64_t now
) noexcept nogil:
    cdef Range ranges[256]
    cdef AckIterator it
    cdef EcnCounts ecn
    cdef uint32_t count = 0
    cdef int status
    ack_iterate(&it, ack)
    # The array has ACK_RANGES_READ elements.
    while count < ACK_RANGES_READ and ack_next(
        &it, &ranges[count].start, &ranges[count].end
    ):
        count += 1
    if with_ecn:
        ecn.ect0 = ack.ect0
        ecn.ect1 = ack.ect1
        ecn.ce = ack.ce
    if a.space == APPLICATION and ack.largest >= c.seal_start:
        # Whoever acknowledges new keys has them, and uses them (RFC 9001 6.2).
        if c.seal_phase != c.open_phase or a.opened_old:
            if not c.seal_acked and ack.largest < c.recovery.spaces[a.space].next_pn:
                return E_KEY_UPDATE
        c.seal_acked = True
    status = recovery_on_ack_received(
        &c.recovery, a.space, ranges, count, ack_delay(ack, c.peer_ack_exponent),
        &ecn if with_ecn else NULL, now
    )
    if status != OK:
        return status
    c.streams.rtt = c.recovery.rtt.smoothed if c.recovery.rtt.latest else 0
    conn_settle(c, now)
    if c.recovery.spaces[a.space].skip_at == <uint64_t> -1 and c.confirmed:
        recovery_skip(
            &c.recovery, APPLICATION,
            SKIP_MIN + random_below(&c.shared.random, SKIP_SPREAD)
        )
    # The congestion window has moved.
    conn_list(c, CONNS_SEND)
    return OK


cdef void conn_settle(Conn* c, int64_t now) noexcept nogil:
    cdef SentFrame* f = recovery_next_acked(&c.recovery)
    cdef int status = OK
    if c.shared.trace is not NULL:
        conn_trace_recovery(c, now)
    while f is not NULL:
        if f.kind >= SENT_OF_STREAMS:
            status |= streams_on_frame_acked(
                &c.streams, f.kind - SENT_OF_STREAMS, f.id, f.offset, f.length, f.fin
            )
        elif f.kind == SENT_ACK:
            # The peer knows of these (RFC 9000 13.2.4).
            if f.id > ACK_MEMORY:
                ranges_forget(&c.recv[f.space].received, f.id - ACK_MEMORY)
        elif f.kind == SENT_CRYPTO:
            status |= sendbuf_on_acked(
                &c.crypto_out[f.space], f.offset, f.length, False
            )
        elif f.kind == SENT_RETIRE_CONNECTION_ID:
            remote_cids_acked(&c.remote, f.id)
        recovery_release(&c.recovery, f)
        f = recovery_next_acked(&c.recovery)
    f = recovery_next_lost(&c.recovery)
    if f is not NULL:
        conn_list(c, CONNS_SEND)
    while f is not NULL:
        status |= on_lost(c, f)
        recovery_release(&c.recovery, f)
        f = recovery_next_lost(&c.recovery)
    if status != OK:
        conn_fail(c, OUT_OF_MEMORY, 0, now)


cdef int on_lost(Conn* c, const SentFrame* f) noexcept nogil:
    """Have a lost frame sent again, if what it said is still true (RFC 9000 13.3)."""
    if f.kind >= SENT_OF_STREAMS:
        return streams_on_frame_lost(
            &c.streams, f.kind - SENT_OF_STREAMS, f.id, f.offset, f.length, f.fin
        )
    if f.kind == SENT_CRYPTO:
        return sendbuf_on_lost(&c.crypto_out[f.space], f.offset, f.length, False)
    if f.kind == SENT_NEW_CONNECTION_ID:
        local_cids_lost(&c.local, f.id)
        c.control_due = True
    elif f.kind == SENT_RETIRE_CONNECTION_ID:
        remote_cids_lost(&c.remote, f.id)
        c.control_due = True
    elif f.kind == SENT_HANDSHAKE_DONE:
        c.handshake_done_due = True
    elif f.kind == SENT_NEW_TOKEN:
        c.token_due = True
    return OK


# --- Connection IDs and paths ---------------------------------------------------------

cdef int on_new_cid(Conn* c, Frame* f) noexcept nogil:
    cdef Path* p
    cdef RemoteCid* one
    cdef uint32_t i
    cdef int status = remote_cids_add(
        &c.remote, f.body.new_connection_id.sequence,
        f.body.new_connection_id.retire_prior_to, f.body.new_connection_id.cid,
        f.body.new_connection_id.cid_size, f.body.new_connection_id.token
    )
    if status != OK:
        return status
    c.control_due = True
    conn_list(c, CONNS_SEND)
    for i in range(PATHS_MAX):
        p = &c.paths[i]
        if p.used and remote_cids_find(&c.remote, p.sequence) is NULL:
            one = remote_cids_take(&c.remote)
            if one is NULL:
                if i == c.path:
                    return E_PROTOCOL_VIOLATION  # It has retired them all.
                p.used = False
                continue
            p.sequence = one.sequence
            p.cid = one.cid
    return OK


cdef int on_retire_cid(Conn* c, Arrival* a, uint64_t sequence) noexcept nogil:
    cdef Cid retired
    cdef bint removed = False
    cdef int status = local_cids_retire(
        &c.local, sequence, a.header.dcid, a.header.dcid_size, &retired, &removed
    )
    if status != OK or not removed:
        return status
    cidmap_remove(&c.shared.cids, &retired, c)
    conn_list(c, CONNS_SEND)
    return conn_issue_cids(c)


cdef int add_path(Conn* c, Arrival* a) noexcept nogil:
    """Note the address that an authentic packet came from; -1 if it cannot be."""
    cdef RemoteCid* one
    cdef Path* current = &c.paths[c.path]
    cdef int i
    cdef int chosen = -1
    for i in range(PATHS_MAX):
        if not c.paths[i].used:
            chosen = i
            break
        # The unproven go first.
        if i != <int> c.path and (chosen < 0 or not c.paths[i].validated):
            chosen = i
    if c.paths[chosen].used and conn_forget_path(c, chosen) != OK:
        return -1
    one = remote_cids_take(&c.remote)
    if one is NULL:
        # A peer whose address was changed for it did not choose another identifier
        # either (RFC 9000 9.5).
        path_init(&c.paths[chosen], a.source, &current.cid, current.sequence)
    else:
        path_init(&c.paths[chosen], a.source, &one.cid, one.sequence)
    c.paths[chosen].received = a.datagram
    return chosen


cdef void move(Conn* c, int path, int64_t now) noexcept nogil:
    """Follow the peer to another address (RFC 9000 9.3)."""
    cdef Path* before = &c.paths[c.path]
    c.stats.path_changes += 1
    if conn_route(c, path) != OK:
        conn_fail(c, OUT_OF_MEMORY, 0, now)
        return
    if c.shared.trace is not NULL:
        conn_trace_path(c)
    # Who is still there says so, and so takes back what a forwarder of its packets
    # took away (section 9.3.3).
    path_validate(before, now, conn_pto(c))
    # A new port is most likely a rebinding on the same path (section 9.4).
    if not address_is_host(&before.remote, &c.paths[path].remote):
        recovery_on_path_change(&c.recovery, now)
    if not c.paths[path].validated:
        # On an unknown path with the timer of its first round trip (section 8.2.4).
        path_validate(&c.paths[path], now, conn_pto(c))
    c.recovery.blocked = False
    conn_list(c, CONNS_SEND)


cdef int on_path_response(
    Conn* c, const Arrival* a, const uint8_t* data, int64_t now
) noexcept nogil:
    """Validate the path whose challenge this answers (RFC 9000 8.2.3)."""
    cdef Path* p
    cdef int i
    cdef int status = OK
    for i in range(PATHS_MAX):
        if c.paths[i].used and path_on_response(&c.paths[i], data, now):
            c.recovery.blocked = False
            conn_list(c, CONNS_SEND)
            break
    else:
        return OK
    p = &c.paths[c.path]
    if not p.validated or path_is_asked(p):
        return OK
    for i in range(PATHS_MAX):
        p = &c.paths[i]
        # The answer may have come from yet another address: the peer moved again.
        if (
            status == OK and p.used and not path_is_asked(p)
            and i != <int> c.path and i != a.path
        ):
            status = conn_forget_path(c, i)
    return status
