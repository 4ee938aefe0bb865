"""Our decoding of the recorded subnets is scalecodec's, and so is what is committed."""

import dataclasses
import json

import pytest

from lightning import decode_neurons_lite
from tests.chain.independent import decode
from tests.support.chain_node import neurons_answer
from tests.unit.test_neurons_lite import DIGESTS, digests

pytestmark = pytest.mark.chain


@pytest.mark.parametrize(
    ("scenario", "wrapped"), [("metagraph", False), ("neurons_lite", True)]
)
def test_every_field_is_as_scalecodec_decodes_it(scenario, wrapped):
    data = neurons_answer(scenario)
    ours = [dataclasses.asdict(neuron) for neuron in decode_neurons_lite(data)]
    theirs = decode(data, wrapped=wrapped)
    assert len(ours) == len(theirs) == {"metagraph": 1024, "neurons_lite": 19}[scenario]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other
    assert json.loads(DIGESTS.read_text())[scenario] == digests(theirs)
