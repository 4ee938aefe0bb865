"""The verbs of a connection, and what is asked and answered on it."""

from libc.stdint cimport int64_t, uint64_t

from lightning._core.io.base cimport DriverBase
from lightning._core.io.desk cimport Call as CallRecord
from lightning._core.io.desk cimport Line, Tally
from lightning._core.quic.engine cimport Connection as Engine
from lightning._core.wire.exchange cimport Exchanges


cdef class Link:
    cdef DriverBase driver
    cdef Engine engine
    cdef Line* line  # read and written under the endpoint's mutex
    cdef Tally tally  # once there is no line any more
    cdef bint is_summed  # its streamed exchanges are in the desk's tally
    cdef Py_ssize_t limit
    cdef object on_request
    cdef bint serves
    # Requests of a server that are being answered, by stream.
    cdef dict answering
    # Streams whose request waits for a thread, and whose client wants no answer.
    cdef set gone
    # The exchanges on it.
    cdef readonly Exchanges exchanges
    # Sends that the engine had no room for, in order: (bytes, fin) by stream.
    cdef dict held_back
    # Streams whose sender waits for room.
    cdef set waiting
    # Streams of held_back whose exchange is over.
    cdef set over

    cdef void look(self, Tally* out) noexcept
    cdef int count_failed(self) except -1
    cdef int append(self, uint64_t stream_id, bytes data, bint fin) except -100
    cdef int has_room(self, uint64_t stream_id) except -1
    cdef int on_writable(self, uint64_t stream_id) except -1
    cdef int start(self, Call call, bint wakes) except -1
    cdef int give_up(self, uint64_t stream_id) except -1


cdef class Call:
    cdef CallRecord record
    cdef Link link
    cdef bytes frame
    cdef readonly object future
    cdef double timeout
    cdef int64_t look_at  # in microseconds, for whoever waits; INT64_MAX is never

    cdef int set_timeout(self, object seconds) except -1
    cdef int look(self) except -1
    cdef object late(self, int outcome, uint64_t left)
    cdef int wait(self, int64_t until, bint flushes) noexcept
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


# Wake who awaits an answer.
cdef int finish_calls(DriverBase driver) except -1
