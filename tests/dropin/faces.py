"""Both libraries by one set of names, and ends of theirs that run."""

import importlib
import os
import socket
import tempfile
import types
from dataclasses import dataclass, replace
from typing import Any

from tests.support.identities import MINER_HOTKEY, MINER_SEED, VALIDATOR_SEED
from tests.support.waiting import until

# What a dendrite says is its address: of a net that is nobody's (RFC 5737).
CLAIMED = "203.0.113.7"


@dataclass(frozen=True)
class Face:
    """The names that subnets import.

    Attributes:
        name: Whose dendrite and axon, and whose synapses if another's.
        is_ours: Whether dendrite and axon are of this package.
    """

    name: str
    is_ours: bool
    Dendrite: Any
    Axon: Any
    AxonInfo: Any
    Synapse: Any
    StreamingSynapse: Any
    TerminalInfo: Any
    SynapseException: Any

    def with_synapses_of(self, other: "Face") -> "Face":
        """Return the same dendrite and axon with another's synapses."""
        return replace(
            self,
            name=f"{self.name} with synapses of {other.name}",
            Synapse=other.Synapse,
            StreamingSynapse=other.StreamingSynapse,
            TerminalInfo=other.TerminalInfo,
            SynapseException=other.SynapseException,
        )


def ours() -> Face:
    """Return this package."""
    import lightning
    from lightning.dropin import exceptions, synapse

    return Face(
        "lightning",
        True,
        lightning.Dendrite,
        lightning.Axon,
        lightning.AxonInfo,
        lightning.Synapse,
        lightning.StreamingSynapse,
        synapse.TerminalInfo,
        exceptions.SynapseException,
    )


def theirs() -> Face:
    """Return bittensor, which is imported in a home of its own and without internet."""
    home = os.environ.get("HOME")
    os.environ["HOME"] = tempfile.mkdtemp(prefix="bittensor-home-")
    try:
        bittensor = importlib.import_module("bittensor")
    finally:
        if home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = home
    importlib.import_module("bittensor.utils.networking").get_external_ip = lambda: (
        CLAIMED
    )
    synapse = importlib.import_module("bittensor.core.synapse")
    return Face(
        "bittensor",
        False,
        bittensor.Dendrite,
        bittensor.Axon,
        bittensor.AxonInfo,
        bittensor.Synapse,
        bittensor.StreamingSynapse,
        synapse.TerminalInfo,
        importlib.import_module("bittensor.core.errors").SynapseException,
    )


def keypair(seed: bytes) -> Any:
    """Return a hotkey as wallets have it."""
    module = importlib.import_module("bittensor_wallet")
    return module.Keypair.create_from_seed("0x" + seed.hex())


def wallet(seed: bytes) -> Any:
    """Return what has a hotkey."""
    return types.SimpleNamespace(hotkey=keypair(seed), coldkeypub=keypair(seed))


def free_port() -> int:
    """Return a port that neither UDP nor TCP uses now."""
    for _ in range(100):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        ):
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port > 1024:
                return port
    raise RuntimeError("there is no free port")


def make_dendrite(face: Face, transport: str, kind: Any = None) -> Any:
    """Return a dendrite, or of a class derived from it, that uses one transport.

    Over "http", "quic" or "both".
    """
    kind = kind or face.Dendrite
    if not face.is_ours:
        assert transport == "http"
        return kind(keypair(VALIDATOR_SEED))
    dendrite = kind(
        keypair(VALIDATOR_SEED), quic=transport != "http", http=transport != "quic"
    )
    dendrite.external_ip = CLAIMED
    return dendrite


def make_axon(face: Face, port: int | None = None, seed: bytes = MINER_SEED) -> Any:
    """Return an axon on loopback; what it says of itself is where it is."""
    told = {"wallet": wallet(seed), "port": port or free_port()}
    if face.is_ours:
        from lightning import LightningServerConfig

        # All tests come from one address.
        config = LightningServerConfig(max_handshake_attempts_per_minute=10_000)
        told["server_config"] = config
    return face.Axon(**told, external_ip="127.0.0.1")


def start(axon: Any) -> Any:
    """Start an axon; return when it listens."""
    axon.start()

    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", axon.external_port)) == 0

    until(listens)
    return axon


def info(face: Face, port: int, **other: Any) -> Any:
    """Describe a miner on loopback."""
    told = {
        "version": 1,
        "ip": "127.0.0.1",
        "port": port,
        "ip_type": 4,
        "hotkey": MINER_HOTKEY,
        "coldkey": MINER_HOTKEY,
        **other,
    }
    return face.AxonInfo(**told)
