"""Incoming data of one stream."""

import random

import pytest

from lightning._core.quic.reassembly import ReceiveQueue

OK, E_INTERNAL, E_FINAL_SIZE, E_FRAME_ENCODING, E_CRYPTO_BUFFER = 0, 1, 6, 7, 0x0D
BLOCK = 4096
MAX = 2**62 - 1


def queue(*frames):
    made = ReceiveQueue()
    for offset, data in frames:
        assert made.store(offset, data) == OK
    return made


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def test_starts_empty():
    made = ReceiveQueue()
    assert (made.next, made.highest, made.final_size, made.buffered) == (0, 0, None, 0)
    assert made.read() == b""
    assert not made.is_received


def test_data_in_order_is_read_as_it_came():
    made = queue((0, b"abc"), (3, b"de"))
    assert made.peek() == b"abcde"
    made.consume(2)
    assert made.peek() == b"cde"
    assert made.read() == b"cde"
    assert (made.next, made.highest, made.buffered, made.blocks_in_use) == (5, 5, 0, 0)


def test_early_data_waits_for_the_gap():
    made = queue((3, b"de"), (6, b"g"))
    assert made.read() == b""
    assert (made.buffered, made.ranges) == (3, [(3, 5), (6, 7)])
    made.store(0, b"abc")
    assert made.read() == b"abcde"
    assert made.buffered == 1
    made.store(5, b"f")
    assert made.read() == b"fg"


def test_empty_frames_hold_nothing():
    made = queue((0, b""), (100, b""))
    assert (made.buffered, made.blocks_in_use, made.ranges) == (0, 0, [])
    assert made.highest == 100


def test_repeated_and_overlapping_frames_are_held_once():
    data = noise(1000)
    made = ReceiveQueue()
    for start in (200, 0, 100, 400, 200, 50, 0):
        assert made.store(start, data[start : start + 300]) == OK
    assert made.buffered == 700
    assert made.blocks_in_use == 1
    assert made.read() == data[:700]
    assert made.store(0, data[:700]) == OK
    assert made.store(600, data[600:800]) == OK
    assert made.read() == data[700:800]


def test_bytes_once_received_do_not_change():
    made = queue((2, b"cd"), (6, b"gh"))
    assert made.store(0, b"XXXXXXXXXX") == OK
    assert made.read() == b"XXcdXXghXX"


def test_memory_does_not_follow_the_highest_offset():
    made = ReceiveQueue()
    assert made.store(64 * 2**20 - 1, b"x") == OK
    assert (made.blocks_in_use, made.buffered) == (1, 1)
    assert made.slots == 64 * 2**20 // BLOCK


def test_an_offset_that_no_window_grants_is_out_of_memory_and_not_a_crash():
    made = ReceiveQueue()
    assert made.store(MAX - 1, b"x") == -1
    assert made.blocks_in_use == 0


def test_blocks_are_given_back_as_they_are_consumed():
    data = noise(5 * BLOCK)
    made = queue((0, data))
    assert made.blocks_in_use == 5
    assert made.peek() == data[:BLOCK]
    made.consume(BLOCK - 1)
    assert made.blocks_in_use == 5
    made.consume(1)
    assert made.blocks_in_use == 4
    assert made.read() == data[BLOCK:]
    assert made.blocks_in_use == 0


def test_the_ring_of_blocks_turns_and_grows():
    data = noise(200 * BLOCK)
    made = ReceiveQueue()
    got = bytearray()
    for index in range(0, 200, 2):
        start, middle, end = index * BLOCK, (index + 1) * BLOCK, (index + 2) * BLOCK
        made.store(middle - 5, data[middle - 5 : end])
        made.store(start, data[start:middle])
        got += made.read()
        if index == 100:
            made.store(150 * BLOCK, data[150 * BLOCK : 151 * BLOCK])
    assert got == data
    assert made.blocks_in_use == 0


def test_fragments_with_too_many_gaps_are_refused():
    """1,024 ranges are held, one more is an error; they cost 1 block, not 1,025."""
    made = ReceiveQueue()
    for n in range(1024):
        assert made.store(2 * n + 1, b"x") == OK
    assert made.store(2 * 1024 + 1, b"x") == E_INTERNAL
    assert made.store(2 * 500, b"x") == OK, "joining two ranges is always possible"
    assert made.blocks_in_use == 1
    assert made.buffered == 1025


def test_small_contiguous_frames_are_not_gaps():
    """A reader that lags behind many small frames is no reason to refuse them."""
    made = ReceiveQueue()
    for n in range(5000):
        assert made.store(n, b"x") == OK
    assert made.ranges == [(0, 5000)]


def test_direct_is_what_comes_next_and_is_new():
    made = ReceiveQueue()
    assert made.direct(0, 10) == 10
    assert made.direct(1, 10) == 0
    assert made.direct(0, 0) == 0
    made.consume(10)
    assert made.direct(0, 10) == 0
    assert made.direct(5, 10) == 5
    assert made.direct(10, 4) == 4
    made.store(20, b"uvw")
    assert made.direct(10, 4) == 4


def test_direct_waits_behind_what_is_buffered():
    made = queue((0, b"abc"))
    assert made.direct(0, 10) == 0
    assert made.direct(3, 10) == 0


def test_direct_data_replaces_what_it_covers():
    made = queue((4, b"XX"), (8, b"YY"))
    assert made.direct(0, 9) == 9
    made.consume(9)
    assert (made.buffered, made.ranges) == (1, [(9, 10)])
    assert made.read() == b"Y"
    made.store(20_000, b"z")
    assert made.direct(10, 30_000) == 30_000
    made.consume(30_000)
    assert (made.buffered, made.blocks_in_use) == (0, 0)


def test_final_size_is_learnt_from_the_fin():
    made = ReceiveQueue()
    assert made.store(3, b"de", fin=True) == OK
    assert made.final_size == 5
    assert not made.is_received
    made.store(0, b"abc")
    assert made.is_received
    assert made.read() == b"abcde"
    assert made.is_received


def test_an_empty_stream_is_received_at_once():
    made = ReceiveQueue()
    assert made.store(0, b"", fin=True) == OK
    assert made.is_received


def test_two_ranges_are_not_all():
    made = queue((0, b"a"))
    made.store(2, b"c", fin=True)
    assert not made.is_received


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        ((0, 5, True), OK),
        ((5, 0, True), OK),
        ((2, 3, False), OK),
        ((0, 4, True), E_FINAL_SIZE),
        ((0, 6, True), E_FINAL_SIZE),
        ((4, 2, False), E_FINAL_SIZE),
        ((6, 0, False), E_FINAL_SIZE),
        ((MAX, 0, False), E_FINAL_SIZE),
    ],
)
def test_final_size_does_not_change(frame, status):
    made = ReceiveQueue()
    made.store(0, b"abcde", fin=True)
    assert made.check(*frame) == status


def test_final_size_is_not_below_what_was_received():
    made = queue((4, b"e"))
    assert made.check(0, 4, True) == E_FINAL_SIZE
    assert made.check(0, 5, True) == OK


@pytest.mark.parametrize(
    ("offset", "size", "status"),
    [
        (MAX, 0, OK),
        (MAX, 1, E_FRAME_ENCODING),
        (MAX + 1, 0, E_FRAME_ENCODING),
        (1, MAX, E_FRAME_ENCODING),
        (0, MAX, OK),
        (2**64 - 1, 2**64 - 1, E_FRAME_ENCODING),
    ],
)
def test_offsets_end_at_the_largest_varint(offset, size, status):
    assert ReceiveQueue().check(offset, size) == status


def test_crypto_data_is_bounded_above_what_was_consumed():
    made = ReceiveQueue()
    assert made.store_crypto(65_535, b"x") == OK
    assert made.store_crypto(65_536, b"x") == E_CRYPTO_BUFFER
    assert made.store_crypto(65_000, bytes(537)) == E_CRYPTO_BUFFER
    assert made.store_crypto(0, bytes(1000)) == OK
    assert len(made.read()) == 1000
    assert made.store_crypto(66_000, bytes(536)) == OK
    assert made.store_crypto(0, bytes(1000)) == OK
    assert made.store_crypto(66_537, b"") == E_CRYPTO_BUFFER


def test_crypto_offsets_end_at_the_largest_varint():
    made = ReceiveQueue()
    assert made.store_crypto(MAX, b"x") == E_FRAME_ENCODING
    assert made.store_crypto(2**64 - 1, b"x") == E_FRAME_ENCODING
    assert made.store_crypto(MAX, b"") == E_CRYPTO_BUFFER


def test_drop_gives_back_all_and_keeps_the_offsets():
    made = queue((0, b"abc"), (10_000, b"x"))
    made.consume(1)
    made.drop()
    assert (made.buffered, made.blocks_in_use, made.ranges) == (0, 0, [])
    assert (made.next, made.highest) == (1, 10_001)
    assert made.read() == b""


def test_a_cleared_queue_is_as_new():
    made = ReceiveQueue()
    for n in range(50):
        made.store(n * 10_000, b"x", fin=n == 49)
    made.clear()
    assert (made.next, made.highest, made.final_size) == (0, 0, None)
    assert (made.buffered, made.blocks_in_use, made.slots) == (0, 0, 0)
    made.store(0, b"abc")
    assert made.read() == b"abc"


def test_a_cleared_queue_keeps_a_small_ring():
    made = queue((5, b"x"))
    made.clear()
    assert made.slots == 4
    made.store(0, b"abc")
    assert made.read() == b"abc"


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_overlap_gives_the_bytes_once_in_order(seed):
    rng = random.Random(seed)
    size = rng.choice([1, 100, 5000, 40_000])
    data = rng.randbytes(size)
    pieces, offset = [], 0
    while offset < size:
        step = rng.choice([1, 7, 100, 1400])
        back = rng.randrange(0, 200) if rng.random() < 0.3 else 0
        start = max(0, offset - back)
        pieces.append((start, data[start : offset + step], offset + step >= size))
        offset += step
    pieces += rng.sample(pieces, len(pieces) // 3)
    window = max(1, size // 50)
    pieces.sort(key=lambda p: p[0] + rng.randrange(window))
    made, got = ReceiveQueue(), bytearray()
    for offset, piece, fin in pieces:
        direct = made.direct(offset, len(piece))
        if direct and rng.random() < 0.5:
            taken = rng.randrange(1, direct + 1)
            assert made.store(offset, b"", fin and not piece) == OK
            rest = len(piece) - direct
            got += piece[rest : rest + taken]
            made.consume(taken)
        assert made.store(offset, piece, fin) == OK
        if rng.random() < 0.5:
            got += made.read()
    got += made.read()
    assert got == data
    assert made.final_size == size
    assert made.is_received
    assert (made.buffered, made.blocks_in_use) == (0, 0)
