"""Streaming handlers: chunks in order, bounded, closed, and failures told apart."""

import asyncio
import contextvars
import gc
import logging
import threading
from contextlib import aclosing
from typing import Any

import pytest

from lightning.errors import HandlerError, StreamError
from lightning.handlers import HandlerPool, HandlerTable, stream

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="-")
CHUNKS = [b"one", b"", b"three" * 100]


@pytest.fixture
def pool():
    pool = HandlerPool(8)
    yield pool
    pool.shutdown(wait=True)


def start(function: Any, pool: HandlerPool, buffer: int = 32) -> Any:
    handler = HandlerTable().add_streaming("s", function)
    return stream(handler, {"d": 1}, "context", pool, buffer=buffer)


async def collect(function: Any, pool: HandlerPool, buffer: int = 32) -> list[bytes]:
    async with aclosing(start(function, pool, buffer)) as chunks:
        return [chunk async for chunk in chunks]


async def wait(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def time_out_when(event: threading.Event, chunks: Any) -> None:
    async with asyncio.timeout(30) as limit:
        # The reader waits by then, and the loop may well wait for the thread.
        asyncio.get_running_loop().call_soon(
            lambda: event.wait(30) and limit.reschedule(0)
        )
        await anext(chunks)


class Object:
    def __init__(self, handle: Any) -> None:
        self.handle = handle


# The ways to write a streaming handler, each giving the chunks it is made with.


def as_generator(chunks):
    def handler(data, context):
        assert (data, context) == ({"d": 1}, "context")
        yield from chunks

    return handler


def as_iterable(chunks):
    return lambda data: list(chunks)


def as_iterator(chunks):
    return lambda data: iter(chunks)


def as_async_generator(chunks):
    async def handler(data, context):
        assert (data, context) == ({"d": 1}, "context")
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk

    return handler


def as_async_function(chunks):
    async def handler(data):
        return list(chunks)

    return handler


def as_async_function_of_generator(chunks):
    async def handler(data, context):
        return as_async_generator(chunks)(data, context)

    return handler


def as_object(chunks):
    def handle(synapse_type, data):
        assert (synapse_type, data) == ("s", {"d": 1})
        yield from chunks

    return Object(handle)


def as_sender(chunks):
    class Handler:
        def handle(self, synapse_type, data, sender):
            assert (synapse_type, data) == ("s", {"d": 1})
            for chunk in chunks:
                sender.send(chunk)

    return Handler()


def as_async_sender(chunks):
    class Handler:
        async def handle(self, synapse_type, data, sender, context):
            assert (synapse_type, data, context) == ("s", {"d": 1}, "context")
            for chunk in chunks:
                await sender.send(chunk)

    return Handler()


FORMS = [
    as_generator,
    as_iterable,
    as_iterator,
    as_async_generator,
    as_async_function,
    as_async_function_of_generator,
    as_object,
    as_sender,
    as_async_sender,
]
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


@EVERY_FORM
@pytest.mark.parametrize("buffer", [1, 2, 32])
async def test_chunks_arrive_in_order(form: Any, buffer: int, pool) -> None:
    """Every form gives its chunks, empty ones too, and then ends for good."""
    assert await collect(form(CHUNKS), pool, buffer) == CHUNKS
    many = [b"%d" % i for i in range(200)]
    assert await collect(form(many), pool, buffer) == many
    assert await collect(form([]), pool, buffer) == []
    chunks = start(form([b"x"]), pool, buffer)
    assert [c async for c in chunks] == [b"x"]
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    await chunks.aclose()
    await chunks.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


@EVERY_FORM
@pytest.mark.parametrize("bad", ["text", 5, None, ["x"], object()])
async def test_a_chunk_must_be_bytes(form: Any, bad: Any, pool) -> None:
    """The chunks before it arrive, then it is a StreamError that names the type."""
    chunks = start(form([b"good", bad, b"never"]), pool)
    assert await anext(chunks) == b"good"
    with pytest.raises(StreamError, match=f"must be bytes, not {type(bad).__name__}"):
        await anext(chunks)
    await chunks.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


@EVERY_FORM
async def test_mutable_chunks_are_copied(form: Any, pool) -> None:
    """A handler may fill one buffer again and again."""
    buffer = bytearray(b"0")

    def refill():
        for i in range(5):
            buffer[0] = 48 + i
            yield buffer if i % 2 else memoryview(buffer)

    if form in (as_iterable, as_async_function):
        # These keep all chunks at once, which here is one object.
        assert await collect(form(refill()), pool) == [b"4"] * 5
    else:
        found = await collect(form(refill()), pool)
        assert found == [b"0", b"1", b"2", b"3", b"4"]
        assert {type(c) for c in found} == {bytes}


@EVERY_FORM
@pytest.mark.parametrize(
    "error", [ValueError("the text"), SystemExit("the text"), MemoryError("the text")]
)
async def test_a_failure_comes_after_the_chunks_before_it(form, error, pool) -> None:
    """What the handler raises is a HandlerError with its text and cause."""

    def failing():
        yield b"good"
        raise error

    chunks = start(form(failing()), pool)
    if form not in (as_iterable, as_async_function):
        assert await anext(chunks) == b"good"
    with pytest.raises(HandlerError, match="the text") as caught:
        await anext(chunks)
    assert caught.value.__cause__ is error
    await chunks.aclose()


@EVERY_FORM
async def test_a_handlers_own_cancelled_error_is_a_failure(form: Any, pool) -> None:
    """CancelledError of the handler's making does not cancel the reader."""

    def failing():
        raise asyncio.CancelledError("mine")
        yield

    with pytest.raises(HandlerError, match="CancelledError"):
        await collect(form(failing()), pool)
    assert asyncio.current_task().cancelling() == 0


def forget_to_await(data):
    return as_async_function([])(data)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda data: None, "returned NoneType, not an iterable"),
        (lambda data: b"raw", "returned bytes, not an iterable"),
        (lambda data: "text", "returned str, not an iterable"),
        (lambda data: {"a": b""}, "returned dict, not an iterable"),
        (lambda data: 5, "returned int, not an iterable"),
        (lambda data: as_async_generator([])(data, 1), "returned an async iterable"),
        (forget_to_await, "returned a coroutine"),
        (Object(lambda s, d, sender: forget_to_await(d)), "returned a coroutine"),
    ],
)
async def test_other_results_are_failures(function: Any, text: str, pool) -> None:
    """A result that is no iterable of chunks is a HandlerError that says so."""
    with pytest.raises(HandlerError, match=text):
        await collect(function, pool)


async def test_an_async_function_of_something_else_is_a_failure(pool) -> None:
    """The same for an async def that streams."""

    async def nothing(data):
        return None

    with pytest.raises(HandlerError, match="returned NoneType"):
        await collect(nothing, pool)

    async def ends(data):
        raise StopAsyncIteration

    with pytest.raises(HandlerError, match="StopAsyncIteration"):
        await collect(ends, pool)


async def test_a_handler_may_raise_stream_errors(pool) -> None:
    """StreamError and HandlerError of the handler pass unchanged."""
    for error in (StreamError("mine"), HandlerError("mine")):
        for form in (as_generator, as_async_generator, as_sender, as_async_sender):

            def failing(error=error):
                raise error
                yield

            with pytest.raises(type(error)) as caught:
                await collect(form(failing()), pool)
            assert caught.value is error


# Threads and variables.


async def test_a_generator_stays_in_one_thread(pool) -> None:
    """From its first line to its finally, so that thread-bound objects work in it."""
    variable.set("caller")
    threads: list[Any] = []
    closed = threading.Event()

    def handler(data):
        try:
            threads.append(threading.current_thread())
            for _ in range(100):
                threads.append(threading.current_thread())
                yield variable.get().encode()
        finally:
            threads.append(threading.current_thread())
            closed.set()

    async with aclosing(start(handler, pool, 4)) as chunks:
        for _ in range(50):
            assert await anext(chunks) == b"caller"
            await asyncio.sleep(0)
    await wait(closed)
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


async def test_nothing_runs_before_the_first_chunk_is_asked_for(pool) -> None:
    """A stream that is never read never starts its handler."""
    ran = []

    def handler(data):
        ran.append(1)
        yield b""

    chunks = start(handler, pool)
    await chunks.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert not ran
    assert pool.unfinished == 0


# Back-pressure.


@pytest.mark.parametrize("buffer", [1, 3, 32])
@pytest.mark.parametrize("form", [as_generator, as_iterator, as_sender])
async def test_a_thread_is_never_further_ahead_than_the_buffer(
    form: Any, buffer: int, pool
) -> None:
    """The handler is suspended while the reader is behind."""
    produced = 0
    full = threading.Event()

    def counting():
        nonlocal produced
        for _ in range(200):
            produced += 1
            if produced == read + buffer:
                full.set()
            yield b"x"

    read = 0
    async with aclosing(start(form(counting()), pool, buffer)) as chunks:
        async for _ in chunks:
            read += 1
            # A sender has the next chunk in hand when it finds no room for it.
            assert produced - read <= buffer + (form is as_sender)
            if read == 50:
                full.clear()
                if produced < read + buffer:
                    await wait(full)
                assert produced - read <= buffer + (form is as_sender)
    assert read == produced == 200


async def test_an_async_sender_is_never_further_ahead_than_the_buffer(pool) -> None:
    """Sending waits while the reader is behind."""
    sent = 0

    class Handler:
        async def handle(self, synapse_type, data, sender):
            nonlocal sent
            for _ in range(50):
                await sender.send(b"x")
                sent += 1

    read = 0
    async with aclosing(start(Handler(), pool, 3)) as chunks:
        async for _ in chunks:
            read += 1
            for _ in range(20):
                await asyncio.sleep(0)
            assert sent - read <= 3
    assert read == 50


# Closing and abandoning.


async def test_closing_runs_a_generators_finally(pool) -> None:
    """Closed midway, a sync generator ends in its thread, also while it waits for room."""
    for read in (1, 3):
        closed = threading.Event()

        def handler(data, closed=closed):
            try:
                while True:
                    yield b"x"
            finally:
                closed.set()

        chunks = start(handler, pool, 2)
        for _ in range(read):
            await anext(chunks)
        await chunks.aclose()
        await wait(closed)


async def test_closing_an_async_generator_runs_its_finally_before_it_returns(
    pool,
) -> None:
    """An async generator's clean-up is awaited."""
    closed = []

    async def handler(data):
        try:
            while True:
                yield b"x"
        finally:
            await asyncio.sleep(0)
            closed.append(1)

    chunks = start(handler, pool)
    await anext(chunks)
    await chunks.aclose()
    assert closed == [1]


async def test_closing_cancels_an_async_sender(pool) -> None:
    """Its clean-up is awaited; the reader's buffer does not matter."""
    closed = []

    class Handler:
        async def handle(self, synapse_type, data, sender):
            try:
                while True:
                    await sender.send(b"x")
            finally:
                closed.append(1)

    chunks = start(Handler(), pool, 2)
    await anext(chunks)
    await chunks.aclose()
    assert closed == [1]


async def test_sending_to_a_reader_that_has_gone_fails(pool) -> None:
    """A blocking sender learns it at its next chunk, or while it waits."""
    seen = []
    ended = threading.Event()

    class Handler:
        def handle(self, synapse_type, data, sender):
            try:
                while True:
                    sender.send(b"x")
            except StreamError as error:
                seen.append(str(error))
                ended.set()
                raise

    chunks = start(Handler(), pool, 2)
    await anext(chunks)
    await chunks.aclose()
    await wait(ended)
    assert "the reader of the stream has gone" in seen[0]


async def test_a_timeout_while_a_generator_yields_nothing(pool) -> None:
    """A stuck sync generator is given up without blocking the loop, and closed later."""
    entered = threading.Event()
    release = threading.Event()
    closed = threading.Event()

    def handler(data):
        try:
            entered.set()
            release.wait(30)
            yield b"late"
        finally:
            closed.set()

    chunks = start(handler, pool)
    with pytest.raises(TimeoutError):
        await time_out_when(entered, chunks)
    await chunks.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    release.set()
    await wait(closed)


async def test_reading_goes_on_after_a_timeout(pool) -> None:
    """A time limit for one chunk loses nothing, and upsets no callback."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, complaint: complaints.append(complaint)
    )
    release = threading.Event()
    handed_over = threading.Event()

    def handler(data):
        release.wait(30)
        yield b"late"
        handed_over.set()

    async with aclosing(start(handler, pool)) as chunks:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(chunks)
        # The chunk comes while nobody reads, and finds the reader that gave up.
        release.set()
        await wait(handed_over)
        await asyncio.sleep(0)
        assert await anext(chunks) == b"late"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert not complaints


async def test_a_timeout_reaches_an_async_generator(pool) -> None:
    """It is cancelled where it waits."""
    closed = []

    async def handler(data):
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            closed.append(1)

    chunks = start(handler, pool)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(chunks)
    assert closed == [1]
    await chunks.aclose()


async def test_a_timeout_reaches_an_async_function(pool) -> None:
    """An async def that does not come to its chunks is cancelled, and not tried again."""
    calls = []

    async def handler(data):
        calls.append(1)
        await asyncio.Event().wait()

    chunks = start(handler, pool)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(chunks)
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert calls == [1]


@pytest.mark.parametrize("form", [as_generator, as_sender, as_async_sender])
async def test_a_forgotten_stream_frees_its_handler(form: Any, pool) -> None:
    """A reader that drops the stream without closing it holds no thread for ever."""
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    source = endless()
    chunks = start(form(source), pool, 2)
    await anext(chunks)
    del chunks
    gc.collect()
    if form is as_async_sender:
        for _ in range(5):
            await asyncio.sleep(0)
        source.close()
    if form is as_sender:
        # The handler has ended; its generator is ours.
        while pool.unfinished:
            await asyncio.to_thread(threading.Event().wait, 0.001)
        source.close()
    await wait(closed)


async def test_failures_while_closing_are_logged(pool, caplog) -> None:
    """Nobody waits for them any more, but they are not lost."""
    caplog.set_level(logging.WARNING, "lightning.handlers")
    closed = threading.Event()

    def sync(data):
        try:
            while True:
                yield b"x"
        finally:
            closed.set()
            raise ZeroDivisionError("in the thread")

    async def asynchronous(data):
        try:
            while True:
                yield b"x"
        finally:
            raise ZeroDivisionError("on the loop")

    for handler in (sync, asynchronous):
        chunks = start(handler, pool)
        await anext(chunks)
        await chunks.aclose()
    await wait(closed)
    pool.shutdown(wait=True)
    assert "handler 's' failed while its stream was closed" in caplog.text
    assert "in the thread" in caplog.text
    assert "on the loop" in caplog.text


async def test_a_generator_that_will_not_close_is_logged(pool, caplog) -> None:
    """Yielding in its finally is the generator's mistake, not the server's."""

    def stubborn(data):
        try:
            yield b"first"
            yield b"second"
        finally:
            yield b"never"

    chunks = start(stubborn, pool, 1)
    await anext(chunks)
    await chunks.aclose()
    pool.shutdown(wait=True)
    assert "generator ignored GeneratorExit" in caplog.text


async def test_being_cancelled_while_closing_passes(pool) -> None:
    """The caller's cancellation is not swallowed by a slow clean-up."""

    async def handler(data):
        try:
            while True:
                yield b"x"
        finally:
            await asyncio.Event().wait()

    chunks = start(handler, pool)
    await anext(chunks)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await chunks.aclose()


# The pool.


async def test_no_thread_left_is_a_failure() -> None:
    """A pool that is full or shut down fails the stream at its first chunk."""
    pool = HandlerPool(1, max_waiting=0)
    release = threading.Event()
    pool.submit(release.wait, 30)
    with pytest.raises(HandlerError, match="busy"):
        await collect(as_generator(CHUNKS), pool)
    release.set()
    pool.shutdown(wait=True)
    with pytest.raises(HandlerError, match="shut down"):
        await collect(as_generator(CHUNKS), pool)


async def test_a_stream_that_waits_for_a_thread_learns_of_the_shutdown() -> None:
    """It fails instead of waiting for ever."""
    pool = HandlerPool(1)
    release = threading.Event()
    pool.submit(release.wait, 30)
    chunks = start(as_generator(CHUNKS), pool)
    first = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    pool.shutdown()
    with pytest.raises(HandlerError, match="the stream was closed"):
        await first
    await chunks.aclose()
    release.set()
    pool.shutdown(wait=True)


async def test_a_stream_closed_before_its_thread_never_starts() -> None:
    """What waited for a thread when it was closed is dropped."""
    pool = HandlerPool(1)
    release = threading.Event()
    pool.submit(release.wait, 30)
    ran = []

    def handler(data):
        ran.append(1)
        yield b""

    chunks = start(handler, pool)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(chunks)
    await chunks.aclose()
    release.set()
    pool.shutdown(wait=True, cancel_futures=False)
    assert not ran


def test_a_stream_outlives_its_loop_quietly() -> None:
    """The loop ends while a handler is stuck; the thread ends later without a word."""
    pool = HandlerPool(1)
    release = threading.Event()
    entered = threading.Event()

    def handler(data):
        entered.set()
        release.wait(30)
        yield b"late"

    async def main() -> None:
        chunks = start(handler, pool)
        reading = asyncio.ensure_future(anext(chunks))
        await wait(entered)
        reading.cancel()

    asyncio.run(main())
    release.set()
    pool.shutdown(wait=True)
    assert pool.unfinished == 0
