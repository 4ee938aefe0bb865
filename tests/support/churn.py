"""Validators that come, ask, and go in every way, bounded in number; and a miner's pulse."""

import asyncio
import os
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from lightning import (
    AsyncLightning,
    Lightning,
    LightningClientConfig,
    LightningError,
    QuicAxonInfo,
)
from tests.support.identities import signer

# A miner that notices soon who is gone without a word.
IMPATIENT = {
    "idle_timeout_secs": 2,
    "keep_alive_interval_secs": 1,
    "handshake_timeout_secs": 1,
    "handler_timeout_secs": 1,
    "login_deadline_secs": 1.0,
}
CONFIG = LightningClientConfig(idle_timeout=30.0, keep_alive_interval=10.0)
VALIDATORS = 8

# Kinds of request, and how often each comes.
KINDS = {
    "echo": 50,
    "thread": 12,
    "async": 12,
    "chunks": 6,
    "async chunks": 4,
    "dropped chunks": 4,
    "fail": 4,
    "unknown": 3,
    "timeout": 2,
    "large": 1,
    "cancel": 2,
}


async def vanish(client: AsyncLightning) -> None:
    """Let a client end without a word to anybody, as one that is killed does."""
    for endpoint in (client._endpoints or {}).values():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nowhere:
            os.dup2(nowhere.fileno(), endpoint._driver.fileno())
    await client.close()


def vanish_blocking(client: Lightning) -> None:
    """Do as `vanish`."""
    client._io.call(vanish, client._client)
    client.close()


def _request(kind: str, chance: random.Random) -> dict:
    if kind == "large":
        return {"synapse_type": "echo", "data": {"body": bytes(300_000)}}
    if kind in ("timeout", "cancel"):
        return {"synapse_type": "wait", "data": {"seconds": 60}}
    if kind == "dropped chunks":
        return {"synapse_type": "chunks", "data": {"count": 1000, "size": 1000}}
    data = {"n": chance.randrange(1 << 30), "body": chance.randbytes(100)}
    return {"synapse_type": kind, "data": data}


async def ask(client: AsyncLightning, axon: QuicAxonInfo, chance: random.Random) -> str:
    """Make one request of a random kind, check what comes of it, and name the kind."""
    (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
    request = _request(kind, chance)
    if kind in ("chunks", "async chunks"):
        stream = await client.query_axon_stream(axon, request)
        assert len(await stream.collect_all()) == 4
    elif kind == "dropped chunks":
        async with await client.query_axon_stream(axon, request) as stream:
            assert await anext(stream)
    elif kind == "timeout":
        try:
            await client.query_axon(axon, request, 0.01)
        except TimeoutError:
            return kind
        raise AssertionError("it must time out")
    elif kind == "cancel":
        task = asyncio.ensure_future(client.query_axon(axon, request))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    else:
        answer = await client.query_axon(axon, request, 20)
        assert answer.success == (kind not in ("fail", "unknown"))
        assert not answer.success or answer.data == request["data"]
    return kind


def ask_blocking(client: Lightning, axon: QuicAxonInfo, chance: random.Random) -> str:
    """Do as `ask`; what would be cancelled times out."""
    (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
    request = _request(kind, chance)
    if kind in ("chunks", "async chunks"):
        assert len(client.query_axon_stream(axon, request).collect_all()) == 4
    elif kind == "dropped chunks":
        with client.query_axon_stream(axon, request) as stream:
            assert next(stream)
    elif kind in ("timeout", "cancel"):
        try:
            client.query_axon(axon, request, 0.01)
        except TimeoutError:
            return kind
        raise AssertionError("it must time out")
    else:
        answer = client.query_axon(axon, request, 20)
        assert answer["success"] == (kind not in ("fail", "unknown"))
        assert not answer["success"] or answer["data"] == request["data"]
    return kind


async def churn(
    axon: QuicAxonInfo, requests: int, connections: int, seed: int
) -> Counter[str]:
    """Come, ask and go so often, some validators at a time; count what was done.

    Of seven connections one ends without a word, one with requests under way, and the
    others are closed.
    """
    done: Counter[str] = Counter()
    each = requests // connections

    async def life(number: int) -> None:
        chance = random.Random(seed * 1_000_003 + number)
        who = signer(1000 + number % VALIDATORS)
        client = AsyncLightning(who.ss58_address, signer=who, config=CONFIG)
        await client.initialize_connections([axon])
        for _ in range(each):
            done[await ask(client, axon, chance)] += 1
        way = number % 7
        if way == 0:
            await vanish(client)
            return
        if way == 1:
            request = _request("cancel", chance)
            left = [asyncio.ensure_future(client.query_axon(axon, request, 20))]
            await asyncio.sleep(0)
        await client.close()
        if way == 1:
            (error,) = await asyncio.gather(*left, return_exceptions=True)
            assert isinstance(error, LightningError)

    async def validator(first: int) -> None:
        for number in range(first, connections, VALIDATORS):
            await life(number)
            done["connections"] += 1

    await asyncio.gather(*[validator(first) for first in range(VALIDATORS)])
    return done


def churn_blocking(
    axon: QuicAxonInfo, requests: int, connections: int, seed: int
) -> Counter[str]:
    """Do as `churn`, each validator in a thread."""
    done: Counter[str] = Counter()
    each = requests // connections

    def validator(first: int) -> Counter[str]:
        done: Counter[str] = Counter()
        for number in range(first, connections, VALIDATORS):
            chance = random.Random(seed * 1_000_003 + number)
            who = signer(1000 + number % VALIDATORS)
            client = Lightning(who.ss58_address, signer=who, config=CONFIG)
            client.initialize_connections([axon])
            for _ in range(each):
                done[ask_blocking(client, axon, chance)] += 1
            if number % 7 == 0:
                vanish_blocking(client)
            else:
                client.close()
            done["connections"] += 1
        return done

    with ThreadPoolExecutor(VALIDATORS) as pool:
        for part in pool.map(validator, range(VALIDATORS)):
            done += part
    return done
