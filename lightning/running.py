"""Running a handler for one answer, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Mapping
from types import CoroutineType
from typing import Any, NoReturn

from lightning.binding import Handler, HandlerContext, name_of
from lightning.errors import HandlerError, SerializationError
from lightning.typed import to_data

__all__ = ["call", "run_async"]


def call(
    handler: Handler, data: dict[str, Any], context: HandlerContext | None
) -> dict[str, Any]:
    """Run an INLINE or THREAD handler here and now.

    Raises:
        HandlerError: It raised, or returned what is not a map with ``str`` keys.
    """
    try:
        return _answer(handler.invoke(data, context, None))
    except BaseException as error:
        if is_interrupt(error):
            raise
        _fail(error)


async def run_async(
    handler: Handler, data: dict[str, Any], context: HandlerContext | None
) -> dict[str, Any]:
    """Run an ASYNC handler for one answer; cancelling this cancels it.

    Raises:
        HandlerError: It raised, or returned what is not a map with ``str`` keys.
    """
    watch = Cancellation()
    try:
        result = handler.invoke(data, context, None)
        if type(result) is not CoroutineType:
            _require_awaitable(result)
        return _answer(await result)
    except BaseException as error:
        watch.raise_(error)


class Cancellation:
    """Tells a cancellation of the running task from one that a handler raises."""

    __slots__ = ("_before", "_task")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task else 0

    def passes(self, error: BaseException) -> bool:
        """Say whether an exception is meant for the caller and not the handler's."""
        if isinstance(error, asyncio.CancelledError):
            return self._task is None or self._task.cancelling() > self._before
        # GeneratorExit closes the coroutine that runs the handler.
        return isinstance(error, GeneratorExit) or is_interrupt(error)

    def raise_(self, error: BaseException) -> NoReturn:
        """Raise an exception again, as a failure of the handler if it is one."""
        if self.passes(error):
            raise error
        _fail(error)


def _answer(result: Any) -> dict[str, Any]:
    """Check and convert what a handler returned."""
    # A dict is asked for first: the abstract class answers slowly.
    if isinstance(result, dict) or isinstance(result, Mapping):  # noqa: SIM101
        for key in result:
            if not isinstance(key, str):
                raise HandlerError(
                    f"handler returned a map with a key of type {name_of(type(key))}"
                )
        return result if isinstance(result, dict) else dict(result)
    refuse_coroutine(result)
    try:
        return to_data(result)
    except SerializationError as error:
        raise HandlerError(
            f"handler returned {name_of(type(result))}, which is no map: {error.detail}"
        ) from error


def _require_awaitable(result: Any) -> None:
    if not inspect.isawaitable(result):
        raise HandlerError(
            f"async handler returned {name_of(type(result))}, not an awaitable"
        )


def refuse_coroutine(result: Any) -> None:
    if inspect.iscoroutine(result):
        # Never awaited, it would warn.
        result.close()
        raise HandlerError("handler returned a coroutine; register it as async")


def failure(error: BaseException) -> HandlerError:
    """Make a failure of what a handler raised."""
    if isinstance(error, HandlerError):
        return error
    try:
        text = str(error)
    except Exception:
        text = ""
    kind = name_of(type(error))
    failure = HandlerError(f"{kind}: {text}" if text else kind)
    failure.__cause__ = error
    return failure


def _fail(error: BaseException) -> NoReturn:
    raise failure(error)


def is_interrupt(error: BaseException) -> bool:
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )
