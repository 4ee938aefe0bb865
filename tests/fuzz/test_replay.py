"""What the fuzzer found worth keeping is run again, with the ordinary build."""

import importlib

import pytest

from tests.fuzz.corpus import TARGETS, inputs


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target):
    """Each input, where a fuzzer calls it; what must hold is said by the target."""
    check = importlib.import_module(f"tests.fuzz.{target}").check
    kept = inputs(target)
    assert len(kept) > 20
    for number, data in enumerate(kept):
        try:
            check(data)
        except BaseException as error:
            error.add_note(f"input {number} of {target}: {data.hex()}")
            raise
