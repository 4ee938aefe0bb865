"""Between the engine of one socket and Python: steps, completions, verbs.

A `Driver` belongs to one thread; its pump's own thread only moves datagrams. What the
engine has to say is taken from it in batches, under its mutex and without the GIL, and
handed on after. Three things may be done in any thread: `Link.ask`, `Driver.serve` and
`ServerExchange.respond`, with which threads ask and answer without the owner.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lightning._core.io.desk cimport (
    CALL_ANSWERED, CALL_BAD_TYPE, CALL_CANCELLED, CALL_ENDED_EARLY, CALL_LOST,
    CALL_NO_MEMORY, CALL_REFUSED, CALL_RESET, CALL_TOO_LARGE, WAITER_DONE, Waiter,
    desk_call, desk_cancel, desk_close, desk_count, desk_expire, desk_free, desk_init,
    desk_next_ended, desk_next_ready, desk_open, desk_respond, desk_take_roused,
    desk_sift, frame_free, request_free, waiter_sleep
)
from lightning._core.io.pump cimport (
    WAIT_INTERRUPTED, WAIT_TIMEOUT, pump_acknowledge, pump_attend, pump_clock, pump_close, pump_deadline, pump_flush,
    pump_dismiss, pump_open, pump_pass, pump_rouse, pump_start, pump_stats, pump_wait
)
from lightning._core.io.udp cimport UDP_NO_GSO, UdpSocket
from lightning._core.quic.buffer cimport OK
from lightning._core.quic.connection cimport (
    connection_close, connection_open_stream, connection_pause, connection_refer,
    connection_release, connection_reset, connection_resume, connection_send,
    connection_stop, connection_stream, CONNECTION_CLOSED
)
from lightning._core.quic.connstate cimport CONNS_SEND, Conn, conn_is_alive, conn_list
from lightning._core.quic.convert cimport address_from
from lightning._core.quic.endpoint cimport (
    COMPLETION_CLOSED, COMPLETION_CONNECTED, endpoint_lock, endpoint_next_completion,
    endpoint_release, endpoint_touch, endpoint_trylock, endpoint_unlock
)
from lightning._core.quic.gate cimport gate_host, gate_replace
from lightning._core.quic.paths cimport Address
from lightning._core.quic.sendbuf cimport SEND_COPY_MAX
from lightning._core.quic.streams cimport (
    STREAMS_FULL, STREAMS_LIMIT, stream_is_at_end, streams_consume, streams_peek,
    streams_resume
)
from lightning._core.quic.streamsend cimport send_has_room
from lightning._core.quic.streamtable cimport (
    EVENT_OPENABLE, EVENT_OPENED, EVENT_READABLE, EVENT_RESET, EVENT_STOPPED,
    EVENT_WRITABLE, LIST_WAITING, Stream, list_push
)

from lightning._core.wire.framing cimport HEADER_SIZE
from lightning._core.wire.messages cimport Message, decode_raw

from lightning.errors import (
    ConnectionClosed,
    FrameTooLarge,
    RequestTimeout,
    StreamClosedEarly,
    StreamReset,
    UnknownMessageType,
)

cdef extern from "unistd.h" nogil:
    int usleep(unsigned int micros)
    int os_getpid "getpid"()

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept
    int PyErr_CheckSignals() except -1

cdef enum:
    # Microseconds after which a waiting main thread looks for what stands for a
    # signal without being one, such as `_thread.interrupt_main`.
    LOOK = 100_000
    ENDED = 64  # calls taken from the desk at a time

OWN_THREAD = (
    "a blocking call from the I/O thread would wait for itself: make it from another "
    "thread, or use the asyncio face"
)
FORKED = (
    "this object was made before a fork and cannot be used in the child: make a new "
    "one there"
)

__all__ = ["Call", "Driver", "Link", "ServerExchange"]


@cython.final
@cython.auto_pickle(False)
cdef class Driver:
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
        self.pid = os.getpid()
        desk_init(&self.desk, &endpoint.core)
        status = pump_open(
            &self.pump, &endpoint.core, &self.desk, fd, 0 if gso else UDP_NO_GSO, owned
        )
        if status != 0:
            raise OSError(-status, os.strerror(-status))
        self.is_open = True
        status = pump_start(&self.pump)
        # It works without, too: only nobody stands in.
        self.has_thread = status == 0

    def __dealloc__(self):
        self.shut()
        desk_free(&self.desk)

    def close(self):
        """Stop the thread and close the socket; what is not sent is lost."""
        if self.is_open and os.getpid() == self.pid:
            for link in self.links_alive:
                (<Link> link).hang_up()
        self.shut()
        # A forked child has copies of records that are its parent's to write.
        if os.getpid() == self.pid:
            self.endpoint.drain_trace()
        self.links.clear()
        self.accept = self.on_unsent = self.on_busy = None

    cdef int shut(self) except -1:
        cdef bint join
        if not self.is_open:
            return 0
        self.is_open = False
        # A forked child has no thread to wait for.
        join = os.getpid() == self.pid
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

    cdef int enter(self) except -1:
        """Keep the pump there while this thread is in it."""
        self.check_open()
        if os_getpid() != self.pid:
            raise RuntimeError(FORKED)
        self.users += 1
        return 0

    cdef int leave(self) except -1:
        self.users -= 1
        return 0

    cdef int check_open(self) except -1:
        if not self.is_open:
            raise RuntimeError("the driver is closed")
        return 0

    @property
    def is_closed(self):
        """Whether `close` was called."""
        return not self.is_open

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
        self.check_open()
        with nogil:
            pump_attend(&self.pump)
        self.deliver()

    def notified(self):
        """Do as `attend` when the thread has work for Python."""
        self.check_open()
        with nogil:
            pump_acknowledge(&self.pump)
            pump_attend(&self.pump)
        self.deliver()

    def flush(self):
        """Send what waits."""
        cdef bint has_work
        self.is_unsent = False
        if not self.is_open:
            return
        with nogil:
            has_work = pump_flush(&self.pump)
        # What the system would not send may have ended a dial.
        if has_work:
            self.deliver()
        else:
            self.endpoint.drain_releases()
            if self.endpoint.qlog is not None:
                self.endpoint.drain_trace()

    def deadline(self):
        """Return when to attend next, in seconds of time.monotonic(); None is never."""
        cdef int64_t deadline
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
            handle: Called with ``(link, exchange, type, payload)``; must not raise.
        """
        cdef Waiter waiter
        cdef Request* r
        cdef int result
        memset(&waiter, 0, sizeof(Waiter))
        while self.is_open:
            self.enter()
            with nogil:
                pump_flush(&self.pump)
                result = pump_wait(&self.pump, &waiter, True, INT64_MAX)
            self.leave()
            if result == WAIT_INTERRUPTED:
                PyErr_CheckSignals()
            while self.is_open:
                r = desk_next_ready(&self.desk)
                if r is NULL:
                    break
                self.begin_request(r, handle)

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
                if self.desk.ended_first is not NULL:
                    self.finish_calls()
                if self.desk.ready:
                    if self.is_owned:
                        self.begin_requests()
                    elif self.on_busy is not None:
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

    cdef int finish_calls(self) except -1:
        """Wake who awaits an answer."""
        cdef CallRecord* ended[ENDED]
        cdef int count = ENDED
        cdef int i
        cdef Call call
        while count == ENDED:
            count = 0
            with nogil:
                endpoint_lock(&self.endpoint.core)
                while count < ENDED:
                    ended[count] = desk_next_ended(&self.desk)
                    if ended[count] is NULL:
                        break
                    count += 1
                endpoint_unlock(&self.endpoint.core)
            for i in range(count):
                call = <Call> ended[i].user
                Py_DECREF(call)  # The desk's.
                if not call.future.done():
                    call.future.set_result(call)
        return 0

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
        cdef bytes payload = None
        try:
            if link is None:
                return 0
            payload = PyBytes_FromStringAndSize(
                <const char*> r.frame.data, r.frame.length
            )
            exchange = ServerExchange.__new__(ServerExchange)
            exchange.link = link
            exchange.stream_id = r.stream_id
            exchange.started_at = r.began / 1e6
            link.answering[r.stream_id] = exchange
        finally:
            request_free(r)
        try:
            if handle is None:
                link.on_request(exchange, kind, payload)
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
        endpoint_lock(&self.endpoint.core)
        # Packets that had waited for keys were read when TLS had them.
        desk_sift(&self.desk, now)
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

    cdef int mark(self) except -1:
        """Have the owner flush soon."""
        if not self.is_unsent and self.is_open:
            self.is_unsent = True
            if not self.delivering:
                self.on_unsent()
        return 0

    def stats(self):
        """Return counters of the socket and of who moved its datagrams."""
        cdef UdpSocket udp
        cdef uint64_t attended = 0
        cdef uint64_t stand_ins = 0
        self.check_open()
        with nogil:
            pump_stats(&self.pump, &udp, &attended, &stand_ins)
        return {
            "received": udp.received,
            "sent": udp.sent,
            "receive_calls": udp.receive_calls,
            "send_calls": udp.send_calls,
            "not_sent": udp.not_sent,
            "gso": bool(udp.gso),
            "receive_buffer": udp.receive_buffer,
            "send_buffer": udp.send_buffer,
            "attended": attended,
            "stand_ins": stand_ins,
        }


cdef size_t take(Delivery* d, Stream* s, size_t capacity, int64_t now) noexcept nogil:
    """Copy out what is next of a stream, and let the peer send more."""
    cdef const uint8_t* view = NULL
    cdef size_t size = min(streams_peek(s, &view), capacity - d.size)
    if size:
        memcpy(d.data + d.size, view, size)
        d.size += size
        streams_consume(&d.done.conn.streams, s, size, now)
    return size


cdef int has_room(Conn* c, uint64_t stream_id) noexcept nogil:
    """Say if a stream takes bytes; one that does not is told when it does."""
    cdef Stream* s = connection_stream(c, stream_id)
    if s is NULL or not conn_is_alive(c) or send_has_room(&c.streams, s):
        return True
    list_push(&c.streams, LIST_WAITING, s)
    return False


@cython.auto_pickle(False)
cdef class Link:
    """The verbs of one connection, for its exchanges; told what happens on it.

    Subclasses say what they do when it is connected, when it has ended, when a stream
    takes bytes again and when handing on failed: ``on_connected()``,
    ``on_closed_by(end)``, ``on_room(stream_id)`` and ``on_failure(error)``.

    Args:
        max_payload: Largest frame payload accepted, in bytes.
        on_request: For a server's connection: called with ``(exchange, type,
            payload)`` when a request is complete, unless threads serve.
    """

    def __init__(self, Py_ssize_t max_payload, on_request=None):
        self.exchanges = Exchanges(self, max_payload)
        self.on_request = on_request
        self.limit = max_payload
        self.answering = {}
        self.held_back = {}
        self.waiting = set()
        self.over = set()

    def bind(self, Driver driver not None, Engine engine not None):
        """Belong to a connection; called by the driver."""
        cdef bint serves = self.on_request is not None
        self.driver = driver
        self.engine = engine
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            self.line = desk_open(&driver.desk, engine.c, self.limit, serves)
            # Threads may have received something on it already.
            desk_sift(&driver.desk, pump_clock())
            endpoint_unlock(&driver.endpoint.core)
        if self.line is NULL:
            raise MemoryError
        driver.links[engine.number] = self

    def hang_up(self):
        """End what is under way: its calls fail, its requests need no answer."""
        cdef Waiter* roused = NULL
        if self.driver is None:
            return
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            if self.line is not NULL:
                desk_close(self.line)
                self.line = NULL
                roused = desk_take_roused(&self.driver.desk)
            endpoint_unlock(&self.driver.endpoint.core)
            pump_rouse(&self.driver.pump, roused)
        for exchange in list(self.answering.values()):
            (<ServerExchange> exchange).cancel()
        self.driver.finish_calls()

    @property
    def max_payload(self):
        """Largest payload of frames that begin from now on, in bytes."""
        return self.limit

    @max_payload.setter
    def max_payload(self, Py_ssize_t value):
        self.limit = self.exchanges.max_payload = value
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            if self.line is not NULL:
                self.line.max_payload = value
            endpoint_unlock(&self.driver.endpoint.core)

    @property
    def under_way(self):
        """How many exchanges there are."""
        cdef uint32_t count = 0
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            if self.line is not NULL:
                count = desk_count(self.line)
            endpoint_unlock(&self.driver.endpoint.core)
        return count + len(self.answering) + len(self.exchanges)

    def call(self, bytes frame not None, future):
        """Send a request, for the owner's thread.

        Args:
            frame: The whole frame, header included.
            future: Has the `Call` as its result when it has ended, well or not; it
                needs ``done()`` and ``set_result()``.

        Returns:
            The call. Whoever does not wait for its end owes it `Call.cancel`.

        Raises:
            ConnectionClosed: The connection is gone; nothing was sent.
        """
        cdef Call call = Call.__new__(Call)
        call.frame = frame
        call.future = future
        self.start(call, False)
        self.driver.mark()
        return call

    def ask(self, bytes frame not None, timeout=None):
        """Send a request and wait for the end of the call, in any thread.

        Args:
            frame: The whole frame, header included.
            timeout: Seconds; None waits as long as the connection lives.

        Raises:
            ConnectionClosed: The connection is gone; nothing was sent.
            RequestTimeout: No answer in time.
        """
        cdef Call call = Call.__new__(Call)
        cdef Driver driver = self.driver
        cdef int64_t until = INT64_MAX
        cdef int64_t now
        cdef int result
        if timeout is not None:
            until = pump_clock() + <int64_t> (timeout * 1e6)
        call.frame = frame
        if PyThread_get_thread_ident() == driver.owner:
            raise RuntimeError(OWN_THREAD)
        driver.enter()
        try:
            self.start(call, True)
            with nogil:
                pump_flush(&driver.pump)
            while not call.record.waiter.state & WAITER_DONE:
                with nogil:
                    now = pump_clock()
                    result = pump_wait(
                        &driver.pump, &call.record.waiter, False, min(until, now + LOOK)
                    )
                PyErr_CheckSignals()
                if not driver.is_open:
                    break
                if result == WAIT_TIMEOUT and pump_clock() >= until:
                    raise RequestTimeout("query timed out", timeout=timeout)
        finally:
            driver.leave()
            call.stop()
        if len(frame) > SEND_COPY_MAX:
            driver.endpoint.drain_releases()
        return call

    cdef int start(self, Call call, bint wakes) except -1:
        cdef CallRecord* r = &call.record
        cdef Driver driver = self.driver
        cdef int status
        r.request = <const uint8_t*> <const char*> call.frame
        r.request_size = len(call.frame)
        r.user = <void*> call
        r.wakes = wakes
        call.link = self
        if r.request_size > SEND_COPY_MAX:
            r.owner = <void*> call.frame
            Py_INCREF(call.frame)
        if not wakes:
            Py_INCREF(call)
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            r.line = self.line
            status = CONNECTION_CLOSED if r.line is NULL else desk_call(r, pump_clock())
            endpoint_unlock(&driver.endpoint.core)
        if status == OK:
            return 0
        r.user = NULL
        if not wakes:
            Py_DECREF(call)
        if status == -1:
            raise MemoryError
        raise self.lost()

    def lost(self):
        """Make the exception that says how the connection ended."""
        closed = getattr(self, "closed", None)
        return ConnectionClosed() if closed is None else closed()

    @property
    def number(self):
        """The engine's number of the connection."""
        return self.engine.number

    @property
    def engine_connection(self):
        """The engine's connection, None before there is one."""
        return self.engine

    def open_stream(self):
        """Return the next stream id, -1 while the peer allows no more."""
        cdef uint64_t stream_id = 0
        cdef int status
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            status = connection_open_stream(
                self.engine.c, False, pump_clock(), &stream_id
            )
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        if status == OK:
            return stream_id
        if status == STREAMS_LIMIT:
            self.driver.mark()
        elif status == -1:
            raise MemoryError
        return -1

    def send(self, uint64_t stream_id, bytes data not None, bint fin):
        """Queue bytes of a stream; what the engine has no room for waits here."""
        cdef list waiting = self.held_back.get(stream_id)
        if waiting is None:
            if self.append(stream_id, data, fin) != STREAMS_FULL:
                return
            waiting = self.held_back[stream_id] = []
        waiting.append((data, fin))

    cdef int append(self, uint64_t stream_id, bytes data, bint fin) except -100:
        """Return OK, STREAMS_FULL, or why nothing more can be sent at all."""
        cdef const uint8_t* view = <const uint8_t*> <const char*> data
        cdef size_t size = len(data)
        cdef void* owner = <void*> data
        cdef bint refer = size > SEND_COPY_MAX
        cdef int status
        if refer:
            Py_INCREF(data)
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            if refer:
                status = connection_refer(
                    self.engine.c, stream_id, view, size, owner, fin
                )
            else:
                status = connection_send(self.engine.c, stream_id, view, size, fin)
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        if refer and status != OK:
            Py_DECREF(data)
        if status == -1:
            raise MemoryError
        self.driver.mark()
        return status

    cdef int has_room(self, uint64_t stream_id) except -1:
        """Say if a stream takes bytes now; if not, `on_writable` follows."""
        cdef int status
        if stream_id in self.held_back:
            return False
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            status = has_room(self.engine.c, stream_id)
            endpoint_unlock(&self.driver.endpoint.core)
        return status

    cdef int on_writable(self, uint64_t stream_id) except -1:
        cdef list waiting = self.held_back.get(stream_id)
        while waiting:
            data, fin = waiting[0]
            if self.append(stream_id, data, fin) == STREAMS_FULL:
                return 0
            del waiting[0]
        if self.held_back.pop(stream_id, None) is not None and stream_id in self.over:
            self.release(stream_id)
        if stream_id in self.waiting and self.has_room(stream_id):
            self.waiting.discard(stream_id)
            self.on_room(stream_id)
        return 0

    def must_wait(self, uint64_t stream_id):
        """Say if a sender should wait; if so ``on_room`` is called in time."""
        if self.has_room(stream_id):
            return False
        self.waiting.add(stream_id)
        return True

    @property
    def has_unsent(self):
        """Whether bytes of any stream are not yet acknowledged."""
        cdef bint result
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            result = (
                conn_is_alive(self.engine.c) and self.engine.c.streams.send_buffered > 0
            )
            endpoint_unlock(&self.driver.endpoint.core)
        return result or bool(self.held_back)

    def stop(self, uint64_t stream_id, uint64_t code):
        """Ask the peer to send no more on a stream."""
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            connection_stop(self.engine.c, stream_id, code, pump_clock())
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        self.driver.mark()

    def reset(self, uint64_t stream_id, uint64_t code):
        """Abandon our direction of a stream."""
        self.held_back.pop(stream_id, None)
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            connection_reset(self.engine.c, stream_id, code)
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        self.driver.mark()

    def pause(self, uint64_t stream_id):
        """Give the peer no more window on a stream."""
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            connection_pause(self.engine.c, stream_id)
            endpoint_unlock(&self.driver.endpoint.core)

    def resume(self, uint64_t stream_id):
        """Give window again."""
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            connection_resume(self.engine.c, stream_id, pump_clock())
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        self.driver.mark()

    def release(self, uint64_t stream_id):
        """Let go of a stream whose exchange is over."""
        if stream_id in self.held_back:
            # Its last bytes go out first: see `on_writable`.
            self.over.add(stream_id)
            return
        self.over.discard(stream_id)
        self.waiting.discard(stream_id)
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            connection_release(self.engine.c, stream_id, pump_clock())
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        self.driver.mark()

    def shut(self, bytes reason not None, uint64_t code):
        """Close the connection, telling the other end; a reason has up to 256 bytes."""
        cdef const uint8_t* view = <const uint8_t*> <const char*> reason
        cdef size_t size = len(reason)
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            connection_close(self.engine.c, code, view, size, pump_clock())
            endpoint_touch(&self.driver.endpoint.core, self.engine.c, 0)
            endpoint_unlock(&self.driver.endpoint.core)
        self.driver.mark()


@cython.final
@cython.auto_pickle(False)
cdef class Call:
    """A request on its way, and its answer; made by `Link.call` and `Link.ask`."""

    def __init__(self):
        raise TypeError("Call is made by Link")

    def __dealloc__(self):
        frame_free(&self.record.answer)
        if self.record.owner is not NULL:
            Py_DECREF(<object> self.record.owner)  # Never sent.

    def cancel(self):
        """Drop the call, wherever it is; its future is left alone."""
        cdef Driver driver = self.link.driver
        self.stop()
        if self.record.outcome == CALL_CANCELLED and driver.is_open:
            driver.mark()

    cdef int stop(self) except -1:
        """Leave the desk. After this the record is this object's alone."""
        cdef Driver driver = self.link.driver
        cdef CallRecord* r = &self.record
        if r.user is NULL or r.outcome == CALL_CANCELLED:
            return 0
        if r.wakes and r.waiter.state & WAITER_DONE:
            return 0
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            desk_cancel(r, pump_clock())
            endpoint_unlock(&driver.endpoint.core)
            # Whoever ended it is about to wake us.
            while r.wakes and r.outcome != CALL_CANCELLED and (
                not r.waiter.state & WAITER_DONE
            ):
                waiter_sleep(&r.waiter, 0, 1000)
        if not r.wakes and r.outcome == CALL_CANCELLED:
            Py_DECREF(self)  # The desk's.
        return 0

    cdef int check(self) except -1:
        """Raise what stands for an end without an answer."""
        cdef CallRecord* r = &self.record
        if r.outcome == CALL_ANSWERED:
            return 0
        if r.outcome == CALL_RESET:
            raise StreamReset(r.code)
        if r.outcome == CALL_REFUSED:
            raise StreamReset(r.code, sending=True)
        if r.outcome == CALL_ENDED_EARLY:
            if r.answer.header_size < HEADER_SIZE:
                raise StreamClosedEarly(r.answer.header_size, HEADER_SIZE)
            raise StreamClosedEarly(r.answer.size, r.answer.length)
        if r.outcome == CALL_BAD_TYPE:
            raise UnknownMessageType(r.answer.header[0])
        if r.outcome == CALL_TOO_LARGE:
            raise FrameTooLarge(r.answer.length, self.link.limit)
        if r.outcome == CALL_NO_MEMORY:
            raise MemoryError
        raise self.link.lost()

    @property
    def seconds(self):
        """Time from the sending of the request to the last byte of the answer."""
        return (self.record.ended - self.record.began) / 1e6

    def kind(self):
        """Return the type of the answer's frame; raises as `answer`."""
        self.check()
        return self.record.answer.header[0]

    def answer(self):
        """Return the type and the payload of the answer.

        Raises:
            TransportError: There is none: `StreamReset`, `StreamClosedEarly`,
                `UnknownMessageType`, `FrameTooLarge` or `ConnectionClosed`.
        """
        self.check()
        return self.record.answer.header[0], PyBytes_FromStringAndSize(
            <const char*> self.record.answer.data, self.record.answer.length
        )

    def message(self):
        """Return the message that the answer is.

        Raises:
            TransportError: As `answer`.
            DecodeError: It does not decode.
        """
        self.check()
        return decode_raw(
            self.record.answer.header[0], self.record.answer.data,
            self.record.answer.length,
        )


@cython.final
@cython.auto_pickle(False)
cdef class ServerExchange:
    """A request that arrived, and the way to answer it; made by `Driver`.

    Attributes:
        stream_id: Its stream.
        started_at: Seconds of time.monotonic() when the stream's first byte came.
        cancelled: The client has gone or wants no answer.
        on_cancel: Called once when that happens while no answer was finished, in the
            owner's thread; may be None.
    """

    def __init__(self):
        raise TypeError("ServerExchange is made by Driver")

    def __repr__(self):
        return f"<ServerExchange stream={self.stream_id}>"

    @property
    def connection(self):
        """The link that it came on."""
        return self.link

    def respond(self, bytes frame not None, bint fin=True):
        """Send a frame of the answer; a whole answer may be sent in any thread.

        Args:
            frame: The whole frame, header included; empty to only end the stream.
            fin: True with the last one.

        Returns:
            False if the client wants no more of it; nothing was sent.
        """
        cdef Link link = self.link
        cdef Driver driver = link.driver
        cdef const uint8_t* view = <const uint8_t*> <const char*> frame
        cdef size_t size = len(frame)
        cdef void* owner = NULL
        cdef int status
        if self.ended:
            return False
        if not fin or self.streams:
            self.streams = True
            link.send(self.stream_id, frame, fin)
            if fin:
                self.end()
                link.stop(self.stream_id, 0)
                link.release(self.stream_id)
            return True
        self.end()
        if size > SEND_COPY_MAX:
            owner = <void*> frame
            Py_INCREF(frame)
        if endpoint_trylock(&driver.endpoint.core):
            status = desk_respond(
                &driver.desk, link.engine.c, self.stream_id, view, size, owner, True,
                pump_clock(),
            )
            endpoint_unlock(&driver.endpoint.core)
        else:
            with nogil:
                endpoint_lock(&driver.endpoint.core)
                status = desk_respond(
                    &driver.desk, link.engine.c, self.stream_id, view, size, owner,
                    True, pump_clock(),
                )
                endpoint_unlock(&driver.endpoint.core)
        if owner is not NULL and status != OK:
            Py_DECREF(frame)
        if status == -1:
            raise MemoryError
        if self.batched:
            return True
        if driver.is_owned and PyThread_get_thread_ident() == driver.owner:
            driver.mark()
        elif driver.is_open:
            driver.enter()
            with nogil:
                pump_flush(&driver.pump)
            driver.leave()
        return True

    def end(self):
        """Take note that nothing more is sent."""
        self.ended = True
        self.on_cancel = None
        self.link.answering.pop(self.stream_id, None)

    cdef int cancel(self) except -1:
        on_cancel = self.on_cancel
        if self.ended:
            return 0
        self.end()
        self.cancelled = True
        if self.link.line is not NULL:
            self.link.stop(self.stream_id, 0)
            self.link.release(self.stream_id)
        if on_cancel is not None:
            on_cancel()
        return 0
