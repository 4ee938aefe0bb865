"""Handlers: what a server runs for a request, where it runs, and how it may fail.

A handler is a function of the request's ``data``, or an object whose ``handle`` takes
the synapse type and ``data``. It may take a ``HandlerContext`` as well: as its second
required positional parameter, or as a parameter named ``context`` or ``ctx``. This is
decided once, when the handler is registered; ``*args`` does not count, nor does a
parameter with a default and another name.

=============  =====================================  ==============================
Kind           Written as                             Runs
=============  =====================================  ==============================
INLINE         a function, ``inline=True``            on the event loop, which waits
THREAD         a function                             in a thread of the pool
ASYNC          ``async def``                          on the event loop
STREAM_SYNC    a generator, or a function returning   in one thread of the pool, from
               an iterable of chunks                  its first line to its last
STREAM_ASYNC   an async generator, or ``async def``   on the event loop
               returning an iterable of chunks
=============  =====================================  ==============================

Whatever a handler raises becomes a ``HandlerError`` with the cause attached, for the
server's log; ``SystemExit`` is no exception to this. Only a ``KeyboardInterrupt`` in
the main thread passes, since it is the user's. The peer is told no more than one of
the texts below.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import inspect
import logging
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    NamedTuple,
    NoReturn,
    ParamSpec,
    get_type_hints,
)

from lightning.errors import (
    ConfigError,
    HandlerError,
    SerializationError,
)
from lightning.typed import check_data_type, from_data, to_data

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lightning.pool import HandlerPool
    from lightning.types import PeerAddr

__all__ = [
    "Handler",
    "HandlerContext",
    "HandlerKind",
    "HandlerTable",
    "call",
    "run",
    "typed_async_handler",
    "typed_handler",
]

_P = ParamSpec("_P")

# The complete list of error texts on the wire; the peer's, and generic on purpose.
ERROR_INVALID_REQUEST: Final = "invalid request format"
ERROR_AUTHENTICATION: Final = "authentication failed"
ERROR_UNKNOWN_SYNAPSE: Final = "unrecognized synapse type"
ERROR_PROCESSING: Final = "request processing failed"
ERROR_TIMEOUT: Final = "handler timed out"
ERROR_SERIALIZATION: Final = "internal serialization error"
ERROR_STREAM: Final = "stream processing failed"
ERROR_STREAM_WRITE: Final = "stream write failed"

logger = logging.getLogger("lightning.handlers")


@dataclass(slots=True, eq=False)
class HandlerContext:
    """What a handler may know about its request besides ``data``."""

    hotkey: str
    """SS58 address of the caller, proven by its login."""

    address: PeerAddr
    """Where the request came from; a caller may move to another address."""

    synapse_type: str
    """Name by which the handler was called."""

    deadline: float
    """When the handler's time is over, in seconds of the monotonic clock."""

    connection_id: str
    """The login's identifier, the same for all requests on a connection."""

    def remaining(self, now: float | None = None) -> float:
        """Return the seconds left before the deadline, negative after it.

        Args:
            now: Seconds of the monotonic clock; None reads it.
        """
        return self.deadline - (time.monotonic() if now is None else now)


class HandlerKind(enum.Enum):
    """Where a handler runs and what it gives; see the module."""

    INLINE = "inline"
    THREAD = "thread"
    ASYNC = "async"
    STREAM_SYNC = "stream_sync"
    STREAM_ASYNC = "stream_async"


class Handler:
    """One registered handler.

    Attributes:
        name: The synapse type.
        kind: Where it runs.
        function: The function or object that was registered.
        takes_context: Whether it wants a ``HandlerContext``.
        streams: Whether it gives chunks.
    """

    __slots__ = (
        "function",
        "invoke",
        "kind",
        "name",
        "streams",
        "takes_context",
        "takes_sender",
    )

    def __init__(self, name: str, kind: HandlerKind, function: Any) -> None:
        self.name = name
        self.kind = kind
        self.function = function
        self.streams = kind in (HandlerKind.STREAM_SYNC, HandlerKind.STREAM_ASYNC)
        binding = _bind(name, function, streams=self.streams)
        self.invoke = binding.invoke
        self.takes_context = binding.uses(_CONTEXT)
        self.takes_sender = binding.uses(_SENDER)

    def __repr__(self) -> str:
        return f"<Handler {self.name!r} {self.kind.name}>"


class HandlerTable:
    """The handlers of a server, by synapse type.

    Each of the three ways to register has a table of its own, and a name may be in
    several; registering again replaces. May be changed while the server runs.
    """

    __slots__ = ("_async", "_plain", "_streaming")

    def __init__(self) -> None:
        self._streaming: dict[str, Handler] = {}
        self._async: dict[str, Handler] = {}
        self._plain: dict[str, Handler] = {}

    def add(self, name: str, function: Any, *, inline: bool = False) -> Handler:
        """Register a handler for one answer; an ``async def`` runs on the event loop.

        Args:
            name: The synapse type.
            function: A function, or an object with ``handle``.
            inline: Run it on the I/O thread, which waits for it: for handlers of a few
                microseconds only.

        Raises:
            ConfigError: A generator, a signature that cannot be called with ``data``,
                or ``inline`` with an ``async def``.
            TypeError: The name is not a ``str`` or the handler cannot be called.
        """
        code = _code(_target(function))
        _refuse_generator(name, code)
        if inspect.iscoroutinefunction(code):
            if inline:
                raise ConfigError(f"handler {name!r} is async; inline is for functions")
            kind = HandlerKind.ASYNC
        else:
            kind = HandlerKind.INLINE if inline else HandlerKind.THREAD
        return _put(self._plain, name, kind, function)

    def add_async(self, name: str, function: Any) -> Handler:
        """Register a handler for one answer that returns an awaitable.

        Args:
            name: The synapse type.
            function: An ``async def``, a function that returns an awaitable, or an
                object with such a ``handle``. It is called on the event loop.

        Raises:
            ConfigError: A generator, or a signature that cannot be called with ``data``.
            TypeError: The name is not a ``str`` or the handler cannot be called.
        """
        _refuse_generator(name, _code(_target(function)))
        return _put(self._async, name, HandlerKind.ASYNC, function)

    def add_streaming(self, name: str, function: Any) -> Handler:
        """Register a handler for a stream of chunks.

        Args:
            name: The synapse type.
            function: A generator or async generator function; a function or ``async
                def`` that returns an iterable of ``bytes``; an object with such a
                ``handle``; or an object whose ``handle`` takes a third argument, a
                ``StreamSender`` (``BlockingStreamSender`` if it is not ``async``).

        Raises:
            ConfigError: A signature that cannot be called with ``data``.
            TypeError: The name is not a ``str`` or the handler cannot be called.
        """
        code = _code(_target(function))
        asynchronous = inspect.isasyncgenfunction(code) or inspect.iscoroutinefunction(
            code
        )
        kind = HandlerKind.STREAM_ASYNC if asynchronous else HandlerKind.STREAM_SYNC
        return _put(self._streaming, name, kind, function)

    def find(self, name: str) -> Handler | None:
        """Look a handler up: streaming before async before plain."""
        return (
            self._streaming.get(name) or self._async.get(name) or self._plain.get(name)
        )


def typed_handler(
    function: Callable[Concatenate[Any, _P], Any],
) -> Callable[Concatenate[dict[str, Any], _P], Any]:
    """Make a handler of a function from one typed object to another.

    The first parameter's annotation is the type that ``data`` is converted to; see
    ``lightning.typed``. An ``async def`` makes an async handler.

    Args:
        function: The function; further parameters as for every handler.

    Returns:
        The handler, to be registered as usual.

    Raises:
        ConfigError: The annotation is missing, cannot be resolved, or cannot stand for
            a map; or the function is a generator.
    """
    return _typed(function, sys._getframe(1).f_locals)


def typed_async_handler(
    function: Callable[Concatenate[Any, _P], Awaitable[Any]],
) -> Callable[Concatenate[dict[str, Any], _P], Awaitable[Any]]:
    """Make a handler of an ``async def`` from one typed object to another.

    The same as ``typed_handler``, but a plain function is refused.

    Raises:
        ConfigError: As ``typed_handler``, or the function is not an ``async def``.
    """
    if not inspect.iscoroutinefunction(_code(function)):
        raise ConfigError(f"{name_of(function)} is not async; use typed_handler")
    return _typed(function, sys._getframe(1).f_locals)


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
        job = _Job(handler, data, context)
        pool.post(job)
        return await job.result()
    if handler.kind is HandlerKind.ASYNC:
        return await _run_async(handler, data, context)
    if handler.kind is HandlerKind.INLINE:
        return call(handler, data, context)
    raise HandlerError(f"handler {handler.name!r} streams")


class _Job:
    """One THREAD handler's run, and its way back to the event loop."""

    __slots__ = ("_future", "_loop", "_work")

    def __init__(
        self, handler: Handler, data: dict[str, Any], context: HandlerContext | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
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
        except HandlerError as error:
            outcome = error
        self._deliver(outcome)

    def abandon(self) -> None:
        self._deliver(HandlerError("the handler pool is shut down"))

    def _deliver(self, outcome: dict[str, Any] | HandlerError) -> None:
        wake_loop(self._loop, self._finish, outcome)

    def _finish(self, outcome: dict[str, Any] | HandlerError) -> None:
        if self._future.done():
            return
        if isinstance(outcome, HandlerError):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


async def _run_async(
    handler: Handler, data: dict[str, Any], context: HandlerContext | None
) -> dict[str, Any]:
    watch = Cancellation()
    try:
        result = handler.invoke(data, context, None)
        return _answer(await _awaitable(result))
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


_CONTEXT: Final = 0
_SENDER: Final = 1
_CONTEXT_NAMES: Final = ("context", "ctx")


class _Binding(NamedTuple):
    """How to call a handler with data, context and sender."""

    invoke: Callable[[dict[str, Any], HandlerContext | None, Any], Any]
    positional: tuple[int, ...]
    keyword: tuple[tuple[str, int], ...]

    def uses(self, role: int) -> bool:
        return role in self.positional or any(r == role for _, r in self.keyword)


def _bind(name: str, function: Any, *, streams: bool) -> _Binding:
    """Decide by the signature what the handler is called with."""
    target = _target(function)
    leading = () if target is function else (name,)
    positional: list[int] = []
    keyword: list[tuple[str, int]] = []
    skipped = False
    for parameter in _extra_parameters(name, target, len(leading) + 1):
        taken = {*positional, *(role for _, role in keyword)}
        role = _role(parameter, taken, sends=streams and bool(leading))
        if role is None:
            if parameter.default is parameter.empty:
                raise ConfigError(
                    f"handler {name!r} has a parameter {parameter.name!r} that nothing "
                    "is passed for"
                )
            skipped = True
        elif not skipped and parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(role)
        elif parameter.kind is not parameter.POSITIONAL_ONLY:
            keyword.append((parameter.name, role))
    return _Binding(
        _invocation(target, leading, positional, keyword),
        tuple(positional),
        tuple(keyword),
    )


def _extra_parameters(
    name: str, target: Callable[..., Any], count: int
) -> list[inspect.Parameter]:
    """Return the parameters beyond the first ``count``, those with ``*`` aside."""
    try:
        parameters = _signature(target).parameters.values()
    except (TypeError, ValueError):
        # Some builtins have no signature.
        return []
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) < count and not any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    ):
        expected = "data" if count == 1 else "synapse_type and data"
        raise ConfigError(f"handler {name!r} must take {expected}")
    return positional[count:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]


def _role(parameter: inspect.Parameter, taken: set[int], *, sends: bool) -> int | None:
    """Say what a parameter is for: by its name, else by its place."""
    candidates = [_SENDER, _CONTEXT] if sends else [_CONTEXT]
    if parameter.name in _CONTEXT_NAMES:
        candidates = [_CONTEXT]
    elif sends and parameter.name == "sender":
        candidates = [_SENDER]
    elif (
        parameter.kind is parameter.KEYWORD_ONLY
        or parameter.default is not parameter.empty
    ):
        # Often a value bound in a loop, as in ``lambda data, key=key: …``.
        candidates = []
    return next((role for role in candidates if role not in taken), None)


def _invocation(
    target: Callable[..., Any],
    leading: tuple[str, ...],
    positional: list[int],
    keyword: list[tuple[str, int]],
) -> Callable[[dict[str, Any], HandlerContext | None, Any], Any]:
    if not leading and not positional and not keyword:
        return lambda data, _context, _sender: target(data)
    if not leading and positional == [_CONTEXT]:
        return lambda data, context, _sender: target(data, context)

    def invoke(
        data: dict[str, Any], context: HandlerContext | None, sender: Any
    ) -> Any:
        values = (context, sender)
        return target(
            *leading,
            data,
            *[values[role] for role in positional],
            **{name: values[role] for name, role in keyword},
        )

    return invoke


def _target(function: Any) -> Any:
    """Return what to call: the function itself, or an object's ``handle``."""
    handle = getattr(function, "handle", None)
    if callable(handle) and not inspect.isroutine(function):
        if isinstance(function, type):
            raise TypeError(
                f"register an instance of {name_of(function)}, not the class"
            )
        return handle
    if callable(function):
        return function
    raise TypeError(f"{name_of(type(function))} is not a handler: it cannot be called")


def _code(target: Any) -> Any:
    """Return the function behind partials and callable objects."""
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.isroutine(target) or isinstance(target, type):
        return target
    return target.__call__


def _signature(target: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib  # noqa: PLC0415 - from this version on.

        # A name imported for type checkers only does not exist here.
        return inspect.signature(
            target, annotation_format=annotationlib.Format.FORWARDREF
        )
    return inspect.signature(target)


def _put(
    table: dict[str, Handler], name: str, kind: HandlerKind, function: Any
) -> Handler:
    if not isinstance(name, str):
        raise TypeError(f"a synapse type must be a str, not {name_of(type(name))}")
    handler = table[name] = Handler(name, kind, function)
    return handler


def _refuse_generator(name: str, code: Any) -> None:
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise ConfigError(
            f"handler {name!r} is a generator; use register_streaming_handler"
        )


def _typed(function: Any, local_names: Mapping[str, Any]) -> Callable[..., Any]:
    code = _code(function)
    _refuse_generator(name_of(function), code)
    request_type = _check_annotations(function, code, local_names)
    if inspect.iscoroutinefunction(code):

        @functools.wraps(function)
        async def answer_async(
            data: dict[str, Any], /, *args: Any, **kwargs: Any
        ) -> dict[str, Any]:
            request = from_data(request_type, data)
            return to_data(await function(request, *args, **kwargs))

        return answer_async

    @functools.wraps(function)
    def answer(data: dict[str, Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return to_data(function(from_data(request_type, data), *args, **kwargs))

    return answer


def _check_annotations(function: Any, code: Any, local_names: Mapping[str, Any]) -> Any:
    """Return the first parameter's type, having checked it and the result's."""
    signature = _signature(function)
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.annotation is first.empty:
        raise ConfigError(f"{name_of(function)}: annotate the first parameter")
    try:
        request_type = _resolve(first.annotation, code, local_names)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise ConfigError(
            f"{name_of(function)}: cannot resolve {first.annotation!r}: {error}"
        ) from error
    check_data_type(request_type)
    if signature.return_annotation is not signature.empty:
        try:
            result_type = _resolve(signature.return_annotation, code, local_names)
        except NameError:
            # Perhaps imported for type checkers only; it is not needed to run.
            pass
        else:
            check_data_type(result_type)
    return request_type


def _resolve(annotation: Any, code: Any, local_names: Mapping[str, Any]) -> Any:
    """Resolve one annotation, leaving alone the others, which may not exist here."""

    def stand_in() -> None: ...

    stand_in.__annotations__ = {"it": annotation}
    code = inspect.unwrap(getattr(code, "__func__", code))
    names = getattr(code, "__globals__", {})
    return get_type_hints(stand_in, names, dict(local_names), include_extras=True)["it"]


def _answer(result: Any) -> dict[str, Any]:
    """Check and convert what a handler returned."""
    if isinstance(result, Mapping):
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


def _awaitable(result: Any) -> Awaitable[Any]:
    if inspect.isawaitable(result):
        return result
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


def wake_loop(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., Any], *args: Any
) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        # The loop is closed, so nobody waits.
        pass


def name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
