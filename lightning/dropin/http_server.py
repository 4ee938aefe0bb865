"""The axon's end of bittensor's HTTP protocol, on aiohttp.

For one request, in this order: its headers, its signature, its body, the body's hash,
then the axon's functions by `Dispatch`. So a request that is not signed by whom it says
costs no memory for its body, and the blacklist sees only hotkeys that are proven; but
where a verify function was attached, that decides, and no signature is looked at here.

Import this module only where HTTP is used: it needs the extra ``http``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lightning.dropin.http_auth import RequestGate
from lightning.dropin.http_headers import (
    PROTOCOL_VERSION,
    RequestHead,
    clean_headers,
    message_body,
    reply_body,
    reply_headers,
    signature_text,
    terminal_fields,
    without_private,
)
from lightning.errors import ConfigError, HandshakeError
from lightning.logs import Throttled
from lightning.ss58 import decode
from lightning.types import MAX_TIMEOUT

try:
    from aiohttp import web
except ImportError as missing:
    raise ImportError(
        "bittensor's HTTP needs aiohttp: pip install 'bittensor-lightning[http]'"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["HttpLimits", "HttpServer"]

log = Throttled(logging.getLogger("lightning.axon"))

JSON: Final = "application/json"
SERVER: Final = "lightning"
EVENT_STREAM: Final = "text/event-stream"
# Of a status with which HTTP forbids a body, or which it does not have.
_NO_BODY: Final = frozenset({204, 205, 304})
# A response's own headers that would contradict how it is sent.
_HOP: Final = frozenset(
    {"content-length", "content-type", "transfer-encoding", "connection"}
)
# Seconds between two looks at the connections.
_WATCH_INTERVAL: Final = 1.0
# Seconds in which the rest of a refused request's body is read and dropped.
_LINGER: Final = 5.0


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a client of the HTTP server may use up."""

    max_connections: int = 1024
    """Connections at once. For one more, the one that is idle longest is closed, or it
    is refused if none is."""

    max_connections_per_ip: int = 256
    """The same, from one IPv4 address or one /64 of IPv6."""

    max_body_bytes: int = 64 << 20
    """Bytes of a request's body; more is answered by 413."""

    max_bodies_bytes: int = 512 << 20
    """Bytes of all bodies that are being received; more is answered by 503."""

    header_timeout: float = 10.0
    """Seconds from the first byte of a request, or from the beginning of the
    connection, to the last of its headers."""

    body_timeout: float = 60.0
    """Seconds for a body; more is answered by 408."""

    write_timeout: float = 60.0
    """Seconds that a client may read nothing while there is something to read."""

    keep_alive: float = 75.0
    """Seconds that an idle connection is kept."""

    def __post_init__(self) -> None:
        """Check that each is positive."""
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive")


class _Refusal(Exception):
    """Ends a request before the axon's functions have seen it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Connection(web.RequestHandler):
    """A connection that is watched.

    Attributes:
        source: Whose limit it counts for; None if it was not let in.
        head_since: Since when a request's headers are due; None if none are.
        idle_since: Since when nothing is going on; None while something is.
        unread: Bytes that the client did not read, when it last read some.
        unread_since: When that was.
    """

    __slots__ = (
        "_owner",
        "head_since",
        "idle_since",
        "source",
        "unread",
        "unread_since",
    )

    def __init__(self, owner: HttpServer, manager: web.Server, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._owner = owner
        self.source: Any = None
        self.head_since: float | None = None
        self.idle_since: float | None = None
        self.unread = -1
        self.unread_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.head_since = self.idle_since = self._loop.time()
        if self._owner.admit(self, transport):
            super().connection_made(transport)
        else:
            transport.abort()  # type: ignore[attr-defined]  # A TCP transport has it.

    def connection_lost(self, exc: BaseException | None) -> None:
        self._owner.lose(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if data and self.idle_since is not None and self.head_since is None:
            self.head_since = self._loop.time()
        super().data_received(data)

    def begin(self) -> None:
        """Note that a request is being answered."""
        self.head_since = self.idle_since = None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: Any
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, and note that the connection is idle then."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.head_since = None
            self.idle_since = self._loop.time()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP."""
        log.debug("what came from %s is no HTTP: %.200r", request.remote, exc)
        response = web.Response(
            status=status,
            body=message_body("Improperly formatted request."),
            headers={"Server": SERVER, "Content-Type": JSON},
        )
        response.force_close()
        return response

    def is_overdue(self, now: float, limits: HttpLimits) -> bool:
        """Say if the client has used up its time."""
        if self.head_since is not None:
            return now - self.head_since > limits.header_timeout
        if not self.writing_paused or self.transport is None:
            self.unread = -1
            return False
        unread = self.transport.get_write_buffer_size()
        if unread != self.unread:
            self.unread, self.unread_since = unread, now
            return False
        return now - self.unread_since > limits.write_timeout

    def abort(self) -> None:
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abort()


class HttpServer:
    """Serves an axon's synapses to bittensor 10's dendrites.

    Args:
        dispatch: What is done with a request.
        axon: Whose hotkey and uuid are used: has ``wallet.hotkey`` and ``uuid``.
        gate: Which requests are authentic; None to make one.
        limits: What clients may use up.
    """

    def __init__(
        self,
        dispatch: Any,
        axon: Any,
        *,
        gate: RequestGate | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._axon = axon
        self._limits = limits or HttpLimits()
        self._hotkey = axon.wallet.hotkey.ss58_address
        self.gate = gate or RequestGate(self._hotkey)
        self._connections: set[_Connection] = set()
        self._sources: Counter[Any] = Counter()
        self._answering: set[asyncio.Task[Any]] = set()
        self._receiving = 0
        self._server: asyncio.Server | None = None
        self._manager: web.Server | None = None
        self._watch: asyncio.TimerHandle | None = None

    # Starting and stopping.

    @property
    def port(self) -> int:
        """The TCP port, 0 while it does not serve."""
        if self._server is None or not self._server.sockets:
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str | None, port: int) -> None:
        """Serve on the running loop; it listens on return.

        Args:
            host: Address to listen at; None for all.
            port: TCP port; 0 for any.

        Raises:
            OSError: The port is taken, or the address is not ours.
        """
        loop = asyncio.get_running_loop()
        self._manager = manager = web.Server(self._handle, handler_cancellation=True)
        settings: dict[str, Any] = {
            "loop": loop,
            "keepalive_timeout": self._limits.keep_alive,
            "access_log": None,
            "lingering_time": _LINGER,
            "auto_decompress": False,
        }
        self._server = await loop.create_server(
            lambda: _Connection(self, manager, **settings), host, port, backlog=1024
        )

    async def stop(self, drain: float = 5.0) -> None:
        """Stop serving.

        Args:
            drain: Seconds in which requests that are being answered may end; then they
                are cancelled.
        """
        server, self._server = self._server, None
        manager, self._manager = self._manager, None
        if server is None or manager is None:
            return
        server.close()
        manager.pre_shutdown()
        if self._answering and drain > 0:
            await asyncio.wait(self._answering, timeout=drain)
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering, timeout=1.0)
        for connection in list(self._connections):
            connection.force_close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        # Those whose last words are on their way have a moment for them.
        for _ in range(100):
            if not self._connections:
                break
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()
        log.flush()

    # Connections.

    def admit(self, connection: _Connection, transport: asyncio.BaseTransport) -> bool:
        """Let a connection in if there is room, or say that there is none."""
        source = _source_of(transport.get_extra_info("peername"))
        limits = self._limits
        if self._sources[source] >= limits.max_connections_per_ip:
            room = self._make_room(source)
        else:
            room = len(self._connections) < limits.max_connections or self._make_room()
        if not room:
            log.warning("no room for another HTTP connection", burst=1)
            return False
        connection.source = source
        self._connections.add(connection)
        self._sources[source] += 1
        if self._watch is None:
            self._watch = connection._loop.call_later(_WATCH_INTERVAL, self._look)
        return True

    def lose(self, connection: _Connection) -> None:
        """Forget a connection that is gone."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._sources[connection.source] -= 1
        if not self._sources[connection.source]:
            del self._sources[connection.source]

    def _make_room(self, source: Any = None) -> bool:
        """Close the connection that is idle longest, and say if there was one."""
        idle = [
            each
            for each in self._connections
            if each.idle_since is not None and source in (None, each.source)
        ]
        if not idle:
            return False
        oldest = min(idle, key=lambda each: each.idle_since or 0.0)
        oldest.abort()
        # It is told that it is lost a moment later, and must not be counted until then.
        self.lose(oldest)
        return True

    def _look(self) -> None:
        """Cut the connections of clients that have used up their time."""
        self._watch = None
        if not self._connections:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections):
            if connection.is_overdue(now, self._limits):
                connection.abort()
        self._watch = loop.call_later(_WATCH_INTERVAL, self._look)

    # One request.

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        connection: Any = request.protocol
        connection.begin()
        task: Any = asyncio.current_task()
        self._answering.add(task)
        try:
            return await _Exchange(self, request).answer()
        finally:
            self._answering.discard(task)

    async def _read(self, request: web.BaseRequest) -> bytes:
        """Read the body of a request.

        Raises:
            _Refusal: It is too large or too slow, or there is no room for it.
        """
        limits, length = self._limits, request.content_length or 0
        if length > limits.max_body_bytes:
            raise _Refusal(413, _too_large(limits))
        content = request.content
        if length and content.is_eof():
            # All of it has come with the headers.
            return content.read_nowait()
        reserved = self._reserve(length)
        chunks, size = [], 0
        try:
            async with asyncio.timeout(limits.body_timeout):
                while chunk := await content.readany():
                    size += len(chunk)
                    if size > limits.max_body_bytes:
                        raise _Refusal(413, _too_large(limits))
                    if size > reserved:
                        reserved += self._reserve(size - reserved)
                    chunks.append(chunk)
        except TimeoutError:
            message = f"Request timeout after: {limits.body_timeout}s"
            raise _Refusal(408, message) from None
        finally:
            self._receiving -= reserved
        return b"".join(chunks)

    def _reserve(self, size: int) -> int:
        """Count what is about to be received; it is given back by the caller."""
        if size > self._limits.max_bodies_bytes - self._receiving:
            log.warning("no room for the body of another HTTP request", burst=1)
            raise _Refusal(503, "Service busy: too many requests are being received")
        self._receiving += size
        return size


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_axon", "_began", "_head", "_name", "_peer", "_request", "_server")

    def __init__(self, server: HttpServer, request: web.BaseRequest) -> None:
        self._server = server
        self._request = request
        self._began = time.perf_counter()
        self._head = RequestHead({"timeout": "12.0"})
        self._name = "Synapse"
        self._peer = _address_of(request.transport)
        self._axon: dict[str, Any] = {}

    async def answer(self) -> web.StreamResponse:
        """Do what the request asks; only a cancellation is raised."""
        try:
            synapse, is_proven = await self._synapse()
            timeout = self._head.timeout
            outcome = await self._server._dispatch.run(
                synapse,
                self._name,
                is_authenticated=is_proven,
                timeout=min(timeout, MAX_TIMEOUT) if timeout and timeout > 0 else None,
            )
            return await self._reply(outcome, is_proven)
        except _Refusal as refusal:
            return self._refuse(refusal.code, refusal.message)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            number = uuid.uuid4()
            log.error(
                "answering %s by HTTP failed, told as #%s",
                self._name,
                number,
                exc_info=error,
            )
            return self._refuse(500, f"Internal Server Error #{number}")

    # The request.

    async def _synapse(self) -> tuple[Any, bool]:
        """Return the synapse of the request, and whether its sender is proven.

        Raises:
            _Refusal: There is none.
        """
        request, dispatch = self._request, self._server._dispatch
        name = request.path[1:]
        synapse_class = dispatch.synapse_class(name)
        if synapse_class is None or request.method != "POST":
            unknown = dispatch.unknown(name[:256])
            raise _Refusal(unknown.status_code, unknown.status_message)
        try:
            self._head = head = RequestHead(request.headers)
        except ValueError as error:
            raise self._bad(name, error) from None
        self._name = name
        self._introduce(head)
        is_proven = not dispatch.verifies_itself(name)
        if is_proven:
            self._check_signature(head)
        body = await self._server._read(request)
        try:
            synapse = head.build(synapse_class, json.loads(body))
        except (ValueError, TypeError, RecursionError) as error:
            raise self._bad(name, error) from None
        except Exception as error:
            # A validator of the class may raise anything.
            raise self._bad(name, error) from error
        return synapse, is_proven

    def _introduce(self, head: RequestHead) -> None:
        """Note where the request came from, and who we are.

        We sign only what names a hotkey and us: nobody is to have us sign text that
        could be taken for a request of ours.
        """
        server = self._server
        head.dendrite["ip"], head.dendrite["port"] = self._peer
        head.axon |= {
            "version": PROTOCOL_VERSION,
            "uuid": str(server._axon.uuid),
            "nonce": time.time_ns(),
            "status_code": 100,
        }

    def _check_signature(self, head: RequestHead) -> None:
        """Check who sent the request, and that it is new.

        Raises:
            _Refusal: By 401.
        """
        sender = head.dendrite
        try:
            self._server.gate.check(
                hotkey=sender.get("hotkey"),
                nonce=sender.get("nonce"),
                uuid=sender.get("uuid"),
                body_hash=head.body_hash,
                signature=sender.get("signature"),
                timeout=head.timeout,
            )
        except HandshakeError as error:
            message = f"Not Verified with error: {error.detail}"
            raise _Refusal(401, message) from None

    def _bad(self, name: str, error: Exception) -> _Refusal:
        """Return the refusal of a request that is no such synapse."""
        number = uuid.uuid4()
        log.debug(
            "what %s sent is no %s, told as #%s: %.500s",
            self._request.remote,
            name,
            number,
            error,
        )
        return _Refusal(500, f"Internal Server Error #{number}")

    # The answer.

    async def _reply(self, outcome: Any, is_proven: bool) -> web.StreamResponse:
        """Return the answer for what became of a request."""
        code = outcome.status_code
        if is_proven and code == 403 and outcome.status_message.startswith(_FORBIDDEN):
            # So hotkeys that are not welcome fill no memory.
            sender = self._head.dendrite
            self._server.gate.give_back(
                sender["hotkey"], sender["nonce"], sender.get("uuid")
            )
        if outcome.response is not None:
            return await self._stream(outcome)
        if not outcome.is_answer:
            return self._refuse(code, outcome.status_message, outcome.process_time)
        synapse = outcome.synapse
        dendrite, axon = self._terminals(outcome)
        if code == 200:
            body = reply_body(synapse, dendrite, axon)
        else:
            body = message_body(outcome.status_message)
        headers = self._headers(synapse, dendrite, axon, len(body), has_body=True)
        return web.Response(status=_http_status(code), body=body, headers=headers)

    def _terminals(self, outcome: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the terminals of an answer.

        The sender knows its address better than we do, so it gets back what it said.
        """
        dendrite = terminal_fields(outcome.synapse.dendrite)
        if (dendrite.get("ip"), dendrite.get("port")) == self._peer:
            dendrite["ip"], dendrite["port"] = self._head.claimed
        axon = without_private(terminal_fields(outcome.synapse.axon))
        axon["status_code"] = outcome.status_code
        axon["status_message"] = outcome.status_message
        axon["process_time"] = outcome.process_time
        return dendrite, axon

    def _refuse(
        self, code: int, message: str, process_time: float | None = None
    ) -> web.StreamResponse:
        """Return the answer of a request that did not succeed."""
        if process_time is None:
            process_time = time.perf_counter() - self._began
        dendrite, axon = self._head.dendrite, dict(self._head.axon)
        axon["status_code"] = code
        axon["status_message"] = message
        axon["process_time"] = process_time
        if "nonce" in axon:
            axon["signature"] = self._signature(dendrite.get("hotkey"), axon)
        body = message_body(message)
        headers = self._headers(None, dendrite, axon, len(body), has_body=True)
        return web.Response(status=_http_status(code), body=body, headers=headers)

    def _signature(self, hotkey: str | None, axon: dict[str, Any]) -> str | None:
        """Sign a refusal, if it is for somebody."""
        try:
            decode(hotkey or "")
        except HandshakeError:
            return None
        server = self._server
        if axon.get("hotkey") != server._hotkey:
            return None
        signature = server._axon.wallet.hotkey.sign(signature_text(hotkey, axon))
        return f"0x{bytes(signature).hex()}" if isinstance(signature, bytes) else None

    def _headers(
        self,
        synapse: Any,
        dendrite: dict[str, Any],
        axon: dict[str, Any],
        size: int,
        *,
        has_body: bool,
    ) -> dict[str, str]:
        head = self._head
        headers = reply_headers(
            name=self._name,
            timeout=head.timeout if synapse is None else synapse.timeout,
            body_hash=head.body_hash,
            dendrite=dendrite,
            axon=axon,
            size=size,
            has_body=has_body,
        )
        headers["Server"] = SERVER
        headers["Content-Type"] = JSON if has_body else EVENT_STREAM
        return headers

    async def _stream(self, outcome: Any) -> web.StreamResponse:
        """Send a streamed answer as it is made.

        Its status is sent with its first bytes. If it fails later, the connection is
        closed before the answer has its end, which no client takes for a success.
        """
        answer = outcome.response
        dendrite, axon = self._terminals(outcome)
        size = self._head.total_size or 0
        headers = self._headers(outcome.synapse, dendrite, axon, size, has_body=False)
        more = clean_headers(dict(getattr(answer, "headers", None) or {}))
        headers |= {k: v for k, v in more.items() if k.lower() not in _HOP}
        if media_type := getattr(answer, "media_type", None):
            headers["Content-Type"] = str(media_type)
        response = web.StreamResponse(status=200, headers=headers)
        send = _sender(response, self._request)
        try:
            await answer.token_streamer(send)
            if not response.prepared:
                await response.prepare(self._request)
            await response.write_eof()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            gone = self._request.transport is None
            if not (gone and isinstance(error, ConnectionError)):
                log.error("the stream of %s failed", self._name, exc_info=error)
            if not response.prepared:
                number = uuid.uuid4()
                return self._refuse(500, f"Internal Server Error #{number}")
            if not response._eof_sent and self._request.transport is not None:
                self._request.transport.close()
        return response


_FORBIDDEN: Final = "Forbidden. Key is blacklisted: "


def _sender(
    response: web.StreamResponse, request: web.BaseRequest
) -> Callable[[Any], Awaitable[None]]:
    """Return what a streamer is to call with each chunk, as ASGI has it."""
    has_ended = False

    async def send(event: Any) -> None:
        nonlocal has_ended
        if event["type"] != "http.response.body":
            raise ValueError(f"a streamer cannot send {event['type']!r}")
        body = event.get("body", b"")
        if has_ended:
            if body:
                raise RuntimeError("the stream has ended: more_body was false")
            return
        if not response.prepared:
            response.enable_chunked_encoding()
            await response.prepare(request)
        if body:
            await response.write(body)
        if not event.get("more_body", False):
            has_ended = True
            await response.write_eof()

    return send


def _http_status(code: int) -> int:
    """Return a status that HTTP has, and that goes with a body; headers say the true one."""
    return code if 200 <= code < 600 and code not in _NO_BODY else 500


def _too_large(limits: HttpLimits) -> str:
    return f"Request too large: the body may have {limits.max_body_bytes} bytes"


def _address_of(transport: asyncio.BaseTransport | None) -> tuple[str, int]:
    """Return where a client is; an IPv4 address in IPv6 as such."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    if not isinstance(peer, tuple):
        return "", 0
    return str(peer[0]).removeprefix("::ffff:"), int(peer[1])


def _source_of(peer: Any) -> Any:
    """Return whose limit an address counts for: it, or its /64."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (ValueError, TypeError, IndexError):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
        return address.packed[:8]
    return address.packed
