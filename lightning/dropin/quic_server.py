"""An axon's server on QUIC: from a request's data to a synapse, and back.

A request whose functions are all plain is answered by the thread that received it: no
other has to be woken. What is async, or gives a stream, is handed to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lightning._core.wire.messages import (
    encode_stream_chunk,
    encode_stream_end,
    encode_synapse_response,
)
from lightning._core.wire.packer import packb
from lightning.answers import fail
from lightning.binding import Handler, HandlerKind, Tally
from lightning.dropin.codec import RESERVED, carefully, plan_of, terminal_of
from lightning.dropin.dispatch import (
    SUCCESS,
    Outcome,
    as_priority,
    authentic,
    not_verified,
    refuse_blacklisted,
    too_late,
)
from lightning.dropin.http_headers import PROTOCOL_VERSION
from lightning.handlers import (
    ERROR_BUSY,
    ERROR_INVALID_REQUEST,
    ERROR_TIMEOUT,
    ERROR_UNKNOWN_SYNAPSE,
    HandlerTable,
)
from lightning.server import AsyncLightningServer
from lightning.work import Ticket, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning._core.io.links import ServerExchange
    from lightning._core.io.transport import Connection
    from lightning.config import LightningServerConfig
    from lightning.dropin.dispatch import Dispatch, Refusal, Route, Step

__all__ = ["QuicServer"]

# What a plain client is told, by the status; of others it is told the message.
PLAIN_ERRORS: Final = {
    400: ERROR_INVALID_REQUEST,
    404: ERROR_UNKNOWN_SYNAPSE,
    408: ERROR_TIMEOUT,
    503: ERROR_BUSY,
}
MARK_SIZE: Final = 8
EVENT_STREAM: Final = "text/event-stream"
# What a request may say of its sender.
SENT: Final = (("uuid", str), ("nonce", int), ("version", int))
SENDER_NAMES: Final = frozenset({"ip", "port", "hotkey", "uuid", "nonce", "version"})
OWN_NAMES: Final = SENDER_NAMES | {"status_code"}
# Fields of a synapse that go into the headers of a stream.
HEADER_FIELDS: Final = ("name", "timeout", "total_size", "header_size")


class QuicServer(AsyncLightningServer):
    """Answers requests by the functions of an axon.

    Args:
        axon: Says who and where it is: ``uuid``, ``ip`` and ``external_port``.
        dispatch: Runs the functions.
        hotkey: SS58 address of the miner.
        host: To listen on.
        port: UDP port.
        signer: Signs the logins.
        config: The server's settings.
    """

    def __init__(
        self,
        axon: Any,
        dispatch: Dispatch,
        hotkey: str,
        host: str,
        port: int,
        *,
        signer: object,
        config: LightningServerConfig,
    ) -> None:
        super().__init__(hotkey, host, port, signer=signer, config=config)
        self._axon = axon
        self._dispatch = dispatch
        self._limit = float(config.handler_timeout_secs)
        self._handlers = _Handlers(self)
        # Fields of terminals, by their class, of which there are two.
        self._blanks: dict[type, tuple[dict[str, Any], dict[str, Any]]] = {}

    async def start(self) -> None:
        """Do as `AsyncLightningServer.start`."""
        self.loop = asyncio.get_running_loop()
        self._blanks.clear()
        await super().start()
        self._answers.mend = carefully

    def _answer(
        self,
        connection: Connection,
        exchange: ServerExchange,
        handler: Handler,
        data: dict[str, Any],
        context: Any,
    ) -> None:
        """Have a request answered; the base class has looked at who sent it."""
        route = self._dispatch.route(handler.name)
        if route is None or not isinstance(handler, _Direct):
            self._tell_unknown(exchange, handler, data)
            return
        session = self._table.session(connection)
        # It may have ended while the request waited.
        hotkey = "" if session is None else session.hotkey
        caller = _Caller(connection, exchange, handler, hotkey)
        if handler.streams:
            self._call(self._begin, connection, exchange, handler.stream, data, caller)
        elif route.is_plain:
            work = _Request(self, caller, route, data)
            self._answers.running.setdefault(
                exchange, (handler, time.monotonic() + self._limit)
            )
            # What a function sets in the context is not for the next one to see.
            self._answers._variables.copy().run(work.answer)
        else:
            self._call(self._answers.in_task, exchange, handler.task, data, caller)

    def _tell_unknown(
        self, exchange: ServerExchange, handler: Handler, data: dict[str, Any]
    ) -> None:
        outcome = self._dispatch.unknown(handler.name)
        self._refused[ERROR_UNKNOWN_SYNAPSE] += 1
        meta = meta_of(data)
        if (mark := mark_of(meta)) is not None:
            limit = self.config.max_frame_payload_bytes
            exchange.respond(
                encode_stream_chunk(mark + _packed(outcome, ()), limit), False
            )
            exchange.respond(encode_stream_chunk(mark + _packed(outcome), limit), False)
            exchange.respond(encode_stream_end(True, None))
        else:
            self.tell(exchange, handler, outcome, meta)
        self._answers.drop(exchange)

    # What both ways share.

    def build(
        self, route: Route, data: dict[str, Any], meta: Any, caller: _Caller
    ) -> tuple[Any, float]:
        """Make the synapse of a request, and say how many seconds its caller waits.

        Args:
            route: How it is answered.
            data: Of the request.
            meta: What is in it about the call, or None.
            caller: Who asks.

        Raises:
            SynapseParsingError: The data do not fit the class.
        """
        plan, timeout = route.plan, self._limit
        kind = plan.terminal_class
        blank, own = self._blanks.get(kind) or self._blank(kind)
        ip, port = caller.connection.address
        sender = {**blank, "ip": ip, "port": port, "hotkey": caller.hotkey}
        wanted: Any = None
        if meta is not None:
            for name, expected in SENT:
                value = meta.get(name)
                if type(value) is expected:
                    sender[name] = value
            wanted = meta.get("timeout")
        synapse, _ = plan.build(
            data,
            terminal_of(kind, sender, SENDER_NAMES),
            terminal_of(kind, {**own, "nonce": time.time_ns()}, OWN_NAMES),
        )
        if type(wanted) in (float, int) and wanted > 0:
            synapse.__dict__["timeout"] = wanted = float(wanted)
            if wanted < timeout:
                timeout = wanted
        return synapse, timeout

    def _blank(self, kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make the fields of terminals of a class: all None, and our own."""
        blank: dict[str, Any] = dict.fromkeys(kind.model_fields)  # type: ignore[attr-defined]  # A pydantic model.
        axon = self._axon
        own = {
            **blank,
            "status_code": 100,
            "ip": axon.ip,
            "port": axon.external_port or self.port,
            "version": PROTOCOL_VERSION,
            "uuid": axon.uuid,
            "hotkey": self.miner_hotkey,
        }
        self._blanks[kind] = blank, own
        return blank, own

    def tell(
        self,
        exchange: ServerExchange,
        handler: Handler,
        outcome: Outcome,
        meta: dict[str, Any] | None,
    ) -> None:
        """Tell a caller of something else than success."""
        code, message = outcome.status_code, outcome.status_message
        if code == 408:
            handler.tally.timed_out += 1
        elif code == 503:
            handler.tally.busy += 1
        else:
            handler.tally.failed += 1
        if meta is None:
            fail(exchange, PLAIN_ERRORS.get(code, message), handler)
            return
        told = {RESERVED: {**_status_of(outcome), "partial": True}}
        limit = self.config.max_frame_payload_bytes
        try:
            frame = encode_synapse_response(True, told, int(time.time()), None, limit)
        except ValueError:
            # A message that UTF-8 cannot say, or of many megabytes.
            told[RESERVED]["status_message"] = ascii(message[:1000])
            frame = encode_synapse_response(True, told, int(time.time()), None, limit)
        exchange.respond(frame)

    # On the event loop.

    async def answer_on_loop(self, data: dict[str, Any], caller: Any) -> dict[str, Any]:
        """Run a request's functions, some of which are async."""
        exchange, handler = caller.exchange, caller.handler
        dispatch = self._dispatch
        route = dispatch.route(handler.name)
        if route is None:
            self._tell_unknown(exchange, handler, data)
            return {}
        meta = meta_of(data)
        try:
            synapse, timeout = self.build(route, data, meta, caller)
        except Exception as error:
            outcome = dispatch.malformed(route.name, caller.hotkey, error)
        else:
            outcome = await dispatch.run(
                synapse,
                handler.name,
                is_authenticated=True,
                timeout=timeout,
                may_stream=False,
            )
            if outcome.status_code == 200:
                return route.plan.answer_data(
                    outcome.synapse,
                    data,
                    None if meta is None else _status_of(outcome),
                )
        self.tell(exchange, handler, outcome, meta)
        # It has its answer; what is returned is heard by nobody.
        return {}

    async def stream_on_loop(
        self, data: dict[str, Any], caller: Any, sender: Any
    ) -> None:
        """Run a request's functions, and the streamer that they return."""
        exchange, handler = caller.exchange, caller.handler
        dispatch = self._dispatch
        began = time.perf_counter()
        route = dispatch.route(handler.name)
        meta, timeout = meta_of(data), self._limit
        if route is None:
            outcome = dispatch.unknown(handler.name)
        else:
            try:
                synapse, timeout = self.build(route, data, meta, caller)
            except Exception as error:
                outcome = dispatch.malformed(route.name, caller.hotkey, error)
            else:
                outcome = await dispatch.run(
                    synapse, handler.name, is_authenticated=True, timeout=timeout
                )
        mark = mark_of(meta)
        stream = _Stream(sender, mark, outcome)
        if outcome.response is None and outcome.status_code != 200 and mark is None:
            exchange.respond(
                encode_stream_end(
                    False,
                    PLAIN_ERRORS.get(outcome.status_code, outcome.status_message),
                )
            )
            return
        limit = asyncio.timeout(timeout - (time.perf_counter() - began))
        try:
            async with limit:
                await self._produce(stream, outcome)
        except Exception as error:
            if mark is None:
                raise
            if limit.expired() and isinstance(error, TimeoutError):
                outcome = dispatch.timed_out(outcome.synapse, timeout, began)
            else:
                outcome = dispatch.failure(outcome.synapse, error, began, handler.name)
        outcome.process_time = time.perf_counter() - began
        await stream.end(outcome)

    async def _produce(self, stream: _Stream, outcome: Outcome) -> None:
        if outcome.response is not None:
            await outcome.response.token_streamer(stream.send)
        elif outcome.status_code == 200:
            # A whole synapse, where pieces were asked for: as HTTP would say it.
            await stream.write(outcome.synapse.model_dump_json().encode())


class _Caller(NamedTuple):
    """Who asks, and how to answer."""

    connection: Connection
    exchange: ServerExchange
    handler: _Direct
    hotkey: str


class _Own(Handler):
    """A handler that is called as it is, by no signature."""

    __slots__ = ()

    def __init__(
        self,
        name: str,
        kind: HandlerKind,
        invoke: Callable[[dict[str, Any], Any, Any], Any] | None,
        tally: Tally,
        *,
        streams: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.function = None
        self.invoke = invoke  # type: ignore[assignment]  # None is never called.
        self.streams = streams
        self.takes_context = False
        self.takes_sender = streams
        self.typical_seconds = 0.002
        self.tally = tally


class _Direct(_Own):
    """Stands for a synapse's name: how it is answered is decided at each request."""

    __slots__ = ("stream", "task")

    def __init__(self, name: str, server: QuicServer, *, streams: bool) -> None:
        tally = Tally()
        super().__init__(name, HandlerKind.ASYNC, None, tally, streams=streams)

        def run(data: dict[str, Any], caller: Any, _sender: Any) -> Any:
            return server.answer_on_loop(data, caller)

        self.task = _Own(name, HandlerKind.ASYNC, run, tally)
        self.stream = _Own(
            name,
            HandlerKind.STREAM_ASYNC,
            server.stream_on_loop,
            tally,
            streams=True,
        )


class _Handlers(HandlerTable):
    """Finds a handler for every name; some only say that there is no such synapse."""

    __slots__ = ("_direct", "_server")

    def __init__(self, server: QuicServer) -> None:
        super().__init__()
        self._server = server
        self._direct: dict[str, tuple[Any, _Direct]] = {}

    def find(self, name: str) -> Handler:
        kind = self._server._dispatch.synapse_class(name)
        known = self._direct.get(name)
        if known is not None and known[0] is kind:
            return known[1]
        if kind is None:
            self._direct.pop(name, None)
            return _Own(name, HandlerKind.ASYNC, None, Tally())
        streams = plan_of(kind).is_streaming
        handler = _Direct(name, self._server, streams=streams)
        handler.tally = handler.task.tally = handler.stream.tally = (
            self.tallies.setdefault(name, handler.tally)
        )
        self._direct[name] = kind, handler
        return handler


class _Request:
    """One request whose functions are all plain."""

    __slots__ = (
        "_caller",
        "_data",
        "_deadline",
        "_meta",
        "_route",
        "_server",
        "_synapse",
    )

    def __init__(
        self, server: QuicServer, caller: _Caller, route: Route, data: dict[str, Any]
    ) -> None:
        self._server = server
        self._caller = caller
        self._route = route
        self._data = data
        self._meta = meta_of(data)
        self._synapse: Any = None
        self._deadline = 0.0

    def answer(self) -> None:
        """Answer it in this thread, or have it wait for its turn."""
        server, route = self._server, self._route
        dispatch = server._dispatch
        began = time.perf_counter()
        try:
            self._synapse, timeout = server.build(
                route, self._data, self._meta, self._caller
            )
        except Exception as error:
            hotkey = self._caller.hotkey
            self._end(dispatch.malformed(route.name, hotkey, error))
            return
        try:
            priority = check(route, self._synapse)
        except _NeedsLoop:
            self._hand_over()
            return
        except BaseException as error:
            self._end(dispatch.failure(self._synapse, error, began, route.name))
            return
        gate = dispatch.gate
        if route.is_ping:
            self.execute()
        elif gate.begin():
            dispatch.work(self)
        else:
            self._deadline = began + timeout
            self._wait(priority)

    def _wait(self, priority: float) -> None:
        server, exchange = self._server, self._caller.exchange
        dispatch = server._dispatch
        ticket = Ticket(self._caller.hotkey, priority, self)
        exchange.on_cancel = partial(self._withdraw, ticket)
        verdict, displaced = dispatch.gate.admit(ticket, time.monotonic())
        if verdict is Verdict.RUN:
            dispatch.work(self, ticket)
        elif verdict is Verdict.BUSY:
            self.refuse(dispatch.refusal())
        elif displaced is not None:
            displaced.request.refuse(dispatch.refusal())
        if exchange.cancelled:
            # Perhaps before there was anything to withdraw.
            self._withdraw(ticket)

    def _withdraw(self, ticket: Ticket) -> None:
        if self._server._dispatch.gate.withdraw(ticket):
            self._server._answers.drop(self._caller.exchange)

    def refuse(self, refusal: Refusal) -> None:
        """Answer that there is no room."""
        self._caller.exchange.on_cancel = None
        began = time.perf_counter()
        self._end(
            self._server._dispatch.failure(
                self._synapse, refusal, began, self._route.name
            )
        )

    def execute(self) -> None:
        """Run the forward function and answer; it does not raise."""
        server, route, synapse = self._server, self._route, self._synapse
        exchange, handler = self._caller.exchange, self._caller.handler
        dispatch, answers = server._dispatch, server._answers
        began = time.perf_counter()
        if exchange.cancelled:
            answers.drop(exchange)
            return
        if self._deadline and began > self._deadline:
            self._end(dispatch.timed_out(synapse, synapse.timeout, began))
            return
        if (threads := server._threads) is not None:
            # Another thread receives meanwhile, if this may take long.
            threads.may_run(handler)
        try:
            try:
                result = route.forward.function(synapse)
                is_same = type(result) is type(synapse)
                if not is_same and isinstance(result, Awaitable):
                    result = self._await(result)
            finally:
                elapsed = time.perf_counter() - began
                handler.note_run(elapsed)
            told = message = None
            end = result.axon if is_same else None
            # What mostly happens: nothing was set, or success.
            if end is not None and end.status_code in (100, None, 200):
                message = end.status_message or SUCCESS
            if message is None:
                outcome = dispatch.outcome(synapse, result, began, may_stream=False)
                if outcome.status_code != 200:
                    self._end(outcome)
                    return
                result, message = outcome.synapse, outcome.status_message
            if self._meta is not None:
                told = {
                    "status_code": 200,
                    "status_message": message,
                    "process_time": elapsed,
                }
            answer = route.plan.answer_data(result, self._data, told)
        except BaseException as error:
            self._end(dispatch.failure(synapse, error, began, route.name))
        else:
            answers._respond(exchange, handler, answer)
            answers.drop(exchange)

    def _await(self, result: Any) -> Any:
        """Wait for what a function gave that did not look async."""
        self._route.forward.is_async, self._route.is_plain = True, False

        async def wait() -> Any:
            return await result

        loop = self._server.loop
        return asyncio.run_coroutine_threadsafe(wait(), loop).result(
            self._synapse.timeout
        )

    def _hand_over(self) -> None:
        """Have the loop answer after all."""
        server, caller = self._server, self._caller
        if self._meta is not None:
            # It was taken out.
            self._data[RESERVED] = self._meta
        server._call(
            server._answers.in_task,
            caller.exchange,
            caller.handler.task,
            self._data,
            caller,
        )

    def _end(self, outcome: Outcome) -> None:
        caller = self._caller
        self._server.tell(caller.exchange, caller.handler, outcome, self._meta)
        self._server._answers.drop(caller.exchange)


class _NeedsLoop(Exception):
    """A function that did not look async gave an awaitable."""


def check(route: Route, synapse: Any) -> float:
    """Run what comes before a forward function, all of it plain; return the priority.

    Raises:
        Refusal: It is refused.
    """
    if (step := route.blacklist) is not None:
        result = step.function(synapse)
        if type(result) is not tuple or result[0] is not False:
            _need_no_loop(route, step, result)
            refuse_blacklisted(result)
    if (step := route.verify) is not None:
        token = authentic.set(synapse)
        try:
            _need_no_loop(route, step, step.function(synapse))
        except _NeedsLoop:
            raise
        except Exception as error:
            raise not_verified(error) from error
        finally:
            authentic.reset(token)
    if (step := route.priority) is None:
        return 0.0
    try:
        result = step.function(synapse)
    except TimeoutError as error:
        raise too_late(synapse) from error
    if type(result) is float:
        return 0.0 if result != result else result
    _need_no_loop(route, step, result)
    return as_priority(result)


def _need_no_loop(route: Route, step: Step, result: Any) -> None:
    """Have the loop begin anew, if a function was async after all."""
    if isinstance(result, Awaitable):
        step.is_async, route.is_plain = True, False
        close = getattr(result, "close", None)
        if close is not None:
            close()
        raise _NeedsLoop


class _Stream:
    """Sends what a streamer says, in the form of ASGI, as chunks.

    Args:
        sender: Takes chunks.
        mark: Begins the chunks that say the status; None if nobody looks for them.
        outcome: The status, until there is another.
    """

    __slots__ = ("_began", "_headers", "_is_over", "_mark", "_outcome", "_sender")

    def __init__(self, sender: Any, mark: bytes | None, outcome: Outcome) -> None:
        self._sender = sender
        self._mark = mark
        self._outcome = outcome
        self._began = False
        self._is_over = False

    async def send(self, message: Any) -> None:
        """Take ``{"type": "http.response.body", "body": bytes, "more_body": bool}``.

        Raises:
            RuntimeError: It is a message of another type.
        """
        kind = message.get("type")
        if kind == "http.response.start":
            return  # Has been said.
        if kind != "http.response.body":
            raise RuntimeError(f"unexpected message {kind!r} for a streaming response")
        if self._is_over:
            return
        self._is_over = not message.get("more_body", False)
        if body := message.get("body", b""):
            await self.write(body)

    async def write(self, body: bytes) -> None:
        if not self._began:
            await self._begin(self._outcome)
        await self._sender.send(body)

    async def end(self, outcome: Outcome) -> None:
        """Say the last status."""
        if self._mark is None:
            return
        if not self._began:
            await self._begin(outcome)
        await self._sender.send(self._mark + _packed(outcome))

    async def _begin(self, outcome: Outcome) -> None:
        self._began = True
        if self._mark is not None:
            head = _packed(outcome, headers_of(outcome))
            await self._sender.send(self._mark + head)


def meta_of(data: Any) -> dict[str, Any] | None:
    """Return what a request says about the call, None if its client knows no such."""
    meta = data.get(RESERVED)
    return meta if type(meta) is dict else None


def mark_of(meta: dict[str, Any] | None) -> bytes | None:
    """Return the mark of a request for a stream, None if it has none."""
    mark = None if meta is None else meta.get("mark")
    return mark if type(mark) is bytes and len(mark) == MARK_SIZE else None


def headers_of(outcome: Outcome) -> list[list[bytes]]:
    """Return the headers that a stream has over HTTP."""
    synapse = outcome.synapse
    headers = {}
    response = outcome.response
    if response is not None:
        headers["content-type"] = getattr(response, "media_type", None) or EVENT_STREAM
        headers.update(getattr(response, "headers", None) or {})
    for name in HEADER_FIELDS:
        headers[name] = getattr(synapse, name, None)
    for end in ("axon", "dendrite"):
        each = getattr(synapse, end, None)
        for name, value in (vars(each) if each is not None else {}).items():
            headers[f"bt_header_{end}_{name}"] = value
    return [
        [name.encode("utf-8", "replace"), str(value).encode("utf-8", "replace")]
        for name, value in headers.items()
        if value is not None
    ]


def _status_of(outcome: Outcome) -> dict[str, Any]:
    return {
        "status_code": outcome.status_code,
        "status_message": outcome.status_message,
        "process_time": outcome.process_time,
    }


def _packed(outcome: Outcome, headers: Any = None) -> bytes:
    told = _status_of(outcome)
    if headers is not None:
        told["headers"] = list(headers)
    try:
        return packb(told)
    except ValueError:
        # A message that UTF-8 cannot say.
        told["status_message"] = ascii(outcome.status_message)
        return packb(told)
