"""Write Python values as MessagePack.

One pass into the bytes object that is sent, smallest forms, lossless: a value that the
format cannot say is an error that names the value's place.
"""

import sys
from collections.abc import Mapping

cimport cython
from cpython.buffer cimport (
    PyBUF_FULL_RO,
    PyBuffer_FillContiguousStrides,
    PyBuffer_Release,
    PyBuffer_ToContiguous,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyIndex_Check, PyNumber_Index
from cpython.ref cimport Py_CLEAR, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport INT8_MIN, INT16_MIN, INT32_MIN, UINT32_MAX
from libc.string cimport memcpy

from lightning._core.wire.pages cimport expect_pages, keep_pages
from lightning._core.wire.framing cimport HEADER_SIZE, write_frame_header

from lightning._core.wire.explain import hint, join_path, key_step, short
from lightning.errors import EncodeError, EncodeTypeError, FrameTooLarge

cdef extern from *:
    """
    static int lightning_raise(void) { return -1; }
    """
    # Raises the exception that a C call has set.
    int raise_pending "lightning_raise"() except -1

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(
        const char *data, Py_ssize_t size
    ) except NULL
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1
    char *bytes_data "PyBytes_AS_STRING"(PyObject *data) noexcept
    # NULL with an exception set, which is looked at before it is raised.
    const char *utf8_or_null "PyUnicode_AsUTF8AndSize"(
        object text, Py_ssize_t *size
    ) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    double PyFloat_Unpack2(const char *data, int little_endian) except? -1.0

cdef enum:
    # What CPython allows a buffer to have.
    MAX_AXES = 64
    # Room of a new writer: with the header of a bytes object, 512 bytes.
    FIRST_CAPACITY = 476

cdef str CONVERT = "Failed to convert Python value to msgpack: "


def packb(value):
    """Write one value.

    Args:
        value: Any value of the module's table, containers fewer than 1024 deep.

    Returns:
        The value as MessagePack, in the smallest forms.

    Raises:
        EncodeTypeError: A value of a type that is not in the table.
        EncodeError: An integer outside of 64 bits, a str with lone surrogates,
            containers too deep or in themselves, one that changed while it was
            written, or a value's own hook that failed.
    """
    cdef Writer writer = new_writer(0, <Py_ssize_t>(<size_t>-1 >> 1))
    writer.root = "value"
    writer.write_value(value)
    return writer.finish()


keep_pages()


cdef Writer new_writer(Py_ssize_t reserved, Py_ssize_t limit):
    """Make a writer of at most `limit` bytes of payload after `reserved` others."""
    cdef Writer writer = Writer.__new__(Writer)
    writer.reserved = reserved
    writer.limit = limit
    writer.frames = writer.shallow
    writer.room = SHALLOW
    writer.buffer = new_bytes(NULL, FIRST_CAPACITY)
    writer.data = <uint8_t *>bytes_data(writer.buffer)
    writer.size = reserved
    # A small limit is kept by a small capacity.
    writer.capacity = FIRST_CAPACITY
    if limit < FIRST_CAPACITY - reserved:
        writer.capacity = reserved + limit
    return writer


@cython.final
@cython.auto_pickle(False)
cdef class Writer:
    """Writes one payload. Made by `new_writer`, used up by `finish`.

    Containers are followed on a stack of frames, so depth costs no C stack.
    """

    def __init__(self):
        raise TypeError("a Writer is made by new_writer")

    def __dealloc__(self):
        while self.depth:
            self.pop()
        if self.room > SHALLOW:
            PyMem_Free(self.frames)
        Py_XDECREF(self.buffer)

    cdef bytes finish(self):
        """Hand over what was written, the reserved bytes included."""
        _PyBytes_Resize(&self.buffer, self.size)
        result = <bytes>self.buffer
        Py_XDECREF(self.buffer)
        self.buffer = NULL
        return result

    cdef bytes finish_frame(self, int frame_type):
        """Hand over what was written as a frame; the header was reserved."""
        write_frame_header(self.data, frame_type, self.size - HEADER_SIZE)
        return self.finish()

    cdef inline int reserve(self, Py_ssize_t count) except -1:
        """Make sure that `count` bytes can be written."""
        if count > self.capacity - self.size:
            self.grow(count)
        return 0

    cdef int grow(self, Py_ssize_t count) except -1:
        """Make room for `count` bytes and a quarter more, within the limit."""
        cdef Py_ssize_t used = self.size - self.reserved
        cdef Py_ssize_t needed
        if count > self.limit - used:
            raise FrameTooLarge(used + count, self.limit)
        needed = used + count
        needed += min((needed >> 2) + 64, self.limit - needed)
        _PyBytes_Resize(&self.buffer, self.reserved + needed)
        self.data = <uint8_t *>bytes_data(self.buffer)
        self.capacity = self.reserved + needed
        expect_pages(self.data, self.capacity)
        return 0

    cdef inline int write_head(
        self, int marker, int width, uint64_t value, Py_ssize_t body
    ) except -1:
        """Write a marker and a big-endian number of `width` bytes; reserve a body."""
        cdef uint8_t *out
        cdef int i
        self.reserve(1 + width + body)
        out = self.data + self.size
        out[0] = <uint8_t>marker
        for i in range(width, 0, -1):
            out[i] = <uint8_t>value
            value >>= 8
        self.size += 1 + width
        return 0

    cdef inline int write_nil(self) except -1:
        return self.write_head(0xC0, 0, 0, 0)

    cdef inline int write_bool(self, bint value) except -1:
        return self.write_head(0xC3 if value else 0xC2, 0, 0, 0)

    cdef int write_uint(self, uint64_t value) except -1:
        """Write a number that is not negative."""
        if value < 0x80:
            return self.write_head(<int>value, 0, 0, 0)
        if value <= 0xFF:
            return self.write_head(0xCC, 1, value, 0)
        if value <= 0xFFFF:
            return self.write_head(0xCD, 2, value, 0)
        if value <= UINT32_MAX:
            return self.write_head(0xCE, 4, value, 0)
        return self.write_head(0xCF, 8, value, 0)

    cdef int write_int(self, int64_t value) except -1:
        """Write a number of either sign."""
        if value >= 0:
            return self.write_uint(<uint64_t>value)
        if value >= -0x20:
            return self.write_head(<int>value, 0, 0, 0)
        if value >= INT8_MIN:
            return self.write_head(0xD0, 1, <uint64_t>value, 0)
        if value >= INT16_MIN:
            return self.write_head(0xD1, 2, <uint64_t>value, 0)
        if value >= INT32_MIN:
            return self.write_head(0xD2, 4, <uint64_t>value, 0)
        return self.write_head(0xD3, 8, <uint64_t>value, 0)

    cdef int write_double(self, double value) except -1:
        """Write a float of 64 bits."""
        cdef uint64_t bits = 0
        memcpy(&bits, &value, sizeof(bits))
        return self.write_head(0xCB, 8, bits, 0)

    cdef int write_long(self, object value) except -1:
        """Write an int, or refuse it if 64 bits do not hold it."""
        cdef int overflow = 0
        cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0:
            return self.write_int(number)
        if overflow > 0 and value < 1 << 64:
            return self.write_uint(value)
        return self.fail(EncodeError, "OverflowError: int does not fit into 64 bits")

    cdef int write_body_head(self, int marker, Py_ssize_t size) except -1:
        """Begin str or bin, `marker` being its form with one byte of length.

        After this call `size` bytes are reserved, and due.
        """
        if size <= 0xFF:
            return self.write_head(marker, 1, size, size)
        if size <= 0xFFFF:
            return self.write_head(marker + 1, 2, size, size)
        if size <= <Py_ssize_t>UINT32_MAX:
            return self.write_head(marker + 2, 4, size, size)
        return self.fail(EncodeError, f"OverflowError: {size} bytes in one value")

    cdef int write_str(self, object value) except -1:
        """Write a str, or a subclass, as UTF-8."""
        cdef Py_ssize_t size = 0
        cdef const char *body = utf8_or_null(value, &size)
        if body is NULL:
            return self.fail_text()
        if size < 32:
            self.write_head(0xA0 | <int>size, 0, 0, size)
        else:
            self.write_body_head(0xD9, size)
        memcpy(self.data + self.size, body, size)
        self.size += size
        return 0

    cdef int fail_text(self) except -1:
        """Name the trouble that UTF-8 has with a str."""
        if not PyErr_ExceptionMatches(UnicodeEncodeError):
            raise_pending()
        PyErr_Clear()
        return self.fail(EncodeError, "UnicodeEncodeError: str with lone surrogates")

    cdef int write_bin(self, const void *body, Py_ssize_t size) except -1:
        """Write bytes."""
        self.write_body_head(0xC4, size)
        if size:
            memcpy(self.data + self.size, body, size)
            self.size += size
        return 0

    cdef int write_array_header(self, Py_ssize_t size) except -1:
        """Begin an array of so many values."""
        if size < 16:
            return self.write_head(0x90 | <int>size, 0, 0, 0)
        if size <= 0xFFFF:
            return self.write_head(0xDC, 2, size, 0)
        if size <= <Py_ssize_t>UINT32_MAX:
            return self.write_head(0xDD, 4, size, 0)
        return self.fail(EncodeError, f"OverflowError: {size} items in one value")

    cdef int write_map_header(self, Py_ssize_t size) except -1:
        """Begin a map of so many pairs."""
        if size < 16:
            return self.write_head(0x80 | <int>size, 0, 0, 0)
        if size <= 0xFFFF:
            return self.write_head(0xDE, 2, size, 0)
        if size <= <Py_ssize_t>UINT32_MAX:
            return self.write_head(0xDF, 4, size, 0)
        return self.fail(EncodeError, f"OverflowError: {size} items in one value")

    cdef int write_value(self, object value) except -1:
        """Write a value with all that is in it."""
        self.write_one(value)
        return self.run()

    cdef int write_octets(self, object value) except -1:
        """Write bytes, or another buffer of single bytes, as bin.

        Raises:
            EncodeTypeError: It is anything else.
        """
        cdef Py_ssize_t start = self.size
        if type(value) is bytes:
            return self.write_bin(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if PyObject_CheckBuffer(value) and self.write_other(value, False) and (
            0xC4 <= self.data[start] <= 0xC6
        ):
            return 0
        return self.fail(
            EncodeTypeError,
            f"TypeError: bytes are needed, not {type(value).__name__}",
        )

    cdef int write_data(self, object value) except -1:
        """Write a message's `data`: a mapping whose own keys are str.

        Raises:
            EncodeTypeError: It is not a mapping, or a key is not a str.
        """
        if type(value) is dict:
            self.write_one(value)
        elif is_mapping(value):
            self.write_mapping(value)
        else:
            return self.fail(
                EncodeTypeError,
                f"TypeError: a mapping is needed, not {type(value).__name__}",
            )
        if self.depth:
            self.frames[0].strict = True
        return self.run()

    cdef int run(self) except -1:
        """Write what is left of the containers on the stack."""
        cdef WriteFrame *frame
        cdef PyObject *key_pointer = NULL
        cdef PyObject *value_pointer = NULL
        while self.depth:
            frame = &self.frames[self.depth - 1]
            if frame.kind == TUPLE:
                if frame.index == frame.size:
                    self.pop()
                    continue
                value = <object>PyTuple_GET_ITEM(<object>frame.container, frame.index)
            elif frame.kind == DICT:
                Py_CLEAR(frame.key)
                if PyDict_Size(<object>frame.container) != frame.size:
                    return self.fail_changed()
                if frame.index == frame.size:
                    self.pop()
                    continue
                if not PyDict_Next(
                    <object>frame.container, &frame.cursor, &key_pointer,
                    &value_pointer,
                ):
                    return self.fail_changed()
                key = <object>key_pointer
                value = <object>value_pointer
                self.write_key(key, frame.strict)
                # Writing the key may have run code, but did not move the frames.
                Py_INCREF(key)
                frame.key = <PyObject *>key
            else:
                Py_CLEAR(frame.key)
                if PyList_GET_SIZE(<object>frame.container) != frame.size:
                    return self.fail_changed()
                if frame.index == frame.size:
                    self.pop()
                    continue
                value = <object>PyList_GET_ITEM(<object>frame.container, frame.index)
                if frame.kind == PAIRS:
                    if type(value) is not tuple or len(value) != 2:
                        return self.fail(
                            EncodeError, "TypeError: items() gave no pairs"
                        )
                    key, value = value
                    self.write_key(key, frame.strict)
                    Py_INCREF(key)
                    frame.key = <PyObject *>key
            frame.index += 1
            self.write_one(value)
        return 0

    cdef int write_one(self, object value) except -1:
        """Write a scalar, or begin a container and leave it on the stack."""
        if type(value) is str:
            return self.write_str(value)
        if type(value) is int:
            return self.write_long(value)
        if value is None:
            return self.write_nil()
        if value is True or value is False:
            return self.write_bool(value is True)
        if type(value) is float:
            return self.write_double(PyFloat_AS_DOUBLE(value))
        if type(value) is bytes:
            return self.write_bin(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if type(value) is dict:
            self.check_depth(1)
            self.write_map_header(PyDict_Size(value))
            return self.push(value, DICT, PyDict_Size(value))
        if isinstance(value, list):
            self.check_depth(1)
            self.write_array_header(PyList_GET_SIZE(value))
            return self.push(value, LIST, PyList_GET_SIZE(value))
        if isinstance(value, tuple):
            self.check_depth(1)
            self.write_array_header(PyTuple_GET_SIZE(value))
            return self.push(value, TUPLE, PyTuple_GET_SIZE(value))
        if self.write_other(value, False):
            return 0
        if is_mapping(value):
            return self.write_mapping(value)
        return self.refuse(value)

    cdef int write_key(self, object key, bint strict) except -1:
        """Write a map key: a str, or unless `strict` any other scalar or bytes."""
        if isinstance(key, str):
            return self.write_str(key)
        if strict:
            return self.fail(
                EncodeTypeError,
                f"TypeError: keys must be str, not {type(key).__name__} ({short(key)})",
            )
        if key is None:
            return self.write_nil()
        if key is True or key is False:
            return self.write_bool(key is True)
        if self.write_other(key, True):
            return 0
        return self.fail(
            EncodeTypeError,
            f"TypeError: a {type(key).__name__} cannot be a map key ({short(key)})",
        )

    cdef bint write_other(self, object value, bint is_key) except -1:
        """Write what is no plain scalar and no container; return False if it is not."""
        if isinstance(value, int):
            self.write_long(value)
        elif isinstance(value, float):
            self.write_double(PyFloat_AS_DOUBLE(value))
        elif isinstance(value, str):
            self.write_str(value)
        elif isinstance(value, bytes):
            self.write_bin(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        elif PyObject_CheckBuffer(value):
            return self.write_buffer(value, is_key)
        elif PyIndex_Check(value):
            try:
                # A tensor of one element has an index, too, but is a container.
                if getattr(value, "shape", ()):
                    return False
                number = PyNumber_Index(value)
            except MemoryError:
                raise
            except Exception as error:
                return self.fail_hook(error)
            self.write_long(number)
        else:
            return False
        return True

    cdef int write_mapping(self, object value) except -1:
        """Begin a mapping that is no plain dict, as its items() gives it."""
        self.check_depth(1)
        try:
            items = list(value.items())
        except MemoryError:
            raise
        except Exception as error:
            return self.fail_hook(error)
        self.write_map_header(PyList_GET_SIZE(items))
        return self.push(items, PAIRS, PyList_GET_SIZE(items))

    cdef bint write_buffer(self, object value, bint is_key) except -1:
        """Write bytes-likes as bin, numbers as arrays; return False for other buffers.

        numpy's types are known by name: they say through `dtype` what the bytes mean,
        and a subclass may mean more than its numbers.
        """
        cdef Py_buffer view
        cdef const char *form
        cdef bint big_endian = sys.byteorder == "big"
        cdef bint done = False
        try:
            dtype = getattr(value, "dtype", None)
            if dtype is not None and (
                type(value).__module__ != "numpy" or dtype.kind not in "biuf"
            ):
                return False
            PyObject_GetBuffer(value, &view, PyBUF_FULL_RO)
        except MemoryError:
            raise
        except Exception as error:
            return self.fail_hook(error)
        try:
            form = view.format
            if form is NULL:
                form = b"B"
            if form[0] in b"@=<>!":
                if form[0] in b"<>!":
                    big_endian = form[0] != c"<"
                form += 1
            if view.suboffsets is NULL and form[0] and not form[1]:
                done = self.write_view(&view, form[0], big_endian, is_key)
        finally:
            PyBuffer_Release(&view)
        return done

    cdef bint write_view(
        self, Py_buffer *view, char kind, bint big_endian, bint is_key
    ) except -1:
        """Write a buffer of one kind of number; return False if there is no form."""
        cdef Py_ssize_t strides[MAX_AXES]
        if view.itemsize == 1 and (
            kind in b"bBc" and view.ndim == 1 or kind == c"c" and view.ndim == 0
        ):
            self.write_body_head(0xC4, view.len)
            PyBuffer_ToContiguous(self.data + self.size, view, view.len, c"C")
            self.size += view.len
            return True
        if not has_form(kind, view.itemsize) or view.ndim and (
            is_key or view.ndim > MAX_AXES or view.shape is NULL
        ):
            return False
        if view.strides is not NULL:
            memcpy(strides, view.strides, view.ndim * sizeof(Py_ssize_t))
        else:
            # ctypes gives none, though they were asked for.
            PyBuffer_FillContiguousStrides(
                view.ndim, view.shape, strides, view.itemsize, c"C"
            )
        self.check_depth(view.ndim)
        self.write_items(view, strides, 0, <const char *>view.buf, kind, big_endian)
        return True

    cdef int write_items(
        self, const Py_buffer *view, const Py_ssize_t *strides, int axis,
        const char *item, char kind, bint big_endian,
    ) except -1:
        """Write a number, or an array along an axis; recurses once for each axis."""
        if axis == view.ndim:
            return self.write_number(item, kind, view.itemsize, big_endian)
        self.write_array_header(view.shape[axis])
        for _ in range(view.shape[axis]):
            self.write_items(view, strides, axis + 1, item, kind, big_endian)
            item += strides[axis]
        return 0

    cdef int write_number(
        self, const char *item, char kind, Py_ssize_t width, bint big_endian
    ) except -1:
        """Write a number of a buffer, bit for bit."""
        cdef uint64_t bits = 0
        cdef int i
        for i in range(width):
            bits = bits << 8 | <uint8_t>item[i if big_endian else width - 1 - i]
        if kind == c"?":
            return self.write_bool(bits != 0)
        if kind == c"e":
            return self.write_double(PyFloat_Unpack2(item, not big_endian))
        if kind == c"f":
            return self.write_head(0xCA, 4, bits, 0)
        if kind == c"d":
            return self.write_head(0xCB, 8, bits, 0)
        if kind in b"BHILQN":
            return self.write_uint(bits)
        # Extends the sign from the number's own width.
        return self.write_int(<int64_t>(bits << (64 - 8 * width)) >> (64 - 8 * width))

    cdef int check_depth(self, int count) except -1:
        """Refuse to go so many containers deeper than the reader would follow."""
        if self.outer + self.depth + count >= MAX_DEPTH:
            self.fail(
                EncodeError,
                f"ValueError: {MAX_DEPTH} containers one in the other, or a cycle",
            )
        return 0

    cdef int push(self, object container, int kind, Py_ssize_t size) except -1:
        """Put a container, whose header is written, on the stack."""
        cdef WriteFrame *frames
        if self.depth == self.room:
            frames = <WriteFrame *>PyMem_Malloc(2 * self.room * sizeof(WriteFrame))
            if frames is NULL:
                raise MemoryError
            memcpy(frames, self.frames, self.room * sizeof(WriteFrame))
            if self.frames is not self.shallow:
                PyMem_Free(self.frames)
            self.frames = frames
            self.room *= 2
        Py_INCREF(container)
        self.frames[self.depth] = WriteFrame(
            container=<PyObject *>container, key=NULL, index=0, size=size, cursor=0,
            kind=kind, strict=False,
        )
        self.depth += 1
        return 0

    cdef void pop(self) noexcept:
        """Take the innermost container off the stack."""
        self.depth -= 1
        # The frame is off the stack before a finalizer can run.
        cdef PyObject *container = self.frames[self.depth].container
        Py_XDECREF(self.frames[self.depth].key)
        Py_XDECREF(container)

    cdef int refuse(self, object value) except -1:
        """Raise for a value of a type that has no form."""
        return self.fail(
            EncodeTypeError,
            f"TypeError: {type(value).__name__} is not supported; {hint(value)}",
        )

    cdef int fail_changed(self) except -1:
        """Raise for the innermost container, which changed under our hands."""
        self.pop()
        return self.fail(EncodeError, "RuntimeError: changed size during encoding")

    cdef int fail_hook(self, object error) except -1:
        """Raise for a value whose own method failed."""
        return self.fail(
            EncodeTypeError if isinstance(error, TypeError) else EncodeError,
            f"{type(error).__name__}: {error}", error,
        )

    cdef int fail(self, object kind, str what, object cause=None) except -1:
        """Raise with the place of the value that is being written."""
        cdef int i
        cdef WriteFrame *frame
        cdef list steps = []
        for i in range(self.depth):
            frame = &self.frames[i]
            if frame.key is not NULL:
                steps.append(key_step(<object>frame.key))
            elif frame.kind == LIST or frame.kind == TUPLE:
                steps.append(f"[{frame.index - 1}]")
        raise kind(CONVERT + what, path=join_path(self.root, steps)) from cause


cdef inline bint has_form(char kind, Py_ssize_t width) noexcept:
    """Say whether MessagePack has numbers of a buffer's kind and width in bytes."""
    if kind in b"bhilqnBHILQN":
        return width in (1, 2, 4, 8)
    return (
        kind == c"?" and width == 1 or kind == c"e" and width == 2
        or kind == c"f" and width == 4 or kind == c"d" and width == 8
    )


cdef bint is_mapping(object value) except -1:
    """Say whether a value is a dict of any kind; an object may lie about its class."""
    return isinstance(value, dict) or isinstance(value, Mapping)
