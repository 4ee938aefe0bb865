"""Who may begin a connection: everybody, the hosts of a list, or nobody for now.

Asked before anything is answered or kept, so that a stranger who may not come costs no
more than the look. Connections that live are not asked about.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

from lightning._core.quic.paths cimport Address


cdef enum GateSizes:
    HOST_SIZE = 17  # of a host in a list: family, then the address in network order


cdef struct Gate:
    bint is_shut  # nobody may, whatever the list says
    bint enforces  # only hosts of the list may
    uint32_t count
    uint8_t* hosts  # sorted


cdef void gate_init(Gate* g) noexcept nogil
cdef void gate_free(Gate* g) noexcept nogil
# Replace the list; `hosts` is sorted, from malloc, and the gate's from now on. The list
# before is returned, for the caller to free.
cdef uint8_t* gate_replace(
    Gate* g, bint enforces, uint8_t* hosts, uint32_t count
) noexcept nogil
cdef bint gate_admits(const Gate* g, const Address* source) noexcept nogil
# Write a host as it stands in a list; an IPv4 address mapped into IPv6 is IPv4.
cdef void gate_host(const Address* a, uint8_t* out) noexcept nogil
