"""What became of a call, as a status and a message on the synapse.

============================================  =====  ==================================
What happened                                 code   message
============================================  =====  ==================================
no connection: dead port, no route, no such   503    ``Service unavailable at …``
name, not within the time for it, or the
axon is not the one that was meant
the time was over                             408    ``Request timeout after … seconds``
the miner refused the login                   401    ``Not Verified with error: …``
the connection broke                          503    ``Service disconnected: …``
the answer is larger than allowed             400    ``Payload error: …``
other trouble with HTTP                       500    ``Client error: …``
the request cannot be sent, or the answer     422    ``Failed to parse response: …``
is none of this synapse
============================================  =====  ==================================

aiohttp's exceptions have statuses without aiohttp being imported here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from lightning.errors import (
    ConnectionClosed,
    EncodeError,
    FrameTooLarge,
    HandlerError,
    HandshakeError,
    HandshakeRejected,
    LightningConnectionError,
    StreamError,
    TransportError,
)
from lightning.handlers import (
    ERROR_AUTHENTICATION,
    ERROR_BUSY,
    ERROR_INVALID_REQUEST,
    ERROR_TIMEOUT,
    ERROR_TOO_MANY,
    ERROR_UNKNOWN_SYNAPSE,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DENDRITE_DEFAULT_ERROR",
    "SUCCESS",
    "error_mapping",
    "refusal",
    "status_of",
]

SUCCESS: Final = "Success"
DENDRITE_DEFAULT_ERROR: Final = ("422", "Failed to parse response")

UNAVAILABLE: Final = ("503", "Service unavailable")
TIMEOUT: Final = ("408", "Request timeout")
DISCONNECTED: Final = ("503", "Service disconnected")
PAYLOAD: Final = ("400", "Payload error")
NOT_VERIFIED: Final = ("401", "Not Verified with error")

# The most derived first.
_OURS: Final[tuple[tuple[type[Exception], tuple[str, str]], ...]] = (
    (TimeoutError, TIMEOUT),
    (EncodeError, DENDRITE_DEFAULT_ERROR),
    (FrameTooLarge, PAYLOAD),
    (HandshakeRejected, NOT_VERIFIED),
    (HandshakeError, UNAVAILABLE),
    (ConnectionClosed, DISCONNECTED),
    (TransportError, DISCONNECTED),
    (LightningConnectionError, UNAVAILABLE),
    (ConnectionError, DISCONNECTED),
)
_THEIRS: Final = (
    ("ConnectionTimeoutError", TIMEOUT),
    ("ServerTimeoutError", ("504", "Server timeout error")),
    ("ClientConnectorError", UNAVAILABLE),
    ("ServerDisconnectedError", DISCONNECTED),
    ("ServerConnectionError", ("503", "Service connection error")),
    ("ClientOSError", DISCONNECTED),
    ("ClientPayloadError", PAYLOAD),
    ("ClientResponseError", (None, "Client response error")),
    ("ClientError", ("500", "Client error")),
)
# What a miner that knows no statuses answers when a request failed.
_TEXTS: Final[Mapping[str, tuple[int, str]]] = {
    ERROR_UNKNOWN_SYNAPSE: (404, "Synapse name '{name}' not found"),
    ERROR_AUTHENTICATION: (401, "Not Verified with error: {text}"),
    ERROR_INVALID_REQUEST: (400, "Invalid request: {text}"),
    ERROR_TIMEOUT: (408, "Response timeout: {text}"),
    ERROR_BUSY: (503, "Service busy: {text}"),
    ERROR_TOO_MANY: (429, "Too many requests: {text}"),
}


def error_mapping() -> dict[type[Exception], tuple[str | None, str]]:
    """Return the table by classes of exceptions; aiohttp's if it has been imported."""
    mapping: dict[type[Exception], tuple[str | None, str]] = dict(_OURS)
    aiohttp = sys.modules.get("aiohttp")
    for name, status in _THEIRS:
        if kind := getattr(aiohttp, name, None):
            mapping[kind] = status
    return mapping


def status_of(
    error: Exception, *, name: str, ip: Any, port: Any, timeout: Any
) -> tuple[int, str]:
    """Return the status and the message of a call that an exception ended.

    Args:
        error: What was raised.
        name: Of the synapse.
        ip: Of the axon.
        port: Of the axon.
        timeout: Seconds that the call had.
    """
    if isinstance(error, HandlerError | StreamError):
        return refusal(getattr(error, "detail", None) or str(error), name)
    code, text = _row(error)
    if code is None:
        status = getattr(error, "status", None)
        return (status if type(status) is int and status else 500), f"{text}: {error}"
    if text == UNAVAILABLE[1]:
        return int(code), f"{text} at {ip}:{port}/{name}"
    if text == TIMEOUT[1]:
        return int(code), f"{text} after {timeout} seconds"
    return int(code), f"{text}: {error}"


def _row(error: Exception) -> tuple[str | None, str]:
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is not None and isinstance(error, aiohttp.ClientError):
        for name, row in _THEIRS:
            kind = getattr(aiohttp, name, None)
            if kind is not None and isinstance(error, kind):
                return row
    for ours, found in _OURS:
        if isinstance(error, ours):
            return found
    return DENDRITE_DEFAULT_ERROR


def refusal(text: str | None, name: str) -> tuple[int, str]:
    """Return the status for the error text of a miner that knows no statuses."""
    code, message = _TEXTS.get(text or "", (500, "Internal Server Error: {text}"))
    return code, message.format(name=name, text=text)
