"""Calls that one thread waits for together."""

from libc.stdint cimport int64_t

from lightning._core.io.desk cimport Group
from lightning._core.io.base cimport DriverBase


cdef class Gathering:
    cdef DriverBase driver
    cdef Group group
    # Those under way: the desk has a reference to each, too.
    cdef set calls
    cdef bint poked
    cdef bint waiting

    cdef list take(self)
    cdef int sleep(self, int64_t until) except -1
