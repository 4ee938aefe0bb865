"""What is asked and answered on a connection, from a stream's bytes to a frame.

Our ends are links without the faces above them, so that each moment can be chosen; the
other ends are raw, or ours. What a peer may do wrong is in `test_misbehaviour`.
"""

import asyncio
import socket
import time

import pytest

from lightning._core.io.links import Call, ServerExchange
from lightning._core.io.transport import ClientEndpoint, TransportConfig
from lightning.errors import (
    ConnectionClosed,
    FrameTooLarge,
    RequestTimeout,
    StreamClosedEarly,
    StreamReset,
    UnknownMessageType,
)
from tests.support.raw_peer import frame, raw_client, raw_server
from tests.support.waiting import until, until_async
from tests.unit import test_transport
from tests.unit.test_transport import CONFIG, Server

endpoints = test_transport.endpoints


@pytest.fixture
async def raw_dial():
    """Connect to a raw server; closed at the end."""
    opened = []

    async def dial(server, **settings):
        endpoint = ClientEndpoint(TransportConfig(**{**CONFIG, **settings}))
        opened.append(endpoint)
        await endpoint.open(socket.AF_INET)
        return await endpoint.connect(("127.0.0.1", server.port))

    yield dial
    for endpoint in opened:
        endpoint.close("")
    await asyncio.sleep(0)


def begin(connection, payload=b"q"):
    """Start a call; returns it, and the future of its end."""
    future = asyncio.get_running_loop().create_future()
    return connection.call(frame(2, payload), future), future


async def end(future):
    """Wait for the end of a call."""
    async with asyncio.timeout(10):
        return await future


# Calls.


async def test_a_call_and_its_answer(endpoints):
    serve, dial = endpoints
    connection = await dial(await serve())
    call, future = begin(connection)
    assert connection.under_way == 1
    assert await end(future) is call
    assert (call.kind(), call.answer(), call.future) == (4, (4, b"q"), future)
    assert 0 < call.seconds < 10
    assert connection.under_way == 0


async def test_an_empty_answer_and_a_large_one(endpoints):
    """A frame without payload is complete with its header."""
    serve, dial = endpoints
    connection = await dial(await serve())
    for size in (0, 1, 65536, 65537, 1 << 20):
        body = bytes([size & 255]) * size
        call, future = begin(connection, body)
        await end(future)
        assert call.answer() == (4, body)


@pytest.mark.parametrize(
    ("data", "error", "fields"),
    [
        (b"", StreamClosedEarly, {"received": 0, "expected": 5}),
        (b"\x04\x00", StreamClosedEarly, {"received": 2, "expected": 5}),
        (frame(4, b"abc")[:-1], StreamClosedEarly, {"received": 2, "expected": 3}),
        (frame(0x77), UnknownMessageType, {}),
        (frame(4, b"", CONFIG["max_frame_payload"] + 1), FrameTooLarge, {}),
        (b"\x04\xff\xff\xff\xff", FrameTooLarge, {"limit": 1 << 20}),
    ],
)
async def test_what_is_no_answer_is_named(raw_dial, data, error, fields):
    def answer(peer, stream, kind, payload):
        peer.send(stream.id, data, True)

    async with raw_server(answer) as server:
        connection = await raw_dial(server)
        call, future = begin(connection)
        await end(future)
        with pytest.raises(error) as caught:
            call.answer()
        with pytest.raises(error):
            call.kind()
        with pytest.raises(error):
            call.message()
        for name, value in fields.items():
            assert getattr(caught.value, name) == value


@pytest.mark.parametrize("apart", [False, True])
async def test_a_refused_request_is_told_apart_from_a_lost_answer(raw_dial, apart):
    """The peer stops it unread and finishes with nothing, mostly in one datagram."""

    def refuse(peer, stream):
        if not getattr(stream, "seen", False):
            stream.seen = True
            peer._quic.stop_stream(stream.id, 7)
            if apart:
                peer.transmit()
            peer._quic.send_stream_data(stream.id, b"", True)
            peer.transmit()

    # More than the peer's window, so that it is not sent in full.
    async with raw_server(max_stream_data=1000) as server:
        connection = await raw_dial(server)
        server.connections[0].on_data = refuse
        call, future = begin(connection, bytes(10_000))
        await end(future)
        with pytest.raises(StreamReset) as caught:
            call.answer()
        assert (caught.value.code, caught.value.sending) == (7, True)


async def test_an_answer_may_come_before_the_request_was_read(raw_dial):
    """A server that has read all it needs stops the rest, which is normal."""

    def answer(peer, stream):
        if not getattr(stream, "seen", False):
            stream.seen = True
            peer._quic.stop_stream(stream.id, 0)
            peer._quic.send_stream_data(stream.id, frame(4, b"a"), True)
            peer.transmit()

    async with raw_server(max_stream_data=1000) as server:
        connection = await raw_dial(server)
        server.connections[0].on_data = answer
        call, future = begin(connection, bytes(10_000))
        await end(future)
        assert call.answer() == (4, b"a")


async def test_a_reset_carries_its_code(raw_dial):
    def answer(peer, stream, kind, payload):
        peer.reset(stream.id, 9)

    async with raw_server(answer) as server:
        call, future = begin(await raw_dial(server))
        await end(future)
        with pytest.raises(StreamReset) as caught:
            call.answer()
        assert (caught.value.code, caught.value.sending) == (9, False)


async def test_calls_wait_for_streams_and_keep_their_order(endpoints):
    serve, dial = endpoints
    server = await serve(max_streams=2)
    server.answers = False
    connection = await dial(server)
    begun = [begin(connection, b"%d" % n) for n in range(7)]
    await until_async(lambda: len(server.requests) == 2)
    assert connection.under_way == 7
    # From the middle, from the end, and one that is on its way.
    for gone in (3, 6, 0):
        begun[gone][0].cancel()
    assert connection.under_way == 4
    asked = []
    while len(asked) < 4:
        await until_async(lambda: server.requests)
        _, exchange, _, payload = server.requests.pop(0)
        if exchange.respond(frame(4, payload)):
            asked.append(payload)
            if payload == b"0":
                asked.pop()
    for gone in (3, 6, 0):
        assert not begun[gone][1].done()
    for n in (1, 2, 4, 5):
        assert await end(begun[n][1]) is begun[n][0]
        assert begun[n][0].answer() == (4, b"%d" % n)
    assert asked == [b"1", b"2", b"4", b"5"]
    await until_async(lambda: not connection.under_way)


async def test_a_lost_connection_ends_every_call(endpoints):
    """On their way, waiting for a stream, and answered already: that one keeps it."""
    serve, dial = endpoints
    server = await serve(max_streams=2)
    server.answers = False
    connection = await dial(server)
    begun = [begin(connection, b"%d" % n) for n in range(5)]
    await until_async(lambda: len(server.requests) == 2)
    server.requests[0][1].respond(frame(4, b"a"))
    await end(begun[0][1])
    connection.close("enough", 3)
    assert connection.under_way == 0
    assert begun[0][0].answer() == (4, b"a")
    for call, future in begun[1:]:
        await end(future)
        with pytest.raises(ConnectionClosed, match="enough"):
            call.answer()
    with pytest.raises(ConnectionClosed, match="enough"):
        begin(connection)


async def test_a_call_may_be_cancelled_at_any_moment(endpoints):
    """Nobody hears of it after, and the server does."""
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    cancelled = []
    connection = await dial(server)
    # Before anything was sent.
    call, future = begin(connection)
    call.cancel()
    call.cancel()
    # When the server has it.
    server.requests.clear()
    call, other = begin(connection)
    await until_async(lambda: server.requests)
    server.requests[-1][1].on_cancel = lambda: cancelled.append(1)
    call.cancel()
    await until_async(lambda: cancelled)
    assert not server.requests[-1][1].respond(frame(4))
    assert not future.done()
    assert not other.done()
    # When it has ended.
    server.answers = True
    call, future = begin(connection)
    await end(future)
    call.cancel()
    assert call.answer() == (4, b"q")
    assert connection.under_way == 0
    await until_async(lambda: not server.connections[0].under_way)


async def test_a_call_that_nobody_waits_for_frees_its_stream(endpoints):
    serve, dial = endpoints
    server = await serve(max_streams=4)
    connection = await dial(server)
    for _ in range(50):
        call, future = begin(connection)
        future.cancel()
        call.cancel()
    call, future = begin(connection)
    await end(future)
    assert call.answer() == (4, b"q")


@pytest.mark.parametrize(
    "order", ["answer close", "close answer", "answer timeout", "timeout answer"]
)
async def test_of_a_call_only_the_first_outcome_counts(endpoints, order):
    """Whatever follows before its owner has heard of the end."""
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    connection = await dial(server)
    future = asyncio.get_running_loop().create_future()
    first = order.split()[0]
    timeout = {"answer timeout": 0.5, "timeout answer": 0.01}.get(order)
    began = time.monotonic()
    call = connection.call(frame(2, b"q"), future, timeout)
    await until_async(lambda: server.requests)
    # From here on the loop stands still; the sockets' own threads go on.
    if first == "answer":
        assert server.requests[0][1].respond(frame(4, b"a"))
        server.endpoint.flush()
    elif first == "close":
        connection.close("enough")
    until(lambda: not connection.under_way)
    if first != "answer":
        server.requests[0][1].respond(frame(4, b"a"))
        server.endpoint.flush()
    elif order == "answer close":
        connection.close("enough")
    else:
        until(lambda: time.monotonic() - began > 0.5)
    await end(future)
    if first == "answer":
        assert call.answer() == (4, b"a")
    else:
        error = ConnectionClosed if first == "close" else RequestTimeout
        with pytest.raises(error):
            call.answer()


def test_calls_and_exchanges_are_not_made_by_hand():
    with pytest.raises(TypeError, match="made by Link"):
        Call()
    with pytest.raises(TypeError, match="made by Driver"):
        ServerExchange()


# Requests.


async def test_a_request_is_handed_on_once_and_whole(endpoints):
    """In any pieces, without waiting for its FIN; what follows it is ignored."""
    serve, _ = endpoints
    server = await serve(retry=False)
    port = server.endpoint.local_addr.port
    async with raw_client(port) as client:
        data = frame(2, b"payload") + b"more"
        for cut in (1, 5, 6, len(data) - 5):
            stream = client.start(data[:cut], False)
            await client.ping()
            client.send(stream.id, data[cut:])
            assert (await stream.end()).data == frame(4, b"payload")
            await stream.until(lambda stream=stream: stream.stopped == 0)
    assert len(server.requests) == 4
    assert len({id(exchange) for _, exchange, _, _ in server.requests}) == 4


@pytest.mark.parametrize(
    "data", [b"", b"\x02", frame(2, b"abc")[:-1], frame(0), frame(0x77, b"x")]
)
async def test_what_is_no_request_is_answered_with_an_empty_end(endpoints, data):
    serve, _ = endpoints
    server = await serve(retry=False)
    async with raw_client(server.endpoint.local_addr.port) as client:
        stream = await client.ask(data)
        assert (stream.data, stream.reset) == (b"", None)
        assert not server.requests
        assert (await client.ask(frame(2, b"q"))).data == frame(4, b"q")


async def test_a_request_over_the_limit_is_not_waited_for(endpoints):
    """A limit holds for what begins after it was set."""
    serve, _ = endpoints
    server = await serve(retry=False, max_frame_payload=100)
    async with raw_client(server.endpoint.local_addr.port) as client:
        stream = await client.ask(frame(2, bytes(101))[:5], False)
        assert (stream.data, stream.stopped) == (b"", 0)
        assert (await client.ask(frame(2, bytes(100)))).data == frame(4, bytes(100))
        server.connections[0].max_payload = 101
        assert server.connections[0].max_payload == 101
        assert (await client.ask(frame(2, bytes(101)))).data == frame(4, bytes(101))
    assert len(server.requests) == 2


async def test_requests_that_never_become_complete_are_given_up(endpoints):
    serve, _ = endpoints
    server = await serve(retry=False)
    server.answers = False
    loop = asyncio.get_running_loop()
    async with raw_client(server.endpoint.local_addr.port) as client:
        early = client.start(b"\x02", False)
        complete = client.start(frame(2, b"q"))
        await until_async(lambda: server.requests)
        (connection,) = server.connections
        assert connection.under_way == 2
        now = loop.time()
        server.endpoint.expire(now - 60)
        assert connection.under_way == 2
        server.endpoint.expire(now)
        assert ((await early.end()).data, early.stopped) == (b"", 0)
        assert connection.under_way == 1
        assert server.requests[0][1].respond(frame(4))
        assert (await complete.end()).data == frame(4)
        assert connection.under_way == 0


async def test_streams_of_other_kinds_start_nothing(endpoints):
    serve, _ = endpoints
    server = await serve(retry=False)
    async with raw_client(server.endpoint.local_addr.port) as client:
        with_one_end = client._quic.get_next_available_stream_id(is_unidirectional=True)
        try:
            client.send(with_one_end, frame(2, b"q"), True)
            answer = await client.ask(frame(2, b"other"))
            assert answer.data == frame(4, b"other")
        except (ValueError, ConnectionError):
            assert client.terminated is not None
    assert [payload for *_, payload in server.requests] in ([b"other"], [])


async def test_a_client_that_wants_no_answer_cancels_once(endpoints):
    serve, _ = endpoints
    server = await serve(retry=False)
    server.answers = False
    cancelled = []
    async with raw_client(server.endpoint.local_addr.port) as client:
        stream = client.start(frame(2, b"q"))
        await until_async(lambda: server.requests)
        _, exchange, _, _ = server.requests[0]
        assert exchange.connection is server.connections[0]
        assert f"stream={stream.id}" in repr(exchange)
        exchange.on_cancel = lambda: cancelled.append(1)
        client.stop(stream.id, 0)
        await until_async(lambda: cancelled)
        assert exchange.cancelled
        assert not exchange.respond(frame(4))
        # Also before it is complete: then nobody hears of it.
        stream = client.start(frame(2, b"abc")[:-1], False)
        await client.ping()
        client.stop(stream.id, 0)
        await stream.until(lambda: stream.stopped == 0)
        server.answers = True
        assert (await client.ask(frame(2, b"q"))).data == frame(4, b"q")
    assert (cancelled, len(server.requests)) == ([1], 2)


async def test_a_reset_request_is_nobodys(endpoints):
    serve, _ = endpoints
    server = await serve(retry=False)
    async with raw_client(server.endpoint.local_addr.port) as client:
        stream = client.start(frame(2, b"abc")[:-1], False)
        await client.ping()
        client.reset(stream.id, 5)
        assert (await client.ask(frame(2, b"q"))).data == frame(4, b"q")
        await until_async(lambda: not server.connections[0].under_way)
    assert len(server.requests) == 1


async def test_a_lost_connection_cancels_what_runs(endpoints):
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    connection = await dial(server)
    _, future = begin(connection)
    await until_async(lambda: server.requests)
    cancelled = []
    server.requests[0][1].on_cancel = lambda: cancelled.append(1)
    connection.close("")
    await until_async(lambda: cancelled)
    assert not server.requests[0][1].respond(frame(4))
    assert server.connections[0].under_way == 0
    await end(future)
    assert cancelled == [1]


async def test_a_client_gets_new_streams_whatever_becomes_of_the_old(endpoints):
    """Answered, stopped, reset and refused ones all give their credit back."""
    serve, _ = endpoints
    server = await serve(retry=False, max_streams=16)
    async with raw_client(server.endpoint.local_addr.port) as client:
        for turn in range(60):
            kind = turn % 4
            if kind == 0:
                assert (await client.ask(frame(2, b"q"))).data == frame(4, b"q")
            elif kind == 1:
                stream = client.start(b"\x02", False)
                client.reset(stream.id, 1)
            elif kind == 2:
                await client.ask(frame(0x55))
            else:
                stream = client.start(frame(2, b"x"))
                client.stop(stream.id, 0)
        assert (await client.ask(frame(2, b"last"))).data == frame(4, b"last")
        await until_async(lambda: not server.connections[0].under_way)


async def test_a_server_of_ours_takes_what_it_is_given(endpoints):
    """A streamed answer frame by frame, then nothing more."""
    serve, dial = endpoints
    server: Server = await serve()
    server.answers = False
    connection = await dial(server)
    call, future = begin(connection)
    await until_async(lambda: server.requests)
    exchange = server.requests[0][1]
    assert exchange.respond(frame(5, b"one"), False)
    assert exchange.respond(frame(6, b"two"))
    assert not exchange.respond(frame(6, b"three"))
    await end(future)
    assert call.answer() == (5, b"one"), "a call wants one frame"
