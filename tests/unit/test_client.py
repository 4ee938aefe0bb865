"""The client on asyncio, against our server on loopback."""

import asyncio
import gc
import logging
import socket
import threading
import time
from collections import OrderedDict

import pytest

from lightning import (
    AsyncLightning,
    LightningClient,
    LightningClientConfig,
    PeerAddr,
    QuicAxonInfo,
    QuicRequest,
    QuicResponse,
    dialling,
)
from lightning import client as client_module
from lightning import sessions as sessions_module
from lightning._core.io import transport
from lightning.dialling import first_success
from lightning.errors import (
    ConfigError,
    ConnectionClosed,
    FingerprintMismatch,
    FrameTooLarge,
    HandshakeError,
    HandshakeRejected,
    HotkeyMismatch,
    LightningConnectionError,
    RequestTimeout,
    SigningError,
    StreamError,
)
from lightning.signer import Sr25519Signer
from tests.support.identities import (
    MINER_HOTKEY,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
    signer,
)
from tests.support.inspection import connections, in_flight
from tests.support.raw_peer import raw_server
from tests.support.udp_relay import udp_relay
from tests.support.waiting import until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
OTHERS = [signer(number).ss58_address for number in range(100, 110)]


@pytest.fixture
def silent_port():
    """A port where nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def at(port: int, hotkey: str = MINER_HOTKEY, ip: str = "127.0.0.1") -> QuicAxonInfo:
    return QuicAxonInfo(hotkey, ip, port)


def count_dials(client: AsyncLightning, monkeypatch) -> list[PeerAddr]:
    """Note every dial of a client."""
    dials = []
    dial = client._dial

    async def noted(address: PeerAddr, hotkey: str) -> object:
        dials.append(address)
        return await dial(address, hotkey)

    monkeypatch.setattr(client, "_dial", noted)
    return dials


def accept_hotkeys(client: AsyncLightning, monkeypatch, *real: str) -> list[str]:
    """Let logins succeed for these hotkeys, whoever answers; notes all attempts."""
    tried = []
    honest = AsyncLightning._login

    async def login(connection: object, address: PeerAddr, hotkey: str) -> None:
        tried.append(hotkey)
        if hotkey == MINER_HOTKEY:
            await honest(client, connection, address, hotkey)
        elif hotkey not in real:
            raise HandshakeRejected("rejected by miner", hotkey=hotkey)

    monkeypatch.setattr(client, "_login", login)
    return tried


class Clock:
    """Stands in for the module `time` of the client."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = staticmethod(time.time)


# How it is made.


def test_what_it_is_made_of():
    client = AsyncLightning(VALIDATOR_HOTKEY)
    assert client.wallet_hotkey == VALIDATOR_HOTKEY
    assert client.config == LightningClientConfig()
    assert repr(client) == f"<AsyncLightning {VALIDATOR_HOTKEY}>"
    assert LightningClient is AsyncLightning
    config = LightningClientConfig(connect_timeout=3)
    assert AsyncLightning.with_config("v", config).config is config
    with pytest.raises(TypeError, match="wallet_hotkey must be a str, not bytes"):
        AsyncLightning(b"v")
    with pytest.raises(TypeError, match="not a signer"):
        AsyncLightning("v", signer=3)
    with pytest.raises(ConfigError, match="32 bytes"):
        AsyncLightning("v", signer=b"short")


async def test_every_way_to_set_a_signer(start_server, axon_of, monkeypatch):
    server = await start_server()
    loaded = []

    def from_wallet(*names: str) -> object:
        loaded.append(names)
        return VALIDATOR

    monkeypatch.setattr(client_module.BtWalletSigner, "from_wallet", from_wallet)

    async def sign_later(message: bytes) -> bytes:
        await asyncio.sleep(0)
        return VALIDATOR.sign(message)

    for way in (
        lambda c: c.set_signer(VALIDATOR),
        lambda c: c.set_signer(VALIDATOR_SEED),
        lambda c: c.set_validator_keypair(VALIDATOR_SEED),
        lambda c: c.set_validator_keypair(list(VALIDATOR_SEED)),
        lambda c: c.set_python_signer(VALIDATOR.sign),
        lambda c: c.set_python_signer(lambda message: list(VALIDATOR.sign(message))),
        lambda c: c.set_python_signer(sign_later),
        lambda c: c.set_wallet(),
        lambda c: c.set_wallet("w", "/path", "h"),
    ):
        async with AsyncLightning(VALIDATOR_HOTKEY) as client:
            way(client)
            assert (await client.query_axon(axon_of(server), ECHO)).success
    assert loaded == [
        ("default", "~/.bittensor/wallets", "default"),
        ("w", "/path", "h"),
    ]
    with pytest.raises(ConfigError, match="32 bytes"):
        client.set_validator_keypair(b"short")
    with pytest.raises(TypeError):
        client.set_python_signer(b"no callable")


async def test_nothing_works_before_it_is_told_to_connect(make_client, silent_port):
    client = make_client()
    axon = at(silent_port)
    for call in (
        client.query_axon(axon, ECHO),
        client.query_axon_with_timeout(axon, ECHO, 1.0),
        client.query_axon_stream(axon, ECHO),
        client.update_miner_registry([axon]),
    ):
        with pytest.raises(LightningConnectionError, match="endpoint not initialized"):
            await call
    await client.close_all_connections()
    await client.close()
    with pytest.raises(ConnectionError):
        await client.query_axon(axon, ECHO)


async def test_without_a_signer_every_call_says_so(silent_port):
    async with AsyncLightning(VALIDATOR_HOTKEY) as client:
        axon = at(silent_port)
        for _ in range(2):
            for call in (
                client.initialize_connections([axon]),
                client.update_miner_registry([axon]),
                client.query_axon(axon, ECHO),
                client.query_axon_stream(axon, ECHO),
            ):
                with pytest.raises(SigningError, match="No signer configured"):
                    await call


# Queries.


async def test_a_query(connect, start_server):
    client, axon = await connect(await start_server())
    for request in (ECHO, QuicRequest("echo", {"n": 1})):
        answer = await client.query_axon(axon, request)
        assert isinstance(answer, QuicResponse)
        assert (answer.success, answer.data, answer.error) == (True, {"n": 1}, None)
        assert 0 < answer.latency_ms < 10_000
    answer = await client.query_axon_with_timeout(axon, ECHO, 5)
    assert answer.data == {"n": 1}
    assert (await client.query_axon(axon, {"synapse_type": "echo"})).data == {}


async def test_a_query_to_nobody_is_an_answer(connect, start_server):
    client, axon = await connect(await start_server())
    answer = await client.query_axon(axon, {"synapse_type": "nobody"})
    assert (answer.success, answer.data) == (False, {})
    assert answer.error == "unrecognized synapse type"


async def test_an_unknown_miner_is_dialled_on_demand(
    start_server, axon_of, make_client
):
    server = await start_server()
    client = make_client()
    await client.create_endpoint()
    assert (await client.query_axon(axon_of(server), ECHO)).success
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY}
    assert (await client.query_axon(axon_of(server), ECHO)).success
    assert len(list(connections(client))) == 1
    assert len(list(connections(server))) == 1


async def test_a_request_over_our_own_limit_is_not_sent(connect, start_server):
    server = await start_server()
    client, axon = await connect(server, max_frame_payload_bytes=1 << 20)
    big = {"synapse_type": "echo", "data": {"b": bytes(1 << 20)}}
    for call in (client.query_axon(axon, big), client.query_axon_stream(axon, big)):
        with pytest.raises(FrameTooLarge) as caught:
            await call
        assert caught.value.limit == 1 << 20
        assert caught.value.size > 1 << 20
        assert not in_flight(client)
    assert (await client.query_axon(axon, ECHO)).success


async def test_a_timeout_is_named_and_the_late_answer_dropped(connect, start_server):
    release = threading.Event()
    server = await start_server(
        lambda s: s.register_synapse_handler("slow", lambda d: {"w": release.wait(10)})
    )
    client, axon = await connect(server)
    with pytest.raises(RequestTimeout, match="query timed out") as caught:
        await client.query_axon(axon, {"synapse_type": "slow"}, timeout_secs=0.05)
    assert caught.value.timeout == 0.05
    assert isinstance(caught.value, TimeoutError)
    assert (await client.query_axon(axon, ECHO, 5)).success
    release.set()
    await until_async(lambda: not in_flight(client, server))


async def test_a_thousand_at_once_where_sixteen_streams_are_allowed(
    connect, start_server
):
    """All are answered in order; one more that times out leaves no stream behind."""
    held = asyncio.Event()

    async def wait(data: dict) -> dict:
        await held.wait()
        return data

    server = await start_server(
        lambda s: s.register_synapse_handler("wait", wait),
        max_concurrent_bidi_streams=16,
    )
    client, axon = await connect(server)
    tasks = [
        asyncio.create_task(
            client.query_axon(axon, {"synapse_type": "wait", "data": {"n": n}})
        )
        for n in range(1000)
    ]
    await until_async(lambda: in_flight(client) == 1000)
    with pytest.raises(RequestTimeout):
        await client.query_axon(axon, ECHO, timeout_secs=0.05)
    assert in_flight(client) == 1000
    held.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.data["n"] for answer in answers] == list(range(1000))


async def test_answers_do_not_get_mixed_up(connect, start_server):
    """A hundred streams at once, each with its own bytes of its own size."""
    client, axon = await connect(await start_server())
    bodies = [bytes([n]) * (n * 97) for n in range(100)]
    answers = await asyncio.gather(
        *(
            client.query_axon(axon, {"synapse_type": "echo", "data": {"b": body}})
            for body in bodies
        )
    )
    assert [answer.data["b"] for answer in answers] == bodies


@pytest.mark.parametrize("stage", ["dial", "query", "stream"])
async def test_cancellation_at_every_moment_leaves_nothing(
    stage, start_server, axon_of, make_client
):
    """Whatever turn of the loop it comes in, and with late answers on their way."""

    async def slowly(data: dict) -> dict:
        await asyncio.sleep(0)
        return data

    async def chunks(data: dict):
        for _ in range(3):
            yield b"x" * 2000
            await asyncio.sleep(0)

    def prepare(server):
        server.register_synapse_handler("slowly", slowly)
        server.register_streaming_handler("chunks", chunks)

    server = await start_server(prepare)
    axon = axon_of(server)
    client = make_client()
    await client.create_endpoint()

    async def call() -> object:
        if stage == "stream":
            request = {"synapse_type": "chunks"}
            async with await client.query_axon_stream(axon, request) as stream:
                return await stream.collect_all()
        return await client.query_axon(axon, {"synapse_type": "slowly"})

    if stage != "dial":
        await call()
    outcomes = set()
    for turns in range(0, 120, 4 if stage == "dial" else 1):
        task = asyncio.create_task(call())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
            outcomes.add("done")
        except asyncio.CancelledError:
            outcomes.add("cancelled")
        if stage == "dial":
            await client.close_all_connections()
    assert "cancelled" in outcomes
    await until_async(lambda: not in_flight(client, server))
    assert await call()


async def test_when_the_server_goes_what_runs_fails_with_its_reason(
    connect, start_server
):
    async def forever(data: dict) -> dict:
        await asyncio.Event().wait()

    server = await start_server(lambda s: s.register_synapse_handler("f", forever))
    client, axon = await connect(server)
    queries = [
        asyncio.create_task(client.query_axon(axon, {"synapse_type": "f"}))
        for _ in range(3)
    ]
    await until_async(lambda: server._answering == 3)
    await server.stop(0)
    for query in queries:
        with pytest.raises(ConnectionClosed) as caught:
            await query
        error = caught.value
        assert (error.initiator, error.code) == ("remote", 0)
        assert error.reason == "server_shutdown"
        assert "remote close, code 0x0: server_shutdown" in str(error)


async def test_when_the_path_goes_silent_what_runs_fails_by_timeout(
    start_server, make_client
):
    async def forever(data: dict) -> dict:
        await asyncio.Event().wait()

    server = await start_server(lambda s: s.register_synapse_handler("f", forever))
    async with udp_relay(*server.local_addr()) as relay:
        client = make_client(idle_timeout=0.4, keep_alive_interval=0.1)
        await client.initialize_connections([at(relay.port)])
        query = asyncio.create_task(
            client.query_axon(at(relay.port), {"synapse_type": "f"})
        )
        await until_async(lambda: server._answering)
        relay.is_open = False
        with pytest.raises(ConnectionClosed) as caught:
            await query
        assert caught.value.timed_out
        assert "idle timeout" in str(caught.value)
        await server.stop(0)


async def test_closing_fails_what_runs(connect, start_server):
    async def forever(data: dict) -> dict:
        await asyncio.Event().wait()

    server = await start_server(lambda s: s.register_synapse_handler("f", forever))
    client, axon = await connect(server)
    query = asyncio.create_task(client.query_axon(axon, {"synapse_type": "f"}))
    await until_async(lambda: server._answering)
    await client.close()
    with pytest.raises(ConnectionClosed) as caught:
        await query
    assert (caught.value.initiator, caught.value.reason) == ("local", "client_shutdown")
    await until_async(lambda: not server._answering)


async def test_closing_cuts_off_a_dial(make_client, silent_port):
    client = make_client()
    await client.create_endpoint()
    query = asyncio.create_task(client.query_axon(at(silent_port), ECHO))
    init = asyncio.create_task(client.initialize_connections([at(silent_port)]))
    await until_async(lambda: client._dialling)
    await client.close()
    with pytest.raises(LightningConnectionError, match="cut off by a close"):
        await query
    await init
    assert not client._dialling


# Life cycles.


async def test_it_may_be_closed_and_used_again(connect, start_server):
    client, axon = await connect(await start_server())
    for close in (client.close_all_connections, client.close, client.close):
        await close()
        assert await client.authenticated_hotkeys() == set()
        assert await client.get_connection_stats() == {
            "total_connections": "0",
            "active_miners": "0",
        }
        assert (await client.query_axon(axon, ECHO)).success


async def test_as_a_context_manager_it_closes(start_server, axon_of):
    server = await start_server()
    async with AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        assert (await client.query_axon(axon_of(server), ECHO)).success
        (connection,) = connections(client)
    assert connection.closed().reason == "client_shutdown"
    await until_async(lambda: not len(server._table))


def test_it_moves_to_another_loop_when_its_own_is_over(start_blocking_server, axon_of):
    """One ``asyncio.run`` after the other; two loops at once are refused."""
    axon = axon_of(start_blocking_server())
    client = AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR)

    async def use(close: bool = True) -> None:
        await client.initialize_connections([axon])
        assert (await client.query_axon(axon, ECHO)).success
        if close:
            await client.close()

    asyncio.run(use())
    asyncio.run(use())

    async def use_twice() -> None:
        await client.initialize_connections([axon])
        with pytest.raises(RuntimeError, match="on another event loop"):
            await asyncio.to_thread(asyncio.run, client.query_axon(axon, ECHO))
        await client.close()

    asyncio.run(use_twice())
    # Left open: its socket is found unclosed, and it dials anew.
    asyncio.run(use(close=False))

    def use_again() -> None:
        asyncio.run(use())
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        use_again()


async def test_two_clients_share_nothing(connect, start_server):
    server = await start_server()
    one, axon = await connect(server)
    two, _ = await connect(server, signer(7))
    await one.close()
    assert (await two.query_axon(axon, ECHO)).success
    await until_async(lambda: len(list(connections(server))) == 1)


# Where miners are.


async def test_an_ipv6_miner(start_server, connect):
    server = await start_server(host="::1")
    client, axon = await connect(server)
    assert (await client.query_axon(axon, ECHO)).success
    stats = await client.get_connection_stats()
    assert stats[f"connection_[::1]:{axon.port}"] == "active"


async def test_one_client_serves_both_families(start_server, make_client, axon_of):
    servers = [await start_server(host=host) for host in ("127.0.0.1", "::1")]
    client = make_client()
    for server in servers:
        await client.initialize_connections([axon_of(server)])
    for server in servers:
        assert (await client.query_axon(axon_of(server), ECHO)).success
    assert set(client._endpoints) == {socket.AF_INET, socket.AF_INET6}


async def test_a_miner_by_its_name(start_server, make_client):
    server = await start_server()
    client = make_client()
    axon = at(server.local_addr().port, ip="localhost")
    await client.initialize_connections([axon])
    assert (await client.query_axon(axon, ECHO)).success
    assert f"connection_localhost:{axon.port}" in await client.get_connection_stats()


@pytest.mark.parametrize(
    "ip", ["name.invalid", "", "256.1.1.1", "x" * 70, "a..b", "é\ud800"]
)
async def test_a_place_that_does_not_exist(ip, make_client, caplog):
    client = make_client(connect_timeout=5)
    await client.initialize_connections([at(1, ip=ip)])
    assert "invalid remote address" in caplog.text
    with pytest.raises(LightningConnectionError, match="invalid remote address") as e:
        await client.query_axon(at(1, ip=ip), ECHO)
    assert e.value.address == f"{ip}:1"


async def test_a_host_without_ipv6_gets_a_clear_error(make_client, monkeypatch):
    real = socket.socket

    def without_ipv6(family=-1, *args, **kwargs):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *args, **kwargs)

    client = make_client()
    await client.create_endpoint()
    monkeypatch.setattr("lightning._core.io.transport.socket.socket", without_ipv6)
    with pytest.raises(LightningConnectionError, match="family not supported"):
        await client.query_axon(at(9, ip="::1"), ECHO)


async def test_of_several_places_the_first_that_answers_is_taken(
    start_server, make_client, monkeypatch, silent_port
):
    server = await start_server()
    monkeypatch.setattr(dialling, "HEAD_START", 0.02)

    async def resolve(address: PeerAddr) -> list:
        ports = (silent_port, server.local_addr().port)
        return [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(dialling, "resolve", resolve)
    client = make_client()
    axon = at(1, ip="miner.example")
    await client.initialize_connections([axon])
    assert (await client.query_axon(axon, ECHO)).success
    await until_async(lambda: len(client._endpoints[socket.AF_INET].connections) <= 8)


async def test_first_success_takes_turns():
    log = []

    def attempt(name: str, outcome: str = "", wait: bool = False):
        async def run() -> str:
            log.append(name)
            try:
                if wait:
                    await asyncio.Event().wait()
            finally:
                log.append(f"{name} ended")
            if outcome:
                raise LightningConnectionError(outcome)
            return name

        return run

    assert await first_success([attempt("a")], 1) == "a"
    assert await first_success([attempt("a"), attempt("b")], 10) == "a"
    assert await first_success([attempt("a", "no"), attempt("b")], 10) == "b"
    log.clear()
    slow = [attempt("a", wait=True), attempt("b", wait=True), attempt("c")]
    assert await first_success(slow, 0.01) == "c"
    await asyncio.sleep(0)
    assert set(log) == {n + e for n in "abc" for e in ("", " ended")}
    with pytest.raises(LightningConnectionError, match="first"):
        await first_success([attempt("a", "first"), attempt("b", "second")], 10)
    task = asyncio.create_task(first_success(slow[:2], 0.01))
    await until_async(lambda: log.count("b") == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Connections.


async def test_queries_on_a_dead_connection_make_one_dial(
    start_server, connect, monkeypatch
):
    server = await start_server()
    client, axon = await connect(server)
    await server.stop()
    restarted = await start_server(port=axon.port)
    await until_async(lambda: not list(connections(client)))
    dials = count_dials(client, monkeypatch)
    answers = await asyncio.gather(*(client.query_axon(axon, ECHO) for _ in range(50)))
    assert all(answer.success for answer in answers)
    assert dials == [axon.address]
    assert len(list(connections(restarted))) == 1


async def test_those_who_share_a_failure_get_one_each(make_client, silent_port):
    client = make_client(connect_timeout=0.05)
    await client.create_endpoint()
    queries = [client.query_axon(at(silent_port), ECHO) for _ in range(20)]
    errors = await asyncio.gather(*queries, return_exceptions=True)
    address = f"127.0.0.1:{silent_port}"
    text = f"Reconnection to {address} timed out after 0.05s"
    assert {error.detail for error in errors} == {text}
    assert {error.hotkey for error in errors} == {MINER_HOTKEY}
    assert all(0.05 <= error.elapsed < 5 for error in errors)
    assert len({id(error) for error in errors}) == 20
    assert client._registry.backoff(at(silent_port).address).failures == 1


async def test_a_fake_hotkey_does_not_fail_the_real_one(start_server, make_client):
    """Both are asked for at once, over a connection that has yet to be made."""
    server = await start_server()
    port = server.local_addr().port
    client = make_client()
    await client.create_endpoint()
    fake, real = await asyncio.gather(
        client.query_axon(at(port, OTHERS[0]), ECHO),
        client.query_axon(at(port), ECHO),
        return_exceptions=True,
    )
    assert isinstance(fake, HotkeyMismatch)
    assert fake.address == f"127.0.0.1:{port}"
    assert fake.hotkey == OTHERS[0]
    assert real.success
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY}
    assert len(list(connections(client))) == 1


async def test_where_nobody_logs_in_the_connection_is_closed(
    start_server, make_client, caplog
):
    caplog.set_level("INFO")
    server = await start_server()
    port = server.local_addr().port
    client = make_client()
    await client.initialize_connections([at(port, hotkey) for hotkey in OTHERS[:3]])
    assert not list(connections(client))
    assert await client.authenticated_hotkeys() == set()
    assert (await client.get_connection_stats())["total_connections"] == "0"
    await until_async(lambda: not list(connections(server)))
    for hotkey in OTHERS[:3]:
        assert f"cannot reach {hotkey} at 127.0.0.1:{port}" in caplog.text


async def test_a_new_hotkey_logs_in_on_the_live_connection(
    start_server, connect, monkeypatch
):
    client, axon = await connect(await start_server())
    tried = accept_hotkeys(client, monkeypatch, *OTHERS[:2])
    dials = count_dials(client, monkeypatch)
    queries = [client.query_axon(at(axon.port, OTHERS[0]), ECHO) for _ in range(10)]
    assert all(answer.success for answer in await asyncio.gather(*queries))
    assert tried == [OTHERS[0]]
    await client.initialize_connections([axon, at(axon.port, OTHERS[1])])
    assert tried == OTHERS[:2]
    with pytest.raises(HandshakeRejected):
        await client.query_axon(at(axon.port, OTHERS[2]), ECHO)
    with pytest.raises(LightningConnectionError, match="in backoff") as caught:
        await client.query_axon(at(axon.port, OTHERS[2]), ECHO)
    assert 0 < caught.value.retry_after <= 1
    assert (await client.query_axon(axon, ECHO)).success, "the others are not affected"
    assert dials == []
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY, *OTHERS[:2]}


async def test_a_login_that_gets_no_answer_times_out(make_client):
    async with raw_server(
        prepare=lambda s: setattr(s, "answer_login", lambda *_: b"")
    ) as raw:
        raw._on_data = lambda *_: None
        client = make_client(connect_timeout=0.2)
        await client.create_endpoint()
        with pytest.raises(HandshakeError, match="timed out") as caught:
            await client.query_axon(raw.axon, ECHO)
        assert caught.value.address == f"127.0.0.1:{raw.port}"
        assert not list(connections(client))
        assert not client._attempts


async def test_after_a_reconnect_all_of_the_address_log_in_again(
    start_server, connect, monkeypatch, caplog
):
    server = await start_server()
    client, axon = await connect(server)
    accept_hotkeys(client, monkeypatch, MINER_HOTKEY, *OTHERS[:3])
    await client.initialize_connections([at(axon.port, h) for h in OTHERS[:3]])
    await server.stop()
    await start_server(port=axon.port)
    tried = accept_hotkeys(client, monkeypatch, MINER_HOTKEY, OTHERS[0])
    await until_async(lambda: not list(connections(client)))
    assert len(await client.authenticated_hotkeys()) == 4
    assert (await client.query_axon(axon, ECHO)).success
    await until_async(lambda: not client._attempts)
    assert sorted(tried) == sorted([MINER_HOTKEY, *OTHERS[:3]])
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY, OTHERS[0]}
    assert caplog.text.count("no login of") == 2
    assert (await client.query_axon(at(axon.port, OTHERS[0]), ECHO)).success
    assert len(tried) == 4, "it was already logged in"


async def test_back_off_doubles_then_probes_slowly_for_ever(
    make_client, silent_port, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr(sessions_module, "time", clock)
    client = make_client(connect_timeout=0.02, reconnect_max_backoff=6)
    await client.create_endpoint()
    axon = at(silent_port)
    delays = []
    for _ in range(8):
        with pytest.raises(LightningConnectionError, match="timed out after"):
            await client.query_axon(axon, ECHO)
        for early in (0.01, 0.0):
            with pytest.raises(LightningConnectionError, match="in backoff") as caught:
                await client.query_axon(axon, ECHO)
            if not early:
                delays.append(caught.value.retry_after)
            clock.now += early
        clock.now += delays[-1]
    assert delays == pytest.approx(
        [1 - 0.01, 2 - 0.01, 4 - 0.01, 6 - 0.01, *[60 - 0.01] * 4]
    )


async def test_without_a_slow_probe_it_gives_up_until_the_registry_is_updated(
    make_client, silent_port, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr(sessions_module, "time", clock)
    client = make_client(
        connect_timeout=0.02,
        reconnect_max_retries=1,
        reconnect_slow_probe_interval=None,
    )
    await client.create_endpoint()
    axon = at(silent_port)
    with pytest.raises(LightningConnectionError, match="timed out"):
        await client.query_axon(axon, ECHO)
    clock.now += 1e9
    text = r"attempts exhausted for 127.0.0.1:\d+ \(1/1\), awaiting registry refresh"
    with pytest.raises(LightningConnectionError, match=text):
        await client.query_axon(axon, ECHO)
    await client.update_miner_registry([axon])
    with pytest.raises(LightningConnectionError, match="timed out"):
        await client.query_axon(axon, ECHO)


async def test_success_ends_the_back_off(start_server, connect, monkeypatch):
    server = await start_server()
    client, axon = await connect(server)
    clock = Clock()
    monkeypatch.setattr(sessions_module, "time", clock)
    await server.stop()
    await until_async(lambda: not list(connections(client)))
    for _ in range(2):
        with pytest.raises(LightningConnectionError, match="nobody listens there"):
            await client.query_axon(axon, ECHO)
        clock.now += 2
    await start_server(port=axon.port)
    assert (await client.query_axon(axon, ECHO)).success
    assert client._registry.backoff(axon.address).failures == 0


async def test_failed_initial_connections_are_no_failures_of_queries(
    make_client, silent_port, caplog
):
    client = make_client(connect_timeout=0.05)
    await client.initialize_connections([at(silent_port)])
    assert f"cannot reach {MINER_HOTKEY} at 127.0.0.1:{silent_port}" in caplog.text
    with pytest.raises(LightningConnectionError, match="timed out"):
        await client.query_axon(at(silent_port), ECHO)


async def test_whoever_gives_up_leaves_the_attempt_to_the_others(
    start_server, make_client, axon_of
):
    server = await start_server()
    client = make_client()
    await client.create_endpoint()
    first, second = (
        asyncio.create_task(client.query_axon(axon_of(server), ECHO)) for _ in range(2)
    )
    await until_async(lambda: client._dialling)
    first.cancel()
    assert (await second).success
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(list(connections(server))) == 1


async def test_a_quick_login_leaves_with_what_completes_the_handshake(
    start_server, connect, monkeypatch
):
    """It waits for no turn of the loop, at either end."""

    async def sign_later(*args: object) -> bytes:
        raise AssertionError("too late")

    server = await start_server()
    monkeypatch.setattr(sessions_module, "sign", sign_later)
    spawned = []
    monkeypatch.setattr(server._logins, "_spawn", lambda *args: spawned.append(args))
    client, _ = await connect(server)
    assert not spawned
    # Two Initials, for the server asks for a proof of our address, and what completes
    # the handshake; a slow machine may acknowledge once more.
    assert client._endpoints[socket.AF_INET].stats()["sent"] <= 4


async def test_a_hotkeys_next_client_is_asked_for_no_proof_of_its_address(
    start_server, make_client, axon_of, monkeypatch
):
    """What the server gave is used once, by nobody else, and kept for some only."""
    monkeypatch.setattr(transport, "_tokens", OrderedDict())
    servers = [await start_server() for _ in range(2)]

    async def retries(server, signer=VALIDATOR, *, close=True) -> int:
        client = make_client(signer)
        await client.initialize_connections([axon_of(server)])
        assert len(await client.authenticated_hotkeys()) == 1
        if close:
            await client.close()
        return server._endpoint.stats()["retries_sent"]

    assert await retries(servers[0]) == 1
    assert await retries(servers[0]) == 1
    assert await retries(servers[0], signer(7)) == 2
    assert await retries(servers[0], close=False) == 2
    assert await retries(servers[0]) == 3
    monkeypatch.setattr(transport, "TOKENS_KEPT", 1)
    assert await retries(servers[1]) == 1
    assert list(transport._tokens) == [
        (VALIDATOR_HOTKEY, tuple(axon_of(servers[1]).address))
    ]
    assert await retries(servers[0]) == 4


async def test_of_several_connections_none_logs_in_before_it_is_chosen(
    start_server, make_client, monkeypatch
):
    """The server would end the chosen one for the other's login."""
    server = await start_server()

    async def resolve(address: PeerAddr) -> list:
        return [(socket.AF_INET, tuple(server.local_addr()))] * 2

    begun = []
    monkeypatch.setattr(dialling, "resolve", resolve)
    monkeypatch.setattr(dialling, "HEAD_START", 0)
    client = make_client()
    monkeypatch.setattr(client, "_begin_login", lambda *args: begun.append(args))
    axon = at(1, ip="miner.example")
    await client.initialize_connections([axon])
    assert not begun
    assert (await client.query_axon(axon, ECHO)).success


async def test_a_key_that_cannot_sign_is_named(start_server, axon_of, make_client):
    """Also where its login would have left with the handshake."""

    class Locked:
        public_key, ss58_address = VALIDATOR.public_key, VALIDATOR.ss58_address

        def sign(self, data: bytes) -> bytes:
            raise ValueError("locked")

    server = await start_server()
    client = make_client(Sr25519Signer.from_keypair(Locked()))
    await client.create_endpoint()
    with pytest.raises(SigningError, match="locked"):
        await client.query_axon(axon_of(server), ECHO)
    assert not list(connections(client))


async def test_a_signer_that_fails_is_named(start_server, axon_of, make_client):
    server = await start_server()
    client = make_client()
    await client.create_endpoint()

    def fail(message: bytes) -> bytes:
        raise ValueError("the device is locked")

    client.set_python_signer(fail)
    with pytest.raises(SigningError, match="the device is locked"):
        await client.query_axon(axon_of(server), ECHO)
    assert not list(connections(client))


async def test_a_slow_signer_does_not_hold_up_others(start_server, connect, axon_of):
    """It runs in a thread; the loop and other connections go on."""
    servers = [await start_server(), await start_server()]
    client, axon = await connect(servers[0])
    release = threading.Event()

    def slowly(message: bytes) -> bytes:
        release.wait(10)
        return VALIDATOR.sign(message)

    client.set_python_signer(slowly)
    waiting = asyncio.create_task(client.query_axon(axon_of(servers[1]), ECHO))
    for _ in range(3):
        assert (await client.query_axon(axon, ECHO)).success
    assert not waiting.done()
    release.set()
    assert (await waiting).success


async def test_an_unforeseen_error_of_an_attempt_reaches_the_caller(
    connect, start_server, monkeypatch
):
    client, axon = await connect(await start_server())

    async def login(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client, "_login", login)
    with pytest.raises(ZeroDivisionError):
        await client.query_axon(at(axon.port, OTHERS[0]), ECHO)
    with pytest.raises(ZeroDivisionError):
        await client.initialize_connections([at(axon.port, OTHERS[0])])


async def test_no_login_without_a_certificate(connect, start_server, monkeypatch):
    client, axon = await connect(await start_server())
    monkeypatch.setattr(
        "lightning._core.io.transport.Connection.certificate", property(lambda _: b"")
    )
    with pytest.raises(FingerprintMismatch, match="no certificate"):
        await client.query_axon(at(axon.port, OTHERS[0]), ECHO)


async def test_a_connection_dropped_during_its_login_is_not_enrolled(
    connect, start_server, monkeypatch
):
    client, axon = await connect(await start_server())

    async def drop(*args: object) -> None:
        client._drop(axon.address, "test")

    monkeypatch.setattr(client, "_login", drop)
    with pytest.raises(LightningConnectionError, match="was closed"):
        await client.query_axon(at(axon.port, OTHERS[0]), ECHO)
    assert OTHERS[0] not in await client.authenticated_hotkeys()


# Capacity.


async def test_there_is_room_for_so_many_addresses(
    start_server, make_client, axon_of, caplog
):
    servers = [await start_server(signer=signer(n)) for n in range(3)]
    client = make_client(max_connections=2)
    await client.initialize_connections([axon_of(server) for server in servers])
    assert len(list(connections(client))) == 2, "dials under way count, too"
    assert caplog.text.count("no room for") == 1
    left = next(s for s in servers if not list(connections(s)))
    with pytest.raises(LightningConnectionError, match="max_connections"):
        await client.query_axon(axon_of(left), ECHO)
    kept = [server for server in servers if server is not left]
    gone = axon_of(kept[0])
    await kept[0].stop()
    await until_async(lambda: len(list(connections(client))) == 1)
    assert (await client.query_axon(axon_of(left), ECHO)).success, "no back-off"
    with pytest.raises(LightningConnectionError, match="max_connections"):
        await client.query_axon(gone, ECHO)


async def test_hotkeys_do_not_count_for_the_room(start_server, connect, monkeypatch):
    client, axon = await connect(await start_server(), max_connections=1)
    accept_hotkeys(client, monkeypatch, *OTHERS)
    await client.initialize_connections([at(axon.port, hotkey) for hotkey in OTHERS])
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY, *OTHERS}


async def test_the_dead_make_room_for_the_living(start_server, make_client, axon_of):
    old, new = await start_server(), await start_server(signer=signer(1))
    client = make_client(max_connections=1)
    await client.initialize_connections([axon_of(old)])
    gone = axon_of(old).address
    await old.stop()
    await until_async(lambda: not list(connections(client)))
    assert (await client.query_axon(axon_of(new), ECHO)).success
    stats = await client.get_connection_stats()
    assert stats["total_connections"] == "1"
    assert stats[f"connection_{gone}"] == "missing"


# The registry.


async def test_an_update_alone_is_enough_to_query(start_server, make_client, axon_of):
    server = await start_server()
    client = make_client(connect_timeout=1)
    await client.create_endpoint()
    dead = at(1, OTHERS[0], "192.0.2.1")
    for _ in range(3):
        await client.update_miner_registry([axon_of(server), dead])
        assert (await client.query_axon(axon_of(server), ECHO)).success
        dead = at(1, OTHERS[0], "127.0.0.1")
        client.config = LightningClientConfig(connect_timeout=0.05)
    assert len(list(connections(server))) == 1


async def test_an_update_removes_moves_and_adds(
    start_server, make_client, axon_of, monkeypatch, caplog
):
    caplog.set_level("INFO", "lightning.server")
    a, b, c = [await start_server(signer=signer(n)) for n in (1, 2, 3)]
    client = make_client()
    await client.initialize_connections([axon_of(a), axon_of(b)])
    accept_hotkeys(client, monkeypatch, *(s.miner_hotkey for s in (a, b, c)))
    moved = axon_of(c)
    moved.hotkey = b.miner_hotkey
    await client.update_miner_registry([moved, axon_of(c)])
    assert await client.authenticated_hotkeys() == {b.miner_hotkey, c.miner_hotkey}
    await until_async(lambda: not len(a._table) and not len(b._table))
    assert "miner_deregistered" in caplog.text
    assert "miner_addr_changed" in caplog.text
    assert {str(x.address) for x in connections(client)} == {str(c.local_addr())}


async def test_a_hotkey_that_leaves_does_not_take_the_others_along(
    start_server, connect, monkeypatch
):
    client, axon = await connect(await start_server())
    accept_hotkeys(client, monkeypatch, *OTHERS[:2])
    await client.initialize_connections([at(axon.port, h) for h in OTHERS[:2]])
    (connection,) = connections(client)
    await client.update_miner_registry([axon, at(axon.port, OTHERS[1])])
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY, OTHERS[1]}
    assert connection.is_alive
    await client.update_miner_registry([])
    assert not connection.is_alive
    assert await client.authenticated_hotkeys() == set()


async def test_an_update_prunes_the_dead(start_server, connect, caplog):
    server = await start_server()
    client, axon = await connect(server, connect_timeout=0.05)
    await server.stop()
    await until_async(lambda: not list(connections(client)))
    stats = await client.get_connection_stats()
    assert stats["active_miners"] == "1"
    assert stats[f"connection_{axon.address}"] == (
        "closed(read error: connection lost (remote close, code 0x0: server_shutdown))"
    )
    await client.update_miner_registry([axon])
    assert await client.get_connection_stats() == {
        "total_connections": "0",
        "active_miners": "0",
    }
    await start_server(port=axon.port)
    client.config = LightningClientConfig()
    await client.update_miner_registry([axon])
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY}


async def test_of_a_hotkey_listed_twice_the_last_counts(start_server, make_client):
    a, b = await start_server(), await start_server()
    client = make_client()
    await client.create_endpoint()
    ports = [server.local_addr().port for server in (a, b)]
    await client.update_miner_registry([at(ports[0]), at(ports[1])])
    assert [c.address.port for c in connections(client)] == ports[1:]


async def test_a_hotkey_that_moves_by_query_closes_its_old_address(
    start_server, connect, axon_of
):
    a, b = await start_server(), await start_server()
    client, _ = await connect(a)
    assert (await client.query_axon(axon_of(b), ECHO)).success
    await until_async(lambda: not len(a._table))
    assert [c.address for c in connections(client)] == [b.local_addr()]


async def test_connected_addresses_are_kept_as_they_are(start_server, connect):
    client, axon = await connect(await start_server())
    (connection,) = connections(client)
    for _ in range(3):
        await client.initialize_connections([axon, axon])
        await client.update_miner_registry([axon])
    assert list(connections(client)) == [connection]


# What it tells.


async def test_stats_are_the_peers_texts(start_server, connect):
    client, axon = await connect(await start_server())
    assert await client.get_connection_stats() == {
        "total_connections": "1",
        "active_miners": "1",
        f"connection_{axon.address}": "active",
    }
    hotkeys = await client.authenticated_hotkeys()
    hotkeys.clear()
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY}


async def test_a_lost_connection_is_one_line_in_the_log(start_server, connect, caplog):
    caplog.set_level("INFO", "lightning.client")
    server = await start_server()
    client, axon = await connect(server)
    assert caplog.messages == [
        f"logged in with miner {MINER_HOTKEY} at {axon.address}",
        "1 miners: 1 connected",
    ]
    caplog.clear()
    await server.stop()
    await until_async(lambda: not list(connections(client)))
    assert caplog.messages == [
        f"connection to {axon.address} lost: read error: connection lost "  # noqa: ISC004 - one line.
        "(remote close, code 0x0: server_shutdown)"
    ]
    caplog.clear()
    await client.close()
    assert not caplog.messages


async def test_another_process_with_our_hotkey_is_pointed_out(
    start_server, connect, caplog
):
    """The server closes the older connection; which of two is wrong, people know."""
    server = await start_server()
    first, axon = await connect(server)
    second, _ = await connect(server)
    await until_async(lambda: not list(connections(first)))
    (record,) = [r for r in caplog.records if "another process" in r.message]
    assert record.levelno == logging.WARNING
    assert f"another process has logged in at {axon.address}" in record.message
    assert (await second.query_axon(axon, ECHO)).success
    assert (await first.query_axon(axon, ECHO)).success, "and it takes over again"


async def test_a_stream_needs_a_chunk_timeout_to_give_up(start_server, connect):
    async def silent(data: dict):
        yield b"one"
        await asyncio.Event().wait()

    server = await start_server(lambda s: s.register_streaming_handler("s", silent))
    client, axon = await connect(server, stream_chunk_timeout=0.1)
    stream = await client.query_axon_stream(axon, {"synapse_type": "s"})
    assert await stream.next_chunk() == b"one"
    with pytest.raises(StreamError, match="chunk read timed out"):
        await stream.next_chunk()
    await until_async(lambda: not server._answering)
