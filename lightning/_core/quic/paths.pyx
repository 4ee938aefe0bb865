"""Validation of paths (RFC 9000 sections 8.1 and 8.2)."""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memmove, memset


cdef void path_init(
    Path* p, const Address* remote, const Cid* cid, uint64_t sequence
) noexcept nogil:
    memset(p, 0, sizeof(Path))
    p.used = True
    p.remote = remote[0]
    p.next_step = INT64_MAX
    p.cid = cid[0]
    p.sequence = sequence


cdef void path_validate(Path* p, int64_t now, int64_t pto) noexcept nogil:
    if p.validated or p.challenge_due or p.tries:
        return
    p.challenge_due = True
    # In case that what came from there allows no challenge.
    p.next_step = now + PATH_TRIES * pto


cdef void path_challenge_sent(
    Path* p, const uint8_t* random, int64_t now, int64_t pto
) noexcept nogil:
    memcpy(p.challenges[p.tries % PATH_TRIES], random, 8)
    p.challenge_due = False
    # Each wait is twice as long as the one before (section 8.2.1).
    p.next_step = now + (pto << p.tries)
    p.tries += 1


cdef bint path_on_response(Path* p, const uint8_t* data) noexcept nogil:
    cdef int i
    for i in range(min(<int> p.tries, <int> PATH_TRIES)):
        if memcmp(p.challenges[i], data, 8) == 0:
            p.validated = True
            p.challenge_due = False
            p.tries = 0
            p.next_step = INT64_MAX
            return True
    return False


cdef bint path_on_challenge(Path* p, const uint8_t* data) noexcept nogil:
    if p.responses == PATH_RESPONSES:
        return False
    memcpy(p.response[p.responses], data, 8)
    p.responses += 1
    return True


cdef void path_response_sent(Path* p) noexcept nogil:
    p.responses -= 1
    memmove(p.response[0], p.response[1], 8 * p.responses)


cdef bint path_on_timeout(Path* p, int64_t now, int64_t pto) noexcept nogil:
    if p.next_step > now:
        return False
    p.next_step = INT64_MAX
    if p.tries < PATH_TRIES and not p.challenge_due:
        p.challenge_due = True
        p.next_step = now + PATH_TRIES * pto
        return False
    p.tries = 0
    p.challenge_due = False
    return True
