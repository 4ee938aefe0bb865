"""Whatever bytes the chain sends: neurons, or the named error, in bounded memory."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning import NeuronInfo, decode_neurons_lite
from lightning.errors import DecodeError
from tests.unit.test_neurons_lite import compact, neuron

WHOLE = compact(3) + b"".join(neuron(uid=compact(uid)) for uid in range(3))
WRAPPED = compact(len(WHOLE)) + WHOLE


def tried(data: bytes) -> None:
    found, offset = [], 0
    try:
        found = decode_neurons_lite(data)
    except DecodeError as error:
        offset = error.offset
    assert 0 <= offset <= len(data)
    assert all(type(each) is NeuronInfo for each in found)
    assert len(found) <= len(data) // 143


@given(st.binary(max_size=2000))
def test_arbitrary_bytes(data):
    tried(data)


@settings(max_examples=400)
@given(
    st.sampled_from([WHOLE, WRAPPED]),
    st.lists(st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=5)), max_size=8),
    st.integers(0, len(WRAPPED)),
)
def test_mutated_answers(data, changes, cut):
    for place, change in changes:
        data = data[:place] + change + data[place + len(change) :]
    tried(data)
    tried(data[:cut])


@given(st.integers(0, 2**536 - 1), st.binary(max_size=300))
def test_a_count_allocates_nothing(count, rest):
    data = compact(count) + rest
    tracemalloc.start()
    try:
        tried(data)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
