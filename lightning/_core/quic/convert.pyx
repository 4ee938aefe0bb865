"""Between Python's values and the engine's records."""

import ipaddress
import math

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from lightning._core.quic.congestion cimport CUBIC, NEW_RENO
from lightning._core.quic.connstate cimport settings_init
from lightning._core.quic.packet cimport CID_MAX
from lightning._core.quic.sources cimport SOURCES_MOST

from aioquic.quic.packet import QuicTransportParameters

from lightning._core.quic.events import ConnectionEnd
from lightning._core.quic.params import encode


cdef int64_t micros(double now) noexcept:
    return <int64_t> (now * 1e6 + 0.5)


cdef int64_t period(object seconds) except -1:
    return <int64_t> (seconds * 1_000_000)


cdef tuple INITIATORS = (
    "local", "peer", "idle", "handshake_timeout", "reset", "version", "path",
    "unreachable", "unresponsive",
)


cdef bytes cid_bytes(const Cid* cid):
    return PyBytes_FromStringAndSize(<const char*> cid.bytes, cid.size)


cdef int cid_from(object value, Cid* cid) except -1:
    """Copy at most 20 bytes; params.py has refused longer ones. None is no bytes."""
    cdef bytes data = value if value is not None else b""
    cid.size = <uint8_t> min(<size_t> len(data), <size_t> CID_MAX)
    memcpy(cid.bytes, <const char*> data, cid.size)
    return 0


cdef dict HOSTS = {}  # packed addresses of texts that were seen; bounded


cdef int address_from(object address, Address* a) except -1:
    cdef object host = address[0]
    cdef object packed = HOSTS.get(host)
    cdef object ip
    if packed is None:
        ip = ipaddress.ip_address(host.partition("%")[0])
        packed = ip.packed
        if len(HOSTS) > 1024:
            HOSTS.clear()
        HOSTS[host] = packed
    memset(a, 0, sizeof(Address))
    a.family = 4 if len(packed) == 4 else 6
    a.port = address[1]
    memcpy(a.ip, <const char*> (<bytes> packed), len(packed))
    if len(address) > 3:
        a.scope = address[3]
    return 0


cdef tuple address_to(const Address* a):
    cdef bytes packed = PyBytes_FromStringAndSize(
        <const char*> a.ip, 4 if a.family == 4 else 16
    )
    host = str(ipaddress.ip_address(packed))
    return (host, a.port, 0, a.scope) if a.scope else (host, a.port)


cdef int settings_from(object config, bint is_client, Settings* s) except -1:
    settings_init(s, is_client)
    s.streams.max_data = config.max_data
    s.streams.max_stream_data_bidi_local = config.max_stream_data
    s.streams.max_stream_data_bidi_remote = config.max_stream_data
    s.streams.max_stream_data_uni = config.max_stream_data
    s.streams.max_streams_bidi = config.max_streams
    s.streams.max_streams_uni = config.max_uni_streams
    s.streams.max_data_window = max(config.max_data_window, config.max_data)
    s.streams.max_stream_window = max(config.max_stream_window, config.max_stream_data)
    s.streams.max_buffered = config.max_buffered
    s.streams.max_stream_buffered = config.max_stream_buffered
    s.streams.max_local_streams = config.max_local_streams
    s.recovery.initial_rtt = period(config.initial_rtt)
    s.recovery.algorithm = CUBIC if config.congestion == "cubic" else NEW_RENO
    s.recovery.initial_window = config.initial_window
    s.recovery.hystart = config.hystart
    s.recovery.ecn = config.ecn
    s.recovery.max_datagram = config.max_datagram
    s.idle_timeout = period(config.idle_timeout)
    s.handshake_timeout = period(config.handshake_timeout)
    s.keep_alive = period(config.keep_alive)
    s.unresponsive_timeout = period(config.unresponsive_timeout)
    s.ack_delay = period(config.ack_delay)
    s.key_update_after = config.key_update_after
    s.active_cids = config.active_cids
    s.max_connections = config.max_connections
    s.max_half_open = config.max_half_open
    s.max_unauthenticated_per_source = config.max_unauthenticated_per_source
    s.max_connections_per_minute = config.max_connections_per_minute
    s.max_tracked_rate_ips = min(config.max_tracked_rate_ips, SOURCES_MOST)
    s.retry = config.retry
    s.retry_from = config.retry_from
    s.sends_tokens = not is_client and config.token_lifetime > 0
    return 0


cdef int parameters_from(object p, PeerParameters* out) except -1:
    memset(out, 0, sizeof(PeerParameters))
    out.limits.max_data = p.initial_max_data
    out.limits.max_stream_data_bidi_local = p.initial_max_stream_data_bidi_local
    out.limits.max_stream_data_bidi_remote = p.initial_max_stream_data_bidi_remote
    out.limits.max_stream_data_uni = p.initial_max_stream_data_uni
    out.limits.max_streams_bidi = p.initial_max_streams_bidi
    out.limits.max_streams_uni = p.initial_max_streams_uni
    # A year is as good as what 62 bits can say.
    out.idle_timeout = min(p.max_idle_timeout, 31_536_000_000) * 1000
    out.ack_exponent = p.ack_delay_exponent
    out.max_ack_delay = p.max_ack_delay * 1000
    out.max_udp_payload = p.max_udp_payload_size
    out.active_cids = p.active_connection_id_limit
    cid_from(p.original_destination_cid, &out.original)
    cid_from(p.initial_source_cid, &out.source)
    cid_from(p.retry_source_cid, &out.retry)
    out.has_original = p.original_destination_cid is not None
    out.has_source = p.initial_source_cid is not None
    out.has_retry = p.retry_source_cid is not None
    if p.stateless_reset_token:
        out.has_token = True
        memcpy(out.token, <const char*> (<bytes> p.stateless_reset_token), 16)
    return 0


cdef bytes parameters_to(const Conn* c, object config, bytes grease):
    """Encode our transport parameters (RFC 9000 18.2)."""
    cdef object p = QuicTransportParameters(
        max_idle_timeout=int(config.idle_timeout * 1000) or None,
        max_udp_payload_size=config.max_udp_payload,
        initial_max_data=config.max_data,
        initial_max_stream_data_bidi_local=config.max_stream_data,
        initial_max_stream_data_bidi_remote=config.max_stream_data,
        initial_max_stream_data_uni=config.max_stream_data,
        initial_max_streams_bidi=config.max_streams or None,
        initial_max_streams_uni=config.max_uni_streams or None,
        max_ack_delay=max(math.ceil(config.ack_delay * 1000), 1),
        active_connection_id_limit=config.active_cids,
        initial_source_connection_id=cid_bytes(&c.source),
    )
    if not c.is_client:
        p.original_destination_connection_id = cid_bytes(&c.original)
        p.stateless_reset_token = PyBytes_FromStringAndSize(
            <const char*> c.local.entries[0].token, 16
        )
        if c.has_retry:
            p.retry_source_connection_id = cid_bytes(&c.retry_source)
    return encode(p, grease)


cdef object end_to(const Conn* c):
    """Say how a connection ended."""
    return ConnectionEnd(
        INITIATORS[<int> c.initiator], bool(c.close_app), c.close_code, c.close_frame,
        c.close_reason[:c.close_reason_size].decode("utf-8", "replace"),
    )


cdef dict stats_to(const Conn* c, int64_t now):
    return {
        "datagrams_received": c.stats.datagrams_received,
        "datagrams_sent": c.stats.datagrams_sent,
        "bytes_received": c.stats.bytes_received,
        "bytes_sent": c.stats.bytes_sent,
        "packets_received": c.stats.packets_received,
        "packets_dropped": c.stats.packets_dropped,
        "packets_sent": c.recovery.stats.packets_sent,
        "packets_lost": c.recovery.stats.packets_lost,
        "timeouts": c.recovery.stats.timeouts,
        "key_updates": c.stats.key_updates,
        "path_changes": c.stats.path_changes,
        "mtu": c.recovery.mtu.current,
        "rtt": c.recovery.rtt.smoothed,
        "congestion_window": c.recovery.cc.cwnd,
        "bytes_in_flight": c.recovery.cc.bytes_in_flight,
        "streams": c.streams.count,
        "send_buffered": c.streams.send_buffered,
        "recv_buffered": c.streams.recv_buffered,
        "ecn_state": c.recovery.ecn.state,
        "local_cids": c.local.count,
        "remote_cids": c.remote.count,
        "rtt_us": c.recovery.rtt.smoothed if c.recovery.rtt.minimum else 0,
        "min_rtt_us": c.recovery.rtt.minimum,
        "cwnd": c.recovery.cc.cwnd,
        "idle_us": max(now - c.received_at, 0),
        "age_us": max(now - c.connected_at, 0) if c.connected_at else 0,
    }


# --- Python face --------------------------------------------------------------------

def read_settings(object config, bint is_client):
    """Return an EngineConfig's record, for tests."""
    cdef Settings s
    settings_from(config, is_client, &s)
    return {
        "streams": s.streams, "recovery": s.recovery, "idle_timeout": s.idle_timeout,
        "handshake_timeout": s.handshake_timeout, "keep_alive": s.keep_alive,
        "unresponsive_timeout": s.unresponsive_timeout,
        "max_unauthenticated_per_source": s.max_unauthenticated_per_source,
        "max_connections_per_minute": s.max_connections_per_minute,
        "max_tracked_rate_ips": s.max_tracked_rate_ips,
        "ack_delay": s.ack_delay, "key_update_after": s.key_update_after,
        "active_cids": s.active_cids, "max_connections": s.max_connections,
        "max_half_open": s.max_half_open, "retry_from": s.retry_from,
        "retry": bool(s.retry), "sends_tokens": bool(s.sends_tokens),
    }


def read_parameters(object parameters):
    """Return the record of a PeerParameters of `params`, for tests."""
    cdef PeerParameters p
    parameters_from(parameters, &p)
    return {
        "limits": p.limits, "idle_timeout": p.idle_timeout,
        "ack_exponent": p.ack_exponent, "max_ack_delay": p.max_ack_delay,
        "max_udp_payload": p.max_udp_payload, "active_cids": p.active_cids,
        "original": cid_bytes(&p.original) if p.has_original else None,
        "source": cid_bytes(&p.source) if p.has_source else None,
        "retry": cid_bytes(&p.retry) if p.has_retry else None,
        "token": bytes(p.token[:16]) if p.has_token else None,
    }


def read_address(object address):
    """Return an address's record, and what that is told as, for tests."""
    cdef Address a
    address_from(address, &a)
    return (a.family, bytes(a.ip[:16]), a.port, a.scope), address_to(&a)


def read_times(double now, object seconds):
    """Return a clock's time and a setting's in microseconds, for tests."""
    return micros(now), period(seconds)
