"""Asking resolvers now and then: who may come in, from where."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from lightning.pool import HandlerPool

# Seconds between two looks whether a resolver has been set.
POLL_INTERVAL = 1.0
# Seconds at most until a resolver that failed is asked again.
RETRY_INTERVAL = 60.0
# Seconds between two complaints of a resolver that has not answered.
COMPLAINT_INTERVAL = 60.0

log = logging.getLogger("lightning.server")


async def refresh(
    what: str,
    resolver: Callable[[], Any],
    interval: float,
    take: Callable[[Any], None],
    pool: HandlerPool,
    asked: asyncio.Event,
) -> None:
    """Ask a resolver for ever; where it fails, what it said last holds.

    Args:
        what: Name of what it knows, for the log.
        resolver: Returns the callable to ask, None while there is none.
        interval: Seconds between an answer and the next question; a minute at most
            after a failure.
        take: Called with each answer; an exception that it raises is a failure.
        pool: Its threads run resolvers that are not coroutine functions.
        asked: Set after the first answer, a failure too.
    """
    while True:
        resolve = resolver()
        if resolve is None:
            await asyncio.sleep(POLL_INTERVAL)
            continue
        pause = interval
        try:
            take(await _answer(what, resolve, pool))
        except Exception:
            log.exception("%s not refreshed, the old ones stay", what)
            pause = min(interval, RETRY_INTERVAL)
        asked.set()
        await asyncio.sleep(pause)


async def _answer(what: str, resolve: Callable[[], Any], pool: HandlerPool) -> Any:
    """Wait for one answer, however long: nobody is asked twice at a time."""
    answer = asyncio.ensure_future(_ask(resolve, pool))
    try:
        while not answer.done():
            await asyncio.wait([answer], timeout=COMPLAINT_INTERVAL)
            if not answer.done():
                log.warning("the resolver of %s has not answered yet", what)
    finally:
        answer.cancel()
    return answer.result()


async def _ask(resolve: Callable[[], Any], pool: HandlerPool) -> Any:
    try:
        if inspect.iscoroutinefunction(resolve):
            return await resolve()
        asked = pool.submit(_outcome, resolve)
        try:
            result, error = await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(_close)
            raise
        if error is not None:
            raise error
        return await result if inspect.isawaitable(result) else result
    except SystemExit as error:
        # Raised in a task, it would end the event loop.
        raise RuntimeError(f"the resolver raised {error!r}") from error


def _close(asked: Future[tuple[Any, Exception | None]]) -> None:
    """Close a coroutine that nobody will await."""
    if not asked.cancelled() and inspect.iscoroutine(result := asked.result()[0]):
        result.close()


def _outcome(resolve: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Call a resolver; asyncio cannot hand over every exception from a thread."""
    try:
        return resolve(), None
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            return None, error
        return None, RuntimeError(f"the resolver raised {error!r}")
