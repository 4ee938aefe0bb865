"""The UDP socket: batches, cutting by the kernel, ECN, and what bounces."""

import contextlib
import errno
import gc
import os
import select
import socket

import pytest

from lightning._core.io.udp import Udp
from tests.support.waiting import until

V4, V6 = socket.AF_INET, socket.AF_INET6
UDP_GRO = 104
HOSTS = {V4: "127.0.0.1", V6: "::1"}


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    """Use what the system has, also where the whole suite does without."""
    monkeypatch.delenv("LIGHTNING_PLAIN_UDP", raising=False)


def bound(family=V4, host=None):
    """Return a bound, non-blocking socket and its address."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == V6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host or HOSTS[family], 0))
    return sock, sock.getsockname()[:2]


def udp(family=V4, host=None, **options):
    """Return a `Udp` and its address."""
    sock, address = bound(family, host)
    return Udp(sock.detach(), **options), address


def without(*offloads):
    """Return keywords that turn things off."""
    return dict.fromkeys(offloads, False)


@pytest.fixture(params=["all", "no offloads", "plain"])
def way(request):
    """Keywords for how a socket works."""
    return {"all": {}, "no offloads": without("gso", "gro"), "plain": {"plain": True}}[
        request.param
    ]


def closed_port():
    """Return an address where nobody listens."""
    sock, address = bound()
    sock.close()
    return address


def received(end, count):
    """Wait for a number of datagrams and return them."""
    found = []

    def enough():
        found.extend(end.receive())
        return len(found) >= count

    until(enough)
    return found


@pytest.mark.parametrize("family", [V4, V6])
@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_a_datagram_arrives_with_its_source_and_ecn_bits(family, ecn, way):
    here, address = udp(family, **way)
    there, target = udp(family, **way)
    assert here.send(b"hello", target, ecn=ecn)
    assert here.flush()
    assert received(there, 1) == [(b"hello", address, ecn)]
    assert there.receive() == []


def test_ecn_bits_of_an_ipv4_client_on_an_ipv6_socket():
    """Both to it and from it, whose address is mapped."""
    here, address = udp(V6, "::")
    there, target = udp(V4)
    there.send(b"ping", ("127.0.0.1", address[1]), ecn=2)
    there.flush()
    ((data, source, ecn),) = received(here, 1)
    assert (data, source, ecn) == (b"ping", ("::ffff:7f00:1", target[1]), 2)
    here.send(b"pong", source, ecn=1)
    here.flush()
    assert received(there, 1)[0][2] == 1


@pytest.mark.parametrize(
    ("family", "host", "client", "server"),
    [
        (V4, "0.0.0.0", V4, "127.0.0.2"),
        (V6, "::", V4, "127.0.0.2"),
        (V6, "::", V6, "::1"),
        (V4, "127.0.0.2", V4, "127.0.0.2"),
    ],
)
def test_an_answer_leaves_from_the_address_that_was_asked(
    family, host, client, server, way
):
    """The host may have several, and the peer knows one of them."""
    here, address = udp(family, host, **way)
    there, _ = udp(client, **way)
    data = os.urandom(5000)
    for ecn in (0, 2):
        there.send(data, (server, address[1]), segment=1200, ecn=ecn)
        there.flush()
        assert len(received(here, 5)) == 5
        assert here.answer(data, segment=1200, ecn=ecn)
        assert here.flush()
        found = received(there, 5)
        assert b"".join(piece for piece, _, _ in found) == data
        assert {(source, mark) for _, source, mark in found} == {
            ((server, address[1]), ecn)
        }


def test_an_answer_leaves_also_when_that_address_is_gone(way):
    """From the one that the system chooses; and the kernel goes on cutting."""
    here, address = udp(V4, "0.0.0.0", **way)
    there, _ = udp(**way)
    there.send(b"q", ("127.0.0.2", address[1]))
    there.flush()
    assert received(here, 1)
    before = here.stats()["gso"]
    data = os.urandom(5000)
    assert here.answer(data, segment=1200)
    here.fail_next(errno.EINVAL)
    assert here.flush()
    assert received(there, 5) == [
        (data[i : i + 1200], ("127.0.0.1", address[1]), 0) for i in range(0, 5000, 1200)
    ]
    assert here.stats()["gso"] == before
    assert here.stats()["not_sent"] == 0


def test_ecn_can_be_off():
    here, _ = udp(ecn=False)
    there, target = udp()
    here.send(b"x", target, ecn=2)
    here.flush()
    assert received(there, 1)[0][2] == 0
    assert not here.stats()["ecn"]


@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("size", [1, 1199, 1200, 1201, 3601, 60_000])
def test_bytes_are_cut_into_segments(gso, gro, size):
    """Into datagrams of one size, but for the last; by the kernel or by us."""
    here, _ = udp(gso=gso)
    there, target = udp(gro=gro)
    data = os.urandom(size)
    here.send(data, target, segment=1200)
    assert here.flush()
    pieces = [data[i : i + 1200] for i in range(0, size, 1200)]
    assert [piece for piece, _, _ in received(there, len(pieces))] == pieces
    stats = here.stats()
    assert stats["sent"] == len(pieces)
    assert stats["send_calls"] == (1 if stats["gso"] else (len(pieces) + 31) // 32)


def numbered(end, count):
    """Say if what arrives is datagrams with the numbers up to one."""
    return [data for data, _, _ in received(end, count)] == [
        bytes([n]) for n in range(count)
    ]


@pytest.mark.parametrize("gro", [True, False])
def test_one_call_sends_and_one_receives_a_batch(gro):
    """To several addresses, and with ECN bits of each."""
    here, _ = udp()
    ends = [udp(gro=gro) for _ in range(2)]
    for n in range(16):
        here.send(bytes([n // 2]), ends[n % 2][1], ecn=n % 4)
    here.flush()
    assert here.stats()["sent"] == 16
    assert here.stats()["send_calls"] == 1
    for k, (there, _) in enumerate(ends):
        found = there.receive()
        assert [data for data, _, _ in found] == [bytes([n]) for n in range(8)]
        assert [ecn for _, _, ecn in found] == [k, k + 2] * 4
        assert there.stats()["receive_calls"] == 1


def test_runs_of_several_peers_leave_with_one_call():
    """Each cut to a size of its own."""
    here, _ = udp()
    if not here.stats()["gso"]:
        pytest.skip("this kernel cuts nothing up")
    data = os.urandom(10_000)
    ends = [udp() for _ in range(3)]
    for k, (_, target) in enumerate(ends):
        assert here.send(data, target, segment=1200 + k)
    assert here.flush()
    assert here.stats()["send_calls"] == 1
    for k, (there, _) in enumerate(ends):
        pieces = [piece for piece, _, _ in received(there, 9)]
        assert {len(piece) for piece in pieces[:-1]} == {1200 + k}
        assert b"".join(pieces) == data


def test_a_run_is_received_as_it_was_sent():
    """One message of the kernel, with the ECN bits of all its datagrams."""
    here, address = udp()
    there, target = udp()
    if not (there.stats()["gro"] and here.stats()["gso"]):
        pytest.skip("this kernel keeps no runs")
    data = os.urandom(60_000)
    for ecn in (2, 3):
        assert here.send(data, target, segment=1452, ecn=ecn)
    assert here.flush()
    found = there.receive()
    assert there.stats()["receive_calls"] == 1
    assert len(found) == there.stats()["received"] == 2 * 42
    assert b"".join(piece for piece, _, _ in found) == data + data
    assert {(source, len(piece)) for piece, source, _ in found} == {
        (address, 1452),
        (address, 60_000 % 1452),
    }
    assert [ecn for _, _, ecn in found] == [2] * 42 + [3] * 42


def test_a_run_of_datagrams_longer_than_ours_is_dropped():
    here, _ = udp()
    there, target = udp()
    here.send(bytes(6200), target, segment=3000)
    here.send(bytes(100), target)
    here.flush()
    assert [len(data) for data, _, _ in received(there, 2)] == [200, 100]


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_a_system_that_fails_to_keep_runs_is_not_asked_again(error):
    here, _ = udp()
    sock, target = bound()
    copy = socket.socket(fileno=os.dup(sock.fileno()))
    there = Udp(sock.detach())
    if not there.stats()["gro"]:
        pytest.skip("this kernel keeps no runs")
    assert copy.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1
    there.fail_receive(error)
    with pytest.raises(OSError, match="bounced"):
        there.receive()
    assert copy.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 0
    copy.close()
    assert (there.stats()["gro"], there.stats()["gro_failed"]) == (False, True)
    data = os.urandom(60_000)
    here.send(data, target, segment=1200)
    here.flush()
    assert b"".join(piece for piece, _, _ in received(there, 50)) == data


def test_another_error_of_receiving_changes_nothing():
    """What was not taken before it is gone; what comes after is received."""
    here, _ = udp()
    there, target = udp()
    before = there.stats()["gro"]
    for n in range(20):
        here.send(bytes([n]), target)
        there.fail_receive(errno.ENOMEM)
        with pytest.raises(OSError, match="bounced"):
            there.receive()
        here.flush()
        assert [data for data, _, _ in received(there, 1)] == [bytes([n])]
    assert there.stats()["gro"] == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_call_that_stops_midway_goes_on_behind_what_failed(after, way):
    """Of five messages one is refused, and no other is lost or sent twice."""
    here, _ = udp(**way)
    targets = [udp() for _ in range(5)]
    for n, (_, target) in enumerate(targets):
        here.send(bytes([n]), target)
    here.fail_next(errno.EPERM, after)
    assert here.flush()
    for n, (there, _) in enumerate(targets):
        if n != after:
            assert received(there, 1)[0][0] == bytes([n])
        assert there.receive() == []
    assert here.errors() == [(targets[after][1], errno.EPERM)]
    assert (here.stats()["sent"], here.stats()["not_sent"]) == (4, 1)


def test_a_socket_that_fills_midway_keeps_the_rest(way):
    """Nothing is lost, sent twice or out of order."""
    here, _ = udp(**way)
    there, target = udp()
    for n in range(20):
        here.send(bytes([n]), target)
    here.fail_next(errno.EAGAIN, 7)
    assert not here.flush()
    assert here.stats()["sent"] == 7
    assert here.flush()
    assert numbered(there, 20)
    assert here.stats()["not_sent"] == 0


def test_the_kernel_says_what_stopped_a_call_with_the_next():
    """A datagram that no interface takes, between others: it alone is lost."""
    here, _ = udp()
    there, target = udp()
    here.send(b"\0", target)
    # No route: a broadcast needs leave.
    here.send(b"x", ("255.255.255.255", 9))
    here.send(b"\1", target)
    assert here.flush()
    assert numbered(there, 2)
    assert here.errors() == [(("255.255.255.255", 9), errno.EACCES)]
    # One call stopped there, two were refused, and one took the rest.
    assert here.stats()["send_calls"] == 4


def test_a_driver_that_fails_midway_cuts_nothing_more():
    """The second of three runs meets EIO; all of them arrive."""
    here, _ = udp()
    if not here.stats()["gso"]:
        pytest.skip("this kernel cuts nothing up")
    there, target = udp()
    data = os.urandom(15_000)
    for k in range(3):
        here.send(data[5000 * k : 5000 * k + 5000], target, segment=1200)
    here.fail_next(errno.EIO, 1)
    assert here.flush()
    assert b"".join(piece for piece, _, _ in received(there, 15)) == data
    assert here.stats()["gso_failed"]
    assert (here.stats()["sent"], here.stats()["not_sent"]) == (15, 0)


@pytest.mark.parametrize("forced", ["argument", "environment"])
def test_a_plain_socket_asks_for_nothing_special(forced, monkeypatch):
    """It works as others do, with a system call for each datagram."""
    if forced == "environment":
        monkeypatch.setenv("LIGHTNING_PLAIN_UDP", "1")
    here, address = udp(plain=forced == "argument")
    there, target = udp(plain=forced == "argument")
    assert here.stats()["plain"]
    assert not here.stats()["gso"]
    assert not there.stats()["gro"]
    data = os.urandom(60_000)
    here.send(data, target, segment=1200, ecn=1)
    here.flush()
    assert here.stats()["send_calls"] == 50
    found = received(there, 50)
    assert found == [(data[i : i + 1200], address, 1) for i in range(0, 60_000, 1200)]
    assert there.receive() == []


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_a_driver_that_cannot_cut_is_not_asked_again(error):
    """What it was given leaves all the same, datagram by datagram."""
    here, _ = udp()
    if not here.stats()["gso"]:
        pytest.skip("this kernel cuts nothing up")
    there, target = udp()
    data = os.urandom(5000)
    here.send(data, target, segment=1200)
    here.fail_next(error)
    assert here.flush()
    assert b"".join(piece for piece, _, _ in received(there, 5)) == data
    assert (here.stats()["gso"], here.stats()["gso_failed"]) == (False, True)
    assert here.stats()["not_sent"] == 0


def test_a_full_socket_keeps_the_rest_for_later():
    here, _ = udp()
    there, target = udp()
    for data in (b"one", b"two"):
        here.send(data, target)
    here.fail_next(errno.EAGAIN)
    assert not here.flush()
    assert here.flush()
    assert [data for data, _, _ in received(there, 2)] == [b"one", b"two"]


def test_an_interrupted_call_is_made_again():
    here, _ = udp()
    there, target = udp()
    here.send(b"x", target)
    here.fail_next(errno.EINTR)
    assert here.flush()
    assert received(there, 1)
    assert here.stats()["not_sent"] == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENETUNREACH, True),
        (errno.EPERM, True),
        (errno.ENOBUFS, False),
        (errno.ENOMEM, False),
        (errno.EMSGSIZE, True),
    ],
)
def test_what_the_system_refuses_is_lost_and_told(error, told):
    """An error that says nothing about the peer is not told; the next one leaves."""
    here, _ = udp()
    there, target = udp()
    here.send(b"lost", target)
    here.send(b"sent", target)
    here.fail_next(error)
    assert here.flush()
    assert [data for data, _, _ in received(there, 1)] == [b"sent"]
    assert here.errors() == ([(target, error)] if told else [])
    assert here.stats()["not_sent"] == 1


def test_only_so_many_bounces_are_remembered():
    """And a train of those that are alike once."""
    here, _ = udp()
    targets = [closed_port() for _ in range(20)]
    for target in targets:
        for _ in range(2):
            here.send(b"x", target)
            here.fail_next(errno.ENETUNREACH)
            here.flush()
    assert here.errors() == [(target, errno.ENETUNREACH) for target in targets[15::-1]]


def test_a_port_where_nobody_listens_is_told():
    here, _ = udp()
    target = closed_port()
    here.send(b"x", target)
    here.flush()
    found = []

    def told():
        with contextlib.suppress(ConnectionRefusedError):
            here.receive()
        found.extend(here.errors())
        return found

    until(told)
    assert found == [(target, errno.ECONNREFUSED)]


def test_an_earlier_error_costs_no_later_datagram(way):
    """The system reports it with the next send, which is made again."""
    sock, _ = bound()
    fd = sock.fileno()
    here = Udp(sock.detach(), **way)
    there, target = udp()
    refused = closed_port()
    here.send(b"x", refused)
    here.flush()
    assert select.select([fd], [], [], 10)[0]
    for n in range(5):
        here.send(bytes([n]), target)
    here.flush()
    assert len(received(there, 5)) == 5
    assert here.errors() == [(refused, errno.ECONNREFUSED)]
    assert here.stats()["not_sent"] == 0
    assert not select.select([fd], [], [], 0)[0], "nothing is left to look at"


def test_an_address_of_another_family_is_no_way_to_go():
    here, _ = udp()
    here.send(b"x", ("::1", 9))
    here.flush()
    assert here.errors() == [(("::1", 9), errno.EAFNOSUPPORT)]


def test_datagrams_longer_than_ours_are_dropped(way):
    """As are empty ones; the ones after them are received."""
    sock, _ = bound()
    there, target = udp(**way)
    for data in (bytes(2049), b"", bytes(60_000), bytes(2048)):
        sock.sendto(data, target)
    assert [len(data) for data, _, _ in received(there, 1)] == [2048]
    sock.close()


def test_fragments_are_not_made():
    """The path's MTU is the engine's to find (RFC 8899)."""
    sock, _ = bound()
    copy = socket.socket(fileno=os.dup(sock.fileno()))
    here = Udp(sock.detach())
    assert here.stats()["ecn"]
    option = copy.getsockopt(socket.IPPROTO_IP, getattr(socket, "IP_MTU_DISCOVER", 10))
    copy.close()
    assert option == 3, "IP_PMTUDISC_PROBE"


def test_the_queue_is_bounded():
    here, _ = udp()
    there, target = udp()
    sent = 0
    while here.send(bytes(1200), target):
        sent += 1
    assert sent == 32
    assert here.flush()
    assert here.send(b"x", target)
    assert here.flush()
    assert len(received(there, 33)) == 33


def test_the_bytes_of_the_queue_are_bounded():
    """A long one that finds no room comes after a flush."""
    here, _ = udp()
    ends = [udp() for _ in range(3)]
    data = os.urandom(65_000)
    sent = [here.send(data, target, segment=1444) for _, target in ends]
    assert sent == [True, True, False]
    assert here.flush()
    assert here.send(data, ends[2][1], segment=1444)
    assert here.flush()
    for there, _ in ends:
        assert b"".join(piece for piece, _, _ in received(there, 46)) == data


@pytest.mark.parametrize("size", [0, 65001])
def test_sizes_that_are_no_datagrams(size):
    here, address = udp()
    with pytest.raises(ValueError, match="from 1 to 65000 bytes"):
        here.send(bytes(size), address)


def test_a_socket_of_another_kind_is_refused():
    left, right = socket.socketpair()
    with left, right, pytest.raises(OSError, match="not a UDP socket"):
        Udp(left.fileno())


def test_the_socket_goes_with_it():
    before = set(os.listdir("/proc/self/fd"))
    end, _ = udp()
    assert end.stats()["receive_buffer"] > 0
    assert end.stats()["send_buffer"] > 0
    del end
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
