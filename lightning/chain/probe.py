"""Finding out who speaks QUIC, by a handshake that ends before the login."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lightning import dialling
from lightning._core.io.transport import ClientEndpoint, TransportConfig
from lightning.errors import ConfigError, ConnectionClosed, LightningError
from lightning.types import PeerAddr, QuicAxonInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lightning._core.io.transport import Connection

__all__ = ["QuicProbe"]

MAX_ENTRIES: Final = 8192


class QuicProbe:
    """Asks addresses whether a miner with our protocol listens there, and remembers it.

    A dial costs one handshake without a login, or, where nobody answers,
    ``timeout_secs``. Any event loop may use it; what it knows is shared.

    Args:
        timeout_secs: For an answer; above 0, default 3.
        remember_secs: How long a yes holds; default a day.
        forget_secs: How long a no holds; default an hour, for a miner may be updated.
        max_entries: Addresses remembered; the oldest makes room.
        concurrency: Addresses asked at once.
        clock: Monotonic seconds.

    Raises:
        ConfigError: A number is not above 0.
    """

    def __init__(
        self,
        timeout_secs: float = 3.0,
        *,
        remember_secs: float = 86_400.0,
        forget_secs: float = 3_600.0,
        max_entries: int = MAX_ENTRIES,
        concurrency: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        numbers = (timeout_secs, remember_secs, forget_secs, max_entries, concurrency)
        if not all(number > 0 for number in numbers):
            raise ConfigError("the numbers of a QuicProbe must be above 0")
        self._timeout = timeout_secs
        self._hold = {True: remember_secs, False: forget_secs}
        self._max_entries = max_entries
        self._concurrency = concurrency
        self._clock = clock
        # Whether it speaks QUIC, and until when that is believed.
        self._known: OrderedDict[PeerAddr, tuple[bool, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._known)

    def remembered(self, address: PeerAddr) -> bool | None:
        """Return what is known of an address, None if nothing is."""
        found = self._known.get(address)
        if found is None or found[1] <= self._clock():
            return None
        return found[0]

    def note(self, address: PeerAddr, speaks_quic: bool) -> None:
        """Remember what was found out elsewhere."""
        self._known.pop(address, None)
        self._known[address] = (speaks_quic, self._clock() + self._hold[speaks_quic])
        while len(self._known) > self._max_entries:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """Forget everything."""
        self._known.clear()

    async def speaks_quic(self, address: PeerAddr) -> bool:
        """Tell whether a miner answers at an address; asks if it is not known."""
        known = self.remembered(address)
        if known is None:
            known = (await self._ask([address]))[address]
        return known

    async def filter(self, miners: Iterable[Any]) -> list[QuicAxonInfo]:
        """Return those who speak QUIC, in order; asks the others all at once.

        Args:
            miners: Anything `QuicAxonInfo.coerce` takes.
        """
        axons = [QuicAxonInfo.coerce(miner) for miner in miners]
        known = {axon.address: self.remembered(axon.address) for axon in axons}
        known.update(
            await self._ask([a for a, is_so in known.items() if is_so is None])
        )
        return [axon for axon in axons if known[axon.address]]

    async def _ask(self, addresses: list[PeerAddr]) -> dict[PeerAddr, bool]:
        if not addresses:
            return {}
        sockets = _Sockets()
        places = asyncio.Semaphore(self._concurrency)

        async def ask(address: PeerAddr) -> bool | None:
            async with places:
                return await self._dial(sockets, address)

        try:
            answers = await asyncio.gather(*map(ask, addresses))
        finally:
            await sockets.close()
        # If all are silent, it may be our own network.
        is_heard = any(answer is not None for answer in answers)
        found = {}
        for address, answer in zip(addresses, answers, strict=True):
            found[address] = answer is True
            if answer is not None or is_heard:
                self.note(address, answer is True)
        return found

    async def _dial(self, sockets: _Sockets, address: PeerAddr) -> bool | None:
        """Return what an address speaks, None if it is silent."""
        try:
            async with asyncio.timeout(self._timeout):
                places = await dialling.resolve(address)
                connection = await dialling.first_success(
                    [partial(sockets.connect, *place) for place in places],
                    dialling.HEAD_START,
                )
        except ConnectionClosed as error:
            # Refused, or the network says that nobody is there.
            return None if error.timed_out else False
        except (LightningError, OSError, UnicodeError):
            # TimeoutError is an OSError.
            return None
        connection.close("probe")
        return True


class _Sockets:
    """One endpoint for each address family, while they are asked."""

    def __init__(self) -> None:
        self._opening = asyncio.Lock()
        self._endpoints: dict[int, ClientEndpoint] = {}

    async def connect(self, family: int, where: tuple[Any, ...]) -> Connection:
        async with self._opening:
            endpoint = self._endpoints.get(family)
            if endpoint is None:
                endpoint = ClientEndpoint(_TRANSPORT)
                await endpoint.open(family)
                self._endpoints[family] = endpoint
        return await endpoint.connect(where)

    async def close(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.close("probe")
        # The sockets' transports close in the loop's next turn.
        await asyncio.sleep(0)


_TRANSPORT: Final = TransportConfig(
    idle_timeout=10.0, keep_alive_interval=5.0, max_frame_payload=1024 * 1024
)
