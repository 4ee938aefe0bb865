"""The chunks of a streamed answer, on asyncio and for blocking callers."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import TYPE_CHECKING, Self

from lightning._core.io.loop import LoopGone
from lightning._core.wire.exchange import ClientExchange, Exchanges, read_stream_frame
from lightning._core.wire.framing import MessageType
from lightning.errors import LightningError, StreamError
from lightning.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from lightning._core.io.loop import LoopThread

# A streamed answer that is not read stops its sender at this many bytes.
HIGH_WATER = 1024 * 1024
# What a chunk takes besides its bytes: empty ones are not free.
CHUNK_OVERHEAD = 128


class StreamingResponse:
    """The chunks of a streamed answer, as they come.

    An asynchronous iterator of ``bytes``, and a context manager that drops what was
    not read. Dropping it early, closed or not, stops the miner's handler. After its
    end it stays ended.

    Attributes:
        loop: The event loop that it belongs to.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        frame: bytes,
        chunk_timeout: float | None,
        max_payload: int,
        watch: Watch | None = None,
        locate: Callable[[LightningError, float], object] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._chunk_timeout = chunk_timeout
        self._max_payload = max_payload
        self._watch = watch or Watch(None)
        self._locate = locate
        self._frames: deque[tuple[int, bytes]] = deque()
        self._buffered = 0
        self._paused = False
        self._error: LightningError | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

        # The connection must not keep alive what the caller has dropped.
        reader = weakref.ref(self)

        def on_frame(exchange: ClientExchange, kind: int, payload: bytes) -> None:
            if (stream := reader()) is not None:
                stream._on_frame(exchange, kind, payload)

        def on_error(_: ClientExchange, error: LightningError) -> None:
            if (stream := reader()) is not None:
                stream._on_error(error)

        self._exchange = exchanges.start(frame, on_frame, on_error)
        left = self._watch.left
        self._timer = (
            None if left is None else self.loop.call_later(left, _expire, reader)
        )

    def __del__(self) -> None:
        # There is none if it could not be started.
        exchange = getattr(self, "_exchange", None)
        if exchange is not None and not self._ended:
            try:
                # Any thread may collect garbage.
                self.loop.call_soon_threadsafe(exchange.cancel)
            except RuntimeError:
                return  # The loop is closed, and the connection with it.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.next_chunk()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def next_chunk(self) -> bytes | None:
        """Wait for the next chunk.

        Returns:
            Its bytes, or None at the successful end and ever after.

        Raises:
            StreamError: The miner's handler failed, no chunk came in time, or the whole
                took too long.
            TransportError: The connection or the stream broke.
        """
        if not self._frames and not self._ended and self._error is None:
            await self._wait()
        return self.take()

    def take(self) -> bytes | None:
        """Return the next chunk if it is there already, None if not.

        Raises:
            StreamError, TransportError: As `next_chunk`.
        """
        if self._frames:
            return self._take_frame()
        error, self._error = self._error, None
        if error is not None:
            self._end()
            raise self._told(error)
        return None

    async def collect_all(self) -> list[bytes]:
        """Wait for the end and return all chunks.

        Raises:
            StreamError: They are more than ``max_stream_payload_bytes`` in sum; or as
                `next_chunk`.
            TransportError: As `next_chunk`.
        """
        chunks = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if size > self._max_payload:
                self.close()
                text = (
                    f"stream payload {size} bytes exceeds maximum {self._max_payload}"
                )
                raise self._told(StreamError(text))
            chunks.append(chunk)
        return chunks

    def close(self) -> None:
        """Drop what was not read; the miner's handler is stopped. Fine when ended."""
        self._end()
        self._error = None
        self._frames.clear()
        self._exchange.cancel()
        self._wake()

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("another task is already waiting for this stream")
        self._waiter = self.loop.create_future()
        try:
            async with asyncio.timeout(self._chunk_timeout):
                await self._waiter
        except TimeoutError:
            self.close()
            raise self._told(StreamError("chunk read timed out")) from None
        finally:
            self._waiter = None

    def _take_frame(self) -> bytes | None:
        kind, payload = self._frames.popleft()
        self._buffered -= len(payload) + CHUNK_OVERHEAD
        if self._paused and self._buffered <= HIGH_WATER // 2:
            self._paused = False
            self._exchange.resume()
        try:
            chunk = read_stream_frame(kind, payload)
        except LightningError as error:
            self.close()
            self._told(error)
            raise
        if chunk is None:
            self._end()
        return chunk

    def _end(self) -> None:
        self._ended = True
        self._stop_timer()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _told(self, error: LightningError) -> LightningError:
        """Say in an error where it happened."""
        if self._locate is not None:
            self._locate(error, self._watch.elapsed)
        return error

    def _expire(self) -> None:
        """Stop it, as the time for the whole is over; what has come can be read."""
        if self._error is None:
            self._exchange.cancel()
            seconds = self._watch.timeout or 0
            self._on_error(StreamError(f"stream timed out after {seconds:g}s"))

    def _on_frame(self, exchange: ClientExchange, kind: int, payload: bytes) -> None:
        self._frames.append((kind, payload))
        self._buffered += len(payload) + CHUNK_OVERHEAD
        # Any other frame is the last one.
        if kind != MessageType.STREAM_CHUNK:
            exchange.complete()
            self._stop_timer()
        elif self._buffered > HIGH_WATER and not self._paused:
            self._paused = True
            exchange.pause()
        self._wake()

    def _on_error(self, error: LightningError) -> None:
        self._error = error
        self._stop_timer()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _expire(reader: weakref.ref[StreamingResponse]) -> None:
    if (stream := reader()) is not None:
        stream._expire()


class BlockingStreamingResponse:
    """The chunks of a streamed answer, as they come, for blocking callers.

    An iterator of ``bytes``, and a context manager that drops what was not read. After
    its end it stays ended. Dropping it without reading to the end closes it.
    """

    def __init__(
        self, stream: StreamingResponse, io: LoopThread, owner: object
    ) -> None:
        self._stream = stream
        self._io = io
        # A client that is dropped closes itself, and this with it.
        self._owner = owner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        chunk = self.next_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def next_chunk(self) -> bytes | None:
        """Do as `StreamingResponse.next_chunk`."""
        try:
            return self._io.call_in(self._stream.loop, self._stream.next_chunk)
        except LoopGone:
            # The client was closed; what had come before is still here.
            return self._stream.take()

    def collect_all(self) -> list[bytes]:
        """Do as `StreamingResponse.collect_all`."""
        try:
            return self._io.call_in(self._stream.loop, self._stream.collect_all)
        except LoopGone:
            return list(iter(self._stream.take, None))

    def close(self) -> None:
        """Drop what was not read; the miner's handler is stopped. Fine when ended."""
        self._io.post(self._stream.close)
