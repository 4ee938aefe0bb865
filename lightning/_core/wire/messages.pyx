"""The six messages of the protocol.

On the wire each is a MessagePack array of its fields in order. Read, it may also be a
map from field names, or from field numbers, as the peer accepts it: unknown keys are
ignored, a missing field is an error unless it may be nil. A str may be bin that is
UTF-8; what follows the message in its payload is ignored.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from libc.stdint cimport UINT32_MAX
from libc.string cimport memcmp

from lightning._core.wire.framing cimport (
    DEFAULT_MAX_FRAME_PAYLOAD,
    HANDSHAKE_REQUEST,
    HANDSHAKE_RESPONSE,
    HEADER_SIZE,
    STREAM_CHUNK,
    STREAM_END,
    SYNAPSE_PACKET,
    SYNAPSE_RESPONSE,
)
from lightning._core.wire.packer cimport is_mapping, new_writer
from lightning._core.wire.unpacker cimport (
    ARRAY,
    BIN,
    BOOL,
    MAP,
    NIL,
    STR,
    UINT,
    Token,
    fail_reading,
    make_text,
    read_data,
    read_token,
    read_value,
    start_reading,
)

from lightning.errors import UnknownMessageType

# Names of the token kinds in error texts, in their order.
cdef tuple TOKEN_NAMES = (
    "nil", "a boolean", "an integer", "a negative integer", "a float", "a string",
    "bytes", "an extension", "an array", "a map",
)
# The one container around each field.
cdef enum:
    OUTER = 1


# --- one call for each frame of a request --------------------------------------------


cpdef bytes encode_synapse_packet(
    str synapse_type, object data, uint64_t timestamp,
    Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD,
):
    """Write a request as one frame.

    Args:
        synapse_type: The handler's name.
        data: A mapping with str keys; its values as in `wire.msgpack`.
        timestamp: Unix seconds.
        max_payload: Most bytes of payload.

    Returns:
        The frame, header included.

    Raises:
        EncodeTypeError: `data` is no mapping, a key of it is no str, or a value has a
            type that MessagePack cannot say.
        EncodeError: A value that it cannot say.
        FrameTooLarge: The payload would exceed the limit; its size is what it had
            reached.
    """
    cdef Writer writer = begin(3, max_payload)
    write_text(writer, synapse_type, "synapse_type")
    writer.root = "data"
    writer.write_data(data)
    writer.write_uint(timestamp)
    return writer.finish_frame(SYNAPSE_PACKET)


cpdef bytes encode_synapse_response(
    bint success, object data, uint64_t timestamp, str error=None,
    Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD,
):
    """Write an answer as one frame.

    Args:
        success: False if `error` says what went wrong.
        data: A mapping with str keys, empty on failure.
        timestamp: Unix seconds.
        error: The text, None on success.
        max_payload: Most bytes of payload.

    Returns:
        The frame, header included.

    Raises:
        EncodeTypeError: See `encode_synapse_packet`.
        EncodeError: See there.
        FrameTooLarge: See there.
    """
    cdef Writer writer = begin(4, max_payload)
    writer.write_bool(success)
    writer.root = "data"
    writer.write_data(data)
    writer.write_uint(timestamp)
    write_optional(writer, error, "error")
    return writer.finish_frame(SYNAPSE_RESPONSE)


cpdef bytes encode_stream_chunk(
    object data, Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD
):
    """Write one chunk of a streamed answer as one frame.

    Args:
        data: Bytes, or another buffer of single bytes.
        max_payload: Most bytes of payload.

    Returns:
        The frame, header included.

    Raises:
        EncodeTypeError: `data` is anything else.
        FrameTooLarge: The payload would exceed the limit.
    """
    cdef Writer writer = begin(1, max_payload)
    writer.root = "data"
    writer.write_octets(data)
    return writer.finish_frame(STREAM_CHUNK)


cpdef bytes encode_stream_end(
    bint success, str error=None, Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD
):
    """Write the end of a streamed answer as one frame.

    Args:
        success: False if the stream failed.
        error: The text, None on success.
        max_payload: Most bytes of payload.

    Returns:
        The frame, header included.

    Raises:
        EncodeError: `error` has lone surrogates.
        FrameTooLarge: The payload would exceed the limit.
    """
    cdef Writer writer = begin(2, max_payload)
    writer.write_bool(success)
    write_optional(writer, error, "error")
    return writer.finish_frame(STREAM_END)


cpdef Message decode_message(int frame_type, object payload):
    """Read the message that a frame carries.

    Args:
        frame_type: The frame's type byte.
        payload: Any contiguous buffer.

    Returns:
        One of the six messages.

    Raises:
        UnknownMessageType: The type byte is none of the six.
        DecodeError: The payload is not such a message.
    """
    cdef Py_buffer view
    if type(payload) is bytes:
        return decode_raw(
            frame_type, <const uint8_t *>PyBytes_AS_STRING(payload),
            PyBytes_GET_SIZE(payload),
        )
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        return decode_raw(frame_type, <const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef Message decode_raw(int frame_type, const uint8_t *data, Py_ssize_t size):
    """Read the message in `size` bytes at `data`; see `decode_message`."""
    cdef Message message
    if frame_type == SYNAPSE_PACKET:
        message = SynapsePacket.__new__(SynapsePacket)
    elif frame_type == SYNAPSE_RESPONSE:
        message = SynapseResponse.__new__(SynapseResponse)
    elif frame_type == STREAM_CHUNK:
        message = StreamChunk.__new__(StreamChunk)
    elif frame_type == STREAM_END:
        message = StreamEnd.__new__(StreamEnd)
    elif frame_type == HANDSHAKE_REQUEST:
        message = HandshakeRequest.__new__(HandshakeRequest)
    elif frame_type == HANDSHAKE_RESPONSE:
        message = HandshakeResponse.__new__(HandshakeResponse)
    else:
        raise UnknownMessageType(frame_type)
    read_message(message, data, size)
    return message


# --- the messages --------------------------------------------------------------------


@cython.auto_pickle(False)
cdef class Message:
    """What the six messages have in common; never made itself.

    Messages are equal if they are of one class and all their fields are. They cannot
    be hashed, and their fields cannot be set.
    """

    def __init__(self):
        raise TypeError("Message is the base of the messages")

    @classmethod
    def from_payload(cls, payload):
        """Read a message of this class.

        Args:
            payload: Any contiguous buffer. What follows the message is ignored.

        Returns:
            The message.

        Raises:
            DecodeError: The payload is not such a message; `path` says where.
        """
        cdef Message message = cls.__new__(cls)
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            read_message(message, <const uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return message

    def to_frame(self, Py_ssize_t max_payload=DEFAULT_MAX_FRAME_PAYLOAD):
        """Write the message as one frame.

        Args:
            max_payload: Most bytes of payload.

        Returns:
            The frame, header included.

        Raises:
            EncodeTypeError: `data` has a part that MessagePack cannot say.
            EncodeError: Likewise, or a str has lone surrogates.
            FrameTooLarge: The payload would exceed the limit.
        """
        cdef Layout layout = self.layout()
        cdef Writer writer = begin(layout.size, max_payload)
        self.write_fields(writer)
        return writer.finish_frame(layout.frame_type)

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self.values() == (<Message>other).values()

    def __repr__(self):
        cdef Layout layout = self.layout()
        shown = [
            f"{name}={summary(name, value)}"
            for name, value in zip(layout.fields, self.values(), strict=True)
        ]
        return f"{layout.name}({', '.join(shown)})"

    cdef Layout layout(self):
        """Say what the message looks like on the wire."""
        raise NotImplementedError

    cdef tuple values(self):
        """Give the fields in their order on the wire."""
        raise NotImplementedError

    cdef int read_field(self, int index, Reader *reader) except -1:
        """Read the field with this number."""
        raise NotImplementedError

    cdef int write_fields(self, Writer writer) except -1:
        """Write all fields in their order."""
        raise NotImplementedError


@cython.final
@cython.auto_pickle(False)
cdef class HandshakeRequest(Message):
    """The validator's login.

    Args:
        validator_hotkey: SS58 address.
        timestamp: Unix seconds.
        nonce: 32 hexadecimal digits.
        signature: Base64 of the 64 bytes of an sr25519 signature.
    """

    def __init__(
        self, str validator_hotkey not None, uint64_t timestamp, str nonce not None,
        str signature not None,
    ):
        self.validator_hotkey = validator_hotkey
        self.timestamp = timestamp
        self.nonce = nonce
        self.signature = signature

    cdef Layout layout(self):
        return HANDSHAKE_REQUEST_LAYOUT

    cdef tuple values(self):
        return self.validator_hotkey, self.timestamp, self.nonce, self.signature

    cdef int read_field(self, int index, Reader *reader) except -1:
        if index == 0:
            self.validator_hotkey = read_str(reader)
        elif index == 1:
            self.timestamp = read_uint(reader)
        elif index == 2:
            self.nonce = read_str(reader)
        else:
            self.signature = read_str(reader)
        return 0

    cdef int write_fields(self, Writer writer) except -1:
        write_text(writer, self.validator_hotkey, "validator_hotkey")
        writer.write_uint(self.timestamp)
        write_text(writer, self.nonce, "nonce")
        return write_text(writer, self.signature, "signature")


@cython.final
@cython.auto_pickle(False)
cdef class HandshakeResponse(Message):
    """The miner's answer to a login.

    Args:
        miner_hotkey: SS58 address; may be empty in a refusal.
        timestamp: Unix seconds on the miner's clock.
        signature: Base64 of the 64 bytes of an sr25519 signature; empty in a refusal.
        accepted: False in a refusal.
        connection_id: Free text; empty in a refusal.
        cert_fingerprint: Base64 of the fingerprint of the server's certificate; None
            in a refusal, and if the field is missing.
    """

    def __init__(
        self, str miner_hotkey not None, uint64_t timestamp, str signature not None,
        bint accepted, str connection_id not None, str cert_fingerprint=None,
    ):
        self.miner_hotkey = miner_hotkey
        self.timestamp = timestamp
        self.signature = signature
        self.accepted = accepted
        self.connection_id = connection_id
        self.cert_fingerprint = cert_fingerprint

    cdef Layout layout(self):
        return HANDSHAKE_RESPONSE_LAYOUT

    cdef tuple values(self):
        return (
            self.miner_hotkey, self.timestamp, self.signature, self.accepted,
            self.connection_id, self.cert_fingerprint,
        )

    cdef int read_field(self, int index, Reader *reader) except -1:
        if index == 0:
            self.miner_hotkey = read_str(reader)
        elif index == 1:
            self.timestamp = read_uint(reader)
        elif index == 2:
            self.signature = read_str(reader)
        elif index == 3:
            self.accepted = read_bool(reader)
        elif index == 4:
            self.connection_id = read_str(reader)
        else:
            self.cert_fingerprint = read_str(reader, True)
        return 0

    cdef int write_fields(self, Writer writer) except -1:
        write_text(writer, self.miner_hotkey, "miner_hotkey")
        writer.write_uint(self.timestamp)
        write_text(writer, self.signature, "signature")
        writer.write_bool(self.accepted)
        write_text(writer, self.connection_id, "connection_id")
        return write_optional(writer, self.cert_fingerprint, "cert_fingerprint")


@cython.final
@cython.auto_pickle(False)
cdef class SynapsePacket(Message):
    """A request.

    Args:
        synapse_type: The handler's name.
        data: A mapping with str keys.
        timestamp: Unix seconds.
    """

    def __init__(self, str synapse_type not None, object data, uint64_t timestamp):
        self.synapse_type = synapse_type
        self.data = data
        self.timestamp = timestamp

    cdef Layout layout(self):
        return SYNAPSE_PACKET_LAYOUT

    cdef tuple values(self):
        return self.synapse_type, self.data, self.timestamp

    cdef int read_field(self, int index, Reader *reader) except -1:
        if index == 0:
            self.synapse_type = read_str(reader)
        elif index == 1:
            self.data = read_data(reader, OUTER)
        else:
            self.timestamp = read_uint(reader)
        return 0

    cdef int write_fields(self, Writer writer) except -1:
        write_text(writer, self.synapse_type, "synapse_type")
        writer.root = "data"
        writer.write_data(self.data)
        return writer.write_uint(self.timestamp)


@cython.final
@cython.auto_pickle(False)
cdef class SynapseResponse(Message):
    """The answer to a request.

    Args:
        success: False if `error` says what went wrong.
        data: A mapping with str keys, empty on failure.
        timestamp: Unix seconds.
        error: The text, None on success.
    """

    def __init__(
        self, bint success, object data, uint64_t timestamp, str error=None
    ):
        self.success = success
        self.data = data
        self.timestamp = timestamp
        self.error = error

    cdef Layout layout(self):
        return SYNAPSE_RESPONSE_LAYOUT

    cdef tuple values(self):
        return self.success, self.data, self.timestamp, self.error

    cdef int read_field(self, int index, Reader *reader) except -1:
        if index == 0:
            self.success = read_bool(reader)
        elif index == 1:
            self.data = read_data(reader, OUTER)
        elif index == 2:
            self.timestamp = read_uint(reader)
        else:
            self.error = read_str(reader, True)
        return 0

    cdef int write_fields(self, Writer writer) except -1:
        writer.write_bool(self.success)
        writer.root = "data"
        writer.write_data(self.data)
        writer.write_uint(self.timestamp)
        return write_optional(writer, self.error, "error")


@cython.final
@cython.auto_pickle(False)
cdef class StreamChunk(Message):
    """A part of a streamed answer.

    Args:
        data: Bytes, or another buffer of single bytes; bytes when read.
    """

    def __init__(self, object data):
        self.data = data

    cdef Layout layout(self):
        return STREAM_CHUNK_LAYOUT

    cdef tuple values(self):
        return (self.data,)

    cdef int read_field(self, int index, Reader *reader) except -1:
        self.data = read_octets(reader)
        return 0

    cdef int write_fields(self, Writer writer) except -1:
        writer.root = "data"
        return writer.write_octets(self.data)


@cython.final
@cython.auto_pickle(False)
cdef class StreamEnd(Message):
    """The end of a streamed answer.

    Args:
        success: False if the stream failed.
        error: The text, None on success.
    """

    def __init__(self, bint success, str error=None):
        self.success = success
        self.error = error

    cdef Layout layout(self):
        return STREAM_END_LAYOUT

    cdef tuple values(self):
        return self.success, self.error

    cdef int read_field(self, int index, Reader *reader) except -1:
        if index == 0:
            self.success = read_bool(reader)
        else:
            self.error = read_str(reader, True)
        return 0

    cdef int write_fields(self, Writer writer) except -1:
        writer.write_bool(self.success)
        return write_optional(writer, self.error, "error")


# --- how they look on the wire -------------------------------------------------------


@cython.final
@cython.auto_pickle(False)
cdef class Layout:
    """The fields of one message, and its names in error texts."""

    def __cinit__(self, int frame_type, str name, tuple fields, tuple optional=()):
        cdef int i
        self.frame_type = frame_type
        self.name = name
        self.fields = fields
        self.keys = [field.encode() for field in fields]
        self.paths = tuple([f"{name}.{field}" for field in fields])
        words = "".join([f" {c.lower()}" if c.isupper() else c for c in name])
        self.prefix = f"Failed to parse{words}"
        self.size = len(fields)
        self.least = self.size
        for i in range(self.size):
            if fields[i] not in optional:
                self.required |= 1 << i


cdef Layout HANDSHAKE_REQUEST_LAYOUT = Layout(
    HANDSHAKE_REQUEST, "HandshakeRequest",
    ("validator_hotkey", "timestamp", "nonce", "signature"),
)
cdef Layout HANDSHAKE_RESPONSE_LAYOUT = Layout(
    HANDSHAKE_RESPONSE, "HandshakeResponse",
    (
        "miner_hotkey", "timestamp", "signature", "accepted", "connection_id",
        "cert_fingerprint",
    ),
    ("cert_fingerprint",),
)
# The one message whose array may end before its last field.
HANDSHAKE_RESPONSE_LAYOUT.least = 5
cdef Layout SYNAPSE_PACKET_LAYOUT = Layout(
    SYNAPSE_PACKET, "SynapsePacket", ("synapse_type", "data", "timestamp")
)
cdef Layout SYNAPSE_RESPONSE_LAYOUT = Layout(
    SYNAPSE_RESPONSE, "SynapseResponse", ("success", "data", "timestamp", "error"),
    ("error",),
)
cdef Layout STREAM_CHUNK_LAYOUT = Layout(STREAM_CHUNK, "StreamChunk", ("data",))
cdef Layout STREAM_END_LAYOUT = Layout(
    STREAM_END, "StreamEnd", ("success", "error"), ("error",)
)


cdef Writer begin(int fields, Py_ssize_t max_payload):
    """Begin a frame with a message of so many fields."""
    # The frame's length has 32 bits.
    cdef Writer writer = new_writer(
        HEADER_SIZE, min(max_payload, <Py_ssize_t>UINT32_MAX)
    )
    writer.outer = OUTER
    writer.write_array_header(fields)
    return writer


cdef int write_text(Writer writer, str value, str name) except -1:
    if value is None:
        raise TypeError(f"{name} must be a str, not None")
    writer.root = name
    return writer.write_str(value)


cdef int write_optional(Writer writer, str value, str name) except -1:
    if value is None:
        return writer.write_nil()
    return write_text(writer, value, name)


cdef int read_message(Message message, const uint8_t *data, Py_ssize_t size) except -1:
    """Fill a message, which is empty, from a payload."""
    cdef Layout layout = message.layout()
    cdef Reader reader
    cdef Token token
    cdef int i
    start_reading(&reader, data, size, layout.prefix, layout.name)
    read_token(&reader, &token)
    if token.kind == MAP:
        return read_map(message, layout, &reader, token.size)
    if token.kind != ARRAY:
        return fail_type(&reader, &token, f"an array of {layout.size}")
    if not layout.least <= token.size <= layout.size:
        fail_reading(
            &reader, f"array had incorrect length, expected {layout.size}", 0
        )
    for i in range(<int>token.size):
        reader.root = <PyObject *>layout.paths[i]
        message.read_field(i, &reader)
    return 0


cdef int read_map(
    Message message, Layout layout, Reader *reader, Py_ssize_t size
) except -1:
    """Fill a message from a map of names or numbers."""
    cdef int seen = 0
    cdef int index
    for _ in range(size):
        reader.root = <PyObject *>layout.name
        offset = reader.offset
        index = read_field_key(layout, reader)
        if index < 0:
            read_value(reader, OUTER)
            continue
        if seen & (1 << index):
            fail_reading(reader, f"duplicate field `{layout.fields[index]}`", offset)
        seen |= 1 << index
        reader.root = <PyObject *>layout.paths[index]
        message.read_field(index, reader)
    reader.root = <PyObject *>layout.name
    for index in range(layout.size):
        if layout.required & ~seen & (1 << index):
            fail_reading(
                reader, f"missing field `{layout.fields[index]}`", reader.offset
            )
    return 0


cdef int read_field_key(Layout layout, Reader *reader) except -2:
    """Read the key of a field; return its number, or -1 if there is none such."""
    cdef Token token
    cdef int i
    read_token(reader, &token)
    if token.kind == UINT:
        return <int>token.number if token.number < <uint64_t>layout.size else -1
    if token.kind != STR and token.kind != BIN:
        fail_type(reader, &token, "the name of a field")
    for i in range(layout.size):
        key = <bytes>layout.keys[i]
        if token.size == len(key) and not memcmp(token.body, <char *>key, len(key)):
            return i
    return -1


cdef int fail_type(Reader *reader, Token *token, str expected) except -1:
    """Raise for a token of the wrong kind, just read."""
    return fail_reading(
        reader, f"invalid type: {TOKEN_NAMES[token.kind]}, expected {expected}",
        reader.offset,
    )


cdef str read_str(Reader *reader, bint optional=False):
    """Read a str, or bin that is UTF-8; or nil, which gives None."""
    cdef Token token
    read_token(reader, &token)
    if token.kind == STR or token.kind == BIN:
        text = make_text(&token)
        if text is None:
            fail_reading(reader, "invalid UTF-8", reader.offset)
        return text
    if not optional or token.kind != NIL:
        fail_type(reader, &token, "a string")
    return None


cdef uint64_t read_uint(Reader *reader) except? 0:
    """Read an integer that is not negative, in whatever form."""
    cdef Token token
    read_token(reader, &token)
    if token.kind != UINT:
        fail_type(reader, &token, "an unsigned integer")
    return token.number


cdef bint read_bool(Reader *reader) except -1:
    """Read a truth value."""
    cdef Token token
    read_token(reader, &token)
    if token.kind != BOOL:
        fail_type(reader, &token, "a boolean")
    return token.number != 0


cdef bytes read_octets(Reader *reader):
    """Read bin, or str as its bytes, or an array of integers below 256."""
    cdef Token token, item
    cdef uint8_t *out
    cdef Py_ssize_t i
    read_token(reader, &token)
    if token.kind == BIN or token.kind == STR:
        return PyBytes_FromStringAndSize(<const char *>token.body, token.size)
    if token.kind != ARRAY:
        fail_type(reader, &token, "bytes")
    data = PyBytes_FromStringAndSize(NULL, token.size)
    out = <uint8_t *>PyBytes_AS_STRING(data)
    for i in range(token.size):
        read_token(reader, &item)
        if item.kind != UINT or item.number > 0xFF:
            fail_type(reader, &item, "integers below 256")
        out[i] = <uint8_t>item.number
    return data


cdef str summary(str name, object value):
    """Show a field without its contents where those may be long or secret."""
    if name == "signature" and value is not None:
        return f"<{len(value)} characters>"
    if name != "data":
        return repr(value)
    if is_mapping(value):
        return f"<{len(value)} keys>"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return f"<{type(value).__name__}>"
