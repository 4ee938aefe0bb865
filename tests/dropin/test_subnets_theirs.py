"""Subnets' code does the same with either library at either end."""

import json
import os
import warnings
from collections.abc import Iterator

import pytest

from tests.dropin import faces
from tests.dropin.porting import RECORDED, SUBNETS, lived, ported


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Let bittensor keep its threads; it warns too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def theirs(bittensor_is_there) -> faces.Face:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return faces.theirs()


@pytest.mark.parametrize("name", SUBNETS)
def test_bittensor_is_as_recorded(name, theirs):
    """What the ordinary suite compares with is what bittensor 10.5.0 does."""
    with ported(name, "bittensor") as subnet:
        seen = json.loads(json.dumps(lived(subnet, subnet, theirs)))
    recorded = json.loads(RECORDED.read_text())
    if os.environ.get("LIGHTNING_RECORD") == "1":
        recorded[name] = seen
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert seen == recorded[name]


@pytest.mark.parametrize("ends", ["their validator", "their miner"])
@pytest.mark.parametrize("name", SUBNETS)
def test_half_of_a_subnet_may_have_moved(name, ends, theirs):
    """A validator of one library and a miner of the other get on as two of one."""
    ours = faces.ours()
    with ported(name, "bittensor") as old, ported(name, "lightning") as new:
        if ends == "their validator":
            seen = lived(old, new, theirs)
        else:
            seen = lived(new, old, ours)
    assert json.loads(json.dumps(seen)) == json.loads(RECORDED.read_text())[name]
