"""MessagePack to Python values, bounded."""

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t

cpdef enum:
    # Most bytes of Python objects that a payload of n bytes may become:
    # BUDGET_BASE + BUDGET_FACTOR * n.
    BUDGET_BASE = 16777216
    BUDGET_FACTOR = 32
    # Most hash table probes, 3 ns each, that map keys other than str and bin may cost:
    # PROBE_BASE + PROBE_FACTOR * n. One map may have 11 600 such keys.
    PROBE_BASE = 67108864
    PROBE_FACTOR = 8

cdef enum TokenKind:
    NIL
    BOOL
    UINT
    # A negative integer.
    INT
    FLOAT
    STR
    BIN
    EXT
    ARRAY
    MAP

cdef struct Token:
    int kind
    # BOOL, UINT, and INT in two's complement.
    uint64_t number
    # FLOAT.
    double real
    # Bytes of STR, BIN, EXT at `body`; elements of ARRAY; pairs of MAP. All are known
    # to fit into what is left of the payload.
    Py_ssize_t size
    const uint8_t *body

cdef struct Reader:
    const uint8_t *data
    Py_ssize_t size
    Py_ssize_t offset
    # Bytes of Python objects that may still be made.
    Py_ssize_t budget
    Py_ssize_t probes
    # Borrowed str: what opens an error's text, and the name of what is read.
    PyObject *prefix
    PyObject *root

cdef void start_reading(
    Reader *reader, const uint8_t *data, Py_ssize_t size, object prefix, object root
) noexcept
cdef int read_token(Reader *reader, Token *token) except -1
cdef object make_text(const Token *token)
cdef object read_value(Reader *reader, int outer)
cdef dict read_data(Reader *reader, int outer)
cdef int fail_reading(Reader *reader, str what, Py_ssize_t offset) except -1
