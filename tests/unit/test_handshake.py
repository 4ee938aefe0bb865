"""The login: what is signed, what is checked, and in which order."""

import base64
import json
import pathlib
import pickle
from dataclasses import FrozenInstanceError

import pytest

from lightning import ss58
from lightning._core.wire.messages import HandshakeRequest, HandshakeResponse
from lightning.errors import (
    FingerprintMismatch,
    HandshakeError,
    HandshakeRejected,
    HotkeyMismatch,
    NonceInvalid,
    SignatureInvalid,
    TimestampOutOfRange,
)
from lightning.handshake import (
    ClientLogin,
    accept,
    certificate_fingerprint,
    connection_id,
    rejection,
    request_message,
    response_message,
    verify_request,
)
from lightning.signer import Sr25519Signer

VECTOR = json.loads(
    (pathlib.Path(__file__).parents[1] / "vectors" / "login.json").read_text()
)
VALIDATOR = Sr25519Signer.from_seed(bytes.fromhex(VECTOR["validator"]["seed"]))
MINER = Sr25519Signer.from_seed(bytes.fromhex(VECTOR["miner"]["seed"]))
STRANGER = Sr25519Signer.from_seed(b"\x03" * 32)
FINGERPRINT = VECTOR["fingerprint"]
OTHER_FINGERPRINT = certificate_fingerprint(b"another certificate")
NOW = VECTOR["timestamp"]
NONCE = VECTOR["nonce"]


def login(**changes):
    fields = {
        "validator_hotkey": VALIDATOR.ss58_address,
        "miner_hotkey": MINER.ss58_address,
        "fingerprint": FINGERPRINT,
        "timestamp": NOW,
        "nonce": NONCE,
    }
    return ClientLogin(**fields | changes)


def request(signer=VALIDATOR, signature=None, message=None, **changes):
    """Build a login request; signed properly over its own fields unless told."""
    fields = {
        "validator_hotkey": signer.ss58_address,
        "timestamp": NOW,
        "nonce": NONCE,
    } | changes
    if signature is None:
        if message is None:
            message = request_message(
                fields["validator_hotkey"],
                fields["timestamp"],
                fields["nonce"],
                FINGERPRINT,
            )
        signature = base64.b64encode(signer.sign(message)).decode()
    return HandshakeRequest(*fields.values(), signature)


def verify(message, *, fingerprint=FINGERPRINT, now=NOW, max_age=300, **options):
    verify_request(
        message, fingerprint=fingerprint, now=now, max_age=max_age, **options
    )


def response(signer=MINER, message=None, **changes):
    """Build an accepted response; signed properly over its own fields unless told."""
    fields = {
        "miner_hotkey": signer.ss58_address,
        "timestamp": NOW + 5,
        "signature": None,
        "accepted": True,
        "connection_id": "anything",
        "cert_fingerprint": FINGERPRINT,
    } | changes
    if fields["signature"] is None:
        message = message or response_message(
            VALIDATOR.ss58_address,
            fields["miner_hotkey"],
            fields["timestamp"],
            NONCE,
            FINGERPRINT,
        )
        fields["signature"] = base64.b64encode(signer.sign(message)).decode()
    return HandshakeResponse(*fields.values())


# --- the genuine login ----------------------------------------------------------------


def test_fingerprint_is_that_of_the_captured_certificate():
    certificate = bytes.fromhex(VECTOR["certificate"])
    assert certificate_fingerprint(certificate) == FINGERPRINT
    assert len(FINGERPRINT) == 44


def test_captured_identities_are_ours():
    for role, signer in (("validator", VALIDATOR), ("miner", MINER)):
        assert signer.ss58_address == VECTOR[role]["hotkey"]
        assert signer.public_key.hex() == VECTOR[role]["public_key"]


def test_captured_request_is_what_we_would_send_and_accept():
    frame = bytes.fromhex(VECTOR["request_frame"])
    captured = HandshakeRequest.from_payload(frame[5:])
    assert login().message.decode() == VECTOR["request_message"]
    ours = login().request(base64.b64decode(captured.signature))
    assert ours.to_frame() == frame
    verify(captured)


def test_captured_response_is_accepted_and_what_we_would_answer():
    frame = bytes.fromhex(VECTOR["response_frame"])
    captured = HandshakeResponse.from_payload(frame[5:])
    login().check(captured)
    ours = accept(
        request(),
        miner_hotkey=MINER.ss58_address,
        fingerprint=FINGERPRINT,
        now=NOW + 0.1115,
    )
    assert ours.message.decode() == VECTOR["response_message"]
    assert ours.response(base64.b64decode(captured.signature)).to_frame() == frame


def test_both_roles_complete_a_login():
    client = login()
    asked = client.request(VALIDATOR.sign(client.message))
    verify(asked, now=NOW + 3.9)
    server = accept(
        asked, miner_hotkey=MINER.ss58_address, fingerprint=FINGERPRINT, now=NOW + 3.9
    )
    answer = server.response(MINER.sign(server.message))
    client.check(answer)
    assert answer.timestamp == NOW + 3
    assert answer.connection_id == f"conn_{VALIDATOR.ss58_address}_{NOW + 3}900"


def test_connection_id_has_milliseconds():
    assert (
        connection_id("5Validator", 1795573209.111) == "conn_5Validator_1795573209111"
    )
    assert connection_id("5Validator", 7) == "conn_5Validator_7000"


def test_rejection_tells_nothing_but_our_hotkey():
    expected = HandshakeResponse("5Miner", NOW, "", False, "", None)
    assert rejection(NOW + 0.9, "5Miner") == expected
    assert rejection(NOW).miner_hotkey == ""


# --- the server's checks --------------------------------------------------------------


@pytest.mark.parametrize("age", [-60, -59, 0, 1, 299])
def test_login_is_fresh_from_60_s_ahead_to_below_the_limit(age):
    verify(request(timestamp=NOW - age))
    # Fractions of our clock do not count.
    verify(request(timestamp=NOW - age), now=NOW + 0.999)


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (300, "login is 300 s old, the limit is 300 s"),
        (301, "login is 301 s old, the limit is 300 s"),
        (NOW, f"login is {NOW} s old"),
        (-61, "login is 61 s ahead of our clock, the limit is 60 s"),
        (NOW - 2**63, "s ahead of our clock"),
        (NOW - (2**64 - 1), "s ahead of our clock"),
    ],
)
def test_login_outside_of_the_window_is_refused_with_by_how_much(age, text):
    with pytest.raises(TimestampOutOfRange, match=text) as caught:
        verify(request(timestamp=NOW - age), now=NOW + 0.9)
    assert caught.value.age == age
    assert pickle.loads(pickle.dumps(caught.value)).age == age


def test_window_is_the_callers():
    verify(request(timestamp=NOW - 3), max_age=4, max_skew=0)
    with pytest.raises(TimestampOutOfRange, match="3 s old, the limit is 3 s"):
        verify(request(timestamp=NOW - 3), max_age=3)
    with pytest.raises(TimestampOutOfRange, match=r"1 s ahead .* the limit is 0 s"):
        verify(request(timestamp=NOW + 1), max_skew=0)


@pytest.mark.parametrize("nonce", ["0" * 32, "f" * 32, "F" * 32, "aB" * 16])
def test_nonce_is_32_hexadecimal_digits_of_either_case(nonce):
    verify(request(nonce=nonce))


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "0" * 31,
        "0" * 33,
        "0" * 64,
        "g" * 32,
        "0x" + "0" * 30,
        "0" * 15 + ":" + "0" * 16,
        "0" * 31 + "\n",
        "0" * 32 + "\n",
        " " + "0" * 31,
        "0" * 31 + "\0",
        # FULLWIDTH and ARABIC-INDIC digits are digits to Python, not to us.
        "\uff10" * 32,
        "\u0660" * 32,
        "-" + "0" * 31,
        "0_" * 16,
    ],
)
def test_every_other_nonce_is_refused_although_it_is_signed(nonce):
    with pytest.raises(NonceInvalid, match="32 hexadecimal digits"):
        verify(request(nonce=nonce))


GOOD = request().signature


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("", "empty signature"),
        ("=", "Failed to decode signature"),
        ("nonsense!", "Failed to decode signature"),
        (GOOD[:-1], "Failed to decode signature"),
        (GOOD[:-2], "Failed to decode signature"),
        (GOOD + "=", "Failed to decode signature"),
        (GOOD + "\n", "Failed to decode signature"),
        (GOOD[:40] + "\n" + GOOD[40:], "Failed to decode signature"),
        (GOOD[:40] + " " + GOOD[40:], "Failed to decode signature"),
        (GOOD[:40] + ":" + GOOD[41:], "Failed to decode signature"),
        (" " + GOOD, "Failed to decode signature"),
        ("-_" + GOOD[2:], "Failed to decode signature"),
        ("é" + GOOD[1:], "Failed to decode signature"),
        (base64.b64encode(bytes(63)).decode(), "Invalid signature length: 63"),
        (base64.b64encode(bytes(65)).decode(), "Invalid signature length: 65"),
        (base64.b64encode(bytes(4096)).decode(), "Invalid signature length: 4096"),
        ("AAAA", "Invalid signature length: 3"),
        (base64.b64encode(bytes(64)).decode(), "signature verification failed"),
        (base64.b64encode(b"\xff" * 64).decode(), "signature verification failed"),
    ],
)
def test_malformed_signature_is_refused_with_its_fault(signature, reason):
    with pytest.raises(SignatureInvalid, match=reason):
        verify(request(signature=signature))
    with pytest.raises(SignatureInvalid, match=reason):
        login().check(response(signature=signature))


def test_unused_bits_of_base64_are_no_second_spelling():
    """The last character before the padding carries four bits that mean nothing."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = GOOD[:85] + alphabet[alphabet.index(GOOD[85]) ^ 1] + GOOD[86:]
    assert base64.b64decode(other, validate=True) == base64.b64decode(GOOD)
    with pytest.raises(SignatureInvalid, match="not in canonical form"):
        verify(request(signature=other))


@pytest.mark.parametrize(
    "hotkey",
    [
        "",
        "nobody",
        VALIDATOR.ss58_address + " ",
        VALIDATOR.ss58_address + ":",
        ":" + VALIDATOR.ss58_address,
        VALIDATOR.ss58_address + "\0",
        VALIDATOR.ss58_address.lower(),
        VALIDATOR.ss58_address.replace("C", "\u0421", 1),
        VALIDATOR.ss58_address[:-1] + "\udc80",
        ss58.encode(VALIDATOR.public_key, 46),
        ss58.encode(VALIDATOR.public_key, 60),
    ],
)
def test_malformed_hotkey_is_refused(hotkey):
    with pytest.raises(SignatureInvalid, match="Invalid SS58 address"):
        verify(request(validator_hotkey=hotkey, signature=GOOD))


@pytest.mark.parametrize("prefix", [0, 2, 42, 14998])
def test_hotkey_of_any_registered_network_is_a_validator_of_its_own(prefix):
    hotkey = ss58.encode(VALIDATOR.public_key, prefix)
    signed = request(validator_hotkey=hotkey)
    verify(signed)
    if prefix != 42:
        moved = request(signature=signed.signature)
        with pytest.raises(SignatureInvalid, match="verification failed"):
            verify(moved)


@pytest.mark.parametrize(
    "message",
    [
        request_message(VALIDATOR.ss58_address, NOW, NONCE, OTHER_FINGERPRINT),
        request_message(VALIDATOR.ss58_address, NOW + 1, NONCE, FINGERPRINT),
        request_message(VALIDATOR.ss58_address, NOW, NONCE[::-1], FINGERPRINT),
        request_message(STRANGER.ss58_address, NOW, NONCE, FINGERPRINT),
        login().message + b"\n",
        b"<Bytes>" + login().message + b"</Bytes>",
        login().message.replace(b":", b": "),
        login().message.replace(str(NOW).encode(), b"0%d" % NOW),
        login().message.replace(str(NOW).encode(), b"+%d" % NOW),
        login().message.replace(str(NOW).encode(), b"%d.0" % NOW),
        login().message.upper(),
        b"",
    ],
)
def test_signature_over_anything_else_is_refused(message):
    with pytest.raises(SignatureInvalid, match="signature verification failed") as e:
        verify(request(message=message))
    assert e.value.hotkey == VALIDATOR.ss58_address


def test_signature_of_somebody_else_is_refused():
    forged = request(STRANGER, validator_hotkey=VALIDATOR.ss58_address)
    with pytest.raises(SignatureInvalid, match="signature verification failed"):
        verify(forged)


def test_login_replayed_to_another_server_or_after_a_restart_is_refused():
    """Both have another certificate, and its fingerprint is what was signed."""
    with pytest.raises(SignatureInvalid, match="signature verification failed"):
        verify(request(), fingerprint=OTHER_FINGERPRINT)


def test_servers_own_response_cannot_be_reflected_as_a_login():
    """The two signed texts differ in their first word."""
    server = accept(
        request(), miner_hotkey=MINER.ss58_address, fingerprint=FINGERPRINT, now=NOW
    )
    signature = base64.b64encode(MINER.sign(server.message)).decode()
    reflected = request(MINER, signature=signature)
    with pytest.raises(SignatureInvalid, match="signature verification failed"):
        verify(reflected)
    assert not server.message.startswith(b"handshake:")


def test_server_checks_in_the_order_of_the_specification():
    """Age, nonce, signature present, hotkey, base64, length, and the costly one last."""
    nothing_right = {"validator_hotkey": "nobody", "nonce": "", "signature": ""}
    steps = [
        ({"timestamp": NOW - 300}, TimestampOutOfRange, "old"),
        ({"timestamp": NOW}, NonceInvalid, "nonce"),
        ({"nonce": NONCE}, SignatureInvalid, "empty signature"),
        ({"signature": "!"}, SignatureInvalid, "SS58"),
        ({"validator_hotkey": VALIDATOR.ss58_address}, SignatureInvalid, "decode"),
        ({"signature": "AAAA"}, SignatureInvalid, "length"),
        ({"signature": response().signature}, SignatureInvalid, "verification"),
    ]
    for change, error, text in steps:
        nothing_right |= change
        with pytest.raises(error, match=text):
            verify(request(**nothing_right))
    verify(request(**nothing_right | {"signature": GOOD}))


# --- the client's checks --------------------------------------------------------------


def test_client_accepts_the_wanted_miner():
    login().check(response())


@pytest.mark.parametrize("timestamp", [0, NOW - 100_000, NOW + 100_000, 2**64 - 1])
def test_responses_time_is_signed_but_not_trusted(timestamp):
    login().check(response(timestamp=timestamp))
    with pytest.raises(SignatureInvalid, match="signature verification failed"):
        login().check(response(timestamp=timestamp, signature=response().signature))


@pytest.mark.parametrize("text", ["", "conn_x", "x" * 1000])
def test_connection_id_is_opaque(text):
    login().check(response(connection_id=text))


def test_refusal_is_told_before_anything_else():
    with pytest.raises(HandshakeRejected, match="rejected by miner") as caught:
        login().check(rejection(NOW))
    assert caught.value.hotkey == MINER.ss58_address
    with pytest.raises(HandshakeRejected):
        login().check(response(accepted=False))


@pytest.mark.parametrize(
    ("skew", "text"),
    [
        (0, None),
        (60, None),
        (-60, None),
        (61, "its clock is 61 s ahead of ours"),
        (-120, "its clock is 120 s behind ours"),
    ],
)
def test_refusal_says_by_how_much_the_clocks_differ(skew, text):
    with pytest.raises(HandshakeRejected) as caught:
        login().check(rejection(NOW + skew, MINER.ss58_address))
    assert caught.value.clock_skew == skew
    if text is None:
        assert caught.value.detail == "rejected by miner"
    else:
        assert text in caught.value.detail


def test_refusal_of_an_unread_login_is_guessed_at():
    with pytest.raises(HandshakeRejected, match="unread: too many logins from this"):
        login().check(rejection(NOW))


def test_other_miner_is_refused_and_named():
    with pytest.raises(HotkeyMismatch, match=STRANGER.ss58_address) as caught:
        login().check(response(STRANGER))
    assert caught.value.hotkey == MINER.ss58_address


def test_same_key_under_another_network_is_another_miner():
    hotkey = ss58.encode(MINER.public_key, 2)
    with pytest.raises(HotkeyMismatch):
        login().check(response(miner_hotkey=hotkey))


@pytest.mark.parametrize(
    "fingerprint",
    [
        None,
        "",
        OTHER_FINGERPRINT,
        FINGERPRINT[:-1],
        FINGERPRINT + "=",
        FINGERPRINT.lower(),
    ],
)
def test_missing_or_other_fingerprint_is_refused(fingerprint):
    with pytest.raises(FingerprintMismatch, match="certificate fingerprint"):
        login().check(response(cert_fingerprint=fingerprint))


def test_relay_with_its_own_certificate_is_refused_at_both_ends():
    """Frames passed on between honest ends, whose certificates differ."""
    client = login(fingerprint=OTHER_FINGERPRINT)
    asked = client.request(VALIDATOR.sign(client.message))
    with pytest.raises(SignatureInvalid):
        verify(asked)
    for claimed in (FINGERPRINT, OTHER_FINGERPRINT):
        with pytest.raises((FingerprintMismatch, SignatureInvalid)):
            client.check(response(cert_fingerprint=claimed))


@pytest.mark.parametrize(
    "arguments",
    [
        (STRANGER.ss58_address, MINER.ss58_address, NOW + 5, NONCE, FINGERPRINT),
        (VALIDATOR.ss58_address, STRANGER.ss58_address, NOW + 5, NONCE, FINGERPRINT),
        (VALIDATOR.ss58_address, MINER.ss58_address, NOW, NONCE, FINGERPRINT),
        (VALIDATOR.ss58_address, MINER.ss58_address, NOW + 5, "0" * 32, FINGERPRINT),
        (VALIDATOR.ss58_address, MINER.ss58_address, NOW + 5, NONCE, OTHER_FINGERPRINT),
    ],
)
def test_response_signed_over_anything_else_is_refused(arguments):
    with pytest.raises(SignatureInvalid, match="signature verification failed") as e:
        login().check(response(message=response_message(*arguments)))
    assert e.value.hotkey == MINER.ss58_address


def test_response_signed_by_somebody_else_is_refused():
    forged = response(STRANGER, miner_hotkey=MINER.ss58_address)
    with pytest.raises(SignatureInvalid, match="signature verification failed"):
        login().check(forged)


def test_unusable_address_of_the_miner_is_told():
    with pytest.raises(SignatureInvalid, match="Invalid SS58 address"):
        login(miner_hotkey="nobody").check(response(miner_hotkey="nobody"))


def test_client_checks_in_the_order_of_the_specification():
    wrong = {
        "accepted": False,
        "miner_hotkey": "nobody",
        "cert_fingerprint": None,
        "signature": "",
    }
    steps = [
        ({}, HandshakeRejected, "rejected"),
        ({"accepted": True}, HotkeyMismatch, "expected miner"),
        ({"miner_hotkey": MINER.ss58_address}, FingerprintMismatch, "has no"),
        ({"cert_fingerprint": "x"}, FingerprintMismatch, "got 'x'"),
        ({"cert_fingerprint": FINGERPRINT}, SignatureInvalid, "empty"),
        ({"signature": "!"}, SignatureInvalid, "decode"),
        ({"signature": "AAAA"}, SignatureInvalid, "length"),
        ({"signature": GOOD}, SignatureInvalid, "verification"),
    ]
    for change, error, text in steps:
        wrong |= change
        with pytest.raises(error, match=text):
            login().check(response(**wrong))
    login().check(response(**wrong | {"signature": None}))


def test_peers_text_in_an_error_is_escaped_and_cut():
    evil = "\n\x1b[31mFATAL\u202e" + "x" * 10_000
    for changes in ({"miner_hotkey": evil}, {"cert_fingerprint": evil}):
        with pytest.raises(HandshakeError) as caught:
            login().check(response(signature="x", **changes))
        text = str(caught.value)
        assert len(text) < 250
        assert text.isprintable()
        assert text.isascii()


@pytest.mark.parametrize("nonce", ["", "0" * 31, "0" * 33, "g" * 32])
def test_client_refuses_a_malformed_nonce_of_its_own(nonce):
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        login(nonce=nonce)


def test_client_refuses_to_log_in_without_a_certificate():
    """Else a response without a fingerprint could seem to match."""
    with pytest.raises(FingerprintMismatch, match="no certificate"):
        login(fingerprint="")


def test_login_does_not_change_under_way():
    with pytest.raises(FrozenInstanceError):
        login().nonce = "0" * 32
