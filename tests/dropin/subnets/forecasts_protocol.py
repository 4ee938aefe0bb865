"""The synapses of a subnet that forecasts, in a module whose annotations are texts."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pydantic

from lightning import Synapse

if TYPE_CHECKING:
    from collections.abc import Iterator


class Request(pydantic.BaseModel):
    """What is to be forecast."""

    start_time: str
    asset: str = "BTC"
    horizon: int = pydantic.Field(default=60, ge=1)

    @pydantic.field_validator("start_time")
    @classmethod
    def is_a_time(cls, value: str) -> str:
        datetime.fromisoformat(value)
        return value


class Forecast(Synapse):
    """A request, and the paths that a miner sees."""

    request: Request | None = None
    paths: list[list[dict[str, float | str]]] | None = None
    note: str | None = pydantic.Field(None, max_length=100)

    def deserialize(self) -> list[Any] | None:
        return self.paths

    def steps(self) -> Iterator[float]:
        """Give all prices."""
        for path in self.paths or []:
            for step in path:
                yield step["price"]
