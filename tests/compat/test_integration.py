"""What the peer's integration tests show, on both faces, with the peer's numbers."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from lightning import QuicAxonInfo, typed_async_handler, typed_handler
from lightning.errors import RequestTimeout, StreamError
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR_HOTKEY, signer
from tests.support.waiting import until

from .conftest import alive, axon_of

OTHERS = [signer(number).ss58_address for number in range(200, 203)]
# Waits for whole seconds need be shown on one face only.
on_asyncio = pytest.mark.parametrize("face", ["asyncio"], indirect=True)


def ask(client, axon, name="echo", timeout=20, **data):
    return client.query_axon(axon, {"synapse_type": name, "data": data}, timeout)


def open_stream(client, axon, name="s", **data):
    return client.query_axon_stream(axon, {"synapse_type": name, "data": data})


def counts(client):
    stats = client.get_connection_stats()
    return stats["total_connections"], stats["active_miners"]


def also_at(axon, *hotkeys):
    return [QuicAxonInfo(hotkey, axon.ip, axon.port) for hotkey in hotkeys]


def three_chunks(data):
    yield from (b"chunk0", b"chunk1", b"chunk2")


async def forever(data):
    await asyncio.Event().wait()


def secret_failure(data):
    raise ValueError("the password is 1234")


# Connections.


def test_server_starts_and_binds(face):
    assert face.server().local_addr().port != 0


def test_client_handshake_succeeds(face):
    client, _ = face.connected(face.server())
    assert counts(client) == ("1", "1")


def test_client_with_different_validator_key_connects(face):
    client, axon = face.connected(face.server(), signer(9))
    assert counts(client) == ("1", "1")
    assert ask(client, axon, n=1)["success"]


def test_max_connections_enforcement(face):
    server = face.server(max_connections=1)
    first, axon = face.connected(server)
    second, _ = face.connected(server, signer(9))
    assert counts(second) == ("0", "0")
    assert counts(first) == ("1", "1")
    assert ask(first, axon)["success"]


def test_server_stop_closes_connections(face):
    server = face.server()
    client, axon = face.connected(server)
    server.stop()
    with pytest.raises(ConnectionError):
        ask(client, axon)


def test_client_reconnects_after_disconnect(face):
    client, axon = face.pair()
    client.close_all_connections()
    assert counts(client) == ("0", "0")
    assert ask(client, axon, n=1)["data"] == {"n": 1}


def test_nonce_accounting_increments(face):
    server = face.server()
    client, axon = face.connected(server)
    for count in (1, 2, 3):
        assert server.get_active_nonce_count() == count
        client.close_all_connections()
        assert ask(client, axon)["success"]


# Handlers.


def test_sync_handler_echo_roundtrip(face):
    client, axon = face.pair()
    answer = ask(client, axon, message="hello")
    assert (answer["success"], answer["data"]) == (True, {"message": "hello"})


def test_sync_handler_error_propagation(face):
    client, axon = face.pair(
        lambda s: s.register_synapse_handler("fail", secret_failure)
    )
    answer = ask(client, axon, "fail")
    assert (answer["success"], answer["data"]) == (False, {})
    assert answer["error"] is not None


def test_unregistered_synapse_type_returns_error(face):
    client, axon = face.pair()
    assert ask(client, axon, "nobody")["success"] is False


def test_multiple_synapse_handlers(face):
    client, axon = face.pair(
        lambda s: s.register_synapse_handler("up", lambda d: {"t": d["t"].upper()})
    )
    assert ask(client, axon, t="ab")["data"] == {"t": "ab"}
    assert ask(client, axon, "up", t="ab")["data"] == {"t": "AB"}


def register_async(server, name, function):
    server.register_async_synapse_handler(name, function)


async def echo_async(data):
    return data


async def fail_async(data):
    raise ValueError("inside")


def test_async_handler_echo_roundtrip(face):
    client, axon = face.pair(lambda s: register_async(s, "a", echo_async))
    assert ask(client, axon, "a", n=5)["data"] == {"n": 5}


def test_async_handler_error_propagation(face):
    client, axon = face.pair(lambda s: register_async(s, "a", fail_async))
    answer = ask(client, axon, "a")
    assert answer["success"] is False
    assert answer["error"] is not None


def test_mixed_sync_async_handlers(face):
    client, axon = face.pair(lambda s: register_async(s, "a", echo_async))
    assert ask(client, axon, "echo", n=1)["data"] == {"n": 1}
    assert ask(client, axon, "a", n=2)["data"] == {"n": 2}


@dataclass
class Sum:
    a: int
    b: int


@dataclass
class Number:
    value: int


def test_typed_sync_handler_integration(face):
    @typed_handler
    def add(request: Sum) -> Number:
        return Number(request.a + request.b)

    client, axon = face.pair(lambda s: s.register_synapse_handler("add", add))
    assert ask(client, axon, "add", a=3, b=4)["data"] == {"value": 7}


def test_typed_async_handler_integration(face):
    @typed_async_handler
    async def double(request: Number) -> Number:
        return Number(request.value * 2)

    client, axon = face.pair(lambda s: register_async(s, "double", double))
    assert ask(client, axon, "double", value=21)["data"] == {"value": 42}


# Streams.


def test_streaming_handler_receives_chunks(face):
    client, axon = face.pair(lambda s: s.register_streaming_handler("s", three_chunks))
    stream = open_stream(client, axon)
    assert list(stream) == [b"chunk0", b"chunk1", b"chunk2"]


def test_streaming_handler_zero_chunks(face):
    client, axon = face.pair(
        lambda s: s.register_streaming_handler("s", lambda d: iter(()))
    )
    assert open_stream(client, axon).next_chunk() is None


def one_then_fail(data):
    yield b"first"
    secret_failure(data)


def test_streaming_handler_error_midstream(face):
    client, axon = face.pair(lambda s: s.register_streaming_handler("s", one_then_fail))
    stream = open_stream(client, axon)
    assert stream.next_chunk() == b"first"
    with pytest.raises(StreamError):
        stream.next_chunk()


def test_streaming_collect_all(face):
    client, axon = face.pair(lambda s: s.register_streaming_handler("s", three_chunks))
    collected = open_stream(client, axon).collect_all()
    assert collected == [b"chunk0", b"chunk1", b"chunk2"]


def test_streaming_client_drops_early(face):
    """The handler is stopped, and the next stream is served."""
    ended = threading.Event()

    def endless(data):
        try:
            while True:
                yield bytes(10_000)
        finally:
            ended.set()

    def prepare(server):
        server.register_streaming_handler("endless", endless)
        server.register_streaming_handler("s", three_chunks)

    client, axon = face.pair(prepare)
    stream = open_stream(client, axon, "endless")
    assert stream.next_chunk() == bytes(10_000)
    stream.close()
    assert ended.wait(10)
    assert len(open_stream(client, axon).collect_all()) == 3


# Time and load.


def test_concurrent_requests_on_same_connection(face):
    client, axon = face.pair()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: ask(client, axon, n=n), range(10)))
    assert [answer["data"]["n"] for answer in answers] == list(range(10))
    assert counts(client) == ("1", "1")


def test_query_timeout_triggers(face):
    """500 ms, for a handler that takes much longer."""
    client, axon = face.pair(lambda s: s.register_synapse_handler("slow", forever))
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match="query timed out"):
        ask(client, axon, "slow", timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert ask(client, axon)["success"]


def test_server_handler_timeout_returns_error(face):
    client, axon = face.pair(
        lambda s: s.register_synapse_handler("slow", forever), handler_timeout_secs=1
    )
    answer = ask(client, axon, "slow")
    assert (answer["success"], answer["error"]) == (False, "handler timed out")


async def never_a_chunk(data):
    await asyncio.Event().wait()
    yield b""


@on_asyncio
def test_server_streaming_handler_timeout_returns_error(face):
    client, axon = face.pair(
        lambda s: s.register_streaming_handler("s", never_a_chunk),
        handler_timeout_secs=1,
    )
    with pytest.raises(StreamError, match="handler timed out"):
        open_stream(client, axon).next_chunk()


@on_asyncio
def test_nonce_cleanup_removes_expired(face):
    """Age 1 s, interval 1 s: the table is empty again by itself."""
    server = face.server(max_signature_age_secs=1, nonce_cleanup_interval_secs=1)
    # A login is too old if the second has changed on its way.
    clients = [face.connected(server, signer(n))[0] for n in range(3)]
    assert any(counts(client) == ("1", "1") for client in clients)
    until(lambda: server.get_active_nonce_count() == 0)


# Error texts tell nothing.


def test_handler_error_does_not_leak_internal_details(face):
    client, axon = face.pair(
        lambda s: s.register_synapse_handler("fail", secret_failure)
    )
    assert ask(client, axon, "fail")["error"] == "request processing failed"


def test_unregistered_synapse_type_uses_generic_error(face):
    client, axon = face.pair()
    assert ask(client, axon, "tell_tale")["error"] == "unrecognized synapse type"


def test_streaming_error_does_not_leak_handler_details(face):
    client, axon = face.pair(lambda s: s.register_streaming_handler("s", one_then_fail))
    with pytest.raises(StreamError) as caught:
        open_stream(client, axon).collect_all()
    assert caught.value.detail == "stream processing failed"
    assert "1234" not in str(caught.value)


# Who may log in.


def test_handshake_rate_limiting_rejects_excess_attempts(face):
    """Two logins a minute: the third is refused."""
    server = face.server(max_handshake_attempts_per_minute=2)
    for number, expected in enumerate(["1", "1", "0"]):
        client, _ = face.connected(server, signer(number))
        assert counts(client)[0] == expected


@on_asyncio
def test_handshake_timeout_rejects_slow_signing(face):
    """A signer that takes longer than the second that a login may take."""
    release = threading.Event()

    def slowly(message):
        release.wait(1.1)
        return MINER.sign(message)

    server = face.server(lambda s: s.set_miner_signer(slowly), handshake_timeout_secs=1)
    client, _ = face.connected(server)
    assert counts(client) == ("0", "0")
    release.set()


def with_permits(face, resolve, **settings):
    return face.server(
        lambda s: s.set_validator_permit_resolver(resolve),
        require_validator_permit=True,
        **settings,
    )


def test_validator_without_permit_rejected(face):
    client, _ = face.connected(with_permits(face, set))
    assert counts(client) == ("0", "0")


def test_validator_with_permit_accepted(face):
    client, axon = face.connected(with_permits(face, lambda: {VALIDATOR_HOTKEY}))
    assert ask(client, axon)["success"]


def test_permit_check_bypassed_when_disabled(face):
    server = face.server(lambda s: s.set_validator_permit_resolver(set))
    client, axon = face.connected(server)
    assert ask(client, axon)["success"]


def test_no_resolver_configured_rejects_when_required(face):
    server = face.server(require_validator_permit=True, handshake_timeout_secs=1)
    client, _ = face.connected(server, connect_timeout=0.2)
    assert counts(client) == ("0", "0")
    with pytest.raises(ValueError, match="ValidatorPermitResolver"):
        server.serve_forever()


def test_resolver_error_preserves_server_availability(face):
    def resolve():
        raise RuntimeError("no chain")

    server = with_permits(face, resolve)
    client, _ = face.connected(server)
    assert counts(client) == ("0", "0")
    assert server.get_permitted_validator_count() == 0
    assert server.local_addr().port


@on_asyncio
def test_permit_cache_refresh_adds_validator(face):
    permits = set()
    server = with_permits(face, lambda: set(permits), validator_permit_refresh_secs=1)
    client, axon = face.connected(server)
    assert counts(client) == ("0", "0")
    permits.add(VALIDATOR_HOTKEY)
    until(lambda: server.get_permitted_validator_count() == 1)
    client.update_miner_registry([axon])
    assert ask(client, axon)["success"]


@on_asyncio
def test_permit_cache_refresh_removes_validator(face):
    """The live session ends as well."""
    permits = {VALIDATOR_HOTKEY}
    server = with_permits(face, lambda: set(permits), validator_permit_refresh_secs=1)
    client, axon = face.connected(server)
    assert ask(client, axon)["success"]
    permits.clear()
    until(lambda: not alive(client))
    with pytest.raises(ConnectionError):
        ask(client, axon)


def test_large_permit_set_handles_correctly(face):
    permits = {f"hotkey{n}" for n in range(10_000)} | {VALIDATOR_HOTKEY}
    server = with_permits(face, lambda: permits)
    client, axon = face.connected(server)
    assert server.get_permitted_validator_count() == 10_001
    assert ask(client, axon)["success"]


def test_server_processes_queries_during_rate_limiting(face):
    server = face.server(max_handshake_attempts_per_minute=2)
    old, axon = face.connected(server)
    for number, expected in enumerate(["1", "0", "0"]):
        client, _ = face.connected(server, signer(number))
        assert counts(client)[0] == expected
        assert ask(old, axon, n=number)["data"] == {"n": number}
    old.close_all_connections()
    with pytest.raises(ConnectionError):
        ask(old, axon)


def test_connection_churn_preserves_server_health(face):
    server = face.server()
    client, axon = face.connected(server)
    for n in range(20):
        client.close_all_connections()
        client.initialize_connections([axon])
        assert ask(client, axon, n=n)["data"] == {"n": n}
    until(lambda: len(alive(server)) == 1)
    other, _ = face.connected(server, signer(9))
    assert ask(other, axon)["success"]


def test_permit_rejected_does_not_degrade_permitted_client(face):
    server = with_permits(face, lambda: {VALIDATOR_HOTKEY})
    client, axon = face.connected(server)
    for number in range(5):
        refused, _ = face.connected(server, signer(number))
        assert counts(refused) == ("0", "0")
        assert ask(client, axon, n=number)["data"] == {"n": number}


# The registry.


def test_multiple_hotkeys_same_address_authenticates_matching_only(face):
    axon = axon_of(face.server())
    client = face.client()
    client.initialize_connections([*also_at(axon, *OTHERS), axon])
    assert counts(client) == ("1", "1")
    assert client.authenticated_hotkeys() == {MINER_HOTKEY}


def test_fake_hotkey_only_at_address_no_connection_retained(face):
    axon = axon_of(face.server())
    client = face.client()
    client.initialize_connections(also_at(axon, OTHERS[0]))
    assert counts(client) == ("0", "0")


def test_update_registry_removes_last_hotkey_closes_connection(face):
    client, _ = face.pair()
    client.update_miner_registry([])
    assert counts(client) == ("0", "0")
    assert not alive(client)


def test_update_registry_adds_fake_hotkey_at_existing_address(face):
    client, axon = face.pair()
    client.update_miner_registry([axon, *also_at(axon, OTHERS[0])])
    assert client.authenticated_hotkeys() == {MINER_HOTKEY}
    assert ask(client, axon)["success"]


def test_max_connections_counts_addresses_not_hotkeys(face):
    axon = axon_of(face.server())
    client = face.client(max_connections=1)
    client.initialize_connections([axon, *also_at(axon, *OTHERS[:2])])
    assert counts(client) == ("1", "1")
    assert ask(client, axon)["success"]


def test_query_works_via_update_miner_registry(face):
    axon = axon_of(face.server())
    client = face.client()
    client.update_miner_registry([axon])
    assert ask(client, axon)["success"]


def test_query_works_via_update_miner_registry_after_delay(face):
    """The miner starts after it was listed; a query gets through within 10 s."""
    axon = axon_of(server := face.server())
    server.stop()
    client = face.client(connect_timeout=0.2, reconnect_initial_backoff=0.05)
    client.update_miner_registry([axon])
    assert counts(client)[0] == "0"
    face.server(port=axon.port)

    def answered():
        try:
            return ask(client, axon)["success"]
        except ConnectionError:
            return False

    until(answered)


def test_query_works_after_repeated_registry_updates(face):
    server = face.server()
    axon = axon_of(server)
    client = face.client()
    for _ in range(5):
        client.update_miner_registry([axon])
    assert ask(client, axon)["success"]
    assert server.get_active_nonce_count() == 1, "there was nothing to do again"


def test_query_works_after_registry_update_with_unreachable_peers(face):
    client, axon = face.connected(face.server(), connect_timeout=0.5)
    nobody = QuicAxonInfo(OTHERS[0], "192.0.2.1", 9)
    client.update_miner_registry([axon, nobody])
    assert client.authenticated_hotkeys() == {MINER_HOTKEY}
    assert ask(client, axon)["success"]
