"""Bringing lost connections back without waiting for a query."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from lightning.errors import LightningConnectionError, LightningError
from lightning.logs import Throttled
from lightning.registry import background_wait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.sessions import Sessions
    from lightning.types import PeerAddr

log = Throttled(logging.getLogger("lightning.client"))

# No secret depends on it.
_chance = random.random
_sleep = asyncio.sleep


class Redialling:
    """Dials the addresses of registered miners again whose connection was lost.

    One task for each, which keeps to the back-off, shares its attempts with the queries
    that come meanwhile, and ends when there is a connection, when the miner is not
    listed any more, and when no further attempt is allowed.

    Args:
        sessions: Whose connections they are.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._tasks: dict[PeerAddr, asyncio.Task[None]] = {}
        # Logins that fail take a hotkey out of the registry: it is remembered here.
        self._hotkeys: dict[PeerAddr, list[str]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, address: PeerAddr) -> None:
        """Bring back a connection that was lost; from the event loop."""
        hotkeys = sorted(self._sessions._registry.hotkeys_at(address))
        if not hotkeys or address in self._tasks:
            return
        task = asyncio.get_running_loop().create_task(
            self._run(address, hotkeys), name=f"lightning-redial {address}"
        )
        self._tasks[address] = task
        self._hotkeys[address] = hotkeys
        task.add_done_callback(lambda done: self._ended(address, done))

    def keep(self, axons: Mapping[str, PeerAddr]) -> None:
        """Give up on all but these hotkeys, each at its address."""
        for address, task in self._tasks.items():
            hotkeys = self._hotkeys[address]
            hotkeys[:] = [h for h in hotkeys if axons.get(h) == address]
            if not hotkeys:
                task.cancel()

    def stop(self) -> list[asyncio.Task[None]]:
        """Give up on all; returns what is to be waited for."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return tasks

    def clear(self) -> None:
        """Forget all, where their event loop is gone."""
        self._tasks.clear()
        self._hotkeys.clear()

    def _ended(self, address: PeerAddr, task: asyncio.Task[None]) -> None:
        if self._tasks.get(address) is task:
            del self._tasks[address], self._hotkeys[address]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("giving up on %s", address, exc_info=error)

    async def _run(self, address: PeerAddr, hotkeys: list[str]) -> None:
        sessions, attempts = self._sessions, 0
        while True:
            # One that is refused lets the others try.
            hotkey = hotkeys[attempts % len(hotkeys)]
            left = sessions._registry.wait(address, hotkey, time.monotonic())
            if attempts and not left:
                left = sessions.config.reconnect_initial_backoff
            wait = background_wait(left, _chance(), sessions.config)
            if wait is None:
                return
            await _sleep(wait)
            session = sessions._sessions.get(address)
            if session is not None and session.connection.is_alive and session.hotkeys:
                return
            attempts += 1
            try:
                await sessions._reach_once(address, hotkey)
            except LightningError as error:
                sessions._registry.note(address, error.detail)
                if isinstance(error, LightningConnectionError) and error.no_room:
                    return  # Others are in its place.
                log.debug("no way back to %s yet: %s", address, error.detail)
            else:
                return
