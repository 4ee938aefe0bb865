"""Ordered sets of disjoint ranges as a skip list.

Spans that touch are one, so two neighbours always have a gap between them.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY


cdef void spans_init(Spans* s) noexcept nogil:
    s.head = NULL
    s.count = 0
    s.random = 0x9E3779B9


cdef void spans_free(Spans* s) noexcept nogil:
    cdef Span* span = s.head
    cdef Span* after
    while span is not NULL:
        after = span.next[0]
        free(span)
        span = after
    s.head = NULL
    s.count = 0


cdef int spans_add(Spans* s, uint64_t start, uint64_t end) noexcept nogil:
    cdef Span* before[SPANS_LEVELS]
    cdef Span* span
    cdef Span* after
    if start >= end:
        return OK
    if s.head is NULL:
        s.head = <Span*> calloc(1, sizeof(Span))
        if s.head is NULL:
            return OUT_OF_MEMORY
    find(s, start, before)
    span = before[0].next[0]
    if span is NULL or span.start > end:
        return insert(s, before, start, end)
    span.start = min(span.start, start)
    if end <= span.end:
        return OK
    span.end = end
    step(before, span)
    after = span.next[0]
    while after is not NULL and after.start <= end:
        span.end = max(end, after.end)
        unlink(s, before, after)
        after = span.next[0]
    return OK


cdef int spans_remove(Spans* s, uint64_t start, uint64_t end) noexcept nogil:
    cdef Span* before[SPANS_LEVELS]
    cdef Span* span
    cdef int status
    if not s.count or start >= end:
        return OK
    # Spans that end at `start` stay: there is no touching in a removal.
    find(s, start + 1, before)
    span = before[0].next[0]
    if span is not NULL and span.start < start:
        step(before, span)
        if span.end > end:
            status = insert(s, before, end, span.end)
            if status == OK:
                span.end = start
            return status
        span.end = start
        span = span.next[0]
    while span is not NULL and span.end <= end:
        unlink(s, before, span)
        span = before[0].next[0]
    if span is not NULL and span.start < end:
        span.start = end
    return OK


cdef void spans_take(Spans* s, uint64_t size) noexcept nogil:
    cdef Span* span = spans_first(s)
    cdef Span* before[SPANS_LEVELS]
    if span is NULL:
        return
    if size < span.end - span.start:
        span.start += size
        return
    for level in range(SPANS_LEVELS):
        before[level] = s.head
    unlink(s, before, span)


cdef Span* spans_from(const Spans* s, uint64_t value) noexcept nogil:
    cdef Span* span = s.head
    cdef int level
    if span is NULL:
        return NULL
    for level in range(SPANS_LEVELS - 1, -1, -1):
        while span.next[level] is not NULL and span.next[level].end <= value:
            span = span.next[level]
    return span.next[0]


cdef void find(const Spans* s, uint64_t start, Span** before) noexcept nogil:
    """Fill ``before`` with the last span of each level that ends below ``start``."""
    cdef Span* span = s.head
    cdef int level
    for level in range(SPANS_LEVELS - 1, -1, -1):
        while span.next[level] is not NULL and span.next[level].end < start:
            span = span.next[level]
        before[level] = span


cdef void step(Span** before, Span* span) noexcept nogil:
    """Move ``before`` past ``span``, which follows it."""
    cdef int level
    for level in range(SPANS_LEVELS):
        if before[level].next[level] is not span:
            return
        before[level] = span


cdef int insert(
    Spans* s, Span** before, uint64_t start, uint64_t end
) noexcept nogil:
    cdef Span* span = <Span*> calloc(1, sizeof(Span))
    cdef uint32_t random
    cdef int level
    if span is NULL:
        return OUT_OF_MEMORY
    span.start = start
    span.end = end
    # Xorshift. The peer does not see the levels, so a fixed seed gives it no lever.
    random = s.random
    random ^= random << 13
    random ^= random >> 17
    random ^= random << 5
    s.random = random
    for level in range(SPANS_LEVELS):
        span.next[level] = before[level].next[level]
        before[level].next[level] = span
        if random & 3:
            break
        random >>= 2
    s.count += 1
    return OK


cdef void unlink(Spans* s, Span** before, Span* span) noexcept nogil:
    """Remove ``span``, which follows ``before``."""
    cdef int level
    for level in range(SPANS_LEVELS):
        if before[level].next[level] is not span:
            break
        before[level].next[level] = span.next[level]
    free(span)
    s.count -= 1


@cython.final
@cython.auto_pickle(False)
cdef class SpanSet:
    """A ``Spans`` of its own, for tests."""

    cdef Spans spans

    def __cinit__(self):
        spans_init(&self.spans)

    def __dealloc__(self):
        spans_free(&self.spans)

    def __len__(self):
        return self.spans.count

    def __contains__(self, uint64_t value):
        return spans_contains(&self.spans, value)

    @property
    def items(self):
        """All spans, ascending, as pairs (start, end)."""
        cdef Span* span = spans_first(&self.spans)
        items = []
        while span is not NULL:
            items.append((span.start, span.end))
            span = span.next[0]
        return items

    def add(self, uint64_t start, uint64_t end):
        """Add [start, end) and return the status."""
        return spans_add(&self.spans, start, end)

    def remove(self, uint64_t start, uint64_t end):
        """Remove [start, end) and return the status."""
        return spans_remove(&self.spans, start, end)

    def take(self, uint64_t size):
        """Remove up to ``size`` numbers from the front of the first span."""
        spans_take(&self.spans, size)

    def first_from(self, uint64_t value):
        """Return the first span that ends above ``value``, or None."""
        cdef Span* span = spans_from(&self.spans, value)
        return None if span is NULL else (span.start, span.end)

    def free(self):
        """Give the memory back; the set is empty and may be used again."""
        spans_free(&self.spans)
