"""Memory blocks of one size."""

import pytest

from lightning._core.quic.pool import BlockPool


def test_a_block_given_back_is_the_next_one_taken():
    pool = BlockPool()
    first, second = pool.take(), pool.take()
    assert first != second
    assert (pool.in_use, pool.kept) == (2, 0)
    pool.give(first)
    assert (pool.in_use, pool.kept) == (1, 1)
    assert pool.take() == first
    assert (pool.in_use, pool.kept) == (2, 0)
    pool.give(first)
    pool.give(second)


def test_keeps_no_more_than_its_limit():
    pool = BlockPool(keep=2)
    blocks = [pool.take() for _ in range(5)]
    for block in blocks:
        pool.give(block)
    assert (pool.in_use, pool.kept) == (0, 2)


def test_refuses_an_address_that_it_did_not_hand_out():
    pool = BlockPool()
    block = pool.take()
    pool.give(block)
    with pytest.raises(ValueError, match="not in list"):
        pool.give(block)
