"""The engine's Python face, for those who also want what is below it."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from lightning._core.quic.connstate cimport Conn
from lightning._core.quic.endpoint cimport EndpointCore


cdef class Endpoint:
    cdef EndpointCore core
    cdef readonly object config
    cdef readonly bint is_client
    cdef object identity
    cdef object random
    cdef object keylog
    cdef object qlog  # the QlogWriter, None if nothing is traced
    cdef object draining  # a lock: who writes what was traced
    cdef dict conns  # by number, of those whose end was not told yet
    cdef uint8_t* scratch  # of `receive`, under the mutex

    cdef Connection adopt(self, Conn* c)
    cdef int drain_releases(self) except -1
    cdef int stop_trace(self) except -1
    # Run TLS wherever CRYPTO bytes have come. Called with the GIL, without the mutex.
    cdef int run_tls(self, int64_t now) except -1
    cdef int run_tls_of(self, Conn* c, Connection connection, int64_t now) except -1
    cdef int drive_tls(self, Conn* c, Connection connection, int64_t now) except -1
    cdef int apply(
        self, Conn* c, Connection connection, object output, int64_t now
    ) except -1


cdef class Connection:
    cdef Endpoint endpoint
    cdef Conn* c  # a reference, for as long as the object lives
    cdef object tls
    cdef readonly uint64_t number
    cdef readonly bytes certificate
    cdef readonly uint16_t suite
    cdef readonly object end
    cdef tuple told  # the peer's address, as it is here and as Python has it

    cdef int check(self, int status) except -1
    cdef int note_end(self) except -1
    cdef int64_t look(self, Conn* out) noexcept
