"""Streaming handlers: their chunks, from wherever they run to the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from lightning.binding import Handler, HandlerContext, HandlerKind, name_of
from lightning.errors import HandlerError, StreamError
from lightning.logs import Throttled
from lightning.pool import Mailbox
from lightning.running import Cancellation, failure, refuse_coroutine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pool import HandlerPool

__all__ = ["ChunkStream", "stream"]

logger = Throttled(logging.getLogger("lightning.handlers"))


def stream(
    handler: Handler,
    data: dict[str, Any],
    context: HandlerContext | None,
    pool: HandlerPool,
    *,
    buffer: int = 32,
) -> ChunkStream:
    """Start a streaming handler.

    Args:
        handler: A handler of a streaming kind.
        data: The request's data.
        context: Passed to the handler if it takes one.
        pool: Where a sync generator runs; it keeps one thread until it ends.
        buffer: Chunks that the handler may be ahead of the reader
            (``streaming_channel_buffer``). An async generator is never ahead.

    Returns:
        The chunks. After this call: read to the end, or ``aclose()``.
    """
    return ChunkStream(handler, data, context, pool, buffer)


class ChunkStream(AsyncIterator[bytes]):
    """The chunks of one streamed answer, for one reader.

    Nothing runs before the first chunk is asked for. Reading raises:

    * ``HandlerError``: the handler raised, or gave no iterable, or found no thread.
    * ``StreamError``: a chunk is not bytes-like.

    Mutable chunks are copied, so that a handler may reuse its buffer.
    """

    __slots__ = (
        "_buffer",
        "_context",
        "_data",
        "_done",
        "_handler",
        "_pool",
        "_source",
    )

    def __init__(
        self,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
        pool: HandlerPool,
        buffer: int,
    ) -> None:
        self._handler = handler
        self._data = data
        self._context = context
        self._pool = pool
        self._buffer = buffer
        self._source: AsyncIterator[Any] | None = None
        self._done = False

    async def __anext__(self) -> bytes:
        if self._done:
            raise StopAsyncIteration
        watch = Cancellation()
        try:
            if self._source is None:
                self._source = await self._open()
        except BaseException as error:
            self._done = True
            _raise(watch, error)
        try:
            return _chunk(await self._source.__anext__())
        except StopAsyncIteration:
            self._done = True
            raise
        except BaseException as error:
            _raise(watch, error)

    async def aclose(self) -> None:
        """Stop the handler.

        A generator is closed, so that its ``finally`` runs: an async one before this
        returns, a sync one in its own thread, as soon as it yields. Never raises what
        the handler raises meanwhile; that is logged.
        """
        self._done = True
        source, self._source = self._source, None
        close = getattr(source, "aclose", None)
        if close is None:
            return
        watch = Cancellation()
        try:
            await close()
        except BaseException as error:
            if watch.passes(error):
                raise
            _log_close_failure(self._handler, error)

    def __del__(self) -> None:
        # A reader that forgot to close must not hold a thread for ever.
        if isinstance(self._source, _ThreadChunks | _TaskChunks):
            self._source.abandon()

    async def _open(self) -> AsyncIterator[Any]:
        # No closure here may hold this object: its end is what frees the thread.
        handler, data, context = self._handler, self._data, self._context
        if handler.kind is HandlerKind.STREAM_SYNC:
            return self._open_thread(
                lambda sender: handler.invoke(data, context, sender)
            )
        if handler.takes_sender:
            return _TaskChunks(handler, data, context, self._buffer)
        chunks = handler.invoke(data, context, None)
        if isinstance(chunks, AsyncIterable):
            return aiter(chunks)
        chunks = await chunks
        if isinstance(chunks, AsyncIterable):
            return aiter(chunks)
        return self._open_thread(lambda _: chunks)

    def _open_thread(self, start: Callable[[_ThreadChunks], Any]) -> _ThreadChunks:
        source = _ThreadChunks(self._handler, start, self._buffer, self._pool.mailbox())
        self._pool.post(source)
        return source


class _ThreadChunks(AsyncIterator[bytes]):
    """The chunks of a handler in a thread, handed over to the event loop.

    It is the pool's task in the thread, the handler's sender there, and the reader's
    iterator on the loop. One condition guards what both sides see.
    """

    __slots__ = (
        "_buffer",
        "_changed",
        "_chunks",
        "_closed",
        "_ended",
        "_error",
        "_handler",
        "_mailbox",
        "_reader",
        "_start",
        "_variables",
    )

    def __init__(
        self,
        handler: Handler,
        start: Callable[[_ThreadChunks], Any],
        buffer: int,
        mailbox: Mailbox,
    ) -> None:
        self._handler = handler
        self._start = start
        self._buffer = buffer
        self._variables = contextvars.copy_context()
        self._mailbox = mailbox
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._closed = False
        self._ended = False
        self._error: Exception | None = None

    async def __anext__(self) -> bytes:
        while True:
            with self._changed:
                if self._chunks:
                    chunk = self._chunks.popleft()
                    self._changed.notify()
                    return chunk
                if self._ended:
                    if self._error is None:
                        raise StopAsyncIteration
                    raise self._error
                self._reader = self._mailbox.loop.create_future()
                reader = self._reader
            await reader

    async def aclose(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Let the thread stop the handler when it next gets hold of it."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify()
        self._end(HandlerError("the stream was closed"))

    def send(self, chunk: bytes) -> None:
        """Take a chunk from a handler that sends."""
        chunk = _chunk(chunk)
        if not self._wait_for_room():
            raise StreamError("the reader of the stream has gone")
        self._hand_over(chunk)

    def execute(self) -> None:
        if not self._closed:
            self._variables.run(self._pump)

    def _pump(self) -> None:
        error: Exception | None = None
        chunks: Iterator[Any] | None = None
        try:
            result = self._start(self)
            refuse_coroutine(result)
            if not self._handler.takes_sender:
                chunks = _iterator(result)
                # Room first: a generator is never run further than the reader allows.
                while self._wait_for_room():
                    try:
                        chunk = next(chunks)
                    except StopIteration:
                        break
                    self._hand_over(_chunk(chunk))
        except BaseException as caught:
            error = _stream_failure(caught)
        if chunks is not None:
            _close_iterator(self._handler, chunks)
        self._end(error)

    def _wait_for_room(self) -> bool:
        with self._changed:
            while len(self._chunks) >= self._buffer and not self._closed:
                self._changed.wait()
            return not self._closed

    def _hand_over(self, chunk: bytes) -> None:
        with self._changed:
            if not self._closed:
                self._chunks.append(chunk)
            reader, self._reader = self._reader, None
        if reader is not None:
            self._mailbox.post(_resolve_reader, reader)

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            if not self._ended:
                self._ended = True
                self._error = error
            reader, self._reader = self._reader, None
        if reader is not None:
            self._mailbox.post(_resolve_reader, reader)


class _TaskChunks(AsyncIterator[bytes]):
    """The chunks of an ``async`` handler that sends, which runs in a task of its own."""

    __slots__ = ("_queue", "_task")

    def __init__(
        self,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext | None,
        buffer: int,
    ) -> None:
        # The last item is the error that ended the handler, or None.
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(buffer)
        self._task = asyncio.create_task(self._produce(handler, data, context))

    async def __anext__(self) -> bytes:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def abandon(self) -> None:
        Mailbox(self._task.get_loop()).post(self._task.cancel)

    async def send(self, chunk: bytes) -> None:
        """Take a chunk from the handler."""
        await self._queue.put(_chunk(chunk))

    async def _produce(
        self, handler: Handler, data: dict[str, Any], context: HandlerContext | None
    ) -> None:
        watch = Cancellation()
        end: Exception | None = None
        try:
            await handler.invoke(data, context, self)
        except BaseException as error:
            if watch.passes(error):
                raise
            end = _stream_failure(error)
        await self._queue.put(end)


def _iterator(result: Any) -> Iterator[Any]:
    """Iterate over what a streaming handler returned."""
    if isinstance(result, AsyncIterable):
        raise HandlerError(
            "handler returned an async iterable; register an async generator function"
        )
    if not isinstance(result, Iterable) or isinstance(
        result, bytes | bytearray | memoryview | str | Mapping
    ):
        raise HandlerError(
            f"streaming handler returned {name_of(type(result))}, not an iterable of bytes"
        )
    return iter(result)


def _chunk(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise StreamError(f"a chunk must be bytes, not {name_of(type(value))}")


def _close_iterator(handler: Handler, chunks: Any) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        try:
            close()
        except BaseException as error:
            _log_close_failure(handler, error)


def _log_close_failure(handler: Handler, error: BaseException) -> None:
    logger.warning(
        "handler %r failed while its stream was closed",
        handler.name,
        key=handler.name,
        exc_info=error,
    )


def _resolve_reader(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)


def _stream_failure(error: BaseException) -> HandlerError | StreamError:
    return error if isinstance(error, StreamError) else failure(error)


def _raise(watch: Cancellation, error: BaseException) -> NoReturn:
    raise error if watch.passes(error) else _stream_failure(error)
