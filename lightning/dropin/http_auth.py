"""Which signed HTTP requests are authentic and new: policy, without I/O.

bittensor's HTTP protocol signs each request. A request counts if

- its signature is that of its hotkey over this very receiver, nonce and body hash,
- its nonce, the sender's clock in nanoseconds, is not farther from ours, before or
  after, than 4 seconds plus the request's timeout (of which at most ten minutes count,
  since the timeout is not signed),
- and it has not been here before.

Requests may overtake each other: there is no order among nonces. This holds for every
version that a sender says it has, since that is not signed either.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from typing import Any, Final

from lightning import ss58
from lightning.errors import (
    NonceInvalid,
    NonceReplayed,
    SignatureInvalid,
    TimestampOutOfRange,
)
from lightning.signer import SIGNATURE_SIZE, verify

__all__ = ["RequestGate", "UsedNonces", "signed_text"]

SLACK: Final = 4.0
"""Seconds that clocks may differ by."""

MAX_COUNTED_TIMEOUT: Final = 600.0
"""Seconds of a request's timeout that widen the window at most."""

_SECOND: Final = 1_000_000_000
_MAX_WINDOW: Final = int((SLACK + MAX_COUNTED_TIMEOUT) * _SECOND)


def signed_text(
    nonce: Any, sender: Any, receiver: Any, uuid: Any, body_hash: Any
) -> bytes:
    """Return what a request's signature is over.

    Args:
        nonce: Nanoseconds of the sender's clock.
        sender: The sender's hotkey.
        receiver: The receiver's hotkey.
        uuid: The sender's name for itself.
        body_hash: `Synapse.body_hash`.
    """
    text = f"{nonce}.{sender}.{receiver}.{uuid}.{body_hash}"
    # Text that UTF-8 does not have was not signed by anybody.
    return text.encode(errors="replace")


class _Used:
    """The nonces that one hotkey has used, the oldest first in the heap."""

    __slots__ = ("floor", "heap", "keys")

    def __init__(self) -> None:
        self.floor = 0
        self.heap: list[tuple[int, int]] = []
        self.keys: set[int] = set()

    def drop_oldest(self) -> None:
        nonce, key = heapq.heappop(self.heap)
        self.keys.discard(key)
        self.floor = max(self.floor, nonce)


class UsedNonces:
    """Remembers nonces for as long as a request with them could be made again.

    A hotkey that uses more than there is room for has its oldest ones forgotten, and
    nothing that old is taken from it any more. A hotkey for which there is no room at
    all is refused. So nothing that was taken once is taken twice.

    Cost: logarithmic in the nonces of one hotkey. Memory: about 200 bytes a nonce. It
    does not lock.

    Args:
        max_hotkeys: Hotkeys remembered at once.
        max_nonces: Nonces of all of them together.
        max_per_hotkey: Nonces of one.
    """

    __slots__ = (
        "_count",
        "_floor",
        "_hotkeys",
        "max_hotkeys",
        "max_nonces",
        "max_per_hotkey",
    )

    def __init__(
        self,
        max_hotkeys: int = 8192,
        max_nonces: int = 200_000,
        max_per_hotkey: int = 50_000,
    ) -> None:
        self.max_hotkeys = max_hotkeys
        self.max_nonces = max_nonces
        self.max_per_hotkey = max_per_hotkey
        # The hotkey that was here last comes last.
        self._hotkeys: OrderedDict[str, _Used] = OrderedDict()
        self._count = 0
        # Up to here nobody's nonces are remembered; it only grows, whatever clocks do.
        self._floor = 0

    def __len__(self) -> int:
        return self._count

    def spend(self, hotkey: str, nonce: int, uuid: str, now: int) -> None:
        """Use a nonce; for requests whose signature is valid only.

        Args:
            hotkey: The sender.
            nonce: Not farther from ``now`` than the widest window.
            uuid: Two dendrites of one hotkey may sign in the same nanosecond.
            now: Unix nanoseconds.

        Raises:
            NonceReplayed: Used before, or it cannot be told, or no room.
        """
        self._expire(now)
        used = self._hotkeys.get(hotkey)
        floor = self._floor if used is None else max(used.floor, self._floor)
        if nonce <= floor:
            raise NonceReplayed("Nonce is too old, newer ones were processed since")
        # Only a sender can make keys collide, and only its own.
        key = hash((nonce, uuid))
        if used is None:
            if len(self._hotkeys) >= self.max_hotkeys or self._is_full():
                raise NonceReplayed("No room to remember another nonce")
            used = self._hotkeys[hotkey] = _Used()
        elif key in used.keys:
            raise NonceReplayed("Nonce was used before")
        else:
            self._hotkeys.move_to_end(hotkey)
            while used.heap and (
                len(used.heap) >= self.max_per_hotkey or self._is_full()
            ):
                used.drop_oldest()
                self._count -= 1
            if nonce <= used.floor:
                raise NonceReplayed("Nonce is too old, newer ones were processed since")
        heapq.heappush(used.heap, (nonce, key))
        used.keys.add(key)
        self._count += 1

    def give_back(self, hotkey: str, nonce: int, uuid: str) -> None:
        """Forget a nonce whose request was refused, so that it cost no room."""
        used = self._hotkeys.get(hotkey)
        key = hash((nonce, uuid))
        if used is None or key not in used.keys:
            return
        used.keys.discard(key)
        used.heap.remove((nonce, key))
        heapq.heapify(used.heap)
        self._count -= 1
        if not used.heap and used.floor <= self._floor:
            del self._hotkeys[hotkey]

    def _is_full(self) -> bool:
        return self._count >= self.max_nonces

    def _expire(self, now: int) -> None:
        """Forget what is too old to be taken in any case."""
        self._floor = max(self._floor, now - _MAX_WINDOW)
        hotkeys = self._hotkeys
        # Two a call are enough to keep pace; what a busy one holds goes as it asks.
        for _ in range(2):
            if not hotkeys:
                return
            hotkey, used = next(iter(hotkeys.items()))
            while used.heap and used.heap[0][0] <= self._floor:
                used.drop_oldest()
                self._count -= 1
            if used.heap or used.floor > self._floor:
                return
            del hotkeys[hotkey]


class RequestGate:
    """Tells authentic requests from others, for one receiver.

    Args:
        receiver: Our hotkey.
        started: Unix nanoseconds before which nothing is taken, since what was used
            then is not known; None for now.
        used: The memory of nonces; None for one of the default size.
    """

    __slots__ = ("_started", "_used", "receiver")

    def __init__(
        self,
        receiver: str,
        *,
        started: int | None = None,
        used: UsedNonces | None = None,
    ) -> None:
        self.receiver = receiver
        self._started = time.time_ns() if started is None else started
        self._used = UsedNonces() if used is None else used

    def check(
        self,
        *,
        hotkey: str | None,
        nonce: int | None,
        uuid: str | None,
        body_hash: str | None,
        signature: str | None,
        timeout: float | None,
        now: int | None = None,
    ) -> None:
        """Check a request, and take its nonce as used.

        Args:
            hotkey: Who sent it, as it says.
            nonce: Its time, Unix nanoseconds.
            uuid: The sender's name for itself.
            body_hash: What it says its body hashes to; compare that with the body.
            signature: ``0x`` and 128 hexadecimal digits.
            timeout: Seconds that the sender waits.
            now: Unix nanoseconds of our clock; None to read it.

        Raises:
            NonceInvalid: There is no nonce.
            TimestampOutOfRange: Too old, or too far ahead.
            SignatureInvalid: No signature, or not of this hotkey over this request.
            NonceReplayed: It has been here before, or there is no telling.
        """
        if now is None:
            now = time.time_ns()
        if not hotkey:
            raise SignatureInvalid("Missing Hotkey")
        if nonce is None:
            raise NonceInvalid("Missing Nonce", hotkey=hotkey)
        self._check_time(nonce, timeout, now, hotkey)
        if not signature:
            raise SignatureInvalid("Missing Signature", hotkey=hotkey)
        text = signed_text(nonce, hotkey, self.receiver, uuid, body_hash)
        if not verify(ss58.decode(hotkey), text, _signature_of(signature)):
            raise SignatureInvalid(
                f"Signature mismatch with {text.decode(errors='replace')} "
                f"and {signature}",
                hotkey=hotkey,
            )
        self._used.spend(hotkey, nonce, str(uuid), now)

    def check_synapse(self, synapse: Any, now: int | None = None) -> None:
        """Check a request by the fields of its synapse.

        Raises:
            HandshakeError: As :meth:`check`.
        """
        sender = synapse.dendrite
        self.check(
            hotkey=sender.hotkey,
            nonce=sender.nonce,
            uuid=sender.uuid,
            body_hash=synapse.computed_body_hash,
            signature=sender.signature,
            timeout=synapse.timeout,
            now=now,
        )

    def give_back(self, hotkey: str, nonce: int, uuid: str | None) -> None:
        """Forget a request that was refused after all, as of a blacklisted hotkey.

        It may come again, to be refused again; else whoever makes himself hotkeys
        could fill the memory.
        """
        self._used.give_back(hotkey, nonce, str(uuid))

    def _check_time(
        self, nonce: int, timeout: float | None, now: int, hotkey: str
    ) -> None:
        """Check that a nonce lies in the window."""
        age = (now - nonce) / _SECOND
        window = SLACK + _counted(timeout)
        if age > window:
            raise TimestampOutOfRange(
                f"Nonce is too old: acceptable delta is {window:.2f} seconds but "
                f"request was {age:.2f} seconds old",
                age=int(age),
                hotkey=hotkey,
            )
        if -age > window:
            raise TimestampOutOfRange(
                f"Nonce is too far ahead: acceptable delta is {window:.2f} seconds but "
                f"request was {-age:.2f} seconds ahead of our clock",
                age=int(age),
                hotkey=hotkey,
            )
        if nonce < self._started:
            raise TimestampOutOfRange(
                "Nonce is too old: it is from before this axon was started",
                age=int(age),
                hotkey=hotkey,
            )


def _counted(timeout: float | None) -> float:
    """Return the seconds of a timeout that count; none of one that is no number."""
    if timeout is None or not timeout > 0:
        return 0.0
    return min(timeout, MAX_COUNTED_TIMEOUT)


def _signature_of(text: str) -> bytes:
    """Return a signature's bytes, empty if the text is none."""
    digits = text.removeprefix("0x")
    if len(digits) != 2 * SIGNATURE_SIZE:
        return b""
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""
