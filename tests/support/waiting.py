"""Waiting for a condition, bounded: there is no other way across processes."""

import asyncio
import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Return as soon as the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        pause.wait(0.005)


async def until_async(condition: Callable[[], object], timeout: float = 10) -> None:
    """Do as `until`, on an event loop, and at first in every turn of it."""
    deadline = time.monotonic() + timeout
    turns = 0
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0 if turns < 100 else 0.005)
        turns += 1
