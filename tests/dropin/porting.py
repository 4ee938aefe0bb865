"""Subnets' modules under either library: only the line that imports is another."""

import asyncio
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.dropin.faces import Face, free_port, info, keypair, start, wallet
from tests.support.identities import MINER_SEED, VALIDATOR_SEED

HERE = Path(__file__).with_name("subnets")
RECORDED = Path(__file__).with_name("recorded_subnets.json")
SUBNETS = {
    "proofs": ("proofs",),
    "forecasts": ("forecasts_protocol", "forecasts"),
    "chat": ("chat",),
}


@contextmanager
def ported(name: str, library: str) -> Iterator[types.ModuleType]:
    """Load a subnet's modules with "lightning" or "bittensor" as what they import."""
    package = types.ModuleType(f"subnet_{library}")
    package.__path__ = []
    loaded = {package.__name__: package}
    sys.modules[package.__name__] = package
    try:
        for part in SUBNETS[name]:
            path = HERE / f"{part}.py"
            source = path.read_text()
            assert source.count("from lightning import") == 1
            source = source.replace("from lightning import", f"from {library} import")
            module = types.ModuleType(f"{package.__name__}.{part}")
            module.__package__ = package.__name__
            loaded[module.__name__] = sys.modules[module.__name__] = module
            exec(compile(source, path, "exec"), module.__dict__)
        yield module
    finally:
        for each in loaded:
            del sys.modules[each]


def lived(validating: types.ModuleType, mining: types.ModuleType, face: Face) -> Any:
    """Start a subnet's miner and let its validator ask it; return what this says."""
    if hasattr(validating, "PERMITTED"):
        # Whom the chain permits is the same for both.
        mining.PERMITTED = validating.PERMITTED
    miner = mining.Miner(wallet(MINER_SEED), free_port())
    start(miner.axon)
    try:
        told = info(face, miner.axon.external_port)
        return asyncio.run(validating.validate(keypair(VALIDATOR_SEED), [told, told]))
    finally:
        miner.axon.stop()
