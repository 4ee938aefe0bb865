"""aioquic as the simulator's ends, client and server; `ours.py` has our engine's."""

import datetime
import os
from collections.abc import Callable
from functools import cache

from aioquic.asyncio.server import _encode_invalid_token_close
from aioquic.buffer import Buffer
from aioquic.quic import events as aioquic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from tests.sim.link import SERVER_ADDRESS, Address
from tests.sim.pair import Closed, End, Event

ALPN = "btlightning"


@cache
def certificate() -> tuple[x509.Certificate, Ed25519PrivateKey]:
    """Make a self-signed certificate; Ed25519, whose signatures have one length.

    With ECDSA the size of the server's flight, and so the run, would vary by a byte.
    """
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sim")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC))
        .sign(key, None)
    )
    return made, key


def configuration(*, is_client: bool, **settings: object) -> QuicConfiguration:
    """Make aioquic's configuration as this package would."""
    made = QuicConfiguration(
        is_client=is_client, alpn_protocols=[ALPN], verify_mode=0, **settings
    )
    if not is_client:
        made.certificate, made.private_key = certificate()
    return made


class _Conversation:
    """One aioquic connection, with what its application has not taken yet."""

    def __init__(self, connection: QuicConnection):
        self.connection = connection
        self.connected = False
        self.closed: Closed | None = None
        self.events: list[Event] = []
        self._received: dict[int, bytearray] = {}
        self._ended: set[int] = set()
        self._stopped: set[int] = set()
        self._closed_here = False

    def collect(self) -> list[aioquic_events.QuicEvent]:
        """Translate aioquic's events; return those about connection ids."""
        others = []
        while (event := self.connection.next_event()) is not None:
            translate = _TRANSLATIONS.get(type(event))
            if translate is None:
                others.append(event)
            else:
                translate(self, event)
        return others

    def open(self, unidirectional: bool) -> int:
        stream = self.connection.get_next_available_stream_id(unidirectional)
        # The id is only taken by the first write.
        self.connection.send_stream_data(stream, b"")
        self._received[stream] = bytearray()
        return stream

    def write(self, stream: int, data: bytes, fin: bool) -> int:
        self.connection.send_stream_data(stream, data, fin)
        return len(data)

    def read(self, stream: int) -> tuple[bytes, bool]:
        waiting = self._received.setdefault(stream, bytearray())
        data = bytes(waiting)
        waiting.clear()
        return data, stream in self._ended

    def stop(self, stream: int, code: int) -> None:
        self._stopped.add(stream)
        self.connection.stop_stream(stream, code)

    def close(self, code: int, reason: str) -> None:
        self.connection.close(error_code=code, reason_phrase=reason)

    def note_sending(self) -> None:
        """Remember whether a close that is about to go out is our own."""
        self._closed_here = self._closed_here or self.connection._close_pending

    def _on_handshake(self, event: aioquic_events.HandshakeCompleted) -> None:
        self.connected = True
        self.events.append(Event("connected"))

    def _on_data(self, event: aioquic_events.StreamDataReceived) -> None:
        stream = event.stream_id
        if stream not in self._received:
            self._received[stream] = bytearray()
            self.events.append(Event("opened", stream))
        if stream in self._stopped:
            return
        self._received[stream] += event.data
        if event.end_stream:
            self._ended.add(stream)
        self.events.append(Event("readable", stream))

    def _on_reset(self, event: aioquic_events.StreamReset) -> None:
        if event.stream_id not in self._received:
            self._received[event.stream_id] = bytearray()
            self.events.append(Event("opened", event.stream_id))
        self.events.append(Event("reset", event.stream_id, event.error_code))

    def _on_stop(self, event: aioquic_events.StopSendingReceived) -> None:
        self.events.append(Event("stopped", event.stream_id, event.error_code))

    def _on_end(self, event: aioquic_events.ConnectionTerminated) -> None:
        timed_out = event.reason_phrase == "Idle timeout"
        self.closed = Closed(
            "local" if self._closed_here or timed_out else "remote",
            event.error_code,
            event.frame_type is None,
            event.reason_phrase,
            timed_out,
        )
        self.events.append(Event("closed"))


_TRANSLATIONS: dict[type, Callable] = {
    aioquic_events.HandshakeCompleted: _Conversation._on_handshake,
    aioquic_events.StreamDataReceived: _Conversation._on_data,
    aioquic_events.StreamReset: _Conversation._on_reset,
    aioquic_events.StopSendingReceived: _Conversation._on_stop,
    aioquic_events.ConnectionTerminated: _Conversation._on_end,
}


class _AioquicEnd(End):
    """The application's verbs, on the conversation that counts."""

    active: _Conversation

    def open(self, *, unidirectional: bool = False) -> int | None:
        self.touched = True
        return self.active.open(unidirectional)

    def write(self, stream: int, data: bytes, fin: bool = False) -> int:
        self.touched = True
        return self.active.write(stream, data, fin)

    def read(self, stream: int) -> tuple[bytes, bool]:
        return self.active.read(stream)

    def reset(self, stream: int, code: int) -> None:
        self.touched = True
        self.active.connection.reset_stream(stream, code)

    def stop(self, stream: int, code: int) -> None:
        self.touched = True
        self.active.stop(stream, code)

    def close(self, code: int, reason: str = "") -> None:
        self.touched = True
        self.active.close(code, reason)


class AioquicClient(_AioquicEnd):
    """aioquic's connection as a client, which dials at once."""

    def __init__(self, server: Address = SERVER_ADDRESS, **settings: object):
        super().__init__()
        connection = QuicConnection(
            configuration=configuration(is_client=True, **settings)
        )
        self.active = _Conversation(connection)
        connection.connect(server, 0.0)
        self.touched = True

    def receive(self, data: bytes, address: Address, now: float, ecn: int) -> None:
        self.active.connection.receive_datagram(data, address, now)
        self._collect()

    def datagrams_to_send(self, now: float) -> list[tuple]:
        self.active.note_sending()
        datagrams = self.active.connection.datagrams_to_send(now)
        self._collect()
        return datagrams

    def next_timeout(self) -> float | None:
        return self.active.connection.get_timer()

    def handle_timeout(self, now: float) -> None:
        self.active.connection.handle_timer(now)
        self._collect()

    def events(self) -> list[Event]:
        events, self.active.events = self.active.events, []
        return events

    def _collect(self) -> None:
        self.active.collect()
        self.connected = self.active.connected
        self.closed = self.active.closed


class AioquicServer(_AioquicEnd):
    """aioquic as a server: connections made from first Initials, Retry on request.

    The application's verbs act on the first connection that completed a handshake;
    others come from damaged Initials and die of their idle timeout.
    """

    def __init__(self, *, retry: bool = False, **settings: object):
        super().__init__()
        self._configuration = configuration(is_client=False, **settings)
        self._retry = QuicRetryTokenHandler() if retry else None
        self._by_cid: dict[bytes, _Conversation] = {}
        self._conversations: list[_Conversation] = []
        self._replies: list[tuple[bytes, Address]] = []

    def receive(self, data: bytes, address: Address, now: float, ecn: int) -> None:
        try:
            header = pull_quic_header(
                Buffer(data=data),
                host_cid_length=self._configuration.connection_id_length,
            )
        except ValueError:
            return
        conversation = self._by_cid.get(header.destination_cid)
        if conversation is None:
            conversation = self._meet(header, len(data), address, now)
        if conversation is not None:
            conversation.connection.receive_datagram(data, address, now)
            self._collect(conversation)

    def datagrams_to_send(self, now: float) -> list[tuple]:
        datagrams, self._replies = self._replies, []
        for conversation in list(self._conversations):
            conversation.note_sending()
            datagrams += conversation.connection.datagrams_to_send(now)
            self._collect(conversation)
        return datagrams

    def next_timeout(self) -> float | None:
        times = [each.connection.get_timer() for each in self._conversations]
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        for conversation in list(self._conversations):
            timer = conversation.connection.get_timer()
            if timer is not None and timer <= now:
                conversation.connection.handle_timer(now)
                self._collect(conversation)

    def events(self) -> list[Event]:
        if not self.connected:
            return []
        events, self.active.events = self.active.events, []
        return events

    def _meet(
        self, header: object, size: int, address: Address, now: float
    ) -> _Conversation | None:
        """Answer a datagram that belongs to no connection, or make one."""
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version is not None and (
            header.version not in self._configuration.supported_versions
        ):
            if size >= 1200:
                self._replies.append(
                    (
                        encode_quic_version_negotiation(
                            source_cid=header.destination_cid,
                            destination_cid=header.source_cid,
                            supported_versions=self._configuration.supported_versions,
                        ),
                        address,
                    )
                )
            return None
        if header.packet_type != QuicPacketType.INITIAL or size < 1200:
            return None
        original, retried = header.destination_cid, None
        if self._retry is not None:
            if not header.token:
                self._send_retry(header, address, now)
                return None
            try:
                original = self._retry.validate_token(
                    address=address,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=now,
                )
            except ValueError:
                close = _encode_invalid_token_close(
                    header.version, header.destination_cid, header.source_cid
                )
                self._replies.append((close, address))
                return None
            retried = header.destination_cid
        connection = QuicConnection(
            configuration=self._configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
        )
        conversation = _Conversation(connection)
        self._conversations.append(conversation)
        self._by_cid[header.destination_cid] = conversation
        self._by_cid[connection.host_cid] = conversation
        return conversation

    def _send_retry(self, header: object, address: Address, now: float) -> None:
        cid = os.urandom(8)
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=cid,
            now=now,
        )
        packet = encode_quic_retry(
            version=header.version,
            source_cid=cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self._replies.append((packet, address))

    def _collect(self, conversation: _Conversation) -> None:
        for event in conversation.collect():
            if isinstance(event, aioquic_events.ConnectionIdIssued):
                self._by_cid[event.connection_id] = conversation
            elif isinstance(event, aioquic_events.ConnectionIdRetired):
                self._by_cid.pop(event.connection_id, None)
        if conversation.connected and not self.connected:
            self.active = conversation
            self.connected = True
        if self.connected and conversation is self.active:
            self.closed = conversation.closed
        if conversation.closed is not None and conversation in self._conversations:
            self._conversations.remove(conversation)
            self._by_cid = {
                cid: each
                for cid, each in self._by_cid.items()
                if each is not conversation
            }
