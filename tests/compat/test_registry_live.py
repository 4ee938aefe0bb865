"""What is registered and what is connected agree, whatever is asked of a client."""

import asyncio
import contextlib
import random

import pytest

from lightning import AsyncLightning, QuicAxonInfo
from lightning.errors import LightningError
from tests.support.identities import signer
from tests.support.waiting import until_async

ECHO = {"synapse_type": "echo", "data": {"n": 1}}
ROUNDS = 25
# One is at two addresses.
MINERS = [signer(number) for number in (0, 1, 2, 0)]


class Dice:
    """Makes random calls of a client."""

    def __init__(self, seed: int, client: AsyncLightning, ports: list[int]) -> None:
        self.random = random.Random(seed)
        self.client = client
        self.ports = ports

    def axon(self) -> QuicAxonInfo:
        """Choose a miner, now and then at another one's address."""
        who = self.random.randrange(4)
        where = who if self.random.random() < 0.8 else self.random.randrange(4)
        return QuicAxonInfo(MINERS[who].ss58_address, "127.0.0.1", self.ports[where])

    def axons(self) -> list[QuicAxonInfo]:
        return [self.axon() for _ in range(self.random.randrange(4))]

    async def query_and_leave(self) -> None:
        query = asyncio.ensure_future(self.client.query_axon(self.axon(), ECHO, 10))
        for _ in range(self.random.randrange(20)):
            await asyncio.sleep(0)
        query.cancel()
        await asyncio.wait([query])
        if not query.cancelled():
            query.exception()

    async def call(self) -> None:
        client, kind = self.client, self.random.random()
        # It may be closed or moved meanwhile, or at another miner's address.
        with contextlib.suppress(LightningError):
            if kind < 0.6:
                assert (await client.query_axon(self.axon(), ECHO, 10)).success
            elif kind < 0.72:
                await client.initialize_connections(self.axons())
            elif kind < 0.86:
                await client.update_miner_registry(self.axons())
            elif kind < 0.93:
                await client.close_all_connections()
            else:
                await self.query_and_leave()

    async def calls(self) -> None:
        await asyncio.gather(
            *(self.call() for _ in range(self.random.randrange(1, 12)))
        )


@pytest.mark.parametrize("background", [False, True], ids=["on demand", "background"])
@pytest.mark.parametrize("room", [2, 1024])
async def test_random_calls_at_once_leave_both_in_agreement(
    room, background, start_server, make_client
):
    """Queries, cancelled ones too, lists, updates and closes, of miners that move."""
    seed = random.randrange(2**32)
    print("seed", seed)
    servers = [await start_server(signer=miner) for miner in MINERS]
    client = make_client(
        max_connections=room,
        background_reconnect=background,
        reconnect_initial_backoff=0.001,
        reconnect_max_backoff=0.002,
        reconnect_slow_probe_interval=0.002,
    )
    await client.create_endpoint()
    dice = Dice(seed, client, [server.local_addr().port for server in servers])
    registry, sessions = client._registry, client._sessions
    for _ in range(ROUNDS):
        await dice.calls()
        await until_async(lambda: not client._attempts)
        for hotkey in registry.hotkeys:
            assert hotkey in sessions[registry.address_of(hotkey)].hotkeys
        for address, session in sessions.items():
            assert registry.hotkeys_at(address) == session.hotkeys
        assert len(sessions) <= room
