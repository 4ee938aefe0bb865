"""Flow control as Python sees it; the records are inline in the .pxd."""

cimport cython
from libc.stdint cimport int64_t, uint64_t


@cython.final
@cython.auto_pickle(False)
cdef class ReceiveWindow:
    """A ``RecvWindow`` of its own, for tests.

    Args:
        size: Bytes granted at the start.
        max_size: Bytes up to which the window doubles; at least ``size``.
        now: Time in microseconds.
    """

    cdef RecvWindow window

    def __cinit__(self, uint64_t size, uint64_t max_size=0, int64_t now=0):
        window_init(&self.window, size, max_size, now)

    @property
    def limit(self):
        """The offset up to which the peer may send."""
        return self.window.limit

    @property
    def size(self):
        """Bytes between what was consumed and the limit that a raise sets."""
        return self.window.size

    def receive(self, uint64_t size):
        """Count bytes above the highest offset and return the status."""
        return window_receive(&self.window, size)

    def consume(self, uint64_t size, int64_t now=0, int64_t rtt=0):
        """Count consumed bytes and say if a MAX_* frame came due."""
        return window_consume(&self.window, size, now, rtt)

    def advertise(self):
        """Write a MAX_* frame, as it were, and return its value."""
        self.window.advertised = self.window.limit
        return self.window.limit

    def lost(self, uint64_t value):
        """Say if a lost MAX_* frame has to be written again."""
        return window_lost(&self.window, value)


@cython.final
@cython.auto_pickle(False)
cdef class SendingLimit:
    """A ``SendLimit`` of its own, for tests.

    Args:
        value: Bytes or streams that the peer allows at the start.
    """

    cdef SendLimit inner

    def __cinit__(self, uint64_t value=0):
        limit_init(&self.inner, value)

    @property
    def left(self):
        """Bytes or streams that may still be used."""
        return limit_left(&self.inner)

    def use(self, uint64_t size):
        """Use a part of what is left.

        Raises:
            ValueError: More than is left.
        """
        if size > limit_left(&self.inner):
            raise ValueError("more than the limit leaves")
        self.inner.used += size

    def raise_to(self, uint64_t value):
        """Take a MAX_* frame's value and say if it raised the limit."""
        return limit_raise(&self.inner, value)

    def block(self):
        """Run into the limit and say if a *_BLOCKED frame is due."""
        return limit_block(&self.inner)

    def lost(self, uint64_t value):
        """Say if a lost *_BLOCKED frame has to be written again."""
        return limit_lost(&self.inner, value)


@cython.final
@cython.auto_pickle(False)
cdef class OpeningCredit:
    """A ``StreamCredit`` of its own, for tests.

    Args:
        concurrent: Streams that may be open at a time.
    """

    cdef StreamCredit credit

    def __cinit__(self, uint64_t concurrent):
        credit_init(&self.credit, concurrent)

    @property
    def limit(self):
        """Streams granted so far."""
        return self.credit.limit

    def open(self, uint64_t count=1):
        """Count opened streams and say if a MAX_STREAMS frame came due.

        Raises:
            ValueError: More than were granted.
        """
        if count > self.credit.limit - self.credit.opened:
            raise ValueError("more than were granted")
        self.credit.opened += count
        return credit_raise(&self.credit)

    def close(self, uint64_t count=1):
        """Count closed streams and say if a MAX_STREAMS frame came due."""
        self.credit.closed += count
        return credit_raise(&self.credit)

    def advertise(self):
        """Write a MAX_STREAMS frame, as it were, and return its value."""
        self.credit.advertised = self.credit.limit
        return self.credit.limit

    def lost(self, uint64_t value):
        """Say if a lost MAX_STREAMS frame has to be written again."""
        return credit_lost(&self.credit, value)
