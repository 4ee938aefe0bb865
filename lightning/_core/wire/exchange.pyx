"""One bidirectional stream for each exchange: start, complete, cancel.

Sans-IO. A client sends one frame and ends its direction; the server answers with a run
of chunks and an end, and ends its own. Calls with one frame as their answer are put
together in C (`_core/io/desk`); streamed answers are the business of this module. The
client reads what it needs and then asks the server to stop (STOP_SENDING with code 0),
unless the end of the stream came first. That request is normal traffic and no error on
either side.

The layer below gives the verbs through a link object::

    open_stream() -> int             next stream id, -1 while the peer allows no more
    send(stream_id, data, fin)       queue bytes, fin ends our direction
    stop(stream_id, code)            STOP_SENDING: no more of the peer's bytes, please
    reset(stream_id, code)           RESET_STREAM: our direction is abandoned
    pause(stream_id)                 let the peer's window close
    resume(stream_id)                open it again
    release(stream_id)               the exchange is over: the stream may go

and calls `stream_data`, `stream_reset`, `stop_sending` and `connection_lost` with what
arrived; of a stream that was stopped or released nothing comes any more. After any call
the driver must flush what the link queued.
"""

from collections import OrderedDict

cimport cython
from lightning._core.wire.framing cimport (
    HANDSHAKE_RESPONSE,
    STREAM_CHUNK,
    STREAM_END,
    SYNAPSE_RESPONSE,
    FrameReader,
)

from lightning._core.wire.framing import MessageType
from lightning._core.wire.messages import (
    HandshakeResponse,
    StreamChunk,
    StreamEnd,
    SynapseResponse,
)
from lightning.errors import (
    StreamClosedEarly,
    StreamError,
    StreamReset,
    TransportError,
    UnexpectedMessage,
)


@cython.final
cdef class Exchanges:
    """All streamed exchanges of one connection of a client.

    Args:
        link: The connection's verbs, see the module.
        max_payload: Largest frame payload accepted, in bytes.
    """

    def __init__(self, link, Py_ssize_t max_payload):
        self.link = link
        self.max_payload = max_payload
        self.streams = {}
        self.waiting = OrderedDict()
        self.lost = None

    def __len__(self):
        return len(self.streams) + len(self.waiting)

    cpdef ClientExchange start(self, bytes frame, object on_frame, object on_error):
        """Send one request frame on a new stream, at once or when the peer allows.

        Args:
            frame: The whole frame, header included.
            on_frame: Called with ``(exchange, type, payload)`` for each frame of the
                answer, until `complete` or `cancel` is called.
            on_error: Called once with ``(exchange, error)`` if the answer cannot
                come any more; nothing is called after it.

        Returns:
            The exchange. The caller owes it `complete` once it needs no more frames,
            or `cancel`.

        Raises:
            TransportError: The connection is gone; nothing was sent.
        """
        if self.lost is not None:
            raise self.lost()
        cdef ClientExchange exchange = ClientExchange.__new__(ClientExchange)
        exchange.owner = self
        exchange.reader = FrameReader(self.max_payload)
        exchange.stream_id = -1
        exchange.stopped = -1
        exchange.on_frame = on_frame
        exchange.on_error = on_error
        exchange.request = frame
        self.waiting[exchange] = None
        self.begun += 1
        self.pump()
        return exchange

    cpdef int pump(self) except -1:
        """Open streams for waiting exchanges, as far as the peer allows."""
        cdef ClientExchange exchange
        cdef long long stream_id
        cdef bytes request
        while self.waiting:
            stream_id = self.link.open_stream()
            if stream_id < 0:
                return 0
            exchange = self.waiting.popitem(last=False)[0]
            exchange.stream_id = stream_id
            self.streams[stream_id] = exchange
            request = exchange.request
            exchange.request = None
            exchange.local_ended = True
            self.link.send(stream_id, request, True)
            if self.on_sending is not None:
                self.on_sending(exchange, len(request))
        return 0

    cpdef int stream_data(self, long long stream_id, object data, bint fin) except -1:
        """Take ordered bytes of one stream.

        Args:
            stream_id: The stream; one without an exchange is ignored.
            data: The next bytes, maybe none.
            fin: Nothing follows.
        """
        cdef ClientExchange exchange = self.streams.get(stream_id)
        if exchange is not None:
            exchange.receive(data, fin)
        return 0

    cpdef int stream_reset(self, long long stream_id, long long code) except -1:
        """Take the peer's RESET_STREAM."""
        cdef ClientExchange exchange = self.streams.get(stream_id)
        if exchange is None:
            return 0
        exchange.remote_ended = True
        if not exchange.received:
            exchange.received = True
            exchange.on_failure(StreamReset(code))
        exchange.settle()
        return 0

    cpdef int stop_sending(self, long long stream_id, long long code) except -1:
        """Take the peer's STOP_SENDING; the layer below has reset our direction."""
        cdef ClientExchange exchange = self.streams.get(stream_id)
        if exchange is not None:
            # Mostly a server that has read all it needs; what it answers decides.
            exchange.stopped = code
        return 0

    cpdef int connection_lost(self, object make_error) except -1:
        """End every exchange; `make_error` makes one exception for each."""
        cdef ClientExchange exchange
        if self.lost is not None:
            return 0
        self.lost = make_error
        waiting = [*self.waiting, *self.streams.values()]
        self.waiting.clear()
        self.streams.clear()
        for exchange in waiting:
            exchange.remote_ended = exchange.local_ended = True
            if not exchange.received:
                exchange.received = True
                exchange.on_failure(make_error())
        # Of no use any more; without it the link goes when nobody holds it.
        self.link = self.on_sending = None
        return 0


@cython.final
cdef class ClientExchange:
    """A request on its way, and its answer; made by `Exchanges` only."""

    def __init__(self):
        raise TypeError("ClientExchange is made by Exchanges")

    def __repr__(self):
        return f"<ClientExchange stream={self.stream_id}>"

    @property
    def waiting(self):
        """Whether the request still waits for the peer to allow a stream."""
        return self.request is not None

    cdef int receive(self, object data, bint fin) except -1:
        cdef Py_ssize_t taken = 0
        cdef Py_ssize_t size = len(data)
        if fin:
            self.remote_ended = True
        while not self.received and taken < size:
            try:
                taken += self.reader.feed(data, taken)
            except TransportError as error:
                self.on_failure(error)
                break
            # A frame without payload is ready as soon as its header is.
            if self.reader.ready:
                kind, payload = self.reader.take()
                self.on_frame(self, kind, payload)
        if fin and not self.received:
            self.received = True
            self.on_end()
        self.settle()
        return 0

    cdef int finish_receiving(self) except -1:
        """Read no further; tell the peer so unless it has ended already."""
        if not self.received:
            self.received = True
        if not self.remote_ended and self.stream_id >= 0:
            # Nothing that still comes is handed to us.
            self.remote_ended = True
            self.owner.link.stop(self.stream_id, 0)
        return 0

    cdef int settle(self) except -1:
        """Forget the stream once both directions are over."""
        if self.remote_ended and self.local_ended and self.received:
            if self.owner.streams.pop(self.stream_id, None) is not None:
                self.owner.link.release(self.stream_id)
        return 0

    cdef int on_failure(self, object error) except -1:
        self.owner.failed += 1
        self.finish_receiving()
        on_error = self.on_error
        self.on_frame = self.on_error = None
        if on_error is not None:
            on_error(self, error)
        return 0

    cdef int on_end(self) except -1:
        cdef Py_ssize_t received = self.reader.received
        if self.stopped >= 0 and not received:
            # The server refused the request before it was sent in full.
            return self.on_failure(StreamReset(self.stopped, sending=True))
        return self.on_failure(StreamClosedEarly(received, self.reader.expected))

    cpdef int complete(self) except -1:
        """Want no more frames; called from `on_frame` with the last one."""
        if not self.received:
            self.finish_receiving()
        self.on_frame = self.on_error = None
        self.settle()
        return 0

    cpdef int cancel(self) except -1:
        """Drop the exchange, wherever it is; nothing is called after this."""
        self.on_frame = self.on_error = None
        if self.request is not None:
            self.request = None
            self.received = self.remote_ended = self.local_ended = True
            # Gone from the queue if the connection was lost meanwhile.
            self.owner.waiting.pop(self, None)
            return 0
        if not self.received:
            self.finish_receiving()
            if self.owner.lost is None:
                self.owner.link.reset(self.stream_id, 0)
        self.settle()
        return 0

    cpdef int give_up(self, object error) except -1:
        """Fail with an error, unless it has ended; its callback is told."""
        on_error = self.on_error
        if self.received:
            return 0
        self.owner.failed += 1
        self.cancel()
        if on_error is not None:
            on_error(self, error)
        return 0

    @property
    def ended(self):
        """Whether nothing more is expected of the answer."""
        return self.received

    def pause(self):
        """Let the peer's window close while the answer is not being read."""
        if self.stream_id >= 0 and not self.received:
            self.owner.link.pause(self.stream_id)

    def resume(self):
        """Open the peer's window again."""
        if self.stream_id >= 0 and not self.received:
            self.owner.link.resume(self.stream_id)


def read_login_answer(int kind, bytes payload):
    """Read the server's answer to a login.

    Raises:
        UnexpectedMessage: It is another message.
        DecodeError: It does not decode.
    """
    if kind != HANDSHAKE_RESPONSE:
        raise UnexpectedMessage(message=MessageType(kind).wire_name)
    return HandshakeResponse.from_payload(payload)


def read_answer(call):
    """Read the answer to a unary request.

    Args:
        call: The `Call`, which has ended.

    Returns:
        The SynapseResponse, a failed one too.

    Raises:
        TransportError: There is no answer, see `Call.answer`; or, as
            `UnexpectedMessage`, it is another message.
        DecodeError: It does not decode.
    """
    cdef int kind = call.kind()
    if kind == SYNAPSE_RESPONSE:
        return call.message()
    if kind == STREAM_CHUNK:
        raise UnexpectedMessage(
            "received StreamChunk for a unary query: use query_axon_stream for "
            "streaming synapses",
            message="StreamChunk",
        )
    raise UnexpectedMessage(message=MessageType(kind).wire_name)


def read_stream_frame(int kind, bytes payload):
    """Read one frame of a streamed answer.

    Returns:
        The chunk's bytes, or None at the successful end.

    Raises:
        StreamError: The stream failed, or the frame does not belong in one.
        DecodeError: It does not decode.
    """
    if kind == STREAM_CHUNK:
        return StreamChunk.from_payload(payload).data
    if kind == STREAM_END:
        end = StreamEnd.from_payload(payload)
        if end.success:
            return None
        raise StreamError(end.error or "stream ended with failure status")
    if kind == SYNAPSE_RESPONSE:
        response = SynapseResponse.from_payload(payload)
        raise StreamError(
            "server returned SynapseResponse error on streaming path: "
            f"{response.error or 'no detail'}"
        )
    raise StreamError(
        f"unexpected message type during streaming: {MessageType(kind).wire_name}"
    )
