"""Between the engine of one socket and Python: steps, completions, verbs.

A `Driver` belongs to one thread; its pump's own thread only moves datagrams. What the
engine has to say is taken from it in batches, under its mutex and without the GIL, and
handed on after. Other threads may call `Driver.serve` and `Driver.yield_lead`, and of
its links what `links` says.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lightning._core.io.base cimport DriverBase
from lightning._core.io.desk cimport (
    Tally, Waiter, desk_expire, desk_free, desk_init, desk_next_ready, desk_sift,
    desk_take_roused, load32, request_free
)
from lightning._core.io.links cimport Link, ServerExchange, finish_calls
from lightning._core.io.pump cimport (
    WAIT_INTERRUPTED, pump_acknowledge, pump_attend, pump_clock, pump_close,
    pump_deadline, pump_dismiss, pump_flush, pump_is_overrun, pump_linger, pump_open,
    pump_pass, pump_rouse, pump_start, pump_stats, pump_summon, pump_wait
)
from lightning._core.io.udp cimport UDP_NO_GSO, UdpSocket
from lightning._core.quic.connection cimport connection_stream
from lightning._core.quic.connstate cimport CONNS_SEND, conn_is_alive, conn_list
from lightning._core.quic.convert cimport address_from
from lightning._core.quic.endpoint cimport (
    COMPLETION_CLOSED, COMPLETION_CONNECTED, endpoint_lock, endpoint_next_completion,
    endpoint_release, endpoint_touch, endpoint_unlock
)
from lightning._core.quic.engine cimport Connection as Engine
from lightning._core.quic.engine cimport Endpoint
from lightning._core.quic.gate cimport gate_host, gate_replace
from lightning._core.quic.paths cimport Address
from lightning._core.quic.streams cimport (
    stream_is_at_end, streams_consume, streams_peek, streams_resume
)
from lightning._core.quic.streamtable cimport (
    EVENT_OPENABLE, EVENT_OPENED, EVENT_READABLE, EVENT_RESET, EVENT_STOPPED,
    EVENT_WRITABLE, Stream
)
from lightning._core.wire.framing cimport SYNAPSE_PACKET
from lightning._core.wire.messages cimport decode_raw

from lightning.errors import DecodeError

cdef extern from "unistd.h" nogil:
    int usleep(unsigned int micros)

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept
    int PyErr_CheckSignals() except -1

__all__ = ["Driver"]


cdef enum: SERVED_A_FLUSH = 16


@cython.final
@cython.auto_pickle(False)
cdef class Driver(DriverBase):
    """One UDP socket and the engine's endpoint on it.

    Args:
        endpoint: The engine.
        fd: A bound, non-blocking UDP socket, which belongs to the driver from now on.
        on_unsent: Called without arguments when something waits for `flush`.
        accept: For a server: makes the `Link` of each new connection. It is called
            with the engine's connection before the handshake is complete.
        gso: Whether the kernel may cut up what is sent.
        owned: Whether the owner steps it (`attend`). False leaves that to the threads
            that wait in it and to the pump's; the owner is notified of the rest.
        on_busy: Called without arguments when requests wait for `serve`.

    Raises:
        OSError: The system refuses; the socket stays the caller's.
    """

    def __cinit__(self, *args, **kwargs):
        self.links = {}

    def __init__(
        self, Endpoint endpoint not None, int fd, on_unsent, accept=None,
        *, bint gso=True, bint owned=True, on_busy=None,
    ):
        cdef int status
        if self.is_open:
            raise RuntimeError("a driver cannot be initialised twice")
        self.endpoint = endpoint
        self.accept = accept
        self.on_unsent = on_unsent
        self.on_busy = on_busy
        self.is_owned = owned
        self.owner = PyThread_get_thread_ident()
        desk_init(&self.desk, &endpoint.core)
        status = pump_open(
            &self.pump, &endpoint.core, &self.desk, fd, 0 if gso else UDP_NO_GSO, owned
        )
        if status != 0:
            raise OSError(-status, os.strerror(-status))
        self.is_open = True
        # A client's owner has its first datagram to send before anybody can stand in.
        if accept is not None or not owned:
            self.start()

    cdef void start(self) noexcept:
        self.has_tried = True
        # It works without, too: only nobody stands in.
        self.has_thread = pump_start(&self.pump) == 0

    def __dealloc__(self):
        if self.endpoint is None:
            return
        self.shut()
        if not self.inherited():
            desk_free(&self.desk)

    def close(self):
        """Stop the thread and close the socket; what is not sent is lost.

        In the child of a fork this closes its copies, and the parent goes on.
        """
        if self.inherited():
            self.shut()
        else:
            if self.is_open:
                for link in self.links_alive:
                    (<Link> link).hang_up()
            self.shut()
            self.endpoint.drain_trace()
        self.links.clear()
        self.accept = self.on_unsent = self.on_busy = None

    cdef int shut(self) except -1:
        cdef bint join
        if not self.is_open:
            return 0
        self.is_open = False
        # A forked child has no thread to wait for.
        join = not self.inherited()
        if join:
            with nogil:
                pump_dismiss(&self.pump)
            while self.users:
                with nogil:
                    pump_dismiss(&self.pump)
                    usleep(100)
        with nogil:
            pump_close(&self.pump, join)
        return 0

    @property
    def is_closed(self):
        """Whether `close` was called."""
        return not self.is_open

    @property
    def is_inherited(self):
        """Whether it was made before a fork, by the parent of this process."""
        return self.inherited()

    @property
    def notify_fd(self):
        """A file descriptor that is readable when `notified` is to be called."""
        return self.pump.notify_fd

    def fileno(self):
        """Return the socket's file descriptor; call `attend` when it is readable."""
        return self.pump.socket.fd

    @property
    def links_alive(self):
        """The links of the connections that are there, as a list."""
        return list(self.links.values())

    # --- Moving along ---------------------------------------------------------------

    def attend(self):
        """Receive, run what is due, send, and hand on what has happened."""
        if self.inherited():
            return  # It runs its parent's event loop, but these are not its datagrams.
        self.check_open()
        with nogil:
            pump_attend(&self.pump)
        self.deliver()

    def notified(self):
        """Do as `attend` when the thread has work for Python."""
        if self.inherited():
            return
        self.check_open()
        with nogil:
            pump_acknowledge(&self.pump)
            pump_attend(&self.pump)
        self.deliver()

    def flush(self, bint linger=False):
        """Send what waits.

        Args:
            linger: Whether the owner may then look at the socket for a moment, where
                the next datagram is all that it waits for and mostly comes soon.
        """
        cdef bint has_work
        cdef bint came = False
        self.is_unsent = False
        if not self.is_open or self.inherited():
            return
        if linger:
            # One caller, or one that was answered: others are not to be held up.
            linger = self.owed == 0 and load32(&self.desk.calls) + self.begun == 1
            self.begun = 0
        with nogil:
            has_work = pump_flush(&self.pump)
            if linger and not has_work and pump_linger(&self.pump):
                came = True
                pump_attend(&self.pump)
        if not self.has_tried:
            self.start()
        if came:
            self.deliver()
            return
        # What the system would not send may have ended a dial.
        if has_work:
            self.deliver()
        else:
            self.endpoint.drain_releases()
            if self.endpoint.qlog is not None:
                self.endpoint.drain_trace()

    def took_answers(self):
        """Say if futures were given results since this was last asked."""
        cdef bint answered = self.answered
        self.answered = False
        return answered

    def deadline(self):
        """Return when to attend next, in seconds of time.monotonic(); None is never."""
        cdef int64_t deadline
        if self.inherited():
            return None
        self.check_open()
        with nogil:
            deadline = pump_deadline(&self.pump)
        return None if deadline == INT64_MAX else deadline / 1e6

    def connect(self, address, Link link not None, bytes token=b""):
        """Begin a connection, whose link is made already; `flush` sends.

        Args:
            address: Literal host and port of the server.
            link: Is told of all that happens.
            token: One that the server gave before.
        """
        cdef Engine engine
        self.check_open()
        engine = self.endpoint.connect(address, pump_clock() / 1e6, token=token)
        link.bind(self, engine)
        self.mark()

    def serve(self, handle):
        """Run requests in this thread until the driver is closed.

        Several threads may. Requests are handed to one of them, in order, until it
        calls `yield_lead`.

        Args:
            handle: Called with ``(link, exchange, type, payload)``, see `Link`; must
                not raise.
        """
        cdef Waiter waiter
        cdef Request* r
        cdef int served
        cdef int result
        memset(&waiter, 0, sizeof(Waiter))
        while self.is_open:
            self.enter()
            with nogil:
                pump_flush(&self.pump)
                result = pump_wait(&self.pump, &waiter, True, INT64_MAX)
            self.leave()
            if self.refers:
                self.endpoint.drain_releases()
            if self.endpoint.qlog is not None:
                self.endpoint.drain_trace()
            if result == WAIT_INTERRUPTED:
                PyErr_CheckSignals()
            served = 0
            while self.is_open:
                r = desk_next_ready(&self.desk)
                if r is NULL:
                    break
                self.begin_request(r, handle)
                served += 1
                if served % SERVED_A_FLUSH == 0 and self.is_open:
                    # However many wait, those that are answered do not.
                    self.enter()
                    with nogil:
                        pump_flush(&self.pump)
                    self.leave()

    def yield_lead(self):
        """Have another thread serve; for one that will be busy.

        Returns:
            False if there is no other one free.
        """
        cdef bint passed
        if not self.is_open:
            return True
        self.enter()
        with nogil:
            # What was answered until now need not wait.
            pump_flush(&self.pump)
            passed = pump_pass(&self.pump)
        self.leave()
        return passed

    def expire(self, double before):
        """Give up on requests that are not complete, and return how many.

        Args:
            before: Seconds of time.monotonic(); what began later goes on.
        """
        cdef uint32_t count
        with nogil:
            endpoint_lock(&self.endpoint.core)
            count = desk_expire(&self.desk, <int64_t> (before * 1e6), pump_clock())
            endpoint_unlock(&self.endpoint.core)
        if count:
            self.mark()
        self.endpoint.drain_releases()
        return count

    def set_sources(self, hosts):
        """Let only some hosts begin connections; what is established goes on.

        Args:
            hosts: IP addresses as texts; None lets everybody.

        Raises:
            ValueError: A text is no IP address.
        """
        cdef Address address
        cdef uint8_t[17] host
        cdef set packed = set()
        cdef bytes joined
        cdef uint8_t* data = NULL
        cdef uint8_t* before
        cdef bint enforces = hosts is not None
        cdef uint32_t count
        for text in hosts or ():
            address_from((text, 0), &address)
            gate_host(&address, host)
            packed.add((<const char*> host)[:17])
        joined = b"".join(sorted(packed))
        count = len(packed)
        if count:
            data = <uint8_t*> malloc(len(joined))
            if data is NULL:
                raise MemoryError
            memcpy(data, <const char*> joined, len(joined))
        with nogil:
            endpoint_lock(&self.endpoint.core)
            before = gate_replace(&self.endpoint.core.gate, enforces, data, count)
            endpoint_unlock(&self.endpoint.core)
        free(before)

    def set_open(self, bint is_open):
        """Let connections begin, or none for now; what is established goes on."""
        with nogil:
            endpoint_lock(&self.endpoint.core)
            self.endpoint.core.gate.is_shut = not is_open
            endpoint_unlock(&self.endpoint.core)

    def deliver(self):
        """Run TLS and hand on completions until there are none."""
        cdef int64_t now
        cdef int count, i
        cdef bint has_work
        if self.delivering:
            return  # From within: whoever is at it goes on.
        self.delivering = True
        try:
            while True:
                now = pump_clock()
                self.endpoint.run_tls(now)
                if len(self.endpoint.conns) != len(self.links):
                    self.adopt_new()
                with nogil:
                    count = self.collect()
                if self.some_ended:
                    finish_calls(self)
                if load32(&self.desk.ready):
                    if self.is_owned:
                        self.begin_requests()
                    else:
                        with nogil:
                            pump_summon(&self.pump)
                        if pump_is_overrun(&self.pump) and self.on_busy is not None:
                            self.on_busy()
                if count == 0:
                    if not self.is_open:
                        break
                    self.is_unsent = False
                    with nogil:
                        has_work = pump_flush(&self.pump)
                    if has_work:
                        continue
                    break
                i = 0
                try:
                    while i < count:
                        i += 1
                        self.hand_over(&self.deliveries[i - 1], now)
                finally:
                    while i < count:
                        free(self.deliveries[i].data)
                        i += 1
        finally:
            self.delivering = self.is_unsent = False
        self.endpoint.drain_releases()
        if self.endpoint.qlog is not None:
            self.endpoint.drain_trace()

    cdef int begin_requests(self) except -1:
        cdef Request* r = desk_next_ready(&self.desk)
        while r is not NULL:
            self.begin_request(r, None)
            r = desk_next_ready(&self.desk) if self.is_open else NULL
        return 0

    cdef int begin_request(self, Request* r, object handle) except -1:
        """Hand a complete request on, to a thread of `serve` or to the owner."""
        cdef Link link = self.links.get(r.number)
        cdef ServerExchange exchange = None
        cdef int kind = r.frame.header[0]
        cdef object payload = None
        self.begun += 1
        try:
            if link is None:
                return 0
            if r.stream_id in link.gone:
                link.gone.discard(r.stream_id)
                return 0
            if kind == SYNAPSE_PACKET:
                try:
                    payload = decode_raw(kind, r.frame.data, r.frame.length)
                except DecodeError as error:
                    payload = error
            else:
                payload = PyBytes_FromStringAndSize(
                    <const char*> r.frame.data, r.frame.length
                )
            exchange = ServerExchange.__new__(ServerExchange)
            exchange.link = link
            exchange.stream_id = r.stream_id
            exchange.started_at = r.began / 1e6
            link.answering[r.stream_id] = exchange
            self.owed += 1
        finally:
            request_free(r)
        try:
            if handle is None:
                link.on_request(link, exchange, kind, payload)
            else:
                exchange.batched = True
                handle(link, exchange, kind, payload)
                exchange.batched = False
        except Exception as error:
            link.on_failure(error)
        return 0

    cdef int adopt_new(self) except -1:
        """Make links for what peers began, and forget what ended without TLS."""
        cdef Link link
        for number, engine in list(self.endpoint.conns.items()):
            if number not in self.links and self.accept is not None:
                link = self.accept(engine)
                link.bind(self, engine)
        return 0

    cdef int collect(self) noexcept nogil:
        """Take completions, with the bytes of streams."""
        cdef Delivery* d
        cdef Stream* s
        cdef size_t size
        cdef int count = 0
        cdef bint is_full = False
        cdef int64_t now = pump_clock()
        cdef Waiter* roused
        endpoint_lock(&self.endpoint.core)
        # Packets that had waited for keys were read when TLS had them.
        desk_sift(&self.desk, now)
        roused = desk_take_roused(&self.desk)
        self.some_ended = self.desk.ended_first is not NULL
        while count < DELIVERIES and not is_full:
            d = &self.deliveries[count]
            if not endpoint_next_completion(&self.endpoint.core, &d.done):
                break
            count += 1
            d.data = NULL
            d.size = 0
            d.fin = False
            if d.done.kind != EVENT_READABLE:
                continue
            s = connection_stream(d.done.conn, d.done.stream_id)
            if s is NULL or s.paused:
                count -= 1  # `resume` has it told again.
                continue
            size = min(<size_t> s.recv.buffered, <size_t> PIECE)
            d.data = <uint8_t*> malloc(size + 1)
            while d.data is not NULL and take(d, s, size, now):
                pass
            if s.recv.buffered == 0 and s.recv.next == s.recv.final_size:
                streams_consume(&d.done.conn.streams, s, 0, now)
            elif s.recv.buffered:
                # The rest's turn comes when this is handed on, which may pause it.
                streams_resume(&d.done.conn.streams, s, now)
                is_full = True
            d.fin = stream_is_at_end(s)
            if conn_is_alive(d.done.conn):
                conn_list(d.done.conn, CONNS_SEND)  # The window may have opened.
            endpoint_touch(&self.endpoint.core, d.done.conn, now)
        endpoint_unlock(&self.endpoint.core)
        pump_rouse(&self.pump, roused)
        return count

    cdef int hand_over(self, Delivery* d, int64_t now) except -1:
        cdef Link link = self.links.get(d.done.number)
        cdef bytes data
        cdef uint64_t stream_id = d.done.stream_id
        cdef uint64_t code = d.done.code
        cdef int kind = d.done.kind
        cdef Engine engine = None
        if kind == COMPLETION_CLOSED:
            engine = self.endpoint.conns.pop(d.done.number, None)
            self.links.pop(d.done.number, None)
            if engine is not None:
                engine.note_end()
            with nogil:
                endpoint_lock(&self.endpoint.core)
                endpoint_release(&self.endpoint.core, d.done.conn)
                endpoint_unlock(&self.endpoint.core)
        try:
            if link is None:
                return 0
            if kind == EVENT_READABLE:
                if d.data is NULL:
                    raise MemoryError
                data = PyBytes_FromStringAndSize(<const char*> d.data, d.size)
                link.exchanges.stream_data(stream_id, data, d.fin)
            elif kind == EVENT_OPENED:
                # A server's are its desk's; a client expects none.
                link.release(stream_id)
            elif kind == EVENT_RESET:
                link.exchanges.stream_reset(stream_id, code)
            elif kind == EVENT_STOPPED:
                if stream_id in link.answering:
                    (<ServerExchange> link.answering[stream_id]).cancel()
                elif link.serves:
                    link.give_up(stream_id)
                else:
                    link.exchanges.stop_sending(stream_id, code)
            elif kind == EVENT_OPENABLE:
                link.exchanges.pump()
            elif kind == EVENT_WRITABLE:
                link.on_writable(stream_id)
            elif kind == COMPLETION_CONNECTED:
                link.on_connected()
            elif kind == COMPLETION_CLOSED:
                link.held_back.clear()
                link.over.clear()
                link.waiting.clear()
                link.on_closed_by(engine.end)
                link.hang_up()
        except Exception as error:
            # The bytes are a stranger's, whatever they did.
            link.on_failure(error)
        finally:
            free(d.data)
            d.data = NULL
        return 0

    def stats(self):
        """Return counters: of the socket, who moved its datagrams, and exchanges."""
        cdef UdpSocket udp
        cdef uint64_t attended = 0
        cdef uint64_t stand_ins = 0
        cdef Tally tally
        cdef uint64_t begun = 0
        cdef uint64_t failed = 0
        cdef Link link
        self.check_open()
        for link in self.links_alive:
            if not link.is_summed:
                begun += link.exchanges.begun
                failed += link.exchanges.failed
        with nogil:
            pump_stats(&self.pump, &udp, &attended, &stand_ins)
            endpoint_lock(&self.endpoint.core)
            tally = self.desk.tally
            endpoint_unlock(&self.endpoint.core)
        return {
            "received": udp.received,
            "sent": udp.sent,
            "receive_calls": udp.receive_calls,
            "send_calls": udp.send_calls,
            "not_sent": udp.not_sent,
            "gso": bool(udp.gso),
            "gro": bool(udp.gro),
            "plain": bool(udp.plain),
            "receive_buffer": udp.receive_buffer,
            "send_buffer": udp.send_buffer,
            "attended": attended,
            "stand_ins": stand_ins,
            "lingered": self.pump.lingered,
            "requests": begun + tally.begun,
            "failures": failed + tally.failed,
        }

    @property
    def latencies(self):
        """How long answers took, as `Link.latencies`, on all connections ever."""
        cdef Tally tally
        with nogil:
            endpoint_lock(&self.endpoint.core)
            tally = self.desk.tally
            endpoint_unlock(&self.endpoint.core)
        return tuple(tally.latencies)


cdef size_t take(Delivery* d, Stream* s, size_t capacity, int64_t now) noexcept nogil:
    """Copy out what is next of a stream, and let the peer send more."""
    cdef const uint8_t* view = NULL
    cdef size_t size = min(streams_peek(s, &view), capacity - d.size)
    if size:
        memcpy(d.data + d.size, view, size)
        d.size += size
        streams_consume(&d.done.conn.streams, s, size, now)
    return size
