"""Wallets and keypairs of bittensor 11, which has no dendrite and no axon of its own."""

import importlib

import pytest

from lightning import Axon, Dendrite, LightningServerConfig, Synapse
from tests.dropin.faces import free_port
from tests.support.identities import MINER_SEED, VALIDATOR_SEED


class Asked11(Synapse):
    """A question and an answer."""

    text: str = ""


def answer(synapse: Asked11) -> Asked11:
    """Say who asked."""
    synapse.text = synapse.dendrite.hotkey
    return synapse


@pytest.fixture
def keypair(bittensor_is_there):
    """Give what makes a keypair of bittensor 11 from a seed."""
    return importlib.import_module("bittensor_core").Keypair.from_seed


@pytest.fixture
def wallet(bittensor_is_there, tmp_path):
    """Give a wallet on disk."""
    wallet = importlib.import_module("bittensor").Wallet(
        name="w", hotkey="h", path=str(tmp_path)
    )
    wallet.create_new_coldkey(use_password=False, overwrite=True, suppress=True)
    wallet.create_new_hotkey(use_password=False, overwrite=True, suppress=True)
    return wallet


async def asked(asking, answering, **transports: bool) -> list[str]:
    axon = Axon(
        answering,
        port=free_port(),
        external_ip="127.0.0.1",
        server_config=LightningServerConfig(max_handshake_attempts_per_minute=1000),
    )
    axon.attach(answer).start()
    try:
        async with Dendrite(asking, **transports) as dendrite:
            told = await dendrite(axon.info(), Asked11(), timeout=10, deserialize=False)
    finally:
        axon.stop()
    assert told.is_success, told.dendrite
    return [told.text, told.axon.hotkey]


@pytest.mark.parametrize("transports", [{"http": False}, {"quic": False}])
async def test_keypairs_ask_and_answer(keypair, transports):
    one, other = keypair(VALIDATOR_SEED), keypair(MINER_SEED)
    assert await asked(one, other, **transports) == [
        one.ss58_address,
        other.ss58_address,
    ]


@pytest.mark.parametrize("transports", [{"http": False}, {"quic": False}])
async def test_a_wallet_asks_and_answers(wallet, transports):
    hotkey = wallet.hotkey.ss58_address
    assert await asked(wallet, wallet, **transports) == [hotkey, hotkey]
