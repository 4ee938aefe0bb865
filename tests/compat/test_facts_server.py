"""What the peer's server does, as a validator sees it and by its numbers, by ours."""

import asyncio
import inspect
import secrets
import time

import pytest

from lightning import (
    DEFAULT_MAX_FRAME_PAYLOAD,
    LightningServer,
    LightningServerConfig,
    SourceAllowlist,
    handlers,
)
from lightning._core.wire import framing
from lightning._core.wire.messages import (
    HandshakeResponse,
    SynapsePacket,
    SynapseResponse,
)
from lightning._core.wire.packer import MAX_DEPTH
from lightning.admission import LoginRateLimiter
from lightning.handshake import MAX_CLOCK_SKEW
from tests.support.identities import MINER_HOTKEY, VALIDATOR, VALIDATOR_HOTKEY, signer
from tests.support.inspection import connections
from tests.support.raw_peer import frame, is_accepted, login_frame, raw_client
from tests.support.waiting import until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}


def port_of(server) -> int:
    return server.local_addr().port


def response_of(data: bytes) -> HandshakeResponse:
    assert data[0] == 2
    return HandshakeResponse.from_payload(data[5:])


# The transport's promises.


async def test_what_the_transport_promises(start_server):
    """128 streams of the client's, none of one direction, 150 s of silence."""
    server = await start_server()
    async with raw_client(port_of(server)) as raw:
        quic = raw._quic
        assert quic._remote_max_streams_bidi == 128
        assert quic._remote_max_streams_uni == 0
        assert quic._remote_max_idle_timeout == 150
        assert quic.tls.alpn_negotiated == "btlightning"
        assert quic._remote_max_stream_data_bidi_remote > 0


async def test_every_start_makes_a_new_certificate(start_server):
    server = await start_server()
    certificates = set()
    for _ in range(2):
        async with raw_client(port_of(server)) as raw:
            certificates.add(raw.certificate)
        await server.stop()
        await server.start()
    assert len(certificates) == 2


# Logins.


async def test_an_accepted_login(start_server):
    server = await start_server()
    async with raw_client(port_of(server)) as raw:
        before = time.time()
        answer = response_of(await raw.login())
        assert answer.accepted
        assert answer.miner_hotkey == MINER_HOTKEY
        assert before - 1 <= answer.timestamp <= time.time()
        assert len(answer.signature) == 88
        assert len(answer.cert_fingerprint) == 44
        name, hotkey, milliseconds = answer.connection_id.split("_")
        assert (name, hotkey) == ("conn", VALIDATOR_HOTKEY)
        assert before <= int(milliseconds) / 1000 + 0.001
        stats = await server.get_connection_stats()
        assert stats[f"connection_{VALIDATOR_HOTKEY}"] == answer.connection_id


async def test_thirty_logins_a_minute(start_server):
    """Good, bad and unreadable ones count; the next is refused unread."""
    server = await start_server(max_handshake_attempts_per_minute=30)
    assert LightningServerConfig().max_handshake_attempts_per_minute == 30
    assert LoginRateLimiter(30).window == 60
    async with raw_client(port_of(server)) as raw:
        for n in range(30):
            if n % 3 == 0:
                answer = await raw.login()
            elif n % 3 == 1:
                answer = await raw.login(signature="")
            else:
                answer = (await raw.ask(frame(1, b"\xc1"))).data
            assert is_accepted(answer) == (n % 3 == 0), n
        answer = response_of(await raw.login())
        assert (answer.accepted, answer.miner_hotkey) == (False, "")


async def test_refusals_are_all_alike_and_leave_the_connection(start_server):
    permits = {VALIDATOR_HOTKEY}
    server = await start_server(
        lambda s: s.set_validator_permit_resolver(lambda: permits),
        require_validator_permit=True,
    )
    async with raw_client(port_of(server)) as raw:
        once = login_frame(raw.certificate)
        assert is_accepted((await raw.ask(once)).data)
        answers = [
            (await raw.ask(once)).data,  # Replayed.
            await raw.login(signer(9)),  # Without a permit.
            await raw.login(ahead=-400),
            await raw.login(ahead=200),
            await raw.login(nonce="x" * 32),
            await raw.login(nonce=secrets.token_hex(16)),  # Signed was another.
            await raw.login(signature="?"),
            await raw.login(validator_hotkey="nobody"),
        ]
        for answer in map(response_of, answers):
            assert not answer.accepted
            assert answer.miner_hotkey == MINER_HOTKEY
            assert (answer.signature, answer.connection_id) == ("", "")
            assert answer.cert_fingerprint is None
        assert is_accepted(await raw.login()), "the connection serves on"


async def test_upper_and_lower_case_of_a_nonce_are_one(start_server):
    server = await start_server()
    async with raw_client(port_of(server)) as raw:
        nonce = "ab" * 16
        for spelling, accepted in ((nonce, True), (nonce.upper(), False)):
            login = sign_nonce(raw.certificate, spelling)
            assert is_accepted((await raw.ask(login)).data) == accepted


def sign_nonce(certificate: bytes, nonce: str) -> bytes:
    token_hex, secrets.token_hex = secrets.token_hex, lambda _: nonce
    try:
        return login_frame(certificate)
    finally:
        secrets.token_hex = token_hex


# Handlers.


async def test_a_requests_time_is_not_looked_at(start_server):
    server = await start_server()
    async with raw_client(port_of(server)) as raw:
        assert is_accepted(await raw.login())
        for timestamp in (0, 2**63):
            packet = SynapsePacket("echo", {"n": 1}, timestamp).to_frame()
            data = (await raw.ask(packet)).data
            assert SynapseResponse.from_payload(data[5:]).data == {"n": 1}


async def test_streaming_comes_before_async_and_async_before_plain(
    start_server, connect
):
    async def later(data: dict) -> dict:
        return {"by": "async"}

    def prepare(server):
        for name in ("both", "all"):
            server.register_synapse_handler(name, lambda data: {"by": "plain"})
            server.register_async_synapse_handler(name, later)
        server.register_streaming_handler("all", lambda data: [b"streaming"])

    client, axon = await connect(await start_server(prepare))
    answer = await client.query_axon(axon, {"synapse_type": "both"})
    assert answer.data == {"by": "async"}
    stream = await client.query_axon_stream(axon, {"synapse_type": "all"})
    assert await stream.collect_all() == [b"streaming"]


async def test_handlers_come_and_change_while_it_serves(start_server, connect):
    server = await start_server()
    client, axon = await connect(server)
    request = {"synapse_type": "late"}
    assert not (await client.query_axon(axon, request)).success
    for number in (1, 2):
        server.register_synapse_handler("late", lambda data, n=number: {"n": n})
        assert (await client.query_axon(axon, request)).data == {"n": number}


async def test_an_async_handler_is_cancelled_when_its_time_is_over(
    start_server, connect
):
    ended = asyncio.Event()

    async def forever(data: dict) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = await start_server(
        lambda s: s.register_synapse_handler("h", forever), handler_timeout_secs=1
    )
    client, axon = await connect(server)
    answer = await client.query_axon(axon, {"synapse_type": "h"})
    assert answer.error == "handler timed out"
    await asyncio.wait_for(ended.wait(), 5)


async def test_what_is_raised_in_an_async_handler_is_an_answer(start_server, connect):
    """Whatever it is: the client never waits for an answer that does not come."""

    async def leave(data: dict) -> dict:
        raise SystemExit(3)

    server = await start_server(lambda s: s.register_synapse_handler("h", leave))
    client, axon = await connect(server)
    answer = await client.query_axon(axon, {"synapse_type": "h"}, 10)
    assert answer.error == "request processing failed"
    assert (await client.query_axon(axon, ECHO)).success


# Gates.


async def test_the_allowlist_counts_what_it_was_told(start_server):
    sources = SourceAllowlist.enforce(["192.0.2.1", "192.0.2.2"])
    server = await start_server(
        lambda s: s.set_source_address_resolver(lambda: sources),
        enforce_source_allowlist=True,
    )
    await until_async(lambda: server._sources.count)
    assert await server.get_allowed_source_count() == 2
    assert not await server.is_source_enforcement_bypassed()


async def test_a_bypass_lets_everybody_in(start_server, connect):
    server = await start_server(
        lambda s: s.set_source_address_resolver(SourceAllowlist.bypass),
        enforce_source_allowlist=True,
    )
    await until_async(lambda: server._sources.is_bypass)
    assert await server.get_allowed_source_count() == 0
    assert await server.is_source_enforcement_bypassed()
    client, axon = await connect(server)
    assert (await client.query_axon(axon, ECHO)).success


class Chain:
    """Permits, addresses and who has logged in: one object for all three."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def resolve_permitted_validators(self) -> set[str]:
        return {VALIDATOR_HOTKEY}

    def resolve_allowed_sources(self) -> SourceAllowlist:
        return SourceAllowlist.enforce(["127.0.0.1"])

    async def observe_successful_handshake(self, hotkey: str, ip: str) -> None:
        self.seen.append((hotkey, ip))


async def test_one_object_may_know_all(start_server, connect):
    chain = Chain()

    def prepare(server):
        server.set_validator_permit_resolver(chain)
        server.set_source_address_resolver(chain)
        server.set_handshake_observer(chain)

    server = await start_server(
        prepare, require_validator_permit=True, enforce_source_allowlist=True
    )
    await until_async(lambda: server._sources.count)
    client, axon = await connect(server)
    assert (await client.query_axon(axon, ECHO)).success
    assert chain.seen == [(VALIDATOR_HOTKEY, "127.0.0.1")]


# Why connections are closed, as the other end is told.


async def test_a_stop_is_a_server_shutdown(start_server):
    server = await start_server()
    async with raw_client(port_of(server)) as raw:
        assert is_accepted(await raw.login())
        await server.stop()
        await until_async(lambda: raw.terminated is not None)
        assert raw.terminated.error_code == 0
        assert raw.terminated.reason_phrase == "server_shutdown"


async def test_the_same_validator_elsewhere_is_replaced(start_server):
    server = await start_server()
    async with raw_client(port_of(server)) as old, raw_client(port_of(server)) as new:
        assert is_accepted(await old.login())
        assert is_accepted(await new.login(VALIDATOR))
        await until_async(lambda: old.terminated is not None)
        assert (old.terminated.error_code, old.terminated.reason_phrase) == (
            0,
            "replaced",
        )
        assert new.terminated is None
    await until_async(lambda: not list(connections(server)))


# Settings and constants.


def test_long_proofs_have_time_and_room():
    """Handlers of three minutes need a longer idle timeout, proofs a larger frame."""
    with pytest.raises(ValueError, match="handler_timeout_secs"):
        LightningServerConfig(handler_timeout_secs=180)
    config = LightningServerConfig(
        handler_timeout_secs=180,
        idle_timeout_secs=max(150, 2 * 180),
        max_frame_payload_bytes=256 << 20,
    )
    assert config.idle_timeout_secs == 360


def test_the_peers_constants():
    assert MAX_CLOCK_SKEW == 60
    assert framing.HEADER_SIZE == 5
    assert MAX_DEPTH == 1024
    assert DEFAULT_MAX_FRAME_PAYLOAD == 64 << 20
    parameters = inspect.signature(LightningServer).parameters
    assert (parameters["host"].default, parameters["port"].default) == ("0.0.0.0", 8443)
    cleanup = inspect.signature(LightningServer.cleanup_stale_connections).parameters
    assert cleanup["max_idle_seconds"].default == 300


def test_the_peers_error_texts():
    texts = {
        value for name, value in vars(handlers).items() if name.startswith("ERROR_")
    }
    assert texts >= {
        "invalid request format",
        "authentication failed",
        "unrecognized synapse type",
        "request processing failed",
        "handler timed out",
        "internal serialization error",
        "stream processing failed",
        "stream write failed",
    }
