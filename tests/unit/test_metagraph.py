"""What a metagraph holds, whom it gives to be dialled, and how it is read again."""

import threading

import pytest

from lightning import Metagraph, NeuronInfo, QuicAxonInfo, is_valid_ip
from lightning.errors import ChainError, ConfigError, LightningConnectionError
from lightning.metagraph import ListSource, Snapshot, SubstrateSource, as_source

NEURONS = [
    NeuronInfo(0, "validator", 7, True, "8.8.4.4", 1, 4, validator_permit=True),
    NeuronInfo(1, "quic", 0, True, "8.8.8.8", 8443, 4),
    NeuronInfo(2, "http", 0, True, "8.8.8.8", 8080, 0),
    NeuronInfo(3, "private", 0, True, "192.168.1.1", 8443, 4),
    NeuronInfo(4, "portless", 0, True, "8.8.8.8", 0, 4),
    NeuronInfo(5, "inactive", 0, False, "1.2.3.4", 8443, 4),
    NeuronInfo(6, "hidden", 9, True, "", 0, 4, validator_permit=True),
    NeuronInfo(7, "six", 0, True, "2a00:1450::1", 8443, 4),
]


def synced(neurons=NEURONS, **settings) -> Metagraph:
    metagraph = Metagraph(2, **settings)
    metagraph.sync(neurons)
    return metagraph


GLOBAL = ["1.2.3.4", "8.8.8.8", "45.33.32.156", "172.15.0.1", "172.32.0.1"]
GLOBAL += ["100.63.255.255", "100.128.0.0", "223.255.255.255", "192.0.1.0", "11.0.0.0"]


@pytest.mark.parametrize("ip", GLOBAL)
def test_global_addresses_are_valid(ip):
    assert is_valid_ip(ip)


LOCAL = ["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0"]
LOCAL += ["192.168.255.255", "127.0.0.1", "127.255.255.255", "169.254.0.1"]
LOCAL += ["100.64.0.1", "100.127.255.254"]
UNUSABLE = ["0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.2.1", "192.88.99.1"]
UNUSABLE += ["198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"]
UNUSABLE += ["224.0.0.1", "239.255.255.255", "240.0.0.1", "254.255.255.255"]
UNUSABLE += ["255.255.255.255", "", "localhost", "not an ip", "1.2.3", "01.2.3.4"]


@pytest.mark.parametrize("ip", [*LOCAL, *UNUSABLE, "::1", "2a00:1450::1"])
def test_other_addresses_are_not(ip):
    assert not is_valid_ip(ip)


def test_private_networks_can_be_allowed():
    assert all(is_valid_ip(ip, allow_private=True) for ip in LOCAL)
    assert not any(is_valid_ip(ip, allow_private=True) for ip in UNUSABLE)


def test_ipv6_can_be_allowed():
    allowed = {
        ip
        for ip in ("2a00:1450::1", "::1", "fe80::1", "fd00::1", "::", "ff02::1")
        if is_valid_ip(ip, allow_ipv6=True)
    }
    assert allowed == {"2a00:1450::1"}
    near = {"allow_ipv6": True, "allow_private": True}
    assert all(is_valid_ip(ip, **near) for ip in ("::1", "fe80::1", "fd00::1"))
    assert not any(is_valid_ip(ip, **near) for ip in ("::", "ff02::1", "fe80::1%lo"))
    assert not is_valid_ip("::ffff:8.8.8.8", allow_ipv6=True)


def test_quic_miners_are_those_that_can_be_dialled():
    assert synced().quic_miners() == [QuicAxonInfo("quic", "8.8.8.8", 8443, 4)]


def test_inactive_miners_are_left_out_unless_asked_for():
    miners = synced().quic_miners(include_inactive=True)
    assert [miner.hotkey for miner in miners] == ["quic", "inactive"]


def test_a_metagraph_of_a_private_network_gives_private_addresses():
    miners = synced(allow_private=True, allow_ipv6=True).quic_miners()
    assert [miner.hotkey for miner in miners] == ["quic", "private", "six"]


def test_validator_axon_ips_are_those_of_permit_holders():
    assert synced().validator_axon_ips() == {"8.8.4.4"}


def test_permits_and_their_stake():
    metagraph = synced()
    assert metagraph.permitted_validators() == {"validator": 7, "hidden": 9}
    assert metagraph.permitted_validators(min_stake=8) == {"hidden": 9}


def test_neurons_are_found_by_number_and_hotkey():
    metagraph = synced()
    assert (metagraph.netuid, metagraph.n, metagraph.block) == (2, 8, 1)
    assert metagraph.get_neuron(3) is metagraph.neurons[3] is NEURONS[3]
    assert metagraph.get_uid_by_hotkey("http") == 2
    assert metagraph.get_neuron(99) is metagraph.get_uid_by_hotkey("nobody") is None
    assert repr(metagraph) == "<Metagraph of subnet 2: 8 neurons at block 1>"
    assert 0 <= metagraph.age < 60


def test_a_new_one_is_empty():
    metagraph = Metagraph(0)
    assert (metagraph.n, metagraph.block, metagraph.age) == (0, 0, None)
    assert metagraph.quic_miners() == []


@pytest.mark.parametrize("netuid", [-1, 65_536])
def test_a_netuid_has_16_bits(netuid):
    with pytest.raises(OverflowError):
        Metagraph(netuid)


@pytest.mark.parametrize("netuid", [True, 1.0, "1", None])
def test_a_netuid_is_a_number(netuid):
    with pytest.raises(TypeError):
        Metagraph(netuid)


class Source:
    """Does what the test says."""

    def __init__(self, read):
        self._read = read
        self.closed = threading.Event()

    def read(self, netuid):
        return self._read(self, netuid)

    def close(self):
        self.closed.set()


@pytest.mark.parametrize(
    "failure",
    [ChainError("no"), LightningConnectionError("gone"), OSError("odd"), SystemExit()],
)
def test_a_sync_that_fails_keeps_the_old_view(failure):
    def read(source, netuid):
        raise failure

    metagraph = synced()
    neurons = metagraph.neurons
    source = Source(read)
    with pytest.raises((ChainError, LightningConnectionError)) as caught:
        metagraph.sync(source)
    assert metagraph.neurons is neurons
    if not isinstance(failure, (ChainError, LightningConnectionError)):
        assert caught.value.__cause__ is failure
    assert not source.closed.is_set(), "it is its owner's"


def test_a_sync_that_takes_too_long_is_cut():
    def read(source, netuid):
        source.closed.wait(10)
        raise OSError("closed")

    metagraph = synced()
    source = Source(read)
    with pytest.raises(ChainError, match=r"did not answer in 0\.01 s"):
        metagraph.sync(source, timeout_secs=0.01)
    assert source.closed.is_set()
    assert metagraph.n == 8


async def test_the_same_on_an_event_loop():
    def read(source, netuid):
        source.closed.wait(10)
        raise OSError("closed")

    metagraph = Metagraph(2)
    await metagraph.sync_async(NEURONS)
    source = Source(read)
    with pytest.raises(ChainError, match=r"did not answer in 0\.01 s"):
        await metagraph.sync_async(source, timeout_secs=0.01)
    assert source.closed.is_set()
    assert metagraph.n == 8


def test_a_uid_that_is_there_twice_is_an_error():
    metagraph = synced()
    with pytest.raises(ChainError, match="twice"):
        metagraph.sync([NeuronInfo(1, "a"), NeuronInfo(1, "b")])
    assert metagraph.n == 8


def test_sources_are_made_of_what_callers_have():
    assert isinstance(as_source("ws://127.0.0.1:1"), SubstrateSource)
    assert isinstance(as_source(NEURONS), ListSource)
    assert isinstance(as_source(lambda: NEURONS), ListSource)
    source = Source(lambda source, netuid: Snapshot(1, ()))
    assert as_source(source) is source
    for value in (None, 1, b"", {}, object()):
        with pytest.raises(TypeError):
            as_source(value)
    for url in ("http://127.0.0.1", "finney", "ws://"):
        with pytest.raises(ConfigError):
            as_source(url)


def test_a_list_may_change_and_may_be_a_callable():
    miners = [{"hotkey": "a", "ip": "8.8.8.8", "port": 1}]
    metagraph = Metagraph(2)
    for source in (miners, lambda: miners):
        metagraph.sync(source)
        assert [miner.hotkey for miner in metagraph.quic_miners()] == ["a"]
    kept = ListSource(miners)
    metagraph.sync(kept)
    miners.append({"uid": 1, "hotkey": "b", "axon_ip": "8.8.8.8", "axon_port": 2})
    metagraph.sync(kept)
    assert metagraph.block == 2
    assert [miner.port for miner in metagraph.quic_miners()] == [1, 2]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "substrateinterface", None)
    with pytest.raises(ConfigError, match=r"bittensor-lightning\[subtensor\].*cyscale"):
        Metagraph(1).sync("ws://127.0.0.1:1")
