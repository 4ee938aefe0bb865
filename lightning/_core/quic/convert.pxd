"""Between Python's values and the engine's records. The caller holds the GIL."""

from libc.stdint cimport int64_t

from lightning._core.quic.connection cimport PeerParameters
from lightning._core.quic.connstate cimport Conn, Settings
from lightning._core.quic.packet cimport Cid
from lightning._core.quic.paths cimport Address


# Seconds to microseconds: of a clock, and of a setting.
cdef int64_t micros(double now) noexcept
cdef int64_t period(object seconds) except -1
# A host and a port, as the socket module writes them.
cdef int address_from(object address, Address* a) except -1
cdef tuple address_to(const Address* a)
# An EngineConfig; the key for reset tokens is left to the caller.
cdef int settings_from(object config, bint is_client, Settings* s) except -1
# A PeerParameters of `params`.
cdef int parameters_from(object p, PeerParameters* out) except -1
cdef bytes parameters_to(const Conn* c, object config, bytes grease)
cdef object end_to(const Conn* c)
cdef dict stats_to(const Conn* c, int64_t now)
