"""What the peer's Python tests show, by the names that they import."""

import threading

import pytest

from lightning import Lightning, LightningServer
from tests.support.identities import (
    MINER_HOTKEY,
    MINER_SEED,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
)
from tests.support.waiting import until

NOWHERE = {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": 1, "protocol": 4}


def count_to_three(data):
    for n in range(3):
        yield f"chunk{n}".encode()


@pytest.fixture
def miner(start_blocking_server):
    """A server with two handlers and a stream."""

    def prepare(server):
        server.register_synapse_handler("up", lambda d: {"text": d["text"].upper()})
        server.register_streaming_handler("count", lambda d: iter(count_to_three(d)))

    return start_blocking_server(prepare)


@pytest.fixture
def client(miner, make_blocking_client):
    client = make_blocking_client()
    client.initialize_connections([axon(miner)])
    return client


def axon(server):
    ip, port = server.local_addr()
    return {"hotkey": MINER_HOTKEY, "ip": ip, "port": port, "protocol": 4}


def ask(client, miner, data, name="echo", **more):
    request = {"synapse_type": name, "data": data}
    return client.query_axon(axon(miner), request, **more)


# test_client.


def test_client_defaults():
    client = Lightning(wallet_hotkey=VALIDATOR_HOTKEY)
    assert client.wallet_hotkey == VALIDATOR_HOTKEY
    client.close()


def test_client_with_all_eight_arguments():
    client = Lightning(
        wallet_hotkey=VALIDATOR_HOTKEY,
        connect_timeout_secs=5,
        idle_timeout_secs=60,
        keep_alive_interval_secs=15,
        reconnect_initial_backoff_secs=2,
        reconnect_max_backoff_secs=30,
        reconnect_max_retries=3,
        max_frame_payload_bytes=2 * 1024 * 1024,
        max_stream_payload_bytes=4 * 1024 * 1024,
    )
    assert client.config.reconnect_max_retries == 3
    client.close()


def test_set_validator_keypair():
    client = Lightning(VALIDATOR_HOTKEY)
    client.set_validator_keypair(VALIDATOR_SEED)
    client.close()


def test_set_python_signer(miner):
    client = Lightning(VALIDATOR_HOTKEY)
    client.set_python_signer(VALIDATOR.sign)
    client.initialize_connections([axon(miner)])
    assert ask(client, miner, {})["success"]
    client.close()


def test_client_stats_of_nobody():
    client = Lightning(VALIDATOR_HOTKEY)
    stats = client.get_connection_stats()
    assert stats["total_connections"] == stats["active_miners"] == "0"
    client.close()


# test_errors.


def test_missing_synapse_type(client, miner):
    with pytest.raises(KeyError, match="synapse_type"):
        client.query_axon(axon(miner), {"data": {}})


@pytest.mark.parametrize("field", ["hotkey", "ip", "port"])
def test_missing_field_of_an_axon(client, field):
    lacking = {key: value for key, value in NOWHERE.items() if key != field}
    with pytest.raises(KeyError, match=field):
        client.query_axon(lacking, {"synapse_type": "echo", "data": {}})


def test_query_without_signer():
    client = Lightning(VALIDATOR_HOTKEY)
    with pytest.raises(ConnectionError, match="endpoint not initialized"):
        client.query_axon(NOWHERE, {"synapse_type": "echo", "data": {}})
    client.close()


def test_invalid_timeout(client, miner):
    text = "timeout_secs must be a finite positive number"
    with pytest.raises(ValueError, match=text):
        ask(client, miner, {}, timeout_secs=-1.0)


# test_multi_handler, test_roundtrip.


def test_two_handlers_on_same_server(client, miner):
    assert ask(client, miner, {"text": "a"})["data"] == {"text": "a"}
    assert ask(client, miner, {"text": "a"}, "up")["data"] == {"text": "A"}


def test_echo_roundtrip(client, miner):
    answer = ask(client, miner, {"message": "hello"})
    assert answer["success"] is True
    assert answer["error"] is None
    assert answer["data"] == {"message": "hello"}
    assert answer["latency_ms"] >= 0


def test_large_payload(client, miner):
    body = "x" * 100_000
    assert ask(client, miner, {"body": body})["data"]["body"] == body


def test_query_with_timeout(client, miner):
    assert ask(client, miner, {"n": 1}, timeout_secs=5.0)["data"] == {"n": 1}


def test_multiple_sequential_queries(client, miner):
    for n in range(10):
        assert ask(client, miner, {"n": n})["data"] == {"n": n}


# test_server.


def test_server_defaults():
    server = LightningServer(miner_hotkey=MINER_HOTKEY, host="127.0.0.1", port=0)
    server.stop()


def test_server_with_all_six_arguments():
    server = LightningServer(
        miner_hotkey=MINER_HOTKEY,
        host="127.0.0.1",
        port=0,
        max_signature_age_secs=120,
        idle_timeout_secs=60,
        keep_alive_interval_secs=15,
        nonce_cleanup_interval_secs=30,
        max_nonce_entries=50_000,
        max_frame_payload_bytes=2 * 1024 * 1024,
    )
    assert server.config.max_nonce_entries == 50_000
    server.stop()


def test_server_starts_serves_and_stops():
    server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0)
    server.set_miner_keypair(MINER_SEED)
    server.start()
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    stats = server.get_connection_stats()
    assert {"total_connections", "verified_connections"} <= stats.keys()
    server.stop()
    until(lambda: not serving.is_alive())


def test_server_stats_of_nobody(miner):
    stats = miner.get_connection_stats()
    assert stats == {"total_connections": "0", "verified_connections": "0"}


# test_streaming.


def test_streaming_handler(client, miner):
    stream = client.query_axon_stream(axon(miner), {"synapse_type": "count"})
    assert list(stream) == [b"chunk0", b"chunk1", b"chunk2"]


# test_types.


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        42,
        -7,
        3.14,
        "hello",
        "",
        b"\x00\x01\xff",
        [1, "two", 3.0, None],
        {"a": {"b": [1, {"c": True}]}},
    ],
    ids=repr,
)
def test_data_type_roundtrip(client, miner, value):
    found = ask(client, miner, {"value": value})["data"]["value"]
    assert found == value
    assert type(found) is type(value)
