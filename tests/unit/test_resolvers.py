"""A server's questions about validators, answered from the metagraph."""

import pytest

from lightning import LearnedSources, Metagraph, NeuronInfo, QuicAxonInfo, StakePriority
from lightning.errors import ChainError, ConfigError, LightningError
from lightning.metagraph import MetagraphResolver, Snapshot
from tests.support.identities import MINER_HOTKEY, VALIDATOR, VALIDATOR_HOTKEY, signer
from tests.support.waiting import until_async

HOLDERS = (
    NeuronInfo(0, VALIDATOR_HOTKEY, 30, axon_ip="8.8.8.8", validator_permit=True),
    NeuronInfo(1, "small", 2, validator_permit=True),
    NeuronInfo(2, "miner", 99, axon_ip="8.8.4.4", axon_port=1),
)


class Chain:
    def __init__(self, *neurons):
        self.neurons = neurons
        self.reads = self.closes = 0
        self.error = None

    def read(self, netuid):
        self.reads += 1
        if self.error is not None:
            raise self.error
        return Snapshot(1, self.neurons)

    def close(self):
        self.closes += 1


def test_all_questions_share_one_read():
    chain = Chain(*HOLDERS)
    resolver = MetagraphResolver(2, chain)
    assert resolver.resolve_permitted_validators() == {VALIDATOR_HOTKEY, "small"}
    assert resolver.resolve_allowed_sources().addresses == {"8.8.8.8"}
    assert resolver.validator_axon_ips() == {"8.8.8.8"}
    assert resolver.stakes() == {VALIDATOR_HOTKEY: 30.0, "small": 2.0}
    assert chain.reads == 1
    resolver.close()
    assert chain.closes == 0, "it is its owner's"


def test_an_old_view_is_read_again():
    chain = Chain(*HOLDERS)
    resolver = MetagraphResolver(2, chain, max_age_secs=0)
    resolver.stakes()
    chain.error = ChainError("no")
    with pytest.raises(ChainError):
        resolver.stakes()
    assert chain.reads == 2
    assert resolver.metagraph.n == 3


def test_holders_with_little_stake_can_be_left_out():
    resolver = MetagraphResolver(2, Chain(*HOLDERS), min_stake=10)
    assert resolver.resolve_permitted_validators() == {VALIDATOR_HOTKEY}
    assert resolver.stakes() == {VALIDATOR_HOTKEY: 30.0}


def test_everybody_may_connect_while_no_validator_publishes_an_address():
    resolver = MetagraphResolver(2, Chain(*HOLDERS[1:]))
    assert resolver.resolve_allowed_sources().is_bypass


def test_a_metagraph_that_somebody_else_syncs():
    metagraph = Metagraph(2)
    resolver = MetagraphResolver(metagraph)
    assert resolver.resolve_permitted_validators() == set()
    metagraph.sync(list(HOLDERS))
    assert len(resolver.resolve_permitted_validators()) == 2
    resolver.close()
    with pytest.raises(ConfigError):
        MetagraphResolver(2)


def test_learned_sources_take_holders_and_addresses_from_the_chain():
    resolver = MetagraphResolver(2, Chain(*HOLDERS))
    sources = LearnedSources(
        resolver.stakes, settle_secs=0, extra=resolver.validator_axon_ips
    )
    assert sources.resolve_allowed_sources().is_bypass
    sources.observe_successful_handshake(VALIDATOR_HOTKEY, "9.9.9.9")
    assert sources.resolve_allowed_sources().addresses == {"9.9.9.9", "8.8.8.8"}


async def test_a_server_lets_in_who_holds_a_permit(start_server, make_client):
    resolver = MetagraphResolver(2, Chain(*HOLDERS))
    priority = StakePriority(resolver.stakes)

    def prepare(server):
        server.set_validator_permit_resolver(resolver)
        server.set_priority(priority)

    server = await start_server(prepare, require_validator_permit=True)
    await until_async(lambda: len(server._logins.permits) == 2)
    axon = QuicAxonInfo(MINER_HOTKEY, *server.local_addr())
    good, bad = make_client(VALIDATOR), make_client(signer(21))
    await good.initialize_connections([axon])
    assert (await good.query_axon(axon, {"synapse_type": "echo"})).success
    await bad.create_endpoint()
    with pytest.raises(LightningError):
        await bad.query_axon(axon, {"synapse_type": "echo"})
