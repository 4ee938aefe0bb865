"""The driver on real loopback sockets, without the faces above it."""

import ast
import asyncio
import errno
import gc
import os
import re
import socket
import weakref
from pathlib import Path

import pytest

import lightning
from lightning._core.io import transport
from lightning._core.io.transport import (
    ClientEndpoint,
    Connection,
    Identity,
    ServerEndpoint,
    TransportConfig,
    open_socket,
)
from lightning.errors import ConnectionClosed, LightningConnectionError, StreamReset
from tests.support.raw_peer import frame, raw_client, raw_server
from tests.support.udp_relay import udp_relay
from tests.support.waiting import until_async

CONFIG = {"idle_timeout": 30, "keep_alive_interval": 10, "max_frame_payload": 1 << 20}
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Server:
    """A server endpoint that answers every request with its payload."""

    def __init__(self, **settings: object) -> None:
        self.identity = Identity.generate()
        self.connections: list[Connection] = []
        self.requests: list[tuple] = []
        self.answers = True
        self.endpoint = ServerEndpoint(
            TransportConfig(**{**CONFIG, **settings}),
            self.identity,
            on_connection=self.connections.append,
            on_request=self.on_request,
        )

    def on_request(self, connection, exchange, kind, payload) -> None:
        self.requests.append((connection, exchange, kind, payload))
        if self.answers:
            exchange.respond(frame(4, payload))


@pytest.fixture
async def endpoints():
    """Open endpoints; they are closed at the end."""
    opened = []

    async def serve(family: int = socket.AF_INET, **settings: object) -> Server:
        server = Server(**settings)
        await server.endpoint.open(family, (LOOPBACK[family], 0))
        opened.append(server.endpoint)
        return server

    async def dial(server: Server | int, family: int = socket.AF_INET, **settings):
        port = server if isinstance(server, int) else server.endpoint.local_addr.port
        endpoint = ClientEndpoint(TransportConfig(**{**CONFIG, **settings}))
        await endpoint.open(family)
        opened.append(endpoint)
        rest = (0, 0) if family == socket.AF_INET6 else ()
        return await endpoint.connect((LOOPBACK[family], port, *rest))

    yield serve, dial
    for endpoint in opened:
        endpoint.close("")
    await asyncio.sleep(0)


async def ask(connection: Connection, payload: bytes = b"q") -> bytes:
    """Send one request and wait for the payload of its answer."""
    answer = asyncio.get_running_loop().create_future()
    connection.exchanges.start(
        frame(2, payload),
        lambda exchange, kind, data: (exchange.complete(), answer.set_result(data)),
        lambda exchange, error: answer.set_exception(error),
    )
    async with asyncio.timeout(10):
        return await answer


# The boundary.


def test_only_the_engine_knows_aioquic():
    """Nothing else may touch a type of aioquic."""
    root = Path(lightning.__file__).parent
    found = set()
    for path in root.rglob("*"):
        if root / "_core/quic" in path.parents:
            continue
        if path.suffix == ".py":
            tree = ast.parse(path.read_text())
            modules = [
                name
                for node in ast.walk(tree)
                for name in (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else []
                )
            ]
        elif path.suffix in (".pyx", ".pxd", ".pyi"):
            modules = re.findall(
                r"^\s*(?:from|c?import) (\S+)", path.read_text(), re.MULTILINE
            )
        else:
            continue
        if any(module.split(".")[0] == "aioquic" for module in modules):
            found.add(path)
    assert not found


# Connections.


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_request_and_its_answer(endpoints, family, retry):
    serve, dial = endpoints
    server = await serve(family, retry=retry)
    connection = await dial(server, family)
    assert await ask(connection) == b"q"
    assert connection.certificate == server.identity.der
    assert connection.is_alive
    ip, port = connection.address
    assert (ip, port) == (LOOPBACK[family], server.endpoint.local_addr.port)
    await until_async(lambda: not len(connection.exchanges))
    (other,) = server.connections
    await until_async(lambda: not len(other.exchanges))


async def test_a_connection_takes_few_datagrams(endpoints):
    """What TLS says leaves with the acknowledgement of what it answers."""
    serve, dial = endpoints
    server = await serve(retry=True)
    connection = await dial(server)
    await ask(connection)
    # Four each: the Retry or what it answers, a flight, what completes it, a request
    # or its answer. A slow machine may acknowledge once more.
    assert connection._endpoint.stats()["sent"] <= 5
    assert server.endpoint.stats()["sent"] <= 5


async def test_an_ipv4_client_of_an_ipv6_socket_is_seen_as_what_it_is(endpoints):
    _serve, dial = endpoints
    server = Server()
    await server.endpoint.open(socket.AF_INET6, ("::", 0))
    try:
        connection = await dial(server.endpoint.local_addr.port)
        await ask(connection)
        assert server.connections[0].address.ip == "127.0.0.1"
    finally:
        server.endpoint.close("")


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
)
async def test_a_server_of_all_addresses_answers_from_the_one_that_was_dialled(
    family, host
):
    """A host may have several; the first is not the one that the client knows."""
    server = Server()
    await server.endpoint.open(family, (host, 0))
    client = ClientEndpoint(TransportConfig(**CONFIG))
    await client.open(socket.AF_INET)
    async with asyncio.timeout(10):
        port = server.endpoint.local_addr.port
        connection = await client.connect(("127.0.0.2", port))
        assert await ask(connection, b"hello") == b"hello"
    client.close("")
    server.endpoint.close("")


async def test_a_close_tells_who_code_and_reason_at_both_ends(endpoints):
    serve, dial = endpoints
    server = await serve()
    connection = await dial(server)
    await ask(connection)
    (other,) = server.connections
    closed = []
    for end in (connection, other):
        end.on_closed = closed.append
    connection.close("enough", 7)
    connection.close("again", 8)
    await until_async(lambda: len(closed) == 2)
    assert closed == [connection, other]
    here, there = connection.closed(), other.closed()
    assert (here.initiator, here.code, here.reason) == ("local", 7, "enough")
    assert (there.initiator, there.code, there.reason) == ("remote", 7, "enough")
    assert str(there) == (
        "transport error: read error: connection lost (remote close, code 0x7: enough)"
    )
    with pytest.raises(ConnectionClosed, match="enough"):
        await ask(connection)
    assert other.closed() is not other.closed(), "one for each who asks"


async def test_what_is_closed_is_forgotten(endpoints):
    """Nothing of it is left when the closing period is over."""
    serve, dial = endpoints
    server = await serve()
    connection = await dial(server)
    await ask(connection)
    client = connection._endpoint
    assert client.connections
    assert server.endpoint.connections
    connection.close()
    await until_async(
        lambda: not client.connections and not server.endpoint.connections
    )
    del connection
    server.connections.clear()
    server.requests.clear()
    gc.collect()
    # The engine keeps them for three PTOs more (RFC 9000 10.2).
    for end in (client, server.endpoint):
        await until_async(lambda end=end: not end.stats()["connections"])
        assert end.stats()["streams_in_use"] == end.stats()["blocks_in_use"] == 0


async def test_closing_an_endpoint_closes_its_connections_at_once(endpoints):
    serve, dial = endpoints
    server = await serve()
    connections = [await dial(server) for _ in range(3)]
    for connection in connections:
        await ask(connection)
    server.endpoint.close("bye")
    assert not server.endpoint.connections
    server.endpoint.close("twice")
    await until_async(lambda: not any(c.is_alive for c in connections))
    assert {c.closed().reason for c in connections} == {"bye"}


async def test_silence_ends_a_connection(endpoints):
    serve, dial = endpoints
    server = await serve()
    async with udp_relay(*server.endpoint.local_addr) as relay:
        connection = await dial(relay.port, idle_timeout=0.3, keep_alive_interval=10)
        relay.is_open = False
        await until_async(lambda: not connection.is_alive)
    error = connection.closed()
    assert (error.initiator, error.timed_out) == ("local", True)


async def test_keep_alives_keep_it_alive_even_for_a_peer_with_less_patience(endpoints):
    """At least twice in the smaller of both ends' idle timeouts."""
    serve, dial = endpoints
    server = await serve(idle_timeout=0.4, keep_alive_interval=20)
    connection = await dial(server, keep_alive_interval=20)
    (other,) = server.connections
    start = connection._endpoint.loop.time()
    await until_async(lambda: connection._endpoint.loop.time() - start > 1)
    assert connection.is_alive
    assert other.is_alive


async def test_a_dial_that_is_cancelled_leaves_nothing(endpoints):
    serve, dial = endpoints
    server = await serve()
    server.endpoint.set_open(False)
    dropped = server.endpoint.stats()["datagrams_dropped"]
    task = asyncio.create_task(dial(server))
    await until_async(lambda: server.endpoint.stats()["datagrams_dropped"] > dropped)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_wrong_alpn_is_a_named_failure(endpoints):
    serve, dial = endpoints
    server = await serve()
    with pytest.raises(ConnectionError):
        async with raw_client(
            server.endpoint.local_addr.port, alpn_protocols=["other"]
        ):
            pass
    async with raw_server(alpn_protocols=["other"]) as raw:
        with pytest.raises(ConnectionClosed) as caught:
            await dial(raw.port)
    assert (caught.value.initiator, caught.value.code) == ("remote", 0x178)


async def test_streams_wait_for_the_peers_limit(endpoints):
    serve, dial = endpoints
    server = await serve(max_streams=2)
    connection = await dial(server)
    answers = await asyncio.gather(
        *(ask(connection, str(n).encode()) for n in range(50))
    )
    assert answers == [str(n).encode() for n in range(50)]


async def test_a_stream_beyond_the_limit_ends_the_connection(endpoints):
    """STREAM_LIMIT_ERROR (RFC 9000 section 4.6)."""
    serve, _ = endpoints
    server = await serve(max_streams=2)
    async with raw_client(server.endpoint.local_addr.port) as raw:
        raw._quic._remote_max_streams_bidi = 100
        for _ in range(3):
            raw.start(b"\x03", fin=False)
        await until_async(lambda: raw.terminated)
        assert raw.terminated.error_code == 4
    (connection,) = server.connections
    assert connection.closed().initiator == "local"


async def test_paused_streams_hold_up_the_sender(endpoints):
    """The window of a paused stream is not opened, that of others is."""
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    connection = await dial(server)
    received = []
    exchange = connection.exchanges.start(
        frame(2), lambda e, k, p: received.append(p), lambda e, x: None
    )
    exchange.pause()
    await until_async(lambda: server.requests)
    other, answer, _, _ = server.requests.pop()
    chunk = frame(5, bytes(100_000))
    for _ in range(40):
        answer.respond(chunk, False)
    server.answers = True
    assert await ask(connection, bytes(1_000_000)) == bytes(1_000_000)
    size = sum(map(len, received))
    assert size <= transport.STREAM_WINDOW
    assert other.has_unsent
    waiter = other.sent(answer.stream_id)
    assert waiter is not None
    exchange.resume()
    async with asyncio.timeout(10):
        await waiter
    await until_async(lambda: len(received) == 40)
    await until_async(lambda: not other.has_unsent)
    assert other.sent(answer.stream_id) is None
    exchange.cancel()
    await until_async(lambda: not len(connection.exchanges))


@pytest.mark.parametrize("end", ["close", "failure"])
async def test_who_waits_for_room_is_woken_by_the_end(end, endpoints, unforeseen):
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    connection = await dial(server)
    exchange = connection.exchanges.start(
        frame(2), lambda e, k, p: None, lambda e, x: None
    )
    exchange.pause()
    await until_async(lambda: server.requests)
    other, answer, _, _ = server.requests.pop()
    answer.respond(frame(5, bytes(5_000_000)), False)
    waiter = other.sent(answer.stream_id)
    if end == "close":
        other.close()
    else:
        answer.on_cancel = lambda: 1 // 0
        exchange.cancel()
    async with asyncio.timeout(10):
        await waiter
    assert other.sent(answer.stream_id) is None
    assert len(unforeseen) == (end == "failure")
    unforeseen.clear()


async def test_stop_and_reset_of_what_has_ended_are_fine(endpoints):
    serve, dial = endpoints
    connection = await dial(await serve())
    await ask(connection)
    await until_async(lambda: not connection._endpoint.stats()["streams_in_use"])
    connection.stop(0, 0)
    connection.reset(0, 0)
    connection.stop(400, 0)
    connection.reset(401, 0)
    assert await ask(connection) == b"q"


async def test_a_reset_reaches_the_exchange(endpoints):
    _, dial = endpoints
    async with raw_server(lambda c, s, kind, payload: c.reset(s.id, 9)) as raw:
        connection = await dial(raw.port)
        with pytest.raises(StreamReset, match="error 9"):
            await ask(connection)


async def test_a_peer_may_change_its_connection_ids(endpoints):
    """Requests go on, and no identifier stays behind."""
    serve, _ = endpoints
    server = await serve()
    async with raw_client(server.endpoint.local_addr.port) as raw:
        for _ in range(5):
            assert (await raw.ask(frame(2, b"q"))).data == frame(4, b"q")
            raw._quic.change_connection_id()
            raw.transmit()
        assert (await raw.ask(frame(2, b"q"))).data == frame(4, b"q")
    await until_async(lambda: not server.endpoint.connections)


# Strangers.


async def test_a_source_that_is_not_listed_gets_no_answer(endpoints):
    serve, dial = endpoints
    server = await serve()
    before = await dial(server)
    server.endpoint.set_sources(["127.0.0.2", "::1"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await dial(server)
    assert len(server.connections) == 1
    assert await ask(before) == b"q", "what is established goes on"
    server.endpoint.set_sources(["::ffff:127.0.0.1"])
    await ask(await dial(server))
    server.endpoint.set_sources([])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await dial(server)
    server.endpoint.set_sources(None)
    await ask(await dial(server))


async def test_a_text_that_is_no_address_leaves_the_list_as_it_is(endpoints):
    serve, dial = endpoints
    server = await serve()
    server.endpoint.set_sources(["127.0.0.1"])
    with pytest.raises(ValueError, match="localhost"):
        server.endpoint.set_sources(["127.0.0.2", "localhost"])
    await ask(await dial(server))


async def test_a_server_that_is_shut_drops_new_ones_only(endpoints):
    serve, dial = endpoints
    server = await serve()
    connection = await dial(server)
    server.endpoint.set_open(False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await dial(server)
    assert await ask(connection) == b"q"
    assert len(server.connections) == 1
    server.endpoint.set_open(True)
    await ask(await dial(server))


async def test_a_full_server_refuses_new_ones_only(endpoints):
    serve, dial = endpoints
    server = await serve(max_connections=1)
    connection = await dial(server)
    with pytest.raises(ConnectionClosed) as caught:
        await dial(server)
    assert caught.value.code == 0x2, "CONNECTION_REFUSED (RFC 9000 20.1)"
    assert caught.value.code_name == "CONNECTION_REFUSED"
    assert await ask(connection) == b"q"


async def test_a_port_where_nobody_listens_fails_the_dial_at_once(endpoints):
    _, dial = endpoints
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionClosed, match="nobody listens there") as caught:
        async with asyncio.timeout(5):
            await dial(port)
    assert (caught.value.initiator, caught.value.code) == ("local", errno.ECONNREFUSED)


class Datagrams(asyncio.DatagramProtocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagram_received(self, data: bytes, addr: tuple) -> None:
        self.received.append(data)


@pytest.fixture
async def datagrams():
    """Sends raw datagrams and keeps what comes back."""
    loop = asyncio.get_running_loop()
    sender, protocol = await loop.create_datagram_endpoint(
        Datagrams, local_addr=("127.0.0.1", 0)
    )
    yield sender, protocol.received
    sender.close()


def initial(version: int = 1, token: bytes = b"", size: int = 1200) -> bytes:
    """Make an Initial packet whose protected part is noise."""
    head = bytes([0xC3]) + version.to_bytes(4, "big") + b"\x08" + b"D" * 8
    head += b"\x08" + b"S" * 8 + len(token).to_bytes(1, "big") + token
    rest = size - len(head) - 2
    return head + (0x4000 | rest).to_bytes(2, "big") + bytes(rest)


async def test_noise_starts_nothing(endpoints, datagrams):
    """No datagram of any size may raise or be answered, and the server goes on."""
    serve, dial = endpoints
    server = await serve()
    sender, received = datagrams
    address = tuple(server.endpoint.local_addr)
    noise = [b"", b"\0", b"\x40" * 20, b"\xc0" * 1200, bytes(range(256)) * 6]
    noise += [initial(size=1199), initial()[:600]]
    # Version Negotiation, Handshake and 0-RTT packets of nobody's connection.
    noise += [initial(version=0, size=size) for size in range(1200, 1204)]
    noise += [bytes([0xE3]) + initial()[1:], bytes([0xD3]) + initial()[1:]]
    for data in noise:
        sender.sendto(data, address)
    connection = await dial(server)
    await ask(connection)
    assert not received
    assert len(server.connections) == 1


async def test_an_unproven_address_costs_a_retry_and_no_state(endpoints, datagrams):
    serve, _dial = endpoints
    server = await serve()
    sender, received = datagrams
    for token in (b"", b"short", bytes(60)):
        received.clear()
        sender.sendto(initial(token=token), tuple(server.endpoint.local_addr))
        await until_async(lambda: received)
        assert received[0][0] & 0xF0 == 0xF0, "a Retry packet"
        assert len(received[0]) <= 1200 * 3
    assert not server.connections
    assert not server.endpoint.connections


async def test_an_initial_that_cannot_be_read_leaves_nothing(endpoints, datagrams):
    serve, _dial = endpoints
    server = await serve(retry=False)
    sender, received = datagrams
    sender.sendto(initial(), tuple(server.endpoint.local_addr))
    await until_async(lambda: server.endpoint.stats()["datagrams_dropped"])
    assert not server.connections
    assert not server.endpoint.connections
    assert not received


async def test_an_unknown_version_is_negotiated_once(endpoints, datagrams):
    serve, _dial = endpoints
    server = await serve()
    sender, received = datagrams
    sender.sendto(initial(version=0x1A2A3A4A), tuple(server.endpoint.local_addr))
    await until_async(lambda: received)
    (answer,) = received
    assert answer[1:5] == bytes(4), "Version Negotiation"
    assert (1).to_bytes(4, "big") in answer[-8:]
    assert not server.connections


async def test_a_failure_inside_ends_that_connection_only(endpoints, unforeseen):
    serve, dial = endpoints
    server = await serve()
    broken, sound = await dial(server), await dial(server)
    await ask(broken)
    lost = []
    broken.on_closed = lost.append
    failed = asyncio.get_running_loop().create_future()
    broken.exchanges.start(
        frame(2), lambda e, k, p: 1 // 0, lambda e, error: failed.set_result(error)
    )
    async with asyncio.timeout(10):
        error = await failed
    assert isinstance(error, ConnectionClosed)
    assert error.reason == "internal error"
    assert lost == [broken]
    assert await ask(sound) == b"q"
    (record,) = unforeseen
    assert record.exc_info[0] is ZeroDivisionError
    unforeseen.clear()


# Sockets.


async def test_a_port_that_is_taken_is_a_named_failure():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(LightningConnectionError) as caught:
            open_socket(socket.AF_INET, ("127.0.0.1", port))
    assert f"cannot open 127.0.0.1:{port}: " in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_host_without_the_address_family_is_a_named_failure(monkeypatch):
    def refuse(*args):
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(transport.socket, "socket", refuse)
    with pytest.raises(LightningConnectionError, match="cannot open a socket: "):
        open_socket(socket.AF_INET6, None)


async def test_a_closed_or_unopened_endpoint_has_no_address():
    endpoint = ClientEndpoint(TransportConfig(**CONFIG))
    with pytest.raises(LightningConnectionError, match="the endpoint is closed"):
        _ = endpoint.local_addr
    with pytest.raises(LightningConnectionError, match="the endpoint is closed"):
        await endpoint.connect(("127.0.0.1", 1))
    assert endpoint.stats() == {}
    assert endpoint.connections == {}
    endpoint.close("")
    await endpoint.open(socket.AF_INET)
    assert endpoint.local_addr.ip == "0.0.0.0"
    endpoint.close("")
    with pytest.raises(LightningConnectionError, match="the endpoint is closed"):
        _ = endpoint.local_addr


@pytest.mark.parametrize("what", ["driver", "loop"])
async def test_a_socket_that_cannot_be_used_is_closed(what, monkeypatch):
    endpoint = ClientEndpoint(TransportConfig(**CONFIG))

    def fail(*args, **kwargs):
        raise ZeroDivisionError

    before = set(os.listdir("/proc/self/fd"))
    if what == "driver":
        monkeypatch.setattr(transport, "Driver", fail)
    else:
        monkeypatch.setattr(endpoint.loop, "add_reader", fail)
    with pytest.raises(ZeroDivisionError):
        await endpoint.open(socket.AF_INET)
    monkeypatch.undo()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_who_forgets_to_close_is_told_and_leaks_nothing():
    endpoint = ClientEndpoint(TransportConfig(**CONFIG))
    await endpoint.open(socket.AF_INET)
    for fd in (endpoint._driver.fileno(), endpoint._driver.notify_fd):
        endpoint.loop.remove_reader(fd)
    before = len(os.listdir("/proc/self/fd"))
    kept = [endpoint]
    del endpoint

    def forget():
        kept.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        forget()
    # A socket and three eventfds, or three pipes.
    count = 7 if os.environ.get("LIGHTNING_PLAIN_UDP") else 4
    assert len(os.listdir("/proc/self/fd")) == before - count


async def test_a_loop_need_not_tell_when_its_timers_are_due(endpoints, monkeypatch):
    """A timer's handle may be able to cancel and nothing else."""

    class Handle:
        def __init__(self, handle: asyncio.Handle) -> None:
            self.cancel = handle.cancel

    loop = asyncio.get_running_loop()
    call_at = loop.call_at
    made = []

    def plain_call_at(when, callback, *args, **more):
        handle = call_at(when, callback, *args, **more)
        if callback.__name__ != "_on_timer":
            return handle
        made.append(Handle(handle))
        return made[-1]

    monkeypatch.setattr(loop, "call_at", plain_call_at)
    monkeypatch.setattr(loop, "call_exception_handler", made.clear)
    serve, dial = endpoints
    connection = await dial(await serve())
    for _ in range(3):
        assert await ask(connection) == b"q"
    assert len(made) > 2


async def test_a_small_socket_buffer_is_pointed_out(caplog, monkeypatch):
    monkeypatch.setattr(transport, "SMALL_BUFFER", 1 << 40)
    transport._check_buffer.cache_clear()
    endpoint = ClientEndpoint(TransportConfig(**CONFIG))
    await endpoint.open(socket.AF_INET)
    endpoint.close("")
    transport._check_buffer.cache_clear()
    assert "net.core.rmem_max" in caplog.text


# What it tells of itself.


async def test_the_numbers_of_a_connection(endpoints):
    """Of both ends, live and after; from any thread."""
    serve, dial = endpoints
    server = await serve()
    connection = await dial(server)
    assert Connection(connection._endpoint, None).numbers() == transport.Numbers()
    for _ in range(3):
        call = asyncio.get_running_loop().create_future()
        connection.call(frame(2, b"q"), call)
        await call
    await ask(connection)
    server.answers = False
    dropped = connection.call(frame(2, b"q"), asyncio.Future())
    await until_async(lambda: len(server.requests) == 5)
    one = await asyncio.to_thread(connection.numbers)
    assert (one.requests, one.in_flight, one.failures) == (5, 1, 0)
    assert sum(one.latencies) == 3  # Not the one of `ask`, which is a streamed one.
    assert len(one.latencies) == 28
    assert 0 < one.min_rtt <= one.rtt < 1
    assert 0 <= one.idle <= one.age < 10
    assert one.packets_sent >= 4
    assert one.bytes_sent > 1200 < one.bytes_received
    assert one.congestion_window >= 12_000
    (far,) = server.connections
    assert far.numbers()[9:12] == (5, 1, 0)
    dropped.cancel()
    assert connection.numbers()[9:12] == (5, 0, 1)
    await until_async(lambda: far.numbers()[9:12] == (5, 0, 1))
    lost = asyncio.get_running_loop().create_future()
    connection.call(frame(2, b"q"), lost)
    await until_async(lambda: len(server.requests) == 6)
    connection.close("")
    await lost
    await until_async(lambda: far.numbers()[9:12] == (6, 0, 2))
    stats = server.endpoint.stats()
    assert (stats["requests"], stats["failures"]) == (6, 2)
    last = connection.numbers()
    assert last[9:12] == (6, 0, 2)
    assert last.latencies == one.latencies
    await asyncio.sleep(0.01)
    assert connection.numbers() == last
    # The endpoint's survive the connection.
    stats = connection._endpoint.stats()
    assert (stats["requests"], stats["failures"]) == (6, 2)
    assert connection._endpoint.latencies == one.latencies
    connection._endpoint.close("")
    assert connection.numbers() == last
    assert connection._endpoint.latencies == ()


async def test_streams_that_fail_are_counted(endpoints):
    """Those of `Exchanges`, live and after the end of the connection."""
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    connection = await dial(server)
    asked = asyncio.create_task(ask(connection))
    await until_async(lambda: server.requests)
    server.requests[0][1].respond(b"", True)
    with pytest.raises(ConnectionError):
        await asked
    assert connection.numbers()[9:12] == (1, 0, 1)
    stats = connection._endpoint.stats()
    assert (stats["requests"], stats["failures"]) == (1, 1)
    connection.close("")
    stats = connection._endpoint.stats()
    assert (stats["requests"], stats["failures"]) == (1, 1)


async def test_who_is_vouched_for_is_no_stranger(endpoints):
    """One connection of a source at a time is not known; known ones do not count."""
    serve, dial = endpoints
    server = await serve(
        max_unauthenticated_per_source=1,
        max_connections_per_minute=2**40,
        max_tracked_rate_ips=2**40,
    )
    await dial(server)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await dial(server)
    assert server.endpoint.stats()["sources_full"] > 0
    server.connections[0].vouch()
    assert await ask(await dial(server)) == b"q"


async def test_a_dead_server_is_noticed(endpoints):
    """In the time that was set, and by its name."""
    serve, dial = endpoints
    server = await serve()
    async with udp_relay("127.0.0.1", server.endpoint.local_addr.port) as relay:
        connection = await dial(relay.port, unresponsive_timeout=0.5)
        assert await ask(connection) == b"q"
        relay.is_open = False
        with pytest.raises(
            ConnectionClosed, match="the peer does not answer"
        ) as caught:
            await ask(connection)
        assert (caught.value.initiator, caught.value.timed_out) == ("local", True)


# What has ended.


def held(endpoint) -> tuple[int, int]:
    """Return the streams and the blocks of memory that an endpoint's engine has."""
    stats = endpoint.stats()
    return stats["streams_in_use"], stats["blocks_in_use"]


async def test_a_connection_that_has_ended_gives_its_streams_back_at_once(endpoints):
    """Whoever keeps it keeps neither requests that nobody answered nor what was read."""
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    connection = await dial(server)
    for _ in range(8):
        connection.exchanges.start(
            frame(2, bytes(500_000)), lambda *_: None, lambda *_: None
        )
    await until_async(lambda: len(server.requests) == 8)
    for _, exchange, *_ in server.requests:
        # More than is read, and not all.
        exchange.respond(bytes(700_000), fin=False)
    client = connection._endpoint
    assert held(client)[0] == held(server.endpoint)[0] == 8
    connection.close("enough")
    assert held(client) == (0, 0)
    await until_async(lambda: not server.connections[0].is_alive)
    assert held(server.endpoint) == (0, 0)


@pytest.mark.parametrize("end", ["by the client", "by the server", "of a dial"])
async def test_a_connection_that_has_ended_goes_when_nobody_holds_it(endpoints, end):
    """At once: nothing waits for Python to look for cycles."""
    serve, dial = endpoints
    server = await serve()
    server.answers = False
    gc.collect()
    gc.disable()
    try:
        if end == "of a dial":
            server.endpoint.set_open(False)
            endpoint = ClientEndpoint(TransportConfig(**CONFIG))
            await endpoint.open(socket.AF_INET)
            made = []

            class Kept(Connection):
                def __init__(self, *args):
                    super().__init__(*args)
                    made.append(weakref.ref(self))

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(transport, "Connection", Kept)
                address = ("127.0.0.1", server.endpoint.local_addr.port)
                dialling = asyncio.create_task(endpoint.connect(address))
                await until_async(lambda: made)
                made[0]().close("enough")
                with pytest.raises(ConnectionClosed):
                    await dialling
            gone = made
            del dialling
            endpoint.close("")
        else:
            connection = await dial(server)
            errors = []
            connection.exchanges.start(
                frame(2, b"q"), lambda *_: None, lambda _, e: errors.append(type(e))
            )
            await until_async(lambda: server.requests)
            other = server.connections[0]
            gone = [weakref.ref(connection), weakref.ref(other)]
            (connection if end == "by the client" else other).close("enough")
            await until_async(lambda: not (connection.is_alive or other.is_alive))
            assert errors == [ConnectionClosed]
            del connection, other
            server.connections.clear()
            server.requests.clear()
        await until_async(lambda: not any(each() for each in gone))
    finally:
        gc.enable()
