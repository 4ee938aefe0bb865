"""Frames of streams: written, acknowledged, lost.

Source: RFC 9000 sections 2.3, 3.1, 3.5, 4 and 13.3.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lightning._core.quic.buffer cimport (
    FRAME_DATA_BLOCKED, FRAME_MAX_DATA, FRAME_MAX_STREAM_DATA, FRAME_MAX_STREAMS_BIDI,
    FRAME_RESET_STREAM, FRAME_STOP_SENDING, FRAME_STREAM, FRAME_STREAM_DATA_BLOCKED,
    FRAME_STREAMS_BLOCKED_BIDI, OK, STREAM_FIN, STREAM_LEN, STREAM_OFF, Writer,
    varint_size, writer_left, writer_skip, writer_u8, writer_varint,
)
from lightning._core.quic.flow cimport (
    credit_lost, limit_block, limit_left, limit_lost, window_lost,
)
from lightning._core.quic.sendbuf cimport (
    FIN_DUE, sendbuf_drop, sendbuf_is_acked, sendbuf_is_sent, sendbuf_on_acked,
    sendbuf_on_lost, sendbuf_peek, sendbuf_size, sendbuf_take,
)
from lightning._core.quic.streamtable cimport (
    DUE_DATA_BLOCKED, DUE_MAX_DATA, DUE_MAX_STREAM_DATA, DUE_MAX_STREAMS,
    DUE_RESET_STREAM, DUE_STOP_SENDING, DUE_STREAM_DATA_BLOCKED, DUE_STREAMS_BLOCKED,
    EVENT_ACKED, EVENT_WRITABLE, LIST_BLOCKED, LIST_CONTROL, LIST_READY,
    LIST_WAITING, RECV_RECV, SEND_DATA_RECVD, SEND_DATA_SENT, SEND_READY,
    SEND_RESET_RECVD, SEND_RESET_SENT, SEND_SEND, Stream, StreamTable,
    list_push, list_push_first, list_remove, table_due, table_event, table_find,
    table_settle,
)

# The longest length that two bytes hold; a longer piece is two frames.
cdef enum: MAX_PIECE = 0x3FFF


cdef uint32_t streams_write_frames(
    StreamTable* t, Writer* w, StreamFrame* out, uint32_t limit
) noexcept nogil:
    cdef uint32_t count = write_connection(t, w, out, limit)
    count += write_control(t, w, out + count, limit - count)
    count += write_data(t, w, out + count, limit - count)
    # That ran into a limit, perhaps: tell the peer in the same packet.
    if t.due:
        count += write_connection(t, w, out + count, limit - count)
    if t.first[LIST_CONTROL] is not NULL:
        count += write_control(t, w, out + count, limit - count)
    return count


cdef int streams_on_frame_acked(
    StreamTable* t, uint8_t kind, uint64_t id, uint64_t offset, uint32_t length,
    bint fin,
) noexcept nogil:
    cdef Stream* s
    cdef uint64_t size
    cdef int status
    # The limits and what is blocked need no acknowledgement, only no loss.
    if kind != FRAME_STREAM and kind != FRAME_RESET_STREAM:
        return OK
    s = table_find(t, id)
    if s is NULL:
        return OK
    if kind == FRAME_RESET_STREAM:
        if s.send_state == SEND_RESET_SENT:
            s.send_state = SEND_RESET_RECVD
            table_settle(t, s)
        return OK
    if s.send_state != SEND_SEND and s.send_state != SEND_DATA_SENT:
        return OK
    size = sendbuf_size(&s.send)
    status = sendbuf_on_acked(&s.send, offset, length, fin)
    if status != OK:
        return status
    release_room(t, s, size - sendbuf_size(&s.send))
    if sendbuf_is_acked(&s.send):
        s.send_state = SEND_DATA_RECVD
        list_remove(t, LIST_READY, s)
        table_event(t, s, EVENT_ACKED)
        table_settle(t, s)
    return OK


cdef int streams_on_frame_lost(
    StreamTable* t, uint8_t kind, uint64_t id, uint64_t offset, uint32_t length,
    bint fin,
) noexcept nogil:
    cdef Stream* s
    cdef uint8_t due = 0
    cdef int direction
    if kind == FRAME_MAX_DATA:
        if window_lost(&t.window, offset):
            t.due |= DUE_MAX_DATA
        return OK
    if kind == FRAME_DATA_BLOCKED:
        if limit_lost(&t.limit, offset):
            t.due |= DUE_DATA_BLOCKED
        return OK
    for direction in range(2):
        if kind == FRAME_MAX_STREAMS_BIDI + direction:
            if credit_lost(&t.remote[direction], offset):
                t.due |= DUE_MAX_STREAMS << direction
            return OK
        if kind == FRAME_STREAMS_BLOCKED_BIDI + direction:
            if limit_lost(&t.local[direction], offset):
                t.due |= DUE_STREAMS_BLOCKED << direction
            return OK
    s = table_find(t, id)
    if s is NULL:
        return OK
    if kind == FRAME_STREAM:
        return lose_data(t, s, offset, length, fin)
    if kind == FRAME_RESET_STREAM:
        due = DUE_RESET_STREAM
    elif kind == FRAME_STOP_SENDING:
        due = DUE_STOP_SENDING
    elif kind == FRAME_MAX_STREAM_DATA and window_lost(&s.window, offset):
        due = DUE_MAX_STREAM_DATA
    elif kind == FRAME_STREAM_DATA_BLOCKED and limit_lost(&s.limit, offset):
        due = DUE_STREAM_DATA_BLOCKED
    due = still_due(s, due)
    if due:
        table_due(t, s, due)
    return OK


cdef uint8_t still_due(const Stream* s, uint8_t due) noexcept nogil:
    """Strike out of what came due what the stream has got past since."""
    if s.send_state != SEND_RESET_SENT:
        due &= ~DUE_RESET_STREAM
    if s.recv_state != RECV_RECV:
        due &= ~(DUE_STOP_SENDING | DUE_MAX_STREAM_DATA)
    if s.discards:
        due &= ~DUE_MAX_STREAM_DATA
    if limit_left(&s.limit) or (
        s.send_state != SEND_READY and s.send_state != SEND_SEND
    ):
        due &= ~DUE_STREAM_DATA_BLOCKED
    return due


cdef int lose_data(
    StreamTable* t, Stream* s, uint64_t offset, uint32_t length, bint fin
) noexcept nogil:
    cdef int status
    cdef uint64_t start = 0
    cdef uint64_t size = 0
    if s.send_state != SEND_SEND and s.send_state != SEND_DATA_SENT:
        return OK
    status = sendbuf_on_lost(&s.send, offset, length, fin)
    if status != OK or not sendbuf_peek(&s.send, 0, &start, &size):
        return status
    if s.stopped:
        # RFC 9000 section 3.5: the peer does not want it; do not send it again.
        send_reset(t, s, s.stop_code)
        return OK
    # Ahead of the others: the peer holds what follows until it has this.
    list_remove(t, LIST_READY, s)
    list_push_first(t, LIST_READY, s)
    return OK


cdef void send_reset(StreamTable* t, Stream* s, uint64_t code) noexcept nogil:
    cdef uint64_t size = sendbuf_size(&s.send)
    # What flow control has counted, `sent`, is the final size (RFC 9000 section 4.5).
    sendbuf_drop(&s.send)
    s.send_state = SEND_RESET_SENT
    s.reset_code = code
    list_remove(t, LIST_READY, s)
    list_remove(t, LIST_BLOCKED, s)
    list_remove(t, LIST_WAITING, s)
    release_room(t, s, size)
    table_due(t, s, DUE_RESET_STREAM)


cdef void send_unblock(StreamTable* t) noexcept nogil:
    """Make the streams ready that the connection's limit held back."""
    cdef Stream* s = t.first[LIST_BLOCKED]
    while s is not NULL:
        list_remove(t, LIST_BLOCKED, s)
        list_push(t, LIST_READY, s)
        s = t.first[LIST_BLOCKED]


cdef bint send_has_room(const StreamTable* t, const Stream* s) noexcept nogil:
    # A stream that holds nothing may always write once: others cannot starve it.
    return sendbuf_size(&s.send) == 0 or (
        sendbuf_size(&s.send) < t.config.max_stream_buffered
        and t.send_buffered < t.config.max_buffered
    )


cdef void release_room(StreamTable* t, Stream* s, uint64_t size) noexcept nogil:
    """Count bytes out of the buffers, and wake whom that lets write."""
    cdef uint64_t before = t.send_buffered
    cdef uint64_t half = t.config.max_buffered >> 1
    cdef Stream* after
    t.send_buffered -= size
    if t.first[LIST_WAITING] is NULL:
        return
    if before <= half or t.send_buffered > half:
        wake(t, s)
        return
    s = t.first[LIST_WAITING]
    while s is not NULL:
        after = s.after[LIST_WAITING]
        wake(t, s)
        s = after


cdef void wake(StreamTable* t, Stream* s) noexcept nogil:
    # Not before half of the room is free, or each acknowledgement would wake it.
    if s.listed & (1 << LIST_WAITING) and (
        sendbuf_size(&s.send) == 0
        or (
            sendbuf_size(&s.send) <= t.config.max_stream_buffered >> 1
            and t.send_buffered <= t.config.max_buffered >> 1
        )
    ):
        list_remove(t, LIST_WAITING, s)
        table_event(t, s, EVENT_WRITABLE)


cdef bint put(
    Writer* w, uint8_t kind, int count, uint64_t first, uint64_t second, uint64_t third
) noexcept nogil:
    """Write a frame of one to three varints, whole or not at all."""
    cdef uint8_t* start = w.pos
    if (
        writer_u8(w, kind) == OK
        and writer_varint(w, first) == OK
        and (count < 2 or writer_varint(w, second) == OK)
        and (count < 3 or writer_varint(w, third) == OK)
    ):
        return True
    w.pos = start
    return False


cdef inline void note(
    StreamFrame* out, uint8_t kind, uint64_t id, uint64_t offset, uint32_t length,
    bint fin,
) noexcept nogil:
    out.kind = kind
    out.id = id
    out.offset = offset
    out.length = length
    out.fin = fin


cdef uint32_t write_connection(
    StreamTable* t, Writer* w, StreamFrame* out, uint32_t limit
) noexcept nogil:
    """Write the frames of TableDue."""
    cdef uint32_t count = 0
    cdef int direction
    cdef uint64_t value
    if t.due & DUE_MAX_DATA and count < limit:
        value = t.window.limit
        if not put(w, FRAME_MAX_DATA, 1, value, 0, 0):
            return count
        t.window.advertised = value
        t.due &= ~DUE_MAX_DATA
        note(&out[count], FRAME_MAX_DATA, 0, value, 0, False)
        count += 1
    for direction in range(2):
        if t.due & (DUE_MAX_STREAMS << direction) and count < limit:
            value = t.remote[direction].limit
            if not put(w, FRAME_MAX_STREAMS_BIDI + direction, 1, value, 0, 0):
                return count
            t.remote[direction].advertised = value
            t.due &= ~(DUE_MAX_STREAMS << direction)
            note(&out[count], FRAME_MAX_STREAMS_BIDI + direction, 0, value, 0, False)
            count += 1
        # What was blocked when this came due may not be any more.
        if limit_left(&t.local[direction]):
            t.due &= ~(DUE_STREAMS_BLOCKED << direction)
        if t.due & (DUE_STREAMS_BLOCKED << direction) and count < limit:
            value = t.local[direction].limit
            if not put(w, FRAME_STREAMS_BLOCKED_BIDI + direction, 1, value, 0, 0):
                return count
            t.due &= ~(DUE_STREAMS_BLOCKED << direction)
            note(
                &out[count], FRAME_STREAMS_BLOCKED_BIDI + direction, 0, value, 0, False
            )
            count += 1
    if limit_left(&t.limit):
        t.due &= ~DUE_DATA_BLOCKED
    if t.due & DUE_DATA_BLOCKED and count < limit:
        value = t.limit.limit
        if not put(w, FRAME_DATA_BLOCKED, 1, value, 0, 0):
            return count
        t.due &= ~DUE_DATA_BLOCKED
        note(&out[count], FRAME_DATA_BLOCKED, 0, value, 0, False)
        count += 1
    return count


cdef uint32_t write_control(
    StreamTable* t, Writer* w, StreamFrame* out, uint32_t limit
) noexcept nogil:
    """Write the frames of StreamDue, of one stream after the other."""
    cdef uint32_t count = 0
    cdef Stream* s = t.first[LIST_CONTROL]
    while s is not NULL:
        s.due = still_due(s, s.due)
        while s.due:
            if count >= limit or not write_due(s, w, &out[count]):
                return count
            count += 1
        list_remove(t, LIST_CONTROL, s)
        s = t.first[LIST_CONTROL]
    return count


cdef bint write_due(Stream* s, Writer* w, StreamFrame* out) noexcept nogil:
    """Write one frame that the stream has due. False if there is no space."""
    cdef uint64_t value = 0
    cdef uint8_t due
    cdef uint8_t kind
    cdef bint written
    if s.due & DUE_RESET_STREAM:
        due, kind = DUE_RESET_STREAM, FRAME_RESET_STREAM
        written = put(w, kind, 3, s.id, s.reset_code, s.send.sent)
    elif s.due & DUE_STOP_SENDING:
        due, kind = DUE_STOP_SENDING, FRAME_STOP_SENDING
        written = put(w, kind, 2, s.id, s.our_stop_code, 0)
    elif s.due & DUE_MAX_STREAM_DATA:
        due, kind = DUE_MAX_STREAM_DATA, FRAME_MAX_STREAM_DATA
        value = s.window.limit
        written = put(w, kind, 2, s.id, value, 0)
        if written:
            s.window.advertised = value
    else:
        due, kind = DUE_STREAM_DATA_BLOCKED, FRAME_STREAM_DATA_BLOCKED
        value = s.limit.limit
        written = put(w, kind, 2, s.id, value, 0)
    if written:
        s.due &= ~due
        note(out, kind, s.id, value, 0, False)
    return written


cdef uint32_t write_data(
    StreamTable* t, Writer* w, StreamFrame* out, uint32_t limit
) noexcept nogil:
    """Write STREAM frames, one of each ready stream in turn."""
    cdef uint32_t count = 0
    cdef Stream* s = t.first[LIST_READY]
    cdef uint64_t offset = 0
    cdef uint64_t size = 0
    while s is not NULL and count < limit:
        if not sendbuf_peek(
            &s.send, min(limit_left(&s.limit), limit_left(&t.limit)), &offset, &size
        ):
            list_remove(t, LIST_READY, s)
            if s.send.end > s.send.sent:
                block(t, s)
        elif write_piece(t, s, w, offset, size, &out[count]):
            count += 1
            list_remove(t, LIST_READY, s)
            # A FIN that is not due now waits for data, which puts it back.
            if (
                s.send.lost.count
                or s.send.end > s.send.sent
                or s.send.fin & FIN_DUE
            ):
                list_push(t, LIST_READY, s)
        else:
            break
        s = t.first[LIST_READY]
    return count


cdef void block(StreamTable* t, Stream* s) noexcept nogil:
    """Note which limit holds back a stream's new data (RFC 9000 section 4.1)."""
    if not limit_left(&s.limit):
        if limit_block(&s.limit):
            table_due(t, s, DUE_STREAM_DATA_BLOCKED)
        return
    list_push(t, LIST_BLOCKED, s)
    if limit_block(&t.limit):
        t.due |= DUE_DATA_BLOCKED


cdef bint write_piece(
    StreamTable* t, Stream* s, Writer* w, uint64_t offset, uint64_t size,
    StreamFrame* out,
) noexcept nogil:
    """Write one STREAM frame with up to ``size`` bytes. False if there is no space."""
    # The length is there always, so that anything may follow in the packet.
    cdef size_t header = 1 + varint_size(s.id) + (varint_size(offset) if offset else 0)
    cdef size_t left = writer_left(w)
    cdef uint64_t piece = size
    cdef uint64_t sent = s.send.sent
    cdef uint8_t* kind = NULL
    cdef uint8_t* target = NULL
    header += 1 if piece < 0x40 else 2
    if left < header:
        return False
    piece = min(piece, left - header, <uint64_t> MAX_PIECE)
    if piece < size and piece < STREAMS_MIN_PIECE:
        return False
    # The checks above make all of these fit.
    writer_skip(w, 1, &kind)
    writer_varint(w, s.id)
    if offset:
        writer_varint(w, offset)
    writer_varint(w, piece)
    writer_skip(w, piece, &target)
    note(out, FRAME_STREAM, s.id, offset, <uint32_t> piece, False)
    out.fin = sendbuf_take(&s.send, offset, piece, target)
    kind[0] = <uint8_t> (
        FRAME_STREAM | STREAM_LEN
        | (STREAM_OFF if offset else 0) | (STREAM_FIN if out.fin else 0)
    )
    s.limit.used += s.send.sent - sent
    t.limit.used += s.send.sent - sent
    if s.send_state == SEND_READY:
        s.send_state = SEND_SEND
    if s.send_state == SEND_SEND and sendbuf_is_sent(&s.send):
        s.send_state = SEND_DATA_SENT
        s.sent_at = t.now
    return True
