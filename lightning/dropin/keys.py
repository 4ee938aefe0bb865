"""Who signs, out of what libraries call a wallet or a keypair."""

from __future__ import annotations

from typing import Any

from lightning.errors import ConfigError

__all__ = ["keypair_of"]


def keypair_of(wallet: Any) -> Any:
    """Return who signs, out of a wallet or a keypair of any library."""
    if wallet is None:
        try:
            from bittensor_wallet import Wallet  # noqa: PLC0415 - an extra.
        except ImportError as error:
            raise ConfigError(
                "without a wallet or a keypair the default wallet is needed: "
                "pip install 'bittensor-lightning[wallet]'"
            ) from error
        wallet = Wallet()
    found = getattr(wallet, "hotkey", wallet)
    if not hasattr(found, "ss58_address") or not callable(getattr(found, "sign", None)):
        raise ConfigError(
            f"a {type(wallet).__name__} is neither a wallet nor a keypair: it needs "
            "ss58_address and sign, or a hotkey that has them"
        )
    return found
