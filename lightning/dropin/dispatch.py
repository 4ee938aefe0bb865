"""What an axon does with a request, whatever brought it.

In this order: the blacklist, which may refuse it with 403; the verification (401); the
priority; the forward function. All four are given the same whole synapse, with the
caller's hotkey and socket address in ``synapse.dendrite``. Functions that are ``async``
run on the axon's event loop. Plain ones run there too while they take less than half a
millisecond, and otherwise in threads; a plain forward function always runs in a thread.
At most ``max_workers`` plain forward functions run at once; further requests wait, those
of the highest priority first, and when too many wait the least is refused with 503.

=========================================  ======  ======================================
What happened                              status  message
=========================================  ======  ======================================
there is no such synapse                   404     ``Synapse name 'X' not found. …``
it is blacklisted                          403     ``Forbidden. Key is blacklisted: ….``
the verification raised                    401     ``Not Verified with error: …``
the time of the caller is over             408     ``Response timeout after: …s``
too many requests wait                     503     ``Service busy: …``
a function set a status, or raised one     that    that
anything else was raised or returned       500     ``Internal Server Error #<uuid>``
all went well                              200     ``Success``
=========================================  ======  ======================================

What a 500 was is in the log, by the same number, and is not told to the caller.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import math
import time
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lightning.binding import code_of
from lightning.dropin.codec import plan_of
from lightning.dropin.gate import Gate, Ticket
from lightning.dropin.threadpool import PriorityThreadPoolExecutor
from lightning.logs import Throttled
from lightning.running import Cancellation
from lightning.work import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Dispatch", "Outcome", "Route", "authentic"]

log = logging.getLogger("lightning.axon")

# Seconds that a plain function mostly takes, above which it leaves the loop alone.
BRIEF: Final = 0.0005
# The status of a synapse whose request is being worked on.
UNSET: Final = (None, 100)
SUCCESS: Final = "Success"
# By the class that raised or was raised, the most derived first.
STATUS_OF: Final = {
    "PriorityException": 503,
    "UnknownSynapseError": 404,
    "BlacklistedException": 403,
    "NotVerifiedException": 401,
    "SynapseException": 500,
}

# The synapse whose sender is known without a signature, while it is verified.
authentic: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "lightning_authentic", default=None
)


@dataclass(slots=True)
class Outcome:
    """What became of a request.

    Its status and message are also in ``synapse.axon``.
    """

    synapse: Any
    """The answer, or, where there is none, the request's synapse."""

    status_code: int
    """As in HTTP; 200 if all went well."""

    status_message: str
    """Any text."""

    process_time: float
    """Seconds that the forward function took; of a refusal, those until it was one."""

    response: Any = None
    """A streaming response, with ``token_streamer``; None if there is no stream."""

    is_answer: bool = False
    """Whether it is the forward function's own, and no refusal or failure."""


class Step:
    """One of the functions attached for a synapse.

    Attributes:
        function: The function.
        is_async: Whether calling it gives an awaitable.
        seconds: How long it took lately, if it is not async.
    """

    __slots__ = ("function", "is_async", "seconds")

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(code_of(function))
        self.seconds = 2 * BRIEF

    def note_run(self, seconds: float) -> None:
        """Take note of how long a run took."""
        self.seconds += (seconds - self.seconds) / 8


class Route:
    """The functions attached for one synapse, and how they are to be run.

    Attributes:
        name: The synapse's name.
        synapse_class: Its class.
        plan: How it travels by QUIC.
        forward: Answers.
        blacklist: Refuses, or None.
        verify: Checks, or None where that is left to `Axon.default_verify`.
        default_verify: That, or None if there is a ``verify`` of its own, or none.
        priority: Ranks, or None.
        is_plain: Whether none of them is async.
        is_ping: Whether it only returns what it was given, and need not wait.
    """

    __slots__ = (
        "_attached",
        "blacklist",
        "default_verify",
        "forward",
        "is_ping",
        "is_plain",
        "name",
        "plan",
        "priority",
        "synapse_class",
        "verify",
    )

    def __init__(self, name: str, attached: tuple[Any, ...], default: Any) -> None:
        synapse_class, forward, blacklist, verify, priority = attached
        self.name = name
        self._attached = attached
        self.synapse_class = synapse_class
        self.plan = plan_of(synapse_class)
        self.forward = Step(forward)
        self.blacklist = Step(blacklist) if blacklist else None
        is_default = verify and getattr(verify, "__func__", None) is default
        self.default_verify = verify if is_default else None
        self.verify = Step(verify) if verify and not is_default else None
        self.priority = Step(priority) if priority else None
        self.is_ping = forward is ping
        steps = (self.forward, self.blacklist, self.verify, self.priority)
        self.is_plain = not any(step and step.is_async for step in steps)

    def is_of(
        self, kind: Any, forward: Any, blacklist: Any, verify: Any, priority: Any
    ) -> bool:
        """Say if these are its class and functions still."""
        mine = self._attached
        return (
            mine[1] is forward
            and mine[2] is blacklist
            and mine[3] is verify
            and mine[4] is priority
            and mine[0] is kind
        )


def ping(synapse: Any) -> Any:
    """Return what it is given: what an axon answers the plain `Synapse` by."""
    return synapse


class Refusal(Exception):
    """Ends the work on a request with a status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Dispatch:
    """Runs the functions of an axon for its requests.

    Args:
        axon: Whose ``forward_fns``, ``blacklist_fns``, ``verify_fns``, ``priority_fns``
            and ``forward_class_types`` are looked up at each request.
        default_verify: The function behind the axon's method of that name, if it is
            not overridden; it is not run for callers that are known anyway.
        threads: Run plain forward functions.
        most_workers: Of these at once, on all transports together.
        most_waiting: Requests that may wait for one of the threads.
        most_async: Async forward functions that run at once; None for any number.
    """

    def __init__(
        self,
        axon: Any,
        default_verify: Any,
        threads: PriorityThreadPoolExecutor,
        *,
        most_workers: int,
        most_waiting: int = 1024,
        most_async: int | None = None,
    ) -> None:
        self._axon = axon
        self._default = default_verify
        self._threads = threads
        self._routes: dict[str, Route] = {}
        self._log = Throttled(log)
        # Forward functions, however many wait, do not hold up what sorts them.
        self._checkers = PriorityThreadPoolExecutor(max_workers=most_workers)
        self.gate = Gate(most_workers, most_waiting)
        self.async_gate = None if most_async is None else Gate(most_async, most_waiting)

    def rest(self) -> None:
        """Let threads end that have nothing to do."""
        self._checkers.rest()

    # What there is.

    def names(self) -> list[str]:
        """Return the names of the synapses that are answered."""
        return list(self._axon.forward_class_types)

    def synapse_class(self, name: str) -> Any:
        """Return the class of a synapse by its name, None if it is not answered."""
        return self._axon.forward_class_types.get(name)

    def verifies_itself(self, name: str) -> bool:
        """Say if a function of the user's decides who is who for a synapse.

        Where it does not, a caller must have proven its hotkey before `run`.
        """
        route = self.route(name)
        return route is not None and route.verify is not None

    def route(self, name: str) -> Route | None:
        """Return the functions for a synapse by its name, None if it is not answered."""
        axon = self._axon
        kind = axon.forward_class_types.get(name)
        forward = axon.forward_fns.get(name)
        blacklist = axon.blacklist_fns.get(name)
        verify = axon.verify_fns.get(name)
        priority = axon.priority_fns.get(name)
        route = self._routes.get(name)
        if route is not None and route.is_of(
            kind, forward, blacklist, verify, priority
        ):
            return route
        if kind is None or forward is None:
            self._routes.pop(name, None)
            return None
        attached = kind, forward, blacklist, verify, priority
        route = self._routes[name] = Route(name, attached, self._default)
        return route

    # Outcomes.

    def unknown(self, name: str, synapse: Any = None) -> Outcome:
        """Make the outcome of a request for a synapse that is not answered."""
        self._log.debug("no synapse %.64r is attached", name)
        message = f"Synapse name '{name}' not found. Available synapses {self.names()}"
        return Outcome(synapse, 404, message, 0.0)

    def malformed(self, name: str, hotkey: str, error: Exception) -> Outcome:
        """Make the outcome of a request whose data do not fit its synapse."""
        number = uuid.uuid4()
        self._log.debug(
            "what %s sent is no %s, told as #%s: %.500s", hotkey, name, number, error
        )
        return Outcome(None, 500, f"Internal Server Error #{number}", 0.0)

    def failure(
        self, synapse: Any, error: BaseException, began: float, name: str = ""
    ) -> Outcome:
        """Make the outcome of a request for which something was raised.

        Args:
            synapse: The request's; its terminals are told the status.
            error: What was raised.
            began: When the work began, by ``time.perf_counter()``.
            name: The synapse's name, for the log.
        """
        process_time = time.perf_counter() - began
        if isinstance(error, Refusal):
            return _told(synapse, error.code, error.message, process_time)
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "SynapseException" in kinds:
            told = getattr(error, "synapse", None)
            synapse = told or synapse
            terminal = getattr(synapse, "axon", None)
            code = getattr(terminal, "status_code", None)
            if code in UNSET:
                code = next(c for kind, c in STATUS_OF.items() if kind in kinds)
            message = getattr(terminal, "status_message", None) or _text(error)
            outcome = _told(synapse, int(code), message, process_time)
            outcome.is_answer = told is not None
            return outcome
        number = uuid.uuid4()
        self._log.error(
            "%s failed, told as #%s: %s: %s",
            name,
            number,
            type(error).__name__,
            _text(error),
            key=name,
            exc_info=error,
        )
        return _told(synapse, 500, f"Internal Server Error #{number}", process_time)

    def timed_out(self, synapse: Any, timeout: float, began: float) -> Outcome:
        """Make the outcome of a request that took longer than its caller waits."""
        elapsed = time.perf_counter() - began
        return _told(synapse, 408, f"Response timeout after: {timeout}s", elapsed)

    def refusal(self) -> Refusal:
        """Make the refusal of a request for which there is no room."""
        most = self.gate.most_waiting
        self._log.warning(
            "%d requests wait for a worker: further ones are refused", most, burst=1
        )
        return Refusal(503, f"Service busy: {most} requests wait already")

    def outcome(
        self, synapse: Any, result: Any, began: float, *, may_stream: bool = True
    ) -> Outcome:
        """Make the outcome of a request for which the forward function returned.

        Args:
            synapse: The request's.
            result: What the function returned: a synapse, or a response with one.
            began: When the function was called, by ``time.perf_counter()``.
            may_stream: Whether a response is an answer to the request.

        Raises:
            TypeError: It returned something else.
        """
        response = None
        if not is_synapse(result):
            if not hasattr(result, "token_streamer"):
                kind = type(result).__name__
                raise TypeError(f"a forward function must return a synapse, not {kind}")
            if not may_stream:
                raise TypeError("only a streaming synapse can be answered by a stream")
            response, result = result, getattr(result, "synapse", None) or synapse
        elapsed = time.perf_counter() - began
        terminal = result.axon
        code = message = None
        if terminal is not None:
            code, message = terminal.status_code, terminal.status_message
        if code in UNSET:
            code = 200
        if code == 200 and not message:
            message = SUCCESS
        outcome = _told(result, code, message or "", elapsed)
        outcome.response = response
        outcome.is_answer = True
        return outcome

    # On the event loop.

    async def run(
        self,
        synapse: Any,
        name: str,
        *,
        is_authenticated: bool,
        timeout: float | None,
        may_stream: bool = True,
    ) -> Outcome:
        """Run the functions for a request; to be awaited on the axon's event loop.

        Args:
            synapse: The request, with both terminals filled.
            name: The name it came by.
            is_authenticated: Whether ``synapse.dendrite.hotkey`` is proven; otherwise
                the verification must find out.
            timeout: Seconds that the caller waits; None for no limit.
            may_stream: Whether a streaming response is an answer to it.

        Returns:
            What became of it, whatever that is; only a cancellation is raised.
        """
        began = time.perf_counter()
        route = self.route(name)
        if route is None:
            return self.unknown(name, synapse)
        watch = Cancellation()
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                hotkey = synapse.dendrite.hotkey or ""
                priority = await self._check(route, synapse, is_authenticated)
                answer = self._on_loop if route.forward.is_async else self._in_thread
                began_at, result = await answer(route, synapse, hotkey, priority)
                return self.outcome(synapse, result, began_at, may_stream=may_stream)
        except BaseException as error:
            if watch.passes(error):
                raise
            if limit.expired() and isinstance(error, TimeoutError):
                return self.timed_out(synapse, timeout or 0.0, began)
            return self.failure(synapse, error, began, name)

    async def _check(self, route: Route, synapse: Any, is_authenticated: bool) -> float:
        """Run what comes before the forward function; return the priority."""
        if route.blacklist is not None:
            refuse_blacklisted(await self._call(route.blacklist, synapse))
        token = authentic.set(synapse) if is_authenticated else None
        try:
            if route.verify is not None:
                await self._call(route.verify, synapse)
            elif route.default_verify is not None and not is_authenticated:
                await route.default_verify(synapse)
        except Exception as error:
            raise not_verified(error) from error
        finally:
            if token is not None:
                authentic.reset(token)
        if route.priority is None:
            return 0.0
        try:
            return as_priority(await self._call(route.priority, synapse))
        except TimeoutError as error:
            raise too_late(synapse) from error

    async def _call(self, step: Step, synapse: Any) -> Any:
        """Run a function where it holds up nobody."""
        if step.is_async:
            return await step.function(synapse)
        began = time.perf_counter()
        if step.seconds <= BRIEF:
            result = step.function(synapse)
        else:
            run = contextvars.copy_context().run
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(
                self._checkers, run, step.function, synapse
            )
        step.note_run(time.perf_counter() - began)
        if isinstance(result, Awaitable):
            step.is_async = True
            result = await result
        return result

    async def _on_loop(
        self, route: Route, synapse: Any, hotkey: str, priority: float
    ) -> tuple[float, Any]:
        """Run an async forward function, when it has its turn."""
        gate = self.async_gate
        if gate is None or gate.begin():
            end: Callable[[], Any] = gate.leave if gate is not None else tuple
        else:
            ticket = Ticket(
                hotkey, priority, asyncio.get_running_loop().create_future()
            )
            await self._wait(gate, ticket)
            end = partial(gate.end, ticket)
        try:
            began = time.perf_counter()
            return began, await route.forward.function(synapse)
        finally:
            for following in end():
                if not following.request.done():
                    following.request.set_result(None)

    async def _wait(self, gate: Gate, ticket: Ticket) -> None:
        """Wait until a ticket has its turn."""
        turn = ticket.request
        verdict, displaced = gate.admit(ticket, time.monotonic())
        if verdict is Verdict.RUN:
            return
        if verdict is Verdict.BUSY:
            raise self.refusal()
        if displaced is not None and not displaced.request.done():
            displaced.request.set_exception(self.refusal())
        try:
            await turn
        except asyncio.CancelledError:
            if not gate.withdraw(ticket):
                # It had its turn in the same moment: for the next one.
                for following in gate.end(ticket):
                    if not following.request.done():
                        following.request.set_result(None)
            raise

    async def _in_thread(
        self, route: Route, synapse: Any, hotkey: str, priority: float
    ) -> tuple[float, Any]:
        """Run a plain forward function in a thread, when it has its turn."""
        if route.is_ping:
            return time.perf_counter(), ping(synapse)
        job = _LoopJob(route, synapse, asyncio.get_running_loop())
        gate = self.gate
        if gate.begin():
            self._threads.submit(self.work, job, priority=priority)
        else:
            ticket = Ticket(hotkey, priority, job)
            verdict, displaced = gate.admit(ticket, time.monotonic())
            if verdict is Verdict.RUN:
                self._threads.submit(self.work, job, ticket, priority=priority)
            elif verdict is Verdict.BUSY:
                raise self.refusal()
            elif displaced is not None:
                displaced.request.refuse(self.refusal())
            job.withdraw = partial(gate.withdraw, ticket)
        try:
            began, result = await job.done
        finally:
            job.cancel()
        if isinstance(result, Awaitable):
            route.forward.is_async, route.is_plain = True, False
            result = await result
        return began, result

    # In threads.

    def work(self, job: Any, ticket: Ticket | None = None) -> None:
        """Run a job that has its turn, and those whose turn it is then.

        Args:
            job: Has ``execute()``, which does not raise.
            ticket: The one by which it was admitted; None if it has just begun.
        """
        gate = self.gate
        job.execute()
        begun = gate.leave() if ticket is None else gate.end(ticket)
        if not begun:
            return
        following = list(begun)
        while following:
            ticket = following.pop()
            if (job := ticket.request) is not None:
                job.execute()
            following += gate.end(ticket)


class _LoopJob:
    """A plain forward function that a coroutine waits for."""

    __slots__ = ("_context", "_loop", "_route", "_synapse", "began", "done", "withdraw")

    def __init__(
        self, route: Route, synapse: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._route: Route | None = route
        self._synapse = synapse
        self._loop = loop
        self._context = contextvars.copy_context()
        self.done: asyncio.Future[tuple[float, Any]] = loop.create_future()
        self.began = time.perf_counter()
        self.withdraw: Callable[[], object] = tuple

    def cancel(self) -> None:
        """Do not begin it any more, nor keep it in memory."""
        self._route = self._synapse = None
        self.withdraw()

    def refuse(self, refusal: Refusal) -> None:
        """Have it not begun, for want of room; from any thread."""
        self._tell(self._set_error, refusal)

    def execute(self) -> None:
        route, synapse = self._route, self._synapse
        if route is None:
            return
        try:
            began = time.perf_counter()
            result = self._context.run(route.forward.function, synapse)
            route.forward.note_run(time.perf_counter() - began)
        except BaseException as error:
            self._tell(self._set_error, error)
        else:
            self._tell(self._set_result, (began, result))

    def _tell(self, function: Callable[[Any], object], value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:
            pass  # The loop is closed, so nobody waits.

    def _set_result(self, result: tuple[float, Any]) -> None:
        if not self.done.done():
            self.done.set_result(result)

    def _set_error(self, error: BaseException) -> None:
        if self.done.done():
            return
        if isinstance(error, StopIteration):
            # A future does not take this one.
            error = RuntimeError("the forward function raised StopIteration")
        self.done.set_exception(error)


# What the functions may return.


def refuse_blacklisted(result: Any) -> None:
    """Read what a blacklist function returned.

    Raises:
        Refusal: It is blacklisted.
        TypeError: It returned neither a bool nor a bool and a reason.
    """
    if result is False:
        return
    reason: Any = ""
    if result is not True:
        try:
            result, reason = result
        except (TypeError, ValueError):
            kind = type(result).__name__
            raise TypeError(
                f"a blacklist function must return (bool, str), not {kind}"
            ) from None
    if result:
        raise Refusal(403, f"Forbidden. Key is blacklisted: {reason}.")


def not_verified(error: BaseException) -> Refusal:
    """Make the refusal of a request that did not verify."""
    return Refusal(401, f"Not Verified with error: {_text(error)}")


def too_late(synapse: Any) -> Refusal:
    """Make the refusal of a request whose priority was not found in time."""
    return Refusal(408, f"Response timeout after: {synapse.timeout}s")


def as_priority(value: Any) -> float:
    """Make a number of what a priority function returned; 0 if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return 0.0 if math.isnan(number) else number


def is_synapse(value: Any) -> bool:
    """Say if something has the shape of a synapse."""
    return (
        hasattr(value, "model_dump")
        and hasattr(value, "axon")
        and hasattr(value, "dendrite")
    )


def _told(synapse: Any, code: Any, message: Any, elapsed: float) -> Outcome:
    """Make an outcome, and tell the synapse's terminal."""
    code = code if type(code) is int else _status(code)
    message = message if type(message) is str else str(message)
    terminal = getattr(synapse, "axon", None)
    if terminal is not None:
        terminal.__dict__.update(
            status_code=code, status_message=message, process_time=elapsed
        )
    return Outcome(synapse, code, message, elapsed)


def _status(code: Any) -> int:
    try:
        return int(code)
    except (TypeError, ValueError, OverflowError):
        return 500


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return type(error).__name__
