"""What a client tells of its miners: reports, errors, and who is skipped."""

import asyncio
import socket
import threading
import time

import pytest

from lightning import (
    AsyncLightning,
    LightningClientConfig,
    PeerAddr,
    QuicAxonInfo,
)
from lightning import sessions as sessions_module
from lightning.errors import (
    ConnectionClosed,
    HandshakeRejected,
    HotkeyMismatch,
    LightningConnectionError,
    LightningError,
    RequestTimeout,
    SigningError,
    StreamClosedEarly,
)
from lightning.reports import Reached
from lightning.sessions import NAMED
from tests.support.identities import MINER_HOTKEY, VALIDATOR_HOTKEY, signer
from tests.support.inspection import connections
from tests.support.raw_peer import raw_server
from tests.support.udp_relay import udp_relay
from tests.support.waiting import until, until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
OTHERS = [signer(number).ss58_address for number in range(100, 160)]


@pytest.fixture
def silent_port():
    """A port where nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def dead_port():
    """A port that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def at(port: int, hotkey: str = MINER_HOTKEY, ip: str = "127.0.0.1") -> QuicAxonInfo:
    return QuicAxonInfo(hotkey, ip, port)


class Clock:
    """Stands in for the module `time`, with a wall clock that is off."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def time(self) -> float:
        return time.time() + self.ahead


# Reports.


async def test_a_report_says_of_each_miner_how_it_ended(
    start_server, make_client, axon_of, silent_port, dead_port
):
    """Each is tried for itself; the order is the list's."""
    server = await start_server()
    strict = await start_server(
        signer=signer(1),
        require_validator_permit=True,
        prepare=lambda s: s.set_validator_permit_resolver(set),
    )
    miners = [
        at(silent_port, OTHERS[0]),
        at(dead_port, OTHERS[1]),
        axon_of(server),
        at(1, OTHERS[2], "no.such.host.invalid"),
        axon_of(strict),
        at(server.local_addr().port, OTHERS[3]),
    ]
    client = make_client(connect_timeout=0.5)
    report = await client.initialize_connections(miners)
    assert [miner.hotkey for miner in report] == [axon.hotkey for axon in miners]
    assert [miner.address for miner in report] == [axon.address for axon in miners]
    assert [miner.outcome for miner in report] == [
        Reached.TIMED_OUT,
        Reached.UNREACHABLE,
        Reached.CONNECTED,
        Reached.UNREACHABLE,
        Reached.REFUSED,
        Reached.WRONG_KEY,
    ]
    assert report[MINER_HOTKEY].error is None
    assert isinstance(report[strict.miner_hotkey].error, HandshakeRejected)
    assert isinstance(report[OTHERS[3]].error, HotkeyMismatch)
    assert report[OTHERS[0]].seconds >= 0.5
    for miner in report.failed:
        assert miner.error.hotkey == miner.hotkey
        assert miner.error.address == str(miner.address)
        assert miner.error.elapsed == miner.seconds
    again = await client.initialize_connections(miners[2:3])
    assert again[MINER_HOTKEY].connected
    assert again[MINER_HOTKEY].seconds == 0


async def test_a_server_that_does_not_speak_our_protocol_has_refused(make_client):
    async with raw_server(alpn_protocols=["h3"]) as raw:
        report = await make_client().initialize_connections([raw.axon])
    assert report[MINER_HOTKEY].outcome is Reached.REFUSED


async def test_a_signer_that_fails_is_our_own_failure(
    start_server, axon_of, make_client
):
    client = make_client()

    def fail(message: bytes) -> bytes:
        raise ValueError("locked")

    client.set_python_signer(fail)
    report = await client.initialize_connections([axon_of(await start_server())])
    assert report[MINER_HOTKEY].outcome is Reached.FAILED
    assert isinstance(report[MINER_HOTKEY].error, SigningError)
    assert report[MINER_HOTKEY].error.hotkey == MINER_HOTKEY


async def test_an_update_reports_who_is_gone(start_server, make_client, axon_of):
    servers = [await start_server(signer=signer(n)) for n in range(3)]
    axons = [axon_of(server) for server in servers]
    client = make_client()
    await client.initialize_connections(axons[:2])
    report = await client.update_miner_registry(axons[1:])
    assert report.removed == (axons[0].hotkey,)
    assert [miner.outcome for miner in report] == [Reached.CONNECTED] * 2
    assert report[axons[1].hotkey].seconds == 0
    assert report[axons[2].hotkey].seconds > 0
    assert not (await client.update_miner_registry([])).miners


async def test_of_a_hotkey_listed_twice_the_last_address_counts(
    start_server, make_client, axon_of
):
    first, second = await start_server(), await start_server()
    client = make_client()
    report = await client.initialize_connections([axon_of(first), axon_of(second)])
    (miner,) = report
    assert miner.address == second.local_addr()
    assert [c.address for c in connections(client)] == [second.local_addr()]


async def test_the_last_ones_of_the_list_are_skipped_for_capacity(
    start_server, make_client, axon_of
):
    """Whatever is connected already counts, and a second hotkey needs no room."""
    servers = [await start_server(signer=signer(n)) for n in range(5)]
    axons = [axon_of(server) for server in servers]
    client = make_client(max_connections=3)
    await client.initialize_connections(axons[4:])
    extra = at(axons[0].port, OTHERS[0])
    report = await client.initialize_connections([*axons[:4], extra])
    skipped = [m.hotkey for m in report if m.outcome is Reached.SKIPPED]
    assert skipped == [axons[2].hotkey, axons[3].hotkey]
    assert report[extra.hotkey].outcome is Reached.WRONG_KEY, "it was tried"
    error = report[axons[3].hotkey].error
    assert error.no_room
    assert "no room for" in error.detail
    assert "max_connections" in error.detail
    report = await client.update_miner_registry([axons[3], *axons[:2], axons[2]])
    skipped = [m.hotkey for m in report if m.outcome is Reached.SKIPPED]
    assert skipped == [axons[2].hotkey]


async def test_a_thousand_that_are_not_there_are_one_line(
    make_client, caplog, monkeypatch
):
    client = make_client()
    caplog.set_level("INFO", "lightning.client")

    async def dial(address: PeerAddr, hotkey: str) -> None:
        raise LightningConnectionError("nobody there")

    monkeypatch.setattr(client, "_dial", dial)
    miners = [at(1 + n, f"hotkey{n}") for n in range(1000)]
    await client.initialize_connections(miners)
    warning, summary = caplog.messages
    assert warning.startswith(
        "cannot reach 1000 of 1000 miners: hotkey0 at 127.0.0.1:1:"
    )
    assert warning.count("nobody there") == NAMED
    assert warning.endswith("; and 995 more")
    assert summary == "1000 miners: 1000 failed"
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


# Nobody is held up.


@pytest.mark.parametrize("call", ["initialize_connections", "update_miner_registry"])
async def test_a_silent_address_holds_up_nobody(
    call, start_server, connect, silent_port
):
    client, axon = await connect(await start_server(), connect_timeout=0.5)
    calling = asyncio.create_task(getattr(client, call)([axon, at(silent_port, "s")]))
    await until_async(lambda: client._dialling)
    for _ in range(20):
        assert (await client.query_axon(axon, ECHO)).success
    assert not calling.done()
    assert (await calling)["s"].outcome is Reached.TIMED_OUT


@pytest.mark.parametrize("call", ["initialize_connections", "update_miner_registry"])
def test_a_silent_address_holds_up_no_blocking_caller(
    call, start_blocking_server, make_blocking_client, axon_of, silent_port
):
    server, other = start_blocking_server(), start_blocking_server(signer=signer(1))
    client = make_blocking_client(connect_timeout=0.5)
    miner = axon_of(server)
    assert client.initialize_connections([miner])[MINER_HOTKEY].connected
    reports = []
    thread = threading.Thread(
        target=lambda: reports.append(
            getattr(client, call)([miner, at(silent_port, "s")])
        )
    )
    thread.start()
    until(lambda: client._client._dialling)
    for _ in range(20):
        assert client.query_axon(miner, ECHO)["success"]
    assert client.query_axon(axon_of(other), ECHO)["success"], "a dial of its own, too"
    assert not reports
    thread.join()
    assert reports[0]["s"].outcome is Reached.TIMED_OUT


# Refused logins.


async def test_a_validator_whose_clock_is_ahead_is_told(
    start_server, make_client, axon_of, monkeypatch
):
    server = await start_server()
    monkeypatch.setattr(sessions_module, "time", Clock(+120))
    client = make_client()
    await client.create_endpoint()
    with pytest.raises(HandshakeRejected, match="s behind ours") as caught:
        await client.query_axon(axon_of(server), ECHO)
    assert -121 <= caught.value.clock_skew <= -119
    assert "NTP" in str(caught.value)


async def test_a_validator_whose_clock_is_behind_is_let_in(
    start_server, make_client, axon_of, monkeypatch
):
    server = await start_server()
    monkeypatch.setattr(sessions_module, "time", Clock(-120))
    client = make_client()
    assert (await client.initialize_connections([axon_of(server)])).connected


async def test_a_refusal_with_equal_clocks_says_nothing_of_them(
    start_server, make_client, axon_of
):
    server = await start_server(
        require_validator_permit=True,
        prepare=lambda s: s.set_validator_permit_resolver(set),
    )
    client = make_client()
    await client.create_endpoint()
    with pytest.raises(HandshakeRejected) as caught:
        await client.query_axon(axon_of(server), ECHO)
    assert caught.value.detail == "rejected by miner"
    assert abs(caught.value.clock_skew) <= 1


async def test_too_many_logins_are_guessed(start_server, make_client, axon_of):
    server = await start_server(max_handshake_attempts_per_minute=1)
    first, second = make_client(), make_client()
    assert (await first.initialize_connections([axon_of(server)])).connected
    report = await second.initialize_connections([axon_of(server)])
    assert "too many logins from this address, perhaps" in str(
        report[MINER_HOTKEY].error
    )


# Errors say where.


def check(error: LightningError, axon: QuicAxonInfo, *, at_least: float = 0) -> None:
    assert error.address == str(axon.address)
    assert error.hotkey == axon.hotkey
    assert at_least <= error.elapsed < 10
    assert axon.hotkey in str(error)
    assert str(axon.address) in str(error)


@pytest.fixture
def prepare():
    """Handlers for a server: one that never answers, and a stream that does not."""

    async def never(data: dict) -> dict:
        await asyncio.Event().wait()
        return {}

    async def chunks(data: dict):
        yield b"one"
        await asyncio.Event().wait()

    def prepare(server) -> None:
        server.register_async_synapse_handler("never", never)
        server.register_streaming_handler("stream", chunks)

    return prepare


async def test_errors_of_a_query_say_where_it_was(
    start_server, connect, prepare, dead_port
):
    server = await start_server(prepare)
    client, axon = await connect(server)
    with pytest.raises(RequestTimeout) as timeout:
        await client.query_axon(axon, {"synapse_type": "never"}, 0.05)
    check(timeout.value, axon, at_least=0.05)
    with pytest.raises(LightningConnectionError) as nobody:
        await client.query_axon(at(dead_port), ECHO)
    check(nobody.value, at(dead_port))
    for _ in range(2):
        with pytest.raises(LightningConnectionError, match="in backoff") as early:
            await client.query_axon(at(dead_port), ECHO)
        check(early.value, at(dead_port))
    stream = await client.query_axon_stream(axon, {"synapse_type": "stream"})
    assert await stream.next_chunk() == b"one"
    waiting = asyncio.create_task(client.query_axon(axon, {"synapse_type": "never"}))
    fan = client.query_many([axon, at(dead_port, OTHERS[0])], {"synapse_type": "never"})
    await until_async(lambda: server._answering == 3)
    await server.stop(0)
    with pytest.raises(ConnectionClosed) as closed:
        await waiting
    check(closed.value, axon)
    with pytest.raises(ConnectionClosed) as closed:
        await stream.next_chunk()
    check(closed.value, axon)
    outcomes = await fan
    check(outcomes[0], axon)
    check(outcomes[1], at(dead_port, OTHERS[0]))
    assert client._registry.last_error(axon.address) == closed.value.detail


def test_errors_of_blocking_calls_say_where_they_were(
    start_blocking_server, make_blocking_client, axon_of, prepare, dead_port
):
    server = start_blocking_server(prepare)
    client, axon = make_blocking_client(), axon_of(server)
    client.initialize_connections([axon])
    with pytest.raises(RequestTimeout) as timeout:
        client.query_axon(axon, {"synapse_type": "never"}, 0.05)
    check(timeout.value, axon, at_least=0.05)
    with pytest.raises(LightningConnectionError) as nobody:
        client.query_axon(at(dead_port), ECHO)
    check(nobody.value, at(dead_port))
    stream = client.query_axon_stream(axon, {"synapse_type": "stream"})
    assert stream.next_chunk() == b"one"
    fan = client.query_many([axon, at(dead_port, OTHERS[0])], {"synapse_type": "never"})
    until(lambda: server._server._answering == 2)
    server.stop(0)
    with pytest.raises(ConnectionClosed) as closed:
        stream.next_chunk()
    check(closed.value, axon)
    outcomes = fan.collect_all()
    check(outcomes[0], axon)
    check(outcomes[1], at(dead_port, OTHERS[0]))


async def test_a_login_that_breaks_off_says_where(make_client):
    """The server ends the login's stream without an answer."""

    async with raw_server() as raw:
        raw.answer_login = lambda *_: b""
        client = make_client()
        await client.create_endpoint()
        with pytest.raises(StreamClosedEarly) as early:
            await client.query_axon(raw.axon, ECHO)
        check(early.value, at(raw.port))
        report = await client.initialize_connections([raw.axon])
        assert report[MINER_HOTKEY].outcome is Reached.REFUSED


# How connections are doing.


async def test_statistics_of_each_state(
    start_server, make_client, axon_of, silent_port, dead_port, prepare
):
    """Connected, lost, being dialled, and backed off."""
    server, gone = await start_server(prepare), await start_server(signer=signer(1))
    client = make_client(connect_timeout=5)
    axon, lost = axon_of(server), axon_of(gone)
    assert client.connections() == ()
    await client.initialize_connections([axon, lost])
    assert (await client.query_axon(axon, ECHO)).success
    with pytest.raises(RequestTimeout):
        await client.query_axon(axon, {"synapse_type": "never"}, 0.01)
    waiting = asyncio.create_task(client.query_axon(axon, {"synapse_type": "never"}))
    await gone.stop()
    await until_async(lambda: len(list(connections(client))) == 1)
    with pytest.raises(LightningConnectionError):
        await client.query_axon(at(dead_port, OTHERS[0]), ECHO)
    dial = asyncio.create_task(client.query_axon(at(silent_port, OTHERS[1]), ECHO))
    await until_async(lambda: client._dialling)
    found = {stats.address.port: stats for stats in client.connections()}
    assert {port: (stats.state, stats.hotkeys) for port, stats in found.items()} == {
        axon.port: ("active", (MINER_HOTKEY,)),
        lost.port: ("closed", (gone.miner_hotkey,)),
        dead_port: ("missing", ()),
        silent_port: ("connecting", (OTHERS[1],)),
    }
    stats = found[axon.port]
    assert 0 <= stats.idle <= stats.age < 60
    assert 0 < stats.min_rtt <= stats.rtt < 10
    assert stats.congestion_window > 10_000
    assert min(stats.bytes_sent, stats.bytes_received) > 1000
    assert stats.packets_sent >= 4
    assert stats.packets_lost == 0
    assert (stats.requests, stats.in_flight, stats.failures) == (4, 1, 1)
    assert stats.last_error == "query timed out"
    assert "server_shutdown" in found[lost.port].last_error
    assert found[lost.port].requests == 1, "as it was when it ended"
    assert "nobody listens there" in found[dead_port].last_error
    assert found[silent_port].last_error == ""
    for task in (waiting, dial):
        task.cancel()
    await client.close_all_connections()
    assert client.connections() == ()


def test_any_thread_may_ask_for_statistics(
    start_blocking_server, make_blocking_client, axon_of
):
    """While others connect, ask and close."""
    servers = [start_blocking_server(signer=signer(n)) for n in range(3)]
    axons = [axon_of(server) for server in servers]
    client = make_blocking_client()
    over, seen = threading.Event(), set()

    def look() -> None:
        while not over.is_set():
            stats = client.connections()
            seen.add(len(stats))
            assert len({each.address for each in stats}) == len(stats)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        client.initialize_connections(axons)
        for axon in axons:
            assert client.query_axon(axon, ECHO)["success"]
        assert sorted(s.address for s in client.connections()) == sorted(
            axon.address for axon in axons
        )
        client.close_all_connections()
    over.set()
    for thread in threads:
        thread.join()
    assert client.connections() == ()


def test_the_transport_gets_its_settings():
    config = LightningClientConfig(
        unresponsive_timeout=7, qlog_dir="traces", keylog_file="keys"
    )
    transport = AsyncLightning(VALIDATOR_HOTKEY, config=config)._transport
    assert transport.unresponsive_timeout == 7
    assert transport.qlog_dir == "traces"
    assert transport.keylog_file == "keys"


async def test_a_killed_miner_is_noticed_by_its_silence(start_server, make_client):
    """The path swallows everything: what asks fails long before the idle timeout."""
    server = await start_server()
    async with udp_relay(*server.local_addr()) as relay:
        client = make_client(unresponsive_timeout=0.3)
        axon = at(relay.port)
        await client.initialize_connections([axon])
        relay.is_open = False
        with pytest.raises(ConnectionClosed) as caught:
            await client.query_axon(axon, ECHO)
    assert caught.value.timed_out
    assert client.connections()[0].state == "closed"
