"""The exchange layer against a link that only records what it is asked to do."""

import random

import pytest

from lightning._core.wire.exchange import (
    ClientExchange,
    Exchanges,
    read_answer,
    read_login_answer,
    read_stream_frame,
)
from lightning._core.wire.messages import (
    HandshakeResponse,
    StreamChunk,
    StreamEnd,
    SynapseResponse,
    decode_message,
)
from lightning.errors import (
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    StreamClosedEarly,
    StreamError,
    StreamReset,
    UnexpectedMessage,
    UnknownMessageType,
)

LIMIT = 1000


class FakeLink:
    """Records verbs; opens streams up to a limit."""

    def __init__(self, streams: int = 100) -> None:
        self.free = [4 * n for n in range(streams)]
        self.calls: list[tuple] = []

    def open_stream(self) -> int:
        return self.free.pop(0) if self.free else -1

    def __getattr__(self, verb: str):
        return lambda *args: self.calls.append((verb, *args))

    def taken(self) -> list[tuple]:
        calls, self.calls = self.calls, []
        return calls


class Seen:
    """Records an exchange's frames and errors; completes after some frames."""

    def __init__(self, frames: int = 1) -> None:
        self.left = frames
        self.frames: list[tuple[int, bytes]] = []
        self.errors: list[Exception] = []

    def on_frame(self, exchange, kind, payload) -> None:
        self.frames.append((kind, payload))
        self.left -= 1
        if not self.left:
            exchange.complete()

    def on_error(self, exchange, error) -> None:
        self.errors.append(error)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


def client(streams: int = 100) -> tuple[FakeLink, Exchanges]:
    link = FakeLink(streams)
    return link, Exchanges(link, LIMIT)


def test_a_request_is_one_write_with_fin():
    link, exchanges = client()
    seen = Seen()
    exchange = exchanges.start(frame(3, b"q"), seen.on_frame, seen.on_error)
    assert link.taken() == [("send", 0, frame(3, b"q"), True)]
    assert (exchange.stream_id, exchange.waiting, len(exchanges)) == (0, False, 1)


def test_the_first_frame_completes_and_stops_the_rest():
    """STOP_SENDING(0) unless the end of the stream came with the frame."""
    link, exchanges = client()
    for fin in (False, True):
        seen = Seen()
        exchange = exchanges.start(b"", seen.on_frame, seen.on_error)
        link.taken()
        exchanges.stream_data(exchange.stream_id, frame(4, b"a"), fin)
        assert seen.frames == [(4, b"a")]
        stop = [] if fin else [("stop", exchange.stream_id, 0)]
        assert link.taken() == [*stop, ("release", exchange.stream_id)]
        exchanges.stream_data(exchange.stream_id, b"late", True)
        assert (len(seen.frames), seen.errors, len(exchanges)) == (1, [], 0)


def test_any_chunking_gives_the_same_frames():
    data = frame(5, b"") + frame(5, b"x" * 700) + frame(5, b"yz") + frame(6, b"e")
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(200):
        _, exchanges = client()
        seen = Seen(frames=4)
        exchanges.start(b"", seen.on_frame, seen.on_error)
        position = 0
        while position < len(data):
            size = dice.choice((1, 2, 3, 50, len(data)))
            piece = data[position : position + size]
            position += size
            exchanges.stream_data(0, piece, position >= len(data))
        assert seen.frames == [(5, b""), (5, b"x" * 700), (5, b"yz"), (6, b"e")]
        assert not seen.errors
        assert not len(exchanges)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "stream closed after 0 of 5 bytes"),
        (b"\x04\x00", "stream closed after 2 of 5 bytes"),
        (frame(4, b"abcdef")[:-2], "stream closed after 4 of 6 bytes"),
    ],
)
def test_an_early_end_says_how_far_it_came(data, text):
    _, exchanges = client()
    seen = Seen()
    exchanges.start(b"", seen.on_frame, seen.on_error)
    exchanges.stream_data(0, data, True)
    (error,) = seen.errors
    assert isinstance(error, StreamClosedEarly)
    assert text in str(error)
    assert not len(exchanges)


def test_a_refused_request_is_told_apart_from_a_lost_answer():
    _, exchanges = client()
    seen = Seen()
    exchanges.start(b"", seen.on_frame, seen.on_error)
    exchanges.stop_sending(0, 0)
    assert not seen.errors, "alone it is normal traffic"
    exchanges.stream_data(0, b"", True)
    (error,) = seen.errors
    assert isinstance(error, StreamReset)
    assert "sending stopped by peer: error 0" in str(error)


def test_stop_sending_before_an_answer_is_normal():
    _, exchanges = client()
    seen = Seen()
    exchanges.start(b"", seen.on_frame, seen.on_error)
    exchanges.stop_sending(0, 0)
    exchanges.stop_sending(0, 0)
    exchanges.stream_data(0, frame(4, b"a"), True)
    assert (seen.frames, seen.errors) == ([(4, b"a")], [])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (frame(0x77, b"x"), UnknownMessageType),
        (frame(4, bytes(LIMIT + 1)), FrameTooLarge),
    ],
)
def test_a_broken_frame_fails_the_exchange_and_stops_the_peer(data, kind):
    link, exchanges = client()
    seen = Seen()
    exchanges.start(b"", seen.on_frame, seen.on_error)
    link.taken()
    exchanges.stream_data(0, data, False)
    assert [type(e) for e in seen.errors] == [kind]
    assert link.taken() == [("stop", 0, 0), ("release", 0)]
    exchanges.stream_data(0, b"more", True)
    assert len(seen.errors) == 1
    assert not len(exchanges)


def test_a_reset_carries_its_code():
    _, exchanges = client()
    seen = Seen()
    exchanges.start(b"", seen.on_frame, seen.on_error)
    exchanges.stream_reset(0, 7)
    exchanges.stream_reset(0, 8)
    (error,) = seen.errors
    assert isinstance(error, StreamReset)
    assert (error.code, error.sending) == (7, False)


def test_requests_wait_for_streams_and_keep_their_order():
    link, exchanges = client(streams=1)
    seen = Seen()
    started = [
        exchanges.start(bytes([n]), seen.on_frame, seen.on_error) for n in range(4)
    ]
    assert [e.waiting for e in started] == [False, True, True, True]
    started[2].cancel()
    link.free = [4, 8]
    exchanges.pump()
    sent = [call[2] for call in link.taken() if call[0] == "send"]
    assert sent == [b"\0", b"\1", b"\3"]
    assert len(exchanges) == 3


def test_cancelling_abandons_both_directions_and_silences_it():
    link, exchanges = client()
    seen = Seen()
    exchange = exchanges.start(b"", seen.on_frame, seen.on_error)
    link.taken()
    exchange.cancel()
    exchange.cancel()
    assert link.taken() == [("stop", 0, 0), ("reset", 0, 0), ("release", 0)]
    exchanges.stream_data(0, frame(4), True)
    assert (seen.frames, seen.errors, len(exchanges)) == ([], [], 0)


def test_a_lost_connection_ends_all_with_an_error_each():
    link, exchanges = client(streams=1)
    seen = [Seen(), Seen()]
    running, waiting = (exchanges.start(b"", s.on_frame, s.on_error) for s in seen)
    exchanges.connection_lost(lambda: ConnectionClosed(reason="bye"))
    exchanges.connection_lost(lambda: ConnectionClosed(reason="again"))
    errors = [s.errors for s in seen]
    assert [e.reason for [e] in errors] == ["bye", "bye"]
    assert errors[0][0] is not errors[1][0]
    assert not len(exchanges)
    link.taken()
    running.cancel()
    waiting.cancel()
    assert not link.taken()
    with pytest.raises(ConnectionClosed, match="bye"):
        exchanges.start(b"", None, None)


def test_reading_pauses_and_resumes_through_the_link():
    link, exchanges = client()
    seen = Seen(frames=2)
    exchange = exchanges.start(b"", seen.on_frame, seen.on_error)
    link.taken()
    exchange.pause()
    exchange.resume()
    assert link.taken() == [("pause", 0), ("resume", 0)]
    exchange.cancel()
    link.taken()
    exchange.pause()
    exchange.resume()
    assert not link.taken()


def test_bytes_of_unknown_streams_are_ignored():
    link, exchanges = client()
    exchanges.stream_data(0, b"x", False)
    exchanges.stream_reset(0, 0)
    exchanges.stop_sending(0, 0)
    assert not link.taken()


def test_exchanges_are_not_made_by_hand():
    with pytest.raises(TypeError, match="made by Exchanges"):
        ClientExchange()


# What the frames mean to who asked.

NOW = 1_795_572_719
OK = SynapseResponse(True, {"a": 1}, NOW, None)
LOGIN = HandshakeResponse("m", NOW, "s", True, "c", "f")


def payload(message) -> bytes:
    return message.to_frame()[5:]


class Ended:
    """A call that has ended with a frame."""

    def __init__(self, kind, payload=b""):
        self.kind = lambda: kind
        self.message = lambda: decode_message(kind, payload)


def test_a_unary_answer():
    assert read_answer(Ended(4, payload(OK))) == OK
    failed = SynapseResponse(False, {}, NOW, "request processing failed")
    assert read_answer(Ended(4, payload(failed))) == failed


@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6])
def test_a_unary_answer_of_another_type(kind):
    with pytest.raises(UnexpectedMessage) as caught:
        read_answer(Ended(kind))
    text = "query_axon_stream" if kind == 5 else "unexpected response type: "
    assert text in str(caught.value)


def test_an_undecodable_answer():
    with pytest.raises(DecodeError, match="Failed to parse synapse response"):
        read_answer(Ended(4, b"\xc1"))


def test_a_streamed_answer():
    assert read_stream_frame(5, payload(StreamChunk(b"x"))) == b"x"
    assert read_stream_frame(6, payload(StreamEnd(True, None))) is None


@pytest.mark.parametrize(
    ("kind", "message", "text"),
    [
        (6, StreamEnd(False, "handler timed out"), "handler timed out"),
        (6, StreamEnd(False, None), "stream ended with failure status"),
        (
            4,
            SynapseResponse(False, {}, NOW, "unrecognized synapse type"),
            "error on streaming path: unrecognized synapse type",
        ),
        (4, OK, "error on streaming path: no detail"),
        (2, LOGIN, "unexpected message type during streaming: HandshakeResponse"),
    ],
)
def test_a_streamed_answer_that_fails(kind, message, text):
    with pytest.raises(StreamError) as caught:
        read_stream_frame(kind, payload(message))
    assert text in str(caught.value)


def test_a_login_answer():
    assert read_login_answer(2, payload(LOGIN)) == LOGIN
    with pytest.raises(UnexpectedMessage, match="SynapseResponse"):
        read_login_answer(4, payload(OK))
