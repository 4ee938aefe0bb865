"""Neurons in the shapes of bittensor 10 and 11, and of plain axons."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning import Metagraph, NeuronInfo, QuicAxonInfo
from lightning.chain.shapes import neuron_of, neurons_of
from lightning.errors import ChainError, ConfigError
from lightning.metagraph import BittensorSource


@dataclass
class Balance:
    rao: int


@dataclass
class AxonInfo10:
    ip: str
    port: int
    hotkey: str
    coldkey: str = "cold"
    version: int = 1
    ip_type: int = 4
    protocol: int = 4
    placeholder1: int = 0
    placeholder2: int = 0


EXPECTED = (
    NeuronInfo(0, "v", 5_000_000_000, True, "8.8.4.4", 1, 4, True, "cold"),
    NeuronInfo(1, "m", 250_000_000, False, "8.8.8.8", 8443, 4, False, "cold"),
    NeuronInfo(2, "off", 0, False, "0.0.0.0", 0, 4, False, "cold"),
)


def metagraph_10() -> Any:
    """As bittensor 10 has it: columns, some of them arrays."""
    return SimpleNamespace(
        netuid=2,
        block=np.array([77]).reshape(())[()],
        axons=[AxonInfo10(n.axon_ip, n.axon_port, n.hotkey) for n in EXPECTED],
        hotkeys=[n.hotkey for n in EXPECTED],
        coldkeys=[n.coldkey for n in EXPECTED],
        uids=np.array([n.uid for n in EXPECTED]),
        S=np.array([n.stake / 1e9 for n in EXPECTED], dtype=np.float32),
        validator_permit=np.array([n.validator_permit for n in EXPECTED]),
        active=np.array([int(n.is_active) for n in EXPECTED]),
    )


class Subtensor10:
    """Asked for the neurons of one block."""

    def get_current_block(self):
        return 77

    def neurons_lite(self, netuid, block=None):
        assert (netuid, block) == (2, 77)
        return [
            SimpleNamespace(
                uid=n.uid,
                netuid=2,
                hotkey=n.hotkey,
                coldkey=n.coldkey,
                active=int(n.is_active),
                stake=Balance(1),
                total_stake=Balance(n.stake),
                validator_permit=n.validator_permit,
                axon_info=AxonInfo10(n.axon_ip, n.axon_port, n.hotkey),
            )
            for n in EXPECTED
        ]


@dataclass
class Neuron11:
    uid: int
    hotkey: str
    coldkey: str
    active: bool
    validator_permit: bool
    total_stake: Balance
    axon: str | None
    raw: dict = field(default_factory=dict)


@dataclass
class Metagraph11:
    netuid: int
    block: int
    neurons: list
    raw: dict

    @property
    def hotkeys(self):
        return [n.hotkey for n in self.neurons]

    def __iter__(self):
        return iter(self.neurons)


def metagraph_11() -> Metagraph11:
    neurons, axons = [], []
    for n in EXPECTED:
        text = f"{n.axon_ip}:{n.axon_port}" if n.axon_port else None
        balance = Balance(n.stake)
        neurons.append(
            Neuron11(
                n.uid,
                n.hotkey,
                n.coldkey,
                n.is_active,
                n.validator_permit,
                balance,
                text,
            )
        )
        ip = int.from_bytes(bytes(map(int, n.axon_ip.split("."))))
        axons.append({"ip": ip, "port": n.axon_port, "ip_type": 4, "protocol": 4})
    return Metagraph11(2, 77, neurons, {"axons": axons})


class Client11:
    """A synchronous client of bittensor 11."""

    def __init__(self):
        self.subnets = SimpleNamespace(
            metagraph=lambda netuid: metagraph_11() if netuid == 2 else None
        )


@pytest.mark.parametrize(
    "make",
    [metagraph_10, Subtensor10, metagraph_11, Client11],
    ids=lambda make: make.__name__,
)
def test_bittensors_objects_are_read_by_their_shape(make):
    metagraph = Metagraph(2)
    metagraph.sync(make())
    assert metagraph.neurons == EXPECTED
    assert metagraph.block == 77
    (miner,) = metagraph.quic_miners(include_inactive=True)
    assert miner == QuicAxonInfo("m", "8.8.8.8", 8443)


def test_without_the_raw_record_bittensor_11_tells_address_and_port():
    theirs = metagraph_11()
    theirs.raw = {}
    found = neurons_of(theirs)
    assert [(n.axon_ip, n.axon_port) for n in found] == [
        ("8.8.4.4", 1),
        ("8.8.8.8", 8443),
        ("", 0),
    ]
    theirs.neurons[1].axon = "[2a00:1450::1]:99"
    assert neurons_of(theirs)[1].axon_ip == "2a00:1450::1"
    theirs.neurons[1].raw = {"axon_info": {"ip": 1 << 24, "port": 5, "protocol": 0}}
    assert neurons_of(theirs)[1].to_axon() == QuicAxonInfo("m", "1.0.0.0", 5, 0)


def test_a_metagraph_in_the_middle_of_a_sync_is_an_error():
    theirs = metagraph_10()
    theirs.hotkeys = theirs.hotkeys[:2]
    with pytest.raises(ChainError, match="3 axons, but 2 hotkeys"):
        neurons_of(theirs)


def test_a_metagraph_of_another_subnet_is_refused():
    with pytest.raises(ConfigError, match="of subnet 2, not 3"):
        Metagraph(3).sync(metagraph_10())
    with pytest.raises(ChainError, match="no subnet 3"):
        Metagraph(3).sync(Client11())


def test_an_asynchronous_object_is_refused():
    class Asynchronous:
        async def get_current_block(self):
            return 1

        async def neurons_lite(self, netuid, block):
            return []

    with pytest.raises(ConfigError, match="asynchronous"):
        Metagraph(2).sync(Asynchronous())


def test_a_second_read_does_not_wait_behind_one_that_hangs():
    source = BittensorSource(metagraph_10())
    with source._busy, pytest.raises(ChainError, match="has not ended"):
        source.read(2)


def test_an_object_without_neurons_is_an_error():
    theirs = metagraph_11()
    theirs.neurons = []
    with pytest.raises(ChainError, match="no neurons in subnet 2"):
        Metagraph(2).sync(theirs)


def test_axons_count_as_active_miners():
    axon = QuicAxonInfo("m", "8.8.8.8", 1, 0)
    assert neuron_of(axon, 4) == NeuronInfo(4, "m", 0, True, "8.8.8.8", 1, 0)
    assert neuron_of({"hotkey": "m", "ip": "8.8.8.8", "port": 1}, 4).uid == 4
    assert neuron_of(AxonInfo10("8.8.8.8", 1, "m"), 4).axon_protocol == 4


@pytest.mark.parametrize(
    "neuron",
    [
        object(),
        {"ip": "8.8.8.8", "port": 1},
        {"hotkey": "m", "ip": 1, "port": 1},
        {"hotkey": "m", "ip": "8.8.8.8", "port": 70_000},
        NeuronInfo(65_536, "m"),
        NeuronInfo(0, "m", stake=-1),
        NeuronInfo(0, "m", axon_port=-1),
        NeuronInfo(0, None),
        Neuron11(0, "m", "c", True, True, Balance(0), "nonsense"),
        SimpleNamespace(hotkey="m", axon_info=SimpleNamespace(ip="1.1.1.1")),
    ],
)
def test_what_is_no_neuron_is_an_error(neuron):
    with pytest.raises(ChainError, match="neuron"):
        neuron_of(neuron, 0)


@pytest.mark.parametrize("value", [3, "text", {"a": 1}])
def test_what_has_no_neurons_is_an_error(value):
    with pytest.raises(ChainError, match="has no neurons"):
        neurons_of(value)


def test_there_are_no_more_neurons_than_numbers(monkeypatch):
    monkeypatch.setattr("lightning.chain.shapes.MAX_NEURONS", 2)
    with pytest.raises(ChainError, match="more than 2 neurons"):
        neurons_of(list(EXPECTED))
    with pytest.raises(ChainError, match="more than 2 neurons"):
        neurons_of(metagraph_10())
