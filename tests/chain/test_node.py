"""The real substrate-interface client, and a node that replays the main network."""

import asyncio
import dataclasses
import json
import logging
import runpy
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning import (
    Metagraph,
    MetagraphMonitorConfig,
    NeuronInfo,
    connect_subtensor,
    serve_axon,
)
from lightning.chain import monitor as monitor_module
from lightning.chain.substrate import BATCH
from lightning.errors import ChainError, ConfigError, LightningConnectionError
from lightning.metagraph import MetagraphResolver, SubstrateSource
from tests.chain.independent import decode
from tests.support.chain_node import Cut, Refusal, neurons_answer, replay
from tests.support.identities import MINER, MINER_HOTKEY
from tests.support.waiting import until_async

pytestmark = pytest.mark.chain
ROOT = Path(__file__).parents[2]


def test_the_recorded_subnet_is_read_from_a_node(node):
    metagraph = Metagraph(1)
    metagraph.sync(node.url)
    assert metagraph.n == 1024
    assert metagraph.block == 6852690
    theirs = decode(neurons_answer("metagraph"), wrapped=False)
    ours = [dataclasses.asdict(neuron) for neuron in metagraph.neurons]
    assert ours == theirs
    assert len(metagraph.quic_miners(include_inactive=True)) == 820
    asked = [method for method, _ in node.asked]
    assert asked == ["chain_getHead", "chain_getHeader", "state_call"]
    head = node.answers["chain_getHead"]([])
    assert node.asked[-1][1][2] == head, "pinned to the block"


def test_an_older_runtime_is_read_as_well(node):
    replay(node, "neurons_lite")
    metagraph = Metagraph(23)
    metagraph.sync(node.url)
    assert metagraph.n == 19


def test_a_connection_is_kept_between_syncs(node):
    with_connection = connect_subtensor(node.url)
    try:
        metagraph = Metagraph(1)
        metagraph.sync(with_connection)
        interface = with_connection.connect()
        metagraph.sync(with_connection)
        assert with_connection.connect() is interface
        # An interface of the caller's own does as well, and stays open.
        metagraph.sync(interface)
        metagraph.sync(interface)
    finally:
        with_connection.close()


def storage(metadata, node, neurons, *, without=()):
    """Have the node hold neurons in its storage, encoded by the metadata."""
    pallet, entries = "SubtensorModule", {}

    def put(name, params, value):
        if name not in without:
            key, data = metadata.entry(pallet, name, params, value)
            entries[key] = data

    put("SubnetworkN", [2], len(neurons))
    put("ValidatorPermit", [2], [n.validator_permit for n in neurons])
    put("Active", [2], [n.is_active for n in neurons])
    for neuron in neurons:
        put("Keys", [2, neuron.uid], neuron.hotkey)
        if "TotalHotkeyStake" not in without:
            put("TotalHotkeyStake", [neuron.hotkey], neuron.stake)
        if neuron.axon_ip:
            parts = map(int, neuron.axon_ip.split("."))
            axon = {
                "block": 1,
                "version": 0,
                "ip": int.from_bytes(bytes(parts)),
                "port": neuron.axon_port,
                "ip_type": 4,
                "protocol": neuron.axon_protocol,
                "placeholder1": 0,
                "placeholder2": 0,
            }
            put("Axons", [2, neuron.hotkey], axon)

    def at(params):
        keys, block_hash = params
        changes = [[key, entries.get(key)] for key in keys]
        return [{"block": block_hash, "changes": changes}]

    def one(params):
        return entries.get(params[0])

    node.answers["state_queryStorageAt"] = at
    node.answers["state_getStorageAt"] = node.answers["state_getStorage"] = one
    return entries


def has_stakes(metadata) -> bool:
    pallet = metadata.metadata.get_metadata_pallet("SubtensorModule")
    return pallet.get_storage_function("TotalHotkeyStake") is not None


def some(count):
    """Return neurons of the recording, as numbers of a smaller subnet."""
    from lightning import decode_neurons_lite

    found = decode_neurons_lite(neurons_answer("metagraph"))
    chosen = found[:count] + [n for n in found if n.validator_permit][:3]
    return [dataclasses.replace(n, uid=uid, coldkey="") for uid, n in enumerate(chosen)]


def refuse(text):
    def answer(params):
        raise Refusal(text)

    return answer


def test_the_storage_is_read_where_the_api_fails(node, metadata):
    neurons = some(BATCH + 20)
    without = () if has_stakes(metadata) else ("TotalHotkeyStake",)
    if without:
        neurons = [dataclasses.replace(n, stake=0) for n in neurons]
    storage(metadata, node, neurons, without=without)
    node.answers["state_call"] = refuse("Method not found (-32601)")
    metagraph = Metagraph(2)
    metagraph.sync(node.url)
    assert list(metagraph.neurons) == neurons
    block_hash = node.answers["chain_getHead"]([])
    pinned = [p[1] for m, p in node.asked if m == "state_queryStorageAt"]
    assert set(pinned) == {block_hash}


def shortened(params):
    return "0x" + neurons_answer("metagraph")[:-1].hex()


BAD = {
    "pruned": refuse("State already discarded for 0xdb13"),
    "truncated": shortened,
    "empty": lambda params: "0x",
    "nothing": lambda params: None,
    "wrong version": lambda params: "0x04" + "ff" * 400,
    "not hexadecimal": lambda params: "0xzz",
    "no text": lambda params: {"result": 1},
    "not JSON": lambda params: b"{",
    "JSON that is no answer": lambda params: b"[1]",
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_an_answer_of_no_use_keeps_the_old_view(node, answer):
    metagraph = Metagraph(1)
    source = SubstrateSource(node.url, connect_timeout_secs=2.0)
    try:
        metagraph.sync(source)
        neurons = metagraph.neurons
        node.answers["state_call"] = answer
        # Nor can the storage be read.
        node.answers["state_getMetadata"] = refuse("State already discarded")
        with pytest.raises(ChainError) as caught:
            metagraph.sync(source)
        assert str(caught.value).startswith("handler error: ")
        assert metagraph.neurons is neurons
        # Over a new connection all is well again.
        source.close()
        replay(node)
        metagraph.sync(source)
    finally:
        source.close()


def test_a_block_that_is_not_there_is_an_error(node):
    node.answers["chain_getHeader"] = lambda params: None
    with pytest.raises(ChainError, match="chain_getHeader has no result"):
        Metagraph(1).sync(node.url)
    node.answers["chain_getHead"] = refuse("UnknownBlock: Header was not found")
    with pytest.raises(ChainError, match="UnknownBlock: Header was not found"):
        Metagraph(1).sync(node.url)


def test_a_subnet_that_is_not_there_is_an_error(node):
    with pytest.raises(ChainError, match="no neurons in subnet 65535"):
        Metagraph(65_535).sync(node.url)
    resolver = MetagraphResolver(65_535, node.url)
    with pytest.raises(ChainError):
        resolver.resolve_permitted_validators()


def test_a_socket_that_is_cut_in_the_middle_is_an_error(node):
    def cut(params):
        raise Cut

    metagraph = Metagraph(1)
    metagraph.sync(node.url)
    node.answers["state_call"] = cut
    begun = time.monotonic()
    with pytest.raises((ChainError, LightningConnectionError)):
        metagraph.sync(node.url)
    assert time.monotonic() - begun < 20
    assert metagraph.n == 1024


def test_a_kept_connection_is_made_anew_after_a_cut(node):
    def cut(params):
        raise Cut

    metagraph = Metagraph(1)
    source = connect_subtensor(node.url)
    try:
        metagraph.sync(source)
        good = node.answers["state_call"]
        node.answers["state_call"] = cut
        with pytest.raises(ChainError):
            metagraph.sync(source)
        node.answers["state_call"] = good
        metagraph.sync(source)
    finally:
        source.close()


def test_a_slow_answer_is_given_up(node):
    async def slow(params):
        await asyncio.sleep(30)

    metagraph = Metagraph(1)
    node.answers["state_call"] = slow
    before = set(threading.enumerate())
    with pytest.raises(ChainError, match=r"did not answer in 0\.5 s"):
        metagraph.sync(node.url, timeout_secs=0.5)
    # The thread that waited for it ends as well: its socket was cut.
    for thread in set(threading.enumerate()) - before:
        if thread.name == "lightning-chain":
            thread.join(5)
            assert not thread.is_alive()


def test_a_node_that_is_not_there_is_a_connection_error():
    resolver = MetagraphResolver(1, "ws://127.0.0.1:9")
    with pytest.raises(LightningConnectionError, match="cannot connect to subtensor"):
        resolver.resolve_permitted_validators()
    with pytest.raises(LightningConnectionError):
        connect_subtensor("ws://127.0.0.1:9", 1.0)


def test_permits_are_those_of_the_recorded_subnet(node):
    theirs = decode(neurons_answer("metagraph"), wrapped=False)
    resolver = MetagraphResolver(1, node.url)
    permitted = resolver.resolve_permitted_validators()
    assert permitted == {n["hotkey"] for n in theirs if n["validator_permit"]}
    assert len(permitted) == 12
    assert all(hotkey.startswith("5") and len(hotkey) >= 47 for hotkey in permitted)
    # All questions together are one read.
    assert resolver.resolve_allowed_sources().count == 7
    assert set(resolver.stakes()) == permitted
    assert node.count("state_call") == 1
    resolver.close()


async def test_a_server_takes_its_permits_from_the_chain(node, start_server):
    resolver = MetagraphResolver(1, node.url)
    server = await start_server(
        lambda server: server.set_validator_permit_resolver(resolver),
        require_validator_permit=True,
    )
    await until_async(lambda: len(server._logins.permits) == 12)
    resolver.close()


async def test_the_monitor_reconnects_after_an_outage(
    node, make_client, caplog, monkeypatch
):
    monkeypatch.setattr(monitor_module, "FIRST_BACKOFF", 0.01)
    caplog.set_level(logging.INFO, "lightning.metagraph")
    config = MetagraphMonitorConfig(1, node.url, 0.05, select=lambda metagraph: ())
    client = make_client(metagraph=config)
    await client.create_endpoint()
    assert client.metagraph.n == 1024

    def cut(params):
        raise Cut

    good = node.answers["chain_getHead"]
    node.answers["chain_getHead"] = cut
    await until_async(lambda: client._monitor.failures > 2)
    assert client.metagraph.n == 1024
    node.answers["chain_getHead"] = good
    await until_async(lambda: "read again" in caplog.text)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1


class Inclusion:
    """Takes an extrinsic into a block, and says so as the metadata has it."""

    def __init__(self, metadata, node, entries):
        self.metadata = metadata
        self.extrinsic = None
        self.call = None
        self.entries = entries
        node.answers["author_submitAndWatchExtrinsic"] = self.submit
        node.answers["author_unwatchExtrinsic"] = lambda params: True
        node.answers["system_accountNextIndex"] = lambda params: 0
        node.answers["chain_getBlock"] = self.block
        self.header = node.answers["chain_getHeader"]([])

    def submit(self, params):
        from scalecodec.base import ScaleBytes

        self.extrinsic = params[0]
        made = self.metadata.config.create_scale_object(
            "Extrinsic", ScaleBytes(params[0]), metadata=self.metadata.metadata
        )
        made.decode()
        value = made.value
        self.signer = value["address"]
        call = value["call"]
        self.call = (
            call["call_function"],
            {each["name"]: each["value"] for each in call["call_args"]},
        )
        given = dict(self.call[1])
        key = self.metadata.key(
            "SubtensorModule", "Axons", given.pop("netuid"), self.signer
        )
        given["block"] = 1
        self.entries[key] = self.metadata.value("SubtensorModule", "Axons", given)
        key = self.metadata.key("System", "Events")
        dispatch = {
            "weight": {"ref_time": 1, "proof_size": 0},
            "class": "Normal",
            "pays_fee": "Yes",
        }
        success = {"ExtrinsicSuccess": {"dispatch_info": dispatch}}
        event = {
            "phase": {"ApplyExtrinsic": 0},
            "event": {"System": success},
            "topics": [],
        }
        self.entries[key] = self.metadata.value("System", "Events", [event])
        return "subscription"

    def block(self, params):
        return {"block": {"header": self.header, "extrinsics": [self.extrinsic]}}


async def test_from_serving_an_axon_to_answers(
    node, metadata, start_server, make_client
):
    """What the peer's test on a local chain shows, with a node that replays one."""
    server = await start_server(signer=MINER, host="127.0.0.2")
    ip, port = server.local_addr()
    permitted = dataclasses.replace(some(0)[0], uid=1)
    stakes = () if has_stakes(metadata) else ("TotalHotkeyStake",)
    neurons = [NeuronInfo(0, MINER_HOTKEY), permitted]
    entries = storage(metadata, node, neurons, without=stakes)
    node.answers["state_call"] = refuse("not here")
    chain = Inclusion(metadata, node, entries)

    published = await asyncio.to_thread(serve_axon, node.url, 2, ip, port, MINER)
    assert published.is_new
    assert chain.signer == MINER_HOTKEY
    assert chain.call[0] == "serve_axon"
    given = {"netuid": 2, "version": 0, "ip": 0x7F000002, "port": port, "ip_type": 4}
    given |= {"protocol": 4, "placeholder1": 0, "placeholder2": 0}
    assert chain.call[1] == given
    again = await asyncio.to_thread(serve_axon, node.url, 2, ip, port, MINER)
    assert not again.is_new, "the chain has it"
    assert node.count("author_submitAndWatchExtrinsic") == 1

    metagraph = Metagraph(2)
    await metagraph.sync_async(node.url)
    miner = metagraph.get_neuron(0)
    assert (miner.axon_ip, miner.axon_port, miner.axon_protocol) == (ip, port, 4)
    assert metagraph.quic_miners() == [], "loopback is left out"

    config = MetagraphMonitorConfig.local(2, sync_interval=60)
    config = dataclasses.replace(config, subtensor_endpoint=node.url)
    client = make_client(metagraph=config)
    await client.create_endpoint()
    (axon,) = client.metagraph.quic_miners(include_inactive=True)
    answer = await client.query_axon(axon, {"synapse_type": "echo", "data": {"n": 1}})
    assert answer.data == {"n": 1}


def test_what_the_chain_refuses_is_an_error(node, metadata):
    storage(
        metadata, node, [NeuronInfo(0, MINER_HOTKEY)], without=("TotalHotkeyStake",)
    )
    node.answers["system_accountNextIndex"] = lambda params: 0
    node.answers["author_submitAndWatchExtrinsic"] = refuse("Custom error: 10")
    with pytest.raises(ChainError, match="Custom error: 10"):
        serve_axon(node.url, 2, "127.0.0.2", 1, MINER)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        serve_axon(node.url, 2, "127.0.0.1", 1, MINER)


async def test_the_example_runs_from_the_chain_to_answers(
    node, metadata, start_server, capsys, monkeypatch
):
    server = await start_server(
        lambda server: server.register_synapse_handler(
            "square", lambda data: {"square": data["number"] ** 2}
        ),
        signer=MINER,
        host="127.0.0.2",
    )
    ip, port = server.local_addr()
    miner = NeuronInfo(0, MINER_HOTKEY, axon_ip=ip, axon_port=port)
    storage(metadata, node, [miner], without=("TotalHotkeyStake",))
    node.answers["state_call"] = refuse("not here")
    arguments = ["validator_from_chain.py", "--endpoint", node.url, "--netuid", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--private"])
    example = str(ROOT / "examples" / "validator_from_chain.py")
    await asyncio.to_thread(runpy.run_path, example, run_name="__main__")
    said = capsys.readouterr().out
    assert "subnet 2 at block 6852690: 1 neurons, 1 miners" in said
    assert f"{MINER_HOTKEY}: 49" in said
    assert json.dumps(said)
