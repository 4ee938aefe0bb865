"""Asking miners from any event loop and any thread, over one client.

A miner knows one connection for each validator hotkey: a second login replaces the
first. So all that one process asks with one hotkey goes over one client, whatever loops
and threads it asks from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

from lightning._core.io.inbox import Inbox
from lightning._core.wire.exchange import read_answer
from lightning._core.wire.messages import encode_synapse_packet
from lightning.blocking import Lightning
from lightning.config import LightningClientConfig
from lightning.dropin.codec import carefully
from lightning.errors import (
    ConnectionClosed,
    EncodeError,
    LightningConnectionError,
    LightningError,
    RequestTimeout,
)
from lightning.signer import as_signer
from lightning.streaming import StreamingResponse
from lightning.types import check_timeout
from lightning.watch import Watch

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from types import TracebackType

    from lightning._core.io.links import Call
    from lightning._core.io.loop import LoopThread
    from lightning._core.io.transport import Connection
    from lightning.client import AsyncLightning
    from lightning.types import QuicAxonInfo

__all__ = ["LINGER", "Answer", "Anywhere", "Chunks"]

T = TypeVar("T")

LINGER = 60.0
"""Seconds that a shared client keeps its connections after its last user has gone."""

# Of a shared client without settings of its own: a whole subnet, and more.
DEFAULTS = LightningClientConfig(max_connections=4096)
# What is read ahead of whoever reads a stream on another loop.
CHUNKS_AHEAD = 64
BYTES_AHEAD = 1 << 20
# Seconds of a timeout that is over.
SOON = 1e-6

CUT_OFF = "the query was cut off by a close"


class Answer(NamedTuple):
    """What a miner answered. A handler that failed gives one too."""

    success: bool
    """Whether the handler succeeded."""

    data: dict[str, Any]
    """What it returned; empty if it failed."""

    error: str | None
    """The miner's error text; None on success."""

    seconds: float
    """From the sending of the request to the last byte of the answer."""

    connect_seconds: float
    """What dial and login took before; 0.0 where the connection was there."""


class Anywhere:
    """Asks miners from any event loop and any thread, over one client.

    Made by `shared` and `of`. All methods may be called from any thread at any time. An
    object made before a fork says so in the child with a RuntimeError.
    """

    def __init__(self, core: _Core) -> None:
        self._core = core
        self._client = core.client
        self._is_released = False

    def __del__(self) -> None:
        # There is none if the constructor was not reached.
        if hasattr(self, "_core"):
            self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client.wallet_hotkey}>"

    @classmethod
    def shared(
        cls, hotkey: str, signer: object, config: LightningClientConfig | None = None
    ) -> Self:
        """Return a share of this process' client of a hotkey.

        The client is made by the first user. It counts what that one gave: signer and
        settings of later users are ignored until all have gone. Whoever comes after
        that brings its own signer, and, where its settings differ, has a new client
        with new connections. ``LINGER`` seconds after the last user has gone the
        client is closed.

        Args:
            hotkey: SS58 address of the validator's hotkey.
            signer: Anything `as_signer` takes.
            config: Settings; None for the defaults with room for 4096 miners.

        Raises:
            ConfigError: The signer is none.
        """
        return cls(_share.join(hotkey, signer, config))

    @staticmethod
    def close_idle() -> None:
        """Close the shared clients that only linger, without waiting for their time."""
        _share.close_idle()

    @classmethod
    def of(cls, client: AsyncLightning | Lightning) -> Self:
        """Return a way to ask over a client of the caller's, who also closes it.

        Where the running loop is the client's own it is used directly. An
        `AsyncLightning` that is in use nowhere belongs to the first loop that asks.
        """
        return cls(_Core(client))

    @property
    def config(self) -> LightningClientConfig:
        """The settings in force."""
        return self._client.config

    def encode(self, name: str, data: Mapping[str, Any]) -> bytes:
        """Return the frame of a request.

        Args:
            name: Of the synapse.
            data: Its fields.

        Raises:
            EncodeError: ``data`` holds what the wire cannot say.
            FrameTooLarge: It is over our own limit.
        """
        now, limit = int(time.time()), self._client.config.max_frame_payload_bytes
        try:
            return encode_synapse_packet(name, data, now, limit)
        except EncodeError:
            return encode_synapse_packet(name, carefully(data), now, limit)

    async def ask(
        self,
        axon: QuicAxonInfo,
        frame: bytes,
        timeout: float | None,
        *,
        connect_timeout: float | None = None,
        max_bytes: int | None = None,
    ) -> Answer:
        """Ask a miner and wait for its answer.

        A miner that is not connected is dialled first, under the rules of back-off.
        Cancelling it resets its stream.

        Args:
            axon: The miner.
            frame: Made by `encode`.
            timeout: Seconds for all of it, dial and login included; None for no limit.
            connect_timeout: Seconds for dial and login, of this call alone: an attempt
                that others wait for goes on. None for the client's ``connect_timeout``,
                which also bounds a longer one.
            max_bytes: Largest payload of the answer; None for the client's
                ``max_frame_payload_bytes``.

        Raises:
            ConfigError: A timeout is not a finite positive number.
            LightningConnectionError: No connection, not within ``connect_timeout``, or
                not yet again.
            HandshakeError: The miner refused the login, or is another one.
            RequestTimeout: No answer in time.
            TransportError: The connection or the stream broke, or the answer is none.
        """
        timeout = check_timeout(timeout)
        client = self._client
        connection = client._connection_to(axon)
        watch: Watch | None = None
        connected = 0.0
        call: Call | None = None
        loop = asyncio.get_running_loop()
        corner = self._core.corner(loop)
        try:
            if connection is None:
                watch = Watch(timeout)
                connection = await self._core.reach(
                    axon, watch, check_timeout(connect_timeout)
                )
                connected = watch.elapsed
                if timeout is not None:
                    timeout = max(watch.left or 0.0, SOON)
            call = corner.start(connection, frame, loop, timeout, max_bytes)
            del frame  # A large one is freed when it has arrived.
            await call.future
            response = read_answer(call)
        except BaseException as error:
            if call is not None:
                corner.cancel(call)
            if isinstance(error, LightningError):
                if watch is not None and isinstance(error, RequestTimeout):
                    error.timeout = watch.timeout or error.timeout
                client._tell(error, axon, call, watch)
            raise
        return Answer(
            response.success, response.data, response.error, call.seconds, connected
        )

    async def ask_many(
        self,
        wanted: Sequence[tuple[QuicAxonInfo, bytes]],
        timeout: float | None,
        *,
        connect_timeout: float | None = None,
        max_bytes: int | None = None,
    ) -> list[Answer | Exception]:
        """Ask any number of miners at once.

        Args:
            wanted: Miners, each with its frame.
            timeout: As for `ask`, of each.
            connect_timeout: Likewise.
            max_bytes: Likewise.

        Returns:
            The answers, or what `ask` would have raised, in order.

        Raises:
            ConfigError: A timeout is not a finite positive number.
        """
        timeout, connect_timeout = (
            check_timeout(timeout),
            check_timeout(connect_timeout),
        )
        client = self._client
        loop = asyncio.get_running_loop()
        corner = self._core.corner(loop)
        under_way: list[Call | asyncio.Task[Answer] | Exception] = []
        try:
            for axon, frame in wanted:
                connection = client._connection_to(axon)
                if connection is None:
                    # Only who must be reached first has a task of its own.
                    ask = self.ask(
                        axon,
                        frame,
                        timeout,
                        connect_timeout=connect_timeout,
                        max_bytes=max_bytes,
                    )
                    under_way.append(loop.create_task(ask))
                    continue
                try:
                    under_way.append(
                        corner.start(connection, frame, loop, timeout, max_bytes)
                    )
                except LightningError as error:
                    client._tell(error, axon, None, None)
                    under_way.append(error)
            return [
                await self._outcome(axon, each)
                for (axon, _), each in zip(wanted, under_way, strict=True)
            ]
        except BaseException:
            for each in under_way:
                if isinstance(each, asyncio.Task):
                    each.cancel()
                elif not isinstance(each, Exception):
                    corner.cancel(each)
            raise

    async def _outcome(
        self, axon: QuicAxonInfo, each: Call | asyncio.Task[Answer] | Exception
    ) -> Answer | Exception:
        if isinstance(each, Exception):
            return each
        if isinstance(each, asyncio.Task):
            try:
                return await each
            except Exception as error:
                return error
        await each.future
        try:
            response = read_answer(each)
        except Exception as error:
            if isinstance(error, LightningError):
                self._client._tell(error, axon, each, None)
            return error
        return Answer(
            response.success, response.data, response.error, each.seconds, 0.0
        )

    async def stream(
        self,
        axon: QuicAxonInfo,
        name: str,
        data: Mapping[str, Any],
        timeout: float | None,
        *,
        connect_timeout: float | None = None,
    ) -> Chunks:
        """Ask a miner for a streamed answer.

        Args:
            axon: The miner.
            name: Of the synapse.
            data: Its fields.
            timeout: Seconds from this call to the end of the stream; None for no limit.
            connect_timeout: As for `ask`.

        Returns:
            The chunks to come. Read it to its end or close it.

        Raises:
            EncodeError, FrameTooLarge: It cannot be sent.
            ConfigError, LightningConnectionError, HandshakeError, RequestTimeout,
            TransportError: As `ask`.
        """
        timeout, connect_timeout = (
            check_timeout(timeout),
            check_timeout(connect_timeout),
        )
        core = self._core
        client = core.client
        frame = self.encode(name, data)
        watch = Watch(timeout)
        try:
            connection = client._connection_to(axon)
            if connection is None:
                connection = await core.reach(axon, watch, connect_timeout)
            return await core.open(connection, frame, watch, axon)
        except LightningError as error:
            client._tell(error, axon, None, watch)
            raise

    def dial(self, axon: QuicAxonInfo, timeout: float) -> None:
        """Begin to connect and log in, without waiting; nobody is told of a failure.

        Args:
            axon: The miner.
            timeout: Seconds for it.
        """
        self._core.begin(_dial, self._client, axon, timeout)

    def is_connected(self, axon: QuicAxonInfo) -> bool:
        """Return whether a request to a miner would find a connection."""
        return self._client._connection_to(axon) is not None

    def release(self) -> None:
        """Give the share back; fine if it was. The object is not to be used after."""
        if not self._is_released:
            self._is_released = True
            self._core.leave()


class Chunks:
    """The chunks of a streamed answer, an asynchronous iterator of ``bytes``.

    It belongs to the loop on which it was made, and is read by one task at a time.
    Closing it, leaving its context or dropping it stops the miner's handler.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Drop what was not read; fine when it has ended."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Near(Chunks):
    """A stream of the running loop."""

    def __init__(self, stream: StreamingResponse) -> None:
        self._stream = stream

    async def __anext__(self) -> bytes:
        return await anext(self._stream)

    async def aclose(self) -> None:
        self._stream.close()


class _Pipe:
    """Brings the chunks of a stream to another loop; most fields are the lock's."""

    def __init__(self, far: asyncio.AbstractEventLoop) -> None:
        self._far = far
        self._near = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._end: Exception | None = None
        self._is_closed = False
        self._is_stuck = False
        # The stream's loop's.
        self._room = asyncio.Event()
        # The reader's.
        self._news = asyncio.Event()
        self._stream: StreamingResponse | None = None
        self._task: asyncio.Task[None] | None = None

    # In the stream's loop.

    async def begin(self, make: Callable[[], StreamingResponse]) -> None:
        """Send the request and begin to read."""
        if not self._is_closed:
            self._stream = make()
            self._task = asyncio.create_task(self._run(self._stream))

    async def _run(self, stream: StreamingResponse) -> None:
        end: Exception = ConnectionClosed(reason="client_shutdown")
        try:
            while not self._is_closed:
                chunk = await stream.next_chunk()
                if chunk is None:
                    end = StopAsyncIteration()
                    return
                while chunk is not None and not self._put(chunk):
                    chunk = stream.take()
                self._tell()
                await self._wait_for_room()
        except Exception as error:
            end = error
        finally:
            stream.close()
            self._end = end
            self._tell()

    def _put(self, chunk: bytes) -> bool:
        """Keep a chunk; say if there is no room for another."""
        with self._lock:
            self._chunks.append(chunk)
            self._size += len(chunk)
            self._is_stuck = (
                len(self._chunks) >= CHUNKS_AHEAD or self._size >= BYTES_AHEAD
            )
            return self._is_stuck

    def _tell(self) -> None:
        try:
            self._near.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            self._is_closed = True  # Its loop is closed: nobody will read.

    async def _wait_for_room(self) -> None:
        while self._must_wait():
            self._room.clear()
            if self._must_wait():
                await self._room.wait()

    def _must_wait(self) -> bool:
        return self._is_stuck and not self._is_closed

    def _stop(self) -> None:
        if self._stream is not None and self._task is not None:
            self._stream.close()
            self._task.cancel()

    # In the reader's, or, the last one, in any thread.

    async def read(self) -> bytes:
        """Wait for the next chunk; raise what ended it."""
        while True:
            self._news.clear()
            if self._chunks:
                return self._take()
            if self._is_closed:
                raise StopAsyncIteration
            if self._end is not None:
                # Once: then it has ended.
                end, self._is_closed = self._end, True
                raise end
            await self._news.wait()

    def _take(self) -> bytes:
        with self._lock:
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            frees = (
                self._is_stuck
                and len(self._chunks) <= CHUNKS_AHEAD // 2
                and self._size <= BYTES_AHEAD // 2
            )
            if frees:
                self._is_stuck = False
        if frees:
            self._far_soon(self._room.set)
        return chunk

    def close(self) -> None:
        """Stop it; fine if it has ended."""
        self._is_closed = True
        self._chunks.clear()
        if self._end is None:
            self._far_soon(self._stop)

    def _far_soon(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # Closed, and all with it.
            self._far.call_soon_threadsafe(function)


class _Far(Chunks):
    """A stream of another loop."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    def __del__(self) -> None:
        self._pipe.close()

    async def __anext__(self) -> bytes:
        return await self._pipe.read()

    async def aclose(self) -> None:
        self._pipe.close()


class _Corner:
    """The calls of one loop, used in its thread; made again when the client was closed.

    It does not keep the loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, corners: dict[int, _Corner]
    ) -> None:
        self.key = key = id(loop)

        def forget(ended: weakref.ref[asyncio.AbstractEventLoop]) -> None:
            corner = corners.get(key)
            if corner is not None and corner.loop is ended:
                del corners[key]

        self.loop = weakref.ref(loop, forget)
        # One for each socket of the client.
        self._inboxes: list[Inbox] = []

    def start(
        self,
        connection: Connection,
        frame: bytes,
        loop: asyncio.AbstractEventLoop,
        timeout: float | None,
        limit: int | None,
    ) -> Call:
        """Begin a call. Whoever does not await its future owes it `cancel`."""
        for inbox in self._inboxes:
            call = inbox.start(connection, frame, loop, timeout, limit or 0)
            if call is not None:
                return call
        if connection.loop is loop:
            answer: asyncio.Future[Call] = loop.create_future()
            return connection.call(frame, answer, timeout, True, limit or 0)
        if connection.closed is not None:
            raise connection.lost()
        for stale in [inbox for inbox in self._inboxes if inbox.is_stale]:
            stale.close(loop)
            self._inboxes.remove(stale)
        inbox = Inbox(connection)
        loop.add_reader(inbox.fileno(), inbox.rung)
        self._inboxes.append(inbox)
        return self.start(connection, frame, loop, timeout, limit)

    def cancel(self, call: Call) -> None:
        """Drop a call; fine if it has ended."""
        for inbox in self._inboxes:
            inbox.cancel(call)
        call.cancel()  # Of the client's own loop.

    def close(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Drop all; in the loop's thread, or with None where it was closed."""
        inboxes, self._inboxes = self._inboxes, []
        for inbox in inboxes:
            inbox.close(loop)


class _Core:
    """A client, and how to reach it from other loops than its own."""

    def __init__(self, client: AsyncLightning | Lightning) -> None:
        self._corners: dict[int, _Corner] = {}
        self.io: LoopThread | None = None
        if isinstance(client, Lightning):
            self.io = client._io
            # Whoever drops the last reference to it closes it.
            self._lightning = client
            self.client = client._client
        else:
            self.client = client

    def is_own(self) -> bool:
        """Whether the running loop is the client's."""
        own = self.client._loop
        return asyncio.get_running_loop() is own or (
            self.io is None and (own is None or own.is_closed())
        )

    def leave(self) -> None:
        """Have one user less."""
        self._vacate()

    async def reach(
        self, axon: QuicAxonInfo, watch: Watch, timeout: float | None
    ) -> Connection:
        """Return the connection to a miner, made if need be; bounds nobody else's."""
        if timeout is None:
            return await watch.reached(self.run(_route, self.client, axon))
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await watch.reached(self.run(_route, self.client, axon))
        except TimeoutError as error:
            if not limit.expired() or isinstance(error, LightningError):
                raise
            raise LightningConnectionError(
                f"no connection to {axon.address} within {timeout:g}s",
                address=str(axon.address),
            ) from error

    def corner(self, loop: asyncio.AbstractEventLoop) -> _Corner:
        """Return what waits for calls in a loop, the running one."""
        corner = self._corners.get(id(loop))
        if corner is None or corner.loop() is not loop:
            self._sweep()
            corner = self._corners[id(loop)] = _Corner(loop, self._corners)
        return corner

    def _sweep(self) -> None:
        """Close the corners of loops that were closed."""
        for corner in list(self._corners.values()):
            loop = corner.loop()
            if loop is None or loop.is_closed():
                corner.close(None)
                self._corners.pop(corner.key, None)

    def _vacate(self) -> None:
        """Close all corners, each in its loop."""
        corners = list(self._corners.values())
        self._corners.clear()
        for corner in corners:
            loop = corner.loop()
            if loop is not None:
                with contextlib.suppress(RuntimeError):  # Closed.
                    loop.call_soon_threadsafe(corner.close, loop)
                    continue
            corner.close(None)

    async def open(
        self, connection: Connection, frame: bytes, watch: Watch, axon: QuicAxonInfo
    ) -> Chunks:
        """Ask for a streamed answer on a connection."""
        make = partial(_stream, self.client, connection, frame, watch, axon)
        if self.is_own():
            return _Near(make())
        pipe = _Pipe(connection.loop)
        try:
            await self.run(pipe.begin, make)
        except BaseException:
            pipe.close()
            raise
        return _Far(pipe)

    def begin(
        self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any
    ) -> None:
        """Begin a coroutine in the client's loop, if there is one."""
        with contextlib.suppress(RuntimeError):  # It is closed.
            if self.io is not None:
                self.io.begin(function, *args)
            elif (loop := self.client._loop) is not None:
                asyncio.run_coroutine_threadsafe(function(*args), loop)

    async def run(
        self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> T:
        """Run a coroutine in the client's loop.

        Raises:
            LightningConnectionError: The client was closed meanwhile.
        """
        if self.is_own():
            return await function(*args)
        future: concurrent.futures.Future[T]
        if self.io is not None:
            future = self.io.begin(function, *args)
        else:
            loop = cast("asyncio.AbstractEventLoop", self.client._loop)
            future = asyncio.run_coroutine_threadsafe(function(*args), loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or not future.cancelled():
                raise
            raise LightningConnectionError(CUT_OFF) from None


# In the client's loop.


async def _route(client: AsyncLightning, axon: QuicAxonInfo) -> Connection:
    if client._endpoints is None:
        await client.create_endpoint()
    return await client._route(axon)


async def _dial(client: AsyncLightning, axon: QuicAxonInfo, timeout: float) -> None:
    with contextlib.suppress(LightningError, TimeoutError):
        async with asyncio.timeout(timeout):
            await _route(client, axon)


def _stream(
    client: AsyncLightning,
    connection: Connection,
    frame: bytes,
    watch: Watch,
    axon: QuicAxonInfo,
) -> StreamingResponse:
    return StreamingResponse(
        connection.exchanges,
        frame,
        client.config.stream_chunk_timeout,
        client.config.max_stream_payload_bytes,
        watch,
        partial(client._locate, address=axon.address, hotkey=axon.hotkey),
    )


# The clients that users share.


class _Shared(_Core):
    """A client that is there while it has users, and for a while after."""

    def __init__(
        self, hotkey: str, signer: object, config: LightningClientConfig
    ) -> None:
        super().__init__(Lightning(hotkey, signer=signer, config=config))
        self.users = 0
        # Counts when the last user went.
        self.departures = 0

    def leave(self) -> None:
        if _share.pid == os.getpid():
            _share.leave(self)

    def wait(self, departure: int) -> None:
        """Have it closed in a while, if nobody comes; in its own loop."""
        asyncio.get_running_loop().call_later(LINGER, _share.expire, self, departure)

    def stop(self, *, wait: bool) -> None:
        """Close the client."""
        cast("LoopThread", self.io).stop(wait=wait)
        self._vacate()


class _Share:
    """The clients of this process by their hotkey, and who uses them."""

    def __init__(self) -> None:
        self.clients: dict[str, _Shared] = {}
        self._inherited: list[_Shared] = []
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Begin anew, in the child of a fork."""
        # Finalizers take it, too.
        self._lock = threading.RLock()
        self.pid = os.getpid()
        # To take the parent's apart would be of no use to anybody.
        self._inherited.extend(self.clients.values())
        self.clients.clear()

    def join(
        self, hotkey: str, signer: object, config: LightningClientConfig | None
    ) -> _Shared:
        """Return the client of a hotkey, with one user more."""
        checked = as_signer(signer)
        unfit: _Shared | None = None
        with self._lock:
            core = self.clients.get(hotkey)
            if core is not None and not core.users:
                if config is None or config == core.client.config:
                    core.client.set_signer(checked)
                else:
                    unfit, core = core, None
            if core is None:
                core = _Shared(hotkey, checked, config or DEFAULTS)
                self.clients[hotkey] = core
            core.users += 1
        if unfit is not None:
            # Before the other one logs in where this one has.
            unfit.stop(wait=True)
        return core

    def leave(self, core: _Shared) -> None:
        """Have one user less."""
        with self._lock:
            core.users -= 1
            if core.users:
                return
            core.departures += 1
            io = cast("LoopThread", core.io)
            if io.is_running:
                io.post(core.wait, core.departures)
            elif self.clients.get(core.client.wallet_hotkey) is core:
                del self.clients[core.client.wallet_hotkey]

    def expire(self, core: _Shared, departure: int) -> None:
        """Close a client that nobody has used since."""
        with self._lock:
            if core.users or core.departures != departure:
                return
            if self.clients.get(core.client.wallet_hotkey) is core:
                del self.clients[core.client.wallet_hotkey]
        core.stop(wait=False)

    def close_idle(self) -> None:
        """Close now what only lingers."""
        with self._lock:
            idle = [core for core in self.clients.values() if not core.users]
            for core in idle:
                del self.clients[core.client.wallet_hotkey]
        for core in idle:
            core.stop(wait=True)


_share = _Share()
