"""Subnets' code does here what it does with bittensor; only its import is another."""

import json

import pytest

from tests.dropin import faces
from tests.dropin.porting import RECORDED, SUBNETS, lived, ported

# The old form of required_hash_fields warns, as bittensor's does.
pytestmark = [
    pytest.mark.filterwarnings('ignore:Field name "required_hash_fields"'),
    pytest.mark.filterwarnings("ignore:.*required_hash_fields:DeprecationWarning"),
]


@pytest.mark.parametrize("name", SUBNETS)
def test_a_subnet_has_moved(name):
    """Validator and miner of a subnet see what was recorded from bittensor 10.5.0."""
    with ported(name, "lightning") as subnet:
        seen = json.loads(json.dumps(lived(subnet, subnet, faces.ours())))
    assert seen == json.loads(RECORDED.read_text())[name]
