"""Who speaks QUIC, asked by a handshake without a login, and remembered."""

import asyncio
import socket

import pytest

from lightning import QuicAxonInfo
from lightning.errors import ConfigError
from lightning.metagraph import QuicProbe
from lightning.types import PeerAddr
from tests.support.waiting import until_async


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def silent():
    """An address whose datagrams nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield PeerAddr(*bound.getsockname())


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        return PeerAddr(*bound.getsockname())


async def test_a_miner_speaks_quic_and_keeps_no_connection(start_server):
    server = await start_server()
    probe = QuicProbe()
    address = PeerAddr(*server.local_addr())
    assert probe.remembered(address) is None
    assert await probe.speaks_quic(address)
    assert probe.remembered(address) is True
    assert await probe.speaks_quic(address)
    await until_async(lambda: not server._strangers)


async def test_others_do_not(start_server, silent, closed):
    server = await start_server()
    axons = [
        QuicAxonInfo("a", *silent),
        QuicAxonInfo("b", *server.local_addr()),
        QuicAxonInfo("c", *closed),
        QuicAxonInfo("d", "no.such.host.invalid", 1),
    ]
    probe = QuicProbe(2.0)
    assert await probe.filter(axons) == [axons[1]]
    assert probe.remembered(silent) is False
    assert probe.remembered(closed) is False
    # Known ones are not asked.
    probe._ask = None
    assert await probe.speaks_quic(silent) is False


async def test_if_all_are_silent_nothing_is_remembered(silent):
    probe = QuicProbe(0.05)
    assert await probe.filter([QuicAxonInfo("a", *silent)]) == []
    assert probe.remembered(silent) is None
    assert await probe.filter([]) == []


def test_a_yes_holds_longer_than_a_no():
    clock = Clock()
    probe = QuicProbe(remember_secs=100, forget_secs=10, clock=clock)
    yes, no = PeerAddr("1.1.1.1", 1), PeerAddr("1.1.1.1", 2)
    probe.note(yes, speaks_quic=True)
    probe.note(no, speaks_quic=False)
    clock.now = 10
    assert (probe.remembered(yes), probe.remembered(no)) == (True, None)
    clock.now = 100
    assert probe.remembered(yes) is None
    probe.forget()
    assert len(probe) == 0


def test_memory_is_bounded():
    probe = QuicProbe(max_entries=3)
    for port in range(10):
        probe.note(PeerAddr("1.1.1.1", port), speaks_quic=True)
    assert len(probe) == 3
    assert probe.remembered(PeerAddr("1.1.1.1", 9))


async def test_a_cancelled_probe_leaves_nothing(silent):
    asking = asyncio.create_task(QuicProbe(30).speaks_quic(silent))
    await asyncio.sleep(0.02)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("name", ["timeout_secs", "remember_secs", "max_entries"])
def test_numbers_are_above_zero(name):
    with pytest.raises(ConfigError):
        QuicProbe(**{name: 0})
