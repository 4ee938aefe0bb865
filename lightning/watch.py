"""How long a query has taken, and how long it may take as a whole."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from lightning.errors import RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from lightning._core.io.links import Call

T = TypeVar("T")


class Watch:
    """Bounds the parts of one query by what is left of the time for all of it.

    Args:
        timeout: Seconds for all of it, from now; None for no limit.
    """

    __slots__ = ("begun", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self.begun

    @property
    def left(self) -> float | None:
        """Seconds that are left, not below 0; None for no limit."""
        return None if self.timeout is None else max(0.0, self.timeout - self.elapsed)

    def expired(self, phase: str) -> RequestTimeout:
        """Make the error of a query that took too long, while doing this."""
        return RequestTimeout(f"query timed out {phase}", timeout=self.timeout or 0)

    def waited(self, *, is_sending: bool) -> RequestTimeout:
        """Make the error of a query whose answer did not come in time."""
        return self.expired(
            "while sending" if is_sending else "while waiting for the answer"
        )

    async def reached(self, connection: Awaitable[T]) -> T:
        """Wait for a connection.

        Raises:
            RequestTimeout: Not in time.
        """
        limit = asyncio.timeout(self.left)
        try:
            async with limit:
                return await connection
        except TimeoutError:
            # Some errors of what was waited for are timeouts, too.
            if not limit.expired():
                raise
            raise self.expired("while connecting") from None

    async def answered(self, answer: asyncio.Future[Call], call: Call) -> None:
        """Wait for the end of a call.

        Raises:
            RequestTimeout: Not in time.
        """
        try:
            async with asyncio.timeout(self.left):
                await answer
        except TimeoutError:
            raise self.waited(is_sending=call.is_sending) from None
