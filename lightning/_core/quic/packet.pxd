"""QUIC v1 packet headers: where a packet ends, whom it is for, and how to write one.

Nothing here is encrypted or decrypted: a parsed header stops in front of the packet
number, which header protection hides, and a built packet is sealed in place by
``protection``. Views point into the datagram and live as long as it does.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from lightning._core.quic.buffer cimport APPLICATION, HANDSHAKE, INITIAL, Writer


cdef enum PacketLimits:
    CID_MAX = 20  # in version 1 (RFC 9000 section 17.2)
    # The longest connection ID that another version may use (RFC 8999 section 5.1);
    # a Version Negotiation packet repeats it.
    CID_MAX_ANY_VERSION = 255
    TAG_SIZE = 16  # of all three AEADs (RFC 9001 section 5.3)
    RESET_TOKEN_SIZE = 16
    # Header protection samples 16 bytes, 4 after the start of the packet number
    # (RFC 9001 section 5.4.2); a shorter packet cannot be opened.
    SAMPLE_END = 20
    # A stateless reset that looks like a short header (RFC 9000 section 10.3).
    STATELESS_RESET_MIN = 21
    INITIAL_DATAGRAM_MIN = 1200  # RFC 9000 section 14.1


cdef enum QuicVersion:
    VERSION_NEGOTIATION = 0
    VERSION_1 = 1


# The first four are the long packet types of version 1 as the wire has them.
cdef enum PacketType:
    PACKET_INITIAL = 0
    PACKET_ZERO_RTT = 1
    PACKET_HANDSHAKE = 2
    PACKET_RETRY = 3
    PACKET_VERSION_NEGOTIATION = 4
    PACKET_ONE_RTT = 5


# Why a packet is dropped; the rest of its datagram goes with it. A packet that is
# dropped is not an error of the peer: anybody can send one (RFC 9000 section 5.2).
cdef enum PacketStatus:
    PACKET_TRUNCATED = -2
    PACKET_NO_SPACE = -3
    PACKET_NO_FIXED_BIT = -4
    PACKET_CID_TOO_LONG = -5
    # Version and both connection IDs are set, for a Version Negotiation reply.
    PACKET_UNKNOWN_VERSION = -6
    PACKET_TOO_SHORT = -7  # no complete header protection sample
    PACKET_NO_TOKEN = -8  # a Retry with an empty token (RFC 9000 section 17.2.5.2)


# --- Connection identifiers -----------------------------------------------------------

cdef struct Cid:
    uint8_t size
    uint8_t bytes[20]


cdef inline void cid_set(Cid* cid, const uint8_t* data, uint8_t size) noexcept nogil:
    """Copy a connection ID; the caller has checked ``size`` against CID_MAX."""
    cid.size = size
    if size:
        memcpy(cid.bytes, data, size)


cdef inline bint cid_is(
    const Cid* cid, const uint8_t* data, size_t size
) noexcept nogil:
    return cid.size == size and (size == 0 or memcmp(cid.bytes, data, size) == 0)


# --- Reading --------------------------------------------------------------------------

cdef struct PacketHeader:
    uint8_t type  # a PacketType
    uint8_t dcid_size
    uint8_t scid_size  # 0 in a short header
    uint32_t version  # 0 in a short header
    const uint8_t* dcid
    const uint8_t* scid
    # Of an Initial or a Retry: the token. Of Version Negotiation: the list of
    # versions, four bytes each.
    const uint8_t* token
    size_t token_size
    const uint8_t* integrity_tag  # of a Retry: the 16 bytes after the token
    size_t pn_offset  # from the start of the packet; 0 if it has no packet number
    size_t size  # of the whole packet: the next coalesced one starts there


# Parse the packet at `data`, of which `size` bytes are left in the datagram. A short
# header does not say how long its connection ID is: `local_cid_size` does.
cdef int packet_parse(
    PacketHeader* h, const uint8_t* data, size_t size, size_t local_cid_size
) noexcept nogil

# Recover a packet number (RFC 9000 A.3); `expected` is the largest received plus one.
cdef uint64_t packet_number_decode(
    uint64_t truncated, unsigned int pn_size, uint64_t expected
) noexcept nogil


cdef inline int packet_space(uint8_t type) noexcept nogil:
    """Return the packet number space of a type that has packet numbers."""
    if type == PACKET_INITIAL:
        return INITIAL
    return HANDSHAKE if type == PACKET_HANDSHAKE else APPLICATION


cdef inline bint packet_reserved_bits(uint8_t first) noexcept nogil:
    """Say if a reserved bit is set in an unprotected first byte.

    That is a PROTOCOL_VIOLATION, but only after the packet was authenticated
    (RFC 9000 sections 17.2 and 17.3.1).
    """
    return (first & (0x0C if first & 0x80 else 0x18)) != 0


# --- Writing --------------------------------------------------------------------------

# A packet under construction: the frames follow its header in the same writer.
cdef struct PacketBuild:
    uint8_t* start
    uint8_t* length  # the two bytes to fill in; NULL in a short header
    uint8_t* pn
    unsigned int pn_size


# Bytes of a packet number, 1 to 4 (RFC 9000 A.2). `largest_acked` is -1 for none.
cdef unsigned int packet_number_size(uint64_t pn, int64_t largest_acked) noexcept nogil

# Header sizes, packet number included.
cdef size_t packet_long_size(
    uint8_t type, size_t dcid_size, size_t scid_size, size_t token_size,
    unsigned int pn_size
) noexcept nogil
cdef inline size_t packet_short_size(
    size_t dcid_size, unsigned int pn_size
) noexcept nogil:
    return 1 + dcid_size + pn_size

# Each writes all or nothing: OK or PACKET_NO_SPACE.
cdef int packet_begin_long(
    Writer* w, PacketBuild* build, uint8_t type, const Cid* dcid, const Cid* scid,
    const uint8_t* token, size_t token_size, uint64_t pn, unsigned int pn_size
) noexcept nogil
cdef int packet_begin_short(
    Writer* w, PacketBuild* build, const Cid* dcid, bint key_phase, uint64_t pn,
    unsigned int pn_size
) noexcept nogil
# Fill in the length of a long header once the payload ends at `w.pos`; the tag that
# sealing appends is counted. Does nothing for a short header.
cdef int packet_set_length(PacketBuild* build, const Writer* w) noexcept nogil

# `tag` is left for protection's retry_tag to fill, over all that was written before.
cdef int packet_write_retry(
    Writer* w, uint8_t random, const Cid* dcid, const Cid* scid, const uint8_t* token,
    size_t token_size, uint8_t** tag
) noexcept nogil
# The connection IDs are those of the packet answered, swapped.
cdef int packet_write_version_negotiation(
    Writer* w, uint8_t random, const uint8_t* dcid, uint8_t dcid_size,
    const uint8_t* scid, uint8_t scid_size, const uint32_t* versions, size_t count
) noexcept nogil
# `random` holds `size` - 16 bytes, and `size` is at least STATELESS_RESET_MIN.
cdef int packet_write_stateless_reset(
    Writer* w, const uint8_t* random, size_t size, const uint8_t* token
) noexcept nogil
