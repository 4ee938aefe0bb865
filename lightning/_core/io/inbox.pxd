"""Calls that an event loop waits for."""

from libc.stdint cimport int64_t, uint32_t

from lightning._core.io.base cimport DriverBase
from lightning._core.io.desk cimport Group


cdef class Inbox:
    cdef DriverBase driver
    cdef Group group
    # Those under way: the desk has a reference to each, too.
    cdef set calls
    cdef object flushing  # the bound method, for the loop
    cdef bint will_flush
    cdef bint is_shut
    cdef bint refers  # large requests may have arrived
    cdef int reads  # the bell's ends
    cdef int writes
    cdef int socket  # a copy of the driver's
    cdef bint on_watch  # the loop watches it
    cdef uint32_t idled  # calls in a row for which the attendant was idle
    cdef uint32_t quick  # answers in a row to one request alone that came at once
    cdef int64_t sent_at  # when that was sent

    cdef int attend(self, object loop) except -1
    cdef int look(self, bint assists) except -1
    cdef int settle(self) except -1
    cdef int drop(self, bint tells) except -1
