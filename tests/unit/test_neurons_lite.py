"""The chain's answer about neurons: as recorded, and as it must not be."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lightning import decode_neurons_lite
from lightning.chain import scale
from lightning.errors import DecodeError
from tests.support.chain_node import neurons_answer

DIGESTS = Path(__file__).parents[1] / "vectors" / "neurons-lite-digests.json"


def digests(neurons: list[dict[str, Any]]) -> dict[str, str]:
    """Return a digest of each field's values, in the order of the neurons."""
    return {
        name: hashlib.sha256(
            json.dumps([neuron[name] for neuron in neurons]).encode()
        ).hexdigest()
        for name in neurons[0]
    }


@pytest.mark.parametrize(
    ("scenario", "count"), [("metagraph", 1024), ("neurons_lite", 19)]
)
def test_a_recorded_subnet_is_decoded_as_scalecodec_decodes_it(scenario, count):
    """The digests are made by scalecodec alone: tests/chain."""
    neurons = decode_neurons_lite(neurons_answer(scenario))
    assert len(neurons) == count
    found = digests([dataclasses.asdict(neuron) for neuron in neurons])
    assert found == json.loads(DIGESTS.read_text())[scenario]


def compact(number: int) -> bytes:
    """Encode as SCALE does, slowly."""
    if number < 64:
        return bytes([number << 2])
    if number < 1 << 14:
        return (number << 2 | 1).to_bytes(2, "little")
    if number < 1 << 30:
        return (number << 2 | 2).to_bytes(4, "little")
    size = (number.bit_length() + 7) // 8
    return bytes([size - 4 << 2 | 3]) + number.to_bytes(size, "little")


def neuron(**fields) -> bytes:
    given = {
        "uid": compact(7),
        "active": b"\1",
        "ip": (0x08080808).to_bytes(16, "little"),
        "port": (8443).to_bytes(2, "little"),
        "ip_type": b"\4",
        "protocol": b"\4",
        "stake": compact(0),
        "last_update": compact(6_000_000),
        "permit": b"\0",
    } | fields
    return b"".join(
        (
            b"h" * 32,
            b"c" * 32,
            given["uid"],
            compact(2),
            given["active"],
            bytes(12),
            given["ip"],
            given["port"],
            given["ip_type"],
            given["protocol"],
            bytes(2),
            bytes(31),
            given["stake"],
            *[compact(65535), compact(2**64 - 1), *[compact(9)] * 5],
            given["last_update"],
            given["permit"],
            compact(1),
        )
    )


def only(**fields):
    (found,) = decode_neurons_lite(compact(1) + neuron(**fields))
    return found


def test_stake_is_the_sum_over_those_who_gave_it():
    stakes = [1, 70, 20_000, 2**31, 2**64 - 1]
    data = compact(len(stakes)) + b"".join(b"n" * 32 + compact(s) for s in stakes)
    assert only(stake=data).stake == sum(stakes)


def test_addresses_of_both_families():
    assert only().axon_ip == "8.8.8.8"
    high = (0xFFFF << 64 | 0x01020304).to_bytes(16, "little")
    assert only(ip=high).axon_ip == "1.2.3.4", "the low 32 bits"
    six = (0x2A001450 << 96 | 1).to_bytes(16, "little")
    assert only(ip=six, ip_type=b"\6").axon_ip == "2a00:1450::1"
    assert only(ip_type=b"\0").axon_ip == ""


def test_bytes_after_the_answer_are_ignored():
    assert len(decode_neurons_lite(compact(1) + neuron() + b"more")) == 1


def test_an_older_runtimes_answer_is_a_vec_of_its_bytes():
    inner = compact(2) + neuron() + neuron(uid=compact(8))
    assert [n.uid for n in decode_neurons_lite(compact(len(inner)) + inner)] == [7, 8]
    assert decode_neurons_lite(compact(1) + compact(0)) == []
    assert decode_neurons_lite(compact(0)) == []


WRONG = {
    "nothing": b"",
    "no neuron": compact(1),
    "too many": compact(1000) + neuron(),
    "a huge count": compact(2**64 - 1),
    "a count of 65 bytes": b"\xff" * 70,
    "uid of 17 bits": compact(1) + neuron(uid=compact(65536)),
    "no bool": compact(1) + neuron(active=b"\2"),
    "permit is no bool": compact(1) + neuron(permit=b"\x80"),
    "too many stakes": compact(1) + neuron(stake=compact(2**40)),
    "a stake of 65 bits": compact(1)
    + neuron(stake=compact(1) + b"n" * 32 + compact(2**64)),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_no_answer_is_an_error_that_says_where(data):
    with pytest.raises(DecodeError) as caught:
        decode_neurons_lite(data)
    assert caught.value.path.startswith("neurons")
    assert 0 <= caught.value.offset <= len(data)


def test_it_may_not_end_anywhere_before_its_end():
    data = neurons_answer("neurons_lite")
    for size in range(len(data)):
        with pytest.raises(DecodeError):
            decode_neurons_lite(data[:size])


def test_an_answer_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(scale, "MAX_ANSWER", 100)
    with pytest.raises(DecodeError, match="above 100"):
        decode_neurons_lite(bytes(101))
