"""Packet headers: what is read, what is refused, and what is written."""

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)

from lightning._core.quic.packet import (
    bench_parse,
    build,
    build_retry,
    build_stateless_reset,
    build_version_negotiation,
    decode_number,
    header_size,
    number_size,
    parse,
    reserved_bits,
    space,
)

INITIAL, ZERO_RTT, HANDSHAKE, RETRY, NEGOTIATION, ONE_RTT = range(6)
OK, TRUNCATED, NO_SPACE = 0, -2, -3
NO_FIXED_BIT, CID_TOO_LONG, UNKNOWN_VERSION, TOO_SHORT, NO_TOKEN = -4, -5, -6, -7, -8
TAG = bytes(16)
DCID, SCID = bytes(range(8)), bytes(range(20, 25))
LONG_TYPES = [INITIAL, ZERO_RTT, HANDSHAKE]


def packet(packet_type=HANDSHAKE, dcid=DCID, scid=SCID, payload=bytes(20), **options):
    status, data, _ = build(packet_type, dcid, scid, payload=payload, **options)
    assert status == OK
    return data + TAG


@pytest.mark.parametrize("packet_type", LONG_TYPES)
@pytest.mark.parametrize("pn_size", [1, 2, 3, 4])
@pytest.mark.parametrize("token", [b"", b"t" * 70])
def test_a_long_header_reads_back_as_it_was_written(packet_type, pn_size, token):
    token = token if packet_type == INITIAL else b""
    data = packet(packet_type, token=token, pn=0xA1B2C3D4, pn_size=pn_size)
    status, header = parse(data + b"next packet")
    offset = header.pop("pn_offset")
    assert (status, header) == (
        OK,
        {
            "type": packet_type,
            "version": 1,
            "dcid": DCID,
            "scid": SCID,
            "token": token,
            "integrity_tag": b"",
            "size": len(data),
        },
    )
    assert data[0] & 3 == pn_size - 1
    assert data[offset : offset + pn_size] == bytes.fromhex("a1b2c3d4")[4 - pn_size :]
    assert header_size(packet_type, 8, 5, len(token), pn_size) == offset + pn_size
    theirs = pull_quic_header(Buffer(data=data))
    assert theirs.packet_type == QuicPacketType(packet_type)
    assert theirs.packet_length == len(data)
    assert (theirs.destination_cid, theirs.source_cid) == (DCID, SCID)
    assert theirs.token == token


@pytest.mark.parametrize("pn_size", [1, 2, 3, 4])
@pytest.mark.parametrize("key_phase", [False, True])
def test_a_short_header_reads_back_as_it_was_written(pn_size, key_phase):
    data = packet(
        ONE_RTT, scid=b"", pn=0xA1B2C3D4, pn_size=pn_size, key_phase=key_phase
    )
    assert data[0] == 0x40 | key_phase << 2 | pn_size - 1
    status, header = parse(data, 8)
    assert (status, header["type"], header["dcid"]) == (OK, ONE_RTT, DCID)
    assert (header["pn_offset"], header["size"]) == (9, len(data))
    assert data[9 : 9 + pn_size] == bytes.fromhex("a1b2c3d4")[4 - pn_size :]
    assert header_size(ONE_RTT, 8, pn_size=pn_size) == 9 + pn_size


def test_coalesced_packets_are_found_one_after_the_other():
    parts = [
        packet(INITIAL, token=b"abc"),
        packet(HANDSHAKE, payload=bytes(300)),
        packet(ONE_RTT, scid=b""),
    ]
    rest, types = b"".join(parts), []
    for part in parts:
        status, header = parse(rest)
        assert (status, header["size"]) == (OK, len(part))
        types.append(header["type"])
        rest = rest[header["size"] :]
    assert (types, rest) == ([INITIAL, HANDSHAKE, ONE_RTT], b"")


@pytest.mark.parametrize(
    ("tail", "status"),
    [(bytes(300), NO_FIXED_BIT), (b"\xc0", TRUNCATED), (b"", TRUNCATED)],
)
def test_what_follows_the_last_packet_is_dropped_with_a_name(tail, status):
    """Trailing padding outside of any packet is not an error of the connection."""
    data = packet(INITIAL) + tail
    parsed, header = parse(data)
    assert parsed == OK
    assert parse(data[header["size"] :])[0] == status


@pytest.mark.parametrize("packet_type", LONG_TYPES)
def test_a_long_header_cut_anywhere_is_dropped(packet_type):
    token = b"token" if packet_type == INITIAL else b""
    data = packet(packet_type, token=token)
    for size in range(len(data)):
        assert parse(data[:size])[0] == TRUNCATED, size


def test_a_length_beyond_the_datagram_is_dropped():
    data = bytearray(packet())
    data[20:22] = b"\x7f\xff"
    assert parse(data)[0] == TRUNCATED
    data[20:22] = b"\xff\xff"
    assert parse(data)[0] == TRUNCATED


def test_a_token_length_that_would_wrap_is_dropped():
    header = bytes.fromhex("c00000000100 00 ffffffffffffffff".replace(" ", ""))
    assert parse(header + bytes(100))[0] == TRUNCATED


@pytest.mark.parametrize("size", range(1, 4))
def test_a_packet_without_a_whole_sample_is_dropped(size):
    """The packet number and what follows must reach 20 bytes for header protection."""
    data = packet(payload=bytes(size - 1))  # 1 + (size - 1) + 16
    assert parse(data)[0] == TOO_SHORT
    assert parse(packet(payload=bytes(3)))[0] == OK
    short = packet(ONE_RTT, scid=b"", payload=bytes(size - 1))
    assert parse(short)[0] == TOO_SHORT
    assert parse(packet(ONE_RTT, scid=b"", payload=bytes(3)))[0] == OK


def test_a_short_header_without_its_connection_id_is_dropped():
    assert parse(b"\x40" + bytes(7), 8)[0] == TRUNCATED
    assert parse(b"\x40" + bytes(8), 8)[0] == TOO_SHORT
    assert parse(b"\x40" + bytes(20), 0)[0] == OK


def test_an_empty_datagram_is_dropped():
    assert parse(b"")[0] == TRUNCATED


def test_packets_without_the_fixed_bit_are_dropped():
    for data in packet(), packet(ONE_RTT, scid=b""):
        cleared = bytes([data[0] & ~0x40]) + data[1:]
        assert parse(cleared)[0] == NO_FIXED_BIT


@pytest.mark.parametrize(("dcid", "scid"), [(21, 0), (0, 21), (255, 255)])
def test_connection_ids_above_20_bytes_are_dropped_in_version_1(dcid, scid):
    data = b"\xe0\0\0\0\1" + bytes([dcid]) + bytes(dcid) + bytes([scid]) + bytes(scid)
    assert parse(data + b"\x40\x14" + bytes(20))[0] == CID_TOO_LONG


@pytest.mark.parametrize("size", [0, 8, 20, 21, 255])
def test_an_unknown_version_still_tells_whom_to_answer(size):
    dcid, scid = bytes([7]) * size, bytes([9]) * (255 - size)
    head = b"\x80\x6b\x33\x43\xcf" + bytes([size]) + dcid + bytes([255 - size]) + scid
    status, header = parse(head + b"whatever")
    assert status == UNKNOWN_VERSION
    assert (header["version"], header["dcid"], header["scid"]) == (
        0x6B3343CF,
        dcid,
        scid,
    )
    assert parse(head[:-1])[0] == TRUNCATED


@pytest.mark.parametrize("room", [1500, 7 + 8 + 5 + 4 + 16])
def test_a_retry_is_what_aioquic_writes_but_for_the_tag(room):
    status, data = build_retry(SCID, DCID, b"tokn", random=0xFA, room=room)
    theirs = encode_quic_retry(1, DCID, SCID, b"original", b"tokn", unused=0xA)
    assert (status, data[:-16]) == (OK, theirs[:-16])
    status, header = parse(theirs)
    assert (status, header["type"], header["token"]) == (OK, RETRY, b"tokn")
    assert header["integrity_tag"] == theirs[-16:]
    assert (header["dcid"], header["scid"]) == (SCID, DCID)
    assert (header["size"], header["pn_offset"]) == (len(theirs), 0)


def test_a_retry_without_a_token_or_a_tag_is_dropped():
    _, data = build_retry(DCID, SCID, b"")
    assert parse(data)[0] == NO_TOKEN
    assert parse(data[:-1])[0] == TRUNCATED


@pytest.mark.parametrize(("dcid", "scid"), [(8, 5), (0, 0), (20, 20), (255, 255)])
def test_version_negotiation_repeats_any_connection_ids(dcid, scid):
    dcid, scid, versions = b"d" * dcid, b"s" * scid, [1, 0xFF00001D]
    status, data = build_version_negotiation(dcid, scid, versions, random=0x15)
    theirs = encode_quic_version_negotiation(scid, dcid, versions)
    assert (status, data[0], data[1:]) == (OK, 0xD5, theirs[1:])
    status, header = parse(data)
    assert (status, header["type"], header["version"]) == (OK, NEGOTIATION, 0)
    assert (header["dcid"], header["scid"]) == (dcid, scid)
    assert header["token"] == bytes.fromhex("00000001ff00001d")
    assert parse(bytes([0x80]) + data[1:])[0] == OK  # its fixed bit means nothing


def test_version_negotiation_without_whole_versions_is_ignored():
    _, data = build_version_negotiation(DCID, SCID, [1])
    assert parse(data[:-1])[0] == TRUNCATED
    assert parse(data[:-4])[0] == TRUNCATED


@pytest.mark.parametrize("size", [21, 22, 43, 1200])
def test_a_stateless_reset_looks_like_a_short_header(size):
    token = bytes(range(16))
    random = bytes([0xFF]) * (size - 16)
    status, data = build_stateless_reset(random, token)
    assert (status, len(data), data[-16:]) == (OK, size, token)
    assert data[0] == 0x7F
    assert data[1:-16] == random[1:]
    assert parse(data, 0)[0] == OK
    assert build_stateless_reset(random, token, room=size - 1) == (NO_SPACE, b"")


def test_a_stateless_reset_below_21_bytes_is_refused():
    assert build_stateless_reset(bytes(4), bytes(16)) == (NO_SPACE, b"")


@pytest.mark.parametrize("packet_type", [*LONG_TYPES, ONE_RTT])
def test_a_header_that_does_not_fit_writes_nothing(packet_type):
    scid = b"" if packet_type == ONE_RTT else SCID
    token = b"token" if packet_type == INITIAL else b""
    room = header_size(packet_type, 8, len(scid), len(token))
    options = {"token": token, "payload": b""}
    status, data, _ = build(packet_type, DCID, scid, room=room, **options)
    assert (status, len(data)) == (OK, room)
    for less in range(room):
        status, data, _ = build(packet_type, DCID, scid, room=less, **options)
        assert (status, data) == (NO_SPACE, b"")


def test_retry_and_negotiation_that_do_not_fit_write_nothing():
    for room in range(40):
        assert build_retry(DCID, SCID, b"tokn1", room=room) == (NO_SPACE, b"")
    for room in range(28):
        made = build_version_negotiation(DCID, SCID, [1, 2], room=room)
        assert made == (NO_SPACE, b"")
    assert build_version_negotiation(DCID, SCID, [1, 2], room=28)[0] == OK


def test_a_payload_beyond_the_length_field_is_refused():
    fits = 0x3FFF - 16 - 1
    status, data, _ = build(HANDSHAKE, DCID, SCID, payload=bytes(fits), room=20_000)
    assert status == OK
    assert parse(data + TAG)[1]["size"] == len(data) + 16
    too_long = bytes(fits + 1)
    assert build(HANDSHAKE, DCID, SCID, payload=too_long, room=20_000)[0] == NO_SPACE


def test_packet_numbers_of_the_specification():
    """RFC 9000 A.2 and A.3."""
    assert decode_number(0x9B32, 2, 0xA82F30EA + 1) == 0xA82F9B32
    assert number_size(0xAC5C02, 0xABE8B3) == 2
    assert number_size(0xACE8FE, 0xABE8B3) == 3


@pytest.mark.parametrize(
    ("number", "acked", "size"),
    [
        (0, -1, 1),
        (127, -1, 1),
        (128, -1, 2),
        (128, 0, 1),
        (129, 0, 2),
        (0x8000, 0, 2),
        (0x8001, 0, 3),
        (0x800000, 0, 3),
        (0x800001, 0, 4),
        (2**62 - 1, 2**62 - 2, 1),
    ],
)
def test_packet_number_sizes_change_at_the_boundaries(number, acked, size):
    assert number_size(number, acked) == size
    # Whatever was received after the acknowledged one, the number is recovered.
    for expected in {acked + 1, number, (acked + number + 1) // 2}:
        assert decode_number(number % (1 << 8 * size), size, expected) == number


@pytest.mark.parametrize(
    ("truncated", "size", "expected", "number"),
    [
        (0x00, 1, 0, 0),
        (0xFF, 1, 0, 0xFF),  # would be negative
        (0xFF, 1, 0x100, 0xFF),
        (0x00, 1, 0xFF, 0x100),
        (0x80, 1, 0x00, 0x80),
        (0x80, 1, 0x100, 0x180),  # half a window above wins
        (0x7F, 1, 0x1FF, 0x27F),
        (0x00, 1, 2**62 - 1, 2**62 - 256),  # never past the largest number
        (0x00000000, 4, 2**62 - 1, 2**62 - 2**32),
    ],
)
def test_packet_numbers_are_recovered_at_the_edges(truncated, size, expected, number):
    assert decode_number(truncated, size, expected) == number


def test_reserved_bits_are_seen_in_both_header_forms():
    assert [bit for bit in range(8) if reserved_bits(0xC0 | 1 << bit)] == [2, 3]
    assert [bit for bit in range(7) if reserved_bits(0x40 | 1 << bit)] == [3, 4]


def test_each_type_has_its_packet_number_space():
    assert [space(t) for t in (INITIAL, HANDSHAKE, ZERO_RTT, ONE_RTT)] == [0, 1, 2, 2]


def test_the_faces_refuse_what_has_no_meaning():
    for call in (
        lambda: build(HANDSHAKE, bytes(21)),
        lambda: build(HANDSHAKE, b"", pn_size=5),
        lambda: decode_number(0, 0, 0),
        lambda: build_version_negotiation(bytes(256), b"", [1]),
        lambda: build_stateless_reset(bytes(20), b"short"),
    ):
        with pytest.raises(ValueError, match=r"bytes|versions"):
            call()
    bench_parse(packet(), 2)
