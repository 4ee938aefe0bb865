"""Packet protection, against RFC 9001 appendix A and aioquic's own keys."""

import hashlib
import hmac
import json
import random
from pathlib import Path

import pytest
from aioquic.quic.crypto import CryptoContext, CryptoPair, next_key_phase
from aioquic.quic.packet import get_retry_integrity_tag
from aioquic.tls import CipherSuite

from lightning._core.quic.packet import parse
from lightning._core.quic.protection import (
    PacketProtection,
    bench_initial,
    bench_open,
    bench_seal,
    hkdf_expand_label,
    initial,
    is_equal,
    is_retry_valid,
    reset_token,
    retry_integrity_tag,
)

OK, TOO_SHORT, OPEN_FAILED, SEAL_TOO_SHORT = 0, -7, -10, -11
AEAD_LIMIT_REACHED = 0x0F
AES_128, AES_256, CHACHA20 = 0x1301, 0x1302, 0x1303
SECRETS = {
    AES_128: bytes(range(32)),
    AES_256: bytes(range(48)),
    CHACHA20: bytes(range(32)),
}
SUITES = pytest.mark.parametrize("suite", SECRETS)
SHORT = b"\x41" + bytes(8) + b"\x12\x34"

VECTORS = Path(__file__).parents[2] / "vectors" / "rfc9001_appendix_a.json"
RFC = json.loads(VECTORS.read_text())
DCID = bytes.fromhex(RFC["dcid"])


def pair(suite):
    secret = SECRETS[suite]
    return PacketProtection(suite, secret, True), PacketProtection(suite, secret, False)


def sample(role):
    """Return header, payload, packet number and packet of an Initial of the RFC."""
    given = RFC[f"{role}_initial"]
    payload = bytes.fromhex(given.get("payload") or given["crypto_frame"])
    payload = payload.ljust(given.get("payload_size", 0), b"\0")
    packet = bytes.fromhex(given["packet"])
    return bytes.fromhex(given["header"]), payload, given["pn"], packet


def test_initial_secrets_and_keys_of_the_specification():
    client_seals, client_opens = initial(DCID, True)
    server_seals, server_opens = initial(DCID, False)
    for keys, role in (
        (client_seals, "client"),
        (server_opens, "client"),
        (server_seals, "server"),
        (client_opens, "server"),
    ):
        assert keys.secret.hex() == RFC[f"{role}_secret"]
        for label, expected in RFC[f"{role}_keys"].items():
            size = len(expected) // 2
            derived = hkdf_expand_label(AES_128, keys.secret, label.encode(), size)
            assert derived.hex() == expected


def test_chacha20_keys_of_the_specification():
    secret = bytes.fromhex(RFC["chacha20"]["secret"])
    for label, expected in RFC["chacha20"]["keys"].items():
        size = len(expected) // 2
        derived = hkdf_expand_label(CHACHA20, secret, label.encode(), size)
        assert derived.hex() == expected
    keys = PacketProtection(CHACHA20, secret, True)
    keys.update()
    assert keys.secret.hex() == RFC["chacha20"]["keys"]["quic ku"]


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("in_place", [True, False])
def test_seals_the_initials_of_the_specification(role, in_place):
    header, payload, pn, packet = sample(role)
    sealing, _ = initial(DCID, role == "client")
    assert sealing.seal(pn, header, payload, in_place) == (OK, packet)


@pytest.mark.parametrize("role", ["client", "server"])
def test_opens_the_initials_of_the_specification(role):
    header, payload, pn, packet = sample(role)
    status, parsed = parse(packet)
    assert (status, parsed["size"]) == (OK, len(packet))
    _, opening = initial(DCID, role == "server")
    opened = opening.open(packet, parsed["pn_offset"])
    assert opened == (OK, header, payload, pn)


def test_the_short_header_packet_of_the_specification():
    given = RFC["chacha20"]
    secret, packet = bytes.fromhex(given["secret"]), bytes.fromhex(given["packet"])
    header, payload = bytes.fromhex(given["header"]), bytes.fromhex(given["payload"])
    pn = given["pn"]
    sealing = PacketProtection(CHACHA20, secret, True)
    opening = PacketProtection(CHACHA20, secret, False)
    assert sealing.seal(pn, header, payload) == (OK, packet)
    assert opening.open(packet, 1, pn) == (OK, header, payload, pn)


def test_the_retry_of_the_specification():
    packet = bytes.fromhex(RFC["retry"])
    assert retry_integrity_tag(DCID, packet[:-16]) == packet[-16:]
    assert is_retry_valid(DCID, packet)
    assert not is_retry_valid(DCID[:-1], packet)
    for bit in range(8 * len(packet)):
        broken = bytearray(packet)
        broken[bit // 8] ^= 1 << bit % 8
        assert not is_retry_valid(DCID, bytes(broken)), bit
    assert not is_retry_valid(DCID, packet[-15:])


@pytest.mark.parametrize("size", [0, 1, 8, 20])
def test_retry_tags_are_those_of_aioquic(size):
    cid, packet = bytes([3]) * size, b"\xff\0\0\0\1" + bytes(40)
    assert retry_integrity_tag(cid, packet) == get_retry_integrity_tag(packet, cid, 1)


def aioquic_keys(suite):
    context = CryptoContext()
    context.setup(cipher_suite=CipherSuite(suite), secret=SECRETS[suite], version=1)
    return context


@SUITES
def test_what_we_seal_aioquic_opens(suite):
    sealing, _ = pair(suite)
    rng = random.Random(suite)
    for size in (2, 3, 15, 16, 17, 200, 1200, 1452):
        pn = 0x1234 + size
        header = b"\x41" + rng.randbytes(8) + (pn % 2**16).to_bytes(2, "big")
        payload = rng.randbytes(size)
        status, packet = sealing.seal(pn, header, payload)
        theirs = aioquic_keys(suite).decrypt_packet(packet, 9, pn)
        assert (status, theirs) == (OK, (header, payload, pn, False))


@SUITES
def test_what_aioquic_seals_we_open(suite):
    _, opening = pair(suite)
    rng = random.Random(suite)
    for size in (4, 15, 16, 17, 200, 1200, 1452):
        for pn_size in (1, 2, 3, 4):
            pn = 2**40 + size
            number = (pn % 2 ** (8 * pn_size)).to_bytes(pn_size, "big")
            header = bytes([0x40 | pn_size - 1]) + rng.randbytes(8) + number
            payload = rng.randbytes(size)
            packet = aioquic_keys(suite).encrypt_packet(header, payload, pn)
            assert opening.open(packet, 9, pn - 5) == (OK, header, payload, pn)


def test_initial_packets_go_both_ways_with_aioquic():
    theirs = CryptoPair()
    theirs.setup_initial(DCID, is_client=False, version=1)
    sealing, opening = initial(DCID, True)
    header, payload, pn, _ = sample("client")
    _, packet = sealing.seal(pn, header, payload)
    assert theirs.decrypt_packet(packet, 18, 0) == (header, payload, pn)
    back = theirs.encrypt_packet(header, payload, pn)
    assert opening.open(back, 18) == (OK, header, payload, pn)


@SUITES
def test_key_updates_follow_aioquic_and_keep_the_header_key(suite):
    sealing, opening = pair(suite)
    theirs = aioquic_keys(suite)
    for _ in range(3):
        sealing.update()
        opening.update()
        following = next_key_phase(theirs)
        # Their next phase has a header key of its own that they never use.
        theirs.aead, theirs.secret = following.aead, following.secret
        assert sealing.secret == opening.secret == theirs.secret
        assert sealing.left == (2**62 if suite == CHACHA20 else 2**23)
        _, packet = sealing.seal(7, SHORT, b"payload")
        assert packet == theirs.encrypt_packet(SHORT, b"payload", 7)
        assert opening.open(packet, 9, 0x1234)[0] == OPEN_FAILED
        assert opening.open(theirs.encrypt_packet(SHORT, b"!" * 9, 0x1234), 9)[2] == (
            b"!" * 9
        )


@SUITES
def test_a_packet_of_another_phase_does_not_open(suite):
    sealing, opening = pair(suite)
    sealing.update()
    _, packet = sealing.seal(0x1234, SHORT, b"payload")
    assert opening.open(packet, 9, 0x1234)[0] == OPEN_FAILED
    assert opening.failures == 1
    opening.update()
    assert opening.open(packet, 9, 0x1234)[:3] == (OK, SHORT, b"payload")


@SUITES
@pytest.mark.parametrize("first", [0x41, 0xE1])
def test_every_flipped_bit_is_noticed(suite, first):
    sealing, opening = pair(suite)
    header = bytes([first]) + SHORT[1:]
    _, packet = sealing.seal(0x1234, header, b"abcdefgh")
    for bit in range(8 * len(packet)):
        broken = bytearray(packet)
        broken[bit // 8] ^= 1 << bit % 8
        assert opening.open(bytes(broken), 9, 0x1234)[0] == OPEN_FAILED, bit
    assert opening.failures == 8 * len(packet)
    assert opening.open(packet, 9, 0x1234)[2] == b"abcdefgh"


@SUITES
def test_a_failure_leaves_the_last_16_bytes_for_the_stateless_reset(suite):
    _, opening = pair(suite)
    packet = random.Random(1).randbytes(60)
    status, _, rest, _ = opening.open(packet, 9)
    assert status == OPEN_FAILED
    assert rest[-16:] == packet[-16:]


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x01\x02\x03"])
def test_too_little_to_sample_is_not_sealed(payload):
    sealing, _ = pair(AES_128)
    short = b"\x40" + bytes(8)  # and a packet number of one byte
    expected = OK if len(payload) == 3 else SEAL_TOO_SHORT
    assert sealing.seal(0, short + b"\0", payload)[0] == expected
    assert sealing.left == 2**23 - (expected == OK)


@SUITES
def test_an_empty_payload_is_sealed_and_opened(suite):
    """The peer broke a rule with it, but that is not for this layer to say."""
    sealing, opening = pair(suite)
    header = b"\x43" + bytes(8) + b"\0\0\0\5"
    status, packet = sealing.seal(5, header, b"")
    assert (status, len(packet)) == (OK, 29)
    assert opening.open(packet, 9) == (OK, header, b"", 5)


def test_a_packet_without_a_sample_is_not_opened():
    _, opening = pair(AES_128)
    for size in range(9, 29):
        assert opening.open(bytes(size), 9)[0] == TOO_SHORT
    assert opening.open(bytes(8), 9)[0] == TOO_SHORT
    assert opening.open(bytes(29), 9)[0] == OPEN_FAILED


@SUITES
def test_a_key_seals_no_more_packets_than_its_limit(suite):
    sealing, _ = pair(suite)
    sealing.limit(2, 0)
    assert sealing.left == 2
    assert [sealing.seal(n, SHORT, b"abc")[0] for n in range(4)] == [
        OK,
        OK,
        AEAD_LIMIT_REACHED,
        AEAD_LIMIT_REACHED,
    ]
    assert sealing.left == 0
    sealing.update()
    assert sealing.seal(4, SHORT, b"abc")[0] == OK


@SUITES
def test_forged_packets_are_counted_up_to_the_limit_across_updates(suite):
    _, opening = pair(suite)
    opening.limit(0, 2)
    packet = bytes([0x41]) + bytes(40)
    assert [opening.open(packet, 9)[0] for _ in range(2)] == [OPEN_FAILED] * 2
    opening.update()
    opening.limit(0, 2)
    assert opening.open(packet, 9)[0] == AEAD_LIMIT_REACHED
    assert opening.failures == 3


@pytest.mark.parametrize(
    ("suite", "size"),
    [(AES_128, 48), (AES_256, 32), (CHACHA20, 31), (AES_128, 0), (0x1304, 32), (0, 32)],
)
def test_a_wrong_suite_or_secret_is_refused(suite, size):
    with pytest.raises(ValueError, match="not available"):
        PacketProtection(suite, bytes(size), True)


def test_freed_keys_are_wiped():
    for keys in pair(AES_256):
        keys.free()
        keys.free()
        assert keys.secret == bytes(48)
    sealing, opening = pair(AES_128)
    sealing.free()
    opening.free()
    with pytest.raises(ValueError, match="no key"):
        sealing.seal(0, SHORT, b"abc")
    with pytest.raises(ValueError, match="no key"):
        opening.open(bytes(100), 9)


def test_the_face_refuses_what_would_be_out_of_bounds():
    sealing, opening = pair(AES_128)
    for call in (
        lambda: sealing.seal(0, b"", b"abcd"),
        lambda: sealing.seal(0, b"\x43\0\0\0", b"abcd"),
        lambda: opening.seal(0, SHORT, b"abc"),
        lambda: sealing.open(bytes(100), 9),
        lambda: hkdf_expand_label(AES_128, bytes(31), b"quic key", 16),
        lambda: hkdf_expand_label(AES_128, bytes(32), b"quic key", 33),
        lambda: hkdf_expand_label(AES_128, bytes(32), b"l" * 33, 16),
        lambda: retry_integrity_tag(bytes(21), b""),
        lambda: reset_token(b"key", bytes(21)),
    ):
        with pytest.raises(ValueError, match=r"."):
            call()


def test_reset_tokens_are_an_hmac_of_the_connection_id():
    for size in (0, 8, 20):
        cid = bytes(range(size))
        expected = hmac.new(b"k" * 32, cid, hashlib.sha256).digest()[:16]
        assert reset_token(b"k" * 32, cid) == expected


def test_equality_in_constant_time():
    assert is_equal(b"", b"")
    assert is_equal(b"abc", b"abc")
    assert not is_equal(b"abc", b"abd")
    assert not is_equal(b"abc", b"ab")


@SUITES
def test_the_benchmarks_work(suite):
    assert bench_seal(suite, 1200, 3) == OK
    assert bench_open(suite, 1200, 3) == OK
    assert bench_initial(2) == OK
