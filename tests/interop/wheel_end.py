"""The peer's wheel as the other end; it speaks its own protocol only."""

import re
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

from tests.interop.ours import Address, body
from tests.support.identities import (
    MINER_HOTKEY,
    MINER_SEED,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
)
from tests.support.waiting import until

_CLOSED = re.compile(
    r"closed\((?P<kind>\w+)"
    r'(\(ApplicationClose { error_code: (?P<code>\d+), reason: b"(?P<reason>.*)" }\))?\)'
)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class _Dialled:
    """A client of the peer's, and the one server that it knows."""

    def __init__(self, client: Any, address: Address):
        self.client = client
        self.axon = {"hotkey": MINER_HOTKEY, "ip": address[0], "port": address[1]}


class Wheel:
    """A client and a server; every verb but `listen` gives a future."""

    name = "btlightning"

    def __init__(self, peer: ModuleType):
        self._peer = peer
        self._pool = ThreadPoolExecutor(16)
        self._servers: list[tuple[Any, threading.Thread]] = []
        self._clients: list[Any] = []

    def listen(self, address: Address = ("127.0.0.1", 0), **how: Any) -> Address:
        # Its port cannot be asked for, and its login limit is in the way of tests.
        host, port = address[0], address[1] or free_port()
        how.setdefault("max_handshake_attempts_per_minute", 10_000)
        how.setdefault("handshake_timeout_secs", 30)
        server = self._peer.RustLightningServer(MINER_HOTKEY, host, port, **how)
        server.set_miner_keypair(MINER_SEED)
        server.register_synapse_handler("echo", lambda data: data)
        server.start()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self._servers.append((server, thread))
        return host, port

    def dial(self, address: Address) -> Future:
        client = self._peer.Lightning(VALIDATOR_HOTKEY, connect_timeout_secs=30)
        dialled = _Dialled(client, address)
        dialled.client.set_validator_keypair(VALIDATOR_SEED)
        self._clients.append(dialled.client)

        def dial() -> _Dialled:
            dialled.client.initialize_connections([dialled.axon])
            return dialled

        return self._pool.submit(dial)

    def echo(self, connection: _Dialled, size: int, count: int = 1) -> Future:
        def echo(salt: int) -> None:
            data = {"b": body(size, salt)}
            answer = connection.client.query_axon(
                connection.axon, {"synapse_type": "echo", "data": data}
            )
            assert answer["success"]
            assert answer["data"] == data

        def echoes() -> None:
            with ThreadPoolExecutor(min(count, 32)) as pool:
                list(pool.map(echo, range(count)))

        return self._pool.submit(echoes)

    def close(self, connection: _Dialled) -> Future:
        return self._pool.submit(connection.client.close)

    def ended(self, connection: _Dialled) -> Future:
        """Say how a client's connection ended, as far as it tells."""
        name = "connection_{ip}:{port}".format(**connection.axon)

        def ended() -> dict[str, Any]:
            until(lambda: state().startswith("closed("), 30)
            found = _CLOSED.fullmatch(state())
            if found["kind"] != "ApplicationClosed":
                return {"kind": found["kind"].lower()}
            return {
                "kind": "application",
                "code": int(found["code"]),
                "reason": found["reason"],
            }

        def state() -> str:
            return connection.client.get_connection_stats()[name]

        return self._pool.submit(ended)

    def stats(self) -> dict[str, str]:
        """Say what the server has."""
        return self._servers[0][0].get_connection_stats()

    def close_server(self) -> Future:
        """Stop the server, which closes its connections."""
        return self._pool.submit(self._servers[0][0].stop)

    def vanish(self) -> None:
        """Stop everything."""
        for client in self._clients:
            client.close()
        for server, thread in self._servers:
            server.stop()
            thread.join(10)
        self._pool.shutdown(wait=True, cancel_futures=True)
