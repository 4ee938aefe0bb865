"""How many connections a source has and begins, in a table that does not grow."""

import ipaddress
import random
import time

import pytest

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint
from lightning._core.quic.sources import SourceTable
from tests.support.quic import SERVER, client, server

ADMITTED, STRANGERS, FAST, NO_ROOM = range(4)


def ip(text):
    """Return an address as its bytes."""
    return ipaddress.ip_address(text).packed


# The table.


def test_without_limits_everybody_comes():
    table = SourceTable()
    assert [table.admit(ip("10.0.0.1"), 0.0) for _ in range(1000)] == (
        [(ADMITTED, 0)] * 1000
    )
    assert len(table) == 0
    assert table.strangers(ip("10.0.0.1")) is None


def test_a_source_has_so_many_strangers_until_they_leave():
    table = SourceTable(max_strangers=2)
    first, second, third = (table.admit(ip("10.0.0.1"), 0.0) for _ in range(3))
    assert (first[0], second[0], third) == (ADMITTED, ADMITTED, (STRANGERS, 0))
    assert table.admit(ip("10.0.0.2"), 0.0)[0] == ADMITTED
    table.leave(third[1])  # Nothing.
    assert table.strangers(ip("10.0.0.1")) == 2
    table.leave(first[1])
    assert table.admit(ip("10.0.0.1"), 0.0)[0] == ADMITTED


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "a00:1::", False),
        ("::1", "::2", True),
        ("::1", "::ffff:0.0.0.1", False),
    ],
)
def test_what_is_one_source(one, other, same):
    """An IPv4 address, mapped or not, and an IPv6 /64."""
    table = SourceTable(max_strangers=1)
    assert table.admit(ip(one), 0.0)[0] == ADMITTED
    assert table.admit(ip(other), 0.0)[0] == (STRANGERS if same else ADMITTED)


def test_a_source_begins_so_many_in_a_minute():
    """At once, and then at an even rate."""
    table = SourceTable(max_new=30)
    assert [table.admit(ip("10.0.0.1"), 5.0)[0] for _ in range(32)] == (
        [ADMITTED] * 30 + [FAST] * 2
    )
    assert table.admit(ip("10.0.0.1"), 6.9)[0] == FAST
    assert table.admit(ip("10.0.0.1"), 7.0)[0] == ADMITTED
    assert table.admit(ip("10.0.0.1"), 7.1)[0] == FAST
    assert table.admit(ip("10.0.0.2"), 7.1)[0] == ADMITTED
    # A minute later the whole is there again, and no more.
    assert [table.admit(ip("10.0.0.1"), 70.0)[0] for _ in range(31)].count(
        ADMITTED
    ) == 30


def test_what_is_refused_is_not_counted():
    """A client that goes on trying gets in as soon as one that waited would."""
    table = SourceTable(max_new=1)
    assert table.admit(ip("10.0.0.1"), 0.0)[0] == ADMITTED
    assert [table.admit(ip("10.0.0.1"), i / 10)[0] for i in range(1, 600)] == (
        [FAST] * 599
    )
    assert table.admit(ip("10.0.0.1"), 60.0)[0] == ADMITTED


def test_the_one_not_used_for_longest_is_forgotten():
    table = SourceTable(max_new=1, capacity=3)
    for i in (1, 2, 3):
        assert table.admit(ip(f"10.0.0.{i}"), 0.0)[0] == ADMITTED
    assert table.admit(ip("10.0.0.1"), 60.0)[0] == ADMITTED  # Used again.
    assert table.admit(ip("10.0.0.4"), 60.0)[0] == ADMITTED
    assert len(table) == 3
    assert table.strangers(ip("10.0.0.2")) is None
    assert table.admit(ip("10.0.0.1"), 61.0)[0] == FAST


def test_nobody_who_has_strangers_is_forgotten():
    """Else a source could have any number by having others come meanwhile."""
    table = SourceTable(max_strangers=2, capacity=4)
    held = [table.admit(ip("10.0.0.1"), 0.0)[1] for _ in range(2)]
    for i in range(1000):
        verdict, place = table.admit(ip(f"10.1.{i >> 8}.{i & 255}"), 0.0)
        assert verdict == ADMITTED
        table.leave(place)
    assert table.admit(ip("10.0.0.1"), 0.0) == (STRANGERS, 0)
    others = [table.admit(ip(f"10.2.0.{i}"), 0.0) for i in range(4)]
    assert [verdict for verdict, _ in others] == [ADMITTED] * 3 + [NO_ROOM]
    for place in held:
        table.leave(place)
    assert table.admit(ip("10.2.0.3"), 0.0)[0] == ADMITTED
    assert len(table) == 4


def test_it_does_as_a_slow_model_does():
    """Ten thousand random calls, compared with dictionaries."""
    rng = random.Random(7)
    table = SourceTable(
        max_strangers=3, max_new=6, capacity=8, secret=rng.getrandbits(64)
    )
    paid, live, used = {}, {}, {}
    places, now = [], 0.0
    for step in range(10_000):
        now += rng.choice((0.0, 0.25, 2.0))
        if places and rng.random() < 0.45:
            host, place = places.pop(rng.randrange(len(places)))
            table.leave(place)
            live[host] -= 1
            used[host] = step
            continue
        host = ip(f"10.0.0.{rng.randrange(14)}")
        if live.get(host, 0) >= 3:
            expected = STRANGERS
        elif max(paid.get(host, now), now) - now > 50:
            expected = FAST
        elif host not in paid and len(paid) == 8:
            free = [each for each in paid if not live[each]]
            expected = ADMITTED if free else NO_ROOM
            if free:
                oldest = min(free, key=used.__getitem__)
                del paid[oldest], live[oldest], used[oldest]
        else:
            expected = ADMITTED
        verdict, place = table.admit(host, now)
        assert verdict == expected
        if verdict == ADMITTED:
            paid[host] = max(paid.get(host, now), now) + 10
            live[host] = live.get(host, 0) + 1
            used[host] = step
            places.append((host, place))
        assert len(table) == len(paid)


def test_a_flood_of_made_up_sources_takes_constant_time_and_memory():
    """A quarter of a million, as fast when the table is full as before."""
    table = SourceTable(max_strangers=8, max_new=100, capacity=10_000, secret=0x51EE7)
    rng = random.Random(3)
    hosts = [rng.randbytes(4) for _ in range(10_000)]
    times = []
    for _ in range(25):
        start = time.perf_counter()
        for host in hosts:
            table.leave(table.admit(host, 0.0)[1])
        times.append(time.perf_counter() - start)
        hosts = [rng.randbytes(16) for _ in range(10_000)]
    assert len(table) == 10_000
    assert min(times[-5:]) < 10 * min(times[:3])


def test_arguments():
    table = SourceTable(max_new=1)
    with pytest.raises(ValueError, match="place"):
        table.leave(99)
    with pytest.raises(ValueError, match="bytes"):
        table.admit(b"10.0.0.1", 0.0)


# The endpoint.


class Crowd:
    """Clients of one server of ours, each with an address, in virtual time."""

    def __init__(self, **settings):
        self.far = server(**settings)
        self.now = 0.0
        self.peers = {}
        self.ends = []

    def dial(self, host, *, rounds=6):
        """Connect from a host; return the client's connection and the server's."""
        near = client(seed=len(self.ends) + 10)
        self.ends.append(near)
        address = (host, 1000 + len(self.ends))
        connection = near.connect(SERVER, self.now)
        peer = None
        for _ in range(rounds):
            for data, _ in near.datagrams_to_send(self.now):
                self.far.receive(data, address, self.now)
            peer = self.events() or peer
            for data, _ in self.far.datagrams_to_send(self.now):
                near.receive(data, SERVER, self.now)
            while near.next_event() is not None:
                pass
        return connection, peer

    def events(self):
        """Take the server's events; return what was connected last."""
        peer = None
        while (event := self.far.next_event()) is not None:
            if event.kind == "connected":
                peer = event.connection
        return peer


@pytest.mark.parametrize("retry", [False, True])
def test_a_source_over_its_strangers_is_not_answered(retry):
    """After it has proven its address, where it has to; others are."""
    crowd = Crowd(max_unauthenticated_per_source=2, retry=retry)
    peers = [crowd.dial("10.0.0.1")[1] for _ in range(3)]
    assert [peer is not None for peer in peers] == [True, True, False]
    stats = crowd.far.stats()
    assert (stats["sources_full"], stats["sources_fast"]) == (1, 0)
    assert (stats["refused"], stats["connections"], stats["half_open"]) == (0, 2, 0)
    assert stats["retries_sent"] == 3 * retry
    assert crowd.dial("10.0.0.2")[1] is not None
    # One is known now: another may come. It is a stranger for ever or leaves.
    peers[0].vouch()
    peers[0].vouch()
    third = crowd.dial("10.0.0.1")[1]
    assert third is not None
    assert crowd.dial("10.0.0.1")[1] is None
    third.close()
    assert crowd.dial("10.0.0.1")[1] is not None
    assert peers[0].is_connected


def test_a_source_that_begins_too_many_is_not_answered():
    """Whoever vouches for them; in a while it may again."""
    crowd = Crowd(max_connections_per_minute=3)
    for _ in range(3):
        crowd.dial("2001:db8::1")[1].vouch()
    assert crowd.dial("2001:db8::2")[1] is None
    assert crowd.far.stats()["sources_fast"] == 1
    assert crowd.dial("2001:db8:0:1::1")[1] is not None
    crowd.now = 20.0
    assert crowd.dial("2001:db8::1")[1] is not None
    assert crowd.far.stats()["sources"] == 2


def test_garbage_leaves_no_stranger_behind():
    """What looks like an Initial and cannot be opened."""
    crowd = Crowd(max_unauthenticated_per_source=1)
    near = client(seed=99)
    near.connect(SERVER, 0.0)
    ((first, _),) = near.datagrams_to_send(0.0)
    for i in range(20):
        broken = bytearray(first)
        broken[-1 - i] ^= 1
        crowd.far.receive(bytes(broken), ("10.0.0.1", 5), 0.0)
    assert crowd.far.stats()["connections"] == 0
    assert crowd.dial("10.0.0.1")[1] is not None


@pytest.mark.parametrize("end", ["handshake", "idle", "full"])
def test_who_ends_is_no_stranger(end):
    """Whichever way it ends, and also if it never began."""
    crowd = Crowd(
        max_unauthenticated_per_source=1, handshake_timeout=1, idle_timeout=2,
        max_connections=2,
    )  # fmt: skip
    if end == "full":
        for i in (2, 3):
            crowd.dial(f"10.0.0.{i}")[1].vouch()
        assert crowd.dial("10.0.0.1")[1] is None
        assert crowd.far.stats()["refused"] == 1
    else:
        crowd.dial("10.0.0.1", rounds=1 if end == "handshake" else 6)
        assert crowd.dial("10.0.0.1")[1] is None
    crowd.now = 3.0
    crowd.far.handle_timeout(3.0)
    assert crowd.dial("10.0.0.1")[1] is not None


def test_a_flood_does_not_touch_who_is_established():
    """Ten thousand spoofed first datagrams: no answers, no memory, one validator."""
    crowd = Crowd(
        max_unauthenticated_per_source=2, max_connections_per_minute=4,
        max_tracked_rate_ips=64, max_half_open=16,
    )  # fmt: skip
    connection, peer = crowd.dial("10.0.0.1")
    peer.vouch()
    near = client(seed=1000)
    near.connect(SERVER, 0.0)
    ((first, _),) = near.datagrams_to_send(0.0)
    rng = random.Random(5)
    for _ in range(10_000):
        datagram = bytearray(first)
        datagram[6:14] = rng.randbytes(8)  # Its connection ID: each another one.
        crowd.far.receive(bytes(datagram), (f"10.9.{rng.randrange(40)}.1", 9), 0.0)
    stats = crowd.far.stats()
    assert stats["connections"] <= 17
    assert stats["sources"] <= 64
    assert stats["sources_fast"] > 9000
    stream = connection.open_stream()
    connection.send(stream, b"still there", fin=True)
    for data, _ in crowd.ends[0].datagrams_to_send(0.0):
        crowd.far.receive(data, ("10.0.0.1", 1001), 0.0)
    assert peer.read(stream) == b"still there"


def test_limits_are_checked():
    """The settings have ranges; a huge table is cut to what a table may have."""
    end = Endpoint(
        EngineConfig(max_connections_per_minute=1, max_tracked_rate_ips=2**40),
        is_client=False, identity=Identity.generate(),
    )  # fmt: skip
    assert end.stats()["sources"] == 0
