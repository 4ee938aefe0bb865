"""A dendrite and axons as validators use them: fleets, loops, threads, forks, months."""

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from lightning import Axon, AxonInfo, Dendrite, LightningServerConfig, Synapse
from tests.dropin.faces import free_port, keypair, make_dendrite, ours
from tests.support.census import census, grown
from tests.support.identities import MINER, VALIDATOR, VALIDATOR_SEED, signer

# All tests come from one address.
CONFIG = LightningServerConfig(max_handshake_attempts_per_minute=10_000)


class Asked(Synapse):
    """A question and an answer."""

    text: str = ""
    answer: str | None = None


async def answer(synapse: Asked) -> Asked:
    """Answer."""
    synapse.answer = synapse.axon.hotkey + synapse.text
    return synapse


def mine(who=MINER, **settings) -> Axon:
    axon = Axon(
        who,
        port=free_port(),
        external_ip="127.0.0.1",
        server_config=CONFIG,
        **settings,
    )
    return axon.attach(answer).start()


@pytest.fixture
def axon():
    running = mine()
    yield running
    running.stop()


def at(port: int, hotkey: str) -> AxonInfo:
    return AxonInfo(ip="127.0.0.1", port=port, hotkey=hotkey)


@pytest.fixture
def fleet():
    """Give 64 miners: 32 speak QUIC, 16 HTTP only, 4 each fail in a way of their own."""
    with ExitStack() as stack:
        running = [mine(signer(100 + i)) for i in range(2)]
        plain = [mine(signer(200 + i), quic=False) for i in range(2)]
        for each in running + plain:
            stack.callback(each.stop)
        silent = []
        for _ in range(4):
            # Datagrams and connections are taken, and nothing is ever said.
            port = free_port()
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", port))
            tcp = stack.enter_context(socket.socket())
            tcp.bind(("127.0.0.1", port))
            tcp.listen()
            silent.append(at(port, signer(300 + port).ss58_address))
        yield {
            "quic": [running[i % 2].info() for i in range(32)],
            "http": [plain[i % 2].info() for i in range(16)],
            "dead": [at(free_port(), signer(400 + i).ss58_address) for i in range(4)],
            "silent": silent,
            "other key": [
                at(running[i % 2].external_port, signer(500 + i).ss58_address)
                for i in range(4)
            ],
            "unserved": [
                AxonInfo(hotkey=signer(600 + i).ss58_address) for i in range(4)
            ],
        }


async def test_a_mixed_fleet_answers_in_order_and_in_time(fleet):
    """Who does not answer costs nobody else anything, first round or later."""
    timeout = 2.5
    kinds = [kind for kind, axons in fleet.items() for _ in axons]
    axons = [axon for axons in fleet.values() for axon in axons]
    # Mixed, so that those who fail are among those who answer.
    places = sorted(range(64), key=lambda i: (i * 37) % 64)
    kinds, axons = [kinds[i] for i in places], [axons[i] for i in places]
    async with Dendrite(VALIDATOR) as dendrite:
        dendrite.external_ip = "203.0.113.7"
        for _ in range(2):
            begun = time.monotonic()
            told = await dendrite(
                axons, Asked(text="?"), timeout=timeout, deserialize=False
            )
            # It ends with its slowest call, and some time to spare for the machine.
            assert time.monotonic() - begun < 2 * timeout
            assert [each.axon.hotkey for each in told] == [
                each.hotkey for each in axons
            ]
            for kind, axon, each in zip(kinds, axons, told, strict=True):
                if kind in ("quic", "http"):
                    assert each.is_success, (kind, each.dendrite)
                    assert each.answer == axon.hotkey + "?"
                    assert each.dendrite.process_time < timeout
                elif kind == "silent":
                    assert each.is_timeout
                else:
                    assert each.dendrite.status_code in (401, 503)
                    assert not each.is_success
            answered = [
                each.dendrite.process_time
                for kind, each in zip(kinds, told, strict=True)
                if kind in ("quic", "http")
            ]
        # By then it is known who speaks what.
        assert sorted(answered)[len(answered) // 2] < timeout / 2


def ask(dendrite, axon, text="x") -> str:
    async def once() -> str:
        return await dendrite(axon.info(), Asked(text=text), timeout=20)

    return asyncio.run(once()).answer


@pytest.mark.parametrize("transport", ["http", "quic", "both"])
def test_one_dendrite_in_successive_loops(axon, transport):
    """Each loop that asyncio.run makes may use it."""
    dendrite = make_dendrite(ours(), transport)
    assert {ask(dendrite, axon) for _ in range(3)} == {MINER.ss58_address + "x"}
    dendrite.close_session()


@pytest.mark.parametrize("transport", ["http", "quic"])
def test_one_dendrite_in_many_threads(axon, transport):
    """Loops of several threads use it at once, and plain calls beside them."""
    with (
        make_dendrite(ours(), transport) as dendrite,
        ThreadPoolExecutor(6) as threads,
    ):
        asked = [threads.submit(ask, dendrite, axon, str(i)) for i in range(12)]
        plain = [
            threads.submit(dendrite.query, axon.info(), Asked(text=str(i)), timeout=20)
            for i in range(12)
        ]
        found = [each.result(30) for each in asked]
        assert found == [MINER.ss58_address + str(i) for i in range(12)]
        assert [each.result(30).answer for each in plain] == found


async def test_a_plain_call_within_a_running_loop(axon):
    """``query`` answers where a loop runs already, as in a notebook."""
    with Dendrite(VALIDATOR) as dendrite:
        told = dendrite.query([axon.info()], Asked(text="y"), timeout=20)
    assert [each.answer for each in told] == [MINER.ss58_address + "y"]


def test_the_address_is_looked_up_when_it_is_read(monkeypatch):
    """Nothing is asked of the internet until somebody reads the address."""
    looked: list[int] = []
    monkeypatch.setattr(
        "lightning.dropin.asking.addresses.external_ip",
        lambda: looked.append(1) or "198.51.100.9",
    )
    with Dendrite(VALIDATOR) as dendrite:
        assert not looked
        assert [dendrite.external_ip, dendrite.external_ip] == ["198.51.100.9"] * 2
    assert looked == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_asks_with_its_parents_dendrite(axon):
    """The child makes connections of its own; the parent's go on."""
    with make_dendrite(ours(), "quic") as dendrite:
        assert ask(dendrite, axon) == MINER.ss58_address + "x"
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(writing, "w") as pipe:
                try:
                    pipe.write(ask(Dendrite(VALIDATOR, http=False), axon, "c"))
                except BaseException as error:
                    pipe.write(repr(error))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == MINER.ss58_address + "c"
        os.waitpid(child, 0)
        assert ask(dendrite, axon) == MINER.ss58_address + "x"


async def rounds(dendrite, axon, count: int) -> None:
    for _ in range(count // 50):
        told = await dendrite([axon.info()] * 50, Asked(text="z" * 500), timeout=60)
        assert all(each.answer for each in told)


async def flat(axon, transport: str, count: int) -> None:
    async with make_dendrite(ours(), transport) as dendrite:
        await rounds(dendrite, axon, count // 4)
        before = census(dendrite, axon)
        await rounds(dendrite, axon, count)
        after = census(dendrite, axon)
    # An axon remembers each nonce over HTTP for as long as a request may be replayed.
    nonces = count if transport == "http" else 0
    assert not grown(
        before,
        after,
        memory=(1 << 20) + 4096 * nonces,
        allowed={
            "allocated": (1 << 20) + 4096 * nonces,
            "_Used.*": nonces,
            # Tasks that wait for the next request; there are 64 at most.
            "Answers.*": 64,
            "asyncio.Future": 64,
            "descriptors": 16,
        },
    )


@pytest.mark.parametrize("transport", ["http", "quic"])
async def test_two_thousand_requests_leave_nothing(axon, transport):
    """Neither the dendrite nor the axon keeps anything of what was asked."""
    await flat(axon, transport, 2000 if transport == "quic" else 400)


@pytest.mark.soak
@pytest.mark.parametrize("transport", ["http", "quic"])
async def test_twenty_thousand_requests_leave_nothing(axon, transport):
    """Memory is flat over a validator's hour."""
    await flat(axon, transport, 20_000)


def test_dendrites_that_nobody_closes(axon):
    """What is dropped without a close warns nobody and holds nothing."""
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(5):
        for _ in range(20):
            dendrite = Dendrite(keypair(VALIDATOR_SEED), http=False)
            assert dendrite.query(axon.info(), Asked(), timeout=20).answer
        del dendrite
    after = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    # One client is shared by all of them, with its loop, sockets and thread.
    assert after[0] <= before[0] + 16
    assert after[1] <= before[1] + 4


class Paid(Synapse):
    """Numbers that MessagePack has no room for."""

    wei: int = 0
    table: dict[str, list[int]] | None = None


async def pay(synapse: Paid) -> Paid:
    """Double the amount."""
    synapse.wei *= 2
    return synapse


def pay_at_once(synapse: Paid) -> Paid:
    """Double the amount, in a thread."""
    synapse.wei *= 2
    return synapse


@pytest.mark.parametrize("forward", [pay, pay_at_once])
@pytest.mark.parametrize("over", ["quic", "http"])
async def test_big_numbers_travel_both_ways(forward, over):
    axon = Axon(MINER, port=free_port(), external_ip="127.0.0.1", server_config=CONFIG)
    axon.attach(forward).start()
    try:
        async with make_dendrite(ours(), over) as dendrite:
            got = await dendrite(
                axon,
                Paid(wei=10**30, table={"a": [-(10**20)]}),
                timeout=5,
                deserialize=False,
            )
        assert got.dendrite.status_code == 200, got.dendrite.status_message
        assert (got.wei, got.table) == (2 * 10**30, {"a": [-(10**20)]})
    finally:
        axon.stop()
