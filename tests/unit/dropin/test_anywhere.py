"""Asking miners from any event loop and any thread."""

import asyncio
import gc

import pytest

from lightning import LightningClientConfig, QuicAxonInfo
from lightning.dropin.anywhere import Anywhere
from lightning.errors import (
    LightningConnectionError,
)
from tests.support.identities import VALIDATOR, VALIDATOR_HOTKEY
from tests.support.inspection import connections


@pytest.fixture(autouse=True)
def close():
    """Have nothing linger."""
    yield
    gc.collect()
    Anywhere.close_idle()


@pytest.fixture
def shared():
    """Make shares of the validator's client; they are given back at the end."""
    made = []

    def make(**settings):
        config = LightningClientConfig(**settings) if settings else None
        made.append(Anywhere.shared(VALIDATOR_HOTKEY, VALIDATOR, config))
        return made[-1]

    yield make
    for each in made:
        each.release()


async def echo(way, axon, data, timeout=10, **limits):
    return await way.ask(axon, way.encode("echo", data), timeout, **limits)


def test_each_run_of_a_loop_finds_the_connection(
    start_blocking_server, axon_of, shared
):
    """The first ask dials, and says how long that took."""
    server = start_blocking_server()
    axon, way = axon_of(server), shared()
    assert not way.is_connected(axon)
    first = asyncio.run(echo(way, axon, {"n": 1}))
    assert (first.success, first.data, first.error) == (True, {"n": 1}, None)
    assert 0 < first.seconds < 10
    assert 0 < first.connect_seconds < 10
    assert way.is_connected(axon)
    for n in range(3):
        answer = asyncio.run(echo(way, axon, {"n": n}))
        assert answer.data == {"n": n}
        assert answer.connect_seconds == 0.0
    assert len(list(connections(server))) == 1


def test_a_stream_is_read_on_any_loop(start_blocking_server, axon_of, shared):
    """All chunks come, in order."""

    async def count(data):
        for n in range(data["n"]):
            yield b"%d" % n

    server = start_blocking_server(
        lambda s: s.register_streaming_handler("count", count)
    )
    axon, way = axon_of(server), shared()

    async def read(n):
        stream = await way.stream(axon, "count", {"n": n}, 10)
        return [chunk async for chunk in stream]

    for n in (0, 1, 500):
        assert asyncio.run(read(n)) == [b"%d" % i for i in range(n)]


def test_a_dead_miner_is_a_named_error(shared):
    """Nobody listens there; asking many returns it."""
    way = shared()
    axon = QuicAxonInfo(VALIDATOR_HOTKEY, "127.0.0.1", 9)

    async def main():
        with pytest.raises(LightningConnectionError, match=r"127\.0\.0\.1:9") as caught:
            await echo(way, axon, {})
        assert caught.value.hotkey == VALIDATOR_HOTKEY
        frame = way.encode("echo", {})
        (outcome,) = await way.ask_many([(axon, frame)], 5)
        assert isinstance(outcome, LightningConnectionError)

    asyncio.run(main())
