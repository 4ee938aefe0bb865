"""Our engine on a real socket, and the peer's QUIC stack on the other end."""

import secrets
import socket
import threading
import time

import pytest

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Connection, Endpoint
from lightning._core.wire.framing import FrameReader
from lightning._core.wire.messages import decode_message, encode_synapse_packet
from lightning.handshake import ClientLogin, certificate_fingerprint
from tests.support.identities import MINER_HOTKEY, VALIDATOR, VALIDATOR_HOTKEY


class Driver:
    """An endpoint on a blocking socket; `step` moves it along."""

    def __init__(self, end: Endpoint):
        self.end = end
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.01)
        self.port = self.socket.getsockname()[1]
        self.events = []

    def step(self) -> None:
        for data, address in self.end.datagrams_to_send(time.monotonic()):
            self.socket.sendto(data, address)
        try:
            data, address = self.socket.recvfrom(65536)
        except TimeoutError:
            pass
        else:
            self.end.receive(data, address, time.monotonic())
        timeout = self.end.next_timeout()
        if timeout is not None and timeout <= time.monotonic():
            self.end.handle_timeout(time.monotonic())
        while (event := self.end.next_event()) is not None:
            self.events.append(event)

    def until(self, condition, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "nothing more comes"
            self.step()

    def ask(self, connection: Connection, frame: bytes):
        """Send a frame on a stream of its own; return the answer."""
        stream = connection.open_stream()
        connection.send(stream, frame, fin=True)
        reader = FrameReader()

        def answered() -> bool:
            data = connection.read(stream)
            if data:
                reader.feed(data)
            return reader.ready

        self.until(answered)
        connection.stop(stream)
        connection.release(stream)
        return decode_message(*reader.take())

    def close(self) -> None:
        self.step()
        self.socket.close()


@pytest.fixture
def driver():
    made = []

    def make(end: Endpoint) -> Driver:
        made.append(Driver(end))
        return made[-1]

    yield make
    for each in made:
        each.close()


def log_in(driver: Driver, connection: Connection) -> None:
    login = ClientLogin(
        validator_hotkey=VALIDATOR_HOTKEY,
        miner_hotkey=MINER_HOTKEY,
        fingerprint=certificate_fingerprint(connection.certificate),
        timestamp=int(time.time()),
        nonce=secrets.token_hex(16),
    )
    request = login.request(VALIDATOR.sign(login.message))
    login.check(driver.ask(connection, request.to_frame()))


def packet(data: dict) -> bytes:
    return encode_synapse_packet("echo", data, int(time.time()))


def test_our_client_and_its_server(peer_server, driver):
    """Retry, handshake, login, small and large echoes, token, close."""
    axon = peer_server()
    mine = driver(Endpoint(EngineConfig(), is_client=True))
    where = ("127.0.0.1", axon["port"])
    connection = mine.end.connect(where, time.monotonic())
    mine.until(lambda: connection.is_confirmed)
    log_in(mine, connection)
    for size in (0, 1000, 2_000_000):
        body = bytes(range(256)) * (size // 256)
        answer = mine.ask(connection, packet({"b": body}))
        assert answer.success
        assert answer.data["b"] == body
    for _ in range(300):
        assert mine.ask(connection, packet({"n": 1})).success
    assert connection.update_keys()
    for _ in range(5):
        assert mine.ask(connection, packet({"n": 2})).success
    # The peer updates its keys by itself now and then.
    assert connection.stats()["key_updates"] >= 1
    assert connection.stats()["mtu"] == 1452
    # A token of before saves the Retry.
    token = connection.token
    assert token
    again = mine.end.connect(where, time.monotonic(), token=token)
    mine.until(lambda: again.is_confirmed)
    assert again.stats()["datagrams_received"] > 0
    connection.close("done", 0)
    again.close("done", 0)
    mine.step()


def test_its_client_and_our_server(peer_client, driver):
    """Its login arrives on a stream, through our Retry, and our answer is taken."""
    identity = Identity.generate()
    mine = driver(
        Endpoint(EngineConfig(retry=True), is_client=False, identity=identity)
    )
    axon = {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": mine.port}
    failures = []

    def dial() -> None:
        try:
            peer_client(axon)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=dial)
    thread.start()
    mine.until(lambda: any(event.kind == "readable" for event in mine.events))
    event = next(event for event in mine.events if event.kind == "readable")
    reader = FrameReader()

    def arrived() -> bool:
        # It writes header and payload one after the other.
        data = event.connection.read(event.stream_id)
        if data:
            reader.feed(data)
        return reader.ready

    mine.until(arrived)
    assert mine.end.stats()["retries_sent"] >= 1
    request = decode_message(*reader.take())
    assert request.validator_hotkey == VALIDATOR_HOTKEY
    assert event.connection.is_confirmed
    # That is enough: who reads a close fails its login at once.
    event.connection.close("bye", 0)
    mine.step()
    mine.until(lambda: not thread.is_alive(), 20)
    thread.join()
