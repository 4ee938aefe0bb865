"""A miner that many come to, leave, flood and kill, and a validator whose miner dies."""

import asyncio
import contextlib
import gc
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning import (
    AsyncLightning,
    Lightning,
    LightningClientConfig,
    QuicAxonInfo,
    sessions,
)
from lightning.errors import (
    ConnectionClosed,
    HandshakeRejected,
    LightningConnectionError,
)
from tests.interop.wheel_end import free_port
from tests.support.census import census, grown
from tests.support.churn import (
    IMPATIENT,
    VALIDATORS,
    churn,
    churn_blocking,
    vanish,
)
from tests.support.identities import MINER_HOTKEY, VALIDATOR, signer
from tests.support.miner_process import PATIENCE, MinerProcess, peer_miner
from tests.support.raw_peer import configuration, frame, is_accepted, raw_client
from tests.support.waiting import until, until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
WAIT = {"synapse_type": "wait", "data": {"seconds": 60}}
FACES = ("asyncio", "blocking")
MIB = 1 << 20
SEED = int(os.environ.get("LIGHTNING_STORM_SEED", "6"))

# Threads for handlers start when they are needed, and stay. Some tasks stay for more
# requests, and what each of them awaits. Used nonces are kept for as long as they could
# be used again. What the last connection left may go with the next datagram.
KEPT = {
    "allocated": 3 * MIB // 2,
    "engine.blocks_in_use": 2,
    "engine.streams_in_use": 2,
    "HandlerPool._threads": 32,
    "threads": 32,
    "native threads": 32,
    "Answers._idle": 64,
    "Answers.tasks": 64,
    "asyncio.Future": 128,
    "NonceCache.*": 1_000_000,
}

# malloc keeps some of what threads have freed for them.
MEMORY = {"asyncio": 6 * MIB, "blocking": 48 * MIB}


def kept(
    miner: MinerProcess, before: dict[str, int], memory: int, allowed: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """Return what a miner still holds when its connections are long gone."""
    miner.until(lambda stats: not stats["connections"])
    deadline = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nudge:
        nudge.connect((miner.axon.ip, miner.axon.port))
        # Handlers that were cut off end in their time, a census collects garbage, and
        # what that gives back may wait for a datagram.
        while more := grown(
            before, miner.ask("census"), memory=memory, allowed=allowed
        ):
            if time.monotonic() > deadline:
                break
            nudge.send(b"\0")
            time.sleep(0.1)
    return more


@contextlib.contextmanager
def begins_where_it_ends(
    miner: MinerProcess, memory: int, allowed: dict[str, int] = KEPT
) -> Iterator[None]:
    """Compare what a miner, and this program, hold before and after."""
    near, far = census(), miner.ask("census")
    yield
    assert kept(miner, far, memory, allowed) == {}
    assert grown(near, census(), memory=memory, allowed=allowed) == {}
    assert miner.ask("errors") == []


# Churn.


def run_churn(face: str, requests: int, connections: int, memory: int) -> None:
    print("seed", SEED)
    rounds = asyncio.Runner() if face == "asyncio" else contextlib.nullcontext()

    def run(*arguments: object) -> dict[str, int]:
        if face == "asyncio":
            return rounds.run(churn(*arguments))
        return churn_blocking(*arguments)

    with rounds, MinerProcess(face, **IMPATIENT) as miner:
        run(miner.axon, requests // 10, max(connections // 10, 2 * VALIDATORS), SEED)
        miner.until(lambda stats: not stats["connections"])
        with begins_where_it_ends(miner, memory):
            done = run(miner.axon, requests, connections, SEED + 1)
            assert done.pop("connections") == connections
            assert done.total() == requests // connections * connections


@pytest.mark.parametrize("face", FACES)
def test_a_churn_of_validators_leaves_nothing_behind(face):
    """2 000 requests of all kinds over 50 connections that end in every way."""
    run_churn(face, 2_000, 50, MEMORY[face])


@pytest.mark.soak
@pytest.mark.parametrize("face", FACES)
def test_a_long_churn_of_validators_leaves_nothing_behind(face):
    """20 000 requests of all kinds over 500 connections that end in every way."""
    run_churn(face, 20_000, 500, MEMORY[face])


async def test_an_answered_request_is_not_kept(start_server, connect):
    """Nobody who waits for the next request holds on to the last one, nor its body."""
    held = []

    class Body(bytes):
        """What a handler was given."""

    async def keep(data):
        held.append(data)
        return {}

    server = await start_server(
        lambda server: server.register_async_synapse_handler("keep", keep)
    )
    client, axon = await connect(server)
    request = {"synapse_type": "keep", "data": {"body": bytes(100_000)}}
    assert (await client.query_axon(axon, request, 10)).success
    (data,) = held
    held.clear()
    # Ours, and the one that `getrefcount` is called with.
    await until_async(lambda: sys.getrefcount(data) == 2)


# Storms of connections.


async def storm(axon: QuicAxonInfo, count: int, seed: int) -> None:
    """Connect, log in, ask once and go, some with a word and some without."""

    async def validator(number: int) -> None:
        who, chance = signer(2000 + number), random.Random(seed + number)
        for _ in range(count // VALIDATORS):
            client = AsyncLightning(who.ss58_address, signer=who)
            await client.initialize_connections([axon])
            request = {"synapse_type": "echo", "data": {"n": chance.randrange(100)}}
            answer = await client.query_axon(axon, request, 20)
            assert answer.data == request["data"]
            await (vanish(client) if chance.random() < 0.5 else client.close())

    await asyncio.gather(*[validator(number) for number in range(VALIDATORS)])


def run_storm(face: str, count: int) -> None:
    print("seed", SEED)
    with asyncio.Runner() as loop, MinerProcess(face, **IMPATIENT) as miner:
        loop.run(storm(miner.axon, count // 10, SEED))
        miner.until(lambda stats: not stats["connections"])
        with begins_where_it_ends(miner, 3 * MIB):
            loop.run(storm(miner.axon, count, SEED + 100))


def test_reconnects_leave_nothing_behind():
    """Of eight validators, which are back before the miner knows that they were gone."""
    run_storm("asyncio", 160)


@pytest.mark.soak
@pytest.mark.parametrize("face", FACES)
def test_a_thousand_reconnects_leave_nothing_behind(face):
    """The same with 1 000 connections."""
    run_storm(face, 1000)


async def test_two_processes_with_one_hotkey_that_come_back_by_themselves_tire(
    start_server, make_client, axon_of
):
    """Each is replaced by the other, and the pauses between that become longer."""
    server = await start_server()
    settings = {"background_reconnect": True, "reconnect_initial_backoff": 0.05}
    clients = [make_client(VALIDATOR, **settings) for _ in range(2)]
    axon = axon_of(server)
    for client in clients:
        await client.initialize_connections([axon])
    counted = []
    for _ in range(2):
        before = server._endpoint.stats()["received"]
        await asyncio.sleep(1)  # Nothing tells that something does not happen.
        counted.append(server._endpoint.stats()["received"] - before)
    # A fight without pauses takes hundreds of connections a second.
    assert counted[1] <= counted[0] < 200, counted


async def test_two_processes_with_one_hotkey_do_not_fight_for_ever(
    start_server, make_client, axon_of
):
    """The one that was replaced comes back by a query of its own only."""
    server = await start_server()
    clients = [make_client(VALIDATOR) for _ in range(2)]
    axon = axon_of(server)
    request = {"synapse_type": "echo"}
    for turn in range(6):
        client = clients[turn % 2]
        if turn < 2:
            await client.initialize_connections([axon])
        assert (await client.query_axon(axon, request, 10)).success
        stats = await server.get_connection_stats()
        assert stats["total_connections"] == "1"
    before = server._endpoint.stats()["received"]
    await until_async(lambda: len(server._endpoint.connections) == 1)
    for _ in range(200):
        await asyncio.sleep(0)
    # Nobody dials again by itself: a handful of packets that were under way.
    assert server._endpoint.stats()["received"] - before < 20


# Strangers.


async def test_unfinished_frames_of_strangers_cost_less_than_a_mebibyte():
    """Four frames of 8 MiB, each but for its last byte, on a connection without a login."""
    with MinerProcess(max_frame_payload_bytes=64 * MIB) as miner:
        async with raw_client(miner.axon.port) as warm:
            await warm.login()
        miner.until(lambda stats: stats["connections"] <= 1)
        before = miner.ask("census")["memory"]
        async with raw_client(miner.axon.port) as stranger:
            body = frame(3, bytes(8 * MIB))[:-1]
            streams = [stranger.start(body, fin=False) for _ in range(4)]
            for stream in streams:
                await stream.until(
                    lambda stream=stream: (
                        stream.reset is not None
                        or stream.stopped is not None
                        or stream.ended
                    )
                )
            assert miner.ask("census")["memory"] - before < MIB
        assert miner.ask("errors") == []


@pytest.mark.parametrize("size", [65_536, 60_000])
async def test_small_unfinished_frames_of_strangers_are_bounded(size):
    """Frames within what strangers are allowed cost what they have sent, for a while."""
    with MinerProcess(login_deadline_secs=1.0) as miner:
        before = miner.ask("census")["memory"]
        async with raw_client(miner.axon.port) as stranger:
            for _ in range(8):
                stranger.start(frame(1, bytes(size))[:-1], fin=False)
            await asyncio.to_thread(
                miner.until, lambda stats: stats["datagrams_received"] > 8 * size / 1300
            )
            assert miner.ask("census")["memory"] - before < 2 * MIB
            await until_async(lambda: stranger.terminated is not None)
        assert miner.ask("errors") == []


class Spoofer:
    """Sends first packets of connections from many addresses of this machine.

    Args:
        port: Where to.
        seed: Of what they say.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.target = ("127.0.0.1", port)
        self.chance = random.Random(seed)
        self.sockets = []
        for number in range(100):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setblocking(False)
            made.bind((f"127.{1 + number % 50}.{number}.{1 + number}", 0))
            self.sockets.append(made)
        # The first flight of a real client, which says its own name each time.
        self.first = _client_hellos(20)

    def datagram(self) -> bytes:
        """Make one: a real first packet, a damaged one, or garbage that looks like one."""
        kind = self.chance.randrange(3)
        if kind == 0:
            return self.chance.choice(self.first)
        if kind == 1:
            damaged = bytearray(self.chance.choice(self.first))
            damaged[self.chance.randrange(30, 1200)] ^= 1
            return bytes(damaged)
        head = b"\xc3\x00\x00\x00\x01\x08" + self.chance.randbytes(8)
        head += b"\x08" + self.chance.randbytes(8) + b"\x00\x44\x90"
        return head + self.chance.randbytes(1200 - len(head))

    def send(self, count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(BlockingIOError):
                self.chance.choice(self.sockets).sendto(self.datagram(), self.target)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def _client_hellos(count: int) -> list[bytes]:
    from aioquic.quic.connection import QuicConnection

    made = []
    for _ in range(count):
        connection = QuicConnection(configuration=configuration())
        connection.connect(("127.0.0.1", 1), now=0.0)
        made.append(connection.datagrams_to_send(now=0.0)[0][0])
    return made


@pytest.mark.parametrize("retry", [True, False])
async def test_a_flood_of_first_packets_starves_no_validator(retry):
    """10 000 of them from 100 addresses, while a validator that is logged in is served."""
    print("seed", SEED)
    settings = {"require_address_validation": retry, "login_deadline_secs": 1.0}
    with MinerProcess(**settings, max_unauthenticated_connections=64) as miner:
        spoofer = Spoofer(miner.axon.port, SEED)
        async with AsyncLightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client:
            await client.initialize_connections([miner.axon])
            request = {"synapse_type": "echo", "data": {}}
            await client.query_axon(miner.axon, request, 10)
            before = miner.ask("census")
            sent, most, most_memory = 0, 0, 0
            while sent < 10_000:
                spoofer.send(100)
                sent += 100
                # Its request is answered among them, and not after all of them.
                assert (await client.query_axon(miner.axon, request, 10)).success
                if not sent % 2000:
                    most = max(most, miner.ask("stats")["connections"])
                    most_memory = max(most_memory, miner.memory())
            if retry:
                assert most == 1, "a Retry costs no state"
                assert most_memory - before["memory"] < 2 * MIB
            else:
                assert most <= 1 + 64 + 1
                assert most_memory - before["memory"] < 16 * MIB
            print("connections", most, "memory", most_memory - before["memory"])
            # The strangers go with their deadline; new validators are let in again.
            await asyncio.to_thread(miner.until, lambda s: s["connections"] == 1)
            assert (await client.query_axon(miner.axon, request, 10)).success
            other = signer(7)
            async with AsyncLightning(other.ss58_address, signer=other) as late:
                await late.initialize_connections([miner.axon])
                assert (await late.query_axon(miner.axon, request, 10)).success
        spoofer.close()
        assert miner.ask("errors") == []


# Dials and logins that fail, and much of everything.


@pytest.mark.parametrize("face", FACES)
def test_strangers_with_bad_logins_leave_nothing_behind(face):
    """Neither the connections nor anything that they were counted by."""

    async def knock(count: int) -> None:
        for number in range(count):
            async with raw_client(miner.axon.port) as stranger:
                answer = await stranger.login(
                    signer(number), nonce=f"{number:032x}", signature="AAAA"
                )
                assert not is_accepted(answer)

    with asyncio.Runner() as loop, MinerProcess(face, **IMPATIENT) as miner:
        loop.run(knock(20))
        miner.until(lambda stats: not stats["connections"])
        before = miner.ask("census")
        loop.run(knock(100))
        assert kept(miner, before, 2 * MIB, KEPT) == {}
        assert miner.ask("errors") == []


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(False, id="closed"),
        # Each is remembered for some seconds.
        pytest.param(True, id="silent", marks=pytest.mark.soak),
    ],
)
async def test_dials_that_fail_leave_nothing_behind(silent):
    """To a port that is closed, or where nobody answers."""
    config = LightningClientConfig(
        connect_timeout=0.02,
        reconnect_initial_backoff=0.000001,
        reconnect_max_backoff=0.000001,
        reconnect_slow_probe_interval=0.000001,
    )
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", free_port())
    with contextlib.ExitStack() as stack:
        if silent:
            sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.bind((axon.ip, axon.port))
        async with AsyncLightning(
            VALIDATOR.ss58_address, signer=VALIDATOR, config=config
        ) as client:
            before = None
            for count in (10, 100):
                for _ in range(count):
                    with pytest.raises(LightningConnectionError):
                        await client.query_axon(axon, ECHO)
                await until_async(lambda: not client_holds(client))
                now = census(client)
                before = before or now
            assert grown(before, now, memory=2 * MIB, allowed=KEPT) == {}


def client_holds(client: AsyncLightning) -> int:
    """Return how many connections there are for a client, closing ones included."""
    return census(client)["tables"].get("engine.connections", 0)


async def ask_again_and_again(face: str, count: int) -> None:
    with MinerProcess(face) as miner:
        async with AsyncLightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client:
            before = None
            for number in range(count):
                answer = await client.query_axon(
                    miner.axon, {"synapse_type": "async", "data": {"n": number}}, 20
                )
                assert answer.data["n"] == number
                if number == count // 5:
                    before = census(client), miner.ask("census")
            after = census(client), miner.ask("census")
            for then, now in zip(before, after, strict=True):
                # The last one may have been answered this very moment.
                allowed = {**KEPT, "*.ServerExchange": 1}
                assert grown(then, now, memory=MIB, allowed=allowed) == {}


@pytest.mark.parametrize("face", FACES)
async def test_a_long_connection_keeps_nothing_of_its_requests(face):
    """5 000 requests one after the other, all on one connection."""
    await ask_again_and_again(face, 5000)


@pytest.mark.soak
@pytest.mark.parametrize("face", FACES)
async def test_a_very_long_connection_keeps_nothing_of_its_requests(face):
    """The same with 50 000."""
    await ask_again_and_again(face, 50_000)


async def test_nothing_under_way_is_collected_as_garbage(start_server, connect):
    """Whoever waits is referred to by what will wake it."""

    async def later(data):
        await asyncio.sleep(0.001)
        return data

    server = await start_server(
        lambda server: server.register_async_synapse_handler("later", later)
    )
    client, axon = await connect(server)

    async def ask(number: int) -> None:
        for _ in range(5):
            request = {"synapse_type": "later", "data": {"n": number}}
            assert (await client.query_axon(axon, request, 10)).data["n"] == number

    asking = asyncio.gather(*[ask(number) for number in range(50)])
    while not asking.done():
        gc.collect()
        await asyncio.sleep(0)
    await asking


async def test_empty_datagrams_starve_nobody():
    """20 000 of them, at the miner and at the validator."""
    with MinerProcess() as miner:
        async with AsyncLightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client:
            await client.initialize_connections([miner.axon])
            (endpoint,) = client._endpoints.values()
            targets = [
                (miner.axon.ip, miner.axon.port),
                ("127.0.0.1", endpoint.local_addr.port),
            ]
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                for _ in range(100):
                    for target in targets * 100:
                        sock.sendto(b"", target)
                    assert (await client.query_axon(miner.axon, ECHO, 10)).success
        assert miner.ask("errors") == []


# A miner that is killed, and comes back.


@pytest.mark.parametrize("face", FACES)
def test_a_miner_that_was_killed_and_is_back_is_asked_again_at_once(face):
    """It tells its old validators by a stateless reset that it knows them no more."""
    with (
        Lightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client,
        ThreadPoolExecutor(1) as other,
    ):
        with MinerProcess(face, free_port()) as miner:
            client.initialize_connections([miner.axon])
            assert client.query_axon(miner.axon, ECHO, 10)["success"]
            waiting = other.submit(client.query_axon, miner.axon, WAIT)
            until(lambda: miner.ask("stats")["streams_in_use"])
            miner.kill()
        with MinerProcess(face, miner.axon.port) as miner:
            began = time.monotonic()
            # One of the two makes the miner say so; both are told by name.
            with pytest.raises(ConnectionClosed, match="does not know"):
                client.query_axon(miner.axon, ECHO)
            with pytest.raises(ConnectionClosed, match="does not know"):
                waiting.result(10)
            assert client.query_axon(miner.axon, ECHO, 10)["success"]
            assert time.monotonic() - began < 5, "far below every timeout"


async def test_a_miner_that_was_killed_and_is_back_when_asked_on_asyncio():
    async with AsyncLightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client:
        with MinerProcess(port=free_port()) as miner:
            await client.initialize_connections([miner.axon])
            waiting = asyncio.ensure_future(client.query_axon(miner.axon, WAIT))
            assert (await client.query_axon(miner.axon, ECHO, 10)).success
            miner.kill()
        with MinerProcess(port=miner.axon.port) as miner:
            began = time.monotonic()
            with pytest.raises(ConnectionClosed, match="does not know"):
                await client.query_axon(miner.axon, ECHO)
            with pytest.raises(ConnectionClosed, match="does not know"):
                await waiting
            assert (await client.query_axon(miner.axon, ECHO, 10)).success
            assert time.monotonic() - began < 5, "far below every timeout"


def test_a_miner_that_was_killed_and_stays_away_is_given_up():
    """After `unresponsive_timeout`, and not after `idle_timeout`, by name."""
    config = LightningClientConfig(unresponsive_timeout=1.0, connect_timeout=1.0)
    with (
        Lightning(VALIDATOR.ss58_address, signer=VALIDATOR, config=config) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
    ):
        with MinerProcess() as miner:
            client.initialize_connections([miner.axon])
            assert client.query_axon(miner.axon, ECHO, 10)["success"]
            miner.kill()
        # No ICMP error tells, for somebody has the port.
        silent.bind((miner.axon.ip, miner.axon.port))
        began = time.monotonic()
        with pytest.raises(ConnectionClosed, match="does not answer"):
            client.query_axon(miner.axon, ECHO)
        assert time.monotonic() - began < 10
        with pytest.raises(LightningConnectionError, match="timed out"):
            client.query_axon(miner.axon, ECHO)


@pytest.mark.interop
def test_a_peers_miner_that_was_killed_and_is_back_is_asked_again(peer):
    """Its resets prove nothing to us after a restart: its silence does."""
    config = LightningClientConfig(unresponsive_timeout=1.0)
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", free_port())
    with Lightning(VALIDATOR.ss58_address, signer=VALIDATOR, config=config) as client:
        with peer_miner(axon.port):
            client.initialize_connections([axon])
            assert client.query_axon(axon, ECHO, 10)["success"]
        with peer_miner(axon.port):
            began = time.monotonic()
            with pytest.raises(ConnectionClosed):
                client.query_axon(axon, ECHO)
            assert client.query_axon(axon, ECHO, 10)["success"]
            assert time.monotonic() - began < 10


# Clocks.


class Shifted:
    """The module `time` of a machine whose clock is off."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._seconds


def check_clocks(axon: QuicAxonInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client:
        monkeypatch.setattr(sessions, "time", Shifted(120))
        with pytest.raises(HandshakeRejected, match="rejected by miner") as raised:
            client.query_axon(axon, ECHO, 10)
        assert -121 <= raised.value.clock_skew <= -119
        assert "s behind ours" in str(raised.value)
    with Lightning(VALIDATOR.ss58_address, signer=VALIDATOR) as client:
        monkeypatch.setattr(sessions, "time", Shifted(-120))
        client.initialize_connections([axon])
        assert client.query_axon(axon, ECHO, 10)["success"]


@pytest.mark.parametrize("face", FACES)
def test_a_validator_whose_clock_is_two_minutes_off(face, monkeypatch):
    """Ahead it is refused, and told by how much its clock differs; behind it is served."""
    with MinerProcess(face) as miner:
        check_clocks(miner.axon, monkeypatch)


@pytest.mark.interop
def test_a_validator_of_the_peers_miner_whose_clock_is_two_minutes_off(
    peer_server, monkeypatch
):
    """There it is the same."""
    check_clocks(QuicAxonInfo.coerce(peer_server()), monkeypatch)
