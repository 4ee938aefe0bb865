"""Packets, frames, varints and ranges: any input, with aioquic as the oracle."""

import pytest
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.packet import (
    decode_packet_number,
    pull_ack_frame,
    pull_quic_header,
    push_ack_frame,
)
from aioquic.quic.rangeset import RangeSet as Oracle
from hypothesis import event, given, settings
from hypothesis import strategies as st

from lightning._core.quic import buffer, frames, packet
from lightning._core.quic.protection import PacketProtection
from lightning._core.quic.ranges import RangeSet

OK, TRUNCATED = 0, -2
UNKNOWN_VERSION, TOO_SHORT, NO_TOKEN = -6, -7, -8
FRAME_ENCODING, PROTOCOL_VIOLATION = 0x07, 0x0A
VARINT_MAX = 2**62 - 1
ONE_RTT = 5

# Small values and those around the four sizes, as much as any others.
VARINTS = st.one_of(
    st.integers(0, 70),
    st.sampled_from([2**14 - 1, 2**14, 2**30 - 1, 2**30, VARINT_MAX]),
    st.integers(0, VARINT_MAX),
)
CIDS = st.binary(max_size=20)


def mutations(valid):
    """Take valid bytes, and change, insert, delete or cut some of them."""

    def change(args):
        data, edits = bytearray(args[0]), args[1]
        for kind, where, value in edits:
            at = where % (len(data) + 1)
            if kind == "set" and at < len(data):
                data[at] = value
            elif kind == "insert":
                data[at:at] = bytes([value])
            elif kind == "delete":
                del data[at : at + 1 + value % 4]
            elif kind == "cut":
                del data[at:]
        return bytes(data)

    kinds = st.sampled_from(["set", "set", "insert", "delete", "cut"])
    edit = st.tuples(kinds, st.integers(0, 2000), st.integers(0, 255))
    return st.tuples(valid, st.lists(edit, max_size=4)).map(change)


# --- Varints --------------------------------------------------------------------------


@given(st.binary(max_size=9))
def test_varints_are_read_as_aioquic_reads_them(data):
    oracle = Buffer(data=data)
    try:
        expected = (OK, oracle.pull_uint_var(), oracle.tell())
    except BufferReadError:
        expected = (TRUNCATED, None, 0)
    assert buffer.read("varint", data) == expected


@given(VARINTS)
def test_varints_are_written_as_aioquic_writes_them(value):
    oracle = Buffer(capacity=8)
    oracle.push_uint_var(value)
    assert buffer.write("varint", value, 8) == (OK, oracle.data)
    assert buffer.size_varint(value) == len(oracle.data)


# --- Packet headers -------------------------------------------------------------------


def long_packet(args):
    packet_type, dcid, scid, token, payload = args
    token = token if packet_type == 0 else b""
    return packet.build(packet_type, dcid, scid, token=token, payload=payload)[1]


PACKETS = st.one_of(
    st.tuples(
        st.sampled_from([0, 1, 2]),
        CIDS,
        CIDS,
        st.binary(max_size=80),
        st.binary(max_size=80),
    )
    .map(long_packet)
    .map(lambda head: head + bytes(16)),
    st.builds(
        lambda cid, payload: b"\x41" + cid + payload,
        st.binary(min_size=8, max_size=8),
        st.binary(max_size=60),
    ),
    st.builds(
        lambda dcid, scid, token: packet.build_retry(dcid, scid, token)[1],
        CIDS,
        CIDS,
        st.binary(max_size=40),
    ),
    st.builds(
        lambda dcid, scid, versions: packet.build_version_negotiation(
            dcid, scid, versions
        )[1],
        CIDS,
        CIDS,
        st.lists(st.integers(0, 2**32 - 1), max_size=4),
    ),
)
DATAGRAMS = st.one_of(mutations(PACKETS), st.binary(max_size=60), PACKETS)


def oracle_header(data):
    try:
        return pull_quic_header(Buffer(data=data), host_cid_length=8)
    except (BufferReadError, ValueError):
        return None


@settings(max_examples=500)
@given(DATAGRAMS)
def test_headers_are_read_as_aioquic_reads_them(data):
    """But for what version 1 leaves no use for, listed here."""
    status, header = packet.parse(data, 8)
    theirs = oracle_header(data)
    event(f"status {status}")
    if status == UNKNOWN_VERSION:
        assert header["version"] not in (0, 1)
    elif theirs is None:
        # They refuse long connection IDs in Version Negotiation too.
        long_id = max(len(header["dcid"]), len(header["scid"])) > 20
        assert status or (header["type"] == 4 and long_id)
    elif theirs.version == 0:
        # An empty list of versions says nothing.
        assert status == (OK if theirs.supported_versions else TRUNCATED)
    elif status:
        # Nobody can open it or use it.
        assert status in (TOO_SHORT, NO_TOKEN)
    else:
        assert header["size"] == theirs.packet_length
        assert header["type"] == theirs.packet_type.value
        assert header["version"] == (theirs.version or 0)
        assert header["dcid"] == theirs.destination_cid
        assert header["scid"] == theirs.source_cid
        assert header["token"] == theirs.token
        assert header["integrity_tag"] == theirs.integrity_tag
    if status == OK and header["type"] == 4 and theirs is not None:
        versions = [v.to_bytes(4, "big") for v in theirs.supported_versions]
        assert header["token"] == b"".join(versions)
        assert header["dcid"] == theirs.destination_cid
        assert header["scid"] == theirs.source_cid


@given(st.lists(DATAGRAMS, max_size=4).map(b"".join))
def test_any_datagram_comes_apart_in_a_bounded_number_of_steps(data):
    steps = 0
    while data:
        status, header = packet.parse(data, 8)
        if status:
            break
        assert 0 < header["size"] <= len(data)
        assert header["pn_offset"] + 20 <= header["size"] or not header["pn_offset"]
        data = data[header["size"] :]
        steps += 1
    event(f"{steps} packets")


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), VARINTS)
def test_packet_numbers_are_recovered_as_aioquic_recovers_them(number, size, expected):
    truncated = number % 2 ** (8 * size)
    theirs = decode_packet_number(truncated, 8 * size, expected)
    assert packet.decode_number(truncated, size, expected) == theirs


@given(VARINTS, st.integers(0, 2**31), st.data())
def test_a_packet_number_survives_its_truncation(number, unacked, data):
    """Wherever the receiver is, between the acknowledged number and this one."""
    acked = max(number - unacked - 1, -1)
    size = packet.number_size(number, acked)
    largest = data.draw(st.integers(acked, number - 1 if number > acked + 1 else acked))
    truncated = number % 2 ** (8 * size)
    assert packet.decode_number(truncated, size, largest + 1) == number


# --- Frames ---------------------------------------------------------------------------


@st.composite
def ack_ranges(draw, most=64):
    """Draw ranges as an ACK frame gives them: from the top, with gaps between."""
    top = draw(VARINTS)
    ranges = []
    for _ in range(draw(st.integers(1, most))):
        length = draw(st.integers(0, min(top, draw(st.sampled_from([3, 100, 2**40])))))
        ranges.append((top - length, top + 1))
        gap = draw(st.integers(0, 300))
        if top - length < gap + 2:
            break
        top -= length + gap + 2
    return ranges


def ack(ranges, delay, ecn):
    return {
        "type": 0x03 if any(ecn) else 0x02,
        "delay": delay,
        "ranges": ranges,
        "ecn": ecn,
    }


STREAM_LIMITS = st.integers(0, 2**60)
EXTENTS = st.tuples(st.integers(0, VARINT_MAX - 40), st.binary(max_size=40))
FRAMES = st.one_of(
    st.fixed_dictionaries({"type": st.just(0), "value": st.integers(1, 50)}),
    st.fixed_dictionaries({"type": st.sampled_from([0x01, 0x1E])}),
    st.builds(ack, ack_ranges(8), VARINTS, st.tuples(VARINTS, VARINTS, VARINTS)),
    st.builds(ack, ack_ranges(8), VARINTS, st.just((0, 0, 0))),
    st.fixed_dictionaries(
        {
            "type": st.just(0x04),
            "stream_id": VARINTS,
            "error_code": VARINTS,
            "final_size": VARINTS,
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from([0x05, 0x11, 0x15]),
            "stream_id": VARINTS,
            "value": VARINTS,
        }
    ),
    st.builds(lambda e: {"type": 0x06, "offset": e[0], "data": e[1]}, EXTENTS),
    st.fixed_dictionaries(
        {"type": st.just(0x07), "data": st.binary(min_size=1, max_size=40)}
    ),
    st.builds(
        lambda e, stream_id, fin: {
            "type": 0x08,
            "stream_id": stream_id,
            "offset": e[0],
            "data": e[1],
            "fin": fin,
        },
        EXTENTS,
        VARINTS,
        st.booleans(),
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from([0x10, 0x14, 0x19]), "value": VARINTS}
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from([0x12, 0x13, 0x16, 0x17]), "value": STREAM_LIMITS}
    ),
    st.builds(
        lambda a, b, cid, token: {
            "type": 0x18,
            "sequence": max(a, b),
            "retire_prior_to": min(a, b),
            "cid": cid,
            "token": token,
        },
        VARINTS,
        VARINTS,
        st.binary(min_size=1, max_size=20),
        st.binary(min_size=16, max_size=16),
    ),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from([0x1A, 0x1B]),
            "data": st.binary(min_size=8, max_size=8),
        }
    ),
    st.builds(
        lambda code, kind, reason: {
            "type": 0x1D if kind is None else 0x1C,
            "error_code": code,
            "frame_type": kind or 0,
            "reason": reason,
        },
        VARINTS,
        st.none() | VARINTS,
        st.binary(max_size=40),
    ),
)


def serialize(frame):
    status, data = frames.write(frame)
    assert status == OK
    return data


@given(st.lists(FRAMES, max_size=6))
def test_frames_survive_writing_and_parsing(written):
    status, read, _ = frames.parse(b"".join(map(serialize, written)), ONE_RTT, False)
    merged = []
    for frame in written:
        if merged and frame["type"] == merged[-1]["type"] == 0:
            merged[-1] = {"type": 0, "value": merged[-1]["value"] + frame["value"]}
        else:
            merged.append(frame)
    assert (status, read) == (OK, merged)


@settings(max_examples=500)
@given(
    mutations(st.lists(FRAMES.map(serialize), max_size=4).map(b"".join)),
    st.sampled_from([0, 1, 2, ONE_RTT]),
    st.booleans(),
)
def test_any_payload_is_parsed_or_refused_with_the_right_error(data, where, by_client):
    status, read, wire_type = frames.parse(data, where, by_client)
    event(f"status {status}")
    assert status in (OK, FRAME_ENCODING, PROTOCOL_VIOLATION)
    # What was read says the same when it is written again.
    for frame in read:
        assert frames.parse(serialize(frame), where, by_client)[1] == [frame]
    assert not status or wire_type <= VARINT_MAX


@given(st.binary(max_size=80), st.sampled_from([0, 1, 2, ONE_RTT]))
def test_random_payloads_do_no_harm(data, where):
    status, read, _ = frames.parse(data, where)
    assert status in (OK, FRAME_ENCODING, PROTOCOL_VIOLATION)
    assert len(read) <= len(data)


@settings(max_examples=300)
@given(
    st.one_of(
        mutations(
            st.builds(
                lambda r, d: serialize(ack(r, d, (0, 0, 0)))[1:], ack_ranges(), VARINTS
            )
        ),
        st.binary(max_size=40),
    )
)
def test_ack_frames_are_read_as_aioquic_reads_them(data):
    oracle = Buffer(data=data)
    status, read, _ = frames.parse(b"\x02" + data)
    try:
        ranges, delay = pull_ack_frame(oracle)
    except (BufferReadError, ValueError):
        event("refused")
        assert (status, read) == (FRAME_ENCODING, [])
        return
    event("accepted")
    assert read[0]["delay"] == delay
    assert read[0]["ranges"] == [(r.start, r.stop) for r in reversed(list(ranges))]


@given(ack_ranges(), VARINTS, st.integers(33, 1200))
def test_ack_frames_are_written_as_aioquic_writes_them(ranges, delay, room):
    received = Oracle()
    for start, end in ranges:
        received.add(start, end)
    oracle = Buffer(capacity=1200)
    count = push_ack_frame(oracle, received, delay, 1199)
    if count == len(ranges):
        assert serialize(ack(ranges, delay, (0, 0, 0)))[1:] == oracle.data
    # In less room, the highest ranges stay.
    status, data = frames.write(ack(ranges, delay, (0, 0, 0)), room=room)
    kept = frames.parse(data)[1][0]["ranges"]
    assert (status, kept) == (OK, ranges[: len(kept)])
    assert len(data) <= room


# --- Ranges ---------------------------------------------------------------------------

BOUNDS = st.one_of(st.integers(0, 60), st.integers(0, 60), VARINTS)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "add", "subtract"]), BOUNDS, st.integers(1, 20)),
    max_size=40,
)


@given(CHANGES)
def test_ranges_change_as_those_of_aioquic_do(changes):
    ours, theirs = RangeSet(), Oracle()
    for verb, start, size in changes:
        assert getattr(ours, verb)(start, start + size) == OK
        getattr(theirs, verb)(start, start + size)
        assert ours.items == [(r.start, r.stop) for r in theirs]
        for value in {max(start - 1, 0), start, start + size - 1, start + size}:
            inside = value in theirs
            assert (value in ours) == ours.seen(value) == inside
            gap = ours.first_gap(value)
            assert (gap > value) == inside
            assert gap not in theirs


@given(CHANGES, st.integers(1, 5), st.booleans())
def test_bounded_ranges_never_exceed_their_limit(changes, limit, drop):
    """Refusing changes nothing; dropping keeps the highest, and forgets none of it."""
    ours, added = RangeSet(limit=limit, drop_lowest=drop), set()
    for verb, start, size in changes:
        before = ours.items
        status = getattr(ours, verb)(start, start + size)
        assert len(ours) <= limit
        if status:
            assert ours.items == before
            assert len(before) == limit
            assert verb == "subtract" or not drop
        elif verb == "add":
            added.add(start)
            assert ours.seen(start)
    if drop and all(verb == "add" for verb, _, _ in changes):
        assert all(ours.seen(value) for value in added)


# --- Protection -----------------------------------------------------------------------


@pytest.mark.parametrize(("suite", "size"), [(0x1301, 32), (0x1302, 48), (0x1303, 32)])
def test_only_what_was_sealed_opens(suite, size):
    secret = bytes(range(size))
    sealing = PacketProtection(suite, secret, True)
    opening = PacketProtection(suite, secret, False)

    @given(VARINTS, st.integers(1, 4), st.binary(min_size=3, max_size=90), st.data())
    def check(pn, pn_size, payload, data):
        number = (pn % 2 ** (8 * pn_size)).to_bytes(pn_size, "big")
        header = bytes([0x40 | pn_size - 1]) + bytes(8) + number
        status, sealed = sealing.seal(pn, header, payload)
        assert (status, len(sealed)) == (OK, len(header) + len(payload) + 16)
        assert opening.open(sealed, 9, pn) == (OK, header, payload, pn)
        other = data.draw(mutations(st.just(sealed)))
        if other != sealed:
            assert opening.open(other, 9, pn)[0] != OK

    check()
