"""Network paths of a connection: addresses, what may be sent there, and their proof.

A path is where the peer's packets come from. Until it is validated no more than three
times the bytes received from it are sent there (RFC 9000 8.1, 9.3); it is validated by
a PATH_RESPONSE that repeats what a PATH_CHALLENGE said (section 8.2). A challenge that
this limit kept below 1200 bytes proves the address and not that the path carries such
datagrams: a second validation follows (section 8.2.1).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from lightning._core.quic.packet cimport Cid


cdef enum PathLimits:
    PATHS_MAX = 4  # the one in use, the one before, and two that are looked at
    PATH_TRIES = 3  # challenges sent before a validation has failed
    # PTOs before a proven path is asked again. Answers move a connection: one whose
    # address changes with every packet would be asked for ever.
    PATH_REST = 8
    # Challenges of the peer that wait for an answer; more are dropped (quinn keeps one
    # a path, aioquic 32).
    PATH_RESPONSES = 8
    AMPLIFICATION_FACTOR = 3  # RFC 9000 8.1
    PATH_ROOM_MIN = 64  # a datagram with a challenge takes no more


cdef struct Address:
    uint8_t family  # 4 or 6; 0 is none
    uint16_t port
    uint32_t scope  # of a link-local IPv6 address
    uint8_t ip[16]  # network order; IPv4 in the first four bytes, the rest zero
    # Our own address that its datagrams come to, where a socket has several: answers
    # leave from it. Zero lets the system choose. It is no part of what tells addresses
    # apart.
    uint8_t local[16]


cdef struct Path:
    bint used
    bint validated
    bint challenge_due
    uint8_t tries  # challenges sent in this validation
    uint8_t small  # 1 << of those that were below 1200 bytes
    uint8_t responses  # that are due
    Address remote
    # Bytes of UDP payload, while not validated.
    uint64_t received
    uint64_t sent
    int64_t next_step  # when to send another challenge or give up; INT64_MAX is never
    int64_t pto  # the wait for the answer to the first challenge
    int64_t rests_until
    # The peer's connection ID used there, and its sequence number.
    uint64_t sequence
    Cid cid
    uint8_t challenges[3][8]
    uint8_t response[8][8]


cdef inline bint address_is(const Address* a, const Address* b) noexcept nogil:
    return (
        a.port == b.port and a.family == b.family and a.scope == b.scope
        and memcmp(a.ip, b.ip, 16) == 0
    )


cdef inline bint address_is_host(const Address* a, const Address* b) noexcept nogil:
    """Say if two addresses differ in the port at most."""
    return a.family == b.family and memcmp(a.ip, b.ip, 16) == 0


cdef inline uint64_t path_room(const Path* p) noexcept nogil:
    """Return how many bytes may be sent now."""
    if p.validated:
        return <uint64_t> -1
    if p.received > <uint64_t> 1 << 60:
        return <uint64_t> -1
    return max(p.received * AMPLIFICATION_FACTOR, p.sent) - p.sent


cdef inline bint path_is_asked(const Path* p) noexcept nogil:
    """Say if a validation is under way."""
    return p.challenge_due or p.tries != 0


cdef void path_init(
    Path* p, const Address* remote, const Cid* cid, uint64_t sequence
) noexcept nogil
# Begin a validation, unless one is under way. A path that is proven is asked again, but
# not soon.
cdef void path_validate(Path* p, int64_t now, int64_t pto) noexcept nogil
# `random` is the 8 bytes of the challenge, `small` says if the datagram was.
cdef void path_challenge_sent(
    Path* p, const uint8_t* random, bint small, int64_t now
) noexcept nogil
# Say if it answers a challenge for this path, whose address is validated then.
cdef bint path_on_response(Path* p, const uint8_t* data, int64_t now) noexcept nogil
# Remember a challenge to answer; False if too many wait.
cdef bint path_on_challenge(Path* p, const uint8_t* data) noexcept nogil
cdef void path_response_sent(Path* p) noexcept nogil
# Act on `next_step`: True if the validation failed.
cdef bint path_on_timeout(Path* p, int64_t now) noexcept nogil
