"""Sent packets until their fate is known, and what each of them carried.

Two stores. Records say what to do once a packet is acknowledged or lost: small structs
from a free list, in circular lists that are known by their last element, so that one
list joins another in two stores. Packets live in a ring by packet number and are linked
oldest to newest, so that those in doubt are found without a look at the settled ones.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


# What a record stands for, and which of its operands count.
cdef enum SentKind:
    SENT_STREAM = 0  # id, offset, length, fin
    SENT_CRYPTO = 1  # offset, length
    SENT_ACK = 2  # id: the largest packet number that was acknowledged
    SENT_MAX_DATA = 3
    SENT_MAX_STREAM_DATA = 4  # id
    SENT_MAX_STREAMS = 5  # id: 0 bidirectional, 1 unidirectional
    SENT_DATA_BLOCKED = 6
    SENT_STREAM_DATA_BLOCKED = 7  # id
    SENT_STREAMS_BLOCKED = 8  # id as in SENT_MAX_STREAMS
    SENT_RESET_STREAM = 9  # id
    SENT_STOP_SENDING = 10  # id
    SENT_NEW_CONNECTION_ID = 11  # id: sequence number
    SENT_RETIRE_CONNECTION_ID = 12  # id: sequence number
    SENT_HANDSHAKE_DONE = 13
    SENT_NEW_TOKEN = 14
    SENT_PATH_CHALLENGE = 15
    SENT_PATH_RESPONSE = 16
    SENT_PING = 17


cdef struct SentFrame:
    SentFrame* next
    uint64_t id
    uint64_t offset
    uint32_t length
    uint8_t kind  # a SentKind
    uint8_t space  # a Space
    bint fin


cdef enum: SLAB_FRAMES = 63


cdef struct FrameSlab:
    FrameSlab* next
    SentFrame frames[SLAB_FRAMES]


# All zero is an empty pool.
cdef struct RecordPool:
    SentFrame* free
    FrameSlab* slabs
    uint64_t in_use


cdef enum PacketFlags:
    PACKET_ACK_ELICITING = 0x01
    PACKET_IN_FLIGHT = 0x02  # ack-eliciting or padded (RFC 9002 2)
    PACKET_MTU_PROBE = 0x04
    PACKET_ECT0 = 0x08  # the datagram was marked ECT(0)
    PACKET_PATH_PROBE = 0x10  # not tracked: see recovery_on_path_probe_sent


cdef struct SentPacket:
    uint64_t pn
    int64_t time_sent
    SentFrame* frames  # the last record; its next is the first
    uint32_t older  # low bits of the neighbours' packet numbers
    uint32_t newer
    uint16_t size
    uint8_t flags


# All zero is an empty store. Numbers are appended in ascending order; from the oldest
# to the newest they span less than 2 ** 31.
cdef struct SentStore:
    SentPacket* ring
    uint32_t capacity  # a power of two, or 0
    uint32_t oldest
    uint32_t newest
    uint32_t tracked
    uint32_t ack_eliciting  # of those tracked


cdef enum SentLimits:
    SENT_FIRST_CAPACITY = 16  # most handshakes need no more in a space
    SENT_KEPT_CAPACITY = 4096  # 160 KiB; a larger ring is given back once empty
    # A larger ring is worth a timer that gives it back: see sent_trim.
    SENT_IDLE_CAPACITY = 64


# Slow paths: OK or OUT_OF_MEMORY.
cdef int records_grow(RecordPool* pool) noexcept nogil
cdef int sent_reserve(SentStore* s, uint64_t pn) noexcept nogil
# Give back what the packets tracked now do not need, and move their records. Without
# memory for that, or if other records are in use, everything stays.
cdef void sent_trim(SentStore* s, RecordPool* pool) noexcept nogil

# Idempotent. Records are not touched by sent_free: they are the pool's.
cdef void records_free(RecordPool* pool) noexcept nogil
cdef void sent_free(SentStore* s) noexcept nogil


# --- Records ------------------------------------------------------------------------

cdef inline SentFrame* record_take(RecordPool* pool, uint8_t kind) noexcept nogil:
    """Return a record with zero operands, or NULL if there is no memory."""
    cdef SentFrame* frame
    if pool.free is NULL and records_grow(pool) != 0:
        return NULL
    frame = pool.free
    pool.free = frame.next
    pool.in_use += 1
    frame.id = 0
    frame.offset = 0
    frame.length = 0
    frame.kind = kind
    frame.space = 0
    frame.fin = False
    return frame


cdef inline void record_give(RecordPool* pool, SentFrame* frame) noexcept nogil:
    frame.next = pool.free
    pool.free = frame
    pool.in_use -= 1


cdef inline void record_append(SentFrame** last, SentFrame* frame) noexcept nogil:
    if last[0] is NULL:
        frame.next = frame
    else:
        frame.next = last[0].next
        last[0].next = frame
    last[0] = frame


cdef inline void record_join(SentFrame** last, SentFrame* other) noexcept nogil:
    """Move the whole list ``other`` to the end."""
    cdef SentFrame* first
    if other is NULL:
        return
    if last[0] is not NULL:
        first = last[0].next
        last[0].next = other.next
        other.next = first
    last[0] = other


cdef inline SentFrame* record_pop(SentFrame** last) noexcept nogil:
    """Take the first record of a list, NULL if it is empty."""
    cdef SentFrame* first
    if last[0] is NULL:
        return NULL
    first = last[0].next
    if first == last[0]:
        last[0] = NULL
    else:
        last[0].next = first.next
    return first


# --- Packets ------------------------------------------------------------------------

cdef inline SentPacket* sent_at(const SentStore* s, uint32_t low) noexcept nogil:
    # The mask keeps the index within the ring.
    return &s.ring[low & (s.capacity - 1)]


cdef inline SentPacket* sent_oldest(const SentStore* s) noexcept nogil:
    if s.tracked == 0:
        return NULL
    return sent_at(s, s.oldest)


cdef inline SentPacket* sent_newer(
    const SentStore* s, const SentPacket* p
) noexcept nogil:
    """Return the packet that follows, NULL after the newest."""
    if <uint32_t> p.pn == s.newest:
        return NULL
    return sent_at(s, p.newer)


cdef inline SentPacket* sent_append(
    SentStore* s, uint64_t pn, uint8_t flags
) noexcept nogil:
    """Track a packet; NULL is out of memory. The other fields are to be filled in."""
    cdef SentPacket* p
    cdef uint32_t low = <uint32_t> pn
    if (
        s.tracked == 0 or pn - sent_at(s, s.oldest).pn >= s.capacity
    ) and sent_reserve(s, pn) != 0:
        return NULL
    p = sent_at(s, low)
    p.pn = pn
    p.flags = flags
    if s.tracked:
        p.older = s.newest
        sent_at(s, s.newest).newer = low
    else:
        s.oldest = low
    s.newest = low
    s.tracked += 1
    if flags & PACKET_ACK_ELICITING:
        s.ack_eliciting += 1
    return p


cdef inline void sent_remove(SentStore* s, SentPacket* p) noexcept nogil:
    """Stop tracking a packet, whose slot stays readable until the next append."""
    cdef uint32_t low = <uint32_t> p.pn
    if low != s.oldest and low != s.newest:
        sent_at(s, p.older).newer = p.newer
        sent_at(s, p.newer).older = p.older
    else:
        # If it was the only one, both ends are meaningless from here on.
        if low == s.oldest:
            s.oldest = p.newer
        if low == s.newest:
            s.newest = p.older
    s.tracked -= 1
    if p.flags & PACKET_ACK_ELICITING:
        s.ack_eliciting -= 1
