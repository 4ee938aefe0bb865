"""Cut stream bytes into frames.

A frame is ``type: u8 | length: u32 big-endian | payload``; the length counts the
payload alone. A stream carries one frame in each direction, or a run of them when an
answer is streamed.
"""

import enum

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport UINT32_MAX
from libc.string cimport memcpy

from lightning.errors import FrameTooLarge, StreamClosedEarly, UnknownMessageType

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(
        const char *data, Py_ssize_t size
    ) except NULL
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1
    char *bytes_data "PyBytes_AS_STRING"(PyObject *data) noexcept

# What a u32 can say; as a C enumerator it would not fit.
MAX_FRAME_PAYLOAD_LIMIT = UINT32_MAX

# A payload up to this size is allocated at once, as the peer does.
cdef enum:
    ONE_SHOT_SIZE = 1048576


class MessageType(enum.IntEnum):
    """The type byte of a frame."""

    HANDSHAKE_REQUEST = 1
    HANDSHAKE_RESPONSE = 2
    SYNAPSE_PACKET = 3
    SYNAPSE_RESPONSE = 4
    STREAM_CHUNK = 5
    STREAM_END = 6

    @property
    def wire_name(self):
        """Return the message's name as error texts say it, such as ``StreamEnd``."""
        return self.name.title().replace("_", "")


cdef int check_header(const uint8_t *data, Py_ssize_t limit) except -1:
    """Refuse a header, HEADER_SIZE bytes, with an unknown type or too long a payload.

    Raises:
        UnknownMessageType: The type byte is none of the six.
        FrameTooLarge: The length is above `limit`.
    """
    if not is_frame_type(data[0]):
        raise UnknownMessageType(data[0])
    cdef Py_ssize_t length = frame_length(data)
    if length > limit:
        raise FrameTooLarge(length, limit)
    return 0


def parse_frame_header(data, Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD):
    """Split one whole frame into its type and its payload.

    Args:
        data: Any contiguous buffer that begins with a frame. What follows the frame
            is ignored.
        max_payload: Most bytes of payload to accept.

    Returns:
        The type, and a copy of the payload.

    Raises:
        StreamClosedEarly: The header or the payload is not all there.
        UnknownMessageType: The type byte is none of the six.
        FrameTooLarge: The length is above the limit, checked before the payload is.
    """
    cdef Py_buffer view
    cdef const uint8_t *raw
    cdef Py_ssize_t length
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        raw = <const uint8_t *>view.buf
        if view.len < HEADER_SIZE:
            raise StreamClosedEarly(view.len, HEADER_SIZE)
        check_header(raw, max_payload)
        length = frame_length(raw)
        if length > view.len - HEADER_SIZE:
            raise StreamClosedEarly(view.len - HEADER_SIZE, length)
        payload = PyBytes_FromStringAndSize(<const char *>raw + HEADER_SIZE, length)
        return MessageType(raw[0]), payload
    finally:
        PyBuffer_Release(&view)


@cython.final
@cython.auto_pickle(False)
cdef class FrameReader:
    """Cuts frames out of a stream as its bytes arrive.

    Feed it until `ready`, then `take` the frame; the reader is then at the start of
    the next one. A reader that raised stays at the header that it refused: the stream
    is of no further use.

    A payload up to 1 MiB is allocated when its header has arrived. A longer one grows
    by doubling as data arrives: a reader never holds more than twice what came plus
    1 MiB, whatever the header says.

    Args:
        max_payload: Most bytes of payload to accept, 0 to 4294967295.

    Raises:
        ValueError: The limit is outside of that range.
    """

    def __init__(self, Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD):
        self.max_payload = max_payload

    def __dealloc__(self):
        Py_XDECREF(self.payload)

    @property
    def max_payload(self):
        """Return the most bytes of payload to accept; applies from the next header."""
        return self.limit

    @max_payload.setter
    def max_payload(self, Py_ssize_t value):
        if not 0 <= value <= <Py_ssize_t>UINT32_MAX:
            raise ValueError(f"max_payload must be 0 to 4294967295, not {value}")
        self.limit = value

    @property
    def received(self):
        """Return how many bytes came of the part that is due (header or payload)."""
        return self.header_size if self.payload is NULL else self.size

    @property
    def expected(self):
        """Return the size of the part that is due (5 for the header)."""
        return HEADER_SIZE if self.payload is NULL else self.length

    def feed(self, data, Py_ssize_t offset=0):
        """Take bytes up to the end of the current frame.

        Args:
            data: Any contiguous buffer.
            offset: Where in it to begin, 0 to its length.

        Returns:
            How many bytes were taken; 0 while a ready frame waits to be taken.

        Raises:
            UnknownMessageType: The type byte is none of the six.
            FrameTooLarge: The length is above the limit.
            ValueError: The offset is outside of the buffer.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if offset < 0 or offset > view.len:
                raise ValueError(f"offset {offset} is not within {view.len} bytes")
            return self.feed_raw(
                <const uint8_t *>view.buf + offset, view.len - offset
            )
        finally:
            PyBuffer_Release(&view)

    def take(self):
        """Hand over the frame that is ready and begin with the next one.

        Returns:
            The type byte and the payload, which is not copied.

        Raises:
            RuntimeError: No frame is ready.
        """
        if not self.ready:
            raise RuntimeError("no frame is ready")
        cdef int frame_type = self.header[0]
        return frame_type, self.take_payload()

    cdef Py_ssize_t feed_raw(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Take at most `size` bytes; see `feed`."""
        cdef Py_ssize_t taken = 0, count
        if self.ready or size <= 0:
            return 0
        if self.payload is NULL:
            taken = min(size, HEADER_SIZE - self.header_size)
            memcpy(self.header + self.header_size, data, taken)
            self.header_size += <int>taken
            if self.header_size < HEADER_SIZE:
                return taken
            self.begin_payload()
        count = min(size - taken, self.length - self.size)
        if count > 0:
            if count > self.capacity - self.size:
                self.make_room(count)
            memcpy(bytes_data(self.payload) + self.size, data + taken, count)
            self.size += count
        self.ready = self.size == self.length
        return taken + count

    cdef bytes take_payload(self):
        """Hand over the payload of the ready frame; its type is `header[0]` before."""
        payload = <bytes>self.payload
        Py_XDECREF(self.payload)
        self.payload = NULL
        self.header_size = 0
        self.ready = False
        return payload

    cdef int begin_payload(self) except -1:
        """Check the complete header and allocate the first of the payload."""
        check_header(self.header, self.limit)
        self.length = frame_length(self.header)
        self.size = 0
        self.capacity = min(self.length, ONE_SHOT_SIZE)
        self.payload = new_bytes(NULL, self.capacity)
        return 0

    cdef int make_room(self, Py_ssize_t count) except -1:
        """Grow the payload for `count` more bytes, at most to its declared length."""
        # Both summands are at most `length`, which is below 2 ** 32.
        cdef Py_ssize_t capacity = min(self.length, 2 * (self.size + count))
        self.capacity = 0
        # On failure the payload is gone and NULL, and the stream with it.
        _PyBytes_Resize(&self.payload, capacity)
        self.capacity = capacity
        return 0
