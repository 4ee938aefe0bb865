"""An ordered set of disjoint half-open ranges, unbounded, every change O(log n).

What a sender remembers of a stream: offsets acknowledged out of order, offsets to send
again. Their number is bounded by the packets in flight and not by a constant, and the
peer chooses the order in which they change; hence a skip list and not the array of
``ranges``.
"""

from libc.stdint cimport uint32_t, uint64_t


# One level in four rises to the next: searches stay logarithmic to 4 ** 8 spans.
cdef enum: SPANS_LEVELS = 8


cdef struct Span:
    uint64_t start
    uint64_t end  # not in the span; always above start
    Span* next[SPANS_LEVELS]  # next[0] is the span that follows, NULL after the last


cdef struct Spans:
    Span* head  # the links of each level; no span itself; NULL until the first one
    uint32_t count
    uint32_t random  # state of the generator that deals out levels


# Life. Init allocates nothing, free may be called again.
cdef void spans_init(Spans* s) noexcept nogil
cdef void spans_free(Spans* s) noexcept nogil

# Change. OK or OUT_OF_MEMORY, which changes nothing; an empty range changes nothing.
cdef int spans_add(Spans* s, uint64_t start, uint64_t end) noexcept nogil
cdef int spans_remove(Spans* s, uint64_t start, uint64_t end) noexcept nogil
# Remove up to `size` numbers from the front of the first span.
cdef void spans_take(Spans* s, uint64_t size) noexcept nogil

# Look up the first span that ends above `value`; it may start above it too.
cdef Span* spans_from(const Spans* s, uint64_t value) noexcept nogil


cdef inline Span* spans_first(const Spans* s) noexcept nogil:
    """Return the lowest span, NULL if there is none."""
    return s.head.next[0] if s.head is not NULL else NULL


cdef inline bint spans_contains(const Spans* s, uint64_t value) noexcept nogil:
    cdef Span* span
    if not s.count:
        return False
    span = spans_from(s, value)
    return span is not NULL and span.start <= value
