"""The driver: what it must notice, tried with ends that misbehave."""

import pytest

from tests.sim.link import network
from tests.sim.pair import (
    TICK,
    Closed,
    End,
    Event,
    LostTimer,
    OutOfSteps,
    OutOfTime,
    Pair,
    Spinning,
    drive,
)
from tests.sim.traffic import Mismatch, Traffic, Transfer, bulk, mixed, payload


class Stub(End):
    """An end that does nothing; the tests change what they need."""

    def __init__(self):
        super().__init__()
        self.timer = None
        self.fired = []
        self.got = []
        self.out = []
        self.wrote = []
        self.queue = []
        self.streams = 0
        self.incoming = b""

    def receive(self, data, address, now, ecn):
        self.got.append((now, data, address, ecn))

    def datagrams_to_send(self, now):
        datagrams, self.out = self.out, []
        return datagrams

    def next_timeout(self):
        return self.timer

    def handle_timeout(self, now):
        self.fired.append(now)
        self.timer = None

    def open(self, *, unidirectional=False):
        self.streams += 4
        return self.streams - 4

    def write(self, stream, data, fin=False):
        self.wrote.append((stream, len(data), fin))
        return len(data)

    def read(self, stream):
        data, self.incoming = self.incoming, b""
        return data, False

    def reset(self, stream, code):
        self.wrote.append((stream, "reset", code))

    def stop(self, stream, code):
        self.wrote.append((stream, "stop", code))

    def close(self, code, reason=""):
        self.closed = Closed("local", code, True, reason)

    def events(self):
        events, self.queue = self.queue, []
        return events


def pair_of_stubs(application=None, **changes):
    client, server = Stub(), Stub()
    return Pair(client, server, network(1, **changes), application), client, server


def never(pair):
    return False


def test_datagrams_arrive_with_address_and_ecn():
    pair, client, server = pair_of_stubs(delay=0.01, rate_bps=None)
    client.out = [(b"plain", ("x", 1)), (b"marked", ("x", 1), 2)]
    client.touched = True
    drive(pair, until=lambda pair: len(server.got) == 2)
    address = pair.network.client_address
    assert server.got == [(0.01, b"plain", address, 0), (0.01, b"marked", address, 2)]


def test_a_server_is_not_asked_before_its_first_datagram():
    pair, _, server = pair_of_stubs()
    server.timer = 1.0
    server.touched = True
    server.out = [(b"too early", ("x", 1))]
    with pytest.raises(LostTimer):
        drive(pair, until=never)
    assert server.out
    assert not server.fired


def test_nothing_in_flight_and_no_timer_is_a_lost_timer():
    pair, client, _ = pair_of_stubs()
    client.timer = 3.0
    with pytest.raises(LostTimer, match=r"seed 1, t = 3\.0"):
        drive(pair, until=never)
    assert client.fired == [3.0]


def test_a_timer_too_far_away_is_a_lost_timer():
    pair, client, _ = pair_of_stubs()
    client.timer = 60.0
    with pytest.raises(LostTimer, match="nothing until"):
        drive(pair, until=never, max_gap=30)


@pytest.mark.parametrize("step", [-1.0, 0.0, 5e-6])
def test_a_timer_that_never_gets_anywhere_is_spinning(step):
    pair, client, _ = pair_of_stubs()
    client.timer = 1.0

    def again(now):
        client.timer = now + step

    client.handle_timeout = again
    with pytest.raises(Spinning):
        drive(pair, until=never)
    assert pair.steps < 300


def test_a_slow_timer_is_not_spinning():
    pair, client, _ = pair_of_stubs()
    client.timer = 1.0

    def again(now):
        client.timer = now + 0.002

    client.handle_timeout = again
    drive(pair, until=lambda pair: pair.now > 2)


def test_the_clock_moves_past_a_timer_of_the_past():
    pair, client, _ = pair_of_stubs()
    pair.now = 5.0
    client.timer = 1.0
    drive(pair, until=lambda pair: client.fired)
    assert client.fired == [5.0 + TICK]


def test_time_and_steps_are_bounded():
    pair, client, _ = pair_of_stubs()
    client.timer = 1.0
    client.handle_timeout = lambda now: setattr(client, "timer", now + 1)
    with pytest.raises(OutOfTime):
        drive(pair, until=never, max_time=10)
    with pytest.raises(OutOfSteps):
        drive(pair, until=never, max_steps=10)


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        (Closed("local", 7, True, "x"), Closed("remote", 7, True, "x"), True),
        (Closed("local", 7, True, "x"), Closed("remote", 8, True, "x"), False),
        (Closed("local", 7, True, "x"), Closed("remote", 7, False, "x"), False),
        (Closed("local", 7, True, "x"), Closed("remote", 7, True, "y"), False),
        (Closed("local", 7, True), Closed("local", 8, True), True),
        (Closed("remote", 7, True), Closed("remote", 7, True), False),
        (Closed("remote", 7, True), Closed("local", 1, False, "", True), True),
    ],
)
def test_ends_agree_about_a_close(first, second, agree):
    assert first.agrees_with(second) is agree
    assert second.agrees_with(first) is agree


def connected_stubs(traffic):
    pair, client, server = pair_of_stubs(traffic)
    client.connected = server.connected = True
    return pair, client, server


def test_payload_is_a_function_of_stream_and_offset():
    whole = payload(3, 0, 200_000)
    assert len(whole) == 200_000
    assert payload(3, 70_000, 1000) == whole[70_000:71_000]
    assert payload(4, 0, 1000) != whole[:1000]


def test_a_transfer_is_written_in_chunks_with_pauses():
    traffic = Traffic([Transfer("client", 2500, chunk=1000, pause=0.5, start=1.0)])
    pair, client, _ = connected_stubs(traffic)
    drive(pair, until=lambda pair: traffic.requests[0].over)
    assert client.wrote == [(0, 1000, False), (0, 1000, False), (0, 500, True)]
    assert pair.now == 2.0


def test_a_transfer_is_reset_where_it_is_cut():
    traffic = Traffic([Transfer("client", 900, "reset", cut=300, code=5, pause=0.1)])
    pair, client, _ = connected_stubs(traffic)
    drive(pair, until=lambda pair: traffic.requests[0].over)
    assert client.wrote == [(0, 300, False), (0, 0, False), (0, "reset", 5)]
    assert pair.now == 0.1


def test_a_blocked_write_goes_on_at_the_next_step():
    traffic = bulk(1000)
    pair, client, _ = connected_stubs(traffic)
    room = [400, 0, 600]
    client.write = lambda stream, data, fin=False: min(len(data), room.pop(0))
    for _ in range(3):
        pair.step()
    assert traffic.requests[0].over


def started(traffic):
    """Run a transfer to the point where the reader acts."""
    pair, client, server = connected_stubs(traffic)
    pair.step()
    return pair, client, server


@pytest.mark.parametrize(
    "data",
    [payload(0, 1, 10), payload(0, 0, 2000), payload(2, 0, 10)],
    ids=["shifted", "too much", "another stream"],
)
def test_wrong_bytes_are_noticed(data):
    pair, _, server = started(bulk(1000))
    server.incoming = data
    server.queue = [Event("readable", 0)]
    with pytest.raises(Mismatch):
        pair.step()


@pytest.mark.parametrize(
    "event", [Event("reset", 0), Event("stopped", 0)], ids=lambda event: event.kind
)
def test_an_uncalled_for_end_is_noticed(event):
    pair, _, server = started(bulk(1000))
    server.queue = [event]
    with pytest.raises(Mismatch):
        pair.step()


def test_an_early_end_is_noticed():
    pair, _, server = started(bulk(1000))
    server.read = lambda stream: (payload(0, 0, 999), True)
    server.queue = [Event("readable", 0)]
    with pytest.raises(Mismatch, match="early end"):
        pair.step()


def test_a_wrong_code_is_noticed():
    pair, _, server = started(
        Traffic([Transfer("client", 900, "reset", cut=300, code=5)])
    )
    server.queue = [Event("reset", 0, 6)]
    with pytest.raises(Mismatch):
        pair.step()


def test_bytes_against_a_one_way_stream_are_noticed():
    pair, client, _ = started(Traffic([Transfer("client", 9, unidirectional=True)]))
    client.queue = [Event("readable", 0)]
    with pytest.raises(Mismatch, match="other direction"):
        pair.step()


def test_a_reader_stops_at_its_cut_and_the_sender_hears_of_it():
    transfer = Transfer("client", 5000, "stop", cut=100, code=9, chunk=200, pause=0.1)
    pair, client, server = started(Traffic([transfer]))
    server.incoming = payload(0, 0, 150)
    server.queue = [Event("opened", 0), Event("readable", 0)]
    pair.step()
    assert server.wrote == [(0, "stop", 9)]
    assert not transfer.done
    client.queue = [Event("stopped", 0, 8)]
    with pytest.raises(Mismatch):
        pair.step()
    client.queue = [Event("stopped", 0, 9)]
    pair.step()
    assert transfer.done
    server.queue = [Event("readable", 0), Event("reset", 0, 9)]
    pair.step()


def test_an_answer_follows_the_first_word_of_its_request():
    pair, _, server = started(bulk(500, "server"))
    assert not server.wrote
    server.queue = [Event("opened", 0)]
    pair.step()
    assert server.wrote == [(0, 500, True)]
    assert "2 unfinished" in str(pair.application)


def test_mixed_traffic_is_the_same_for_the_same_seed():
    assert mixed(3) == mixed(3)
    assert mixed(3) != mixed(4)
