"""How many bytes a request takes: of the messages, and of all that is sent.

Messages are what both ends of the peer's protocol write on a stream: frames. A request of
each contender's client and an answer of each one's server are taken down by an end of our
own, and must be what our encoder makes of the same content, byte for byte.

What is sent besides (packet headers, acknowledgements, HTTP's headers) is counted by a
relay between client and server: payloads of UDP datagrams, or bytes of a TCP connection.
"""

import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.compare.contenders import Contender
from bench.compare.processes import End, Ends, free_port
from lightning._core.wire.framing import FrameReader
from lightning._core.wire.messages import (
    SynapsePacket,
    decode_message,
    encode_synapse_packet,
    encode_synapse_response,
)
from tests.interop.ours import FramedClient, FramedServer

# Requests that are counted: as many as make so many bytes, in these bounds.
BYTES, FEWEST, MOST = 8 << 20, 8, 128
# After which all acknowledgements have been sent; the longest delay is 25 ms.
SETTLE = 0.1


class Tap:
    """A connection of our engine that keeps what was read from it last, a stream."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.heard: dict[int, bytearray] = {}

    def read(self, stream: int) -> bytes:
        """Read, and take it down."""
        data = self._connection.read(stream)
        self.heard.setdefault(stream, bytearray()).extend(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class TappedServer(FramedServer):
    """An echo server that keeps the last request, as it came."""

    tap: Tap | None = None
    last = b""

    def answer(self, connection: Any, stream: int) -> None:
        """Answer, and take down what came."""
        if self.tap is None:
            self.tap = Tap(connection)
        super().answer(self.tap, stream)
        if (connection.number, stream) not in self.readers:
            self.last = bytes(self.tap.heard.pop(stream, self.last))


def messages(
    taking_part: Sequence[Contender], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Return each contender's sizes of messages, and whether they are as ours."""
    rows = []
    for contender in taking_part:
        if not contender.is_quic:
            continue
        print(f"messages: {contender.name}", file=sys.stderr)
        for size, asked, answered in zip(
            sizes, requests(contender, sizes), answers(contender, sizes), strict=True
        ):
            rows.append(
                {
                    "contender": contender.name,
                    "size": size,
                    "request_bytes": len(asked),
                    "answer_bytes": len(answered),
                    "canonical": is_canonical(asked) and is_canonical(answered),
                }
            )
    return rows


def requests(contender: Contender, sizes: Sequence[int]) -> list[bytes]:
    """Return the request that its client sends, for each size."""
    server = TappedServer()
    going = threading.Event()
    thread = threading.Thread(target=_turn, args=(server, going))
    thread.start()
    client = End(contender, "client", server.address[1])
    try:
        client.wait_ready()
        found = []
        for size in sizes:
            client.ask(op="latency", size=size, count=1)
            found.append(server.last)
        return found
    finally:
        client.stop()
        going.set()
        thread.join()
        server.close()


def _turn(server: TappedServer, end: threading.Event) -> None:
    while not end.is_set():
        server.step()


def answers(contender: Contender, sizes: Sequence[int]) -> list[bytes]:
    """Return the answer that its server sends, for each size."""
    port = free_port()
    server = End(contender, "server", port)
    client = FramedClient()
    try:
        server.wait_ready()
        (connection,) = client.dial(("127.0.0.1", port))
        found = []
        for size in sizes:
            tap = Tap(connection)
            data = {"payload": b"\x42" * size}
            client.ask(tap, [encode_synapse_packet("echo", data, int(time.time()))])
            (heard,) = tap.heard.values()
            found.append(bytes(heard))
        connection.close("", 0)
        return found
    finally:
        client.close()
        server.stop()


def is_canonical(frame: bytes) -> bool:
    """Tell whether a frame is what our encoder makes of the same content."""
    reader = FrameReader()
    reader.feed(frame)
    message = decode_message(*reader.take())
    if isinstance(message, SynapsePacket):
        again = encode_synapse_packet(
            message.synapse_type, message.data, message.timestamp
        )
    else:
        again = encode_synapse_response(True, message.data, message.timestamp)
    return again == frame


class Relay:
    """Passes on what goes between one client and a server, and counts it.

    Attributes:
        port: Where the client sends to.
        sent: Bytes and datagrams of the client; a TCP connection has none of the latter.
        answered: The same of the server.
    """

    def __init__(self, server_port: int, *, is_tcp: bool) -> None:
        self._server = ("127.0.0.1", server_port)
        self._near = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM
        )
        self._near.bind(("127.0.0.1", 0))
        self.port = self._near.getsockname()[1]
        self.sent, self.answered = [0, 0], [0, 0]
        self._is_over = False
        self._sockets = [self._near]
        if is_tcp:
            self._near.listen()
        run = self._run_tcp if is_tcp else self._run_udp
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def counts(self) -> list[int]:
        """Return all four counts, when what is on its way has come."""
        time.sleep(SETTLE)
        return [*self.sent, *self.answered]

    def close(self) -> None:
        """Stop passing on."""
        self._is_over = True
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _readable(self) -> list[socket.socket]:
        return select.select(self._sockets, [], [], 0.1)[0]

    def _run_udp(self) -> None:
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.connect(self._server)
        client = None
        self._sockets.append(far)
        for sock in self._sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        while not self._is_over:
            for sock in self._readable():
                with contextlib.suppress(ConnectionRefusedError):
                    data, address = sock.recvfrom(65536)
                    if sock is self._near:
                        client = address
                        _count(self.sent, data)
                        far.send(data)
                    elif client is not None:
                        _count(self.answered, data)
                        self._near.sendto(data, client)

    def _run_tcp(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        counts: dict[socket.socket, list[int]] = {}
        while not self._is_over:
            for sock in self._readable():
                if sock is self._near:
                    client = sock.accept()[0]
                    server = socket.create_connection(self._server)
                    other |= {client: server, server: client}
                    counts |= {client: self.sent, server: self.answered}
                    self._sockets += [client, server]
                    continue
                with contextlib.suppress(OSError):
                    if sock in self._sockets and (data := sock.recv(65536)):
                        counts[sock][0] += len(data)
                        other[sock].sendall(data)
                        continue
                for each in (sock, other[sock]):
                    if each in self._sockets:
                        self._sockets.remove(each)
                        each.close()


def _count(counts: list[int], data: bytes) -> None:
    counts[0] += len(data)
    counts[1] += 1


def datagrams(
    taking_part: Sequence[Contender], sizes: Sequence[int], callers: int
) -> list[dict[str, Any]]:
    """Return what each contender sends for a request, one by one and many at a time."""
    rows = []
    for contender in taking_part:
        print(f"bytes on the wire: {contender.name}", file=sys.stderr)
        try:
            with relayed(contender) as (ends, relay):
                for size in sizes:
                    for how in (None, contender.ways[-1]):
                        row = {"contender": contender.name, "size": size, "how": how}
                        rows.append(row | counted(ends, relay, size, how, callers))
        except RuntimeError as error:
            print(f"{error}: goes on without", file=sys.stderr)
    return rows


@contextlib.contextmanager
def relayed(contender: Contender) -> Iterator[tuple[Ends, Relay]]:
    """Start a client and a server with a relay between them."""
    port = free_port()
    relay = Relay(port, is_tcp=not contender.is_quic)
    try:
        ends = Ends(contender, "two processes", port, relay.port)
        try:
            yield ends, relay
        finally:
            ends.stop()
    finally:
        relay.close()


def counted(
    ends: Ends, relay: Relay, size: int, how: str | None, callers: int
) -> dict[str, float]:
    """Return bytes and datagrams of a request, each way."""
    # What goes through TCP does not vary.
    most = MOST if ends.contender.is_quic else callers
    count = max(FEWEST, min(most, BYTES // size))
    asked: dict[str, Any] = {"op": "latency", "size": size}
    # The first ones find the path's MTU.
    ends.client.ask(**asked, count=2)
    if how is not None:
        count = callers * max(1, count // callers)
        asked |= {"op": "throughput", "callers": callers, "how": how}
    before = relay.counts()
    ends.client.ask(**asked, count=count)
    names = ("sent_bytes", "sent_datagrams", "answered_bytes", "answered_datagrams")
    return {
        name: (late - early) / count
        for name, early, late in zip(names, before, relay.counts(), strict=True)
    }
