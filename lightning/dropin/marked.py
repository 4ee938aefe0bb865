"""What an axon of ours says of a streamed answer, in chunks that begin with our mark.

A request for a stream brings a mark, `MARK_SIZE` bytes by chance. The first chunk of the
answer is the mark and a map in MessagePack with ``status_code``, ``status_message`` and
``headers``; the last one has the final ``status_code``, ``status_message`` and
``process_time``. A miner that does not know the mark sends neither.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lightning.dropin.exceptions import SynapseParsingError
from lightning.dropin.statuses import SUCCESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lightning.dropin.anywhere import Chunks

__all__ = ["MARK_SIZE", "Marked", "raw_headers", "told"]

MARK_SIZE: Final = 8


class Marked:
    """The body of a stream, without the chunks that begin with our mark."""

    def __init__(self, chunks: Chunks, mark: bytes) -> None:
        self._chunks = chunks
        self._mark = mark
        self._first: bytes | None = None
        self.told: dict[str, Any] | None = None

    async def begin(self) -> None:
        """Read as far as it takes to know whether the miner refuses."""
        with contextlib.suppress(StopAsyncIteration):
            self._first = await self._next()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            chunk, self._first = self._first, None
            return chunk or await self._next()
        return await self._next()

    async def _next(self) -> bytes:
        while True:
            chunk = await anext(self._chunks)
            if not chunk.startswith(self._mark):
                return chunk
            is_head = self.told is None
            self.told = _map(chunk[len(self._mark) :])
            if is_head:
                # Whatever it says, it is time to look at it.
                return b""

    async def aclose(self) -> None:
        """Leave the rest."""
        await self._chunks.aclose()


def _map(packed: bytes) -> dict[str, Any]:
    try:
        told = msgspec.msgpack.decode(packed)
    except msgspec.DecodeError as error:
        raise SynapseParsingError(f"the status of a stream: {error}") from error
    if not isinstance(told, dict):
        raise SynapseParsingError("the status of a stream is no map")
    return told


def raw_headers(head: dict[str, Any] | None) -> list[tuple[bytes, bytes]]:
    """Return the headers that the first chunk brought, if any."""
    found = (head or {}).get("headers")
    if not isinstance(found, list):
        return []
    return [
        (bytes(pair[0]), bytes(pair[1]))
        for pair in found
        if isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(part, bytes) for part in pair)
    ]


def told(meta: Any) -> tuple[int, str, float | None]:
    """Return status, message and seconds of an answer; a miner may say anything."""
    if not isinstance(meta, dict):
        return 200, SUCCESS, None
    code, message = meta.get("status_code", 200), meta.get("status_message")
    seconds = meta.get("process_time")
    if type(code) is not int or not 100 <= code < 1000:
        raise SynapseParsingError(f"{code!r} is no status code")
    if type(message) is not str:
        message = SUCCESS if code == 200 else ""
    return code, message, seconds if type(seconds) is float else None
