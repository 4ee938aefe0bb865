"""The server on asyncio, with our client and with raw ones on loopback."""

import asyncio
import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    HandlerContext,
    LightningClientConfig,
    LightningServerConfig,
    PeerAddr,
    QuicAxonInfo,
    SourceAllowlist,
    typed_async_handler,
    typed_handler,
)
from lightning import answers as answers_module
from lightning import logins as logins_module
from lightning import refresh as refresh_module
from lightning import server as server_module
from lightning._core.wire.messages import HandshakeRequest
from lightning.errors import (
    ConfigError,
    ConnectionClosed,
    HandshakeError,
    HandshakeRejected,
    LightningConnectionError,
    ServerBusy,
    StreamError,
)
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    MINER_SEED,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    signer,
)
from tests.support.inspection import connections, in_flight
from tests.support.raw_peer import frame, is_accepted, login_frame, raw_client
from tests.support.waiting import until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Look for what is overdue often enough for a test."""
    monkeypatch.setattr(server_module, "SWEEP_INTERVAL", 0.02)
    monkeypatch.setattr(refresh_module, "POLL_INTERVAL", 0.02)


def refresh_often(server: AsyncLightningServer) -> None:
    """Ask resolvers more often than whole seconds can say."""
    for name in ("validator_permit_refresh_secs", "source_allowlist_refresh_secs"):
        object.__setattr__(server.config, name, 0.02)


async def answer_of(client: AsyncLightning, axon: QuicAxonInfo, name: str, **data):
    return await client.query_axon(axon, {"synapse_type": name, "data": data}, 20)


async def chunks_of(client: AsyncLightning, axon: QuicAxonInfo, name: str, **data):
    stream = await client.query_axon_stream(axon, {"synapse_type": name, "data": data})
    return await stream.collect_all()


def port_of(server: AsyncLightningServer) -> int:
    return server.local_addr().port


# How it is made.


def test_what_it_is_made_of():
    server = AsyncLightningServer(MINER_HOTKEY)
    assert (server.miner_hotkey, server.host, server.port) == (
        MINER_HOTKEY,
        "0.0.0.0",
        8443,
    )
    assert server.config == LightningServerConfig()
    assert repr(server) == f"<AsyncLightningServer {MINER_HOTKEY} 0.0.0.0:8443>"
    config = LightningServerConfig(max_connections=3)
    made = AsyncLightningServer.with_config("m", "::1", 1, config)
    assert (made.config, made.host, made.port) == (config, "::1", 1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((b"m",), TypeError, "miner_hotkey must be a str, not bytes"),
        (("m", None), TypeError, "host must be a str, not NoneType"),
        (("m", "h", "1"), TypeError, "integer"),
        (("m", "h", 1.0), TypeError, "integer"),
        (("m", "h", -1), OverflowError, "port must be between 0 and 65535"),
        (("m", "h", 65536), OverflowError, "port must be between 0 and 65535"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        AsyncLightningServer(*arguments)


async def test_every_way_to_set_a_signer(connect, monkeypatch):
    loaded = []

    def from_wallet(*names: str) -> object:
        loaded.append(names)
        return MINER

    monkeypatch.setattr(server_module.BtWalletSigner, "from_wallet", from_wallet)
    for way in (
        lambda s: s.set_miner_signer(MINER),
        lambda s: s.set_miner_signer(MINER.sign),
        lambda s: s.set_miner_keypair(MINER_SEED),
        lambda s: s.set_miner_keypair(list(MINER_SEED)),
        lambda s: s.set_miner_wallet(),
        lambda s: s.set_miner_wallet("w", "/path", "h"),
    ):
        server = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0)
        way(server)
        async with server:
            client, _ = await connect(server)
            await client.close()
    assert loaded == [
        ("default", "~/.bittensor/wallets", "default"),
        ("w", "/path", "h"),
    ]
    with pytest.raises(ConfigError, match="32 bytes"):
        server.set_miner_keypair(b"short")


async def test_without_a_signer_it_says_so_and_refuses(caplog, make_client, axon_of):
    async with AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0) as server:
        assert "no signer is set" in caplog.text
        client = make_client()
        await client.create_endpoint()
        with pytest.raises(HandshakeRejected):
            await client.query_axon(axon_of(server), ECHO)
        assert "signing error: no miner signer configured" in caplog.text


# Life.


async def test_it_starts_stops_and_starts_again(start_server, connect):
    """With another certificate each time; the port may stay."""
    server = await start_server()
    seen = set()
    port = port_of(server)
    for _ in range(3):
        seen.add(server._logins.fingerprint)
        client, axon = await connect(server)
        assert (await client.query_axon(axon, ECHO)).success
        await server.stop()
        await server.stop()
        with pytest.raises(ConfigError, match="call start"):
            server.local_addr()
        server.port = port
        await server.start()
        assert port_of(server) == port
    assert len(seen) == 3


async def test_to_stop_what_never_ran_is_fine():
    server = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0)
    await server.stop()
    assert await server.get_connection_stats() == {
        "total_connections": "0",
        "verified_connections": "0",
    }
    await server.cleanup_stale_connections()
    await server.cleanup_expired_nonces()
    assert await server.get_active_nonce_count() == 0


async def test_it_cannot_be_started_twice(start_server):
    server = await start_server()
    with pytest.raises(ConfigError, match="already started"):
        await server.start()
    other = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    outcomes = await asyncio.gather(
        *(other.start() for _ in range(3)), return_exceptions=True
    )
    assert [type(o) for o in outcomes].count(ConfigError) == 2
    await asyncio.gather(*(other.stop() for _ in range(3)))
    await other.start()
    await other.stop()


async def test_a_port_that_is_taken_is_a_config_error(start_server):
    """As the peer's, ValueError; and it can be started later."""
    server = await start_server()
    other = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", port_of(server))
    with pytest.raises(ConfigError, match="failed to create QUIC endpoint") as caught:
        await other.start()
    assert f"cannot open 127.0.0.1:{port_of(server)}" in str(caught.value)
    assert "in use" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ConfigError, match="not started"):
        await other.serve_forever()
    await server.stop()
    await other.start()
    await other.stop()


@pytest.mark.parametrize("host", ["name.invalid", "256.1.1.1", "x" * 70, "é\ud800"])
async def test_a_host_that_does_not_exist_is_a_config_error(host):
    server = AsyncLightningServer(MINER_HOTKEY, host, 0)
    with pytest.raises(ConfigError, match="invalid host"):
        await server.start()


async def test_two_servers_in_one_process(start_server, connect):
    servers = [await start_server(signer=signer(n)) for n in (1, 2)]
    for server in servers:
        client, axon = await connect(server)
        assert (await client.query_axon(axon, ECHO)).success
    assert len({port_of(server) for server in servers}) == 2


@pytest.mark.parametrize(
    ("host", "ip"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1")],
)
async def test_hosts(host, ip, start_server, connect):
    server = await start_server(host=host)
    assert server.local_addr() == PeerAddr(ip, port_of(server))
    client, axon = await connect(server)
    assert (await client.query_axon(axon, ECHO)).success


async def test_every_address_of_both_families(start_server, make_client):
    """A caller over IPv4 is known by its IPv4 address."""
    seen = []
    server = await start_server(
        lambda s: s.set_handshake_observer(lambda *who: seen.append(who)), host="::"
    )
    for ip in ("127.0.0.1", "::1"):
        client = make_client()
        await client.initialize_connections(
            [(QuicAxonInfo(MINER_HOTKEY, ip, port_of(server)))]
        )
        await until_async(lambda ip=ip: (VALIDATOR_HOTKEY, ip) in seen)


async def test_serving_for_ever_ends_with_a_stop(start_server):
    server = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    with pytest.raises(ConfigError, match=r"not started: call start\(\) first"):
        await server.serve_forever()
    for _ in range(2):
        await server.start()
        waiting = [asyncio.create_task(server.serve_forever()) for _ in range(3)]
        await asyncio.sleep(0)
        await server.stop()
        assert all(task.done() for task in waiting)
        await asyncio.gather(*waiting)
    with pytest.raises(ConfigError):
        await server.serve_forever()
    await server.start()
    waiting = [asyncio.create_task(server.serve_forever())]
    await asyncio.sleep(0)
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    await server.stop()


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("require_validator_permit", "set_validator_permit_resolver"),
        ("enforce_source_allowlist", "set_source_address_resolver"),
    ],
)
async def test_what_is_asked_for_needs_who_knows_it(start_server, setting, text):
    server = await start_server(**{setting: True})
    with pytest.raises(ConfigError, match=text):
        await server.serve_forever()


async def test_a_stop_lets_running_handlers_finish(start_server, connect):
    """Threads, tasks, and big answers still on their way."""
    release = threading.Event()

    def slow(data: dict) -> dict:
        release.wait(10)
        return {"b": bytes(3_000_000)}

    async def slow_chunks(data: dict):
        for n in range(3):
            await asyncio.sleep(0)
            yield str(n).encode() * 100_000

    def prepare(server):
        server.register_synapse_handler("slow", slow)
        server.register_streaming_handler("chunks", slow_chunks)

    server = await start_server(prepare)
    client, axon = await connect(server)
    running = [
        asyncio.create_task(answer_of(client, axon, "slow")),
        asyncio.create_task(chunks_of(client, axon, "chunks")),
    ]
    await until_async(lambda: server._answering == 2)
    stopping = asyncio.create_task(server.stop(10))
    await asyncio.sleep(0)
    late = await answer_of(client, axon, "echo")
    assert late.error == "server busy"
    with pytest.raises(ServerBusy):
        late.into_result()
    with pytest.raises(StreamError, match="server busy"):
        await chunks_of(client, axon, "chunks")
    release.set()
    answer, chunks = await asyncio.gather(*running)
    assert answer.data == {"b": bytes(3_000_000)}
    assert [len(chunk) for chunk in chunks] == [100_000] * 3
    await stopping


async def test_a_stop_waits_no_longer_than_it_was_told(start_server, connect, caplog):
    release = threading.Event()
    begun = asyncio.Event()
    cancelled = []

    async def forever(data: dict) -> dict:
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    def prepare(server):
        server.register_synapse_handler("t", lambda d: {"w": release.wait(20)})
        server.register_synapse_handler("f", forever)

    server = await start_server(prepare)
    client, axon = await connect(server)
    tasks = [asyncio.create_task(answer_of(client, axon, name)) for name in "tf"]
    await begun.wait()
    began = time.monotonic()
    await server.stop(0.1)
    assert 0.1 <= time.monotonic() - began < 10
    for task in tasks:
        with pytest.raises(ConnectionClosed, match="server_shutdown"):
            await task
    assert cancelled == [1]
    release.set()


async def test_a_stop_that_is_cancelled_has_stopped_it(start_server, connect):
    release = threading.Event()
    server = await start_server(
        lambda s: s.register_synapse_handler("w", lambda d: {"w": release.wait(20)})
    )
    client, axon = await connect(server)
    running = asyncio.create_task(answer_of(client, axon, "w"))
    await until_async(lambda: server._answering)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await server.stop(20)
    assert not server.is_started
    with pytest.raises(ConnectionClosed, match="server_shutdown"):
        await running
    await server.start()
    assert server.is_started
    release.set()


async def test_a_life_does_not_wait_for_the_next_one(start_server):
    """It may be started again while its last life is still winding up."""
    server = await start_server()
    stopping = asyncio.create_task(server.stop())
    await until_async(lambda: not server.is_started)
    await server.start()
    serving = asyncio.create_task(server.serve_forever())
    await until_async(lambda: server._serving)
    await stopping
    assert not serving.done()
    await server.stop()
    await serving


async def test_a_handler_that_resists_is_left_behind(
    start_server, connect, caplog, monkeypatch
):
    monkeypatch.setattr(server_module, "CANCEL_TIMEOUT", 0.1)
    release = asyncio.Event()
    begun = asyncio.Event()

    async def resist(data: dict) -> dict:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return {}

    server = await start_server(lambda s: s.register_synapse_handler("r", resist))
    client, axon = await connect(server)
    task = asyncio.create_task(answer_of(client, axon, "r"))
    await begun.wait()
    await server.stop(0)
    assert "lightning-server r does not end though cancelled" in caplog.text
    with pytest.raises(ConnectionClosed):
        await task
    release.set()
    await until_async(lambda: not server._tasks)


async def test_a_handler_may_stop_the_server(start_server, connect):
    servers = []

    async def stop(data: dict) -> dict:
        await servers[0].stop()
        return {"too": "late"}

    server = await start_server(lambda s: s.register_synapse_handler("stop", stop))
    servers.append(server)
    client, axon = await connect(server)
    with pytest.raises(ConnectionClosed, match="server_shutdown"):
        await answer_of(client, axon, "stop")
    await until_async(lambda: not server._tasks)


# Handlers.


@dataclass
class Question:
    text: str
    times: int = 1


@dataclass
class Reply:
    words: list[str]


class Echoer:
    def handle(self, synapse_type: str, data: dict) -> dict:
        return {"type": synapse_type, **data}


class AsyncEchoer:
    async def handle(self, synapse_type: str, data: dict) -> dict:
        await asyncio.sleep(0)
        return {"type": synapse_type, **data}


class Sender:
    async def handle(self, synapse_type: str, data: dict, sender) -> None:
        for chunk in (synapse_type.encode(), bytearray(b"two")):
            await sender.send(chunk)


class BlockingSender:
    def handle(self, synapse_type: str, data: dict, sender) -> None:
        for chunk in (synapse_type.encode(), memoryview(b"two")):
            sender.send(chunk)


async def test_every_kind_of_handler_through_the_wire(start_server, connect):
    async def asynchronous(data: dict) -> dict:
        await asyncio.sleep(0)
        return {"got": data}

    @typed_handler
    def typed(question: Question) -> Reply:
        return Reply([question.text] * question.times)

    @typed_async_handler
    async def typed_later(question: Question, ctx: HandlerContext) -> Reply:
        return Reply([question.text, ctx.hotkey])

    def generator(data: dict):
        yield b"one"
        yield bytearray(b"two")

    async def async_generator(data: dict):
        yield b"one"
        yield memoryview(b"two")

    async def async_iterable(data: dict):
        return [b"one", b"two"]

    server = await start_server()
    client, axon = await connect(server)
    assert not (await answer_of(client, axon, "thread")).success
    server.register_synapse_handler("thread", lambda data: {"got": data})
    server.register_synapse_handler("inline", lambda d: {"got": d}, inline=True)
    server.register_synapse_handler("async", asynchronous)
    await server.register_async_synapse_handler("future", asynchronous)
    await server.register_synapse_handler("object", Echoer())
    server.register_async_synapse_handler("async object", AsyncEchoer())
    server.register_synapse_handler("typed", typed)
    server.register_async_synapse_handler("typed later", typed_later)
    for name in ("thread", "inline", "async", "future"):
        answer = await answer_of(client, axon, name, a=[1, b"x"])
        assert answer.data == {"got": {"a": [1, b"x"]}}, name
    for name in ("object", "async object"):
        answer = await answer_of(client, axon, name, a=1)
        assert answer.data == {"type": name, "a": 1}
    answer = await answer_of(client, axon, "typed", text="x", times=2)
    assert answer.deserialize_data(Reply) == Reply(["x", "x"])
    answer = await answer_of(client, axon, "typed later", text="x")
    assert answer.data == {"words": ["x", VALIDATOR_HOTKEY]}
    await server.register_streaming_handler("g", generator)
    server.register_streaming_handler("ag", async_generator)
    server.register_streaming_handler("ai", async_iterable)
    server.register_streaming_handler("f", lambda data: iter([b"one", b"two"]))
    server.register_streaming_handler("one", Sender())
    for name in ("g", "ag", "ai", "f", "one"):
        assert await chunks_of(client, axon, name) == [b"one", b"two"], name
    server.register_streaming_handler("one", BlockingSender())
    assert await chunks_of(client, axon, "one") == [b"one", b"two"]


async def test_registering_checks_and_replaces(start_server, connect):
    server = await start_server()
    client, axon = await connect(server)
    with pytest.raises(ConfigError, match="is a generator"):
        server.register_synapse_handler("g", lambda data: (yield))
    with pytest.raises(TypeError):
        server.register_synapse_handler(3, lambda data: data)
    with pytest.raises(TypeError):
        server.register_streaming_handler("g", None)
    for n in range(3):
        server.register_synapse_handler("n", lambda data, n=n: {"n": n})
        assert (await answer_of(client, axon, "n")).data == {"n": n}
    server.register_streaming_handler("n", lambda data: iter([b"s"]))
    assert await chunks_of(client, axon, "n") == [b"s"], "streaming comes first"


async def test_the_context_says_who_where_and_how_long(start_server, connect):
    contexts = []

    def note(data: dict, context: HandlerContext) -> dict:
        contexts.append((context, context.remaining()))
        return {}

    async def note_chunks(data: dict, context: HandlerContext):
        contexts.append((context, context.remaining()))
        yield b""

    def prepare(server):
        server.register_synapse_handler("inline", note, inline=True)
        server.register_synapse_handler("thread", note)
        server.register_streaming_handler("stream", note_chunks)

    server = await start_server(prepare, handler_timeout_secs=7)
    client, axon = await connect(server)
    await answer_of(client, axon, "inline")
    await answer_of(client, axon, "thread")
    await chunks_of(client, axon, "stream")
    (connection,) = connections(server)
    for (context, remaining), name in zip(
        contexts, ("inline", "thread", "stream"), strict=True
    ):
        assert context.hotkey == VALIDATOR_HOTKEY
        assert context.address == connection.address
        assert context.synapse_type == name
        assert 5 < remaining <= 7
        assert context.connection_id.startswith(f"conn_{VALIDATOR_HOTKEY}_")
    assert len({context.connection_id for context, _ in contexts}) == 1


class Odd:
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (RuntimeError("secret"), "request processing failed"),
        (SystemExit("secret"), "request processing failed"),
        (asyncio.CancelledError("secret"), "request processing failed"),
        (RecursionError("secret"), "request processing failed"),
        (StopIteration("secret"), "request processing failed"),
        (TimeoutError("secret"), "request processing failed"),
        (None, "request processing failed"),
        ({1, 2}, "request processing failed"),
        ({1: 2}, "request processing failed"),
        ("secret", "request processing failed"),
        ({"x": {"secret"}}, "internal serialization error"),
        ({"x": 2**70}, "internal serialization error"),
        ({"x": "\ud800"}, "internal serialization error"),
        ({"x": Odd()}, "internal serialization error"),
        ({"x": bytes(2_000_000)}, "internal serialization error"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_handler_that_fails_is_told_in_general_terms(
    outcome, text, inline, start_server, connect, caplog
):
    """The caller learns a fixed text, the log the cause; the connection lives."""

    def handler(data: dict) -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    server = await start_server(
        lambda s: s.register_synapse_handler("h", handler, inline=inline),
        max_frame_payload_bytes=1 << 20,
    )
    client, axon = await connect(server)
    answer = await answer_of(client, axon, "h")
    assert (answer.success, answer.data, answer.error) == (False, {}, text)
    (record,) = [r for r in caplog.records if r.name == "lightning.server"]
    assert record.levelno == logging.ERROR
    assert "'h'" in record.message
    assert (await client.query_axon(axon, ECHO)).success


@pytest.mark.parametrize(
    "outcome",
    [RuntimeError("secret"), "no bytes", 3, bytes(2_000_000), asyncio.CancelledError()],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_that_fails_is_told_in_general_terms(
    outcome, kind, start_server, connect, caplog
):
    def emit(first: bytes):
        yield first
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome

    async def emit_later(data: dict):
        for chunk in emit(b"first"):
            yield chunk

    handler = emit_later if kind == "async" else lambda data: emit(b"first")
    server = await start_server(
        lambda s: s.register_streaming_handler("h", handler),
        max_frame_payload_bytes=1 << 20,
    )
    client, axon = await connect(server)
    stream = await client.query_axon_stream(axon, {"synapse_type": "h"})
    assert await stream.next_chunk() == b"first"
    with pytest.raises(StreamError, match="stream processing failed") as caught:
        await stream.next_chunk()
    assert caught.value.detail == "stream processing failed"
    assert "'h'" in caplog.text
    assert (await client.query_axon(axon, ECHO)).success


async def test_handlers_have_so_much_time(start_server, connect, caplog):
    async def forever(data: dict) -> dict:
        await asyncio.Event().wait()

    async def endless(data: dict):
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    release = threading.Event()

    def prepare(server):
        server.register_synapse_handler("a", forever)
        server.register_synapse_handler("t", lambda d: {"w": release.wait(20)})
        server.register_streaming_handler("s", endless)

    server = await start_server(prepare, handler_timeout_secs=1)
    client, axon = await connect(server)
    a, t, s = await asyncio.gather(
        answer_of(client, axon, "a"),
        answer_of(client, axon, "t"),
        chunks_of(client, axon, "s"),
        return_exceptions=True,
    )
    assert a.error == t.error == "handler timed out"
    assert isinstance(s, StreamError)
    assert "handler timed out" in str(s)
    assert caplog.text.count("timed out") == 3
    release.set()


async def test_a_handler_that_cancels_itself_is_answered(start_server, connect):
    async def suicide(data: dict) -> dict:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async def suicide_stream(data: dict):
        yield b"first"
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    def prepare(server):
        server.register_synapse_handler("h", suicide)
        server.register_streaming_handler("s", suicide_stream)

    server = await start_server(prepare)
    client, axon = await connect(server)
    assert (await answer_of(client, axon, "h")).error == "request processing failed"
    with pytest.raises(StreamError, match="request processing failed"):
        await chunks_of(client, axon, "s")


@pytest.mark.parametrize("inline", [True, False])
async def test_an_error_of_our_own_is_answered_and_logged(
    inline, start_server, connect, monkeypatch, unforeseen
):
    def fail(*args: object) -> bytes:
        raise ZeroDivisionError

    server = await start_server(
        lambda s: s.register_synapse_handler("h", lambda d: d, inline=inline)
    )
    client, axon = await connect(server)
    with monkeypatch.context() as patch:
        honest = answers_module.encode_synapse_response
        patch.setattr(
            answers_module,
            "encode_synapse_response",
            lambda success, *rest: (fail if success else honest)(success, *rest),
        )
        answer = await answer_of(client, axon, "h")
    assert answer.error == "request processing failed"
    assert [r.exc_info[0] for r in unforeseen] == [ZeroDivisionError]
    unforeseen.clear()
    assert (await client.query_axon(axon, ECHO)).success


async def test_a_blocking_handler_holds_up_nobody(start_server, connect):
    """Field case S35: two hundred threads at once, and others are served."""
    release = threading.Event()
    server = await start_server(
        lambda s: s.register_synapse_handler("b", lambda d: {"w": release.wait(20)}),
        max_concurrent_bidi_streams=300,
    )
    client, axon = await connect(server)
    tasks = [asyncio.create_task(answer_of(client, axon, "b")) for _ in range(200)]
    await until_async(lambda: server._answering == 200)
    other, _ = await connect(server, signer(7))
    began = time.monotonic()
    assert (await other.query_axon(axon, ECHO)).success
    assert time.monotonic() - began < 10
    release.set()
    assert all(answer.success for answer in await asyncio.gather(*tasks))


async def test_more_threads_than_allowed_wait_for_their_turn(start_server, connect):
    running, most = [], []

    def count(data: dict) -> dict:
        running.append(1)
        most.append(len(running))
        time.sleep(0.002)  # So that they overlap if they can.
        running.pop()
        return {}

    server = await start_server(
        lambda s: s.register_synapse_handler("c", count), handler_threads=2
    )
    client, axon = await connect(server)
    await asyncio.gather(*(answer_of(client, axon, "c") for _ in range(30)))
    assert max(most) <= 2


# Who may log in.


async def test_a_login_makes_a_session(start_server, connect):
    server = await start_server()
    client, _ = await connect(server)
    stats = await server.get_connection_stats()
    name = stats.pop(f"connection_{VALIDATOR_HOTKEY}")
    assert stats == {"total_connections": "1", "verified_connections": "1"}
    assert name.startswith(f"conn_{VALIDATOR_HOTKEY}_")
    assert abs(int(name.rpartition("_")[2]) / 1000 - time.time()) < 60
    assert await server.get_active_nonce_count() == 1
    await client.close()
    await until_async(lambda: not len(server._table))
    assert await server.get_connection_stats() == {
        "total_connections": "0",
        "verified_connections": "0",
    }


async def test_only_who_has_logged_in_is_served(start_server):
    served = []
    server = await start_server(
        lambda s: s.register_synapse_handler("s", served.append, inline=True)
    )
    packet = bytes.fromhex("93a17380ce6b0643ef")
    async with raw_client(port_of(server)) as stranger:
        answer = await stranger.ask(frame(3, packet))
        assert b"authentication failed" in answer.data
        assert is_accepted(await stranger.login())
        answer = await stranger.ask(frame(3, packet))
        assert b"request processing failed" in answer.data
    assert served == [{}]


async def test_a_login_is_of_its_connection_not_of_its_address(start_server):
    """Another connection from the same address and port has to log in itself."""
    server = await start_server()
    packet = bytes.fromhex("93a46563686f80ce6b0643ef")
    async with raw_client(port_of(server)) as one, raw_client(port_of(server)) as two:
        assert is_accepted(await one.login())
        assert b"authentication failed" in (await two.ask(frame(3, packet))).data
        session = server._table.session_of(VALIDATOR_HOTKEY)
        assert (
            session.connection.address.port
            != two._transport.get_extra_info("sockname")[1]
        )


async def test_the_same_validator_elsewhere_replaces(start_server, connect, caplog):
    caplog.set_level("INFO", "lightning.server")
    server = await start_server()
    client, axon = await connect(server)
    (first,) = connections(client)
    other, _ = await connect(server)
    await until_async(lambda: not first.is_alive)
    assert first.closed().reason == "replaced"
    assert len(server._table) == 1
    assert f"validator {VALIDATOR_HOTKEY} was also connected from" in caplog.text
    assert (await other.query_axon(axon, ECHO)).success


async def test_several_validators_on_one_connection(start_server):
    """They take one place; the one that logged in last is the caller."""
    callers = []
    server = await start_server(
        lambda s: s.register_synapse_handler(
            "who", lambda data, context: callers.append(context.hotkey) or {}
        ),
        max_connections=1,
    )
    packet = bytes.fromhex("93a377686f80ce6b0643ef")
    hotkeys = [signer(n) for n in range(5)]
    async with raw_client(port_of(server)) as raw:
        for hotkey in hotkeys:
            assert is_accepted(await raw.login(hotkey))
        await raw.ask(frame(3, packet))
        assert callers == [hotkeys[-1].ss58_address]
        assert len(server._table) == 1
        stats = await server.get_connection_stats()
        assert stats["total_connections"] == "5"
    await until_async(lambda: not len(server._table))
    async with raw_client(port_of(server)) as raw:
        assert is_accepted(await raw.login(signer(9))), "the place is free again"


async def test_a_full_server_refuses_new_ones_but_not_old_friends(
    start_server, connect, make_client, caplog
):
    server = await start_server(max_connections=2)
    client, axon = await connect(server)
    await connect(server, signer(7))
    late = make_client(signer(8))
    await late.create_endpoint()
    with pytest.raises(HandshakeRejected):
        await late.query_axon(axon, ECHO)
    assert "all 2 places are taken" in caplog.text
    again, _ = await connect(server)
    assert (await again.query_axon(axon, ECHO)).success, "from another port"
    await client.close()
    await again.close()
    await until_async(lambda: len(server._table) == 1)
    newcomer, _ = await connect(server, signer(9))
    assert (await newcomer.query_axon(axon, ECHO)).success


async def test_a_login_serves_once(start_server):
    """Field case S25: on the same and on another connection, and after a restart."""
    server = await start_server(port=0)
    port = port_of(server)
    async with raw_client(port) as raw:
        login = login_frame(raw.certificate)
        certificate = raw.certificate
        assert is_accepted((await raw.ask(login)).data)
        assert not is_accepted((await raw.ask(login)).data)
        async with raw_client(port) as other:
            assert not is_accepted((await other.ask(login)).data)
    kept = login_frame(certificate)
    await server.stop()
    server.port = port
    await server.start()
    async with raw_client(port) as raw:
        for replayed in (login, kept):
            assert not is_accepted((await raw.ask(replayed)).data)
        assert is_accepted(await raw.login())


async def test_a_bad_signature_does_not_spend_the_nonce(start_server):
    """Field case D4: nobody can burn the nonces of others."""
    server = await start_server()
    nonce = "ab" * 16
    async with raw_client(port_of(server)) as raw:
        assert not is_accepted(await raw.login(nonce=nonce))
        assert await server.get_active_nonce_count() == 0
        for changes in (
            {"signature": ""},
            {"signature": "A" * 86 + "=="},
            {"signature": "A" * 84},
            {"timestamp": int(time.time()) - 301},
            {"nonce": "x" * 32},
            {"nonce": "a" * 31},
            {"nonce": ":" * 32},
            {"validator_hotkey": signer(9).ss58_address},
            {"validator_hotkey": ""},
            {"validator_hotkey": "a:b"},
            {"validator_hotkey": "x" * 300},
        ):
            assert not is_accepted(await raw.login(**changes)), changes
        for ahead in (-300, -301, 63):
            assert not is_accepted(await raw.login(ahead=ahead)), ahead
        assert await server.get_active_nonce_count() == 0
        for ahead in (-297, 57):
            assert is_accepted(await raw.login(ahead=ahead)), ahead


async def test_used_nonces_are_forgotten_in_time(start_server, connect, monkeypatch):
    server = await start_server(nonce_cleanup_interval_secs=1)
    await connect(server)
    await server.cleanup_expired_nonces()
    assert await server.get_active_nonce_count() == 1
    assert len(server._logins.limiter) == 1
    now = time.time() + 10_000

    class Later:
        time = staticmethod(lambda: now)
        monotonic = staticmethod(lambda: time.monotonic() + 10_000)

    monkeypatch.setattr(logins_module, "time", Later)
    await until_async(lambda: not len(server._logins.nonces))
    assert len(server._logins.limiter) == 0


async def test_logins_are_rationed_by_address(start_server, make_client, caplog):
    caplog.set_level("DEBUG", "lightning.server")
    server = await start_server(max_handshake_attempts_per_minute=3)
    async with raw_client(port_of(server)) as raw:
        outcomes = [is_accepted(await raw.login(signer(n))) for n in range(5)]
        assert outcomes == [True, True, True, False, False]
        refused = [r for r in caplog.records if "too many logins" in r.message]
        assert [r.levelname for r in refused] == ["DEBUG"] * 2
    client = make_client()
    await client.create_endpoint()
    with pytest.raises(HandshakeRejected):
        await client.query_axon(
            QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", port_of(server)), ECHO
        )


async def test_a_login_that_takes_too_long_is_refused(start_server, make_client):
    release = threading.Event()

    def slowly(message: bytes) -> bytes:
        release.wait(20)
        return MINER.sign(message)

    server = await start_server(
        lambda s: s.set_miner_signer(slowly), handshake_timeout_secs=1
    )
    client = make_client()
    await client.create_endpoint()
    began = time.monotonic()
    with pytest.raises(HandshakeRejected):
        await client.query_axon(
            QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", port_of(server)), ECHO
        )
    assert time.monotonic() - began < 15
    assert not len(server._table)
    release.set()


async def test_who_leaves_during_the_login_takes_no_place(start_server):
    release = threading.Event()

    def slowly(message: bytes) -> bytes:
        release.wait(20)
        return MINER.sign(message)

    server = await start_server(lambda s: s.set_miner_signer(slowly))
    async with raw_client(port_of(server)) as raw:
        raw.start(login_frame(raw.certificate))
        await until_async(lambda: server._answering)
    release.set()
    await until_async(lambda: not server._tasks or not server._answering)
    assert not len(server._table)
    assert not server._strangers


async def test_a_connection_that_is_gone_is_not_registered(start_server):
    """Even if its login outlived it: the place would never be free again."""
    server = await start_server()

    class Gone:
        is_alive = False

    async with raw_client(port_of(server)) as raw:
        request = HandshakeRequest.from_payload(login_frame(raw.certificate)[5:])
    with pytest.raises(HandshakeError, match="closed meanwhile"):
        await server._logins.check(Gone(), request)
    assert not len(server._table)


# Permits.


class Permits:
    """A resolver whose answer a test sets."""

    def __init__(self, answer: object = frozenset()) -> None:
        self.answer = answer
        self.asked = 0

    def resolve_permitted_validators(self) -> object:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class AsyncPermits(Permits):
    async def resolve_permitted_validators(self) -> object:
        await asyncio.sleep(0)
        return super().resolve_permitted_validators()


@pytest.mark.parametrize("kind", [Permits, AsyncPermits])
async def test_permits_come_and_go(kind, start_server, connect, make_client, caplog):
    caplog.set_level("INFO", "lightning.server")
    """Losing one ends the live session, with a reason."""
    resolver = kind({VALIDATOR_HOTKEY})
    server = await start_server(
        lambda s: (refresh_often(s), s.set_validator_permit_resolver(resolver)),
        require_validator_permit=True,
    )
    client, axon = await connect(server)
    assert await server.get_permitted_validator_count() == 1
    other = make_client(signer(7))
    await other.create_endpoint()
    with pytest.raises(HandshakeRejected):
        await other.query_axon(axon, ECHO)
    (connection,) = connections(client)
    resolver.answer = {signer(7).ss58_address}
    await until_async(lambda: not connection.is_alive)
    error = connection.closed()
    assert (error.initiator, error.reason) == ("remote", "validator_permit_lost")
    assert f"validator {VALIDATOR_HOTKEY} has lost its permit" in caplog.text
    with pytest.raises(HandshakeRejected):
        await client.query_axon(axon, ECHO)


@pytest.mark.parametrize(
    "resolve",
    [
        lambda: [VALIDATOR_HOTKEY],
        lambda: (VALIDATOR_HOTKEY,),
        lambda: frozenset({VALIDATOR_HOTKEY}),
        lambda: asyncio.sleep(0, {VALIDATOR_HOTKEY}),
    ],
)
async def test_a_callable_is_a_resolver_too(resolve, start_server, connect):
    server = await start_server(
        lambda s: s.set_validator_permit_resolver(resolve),
        require_validator_permit=True,
    )
    await connect(server)


@pytest.mark.parametrize("kind", [Permits, AsyncPermits])
@pytest.mark.parametrize(
    "nonsense", [RuntimeError("no chain"), None, VALIDATOR_HOTKEY, {3}], ids=repr
)
async def test_a_resolver_that_fails_keeps_what_was_known(
    kind, nonsense, start_server, connect, caplog
):
    resolver = kind({VALIDATOR_HOTKEY})
    server = await start_server(
        lambda s: (refresh_often(s), s.set_validator_permit_resolver(resolver)),
        require_validator_permit=True,
    )
    client, axon = await connect(server)
    resolver.answer = nonsense
    await until_async(lambda: "permits not refreshed" in caplog.text)
    assert (await client.query_axon(axon, ECHO)).success
    resolver.answer = {VALIDATOR_HOTKEY, "another"}
    await until_async(lambda: len(server._logins.permits) == 2)


async def test_before_the_first_answer_nobody_has_a_permit(
    start_server, make_client, caplog, monkeypatch
):
    """Logins wait for it, as long as a login may take; a failure refuses them."""
    monkeypatch.setattr(refresh_module, "COMPLAINT_INTERVAL", 0.05)
    release = threading.Event()
    answers = [RuntimeError("no chain"), {VALIDATOR_HOTKEY}]

    def resolve() -> object:
        release.wait(20)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = await start_server(
        lambda s: (refresh_often(s), s.set_validator_permit_resolver(resolve)),
        require_validator_permit=True,
    )
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", port_of(server))
    client = make_client(reconnect_initial_backoff=0.01)
    await client.create_endpoint()
    query = asyncio.create_task(client.query_axon(axon, ECHO))
    await until_async(lambda: "resolver of permits has not answered" in caplog.text)
    assert not query.done()
    release.set()
    with pytest.raises(HandshakeRejected):
        await query
    await until_async(lambda: not answers)
    await until_async(lambda: len(server._logins.permits))
    assert (await client.query_axon(axon, ECHO)).success


async def test_a_permit_that_is_lost_while_signing_is_lost(start_server, make_client):
    """Between the check and the session, too."""
    resolver = Permits({VALIDATOR_HOTKEY})
    release = threading.Event()

    def slowly(message: bytes) -> bytes:
        release.wait(20)
        return MINER.sign(message)

    def prepare(server):
        refresh_often(server)
        server.set_validator_permit_resolver(resolver)
        server.set_miner_signer(slowly)

    server = await start_server(prepare, require_validator_permit=True)
    client = make_client()
    await client.create_endpoint()
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", port_of(server))
    await until_async(lambda: len(server._logins.permits))
    query = asyncio.create_task(client.query_axon(axon, ECHO))
    await until_async(
        lambda: len(server._logins.nonces) and len(server._logins.permits)
    )
    resolver.answer = set()
    await until_async(lambda: not len(server._logins.permits))
    release.set()
    with pytest.raises(HandshakeRejected):
        await query
    assert not len(server._table)


async def test_a_resolver_that_names_nobody_is_complained_of(
    start_server, connect, caplog
):
    """All validators are disconnected then: it is seldom what was meant."""
    permits = {VALIDATOR_HOTKEY}

    def prepare(server):
        server.set_validator_permit_resolver(lambda: set(permits))
        refresh_often(server)

    server = await start_server(prepare, require_validator_permit=True)
    await until_async(lambda: len(server._logins.permits))
    await connect(server)
    permits.clear()
    await until_async(lambda: not len(server._table))
    assert (
        "the resolver of permits names nobody: no validator may log in, and 1 are "
        "disconnected"
    ) in caplog.text


async def test_a_resolver_may_be_set_while_it_runs(start_server, connect):
    server = await start_server(require_validator_permit=True)
    server.set_validator_permit_resolver(lambda: {VALIDATOR_HOTKEY})
    await until_async(lambda: len(server._logins.permits))
    await connect(server)


async def test_a_restart_forgets_permits_and_sources(start_server):
    resolver = Permits({VALIDATOR_HOTKEY})

    def prepare(server):
        server.set_validator_permit_resolver(resolver)
        server.set_source_address_resolver(SourceAllowlist.bypass)

    server = await start_server(
        prepare, require_validator_permit=True, enforce_source_allowlist=True
    )
    await until_async(lambda: server._sources.is_bypass and len(server._logins.permits))
    await server.stop()
    resolver.answer = RuntimeError("no chain")
    server.set_source_address_resolver(resolver.resolve_permitted_validators)
    await server.start()
    assert await server.get_permitted_validator_count() == 0
    assert not await server.is_source_enforcement_bypassed()


async def test_of_two_validators_on_a_connection_one_may_lose_its_permit(start_server):
    resolver = Permits({VALIDATOR_HOTKEY, signer(7).ss58_address})
    server = await start_server(
        lambda s: (refresh_often(s), s.set_validator_permit_resolver(resolver)),
        require_validator_permit=True,
    )
    packet = bytes.fromhex("93a46563686f80ce6b0643ef")
    async with raw_client(port_of(server)) as raw:
        for hotkey in (VALIDATOR, signer(7)):
            assert is_accepted(await raw.login(hotkey))
        resolver.answer = {VALIDATOR_HOTKEY}
        await until_async(lambda: list(server._table.hotkeys) == [VALIDATOR_HOTKEY])
        answer = await raw.ask(frame(3, packet))
        assert answer.data[5:7] == b"\x94\xc3", "the other is still served"
        resolver.answer = set()
        await until_async(lambda: raw.terminated)
        assert raw.terminated.reason_phrase == "validator_permit_lost"


# Sources.


class Sources:
    """A resolver whose answer a test sets."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def resolve_allowed_sources(self) -> object:
        return self.answer


async def test_only_listed_sources_get_an_answer(start_server, make_client, caplog):
    resolver = Sources(SourceAllowlist.enforce(["127.0.0.9"]))
    server = await start_server(
        lambda s: (refresh_often(s), s.set_source_address_resolver(resolver)),
        enforce_source_allowlist=True,
    )
    await until_async(lambda: server._sources.count)
    assert await server.get_allowed_source_count() == 1
    assert not await server.is_source_enforcement_bypassed()
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", port_of(server))
    client = make_client(connect_timeout=0.1, reconnect_initial_backoff=0.01)
    await client.create_endpoint()
    with pytest.raises(LightningConnectionError, match="timed out"):
        await client.query_axon(axon, ECHO)
    assert not server._strangers
    resolver.answer = SourceAllowlist.enforce(["127.0.0.1", "::1"])
    await until_async(lambda: server._sources.count == 2)
    client.config = LightningClientConfig()
    await client.initialize_connections([axon])
    assert (await client.query_axon(axon, ECHO)).success
    resolver.answer = ["127.0.0.9"]
    await until_async(lambda: "allowed sources not refreshed" in caplog.text)
    assert "must return a SourceAllowlist, not list" in caplog.text
    assert await server.get_allowed_source_count() == 2
    resolver.answer = SourceAllowlist.bypass()
    await until_async(lambda: server._sources.is_bypass)
    assert await server.is_source_enforcement_bypassed()
    assert await server.get_allowed_source_count() == 0
    assert (await client.query_axon(axon, ECHO)).success


async def test_before_the_first_answer_no_source_is_listed(start_server, make_client):
    release = threading.Event()

    def resolve() -> SourceAllowlist:
        release.wait(20)
        return SourceAllowlist.bypass()

    server = await start_server(
        lambda s: s.set_source_address_resolver(resolve), enforce_source_allowlist=True
    )
    client = make_client(connect_timeout=5)
    await client.create_endpoint()
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", port_of(server))
    query = asyncio.create_task(client.query_axon(axon, ECHO))
    await until_async(lambda: client._dialling)
    assert not server._strangers
    release.set()
    assert (await query).success, "its first packet is sent again"


# The observer.


async def test_every_way_to_observe_logins(start_server, connect, caplog):
    seen = []

    class Observer:
        def observe_successful_handshake(self, hotkey: str, ip: str) -> None:
            seen.append(("object", hotkey, ip))

    class AsyncObserver:
        async def observe_successful_handshake(self, hotkey: str, ip: str) -> None:
            await asyncio.sleep(0)
            seen.append(("async object", hotkey, ip))

    async def observe(hotkey: str, ip: str) -> None:
        seen.append(("async", hotkey, ip))

    def fail(hotkey: str, ip: str) -> None:
        seen.append(("failing", hotkey, ip))
        raise SystemExit

    server = await start_server()
    for name, observer in (
        ("object", Observer()),
        ("async object", AsyncObserver()),
        ("async", observe),
        ("plain", lambda *who: seen.append(("plain", *who))),
        ("failing", fail),
    ):
        server.set_handshake_observer(observer)
        await connect(server)
        await until_async(lambda: seen)
        assert seen.pop() == (name, VALIDATOR_HOTKEY, "127.0.0.1")
    assert "handshake observer failed" in caplog.text
    server.set_handshake_observer(None)
    await connect(server)
    async with raw_client(port_of(server)) as raw:
        server.set_handshake_observer(lambda *who: seen.append(who))
        await raw.login(signature="")
    assert not seen, "failed logins are not told"


# Strangers.


async def test_a_connection_without_a_login_is_closed_in_time(start_server):
    server = await start_server(login_deadline_secs=0.2)
    async with raw_client(port_of(server)) as raw, raw_client(port_of(server)) as good:
        assert is_accepted(await good.login())
        assert not is_accepted(await raw.login(signature=""))
        await until_async(lambda: raw.terminated)
        assert raw.terminated.reason_phrase == "login deadline"
        assert good.terminated is None
        assert not server._strangers


async def test_so_many_connections_may_be_without_a_login(
    start_server, make_client, caplog
):
    server = await start_server(
        max_unauthenticated_connections=2,
        max_unauthenticated_per_source=2,
        login_deadline_secs=30,
    )
    port = port_of(server)
    async with raw_client(port) as one, raw_client(port):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), raw_client(port):
                    pass
        assert caplog.text.count("2 connections have no login") == 1, "once a minute"
        assert is_accepted(await one.login())
        async with raw_client(port) as three:
            assert is_accepted(await three.login(signer(7)))


async def test_before_the_login_frames_are_small(start_server):
    server = await start_server(max_login_frame_bytes=1000)
    async with raw_client(port_of(server)) as raw:
        big = await raw.ask(frame(3, bytes(1001)), fin=False)
        assert (big.data, big.ended) == (b"", True)
        await big.until(lambda: big.stopped == 0)
        assert b"invalid request format" in (await raw.ask(frame(3, bytes(1000)))).data
        assert is_accepted(await raw.login())
        packet = b"\x93\xa4echo\x81\xa1b\xc6" + (100_000).to_bytes(4, "big")
        packet += bytes(100_000) + b"\x00"
        answer = await raw.ask(frame(3, packet))
        assert len(answer.data) > 100_000


async def test_a_request_has_so_long_to_arrive(start_server):
    """Field case D10: streams that never become a request are freed."""
    server = await start_server(frame_timeout_secs=0.2)
    async with raw_client(port_of(server)) as raw:
        assert is_accepted(await raw.login())
        held = [raw.start(b"\x03\x00\x00", fin=False) for _ in range(100)]
        for stream in held:
            await stream.end()
            assert stream.data == b""
            await stream.until(lambda s=stream: s.stopped == 0)
            raw.reset(stream.id, 0)
        packet = bytes.fromhex("93a46563686f80ce6b0643ef")
        assert (await raw.ask(frame(3, packet))).data[0] == 4
        await until_async(lambda: not in_flight(server))


async def test_idle_validators_can_be_dropped(start_server, connect):
    server = await start_server()
    idle, axon = await connect(server, signer(7))
    busy, _ = await connect(server)
    await server.cleanup_stale_connections()
    assert len(server._table) == 2
    for session in server._table:
        session.last_activity -= 301
    assert (await busy.query_axon(axon, ECHO)).success
    (connection,) = connections(idle)
    await server.cleanup_stale_connections()
    await until_async(lambda: not connection.is_alive)
    assert connection.closed().reason == "cleanup"
    assert list(server._table.hotkeys) == [VALIDATOR_HOTKEY]
    await server.cleanup_stale_connections(max_idle_seconds=-1)
    assert not len(server._table)


async def test_keep_alives_are_no_activity(start_server, connect):
    server = await start_server()
    await connect(server, keep_alive_interval=0.05)
    session = server._table.session_of(VALIDATOR_HOTKEY)
    since = session.last_activity
    engine = session.connection.engine_connection
    start = time.monotonic()
    first = engine.stats()["datagrams_received"]
    await until_async(lambda: time.monotonic() - start > 0.3)
    assert engine.stats()["datagrams_received"] > first + 2
    assert session.last_activity == since


# What it logs.


async def test_the_log_has_one_line_for_each_event(start_server, connect, caplog):
    caplog.set_level("INFO", "lightning.server")
    server = await start_server()
    where = server.local_addr()
    client, _ = await connect(server)
    (connection,) = connections(server)
    address = connection.address
    async with raw_client(port_of(server)) as raw:
        await raw.login(signature="")
        await raw.ask(frame(1, b"\xc1"))
        other = f"127.0.0.1:{raw._transport.get_extra_info('sockname')[1]}"
    await client.close()
    await until_async(lambda: not len(server._table))
    await server.stop()
    assert caplog.messages == [
        f"miner {MINER_HOTKEY} serves on {where}",
        f"validator {VALIDATOR_HOTKEY} has logged in from {address}",
        f"login of '{VALIDATOR_HOTKEY}' from {other} refused: "  # noqa: ISC004 - one line.
        "handshake error: empty signature",
        caplog.messages[3],
        f"validator {VALIDATOR_HOTKEY} at {address} is gone: "  # noqa: ISC004 - one line.
        "read error: connection lost (remote close, code 0x0: client_shutdown)",
        f"miner {MINER_HOTKEY} has stopped",
    ]
    assert caplog.messages[3].startswith(f"login from {other} refused: serialization")


async def test_no_log_has_a_secret_a_signature_or_a_forged_line(
    start_server, connect, caplog
):
    """At DEBUG, of all loggers: what is a peer's is escaped and cut."""
    caplog.set_level("DEBUG")
    messages = []

    def remember(message: bytes) -> bytes:
        signature = VALIDATOR.sign(message)
        messages.append((message, signature))
        return signature

    server = await start_server()
    client, axon = await connect(server)
    client.set_python_signer(remember)
    await client.close_all_connections()
    assert (await client.query_axon(axon, ECHO)).success
    async with raw_client(port_of(server)) as raw:
        await raw.login(validator_hotkey="evil\nlog line " + "x" * 5000)
        await raw.ask(frame(3, b"evil\nlog line"))
    import base64

    ((message, signature),) = messages
    nonce = message.split(b":")[3].decode()
    for secret in (
        base64.b64encode(signature).decode()[:20],
        signature.hex()[:20],
        nonce,
        MINER_SEED.hex(),
        "\nlog line",
        "x" * 200,
    ):
        assert secret not in caplog.text, secret


# Attackers and accidents.


async def test_what_peers_can_cause_at_will_is_a_bounded_number_of_lines(
    start_server, connect, caplog
):
    """Refused logins, undecodable requests and failing handlers by the thousand."""
    caplog.set_level("DEBUG", "lightning")

    def prepare(server):
        server.register_synapse_handler("bad", lambda d: 1 / 0, inline=True)

    server = await start_server(prepare, max_handshake_attempts_per_minute=1000)
    client, axon = await connect(server)
    for _ in range(10):
        answers = await asyncio.gather(
            *(answer_of(client, axon, "bad") for _ in range(100))
        )
        assert {answer.error for answer in answers} == {"request processing failed"}
    async with raw_client(port_of(server)) as raw:
        for n in range(300):
            refused = await raw.login(timestamp=n)
            assert not is_accepted(refused)
            await raw.ask(frame(3, b"nonsense"))
    await server.stop()
    counts = Counter(record.msg for record in caplog.records)
    assert max(counts.values()) <= 10, counts
    assert "held back 990 lines like: handler %r failed: %s" in caplog.messages
    assert len(caplog.records) < 60


async def test_a_peer_that_resets_its_request_is_forgotten(start_server):
    server = await start_server()
    async with raw_client(port_of(server)) as raw:
        assert is_accepted(await raw.login())
        for data in (b"\x03", b"\x03\x00\x00\x00\x09abc"):
            stream = raw.start(data, fin=False)
            await until_async(lambda: in_flight(server))
            raw.reset(stream.id, 5)
            await stream.end()
            await until_async(lambda: not in_flight(server))


async def test_a_peer_that_wants_no_answer_stops_the_handler(start_server):
    cancelled = asyncio.Event()

    async def forever(data: dict) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await start_server(lambda s: s.register_synapse_handler("f", forever))
    async with raw_client(port_of(server)) as raw:
        assert is_accepted(await raw.login())
        stream = raw.start(frame(3, bytes.fromhex("93a16680ce6b0643ef")))
        await until_async(lambda: server._answering)
        raw.stop(stream.id, 0)
        async with asyncio.timeout(10):
            await cancelled.wait()
        await stream.end()
        await until_async(lambda: not in_flight(server) and not server._answering)


async def test_refusing_what_is_not_begun_any_more(start_server, connect):
    """While it stops, requests and connections are not begun."""
    release = threading.Event()
    server = await start_server(
        lambda s: s.register_synapse_handler("w", lambda d: {"w": release.wait(20)})
    )
    client, axon = await connect(server)
    running = asyncio.create_task(answer_of(client, axon, "w"))
    await until_async(lambda: server._answering)
    stopping = asyncio.create_task(server.stop(10))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), raw_client(axon.port):
            pass
    with pytest.raises(ConfigError, match="already started"):
        await server.start()
    release.set()
    assert (await running).success
    await stopping


async def test_it_counts_what_became_of_requests_and_logins(start_server, connect):
    async def wrong(data: dict) -> dict:
        raise ValueError

    def chunks(data: dict):
        yield b"x"

    def prepare(server):
        server.register_synapse_handler("plain", lambda data: data)
        server.register_async_synapse_handler("wrong", wrong)
        server.register_streaming_handler("chunks", chunks)

    server = await start_server(prepare)
    client, axon = await connect(server)
    for _ in range(2):
        assert (await answer_of(client, axon, "plain")).success
        assert not (await answer_of(client, axon, "wrong")).success
        assert not (await answer_of(client, axon, "nobody")).success
        assert await chunks_of(client, axon, "chunks") == [b"x"]
    assert (await answer_of(client, axon, "echo")).success
    # A handler in another's place goes on counting.
    server.register_synapse_handler("plain", lambda data: {})
    assert (await answer_of(client, axon, "plain")).success
    async with raw_client(port_of(server)) as stranger:
        await stranger.ask(frame(3, bytes.fromhex("93a46563686f80ce6b0643ef")))
        await stranger.ask(frame(3, b"x"))
    await until_async(lambda: server.stats().running == 0)
    stats = server.stats()
    counts = {h.name: (h.ok, h.failed, h.timed_out) for h in stats.handlers}
    assert counts == {
        "echo": (1, 0, 0),
        "plain": (3, 0, 0),
        "wrong": (0, 2, 0),
        "chunks": (2, 0, 0),
    }
    assert [h.name for h in stats.handlers if not h.seconds] == ["echo"], "inline"
    assert (stats.unknown, stats.unauthenticated, stats.invalid) == (2, 1, 1)
    assert (stats.logins, stats.logins_refused) == (1, {})
    assert (stats.connections, stats.validators, stats.nonces) == (1, 1, 1)
    assert (stats.permits, stats.queued) == (0, 0)


async def test_how_connections_are_doing(start_server, connect):
    server = await start_server()
    assert server.connections() == ()
    client, axon = await connect(server)
    for _ in range(3):
        await client.query_axon(axon, ECHO)
    (stats,) = server.connections()
    assert stats.hotkeys == (VALIDATOR_HOTKEY,)
    assert stats.address.ip == "127.0.0.1"
    assert stats.state == "active"
    assert (stats.requests, stats.in_flight, stats.failures) == (4, 0, 0)
    assert 0 < stats.min_rtt <= stats.rtt < 5
    assert 0 <= stats.idle <= stats.age < 20
    assert min(stats.bytes_sent, stats.bytes_received, stats.packets_sent) > 0
    assert (stats.packets_lost, stats.last_error) == (0, "")
    await server.stop()
    assert server.connections() == ()


def transport_of(server: AsyncLightningServer):
    return server._endpoint.config


async def test_settings_of_the_transport(start_server, tmp_path):
    server = await start_server(max_handshake_attempts_per_minute=30)
    config = transport_of(server)
    assert config.max_unauthenticated_per_source == 256 // 4
    assert config.max_connections_per_minute == 120
    assert (config.qlog_dir, config.keylog_file) == (None, None)
    server = await start_server(max_unauthenticated_connections=1)
    assert transport_of(server).max_unauthenticated_per_source == 1
    secret = bytes(range(32))
    server = await start_server(
        max_unauthenticated_per_source=3,
        max_connections_per_minute=4,
        max_tracked_rate_ips=5,
        reset_secret=secret,
        qlog_dir=tmp_path,
        keylog_file=tmp_path / "keys",
    )
    config = transport_of(server)
    assert config.max_unauthenticated_per_source == 3
    assert config.max_connections_per_minute == 4
    assert config.max_tracked_rate_ips == 5
    assert config.reset_secret == secret
    assert (config.qlog_dir, config.keylog_file) == (
        str(tmp_path),
        str(tmp_path / "keys"),
    )


async def test_resets_of_before_a_restart_are_made_from_the_key(start_server):
    """By the same key at the same address; at any port there is none of before."""
    assert transport_of(await start_server()).reset_secret == b""
    secrets = []
    for who in (MINER, MINER, signer(7), MINER.sign):
        probe = await start_server(signer=MINER)
        port = port_of(probe)
        await probe.stop()
        for _ in range(2):
            server = await start_server(signer=who, port=port)
            secrets.append(transport_of(server).reset_secret)
            await server.stop()
    assert secrets[0] == secrets[1] != secrets[2] == secrets[3]
    assert secrets[4] == secrets[5] != secrets[0]
    assert secrets[6] == secrets[7] == b"", "nothing is known of the key"
    assert {len(secret) for secret in secrets} == {0, 32}


async def test_a_login_makes_room_for_strangers_of_the_same_source(start_server):
    server = await start_server(max_unauthenticated_per_source=1)
    async with raw_client(port_of(server)) as one:
        assert is_accepted(await one.login())
        async with raw_client(port_of(server)) as two:
            assert is_accepted(await two.login(signer(7)))
    assert server.stats().logins == 2


async def test_setters_do_not_wait_for_a_resolver_that_is_slow(start_server, connect):
    """Nor does anything else."""
    release = threading.Event()
    asked = threading.Event()

    def slow() -> set[str]:
        asked.set()
        release.wait(20)
        return {VALIDATOR_HOTKEY}

    server = await start_server(
        lambda s: s.set_validator_permit_resolver(slow), require_validator_permit=True
    )
    serving = asyncio.create_task(server.serve_forever())
    await until_async(asked.is_set)
    began = time.monotonic()
    server.set_miner_signer(MINER)
    server.set_miner_keypair(MINER_SEED)
    server.set_validator_permit_resolver(slow)
    server.set_source_address_resolver(SourceAllowlist.bypass)
    server.set_handshake_observer(lambda hotkey, ip: None)
    server.set_priority(None)
    server.register_synapse_handler("h", lambda data: data)
    server.register_async_synapse_handler("a", lambda data: data)
    server.register_streaming_handler("s", lambda data: [])
    assert server.connections() == ()
    assert server.stats().permits == 0
    assert time.monotonic() - began < 10
    release.set()
    client, axon = await connect(server)
    assert (await answer_of(client, axon, "h")).success
    await server.stop()
    await serving
