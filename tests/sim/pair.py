"""Two ends over a simulated network, in virtual time.

An `End` is one side of a connection behind the few verbs that every QUIC
implementation has; `tests/sim/ends.py` has them for aioquic and for our engine. A
`Pair` is two of them and a `Network`; `drive` moves the clock from one event to the
next until a condition holds. What must not happen raises a `SimulationError`: an end
that spins, a timer that nobody armed, time or steps running out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from tests.sim.link import Address, Link, Network

# A timer that is not in the future fires this much later.
TICK = 1e-6

# Timers in a row that may fire without a datagram and within a millisecond in all.
MAX_IDLE_WAKEUPS = 64


class SimulationError(Exception):
    """A run that went wrong in itself, whatever the ends say."""


class Spinning(SimulationError):
    """Timers fire again and again; no datagram moves and time does not either."""


class LostTimer(SimulationError):
    """Work is left, nothing is on its way, and no timer is armed, or far too late."""


class OutOfTime(SimulationError):
    """The condition did not come true in the virtual time allowed."""


class OutOfSteps(SimulationError):
    """The condition did not come true in the number of steps allowed."""


class Closed(NamedTuple):
    """How a connection ended, as one end saw it.

    Attributes:
        initiator: ``"local"`` or ``"remote"``.
        code: The error code (RFC 9000 section 20).
        application: True for an application's code, False for a transport one.
        reason: The reason text.
        timed_out: True if it ended without a word from the peer.
    """

    initiator: str
    code: int
    application: bool
    reason: str = ""
    timed_out: bool = False

    def agrees_with(self, other: "Closed") -> bool:
        """Tell whether two ends tell the same story.

        Both may have closed at the same time, and an end whose peer's close was lost
        knows only of a timeout.
        """
        if self.timed_out or other.timed_out:
            return True
        if self.initiator == other.initiator:
            return self.initiator == "local"
        return self[1:4] == other[1:4]


class Event(NamedTuple):
    """What an end tells its application.

    Attributes:
        kind: ``connected``, ``opened`` (a stream, by the peer), ``readable``,
            ``reset`` (the peer's sending side), ``stopped`` (our sending side, by the
            peer) or ``closed``.
        stream: The stream's id, -1 where there is none.
        code: The application's error code of ``reset`` and ``stopped``.
    """

    kind: str
    stream: int = -1
    code: int = 0


class End(ABC):
    """One side of a connection: the engine's verbs and the application's.

    Attributes:
        now: The time of the last call of the engine's verbs, for those of the
            application that need one.
        touched: True if the application did something since the last flush.
        connected: True once the handshake is complete.
        closed: How the connection ended, None while it lives.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.touched = False
        self.connected = False
        self.closed: Closed | None = None

    @abstractmethod
    def receive(self, data: bytes, address: Address, now: float, ecn: int) -> None:
        """Take a datagram."""

    @abstractmethod
    def datagrams_to_send(self, now: float) -> list[tuple]:
        """Give ``(data, address)`` or ``(data, address, ecn)`` of what is to go out."""

    @abstractmethod
    def next_timeout(self) -> float | None:
        """Tell when `handle_timeout` is due, None for never."""

    @abstractmethod
    def handle_timeout(self, now: float) -> None:
        """Do what is due by now."""

    @abstractmethod
    def open(self, *, unidirectional: bool = False) -> int | None:
        """Open a stream; None if the peer allows no more just now."""

    @abstractmethod
    def write(self, stream: int, data: bytes, fin: bool = False) -> int:
        """Queue bytes; return how many were taken. FIN goes with the last one only."""

    @abstractmethod
    def read(self, stream: int) -> tuple[bytes, bool]:
        """Take all that has come in order, and whether that was the end."""

    @abstractmethod
    def reset(self, stream: int, code: int) -> None:
        """Give up sending."""

    @abstractmethod
    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to give up sending."""

    @abstractmethod
    def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""

    @abstractmethod
    def events(self) -> list[Event]:
        """Take what happened since the last call."""


class Application(Protocol):
    """What runs on both ends."""

    def step(self, pair: "Pair") -> None:
        """Handle events and do what is due at ``pair.now``."""

    def next_timeout(self) -> float | None:
        """Tell when `step` has something to do by itself."""


class Pair:
    """A client, a server, the network between them, and the time."""

    def __init__(
        self,
        client: End,
        server: End,
        network: Network,
        application: Application | None = None,
    ):
        self.client = client
        self.server = server
        self.network = network
        self.application = application
        self.now = 0.0
        # A server has nobody to talk to before its first datagram; some
        # implementations may not even be asked.
        self.server_started = False
        self.steps = 0
        self._progress = False
        self._idle_wakeups = 0
        self._idle_since = 0.0
        print(f"seed {network.seed}")

    @property
    def closed(self) -> bool:
        """True once both ends have given up the connection."""
        return self.client.closed is not None and self.server.closed is not None

    @property
    def connected(self) -> bool:
        """True once both ends have completed the handshake."""
        return self.client.connected and self.server.connected

    def describe(self) -> str:
        """Say where the run stands, for the text of an error."""
        lines = [f"seed {self.network.seed}, t = {self.now:.6f}, step {self.steps}"]
        for name, end, link in (
            ("client", self.client, self.network.to_server),
            ("server", self.server, self.network.to_client),
        ):
            lines.append(
                f"{name}: connected {end.connected}, closed {end.closed}, "
                f"timer {self._timeout(end)}, in flight {link.in_flight}, "
                f"{dict(link.counts)}"
            )
        lines += [str(entry) for entry in self.network.trace[-10:]]
        if self.application is not None:
            lines.append(str(self.application))
        return "\n".join(lines)

    def flush(self, end: End) -> None:
        """Put on the link what an end has to send."""
        end.touched = False
        if end is self.client:
            link, source = self.network.to_server, self.network.client_address
        elif self.server_started:
            link, source = self.network.to_client, self.network.server_address
        else:
            return
        for data, address, *ecn in end.datagrams_to_send(self.now):
            link.send(self.now, data, source, address, *ecn)
            self._progress = True

    def next_event(self) -> float | None:
        """Return when something happens next."""
        times = [
            self.network.to_server.next_arrival(),
            self.network.to_client.next_arrival(),
            self._timeout(self.client),
            self._timeout(self.server),
        ]
        if self.application is not None:
            times.append(self.application.next_timeout())
        return min((time for time in times if time is not None), default=None)

    def advance(self, to: float) -> None:
        """Move the clock to the next event and handle what is due then."""
        self.steps += 1
        arrived = self._deliver(self.network.to_server, self.server, to)
        arrived += self._deliver(self.network.to_client, self.client, to)
        # A timer may lie in the past.
        self.now = max(to, self.now if arrived else self.now + TICK)
        for end in (self.client, self.server):
            timeout = self._timeout(end)
            if timeout is not None and timeout <= self.now:
                end.handle_timeout(self.now)
                end.touched = True
        self._watch_for_spinning()

    def step(self) -> None:
        """Let the application act, then send what both ends have to say."""
        for end in (self.client, self.server):
            end.now = self.now
        if self.application is not None:
            self.application.step(self)
        for end in (self.client, self.server):
            if end.touched:
                self.flush(end)

    def _deliver(self, link: Link, end: End, to: float) -> int:
        datagrams = link.deliver(to)
        for data, source, _, ecn in datagrams:
            if end is self.server:
                self.server_started = True
            end.receive(data, source, max(self.now, to), ecn)
            end.touched = True
            self._progress = True
        return len(datagrams)

    def _timeout(self, end: End) -> float | None:
        if end is self.server and not self.server_started:
            return None
        return end.next_timeout()

    def _watch_for_spinning(self) -> None:
        if self._progress or self.now - self._idle_since > 1e-3:
            self._progress = False
            self._idle_wakeups = 0
            self._idle_since = self.now
            return
        self._idle_wakeups += 1
        if self._idle_wakeups > MAX_IDLE_WAKEUPS:
            raise Spinning(self.describe())


def drive(
    pair: Pair,
    *,
    until: Callable[[Pair], object],
    max_steps: int = 200_000,
    max_time: float = 600.0,
    max_gap: float | None = None,
) -> float:
    """Run a pair until a condition holds; return the virtual time.

    Args:
        pair: The pair; it can be driven again afterwards.
        until: The condition, asked after each event.
        max_steps: Events that may be handled.
        max_time: Seconds of virtual time that may pass.
        max_gap: Longest time in seconds without any event; an idle timeout would
            otherwise hide a lost timer. None allows any.

    Raises:
        Spinning: Zero-time progress without packets.
        LostTimer: Nothing in flight, no timer armed, the condition not met.
        OutOfTime: `max_time` has passed.
        OutOfSteps: `max_steps` were used up.
    """
    deadline = pair.now + max_time
    for _ in range(max_steps):
        pair.step()
        if until(pair):
            return pair.now
        due = pair.next_event()
        if due is None:
            raise LostTimer(pair.describe())
        if max_gap is not None and due - pair.now > max_gap:
            raise LostTimer(f"nothing until t = {due:.6f}; {pair.describe()}")
        if due > deadline:
            raise OutOfTime(pair.describe())
        pair.advance(due)
    raise OutOfSteps(pair.describe())
