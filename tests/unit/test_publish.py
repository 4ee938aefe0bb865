"""Publishing an axon through the bittensor object at hand."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lightning import serve_axon
from lightning.errors import ChainError, ConfigError, SigningError
from lightning.signer import CallbackSigner, verify
from tests.support.identities import MINER, MINER_HOTKEY, MINER_SEED


class Substrate:
    """The part of a substrate library that publishing needs, as bittensor 10 has it."""

    def __init__(self, there=None, *, is_success=True):
        self.there = there
        self.is_success = is_success
        self.sent = []

    def query(self, pallet, name, params):
        assert (pallet, name, params) == ("SubtensorModule", "Axons", [2, MINER_HOTKEY])
        return self.there

    def compose_call(self, call_module, call_function, call_params):
        return call_module, call_function, call_params

    def create_signed_extrinsic(self, call, keypair):
        assert keypair.ss58_address == MINER_HOTKEY
        assert keypair.crypto_type == 1
        payload = SimpleNamespace(data=bytearray(b"payload"))
        assert verify(keypair.public_key, b"payload", keypair.sign(payload))
        return call

    def submit_extrinsic(self, extrinsic, wait_for_inclusion):
        assert wait_for_inclusion
        self.sent.append(extrinsic)
        return SimpleNamespace(
            is_success=self.is_success, error_message="too soon", block_hash="0x1"
        )


@pytest.mark.parametrize("signer", [MINER, MINER_SEED, SimpleNamespace(hotkey=MINER)])
def test_a_subtensor_of_bittensor_10_publishes(signer):
    chain = SimpleNamespace(substrate=Substrate())
    published = serve_axon(chain, 2, "8.8.8.8", 8443, signer)
    assert published == (published.axon, True, "0x1")
    ((_, function, params),) = chain.substrate.sent
    assert function == "serve_axon"
    assert (params["ip"], params["ip_type"], params["protocol"]) == (0x08080808, 4, 4)


def test_what_is_there_already_is_not_sent():
    there = {"ip": 0x08080808, "ip_type": 4, "port": 8443, "protocol": 4}
    substrate = Substrate(there)
    assert not serve_axon(substrate, 2, "8.8.8.8", 8443, MINER).is_new
    assert not substrate.sent
    assert serve_axon(substrate, 2, "8.8.8.8", 8444, MINER).is_new


def test_a_refusal_is_an_error():
    with pytest.raises(ChainError, match="too soon"):
        serve_axon(Substrate(is_success=False), 2, "8.8.8.8", 1, MINER)
    with pytest.raises(SigningError):
        serve_axon(
            Substrate(), 2, "8.8.8.8", 1, CallbackSigner(len), hotkey=MINER_HOTKEY
        )


def test_a_client_of_bittensor_11_runs_an_intent(monkeypatch):
    package = ModuleType("bittensor_of_a_test")
    package.ServeAxon = lambda **fields: fields
    monkeypatch.setitem(sys.modules, package.__name__, package)
    results = [SimpleNamespace(success=True, block_hash="0x2"), None]
    results.append(SimpleNamespace(success=False))
    asked = []

    class Client:
        def execute(self, intent, wallet):
            asked.append((intent, wallet))
            return results.pop(0)

    Client.__module__ = package.__name__ + ".sync"
    wallet = SimpleNamespace(hotkey=MINER)
    assert serve_axon(Client(), 2, "8.8.8.8", 1, wallet).block_hash == "0x2"
    fields = {"netuid": 2, "ip": "8.8.8.8", "port": 1, "protocol": 4, "version": 0}
    assert asked == [(fields, wallet)]
    assert serve_axon(Client(), 2, "8.8.8.8", 1, wallet).is_new
    with pytest.raises(ChainError, match="refused"):
        serve_axon(Client(), 2, "8.8.8.8", 1, wallet)


@pytest.mark.parametrize(
    ("ip", "port"),
    [("127.0.0.1", 1), ("0.0.0.0", 1), ("224.0.0.1", 1), ("host", 1), ("8.8.8.8", 0)],
)
def test_an_address_must_make_sense(ip, port):
    with pytest.raises(ConfigError):
        serve_axon(Substrate(), 2, ip, port, MINER)


def test_a_signer_without_a_hotkey_needs_one():
    with pytest.raises(ConfigError, match="hotkey"):
        serve_axon(Substrate(), 2, "8.8.8.8", 1, CallbackSigner(bytes))
