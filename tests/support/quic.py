"""Two endpoints in memory, and an aioquic peer that sends whatever a test wants."""

import random
import ssl

from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_header
from aioquic.tls import Epoch

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint

CLIENT = ("10.0.0.1", 1000)
SERVER = ("10.0.0.2", 2000)
IDENTITY = Identity.generate()

FLOW_CONTROL = 0x03
STREAM_LIMIT = 0x04
STREAM_STATE = 0x05
FINAL_SIZE = 0x06
FRAME_ENCODING = 0x07
TRANSPORT_PARAMETER = 0x08
CONNECTION_ID_LIMIT = 0x09
PROTOCOL_VIOLATION = 0x0A
INVALID_TOKEN = 0x0B
CRYPTO_BUFFER_EXCEEDED = 0x0D
KEY_UPDATE = 0x0E
CRYPTO = 0x100


def client(seed=1, **settings):
    """Make a client endpoint; each seed has its own connection identifiers."""
    return Endpoint(
        EngineConfig(**settings), is_client=True, random=random.Random(seed).randbytes
    )


def server(**settings):
    """Make a server endpoint."""
    return Endpoint(
        EngineConfig(**settings), is_client=False, identity=IDENTITY,
        random=random.Random(2).randbytes,
    )  # fmt: skip


def varint(value):
    """Encode a variable-length integer."""
    return encode_uint_var(value)


def frame(kind, *fields):
    """Encode a frame of varints and bytes."""
    return varint(kind) + b"".join(
        each if isinstance(each, bytes) else varint(each) for each in fields
    )


class Two:
    """A client and a server of ours, with a connection, in virtual time.

    Attributes:
        near: The client endpoint.
        far: The server endpoint.
        connection: The client's side of the connection.
        peer: The server's side, once it is connected.
        delay: Seconds a datagram takes.
        now: The time.
        lose: Called with (to_server, number, data); True loses the datagram.
        ecn: What the network makes of the ECN bits.
    """

    def __init__(
        self, near=None, far=None, *, token=b"", delay=0.01, lose=None, now=0.0
    ):
        self.near = near or client()
        self.far = far or server()
        self.delay = delay
        self.lose = lose or (lambda *_: False)
        self.ecn = lambda bits: bits
        self.now = now
        self.source = CLIENT
        self.count = [0, 0]
        self.log = []
        self.flying = []
        self.near_events = []
        self.far_events = []
        self.peer = None
        self.connection = self.near.connect(SERVER, self.now, token=token)

    def flush(self):
        """Put on the wire what both have to send."""
        for to_server, end in ((True, self.near), (False, self.far)):
            for data, to, ecn, segment in end.transmit(self.now):
                for start in range(0, len(data), segment):
                    piece = data[start : start + segment]
                    self.count[to_server] += 1
                    self.log.append((self.now, to_server, len(piece)))
                    if not self.lose(to_server, self.count[to_server], piece):
                        self.flying.append(
                            (self.now + self.delay, to_server, piece, to, self.ecn(ecn))
                        )

    def step(self, until=float("inf")):
        """Go to what happens next; False if it is later than `until`."""
        self.flush()
        times = [each[0] for each in self.flying]
        times += [t for t in (self.near.next_timeout(), self.far.next_timeout()) if t]
        if not times or min(times) > until:
            self.now = max(self.now, min(until, 1e9))
            return False
        self.now = max(self.now, min(times))
        due = [each for each in self.flying if each[0] <= self.now]
        self.flying = [each for each in self.flying if each[0] > self.now]
        for _, to_server, data, to, ecn in due:
            if to_server:
                self.far.receive(data, self.source, self.now, ecn)
            elif to == self.source:
                self.near.receive(data, SERVER, self.now, ecn)
        for end in (self.near, self.far):
            timeout = end.next_timeout()
            if timeout is not None and timeout <= self.now:
                end.handle_timeout(self.now)
        self.collect()
        return True

    def collect(self):
        """Take the events of both."""
        for end, events in ((self.near, self.near_events), (self.far, self.far_events)):
            while (event := end.next_event()) is not None:
                events.append(event)
                if end is self.far and event.kind == "connected":
                    self.peer = event.connection

    def run(self, seconds=1.0):
        """Let time pass."""
        until = self.now + seconds
        steps = 0
        while self.step(until):
            steps += 1
            assert steps < 100_000, "the ends spin"

    def connect(self):
        """Run the handshake and what follows it."""
        self.run(0.5)
        assert self.connection.is_confirmed
        assert self.peer is not None
        self.near_events.clear()
        self.far_events.clear()
        return self

    def widen(self):
        """Fill datagrams both ways, which has both ends look for larger ones."""
        stream = self.connection.open_stream()
        self.connection.send(stream, bytes(4000), fin=True)
        self.run(0.5)
        self.peer.read(stream)
        self.peer.send(stream, bytes(4000), fin=True)
        self.run(1.5)
        self.connection.read(stream)
        self.connection.release(stream)
        self.peer.release(stream)
        self.near_events.clear()
        self.far_events.clear()
        return self

    def kinds(self, events):
        """Name the events."""
        return [event.kind for event in events]


class Attacker:
    """An aioquic client that has shaken hands with our server, and can say anything."""

    def __init__(self, end=None, *, connect=True, prepare=None, **settings):
        self.end = end or server()
        self.now = 0.0
        self.events = []
        self.victim = None
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["btlightning"], verify_mode=ssl.CERT_NONE,
            **settings,
        )  # fmt: skip
        self.quic = QuicConnection(configuration=configuration)
        if prepare is not None:
            prepare(self.quic)
        self.quic.connect(SERVER, self.now)
        if connect:
            self.pump()
            assert self.victim is not None

    def pump(self, rounds=20):
        """Exchange datagrams until both are silent."""
        for _ in range(rounds):
            mine = self.quic.datagrams_to_send(self.now)
            for data, _ in mine:
                self.end.receive(data, CLIENT, self.now)
            theirs = self.end.datagrams_to_send(self.now)
            for data, _ in theirs:
                self.quic.receive_datagram(data, SERVER, self.now)
            self.collect()
            if not mine and not theirs:
                return

    def settle(self):
        """Let a second pass, so that nothing is left to be acknowledged.

        The PING closes the gap that aioquic's numbers have between the spaces.
        """
        self.send(frame(0x01))
        self.now += 1
        self.end.handle_timeout(self.now)
        self.end.datagrams_to_send(self.now)
        return self

    def collect(self):
        """Take our server's events."""
        while (event := self.end.next_event()) is not None:
            self.events.append(event)
            self.victim = event.connection

    def seal(self, epoch, payload, *, reserved=0, pn=None, phase=0):
        """Build one packet with the connection's keys."""
        quic = self.quic
        payload = payload.ljust(4, b"\0")
        if pn is None:
            pn = quic._packet_number
            quic._packet_number += 1
        if epoch == Epoch.ONE_RTT:
            phase = phase or quic._cryptos[epoch].key_phase
            header = bytes([0x41 | phase << 2 | reserved]) + quic._peer_cid.cid
        else:
            kind = 0xC1 if epoch == Epoch.INITIAL else 0xE1
            cid, own = quic._peer_cid.cid, quic.host_cid
            header = (
                bytes([kind | reserved]) + (1).to_bytes(4) + bytes([len(cid)]) + cid
                + bytes([len(own)]) + own
                + (b"\0" if epoch == Epoch.INITIAL else b"")
                + (0x4000 | (len(payload) + 18)).to_bytes(2)
            )  # fmt: skip
        header += (pn & 0xFFFF).to_bytes(2)
        return quic._cryptos[epoch].encrypt_packet(header, payload, pn)

    def send(self, payload, *, epoch=Epoch.ONE_RTT, source=CLIENT, **how):
        """Have our server receive a packet with that payload."""
        self.end.receive(self.seal(epoch, payload, **how), source, self.now)
        self.collect()

    @property
    def verdict(self):
        """What our server closed the connection with, None if it did not."""
        end = self.victim and self.victim.end
        if end is None:
            return None
        assert end.initiator == "local"
        assert not end.application
        return end.code


def original_cid(datagram):
    """Return the destination connection ID of a client's first datagram."""
    return pull_quic_header(Buffer(data=datagram), host_cid_length=8).destination_cid
