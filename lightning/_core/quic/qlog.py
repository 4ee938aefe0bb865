"""qlog: what an endpoint's connections did, one file a connection.

The files are qlog 0.3 in JSON-SEQ (RFC 7464; draft-ietf-quic-qlog-main-schema-04 and
-quic-events-03), for tools like qvis. They hold addresses, packet numbers, frames and
metrics, and of everything that was carried only its length: no stream or CRYPTO data,
no token and no key, for which ``security:key_updated`` lacks its ``new``.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import struct
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning._core.quic.frames import parse
from lightning.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lightning._core.quic.config import EngineConfig

__all__ = ["QlogWriter", "Record"]

log = logging.getLogger("lightning.qlog")

# Files of one name, which a client chooses.
_MAX_NAMESAKES = 64
# Connections that are followed at a time. Each has an end, which the ring drops only
# once it is full of ends; then the oldest are given up.
_MAX_TRACES = 65536

_TYPES = {
    0: "initial",
    1: "0RTT",
    2: "handshake",
    3: "retry",
    4: "version_negotiation",
    5: "1RTT",
}
_SECRETS = {0: "initial", 2: "handshake", 5: "1rtt"}
_TRIGGERS = ("tls", "remote_update", "local_update")
_DROPS = (
    "unexpected_packet",
    "invalid_initial",
    "unexpected_source_connection_id",
    "header_parse_error",
    "duplicate",
    "key_unavailable",
    "payload_decrypt_error",
)
_ECN = ("Not-ECT", "ECT(1)", "ECT(0)", "CE")
_METRICS = (
    "congestion_window",
    "bytes_in_flight",
    "ssthresh",
    "smoothed_rtt",
    "min_rtt",
    "latest_rtt",
    "rtt_variance",
    "pto_count",
    "packets_lost",
)
_PARAMETERS = (
    "max_idle_timeout",
    "ack_delay_exponent",
    "max_ack_delay",
    "max_udp_payload_size",
    "active_connection_id_limit",
    "initial_max_data",
    "initial_max_stream_data_bidi_local",
    "initial_max_stream_data_bidi_remote",
    "initial_max_stream_data_uni",
    "initial_max_streams_bidi",
    "initial_max_streams_uni",
)
# By CloseInitiator: whose doing it was, and why if that does not depend on the code.
_CLOSES: tuple[tuple[str, str | None], ...] = (
    ("local", None),
    ("remote", None),
    ("local", "idle_timeout"),
    ("local", "handshake_timeout"),
    ("remote", "stateless_reset"),
    ("remote", "version_mismatch"),
    ("local", "error"),
    ("remote", "error"),
    ("local", "idle_timeout"),  # Unresponsive: the closest name there is.
)
_ERRORS = (
    "no_error",
    "internal_error",
    "connection_refused",
    "flow_control_error",
    "stream_limit_error",
    "stream_state_error",
    "final_size_error",
    "frame_encoding_error",
    "transport_parameter_error",
    "connection_id_limit_error",
    "protocol_violation",
    "invalid_token",
    "application_error",
    "crypto_buffer_exceeded",
    "key_update_error",
    "aead_limit_reached",
    "no_viable_path",
)


class Record(NamedTuple):
    """A record of the ring, as ``trace.pxd`` describes it."""

    time: int
    connection: int
    kind: str
    number: int
    size: int
    type: int
    detail: int
    ecn: int
    data: bytes


class _Trace:
    """One connection's file.

    Attributes:
        lines: What is still to be written.
        path: The file; None before there is one.
        exponent: Of the peer's ACK delays.
        lost: The largest packet number that was told as lost, by packet type.
        metrics: What was told last.
    """

    __slots__ = ("cid", "exponent", "lines", "lost", "metrics", "path", "start")

    def __init__(self, start: int, cid: bytes) -> None:
        self.start = start
        self.cid = cid
        self.path: str | None = None
        self.exponent = 3
        self.lines: list[bytes] = []
        self.lost: dict[int, int] = {}
        self.metrics: dict[str, float] = {}

    def add(self, at: int, name: str, data: dict[str, Any]) -> None:
        event = {"time": (at - self.start) / 1000, "name": name, "data": data}
        self.lines.append(_line(event))


class QlogWriter:
    """Writes the traces of one endpoint.

    Files are opened for each batch, so that none is held open. A connection that never
    sent or received a packet leaves none.

    Args:
        directory: Where to.
        config: Says how much, and what our transport parameters are.
        is_client: Which end we are.
        wall: Returns the time of day in seconds.

    Raises:
        ConfigError: The directory is not there, or cannot be written to.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: EngineConfig,
        *,
        is_client: bool,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._directory = os.path.abspath(directory)
        try:
            tempfile.TemporaryFile(dir=self._directory).close()
        except OSError as error:
            raise ConfigError(f"qlog_dir cannot be written to: {error}") from error
        self._config = config
        self._is_client = is_client
        self._wall = wall
        self._room = config.qlog_limit
        self._traces: dict[int, _Trace] = {}

    def write(self, records: Iterable[tuple[Any, ...]], dropped: int = 0) -> bool:
        """Write a batch.

        Args:
            records: As the ring gives them, in order.
            dropped: How many did not fit into it after these.

        Returns:
            False once there is to be no more tracing, of which the log says why.
        """
        touched: dict[int, _Trace] = {}
        at = 0
        try:
            for each in records:
                record = Record._make(each)
                at = record.time
                trace = self._handle(record)
                if trace is not None:
                    touched[record.connection] = trace
            for number, trace in touched.items():
                if dropped:
                    message = f"{dropped} records did not fit and are missing here"
                    trace.add(at, "loglevel:warning", {"message": message})
                if not self._flush(trace):
                    self._traces.pop(number, None)
        except OSError as error:
            log.warning("tracing is turned off: %s", error)
            return False
        except Exception:
            # Whatever is wrong with a trace, the connections go on.
            log.exception("tracing is turned off: it failed")
            return False
        if self._room < 0:
            log.warning("tracing is turned off: qlog_limit is reached")
            return False
        return True

    # --- Files ----------------------------------------------------------------------

    def _flush(self, trace: _Trace) -> bool:
        """Write what waits; False if there is no file for it and will be none."""
        if not trace.lines:
            return True
        data = b"".join(trace.lines)
        trace.lines.clear()
        if trace.path is None:
            descriptor = self._create(trace)
        else:
            descriptor = os.open(
                trace.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        if descriptor is None:
            return False
        with open(descriptor, "ab", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        self._room -= len(data)
        return True

    def _create(self, trace: _Trace) -> int | None:
        """Create the file; None if there are too many of that name."""
        end = "client" if self._is_client else "server"
        for i in range(_MAX_NAMESAKES):
            name = f"{trace.cid.hex()}_{end}{f'_{i}' if i else ''}.sqlog"
            path = os.path.join(self._directory, name)
            try:
                descriptor = os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                )
            except FileExistsError:
                continue
            trace.path = path
            return descriptor
        return None

    def _begin(self, record: Record) -> _Trace:
        """Start a trace with what is known of it from the start."""
        address, cids = record.data[:20], record.data[20:]
        original, source = cids[1 : 1 + cids[0]], cids[2 + cids[0] :]
        trace = _Trace(record.time, original)
        end = "client" if self._is_client else "server"
        trace.lines.append(
            _line(
                {
                    "qlog_format": "JSON-SEQ",
                    "qlog_version": "0.3",
                    "title": f"lightning {end}",
                    "trace": {
                        "vantage_point": {"name": "lightning", "type": end},
                        "common_fields": {
                            "ODCID": original.hex(),
                            "group_id": original.hex(),
                            "protocol_type": ["QUIC"],
                            "time_format": "relative",
                            "reference_time": round(self._wall() * 1000, 3),
                        },
                    },
                }
            )
        )
        peer, port = _address(address)
        own = "unknown"  # The engine has no sockets.
        data: dict[str, Any] = {"ip_version": "v6" if ":" in peer else "v4"}
        if self._is_client:
            data.update(src_ip=own, dst_ip=peer, dst_port=port)
            data.update(src_cid=source.hex(), dst_cid=original.hex())
        else:
            data.update(src_ip=peer, dst_ip=own, src_port=port, dst_cid=original.hex())
        trace.add(record.time, "connectivity:connection_started", data)
        trace.add(record.time, "transport:parameters_set", self._own_parameters())
        if len(self._traces) >= _MAX_TRACES:
            del self._traces[next(iter(self._traces))]
        return trace

    def _own_parameters(self) -> dict[str, Any]:
        config = self._config
        values = (
            int(config.idle_timeout * 1000),
            3,
            max(math.ceil(config.ack_delay * 1000), 1),
            config.max_udp_payload,
            config.active_cids,
            config.max_data,
            config.max_stream_data,
            config.max_stream_data,
            config.max_stream_data,
            config.max_streams,
            config.max_uni_streams,
        )
        return {"owner": "local", **dict(zip(_PARAMETERS, values, strict=True))}

    # --- Events ---------------------------------------------------------------------

    def _handle(self, record: Record) -> _Trace | None:
        """Turn a record into events; return its trace if that has something to write.

        A connection is only followed from its start: one whose start did not fit into
        the ring has no trace.
        """
        kind = record.kind
        if kind == "started":
            self._traces[record.connection] = self._begin(record)
            return None
        trace = self._traces.get(record.connection)
        if trace is None:
            return None
        if kind == "ended":
            del self._traces[record.connection]
        else:
            getattr(self, f"_on_{kind}")(trace, record)
        # Strangers' garbage begins connections that end before their first packet.
        if trace.path is None and kind not in ("sent", "received"):
            return None
        return trace

    def _on_packet(self, trace: _Trace, record: Record, is_sent: bool) -> None:
        header: dict[str, Any] = {"packet_type": _TYPES[record.type]}
        data: dict[str, Any] = {"header": header, "raw": {"length": record.size}}
        if record.type in _SECRETS:
            header["packet_number"] = record.number
            data["raw"]["payload_length"] = len(record.data)
            by_client = self._is_client == is_sent
            exponent = 3 if is_sent else trace.exponent
            data["frames"] = _frames(record.data, record.type, by_client, exponent)
        if record.detail:
            data["is_mtu_probe_packet"] = True
        if record.ecn:
            data["ecn"] = _ECN[record.ecn]
        name = "transport:packet_sent" if is_sent else "transport:packet_received"
        trace.add(record.time, name, data)

    def _on_sent(self, trace: _Trace, record: Record) -> None:
        self._on_packet(trace, record, True)

    def _on_received(self, trace: _Trace, record: Record) -> None:
        self._on_packet(trace, record, False)

    def _on_dropped(self, trace: _Trace, record: Record) -> None:
        data = {
            "header": {"packet_type": _TYPES.get(record.type, "unknown")},
            "raw": {"length": record.size},
            "trigger": _DROPS[record.detail],
        }
        trace.add(record.time, "transport:packet_dropped", data)

    def _on_lost(self, trace: _Trace, record: Record) -> None:
        # Two ACKs at a time may tell of the same loss; losses come in order.
        if record.number <= trace.lost.get(record.type, -1):
            return
        trace.lost[record.type] = record.number
        header = {"packet_type": _TYPES[record.type], "packet_number": record.number}
        trace.add(record.time, "recovery:packet_lost", {"header": header})

    def _on_metrics(self, trace: _Trace, record: Record) -> None:
        values = struct.unpack("=9q", record.data)
        metrics: dict[str, float] = {}
        for name, value in zip(_METRICS, values, strict=True):
            if "rtt" in name:
                # 0 before the first sample.
                if value:
                    metrics[name] = value / 1000
            elif value >= 0:
                metrics[name] = value
        changed = {k: v for k, v in metrics.items() if trace.metrics.get(k) != v}
        if changed:
            trace.metrics.update(changed)
            trace.add(record.time, "recovery:metrics_updated", changed)

    def _key(self, record: Record) -> dict[str, Any]:
        owner = "client" if bool(record.number) == self._is_client else "server"
        return {
            "key_type": f"{owner}_{_SECRETS[record.type]}_secret",
            "trigger": _TRIGGERS[record.detail],
        }

    def _on_key_updated(self, trace: _Trace, record: Record) -> None:
        trace.add(record.time, "security:key_updated", self._key(record))

    def _on_key_discarded(self, trace: _Trace, record: Record) -> None:
        trace.add(record.time, "security:key_discarded", self._key(record))

    def _on_parameters(self, trace: _Trace, record: Record) -> None:
        values = list(struct.unpack("=11Q", record.data))
        trace.exponent = values[1]
        # To milliseconds, as on the wire.
        values[0] //= 1000
        values[2] //= 1000
        data = {"owner": "remote", **dict(zip(_PARAMETERS, values, strict=True))}
        trace.add(record.time, "transport:parameters_set", data)

    def _on_path(self, trace: _Trace, record: Record) -> None:
        host, port = _address(record.data)
        data = {"peer_ip": host, "peer_port": port}
        trace.add(record.time, "connectivity:path_updated", data)

    def _on_closed(self, trace: _Trace, record: Record) -> None:
        owner, trigger = _CLOSES[record.detail]
        data: dict[str, Any] = {"owner": owner}
        if trigger is None:
            trigger = "application" if record.type else "error"
            if not record.type and record.number == 0:
                trigger = "clean"
            code = record.number if record.type else _error(record.number)
            data["application_code" if record.type else "connection_code"] = code
            data["reason"] = record.data[8:].decode("utf-8", "replace")
        data["trigger"] = trigger
        trace.add(record.time, "connectivity:connection_closed", data)


def _line(value: dict[str, Any]) -> bytes:
    """Encode one JSON text of the sequence (RFC 7464 2.2), in ASCII."""
    return b"\x1e" + json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _address(data: bytes) -> tuple[str, int]:
    family, port = struct.unpack("=HH", data[:4])
    packed = data[4:8] if family == 4 else data[4:20]
    return str(ipaddress.ip_address(packed)), port


def _error(code: int) -> str | int:
    """Name a transport error (RFC 9000 20.1)."""
    if code < len(_ERRORS):
        return _ERRORS[code]
    if 0x100 <= code <= 0x1FF:
        return f"crypto_error_0x{code:x}"
    return code


def _frames(
    payload: bytes, packet_type: int, by_client: bool, exponent: int
) -> list[dict[str, Any]]:
    """Describe the frames of a packet, up to the first that is wrong."""
    status, frames, wire_type = parse(payload, packet_type, by_client)
    found = [_frame(each, exponent) for each in frames]
    if status:
        found.append({"frame_type": "unknown", "raw_frame_type": wire_type})
    return found


# The names of a frame's fields, by its type.
_PLAIN: dict[int, tuple[str, dict[str, str]]] = {
    0x00: ("padding", {"payload_length": "value"}),
    0x01: ("ping", {}),
    0x04: (
        "reset_stream",
        {
            "stream_id": "stream_id",
            "error_code": "error_code",
            "final_size": "final_size",
        },
    ),
    0x05: ("stop_sending", {"stream_id": "stream_id", "error_code": "value"}),
    0x10: ("max_data", {"maximum": "value"}),
    0x11: ("max_stream_data", {"stream_id": "stream_id", "maximum": "value"}),
    0x12: ("max_streams", {"maximum": "value"}),
    0x13: ("max_streams", {"maximum": "value"}),
    0x14: ("data_blocked", {"limit": "value"}),
    0x15: ("stream_data_blocked", {"stream_id": "stream_id", "limit": "value"}),
    0x16: ("streams_blocked", {"limit": "value"}),
    0x17: ("streams_blocked", {"limit": "value"}),
    0x18: (
        "new_connection_id",
        {"sequence_number": "sequence", "retire_prior_to": "retire_prior_to"},
    ),
    0x19: ("retire_connection_id", {"sequence_number": "value"}),
    0x1A: ("path_challenge", {}),
    0x1B: ("path_response", {}),
    0x1E: ("handshake_done", {}),
}


def _frame(fields: dict[str, Any], exponent: int) -> dict[str, Any]:
    """Describe a frame, without what it carries."""
    kind = fields["type"]
    if kind == 0x08:
        out = {
            "frame_type": "stream",
            "stream_id": fields["stream_id"],
            "offset": fields["offset"],
            "length": len(fields["data"]),
        }
        return {**out, "fin": True} if fields["fin"] else out
    if kind in (0x02, 0x03):
        return _ack(fields, exponent)
    if kind == 0x06:
        length = len(fields["data"])
        return {"frame_type": "crypto", "offset": fields["offset"], "length": length}
    if kind == 0x07:
        return {"frame_type": "new_token", "token": {"length": len(fields["data"])}}
    if kind in (0x1C, 0x1D):
        return _close(fields)
    name, names = _PLAIN[kind]
    out = {"frame_type": name, **{k: fields[v] for k, v in names.items()}}
    if kind in (0x12, 0x13, 0x16, 0x17):
        out["stream_type"] = "unidirectional" if kind & 1 else "bidirectional"
    if kind == 0x18:
        out["connection_id"] = fields["cid"].hex()
    return out


def _ack(fields: dict[str, Any], exponent: int) -> dict[str, Any]:
    ranges = [
        [start] if start + 1 == end else [start, end - 1]
        for start, end in fields["ranges"]
    ]
    out = {
        "frame_type": "ack",
        "ack_delay": (fields["delay"] << exponent) / 1000,
        "acked_ranges": ranges,
    }
    if fields["type"] == 0x03:
        out.update(zip(("ect0", "ect1", "ce"), fields["ecn"], strict=True))
    return out


def _close(fields: dict[str, Any]) -> dict[str, Any]:
    code = fields["error_code"]
    is_application = fields["type"] == 0x1D
    out = {
        "frame_type": "connection_close",
        "error_space": "application" if is_application else "transport",
        "error_code": code if is_application else _error(code),
        "raw_error_code": code,
        "reason": fields["reason"].decode("utf-8", "replace"),
    }
    if not is_application:
        out["trigger_frame_type"] = fields["frame_type"]
    return out
