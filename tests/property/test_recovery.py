"""The compiled loss recovery against the slow model, over arbitrary histories."""

from collections import Counter
from random import Random

from hypothesis import event, given, settings
from hypothesis import strategies as st

from lightning._core.quic.recovery import LossRecovery
from tests.reference.recovery_model import (
    APPLICATION,
    HANDSHAKE,
    INITIAL,
    RecoveryModel,
)

SPACES = st.sampled_from([INITIAL, HANDSHAKE, APPLICATION, APPLICATION, APPLICATION])
# From nothing to many PTOs, so that windows grow and congestion becomes persistent.
DELAYS = st.one_of(
    st.integers(0, 2_000), st.integers(0, 100_000), st.integers(0, 5_000_000)
)
SENDS = st.tuples(
    st.just("send"),
    SPACES,
    st.integers(40, 1452),
    st.sampled_from(["eliciting"] * 6 + ["padding", "ack only"]),
    st.integers(0, 3),
    st.integers(1, 12),
)
# Bits choose among the newest packet numbers; three zeros in a row are a loss.
ACKS = st.tuples(
    st.just("ack"),
    SPACES,
    st.integers(1, 2**24 - 1),
    st.integers(0, 60_000),
    st.booleans(),
)
WAITS = st.tuples(st.just("wait"), DELAYS)
OPERATIONS = st.one_of(
    *[SENDS, ACKS, SENDS, ACKS, SENDS, ACKS, WAITS, WAITS],
    st.tuples(st.just("ack all"), SPACES),
    st.tuples(st.just("fire")),
    st.tuples(st.just("fire")),
    st.tuples(st.just("early")),
    st.tuples(st.just("skip"), SPACES, st.integers(0, 6)),
    st.tuples(st.sampled_from(["keys", "confirm", "retry", "path", "drain"])),
    st.tuples(st.just("block"), st.booleans()),
    st.tuples(st.just("discard"), st.sampled_from([INITIAL, HANDSHAKE])),
)
HISTORIES = st.lists(OPERATIONS, min_size=40, max_size=100)


def ranges_of(numbers):
    """Turn a set of numbers into half-open ranges, descending as on the wire."""
    ranges = []
    for n in sorted(numbers, reverse=True):
        if ranges and ranges[-1][0] == n + 1:
            ranges[-1] = (n, ranges[-1][1])
        else:
            ranges.append((n, n + 1))
    return ranges


class Pair:
    """Both, driven alike and compared after each step."""

    def __init__(self, is_client):
        self.ours = LossRecovery(is_client=is_client)
        self.model = RecoveryModel(is_client=is_client)
        self.now = 1_000_000
        self.serial = 0
        self.returned = Counter()
        self.discarded = set()
        self.confirmed = False
        self.acked = False
        self.skips = Counter()

    def both(self, verb, *args, **kwargs):
        ours = getattr(self.ours, verb)(*args, **kwargs)
        assert ours == getattr(self.model, verb)(*args, **kwargs), verb
        return ours

    def run(self, operation):
        verb, *args = operation
        getattr(self, "do_" + verb.replace(" ", "_"))(*args)
        self.compare()

    def do_send(self, space, size, kind, frames, count):
        if space in self.discarded:
            return
        for _ in range(count):
            records = []
            for _ in range(frames):
                records.append((self.serial % 18, self.serial, 5, 7, True))
                self.serial += 1
            self.both(
                "send", space, size, self.now, ack_eliciting=kind == "eliciting",
                in_flight=kind != "ack only", frames=records,
            )  # fmt: skip
            self.now += 3

    def do_ack(self, space, bits, delay, ascending):
        next_pn = self.model.spaces[space].next_pn
        if space in self.discarded:
            return
        numbers = {next_pn - i for i in range(25) if bits >> i & 1 and next_pn - i >= 0}
        if not numbers & set(range(next_pn)):
            return
        # The lowest bit claims a packet that was never sent; let that be rare.
        if bits % 64 != 1:
            numbers.discard(next_pn)
        ranges = ranges_of(numbers)
        if ascending:
            ranges.reverse()
        status = self.both("ack", space, ranges, self.now, ack_delay=delay)
        self.acked |= status == 0
        event(f"ack status {status}")

    def do_ack_all(self, space):
        s = self.model.spaces[space]
        numbers = set(range(s.next_pn)) - set(s.skipped)
        if numbers and space not in self.discarded:
            self.both("ack", space, ranges_of(numbers), self.now)
            self.acked = True

    def do_wait(self, delay):
        self.now += delay

    def do_fire(self):
        due = self.model.next_timeout()
        if due is not None:
            self.now = max(self.now, due)
        self.do_early()

    def do_early(self):
        action = self.both("on_timeout", self.now)
        event(f"timer {action}")
        # However long nobody looked, a few calls bring the timer into the future.
        for _ in range(6):
            due = self.model.next_timeout()
            if due is None or due > self.now:
                return
            self.both("on_timeout", self.now)
            self.compare()
        raise AssertionError("the timer stays in the past")

    def do_skip(self, space, distance):
        if self.skips[space] < 4:
            self.skips[space] += self.model.spaces[space].skip_at is None
            self.ours.skip(space, distance)
            self.model.skip(space, distance)

    def do_keys(self):
        self.ours.configure(has_handshake_keys=True)
        self.model.has_handshake_keys = True

    def do_confirm(self):
        self.confirmed = True
        self.ours.configure(handshake_confirmed=True)
        self.model.handshake_confirmed = True

    def do_block(self, blocked):
        self.ours.configure(blocked=blocked)
        self.model.blocked = blocked

    def do_discard(self, space):
        self.discarded.add(space)
        self.both("discard_space", space, self.now)

    def do_retry(self):
        if not self.acked and INITIAL not in self.discarded:
            self.both("on_retry", self.now)

    def do_path(self):
        if self.confirmed and {INITIAL, HANDSHAKE} <= self.discarded:
            self.both("on_path_change", self.now)
            event("path change")

    def do_drain(self):
        acked, lost = self.ours.drain()
        assert acked == self.model.acked
        assert lost == self.model.lost
        self.model.drain()
        for record in acked + lost:
            self.returned[record[2]] += 1

    def compare(self):
        state = self.ours.state()
        for name, value in self.model.state().items():
            assert state[name] == value, name
        assert self.ours.next_timeout() == self.model.next_timeout()
        for space in (INITIAL, HANDSHAKE, APPLICATION):
            tracked = self.ours.tracked(space)
            assert [p[:3] for p in tracked] == self.model.tracked(space)
        in_flight = sum(
            size
            for space in (INITIAL, HANDSHAKE, APPLICATION)
            for _, _, size, flags in self.ours.tracked(space)
            if flags & 2
        )
        assert state["bytes_in_flight"] == in_flight

    def finish(self):
        """Settle every packet, and see that each record came back once."""
        kept = Counter(
            record[2]
            for space in (INITIAL, HANDSHAKE)
            for p in self.model.spaces[space].packets.values()
            if p.fate == "discarded" and space in self.discarded
            for record in p.frames
        )
        for space in (INITIAL, HANDSHAKE, APPLICATION):
            self.run(("ack all", space))
        self.run(("drain",))
        # Skipped numbers are all remembered here, so everything was acknowledged.
        assert self.ours.state()["bytes_in_flight"] == 0
        assert self.ours.state()["records"] == 0
        assert max(self.returned.values(), default=1) == 1
        missing = set(range(self.serial)) - set(self.returned)
        assert missing <= set(kept)


@settings(max_examples=100, deadline=None)
@given(st.booleans(), HISTORIES)
def test_equals_the_model(is_client, operations):
    """Windows, RTTs, timers, tracked packets and records agree after each step."""
    pair = Pair(is_client)
    for operation in operations:
        pair.run(operation)
    pair.finish()


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_equals_the_model_once_confirmed(operations):
    """The same on an established connection, where only one space is left."""
    pair = Pair(True)
    for operation in [("discard", INITIAL), ("discard", HANDSHAKE), ("confirm",)]:
        pair.run(operation)
    for operation in operations:
        pair.run(operation)
    pair.finish()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([5_000, 60_000]))
def test_equals_the_model_on_a_lossy_path(seed, rtt):
    """A sender that fills its window grows, is cut and collapses as the model does."""
    random = Random(seed)
    pair = Pair(True)
    for operation in [("discard", INITIAL), ("discard", HANDSHAKE), ("confirm",)]:
        pair.run(operation)
    arrived = set()
    acks = []
    outage_until = 0
    for _ in range(200):
        room = pair.model.cwnd - pair.model.bytes_in_flight
        probes = pair.model.spaces[APPLICATION].probes
        first = pair.model.spaces[APPLICATION].next_pn
        pair.do_send(APPLICATION, 1200, "eliciting", 1, max(probes, room // 1200))
        for pn in range(first, pair.model.spaces[APPLICATION].next_pn):
            lost = random.random() < 0.02 or pair.now < outage_until
            if pn in pair.model.spaces[APPLICATION].packets and not lost:
                acks.append((pair.now + rtt + random.randrange(rtt // 4), pn))
        if random.random() < 0.03:
            outage_until = pair.now + random.randrange(40 * rtt)
        acks.sort()
        due = pair.model.next_timeout()
        if acks and (due is None or acks[0][0] < due):
            pair.now = max(pair.now, acks[0][0])
            while acks and acks[0][0] <= pair.now + rtt // 10:
                arrived.add(acks.pop(0)[1])
            pair.both("ack", APPLICATION, ranges_of(arrived), pair.now)
            pair.compare()
        else:
            pair.run(("fire",))
        pair.run(("drain",))
    event(f"persistent {pair.model.persistent_events}")
    event(f"congestion {min(pair.model.events, 9)}")
    pair.finish()
