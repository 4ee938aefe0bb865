"""Loss detection of one connection, with what steers its sending (RFC 9002).

A Recovery holds the three packet number spaces and, of the path in use, the RTT,
congestion controller, pacer and search for the datagram size. It knows packets, and
of frames only records that say what to do once their packet's fate is known: it hands
each record back exactly once, as acknowledged or as lost, unless the space is
discarded first. Times are microseconds, sizes bytes.

To send a packet: ``recovery_frame`` for each frame worth a record, then
``recovery_on_packet_sent``. After any input, drain ``recovery_next_acked`` and
``recovery_next_lost``, and read ``recovery_next_timeout`` again.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lightning._core.quic.congestion cimport Congestion, congestion_room
from lightning._core.quic.ecn cimport Ecn, EcnCounts, EcnSpace, ecn_marks
from lightning._core.quic.lost cimport LostRing
from lightning._core.quic.mtu cimport Mtu
from lightning._core.quic.pacing cimport (
    Pacer, pacing_next_send_time, pacing_update
)
from lightning._core.quic.ranges cimport Range
from lightning._core.quic.rtt cimport Rtt
from lightning._core.quic.sent cimport (
    RecordPool, SentFrame, SentPacket, SentStore, record_append, record_give,
    record_pop, record_take
)


cdef enum RecoveryLimits:
    RECOVERY_PACKET_THRESHOLD = 3  # RFC 9002 6.1.1
    RECOVERY_PERSISTENT_THRESHOLD = 3  # RFC 9002 7.6.1
    RECOVERY_MAX_BACKOFF = 20  # doublings of the PTO; idle timeouts come far earlier
    # Packet numbers from the oldest tracked packet to the newest, in each space: 655 kB
    # at most, for 20 MB in flight. Beyond, the oldest packet is given up as lost,
    # without a congestion event.
    RECOVERY_MAX_TRACKED = 16384
    # Tracked packets that are not ack-eliciting, in each space. A peer that keeps us
    # acknowledging need not answer; further packets are given up as they are sent.
    RECOVERY_MAX_SILENT = 512
    RECOVERY_SKIPS = 4  # deliberately skipped packet numbers that are remembered


cdef struct PacketSpace:
    uint64_t next_pn  # what the next packet is numbered
    uint64_t largest_acked  # plus one; 0 is none
    uint8_t probes  # ack-eliciting packets to send now, past the congestion window
    SentStore sent  # packets that are neither acknowledged nor lost
    # Timers (RFC 9002 A.3).
    int64_t loss_time  # INT64_MAX is none
    int64_t last_ack_eliciting
    # Packets below were in flight while the congestion window was full.
    uint64_t full_until
    # Packets below left on another path and say nothing of this one.
    uint64_t path_start
    # Optimistic acknowledgements (RFC 9000 21.4).
    uint64_t skip_at  # the packet number to skip next; UINT64_MAX is none
    uint64_t skipped[RECOVERY_SKIPS]
    uint8_t skips
    # Persistent congestion: a run of lost packets with none acknowledged between.
    uint64_t run_pn
    int64_t run_start  # of its first ack-eliciting packet; INT64_MAX is none
    LostRing lost  # of the last three PTOs
    EcnSpace ecn


cdef struct RecoveryConfig:
    bint is_client
    int64_t initial_rtt  # RTT_INITIAL
    int algorithm  # a CongestionAlgorithm: CUBIC
    uint64_t initial_window  # 0: RFC 9002's; the peer uses 12000
    bint hystart  # on
    bint ecn  # on
    uint32_t max_datagram  # MTU_DEFAULT_MAXIMUM; what the search goes up to
    uint32_t max_burst  # PACING_MAX_BURST


cdef struct RecoveryStats:
    uint64_t packets_sent
    uint64_t packets_acked
    uint64_t packets_lost  # in flight only
    uint64_t bytes_lost
    uint64_t spurious_losses
    uint64_t timeouts  # of the PTO
    uint64_t ecn_ce  # packets that the peer saw marked


cdef struct Recovery:
    # The path.
    Rtt rtt
    Congestion cc
    Pacer pacer
    Mtu mtu
    Ecn ecn
    bint ecn_enabled
    PacketSpace spaces[3]
    # What the connection keeps true, by plain assignment.
    bint handshake_confirmed
    bint has_handshake_keys
    bint blocked  # a server at its amplification limit: no PTO (RFC 9002 6.2.2.1)
    int64_t max_ack_delay  # the peer's; 25 ms until its parameters are known
    # Timers.
    bint is_client
    bint handshake_acked
    uint32_t pto_count
    int64_t timer_base  # when the timer was last set, for the anti-deadlock probe
    # Records, in lists by their last one.
    RecordPool records
    SentFrame* pending  # of the packet that is being built
    SentFrame* acked
    SentFrame* lost
    RecoveryStats stats


cdef enum TimerAction:
    TIMER_NONE = 0  # it was not yet time
    TIMER_LOSS = 1  # packets were found lost
    TIMER_PROBE = 2  # each space has its number of probes to send in `probes`


# --- Life. Init allocates nothing; free is idempotent. ------------------------------
cdef void recovery_config_init(RecoveryConfig* config) noexcept nogil
cdef void recovery_init(Recovery* r, const RecoveryConfig* config) noexcept nogil
cdef void recovery_free(Recovery* r) noexcept nogil

# --- Sending ------------------------------------------------------------------------
cdef int recovery_on_packet_sent(
    Recovery* r, int space, uint16_t size, uint8_t flags, int64_t now
) noexcept nogil
cdef void recovery_on_path_probe_sent(Recovery* r) noexcept nogil
# Skip the packet number that is `distance` above the next one.
cdef void recovery_skip(Recovery* r, int space, uint64_t distance) noexcept nogil
cdef void recovery_drop_pending(Recovery* r) noexcept nogil

# --- Receiving. OK, or E_PROTOCOL_VIOLATION, E_FRAME_ENCODING. ----------------------
cdef int recovery_on_ack_received(
    Recovery* r, int space, const Range* ranges, uint32_t count, int64_t ack_delay,
    const EcnCounts* ecn, int64_t now,
) noexcept nogil

# --- Time. INT64_MAX is no deadline; on_timeout returns a TimerAction. --------------
cdef int64_t recovery_next_timeout(const Recovery* r) noexcept nogil
cdef int recovery_on_timeout(Recovery* r, int64_t now) noexcept nogil
cdef int64_t recovery_pto(const Recovery* r, int space) noexcept nogil

# --- Turns of the connection --------------------------------------------------------
cdef void recovery_discard_space(Recovery* r, int space, int64_t now) noexcept nogil
cdef void recovery_on_retry(Recovery* r, int64_t now) noexcept nogil
cdef void recovery_on_path_change(Recovery* r, int64_t now) noexcept nogil


# --- Records ------------------------------------------------------------------------

cdef inline SentFrame* recovery_frame(Recovery* r, uint8_t kind) noexcept nogil:
    """Add a record to the packet that is being built; NULL is out of memory.

    The operands are zero: fill in those of the kind. The space is filled in later.
    """
    cdef SentFrame* frame = record_take(&r.records, kind)
    if frame is not NULL:
        record_append(&r.pending, frame)
    return frame


cdef inline SentFrame* recovery_next_acked(Recovery* r) noexcept nogil:
    """Take a record whose packet was acknowledged; NULL is none. Release it after."""
    return record_pop(&r.acked)


cdef inline SentFrame* recovery_next_lost(Recovery* r) noexcept nogil:
    """Take a record whose frame is to be sent again, as ``recovery_next_acked``."""
    return record_pop(&r.lost)


cdef inline void recovery_release(Recovery* r, SentFrame* frame) noexcept nogil:
    """Give back a record that was taken."""
    record_give(&r.records, frame)


# --- What may be sent ---------------------------------------------------------------

cdef inline uint64_t recovery_next_pn(const Recovery* r, int space) noexcept nogil:
    return r.spaces[space].next_pn


cdef inline uint64_t recovery_room(const Recovery* r) noexcept nogil:
    """Return the bytes that the congestion window has left; probes may pass it."""
    return congestion_room(&r.cc)


cdef inline uint32_t recovery_datagram_size(
    const Recovery* r, int space
) noexcept nogil:
    """Return how large the next datagram may be.

    Probes stay at the size that every path carries, so that they get through a path
    that became narrower and tell of it.
    """
    return r.mtu.base if r.spaces[space].probes else r.mtu.current


cdef inline int64_t recovery_next_send_time(
    Recovery* r, uint32_t size, int64_t now
) noexcept nogil:
    """Return when the pacer lets a datagram go. Probes do not wait for it."""
    pacing_update(&r.pacer, r.cc.cwnd, r.rtt.smoothed, r.mtu.current, now)
    return pacing_next_send_time(&r.pacer, size, now)


cdef inline bint recovery_marks_ecn(const Recovery* r) noexcept nogil:
    """Say if the next datagram is to be marked; its packets get PACKET_ECT0."""
    return ecn_marks(&r.ecn)
