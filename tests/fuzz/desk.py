"""Two drivers on loopback: any bytes on a stream, and what the desks make of them.

The input is a program for both ends. A request is handed on once, as the first whole
frame of its stream and nothing else; every call ends once, with the first whole frame of
its stream or with an error that has a name; in the end nothing is under way.
"""

import atexit
import select
import socket

from lightning._core.io.driver import Driver
from lightning._core.io.links import Link
from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint
from lightning._core.wire.framing import FrameReader
from lightning.errors import (
    ConnectionClosed,
    FrameTooLarge,
    LightningError,
    TransportError,
)
from tests.fuzz.cutter import Cutter

MAX_PAYLOAD = 600
STREAMS = 8
OPEN, MORE, RESET, STOP, CALL, CANCEL, ANSWER, RESPOND, REFUSE, STEP, EXPIRE = range(11)
TURNS = 400


class End(Link):
    """Keeps what it is told; nothing may fail unforeseen."""

    def __init__(self, on_request=None):
        super().__init__(MAX_PAYLOAD, on_request)
        self.connected = False
        self.ended = False

    def on_connected(self):
        """Note it."""
        self.connected = True

    def on_closed_by(self, _end):
        """Note it."""
        self.ended = True

    def on_room(self, _stream_id):
        """Nobody waits here."""

    def on_failure(self, error):
        """Fail."""
        raise error


class Ending:
    """What a call calls a future."""

    def __init__(self):
        self.call = None

    def done(self):
        """Say whether it has ended."""
        return self.call is not None

    def set_result(self, call):
        """End, once."""
        assert self.call is None
        self.call = call


class World:
    """A connection, used by many inputs until one of them breaks it."""

    def __init__(self):
        self.requests = {}
        server = Endpoint(
            EngineConfig(max_streams=STREAMS), is_client=False,
            identity=Identity.generate(),
        )  # fmt: skip
        self.server = self.client = None
        self.accepted = []
        self.drivers = [
            Driver(server, self.socket(), lambda: None, self.accept),
            Driver(
                Endpoint(EngineConfig(), is_client=True), self.socket(), lambda: None
            ),
        ]
        self.client = End()
        self.drivers[1].connect(self.address, self.client)
        self.until(lambda: self.client.connected and self.accepted)
        self.server = self.accepted[0]

    def socket(self):
        """Bind one; the first is the server's."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        if not self.accepted and not hasattr(self, "address"):
            self.address = sock.getsockname()
        return sock.detach()

    def accept(self, _engine):
        """Make the server's end."""
        self.accepted.append(End(self.on_request))
        return self.accepted[-1]

    def on_request(self, _link, exchange, kind, payload):
        """Keep a request; one for each stream."""
        assert exchange.stream_id not in self.requests
        self.requests[exchange.stream_id] = (exchange, kind, payload)

    def step(self, timeout=0.0):
        """Let both ends do what is due."""
        for driver in self.drivers:
            driver.flush()
        select.select(self.drivers, [], [], timeout)
        for driver in self.drivers:
            driver.attend()

    def until(self, condition):
        """Go on until something is so."""
        turns = 0
        while not condition():
            turns += 1
            assert turns < TURNS, "it does not come to its end"
            self.step(0.0005 if turns < TURNS // 2 else 0.02)

    @property
    def is_alive(self):
        """Whether another input can use it."""
        return not self.client.ended and not self.server.ended

    def close(self):
        """End both."""
        for driver in self.drivers:
            driver.close()


worlds = []  # one, or none yet


@atexit.register
def end_world():
    """Leave nothing open."""
    while worlds:
        worlds.pop().close()


def first_frame(data):
    """Return type and payload of the first whole frame; None if it never comes."""
    reader = FrameReader(MAX_PAYLOAD)
    taken = 0
    try:
        while taken < len(data) and not reader.ready:
            taken += reader.feed(data, taken)
    except TransportError as error:
        return error
    return reader.take() if reader.ready else None


class Sent:
    """Bytes on a stream, and how it ended."""

    def __init__(self):
        self.data = b""
        self.ended = False
        self.given_up = False


class Program:
    """One input."""

    def __init__(self, world):
        self.world = world
        self.raw = {}  # of the client, by stream
        self.calls = []  # (call, ending)
        self.answers = {}  # of the server, by stream
        self.cancelled = set()
        world.requests.clear()

    def run(self, cutter):
        """Do all of it, then end what is left."""
        client, server = self.world.client, self.world.server
        while cutter:
            self.do(cutter.byte() % 11, cutter)
        for stream, sent in self.raw.items():
            if not sent.ended:
                client.send(stream, b"", True)
                sent.ended = True
        self.world.until(self.is_settled)
        self.check()
        # What was asked and not answered is given up by both.
        for call, ending in self.calls:
            if not ending.done():
                call.cancel()
        for exchange, _, _ in self.world.requests.values():
            if exchange.stream_id not in self.answers:
                exchange.respond(b"")
        for stream, sent in self.answers.items():
            if not sent.ended:
                server.reset(stream, 0)
            server.stop(stream, 0)
            server.release(stream)
            exchange = self.world.requests[stream][0]
            exchange.end()
        for stream in self.raw:
            client.stop(stream, 0)
            client.release(stream)
        self.world.until(lambda: not client.under_way and not server.under_way)

    def do(self, kind, cutter):
        """Do one thing."""
        client = self.world.client
        if kind == OPEN and len(self.raw) < STREAMS // 2:
            stream = client.open_stream()
            if stream >= 0:
                self.raw[stream] = Sent()
                self.send(client, stream, self.raw[stream], cutter)
        elif kind in (MORE, RESET, STOP) and self.raw:
            stream = [*self.raw][cutter.byte() % len(self.raw)]
            sent = self.raw[stream]
            if kind == MORE and not sent.ended:
                self.send(client, stream, sent, cutter)
            elif kind == RESET and not sent.ended:
                sent.ended = sent.given_up = True
                client.reset(stream, cutter.byte())
            elif kind == STOP:
                sent.given_up = True
                client.stop(stream, cutter.byte())
        elif kind == CALL and len(self.calls) < 2 * STREAMS:
            ending = Ending()
            payload = bytes([len(self.calls)]) * cutter.byte()
            frame = b"\x02" + len(payload).to_bytes(4) + payload
            self.calls.append((client.call(frame, ending), ending))
        elif kind == CANCEL and self.calls:
            number = cutter.byte() % len(self.calls)
            self.cancelled.add(number)
            self.calls[number][0].cancel()
        elif kind in (ANSWER, RESPOND, REFUSE) and self.world.requests:
            streams = [*self.world.requests]
            stream = streams[cutter.byte() % len(streams)]
            self.answer(kind, stream, cutter)
        elif kind == STEP:
            self.world.step()
        elif kind == EXPIRE:
            self.world.drivers[0].expire(0.0)

    def answer(self, kind, stream, cutter):
        """Answer with whole frames, with any bytes, or not."""
        server = self.world.server
        sent = self.answers.setdefault(stream, Sent())
        exchange = self.world.requests[stream][0]
        if sent.ended or exchange.cancelled:
            return
        if kind == REFUSE:
            sent.ended = sent.given_up = True
            server.reset(stream, cutter.byte())
        elif kind == ANSWER:
            self.send(server, stream, sent, cutter)
        else:
            data = cutter.take(cutter.byte())
            frame = b"\x04" + len(data).to_bytes(4) + data
            sent.data += frame
            sent.ended = True
            server.send(stream, frame, True)

    def send(self, link, stream, sent, cutter):
        """Send any bytes, or a frame that is one or nearly."""
        how = cutter.byte()
        data = cutter.take(how >> 2)
        if how & 2 and data:
            data = data[:1] + (len(data) - 1).to_bytes(4) + data[1:]
        sent.data += data
        sent.ended = bool(how & 1)
        link.send(stream, data, sent.ended)

    def is_settled(self):
        """Say if both ends know all that was sent."""
        world = self.world
        if any(link.has_unsent for link in (world.client, world.server)):
            return False
        for link in (world.client, world.server):
            if link.engine_connection.stats()["bytes_in_flight"]:
                return False
        return all(
            stream in world.requests
            for stream, sent in self.raw.items()
            if not sent.given_up and isinstance(first_frame(sent.data), tuple)
        )

    def check(self):
        """Compare with what was sent."""
        for stream, (_, kind, payload) in self.world.requests.items():
            if stream in self.raw:
                found = first_frame(self.raw[stream].data)
                assert isinstance(found, tuple)
                assert kind == found[0]
                if kind != 3:
                    assert payload == found[1]
        answers = [first_frame(sent.data) for sent in self.answers.values()]
        for call, ending in self.calls:
            if ending.done():
                assert ending.call is call
                found = outcome(call)
                assert found in answers if isinstance(found, tuple) else named(found)


def outcome(call):
    """Return an answer's type and payload, or the error in its place."""
    try:
        return call.answer()
    except LightningError as error:
        return error


def named(error):
    """Say if an error is one that a call may have while its connection lives."""
    if isinstance(error, FrameTooLarge) and error.limit != MAX_PAYLOAD:
        return False
    return isinstance(error, TransportError) and not isinstance(error, ConnectionClosed)


def check(data):
    """Run the program."""
    if not worlds or not worlds[0].is_alive:
        end_world()
        worlds.append(World())
    try:
        Program(worlds[0]).run(Cutter(data))
    except BaseException:
        end_world()  # The next input shall not suffer.
        raise


def seeds():
    """Each step before and after each other one."""
    frame = bytes([(7 << 2) | 2]) + b"\x02abcdef"
    steps = [
        bytes([OPEN]) + frame, bytes([OPEN, (2 << 2)]) + b"\x02\0",
        bytes([OPEN, (6 << 2) | 1]) + b"\x77\0\0\0\0\0", bytes([OPEN, 1]),
        bytes([MORE, 0]) + frame, bytes([MORE, 0, 1]), bytes([RESET, 0, 7]),
        bytes([STOP, 0, 0]), bytes([CALL, 3]), bytes([CALL, 3]) * 12, bytes([CANCEL, 0]),
        bytes([ANSWER, 0]) + frame, bytes([ANSWER, 0, 1]),
        bytes([ANSWER, 0, (5 << 2) | 1]) + b"\x04\xff\xff\xff\xff",
        bytes([RESPOND, 0, 2, 1, 2]), bytes([REFUSE, 0, 9]), bytes([STEP]),
        bytes([EXPIRE]),
    ]  # fmt: skip
    moved = bytes([STEP]) * 3
    for one in steps:
        for other in steps:
            yield bytes([CALL, 2]) + moved + one + other
            yield one + moved + other + moved
