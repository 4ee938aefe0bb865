"""A UDP relay for one client, which can change the port that the server sees."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class _Side(asyncio.DatagramProtocol):
    def __init__(self, receive: object) -> None:
        self.receive = receive

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple) -> None:
        self.receive(data, addr)


class UdpRelay:
    """Passes datagrams between one client and a server.

    Attributes:
        port: Where the client sends to.
        is_open: False drops everything.
        rate: Bytes a second of what the client sends; the rest waits. None is any.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._client: tuple | None = None
        self._sides: list[_Side] = []
        self.port = 0
        self.is_open = True
        self.rate: float | None = None
        self._free_at = 0.0

    async def _open(self, receive: object) -> _Side:
        _, side = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Side(receive), local_addr=("127.0.0.1", 0)
        )
        self._sides.append(side)
        return side

    async def start(self) -> None:
        self._near = await self._open(self._from_client)
        self.port = self._near.transport.get_extra_info("sockname")[1]
        await self.rebind()

    async def rebind(self) -> int:
        """Send on from another port, and drop what comes to the old one."""
        self._far = side = await self._open(
            lambda data, _: self._from_server(side, data)
        )
        return side.transport.get_extra_info("sockname")[1]

    def _from_client(self, data: bytes, addr: tuple) -> None:
        self._client = addr
        if not self.is_open:
            return
        if self.rate is None:
            self._far.transport.sendto(data, self._server)
            return
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + len(data) / self.rate
        loop.call_at(self._free_at, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        if self.is_open and not self._far.transport.is_closing():
            self._far.transport.sendto(data, self._server)

    def _from_server(self, side: _Side, data: bytes) -> None:
        if self.is_open and side is self._far and self._client is not None:
            self._near.transport.sendto(data, self._client)

    def close(self) -> None:
        for side in self._sides:
            side.transport.close()


@contextlib.asynccontextmanager
async def udp_relay(ip: str, port: int) -> AsyncIterator[UdpRelay]:
    """Run a relay to a server."""
    relay = UdpRelay((ip, port))
    await relay.start()
    try:
        yield relay
    finally:
        relay.close()
        await asyncio.sleep(0)
