"""What a link needs of its driver: the engine, the pump, and whose turn it is."""

from lightning._core.io.desk cimport Desk
from lightning._core.io.pump cimport Pump
from lightning._core.quic.engine cimport Endpoint


cdef class DriverBase:
    cdef readonly Endpoint endpoint
    cdef Pump pump
    cdef Desk desk
    cdef bint is_open
    cdef bint delivering
    # Number of a connection -> Link.
    cdef dict links
    # Called once when something is to be sent, until `Driver.flush`.
    cdef object on_unsent
    cdef bint is_unsent
    cdef bint is_owned
    cdef unsigned long owner  # the thread that made it
    # Threads inside of the pump or about to be; `Driver.close` waits for them.
    cdef Py_ssize_t users
    cdef bint answered  # futures have been given results
    cdef Py_ssize_t owed  # requests that are not answered yet
    # Set under the endpoint's mutex by `Driver.collect`, read after.
    cdef bint some_ended  # calls, for `finish_calls`
    cdef bint refers  # answers were referred to, and are to be given up in time
    cdef void* attendant  # the Inbox whose loop moves the datagrams, or NULL

    cdef bint inherited(self) noexcept
    cdef int check_open(self) except -1
    cdef int mark(self) except -1
    cdef int enter(self) except -1
    cdef int leave(self) except -1
