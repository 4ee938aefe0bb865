"""bittensor's HTTP protocol without the HTTP."""

import json
from datetime import UTC, datetime
from enum import Enum
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from lightning.dropin.axon_info import AxonInfo
from lightning.dropin.http_headers import (
    RequestHead,
    address_of,
    clean_headers,
    process_response,
    read_answer,
    reply_body,
    reply_headers,
    request_body,
    request_headers,
    set_request_terminals,
    url_of,
)
from lightning.dropin.synapse import Synapse, TerminalInfo
from tests.support.identities import MINER_HOTKEY, VALIDATOR_HOTKEY


class Colour(Enum):
    RED = "red"


class Echo(Synapse):
    text: str = ""
    kept: str = Field("mine", frozen=True)
    answer: str | None = None
    when: datetime | None = None
    colour: Colour | None = None
    raw: bytes | None = None

    @field_validator("text")
    @classmethod
    def _strip(cls, text):
        return text + "!" if text.endswith("?") else text


class Hashed(Synapse):
    text: str
    required_hash_fields = ("text",)


def asked(synapse=None):
    synapse = synapse or Echo(text="x")
    target = AxonInfo(ip="1.2.3.4", port=8091, hotkey=MINER_HOTKEY)
    text = set_request_terminals(
        synapse,
        target,
        timeout=7.0,
        ip="5.6.7.8",
        nonce=12,
        uuid="u",
        hotkey=VALIDATOR_HOTKEY,
    )
    return synapse, text


def answer(status=200, **headers):
    return SimpleNamespace(status=status, headers=headers)


def test_addresses():
    assert address_of("1.2.3.4", 80) == "1.2.3.4:80"
    assert address_of("::1", 80) == "[::1]:80"
    assert address_of("[::1]", 80) == "[::1]:80"
    assert address_of("miner.example", 80) == "miner.example:80"


def test_only_our_own_address_leads_to_this_machine():
    target = AxonInfo(ip="1.2.3.4", port=80)
    assert url_of(target, "Echo") == "http://1.2.3.4:80/Echo"
    assert url_of(target, "Echo", "1.2.3.5") == "http://1.2.3.4:80/Echo"
    assert url_of(target, "Echo", "1.2.3.4") == "http://0.0.0.0:80/Echo"


def test_a_request_says_who_asks_whom():
    synapse, text = asked()
    start = f"12.{VALIDATOR_HOTKEY}.{MINER_HOTKEY}.u."
    assert text.decode() == start + synapse.body_hash
    headers = request_headers(synapse)
    assert headers["name"] == "Echo"
    assert headers["timeout"] == "7.0"
    assert headers["bt_header_axon_ip"] == "1.2.3.4"
    assert headers["bt_header_axon_port"] == "8091"
    assert headers["bt_header_axon_hotkey"] == MINER_HOTKEY
    assert headers["bt_header_dendrite_ip"] == "5.6.7.8"
    assert headers["bt_header_dendrite_nonce"] == "12"
    assert headers["bt_header_dendrite_version"] == "10005000"
    assert headers["computed_body_hash"] == synapse.body_hash
    assert json.loads(request_body(synapse)) == synapse.model_dump()


def test_the_head_reads_what_a_request_says():
    synapse, _ = asked()
    head = RequestHead(request_headers(synapse))
    assert head.timeout == 7.0
    assert head.body_hash == synapse.body_hash
    assert head.dendrite["nonce"] == 12
    assert head.claimed == ("5.6.7.8", None)
    built = head.build(Echo, json.loads(request_body(synapse)))
    assert built.text == "x"
    assert built.dendrite.hotkey == VALIDATOR_HOTKEY
    assert built.axon.port == 8091
    assert built.computed_body_hash == synapse.body_hash


def test_the_body_says_nothing_about_who_sent_it():
    synapse, _ = asked()
    body = json.loads(request_body(synapse))
    body["dendrite"] = {"hotkey": "other", "port": 7, "signature": "s", "more": 1}
    body["axon"] = "nothing"
    body["timeout"] = 1e9
    built = RequestHead(request_headers(synapse)).build(Echo, body)
    assert built.dendrite.hotkey == VALIDATOR_HOTKEY
    assert built.dendrite.port is None
    assert built.dendrite.signature is None
    assert built.timeout == 7.0


def test_a_body_that_is_not_what_was_signed_is_refused():
    synapse, _ = asked(Hashed(text="x"))
    head = RequestHead(request_headers(synapse))
    body = json.loads(request_body(synapse))
    assert head.build(Hashed, dict(body)).text == "x"
    with pytest.raises(ValueError, match="hashes"):
        head.build(Hashed, body | {"text": "y"})
    with pytest.raises(TypeError, match="list"):
        head.build(Hashed, [])
    with pytest.raises(ValueError, match="text"):
        head.build(Hashed, {})


@pytest.mark.parametrize(
    "headers",
    [
        {"timeout": "soon"},
        {"header_size": "x"},
        {"bt_header_dendrite_nonce": "1.5"},
        {"bt_header_axon_port": ""},
        {"bt_header_dendrite_process_time": "x"},
    ],
)
def test_numbers_in_headers_are_numbers(headers):
    with pytest.raises(ValueError, match=r"convert|invalid"):
        RequestHead(headers)


def test_unknown_fields_of_terminals_are_left_out():
    head = RequestHead({"bt_header_dendrite_x": "1", "timeout": "None"})
    assert head.dendrite == {}
    assert head.timeout is None


def test_values_that_json_does_not_have_travel_as_pydantic_writes_them():
    when = datetime(2020, 1, 2, tzinfo=UTC)
    body = request_body(Echo(when=when, colour=Colour.RED, raw=b"abc"))
    built = Echo(**json.loads(body))
    assert (built.when, built.colour, built.raw) == (when, Colour.RED, b"abc")
    with pytest.raises(TypeError, match="bytes"):
        request_body(Echo(raw=b"\xff"))


def test_success_takes_every_field_that_is_not_frozen():
    synapse, _ = asked(Echo(text="a?", kept="mine"))
    data = {"text": "b?", "kept": "theirs", "answer": "c", "unknown": 1}
    process_response(answer(), data, synapse)
    assert synapse.kept == "mine"
    assert synapse.answer == "c"
    assert synapse.text == "b?!"
    synapse.text = "d?"
    assert synapse.text == "d?!"


def test_failure_leaves_the_fields_and_tells_the_status():
    synapse, _ = asked()
    process_response(answer(403), {"message": "no", "text": "y"}, synapse)
    assert synapse.text == "x"
    assert synapse.axon.status_code == synapse.dendrite.status_code == 403
    assert synapse.dendrite.status_message == "no"
    synapse.axon = synapse.dendrite = None
    process_response(answer(500), {}, synapse)
    assert synapse.dendrite.status_code == 500
    assert synapse.dendrite.status_message is None


def test_headers_win_over_the_body():
    synapse, _ = asked()
    headers = {
        "bt_header_axon_status_code": "418",
        "BT_HEADER_AXON_STATUS_MESSAGE": "tea",
        "bt_header_dendrite_port": "77",
        "bt_header_axon_process_time": "0.5",
    }
    process_response(answer(500, **headers), {"message": "no"}, synapse)
    assert synapse.dendrite.status_code == 418
    assert synapse.dendrite.status_message == "tea"
    assert synapse.dendrite.port == 77
    assert synapse.axon.process_time == 0.5
    assert synapse.axon.hotkey == MINER_HOTKEY


def test_an_answer_that_is_no_object_or_does_not_fit_is_an_error():
    synapse, _ = asked()
    for data in (None, [], "x", 1):
        with pytest.raises(TypeError):
            process_response(answer(), data, synapse)
    with pytest.raises(ValueError, match="text"):
        process_response(answer(), {"text": 1}, synapse)
    with pytest.raises(ValueError, match="invalid"):
        process_response(answer(bt_header_axon_port="x"), {}, synapse)
    assert synapse.text == "x"
    assert read_answer(b" \n") is None


def test_latin_1_in_a_header_is_read_as_such():
    synapse, _ = asked()
    said = "é".encode("latin-1").decode(errors="surrogateescape")
    process_response(answer(400, bt_header_axon_status_message=said), {}, synapse)
    assert synapse.dendrite.status_message == "é"


def replied(message, *, has_body=True):
    return reply_headers(
        name="Echo",
        timeout=1.0,
        body_hash="h",
        dendrite={"hotkey": "v"},
        axon={"status_code": 400, "status_message": message},
        size=10,
        has_body=has_body,
    )


@pytest.mark.parametrize("message", ["plain", "zażółć", "日本語", ""])
def test_messages_travel_in_headers(message):
    assert replied(message)["bt_header_axon_status_message"] == message


@pytest.mark.parametrize(
    "message", ["two\nlines", " space", "x" * 9000, "\x00", "ż" * 5000]
)
def test_messages_that_no_header_can_say_are_left_to_the_body(message):
    key = "bt_header_axon_status_message"
    assert key not in replied(message)
    header = replied(message, has_body=False)[key]
    assert len(header.encode()) <= 4096
    assert header.isprintable()


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=3000), max_size=5))
def test_any_headers_can_be_sent(headers):
    for name, value in clean_headers(headers).items():
        assert name.isascii()
        assert len(value.encode()) <= 4096
        assert not any(ord(c) < 32 or ord(c) == 127 for c in value)


def test_the_body_of_an_answer_has_its_terminals_and_leaves_the_synapse_alone():
    synapse, _ = asked()
    ends = synapse.dendrite, synapse.axon
    body = json.loads(reply_body(synapse, {"hotkey": "v"}, {"status_code": 200}))
    assert body["dendrite"]["hotkey"] == "v"
    assert body["axon"]["status_code"] == 200
    assert (synapse.dendrite, synapse.axon) == ends
    assert isinstance(synapse.axon, TerminalInfo)
