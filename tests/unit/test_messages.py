"""The six messages: made, written, read, and refused with the place of the trouble."""

from collections import UserDict

import msgpack
import pytest

from lightning._core.wire import messages
from lightning._core.wire.framing import MessageType, parse_frame_header
from lightning._core.wire.messages import (
    HandshakeRequest,
    HandshakeResponse,
    Message,
    StreamChunk,
    StreamEnd,
    SynapsePacket,
    SynapseResponse,
    decode_message,
    encode_stream_chunk,
    encode_stream_end,
    encode_synapse_packet,
    encode_synapse_response,
)
from lightning.errors import (
    DecodeError,
    EncodeError,
    EncodeTypeError,
    FrameTooLarge,
    UnknownMessageType,
)

NOW = 1_795_572_719
SIGNATURE = "c2lnbmF0dXJl" * 8
DEEP = 1022

MESSAGES = {
    1: HandshakeRequest("5Validator", NOW, "0" * 32, SIGNATURE),
    2: HandshakeResponse("5Miner", NOW, SIGNATURE, True, "conn_1", "ZmluZ2VycHJpbnQ="),
    3: SynapsePacket("echo", {"a": 1, "b": [b"\0", {"c": None}]}, NOW),
    4: SynapseResponse(True, {"a": 1}, NOW, None),
    5: StreamChunk(b"chunk"),
    6: StreamEnd(False, "stream processing failed"),
}
FIELDS = {
    1: ("validator_hotkey", "timestamp", "nonce", "signature"),
    2: (
        "miner_hotkey",
        "timestamp",
        "signature",
        "accepted",
        "connection_id",
        "cert_fingerprint",
    ),
    3: ("synapse_type", "data", "timestamp"),
    4: ("success", "data", "timestamp", "error"),
    5: ("data",),
    6: ("success", "error"),
}
each_kind = pytest.mark.parametrize("kind", MESSAGES)


def fields_of(message, kind):
    return [getattr(message, name) for name in FIELDS[kind]]


def error_of(kind, payload):
    with pytest.raises(DecodeError) as caught:
        decode_message(kind, payload)
    return caught.value


# --- the objects ----------------------------------------------------------------------


@each_kind
def test_a_message_is_made_by_position_or_by_name(kind):
    message = MESSAGES[kind]
    values = fields_of(message, kind)
    assert type(message)(*values) == message
    assert type(message)(**dict(zip(FIELDS[kind], values, strict=True))) == message


@each_kind
def test_messages_are_equal_by_class_and_fields_and_cannot_be_hashed(kind):
    message = MESSAGES[kind]
    for other in MESSAGES.values():
        assert (message == other) is (message is other)
    assert message != fields_of(message, kind)
    with pytest.raises(TypeError, match="unhashable"):
        hash(message)


@each_kind
def test_fields_cannot_be_set(kind):
    for name in FIELDS[kind]:
        with pytest.raises(AttributeError):
            setattr(MESSAGES[kind], name, getattr(MESSAGES[kind], name))


@each_kind
def test_each_field_counts_in_a_comparison(kind):
    values = fields_of(MESSAGES[kind], kind)
    for i, value in enumerate(values):
        changed = list(values)
        changed[i] = {
            str: "other",
            bool: not value,
            int: 7,
            dict: {},
            bytes: b"other",
            type(None): "other",
        }[type(value)]
        assert type(MESSAGES[kind])(*changed) != MESSAGES[kind]


def test_what_may_be_nil_may_be_left_out():
    assert HandshakeResponse("", NOW, "", False, "").cert_fingerprint is None
    assert SynapseResponse(True, {}, NOW).error is None
    assert StreamEnd(True).error is None


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SynapsePacket(None, {}, NOW), TypeError),
        (lambda: SynapsePacket(b"echo", {}, NOW), TypeError),
        (lambda: SynapsePacket("echo", {}, -1), OverflowError),
        (lambda: SynapsePacket("echo", {}, 2**64), OverflowError),
        (lambda: SynapsePacket("echo", {}), TypeError),
        (lambda: HandshakeRequest("a", NOW, "b", None), TypeError),
        (lambda: HandshakeResponse("a", NOW, "b", True, None), TypeError),
        (lambda: StreamEnd(True, b"x"), TypeError),
        (Message, TypeError),
        (lambda: encode_synapse_packet(None, {}, NOW), TypeError),
        (lambda: encode_synapse_packet("echo", {}, -1), OverflowError),
    ],
)
def test_a_field_of_the_wrong_type_is_an_error_where_it_is_made(make, error):
    with pytest.raises(error):
        make()


def test_the_repr_shows_no_payload_and_no_signature():
    assert [repr(message) for message in MESSAGES.values()] == [
        (
            f"HandshakeRequest(validator_hotkey='5Validator', timestamp={NOW}, "
            f"nonce='{'0' * 32}', signature=<96 characters>)"
        ),
        (
            f"HandshakeResponse(miner_hotkey='5Miner', timestamp={NOW}, "
            "signature=<96 characters>, accepted=True, connection_id='conn_1', "
            "cert_fingerprint='ZmluZ2VycHJpbnQ=')"
        ),
        f"SynapsePacket(synapse_type='echo', data=<2 keys>, timestamp={NOW})",
        f"SynapseResponse(success=True, data=<1 keys>, timestamp={NOW}, error=None)",
        "StreamChunk(data=<5 bytes>)",
        "StreamEnd(success=False, error='stream processing failed')",
    ]


def test_the_repr_of_other_data_names_its_type():
    assert repr(StreamChunk(bytearray(3))) == "StreamChunk(data=<bytearray>)"
    assert "data=<1 keys>" in repr(SynapsePacket("e", UserDict(a=1), NOW))
    assert "data=<int>" in repr(SynapsePacket("e", 5, NOW))


def test_the_repr_of_a_half_made_message_does_no_harm():
    for message in MESSAGES.values():
        assert type(message).__name__ in repr(type(message).__new__(type(message)))


# --- writing --------------------------------------------------------------------------


@each_kind
def test_a_message_is_an_array_of_its_fields_in_a_frame(kind):
    message = MESSAGES[kind]
    payload = msgpack.packb(fields_of(message, kind))
    header = bytes([kind]) + len(payload).to_bytes(4, "big")
    assert message.to_frame() == header + payload


@each_kind
def test_a_message_is_read_as_it_was_written(kind):
    message = MESSAGES[kind]
    found, payload = parse_frame_header(message.to_frame())
    assert found is MessageType(kind)
    assert decode_message(kind, payload) == message
    assert decode_message(kind, memoryview(payload)) == message
    assert type(message).from_payload(bytearray(payload)) == message


def test_the_calls_for_one_frame_write_what_the_messages_do():
    data = {"x": [1, b"y"]}
    assert (
        encode_synapse_packet("echo", data, NOW)
        == SynapsePacket("echo", data, NOW).to_frame()
    )
    assert (
        encode_synapse_response(False, {}, NOW, "no")
        == SynapseResponse(False, {}, NOW, "no").to_frame()
    )
    assert encode_synapse_response(True, data, NOW) == (
        SynapseResponse(True, data, NOW).to_frame()
    )
    assert encode_stream_chunk(b"c") == StreamChunk(b"c").to_frame()
    assert encode_stream_end(True) == StreamEnd(True).to_frame()
    assert encode_stream_end(False, "e") == StreamEnd(False, "e").to_frame()


@pytest.mark.parametrize("data", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_a_chunk_is_any_buffer_of_bytes(data):
    assert encode_stream_chunk(data).hex() == "050000000591c4026162"[
        :2
    ] + "00000005" + ("91c4026162")


@pytest.mark.parametrize(
    "data",
    ["text", None, [1], 5, {"a": 1}, memoryview(b"abcd").cast("H"), object()],
    ids=lambda value: type(value).__name__,
)
def test_a_chunk_of_anything_else_is_refused(data):
    with pytest.raises(EncodeTypeError, match="bytes are needed, not") as caught:
        encode_stream_chunk(data)
    assert caught.value.path == "data"
    with pytest.raises(EncodeTypeError):
        StreamChunk(data).to_frame()


@pytest.mark.parametrize("data", [None, [], "x", b"", 5, [("a", 1)]])
@pytest.mark.parametrize(
    "write",
    [
        lambda data: encode_synapse_packet("echo", data, NOW),
        lambda data: encode_synapse_response(True, data, NOW),
        lambda data: SynapsePacket("echo", data, NOW).to_frame(),
        lambda data: SynapseResponse(True, data, NOW).to_frame(),
    ],
)
def test_data_is_a_mapping(write, data):
    with pytest.raises(EncodeTypeError, match="a mapping is needed, not") as caught:
        write(data)
    assert caught.value.path == "data"


@pytest.mark.parametrize("key", [1, None, b"a", True, 1.5, (1,)])
@pytest.mark.parametrize("kind", [dict, "Mapping"])
def test_the_keys_of_data_are_str(key, kind):
    data = {"ok": 1, key: 2}
    with pytest.raises(EncodeTypeError, match="keys must be str, not") as caught:
        encode_synapse_packet("e", data if kind is dict else UserDict(data), NOW)
    assert repr(key) in str(caught.value)
    assert caught.value.path == "data"


def test_the_keys_of_nested_maps_may_be_more():
    data = {"a": {1: {None: 2}}}
    frame = encode_synapse_packet("e", data, NOW)
    assert decode_message(3, frame[5:]).data == data


def test_an_empty_mapping_of_any_kind_is_data():
    assert encode_synapse_packet("e", UserDict(), NOW) == encode_synapse_packet(
        "e", {}, NOW
    )


def test_errors_name_the_place_in_data():
    with pytest.raises(EncodeTypeError) as caught:
        encode_synapse_packet("e", {"items": [0, 1, 2, {"name": {1}}]}, NOW)
    assert caught.value.path == "data.items[3].name"
    with pytest.raises(EncodeError) as caught:
        encode_synapse_response(True, {"a": {2: "\ud800"}}, NOW)
    assert caught.value.path == "data.a[2]"


@pytest.mark.parametrize(
    ("write", "path"),
    [
        (lambda bad: encode_synapse_packet(bad, {}, NOW), "synapse_type"),
        (lambda bad: encode_synapse_response(False, {}, NOW, bad), "error"),
        (lambda bad: encode_stream_end(False, bad), "error"),
        (HandshakeRequest(bad := "\ud800", NOW, "", ""), "validator_hotkey"),
        (HandshakeRequest("", NOW, bad, ""), "nonce"),
        (HandshakeRequest("", NOW, "", bad), "signature"),
        (HandshakeResponse(bad, NOW, "", True, ""), "miner_hotkey"),
        (HandshakeResponse("", NOW, bad, True, ""), "signature"),
        (HandshakeResponse("", NOW, "", True, bad), "connection_id"),
        (HandshakeResponse("", NOW, "", True, "", bad), "cert_fingerprint"),
        (SynapsePacket(bad, {}, NOW), "synapse_type"),
        (SynapseResponse(False, {}, NOW, bad), "error"),
        (StreamEnd(False, bad), "error"),
    ],
)
def test_lone_surrogates_in_a_field_are_refused(write, path):
    with pytest.raises(EncodeError, match="lone surrogates") as caught:
        write.to_frame() if isinstance(write, Message) else write("\ud800")
    assert caught.value.path == path


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def test_the_depth_of_data_is_the_same_both_ways():
    """The message's array and `data` itself are two of the 1023 containers."""
    frame = encode_synapse_packet("e", {"d": nested(DEEP - 1)}, NOW)
    assert decode_message(3, frame[5:]).to_frame() == frame
    with pytest.raises(EncodeError, match="1024 containers"):
        encode_synapse_packet("e", {"d": nested(DEEP)}, NOW)
    payload = frame[5:].replace(b"\x91\0", b"\x91\x91\0")
    assert "depth limit exceeded" in str(error_of(3, payload))


# --- limits ---------------------------------------------------------------------------


@each_kind
def test_a_message_of_the_limit_itself_is_written_and_of_one_byte_more_is_not(kind):
    message = MESSAGES[kind]
    size = len(message.to_frame()) - 5
    assert message.to_frame(size) == message.to_frame()
    for limit in range(size):
        with pytest.raises(FrameTooLarge) as caught:
            message.to_frame(limit)
        assert caught.value.limit == limit
        assert limit < caught.value.size <= size


@pytest.mark.parametrize(
    "write",
    [
        lambda limit: encode_synapse_packet("e", {"b": bytes(10**6)}, NOW, limit),
        lambda limit: encode_synapse_response(
            True, {"b": "x" * 10**6}, NOW, None, limit
        ),
        lambda limit: encode_stream_chunk(bytes(10**6), limit),
        lambda limit: encode_stream_chunk(memoryview(bytes(10**6)), limit),
        lambda limit: encode_stream_end(False, "x" * 10**6, limit),
        lambda limit: encode_synapse_packet("e", {"n": [1] * 10**6}, NOW, limit),
    ],
)
def test_writing_stops_at_the_limit(write):
    for limit in (-1, 0, 1, 500, 999_999):
        with pytest.raises(FrameTooLarge) as caught:
            write(limit)
        assert caught.value.limit == limit
        assert caught.value.size > limit
    assert len(write(1_000_100)) > 1_000_000


def test_a_body_that_is_too_large_is_named_with_its_size():
    with pytest.raises(FrameTooLarge) as caught:
        encode_stream_chunk(bytes(2_000_000), 1_000_000)
    assert caught.value.size == 2_000_000 + 6


def test_the_default_limit_is_the_peers():
    body = bytes(2**26 - 6)
    assert len(encode_stream_chunk(body)) == 2**26 + 5
    with pytest.raises(FrameTooLarge) as caught:
        encode_stream_chunk(body + b"x")
    assert (caught.value.size, caught.value.limit) == (2**26 + 1, 2**26)


def test_a_limit_beyond_what_a_header_can_say_is_that():
    assert encode_stream_end(True, None, 2**40) == encode_stream_end(True)


# --- reading: arrays ------------------------------------------------------------------

NAMES = {
    1: ("HandshakeRequest", "handshake request"),
    2: ("HandshakeResponse", "handshake response"),
    3: ("SynapsePacket", "synapse packet"),
    4: ("SynapseResponse", "synapse response"),
    5: ("StreamChunk", "stream chunk"),
    6: ("StreamEnd", "stream end"),
}


@each_kind
@pytest.mark.parametrize("change", [-2, -1, 1, 2])
def test_an_array_of_another_length_is_refused(kind, change):
    values = fields_of(MESSAGES[kind], kind)
    size = len(values) + change
    if size < 0 or (kind, change) == (2, -1):
        return
    error = error_of(kind, msgpack.packb((values + [None] * 2)[:size]))
    name, words = NAMES[kind]
    assert str(error) == (
        f"serialization error: Failed to parse {words}: array had incorrect length, "
        f"expected {len(values)} at {name}"
    )
    assert error.path == name


def test_a_login_answer_may_lack_its_last_field():
    values = fields_of(MESSAGES[2], 2)
    assert decode_message(2, msgpack.packb(values[:5])).cert_fingerprint is None


@each_kind
def test_a_message_cut_short_is_refused_at_every_byte(kind):
    payload = MESSAGES[kind].to_frame()[5:]
    for size in range(len(payload)):
        error = error_of(kind, payload[:size])
        assert error.path.startswith(NAMES[kind][0])
        assert 0 <= error.offset <= size


@each_kind
def test_bytes_after_a_message_are_ignored(kind):
    payload = MESSAGES[kind].to_frame()[5:]
    assert decode_message(kind, payload + b"\xc1\xff") == MESSAGES[kind]


@each_kind
@pytest.mark.parametrize("payload", ["c0", "05", "a0", "c400", "cb" + "00" * 8, "c1"])
def test_what_is_neither_array_nor_map_is_refused(kind, payload):
    error = error_of(kind, bytes.fromhex(payload))
    assert error.path == NAMES[kind][0]


OTHERS = {
    "text": [None, True, 5, 1.5, ["x"], {}, b"\xff"],
    "text or nil": [True, 5, 1.5, ["x"], {}, b"\xff"],
    "uint": [None, True, -1, 1.0, "5", b"5", [5], {}],
    "bool": [None, 0, 1, "true", b"\x01", [True], {}],
    "data": [None, True, 5, "x", b"x", [], [["a", 1]]],
    "bytes": [None, True, 5, 1.5, {}, [256], [-1], [1, "x"], [1.0], [None]],
}
KINDS = {
    1: ("text", "uint", "text", "text"),
    2: ("text", "uint", "text", "bool", "text", "text or nil"),
    3: ("text", "data", "uint"),
    4: ("bool", "data", "uint", "text or nil"),
    5: ("bytes",),
    6: ("bool", "text or nil"),
}


@pytest.mark.parametrize(
    ("kind", "index"),
    [(k, i) for k, names in FIELDS.items() for i in range(len(names))],
)
def test_a_field_of_another_type_is_refused_by_its_name(kind, index):
    values = fields_of(MESSAGES[kind], kind)
    path = f"{NAMES[kind][0]}.{FIELDS[kind][index]}"
    for wrong in OTHERS[KINDS[kind][index]]:
        changed = [*values[:index], wrong, *values[index + 1 :]]
        error = error_of(kind, msgpack.packb(changed))
        assert error.path == path
        assert error.detail.startswith(f"Failed to parse {NAMES[kind][1]}: ")
    ext = msgpack.ExtType(5, b"x")
    changed = [*values[:index], ext, *values[index + 1 :]]
    assert error_of(kind, msgpack.packb(changed)).path == path


@pytest.mark.parametrize(
    "form",
    [
        "05",
        "cc05",
        "cd0005",
        "ce00000005",
        "cf0000000000000005",
        "d005",
        "d10005",
        "d200000005",
        "d30000000000000005",
    ],
)
def test_a_timestamp_may_take_any_integer_form(form):
    assert decode_message(3, bytes.fromhex("93a080" + form)).timestamp == 5


def test_the_largest_timestamp_is_unsigned():
    packet = decode_message(3, bytes.fromhex("93a080cfffffffffffffffff"))
    assert packet.timestamp == 2**64 - 1
    assert SynapsePacket("", {}, 2**64 - 1) == packet


def test_an_integer_that_is_a_negative_in_signed_form_is_refused():
    error = error_of(3, bytes.fromhex("93a080d3ffffffffffffffff"))
    assert "invalid type: a negative integer, expected an unsigned integer" in str(
        error
    )


@pytest.mark.parametrize("form", ["c4026869", "c500026869", "d9026869", "a26869"])
def test_text_may_be_bin(form):
    assert decode_message(3, bytes.fromhex(f"93{form}8000")).synapse_type == "hi"
    assert decode_message(6, bytes.fromhex(f"92c2{form}")).error == "hi"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("c4020102", b"\1\2"),
        ("9201ccff", b"\1\xff"),
        ("dc00020001", b"\0\1"),
        ("dd00000001cd0007", b"\7"),
        ("91d007", b"\7"),
        ("90", b""),
        ("a2c3a9", b"\xc3\xa9"),
        ("a1ff", b"\xff"),
    ],
)
def test_a_chunk_may_be_an_array_or_text(form, expected):
    chunk = decode_message(5, bytes.fromhex("91" + form))
    assert chunk.data == expected
    assert type(chunk.data) is bytes


# --- reading: data --------------------------------------------------------------------


def test_keys_of_data_may_be_bin():
    packet = decode_message(3, bytes.fromhex("93a082c40161c0c402c3a9c000"))
    assert packet.data == {"a": None, "é": None}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("01", "a key of data must be a str"),
        ("c0", "a key of data must be a str"),
        ("d40561", "a key of data must be a str"),
        ("90", "a map key cannot be hashed"),
        ("a1ff", "a key of data is not UTF-8"),
        ("c401ff", "a key of data is not UTF-8"),
        ("d921" + "ff" * 33, "a key of data is not UTF-8"),
    ],
)
def test_another_key_of_data_is_refused(key, text):
    error = error_of(3, bytes.fromhex(f"93a081{key}0100"))
    assert text in error.detail
    assert error.path == "SynapsePacket.data"


def test_keys_inside_of_data_may_be_anything_that_can_be_hashed():
    packet = decode_message(3, bytes.fromhex("93a081a1618301c0c0c0a1ffc000"))
    assert packet.data == {"a": {1: None, None: None, b"\xff": None}}


def test_errors_name_the_place_in_a_response():
    error = error_of(4, bytes.fromhex("94c381a17893c0c2c100c0"))
    assert str(error) == (
        "serialization error: Failed to parse synapse response: reserved byte 0xc1 "
        "at SynapseResponse.data.x[2]"
    )
    assert error.offset == 8


def test_a_bomb_in_data_is_refused():
    items = b"\xdd" + (10**6).to_bytes(4, "big") + b"\x90" * 10**6
    error = error_of(3, b"\x93\xa0\x81\xa1a" + items + b"\0")
    assert "too many objects for its size" in error.detail
    assert error.path.startswith("SynapsePacket.data.a[")


# --- reading: maps --------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("named", [str, str.encode, "number"])
def test_a_map_of_names_or_numbers_is_a_message_in_any_order(kind, named):
    names = FIELDS[kind]
    pairs = [
        (i if named == "number" else named(name), getattr(MESSAGES[kind], name))
        for i, name in enumerate(names)
    ]
    for order in (pairs, pairs[::-1]):
        assert decode_message(kind, msgpack.packb(dict(order))) == MESSAGES[kind]


@each_kind
def test_unknown_keys_of_a_map_are_ignored(kind):
    pairs = {"extra": [1, {"x": 2}], 6: None, 99: 1, 2**64 - 1: 2, b"\xff": 3, "": 4}
    pairs |= {name: getattr(MESSAGES[kind], name) for name in FIELDS[kind]}
    pairs["Data"] = pairs["succes"] = pairs["success "] = 5
    assert decode_message(kind, msgpack.packb(pairs)) == MESSAGES[kind]


@each_kind
def test_a_field_that_is_missing_in_a_map_is_an_error_unless_it_may_be_nil(kind):
    pairs = {name: getattr(MESSAGES[kind], name) for name in FIELDS[kind]}
    for i, name in enumerate(FIELDS[kind]):
        payload = msgpack.packb({k: v for k, v in pairs.items() if k != name})
        if KINDS[kind][i] == "text or nil":
            assert getattr(decode_message(kind, payload), name) is None
        else:
            error = error_of(kind, payload)
            assert f"missing field `{name}`" in error.detail
            assert error.path == NAMES[kind][0]


@pytest.mark.parametrize(
    "pairs",
    ["a773756363657373c3a773756363657373c3", "00c3a773756363657373c3", "00c300c3"],
)
def test_a_field_that_comes_twice_is_an_error(pairs):
    error = error_of(6, bytes.fromhex("82" + pairs))
    assert "duplicate field `success`" in error.detail
    assert error.path == "StreamEnd"


@pytest.mark.parametrize(
    "key", ["c0", "c3", "ff", "cb" + "00" * 8, "90", "80", "d40561"]
)
def test_a_key_that_is_no_name_is_an_error(key):
    error = error_of(6, bytes.fromhex(f"82{key}c000c3"))
    assert "expected the name of a field" in error.detail


def test_a_field_of_another_type_in_a_map_is_refused_by_its_name():
    error = error_of(4, msgpack.packb({"success": True, "data": {"a": 1}, 2: "x"}))
    assert error.path == "SynapseResponse.timestamp"


def test_trouble_in_an_unknown_key_is_trouble():
    error = error_of(6, bytes.fromhex("8200c3a178" + "91" * 1100))
    assert "depth limit exceeded" in error.detail
    assert error_of(6, bytes.fromhex("8200c3a17891c1")).path == "StreamEnd[0]"
    assert "unexpected end" in error_of(6, bytes.fromhex("df7fffffff00c3")).detail


# --- which message --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 7, -1, 255])
def test_an_unknown_type_is_an_error(kind):
    with pytest.raises(UnknownMessageType) as caught:
        decode_message(kind, b"\x90")
    assert caught.value.value == kind


def test_text_is_no_payload():
    with pytest.raises(TypeError):
        decode_message(3, "text")
    with pytest.raises(TypeError):
        SynapsePacket.from_payload("text")


def test_a_class_reads_its_own_message_only():
    with pytest.raises(DecodeError, match="expected 2 at StreamEnd"):
        StreamEnd.from_payload(MESSAGES[3].to_frame()[5:])
    with pytest.raises((TypeError, NotImplementedError)):
        Message.from_payload(b"\x90")


def test_a_half_made_message_cannot_be_written():
    for kind in (1, 2, 3, 4, 5):
        message = MESSAGES[kind]
        with pytest.raises(TypeError):
            type(message).__new__(type(message)).to_frame()


def test_the_names_of_the_layouts_are_those_of_the_wire():
    for kind, message in MESSAGES.items():
        assert type(message).__name__ == MessageType(kind).wire_name
        assert getattr(messages, type(message).__name__) is type(message)
