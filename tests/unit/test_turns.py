"""Threads that ask and serve, and take turns at moving the datagrams (``pump_wait``).

The faces whose calls block, against each other on loopback. Times are bounded
generously: a machine that is busy is no failure.
"""

import _thread
import asyncio
import gc
import os
import random
import signal
import threading
import time
import tracemalloc

import pytest

from lightning import Lightning, QuicAxonInfo
from lightning.errors import ConnectionClosed, RequestTimeout
from tests.support.identities import MINER_HOTKEY
from tests.support.inspection import connections, in_flight
from tests.support.udp_relay import udp_relay
from tests.support.waiting import until
from tests.unit import test_blocking

pair = test_blocking.pair
SOON = 10.0  # seconds: at once, on a busy machine


def query(name, **data):
    """Make a request."""
    return {"synapse_type": name, "data": data}


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self, server, name="wait"):
        self.open = threading.Event()
        self.inside = 0
        self.runs = 0
        self._lock = threading.Lock()
        server.register_synapse_handler(name, self)

    def __call__(self, data):
        with self._lock:
            self.inside += 1
            self.runs += 1
        self.open.wait(30)
        with self._lock:
            self.inside -= 1
        return data


class Asking:
    """A thread that asks once, and what came of it."""

    def __init__(self, client, axon, request, timeout=None):
        self.answer = self.error = None
        self.took = 0.0
        self.thread = threading.Thread(
            target=self._ask, args=(client, axon, request, timeout)
        )
        self.thread.start()

    def _ask(self, *arguments):
        client, *rest = arguments
        began = time.monotonic()
        try:
            self.answer = client.query_axon(*rest)
        except Exception as error:
            self.error = error
        self.took = time.monotonic() - began

    def join(self):
        """Wait for its end."""
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self


@pytest.fixture
def gated(pair):
    """A server with a handler that waits, a client, the axon and the gate."""
    gates = []

    def gated(prepare=lambda server: None, **settings):
        def all_of_it(server):
            gates.append(Gate(server))
            prepare(server)

        return *pair(all_of_it, **settings), gates[-1]

    yield gated
    for gate in gates:
        gate.open.set()


# Asking.


def test_ten_thousand_answers_are_not_mixed_up(pair):
    """By 32 threads on one connection, which all lead now and then."""
    _, client, axon = pair()
    wrong = []

    def ask(number):
        for n in range(313):
            sent = {"t": number, "n": n}
            if client.query_axon(axon, query("echo", **sent), 30)["data"] != sent:
                wrong.append(sent)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not in_flight(client)


def test_leaders_come_and_go_and_everybody_is_answered(pair):
    """Some lead for long, some give up; the rest is served all the same."""
    chance = random.Random(7)
    plans = [
        [(chance.choice((0, 0, 0.002, 0.02)), chance.random() < 0.2) for _ in range(15)]
        for _ in range(32)
    ]
    failures = []

    def sleep(data):
        time.sleep(data["s"])
        return data

    _, client, axon = pair(lambda s: s.register_synapse_handler("sleep", sleep))

    def ask(number):
        for n, (seconds, gives_up) in enumerate(plans[number]):
            sent = {"s": seconds, "id": number * 100 + n}
            try:
                timeout = 0.001 if gives_up else 20
                answer = client.query_axon(axon, query("sleep", **sent), timeout)
                if answer["data"] != sent:
                    failures.append((sent, answer))
            except RequestTimeout:
                if not gives_up:
                    failures.append(sent)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    until(lambda: not in_flight(client))


def test_leader_and_followers_time_out_each_at_its_time(gated):
    _, client, axon, gate = gated()
    asking = [
        Asking(client, axon, query("wait"), seconds) for seconds in (0.3, 0.1, 0.5, 10)
    ]
    for one, seconds in zip(asking, (0.3, 0.1, 0.5), strict=False):
        assert isinstance(one.join().error, RequestTimeout)
        assert seconds <= one.took < seconds + SOON
    gate.open.set()
    assert asking[3].join().answer["success"]


@pytest.mark.parametrize("follows", [False, True], ids=["leader", "follower"])
def test_whoever_gives_up_has_the_handler_told(gated, follows):
    """At once, and not with the next packet that happens to leave."""
    cancelled = threading.Event()

    async def endless(data):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    _, client, axon, gate = gated(
        lambda s: s.register_async_synapse_handler("e", endless)
    )
    others = [Asking(client, axon, query("wait"))] if follows else []
    until(lambda: gate.inside == len(others))
    with pytest.raises(RequestTimeout):
        client.query_axon(axon, query("e"), 0.1)
    assert cancelled.wait(SOON)
    gate.open.set()
    for other in others:
        assert other.join().answer["success"]


@pytest.mark.parametrize("follows", [False, True], ids=["leader", "follower"])
@pytest.mark.parametrize("signals", [True, False], ids=["signal", "interrupt_main"])
def test_ctrl_c_ends_a_wait(gated, follows, signals):
    """A real signal at once; what only looks like one within 0.2 s, when it is quiet."""
    _, client, axon, gate = gated()
    others = [Asking(client, axon, query("wait"))] if follows else []
    until(lambda: gate.inside == len(others))
    sent = []

    def interrupt():
        until(lambda: gate.inside == len(others) + 1)
        sent.append(time.monotonic())
        if signals:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.query_axon(axon, query("wait"))
    assert time.monotonic() - sent[0] < SOON
    thread.join()
    gate.open.set()
    for other in others:
        assert other.join().answer["success"]
    assert client.query_axon(axon, query("echo"), 10)["success"]


@pytest.mark.parametrize("follows", [False, True], ids=["leader", "follower"])
def test_a_signals_handler_may_close_the_client(gated, follows):
    """From within the call that it interrupts, which then fails."""
    _, client, axon, gate = gated()
    others = [Asking(client, axon, query("wait"))] if follows else []
    until(lambda: gate.inside == len(others))
    before = signal.signal(signal.SIGUSR1, lambda *_: client.close())

    def send():
        until(lambda: gate.inside == len(others) + 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    try:
        thread = threading.Thread(target=send)
        thread.start()
        began = time.monotonic()
        with pytest.raises((ConnectionClosed, RuntimeError)):
            client.query_axon(axon, query("wait"), 20)
        assert time.monotonic() - began < 10
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    for other in others:
        assert isinstance(other.join().error, ConnectionClosed)


def test_closing_ends_leader_and_followers(gated):
    _, client, axon, gate = gated()
    asking = [Asking(client, axon, query("wait")) for _ in range(8)]
    until(lambda: gate.inside == 8)
    client.close()
    for one in asking:
        assert isinstance(one.join().error, ConnectionClosed)
        assert one.took < 10
    gate.open.set()
    client.initialize_connections([axon])
    assert client.query_axon(axon, query("echo"), 10)["success"]


def test_closing_races_with_asking(pair):
    """Whoever asks just then is told so; nothing hangs, and nothing is left."""
    _, client, axon = pair()
    for _ in range(10):
        client.initialize_connections([axon])
        stop = threading.Event()
        errors = []

        def ask(stop=stop, errors=errors):
            while not stop.is_set():
                try:
                    client.query_axon(axon, query("echo"), 10)
                except Exception as error:
                    errors.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        client.query_axon(axon, query("echo"), 10)
        client.close()
        stop.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        client.close()


def test_calls_beyond_the_streams_that_the_server_allows_wait(gated):
    _, client, axon, gate = gated(max_concurrent_bidi_streams=4)
    asking = [Asking(client, axon, query("wait", n=n)) for n in range(12)]
    until(lambda: gate.inside == 4)
    late = Asking(client, axon, query("wait"), 0.1).join()
    assert isinstance(late.error, RequestTimeout), "while it waited for a stream"
    gate.open.set()
    for n, one in enumerate(asking):
        assert one.join().answer["data"] == {"n": n}
    assert gate.runs == 12


class RelayThread:
    """A relay in an event loop of its own."""

    def __init__(self, port):
        self.ready = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self._run(port),))
        self.thread.start()
        assert self.ready.wait(10)

    async def _run(self, port):
        self.loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        async with udp_relay("127.0.0.1", port) as self.relay:
            self.ready.set()
            await self.over.wait()

    def close(self):
        """End it."""
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)


def test_what_is_lost_is_sent_again_while_a_leader_sleeps(gated):
    """It sleeps until its own time; the pump's thread looks after the others'."""
    server, first, _, gate = gated()
    first.close()
    relay = RelayThread(server.local_addr().port)
    try:
        axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", relay.relay.port)
        with Lightning(first.wallet_hotkey, signer=first._client._signer) as client:
            client.initialize_connections([axon])
            leader = Asking(client, axon, query("wait"))
            until(lambda: gate.inside == 1)
            # Its request is acknowledged, so that it has no reason to look.
            (connection,) = connections(client)
            until(lambda: connection.engine_connection.stats()["bytes_in_flight"] == 0)
            relay.relay.is_open = False
            follower = Asking(client, axon, query("echo", n=2), 20)
            until(lambda: connection.engine_connection.stats()["bytes_in_flight"] > 0)
            threading.Event().wait(0.05)  # All that was sent is lost by then.
            relay.relay.is_open = True
            assert follower.join().answer["data"] == {"n": 2}
            assert follower.took < 15
            gate.open.set()
            assert leader.join().answer["success"]
    finally:
        gate.open.set()
        relay.close()


# Serving.


def test_slow_handlers_hold_up_nobody_until_all_threads_are_taken(gated):
    """Then those that need one wait, and the others are answered."""
    _, client, axon, gate = gated(
        lambda s: s.register_synapse_handler("plain", lambda data: data),
        handler_threads=4,
    )
    slow = [Asking(client, axon, query("wait")) for _ in range(3)]
    until(lambda: gate.inside == 3)
    for n in range(20):
        answer = client.query_axon(axon, query("echo", n=n), SOON)
        assert answer["data"] == {"n": n}
    slow.append(Asking(client, axon, query("wait")))
    until(lambda: gate.inside == 4)
    waiting = [Asking(client, axon, query("plain", n=n), 20) for n in range(5)]
    assert client.query_axon(axon, query("echo"), SOON)["success"], "it is inline"
    # The other end acknowledges, answers to nobody, and takes time for more.
    (connection,) = connections(client)
    until(lambda: in_flight(client) == 9)
    until(lambda: connection.engine_connection.stats()["bytes_in_flight"] == 0)
    assert not any(one.answer for one in waiting)
    gate.open.set()
    for one in (*slow, *waiting):
        assert one.join().answer["success"]


def test_when_all_threads_are_stuck_requests_are_answered_and_not_begun(gated, caplog):
    """In the time that a handler has, or at once where too many wait already."""
    server, client, axon, gate = gated(
        lambda s: s.register_synapse_handler("plain", lambda data: data),
        handler_threads=2,
        handler_timeout_secs=1,
        max_queued_requests=3,
    )
    stuck = [Asking(client, axon, query("wait")) for _ in range(2)]
    until(lambda: gate.inside == 2)
    late = [Asking(client, axon, query("wait")) for _ in range(3)]
    until(lambda: server.stats().queued == 3)
    assert client.query_axon(axon, query("wait"), SOON)["error"] == "server busy"
    for one in (*stuck, *late):
        assert one.join().answer["error"] == "handler timed out"
    # Those keep their places until a thread has looked at them.
    assert client.query_axon(axon, query("plain"), SOON)["error"] == "server busy"
    assert gate.runs == 2
    (wait,) = [h for h in server.stats().handlers if h.name == "wait"]
    assert (wait.ok, wait.timed_out, wait.busy) == (0, 5, 1)
    assert "most of them for 'wait': further ones are refused" in caplog.text
    gate.open.set()
    until(lambda: not gate.inside)
    assert client.query_axon(axon, query("plain"), SOON)["success"]


def test_no_more_handlers_run_at_once_than_allowed(pair):
    """Where each thread that is done takes what waits, and more threads were added."""
    running, most = [], []

    def count(data):
        running.append(1)
        most.append(len(running))
        time.sleep(0.001)
        running.pop()
        return data

    server, client, axon = pair(
        lambda s: s.register_synapse_handler("count", count), handler_threads=3
    )
    for _ in range(6):
        # As when a machine is so busy that nobody seems to receive.
        server._server._threads.add()

    def ask():
        for _ in range(20):
            assert client.query_axon(axon, query("count"), 20)["success"]

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 240
    assert max(most) <= 3


def test_a_handler_may_become_slow_all_of_a_sudden(pair):
    """One that was always quick; the requests behind it find other threads."""
    meeting = threading.Barrier(5)

    def handler(data):
        if data.get("meet"):
            meeting.wait(20)
        return data

    _, client, axon = pair(lambda s: s.register_synapse_handler("h", handler))
    for _ in range(300):
        client.query_axon(axon, query("h"), 10)
    began = time.monotonic()
    asking = [Asking(client, axon, query("h", meet=True), 30) for _ in range(5)]
    for one in asking:
        assert one.join().answer["success"]
    assert time.monotonic() - began < 10


def test_requests_that_nobody_waits_for_any_more_are_not_begun(gated):
    """While they wait for a thread; their streams give their credit back."""
    server, client, axon, gate = gated(handler_threads=1, max_concurrent_bidi_streams=8)
    first = Asking(client, axon, query("wait"))
    until(lambda: gate.inside == 1)
    for _ in range(3):
        late = [Asking(client, axon, query("wait"), 0.1) for _ in range(7)]
        for one in late:
            assert isinstance(one.join().error, RequestTimeout)
    # The server has all that was sent, and its loop has had its turn.
    (connection,) = connections(client)
    until(lambda: connection.engine_connection.stats()["bytes_in_flight"] == 0)
    for _ in range(3):
        server.get_connection_stats()
    gate.open.set()
    assert first.join().answer["success"]
    assert client.query_axon(axon, query("echo"), 10)["success"]
    assert gate.runs == 1
    for _ in range(20):
        assert client.query_axon(axon, query("echo"), 10)["success"]


def test_large_answers_are_let_go_of(pair):
    """When they have been acknowledged, not when the loop has its next turn."""
    _, client, axon = pair(
        lambda s: s.register_synapse_handler("big", lambda d: {"b": bytes(1 << 20)})
    )
    client.query_axon(axon, query("big"), 10)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(40):
            assert (
                len(client.query_axon(axon, query("big"), 10)["data"]["b"]) == 1 << 20
            )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


def test_answers_of_every_kind_of_handler_meet_on_one_server(pair):
    """Inline, in a thread, on the loop and in a stream, all at once."""

    async def later(data):
        await asyncio.sleep(0.001)
        return data

    def chunks(data):
        yield b"one"
        yield b"two"

    def prepare(server):
        server.register_synapse_handler("thread", lambda data: data)
        server.register_async_synapse_handler("later", later)
        server.register_streaming_handler("chunks", chunks)

    _, client, axon = pair(prepare)
    failures = []

    def ask(number):
        for n in range(30):
            name = ("echo", "thread", "later", "chunks")[(number + n) % 4]
            if name == "chunks":
                stream = client.query_axon_stream(axon, query(name))
                if list(stream) != [b"one", b"two"]:
                    failures.append((number, n))
            elif client.query_axon(axon, query(name, n=n), 20)["data"] != {"n": n}:
                failures.append((number, n))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
