"""The operations that are measured: each a function that does it a number of times.

A case is made by calling its maker, which sets everything up, and then called with a
count. `counts.py` counts instructions, `test_times.py` takes times.
"""

import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning._core.quic import bench, frames, packet, protection
from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Connection, Endpoint
from lightning._core.quic.tls import Tls
from lightning._core.wire import messages
from lightning._core.wire.framing import HEADER_SIZE
from lightning.handshake import (
    ClientLogin,
    accept,
    certificate_fingerprint,
    verify_request,
)
from lightning.signer import Sr25519Signer

Case = Callable[[int], object]

ADDRESS = ("10.0.0.1", 1000)
AES_128, CHACHA20 = 0x1301, 0x1303
IDENTITY = Identity.generate()
MIB = 1024 * 1024
# What the faces set: 128 streams, their windows, a keep-alive.
CONFIG = EngineConfig(keep_alive=10.0)


class Ends:
    """A client and a server endpoint that see each other at one address."""

    def __init__(self) -> None:
        self.near = Endpoint(CONFIG, is_client=True)
        self.far = Endpoint(CONFIG, is_client=False, identity=IDENTITY)
        self.now = 1.0

    def settle(self) -> None:
        """Exchange datagrams until neither end has any."""
        while True:
            out = self.near.transmit(self.now)
            for data, _, ecn, size in out:
                for start in range(0, len(data), size):
                    piece = data[start : start + size]
                    self.far.receive(piece, ADDRESS, self.now, ecn)
            back = self.far.transmit(self.now)
            for data, _, ecn, size in back:
                for start in range(0, len(data), size):
                    piece = data[start : start + size]
                    self.near.receive(piece, ADDRESS, self.now, ecn)
            if not out and not back:
                return

    def connect(self) -> tuple[Connection, Connection]:
        """Connect once; return the connection as the client and as the server has it."""
        near = self.near.connect(ADDRESS, self.now)
        self.settle()
        far = None
        while self.near.next_event():
            pass
        while event := self.far.next_event():
            if event.kind == "connected":
                far = event.connection
        assert near.is_confirmed
        assert far is not None
        return near, far

    def wait(self, seconds: float = 1.0) -> None:
        """Let what is held back go: acknowledgements, the search for the path's MTU."""
        until = self.now + seconds
        while True:
            timeouts = (self.near.next_timeout(), self.far.next_timeout())
            due = min((each for each in timeouts if each is not None), default=until)
            if due > until:
                break
            self.now = max(self.now, due)
            self.near.handle_timeout(self.now)
            self.far.handle_timeout(self.now)
            self.settle()
        self.now = until

    def close(self, near: Connection) -> None:
        """Close a connection, and forget it at both ends."""
        near.close()
        self.settle()
        self.now += 10.0
        self.near.handle_timeout(self.now)
        self.far.handle_timeout(self.now)
        while self.near.next_event():
            pass
        while self.far.next_event():
            pass


# --- Packets ------------------------------------------------------------------------


def seal(suite: int, size: int) -> Case:
    """Seal a packet in place, header protection included."""
    return lambda count: protection.bench_seal(suite, size, count)


def unseal(suite: int, size: int) -> Case:
    """Remove header protection and open a packet; it is copied first."""
    return lambda count: protection.bench_open(suite, size, count)


def initial_keys() -> Case:
    """Make both Initial keys, as a server does for each new client."""
    return protection.bench_initial


def parse_header() -> Case:
    """Parse a short header."""
    datagram = packet.build(5, bytes(8), pn=7, pn_size=2, payload=bytes(1100))[1]
    return lambda count: packet.bench_parse(datagram, count)


def parse_frames(size: int) -> Case:
    """Parse an ACK of two ranges and a STREAM frame with `size` bytes."""
    payload = frames.write(
        {
            "type": 2,
            "delay": 25,
            "ranges": [(30, 400), (10, 20)],
            "ecn": (0, 0, 0),
        }
    )[1] + frames.write(
        {
            "type": 8,
            "stream_id": 4,
            "offset": 100_000,
            "data": bytes(size),
            "fin": True,
        }
    )[1]  # fmt: skip
    return lambda count: frames.bench_parse(payload, count)


def build(size: int) -> Case:
    """Write the packet of `parse_frames`, the copy of its data included."""
    return lambda count: bench.build_packets(count, size)


# --- Exchanges ----------------------------------------------------------------------


def exchange(size: int) -> Case:
    """Send `size` bytes on a new stream and get them back, both ends in this thread."""
    ends = Ends()
    near, _ = ends.connect()
    ends.wait()
    body = bytes(size)
    # The windows of both ends and the search for the MTU have settled then.
    bench.run_exchanges(near, ends.far, body, 200)

    def run(count: int) -> None:
        done, _ = bench.run_exchanges(near, ends.far, body, count)
        if done != count:
            raise RuntimeError(f"{done} of {count} exchanges were done")

    return run


# --- The handshake ------------------------------------------------------------------


class Login:
    """The login's computations of both ends, as client and server do them."""

    def __init__(self) -> None:
        self.validator = Sr25519Signer.from_seed(bytes(31) + b"\1")
        self.miner = Sr25519Signer.from_seed(bytes(31) + b"\2")

    def request(self, certificate: bytes) -> bytes:
        """Return the client's frame."""
        self.login = ClientLogin(
            self.validator.ss58_address,
            self.miner.ss58_address,
            certificate_fingerprint(certificate),
            int(time.time()),
            secrets.token_hex(16),
        )
        return self.login.request(self.validator.sign(self.login.message)).to_frame()

    def answer(self, frame: bytes, fingerprint: str) -> bytes:
        """Return the server's frame."""
        now = time.time()
        request = messages.HandshakeRequest.from_payload(frame[HEADER_SIZE:])
        verify_request(request, fingerprint=fingerprint, now=now, max_age=300)
        login = accept(
            request,
            miner_hotkey=self.miner.ss58_address,
            fingerprint=fingerprint,
            now=now,
        )
        return login.response(self.miner.sign(login.message)).to_frame()

    def check(self, frame: bytes) -> None:
        """Check what the server answered."""
        self.login.check(messages.HandshakeResponse.from_payload(frame[HEADER_SIZE:]))


def handshake(with_login: bool) -> Case:
    """Connect, log in over a stream if asked to, and close; both ends."""
    ends = Ends()
    login = Login()
    fingerprint = certificate_fingerprint(IDENTITY.der)

    def run(count: int) -> None:
        for _ in range(count):
            near, far = ends.connect()
            if with_login:
                stream = near.open_stream()
                near.send(stream, login.request(near.certificate), fin=True)
                ends.settle()
                far.send(stream, login.answer(far.read(stream), fingerprint), fin=True)
                far.release(stream)
                ends.settle()
                login.check(near.read(stream))
                near.release(stream)
            ends.close(near)

    return run


def tls() -> Case:
    """Run the TLS handshake of both ends alone, its Python included."""
    parameters = bytes.fromhex("0f00")
    server_parameters = bytes.fromhex("0f000000")

    def run(count: int) -> None:
        for _ in range(count):
            client = Tls(CONFIG, True, None, parameters)
            server = Tls(CONFIG, False, IDENTITY, server_parameters)
            waiting = [(server, *each) for each in client.start().data]
            while waiting:
                end, level, data = waiting.pop(0)
                output = end.receive(level, data)
                if output.error is not None:
                    raise output.error
                other = client if end is server else server
                waiting += [(other, *each) for each in output.data]
            if not client.certificate:
                raise RuntimeError("the handshake was not completed")

    return run


def login_alone() -> Case:
    """Run the login of both ends without a connection: two signatures, two checks."""
    login = Login()
    fingerprint = certificate_fingerprint(IDENTITY.der)

    def run(count: int) -> None:
        for _ in range(count):
            login.check(login.answer(login.request(IDENTITY.der), fingerprint))

    return run


# --- Idle connections ---------------------------------------------------------------


def idle(connections: int) -> Case:
    """Ask an endpoint with idle connections for its timers, none of them due."""
    ends = Ends()
    for _ in range(connections):
        ends.connect()
    ends.wait()

    def run(count: int) -> None:
        for _ in range(count):
            ends.far.next_timeout()
            ends.far.handle_timeout(ends.now)

    return run


def keep_alive(connections: int) -> Case:
    """Keep an idle connection alive: a PING and its acknowledgement, both ends."""
    ends = Ends()
    for _ in range(connections):
        ends.connect()
    ends.wait()

    def run(count: int) -> None:
        # All send one in each interval.
        for _ in range(count // connections):
            ends.wait(CONFIG.keep_alive)

    return run


# --- Messages -----------------------------------------------------------------------

REQUEST = {
    "prompt": "What is the airspeed velocity of an unladen swallow? " * 4,
    "model": "text-1",
    "temperature": 0.7,
    "max_tokens": 256,
    "stop": ["\n\n", "User:"],
    "seed": 1234567890,
    "stream": False,
    "scores": [0.1, 0.25, 0.5, 0.75],
    "image": bytes(512),
}


def encode() -> Case:
    """Write a request of about 1 KiB as a frame."""

    def run(count: int) -> None:
        for _ in range(count):
            messages.encode_synapse_packet("Ask", REQUEST, 1_700_000_000)

    return run


def decode() -> Case:
    """Read that request, its data too."""
    frame = messages.encode_synapse_packet("Ask", REQUEST, 1_700_000_000)
    payload = frame[HEADER_SIZE:]

    def run(count: int) -> None:
        for _ in range(count):
            _ = messages.SynapsePacket.from_payload(payload).data

    return run


# Name, maker, and how often it is done between two readings of a counter.
CASES: dict[str, tuple[Callable[[], Case], int]] = {
    "seal 64 B": (lambda: seal(AES_128, 64), 1000),
    "seal 1150 B": (lambda: seal(AES_128, 1150), 1000),
    "seal 1150 B, ChaCha20": (lambda: seal(CHACHA20, 1150), 1000),
    "open 64 B": (lambda: unseal(AES_128, 64), 1000),
    "open 1150 B": (lambda: unseal(AES_128, 1150), 1000),
    "open 1150 B, ChaCha20": (lambda: unseal(CHACHA20, 1150), 1000),
    "Initial keys": (initial_keys, 20),
    "parse a short header": (parse_header, 1000),
    "parse ACK and STREAM": (lambda: parse_frames(1100), 1000),
    "build ACK and STREAM": (lambda: build(1100), 1000),
    "exchange 1 KiB": (lambda: exchange(1024), 500),
    "exchange 1 MiB": (lambda: exchange(MIB), 4),
    "handshake": (lambda: handshake(False), 20),
    "handshake with login": (lambda: handshake(True), 20),
    "of it TLS": (tls, 20),
    "of it the login": (login_alone, 20),
    "timers, 100 idle": (lambda: idle(100), 200),
    "keep-alive": (lambda: keep_alive(20), 400),
    "encode a request": (encode, 200),
    "decode a request": (decode, 200),
}
