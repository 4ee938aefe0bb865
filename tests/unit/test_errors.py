"""The whole tree of exceptions: made, told, copied, and caught as builtins."""

import copy
import inspect
import pickle

import pytest

from lightning import errors
from lightning.errors import (
    ConnectionClosed,
    HandshakeError,
    LightningConnectionError,
    LightningError,
    MissingField,
    RequestTimeout,
    StreamReset,
)
from lightning.types import PeerAddr

TREE = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, LightningError)
]
# The builtin that each branch is, and that its leaves are besides.
BUILTINS = {
    "connection": ConnectionError,
    "handshake": ConnectionError,
    "transport": ConnectionError,
    "config": ValueError,
    "serialization": ValueError,
    "signing": RuntimeError,
    "handler": RuntimeError,
    "stream": RuntimeError,
    "lightning": Exception,
}


def test_all_of_the_tree_is_public_and_drawn():
    assert {cls.__name__ for cls in TREE} == set(errors.__all__)
    for cls in TREE:
        assert cls.__name__ in errors.__doc__


@pytest.mark.parametrize("cls", TREE)
def test_each_class_keeps_its_promises(cls):
    """Made without arguments, it has a sentence and fields, and a copy has them too."""
    error = cls()
    assert issubclass(cls, KeyError if cls is MissingField else BUILTINS[cls.kind])
    assert (error.address, error.hotkey, error.elapsed) == ("", "", None)
    assert error.args == (error.detail,)
    assert cls is MissingField or str(error) == f"{cls.kind} error: {error.detail}"
    assert repr(error) == f"{cls.__name__}({error.detail!r})"
    error.locate(PeerAddr("192.0.2.1", 8443), "5Hotkey", 1.25)
    error.add_note("told to the user")
    for name in set(inspect.signature(cls).parameters) - {"detail"}:
        assert hasattr(error, name), f"{name} is no field"
    for other in (copy.copy(error), copy.deepcopy(error), *pickles(error)):
        assert type(other) is cls
        assert vars(other) == vars(error)
        assert (str(other), repr(other)) == (str(error), repr(error))
        assert other.__notes__ == ["told to the user"]


def pickles(error: LightningError) -> list[LightningError]:
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    return [pickle.loads(pickle.dumps(error, protocol)) for protocol in protocols]


def test_where_and_when_end_the_sentence():
    error = RequestTimeout(timeout=3).locate(PeerAddr("::1", 7), "5Hotkey", 3.00123)
    assert str(error) == (
        "transport error: query timed out (5Hotkey at [::1]:7 after 3 s)"
    )
    assert error.detail == "query timed out"
    assert isinstance(error, TimeoutError)


def test_what_is_known_already_is_not_overwritten_nor_told_twice():
    error = LightningConnectionError("cannot reach 192.0.2.1:1", address="192.0.2.1:1")
    error.locate(PeerAddr("198.51.100.1", 2), "5Hotkey").locate(hotkey="other")
    assert (error.address, error.hotkey) == ("192.0.2.1:1", "5Hotkey")
    assert str(error) == "connection error: cannot reach 192.0.2.1:1 (5Hotkey)"
    assert str(HandshakeError("no", hotkey="5H")) == "handshake error: no (5H)"


@pytest.mark.parametrize(
    ("fields", "end", "name"),
    [
        ({}, "", ""),
        ({"timed_out": True}, " (idle timeout)", ""),
        ({"initiator": "remote"}, " (remote close, code 0x0)", ""),
        ({"code": 1}, " (local close, code 0x1)", ""),
        (
            {"initiator": "remote", "reason": "server_shutdown"},
            " (remote close, code 0x0: server_shutdown)",
            "",
        ),
        (
            {"initiator": "remote", "code": 2, "application": False},
            " (remote close, CONNECTION_REFUSED 0x2)",
            "CONNECTION_REFUSED",
        ),
        (
            {"code": 0x178, "application": False, "reason": "bye"},
            " (local close, CRYPTO_ERROR (no_application_protocol) 0x178: bye)",
            "CRYPTO_ERROR (no_application_protocol)",
        ),
        (
            {"code": 0x1FF, "application": False},
            " (local close, CRYPTO_ERROR (alert 255) 0x1ff)",
            "CRYPTO_ERROR (alert 255)",
        ),
        (
            {"code": 0x52, "application": False},
            " (local close, unknown error 0x52)",
            "unknown error",
        ),
        (
            {"code": 0, "application": False},
            " (local close, NO_ERROR 0x0)",
            "NO_ERROR",
        ),
    ],
)
def test_how_a_connection_ended(fields, end, name):
    """The peer's text comes first, as programs of its users expect."""
    error = ConnectionClosed(**fields)
    assert error.detail == "read error: connection lost" + end
    assert error.code_name == name


def test_the_other_ends_reason_cannot_forge_a_line():
    error = ConnectionClosed(initiator="remote", reason="bye\n\x1b[2JERROR\u202eü")
    assert "bye\\n\\x1b[2JERROR\\u202eü" in str(error)
    assert error.reason == "bye\n\x1b[2JERROR\u202eü"


def test_the_peers_texts_stay():
    assert str(StreamReset(5)) == (
        "transport error: read error: stream reset by peer: error 5"
    )
    assert "sending stopped by peer: error 0" in str(StreamReset(0, sending=True))
    assert str(MissingField("ip")) == "Missing 'ip' field"
