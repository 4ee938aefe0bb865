"""Between the engine of one socket and Python: steps, completions, verbs."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from lightning._core.io.base cimport DriverBase
from lightning._core.io.desk cimport Request
from lightning._core.quic.endpoint cimport Completion


# A completion, and the bytes that came with it.
cdef struct Delivery:
    Completion done
    uint8_t* data
    size_t size
    bint fin


cdef enum DriverLimits:
    DELIVERIES = 32  # taken from the engine at a time
    PIECE = 65536  # bytes of a stream among them; who reads may pause it after each


cdef class Driver(DriverBase):
    cdef Delivery deliveries[32]
    # Makes the Link of a connection that a peer began.
    cdef object accept
    cdef bint has_tried  # to start the thread
    cdef readonly bint has_thread
    # Called when a request is complete and no thread of `serve` is free.
    cdef object on_busy
    cdef uint64_t begun  # requests since the last flush

    cdef int shut(self) except -1
    cdef void start(self) noexcept
    cdef int collect(self) noexcept nogil
    cdef int hand_over(self, Delivery* d, int64_t now) except -1
    cdef int adopt_new(self) except -1
    cdef int begin_requests(self) except -1
    cdef int begin_request(self, Request* r, object handle) except -1
