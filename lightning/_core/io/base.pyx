"""What a link needs of its driver: the engine, the pump, and whose turn it is."""

cimport cython

from lightning._core.quic.endpoint cimport endpoint_is_inherited

FORKED = (
    "this object was made before a fork and cannot be used in the child: make a new "
    "one there"
)

__all__ = ["FORKED", "DriverBase"]


@cython.auto_pickle(False)
cdef class DriverBase:
    """One UDP socket and the engine's endpoint on it; see `Driver`."""

    cdef int enter(self) except -1:
        """Keep the pump there while this thread is in it."""
        self.check_open()
        self.users += 1
        return 0

    cdef int leave(self) except -1:
        self.users -= 1
        return 0

    cdef bint inherited(self) noexcept:
        """Say if this is the child of a fork, and all here its parent's."""
        return endpoint_is_inherited(&self.endpoint.core)

    cdef int check_open(self) except -1:
        if self.inherited():
            raise RuntimeError(FORKED)
        if not self.is_open:
            raise RuntimeError("the driver is closed")
        return 0

    cdef int mark(self) except -1:
        """Have the owner flush soon."""
        if not self.is_unsent and self.is_open:
            self.is_unsent = True
            if not self.delivering:
                self.on_unsent()
        return 0
