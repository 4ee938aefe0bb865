"""What the peer's unit tests show, with the peer's numbers."""

import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    HandshakeRequest,
    HandshakeResponse,
    LightningClientConfig,
    LightningServerConfig,
    MessageType,
    PeerAddr,
    QuicRequest,
    QuicResponse,
    SynapsePacket,
    SynapseResponse,
    errors,
    parse_frame_header,
    typed_async_handler,
    typed_handler,
)
from lightning._core.io.transport import write_budget
from lightning.admission import LoginRateLimiter, NonceCache, ValidatorTable
from lightning.handshake import (
    ClientLogin,
    accept,
    request_message,
    response_message,
    verify_request,
)
from lightning.registry import Registry
from lightning.signer import verify
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    signer,
)

NOW = 1_700_000_000
NONCE = "000102030405060708090a0b0c0d0e0f"
FINGERPRINT = "J9QPsnaeUn+PDd38bA/phC1iqnY/zLGmq3qu/fbAcYw="


# Errors.


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.LightningConnectionError, "connection"),
        (errors.HandshakeError, "handshake"),
        (errors.SigningError, "signing"),
        (errors.SerializationError, "serialization"),
        (errors.TransportError, "transport"),
        (errors.HandlerError, "handler"),
        (errors.ConfigError, "config"),
        (errors.StreamError, "stream"),
    ],
)
def test_every_variant_prints_its_kind_and_its_text(error, kind):
    assert str(error("x")) == f"{kind} error: x"


# Types.


@dataclasses.dataclass
class Inner:
    name: str
    values: list[int]


@dataclasses.dataclass
class Outer:
    inner: Inner
    count: int


def test_a_struct_becomes_data_of_str_and_int():
    @dataclasses.dataclass
    class Ask:
        prompt: str
        tokens: int

    request = QuicRequest.from_typed("generate", Ask("hello", 42))
    assert request.synapse_type == "generate"
    assert request.data == {"prompt": "hello", "tokens": 42}
    assert [type(value) for value in request.data.values()] == [str, int]


def test_into_result():
    assert QuicResponse(True, {"a": 1}, 1.0).into_result() == {"a": 1}
    with pytest.raises(errors.HandlerError, match="handler error: out of tokens"):
        QuicResponse(False, {}, 1.0, "out of tokens").into_result()
    with pytest.raises(errors.HandlerError, match="handler error: request failed"):
        QuicResponse(False, {}, 1.0).into_result()


def test_nested_structs_become_maps_and_arrays_and_come_back():
    value = Outer(Inner("n", [1, 2, 3]), 7)
    data = QuicRequest.from_typed("t", value).data
    assert data == {"inner": {"name": "n", "values": [1, 2, 3]}, "count": 7}
    assert QuicResponse(True, data, 0.0).deserialize_data(Outer) == value


@dataclasses.dataclass
class Flat:
    text: str
    number: int
    other: str


@given(text=st.text(), number=st.integers(0, 2**32 - 1), other=st.text())
def test_a_typed_request_survives_the_wire_and_back(text, number, other):
    """Lone surrogates, which UTF-8 cannot say, do not come from ``st.text``."""
    value = Flat(text, number, other)
    request = QuicRequest.from_typed("t", value)
    packet = SynapsePacket(request.synapse_type, request.data, NOW)
    data = SynapsePacket.from_payload(packet.to_frame()[5:]).data
    answer = SynapseResponse(True, data, NOW, None).to_frame()
    found = SynapseResponse.from_payload(answer[5:])
    assert QuicResponse(True, found.data, 0.0).deserialize_data(Flat) == value


def test_signed_texts():
    request = request_message("validator", 1234567890, "abc", "fp==")
    assert request == b"handshake:validator:1234567890:abc:fp=="
    response = response_message("validator", "miner", 1234567890, "abc", "fp==")
    assert response == b"handshake_response:validator:miner:1234567890:abc:fp=="


HELLO = bytes([1, 0, 0, 0, 5]) + b"hello"


def test_a_frame_is_type_length_and_payload():
    assert parse_frame_header(HELLO) == (MessageType.HANDSHAKE_REQUEST, b"hello")


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"\x01\x00", errors.StreamClosedEarly),
        (bytes([1, 0, 0, 0, 10]) + b"hello", errors.StreamClosedEarly),
        (b"\x01" + (64 * 2**20 + 1).to_bytes(4, "big"), errors.FrameTooLarge),
        (b"\xff" + HELLO[1:], errors.UnknownMessageType),
    ],
    ids=["header", "payload", "oversized", "type"],
)
def test_a_frame_that_is_none(frame, error):
    with pytest.raises(error) as caught:
        parse_frame_header(frame)
    assert isinstance(caught.value, errors.TransportError)


@given(st.binary(max_size=256))
def test_any_bytes_are_a_frame_or_an_error(data):
    try:
        kind, payload = parse_frame_header(data)
    except errors.TransportError:
        return
    assert data.startswith(bytes([kind]) + len(payload).to_bytes(4, "big") + payload)


# The client's checks of a login.


LOGIN = ClientLogin(VALIDATOR_HOTKEY, MINER_HOTKEY, FINGERPRINT, NOW, NONCE)


def response_of(**changes: object) -> HandshakeResponse:
    request = LOGIN.request(VALIDATOR.sign(LOGIN.message))
    login = accept(request, miner_hotkey=MINER_HOTKEY, fingerprint=FINGERPRINT, now=NOW)
    made = login.response(changes.pop("signer", MINER).sign(login.message))
    names = "miner_hotkey timestamp signature accepted connection_id cert_fingerprint"
    fields = {name: getattr(made, name) for name in names.split()}
    return HandshakeResponse(**{**fields, **changes})


def test_a_good_answer_is_taken():
    LOGIN.check(response_of())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"signature": ""}, "empty signature"),
        ({"signature": "not-base64!!!"}, "Failed to decode signature"),
        (
            {"signature": base64.b64encode(bytes(32)).decode()},
            "Invalid signature length",
        ),
        ({"signer": VALIDATOR}, "signature verification failed"),
    ],
    ids=["empty", "base64", "length", "signer"],
)
def test_a_bad_answer_is_refused(changes, text):
    with pytest.raises(errors.HandshakeError, match=text):
        LOGIN.check(response_of(**changes))


def test_an_answer_of_no_address_is_refused():
    login = dataclasses.replace(LOGIN, miner_hotkey="not_an_address")
    with pytest.raises(errors.HandshakeError, match="Invalid SS58 address"):
        login.check(response_of(miner_hotkey="not_an_address"))


def test_an_answer_to_another_nonce_is_refused():
    login = dataclasses.replace(LOGIN, nonce="f" * 32)
    with pytest.raises(errors.HandshakeError, match="signature verification failed"):
        login.check(response_of())


def test_a_transfer_has_time_by_its_size():
    mib = 1 << 20
    assert [write_budget(size) for size in (0, mib, 10 * mib)] == [5, 6, 15]
    assert write_budget(5 * mib) >= 10, "more than an answer usually has"
    assert {write_budget(size) for size in (55 * mib, 64 * mib, 2**32 - 1)} == {60}


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"max_frame_payload_bytes": 512},
        {"max_frame_payload_bytes": 2**32},
        {"max_frame_payload_bytes": 2 << 20, "max_stream_payload_bytes": 1 << 20},
        {"stream_chunk_timeout": 0},
    ],
    ids=str,
)
def test_the_clients_settings_that_are_refused(settings):
    with pytest.raises(errors.ConfigError, match=next(reversed(settings))):
        LightningClientConfig(**settings)


def test_default_settings_make_a_client_and_a_server():
    assert AsyncLightning.with_config("v", LightningClientConfig()).config
    assert AsyncLightningServer.with_config(
        "m", "127.0.0.1", 0, LightningServerConfig()
    ).config


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_alive_interval_secs": 150},
        {"keep_alive_interval_secs": 200},
        {"max_signature_age_secs": 0},
        {"max_signature_age_secs": 3601},
        {"nonce_cleanup_interval_secs": 0},
        {"keep_alive_interval_secs": 0},
        {"idle_timeout_secs": 0},
        {"max_connections": 0},
        {"handshake_timeout_secs": 0},
        {"handshake_timeout_secs": 150},
        {"handshake_timeout_secs": 200},
        {"max_handshake_attempts_per_minute": 0},
        {"max_concurrent_bidi_streams": 0},
        {"max_tracked_rate_ips": 0},
        {"handler_timeout_secs": 0},
        {"handler_timeout_secs": 150},
        {"handler_timeout_secs": 151},
        {"validator_permit_refresh_secs": 0},
        {"source_allowlist_refresh_secs": 0},
    ],
    ids=str,
)
def test_the_servers_settings_that_are_refused(settings):
    with pytest.raises(errors.ConfigError, match=next(iter(settings))):
        LightningServerConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_alive_interval_secs": 30, "idle_timeout_secs": 150},
        {"max_signature_age_secs": 3600},
    ],
    ids=str,
)
def test_the_servers_settings_that_are_taken(settings):
    LightningServerConfig(**settings)


def test_the_gates_are_set_as_the_peers():
    config = LightningServerConfig()
    assert not config.require_validator_permit
    assert config.validator_permit_refresh_secs == 1800
    assert config.require_address_validation
    assert not config.enforce_source_allowlist
    assert config.source_allowlist_refresh_secs == 300


# The registry.


A, B = PeerAddr("127.0.0.1", 1000), PeerAddr("127.0.0.1", 2000)


def test_a_hotkey_that_moves_is_still_one_miner():
    registry = Registry()
    registry.register("m", A)
    assert registry.register("m", B) == A
    assert len(registry) == 1
    assert (registry.hotkeys_at(A), registry.hotkeys_at(B)) == (set(), {"m"})


def test_to_forget_a_stranger_changes_nothing():
    registry = Registry()
    registry.register("m", A)
    assert registry.deregister("n") is None
    assert set(registry.hotkeys) == {"m"}


def test_the_key_of_an_address_reads_back():
    for text in ("127.0.0.1:1000", "[2001:db8::1]:65535"):
        assert str(PeerAddr.parse(text)) == text


def test_a_move_forgets_the_back_off_of_the_old_address():
    registry = Registry()
    registry.register("m", A)
    registry.backoff(A).failed(0.0, LightningClientConfig())
    registry.register("m", B)
    assert registry.backoff(A).failures == 0


def test_clearing_forgets_all():
    registry = Registry()
    registry.register("m", A)
    registry.backoff(B).failed(0.0, LightningClientConfig())
    registry.clear()
    assert not registry.hotkeys
    assert not registry.addresses
    assert registry.backoff(B).failures == 0


def test_a_hotkey_is_logged_in_at_its_own_address_only():
    registry = Registry()
    registry.register("m", A)
    registry.register("n", B)
    assert registry.address_of("m") == A
    assert registry.address_of("stranger") is None
    assert "m" not in registry.hotkeys_at(B)


# Signing.


def test_two_signatures_of_a_message_both_verify():
    first, second = MINER.sign(b"message"), MINER.sign(b"message")
    assert len(first) == len(second) == 64
    assert verify(MINER.public_key, b"message", first)
    assert verify(MINER.public_key, b"message", second)
    assert VALIDATOR.sign(b"message") not in (first, second)


# The server's memory and checks.


def nonce(number: int) -> str:
    return f"{number:032x}"


def test_a_full_memory_refuses_what_is_new_and_keeps_what_could_be_replayed():
    cache = NonceCache(max_entries=3, max_age=300)
    for number in range(3):
        cache.check_and_store(nonce(number), NOW + number, NOW + number)
    with pytest.raises(errors.NonceReplayed, match="no room"):
        cache.check_and_store(nonce(3), NOW + 3, NOW + 3)
    for number in range(3):
        with pytest.raises(errors.NonceReplayed, match="used before"):
            cache.check_and_store(nonce(number), NOW + number, NOW + 3)
    assert len(cache) == 3


def test_expired_nonces_go_also_below_the_cap_and_at_the_exact_second():
    cache = NonceCache(max_entries=100, max_age=300)
    cache.check_and_store(nonce(1), NOW, NOW)
    cache.check_and_store(nonce(2), NOW + 1, NOW + 1)
    cache.expire(NOW + 299)
    assert len(cache) == 2
    cache.expire(NOW + 300)
    assert len(cache) == 1
    with pytest.raises(errors.NonceReplayed, match="used before"):
        cache.check_and_store(nonce(2), NOW + 1, NOW + 300)


def test_leaving_cleans_both_indexes():
    table = ValidatorTable(8)
    table.register("v", "connection", "name", NOW)
    table.register("w", "connection", "name", NOW)
    assert set(table.remove_connection("connection")) == {"v", "w"}
    assert not len(table)
    assert table.session("connection") is None
    assert not list(table.hotkeys)


def request_of(who=VALIDATOR, timestamp=NOW, nonce=NONCE, **changes: object):
    login = {"timestamp": timestamp, "nonce": nonce}
    message = request_message(who.ss58_address, timestamp, nonce, FINGERPRINT)
    fields = {
        "validator_hotkey": who.ss58_address,
        **login,
        "signature": base64.b64encode(who.sign(message)).decode(),
    }
    return HandshakeRequest(**{**fields, **changes})


def check_login(request: HandshakeRequest) -> None:
    verify_request(request, fingerprint=FINGERPRINT, now=NOW, max_age=300)


def test_a_good_login_is_taken():
    check_login(request_of())


@pytest.mark.parametrize(
    "request_",
    [
        request_of(timestamp=NOW - 300),
        request_of(timestamp=NOW + 120),
        request_of(nonce="z" * 32),
        request_of(nonce="abc"),
        request_of(validator_hotkey="not_an_address"),
        request_of(signature="not-base64!!!"),
        request_of(signature=base64.b64encode(bytes(32)).decode()),
        request_of(signature=base64.b64encode(bytes(64)).decode()),
    ],
    ids=["old", "ahead", "hex", "short", "ss58", "base64", "length", "zeros"],
)
def test_a_bad_login_is_refused(request_):
    with pytest.raises(errors.HandshakeError):
        check_login(request_)


def test_a_nonce_serves_once():
    cache = NonceCache(100_000, 300)
    cache.check_and_store(NONCE, NOW, NOW)
    assert len(cache) == 1
    with pytest.raises(errors.NonceReplayed, match="used before"):
        cache.check_and_store(NONCE, NOW, NOW)


def test_logins_are_limited_for_each_address_and_the_addresses_themselves():
    limiter = LoginRateLimiter(3, max_sources=2)
    assert [limiter.allow("192.0.2.1", 0.0) for _ in range(4)] == [True] * 3 + [False]
    assert limiter.allow("192.0.2.2", 1.0)
    assert limiter.allow("192.0.2.3", 2.0)
    assert len(limiter) == 2
    assert [limiter.allow("192.0.2.3", 3.0) for _ in range(3)] == [True, True, False]


def test_an_answer_is_signed_with_64_bytes():
    assert len(base64.b64decode(response_of().signature)) == 64


# Typed handlers.


@dataclasses.dataclass
class Text:
    text: str


def test_a_typed_handler_reads_runs_and_writes():
    @typed_handler
    def shout(request: Text) -> Text:
        return Text(request.text.upper())

    assert shout({"text": "a", "more": 1}) == {"text": "A"}


async def test_a_typed_async_handler_reads_runs_and_writes():
    @typed_async_handler
    async def shout(request: Text) -> Text:
        return Text(request.text.upper())

    assert await shout({"text": "a"}) == {"text": "A"}


def test_a_typed_handlers_own_error_keeps_its_text():
    @typed_handler
    def fail(request: Text) -> Text:
        raise ValueError(f"no {request.text}")

    with pytest.raises(ValueError, match="no luck"):
        fail({"text": "luck"})


def test_another_seed_signs_otherwise():
    assert verify(signer(1).public_key, b"m", signer(1).sign(b"m"))
    assert not verify(signer(1).public_key, b"m", signer(2).sign(b"m"))
