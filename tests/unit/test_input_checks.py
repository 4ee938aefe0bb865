"""Malformed arguments: a clear error of the peer's class, and the connection lives on.

Every row of the table of input checks, on both faces. After each, the same connection
answers the next query, and no exchange is left.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    Lightning,
    LightningServer,
    QuicAxonInfo,
)
from lightning.errors import (
    ConfigError,
    EncodeError,
    EncodeTypeError,
    FrameTooLarge,
    LightningConnectionError,
    MissingField,
    SigningError,
)
from tests.support.identities import MINER_HOTKEY, VALIDATOR_HOTKEY, VALIDATOR_SEED
from tests.support.inspection import connections, in_flight


class Opaque:
    """A value that msgpack cannot say."""


@dataclass
class Row:
    """One malformed call: what replaces the good axon, request or timeout."""

    name: str
    errors: tuple[type[Exception], ...]
    text: str
    axon: Callable[[dict[str, Any]], Any] = lambda axon: axon
    request: Any = None
    timeout: Any = None


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda axon: {k: v for k, v in axon.items() if k != key}


def replaced(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda axon: {**axon, key: value}


def data(value: Any) -> dict[str, Any]:
    return {"synapse_type": "echo", "data": value}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


KEY = (MissingField, KeyError)
TYPE = (TypeError,)
OVERFLOW = (OverflowError,)
TIMEOUT = (ConfigError, ValueError)
FINITE = "timeout_secs must be a finite positive number"

ROWS = [
    Row("no hotkey", KEY, "Missing 'hotkey' field", axon=without("hotkey")),
    Row("no ip", KEY, "Missing 'ip' field", axon=without("ip")),
    Row("no port", KEY, "Missing 'port' field", axon=without("port")),
    Row("nothing at all", KEY, "Missing 'hotkey' field", axon=lambda _: {}),
    Row("ip before port", KEY, "Missing 'ip' field", axon=lambda _: {"hotkey": "x"}),
    Row("axon is a list", TYPE, "an axon is", axon=lambda _: ["127.0.0.1", 1]),
    Row("axon is None", TYPE, "an axon is", axon=lambda _: None),
    Row("axon is a text", TYPE, "an axon is", axon=lambda _: "127.0.0.1:1"),
    Row("port is a text", TYPE, "port must be an int", axon=replaced("port", "1")),
    Row("port is a float", TYPE, "port must be an int", axon=replaced("port", 1.0)),
    Row("port too large", OVERFLOW, "port must be 0 to", axon=replaced("port", 65536)),
    Row("port negative", OVERFLOW, "port must be 0 to", axon=replaced("port", -1)),
    Row("ip is a number", TYPE, "ip must be a str", axon=replaced("ip", 1)),
    Row("hotkey is bytes", TYPE, "hotkey must be a str", axon=replaced("hotkey", b"")),
    Row("no synapse_type", KEY, "Missing 'synapse_type' field", request={"data": {}}),
    Row("request is a list", TYPE, "a request is", request=["echo"]),
    Row(
        "synapse_type is a number",
        TYPE,
        "synapse_type must be a str",
        request={"synapse_type": 1},
    ),
    Row("data is a list", TYPE, "data must be a mapping", request=data([1])),
    Row("data is None", TYPE, "data must be a mapping", request=data(None)),
    Row("data is a text", TYPE, "data must be a mapping", request=data("x")),
    Row(
        "a key is a number", (EncodeTypeError, TypeError), "data", request=data({1: 2})
    ),
    Row("a key is bytes", (EncodeTypeError, TypeError), "data", request=data({b"": 2})),
    Row(
        "int above 64 bits",
        (EncodeError, ValueError),
        "Failed to convert Python value to msgpack: OverflowError",
        request=data({"a": [1, {"b": 2**64}]}),
    ),
    Row(
        "int below 64 bits",
        (EncodeError, ValueError),
        "at data.a[1].b",
        request=data({"a": [1, {"b": -(2**63) - 1}]}),
    ),
    Row(
        "lone surrogates",
        (EncodeError, ValueError),
        "surrogates at data.s",
        request=data({"s": "\ud83d"}),
    ),
    Row(
        "lone surrogates in the name",
        (EncodeError, ValueError),
        "surrogates",
        request={"synapse_type": "\ud83d"},
    ),
    Row("a set", (EncodeTypeError,), "at data.x", request=data({"x": {1}})),
    Row("any object", (EncodeTypeError,), "at data.x", request=data({"x": Opaque()})),
    Row("too deep", (EncodeError,), "", request=data({"x": nested(1100)})),
    Row(
        "over our own limit",
        (FrameTooLarge, ConnectionError),
        "exceeds maximum 1048576",
        request=data({"x": bytes(1_048_576)}),
    ),
    Row("timeout zero", TIMEOUT, FINITE, timeout=0),
    Row("timeout negative", TIMEOUT, FINITE, timeout=-1.0),
    Row("timeout NaN", TIMEOUT, FINITE, timeout=math.nan),
    Row("timeout infinite", TIMEOUT, FINITE, timeout=math.inf),
    Row("timeout subnormal", TIMEOUT, FINITE, timeout=sys.float_info.min / 2),
    Row("timeout too long", TIMEOUT, FINITE, timeout=315_360_001),
    Row("timeout is a text", TYPE, "timeout_secs must be a number", timeout="1"),
]

GOOD = {"synapse_type": "echo", "data": {"n": 1}}


def call_of(row: Row, axon: QuicAxonInfo) -> tuple[Any, Any, Any]:
    place = {"hotkey": axon.hotkey, "ip": axon.ip, "port": axon.port}
    request = GOOD if row.request is None else row.request
    return row.axon(place), request, row.timeout


def check(row: Row, error: Exception) -> None:
    for kind in row.errors:
        assert isinstance(error, kind)
    assert row.text in str(error)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_on_asyncio(row, start_server, connect):
    server = await start_server()
    client, axon = await connect(server, max_frame_payload_bytes=1_048_576)
    (before,) = connections(client)
    malformed_axon, request, timeout = call_of(row, axon)
    with pytest.raises(row.errors[0]) as caught:
        await client.query_axon(malformed_axon, request, timeout)
    check(row, caught.value)
    if row.timeout is None:
        with pytest.raises(row.errors[0]) as caught:
            await client.query_axon_stream(malformed_axon, request)
        check(row, caught.value)
    assert not in_flight(client, server)
    answer = await client.query_axon(axon, GOOD, 10)
    assert answer.data == {"n": 1}
    assert list(connections(client)) == [before], "the connection is the same"


def test_on_the_blocking_face(start_blocking_server, make_blocking_client, axon_of):
    server = start_blocking_server()
    client = make_blocking_client(max_frame_payload_bytes=1_048_576)
    axon = axon_of(server)
    client.initialize_connections([axon])
    (before,) = connections(client)
    for row in ROWS:
        malformed_axon, request, timeout = call_of(row, axon)
        with pytest.raises(row.errors[0]) as caught:
            client.query_axon(malformed_axon, request, timeout)
        check(row, caught.value)
        answer = client.query_axon(axon, GOOD, 10)
        assert (answer["success"], answer["data"]) == (True, {"n": 1}), row.name
    assert list(connections(client)) == [before], "the connection is the same"


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.request is None and r.timeout is None], ids=str
)
async def test_lists_of_miners_are_checked_before_anything_is_done(
    row, start_server, connect
):
    server = await start_server()
    client, axon = await connect(server)
    malformed, _, _ = call_of(row, axon)
    for method in (client.initialize_connections, client.update_miner_registry):
        with pytest.raises(row.errors[0]) as caught:
            await method([malformed])
        check(row, caught.value)
    assert await client.authenticated_hotkeys() == {axon.hotkey}


async def test_what_may_be_left_out(start_server, connect):
    """Missing data is an empty map, a missing protocol is 4."""
    server = await start_server()
    client, axon = await connect(server)
    answer = await client.query_axon(axon, {"synapse_type": "echo"})
    assert (answer.success, answer.data) == (True, {})
    assert QuicAxonInfo.coerce({"hotkey": "x", "ip": "y", "port": 1}).protocol == 4


UNSIGNED = [
    "connect_timeout_secs",
    "idle_timeout_secs",
    "keep_alive_interval_secs",
    "reconnect_initial_backoff_secs",
    "reconnect_max_backoff_secs",
    "reconnect_max_retries",
    "max_frame_payload_bytes",
    "max_stream_payload_bytes",
    "max_connections",
    "stream_chunk_timeout_secs",
]


@pytest.mark.parametrize("name", UNSIGNED)
def test_arguments_of_the_client_are_whole_and_not_negative(name):
    for value, kind in ((-1, OverflowError), (1.5, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match=name.removesuffix("_secs")):
            Lightning(VALIDATOR_HOTKEY, **{name: value})


SERVER_UNSIGNED = [
    "max_signature_age_secs",
    "idle_timeout_secs",
    "keep_alive_interval_secs",
    "nonce_cleanup_interval_secs",
    "max_nonce_entries",
    "max_frame_payload_bytes",
    "max_connections",
    "handshake_timeout_secs",
    "max_handshake_attempts_per_minute",
    "max_concurrent_bidi_streams",
    "validator_permit_refresh_secs",
    "handler_timeout_secs",
]


@pytest.mark.parametrize("name", SERVER_UNSIGNED)
def test_arguments_of_the_server_are_whole_and_not_negative(name):
    for value, kind in ((-1, OverflowError), (1.5, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match=name):
            LightningServer(MINER_HOTKEY, "127.0.0.1", 0, **{name: value})


@pytest.mark.parametrize("face", [LightningServer, AsyncLightningServer])
def test_the_servers_port(face):
    for port, kind in ((65536, OverflowError), (-1, OverflowError), ("1", TypeError)):
        with pytest.raises(kind):
            face(MINER_HOTKEY, "127.0.0.1", port)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), bytes(64)])
def test_a_seed_is_32_bytes(seed):
    for face in (Lightning(VALIDATOR_HOTKEY), AsyncLightning(VALIDATOR_HOTKEY)):
        with pytest.raises(ValueError, match="32"):
            face.set_validator_keypair(seed)
    for server in (LightningServer(MINER_HOTKEY), AsyncLightningServer(MINER_HOTKEY)):
        with pytest.raises(ValueError, match="32"):
            server.set_miner_keypair(seed)


def test_a_seed_may_be_a_list_of_numbers():
    Lightning(VALIDATOR_HOTKEY).set_validator_keypair(list(VALIDATOR_SEED))


def test_before_the_endpoint_is_initialized(axon_of):
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", 9)
    client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR_SEED)
    try:
        for call in (
            lambda: client.query_axon(axon, GOOD),
            lambda: client.query_axon_stream(axon, GOOD),
            lambda: client.update_miner_registry([axon]),
        ):
            with pytest.raises(ConnectionError, match="endpoint not initialized") as e:
                call()
            assert isinstance(e.value, LightningConnectionError)
    finally:
        client.close()


def test_without_a_signer():
    client = Lightning(VALIDATOR_HOTKEY)
    try:
        with pytest.raises(RuntimeError, match="signing error: No signer config") as e:
            client.initialize_connections([])
        assert isinstance(e.value, SigningError)
    finally:
        client.close()
