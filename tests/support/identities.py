"""Fixed identities: sr25519 keys from seeds of one repeated byte."""

from lightning.signer import Sr25519Signer

MINER_SEED = bytes([1] * 32)
MINER = Sr25519Signer.from_seed(MINER_SEED)
MINER_HOTKEY = "5CcyqxXnJucaCnQQvvUg5EPzj1uoNAxACZvzArHw5aVDvgNH"

VALIDATOR_SEED = bytes([2] * 32)
VALIDATOR = Sr25519Signer.from_seed(VALIDATOR_SEED)
VALIDATOR_HOTKEY = "5CfCr47V5Dte6bwxNBE8K9oNnQd9fiay6aDEEkgYtFv7w4Fq"


def signer(number: int) -> Sr25519Signer:
    """Return the key of another seed."""
    return Sr25519Signer.from_seed(number.to_bytes(32, "big"))
