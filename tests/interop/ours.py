"""Our engine on a real socket, moved along by whoever waits for something."""

import datetime
import secrets
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Connection, Endpoint
from lightning._core.wire.framing import FrameReader
from lightning._core.wire.messages import (
    HandshakeRequest,
    decode_message,
    encode_synapse_packet,
    encode_synapse_response,
)
from lightning.errors import ConnectionClosed
from lightning.handshake import (
    ClientLogin,
    accept,
    certificate_fingerprint,
    verify_request,
)
from lightning.signer import Sr25519Signer
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    VALIDATOR,
    signer,
)

Address = tuple[str, int]

IDENTITY = Identity.generate()
# Seconds after which what is waited for is not going to happen.
PATIENCE = 30.0


def large_identity(padding: int = 13_000) -> Identity:
    """Make an identity whose certificate needs several datagrams."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "large")])
    filler = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(padding)
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC))
        .add_extension(filler, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Identity(certificate, key)


def body(size: int, salt: int) -> bytes:
    """Make bytes that tell where they belong, different for each salt."""
    pattern = bytes((i * 31 + salt) & 0xFF for i in range(251))
    return (pattern * (size // 251 + 1))[:size]


class Driver:
    """An endpoint on a socket; nothing moves but in `step`.

    Attributes:
        end: The endpoint.
        address: Where its socket is bound.
        connections: Those that the peer opened, in order.
        ecn: How many datagrams came with each of the four ECN marks.
    """

    def __init__(self, end: Endpoint, port: int = 0):
        self.end = end
        self.connections: list[Connection] = []
        self.ecn = [0, 0, 0, 0]
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", port))
        self.address: Address = self.socket.getsockname()
        self._mark = -1

    def step(self, pause: float = 0.01) -> None:
        """Send, wait for a datagram or a timer, but not long, and handle it."""
        self._send()
        timeout = self.end.next_timeout()
        if timeout is not None:
            pause = max(0.0, min(pause, timeout - time.monotonic()))
        if select.select([self.socket], [], [], pause)[0]:
            self._receive()
        timeout = self.end.next_timeout()
        if timeout is not None and timeout <= time.monotonic():
            self.end.handle_timeout(time.monotonic())
        while (event := self.end.next_event()) is not None:
            if event.kind == "connected" and not self.end.is_client:
                self.connections.append(event.connection)
            self.on_event(event)
        self._send()

    def on_event(self, event: Any) -> None:
        """Do what the application would."""

    def _send(self) -> None:
        for data, address, ecn, segment in self.end.transmit(time.monotonic()):
            if ecn != self._mark:
                self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ecn)
                self._mark = ecn
            for start in range(0, len(data), segment):
                try:
                    self.socket.sendto(data[start : start + segment], address)
                except (BlockingIOError, ConnectionRefusedError):
                    # As good as lost on the way.
                    pass

    def _receive(self) -> None:
        for _ in range(64):
            try:
                data, ancillary, _, source = self.socket.recvmsg(65536, 64)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            tos = next(
                (value[0] for _, kind, value in ancillary if kind == socket.IP_TOS), 0
            )
            self.ecn[tos & 3] += 1
            self.end.receive(data, source, time.monotonic(), tos & 3)

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Go on until the condition holds; fail if it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            self.step()

    def result(self, future: Future, seconds: float = PATIENCE) -> Any:
        """Go on until another end has done what it was asked for."""
        self.until(future.done, seconds)
        return future.result()

    def vanish(self) -> None:
        """Forget everything without a word to the peers."""
        self.socket.close()

    def close(self) -> None:
        """Send what is left, a close for example, and stop."""
        if self.socket.fileno() >= 0:
            self._send()
            self.socket.close()


class Client(Driver):
    """Our client, of a server that echoes streams."""

    def __init__(self, **settings: Any):
        settings.setdefault("handshake_timeout", PATIENCE)
        super().__init__(Endpoint(EngineConfig(**settings), is_client=True))

    def dial(
        self, address: Address, count: int = 1, token: bytes = b""
    ) -> list[Connection]:
        """Connect as often at a time, and wait until all are confirmed."""
        made = [
            self.end.connect(address, time.monotonic(), token=token)
            for _ in range(count)
        ]
        self.until(lambda: all(each.is_confirmed or each.end for each in made))
        ends = [each.end for each in made if each.end]
        assert not ends, ends
        return made

    def echo(self, connection: Connection, size: int, count: int = 1) -> None:
        """Have that many streams echo as many bytes each, all at a time."""
        waiting = {}
        left = list(range(count))

        def turn() -> bool:
            while left and (stream := connection.open_stream()) >= 0:
                waiting[stream] = _Echo(connection, stream, body(size, left.pop()))
            for stream in list(waiting):
                if waiting[stream].turn():
                    del waiting[stream]
            return not left and not waiting

        self.until(turn)


class _Echo:
    """One stream of ours, on which what was sent must come back."""

    def __init__(self, connection: Connection, stream: int, data: bytes):
        self.connection = connection
        self.stream = stream
        self.data = data
        self.sent = False
        self.back = bytearray()

    def turn(self) -> bool:
        if not self.sent:
            self.sent = self.connection.send(self.stream, self.data, fin=True)
        self.back += self.connection.read(self.stream)
        if not self.connection.at_end(self.stream):
            assert self.connection.end is None, self.connection.end
            return False
        assert bytes(self.back) == self.data
        self.connection.release(self.stream)
        return True


class Server(Driver):
    """Our server; it echoes every stream."""

    def __init__(
        self,
        *,
        port: int = 0,
        identity: Identity = IDENTITY,
        **settings: Any,
    ):
        settings.setdefault("handshake_timeout", PATIENCE)
        end = Endpoint(EngineConfig(**settings), is_client=False, identity=identity)
        # What could not be appended yet, for each stream, and whether it ends there.
        self.pending: dict[tuple[int, int], tuple[bytes, bool]] = {}
        super().__init__(end, port)

    def on_event(self, event: Any) -> None:
        if event.kind in ("readable", "writable"):
            try:
                self.answer(event.connection, event.stream_id)
            except ConnectionClosed:
                # The events of a dead connection are late.
                pass

    def answer(self, connection: Connection, stream: int) -> None:
        """Send back what came on a stream."""
        key = connection.number, stream
        data, fin = self.pending.pop(key, (b"", False))
        if not data:
            data = connection.read(stream)
            fin = connection.at_end(stream)
        while data or fin:
            if not connection.send(stream, data, fin=fin):
                self.pending[key] = data, fin
                return
            if fin:
                connection.release(stream)
                return
            data = connection.read(stream)
            fin = connection.at_end(stream)


class FramedClient(Client):
    """Our client, of a server that speaks the peer's protocol."""

    def dial(
        self, address: Address, count: int = 1, token: bytes = b""
    ) -> list[Connection]:
        made = super().dial(address, count, token)
        # A server keeps one connection of each validator.
        for number, connection in enumerate(made):
            self.log_in(connection, VALIDATOR if number == 0 else signer(number))
        return made

    def log_in(
        self, connection: Connection, validator: Sr25519Signer = VALIDATOR
    ) -> None:
        """Prove who we are, and that the server is who it is taken for."""
        login = ClientLogin(
            validator_hotkey=validator.ss58_address,
            miner_hotkey=MINER_HOTKEY,
            fingerprint=certificate_fingerprint(connection.certificate),
            timestamp=int(time.time()),
            nonce=secrets.token_hex(16),
        )
        request = login.request(validator.sign(login.message))
        login.check(self.ask(connection, [request.to_frame()])[0])

    def ask(
        self, connection: Connection, frames: list[bytes], seconds: float = PATIENCE
    ) -> list[Any]:
        """Send each frame on a stream of its own; return the answers."""
        readers: dict[int, FrameReader] = {}
        left = frames[::-1]

        def turn() -> bool:
            while left and (stream := connection.open_stream()) >= 0:
                assert connection.send(stream, left.pop(), fin=True)
                readers[stream] = FrameReader()
            for stream, reader in readers.items():
                if data := connection.read(stream):
                    reader.feed(data)
            assert connection.end is None, connection.end
            return not left and all(reader.ready for reader in readers.values())

        self.until(turn, seconds)
        for stream in readers:
            connection.stop(stream)
            connection.release(stream)
        return [decode_message(*reader.take()) for reader in readers.values()]

    def echo(self, connection: Connection, size: int, count: int = 1) -> None:
        bodies = [body(size, salt) for salt in range(count)]
        now = int(time.time())
        frames = [encode_synapse_packet("echo", {"b": each}, now) for each in bodies]
        answers = self.ask(connection, frames)
        assert all(answer.success for answer in answers)
        assert [answer.data["b"] for answer in answers] == bodies


class FramedServer(Server):
    """Our server, speaking the peer's protocol; it echoes each request's data."""

    def __init__(self, *, identity: Identity = IDENTITY, **settings: Any):
        super().__init__(identity=identity, **settings)
        self.readers: dict[tuple[int, int], FrameReader] = {}
        self.fingerprint = certificate_fingerprint(identity.der)

    def answer(self, connection: Connection, stream: int) -> None:
        key = connection.number, stream
        if key in self.pending:
            frame = self.pending.pop(key)[0]
        else:
            reader = self.readers.setdefault(key, FrameReader())
            if data := connection.read(stream):
                reader.feed(data)
            if not reader.ready:
                return
            del self.readers[key]
            frame = self.reply(decode_message(*reader.take()))
        if not connection.send(stream, frame, fin=True):
            self.pending[key] = frame, True
            return
        connection.release(stream)

    def reply(self, message: Any) -> bytes:
        now = time.time()
        if isinstance(message, HandshakeRequest):
            verify_request(message, fingerprint=self.fingerprint, now=now, max_age=60)
            login = accept(
                message,
                miner_hotkey=MINER_HOTKEY,
                fingerprint=self.fingerprint,
                now=now,
            )
            return login.response(MINER.sign(login.message)).to_frame()
        return encode_synapse_response(True, message.data, int(now))
