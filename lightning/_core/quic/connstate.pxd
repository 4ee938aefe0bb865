"""The record of a connection, what its endpoint's connections share, and its ends.

``connrecv`` and ``connsend`` work on the record, ``connection`` has the verbs and the
timers, ``endpoint`` owns it all. Everything is done under the endpoint's mutex.
Times are microseconds, sizes bytes.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lightning._core.quic.buffer cimport APPLICATION, HANDSHAKE, INITIAL
from lightning._core.quic.cidmap cimport CidMap
from lightning._core.quic.cids cimport LocalCids, RemoteCids
from lightning._core.quic.frames cimport EcnCounts
from lightning._core.quic.packet cimport Cid
from lightning._core.quic.paths cimport Address, Path
from lightning._core.quic.protection cimport Keys, PacketKey
from lightning._core.quic.ranges cimport Ranges
from lightning._core.quic.reassembly cimport Reassembly
from lightning._core.quic.recovery cimport Recovery, RecoveryConfig
from lightning._core.quic.secrets cimport Random, Tokens
from lightning._core.quic.sendbuf cimport SendBuffer
from lightning._core.quic.sources cimport Sources
from lightning._core.quic.streamtable cimport (
    StreamConfig, StreamMemory, StreamSink, StreamTable
)
from lightning._core.quic.tokenstore cimport TokenStore
from lightning._core.quic.trace cimport Trace


cdef enum ConnLimits:
    LOCAL_CID_SIZE = 8  # of the connection IDs that we issue
    # Packets that came before their keys, as the keys of a flight are made after the
    # mutex is released; an honest flight has fewer.
    STASH_PACKETS = 16
    STASH_PACKET_SIZE = 1500
    REASON_MAX = 256  # of a reason phrase that is kept; longer ones are cut
    # Packets with a deliberately skipped number among them (RFC 9000 21.4).
    SKIP_MIN = 64
    SKIP_SPREAD = 1024
    # Microseconds after which a connection that sent much gives memory back.
    TRIM_AFTER = 1000000
    # Packets before a key's limit at which the keys are updated.
    KEY_MARGIN = 1024
    # Probe timeouts without an answer, whatever `unresponsive_timeout` is.
    UNRESPONSIVE_TIMEOUTS = 3


cdef enum ConnState:
    CONN_HANDSHAKE = 0
    CONN_OPEN = 1  # the handshake is complete
    CONN_CLOSING = 2  # we closed: CONNECTION_CLOSE answers what comes (RFC 9000 10.2.1)
    CONN_DRAINING = 3  # the peer closed: nothing is sent (section 10.2.2)
    CONN_GONE = 4  # no packet is routed here any more


# Who ended the connection, and how.
cdef enum CloseInitiator:
    CLOSED_BY_US = 0
    CLOSED_BY_PEER = 1
    CLOSED_IDLE = 2  # no packet within the idle timeout
    CLOSED_HANDSHAKE_TIMEOUT = 3
    CLOSED_RESET = 4  # the peer lost its state: a stateless reset
    CLOSED_NO_VERSION = 5  # the server speaks no version of ours
    CLOSED_NO_PATH = 6  # no path is left that carries packets both ways
    CLOSED_UNREACHABLE = 7  # an ICMP error answered the dial
    CLOSED_UNRESPONSIVE = 8  # the peer owes an acknowledgement, and is silent


# Records of frames that streams wrote are of kind SENT_OF_STREAMS plus the FrameType;
# the others are of a SentKind.
cdef enum: SENT_OF_STREAMS = 64


# The lists of an endpoint that a connection may be in; without a type, to be an index.
cdef enum:
    CONNS_SEND = 0  # may have a datagram to send
    CONNS_EVENTS = 1  # has something to tell the layer above
    CONNS_TLS = 2  # has CRYPTO bytes for TLS
    CONNS_LISTS = 3


cdef enum ConnEvents:
    CONN_EVENT_CONNECTED = 1
    CONN_EVENT_CLOSED = 2


cdef struct Settings:  # EngineConfig's, in microseconds and bytes
    StreamConfig streams
    RecoveryConfig recovery
    int64_t idle_timeout  # 0 is none
    int64_t handshake_timeout
    int64_t keep_alive  # 0 is none
    int64_t unresponsive_timeout  # 0 is none
    int64_t ack_delay
    uint64_t key_update_after  # 0 is the AEAD's limit
    uint32_t active_cids
    uint32_t max_connections
    uint32_t max_half_open
    uint32_t max_unauthenticated_per_source  # 0 is any number
    uint32_t max_connections_per_minute  # likewise
    uint32_t max_tracked_rate_ips
    uint32_t retry_from
    bint retry
    bint sends_tokens
    uint8_t reset_key[32]


# What all connections of an endpoint use.
cdef struct Shared:
    Settings settings
    StreamMemory memory
    Random random
    Tokens tokens
    TokenStore given  # a client's, by its servers
    CidMap cids
    CidMap peers  # by the address of the peer: see conn_route
    Sources sources  # of a server's connections
    Trace* trace  # NULL is off; see `conntrace`
    # Takes the data of all streams in order; its context is the Conn. NULL has it
    # buffered until it is read.
    StreamSink sink
    Conn* first[3]  # by CONNS_*
    Conn* last[3]
    uint64_t next_number
    uint32_t connections
    uint32_t half_open
    bint is_client


# What was received in a packet number space (RFC 9000 section 13.2).
cdef struct RecvSpace:
    Ranges received
    uint64_t largest
    int64_t largest_time
    int64_t ack_at  # when an ACK is due; INT64_MAX is never
    int64_t prompt_until  # every packet is acknowledged at once: some are missing
    uint32_t eliciting  # ack-eliciting packets since the last ACK
    uint32_t lonely  # ACKs sent since the last ack-eliciting packet of ours
    bint counts_ecn
    EcnCounts ecn


# A packet that is kept until its keys are there.
cdef struct Stashed:
    uint16_t size
    uint8_t ecn
    uint8_t space
    int64_t time
    uint8_t data[1500]


cdef struct ConnStats:
    uint64_t datagrams_received
    uint64_t datagrams_sent
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t packets_received
    uint64_t packets_dropped
    uint64_t key_updates
    uint64_t path_changes


cdef struct Conn:
    Shared* shared
    void* user  # of the layer above
    uint64_t number  # unique in the endpoint
    uint32_t refs  # the endpoint's, the layer above's, and of who is at work on TLS
    uint8_t state  # a ConnState
    uint8_t listed  # 1 << CONNS_*
    Conn* after[3]
    Conn* before[3]
    uint32_t heap_index  # in the endpoint's timers, from 1; 0 is none
    int64_t deadline  # the key there
    bint is_client
    bint half_open  # counted as such
    bint confirmed  # RFC 9001 4.1.2
    bint authentic  # some packet of the peer could be opened
    bint settled  # the endpoint does not count it any more
    bint released  # nor does it refer to it
    uint32_t stranger_of  # place in `sources`, until somebody vouches for it; or 0
    # Frames that are due.
    bint close_due
    bint ping_due
    bint handshake_done_due
    bint token_due
    bint control_due  # there may be connection IDs to announce or to retire
    bint probe_mtu  # a full datagram was sent: the path may be searched
    # Connection IDs.
    LocalCids local
    RemoteCids remote
    Cid original  # the destination of the client's first Initial
    Cid source  # the source of our handshake packets
    Cid peer_source  # of the peer's; unset until `has_peer_source`
    Cid keyed  # what the Initial keys are made with; a server's first route
    Cid retry_source  # of the Retry
    bint has_peer_source
    bint has_retry
    uint8_t* token  # a client's, for its Initials
    size_t token_size
    # The last token of NEW_TOKEN, for a layer above that outlives the endpoint.
    uint8_t* new_token
    size_t new_token_size
    # Protection, by Space.
    Keys sealing[3]
    Keys opening[3]
    bint can_seal[3]
    bint can_open[3]
    bint discarded[3]
    uint64_t failures  # packets that were not authentic
    # Key updates (RFC 9001 section 6).
    PacketKey next_opening
    PacketKey old_opening
    int64_t old_until  # old_opening is kept until then
    bint seal_phase
    bint open_phase
    uint64_t seal_start  # first packet number sealed in this phase
    uint64_t open_start  # lowest packet number opened in this phase
    bint seal_acked  # a packet of this phase was acknowledged
    bint open_acked  # we acknowledged a packet of this phase
    # TLS.
    Reassembly crypto_in[3]
    SendBuffer crypto_out[3]
    bint in_tls  # somebody is feeding TLS
    bint started
    Stashed* stash  # STASH_PACKETS, NULL until the first
    uint32_t stashed
    # The peer's transport parameters.
    bint has_parameters
    uint64_t peer_idle_timeout
    unsigned int peer_ack_exponent
    # The rest of the transport.
    Recovery recovery
    RecvSpace recv[3]
    StreamTable streams
    Path paths[4]
    uint32_t path  # the one in use
    # Timers.
    int64_t idle_at
    int64_t handshake_at
    int64_t keep_alive_at
    int64_t pacing_at
    int64_t trim_at  # when to give memory back if nothing is in flight
    int64_t close_at
    # When the peer has been silent for too long, or, before, is to be asked once more.
    # Set by the first ack-eliciting packet since it was last heard, after so many probe
    # timeouts.
    int64_t unresponsive_at
    uint64_t timeouts_before
    bint asked_again
    int64_t received_at  # the last packet of the peer
    int64_t connected_at  # when the handshake was complete, 0 before
    bint sent_since_received  # an ack-eliciting packet (RFC 9000 10.1)
    # How it ended.
    uint8_t events  # ConnEvents that wait
    uint8_t initiator  # a CloseInitiator
    bint close_app  # the code is the application's
    uint64_t close_code
    uint64_t close_frame
    uint32_t close_reason_size
    uint8_t close_reason[256]
    uint32_t close_answers  # packets received while closing
    ConnStats stats


# --- Life -----------------------------------------------------------------------------

cdef void settings_init(Settings* s, bint is_client) noexcept nogil
cdef void shared_init(Shared* s, const Settings* settings) noexcept nogil
cdef void shared_free(Shared* s) noexcept nogil
# Make a connection; it has one reference, the endpoint's. `original` is the destination
# of the client's first Initial; `dcid` where packets go to now, and with what the
# Initial keys are made. NULL if there is no memory.
cdef Conn* conn_create(
    Shared* s, const Address* remote, const Cid* original, const Cid* keyed,
    const Cid* dcid, int64_t now
) noexcept nogil
cdef void conn_ref(Conn* c) noexcept nogil
cdef void conn_unref(Conn* c) noexcept nogil
# End it for good: nothing is routed to it, its memory goes with the last reference.
cdef void conn_bury(Conn* c) noexcept nogil
# Give back the memory of its streams and its handshake, if it has ended: whoever still
# refers to it has no use for them. Every pointer to a stream of it is void after this.
cdef void conn_forget(Conn* c) noexcept nogil

# --- Its end --------------------------------------------------------------------------

# Close with a transport error of the peer (or E_INTERNAL for OUT_OF_MEMORY).
cdef void conn_fail(Conn* c, int status, uint64_t frame, int64_t now) noexcept nogil
cdef void conn_close_local(
    Conn* c, bint app, uint64_t code, uint64_t frame, const uint8_t* reason,
    size_t size, int64_t now
) noexcept nogil
# The peer closed it, which was alive.
cdef void conn_drain(
    Conn* c, bint app, uint64_t code, uint64_t frame, const uint8_t* reason,
    size_t size, int64_t now
) noexcept nogil
# It ended without a word.
cdef void conn_lose(Conn* c, uint8_t initiator) noexcept nogil

# --- Keys and connection IDs ----------------------------------------------------------

# OK, OUT_OF_MEMORY or PROTECTION_UNAVAILABLE.
cdef int conn_install(
    Conn* c, int space, bint sealing, uint16_t suite, const uint8_t* secret,
    size_t size
) noexcept nogil
cdef void conn_discard(Conn* c, int space, int64_t now) noexcept nogil
# The handshake is complete, and confirmed: for a server at once, for a client when
# HANDSHAKE_DONE comes (RFC 9001 section 4.1).
cdef int conn_complete(Conn* c, int64_t now) noexcept nogil
cdef void conn_confirm(Conn* c, int64_t now) noexcept nogil
# Its peer is known from now on: it is no stranger of its source any more.
cdef void conn_vouch(Conn* c) noexcept nogil
# Take the next phase's keys for sealing. OK or a status as above.
cdef int conn_update_sealing(Conn* c) noexcept nogil
cdef bint conn_may_update(const Conn* c) noexcept nogil
cdef int conn_issue_cids(Conn* c) noexcept nogil
# Make our connection ID and its reset token.
cdef int conn_make_cid(Shared* s, Cid* cid, uint8_t* token) noexcept nogil

# Where stateless resets of the peer come from, as a key of `peers`.
cdef void conn_peer_key(const Address* address, Cid* key) noexcept nogil
# Use another path, known by its index in `paths`.
cdef int conn_route(Conn* c, uint32_t path) noexcept nogil
# Forget a path that is not in use, and its connection ID.
cdef int conn_forget_path(Conn* c, uint32_t path) noexcept nogil

# --- Lists ----------------------------------------------------------------------------

cdef inline void conn_list(Conn* c, int which) noexcept nogil:
    """Append to a list of the endpoint, unless it is in it."""
    cdef Shared* s = c.shared
    if c.listed & (1 << which):
        return
    c.listed |= 1 << which
    c.after[which] = NULL
    c.before[which] = s.last[which]
    if s.last[which] is NULL:
        s.first[which] = c
    else:
        s.last[which].after[which] = c
    s.last[which] = c


cdef inline void conn_unlist(Conn* c, int which) noexcept nogil:
    """Take out of a list, if it is in it."""
    cdef Shared* s = c.shared
    if not c.listed & (1 << which):
        return
    c.listed &= ~(1 << which)
    if c.before[which] is NULL:
        s.first[which] = c.after[which]
    else:
        c.before[which].after[which] = c.after[which]
    if c.after[which] is NULL:
        s.last[which] = c.before[which]
    else:
        c.after[which].before[which] = c.before[which]


cdef inline bint conn_is_alive(const Conn* c) noexcept nogil:
    """Say if it can carry data, now or once it is connected."""
    return c.state <= CONN_OPEN


cdef inline bint conn_awaits_tls(const Conn* c) noexcept nogil:
    """Say if TLS is about to say what belongs into the next datagram.

    Only until the handshake is complete: a datagram of its own for an acknowledgement
    is the dearest then, and nobody's data has to wait.
    """
    return c.state < CONN_OPEN and (c.in_tls or (c.listed >> CONNS_TLS) & 1)


cdef inline int64_t conn_pto(const Conn* c) noexcept nogil:
    """Return one PTO of the application space, without back-off."""
    return (
        c.recovery.rtt.smoothed
        + max(4 * c.recovery.rtt.variance, <int64_t> 1000) + c.recovery.max_ack_delay
    )


cdef inline int64_t conn_idle_timeout(const Conn* c) noexcept nogil:
    """Return the idle timeout that counts, 0 for none (RFC 9000 10.1)."""
    cdef int64_t timeout = c.shared.settings.idle_timeout
    if c.peer_idle_timeout and (
        timeout == 0 or <int64_t> c.peer_idle_timeout < timeout
    ):
        timeout = <int64_t> c.peer_idle_timeout
    if timeout == 0:
        return 0
    return max(timeout, 3 * conn_pto(c))


cdef inline int64_t conn_keep_alive(const Conn* c) noexcept nogil:
    """Return after how much silence to send a PING, 0 for never.

    A peer may be less patient than we are: it gets two in its idle timeout.
    """
    cdef int64_t interval = c.shared.settings.keep_alive
    cdef int64_t timeout = conn_idle_timeout(c)
    if interval and timeout:
        return min(interval, timeout // 2)
    return interval
