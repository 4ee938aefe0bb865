"""One registered handler: where it runs and what it is called with."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.types import PeerAddr

__all__ = ["Handler", "HandlerContext", "HandlerKind"]


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
    """Where a handler runs and what it gives; see ``lightning.handlers``."""

    INLINE = "inline"
    THREAD = "thread"
    ASYNC = "async"
    STREAM_SYNC = "stream_sync"
    STREAM_ASYNC = "stream_async"


class Tally:
    """Counts what became of the requests for one synapse type.

    Threads count without a lock: under the GIL nothing is lost between an attribute's
    reading and its writing.
    """

    __slots__ = ("busy", "failed", "limited", "ok", "seconds", "timed_out")

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.timed_out = 0
        self.busy = 0
        self.limited = 0
        self.seconds = 0.0

    def counts(self) -> tuple[int, int, int, int, int, float]:
        """Return all of them, in the order of `HandlerStats`."""
        return (
            self.ok,
            self.failed,
            self.timed_out,
            self.busy,
            self.limited,
            self.seconds,
        )


class Handler:
    """One registered handler.

    Attributes:
        name: The synapse type.
        kind: Where it runs.
        function: The function or object that was registered.
        takes_context: Whether it wants a ``HandlerContext``.
        streams: Whether it gives chunks.
        typical_seconds: How long it took lately; of a new one, a cautious guess.
        tally: What became of its requests.
    """

    __slots__ = (
        "function",
        "invoke",
        "kind",
        "name",
        "streams",
        "takes_context",
        "takes_sender",
        "tally",
        "typical_seconds",
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
        self.typical_seconds = 0.002
        self.tally = Tally()

    def note_run(self, seconds: float) -> None:
        """Take note of how long a run took."""
        self.tally.seconds += seconds
        self.typical_seconds += (seconds - self.typical_seconds) / 8

    def __repr__(self) -> str:
        return f"<Handler {self.name!r} {self.kind.name}>"


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
    target = target_of(function)
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
        parameters = signature_of(target).parameters.values()
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


def target_of(function: Any) -> Any:
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


def code_of(target: Any) -> Any:
    """Return the function behind partials and callable objects."""
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.isroutine(target) or isinstance(target, type):
        return target
    return target.__call__


def signature_of(target: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib  # noqa: PLC0415 - from this version on.

        # A name imported for type checkers only does not exist here.
        return inspect.signature(
            target, annotation_format=annotationlib.Format.FORWARDREF
        )
    return inspect.signature(target)


def name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
