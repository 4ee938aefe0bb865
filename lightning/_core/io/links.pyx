"""The verbs of a connection, and what is asked and answered on it.

Three things may be done in any thread: `Link.ask`, `ServerExchange.respond` with a
whole answer, and, of the driver, `Driver.serve`. Threads ask and answer with them
without the owner.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.io.desk cimport (
    CALL_ANSWERED, CALL_BAD_TYPE, CALL_CANCELLED, CALL_ENDED_EARLY, CALL_NO_MEMORY,
    CALL_NOT_SENT, CALL_REFUSED, CALL_RESET, CALL_TIMED_OUT, CALL_TOO_LARGE, CALL_WAITS,
    WAITER_ROUSED, Tally, Waiter, desk_budget, desk_call, desk_cancel, desk_close,
    desk_count, desk_count_failed, desk_look, desk_next_ended, desk_open, desk_respond,
    desk_sift, desk_take_roused, frame_free, load32, waiter_sleep
)
from lightning._core.io.pump cimport (
    WAIT_TIMEOUT, pump_clock, pump_flush, pump_rouse, pump_wait
)
from lightning._core.quic.buffer cimport OK
from lightning._core.quic.connection cimport (
    CONNECTION_CLOSED, connection_close, connection_open_stream, connection_pause,
    connection_refer, connection_release, connection_reset, connection_resume,
    connection_send, connection_stop, connection_stream
)
from lightning._core.quic.connstate cimport Conn, conn_forget, conn_is_alive
from lightning._core.quic.endpoint cimport (
    endpoint_lock, endpoint_touch, endpoint_trylock, endpoint_unlock
)
from lightning._core.quic.sendbuf cimport SEND_COPY_MAX, sendbuf_size
from lightning._core.quic.streams cimport STREAMS_FULL, STREAMS_LIMIT
from lightning._core.quic.streamsend cimport send_has_room
from lightning._core.quic.streamtable cimport LIST_WAITING, SEND_SEND, Stream, list_push
from lightning._core.wire.framing cimport HEADER_SIZE
from lightning._core.wire.messages cimport decode_raw

from lightning._core.io.base import FORKED
from lightning.errors import (
    ConnectionClosed,
    FrameTooLarge,
    RequestTimeout,
    StreamClosedEarly,
    StreamReset,
    UnknownMessageType,
)

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept
    int PyErr_CheckSignals() except -1

cdef enum:
    # Microseconds after which a waiting main thread looks for what stands for a
    # signal without being one, such as `_thread.interrupt_main`.
    LOOK = 100_000
    ENDED = 64  # calls taken from the desk at a time

cdef double LONGEST = 1e9  # seconds of a timeout: for ever

OWN_THREAD = (
    "a blocking call from the I/O thread would wait for itself: make it from another "
    "thread, or use the asyncio face"
)

__all__ = ["Call", "Link", "ServerExchange"]


cdef int has_room(Conn* c, uint64_t stream_id) noexcept nogil:
    """Say if a stream takes bytes; one that does not is told when it does."""
    cdef Stream* s = connection_stream(c, stream_id)
    if s is NULL or not conn_is_alive(c) or send_has_room(&c.streams, s):
        return True
    list_push(&c.streams, LIST_WAITING, s)
    return False


cdef int finish_calls(DriverBase driver) except -1:
    """Wake who awaits an answer."""
    cdef CallRecord* ended[ENDED]
    cdef int count = ENDED
    cdef int i
    cdef Call call
    while count == ENDED:
        count = 0
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            while count < ENDED:
                ended[count] = desk_next_ended(&driver.desk)
                if ended[count] is NULL:
                    break
                count += 1
            endpoint_unlock(&driver.endpoint.core)
        for i in range(count):
            call = <Call> ended[i].user
            Py_DECREF(call)  # The desk's.
            if not call.future.done():
                call.future.set_result(call)
                driver.answered = True
    return 0


@cython.auto_pickle(False)
cdef class Link:
    """The verbs of one connection, for its exchanges; told what happens on it.

    Subclasses say what they do when it is connected, when it has ended, when a stream
    takes bytes again and when handing on failed: ``on_connected()``,
    ``on_closed_by(end)``, ``on_room(stream_id)`` and ``on_failure(error)``.

    Args:
        max_payload: Largest frame payload accepted, in bytes.
        on_request: For a server's connection: called with ``(link, exchange, type,
            payload)`` when a request is complete, unless threads serve. The payload of
            a SynapsePacket is that message, or the DecodeError that it led to.
    """

    def __init__(self, Py_ssize_t max_payload, on_request=None):
        self.exchanges = Exchanges(self, max_payload)
        self.on_request = on_request
        self.limit = max_payload
        self.answering = {}
        self.gone = set()
        self.held_back = {}
        self.waiting = set()
        self.over = set()

    def bind(self, DriverBase driver not None, Engine engine not None):
        """Belong to a connection; called by the driver."""
        self.serves = self.on_request is not None
        self.driver = driver
        self.engine = engine
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            self.line = desk_open(&driver.desk, engine.c, self.limit, self.serves)
            # Threads may have received something on it already.
            desk_sift(&driver.desk, pump_clock())
            endpoint_unlock(&driver.endpoint.core)
        if self.line is NULL:
            raise MemoryError
        driver.links[engine.number] = self

    def hang_up(self):
        """End what is under way: its calls fail, its requests need no answer."""
        cdef Waiter* roused = NULL
        cdef uint64_t begun = 0
        cdef uint64_t failed = 0
        cdef uint64_t answering = len(self.answering)
        if self.driver is None:
            return
        if not self.is_summed:
            self.is_summed = True
            begun, failed = self.exchanges.begun, self.exchanges.failed
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            if self.line is not NULL:
                desk_close(self.line, &self.tally)
                self.line = NULL
                self.tally.failed += answering
                self.driver.desk.tally.failed += answering
                roused = desk_take_roused(&self.driver.desk)
            conn_forget(self.engine.c)
            self.driver.desk.tally.begun += begun
            self.driver.desk.tally.failed += failed
            endpoint_unlock(&self.driver.endpoint.core)
            pump_rouse(&self.driver.pump, roused)
        for exchange in list(self.answering.values()):
            (<ServerExchange> exchange).cancel()
        finish_calls(self.driver)
        self.driver.endpoint.drain_releases()

    cdef int give_up(self, uint64_t stream_id) except -1:
        """Take note that nobody wants the answer to a request that still waits."""
        if not load32(&self.driver.desk.ready):
            # None does: it has been answered in this very moment.
            self.gone.clear()
            return 0
        self.gone.add(stream_id)
        self.count_failed()
        self.stop(stream_id, 0)
        self.release(stream_id)
        return 0

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
        if self.driver is not None and not self.driver.inherited():
            with nogil:
                endpoint_lock(&self.driver.endpoint.core)
                if self.line is not NULL:
                    count = desk_count(self.line)
                endpoint_unlock(&self.driver.endpoint.core)
        return count + len(self.answering) + len(self.exchanges)

    cdef void look(self, Tally* out) noexcept:
        """Copy what was counted."""
        out[0] = self.tally
        if self.driver is None or self.driver.inherited():
            return
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            out[0] = self.tally if self.line is NULL else self.line.tally
            endpoint_unlock(&self.driver.endpoint.core)

    cdef int count_failed(self) except -1:
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            if self.line is not NULL:
                desk_count_failed(self.line)
            endpoint_unlock(&self.driver.endpoint.core)
        return 0

    @property
    def requests(self):
        """How many exchanges were begun on it, by whichever end does; any thread."""
        cdef Tally tally
        self.look(&tally)
        return tally.begun + self.exchanges.begun

    @property
    def failures(self):
        """How many of them ended without an answer, for whatever reason."""
        cdef Tally tally
        self.look(&tally)
        return tally.failed + self.exchanges.failed

    def unsent(self, uint64_t stream_id):
        """Return the bytes of a stream not acknowledged; 0 once all have been sent."""
        cdef Stream* s
        cdef uint64_t left = 0
        with nogil:
            endpoint_lock(&self.driver.endpoint.core)
            s = connection_stream(self.engine.c, stream_id)
            if s is not NULL and s.send_state <= SEND_SEND:
                left = sendbuf_size(&s.send)
            endpoint_unlock(&self.driver.endpoint.core)
        return left

    @property
    def latencies(self):
        """How many calls were answered in less than 1, 2, 4 ... microseconds.

        Each place counts those that the ones before do not; the last one is open.
        Streamed answers are not counted.
        """
        cdef Tally tally
        self.look(&tally)
        return tuple(tally.latencies)

    def vouch(self):
        """Say that its peer is known: it does not count as a stranger any more.

        Any thread may. Without effect where strangers are not counted.
        """
        if not self.driver.inherited():
            self.engine.vouch()

    def call(
        self, bytes frame not None, future, timeout=None, bint total=False,
        size_t limit=0,
    ):
        """Send a request, for the owner's thread.

        Args:
            frame: The whole frame, header included.
            future: Has the `Call` as its result when it has ended, well or not; it
                needs ``done()`` and ``set_result()``.
            timeout: Seconds for the answer, from when the request is sent; until then
                it has its write budget, of 5 seconds and one for each MiB, 60 at most.
                None lets the answer take as long as the connection lives.
            total: Whether the timeout is of the whole call, from now.
            limit: Largest payload of the answer in bytes; 0 for `max_payload`.

        Returns:
            The call. Whoever does not wait for its end owes it `Call.cancel`.

        Raises:
            ConnectionClosed: The connection is gone; nothing was sent.
        """
        cdef Call call = Call.__new__(Call)
        call.frame = frame
        call.future = future
        call.record.watched = True
        call.record.total = total
        call.record.limit = limit
        call.set_timeout(timeout)
        self.start(call, False)
        self.driver.mark()
        return call

    def ask(self, bytes frame not None, timeout=None):
        """Send a request and wait for the end of the call, in any thread.

        Args:
            frame: The whole frame, header included.
            timeout: As for `call`.

        Raises:
            ConnectionClosed: The connection is gone; nothing was sent.
            RequestTimeout: No answer in time, or the request was not sent in time.
        """
        cdef Call call = Call.__new__(Call)
        cdef DriverBase driver = self.driver
        cdef int result
        call.set_timeout(timeout)
        call.frame = frame
        if PyThread_get_thread_ident() == driver.owner:
            raise RuntimeError(OWN_THREAD)
        driver.enter()
        try:
            self.start(call, True)
            result = call.wait(call.look_at, True)
        finally:
            driver.leave()
        try:
            while not load32(&call.record.waiter.state) & WAITER_ROUSED:
                # A signal's handler may close the driver: not from within it.
                PyErr_CheckSignals()
                if not driver.is_open:
                    break
                if result == WAIT_TIMEOUT:
                    call.look()
                driver.enter()
                result = call.wait(call.look_at, False)
                driver.leave()
        finally:
            call.stop()
            if call.record.outcome == CALL_CANCELLED and driver.is_open:
                driver.enter()
                with nogil:
                    pump_flush(&driver.pump)
                driver.leave()
            if len(frame) > SEND_COPY_MAX:
                driver.endpoint.drain_releases()
            if driver.endpoint.qlog is not None:
                # Where threads move the datagrams, the loop seldom comes to it.
                driver.endpoint.drain_trace()
        return call

    cdef int start(self, Call call, bint wakes) except -1:
        cdef CallRecord* r = &call.record
        cdef DriverBase driver = self.driver
        cdef int status
        if driver.inherited():
            raise RuntimeError(FORKED)
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
            call.look_at = r.until if r.until else INT64_MAX
            endpoint_unlock(&driver.endpoint.core)
        if status == OK:
            if r.request_size > SEND_COPY_MAX:
                # The engine has it, and lets go of it when it has arrived.
                call.frame = None
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
        if self.driver.inherited():
            raise RuntimeError(FORKED)
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
        cdef DriverBase driver = self.link.driver
        self.stop()
        if self.record.outcome == CALL_CANCELLED and driver.is_open:
            driver.mark()

    cdef int wait(self, int64_t until, bint flushes) noexcept:
        """Send, if need be, and wait for a while, at most until then: a WaitResult."""
        cdef DriverBase driver = self.link.driver
        cdef int result
        with nogil:
            if flushes:
                pump_flush(&driver.pump)
            result = pump_wait(
                &driver.pump, &self.record.waiter, False,
                min(until, pump_clock() + LOOK)
            )
        return result

    cdef int set_timeout(self, object seconds) except -1:
        if seconds is not None:
            self.timeout = seconds
            self.record.timeout = <int64_t> (min(self.timeout, LONGEST) * 1e6) + 1
        return 0

    cdef int look(self) except -1:
        """See if it has taken too long, and when to look again.

        Raises:
            RequestTimeout: It has; `stop` is to follow.
        """
        cdef DriverBase driver = self.link.driver
        cdef CallRecord* r = &self.record
        cdef int outcome
        cdef uint64_t left
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            outcome = desk_look(r, pump_clock())
            left = r.code
            self.look_at = r.until if r.until else INT64_MAX
            endpoint_unlock(&driver.endpoint.core)
        if outcome != CALL_WAITS:
            raise self.late(outcome, left)
        return 0

    cdef object late(self, int outcome, uint64_t left):
        """Make the exception for what took too long."""
        cdef int64_t budget
        if outcome == CALL_TIMED_OUT:
            return RequestTimeout("query timed out", timeout=self.timeout)
        budget = desk_budget(self.record.request_size)
        return RequestTimeout(
            f"request transfer timed out after {budget} s ({left} bytes unacknowledged "
            "by peer)",
            timeout=budget,
        )

    cdef int stop(self) except -1:
        """Leave the desk. After this the record is this object's alone."""
        cdef DriverBase driver = self.link.driver
        cdef CallRecord* r = &self.record
        cdef bint is_over
        if r.user is NULL or r.group is not NULL:
            return 0  # In a group, it is the Gathering's to cancel.
        if r.wakes and load32(&r.waiter.state) & WAITER_ROUSED:
            return 0
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            is_over = r.outcome == CALL_CANCELLED
            if not is_over:
                desk_cancel(r, pump_clock())
            endpoint_unlock(&driver.endpoint.core)
        if is_over:
            return 0
        with nogil:
            # Whoever ended it is about to wake us.
            while r.wakes and r.outcome != CALL_CANCELLED and (
                not load32(&r.waiter.state) & WAITER_ROUSED
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
            raise FrameTooLarge(r.answer.length, r.limit or self.link.limit)
        if r.outcome == CALL_TIMED_OUT or r.outcome == CALL_NOT_SENT:
            raise self.late(r.outcome, r.code)
        if r.outcome == CALL_NO_MEMORY:
            raise MemoryError
        raise self.link.lost()

    @property
    def is_sending(self):
        """Whether the request is not wholly sent yet, or waits for a stream."""
        cdef DriverBase driver = self.link.driver
        cdef CallRecord* r = &self.record
        cdef bint result
        with nogil:
            endpoint_lock(&driver.endpoint.core)
            result = r.line is not NULL and (r.stream is NULL or not r.stream.sent_at)
            endpoint_unlock(&driver.endpoint.core)
        return result

    @property
    def began(self):
        """Seconds of time.monotonic() when it was made."""
        return self.record.began / 1e6

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
                `UnknownMessageType`, `FrameTooLarge`, `RequestTimeout` or
                `ConnectionClosed`.
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
        cdef DriverBase driver = link.driver
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
            driver.refers = True
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
        """Take note that nothing more is sent; fine if that is known."""
        if self.ended:
            return
        self.ended = True
        self.on_cancel = None
        self.link.answering.pop(self.stream_id, None)
        self.link.driver.owed -= 1

    cdef int cancel(self) except -1:
        on_cancel = self.on_cancel
        if self.ended:
            return 0
        self.end()
        self.cancelled = True
        self.link.count_failed()
        if self.link.line is not NULL:
            self.link.stop(self.stream_id, 0)
            self.link.release(self.stream_id)
        if on_cancel is not None:
            on_cancel()
        return 0
