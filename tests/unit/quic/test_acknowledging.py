"""When acknowledgements go out, and what a small congestion window lets go."""

import pytest

from tests.support.quic import Two, client


@pytest.mark.parametrize(
    ("delay", "settings", "held"),
    [
        (0.08, {}, 0.01),
        (0.001, {}, 0.001),
        (0.4, {}, 0.025),
        (0.08, {"ack_delay": 0.003}, 0.003),
    ],
)
def test_an_acknowledgement_waits_a_sixteenth_of_the_round_trip(delay, settings, held):
    """One millisecond at least, and never longer than was announced."""
    two = Two(near=client(**settings), delay=delay)
    two.run(10)
    two.log.clear()
    start = two.now
    two.peer.ping()
    two.run(2)
    assert [to_server for _, to_server, _ in two.log] == [False, True]
    assert two.log[1][0] - start == pytest.approx(delay + held, abs=0.0002)


def test_after_a_gap_each_packet_is_acknowledged_at_once_for_a_round_trip():
    two = Two().connect()
    two.run(1)
    lost = two.count[False] + 1
    two.lose = lambda to_server, number, data: not to_server and number == lost
    for _ in range(3):
        two.peer.ping()
        two.flush()
        two.run(0.004)
    two.run(0.0061)
    acks = [now for now, to_server, _ in two.log[-2:] if to_server]
    assert len(acks) == 2, "one for each of the two that came"
    two.run(0.1)
    two.log.clear()
    two.peer.ping()
    two.run(0.0101)
    assert [to_server for _, to_server, _ in two.log] == [False], "later it waits"


def test_a_small_window_is_filled_to_the_last_half_datagram():
    for window, sizes in (
        (3 * 1200 - 1, [1200, 1200, 1199]),
        (2 * 1200 + 600, [1200, 1200, 600]),
        (2 * 1200 + 599, [1200, 1200]),
        # From 16 datagrams on it is not worth one more.
        (16 * 1200 + 1000, [1200] * 16),
    ):
        two = Two(near=client(initial_window=window, max_datagram=1200)).connect()
        two.run(1)
        two.log.clear()
        assert two.connection.stats()["congestion_window"] == window
        two.connection.send(two.connection.open_stream(), bytes(100_000))
        two.run(0.009)
        assert [size for _, _, size in two.log] == sizes
