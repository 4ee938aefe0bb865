"""Running a handler for a request, and sending what becomes of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, cast

from lightning._core.wire.messages import (
    encode_stream_chunk,
    encode_stream_end,
    encode_synapse_response,
)
from lightning.errors import (
    EncodeError,
    FrameTooLarge,
    HandlerError,
    LightningError,
    SerializationError,
    ServerBusy,
    StreamError,
)
from lightning.handlers import (
    ERROR_BUSY,
    ERROR_PROCESSING,
    ERROR_SERIALIZATION,
    ERROR_STREAM,
    ERROR_TIMEOUT,
    Handler,
    HandlerContext,
    call,
    run_async,
    stream,
)
from lightning.logs import Throttled
from lightning.pool import HandlerPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lightning._core.io.links import ServerExchange
    from lightning.config import LightningServerConfig
    from lightning.serving import ServingThreads

log = logging.getLogger("lightning.server")

# Chunks of one stream that are sent before others have their turn of the event loop.
CHUNKS_A_TURN = 16


# Answers that leave together, while there are more to come.
ANSWERS_A_FLUSH = 8


class Answers:
    """Answers requests by handlers, within the limits of the settings.

    Args:
        config: The server's settings.
        flush: Sends what was answered.

    Attributes:
        log: For what goes wrong with handlers.
        pool: The threads of handlers that are plain functions.
        tasks: Those that run async handlers, each with the one it is at.
        running: What is being answered or waits to be, but for streams that have begun,
            the oldest first: each with its handler and its deadline on
            time.monotonic().
        on_end: Called with each request whose handler has ended or will not begin, in
            any thread; None if nobody cares. Whoever sets it has put requests into
            ``running`` first; those that are not there any more are not begun.
        backlog: What waits for a thread that serves a socket itself.
        mend: Makes of an answer that cannot be encoded one that perhaps can; None if
            nobody can.
    """

    def __init__(
        self, config: LightningServerConfig, flush: Callable[[], object]
    ) -> None:
        self.log = Throttled(log)
        self.pool = HandlerPool(
            config.handler_threads, max_waiting=config.max_queued_requests
        )
        self._timeout = config.handler_timeout_secs
        self._limit = config.max_frame_payload_bytes
        self._buffer = config.streaming_channel_buffer
        self._variables = contextvars.copy_context()
        self._flush = flush
        # Requests for async handlers, the tasks for them, and what idle ones await.
        self._waiting: deque[
            tuple[ServerExchange, Handler, dict[str, Any], HandlerContext | None]
        ] = deque()
        self.tasks: dict[asyncio.Task[None], Handler | None] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._woken = False
        self.running: dict[ServerExchange, tuple[Handler, float]] = {}
        self.on_end: Callable[[ServerExchange], object] | None = None
        self.backlog: deque[_Job] = deque()
        self.mend: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self._most_waiting = config.max_queued_requests

    def inline(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer at once, on the event loop."""
        try:
            self._respond(exchange, handler, call(handler, data, context))
        except Exception as error:
            self._fail(exchange, handler, error)

    def here(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer by a plain function, run in this thread; `expire` may be earlier."""
        began = time.monotonic()
        # One that had to wait for this thread has had its deadline since then.
        self.running.setdefault(exchange, (handler, began + self._timeout))
        try:
            try:
                result = self._variables.copy().run(call, handler, data, context)
            finally:
                handler.note_run(time.monotonic() - began)
            self._respond(exchange, handler, result)
        except Exception as error:
            self._fail(exchange, handler, error)
        finally:
            self.running.pop(exchange, None)
            if self.on_end is not None:
                self.on_end(exchange)

    def in_thread(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer by a plain function, run in a thread of the pool."""
        job = self._wait(exchange, handler, data, context)
        if job is None:
            return
        try:
            self.pool.post(job)
        except HandlerError as error:
            self.drop(exchange)
            if isinstance(error, ServerBusy):
                self._refuse(exchange, handler)
            else:
                self._fail(exchange, handler, error)

    def in_turn(
        self,
        threads: ServingThreads,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer by a plain function, run here or, if too many are, by one of those."""
        if threads.take():
            try:
                self.here(exchange, handler, data, context)
            finally:
                threads.give()
        elif len(self.backlog) >= self._most_waiting:
            self._refuse(exchange, handler)
        elif (job := self._wait(exchange, handler, data, context)) is not None:
            self.backlog.append(job)
        # Whoever has ended meanwhile may have been too early to see it.
        self.work_off(threads)

    def work_off(self, threads: ServingThreads) -> None:
        """Run here what waits for a thread, as long as this one may."""
        while self.backlog and threads.take():
            try:
                while self.backlog:
                    try:
                        job = self.backlog.popleft()
                    except IndexError:
                        break  # Another thread was faster.
                    job.execute()
            finally:
                threads.give()

    def _wait(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> _Job | None:
        """Make what waits for a thread, within the time that the request has."""
        job = _Job(self, exchange, handler, data, context)
        if self.on_end is None:
            self.running[exchange] = handler, time.monotonic() + self._timeout
        elif exchange not in self.running:
            self.on_end(exchange)
            return None
        exchange.on_cancel = job.drop
        if exchange.cancelled:
            job.drop()
        return job

    def drop(self, exchange: ServerExchange) -> None:
        """Take note that a request's handler has ended, or will not begin."""
        self.running.pop(exchange, None)
        if self.on_end is not None:
            self.on_end(exchange)

    def _refuse(self, exchange: ServerExchange, handler: Handler) -> None:
        names = Counter(other.name for other, _ in list(self.running.values()))
        self.log.warning(
            "all handler threads are busy and %d requests wait, most of them for %r: "
            "further ones are refused",
            self._most_waiting,
            names.most_common(1)[0][0] if names else handler.name,
            burst=1,
        )
        handler.tally.busy += fail(exchange, ERROR_BUSY, handler)

    async def expire(self) -> None:
        """Answer, for as long as this runs, where plain functions take too long."""
        pause = min(max(self._timeout / 50, 0.005), 1)
        while True:
            await asyncio.sleep(pause)
            if self._expire(time.monotonic()):
                # Threads that serve a socket send only what they answer themselves.
                self._flush()

    def _expire(self, now: float) -> int:
        """Answer those whose time is over; return how many there were."""
        # A function of its own: the loop above would hold on to the last request.
        # All have the same time limit: the oldest are first.
        answered = 0
        while self.running:
            try:
                exchange, (handler, deadline) = next(iter(self.running.items()))
            except (RuntimeError, StopIteration):
                continue  # A thread has changed it in between.
            if deadline > now:
                break
            self.running.pop(exchange, None)
            if exchange.cancelled:
                continue
            self.log.warning("handler %r timed out", handler.name)
            handler.tally.timed_out += 1
            if (drop := exchange.on_cancel) is not None:
                drop()
            fail(exchange, ERROR_TIMEOUT, handler)
            answered += 1
        return answered

    @property
    def awaited(self) -> int:
        """How many are answered, but for streams, and for whom nobody waits any more."""
        return sum(not exchange.cancelled for exchange in list(self.running))

    def others_run(self) -> bool:
        """Say if anybody awaits an answer, but for that of the task that asks."""
        task = asyncio.current_task()
        own = task is not None and self.tasks.get(task) is not None
        return self.awaited > own

    def in_task(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        """Answer by an async handler, run in a task of the loop."""
        if self.on_end is None:
            if exchange.cancelled:
                return
            self.running[exchange] = handler, time.monotonic() + self._timeout
        elif exchange.cancelled or exchange not in self.running:
            self.drop(exchange)
            return
        self._waiting.append((exchange, handler, data, context))
        if not self._woken:
            self._wake()

    def _wake(self) -> None:
        """Have a task look at what waits."""
        if self._woken:
            return
        self._woken = True
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        task = asyncio.get_running_loop().create_task(
            self._work(),
            name="lightning-server handlers",
            context=self._variables.copy(),
        )
        self.tasks[task] = None
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("%s failed", task.get_name(), exc_info=error)

    async def _work(self) -> None:  # noqa: C901 - every request's: no call too many.
        """Run async handlers, one after the other while none of them has to wait."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        waiting = self._waiting
        began = False
        try:
            while True:
                self._woken = False
                began = True
                answered = 0
                started = time.monotonic()
                while waiting:
                    if answered == ANSWERS_A_FLUSH:
                        # The client works on these while we do on the others.
                        answered = 0
                        self._flush()
                    answered += 1
                    exchange, handler, data, context = waiting.popleft()
                    if waiting and not self._woken:
                        # They are not held up, should this one have to wait.
                        self._wake()
                    if exchange.cancelled:
                        self.drop(exchange)
                        continue
                    exchange.on_cancel = task.cancel
                    self.tasks[task] = handler
                    try:
                        result = await run_async(handler, data, context)
                        self._respond(exchange, handler, result)
                    except BaseException as error:
                        self._fail(exchange, handler, error)
                    finally:
                        self.running.pop(exchange, None)
                        if self.on_end is not None:
                            self.on_end(exchange)
                        self.tasks[task] = None
                        ended = time.monotonic()
                        handler.tally.seconds += ended - started
                        started = ended
                    if task.cancelling():
                        return  # By whoever stopped that request, or the server.
                    if contextvars.copy_context() != self._variables:
                        # What a handler has set there is not for the next one to see.
                        return
                # While this lingers, more may come.
                self._woken = True
                self._flush()
                if waiting:
                    continue
                self._woken = began = False
                # An idle task must not keep the last request alive, nor its body.
                exchange = handler = data = context = result = None  # type: ignore[assignment]  # Set again before they are used.
                idle = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle
        finally:
            if not began:
                self._woken = False
            if waiting and not self._woken:
                self._wake()

    def _fail(
        self, exchange: ServerExchange, handler: Handler, error: BaseException
    ) -> None:
        """Tell the client, in any case, so that it does not wait for ever."""
        if isinstance(error, HandlerError):
            self._log_failure(handler, error)
        elif isinstance(error, Exception):
            # Ours to mend.
            self.log.error(
                "answering by handler %r failed", handler.name, exc_info=error
            )
        handler.tally.failed += fail(exchange, ERROR_PROCESSING)
        if not isinstance(error, Exception):
            raise error

    async def stream(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
        sent: Callable[[int], Awaitable[None] | None],
    ) -> None:
        """Answer chunk by chunk, as fast as the client reads.

        Args:
            exchange: The request.
            handler: A streaming one.
            data: Its argument.
            context: Its context.
            sent: Called with the stream's id after each chunk; what it returns is
                awaited before the next.
        """
        error_text = None
        turn = 0
        began = time.monotonic()
        # What had to wait for its turn has so much less time.
        _, deadline = self.running.pop(exchange, (handler, began + self._timeout))
        chunks = stream(handler, data, context, self.pool, buffer=self._buffer)
        try:
            async with asyncio.timeout(deadline - began):
                async for chunk in chunks:
                    frame = encode_stream_chunk(chunk, self._limit)
                    if not exchange.respond(frame, False):
                        return
                    turn += 1
                    if (waiter := sent(exchange.stream_id)) is not None:
                        await waiter
                    elif turn % CHUNKS_A_TURN == 0:
                        # A generator that never waits must not hold up the others.
                        await asyncio.sleep(0)
        except TimeoutError:
            self.log.warning("streaming handler %r timed out", handler.name)
            error_text = ERROR_TIMEOUT
            handler.tally.timed_out += 1
        except (HandlerError, StreamError) as error:
            self._log_failure(handler, error)
            error_text = ERROR_STREAM
        except (SerializationError, FrameTooLarge) as error:
            self.log.error(
                "a chunk of handler %r cannot be sent: %s", handler.name, error
            )
            error_text = ERROR_STREAM
        finally:
            handler.tally.seconds += time.monotonic() - began
            await chunks.aclose()
        exchange.respond(encode_stream_end(error_text is None, error_text))
        handler.tally.ok += error_text is None
        handler.tally.failed += error_text is ERROR_STREAM

    def _respond(
        self, exchange: ServerExchange, handler: Handler, result: dict[str, Any]
    ) -> None:
        try:
            try:
                frame = encode_synapse_response(
                    True, result, int(time.time()), None, self._limit
                )
            except EncodeError:
                if self.mend is None:
                    raise
                frame = encode_synapse_response(
                    True, self.mend(result), int(time.time()), None, self._limit
                )
        except (SerializationError, FrameTooLarge) as error:
            self.log.error(
                "the answer of handler %r cannot be sent: %s", handler.name, error
            )
            handler.tally.failed += fail(exchange, ERROR_SERIALIZATION)
            return
        if exchange.respond(frame):
            handler.tally.ok += 1

    def _log_failure(self, handler: Handler, error: LightningError) -> None:
        self.log.error(
            "handler %r failed: %s",
            handler.name,
            error,
            key=handler.name,
            exc_info=error.__cause__ or error,
        )


class _Job:
    """One request that waits for a thread, or has one."""

    __slots__ = ("_work",)

    def __init__(
        self,
        answers: Answers,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
    ) -> None:
        # One attribute, so that the thread sees all of it or None.
        self._work: tuple[Any, ...] | None = (answers, exchange, handler, data, context)

    def drop(self) -> None:
        """Do not start it any more, nor keep it in memory."""
        work, self._work = self._work, None
        if work is not None:
            work[0].drop(work[1])

    def execute(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            answers, *rest = work
            answers.here(*rest)

    def abandon(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            answers, exchange, *_ = work
            answers.drop(exchange)
            fail(exchange, ERROR_PROCESSING)


def fail(exchange: ServerExchange, text: str, handler: Handler | None = None) -> bool:
    """Send a failure, in the frame that a caller of this handler waits for.

    Returns:
        False if the client wants no answer, or has one.
    """
    if handler is not None and handler.streams:
        frame = encode_stream_end(False, text)
    else:
        frame = encode_synapse_response(False, {}, int(time.time()), text)
    return exchange.respond(frame)
