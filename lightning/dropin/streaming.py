"""Answers in pieces: what a miner's function returns, and what a validator reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from lightning.dropin.synapse import Synapse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    TokenStreamer = Callable[[Send], Awaitable[None]]

__all__ = ["BTStreamingResponse", "StreamedResponse", "StreamingSynapse"]

EVENT_STREAM = "text/event-stream"


class BTStreamingResponse:
    """What the forward function of a streaming synapse returns.

    Args:
        model: The streamer itself, or an object with it as ``token_streamer``.
        synapse: The synapse that is answered.
        status_code: As of HTTP.
        headers: More headers.
        media_type: Of the body.

    Attributes:
        token_streamer: Called with ``send``, which takes
            ``{"type": "http.response.body", "body": bytes, "more_body": bool}``.
    """

    def __init__(
        self,
        model: Any,
        *,
        synapse: Any | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = EVENT_STREAM,
    ) -> None:
        self.token_streamer: TokenStreamer = getattr(model, "token_streamer", model)
        self.synapse = synapse
        self.status_code = status_code
        self.headers = dict(headers or {})
        self.media_type = media_type


Answer = BTStreamingResponse


class StreamingSynapse(Synapse, ABC):
    """A synapse whose answer comes in pieces; subclass it with the two functions."""

    model_config = ConfigDict(validate_assignment=True)

    BTStreamingResponse: ClassVar[type[Answer]] = Answer

    @abstractmethod
    def process_streaming_response(self, response: Any) -> AsyncIterator[Any]:
        """Give the pieces of an answer, an async generator.

        Args:
            response: A `StreamedResponse`, or aiohttp's response over HTTP.
        """

    @abstractmethod
    def extract_response_json(self, response: Any) -> dict[str, Any]:
        """Return the fields of the answer, when it has been read.

        Args:
            response: As for `process_streaming_response`.
        """

    def create_streaming_response(self, token_streamer: TokenStreamer) -> Answer:
        """Return what a forward function shall return.

        Args:
            token_streamer: An async function that is given ``send``.
        """
        return self.BTStreamingResponse(token_streamer, synapse=self)


class Headers(dict[str, str]):
    """Headers, whose names are found in upper and lower case."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__((k.decode("latin-1"), v.decode("latin-1")) for k, v in raw)
        self._by_lower = {name.lower(): value for name, value in self.items()}

    def __getitem__(self, name: str) -> str:
        return self._by_lower[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._by_lower

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default."""
        return self._by_lower.get(name.lower(), default)


class Content:
    """The body of a streamed answer, read once, in one of these ways.

    Args:
        chunks: The pieces as they come.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._left = bytearray()
        self._ended = False
        self._error: Exception | None = None

    async def _more(self) -> bool:
        """Read one more piece; say if there was one."""
        if self._ended:
            return False
        if self._error is not None:
            raise self._error
        try:
            self._left += await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            return False
        except Exception as error:
            # A generator that has raised says afterwards that it has ended.
            self._error = error
            raise
        return True

    def _take(self, n: int) -> bytes:
        data = bytes(self._left[:n])
        del self._left[:n]
        return data

    def at_eof(self) -> bool:
        """Whether everything has been read."""
        return self._ended and not self._left

    async def readany(self) -> bytes:
        """Return what has come, at least one byte; nothing at the end."""
        while not self._left:
            if not await self._more():
                break
        return self._take(len(self._left))

    async def readchunk(self) -> tuple[bytes, bool]:
        """Return the next piece, and that it is a whole one; nothing at the end."""
        data = await self.readany()
        return data, bool(data)

    async def read(self, n: int = -1) -> bytes:
        """Return up to ``n`` bytes, or everything there will be if it is negative."""
        if n < 0:
            while await self._more():
                pass
            return self._take(len(self._left))
        while not self._left and n:
            if not await self._more():
                break
        return self._take(n)

    async def readline(self) -> bytes:
        """Return the next line with its end; nothing at the end."""
        start = 0
        while (at := self._left.find(b"\n", start)) < 0:
            start = len(self._left)
            if not await self._more():
                return self._take(len(self._left))
        return self._take(at + 1)

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Give pieces as they come."""
        while data := await self.readany():
            yield data

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Give pieces of at most ``n`` bytes."""
        while data := await self.read(n):
            yield data

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        """Give each piece, and that it is a whole one."""
        while data := await self.readany():
            yield data, True

    def __aiter__(self) -> Content:
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration


class StreamedResponse:
    """What `StreamingSynapse.process_streaming_response` reads over QUIC.

    It has what subnets use of aiohttp's response.

    Args:
        chunks: The body.
        status: As of HTTP.
        raw_headers: Names and values.

    Attributes:
        content: The body, to be read once.
        headers: Found in upper and lower case.
        status: As of HTTP.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        status: int = 200,
        raw_headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._raw_headers = tuple(raw_headers)
        self.headers = Headers(self._raw_headers)
        self.content = Content(chunks)
        self.status = status

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names and values as they came."""
        return self._raw_headers

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    async def read(self) -> bytes:
        """Return the whole body."""
        return await self.content.read()

    async def text(self, encoding: str = "utf-8") -> str:
        """Return the whole body as text."""
        return (await self.read()).decode(encoding)
