"""Dendrites and axons on loopback that leave nothing behind."""

import gc
import socket

import pytest

from lightning import Axon, AxonInfo, Dendrite
from lightning.dropin import asking, dendrite
from lightning.dropin.anywhere import Anywhere
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR


@pytest.fixture
def make_dendrite():
    """Make dendrites, over QUIC alone unless told otherwise; closed at the end."""
    made = []

    def make(wallet=VALIDATOR, kind=Dendrite, **options):
        made.append(kind(wallet, **{"http": False, **options}))
        return made[-1]

    asking._speaks.clear()
    yield make
    for each in made:
        each.close_session()
    made.clear()
    for loop in dendrite._loops.values():
        loop.stop()
    gc.collect()
    Anywhere.close_idle()
    asking._speaks.clear()


@pytest.fixture
def start_axon():
    """Start axons with forward functions; gives where they are."""
    started = []

    def start(*forwards, wallet=MINER, **options):
        axon = Axon(wallet, port=0, external_ip="127.0.0.1", **options)
        for forward in forwards:
            axon.attach(forward)
        started.append(axon)
        axon.start()
        return AxonInfo(
            ip="127.0.0.1", port=axon.port, hotkey=wallet.ss58_address, version=1
        )

    yield start
    for axon in started:
        axon.stop()


@pytest.fixture
def silent():
    """Describe a miner of whom nothing comes back, not even a refusal."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        yield AxonInfo(ip="127.0.0.1", port=udp.getsockname()[1], hotkey=MINER_HOTKEY)


@pytest.fixture
def dead():
    """Describe a miner whose ports are closed."""
    for _ in range(100):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        ):
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue  # Another has this number for TCP.
            # What is closed refuses, and what is bound and does not listen.
            udp.close()
            yield AxonInfo(ip="127.0.0.1", port=port, hotkey=MINER_HOTKEY)
            return
    pytest.fail("no number is free for UDP and TCP")
