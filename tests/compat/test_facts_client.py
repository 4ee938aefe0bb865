"""What the peer's client does, as a miner sees it and by its numbers, done by ours."""

import asyncio
import base64
import inspect
import re
import socket
import threading
import time

import pytest

from lightning import (
    BtWalletSigner,
    HandshakeRequest,
    Lightning,
    LightningClientConfig,
    QuicAxonInfo,
    types,
)
from lightning._core.wire.framing import MessageType
from lightning.errors import (
    HandshakeRejected,
    RequestTimeout,
    UnexpectedMessage,
)
from lightning.handshake import certificate_fingerprint, rejection, request_message
from lightning.registry import MAX_BACKOFF_EXPONENT, Backoff
from lightning.reports import Reached
from lightning.signer import verify
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    signer,
)
from tests.support.inspection import connections
from tests.support.raw_peer import raw_server
from tests.support.waiting import until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
OTHER = signer(300).ss58_address
# A response of success without data.
DONE = bytes.fromhex("040000000594c38000c0")


def done(connection, stream, kind, payload):
    """Answer every request with a success."""
    connection.send(stream.id, DONE, True)


@pytest.fixture
def silent_ports():
    """Three ports where somebody listens and nobody answers."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    yield [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()


# Streams and logins.


async def test_every_exchange_is_a_new_stream_that_ends_at_once(make_client):
    """Streams 0, 4, 8: opened by the client, bidirectional; one frame and the FIN."""
    async with raw_server(done) as raw:
        client = make_client()
        await client.initialize_connections([raw.axon])
        for _ in range(2):
            assert (await client.query_axon(raw.axon, ECHO)).success
        (connection,) = raw.connections
        await until_async(lambda: len(connection.streams) == 3)
        assert sorted(connection.streams) == [0, 4, 8]
        for stream in connection.streams.values():
            await stream.until(lambda s=stream: s.ended)
            assert len(stream.data) == 5 + int.from_bytes(stream.data[1:5], "big")
        kinds = [connection.streams[n].data[0] for n in (0, 4, 8)]
        assert (
            kinds == [MessageType.HANDSHAKE_REQUEST] + [MessageType.SYNAPSE_PACKET] * 2
        )


async def test_a_login_has_our_time_a_fresh_nonce_and_a_signature_over_both(
    make_client,
):
    requests = []

    def note(connection, request):
        requests.append((connection, request))
        return raw.honest_login(request)

    async with raw_server(done, lambda s: setattr(s, "answer_login", note)) as raw:
        client = make_client()
        await client.create_endpoint()
        for _ in range(2):
            assert (await client.query_axon(raw.axon, ECHO)).success
            await client.close_all_connections()
        fingerprint = certificate_fingerprint(raw.identity.der)
    for _, request in requests:
        assert request.validator_hotkey == VALIDATOR_HOTKEY
        assert abs(request.timestamp - time.time()) < 30
        assert re.fullmatch("[0-9a-f]{32}", request.nonce)
        assert len(request.signature) == 88
        message = request_message(
            VALIDATOR_HOTKEY, request.timestamp, request.nonce, fingerprint
        )
        signature = base64.b64decode(request.signature, validate=True)
        assert verify(VALIDATOR.public_key, message, signature)
    assert len({request.nonce for _, request in requests}) == 2


async def test_a_refusal_is_told_in_the_peers_words(make_client):
    refused = rejection(time.time(), MINER_HOTKEY).to_frame()
    async with raw_server(
        done, lambda s: setattr(s, "answer_login", lambda *_: refused)
    ) as raw:
        client = make_client()
        await client.create_endpoint()
        with pytest.raises(HandshakeRejected, match="rejected by miner"):
            await client.query_axon(raw.axon, ECHO)


async def test_a_response_of_another_century_is_taken(make_client):
    """Its time is signed, and compared with nothing."""

    def old(connection, request):
        now, time.time = time.time, lambda: 100_000.0
        try:
            return raw.honest_login(request)
        finally:
            time.time = now

    async with raw_server(done, lambda s: setattr(s, "answer_login", old)) as raw:
        client = make_client()
        await client.create_endpoint()
        assert (await client.query_axon(raw.axon, ECHO)).success


# Why connections are closed, as the other end is told.


async def reason(raw) -> tuple[int, str]:
    (connection,) = raw.connections
    await until_async(lambda: connection.terminated is not None)
    return connection.terminated.error_code, connection.terminated.reason_phrase


async def test_a_close_is_a_client_shutdown(make_client):
    async with raw_server(done) as raw:
        client = make_client()
        await client.initialize_connections([raw.axon])
        await client.close_all_connections()
        assert await reason(raw) == (0, "client_shutdown")


async def test_where_nobody_logs_in_there_are_no_authenticated_hotkeys(make_client):
    async with raw_server(done) as raw:
        client = make_client()
        await client.initialize_connections([{**raw.axon, "hotkey": OTHER}])
        assert await reason(raw) == (0, "no_authenticated_hotkeys")


async def test_who_is_not_listed_any_more_is_deregistered(make_client):
    async with raw_server(done) as raw:
        client = make_client()
        await client.initialize_connections([raw.axon])
        await client.update_miner_registry([])
        assert await reason(raw) == (0, "miner_deregistered")


async def test_who_has_moved_changed_its_address(make_client):
    async with raw_server(done) as raw, raw_server(done) as new:
        client = make_client()
        await client.initialize_connections([raw.axon])
        await client.update_miner_registry([new.axon])
        assert await reason(raw) == (0, "miner_addr_changed")
        assert (await client.query_axon(new.axon, ECHO)).success


# Connecting.


async def test_all_addresses_are_dialled_at_once(make_client, silent_ports):
    """Three that do not answer cost one ``connect_timeout``."""
    client = make_client(connect_timeout=0.4)
    began = time.monotonic()
    report = await client.initialize_connections(
        [
            QuicAxonInfo(signer(300 + n).ss58_address, "127.0.0.1", port)
            for n, port in enumerate(silent_ports)
        ]
    )
    assert [miner.outcome for miner in report] == [Reached.TIMED_OUT] * 3
    assert 0.4 <= time.monotonic() - began < 1.1


async def test_hotkeys_at_one_address_log_in_at_the_same_time(make_client):
    """All three are there before the first is answered."""
    logins = []

    def hold(connection, stream):
        if len(stream.data) == 5 + int.from_bytes(stream.data[1:5], "big"):
            logins.append((connection, stream))

    async with raw_server(prepare=lambda s: setattr(s, "_on_data", hold)) as raw:
        client = make_client()
        hotkeys = [MINER_HOTKEY, *(signer(n).ss58_address for n in (301, 302))]
        connecting = asyncio.create_task(
            client.initialize_connections(
                [{**raw.axon, "hotkey": hotkey} for hotkey in hotkeys]
            )
        )
        await until_async(lambda: len(logins) == 3)
        for connection, stream in logins:
            request = HandshakeRequest.from_payload(stream.data[5:])
            connection.send(stream.id, raw.honest_login(request), True)
        report = await connecting
        assert len(raw.connections) == 1
        assert [miner.hotkey for miner in report.connected] == [MINER_HOTKEY]
        assert {miner.outcome for miner in report.failed} == {Reached.WRONG_KEY}


async def test_an_unreachable_miner_holds_up_no_query(
    start_server, connect, silent_ports
):
    client, axon = await connect(await start_server(), connect_timeout=1)
    nobody = QuicAxonInfo(OTHER, "127.0.0.1", silent_ports[0])
    dialling = asyncio.create_task(client.initialize_connections([axon, nobody]))
    for _ in range(20):
        assert (await client.query_axon(axon, ECHO)).success
    assert not dialling.done()
    await dialling


async def test_the_login_outlives_its_connection(start_server, connect):
    """A hotkey stays registered until an update or a failed login removes it."""
    server = await start_server()
    client, axon = await connect(server)
    await server.stop()
    await until_async(lambda: not list(connections(client)))
    assert await client.authenticated_hotkeys() == {axon.hotkey}
    stats = await client.get_connection_stats()
    assert stats["active_miners"] == "1"
    assert stats[f"connection_{axon.address}"].startswith("closed(")


def test_the_back_off_in_numbers():
    """1, 2, 4, 8 s, then a probe each minute, for ever."""
    config, backoff, waits = LightningClientConfig(), Backoff(), []
    for _ in range(10_000):
        backoff.failed(0.0, config)
        waits.append(backoff.retry_at)
    assert waits[:6] == [1, 2, 4, 8, 60, 60]
    assert set(waits[4:]) == {60}
    patient, backoff = LightningClientConfig(reconnect_max_retries=50), Backoff()
    for _ in range(49):
        backoff.failed(0.0, patient)
        assert backoff.retry_at <= 60
    assert MAX_BACKOFF_EXPONENT == 20


# Time.


async def test_the_timeout_is_for_the_answer_and_not_for_the_dial(
    start_server, make_client, axon_of
):
    """A login that takes longer than the timeout does no harm."""

    def slowly(message: bytes) -> bytes:
        threading.Event().wait(0.3)
        return MINER.sign(message)

    server = await start_server(lambda s: s.set_miner_signer(slowly))
    client = make_client()
    await client.create_endpoint()
    answer = await client.query_axon(axon_of(server), ECHO, 0.2)
    assert answer.success
    assert answer.latency_ms < 200, "nor is the dial in the latency"


async def test_a_total_timeout_has_the_dial_in_it(make_client, silent_ports):
    client = make_client(connect_timeout=10)
    await client.create_endpoint()
    nobody = QuicAxonInfo(OTHER, "127.0.0.1", silent_ports[0])
    began = time.monotonic()
    with pytest.raises(RequestTimeout):
        await client.query_axon(nobody, ECHO, total_timeout_secs=0.1)
    with pytest.raises(RequestTimeout):
        await client.query_axon_stream(nobody, ECHO, total_timeout_secs=0.1)
    assert time.monotonic() - began < 5


async def test_the_latency_has_the_handlers_time(start_server, connect):
    async def nap(data: dict) -> dict:
        await asyncio.sleep(0.05)
        return data

    server = await start_server(lambda s: s.register_synapse_handler("nap", nap))
    client, axon = await connect(server)
    answer = await client.query_axon(axon, {"synapse_type": "nap"})
    assert 50 <= answer.latency_ms < 5000


# Kinds of answers.


async def test_a_stream_for_a_query_says_which_call_to_use(start_server, connect):
    server = await start_server(
        lambda s: s.register_streaming_handler("s", lambda data: [b"x"])
    )
    client, axon = await connect(server)
    with pytest.raises(UnexpectedMessage, match="stream"):
        await client.query_axon(axon, {"synapse_type": "s"})
    assert (await client.query_axon(axon, ECHO)).success


# Constants.


def test_the_clients_defaults_by_name():
    wallet = inspect.signature(Lightning.set_wallet).parameters
    from_wallet = inspect.signature(BtWalletSigner.from_wallet).parameters
    for parameters in (wallet, from_wallet):
        assert [
            parameter.default
            for name, parameter in parameters.items()
            if name in ("wallet_name", "name", "wallet_path", "path", "hotkey_name")
        ] == ["default", "~/.bittensor/wallets", "default"]
    assert types.PROTOCOL_QUIC == 4
    assert QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", 1).protocol == 4
    assert types.MAX_TIMEOUT == 315_360_000
    query = inspect.signature(Lightning.query_axon).parameters
    assert query["timeout_secs"].default is None
