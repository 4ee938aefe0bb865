"""One bidirectional stream for each exchange: start, complete, cancel, respond."""

from lightning._core.wire.framing cimport FrameReader


cdef class Exchanges:
    """All streamed exchanges of one connection of a client."""

    cdef:
        # Verbs of the layer below: see the module.
        object link
        # Stream id -> ClientExchange, until both directions are over.
        dict streams
        # Exchanges that wait until the peer allows another stream, as the keys of an
        # OrderedDict, oldest first: any of them may be cancelled.
        object waiting
        # Why nothing can be started any more; None while the connection lives.
        object lost
        # Largest payload that a reader accepts, in bytes; new streams use it.
        public Py_ssize_t max_payload
        # Called with each exchange whose request is being sent, and its size; or None.
        public object on_sending
        readonly unsigned long long begun
        # Ended without an answer; those that were cancelled are not counted.
        readonly unsigned long long failed

    cpdef ClientExchange start(self, bytes frame, object on_frame, object on_error)
    cpdef int pump(self) except -1
    cpdef int stream_data(self, long long stream_id, object data, bint fin) except -1
    cpdef int stream_reset(self, long long stream_id, long long code) except -1
    cpdef int stop_sending(self, long long stream_id, long long code) except -1
    cpdef int connection_lost(self, object make_error) except -1


cdef class ClientExchange:
    """A request on its way, and its answer."""

    cdef:
        Exchanges owner
        FrameReader reader
        # -1 until the stream is open.
        readonly long long stream_id
        # We need no more of what the peer sends.
        bint received
        # The peer ended its direction: by FIN or by reset.
        bint remote_ended
        # We ended our direction.
        bint local_ended
        object on_frame
        object on_error
        # Held back until the stream can be opened.
        bytes request
        # The peer stopped our request with this code; -1 if it did not.
        long long stopped

    cdef int receive(self, object data, bint fin) except -1
    cdef int on_failure(self, object error) except -1
    cdef int on_end(self) except -1
    cdef int finish_receiving(self) except -1
    cdef int settle(self) except -1
    cpdef int complete(self) except -1
    cpdef int cancel(self) except -1
    cpdef int give_up(self, object error) except -1
