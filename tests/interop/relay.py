"""A UDP relay in a thread: faults from a seed, and other addresses."""

import random
import selectors
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from tests.interop.ours import Address

# What becomes of a datagram: its bytes, None if it is lost.
Meddle = Callable[[bool, int, bytes], bytes | None]


class Passed(NamedTuple):
    """A datagram that was passed on, and the kinds of the packets in it."""

    to_server: bool
    size: int
    kinds: tuple[QuicPacketType, ...]


def kinds_of(datagram: bytes) -> tuple[QuicPacketType, ...]:
    """Tell the kinds of the packets in a datagram, as far as they make sense."""
    buffer = Buffer(data=datagram)
    kinds = []
    try:
        while not buffer.eof():
            start = buffer.tell()
            header = pull_quic_header(buffer, host_cid_length=8)
            kinds.append(header.packet_type)
            buffer.seek(start + header.packet_length)
    except ValueError:
        pass
    return tuple(kinds)


class Relay:
    """Passes datagrams between clients and a server, each client from its own port.

    Args:
        server: Where to.
        seed: Of everything that is done to datagrams.
        loss: The part of the datagrams of each direction that is lost.
        corruption: The part in which one bit is turned over, but not of a version.
        reordering: The part that is passed after the next datagram of its direction.
        duplication: The part that is passed twice.
        meddle: Called in the relay's thread with whether a datagram goes to the server,
            how many went there before it, and its bytes; what it returns is passed on.

    Attributes:
        address: Where clients send to.
        passed: The datagrams that were passed on.
        spoilt: How many were lost, changed, late or doubled.
    """

    def __init__(
        self,
        server: Address,
        *,
        seed: int = 1,
        loss: float = 0.0,
        corruption: float = 0.0,
        reordering: float = 0.0,
        duplication: float = 0.0,
        meddle: Meddle | None = None,
    ):
        self._server = server
        self._random = random.Random(seed)
        self._loss = loss
        self._corruption = corruption
        self._reordering = reordering
        self._duplication = duplication
        self.meddle = meddle
        self.passed: list[Passed] = []
        self.spoilt = 0
        self._count = [0, 0]
        self._late: list[list[bytes]] = [[], []]
        self._host = "127.0.0.1"
        self._lock = threading.Lock()
        self._far: dict[Address, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._near = self._open("127.0.0.1")
        self._selector.register(self._near, selectors.EVENT_READ, None)
        self.address: Address = self._near.getsockname()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def saw(self, kind: QuicPacketType, *, to_server: bool) -> bool:
        """Say if a packet of that kind was passed on."""
        return any(
            kind in each.kinds for each in self.passed if each.to_server == to_server
        )

    def rebind(self, host: str = "127.0.0.1") -> None:
        """Let the server see all clients at other ports, and at that host."""
        with self._lock:
            self._host = host
            for far in self._far.values():
                self._selector.unregister(far)
                far.close()
            self._far.clear()

    def close(self) -> None:
        """Stop; bounded, for the thread waits for nothing else."""
        self._wake.send(b"x")
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.rebind()
        for each in (self._near, self._wake, self._woken):
            each.close()
        self._selector.close()

    def _open(self, host: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind((host, 0))
        made.setblocking(False)
        return made

    def _run(self) -> None:
        while True:
            ready = self._selector.select()
            for key, _ in ready:
                if key.data is self:
                    return
                # Within the lock a socket is either open or gone from the list.
                with self._lock:
                    if key.fileobj.fileno() >= 0:
                        self._pass(key.fileobj, key.data)

    def _pass(self, source: socket.socket, client: Address | None) -> None:
        for _ in range(64):
            try:
                data, address = source.recvfrom(65536)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            to_server = client is None
            out, to = self._near, client
            if to_server:
                out, to = self._far_of(address), self._server
            for each in self._spoil(to_server, data):
                self.passed.append(Passed(to_server, len(each), kinds_of(each)))
                try:
                    out.sendto(each, to)
                except (BlockingIOError, ConnectionRefusedError):
                    pass

    def _far_of(self, client: Address) -> socket.socket:
        if client not in self._far:
            self._far[client] = self._open(self._host)
            self._selector.register(self._far[client], selectors.EVENT_READ, client)
        return self._far[client]

    def _spoil(self, to_server: bool, data: bytes) -> list[bytes]:
        """Return what is to be passed on now."""
        number = self._count[to_server]
        self._count[to_server] += 1
        kept = self._late[to_server]
        self._late[to_server] = []
        if self._chance(self._loss):
            return kept
        if self._chance(self._corruption):
            # Nothing protects a version: two wrong bits in the right places would
            # say that there is no common one (RFC 9000 section 21.12).
            first = 5 * 8 if data[0] & 0x80 else 0
            bit = self._random.randrange(first, len(data) * 8)
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            data = bytes(changed)
        if self.meddle is not None:
            meddled = self.meddle(to_server, number, data)
            if meddled is None:
                return kept
            data = meddled
        if self._chance(self._reordering):
            self._late[to_server].append(data)
            return kept
        copies = 2 if self._chance(self._duplication) else 1
        return [data] * copies + kept

    def _chance(self, part: float) -> bool:
        hit = self._random.random() < part
        self.spoilt += hit
        return hit
