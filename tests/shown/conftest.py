"""The peer's wheel, for what it takes part in."""

from tests.interop.conftest import peer, peer_client, peer_server

__all__ = ["peer", "peer_client", "peer_server"]
