# cython: cdivision=True
# No divisor here is zero, and no dividend negative.
"""DPLPMTUD: the largest size first, then halving; back to base from a black hole.

Most paths carry the configured maximum, and one acknowledged probe of it ends the
search after a round trip.
"""

cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint32_t, uint64_t


# --- Life ---------------------------------------------------------------------------

cdef void mtu_init(Mtu* m, uint32_t base, uint32_t maximum) noexcept nogil:
    """Start at the base size, with the search not yet allowed.

    Args:
        m: What is set up; nothing in it needs freeing.
        base: Bytes that the path carries for certain; MTU_BASE.
        maximum: The largest size to look for; one below base means base.
    """
    m.base = base
    m.maximum = min(max(maximum, base), <uint32_t> MTU_LARGEST)
    m.peer_limit = 0
    m.probes_sent = 0
    m.black_holes = 0
    mtu_reset(m)


cdef void mtu_reset(Mtu* m) noexcept nogil:
    """Start again on a new path, whose size is not known (RFC 9000 9.4)."""
    m.ceiling = max(m.base, min(m.maximum, m.peer_limit))
    m.next_search = INT64_MIN
    m.large_acked = 0
    m.probe_pn = 0
    m.burst_end = 0
    m.high = 0
    _fall_back(m)


cdef void mtu_enable(Mtu* m, uint64_t peer_limit) noexcept nogil:
    """Allow the search, once the handshake is confirmed.

    Args:
        m: The search.
        peer_limit: The peer's max_udp_payload_size.
    """
    m.peer_limit = <uint32_t> min(peer_limit, <uint64_t> MTU_LARGEST)
    m.ceiling = max(m.base, min(m.maximum, m.peer_limit))


cdef void _fall_back(Mtu* m) noexcept nogil:
    m.current = m.base
    m.searching = False
    m.probe_in_flight = False
    m.probe_size = 0
    m.probe_failures = 0
    _clear_suspicion(m)


# --- The search ---------------------------------------------------------------------

cdef uint32_t mtu_next_probe(Mtu* m, int64_t now) noexcept nogil:
    """Return the size of the probe to send now, or 0.

    After a size, the caller sends a packet of exactly that size (PING and PADDING,
    flagged as a probe) if the congestion window has room, or asks again later.
    """
    if not m.peer_limit or m.probe_in_flight:
        return 0
    if not m.searching:
        if now < m.next_search:
            return 0
        m.searching = True
        m.high = m.ceiling
        m.probe_failures = 0
        m.probe_size = m.ceiling
        if m.current >= m.ceiling:
            _choose(m, now)
    return m.probe_size


cdef void mtu_on_probe_sent(Mtu* m, uint64_t pn) noexcept nogil:
    """Note the packet number of a probe; one at a time is in flight."""
    m.probe_in_flight = True
    m.probe_pn = pn
    m.probes_sent += 1


cdef void mtu_on_probe_acked(Mtu* m, uint64_t pn, int64_t now) noexcept nogil:
    """Raise the size to that of the probe."""
    if not m.probe_in_flight or pn != m.probe_pn:
        return  # The size was refused or the path changed since.
    m.probe_in_flight = False
    m.current = m.probe_size
    _choose(m, now)


cdef void mtu_on_probe_lost(Mtu* m, uint64_t pn, int64_t now) noexcept nogil:
    """Repeat the probe, or lower the search after MTU_MAX_PROBES (RFC 8899 5.1.3)."""
    if not m.probe_in_flight or pn != m.probe_pn:
        return
    m.probe_in_flight = False
    m.probe_failures += 1
    if m.probe_failures >= MTU_MAX_PROBES:
        m.high = m.probe_size - 1
        _choose(m, now)


cdef void mtu_on_refused(Mtu* m, uint32_t size, int64_t now) noexcept nogil:
    """Take the socket's word that a size is too large for the local interface.

    For EMSGSIZE. It holds until the path changes. A size that was in use falls back
    to base. The caller lets the datagram's packets be found lost as usual.
    """
    if size <= m.base or size > m.ceiling:
        return
    m.ceiling = size - 1
    m.high = min(m.high, m.ceiling)
    if m.current >= size:
        _fall_back(m)
        m.next_search = now
    elif m.searching and m.probe_size >= size:
        m.probe_in_flight = False
        _choose(m, now)


cdef void _choose(Mtu* m, int64_t now) noexcept nogil:
    """Take the middle of what is left, or end the search."""
    m.probe_failures = 0
    if m.high >= m.current + MTU_MIN_STEP:
        m.probe_size = m.current + (m.high - m.current + 1) // 2
        return
    m.searching = False
    m.probe_size = 0
    # The path may carry more one day; nothing above the ceiling is ever tried.
    m.next_search = now + MTU_RAISE_TIME if m.current < m.ceiling else INT64_MAX


# --- Black holes --------------------------------------------------------------------

cdef void mtu_on_large_acked(Mtu* m, uint64_t pn) noexcept nogil:
    """Note that the path carried a packet above base."""
    m.large_acked = max(m.large_acked, pn + 1)
    if m.suspects and pn > m.suspect_pn:
        _clear_suspicion(m)


cdef bint mtu_on_large_lost(
    Mtu* m, uint64_t pn, uint64_t next_pn, int64_t now
) noexcept nogil:
    """Note the loss of a packet above base that was no probe.

    What is acknowledged by the same frame must have been noted before. A packet is
    lost only when a later one was acknowledged; if no large one is newer than it, a
    small one got through. Loss without regard to size does not look like this several
    times in a row.

    Args:
        m: The search.
        pn: The lost packet.
        next_pn: The packet number that will be sent next.
        now: The time.

    Returns:
        True if this is a black hole, and the size fell back to base.
    """
    if pn < m.large_acked or m.current == m.base:
        return False
    if m.suspects == 0:
        m.suspect_pn = pn
    m.suspects += 1
    # Each burst is answered by sending on; the next one is of packets sent later.
    if m.bursts == 0 or pn >= m.burst_end:
        m.bursts += 1
        m.burst_end = next_pn
    if m.bursts < MTU_BLACK_HOLE_BURSTS or m.suspects < MTU_BLACK_HOLE_PACKETS:
        return False
    m.black_holes += 1
    _fall_back(m)
    m.next_search = now + MTU_COOLDOWN
    return True


cdef void _clear_suspicion(Mtu* m) noexcept nogil:
    m.bursts = 0
    m.suspects = 0
    m.suspect_pn = 0


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class MtuSearch:
    """One search, for tests and tools. Bytes and microseconds."""

    cdef Mtu m

    def __init__(
        self, uint32_t maximum=MTU_DEFAULT_MAXIMUM, uint32_t base=MTU_BASE
    ):
        """Start at ``base``; the search waits for ``enable``."""
        mtu_init(&self.m, base, maximum)

    def enable(self, uint64_t peer_limit):
        """Allow the search, up to the peer's max_udp_payload_size."""
        mtu_enable(&self.m, peer_limit)

    def reset(self):
        """Start on a new path."""
        mtu_reset(&self.m)

    def next_probe(self, int64_t now):
        """Return the size of the probe to send now, or 0."""
        return mtu_next_probe(&self.m, now)

    def on_probe_sent(self, uint64_t pn):
        """Note that the probe left as packet ``pn``."""
        mtu_on_probe_sent(&self.m, pn)

    def on_probe_acked(self, uint64_t pn, int64_t now):
        """Note that it arrived."""
        mtu_on_probe_acked(&self.m, pn, now)

    def on_probe_lost(self, uint64_t pn, int64_t now):
        """Note that it did not."""
        mtu_on_probe_lost(&self.m, pn, now)

    def on_refused(self, uint32_t size, int64_t now):
        """Note that the socket refused a datagram of that size."""
        mtu_on_refused(&self.m, size, now)

    def on_large_acked(self, uint64_t pn):
        """Note that a packet above base arrived."""
        mtu_on_large_acked(&self.m, pn)

    def on_large_lost(self, uint64_t pn, uint64_t next_pn, int64_t now):
        """Note that one did not; say if that makes a black hole."""
        return mtu_on_large_lost(&self.m, pn, next_pn, now)

    @property
    def current(self):
        """The size that may be sent."""
        return self.m.current

    @property
    def ceiling(self):
        """The size that the search goes up to."""
        return self.m.ceiling

    @property
    def probes_sent(self):
        """How many probes were sent."""
        return self.m.probes_sent

    @property
    def black_holes(self):
        """How many black holes were seen."""
        return self.m.black_holes
