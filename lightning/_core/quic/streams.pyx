"""What may be done with a stream, and what its frames do.

Source: RFC 9000 sections 2 to 4 and 19.4 to 19.14.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from lightning._core.quic.buffer cimport (
    E_FLOW_CONTROL, E_FRAME_ENCODING, FRAME_DATA_BLOCKED, FRAME_MAX_DATA,
    FRAME_MAX_STREAM_DATA, FRAME_MAX_STREAMS_BIDI, FRAME_MAX_STREAMS_UNI,
    FRAME_PADDING, FRAME_RESET_STREAM, FRAME_STOP_SENDING, FRAME_STREAM,
    FRAME_STREAM_DATA_BLOCKED, FRAME_STREAMS_BLOCKED_BIDI, FRAME_STREAMS_BLOCKED_UNI,
    OK, OUT_OF_MEMORY, STREAM_FIN, STREAM_LEN, STREAM_OFF, Reader, Writer,
    reader_bytes, reader_init, reader_left, reader_varint, writer_init, writer_size,
)
from lightning._core.quic.flow cimport (
    STREAMS_MAX, limit_block, limit_left, limit_raise, window_allows, window_consume,
)
from lightning._core.quic.reassembly cimport (
    reassembly_check, reassembly_consume, reassembly_direct, reassembly_drop,
    reassembly_is_received, reassembly_note, reassembly_peek, reassembly_store,
)
from lightning._core.quic.sendbuf cimport (
    FIN_QUEUED, sendbuf_append, sendbuf_append_ref, sendbuf_finish, sendbuf_peek,
)
from lightning._core.quic.streamsend cimport (
    StreamFrame, send_has_room, send_reset, send_unblock, streams_has_frames,
    streams_on_frame_acked, streams_on_frame_lost, streams_write_frames,
)
from lightning._core.quic.streamtable cimport (
    BIDI, DUE_MAX_DATA, DUE_MAX_STREAM_DATA, DUE_STOP_SENDING, DUE_STREAMS_BLOCKED,
    EVENT_OPENABLE, EVENT_READABLE, EVENT_RESET, EVENT_STOPPED, LIST_BLOCKED,
    LIST_EVENTS, LIST_READY, LIST_WAITING, RECV_DATA_READ, RECV_DATA_RECVD, RECV_RECV,
    RECV_RESET, RECV_SIZE_KNOWN, SEND_DATA_SENT, SEND_READY, SEND_SEND,
    STREAM_BY_SERVER, STREAM_IS_UNI, StreamConfig, StreamMemory, UNI, list_push,
    list_remove, streamconfig_init, streammemory_free, streammemory_init, streams_free,
    streams_init, table_allow_opening, table_create, table_due, table_event,
    table_find, table_of_frame, table_settle,
)


# --- Opening and letting go -----------------------------------------------------------

cdef int streams_open(
    StreamTable* t, bint unidirectional, int64_t now, Stream** opened
) noexcept nogil:
    cdef int direction = UNI if unidirectional else BIDI
    cdef uint64_t id
    cdef Stream* s
    opened[0] = NULL
    if not limit_left(&t.local[direction]):
        t.refused[direction] = True
        if limit_block(&t.local[direction]):
            t.due |= DUE_STREAMS_BLOCKED << direction
        return STREAMS_LIMIT
    if t.local_count >= t.config.max_local_streams:
        t.refused[direction] = True
        return STREAMS_LIMIT
    id = t.local[direction].used << 2
    if unidirectional:
        id |= STREAM_IS_UNI
    if not t.config.is_client:
        id |= STREAM_BY_SERVER
    s = table_create(t, id, now)
    if s is NULL:
        return OUT_OF_MEMORY
    t.local[direction].used += 1
    opened[0] = s
    return OK


cdef void streams_release(StreamTable* t, Stream* s, int64_t now) noexcept nogil:
    if not s.send.fin & FIN_QUEUED:
        streams_reset(t, s, 0)
    s.held = False
    s.events = 0
    list_remove(t, LIST_EVENTS, s)
    list_remove(t, LIST_WAITING, s)
    discard(t, s, now)
    table_settle(t, s)


cdef bint streams_next_event(StreamTable* t, StreamEvent* event) noexcept nogil:
    cdef Stream* s = t.first[LIST_EVENTS]
    cdef int direction
    if s is NULL:
        for direction in range(2):
            if t.openable & (1 << direction):
                t.openable &= ~(1 << direction)
                event.stream = NULL
                event.kind = EVENT_OPENABLE
                event.code = direction
                return True
        return False
    # The lowest bit comes first: see StreamEventKind.
    event.stream = s
    event.kind = s.events & -s.events
    event.code = 0
    if event.kind == EVENT_RESET:
        event.code = s.peer_reset_code
    elif event.kind == EVENT_STOPPED:
        event.code = s.stop_code
    s.events &= ~event.kind
    if not s.events:
        list_remove(t, LIST_EVENTS, s)
    return True


# --- Sending --------------------------------------------------------------------------

cdef int streams_send(
    StreamTable* t, Stream* s, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    cdef int status = accept(t, s, size)
    if status == OK:
        status = sendbuf_append(&s.send, data, size)
    if status == OK:
        appended(t, s, size, fin)
    return status


cdef int streams_refer(
    StreamTable* t, Stream* s, const uint8_t* data, size_t size, void* owner, bint fin
) noexcept nogil:
    cdef int status = accept(t, s, size)
    if status == OK:
        status = sendbuf_append_ref(&s.send, data, size, owner)
    if status == OK:
        appended(t, s, size, fin)
    return status


cdef int accept(StreamTable* t, Stream* s, size_t size) noexcept nogil:
    """Say if the stream takes bytes now: OK, STREAMS_CLOSED or STREAMS_FULL."""
    if s.send_state != SEND_READY and s.send_state != SEND_SEND:
        return STREAMS_CLOSED
    if s.send.fin & FIN_QUEUED:
        return STREAMS_CLOSED
    if size and not send_has_room(t, s):
        list_push(t, LIST_WAITING, s)
        return STREAMS_FULL
    return OK


cdef void appended(StreamTable* t, Stream* s, size_t size, bint fin) noexcept nogil:
    t.send_buffered += size
    if fin:
        sendbuf_finish(&s.send)
        list_remove(t, LIST_WAITING, s)
    if size or fin:
        make_ready(t, s)


cdef void make_ready(StreamTable* t, Stream* s) noexcept nogil:
    # A blocked stream waits for the connection's limit whatever else it has to send.
    if not s.listed & (1 << LIST_BLOCKED):
        list_push(t, LIST_READY, s)


cdef void streams_reset(StreamTable* t, Stream* s, uint64_t code) noexcept nogil:
    # RFC 9000 section 3.1: from any state in which data may be outstanding.
    if (
        s.send_state == SEND_READY
        or s.send_state == SEND_SEND
        or s.send_state == SEND_DATA_SENT
    ):
        send_reset(t, s, code)


# --- Receiving ------------------------------------------------------------------------

cdef size_t streams_peek(const Stream* s, const uint8_t** view) noexcept nogil:
    return reassembly_peek(&s.recv, view)


cdef void streams_consume(
    StreamTable* t, Stream* s, uint64_t size, int64_t now
) noexcept nogil:
    cdef uint64_t buffered = s.recv.buffered
    if s.discards:
        return
    reassembly_consume(&s.recv, size)
    t.recv_buffered -= buffered - s.recv.buffered
    # RFC 9000 section 4.5: no more credit once the size is known.
    if window_consume(&s.window, size, now, t.rtt) and s.recv_state == RECV_RECV:
        table_due(t, s, DUE_MAX_STREAM_DATA)
    if window_consume(&t.window, size, now, t.rtt):
        t.due |= DUE_MAX_DATA
    if s.recv.next == s.recv.final_size:
        s.recv_state = RECV_DATA_READ


cdef int streams_resume(StreamTable* t, Stream* s, int64_t now) noexcept nogil:
    s.paused = False
    return offer(t, s, now)


cdef void streams_stop(
    StreamTable* t, Stream* s, uint64_t code, int64_t now
) noexcept nogil:
    # RFC 9000 section 3.5: with the size known, there is nothing to ask for.
    if s.recv_state == RECV_RECV and not s.asked:
        s.our_stop_code = code
        ask_to_stop(t, s)
    discard(t, s, now)
    table_settle(t, s)


cdef void ask_to_stop(StreamTable* t, Stream* s) noexcept nogil:
    s.asked = True
    table_due(t, s, DUE_STOP_SENDING)


cdef void discard(StreamTable* t, Stream* s, int64_t now) noexcept nogil:
    """Want nothing more of what the peer sends, and give back the credit for it."""
    cdef uint64_t size = s.recv.highest - s.recv.next
    s.discards = True
    s.events &= ~EVENT_READABLE
    if not s.events:
        list_remove(t, LIST_EVENTS, s)
    t.recv_buffered -= s.recv.buffered
    reassembly_drop(&s.recv)
    s.recv.next = s.recv.highest
    if size and window_consume(&t.window, size, now, t.rtt):
        t.due |= DUE_MAX_DATA
    if s.recv_state == RECV_SIZE_KNOWN or s.recv_state == RECV_DATA_RECVD:
        # Whatever still comes has been counted.
        s.recv_state = RECV_DATA_READ


# --- Frames ---------------------------------------------------------------------------

cdef int streams_on_reset_stream(
    StreamTable* t, uint64_t id, uint64_t code, uint64_t final_size, int64_t now
) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = table_of_frame(t, id, True, now, &s)
    if status != OK or s is NULL:
        return status
    status = count_in(t, s, final_size, 0, True)
    if status != OK:
        return status
    if s.recv_state != RECV_RECV and s.recv_state != RECV_SIZE_KNOWN:
        # RFC 9000 section 3.2: all data is here, and may as well be delivered.
        return OK
    if not s.discards:
        s.peer_reset_code = code
        table_event(t, s, EVENT_RESET)
    discard(t, s, now)
    s.recv_state = RECV_RESET
    table_settle(t, s)
    return OK


cdef int streams_on_stop_sending(
    StreamTable* t, uint64_t id, uint64_t code, int64_t now
) noexcept nogil:
    cdef uint64_t offset = 0
    cdef uint64_t size = 0
    cdef Stream* s = NULL
    cdef int status = table_of_frame(t, id, False, now, &s)
    if status != OK or s is NULL:
        return status
    if s.send_state == SEND_READY or s.send_state == SEND_SEND:
        # RFC 9000 section 3.5: answer with RESET_STREAM, and the same code.
        s.stop_code = code
        send_reset(t, s, code)
        table_event(t, s, EVENT_STOPPED)
    elif s.send_state == SEND_DATA_SENT and not s.stopped:
        # All is under way, perhaps there: reset only if some of it is lost.
        s.stop_code = code
        s.stopped = True
        if sendbuf_peek(&s.send, 0, &offset, &size):
            send_reset(t, s, code)
    return OK


cdef int streams_on_stream_frame(
    StreamTable* t, uint64_t id, uint64_t offset, const uint8_t* data, size_t size,
    bint fin, int64_t now,
) noexcept nogil:
    cdef Stream* s = NULL
    cdef uint64_t highest
    cdef int status = table_of_frame(t, id, True, now, &s)
    if status != OK or s is NULL:
        return status
    highest = s.recv.highest
    status = count_in(t, s, offset, size, fin)
    if status != OK:
        return status
    if s.recv_state != RECV_RECV and s.recv_state != RECV_SIZE_KNOWN:
        return OK
    if fin:
        s.recv_state = RECV_SIZE_KNOWN
    if not s.discards:
        return deliver(t, s, offset, data, size, now)
    if s.recv.highest > highest and s.recv_state == RECV_RECV and not s.asked:
        ask_to_stop(t, s)
    discard(t, s, now)
    table_settle(t, s)
    return OK


cdef void streams_on_max_data(StreamTable* t, uint64_t value) noexcept nogil:
    if limit_raise(&t.limit, value):
        send_unblock(t)


cdef int streams_on_max_stream_data(
    StreamTable* t, uint64_t id, uint64_t value, int64_t now
) noexcept nogil:
    cdef Stream* s = NULL
    cdef int status = table_of_frame(t, id, False, now, &s)
    if status != OK or s is NULL:
        return status
    if limit_raise(&s.limit, value) and s.send.end > s.send.sent:
        make_ready(t, s)
    return OK


cdef int streams_on_max_streams(
    StreamTable* t, bint unidirectional, uint64_t value
) noexcept nogil:
    cdef int direction = UNI if unidirectional else BIDI
    # RFC 9000 section 19.11.
    if value > <uint64_t> STREAMS_MAX:
        return E_FRAME_ENCODING
    if limit_raise(&t.local[direction], value):
        table_allow_opening(t, direction)
    return OK


cdef int streams_on_stream_data_blocked(
    StreamTable* t, uint64_t id, int64_t now
) noexcept nogil:
    cdef Stream* s = NULL
    return table_of_frame(t, id, True, now, &s)


cdef int streams_on_streams_blocked(StreamTable* t, uint64_t value) noexcept nogil:
    # RFC 9000 section 19.14.
    if value > <uint64_t> STREAMS_MAX:
        return E_FRAME_ENCODING
    return OK


cdef void streams_set_peer_limits(
    StreamTable* t, const PeerLimits* limits
) noexcept nogil:
    t.peer = limits[0]
    limit_raise(&t.limit, limits.max_data)
    limit_raise(&t.local[BIDI], min(limits.max_streams_bidi, <uint64_t> STREAMS_MAX))
    limit_raise(&t.local[UNI], min(limits.max_streams_uni, <uint64_t> STREAMS_MAX))
    table_allow_opening(t, BIDI)
    table_allow_opening(t, UNI)


cdef int count_in(
    StreamTable* t, Stream* s, uint64_t offset, uint64_t size, bint fin
) noexcept nogil:
    """Check a frame's end against the final size and both windows, and count it."""
    cdef uint64_t end = offset + size
    cdef uint64_t grown
    cdef int status = reassembly_check(&s.recv, offset, size, fin)
    if status != OK:
        return status
    if end > s.recv.highest:
        grown = end - s.recv.highest
        if not window_allows(&s.window, grown) or not window_allows(&t.window, grown):
            return E_FLOW_CONTROL
        s.window.received += grown
        t.window.received += grown
    reassembly_note(&s.recv, end, fin)
    return OK


cdef int deliver(
    StreamTable* t, Stream* s, uint64_t offset, const uint8_t* data, uint64_t size,
    int64_t now,
) noexcept nogil:
    """Hand over what is next in line, and keep the rest."""
    cdef uint64_t direct
    cdef uint64_t taken
    cdef uint64_t buffered
    cdef int status
    if s.sink is not NULL and not s.paused:
        direct = reassembly_direct(&s.recv, offset, size)
        if direct:
            data += size - direct
            offset += size - direct
            taken = give(t, s, data, direct, now)
            data += taken
            offset += taken
            size = direct - taken
    if size:
        # If the sink gave the stream up, `next` is past all of this and none is kept.
        buffered = s.recv.buffered
        status = reassembly_store(&s.recv, offset, data, size)
        t.recv_buffered += s.recv.buffered - buffered
        if status != OK:
            return status
    if s.recv_state == RECV_SIZE_KNOWN and reassembly_is_received(&s.recv):
        s.recv_state = RECV_DATA_RECVD
    return offer(t, s, now)


cdef int offer(StreamTable* t, Stream* s, int64_t now) noexcept nogil:
    """Let the sink, or else the reader, have what is buffered and next, and the end."""
    cdef const uint8_t* view = NULL
    cdef size_t size
    while not s.paused and not s.discards:
        size = reassembly_peek(&s.recv, &view)
        if not size and s.recv_state != RECV_DATA_RECVD:
            break
        if s.sink is NULL:
            table_event(t, s, EVENT_READABLE)
            break
        give(t, s, view, size, now)
    if s.discards:
        table_settle(t, s)
    return OK


cdef uint64_t give(
    StreamTable* t, Stream* s, const uint8_t* data, size_t size, int64_t now
) noexcept nogil:
    """Call the sink and return how many bytes it took."""
    cdef bint fin = s.recv.next + size == s.recv.final_size
    cdef size_t taken
    t.pinned = s
    taken = min(s.sink(t.sink_context, s, data, size, fin), size)
    t.pinned = NULL
    s.paused = taken < size
    streams_consume(t, s, taken, now)
    return taken


# --- For tests and tools --------------------------------------------------------------

cdef int receive_frames(
    StreamTable* t, const uint8_t* data, size_t size, int64_t now
) noexcept nogil:
    """Read a packet's payload that has frames of streams and PADDING only."""
    cdef Reader r
    cdef const uint8_t* view = NULL
    cdef uint64_t kind = 0
    cdef uint64_t a = 0
    cdef uint64_t b = 0
    cdef uint64_t c = 0
    cdef int status = OK
    reader_init(&r, data, size)
    while reader_left(&r) and status == OK:
        reader_varint(&r, &kind)
        if kind == FRAME_PADDING:
            continue
        if reader_varint(&r, &a) != OK:
            return E_FRAME_ENCODING
        if FRAME_STREAM <= kind < FRAME_MAX_DATA:
            b = 0
            if kind & STREAM_OFF and reader_varint(&r, &b) != OK:
                return E_FRAME_ENCODING
            c = reader_left(&r)
            if kind & STREAM_LEN and reader_varint(&r, &c) != OK:
                return E_FRAME_ENCODING
            if reader_bytes(&r, c, &view) != OK:
                return E_FRAME_ENCODING
            status = streams_on_stream_frame(
                t, a, b, view, c, kind & STREAM_FIN, now
            )
            continue
        if kind == FRAME_MAX_DATA:
            streams_on_max_data(t, a)
            continue
        if kind == FRAME_MAX_STREAMS_BIDI or kind == FRAME_MAX_STREAMS_UNI:
            status = streams_on_max_streams(t, kind == FRAME_MAX_STREAMS_UNI, a)
            continue
        if kind == FRAME_DATA_BLOCKED:
            continue
        if kind == FRAME_STREAMS_BLOCKED_BIDI or kind == FRAME_STREAMS_BLOCKED_UNI:
            status = streams_on_streams_blocked(t, a)
            continue
        if reader_varint(&r, &b) != OK:
            return E_FRAME_ENCODING
        if kind == FRAME_STOP_SENDING:
            status = streams_on_stop_sending(t, a, b, now)
        elif kind == FRAME_MAX_STREAM_DATA:
            status = streams_on_max_stream_data(t, a, b, now)
        elif kind == FRAME_STREAM_DATA_BLOCKED:
            status = streams_on_stream_data_blocked(t, a, now)
        elif kind != FRAME_RESET_STREAM or reader_varint(&r, &c) != OK:
            return E_FRAME_ENCODING
        else:
            status = streams_on_reset_stream(t, a, b, c, now)
    return status


cdef size_t call_sink(
    void* context, Stream* stream, const uint8_t* data, size_t size, bint fin
) noexcept with gil:
    return (<Streams> context).sink(
        stream.id, (<const char*> data)[:size], fin != 0
    )


@cython.final
@cython.auto_pickle(False)
cdef class Streams:
    """The streams of one end of a connection, for tests.

    Streams are named by their identifier; a method that is given one without a record
    raises KeyError. Times are microseconds.

    Args:
        is_client: Whether this end opens the streams with even identifiers.
        sink: Called with the identifier, bytes and whether the end follows; returns how
            many bytes it takes. None to have them buffered.
        settings: Fields of ``StreamConfig``.
    """

    cdef StreamTable table
    cdef StreamMemory memory
    cdef object sink

    def __cinit__(self, bint is_client, *, sink=None, int64_t now=0, **settings):
        cdef StreamConfig config
        streamconfig_init(&config, is_client)
        fields = config  # a dictionary of the fields
        unknown = settings.keys() - fields.keys()
        if unknown:
            raise TypeError(f"no such setting: {sorted(unknown)}")
        config = {**fields, **settings}
        streammemory_init(&self.memory)
        streams_init(&self.table, &self.memory, &config, now)
        self.sink = sink
        if sink is not None:
            self.table.sink = call_sink
            self.table.sink_context = <void*> self

    def __dealloc__(self):
        streams_free(&self.table)
        release_owners(&self.memory)
        streammemory_free(&self.memory)

    cdef Stream* find(self, uint64_t sid) except NULL:
        cdef Stream* s = table_find(&self.table, sid)
        if s is NULL:
            raise KeyError(sid)
        return s

    @property
    def count(self):
        """Streams that have a record."""
        return self.table.count

    @property
    def send_buffered(self):
        """Bytes appended and not acknowledged in order."""
        return self.table.send_buffered

    @property
    def recv_buffered(self):
        """Bytes received, held and not consumed."""
        return self.table.recv_buffered

    @property
    def memory_in_use(self):
        """Blocks, records and references in use."""
        return (
            self.memory.blocks.in_use, self.memory.in_use, self.memory.releases.held
        )

    @property
    def max_data(self):
        """The offset up to which the peer may send on all streams together."""
        return self.table.window.limit

    @property
    def max_streams(self):
        """Streams granted to the peer so far: bidirectional, unidirectional."""
        return self.table.remote[BIDI].limit, self.table.remote[UNI].limit

    @property
    def has_frames(self):
        """Whether a packet is worth writing."""
        return streams_has_frames(&self.table)

    @property
    def rtt(self):
        """The round trip that windows are tuned by."""
        return self.table.rtt

    @rtt.setter
    def rtt(self, int64_t value):
        self.table.rtt = value

    def close(self):
        """Free the streams and return what memory is in use."""
        streams_free(&self.table)
        release_owners(&self.memory)
        return self.memory_in_use

    def set_peer_limits(self, **fields):
        """Take the peer's transport parameters, fields of ``PeerLimits``."""
        cdef PeerLimits peer
        memset(&peer, 0, sizeof(peer))
        peer = {**peer, **fields}
        streams_set_peer_limits(&self.table, &peer)

    def state(self, uint64_t sid):
        """Return the states of both parts, None without a record."""
        cdef Stream* s = table_find(&self.table, sid)
        return None if s is NULL else (s.send_state, s.recv_state)

    def open(self, bint unidirectional=False, int64_t now=0):
        """Open a stream and return its identifier, or a status below 0."""
        cdef Stream* s = NULL
        cdef int status = streams_open(&self.table, unidirectional, now, &s)
        return s.id if status == OK else status

    def send(self, uint64_t sid, const uint8_t[::1] data not None, bint fin=False):
        """Append a copy and return the status."""
        cdef size_t size = data.shape[0]
        return streams_send(
            &self.table, self.find(sid), &data[0] if size else NULL, size, fin
        )

    def refer(self, uint64_t sid, bytes data not None, bint fin=False):
        """Append a reference and return the status."""
        cdef int status = streams_refer(
            &self.table, self.find(sid), <const uint8_t*> <const char*> data, len(data),
            <void*> data, fin,
        )
        if status == OK:
            Py_INCREF(data)
        release_owners(&self.memory)
        return status

    def read(self, uint64_t sid, uint64_t size=2**62, int64_t now=0):
        """Consume up to ``size`` bytes; also whether the end follows them."""
        cdef Stream* s = self.find(sid)
        cdef const uint8_t* view = NULL
        cdef uint64_t part
        parts = []
        while True:
            part = min(size, streams_peek(s, &view))
            if not part:
                break
            parts.append((<const char*> view)[:part])
            streams_consume(&self.table, s, part, now)
            size -= part
        return b"".join(parts), stream_is_at_end(s)

    def resume(self, uint64_t sid, int64_t now=0):
        """Offer the sink what it left, and return the status."""
        return streams_resume(&self.table, self.find(sid), now)

    def reset(self, uint64_t sid, uint64_t code=0):
        """Reset the sending part."""
        streams_reset(&self.table, self.find(sid), code)

    def stop(self, uint64_t sid, uint64_t code=0, int64_t now=0):
        """Stop the receiving part."""
        streams_stop(&self.table, self.find(sid), code, now)

    def release(self, uint64_t sid, int64_t now=0):
        """Let go of the stream."""
        streams_release(&self.table, self.find(sid), now)

    def events(self):
        """Drain the events: kind, identifier (None without a stream) and code."""
        cdef StreamEvent event
        drained = []
        while streams_next_event(&self.table, &event):
            sid = None if event.stream is NULL else event.stream.id
            drained.append((event.kind, sid, event.code))
        return drained

    def receive(self, const uint8_t[::1] payload not None, int64_t now=0):
        """Take a packet's frames and return the status of the first bad one, or OK."""
        cdef size_t size = payload.shape[0]
        return receive_frames(
            &self.table, &payload[0] if size else NULL, size, now
        )

    def write(self, Py_ssize_t room=1200, uint32_t limit=64):
        """Write a packet's frames; also their records, to be acknowledged or lost.

        Raises:
            MemoryError: There is no memory for them.
        """
        cdef StreamFrame out[64]
        cdef Writer w
        cdef uint32_t count
        # A block of exactly this size lets a sanitizer see a write past the end.
        cdef uint8_t* block = <uint8_t*> PyMem_Malloc(room if room else 1)
        if block is NULL:
            raise MemoryError
        try:
            writer_init(&w, block, room)
            count = streams_write_frames(&self.table, &w, out, min(limit, 64))
            records = [
                (out[i].kind, out[i].id, out[i].offset, out[i].length, out[i].fin)
                for i in range(count)
            ]
            return (<char*> block)[:writer_size(&w)], records
        finally:
            PyMem_Free(block)

    def on_acked(self, record):
        """Take the acknowledgement of a record and return the status."""
        kind, sid, offset, length, fin = record
        status = streams_on_frame_acked(&self.table, kind, sid, offset, length, fin)
        release_owners(&self.memory)
        return status

    def on_lost(self, record):
        """Take the loss of a record and return the status."""
        kind, sid, offset, length, fin = record
        status = streams_on_frame_lost(&self.table, kind, sid, offset, length, fin)
        release_owners(&self.memory)
        return status


cdef void release_owners(StreamMemory* m):
    for index in range(m.releases.count):
        Py_DECREF(<object> m.releases.tokens[index])
    m.releases.count = 0


cdef size_t echo_sink(
    void* context, Stream* stream, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    """Answer a finished stream as the server of ``bench_exchange``."""
    cdef StreamTable* t = <StreamTable*> context
    if fin:
        streams_send(t, stream, data, size, True)
        streams_release(t, stream, 0)
    return size


cdef size_t close_sink(
    void* context, Stream* stream, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    """Let go of an answered stream as the client of ``bench_exchange``."""
    if fin:
        streams_release(<StreamTable*> context, stream, 0)
    return size


cdef int carry(StreamTable* source, StreamTable* target) noexcept nogil:
    """Bring all that is due to the other end, and acknowledge it."""
    cdef uint8_t packet[1400]
    cdef StreamFrame out[64]
    cdef Writer w
    cdef uint32_t count
    cdef uint32_t index
    cdef int status
    while streams_has_frames(source):
        writer_init(&w, packet, sizeof(packet))
        count = streams_write_frames(source, &w, out, 64)
        status = receive_frames(target, packet, writer_size(&w), 0)
        if status != OK:
            return status
        for index in range(count):
            streams_on_frame_acked(
                source, out[index].kind, out[index].id, out[index].offset,
                out[index].length, out[index].fin,
            )
    return OK


def bench_exchange(uint32_t count, uint32_t size=1024):
    """Run ``count`` exchanges over two tables: open, send, answer, acknowledge, close.

    Args:
        count: Exchanges, one after the other.
        size: Bytes sent each way, up to 1300.

    Returns:
        The exchanges that ended with no stream left at either end.
    """
    cdef StreamMemory memory
    cdef StreamConfig config
    cdef StreamTable client
    cdef StreamTable server
    cdef PeerLimits limits
    cdef StreamEvent event
    cdef Stream* s = NULL
    cdef uint8_t body[1300]
    cdef uint32_t done = 0
    memset(body, 0x55, sizeof(body))
    memset(&limits, 0xFF, sizeof(limits))
    limits.max_streams_bidi = 128
    limits.max_data = 1 << 60
    limits.max_stream_data_bidi_local = 1250000
    limits.max_stream_data_bidi_remote = 1250000
    with nogil:
        streammemory_init(&memory)
        streamconfig_init(&config, True)
        streams_init(&client, &memory, &config, 0)
        config.is_client = False
        streams_init(&server, &memory, &config, 0)
        client.sink, client.sink_context = close_sink, &client
        server.sink, server.sink_context = echo_sink, &server
        streams_set_peer_limits(&client, &limits)
        streams_set_peer_limits(&server, &limits)
        while done < count:
            if streams_open(&client, False, 0, &s) != OK:
                break
            streams_send(&client, s, body, min(size, 1300), True)
            if carry(&client, &server) != OK or carry(&server, &client) != OK:
                break
            while streams_next_event(&server, &event):
                pass
            if client.count or server.count:
                break
            done += 1
        streams_free(&client)
        streams_free(&server)
        streammemory_free(&memory)
    return done
