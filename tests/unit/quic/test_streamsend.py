"""Frames of streams: written, acknowledged, lost."""

import pytest

from lightning._core.quic.streams import Streams
from tests.reference.stream_model import (
    ACKED,
    DATA_BLOCKED,
    MAX_DATA,
    MAX_STREAM_DATA,
    MAX_STREAMS_BIDI,
    MAX_STREAMS_UNI,
    RESET_STREAM,
    STOP_SENDING,
    STREAM,
    STREAM_DATA_BLOCKED,
    STREAMS_BLOCKED_BIDI,
    STREAMS_BLOCKED_UNI,
    WRITABLE,
    frame,
    frames,
    stream_frame,
)

OK, LIMIT, CLOSED, FULL = 0, -2, -3, -4
READY, SEND, DATA_SENT, RESET_SENT, DATA_RECVD, RESET_RECVD = range(1, 7)


def table(limits=(), **settings):
    made = Streams(True, **settings)
    made.set_peer_limits(
        **{
            "max_data": 2**30,
            "max_stream_data_bidi_local": 2**20,
            "max_stream_data_bidi_remote": 2**20,
            "max_stream_data_uni": 2**20,
            "max_streams_bidi": 50,
            "max_streams_uni": 50,
        }
        | dict(limits)
    )
    return made


def opened(made, *parts, fin=False):
    """Open a stream with some data."""
    sid = made.open()
    for part in parts:
        assert made.send(sid, part) == OK
    if fin:
        assert made.send(sid, b"", fin=True) == OK
    return sid


def write(made, room=1200):
    """Write one packet and decode it."""
    payload, records = made.write(room)
    decoded = frames(payload)
    assert [r[0] for r in records] == [f[0] for f in decoded]
    return decoded, records


def settle(call, records):
    for record in records:
        assert call(record) == OK


def test_nothing_is_due_at_first():
    made = table()
    assert not made.has_frames
    assert made.write() == (b"", [])
    made.open()
    assert not made.has_frames, "opening alone says nothing"


def test_a_stream_frame_and_its_record():
    made = table()
    sid = opened(made, b"abc")
    payload, records = made.write()
    assert payload == bytes([STREAM | 2, sid, 3]) + b"abc"
    assert records == [(STREAM, sid, 0, 3, False)]
    made.send(sid, b"de", fin=True)
    payload, records = made.write()
    assert payload == bytes([STREAM | 7, sid, 3, 2]) + b"de"
    assert records == [(STREAM, sid, 3, 2, True)]
    assert not made.has_frames


def test_a_packet_is_filled_to_its_last_byte():
    made = table()
    sid = opened(made, bytes(5000))
    for room in (1200, 200, 128, 77):
        payload, records = made.write(room)
        assert len(payload) == room
        assert len(records) == 1
    decoded, _ = write(made, 5000)
    assert decoded[0][1:3] == (sid, 1200 + 200 + 128 + 77 - 4 - 3 * 6)


@pytest.mark.parametrize("room", range(75))
def test_no_room_is_overrun(room):
    made = table()
    opened(made, bytes(100))
    made.reset(opened(made, b"x"), 2**40)
    made.stop(opened(made), 2**40)
    payload, records = made.write(room)
    assert len(payload) <= room
    assert len(frames(payload)) == len(records)


@pytest.mark.parametrize("size", [1, 62, 63, 64, 65])
@pytest.mark.parametrize("spare", range(-3, 4))
def test_a_small_message_is_not_cut_for_a_few_bytes(size, spare):
    made = table()
    opened(made, bytes(size))
    payload, records = made.write(size + 4 + spare)
    if records:
        assert records[0][3] == size or records[0][3] >= 64
    else:
        assert payload == b""
        assert made.has_frames


def test_a_long_message_is_cut_only_for_a_piece_that_is_worth_it():
    made = table()
    opened(made, bytes(1000))
    assert made.write(4 + 63) == (b"", [])
    assert made.write(4 + 64)[1][0][3] == 64


def test_a_very_large_packet_takes_several_frames():
    made = table()
    opened(made, bytes(40_000))
    decoded, _ = write(made, 50_000)
    assert [len(f[3]) for f in decoded] == [16_383, 16_383, 40_000 - 2 * 16_383]


def test_no_more_frames_than_there_is_room_for_records():
    made = table()
    for _ in range(5):
        opened(made, b"abc")
    made.reset(opened(made, b"x"))
    made.stop(opened(made))
    got = []
    while made.has_frames:
        payload, records = made.write(1200, 2)
        assert len(records) <= 2
        got += frames(payload)
    assert len(got) == 7
    assert made.write(1200, 0) == (b"", [])


def test_connection_frames_respect_the_room_for_records():
    made = table({"max_streams_bidi": 0, "max_streams_uni": 0}, max_streams_uni=2)
    assert (made.open(), made.open(True)) == (LIMIT, LIMIT)
    made.receive(stream_frame(3, 0, b"", fin=True))
    made.release(3)
    kinds = []
    for _ in range(5):
        _, records = made.write(1200, 1)
        kinds += [r[0] for r in records]
    assert kinds == [STREAMS_BLOCKED_BIDI, MAX_STREAMS_UNI, STREAMS_BLOCKED_UNI]


def test_streams_take_turns():
    made = table()
    ids = [opened(made, bytes(3000)) for _ in range(3)]
    order = []
    while made.has_frames:
        order += [f[1] for f in write(made)[0]]
    assert order[:6] == ids * 2
    assert all(order.count(sid) >= 3 for sid in ids)


def test_a_small_message_does_not_wait_for_a_large_one():
    made = table()
    large = opened(made, bytes(100_000))
    write(made)
    small = opened(made, b"small", fin=True)
    ids = [f[1] for _ in range(2) for f in write(made)[0]]
    assert small in ids
    assert large in ids


def test_several_small_messages_share_a_packet():
    made = table()
    ids = [opened(made, bytes(100), fin=True) for _ in range(5)]
    decoded, _ = write(made)
    assert [f[1] for f in decoded] == ids


def test_acknowledged_streams_are_done():
    made = table()
    sid = opened(made, b"abc", fin=True)
    _, records = write(made)
    assert made.state(sid) == (DATA_SENT, 1)
    assert made.send_buffered == 3
    settle(made.on_acked, records)
    assert made.state(sid) == (DATA_RECVD, 1)
    assert made.send_buffered == 0
    assert made.events() == [(ACKED, sid, 0)]
    settle(made.on_acked, records)
    settle(made.on_lost, records)
    assert made.events() == []
    assert not made.has_frames


def test_a_fin_is_waited_for():
    made = table()
    sid = opened(made, b"abc")
    _, first = write(made)
    made.send(sid, b"", fin=True)
    decoded, second = write(made)
    assert decoded == [(STREAM, sid, 3, b"", True)]
    settle(made.on_acked, first)
    assert made.state(sid)[0] == DATA_SENT
    settle(made.on_acked, second)
    assert made.state(sid)[0] == DATA_RECVD


def test_lost_data_goes_before_the_data_of_other_streams():
    made = table()
    first = opened(made, b"lost")
    _, records = write(made)
    other = opened(made, b"new")
    settle(made.on_lost, records)
    decoded, _ = write(made)
    assert decoded == [
        (STREAM, first, 0, b"lost", False),
        (STREAM, other, 0, b"new", False),
    ]


def test_lost_data_passes_the_limits_that_hold_back_new_data():
    made = table({"max_data": 4})
    first = opened(made, b"lost", b" and new")
    _, records = write(made)
    opened(made, b"other")
    write(made)
    settle(made.on_lost, records[:1])
    assert write(made)[0] == [(STREAM, first, 0, b"lost", False)]
    assert not made.has_frames


def test_data_of_a_stream_that_is_gone_is_not_sent_again():
    made = table()
    sid = opened(made, b"abc", fin=True)
    made.receive(stream_frame(sid, 0, b"", fin=True))
    _, records = write(made)
    made.release(sid)
    settle(made.on_acked, records)
    assert made.count == 0
    settle(made.on_lost, records)
    settle(made.on_acked, records)
    settle(made.on_lost, [(STOP_SENDING, sid, 0, 0, False)])
    assert not made.has_frames


def test_the_peers_limit_on_a_stream():
    made = table({"max_stream_data_bidi_remote": 5})
    sid = opened(made, b"abcdefgh", fin=True)
    decoded, records = write(made)
    assert decoded == [
        (STREAM, sid, 0, b"abcde", False),
        (STREAM_DATA_BLOCKED, sid, 5),
    ]
    assert not made.has_frames
    settle(made.on_lost, records[1:])
    assert write(made)[0] == [(STREAM_DATA_BLOCKED, sid, 5)]
    assert made.receive(frame(MAX_STREAM_DATA, sid, 5)) == OK
    assert made.receive(frame(MAX_STREAM_DATA, sid, 3)) == OK
    assert not made.has_frames
    assert made.receive(frame(MAX_STREAM_DATA, sid, 7)) == OK
    settle(made.on_lost, records[1:])
    assert write(made)[0] == [
        (STREAM, sid, 5, b"fg", False),
        (STREAM_DATA_BLOCKED, sid, 7),
    ]
    made.receive(frame(MAX_STREAM_DATA, sid, 100))
    assert write(made)[0] == [(STREAM, sid, 7, b"h", True)]


def test_a_block_that_is_over_is_not_told():
    made = table({"max_stream_data_bidi_remote": 5, "max_data": 5})
    sid = opened(made, b"abcdefgh")
    _, records = made.write(1 + 1 + 1 + 5)
    assert len(records) == 1
    assert made.write(0) == (b"", [])
    made.receive(frame(MAX_STREAM_DATA, sid, 6))
    made.receive(frame(MAX_DATA, 100))
    assert write(made)[0] == [
        (STREAM, sid, 5, b"f", False),
        (STREAM_DATA_BLOCKED, sid, 6),
    ]


def test_the_peers_limit_on_the_connection():
    made = table({"max_data": 5})
    first = opened(made, b"abcdefgh")
    second = opened(made, b"12345678")
    empty = opened(made, fin=True)
    decoded, records = write(made)
    assert decoded == [
        (STREAM, first, 0, b"abcde", False),
        (STREAM, empty, 0, b"", True),
        (DATA_BLOCKED, 5),
    ]
    assert not made.has_frames
    made.send(first, b"more")
    made.receive(frame(MAX_STREAM_DATA, first, 2**30))
    assert not made.has_frames
    settle(made.on_lost, records[-1:])
    assert write(made)[0] == [(DATA_BLOCKED, 5)]
    made.receive(frame(MAX_DATA, 4))
    assert not made.has_frames
    made.receive(frame(MAX_DATA, 100))
    settle(made.on_lost, records[-1:])
    assert write(made)[0] == [
        (STREAM, second, 0, b"12345678", False),
        (STREAM, first, 5, b"fghmore", False),
    ]


def test_blocked_streams_are_told_and_told_again():
    made = table({"max_streams_bidi": 1, "max_streams_uni": 0})
    made.open()
    for _ in range(2):
        assert made.open() == LIMIT
        assert made.open(True) == LIMIT
    decoded, records = write(made)
    assert decoded == [(STREAMS_BLOCKED_BIDI, 1), (STREAMS_BLOCKED_UNI, 0)]
    assert made.open() == LIMIT
    assert not made.has_frames
    settle(made.on_acked, records[:1])
    settle(made.on_lost, records)
    assert write(made)[0] == decoded
    settle(made.on_lost, records)
    made.receive(frame(MAX_STREAMS_BIDI, 2))
    assert write(made)[0] == [(STREAMS_BLOCKED_UNI, 0)]


def test_credit_frames_are_told_again_with_the_value_of_that_moment():
    made = table(max_data=100, max_stream_data_bidi_remote=60, max_streams_bidi=2)
    made.receive(stream_frame(1, 0, bytes(50)))
    made.read(1)
    decoded, records = write(made)
    assert decoded == [(MAX_DATA, 150), (MAX_STREAM_DATA, 1, 110)]
    settle(made.on_acked, records)
    assert not made.has_frames
    made.receive(stream_frame(1, 50, bytes(40), fin=True))
    made.read(1)
    settle(made.on_lost, records)
    assert write(made)[0] == [(MAX_DATA, 150)], "the size is known by now"
    made.receive(stream_frame(5, 0, bytes(20)))
    made.read(5)
    (newer,) = write(made)[1]
    assert newer[:3] == (MAX_DATA, 0, 210)
    settle(made.on_lost, records)
    assert write(made)[0] == [], "a newer frame is under way"
    settle(made.on_lost, [newer])
    assert write(made)[0] == [(MAX_DATA, 210)]


def test_stream_credit_frames_are_told_again():
    made = table(max_streams_bidi=2)
    for sid in (1, 5):
        made.receive(stream_frame(sid, 0, b"", fin=True))
        made.send(sid, b"", fin=True)
        made.release(sid)
    settle(made.on_acked, [r for r in write(made)[1] if r[1] == 1])
    decoded, records = write(made)
    assert decoded == [(MAX_STREAMS_BIDI, 3)]
    settle(made.on_lost, records)
    assert write(made)[0] == decoded
    settle(made.on_acked, [(STREAM, 5, 0, 0, True)])
    (newer,) = write(made)[1]
    settle(made.on_lost, records)
    assert not made.has_frames
    settle(made.on_lost, [newer])
    assert write(made)[0] == [(MAX_STREAMS_BIDI, 4)]


def test_a_lost_stream_credit_frame_is_told_again_while_data_is_due():
    made = table(max_stream_data_bidi_remote=60)
    made.receive(stream_frame(1, 0, bytes(40)))
    made.read(1)
    _, records = write(made)
    settle(made.on_lost, records)
    assert write(made)[0] == [(MAX_STREAM_DATA, 1, 100)]
    made.receive(stream_frame(1, 40, bytes(30)))
    made.read(1)
    write(made)
    settle(made.on_lost, records)
    assert not made.has_frames
    made.stop(1)
    settle(made.on_lost, [(MAX_STREAM_DATA, 1, 130, 0, False)])
    assert write(made)[0] == [(STOP_SENDING, 1, 0)]


def test_reset_is_told_until_it_is_acknowledged():
    made = table()
    sid = opened(made, bytes(3000))
    _, data = write(made)
    made.reset(sid, 77)
    assert made.send_buffered == 0
    decoded, records = write(made)
    assert decoded == [(RESET_STREAM, sid, 77, data[0][3])]
    assert not made.has_frames
    settle(made.on_lost, data)
    assert not made.has_frames, "its data is not sent again"
    settle(made.on_acked, data)
    assert made.state(sid)[0] == RESET_SENT
    settle(made.on_lost, records)
    assert write(made)[0] == decoded
    settle(made.on_acked, records)
    assert made.state(sid)[0] == RESET_RECVD
    settle(made.on_acked, records)
    settle(made.on_lost, records)
    assert not made.has_frames


def test_reset_of_a_stream_that_was_blocked():
    made = table({"max_data": 5})
    sid = opened(made, bytes(10))
    write(made)
    made.reset(sid, 1)
    assert write(made)[0] == [(RESET_STREAM, sid, 1, 5)]
    made.receive(frame(MAX_DATA, 100))
    assert not made.has_frames


def test_stop_sending_is_told_until_the_peer_ends():
    made = table()
    sid = opened(made)
    made.stop(sid, 5)
    decoded, records = write(made)
    assert decoded == [(STOP_SENDING, sid, 5)]
    settle(made.on_lost, records)
    assert write(made)[0] == decoded
    made.receive(frame(RESET_STREAM, sid, 5, 0))
    settle(made.on_lost, records)
    assert write(made)[0] == []
    assert not made.has_frames


def test_a_stream_that_holds_too_much_is_refused_and_told_when_there_is_room():
    made = table(max_stream_buffered=1000)
    sid = opened(made, bytes(999))
    assert made.send(sid, bytes(5000)) == OK, "what goes over is one write"
    assert made.send(sid, b"x") == FULL
    assert made.refer(sid, b"x") == FULL
    assert made.send(sid, b"") == OK
    records = []
    while made.has_frames:
        records += write(made)[1]
    kinds = []
    while records and not kinds:
        before = made.send_buffered
        settle(made.on_acked, [records.pop(0)])
        kinds = [event[0] for event in made.events()]
    assert kinds == [WRITABLE]
    assert before > 500 >= made.send_buffered
    assert made.send(sid, b"x") == OK


def test_a_stream_that_finishes_while_it_is_refused_is_not_told():
    made = table(max_stream_buffered=10)
    sid = opened(made, bytes(10))
    assert made.send(sid, b"x") == FULL
    assert made.send(sid, b"", fin=True) == OK
    settle(made.on_acked, write(made)[1])
    assert made.events() == [(ACKED, sid, 0)]


def test_a_full_connection_refuses_all_but_streams_that_hold_nothing():
    made = table(max_buffered=1000)
    first = opened(made, bytes(900))
    second = opened(made, bytes(150))
    third = opened(made)
    assert made.send(first, b"x") == FULL
    assert made.send(second, b"x") == FULL
    assert made.send(third, bytes(200)) == OK
    assert made.send(third, b"x") == FULL
    _, records = write(made)
    settle(made.on_acked, [r for r in records if r[1] == second])
    assert made.events() == [(WRITABLE, second, 0)], "it holds nothing now"
    settle(made.on_acked, [r for r in records if r[1] == first])
    _, records = write(made)
    settle(made.on_acked, records)
    told = [event[1] for event in made.events()]
    assert sorted(told) == [first, third]


def test_a_reset_makes_room_for_the_others():
    made = table(max_buffered=1000)
    first = opened(made, bytes(900))
    second = opened(made, bytes(100))
    assert made.send(second, b"x") == FULL
    assert made.send(first, b"x") == FULL
    made.reset(first)
    assert made.events() == [(WRITABLE, second, 0)]


def test_referenced_bodies_are_written_and_given_back():
    made = table()
    body = bytes(range(256)) * 100
    sid = made.open()
    assert made.send(sid, b"head") == OK
    assert made.refer(sid, body, fin=True) == OK
    assert made.refer(sid, b"late") == CLOSED
    assert made.memory_in_use[2] == 1
    got, records = b"", []
    while made.has_frames:
        decoded, more = write(made)
        got += b"".join(f[3] for f in decoded)
        records += more
    assert got == b"head" + body
    settle(made.on_acked, records)
    assert made.memory_in_use[2] == 0
    assert made.state(sid)[0] == DATA_RECVD


def test_data_called_lost_to_probe_may_be_acknowledged_all_the_same():
    made = table()
    sid = opened(made, b"abc", fin=True)
    _, records = write(made)
    settle(made.on_lost, records)
    settle(made.on_acked, records)
    assert made.state(sid)[0] == DATA_RECVD
    assert not made.has_frames
