"""Calls that one thread waits for together, on connections of one driver.

The thread starts any number, sends them with one flush, and takes turns with others in
moving the datagrams until some have ended (see ``pump.pxd``).
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from lightning._core.io.base cimport DriverBase
from lightning._core.io.desk cimport (
    CALL_CANCELLED, WAITER_DONE, WAITER_ROUSED, Call as CallRecord, desk_cancel,
    group_take, waiter_clear, waiter_sleep
)
from lightning._core.io.links cimport Call, Link
from lightning._core.io.pump cimport pump_clock, pump_flush, pump_poke, pump_wait
from lightning._core.quic.endpoint cimport endpoint_lock, endpoint_unlock

from lightning._core.io.links import OWN_THREAD

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept
    int PyErr_CheckSignals() except -1

cdef enum:
    # Microseconds after which a waiting main thread looks for what stands for a
    # signal without being one, such as `_thread.interrupt_main`.
    LOOK = 100_000
    ENDED = 64  # calls taken from the desk at a time

__all__ = ["Gathering"]


@cython.final
@cython.auto_pickle(False)
cdef class Gathering:
    """Calls of one thread; `poke` and `cancel` may come from others.

    Args:
        link: A connection of the driver.

    Raises:
        RuntimeError: This is the driver's own thread, the child of a fork, or the
            driver is closed.
    """

    def __cinit__(self, *args, **kwargs):
        self.calls = set()

    def __init__(self, Link link not None):
        link.driver.check_open()
        if PyThread_get_thread_ident() == link.driver.owner:
            raise RuntimeError(OWN_THREAD)
        self.driver = link.driver

    def __del__(self):
        # Before the collector takes anything apart: the desk refers to this object.
        self.cancel()

    def __len__(self):
        return len(self.calls)

    @property
    def is_sending(self):
        """Whether any request is not wholly sent yet."""
        return any([call.is_sending for call in list(self.calls)])

    def start(self, Link link not None, bytes frame not None, tag, timeout=None):
        """Begin a call; `flush` or `wait` sends.

        Args:
            link: The connection.
            frame: The whole frame, header included.
            tag: The call's ``future``, for the caller to know it by.
            timeout: As for `Link.call`.

        Returns:
            False if the connection is another driver's; nothing was begun.

        Raises:
            ConnectionClosed: The connection is gone.
        """
        cdef Call call
        if link.driver is not self.driver:
            return False
        self.driver.enter()
        try:
            call = Call.__new__(Call)
            call.frame = frame
            call.future = tag
            call.record.group = &self.group
            call.record.watched = True
            call.set_timeout(timeout)
            self.calls.add(call)
            Py_INCREF(call)
            try:
                link.start(call, True)
            except BaseException:
                Py_DECREF(call)
                self.calls.discard(call)
                raise
        finally:
            self.driver.leave()
        return True

    def flush(self):
        """Send what was begun."""
        self.driver.enter()
        with nogil:
            pump_flush(&self.driver.pump)
        self.driver.leave()

    def wait(self, until=None):
        """Wait until calls have ended; a signal's exception is raised from here.

        Args:
            until: Seconds of time.monotonic(); None for as long as it takes.

        Returns:
            Those that have ended, in order; none if the time has come, nothing is
            left to wait for, or `poke` was called.

        Raises:
            RuntimeError: Another thread waits.
        """
        cdef int64_t limit = INT64_MAX
        cdef list ended
        if until is not None:
            limit = <int64_t> (until * 1e6)
        if self.driver.inherited():
            self.driver.check_open()
        if self.waiting:
            raise RuntimeError("another thread is already waiting for these calls")
        self.waiting = True
        try:
            while True:
                ended = self.take()
                if ended or not self.calls or self.poked or pump_clock() >= limit:
                    self.poked = False
                    return ended
                self.sleep(limit)
        finally:
            self.waiting = False

    def poke(self):
        """Have `wait` return; from the driver's own thread."""
        self.poked = True
        # It is the one that closes the driver, so that this is there until we return.
        if self.driver.is_open:
            pump_poke(&self.driver.pump, &self.group.waiter)

    def cancel(self):
        """Drop the calls that are left, and those that have ended and were not taken.

        Fine if there are none. `wait` finds nothing after.
        """
        cdef DriverBase driver = self.driver
        cdef Call call
        if driver is None or driver.inherited():
            return
        if not self.calls and not self.group.roused:
            return
        for call in list(self.calls):
            with nogil:
                endpoint_lock(&driver.endpoint.core)
                desk_cancel(&call.record, pump_clock())
                endpoint_unlock(&driver.endpoint.core)
            if call.record.outcome == CALL_CANCELLED and call in self.calls:
                self.calls.discard(call)
                Py_DECREF(call)
        self.take()
        while self.group.roused:
            # Whoever ended a call is about to wake us.
            with nogil:
                waiter_sleep(&self.group.waiter, 0, 1000)
            self.take()
        if driver.is_open:
            self.flush()
        driver.endpoint.drain_releases()

    cdef int sleep(self, int64_t until) except -1:
        cdef DriverBase driver = self.driver
        driver.enter()
        try:
            with nogil:
                pump_flush(&driver.pump)
                pump_wait(
                    &driver.pump, &self.group.waiter, False,
                    min(until, pump_clock() + LOOK)
                )
        finally:
            driver.leave()
        # Large requests that have arrived.
        driver.endpoint.drain_releases()
        if driver.endpoint.qlog is not None:
            driver.endpoint.drain_trace()
        PyErr_CheckSignals()
        return 0

    cdef list take(self):
        """Take what has ended since it was last called."""
        cdef DriverBase driver = self.driver
        cdef CallRecord* ended[ENDED]
        cdef uint32_t bits = waiter_clear(
            &self.group.waiter, <int> WAITER_DONE | <int> WAITER_ROUSED
        )
        cdef int count = ENDED
        cdef int i
        cdef Call call
        cdef list taken = []
        if not bits & WAITER_ROUSED:
            return taken
        while count == ENDED:
            count = 0
            with nogil:
                endpoint_lock(&driver.endpoint.core)
                if bits:
                    # From now on it may be roused again.
                    self.group.roused = False
                    bits = 0
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
                taken.append(call)
        return taken
