"""The same calls through bittensor's dendrite and axon and through ours, in any pairing."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.dropin import faces
from tests.dropin.cases import MAKERS
from tests.dropin.differences import unexplained
from tests.dropin.faces import Face
from tests.dropin.observing import compared
from tests.dropin.running import RECORDED, Miner, Pairing, mining, result

# Whose dendrite with whose synapses, whose axon with whose, over what.
PAIRINGS = {
    "their dendrite, our axon": ("theirs", "ours", "http"),
    "our dendrite, their axon": ("ours", "theirs", "http"),
    "their synapses in our dendrite, their axon": ("ours/theirs", "theirs", "http"),
    "their synapses in our ends, HTTP": ("ours/theirs", "ours/theirs", "http"),
    "their synapses in our ends, QUIC": ("ours/theirs", "ours/theirs", "quic"),
    "their synapses in our dendrite, our axon": ("ours/theirs", "ours", "quic"),
    "our dendrite, their synapses in our axon": ("ours", "ours/theirs", "quic"),
}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Let bittensor keep its threads; it warns too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def both(bittensor_is_there) -> dict[str, Face]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = faces.theirs()
    if os.environ.get("LIGHTNING_RECORD") == "1":
        return {"theirs": theirs}
    ours = faces.ours()
    return {
        "theirs": theirs,
        "ours": ours,
        "ours/theirs": ours.with_synapses_of(theirs),
    }


@pytest.fixture(scope="module")
def miner_of(both) -> Iterator[Callable[[str], Miner]]:
    """Give the running axon of a library."""
    miners: dict[str, Miner] = {}
    with ExitStack() as stack:

        def give(name: str) -> Miner:
            if name not in miners:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    miners[name] = stack.enter_context(mining(both[name]))
            return miners[name]

        yield give


@pytest.fixture(scope="module")
def recorded() -> Iterator[dict[str, Any]]:
    """Give what bittensor showed when it was last recorded."""
    if os.environ.get("LIGHTNING_RECORD") != "1":
        yield json.loads(RECORDED.read_text())
        return
    new: dict[str, Any] = {}
    yield new
    RECORDED.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("name", MAKERS)
def test_bittensor_is_as_recorded(name, both, miner_of, recorded):
    """What the ordinary suite compares with is what bittensor 10.5.0 does."""
    pairing = Pairing(both["theirs"], both["theirs"], "http")
    seen = result(name, pairing, miner_of("theirs"))
    if os.environ.get("LIGHTNING_RECORD") == "1":
        recorded[name] = seen
    assert not compared(recorded[name], json.loads(json.dumps(seen)))


@pytest.mark.parametrize("pair", PAIRINGS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_call_shows_what_bittensor_shows(name, pair, both, miner_of, recorded):
    """A caller sees no difference but those that docs/migrate.md has."""
    dendrite, axon, transport = PAIRINGS[pair]
    pairing = Pairing(both[dendrite], both[axon], transport)
    if transport not in MAKERS[name](both[dendrite]).only:
        pytest.skip("only HTTP has it")
    seen = json.loads(json.dumps(result(name, pairing, miner_of(axon))))
    assert not unexplained(name, pairing, compared(recorded[name], seen))
