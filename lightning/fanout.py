"""Asking many miners at once: what `query_many` gives.

Requests to miners that are logged in leave together, without a task or a thread for
each; only those that must be reached first need one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from lightning._core.io.base import FORKED
from lightning._core.io.gathering import Gathering
from lightning._core.io.links import Call
from lightning._core.wire.exchange import read_answer
from lightning.errors import (
    ConfigError,
    LightningConnectionError,
    LightningError,
    RequestTimeout,
)
from lightning.types import PeerAddr, QuicAxonInfo, QuicResponse

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from types import TracebackType

    from lightning._core.io.loop import LoopThread
    from lightning._core.io.transport import Connection
    from lightning.client import AsyncLightning
    from lightning.types import SynapseResponseDict

# A miner and the frame for it.
Order = tuple[QuicAxonInfo, bytes]

# Says in an error after how many seconds, at which address and with whom it happened.
Locate = Callable[[LightningError, float, PeerAddr, str], object]

# Seconds after which a blocking caller looks if the event loop is still there.
LOOK = 1.0


def orders(
    axons: Iterable[Any], request: Any, encode: Callable[[Any], bytes]
) -> list[Order]:
    """Return what to send to whom, all checked and encoded.

    Args:
        axons: Anything `QuicAxonInfo.coerce` takes, each.
        request: One for all, or a sequence of as many as there are axons.
        encode: Makes the frame of anything `QuicRequest.coerce` takes.

    Raises:
        ConfigError: There are not as many requests as axons.
        MissingField, TypeError, OverflowError, EncodeError, FrameTooLarge: As
            `AsyncLightning.query_axon`.
    """
    miners = [QuicAxonInfo.coerce(axon) for axon in axons]
    if not isinstance(request, Sequence) or isinstance(request, (str, bytes)):
        frame = encode(request)
        return [(miner, frame) for miner in miners]
    if len(request) != len(miners):
        raise ConfigError(f"{len(request)} requests for {len(miners)} axons")
    return list(zip(miners, map(encode, request), strict=True))


def _read(call: Call) -> QuicResponse | Exception:
    try:
        response = read_answer(call)
    except Exception as error:
        return error
    return QuicResponse(
        response.success, response.data, call.seconds * 1e3, response.error
    )


class _Outcomes:
    """What has come of each order, and in which order it came.

    An answer is decoded by whoever reads it.
    """

    def __init__(self, wanted: list[Order], locate: Locate) -> None:
        self.order: list[int] = []
        # Each None, a Call, or what is read.
        self._values: list[Any] = [None] * len(wanted)
        self._axons = [axon for axon, _ in wanted]
        self._locate = locate
        self._begun = time.monotonic()
        # Seconds after which those were asked that had to be reached first.
        self.late: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._values)

    @property
    def left(self) -> int:
        """How many are to come."""
        return len(self._values) - len(self.order)

    def add(self, index: int, value: Exception | Call) -> bool:
        """Keep what came first; says if it is that."""
        if self._values[index] is not None:
            return False
        if isinstance(value, LightningError) and value.elapsed is None:
            self._tell(index, value, self.elapsed)
        self._values[index] = value
        self.order.append(index)
        return True

    def missing(self) -> list[int]:
        """Return those that are to come."""
        return [i for i, value in enumerate(self._values) if value is None]

    def take(self, index: int) -> Exception | Call:
        """Return one that has come, as it came."""
        return cast("Exception | Call", self._values[index])

    def read(self, index: int) -> QuicResponse | Exception:
        """Return one that has come, decoded."""
        call = self._values[index]
        if isinstance(call, Call):
            outcome = self._values[index] = _read(call)
            if isinstance(outcome, LightningError):
                seconds = call.seconds
                if isinstance(outcome, RequestTimeout):
                    seconds = max(seconds, outcome.timeout)
                self._tell(index, outcome, self.late.get(index, 0.0) + seconds)
        return cast("QuicResponse | Exception", self._values[index])

    @property
    def elapsed(self) -> float:
        """Seconds since all was begun."""
        return time.monotonic() - self._begun

    def _tell(self, index: int, error: LightningError, seconds: float) -> None:
        axon = self._axons[index]
        self._locate(error, seconds, axon.address, axon.hotkey)


class FanOut:
    """The outcomes of asking many miners, made by `AsyncLightning.query_many`.

    Await it for the list of all, in the order of the axons; or iterate over it
    (``async for index, outcome in …``) to have each as it comes, once. An outcome is a
    `QuicResponse`, or the exception that `AsyncLightning.query_axon` would have raised.

    What is under way is dropped by `close`, by leaving it as an async context manager,
    by cancelling whoever waits here, and by letting go of the object.
    """

    def __init__(
        self,
        client: AsyncLightning,
        wanted: list[Order],
        timeout: float | None,
        deadline: float | None,
        tell: Callable[[], object] | None = None,
    ) -> None:
        self._calls: dict[int, Call] = {}
        self._tasks: dict[int, asyncio.Task[Connection]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = loop = asyncio.get_running_loop()
        self._outcomes = _Outcomes(wanted, client._locate)
        self._pid = os.getpid()
        self._position = 0
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []
        self._tell = tell
        # Nothing that the loop or the driver has keeps this object alive.
        self._me = weakref.ref(self)
        self._timeout = timeout
        # Of those that are not asked yet.
        self._frames: dict[int, bytes] = {}
        for index, (axon, frame) in enumerate(wanted):
            connection = client._connection_to(axon)
            if connection is None:
                task = loop.create_task(client._route(axon))
                task.add_done_callback(_Done(self._me, index).set_task)
                self._tasks[index] = task
                self._frames[index] = frame
            else:
                self._ask(index, connection, frame)
        if deadline is not None and self._outcomes.left:
            self._timers.append(
                loop.call_later(deadline, _time_out, self._me, deadline)
            )

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {len(self._outcomes.order)} of "
            f"{len(self._outcomes)}>"
        )

    def __len__(self) -> int:
        return len(self._outcomes)

    def __del__(self) -> None:
        if self._calls or self._tasks:
            try:
                # Perhaps this is another thread.
                self._loop.call_soon_threadsafe(_drop, self._under_way())
            except RuntimeError:
                return  # The loop is closed, and everything with it.

    def __await__(self) -> Generator[Any, None, list[QuicResponse | Exception]]:
        return self.collect_all().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, QuicResponse | Exception]:
        while self._position >= len(self._outcomes.order):
            if self._closed or not self._outcomes.left:
                raise StopAsyncIteration
            await self._wait()
        index = self._outcomes.order[self._position]
        self._position += 1
        return index, self._outcomes.read(index)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def collect_all(self) -> list[QuicResponse | Exception]:
        """Wait for all and return them in the order of the axons.

        Raises:
            RuntimeError: It was closed before all had come.
        """
        while self._outcomes.left:
            if self._closed:
                raise RuntimeError("this fan-out was closed before all had come")
            await self._wait()
        return [self._outcomes.read(index) for index in range(len(self))]

    def close(self) -> None:
        """Drop what is under way; what has come stays. Fine when all has come."""
        self._closed = True
        self._stop()
        self._announce()

    def _stop(self) -> None:
        under_way = self._under_way()
        self._calls.clear()
        self._tasks.clear()
        self._frames.clear()
        self._timers.clear()
        _drop(under_way)

    def _under_way(self) -> list[Any]:
        return [*self._calls.values(), *self._tasks.values(), *self._timers]

    async def _wait(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(FORKED)
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self.close()
            raise

    def _reached(self, index: int, connection: Connection) -> None:
        """Go on with a miner that has been dialled."""
        if self._tasks.pop(index, None) is not None:
            self._outcomes.late[index] = self._outcomes.elapsed
            self._ask(index, connection, self._frames.pop(index))

    def _ask(self, index: int, connection: Connection, frame: bytes) -> None:
        try:
            done = _Done(self._me, index)
            self._calls[index] = connection.call(frame, done, self._timeout)
        except Exception as error:
            self._add(index, error)

    def _add(self, index: int, value: Exception | Call) -> None:
        """Keep what has become of a miner."""
        self._calls.pop(index, None)
        self._tasks.pop(index, None)
        if self._closed or not self._outcomes.add(index, value):
            return
        if not self._outcomes.left:
            self._stop()
        self._announce()

    def _time_out(self, seconds: float) -> None:
        """Give up on what has not come."""
        dropped = self._under_way()
        for index in self._outcomes.missing():
            self._add(index, RequestTimeout("query timed out", timeout=seconds))
        _drop(dropped)

    def _announce(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._tell is not None:
            self._tell()


class _Done:
    """Takes the end of one call or task, in place of a future."""

    __slots__ = ("_fan", "_index")

    def __init__(self, fan: weakref.ref[FanOut], index: int) -> None:
        self._fan = fan
        self._index = index

    def done(self) -> bool:
        return False

    def set_result(self, call: Call) -> None:
        fan = self._fan()
        if fan is not None:
            fan._add(self._index, call)

    def set_task(self, task: asyncio.Task[Connection]) -> None:
        error = _cut_off() if task.cancelled() else task.exception()
        fan = self._fan()
        if fan is None:
            return
        if error is None:
            fan._reached(self._index, task.result())
        elif isinstance(error, Exception):
            fan._add(self._index, error)


def _time_out(fan: weakref.ref[FanOut], seconds: float) -> None:
    late = fan()
    if late is not None:
        late._time_out(seconds)


def _drop(under_way: Iterable[Any]) -> None:
    """Cancel calls, tasks and timers."""
    for each in under_way:
        each.cancel()


class BlockingFanOut:
    """The outcomes of asking many miners, made by `Lightning.query_many`.

    An iterator of ``(index, outcome)``, each as it comes; `collect_all` has them in the
    order of the axons. An outcome is a dict as `Lightning.query_axon` returns it, or
    the exception that it would have raised. For one thread at a time.

    What is under way is dropped by `close`, by leaving it as a context manager, by
    whatever is raised while a thread waits here (Ctrl-C, for one), and by letting go of
    the object.
    """

    def __init__(
        self,
        owner: object,
        client: AsyncLightning,
        io: LoopThread,
        wanted: list[Order],
        timeout: float | None,
        deadline: float | None,
    ) -> None:
        now = time.monotonic()
        # A client that is dropped closes itself, and this with it.
        self._owner = owner
        self._io = io
        self._outcomes = _Outcomes(wanted, client._locate)
        self._position = 0
        self._closed = False
        self._timeout = timeout
        # When, and after how many seconds.
        self._deadline = None if deadline is None else (now + deadline, deadline)
        self._gathering: Gathering | None = None
        # The others go through the event loop: who must be reached first, and who is
        # behind another socket.
        self._bell = _Bell()
        self._far: FanOut | None = None
        self._far_at: list[int] = []
        self._far_seen = 0
        try:
            self._start(client, wanted)
            if self._far_at:
                self._far = io.call(
                    _begin,
                    client,
                    [wanted[index] for index in self._far_at],
                    timeout,
                    deadline,
                    self._bell.ring,
                )
        except BaseException:
            self.close()
            raise

    def _start(self, client: AsyncLightning, wanted: list[Order]) -> None:
        for index, (axon, frame) in enumerate(wanted):
            connection = client._connection_to(axon)
            if connection is None:
                self._far_at.append(index)
                continue
            if self._gathering is None:
                self._gathering = self._bell.gathering = Gathering(connection)
            try:
                if not self._gathering.start(connection, frame, index, self._timeout):
                    self._far_at.append(index)
            except ConnectionError as error:
                self._outcomes.add(index, error)
        if self._gathering is not None:
            self._gathering.flush()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {len(self._outcomes.order)} of "
            f"{len(self._outcomes)}>"
        )

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[tuple[int, SynapseResponseDict | Exception]]:
        return self

    def __next__(self) -> tuple[int, SynapseResponseDict | Exception]:
        while self._position >= len(self._outcomes.order):
            if self._closed or not self._outcomes.left:
                raise StopIteration
            self._wait()
        index = self._outcomes.order[self._position]
        self._position += 1
        return index, self._read(index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def collect_all(self) -> list[SynapseResponseDict | Exception]:
        """Wait for all and return them in the order of the axons.

        Raises:
            RuntimeError: It was closed before all had come.
        """
        while self._outcomes.left:
            if self._closed:
                raise RuntimeError("this fan-out was closed before all had come")
            self._wait()
        return [self._read(index) for index in range(len(self))]

    def close(self) -> None:
        """Drop what is under way; what has come stays. Fine when all has come."""
        self._closed = True
        if self._gathering is not None:
            self._gathering.cancel()
        if self._far is not None:
            self._io.post(self._far.close)
        self._bell.ring()

    def _read(self, index: int) -> SynapseResponseDict | Exception:
        outcome = self._outcomes.read(index)
        return outcome if isinstance(outcome, Exception) else outcome.to_dict()

    def _wait(self) -> None:
        """Wait until something has come, or its time is over."""
        before = len(self._outcomes.order)
        try:
            while len(self._outcomes.order) == before and not self._closed:
                self._step()
        except BaseException:
            self.close()
            raise

    def _step(self) -> None:
        gathering = self._gathering
        is_near = gathering is not None and len(gathering) > 0
        limit = self._deadline
        until = None if limit is None else limit[0]
        if gathering is not None and is_near:
            for call in gathering.wait(until):
                self._outcomes.add(call.future, call)
        else:
            self._bell.wait(until)
        self._take_far()
        if limit is not None and time.monotonic() >= limit[0]:
            self._give_up(limit[1])

    def _take_far(self) -> None:
        far = self._far
        if far is None:
            return
        is_gone = far._loop.is_closed()
        order = far._outcomes.order
        while self._far_seen < len(order):
            index = order[self._far_seen]
            self._far_seen += 1
            mine = self._far_at[index]
            self._outcomes.late[mine] = far._outcomes.late.get(index, 0.0)
            self._outcomes.add(mine, far._outcomes.take(index))
        if is_gone:
            for index in set(self._far_at).intersection(self._outcomes.missing()):
                self._outcomes.add(index, _cut_off())

    def _give_up(self, seconds: float) -> None:
        for index in self._outcomes.missing():
            self._outcomes.add(
                index, RequestTimeout("query timed out", timeout=seconds)
            )
        if self._gathering is not None:
            self._gathering.cancel()
        if self._far is not None:
            self._io.post(self._far.close)


class _Bell:
    """Tells a blocking caller that there is news from the event loop."""

    def __init__(self) -> None:
        self.gathering: Gathering | None = None
        self._news = threading.Event()

    def ring(self) -> None:
        self._news.set()
        if self.gathering is not None:
            self.gathering.poke()

    def wait(self, until: float | None) -> None:
        left = LOOK if until is None else until - time.monotonic()
        self._news.wait(max(0.0, min(LOOK, left)))
        self._news.clear()


async def _begin(
    client: AsyncLightning,
    wanted: list[Order],
    timeout: float | None,
    deadline: float | None,
    tell: Callable[[], object],
) -> FanOut:
    client._require_endpoint()
    return FanOut(client, wanted, timeout, deadline, tell)


def _cut_off() -> LightningConnectionError:
    return LightningConnectionError("the query was cut off by a close")
