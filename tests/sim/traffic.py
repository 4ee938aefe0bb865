"""Seeded applications for a pair of ends: what they send is checked as it arrives.

A `Transfer` is one direction of one stream. Its bytes are a function of stream and
offset, so that a byte lost, doubled, swapped or taken from another stream shows at
once. A transfer finishes, is reset by its sender or stopped by its reader. `Traffic`
runs many of them, from both ends, and stops when each has come to its end or the
connection has.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.pair import End, Event, Pair

# A prime, so that no power of two in an engine hides a shift.
_PERIOD = 65521
_BYTES = random.Random("traffic").randbytes(_PERIOD) * 2


def payload(salt: int, offset: int, size: int) -> bytes:
    """Return the bytes that a transfer carries at an offset."""
    pieces = []
    while size > 0:
        at = (salt * 7919 + offset) % _PERIOD
        piece = _BYTES[at : at + min(size, _PERIOD)]
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return b"".join(pieces)


class Mismatch(AssertionError):
    """Bytes, an end or an error code that the other side did not send."""


@dataclass
class Transfer:
    """One direction of one stream.

    Attributes:
        sender: ``"client"`` or ``"server"``.
        size: Bytes to send; what is not sent when the transfer is cut, is not.
        fate: ``"finish"``, ``"reset"`` by the sender or ``"stop"`` by the reader.
        cut: Bytes sent, or read, before the fate strikes; not used by ``"finish"``.
        code: The error code of reset and stop.
        start: Seconds before the first byte; an answer counts from its request's
            first byte.
        chunk: Bytes a write.
        pause: Seconds between writes.
        unidirectional: True if there is no other direction; of requests only.
        answer: The transfer the other way on the same stream.
    """

    sender: str
    size: int
    fate: str = "finish"
    cut: int = 0
    code: int = 0
    start: float = 0.0
    chunk: int = 65536
    pause: float = 0.0
    unidirectional: bool = False
    answer: "Transfer | None" = None

    stream: int = -1
    due: float | None = None
    sent: int = 0
    received: int = 0
    over: bool = False  # the sender has nothing more to do
    ended: bool = False  # the reader has seen the end
    stopped: bool = False
    blocked: bool = False

    @property
    def done(self) -> bool:
        """True once nothing more is to come of it."""
        # Whether a stopped sender hears of it, or was done before, is a race.
        return self.over and (self.ended or self.stopped)

    @property
    def salt(self) -> int:
        """What makes its bytes its own."""
        return self.stream * 2 + (self.sender == "server")


@dataclass
class Traffic:
    """Transfers over one connection; starts when both ends are connected.

    Attributes:
        requests: The transfers that open a stream; answers hang on them.
    """

    requests: Sequence[Transfer]
    _began: bool = False
    _by_stream: dict[int, tuple[Transfer, Transfer | None]] = field(
        default_factory=dict
    )
    # Transfers that may be due, and those that wait for room or for a stream.
    _waiting: list[Transfer] = field(default_factory=list)
    _next: float | None = None

    @property
    def done(self) -> bool:
        """True once every transfer has come to its end."""
        return self._began and all(
            transfer.done and (transfer.answer is None or transfer.answer.done)
            for transfer in self.requests
        )

    def next_timeout(self) -> float | None:
        """Tell when the next write or reset is due."""
        return self._next

    def step(self, pair: Pair) -> None:
        """Read what has come, write what is due."""
        if not self._began:
            if not pair.client.connected:
                return
            self._begin(pair.now)
        for name, end in (("client", pair.client), ("server", pair.server)):
            for event in end.events():
                self._handle(name, end, event, pair.now)
        if pair.client.closed or pair.server.closed:
            self._next = None
            return
        self._write_all(pair)

    def unfinished(self) -> list[Transfer]:
        """List what has not come to its end, for the text of an error."""
        every = [
            each for request in self.requests for each in (request, request.answer)
        ]
        return [each for each in every if each is not None and not each.done]

    def __str__(self) -> str:
        left = self.unfinished()
        return f"{len(left)} unfinished; {left[:3]}"

    def _begin(self, now: float) -> None:
        self._began = True
        for request in self.requests:
            request.due = now + request.start
            self._waiting.append(request)

    def _write_all(self, pair: Pair) -> None:
        self._next = None
        still = []
        for transfer in self._waiting:
            if transfer.over:
                continue  # The reader stopped it.
            end = getattr(pair, transfer.sender)
            # A server may not have seen the end of the handshake yet.
            if end.connected and transfer.due <= pair.now:
                self._write(end, transfer, pair.now)
            if transfer.over:
                continue
            still.append(transfer)
            if (
                end.connected
                and not transfer.blocked
                and (self._next is None or transfer.due < self._next)
            ):
                self._next = transfer.due
        self._waiting = still

    def _write(self, end: End, transfer: Transfer, now: float) -> None:
        transfer.blocked = False
        if transfer.stream < 0:
            stream = end.open(unidirectional=transfer.unidirectional)
            if stream is None:
                transfer.blocked = True
                return
            transfer.stream = stream
            self._by_stream[stream] = (transfer, transfer.answer)
            if transfer.answer is not None:
                transfer.answer.stream = stream
        limit = transfer.cut if transfer.fate == "reset" else transfer.size
        while True:
            room = min(transfer.chunk, limit - transfer.sent)
            fin = transfer.fate != "reset" and transfer.sent + room == transfer.size
            taken = end.write(
                transfer.stream, payload(transfer.salt, transfer.sent, room), fin
            )
            transfer.sent += taken
            if taken < room:
                transfer.blocked = True
                return
            if fin:
                transfer.over = True
                return
            if transfer.pause:
                transfer.due = now + transfer.pause
            if transfer.sent == limit and (not transfer.pause or room == 0):
                # The pause lets the bytes before it go out first.
                end.reset(transfer.stream, transfer.code)
                transfer.over = True
                return
            if transfer.pause:
                return

    def _handle(self, name: str, end: End, event: Event, now: float) -> None:
        if event.stream < 0:
            return
        request, answer = self._by_stream[event.stream]
        incoming, outgoing = (
            (request, answer) if request.sender != name else (answer, request)
        )
        if event.kind == "stopped":
            self._on_stopped(outgoing, event)
        elif event.kind == "reset":
            self._on_reset(incoming, event)
        elif event.kind == "readable":
            self._on_readable(end, incoming)
        if outgoing is not None and outgoing is answer and outgoing.due is None:
            outgoing.due = now + outgoing.start
            self._waiting.append(outgoing)

    def _on_stopped(self, outgoing: Transfer | None, event: Event) -> None:
        if outgoing is None or not outgoing.stopped or event.code != outgoing.code:
            raise Mismatch(f"{event} for {outgoing}")
        outgoing.over = True

    def _on_reset(self, incoming: Transfer | None, event: Event) -> None:
        if incoming is None or incoming.ended:
            raise Mismatch(f"{event} for {incoming}")
        meant = incoming.fate == "reset" and incoming.over
        if not (meant or incoming.stopped) or event.code != incoming.code:
            raise Mismatch(f"{event} for {incoming}")
        incoming.ended = True

    def _on_readable(self, end: End, incoming: Transfer | None) -> None:
        if incoming is None:
            raise Mismatch("bytes on a stream of the other direction")
        if incoming.stopped or incoming.ended:
            return
        data, fin = end.read(incoming.stream)
        expected = payload(incoming.salt, incoming.received, len(data))
        if data != expected:
            raise Mismatch(f"at {incoming.received} of {incoming}")
        incoming.received += len(data)
        if incoming.received > incoming.sent:
            raise Mismatch(f"more than was sent: {incoming}")
        if fin:
            if incoming.received != incoming.size:
                raise Mismatch(f"early end of {incoming}")
            incoming.ended = True
        elif incoming.fate == "stop" and incoming.received >= incoming.cut:
            incoming.stopped = True
            end.stop(incoming.stream, incoming.code)


def bulk(size: int, sender: str = "client") -> Traffic:
    """Send one stream of `size` bytes in one direction."""
    if sender == "client":
        return Traffic([Transfer("client", size)])
    return Traffic([Transfer("client", 1, answer=Transfer("server", size))])


def mixed(seed: int, *, count: int = 12, max_size: int = 60_000) -> Traffic:
    """Mix streams of both ends, sizes, paces and fates, as a seed says."""
    choose = random.Random(f"{seed}/mixed")

    def transfer(sender: str, **more: object) -> Transfer:
        size = choose.choice((0, 1, 100, 1200, choose.randrange(max_size)))
        fate = choose.choices(("finish", "reset", "stop"), (6, 1, 1))[0]
        return Transfer(
            sender,
            size,
            fate,
            cut=choose.randrange(size + 1),
            code=choose.choice((0, 1, 77, 2**62 - 1)),
            start=choose.random() * 0.3,
            chunk=choose.choice((1000, 5000, 1 << 20)),
            pause=choose.choice((0.0, 0.0, 0.004)),
            **more,
        )

    requests = []
    for _ in range(count):
        sender = choose.choice(("client", "client", "server"))
        other = "server" if sender == "client" else "client"
        one_way = choose.random() < 0.25
        answer = None if one_way else transfer(other)
        requests.append(transfer(sender, unidirectional=one_way, answer=answer))
    return Traffic(requests)
