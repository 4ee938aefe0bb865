"""Exchanges: any sequence of stream events and calls.

The input is a program for a client's end. Errors have names. Of each request its owner hears once how it failed, nothing
after that, and nothing after it lost interest. Nothing is asked of the layer below for a
stream that ended, and when the connection is lost nothing is left.
"""

from lightning._core.wire.exchange import (
    Exchanges,
    read_login_answer,
    read_stream_frame,
)
from lightning.errors import (
    ConnectionClosed,
    DecodeError,
    LightningError,
    StreamError,
    TransportError,
    UnexpectedMessage,
)
from tests.fuzz.cutter import Cutter

MAX_PAYLOAD = 600
DATA, FRAME, RESET, STOPPED, START, ACT, ALLOW, LOSE = range(8)
STREAMS = 12


class Link:
    """The verbs of a connection; a wrong use of them fails."""

    def __init__(self):
        self.opened = 0
        self.allowed = 3
        self.ended = set()
        self.stopped = set()
        self.released = set()

    def open_stream(self):
        """Open one of those that are allowed."""
        if self.opened >= self.allowed:
            return -1
        self.opened += 1
        return 4 * (self.opened - 1)

    def send(self, stream_id, data, fin):
        """Send on a stream that did not end."""
        assert stream_id not in self.ended | self.released
        assert isinstance(data, bytes)
        if fin:
            self.ended.add(stream_id)

    def reset(self, stream_id, _code):
        """Give up a stream."""
        self.ended.add(stream_id)

    def stop(self, stream_id, _code):
        """Ask the peer to stop, once."""
        assert stream_id not in self.stopped | self.released
        self.stopped.add(stream_id)

    def release(self, stream_id):
        """Let go of a stream, once, after its own direction ended."""
        assert stream_id not in self.released
        self.released.add(stream_id)

    def pause(self, stream_id):
        """Any time."""
        assert stream_id >= 0

    resume = pause


class Request:
    """One request of the client, and what its owner heard."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.over = False
        self.exchange = None

    def on_frame(self, exchange, kind, payload):
        """Read it in each way that there is; want no more after some."""
        assert not self.over
        for read in (read_login_answer, read_stream_frame):
            try:
                read(kind, payload)
            except (DecodeError, UnexpectedMessage, StreamError):
                pass
        self.wanted -= 1
        if self.wanted == 0:
            self.over = True
            exchange.complete()
        elif self.wanted < -3:
            self.over = True
            exchange.cancel()

    def on_error(self, _exchange, error):
        """Hear the end."""
        assert not self.over
        assert isinstance(error, LightningError)
        self.over = True


class Client:
    """The client's end."""

    def __init__(self):
        self.link = Link()
        self.exchanges = Exchanges(self.link, MAX_PAYLOAD)
        self.requests = []
        self.lost = False

    def start(self, cutter):
        """Begin a request."""
        request = Request(cutter.byte() % 4)
        try:
            request.exchange = self.exchanges.start(
                b"\x03" + bytes(4), request.on_frame, request.on_error
            )
        except TransportError:
            assert self.lost
            return
        assert not self.lost
        self.requests.append(request)

    def act(self, cutter):
        """Do something about a request."""
        which, verb = cutter.byte(), cutter.byte() % 4
        if not self.requests:
            return
        request = self.requests[which % len(self.requests)]
        if verb < 2:
            request.over = True
        (
            request.exchange.cancel, request.exchange.complete,
            request.exchange.pause, request.exchange.resume,
        )[verb]()  # fmt: skip

    def check(self):
        """Nobody waits for nothing."""
        for request in self.requests:
            assert request.over


def check(data):
    """Run the program."""
    cutter = Cutter(data)
    end = Client()
    # What the peer has ended already.
    ended = set()
    while cutter:
        step(end, cutter.byte() & 0x7F, cutter, ended)
    lose(end)
    assert len(end.exchanges) == 0
    end.check()


def step(end, kind, cutter, ended):
    """Do what comes next."""
    kind %= 8
    if kind <= STOPPED:
        step_event(end, kind, cutter, ended)
    elif kind == START:
        end.start(cutter)
    elif kind == ACT:
        end.act(cutter)
    elif kind == ALLOW:
        end.link.allowed += cutter.byte() % 4
        if not end.lost:
            end.exchanges.pump()
    elif cutter.byte() & 1:
        lose(end)
    assert len(end.exchanges) <= STREAMS + len(end.requests)


def step_event(end, kind, cutter, ended):
    """Tell of a stream what the layer below could."""
    stream = cutter.byte() % (4 * STREAMS)
    how = cutter.byte()
    data = cutter.take(how >> 1) if kind <= FRAME else b""
    opened = stream % 4 == 0 and stream // 4 < end.link.opened
    if end.lost or stream in end.link.released or not opened:
        return
    if kind == STOPPED:
        # The layer below resets the stream then.
        end.link.ended.add(stream)
        end.exchanges.stop_sending(stream, how)
        return
    if stream in ended or stream in end.link.stopped:
        return
    if kind == RESET or how & 1:
        ended.add(stream)
    if kind == RESET:
        end.exchanges.stream_reset(stream, how)
        return
    if kind == FRAME:
        data = data[:1] + max(len(data) - 1, 0).to_bytes(4) + data[1:]
    end.exchanges.stream_data(stream, data, bool(how & 1))


def lose(end):
    """Lose the connection, as often as it likes."""
    end.lost = True
    end.exchanges.connection_lost(lambda: ConnectionClosed(initiator="local"))


def seeds():
    """Each event, before and after each other one."""
    answer = bytes([FRAME, 0, 38]) + b"\x04\x94\xc3\x80\x00\xc0" + bytes(13)
    chunks = (
        bytes([FRAME, 0, 12]) + b"\x05\x91\xc4\x02hi" + bytes([FRAME, 0, 9])
        + b"\x06\x92\xc3\xc0"
    )  # fmt: skip
    client = [
        bytes([START, 1]), bytes([START, 0]), answer, chunks, bytes([RESET, 0, 7]),
        bytes([STOPPED, 0, 0]), bytes([ACT, 0, 0]), bytes([ACT, 0, 1]),
        bytes([ACT, 0, 2]), bytes([ACT, 0, 3]), bytes([DATA, 0, 1]),
        bytes([DATA, 0, 6]) + b"\x04\0\0", bytes([LOSE, 1]), bytes([START, 1]) * 5,
        bytes([ALLOW, 3]), bytes([DATA, 0, 13]) + b"\x09\0\0\0\0\0",
    ]  # fmt: skip
    for one in client:
        for other in client:
            yield bytes([START, 2]) + one + other
