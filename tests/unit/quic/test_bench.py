"""What the benchmarks run is what they say."""

import gc
import sys

import pytest

from lightning._core.quic.bench import build_packets, run_exchanges, struct_sizes
from tests.support.quic import CLIENT, client, server


def connected():
    """Return a connection and the server of it, at one address and time."""
    near, far = client(), server()
    connection = near.connect(CLIENT, 0.0)
    while True:
        out = near.datagrams_to_send(0.0)
        for data, _ in out:
            far.receive(data, CLIENT, 0.0)
        back = far.datagrams_to_send(0.0)
        for data, _ in back:
            near.receive(data, CLIENT, 0.0)
        if not out and not back:
            return connection, far


def test_a_small_exchange_is_two_datagrams():
    """The answer carries the acknowledgement; those of answers are held back."""
    connection, far = connected()
    done, datagrams = run_exchanges(connection, far, bytes(1024), 200)
    assert done == 200
    assert 400 <= datagrams <= 420


def test_a_large_exchange_gives_its_body_back():
    """A body that is referred to keeps as many references as it had."""
    connection, far = connected()
    body = bytes(range(256)) * 4096
    before = sys.getrefcount(body)
    done, datagrams = run_exchanges(connection, far, body, 3)
    assert done == 3
    assert datagrams > 6 * len(body) / 1500
    # The last acknowledgements may still be held back.
    del connection, far
    gc.collect()
    assert sys.getrefcount(body) == before


def test_a_dead_connection_ends_the_run():
    """Nothing hangs where nothing comes back."""
    connection, far = connected()
    connection.close()
    assert run_exchanges(connection, far, b"x", 3) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, 1100, 1400])
def test_a_built_packet_is_one(size):
    """Header of 11 bytes, ACK, STREAM."""
    overhead = build_packets(1, 0) - 11
    assert build_packets(3, size) >= 11 + overhead + size


def test_a_packet_has_a_largest_size():
    """More than fits is refused."""
    with pytest.raises(ValueError, match="1400"):
        build_packets(1, 1401)


def test_records_have_sizes():
    """The largest of them is the connection's."""
    sizes = struct_sizes()
    assert max(sizes, key=sizes.get) == "Conn"
