"""Who sits in the middle gets nothing; who only moves keeps its login."""

import asyncio

import pytest

from lightning._core.io.transport import Identity
from lightning._core.wire.messages import (
    HandshakeRequest,
    SynapsePacket,
    SynapseResponse,
)
from lightning.errors import LightningConnectionError, LightningError
from lightning.handshake import certificate_fingerprint
from tests.support.identities import MINER_HOTKEY, VALIDATOR
from tests.support.raw_peer import is_accepted, login_frame, raw_client, raw_server
from tests.support.udp_relay import udp_relay

REQUEST = {"synapse_type": "echo", "data": {"n": 1}}


class Relay:
    """Passes logins on to a real miner over a TLS session of its own."""

    def __init__(self, upstream) -> None:
        self.upstream = upstream
        self.verdicts: list[bool] = []
        self.tasks: set[asyncio.Task] = set()

    def prepare(self, server) -> None:
        self.server = server
        server.answer_login = None
        server._on_data = self.on_data

    def on_data(self, connection, stream) -> None:
        size = int.from_bytes(stream.data[1:5], "big")
        if len(stream.data) == 5 + size:
            task = asyncio.ensure_future(self.forward(connection, stream))
            self.tasks.add(task)

    async def forward(self, connection, stream) -> None:
        answer = (await self.upstream.ask(stream.data)).data
        if stream.data[0] == 1:
            self.verdicts.append(is_accepted(answer))
        connection.send(stream.id, answer, True)


async def test_a_relay_with_a_certificate_of_its_own_is_refused_by_both(
    start_server, make_client
):
    """Each side signs the certificate it sees, and they see different ones."""
    server = await start_server()
    async with raw_client(server.local_addr().port) as upstream:
        relay = Relay(upstream)
        async with raw_server(prepare=relay.prepare) as middle:
            client = make_client()
            await client.create_endpoint()
            with pytest.raises(LightningError, match="rejected by miner"):
                await client.query_axon(middle.axon, REQUEST, 10)
            assert relay.verdicts == [False], "the miner refused it, too"
            assert await client.authenticated_hotkeys() == set()


async def test_a_relay_that_makes_up_an_accepting_answer_is_refused(
    start_server, make_client
):
    """It can log in itself, and pass on an answer that the miner signed for it."""
    server = await start_server()
    async with raw_client(server.local_addr().port) as upstream:

        def prepare(middle):
            async def forward(connection, stream):
                request = HandshakeRequest.from_payload(stream.data[5:])
                # As if the validator's key had signed for this session.
                frame = login_frame(upstream.certificate, nonce=request.nonce)
                own = await upstream.ask(login_frame(upstream.certificate))
                assert is_accepted(own.data)
                assert not is_accepted((await upstream.ask(frame)).data)
                connection.send(stream.id, own.data, True)

            middle._on_data = lambda connection, stream: tasks.append(
                asyncio.ensure_future(forward(connection, stream))
            )

        tasks: list[asyncio.Task] = []
        async with raw_server(prepare=prepare) as middle:
            client = make_client()
            await client.create_endpoint()
            with pytest.raises(LightningError, match="certificate fingerprint"):
                await client.query_axon(middle.axon, REQUEST, 10)
            await asyncio.gather(*tasks)


async def test_the_miners_certificate_with_another_key_is_refused_by_tls(
    start_server, make_client
):
    """A server must prove that it holds the key of what it shows."""
    server = await start_server()
    async with raw_client(server.local_addr().port) as upstream:
        shown = upstream._quic.tls._peer_certificate
        assert server._logins.fingerprint == certificate_fingerprint(
            upstream.certificate
        )
        relay = Relay(upstream)

        def prepare(middle):
            relay.prepare(middle)
            middle.certificate = shown
            middle.key = Identity.generate().key

        async with raw_server(prepare=prepare) as middle:
            client = make_client(connect_timeout=5)
            await client.create_endpoint()
            with pytest.raises(LightningConnectionError, match="failed"):
                await client.query_axon(middle.axon, REQUEST, 10)
            assert not relay.verdicts, "not even a login reached the miner"


async def test_a_login_survives_a_change_of_the_clients_port(start_server, make_client):
    """The login belongs to the connection, not to the address it comes from."""
    seen = []

    def where(data, context):
        seen.append((context.hotkey, context.address.port, context.connection_id))
        return {}

    server = await start_server(
        lambda server: server.register_synapse_handler("where", where)
    )
    async with udp_relay(*server.local_addr()) as relay:
        axon = {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": relay.port}
        client = make_client()
        await client.initialize_connections([axon])
        request = {"synapse_type": "where"}
        assert (await client.query_axon(axon, request, 10)).success
        for _ in range(3):
            await relay.rebind()
            assert (await client.query_axon(axon, request, 10)).success
    hotkeys, ports, names = map(set, zip(*seen, strict=True))
    assert hotkeys == {VALIDATOR.ss58_address}
    assert len(names) == 1, "the same login all along"
    assert len(ports) > 1, "and the address did move"
    stats = await server.get_connection_stats()
    assert stats["total_connections"] == "1"


class Nowhere:
    """A transport that sends nothing."""

    def sendto(self, *args: object) -> None:
        """Drop it."""


async def test_a_stranger_at_an_address_that_was_logged_in_is_a_stranger(start_server):
    server = await start_server()
    _, port = server.local_addr()
    async with raw_client(port) as first:
        assert is_accepted(await first.login())
        # It goes without a word, and another takes its IP and port while the server
        # still has its login in the table.
        local = first._transport.get_extra_info("sockname")
        first._transport.close()
        first._transport = Nowhere()
        await asyncio.sleep(0)
        async with raw_client(port, local_port=local[1]) as again:
            stats = await server.get_connection_stats()
            assert stats["total_connections"] == "1"
            data = (await again.ask(SynapsePacket("echo", {}, 0).to_frame())).data
            answer = SynapseResponse.from_payload(data[5:])
            assert answer.error == "authentication failed"
