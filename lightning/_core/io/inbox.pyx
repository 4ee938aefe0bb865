"""Calls that one event loop waits for, on connections of one driver.

What has ended is told through one descriptor, once for all that ended together. Where
the driver has no owner, one loop of those that wait attends to its socket itself
(`DriverBase.attendant`): then an answer takes no other thread on its way. Should that
loop be late, the pump's thread stands in, as for an owner.
"""

import asyncio
import os

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t

from lightning._core.io.base cimport DriverBase
from lightning._core.io.desk cimport (
    CALL_CANCELLED, WAITER_DONE, WAITER_LOOKS, WAITER_ROUSED, Call as CallRecord,
    desk_cancel, group_take, load32, waiter_clear, waiter_sleep
)
from lightning._core.io.links cimport Call, Link
from lightning._core.io.pump cimport (
    SPIN, SPIN_AFTER, bell_close, bell_drain, bell_open, bell_ring, pump_assist,
    pump_clock, pump_flush, pump_spin
)
from lightning._core.quic.endpoint cimport endpoint_lock, endpoint_unlock
from lightning._core.quic.sendbuf cimport SEND_COPY_MAX

cdef extern from * nogil:
    """
    #define word_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
    """
    uint32_t word_or(uint32_t* word, uint32_t bits)

cdef enum:
    ENDED = 64  # calls taken from the desk at a time
    # Calls in a row for which the attendant had none, after which another loop takes
    # its place.
    IDLED = 16

__all__ = ["Inbox"]


@cython.final
@cython.auto_pickle(False)
cdef class Inbox:
    """Calls of one event loop, used in its thread; `close` may come from any.

    Whoever makes it has the loop call `rung` when `fileno` is readable.

    Args:
        link: A connection of the driver.

    Raises:
        RuntimeError: This is the child of a fork, or the driver is closed.
        OSError: There are no more descriptors.
    """

    def __cinit__(self, *args, **kwargs):
        self.calls = set()
        self.reads = self.writes = self.socket = -1

    def __init__(self, Link link not None):
        cdef int status
        if self.driver is not None:
            raise RuntimeError("an inbox cannot be initialised twice")
        link.driver.check_open()
        status = bell_open(&link.driver.pump, &self.reads, &self.writes)
        if status != 0:
            raise OSError(-status, os.strerror(-status))
        if not link.driver.is_owned:
            self.socket = os.dup(link.driver.pump.socket.fd)
        self.group.waiter.bell = self.writes + 1
        self.driver = link.driver

    def __del__(self):
        # Before the collector takes anything apart: the desk refers to this object.
        self.close()

    def __dealloc__(self):
        bell_close(self.reads, self.writes)

    def __len__(self):
        return len(self.calls)

    def fileno(self):
        """Return the descriptor that is readable when calls have ended."""
        return self.reads

    @property
    def is_stale(self):
        """Whether its driver is closed, or it itself."""
        return self.is_shut or not self.driver.is_open

    def start(
        self, Link link not None, bytes frame not None, loop not None, timeout=None,
        size_t limit=0,
    ):
        """Begin a call; what one turn of the loop begins is sent after it.

        Args:
            link: The connection.
            frame: The whole frame, header included.
            loop: The running loop.
            timeout: Seconds for all of the call; None as for `Link.call`.
            limit: Largest payload of the answer in bytes; 0 for the connection's.

        Returns:
            The call, whose future has it as its result when it has ended; whoever does
            not wait for that owes it `cancel`. None if the connection is another
            driver's: nothing was begun.

        Raises:
            ConnectionClosed: The connection is gone.
            RuntimeError: This is the child of a fork, or it is closed.
        """
        cdef Call call
        cdef DriverBase driver = self.driver
        if link.driver is not driver:
            return None
        if self.is_shut:
            raise RuntimeError("this inbox is closed")
        driver.enter()
        try:
            call = Call.__new__(Call)
            call.frame = frame
            call.future = loop.create_future()
            call.record.group = &self.group
            call.record.watched = True
            call.record.limit = limit
            if timeout is not None:
                call.set_timeout(timeout)
                call.record.total = True
            self.calls.add(call)
            Py_INCREF(call)
            try:
                link.start(call, True)
            except BaseException:
                Py_DECREF(call)
                self.calls.discard(call)
                raise
        finally:
            driver.leave()
        if len(frame) > SEND_COPY_MAX:
            self.refers = True
        if not self.will_flush:
            self.will_flush = True
            if self.flushing is None:
                self.flushing = self.flush
            loop.call_soon(self.flushing)
        if driver.attendant is not <void*> self and self.socket >= 0:
            self.attend(loop)
        return call

    cdef int attend(self, object loop) except -1:
        """Move the datagrams from now on, unless another loop is at it."""
        cdef DriverBase driver = self.driver
        if driver.attendant is not NULL:
            self.idled = 0 if (<Inbox> driver.attendant).calls else self.idled + 1
            if self.idled < IDLED:
                return 0
        self.idled = 0
        if not self.on_watch:
            loop.add_reader(self.socket, self.readable)
            self.on_watch = True
        driver.attendant = <void*> self
        return 0

    def flush(self):
        """Send what was begun; wait a moment for the answer to one request alone.

        That is where answers mostly come so soon: to be woken takes as long.
        """
        cdef DriverBase driver = self.driver
        cdef bint is_alone, came = False
        cdef int64_t now
        self.will_flush = False
        if not driver.is_open or driver.inherited():
            return
        is_alone = (
            driver.attendant is <void*> self and len(self.calls) == 1
            and load32(&driver.desk.calls) == 1
        )
        driver.enter()
        with nogil:
            pump_flush(&driver.pump)
            if is_alone:
                now = pump_clock()
                self.sent_at = now
                if self.quick >= SPIN_AFTER:
                    came = pump_spin(&driver.pump, now)
                    if not came:
                        self.quick = 0
        driver.leave()
        if came:
            self.look(True)
        elif self.refers:
            driver.endpoint.drain_releases()

    def rung(self):
        """Hand on what has ended; called when `fileno` is readable."""
        if self.is_shut or self.driver.inherited():
            return  # A child must not take its parent's signals.
        bell_drain(self.reads)
        self.look(False)

    def readable(self):
        """Move the datagrams and hand on what has ended; called by the loop."""
        cdef DriverBase driver = self.driver
        if self.is_shut or driver.inherited():
            return
        if driver.attendant is not <void*> self or not driver.is_open:
            # Another loop is at it.
            asyncio.get_running_loop().remove_reader(self.socket)
            self.on_watch = False
            return
        self.look(True)

    cdef int look(self, bint assists) except -1:
        cdef DriverBase driver = self.driver
        if assists and driver.is_open:
            driver.enter()
            with nogil:
                if self.sent_at:
                    if pump_clock() - self.sent_at < SPIN:
                        self.quick += 1
                    else:
                        self.quick = 0
                    self.sent_at = 0
                word_or(&self.group.waiter.state, WAITER_LOOKS)
                pump_assist(&driver.pump)
                waiter_clear(&self.group.waiter, WAITER_LOOKS)
            driver.leave()
        self.settle()
        if self.refers:
            driver.endpoint.drain_releases()
        if driver.endpoint.qlog is not None:
            driver.endpoint.drain_trace()
        return 0

    cdef int settle(self) except -1:
        """Give the futures of what has ended their results."""
        cdef DriverBase driver = self.driver
        cdef CallRecord* ended[ENDED]
        cdef uint32_t bits = waiter_clear(
            &self.group.waiter, <int> WAITER_DONE | <int> WAITER_ROUSED
        )
        cdef int count = ENDED
        cdef int i
        cdef bint is_roused = bits & WAITER_ROUSED
        cdef bint will_be = False
        cdef Call call
        while count == ENDED:
            count = 0
            with nogil:
                endpoint_lock(&driver.endpoint.core)
                if is_roused:
                    # From now on it may be roused again.
                    self.group.roused = False
                    is_roused = False
                will_be = self.group.roused
                while count < ENDED:
                    ended[count] = group_take(&self.group)
                    if ended[count] is NULL:
                        break
                    count += 1
                endpoint_unlock(&driver.endpoint.core)
            for i in range(count):
                call = <Call> ended[i].user
                self.calls.discard(call)
                Py_DECREF(call)
                if not call.future.done():
                    call.future.set_result(call)
        if will_be and not bits & WAITER_ROUSED:
            # Whoever does it may have seen us looking, or us its ring too early.
            bell_ring(self.writes)
        return 0

    def cancel(self, Call call not None):
        """Drop a call, and reset its stream; its future is left alone.

        Fine if it has ended.
        """
        cdef DriverBase driver = self.driver
        if driver.inherited() or call not in self.calls:
            return
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            desk_cancel(&call.record, pump_clock())
            endpoint_unlock(&driver.endpoint.core)
        if call.record.outcome == CALL_CANCELLED:
            self.calls.discard(call)
            Py_DECREF(call)
        if driver.is_open:
            driver.enter()
            with nogil:
                pump_flush(&driver.pump)
            driver.leave()
        if self.refers:
            driver.endpoint.drain_releases()

    def close(self, loop=None):
        """Drop the calls that are left. Fine if closed.

        Args:
            loop: The loop, if this is its thread: futures have the calls as results,
                as if the connection were lost. None if it is closed.
        """
        cdef DriverBase driver = self.driver
        if driver is None or self.is_shut:
            return
        self.is_shut = True
        if driver.attendant is <void*> self:
            driver.attendant = NULL
        if loop is not None:
            loop.remove_reader(self.reads)
            if self.on_watch:
                loop.remove_reader(self.socket)
        if not driver.inherited():
            self.drop(loop is not None)
        self.flushing = None
        if self.socket >= 0:
            os.close(self.socket)
            self.socket = -1

    cdef int drop(self, bint tells) except -1:
        cdef DriverBase driver = self.driver
        cdef Call call
        cdef CallRecord* ended
        cdef bint is_over
        for call in list(self.calls):
            with nogil:
                endpoint_lock(&driver.endpoint.core)
                desk_cancel(&call.record, pump_clock())
                endpoint_unlock(&driver.endpoint.core)
            if call.record.outcome == CALL_CANCELLED and call in self.calls:
                self.calls.discard(call)
                Py_DECREF(call)
                if tells and not call.future.done():
                    call.future.set_result(call)
        while True:
            ended = NULL
            with nogil:
                endpoint_lock(&driver.endpoint.core)
                if waiter_clear(&self.group.waiter, WAITER_ROUSED):
                    self.group.roused = False
                ended = group_take(&self.group)
                is_over = ended is NULL and not self.group.roused
                endpoint_unlock(&driver.endpoint.core)
                if ended is NULL and not is_over:
                    # Whoever ended a call is about to tell us.
                    waiter_sleep(&self.group.waiter, 0, 1000)
            if is_over:
                break
            if ended is not NULL:
                call = <Call> ended.user
                self.calls.discard(call)
                Py_DECREF(call)
                if tells and not call.future.done():
                    call.future.set_result(call)
        if driver.is_open:
            driver.enter()
            with nogil:
                pump_flush(&driver.pump)
            driver.leave()
        driver.endpoint.drain_releases()
        return 0
