"""The validation of the peer's ECN counts."""

cimport cython
from libc.stdint cimport uint64_t


cdef void ecn_init(Ecn* e, bint enabled) noexcept nogil:
    """Start on a path: test it, or never mark anything."""
    e.state = ECN_TESTING if enabled else ECN_FAILED
    e.test_sent = 0
    e.test_lost = 0


cdef uint64_t ecn_on_acked(
    Ecn* e, EcnSpace* space, uint64_t newly_acked, const EcnCounts* counts
) noexcept nogil:
    """Check the counts of an ACK frame that raises the largest acknowledged packet.

    Others may be reordered and carry old counts: RFC 9000 13.4.2.1 leaves them out.

    Args:
        e: The path.
        space: The frame's packet number space.
        newly_acked: Packets with a mark that it newly acknowledges.
        counts: Its counts, or NULL.

    Returns:
        How many more packets the peer saw marked as congested. Above zero is a
        congestion event.
    """
    cdef uint64_t congested
    if e.state == ECN_FAILED:
        return 0
    if counts is NULL:
        if newly_acked:
            e.state = ECN_FAILED
        return 0
    if (
        counts.ect1 != 0  # Never sent.
        or counts.ect0 < space.ect0 or counts.ce < space.ce
        or counts.ect0 > space.sent or counts.ce > space.sent - counts.ect0
        or (counts.ect0 - space.ect0) + (counts.ce - space.ce) < newly_acked
    ):
        e.state = ECN_FAILED
        return 0
    if newly_acked:
        e.state = ECN_CAPABLE
    congested = counts.ce - space.ce
    space.ect0 = counts.ect0
    space.ce = counts.ce
    return congested


cdef void ecn_on_lost(Ecn* e) noexcept nogil:
    """Count the loss of a marked packet: a path may drop all of them (A.4)."""
    if e.state > ECN_UNKNOWN:
        return
    e.test_lost += 1
    if e.state == ECN_UNKNOWN and e.test_lost == e.test_sent:
        e.state = ECN_FAILED


# --- Python face --------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class EcnPath:
    """One path with one packet number space, for tests and tools."""

    cdef Ecn e
    cdef EcnSpace space

    def __init__(self, bint enabled=True):
        """Start on a path."""
        ecn_init(&self.e, enabled)

    def on_sent(self):
        """Send a packet, with a mark if one is due; say so."""
        if not ecn_marks(&self.e):
            return False
        ecn_on_sent(&self.e, &self.space)
        return True

    def on_acked(self, uint64_t newly_acked, object counts):
        """Take the (ECT(0), ECT(1), CE) counts, or None, of an ACK frame.

        Returns:
            How many more packets were marked as congested.
        """
        cdef EcnCounts c
        if counts is None:
            return ecn_on_acked(&self.e, &self.space, newly_acked, NULL)
        c.ect0, c.ect1, c.ce = counts
        return ecn_on_acked(&self.e, &self.space, newly_acked, &c)

    def on_lost(self):
        """Lose a marked packet."""
        ecn_on_lost(&self.e)

    @property
    def state(self):
        """One of "testing", "unknown", "capable", "failed"."""
        return ("testing", "unknown", "capable", "failed")[self.e.state]
