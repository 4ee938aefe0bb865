"""What large bodies cost in memory, at both ends."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning.errors import ConnectionClosed, RequestTimeout
from tests.support.inspection import in_flight
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
SIZE = 64 << 20
PROCESS = [sys.executable, "-m", "tests.support.body_process"]
BIG = {"synapse_type": "hold", "data": {"x": bytes(2 << 20)}}


@pytest.mark.parametrize("face", ["asyncio", "blocking"])
def test_an_echo_needs_little_more_than_two_bodies_at_either_end(face):
    """What goes or comes, and its frame: never the request and the answer at once."""
    with subprocess.Popen(
        [*PROCESS, "server", face],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as server:
        port = server.stdout.readline().strip()
        client = subprocess.run(
            [*PROCESS, "client", face, port, str(SIZE)],
            check=False,
            capture_output=True,
            text=True,
            timeout=50,
            cwd=ROOT,
        )
        assert client.returncode == 0, client.stderr
        server.stdin.close()
        assert server.wait(10) == 0
    near, far = (int(each) / SIZE for each in client.stdout.split())
    # Less than the answer itself would be measured wrong.
    assert 0.9 < near < 2.9, f"{near:.2f} bodies more at the client"
    assert 0.9 < far < 2.9, f"{far:.2f} bodies more at the server"


# What a blocking caller does otherwise where a request is large.


@pytest.fixture
def held(start_blocking_server, make_blocking_client, axon_of):
    """A server that holds requests until it is told, and a client."""
    released = threading.Event()
    server = start_blocking_server(
        lambda s: s.register_synapse_handler(
            "hold", lambda data: {"n": len(data["x"]), "r": released.wait(20)}
        )
    )
    client, axon = make_blocking_client(), axon_of(server)
    client.initialize_connections([axon])
    yield server, client, axon, released
    released.set()


def test_a_large_request_times_out(held):
    server, client, axon, released = held
    with pytest.raises(RequestTimeout) as caught:
        client.query_axon(axon, BIG, 0.2)
    assert caught.value.timeout == 0.2
    released.set()
    until(lambda: not in_flight(client, server))
    assert client.query_axon(axon, BIG, 20)["data"]["n"] == 2 << 20


def test_a_large_request_ends_with_its_connection(held):
    server, client, axon, _released = held

    def close():
        until(lambda: server._server._answering)
        client.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(ConnectionClosed):
        client.query_axon(axon, BIG)
    thread.join(10)


def test_large_requests_of_many_threads(held):
    _server, client, axon, released = held
    released.set()
    answers = []

    def ask():
        answers.append(client.query_axon(axon, BIG, 30)["data"]["n"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert answers == [2 << 20] * 6
    assert time.monotonic() - began < 30
