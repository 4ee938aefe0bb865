"""The table from connection IDs to connections."""

import random

import pytest

from lightning._core.quic.cidmap import CidTable


def test_an_empty_table_finds_nothing():
    made = CidTable()
    assert made.find(b"12345678") is None
    assert made.find(b"") is None
    made.remove(b"12345678", 1)
    assert len(made) == 0


def test_identifiers_are_told_apart_by_every_byte_and_their_length():
    made = CidTable(5)
    known = [b"", b"1", b"12345678", b"12345679", b"123456780", bytes(8), bytes(9)]
    for owner, cid in enumerate(known, 1):
        made.add(cid, owner)
    assert [made.find(cid) for cid in known] == list(range(1, 8))
    assert made.find(bytes(10)) is None
    assert made.find(b"2") is None


def test_only_its_owner_removes_an_identifier():
    made = CidTable()
    made.add(b"12345678", 1)
    made.remove(b"12345678", 2)
    assert made.find(b"12345678") == 1
    made.remove(b"12345678", 1)
    assert made.find(b"12345678") is None
    made.remove(b"12345678", 1)
    assert len(made) == 0


def test_two_owners_of_one_key_are_removed_apart():
    """Connections to one address share it, as the keys of `peers`."""
    made = CidTable()
    made.add(b"address", 1)
    made.add(b"address", 2)
    made.remove(b"address", 1)
    assert made.find(b"address") == 2


def test_agrees_with_a_dict():
    """Whatever is added and removed, over several doublings."""
    choose = random.Random(7)
    made, model = CidTable(choose.getrandbits(64)), {}
    for _ in range(20_000):
        if choose.random() < 0.6 or not model:
            cid = choose.randbytes(choose.choice((8, 8, 20, 3)))
            if cid not in model:
                owner = choose.randrange(1, 2**40)
                model[cid] = owner
                made.add(cid, owner)
        else:
            cid = choose.choice((next(iter(model)), next(reversed(model))))
            made.remove(cid, model.pop(cid))
        assert len(made) == len(model)
    assert len(model) > 1000
    for cid, owner in model.items():
        assert made.find(cid) == owner
    assert made.find(b"not there") is None
    made.free()
    assert len(made) == 0
    assert made.find(next(iter(model))) is None
    made.add(b"again", 3)
    assert made.find(b"again") == 3


@pytest.mark.parametrize("shape", ["counted", "spread", "long"])
def test_identifiers_that_a_peer_chooses_spread_evenly(shape):
    """4,096 of any pattern: no bucket holds more than 12."""
    made = CidTable(0x1234_5678_9ABC_DEF1)
    for number in range(4096):
        made.add(
            {
                "counted": number.to_bytes(8),
                "spread": (number << 48).to_bytes(8),
                "long": number.to_bytes(20, "little"),
            }[shape],
            number + 1,
        )
    assert made.longest <= 12


def test_the_key_decides_who_meets_whom():
    """Buckets that are filled on purpose for one key are ordinary for another."""
    wanted = []
    for number in range(20_000):
        one = CidTable(1)
        one.add(bytes(8), 1)
        one.add(number.to_bytes(8), 2)
        if number and one.longest == 2:
            wanted.append(number.to_bytes(8))
    assert len(wanted) > 100
    made, other = CidTable(1), CidTable(2**63 + 5)
    for cid in wanted[:50]:
        made.add(cid, 1)
        other.add(cid, 1)
    assert made.longest == 50
    assert other.longest < 12


def test_the_face_refuses_what_is_too_long():
    made = CidTable()
    with pytest.raises(ValueError, match="20 bytes"):
        made.add(bytes(21), 1)
    with pytest.raises(ValueError, match="20 bytes"):
        made.remove(bytes(21), 1)
