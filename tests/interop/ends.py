"""One of our ends and another's, and what both do in every case."""

import contextlib
from collections.abc import Callable
from typing import Any

from lightning._core.quic.engine import Connection
from tests.interop.ours import (
    Address,
    Client,
    Driver,
    FramedClient,
    FramedServer,
    Server,
)
from tests.interop.relay import Relay


class Pair:
    """A connection between ours and theirs.

    Attributes:
        ours: Our end.
        mine: Our connection.
        other: Their end.
        theirs: What their end knows it by; None for a server that does not tell.
    """

    def __init__(
        self, ours: Driver, mine: Connection, other: Any, theirs: Any, serving: bool
    ):
        self.ours = ours
        self.mine = mine
        self.other = other
        self.theirs = theirs
        self._serving = serving

    def echo(self, size: int, count: int = 1) -> None:
        """Have the client send as much on that many streams, and get it back."""
        if self._serving:
            self.ours.echo(self.mine, size, count)
        else:
            self.ours.result(self.other.echo(self.theirs, size, count))


class Ends:
    """What makes both ends; closes everything at the end of a test.

    Attributes:
        stack: The other end's name.
        serving: Whether it is the server.
        other: The other end; `replace` makes another one.
    """

    def __init__(self, stack: str, role: str, make: Callable[[], Any]):
        self.stack = stack
        self.serving = role == "server"
        self.make = make
        self.others: list[Any] = []
        self.drivers: list[Driver] = []
        self.relays: list[Relay] = []
        self.other = self.replace()

    @property
    def framed(self) -> bool:
        return self.stack == "btlightning"

    def replace(self) -> Any:
        """Make a new other end, which knows nothing of the one before."""
        self.other = self.make()
        self.others.append(self.other)
        return self.other

    def client(self, **settings: Any) -> Client:
        made = (FramedClient if self.framed else Client)(**settings)
        self.drivers.append(made)
        return made

    def server(self, **settings: Any) -> Server:
        made = (FramedServer if self.framed else Server)(**settings)
        self.drivers.append(made)
        return made

    def relay(self, server: Address, **faults: Any) -> Relay:
        made = Relay(server, **faults)
        self.relays.append(made)
        return made

    def listen(self, ours: dict, theirs: dict) -> tuple[Driver, Address]:
        """Start both ends, and the server's listening."""
        if self.serving:
            return self.client(**ours), self.other.listen(**theirs)
        server = self.server(**ours)
        return server, server.address

    def dial(
        self, driver: Driver, address: Address, count: int = 1, **theirs: Any
    ) -> list[Pair]:
        """Connect the client to an address of the server, as often at a time."""
        if self.serving:
            made = driver.dial(address, count)
            handles = [
                None if self.framed else driver.result(self.other.accept())
                for _ in range(count)
            ]
        else:
            known = len(driver.connections)
            futures = [self.other.dial(address, **theirs) for _ in range(count)]
            handles = [driver.result(future) for future in futures]
            driver.until(lambda: len(driver.connections) >= known + count)
            made = driver.connections[known:]
        return [
            Pair(driver, mine, self.other, handle, self.serving)
            for mine, handle in zip(made, handles, strict=True)
        ]

    def connect(self, ours: dict | None = None, theirs: dict | None = None) -> Pair:
        """Start both ends and connect them."""
        theirs = theirs or {}
        driver, address = self.listen(ours or {}, theirs)
        return self.dial(driver, address, **({} if self.serving else theirs))[0]

    def connect_through_relay(
        self,
        ours: dict | None = None,
        theirs: dict | None = None,
        count: int = 1,
        **faults: Any,
    ) -> tuple[list[Pair], Relay]:
        """Do the same through a relay, as often at a time."""
        theirs = theirs or {}
        driver, address = self.listen(ours or {}, theirs)
        relay = self.relay(address, **faults)
        how = {} if self.serving else theirs
        return self.dial(driver, relay.address, count, **how), relay

    def close(self) -> None:
        """Let our ends say goodbye, then stop everything, whatever fails."""
        with contextlib.ExitStack() as stack:
            for relay in self.relays:
                stack.callback(relay.close)
            for other in self.others:
                stack.callback(other.vanish)
            for driver in self.drivers:
                stack.callback(driver.close)
