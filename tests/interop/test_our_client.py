"""Our client and the peer's server."""

import asyncio
import hashlib
import threading

import pytest

from lightning import AsyncLightning, Lightning, LightningClientConfig, QuicAxonInfo
from lightning.errors import (
    HandshakeRejected,
    HotkeyMismatch,
    StreamError,
    StreamReset,
    TransportError,
    UnexpectedMessage,
)
from tests.support.identities import (
    MINER_HOTKEY,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
    signer,
)
from tests.support.values import VALUES


def blocking(axon: dict) -> Lightning:
    client = Lightning(VALIDATOR_HOTKEY)
    client.set_validator_keypair(VALIDATOR_SEED)
    client.initialize_connections([axon])
    return client


async def connected(axon: dict, **settings: object) -> AsyncLightning:
    client = AsyncLightning(
        VALIDATOR_HOTKEY, signer=VALIDATOR, config=LightningClientConfig(**settings)
    )
    await client.initialize_connections([axon])
    return client


def test_every_kind_of_value_comes_back(peer_server):
    axon = peer_server()
    with blocking(axon) as client:
        answer = client.query_axon(axon, {"synapse_type": "echo", "data": VALUES})
    assert answer["error"] is None
    assert answer["success"] is True
    assert answer["data"] == VALUES
    assert answer["latency_ms"] >= 0


def test_five_megabytes_each_way(peer_server):
    axon = peer_server()
    body = hashlib.shake_128(b"body").digest(5_000_000)
    with blocking(axon) as client:
        answer = client.query_axon(axon, {"synapse_type": "echo", "data": {"b": body}})
    assert answer["data"]["b"] == body


def test_a_stream(peer_server):
    chunks = [b"one", b"", b"x" * 100_000, b"three"]
    axon = peer_server(
        lambda server: server.register_streaming_handler("s", lambda data: iter(chunks))
    )
    with blocking(axon) as client:
        stream = client.query_axon_stream(axon, {"synapse_type": "s", "data": {}})
        assert list(stream) == chunks
        assert list(stream) == [], "after its end it stays ended"


def test_a_stream_that_fails_midway(peer_server):
    def broken(data):
        yield b"first"
        raise RuntimeError("secret")

    axon = peer_server(lambda server: server.register_streaming_handler("s", broken))
    with blocking(axon) as client:
        stream = client.query_axon_stream(axon, {"synapse_type": "s"})
        assert next(stream) == b"first"
        with pytest.raises(StreamError, match="stream processing failed"):
            next(stream)


def test_a_failing_handler_and_an_unknown_synapse_are_answers(peer_server):
    def broken(data):
        raise RuntimeError("secret")

    axon = peer_server(lambda server: server.register_synapse_handler("bad", broken))
    with blocking(axon) as client:
        for name, text in (
            ("bad", "request processing failed"),
            ("nobody", "unrecognized synapse type"),
        ):
            answer = client.query_axon(axon, {"synapse_type": name})
            assert (answer["success"], answer["data"]) == (False, {})
            assert answer["error"] == text


async def test_kinds_of_handler_are_not_confused(peer_server):
    axon = peer_server(
        lambda server: server.register_streaming_handler("s", lambda data: iter([b"x"]))
    )
    async with await connected(axon) as client:
        with pytest.raises(UnexpectedMessage, match="use query_axon_stream"):
            await client.query_axon(axon, {"synapse_type": "s"})
        stream = await client.query_axon_stream(axon, {"synapse_type": "nobody"})
        with pytest.raises(StreamError, match="unrecognized synapse type"):
            await stream.next_chunk()
        answer = await client.query_axon(axon, {"synapse_type": "echo"})
        assert answer.success, "the connection lives"


async def test_another_miner_at_the_address(peer_server):
    axon = peer_server()
    other = {**axon, "hotkey": signer(9).ss58_address}
    async with AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        with pytest.raises(HotkeyMismatch) as caught:
            await client.query_axon(other, {"synapse_type": "echo"})
        assert caught.value.address == f"127.0.0.1:{axon['port']}"


async def test_a_signature_of_another_key_is_refused(peer_server):
    axon = peer_server()
    async with AsyncLightning(VALIDATOR_HOTKEY, signer=signer(9)) as client:
        with pytest.raises(HandshakeRejected, match="rejected by miner"):
            await client.query_axon(axon, {"synapse_type": "echo"})


async def test_a_validator_without_a_permit_is_refused(peer_server):
    axon = peer_server(
        lambda server: server.set_validator_permit_resolver(lambda: {"somebody"}),
        require_validator_permit=True,
    )
    async with AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        with pytest.raises(HandshakeRejected):
            await client.query_axon(axon, {"synapse_type": "echo"})


async def test_more_queries_at_once_than_streams_are_allowed(peer_server):
    axon = peer_server(max_concurrent_bidi_streams=8)
    async with await connected(axon) as client:
        answers = await asyncio.gather(
            *(
                client.query_axon(axon, {"synapse_type": "echo", "data": {"n": n}})
                for n in range(200)
            )
        )
    assert [answer.data["n"] for answer in answers] == list(range(200))


async def test_a_request_over_the_servers_limit_fails_alone(peer_server):
    """The server stops reading it; the connection stays usable."""
    axon = peer_server(max_frame_payload_bytes=1_048_576)
    async with await connected(axon) as client:
        big = {"synapse_type": "echo", "data": {"b": bytes(2_000_000)}}
        with pytest.raises(TransportError) as caught:
            await client.query_axon(axon, big, timeout_secs=20)
        assert isinstance(caught.value, StreamReset)
        answer = await client.query_axon(axon, {"synapse_type": "echo"})
        assert answer.success


async def test_a_timeout_leaves_the_connection_in_use(peer_server):
    release = threading.Event()
    axon = peer_server(
        lambda server: server.register_synapse_handler(
            "slow", lambda data: {"waited": release.wait(20)}
        )
    )
    async with await connected(axon) as client:
        with pytest.raises(TimeoutError, match="query timed out"):
            await client.query_axon(axon, {"synapse_type": "slow"}, timeout_secs=0.2)
        answer = await client.query_axon(axon, {"synapse_type": "echo"}, timeout_secs=5)
        assert answer.success
        release.set()


async def test_several_hotkeys_of_which_one_is_real(peer_server):
    axon = peer_server()
    fakes = [{**axon, "hotkey": signer(n).ss58_address} for n in (7, 8)]
    async with AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        await client.initialize_connections([fakes[0], axon, fakes[1]])
        assert await client.authenticated_hotkeys() == {MINER_HOTKEY}
        stats = await client.get_connection_stats()
        assert (stats["total_connections"], stats["active_miners"]) == ("1", "1")


async def test_a_server_that_stops_is_noticed_at_once(peer, peer_server):
    servers = []
    axon = peer_server(servers.append)
    async with await connected(axon) as client:
        servers[0].stop()
        with pytest.raises(ConnectionError):
            await client.query_axon(axon, {"synapse_type": "echo"}, timeout_secs=20)


async def test_an_axon_may_be_an_object(peer_server):
    axon = peer_server()
    async with await connected(axon) as client:
        info = QuicAxonInfo(**axon)
        assert (await client.query_axon(info, {"synapse_type": "echo"})).success
