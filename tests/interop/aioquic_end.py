"""Stock aioquic as the other end, on asyncio in a thread of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from cryptography import x509

from tests.interop.ours import IDENTITY, Address, body
from tests.support.waiting import until_async

if TYPE_CHECKING:
    from aioquic.tls import SessionTicket


class _Protocol(QuicConnectionProtocol):
    """A connection that echoes streams, and knows how it ended."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None):
        super().__init__(quic, self._on_stream)
        self.end: ConnectionTerminated | None = None
        self.tasks: set[asyncio.Task] = set()

    def vanish(self) -> None:
        """Do nothing any more."""
        for handle in (self._timer, self._transmit_task):
            if handle is not None:
                handle.cancel()

    def quic_event_received(self, event: object) -> None:
        super().quic_event_received(event)
        if isinstance(event, ConnectionTerminated):
            self.end = event

    def _on_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._echo(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _echo(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(1 << 20):
            writer.write(data)
        if self.end is None:
            writer.write_eof()


class _Server(QuicServer):
    """A server that hands over its connections."""

    def __init__(self, accepted: Callable[[_Protocol], object], **settings: Any):
        self.accepted = accepted
        super().__init__(create_protocol=self._create, **settings)

    def _create(self, quic: QuicConnection, stream_handler: object) -> _Protocol:
        made = _Protocol(quic)
        self.accepted(made)
        return made


class Aioquic:
    """A client and a server; every verb but `listen` gives a future."""

    name = "aioquic"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._accepted: asyncio.Queue = asyncio.Queue()
        self._transports: list[asyncio.DatagramTransport] = []
        self._protocols: list[_Protocol] = []
        self._issued: dict[bytes, SessionTicket] = {}
        self._tokens: list[bytes] = []
        self.tickets: list[SessionTicket] = []

    def _do(self, coroutine: Coroutine) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _configuration(
        self, is_client: bool, cid: int = 8, versions: tuple[int, ...] = (), **more: Any
    ) -> QuicConfiguration:
        made = QuicConfiguration(
            is_client=is_client, alpn_protocols=["btlightning"], verify_mode=0,
            connection_id_length=cid, server_name="interop", **more,
        )  # fmt: skip
        if versions:
            made.supported_versions = list(versions)
            made.original_version = versions[0]
        return made

    def listen(
        self,
        address: Address = ("127.0.0.1", 0),
        *,
        retry: bool = False,
        chain: list[x509.Certificate] | None = None,
        **how: Any,
    ) -> Address:
        configuration = self._configuration(False, **how)
        configuration.certificate = IDENTITY.certificate
        configuration.private_key = IDENTITY.key
        configuration.certificate_chain = chain or []

        async def listen() -> Address:
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: _Server(
                    self._keep,
                    configuration=configuration,
                    retry=retry,
                    session_ticket_handler=lambda ticket: self._issued.update(
                        {ticket.ticket: ticket}
                    ),
                    session_ticket_fetcher=lambda label: self._issued.pop(label, None),
                ),
                local_addr=address,
            )
            self._transports.append(transport)
            return transport.get_extra_info("sockname")

        return self._do(listen()).result(10)

    def _keep(self, protocol: _Protocol) -> None:
        self._protocols.append(protocol)
        self._accepted.put_nowait(protocol)

    def accept(self) -> Future:
        return self._do(self._accepted.get())

    def dial(self, address: Address, *, early: bool = False, **how: Any) -> Future:
        quic = QuicConnection(
            configuration=self._configuration(True, **how),
            session_ticket_handler=self.tickets.append,
            token_handler=self._tokens.append,
        )

        async def dial() -> _Protocol:
            transport, protocol = await self._loop.create_datagram_endpoint(
                lambda: _Protocol(quic), local_addr=("127.0.0.1", 0)
            )
            self._transports.append(transport)
            self._protocols.append(protocol)
            protocol.connect(address, transmit=not early)
            if early:
                reader, writer = await protocol.create_stream()
                writer.write(bytes(1000))
                writer.write_eof()
                protocol.transmit()
            await protocol.wait_connected()
            if early:
                assert await reader.read() == bytes(1000)
            return protocol

        return self._do(dial())

    def echo(self, connection: _Protocol, size: int, count: int = 1) -> Future:
        async def echo(salt: int) -> None:
            reader, writer = await connection.create_stream()
            data = body(size, salt)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data

        async def echoes() -> None:
            await asyncio.gather(*(echo(salt) for salt in range(count)))

        return self._do(echoes())

    def state(self, connection: _Protocol) -> Future:
        async def state() -> dict[str, Any]:
            quic = connection._quic
            return {
                "suite": quic.tls.key_schedule.cipher_suite,
                "resumed": quic.tls.session_resumed,
                "early": quic.tls.early_data_accepted,
                "version": quic._version,
            }

        return self._do(state())

    def token(self, connection: _Protocol) -> Future:
        async def token() -> bytes:
            await until_async(lambda: self._tokens)
            return self._tokens[-1]

        return self._do(token())

    def update(self, connection: _Protocol) -> Future:
        async def update() -> None:
            connection.request_key_update()

        return self._do(update())

    def close(self, connection: _Protocol, code: int = 0, reason: str = "") -> Future:
        async def close() -> None:
            connection.close(code, reason)

        return self._do(close())

    def ended(self, connection: _Protocol) -> Future:
        async def ended() -> dict[str, Any]:
            await connection.wait_closed()
            end = connection.end
            return {
                "kind": "application" if end.frame_type is None else "transport",
                "code": end.error_code,
                "reason": end.reason_phrase,
            }

        return self._do(ended())

    def vanish(self) -> None:
        """Stop without a word to the peers."""

        async def vanish() -> None:
            for protocol in self._protocols:
                protocol.vanish()
            for transport in self._transports:
                transport.abort()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*others, return_exceptions=True)
            # The sockets are closed by callbacks.
            await asyncio.sleep(0)

        self._do(vanish()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
