"""Answering by handlers, with an exchange that only records; the wire's is elsewhere."""

import asyncio
import itertools
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from lightning import HandlerContext, LightningServerConfig, PeerAddr
from lightning import answers as answers_module
from lightning._core.wire.messages import StreamChunk, StreamEnd, SynapseResponse
from lightning.answers import Answers, fail
from lightning.handlers import HandlerPool, HandlerTable
from tests.support.waiting import until_async

CONTEXT = HandlerContext("v", PeerAddr("127.0.0.1", 1), "h", 0.0, "conn_v_1")


class Exchange:
    """Takes so many frames, then wants no more."""

    stream_id = 8
    cancelled = False

    def __init__(self, wants: int = 100) -> None:
        self.wants = wants
        self.on_cancel = None
        self.frames: list[tuple[bytes, bool]] = []

    def respond(self, frame: bytes, fin: bool = True) -> bool:
        if len(self.frames) >= self.wants or (self.frames and self.frames[-1][1]):
            return False
        self.frames.append((frame, fin))
        return True


@pytest.fixture
def answers():
    answers = Answers(LightningServerConfig(), lambda: None)
    yield answers
    answers.pool.shutdown(wait=True)


def streaming(function):
    return HandlerTable().add_streaming("h", function)


async def test_a_stream_ends_with_the_client_that_wants_no_more(answers):
    closed = []

    async def endless(data: dict):
        try:
            while True:
                yield b"x"
        finally:
            closed.append(1)

    exchange = Exchange(wants=3)
    await answers.stream(
        exchange, streaming(endless), {}, CONTEXT, lambda stream_id: None
    )
    assert [fin for _, fin in exchange.frames] == [False] * 3
    assert closed == [1]


async def test_a_stream_waits_for_what_was_sent(answers):
    """One chunk is asked for at a time, none while the last is on its way."""
    made, rooms = [], []

    async def three(data: dict):
        for n in range(3):
            made.append(n)
            yield b"x"

    def sent(stream_id: int):
        assert stream_id == 8
        rooms.append(asyncio.get_running_loop().create_future())
        return rooms[-1]

    exchange = Exchange()
    task = asyncio.create_task(
        answers.stream(exchange, streaming(three), {}, CONTEXT, sent)
    )
    for n in range(3):
        for _ in range(10):
            await asyncio.sleep(0)
        assert (made, len(rooms)) == (list(range(n + 1)), n + 1)
        rooms[n].set_result(None)
    await task
    kinds = [frame[0] for frame, _ in exchange.frames]
    assert kinds == [5, 5, 5, 6]
    assert [fin for _, fin in exchange.frames] == [False] * 3 + [True]
    assert StreamChunk.from_payload(exchange.frames[0][0][5:]).data == b"x"


async def test_a_stream_that_never_waits_leaves_others_their_turn(answers):
    """The event loop is everybody's."""

    async def endless(data: dict):
        while True:
            yield b"x"

    exchange = Exchange(wants=10_000)
    task = asyncio.create_task(
        answers.stream(exchange, streaming(endless), {}, CONTEXT, lambda _: None)
    )
    turns = [0]
    while not task.done():
        await asyncio.sleep(0)
        turns.append(len(exchange.frames))
    assert len(exchange.frames) == 10_000
    assert max(b - a for a, b in itertools.pairwise(turns)) <= 16


def test_a_failure_is_in_the_frame_that_its_caller_waits_for():
    for handler, kind in ((None, 4), (streaming(lambda data: []), 6)):
        exchange = Exchange()
        fail(exchange, "why", handler)
        ((frame, fin),) = exchange.frames
        assert (frame[0], fin) == (kind, True)
        message = (SynapseResponse if kind == 4 else StreamEnd).from_payload(frame[5:])
        assert (message.success, message.error) == (False, "why")


class Stuck:
    """A plain handler in the only thread that there is."""

    def __init__(self, answers: Answers) -> None:
        answers.pool = HandlerPool(1)
        self.answers = answers
        self.entered = threading.Event()
        self.release = threading.Event()
        self.started: list[int] = []
        self.handler = HandlerTable().add("h", self.run)

    def run(self, data: dict) -> dict:
        self.started.append(data["n"])
        self.entered.set()
        self.release.wait(30)
        return {}

    def begin(self, n: int) -> Exchange:
        exchange = Exchange()
        self.answers.in_thread(exchange, self.handler, {"n": n}, None)
        return exchange


def text_of(exchange: Exchange) -> str | None:
    ((frame, fin),) = exchange.frames
    assert fin
    return SynapseResponse.from_payload(frame[5:]).error


def test_a_cancelled_request_in_the_queue_never_starts(answers):
    """What waited for a thread when its client left is dropped."""
    stuck = Stuck(answers)
    first, second, third = (stuck.begin(n) for n in range(3))
    assert stuck.entered.wait(30)
    assert len(answers.running) == 3
    second.on_cancel()
    assert len(answers.running) == 2
    stuck.release.set()
    answers.pool.shutdown(wait=True, cancel_futures=False)
    assert stuck.started == [0, 2]
    assert text_of(first) is text_of(third) is None
    assert not second.frames
    assert not answers.running


def test_shutting_the_pool_down_answers_what_waits(answers):
    """A request that waits for a thread is answered, one that runs goes on."""
    stuck = Stuck(answers)
    first, second = stuck.begin(1), stuck.begin(2)
    assert stuck.entered.wait(30)
    answers.pool.shutdown()
    assert text_of(second) == "request processing failed"
    stuck.release.set()
    answers.pool.shutdown(wait=True)
    assert text_of(first) is None
    assert text_of(stuck.begin(3)) == "request processing failed"
    assert stuck.started == [1]
    assert not answers.running


async def test_the_wait_for_a_thread_counts(monkeypatch):
    """A deadline is that of the arrival: what was begun late is not answered late."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(answers_module, "time", clock)
    answers = Answers(LightningServerConfig(handler_timeout_secs=10), lambda: None)
    stuck = Stuck(answers)
    first = stuck.begin(0)
    assert stuck.entered.wait(30)
    now[0] = 101.0
    second = stuck.begin(1)
    now[0] = 109.0
    stuck.entered.clear()
    stuck.release.set()
    stuck.release = threading.Event()
    assert stuck.entered.wait(30)
    assert text_of(first) is None
    third = stuck.begin(2)
    now[0] = 112.0
    expiring = asyncio.create_task(answers.expire())
    await until_async(lambda: second.frames)
    assert text_of(second) == "handler timed out"
    assert not third.frames
    assert stuck.handler.tally.timed_out == 1
    expiring.cancel()
    stuck.release.set()
    answers.pool.shutdown(wait=True, cancel_futures=False)
    assert text_of(third) is None
    assert stuck.handler.tally.ok == 2
    assert stuck.handler.tally.seconds == 9.0 + 3.0


async def test_what_waited_too_long_for_a_thread_is_answered_and_never_begun():
    """Two wait, each for its own time, though the first has a thread since."""
    answers = Answers(LightningServerConfig(handler_timeout_secs=1), lambda: None)
    stuck = Stuck(answers)
    exchanges = [stuck.begin(n) for n in range(3)]
    expiring = asyncio.create_task(answers.expire())
    await until_async(lambda: all(exchange.frames for exchange in exchanges))
    assert [text_of(exchange) for exchange in exchanges] == ["handler timed out"] * 3
    expiring.cancel()
    stuck.release.set()
    answers.pool.shutdown(wait=True, cancel_futures=False)
    assert stuck.started == [0]
    assert not answers.running
    assert [len(exchange.frames) for exchange in exchanges] == [1, 1, 1]


async def test_looking_for_late_requests_keeps_none_of_them():
    """Who looks at a request that has time left forgets it until it looks again."""
    answers = Answers(LightningServerConfig(handler_timeout_secs=1), lambda: None)
    handler = HandlerTable().add("h", lambda data: data)
    looking = asyncio.create_task(answers.expire())
    looked = []

    class Watched(dict):
        def items(self):
            looked.append(1)
            return super().items()

    answers.running = Watched()
    exchange = Exchange()
    answers.running[exchange] = handler, time.monotonic() + 60
    await until_async(lambda: looked)
    del answers.running[exchange]
    gone = weakref.ref(exchange)
    del exchange
    assert gone() is None
    looking.cancel()
    answers.pool.shutdown(wait=True)


def test_an_answer_that_cannot_be_encoded_is_mended_if_somebody_can(answers):
    handler, mended = HandlerTable().add("h", lambda data: {}), []
    exchange = Exchange()
    answers.mend = lambda result: mended.append(result) or {"n": 1}
    answers._respond(exchange, handler, {"n": 1 << 70})
    told = SynapseResponse.from_payload(exchange.frames[0][0][5:])
    assert (told.success, told.data, mended) == (True, {"n": 1}, [{"n": 1 << 70}])
    answers._respond(exchange := Exchange(), handler, {"n": 2})
    assert len(mended) == 1
    answers.mend = lambda result: result
    answers._respond(exchange := Exchange(), handler, {"n": 1 << 70})
    assert not SynapseResponse.from_payload(exchange.frames[0][0][5:]).success
