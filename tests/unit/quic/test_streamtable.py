"""Records of streams: identifiers, limits, credit, memory."""

import pytest

from lightning._core.quic.streams import Streams
from tests.reference.stream_model import (
    MAX_STREAM_DATA,
    OPENABLE,
    OPENED,
    RESET,
    RESET_STREAM,
    STOP_SENDING,
    STREAM_DATA_BLOCKED,
    frame,
    stream_frame,
)

OK, STREAM_LIMIT, STREAM_STATE = 0, 4, 5
LIMIT = -2
FRAMES_ABOUT_RECEIVING = ["stream", RESET_STREAM, STREAM_DATA_BLOCKED]
FRAMES_ABOUT_SENDING = [STOP_SENDING, MAX_STREAM_DATA]


def table(is_client=False, **settings):
    made = Streams(
        is_client, **{"max_streams_bidi": 8, "max_streams_uni": 4} | settings
    )
    made.set_peer_limits(
        max_data=2**20,
        max_stream_data_bidi_local=1000,
        max_stream_data_bidi_remote=2000,
        max_stream_data_uni=3000,
        max_streams_bidi=3,
        max_streams_uni=2,
    )
    return made


def about(kind, sid):
    """A frame of the kind that does no harm to a stream that exists."""
    if kind == "stream":
        return stream_frame(sid, 0, b"x")
    if kind == RESET_STREAM:
        return frame(kind, sid, 0, 0)
    return frame(kind, sid, 10)


def close(made, sid):
    """Bring a peer's stream to its end on both sides."""
    if made.state(sid) is None or made.state(sid)[1] == 1:
        assert made.receive(stream_frame(sid, 0, b"", fin=True)) == OK
    made.events()
    if not sid & 2:
        made.send(sid, b"", fin=True)
    made.release(sid)
    _, records = made.write()
    for record in records:
        made.on_acked(record)
    assert made.state(sid) is None
    return records


def test_identifiers_tell_who_opened_a_stream_and_in_which_direction():
    client, server = table(is_client=True), table()
    assert [client.open(), client.open(), client.open(True)] == [0, 4, 2]
    assert [server.open(), server.open(), server.open(True)] == [1, 5, 3]


def test_a_unidirectional_stream_has_one_part():
    made = table()
    assert made.state(made.open(True)) == (1, 0)
    assert made.state(made.open()) == (1, 1)
    made.receive(stream_frame(2))
    assert made.state(2) == (0, 1)


@pytest.mark.parametrize("kind", FRAMES_ABOUT_RECEIVING)
def test_a_frame_about_receiving_opens_a_stream_of_the_peer(kind):
    made = table()
    assert made.receive(about(kind, 4)) == OK
    assert made.receive(about(kind, 2)) == OK
    assert (OPENED, 4, 0) in made.events()


@pytest.mark.parametrize("kind", FRAMES_ABOUT_SENDING)
def test_a_frame_about_sending_opens_a_bidirectional_stream_of_the_peer(kind):
    made = table()
    assert made.receive(about(kind, 4)) == OK
    assert (OPENED, 4, 0) in made.events()


@pytest.mark.parametrize("is_client", [False, True])
@pytest.mark.parametrize("kind", FRAMES_ABOUT_RECEIVING)
def test_no_frame_about_receiving_on_a_stream_that_only_we_send_on(kind, is_client):
    made = table(is_client)
    ours = made.open(True)
    assert made.receive(about(kind, ours)) == STREAM_STATE
    assert made.receive(about(kind, ours + 4)) == STREAM_STATE


@pytest.mark.parametrize("is_client", [False, True])
@pytest.mark.parametrize("kind", FRAMES_ABOUT_SENDING)
def test_no_frame_about_sending_on_a_stream_that_only_the_peer_sends_on(
    kind, is_client
):
    theirs = 3 if is_client else 2
    assert table(is_client).receive(about(kind, theirs)) == STREAM_STATE


@pytest.mark.parametrize("kind", FRAMES_ABOUT_RECEIVING + FRAMES_ABOUT_SENDING)
def test_no_frame_on_a_stream_of_ours_that_we_did_not_open(kind):
    made = table(is_client=True)
    assert made.receive(about(kind, 0)) == STREAM_STATE
    assert made.open() == 0
    assert made.receive(about(kind, 0)) == OK
    assert made.receive(about(kind, 4)) == STREAM_STATE


@pytest.mark.parametrize("kind", FRAMES_ABOUT_RECEIVING + FRAMES_ABOUT_SENDING)
@pytest.mark.parametrize("sid", [8 * 4, 12 * 4, 2**62 - 4])
def test_no_frame_on_a_stream_above_the_limit(kind, sid):
    made = table()
    assert made.receive(about(kind, 7 * 4)) == OK
    assert made.receive(about(kind, sid)) == STREAM_LIMIT
    assert made.count == 1


def test_limits_of_the_directions_are_apart():
    made = table()
    assert made.receive(stream_frame(3 * 4 + 2)) == OK
    assert made.receive(stream_frame(4 * 4 + 2)) == STREAM_LIMIT
    assert table(max_streams_uni=0).receive(stream_frame(2)) == STREAM_LIMIT


def test_streams_skipped_over_are_open_but_cost_no_record():
    made = table()
    assert made.receive(stream_frame(7 * 4)) == OK
    assert made.count == 1
    assert made.events() == [(OPENED, 28, 0)]
    assert made.receive(stream_frame(3 * 4)) == OK
    assert made.events() == [(OPENED, 12, 0)]
    assert made.count == 2


def test_a_frame_for_a_closed_stream_is_ignored():
    made = table()
    close(made, 0)
    assert made.receive(stream_frame(0, 0, b"late")) == OK
    assert made.receive(frame(RESET_STREAM, 0, 0, 2**40)) == OK
    assert made.receive(frame(STOP_SENDING, 0, 0)) == OK
    assert made.count == 0
    assert made.events() == []


def test_a_closed_stream_that_had_been_skipped_stays_closed():
    made = table()
    made.receive(stream_frame(8, 0, b""))
    close(made, 4)
    assert made.receive(stream_frame(4, 0, b"late")) == OK
    assert made.state(4) is None
    assert made.receive(stream_frame(0, 0, b"first")) == OK
    assert made.state(0) is not None


def test_a_stream_of_ours_that_is_closed_is_ignored():
    made = table(is_client=True)
    sid = made.open()
    made.send(sid, b"", fin=True)
    made.receive(stream_frame(sid, 0, b"", fin=True))
    made.release(sid)
    made.on_acked(made.write()[1][0])
    assert made.count == 0
    assert made.receive(stream_frame(sid, 0, b"late")) == OK
    assert made.count == 0


def test_credit_comes_back_when_half_is_used_and_streams_have_closed():
    made = table()
    for index in range(3):
        close(made, 4 * index)
        assert made.max_streams == (8, 4)
    made.receive(stream_frame(12))
    assert made.max_streams == (11, 4), "four of eight are left, three have closed"
    assert made.write() == (frame(0x12, 11), [(0x12, 0, 11, 0, False)])
    made.receive(stream_frame(28))
    assert made.max_streams == (11, 4), "eight of eleven are open"
    close(made, 16)
    assert made.max_streams == (12, 4)


def test_credit_is_not_given_for_streams_that_are_only_opened_and_reset():
    """Opening and resetting fast gains nothing until the layer above lets go."""
    made = table()
    for index in range(8):
        assert made.receive(stream_frame(4 * index, 0, b"work")) == OK
        assert made.receive(frame(RESET_STREAM, 4 * index, 0, 4)) == OK
        assert made.receive(frame(STOP_SENDING, 4 * index, 0)) == OK
    for record in made.write()[1]:
        made.on_acked(record)
    assert [event[0] for event in made.events()].count(RESET) == 8
    assert made.count == 8
    assert made.receive(stream_frame(32)) == STREAM_LIMIT
    made.release(0)
    assert made.count == 7
    assert made.receive(stream_frame(32)) == OK
    assert made.receive(stream_frame(36)) == STREAM_LIMIT


def test_opening_stops_at_the_peers_limit_and_is_announced_again():
    made = table(is_client=True)
    assert [made.open() for _ in range(4)] == [0, 4, 8, LIMIT]
    assert [made.open(True) for _ in range(3)] == [2, 6, LIMIT]
    assert made.events() == []
    assert made.receive(frame(0x12, 3)) == OK
    assert made.events() == []
    assert made.receive(frame(0x12, 4)) == OK
    assert made.events() == [(OPENABLE, None, 0)]
    assert made.events() == []
    assert made.open() == 12
    assert made.receive(frame(0x13, 5)) == OK
    assert made.events() == [(OPENABLE, None, 1)]
    assert made.receive(frame(0x13, 9)) == OK
    assert made.events() == [], "nobody was refused since"


def test_no_stream_before_the_peers_parameters_are_known():
    made = Streams(True)
    assert made.open() == LIMIT
    made.set_peer_limits(max_streams_bidi=2**62)
    assert made.events() == [(OPENABLE, None, 0)]
    assert made.open() == 0


def test_streams_of_ours_are_bounded_whatever_the_peer_grants():
    made = table(is_client=True, max_local_streams=2)
    made.receive(frame(0x12, 1000))
    first = made.open()
    assert made.open() > 0
    assert made.open() == LIMIT
    assert made.open(True) == LIMIT
    made.receive(stream_frame(first, 0, b"", fin=True))
    made.send(first, b"", fin=True)
    made.release(first)
    for record in made.write()[1]:
        made.on_acked(record)
    assert made.events() == [(OPENABLE, None, 0), (OPENABLE, None, 1)]
    assert made.open() > 0


def test_each_kind_of_stream_has_its_own_windows():
    settings = {
        "max_stream_data_bidi_local": 10,
        "max_stream_data_bidi_remote": 20,
        "max_stream_data_uni": 30,
    }
    made = table(is_client=True, **settings)
    ours, ours_uni = made.open(), made.open(True)
    for sid, size in ((ours, 10), (1, 20), (3, 30)):
        assert made.receive(stream_frame(sid, size, b"")) == OK
        assert made.receive(stream_frame(sid, size + 1, b"")) == 3
    for sid in (ours, 1, ours_uni):
        assert made.send(sid, bytes(5000)) == OK
    sent = {}
    while made.has_frames:
        for kind, sid, _, size, _ in made.write()[1]:
            if kind == 8:
                sent[sid] = sent.get(sid, 0) + size
    assert sent == {ours: 2000, 1: 1000, ours_uni: 3000}


def test_a_stream_without_a_record_is_a_key_error():
    with pytest.raises(KeyError):
        table().send(0, b"x")


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError, match="max_nothing"):
        Streams(True, max_nothing=1)


def test_thousands_of_streams_are_found_and_freed():
    made = table(max_streams_bidi=5000, max_streams_uni=0)
    for index in range(5000):
        assert made.receive(stream_frame(4 * index, 0, b"x")) == OK
    assert made.count == 5000
    assert len(made.events()) == 10_000
    for index in range(4999, -1, -1):
        assert made.read(4 * index)[0] == b"x"
        made.receive(stream_frame(4 * index, 1, b"", fin=True))
        made.send(4 * index, b"y", fin=True)
        made.release(4 * index)
        while made.has_frames:
            for record in made.write()[1]:
                made.on_acked(record)
    assert made.count == 0
    assert made.memory_in_use == (0, 0, 0)


def test_a_record_is_as_new_when_it_is_used_again():
    made = table()
    made.receive(stream_frame(0, 5, b"x"))
    made.receive(frame(MAX_STREAM_DATA, 0, 2**30))
    made.stop(0, 9)
    made.send(0, b"abc")
    made.reset(0, 7)
    made.release(0)
    made.receive(frame(RESET_STREAM, 0, 0, 6))
    for record in made.write()[1]:
        made.on_acked(record)
    assert made.count == 0
    made.receive(stream_frame(4, 0, b"abc"))
    assert made.state(4) == (1, 1)
    assert made.read(4) == (b"abc", False)
    made.send(4, bytes(2000))
    made.stop(4)
    payload, _ = made.write(2000)
    assert payload.startswith(frame(STOP_SENDING, 4, 0))
    payload, _ = made.write(2000)
    assert len(payload) < 1010, "the window of the old stream is gone"


def test_a_table_closed_with_streams_in_use_holds_nothing():
    made = table()
    body = bytes(100_000)
    for index in range(5):
        made.receive(stream_frame(4 * index, 10, bytes(100)))
        made.send(4 * index, bytes(10_000))
        made.refer(4 * index, body)
        made.write()
    assert made.memory_in_use[1:] == (5, 5)
    assert made.close() == (0, 0, 0)
    assert made.receive(stream_frame(0)) == STREAM_LIMIT
    assert made.close() == (0, 0, 0)
