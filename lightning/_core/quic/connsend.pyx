"""Sending: datagram, packet, frame."""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from lightning._core.quic.buffer cimport (
    APPLICATION, E_APPLICATION, FRAME_CONNECTION_CLOSE, FRAME_CONNECTION_CLOSE_APP,
    FRAME_HANDSHAKE_DONE, FRAME_PADDING, FRAME_PATH_CHALLENGE, FRAME_PATH_RESPONSE,
    FRAME_PING, FRAME_RETIRE_CONNECTION_ID, HANDSHAKE, INITIAL, OK, OUT_OF_MEMORY,
    SPACE_COUNT, Writer, writer_init, writer_left, writer_size
)
from lightning._core.quic.cids cimport (
    LocalCid, Retirement, local_cid_retire_prior_to, local_cids_to_send,
    remote_cids_to_send
)
from lightning._core.quic.connstate cimport (
    CONN_CLOSING, CONN_OPEN, KEY_MARGIN, SENT_OF_STREAMS, TRIM_AFTER, RecvSpace,
    conn_awaits_tls, conn_discard, conn_fail, conn_idle_timeout, conn_is_alive,
    conn_keep_alive, conn_may_update, conn_update_sealing
)
from lightning._core.quic.conntrace cimport conn_trace_sent
from lightning._core.quic.frames cimport (
    crypto_frame_fit, frame_begin_crypto, frame_write_ack, frame_write_bare,
    frame_write_close, frame_write_new_connection_id, frame_write_new_token,
    frame_write_padding, frame_write_path, frame_write_value
)
from lightning._core.quic.mtu cimport MTU_MIN_STEP, mtu_next_probe
from lightning._core.quic.packet cimport (
    INITIAL_DATAGRAM_MIN, PACKET_HANDSHAKE, PACKET_INITIAL, PacketBuild, TAG_SIZE,
    packet_begin_long, packet_begin_short, packet_number_size, packet_set_length
)
from lightning._core.quic.paths cimport (
    PATH_ROOM_MIN, PATHS_MAX, Path, path_challenge_sent, path_response_sent,
    path_room
)
from lightning._core.quic.protection cimport (
    SEAL_MIN, PacketKey, packet_key_left, protection_seal
)
from lightning._core.quic.recovery cimport (
    recovery_datagram_size, recovery_drop_pending, recovery_frame, recovery_marks_ecn,
    recovery_next_pn, recovery_next_send_time, recovery_on_packet_sent,
    recovery_on_path_probe_sent, recovery_room
)
from lightning._core.quic.secrets cimport random_bytes, token_make_new
from lightning._core.quic.sendbuf cimport (
    sendbuf_on_lost, sendbuf_peek, sendbuf_take
)
from lightning._core.quic.sent cimport (
    PACKET_ACK_ELICITING, PACKET_ECT0, PACKET_IN_FLIGHT, PACKET_MTU_PROBE,
    PACKET_PATH_PROBE, SENT_ACK, SENT_CRYPTO, SENT_HANDSHAKE_DONE, SENT_IDLE_CAPACITY,
    SENT_NEW_CONNECTION_ID, SENT_NEW_TOKEN, SENT_RETIRE_CONNECTION_ID, SentFrame
)
from lightning._core.quic.streamsend cimport (
    STREAMS_MIN_ROOM, StreamFrame, streams_has_frames, streams_write_frames
)

cdef enum:
    # ACKs that went out alone, with many ranges, after which a PING asks the peer to
    # acknowledge them, so that ranges can be forgotten (RFC 9000 13.2.4).
    LONELY_ACKS = 8
    LONELY_RANGES = 8
    # Datagrams in a congestion window below which a rest of half a datagram or more is
    # filled too: of six, as at 5 % loss, the rest is a twelfth on average.
    SMALL_WINDOW = 16
    ECN_ECT0 = 2


# A packet that is written and not sealed yet.
cdef struct Draft:
    PacketBuild build
    SentFrame* records
    uint8_t* payload
    uint8_t* end
    int space
    uint8_t flags


# A datagram that is being written.
cdef struct Datagram:
    Writer w
    Draft drafts[3]
    int count
    bint pads  # to INITIAL_DATAGRAM_MIN
    bint data  # congestion control and pacing let data go
    uint8_t ecn


cdef size_t conn_write(
    Conn* c, uint8_t* out, size_t capacity, int64_t now, Address* to, uint8_t* ecn
) noexcept nogil:
    cdef size_t size
    cdef uint32_t i
    ecn[0] = 0
    if c.state == CONN_CLOSING:
        to[0] = c.paths[c.path].remote
        return write_close(c, out, capacity, now)
    if not conn_is_alive(c) or conn_awaits_tls(c):
        return 0
    c.streams.now = now
    for i in range(PATHS_MAX):
        if c.paths[i].used and (c.paths[i].challenge_due or c.paths[i].responses):
            to[0] = c.paths[i].remote
            size = write_probe(c, &c.paths[i], out, capacity, now)
            if size:
                return size
    to[0] = c.paths[c.path].remote
    size = write_datagram(c, out, capacity, now, ecn)
    if size == 0 and c.probe_mtu and conn_is_alive(c):
        size = write_mtu_probe(c, out, capacity, now)
    return size


cdef size_t write_datagram(
    Conn* c, uint8_t* out, size_t capacity, int64_t now, uint8_t* ecn
) noexcept nogil:
    cdef Path* p = &c.paths[c.path]
    cdef Datagram d
    cdef uint64_t room = path_room(p)
    cdef size_t limit
    cdef int64_t when
    cdef int space
    cdef bint probes = False
    d.count = 0
    d.pads = False
    c.pacing_at = INT64_MAX
    for space in range(SPACE_COUNT):
        probes |= c.recovery.spaces[space].probes != 0
    limit = min(
        capacity, <size_t> (c.recovery.mtu.base if probes else c.recovery.mtu.current)
    )
    if room < limit:
        # RFC 9000 8.1: a server waits for more from the client.
        if room < <uint64_t> STREAMS_MIN_ROOM:
            c.recovery.blocked = True
            return 0
        limit = <size_t> room
    room = recovery_room(&c.recovery)
    if (
        limit >> 1 <= room < limit and c.confirmed and not probes
        and c.recovery.cc.cwnd < SMALL_WINDOW * <uint64_t> c.recovery.mtu.current
    ):
        limit = <size_t> room
    d.data = room >= limit
    if d.data:
        when = recovery_next_send_time(&c.recovery, <uint32_t> limit, now)
        if when > now:
            d.data = False
            if has_data(c):
                c.pacing_at = when
    d.ecn = PACKET_ECT0 if recovery_marks_ecn(&c.recovery) else 0
    writer_init(&d.w, out, limit)
    for space in range(SPACE_COUNT):
        if c.can_seal[space] and not c.discarded[space]:
            write_packet(c, &d, space, now)
            if not conn_is_alive(c):
                return 0
    if d.count == 0:
        return 0
    if d.ecn:
        ecn[0] = ECN_ECT0
    return finish(c, &d, p, now)


cdef bint has_data(Conn* c) noexcept nogil:
    """Say if there is something that pacing may hold back."""
    cdef int space
    for space in range(SPACE_COUNT):
        if c.can_seal[space] and wants(c, space, False):
            return True
    return False


# --- Packets --------------------------------------------------------------------------

cdef bint begin(Conn* c, Datagram* d, int space, const Path* p) noexcept nogil:
    """Write a packet's header; its tag's room is set aside."""
    cdef Draft* draft = &d.drafts[d.count]
    cdef uint64_t pn = recovery_next_pn(&c.recovery, space)
    cdef unsigned int pn_size = packet_number_size(
        pn, <int64_t> c.recovery.spaces[space].largest_acked - 1
    )
    cdef int status
    if writer_left(&d.w) < <size_t> TAG_SIZE:
        return False
    d.w.end -= <int> TAG_SIZE
    if space == APPLICATION:
        status = packet_begin_short(
            &d.w, &draft.build, &p.cid, c.seal_phase, pn, pn_size
        )
    else:
        status = packet_begin_long(
            &d.w, &draft.build,
            PACKET_INITIAL if space == INITIAL else PACKET_HANDSHAKE, &p.cid,
            &c.source, c.token if space == INITIAL else NULL,
            c.token_size if space == INITIAL else 0, pn, pn_size
        )
    draft.space = space
    draft.payload = d.w.pos
    draft.flags = 0
    draft.records = NULL
    if status == OK:
        if writer_left(&d.w) >= <size_t> SEAL_MIN:
            return True
        d.w.pos = draft.build.start
    d.w.end += <int> TAG_SIZE
    return False


cdef void rollback(Conn* c, Datagram* d) noexcept nogil:
    d.w.pos = d.drafts[d.count].build.start
    d.w.end += <int> TAG_SIZE
    recovery_drop_pending(&c.recovery)


cdef void commit(Conn* c, Datagram* d) noexcept nogil:
    """Keep the packet; recovery is told of it when its size is known."""
    cdef Draft* draft = &d.drafts[d.count]
    # Header protection samples 16 bytes, the tag is 16 (RFC 9001 5.4.2); `begin` has
    # seen that there is room.
    while draft.build.pn_size + <size_t> (d.w.pos - draft.payload) < SEAL_MIN:
        d.w.pos[0] = FRAME_PADDING
        d.w.pos += 1
        draft.flags |= PACKET_IN_FLIGHT
    draft.end = d.w.pos
    draft.records = c.recovery.pending
    c.recovery.pending = NULL
    d.count += 1
    # The tag.
    d.w.end += <int> TAG_SIZE
    d.w.pos += <int> TAG_SIZE


cdef void write_packet(Conn* c, Datagram* d, int space, int64_t now) noexcept nogil:
    """Write a packet of a space, if there is anything to say in it."""
    cdef RecvSpace* rs = &c.recv[space]
    cdef Draft* draft = &d.drafts[d.count]
    cdef bint ack_due = rs.ack_at <= now
    cdef bint probe = c.recovery.spaces[space].probes != 0
    cdef bint data = d.data or probe
    cdef bint acked
    cdef uint8_t* start
    cdef int status
    if space != APPLICATION and not c.recovery.spaces[space].sent.ack_eliciting:
        # Packets that cannot be acknowledged before the handshake is complete must not
        # fill the window for what completes it.
        data = True
    if not ack_due and not (data and wants(c, space, probe)):
        return
    if not begin(c, d, space, &c.paths[c.path]):
        return
    start = d.w.pos
    if rs.eliciting or ack_due:
        status = write_ack(c, d, rs, space, now)
        if status != OK:
            rollback(c, d)
            conn_fail(c, status, 0, now)
            return
    acked = d.w.pos != start
    if data and not write_frames(c, d, space, now):
        rollback(c, d)
        conn_fail(c, OUT_OF_MEMORY, 0, now)
        return
    if probe and not draft.flags & PACKET_ACK_ELICITING:
        # Nothing was there to be sent again (RFC 9002 6.2.4).
        if frame_write_bare(&d.w, FRAME_PING) == OK:
            draft.flags |= PACKET_ACK_ELICITING
    if (
        not draft.flags & PACKET_ACK_ELICITING and rs.lonely >= LONELY_ACKS
        and rs.received.count >= LONELY_RANGES
        and frame_write_bare(&d.w, FRAME_PING) == OK
    ):
        draft.flags |= PACKET_ACK_ELICITING
    if d.w.pos == start:
        rollback(c, d)
        return
    # An ACK that is only held back does not go alone.
    if not draft.flags & PACKET_ACK_ELICITING and not ack_due:
        rollback(c, d)
        return
    if acked:
        ack_written(c, rs, space, draft.flags & PACKET_ACK_ELICITING)
    if space == INITIAL and (c.is_client or draft.flags & PACKET_ACK_ELICITING):
        d.pads = True  # RFC 9000 14.1.
    commit(c, d)


cdef bint wants(Conn* c, int space, bint probe) noexcept nogil:
    """Say if a space has ack-eliciting frames to send."""
    cdef uint64_t offset = 0
    cdef uint64_t size = 0
    if probe:
        return True
    if space != APPLICATION:
        return sendbuf_peek(
            &c.crypto_out[space], <uint64_t> -1, &offset, &size
        )
    return c.state == CONN_OPEN and (
        streams_has_frames(&c.streams) or c.control_due or c.ping_due
        or c.handshake_done_due or c.token_due
        or sendbuf_peek(&c.crypto_out[space], <uint64_t> -1, &offset, &size)
    )


cdef int write_ack(
    Conn* c, Datagram* d, RecvSpace* rs, int space, int64_t now
) noexcept nogil:
    cdef SentFrame* record
    cdef uint64_t delay = 0
    if rs.received.count == 0:
        return OK
    if space == APPLICATION:
        # Our exponent is the default, 3 (RFC 9000 18.2).
        delay = <uint64_t> (now - rs.largest_time) >> 3
    # A packet that is too full for it leaves it due.
    if frame_write_ack(
        &d.w, &rs.received, delay, &rs.ecn if rs.counts_ecn else NULL
    ) != OK:
        return OK
    record = recovery_frame(&c.recovery, SENT_ACK)
    if record is NULL:
        return OUT_OF_MEMORY
    record.id = rs.largest
    return OK


cdef inline void ack_written(
    Conn* c, RecvSpace* rs, int space, bint eliciting
) noexcept nogil:
    rs.eliciting = 0
    rs.ack_at = INT64_MAX
    rs.lonely = 0 if eliciting else rs.lonely + 1
    if space == APPLICATION and rs.largest >= c.open_start:
        c.open_acked = True


cdef bint write_frames(Conn* c, Datagram* d, int space, int64_t now) noexcept nogil:
    """Write the frames that are ack-eliciting; False if there is no memory."""
    cdef Draft* draft = &d.drafts[d.count]
    cdef StreamFrame frames[32]
    cdef SentFrame* record
    cdef uint32_t count, i
    if space == APPLICATION:
        if c.state != CONN_OPEN:
            return True
        if c.handshake_done_due or c.control_due or c.token_due or c.ping_due:
            if not write_control(c, d, now):
                return False
    if not write_crypto(c, d, space):
        return False
    if space != APPLICATION or not streams_has_frames(&c.streams):
        return True
    # `frames` has FRAMES_MAX elements.
    count = streams_write_frames(&c.streams, &d.w, frames, FRAMES_MAX)
    for i in range(count):
        record = recovery_frame(&c.recovery, SENT_OF_STREAMS + frames[i].kind)
        if record is NULL:
            return False
        record.id = frames[i].id
        record.offset = frames[i].offset
        record.length = frames[i].length
        record.fin = frames[i].fin
    if count:
        draft.flags |= PACKET_ACK_ELICITING
    return True


cdef bint write_crypto(Conn* c, Datagram* d, int space) noexcept nogil:
    cdef Draft* draft = &d.drafts[d.count]
    cdef SentFrame* record
    cdef uint64_t offset = 0
    cdef uint64_t size = 0
    cdef size_t piece
    cdef uint8_t* target = NULL
    if c.recovery.spaces[space].probes and not sendbuf_peek(
        &c.crypto_out[space], <uint64_t> -1, &offset, &size
    ):
        # Rather than a PING: a peer without state takes nothing else.
        if sendbuf_on_lost(
            &c.crypto_out[space], c.crypto_out[space].base,
            c.crypto_out[space].sent - c.crypto_out[space].base, False
        ) != OK:
            return False
    while sendbuf_peek(&c.crypto_out[space], <uint64_t> -1, &offset, &size):
        piece = crypto_frame_fit(writer_left(&d.w), offset, size)
        if piece == 0 or frame_begin_crypto(&d.w, offset, piece, &target) != OK:
            return True
        sendbuf_take(&c.crypto_out[space], offset, piece, target)
        record = recovery_frame(&c.recovery, SENT_CRYPTO)
        if record is NULL:
            return False
        record.offset = offset
        record.length = <uint32_t> piece
        draft.flags |= PACKET_ACK_ELICITING
    return True


cdef bint note(Conn* c, Draft* draft, uint8_t kind, uint64_t id) noexcept nogil:
    cdef SentFrame* record = recovery_frame(&c.recovery, kind)
    draft.flags |= PACKET_ACK_ELICITING
    if record is NULL:
        return False
    record.id = id
    return True


cdef bint write_control(Conn* c, Datagram* d, int64_t now) noexcept nogil:
    """Write what is seldom due; False if there is no memory."""
    cdef Draft* draft = &d.drafts[d.count]
    cdef uint8_t token[54]
    cdef size_t size
    if c.handshake_done_due and frame_write_bare(&d.w, FRAME_HANDSHAKE_DONE) == OK:
        c.handshake_done_due = False
        if not note(c, draft, SENT_HANDSHAKE_DONE, 0):
            return False
    if c.token_due:
        size = token_make_new(
            &c.shared.tokens, &c.shared.random, &c.paths[c.path].remote, now, token
        )
        if frame_write_new_token(&d.w, token, size) == OK:
            c.token_due = False
            if not note(c, draft, SENT_NEW_TOKEN, 0):
                return False
    if c.ping_due and frame_write_bare(&d.w, FRAME_PING) == OK:
        c.ping_due = False
        draft.flags |= PACKET_ACK_ELICITING
    return not c.control_due or write_cids(c, d)


cdef bint write_cids(Conn* c, Datagram* d) noexcept nogil:
    cdef Draft* draft = &d.drafts[d.count]
    cdef LocalCid* local = local_cids_to_send(&c.local)
    cdef Retirement* retirement = remote_cids_to_send(&c.remote)
    while local is not NULL:
        if frame_write_new_connection_id(
            &d.w, local.sequence, local_cid_retire_prior_to(&c.local, local),
            local.cid.bytes, local.cid.size, local.token
        ) != OK:
            return True
        local.to_send = False
        if not note(c, draft, SENT_NEW_CONNECTION_ID, local.sequence):
            return False
        local = local_cids_to_send(&c.local)
    while retirement is not NULL:
        if frame_write_value(
            &d.w, FRAME_RETIRE_CONNECTION_ID, retirement.sequence
        ) != OK:
            return True
        retirement.to_send = False
        if not note(c, draft, SENT_RETIRE_CONNECTION_ID, retirement.sequence):
            return False
        retirement = remote_cids_to_send(&c.remote)
    c.control_due = False
    return True


# --- Sealing --------------------------------------------------------------------------

cdef size_t finish(Conn* c, Datagram* d, Path* p, int64_t now) noexcept nogil:
    """Pad and seal what was written, and tell recovery; return the datagram's size."""
    cdef Draft* last = &d.drafts[d.count - 1]
    cdef size_t size = writer_size(&d.w)
    cdef size_t missing = 0
    cdef int i
    cdef bint eliciting = False
    if d.pads and size < INITIAL_DATAGRAM_MIN:
        # An amplification limit below 1200 leaves it smaller; the peer drops it, and
        # the timer sends it again when there is room.
        missing = min(<size_t> INITIAL_DATAGRAM_MIN - size, writer_left(&d.w))
    if missing:
        memset(last.end, 0, missing)
        last.end += missing
        d.w.pos += missing
        last.flags |= PACKET_IN_FLIGHT
    for i in range(d.count):
        if not seal(c, &d.drafts[i], d.ecn, now):
            return 0
        eliciting |= d.drafts[i].flags & PACKET_ACK_ELICITING
    size = writer_size(&d.w)
    note_sent(c, p, size, eliciting, now)
    for i in range(d.count):
        if d.drafts[i].space == HANDSHAKE and c.is_client:
            # RFC 9001 4.9.1: the first Handshake packet has left.
            conn_discard(c, INITIAL, now)
    return size


cdef void note_sent(
    Conn* c, Path* p, size_t size, bint eliciting, int64_t now
) noexcept nogil:
    cdef int64_t timeout
    c.stats.datagrams_sent += 1
    c.stats.bytes_sent += size
    if not p.validated:
        p.sent += size
    if (
        c.trim_at == INT64_MAX
        and c.recovery.spaces[<int> APPLICATION].sent.capacity > SENT_IDLE_CAPACITY
    ):
        c.trim_at = now + TRIM_AFTER
    if not eliciting:
        return
    # RFC 9000 10.1: only the first one since something was received.
    if not c.sent_since_received:
        c.sent_since_received = True
        if c.shared.settings.unresponsive_timeout:
            # See connection_on_timeout.
            c.unresponsive_at = now + c.shared.settings.unresponsive_timeout * 3 // 4
            c.asked_again = False
            c.timeouts_before = c.recovery.stats.timeouts
        timeout = conn_idle_timeout(c)
        if timeout:
            c.idle_at = now + timeout
    if c.shared.settings.keep_alive:
        c.keep_alive_at = now + conn_keep_alive(c)


cdef bint seal(Conn* c, Draft* draft, uint8_t ecn, int64_t now) noexcept nogil:
    """Seal one packet in place; False if the connection cannot go on."""
    cdef size_t payload = <size_t> (draft.end - draft.payload)
    cdef size_t header = <size_t> (draft.payload - draft.build.start)
    cdef uint64_t pn = recovery_next_pn(&c.recovery, draft.space)
    cdef Writer end
    cdef int status
    end.start = draft.build.start
    end.pos = draft.end
    end.end = draft.end
    packet_set_length(&draft.build, &end)
    if draft.space == APPLICATION:
        update_keys(c, draft)
    if c.shared.trace is not NULL:
        conn_trace_sent(
            c, draft.space, pn, header + payload + TAG_SIZE, draft.flags | ecn,
            draft.payload, payload
        )
    status = protection_seal(
        &c.sealing[draft.space].header, &c.sealing[draft.space].packet, pn,
        draft.build.start, header, draft.build.pn_size, draft.payload, payload
    )
    c.recovery.pending = draft.records
    if status == OK and draft.flags & PACKET_PATH_PROBE:
        recovery_on_path_probe_sent(&c.recovery)
    elif status == OK:
        status = recovery_on_packet_sent(
            &c.recovery, draft.space, <uint16_t> (header + payload + TAG_SIZE),
            draft.flags | ecn, now
        )
    else:
        recovery_drop_pending(&c.recovery)
    if status != OK:
        conn_fail(c, status, 0, now)
        return False
    # Whoever sends nothing large needs no larger datagrams.
    if (
        draft.space == APPLICATION
        and draft.flags & (PACKET_ACK_ELICITING | PACKET_PATH_PROBE)
        == PACKET_ACK_ELICITING
        and (
            c.recovery.mtu.searching
            or header + payload + TAG_SIZE + MTU_MIN_STEP > c.recovery.mtu.current
        )
    ):
        c.probe_mtu = True
    return True


cdef void update_keys(Conn* c, Draft* draft) noexcept nogil:
    """Begin the next key phase before this one's limit (RFC 9001 6.6)."""
    cdef PacketKey* key = &c.sealing[<int> APPLICATION].packet
    cdef uint64_t after = c.shared.settings.key_update_after
    if (not after or key.sealed < after) and packet_key_left(key) > KEY_MARGIN:
        return
    if conn_may_update(c) and conn_update_sealing(c) == OK:
        # The phase bit was written with the header (RFC 9000 17.3.1).
        draft.build.start[0] ^= 0x04


# --- Datagrams of their own -----------------------------------------------------------

cdef size_t write_probe(
    Conn* c, Path* p, uint8_t* out, size_t capacity, int64_t now
) noexcept nogil:
    """Write PATH_CHALLENGE and PATH_RESPONSE for one path (RFC 9000 8.2)."""
    cdef Datagram d
    cdef uint8_t random[8]
    cdef size_t limit = min(
        <uint64_t> min(capacity, <size_t> INITIAL_DATAGRAM_MIN), path_room(p)
    )
    cdef uint8_t* start
    if limit < PATH_ROOM_MIN or not c.can_seal[<int> APPLICATION]:
        return 0
    d.count = 0
    d.ecn = 0
    # What proves an address proves that its path takes 1200 bytes, unless the
    # amplification limit is in the way (section 8.2.1).
    d.pads = True
    writer_init(&d.w, out, limit)
    if not begin(c, &d, APPLICATION, p):
        return 0
    start = d.w.pos
    if p.challenge_due:
        random_bytes(&c.shared.random, random, 8)
        if frame_write_path(&d.w, FRAME_PATH_CHALLENGE, random) == OK:
            path_challenge_sent(p, random, limit < <size_t> INITIAL_DATAGRAM_MIN, now)
    if p.responses and p == &c.paths[c.path]:
        # Not for probing alone: whoever asks whether its peer is still here is to hear
        # it from here, also if somebody forwards our packets (section 9.3.3).
        frame_write_bare(&d.w, FRAME_PING)
    while p.responses and frame_write_path(
        &d.w, FRAME_PATH_RESPONSE, p.response[0]
    ) == OK:
        path_response_sent(p)
    if d.w.pos == start:
        rollback(c, &d)
        return 0
    d.drafts[0].flags = PACKET_ACK_ELICITING | PACKET_PATH_PROBE
    commit(c, &d)
    return finish(c, &d, p, now)


cdef size_t write_mtu_probe(
    Conn* c, uint8_t* out, size_t capacity, int64_t now
) noexcept nogil:
    """Write a probe of a larger datagram, when there is nothing else (RFC 8899)."""
    cdef Datagram d
    cdef uint32_t size
    if (
        not c.confirmed or not c.paths[c.path].validated
        or recovery_datagram_size(&c.recovery, APPLICATION) != c.recovery.mtu.current
    ):
        c.probe_mtu = False
        return 0
    size = mtu_next_probe(&c.recovery.mtu, now)
    if size > capacity:
        return 0  # It is for a datagram that has the room.
    c.probe_mtu = False
    if size == 0 or recovery_room(&c.recovery) < size:
        return 0
    d.count = 0
    d.ecn = 0
    d.pads = False
    writer_init(&d.w, out, size)
    if not begin(c, &d, APPLICATION, &c.paths[c.path]):
        return 0
    frame_write_bare(&d.w, FRAME_PING)
    frame_write_padding(&d.w, writer_left(&d.w))
    d.drafts[0].flags = PACKET_ACK_ELICITING | PACKET_MTU_PROBE
    commit(c, &d)
    size = <uint32_t> finish(c, &d, &c.paths[c.path], now)
    # One probe at a time; what was acknowledged asks for the next.
    c.probe_mtu = False
    return size


cdef size_t write_close(
    Conn* c, uint8_t* out, size_t capacity, int64_t now
) noexcept nogil:
    """Write CONNECTION_CLOSE for every space that the peer may read (10.2.3)."""
    cdef Datagram d
    cdef Path* p = &c.paths[c.path]
    cdef size_t limit = min(
        <uint64_t> min(capacity, <size_t> SEND_ROOM_MIN), path_room(p)
    )
    cdef int space, status
    if not c.close_due:
        return 0
    c.close_due = False
    d.count = 0
    d.ecn = 0
    d.pads = False
    if limit < PATH_ROOM_MIN:
        return 0
    writer_init(&d.w, out, limit)
    for space in range(SPACE_COUNT):
        if not c.can_seal[space] or c.discarded[space]:
            continue
        # A server's 1-RTT packets are not read before the handshake is complete.
        if space == APPLICATION and not c.is_client and not c.confirmed:
            continue
        if not begin(c, &d, space, p):
            break
        if c.close_app and space == APPLICATION:
            status = frame_write_close(
                &d.w, FRAME_CONNECTION_CLOSE_APP, c.close_code, 0, c.close_reason,
                c.close_reason_size
            )
        elif c.close_app:
            # What the application says is not for packets that others can read.
            status = frame_write_close(
                &d.w, FRAME_CONNECTION_CLOSE, E_APPLICATION, 0, NULL, 0
            )
        else:
            status = frame_write_close(
                &d.w, FRAME_CONNECTION_CLOSE, c.close_code, c.close_frame,
                c.close_reason, c.close_reason_size
            )
        if status != OK:
            rollback(c, &d)
            break
        if space == INITIAL and c.is_client:
            d.pads = True
        commit(c, &d)
    if d.count == 0:
        return 0
    return finish(c, &d, p, now)
