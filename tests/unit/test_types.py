"""Addresses, requests, responses: what is accepted, what is refused, and how."""

import dataclasses
import math
import pickle
import sys
from collections import UserDict
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from lightning.errors import (
    ConfigError,
    DecodeError,
    EncodeTypeError,
    HandlerError,
    MissingField,
)
from lightning.types import (
    PeerAddr,
    QuicAxonInfo,
    QuicRequest,
    QuicResponse,
    check_timeout,
)

AXON = {"hotkey": "5Hot", "ip": "192.0.2.1", "port": 8443}


@dataclasses.dataclass
class Point:
    name: str
    x: int
    raw: bytes = b""


# PeerAddr.


@pytest.mark.parametrize(
    ("ip", "port", "text"),
    [
        ("192.0.2.1", 8443, "192.0.2.1:8443"),
        ("::1", 1, "[::1]:1"),
        ("fe80::1%eth0", 65535, "[fe80::1%eth0]:65535"),
        ("example.org", 0, "example.org:0"),
    ],
)
def test_address_text_round_trips(ip: str, port: int, text: str) -> None:
    """An address is written with brackets for IPv6, and read back the same."""
    assert str(PeerAddr(ip, port)) == text
    assert PeerAddr.parse(text) == PeerAddr(ip, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "host",
        "host:",
        "host:-1",
        "host:+1",
        "host: 1",
        "host:1_0",
        "host:٣",
        "host:65536",
        "host:99999999999999999999",
        "host:000080",
        "::1",
        "::1:80",
        "[::1]",
        "[]:80",
        "[::1:80",
        "::1]:80",
        "[[::1]]:80",
    ],
)
def test_address_text_of_another_form_is_refused(text: str) -> None:
    """Reading refuses what is not exactly an address and a port."""
    with pytest.raises(ConfigError, match="address"):
        PeerAddr.parse(text)


def test_address_compares_hashes_and_orders_as_its_pair() -> None:
    """Addresses are frozen, and equal, hashed and ordered by ip and port."""
    addr = PeerAddr("192.0.2.1", 80)
    assert addr == ("192.0.2.1", 80)
    assert {addr: 1}[PeerAddr("192.0.2.1", 80)] == 1
    assert PeerAddr("a", 1) < PeerAddr("a", 2) < PeerAddr("b", 1)
    with pytest.raises(AttributeError):
        addr.port = 81
    assert pickle.loads(pickle.dumps(addr)) == addr


# QuicAxonInfo.


def test_axon_has_the_peers_attributes() -> None:
    """All four are read and written, protocol is 4 by default."""
    axon = QuicAxonInfo("5Hot", "::1", 8443)
    assert axon == QuicAxonInfo(hotkey="5Hot", ip="::1", port=8443, protocol=4)
    assert repr(axon) == "QuicAxonInfo(hotkey='5Hot', ip='::1', port=8443, protocol=4)"
    axon.hotkey, axon.ip, axon.port, axon.protocol = "5Cold", "192.0.2.9", 1, 255
    assert axon == QuicAxonInfo("5Cold", "192.0.2.9", 1, 255)
    assert not hasattr(axon, "__dict__")
    with pytest.raises(TypeError):
        hash(axon)
    assert pickle.loads(pickle.dumps(axon)) == axon


def test_axon_gives_its_address() -> None:
    """The address follows the attributes; addr_key is the same."""
    axon = QuicAxonInfo("5Hot", "::1", 8443)
    assert axon.address == axon.addr_key() == PeerAddr("::1", 8443)
    assert str(axon.address) == "[::1]:8443"
    axon.port = 1
    assert axon.address.port == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("hotkey", 5, TypeError),
        ("hotkey", None, TypeError),
        ("hotkey", b"5Hot", TypeError),
        ("ip", 1, TypeError),
        ("port", "80", TypeError),
        ("port", 80.0, TypeError),
        ("port", True, TypeError),
        ("port", None, TypeError),
        ("port", -1, OverflowError),
        ("port", 65536, OverflowError),
        ("protocol", -1, OverflowError),
        ("protocol", 256, OverflowError),
        ("protocol", "4", TypeError),
        ("protocol", None, TypeError),
    ],
)
def test_axon_refuses_wrong_values(name: str, value: object, error: type) -> None:
    """By constructor, assignment, mapping and object alike."""
    with pytest.raises(error, match=name):
        QuicAxonInfo(**AXON | {name: value})
    axon = QuicAxonInfo(**AXON)
    with pytest.raises(error, match=name):
        setattr(axon, name, value)
    assert axon == QuicAxonInfo(**AXON)
    with pytest.raises(error, match=name):
        QuicAxonInfo.coerce(AXON | {name: value})
    with pytest.raises(error, match=name):
        QuicAxonInfo.coerce(SimpleNamespace(**AXON | {name: value}))


def test_axon_passes_through_itself() -> None:
    """An axon, also of a subclass, is returned as it is."""

    class Special(QuicAxonInfo):
        pass

    for axon in (QuicAxonInfo(**AXON), Special(**AXON)):
        assert QuicAxonInfo.coerce(axon) is axon


@pytest.mark.parametrize("shape", [dict, UserDict, MappingProxyType])
def test_axon_from_a_mapping(shape: type) -> None:
    """Any mapping will do; more keys than needed are ignored."""
    assert QuicAxonInfo.coerce(shape(AXON)) == QuicAxonInfo(**AXON)
    more = AXON | {"protocol": 0, "coldkey": "5Cold"}
    assert QuicAxonInfo.coerce(shape(more)).protocol == 0


def test_axon_from_an_object() -> None:
    """An object with the attributes will do; numpy numbers become ints."""
    found = QuicAxonInfo.coerce(SimpleNamespace(**AXON | {"port": np.uint16(9)}))
    assert found == QuicAxonInfo("5Hot", "192.0.2.1", 9)
    assert type(found.port) is int
    assert QuicAxonInfo.coerce(SimpleNamespace(**AXON, protocol=7)).protocol == 7


@pytest.mark.parametrize("shape", [dict, UserDict])
@pytest.mark.parametrize("missing", ["hotkey", "ip", "port"])
def test_axon_names_the_first_missing_field(shape: type, missing: str) -> None:
    """hotkey, ip and port are looked for in this order."""
    names = list(AXON)
    rest = {n: AXON[n] for n in names[: names.index(missing)]}
    with pytest.raises(KeyError) as caught:
        QuicAxonInfo.coerce(shape(rest))
    assert isinstance(caught.value, MissingField)
    assert caught.value.field == missing
    assert str(caught.value) == f"Missing '{missing}' field"


@pytest.mark.parametrize(
    "value", [None, "5Hot", 5, ["5Hot"], SimpleNamespace(hotkey="5Hot", ip="::1")]
)
def test_axon_refuses_other_kinds(value: object) -> None:
    """What is neither axon, mapping nor fitting object is a TypeError."""
    with pytest.raises(TypeError, match="an axon is"):
        QuicAxonInfo.coerce(value)


def test_axon_lets_a_broken_mappings_error_through() -> None:
    """A KeyError that is not about a missing field is not called one."""

    class Broken(dict):
        def get(self, key: str, default: object = None) -> object:
            raise KeyError("inner")

    with pytest.raises(KeyError, match="inner"):
        QuicAxonInfo.coerce(Broken(AXON))


# QuicRequest.


def test_request_holds_type_and_data() -> None:
    """data is an empty dict by default, never shared between requests."""
    first, second = QuicRequest("echo"), QuicRequest("echo", None)
    assert first == second == QuicRequest("echo", {})
    first.data["a"] = 1
    assert second.data == {}
    data = {"a": 1}
    assert QuicRequest("echo", data).data is data
    assert QuicRequest("echo", UserDict(a=1)).data == {"a": 1}


@pytest.mark.parametrize("value", [None, 5, b"echo"])
def test_request_refuses_a_type_that_is_no_text(value: object) -> None:
    """synapse_type must be a str."""
    with pytest.raises(TypeError, match="synapse_type must be a str"):
        QuicRequest(value)


@pytest.mark.parametrize("value", [[], "a", 5, [("a", 1)]])
def test_request_refuses_data_that_is_no_mapping(value: object) -> None:
    """data must be a mapping, in either way to make a request."""
    with pytest.raises(TypeError, match="data must be a mapping"):
        QuicRequest("echo", value)
    with pytest.raises(TypeError, match="data must be a mapping"):
        QuicRequest.coerce({"synapse_type": "echo", "data": value})


def test_request_from_a_mapping() -> None:
    """A missing data is an empty map; an explicit None is refused, as by the peer."""
    data = {"a": 1}
    assert QuicRequest.coerce({"synapse_type": "echo", "data": data}).data is data
    first = QuicRequest.coerce(UserDict(synapse_type="echo"))
    assert first == QuicRequest("echo", {})
    first.data["a"] = 1
    assert QuicRequest.coerce({"synapse_type": "echo"}).data == {}
    with pytest.raises(TypeError, match="data must be a mapping, not NoneType"):
        QuicRequest.coerce({"synapse_type": "echo", "data": None})


def test_request_passes_through_itself() -> None:
    """A request is returned as it is."""
    request = QuicRequest("echo")
    assert QuicRequest.coerce(request) is request


def test_request_names_its_missing_field() -> None:
    """Without synapse_type it is a KeyError that says so."""
    with pytest.raises(MissingField, match="Missing 'synapse_type' field"):
        QuicRequest.coerce({"data": {}})


@pytest.mark.parametrize("value", [None, "echo", ["echo", {}], 5])
def test_request_refuses_other_kinds(value: object) -> None:
    """What is neither request nor mapping is a TypeError."""
    with pytest.raises(TypeError, match="a request is"):
        QuicRequest.coerce(value)


def test_request_from_typed_serializes_struct() -> None:
    """The fields of a typed object become the entries of data."""
    request = QuicRequest.from_typed("point", Point("p", 3, b"\xff"))
    assert request == QuicRequest("point", {"name": "p", "x": 3, "raw": b"\xff"})
    with pytest.raises(EncodeTypeError, match="int does not become a map"):
        QuicRequest.from_typed("point", 5)


# QuicResponse.


def test_response_into_result_gives_data_on_success() -> None:
    """A success hands out its data."""
    data = {"a": 1}
    assert QuicResponse(True, data, 1.5).into_result() is data


@pytest.mark.parametrize(
    ("error", "text"), [("no luck", "no luck"), ("", ""), (None, "request failed")]
)
def test_response_into_result_raises_on_failure(error: str | None, text: str) -> None:
    """A failure raises with its text, or with a default one."""
    with pytest.raises(HandlerError) as caught:
        QuicResponse(False, {}, 1.5, error).into_result()
    assert caught.value.detail == text


def test_response_deserialize_data_round_trips() -> None:
    """Object to data to equal object, whether or not the answer is a success."""
    point = Point("p", 3, b"\x00\xff")
    data = QuicRequest.from_typed("point", point).data
    assert QuicResponse(True, data, 0.1).deserialize_data(Point) == point
    assert QuicResponse(False, data, 0.1, "x").deserialize_data(Point) == point
    with pytest.raises(DecodeError) as caught:
        QuicResponse(True, {"name": "p", "x": "3"}, 0.1).deserialize_data(Point)
    assert caught.value.path == "data.x"


def test_response_to_dict_is_the_peers() -> None:
    """Exactly four keys, in the peer's order."""
    response = QuicResponse(True, {"a": 1}, 0.5)
    assert list(response.to_dict().items()) == [
        ("success", True),
        ("data", {"a": 1}),
        ("latency_ms", 0.5),
        ("error", None),
    ]


# check_timeout.


def test_timeout_may_be_none_or_a_number() -> None:
    """None is no limit; every real number of seconds becomes a float."""
    assert check_timeout(None) is None
    for value in (1, 0.5, np.float32(0.5), np.int64(2), Decimal("0.5")):
        checked = check_timeout(value)
        assert checked == value
        assert type(checked) is float
    for edge in (sys.float_info.min, 315_360_000, 315_360_000.0):
        assert check_timeout(edge) == edge


@pytest.mark.parametrize(
    "value",
    [
        0,
        -0.0,
        -1.0,
        math.nan,
        math.inf,
        -math.inf,
        5e-324,
        sys.float_info.min / 2,
        315_360_001,
        math.nextafter(315_360_000, math.inf),
        10**400,
        -(10**400),
    ],
)
def test_timeout_must_be_finite_and_positive(value: float) -> None:
    """Zero, negative, subnormal, endless and over-long timeouts are refused."""
    with pytest.raises(
        ValueError, match="timeout_secs must be a finite positive number"
    ) as caught:
        check_timeout(value)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("value", ["5", True, b"1", [1.0], 1j])
def test_timeout_must_be_a_number(value: object) -> None:
    """Texts, bools and the like are a TypeError."""
    with pytest.raises(TypeError, match="timeout_secs must be a number"):
        check_timeout(value)
