"""MessagePack from Python values, in one pass."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t

cpdef enum:
    # Containers: so many, one in the other, are refused both ways, as the peer does.
    MAX_DEPTH = 1024

cdef enum:
    # Containers that are followed without allocating.
    SHALLOW = 8

cdef enum ContainerKind:
    LIST
    TUPLE
    DICT
    # The items of another mapping, as a list of pairs.
    PAIRS

cdef struct WriteFrame:
    # Owned; `key` is NULL until the key of the current value is written.
    PyObject *container
    PyObject *key
    Py_ssize_t index
    Py_ssize_t size
    # PyDict_Next's own cursor.
    Py_ssize_t cursor
    int kind
    # Keys must be str: the top level of `data`.
    bint strict

cdef class Writer:
    cdef:
        # Bytes under construction, not yet seen by Python.
        PyObject *buffer
        uint8_t *data
        Py_ssize_t size
        Py_ssize_t capacity
        # Bytes in front that are not payload, and most bytes of payload.
        Py_ssize_t reserved
        Py_ssize_t limit
        # Containers around the value that is written next.
        int outer
        # Name of that value in error texts.
        str root
        # The containers that are being written, outermost first.
        WriteFrame *frames
        int depth
        int room
        WriteFrame shallow[SHALLOW]

    cdef int write_nil(self) except -1
    cdef int write_bool(self, bint value) except -1
    cdef int write_uint(self, uint64_t value) except -1
    cdef int write_str(self, object value) except -1
    cdef int write_bin(self, const void *body, Py_ssize_t size) except -1
    cdef int write_array_header(self, Py_ssize_t size) except -1
    cdef int write_map_header(self, Py_ssize_t size) except -1
    # Values of any kind; the second takes bytes and other buffers of single bytes,
    # the third a mapping whose own keys are str.
    cdef int write_value(self, object value) except -1
    cdef int write_octets(self, object value) except -1
    cdef int write_data(self, object value) except -1
    cdef bytes finish(self)
    cdef bytes finish_frame(self, int frame_type)

    cdef int reserve(self, Py_ssize_t count) except -1
    cdef int grow(self, Py_ssize_t count) except -1
    cdef int write_head(
        self, int marker, int width, uint64_t value, Py_ssize_t body
    ) except -1
    cdef int write_body_head(self, int marker, Py_ssize_t size) except -1
    cdef int write_int(self, int64_t value) except -1
    cdef int write_double(self, double value) except -1
    cdef int write_long(self, object value) except -1
    cdef int write_one(self, object value) except -1
    cdef int write_key(self, object key, bint strict) except -1
    cdef bint write_other(self, object value, bint is_key) except -1
    cdef int write_mapping(self, object value) except -1
    cdef bint write_buffer(self, object value, bint is_key) except -1
    cdef bint write_view(
        self, Py_buffer *view, char kind, bint big_endian, bint is_key
    ) except -1
    cdef int write_items(
        self, const Py_buffer *view, const Py_ssize_t *strides, int axis,
        const char *item, char kind, bint big_endian
    ) except -1
    cdef int write_number(
        self, const char *item, char kind, Py_ssize_t width, bint big_endian
    ) except -1
    cdef int run(self) except -1
    cdef int check_depth(self, int count) except -1
    cdef int push(self, object container, int kind, Py_ssize_t size) except -1
    cdef void pop(self) noexcept
    cdef int refuse(self, object value) except -1
    cdef int fail(self, object kind, str what, object cause=*) except -1
    cdef int fail_text(self) except -1
    cdef int fail_changed(self) except -1
    cdef int fail_hook(self, object error) except -1

cdef Writer new_writer(Py_ssize_t reserved, Py_ssize_t limit)
cdef bint is_mapping(object value) except -1
