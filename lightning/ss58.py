"""SS58: the text form of a public key.

Wire: base58 of ``prefix | key | checksum``. The prefix is one byte for the networks
0 to 63 and two for 64 to 16383; the key has 32 bytes; the checksum is the first two
bytes of BLAKE2b-512 over ``"SS58PRE" | prefix | key``.

Each key has exactly one accepted text for each network: whoever compares addresses as
strings, as the wire protocol does, can rely on that.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import base58

from lightning.errors import SignatureInvalid

__all__ = ["KEY_SIZE", "REGISTERED_PREFIXES", "decode", "encode"]

KEY_SIZE = 32
"""Bytes of a public key."""

# The networks of ss58-registry 1.51.0 (crates.io), the version that the peer 0.2.15
# resolves. Without 46 and 47, which it marks as reserved, and without 29972, which has
# no encoding: a prefix has 14 bits.
REGISTERED_PREFIXES: frozenset[int] = frozenset(
    (
        *range(46),
        *range(48, 59),
        *(63, 65, 66, 67, 68, 69, 71, 72, 73, 77, 78, 81, 88, 89, 90, 92, 93, 98, 99),
        *(100, 101, 105, 110, 113, 117, 126, 128, 129, 131, 136, 137, 172, 252, 255),
        *(268, 420, 440, 666, 777, 789, 995, 1110, 1221, 1222, 1284, 1285, 1328, 1337),
        *(1516, 1985, 2007, 2009, 2021, 2024, 2032, 2092, 2106, 2112, 2199, 2206, 2207),
        *(2254, 3333, 4450, 5234, 5845, 6094, 7007, 7013, 7306, 7391, 8866, 8883, 8886),
        *(8888, 9072, 9807, 9935, 10041, 11330, 11331, 11486, 11820, 12155, 12191),
        *(12850, 13116, 14697, 14998),
    )
)
"""Network numbers whose addresses :func:`decode` accepts."""

_CHECKSUM_SIZE = 2
# Base58 of 36 bytes takes at most 50 characters. Longer text is not worth converting.
_MAX_ADDRESS_LENGTH = 50
# A metagraph of every subnet has some tens of thousands of hotkeys, a server sees the
# few that log in; an entry costs about 300 bytes.
_CACHED_ADDRESSES = 4096


@lru_cache(maxsize=_CACHED_ADDRESSES)
def decode(address: str) -> bytes:
    """Return the public key that an address stands for.

    Args:
        address: Base58 text, 48 characters for prefix 42.

    Returns:
        The 32 bytes of the key. It is not checked to be a point of the curve; that
        is part of verifying a signature.

    Raises:
        SignatureInvalid: The text is not the one canonical form of a 32-byte key
            under a registered prefix.

    Source: sp-core 34.0.0 ``from_ss58check``. Its two-byte form of a prefix below 64
    is refused here: it would be a second text for the same key and network.
    """
    if len(address) > _MAX_ADDRESS_LENGTH:
        raise SignatureInvalid("Invalid SS58 address: too long")
    try:
        data = base58.b58decode(address)
    except ValueError:
        raise SignatureInvalid("Invalid SS58 address: not base58") from None
    prefix_size = 2 if data and data[0] >= 64 else 1
    if len(data) != prefix_size + KEY_SIZE + _CHECKSUM_SIZE:
        raise SignatureInvalid("Invalid SS58 address: wrong length")
    prefix, key = data[:prefix_size], data[prefix_size:-_CHECKSUM_SIZE]
    network = prefix[0]
    if prefix_size == 2:
        # 01aaaaaa bbcccccc stands for the number 00cccccc aaaaaabb.
        network = (prefix[1] & 0x3F) << 8 | (prefix[0] & 0x3F) << 2 | prefix[1] >> 6
        if prefix[0] >= 128 or network < 64:
            raise SignatureInvalid("Invalid SS58 address: bad prefix")
    if network not in REGISTERED_PREFIXES:
        raise SignatureInvalid(f"Invalid SS58 address: unknown network {network}")
    if data[-_CHECKSUM_SIZE:] != _checksum(prefix + key):
        raise SignatureInvalid("Invalid SS58 address: wrong checksum")
    # The base58 library skips white space at the end.
    if base58.b58encode(data).decode() != address:
        raise SignatureInvalid("Invalid SS58 address: not in canonical form")
    return key


@lru_cache(maxsize=_CACHED_ADDRESSES)
def encode(public_key: bytes, prefix: int = 42) -> str:
    """Return the address of a public key.

    Args:
        public_key: 32 bytes.
        prefix: Number of the network, 0 to 16383; 42 is Bittensor's.

    Raises:
        ValueError: The key has another length, or the prefix is out of range.
    """
    if len(public_key) != KEY_SIZE:
        raise ValueError(f"a public key has {KEY_SIZE} bytes, not {len(public_key)}")
    if not 0 <= prefix < 1 << 14:
        raise ValueError(f"an SS58 prefix is a number below 16384, not {prefix}")
    if prefix < 64:
        head = bytes([prefix])
    else:
        head = bytes([0x40 | prefix >> 2 & 0x3F, (prefix & 3) << 6 | prefix >> 8])
    body = head + public_key
    return base58.b58encode(body + _checksum(body)).decode()


def _checksum(body: bytes) -> bytes:
    return blake2b(b"SS58PRE" + body, digest_size=64).digest()[:_CHECKSUM_SIZE]
