"""Which tests need bittensor, and what they share."""

import importlib.util
import os
from pathlib import Path

import pytest

REQUIRED = os.environ.get("LIGHTNING_REQUIRE_BITTENSOR") == "1"
# Those that run the same through bittensor.
_BOTH = ("test_contract.py", "test_surface.py", "test_subnets_theirs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.name in _BOTH:
            item.add_marker(pytest.mark.bittensor)


@pytest.fixture(scope="session")
def bittensor_is_there() -> None:
    """Skip where it is missing; fail where it must be there."""
    if importlib.util.find_spec("bittensor") is None:
        if REQUIRED:
            pytest.fail("bittensor is not installed")
        pytest.skip("bittensor is not installed")
