"""The buffer primitives as Python sees them; the primitives are inline in the .pxd.

Source: RFC 9000 section 16 (variable-length integers).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc


def read(str kind, const uint8_t[::1] data not None, uint64_t size=0):
    """Read one value from the start of ``data``.

    Args:
        kind: ``u8``, ``u16``, ``u32``, ``u64`` or ``varint``; ``bytes`` or ``skip``.
        data: The bytes to read from.
        size: Bytes to take, for the last two kinds.

    Returns:
        The status, the value (None after a failure or a skip) and the bytes consumed.

    Raises:
        ValueError: The kind is not known.
    """
    cdef Reader r
    cdef const uint8_t* start = NULL
    cdef const uint8_t* view = NULL
    cdef uint8_t u8 = 0
    cdef uint16_t u16 = 0
    cdef uint32_t u32 = 0
    cdef uint64_t u64 = 0
    cdef int status
    if data.shape[0]:
        start = &data[0]
    reader_init(&r, start, data.shape[0])
    value = None
    if kind == "u8":
        status = reader_u8(&r, &u8)
        value = u8
    elif kind == "u16":
        status = reader_u16(&r, &u16)
        value = u16
    elif kind == "u32":
        status = reader_u32(&r, &u32)
        value = u32
    elif kind == "u64":
        status = reader_u64(&r, &u64)
        value = u64
    elif kind == "varint":
        status = reader_varint(&r, &u64)
        value = u64
    elif kind == "bytes":
        status = reader_bytes(&r, size, &view)
        value = (<const char*> view)[:r.pos - view] if status == OK else None
    elif kind == "skip":
        status = reader_skip(&r, size)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    return status, value if status == OK else None, r.pos - start


def write(str kind, value, Py_ssize_t room):
    """Write one value into a buffer of ``room`` bytes.

    Args:
        kind: ``u8``, ``u16``, ``u32``, ``u64`` or ``varint``; ``bytes`` or ``skip``
            (a hole of ``value`` bytes, filled with 0xff).
        value: The number, or the bytes.
        room: Size of the buffer in bytes, from 0.

    Returns:
        The status and what was written.

    Raises:
        ValueError: The kind is not known, or the room is negative.
        MemoryError: There is no memory for the buffer.
    """
    cdef Writer w
    cdef uint8_t* hole = NULL
    cdef const uint8_t[::1] view
    cdef int status
    if room < 0:
        raise ValueError("the room is negative")
    # A block of exactly this size lets a sanitizer see a write past the end.
    cdef uint8_t* block = <uint8_t*> malloc(room if room else 1)
    if block is NULL:
        raise MemoryError
    try:
        writer_init(&w, block, room)
        if kind == "u8":
            status = writer_u8(&w, value)
        elif kind == "u16":
            status = writer_u16(&w, value)
        elif kind == "u32":
            status = writer_u32(&w, value)
        elif kind == "u64":
            status = writer_u64(&w, value)
        elif kind == "varint":
            status = writer_varint(&w, value)
        elif kind == "bytes":
            view = value
            status = writer_bytes(&w, &view[0] if view.shape[0] else NULL, len(view))
        elif kind == "skip":
            status = writer_skip(&w, value, &hole)
            if status == OK:
                for i in range(w.pos - hole):
                    hole[i] = 0xFF
        else:
            raise ValueError(f"unknown kind {kind!r}")
        return status, (<char*> block)[:writer_size(&w)]
    finally:
        free(block)


def size_varint(uint64_t value):
    """Return the size in bytes of the shortest varint, 0 if there is none."""
    return varint_size(value)
