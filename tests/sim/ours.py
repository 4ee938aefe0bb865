"""Our engine as the simulator's ends."""

import random

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Connection, Endpoint
from lightning.errors import ConnectionClosed
from tests.sim.ends import certificate
from tests.sim.link import SERVER_ADDRESS, Address
from tests.sim.pair import Closed, End, Event

_CONGESTION = {"reno": "newreno", "cubic": "cubic"}


def configuration(**settings: object) -> EngineConfig:
    """Translate the settings that the tests know by aioquic's names."""
    settings.setdefault("max_uni_streams", 128)
    settings.setdefault("handshake_timeout", settings.get("idle_timeout", 60.0))
    settings.setdefault("idle_timeout", 60.0)
    algorithm = settings.pop("congestion_control_algorithm", None)
    if algorithm is not None:
        settings["congestion"] = _CONGESTION[algorithm]
    return EngineConfig(**settings)


class _OurEnd(End):
    """One endpoint and the connection on it that counts."""

    endpoint: Endpoint
    active: Connection | None = None

    def __init__(self) -> None:
        super().__init__()
        self._events: list[Event] = []
        self._reading: set[int] = set()
        self._writing: set[int] = set()

    def receive(self, data: bytes, address: Address, now: float, ecn: int) -> None:
        self.endpoint.receive(data, address, now, ecn)
        self._collect()

    def datagrams_to_send(self, now: float) -> list[tuple]:
        return [
            (data[start : start + segment], address, ecn)
            for data, address, ecn, segment in self.endpoint.transmit(now)
            for start in range(0, len(data), segment)
        ]

    def next_timeout(self) -> float | None:
        return self.endpoint.next_timeout()

    def handle_timeout(self, now: float) -> None:
        self.endpoint.handle_timeout(now)
        self._collect()

    def open(self, *, unidirectional: bool = False) -> int | None:
        try:
            stream = self.active.open_stream(unidirectional)
        except ConnectionClosed:
            return None
        if stream < 0:
            return None
        self._writing.add(stream)
        if not unidirectional:
            self._reading.add(stream)
        return stream

    def write(self, stream: int, data: bytes, fin: bool = False) -> int:
        self.touched = True
        if stream not in self._writing:
            return len(data)
        try:
            if not self.active.send(stream, data, fin):
                return 0
        except ConnectionClosed:
            return len(data)
        if fin:
            self._finish(stream, self._writing)
        return len(data)

    def read(self, stream: int) -> tuple[bytes, bool]:
        self.touched = True
        data = self.active.read(stream)
        end = self.active.at_end(stream)
        if end:
            self._finish(stream, self._reading)
        return data, end

    def reset(self, stream: int, code: int) -> None:
        self.touched = True
        if stream in self._writing and self.closed is None:
            self.active.reset(stream, code)
            self._finish(stream, self._writing)

    def stop(self, stream: int, code: int) -> None:
        self.touched = True
        if stream in self._reading and self.closed is None:
            self.active.stop(stream, code)
            self._finish(stream, self._reading)

    def close(self, code: int, reason: str = "") -> None:
        self.touched = True
        self.active.close(reason, code)
        self._collect()

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _finish(self, stream: int, of: set[int]) -> None:
        of.discard(stream)
        if stream not in self._reading and stream not in self._writing:
            self.active.release(stream)

    def _collect(self) -> None:
        while (event := self.endpoint.next_event()) is not None:
            if event.kind == "connected" and self.active is None:
                self.active = event.connection
            if event.connection is not self.active:
                continue
            if event.kind == "connected":
                self.connected = True
                self._events.append(Event("connected"))
            elif event.kind == "closed":
                self._note_end()
            elif event.kind in ("opened", "readable", "reset", "stopped"):
                self._on_stream(event.kind, event.stream_id, event.code)

    def _on_stream(self, kind: str, stream: int, code: int) -> None:
        self._events.append(Event(kind, stream, code))
        if kind == "opened":
            self._reading.add(stream)
            if not stream & 2:
                self._writing.add(stream)
        elif kind == "reset":
            self._finish(stream, self._reading)
        elif kind == "stopped":
            self._finish(stream, self._writing)

    def _note_end(self) -> None:
        end = self.active.end
        self.closed = Closed(
            "remote" if end.initiator == "peer" else "local",
            end.code,
            end.application,
            end.reason,
            end.timed_out or end.initiator == "path",
        )
        self._events.append(Event("closed"))


class OurClient(_OurEnd):
    """Our endpoint as a client, which dials at once."""

    def __init__(self, server: Address = SERVER_ADDRESS, **settings: object):
        super().__init__()
        self.endpoint = Endpoint(
            configuration(**settings),
            is_client=True,
            random=random.Random("client").randbytes,
        )
        self.active = self.endpoint.connect(server, 0.0)
        self.touched = True


class OurServer(_OurEnd):
    """Our endpoint as a server."""

    def __init__(self, *, retry: bool = False, **settings: object):
        super().__init__()
        self.endpoint = Endpoint(
            configuration(retry=retry, **settings),
            is_client=False,
            identity=Identity(*certificate()),
            random=random.Random("server").randbytes,
        )
