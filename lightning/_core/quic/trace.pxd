"""A bounded ring of raw records of what connections do, for whoever writes a trace.

Records are appended under the endpoint's mutex and taken under it, in batches. Nothing
here waits or allocates: what does not fit is counted and left out. The ring knows
neither connections nor files. Times are microseconds, sizes bytes.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum TraceLimits:
    TRACE_CAPACITY = 4194304  # of a ring; a power of two
    # The last part of the ring is for rare records, so that a flood of packets does not
    # hide where a connection began and how it ended.
    TRACE_RESERVE = 65536
    # What one read takes at most; it holds the largest record.
    TRACE_PIECE = 131072
    TRACE_UNKNOWN_TYPE = 255  # of a packet that was dropped before its header was read


# What follows a record's head, if anything does; integers in the machine's order.
cdef enum TraceKind:
    # The address's family (4 or 6) and port as uint16, its 16 bytes, then the original
    # destination and our first source connection ID, each after its size in a byte.
    TRACE_STARTED = 0
    TRACE_SENT = 1  # the payload before it was sealed; detail: it searches the MTU
    TRACE_RECEIVED = 2  # the payload after it was opened
    TRACE_DROPPED = 3  # detail: a TraceDrop
    TRACE_LOST = 4
    # int64: cwnd, bytes in flight, ssthresh (-1 is none), smoothed, minimum and latest
    # RTT, its variance, PTO count, packets lost.
    TRACE_METRICS = 5
    TRACE_KEY_UPDATED = 6  # number: for sealing; detail: a TraceTrigger
    TRACE_KEY_DISCARDED = 7  # number: for sealing
    # uint64: idle timeout, ACK delay exponent, maximum ACK delay, maximum UDP payload,
    # active connection IDs, then the fields of PeerLimits.
    TRACE_PARAMETERS = 8
    TRACE_PATH = 9  # the new address, as in TRACE_STARTED
    # uint64: the frame that was at fault; then the reason. number: the code; detail:
    # a CloseInitiator; type: whether the code is the application's.
    TRACE_CLOSED = 10
    TRACE_ENDED = 11  # nothing follows for this connection


cdef enum TraceDrop:
    DROP_UNEXPECTED = 0
    DROP_INITIAL = 1
    DROP_SOURCE = 2
    DROP_HEADER = 3
    DROP_DUPLICATE = 4
    DROP_NO_KEY = 5
    DROP_UNAUTHENTIC = 6


cdef enum TraceTrigger:
    TRIGGER_TLS = 0
    TRIGGER_REMOTE = 1
    TRIGGER_LOCAL = 2


cdef struct TraceRecord:
    int64_t time  # filled in by trace_append
    uint64_t connection
    uint64_t number  # of a packet
    uint32_t size  # of a packet
    uint16_t length  # of the bytes that follow; filled in by trace_append
    uint8_t kind  # a TraceKind
    uint8_t type  # a PacketType
    uint8_t detail
    uint8_t ecn  # the two bits of the IP header


cdef struct Trace:
    const int64_t* clock  # read for each record; never goes back
    uint8_t* ring
    size_t capacity
    uint64_t written  # bytes ever
    uint64_t taken
    uint64_t dropped  # records that did not fit, since they were last told


# `capacity` is a power of two, above TRACE_RESERVE; NULL is out of memory. `clock`
# outlives the ring. Freeing NULL is no error.
cdef Trace* trace_new(const int64_t* clock, size_t capacity) noexcept nogil
cdef void trace_free(Trace* t) noexcept nogil
cdef void trace_append(
    Trace* t, TraceRecord* record, const uint8_t* data, size_t size
) noexcept nogil
# Move whole records out, oldest first; `capacity` is TRACE_PIECE at least. Returns the
# bytes, 0 if there is nothing.
cdef size_t trace_read(Trace* t, uint8_t* out, size_t capacity) noexcept nogil
# Return what `trace_read` gave as a list of tuples: time, connection, kind as a name,
# number, size, type, detail, ECN bits, and the bytes that follow.
cdef list trace_records(const uint8_t* data, size_t size)
