"""Calls to a chain: each in a thread of its own, with an end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from lightning.errors import ChainError, LightningError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ask", "ask_async"]

T = TypeVar("T")


def ask(function: Callable[[], T], timeout: float, cut: Callable[[], object]) -> T:
    """Call a function that may block, and wait for it.

    Args:
        function: What to call.
        timeout: Seconds.
        cut: Called if it takes longer, to make it end.

    Raises:
        ChainError: It took longer.
        LightningError: What the function raised; a `ChainError` if it was another one.
    """
    future = _start(function)
    try:
        return future.result(timeout)
    except TimeoutError:
        if not future.done():
            cut()
            raise _late(timeout) from None
        raise
    except BaseException:
        if not future.done():
            # Ctrl-C.
            cut()
        raise


async def ask_async(
    function: Callable[[], T], timeout: float, cut: Callable[[], object]
) -> T:
    """Do as `ask`, on an event loop; cancelling it cuts the call, too."""
    future = _start(function)
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await asyncio.wrap_future(future)
    except TimeoutError:
        if not limit.expired():
            raise
        raise _late(timeout) from None
    finally:
        if not future.done() or future.cancelled():
            cut()


def _late(timeout: float) -> ChainError:
    return ChainError(f"the chain did not answer in {timeout:g} s")


def _start(function: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    thread = threading.Thread(
        target=_run, args=(function, future), name="lightning-chain", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:
        raise ChainError(f"no thread is left to ask the chain in: {error}") from error
    return future


def _run(function: Callable[[], T], future: Future[T]) -> None:
    try:
        result = function()
    except LightningError as error:
        _end(future, error)
    except BaseException as error:
        ours = ChainError(f"the source failed: {error!r}")
        ours.__cause__ = error
        _end(future, ours)
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(result)


def _end(future: Future[T], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
