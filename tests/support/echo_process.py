"""A server in a process of its own: it echoes, and holds the GIL when it is told to.

Run with ``python -m tests.support.echo_process``; its port is the first line that it
prints, and it ends with its standard input. A port and a secret in hexadecimal digits
may follow.
"""

import asyncio
import ctypes
import json
import socket
import sys
import time

from lightning._core.io.transport import Identity, ServerEndpoint, TransportConfig
from tests.support.raw_peer import frame

CONFIG = {"idle_timeout": 2, "keep_alive_interval": 20, "max_frame_payload": 1 << 20}
LOOK_EVERY = 0.01


def hold_the_gil(seconds: float) -> None:
    """Block in a C call that does not let other Python threads run."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


class Echo:
    """Answers; keeps when the datagrams of its latest connection came."""

    def __init__(self, **settings: object) -> None:
        self.connection = None
        self.seen = 0
        self.times: list[float] = []
        self.endpoint = ServerEndpoint(
            TransportConfig(**{**CONFIG, **settings}),
            Identity.generate(),
            on_connection=self.on_connection,
            on_request=self.on_request,
        )

    def on_connection(self, connection) -> None:
        self.connection = connection

    def on_request(self, connection, exchange, kind, payload) -> None:
        if payload.startswith(b"hold "):
            hold_the_gil(float(payload[5:]))
        elif payload == b"times":
            payload = json.dumps(self.times).encode()
        exchange.respond(frame(4, payload))

    async def look(self) -> None:
        """Note the times at which datagrams came."""
        while True:
            if self.connection is not None and self.connection.is_alive:
                stats = self.connection.engine_connection.stats()
                if stats["datagrams_received"] != self.seen:
                    self.seen = stats["datagrams_received"]
                    self.times.append(time.monotonic())
            await asyncio.sleep(LOOK_EVERY)


async def main() -> None:
    """Serve until standard input ends."""
    port, secret = sys.argv[1:] or ("0", "")
    echo = Echo(reset_secret=bytes.fromhex(secret))
    await echo.endpoint.open(socket.AF_INET, ("127.0.0.1", int(port)))
    print(echo.endpoint.local_addr.port, flush=True)
    looking = asyncio.create_task(echo.look())
    await asyncio.to_thread(sys.stdin.read)
    looking.cancel()
    echo.endpoint.close("")


if __name__ == "__main__":
    asyncio.run(main())
