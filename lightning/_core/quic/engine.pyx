"""The engine's Python face: endpoints and connections in virtual or real time.

Datagrams, time and randomness come in, datagrams, deadlines and events go out. Times
are seconds here and microseconds below. TLS runs in this module, between calls into the
engine and never under its mutex.
"""

import hashlib
import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lightning._core.quic.buffer cimport OK, SPACE_COUNT
from lightning._core.quic.connection cimport (
    CONNECTION_CLOSED, NO_STREAM, PeerParameters, connection_close,
    connection_open_stream, connection_pause, connection_ping, connection_refer,
    connection_release, connection_reset, connection_resume, connection_send,
    connection_set_parameters, connection_stop, connection_stream
)
from lightning._core.quic.connstate cimport (
    CONN_OPEN, CONNS_SEND, Conn, Settings, conn_close_local, conn_complete, conn_fail,
    conn_install, conn_is_alive, conn_list, conn_may_update, conn_ref,
    conn_update_sealing
)
from lightning._core.quic.convert cimport (
    address_from, address_to, cid_bytes, micros, parameters_from, period, settings_from
)
from lightning._core.quic.endpoint cimport (
    COMPLETION_CLOSED, COMPLETION_CONNECTED, Completion, EndpointCore,
    endpoint_connect, endpoint_free, endpoint_init, endpoint_lock,
    endpoint_next_completion, endpoint_next_deadline, endpoint_next_release,
    endpoint_next_tls, endpoint_poll_transmit, endpoint_receive, endpoint_release,
    endpoint_take_crypto, endpoint_timeout, endpoint_tls_done, endpoint_touch,
    endpoint_unlock
)
from lightning._core.quic.paths cimport Address
from lightning._core.quic.sendbuf cimport SEND_COPY_MAX, sendbuf_append
from lightning._core.quic.streams cimport (
    STREAMS_FULL, STREAMS_LIMIT, stream_is_at_end, streams_consume, streams_peek
)
from lightning._core.quic.streamtable cimport (
    EVENT_ACKED, EVENT_OPENABLE, EVENT_OPENED, EVENT_READABLE, EVENT_RESET,
    EVENT_STOPPED, EVENT_WRITABLE, Stream
)

from aioquic.quic.packet import QuicTransportParameters

from lightning._core.quic.events import ConnectionEnd, Event
from lightning._core.quic.params import encode
from lightning._core.quic.tls import Tls
from lightning.errors import ConfigError, ConnectionClosed

__all__ = ["Connection", "Endpoint", "bench_exchange"]

cdef enum:
    DATAGRAM_MAX = 65536
    CRYPTO_PIECE = 16384

cdef object INITIATORS = (
    "local", "peer", "idle", "handshake_timeout", "reset", "version", "path"
)
cdef dict KINDS = {
    <int> COMPLETION_CONNECTED: "connected",
    <int> COMPLETION_CLOSED: "closed",
    <int> EVENT_OPENED: "opened",
    <int> EVENT_READABLE: "readable",
    <int> EVENT_RESET: "reset",
    <int> EVENT_STOPPED: "stopped",
    <int> EVENT_WRITABLE: "writable",
    <int> EVENT_ACKED: "acked",
    <int> EVENT_OPENABLE: "openable",
}


@cython.auto_pickle(False)
@cython.final
cdef class Endpoint:
    """One UDP socket's QUIC, client or server, without the socket."""

    def __cinit__(self):
        self.scratch = <uint8_t*> malloc(DATAGRAM_MAX)
        if self.scratch is NULL:
            raise MemoryError
        self.conns = {}

    def __init__(
        self, object config, *, bint is_client, object identity=None,
        object random=os.urandom, object keylog=None,
    ):
        """Set up an endpoint without connections.

        Args:
            config: Its settings.
            is_client: Whether it connects or is connected to.
            identity: A server's certificate and key.
            random: Returns that many unpredictable bytes. The engine asks for 32 and
                derives the rest; TLS has its own source.
            keylog: Called with lines of NSS's key log format.

        Raises:
            ConfigError: A server without an identity.
            MemoryError: There is no memory.
        """
        cdef Settings settings
        cdef bytes seed, secret, reset
        if self.core.replies is not NULL:
            raise RuntimeError("an endpoint cannot be initialised twice")
        if not is_client and identity is None:
            raise ConfigError("a server needs an identity")
        self.config = config
        self.is_client = is_client
        self.identity = identity
        self.random = random
        self.keylog = keylog
        settings_from(config, is_client, &settings)
        seed = random(32)
        secret = config.secret or random(32)
        # Each use has its own key.
        reset = hashlib.sha256(b"lightning reset" + secret).digest()
        secret = hashlib.sha256(b"lightning token" + secret).digest()
        if len(seed) != 32:
            raise ConfigError("random must return as many bytes as it is asked for")
        memcpy(settings.reset_key, <const char*> reset, 32)
        if endpoint_init(
            &self.core, &settings, <const uint8_t*> <const char*> seed,
            <const uint8_t*> <const char*> secret, period(config.retry_lifetime),
            period(config.token_lifetime),
        ) != OK:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)
        if self.core.replies is not NULL:
            endpoint_free(&self.core)
            self.drain_releases()

    # --- What a driver calls -------------------------------------------------------

    def connect(self, object address, double now, *, bytes token=b""):
        """Start a connection; its first datagram is ready to be sent.

        Args:
            address: Host (a literal) and port of the server.
            now: The time in seconds.
            token: One that the server gave before, in `Connection.token`.

        Returns:
            The connection; an event tells when it is connected, or closed.
        """
        cdef Address remote
        cdef Conn* c
        cdef Connection connection
        cdef const uint8_t* data = <const uint8_t*> <const char*> token
        cdef size_t size = len(token)
        cdef int64_t us = micros(now)
        address_from(address, &remote)
        self.now = us
        with nogil:
            endpoint_lock(&self.core)
            c = endpoint_connect(&self.core, &remote, data, size, us)
            endpoint_unlock(&self.core)
        if c is NULL:
            raise MemoryError
        connection = self.adopt(c)
        self.run_tls(us)
        return connection

    def receive(self, data, object address, double now, uint8_t ecn=0):
        """Take a datagram.

        Args:
            data: Its bytes; they are copied.
            address: Where it came from.
            now: The time in seconds.
            ecn: The two ECN bits of its IP header.
        """
        cdef const uint8_t[::1] view = data
        cdef size_t size = view.shape[0]
        cdef Address source
        cdef int64_t us = micros(now)
        if size == 0 or size > DATAGRAM_MAX:
            return
        address_from(address, &source)
        self.now = us
        with nogil:
            endpoint_lock(&self.core)
            memcpy(self.scratch, &view[0], size)
            endpoint_receive(&self.core, self.scratch, size, &source, ecn & 3, us)
            endpoint_unlock(&self.core)
        self.run_tls(us)
        self.drain_releases()

    def datagrams_to_send(self, double now):
        """Return the datagrams to send now, each with its address."""
        return [(data, to) for data, to, _, _ in self.transmit(now, 1500)]

    def transmit(self, double now, size_t capacity=65536):
        """Return what to send now, each item as one system call would send it.

        Args:
            now: The time in seconds.
            capacity: Bytes of one item, from 1200.

        Returns:
            Tuples of bytes, address, ECN bits, and the size of the datagrams into
            which the bytes are to be cut.
        """
        cdef list out = []
        cdef Address to
        cdef uint8_t ecn = 0
        cdef size_t size = 0
        cdef size_t segment = 0
        cdef int64_t us = micros(now)
        cdef uint8_t* buffer
        if not 1200 <= capacity <= DATAGRAM_MAX:
            raise ValueError("capacity must be from 1200 to 65536")
        # Its own, for two threads may send.
        buffer = <uint8_t*> malloc(capacity)
        if buffer is NULL:
            raise MemoryError
        self.now = us
        try:
            while True:
                with nogil:
                    endpoint_lock(&self.core)
                    size = endpoint_poll_transmit(
                        &self.core, buffer, capacity, &to, &ecn, &segment, us
                    )
                    endpoint_unlock(&self.core)
                if size == 0:
                    return out
                out.append((
                    PyBytes_FromStringAndSize(<const char*> buffer, size),
                    address_to(&to), ecn, segment,
                ))
        finally:
            free(buffer)

    def next_timeout(self):
        """Return when to call `handle_timeout`, in seconds; None for never."""
        cdef int64_t deadline
        with nogil:
            endpoint_lock(&self.core)
            deadline = endpoint_next_deadline(&self.core)
            endpoint_unlock(&self.core)
        return None if deadline == INT64_MAX else deadline / 1e6

    def handle_timeout(self, double now):
        """Do what has come due; then send."""
        cdef int64_t us = micros(now)
        self.now = us
        with nogil:
            endpoint_lock(&self.core)
            endpoint_timeout(&self.core, us)
            endpoint_unlock(&self.core)
        self.run_tls(us)
        self.drain_releases()

    def next_event(self):
        """Return the next `Event`, None if there is none."""
        cdef Completion done
        cdef bint found
        cdef Connection connection
        while True:
            with nogil:
                endpoint_lock(&self.core)
                found = endpoint_next_completion(&self.core, &done)
                endpoint_unlock(&self.core)
            if not found:
                return None
            connection = self.conns.get(done.number)
            if done.kind == COMPLETION_CLOSED:
                if connection is not None:
                    connection.note_end()
                    self.conns.pop(done.number, None)
                with nogil:
                    endpoint_lock(&self.core)
                    endpoint_release(&self.core, done.conn)
                    endpoint_unlock(&self.core)
            # One that never got as far as TLS is nobody's.
            if connection is not None:
                return Event(
                    KINDS[done.kind], connection, done.stream_id, done.code
                )

    @property
    def connections(self):
        """How many connections there are, closing ones included."""
        return self.core.shared.connections

    @property
    def half_open(self):
        """How many of them are not established."""
        return self.core.shared.half_open

    def stats(self):
        """Return counters of what belonged to no connection."""
        return {
            "datagrams_received": self.core.stats.datagrams_received,
            "datagrams_dropped": self.core.stats.datagrams_dropped,
            "retries_sent": self.core.stats.retries_sent,
            "resets_sent": self.core.stats.resets_sent,
            "negotiations_sent": self.core.stats.negotiations_sent,
            "refused": self.core.stats.refused,
            "blocks_in_use": self.core.shared.memory.blocks.in_use,
            "streams_in_use": self.core.shared.memory.in_use,
        }

    # --- Within --------------------------------------------------------------------

    cdef Connection adopt(self, Conn* c):
        """Make the face of a connection of which a reference is ours to keep."""
        cdef Connection connection = Connection.__new__(Connection)
        connection.endpoint = self
        connection.c = c
        connection.number = c.number
        self.conns[c.number] = connection
        return connection

    cdef int drain_releases(self) except -1:
        """Give up the Python objects whose bytes are not referred to any more."""
        cdef void* owner
        while self.core.shared.memory.releases.count:
            with nogil:
                endpoint_lock(&self.core)
                owner = endpoint_next_release(&self.core)
                endpoint_unlock(&self.core)
            if owner is NULL:
                break
            Py_DECREF(<object> owner)
        return 0

    cdef int run_tls(self, int64_t now) except -1:
        """Run TLS wherever CRYPTO bytes have come, without the mutex."""
        cdef Conn* c
        cdef Connection connection
        while True:
            # A look without the mutex: whoever adds work comes here after.
            if self.core.shared.first[2] is NULL:
                return 0
            with nogil:
                endpoint_lock(&self.core)
                c = endpoint_next_tls(&self.core)
                endpoint_unlock(&self.core)
            if c is NULL:
                return 0
            try:
                connection = self.conns.get(c.number)
                if connection is None:
                    with nogil:
                        endpoint_lock(&self.core)
                        conn_ref(c)
                        endpoint_unlock(&self.core)
                    connection = self.adopt(c)
                self.drive_tls(c, connection, now)
            finally:
                with nogil:
                    endpoint_lock(&self.core)
                    endpoint_tls_done(&self.core, c, now)
                    endpoint_unlock(&self.core)

    cdef int drive_tls(self, Conn* c, Connection connection, int64_t now) except -1:
        cdef uint8_t* piece
        cdef size_t size
        cdef int space
        if connection.tls is None:
            connection.tls = Tls(
                self.config, self.is_client, self.identity, self.parameters(c),
                self.keylog,
            )
            if self.is_client:
                self.apply(c, connection, connection.tls.start(), now)
        piece = <uint8_t*> malloc(CRYPTO_PIECE)
        if piece is NULL:
            raise MemoryError
        try:
            for space in range(SPACE_COUNT):
                while True:
                    with nogil:
                        endpoint_lock(&self.core)
                        size = endpoint_take_crypto(
                            &self.core, c, space, piece, CRYPTO_PIECE
                        )
                        endpoint_unlock(&self.core)
                    if size == 0:
                        break
                    self.apply(c, connection, connection.tls.receive(
                        space, PyBytes_FromStringAndSize(<const char*> piece, size)
                    ), now)
        finally:
            free(piece)
        return 0

    cdef bytes parameters(self, Conn* c):
        """Encode our transport parameters (RFC 9000 18.2)."""
        cdef object config = self.config
        cdef object p = QuicTransportParameters(
            max_idle_timeout=int(config.idle_timeout * 1000) or None,
            max_udp_payload_size=config.max_udp_payload,
            initial_max_data=config.max_data,
            initial_max_stream_data_bidi_local=config.max_stream_data,
            initial_max_stream_data_bidi_remote=config.max_stream_data,
            initial_max_stream_data_uni=config.max_stream_data,
            initial_max_streams_bidi=config.max_streams or None,
            initial_max_streams_uni=config.max_uni_streams or None,
            max_ack_delay=max(int(config.ack_delay * 1000), 1),
            active_connection_id_limit=config.active_cids,
            initial_source_connection_id=cid_bytes(&c.source),
        )
        if not self.is_client:
            p.original_destination_connection_id = cid_bytes(&c.original)
            p.stateless_reset_token = PyBytes_FromStringAndSize(
                <const char*> c.local.entries[0].token, 16
            )
            if c.has_retry:
                p.retry_source_connection_id = cid_bytes(&c.retry_source)
        return encode(p, self.random(8))

    cdef int apply(
        self, Conn* c, Connection connection, object output, int64_t now
    ) except -1:
        """Take over what TLS made, in its order."""
        cdef bytes secret, data, reason
        cdef PeerParameters parameters
        cdef int space, status
        cdef bint sealing, complete
        cdef uint16_t suite
        cdef const uint8_t* view
        cdef size_t size
        cdef uint64_t code
        status = OK
        for space, sealing, suite, secret in output.secrets:
            view = <const uint8_t*> <const char*> secret
            size = len(secret)
            with nogil:
                endpoint_lock(&self.core)
                if conn_is_alive(c):
                    status |= conn_install(c, space, sealing, suite, view, size)
                endpoint_unlock(&self.core)
        if output.parameters is not None:
            parameters_from(output.parameters, &parameters)
            with nogil:
                endpoint_lock(&self.core)
                if conn_is_alive(c):
                    status |= connection_set_parameters(c, &parameters)
                endpoint_unlock(&self.core)
        for space, data in output.data:
            view = <const uint8_t*> <const char*> data
            size = len(data)
            with nogil:
                endpoint_lock(&self.core)
                if conn_is_alive(c) and not c.discarded[space]:
                    status |= sendbuf_append(&c.crypto_out[space], view, size)
                endpoint_unlock(&self.core)
        if output.complete:
            connection.certificate = connection.tls.certificate
            connection.suite = connection.tls.suite
        complete = output.complete
        code = 0
        reason = b""
        if output.error is not None:
            code = output.error.code
            reason = output.error.reason.encode()
        view = <const uint8_t*> <const char*> reason
        size = len(reason)
        with nogil:
            endpoint_lock(&self.core)
            if conn_is_alive(c):
                if code:
                    # The frame was CRYPTO.
                    conn_close_local(c, False, code, 6, view, size, now)
                elif status != OK:
                    conn_fail(c, status, 6, now)
                elif complete:
                    status = conn_complete(c, now)
                    if status != OK:
                        conn_fail(c, status, 0, now)
                conn_list(c, CONNS_SEND)
            endpoint_touch(&self.core, c, now)
            endpoint_unlock(&self.core)
        return 0


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class Connection:
    """One QUIC connection of an endpoint; made by it and never directly.

    The verbs act at the time of the endpoint's last call; what they cause is sent by
    the next `Endpoint.datagrams_to_send`.
    """

    def __cinit__(self):
        self.certificate = b""

    def __dealloc__(self):
        if self.c is not NULL:
            with nogil:
                endpoint_lock(&self.endpoint.core)
                endpoint_release(&self.endpoint.core, self.c)
                endpoint_unlock(&self.endpoint.core)

    @property
    def address(self):
        """Where the peer is now."""
        cdef Address remote
        with nogil:
            endpoint_lock(&self.endpoint.core)
            remote = self.c.paths[self.c.path].remote
            endpoint_unlock(&self.endpoint.core)
        return address_to(&remote)

    @property
    def is_connected(self):
        """Whether the handshake is complete and the connection alive."""
        return self.c.state == CONN_OPEN

    @property
    def is_confirmed(self):
        """Whether the peer is known to have completed the handshake too."""
        return self.c.confirmed

    @property
    def token(self):
        """What the server gave for the next connection to it; empty if nothing."""
        if self.c.new_token is NULL:
            return b""
        return PyBytes_FromStringAndSize(
            <const char*> self.c.new_token, self.c.new_token_size
        )

    def open_stream(self, bint unidirectional=False):
        """Open a stream and return its identifier, -1 if none is allowed just now.

        Raises:
            ConnectionClosed: The connection has ended.
        """
        cdef uint64_t id = 0
        cdef int status
        with nogil:
            endpoint_lock(&self.endpoint.core)
            status = connection_open_stream(
                self.c, unidirectional, self.endpoint.now, &id
            )
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        if status == STREAMS_LIMIT:
            return -1
        self.check(status)
        return id

    def send(self, uint64_t stream_id, data=b"", bint fin=False):
        """Append bytes to a stream, all or none, and end it if asked to.

        Args:
            stream_id: The stream.
            data: The bytes. A large ``bytes`` object is referred to until it is
                acknowledged, anything else is copied.
            fin: Whether the stream ends there.

        Returns:
            True; False if too much waits already: ``writable`` tells when to go on.

        Raises:
            ConnectionClosed: The connection has ended.
            ValueError: The stream is not there, or ended.
        """
        cdef const uint8_t[::1] view
        cdef const uint8_t* start = NULL
        cdef size_t size = len(data)
        cdef int status
        cdef bint refer = type(data) is bytes and size > SEND_COPY_MAX
        cdef void* owner = <void*> data
        if size:
            view = data
            start = &view[0]
        if refer:
            Py_INCREF(data)
        with nogil:
            endpoint_lock(&self.endpoint.core)
            if refer:
                status = connection_refer(self.c, stream_id, start, size, owner, fin)
            else:
                status = connection_send(self.c, stream_id, start, size, fin)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        if refer and status != OK:
            Py_DECREF(data)
        if status == STREAMS_FULL:
            return False
        self.check(status)
        return True

    def read(self, uint64_t stream_id):
        """Take the bytes of a stream that have come, in order; empty if there are none.

        Taking them lets the peer send more.
        """
        cdef Stream* s
        cdef const uint8_t* view = NULL
        cdef uint8_t* copy = NULL
        cdef size_t size = 0
        cdef size_t total = 0
        cdef size_t capacity = 0
        cdef bytes result
        with nogil:
            endpoint_lock(&self.endpoint.core)
            s = connection_stream(self.c, stream_id)
            if s is not NULL:
                capacity = <size_t> s.recv.buffered
                copy = <uint8_t*> malloc(capacity + 1)
                while copy is not NULL and total < capacity:
                    size = min(streams_peek(s, &view), capacity - total)
                    if size == 0:
                        break
                    memcpy(copy + total, view, size)
                    streams_consume(&self.c.streams, s, size, self.endpoint.now)
                    total += size
                if capacity == 0 and s.recv.next == s.recv.final_size:
                    streams_consume(&self.c.streams, s, 0, self.endpoint.now)
                if conn_is_alive(self.c):
                    conn_list(self.c, CONNS_SEND)
                endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        result = PyBytes_FromStringAndSize(<const char*> copy, total)
        free(copy)
        return result

    def at_end(self, uint64_t stream_id):
        """Say if everything up to the end that the peer set was read."""
        cdef Stream* s
        cdef bint result = False
        with nogil:
            endpoint_lock(&self.endpoint.core)
            s = connection_stream(self.c, stream_id)
            if s is not NULL:
                result = stream_is_at_end(s)
            endpoint_unlock(&self.endpoint.core)
        return result

    def stop(self, uint64_t stream_id, uint64_t code=0):
        """Ask the peer to send no more on a stream, and drop what comes."""
        cdef int status
        with nogil:
            endpoint_lock(&self.endpoint.core)
            status = connection_stop(self.c, stream_id, code, self.endpoint.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        self.check(status)

    def reset(self, uint64_t stream_id, uint64_t code=0):
        """Give up sending on a stream; what was not acknowledged is lost."""
        cdef int status
        with nogil:
            endpoint_lock(&self.endpoint.core)
            status = connection_reset(self.c, stream_id, code)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        self.check(status)

    def pause(self, uint64_t stream_id):
        """Take no bytes of a stream from the engine until it is resumed."""
        cdef int status
        with nogil:
            endpoint_lock(&self.endpoint.core)
            status = connection_pause(self.c, stream_id)
            endpoint_unlock(&self.endpoint.core)
        self.check(status)

    def resume(self, uint64_t stream_id):
        """Go on after `pause`."""
        cdef int status
        with nogil:
            endpoint_lock(&self.endpoint.core)
            status = connection_resume(self.c, stream_id, self.endpoint.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        self.check(status)

    def release(self, uint64_t stream_id):
        """Let go of a stream: its record is freed once both directions are done."""
        with nogil:
            endpoint_lock(&self.endpoint.core)
            connection_release(self.c, stream_id, self.endpoint.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        self.endpoint.drain_releases()

    def ping(self):
        """Have the peer acknowledge something."""
        with nogil:
            endpoint_lock(&self.endpoint.core)
            connection_ping(self.c)
            endpoint_unlock(&self.endpoint.core)

    def update_keys(self):
        """Begin a new key phase with the next packet; False if it is too early."""
        cdef bint may
        with nogil:
            endpoint_lock(&self.endpoint.core)
            may = conn_is_alive(self.c) and conn_may_update(self.c)
            if may and conn_update_sealing(self.c) != OK:
                conn_fail(self.c, -1, 0, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)
        return may

    def close(self, str reason="", uint64_t code=0):
        """Close the connection at once and tell the peer.

        Args:
            reason: Text for the peer, of up to 256 bytes.
            code: Application error code.
        """
        cdef bytes text = reason.encode()
        cdef const uint8_t* view = <const uint8_t*> <const char*> text
        cdef size_t size = len(text)
        with nogil:
            endpoint_lock(&self.endpoint.core)
            connection_close(self.c, code, view, size, self.endpoint.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.now)
            endpoint_unlock(&self.endpoint.core)

    def stats(self):
        """Return counters; times in microseconds."""
        cdef Conn* c = self.c
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
        }

    cdef int check(self, int status) except -1:
        """Raise what a verb's status stands for."""
        if status == OK:
            return 0
        if status == CONNECTION_CLOSED:
            self.note_end()
            raise ConnectionClosed(
                initiator="remote" if self.end.initiator == "peer" else "local",
                code=self.end.code, reason=self.end.reason,
                timed_out=self.end.timed_out,
            )
        if status == NO_STREAM:
            raise ValueError("no such stream, or not any more")
        if status == -1:
            raise MemoryError
        raise ValueError("the stream was finished or reset")

    cdef int note_end(self) except -1:
        if self.end is None:
            self.end = ConnectionEnd(
                INITIATORS[self.c.initiator], bool(self.c.close_app),
                self.c.close_code, self.c.close_frame,
                self.c.close_reason[:self.c.close_reason_size].decode(
                    "utf-8", "replace"
                ),
            )
        return 0


# --- For measuring ----------------------------------------------------------------

cdef int serve(EndpointCore* e, uint8_t* body, int64_t now) noexcept nogil:
    """Answer whatever has arrived with what it said; return the streams that ended."""
    cdef Completion done
    cdef Stream* s
    cdef const uint8_t* view = NULL
    cdef size_t size
    cdef int ended = 0
    while endpoint_next_completion(e, &done):
        if done.kind != EVENT_READABLE:
            continue
        s = connection_stream(done.conn, done.stream_id)
        size = streams_peek(s, &view)
        memcpy(body, view, size)
        streams_consume(&done.conn.streams, s, size, now)
        if done.conn.is_client:
            ended += 1
        else:
            connection_send(done.conn, done.stream_id, body, size, True)
        connection_release(done.conn, done.stream_id, now)
        endpoint_touch(e, done.conn, now)
    return ended


cdef size_t carry(
    EndpointCore* source, EndpointCore* target, uint8_t* buffer, int64_t now
) noexcept nogil:
    """Move all that one end has to send to the other; return the datagrams."""
    cdef Address to
    cdef uint8_t ecn = 0
    cdef size_t segment = 0
    cdef size_t count = 0
    cdef size_t size, pos, piece
    while True:
        endpoint_lock(source)
        size = endpoint_poll_transmit(
            source, buffer, DATAGRAM_MAX, &to, &ecn, &segment, now
        )
        endpoint_unlock(source)
        if size == 0:
            return count
        endpoint_lock(target)
        pos = 0
        while pos < size:
            piece = min(segment, size - pos)
            # Each end sees the other at the one address that there is.
            endpoint_receive(target, buffer + pos, piece, &to, ecn, now)
            pos += piece
            count += 1
        endpoint_unlock(target)


def bench_exchange(Connection client, Endpoint server, int count, size_t size=1024):
    """Run echoes of ``size`` bytes, up to 4096, one after the other, without Python.

    Both ends know each other by the same address, and time stands still.

    Returns:
        The exchanges done, and the datagrams they took.
    """
    cdef EndpointCore* near = &client.endpoint.core
    cdef EndpointCore* far = &server.core
    cdef Conn* c = client.c
    cdef uint8_t* buffer = <uint8_t*> malloc(DATAGRAM_MAX)
    cdef uint8_t* body = <uint8_t*> malloc(4096)
    cdef uint64_t id = 0
    cdef int64_t now = client.endpoint.now
    cdef size_t datagrams = 0
    cdef int done = 0
    cdef int _i
    if buffer is NULL or body is NULL or size > 4096:
        free(buffer)
        free(body)
        raise MemoryError
    memset(body, 7, 4096)
    with nogil:
        for _i in range(count):
            now += 100
            endpoint_lock(near)
            if connection_open_stream(c, False, now, &id) == OK:
                connection_send(c, id, body, size, True)
            endpoint_touch(near, c, now)
            endpoint_unlock(near)
            datagrams += carry(near, far, buffer, now)
            endpoint_lock(far)
            serve(far, body, now)
            endpoint_unlock(far)
            datagrams += carry(far, near, buffer, now)
            endpoint_lock(near)
            done += serve(near, body, now)
            endpoint_unlock(near)
    free(buffer)
    free(body)
    return done, datagrams
