"""Outgoing data of one stream."""

import random
import time

import pytest

from lightning._core.quic.sendbuf import SendQueue

OK = 0
BLOCK = 4096


def queue(*parts, finish=False):
    made = SendQueue()
    for part in parts:
        assert made.append(part) == OK
    if finish:
        made.finish()
    return made


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def drain(made, size):
    """Write all that is due in pieces of up to ``size`` bytes."""
    pieces = []
    while (piece := made.write(size)) is not None:
        pieces.append(piece)
    return pieces


def test_nothing_is_due_at_first():
    made = SendQueue()
    assert made.peek() is None
    assert (made.base, made.sent, made.end, made.size) == (0, 0, 0, 0)
    assert not made.is_sent
    assert not made.is_acked
    assert made.append(b"") == OK
    assert made.blocks_in_use == 0


def test_appended_parts_are_written_as_one_stream():
    made = queue(b"abc", b"", b"defg")
    assert made.peek() == (0, 7)
    assert made.write(5) == (0, b"abcde", False)
    assert made.write(5) == (5, b"fg", False)
    assert made.write(5) is None
    made.append(b"h")
    assert made.write(5) == (7, b"h", False)


def test_small_parts_share_a_block():
    made = queue(*[b"x" * 10] * 400)
    assert made.blocks_in_use == 1


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 8192, 100_000])
@pytest.mark.parametrize("step", [1000, 1452, 65_536])
def test_pieces_are_gathered_across_blocks(size, step):
    data = noise(size)
    made = queue(data, finish=True)
    pieces = drain(made, step)
    assert b"".join(p[1] for p in pieces) == data
    assert [p[0] for p in pieces] == list(range(0, size, step))
    assert [p[2] for p in pieces] == [False] * (len(pieces) - 1) + [True]


def test_flow_control_holds_back_new_data_only():
    made = queue(b"abcdef")
    assert made.write(10, room=4) == (0, b"abcd", False)
    assert made.peek(room=0) is None
    made.on_lost(1, 2)
    assert made.write(10, room=0) == (1, b"bc", False)
    assert made.peek(room=0) is None


def test_acknowledged_blocks_are_given_back():
    made = queue(noise(3 * BLOCK))
    drain(made, BLOCK)
    assert made.blocks_in_use == 3
    made.on_acked(0, BLOCK - 1)
    assert made.blocks_in_use == 3
    made.on_acked(BLOCK - 1, 1)
    assert (made.blocks_in_use, made.base, made.size) == (2, BLOCK, 2 * BLOCK)
    made.on_acked(BLOCK, 2 * BLOCK)
    assert (made.blocks_in_use, made.size) == (0, 0)


def test_a_block_acknowledged_before_it_is_full_is_given_back():
    made = queue(b"abc")
    made.write(3)
    made.on_acked(0, 3)
    assert made.blocks_in_use == 0
    made.append(b"de")
    assert made.write(9) == (3, b"de", False)


def test_out_of_order_acknowledgements_wait_for_the_gap():
    made = queue(noise(100))
    drain(made, 10)
    made.on_acked(20, 10)
    made.on_acked(40, 10)
    made.on_acked(30, 10)
    assert made.base == 0
    made.on_acked(0, 10)
    assert made.base == 10
    made.on_acked(5, 20)
    assert made.base == 50


def test_repeated_acknowledgements_change_nothing():
    made = queue(noise(100))
    drain(made, 10)
    for _ in range(2):
        made.on_acked(0, 30)
        made.on_acked(50, 10)
        assert made.base == 30
    made.on_acked(0, 0)
    assert made.base == 30


def test_an_acknowledgement_never_reaches_past_what_was_sent():
    made = queue(noise(100))
    made.write(10)
    made.on_acked(0, 50)
    assert made.base == 10
    made.on_acked(60, 10)
    made.on_lost(60, 10)
    assert made.peek() == (10, 90)


def test_lost_data_goes_first_and_lowest_first():
    data = noise(100)
    made = queue(data)
    for _ in range(5):
        made.write(10)
    made.on_lost(30, 10)
    made.on_lost(10, 10)
    assert made.write(6) == (10, data[10:16], False)
    assert made.write(99) == (16, data[16:20], False)
    assert made.write(99) == (30, data[30:40], False)
    assert made.write(99) == (50, data[50:], False)


def test_lost_data_that_is_acknowledged_meanwhile_is_not_written_again():
    made = queue(noise(100))
    drain(made, 10)
    made.on_acked(30, 10)
    made.on_acked(50, 10)
    made.on_lost(20, 50)
    assert made.peek() == (20, 10)
    made.on_acked(20, 5)
    made.on_acked(42, 3)
    assert drain(made, 99) == [
        (25, made_slice(100, 25, 30), False),
        (40, made_slice(100, 40, 42), False),
        (45, made_slice(100, 45, 50), False),
        (60, made_slice(100, 60, 70), False),
    ]
    made.on_acked(0, 20)
    made.on_lost(0, 20)
    assert made.peek() is None


def made_slice(size, start, end):
    return noise(size)[start:end]


def test_fin_comes_with_the_last_byte():
    made = queue(b"abc", finish=True)
    assert made.write(2) == (0, b"ab", False)
    assert not made.is_sent
    assert made.write(2) == (2, b"c", True)
    assert made.is_sent
    assert made.peek() is None
    made.on_acked(2, 1, fin=True)
    assert not made.is_acked
    made.on_acked(0, 2)
    assert made.is_acked


def test_fin_alone_when_it_is_queued_late():
    made = queue(b"abc")
    made.write(3)
    made.finish()
    assert made.peek(room=0) == (3, 0)
    assert made.write(9, room=0) == (3, b"", True)
    assert made.peek() is None
    made.on_acked(0, 3)
    assert not made.is_acked
    made.on_acked(3, 0, fin=True)
    assert made.is_acked


def test_empty_stream_is_a_fin_alone():
    made = queue(finish=True)
    assert made.write(9) == (0, b"", True)
    made.on_acked(0, 0, fin=True)
    assert made.is_acked


def test_fin_waits_for_the_data_before_it():
    made = queue(b"abc", finish=True)
    assert made.write(9, room=2) == (0, b"ab", False)
    assert made.peek(room=0) is None


def test_lost_fin_is_written_again():
    made = queue(b"abc", finish=True)
    made.write(3)
    made.on_lost(0, 3, fin=True)
    assert made.is_sent
    assert made.write(2) == (0, b"ab", False)
    assert made.write(2) == (2, b"c", True)
    made.on_acked(2, 1, fin=False)
    made.on_lost(2, 1, fin=True)
    made.on_acked(0, 2)
    assert made.write(9) == (3, b"", True)


def test_acknowledged_fin_is_not_written_again():
    made = queue(b"abc", finish=True)
    made.write(3)
    made.on_lost(0, 3, fin=True)
    made.on_acked(0, 3, fin=True)
    made.on_lost(0, 3, fin=True)
    assert made.peek() is None
    assert made.is_acked


def test_a_loss_reported_before_any_fin_brings_none():
    made = queue(b"abc")
    made.write(3)
    made.on_lost(0, 3, fin=True)
    assert made.write(9) == (0, b"abc", False)


def test_referenced_bytes_are_released_once_acknowledged():
    body = noise(50_000)
    made = queue(b"head")
    assert made.append_ref(body) == OK
    made.append(b"tail")
    assert (made.blocks_in_use, made.references_held) == (2, 1)
    pieces = drain(made, 1200)
    assert b"".join(p[1] for p in pieces) == b"head" + body + b"tail"
    made.on_acked(0, 50_003)
    assert made.released() == []
    made.on_acked(50_003, 1)
    assert made.released() == [body]
    assert made.released() == []
    assert made.references_held == 0


def test_an_empty_reference_is_released_at_once():
    made = SendQueue()
    made.append_ref(b"")
    assert made.released() == [b""]
    assert made.peek() is None


def test_many_references_at_once():
    made = SendQueue()
    bodies = [bytes([n]) * 3 for n in range(100)]
    for body in bodies:
        made.append_ref(body)
    drain(made, 7)
    made.on_acked(0, 150)
    first = made.released()
    made.on_acked(150, 150)
    assert first + made.released() == bodies


def test_drop_gives_back_all_and_keeps_what_was_sent():
    made = queue(noise(10_000), finish=True)
    made.append_ref(b"r" * 100)
    made.write(1000)
    made.write(1000)
    made.on_lost(0, 1000)
    made.drop()
    assert (made.blocks_in_use, made.references_held, made.size) == (0, 0, 0)
    assert made.sent == 2000
    assert made.peek() is None
    made.on_acked(1000, 1000)
    made.on_lost(0, 1000, fin=True)
    assert made.peek() is None
    assert made.released() == [b"r" * 100]


def test_a_cleared_buffer_is_as_new():
    made = queue(noise(200_000), finish=True)
    made.write(100)
    made.on_acked(50, 10)
    made.clear()
    assert (made.base, made.sent, made.end, made.blocks_in_use) == (0, 0, 0, 0)
    made.append(b"abc")
    assert made.write(9) == (0, b"abc", False)
    assert not made.is_sent


def test_the_ring_of_chunks_grows_while_it_is_turned():
    data = noise(400 * BLOCK)
    made = SendQueue()
    got = bytearray()
    acked = 0
    for index in range(400):
        made.append(data[index * BLOCK : (index + 1) * BLOCK])
        if index % 3 == 2:
            _, piece, _ = made.write(2 * BLOCK)
            got += piece
            made.on_acked(acked, BLOCK)
            acked += BLOCK
    for _, piece, _ in drain(made, 1452):
        got += piece
    assert got == data


@pytest.mark.parametrize("seed", range(10))
def test_every_byte_arrives_under_random_loss_and_order(seed):
    rng = random.Random(seed)
    data = rng.randbytes(60_000)
    made = SendQueue()
    got, fin, appended, flight = bytearray(len(data)), False, 0, []
    for _ in range(100_000):
        action = rng.random()
        if appended < len(data) and action < 0.3:
            size = rng.choice([1, 10, 1000, 5000])
            part = data[appended : appended + size]
            (made.append_ref if rng.random() < 0.3 else made.append)(part)
            appended += len(part)
            if appended == len(data):
                made.finish()
        elif action < 0.6:
            piece = made.write(rng.choice([1, 50, 1200]))
            if piece is not None:
                flight.append(piece)
        elif flight:
            offset, piece, last = flight[rng.randrange(len(flight))]
            if rng.random() < 0.4:
                assert made.on_lost(offset, len(piece), last) == OK
                if rng.random() < 0.5:
                    flight.remove((offset, piece, last))
            else:
                assert made.on_acked(offset, len(piece), last) == OK
                got[offset : offset + len(piece)] = piece
                fin = fin or last
        if made.is_acked:
            break
    assert made.is_acked
    assert fin
    assert got == data
    assert (made.blocks_in_use, made.references_held, made.size) == (0, 0, 0)


@pytest.mark.parametrize(
    "order", ["ascending", "descending", "alternating", "shuffled"]
)
def test_cost_of_an_acknowledgement_does_not_grow_with_the_flight(order):
    """64 times the flight takes far less than 64 times 64 times as long."""

    def cost(count):
        made = queue(bytes(100 * count))
        pieces = drain(made, 100)
        if order == "descending":
            pieces.reverse()
        elif order == "alternating":
            pieces = pieces[1::2] + pieces[::2][::-1]
        elif order == "shuffled":
            random.Random(1).shuffle(pieces)
        begin = time.process_time()
        for offset, piece, _ in pieces:
            made.on_lost(offset, len(piece))
        drain(made, 100)
        for offset, piece, _ in pieces:
            made.on_acked(offset, len(piece))
        assert made.size == 0
        return time.process_time() - begin

    small = min(cost(1_000) for _ in range(5))
    # A busy machine may be in the way of some, but not of each.
    assert any(cost(64_000) < 1000 * small for _ in range(3))
