"""bittensor's dendrite: asks axons with synapses, over QUIC, and HTTP where need be.

A call never raises for what happens on the way or at the miner: the synapse that comes
back says it, in ``synapse.dendrite.status_code`` and ``status_message`` (see
`lightning.dropin.statuses`). What raises is what only the caller can mend: an axon that
is none, and what ``deserialize`` raises.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from lightning._core.io.loop import LoopThread
from lightning.dropin.asking import Asking, Call, gather
from lightning.dropin.axon_info import target_of
from lightning.dropin.codec import (
    plan_of,
)
from lightning.dropin.statuses import (
    DENDRITE_DEFAULT_ERROR,
    error_mapping,
)
from lightning.dropin.synapse import Synapse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType


__all__ = [
    "DENDRITE_DEFAULT_ERROR",
    "DENDRITE_ERROR_MAPPING",  # noqa: F822 - made when it is asked for, see below.
    "Dendrite",
    "DendriteMixin",
    "event_loop_is_running",
]


log = logging.getLogger("lightning.dendrite")


def __getattr__(name: str) -> Any:
    if name == "DENDRITE_ERROR_MAPPING":
        return error_mapping()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def event_loop_is_running() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class DendriteMixin(Asking):
    """All of `Dendrite`, by the name that bittensor has for deriving from it."""

    def __str__(self) -> str:
        return f"dendrite({self._hotkey})"

    __repr__ = __str__

    # Life.

    @property
    async def session(self) -> Any:
        """The aiohttp session of the running loop."""
        return await self._http_end()._session()

    def close_session(self, using_new_loop: bool = False) -> None:
        """Give back connections; from any thread, inside of a loop or not.

        The next call makes new ones. QUIC connections stay for a minute for other
        dendrites of this hotkey in this process.

        Args:
            using_new_loop: Means nothing here.
        """
        with self._lock:
            anywhere, self._anywhere = self._anywhere, None
            client, self._http_client = self._http_client, None
        if anywhere is not None:
            anywhere.release()
        if client is not None:
            client.close()

    close = close_session

    async def aclose_session(self) -> None:
        """Do as `close_session`."""
        with self._lock:
            client, self._http_client = self._http_client, None
        if client is not None:
            await client.aclose()
        self.close_session()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose_session()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_session()

    def __reduce__(self) -> Any:
        raise TypeError("a Dendrite holds connections and keys and cannot be pickled")

    # Asking.

    def query(self, *args: Any, **kwargs: Any) -> Any:
        """Do as `forward`, and wait for it; from any thread, inside of a loop as well.

        Inside of a loop nothing else runs in that loop meanwhile.

        Raises:
            RuntimeError: It is the loop of the client that was given.
        """
        if event_loop_is_running() and (
            getattr(self._client, "_loop", None) is asyncio.get_running_loop()
        ):
            raise RuntimeError(
                "a blocking query in the loop of its own client would wait for itself: "
                "await aquery there"
            )
        return _own_loop().call(functools.partial(self.forward, *args, **kwargs))

    async def aquery(self, *args: Any, **kwargs: Any) -> Any:
        """Do as `forward`."""
        return await self.forward(*args, **kwargs)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do as `forward`."""
        return await self.forward(*args, **kwargs)

    async def forward(
        self,
        axons: Any,
        synapse: Any = None,
        timeout: float | None = 12,
        deserialize: bool = True,
        run_async: bool = True,
        streaming: bool = False,
    ) -> Any:
        """Ask one or many axons.

        Args:
            axons: Anything `target_of` takes, or a list or tuple of such.
            synapse: What to ask; each axon is sent a shallow copy. None for a `Synapse`,
                which every axon answers.
            timeout: Seconds for each of the calls; 0 or None for no limit.
            deserialize: Return what the synapse's ``deserialize`` does.
            run_async: Ask all at once, and not one after the other.
            streaming: Answers come in pieces; so they do for a `StreamingSynapse`.

        Returns:
            For a list the results, in order. For one axon its result. Of streams, async
            generators, which ask when they are iterated over.
        """
        one = not isinstance(axons, list | tuple)
        targets = [axons] if one else list(axons)
        if synapse is None:
            synapse = Synapse()
        plan = plan_of(type(synapse))
        results: list[Any]
        if streaming or plan.is_streaming:
            if streaming != plan.is_streaming:
                log.debug("a %s was asked for with streaming=%s", plan.name, streaming)
            results = [
                self.call_stream(
                    target_axon=target,
                    synapse=synapse.model_copy(),
                    timeout=timeout,
                    deserialize=deserialize,
                )
                for target in targets
            ]
        elif (
            not run_async
            or len(targets) == 1
            or getattr(self.call, "__func__", None) is not DendriteMixin.call
        ):
            calls = (
                self.call(
                    target_axon=target,
                    synapse=synapse.model_copy(),
                    timeout=timeout,
                    deserialize=deserialize,
                )
                for target in targets
            )
            results = await gather(calls) if run_async else [await c for c in calls]
        else:
            results = await self._ask_all(targets, synapse, plan, timeout)
            if deserialize:
                results = [result.deserialize() for result in results]
        return results[0] if one else results

    async def call(
        self,
        target_axon: Any,
        synapse: Any = None,
        timeout: float | None = 12.0,
        deserialize: bool = True,
    ) -> Any:
        """Ask one axon.

        Args:
            target_axon: Anything `target_of` takes.
            synapse: What to ask; it is filled with the answer. None for a `Synapse`.
            timeout: Seconds for all of it, dial included; 0 or None for no limit.
            deserialize: Return what the synapse's ``deserialize`` does.

        Returns:
            The synapse, or what it is deserialized to.

        Raises:
            TypeError: The axon is none, or the synapse.
        """
        if synapse is None:
            synapse = Synapse()
        target = target_of(target_axon)
        call = Call(target, synapse, plan_of(type(synapse)), None)
        synapse = await self._carry_out(call, timeout)
        return synapse.deserialize() if deserialize else synapse

    async def call_stream(
        self,
        target_axon: Any,
        synapse: Any = None,
        timeout: float | None = 12.0,
        deserialize: bool = True,
    ) -> AsyncGenerator[Any, None]:
        """Ask one axon for an answer in pieces; leaving early stops the miner's work.

        Args:
            target_axon: Anything `target_of` takes.
            synapse: What to ask; it is filled with the answer. None for a `Synapse`.
            timeout: Seconds for all of it; 0 or None for no limit.
            deserialize: As for `call`, for the last item.

        Yields:
            What the synapse's ``process_streaming_response`` gives, and then the filled
            synapse, or what it is deserialized to.
        """
        if synapse is None:
            synapse = Synapse()
        target = target_of(target_axon)
        call = Call(target, synapse, plan_of(type(synapse)), None)
        try:
            self._prepare(call, timeout)
            async with aclosing(self._pieces(call)) as pieces:
                async for piece in pieces:
                    yield piece
        except Exception as error:
            self._fail(call, error)
        self._finished(call)
        synapse = call.synapse
        yield synapse.deserialize() if deserialize else synapse


class Dendrite(DendriteMixin):
    """A validator's way to ask miners, as bittensor's.

    It may be used from any event loop and any thread, also at the same time. All
    dendrites of one hotkey in a process share their connections.

    Args:
        wallet: A wallet of bittensor, or a keypair, or anything with ``ss58_address``
            and ``sign``; None for the default wallet on disk, which needs the extra
            ``wallet``.
        connect_timeout: Seconds for connection and login, within the time of a call;
            None for no limit but that.
        retries: How many times a call is begun again that no miner has begun.
        max_response_bytes: Largest answer; None for 64 MiB.
        client: A client to ask over, in place of one of its own; the caller closes it.
        quic: Whether to ask over QUIC.
        http: Whether to ask over HTTP who does not speak QUIC; None if aiohttp is
            installed.
        history: How many calls ``synapse_history`` remembers, without their bodies.

    Attributes:
        keypair: Who asks.
        uuid: One for each object.
        synapse_history: The last calls.

    Raises:
        ConfigError: Neither QUIC nor HTTP may be used, or there is no key.
    """


_loops: dict[int, LoopThread] = {}
_loops_lock = threading.Lock()


async def _stay() -> None:
    """Leave nothing to be done when the loop ends."""


def _own_loop() -> LoopThread:
    """Return the loop in which calls that block are made, one a process."""
    pid = os.getpid()
    loop = _loops.get(pid)
    if loop is None:
        with _loops_lock:
            loop = _loops.setdefault(pid, LoopThread("lightning-dendrite", _stay))
    return loop
