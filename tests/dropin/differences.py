"""What is meant to differ from bittensor: each line is a row of docs/migrate.md."""

from typing import Any

from tests.dropin.running import Pairing


def unexplained(
    name: str, pairing: Pairing, found: dict[str, tuple[Any, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Return what differs though no row says so."""
    return found
