"""Flow control: what each end allows the other to send and to open.

Four small records, all inline. A receiver's windows move with what the application has
consumed and never with what arrived, so the memory a peer can fill is what it was
granted. Each ``*_lost`` says if the lost frame has to be written again; it is then
written with the value of that moment.

Source: RFC 9000 section 4.
"""

from libc.stdint cimport int64_t, uint64_t

from lightning._core.quic.buffer cimport E_FLOW_CONTROL, OK, VARINT_MAX


# No more streams of a kind can be named in a 62-bit identifier (RFC 9000 section 4.6).
cdef enum: STREAMS_MAX = 0x1000000000000000


# --- Receiving data: of a stream, or of the connection as the sum of its streams ------

cdef struct RecvWindow:
    uint64_t limit  # the peer may send up to here; what a MAX_* frame would say now
    uint64_t received  # the highest offset received, data or final size
    uint64_t consumed  # bytes that the application is done with
    uint64_t size  # a raise sets the limit to consumed + size
    uint64_t max_size  # size doubles up to here
    uint64_t advertised  # value of the last MAX_* frame written
    int64_t raised  # time of the last raise, in microseconds


cdef inline void window_init(
    RecvWindow* w, uint64_t size, uint64_t max_size, int64_t now
) noexcept nogil:
    """Start with the limit that the transport parameters told the peer."""
    w.limit = min(size, <uint64_t> VARINT_MAX)
    w.received = 0
    w.consumed = 0
    w.size = w.limit
    w.max_size = max(max_size, size)
    w.advertised = w.limit
    w.raised = now


cdef inline bint window_allows(const RecvWindow* w, uint64_t size) noexcept nogil:
    """Say if ``size`` more bytes stay within the limit (RFC 9000 section 4.1)."""
    return size <= w.limit - w.received


cdef inline int window_receive(RecvWindow* w, uint64_t size) noexcept nogil:
    """Count ``size`` bytes above the highest offset so far: OK or E_FLOW_CONTROL."""
    if not window_allows(w, size):
        return E_FLOW_CONTROL
    w.received += size
    return OK


cdef inline bint window_consume(
    RecvWindow* w, uint64_t size, int64_t now, int64_t rtt
) noexcept nogil:
    """Count consumed bytes and say if a MAX_* frame came due.

    It does when half of the window or less is left. ``rtt`` is in microseconds, 0 if
    it is not known; half of the window in less than one round trip, the whole in less
    than two, doubles the window.
    """
    cdef uint64_t limit
    w.consumed += size
    if w.limit - w.consumed > w.size >> 1:
        return False
    if now - w.raised < rtt and w.size < w.max_size:
        w.size = w.max_size if w.size > w.max_size >> 1 else w.size << 1
    w.raised = now
    limit = <uint64_t> VARINT_MAX
    if w.size < limit - w.consumed:
        limit = w.consumed + w.size
    if limit <= w.limit:
        return False
    w.limit = limit
    return True


cdef inline bint window_lost(const RecvWindow* w, uint64_t value) noexcept nogil:
    """Say if the lost MAX_* frame was the newest; an older one has been replaced."""
    return value == w.advertised


# --- Sending data, and opening streams (counted instead of bytes) ---------------------

cdef struct SendLimit:
    uint64_t limit  # the peer allows up to here
    uint64_t used
    uint64_t blocked  # 1 + the limit at which *_BLOCKED was last due, 0 for never


cdef inline void limit_init(SendLimit* l, uint64_t value) noexcept nogil:
    l.limit = value
    l.used = 0
    l.blocked = 0


cdef inline uint64_t limit_left(const SendLimit* l) noexcept nogil:
    return l.limit - l.used


cdef inline bint limit_raise(SendLimit* l, uint64_t value) noexcept nogil:
    """Take a MAX_* frame's value; a lower one than before is ignored (section 4.1)."""
    if value <= l.limit:
        return False
    l.limit = value
    return True


cdef inline bint limit_block(SendLimit* l) noexcept nogil:
    """Say if a *_BLOCKED frame is due: one for each limit that is run into."""
    if l.blocked == l.limit + 1:
        return False
    l.blocked = l.limit + 1
    return True


cdef inline bint limit_lost(const SendLimit* l, uint64_t value) noexcept nogil:
    """Say if the lost *_BLOCKED frame is still true."""
    return l.limit == value and l.blocked == value + 1 and l.used == l.limit


# --- Streams that the peer may open ---------------------------------------------------

cdef struct StreamCredit:
    uint64_t limit  # streams granted; what a MAX_STREAMS frame would say now
    uint64_t opened  # streams opened, those skipped over included
    uint64_t closed  # streams closed on both sides and let go by the application
    uint64_t concurrent  # most streams open at a time
    uint64_t advertised  # value of the last MAX_STREAMS frame written


cdef inline void credit_init(StreamCredit* c, uint64_t concurrent) noexcept nogil:
    c.concurrent = min(concurrent, <uint64_t> STREAMS_MAX)
    c.limit = c.concurrent
    c.opened = 0
    c.closed = 0
    c.advertised = c.concurrent


cdef inline bint credit_raise(StreamCredit* c) noexcept nogil:
    """Say if a MAX_STREAMS frame came due.

    It does when half of the streams that may be open at a time, or fewer, are left to
    the peer and some have closed. Called after ``opened`` or ``closed`` has moved.
    """
    cdef uint64_t limit
    if c.limit - c.opened > c.concurrent >> 1:
        return False
    limit = <uint64_t> STREAMS_MAX
    if c.concurrent < limit - c.closed:
        limit = c.closed + c.concurrent
    if limit == c.limit:
        return False
    c.limit = limit
    return True


cdef inline bint credit_lost(const StreamCredit* c, uint64_t value) noexcept nogil:
    """Say if the lost MAX_STREAMS frame was the newest."""
    return value == c.advertised
