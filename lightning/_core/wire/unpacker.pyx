"""Read MessagePack from a peer that is not trusted.

Every form of the format is taken. Each length is checked against the bytes that are
really there before anything is allocated, and nesting and the memory of the result are
bounded.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_SetItem, PyDict_Size
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.list cimport PyList_New
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_CLEAR, Py_INCREF, Py_XDECREF
from libc.stdint cimport INT32_MAX, int8_t, int64_t, uint32_t
from libc.string cimport memcmp, memcpy

from lightning._core.wire.packer cimport MAX_DEPTH, SHALLOW
from lightning._core.wire.pages cimport expect_pages

from lightning._core.wire.explain import join_path, key_step
from lightning.errors import DecodeError

cdef extern from *:
    """
    static int lightning_raise(void) { return -1; }
    """
    # Raises the exception that a C call has set.
    int raise_pending "lightning_raise"() except -1

cdef extern from "Python.h":
    # NULL with an exception set, which is looked at before it is raised.
    PyObject *text_or_null "PyUnicode_DecodeUTF8"(
        const char *data, Py_ssize_t size, const char *errors
    ) noexcept
    void set_list_item "PyList_SET_ITEM"(
        PyObject *container, Py_ssize_t index, PyObject *stolen
    ) noexcept
    void *text_data "PyUnicode_DATA"(object text) noexcept
    Py_ssize_t text_size "PyUnicode_GET_LENGTH"(object text) noexcept
    int text_width "PyUnicode_KIND"(object text) noexcept

# Estimates of CPython's objects in bytes, with the garbage collector's header.
cdef enum:
    SLOT_COST = 8
    NUMBER_COST = 32
    TEXT_COST = 64
    LIST_COST = 72
    DICT_COST = 80
    # The first table of a dict, and what each pair takes of a larger one.
    TABLE_COST = 192
    PAIR_COST = 64

cdef enum:
    # Entries of a dict that any key may meet without being charged.
    FREE_PROBES = 64

cdef struct ReadFrame:
    # Owned; `key` is NULL until it is read.
    PyObject *container
    PyObject *key
    Py_ssize_t index
    Py_ssize_t size
    bint is_map

cdef enum:
    # Field names that are remembered, and the longest such in bytes.
    KNOWN_COUNT = 512
    KNOWN_SIZE = 32

cdef PyObject *KNOWN[KNOWN_COUNT]

# The containers that are being read, outermost first.
cdef struct Nesting:
    ReadFrame *frames
    int depth
    int room
    ReadFrame shallow[SHALLOW]


def unpackb(data, *, int max_depth=MAX_DEPTH):
    """Read one value; the buffer must end with it.

    Args:
        data: Any contiguous buffer.
        max_depth: So many containers, one in the other, are refused; 1 to 1024.

    Returns:
        The value.

    Raises:
        DecodeError: The buffer ends inside the value or goes on after it, has a byte
            that MessagePack reserves, a map key that cannot be hashed, containers too
            deep, more than some 11 000 keys in one map that are neither str nor bin,
            or would become more than 16 MiB + 32 times its size of objects.
        ValueError: The depth is out of its range.
    """
    cdef Py_buffer view
    cdef Reader reader
    if not 1 <= max_depth <= MAX_DEPTH:
        raise ValueError(f"max_depth must be 1 to {MAX_DEPTH}, not {max_depth}")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        start_reading(
            &reader, <const uint8_t *>view.buf, view.len, "Failed to parse msgpack",
            "value",
        )
        value = read_value(&reader, MAX_DEPTH - max_depth)
        if reader.offset != reader.size:
            fail_reading(
                &reader, f"{reader.size - reader.offset} bytes after the value",
                reader.offset,
            )
        return value
    finally:
        PyBuffer_Release(&view)


cdef void start_reading(
    Reader *reader, const uint8_t *data, Py_ssize_t size, object prefix, object root
) noexcept:
    """Set a reader to the begin of a payload; prefix and root are kept borrowed."""
    reader.data = data
    reader.size = size
    reader.offset = 0
    reader.budget = BUDGET_BASE + BUDGET_FACTOR * size
    reader.probes = PROBE_BASE + PROBE_FACTOR * size
    reader.prefix = <PyObject *>prefix
    reader.root = <PyObject *>root


cdef inline uint64_t load(const uint8_t *data, int width) noexcept:
    """Read a big-endian number of 0, 1, 2, 4 or 8 bytes."""
    cdef uint64_t value = 0
    if width == 0:
        return 0
    if width == 1:
        return data[0]
    if width == 2:
        return <uint64_t>data[0] << 8 | data[1]
    cdef int i
    for i in range(width):
        value = value << 8 | data[i]
    return value


cdef int read_token(Reader *reader, Token *token) except -1:
    """Read a scalar whole, or the head of a container.

    Raises:
        DecodeError: The payload ends, or the container could not be in what is left
            of it (an element takes a byte), or the byte is one that is reserved.
    """
    if parse_token(reader, token) < 0:
        return fail_token(reader, NULL)
    return 0


cdef inline int parse_token(Reader *reader, Token *token) noexcept:
    """Do the work of `read_token`; return -1 where that raises."""
    cdef Py_ssize_t left = reader.size - reader.offset - 1
    cdef const uint8_t *data = reader.data + reader.offset + 1
    cdef int marker, width = 0
    cdef uint64_t number
    cdef float single
    if left < 0:
        return -1
    marker = reader.data[reader.offset]
    if marker < 0x80:
        token.kind = UINT
        token.number = marker
        reader.offset += 1
        return 0
    if marker >= 0xE0:
        token.kind = INT
        token.number = <uint64_t><int8_t>marker
        reader.offset += 1
        return 0

    # Bytes of the number that follows the marker: a value or a size.
    if marker in (0xC4, 0xC7, 0xCC, 0xD0, 0xD9):
        width = 1
    elif marker in (0xC5, 0xC8, 0xCD, 0xD1, 0xDA, 0xDC, 0xDE):
        width = 2
    elif marker in (0xC6, 0xC9, 0xCA, 0xCE, 0xD2, 0xDB, 0xDD, 0xDF):
        width = 4
    elif marker in (0xCB, 0xCF, 0xD3):
        width = 8
    if width > left:
        return -1
    number = load(data, width)
    data += width
    left -= width
    token.number = number

    if marker < 0xA0 or marker >= 0xDC:
        # 8x, de and df are maps; 9x, dc and dd arrays.
        token.kind = MAP if marker < 0x90 or marker >= 0xDE else ARRAY
        if marker < 0xA0:
            number = marker & 0x0F
        # The widest is 32 bits. An element takes a byte at least, a pair takes two.
        token.size = <Py_ssize_t>number
        if token.size > (left if token.kind == ARRAY else left // 2):
            return -1
        reader.offset = data - reader.data
        return 0
    if marker < 0xC0:
        token.kind = STR
        number = marker & 0x1F
    elif marker >= 0xD9:
        token.kind = STR
    elif 0xC4 <= marker <= 0xC6:
        token.kind = BIN
    elif 0xC7 <= marker <= 0xC9 or marker >= 0xD4:
        token.kind = EXT
        if marker >= 0xD4:
            number = 1 << (marker - 0xD4)
        # The type byte, which is dropped.
        data += 1
        left -= 1
    else:
        if marker == 0xC0:
            token.kind = NIL
        elif marker == 0xC1:
            return -1
        elif marker <= 0xC3:
            token.kind = BOOL
            token.number = marker & 1
        elif marker == 0xCA:
            token.kind = FLOAT
            single = 0
            float_bits(&single, <uint32_t>number)
            token.real = single
        elif marker == 0xCB:
            token.kind = FLOAT
            memcpy(&token.real, &number, sizeof(number))
        elif marker <= 0xCF:
            token.kind = UINT
        else:
            token.number = sign_extend(number, width)
            token.kind = INT if <int64_t>token.number < 0 else UINT
        reader.offset = data - reader.data
        return 0
    token.size = <Py_ssize_t>number
    token.body = data
    if token.size > left:
        return -1
    reader.offset = data - reader.data + token.size
    return 0


cdef inline uint64_t sign_extend(uint64_t bits, int width) noexcept:
    """Widen a two's complement number of `width` bytes to 64 bits."""
    return <uint64_t>(<int64_t>(bits << (64 - 8 * width)) >> (64 - 8 * width))


cdef inline void float_bits(float *out, uint32_t bits) noexcept:
    memcpy(out, &bits, sizeof(bits))


cdef int fail_token(Reader *reader, Nesting *nesting) except -1:
    """Raise for the bytes at the reader's offset."""
    if reader.offset < reader.size and reader.data[reader.offset] == 0xC1:
        return fail_at(reader, nesting, "reserved byte 0xc1", reader.offset)
    return fail_at(reader, nesting, "unexpected end of the payload", reader.offset)


cdef int fail_reading(Reader *reader, str what, Py_ssize_t offset) except -1:
    """Raise DecodeError for the part of the message that is being read."""
    return fail_at(reader, NULL, what, offset)


cdef int fail_at(
    Reader *reader, Nesting *nesting, str what, Py_ssize_t offset
) except -1:
    """Raise DecodeError with the place inside of the containers, if there are any."""
    cdef int i
    cdef ReadFrame *frame
    cdef list steps = []
    if nesting is not NULL:
        for i in range(nesting.depth):
            frame = &nesting.frames[i]
            if not frame.is_map:
                steps.append(f"[{frame.index}]")
            elif frame.key is not NULL:
                steps.append(key_step(<object>frame.key))
    raise DecodeError(
        f"{<str>reader.prefix}: {what}", path=join_path(<str>reader.root, steps),
        offset=offset,
    )


cdef object read_value(Reader *reader, int outer):
    """Read a value, inside of `outer` containers already."""
    return read_nested(reader, outer, False)


cdef dict read_data(Reader *reader, int outer):
    """Read a message's `data`: a map whose own keys are str, or bin that is UTF-8."""
    return read_nested(reader, outer, True)


cdef object read_nested(Reader *reader, int outer, bint strict):
    """Read a value and let go of what is left on the stack if that fails."""
    cdef Nesting nesting
    nesting.frames = nesting.shallow
    nesting.depth = 0
    nesting.room = SHALLOW
    try:
        return read_frames(reader, &nesting, outer, strict)
    finally:
        while nesting.depth:
            nesting.depth -= 1
            Py_XDECREF(nesting.frames[nesting.depth].key)
            Py_XDECREF(nesting.frames[nesting.depth].container)
        if nesting.frames is not nesting.shallow:
            PyMem_Free(nesting.frames)


cdef object read_frames(Reader *reader, Nesting *nesting, int outer, bint strict):
    """Read values until the outermost is complete; it is what is returned."""
    cdef Token token
    cdef ReadFrame *frame = NULL
    cdef Py_ssize_t offset
    cdef bint at_key
    while True:
        offset = reader.offset
        if parse_token(reader, &token) < 0:
            fail_token(reader, nesting)
        at_key = frame is not NULL and frame.is_map and frame.key is NULL
        if strict and nesting.depth == 0 and token.kind != MAP:
            fail_at(reader, nesting, "invalid type, expected a map", offset)
        if token.kind == ARRAY or token.kind == MAP:
            if at_key:
                fail_at(reader, nesting, "a map key cannot be hashed", offset)
            if outer + nesting.depth + 1 >= MAX_DEPTH:
                fail_at(reader, nesting, "depth limit exceeded", offset)
            reader.budget -= container_cost(&token)
            if reader.budget < 0:
                fail_at(reader, nesting, "too many objects for its size", offset)
            value = {} if token.kind == MAP else PyList_New(token.size)
            if token.size:
                frame = nest(nesting, value, token.size, token.kind == MAP)
                continue
        elif at_key and strict and nesting.depth == 1:
            if token.kind != STR and token.kind != BIN:
                fail_at(reader, nesting, "a key of data must be a str", offset)
            value = make_key(reader, &token)
            if type(value) is not str:
                fail_at(reader, nesting, "a key of data is not UTF-8", offset)
        elif at_key and token.kind == STR:
            value = make_key(reader, &token)
        else:
            value = make_scalar(reader, &token)
        if reader.budget < 0:
            fail_at(reader, nesting, "too many objects for its size", offset)

        # Put it into its place, and each container that is complete into its own.
        while True:
            if frame is NULL:
                return value
            if not frame.is_map:
                Py_INCREF(value)
                set_list_item(frame.container, frame.index, <PyObject *>value)
            elif frame.key is NULL:
                Py_INCREF(value)
                frame.key = <PyObject *>value
                break
            else:
                if not has_seeded_hash(<object>frame.key):
                    charge_probes(reader, nesting, PyDict_Size(<object>frame.container))
                PyDict_SetItem(<object>frame.container, <object>frame.key, value)
                Py_CLEAR(frame.key)
            frame.index += 1
            if frame.index < frame.size:
                break
            value = <object>frame.container
            nesting.depth -= 1
            Py_XDECREF(frame.container)
            frame = &nesting.frames[nesting.depth - 1] if nesting.depth else NULL


cdef inline bint has_seeded_hash(object key) noexcept:
    """Say whether a peer cannot know a key's hash: it collides by chance only."""
    return type(key) is str or type(key) is bytes


cdef int charge_probes(Reader *reader, Nesting *nesting, Py_ssize_t size) except -1:
    """Charge for a key of known hash in a dict of `size`: it may meet every other one.

    With chosen numbers as keys an insertion costs as many probes as the dict has
    entries: without this a megabyte would take a minute.
    """
    if size > FREE_PROBES:
        reader.probes -= size
        if reader.probes < 0:
            fail_at(
                reader, nesting, "too many map keys that are no str", reader.offset
            )
    return 0


cdef Py_ssize_t container_cost(const Token *token) noexcept:
    """Estimate a list or a dict without what is in it, in bytes."""
    if token.kind == ARRAY:
        return LIST_COST + SLOT_COST * token.size
    return DICT_COST + (TABLE_COST + PAIR_COST * token.size if token.size else 0)


cdef ReadFrame *nest(
    Nesting *nesting, object container, Py_ssize_t size, bint is_map
) except NULL:
    """Put a container that waits for elements on the stack."""
    cdef ReadFrame *frames
    if nesting.depth == nesting.room:
        frames = <ReadFrame *>PyMem_Malloc(2 * nesting.room * sizeof(ReadFrame))
        if frames is NULL:
            raise MemoryError
        memcpy(frames, nesting.frames, nesting.room * sizeof(ReadFrame))
        if nesting.frames is not nesting.shallow:
            PyMem_Free(nesting.frames)
        nesting.frames = frames
        nesting.room *= 2
    Py_INCREF(container)
    nesting.frames[nesting.depth] = ReadFrame(
        container=<PyObject *>container, key=NULL, index=0, size=size, is_map=is_map
    )
    nesting.depth += 1
    return &nesting.frames[nesting.depth - 1]


cdef object make_scalar(Reader *reader, const Token *token):
    """Make the Python value of a token that is no container, and charge for it."""
    if token.kind == STR:
        return make_string(reader, token)
    if token.kind == UINT:
        if token.number > 0xFF:
            reader.budget -= NUMBER_COST
        # CPython makes ints of one digit from a signed long fastest (16 to 12 ns).
        if token.number <= INT32_MAX:
            return <long>token.number
        return token.number
    if token.kind == NIL:
        return None
    if token.kind == BOOL:
        return token.number != 0
    if token.kind == INT:
        reader.budget -= NUMBER_COST
        return <int64_t>token.number
    if token.kind == FLOAT:
        reader.budget -= NUMBER_COST
        return token.real
    return make_bytes(reader, token)


cdef object make_string(Reader *reader, const Token *token):
    """Make a str, or bytes if it is not UTF-8, and charge for it."""
    text = make_text(token)
    if text is None:
        return make_bytes(reader, token)
    charge_string(reader, token.size, text_size(text) * text_width(text))
    return text


cdef bytes make_bytes(Reader *reader, const Token *token):
    """Make bytes and charge for them."""
    charge_string(reader, token.size, token.size)
    cdef bytes value = PyBytes_FromStringAndSize(NULL, token.size)
    cdef char *data = PyBytes_AS_STRING(value)
    expect_pages(data, token.size)
    memcpy(data, token.body, token.size)
    return value


cdef inline void charge_string(
    Reader *reader, Py_ssize_t size, Py_ssize_t memory
) noexcept:
    """Charge for a str or bytes of `size` on the wire; CPython keeps the shortest."""
    if size > 1:
        reader.budget -= TEXT_COST + memory


cdef object make_key(Reader *reader, const Token *token):
    """Make the value of a STR token, or a BIN token as if it were one; charge for it.

    Field names come again and again: a short one is looked up among those of late,
    which saves making it and hashing it. Only the holder of the GIL comes here.
    """
    cdef uint64_t mix = <uint64_t>token.size
    cdef Py_ssize_t i
    cdef PyObject **known
    if token.size > KNOWN_SIZE:
        return make_string(reader, token)
    for i in range(token.size):
        mix = (mix ^ token.body[i]) * <uint64_t>0x100000001B3
    known = &KNOWN[(mix ^ mix >> 32) & (KNOWN_COUNT - 1)]
    # What is known is ASCII, so that its characters are its bytes.
    if known[0] is NULL or text_size(<object>known[0]) != token.size or memcmp(
        text_data(<object>known[0]), token.body, token.size
    ):
        value = make_string(reader, token)
        if type(value) is str and text_size(value) == token.size:
            Py_INCREF(value)
            Py_XDECREF(known[0])
            known[0] = <PyObject *>value
        return value
    # What is found costs as much as what is made: no message may fail by chance.
    charge_string(reader, token.size, token.size)
    return <object>known[0]


cdef object make_text(const Token *token):
    """Make the str of a STR or BIN token, or None if it is not UTF-8."""
    cdef PyObject *text = text_or_null(<const char *>token.body, token.size, NULL)
    if text is NULL:
        return reject_text()
    value = <object>text
    Py_XDECREF(text)
    return value


cdef object reject_text():
    """Return None for invalid UTF-8, and raise what else the decoder raised."""
    if PyErr_ExceptionMatches(UnicodeDecodeError):
        PyErr_Clear()
        return None
    raise_pending()
