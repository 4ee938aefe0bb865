"""Signed HTTP requests: which are authentic and new, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning.dropin.http_auth import RequestGate, UsedNonces, signed_text
from lightning.dropin.synapse import Synapse
from lightning.errors import (
    HandshakeError,
    NonceInvalid,
    NonceReplayed,
    SignatureInvalid,
    TimestampOutOfRange,
)
from tests.support.identities import MINER, VALIDATOR, signer

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
HOUR = 3600 * SECOND


def request(signed=NOW, /, *, key=VALIDATOR, receiver=MINER, **changed):
    """Return the arguments of a check, signed, and then changed."""
    said = {
        "hotkey": key.ss58_address,
        "nonce": signed,
        "uuid": "u",
        "body_hash": "h",
        "timeout": 12.0,
        "now": NOW,
    }
    text = signed_text(signed, said["hotkey"], receiver.ss58_address, "u", "h")
    said["signature"] = "0x" + key.sign(text).hex()
    return said | changed


def gate(**more):
    return RequestGate(MINER.ss58_address, started=0, **more)


def test_a_signed_request_is_taken_once():
    checks = gate()
    checks.check(**request())
    with pytest.raises(NonceReplayed):
        checks.check(**request())
    checks.check(**request(NOW + 1))


def test_requests_may_overtake_each_other():
    checks = gate()
    for nonce in (NOW, NOW - SECOND, NOW + SECOND, NOW - 2 * SECOND):
        checks.check(**request(nonce))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"signature": None}, SignatureInvalid),
        ({"signature": ""}, SignatureInvalid),
        ({"signature": "0x"}, SignatureInvalid),
        ({"signature": "0x" + "00" * 64}, SignatureInvalid),
        ({"signature": "0x" + "zz" * 64}, SignatureInvalid),
        ({"hotkey": None}, SignatureInvalid),
        ({"hotkey": "nobody"}, SignatureInvalid),
        ({"hotkey": MINER.ss58_address}, SignatureInvalid),
        ({"nonce": None}, NonceInvalid),
        ({"nonce": NOW + 1}, SignatureInvalid),
        ({"nonce": 5}, TimestampOutOfRange),
        ({"uuid": "other"}, SignatureInvalid),
        ({"uuid": None}, SignatureInvalid),
        ({"body_hash": "other"}, SignatureInvalid),
        ({"body_hash": None}, SignatureInvalid),
    ],
)
def test_what_is_missing_or_changed_is_refused_and_costs_no_memory(changed, error):
    used = UsedNonces()
    with pytest.raises(error):
        gate(used=used).check(**request(**changed))
    assert len(used) == 0


def test_a_request_to_another_receiver_is_refused():
    with pytest.raises(SignatureInvalid, match="Signature mismatch"):
        gate().check(**request(receiver=VALIDATOR))


@pytest.mark.parametrize(
    ("age", "timeout", "taken"),
    [
        (3.9, 0, True),
        (4.1, 0, False),
        (-3.9, 0, True),
        (-4.1, 0, False),
        (15.9, 12, True),
        (16.1, 12, False),
        (-15.9, 12, True),
        (-16.1, 12, False),
        (603, 1e12, True),
        (605, 1e12, False),
        (5, float("nan"), False),
        (5, -100, False),
        (5, None, False),
        (603, float("inf"), True),
    ],
)
def test_the_window_is_four_seconds_and_the_timeout_both_ways(age, timeout, taken):
    said = request(NOW - int(age * SECOND), timeout=timeout)
    if taken:
        gate().check(**said)
    else:
        with pytest.raises(TimestampOutOfRange, match=r"too (old|far ahead)") as caught:
            gate().check(**said)
        assert caught.value.age == int(age)


def test_what_was_signed_before_the_start_is_refused():
    checks = RequestGate(MINER.ss58_address, started=NOW)
    with pytest.raises(TimestampOutOfRange, match="started"):
        checks.check(**request(NOW - 1))
    checks.check(**request(NOW))


def test_a_nonce_given_back_is_as_if_it_had_not_been_used():
    used = UsedNonces()
    checks = gate(used=used)
    said = request()
    checks.check(**said)
    checks.give_back(said["hotkey"], said["nonce"], said["uuid"])
    assert len(used) == 0
    assert not used._hotkeys
    checks.give_back(said["hotkey"], said["nonce"], said["uuid"])
    checks.check(**said)


def test_two_dendrites_may_use_the_same_nanosecond():
    used = UsedNonces()
    used.spend("a", NOW, "one", NOW)
    used.spend("a", NOW, "two", NOW)
    used.spend("b", NOW, "one", NOW)
    with pytest.raises(NonceReplayed):
        used.spend("a", NOW, "two", NOW)


def test_memory_is_given_back_with_time():
    used = UsedNonces()
    for n in range(100):
        used.spend(f"hotkey {n % 10}", NOW + n, "u", NOW)
    assert len(used) == 100
    for n in range(10):
        used.spend("other", NOW + HOUR + n, "u", NOW + HOUR)
    assert len(used) == 10
    assert list(used._hotkeys) == ["other"]


def test_a_clock_that_is_set_back_opens_no_window():
    used = UsedNonces()
    used.spend("a", NOW, "u", NOW)
    used.spend("b", NOW + HOUR, "u", NOW + HOUR)
    with pytest.raises(NonceReplayed):
        used.spend("a", NOW, "u", NOW)


def test_a_busy_hotkey_has_its_oldest_forgotten_and_never_taken_again():
    used = UsedNonces(max_per_hotkey=10)
    for n in range(30):
        used.spend("a", NOW + n, "u", NOW)
    assert len(used) == 10
    for n in range(30):
        with pytest.raises(NonceReplayed):
            used.spend("a", NOW + n, "u", NOW)


def test_new_hotkeys_are_refused_when_the_memory_is_full_and_others_go_on():
    used = UsedNonces(max_hotkeys=2)
    used.spend("a", NOW, "u", NOW)
    used.spend("b", NOW, "u", NOW)
    with pytest.raises(NonceReplayed, match="room"):
        used.spend("c", NOW, "u", NOW)
    used.spend("a", NOW + 1, "u", NOW)
    full = UsedNonces(max_nonces=2)
    full.spend("a", NOW, "u", NOW)
    full.spend("a", NOW + 1, "u", NOW)
    with pytest.raises(NonceReplayed, match="room"):
        full.spend("c", NOW, "u", NOW)
    full.spend("a", NOW + 2, "u", NOW)
    assert len(full) == 2


def test_what_is_kept_of_a_hotkey_survives_what_it_gives_back():
    used = UsedNonces(max_per_hotkey=1)
    used.spend("a", NOW, "u", NOW)
    used.spend("a", NOW + 1, "u", NOW)
    used.give_back("a", NOW + 1, "u")
    for _ in range(5):
        with pytest.raises(NonceReplayed):
            used.spend("a", NOW, "u", NOW)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(-600, 600), st.integers(0, 100)),
        max_size=200,
    ),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 3),
)
def test_nothing_is_ever_taken_twice_nor_memory_exceeded(
    asked, per_hotkey, most, hotkeys
):
    used = UsedNonces(hotkeys, most, per_hotkey)
    taken, now = set(), NOW
    for hotkey, offset, passed in asked:
        now += passed * SECOND
        nonce = now + offset * SECOND
        try:
            used.spend(hotkey, nonce, "u", now)
        except NonceReplayed:
            continue
        assert (hotkey, nonce) not in taken
        taken.add((hotkey, nonce))
        assert len(used) <= most + hotkeys
        assert len(used._hotkeys) <= hotkeys
        assert all(len(each.heap) <= per_hotkey for each in used._hotkeys.values())
        assert len(used) == sum(len(each.keys) for each in used._hotkeys.values())


@given(st.text(max_size=200), st.text(max_size=60), st.integers(), st.text(max_size=9))
def test_no_text_is_more_than_refused(signature, hotkey, nonce, uuid):
    with pytest.raises(HandshakeError):
        gate().check(
            **request(signature=signature, hotkey=hotkey, nonce=nonce, uuid=uuid)
        )


def test_every_key_has_its_own_memory():
    checks = gate()
    for number in range(3, 8):
        checks.check(**request(key=signer(number)))


def test_a_synapse_is_checked_by_its_fields():
    said = request(body_hash="h")
    synapse = Synapse(timeout=12.0, computed_body_hash="h")
    for field in ("hotkey", "nonce", "uuid", "signature"):
        setattr(synapse.dendrite, field, said[field])
    checks = gate()
    checks.check_synapse(synapse, NOW)
    with pytest.raises(NonceReplayed):
        checks.check_synapse(synapse, NOW)


def test_text_that_nobody_can_sign_is_refused():
    with pytest.raises(SignatureInvalid):
        gate().check(**request(uuid="\ud800"))
