"""A miner's months, in minutes: validators come and go, and nothing is left of them."""

import asyncio
import gc
import logging
import os
import random
import time
from collections import Counter

import pytest

from lightning import AsyncLightning, AsyncLightningServer, LightningServerConfig
from lightning.errors import (
    HandshakeRejected,
    LightningConnectionError,
    StreamError,
    TransportError,
)
from tests.interop.wheel_end import free_port
from tests.support.census import census, grown
from tests.support.churn import CONFIG, IMPATIENT, VALIDATORS, ask, vanish
from tests.support.identities import MINER, MINER_HOTKEY, signer
from tests.support.miner_process import register
from tests.support.waiting import until_async

SECONDS = float(os.environ.get("LIGHTNING_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("LIGHTNING_STORM_SEED", "6"))
MIB = 1 << 20
# Of one life of a server, and between two looks at what there is.
LIFE = 20.0
LOOK = 5.0
# See tests/shown/test_storms.py. All is in one process here, and it is never quiet.
KEPT = {
    "allocated": 8 * MIB,
    "engine.*": 4,
    "HandlerPool._threads": 64,
    "threads": 64,
    "native threads": 64,
    "NonceCache.*": 1_000_000,
}
# What a validator may hear of a miner that stops, and without a permit.
ENDS = (LightningConnectionError, TransportError, HandshakeRejected, StreamError)


class Months:
    """One miner after the other on the same port, and its validators.

    Attributes:
        done: What was done, and what went wrong in an expected way.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        self.chance = random.Random(seed)
        self.end = time.monotonic() + seconds
        self.port = free_port()
        self.axon = {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": self.port}
        self.who = [signer(3000 + number) for number in range(VALIDATORS)]
        self.permitted = {each.ss58_address for each in self.who}
        self.done: Counter[str] = Counter()
        self.server: AsyncLightningServer | None = None
        # Whether validators are to stay away.
        self.quiet = asyncio.Event()
        self.loud = asyncio.Event()
        self.loud.set()
        self.gone = 0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def new_server(self) -> AsyncLightningServer:
        server = AsyncLightningServer(
            MINER_HOTKEY,
            "127.0.0.1",
            self.port,
            signer=MINER,
            config=LightningServerConfig(
                **IMPATIENT,
                max_handshake_attempts_per_minute=1_000_000,
                require_validator_permit=True,
                validator_permit_refresh_secs=1,
                # So that what is kept of the past is soon all that there will be.
                max_signature_age_secs=5,
                nonce_cleanup_interval_secs=1,
            ),
        )
        server.set_validator_permit_resolver(self.permits)
        register(server)
        return server

    async def permits(self) -> set[str]:
        """Take the permits of some away, for a second or so."""
        self.done["refreshes"] += 1
        return set(self.chance.sample(sorted(self.permitted), VALIDATORS - 1))

    async def validator(self, number: int) -> None:
        """Come and go, whatever happens."""
        chance, who = random.Random(SEED + number), self.who[number]
        client = None
        while not self.is_over:
            if client is None:
                client = AsyncLightning(who.ss58_address, signer=who, config=CONFIG)
                await client.create_endpoint()
            try:
                self.done[await ask(client, self.axon, chance)] += 1
            except ENDS as error:
                self.done[type(error).__name__] += 1
                await asyncio.sleep(0.05)
            except AssertionError:
                # Cancelled, but for an end of the connection; or cut by a stop.
                self.done["cut"] += 1
            if chance.random() < 0.02 or self.quiet.is_set():
                await (vanish(client) if chance.random() < 0.3 else client.close())
                client = None
                self.done["clients"] += 1
            if self.quiet.is_set() and not self.is_over:
                self.gone += 1
                await self.loud.wait()
                self.gone -= 1
        if client is not None:
            await client.close()

    async def miner(self) -> None:
        """Live for a while, be stopped, and begin another life."""
        while not self.is_over:
            server = self.server = self.new_server()
            await server.start()
            self.done["lives"] += 1
            await asyncio.sleep(min(LIFE, max(self.end - time.monotonic(), 0.1)))
            self.check(server)
            await server.stop(self.chance.choice([0.0, 1.0]))
            self.server = None

    def check(self, server: AsyncLightningServer) -> None:
        """Look at what must hold at every moment."""
        stats = server._endpoint.stats()
        assert stats["connections"] <= 16 * VALIDATORS
        assert stats["half_open"] <= 2 * VALIDATORS
        assert len(server._table) <= VALIDATORS
        self.done["looks"] += 1

    async def looks(self) -> None:
        """Have all be quiet now and then, and compare what there is with before."""
        first = None
        while not self.is_over:
            await asyncio.sleep(LOOK)
            if self.server is not None and self.server.is_started:
                self.check(self.server)
            self.quiet.set()
            self.loud.clear()
            await until_async(lambda: self.is_over or self.is_quiet(), 60)
            if self.is_over:
                break
            now = census(self.server)
            print({name: now[name] for name in ("memory", "allocated", "threads")})
            if self.done["clients"] > 20 * VALIDATORS:
                first = first or now
                more = grown(first, now, memory=16 * MIB, allowed=KEPT)
                # Tasks and their awaits come and go with what we do ourselves.
                for name in ("Answers._idle", "Answers.tasks", "asyncio.Future"):
                    more.pop(name, None)
                assert more == {}
            self.quiet.clear()
            self.loud.set()
        self.quiet.clear()
        self.loud.set()

    def is_quiet(self) -> bool:
        server = self.server
        if self.gone < VALIDATORS or server is None or not server.is_started:
            return False
        # What a dead connection has goes with Python's cycles, and with handlers that
        # were cut off.
        gc.collect()
        stats = server._endpoint.stats()
        return not stats["connections"] and stats["blocks_in_use"] <= 4


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_validators_come_and_go_for_long(monkeypatch):
    """With requests of all kinds, permits that change, and a miner that restarts."""
    # Pytest keeps every line; what nobody foresaw is still looked for.
    monkeypatch.setattr(logging.getLogger("lightning"), "propagate", False)
    print("seed", SEED)
    months = Months(SEED, SECONDS)
    async with asyncio.TaskGroup() as group:
        group.create_task(months.miner())
        group.create_task(months.looks())
        for number in range(VALIDATORS):
            group.create_task(months.validator(number))
    print(months.done)
    assert months.done["echo"] > 10 * SECONDS
    assert months.done["lives"] >= SECONDS / LIFE / 2
    assert months.done["clients"] > SECONDS
