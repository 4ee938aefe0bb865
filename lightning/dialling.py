"""Where a miner's name leads, trying several places at once, and how it can fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.errors import (
    ConnectionClosed,
    FingerprintMismatch,
    HandshakeError,
    HotkeyMismatch,
    LightningConnectionError,
    LightningError,
    SerializationError,
    SignatureInvalid,
    TransportError,
)
from lightning.reports import Reached

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from lightning.types import PeerAddr

T = TypeVar("T")

# Seconds that the first address of a host name has before the next one is tried, too
# (RFC 8305 section 8).
HEAD_START = 0.25
# Codes of a close that stand for a TLS alert (RFC 9001 section 4.8).
CRYPTO_ERROR = range(0x100, 0x200)
# The transport's reason where the network says that nobody takes the datagrams.
NOBODY = "nobody listens there"


async def first_success(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]], head_start: float
) -> T:
    """Begin attempts one by one until one succeeds, and cancel the others.

    Args:
        attempts: At least one.
        head_start: Seconds after which the next one is begun while those before it
            are still under way.

    Raises:
        LightningError: All failed; this is the first one's.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    tasks: list[asyncio.Task[T]] = []
    try:
        for number, attempt in enumerate(attempts, 1):
            tasks.append(asyncio.create_task(attempt()))
            # Perhaps nobody will want to know how it failed.
            tasks[-1].add_done_callback(lambda t: t.cancelled() or t.exception())
            timeout = head_start if number < len(attempts) else None
            under_way = set(tasks)
            while under_way:
                done, under_way = await asyncio.wait(
                    under_way, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if task.exception() is None:
                        return task.result()
                if not done:
                    break
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def resolve(address: PeerAddr) -> list[tuple[int, tuple[Any, ...]]]:
    """Return address family and socket address of each place that a name stands for.

    Raises:
        OSError, UnicodeError: It stands for none.
    """
    ip, port = address
    with contextlib.suppress(OSError, UnicodeError):
        socket.inet_pton(socket.AF_INET, ip)
        return [(socket.AF_INET, (ip, port))]
    try:
        # An IP address needs no thread.
        found = socket.getaddrinfo(
            ip, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):
        found = await asyncio.get_running_loop().getaddrinfo(
            ip, port, type=socket.SOCK_DGRAM
        )
    return [(family, where) for family, _, _, _, where in found]


def outcome_of(error: BaseException) -> Reached:
    """Return which of the ways to fail an attempt's error is."""
    if isinstance(error, (HotkeyMismatch, FingerprintMismatch, SignatureInvalid)):
        return Reached.WRONG_KEY
    if isinstance(error, LightningConnectionError) and error.no_room:
        return Reached.SKIPPED
    cause = error.__cause__ or error
    if isinstance(cause, ConnectionClosed):
        return _outcome_of_close(cause)
    if isinstance(cause, TimeoutError):
        return Reached.TIMED_OUT
    if isinstance(cause, (socket.gaierror, UnicodeError)):
        return Reached.UNREACHABLE
    if isinstance(error, (HandshakeError, TransportError, SerializationError)):
        return Reached.REFUSED
    if isinstance(cause, OSError) and not isinstance(cause, LightningError):
        return Reached.UNREACHABLE
    return Reached.FAILED


def _outcome_of_close(error: ConnectionClosed) -> Reached:
    if error.timed_out:
        return Reached.TIMED_OUT
    if error.initiator == "remote":
        return Reached.REFUSED
    if error.code in CRYPTO_ERROR:
        # It is us who did not believe the server.
        return Reached.WRONG_KEY
    return Reached.UNREACHABLE if error.reason == NOBODY else Reached.FAILED
