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
HOSTS = {V4: "127.0.0.1", V6: "::1"}


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
def test_a_datagram_arrives_with_its_source_and_ecn_bits(family, ecn):
    here, address = udp(family)
    there, target = udp(family)
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


def test_ecn_can_be_off():
    here, _ = udp(ecn=False)
    there, target = udp()
    here.send(b"x", target, ecn=2)
    here.flush()
    assert received(there, 1)[0][2] == 0
    assert not here.stats()["ecn"]


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("size", [1, 1199, 1200, 1201, 3601, 60_000])
def test_bytes_are_cut_into_segments(gso, size):
    """Into datagrams of one size, but for the last; with one system call or many."""
    here, _ = udp(gso=gso)
    there, target = udp()
    data = os.urandom(size)
    here.send(data, target, segment=1200)
    assert here.flush()
    pieces = [data[i : i + 1200] for i in range(0, size, 1200)]
    assert [piece for piece, _, _ in received(there, len(pieces))] == pieces
    stats = here.stats()
    assert stats["sent"] == len(pieces)
    assert stats["send_calls"] == (1 if stats["gso"] else len(pieces))


def test_a_batch_is_received_with_one_call():
    here, _ = udp()
    there, target = udp()
    for n in range(10):
        here.send(bytes([n]), target)
    here.flush()
    until(lambda: here.stats()["sent"] == 10)
    assert [data for data, _, _ in received(there, 10)] == [
        bytes([n]) for n in range(10)
    ]
    assert there.stats()["receive_calls"] <= 10


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
    here, _ = udp(gso=False)
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
        (errno.EMSGSIZE, False),
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
    here, _ = udp()
    target = closed_port()
    for _ in range(40):
        here.send(b"x", target)
        here.fail_next(errno.ENETUNREACH)
        here.flush()
    assert here.errors() == [(target, errno.ENETUNREACH)] * 16


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


def test_an_earlier_error_costs_no_later_datagram():
    """The system reports it with the next send, which is made again."""
    sock, _ = bound()
    fd = sock.fileno()
    here = Udp(sock.detach())
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


def test_datagrams_longer_than_ours_are_dropped():
    """As are empty ones; the ones after them are received."""
    sock, _ = bound()
    there, target = udp()
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
    assert sent == 16
    assert here.flush()
    assert here.send(b"x", target)
    assert here.flush()
    assert len(received(there, 17)) == 17


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
