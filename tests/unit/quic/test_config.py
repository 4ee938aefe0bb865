"""Settings of the engine, and a server's identity."""

import dataclasses
import math

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lightning._core.quic.config import _RANGES, EngineConfig, Identity
from lightning.errors import ConfigError


def test_the_defaults_are_in_their_ranges():
    config = EngineConfig()
    assert config.alpn == "btlightning"
    for name, low, high in _RANGES:
        assert low <= getattr(config, name) <= high, name


def test_every_number_has_a_range():
    numbers = {
        field.name
        for field in dataclasses.fields(EngineConfig)
        if type(field.default) in (int, float)
    }
    assert {name for name, _, _ in _RANGES} == numbers


@pytest.mark.parametrize(("name", "low", "high"), _RANGES, ids=str)
def test_the_ends_of_a_range_are_taken_and_nothing_beyond(name, low, high):
    for value in (low, high):
        assert getattr(EngineConfig(**{name: value}), name) == value
    step = 1 if isinstance(low, int) and isinstance(high, int) else 0.0001
    for value in (low - step, high + step, math.nan, math.inf):
        with pytest.raises(ConfigError, match=name):
            EngineConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"congestion": "bbr"}, "unknown algorithm 'bbr'"),
        ({"secret": bytes(31)}, "32 bytes, not 31"),
        ({"cipher_suites": ()}, "cipher_suites"),
        ({"cipher_suites": (0x1301, 0x1304)}, "cipher_suites"),
    ],
)
def test_other_values_are_checked_too(settings, words):
    with pytest.raises(ConfigError, match=words):
        EngineConfig(**settings)


def test_a_secret_is_not_shown():
    assert "secret" not in repr(EngineConfig(secret=bytes(range(32))))


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().alpn = "h3"


def test_an_identity_is_self_signed_with_its_key():
    """P-256, for a time that is always now; each is another."""
    first, second = Identity.generate(), Identity.generate()
    certificate = x509.load_der_x509_certificate(first.der)
    assert certificate.public_key() == first.key.public_key()
    assert isinstance(first.key.curve, ec.SECP256R1)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.not_valid_before_utc.year == 1975
    assert certificate.not_valid_after_utc.year == 4096
    assert first.der != second.der
    assert "PrivateKey" not in repr(first.der)
