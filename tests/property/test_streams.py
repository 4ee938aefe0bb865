"""Streams of two ends over a bad network, and of one end under attack."""

import copy
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from lightning._core.quic.streams import Streams
from tests.reference import stream_model as model

OK = 0
LIMIT, CLOSED, FULL = -2, -3, -4


def noise(sid, sender, size):
    """The bytes that an end sends on a stream."""
    return random.Random(sid * 2 + sender).randbytes(16_000)[:size]


# --- Two ends -------------------------------------------------------------------------


class End:
    """One end, its application, and the packets that it has in flight."""

    def __init__(self, rng, is_client, use_sink, reset_rate):
        self.rng = rng
        self.is_client = is_client
        self.use_sink = use_sink
        self.reset_rate = reset_rate
        self.limits = {
            "max_data": 20_000,
            "max_stream_data_bidi_local": 5_000,
            "max_stream_data_bidi_remote": 6_000,
            "max_stream_data_uni": 7_000,
            "max_streams_bidi": 5,
            "max_streams_uni": 3,
        }
        self.streams = Streams(
            is_client,
            sink=self.sink if use_sink else None,
            max_stream_window=10_000,
            max_stream_buffered=3_000,
            **self.limits,
        )
        self.to_open = 12
        self.to_send = {}  # identifier: bytes left
        self.blocked = set()  # identifiers that wait for EVENT_WRITABLE
        self.got = {}  # identifier: bytes received
        self.ended = set()
        self.reset_by_peer = set()
        self.paused = set()
        self.given_up = set()
        self.held = set()

    def sink(self, sid, data, fin):
        if sid in self.given_up:
            raise AssertionError("a stopped stream goes on")
        taken = len(data)
        if data and self.rng.random() < 0.2:
            taken = self.rng.randrange(len(data))
            self.paused.add(sid)
        self.got[sid] = self.got.get(sid, b"") + data[:taken]
        if fin and taken == len(data):
            assert sid not in self.ended
            self.ended.add(sid)
        return taken

    def adopt(self, sid):
        """Plan what to send on a stream that was just opened."""
        self.held.add(sid)
        self.got.setdefault(sid, b"")
        local = bool(sid & 1) != self.is_client
        if local or not sid & 2:
            size = self.rng.choice([0, 1, 100, 4096, 15_000])
            self.to_send[sid] = noise(sid, self.is_client, size)

    def receives(self, sid):
        return not sid & 2 or bool(sid & 1) == self.is_client

    def act(self):
        """Do what the application would do now."""
        for kind, sid, _ in self.streams.events():
            self.hear(kind, sid)
        if self.to_open and self.rng.random() < 0.5:
            sid = self.streams.open(self.rng.random() < 0.2)
            assert sid == LIMIT or sid >= 0
            if sid >= 0:
                self.to_open -= 1
                self.adopt(sid)
        for sid in [*self.paused]:
            if self.rng.random() < 0.7:
                self.read(sid)
        for sid in [*self.to_send]:
            if sid not in self.blocked and self.rng.random() < 0.5:
                self.send(sid)
        for sid in [*self.held]:
            self.let_go(sid)

    def hear(self, kind, sid):
        if kind == model.OPENED:
            self.adopt(sid)
        elif kind == model.READABLE:
            self.paused.add(sid)
        elif kind == model.RESET:
            self.reset_by_peer.add(sid)
            self.paused.discard(sid)
        elif kind == model.STOPPED:
            self.to_send.pop(sid, None)
        elif kind == model.WRITABLE:
            self.blocked.discard(sid)

    def read(self, sid):
        self.paused.discard(sid)
        if self.streams.state(sid) is None:
            return
        if self.use_sink:
            assert self.streams.resume(sid) == OK
            return
        size = self.rng.choice([10, 1000, 2**62])
        data, end = self.streams.read(sid, size)
        self.got[sid] += data
        if end:
            self.ended.add(sid)
        elif len(data) == size:
            self.paused.add(sid)

    def send(self, sid):
        left = self.to_send[sid]
        size = min(len(left), self.rng.choice([1, 500, 2000, 20_000]))
        if self.rng.random() < self.reset_rate:
            self.streams.reset(sid, sid)
            del self.to_send[sid]
            return
        call = self.streams.refer if self.rng.random() < 0.3 else self.streams.send
        status = call(sid, left[:size], size == len(left))
        if status == FULL:
            self.blocked.add(sid)
            return
        assert status == OK
        if size == len(left):
            del self.to_send[sid]
        else:
            self.to_send[sid] = left[size:]

    def let_go(self, sid):
        if sid in self.to_send:
            return
        if self.receives(sid):
            if self.rng.random() < self.reset_rate:
                self.streams.stop(sid, 7)
                self.given_up.add(sid)
            elif (
                sid not in self.ended
                and sid not in self.reset_by_peer
                and sid not in self.given_up
            ):
                return
        self.held.discard(sid)
        self.paused.discard(sid)
        self.streams.release(sid)

    @property
    def is_idle(self):
        left = self.to_open or self.to_send or self.held or self.paused
        return not left and not self.streams.has_frames


class Network:
    """Packets that are lost, delayed, doubled, and declared lost too early."""

    def __init__(self, rng, loss):
        self.rng = rng
        self.loss = loss
        self.packets = []  # (sender, receiver, payload, records)

    def send(self, sender, receiver):
        room = self.rng.choice([130, 400, 1200])
        payload, records = sender.streams.write(room, self.rng.choice([1, 5, 64]))
        if payload:
            self.packets.append((sender, receiver, payload, records))

    def step(self):
        """Settle the fate of one packet, not always the oldest."""
        index = min(int(self.rng.expovariate(0.3)), len(self.packets) - 1)
        sender, receiver, payload, records = self.packets.pop(index)
        dice = self.rng.random()
        if dice < self.loss:
            self.tell(sender.streams.on_lost, records)
            return
        for _ in range(2 if dice < 2 * self.loss else 1):
            assert receiver.streams.receive(payload) == OK
        if dice > 1 - self.loss:
            # It arrived, but the sender gives it up first.
            self.tell(sender.streams.on_lost, records)
        self.tell(sender.streams.on_acked, records)

    def tell(self, call, records):
        for record in records:
            assert call(record) == OK


@pytest.mark.parametrize("use_sink", [False, True])
@pytest.mark.parametrize("reset_rate", [0, 0.05])
@pytest.mark.parametrize("seed", range(15))
def test_every_byte_arrives_once_and_in_order(seed, reset_rate, use_sink):
    rng = random.Random(seed)
    loss = rng.choice([0, 0.05, 0.3])
    ends = [End(rng, is_client, use_sink, reset_rate) for is_client in (True, False)]
    for end, other in (ends, ends[::-1]):
        end.streams.set_peer_limits(**other.limits)
    network = Network(rng, loss)
    rest = 0
    for _ in range(200_000):
        for end, other in (ends, ends[::-1]):
            end.act()
            if end.streams.has_frames and len(network.packets) < 30:
                network.send(end, other)
        if network.packets and rng.random() < 0.8:
            network.step()
        # Two turns without work: the last packet may have brought the last events.
        busy = network.packets or not all(end.is_idle for end in ends)
        rest = 0 if busy else rest + 1
        if rest == 2:
            break
    assert all(end.is_idle for end in ends), "the transfer stalled"
    assert not network.packets
    for end in ends:
        assert len(end.got) >= 12
        for sid, got in end.got.items():
            if not end.receives(sid):
                continue
            sent = noise(sid, not end.is_client, len(got))
            assert got == sent, "bytes are a prefix of what was sent"
            if not reset_rate:
                assert sid in end.ended
        assert end.streams.count == 0
        assert (end.streams.send_buffered, end.streams.recv_buffered) == (0, 0)
        assert end.streams.memory_in_use == (0, 0, 0)


# --- One end under attack ---------------------------------------------------------------

IDS = st.one_of(st.integers(0, 23), st.sampled_from([2**60, 2**62 - 1]))
OFFSETS = st.one_of(st.integers(0, 70), st.sampled_from([5000, 2**62 - 1]))
DICE = st.integers(0, 30)
VALUES = st.one_of(st.integers(0, 100), st.sampled_from([2**60, 2**60 + 1, 2**62 - 1]))


class Attack(RuleBasedStateMachine):
    """Any frames, with any application above, are answered as the model answers."""

    def __init__(self):
        super().__init__()
        self.dead = False
        self.real = None

    @precondition(lambda self: not self.alive())
    @rule(is_client=st.booleans(), window=st.sampled_from([100, 10_000]))
    def start(self, is_client, window):
        self.teardown()
        self.dead = False
        self.real = Streams(
            is_client,
            max_data=window,
            max_data_window=window,
            max_stream_data_bidi_local=64,
            max_stream_data_bidi_remote=64,
            max_stream_data_uni=64,
            max_stream_window=64,
            max_streams_bidi=4,
            max_streams_uni=4,
            max_stream_buffered=40,
        )
        self.real.set_peer_limits(
            max_data=200,
            max_stream_data_bidi_local=50,
            max_stream_data_bidi_remote=50,
            max_stream_data_uni=50,
            max_streams_bidi=3,
            max_streams_uni=3,
        )
        self.model = model.Table(is_client, streams=4, stream_window=64, window=window)
        self.flight = []

    def alive(self):
        return self.real is not None and not self.dead

    def receive(self, payload, dice):
        """Give one frame to both; most that end the connection are held back."""
        (decoded,) = model.frames(payload)
        after = copy.deepcopy(self.model)
        expected = after.receive(*decoded)
        if expected == OK or dice == 0:
            self.model = after
            assert self.real.receive(payload) == expected
            self.dead = expected != OK

    def pick(self, number):
        """A held stream, or None."""
        held = sorted(sid for sid, s in self.model.live.items() if s.held)
        return held[number % len(held)] if held else None

    # Frames.

    @precondition(alive)
    @rule(
        sid=IDS, offset=OFFSETS, size=st.integers(0, 20), fin=st.booleans(), dice=DICE
    )
    def stream(self, sid, offset, size, fin, dice):
        data = bytes((sid + offset + n) % 251 for n in range(size))
        self.receive(model.stream_frame(sid, offset, data, fin), dice)

    @precondition(alive)
    @rule(
        number=st.integers(0, 20),
        size=st.integers(0, 20),
        fin=st.booleans(),
        back=st.integers(0, 5),
        dice=DICE,
    )
    def stream_in_order(self, number, size, fin, back, dice):
        sid = self.pick(number)
        if sid is not None and self.model.live[sid].receives:
            offset = max(0, self.model.live[sid].next - back)
            data = bytes((sid + offset + n) % 251 for n in range(size))
            self.receive(model.stream_frame(sid, offset, data, fin), dice)

    @precondition(alive)
    @rule(sid=IDS, code=st.integers(0, 9), final=OFFSETS, dice=DICE)
    def reset_stream(self, sid, code, final, dice):
        self.receive(model.frame(model.RESET_STREAM, sid, code, final), dice)

    @precondition(alive)
    @rule(sid=IDS, code=st.integers(0, 9), dice=DICE)
    def stop_sending(self, sid, code, dice):
        self.receive(model.frame(model.STOP_SENDING, sid, code), dice)

    @precondition(alive)
    @rule(sid=IDS, value=VALUES, dice=DICE)
    def max_stream_data(self, sid, value, dice):
        self.receive(model.frame(model.MAX_STREAM_DATA, sid, value), dice)

    @precondition(alive)
    @rule(sid=IDS, value=VALUES, dice=DICE)
    def stream_data_blocked(self, sid, value, dice):
        self.receive(model.frame(model.STREAM_DATA_BLOCKED, sid, value), dice)

    @precondition(alive)
    @rule(
        kind=st.sampled_from(
            [
                model.MAX_DATA,
                model.MAX_STREAMS_BIDI,
                model.MAX_STREAMS_UNI,
                model.DATA_BLOCKED,
                model.STREAMS_BLOCKED_BIDI,
                model.STREAMS_BLOCKED_UNI,
            ]
        ),
        value=VALUES,
        dice=DICE,
    )
    def of_connection(self, kind, value, dice):
        self.receive(model.frame(kind, value), dice)

    # The application.

    @precondition(alive)
    @rule(uni=st.booleans())
    def open(self, uni):
        sid = self.real.open(uni)
        if sid != LIMIT:
            assert sid == self.model.open(uni).sid

    @precondition(alive)
    @rule(number=st.integers(0, 20), size=st.integers(0, 30), fin=st.booleans())
    def send(self, number, size, fin):
        sid = self.pick(number)
        if sid is None:
            return
        s = self.model.live[sid]
        status = self.real.send(sid, bytes(size), fin)
        if not s.sends or s.finished or s.reset:
            assert status == CLOSED
        elif status == FULL:
            assert size
        else:
            assert status == OK
            s.size += size
            s.finished = fin

    @precondition(alive)
    @rule(number=st.integers(0, 20), size=st.sampled_from([1, 5, 100]))
    def read(self, number, size):
        sid = self.pick(number)
        if sid is not None:
            assert self.real.read(sid, size) == self.model.read(sid, size)

    @precondition(alive)
    @rule(number=st.integers(0, 20), verb=st.sampled_from(["reset", "stop", "release"]))
    def give_up(self, number, verb):
        sid = self.pick(number)
        if sid is not None:
            getattr(self.real, verb)(sid)
            getattr(self.model, verb)(sid)

    # Packets.

    @precondition(alive)
    @rule(room=st.sampled_from([3, 20, 200]))
    def write(self, room):
        payload, records = self.real.write(room)
        assert len(payload) <= room
        assert len(model.frames(payload)) == len(records)
        for record in records:
            self.model.on_written(record)
        self.flight += records

    @precondition(lambda self: self.alive() and self.flight)
    @rule(number=st.integers(0, 100), lost=st.booleans(), keep=st.booleans())
    def settle(self, number, lost, keep):
        record = self.flight[number % len(self.flight)]
        name = "on_lost" if lost else "on_acked"
        assert getattr(self.real, name)(record) == OK
        getattr(self.model, name)(record)
        if not (lost and keep):
            self.flight.remove(record)

    @precondition(alive)
    @rule(number=st.integers(0, 20), late=st.booleans())
    def complete(self, number, late):
        """Bring one stream to its end, as a well-behaved pair would."""
        sid = self.pick(number)
        if sid is None:
            return
        s = self.model.live[sid]
        if s.receives and s.final is None:
            self.receive(model.stream_frame(sid, s.highest, b"", True), 1)
        self.read(number, 100)
        self.send(number, 0, True)
        if not late:
            self.give_up(number, "release")
        self.write(200)
        while self.flight:
            self.settle(0, False, False)
        if late:
            self.give_up(number, "release")

    @precondition(alive)
    @rule()
    def drain_events(self):
        for kind, sid, _ in self.real.events():
            assert kind == model.OPENABLE or self.model.live[sid].held

    # What must hold at any time.

    @precondition(alive)
    @invariant()
    def same_streams(self):
        assert self.real.count == len(self.model.live)
        assert all(self.real.state(sid) is not None for sid in self.model.live)
        assert self.real.max_streams == tuple(self.model.granted)

    @precondition(alive)
    @invariant()
    def same_bytes(self):
        assert self.real.max_data == self.model.window.limit
        held = sum(len(s.bytes) for s in self.model.live.values())
        assert self.real.recv_buffered == held
        blocks, _, _ = self.real.memory_in_use
        # One block at most a stream and direction: all offsets here are below 4096.
        assert blocks <= 2 * len(self.model.live)

    def teardown(self):
        if self.real is not None:
            assert self.real.close() == (0, 0, 0)


TestAttack = Attack.TestCase
TestAttack.settings = settings(
    max_examples=100,
    stateful_step_count=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
