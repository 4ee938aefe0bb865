"""Addresses: one accepted text for each key and registered network."""

from hashlib import blake2b

import base58
import pytest

from lightning import ss58
from lightning.errors import HandshakeError, SignatureInvalid

# Published vectors: the two identities of the peer's own tests, the development key
# Alice under Substrate, and keys of the wallets of other networks.
VECTORS = [
    (
        42,
        "189dac29296d31814dc8c56cf3d36a0543372bba7538fa322a4aebfebc39e056",
        "5CcyqxXnJucaCnQQvvUg5EPzj1uoNAxACZvzArHw5aVDvgNH",
    ),
    (
        42,
        "1a4fee48c1ba1a48e8cd43782a8485d635aa91cfb82cbb477f0c1c576bc4031c",
        "5CfCr47V5Dte6bwxNBE8K9oNnQd9fiay6aDEEkgYtFv7w4Fq",
    ),
    (
        42,
        "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d",
        "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
    ),
    (
        2,
        "51e5a6beae03719e2e9335a3994f8da03be34d6c71fac792c375b81e6faf3330",
        "ERhckLKG8dSw7uSH3pixNMkE3LvRRh6wB47BxRteGgcbzjb",
    ),
    (
        10,
        "79d1b9f483f005398e8a9ffa6378990a6d302b882848220dfa68a50b6f2090f2",
        "23dKgUghw8q96xGPCybiSRDkbNJMxNK7riGoEvo4GyxFdSAe",
    ),
    (
        51,
        "67ea0d6b7afce2a7328ab537decba8c6eaa998fc61c07908e74fca438b658195",
        "68VteHnLQhPF2qFiB1EbuHSSUjqVV1cU8rskmAuwXirJHARU",
    ),
]
MINER = VECTORS[0][2]
KEY = bytes.fromhex(VECTORS[0][1])


def address(prefix: bytes, key: bytes = KEY, checksum: bytes | None = None) -> str:
    """Build an address byte by byte, valid or not."""
    body = prefix + key
    if checksum is None:
        checksum = blake2b(b"SS58PRE" + body).digest()[:2]
    return base58.b58encode(body + checksum).decode()


@pytest.mark.parametrize(("prefix", "key", "text"), VECTORS)
def test_published_addresses_convert_both_ways(prefix, key, text):
    assert ss58.decode(text).hex() == key
    assert ss58.encode(bytes.fromhex(key), prefix) == text


def test_every_registered_network_round_trips_and_no_other_is_accepted():
    """146 networks of the registry; the reserved 46 and 47 are not among them."""
    accepted = set()
    for prefix in range(1 << 14):
        try:
            assert ss58.decode.__wrapped__(ss58.encode(KEY, prefix)) == KEY
        except SignatureInvalid:
            continue
        accepted.add(prefix)
    assert accepted == ss58.REGISTERED_PREFIXES
    assert len(accepted) == 146
    assert {0, 2, 42, 63, 65, 14998} <= accepted
    assert not {46, 47, 59, 60, 64, 70, 16383} & accepted


def test_every_registered_network_decodes_as_the_reference_implementation_does():
    """bittensor-wallet decodes with the same Rust crate as the peer."""
    wallet = pytest.importorskip("bittensor_wallet")
    for prefix in ss58.REGISTERED_PREFIXES:
        text = ss58.encode(KEY, prefix)
        assert bytes(wallet.Keypair(ss58_address=text).public_key) == KEY


@pytest.mark.parametrize("prefix", [46, 47])
def test_reserved_networks_are_refused_by_the_reference_implementation_too(prefix):
    wallet = pytest.importorskip("bittensor_wallet")
    with pytest.raises(ValueError, match="Disallowed"):
        wallet.Keypair(ss58_address=ss58.encode(KEY, prefix))


def test_address_built_by_hand_is_the_published_one():
    """The helper that the refusals below rest on is itself right."""
    assert address(b"\x2a") == MINER
    # 01aaaaaa bbcccccc for 00cccccc aaaaaabb: 14998 is 0b00111010_10010110.
    assert address(bytes([0b01100101, 0b10111010])) == ss58.encode(KEY, 14998)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "wrong length"),
        ("1", "wrong length"),
        ("5", "wrong length"),
        (MINER[:-1], "wrong length|wrong checksum"),
        (MINER + "1", "wrong length"),
        ("1" + MINER, "wrong length"),
        (MINER + " ", "not in canonical form"),
        (MINER + "\n", "not in canonical form"),
        (MINER + "\t ", "too long|not in canonical form"),
        (" " + MINER, "not base58"),
        (MINER.replace("c", "C", 1), "wrong checksum"),
        (MINER.swapcase(), "not base58|wrong"),
        (MINER.upper(), "not base58|wrong"),
        (MINER[:-1] + "0", "not base58"),
        (MINER[:-1] + "O", "not base58"),
        (MINER[:-1] + ":", "not base58"),
        (MINER[:-1] + "\0", "not base58"),
        # CYRILLIC SMALL LETTER ES, which looks like the "c" in its place.
        (MINER.replace("c", "\u0441", 1), "not base58"),
        (MINER[:-1] + "\ud800", "not base58"),
        (MINER * 2, "too long"),
        ("1" * 36, "wrong length"),
        ("z" * 50, "wrong length"),
        ("5" * 1_000_000, "too long"),
        (address(b"\x2a", checksum=b"\0\0"), "wrong checksum"),
        (address(b"\x2a", KEY[:31]), "wrong length"),
        (address(b"\x2a", KEY + b"\0"), "wrong length"),
        (address(b"\x2a", b""), "wrong length"),
        (address(b"\x2a", KEY[:20]), "wrong length"),
        (address(b"\x2e"), "unknown network 46"),
        (address(b"\x2f"), "unknown network 47"),
        (address(b"\x3c"), "unknown network 60"),
        (address(b"\x40\x00"), "bad prefix"),
        # 42 spelled in two bytes.
        (address(bytes([0x40 | 42 >> 2, (42 & 3) << 6])), "bad prefix"),
        (address(b"\x80\x00"), "bad prefix"),
        (address(b"\xff\xff"), "bad prefix"),
        (address(b"\xff", KEY), "wrong length"),
        (address(b"\x7f\xff"), "unknown network 16383"),
    ],
)
def test_everything_but_the_canonical_text_is_refused(text, reason):
    with pytest.raises(SignatureInvalid, match=f"Invalid SS58 address: ({reason})"):
        ss58.decode(text)


def test_a_refusal_is_an_error_of_the_handshake():
    with pytest.raises(HandshakeError, match="handshake error: Invalid SS58 address"):
        ss58.decode("nobody")
    with pytest.raises(ConnectionError):
        ss58.decode("nobody")


@pytest.mark.parametrize("position", range(48))
def test_a_changed_character_is_noticed(position):
    """Two bytes of checksum miss one change in 65536; none of these."""
    changed = "2" if MINER[position] != "2" else "3"
    with pytest.raises(SignatureInvalid):
        ss58.decode(MINER[:position] + changed + MINER[position + 1 :])


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(b"", 42), (KEY[:31], 42), (KEY * 2, 42), (KEY, -1), (KEY, 1 << 14)],
)
def test_encode_refuses_what_has_no_address(key, prefix):
    with pytest.raises(ValueError, match=r"public key|prefix"):
        ss58.encode(key, prefix)


def test_the_cache_is_bounded_and_keeps_no_refusals():
    ss58.decode.cache_clear()
    for number in range(10):
        with pytest.raises(SignatureInvalid):
            ss58.decode(f"nobody{number}")
    assert ss58.decode.cache_info().currsize == 0
    assert ss58.decode(MINER) is ss58.decode(MINER)
    assert ss58.decode.cache_info().maxsize == 4096
