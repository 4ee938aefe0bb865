"""Who may begin a connection."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset


cdef void gate_init(Gate* g) noexcept nogil:
    memset(g, 0, sizeof(Gate))


cdef void gate_free(Gate* g) noexcept nogil:
    free(g.hosts)
    gate_init(g)


cdef uint8_t* gate_replace(
    Gate* g, bint enforces, uint8_t* hosts, uint32_t count
) noexcept nogil:
    cdef uint8_t* before = g.hosts
    g.enforces = enforces
    g.hosts = hosts
    g.count = count
    return before


cdef void gate_host(const Address* a, uint8_t* out) noexcept nogil:
    cdef uint8_t[12] mapped
    memset(mapped, 0, 10)
    mapped[10] = mapped[11] = 0xFF
    out[0] = a.family
    memcpy(out + 1, a.ip, 16)
    if a.family == 6 and memcmp(a.ip, mapped, 12) == 0:
        out[0] = 4
        memset(out + 1, 0, 16)
        memcpy(out + 1, a.ip + 12, 4)


cdef bint gate_admits(const Gate* g, const Address* source) noexcept nogil:
    cdef uint8_t[HOST_SIZE] host
    cdef uint32_t low = 0
    cdef uint32_t high = g.count
    cdef uint32_t middle
    cdef int order
    if g.is_shut:
        return False
    if not g.enforces:
        return True
    gate_host(source, host)
    while low < high:
        middle = low + (high - low) // 2
        order = memcmp(host, g.hosts + <size_t> middle * HOST_SIZE, HOST_SIZE)
        if order == 0:
            return True
        if order < 0:
            high = middle
        else:
            low = middle + 1
    return False
