"""Who signs the login, and how a signature is checked.

A signer proves that its owner holds a hotkey. Three kinds are built in: a key in this
process (:class:`Sr25519Signer`), a key in a Bittensor wallet (:class:`BtWalletSigner`),
and any callable, for keys kept elsewhere (:class:`CallbackSigner`). Whatever has a
method ``sign`` can be a fourth.

All signatures are sr25519 (schnorrkel) over the plain message with the signing context
``substrate``. The ``<Bytes>`` wrapping that browser wallets add is another message,
and does not verify.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import os
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import sr25519

from lightning import ss58
from lightning.errors import ConfigError, SignatureInvalid, SigningError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "SIGNATURE_SIZE",
    "BtWalletSigner",
    "CallbackSigner",
    "KeypairLike",
    "Signer",
    "Sr25519Signer",
    "as_signer",
    "sign",
    "sign_blocking",
    "verify",
]

SIGNATURE_SIZE = 64
"""Bytes of a signature."""

_SR25519 = 1
_CRYPTO_NAMES = {0: "ed25519", _SR25519: "sr25519", 2: "ecdsa"}
# The neutral element: for this key anybody can make a signature that verifies.
_NEUTRAL_KEY = bytes(ss58.KEY_SIZE)


@runtime_checkable
class Signer(Protocol):
    """Anything that can sign a login.

    A signer may also have an attribute ``blocking``. False says that ``sign`` returns
    in microseconds and may be called on an event loop, not only in a thread.
    """

    def sign(self, message: bytes) -> bytes | Awaitable[bytes]:
        """Return the 64-byte sr25519 signature of a message, or an awaitable of it."""


class KeypairLike(Protocol):
    """The shape of a keypair of bittensor-wallet or substrate-interface."""

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the public key."""

    @property
    def ss58_address(self) -> str:
        """The address of the public key."""

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature of the data."""


class Sr25519Signer:
    """Signs with an sr25519 key in this process.

    Attributes:
        public_key: The 32 bytes of the public key.
        ss58_address: Its address.
    """

    __slots__ = ("_secret", "_sign", "public_key", "ss58_address")

    blocking = False

    def __init__(self, keypair: KeypairLike) -> None:
        """Take a keypair as it is.

        Raises:
            ConfigError: It is not an sr25519 keypair.
        """
        crypto_type = getattr(keypair, "crypto_type", _SR25519)
        if crypto_type != _SR25519:
            name = _CRYPTO_NAMES.get(crypto_type, repr(crypto_type))
            raise ConfigError(f"a hotkey must be of type sr25519, not {name}")
        try:
            public_key, address = keypair.public_key, keypair.ss58_address
            matches = ss58.decode(address) == public_key
        except (AttributeError, TypeError, SignatureInvalid) as error:
            kind = type(keypair).__name__
            raise ConfigError(f"{kind} is not a usable keypair: {error}") from error
        if not matches:
            raise ConfigError(f"the keypair's address {address} is of another key")
        self._sign = keypair.sign
        self._secret = functools.partial(_secret_of, keypair)
        self.public_key = public_key
        self.ss58_address = address

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Make a signer from a mini-secret.

        Args:
            seed: 32 secret bytes.

        Raises:
            ConfigError: Another length.
        """
        return cls(_SeedKeypair(seed))

    @classmethod
    def from_keypair(cls, keypair: KeypairLike) -> Self:
        """Make a signer from a keypair of bittensor-wallet or substrate-interface.

        A keypair without its private key is accepted; then signing fails.

        Raises:
            ConfigError: It is not an sr25519 keypair.
        """
        return cls(keypair)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message.

        Raises:
            SigningError: The keypair has no private key, or failed.
        """
        try:
            signature = self._sign(message)
        except Exception as error:
            raise SigningError(f"{self.ss58_address} cannot sign: {error}") from error
        return _as_signature(signature)

    def derive(self, purpose: bytes) -> bytes:
        """Return 32 secret bytes for a purpose, always the same with the same key.

        Empty if the keypair does not say its private key.
        """
        secret = self._secret()
        if not secret:
            return b""
        key = hashlib.blake2b(secret, digest_size=64, person=b"lightning key").digest()
        return hashlib.blake2b(purpose, digest_size=32, key=key).digest()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ss58_address}>"

    def __reduce__(self) -> Any:
        raise TypeError("a signer cannot be pickled or copied: it holds a secret key")


def _secret_of(keypair: Any) -> bytes:
    """Return the private key of a keypair as it says it, empty if it does not."""
    if isinstance(keypair, _SeedKeypair):
        return keypair.secret()
    try:
        secret = keypair.private_key
    except Exception:
        return b""  # Not every keypair has one to give.
    return bytes(secret) if isinstance(secret, bytes | bytearray) else b""


class _SeedKeypair:
    """Keypair made from a mini-secret, which stays inside of closures."""

    __slots__ = ("public_key", "secret", "sign", "ss58_address")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ConfigError(f"a seed has 32 bytes, not {len(seed)}")
        pair = sr25519.pair_from_seed(bytes(seed))

        def sign(message: bytes) -> bytes:
            signature: bytes = sr25519.sign(pair, message)
            return signature

        def secret() -> bytes:
            return bytes(seed)

        self.sign = sign
        self.secret = secret
        self.public_key: bytes = pair[0]
        self.ss58_address = ss58.encode(self.public_key)


class BtWalletSigner(Sr25519Signer):
    """Signs with the hotkey of a Bittensor wallet."""

    __slots__ = ()

    def __init__(self, keypair: Any) -> None:
        """Take a keypair, or the hotkey of a wallet object.

        Args:
            keypair: A keypair, or an object with the attribute ``hotkey``. Reading it
                may ask for the password on the terminal.

        Raises:
            ConfigError: The hotkey cannot be read, or is not sr25519.
        """
        if not hasattr(keypair, "sign"):
            keypair = _hotkey_of(lambda: keypair.hotkey)
        super().__init__(keypair)

    @classmethod
    def from_wallet(
        cls,
        name: str = "default",
        path: str | os.PathLike[str] = "~/.bittensor/wallets",
        hotkey_name: str = "default",
    ) -> Self:
        """Load the hotkey ``{path}/{name}/hotkeys/{hotkey_name}``.

        An encrypted file takes its password from the environment variable that
        bittensor-wallet defines for it, else it asks on the terminal and blocks.

        Args:
            name: Name of the wallet.
            path: Folder of the wallets; ``~`` is the home folder.
            hotkey_name: Name of the hotkey in the wallet.

        Raises:
            ConfigError: bittensor-wallet is not installed, or the file is missing,
                not a keyfile, or not of an sr25519 key.
        """
        for what, text in (("wallet", name), ("hotkey", hotkey_name)):
            if not text or os.sep in text:
                raise ConfigError(
                    f"{text!r} is not the name of a {what}; "
                    "the order is name, path, hotkey_name"
                )
        try:
            from bittensor_wallet import Wallet  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise ConfigError(
                "wallet files need bittensor-wallet: "
                "pip install 'bittensor-lightning[wallet]'"
            ) from error
        folder = os.fspath(path)
        return cls(
            _hotkey_of(
                lambda: Wallet(name=name, hotkey=hotkey_name, path=folder).hotkey
            )
        )


def _hotkey_of(read: Callable[[], Any]) -> Any:
    """Read a hotkey, whatever bittensor-wallet raises in doing so."""
    try:
        return read()
    except BaseException as error:
        # A panic in its Rust, as of a keyfile cut short, is no Exception.
        panic = type(error).__name__ == "PanicException"
        if not panic and not isinstance(error, Exception):
            raise
        raise ConfigError(f"failed to load hotkey from wallet: {error}") from error


class CallbackSigner:
    """Signs by a callable, for keys kept in another process or device."""

    __slots__ = ("_callback",)

    blocking = True

    def __init__(self, callback: Callable[[bytes], Any]) -> None:
        """Take the callable.

        Args:
            callback: Called in a thread with the message, and if it is a coroutine
                function awaited on the event loop. Gives the 64 bytes of the
                signature, also as a list of integers.

        Raises:
            TypeError: Not a callable.
        """
        if not callable(callback):
            raise TypeError(f"not a callable: {type(callback).__name__}")
        self._callback = callback

    def sign(self, message: bytes) -> bytes | Awaitable[bytes]:
        """Call the callable.

        Raises:
            SigningError: It raised, or what it returned is not 64 bytes. A peer would
                refuse such a signature, so it is not sent.
        """
        result = _call(self._callback, message)
        if inspect.isawaitable(result):
            return _finish(result)
        return _as_signature(result)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def _call(function: Callable[[bytes], Any], message: bytes) -> Any:
    """Call a signer, turning whatever it raises into a SigningError.

    In a thread this also keeps StopIteration from getting lost: asyncio cannot hand
    that one over, and would wait for ever.
    """
    try:
        return function(message)
    except SigningError:
        raise
    except Exception as error:
        raise _failed(error) from error


async def _finish(result: Awaitable[Any]) -> bytes:
    """Wait for a signature on this loop."""
    try:
        signature = await result
    except SigningError:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Not we were cancelled, but something that the signer waited for.
        raise SigningError("the signer was cancelled") from error
    except Exception as error:
        raise _failed(error) from error
    return _as_signature(signature)


def _failed(error: Exception) -> SigningError:
    return SigningError(f"the signer failed: {type(error).__name__}: {error}")


def _as_signature(result: object) -> bytes:
    """Return what a signer gave as 64 bytes, or say what is wrong with it."""
    if isinstance(result, list):
        try:
            result = bytes(result)
        except (TypeError, ValueError):
            raise SigningError(
                "the signer returned a list of other things than bytes"
            ) from None
    if not isinstance(result, bytes | bytearray | memoryview):
        raise SigningError(f"the signer returned {type(result).__name__}, not bytes")
    signature = bytes(result)
    if len(signature) != SIGNATURE_SIZE:
        raise SigningError(
            f"the signer returned {len(signature)} bytes, not {SIGNATURE_SIZE}"
        )
    return signature


def as_signer(value: object) -> Signer:
    """Return a signer for whatever a user has at hand.

    Args:
        value: A signer, a keypair, a wallet object, a callable, or a 32-byte seed.

    Raises:
        ConfigError: A seed of another length, or a key of another type.
        TypeError: None of these.
    """
    if isinstance(value, bytes | bytearray):
        return Sr25519Signer.from_seed(bytes(value))
    if isinstance(value, Signer):
        if hasattr(value, "crypto_type") and hasattr(value, "public_key"):
            return Sr25519Signer(value)  # type: ignore[arg-type]  # checked by shape
        return value
    # Reading a wallet's hotkey may ask for a password: once is enough.
    if inspect.getattr_static(value, "hotkey", None) is not None:
        return BtWalletSigner(value)
    if callable(value):
        return CallbackSigner(value)
    raise TypeError(
        "not a signer, keypair, wallet, callable or 32-byte seed: "
        f"{type(value).__name__}"
    )


async def sign(signer: Signer, message: bytes) -> bytes:
    """Sign a message on an event loop, without blocking it.

    Args:
        signer: Called in a thread of the loop's default executor, unless its
            ``blocking`` is false; an awaitable that it returns is awaited here.
        message: What to sign.

    Raises:
        SigningError: The signer failed, or its result is not 64 bytes.
    """
    if getattr(signer, "blocking", True):
        result = await asyncio.to_thread(_call, signer.sign, message)
    else:
        result = _call(signer.sign, message)
    if inspect.isawaitable(result):
        return await _finish(result)
    return _as_signature(result)


def sign_blocking(signer: Signer, message: bytes) -> bytes:
    """Sign a message in this thread, which must not run an event loop.

    Raises:
        SigningError: As :func:`sign`.
    """
    result = _call(signer.sign, message)
    if inspect.isawaitable(result):
        return asyncio.run(_finish(result))
    return _as_signature(result)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether a signature is that of the key over exactly this message.

    Malformed keys and signatures, signatures without schnorrkel's marker bit, and the
    neutral key, for which anybody could sign, are all just not valid.

    Cost: about 50 microseconds.
    """
    if public_key == _NEUTRAL_KEY:
        return False
    try:
        valid: bool = sr25519.verify(signature, message, public_key)
    except ValueError:
        return False
    return valid
