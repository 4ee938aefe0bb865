"""The peer's client and our server, with and without Retry."""

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning import LightningServer, LightningServerConfig
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
    signer,
)
from tests.support.values import VALUES


@pytest.fixture(params=[True, False], ids=["retry", "no-retry"])
def our_server(request):
    """Start servers of ours; gives each as an axon."""
    servers = []

    def start(prepare=lambda server: None, **settings):
        settings.setdefault("max_handshake_attempts_per_minute", 10_000)
        server = LightningServer(
            MINER_HOTKEY,
            "127.0.0.1",
            0,
            signer=MINER,
            config=LightningServerConfig(
                require_address_validation=request.param, **settings
            ),
        )
        server.register_synapse_handler("echo", lambda data: data)
        prepare(server)
        server.start()
        servers.append(server)
        ip, port = server.local_addr()
        return {"hotkey": MINER_HOTKEY, "ip": ip, "port": port}

    yield start
    for server in servers:
        server.stop()


def test_every_kind_of_value_comes_back(our_server, peer_client):
    axon = our_server()
    client = peer_client(axon)
    answer = client.query_axon(axon, {"synapse_type": "echo", "data": VALUES})
    assert answer["error"] is None
    assert answer["success"] is True
    assert answer["data"] == VALUES


def test_five_megabytes_each_way(our_server, peer_client):
    axon = our_server()
    body = hashlib.shake_128(b"body").digest(5_000_000)
    client = peer_client(axon)
    answer = client.query_axon(axon, {"synapse_type": "echo", "data": {"b": body}})
    assert answer["data"]["b"] == body


def test_streams_of_both_kinds(our_server, peer_client):
    chunks = [b"one", b"", b"x" * 100_000, b"three"]

    def plain(data):
        yield from chunks

    async def asynchronous(data):
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(0)

    def prepare(server):
        server.register_streaming_handler("plain", plain)
        server.register_streaming_handler("async", asynchronous)

    axon = our_server(prepare)
    client = peer_client(axon)
    for name in ("plain", "async"):
        stream = client.query_axon_stream(axon, {"synapse_type": name, "data": {}})
        assert [bytes(stream.__next__()) for _ in chunks] == chunks


def test_a_stream_dropped_early_stops_its_handler(our_server, peer_client):
    closed = threading.Event()

    def endless(data):
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.set()

    axon = our_server(lambda server: server.register_streaming_handler("s", endless))
    client = peer_client(axon)
    stream = client.query_axon_stream(axon, {"synapse_type": "s", "data": {}})
    assert next(stream) == b"x" * 1000
    del stream
    assert closed.wait(10)
    assert client.query_axon(axon, {"synapse_type": "echo"})["success"]


def test_failures_are_told_in_general_terms(our_server, peer_client, caplog):
    def broken(data):
        raise RuntimeError("secret")

    def broken_stream(data):
        yield b"first"
        raise RuntimeError("secret")

    def prepare(server):
        server.register_synapse_handler("bad", broken)
        server.register_synapse_handler("none", lambda data: None)
        server.register_synapse_handler("set", lambda data: {"x": {1}})
        server.register_streaming_handler("bad stream", broken_stream)

    axon = our_server(prepare)
    client = peer_client(axon)
    for name, text in (
        ("bad", "request processing failed"),
        ("none", "request processing failed"),
        ("set", "internal serialization error"),
        ("nobody", "unrecognized synapse type"),
    ):
        answer = client.query_axon(axon, {"synapse_type": name})
        assert (answer["success"], answer["data"]) == (False, {})
        assert answer["error"] == text
    stream = client.query_axon_stream(axon, {"synapse_type": "bad stream"})
    assert next(stream) == b"first"
    with pytest.raises(RuntimeError, match="stream error: stream processing failed"):
        next(stream)
    assert "secret" in caplog.text, "the log has the detail"
    assert client.query_axon(axon, {"synapse_type": "echo"})["success"]


def test_handlers_that_take_too_long(our_server, peer_client):
    release = threading.Event()

    async def forever(data):
        await asyncio.Event().wait()

    def prepare(server):
        server.register_synapse_handler("thread", lambda data: release.wait(30))
        server.register_synapse_handler("async", forever)

    axon = our_server(prepare, handler_timeout_secs=1)
    client = peer_client(axon)
    try:
        for name in ("thread", "async"):
            answer = client.query_axon(axon, {"synapse_type": name})
            assert (answer["success"], answer["error"]) == (False, "handler timed out")
    finally:
        release.set()


def test_another_miner_or_another_key_gets_nowhere(our_server, peer_client):
    axon = our_server()
    other = {**axon, "hotkey": signer(9).ss58_address}
    client = peer_client(other)
    assert client.get_connection_stats()["active_miners"] == "0"
    with pytest.raises(ConnectionError, match="handshake error"):
        client.query_axon(other, {"synapse_type": "echo"})
    liar = peer_client(axon, seed=bytes([3] * 32))
    assert liar.get_connection_stats()["active_miners"] == "0"
    with pytest.raises(ConnectionError, match="rejected by miner"):
        liar.query_axon(axon, {"synapse_type": "echo"})


def test_a_permit_is_asked_for(our_server, peer_client):
    permitted: set[str] = set()
    axon = our_server(
        lambda server: server.set_validator_permit_resolver(lambda: permitted),
        require_validator_permit=True,
        validator_permit_refresh_secs=1,
    )
    client = peer_client(axon)
    assert client.get_connection_stats()["active_miners"] == "0"
    permitted.add(VALIDATOR_HOTKEY)


def test_many_threads_at_once(our_server, peer_client):
    axon = our_server()
    client = peer_client(axon)

    def ask(number):
        request = {"synapse_type": "echo", "data": {"n": number}}
        return client.query_axon(axon, request)["data"]["n"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == list(range(200))


def test_a_request_over_our_limit_fails_alone(our_server, peer_client):
    axon = our_server(max_frame_payload_bytes=1_048_576)
    client = peer_client(axon)
    big = {"synapse_type": "echo", "data": {"b": bytes(2_000_000)}}
    with pytest.raises(ConnectionError, match="transport error"):
        client.query_axon(axon, big)
    assert client.query_axon(axon, {"synapse_type": "echo"})["success"]


def test_a_second_login_replaces_the_first(our_server, peer_client, wait_until):
    axon = our_server()
    first, second = peer_client(axon), peer_client(axon)
    key = f"connection_127.0.0.1:{axon['port']}"
    wait_until(lambda: "replaced" in first.get_connection_stats()[key])
    assert second.query_axon(axon, {"synapse_type": "echo"})["success"]


def test_the_validators_signer_may_be_a_callback(our_server, peer):
    axon = our_server()
    client = peer.Lightning(wallet_hotkey=VALIDATOR_HOTKEY)
    from lightning import Sr25519Signer

    client.set_python_signer(Sr25519Signer.from_seed(VALIDATOR_SEED).sign)
    client.initialize_connections([axon])
    try:
        assert client.query_axon(axon, {"synapse_type": "echo"})["success"]
    finally:
        client.close()
