"""Whatever goes in, the codec does as the slow model and the msgpack package do."""

import math
import random

import msgpack
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lightning._core.wire.framing import FrameReader, parse_frame_header
from lightning._core.wire.messages import decode_message
from lightning._core.wire.msgpack import packb, unpackb
from lightning.errors import (
    DecodeError,
    EncodeError,
    FrameTooLarge,
    StreamClosedEarly,
    UnknownMessageType,
)
from tests.reference import wire_model as model

every_case = settings(derandomize=True, deadline=None, max_examples=150)
many_cases = settings(every_case, max_examples=500)

integers = st.integers(-(2**63), 2**64 - 1) | st.integers(-300, 70_000)
scalars = (
    st.none()
    | st.booleans()
    | integers
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
keys = st.text(max_size=8) | integers | st.binary(max_size=8) | st.none()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(keys, inner, max_size=20)
    ),
    max_leaves=30,
)
data = st.dictionaries(st.text(max_size=8), values, max_size=5)
texts = st.text(max_size=40)
stamps = st.integers(0, 2**64 - 1)
# Fields by the kinds that the model has for them.
FIELDS = {
    "text": texts,
    "text or nil": st.none() | texts,
    "uint": stamps,
    "bool": st.booleans(),
    "data": data,
    "bytes": st.binary(max_size=100),
}
messages = st.sampled_from(sorted(model.MESSAGES)).flatmap(
    lambda kind: st.tuples(
        st.just(kind), *(FIELDS[name] for name in model.MESSAGES[kind].values())
    )
)


def same(left, right):
    """Compare with types, and NaN equal to NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(
            list(left.values()), list(right.values())
        )
    return left == right


# --- MessagePack ----------------------------------------------------------------------


@every_case
@given(values)
def test_a_value_is_written_as_the_model_and_msgpack_write_it(value):
    assert packb(value) == model.encode(value) == msgpack.packb(value)


@every_case
@given(values)
def test_a_value_is_read_as_it_was_written(value):
    blob = packb(value)
    assert same(unpackb(blob), value)
    assert same(unpackb(blob), msgpack.unpackb(blob, strict_map_key=False))


@every_case
@given(st.integers())
def test_an_integer_is_written_exactly_if_it_has_64_bits(value):
    if -(2**63) <= value < 2**64:
        assert unpackb(packb(value)) == value
    else:
        with pytest.raises(EncodeError, match="OverflowError"):
            packb(value)


@every_case
@given(st.text(st.characters(), max_size=50))
def test_text_with_or_without_surrogates_is_written_or_refused(value):
    try:
        expected = value.encode()
    except UnicodeEncodeError:
        with pytest.raises(EncodeError, match="surrogates"):
            packb(value)
    else:
        assert packb(value).endswith(expected)


@every_case
@given(values)
def test_a_value_cut_short_is_always_refused(value):
    blob = packb(value)
    for size in range(min(len(blob), 200)):
        with pytest.raises(DecodeError):
            unpackb(blob[:size])


# Bytes that look like MessagePack more often than not.
markers = st.sampled_from(
    [bytes([i]) for i in range(256) if not 0x03 < i < 0x80 and not 0xE3 < i < 0xFF]
)
small = st.sampled_from([b"\0", b"\1", b"\2", b"\0\1", b"\0\0\0\1", b"a", b"\xff"])
likely = st.lists(markers | small | st.binary(max_size=4), max_size=40).map(b"".join)


def model_reads(blob):
    try:
        value, rest = model.decode(blob)
    except model.Refused:
        return None
    return None if rest else (value,)


@many_cases
@given(likely | st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_as_the_model_does(blob):
    expected = model_reads(blob)
    if expected is None:
        with pytest.raises(DecodeError) as caught:
            unpackb(blob)
        assert 0 <= caught.value.offset <= len(blob)
    else:
        assert same(unpackb(blob), expected[0])


@every_case
@given(values, st.data())
def test_one_byte_changed_is_read_or_refused_as_the_model_does(value, draw):
    blob = bytearray(packb(value))
    place = draw.draw(st.integers(0, len(blob) - 1))
    blob[place] = draw.draw(st.integers(0, 255))
    blob = bytes(blob)
    expected = model_reads(blob)
    if expected is None:
        with pytest.raises(DecodeError):
            unpackb(blob)
    else:
        assert same(unpackb(blob), expected[0])


def test_a_hundred_thousand_random_strings_of_bytes_agree_with_the_model():
    source = random.Random(20261125)
    accepted = 0
    for _ in range(100_000):
        blob = source.randbytes(source.randrange(1, 12))
        expected = model_reads(blob)
        try:
            found = (unpackb(blob),)
        except DecodeError:
            found = None
        assert (found is None) is (expected is None), blob.hex()
        if expected is not None:
            accepted += 1
            assert same(found[0], expected[0]), blob.hex()
    assert accepted > 1000


# --- messages -------------------------------------------------------------------------


def fields_of(message, kind):
    return tuple(getattr(message, name) for name in model.MESSAGES[kind])


def make(kind, fields):
    """Make a message through its own class."""
    blank = decode_message(kind, model.encode(blank_fields(kind)))
    return type(blank)(*fields)


def blank_fields(kind):
    blanks = {"text": "", "text or nil": None, "uint": 0, "bool": False}
    blanks |= {"data": {}, "bytes": b""}
    return [blanks[name] for name in model.MESSAGES[kind].values()]


@every_case
@given(messages)
def test_a_message_is_written_as_the_model_writes_it_and_read_again(case):
    kind, *fields = case
    frame = make(kind, fields).to_frame()
    found, payload = parse_frame_header(frame)
    assert found == kind
    assert payload == model.encode(fields)
    assert same(fields_of(decode_message(kind, payload), kind), tuple(fields))
    assert same(model.message(kind, payload), tuple(fields))


@every_case
@given(messages, st.integers(0, 2000))
def test_a_message_is_written_whole_or_not_at_all(case, limit):
    kind, *fields = case
    message = make(kind, fields)
    size = len(message.to_frame()) - 5
    if size <= limit:
        assert message.to_frame(limit) == message.to_frame()
    else:
        with pytest.raises(FrameTooLarge) as caught:
            message.to_frame(limit)
        assert limit < caught.value.size <= size


def agrees(kind, payload):
    try:
        expected = model.message(kind, payload)
    except model.Refused:
        with pytest.raises(DecodeError) as caught:
            decode_message(kind, payload)
        assert type(caught.value) is DecodeError
        assert 0 <= caught.value.offset <= len(payload)
        return False
    assert same(fields_of(decode_message(kind, payload), kind), expected)
    return True


kinds = st.sampled_from(sorted(model.MESSAGES))


@every_case
@given(messages)
def test_a_message_cut_short_is_always_refused(case):
    kind, *fields = case
    payload = model.encode(fields)
    for size in range(min(len(payload), 200)):
        assert not agrees(kind, payload[:size])


@many_cases
@given(kinds, likely)
@example(2, b"\x86\xc4\x09")
def test_any_payload_is_read_or_refused_as_the_model_does(kind, payload):
    agrees(kind, payload)


@every_case
@given(messages, st.data())
def test_a_message_with_one_byte_changed_is_read_as_the_model_does(case, draw):
    kind, *fields = case
    payload = bytearray(model.encode(fields))
    place = draw.draw(st.integers(0, min(len(payload) - 1, 60)))
    payload[place] = draw.draw(st.integers(0, 255))
    agrees(kind, bytes(payload))


# A field's name, its number in some form, its value or another one.
loose_keys = {
    kind: st.sampled_from(
        [
            model.encode(key)
            for i, name in enumerate(names)
            for key in (name, name.encode(), i)
        ]
        + [b"\xcc\1", b"\xd3" + bytes(7) + b"\1", b"\xff", b"\xc0", b"\xa1x", b"\x63"]
    )
    for kind, names in model.MESSAGES.items()
}
loose_values = st.sampled_from([*FIELDS.values()]).flatmap(lambda field: field).map(
    model.encode
).filter(lambda blob: len(blob) < 500) | st.sampled_from(
    [b"\xc4\1a", b"\xc4\1\xff", b"\x92\1\2", b"\xcd\0\5", b"\xd0\5"]
)


@many_cases
@given(kinds.flatmap(lambda kind: st.tuples(st.just(kind), maps_for(kind))))
def test_a_map_is_read_or_refused_as_the_model_does(case):
    agrees(*case)


def maps_for(kind):
    """Payloads that are maps: some of the fields, some twice, some wrong."""
    names = model.MESSAGES[kind]
    whole = st.permutations(
        [
            st.tuples(
                st.sampled_from(
                    [model.encode(key) for key in (name, name.encode(), i)]
                ),
                FIELDS[names[name]].map(model.encode),
            )
            for i, name in enumerate(names)
        ]
    ).flatmap(lambda pairs: st.tuples(*pairs))
    loose = st.lists(st.tuples(loose_keys[kind], loose_values), max_size=7)
    return (whole | loose | st.tuples(whole, loose).map(lambda x: [*x[0], *x[1]])).map(
        lambda pairs: (
            bytes([0x80 + len(pairs)]) + b"".join(k + v for k, v in pairs)
            if len(pairs) < 16
            else b"\x80"
        )
    )


@many_cases
@given(
    kinds.flatmap(
        lambda kind: st.tuples(
            st.just(kind),
            st.lists(
                loose_values,
                min_size=len(model.MESSAGES[kind]) - 1,
                max_size=len(model.MESSAGES[kind]) + 1,
            ),
        )
    )
)
def test_an_array_is_read_or_refused_as_the_model_does(case):
    kind, parts = case
    agrees(kind, bytes([0x90 + len(parts)]) + b"".join(parts))


# --- frames ---------------------------------------------------------------------------

frames = st.lists(st.tuples(st.integers(1, 6), st.binary(max_size=30)), max_size=6).map(
    lambda parts: b"".join(model_frame(*part) for part in parts)
)


def model_frame(kind, payload):
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


streams = st.tuples(frames, likely | st.binary(max_size=12)).map(b"".join)


def read_in_pieces(stream, cuts, limit):
    """Feed a stream in pieces; return the frames and what ended them."""
    reader = FrameReader(limit)
    found = []
    ends = sorted({*cuts, len(stream)})
    start = 0
    try:
        for end in ends:
            while start < end:
                start += reader.feed(stream[:end], start)
                if reader.ready:
                    found.append(reader.take())
    except UnknownMessageType:
        return found, "unknown"
    except FrameTooLarge:
        return found, "too large"
    if reader.received == 0 and reader.expected == 5:
        return found, None
    return found, (reader.received, reader.expected)


@many_cases
@given(streams, st.data(), st.sampled_from([0, 5, 29, 10**6]))
def test_a_stream_in_any_pieces_gives_the_models_frames(stream, draw, limit):
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    assert read_in_pieces(stream, cuts, limit) == model.split_frames(stream, limit)


@every_case
@given(streams)
def test_a_stream_byte_by_byte_gives_the_models_frames(stream):
    every = range(len(stream))
    assert read_in_pieces(stream, every, 100) == model.split_frames(stream, 100)


@every_case
@given(streams | st.binary(max_size=256), st.sampled_from([0, 5, 10**6]))
def test_the_first_frame_of_a_buffer_is_the_models(stream, limit):
    assume(stream)
    found, end = model.split_frames(stream, limit)
    if found:
        assert parse_frame_header(stream, limit) == found[0]
    elif end == "unknown":
        with pytest.raises(UnknownMessageType):
            parse_frame_header(stream, limit)
    elif end == "too large":
        with pytest.raises(FrameTooLarge):
            parse_frame_header(stream, limit)
    else:
        with pytest.raises(StreamClosedEarly) as caught:
            parse_frame_header(stream, limit)
        assert (caught.value.received, caught.value.expected) == end
