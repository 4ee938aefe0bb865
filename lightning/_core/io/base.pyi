from typing_extensions import disjoint_base

from lightning._core.quic.engine import Endpoint

__all__ = ["FORKED", "DriverBase"]

FORKED: str

@disjoint_base
class DriverBase:
    @property
    def endpoint(self) -> Endpoint: ...
