"""The simulated network itself: every fault does what it says, and nothing else."""

import itertools

import pytest

from tests.sim.link import (
    CE,
    CLIENT_ADDRESS,
    ECT_0,
    NOT_ECT,
    SCENARIOS,
    SERVER_ADDRESS,
    Link,
    network,
    rebindings,
    scenario,
)

C, S = CLIENT_ADDRESS, SERVER_ADDRESS


def flood(link, count=1000, size=1200, gap=0.001, ecn=NOT_ECT):
    """Send numbered datagrams at even distances; return what arrived, and when."""
    for index in range(count):
        link.send(index * gap, index.to_bytes(4, "big") * (size // 4), C, S, ecn)
    arrived = []
    while (time := link.next_arrival()) is not None:
        arrived += [(time, datagram) for datagram in link.deliver(time)]
    return arrived


def numbers(arrived):
    return [int.from_bytes(datagram.data[:4], "big") for _, datagram in arrived]


def test_a_perfect_link_delays_and_changes_nothing():
    link = Link(1, delay=0.02)
    link.send(1.0, b"hello", C, S, ECT_0)
    assert link.next_arrival() == 1.02
    assert link.in_flight == 1
    assert link.deliver(1.019) == []
    assert link.deliver(1.02) == [(b"hello", C, S, ECT_0)]
    assert link.next_arrival() is None


def test_the_bottleneck_spaces_datagrams_by_their_size():
    link = Link(1, delay=0, rate_bps=8000)
    for _ in range(3):
        link.send(0.0, bytes(72), C, S)
    times = [time for time, _ in flood(link, count=0)]
    assert times == pytest.approx([0.1, 0.2, 0.3])


def test_a_full_queue_drops_the_newest():
    link = Link(1, delay=0, rate_bps=8000, queue_bytes=250)
    for index in range(4):
        link.send(0.0, bytes([index]) * 72, C, S)
    assert [datagram.data[0] for _, datagram in flood(link, count=0)] == [0, 1]
    assert link.counts["queue full"] == 2


def test_the_queue_drains_with_time():
    link = Link(1, delay=0, rate_bps=8000, queue_bytes=100)
    assert len(flood(link, count=10, size=72, gap=0.1)) == 10


@pytest.mark.parametrize(
    ("host", "fits"), [("198.51.100.1", 1472), ("2001:db8::1", 1452)]
)
def test_datagrams_above_the_mtu_vanish(host, fits):
    link = Link(1, delay=0)
    link.send(0.0, bytes(fits), C, (host, 1))
    link.send(0.0, bytes(fits + 1), C, (host, 1))
    assert [len(datagram.data) for datagram in link.deliver(0.0)] == [fits]


def test_loss_takes_its_share():
    assert 850 < len(flood(Link(1, delay=0.01, loss=0.1))) < 950


def test_bursts_are_bounded():
    arrived = numbers(flood(Link(1, delay=0.01, loss=0.7, burst=3)))
    gaps = [b - a for a, b in itertools.pairwise(arrived)]
    assert max(gaps) == 4


def test_reordering_keeps_every_datagram():
    arrived = numbers(flood(Link(1, delay=0.02, reorder=0.2)))
    assert arrived != sorted(arrived)
    assert sorted(arrived) == list(range(1000))


def test_duplicates_are_equal_to_their_originals():
    arrived = flood(Link(1, delay=0.02, duplicate=0.2))
    assert 1150 < len(arrived) < 1250
    assert set(numbers(arrived)) == set(range(1000))


def test_corruption_changes_one_byte():
    link = Link(1, delay=0.02, corrupt=0.1)
    changed = 0
    for index, (_, datagram) in enumerate(flood(link)):
        original = index.to_bytes(4, "big") * 300
        different = sum(a != b for a, b in zip(original, datagram.data, strict=True))
        assert different <= 1
        changed += different
    assert changed == link.counts["corrupted"]
    assert 50 < changed < 150


def test_only_capable_datagrams_are_marked():
    marked = flood(Link(1, delay=0.02, ecn_mark=0.5), ecn=ECT_0)
    assert 400 < sum(datagram.ecn == CE for _, datagram in marked) < 600
    plain = flood(Link(1, delay=0.02, ecn_mark=0.5))
    assert {datagram.ecn for _, datagram in plain} == {NOT_ECT}


def test_the_droplist_counts_from_one():
    assert numbers(flood(Link(1, delay=0, droplist=[1, 3]), count=4)) == [1, 3]


def test_a_blackhole_takes_what_is_sent_in_it():
    link = Link(1, delay=0, blackhole=[(1.0, 2.0), (3.0, 4.0)])
    assert numbers(flood(link, count=10, gap=0.5)) == [0, 1, 4, 5, 8, 9]


def test_a_fault_leaves_the_other_faults_choices_alone():
    alone = numbers(flood(Link(7, delay=0.01, loss=0.1)))
    mixed = Link(7, delay=0.01, loss=0.1, corrupt=0.3, duplicate=0.3, ecn_mark=0.5)
    taken = {entry[3] - 1 for entry in _noted(flood_and_return(mixed), "lost")}
    assert set(range(1000)) - taken == set(alone)


def flood_and_return(link):
    flood(link)
    return link


def _noted(link, what):
    return [entry for entry in link.trace if entry[2] == what]


def test_the_two_directions_differ():
    net = network(3, loss=0.5, rate_bps=None)
    lost = [
        [entry[3] for entry in _noted(flood_and_return(link), "lost")]
        for link in (net.to_server, net.to_client)
    ]
    assert lost[0] != lost[1]


def test_one_seed_one_trace():
    faults = {"loss": 0.1, "corrupt": 0.1, "duplicate": 0.1, "reorder": 0.1}
    runs = []
    for seed in (5, 5, 6):
        net = network(seed, ecn_mark=0.1, **faults)
        flood(net.to_server, ecn=ECT_0)
        flood(net.to_client, ecn=ECT_0)
        runs.append(net.trace)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_rebinding_gives_the_server_a_new_source():
    net = network(1, rate_bps=None, delay=0, rebind_at=[(1.0, ("203.0.113.9", 9))])
    sources = [datagram.source for _, datagram in flood(net.to_server, 4, gap=0.5)]
    assert sources == [C, C, ("203.0.113.9", 9), ("203.0.113.9", 9)]


def test_rebinding_closes_the_old_mapping():
    """What is sent to the address of before is lost, also if it is on its way."""
    new = ("192.0.2.1", 40001)
    net = network(1, rate_bps=None, delay=0.1, rebind_at=[(1.0, new)])
    link = net.to_client
    link.send(0.8, b"in time", S, C)
    link.send(0.95, b"overtaken", S, C)
    link.send(1.2, b"new", S, new)
    link.send(1.2, b"old", S, C)
    assert [datagram[0] for datagram in link.deliver(2.0)] == [b"in time", b"new"]
    assert link.counts["unreachable"] == 2
    assert {entry[6] for entry in _noted(link, "delivered")} == {C}


def test_rebindings_change_ports_or_addresses():
    ports = rebindings(count=3)
    assert ports == [
        (1.0, ("192.0.2.1", 40001)),
        (6.0, ("192.0.2.1", 40002)),
        (11.0, ("192.0.2.1", 40003)),
    ]
    assert rebindings(count=1, addresses=True) == [(1.0, ("192.0.2.2", 40001))]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_builds_on_the_base(name):
    net = scenario(name, 1)
    assert net.to_server.delay == net.to_client.delay == 0.015
    assert net.to_client.rate_bps == 10e6
    assert net.to_client.queue_bytes == 37500


def test_a_scenario_can_be_changed_in_one_direction():
    net = scenario("drop-rate", 1, delay=0.1, to_client={"loss": 0.5})
    assert (net.to_server.loss, net.to_client.loss) == (0.02, 0.5)
    assert net.to_server.delay == 0.1
