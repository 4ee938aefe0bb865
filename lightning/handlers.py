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

import functools
import inspect
import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    ParamSpec,
    get_type_hints,
)

from lightning.binding import (
    Handler,
    HandlerContext,
    HandlerKind,
    Tally,
    code_of,
    name_of,
    signature_of,
    target_of,
)
from lightning.chunks import ChunkStream, stream
from lightning.errors import ConfigError
from lightning.pool import HandlerPool
from lightning.running import call, run_async
from lightning.typed import check_data_type, from_data, to_data
from lightning.types import NOT_BEGUN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

__all__ = [
    "ChunkStream",
    "Handler",
    "HandlerContext",
    "HandlerKind",
    "HandlerPool",
    "HandlerTable",
    "Registered",
    "call",
    "run_async",
    "stream",
    "typed_async_handler",
    "typed_handler",
]

_P = ParamSpec("_P")

# The complete list of error texts on the wire: the peer's, generic on purpose.
ERROR_INVALID_REQUEST: Final = "invalid request format"
ERROR_AUTHENTICATION: Final = "authentication failed"
ERROR_UNKNOWN_SYNAPSE: Final = "unrecognized synapse type"
ERROR_PROCESSING: Final = "request processing failed"
ERROR_TIMEOUT: Final = "handler timed out"
ERROR_SERIALIZATION: Final = "internal serialization error"
ERROR_STREAM: Final = "stream processing failed"
ERROR_STREAM_WRITE: Final = "stream write failed"
# Ours.
ERROR_BUSY, ERROR_TOO_MANY = NOT_BEGUN


class HandlerTable:
    """The handlers of a server, by synapse type.

    Each of the three ways to register has a table of its own, and a name may be in
    several; registering again replaces. May be changed while the server runs.

    Attributes:
        tallies: What became of requests, by synapse type, whatever its handlers.
    """

    __slots__ = ("_async", "_plain", "_streaming", "tallies")

    def __init__(self) -> None:
        self._streaming: dict[str, Handler] = {}
        self._async: dict[str, Handler] = {}
        self._plain: dict[str, Handler] = {}
        self.tallies: dict[str, Tally] = {}

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
        code = code_of(target_of(function))
        _refuse_generator(name, code)
        if inspect.iscoroutinefunction(code):
            if inline:
                raise ConfigError(f"handler {name!r} is async; inline is for functions")
            kind = HandlerKind.ASYNC
        else:
            kind = HandlerKind.INLINE if inline else HandlerKind.THREAD
        return self._put(self._plain, name, kind, function)

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
        _refuse_generator(name, code_of(target_of(function)))
        return self._put(self._async, name, HandlerKind.ASYNC, function)

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
        code = code_of(target_of(function))
        asynchronous = inspect.isasyncgenfunction(code) or inspect.iscoroutinefunction(
            code
        )
        kind = HandlerKind.STREAM_ASYNC if asynchronous else HandlerKind.STREAM_SYNC
        return self._put(self._streaming, name, kind, function)

    def _put(
        self, table: dict[str, Handler], name: str, kind: HandlerKind, function: Any
    ) -> Handler:
        if not isinstance(name, str):
            raise TypeError(f"a synapse type must be a str, not {name_of(type(name))}")
        handler = Handler(name, kind, function)
        handler.tally = self.tallies.setdefault(name, handler.tally)
        table[name] = handler
        return handler

    def find(self, name: str) -> Handler | None:
        """Look a handler up: streaming before async before plain."""
        return (
            self._streaming.get(name) or self._async.get(name) or self._plain.get(name)
        )


class Registered:
    """What registering a handler returns: it is done, and awaiting it does nothing.

    The peer's Rust crate awaits these calls, so ours may be awaited, too; they are
    typed ``Any`` so that no type checker asks for it.
    """

    def __await__(self) -> Iterator[Any]:
        """Return at once."""
        return iter(())


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
    if not inspect.iscoroutinefunction(code_of(function)):
        raise ConfigError(f"{name_of(function)} is not async; use typed_handler")
    return _typed(function, sys._getframe(1).f_locals)


def _refuse_generator(name: str, code: Any) -> None:
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise ConfigError(
            f"handler {name!r} is a generator; use register_streaming_handler"
        )


def _typed(function: Any, local_names: Mapping[str, Any]) -> Callable[..., Any]:
    code = code_of(function)
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
    signature = signature_of(function)
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.annotation is first.empty:
        raise ConfigError(f"{name_of(function)}: annotate the first parameter")
    request_type = _resolve(first.annotation, code, local_names)
    if request_type is None:
        raise ConfigError(f"{name_of(function)}: no type {first.annotation!r} found")
    check_data_type(request_type)
    if signature.return_annotation is not signature.empty:
        result_type = _resolve(signature.return_annotation, code, local_names)
        # A type that exists for type checkers only is not needed to run.
        if result_type is not None:
            check_data_type(result_type)
    return request_type


def _resolve(annotation: Any, code: Any, local_names: Mapping[str, Any]) -> Any:
    """Resolve one annotation, leaving alone the others, which may not exist here.

    Returns:
        The type, or None if a name in it is not defined.

    Raises:
        ConfigError: It is no annotation at all.
    """

    def stand_in() -> None: ...

    stand_in.__annotations__ = {"it": annotation}
    code = inspect.unwrap(getattr(code, "__func__", code))
    names = getattr(code, "__globals__", {})
    try:
        hints = get_type_hints(stand_in, names, dict(local_names), include_extras=True)
    except NameError:
        return None
    except (TypeError, SyntaxError, AttributeError) as error:
        raise ConfigError(
            f"{name_of(code)}: cannot resolve {annotation!r}: {error}"
        ) from error
    return hints["it"]
