"""What became of a call, as a status and a message."""

import errno
import sys
from types import SimpleNamespace

import aiohttp
import pytest

from lightning.dropin.statuses import (
    DENDRITE_DEFAULT_ERROR,
    error_mapping,
    refusal,
    status_of,
)
from lightning.errors import (
    ConfigError,
    ConnectionClosed,
    DecodeError,
    EncodeTypeError,
    FrameTooLarge,
    HandshakeRejected,
    HotkeyMismatch,
    LightningConnectionError,
    RequestTimeout,
    ServerBusy,
    StreamError,
    StreamReset,
)

UNAVAILABLE = "Service unavailable at 192.0.2.1:8091/Ask"
KEY = SimpleNamespace(host="192.0.2.1", port=8091, ssl=True)
REQUEST = SimpleNamespace(real_url="http://192.0.2.1:8091/Ask")


def status(error):
    return status_of(error, name="Ask", ip="192.0.2.1", port=8091, timeout=12)


def _payload():
    return aiohttp.ClientPayloadError("cut")


CASES = [
    (LightningConnectionError("refused"), 503, UNAVAILABLE),
    (HotkeyMismatch("another"), 503, UNAVAILABLE),
    (TimeoutError(), 408, "Request timeout after 12 seconds"),
    (RequestTimeout(), 408, "Request timeout after 12 seconds"),
    (HandshakeRejected("no"), 401, "Not Verified with error: handshake error: no"),
    (FrameTooLarge(9, 8), 400, "Payload error: "),
    (ConnectionClosed(), 503, "Service disconnected: "),
    (StreamReset(), 503, "Service disconnected: "),
    (ConnectionResetError("reset"), 503, "Service disconnected: reset"),
    (EncodeTypeError("object"), 422, "Failed to parse response: "),
    (DecodeError("bytes"), 422, "Failed to parse response: "),
    (ConfigError("timeout"), 422, "Failed to parse response: "),
    (ValueError("odd"), 422, "Failed to parse response: odd"),
    (ServerBusy("server busy"), 503, "Service busy: server busy"),
    (StreamError("boom"), 500, "Internal Server Error: boom"),
    # aiohttp's.
    (
        aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "")),
        503,
        UNAVAILABLE,
    ),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "")), 503, UNAVAILABLE),
    (aiohttp.ConnectionTimeoutError(), 408, "Request timeout after 12 seconds"),
    (aiohttp.SocketTimeoutError("slow"), 504, "Server timeout error: slow"),
    (aiohttp.ServerDisconnectedError(), 503, "Service disconnected: "),
    (aiohttp.ServerConnectionError("x"), 503, "Service connection error: x"),
    (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), 503, "Service disconnected: "),
    (_payload(), 400, "Payload error: cut"),
    (aiohttp.ClientError("?"), 500, "Client error: ?"),
    (
        aiohttp.ClientResponseError(REQUEST, (), status=429, message="slow down"),
        429,
        "Client response error: ",
    ),
    (
        aiohttp.ClientResponseError(REQUEST, (), status=0, message="?"),
        500,
        "Client response error: ",
    ),
]


@pytest.mark.parametrize(
    ("error", "code", "message"), CASES, ids=[type(case[0]).__name__ for case in CASES]
)
def test_each_exception_has_its_status(error, code, message):
    """By its class or the nearest above it, in numbers and bittensor's words."""
    found, text = status(error)
    assert type(found) is int
    assert (found, text[: len(message)]) == (code, message)
    if not message.endswith(": "):
        assert text.startswith(message)


def test_the_table_has_bittensors_form():
    """Classes, texts of numbers, and None where the exception says it."""
    table = error_mapping()
    assert table[TimeoutError] == ("408", "Request timeout")
    assert table[aiohttp.ClientConnectorError] == ("503", "Service unavailable")
    assert table[aiohttp.ClientResponseError] == (None, "Client response error")
    assert table[aiohttp.ServerTimeoutError] == ("504", "Server timeout error")
    assert DENDRITE_DEFAULT_ERROR == ("422", "Failed to parse response")


def test_without_aiohttp_there_is_a_table_too(monkeypatch):
    """Nothing imports it for that."""
    monkeypatch.delitem(sys.modules, "aiohttp")
    assert TimeoutError in error_mapping()
    assert not any(kind.__module__ == "aiohttp" for kind in error_mapping())
    assert status(TimeoutError())[0] == 408
    assert "aiohttp" not in sys.modules


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("unrecognized synapse type", 404, "Synapse name 'Ask' not found"),
        (
            "authentication failed",
            401,
            "Not Verified with error: authentication failed",
        ),
        ("invalid request format", 400, "Invalid request: invalid request format"),
        ("handler timed out", 408, "Response timeout: handler timed out"),
        ("server busy", 503, "Service busy: server busy"),
        ("too many requests", 429, "Too many requests: too many requests"),
        ("anything {else}", 500, "Internal Server Error: anything {else}"),
        (None, 500, "Internal Server Error: None"),
    ],
)
def test_each_refusal_of_a_plain_server_has_its_status(text, code, message):
    """What a miner says is a text, and no format."""
    assert refusal(text, "Ask") == (code, message)
