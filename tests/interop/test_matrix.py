"""The matrix of docs/internals/interop.md: our engine and others', both ways."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aioquic.quic.packet import QuicPacketType

from tests.interop import matrix
from tests.interop.aioquic_end import Aioquic
from tests.interop.ends import Ends
from tests.interop.ours import large_identity
from tests.interop.quicgo_end import QuicGo
from tests.interop.relay import kinds_of
from tests.interop.wheel_end import Wheel
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
CHACHA20 = 0x1303
VERSION_2 = 0x6B3343CF
UNKNOWN_VERSION = 0x1A2A3A4A
CAPABLE = 2
ECT0 = 2
SEED = int(os.environ.get("LIGHTNING_INTEROP_SEED", "4"))
LARGE = large_identity()

WRITTEN: set[str] = set()


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    stack, role = request.param
    if stack == "quic-go":
        program = request.getfixturevalue("quicgo")
        made = Ends(stack, role, lambda: QuicGo(program))
    elif stack == "btlightning":
        peer = request.getfixturevalue("peer")
        made = Ends(stack, role, lambda: Wheel(peer))
    else:
        made = Ends(stack, role, Aioquic)
    yield made
    made.close()


def case(*slow: str) -> Any:
    """Run a test with every other end of its case; those stacks are slow in it."""

    def mark(function: Any) -> Any:
        name = function.__name__.removeprefix("test_").replace("_", "-")
        WRITTEN.add(name)
        return pytest.mark.parametrize(
            "ends",
            [
                pytest.param(
                    (stack, role),
                    id=f"{stack}-{role}",
                    marks=[pytest.mark.matrix]
                    if stack == "quic-go" or stack in slow
                    else [],
                )
                for stack, role in matrix.tested(name)
            ],
            indirect=True,
        )(function)

    return mark


@case()
def test_handshake(ends):
    """Both ends are connected, agree on everything, and bytes pass."""
    pair = ends.connect()
    for size in (0, 1, 1000):
        pair.echo(size)
    assert pair.mine.is_confirmed
    if pair.theirs is not None and not ends.framed:
        state = pair.ours.result(pair.other.state(pair.theirs))
        assert state["version"] == 1
        assert state["suite"] == pair.mine.suite


@case("aioquic", "btlightning")
def test_transfer(ends):
    """Ten megabytes arrive, each way."""
    pair = ends.connect()
    pair.echo(10 * MEGABYTE)
    assert pair.mine.stats()["mtu"] == 1452


@case("aioquic")
def test_multiplexing(ends):
    """More streams than may be open at a time are all answered."""
    pair = ends.connect()
    pair.echo(100, 1000)


@case()
def test_retry(ends):
    """The connection comes about through a Retry packet."""
    theirs = {"retry": True} if ends.serving and not ends.framed else {}
    (pair,), relay = ends.connect_through_relay({"retry": not ends.serving}, theirs)
    pair.echo(1000)
    assert relay.saw(QuicPacketType.RETRY, to_server=False)


@case()
def test_addresstoken(ends):
    """Who was here before needs no Retry."""
    theirs = {"retry": True} if ends.serving and not ends.framed else {}
    ours, address = ends.listen({} if ends.serving else {"retry": True}, theirs)
    relay = ends.relay(address)
    (pair,) = ends.dial(ours, relay.address)
    pair.echo(1000)
    assert relay.saw(QuicPacketType.RETRY, to_server=False)
    relay.passed.clear()
    if ends.serving:
        ours.until(lambda: pair.mine.token)
        (again,) = ours.dial(relay.address, token=pair.mine.token)
        ours.echo(again, 1000)
    elif ends.framed:
        # Its endpoint keeps the token, and dials again when it is asked for something.
        pair.mine.close()
        assert ours.result(pair.other.ended(pair.theirs))
        pair.echo(1000)
    else:
        token = ours.result(pair.other.token(pair.theirs))
        (again,) = ends.dial(ours, relay.address, token=token)
        again.echo(1000)
    assert relay.saw(QuicPacketType.HANDSHAKE, to_server=False)
    assert not relay.saw(QuicPacketType.RETRY, to_server=False)


@case()
def test_resumption(ends):
    """Who comes back with a ticket, or to one who gave it a ticket, starts anew."""
    if ends.serving:
        pair = ends.connect()
        pair.echo(1000)
        (again,) = ends.dial(pair.ours, pair.mine.address)
        again.echo(1000)
        # Only a full handshake has it.
        assert again.mine.certificate == pair.mine.certificate != b""
        return
    own = get_ticket(ends)
    assert ends.other.state(own).result(10)["resumed"]
    pair = ends.connect(theirs=with_ticket(ends))
    pair.echo(1000)
    assert not pair.ours.result(pair.other.state(pair.theirs))["resumed"]


def get_ticket(ends: Ends) -> Any:
    """Have the other client get a session ticket from its own server, and use it."""
    address = ends.other.listen()
    first = ends.other.dial(address).result(10)
    ends.other.echo(first, 1000).result(10)
    until(lambda: ends.stack == "quic-go" or ends.other.tickets)
    second = ends.other.dial(address, **with_ticket(ends)).result(10)
    ends.other.echo(second, 1000).result(10)
    return second


def with_ticket(ends: Ends) -> dict[str, Any]:
    """Return what makes a client use its newest ticket; quic-go does by itself."""
    if ends.stack == "quic-go":
        return {}
    return {"session_ticket": ends.other.tickets[-1]}


@case()
def test_zerortt(ends):
    """Data before the handshake is dropped, and arrives after it."""
    get_ticket(ends)
    theirs = {"early": True, **with_ticket(ends)}
    (pair,), relay = ends.connect_through_relay(theirs=theirs)
    assert relay.saw(QuicPacketType.ZERO_RTT, to_server=True)
    if ends.stack == "quic-go":
        assert pair.theirs["rejected"]
    pair.echo(1000)
    assert not pair.ours.result(pair.other.state(pair.theirs))["early"]


@case()
def test_keyupdate(ends):
    """Both change keys; aioquic when told to, the others after some packets."""
    pair = ends.connect()
    pair.echo(1000)
    if ends.stack == "aioquic":
        pair.ours.result(pair.other.update(pair.theirs))
    for _ in range(20):
        pair.echo(MEGABYTE // 5)
        if pair.mine.stats()["key_updates"]:
            break
    updates = pair.mine.stats()["key_updates"]
    assert updates >= 1
    # Not before the other end has acknowledged a packet with the newest keys, and
    # not soon after that either.
    deadline = time.monotonic() + 10
    while not pair.mine.update_keys():
        assert time.monotonic() < deadline
        pair.echo(1000)
    pair.echo(MEGABYTE // 5)
    assert pair.mine.stats()["key_updates"] > updates


@case()
def test_versionnegotiation(ends):
    """The server's list is answered by going on, whoever the list is for."""
    listed = []

    def meddle(to_server: bool, number: int, data: bytes) -> bytes:
        # Nobody knows this version; its client did not choose it, and knows better.
        if not to_server and QuicPacketType.VERSION_NEGOTIATION in kinds_of(data):
            listed.append(data)
        if to_server and not listed:
            return data[:1] + UNKNOWN_VERSION.to_bytes(4) + data[5:]
        return data

    ours = {"initial_rtt": 0.05}
    (pair,), relay = ends.connect_through_relay(ours, meddle=meddle)
    assert listed
    pair.echo(1000)
    if ends.serving or ends.framed:
        return
    # And one who means it.
    relay.meddle = None
    relay.passed.clear()
    (pair,) = ends.dial(pair.ours, relay.address, versions=[VERSION_2, 1])
    assert relay.saw(QuicPacketType.VERSION_NEGOTIATION, to_server=False)
    assert pair.ours.result(pair.other.state(pair.theirs))["version"] == 1
    pair.echo(1000)


@case()
def test_noversion(ends):
    """Our client gives up as soon as it is told that there is no common version."""
    ours, address = ends.listen({}, {"versions": [VERSION_2]})
    connection = ours.end.connect(address, time.monotonic())
    ours.until(lambda: connection.end)
    assert connection.end.initiator == "version"


@case()
def test_chacha20(ends):
    """With one suite on our side, there is no choice."""
    pair = ends.connect({"cipher_suites": (CHACHA20,)})
    pair.echo(MEGABYTE)
    assert pair.mine.suite == CHACHA20


@case()
def test_zerocid(ends):
    """Who has no connection IDs is found by its address."""
    pair = ends.connect(theirs={"cid": 0})
    pair.echo(MEGABYTE // 10, 3)


@case()
def test_longcid(ends):
    """The longest connection IDs that there are."""
    pair = ends.connect(theirs={"cid": 20})
    pair.echo(MEGABYTE // 10, 3)


@case()
def test_rebind_port(ends):
    """The connection survives a new port, and stays the same one."""
    rebind(ends, "127.0.0.1")


@case()
def test_rebind_addr(ends):
    """The connection survives a new address."""
    rebind(ends, "127.0.0.2")


def rebind(ends: Ends, host: str) -> None:
    (pair,), relay = ends.connect_through_relay()
    pair.echo(100_000)
    for _ in range(2):
        relay.rebind(host)
        if ends.serving and ends.framed:
            # There a login belongs to an address.
            pair.ours.log_in(pair.mine)
        pair.echo(100_000)
    assert pair.mine.end is None
    if not ends.serving:
        assert pair.ours.connections == [pair.mine]
        assert pair.mine.address[0] == host
        assert pair.mine.stats()["path_changes"] >= 2


@case()
def test_connectionmigration(ends):
    """A client that probes another path and goes over to it is followed."""
    pair = ends.connect(theirs={"cid": 8})
    pair.echo(100_000)
    before = pair.mine.address
    pair.ours.result(pair.other.migrate(pair.theirs, 8))
    pair.echo(100_000)
    assert pair.mine.address != before
    assert pair.mine.stats()["path_changes"] == 1


@case()
def test_statelessreset(ends):
    """A restarted server with the same secret is understood at once."""
    secret = bytes(range(32))
    if ends.serving:
        theirs = {"reset_key": secret.hex()}
        pair = ends.connect(theirs=theirs)
        pair.echo(1000)
        ends.other.vanish()
        ends.replace().listen(pair.mine.address, **theirs)
        # A PING is too small to be answered: a reset is smaller than its cause.
        pair.mine.send(pair.mine.open_stream(), bytes(1000))
        pair.ours.until(lambda: pair.mine.end)
        assert pair.mine.end.initiator == "reset"
        return
    pair = ends.connect({"secret": secret})
    pair.echo(1000)
    port = pair.ours.address[1]
    pair.ours.vanish()
    again = ends.server(port=port, secret=secret)
    said = pair.other.echo(pair.theirs, 1000)
    assert again.result(pair.other.ended(pair.theirs))["kind"] == "reset"
    again.until(said.done)
    assert said.exception() is not None


@case("aioquic", "btlightning")
def test_handshakeloss(ends):
    """Ten handshakes in spite of much loss."""
    handshakes(ends, loss=0.2)


@case("aioquic", "btlightning")
def test_handshakecorruption(ends):
    """Ten handshakes in spite of many wrong bits."""
    handshakes(ends, corruption=0.2)


def handshakes(ends: Ends, **faults: float) -> None:
    print(f"LIGHTNING_INTEROP_SEED={SEED}")
    ours = {"initial_rtt": 0.1}
    pairs, relay = ends.connect_through_relay(ours, count=10, seed=SEED, **faults)
    for pair in pairs:
        pair.echo(1000)
    assert relay.spoilt > 10


@case("aioquic")
def test_transferloss(ends):
    """A megabyte each way in spite of loss."""
    transfer(ends, loss=0.03)


@case("aioquic")
def test_transfercorruption(ends):
    """A megabyte each way in spite of wrong bits."""
    transfer(ends, corruption=0.03)


@case("aioquic")
def test_transferreordering(ends):
    """A megabyte each way, out of order and some of it twice."""
    transfer(ends, reordering=0.05, duplication=0.05)


def transfer(ends: Ends, **faults: float) -> None:
    print(f"LIGHTNING_INTEROP_SEED={SEED}")
    (pair,), relay = ends.connect_through_relay(seed=SEED, **faults)
    pair.echo(MEGABYTE)
    assert pair.mine.end is None
    assert relay.spoilt > 10


@case("aioquic", "btlightning")
def test_blackhole(ends):
    """A transfer goes on after a second in which nothing arrives anywhere."""
    dark = [0.0]

    def meddle(to_server: bool, number: int, data: bytes) -> bytes | None:
        if not dark[0] and number == 400:
            dark[0] = time.monotonic()
        return None if dark[0] <= time.monotonic() < dark[0] + 1 else data

    (pair,), _ = ends.connect_through_relay(meddle=meddle)
    pair.echo(2 * MEGABYTE)
    assert pair.mine.end is None
    assert dark[0]


@case()
def test_ecn(ends):
    """Marks go both ways, and the counts of them are believed."""
    pair = ends.connect()
    pair.echo(100_000)
    assert pair.mine.stats()["ecn_state"] == CAPABLE
    assert pair.ours.ecn[ECT0] > 10


@case()
def test_close(ends):
    """A close is told at once, with its code and reason, whoever closes."""
    pair = ends.connect()
    pair.echo(1000)
    pair.mine.close("enough", 7)
    if ends.framed and ends.serving:
        pair.ours.until(lambda: pair.other.stats()["total_connections"] == "0")
    else:
        end = pair.ours.result(pair.other.ended(pair.theirs))
        assert (end["kind"], end["code"], end["reason"]) == ("application", 7, "enough")

    address = pair.mine.address if ends.serving else pair.ours.address
    (pair,) = ends.dial(pair.ours, address)
    if not ends.framed:
        told = pair.other.close(pair.theirs, 9, "me too")
        expected = (9, "me too")
    elif ends.serving:
        told = pair.other.close_server()
        expected = (0, "server_shutdown")
    else:
        told = pair.other.close(pair.theirs)
        expected = (0, "client_shutdown")
    pair.ours.until(lambda: pair.mine.end)
    assert pair.mine.end.initiator == "peer"
    assert pair.mine.end.application
    assert (pair.mine.end.code, pair.mine.end.reason) == expected
    pair.ours.result(told)


@case("aioquic", "btlightning")
def test_amplificationlimit(ends):
    """A server that may not say more waits, and a client that hears nothing goes on.

    Nothing reaches the client before it has sent four datagrams, so that the server
    says all that it may say to an address that has not answered.
    """
    heard = sent = 0
    ratios = [0.0]

    def meddle(to_server: bool, number: int, data: bytes) -> bytes | None:
        nonlocal heard, sent
        if to_server:
            heard += len(data) if number < 4 else 1 << 30
            return data
        sent += len(data)
        ratios.append(sent / heard)
        return None if heard < 1 << 30 else data

    ours, theirs = {"initial_rtt": 0.1}, {}
    if not ends.serving:
        ours["identity"] = LARGE
    elif ends.stack == "aioquic":
        theirs["chain"] = [LARGE.certificate]
    elif ends.stack == "quic-go":
        theirs["padding"] = 13_000
    (pair,), _ = ends.connect_through_relay(ours, theirs, meddle=meddle)
    pair.echo(1000)
    if not ends.serving:
        # It would have had more to say.
        assert 2 < max(ratios) <= 3


def test_every_case_is_written():
    assert set(matrix.CASES) == WRITTEN
    assert set(matrix.LEFT_OUT) <= WRITTEN


def test_the_table_in_the_documentation_is_this_matrix():
    page = (ROOT / "docs/internals/interop.md").read_text()
    assert matrix.table() in page
