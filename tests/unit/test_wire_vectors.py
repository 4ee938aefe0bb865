"""Bytes of the peer: what it sent, what it takes and what it refuses."""

import json
from pathlib import Path

import pytest

from lightning._core.wire.framing import FrameReader, MessageType, parse_frame_header
from lightning._core.wire.messages import decode_message
from lightning.errors import DecodeError
from tests.reference import wire_model

VECTORS = Path(__file__).parents[1] / "vectors"
WIRE = json.loads((VECTORS / "wire.json").read_text())
LOGIN = json.loads((VECTORS / "login.json").read_text())


def cases(name):
    return [pytest.param(case, id=case["name"]) for case in WIRE[name]]


def plain(value):
    """Turn what JSON says into what was meant."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def fields_of(kind, payload):
    message = decode_message(kind, payload)
    return [getattr(message, name) for name in wire_model.MESSAGES[kind]]


@pytest.mark.parametrize("case", cases("captured"))
def test_what_the_peer_sent_is_read_and_written_again_byte_for_byte(case):
    frame = bytes.fromhex(case["frame"])
    kind, payload = parse_frame_header(frame)
    assert fields_of(kind, payload) == plain(case["fields"])
    assert decode_message(kind, payload).to_frame() == frame


@pytest.mark.parametrize("name", ["request_frame", "response_frame"])
def test_the_genuine_login_is_read_and_written_again_byte_for_byte(name):
    frame = bytes.fromhex(LOGIN[name])
    kind, payload = parse_frame_header(frame)
    message = decode_message(kind, payload)
    assert message.to_frame() == frame
    assert message.timestamp == LOGIN["timestamp"]


def test_the_genuine_login_says_who_logged_in_where():
    request = decode_message(1, bytes.fromhex(LOGIN["request_frame"])[5:])
    response = decode_message(2, bytes.fromhex(LOGIN["response_frame"])[5:])
    assert request.validator_hotkey == LOGIN["validator"]["hotkey"]
    assert request.nonce == LOGIN["nonce"]
    assert response.miner_hotkey == LOGIN["miner"]["hotkey"]
    assert response.cert_fingerprint == LOGIN["fingerprint"]
    assert response.accepted
    assert response.connection_id.startswith(f"conn_{request.validator_hotkey}_")


@pytest.mark.parametrize("case", cases("tolerated"))
def test_what_the_peer_takes_is_taken(case):
    payload = bytes.fromhex(case["payload"])
    assert fields_of(case["kind"], payload) == plain(case["fields"])
    assert list(wire_model.message(case["kind"], payload)) == plain(case["fields"])


@pytest.mark.parametrize("case", cases("refused"))
def test_what_the_peer_refuses_is_refused(case):
    payload = bytes.fromhex(case["payload"])
    with pytest.raises(DecodeError):
        decode_message(case["kind"], payload)
    if "1 100" not in case["name"]:
        with pytest.raises(wire_model.Refused):
            wire_model.message(case["kind"], payload)


def test_a_streamed_answer_is_cut_into_its_frames():
    frames = [bytes.fromhex(case["frame"]) for case in WIRE["captured"][-3:]]
    stream = b"".join(frames)
    reader = FrameReader()
    taken = 0
    kinds = []
    while taken < len(stream):
        taken += reader.feed(stream, taken)
        kinds.append(reader.take()[0])
    assert kinds == [
        MessageType.STREAM_CHUNK,
        MessageType.STREAM_CHUNK,
        MessageType.STREAM_END,
    ]
