"""A peer that owes an acknowledgement and is silent is given up before the idle time."""

import pytest

from tests.support.quic import Two, client, server


def outage(two, start, length):
    """Lose everything, both ways, for a while."""
    two.lose = lambda *_: start <= two.now < start + length


def silence(two):
    """Lose everything from now on; return when the first thing was lost."""
    lost = []

    def lose(*_):
        lost.append(two.now)
        return True

    two.lose = lose
    return lost


def make(delay=0.01, **settings):
    """Make a connected pair whose client gives up after ten seconds."""
    settings = {
        "unresponsive_timeout": 10, "handshake_timeout": 60, "idle_timeout": 2000,
        **settings,
    }  # fmt: skip
    two = Two(
        near=client(**settings), far=server(handshake_timeout=60, idle_timeout=2000),
        delay=delay,
    )  # fmt: skip
    two.run(20 * delay + 0.5)
    two.run(60 * delay)
    assert two.connection.is_confirmed
    return two


def test_a_dead_peer_is_noticed_in_time():
    """Not a tenth of a second early, and hardly later; and nothing is said of it."""
    two = make()
    silence(two)
    start = two.now
    two.connection.send(two.connection.open_stream(), b"x", fin=True)
    two.run(9.9)
    assert two.connection.end is None
    sent = len(two.log)
    two.run(start + 10.1 - two.now)
    end = two.connection.end
    assert (end.initiator, end.timed_out, end.code) == ("unresponsive", True, 0)
    assert two.near.connections == 0
    assert len(two.log) == sent
    assert two.near_events[-1].kind == "closed"


def test_it_is_off_by_default():
    two = make(unresponsive_timeout=0)
    silence(two)
    two.connection.ping()
    two.run(100)
    assert two.connection.end is None


def test_who_is_owed_nothing_waits():
    """An idle connection lives; its first packet counts."""
    two = make()
    two.run(100)
    assert two.connection.end is None
    silence(two)
    two.connection.ping()
    two.run(9.9)
    assert two.connection.end is None
    two.run(0.2)
    assert two.connection.end.initiator == "unresponsive"


def test_keep_alive_finds_a_dead_peer():
    """Its PING is owed an acknowledgement: about ten seconds after it."""
    two = make(keep_alive=30)
    silence(two)
    two.run(39 - two.now)
    assert two.connection.end is None
    two.run(42 - two.now)
    assert two.connection.end.initiator == "unresponsive"


@pytest.mark.parametrize("length", [1, 5, 7.4])
def test_an_outage_is_survived(length):
    """What was lost is sent again, and the clock starts anew."""
    two = make(keep_alive=2)
    for _ in range(3):
        outage(two, two.now, length)
        stream = two.connection.open_stream()
        two.connection.send(stream, b"x" * 5000, fin=True)
        two.run(length + 20)
        assert two.connection.end is None
        assert len(two.peer.read(stream)) == 5000


def test_a_long_path_gets_three_probe_timeouts():
    """With a round trip of eight seconds, ten seconds of silence are nothing."""
    two = make(delay=4, initial_rtt=8)
    silence(two)
    timeouts = two.connection.stats()["timeouts"]
    two.connection.ping()
    two.run(20)
    assert two.connection.end is None
    two.run(500)
    assert two.connection.end.initiator == "unresponsive"
    assert two.connection.stats()["timeouts"] - timeouts >= 3


def test_a_long_path_survives():
    """Two seconds of round trip, and traffic that goes on."""
    two = make(delay=1)
    for _ in range(5):
        two.connection.send(two.connection.open_stream(), b"x" * 20_000, fin=True)
        two.run(30)
    assert two.connection.end is None


def test_any_packet_of_the_peer_counts():
    """A peer whose acknowledgements of one packet are lost is there all the same."""
    two = make()
    two.lose = lambda to_server, *_: to_server
    two.connection.ping()
    for _ in range(3):
        two.peer.ping()
        two.run(5)
        assert two.connection.end is None
    two.lose = lambda *_: True
    two.run(400)  # Probes are far apart by now.
    assert two.connection.end.initiator == "unresponsive"


def test_a_dial_is_left_to_its_own_timeout():
    """Ten seconds are not more than who dials has allowed."""
    near = client(unresponsive_timeout=1, handshake_timeout=30)
    two = Two(near=near, lose=lambda *_: True)
    two.run(29)
    assert two.connection.end is None
    two.run(2)
    assert two.connection.end.initiator == "handshake_timeout"


def test_a_server_may_have_it_too():
    two = Two(far=server(unresponsive_timeout=3)).connect()
    two.run(3)
    silence(two)
    two.peer.ping()
    two.run(3.2)
    assert two.peer.end.initiator == "unresponsive"


# What a connection tells of itself.


def test_the_numbers_of_a_connection():
    """Round trips, ages and the rest, for whoever asks."""
    two = Two(delay=0.05)
    stats = two.connection.stats()
    assert (stats["rtt_us"], stats["min_rtt_us"], stats["age_us"]) == (0, 0, 0)
    two.connect()
    two.run(2)
    stats = two.connection.stats(two.now + 1)
    assert 100_000 <= stats["min_rtt_us"] <= stats["rtt_us"] < 130_000
    assert stats["cwnd"] == stats["congestion_window"] >= 12_000
    assert 2_000_000 < stats["idle_us"] <= 1e6 * two.now + 1_000_000
    assert stats["idle_us"] <= stats["age_us"] < 1e6 * two.now + 1_000_000
    assert stats["packets_sent"] > 2
    assert stats["packets_lost"] == 0
    two.connection.ping()
    two.run(0.2)
    assert two.connection.stats()["idle_us"] < 200_000
    two.connection.close()
    two.run(10)
    assert two.connection.stats()["bytes_sent"] > 1200
