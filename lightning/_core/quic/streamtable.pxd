"""The streams of a connection: their records, found by identifier, made and freed.

Application code and connection use ``streams`` and ``streamsend``; this module has the
records that both work on, and the few steps that keep them in order.

A stream's record lives until both of its parts are done *and* the layer above has let
go of it (``streams_release``): until then a pointer to it is good, and its peer gets no
credit for another. An identifier without a record is one not opened yet, one that the
peer skipped over, or one that is closed.

Source: RFC 9000 sections 2, 3 and 4.6.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.quic.flow cimport (
    RecvWindow, SendLimit, StreamCredit, limit_left,
)
from lightning._core.quic.pool cimport Pool
from lightning._core.quic.reassembly cimport Reassembly
from lightning._core.quic.sendbuf cimport Releases, SendBuffer
from lightning._core.quic.spans cimport Spans


cdef enum StreamTableLimits:
    # Records kept while unused, of about 450 bytes, each with its little arrays.
    STREAMS_KEEP = 256


# RFC 9000 section 2.1: the two lowest bits of an identifier.
cdef enum StreamIdBits:
    STREAM_BY_SERVER = 1
    STREAM_IS_UNI = 2


# The index of what there is one of for each direction; without a type, to be one.
cdef enum:
    BIDI = 0
    UNI = 1


# RFC 9000 section 3.1.
cdef enum SendState:
    SEND_NONE = 0  # a unidirectional stream of the peer
    SEND_READY = 1
    SEND_SEND = 2
    SEND_DATA_SENT = 3
    SEND_RESET_SENT = 4
    SEND_DATA_RECVD = 5  # done
    SEND_RESET_RECVD = 6  # done


# RFC 9000 section 3.2. "Reset Read" is RECV_RESET too: it lasts while the layer above
# holds the stream.
cdef enum RecvState:
    RECV_NONE = 0  # a unidirectional stream of ours
    RECV_RECV = 1
    RECV_SIZE_KNOWN = 2
    RECV_DATA_RECVD = 3
    RECV_DATA_READ = 4  # done, or nobody wants the rest and its size is known
    RECV_RESET = 5  # done


# Frames that a stream has due, besides STREAM frames.
cdef enum StreamDue:
    DUE_RESET_STREAM = 1
    DUE_STOP_SENDING = 2
    DUE_MAX_STREAM_DATA = 4
    DUE_STREAM_DATA_BLOCKED = 8


# Frames that the connection has due; << UNI for the unidirectional kind.
cdef enum TableDue:
    DUE_MAX_DATA = 1
    DUE_DATA_BLOCKED = 2
    DUE_MAX_STREAMS = 4
    DUE_STREAMS_BLOCKED = 16


# What the layer above is told; of one stream in this order. Kinds are bits.
cdef enum StreamEventKind:
    EVENT_OPENED = 1  # by the peer; the layer above holds it from now on
    # Before what ends the other direction: a peer that refuses a request stops us and
    # finishes with nothing, mostly in one datagram.
    EVENT_STOPPED = 2  # the peer wants no more, with a code; sending was reset
    EVENT_READABLE = 4  # bytes, or the end, that no sink took
    EVENT_RESET = 8  # by the peer, with a code; buffered bytes are gone
    EVENT_WRITABLE = 16  # after STREAMS_FULL: there is room again
    EVENT_ACKED = 32  # everything, with the FIN, was acknowledged
    EVENT_OPENABLE = 64  # no stream: after STREAMS_LIMIT, one may be opened


cdef struct StreamEvent:
    Stream* stream  # NULL for EVENT_OPENABLE
    uint64_t code  # of EVENT_RESET, EVENT_STOPPED; of EVENT_OPENABLE BIDI or UNI
    uint8_t kind


# The lists that a stream may be in; without a type, to be an index.
cdef enum:
    LIST_READY = 0  # has STREAM frames due
    LIST_BLOCKED = 1  # would, if the connection's limit let it
    LIST_CONTROL = 2  # has StreamDue frames
    LIST_EVENTS = 3
    LIST_WAITING = 4  # was refused bytes with STREAMS_FULL
    LIST_COUNT = 5


cdef struct Stream


# Given bytes that are next in line, returns how many it took: from 0 to size. `fin`
# says that the end follows the bytes; if all of them are taken it is taken too. A size
# of 0 comes with `fin` only. The sink runs with the mutex held and may call the verbs
# of `streams`, but not consume or resume, and none of streams_on_*.
ctypedef size_t (*StreamSink)(
    void* context, Stream* stream, const uint8_t* data, size_t size, bint fin
) noexcept nogil


cdef struct Stream:
    uint64_t id
    void* user  # of the layer above; NULL in a new stream
    # Where bytes in order go without a copy; NULL to have them buffered and read. A new
    # stream has its table's; the layer above may set another.
    StreamSink sink
    Stream* chain  # the next of the same bucket, or of the unused
    Stream* after[LIST_COUNT]
    Stream* before[LIST_COUNT]
    uint8_t listed  # 1 << LIST_*
    uint8_t due  # StreamDue
    uint8_t events  # StreamEventKind
    uint8_t send_state
    uint8_t recv_state
    bint held  # by the layer above
    bint discards  # what comes in: nobody will read it
    bint asked  # STOP_SENDING came due once
    bint paused  # the sink took less than it was offered
    bint stopped  # STOP_SENDING came when all was sent: reset rather than send again
    # Sending.
    SendBuffer send
    SendLimit limit  # the peer's MAX_STREAM_DATA
    int64_t sent_at  # when the end was first sent; 0 before
    uint64_t reset_code  # ours
    uint64_t stop_code  # the peer's
    # Receiving.
    Reassembly recv
    RecvWindow window
    uint64_t peer_reset_code
    uint64_t our_stop_code


# Shared by all connections of an endpoint, under its mutex.
cdef struct StreamMemory:
    Pool blocks
    Releases releases  # owners of referenced bodies to be given back: see Releases
    Stream* unused
    uint32_t kept
    uint64_t in_use  # records


# Sizes in bytes. Worst case a connection: max_data_window received and not consumed,
# and max_buffered plus one write a stream to be sent.
cdef struct StreamConfig:
    bint is_client
    # Our transport parameters (RFC 9000 section 18.2).
    uint64_t max_data
    uint64_t max_stream_data_bidi_local
    uint64_t max_stream_data_bidi_remote
    uint64_t max_stream_data_uni
    uint64_t max_streams_bidi
    uint64_t max_streams_uni
    # The windows double up to these.
    uint64_t max_data_window
    uint64_t max_stream_window
    # Bytes appended and not acknowledged, above which a write is refused.
    uint64_t max_buffered
    uint64_t max_stream_buffered
    # Streams of ours alive at a time, whatever the peer grants: one that grants all
    # and finishes none must not fill our memory.
    uint32_t max_local_streams


cdef struct PeerLimits:  # the peer's transport parameters
    uint64_t max_data
    uint64_t max_stream_data_bidi_local
    uint64_t max_stream_data_bidi_remote
    uint64_t max_stream_data_uni
    uint64_t max_streams_bidi
    uint64_t max_streams_uni


cdef struct StreamTable:
    StreamMemory* memory
    StreamConfig config
    PeerLimits peer
    # Records by identifier: a table of chains, NULL until the first stream.
    Stream** buckets
    uint32_t bucket_count  # a power of two
    uint32_t count
    uint32_t local_count  # streams of ours among them
    # Opening, by BIDI and UNI.
    SendLimit local[2]  # counts streams; `used` is the next index
    bint refused[2]  # STREAMS_LIMIT was answered since the last EVENT_OPENABLE
    StreamCredit remote[2]
    Spans skipped[2]  # indexes below `opened` that had no frame yet
    # Flow control of the connection.
    RecvWindow window
    SendLimit limit
    int64_t rtt  # smoothed, in microseconds; 0 is unknown. Kept up by the connection
    int64_t now  # likewise, while frames are written
    # Work.
    Stream* first[LIST_COUNT]
    Stream* last[LIST_COUNT]
    uint8_t due  # TableDue
    uint8_t openable  # 1 << BIDI, 1 << UNI: EVENT_OPENABLE waits
    uint64_t send_buffered  # bytes appended and not acknowledged in order
    uint64_t recv_buffered  # bytes received, held and not consumed
    StreamSink sink  # of new streams
    void* sink_context
    Stream* pinned  # the stream that the sink is at work on; not freed meanwhile


# Life. The configuration's init sets the defaults. The memory outlives its tables.
cdef void streamconfig_init(StreamConfig* c, bint is_client) noexcept nogil
cdef void streammemory_init(StreamMemory* m) noexcept nogil
cdef void streammemory_free(StreamMemory* m) noexcept nogil
cdef void streams_init(
    StreamTable* t, StreamMemory* memory, const StreamConfig* config, int64_t now
) noexcept nogil
# Every pointer to a stream of the table is void after this.
cdef void streams_free(StreamTable* t) noexcept nogil

# Records. Create returns NULL if there is no memory. Settle frees the record if it has
# come to its end, else does nothing; either way it is the last thing done to a stream.
cdef Stream* table_create(StreamTable* t, uint64_t id, int64_t now) noexcept nogil
cdef void table_settle(StreamTable* t, Stream* s) noexcept nogil

# Find the stream that a frame names, made if the peer opens it so. NULL in `found` is a
# stream that is closed: the frame is ignored. For a frame about data from the peer
# `receiving` is True. OK, OUT_OF_MEMORY, E_STREAM_STATE or E_STREAM_LIMIT.
cdef int table_of_frame(
    StreamTable* t, uint64_t id, bint receiving, int64_t now, Stream** found
) noexcept nogil


cdef inline uint32_t table_bucket(const StreamTable* t, uint64_t id) noexcept nogil:
    # Identifiers of one kind are consecutive but for these bits.
    return <uint32_t> ((id >> 2) + (id & 3) * 5) & (t.bucket_count - 1)


cdef inline Stream* table_find(const StreamTable* t, uint64_t id) noexcept nogil:
    """Return the record of an identifier, NULL if there is none."""
    cdef Stream* s
    if not t.count:
        return NULL
    s = t.buckets[table_bucket(t, id)]
    while s is not NULL and s.id != id:
        s = s.chain
    return s


cdef inline bint stream_is_local(const StreamTable* t, uint64_t id) noexcept nogil:
    return (id & STREAM_BY_SERVER) == (0 if t.config.is_client else STREAM_BY_SERVER)


# --- Lists: intrusive, so that a stream leaves one from its middle in a few stores. ---

cdef inline void list_push(StreamTable* t, int which, Stream* s) noexcept nogil:
    """Append, unless it is in the list already."""
    if s.listed & (1 << which):
        return
    s.listed |= 1 << which
    s.after[which] = NULL
    s.before[which] = t.last[which]
    if t.last[which] is NULL:
        t.first[which] = s
    else:
        t.last[which].after[which] = s
    t.last[which] = s


cdef inline void list_push_first(StreamTable* t, int which, Stream* s) noexcept nogil:
    """Put in front, unless it is in the list already."""
    if s.listed & (1 << which):
        return
    s.listed |= 1 << which
    s.before[which] = NULL
    s.after[which] = t.first[which]
    if t.first[which] is NULL:
        t.last[which] = s
    else:
        t.first[which].before[which] = s
    t.first[which] = s


cdef inline void list_remove(StreamTable* t, int which, Stream* s) noexcept nogil:
    """Take out, if it is in the list."""
    if not s.listed & (1 << which):
        return
    s.listed &= ~(1 << which)
    if s.before[which] is NULL:
        t.first[which] = s.after[which]
    else:
        s.before[which].after[which] = s.after[which]
    if s.after[which] is NULL:
        t.last[which] = s.before[which]
    else:
        s.after[which].before[which] = s.before[which]


cdef inline void table_due(StreamTable* t, Stream* s, uint8_t due) noexcept nogil:
    """Have a frame of the stream written, one of StreamDue."""
    s.due |= due
    list_push(t, LIST_CONTROL, s)


cdef inline void table_allow_opening(StreamTable* t, int direction) noexcept nogil:
    """Tell the layer above, if it was refused a stream that it would get now."""
    if (
        t.refused[direction]
        and t.local_count < t.config.max_local_streams
        and limit_left(&t.local[direction])
    ):
        t.refused[direction] = False
        t.openable |= 1 << direction


cdef inline void table_event(StreamTable* t, Stream* s, uint8_t kind) noexcept nogil:
    """Tell the layer above, if it holds the stream."""
    if s.held:
        s.events |= kind
        list_push(t, LIST_EVENTS, s)
