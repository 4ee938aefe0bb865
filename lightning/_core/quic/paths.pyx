"""Validation of paths (RFC 9000 sections 8.1 and 8.2)."""

cimport cython
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
    if path_is_asked(p) or (p.validated and now < p.rests_until):
        return
    p.pto = pto
    p.rests_until = now + PATH_REST * pto
    begin(p, now)


cdef void begin(Path* p, int64_t now) noexcept nogil:
    p.tries = 0
    p.small = 0
    p.challenge_due = True
    # In case that what came from there allows no challenge.
    p.next_step = now + PATH_TRIES * p.pto


cdef void path_challenge_sent(
    Path* p, const uint8_t* random, bint small, int64_t now
) noexcept nogil:
    # A challenge is due for less than PATH_TRIES tries only.
    memcpy(p.challenges[p.tries], random, 8)
    if small:
        p.small |= 1 << p.tries
    p.challenge_due = False
    # Each wait is twice as long as the one before (section 8.2.1).
    p.next_step = now + (p.pto << p.tries)
    p.tries += 1


cdef bint path_on_response(Path* p, const uint8_t* data, int64_t now) noexcept nogil:
    cdef int i
    for i in range(p.tries):
        if memcmp(p.challenges[i], data, 8) == 0:
            p.validated = True
            if p.small & (1 << i):
                # Large ones may go there now, and one is to (section 8.2.1).
                begin(p, now)
            else:
                end(p)
            return True
    return False


cdef void end(Path* p) noexcept nogil:
    p.tries = 0
    p.challenge_due = False
    p.next_step = INT64_MAX


cdef bint path_on_challenge(Path* p, const uint8_t* data) noexcept nogil:
    if p.responses == PATH_RESPONSES:
        return False
    memcpy(p.response[p.responses], data, 8)
    p.responses += 1
    return True


cdef void path_response_sent(Path* p) noexcept nogil:
    p.responses -= 1
    memmove(p.response[0], p.response[1], 8 * p.responses)


cdef bint path_on_timeout(Path* p, int64_t now) noexcept nogil:
    if p.next_step > now:
        return False
    if p.tries < PATH_TRIES and not p.challenge_due:
        p.challenge_due = True
        p.next_step = now + PATH_TRIES * p.pto
        return False
    end(p)
    return True


# --- Python face --------------------------------------------------------------------

cdef const uint8_t* eight(bytes data) except NULL:
    if len(data) != 8:
        raise ValueError("a challenge has 8 bytes")
    return data


@cython.final
@cython.auto_pickle(False)
cdef class PathFace:
    """A ``Path`` of its own, for tests and tools. Times are microseconds."""

    cdef Path p

    def __cinit__(self):
        cdef Address nowhere
        cdef Cid none
        memset(&nowhere, 0, sizeof(Address))
        memset(&none, 0, sizeof(Cid))
        path_init(&self.p, &nowhere, &none, 0)

    def validate(self, int64_t now, int64_t pto):
        """Begin a validation, unless one is under way."""
        path_validate(&self.p, now, pto)

    def challenge_sent(self, bytes data not None, int64_t now, bint small=False):
        """Note a challenge; one must be due."""
        if not self.p.challenge_due:
            raise ValueError("no challenge is due")
        path_challenge_sent(&self.p, eight(data), small, now)

    def on_response(self, bytes data not None, int64_t now):
        """Take the data of a PATH_RESPONSE; say if it answers a challenge of ours."""
        return path_on_response(&self.p, eight(data), now)

    def on_challenge(self, bytes data not None):
        """Remember a challenge to answer; False if too many wait."""
        return path_on_challenge(&self.p, eight(data))

    def response_sent(self):
        """Drop the first of the answers that are due; there must be one."""
        if not self.p.responses:
            raise ValueError("no answer is due")
        path_response_sent(&self.p)

    def on_timeout(self, int64_t now):
        """Do what has come due; True if the validation failed."""
        return path_on_timeout(&self.p, now)

    def count(self, uint64_t received=0, uint64_t sent=0):
        """Count bytes that came from there and went there."""
        self.p.received += received
        self.p.sent += sent

    @property
    def room(self):
        """How many bytes may be sent now."""
        return path_room(&self.p)

    @property
    def validated(self):
        """Whether the address is proven."""
        return bool(self.p.validated)

    @property
    def asked(self):
        """Whether a validation is under way."""
        return path_is_asked(&self.p)

    @property
    def challenge_due(self):
        """Whether a challenge is to be sent."""
        return bool(self.p.challenge_due)

    @property
    def responses(self):
        """The answers that are due."""
        return [bytes(self.p.response[i][:8]) for i in range(self.p.responses)]

    @property
    def next_step(self):
        """When something comes due, None for never."""
        return None if self.p.next_step == INT64_MAX else self.p.next_step
