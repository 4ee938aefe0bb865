"""Connection identifiers: issued, announced, used, retired."""

import random

import pytest

from lightning._core.quic.cids import LocalCidSet, RemoteCidSet

OK = 0
CONNECTION_ID_LIMIT, PROTOCOL_VIOLATION = 0x09, 0x0A
ACTIVE, HELD, RETIREMENTS = 8, 16, 64


def cid(n):
    return n.to_bytes(8, "big")


def token(n):
    return n.to_bytes(16, "big")


def local(limit=5):
    made = LocalCidSet(cid(0), token(0))
    made.set_limit(limit)
    return made


def issue_all(made, first=1):
    """Issue all that are wanted and return their sequence numbers."""
    return [made.issue(cid(first + n), token(n)) for n in range(made.wanted)]


def remote(limit=5, count=0):
    """Make a set with identifiers 0 to ``count``."""
    made = RemoteCidSet(cid(0), limit)
    for n in range(1, count + 1):
        assert made.add(n, 0, cid(n), token(n)) == OK
    return made


# --- Local ----------------------------------------------------------------------------


def test_none_is_issued_before_the_peer_gave_its_limit():
    made = LocalCidSet(cid(0), token(0))
    assert made.entries == [(0, cid(0), token(0))]
    assert made.wanted == 0
    assert made.issue(cid(1), token(1)) is None
    assert made.send() is None


@pytest.mark.parametrize(("limit", "issued"), [(2, 1), (5, 4), (8, 7), (2**62 - 1, 7)])
def test_issues_up_to_the_limit_of_the_peer_and_our_own(limit, issued):
    made = local(limit)
    assert issue_all(made) == list(range(1, issued + 1))
    assert made.wanted == 0
    assert made.issue(cid(99), token(99)) is None
    assert len(made.entries) == issued + 1
    assert made.entries[1] == (1, cid(1), token(0))


def test_each_is_announced_once_and_again_if_lost():
    made = local(3)
    issue_all(made)
    assert [made.send() for _ in range(3)] == [(1, 0), (2, 0), None]
    made.lost(2)
    made.lost(7)
    assert [made.send() for _ in range(2)] == [(2, 0), None]
    made.retire(2, cid(0))
    made.lost(2)
    assert made.send() is None


def test_identifiers_are_found_by_their_bytes():
    made = local(3)
    issue_all(made)
    assert [made.find(cid(n)) for n in range(4)] == [0, 1, 2, None]
    assert made.find(cid(1)[:7]) is None


def test_a_retired_identifier_is_given_back_and_replaced():
    made = local(3)
    issue_all(made)
    assert made.retire(0, cid(1)) == (OK, cid(0))
    assert [entry[0] for entry in made.entries] == [1, 2]
    assert made.wanted == 1
    assert made.issue(cid(9), token(9)) == 3
    assert made.retire(0, cid(1)) == (OK, None)  # the frame may come twice


def test_retiring_what_was_never_issued_is_a_protocol_violation():
    made = local(3)
    issue_all(made)
    assert made.retire(3, cid(0)) == (PROTOCOL_VIOLATION, None)
    assert made.retire(2**62 - 1, cid(0)) == (PROTOCOL_VIOLATION, None)
    assert len(made.entries) == 3


def test_retiring_the_destination_of_the_packet_is_a_protocol_violation():
    made = local(3)
    issue_all(made)
    assert made.retire(1, cid(1)) == (PROTOCOL_VIOLATION, None)
    assert made.retire(1, cid(2)) == (OK, cid(1))


def test_replacing_asks_the_peer_to_retire_and_issues_beyond_its_limit():
    """RFC 9000 section 5.1.1: those below Retire Prior To do not count."""
    made = local(3)
    issue_all(made)
    while made.send():
        pass
    made.replace(2)
    assert made.wanted == 2
    assert issue_all(made, 10) == [3, 4]
    assert [made.send() for _ in range(2)] == [(3, 2), (4, 2)]
    assert made.find(cid(0)) == 0  # routes until the peer retires it
    made.replace(1)  # never goes back
    made.lost(3)
    assert made.send() == (3, 2)
    made.lost(1)
    assert made.send() == (1, 1)  # never above its own sequence number


def test_a_peer_that_retires_nothing_does_not_make_us_hold_more():
    made = local(8)
    issued = issue_all(made)
    for _ in range(5):
        made.replace(2**62)
        issued += issue_all(made, len(issued) + 1)
    assert issued == list(range(1, HELD))
    assert len(made.entries) == HELD
    assert made.retire(3, cid(0)) == (OK, cid(3))
    assert made.wanted == 1


# --- Remote ---------------------------------------------------------------------------


def test_the_first_identifier_may_change_until_the_handshake_is_done():
    made = remote()
    assert made.entries == [(0, cid(0), True)]
    made.set_first(cid(7))
    assert made.entries == [(0, cid(7), True)]
    made.retire(0)
    made.set_first(cid(8))
    made.set_token(token(0))
    assert made.entries == []


def test_identifiers_are_kept_up_to_our_limit():
    made = remote(3, 2)
    assert [entry[0] for entry in made.entries] == [0, 1, 2]
    assert made.add(3, 0, cid(3), token(3)) == CONNECTION_ID_LIMIT


def test_the_limit_is_at_most_what_the_set_can_hold():
    made = remote(100, ACTIVE - 1)
    assert made.add(8, 0, cid(8), token(8)) == CONNECTION_ID_LIMIT
    assert len(made.entries) == ACTIVE


def test_retire_prior_to_makes_room_before_the_limit_is_checked():
    """RFC 9000 section 5.1.2: first retire, then add."""
    made = remote(3, 2)
    assert made.add(3, 2, cid(3), token(3)) == OK
    assert [entry[0] for entry in made.entries] == [2, 3]
    assert [made.send() for _ in range(3)] == [0, 1, None]
    assert [made.knows(n) for n in range(5)] == [False, False, True, True, False]


def test_retire_prior_to_never_goes_back():
    made = remote(5, 2)
    assert made.add(4, 3, cid(4), token(4)) == OK
    assert made.add(5, 0, cid(5), token(5)) == OK
    assert [entry[0] for entry in made.entries] == [4, 5]
    assert made.retirements == [0, 1, 2]


def test_an_identifier_that_comes_too_late_is_retired_at_once():
    made = remote(5)
    assert made.add(4, 4, cid(4), token(4)) == OK
    assert made.add(2, 1, cid(2), token(2)) == OK
    assert [entry[0] for entry in made.entries] == [4]
    assert made.retirements == [0, 2]
    assert made.add(2, 1, cid(2), token(2)) == OK  # and only once
    assert made.retirements == [0, 2]


def test_the_same_frame_again_changes_nothing():
    made = remote(5, 2)
    before = made.entries
    assert made.add(2, 0, cid(2), token(2)) == OK
    assert made.entries == before
    # Also after we gave it up, and after the peer knows that we did.
    assert made.retire(2) == OK
    made.send()
    made.acked(2)
    assert made.add(2, 0, cid(2), token(2)) == OK
    assert [entry[0] for entry in made.entries] == [0, 1]
    assert made.retirements == []


def test_sequence_0_may_be_repeated_but_not_come_back():
    made = remote(5)
    assert made.add(0, 0, cid(0), token(0)) == OK  # its token was never given
    made.set_token(token(0))
    assert made.add(0, 0, cid(0), token(0)) == OK
    assert made.add(0, 0, cid(0), token(1)) == PROTOCOL_VIOLATION
    made.retire(0)
    assert made.add(0, 0, cid(0), token(0)) == OK
    assert made.entries == []


@pytest.mark.parametrize(
    ("sequence", "name", "secret"),
    [
        (1, 9, 1),  # a sequence number for another identifier
        (1, 1, 9),  # an identifier with another token
        (9, 1, 1),  # an identifier with another sequence number
        (0, 9, 0),
        (9, 0, 0),
    ],
)
def test_contradictions_are_protocol_violations(sequence, name, secret):
    made = remote(5, 2)
    assert made.add(sequence, 0, cid(name), token(secret)) == PROTOCOL_VIOLATION


def test_a_peer_without_identifiers_must_not_issue_any():
    made = RemoteCidSet(b"", 5)
    assert made.add(1, 0, cid(1), token(1)) == PROTOCOL_VIOLATION


def test_an_unused_identifier_is_taken_in_order():
    made = remote(5)
    assert made.take() is None
    for n in (3, 1, 2):
        assert made.add(n, 0, cid(n), token(n)) == OK
    assert [made.take() for _ in range(4)] == [(n, cid(n)) for n in (1, 2, 3)] + [None]
    assert [entry[2] for entry in made.entries] == [True] * 4


def test_retirements_are_sent_until_they_are_acknowledged():
    made = remote(5, 3)
    for n in (0, 2, 9):
        assert made.retire(n) == OK
    assert made.retirements == [0, 2]  # an unknown one is none
    assert [made.send() for _ in range(3)] == [0, 2, None]
    made.lost(0)
    made.acked(2)
    made.lost(2)
    made.acked(5)
    assert [made.send() for _ in range(2)] == [0, None]
    made.acked(0)
    assert made.retirements == []


@pytest.mark.parametrize("sent", [False, True])
def test_retirements_that_are_never_acknowledged_close_the_connection(sent):
    """Sequence numbers and Retire Prior To rise in step, and no ACK comes."""
    made = remote(5)
    statuses = []
    for n in range(1, 2000):
        statuses.append(made.add(n, n, cid(n), token(n)))
        while sent and made.send() is not None:
            pass
        if statuses[-1]:
            break
    assert statuses == [OK] * RETIREMENTS + [CONNECTION_ID_LIMIT]
    assert len(made.retirements) == RETIREMENTS


def test_late_identifiers_cannot_fill_the_queue_either():
    made = remote(5)
    assert made.add(1000, 1000, cid(1000), token(0)) == OK
    statuses = [made.add(n, 0, cid(n), token(n)) for n in range(900, 900 + RETIREMENTS)]
    assert statuses == [OK] * (RETIREMENTS - 1) + [CONNECTION_ID_LIMIT]


def test_giving_up_with_a_full_queue_is_refused():
    made = remote(5)
    for n in range(1, RETIREMENTS + 1):
        assert made.add(n, n, cid(n), token(n)) == OK
    assert made.retire(RETIREMENTS) == CONNECTION_ID_LIMIT
    assert made.knows(RETIREMENTS)
    made.acked(0)
    assert made.retire(RETIREMENTS) == OK


def test_the_largest_sequence_number():
    made = remote(5, 1)
    top = 2**62 - 1
    assert made.add(top, top, cid(9), token(9)) == OK
    assert made.entries == [(top, cid(9), False)]
    assert made.retirements == [0, 1]


def test_a_reset_is_known_by_the_tokens_of_identifiers_in_use():
    made = remote(5, 2)
    assert not made.is_reset(token(0))  # sequence 0 has none yet
    made.set_token(token(77))
    assert made.is_reset(token(77))
    assert not made.is_reset(token(1))  # not used yet
    made.take()
    assert made.is_reset(token(1))
    for n in range(128):
        assert not made.is_reset(token(1 ^ 1 << n))
    made.retire(1)
    assert not made.is_reset(token(1))


def test_free_may_be_called_twice():
    made = remote(5, 2)
    made.free()
    made.free()
    assert made.entries == []


def test_the_faces_refuse_wrong_sizes():
    for call in (
        lambda: LocalCidSet(bytes(21), bytes(16)),
        lambda: LocalCidSet(bytes(8), bytes(15)),
        lambda: RemoteCidSet(bytes(21)),
        lambda: remote().add(1, 0, cid(1), b"short"),
    ):
        with pytest.raises(ValueError, match="bytes"):
            call()


class Pair:
    """Two honest ends and what is on its way between them."""

    def __init__(self, rng):
        self.rng = rng
        self.local, self.remote = local(5), RemoteCidSet(cid(0), 5)
        self.issued = 1
        self.path = 0  # the sequence number that the remote end writes to
        self.flight = []

    def send(self):
        for _ in range(self.local.wanted):
            made = self.local.issue(cid(self.issued), token(self.issued))
            assert made == self.issued
            self.issued += 1
        while (frame := self.local.send()) is not None:
            self.flight.append(("new", *frame))
        while (sequence := self.remote.send()) is not None:
            self.flight.append(("retire", sequence))

    def deliver(self):
        """Deliver some frame, or lose it, or keep it to deliver it again."""
        if not self.flight:
            return
        frame = self.flight.pop(self.rng.randrange(len(self.flight)))
        kind, sequence, *rest = frame
        fate = self.rng.random()
        if fate < 0.2:
            (self.local if kind == "new" else self.remote).lost(sequence)
            return
        if fate < 0.3:
            self.flight.append(frame)
        if kind == "new":
            added = self.remote.add(sequence, *rest, cid(sequence), token(sequence))
            assert added == OK
        else:
            assert self.local.retire(sequence, cid(self.path))[0] == OK
            self.remote.acked(sequence)

    def migrate(self):
        taken = self.remote.take()
        if taken is not None:
            assert self.remote.retire(self.path) == OK
            self.path = taken[0]


@pytest.mark.parametrize("seed", range(30))
def test_both_ends_agree_over_a_network_that_drops_doubles_and_reorders(seed):
    """An honest pair never sees an error, and what it writes to always routes."""
    pair = Pair(random.Random(seed))
    for step in range(600):
        pair.send()
        if step == 300:
            pair.local.replace(pair.issued - 2)
        pair.deliver()
        if not pair.remote.knows(pair.path) or pair.rng.random() < 0.1:
            pair.migrate()
        if pair.remote.knows(pair.path):
            assert pair.local.find(cid(pair.path)) == pair.path
    assert pair.issued > 20
