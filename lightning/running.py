"""Running a handler for one answer, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn

from lightning.binding import Handler, HandlerContext, HandlerKind, name_of
from lightning.errors import HandlerError, SerializationError
from lightning.typed import to_data

if TYPE_CHECKING:
    from lightning.pool import HandlerPool, Mailbox

__all__ = ["call", "run", "run_async"]


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


async def run(
    handler: Handler,
    data: dict[str, Any],
    context: HandlerContext | None,
    pool: HandlerPool,
) -> dict[str, Any]:
    """Run a handler for one answer, where its kind says.

    The caller sets the time limit. When it cancels this, an ASYNC handler is cancelled;
    a THREAD handler runs on unheard, or never starts if it had to wait for a thread.

    Raises:
        HandlerError: It raised, returned what is not a map with ``str`` keys, or found
            no thread.
    """
    if handler.kind is HandlerKind.THREAD:
        job = _Job(handler, data, context, pool.mailbox())
        pool.post(job)
        return await job.result()
    if handler.kind is HandlerKind.ASYNC:
        return await run_async(handler, data, context)
    if handler.kind is HandlerKind.INLINE:
        return call(handler, data, context)
    raise HandlerError(f"handler {handler.name!r} streams")


class _Job:
    """One THREAD handler's run, and its way back to the event loop."""

    __slots__ = ("_future", "_mailbox", "_work")

    def __init__(
        self,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
        mailbox: Mailbox,
    ) -> None:
        self._mailbox = mailbox
        self._future: asyncio.Future[dict[str, Any]] = mailbox.loop.create_future()
        # One attribute, so that the thread sees all of it or None.
        self._work: tuple[Any, ...] | None = (
            contextvars.copy_context(),
            handler,
            data,
            context,
        )

    async def result(self) -> dict[str, Any]:
        try:
            return await self._future
        finally:
            # What still waits for a thread is not worth starting, or keeping in memory.
            self._work = None

    def execute(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        variables, handler, data, context = work
        try:
            outcome = variables.run(call, handler, data, context)
        except BaseException as error:
            outcome = failure(error)
        self._mailbox.post(self._finish, outcome)

    def abandon(self) -> None:
        error = HandlerError("the handler pool is shut down")
        self._mailbox.post(self._finish, error)

    def _finish(self, outcome: dict[str, Any] | HandlerError) -> None:
        if self._future.done():
            return
        if isinstance(outcome, HandlerError):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


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
