# cython: cdivision=True
# No divisor here is zero, and no dividend negative.
"""RTT, loss detection, probe timeout, persistent congestion and ECN (RFC 9002).

Cost of an ACK frame: its ranges, the packets that are newly acknowledged or lost, and
at most two packets that wait below the largest acknowledged one. Tracked packets are
a linked list in a ring, so what was settled before is never visited again.

Tracked packets are ordered by number and by time alike; so the lost ones are always
the oldest, and the first that is not lost is the one that the loss timer waits for.
"""

cimport cython
from libc.stdint cimport (
    INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
)
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lightning._core.quic.buffer cimport (
    APPLICATION, E_FRAME_ENCODING, E_PROTOCOL_VIOLATION, HANDSHAKE, INITIAL, OK,
    OUT_OF_MEMORY, SPACE_COUNT
)
from lightning._core.quic.congestion cimport (
    CUBIC, NEW_RENO, congestion_init, congestion_is_full, congestion_on_acked,
    congestion_on_event, congestion_on_persistent, congestion_on_rtt,
    congestion_on_sent, congestion_reset, congestion_set_max_datagram
)
from lightning._core.quic.ecn cimport (
    ecn_init, ecn_on_acked, ecn_on_lost, ecn_on_sent
)
from lightning._core.quic.lost cimport (
    lost_count_spurious, lost_free, lost_remember
)
from lightning._core.quic.mtu cimport (
    MTU_BASE, MTU_DEFAULT_MAXIMUM, mtu_enable, mtu_init, mtu_next_probe,
    mtu_on_large_acked, mtu_on_large_lost, mtu_on_probe_acked, mtu_on_probe_lost,
    mtu_on_probe_sent, mtu_reset
)
from lightning._core.quic.pacing cimport (
    PACING_MAX_BURST, pacing_init, pacing_on_sent
)
from lightning._core.quic.rtt cimport (
    RTT_INITIAL, rtt_loss_delay, rtt_pto, rtt_set, rtt_update
)
from lightning._core.quic.sent cimport (
    PACKET_ACK_ELICITING, PACKET_ECT0, PACKET_IN_FLIGHT, PACKET_MTU_PROBE, SENT_STREAM,
    record_give, record_join, record_pop, records_free, sent_append, sent_free,
    sent_newer, sent_oldest, sent_remove
)


# --- Life ---------------------------------------------------------------------------

cdef void recovery_config_init(RecoveryConfig* config) noexcept nogil:
    """Fill in the defaults that the ``.pxd`` names, for a client."""
    config.is_client = True
    config.initial_rtt = RTT_INITIAL
    config.algorithm = CUBIC
    config.initial_window = 0
    config.hystart = True
    config.ecn = True
    config.max_datagram = MTU_DEFAULT_MAXIMUM
    config.max_burst = PACING_MAX_BURST


cdef void recovery_init(Recovery* r, const RecoveryConfig* config) noexcept nogil:
    """Start a connection on a path of which nothing is known."""
    cdef PacketSpace* sp
    cdef int space, i
    memset(r, 0, sizeof(Recovery))
    r.is_client = config.is_client
    r.ecn_enabled = config.ecn
    r.max_ack_delay = 25000  # RFC 9000 18.2
    congestion_init(
        &r.cc, config.algorithm, config.initial_window, MTU_BASE, config.hystart
    )
    pacing_init(&r.pacer, config.max_burst)
    mtu_init(&r.mtu, MTU_BASE, config.max_datagram)
    for space in range(SPACE_COUNT):
        sp = &r.spaces[space]
        sp.loss_time = INT64_MAX
        sp.run_pn = UINT64_MAX
        sp.run_start = INT64_MAX
        sp.skip_at = UINT64_MAX
        for i in range(RECOVERY_SKIPS):
            sp.skipped[i] = UINT64_MAX
    rtt_set(&r.rtt, config.initial_rtt)
    ecn_init(&r.ecn, config.ecn)


cdef void recovery_free(Recovery* r) noexcept nogil:
    """Free everything; only recovery_init may follow."""
    cdef int space
    for space in range(SPACE_COUNT):
        _free_space(&r.spaces[space])
    records_free(&r.records)
    r.pending = NULL
    r.acked = NULL
    r.lost = NULL


cdef void _free_space(PacketSpace* sp) noexcept nogil:
    sent_free(&sp.sent)
    lost_free(&sp.lost)


# --- Sending ------------------------------------------------------------------------

cdef int recovery_on_packet_sent(
    Recovery* r, int space, uint16_t size, uint8_t flags, int64_t now
) noexcept nogil:
    """Track the packet numbered ``next_pn``, with the records added since the last.

    Args:
        r: The recovery.
        space: A Space that was not discarded.
        size: Bytes of the packet with header and authentication tag.
        flags: PacketFlags; ack-eliciting packets are in flight too.
        now: The time, never before an earlier one.

    Returns:
        OK, or OUT_OF_MEMORY: the records are given back, the packet is not tracked,
        and the connection cannot go on.
    """
    cdef PacketSpace* sp = &r.spaces[space]
    cdef SentPacket* p = sent_oldest(&sp.sent)
    cdef SentFrame* frame = r.pending
    cdef uint64_t pn = sp.next_pn
    while p is not NULL and pn - p.pn >= <uint64_t> RECOVERY_MAX_TRACKED:
        _lose(r, sp, p, now)
        p = sent_oldest(&sp.sent)
    if frame is not NULL and space != INITIAL:
        frame = frame.next
        while frame.space != space:
            frame.space = <uint8_t> space
            frame = frame.next
    if flags & PACKET_ACK_ELICITING:
        flags |= PACKET_IN_FLIGHT
    if (
        flags & PACKET_IN_FLIGHT
        or sp.sent.tracked - sp.sent.ack_eliciting < <uint32_t> RECOVERY_MAX_SILENT
    ):
        p = sent_append(&sp.sent, pn, flags)
        if p is NULL:
            recovery_drop_pending(r)
            return OUT_OF_MEMORY
        p.time_sent = now
        p.size = size
        p.frames = r.pending
        r.pending = NULL
    else:
        # It had an ACK at most, and a lost ACK is not sent again (RFC 9000 13.3).
        recovery_drop_pending(r)
    r.stats.packets_sent += 1
    if flags & PACKET_ACK_ELICITING:
        sp.last_ack_eliciting = now
        r.timer_base = now
        if sp.probes:
            sp.probes -= 1
    if flags & PACKET_IN_FLIGHT:
        congestion_on_sent(&r.cc, size, now)
        pacing_on_sent(&r.pacer, size)
        if congestion_is_full(&r.cc):
            sp.full_until = pn + 1
        if flags & PACKET_MTU_PROBE:
            mtu_on_probe_sent(&r.mtu, pn)
    if flags & PACKET_ECT0:
        ecn_on_sent(&r.ecn, &sp.ecn)
    _use_number(sp)
    return OK


cdef void recovery_on_path_probe_sent(Recovery* r) noexcept nogil:
    """Use a number of the application space for a packet that proves a path.

    The proof has a timer of its own: the packet is neither lost nor in flight, and
    its acknowledgement says nothing of the path in use (RFC 9000 9.4).
    """
    r.stats.packets_sent += 1
    _use_number(&r.spaces[<int> APPLICATION])


cdef inline void _use_number(PacketSpace* sp) noexcept nogil:
    sp.next_pn += 1
    if sp.next_pn == sp.skip_at:
        sp.skipped[sp.skips] = sp.next_pn
        sp.skips = <uint8_t> ((sp.skips + 1) % RECOVERY_SKIPS)
        sp.skip_at = UINT64_MAX
        sp.next_pn += 1


cdef void recovery_drop_pending(Recovery* r) noexcept nogil:
    """Give back the records of a packet that will not be sent."""
    _release_all(r, &r.pending)


cdef void _release_all(Recovery* r, SentFrame** last) noexcept nogil:
    cdef SentFrame* frame = record_pop(last)
    while frame is not NULL:
        record_give(&r.records, frame)
        frame = record_pop(last)


cdef void recovery_skip(Recovery* r, int space, uint64_t distance) noexcept nogil:
    """Leave out a packet number, to catch acknowledgements of what never arrived.

    Args:
        r: The recovery.
        space: The space.
        distance: How far above the next packet number, from 1. It should be random:
            who can foretell it is not caught. Once ``skip_at`` is UINT64_MAX again
            the number is passed, and another may be chosen (RFC 9000 21.4).
    """
    cdef PacketSpace* sp = &r.spaces[space]
    sp.skip_at = sp.next_pn + max(distance, <uint64_t> 1)


cdef bint _is_skipped(const PacketSpace* sp, uint64_t pn) noexcept nogil:
    cdef int i
    for i in range(RECOVERY_SKIPS):
        if sp.skipped[i] == pn:
            return True
    return False


# --- Acknowledgements ---------------------------------------------------------------

cdef int recovery_on_ack_received(
    Recovery* r, int space, const Range* ranges, uint32_t count, int64_t ack_delay,
    const EcnCounts* ecn, int64_t now,
) noexcept nogil:
    """Take an ACK frame.

    Args:
        r: The recovery.
        space: The space of the packet that carried it.
        ranges: Disjoint ranges, ascending or, as on the wire, descending.
        count: How many, from 1.
        ack_delay: The frame's delay in microseconds, scaled by the caller.
        ecn: The frame's counts, or NULL.
        now: The time.

    Returns:
        OK; E_PROTOCOL_VIOLATION for a packet number that was never sent (RFC 9000
        13.1) or skipped; E_FRAME_ENCODING for an empty or inverted range. After an
        error nothing has changed.
    """
    cdef PacketSpace* sp = &r.spaces[space]
    cdef SentPacket* p
    cdef SentPacket* following
    cdef uint64_t top = 0
    cdef uint64_t newly_ect0 = 0, growth = 0, congested
    cdef uint64_t newest_pn = 0
    cdef int64_t newest_time = 0
    cdef bint advanced, any_acked = False, any_ack_eliciting = False
    cdef uint32_t i, left
    cdef int step, k

    if count == 0:
        return E_FRAME_ENCODING
    for i in range(count):
        if ranges[i].start >= ranges[i].end:
            return E_FRAME_ENCODING
        top = max(top, ranges[i].end)
        for k in range(RECOVERY_SKIPS):
            if ranges[i].start <= sp.skipped[k] < ranges[i].end:
                return E_PROTOCOL_VIOLATION
    if top > sp.next_pn:
        return E_PROTOCOL_VIOLATION

    step = 1
    i = 0
    if ranges[0].start > ranges[count - 1].start:
        step = -1
        i = count - 1
    if sp.lost.count:
        r.stats.spurious_losses += lost_count_spurious(
            &sp.lost, &ranges[i], count, step, now - 3 * rtt_pto(&r.rtt)
        )
    advanced = top > sp.largest_acked
    if advanced:
        sp.largest_acked = top

    p = sent_oldest(&sp.sent)
    left = count
    while left and p is not NULL:
        while p is not NULL and p.pn < ranges[i].start:
            p = sent_newer(&sp.sent, p)
        while p is not NULL and p.pn < ranges[i].end:
            following = sent_newer(&sp.sent, p)
            any_acked = True
            newest_pn = p.pn
            newest_time = p.time_sent
            if p.flags & PACKET_IN_FLIGHT:
                r.cc.bytes_in_flight -= p.size
                if p.pn < sp.full_until and p.time_sent > r.cc.recovery_start:
                    growth += p.size
                if p.flags & PACKET_MTU_PROBE:
                    mtu_on_probe_acked(&r.mtu, p.pn, now)
                if p.size > r.mtu.base and space == APPLICATION:
                    mtu_on_large_acked(&r.mtu, p.pn)
            if p.flags & PACKET_ACK_ELICITING:
                any_ack_eliciting = True
            if p.flags & PACKET_ECT0:
                newly_ect0 += 1
            record_join(&r.acked, p.frames)
            sent_remove(&sp.sent, p)
            r.stats.packets_acked += 1
            p = following
        i = <uint32_t> (<int> i + step)
        left -= 1
    if not any_acked:
        return OK

    if r.is_client and space == HANDSHAKE:
        r.handshake_acked = True
    # Only the largest acknowledged packet gives a sample (RFC 9002 5.1).
    if newest_pn + 1 == top and any_ack_eliciting and newest_pn >= sp.path_start:
        if space == INITIAL:
            ack_delay = 0  # Not held back (5.3).
        elif r.handshake_confirmed:
            ack_delay = min(ack_delay, r.max_ack_delay)
        rtt_update(&r.rtt, now - newest_time, ack_delay, now)
        if space == APPLICATION:
            congestion_on_rtt(&r.cc, r.rtt.latest, newest_pn, sp.next_pn)
    if advanced:
        congested = ecn_on_acked(&r.ecn, &sp.ecn, newly_ect0, ecn)
        r.stats.ecn_ce += congested
        if congested and congestion_on_event(&r.cc, newest_time, now):
            growth = 0
    if _detect_lost(r, space, now):
        growth = 0
    congestion_on_acked(&r.cc, growth, r.rtt.smoothed, now)
    sp.probes = 0
    # A client that may be blocking its server keeps backing off (RFC 9002 6.2.1).
    if _peer_validated(r):
        r.pto_count = 0
    r.timer_base = now
    if r.mtu.current != r.cc.max_datagram:
        congestion_set_max_datagram(&r.cc, r.mtu.current)
    return OK


# --- Loss ---------------------------------------------------------------------------

cdef void _lose(
    Recovery* r, PacketSpace* sp, SentPacket* p, int64_t now
) noexcept nogil:
    """Stop tracking a packet and ask for its frames to be sent again."""
    if p.flags & PACKET_MTU_PROBE:
        mtu_on_probe_lost(&r.mtu, p.pn, now)
    if p.flags & PACKET_IN_FLIGHT:
        r.cc.bytes_in_flight -= p.size
        r.stats.packets_lost += 1
        r.stats.bytes_lost += p.size
    if p.flags & PACKET_ECT0:
        ecn_on_lost(&r.ecn)
    record_join(&r.lost, p.frames)
    sent_remove(&sp.sent, p)


cdef bint _detect_lost(Recovery* r, int space, int64_t now) noexcept nogil:
    """Find lost packets (RFC 9002 6.1, A.10); say if they were a congestion event."""
    cdef PacketSpace* sp = &r.spaces[space]
    cdef SentPacket* p = sent_oldest(&sp.sent)
    cdef SentPacket* following
    cdef int64_t delay = rtt_loss_delay(&r.rtt)
    cdef int64_t newest_lost = 0
    cdef bint any_lost = False, persistent = False, changed = False
    sp.loss_time = INT64_MAX
    while p is not NULL and p.pn < sp.largest_acked:
        if not (
            sp.largest_acked - 1 - p.pn >= <uint64_t> RECOVERY_PACKET_THRESHOLD
            or p.time_sent + delay <= now
        ):
            # Nothing waits for a packet of acknowledgements alone.
            if p.flags & (PACKET_ACK_ELICITING | PACKET_IN_FLIGHT):
                sp.loss_time = p.time_sent + delay
                break
            p = sent_newer(&sp.sent, p)
            continue
        following = sent_newer(&sp.sent, p)
        # The loss of a probe is no sign of congestion (RFC 9000 14.4).
        if (p.flags & PACKET_IN_FLIGHT) and not p.flags & PACKET_MTU_PROBE:
            any_lost = True
            newest_lost = p.time_sent
            if space == APPLICATION and p.size > r.mtu.base:
                mtu_on_large_lost(&r.mtu, p.pn, sp.next_pn, now)
        if _extends_run(r, sp, p):
            persistent = True
        lost_remember(&sp.lost, p.pn, now)
        _lose(r, sp, p, now)
        p = following
    if any_lost:
        changed = congestion_on_event(&r.cc, newest_lost, now)
    if persistent:
        congestion_on_persistent(&r.cc)
        r.rtt.minimum = r.rtt.latest  # RFC 9002 5.2
        changed = True
    return changed


cdef bint _extends_run(
    const Recovery* r, PacketSpace* sp, const SentPacket* p
) noexcept nogil:
    """Follow runs of lost packets; say if this one makes congestion persistent.

    RFC 9002 7.6.2: two ack-eliciting packets further apart than the duration, sent
    after the first RTT sample, with every packet between them lost. Only this space
    is looked at, as 7.6.2 allows.
    """
    if p.pn != sp.run_pn + 1 and not (
        p.pn == sp.run_pn + 2 and _is_skipped(sp, p.pn - 1)
    ):
        sp.run_start = INT64_MAX
    sp.run_pn = p.pn
    if (
        p.flags & PACKET_MTU_PROBE
        or not p.flags & PACKET_ACK_ELICITING
        or not p.flags & PACKET_IN_FLIGHT  # It left on another path.
        or p.time_sent <= r.rtt.first_sample
    ):
        return False
    if sp.run_start == INT64_MAX:
        sp.run_start = p.time_sent
    elif p.time_sent - sp.run_start > RECOVERY_PERSISTENT_THRESHOLD * (
        rtt_pto(&r.rtt) + r.max_ack_delay
    ):
        sp.run_start = INT64_MAX
        return True
    return False


# --- Time ---------------------------------------------------------------------------

cdef int64_t recovery_pto(const Recovery* r, int space) noexcept nogil:
    """Return the probe timeout without back-off (RFC 9002 6.2.1)."""
    return rtt_pto(&r.rtt) + (r.max_ack_delay if space == APPLICATION else 0)


cdef inline bint _peer_validated(const Recovery* r) noexcept nogil:
    # A server needs no validation of itself by the client (RFC 9002 A.8).
    return not r.is_client or r.handshake_acked or r.handshake_confirmed


cdef int64_t _loss_timeout(const Recovery* r, int* space) noexcept nogil:
    cdef int64_t earliest = INT64_MAX
    cdef int i
    for i in range(SPACE_COUNT):
        if r.spaces[i].loss_time < earliest:
            earliest = r.spaces[i].loss_time
            space[0] = i
    return earliest


cdef int64_t _pto_timeout(const Recovery* r, int* space) noexcept nogil:
    """Find the PTO that is due first (RFC 9002 A.8)."""
    cdef int backoff = min(r.pto_count, <uint32_t> RECOVERY_MAX_BACKOFF)
    cdef int64_t earliest = INT64_MAX
    cdef int64_t due
    cdef bint waiting = False
    cdef int i
    if r.blocked:
        return INT64_MAX
    for i in range(SPACE_COUNT):
        if r.spaces[i].sent.ack_eliciting == 0:
            continue
        waiting = True
        if i == APPLICATION and not r.handshake_confirmed:
            break
        due = r.spaces[i].last_ack_eliciting + (recovery_pto(r, i) << backoff)
        if due < earliest:
            earliest = due
            space[0] = i
    if not waiting and not _peer_validated(r):
        # The server may wait for bytes that let it send more (6.2.2.1).
        space[0] = HANDSHAKE if r.has_handshake_keys else INITIAL
        return r.timer_base + (rtt_pto(&r.rtt) << backoff)
    return earliest


cdef int64_t recovery_next_timeout(const Recovery* r) noexcept nogil:
    """Return when to call recovery_on_timeout; INT64_MAX is no deadline."""
    cdef int space = 0
    cdef int64_t due = _loss_timeout(r, &space)
    return due if due != INT64_MAX else _pto_timeout(r, &space)


cdef int recovery_on_timeout(Recovery* r, int64_t now) noexcept nogil:
    """Act on the timer (RFC 9002 6.2.4, A.9).

    On TIMER_PROBE the caller sends the ``probes`` of each space, whatever the
    congestion window and the pacer say: ack-eliciting packets of at most
    ``recovery_datagram_size`` bytes, coalesced where it can be, an Initial one in a
    full-sized datagram. The oldest unacknowledged frames come as lost, so that
    probes carry what the peer most likely misses; with nothing to send, a PING does.

    Returns:
        A TimerAction; TIMER_NONE before the time.
    """
    cdef int space = 0
    cdef int i
    cdef int64_t due = _loss_timeout(r, &space)
    if due != INT64_MAX:
        if due > now:
            return TIMER_NONE
        _detect_lost(r, space, now)
        r.timer_base = now
        congestion_set_max_datagram(&r.cc, r.mtu.current)  # It may be a black hole.
        return TIMER_LOSS
    if _pto_timeout(r, &space) > now:
        return TIMER_NONE
    r.pto_count += 1
    r.stats.timeouts += 1
    r.timer_base = now
    for i in range(SPACE_COUNT):
        if r.spaces[i].sent.ack_eliciting == 0:
            continue
        # Two where the timer expired (6.2.4); one in the other spaces, for the peer
        # may have the keys of only one of them.
        r.spaces[i].probes = 2 if i == space else 1
        _requeue(r, &r.spaces[i], r.spaces[i].probes)
        # As if the probes had left: one that is held back must not leave the timer
        # in the past.
        r.spaces[i].last_ack_eliciting = now
    if r.spaces[space].probes == 0:
        r.spaces[space].probes = 1  # Against the deadlock (6.2.2.1).
    return TIMER_PROBE


cdef void _requeue(Recovery* r, PacketSpace* sp, int wanted) noexcept nogil:
    """Hand out the frames of the oldest packets as lost; the packets stay tracked."""
    cdef SentPacket* p = sent_oldest(&sp.sent)
    while p is not NULL and wanted:
        if (
            p.frames is not NULL
            and p.flags & PACKET_ACK_ELICITING and not p.flags & PACKET_MTU_PROBE
        ):
            record_join(&r.lost, p.frames)
            p.frames = NULL
            wanted -= 1
        p = sent_newer(&sp.sent, p)


# --- Turns of the connection --------------------------------------------------------

cdef void recovery_discard_space(Recovery* r, int space, int64_t now) noexcept nogil:
    """Forget a space whose keys are discarded (RFC 9002 6.4, A.11).

    Its records go back unreported: nothing of them can be sent any more.
    """
    cdef PacketSpace* sp = &r.spaces[space]
    cdef SentPacket* p = sent_oldest(&sp.sent)
    while p is not NULL:
        if p.flags & PACKET_IN_FLIGHT:
            r.cc.bytes_in_flight -= p.size
        _release_all(r, &p.frames)
        p = sent_newer(&sp.sent, p)
    _free_space(sp)
    sp.loss_time = INT64_MAX
    sp.probes = 0
    r.pto_count = 0
    r.timer_base = now


cdef void recovery_on_retry(Recovery* r, int64_t now) noexcept nogil:
    """Start again after a Retry packet (RFC 9002 6.3), with all frames lost.

    Packet numbers go on. The time since the first Initial packet is the path's RTT
    or more; it replaces the initial RTT if no packet was sent twice.
    """
    cdef PacketSpace* sp = &r.spaces[<int> INITIAL]
    cdef SentPacket* p = sent_oldest(&sp.sent)
    cdef int64_t rtt = r.rtt.initial
    if p is not NULL and r.pto_count == 0:
        rtt = now - p.time_sent
    while p is not NULL:
        if p.flags & PACKET_IN_FLIGHT:
            r.cc.bytes_in_flight -= p.size
        record_join(&r.lost, p.frames)
        sent_remove(&sp.sent, p)
        p = sent_oldest(&sp.sent)
    sp.loss_time = INT64_MAX
    sp.run_start = INT64_MAX
    sp.probes = 0
    r.pto_count = 0
    r.timer_base = now
    congestion_reset(&r.cc)
    rtt_set(&r.rtt, rtt)


cdef void recovery_on_path_change(Recovery* r, int64_t now) noexcept nogil:
    """Start again on a new path (RFC 9000 9.4).

    Packets of the old path are still acknowledged or lost, but tell nothing of the
    new one and do not fill its window. Not for a mere change of the peer's port.
    """
    cdef PacketSpace* sp = &r.spaces[<int> APPLICATION]
    cdef SentPacket* p = sent_oldest(&sp.sent)
    while p is not NULL:
        if p.flags & PACKET_IN_FLIGHT:
            r.cc.bytes_in_flight -= p.size
        p.flags &= PACKET_ACK_ELICITING
        p = sent_newer(&sp.sent, p)
    sp.path_start = sp.next_pn
    sp.full_until = 0
    sp.run_start = INT64_MAX
    r.pto_count = 0
    r.timer_base = now
    congestion_reset(&r.cc)
    mtu_reset(&r.mtu)
    congestion_set_max_datagram(&r.cc, r.mtu.current)
    rtt_set(&r.rtt, r.rtt.initial)
    ecn_init(&r.ecn, r.ecn_enabled)


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class LossRecovery:
    """One recovery, for tests and tools. Bytes, microseconds and half-open ranges.

    A record is a tuple (kind, space, id, offset, length, fin) with a number of
    SentKind first.
    """

    cdef Recovery r

    def __init__(
        self, *, bint is_client=True, int64_t initial_rtt=RTT_INITIAL,
        str algorithm="new_reno", uint64_t initial_window=0, bint hystart=False,
        bint ecn=False, uint32_t max_datagram=MTU_BASE, uint32_t max_burst=0,
    ):
        """Start a connection.

        Raises:
            ValueError: The algorithm is not "new_reno" or "cubic".
        """
        cdef RecoveryConfig config
        if algorithm not in ("new_reno", "cubic"):
            raise ValueError(f"unknown congestion control {algorithm!r}")
        recovery_free(&self.r)  # Of an earlier call.
        recovery_config_init(&config)
        config.is_client = is_client
        config.initial_rtt = initial_rtt
        config.algorithm = CUBIC if algorithm == "cubic" else NEW_RENO
        config.initial_window = initial_window
        config.hystart = hystart
        config.ecn = ecn
        config.max_datagram = max_datagram
        config.max_burst = max_burst
        recovery_init(&self.r, &config)

    def __dealloc__(self):
        recovery_free(&self.r)

    def send(
        self, int space, uint16_t size, int64_t now, *, bint ack_eliciting=True,
        bint in_flight=True, bint mtu_probe=False, bint ect0=False, object frames=(),
    ):
        """Send a packet of (kind, id, offset, length, fin) records; return its number.

        Raises:
            MemoryError: There is no memory for the packet or a record.
        """
        cdef uint64_t pn = recovery_next_pn(&self.r, space)
        cdef uint8_t flags = (
            PACKET_ACK_ELICITING * ack_eliciting | PACKET_IN_FLIGHT * in_flight
            | PACKET_MTU_PROBE * mtu_probe | PACKET_ECT0 * ect0
        )
        for kind, number, offset, length, fin in frames:
            self._add(kind, number, offset, length, fin)
        if recovery_on_packet_sent(&self.r, space, size, flags, now) != OK:
            raise MemoryError
        return pn

    cdef int _add(
        self, uint8_t kind, uint64_t number, uint64_t offset, uint32_t length, bint fin
    ) except -1:
        cdef SentFrame* frame = recovery_frame(&self.r, kind)
        if frame is NULL:
            raise MemoryError
        frame.id = number
        frame.offset = offset
        frame.length = length
        frame.fin = fin
        return 0

    def abandon(self, object frames):
        """Build a packet with these records, and do not send it."""
        for kind, number, offset, length, fin in frames:
            self._add(kind, number, offset, length, fin)
        recovery_drop_pending(&self.r)

    def skip(self, int space, uint64_t distance):
        """Skip the packet number that far above the next."""
        recovery_skip(&self.r, space, distance)

    def ack(
        self, int space, list ranges, int64_t now, int64_t ack_delay=0, object ecn=None
    ):
        """Take an ACK frame of (start, end) ranges; return the status."""
        cdef EcnCounts counts
        cdef EcnCounts* given = NULL
        cdef size_t count = len(ranges)
        cdef Range* items = <Range*> malloc((count + 1) * sizeof(Range))
        if items is NULL:
            raise MemoryError
        try:
            for i, (start, end) in enumerate(ranges):
                items[<size_t> i].start = start
                items[<size_t> i].end = end
            if ecn is not None:
                counts.ect0, counts.ect1, counts.ce = ecn
                given = &counts
            return recovery_on_ack_received(
                &self.r, space, items, <uint32_t> count, ack_delay, given, now
            )
        finally:
            free(items)

    def drain(self):
        """Return the records of acknowledged packets, and those of lost ones."""
        acked, lost = [], []
        cdef SentFrame* frame = recovery_next_acked(&self.r)
        while frame is not NULL:
            acked.append(self._take(frame))
            frame = recovery_next_acked(&self.r)
        frame = recovery_next_lost(&self.r)
        while frame is not NULL:
            lost.append(self._take(frame))
            frame = recovery_next_lost(&self.r)
        return acked, lost

    cdef tuple _take(self, SentFrame* frame):
        record = (
            frame.kind, frame.space, frame.id, frame.offset, frame.length,
            bool(frame.fin),
        )
        recovery_release(&self.r, frame)
        return record

    def next_timeout(self):
        """Return when to call on_timeout, None for never."""
        cdef int64_t due = recovery_next_timeout(&self.r)
        return None if due == INT64_MAX else due

    def on_timeout(self, int64_t now):
        """Act on the timer; return "none", "loss" or "probe"."""
        return ("none", "loss", "probe")[recovery_on_timeout(&self.r, now)]

    def discard_space(self, int space, int64_t now):
        """Discard a space's keys."""
        recovery_discard_space(&self.r, space, now)

    def on_retry(self, int64_t now):
        """Take a Retry packet."""
        recovery_on_retry(&self.r, now)

    def path_probe_sent(self):
        """Note a packet for the proof of a path; return its number."""
        cdef uint64_t pn = recovery_next_pn(&self.r, APPLICATION)
        recovery_on_path_probe_sent(&self.r)
        return pn

    def on_path_change(self, int64_t now):
        """Move to a new path."""
        recovery_on_path_change(&self.r, now)

    def configure(
        self, *, object handshake_confirmed=None, object has_handshake_keys=None,
        object blocked=None, object max_ack_delay=None,
    ):
        """Set what the connection keeps true; None leaves a field as it is."""
        if handshake_confirmed is not None:
            self.r.handshake_confirmed = handshake_confirmed
        if has_handshake_keys is not None:
            self.r.has_handshake_keys = has_handshake_keys
        if blocked is not None:
            self.r.blocked = blocked
        if max_ack_delay is not None:
            self.r.max_ack_delay = max_ack_delay

    def enable_mtu(self, uint64_t peer_limit):
        """Allow the search for the datagram size."""
        mtu_enable(&self.r.mtu, peer_limit)

    def next_mtu_probe(self, int64_t now):
        """Return the size of the probe to send, or 0."""
        return mtu_next_probe(&self.r.mtu, now)

    def datagram_size(self, int space):
        """Return how large the next datagram may be."""
        return recovery_datagram_size(&self.r, space)

    def next_send_time(self, uint32_t size, int64_t now):
        """Return when the pacer lets a datagram go."""
        return recovery_next_send_time(&self.r, size, now)

    def pto(self, int space):
        """Return the probe timeout without back-off."""
        return recovery_pto(&self.r, space)

    def tracked(self, int space):
        """List the tracked packets as (number, time sent, size, flags)."""
        cdef PacketSpace* sp = &self.r.spaces[space]
        cdef SentPacket* p = sent_oldest(&sp.sent)
        packets = []
        while p is not NULL:
            packets.append((p.pn, p.time_sent, p.size, p.flags))
            p = sent_newer(&sp.sent, p)
        return packets

    def state(self):
        """Return every number of interest by name."""
        cdef Recovery* r = &self.r
        return {
            "cwnd": r.cc.cwnd,
            "ssthresh": None if r.cc.ssthresh == UINT64_MAX else r.cc.ssthresh,
            "bytes_in_flight": r.cc.bytes_in_flight,
            "room": recovery_room(r),
            "congestion_events": r.cc.events,
            "persistent_events": r.cc.persistent_events,
            "latest_rtt": r.rtt.latest,
            "smoothed_rtt": r.rtt.smoothed,
            "rtt_variance": r.rtt.variance,
            "min_rtt": r.rtt.minimum,
            "pto_count": r.pto_count,
            "probes": [r.spaces[i].probes for i in range(3)],
            "tracked": [r.spaces[i].sent.tracked for i in range(3)],
            "capacity": [r.spaces[i].sent.capacity for i in range(3)],
            "next_pn": [r.spaces[i].next_pn for i in range(3)],
            "ecn": ("testing", "unknown", "capable", "failed")[r.ecn.state],
            "marks_ecn": bool(recovery_marks_ecn(r)),
            "mtu": r.mtu.current,
            "max_datagram": r.cc.max_datagram,
            "black_holes": r.mtu.black_holes,
            "records": r.records.in_use,
            "packets_sent": r.stats.packets_sent,
            "packets_acked": r.stats.packets_acked,
            "packets_lost": r.stats.packets_lost,
            "bytes_lost": r.stats.bytes_lost,
            "spurious_losses": r.stats.spurious_losses,
            "timeouts": r.stats.timeouts,
            "ecn_ce": r.stats.ecn_ce,
        }

    def exercise(self, uint64_t packets, uint32_t batch):
        """Send packets, acknowledge them in batches, and count their records."""
        cdef Recovery* r = &self.r
        cdef SentFrame* frame
        cdef Range acked
        cdef int64_t now = 1000000
        cdef uint64_t sent = 0, records = 0
        cdef uint32_t left
        with nogil:
            while sent < packets:
                acked.start = recovery_next_pn(r, APPLICATION)
                left = batch
                while left:
                    left -= 1
                    frame = recovery_frame(r, SENT_STREAM)
                    frame.offset = sent
                    frame.length = 1100
                    recovery_next_send_time(r, 1200, now)
                    recovery_on_packet_sent(
                        r, APPLICATION, 1200, PACKET_ACK_ELICITING, now
                    )
                    sent += 1
                    now += 1
                now += 60
                acked.end = recovery_next_pn(r, APPLICATION)
                recovery_on_ack_received(r, APPLICATION, &acked, 1, 0, NULL, now)
                recovery_next_timeout(r)
                frame = recovery_next_acked(r)
                while frame is not NULL:
                    recovery_release(r, frame)
                    records += 1
                    frame = recovery_next_acked(r)
        return records
