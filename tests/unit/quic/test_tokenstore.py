"""A client's tokens by server."""

import pytest

from lightning._core.quic.tokenstore import TokenStoreFace

HERE = bytes([10, 0, 0, 1])
KEPT = 512


def test_a_token_is_taken_once():
    """Section 8.1.3 of RFC 9000: it would link connections else."""
    made = TokenStoreFace()
    made.put(HERE, 1, b"token")
    assert made.take(HERE, 1) == b"token"
    assert made.take(HERE, 1) == b""
    assert len(made) == 0


def test_a_token_is_for_its_server_only():
    made = TokenStoreFace()
    made.put(HERE, 1, b"token")
    assert made.take(HERE, 2) == b""
    assert made.take(bytes([10, 0, 0, 2]), 1) == b""
    assert made.take(HERE, 1) == b"token"


def test_the_newest_token_of_a_server_is_kept():
    made = TokenStoreFace()
    made.put(HERE, 1, b"old")
    made.put(HERE, 2, b"other")
    made.put(HERE, 1, b"newer")
    assert len(made) == 2
    assert made.take(HERE, 1) == b"newer"
    assert made.take(HERE, 2) == b"other"


def test_512_servers_are_remembered_and_the_oldest_goes():
    made = TokenStoreFace()
    for port in range(KEPT):
        made.put(HERE, port, b"%d" % port)
    made.put(HERE, 0, b"again")  # now the youngest
    made.put(HERE, 60_000, b"one more")
    assert len(made) == KEPT
    assert made.take(HERE, 1) == b""
    assert made.take(HERE, 0) == b"again"
    assert [made.take(HERE, port) for port in range(2, KEPT)] == [
        b"%d" % port for port in range(2, KEPT)
    ]
    assert made.take(HERE, 60_000) == b"one more"


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (1, 1), (1024, 1), (1025, 0)])
def test_a_large_token_is_not_kept(size, kept):
    made = TokenStoreFace()
    made.put(HERE, 1, bytes(size))
    assert len(made) == kept


def test_free_may_be_called_twice():
    made = TokenStoreFace()
    made.put(HERE, 1, b"token")
    made.free()
    made.free()
    assert made.take(HERE, 1) == b""
    made.put(HERE, 1, b"again")
    assert made.take(HERE, 1) == b"again"


def test_the_face_refuses_other_addresses():
    with pytest.raises(ValueError, match="4 bytes"):
        TokenStoreFace().put(b"12345", 1, b"token")
