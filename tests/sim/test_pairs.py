"""Pairs of real ends over the simulated network: aioquic's, ours, and both mixes.

The pair of two aioquic ends is the baseline: what it cannot do, the network or the
test may be to blame.
"""

import random

import pytest

from tests.sim.ends import AioquicClient, AioquicServer
from tests.sim.link import (
    SCENARIOS,
    network,
    rebindings,
    scenario,
)
from tests.sim.ours import OurClient, OurServer
from tests.sim.pair import Pair, drive
from tests.sim.traffic import Traffic, Transfer, bulk, mixed

CLIENTS = {"aioquic": AioquicClient, "ours": OurClient}
SERVERS = {"aioquic": AioquicServer, "ours": OurServer}

COMBINATIONS = [f"{client}-{server}" for client in CLIENTS for server in SERVERS]
INVALID_TOKEN = 0x0B

# Few, so that the quick suite stays quick; the soak has more.
HANDSHAKE_SEEDS = range(1, 7)
TRANSFER_SEEDS = range(1, 3)
NETWORK_SEEDS = range(100, 110)


@pytest.fixture(params=COMBINATIONS)
def combination(request):
    """Name who is the client and who the server."""
    return request.param


def make_pair(combination, net, traffic=None, *, retry=False, **settings):
    client, server = combination.split("-")
    return Pair(
        CLIENTS[client](**settings), SERVERS[server](retry=retry, **settings),
        net, traffic,
    )  # fmt: skip


def connect(pair, max_time=60.0):
    """Drive until both ends are connected."""
    drive(
        pair,
        until=lambda pair: pair.connected or pair.client.closed or pair.server.closed,
        max_time=max_time,
    )
    assert pair.connected, pair.describe()
    return pair.now


def close(pair, end=None, code=7, reason="bye"):
    """Close one end, drive until both have given up, see that they agree."""
    if not (pair.client.closed or pair.server.closed):
        (end or pair.client).close(code, reason)
        (end or pair.client).touched = True
    # A server without a finished handshake has nothing to tell its application.
    drive(
        pair,
        until=lambda pair: (
            pair.closed or (pair.client.closed and not pair.server.connected)
        ),
    )
    if pair.closed:
        assert pair.client.closed.agrees_with(pair.server.closed), pair.describe()


def finish(pair, max_time=300.0):
    """Drive until the traffic is done or the connection is; return the first time."""
    drive(
        pair,
        until=lambda pair: (
            pair.application.done or pair.client.closed or pair.server.closed
        ),
        max_time=max_time,
    )
    return pair.now


def complete(pair, **limits):
    """Drive the traffic to its end, close, return how long the traffic took."""
    took = finish(pair, **limits)
    assert pair.application.done, pair.describe()
    close(pair)
    return took


# The handshake.


@pytest.mark.parametrize("retry", [False, True], ids=["plain", "retry"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_handshake(combination, name, retry):
    """Every scenario lets a connection come up, with and without Retry."""
    pair = make_pair(combination, scenario(name, 1), retry=retry)
    connect(pair)
    close(pair)


@pytest.mark.parametrize("seed", HANDSHAKE_SEEDS)
@pytest.mark.parametrize("faults", [{"loss": 0.3, "burst": 3}, {"corrupt": 0.3}])
def test_handshake_through_heavy_faults(combination, faults, seed):
    """Thirty in a hundred lost or damaged: a connection still comes up."""
    pair = make_pair(
        combination, network(seed, **faults), retry=bool(seed % 2), idle_timeout=60.0
    )
    connect(pair, max_time=120)
    close(pair)


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_handshake_without_one_datagram(combination, direction, number):
    """Any one of the first datagrams may be lost."""
    net = network(1, **{direction: {"droplist": [number]}})
    pair = make_pair(combination, net)
    assert connect(pair) < 5
    close(pair)


def test_handshake_over_a_long_path(combination):
    """750 ms one way; retransmissions are no reason to give up."""
    pair = make_pair(combination, network(1, delay=0.75))
    assert connect(pair) < 10
    close(pair)


@pytest.mark.parametrize("number", range(1, 4))
def test_server_sends_at_most_three_times_what_it_got(combination, number):
    """An address that is not validated is not worth more (RFC 9000 section 8.1)."""
    net = network(1, to_server={"droplist": range(number + 1, number + 8)})
    pair = make_pair(combination, net)
    drive(pair, until=lambda pair: pair.now > 3 or pair.connected, max_time=10)
    got = sent = 0
    for _, link, what, number_, size, *_ in net.trace:
        if link == "to server" and what == "delivered":
            got += size
            if number_ > number:
                break
        elif link == "to client" and what == "sent":
            sent += size
        assert sent <= 3 * got


# Bytes.


@pytest.mark.parametrize("seed", TRANSFER_SEEDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_mixed_transfers(combination, name, seed):
    """Every byte arrives once and in order; resets and stops reach the other end."""
    pair = make_pair(combination, scenario(name, seed), mixed(seed))
    complete(pair)


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": 0.05, "burst": 3},
        {"reorder": 0.2, "duplicate": 0.1},
        {"corrupt": 0.05},
        {"blackhole": [(0.2, 1.2)]},
        {"rebind_at": rebindings(first=0.2, every=0.3)},
        {"rebind_at": rebindings(first=0.2, every=0.3, addresses=True)},
        {"ecn_mark": 0.05},
        {"mtu": 1280},
        {"queue_bytes": 4000},
    ],
    ids=[
        "clean", "loss", "disorder", "damage", "blackhole", "rebind-port",
        "rebind-addr", "ecn", "mtu", "short-queue",
    ],
)  # fmt: skip
def test_bulk_transfer(combination, changes, sender):
    """One big stream, either way, through one fault at a time."""
    traffic = bulk(300_000, sender)
    if "rebind_at" in changes:
        # A client that only acknowledges has nothing to say when all that the server
        # sends goes to where it was.
        traffic.requests.append(Transfer("client", 40, chunk=1, pause=0.2))
    pair = make_pair(combination, network(2, **changes), traffic)
    complete(pair, max_time=120)


@pytest.mark.parametrize("sender", ["client", "server"])
def test_a_clean_link_is_filled(combination, sender):
    """A megabyte at 10 Mbit/s takes at least 0.8 s, and not twice that."""
    pair = make_pair(combination, network(1), bulk(1_000_000, sender))
    assert 0.8 < complete(pair) < 1.6


@pytest.mark.parametrize("keep_alive", [0.0, 2.0])
def test_keep_alive_finds_a_client_behind_a_new_address(keep_alive):
    """A client that only waits is lost behind a new address, unless it says a word."""
    net = network(1, rebind_at=[(0.5, ("192.0.2.9", 9))])
    answer = Transfer("server", 50_000, start=1.0)
    traffic = Traffic([Transfer("client", 10, answer=answer)])
    client = OurClient(keep_alive=keep_alive, idle_timeout=20.0)
    pair = Pair(client, OurServer(idle_timeout=20.0), net, traffic)
    finish(pair)
    assert traffic.done is bool(keep_alive)
    close(pair)


def test_many_streams_pass_the_limit(combination):
    """More streams than the peer allows at once wait for their turn."""
    requests = [
        Transfer("client", 100, answer=Transfer("server", 100)) for _ in range(300)
    ]
    complete(make_pair(combination, network(1), Traffic(requests)))


def test_streams_without_bytes_end(combination):
    """A FIN alone is an end."""
    traffic = Traffic([Transfer("client", 0, answer=Transfer("server", 0))])
    complete(make_pair(combination, network(1, loss=0.1), traffic))


def test_small_windows_are_no_dead_end(combination):
    """Flow control far below the size of a transfer slows it down, no more."""
    pair = make_pair(
        combination, network(1, loss=0.02), bulk(200_000, "server"),
        max_data=20_000, max_stream_data=8_000,
    )  # fmt: skip
    complete(pair)


# The end.


@pytest.mark.parametrize("closer", ["client", "server"])
@pytest.mark.parametrize("code", [0, 7, 2**62 - 1])
def test_both_ends_tell_the_same_close(combination, closer, code):
    """Code and reason arrive; who closed is told right."""
    pair = make_pair(combination, network(1))
    connect(pair)
    end = getattr(pair, closer)
    other = pair.server if end is pair.client else pair.client
    close(pair, end, code, "enough")
    assert end.closed == ("local", code, True, "enough", False)
    assert other.closed == ("remote", code, True, "enough", False)


def test_both_ends_may_close_at_once(combination):
    """Two closes that cross leave no end behind."""
    pair = make_pair(combination, network(1))
    connect(pair)
    pair.server.close(1, "server")
    pair.server.touched = True
    close(pair, pair.client, 2, "client")


def test_a_dead_path_ends_by_timeout(combination):
    """When nothing arrives any more, both ends give up on their own."""
    pair = make_pair(
        combination, network(1, blackhole=[(1.0, 1e9)]),
        Traffic([Transfer("client", 10_000_000)]), idle_timeout=10.0,
    )  # fmt: skip
    assert finish(pair) < 30
    close(pair)
    assert pair.client.closed.timed_out
    assert pair.server.closed.timed_out


def test_a_server_that_is_not_there_is_given_up(combination):
    """Without any answer a client gives up by its idle timeout."""
    pair = make_pair(combination, network(1, blackhole=[(0.0, 1e9)]), idle_timeout=10.0)
    drive(pair, until=lambda pair: pair.client.closed, max_time=60)
    assert pair.client.closed.timed_out
    assert not pair.server_started


def test_an_idle_connection_ends_by_timeout(combination):
    """Nothing to say is a reason to end, too (RFC 9000 section 10.1)."""
    pair = make_pair(combination, network(1), idle_timeout=5.0)
    start = connect(pair)
    drive(pair, until=lambda pair: pair.closed, max_time=60)
    assert 4.9 < pair.now - start < 6.5
    assert pair.client.closed.timed_out
    assert pair.server.closed.timed_out


# The simulation itself.


@pytest.mark.parametrize("name", ["drop-rate", "corrupt-rate", "rebind-addr"])
def test_same_seed_same_run(combination, name):
    """Two runs of one seed have one trace; randomness inside the ends is no matter."""
    traces = []
    for _ in range(2):
        net = scenario(name, 5)
        complete(make_pair(combination, net, mixed(5)))
        traces.append(net.trace)
    assert traces[0] == traces[1]


# Any network.


def any_network(seed):
    """Build a network with every fault in a measure that a seed says."""
    choose = random.Random(f"{seed}/network")

    def some(most):
        return choose.choice((0, 0, choose.random() * most))

    def direction():
        return {
            "loss": some(0.15),
            "burst": choose.choice((None, 3, 8)),
            "reorder": some(0.3),
            "duplicate": some(0.2),
            "corrupt": some(0.1),
            "ecn_mark": some(0.3),
            "mtu": choose.choice((1500, 1500, 1280)),
        }

    begin = choose.random() * 3
    return network(
        seed,
        to_server=direction(),
        to_client=direction(),
        delay=choose.choice((0.0, 0.001, 0.02, 0.1, 0.3)),
        rate_bps=choose.choice((None, 1e6, 10e6, 100e6)),
        queue_bytes=choose.choice((10_000, 40_000, 1_000_000)),
        blackhole=choose.choice(((), ((begin, begin + choose.random() * 3),))),
        rebind_at=choose.choice(
            (
                (),
                rebindings(
                    first=choose.random(),
                    every=choose.choice((0.5, 5.0)),
                    addresses=choose.random() < 0.5,
                ),
            )
        ),
    )


def run_any(combination, seed, **size):
    """Run mixed traffic over any network: done, or an end that both can explain."""
    choose = random.Random(f"{seed}/ends")
    pair = make_pair(
        combination,
        any_network(seed),
        mixed(seed, **size),
        retry=choose.random() < 0.5,
        idle_timeout=60.0,
        congestion_control_algorithm=choose.choice(("reno", "cubic")),
    )
    finish(pair, max_time=1000)
    if not pair.application.done:
        # A client that waits in silence behind a new address is lost, and a token
        # from Retry is good for one address only (RFC 9000 section 8.1.4).
        assert pair.network.to_server.rebind_at, pair.describe()
        ending = pair.client.closed or pair.server.closed
        assert ending.timed_out or ending.code == INVALID_TOKEN, pair.describe()
    close(pair)


@pytest.mark.parametrize("seed", NETWORK_SEEDS)
def test_any_network(combination, seed):
    """No network makes bytes wrong or an end hang."""
    run_any(combination, seed)


@pytest.mark.parametrize("seed", [23, 84, 102])
def test_a_move_while_a_path_is_validated(combination, seed):
    """The answer to a challenge may come from yet another address."""
    run_any(combination, seed, count=20, max_size=150_000)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(10))
def test_any_network_for_long(combination, block):
    """The same with more streams, more bytes and many more networks."""
    for seed in range(1000 + 25 * block, 1025 + 25 * block):
        run_any(combination, seed, count=30, max_size=300_000)
