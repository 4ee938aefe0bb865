"""Prometheus metrics of clients and servers; needs the extra ``metrics``.

A client or server counts anyway; what is counted is read when Prometheus asks, so that
being watched costs a request nothing::

    from prometheus_client import start_http_server
    from lightning.metrics import watch

    start_http_server(9100)
    watch(server)

``docs/metrics.md`` has every metric. Labels are bounded: a name that the program gives,
and what it registered itself. Hotkeys and addresses are labels only if ``per_peer`` asks
for them, and then there are as many as connections.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from lightning.client import AsyncLightning
from lightning.logs import Throttled
from lightning.server import AsyncLightningServer

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ImportError as error:
    raise ImportError(
        "lightning.metrics needs the package prometheus-client: "
        "pip install 'bittensor-lightning[metrics]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from lightning._core.io.transport import Connection, Endpoint
    from lightning.blocking import Lightning, LightningServer

__all__ = ["METRICS", "Watch", "watch"]

log = Throttled(logging.getLogger("lightning.metrics"))


class Description(NamedTuple):
    """What a metric is."""

    kind: str
    labels: tuple[str, ...]
    help: str


_PEER = ("address", "hotkeys")

_SHARED = {
    "connections": Description("gauge", ("state",), "Connections, by state."),
    "requests_in_flight": Description("gauge", (), "Exchanges begun and not ended."),
    "exchanges": Description("counter", (), "Requests and logins begun."),
    "exchange_failures": Description(
        "counter", (), "Requests and logins that ended without an answer."
    ),
    "sent_datagrams": Description("counter", (), "Datagrams sent."),
    "received_datagrams": Description("counter", (), "Datagrams received."),
    "unsent_datagrams": Description(
        "counter", (), "Datagrams that the system did not take; they count as lost."
    ),
    "sent_bytes": Description("counter", (), "Bytes of datagrams sent."),
    "received_bytes": Description("counter", (), "Bytes of datagrams received."),
    "sent_packets": Description("counter", (), "Packets sent."),
    "lost_packets": Description("counter", (), "Packets declared lost."),
    "socket_receive_buffer_bytes": Description(
        "gauge", (), "What the system grants sockets to receive, the smallest."
    ),
    "peer_rtt_seconds": Description("gauge", _PEER, "Smoothed round trip; per_peer."),
    "peer_requests_in_flight": Description(
        "gauge", _PEER, "Exchanges begun and not ended; per_peer."
    ),
    "peer_exchanges": Description(
        "counter", _PEER, "Exchanges begun on this connection; per_peer."
    ),
    "peer_lost_packets": Description(
        "counter", _PEER, "Packets lost on this connection; per_peer."
    ),
}

_CLIENT = {
    "answer_seconds": Description(
        "histogram", (), "Time from sending a request or login to its answer."
    ),
}

_SERVER = {
    "requests": Description(
        "counter", ("synapse", "outcome"), "Requests ended, by what became of them."
    ),
    "handler_seconds": Description(
        "counter", ("synapse",), "Time in handlers; inline ones are not timed."
    ),
    "logins": Description(
        "counter",
        ("outcome",),
        "Logins: accepted, or the class of the exception that refused them.",
    ),
    "requests_running": Description("gauge", (), "Requests being worked on."),
    "requests_queued": Description("gauge", (), "Requests that wait for their turn."),
    "validators": Description("gauge", (), "Hotkeys logged in."),
    "permits": Description("gauge", (), "Hotkeys that hold a permit."),
    "nonces": Description("gauge", (), "Used nonces that are remembered."),
    "ignored_datagrams": Description(
        "counter", (), "Datagrams of no connection that were not answered."
    ),
    "retries": Description("counter", (), "Addresses asked to prove themselves."),
    "refused_connections": Description(
        "counter", ("reason",), "Connections refused before any state was made."
    ),
}

METRICS: dict[str, Description] = {
    f"lightning_{side}_{name}": description
    for side, own in (("client", _CLIENT), ("server", _SERVER))
    for name, description in {**_SHARED, **own}.items()
}
"""Each metric by its name, without the ``_total`` that counters end in."""

# Powers of two of a microsecond that become buckets: 64 microseconds to 34 seconds.
_BUCKETS = range(6, 26)

Sample = tuple[str, tuple[str, ...], float]


class _Sum:
    """Adds up the counters of what comes and goes, so that the sums never fall."""

    def __init__(self) -> None:
        self._gone: Counter[str] = Counter()
        self._seen: dict[weakref.ref[Any], dict[str, int]] = {}

    def update(self, sources: Iterable[tuple[object, Mapping[str, int]]]) -> None:
        """Take what each of those that are there has counted so far."""
        present = set()
        for source, counters in sources:
            key = weakref.ref(source)
            present.add(key)
            last = self._seen.setdefault(key, {})
            for name, value in counters.items():
                # A number read while it moves from one place to another may be off.
                last[name] = max(last.get(name, 0), value)
        for key in self._seen.keys() - present:
            self._gone.update(self._seen.pop(key))

    def __getitem__(self, name: str) -> int:
        return self._gone[name] + sum(c.get(name, 0) for c in self._seen.values())


@dataclass(eq=False)
class Watch:
    """One client or server that is watched, until `close`.

    It does not keep what it watches in memory.

    Attributes:
        name: The value of the label ``name``.
    """

    name: str
    _face: weakref.ref[AsyncLightning | AsyncLightningServer]
    _side: str
    _per_peer: bool
    _collector: _Collector
    _endpoints: _Sum = field(default_factory=_Sum)

    def close(self) -> None:
        """Stop watching; fine if it has been closed."""
        self._collector.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_gone(self) -> bool:
        """Whether what it watches does not exist any more."""
        return self._face() is None

    def samples(self) -> Iterator[Sample]:
        """Read everything now; any thread may, one at a time."""
        face = self._face()
        if face is None:
            return
        endpoints = [e for e in _endpoints_of(face) if not e.is_inherited]
        for name, labels, value in self._transport(endpoints):
            yield f"lightning_{self._side}_{name}", labels, value
        if isinstance(face, AsyncLightningServer):
            for name, labels, value in self._server(face):
                yield f"lightning_server_{name}", labels, value

    def _transport(self, endpoints: list[Endpoint]) -> Iterator[Sample]:
        """Read what the sockets and their connections count."""
        read = [(endpoint, _counters_of(endpoint)) for endpoint in endpoints]
        connections: list[Connection] = [
            c for endpoint in endpoints for c in endpoint.connections.values()
        ]
        numbers = [connection.numbers() for connection in connections]
        self._endpoints.update(read)
        states = Counter(
            ("active" if n.age else "connecting") if c.is_alive else "closing"
            for c, n in zip(connections, numbers, strict=True)
        )
        for state in ("active", "connecting", "closing"):
            yield "connections", (state,), states[state]
        yield "requests_in_flight", (), sum(n.in_flight for n in numbers)
        engine = self._endpoints
        yield "exchanges", (), engine["requests"]
        yield "exchange_failures", (), engine["failures"]
        yield "sent_datagrams", (), engine["sent"]
        yield "received_datagrams", (), engine["received"]
        yield "unsent_datagrams", (), engine["not_sent"]
        yield "sent_bytes", (), engine["bytes_sent"]
        yield "received_bytes", (), engine["bytes_received"]
        yield "sent_packets", (), engine["packets_sent"]
        yield "lost_packets", (), engine["packets_lost"]
        if read:
            granted = min(counters["receive_buffer"] for _, counters in read)
            yield "socket_receive_buffer_bytes", (), granted
        if self._side == "server":
            yield "ignored_datagrams", (), engine["datagrams_dropped"]
            yield "retries", (), engine["retries_sent"]
            yield "refused_connections", ("full",), engine["refused"]
            yield "refused_connections", ("source_full",), engine["sources_full"]
            yield "refused_connections", ("source_fast",), engine["sources_fast"]

    def _server(self, face: AsyncLightningServer) -> Iterator[Sample]:
        stats = face.stats()
        for h in stats.handlers:
            for outcome in ("ok", "failed", "timed_out", "busy", "limited"):
                yield "requests", (h.name, outcome), getattr(h, outcome)
            yield "handler_seconds", (h.name,), h.seconds
        for outcome in ("unknown", "unauthenticated", "invalid"):
            yield "requests", ("", outcome), getattr(stats, outcome)
        yield "logins", ("accepted",), stats.logins
        for reason, count in stats.logins_refused.items():
            yield "logins", (reason,), count
        yield "requests_running", (), stats.running
        yield "requests_queued", (), stats.queued
        for name in ("validators", "permits", "nonces"):
            yield name, (), getattr(stats, name)

    def answers(self) -> list[tuple[str, float]]:
        """Return the histogram's buckets as of the last reading."""
        counts = [self._endpoints[f"latency_{power}"] for power in range(64)]
        upto = [0, *accumulate(counts)]
        buckets = [(repr(2**p / 1e6), float(upto[p + 1])) for p in _BUCKETS]
        return [*buckets, ("+Inf", float(upto[-1]))]

    def peers(self) -> Iterator[Sample]:
        """Read the numbers of each connection with a login, if that was asked for."""
        face = self._face()
        if face is None or not self._per_peer:
            return
        prefix = f"lightning_{self._side}_peer"
        for connection, hotkeys in _logins_of(face):
            if not hotkeys or not connection.is_alive:
                continue
            labels = str(connection.address), " ".join(sorted(hotkeys))
            n = connection.numbers()
            yield f"{prefix}_rtt_seconds", labels, n.rtt
            yield f"{prefix}_requests_in_flight", labels, n.in_flight
            yield f"{prefix}_exchanges", labels, n.requests
            yield f"{prefix}_lost_packets", labels, n.packets_lost


def _logins_of(
    face: AsyncLightning | AsyncLightningServer,
) -> list[tuple[Connection, tuple[str, ...]]]:
    """Return the connections and who is logged in there; lists are made at one go."""
    if isinstance(face, AsyncLightningServer):
        return [(s.connection, tuple(s.logins)) for s in list(face._logins.table)]
    return [(s.connection, tuple(s.hotkeys)) for s in list(face._sessions.values())]


def _endpoints_of(face: AsyncLightning | AsyncLightningServer) -> list[Endpoint]:
    if isinstance(face, AsyncLightningServer):
        return [] if face._endpoint is None else [face._endpoint]
    return list((face._endpoints or {}).values())


def _counters_of(endpoint: Endpoint) -> dict[str, int]:
    try:
        counters = {"receive_buffer": 0, **endpoint.stats(), **endpoint.transferred()}
        latencies = endpoint.latencies
    except RuntimeError:
        # Closed in this very moment: what was read before stands.
        return {"receive_buffer": 0}
    for power, count in enumerate(latencies):
        counters[f"latency_{power}"] = count
    return counters


class _Collector:
    """All that is watched in one registry: a name may be registered there but once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watches: list[Watch] = []

    def forget(self, watch: Watch) -> None:
        with self.lock:
            if watch in self.watches:
                self.watches.remove(watch)

    def describe(self) -> Iterable[Metric]:
        """Return no samples: what the registry needs to know the names."""
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        """Read everything, as Prometheus asks."""
        families = _families()
        with self.lock:
            self.watches = [w for w in self.watches if not w.is_gone]
            for each in self.watches:
                try:
                    for name, labels, value in (*each.samples(), *each.peers()):
                        families[name].add_metric([each.name, *labels], value)
                    if each._side == "client":
                        families["lightning_client_answer_seconds"].add_metric(
                            [each.name], buckets=each.answers(), sum_value=None
                        )
                except Exception:
                    # The others' metrics must not be lost with it.
                    log.exception("the metrics of %r cannot be read", each.name)
        return families.values()


_FAMILIES = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _families() -> dict[str, Any]:
    return {
        name: _FAMILIES[kind](name, text, labels=["name", *labels])
        for name, (kind, labels, text) in METRICS.items()
    }


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, _Collector] = (
    weakref.WeakKeyDictionary()
)
_lock = threading.Lock()


def watch(
    target: AsyncLightning | AsyncLightningServer | Lightning | LightningServer,
    registry: CollectorRegistry = REGISTRY,
    *,
    name: str = "",
    per_peer: bool = False,
) -> Watch:
    """Have Prometheus read the metrics of a client or a server, of either face.

    Args:
        target: What to watch; it need not be started, may be stopped and started
            again, and is forgotten when nothing else refers to it.
        registry: Where the metrics are registered.
        name: Value of the label ``name``, to tell several in one registry apart.
        per_peer: Have series for each connection, with hotkeys and address as labels:
            at most four times ``max_connections``.

    Returns:
        What ends it by `Watch.close`; a context manager.

    Raises:
        TypeError: The target is neither.
        ValueError: One of this side and name is watched in this registry already.
    """
    face = getattr(target, "_server", None) or getattr(target, "_client", target)
    if not isinstance(face, AsyncLightning | AsyncLightningServer):
        raise TypeError(
            f"target must be a client or a server, not {type(target).__name__}"
        )
    side = "server" if isinstance(face, AsyncLightningServer) else "client"
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector()
            registry.register(collector)  # type: ignore[arg-type,unused-ignore]  # By its methods; not typed where the extra is missing.
            _collectors[registry] = collector
    made = Watch(name, weakref.ref(face), side, per_peer, collector)
    with collector.lock:
        collector.watches = [w for w in collector.watches if not w.is_gone]
        if any((w._side, w.name) == (side, name) for w in collector.watches):
            raise ValueError(f"a {side} named {name!r} is watched already: give a name")
        collector.watches.append(made)
    return made
