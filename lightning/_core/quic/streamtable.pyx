"""The records of a connection's streams, from the first frame to the last.

Source: RFC 9000 sections 2.1, 3 and 4.6.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from lightning._core.quic.buffer cimport (
    E_STREAM_LIMIT, E_STREAM_STATE, OK, OUT_OF_MEMORY,
)
from lightning._core.quic.flow cimport (
    credit_init, credit_raise, limit_init, window_init,
)
from lightning._core.quic.pool cimport POOL_KEEP, pool_free, pool_init
from lightning._core.quic.reassembly cimport (
    reassembly_clear, reassembly_free, reassembly_init,
)
from lightning._core.quic.sendbuf cimport (
    releases_free, releases_init, sendbuf_clear, sendbuf_free, sendbuf_init,
)
from lightning._core.quic.spans cimport (
    spans_add, spans_contains, spans_free, spans_init, spans_remove,
)

cdef enum: FIRST_BUCKETS = 64


cdef void streamconfig_init(StreamConfig* c, bint is_client) noexcept nogil:
    c.is_client = is_client
    # A stream's window is the peer's (wire-compatible btlightning: 1,250,000 each).
    c.max_data = 4 << 20
    c.max_stream_data_bidi_local = 1250000
    c.max_stream_data_bidi_remote = 1250000
    c.max_stream_data_uni = 1250000
    c.max_streams_bidi = 128
    c.max_streams_uni = 0
    c.max_data_window = 16 << 20
    c.max_stream_window = 8 << 20
    c.max_buffered = 10 << 20
    c.max_stream_buffered = 2 << 20
    c.max_local_streams = 16384


cdef void streammemory_init(StreamMemory* m) noexcept nogil:
    pool_init(&m.blocks, POOL_KEEP)
    releases_init(&m.releases)
    m.unused = NULL
    m.kept = 0
    m.in_use = 0


cdef void streammemory_free(StreamMemory* m) noexcept nogil:
    cdef Stream* s
    while m.unused is not NULL:
        s = m.unused
        m.unused = s.chain
        free_record(s)
    m.kept = 0
    releases_free(&m.releases)
    pool_free(&m.blocks)


cdef void streams_init(
    StreamTable* t, StreamMemory* memory, const StreamConfig* config, int64_t now
) noexcept nogil:
    cdef int direction
    memset(t, 0, sizeof(StreamTable))
    t.memory = memory
    t.config = config[0]
    # The peer's limits are 0 until `streams_set_peer_limits`.
    for direction in range(2):
        limit_init(&t.local[direction], 0)
        spans_init(&t.skipped[direction])
    credit_init(&t.remote[BIDI], config.max_streams_bidi)
    credit_init(&t.remote[UNI], config.max_streams_uni)
    window_init(&t.window, config.max_data, config.max_data_window, now)
    limit_init(&t.limit, 0)


cdef void streams_free(StreamTable* t) noexcept nogil:
    cdef uint32_t bucket
    cdef Stream* s
    for bucket in range(t.bucket_count):
        while t.buckets[bucket] is not NULL:
            s = t.buckets[bucket]
            t.buckets[bucket] = s.chain
            give_record(t.memory, s)
    free(t.buckets)
    spans_free(&t.skipped[BIDI])
    spans_free(&t.skipped[UNI])
    memset(t, 0, sizeof(StreamTable))


cdef Stream* table_create(StreamTable* t, uint64_t id, int64_t now) noexcept nogil:
    cdef Stream* s
    cdef uint64_t window
    cdef uint64_t limit
    if t.count >= t.bucket_count and not grow_buckets(t):
        return NULL
    s = take_record(t.memory)
    if s is NULL:
        return NULL
    s.id = id
    s.send_state = SEND_READY
    s.recv_state = RECV_RECV
    s.held = True
    s.sink = t.sink
    if stream_is_local(t, id):
        t.local_count += 1
        if id & STREAM_IS_UNI:
            s.recv_state = RECV_NONE
            window = 0
            limit = t.peer.max_stream_data_uni
        else:
            window = t.config.max_stream_data_bidi_local
            limit = t.peer.max_stream_data_bidi_remote
    elif id & STREAM_IS_UNI:
        s.send_state = SEND_NONE
        window = t.config.max_stream_data_uni
        limit = 0
    else:
        window = t.config.max_stream_data_bidi_remote
        limit = t.peer.max_stream_data_bidi_local
    limit_init(&s.limit, limit)
    window_init(&s.window, window, t.config.max_stream_window, now)
    s.chain = t.buckets[table_bucket(t, id)]
    t.buckets[table_bucket(t, id)] = s
    t.count += 1
    return s


cdef void table_settle(StreamTable* t, Stream* s) noexcept nogil:
    cdef Stream** link
    cdef int direction
    if s.held or s is t.pinned:
        return
    if s.send_state != SEND_NONE and s.send_state < SEND_DATA_RECVD:
        return
    if s.recv_state != RECV_NONE and s.recv_state < RECV_DATA_READ:
        return
    link = &t.buckets[table_bucket(t, s.id)]
    while link[0] is not s:
        link = &link[0].chain
    link[0] = s.chain
    t.count -= 1
    for which in range(LIST_COUNT):
        list_remove(t, which, s)
    direction = UNI if s.id & STREAM_IS_UNI else BIDI
    if stream_is_local(t, s.id):
        t.local_count -= 1
        for other in range(2):
            table_allow_opening(t, other)
    else:
        # Only now may the peer open another one in its place: opening and resetting
        # streams fast gains it nothing.
        t.remote[direction].closed += 1
        if credit_raise(&t.remote[direction]):
            t.due |= DUE_MAX_STREAMS << direction
    give_record(t.memory, s)


cdef int table_of_frame(
    StreamTable* t, uint64_t id, bint receiving, int64_t now, Stream** found
) noexcept nogil:
    cdef bint local = stream_is_local(t, id)
    cdef int direction = UNI if id & STREAM_IS_UNI else BIDI
    cdef uint64_t index = id >> 2
    found[0] = NULL
    # RFC 9000 sections 19.4, 19.5, 19.8, 19.10 and 19.13: the part that the frame is
    # about does not exist.
    if direction == UNI and local == receiving:
        return E_STREAM_STATE
    found[0] = table_find(t, id)
    if found[0] is not NULL:
        return OK
    if local:
        # The same sections: a stream of ours that we have not opened.
        if index >= t.local[direction].used:
            return E_STREAM_STATE
        return OK
    # RFC 9000 section 4.6.
    if index >= t.remote[direction].limit:
        return E_STREAM_LIMIT
    return open_remote(t, id, now, found)


cdef int open_remote(
    StreamTable* t, uint64_t id, int64_t now, Stream** found
) noexcept nogil:
    """Make the record of an identifier that has none, unless it is closed."""
    cdef int direction = UNI if id & STREAM_IS_UNI else BIDI
    cdef uint64_t index = id >> 2
    cdef Stream* s
    cdef int status
    if index < t.remote[direction].opened:
        if not spans_contains(&t.skipped[direction], index):
            return OK
        status = spans_remove(&t.skipped[direction], index, index + 1)
    else:
        # RFC 9000 section 3.2: this opens all of a lower index too. They get a record
        # when a frame names them.
        status = spans_add(
            &t.skipped[direction], t.remote[direction].opened, index
        )
    if status != OK:
        return status
    s = table_create(t, id, now)
    if s is NULL:
        return OUT_OF_MEMORY
    if index >= t.remote[direction].opened:
        t.remote[direction].opened = index + 1
        if credit_raise(&t.remote[direction]):
            t.due |= DUE_MAX_STREAMS << direction
    table_event(t, s, EVENT_OPENED)
    found[0] = s
    return OK


cdef bint grow_buckets(StreamTable* t) noexcept nogil:
    """Double the buckets. False if there are none for lack of memory."""
    cdef uint32_t old_count = t.bucket_count
    cdef Stream** old = t.buckets
    cdef uint32_t count = old_count * 2 if old_count else FIRST_BUCKETS
    cdef uint32_t bucket
    cdef Stream** buckets
    cdef Stream* s
    if not count:  # 2 ** 32; it wrapped.
        return True
    buckets = <Stream**> calloc(count, sizeof(Stream*))
    if buckets is NULL:
        return old is not NULL  # longer chains do as well
    t.buckets = buckets
    t.bucket_count = count
    for bucket in range(old_count):
        while old[bucket] is not NULL:
            s = old[bucket]
            old[bucket] = s.chain
            s.chain = buckets[table_bucket(t, s.id)]
            buckets[table_bucket(t, s.id)] = s
    free(old)
    return True


cdef Stream* take_record(StreamMemory* m) noexcept nogil:
    """Return a record whose fields are all as new, or NULL."""
    cdef Stream* s = m.unused
    if s is not NULL:
        m.unused = s.chain
        m.kept -= 1
    else:
        s = <Stream*> calloc(1, sizeof(Stream))
        if s is NULL:
            return NULL
        sendbuf_init(&s.send, &m.blocks, &m.releases)
        reassembly_init(&s.recv, &m.blocks)
    m.in_use += 1
    return s


cdef void give_record(StreamMemory* m, Stream* s) noexcept nogil:
    m.in_use -= 1
    sendbuf_clear(&s.send)
    reassembly_clear(&s.recv)
    if m.kept >= STREAMS_KEEP:
        free_record(s)
        return
    s.user = NULL
    s.listed = 0
    s.due = 0
    s.events = 0
    s.discards = False
    s.asked = False
    s.sent_at = 0
    s.our_stop_code = 0
    s.paused = False
    s.stopped = False
    s.chain = m.unused
    m.unused = s
    m.kept += 1


cdef void free_record(Stream* s) noexcept nogil:
    sendbuf_free(&s.send)
    reassembly_free(&s.recv)
    free(s)
