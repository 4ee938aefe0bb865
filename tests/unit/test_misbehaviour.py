"""What the other end may do wrong on a stream, and what comes of it.

A raw client against our server, and a raw server against our client. In each case the
outcome is the one that btlightning has, the connection answers the next request, and
no exchange is left.
"""

import asyncio

import pytest

from lightning._core.wire.messages import (
    HandshakeResponse,
    StreamChunk,
    StreamEnd,
    SynapsePacket,
    SynapseResponse,
)
from lightning.errors import (
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    StreamClosedEarly,
    StreamError,
    StreamReset,
    TransportError,
    UnexpectedMessage,
    UnknownMessageType,
)
from tests.support.inspection import in_flight
from tests.support.raw_peer import (
    NONE_EXPECTED,
    frame,
    is_accepted,
    raw_client,
    raw_server,
)
from tests.support.waiting import until_async

NOW = 1_795_572_719
LIMIT = 1_048_576


def packet(name: str = "echo", data: dict | None = None) -> bytes:
    return SynapsePacket(name, data or {}, NOW).to_frame()


def response_of(data: bytes) -> SynapseResponse:
    assert data[0] == 4
    return SynapseResponse.from_payload(data[5:])


# A client against our server.


@pytest.fixture
async def raw(start_server):
    """A raw client that has logged in, and the server."""
    server = await start_server(max_frame_payload_bytes=LIMIT, frame_timeout_secs=1)
    async with raw_client(server.local_addr().port) as client:
        assert is_accepted(await client.login())
        yield client, server
        # Whatever happened, the connection serves the next request.
        answer = response_of((await client.ask(packet(data={"n": 1}))).data)
        assert (answer.success, answer.data) == (True, {"n": 1})
        await until_async(lambda: not in_flight(server))


UNDECODABLE = {
    "empty": b"",
    "no msgpack": b"\xc1",
    "cut short": packet(data={"x": 1})[5:-3],
    "too few fields": b"\x92\xa4echo\x80",
    "too many fields": b"\x94\xa4echo\x80\x00\x00",
    "a number for the name": b"\x93\x01\x80\x00",
    "data is nil": b"\x93\xa4echo\xc0\x00",
    "data is pairs": b"\x93\xa4echo\x91\x92\xa1a\x01\x00",
    "a number as key": b"\x93\xa4echo\x81\x01\x01\x00",
    "timestamp negative": b"\x93\xa4echo\x80\xff",
    "timestamp a float": b"\x93\xa4echo\x80\xcb" + bytes(8),
    "name is no UTF-8": b"\x93\xa2\xff\xfe\x80\x00",
    "too deep": b"\x93\xa4echo\x81\xa1a" + b"\x91" * 1100 + b"\x90\x00",
    "4 G elements": b"\x93\xa4echo\x81\xa1a\xdd\xff\xff\xff\xff",
    "4 G bytes": b"\x93\xa4echo\x81\xa1a\xc6\xff\xff\xff\xff",
}


@pytest.mark.parametrize("payload", UNDECODABLE.values(), ids=UNDECODABLE)
async def test_a_request_that_does_not_decode(raw, payload):
    client, _ = raw
    answer = response_of((await client.ask(frame(3, payload))).data)
    assert (answer.success, answer.data) == (False, {})
    assert answer.error == "invalid request format"


async def test_a_request_that_does_not_decode_needs_no_login(start_server):
    server = await start_server()
    async with raw_client(server.local_addr().port) as client:
        answer = response_of((await client.ask(frame(3, b"\xc1"))).data)
        assert answer.error == "invalid request format"


@pytest.mark.parametrize("streams", [False, True])
async def test_a_request_without_a_login(start_server, streams):
    """Only the kind of frame tells that the name is a stream's."""
    server = await start_server(
        lambda server: server.register_streaming_handler("s", lambda data: [b"x"])
    )
    async with raw_client(server.local_addr().port) as client:
        data = (await client.ask(packet("s" if streams else "echo"))).data
        if streams:
            assert data[0] == 6
            assert StreamEnd.from_payload(data[5:]).error == "authentication failed"
        else:
            assert response_of(data).error == "authentication failed"
        unknown = response_of((await client.ask(packet("nobody"))).data)
        assert unknown.error == "authentication failed"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02\x03"])
async def test_a_login_that_does_not_decode(raw, payload):
    client, _ = raw
    data = (await client.ask(frame(1, payload))).data
    answer = HandshakeResponse.from_payload(data[5:])
    assert not answer.accepted
    assert (answer.miner_hotkey, answer.signature, answer.connection_id) == ("", "", "")
    assert answer.cert_fingerprint is None


async def test_a_login_that_does_not_decode_counts_for_the_rate_limit(start_server):
    server = await start_server(max_handshake_attempts_per_minute=3)
    async with raw_client(server.local_addr().port) as client:
        for _ in range(3):
            await client.ask(frame(1, b"\xc1"))
        assert not is_accepted(await client.login())


@pytest.mark.parametrize("kind", [2, 4, 5, 6])
async def test_a_message_that_is_no_request(raw, kind):
    """The answer is a FIN without bytes."""
    client, _ = raw
    stream = await client.ask(frame(kind, b"x"))
    assert (stream.data, stream.ended, stream.reset) == (b"", True, None)


@pytest.mark.parametrize(
    "data",
    [
        frame(0),
        frame(7),
        frame(255, b"x"),
        frame(3, length=LIMIT + 1),
        b"\x03" + b"\xff" * 4,
    ],
    ids=["type 0", "type 7", "type 255", "over the limit", "4 GiB"],
)
async def test_what_is_no_frame(raw, data):
    """A FIN without bytes, and STOP_SENDING(0) for what would follow."""
    client, _ = raw
    stream = client.start(data, fin=False)
    await stream.end()
    await stream.until(lambda: stream.stopped is not None)
    assert (stream.data, stream.ended, stream.stopped) == (b"", True, 0)


async def test_a_length_equal_to_the_limit_is_fine(raw):
    client, _ = raw
    payload = packet(data={"b": b""})[5:]
    room = LIMIT - len(payload) - 3
    body = SynapsePacket("echo", {"b": bytes(room)}, NOW).to_frame()
    assert len(body) == 5 + LIMIT
    assert len(response_of((await client.ask(body)).data).data["b"]) == room


@pytest.mark.parametrize("data", [b"", b"\x03", b"\x03\x00\x00", packet()[:-1]])
async def test_a_request_cut_short(raw, data):
    client, _ = raw
    stream = await client.ask(data)
    assert (stream.data, stream.ended) == (b"", True)


async def test_a_request_that_never_becomes_complete(raw):
    """It is given up after ``frame_timeout_secs``, for good."""
    client, _ = raw
    streams = [client.start(data, fin=False) for data in (b"\x03", packet()[:-1])]
    for stream in streams:
        await stream.end()
        assert (stream.data, stream.ended) == (b"", True)


@pytest.mark.parametrize("tail", [b"junk", packet("nobody")], ids=["junk", "frame"])
@pytest.mark.parametrize("fin", [True, False])
async def test_bytes_after_the_first_frame_are_ignored(raw, tail, fin):
    client, _ = raw
    stream = await client.ask(packet(data={"n": 2}) + tail, fin=fin)
    assert response_of(stream.data).data == {"n": 2}


async def test_a_fin_is_not_waited_for(raw):
    client, _ = raw
    stream = await client.ask(packet(data={"n": 2}), fin=False)
    assert response_of(stream.data).data == {"n": 2}
    await stream.until(lambda: stream.stopped is not None)
    assert stream.stopped == 0


async def test_bytes_after_the_message_in_its_frame_are_ignored(raw):
    client, _ = raw
    payload = packet(data={"n": 2})[5:] + b"junk"
    assert response_of((await client.ask(frame(3, payload))).data).data == {"n": 2}


async def test_a_request_that_is_reset(raw):
    client, _ = raw
    stream = client.start(packet()[:-1], fin=False)
    client.reset(stream.id, 7)
    await stream.end()
    assert stream.data == b""


async def test_an_answer_that_is_not_wanted(raw):
    """STOP_SENDING twice and a reset: the connection lives."""
    client, server = raw
    stream = client.start(packet()[:-1], fin=False)
    client.stop(stream.id, 0)
    client.stop(stream.id, 0)
    client.reset(stream.id, 0)
    await until_async(lambda: not in_flight(server))


# Our client against a server.

OK = SynapseResponse(True, {"n": 1}, NOW, None).to_frame()
CHUNK = StreamChunk(b"chunk").to_frame()
END = StreamEnd(True, None).to_frame()
LOGIN = HandshakeResponse("m", NOW, "s", True, "c", "f").to_frame()

UNARY = {
    "a chunk": (CHUNK, UnexpectedMessage, "use query_axon_stream"),
    "a stream's end": (END, UnexpectedMessage, "unexpected response type: StreamEnd"),
    "a login": (
        LOGIN,
        UnexpectedMessage,
        "unexpected response type: HandshakeResponse",
    ),
    "a request": (
        packet(),
        UnexpectedMessage,
        "unexpected response type: SynapsePacket",
    ),
    "type 0x77": (frame(0x77), UnknownMessageType, "unknown message type: 0x77"),
    "over the limit": (
        frame(4, length=LIMIT + 1),
        FrameTooLarge,
        f"frame payload {LIMIT + 1} bytes exceeds maximum {LIMIT}",
    ),
    "nothing": (b"", StreamClosedEarly, "stream closed after 0 of 5 bytes"),
    "half a header": (OK[:3], StreamClosedEarly, "stream closed after 3 of 5 bytes"),
    "half a payload": (OK[:-1], StreamClosedEarly, f"of {len(OK) - 5} bytes"),
    "no msgpack": (frame(4, b"\xc1"), DecodeError, "Failed to parse synapse response"),
    "an empty payload": (frame(4), DecodeError, "Failed to parse synapse response"),
    "too short": (frame(4, b"\x93\xc3\x80\x00"), DecodeError, "expected 4"),
}

STREAMED = {
    "a failed end": (
        StreamEnd(False, "handler timed out").to_frame(),
        StreamError,
        "stream error: handler timed out",
    ),
    "a failed end without text": (
        StreamEnd(False, None).to_frame(),
        StreamError,
        "stream ended with failure status",
    ),
    "an answer": (OK, StreamError, "error on streaming path: no detail"),
    "a failed answer": (
        SynapseResponse(False, {}, NOW, "unrecognized synapse type").to_frame(),
        StreamError,
        "server returned SynapseResponse error on streaming path: unrecognized",
    ),
    "a login": (LOGIN, StreamError, "unexpected message type during streaming"),
    "type 0x77": UNARY["type 0x77"],
    "over the limit": UNARY["over the limit"],
    "no end": (b"", StreamClosedEarly, "stream closed after 0 of 5 bytes"),
    "half a chunk": (CHUNK[:-1], StreamClosedEarly, "of 8 bytes"),
    "no msgpack": (frame(5, b"\xc1"), DecodeError, "msgpack|parse|reserved"),
}


class Scripted:
    """Answers the first request with what the test says, all later ones well."""

    def __init__(self, act) -> None:
        self.act = act
        self.streams = []

    def __call__(self, connection, stream, kind, payload) -> None:
        self.streams.append(stream)
        if len(self.streams) == 1:
            self.act(connection, stream)
        else:
            connection.send(stream.id, OK, True)


def says(data: bytes, fin: bool = True):
    return Scripted(lambda connection, stream: connection.send(stream.id, data, fin))


async def lives_on(client, server, answer) -> None:
    """The connection is still there, and nothing is left on it."""
    response = await client.query_axon(server.axon, {"synapse_type": "echo"}, 10)
    assert response.data == {"n": 1}
    assert len(server.connections) == 1
    await until_async(lambda: not in_flight(client))


@pytest.mark.parametrize("fin", [True, False], ids=["fin", "open"])
@pytest.mark.parametrize("case", UNARY)
async def test_an_answer_that_is_none(case, fin, make_client):
    data, kind, text = UNARY[case]
    if not fin and kind is StreamClosedEarly:
        # Without a FIN this is an answer that is still to come.
        kind, text = TransportError, "query timed out"
    answer = says(data, fin)
    async with raw_server(answer) as server:
        client = make_client(max_frame_payload_bytes=LIMIT)
        await client.initialize_connections([server.axon])
        with pytest.raises(kind, match=text):
            await client.query_axon(server.axon, {"synapse_type": "echo"}, 0.5)
        if not fin:
            stream = answer.streams[0]
            await stream.until(lambda: stream.stopped is not None)
            assert stream.stopped == 0
        await lives_on(client, server, answer)


@pytest.mark.parametrize("case", STREAMED)
async def test_a_streamed_answer_that_goes_wrong(case, make_client):
    data, kind, text = STREAMED[case]
    answer = says(CHUNK + data)
    async with raw_server(answer) as server:
        client = make_client(max_frame_payload_bytes=LIMIT)
        await client.initialize_connections([server.axon])
        stream = await client.query_axon_stream(server.axon, {"synapse_type": "s"})
        assert await stream.next_chunk() == b"chunk"
        with pytest.raises(kind, match=text):
            await stream.next_chunk()
        assert await stream.next_chunk() is None, "ended, and stays so"
        await lives_on(client, server, answer)


async def test_answers_that_are_reset(make_client):
    answer = Scripted(lambda connection, stream: connection.reset(stream.id, 7))
    async with raw_server(answer) as server:
        client = make_client()
        await client.initialize_connections([server.axon])
        with pytest.raises(
            StreamReset, match="stream reset by peer: error 7"
        ) as caught:
            await client.query_axon(server.axon, {"synapse_type": "echo"}, 10)
        assert (caught.value.code, caught.value.sending) == (7, False)
        await lives_on(client, server, answer)


async def test_a_streamed_answer_that_is_reset(make_client):
    def act(connection, stream):
        connection.send(stream.id, CHUNK)
        connection.reset(stream.id, 9)

    answer = Scripted(act)
    async with raw_server(answer) as server:
        client = make_client()
        await client.initialize_connections([server.axon])
        stream = await client.query_axon_stream(server.axon, {"synapse_type": "s"})
        with pytest.raises(StreamReset, match="error 9"):
            await stream.collect_all()
        await lives_on(client, server, answer)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_connection_that_is_closed_under_a_request(streamed, make_client):
    answer = Scripted(lambda connection, stream: connection.close_with(3, "so long"))
    async with raw_server(answer) as server:
        client = make_client()
        await client.initialize_connections([server.axon])
        request = {"synapse_type": "echo"}
        if streamed:
            stream = await client.query_axon_stream(server.axon, request)
            answering = stream.next_chunk()
        else:
            answering = client.query_axon(server.axon, request, 10)
        with pytest.raises(ConnectionClosed, match="connection lost") as caught:
            await answering
        error = caught.value
        assert (error.initiator, error.code, error.reason) == ("remote", 3, "so long")
        # The next request dials again.
        answer.act = lambda connection, stream: None
        response = await client.query_axon(server.axon, request, 10)
        assert response.success
        assert len(server.connections) == 2


async def test_a_reason_is_only_text(make_client):
    """A peer that closes with the words of a timeout has closed all the same."""
    answer = Scripted(
        lambda connection, stream: connection.close_with(1, "Idle timeout")
    )
    async with raw_server(answer) as server:
        client = make_client()
        await client.initialize_connections([server.axon])
        with pytest.raises(ConnectionClosed) as caught:
            await client.query_axon(server.axon, {"synapse_type": "echo"}, 10)
        error = caught.value
        assert (error.initiator, error.timed_out) == ("remote", False)


async def test_no_answer_at_all_waits_as_long_as_it_was_told(make_client):
    answer = Scripted(lambda connection, stream: None)
    async with raw_server(answer) as server:
        client = make_client()
        await client.initialize_connections([server.axon])
        with pytest.raises(TimeoutError, match="query timed out"):
            await client.query_axon(
                server.axon, {"synapse_type": "echo"}, NONE_EXPECTED
            )
        stream = answer.streams[0]
        await stream.until(lambda: stream.stopped is not None)
        await lives_on(client, server, answer)


async def test_an_answer_byte_by_byte(make_client):
    async def trickle(connection, stream):
        for position in range(len(OK)):
            connection.send(stream.id, OK[position : position + 1])
            await asyncio.sleep(0)
        connection.send(stream.id, b"", True)

    tasks = []
    answer = Scripted(lambda *args: tasks.append(asyncio.ensure_future(trickle(*args))))
    async with raw_server(answer) as server:
        client = make_client()
        await client.initialize_connections([server.axon])
        response = await client.query_axon(server.axon, {"synapse_type": "echo"}, 10)
        assert response.data == {"n": 1}
        await asyncio.gather(*tasks)
        await lives_on(client, server, answer)


# A server whose login is not what it should be.

LIES = {
    "refuses": (
        {"accepted": False},
        "HandshakeRejected",
        "rejected by miner",
    ),
    "another miner": ({"miner_hotkey": "5Other"}, "HotkeyMismatch", "expected miner"),
    "no fingerprint": (
        {"cert_fingerprint": None},
        "FingerprintMismatch",
        "no certificate fingerprint",
    ),
    "another fingerprint": (
        {"cert_fingerprint": "A" * 43 + "="},
        "FingerprintMismatch",
        "expected certificate fingerprint",
    ),
    "no signature": ({"signature": ""}, "SignatureInvalid", "empty signature"),
    "no base64": ({"signature": "*"}, "SignatureInvalid", "Failed to decode signature"),
    "a short signature": (
        {"signature": "AAAA"},
        "SignatureInvalid",
        "Invalid signature length",
    ),
    "another text signed": (
        {"timestamp": 1},
        "SignatureInvalid",
        "signature verification failed",
    ),
}


@pytest.mark.parametrize("case", LIES)
async def test_a_login_answer_that_is_not_the_miners(case, make_client):
    changes, kind, text = LIES[case]

    def prepare(server):
        def lie(connection, request):
            honest = HandshakeResponse.from_payload(server.honest_login(request)[5:])
            fields = (
                "miner_hotkey",
                "timestamp",
                "signature",
                "accepted",
                "connection_id",
                "cert_fingerprint",
            )
            return HandshakeResponse(
                **{name: getattr(honest, name) for name in fields} | changes
            ).to_frame()

        server.answer_login = lie

    async with raw_server(prepare=prepare) as server:
        client = make_client()
        await client.create_endpoint()
        with pytest.raises(ConnectionError, match=text) as caught:
            await client.query_axon(server.axon, {"synapse_type": "echo"}, 10)
        assert type(caught.value).__name__ == kind
        assert caught.value.address == f"127.0.0.1:{server.port}"
        assert server.requests == 0, "nothing was asked of a stranger"
        assert await client.authenticated_hotkeys() == set()


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", StreamClosedEarly),
        (OK, UnexpectedMessage),
        (frame(2, b"\xc1"), DecodeError),
        (frame(2, b"\x94\xa1m\x00\xa1s\xc3"), DecodeError),
    ],
    ids=["nothing", "another message", "no msgpack", "too short"],
)
async def test_a_login_answer_that_is_none(reply, kind, make_client):
    def prepare(server):
        server.answer_login = lambda connection, request: reply

    async with raw_server(prepare=prepare) as server:
        client = make_client()
        await client.create_endpoint()
        with pytest.raises(kind):
            await client.query_axon(server.axon, {"synapse_type": "echo"}, 10)
        assert server.requests == 0
