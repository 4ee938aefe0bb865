"""Connections follow the metagraph; what fails keeps what was there."""

import asyncio
import logging
import threading

import pytest

from lightning import MetagraphMonitorConfig, NeuronInfo, QuicAxonInfo
from lightning.chain import monitor as module
from lightning.errors import (
    ChainError,
    ConfigError,
    LightningConnectionError,
    SigningError,
)
from lightning.metagraph import (
    FINNEY_ENDPOINT,
    LOCAL_ENDPOINT,
    TESTNET_ENDPOINT,
    MetagraphMonitor,
    QuicProbe,
    Snapshot,
)
from tests.support.identities import VALIDATOR, signer
from tests.support.waiting import until, until_async


class Chain:
    """A subnet that changes when the test says so, or fails."""

    def __init__(self, *neurons):
        self.neurons = neurons
        self.block = 0
        self.error = None
        self.threads = set()
        self.reads = self.closes = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self, netuid):
        self.threads.add(threading.current_thread().name)
        self.reads += 1
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        self.block += 1
        return Snapshot(self.block, tuple(self.neurons))

    def close(self):
        self.closes += 1


def neuron(uid, server, **fields) -> NeuronInfo:
    ip, port = server.local_addr()
    fields = {"hotkey": server.miner_hotkey, "axon_ip": ip, "axon_port": port, **fields}
    return NeuronInfo(uid, **fields)


def following(chain, **settings) -> MetagraphMonitorConfig:
    settings = {"sync_interval": 0.01, "allow_private": True, **settings}
    return MetagraphMonitorConfig(2, chain, **settings)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.001)


async def asked(client, server):
    axon = QuicAxonInfo(server.miner_hotkey, *server.local_addr())
    answer = await client.query_axon(axon, {"synapse_type": "echo", "data": {"n": 1}})
    return answer.data == {"n": 1}


def logged_in(client) -> set[tuple[str, int]]:
    connections = client.connections()
    return {c.address for c in connections if c.state == "active" and c.hotkeys}


async def test_connections_follow_three_versions_of_the_metagraph(
    start_server, make_client
):
    """A new miner, one that moved, a hotkey anew in another place, one that is gone."""
    one, two = signer(11), signer(12)
    first = await start_server(signer=one, host="127.0.0.2")
    second = await start_server(signer=two, host="127.0.0.3")
    moved = await start_server(signer=one, host="127.0.0.4")
    # A validator on the same network, which nobody dials.
    validator = NeuronInfo(
        9, "5C", axon_ip="127.0.0.9", axon_port=1, validator_permit=True
    )
    chain = Chain(neuron(0, first), validator)
    client = make_client(metagraph=following(chain))
    await client.create_endpoint()
    places = lambda: logged_in(client)  # noqa: E731
    assert places() == {first.local_addr()}
    assert await asked(client, first)
    assert client.metagraph.n == 2

    chain.neurons = (neuron(0, first), neuron(1, second), validator)
    await until_async(lambda: places() == {first.local_addr(), second.local_addr()})
    assert await asked(client, second)

    # The second one is gone, its place is another's; the first has moved.
    chain.neurons = (neuron(1, moved), validator)
    await until_async(lambda: places() == {moved.local_addr()})
    await until_async(lambda: set(client._registry.hotkeys) == {one.ss58_address})
    assert await asked(client, moved)
    assert chain.threads == {"lightning-chain"}
    await until_async(lambda: not len(first._table) and not len(second._table))


def test_the_blocking_face_follows_as_well(start_blocking_server, make_blocking_client):
    one, two = signer(13), signer(14)
    first, second = start_blocking_server(signer=one), start_blocking_server(signer=two)

    def of(uid, server, key):
        ip, port = server.local_addr()
        return NeuronInfo(uid, key.ss58_address, axon_ip=ip, axon_port=port)

    chain = Chain(of(0, first, one))
    with make_blocking_client(metagraph=following(chain)) as client:
        assert client.authenticated_hotkeys() == {one.ss58_address}
        chain.neurons = (of(1, second, two),)
        until(lambda: client.authenticated_hotkeys() == {two.ss58_address})
        axon = client.metagraph.quic_miners()[0]
        assert client.query_axon(axon, {"synapse_type": "echo"})["success"]
        client.stop_metagraph_monitor()
        assert client.metagraph is None
        client.start_metagraph_monitor(following(chain))
        assert client.metagraph.n == 1


async def test_what_fails_keeps_what_was_there_and_is_told_once(
    start_server, make_client, caplog, quick
):
    caplog.set_level(logging.INFO, "lightning.metagraph")
    server = await start_server()
    chain = Chain(neuron(0, server))
    client = make_client(metagraph=following(chain))
    await client.create_endpoint()
    chain.error = ChainError("pruned")
    reads = chain.reads
    await until_async(lambda: chain.reads > reads + 3)
    assert client.metagraph.n == 1
    assert await asked(client, server)
    chain.error = None
    await until_async(lambda: "read again" in caplog.text)
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert "handler error: pruned" in told[0]
    assert client.metagraph.block > 1
    # Another outage is told again.
    chain.error = ValueError("odd")
    await until_async(lambda: "ValueError('odd')" in caplog.text)


async def test_the_first_read_must_succeed(make_client, quick):
    chain = Chain()
    chain.error = ChainError("no")
    client = make_client(metagraph=following(chain))
    with pytest.raises(ChainError):
        await client.create_endpoint()
    assert client.metagraph is None
    with pytest.raises(ChainError):
        async with client:
            pass
    assert client._endpoints == {}, "closed again"


async def test_the_loop_goes_on_while_the_chain_is_slow(make_client, start_server):
    server = await start_server()
    chain = Chain(neuron(0, server))
    client = make_client()
    await client.initialize_connections([])
    chain.go_on.clear()
    begun = asyncio.create_task(client.start_metagraph_monitor(following(chain)))
    await until_async(lambda: chain.reads)
    assert await asked(client, server), "meanwhile"
    assert not begun.done()
    chain.go_on.set()
    await begun


async def test_a_read_that_takes_too_long_is_a_failure(
    make_client, start_server, quick
):
    server = await start_server()
    chain = Chain(neuron(0, server))
    client = make_client(metagraph=following(chain, sync_timeout=0.02))
    await client.create_endpoint()
    chain.go_on.clear()
    monitor = client._monitor
    await until_async(lambda: monitor.failures)
    assert chain.closes, "it was cut"
    assert client.metagraph.n == 1
    chain.go_on.set()
    await until_async(lambda: not monitor.failures)


async def test_a_close_ends_it_even_before_it_has_begun(make_client, start_server):
    chain = Chain()
    chain.go_on.clear()
    client = make_client()
    await client.create_endpoint()
    begun = asyncio.create_task(client.start_metagraph_monitor(following(chain)))
    await until_async(lambda: chain.reads)
    await client.close()
    chain.go_on.set()
    # Its endpoint is gone, or it was told to stop.
    with pytest.raises((ChainError, LightningConnectionError)):
        await begun
    await client.close()


async def test_the_monitor_dials_inactive_miners_unless_told_otherwise(
    make_client, start_server
):
    server = await start_server()
    chain = Chain(neuron(0, server, is_active=False))
    client = make_client()
    await client.create_endpoint()
    await client.start_metagraph_monitor(following(chain))
    assert len(client.connections()) == 1
    await client.start_metagraph_monitor(following(chain, include_inactive=False))
    assert not client.connections()


async def test_its_own_hotkey_is_not_dialled(make_client, start_server):
    server = await start_server(signer=VALIDATOR)
    client = make_client()
    await client.create_endpoint()
    await client.start_metagraph_monitor(following(Chain(neuron(0, server))))
    assert not client.connections()


async def test_miners_can_be_chosen(make_client, start_server):
    first, second = await start_server(), await start_server(signer=signer(15))
    chain = Chain(neuron(0, first), neuron(1, second))
    select = lambda metagraph: metagraph.quic_miners()[1:]  # noqa: E731
    client = make_client()
    await client.create_endpoint()
    await client.start_metagraph_monitor(following(chain, select=select))
    assert logged_in(client) == {second.local_addr()}


async def test_with_a_probe_only_those_who_speak_quic_are_dialled(
    make_client, start_server, caplog
):
    caplog.set_level(logging.WARNING, "lightning")
    server = await start_server()
    web = NeuronInfo(1, "5D", axon_ip="127.0.0.8", axon_port=9)
    chain = Chain(neuron(0, server), web)
    probe = QuicProbe(1.0)
    client = make_client()
    await client.create_endpoint()
    await client.start_metagraph_monitor(following(chain, probe=probe))
    assert await client.authenticated_hotkeys() == {server.miner_hotkey}
    assert probe.remembered(server.local_addr()) is True
    assert not caplog.records, "nobody was dialled in vain"


async def test_it_needs_a_config_a_signer_and_an_endpoint(make_client):
    client = make_client()
    with pytest.raises(ConfigError):
        await client.start_metagraph_monitor()
    with pytest.raises(LightningConnectionError):
        await client.start_metagraph_monitor(following(Chain()))
    await client.create_endpoint()
    client._signer = None
    with pytest.raises(SigningError):
        await client.start_metagraph_monitor(following(Chain()))


async def test_a_monitor_of_its_own_tells_whoever_wants_to_know():
    seen = []

    async def update(miners):
        seen.append(miners)
        return ()

    monitor = MetagraphMonitor(following([]), "5E", update)
    await monitor.start()
    assert monitor.is_running
    await until_async(lambda: len(seen) > 2)
    await monitor.stop()
    assert not monitor.is_running
    assert seen[0] == []


def test_presets():
    finney = MetagraphMonitorConfig.finney(2)
    assert (finney.subtensor_endpoint, finney.sync_interval) == (FINNEY_ENDPOINT, 600)
    test = MetagraphMonitorConfig.testnet(2, sync_interval=60)
    assert (test.subtensor_endpoint, test.sync_interval) == (TESTNET_ENDPOINT, 60)
    local = MetagraphMonitorConfig.local(2)
    assert local.subtensor_endpoint == LOCAL_ENDPOINT
    assert local.allow_private


@pytest.mark.parametrize("value", [0, -1, float("inf"), None])
def test_an_interval_is_above_zero(value):
    with pytest.raises(ConfigError, match="sync_interval"):
        MetagraphMonitorConfig(2, sync_interval=value)


def test_waits_grow_up_to_the_interval():
    monitor = MetagraphMonitor(following([], sync_interval=20.0), "5E", None)
    waits = []
    for failures in range(1, 8):
        monitor.failures = failures
        waits.append(monitor._backoff())
    assert waits == [1, 2, 4, 8, 16, 20, 20]
