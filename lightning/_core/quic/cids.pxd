"""Connection identifiers of both ends: issued, in use, retired.

Local ones are those we issue, which the peer writes into its packets; remote ones are
those the peer issues, which we write into ours. Each belongs to one path at a time:
a path keeps a copy of its remote identifier and the sequence number.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lightning._core.quic.packet cimport Cid
from lightning._core.quic.ranges cimport Ranges


cdef enum CidLimits:
    # Identifiers that we issue and keep at a time, whatever the peer allows (as
    # quinn); twice as many can wait for the peer to retire them.
    LOCAL_CIDS_ACTIVE = 8
    LOCAL_CIDS_MAX = 16
    # The most that our active_connection_id_limit may promise to keep.
    REMOTE_CIDS_MAX = 8
    # Retirements not acknowledged, sent or not: a peer that causes more while it
    # acknowledges none wants our memory. RFC 9000 section 5.1.2 asks for a limit of at
    # least twice active_connection_id_limit.
    RETIREMENTS_MAX = 64
    # Sequence numbers ever received, as ranges: an honest peer leaves no gaps.
    REMOTE_SEEN_MAX = 64


# --- Local identifiers ----------------------------------------------------------------

cdef struct LocalCid:
    uint64_t sequence
    Cid cid
    uint8_t token[16]
    bint to_send  # a NEW_CONNECTION_ID frame is due


cdef struct LocalCids:
    LocalCid entries[16]  # ascending by sequence number
    uint32_t count
    uint64_t limit  # the peer's active_connection_id_limit
    uint64_t next_sequence
    uint64_t retire_prior_to  # what we ask of the peer


# `first` is the Source Connection ID of our handshake packets; it has sequence 0.
cdef void local_cids_init(
    LocalCids* l, const Cid* first, const uint8_t* token
) noexcept nogil
# The peer's active_connection_id_limit, at least 2; until then none is issued.
cdef void local_cids_set_limit(LocalCids* l, uint64_t limit) noexcept nogil
# How many to issue now. The caller makes the bytes, unique in its endpoint.
cdef uint32_t local_cids_wanted(const LocalCids* l) noexcept nogil
# NULL if none is wanted. The pointer is good until the next change.
cdef LocalCid* local_cids_issue(
    LocalCids* l, const Cid* cid, const uint8_t* token
) noexcept nogil
cdef LocalCid* local_cids_find(
    LocalCids* l, const uint8_t* cid, size_t size
) noexcept nogil
# The next to announce, or NULL; clear its `to_send` when the frame is written.
cdef LocalCid* local_cids_to_send(LocalCids* l) noexcept nogil
# The frame that announced it was lost.
cdef void local_cids_lost(LocalCids* l, uint64_t sequence) noexcept nogil
# RETIRE_CONNECTION_ID in a packet to `dcid`. OK or E_PROTOCOL_VIOLATION. If
# `removed`, the identifier in `retired` routes no more.
cdef int local_cids_retire(
    LocalCids* l, uint64_t sequence, const uint8_t* dcid, size_t dcid_size,
    Cid* retired, bint* removed
) noexcept nogil
# Ask the peer to retire all below `sequence`; they route until it has.
cdef void local_cids_replace(LocalCids* l, uint64_t sequence) noexcept nogil


cdef inline uint64_t local_cid_retire_prior_to(
    const LocalCids* l, const LocalCid* cid
) noexcept nogil:
    """Return the Retire Prior To for a frame: never above its own sequence number."""
    return min(l.retire_prior_to, cid.sequence)


# --- Remote identifiers ---------------------------------------------------------------

cdef struct RemoteCid:
    uint64_t sequence
    Cid cid
    uint8_t token[16]
    bint has_token
    bint used  # a path has it, or had it


cdef struct Retirement:
    uint64_t sequence
    bint to_send  # a RETIRE_CONNECTION_ID frame is due


cdef struct RemoteCids:
    RemoteCid entries[8]  # in no order
    Retirement retirements[64]
    Ranges seen  # all sequence numbers received
    uint32_t count
    uint32_t retirement_count
    uint32_t limit  # our active_connection_id_limit
    uint64_t retire_prior_to  # what the peer asked of us


# `limit` is what we advertise: 2 to REMOTE_CIDS_MAX.
cdef void remote_cids_init(RemoteCids* r, uint32_t limit) noexcept nogil
cdef void remote_cids_free(RemoteCids* r) noexcept nogil
# The identifier of the handshake, in use; it has sequence 0. A client calls it again
# for a Retry and for the server's first packet.
cdef void remote_cids_set_first(RemoteCids* r, const Cid* cid) noexcept nogil
# The transport parameter stateless_reset_token.
cdef void remote_cids_set_token(RemoteCids* r, const uint8_t* token) noexcept nogil
# NEW_CONNECTION_ID, as frame_parse checked it, or the preferred address (sequence 1).
# OK, OUT_OF_MEMORY, E_PROTOCOL_VIOLATION or E_CONNECTION_ID_LIMIT. After that, a path
# whose sequence number remote_cids_find does not know must take another.
cdef int remote_cids_add(
    RemoteCids* r, uint64_t sequence, uint64_t retire_prior_to, const uint8_t* cid,
    uint8_t cid_size, const uint8_t* token
) noexcept nogil
cdef RemoteCid* remote_cids_find(RemoteCids* r, uint64_t sequence) noexcept nogil
# The unused one with the lowest sequence number, for a new path; it becomes used. NULL
# if there is none: then the path must not be used. Pointers are good until a change.
cdef RemoteCid* remote_cids_take(RemoteCids* r) noexcept nogil
# Give one up. OK (also if it is not known) or E_CONNECTION_ID_LIMIT.
cdef int remote_cids_retire(RemoteCids* r, uint64_t sequence) noexcept nogil
# The next to tell the peer of, or NULL; clear its `to_send` when the frame is written.
cdef Retirement* remote_cids_to_send(RemoteCids* r) noexcept nogil
cdef void remote_cids_acked(RemoteCids* r, uint64_t sequence) noexcept nogil
cdef void remote_cids_lost(RemoteCids* r, uint64_t sequence) noexcept nogil
# Whether these 16 bytes are the token of an identifier that we use (RFC 9000 section
# 10.3.1), in constant time.
cdef bint remote_cids_is_reset(
    const RemoteCids* r, const uint8_t* token
) noexcept nogil
