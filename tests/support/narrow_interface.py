"""Ends whose network interface carries less than they would send.

Run with ``python -m tests.support.narrow_interface MTU...``: it makes a network of its own
with nothing but a loopback interface, and prints what the ends found with each MTU, as
JSON. Its status is 77 where the system lets nobody do so.
"""

import asyncio
import ctypes
import fcntl
import json
import socket
import struct
import sys

from lightning._core.io.transport import ClientEndpoint
from tests.unit.test_transport import CONFIG, Server, TransportConfig, ask

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, SIOCSIFMTU = 0x8914, 0x8922
UP_AND_RUNNING = 0x41
SKIPPED = 77


def interface(request: int, form: str, value: int) -> None:
    """Change the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, request, struct.pack(f"16s{form}", b"lo", value))


async def found(mtus: list[int]) -> list[dict[str, int]]:
    """Send large bodies over interfaces of these MTUs, one after the other."""
    server = Server(**CONFIG)
    await server.endpoint.open(socket.AF_INET, ("127.0.0.1", 0))
    client = ClientEndpoint(TransportConfig(**CONFIG))
    await client.open(socket.AF_INET)
    connection = None
    results = []
    for mtu in mtus:
        interface(SIOCSIFMTU, "i12x", mtu)
        if connection is None:
            connection = await client.connect(
                ("127.0.0.1", server.endpoint.local_addr.port)
            )
        for _ in range(8):
            body = bytes(1 << 19)
            if await ask(connection, body) != body:
                raise RuntimeError("another answer")
        ends = connection.engine_connection, server.connections[0].engine_connection
        results.append(
            {
                "sizes": [end.stats()["mtu"] for end in ends],
                "not_sent": [e.stats()["not_sent"] for e in (client, server.endpoint)],
            }
        )
    client.close("")
    server.endpoint.close("")
    return results


def main() -> int:
    """Do it."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        return SKIPPED
    interface(SIOCSIFFLAGS, "h14x", UP_AND_RUNNING)
    print(json.dumps(asyncio.run(found([int(text) for text in sys.argv[1:]]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
