"""Running a handler for a request, and sending what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from lightning._core.wire.messages import (
    encode_stream_chunk,
    encode_stream_end,
    encode_synapse_response,
)
from lightning.errors import (
    FrameTooLarge,
    HandlerError,
    LightningError,
    SerializationError,
    StreamError,
)
from lightning.handlers import (
    ERROR_PROCESSING,
    ERROR_SERIALIZATION,
    ERROR_STREAM,
    ERROR_TIMEOUT,
    Handler,
    HandlerContext,
    call,
    run,
    stream,
)
from lightning.pool import HandlerPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lightning._core.wire.exchange import ServerExchange
    from lightning.config import LightningServerConfig

log = logging.getLogger("lightning.server")

# Chunks of one stream that are sent before others have their turn of the event loop.
CHUNKS_A_TURN = 16


class Answers:
    """Answers requests by handlers, within the limits of the settings.

    Attributes:
        pool: The threads of handlers that are plain functions.
    """

    def __init__(self, config: LightningServerConfig) -> None:
        self.pool = HandlerPool(config.handler_threads)
        self._timeout = config.handler_timeout_secs
        self._limit = config.max_frame_payload_bytes
        self._buffer = config.streaming_channel_buffer

    def inline(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext,
    ) -> None:
        """Answer at once, on the event loop."""
        try:
            result = call(handler, data, context)
        except HandlerError as error:
            _log_failure(handler, error)
            fail(exchange, ERROR_PROCESSING)
            return
        self._respond(exchange, handler, result)

    async def unary(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext,
    ) -> None:
        """Answer when the handler has returned, or its time is over."""
        try:
            async with asyncio.timeout(self._timeout):
                result = await run(handler, data, context, self.pool)
        except TimeoutError:
            log.warning("handler %r timed out", handler.name)
            fail(exchange, ERROR_TIMEOUT)
        except HandlerError as error:
            _log_failure(handler, error)
            fail(exchange, ERROR_PROCESSING)
        else:
            self._respond(exchange, handler, result)

    async def stream(
        self,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: HandlerContext,
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
        chunks = stream(handler, data, context, self.pool, buffer=self._buffer)
        try:
            async with asyncio.timeout(self._timeout):
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
            log.warning("streaming handler %r timed out", handler.name)
            error_text = ERROR_TIMEOUT
        except (HandlerError, StreamError) as error:
            _log_failure(handler, error)
            error_text = ERROR_STREAM
        except (SerializationError, FrameTooLarge) as error:
            log.error("a chunk of handler %r cannot be sent: %s", handler.name, error)
            error_text = ERROR_STREAM
        finally:
            await chunks.aclose()
        exchange.respond(encode_stream_end(error_text is None, error_text))

    def _respond(
        self, exchange: ServerExchange, handler: Handler, result: dict[str, Any]
    ) -> None:
        try:
            frame = encode_synapse_response(
                True, result, int(time.time()), None, self._limit
            )
        except (SerializationError, FrameTooLarge) as error:
            log.error(
                "the answer of handler %r cannot be sent: %s", handler.name, error
            )
            fail(exchange, ERROR_SERIALIZATION)
            return
        exchange.respond(frame)


def fail(exchange: ServerExchange, text: str, handler: Handler | None = None) -> None:
    """Send a failure, in the frame that a caller of this handler waits for."""
    if handler is not None and handler.streams:
        exchange.respond(encode_stream_end(False, text))
    else:
        exchange.respond(encode_synapse_response(False, {}, int(time.time()), text))


def _log_failure(handler: Handler, error: LightningError) -> None:
    log.error(
        "handler %r failed: %s", handler.name, error, exc_info=error.__cause__ or error
    )
