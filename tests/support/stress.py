"""Threads that do whatever they like with one pair of endpoints in memory."""

import collections
import contextlib
import faulthandler
import gc
import random
import sys
import threading
import time

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint
from lightning.errors import ConnectionClosed

CLIENT = ("10.0.0.1", 1000)
SERVER = ("10.0.0.2", 2000)
IDENTITY = Identity.generate()
BODY = bytes(range(256)) * 400  # large enough to be referred to
SETTINGS = {"idle_timeout": 3.0, "handshake_timeout": 3.0, "keep_alive": 0.5}
STUCK = 30.0  # seconds without a call that returns
QUEUE = 2000  # datagrams in flight; more are lost
CONNECTIONS = 12


class World:
    """A client and a server endpoint, and what is known of their connections."""

    def __init__(self, seed, retry):
        chance = random.Random(seed)
        self.ends = (
            Endpoint(
                EngineConfig(**SETTINGS), is_client=True, random=chance.randbytes
            ),
            Endpoint(
                EngineConfig(retry=retry, **SETTINGS), is_client=False,
                identity=IDENTITY, random=chance.randbytes,
            ),
        )  # fmt: skip
        # Datagrams on their way to each end, and the connections at each end.
        self.queues = (collections.deque(), collections.deque())
        self.connections = ([], [])


class Stress:
    """Threads, their random choices, and what came of them.

    Args:
        seed: Of all choices; the order of the threads is the system's.
        threads: How many.
    """

    def __init__(self, seed, threads=16):
        self.seed = seed
        self.world = World(seed, False)
        self.done = collections.Counter()
        self.failures = []
        self._halt = threading.Event()
        self._calls = [0] * threads
        self._rounds = 0
        self._actions = [
            (weight, getattr(self, "_" + name))
            for name, weight in {
                "carry": 60, "events": 20, "time": 8, "connect": 2, "open": 15,
                "send": 6, "read": 10, "stop": 1, "reset": 1, "release": 2, "pause": 2,
                "resume": 2, "ping": 1, "update": 1, "close": 1, "look": 6, "drop": 1,
                "replace": 0.01,
            }.items()
        ]  # fmt: skip

    def run(self, seconds):
        """Run for a while; raise what a thread raised.

        If no thread gets anywhere for 30 s, all stacks are written and the process
        ends: the interpreter itself may be what hangs.
        """
        threads = [
            threading.Thread(target=self._work, args=(i,), daemon=True)
            for i in range(len(self._calls))
        ]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        end = time.monotonic() + seconds
        try:
            for thread in threads:
                thread.start()
            seen = None
            while time.monotonic() < end and not self.failures:
                if all(a != b for a, b in zip(self._calls, seen or (), strict=False)):
                    # All of them went on.
                    faulthandler.dump_traceback_later(STUCK, exit=True)
                    seen = list(self._calls)
                self._halt.wait(0.1)
            faulthandler.dump_traceback_later(STUCK, exit=True)
            self._halt.set()
            for thread in threads:
                thread.join()
        finally:
            self._halt.set()
            faulthandler.cancel_dump_traceback_later()
            sys.setswitchinterval(interval)
        if self.failures:
            raise self.failures[0]

    def finish(self):
        """Close what is left and let it drain; return what the endpoints still hold."""
        world = self.world
        for each in world.connections:
            while each:
                each.pop().close("done")
        now = time.monotonic()
        for _ in range(400):
            now += 0.05
            for end, queue in zip(world.ends, world.queues, strict=True):
                queue.clear()
                end.handle_timeout(now)
                end.transmit(now)
                while end.next_event():
                    pass
        gc.collect()
        return [end.stats() for end in world.ends]

    # What the threads do.

    def _work(self, number):
        chance = random.Random(self.seed * 1000 + number)
        weights = [weight for weight, _ in self._actions]
        actions = [action for _, action in self._actions]
        try:
            while not self._halt.is_set():
                action = chance.choices(actions, weights)[0]
                with contextlib.suppress(ConnectionClosed):
                    action(chance, self.world)
                self._calls[number] += 1
        except BaseException as error:
            self.failures.append(error)
            self._halt.set()

    def _carry(self, chance, world):
        """Move datagrams, some of which get lost, twice, or into another order."""
        side = chance.randrange(2)
        queue = world.queues[1 - side]
        for data, _, ecn, segment in world.ends[side].transmit(time.monotonic()):
            for start in range(0, len(data), segment):
                if chance.random() > 0.01 and len(queue) < QUEUE:
                    queue.append((data[start : start + segment], ecn))
        source = (SERVER, CLIENT)[1 - side]
        for _ in range(20):
            try:
                data, ecn = queue.popleft()
            except IndexError:
                break
            world.ends[1 - side].receive(data, source, time.monotonic(), ecn)

    def _events(self, chance, world):
        side = chance.randrange(2)
        known = world.connections[side]
        while event := world.ends[side].next_event():
            self.done[event.kind] += 1
            if event.kind == "connected" and side:
                known.append(event.connection)
            elif event.kind == "closed":
                assert event.connection.end is not None
                with contextlib.suppress(ValueError):
                    known.remove(event.connection)
            elif event.kind == "readable" and chance.random() < 0.9:
                self._read_one(event.connection, event.stream_id, side)
            elif event.kind in ("reset", "stopped", "acked") and chance.random() < 0.9:
                event.connection.release(event.stream_id)

    def _time(self, chance, world):
        end = chance.choice(world.ends)
        due = end.next_timeout()
        now = time.monotonic()
        if due is not None and due <= now:
            end.handle_timeout(now)

    def _connect(self, chance, world):
        known = world.connections[0]
        if len(known) < CONNECTIONS:
            token = chance.choice(known).token if known else b""
            known.append(world.ends[0].connect(SERVER, time.monotonic(), token=token))

    def _any(self, chance, world):
        side = chance.randrange(2)
        known = world.connections[side]
        try:
            return chance.choice(known), side
        except IndexError:
            return None, side

    def _stream(self, chance, world, verb, *arguments):
        connection, side = self._any(chance, world)
        if connection is None:
            return None
        stream = chance.randrange(60) * 4 + chance.choice((0, 0, 0, side, 2, 3))
        try:
            return getattr(connection, verb)(stream, *arguments)
        except ValueError:
            self.done["refused"] += 1
            return None

    def _data(self, chance):
        kind = chance.randrange(4)
        if kind == 0:
            return BODY
        size = chance.choice((0, 10, 1000, 20_000))
        return bytearray(size) if kind == 1 else bytes(size)

    def _open(self, chance, world):
        connection, _ = self._any(chance, world)
        if connection is not None and connection.is_connected:
            stream = connection.open_stream(chance.random() < 0.1)
            if stream >= 0:
                # Another thread may have reset it already.
                with contextlib.suppress(ValueError):
                    connection.send(stream, self._data(chance), chance.random() < 0.8)

    def _send(self, chance, world):
        self._stream(chance, world, "send", self._data(chance), chance.random() < 0.5)

    def _read(self, chance, world):
        connection, side = self._any(chance, world)
        if connection is not None:
            self._read_one(connection, chance.randrange(60) * 4, side)

    def _read_one(self, connection, stream, side):
        data = connection.read(stream)
        self.done["bytes"] += len(data)
        if connection.at_end(stream):
            self.done["ends"] += 1
            if side and not stream & 3:
                with contextlib.suppress(ValueError):
                    connection.send(stream, b"answer" * 100, True)
            connection.release(stream)

    def _stop(self, chance, world):
        self._stream(chance, world, "stop", 7)

    def _reset(self, chance, world):
        self._stream(chance, world, "reset", 8)

    def _release(self, chance, world):
        self._stream(chance, world, "release")

    def _pause(self, chance, world):
        self._stream(chance, world, "pause")

    def _resume(self, chance, world):
        self._stream(chance, world, "resume")

    def _ping(self, chance, world):
        connection, _ = self._any(chance, world)
        if connection is not None:
            connection.ping()

    def _update(self, chance, world):
        connection, _ = self._any(chance, world)
        if connection is not None:
            connection.update_keys()

    def _close(self, chance, world):
        connection, _ = self._any(chance, world)
        if connection is not None and chance.random() < 0.2:
            connection.close("any time", 5)

    def _look(self, chance, world):
        end = chance.choice(world.ends)
        assert end.stats()["connections"] >= 0
        assert 0 <= end.half_open <= 10_000
        assert 0 <= end.connections <= 10_000
        connection, _ = self._any(chance, world)
        if connection is not None:
            assert connection.stats()["bytes_in_flight"] < 2**40
            assert isinstance(connection.token, bytes)
            assert connection.address in (CLIENT, SERVER)
            assert connection.is_confirmed in (False, True)

    def _drop(self, chance, world):
        """Forget a connection that goes on: its endpoint still has it."""
        known = world.connections[chance.randrange(2)]
        if len(known) > CONNECTIONS // 2:
            with contextlib.suppress(IndexError):
                known.pop(chance.randrange(len(known)))
        if chance.random() < 0.02:
            gc.collect()

    def _replace(self, chance, world):
        """Forget both endpoints while other threads are in them."""
        if world is self.world:
            self._rounds += 1
            self.done["worlds"] += 1
            self.world = World(self.seed + self._rounds, chance.random() < 0.5)


def stress_and_check(seed, seconds):
    """Run the threads; at the end traffic has flowed and nothing is held."""
    print("seed", seed)
    references = sys.getrefcount(BODY)
    stress = Stress(seed)
    stress.run(seconds)
    for end in stress.finish():
        assert end["connections"] == end["half_open"] == 0
        assert end["blocks_in_use"] == end["streams_in_use"] == 0
    print(stress.done)
    assert stress.done["connected"] >= 4
    assert stress.done["ends"] >= 20
    assert stress.done["bytes"] >= 100_000
    del stress
    assert sys.getrefcount(BODY) == references
