"""A server's room for requests: they begin, wait for their turn, or are refused."""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.answers import Answers, fail
from lightning.binding import HandlerKind
from lightning.handlers import ERROR_BUSY, ERROR_TOO_MANY
from lightning.logs import Throttled
from lightning.work import Ticket, Verdict, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning._core.io.links import ServerExchange
    from lightning._core.io.transport import Connection
    from lightning.binding import Handler, HandlerContext
    from lightning.config import LightningServerConfig
    from lightning.priority import Priority

__all__ = ["Request", "Room", "is_limited"]

log = logging.getLogger("lightning.server")

# Validators that are remembered, for each that may be connected.
KNOWN_A_PLACE = 8


class Request(NamedTuple):
    """A request, and by what it is answered."""

    connection: Connection
    exchange: ServerExchange
    handler: Handler
    data: dict[str, Any]
    context: HandlerContext | None


def is_limited(config: LightningServerConfig) -> bool:
    """Say if a server with these settings needs a `Room`."""
    return (
        config.max_concurrent_requests is not None
        or config.max_concurrent_requests_per_validator is not None
        or config.max_requests_per_second is not None
    )


class Room:
    """Lets requests begin within the limits of the settings.

    A request takes room until its handler has ended, though its client has gone or was
    told that it took too long: whoever asks and leaves again and again gains nothing.

    Args:
        config: The server's settings.
        priority: Gives a request's priority; None makes all equal.
        answers: Which this room is for.
        begin: Has a request answered; `leave` is due when it has ended, whatever
            became of it. Called from any thread.
    """

    def __init__(
        self,
        config: LightningServerConfig,
        priority: Priority | None,
        answers: Answers,
        begin: Callable[[Request], object],
    ) -> None:
        self.priority = priority
        self._log = Throttled(log)
        self._timeout = config.handler_timeout_secs
        self._answers = answers
        self._begin = begin
        most = config.max_concurrent_requests
        if most is None and priority is not None:
            # What is handed to a full pool could not be overtaken any more.
            most = config.handler_threads
        self.work = Work(
            most=most,
            most_each=config.max_concurrent_requests_per_validator,
            most_waiting=config.max_queued_requests,
            rate=config.max_requests_per_second,
            burst=config.request_burst,
            most_known=KNOWN_A_PLACE * config.max_connections,
        )
        # What has room or waits for it.
        self._tickets: dict[ServerExchange, Ticket] = {}
        answers.on_end = self.leave

    def enter(self, request: Request, hotkey: str) -> None:
        """Have a request answered, now or when it has its turn, or refuse it.

        Args:
            request: The request; its context is there if there is a priority.
            hotkey: Its validator.
        """
        now = time.monotonic()
        exchange, handler = request.exchange, request.handler
        if not self.work.allow(hotkey, now):
            handler.tally.limited += fail(exchange, ERROR_TOO_MANY, handler)
            return
        if handler.kind is HandlerKind.INLINE:
            self._begin(request)
            return
        ticket = Ticket(hotkey, self._priority_of(request), request)
        self._tickets[exchange] = ticket
        # Before it can be anybody's turn.
        self._answers.running[exchange] = handler, now + self._timeout
        exchange.on_cancel = partial(self._withdraw, ticket, exchange)
        verdict, displaced = self.work.admit(ticket, now)
        if verdict is Verdict.RUN:
            self._begin(request)
        elif verdict is Verdict.BUSY:
            self._refuse(request)
        elif displaced is not None:
            self._refuse(displaced.request)
        if exchange.cancelled:
            # Perhaps before there was anything to withdraw.
            self._withdraw(ticket, exchange)

    def _refuse(self, request: Request) -> None:
        exchange = request.exchange
        self._tickets.pop(exchange, None)
        self._answers.running.pop(exchange, None)
        exchange.on_cancel = None
        request.handler.tally.busy += fail(exchange, ERROR_BUSY, request.handler)

    def _withdraw(self, ticket: Ticket, exchange: ServerExchange) -> None:
        """Take out one that waits and need not any more; fine if it has begun."""
        if self.work.withdraw(ticket):
            self._tickets.pop(exchange, None)
            self._answers.running.pop(exchange, None)

    def leave(self, exchange: ServerExchange) -> None:
        """Take note that a handler has ended, or will not begin."""
        ticket = self._tickets.pop(exchange, None)
        if ticket is not None:
            for following in self.work.end(ticket):
                self._begin(following.request)

    def _priority_of(self, request: Request) -> float:
        context = request.context
        if self.priority is None or context is None:
            return 0.0
        try:
            priority = float(self.priority(context))
        except (Exception, SystemExit):
            self._log.exception("the priority function failed")
            return 0.0
        return 0.0 if math.isnan(priority) else priority
