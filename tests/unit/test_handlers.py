"""Registration by kind, look-up order, and typed handlers."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest

from lightning import handlers
from lightning.binding import HandlerKind
from lightning.errors import ConfigError, DecodeError, EncodeTypeError, HandlerError
from lightning.handlers import (
    HandlerPool,
    HandlerTable,
    typed_async_handler,
    typed_handler,
)
from tests.unit.test_running import run

if TYPE_CHECKING:
    from nowhere import Missing


def plain(data):
    return data


async def coroutine(data):
    return data


def generator(data):
    yield b""


async def async_generator(data):
    yield b""


class Object:
    def __init__(self, handle):
        self.handle = handle


class AsyncCall:
    async def __call__(self, data):
        return data


class GeneratorCall:
    def __call__(self, data):
        yield b""


class Methods:
    def plain(self, data):
        return data

    async def coroutine(self, data):
        return data

    def generator(self, data):
        yield b""

    async def async_generator(self, data):
        yield b""


METHODS = Methods()


async def handle_async(synapse_type, data, sender=None):
    return data


def handle_plain(synapse_type, data):
    return data


def handle_generator(synapse_type, data):
    yield b""


# Kinds.


@pytest.mark.parametrize(
    "function",
    [plain, METHODS.plain, functools.partial(plain), Object(handle_plain), dict],
)
def test_plain_functions_run_in_threads_or_inline(function: Any) -> None:
    """A function, method, partial or object is THREAD, or INLINE if told so."""
    table = HandlerTable()
    assert table.add("x", function).kind is HandlerKind.THREAD
    assert table.add("x", function, inline=True).kind is HandlerKind.INLINE


@pytest.mark.parametrize(
    "function",
    [
        coroutine,
        METHODS.coroutine,
        AsyncCall(),
        functools.partial(coroutine),
        functools.partial(AsyncCall()),
        Object(handle_async),
    ],
)
def test_async_functions_are_known_however_registered(function: Any) -> None:
    """An async def is ASYNC through either method, and refused inline."""
    table = HandlerTable()
    assert table.add("x", function).kind is HandlerKind.ASYNC
    assert table.add_async("x", function).kind is HandlerKind.ASYNC
    with pytest.raises(ConfigError, match="is async; inline is for functions"):
        table.add("x", function, inline=True)


def test_a_function_that_returns_an_awaitable_is_taken_by_its_word() -> None:
    """add_async calls on the loop whatever it is given."""
    handler = HandlerTable().add_async("x", lambda data: coroutine({}))
    assert handler.kind is HandlerKind.ASYNC


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (generator, HandlerKind.STREAM_SYNC),
        (plain, HandlerKind.STREAM_SYNC),
        (METHODS.generator, HandlerKind.STREAM_SYNC),
        (GeneratorCall(), HandlerKind.STREAM_SYNC),
        (functools.partial(generator), HandlerKind.STREAM_SYNC),
        (Object(handle_generator), HandlerKind.STREAM_SYNC),
        (async_generator, HandlerKind.STREAM_ASYNC),
        (METHODS.async_generator, HandlerKind.STREAM_ASYNC),
        (functools.partial(async_generator), HandlerKind.STREAM_ASYNC),
        (coroutine, HandlerKind.STREAM_ASYNC),
        (Object(handle_async), HandlerKind.STREAM_ASYNC),
    ],
)
def test_streaming_kinds(function: Any, kind: HandlerKind) -> None:
    """What is async runs on the loop, the rest in a thread."""
    handler = HandlerTable().add_streaming("x", function)
    assert handler.kind is kind
    assert handler.streams


@pytest.mark.parametrize(
    "function",
    [
        generator,
        async_generator,
        METHODS.generator,
        METHODS.async_generator,
        GeneratorCall(),
        functools.partial(generator),
        Object(handle_generator),
    ],
)
def test_generators_belong_to_the_streaming_method(function: Any) -> None:
    """Registering a generator for one answer says where it belongs."""
    table = HandlerTable()
    for add in (table.add, table.add_async):
        with pytest.raises(ConfigError, match="use register_streaming_handler"):
            add("x", function)
    assert table.find("x") is None


@pytest.mark.parametrize("method", ["add", "add_async", "add_streaming"])
def test_wrong_arguments_register_nothing(method: str) -> None:
    """A name that is no text, or a handler that is none, is a TypeError."""
    table = HandlerTable()
    for name, function in ((5, plain), (None, plain), ("x", None), ("x", "plain")):
        with pytest.raises(TypeError):
            getattr(table, method)(name, function)
    with pytest.raises(ConfigError):
        getattr(table, method)("x", lambda: None)
    assert table.find("x") is None


# Look-up.


def test_look_up_order_is_streaming_async_plain() -> None:
    """A name may be registered in three ways; the peer's order decides."""
    table = HandlerTable()
    assert table.find("x") is None
    added = table.add("x", plain)
    assert table.find("x") is added
    added_async = table.add_async("x", coroutine)
    assert table.find("x") is added_async
    added_streaming = table.add_streaming("x", generator)
    assert table.find("x") is added_streaming
    table.add("x", plain)
    table.add_async("x", coroutine)
    assert table.find("x") is added_streaming
    assert table.find("X") is None


def test_registering_again_replaces() -> None:
    """Also when the kind changes from async to plain within one method."""
    table = HandlerTable()
    table.add("x", coroutine)
    second = table.add("x", plain)
    assert table.find("x") is second
    assert table.find("").__class__ is type(None)


# Typed handlers.


@dataclasses.dataclass
class Request:
    a: int
    b: int = 1


@dataclasses.dataclass
class Response:
    total: int
    note: bytes = b""


class RequestDict(TypedDict):
    a: int


class RequestStruct(msgspec.Struct):
    a: int


class RequestModel(pydantic.BaseModel):
    a: int


def add(request: Request) -> Response:
    return Response(request.a + request.b, b"\xff")


async def add_later(request: Request) -> Response:
    return Response(request.a + request.b, b"\xff")


def add_model(request: RequestModel) -> RequestModel:
    return RequestModel(a=request.a + 1)


def add_struct(request: RequestStruct) -> RequestStruct:
    return RequestStruct(request.a + 1)


def add_dict(request: RequestDict) -> RequestDict:
    return {"a": request["a"] + 1}


def no_result(request: Request):
    return Response(request.a)


def missing_result(request: Request) -> Missing:
    return Response(request.a)


def missing_other(request: Request, context: Missing) -> Response:
    return Response(request.a, context)


@pytest.fixture
def pool():
    pool = HandlerPool(2)
    yield pool
    pool.shutdown(wait=True)


async def answer(function: Any, data: dict, pool: HandlerPool, context=None) -> dict:
    return await run(HandlerTable().add("x", function), data, context, pool)


async def test_typed_handler_roundtrips(pool) -> None:
    """data becomes the annotated type, the result becomes data."""
    handler = typed_handler(add)
    assert handler({"a": 2, "more": 5}) == {"total": 3, "note": b"\xff"}
    assert await answer(handler, {"a": 2}, pool) == {"total": 3, "note": b"\xff"}


async def test_typed_async_handler_roundtrips(pool) -> None:
    """The same for an async def, through either decorator."""
    for decorator in (typed_handler, typed_async_handler):
        handler = decorator(add_later)
        assert HandlerTable().add("x", handler).kind is HandlerKind.ASYNC
        assert await answer(handler, {"a": 2}, pool) == {"total": 3, "note": b"\xff"}


@pytest.mark.parametrize("function", [add_model, add_struct, add_dict])
def test_typed_handler_takes_every_kind(function: Any) -> None:
    """pydantic models, msgspec Structs and TypedDicts work as dataclasses do."""
    assert typed_handler(function)({"a": 2}) == {"a": 3}


async def test_typed_handler_propagates_error(pool) -> None:
    """The function's error text is kept for the log, with the cause."""

    def fail(request: Request) -> Response:
        raise ZeroDivisionError("no such thing")

    with pytest.raises(HandlerError, match="no such thing") as caught:
        await answer(typed_handler(fail), {"a": 1}, pool)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_typed_handler_refuses_what_does_not_fit(pool) -> None:
    """A missing key, a wrong value and a result that is no map are errors."""
    handler = typed_handler(add)
    with pytest.raises(DecodeError, match="`a`"):
        handler({})
    with pytest.raises(DecodeError, match=r"data\.a"):
        handler({"a": "2"})
    with pytest.raises(HandlerError, match=r"DecodeError.*data\.a"):
        await answer(handler, {"a": "2"}, pool)
    with pytest.raises(EncodeTypeError):
        typed_handler(lambda_with(Request, lambda request: 5))({"a": 1})


def lambda_with(type_: Any, function: Any) -> Any:
    function.__annotations__ = {"request": type_}
    return function


async def test_typed_handler_may_take_a_context(pool) -> None:
    """The context is passed on, by place or by name."""

    def by_place(request: Request, context) -> dict:
        return {"context": context}

    def by_name(request: Request, *, ctx) -> dict:
        return {"context": ctx}

    async def later(request: Request, context) -> dict:
        return {"context": context}

    for function in (by_place, by_name, later):
        handler = typed_handler(function)
        assert await answer(handler, {"a": 1}, pool, "context") == {
            "context": "context"
        }


class TypedMethods:
    def method(self, request: Request) -> Response:
        return Response(request.a)

    def __call__(self, request: Request) -> Response:
        return Response(request.a)


def scaled(factor: int, request: Request) -> Response:
    return Response(request.a * factor)


@pytest.mark.parametrize(
    ("function", "total"),
    [
        (TypedMethods().method, 2),
        (TypedMethods(), 2),
        (functools.partial(scaled, 5), 10),
        (no_result, 2),
        (missing_result, 2),
    ],
)
def test_typed_handler_of_other_callables(function: Any, total: int) -> None:
    """Methods, objects and partials work; the result need not be annotated."""
    assert typed_handler(function)({"a": 2})["total"] == total


def test_typed_handler_resolves_only_what_it_needs() -> None:
    """An annotation that exists for type checkers only does no harm elsewhere."""
    assert typed_handler(missing_other)({"a": 2}, b"c") == {"total": 2, "note": b"c"}


def test_typed_handler_sees_local_types() -> None:
    """A type of the enclosing function is found, though its name is postponed."""

    @dataclasses.dataclass
    class Local:
        a: int

    @typed_handler
    def local(request: Local) -> Local:
        return Local(request.a + 1)

    @typed_async_handler
    async def local_async(request: Local) -> Local:
        return request

    assert local({"a": 1}) == {"a": 2}
    assert local.__name__ == "local"


def constrained(request: Annotated[dict[str, int], msgspec.Meta(max_length=1)]):
    return request


def test_typed_handler_keeps_the_constraints_of_an_annotation() -> None:
    """What Annotated says about the type is checked."""
    handler = typed_handler(constrained)
    assert handler({"a": 1}) == {"a": 1}
    with pytest.raises(DecodeError, match="length"):
        handler({"a": 1, "b": 2})


def bad_none(): ...


def bad_bare(request): ...


def bad_int(request: int): ...


def bad_optional(request: Request | None): ...


def bad_missing(request: Missing): ...


def bad_syntax(request: "a b"): ...  # noqa: F722 - a text that is no annotation.


def bad_result(request: Request) -> int: ...


def bad_result_syntax(request: Request) -> "a b": ...  # noqa: F722 - as above.


def bad_generator(request: Request):
    yield b""


async def bad_async_generator(request: Request):
    yield b""


@pytest.mark.parametrize(
    "function",
    [
        bad_none,
        bad_bare,
        bad_int,
        bad_optional,
        bad_missing,
        bad_syntax,
        bad_result,
        bad_result_syntax,
        bad_generator,
        bad_async_generator,
        TypedMethods.method,
    ],
)
def test_wrong_annotations_are_refused_at_once(function: Any) -> None:
    """What cannot be converted to or from is a ConfigError when decorating."""
    with pytest.raises(ConfigError):
        typed_handler(function)


@pytest.mark.parametrize("function", [add, bad_async_generator, bad_int])
def test_typed_async_handler_is_for_async_functions(function: Any) -> None:
    """A plain function is told to use the other decorator."""
    with pytest.raises(ConfigError, match="is not async; use typed_handler"):
        typed_async_handler(function)


# Wire texts.


def test_wire_error_texts_are_the_peers_and_two_of_ours() -> None:
    """The complete list of texts that a client may see."""
    texts = {n: t for n, t in vars(handlers).items() if n.startswith("ERROR_")}
    assert texts == {
        "ERROR_INVALID_REQUEST": "invalid request format",
        "ERROR_AUTHENTICATION": "authentication failed",
        "ERROR_UNKNOWN_SYNAPSE": "unrecognized synapse type",
        "ERROR_PROCESSING": "request processing failed",
        "ERROR_TIMEOUT": "handler timed out",
        "ERROR_SERIALIZATION": "internal serialization error",
        "ERROR_STREAM": "stream processing failed",
        "ERROR_STREAM_WRITE": "stream write failed",
        "ERROR_BUSY": "server busy",
        "ERROR_TOO_MANY": "too many requests",
    }


# The contract of a subnet's proof services.


@dataclasses.dataclass
class ZkProof:
    query_input: dict[str, Any] | None = None
    query_output: str | None = None


class Sparse(msgspec.Struct, omit_defaults=True):
    circuit: str
    inputs: Any = None
    outputs: Any = None
    error: str | None = None


@typed_async_handler
async def prove(request: Sparse) -> Sparse:
    request.outputs = {"proof": b"\x00\x01", "score": -0.25}
    return request


async def test_subnet_nested_input_survives(pool) -> None:
    """Deep maps, arrays, negative and broken numbers come back equal."""
    inputs = {"model": {"layers": [[-1, 0.5, None], [{"k": [True, "ü"]}]]}}
    found = await answer(prove, {"circuit": "c", "inputs": inputs}, pool)
    assert found == {
        "circuit": "c",
        "inputs": inputs,
        "outputs": {"proof": b"\x00\x01", "score": -0.25},
    }


async def test_subnet_absent_fields_stay_absent(pool) -> None:
    """A default that is omitted leaves no key, and reads back as the default."""
    found = await answer(prove, {"circuit": "c"}, pool)
    assert "inputs" not in found
    assert "error" not in found
    assert msgspec.convert(found, Sparse).error is None


def test_subnet_optional_fields_read_as_none() -> None:
    """Of a dataclass, a missing key reads as None and None is written as such."""

    @typed_handler
    def echo(request: ZkProof) -> ZkProof:
        return request

    assert echo({}) == {"query_input": None, "query_output": None}
    assert echo({"query_input": {"a": [1]}})["query_input"] == {"a": [1]}
