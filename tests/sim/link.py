"""A network in virtual time: what happens to datagrams between two ends.

A `Link` is one direction. It owns no clock, socket or thread: whoever drives it says
what time it is. Every fault has its own random stream, derived from the link's seed
and the fault's name, so that turning one fault on does not change which datagrams
another one hits. The same seed and the same datagrams give the same trace.

A `Network` is two links and the two addresses at their ends; `scenario` builds one
under the names that the public QUIC interop runner's simulator uses.
"""

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Address = tuple[str, int]

NOT_ECT, ECT_1, ECT_0, CE = range(4)

# What a datagram needs below UDP's payload (RFC 768, RFC 791, RFC 8200).
IPV4_AND_UDP = 28
IPV6_AND_UDP = 48


class Datagram(NamedTuple):
    """What arrives: the UDP payload, the addresses as the receiver sees them, ECN."""

    data: bytes
    source: Address
    destination: Address
    ecn: int


class Link:
    """One direction of a network.

    A datagram passes the sender's MTU, the queue and the wire of the bottleneck, then
    the faults, and arrives `delay` seconds after its last bit left the bottleneck.

    Args:
        seed: Drives every random choice.
        name: Tells this link's trace, and its randomness, from another's.
        delay: Propagation time in seconds.
        rate_bps: Bits a second of the bottleneck; None is infinitely fast.
        queue_bytes: What may wait at the bottleneck, the datagram on the wire
            included; a datagram that does not fit is dropped. None is endless.
        loss: Probability from 0 to 1 that a datagram is lost at random.
        burst: Most datagrams in a row that `loss` may take; None is any number.
        reorder: Probability that a datagram takes up to twice the delay, so that
            later ones may overtake it.
        duplicate: Probability that a second copy arrives, up to one delay later.
        corrupt: Probability that one byte is changed.
        mtu: Largest IP packet in bytes; larger ones are dropped.
        ecn_mark: Probability that a datagram sent with ECT(0) or ECT(1) arrives
            marked CE.
        droplist: Numbers of the datagrams to lose, counted from 1 as they are sent.
        blackhole: Periods ``(from, to)`` in seconds in which all that is sent is lost.
        rebind_at: ``(time, address)`` in order of time: what a NAT makes of the
            client's address for datagrams that arrive from then on. Sources are
            rewritten. (At arrival, as in the simulator: were it at departure, a
            client that only receives would never be found again.)
        home: The client's own address. Given, the link leads to the client: only
            datagrams to the address that the NAT has at their arrival get through.
    """

    def __init__(
        self,
        seed: int,
        *,
        delay: float,
        name: str = "link",
        rate_bps: float | None = None,
        queue_bytes: int | None = None,
        loss: float = 0,
        burst: int | None = None,
        reorder: float = 0,
        duplicate: float = 0,
        corrupt: float = 0,
        mtu: int = 1500,
        ecn_mark: float = 0,
        droplist: Sequence[int] = (),
        blackhole: Sequence[tuple[float, float]] = (),
        rebind_at: Sequence[tuple[float, Address]] = (),
        home: Address | None = None,
    ):
        self.seed = seed
        self.name = name
        self.delay = delay
        self.rate_bps = rate_bps
        self.queue_bytes = queue_bytes
        self.loss = loss
        self.burst = burst
        self.reorder = reorder
        self.duplicate = duplicate
        self.corrupt = corrupt
        self.mtu = mtu
        self.ecn_mark = ecn_mark
        self.droplist = frozenset(droplist)
        self.blackhole = tuple(blackhole)
        self.rebind_at = tuple(rebind_at)
        self.home = home
        self.trace: list[tuple] = []
        self.counts: Counter[str] = Counter()
        self._random = {
            fault: random.Random(f"{seed}/{name}/{fault}")
            for fault in ("loss", "reorder", "duplicate", "corrupt", "ecn")
        }
        self._heap: list[tuple[float, int, int, Datagram]] = []
        self._sequence = 0
        self._number = 0
        self._busy_until = 0.0
        self._lost_in_a_row = 0

    @property
    def in_flight(self) -> int:
        """Datagrams that have not arrived yet."""
        return len(self._heap)

    def next_arrival(self) -> float | None:
        """Return when the next datagram arrives, None if none is on its way."""
        return self._heap[0][0] if self._heap else None

    def send(
        self,
        now: float,
        data: bytes,
        source: Address,
        destination: Address,
        ecn: int = NOT_ECT,
    ) -> None:
        """Put a datagram on the link."""
        self._number += 1
        number = self._number
        size = len(data)
        self._note(now, "sent", number, size)
        below = IPV6_AND_UDP if ":" in destination[0] else IPV4_AND_UDP
        if size + below > self.mtu:
            self._note(now, "too big", number, size)
            return
        leaves = self._pass_bottleneck(now, size + below)
        if leaves is None:
            self._note(now, "queue full", number, size)
            return
        fault = self._fault(now, number)
        if fault is not None:
            self._note(now, fault, number, size)
            return
        if self._hits("ecn", self.ecn_mark) and ecn in (ECT_0, ECT_1):
            ecn = CE
            self._note(now, "marked", number, size)
        if self._hits("corrupt", self.corrupt) and data:
            data = self._change_a_byte(data)
            self._note(now, "corrupted", number, size)
        arrives = leaves + self.delay
        late = self._random["reorder"].random() * self.delay
        if self._hits("reorder", self.reorder):
            arrives += late
            self._note(now, "delayed", number, size)
        datagram = Datagram(data, source, destination, ecn)
        self._push(arrives, number, datagram)
        later = self._random["duplicate"].random() * self.delay
        if self._hits("duplicate", self.duplicate):
            self._push(arrives + later, number, datagram)
            self._note(now, "duplicated", number, size)

    def deliver(self, now: float) -> list[Datagram]:
        """Take what has arrived by now, in order of arrival."""
        arrived = []
        while self._heap and self._heap[0][0] <= now:
            time, _, number, datagram = heapq.heappop(self._heap)
            if self.home is None:
                source = self._public(time, datagram.source)
                datagram = datagram._replace(source=source)
            else:
                if datagram.destination != self._public(time, self.home):
                    self._note(time, "unreachable", number, len(datagram.data))
                    continue
                datagram = datagram._replace(destination=self.home)
            self._note(
                time, "delivered", number, len(datagram.data), datagram.source,
                datagram.destination, datagram.ecn,
            )  # fmt: skip
            arrived.append(datagram)
        return arrived

    def _note(self, time: float, what: str, *rest: object) -> None:
        self.counts[what] += 1
        self.trace.append((time, self.name, what, *rest))

    def _push(self, time: float, number: int, datagram: Datagram) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, number, datagram))

    def _pass_bottleneck(self, now: float, size: int) -> float | None:
        """Return when the last bit leaves, None if the queue has no room."""
        if self.rate_bps is None:
            return now
        starts = max(now, self._busy_until)
        waiting = (starts - now) * self.rate_bps / 8
        if self.queue_bytes is not None and waiting + size > self.queue_bytes:
            return None
        self._busy_until = starts + size * 8 / self.rate_bps
        return self._busy_until

    def _fault(self, now: float, number: int) -> str | None:
        """Name what loses the datagram, None if nothing does."""
        lost = self._hits("loss", self.loss)
        if lost and self.burst is not None and self._lost_in_a_row >= self.burst:
            lost = False
        self._lost_in_a_row = self._lost_in_a_row + 1 if lost else 0
        if any(begin <= now < end for begin, end in self.blackhole):
            return "blackhole"
        if number in self.droplist:
            return "droplist"
        return "lost" if lost else None

    def _hits(self, fault: str, probability: float) -> bool:
        return self._random[fault].random() < probability

    def _change_a_byte(self, data: bytes) -> bytes:
        changed = bytearray(data)
        position = self._random["corrupt"].randrange(len(changed))
        changed[position] ^= self._random["corrupt"].randrange(1, 256)
        return bytes(changed)

    def _public(self, now: float, address: Address) -> Address:
        """Return what the NAT makes of the client's address."""
        for time, public in self.rebind_at:
            if time > now:
                break
            address = public
        return address


@dataclass
class Network:
    """Two links, and the addresses of the two ends."""

    seed: int
    to_server: Link
    to_client: Link
    client_address: Address
    server_address: Address

    @property
    def trace(self) -> list[tuple]:
        """Both links' traces, in order of time; what arrives before what is sent."""
        return sorted(
            self.to_server.trace + self.to_client.trace,
            key=lambda entry: (entry[0], entry[2] != "delivered"),
        )


CLIENT_ADDRESS = ("192.0.2.1", 40000)
SERVER_ADDRESS = ("198.51.100.1", 4433)

# The simulator's base: 15 ms one way, 10 Mbit/s, 25 packets.
BASE = {"delay": 0.015, "rate_bps": 10e6, "queue_bytes": 25 * 1500}


def network(
    seed: int,
    *,
    to_server: dict | None = None,
    to_client: dict | None = None,
    client_address: Address = CLIENT_ADDRESS,
    server_address: Address = SERVER_ADDRESS,
    rebind_at: Sequence[tuple[float, Address]] = (),
    **both: object,
) -> Network:
    """Build a network: the base, changed for both directions or for one."""
    shared = {**BASE, **both, "rebind_at": rebind_at}
    return Network(
        seed,
        Link(seed, **{"name": "to server", **shared, **(to_server or {})}),
        Link(
            seed,
            **{
                "name": "to client",
                "home": client_address,
                **shared,
                **(to_client or {}),
            },
        ),
        client_address,
        server_address,
    )


def rebindings(
    *, first: float = 1.0, every: float = 5.0, count: int = 24, addresses: bool = False
) -> list[tuple[float, Address]]:
    """List what a NAT does: a new port each time, on request a new address too."""
    host, port = CLIENT_ADDRESS
    stem = host.rsplit(".", 1)[0]
    return [
        (
            first + every * index,
            (f"{stem}.{2 + index}" if addresses else host, port + 1 + index),
        )
        for index in range(count)
    ]


# Name -> what differs from the base. The rates are those of the interop runner's
# cases for loss and corruption of a transfer, the droplist that of its
# amplification limit, the black hole and the rebindings its own.
SCENARIOS: dict[str, dict] = {
    "simple-p2p": {},
    "blackhole": {"blackhole": [(5.0, 7.0)]},
    "drop-rate": {"loss": 0.02, "burst": 3},
    "droplist": {"to_server": {"droplist": range(2, 8)}},
    "corrupt-rate": {"corrupt": 0.02},
    "rebind-port": {"rebind_at": rebindings()},
    "rebind-addr": {"rebind_at": rebindings(addresses=True)},
}


def scenario(name: str, seed: int, **changes: object) -> Network:
    """Build the network of a named scenario, with changes as `network` takes them."""
    return network(seed, **{**SCENARIOS[name], **changes})
