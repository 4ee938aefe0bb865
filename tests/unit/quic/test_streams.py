"""What may be done with a stream, and what its frames do."""

import pytest

from lightning._core.quic.streams import Streams, bench_exchange
from tests.reference.stream_model import (
    ACKED,
    DATA_BLOCKED,
    MAX_DATA,
    MAX_STREAM_DATA,
    MAX_STREAMS_BIDI,
    MAX_STREAMS_UNI,
    OPENED,
    READABLE,
    RESET,
    RESET_STREAM,
    STOP_SENDING,
    STOPPED,
    STREAM,
    STREAM_DATA_BLOCKED,
    STREAMS_BLOCKED_BIDI,
    STREAMS_BLOCKED_UNI,
    frame,
    frames,
    stream_frame,
)

OK, INTERNAL, FLOW_CONTROL, FINAL_SIZE, FRAME_ENCODING = 0, 1, 3, 6, 7
CLOSED = -3
NONE, READY, SEND, DATA_SENT, RESET_SENT, DATA_RECVD, RESET_RECVD = range(7)
RECV, SIZE_KNOWN, ALL_RECVD, DATA_READ, WAS_RESET = range(1, 6)


def table(**settings):
    """A server's streams; the peer opens 0, 4, 8 and 2, 6, 10."""
    made = Streams(False, **{"max_streams_uni": 100} | settings)
    made.set_peer_limits(
        max_data=2**30,
        max_stream_data_bidi_local=2**20,
        max_stream_data_bidi_remote=2**20,
        max_stream_data_uni=2**20,
        max_streams_bidi=100,
        max_streams_uni=100,
    )
    return made


class Sink:
    """A sink that takes what it is told to, and writes down what it is given."""

    def __init__(self, **settings):
        self.given = []
        self.takes = 2**62
        self.act = lambda sid: None
        self.table = table(sink=self, **settings)

    def __call__(self, sid, data, fin):
        self.given.append((sid, data, fin))
        self.act(sid)
        return min(self.takes, len(data))

    def take(self):
        given, self.given = self.given, []
        return given


def write(made):
    payload, records = made.write()
    return frames(payload), records


def settle(made):
    """Acknowledge all that is due."""
    while made.has_frames:
        for record in made.write()[1]:
            assert made.on_acked(record) == OK


# --- Reading --------------------------------------------------------------------------


def test_bytes_are_read_in_order_and_the_end_is_seen():
    made = table()
    assert made.receive(stream_frame(0, 3, b"def")) == OK
    assert made.events() == [(OPENED, 0, 0)]
    assert made.read(0) == (b"", False)
    assert made.receive(stream_frame(0, 0, b"abc")) == OK
    assert made.events() == [(READABLE, 0, 0)]
    assert made.recv_buffered == 6
    assert made.read(0, 4) == (b"abcd", False)
    assert made.read(0) == (b"ef", False)
    assert made.recv_buffered == 0
    assert made.receive(stream_frame(0, 6, b"g", fin=True)) == OK
    assert made.state(0)[1] == ALL_RECVD
    assert made.read(0) == (b"g", True)
    assert made.state(0)[1] == DATA_READ


def test_the_states_of_receiving():
    made = table()
    made.receive(stream_frame(0, 3, b"d"))
    assert made.state(0)[1] == RECV
    made.receive(stream_frame(0, 4, b"", fin=True))
    assert made.state(0)[1] == SIZE_KNOWN
    assert made.events() == [(OPENED, 0, 0)]
    made.receive(stream_frame(0, 0, b"abc"))
    assert made.state(0)[1] == ALL_RECVD
    made.receive(stream_frame(0, 0, b"abcd", fin=True))
    assert made.state(0)[1] == ALL_RECVD
    assert made.events() == [(READABLE, 0, 0)]


def test_a_fin_alone_is_told():
    made = table()
    made.receive(stream_frame(0, 0, b"abc"))
    made.read(0)
    made.events()
    made.receive(stream_frame(0, 3, b"", fin=True))
    assert made.events() == [(READABLE, 0, 0)]
    assert made.read(0) == (b"", True)


def test_events_of_a_stream_are_told_once():
    made = table()
    for offset in range(5):
        made.receive(stream_frame(0, offset, b"x"))
    assert made.events() == [(OPENED, 0, 0), (READABLE, 0, 0)]
    assert made.events() == []
    made.receive(stream_frame(0, 0, b"x"))
    assert made.events() == [(READABLE, 0, 0)], "there still is something to read"


# --- The sink ---------------------------------------------------------------------------


def test_the_sink_is_given_bytes_in_order_without_a_buffer():
    sink = Sink()
    sink.table.receive(stream_frame(0, 0, b"abc") + stream_frame(0, 3, b"de", fin=True))
    assert sink.take() == [(0, b"abc", False), (0, b"de", True)]
    assert sink.table.memory_in_use[0] == 0
    assert sink.table.state(0)[1] == DATA_READ
    assert sink.table.events() == [(OPENED, 0, 0)]


def test_the_sink_is_given_what_waited_for_a_gap():
    sink = Sink()
    sink.table.receive(stream_frame(0, 3, b"def", fin=True))
    assert sink.take() == []
    sink.table.receive(stream_frame(0, 0, b"abcd"))
    assert sink.take() == [(0, b"abcd", False), (0, b"ef", True)]
    assert sink.table.memory_in_use[0] == 0


def test_the_sink_is_given_only_what_is_new():
    sink = Sink()
    sink.table.receive(stream_frame(0, 0, b"abc"))
    sink.table.receive(stream_frame(0, 0, b"abc"))
    sink.table.receive(stream_frame(0, 1, b"bcde"))
    assert sink.take() == [(0, b"abc", False), (0, b"de", False)]


def test_the_sink_is_given_the_end_once():
    sink = Sink()
    sink.table.receive(stream_frame(0, 0, b"", fin=True))
    sink.table.receive(stream_frame(0, 0, b"", fin=True))
    assert sink.take() == [(0, b"", True)]
    sink.table.receive(stream_frame(4, 0, b"abc"))
    sink.table.receive(stream_frame(4, 3, b"", fin=True))
    sink.table.receive(stream_frame(4, 1, b"bc", fin=True))
    assert sink.take() == [(4, b"abc", False), (4, b"", True)]


@pytest.mark.parametrize("takes", [0, 1, 2])
def test_what_the_sink_leaves_is_kept_until_it_resumes(takes):
    sink = Sink()
    sink.takes = takes
    sink.table.receive(stream_frame(0, 0, b"abc"))
    assert sink.take() == [(0, b"abc", False)]
    sink.table.receive(stream_frame(0, 3, b"de", fin=True))
    assert sink.take() == []
    assert sink.table.recv_buffered == 5 - takes
    assert sink.table.events() == [(OPENED, 0, 0)]
    sink.takes = 100
    assert sink.table.resume(0) == OK
    assert sink.take() == [(0, b"abcde"[takes:], True)]
    assert sink.table.recv_buffered == 0
    assert sink.table.resume(0) == OK
    assert sink.take() == []


def test_a_sink_that_leaves_the_last_bytes_is_told_of_the_end_with_them():
    sink = Sink()
    sink.takes = 2
    sink.table.receive(stream_frame(0, 0, b"abc", fin=True))
    assert sink.take() == [(0, b"abc", True)]
    sink.table.resume(0)
    assert sink.take() == [(0, b"c", True)]
    assert sink.table.state(0)[1] == DATA_READ


def test_a_paused_stream_does_not_hold_up_another():
    sink = Sink()
    sink.takes = 0
    sink.table.receive(stream_frame(0, 0, b"abc"))
    sink.takes = 100
    sink.table.receive(stream_frame(4, 0, b"abc"))
    assert sink.take() == [(0, b"abc", False), (4, b"abc", False)]


def test_a_paused_stream_may_be_read_instead():
    sink = Sink()
    sink.takes = 1
    sink.table.receive(stream_frame(0, 0, b"abc"))
    assert sink.table.read(0) == (b"bc", False)


@pytest.mark.parametrize("fin", [False, True])
@pytest.mark.parametrize("verb", ["stop", "release"])
@pytest.mark.parametrize("takes", [0, 10, 60])
def test_the_sink_may_give_up_its_stream(verb, fin, takes):
    sink = Sink(max_data=100)
    sink.takes = takes
    sink.act = getattr(sink.table, verb)
    assert sink.table.receive(stream_frame(0, 5, b"f")) == OK
    assert sink.table.receive(stream_frame(0, 0, b"abc" * 20, fin=fin)) == OK
    assert len(sink.take()) == 1
    assert sink.table.recv_buffered == 0
    assert sink.table.memory_in_use[0] == 0
    assert sink.table.max_data == 160, "all 60 bytes count as consumed, once"
    assert sink.table.receive(stream_frame(0, 60, b"", fin=True)) == OK
    assert sink.take() == []


def test_the_sink_may_end_its_stream_for_good():
    """Reading the last bytes, answering nothing, the stream is gone at its return."""
    sink = Sink()
    sink.act = sink.table.release
    sink.table.receive(stream_frame(2, 0, b"abc", fin=True))
    assert sink.table.count == 0
    sink.table.receive(stream_frame(6, 1, b"bc", fin=True))
    assert sink.table.count == 1
    sink.table.receive(stream_frame(6, 0, b"a"))
    assert sink.take() == [(2, b"abc", True), (6, b"a", False)]
    assert sink.table.count == 0


def test_the_sink_may_answer():
    sink = Sink()
    sink.act = lambda sid: sink.table.send(sid, b"answer", fin=True)
    sink.table.receive(stream_frame(0, 0, b"question", fin=True))
    assert write(sink.table)[0] == [(STREAM, 0, 0, b"answer", True)]


# --- Limits -----------------------------------------------------------------------------


def test_a_byte_above_the_window_of_a_stream():
    made = table(max_stream_data_bidi_remote=10)
    assert made.receive(stream_frame(0, 9, b"x")) == OK
    assert made.receive(stream_frame(0, 10, b"x")) == FLOW_CONTROL
    assert made.receive(stream_frame(4, 0, bytes(11))) == FLOW_CONTROL
    assert made.receive(frame(RESET_STREAM, 8, 0, 11)) == FLOW_CONTROL
    assert made.receive(stream_frame(12, 11, b"", fin=True)) == FLOW_CONTROL


def test_a_byte_above_the_window_of_the_connection():
    made = table(max_data=25)
    assert made.receive(stream_frame(0, 9, b"x")) == OK
    assert made.receive(stream_frame(4, 0, bytes(10))) == OK
    assert made.receive(stream_frame(4, 0, bytes(10))) == OK
    assert made.receive(stream_frame(8, 0, bytes(6))) == FLOW_CONTROL
    assert made.receive(stream_frame(8, 0, bytes(5))) == OK
    assert made.receive(frame(RESET_STREAM, 0, 0, 11)) == FLOW_CONTROL
    assert made.receive(frame(RESET_STREAM, 0, 0, 10)) == OK


def test_the_windows_follow_reading_and_not_arrival():
    """One byte at the top of the window, again and again, gains the peer nothing."""
    made = table(max_data=2000, max_stream_data_bidi_remote=1000)
    for turn in range(20):
        status = made.receive(stream_frame(0, 999, b"x"))
        assert status == OK
        assert made.receive(stream_frame(0, 1000 + turn, b"x")) == FLOW_CONTROL
        assert not made.has_frames
    assert made.memory_in_use[0] == 1
    assert made.max_data == 2000


def test_the_windows_are_raised_when_half_is_read():
    made = table(max_data=100, max_stream_data_bidi_remote=60)
    made.receive(stream_frame(0, 0, bytes(60)))
    made.read(0, 29)
    assert not made.has_frames
    made.read(0, 1)
    assert write(made)[0] == [(MAX_STREAM_DATA, 0, 90)]
    made.read(0, 20)
    assert write(made)[0] == [(MAX_DATA, 150)]
    assert made.receive(stream_frame(0, 60, bytes(31))) == FLOW_CONTROL
    assert made.receive(stream_frame(0, 60, bytes(30))) == OK


def test_the_windows_grow_for_a_fast_reader():
    made = table(max_data=1000, max_stream_data_bidi_remote=100, max_stream_window=150)
    made.rtt = 50
    made.receive(stream_frame(0, 0, bytes(100)), now=1000)
    made.read(0, 50, now=1049)
    assert write(made)[0] == [(MAX_STREAM_DATA, 0, 50 + 150)]
    made.receive(stream_frame(0, 100, bytes(50)), now=1060)
    made.read(0, 80, now=1098)
    assert write(made)[0] == [(MAX_STREAM_DATA, 0, 130 + 150)]


def test_no_credit_for_a_stream_whose_size_is_known():
    made = table(max_stream_data_bidi_remote=60)
    made.receive(stream_frame(0, 0, bytes(60), fin=True))
    made.read(0)
    assert not made.has_frames


def test_too_many_gaps():
    made = table()
    for n in range(1024):
        assert made.receive(stream_frame(0, 2 * n + 1, b"x")) == OK
    assert made.receive(stream_frame(0, 2049, b"x")) == INTERNAL
    assert made.memory_in_use[0] == 1


@pytest.mark.parametrize("kind", [MAX_STREAMS_BIDI, MAX_STREAMS_UNI])
def test_max_streams_above_what_identifiers_can_say(kind):
    assert table().receive(frame(kind, 2**60)) == OK
    assert table().receive(frame(kind, 2**60 + 1)) == FRAME_ENCODING


@pytest.mark.parametrize("kind", [STREAMS_BLOCKED_BIDI, STREAMS_BLOCKED_UNI])
def test_streams_blocked_above_what_identifiers_can_say(kind):
    assert table().receive(frame(kind, 2**60)) == OK
    assert table().receive(frame(kind, 2**60 + 1)) == FRAME_ENCODING


@pytest.mark.parametrize("kind", [DATA_BLOCKED, STREAM_DATA_BLOCKED])
def test_blocked_frames_ask_for_nothing(kind):
    made = table()
    made.receive(stream_frame(0))
    operands = (0,) if kind == DATA_BLOCKED else (0, 0)
    assert made.receive(frame(kind, *operands)) == OK
    assert not made.has_frames


def test_offsets_above_the_largest():
    made = table()
    assert made.receive(stream_frame(0, 2**62 - 1, b"x")) == FRAME_ENCODING
    assert made.receive(stream_frame(0, 2**62 - 1, b"")) == FLOW_CONTROL


# --- The final size ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        stream_frame(0, 5, b"x"),
        stream_frame(0, 0, b"abcd", fin=True),
        stream_frame(0, 6, b"", fin=True),
        frame(RESET_STREAM, 0, 0, 4),
        frame(RESET_STREAM, 0, 0, 6),
    ],
)
@pytest.mark.parametrize("before", ["fin", "read", "reset", "stopped"])
def test_the_final_size_does_not_change(bad, before):
    made = table()
    if before == "stopped":
        made.receive(stream_frame(0, 0, b"abc"))
        made.stop(0)
    if before == "reset":
        assert made.receive(frame(RESET_STREAM, 0, 0, 5)) == OK
    else:
        assert made.receive(stream_frame(0, 0, b"abcde", fin=True)) == OK
    if before == "read":
        made.read(0)
    assert made.receive(bad) == FINAL_SIZE
    assert made.receive(stream_frame(0, 2, b"cde", fin=True)) == OK
    assert made.receive(frame(RESET_STREAM, 0, 0, 5)) == OK


def test_the_final_size_is_not_below_what_was_received():
    made = table()
    made.receive(stream_frame(0, 4, b"e"))
    assert made.receive(stream_frame(0, 4, b"", fin=True)) == FINAL_SIZE
    assert made.receive(frame(RESET_STREAM, 0, 0, 4)) == FINAL_SIZE


# --- RESET_STREAM -----------------------------------------------------------------------


def test_a_reset_is_told_and_takes_the_bytes_with_it():
    made = table(max_data=100)
    made.receive(stream_frame(0, 0, b"abc") + stream_frame(0, 10, b"k"))
    assert made.receive(frame(RESET_STREAM, 0, 77, 60)) == OK
    assert made.state(0)[1] == WAS_RESET
    assert made.events() == [(OPENED, 0, 0), (RESET, 0, 77)]
    assert made.read(0) == (b"", True)
    assert (made.recv_buffered, made.memory_in_use[0]) == (0, 0)
    assert made.max_data == 160, "what never came counts as consumed"
    assert made.receive(frame(RESET_STREAM, 0, 78, 60)) == OK
    assert made.events() == []
    assert made.receive(stream_frame(0, 3, b"late")) == OK
    assert made.recv_buffered == 0


def test_a_reset_after_all_was_received_changes_nothing():
    made = table()
    made.receive(stream_frame(0, 0, b"abc", fin=True))
    made.receive(frame(RESET_STREAM, 0, 1, 3))
    assert made.events() == [(OPENED, 0, 0), (READABLE, 0, 0)]
    assert made.read(0) == (b"abc", True)


def test_a_reset_of_a_stream_that_was_stopped_is_not_told():
    made = table()
    made.receive(stream_frame(0, 0, b"abc"))
    made.events()
    made.stop(0)
    made.receive(frame(RESET_STREAM, 0, 1, 3))
    assert made.events() == []
    assert made.state(0)[1] == WAS_RESET


# --- STOP_SENDING received --------------------------------------------------------------


@pytest.mark.parametrize("unsent", [b"", b"abc"])
def test_stop_sending_is_answered_with_a_reset(unsent):
    made = table()
    sid = made.open()
    made.send(sid, unsent)
    assert made.receive(frame(STOP_SENDING, sid, 9)) == OK
    assert made.events() == [(STOPPED, sid, 9)]
    assert write(made)[0] == [(RESET_STREAM, sid, 9, 0)]
    assert made.send(sid, b"more") == CLOSED
    assert made.receive(frame(STOP_SENDING, sid, 8)) == OK
    assert made.events() == []
    assert not made.has_frames


def test_stop_sending_in_the_middle_of_a_message():
    made = table()
    sid = made.open()
    made.send(sid, bytes(5000), fin=True)
    made.write()
    made.receive(frame(STOP_SENDING, sid, 0))
    assert made.events() == [(STOPPED, sid, 0)]
    assert write(made)[0] == [(RESET_STREAM, sid, 0, 1200 - 4)]
    assert made.memory_in_use[0] == 0


def test_stop_sending_when_all_is_under_way_is_no_event():
    """The peer stops nearly every stream after it has read what it wanted."""
    made = table()
    sid = made.open()
    made.send(sid, b"abc", fin=True)
    _, records = made.write()
    for _ in range(2):
        assert made.receive(frame(STOP_SENDING, sid, 0)) == OK
    assert made.events() == []
    assert not made.has_frames
    made.on_acked(records[0])
    assert made.events() == [(ACKED, sid, 0)]
    assert made.receive(frame(STOP_SENDING, sid, 0)) == OK
    assert not made.has_frames
    assert made.state(sid)[0] == DATA_RECVD


@pytest.mark.parametrize("lost_first", [False, True])
def test_lost_data_of_a_stopped_stream_is_not_sent_again(lost_first):
    made = table()
    sid = made.open()
    made.send(sid, b"abc", fin=True)
    (record,) = made.write()[1]
    if lost_first:
        made.on_lost(record)
    made.receive(frame(STOP_SENDING, sid, 9))
    if not lost_first:
        made.on_lost(record)
    assert write(made)[0] == [(RESET_STREAM, sid, 9, 3)]
    assert made.events() == []


# --- Giving up --------------------------------------------------------------------------


def test_reset_discards_what_was_not_sent():
    made = table()
    sid = made.open()
    made.send(sid, b"abc")
    made.reset(sid, 5)
    assert made.send_buffered == 0
    assert made.send(sid, b"d") == CLOSED
    assert write(made)[0] == [(RESET_STREAM, sid, 5, 0)]
    made.reset(sid, 6)
    assert not made.has_frames


def test_reset_when_all_is_sent_but_not_acknowledged():
    made = table()
    sid = made.open()
    made.send(sid, b"abc", fin=True)
    made.write()
    made.reset(sid, 5)
    assert write(made)[0] == [(RESET_STREAM, sid, 5, 3)]


def test_reset_of_what_is_done_changes_nothing():
    made = table()
    sid = made.open()
    made.send(sid, b"abc", fin=True)
    settle(made)
    made.reset(sid)
    assert made.state(sid)[0] == DATA_RECVD
    made.receive(stream_frame(2))
    made.reset(2)
    assert made.state(2)[0] == NONE
    assert not made.has_frames


def test_nothing_is_sent_after_the_end():
    made = table()
    sid = made.open()
    made.send(sid, b"", fin=True)
    assert made.send(sid, b"x") == CLOSED
    assert made.send(sid, b"", fin=True) == CLOSED
    made.receive(stream_frame(2))
    assert made.send(2, b"x") == CLOSED


def test_stop_asks_once_and_discards():
    made = table(max_data=100)
    made.receive(stream_frame(0, 0, bytes(40)))
    made.stop(0, 9)
    made.stop(0, 8)
    assert made.events() == [(OPENED, 0, 0)]
    assert write(made)[0] == [(STOP_SENDING, 0, 9)]
    assert made.read(0) == (b"", False)
    made.receive(stream_frame(0, 40, bytes(20)))
    assert (made.recv_buffered, made.max_data) == (0, 160)
    assert write(made)[0] == [(MAX_DATA, 160)]
    made.receive(stream_frame(0, 60, b"", fin=True))
    assert made.state(0)[1] == DATA_READ


def test_stop_asks_for_nothing_when_the_size_is_known():
    made = table()
    made.receive(stream_frame(0, 5, b"f", fin=True))
    made.stop(0)
    assert not made.has_frames
    assert made.state(0)[1] == DATA_READ


def test_stop_clears_the_event_that_there_are_bytes():
    made = table()
    made.receive(stream_frame(0, 0, b"abc"))
    made.stop(0)
    assert made.events() == [(OPENED, 0, 0)]
    made.receive(stream_frame(4, 0, b"abc"))
    made.events()
    made.receive(stream_frame(4, 3, b"def"))
    made.stop(4)
    assert made.events() == []


def test_release_of_a_finished_stream_lets_it_finish():
    made = table()
    made.receive(stream_frame(0, 0, b"abc", fin=True))
    made.read(0)
    made.send(0, b"answer", fin=True)
    made.release(0)
    assert made.count == 1
    assert made.events() == []
    decoded, records = write(made)
    assert decoded == [(STREAM, 0, 0, b"answer", True)]
    made.on_acked(records[0])
    assert made.count == 0
    assert made.events() == []


def test_release_of_an_unfinished_stream_resets_it():
    made = table()
    sid = made.open()
    made.send(sid, b"abc")
    made.release(sid)
    assert write(made)[0] == [(RESET_STREAM, sid, 0, 0)]


def test_release_is_silent_unless_the_peer_goes_on():
    made = table()
    made.receive(stream_frame(0, 0, b"abc"))
    made.send(0, b"", fin=True)
    made.release(0)
    settle(made)
    made.receive(stream_frame(0, 0, b"abc"))
    assert not made.has_frames, "what came before is no new data"
    made.receive(stream_frame(0, 3, b"def"))
    assert write(made)[0] == [(STOP_SENDING, 0, 0)]
    made.receive(stream_frame(0, 6, b"ghi"))
    assert not made.has_frames
    assert made.count == 1
    made.receive(stream_frame(0, 9, b"", fin=True))
    assert made.count == 0


def test_release_of_a_stream_that_ends_without_more_says_nothing():
    made = table()
    made.receive(stream_frame(0, 0, b"abc"))
    made.send(0, b"", fin=True)
    made.release(0)
    settle(made)
    made.receive(stream_frame(0, 3, b"", fin=True))
    assert not made.has_frames
    assert made.count == 0


def test_a_held_stream_stays_when_both_parts_are_done():
    made = table()
    made.receive(stream_frame(0, 0, b"abc", fin=True))
    made.send(0, b"x", fin=True)
    settle(made)
    assert made.read(0) == (b"abc", True)
    assert made.state(0) == (DATA_RECVD, DATA_READ)
    made.release(0)
    assert made.count == 0


def test_a_stream_reset_both_ways_is_freed():
    made = table()
    sid = made.open()
    made.send(sid, b"abc")
    made.receive(frame(STOP_SENDING, sid, 1))
    made.receive(frame(RESET_STREAM, sid, 1, 0))
    assert made.events() == [(STOPPED, sid, 1), (RESET, sid, 1)]
    made.release(sid)
    settle(made)
    assert made.count == 0
    assert made.memory_in_use == (0, 0, 0)


def test_memory_does_not_grow_with_the_number_of_requests():
    assert bench_exchange(20_000, 100) == 20_000


@pytest.mark.parametrize("size", [0, 1, 1300])
def test_exchanges_of_any_small_size_end(size):
    assert bench_exchange(10, size) == 10
