"""What became of each miner that was to be connected, and how connections are doing."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning._core.io.transport import Connection
    from lightning.errors import LightningError
    from lightning.types import PeerAddr

__all__ = [
    "ConnectReport",
    "ConnectionStats",
    "HandlerStats",
    "MinerReport",
    "Reached",
    "ServerStats",
]


class Reached(enum.StrEnum):
    """How an attempt to connect and log in ended."""

    CONNECTED = "connected"
    """Logged in, now or before."""

    REFUSED = "refused"
    """The miner answered, and refused the connection or the login."""

    UNREACHABLE = "unreachable"
    """Nobody answered at its address, or the address does not exist."""

    WRONG_KEY = "wrong_key"
    """Who answered did not prove the miner's key: another miner, or a relay."""

    TIMED_OUT = "timed_out"
    """No answer within ``connect_timeout``."""

    SKIPPED = "skipped"
    """Not tried: ``max_connections`` addresses are connected."""

    FAILED = "failed"
    """Something of our own, as a signer that failed; ``error`` says what."""


@dataclass(frozen=True, slots=True)
class MinerReport:
    """What became of one miner."""

    hotkey: str
    """SS58 address of its hotkey."""

    address: PeerAddr
    """Where it was looked for."""

    outcome: Reached
    """How it ended."""

    error: LightningError | None
    """Why; None if it is connected."""

    seconds: float
    """How long it took; 0 if it was connected before."""

    @property
    def connected(self) -> bool:
        """Whether it is logged in."""
        return self.outcome is Reached.CONNECTED


@dataclass(frozen=True, slots=True)
class ConnectReport:
    """What became of every miner of a list, in the list's order.

    Iterate over it, or ask for one by its hotkey: ``report[hotkey]``.
    """

    miners: tuple[MinerReport, ...]
    """One for each hotkey; of a hotkey listed twice the last address counts."""

    removed: tuple[str, ...] = ()
    """Hotkeys that were registered and are not listed any more."""

    @property
    def connected(self) -> tuple[MinerReport, ...]:
        """Those that are logged in."""
        return tuple(miner for miner in self.miners if miner.connected)

    @property
    def failed(self) -> tuple[MinerReport, ...]:
        """Those that are not."""
        return tuple(miner for miner in self.miners if not miner.connected)

    @property
    def counts(self) -> dict[Reached, int]:
        """How many ended in which way; ways that did not occur are left out."""
        return dict(Counter(miner.outcome for miner in self.miners))

    def __len__(self) -> int:
        return len(self.miners)

    def __iter__(self) -> Iterator[MinerReport]:
        return iter(self.miners)

    def __getitem__(self, hotkey: str) -> MinerReport:
        for miner in self.miners:
            if miner.hotkey == hotkey:
                return miner
        raise KeyError(hotkey)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in self.counts.items())
        return f"{len(self)} miners: {counts or 'none'}"


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """One connection, at the moment of asking."""

    address: PeerAddr
    """The other end."""

    hotkeys: tuple[str, ...]
    """Who is logged in there: a client's miners, or a server's validators."""

    state: str
    """``active``, ``connecting``, ``closed``, or, for a registered miner without a
    connection, ``missing``."""

    age: float
    """Seconds since it was established."""

    idle: float
    """Seconds since the last packet from the other end."""

    rtt: float
    """Smoothed round trip in seconds; 0 before it was measured."""

    min_rtt: float
    """Shortest round trip in seconds; 0 before it was measured."""

    congestion_window: int
    """Bytes that may be under way."""

    bytes_sent: int
    """Of datagrams."""

    bytes_received: int
    """Of datagrams."""

    packets_sent: int
    """All that were sent, those sent again included."""

    packets_lost: int
    """Those declared lost."""

    requests: int
    """Begun on it, logins included."""

    in_flight: int
    """Begun and not ended."""

    failures: int
    """Requests that ended without an answer."""

    last_error: str
    """What went wrong last with this address; empty for nothing."""

    @classmethod
    def of(
        cls, connection: Connection, hotkeys: tuple[str, ...], last_error: str = ""
    ) -> ConnectionStats:
        """Ask a connection how it is doing, from any thread."""
        n = connection.numbers()
        state = "active" if connection.is_alive else "closed"
        return cls(
            connection.address,
            hotkeys,
            state if n.age or not connection.is_alive else "connecting",
            n.age,
            n.idle,
            n.rtt,
            n.min_rtt,
            n.congestion_window,
            n.bytes_sent,
            n.bytes_received,
            n.packets_sent,
            n.packets_lost,
            n.requests,
            n.in_flight,
            n.failures,
            last_error,
        )


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """What became of the requests for one synapse type, since the server was made.

    Requests whose client did not wait for the end are in none of the counts.
    """

    name: str
    """The synapse type."""

    ok: int
    """Answered by the handler."""

    failed: int
    """Those whose handler raised, or gave what cannot be sent."""

    timed_out: int
    """Those without an answer in ``handler_timeout_secs``, begun or not."""

    busy: int
    """Refused, as there was no room to wait."""

    limited: int
    """Refused, as their validator had sent too many."""

    seconds: float
    """Time that the handler took, over all requests; inline ones are not timed."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A server's counters since it was made, and its numbers at the moment of asking."""

    handlers: tuple[HandlerStats, ...]
    """For each synapse type that was registered."""

    unknown: int
    """Requests of a type that nobody registered."""

    unauthenticated: int
    """Requests on connections without a login."""

    invalid: int
    """Requests that could not be read."""

    logins: int
    """Those accepted."""

    logins_refused: Mapping[str, int]
    """By the name of the exception's class in `lightning.errors`; ``TimeoutError``
    for those that took too long."""

    connections: int
    """With a login, now."""

    strangers: int
    """Connections without a login, now."""

    validators: int
    """Hotkeys logged in, now."""

    permits: int
    """Hotkeys that hold a permit, as last resolved."""

    nonces: int
    """Used ones that are remembered."""

    running: int
    """Requests being worked on, or handed to the handlers' threads."""

    queued: int
    """Requests that wait for their turn."""
