"""The login: how validator and miner prove their hotkeys to each other.

Sans-IO and without a clock: what is signed, what is checked, and in which order. The
caller brings the time, the random nonce, the signatures and the transport.

The client signs ``handshake:{validator}:{timestamp}:{nonce}:{fingerprint}``, the server
``handshake_response:{validator}:{miner}:{timestamp}:{nonce}:{fingerprint}``. Timestamps
are whole Unix seconds of whoever signs; the nonce is the client's in both; the
fingerprint is that of the server's TLS certificate in both, which binds the login to
whoever holds the certificate's key. No field can hold a colon.

Client::

    login = ClientLogin(validator, miner, fingerprint, int(time()), token_hex(16))
    request = login.request(await sign(signer, login.message))
    login.check(response)

Server::

    verify_request(request, fingerprint=fingerprint, now=time(), max_age=300)
    login = accept(request, miner_hotkey=miner, fingerprint=fingerprint, now=time())
    response = login.response(await sign(signer, login.message))
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from hashlib import blake2b

from lightning import ss58
from lightning._core.wire.messages import HandshakeRequest, HandshakeResponse
from lightning.errors import (
    FingerprintMismatch,
    HandshakeRejected,
    HotkeyMismatch,
    NonceInvalid,
    SignatureInvalid,
    TimestampOutOfRange,
)
from lightning.signer import SIGNATURE_SIZE, verify

__all__ = [
    "MAX_CLOCK_SKEW",
    "ClientLogin",
    "ServerLogin",
    "accept",
    "certificate_fingerprint",
    "connection_id",
    "rejection",
    "request_message",
    "response_message",
    "verify_request",
]

MAX_CLOCK_SKEW = 60
"""Seconds that a login's timestamp may lie ahead of our clock."""

# Either case, as the peer: a nonce is only ever compared with nonces.
_NONCE = re.compile(r"[0-9a-fA-F]{32}")


def certificate_fingerprint(certificate: bytes) -> str:
    """Return the fingerprint of a certificate.

    Args:
        certificate: DER bytes of the server's leaf certificate.

    Returns:
        BLAKE2b with 32 bytes of output, in padded standard base64: 44 characters.
    """
    return _encode_base64(blake2b(certificate, digest_size=32).digest())


def request_message(
    validator_hotkey: str, timestamp: int, nonce: str, fingerprint: str
) -> bytes:
    """Return what the validator signs."""
    return f"handshake:{validator_hotkey}:{timestamp}:{nonce}:{fingerprint}".encode()


def response_message(
    validator_hotkey: str,
    miner_hotkey: str,
    timestamp: int,
    nonce: str,
    fingerprint: str,
) -> bytes:
    """Return what the miner signs."""
    return (
        f"handshake_response:{validator_hotkey}:{miner_hotkey}"
        f":{timestamp}:{nonce}:{fingerprint}"
    ).encode()


def connection_id(validator_hotkey: str, now: float) -> str:
    """Return the name of a session; clients treat it as opaque.

    Args:
        validator_hotkey: Who logged in.
        now: Unix seconds.
    """
    return f"conn_{validator_hotkey}_{int(now * 1000)}"


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """One login as the client sees it."""

    validator_hotkey: str
    """Our address."""

    miner_hotkey: str
    """Address of the miner that we want to reach."""

    fingerprint: str
    """Of the certificate that TLS has verified on this connection."""

    timestamp: int
    """Our time in Unix seconds."""

    nonce: str
    """32 lower-case hexadecimal digits from 16 random bytes, never used before."""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            raise FingerprintMismatch("TLS gave no certificate to bind the login to")
        if not _NONCE.fullmatch(self.nonce):
            raise ValueError("a nonce is 32 hexadecimal digits, as token_hex(16) makes")

    @property
    def message(self) -> bytes:
        """What our signer has to sign."""
        return request_message(
            self.validator_hotkey, self.timestamp, self.nonce, self.fingerprint
        )

    def request(self, signature: bytes) -> HandshakeRequest:
        """Return the request to send.

        Args:
            signature: Of :attr:`message`, 64 bytes.
        """
        return HandshakeRequest(
            self.validator_hotkey,
            self.timestamp,
            self.nonce,
            _encode_base64(signature),
        )

    def check(self, response: HandshakeResponse) -> None:
        """Check that the wanted miner accepted this login over this certificate.

        The response's timestamp is only part of what is signed: the nonce is what
        makes it fresh.

        Raises:
            HandshakeRejected: The miner refused; it tells no reason, but its time.
            HotkeyMismatch: Another miner answered.
            FingerprintMismatch: It signed no certificate, or not the one we see.
            SignatureInvalid: It does not hold the miner's key.
        """
        hotkey = self.miner_hotkey
        if not response.accepted:
            raise self._rejected(response)
        if response.miner_hotkey != hotkey:
            raise HotkeyMismatch(
                f"expected miner {hotkey}, got {_quote(response.miner_hotkey)}",
                hotkey=hotkey,
            )
        if response.cert_fingerprint is None:
            raise FingerprintMismatch(
                "the response has no certificate fingerprint", hotkey=hotkey
            )
        if response.cert_fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"expected certificate fingerprint {self.fingerprint}, "
                f"got {_quote(response.cert_fingerprint)}",
                hotkey=hotkey,
            )
        public_key, signature = _read_signature(hotkey, response.signature)
        message = response_message(
            self.validator_hotkey,
            hotkey,
            response.timestamp,
            self.nonce,
            self.fingerprint,
        )
        if not verify(public_key, message, signature):
            raise SignatureInvalid("signature verification failed", hotkey=hotkey)

    def _rejected(self, response: HandshakeResponse) -> HandshakeRejected:
        """Return the error of a refusal, with what can be seen of its reason."""
        text = "rejected by miner"
        skew = response.timestamp - self.timestamp
        if not response.miner_hotkey:
            # So it answers before it has decoded the login.
            text += " unread: too many logins from this address, perhaps"
        if abs(skew) > MAX_CLOCK_SKEW:
            order = "ahead of" if skew > 0 else "behind"
            text += (
                f"; its clock is {abs(skew)} s {order} ours, and a login from more than "
                f"{MAX_CLOCK_SKEW} s ahead, or too old a one, is refused: compare both "
                "with NTP"
            )
        return HandshakeRejected(text, clock_skew=skew, hotkey=self.miner_hotkey)


def verify_request(
    request: HandshakeRequest,
    *,
    fingerprint: str,
    now: float,
    max_age: int,
    max_skew: int = MAX_CLOCK_SKEW,
) -> None:
    """Check that a login is fresh, and that its sender holds the validator's key.

    The nonce is not looked up: call :meth:`NonceCache.check_and_store` next, so that
    only a holder of the key can spend one.

    Args:
        request: As received.
        fingerprint: Of our certificate.
        now: Unix seconds; fractions are dropped.
        max_age: Seconds after which a login is too old; that age itself is too old.
        max_skew: Seconds that the timestamp may be ahead of ours, inclusive.

    Raises:
        TimestampOutOfRange: Too old or too far ahead; the text says by how much.
        NonceInvalid: Not 32 hexadecimal digits.
        SignatureInvalid: The hotkey or the signature is malformed or does not verify.

    Cost: one verification, about 50 microseconds.
    """
    age = int(now) - request.timestamp
    if age >= max_age:
        raise TimestampOutOfRange(
            f"login is {age} s old, the limit is {max_age} s", age=age
        )
    if -age > max_skew:
        raise TimestampOutOfRange(
            f"login is {-age} s ahead of our clock, the limit is {max_skew} s", age=age
        )
    if not _NONCE.fullmatch(request.nonce):
        raise NonceInvalid("nonce must be 32 hexadecimal digits")
    hotkey = request.validator_hotkey
    public_key, signature = _read_signature(hotkey, request.signature)
    # The hotkey is an address now: it holds no colon, and encodes.
    message = request_message(hotkey, request.timestamp, request.nonce, fingerprint)
    if not verify(public_key, message, signature):
        raise SignatureInvalid("signature verification failed", hotkey=hotkey)


@dataclass(frozen=True, slots=True)
class ServerLogin:
    """An accepted login as the server sees it."""

    validator_hotkey: str
    """Who logged in."""

    miner_hotkey: str
    """Our address."""

    fingerprint: str
    """Of our certificate."""

    timestamp: int
    """Our time in Unix seconds."""

    nonce: str
    """The client's."""

    connection_id: str
    """Name of the session."""

    @property
    def message(self) -> bytes:
        """What our signer has to sign."""
        return response_message(
            self.validator_hotkey,
            self.miner_hotkey,
            self.timestamp,
            self.nonce,
            self.fingerprint,
        )

    def response(self, signature: bytes) -> HandshakeResponse:
        """Return the response to send.

        Args:
            signature: Of :attr:`message`, 64 bytes.
        """
        return HandshakeResponse(
            self.miner_hotkey,
            self.timestamp,
            _encode_base64(signature),
            True,
            self.connection_id,
            self.fingerprint,
        )


def accept(
    request: HandshakeRequest, *, miner_hotkey: str, fingerprint: str, now: float
) -> ServerLogin:
    """Return the server's side of a login that has passed every check.

    Args:
        request: One that :func:`verify_request` accepted.
        miner_hotkey: Our address.
        fingerprint: Of our certificate.
        now: Unix seconds.
    """
    hotkey = request.validator_hotkey
    return ServerLogin(
        hotkey,
        miner_hotkey,
        fingerprint,
        int(now),
        request.nonce,
        connection_id(hotkey, now),
    )


def rejection(now: float, miner_hotkey: str = "") -> HandshakeResponse:
    """Return the refusal of a login, the same for every reason.

    Args:
        now: Unix seconds.
        miner_hotkey: Our address; empty before the request has been decoded.
    """
    return HandshakeResponse(miner_hotkey, int(now), "", False, "", None)


def _read_signature(hotkey: str, signature: str) -> tuple[bytes, bytes]:
    """Return the public key and the signature that two texts of a login stand for."""
    if not signature:
        raise SignatureInvalid("empty signature")
    public_key = ss58.decode(hotkey)
    raw = _decode_base64(signature)
    if len(raw) != SIGNATURE_SIZE:
        raise SignatureInvalid(f"Invalid signature length: {len(raw)} bytes")
    return public_key, raw


def _decode_base64(text: str) -> bytes:
    """Return the bytes of padded standard base64, refusing every other spelling."""
    try:
        raw = base64.b64decode(text)
    except ValueError:
        raise SignatureInvalid("Failed to decode signature: not base64") from None
    # The decoder skips foreign characters, and does not look at bits left over.
    if _encode_base64(raw) != text:
        raise SignatureInvalid("Failed to decode signature: not in canonical form")
    return raw


def _encode_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _quote(text: str) -> str:
    """Return the peer's text escaped and cut, fit for a log line."""
    return ascii(text[:64])
