"""The faces whose calls block, against each other on loopback."""

import asyncio
import gc
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    Lightning,
    LightningClientConfig,
    LightningServer,
    LightningServerConfig,
    PeerAddr,
    QuicAxonInfo,
    SourceAllowlist,
)
from lightning import client as client_module
from lightning import server as server_module
from lightning.errors import (
    ConfigError,
    ConnectionClosed,
    HandshakeRejected,
    LightningConnectionError,
    RequestTimeout,
)
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    MINER_SEED,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
    signer,
)
from tests.support.inspection import connections, in_flight
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
ECHO = {"synapse_type": "echo", "data": {"n": 1}}


@pytest.fixture
def pair(start_blocking_server, make_blocking_client, axon_of):
    """A server, a client that has logged in, and the axon."""

    def pair(prepare=lambda server: None, **settings):
        server = start_blocking_server(prepare, **settings)
        client = make_blocking_client()
        axon = axon_of(server)
        client.initialize_connections([axon])
        return server, client, axon

    return pair


def io_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [n for n in names if n in ("lightning-client", "lightning-server")]


# How they are made.


def test_every_argument_of_the_client_is_a_setting():
    client = Lightning(VALIDATOR_HOTKEY, 11, 151, 31, 2, 61, 6, 2**21, 2**22, 9, 3)
    assert client.config == LightningClientConfig(
        connect_timeout=11,
        idle_timeout=151,
        keep_alive_interval=31,
        reconnect_initial_backoff=2,
        reconnect_max_backoff=61,
        reconnect_max_retries=6,
        max_frame_payload_bytes=2**21,
        max_stream_payload_bytes=2**22,
        max_connections=9,
        stream_chunk_timeout=3,
    )
    assert client.wallet_hotkey == VALIDATOR_HOTKEY
    assert repr(client) == f"<Lightning {VALIDATOR_HOTKEY}>"
    assert Lightning(VALIDATOR_HOTKEY).config == LightningClientConfig()
    assert Lightning("v", stream_chunk_timeout_secs=0).config.stream_chunk_timeout is (
        None
    )
    config = LightningClientConfig(connect_timeout=3, max_connections=7)
    merged = Lightning("v", connect_timeout_secs=4, config=config).config
    assert (merged.connect_timeout, merged.max_connections) == (4, 7)
    assert not io_threads()


def test_every_argument_of_the_server_is_a_setting():
    server = LightningServer(
        MINER_HOTKEY, "::1", 9, 301, 151, 31, 61, 99, 2**21, 5, 9, 29, 17, True, 7, 8
    )
    assert server.config == LightningServerConfig(
        max_signature_age_secs=301,
        idle_timeout_secs=151,
        keep_alive_interval_secs=31,
        nonce_cleanup_interval_secs=61,
        max_nonce_entries=99,
        max_frame_payload_bytes=2**21,
        max_connections=5,
        handshake_timeout_secs=9,
        max_handshake_attempts_per_minute=29,
        max_concurrent_bidi_streams=17,
        require_validator_permit=True,
        validator_permit_refresh_secs=7,
        handler_timeout_secs=8,
    )
    assert server.miner_hotkey == MINER_HOTKEY
    assert repr(server) == f"<LightningServer {MINER_HOTKEY} ::1:9>"
    default = LightningServer(MINER_HOTKEY)
    assert repr(default) == f"<LightningServer {MINER_HOTKEY} 0.0.0.0:8443>"
    assert default.config == LightningServerConfig()
    config = LightningServerConfig(max_connections=7, handler_timeout_secs=3)
    merged = LightningServer("m", handler_timeout_secs=4, config=config).config
    assert (merged.max_connections, merged.handler_timeout_secs) == (7, 4)


@pytest.mark.parametrize(
    ("face", "arguments"),
    [
        (Lightning, {"wallet_hotkey": None}),
        (Lightning, {"wallet_hotkey": "v", "connect_timeout_secs": 0}),
        (LightningServer, {"miner_hotkey": None}),
        (LightningServer, {"miner_hotkey": "m", "max_connections": 0}),
    ],
)
def test_a_constructor_that_fails_leaves_nothing(face, arguments):
    """Its finalizer, too, is silent."""
    with pytest.raises((TypeError, ConfigError)):
        face(**arguments)
    gc.collect()


@pytest.mark.parametrize(
    ("face", "model"),
    [(Lightning, AsyncLightning), (LightningServer, AsyncLightningServer)],
)
def test_both_faces_have_the_same_methods(face, model):
    """With the same arguments; ``with_config`` is what the blocking ones' is for."""

    def methods(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }

    def names(found: dict) -> dict[str, list[tuple]]:
        return {
            name: [(p.name, p.kind, p.default) for p in parameters]
            for name, parameters in found.items()
        }

    assert names(methods(face)) == names(methods(model))


# Queries.


def test_a_query_gives_a_plain_dict(pair):
    server, client, axon = pair()
    answer = client.query_axon(axon, ECHO)
    assert set(answer) == {"success", "data", "latency_ms", "error"}
    assert (answer["success"], answer["data"], answer["error"]) == (
        True,
        {"n": 1},
        None,
    )
    assert 0 < answer["latency_ms"] < 10_000
    assert client.query_axon_with_timeout(axon, ECHO, 5.0)["success"]
    answer = client.query_axon(axon, {"synapse_type": "nobody"}, timeout_secs=5)
    assert (answer["success"], answer["data"]) == (False, {})
    assert answer["error"] == "unrecognized synapse type"
    as_dict = {"hotkey": axon.hotkey, "ip": axon.ip, "port": axon.port, "protocol": 4}
    assert client.query_axon(as_dict, ECHO)["success"]
    assert not in_flight(client)
    assert server.miner_hotkey == axon.hotkey


def test_a_timeout_is_named(pair):
    release = threading.Event()
    _, client, axon = pair(
        lambda s: s.register_synapse_handler("w", lambda d: {"w": release.wait(10)})
    )
    with pytest.raises(RequestTimeout, match="query timed out"):
        client.query_axon(axon, {"synapse_type": "w"}, 0.05)
    assert client.query_axon(axon, ECHO)["success"]
    release.set()


def test_a_handler_that_goes_on_does_not_hold_back_that_its_time_is_over(
    start_blocking_server, make_blocking_client, axon_of
):
    """The answer leaves though the thread that would send others is at the handler."""
    release, ended = threading.Event(), threading.Event()

    def stuck(data):
        release.wait(30)
        ended.set()

    server = start_blocking_server(
        lambda server: server.register_synapse_handler("stuck", stuck),
        handler_timeout_secs=1,
    )
    axon = axon_of(server)
    client = make_blocking_client()
    client.initialize_connections([axon])
    try:
        answer = client.query_axon(axon, {"synapse_type": "stuck"}, 20)
        assert (answer["success"], answer["error"]) == (False, "handler timed out")
        assert not ended.is_set()
    finally:
        release.set()


def test_many_threads_share_a_client(pair):
    _, client, axon = pair()
    failures = []

    def ask(number: int) -> None:
        for n in range(20):
            data = {"who": number, "n": n}
            request = {"synapse_type": "echo", "data": data}
            if client.query_axon(axon, request, 30)["data"] != data:
                failures.append((number, n))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(list(connections(client))) == 1


def test_registry_and_statistics(pair):
    _, client, axon = pair()
    assert client.authenticated_hotkeys() == {MINER_HOTKEY}
    assert client.get_connection_stats() == {
        "total_connections": "1",
        "active_miners": "1",
        f"connection_{axon.address}": "active",
    }
    client.update_miner_registry([])
    assert client.authenticated_hotkeys() == set()
    client.update_miner_registry([axon])
    assert client.authenticated_hotkeys() == {MINER_HOTKEY}
    client.close_all_connections()
    assert client.get_connection_stats() == {
        "total_connections": "0",
        "active_miners": "0",
    }
    assert client.query_axon(axon, ECHO)["success"]


def test_every_way_to_set_a_signer(start_blocking_server, axon_of, monkeypatch):
    server = start_blocking_server()
    for module, who in ((client_module, VALIDATOR), (server_module, MINER)):
        monkeypatch.setattr(
            module.BtWalletSigner, "from_wallet", lambda *names, who=who: who
        )
    for way in (
        lambda c: c.set_signer(VALIDATOR),
        lambda c: c.set_validator_keypair(VALIDATOR_SEED),
        lambda c: c.set_python_signer(VALIDATOR.sign),
    ):
        with Lightning(VALIDATOR_HOTKEY) as client:
            way(client)
            assert client.query_axon(axon_of(server), ECHO)["success"]
    for way in (
        lambda s: s.set_miner_signer(MINER.sign),
        lambda s: s.set_miner_keypair(MINER_SEED),
        lambda s: s.set_miner_keypair(list(MINER_SEED)),
    ):
        other = LightningServer(MINER_HOTKEY, "127.0.0.1", 0)
        way(other)
        with other, Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
            client.initialize_connections([axon_of(other)])
            assert client.authenticated_hotkeys() == {MINER_HOTKEY}


def test_wallets_are_loaded_by_name(monkeypatch):
    loaded = []

    def from_wallet(*names: str) -> object:
        loaded.append(names)
        return MINER

    for module in (client_module, server_module):
        monkeypatch.setattr(module.BtWalletSigner, "from_wallet", from_wallet)
    Lightning(VALIDATOR_HOTKEY).set_wallet("a", "b", "c")
    Lightning(VALIDATOR_HOTKEY).set_wallet()
    LightningServer(MINER_HOTKEY).set_miner_wallet(hotkey_name="h")
    assert loaded == [
        ("a", "b", "c"),
        ("default", "~/.bittensor/wallets", "default"),
        ("default", "~/.bittensor/wallets", "h"),
    ]


# The client's life.


def test_a_client_may_be_closed_and_used_again(pair):
    _, client, axon = pair()
    for _ in range(3):
        client.close()
        client.close()
        assert io_threads() == ["lightning-server"]
        client.initialize_connections([axon])
        assert client.query_axon(axon, ECHO)["success"]


def test_a_client_that_was_never_used_starts_no_thread():
    client = Lightning(VALIDATOR_HOTKEY)
    client.close()
    del client
    gc.collect()
    assert not io_threads()


def test_create_endpoint_is_enough_to_query(start_blocking_server, axon_of):
    axon = axon_of(start_blocking_server())
    client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
    client.create_endpoint()
    assert client.query_axon(axon, ECHO)["success"]
    client.close()
    with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        assert client.query_axon(axon, ECHO)["success"]
    assert io_threads() == ["lightning-server"]


def test_a_client_that_is_dropped_says_goodbye(start_blocking_server, axon_of, caplog):
    caplog.set_level("INFO", "lightning.server")
    server = start_blocking_server()
    client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
    client.initialize_connections([axon_of(server)])
    del client
    gc.collect()
    until(lambda: not list(connections(server)))
    assert "client_shutdown" in caplog.text
    until(lambda: io_threads() == ["lightning-server"])


def test_closing_fails_what_other_threads_wait_for(pair):
    release = threading.Event()
    server, client, axon = pair(
        lambda s: s.register_synapse_handler("w", lambda d: {"w": release.wait(10)})
    )
    errors = []

    def ask() -> None:
        try:
            client.query_axon(axon, {"synapse_type": "w"})
        except ConnectionClosed as error:
            errors.append(error.reason)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: server._server._answering == 5)
    closers = [threading.Thread(target=client.close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for thread in threads + closers:
        thread.join(10)
        assert not thread.is_alive()
    assert errors == ["client_shutdown"] * 5
    release.set()


def test_a_blocking_call_in_a_running_loop_works(pair):
    """Field case C14: it blocks that loop, and nothing worse."""
    _, client, axon = pair()

    async def ask() -> bool:
        return client.query_axon(axon, ECHO)["success"]

    assert asyncio.run(ask())


def test_a_miner_that_is_not_there(make_blocking_client, caplog):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        client = make_blocking_client(connect_timeout=0.05)
        axon = QuicAxonInfo(MINER_HOTKEY, *silent.getsockname())
        client.initialize_connections([axon])
        assert f"cannot reach {MINER_HOTKEY}" in caplog.text
        with pytest.raises(LightningConnectionError, match="timed out"):
            client.query_axon(axon, ECHO)


# The server's life.


def test_a_server_starts_stops_and_starts_again(axon_of):
    server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    server.stop()
    server.register_synapse_handler("echo", lambda data: data)
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"not started: call start\(\) first"):
            server.serve_forever()
        with pytest.raises(ConfigError, match="not started"):
            server.local_addr()
        assert not server.is_started
        server.start()
        assert server.is_started
        with pytest.raises(ConfigError, match="already started"):
            server.start()
        ip, port = server.local_addr()
        assert ip == "127.0.0.1"
        assert port
        with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
            assert client.query_axon(axon_of(server), ECHO)["success"]
        server.stop()
        server.stop(drain=0)
        assert not io_threads()


def test_a_port_that_is_taken_is_a_config_error():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = LightningServer(MINER_HOTKEY, "127.0.0.1", port, signer=MINER)
        with pytest.raises(ValueError, match=f"cannot open 127.0.0.1:{port}"):
            server.start()
        assert not io_threads(), "nothing runs"
        with pytest.raises(ValueError, match="config error"), server:
            pass
    server.start()
    assert server.local_addr() == PeerAddr("127.0.0.1", port)
    server.stop()


def test_while_it_serves_everything_can_be_called(start_blocking_server, axon_of):
    """Setters, statistics and handlers; none waits for the end of serving."""
    server = start_blocking_server()
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    server.set_miner_keypair(MINER_SEED)
    server.set_miner_signer(MINER)
    server.set_validator_permit_resolver(lambda: {VALIDATOR_HOTKEY})
    server.set_source_address_resolver(SourceAllowlist.bypass)
    seen = []
    server.set_handshake_observer(lambda *who: seen.append(who))
    server.register_async_synapse_handler("later", lambda data: asyncio.sleep(0, data))
    server.register_streaming_handler("s", lambda data: iter([b"one"]))
    with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        axon = axon_of(server)
        answer = client.query_axon(axon, {"synapse_type": "later", "data": {"a": 1}})
        assert answer["data"] == {"a": 1}
        assert list(client.query_axon_stream(axon, {"synapse_type": "s"})) == [b"one"]
        stats = server.get_connection_stats()
        assert stats["total_connections"] == stats["verified_connections"] == "1"
        assert f"connection_{VALIDATOR_HOTKEY}" in stats
        assert server.get_active_nonce_count() == 1
        server.cleanup_expired_nonces()
        assert server.get_active_nonce_count() == 1
        assert server.get_permitted_validator_count() == 0
        assert server.get_allowed_source_count() == 0
        assert not server.is_source_enforcement_bypassed()
        server.cleanup_stale_connections()
        server.cleanup_stale_connections(max_idle_seconds=-1)
        until(lambda: not list(connections(client)))
    until(lambda: seen == [(VALIDATOR_HOTKEY, "127.0.0.1")])
    assert serving.is_alive()
    server.stop()
    serving.join(10)
    assert not serving.is_alive()


def test_resolvers_on_the_blocking_face(start_blocking_server, axon_of):
    def prepare(server: LightningServer) -> None:
        server.set_validator_permit_resolver(lambda: {VALIDATOR_HOTKEY})
        server.set_source_address_resolver(
            lambda: SourceAllowlist.enforce(["127.0.0.1"])
        )

    server = start_blocking_server(
        prepare, require_validator_permit=True, enforce_source_allowlist=True
    )
    with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        client.initialize_connections([axon_of(server)])
        assert client.query_axon(axon_of(server), ECHO)["success"]
    assert server.get_permitted_validator_count() == 1
    assert server.get_allowed_source_count() == 1
    with Lightning("v", signer=signer(7)) as client:
        with pytest.raises(HandshakeRejected):
            client.query_axon(axon_of(server), ECHO)


def test_a_server_that_is_dropped_says_goodbye(make_blocking_client, axon_of):
    server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    server.start()
    client = make_blocking_client()
    client.initialize_connections([axon_of(server)])
    (connection,) = connections(client)
    del server
    gc.collect()
    until(lambda: not connection.is_alive)
    assert connection.closed().reason == "server_shutdown"


def test_a_stop_lets_handlers_finish(pair):
    release = threading.Event()
    server, client, axon = pair(
        lambda s: s.register_synapse_handler("w", lambda d: {"w": release.wait(10)})
    )
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(client.query_axon(axon, {"synapse_type": "w"}))
    )
    asking.start()
    until(lambda: server._server._answering)
    stopping = threading.Thread(target=server.stop, args=(10,))
    stopping.start()
    until(lambda: not server._server._open)
    release.set()
    for thread in (asking, stopping):
        thread.join(10)
    assert answers[0]["data"] == {"w": True}


def test_a_handler_that_never_returns_does_not_keep_stop(pair):
    """Field case H4."""
    release = threading.Event()
    begun = []

    def wait(data):
        begun.append(data)
        return {"w": release.wait(30)}

    server, client, axon = pair(lambda s: s.register_synapse_handler("w", wait))
    with pytest.raises(RequestTimeout):
        client.query_axon(axon, {"synapse_type": "w"}, 0.05)
    until(lambda: begun)
    errors = []

    def ask() -> None:
        try:
            client.query_axon(axon, {"synapse_type": "w"})
        except ConnectionClosed as error:
            errors.append(error.reason)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: len(begun) == 2)
    began = time.monotonic()
    server.stop(0.1)
    assert time.monotonic() - began < 10  # The handlers have 30 seconds.
    asking.join(10)
    assert errors == ["server_shutdown"]
    release.set()


def test_a_handler_may_ask_another_server(pair, start_blocking_server, axon_of):
    """From its thread; its own I/O thread is told apart."""
    backend = start_blocking_server(signer=signer(1))
    with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as inner:

        def ask(data: dict) -> dict:
            return inner.query_axon(axon_of(backend), ECHO)["data"]

        inner.create_endpoint()
        _, client, axon = pair(lambda s: s.register_synapse_handler("ask", ask))
        assert client.query_axon(axon, {"synapse_type": "ask"}, 10)["data"] == {"n": 1}


def test_a_call_to_itself_from_the_io_thread_says_so(pair, caplog):
    """An async handler runs there."""
    outcomes = []

    async def misuse(data: dict) -> dict:
        for call in (server.get_connection_stats, server.stop, server.serve_forever):
            try:
                call()
            except RuntimeError as error:
                outcomes.append(str(error))
        return {}

    server, client, axon = pair(lambda s: s.register_async_synapse_handler("m", misuse))
    assert client.query_axon(axon, {"synapse_type": "m"}, 10)["success"]
    assert len(outcomes) == 3
    assert all("would wait for itself" in text for text in outcomes)
    assert client.query_axon(axon, ECHO, 10)["success"]


# Processes.


def run_python(code: str, *, interrupt: str = "") -> tuple[int, str, str, float]:
    """Run code; perhaps send SIGINT when it has printed a word.

    Returns:
        Exit code, output, errors, and the seconds from the signal to the end.
    """
    prelude = """
import logging, sys, threading, time
from lightning import *
from tests.support.identities import *

# A busy machine is no news.
logging.getLogger("asyncio").addFilter(lambda record: "seconds" not in record.msg)
server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
server.register_synapse_handler("echo", lambda data: data)
release = threading.Event()
server.register_synapse_handler("wait", lambda data: {"w": release.wait(60)})
server.start()
client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
axon = QuicAxonInfo(MINER_HOTKEY, *server.local_addr())
client.initialize_connections([axon])
assert client.query_axon(axon, {"synapse_type": "echo"})["success"]
"""
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", prelude + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            out = ""
            began = time.monotonic()
            if interrupt:
                out = process.stdout.readline()
                assert out == interrupt + "\n", process.stderr.read()
                began = time.monotonic()
                process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
            return process.returncode, out + rest, errors, time.monotonic() - began
        finally:
            process.kill()


INTERRUPTED = """
def announce():
    # Once the main thread is in the call.
    while not sys._current_frames()[threading.main_thread().ident].f_code.co_name in (
        "result", "query_axon", "_step"
    ):
        time.sleep(0.01)
    print("waiting", flush=True)

threading.Thread(target=announce, daemon=True).start()
try:
    CALL
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert client.query_axon(axon, {"synapse_type": "echo"}, 5)["success"], "still usable"
END
"""


@pytest.mark.parametrize(
    ("call", "end"),
    [
        ('client.query_axon(axon, {"synapse_type": "wait"})', "client.close()"),
        ('client.query_many([axon] * 3, {"synapse_type": "wait"}).collect_all()', ""),
        ("server.serve_forever()", "server.stop(0)"),
        ("server.serve_forever()", ""),
    ],
    ids=["query", "fan-out and exit", "serve", "serve and exit"],
)
def test_ctrl_c_ends_a_blocking_call_at_once(call, end):
    code = INTERRUPTED.replace("CALL", call).replace("END", end)
    status, out, errors, took = run_python(code, interrupt="waiting")
    assert (status, out, errors) == (0, "waiting\ninterrupted\n", "")
    assert took < 5


def test_ctrl_c_is_noticed_while_the_call_waits(pair):
    """In this process, whose start-up and exit do not count; 0.2 s when it is quiet."""
    release = threading.Event()
    server, client, axon = pair(
        lambda s: s.register_synapse_handler("w", lambda d: {"w": release.wait(20)})
    )
    times = []
    # The login may not be over on the server's side: it is not to be taken for a call.
    until(lambda: not server._server._answering)

    def interrupt() -> None:
        until(lambda: server._server._serving or server._server._answering)
        times.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    for call in (
        lambda: client.query_axon(axon, {"synapse_type": "w"}),
        server.serve_forever,
    ):
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        assert time.monotonic() - times.pop() < 2
        thread.join(10)
        until(lambda: not server._server._serving and not server._server._answering)
    release.set()
    assert client.query_axon(axon, ECHO)["success"]


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("idle", "", 0),
        ("exit code", "sys.exit(3)", 3),
        (
            "handlers and queries at work",
            """
for _ in range(3):
    threading.Thread(
        target=lambda: client.query_axon(axon, {"synapse_type": "wait"}, 30),
        daemon=True,
    ).start()
threading.excepthook = lambda args: None  # They are cut off, and may say so.
while server._server._answering < 3:
    time.sleep(0.01)
""",
            0,
        ),
        (
            "a stream half read",
            """
def endless(data):
    while True:
        yield bytes(1000)
server.register_streaming_handler("s", endless)
stream = client.query_axon_stream(axon, {"synapse_type": "s"})
next(stream)
""",
            0,
        ),
        (
            "outcomes half read, and awaited",
            """
fan = client.query_many([axon] * 4, {"synapse_type": "wait"})
threading.Thread(
    target=client.query_many([axon] * 4, {"synapse_type": "wait"}).collect_all,
    daemon=True,
).start()
threading.excepthook = lambda args: None  # They are cut off, and may say so.
while server._server._answering < 8:
    time.sleep(0.01)
""",
            0,
        ),
        (
            "an exit in a handler",
            """
def leave(data):
    sys.exit(9)
import logging
logging.disable()
server.register_synapse_handler("leave", leave)
assert not client.query_axon(axon, {"synapse_type": "leave"})["success"]
""",
            0,
        ),
        ("dropped at the end", "del server, client", 0),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_an_exit_with_all_left_running_is_silent_and_quick(name, code, status):
    """Field case H1."""
    code += "\nprint('last line', flush=True)" if status == 0 else ""
    returned, _, errors, _ = run_python(code)
    assert (returned, errors) == (status, "")


def test_a_forked_child_is_told(pair):
    server, client, axon = pair()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        texts = []
        for call in (
            lambda: client.query_axon(axon, ECHO),
            client.get_connection_stats,
            server.get_connection_stats,
            server.serve_forever,
        ):
            try:
                call()
            except (RuntimeError, ConfigError) as error:
                texts.append(str(error))
        client.close()
        server.stop()
        os.write(write, "\n".join(texts).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        texts = pipe.read().splitlines()
    assert len(texts) == 4
    assert all("made before a fork" in text for text in texts)
    assert client.query_axon(axon, ECHO)["success"], "the parent goes on"
    assert server.get_connection_stats()["total_connections"] == "1"
