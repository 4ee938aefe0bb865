"""The frame around every message: u8 type, u32 big-endian length, payload."""

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t


# The type byte; the names are those of MessageType.
cdef enum FrameType:
    HANDSHAKE_REQUEST = 1
    HANDSHAKE_RESPONSE = 2
    SYNAPSE_PACKET = 3
    SYNAPSE_RESPONSE = 4
    STREAM_CHUNK = 5
    STREAM_END = 6

# Bytes. A reader refuses a longer payload; a writer does, too.
cpdef enum:
    HEADER_SIZE = 5
    DEFAULT_MAX_FRAME_PAYLOAD = 67108864
    MIN_FRAME_PAYLOAD_LIMIT = 1048576

cdef inline bint is_frame_type(int value) noexcept nogil:
    return HANDSHAKE_REQUEST <= value <= STREAM_END

# `data` holds HEADER_SIZE bytes.
cdef inline uint32_t frame_length(const uint8_t *data) noexcept nogil:
    return (
        (<uint32_t>data[1] << 24) | (<uint32_t>data[2] << 16)
        | (<uint32_t>data[3] << 8) | <uint32_t>data[4]
    )

# Fills the HEADER_SIZE bytes at `data`; `length` fits into 32 bits.
cdef inline void write_frame_header(
    uint8_t *data, int frame_type, Py_ssize_t length
) noexcept nogil:
    data[0] = <uint8_t>frame_type
    data[1] = <uint8_t>(length >> 24)
    data[2] = <uint8_t>(length >> 16)
    data[3] = <uint8_t>(length >> 8)
    data[4] = <uint8_t>length

cdef int check_header(const uint8_t *data, Py_ssize_t limit) except -1


cdef class FrameReader:
    cdef:
        Py_ssize_t limit
        # The header, and how many of its bytes came.
        uint8_t header[5]
        int header_size
        # The payload: bytes under construction; how many came, fit, are due.
        PyObject *payload
        Py_ssize_t size
        Py_ssize_t capacity
        Py_ssize_t length
        readonly bint ready

    cdef Py_ssize_t feed_raw(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef bytes take_payload(self)
    cdef int begin_payload(self) except -1
    cdef int make_room(self, Py_ssize_t count) except -1
