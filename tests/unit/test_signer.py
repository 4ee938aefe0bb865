"""Signers: keys in the process, in wallets, behind callables; and verification."""

import asyncio
import copy
import json
import pickle
import sys
import threading
from types import SimpleNamespace

import pytest
import sr25519

from lightning import ss58
from lightning.errors import ConfigError, SigningError
from lightning.signer import (
    BtWalletSigner,
    CallbackSigner,
    Signer,
    Sr25519Signer,
    as_signer,
    sign,
    sign_blocking,
    verify,
)

SEED = b"\x01" * 32
PUBLIC, SECRET = sr25519.pair_from_seed(SEED)
ADDRESS = "5CcyqxXnJucaCnQQvvUg5EPzj1uoNAxACZvzArHw5aVDvgNH"
MESSAGE = b"handshake:a:1:b:c"
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def raw_sign(message):
    return sr25519.sign((PUBLIC, SECRET), message)


class Keypair:
    """The shape of substrate-interface's and bittensor-wallet's keypairs."""

    def __init__(self, crypto_type=1, private_key=SECRET):
        self.crypto_type = crypto_type
        self.private_key = private_key
        self.public_key = PUBLIC
        self.ss58_address = ADDRESS

    def sign(self, data):
        if self.private_key is None:
            raise RuntimeError("No private key set to create signatures")
        return raw_sign(data)


# --- verify ---------------------------------------------------------------------------


def test_signature_verifies_with_its_key_and_message_only():
    signature = raw_sign(MESSAGE)
    assert verify(PUBLIC, MESSAGE, signature) is True
    assert verify(PUBLIC, MESSAGE + b"\n", signature) is False
    assert verify(PUBLIC, b"", signature) is False
    assert verify(sr25519.pair_from_seed(b"\x02" * 32)[0], MESSAGE, signature) is False


@pytest.mark.parametrize("message", ["ü€𝄞".encode(), b"\x00\xff\n", b"", b"x" * 10_000])
def test_message_is_signed_byte_by_byte(message):
    signature = raw_sign(message)
    assert verify(PUBLIC, message, signature)
    assert not verify(PUBLIC, message + b"\n", signature)
    assert not verify(PUBLIC, b"0x" + message.hex().encode(), signature)


def test_wrapped_message_is_another_message():
    """Browser wallets sign <Bytes>...</Bytes>; neither form stands for the other."""
    wrapped = b"<Bytes>" + MESSAGE + b"</Bytes>"
    assert not verify(PUBLIC, MESSAGE, raw_sign(wrapped))
    assert not verify(PUBLIC, wrapped, raw_sign(MESSAGE))


def test_signature_without_schnorrkels_marker_is_refused():
    signature = bytearray(raw_sign(MESSAGE))
    assert signature[63] & 0x80
    signature[63] &= 0x7F
    assert not verify(PUBLIC, MESSAGE, bytes(signature))


def test_every_flipped_bit_is_noticed():
    signature = raw_sign(MESSAGE)
    for bit in range(512):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify(PUBLIC, MESSAGE, bytes(flipped)), bit


def test_second_spelling_of_a_signature_is_refused():
    """Its scalar plus the group order would be the same number, written differently."""
    signature = raw_sign(MESSAGE)
    scalar = int.from_bytes(signature[32:], "little") - (1 << 255)
    other = scalar + GROUP_ORDER + (1 << 255)
    assert not verify(PUBLIC, MESSAGE, signature[:32] + other.to_bytes(32, "little"))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        bytes(63),
        bytes(64),
        bytes(65),
        b"\xff" * 64,
        bytes(63) + b"\x80",
        raw_sign(MESSAGE) + b"\x00",
        raw_sign(MESSAGE)[:-1],
    ],
)
def test_malformed_signature_is_just_not_valid(signature):
    assert verify(PUBLIC, MESSAGE, signature) is False


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), b"\xff" * 32, b"\x01" * 32])
def test_malformed_key_is_just_not_valid(key):
    assert verify(key, MESSAGE, raw_sign(MESSAGE)) is False


def test_nobody_can_sign_for_the_neutral_key():
    """Its secret is zero and known to all; it is also the chain's "no hotkey"."""
    secret = bytes(32) + b"\x07" * 32
    neutral = sr25519.public_from_secret_key(secret)
    assert neutral == bytes(32)
    signature = sr25519.sign((neutral, secret), MESSAGE)
    assert sr25519.verify(signature, MESSAGE, neutral)
    assert not verify(neutral, MESSAGE, signature)


# --- Sr25519Signer --------------------------------------------------------------------


def test_seed_gives_the_published_key():
    signer = Sr25519Signer.from_seed(SEED)
    assert signer.public_key == PUBLIC
    assert signer.ss58_address == ADDRESS
    assert signer.blocking is False
    assert verify(PUBLIC, MESSAGE, signer.sign(MESSAGE))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_seed_has_32_bytes(length):
    with pytest.raises(ConfigError, match=f"32 bytes, not {length}"):
        Sr25519Signer.from_seed(bytes(length))
    with pytest.raises(ValueError, match="config error"):
        Sr25519Signer.from_seed(bytes(length))


def test_secret_is_never_shown():
    signer = Sr25519Signer.from_seed(SEED)
    shown = repr(signer) + str(signer) + repr(signer._sign) + repr(dir(signer))
    assert ADDRESS in shown
    for secret in (SEED, SECRET):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
    assert not hasattr(signer, "__dict__")


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_is_never_pickled(act):
    with pytest.raises(TypeError, match="holds a secret key"):
        act(Sr25519Signer.from_seed(SEED))


def test_keypair_signs():
    signer = Sr25519Signer.from_keypair(Keypair())
    assert (signer.public_key, signer.ss58_address) == (PUBLIC, ADDRESS)
    assert verify(PUBLIC, MESSAGE, signer.sign(MESSAGE))


def test_keypair_of_bittensor_wallet_signs():
    wallet = pytest.importorskip("bittensor_wallet")
    signer = Sr25519Signer.from_keypair(wallet.Keypair.create_from_seed(SEED.hex()))
    assert signer.ss58_address == ADDRESS
    assert verify(PUBLIC, MESSAGE, signer.sign(MESSAGE))


def test_wallet_library_verifies_what_we_sign():
    """It signs and verifies with the same Rust crate as the peer."""
    wallet = pytest.importorskip("bittensor_wallet")
    keypair = wallet.Keypair(ss58_address=ADDRESS)
    signature = Sr25519Signer.from_seed(SEED).sign(MESSAGE)
    assert keypair.verify(MESSAGE, signature)
    assert not keypair.verify(MESSAGE + b"\n", signature)


def test_keypair_without_private_key_cannot_sign():
    signer = Sr25519Signer.from_keypair(Keypair(private_key=None))
    with pytest.raises(SigningError, match=f"{ADDRESS} cannot sign: No private") as e:
        signer.sign(MESSAGE)
    assert isinstance(e.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("crypto_type", "name"), [(0, "ed25519"), (2, "ecdsa"), (7, "7"), (None, "None")]
)
def test_keypair_of_another_type_is_refused_by_name(crypto_type, name):
    with pytest.raises(ConfigError, match=f"must be of type sr25519, not {name}"):
        Sr25519Signer.from_keypair(Keypair(crypto_type))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("ss58_address", ss58.encode(bytes(range(32))), "of another key"),
        ("ss58_address", "nobody", "not a usable keypair"),
        ("ss58_address", None, "not a usable keypair"),
        ("public_key", None, "of another key"),
        ("public_key", "0x" + PUBLIC.hex(), "of another key"),
    ],
)
def test_keypair_that_contradicts_itself_is_refused(field, value, reason):
    keypair = Keypair()
    setattr(keypair, field, value)
    with pytest.raises(ConfigError, match=reason):
        Sr25519Signer.from_keypair(keypair)


def test_what_is_no_keypair_is_refused():
    with pytest.raises(ConfigError, match="object is not a usable keypair"):
        Sr25519Signer.from_keypair(object())


def test_keypair_that_signs_nonsense_is_caught():
    keypair = Keypair()
    keypair.sign = lambda data: "0x1234"
    with pytest.raises(SigningError, match="returned str, not bytes"):
        Sr25519Signer(keypair).sign(MESSAGE)


# --- CallbackSigner -------------------------------------------------------------------


def async_sign(message):
    async def work():
        await asyncio.sleep(0)
        return raw_sign(message)

    return work()


@pytest.mark.parametrize(
    "convert", [bytes, bytearray, memoryview, list], ids=lambda c: c.__name__
)
async def test_callback_may_return_bytes_in_any_form(convert):
    signer = CallbackSigner(lambda message: convert(raw_sign(message)))
    assert signer.blocking is True
    signature = await sign(signer, MESSAGE)
    assert type(signature) is bytes
    assert verify(PUBLIC, MESSAGE, signature)


async def test_coroutine_function_runs_on_the_loop():
    seen = []

    async def callback(message):
        seen.append(threading.current_thread())
        await asyncio.sleep(0)
        return list(raw_sign(message))

    signer = CallbackSigner(callback)
    assert verify(PUBLIC, MESSAGE, await sign(signer, MESSAGE))
    assert seen == [threading.current_thread()]


async def test_plain_function_that_returns_a_coroutine_is_awaited():
    assert verify(PUBLIC, MESSAGE, await sign(CallbackSigner(async_sign), MESSAGE))


async def test_plain_function_runs_in_a_thread():
    seen = []

    def callback(message):
        seen.append(threading.current_thread())
        return raw_sign(message)

    await sign(CallbackSigner(callback), MESSAGE)
    assert seen != [threading.current_thread()]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "returned NoneType, not bytes"),
        ("x" * 64, "returned str, not bytes"),
        (64, "returned int, not bytes"),
        ((1,) * 64, "returned tuple, not bytes"),
        (b"", "returned 0 bytes, not 64"),
        (bytes(63), "returned 63 bytes, not 64"),
        (bytes(65), "returned 65 bytes, not 64"),
        ([1] * 63, "returned 63 bytes, not 64"),
        ([256] * 64, "a list of other things"),
        ([-1] * 64, "a list of other things"),
        (["1"] * 64, "a list of other things"),
    ],
)
async def test_callback_that_returns_nonsense_is_caught(result, reason):
    async def later(message):
        return result

    for callback in (lambda message: result, later):
        with pytest.raises(SigningError, match=reason):
            await sign(CallbackSigner(callback), MESSAGE)
        with pytest.raises(RuntimeError, match="signing error"):
            await sign(CallbackSigner(callback), MESSAGE)


@pytest.mark.parametrize(
    "error", [OSError("no device"), StopIteration(), KeyError("k")]
)
async def test_callback_that_raises_is_a_signing_error_with_its_cause(error):
    def now(message):
        raise error

    async def later(message):
        # A coroutine cannot raise StopIteration itself.
        raise error if not isinstance(error, StopIteration) else OSError("no device")

    for callback in (now, later):
        with pytest.raises(SigningError, match="the signer failed: ") as caught:
            await sign(CallbackSigner(callback), MESSAGE)
        assert isinstance(caught.value.__cause__, type(error) | OSError)


def test_interrupt_in_a_callback_is_not_swallowed():
    def callback(message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CallbackSigner(callback).sign(MESSAGE)


def test_callback_must_be_callable():
    with pytest.raises(TypeError, match="not a callable: bytes"):
        CallbackSigner(SEED)
    assert repr(CallbackSigner(raw_sign)) == "<CallbackSigner>"


# --- sign -----------------------------------------------------------------------------


class CustomSigner:
    """A user's own signer, without the optional attribute."""

    def __init__(self, result=None):
        self.threads = []
        self.result = result

    def sign(self, message):
        self.threads.append(threading.current_thread())
        return self.result or raw_sign(message)


async def test_signer_without_the_attribute_is_taken_to_block():
    signer = CustomSigner()
    assert verify(PUBLIC, MESSAGE, await sign(signer, MESSAGE))
    assert signer.threads != [threading.current_thread()]


async def test_signer_that_does_not_block_runs_inline():
    signer = CustomSigner()
    signer.blocking = False
    assert verify(PUBLIC, MESSAGE, await sign(signer, MESSAGE))
    assert signer.threads == [threading.current_thread()]


class AsyncSigner:
    """A user's own signer with a coroutine method."""

    def __init__(self, result):
        self.result = result

    async def sign(self, message):
        asyncio.get_running_loop()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def test_signer_with_a_coroutine_method_is_awaited():
    assert verify(PUBLIC, MESSAGE, await sign(AsyncSigner(raw_sign(MESSAGE)), MESSAGE))


@pytest.mark.parametrize("result", [b"abc", "x", OSError("no device")])
def test_failure_of_a_coroutine_method_is_a_signing_error(result):
    reason = "returned 3 bytes|returned str|failed: OSError: no device"
    with pytest.raises(SigningError, match=reason):
        asyncio.run(sign(AsyncSigner(result), MESSAGE))
    with pytest.raises(SigningError, match=reason):
        sign_blocking(AsyncSigner(result), MESSAGE)


async def test_own_signers_result_is_checked_too():
    with pytest.raises(SigningError, match="returned 3 bytes, not 64"):
        await sign(CustomSigner(b"abc"), MESSAGE)
    with pytest.raises(SigningError, match="returned 3 bytes, not 64"):
        sign_blocking(CustomSigner(b"abc"), MESSAGE)


@pytest.mark.parametrize("error", [OSError("no device"), StopIteration("no device")])
async def test_own_signers_exception_is_a_signing_error(error):
    """StopIteration would otherwise be lost between thread and loop, for ever."""

    class Broken:
        def sign(self, message):
            raise error

    for blocking in (True, False):
        Broken.blocking = blocking
        with pytest.raises(SigningError, match=r"the signer failed: .*: no device"):
            await asyncio.wait_for(sign(Broken(), MESSAGE), 10)
    with pytest.raises(SigningError, match=r"the signer failed: .*: no device"):
        sign_blocking(Broken(), MESSAGE)


async def test_cancelling_the_caller_is_not_an_error_of_the_signer():
    started = asyncio.Event()

    async def callback(message):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(sign(CallbackSigner(callback), MESSAGE))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_inside_of_the_signer_is_an_error_of_the_signer():
    """Else the login would end as if the server had cancelled it, without an answer."""

    async def callback(message):
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner

    with pytest.raises(SigningError, match="was cancelled"):
        await sign(CallbackSigner(callback), MESSAGE)


def test_blocking_face_signs_with_every_kind_of_signer():
    for signer in (
        Sr25519Signer.from_seed(SEED),
        CallbackSigner(raw_sign),
        CallbackSigner(async_sign),
        CustomSigner(),
        AsyncSigner(raw_sign(MESSAGE)),
    ):
        assert verify(PUBLIC, MESSAGE, sign_blocking(signer, MESSAGE))


def test_blocking_face_reports_failures_as_the_other_does():
    async def fails(message):
        raise OSError("no device")

    async def cancelled(message):
        raise asyncio.CancelledError

    with pytest.raises(SigningError, match="OSError: no device"):
        sign_blocking(CallbackSigner(fails), MESSAGE)
    with pytest.raises(SigningError, match="was cancelled"):
        sign_blocking(CallbackSigner(cancelled), MESSAGE)


# --- as_signer ------------------------------------------------------------------------


def test_whatever_is_at_hand_becomes_a_signer():
    own = Sr25519Signer.from_seed(SEED)
    assert as_signer(own) is own
    custom = CustomSigner()
    assert as_signer(custom) is custom
    for value, kind in [
        (SEED, Sr25519Signer),
        (bytearray(SEED), Sr25519Signer),
        (Keypair(), Sr25519Signer),
        (SimpleNamespace(hotkey=Keypair()), BtWalletSigner),
        (raw_sign, CallbackSigner),
        (async_sign, CallbackSigner),
    ]:
        signer = as_signer(value)
        assert type(signer) is kind
        assert isinstance(signer, Signer)
        assert verify(PUBLIC, MESSAGE, sign_blocking(signer, MESSAGE))


@pytest.mark.parametrize("value", [None, 5, "x" * 32, ADDRESS, object(), [1] * 32])
def test_what_cannot_sign_is_a_type_error_that_names_it(value):
    with pytest.raises(TypeError, match=f"32-byte seed: {type(value).__name__}"):
        as_signer(value)


def test_bad_seed_and_bad_keypair_are_refused_here_already():
    with pytest.raises(ConfigError, match="32 bytes, not 31"):
        as_signer(SEED[1:])
    with pytest.raises(ConfigError, match="not ed25519"):
        as_signer(Keypair(crypto_type=0))


def test_wallets_hotkey_is_read_once():
    """Reading it may ask for a password."""

    class Wallet:
        reads = 0

        @property
        def hotkey(self):
            Wallet.reads += 1
            return Keypair()

    as_signer(Wallet())
    assert Wallet.reads == 1


def test_wallets_failure_is_a_config_error():
    class Wallet:
        @property
        def hotkey(self):
            raise OSError("locked")

    with pytest.raises(ConfigError, match="failed to load hotkey from wallet: locked"):
        as_signer(Wallet())


def test_interrupt_at_the_password_prompt_is_not_swallowed():
    class Wallet:
        @property
        def hotkey(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BtWalletSigner(Wallet())


# --- wallet files ---------------------------------------------------------------------

# The vector of the peer's specification.
MNEMONIC = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"
MNEMONIC_ADDRESS = "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV"


@pytest.fixture
def wallet_with(tmp_path):
    """Write a keyfile and return the arguments that load it."""
    pytest.importorskip("bittensor_wallet")

    def write(content, name="validator", hotkey_name="first"):
        folder = tmp_path / name / "hotkeys"
        folder.mkdir(parents=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / hotkey_name).write_text(text)
        return name, tmp_path, hotkey_name

    return write


@pytest.mark.parametrize(
    ("content", "address"),
    [
        ({"secretPhrase": MNEMONIC}, MNEMONIC_ADDRESS),
        ({"secretSeed": "0x" + SEED.hex()}, ADDRESS),
        ({"secretSeed": SEED.hex()}, ADDRESS),
        ({"secretSeed": "0x" + SECRET.hex()}, ADDRESS),
        ({"privateKey": "0x" + SEED.hex()}, ADDRESS),
        ({"privateKey": "0x" + SECRET.hex()}, ADDRESS),
        ({"privateKey": SECRET.hex()}, ADDRESS),
        ({"secretSeed": SEED.hex(), "cryptoType": 1}, ADDRESS),
        ({"secretSeed": SEED.hex(), "cryptoType": "0"}, ADDRESS),
        ({"secretSeed": SEED.hex(), "cryptoType": 0.5}, ADDRESS),
        ({"secretSeed": SEED.hex(), "cryptoType": None}, ADDRESS),
        ({"secretPhrase": MNEMONIC, "secretSeed": SEED.hex()}, MNEMONIC_ADDRESS),
        ({"secretSeed": SEED.hex(), "privateKey": "ff" * 64}, ADDRESS),
        ({"secretSeed": SEED.hex(), "ss58Address": MNEMONIC_ADDRESS}, ADDRESS),
        ({"secretSeed": SEED.hex(), "accountId": "0x00", "publicKey": 5}, ADDRESS),
    ],
)
def test_keyfile_loads_and_signs(wallet_with, content, address):
    signer = BtWalletSigner.from_wallet(*wallet_with(content))
    assert signer.ss58_address == address
    assert signer.public_key == ss58.decode(address)
    assert verify(signer.public_key, MESSAGE, signer.sign(MESSAGE))
    assert repr(signer) == f"<BtWalletSigner {address}>"


def test_keyfile_without_secret_loads_but_cannot_sign(wallet_with):
    signer = BtWalletSigner.from_wallet(*wallet_with({"ss58Address": ADDRESS}))
    assert signer.ss58_address == ADDRESS
    with pytest.raises(SigningError, match=r"cannot sign: .*No private key"):
        signer.sign(MESSAGE)


def test_keyfile_of_an_ed25519_key_is_refused_by_name(wallet_with):
    with pytest.raises(ConfigError, match="must be of type sr25519, not ed25519"):
        BtWalletSigner.from_wallet(
            *wallet_with({"secretSeed": SEED.hex(), "cryptoType": 0})
        )


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "",
        "{nope",
        "\x00",
        "null",
        {"accountId": "0x" + PUBLIC.hex(), "publicKey": "0x" + PUBLIC.hex()},
        {"secretSeed": "0102"},
        {"secretSeed": "zz" * 32},
        {"secretSeed": 5},
        {"secretPhrase": "a b c"},
        {"privateKey": "ff" * 64},
        {"privateKey": "ff" * 31},
        {"ss58Address": "nobody"},
        {"secretSeed": SEED.hex(), "cryptoType": 2},
        {"secretSeed": SEED.hex(), "cryptoType": 9},
    ],
)
def test_unusable_keyfile_is_a_config_error(wallet_with, content):
    with pytest.raises(ConfigError, match=r"failed to load hotkey from wallet: ."):
        BtWalletSigner.from_wallet(*wallet_with(content))


def test_missing_keyfile_is_a_config_error(tmp_path):
    pytest.importorskip("bittensor_wallet")
    with pytest.raises(ConfigError, match=r"failed to load hotkey .* does not exist"):
        BtWalletSigner.from_wallet("validator", tmp_path, "first")


def test_panic_in_the_wallet_library_is_a_config_error():
    """As of an encrypted keyfile cut short; pyo3 makes it no Exception."""

    class PanicException(BaseException):
        pass

    class Wallet:
        @property
        def hotkey(self):
            raise PanicException("range end index 24 out of range")

    with pytest.raises(ConfigError, match="failed to load hotkey from wallet: range"):
        BtWalletSigner(Wallet())


def test_path_is_expanded_and_names_default(wallet_with, tmp_path, monkeypatch):
    wallet_with({"secretSeed": SEED.hex()}, "default", "default")
    (tmp_path / ".bittensor").mkdir()
    (tmp_path / "default").rename(tmp_path / ".bittensor" / "default")
    (tmp_path / ".bittensor" / "wallets").mkdir()
    (tmp_path / ".bittensor" / "default").rename(
        tmp_path / ".bittensor" / "wallets" / "default"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BtWalletSigner.from_wallet().ss58_address == ADDRESS


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("~/.bittensor/wallets",), "not the name of a wallet"),
        (("validator", "first", "~/.bittensor/wallets"), "not the name of a hotkey"),
        (("",), "'' is not the name of a wallet"),
        (("validator", "~", ""), "'' is not the name of a hotkey"),
    ],
)
def test_swapped_wallet_arguments_are_noticed(arguments, reason):
    with pytest.raises(ConfigError, match=f"{reason}; the order is name, path, hotkey"):
        BtWalletSigner.from_wallet(*arguments)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bittensor_wallet", None)
    with pytest.raises(
        ConfigError, match=r"pip install 'bittensor-lightning\[wallet\]'"
    ):
        BtWalletSigner.from_wallet()


def test_wallet_object_and_keypair_of_it_sign(wallet_with):
    name, path, hotkey_name = wallet_with({"secretSeed": SEED.hex()})
    import bittensor_wallet

    wallet = bittensor_wallet.Wallet(name=name, path=str(path), hotkey=hotkey_name)
    for value in (wallet, wallet.hotkey):
        assert BtWalletSigner(value).ss58_address == ADDRESS
        assert verify(PUBLIC, MESSAGE, as_signer(value).sign(MESSAGE))


def test_secrets_are_derived_from_the_key():
    """The same for the same key and purpose, and nothing without the key."""
    signer = Sr25519Signer.from_seed(bytes(range(32)))
    again = Sr25519Signer.from_seed(bytes(range(32)))
    other = Sr25519Signer.from_seed(bytes(32))
    assert signer.derive(b"a") == again.derive(b"a") != signer.derive(b"b")
    assert signer.derive(b"a") != other.derive(b"a")
    assert len(signer.derive(b"a")) == 32

    class Keypair:
        public_key = signer.public_key
        ss58_address = signer.ss58_address
        sign = signer.sign

    assert Sr25519Signer(Keypair()).derive(b"a") == b""

    class Telling(Keypair):
        private_key = bytes(64)

    assert len(Sr25519Signer(Telling()).derive(b"a")) == 32

    class Odd(Keypair):
        @property
        def private_key(self) -> bytes:
            raise PermissionError

    assert Sr25519Signer(Odd()).derive(b"a") == b""
