"""Who signs, out of what libraries call a wallet or a keypair."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from lightning.dropin.keys import keypair_of
from lightning.errors import ConfigError
from tests.support.identities import VALIDATOR, VALIDATOR_HOTKEY, VALIDATOR_SEED


def test_a_keypair_is_taken_as_it_is():
    """It has an address and signs."""
    assert keypair_of(VALIDATOR) is VALIDATOR


def test_of_a_wallet_the_hotkey_is_taken():
    """By its shape, whatever library it is of."""
    assert keypair_of(SimpleNamespace(hotkey=VALIDATOR, coldkey=None)) is VALIDATOR


def test_a_keypair_of_bittensor_is_taken():
    """Its sign takes bytes as well as text."""
    module = importlib.import_module("bittensor_wallet")
    pair = module.Keypair.create_from_seed("0x" + VALIDATOR_SEED.hex())
    assert keypair_of(pair) is pair
    assert keypair_of(SimpleNamespace(hotkey=pair)).ss58_address == VALIDATOR_HOTKEY


def test_none_is_the_default_wallet(monkeypatch):
    """As bittensor has it."""
    wallet = SimpleNamespace(hotkey=VALIDATOR)
    stand_in = SimpleNamespace(Wallet=lambda: wallet)
    monkeypatch.setitem(sys.modules, "bittensor_wallet", stand_in)
    assert keypair_of(None) is VALIDATOR


def test_without_bittensors_wallet_the_default_is_asked_for(monkeypatch):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "bittensor_wallet", None)
    with pytest.raises(
        ConfigError, match=r"pip install 'bittensor-lightning\[wallet\]"
    ):
        keypair_of(None)


@pytest.mark.parametrize(
    "thing",
    [
        "5F...",
        object(),
        SimpleNamespace(ss58_address="5F"),
        SimpleNamespace(hotkey="5F"),
    ],
)
def test_what_neither_signs_nor_has_a_hotkey_is_refused(thing):
    """At once, and not by the first request."""
    with pytest.raises(ConfigError, match="neither a wallet nor a keypair"):
        keypair_of(thing)
