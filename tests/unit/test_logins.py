"""Logins at a server: of two things that are wrong, the earlier one is the reason."""

import secrets
import time

from tests.support.identities import MINER, VALIDATOR, VALIDATOR_HOTKEY, signer
from tests.support.raw_peer import frame, is_accepted, raw_client

STRANGER = signer(7)


async def test_the_checks_are_made_in_the_order_of_the_wire(start_server, monkeypatch):
    """Each login is wrong in what is checked next as well; nonces are spent late."""
    server = await start_server(
        lambda s: s.set_validator_permit_resolver(lambda: {VALIDATOR_HOTKEY}),
        max_handshake_attempts_per_minute=9,
        require_validator_permit=True,
        max_connections=1,
    )
    logins, nonce = server._logins, secrets.token_hex(16)
    seen: dict[str, int] = {}

    def reason() -> str:
        """Return why the last login was refused."""
        nonlocal seen
        before, seen = seen, dict(server.stats().logins_refused)
        (name,) = [name for name, n in seen.items() if n > before.get(name, 0)]
        return name

    async with (
        raw_client(server.local_addr().port) as raw,
        raw_client(server.local_addr().port) as full,
    ):
        await raw.ask(frame(1, b"nonsense"))
        assert reason() == "DecodeError"
        await raw.login(ahead=-300, nonce="x")
        assert reason() == "TimestampOutOfRange"
        await raw.login(nonce="x", signature="x")
        assert reason() == "NonceInvalid"
        await raw.login(STRANGER, nonce=nonce, signature="x")
        assert reason() == "SignatureInvalid"
        assert len(logins.nonces) == 0, "only a valid signature spends a nonce"
        logins.nonces.check_and_store(nonce, int(time.time()), time.time())
        monkeypatch.setattr("secrets.token_hex", lambda size: nonce)
        await raw.login(STRANGER)
        assert reason() == "NonceReplayed"
        monkeypatch.undo()
        monkeypatch.setattr(logins, "signer", None)
        await raw.login(STRANGER)
        assert reason() == "PermitMissing"
        logins.permits.replace([VALIDATOR_HOTKEY, STRANGER.ss58_address])
        monkeypatch.undo()
        assert is_accepted(await full.login(STRANGER))
        monkeypatch.setattr(logins, "signer", None)
        await raw.login(VALIDATOR)
        assert reason() == "SigningError"
        monkeypatch.setattr(logins, "signer", MINER)
        await raw.login(VALIDATOR)
        assert reason() == "ServerFull"
        await raw.ask(frame(1, b"nonsense"))
        assert reason() == "RateLimited"
    assert server.stats().logins == 1
