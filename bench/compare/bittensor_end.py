"""bittensor's dendrite and axon, as its users have them; runs in its own environment.

The payload travels in base64, in a field of a synapse: JSON has no bytes, and that is what
subnets do. The axon checks each signature, by its default. Nothing asks a chain, or the
internet for the machine's address.
"""

import base64
import socket
import time
import types
from typing import Any

import bittensor
from bittensor.utils import networking
from bittensor_wallet import Keypair

from bench.compare.ends import (
    MINER,
    MINER_SEED,
    TIMEOUT,
    VALIDATOR_SEED,
    OnLoop,
    payload,
)

# A request that an axon refuses, as one that another has overtaken, is made again.
TRIES = 10
# Both constructors would ask servers on the internet.
networking.get_external_ip = lambda: "127.0.0.1"


class Echo(bittensor.Synapse):
    """A request and its answer."""

    payload: str = ""


def forward(synapse: Echo) -> Echo:
    """Answer with what came."""
    return synapse


def keypair(seed: bytes) -> Keypair:
    """Make a hotkey."""
    return Keypair.create_from_seed("0x" + seed.hex())


class Bittensor(OnLoop):
    """A dendrite and an axon."""

    def serve(self, port: int) -> None:
        """Start the axon; return when it listens."""
        wallet = types.SimpleNamespace(hotkey=keypair(MINER_SEED))
        self._axon = bittensor.Axon(wallet=wallet, port=port, external_ip="127.0.0.1")
        self._axon.attach(forward_fn=forward)
        self._axon.start()
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("the axon does not listen")

    def know(self, port: int) -> None:
        """Remember where the axon is."""
        self._target = bittensor.AxonInfo(
            version=1,
            ip="127.0.0.1",
            port=port,
            ip_type=4,
            hotkey=MINER,
            coldkey=MINER,
        )

    async def dial(self) -> bittensor.Dendrite:
        """Make a dendrite; it connects when it is asked to send."""
        return bittensor.Dendrite(keypair(VALIDATOR_SEED))

    def prepare(self, size: int) -> bytes:
        """Make a payload."""
        return payload(size)

    async def ask(self, client: bittensor.Dendrite, asked: bytes) -> None:
        """Make one request, bytes to bytes."""
        message = None
        for _ in range(TRIES):
            answer: Any = await client.forward(
                self._target,
                Echo(payload=base64.b64encode(asked).decode()),
                timeout=TIMEOUT,
                deserialize=False,
            )
            if answer.is_success:
                if len(base64.b64decode(answer.payload)) != len(asked):
                    raise RuntimeError("not what was asked")
                return
            message = answer.dendrite.status_message
        raise RuntimeError(message)

    async def close(self, client: bittensor.Dendrite) -> None:
        """Close its connections."""
        await client.aclose_session()
