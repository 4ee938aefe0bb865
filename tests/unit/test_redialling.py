"""The background reconnect: when it dials, and when it stops."""

import asyncio
import logging

import pytest

from lightning import LightningClientConfig, QuicAxonInfo, redialling
from lightning.errors import HandshakeRejected, LightningConnectionError
from tests.support.identities import MINER_HOTKEY, signer
from tests.support.inspection import connections
from tests.support.waiting import until, until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
QUICK = {
    "background_reconnect": True,
    "reconnect_initial_backoff": 0.01,
    "reconnect_max_backoff": 0.02,
    "reconnect_slow_probe_interval": 0.02,
    "connect_timeout": 2,
}


def count_dials(client, monkeypatch) -> list:
    """Note every dial of a client."""
    dials = []
    dial = client._dial

    async def noted(address, hotkey):
        dials.append(address)
        return await dial(address, hotkey)

    monkeypatch.setattr(client, "_dial", noted)
    return dials


async def lose(client, server) -> None:
    """Stop a server and wait until its client has noticed."""
    await server.stop(0)
    await until_async(lambda: not list(connections(client)))


async def test_after_a_restart_a_query_meets_a_live_connection(
    start_server, connect, monkeypatch
):
    server = await start_server()
    client, axon = await connect(server, **QUICK)
    await lose(client, server)
    await start_server(port=axon.port)
    await until_async(lambda: list(connections(client)))
    await until_async(lambda: not len(client._redialling))
    dials = count_dials(client, monkeypatch)
    assert (await client.query_axon(axon, ECHO)).success
    assert not dials


def test_after_a_restart_a_blocking_query_does_too(
    start_blocking_server, make_blocking_client, axon_of, monkeypatch
):
    server = start_blocking_server()
    client, axon = make_blocking_client(**QUICK), axon_of(server)
    client.initialize_connections([axon])
    server.stop(0)
    until(lambda: not list(connections(client)))
    restarted = start_blocking_server(
        prepare=lambda s: setattr(s._server, "port", axon.port)
    )
    assert axon_of(restarted) == axon
    until(lambda: list(connections(client)))
    dials = count_dials(client._client, monkeypatch)
    assert client.query_axon(axon, ECHO)["success"]
    assert not dials


async def test_by_default_nothing_dials(start_server, connect, monkeypatch):
    server = await start_server()
    client, axon = await connect(server)
    dials = count_dials(client, monkeypatch)
    await lose(client, server)
    await start_server(port=axon.port)
    assert not len(client._redialling)
    await asyncio.sleep(0)
    assert not dials
    assert (await client.query_axon(axon, ECHO)).success


async def test_its_waits_are_those_of_the_back_off_and_chance(
    start_server, connect, monkeypatch
):
    """In virtual time: a wait takes none, and is noted."""
    server = await start_server()
    settings = {**QUICK, "reconnect_initial_backoff": 1, "reconnect_max_backoff": 60}
    client, _ = await connect(
        server,
        **{**settings, "reconnect_slow_probe_interval": 60, "reconnect_jitter": 0.5},
    )
    now, waits = [1000.0], []

    class Clock:
        time = staticmethod(lambda: now[0])
        monotonic = staticmethod(lambda: now[0])

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds
        if len(waits) == 7:
            raise asyncio.CancelledError

    async def dial(*args: object) -> None:
        raise LightningConnectionError("nobody there")

    for module in ("sessions", "redialling"):
        monkeypatch.setattr(f"lightning.{module}.time", Clock)
    monkeypatch.setattr("lightning.redialling._sleep", sleep)
    monkeypatch.setattr("lightning.redialling._chance", lambda: 0.5)
    monkeypatch.setattr(client, "_dial", dial)
    await server.stop(0)
    await until_async(lambda: len(waits) == 7)
    assert waits == pytest.approx([0.25, 1.25, 2.5, 5, 10, 75, 75])
    await until_async(lambda: not len(client._redialling))


async def test_a_query_that_comes_meanwhile_shares_the_attempt(
    start_server, connect, monkeypatch
):
    server = await start_server()
    client, axon = await connect(server, **QUICK)
    dial, hold, dials = client._dial, asyncio.Event(), []

    async def slowly(*args: object) -> object:
        dials.append(args)
        await hold.wait()
        return await dial(*args)

    monkeypatch.setattr(client, "_dial", slowly)
    await server.stop(0)
    await start_server(port=axon.port)
    await until_async(lambda: dials)
    queries = [asyncio.create_task(client.query_axon(axon, ECHO)) for _ in range(5)]
    await asyncio.sleep(0)
    hold.set()
    assert all(answer.success for answer in await asyncio.gather(*queries))
    assert len(dials) == 1


async def test_it_ends_when_a_query_was_faster(start_server, connect, monkeypatch):
    server = await start_server()
    client, axon = await connect(server, **QUICK)
    woken = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await woken.wait()

    monkeypatch.setattr("lightning.redialling._sleep", sleep)
    await lose(client, server)
    await start_server(port=axon.port)
    assert (await client.query_axon(axon, ECHO)).success
    dials = count_dials(client, monkeypatch)
    woken.set()
    await until_async(lambda: not len(client._redialling))
    assert not dials


@pytest.mark.parametrize("end", ["removed", "moved", "closed", "all closed"])
async def test_it_ends_with_the_registration(end, start_server, connect, monkeypatch):
    server = await start_server()
    client, _ = await connect(server, **QUICK)
    await lose(client, server)
    await until_async(lambda: client.connections()[0].last_error)
    assert len(client._redialling) == 1
    if end == "removed":
        await client.update_miner_registry([])
    elif end == "moved":
        other = await start_server()
        moved = QuicAxonInfo(MINER_HOTKEY, *other.local_addr())
        assert (await client.update_miner_registry([moved])).connected
    elif end == "closed":
        await client.close()
    else:
        await client.close_all_connections()
    await until_async(lambda: not len(client._redialling))
    dials = count_dials(client, monkeypatch)
    await asyncio.sleep(0.03)
    assert not dials


async def test_it_goes_on_for_who_is_still_listed(start_server, connect):
    """Also where the update itself could not reach it."""
    server = await start_server()
    client, axon = await connect(server, **QUICK)
    await lose(client, server)
    report = await client.update_miner_registry([axon])
    assert not report.connected
    assert len(client._redialling) == 1
    await start_server(port=axon.port)
    await until_async(lambda: list(connections(client)))
    await until_async(lambda: not len(client._redialling))
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY}


async def test_without_a_slow_probe_it_gives_up(start_server, connect):
    server = await start_server()
    client, axon = await connect(
        server,
        **{**QUICK, "reconnect_slow_probe_interval": None, "reconnect_max_retries": 2},
    )
    await lose(client, server)
    await until_async(lambda: not len(client._redialling))
    with pytest.raises(LightningConnectionError, match="attempts exhausted"):
        await client.query_axon(axon, ECHO)


async def test_a_refused_hotkey_lets_the_others_try(start_server, connect, monkeypatch):
    server = await start_server()
    client, axon = await connect(server, **QUICK)
    other = QuicAxonInfo("0" + MINER_HOTKEY, axon.ip, axon.port)
    honest, tried = client._login, []

    async def login(connection, address, hotkey):
        tried.append(hotkey)
        if hotkey == MINER_HOTKEY:
            await honest(connection, address, hotkey)
        elif len(tried) > 1:
            raise HandshakeRejected("rejected by miner", hotkey=hotkey)

    monkeypatch.setattr(client, "_login", login)
    assert (await client.initialize_connections([other])).connected
    await lose(client, server)
    client._registry.deregister(MINER_HOTKEY)
    client._redialling._hotkeys[axon.address][:] = [other.hotkey, MINER_HOTKEY]
    await start_server(port=axon.port)
    await until_async(lambda: not len(client._redialling))
    assert await client.authenticated_hotkeys() == {MINER_HOTKEY}


async def test_two_with_one_hotkey_do_not_fight_for_ever(
    start_server, connect, monkeypatch, caplog
):
    """Each that is replaced waits longer than before, and says what is wrong."""
    server = await start_server()
    settings = {**QUICK, "reconnect_initial_backoff": 0.02, "reconnect_max_backoff": 60}
    first, _ = await connect(server, **settings, reconnect_jitter=0)
    waits = []
    sleep = redialling._sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr("lightning.redialling._sleep", noted)
    for count in range(1, 4):
        second, axon = await connect(server)
        await until_async(lambda: len(waits) == count)  # noqa: B023 - awaited here.
        await until_async(lambda: not len(first._redialling))
        await second.close()
    assert waits == pytest.approx([0.02, 0.04, 0.08], rel=0.2)
    warnings = [r for r in caplog.records if "another process" in r.message]
    assert len(warnings) >= 3
    assert str(axon.address) in warnings[0].message
    assert {r.levelno for r in warnings} == {logging.WARNING}


async def test_where_there_is_no_room_any_more_it_ends(
    start_server, connect, axon_of, monkeypatch
):
    server, other = await start_server(), await start_server(signer=signer(1))
    client, axon = await connect(server, **QUICK, max_connections=1)
    woken = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await woken.wait()

    monkeypatch.setattr("lightning.redialling._sleep", sleep)
    await lose(client, server)
    assert (await client.query_axon(axon_of(other), ECHO)).success
    woken.set()
    await until_async(lambda: not len(client._redialling))
    assert client._registry.last_error(axon.address).startswith("no room")


async def test_what_nobody_foresaw_is_logged(
    start_server, connect, monkeypatch, caplog, unforeseen
):
    server = await start_server()
    client, axon = await connect(server, **QUICK)

    async def dial(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client, "_dial", dial)
    await lose(client, server)
    await until_async(lambda: not len(client._redialling))
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == f"giving up on {axon.address}"
    assert record.exc_info[0] is ZeroDivisionError


def test_jitter_is_a_part():
    """The default spreads a first attempt over a quarter of a second."""
    config = LightningClientConfig()
    assert redialling.background_wait(0.0, 0.999, config) < 0.25
    assert 0 <= redialling._chance() < 1
