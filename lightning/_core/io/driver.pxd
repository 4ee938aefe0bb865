"""Between the engine of one socket and Python: steps, completions, verbs."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from lightning._core.io.desk cimport Call as CallRecord
from lightning._core.io.desk cimport Desk, Line, Request
from lightning._core.io.pump cimport Pump
from lightning._core.quic.endpoint cimport Completion
from lightning._core.quic.engine cimport Connection as Engine
from lightning._core.quic.engine cimport Endpoint
from lightning._core.wire.exchange cimport Exchanges


# A completion, and the bytes that came with it.
cdef struct Delivery:
    Completion done
    uint8_t* data
    size_t size
    bint fin


cdef enum DriverLimits:
    DELIVERIES = 32  # taken from the engine at a time
    PIECE = 65536  # bytes of a stream among them; who reads may pause it after each


cdef class Driver:
    cdef readonly Endpoint endpoint
    cdef Pump pump
    cdef Desk desk
    cdef Delivery deliveries[32]
    cdef int pid
    cdef bint is_open
    cdef bint delivering
    # Number of a connection -> Link.
    cdef dict links
    # Makes the Link of a connection that a peer began.
    cdef object accept
    # Called once when something is to be sent, until `flush`.
    cdef object on_unsent
    cdef bint is_unsent
    cdef readonly bint has_thread
    cdef bint is_owned
    cdef unsigned long owner  # the thread that made it
    # Threads inside of the pump or about to be; close() waits for them.
    cdef Py_ssize_t users
    # Called when a request is complete and no thread of `serve` is free.
    cdef object on_busy

    cdef int shut(self) except -1
    cdef int check_open(self) except -1
    cdef int mark(self) except -1
    cdef int collect(self) noexcept nogil
    cdef int hand_over(self, Delivery* d, int64_t now) except -1
    cdef int adopt_new(self) except -1
    cdef int finish_calls(self) except -1
    cdef int begin_requests(self) except -1
    cdef int begin_request(self, Request* r, object handle) except -1
    cdef int enter(self) except -1
    cdef int leave(self) except -1


cdef class Link:
    cdef Driver driver
    cdef Engine engine
    cdef Line* line  # read and written under the endpoint's mutex
    cdef Py_ssize_t limit
    cdef object on_request
    # Requests of a server that are being answered, by stream.
    cdef dict answering
    # The exchanges on it.
    cdef readonly Exchanges exchanges
    # Sends that the engine had no room for, in order: (bytes, fin) by stream.
    cdef dict held_back
    # Streams whose sender waits for room.
    cdef set waiting
    # Streams of held_back whose exchange is over.
    cdef set over

    cdef int append(self, uint64_t stream_id, bytes data, bint fin) except -100
    cdef int has_room(self, uint64_t stream_id) except -1
    cdef int on_writable(self, uint64_t stream_id) except -1
    cdef int start(self, Call call, bint wakes) except -1


cdef class Call:
    cdef CallRecord record
    cdef Link link
    cdef bytes frame
    cdef readonly object future

    cdef int stop(self) except -1
    cdef int check(self) except -1


cdef class ServerExchange:
    cdef Link link
    cdef readonly uint64_t stream_id
    cdef readonly double started_at
    cdef readonly bint cancelled
    cdef public object on_cancel
    cdef bint ended
    cdef bint streams
    cdef bint batched  # whoever runs it sends afterwards

    cdef int cancel(self) except -1
