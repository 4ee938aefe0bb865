"""TLS messages and key schedule: the same as aioquic's, to the byte and to the alert"""

import random

import pytest
from aioquic import tls
from aioquic.buffer import Buffer

from lightning._core.quic import keyschedule, tlsmessages
from lightning._core.quic.tls import PARTS

SUITES = list(tls.CIPHER_SUITES)


def made(push, value):
    """Write a message into a buffer that has something in it already."""
    buffer = Buffer(capacity=65536)
    buffer.push_bytes(b"before")
    push(buffer, value)
    return buffer.data[6:]


def read(pull, data):
    """Read a message; return it, or which alert refuses it."""
    buffer = Buffer(data=data)
    try:
        found = pull(buffer)
    except tls.Alert as alert:
        return alert.description
    except (ValueError, AssertionError):
        return tls.AlertDescription.decode_error
    return found, buffer.tell()


def numbers(rng, size):
    return [rng.randrange(1 << 8 * size) for _ in range(rng.randrange(5))]


def extensions(rng):
    return [
        (rng.choice([57, 5, 60_000]), rng.randbytes(rng.randrange(40)))
        for _ in range(rng.randrange(4))
    ]


def shares(rng):
    return [(29, rng.randbytes(32)), (23, rng.randbytes(65))][: rng.randrange(1, 3)]


def client_hello(rng):
    return tls.ClientHello(
        rng.randbytes(32),
        rng.randbytes(rng.choice([0, 0, 32])),
        numbers(rng, 2),
        [0],
        alpn_protocols=rng.choice([None, ["btlightning"], ["h3", "x"]]),
        key_share=shares(rng),
        psk_key_exchange_modes=rng.choice([None, [1]]),
        server_name=rng.choice([None, None, None, "example.com"]),
        signature_algorithms=numbers(rng, 2),
        supported_groups=numbers(rng, 2),
        supported_versions=[0x0304],
        other_extensions=extensions(rng),
    )


def server_hello(rng):
    return tls.ServerHello(
        rng.randbytes(32),
        rng.randbytes(rng.choice([0, 32])),
        0x1301,
        0,
        key_share=shares(rng)[0],
        pre_shared_key=rng.choice([None, None, None, 0]),
        supported_version=rng.choice([None, 0x0304]),
        other_extensions=extensions(rng),
    )


def encrypted_extensions(rng):
    return tls.EncryptedExtensions(
        rng.choice([None, "btlightning"]), rng.random() < 0.2, extensions(rng)
    )


def certificate(rng):
    return tls.Certificate(
        rng.randbytes(rng.choice([0, 8])),
        [
            (rng.randbytes(rng.randrange(600)), rng.randbytes(rng.choice([0, 6])))
            for _ in range(rng.randrange(3))
        ],
    )


def certificate_verify(rng):
    return tls.CertificateVerify(0x0403, rng.randbytes(rng.randrange(80)))


def finished(rng):
    return tls.Finished(rng.randbytes(rng.choice([32, 48])))


MAKERS = (
    client_hello,
    server_hello,
    encrypted_extensions,
    certificate,
    certificate_verify,
    finished,
)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_messages_are_written_and_read_as_aioquic_does(maker):
    """The same bytes, the same values, and the same position afterwards."""
    name = maker.__name__
    for seed in range(300):
        value = maker(random.Random(seed))
        data = made(getattr(tlsmessages, f"push_{name}"), value)
        assert data == made(getattr(tls, f"push_{name}"), value), seed
        ours = read(getattr(tlsmessages, f"pull_{name}"), data)
        assert ours == read(getattr(tls, f"pull_{name}"), data), seed
        assert ours == (value, len(data)), seed


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_what_aioquic_refuses_is_refused(maker):
    """Changed in any place: with the same alert, or read as the same value."""
    name = maker.__name__
    ours, theirs = getattr(tlsmessages, f"pull_{name}"), getattr(tls, f"pull_{name}")
    rng = random.Random(1)
    differ = 0
    for seed in range(40):
        data = made(getattr(tls, f"push_{name}"), maker(random.Random(seed)))
        for _ in range(100):
            at = rng.randrange(1, len(data))
            size = rng.choice([0, 1, 1, 1, 2])
            changed = data[:at] + rng.randbytes(size) + data[at + 1 :]
            if size != 1:
                # As it arrives: the length in front of it decides what a message is.
                changed = changed[:1] + (len(changed) - 4).to_bytes(3) + changed[4:]
            differ += read(ours, changed) != read(theirs, changed)
    assert not differ


def test_every_part_stands_in_for_one_of_aioquic():
    """A new version that has no such name any more is found here."""
    assert set(PARTS) <= set(vars(tls))


def test_what_cannot_be_written_is_refused():
    """A length that does not fit its field never wraps around."""
    with pytest.raises(ValueError, match="too long"):
        made(tlsmessages.push_finished, tls.Finished(bytes(1 << 24)))


def test_what_is_not_written_is_not_hashed():
    """An error within goes on, and leaves the transcript alone."""
    hashed = []

    class Schedule:
        update_hash = hashed.append

    buffer = Buffer(capacity=16)
    with tlsmessages.Hashing(Schedule, buffer):
        buffer.push_bytes(b"message")
    writing = tlsmessages.Hashing(Schedule, buffer)
    writing.__enter__()
    buffer.push_bytes(b"more")
    assert not writing.__exit__(KeyError, KeyError(), None)
    assert hashed == [b"message"]


# The key schedule.


@pytest.mark.parametrize("suite", SUITES)
def test_secrets_are_those_of_aioquic(suite):
    """All that a handshake asks for, step by step."""
    rng = random.Random(int(suite))
    ours, theirs = keyschedule.KeySchedule(suite), tls.KeySchedule(suite)
    for material in (None, rng.randbytes(32), None):
        for each in (ours, theirs):
            each.extract(material)
        for size in (0, 1, 200, 5000):
            message = rng.randbytes(size)
            for each in (ours, theirs):
                each.update_hash(message)
            for label in (b"s hs traffic", b"c ap traffic", b"exp master"):
                assert ours.derive_secret(label) == theirs.derive_secret(label)
            context = tls.SERVER_CONTEXT_STRING
            assert ours.certificate_verify_data(
                context
            ) == theirs.certificate_verify_data(context)
            secret = ours.derive_secret(b"c hs traffic")
            assert ours.finished_verify_data(secret) == theirs.finished_verify_data(
                secret
            )
    assert ours.generation == theirs.generation == 3
    assert ours.cipher_suite == suite


@pytest.mark.parametrize("suite", SUITES)
def test_an_offer_becomes_the_schedule_that_is_chosen(suite):
    """As if there had been no other."""
    ours, theirs = keyschedule.Offer(SUITES), tls.KeyScheduleProxy(SUITES)
    for each in (ours, theirs):
        each.extract(None)
        each.update_hash(b"hello")
    made, expected = ours.select(suite), theirs.select(suite)
    assert made.derive_secret(b"x") == expected.derive_secret(b"x")
    with pytest.raises(KeyError):
        keyschedule.Offer([]).select(suite)


def test_what_a_key_schedule_does_not_take():
    """Unknown suites, secrets of another hash, labels that are too long."""
    with pytest.raises(ValueError, match="0x1304"):
        keyschedule.KeySchedule(0x1304)
    schedule = keyschedule.KeySchedule(0x1301)
    with pytest.raises(ValueError, match="as long as the hash"):
        schedule.finished_verify_data(bytes(48))
    with pytest.raises(ValueError, match="too long"):
        schedule.derive_secret(bytes(33))
