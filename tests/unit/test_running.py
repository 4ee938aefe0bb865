"""Running handlers for one answer: where, with what, and what failures become."""

import asyncio
import contextvars
import dataclasses
import threading
from collections import OrderedDict, UserDict
from typing import Any

import msgspec
import pytest

from lightning.binding import HandlerKind
from lightning.errors import HandlerError, StreamError
from lightning.handlers import HandlerPool, HandlerTable
from lightning.running import Cancellation, call, run_async

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="-")


@pytest.fixture
def pool():
    pool = HandlerPool(4)
    yield pool
    pool.shutdown(wait=True)


def registered(function: Any, how: str) -> Any:
    table = HandlerTable()
    if how == "async":

        async def asynchronous(data, context):
            return function(data, context)

        return table.add("x", asynchronous)
    return table.add("x", function, inline=how == "inline")


async def run(handler: Any, data: dict, context: Any, pool: HandlerPool) -> dict:
    """Run a handler where its kind says."""
    if handler.kind is HandlerKind.ASYNC:
        return await run_async(handler, data, context)
    if handler.kind is HandlerKind.INLINE:
        return call(handler, data, context)
    variables = contextvars.copy_context()
    return await asyncio.wrap_future(
        pool.submit(variables.run, call, handler, data, context)
    )


EVERYWHERE = pytest.mark.parametrize("how", ["inline", "thread", "async"])


@dataclasses.dataclass
class Answer:
    value: int


class BadText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@EVERYWHERE
async def test_answers_with_a_map(how: str, pool) -> None:
    """data and context arrive as they are, and the dict comes back as it is."""
    data, context, result = {"a": 1}, object(), {"b": b"\xff"}
    seen = []

    def handler(data, context):
        seen.append((data, context))
        return result

    assert await run(registered(handler, how), data, context, pool) is result
    assert seen[0][0] is data
    assert seen[0][1] is context


@EVERYWHERE
@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({}, {}),
        (OrderedDict(a=1), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (Answer(5), {"value": 5}),
        (msgspec.defstruct("S", [("a", int)])(1), {"a": 1}),
    ],
)
async def test_answers_with_what_becomes_a_map(how, result, expected, pool) -> None:
    """Any mapping and any typed object will do."""
    found = await run(registered(lambda d, c: result, how), {}, None, pool)
    assert found == expected
    assert isinstance(found, dict)


@EVERYWHERE
@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "handler returned NoneType, which is no map"),
        (5, "returned int"),
        ("text", "returned str"),
        (b"raw", "returned bytes"),
        ([("a", 1)], "returned list"),
        ({1, 2}, "returned set"),
        (object(), "returned object"),
        (Answer, "returned type"),
        ({1: 2}, "a key of type int"),
        ({"a": 1, b"b": 2}, "a key of type bytes"),
        (UserDict({None: 1}), "a key of type NoneType"),
    ],
)
async def test_other_results_are_failures(how, result, text, pool) -> None:
    """What is no map with text keys is named in the error."""
    with pytest.raises(HandlerError, match=text):
        await run(registered(lambda d, c: result, how), {}, None, pool)


@EVERYWHERE
async def test_a_forgotten_await_is_a_failure(how: str, pool) -> None:
    """A coroutine as a result is closed, with advice instead of a warning."""

    async def inner() -> dict:
        return {}

    with pytest.raises(
        HandlerError, match="returned a coroutine; register it as async"
    ):
        await run(registered(lambda d, c: inner(), how), {}, None, pool)


@EVERYWHERE
@pytest.mark.parametrize(
    "error",
    [
        ValueError("the text"),
        KeyError("the text"),
        MemoryError("the text"),
        RecursionError("the text"),
        TimeoutError("the text"),
        StreamError("the text"),
        StopAsyncIteration("the text"),
        SystemExit("the text"),
        asyncio.CancelledError("the text"),
        ExceptionGroup("the text", [ValueError()]),
        BaseException("the text"),
    ],
)
async def test_whatever_is_raised_is_a_failure(how, error, pool) -> None:
    """Every exception becomes a HandlerError with its text, name and cause."""

    def handler(data, context):
        raise error

    with pytest.raises(HandlerError, match="the text") as caught:
        await run(registered(handler, how), {}, None, pool)
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)


@pytest.mark.parametrize("error", [StopIteration(5), GeneratorExit()])
@pytest.mark.parametrize("how", ["inline", "thread"])
async def test_control_flow_exceptions_are_failures(how, error, pool) -> None:
    """StopIteration and GeneratorExit end no loop and hang nobody."""

    def handler(data):
        raise error

    with pytest.raises(HandlerError) as caught:
        await run(registered(handler, how), {}, None, pool)
    assert caught.value.__cause__ is error


async def test_keyboard_interrupt_of_a_thread_is_a_failure(pool) -> None:
    """Only the main thread gets the user's Ctrl-C; elsewhere it is the handler's."""

    def handler(data):
        raise KeyboardInterrupt

    with pytest.raises(HandlerError, match="KeyboardInterrupt"):
        await run(registered(handler, "thread"), {}, None, pool)
    with pytest.raises(KeyboardInterrupt):
        call(registered(handler, "inline"), {}, None)
    caught = []

    def elsewhere() -> None:
        try:
            call(registered(handler, "inline"), {}, None)
        except HandlerError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_keyboard_interrupt_of_an_async_handler_reaches_the_main_thread() -> None:
    """On the main thread's loop it is the user's, and passes."""

    async def handler(data):
        raise KeyboardInterrupt

    async def main() -> None:
        await run(HandlerTable().add("x", handler), {}, None, HandlerPool(1))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


async def test_a_handlers_own_failure_passes_unchanged(pool) -> None:
    """A handler may raise HandlerError itself."""
    error = HandlerError("chosen")

    def handler(data, context):
        raise error

    for how in ("inline", "thread", "async"):
        with pytest.raises(HandlerError) as caught:
            await run(registered(handler, how), {}, None, pool)
        assert caught.value is error
        assert caught.value.__cause__ is None


async def test_an_exception_without_text_is_named(pool) -> None:
    """An exception that cannot be printed is told by its name."""

    def handler(data, context):
        raise BadText

    with pytest.raises(HandlerError) as caught:
        await run(registered(handler, "thread"), {}, None, pool)
    assert caught.value.detail == "BadText"


async def test_real_recursion_is_a_failure(pool) -> None:
    """A handler that recurses without end fails alone."""

    def handler(data, context):
        return handler(data, context)

    for how in ("inline", "thread", "async"):
        with pytest.raises(HandlerError, match="RecursionError"):
            await run(registered(handler, how), {}, None, pool)


async def test_threads_are_used_and_see_the_callers_variables(pool) -> None:
    """A plain handler runs in a pool thread with a copy of the caller's context."""
    variable.set("caller")

    def handler(data):
        before = variable.get()
        variable.set("handler")
        return {"thread": threading.current_thread().name, "variable": before}

    found = await run(registered(handler, "thread"), {}, None, pool)
    assert found["thread"].startswith("lightning-handler-")
    assert found["variable"] == "caller"
    assert variable.get() == "caller"
    inline = await run(registered(handler, "inline"), {}, None, pool)
    assert inline["thread"] == threading.current_thread().name


async def test_an_async_handler_must_return_an_awaitable(pool) -> None:
    """add_async's word is checked when it is called; futures are awaitable too."""
    handler = HandlerTable().add_async("x", lambda data: {"a": 1})
    with pytest.raises(HandlerError, match="returned dict, not an awaitable"):
        await run(handler, {}, None, pool)
    future = asyncio.get_running_loop().create_future()
    future.set_result({"a": 1})
    assert await run(
        HandlerTable().add_async("x", lambda data: future), {}, None, pool
    ) == {"a": 1}


# Cancelling.


async def test_a_timeout_cancels_an_async_handler(pool) -> None:
    """The caller's time limit reaches the handler and comes back as its own error."""
    cleaned = []

    async def handler(data):
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await run(HandlerTable().add("x", handler), {}, None, pool)
    assert cleaned == [True]


async def test_a_handlers_own_timeout_is_a_failure(pool) -> None:
    """A time limit inside the handler is not taken for the caller's."""

    async def handler(data):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(HandlerError, match="TimeoutError"):
        async with asyncio.timeout(30):
            await run(HandlerTable().add("x", handler), {}, None, pool)


async def test_cancelling_the_caller_passes(pool) -> None:
    """A cancelled task ends as cancelled, for every kind that waits."""
    for how in ("async", "thread"):
        entered = threading.Event()
        release = threading.Event()

        def blocking(data, entered=entered, release=release):
            entered.set()
            release.wait(30)
            return {}

        async def waiting(data, entered=entered):
            entered.set()
            await asyncio.Event().wait()

        handler = HandlerTable().add("x", waiting if how == "async" else blocking)
        task = asyncio.create_task(run(handler, {}, None, pool))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()


async def test_closing_the_coroutine_passes(pool) -> None:
    """Closing run() while it waits leaves no failure behind."""

    async def handler(data):
        await asyncio.sleep(3600)

    coroutine = run(HandlerTable().add("x", handler), {}, None, pool)
    coroutine.send(None)
    coroutine.close()


def test_without_a_task_every_cancellation_passes() -> None:
    """Outside of a task nothing can tell them apart."""
    passes = []

    def callback() -> None:
        passes.append(Cancellation().passes(asyncio.CancelledError()))

    async def main() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert passes == [True]
