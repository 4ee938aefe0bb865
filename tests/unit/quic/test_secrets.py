"""Randomness from a seed, and tokens that prove an address."""

import random
from itertools import pairwise

import pytest

from lightning._core.quic.secrets import RandomFace, TokenFace

UNKNOWN, PROVES_RETRY, PROVES_ADDRESS, INVALID = range(4)
SECOND = 1_000_000
HERE, PORT = bytes([10, 0, 0, 1]), 1000
ORIGINAL, SCID = b"original", b"of retry"


def tokens(key=bytes(32), seed=bytes(32)):
    """Make tokens that are good for 15 s after a Retry and 100 s otherwise."""
    return TokenFace(key, 15 * SECOND, 100 * SECOND, seed)


# Randomness.


def test_a_seed_makes_one_sequence():
    first, second = RandomFace(bytes(32)), RandomFace(bytes(32))
    assert first.take(100) == second.take(100)
    assert RandomFace(bytes([1] * 32)).take(100) != RandomFace(bytes(32)).take(100)


def test_no_block_comes_twice():
    made = RandomFace(bytes(32))
    blocks = [made.take(16) for _ in range(1000)]
    assert len(set(blocks)) == 1000


def test_any_size_is_filled():
    made = RandomFace(bytes(32))
    for size in (0, 1, 15, 16, 17, 1000):
        out = made.take(size)
        assert len(out) == size
        assert size < 15 or any(out[-8:])


def test_bits_are_evenly_set():
    """100,000 of them: within 5 standard deviations, for this seed at least."""
    ones = int.from_bytes(RandomFace(bytes(range(32))).take(12_500)).bit_count()
    assert abs(ones - 50_000) < 5 * 158


def test_numbers_stay_below_their_bound():
    made = RandomFace(bytes(32))
    seen = {made.below(7) for _ in range(500)}
    assert seen == set(range(7))
    assert made.below(1) == 0


# Tokens of Retry packets (RFC 9000 section 8.1.2).


@pytest.mark.parametrize("size", [0, 8, 20])
def test_a_retry_token_brings_the_first_identifier_back(size):
    made = tokens()
    token = made.make_retry(HERE, PORT, ORIGINAL.ljust(20)[:size], SCID, 0)
    assert len(token) == 34 + size
    assert made.check(HERE, PORT, SCID, token, SECOND) == (
        PROVES_RETRY, ORIGINAL.ljust(20)[:size],
    )  # fmt: skip


def test_a_retry_token_is_good_for_its_lifetime():
    made = tokens()
    token = made.make_retry(HERE, PORT, ORIGINAL, SCID, 5 * SECOND)
    for now, verdict in (
        (5 * SECOND, PROVES_RETRY), (20 * SECOND, PROVES_RETRY),
        (20 * SECOND + 1, INVALID), (5 * SECOND - 1, INVALID),
    ):  # fmt: skip
        assert made.check(HERE, PORT, SCID, token, now)[0] == verdict


@pytest.mark.parametrize(
    ("ip", "port", "dcid"),
    [
        (bytes([10, 0, 0, 2]), PORT, SCID),
        (HERE, PORT + 1, SCID),
        (HERE + bytes(12), PORT, SCID),
        (HERE, PORT, b"another!"),
        (HERE, PORT, SCID + b"!"),
    ],
)
def test_a_retry_token_of_elsewhere_is_invalid(ip, port, dcid):
    """Address, port, family and identifier are in its tag; it is an error (8.1.3)."""
    made = tokens()
    token = made.make_retry(HERE, PORT, ORIGINAL, SCID, 0)
    assert made.check(ip, port, dcid, token, 0)[0] == INVALID


def test_another_key_knows_no_token():
    made, other = tokens(), tokens(bytes([1] * 32))
    token = made.make_retry(HERE, PORT, ORIGINAL, SCID, 0)
    assert other.check(HERE, PORT, SCID, token, 0)[0] == INVALID
    token = made.make_new(HERE, PORT, 0)
    assert other.check(HERE, PORT, SCID, token, 0)[0] == UNKNOWN


# Tokens of NEW_TOKEN frames (section 8.1.3).


def test_a_token_proves_an_address_from_any_port_once():
    made = tokens()
    token = made.make_new(HERE, PORT, 0)
    assert len(token) == 33
    assert made.check(bytes([10, 0, 0, 2]), PORT, SCID, token, 1)[0] == UNKNOWN
    assert made.check(HERE, 7, b"whatever", token, 1) == (PROVES_ADDRESS, b"")
    assert made.check(HERE, 7, b"whatever", token, 2)[0] == UNKNOWN


def test_a_token_is_good_for_its_lifetime():
    for now, verdict in (
        (9 * SECOND, UNKNOWN), (10 * SECOND, PROVES_ADDRESS),
        (110 * SECOND, PROVES_ADDRESS), (110 * SECOND + 1, UNKNOWN),
    ):  # fmt: skip
        made = tokens()
        token = made.make_new(HERE, PORT, 10 * SECOND)
        assert made.check(HERE, PORT, SCID, token, now)[0] == verdict


def test_the_last_1024_tokens_are_remembered():
    """Section 8.1.4: older ones are good again, until their time is over."""
    made = tokens()
    kept = [made.make_new(HERE, PORT, 0) for _ in range(1025)]
    for token in kept[:1024]:
        assert made.check(HERE, PORT, SCID, token, 1)[0] == PROVES_ADDRESS
    assert made.check(HERE, PORT, SCID, kept[0], 1)[0] == UNKNOWN
    assert made.check(HERE, PORT, SCID, kept[1024], 1)[0] == PROVES_ADDRESS
    assert made.check(HERE, PORT, SCID, kept[1], 1)[0] == UNKNOWN
    assert made.check(HERE, PORT, SCID, kept[0], 1)[0] == PROVES_ADDRESS


def test_tokens_cannot_be_linked():
    """Two of one moment share no bytes but their kind, so neither tells its time."""
    made = tokens()
    kept = [made.make_new(HERE, PORT, 12345) for _ in range(50)]
    for one, other in pairwise(kept):
        assert one[0] == other[0]
        same = sum(a == b for a, b in zip(one[1:], other[1:], strict=True))
        assert same < 8
    assert len({token[1:9] for token in kept}) == 50


# What is not one of ours.


@pytest.mark.parametrize("kind", ["retry", "new"])
def test_every_flipped_bit_is_noticed(kind):
    made = tokens()
    token = (
        made.make_retry(HERE, PORT, ORIGINAL, SCID, 0)
        if kind == "retry" else made.make_new(HERE, PORT, 0)
    )  # fmt: skip
    for bit in range(8 * len(token)):
        forged = bytearray(token)
        forged[bit // 8] ^= 1 << bit % 8
        verdict = made.check(HERE, PORT, SCID, bytes(forged), 1)[0]
        assert verdict in (UNKNOWN, INVALID)


def test_every_other_length_is_unknown():
    made = tokens()
    for token in (
        made.make_new(HERE, PORT, 0), made.make_retry(HERE, PORT, ORIGINAL, SCID, 0)
    ):  # fmt: skip
        for size in [*range(len(token)), len(token) + 1, 55, 1000]:
            other = token.ljust(size, b"\0")[:size]
            assert made.check(HERE, PORT, SCID, other, 1)[0] == UNKNOWN


def test_noise_is_unknown():
    made = tokens()
    noise = random.Random(3)
    for _ in range(2000):
        token = noise.choice((b"R", b"N")) + noise.randbytes(noise.randrange(60))
        assert made.check(HERE, PORT, SCID, token, 1)[0] in (UNKNOWN, INVALID)


def test_addresses_of_version_6_are_told_apart():
    made = tokens()
    six = bytes(range(16))
    token = made.make_new(six, PORT, 0)
    assert made.check(bytes(16), PORT, SCID, token, 1)[0] == UNKNOWN
    assert made.check(six, PORT, SCID, token, 1)[0] == PROVES_ADDRESS


def test_the_faces_refuse_wrong_sizes():
    made = tokens()
    for call in (
        lambda: RandomFace(b"short"),
        lambda: RandomFace(bytes(32)).below(0),
        lambda: TokenFace(b"short", 1, 1),
        lambda: made.make_new(b"12345", PORT, 0),
        lambda: made.make_retry(HERE, PORT, bytes(21), SCID, 0),
        lambda: made.check(HERE, PORT, bytes(21), b"", 0),
    ):
        with pytest.raises(ValueError, match=r"bytes|below"):
            call()
