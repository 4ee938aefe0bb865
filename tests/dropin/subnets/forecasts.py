"""A subnet that forecasts: validators in models, own dendrite, verify functions."""

import asyncio
import typing
from typing import Any

from lightning import Axon, Dendrite

from .forecasts_protocol import Forecast, Request


class OwnDendrite(Dendrite):
    """Counts what it could not get, and says nothing of it."""

    def __init__(self, wallet: Any = None):
        super().__init__(wallet=wallet)
        self.failures: typing.List[str] = []  # noqa: UP006 - as subnets write it

    def log_exception(self, exception: Exception) -> None:
        self.failures.append(type(exception).__name__)

    async def forward(
        self, axons: Any, synapse: Any, timeout: float = 12, **other: Any
    ) -> Any:
        asked = [
            self.call(axon, synapse.model_copy(), timeout=timeout, deserialize=False)
            for axon in axons
        ]
        return await asyncio.gather(*asked)


class Miner:
    """Serves forecasts; its verify function is set after it has attached."""

    def __init__(self, wallet: Any, port: int):
        self.axon = Axon(wallet=wallet, port=port, external_ip="127.0.0.1")

        async def forward(synapse: Forecast) -> Forecast:
            start = synapse.request.start_time
            synapse.paths = [
                [
                    {"time": start, "price": 100.0 + path + step}
                    for step in range(synapse.request.horizon)
                ]
                for path in range(2)
            ]
            synapse.note = synapse.request.asset
            return synapse

        def blacklist(synapse: Forecast) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
            return False, "ok"

        async def verify(synapse: Forecast) -> None:
            if not synapse.dendrite.hotkey:
                raise ValueError("no hotkey")

        self.axon.attach(forward_fn=forward, blacklist_fn=blacklist)
        self.axon.verify_fns[Forecast.__name__] = verify


async def validate(keypair: Any, axons: typing.List[Any]) -> typing.Dict[str, Any]:  # noqa: UP006 - as subnets write it
    """Ask all, one of which is not there."""
    dendrite = OwnDendrite(keypair)
    request = Request(start_time="2026-01-02T03:04:05+00:00", horizon=3)
    synapse = Forecast(request=request)
    gone = axons[0].__class__(
        **{
            name: getattr(axons[0], name)
            for name in ("version", "ip", "ip_type", "hotkey", "coldkey")
        },
        port=1,
    )
    answers = await dendrite(axons=[*axons, gone], synapse=synapse, timeout=5)
    await dendrite.aclose_session()
    return {
        "prices": [list(each.steps()) for each in answers],
        "notes": [each.note for each in answers],
        "request": [each.request.model_dump() for each in answers],
        "codes": [int(each.dendrite.status_code) for each in answers],
        "times": [each.dendrite.process_time is None for each in answers],
        "failures": len(dendrite.failures),
        "mine": synapse.paths,
    }
