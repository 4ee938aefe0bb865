"""Whatever comes in, the login decides as the slow model of the specification does."""

import base64
import ipaddress

import base58
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning import ss58
from lightning._core.wire.messages import HandshakeRequest, HandshakeResponse
from lightning.admission import (
    LoginRateLimiter,
    NonceCache,
    SourceAllowlist,
    ValidatorTable,
)
from lightning.errors import HandshakeError, NonceReplayed, ServerFull, SignatureInvalid
from lightning.handshake import (
    ClientLogin,
    accept,
    certificate_fingerprint,
    request_message,
    response_message,
    verify_request,
)
from lightning.signer import Sr25519Signer, verify
from tests.reference import login_model as model

every_case = settings(derandomize=True, deadline=None, max_examples=300)
REGISTERED = ss58.REGISTERED_PREFIXES
VALIDATOR = Sr25519Signer.from_seed(b"\x02" * 32)
MINER = Sr25519Signer.from_seed(b"\x01" * 32)
FINGERPRINT = certificate_fingerprint(b"certificate")
NOW = 1_795_573_209
NONCE = bytes(range(16)).hex()

keys = st.binary(min_size=32, max_size=32)
base58_text = st.text(model.ALPHABET, max_size=52)


# --- addresses ------------------------------------------------------------------------


def decodes_as_the_model(text):
    expected = model.decode_address(text, REGISTERED)
    if expected is None:
        with pytest.raises(SignatureInvalid, match="Invalid SS58 address"):
            ss58.decode(text)
    else:
        assert ss58.decode(text) == expected


@every_case
@given(keys, st.integers(0, (1 << 14) - 1) | st.sampled_from(sorted(REGISTERED)))
@example(bytes(32), 0)
@example(b"\xff" * 32, 14998)
def test_every_key_of_every_network_decodes_to_itself_or_not_at_all(key, prefix):
    text = ss58.encode(key, prefix)
    assert len(text) <= 50
    decodes_as_the_model(text)
    if prefix in REGISTERED:
        assert ss58.decode(text) == key


@every_case
@given(st.text(max_size=60) | base58_text)
def test_any_text_is_decoded_as_the_model_does(text):
    decodes_as_the_model(text)


@every_case
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_with_a_right_checksum_are_decoded_as_the_model_does(body, right):
    checksum = ss58._checksum(body) if right else b"\0\0"
    decodes_as_the_model(base58.b58encode(body + checksum).decode())


@every_case
@given(st.data())
def test_changed_addresses_are_decoded_as_the_model_does(data):
    text = ss58.encode(data.draw(keys), data.draw(st.sampled_from(sorted(REGISTERED))))
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(at, min(len(text), at + 2)))
    decodes_as_the_model(text[:at] + data.draw(st.text(max_size=2)) + text[cut:])


# --- requests and responses -----------------------------------------------------------


def verdict_of(check):
    """Return an exception in the words of the model."""
    try:
        check()
    except HandshakeError as error:
        name, text = type(error).__name__, error.detail
    else:
        return "accepted"
    words = {
        "SignatureInvalid": {
            "empty": "empty",
            "SS58": "address",
            "decode": "base64",
            "length": "length",
            "verification": "verification",
        },
        "TimestampOutOfRange": {"old": "old", "ahead": "ahead"},
    }
    for word, meaning in words.get(name, {}).items():
        if word in text:
            return f"{name}: {meaning}"
    return name


def text_near(good):
    """Texts that are right, nearly right, or anything."""

    @st.composite
    def changed(draw):
        at = draw(st.integers(0, len(good)))
        cut = draw(st.integers(at, min(len(good), at + 2)))
        return good[:at] + draw(st.text(max_size=2)) + good[cut:]

    return st.one_of(
        st.just(good), changed(), st.just(good.swapcase()), st.text(max_size=8)
    )


def base64_of(raw):
    return base64.b64encode(raw).decode()


@st.composite
def signatures(draw, signer, message):
    kind = draw(st.sampled_from(["good", "bits", "length", "text"]))
    signature = signer.sign(message)
    if kind == "bits":
        flipped = int.from_bytes(signature, "big") ^ 1 << draw(st.integers(0, 511))
        return base64_of(flipped.to_bytes(64, "big"))
    if kind == "length":
        return base64_of(draw(st.binary(max_size=70)))
    if kind == "text":
        return draw(text_near(base64_of(signature)))
    return base64_of(signature)


@every_case
@given(st.data())
def test_requests_are_judged_as_by_the_model(data):
    hotkey = data.draw(
        text_near(VALIDATOR.ss58_address)
        | st.sampled_from([0, 2, 46, 60]).map(
            lambda prefix: ss58.encode(VALIDATOR.public_key, prefix)
        )
    )
    timestamp = data.draw(
        st.integers(NOW - 302, NOW + 62) | st.integers(0, 2**64 - 1) | st.just(NOW)
    )
    nonce = data.draw(text_near(NONCE))
    text = f"handshake:{hotkey}:{timestamp}:{nonce}:{FINGERPRINT}"
    message = text.encode(errors="replace")
    fields = (hotkey, timestamp, nonce, data.draw(signatures(VALIDATOR, message)))
    assert verdict_of(
        lambda: verify_request(
            HandshakeRequest(*fields), fingerprint=FINGERPRINT, now=NOW, max_age=300
        )
    ) == model.request_verdict(fields, FINGERPRINT, NOW, 300, REGISTERED, verify)


@every_case
@given(st.data())
def test_responses_are_judged_as_by_the_model(data):
    login = (VALIDATOR.ss58_address, MINER.ss58_address, FINGERPRINT, NOW, NONCE)
    miner = data.draw(text_near(MINER.ss58_address))
    timestamp = data.draw(st.integers(0, 2**64 - 1))
    fingerprint = data.draw(st.none() | text_near(FINGERPRINT))
    message = response_message(login[0], login[1], timestamp, NONCE, FINGERPRINT)
    fields = (
        miner,
        timestamp,
        data.draw(signatures(MINER, message)),
        data.draw(st.sampled_from([True, True, True, False])),
        data.draw(st.text(max_size=5)),
        fingerprint,
    )
    assert verdict_of(
        lambda: ClientLogin(*login).check(HandshakeResponse(*fields))
    ) == model.response_verdict(fields, login, REGISTERED, verify)


@every_case
@given(
    keys,
    keys,
    st.binary(max_size=400),
    st.binary(min_size=16, max_size=16),
    st.integers(60, 2**33),
    st.floats(-60, 299, allow_nan=False),
)
def test_two_honest_ends_always_complete_a_login(seed, other, der, random, then, lag):
    """Whatever their keys, certificate, nonce and times, within the window."""
    validator, miner = map(Sr25519Signer.from_seed, (seed, other))
    fingerprint = certificate_fingerprint(der)
    addresses = validator.ss58_address, miner.ss58_address
    client = ClientLogin(*addresses, fingerprint, then, random.hex())
    assert client.message == model.request_text(
        addresses[0], then, random.hex(), fingerprint
    )
    asked = client.request(validator.sign(client.message))
    now = then + lag
    verify_request(asked, fingerprint=fingerprint, now=now, max_age=300)
    server = accept(asked, miner_hotkey=addresses[1], fingerprint=fingerprint, now=now)
    client.check(server.response(miner.sign(server.message)))


field = st.text(st.characters(exclude_characters=":", codec="utf-8"), max_size=6)


@every_case
@given(*(st.lists(field, min_size=3, max_size=3) for _ in range(2)))
def test_fields_without_colons_never_run_into_each_other(one, two):
    """Different fields make different texts, in one role or across both."""
    texts = [request_message(f[0], 5, f[1], f[2]) for f in (one, two)]
    assert (texts[0] == texts[1]) == (one == two)
    answer = response_message(two[0], two[1], 5, two[2], "")
    assert answer not in texts


# --- gates ----------------------------------------------------------------------------

ages = st.integers(-60, 12)


@every_case
@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.integers(0, 7), ages, st.floats(0, 8), st.booleans()), max_size=40
    ),
)
def test_nonces_are_kept_as_by_the_model(max_entries, steps):
    """With a clock that only moves on, and logins that the age check let through."""
    cache, reference = NonceCache(max_entries, 10), model.NonceModel(max_entries, 10)
    now = float(NOW)
    for number, age, pause, upper in steps:
        now += pause
        timestamp = int(now) - age
        if age >= 10:
            continue
        nonce = f"{number:031x}a"
        expected = reference.store(nonce, timestamp, now)
        try:
            cache.check_and_store(nonce.upper() if upper else nonce, timestamp, now)
        except NonceReplayed as error:
            got = "full" if "no room" in error.detail else "used"
        else:
            got = "stored"
        assert got == expected
        cache.expire(now)
        assert len(cache) <= max_entries


@every_case
@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(
            st.integers(0, 3), st.floats(-30, 30, allow_nan=False), st.booleans()
        ),
        max_size=60,
    ),
)
def test_no_login_is_accepted_twice_whatever_the_clock_does(max_entries, steps):
    """Each nonce belongs to one signed login, with one timestamp."""
    cache = NonceCache(max_entries, 10)
    now = float(NOW)
    accepted = set()
    for number, jump, sweep in steps:
        now += jump
        timestamp = NOW + number * 7
        if sweep:
            cache.expire(now)
        if int(now) - timestamp >= 10 or timestamp - int(now) > 60:
            continue
        try:
            cache.check_and_store(f"{number:032x}", timestamp, now)
        except NonceReplayed:
            continue
        assert number not in accepted
        accepted.add(number)


ips = st.one_of(
    st.sampled_from(["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1"]),
    st.sampled_from(["2001:db8::2", "2001:db8:0:1::1", "::1", "0.0.0.0", "::"]),
    st.ip_addresses().map(str),
)


@every_case
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.tuples(ips, st.integers(0, 25)), max_size=60),
)
def test_rates_are_limited_as_by_the_model(max_attempts, max_sources, steps):
    limiter = LoginRateLimiter(max_attempts, 60, max_sources)
    reference = model.RateModel(max_attempts, 60, max_sources)
    now = 0
    for ip, pause in steps:
        now += pause
        assert limiter.allow(ip, now) == reference.allow(ip, now)
        assert len(limiter) == len(reference.order) <= max_sources


@every_case
@given(st.lists(ips, max_size=5), ips)
def test_allowlist_compares_addresses_as_ipaddress_does(listed, asked):
    def value(ip):
        address = ipaddress.ip_address(ip)
        return getattr(address, "ipv4_mapped", None) or address

    allowed = value(asked) in {value(ip) for ip in listed}
    assert SourceAllowlist.enforce(listed).allows(asked) == allowed
    assert SourceAllowlist.enforce(listed).count == len({value(ip) for ip in listed})


@every_case
@given(st.text(max_size=45) | st.from_regex(r"[0-9a-fA-F:.%]{1,45}", fullmatch=True))
def test_any_text_is_an_address_or_refused_without_an_error(text):
    try:
        # A scope is no part of the address; inet_pton knows none.
        ipaddress.ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        with pytest.raises(ValueError, match="not an IP address"):
            SourceAllowlist.enforce([text])
    else:
        assert SourceAllowlist.enforce([text]).allows(text)


@every_case
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(["register", "register", "register", "close", "out"]),
            st.sampled_from("ABCDE"),
            st.integers(0, 4),
        ),
        max_size=50,
    ),
)
def test_table_is_kept_as_by_the_model(max_connections, max_hotkeys, steps):
    table = ValidatorTable(max_connections, max_hotkeys)
    reference = model.TableModel(max_connections, max_hotkeys)
    for act, hotkey, connection in steps:
        if act == "register":
            try:
                got = table.register(hotkey, connection, "", NOW)
            except ServerFull:
                got = "full"
            assert got == reference.register(hotkey, connection)
        elif act == "close":
            got = table.remove_connection(connection)
            assert got == reference.remove_connection(connection)
        else:
            assert table.remove_hotkey(hotkey) == reference.remove_hotkey(hotkey)
        assert len(table) == len(reference.connections()) <= max_connections
        assert set(table.hotkeys) == {h for h, _ in reference.pairs}
        for session in table:
            mine = tuple(h for h, c in reference.pairs if c == session.connection)
            assert table.hotkeys_of(session.connection) == mine
            assert len(mine) <= max_hotkeys
