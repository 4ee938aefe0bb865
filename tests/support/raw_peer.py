"""Small raw peers on stock aioquic: they say whatever bytes a test tells them to."""

import asyncio
import contextlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.serialization import Encoding

from lightning._core.io.transport import Identity
from lightning._core.wire.messages import HandshakeRequest, HandshakeResponse
from lightning.handshake import ClientLogin, accept, certificate_fingerprint
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR

BOUND = 10
NONE_EXPECTED = 0.05


def frame(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Make a frame, perhaps with a length that is a lie."""
    size = len(payload) if length is None else length
    return bytes([kind]) + size.to_bytes(4, "big") + payload


@dataclass
class Stream:
    """What came on one stream."""

    id: int
    data: bytes = b""
    ended: bool = False
    reset: int | None = None
    stopped: int | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool]) -> "Stream":
        """Wait until a condition on this stream holds."""
        async with asyncio.timeout(BOUND):
            while not condition():
                self.changed.clear()
                await self.changed.wait()
        return self

    async def end(self) -> "Stream":
        """Wait for the FIN or the reset of what the other end sends."""
        return await self.until(lambda: self.ended or self.reset is not None)


class RawConnection(QuicConnectionProtocol):
    """One connection, and all that came on it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.streams: dict[int, Stream] = {}
        self.terminated: events.ConnectionTerminated | None = None
        self.on_data: Callable[[RawConnection, Stream], object] | None = None

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.terminated = event
        stream_id = getattr(event, "stream_id", None)
        if stream_id is None:
            return
        stream = self.stream(stream_id)
        match event:
            case events.StreamDataReceived():
                stream.data += event.data
                stream.ended = event.end_stream
                if self.on_data is not None:
                    self.on_data(self, stream)
            case events.StreamReset():
                stream.reset = event.error_code
            case events.StopSendingReceived():
                stream.stopped = event.error_code
        stream.changed.set()

    def stream(self, stream_id: int) -> Stream:
        return self.streams.setdefault(stream_id, Stream(stream_id))

    @property
    def certificate(self) -> bytes:
        return self._quic.tls._peer_certificate.public_bytes(Encoding.DER)

    def send(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        self._quic.send_stream_data(stream_id, data, fin)
        self.transmit()

    def start(self, data: bytes, fin: bool = True) -> Stream:
        """Send bytes on a new stream."""
        stream = self.stream(self._quic.get_next_available_stream_id())
        self.send(stream.id, data, fin)
        return stream

    async def ask(self, data: bytes, fin: bool = True) -> Stream:
        """Send bytes on a new stream and wait for the end of the answer."""
        return await self.start(data, fin).end()

    def reset(self, stream_id: int, code: int) -> None:
        self._quic.reset_stream(stream_id, code)
        self.transmit()

    def stop(self, stream_id: int, code: int) -> None:
        self._quic.stop_stream(stream_id, code)
        self.transmit()

    def close_with(self, code: int, reason: str) -> None:
        self._quic.close(error_code=code, reason_phrase=reason)
        self.transmit()

    def finish(self) -> None:
        """Close, and do not wait for the closing period."""
        self.close()
        if self._timer is not None:
            self._timer.cancel()

    async def login(self, signer: object = VALIDATOR, **changes: object) -> bytes:
        """Log in; changes are fields of the request. Returns the answer's bytes."""
        return (await self.ask(login_frame(self.certificate, signer, **changes))).data


def login_frame(
    certificate: bytes,
    signer: object = VALIDATOR,
    *,
    ahead: int = 0,
    **changes: object,
) -> bytes:
    """Make a login; `ahead` dates it, changes are made after it was signed."""
    login = ClientLogin(
        signer.ss58_address,
        MINER_HOTKEY,
        certificate_fingerprint(certificate),
        int(time.time()) + ahead,
        secrets.token_hex(16),
    )
    request = login.request(signer.sign(login.message))
    fields = {
        name: getattr(request, name)
        for name in ("validator_hotkey", "timestamp", "nonce", "signature")
    }
    return HandshakeRequest(**{**fields, **changes}).to_frame()


def is_accepted(answer: bytes) -> bool:
    """Tell whether the bytes of a login's answer accept it."""
    assert answer[0] == 2
    return HandshakeResponse.from_payload(answer[5:]).accepted


def configuration(is_client: bool = True, **settings: object) -> QuicConfiguration:
    settings.setdefault("alpn_protocols", ["btlightning"])
    settings.setdefault("idle_timeout", 30)
    quic = QuicConfiguration(is_client=is_client, **settings)
    quic.verify_mode = ssl.CERT_NONE
    return quic


@contextlib.asynccontextmanager
async def raw_client(
    port: int,
    host: str = "127.0.0.1",
    local_port: int = 0,
    local_host: str = "",
    **settings: object,
) -> AsyncIterator[RawConnection]:
    """Connect to a server; TLS is complete."""
    loop = asyncio.get_running_loop()
    connection = QuicConnection(configuration=configuration(**settings))
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: RawConnection(connection), local_addr=(local_host or host, local_port)
    )
    try:
        protocol.connect((host, port))
        await protocol.wait_connected()
        yield protocol
    finally:
        protocol.finish()
        transport.close()
        await asyncio.sleep(0)


class RawServer:
    """A server that logs everybody in, and then does what it was told.

    Args:
        answer: Called with the connection, the stream, and type and payload of the
            first frame of each request that is not a login.
    """

    def __init__(
        self, answer: Callable[[RawConnection, Stream, int, bytes], object]
    ) -> None:
        self.answer = answer
        self.identity = Identity.generate()
        # What the TLS layer shows and signs with; by default both from the identity.
        self.key = self.identity.key
        self.certificate = self.identity.certificate
        self.connections: list[RawConnection] = []
        self.logins = 0
        self.requests = 0
        # Makes the answer to a login; None for the honest one.
        self.answer_login: Callable[[RawConnection, HandshakeRequest], bytes] | None
        self.answer_login = None
        self.port = 0

    def _protocol(self, *args: object, **kwargs: object) -> RawConnection:
        connection = RawConnection(*args, **kwargs)
        connection.on_data = self._on_data
        self.connections.append(connection)
        return connection

    def _on_data(self, connection: RawConnection, stream: Stream) -> None:
        data = stream.data
        size = int.from_bytes(data[1:5], "big")
        if len(data) < 5 + size or getattr(stream, "seen", False):
            return
        stream.seen = True
        payload = data[5 : 5 + size]
        if data[0] != 1:
            self.requests += 1
            self.answer(connection, stream, data[0], payload)
            return
        self.logins += 1
        request = HandshakeRequest.from_payload(payload)
        if self.answer_login is not None:
            reply = self.answer_login(connection, request)
        else:
            reply = self.honest_login(request)
        connection.send(stream.id, reply, True)

    def honest_login(self, request: HandshakeRequest, signer: object = MINER) -> bytes:
        login = accept(
            request,
            miner_hotkey=signer.ss58_address,
            fingerprint=certificate_fingerprint(self.identity.der),
            now=time.time(),
        )
        return login.response(signer.sign(login.message)).to_frame()

    @property
    def axon(self) -> dict[str, object]:
        return {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": self.port}


@contextlib.asynccontextmanager
async def raw_server(
    answer: Callable[[RawConnection, Stream, int, bytes], object] = lambda *_: None,
    prepare: Callable[[RawServer], object] = lambda server: None,
    port: int = 0,
    **settings: object,
) -> AsyncIterator[RawServer]:
    """Run a raw server on loopback."""
    server = RawServer(answer)
    prepare(server)
    quic = configuration(is_client=False, **settings)
    quic.certificate, quic.private_key = server.certificate, server.key
    running = await serve(
        "127.0.0.1", port, configuration=quic, create_protocol=server._protocol
    )
    server.port = running._transport.get_extra_info("sockname")[1]
    try:
        yield server
    finally:
        for connection in server.connections:
            connection.finish()
        running.close()
        await asyncio.sleep(0)
