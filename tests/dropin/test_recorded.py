"""Our dendrite and our axon show what bittensor's show, over HTTP and over QUIC.

What these show was recorded from bittensor 10.5.0, which need not be installed here.
"""

import json
from collections.abc import Iterator

import pytest

from tests.dropin import faces
from tests.dropin.cases import MAKERS
from tests.dropin.differences import DIFFERENCES, unexplained
from tests.dropin.observing import compared
from tests.dropin.running import RECORDED, Miner, Pairing, mining, result

# The old form of required_hash_fields warns, as bittensor's does.
pytestmark = [
    pytest.mark.filterwarnings('ignore:Field name "required_hash_fields"'),
    pytest.mark.filterwarnings("ignore:.*required_hash_fields:DeprecationWarning"),
]

# What was different, by case and transport.
FOUND: dict[tuple[str, str], dict] = {}


@pytest.fixture(scope="module")
def ours() -> faces.Face:
    return faces.ours()


@pytest.fixture(scope="module")
def miner(ours) -> Iterator[Miner]:
    with mining(ours) as miner:
        yield miner


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(RECORDED.read_text())


@pytest.mark.parametrize("transport", ["http", "quic"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_call_shows_what_bittensor_shows(name, transport, ours, miner, recorded):
    """A caller sees no difference but those that docs/migrate.md has."""
    if transport not in MAKERS[name](ours).only:
        pytest.skip("only HTTP has it")
    pairing = Pairing(ours, ours, transport)
    seen = json.loads(json.dumps(result(name, pairing, miner)))
    FOUND[name, transport] = found = compared(recorded[name], seen)
    assert not unexplained(name, pairing, found)


def test_every_difference_is_seen(ours):
    """No row of docs/migrate.md says more than what is so."""
    wanted = {
        (name, transport) for name in MAKERS for transport in MAKERS[name](ours).only
    }
    if set(FOUND) != wanted:
        pytest.skip("not all calls were made")
    unseen = [
        each
        for each in DIFFERENCES
        if each.is_certain
        and not any(
            each.explains(name, Pairing(ours, ours, transport), path)
            for (name, transport), found in FOUND.items()
            for path in found
        )
    ]
    assert not unseen


def test_every_case_was_recorded(recorded):
    assert sorted(recorded) == sorted(MAKERS)
