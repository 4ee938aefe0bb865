"""What the simulation does not need of the checks around every test."""

import pytest


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Skip the search for threads left over.

    Nothing here starts one, and the garbage collection that the search begins with
    would take longer than most runs.
    """
