"""A subnet that has work proved: required fields with constraints, old hash fields."""

import time
from typing import Any, Dict, List, Literal, Tuple  # noqa: UP035 - as subnets write it

import pydantic

from lightning import Axon, Dendrite, Synapse

PERMITTED: Dict[str, float] = {}  # noqa: UP006 - as subnets write it


class Input(pydantic.BaseModel):
    values: List[float] = []  # noqa: UP006 - as subnets write it
    scale: float = 1.0


class ProveRequest(Synapse):
    """A piece of work, and its proof."""

    model_id: str = pydantic.Field(..., title="Model", max_length=64)
    sequence: int = pydantic.Field(..., ge=0)
    inputs: Dict[str, Any] = pydantic.Field(..., description="What to prove.")  # noqa: UP006 - as subnets write it
    weights: Input | None = None
    mode: Literal["fast", "full"] = "fast"
    proof: str | None = None
    required_hash_fields: List[str] = pydantic.Field(  # noqa: UP006 - as subnets write it
        ["model_id", "inputs"], frozen=True
    )

    def deserialize(self) -> str | None:
        return self.proof


class Refresh(Synapse):
    """A question without an answer of its own."""

    known: List[int] = pydantic.Field(default_factory=list)  # noqa: UP006 - as subnets write it
    version: str = ""


class Miner:
    """Methods are attached, as classes of neurons have them."""

    def __init__(self, wallet: Any, port: int):
        self.counts: Dict[str, int] = {}  # noqa: UP006 - as subnets write it
        self.axon = Axon(wallet=wallet, port=port, external_ip="127.0.0.1")
        self.axon.attach(
            forward_fn=self.prove,
            blacklist_fn=self.blacklist,
            priority_fn=self.priority,
        ).attach(forward_fn=self.refresh)

    def prove(self, synapse: ProveRequest) -> ProveRequest:
        total = sum(synapse.inputs["values"]) * (
            synapse.weights.scale if synapse.weights else 1
        )
        synapse.proof = f"{synapse.model_id}/{synapse.sequence}/{synapse.mode}: {total}"
        return synapse

    async def refresh(self, synapse: Refresh) -> Refresh:
        synapse.version = f"{len(synapse.known)} known"
        return synapse

    async def blacklist(self, synapse: ProveRequest) -> Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        hotkey = synapse.dendrite.hotkey
        if hotkey not in PERMITTED:
            return True, "Unrecognized hotkey"
        self.counts[hotkey] = self.counts.get(hotkey, 0) + 1
        return False, "Hotkey recognized!"

    def priority(self, synapse: ProveRequest) -> float:
        return PERMITTED.get(synapse.dendrite.hotkey, 0.0)


async def validate(keypair: Any, axons: List[Any]) -> Dict[str, Any]:  # noqa: UP006 - as subnets write it
    """Ask all, and score what they say."""
    async with Dendrite(keypair) as dendrite:
        begun = time.time()
        work = ProveRequest(
            model_id="m",
            sequence=3,
            inputs={"values": [1.5, 2.5], "name": "работа"},
            weights=Input(values=[1.0], scale=2),
            mode="full",
        )
        refused = await dendrite(axons[0], work, timeout=5, deserialize=False)
        PERMITTED[keypair.ss58_address] = 1000.0
        answers = await dendrite.forward(axons, work, timeout=5, deserialize=False)
        proofs = await dendrite(axons=axons, synapse=work, timeout=5)
        versions = [
            (await dendrite.call(axon, Refresh(known=[1, 2]), timeout=5)).version
            for axon in axons
        ]
        PERMITTED.clear()
    return {
        "refused": (refused.is_blacklist, refused.dendrite.status_message),
        "scores": [
            (each.proof, each.is_success, 0 < each.dendrite.process_time < 5)
            for each in answers
        ],
        "hash": answers[0].body_hash,
        "proofs": proofs,
        "versions": versions,
        "quick": time.time() - begun < 30,
    }
