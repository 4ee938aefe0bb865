"""Which tests need bittensor, and what they share."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning.dropin.anywhere import Anywhere
from lightning.dropin.dendrite import _own_loop, _stay

REQUIRED = os.environ.get("LIGHTNING_REQUIRE_BITTENSOR") == "1"
# Those that run the same through bittensor.
_BOTH = ("test_contract.py", "test_surface.py", "test_subnets_theirs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path == here / "test_bittensor11.py":
            item.add_marker(pytest.mark.bittensor11)
        if here in item.path.parents and item.path.name in _BOTH:
            item.add_marker(pytest.mark.bittensor)


@pytest.fixture(scope="session")
def bittensor_is_there() -> None:
    """Skip where it is missing; fail where it must be there."""
    if importlib.util.find_spec("bittensor") is None:
        if REQUIRED:
            pytest.fail("bittensor is not installed")
        pytest.skip("bittensor is not installed")


@pytest.fixture(scope="session", autouse=True)
def the_dendrites_loop() -> None:
    """Start the loop that all calls that block share: it lives as long as the process."""
    _own_loop().call(_stay)


@pytest.fixture(autouse=True)
def none_lingers(nothing_left_behind) -> Iterator[None]:
    """End what waits for the next dendrite of a hotkey."""
    yield
    Anywhere.close_idle()
