"""The dendrite's end of bittensor's HTTP protocol, on aiohttp.

Import this module only where HTTP is used: it needs the extra ``http``.
"""

from __future__ import annotations

import asyncio
import errno
import io
import math
import threading
import time
import zlib
from contextlib import aclosing
from inspect import isawaitable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from lightning.dropin.http_headers import (
    process_response,
    read_answer,
    request_body,
    request_headers,
    set_request_terminals,
    url_of,
)
from lightning.errors import SigningError

try:
    import aiohttp
except ImportError as missing:
    raise ImportError(
        "bittensor's HTTP needs aiohttp: pip install 'bittensor-lightning[http]'"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

__all__ = ["MAX_RESPONSE_BYTES", "HttpClient"]

MAX_RESPONSE_BYTES: Final = 64 << 20
"""Bytes of an answer that are read at most, unless told otherwise."""

KEEP_ALIVE: Final = 30.0
"""Seconds that a connection is kept for the next request to the same axon."""

# Connections in a row that may turn out to have been closed while they were kept.
_MAX_STALE: Final = 8
# aiohttp warns of larger bodies as bytes, and sends them in one go.
_LARGE_BODY: Final = 1 << 20
_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class HttpClient:
    """Asks axons of bittensor 10 by HTTP, from any event loop and any thread.

    Each event loop has connections of its own, as many as there are requests at a time;
    those that are idle are kept for half a minute. They are closed by `close`, with the
    loop, or with this object; nothing is said about that.

    Redirects are not followed, no cookies are kept, and no proxy is asked. An answer may
    be compressed by gzip or deflate, a stream may not.

    Args:
        keypair: Our hotkey: has ``ss58_address`` and ``sign(bytes)``, which may be async.
        uuid: Our name for ourselves, signed with each request.
        max_response_bytes: Bytes of an answer that are read at most; of a stream, of
            all its chunks together. None for 64 MiB.
        external_ip: Our own address on the internet, if it is known: told to axons,
            and axons there are asked on this machine.
    """

    def __init__(
        self,
        keypair: Any,
        uuid: str,
        *,
        max_response_bytes: int | None = None,
        external_ip: str | None = None,
    ) -> None:
        self.keypair = keypair
        self.uuid = uuid
        self.max_response_bytes = max_response_bytes or MAX_RESPONSE_BYTES
        self.external_ip = external_ip
        self._lock = threading.Lock()
        self._held: dict[asyncio.AbstractEventLoop, _Held] = {}

    # Preparing.

    def prepare(self, target: Any, synapse: Any, timeout: float | None) -> Any:
        """Fill a synapse's timeout and terminals, and sign it.

        Args:
            target: The axon: has ``ip``, ``port`` and ``hotkey``.
            synapse: What to ask.
            timeout: Seconds to wait.

        Returns:
            The same synapse.

        Raises:
            SigningError: The keypair's ``sign`` failed, or is async.
        """
        signature = self._sign(self._fill(target, synapse, timeout))
        if isawaitable(signature):
            close = getattr(signature, "close", None)
            if close is not None:
                close()
            raise SigningError("this keypair signs asynchronously: use call")
        synapse.dendrite.__dict__["signature"] = _hexadecimal(signature)
        return synapse

    async def _prepare(self, target: Any, synapse: Any, timeout: float | None) -> None:
        signature = self._sign(self._fill(target, synapse, timeout))
        if isawaitable(signature):
            signature = await signature
        synapse.dendrite.__dict__["signature"] = _hexadecimal(signature)

    def _fill(self, target: Any, synapse: Any, timeout: float | None) -> bytes:
        return set_request_terminals(
            synapse,
            target,
            timeout=timeout,
            ip=self.external_ip,
            nonce=time.time_ns(),
            uuid=self.uuid,
            hotkey=self.keypair.ss58_address,
        )

    def _sign(self, text: bytes) -> Any:
        try:
            return self.keypair.sign(text)
        except Exception as error:
            raise SigningError(f"the keypair cannot sign: {error}") from error

    # Asking.

    async def call(
        self,
        target: Any,
        synapse: Any,
        timeout: float | None,
        connect_timeout: float | None = None,
        *,
        left: float | None = None,
        prepared: bool = False,
        url: str | None = None,
        process: Callable[[Any, Any, Any], object] | None = None,
    ) -> None:
        """Ask an axon, and fill the synapse with the answer.

        Args:
            target: The axon: has ``ip`` (a host name will do), ``port`` and ``hotkey``.
            synapse: What to ask, and where the answer goes.
            timeout: Seconds from now to the last byte of the answer; None or 0 for no
                limit.
            connect_timeout: Seconds of these that connecting may take; None for all.
            left: Seconds of ``timeout``, which the axon is told, that are left; None
                for all.
            prepared: Whether `prepare` was called already.
            url: Where to ask, if not at the target's address.
            process: Called with the response, its JSON and the synapse, in place of
                `process_response`.

        Raises:
            TimeoutError: One of the times ran out.
            aiohttp.ClientError: Anything else between the axon and us; an answer that
                is too large is a ``ClientPayloadError``.
            TypeError: The synapse has a value that JSON cannot say, or the answer is no
                JSON object.
            ValueError: The answer is not JSON, or not one that the synapse's class
                takes. If its status is one of failure too, and it does not even say
                that it is JSON, that is aiohttp's ``ContentTypeError``.
            SigningError: The keypair failed.
        """
        began = time.perf_counter()
        if not prepared:
            await self._prepare(target, synapse, timeout)
        headers = request_headers(synapse)
        headers["Accept-Encoding"] = "gzip, deflate"
        response = await self._open(
            target, url, synapse, headers, left or timeout, connect_timeout
        )
        async with response:
            body = await self._read(response)
            _check_type(response)
            data = read_answer(body)
            (process or process_response)(response, data, synapse)
        synapse.dendrite.__dict__["process_time"] = time.perf_counter() - began

    async def stream(
        self,
        target: Any,
        synapse: Any,
        timeout: float | None,
        connect_timeout: float | None = None,
        *,
        left: float | None = None,
        prepared: bool = False,
        url: str | None = None,
        process: Callable[[Any, Any, Any], object] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Ask an axon for a stream; leaving it early stops the axon's work.

        Args:
            target: As for `call`.
            synapse: A streaming one.
            timeout: As for `call`: to the last chunk.
            connect_timeout: As for `call`.
            left: As for `call`.
            prepared: As for `call`.
            url: As for `call`.
            process: As for `call`.

        Yields:
            What the synapse's ``process_streaming_response`` makes of the answer; then,
            last, the filled synapse.

        Raises:
            TimeoutError: As `call`, before or between chunks; so the others.
            aiohttp.ClientError: The same.
        """
        from lightning.dropin.streaming import StreamedResponse  # noqa: PLC0415 - pydantic, which calls do not need.

        began = time.perf_counter()
        if not prepared:
            await self._prepare(target, synapse, timeout)
        headers = request_headers(synapse)
        headers["Accept-Encoding"] = "identity"
        opened = await self._open(
            target, url, synapse, headers, left or timeout, connect_timeout
        )
        async with opened, aclosing(self._chunks(opened)) as chunks:
            response: Any = StreamedResponse(chunks, opened.status, opened.raw_headers)
            response.headers = opened.headers
            made = synapse.process_streaming_response(response)
            try:
                async for chunk in made:
                    yield chunk
            finally:
                if (close := getattr(made, "aclose", None)) is not None:
                    await close()
            data = synapse.extract_response_json(response)
            (process or process_response)(response, data, synapse)
        synapse.dendrite.__dict__["process_time"] = time.perf_counter() - began
        yield synapse

    async def _open(
        self,
        target: Any,
        url: str | None,
        synapse: Any,
        headers: dict[str, str],
        timeout: float | None,
        connect_timeout: float | None,
    ) -> aiohttp.ClientResponse:
        """Send a request, and return what answers when its headers are here.

        A kept connection may have been closed by the axon just as the request was sent.
        The same request, nonce included, is then sent on another: an axon that did
        get it the first time refuses it, so that it is never done twice.
        """
        if url is None:
            if not int(target.port) or str(target.ip) in {"", "0", "::"}:
                raise _not_serving(target)
            url = url_of(target, type(synapse).__name__, self.external_ip)
        body = request_body(synapse)
        headers["Content-Type"] = "application/json"
        session = await self._session()
        deadline = time.monotonic() + timeout if timeout else None
        lost: aiohttp.ClientError | None = None
        for _ in range(_MAX_STALE):
            left = None
            if deadline is not None:
                # Zero would mean no limit.
                left = max(deadline - time.monotonic(), 1e-6)
            was_kept = [False]
            try:
                response = await session.post(
                    url,
                    data=body if len(body) <= _LARGE_BODY else io.BytesIO(body),
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(
                        total=left, connect=connect_timeout, ceil_threshold=math.inf
                    ),
                    allow_redirects=False,
                    trace_request_ctx=was_kept,
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if not was_kept[0]:
                    raise lost or error from None
                lost = lost or error
                continue
            if lost is not None and response.status == 401:
                response.close()
                raise lost
            return response
        raise lost or aiohttp.ServerDisconnectedError()

    # Reading.

    async def _chunks(
        self, response: aiohttp.ClientResponse
    ) -> AsyncGenerator[bytes, None]:
        """Return the chunks of an answer as they come, up to the limit."""
        limit, size = self.max_response_bytes, 0
        if (response.content_length or 0) > limit:
            raise _too_large(limit)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise aiohttp.ClientPayloadError("a compressed answer was not asked for")
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            yield chunk

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body of an answer, uncompressed."""
        limit, size = self.max_response_bytes, 0
        if (response.content_length or 0) > limit:
            raise _too_large(limit)
        chunks = []
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
        body = b"".join(chunks)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        return body if encoding == "identity" else _inflated(body, encoding, limit)

    # Connections.

    async def _session(self) -> aiohttp.ClientSession:
        """Return the running loop's session."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is not None and not held.session.closed:
            return held.session
        held = _Held()
        with self._lock:
            for other in [each for each in self._held if each.is_closed()]:
                self._held.pop(other).forget()
            self._held[loop] = held
        # No other task runs meanwhile: this does not wait for anything.
        await held.begin()
        return held.session

    def close(self) -> None:
        """Close all connections; from any thread.

        Each loop closes its own as soon as it runs. A call made later opens new ones.
        """
        for loop, held in self._take():
            held.end(loop)

    async def aclose(self) -> None:
        """Close all connections; those of the running loop are closed on return."""
        mine = asyncio.get_running_loop()
        for loop, held in self._take():
            if loop is mine:
                await held.session.close()
            else:
                held.end(loop)

    def _take(self) -> list[tuple[asyncio.AbstractEventLoop, _Held]]:
        with self._lock:
            taken, self._held = list(self._held.items()), {}
        return taken


class _Held:
    """A session of a loop, which is closed with the loop or when nobody holds it.

    That is the work of an async generator: a loop closes those that were begun on it,
    before it is closed itself, and also, from whatever thread, those that are let go.
    """

    __slots__ = ("_keeper", "session")

    def __init__(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_kept)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[trace],
            headers={"User-Agent": "bittensor-lightning"},
        )
        self._keeper = _keep(self.session)

    async def begin(self) -> None:
        """Have the loop know of it."""
        await anext(self._keeper)

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close it on its loop, if that still runs some time."""
        if loop.is_closed():
            self.forget()
            return
        # The loop's hook takes what is let go, and closes it.
        del self._keeper

    def forget(self) -> None:
        """Let a session go whose loop is closed, and say nothing about it."""
        connector = self.session.connector
        self.session.detach()
        if connector is not None:
            # What it returns wants to be awaited, though there is nothing to wait for.
            connector.close().__await__()


async def _keep(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await session.close()


async def _note_kept(_: Any, context: SimpleNamespace, __: Any) -> None:
    """Note that a request is sent on a connection that was kept."""
    context.trace_request_ctx[0] = True


def _check_type(response: aiohttp.ClientResponse) -> None:
    """Refuse an answer that does not say it is JSON, as of a proxy in between."""
    kind = response.content_type
    if kind == "application/json" or kind.endswith("+json"):
        return
    message = f"the answer is {kind}, not JSON"
    if response.ok:
        # Its status would be taken for the axon's, and so for a success.
        raise ValueError(message)
    raise aiohttp.ContentTypeError(
        response.request_info,
        response.history,
        status=response.status,
        message=message,
        headers=response.headers,
    )


def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a compressed body as it was, up to the limit."""
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise aiohttp.ClientPayloadError(f"{encoding} was not asked for")
    try:
        decoder = zlib.decompressobj(bits)
        result = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise aiohttp.ClientPayloadError(f"not {encoding}: {error}") from None
    if len(result) > limit:
        raise _too_large(limit)
    if not decoder.eof:
        raise aiohttp.ClientPayloadError(f"the {encoding} is cut short")
    return result


def _too_large(limit: int) -> aiohttp.ClientPayloadError:
    return aiohttp.ClientPayloadError(f"the answer has more than {limit} bytes")


def _not_serving(target: Any) -> aiohttp.ClientConnectorError:
    key: Any = SimpleNamespace(host=str(target.ip), port=target.port, ssl=True)
    error = OSError(errno.ECONNREFUSED, "this axon does not serve")
    return aiohttp.ClientConnectorError(key, error)


def _hexadecimal(signature: Any) -> str:
    """Return a signature as the protocol writes it."""
    if isinstance(signature, str):
        return signature if signature.startswith("0x") else f"0x{signature}"
    try:
        return f"0x{bytes(signature).hex()}"
    except (TypeError, ValueError) as error:
        kind = type(signature).__name__
        raise SigningError(f"the keypair signed with {kind}, not bytes") from error
