"""What a registered handler is called with, decided by its signature."""

import functools
import time
from typing import Any

import pytest

from lightning.binding import Handler, HandlerContext, HandlerKind, code_of, name_of
from lightning.errors import ConfigError
from lightning.types import PeerAddr

CONTEXT = HandlerContext("5Hot", PeerAddr("192.0.2.1", 5), "echo", 100.0, "conn_1")
DATA = {"a": 1}


def invoke(function: Any, kind: HandlerKind = HandlerKind.THREAD) -> Any:
    handler = Handler("echo", kind, function)
    return (
        handler.takes_context,
        handler.takes_sender,
        handler.invoke(DATA, CONTEXT, "sender"),
    )


class Methods:
    def only_data(self, data):
        return (data,)

    def both(self, data, context):
        return data, context

    @staticmethod
    def static(data, context):
        return data, context

    @classmethod
    def of_class(cls, data):
        return (data,)


class Callable_:
    def __call__(self, data, context):
        return data, context


def three(prefix, data, context):
    return data, context


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "function",
    [
        lambda data: (data,),
        lambda anything: (anything,),
        lambda data, /: (data,),
        lambda *args: args,
        lambda data, *args: (data, *args),
        lambda data, **kwargs: (data, *kwargs.values()),
        lambda data, key=5: (data,),
        lambda data, *, key=5: (data,),
        lambda data, _a=1, _b=2, /: (data,),
        Methods().only_data,
        Methods.of_class,
        functools.partial(lambda key, data: (data,), "key"),
        functools.partial(lambda data, key: (data,), key=5),
        wrapped(lambda data: (data,)),
    ],
)
def test_data_only(function: Any) -> None:
    """Variadic parameters, and defaults of another name, take no context."""
    assert invoke(function) == (False, False, (DATA,))


@pytest.mark.parametrize(
    "function",
    [
        lambda data, context: (data, context),
        lambda data, anything: (data, anything),
        lambda data, ctx=None: (data, ctx),
        lambda data, context=None: (data, context),
        lambda data, *, context: (data, context),
        lambda data, *args, ctx=None: (data, ctx, *args),
        lambda data, key=5, context=None: (data, context),
        lambda data, key=5, *, context: (data, context),
        lambda data, context, /: (data, context),
        Methods().both,
        Methods.static,
        Callable_(),
        functools.partial(three, "key"),
        functools.partial(three, "key", context=None),
        wrapped(lambda data, context: (data, context)),
    ],
)
def test_data_and_context(function: Any) -> None:
    """A second required parameter, or one named context or ctx, gets the context."""
    assert invoke(function) == (True, False, (DATA, CONTEXT))


def test_builtin_without_a_signature_gets_data() -> None:
    """A callable that inspect cannot read is called with data alone."""
    handler = Handler("echo", HandlerKind.THREAD, dict)
    assert not handler.takes_context
    assert handler.invoke(DATA, CONTEXT, None) == DATA


class Shape:
    def handle(self, synapse_type, data):
        return synapse_type, data


class ShapeWithContext:
    def handle(self, synapse_type, data, context):
        return synapse_type, data, context


class ShapeAndCall:
    def __call__(self, data):
        raise AssertionError

    def handle(self, synapse_type, data, *, ctx):
        return synapse_type, data, ctx


def test_objects_with_handle_get_the_synapse_type() -> None:
    """The peer's shape of a handler object, with a context if it wants one."""
    assert invoke(Shape()) == (False, False, ("echo", DATA))
    assert invoke(ShapeWithContext()) == (True, False, ("echo", DATA, CONTEXT))
    assert invoke(ShapeAndCall()) == (True, False, ("echo", DATA, CONTEXT))


class Sending:
    def __init__(self, handle):
        self.handle = handle


@pytest.mark.parametrize(
    ("handle", "context", "sender"),
    [
        (lambda synapse_type, data: ["-", "-"], False, False),
        (lambda synapse_type, data, sender: ["-", sender], False, True),
        (lambda synapse_type, data, out: ["-", out], False, True),
        (lambda synapse_type, data, context: [context, "-"], True, False),
        (lambda synapse_type, data, out, more: [more, out], True, True),
        (lambda synapse_type, data, ctx, out: [ctx, out], True, True),
        (lambda synapse_type, data, out, ctx=None: [ctx, out], True, True),
        (lambda synapse_type, data, *, sender, context: [context, sender], True, True),
        (lambda synapse_type, data, key=5, sender=None: ["-", sender], False, True),
    ],
)
@pytest.mark.parametrize("kind", [HandlerKind.STREAM_SYNC, HandlerKind.STREAM_ASYNC])
def test_streaming_objects_may_take_a_sender(
    handle: Any, context: bool, sender: bool, kind: HandlerKind
) -> None:
    """A third parameter is the sender, unless its name says that it is the context."""
    expected = [CONTEXT if context else "-", "sender" if sender else "-"]
    assert invoke(Sending(handle), kind) == (context, sender, expected)


def test_streaming_functions_take_a_context() -> None:
    """A function's second parameter is the context also when it streams."""
    found = invoke(lambda data, x: (data, x), HandlerKind.STREAM_SYNC)
    assert found == (True, False, (DATA, CONTEXT))


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        lambda *, data: None,
        lambda data, context, more: None,
        lambda data, context, ctx: None,
        lambda data, *, key: None,
        Sending(lambda data: None),
        Sending(lambda synapse_type, data, context, more: None),
    ],
)
def test_parameters_that_get_nothing_are_refused(function: Any) -> None:
    """A signature that cannot be called is refused when it is registered."""
    with pytest.raises(ConfigError, match="handler 'echo'"):
        Handler("echo", HandlerKind.THREAD, function)


@pytest.mark.parametrize("function", [None, "echo", 5, {}, Shape])
def test_what_cannot_be_called_is_refused(function: Any) -> None:
    """No callable, or a class in place of its instance, is a TypeError."""
    with pytest.raises(TypeError, match=r"handler|instance"):
        Handler("echo", HandlerKind.THREAD, function)


def test_a_positional_only_context_behind_a_default_is_left_alone() -> None:
    """Such a parameter cannot be reached without giving the one before it."""
    found = invoke(lambda data, key=5, context=None, /: (data, key, context))
    assert found == (False, False, (DATA, 5, None))


def test_handler_describes_itself() -> None:
    """Name, kind and function are kept; streams follows the kind."""
    function = Methods().both
    handler = Handler("echo", HandlerKind.ASYNC, function)
    assert (handler.name, handler.kind, handler.function) == (
        "echo",
        HandlerKind.ASYNC,
        function,
    )
    assert repr(handler) == "<Handler 'echo' ASYNC>"
    streaming = {k for k in HandlerKind if Handler("x", k, lambda data: data).streams}
    assert streaming == {HandlerKind.STREAM_SYNC, HandlerKind.STREAM_ASYNC}
    assert not hasattr(handler, "__dict__")


def test_code_behind_partials_and_objects() -> None:
    """Nested partials and callable objects are seen through, classes are not."""
    twice = functools.partial(functools.partial(three, "a"))
    assert code_of(twice) is three
    assert code_of(Callable_()).__func__ is Callable_.__call__
    assert code_of(functools.partial(Callable_())).__func__ is Callable_.__call__
    assert code_of(dict) is dict
    assert code_of(len) is len


def test_names_for_messages() -> None:
    """A name is the qualified one, or the representation."""
    assert name_of(three) == "three"
    assert name_of(Methods.both) == "Methods.both"
    assert name_of(functools.partial(three)).startswith("functools.partial")


def test_context_counts_down() -> None:
    """Remaining seconds follow the given or the real clock, below zero too."""
    assert CONTEXT.remaining(90.0) == 10.0
    assert CONTEXT.remaining(101.5) == -1.5
    ahead = HandlerContext("", PeerAddr("", 0), "", time.monotonic() + 1000, "")
    assert 900 < ahead.remaining() <= 1000
    assert not hasattr(CONTEXT, "__dict__")
