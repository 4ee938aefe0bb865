"""The two sets of connection identifiers of a connection.

Source: RFC 9000 sections 5.1 (issuing, limits, retiring), 10.3 (stateless reset),
19.15 and 19.16 (the frames).
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from lightning._core.quic.buffer cimport (
    E_CONNECTION_ID_LIMIT,
    E_PROTOCOL_VIOLATION,
    OK,
    OUT_OF_MEMORY,
)
from lightning._core.quic.packet cimport CID_MAX, RESET_TOKEN_SIZE, Cid, cid_is, cid_set
from lightning._core.quic.protection cimport equal_in_constant_time
from lightning._core.quic.ranges cimport (
    RANGES_DROP_LOWEST,
    ranges_add,
    ranges_free,
    ranges_init,
    ranges_seen,
)


# --- Local identifiers ----------------------------------------------------------------

cdef void local_cids_init(
    LocalCids* l, const Cid* first, const uint8_t* token
) noexcept nogil:
    memset(l, 0, sizeof(LocalCids))
    append_local(l, first, token).to_send = False


cdef void local_cids_set_limit(LocalCids* l, uint64_t limit) noexcept nogil:
    l.limit = limit


cdef uint32_t local_cids_wanted(const LocalCids* l) noexcept nogil:
    cdef uint32_t limit = <uint32_t> min(l.limit, <uint64_t> LOCAL_CIDS_ACTIVE)
    cdef uint32_t active = 0
    cdef uint32_t i
    # Those that the peer was asked to retire do not count (section 5.1.1).
    for i in range(l.count):
        active += l.entries[i].sequence >= l.retire_prior_to
    if active >= limit:
        return 0
    return min(limit - active, <uint32_t> LOCAL_CIDS_MAX - l.count)


cdef LocalCid* local_cids_issue(
    LocalCids* l, const Cid* cid, const uint8_t* token
) noexcept nogil:
    if local_cids_wanted(l) == 0:
        return NULL
    return append_local(l, cid, token)


cdef LocalCid* append_local(
    LocalCids* l, const Cid* cid, const uint8_t* token
) noexcept nogil:
    """Add the next in sequence; the caller has checked the room."""
    cdef LocalCid* made = &l.entries[l.count]
    l.count += 1
    made.sequence = l.next_sequence
    l.next_sequence += 1
    cid_set(&made.cid, cid.bytes, cid.size)
    memcpy(made.token, token, RESET_TOKEN_SIZE)
    made.to_send = True
    return made


cdef LocalCid* local_cids_find(
    LocalCids* l, const uint8_t* cid, size_t size
) noexcept nogil:
    cdef uint32_t i
    for i in range(l.count):
        if cid_is(&l.entries[i].cid, cid, size):
            return &l.entries[i]
    return NULL


cdef LocalCid* local_cids_to_send(LocalCids* l) noexcept nogil:
    cdef uint32_t i
    for i in range(l.count):
        if l.entries[i].to_send:
            return &l.entries[i]
    return NULL


cdef void local_cids_lost(LocalCids* l, uint64_t sequence) noexcept nogil:
    cdef uint32_t i
    for i in range(l.count):
        if l.entries[i].sequence == sequence:
            l.entries[i].to_send = True


cdef int local_cids_retire(
    LocalCids* l, uint64_t sequence, const uint8_t* dcid, size_t dcid_size,
    Cid* retired, bint* removed
) noexcept nogil:
    cdef uint32_t i
    removed[0] = False
    # Never issued, or the very one that the packet was sent to (section 19.16).
    if sequence >= l.next_sequence:
        return E_PROTOCOL_VIOLATION
    for i in range(l.count):
        if l.entries[i].sequence == sequence:
            if cid_is(&l.entries[i].cid, dcid, dcid_size):
                return E_PROTOCOL_VIOLATION
            retired[0] = l.entries[i].cid
            removed[0] = True
            l.count -= 1
            memmove(
                &l.entries[i], &l.entries[i + 1], (l.count - i) * sizeof(LocalCid)
            )
            return OK
    return OK


cdef void local_cids_replace(LocalCids* l, uint64_t sequence) noexcept nogil:
    l.retire_prior_to = max(l.retire_prior_to, min(sequence, l.next_sequence))


# --- Remote identifiers ---------------------------------------------------------------

cdef void remote_cids_init(RemoteCids* r, uint32_t limit) noexcept nogil:
    memset(r, 0, sizeof(RemoteCids))
    r.limit = min(limit, <uint32_t> REMOTE_CIDS_MAX)
    ranges_init(&r.seen, REMOTE_SEEN_MAX, RANGES_DROP_LOWEST)
    # Sequence 0 is there from the start, with whatever bytes it will have.
    r.count = 1
    r.entries[0].used = True


cdef void remote_cids_free(RemoteCids* r) noexcept nogil:
    ranges_free(&r.seen)
    r.count = 0
    r.retirement_count = 0


cdef void remote_cids_set_first(RemoteCids* r, const Cid* cid) noexcept nogil:
    cdef RemoteCid* first = remote_cids_find(r, 0)
    if first is not NULL:
        first.cid = cid[0]


cdef void remote_cids_set_token(RemoteCids* r, const uint8_t* token) noexcept nogil:
    cdef RemoteCid* first = remote_cids_find(r, 0)
    if first is not NULL:
        memcpy(first.token, token, RESET_TOKEN_SIZE)
        first.has_token = True


cdef int remote_cids_add(
    RemoteCids* r, uint64_t sequence, uint64_t retire_prior_to, const uint8_t* cid,
    uint8_t cid_size, const uint8_t* token
) noexcept nogil:
    cdef RemoteCid* one
    cdef bint known = sequence == 0 or ranges_seen(&r.seen, sequence)
    cdef uint32_t i = 0
    cdef int status
    for i in range(r.count):
        one = &r.entries[i]
        # A peer without identifiers must not issue any, and one identifier has one
        # sequence number and one token (section 19.15).
        if one.cid.size == 0 or (
            cid_is(&one.cid, cid, cid_size) != (one.sequence == sequence)
        ):
            return E_PROTOCOL_VIOLATION
        if one.sequence == sequence and one.has_token and not equal_in_constant_time(
            one.token, token, RESET_TOKEN_SIZE
        ):
            return E_PROTOCOL_VIOLATION
    # First retire, then add (section 5.1.2).
    if retire_prior_to > r.retire_prior_to:
        r.retire_prior_to = retire_prior_to
        i = 0
        while i < r.count:
            if r.entries[i].sequence < retire_prior_to:
                status = remove_remote(r, i)
                if status:
                    return status
            else:
                i += 1
    if known:
        return OK  # Sent again, or retired meanwhile.
    if ranges_add(&r.seen, sequence, sequence + 1):
        return OUT_OF_MEMORY
    if sequence < r.retire_prior_to:
        return queue_retirement(r, sequence)  # It came too late to be of use.
    if r.count >= r.limit:
        return E_CONNECTION_ID_LIMIT
    one = &r.entries[r.count]
    r.count += 1
    one.sequence = sequence
    cid_set(&one.cid, cid, cid_size)
    memcpy(one.token, token, RESET_TOKEN_SIZE)
    one.has_token = True
    one.used = False
    return OK


cdef RemoteCid* remote_cids_find(RemoteCids* r, uint64_t sequence) noexcept nogil:
    cdef uint32_t i
    for i in range(r.count):
        if r.entries[i].sequence == sequence:
            return &r.entries[i]
    return NULL


cdef RemoteCid* remote_cids_take(RemoteCids* r) noexcept nogil:
    cdef RemoteCid* best = NULL
    cdef uint32_t i
    for i in range(r.count):
        if not r.entries[i].used and (
            best is NULL or r.entries[i].sequence < best.sequence
        ):
            best = &r.entries[i]
    if best is not NULL:
        best.used = True
    return best


cdef int remote_cids_retire(RemoteCids* r, uint64_t sequence) noexcept nogil:
    cdef uint32_t i
    for i in range(r.count):
        if r.entries[i].sequence == sequence:
            return remove_remote(r, i)
    return OK


cdef int remove_remote(RemoteCids* r, uint32_t index) noexcept nogil:
    """Forget an identifier and queue its retirement."""
    cdef int status = queue_retirement(r, r.entries[index].sequence)
    if status == OK:
        r.count -= 1
        r.entries[index] = r.entries[r.count]
    return status


cdef int queue_retirement(RemoteCids* r, uint64_t sequence) noexcept nogil:
    if r.retirement_count == RETIREMENTS_MAX:
        return E_CONNECTION_ID_LIMIT
    r.retirements[r.retirement_count].sequence = sequence
    r.retirements[r.retirement_count].to_send = True
    r.retirement_count += 1
    return OK


cdef Retirement* remote_cids_to_send(RemoteCids* r) noexcept nogil:
    cdef uint32_t i
    for i in range(r.retirement_count):
        if r.retirements[i].to_send:
            return &r.retirements[i]
    return NULL


cdef void remote_cids_acked(RemoteCids* r, uint64_t sequence) noexcept nogil:
    cdef uint32_t i
    for i in range(r.retirement_count):
        if r.retirements[i].sequence == sequence:
            r.retirement_count -= 1
            r.retirements[i] = r.retirements[r.retirement_count]
            return


cdef void remote_cids_lost(RemoteCids* r, uint64_t sequence) noexcept nogil:
    cdef uint32_t i
    for i in range(r.retirement_count):
        if r.retirements[i].sequence == sequence:
            r.retirements[i].to_send = True


cdef bint remote_cids_is_reset(
    const RemoteCids* r, const uint8_t* token
) noexcept nogil:
    cdef bint found = False
    cdef uint32_t i
    # Tokens of identifiers that were never used must not be looked at, and the time
    # must not tell which one it was (section 10.3.1).
    for i in range(r.count):
        if r.entries[i].used and r.entries[i].has_token:
            found |= equal_in_constant_time(
                r.entries[i].token, token, RESET_TOKEN_SIZE
            )
    return found


# --- What Python sees -----------------------------------------------------------------

cdef bytes to_bytes(const Cid* cid):
    return PyBytes_FromStringAndSize(<const char*> cid.bytes, cid.size)


cdef int to_cid(Cid* cid, bytes data) except -1:
    if len(data) > CID_MAX:
        raise ValueError(f"a connection ID of {len(data)} bytes")
    cid_set(cid, data, len(data))
    return 0


cdef const uint8_t* to_token(bytes data) except NULL:
    if len(data) != RESET_TOKEN_SIZE:
        raise ValueError("a stateless reset token has 16 bytes")
    return data


@cython.final
@cython.auto_pickle(False)
cdef class LocalCidSet:
    """A ``LocalCids`` of its own, for tests and tools."""

    cdef LocalCids cids

    def __cinit__(self, bytes first not None, bytes token not None):
        cdef Cid cid
        to_cid(&cid, first)
        local_cids_init(&self.cids, &cid, to_token(token))

    @property
    def entries(self):
        """All identifiers as (sequence, identifier, token)."""
        return [
            (
                self.cids.entries[i].sequence,
                to_bytes(&self.cids.entries[i].cid),
                bytes(self.cids.entries[i].token[:RESET_TOKEN_SIZE]),
            )
            for i in range(self.cids.count)
        ]

    @property
    def wanted(self):
        """How many to issue now."""
        return local_cids_wanted(&self.cids)

    def set_limit(self, uint64_t limit):
        """Take over the peer's active_connection_id_limit."""
        local_cids_set_limit(&self.cids, limit)

    def issue(self, bytes cid not None, bytes token not None):
        """Issue one; return its sequence number, or None if none is wanted."""
        cdef Cid made
        cdef LocalCid* issued
        to_cid(&made, cid)
        issued = local_cids_issue(&self.cids, &made, to_token(token))
        return None if issued is NULL else issued.sequence

    def find(self, bytes cid not None):
        """Return the sequence number of an identifier, or None."""
        cdef LocalCid* found = local_cids_find(&self.cids, cid, len(cid))
        return None if found is NULL else found.sequence

    def send(self):
        """Return (sequence, retire_prior_to) of the next to announce, or None."""
        cdef LocalCid* due = local_cids_to_send(&self.cids)
        if due is NULL:
            return None
        due.to_send = False
        return due.sequence, local_cid_retire_prior_to(&self.cids, due)

    def lost(self, uint64_t sequence):
        """Announce one again."""
        local_cids_lost(&self.cids, sequence)

    def retire(self, uint64_t sequence, bytes dcid not None):
        """Return the status and the identifier removed, or None."""
        cdef Cid retired
        cdef bint removed = False
        cdef int status = local_cids_retire(
            &self.cids, sequence, dcid, len(dcid), &retired, &removed
        )
        return status, to_bytes(&retired) if removed else None

    def replace(self, uint64_t sequence):
        """Ask the peer to retire all below ``sequence``."""
        local_cids_replace(&self.cids, sequence)


@cython.final
@cython.auto_pickle(False)
cdef class RemoteCidSet:
    """A ``RemoteCids`` of its own, for tests and tools."""

    cdef RemoteCids cids

    def __cinit__(self, bytes first not None, uint32_t limit=REMOTE_CIDS_MAX):
        remote_cids_init(&self.cids, limit)
        self.set_first(first)

    def __dealloc__(self):
        remote_cids_free(&self.cids)

    @property
    def entries(self):
        """All identifiers as (sequence, identifier, used), by sequence number."""
        return sorted([
            (
                self.cids.entries[i].sequence,
                to_bytes(&self.cids.entries[i].cid),
                self.cids.entries[i].used,
            )
            for i in range(self.cids.count)
        ])

    @property
    def retirements(self):
        """Sequence numbers whose retirement is not acknowledged, ascending."""
        return sorted([
            self.cids.retirements[i].sequence
            for i in range(self.cids.retirement_count)
        ])

    def set_first(self, bytes cid not None):
        """Set the identifier of sequence 0."""
        cdef Cid made
        to_cid(&made, cid)
        remote_cids_set_first(&self.cids, &made)

    def set_token(self, bytes token not None):
        """Set the token of sequence 0."""
        remote_cids_set_token(&self.cids, to_token(token))

    def add(
        self, uint64_t sequence, uint64_t retire_prior_to, bytes cid not None,
        bytes token not None
    ):
        """Handle a NEW_CONNECTION_ID frame and return the status."""
        cdef Cid made
        to_cid(&made, cid)
        return remote_cids_add(
            &self.cids, sequence, retire_prior_to, made.bytes, made.size,
            to_token(token),
        )

    def knows(self, uint64_t sequence):
        """Say if a sequence number may be used."""
        return remote_cids_find(&self.cids, sequence) is not NULL

    def take(self):
        """Return the sequence number and bytes of an unused identifier, or None."""
        cdef RemoteCid* taken = remote_cids_take(&self.cids)
        return None if taken is NULL else (taken.sequence, to_bytes(&taken.cid))

    def retire(self, uint64_t sequence):
        """Give one up and return the status."""
        return remote_cids_retire(&self.cids, sequence)

    def send(self):
        """Return the next sequence number to tell the peer of, or None."""
        cdef Retirement* due = remote_cids_to_send(&self.cids)
        if due is NULL:
            return None
        due.to_send = False
        return due.sequence

    def acked(self, uint64_t sequence):
        """The peer acknowledged a retirement."""
        remote_cids_acked(&self.cids, sequence)

    def lost(self, uint64_t sequence):
        """Tell the peer of a retirement again."""
        remote_cids_lost(&self.cids, sequence)

    def is_reset(self, bytes token not None):
        """Say if the token is that of an identifier in use."""
        return remote_cids_is_reset(&self.cids, to_token(token))

    def free(self):
        """Free what the set holds; may be called twice."""
        remote_cids_free(&self.cids)
