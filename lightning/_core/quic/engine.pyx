"""The engine's Python face: endpoints and connections in virtual or real time.

Datagrams, time and randomness come in, datagrams, deadlines and events go out. Times
are seconds here and microseconds below. TLS runs in this module, between calls into the
engine and never under its mutex.
"""

import hashlib
import os
import threading

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

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
    conn_update_sealing, conn_vouch
)
from lightning._core.quic.convert cimport (
    address_from, address_to, end_to, micros, parameters_from, parameters_to, period,
    settings_from, stats_to
)
from lightning._core.quic.endpoint cimport (
    COMPLETION_CLOSED, COMPLETION_CONNECTED, Completion, EndpointStats,
    endpoint_clear, endpoint_connect, endpoint_free, endpoint_has_work, endpoint_init,
    endpoint_is_inherited, endpoint_lock, endpoint_lock_to_read,
    endpoint_next_completion, endpoint_next_deadline, endpoint_next_release,
    endpoint_next_tls, endpoint_poll_transmit, endpoint_receive, endpoint_release,
    endpoint_take_crypto, endpoint_timeout, endpoint_tls_done, endpoint_touch,
    endpoint_trylock, endpoint_unlock, endpoint_unlock_read
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
from lightning._core.quic.trace cimport (
    TRACE_CAPACITY, TRACE_PIECE, Trace, trace_free, trace_new, trace_read, trace_records
)

from lightning._core.quic.events import Event
from lightning._core.quic.keylog import KeyLog
from lightning._core.quic.qlog import QlogWriter
from lightning._core.quic.tls import Tls
from lightning.errors import ConfigError, ConnectionClosed

__all__ = ["Connection", "Endpoint"]

cdef enum:
    DATAGRAM_MAX = 65536
    CRYPTO_PIECE = 16384
    SECRETS_MAX = 8  # of one turn of TLS, which makes two a level
    OWNERS_MAX = 64  # given up at a time


# What TLS made, as C sees it.
cdef struct TlsPiece:
    const uint8_t* data
    size_t size
    int space
    bint sealing
    uint16_t suite


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
            ConfigError: A server without an identity; a place for traces or the key
                log that cannot be written to.
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
        if config.keylog_file is not None:
            self.keylog = KeyLog(config.keylog_file, keylog)
        if config.qlog_dir is not None:
            self.qlog = QlogWriter(config.qlog_dir, config, is_client=is_client)
            self.draining = threading.Lock()
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
        if self.qlog is not None:
            # Freed with the rest.
            self.core.shared.trace = trace_new(&self.core.now, TRACE_CAPACITY)
            if self.core.shared.trace is NULL:
                raise MemoryError

    def __dealloc__(self):
        free(self.scratch)
        cdef void* owner
        if self.core.replies is NULL or endpoint_is_inherited(&self.core):
            return
        # Connections keep their endpoint, so nobody else is left to use it.
        endpoint_clear(&self.core)
        owner = endpoint_next_release(&self.core)
        while owner is not NULL:
            Py_DECREF(<object> owner)
            owner = endpoint_next_release(&self.core)
        endpoint_free(&self.core)

    # --- What a driver calls -------------------------------------------------------

    def connect(self, object address, double now, *, bytes token=b""):
        """Start a connection; its first datagram is ready to be sent.

        Args:
            address: Host (a literal) and port of the server.
            now: The time in seconds.
            token: One that the server gave before, in `Connection.token`. Without,
                the endpoint's own is used, if the server gave it one.

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
        with nogil:
            endpoint_lock(&self.core)
            c = endpoint_connect(&self.core, &remote, data, size, us)
            endpoint_unlock(&self.core)
        if c is NULL:
            raise MemoryError
        connection = self.adopt(c)
        self.run_tls_of(c, connection, us)
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
        cdef bint work
        if size == 0 or size > DATAGRAM_MAX:
            return
        address_from(address, &source)
        with nogil:
            endpoint_lock(&self.core)
            memcpy(self.scratch, &view[0], size)
            endpoint_receive(&self.core, self.scratch, size, &source, ecn & 3, us)
            work = endpoint_has_work(&self.core)
            endpoint_unlock(&self.core)
        if work:
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
            endpoint_lock_to_read(&self.core)
            deadline = endpoint_next_deadline(&self.core)
            endpoint_unlock_read(&self.core)
        return None if deadline == INT64_MAX else deadline / 1e6

    def handle_timeout(self, double now):
        """Do what has come due; then send."""
        cdef int64_t us = micros(now)
        cdef bint work
        with nogil:
            endpoint_lock(&self.core)
            endpoint_timeout(&self.core, us)
            work = endpoint_has_work(&self.core)
            endpoint_unlock(&self.core)
        if work:
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
                if self.qlog is not None:
                    self.drain_trace()
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

    def drain_trace(self):
        """Write what was traced since; at once if nothing is, or another is at it.

        `next_event` does so when there is no event. Whoever asks for none calls this
        after the other calls.
        """
        cdef uint8_t* piece
        cdef size_t size = 0
        cdef size_t total = 0
        cdef uint64_t dropped = 0
        cdef Trace* trace
        if self.qlog is None or not self.draining.acquire(blocking=False):
            return
        piece = <uint8_t*> malloc(TRACE_PIECE)
        try:
            # No more than was there at first, or whoever traces may keep us here.
            while piece is not NULL and total < <size_t> TRACE_CAPACITY:
                with nogil:
                    endpoint_lock(&self.core)
                    trace = self.core.shared.trace
                    if trace is not NULL:
                        size = trace_read(trace, piece, TRACE_PIECE)
                        if trace.taken == trace.written:
                            dropped = trace.dropped
                            trace.dropped = 0
                    endpoint_unlock(&self.core)
                if size == 0:
                    return
                if not self.qlog.write(trace_records(piece, size), dropped):
                    self.stop_trace()
                    return
                total += size
                size = dropped = 0
        finally:
            free(piece)
            self.draining.release()

    @property
    def connections(self):
        """How many connections there are, closing ones included."""
        return self.stats()["connections"]

    @property
    def half_open(self):
        """How many of them are not established."""
        return self.stats()["half_open"]

    def stats(self):
        """Return what there is, and counters of what belonged to no connection."""
        cdef EndpointStats stats
        cdef uint32_t connections, half_open
        cdef uint64_t blocks, streams
        cdef uint32_t sources
        with nogil:
            endpoint_lock_to_read(&self.core)
            stats = self.core.stats
            connections = self.core.shared.connections
            half_open = self.core.shared.half_open
            blocks = self.core.shared.memory.blocks.in_use
            streams = self.core.shared.memory.in_use
            sources = self.core.shared.sources.count
            endpoint_unlock_read(&self.core)
        return {
            **stats, "connections": connections, "half_open": half_open,
            "blocks_in_use": blocks, "streams_in_use": streams,
            "sources": sources,
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
        cdef void* owners[OWNERS_MAX]
        cdef int count = OWNERS_MAX
        cdef int i
        while count == OWNERS_MAX:
            count = 0
            with nogil:
                endpoint_lock(&self.core)
                while count < OWNERS_MAX:
                    owners[count] = endpoint_next_release(&self.core)
                    if owners[count] is NULL:
                        break
                    count += 1
                endpoint_unlock(&self.core)
            for i in range(count):
                Py_DECREF(<object> owners[i])
        return 0

    cdef int stop_trace(self) except -1:
        cdef Trace* trace
        self.qlog = None
        with nogil:
            endpoint_lock(&self.core)
            trace = self.core.shared.trace
            self.core.shared.trace = NULL
            endpoint_unlock(&self.core)
        trace_free(trace)
        return 0

    cdef int run_tls(self, int64_t now) except -1:
        """Run TLS wherever CRYPTO bytes have come, without the mutex."""
        cdef Conn* c
        cdef Connection connection
        while True:
            with nogil:
                endpoint_lock(&self.core)
                c = endpoint_next_tls(&self.core)
                endpoint_unlock(&self.core)
            if c is NULL:
                return 0
            connection = self.conns.get(c.number)
            if connection is None:
                # Nobody else makes it: the connection is ours until TLS is done.
                with nogil:
                    endpoint_lock(&self.core)
                    conn_ref(c)
                    endpoint_unlock(&self.core)
                connection = self.adopt(c)
            self.run_tls_of(c, connection, now)

    cdef int run_tls_of(self, Conn* c, Connection connection, int64_t now) except -1:
        try:
            self.drive_tls(c, connection, now)
        finally:
            with nogil:
                endpoint_lock(&self.core)
                endpoint_tls_done(&self.core, c, now)
                endpoint_unlock(&self.core)
        return 0

    cdef int drive_tls(self, Conn* c, Connection connection, int64_t now) except -1:
        cdef uint8_t* piece
        cdef size_t size
        cdef int space
        if connection.tls is None:
            connection.tls = Tls(
                self.config, self.is_client, self.identity,
                parameters_to(c, self.config, self.random(8)), self.keylog,
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

    cdef int apply(
        self, Conn* c, Connection connection, object output, int64_t now
    ) except -1:
        """Take over what TLS made.

        All at once: packets that other threads receive find nothing half done.
        """
        cdef TlsPiece secrets[SECRETS_MAX]
        cdef TlsPiece data[SPACE_COUNT]
        cdef PeerParameters parameters
        cdef bytes made, reason = b""
        cdef int secret_count = 0
        cdef int data_count = 0
        cdef int status = OK
        cdef int i
        cdef bint has_parameters = output.parameters is not None
        cdef bint complete = output.complete
        cdef uint64_t code = 0
        cdef const uint8_t* view
        cdef size_t size
        # The output keeps the bytes.
        for space, sealing, suite, made in output.secrets[:SECRETS_MAX]:
            secrets[secret_count] = TlsPiece(
                <const uint8_t*> <const char*> made, len(made), space, sealing, suite
            )
            secret_count += 1
        for space, made in output.data[:SPACE_COUNT]:
            data[data_count] = TlsPiece(
                <const uint8_t*> <const char*> made, len(made), space, False, 0
            )
            data_count += 1
        if has_parameters:
            parameters_from(output.parameters, &parameters)
        if complete:
            connection.certificate = connection.tls.certificate
            connection.suite = connection.tls.suite
        if output.error is not None:
            code = output.error.code
            reason = output.error.reason.encode()
        view = <const uint8_t*> <const char*> reason
        size = len(reason)
        with nogil:
            endpoint_lock(&self.core)
            # Before the keys of packets to which they apply.
            if has_parameters and conn_is_alive(c):
                status = connection_set_parameters(c, &parameters)
            for i in range(secret_count):
                if conn_is_alive(c):
                    keep_first(&status, conn_install(
                        c, secrets[i].space, secrets[i].sealing, secrets[i].suite,
                        secrets[i].data, secrets[i].size
                    ))
            for i in range(data_count):
                if conn_is_alive(c) and not c.discarded[data[i].space]:
                    keep_first(&status, sendbuf_append(
                        &c.crypto_out[data[i].space], data[i].data, data[i].size
                    ))
            if conn_is_alive(c):
                if code:
                    # The frame was CRYPTO.
                    conn_close_local(c, False, code, 6, view, size, self.core.now)
                elif status == OK and complete:
                    status = conn_complete(c, self.core.now)
                if status != OK:
                    conn_fail(c, status, 6, self.core.now)
                conn_list(c, CONNS_SEND)
            endpoint_touch(&self.core, c, self.core.now)
            endpoint_unlock(&self.core)
        return 0


cdef inline void keep_first(int* status, int another) noexcept nogil:
    if status[0] == OK:
        status[0] = another


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
        if self.c is not NULL and not endpoint_is_inherited(&self.endpoint.core):
            with nogil:
                endpoint_lock(&self.endpoint.core)
                endpoint_release(&self.endpoint.core, self.c)
                endpoint_unlock(&self.endpoint.core)

    @property
    def address(self):
        """Where the peer is now."""
        cdef Address remote
        # Asked at each request: who waits here waits for the GIL, too.
        if endpoint_trylock(&self.endpoint.core):
            remote = self.c.paths[self.c.path].remote
            endpoint_unlock(&self.endpoint.core)
        else:
            with nogil:
                endpoint_lock_to_read(&self.endpoint.core)
                remote = self.c.paths[self.c.path].remote
                endpoint_unlock_read(&self.endpoint.core)
        cdef bytes key = (<char*> &remote)[:sizeof(Address) - sizeof(remote.local)]
        if self.told is None or self.told[0] != key:
            self.told = key, address_to(&remote)
        return self.told[1]

    @property
    def is_connected(self):
        """Whether the handshake is complete and the connection alive."""
        cdef bint connected
        with nogil:
            endpoint_lock_to_read(&self.endpoint.core)
            connected = self.c.state == CONN_OPEN
            endpoint_unlock_read(&self.endpoint.core)
        return connected

    @property
    def is_confirmed(self):
        """Whether the peer is known to have completed the handshake too."""
        cdef bint confirmed
        with nogil:
            endpoint_lock_to_read(&self.endpoint.core)
            confirmed = self.c.confirmed
            endpoint_unlock_read(&self.endpoint.core)
        return confirmed

    @property
    def token(self):
        """What the server gave for the next connection to it; empty if nothing."""
        cdef uint8_t* copy
        cdef size_t size
        cdef bytes token
        with nogil:
            endpoint_lock_to_read(&self.endpoint.core)
            size = self.c.new_token_size
            copy = <uint8_t*> malloc(size + 1)
            if copy is not NULL and size:
                memcpy(copy, self.c.new_token, size)
            endpoint_unlock_read(&self.endpoint.core)
        if copy is NULL:
            raise MemoryError
        token = PyBytes_FromStringAndSize(<const char*> copy, size)
        free(copy)
        return token

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
                self.c, unidirectional, self.endpoint.core.now, &id
            )
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
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
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
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
                    streams_consume(&self.c.streams, s, size, self.endpoint.core.now)
                    total += size
                if capacity == 0 and s.recv.next == s.recv.final_size:
                    streams_consume(&self.c.streams, s, 0, self.endpoint.core.now)
                if conn_is_alive(self.c):
                    conn_list(self.c, CONNS_SEND)
                endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
            endpoint_unlock(&self.endpoint.core)
        result = PyBytes_FromStringAndSize(<const char*> copy, total) if total else b""
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
            status = connection_stop(self.c, stream_id, code, self.endpoint.core.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
            endpoint_unlock(&self.endpoint.core)
        self.check(status)

    def reset(self, uint64_t stream_id, uint64_t code=0):
        """Give up sending on a stream; what was not acknowledged is lost."""
        cdef int status
        with nogil:
            endpoint_lock(&self.endpoint.core)
            status = connection_reset(self.c, stream_id, code)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
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
            status = connection_resume(self.c, stream_id, self.endpoint.core.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
            endpoint_unlock(&self.endpoint.core)
        self.check(status)

    def release(self, uint64_t stream_id):
        """Let go of a stream: its record is freed once both directions are done."""
        with nogil:
            endpoint_lock(&self.endpoint.core)
            connection_release(self.c, stream_id, self.endpoint.core.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
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
                conn_fail(self.c, -1, 0, self.endpoint.core.now)
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
            connection_close(self.c, code, view, size, self.endpoint.core.now)
            endpoint_touch(&self.endpoint.core, self.c, self.endpoint.core.now)
            endpoint_unlock(&self.endpoint.core)

    def vouch(self):
        """Say that the peer is known: it is no stranger of its source any more."""
        with nogil:
            endpoint_lock(&self.endpoint.core)
            conn_vouch(self.c)
            endpoint_unlock(&self.endpoint.core)

    def stats(self, now=None):
        """Return counters; times in microseconds. Any thread may ask.

        Args:
            now: The time in seconds; None is that of the endpoint's last call.
        """
        cdef Conn c
        cdef int64_t us = self.look(&c)
        if now is not None:
            us = micros(now)
        return stats_to(&c, us)

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
        cdef Conn c
        if self.end is None:
            self.look(&c)
            self.end = end_to(&c)
        return 0

    cdef int64_t look(self, Conn* out) noexcept:
        """Copy the record, to be read in peace; what it points to is another's.

        Returns the time of the endpoint's last call.
        """
        cdef int64_t now
        with nogil:
            endpoint_lock_to_read(&self.endpoint.core)
            out[0] = self.c[0]
            now = self.endpoint.core.now
            endpoint_unlock_read(&self.endpoint.core)
        return now
