"""The pump on a system without recvmmsg, sendmmsg, offloads, eventfd and ppoll.

What it does where they exist is tested with the driver, the transport and the faces.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.support.narrow_interface import SKIPPED
from tests.unit import test_blocking, test_driver, test_transport
from tests.unit.test_transport import ask


@pytest.fixture(autouse=True)
def way(request, monkeypatch):
    """Do without, unless a test has it False."""
    monkeypatch.setenv("LIGHTNING_PLAIN_UDP", "1")
    if not getattr(request, "param", True):
        monkeypatch.delenv("LIGHTNING_PLAIN_UDP")


echo_process = test_driver.echo_process
endpoints = test_transport.endpoints
pair = test_blocking.pair

# All of these once more.
test_owner = test_driver.test_an_owner_that_is_there_does_the_work_itself
test_thread = (
    test_driver.test_the_thread_retransmits_and_gives_up_for_an_owner_that_sleeps
)
test_idle_thread = test_driver.test_an_idle_thread_sleeps
test_dead_ports = test_driver.test_dials_to_a_dead_port_fail_at_once_and_others_go_on
test_what_is_dropped = test_driver.test_what_is_dropped_closes_its_socket_and_thread
test_fork = test_driver.test_a_forked_child_can_close_what_it_has_inherited
test_exit = test_driver.test_interpreter_exit_with_an_open_driver_is_silent
test_paused_streams = test_transport.test_paused_streams_hold_up_the_sender
test_silence = test_transport.test_silence_ends_a_connection
test_many_threads = test_blocking.test_many_threads_share_a_client


@pytest.mark.parametrize("way", [True, False], indirect=True)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_large_bodies_at_a_time_go_both_ways(endpoints, family, way):
    """One datagram leaves with a call, or many where that is there."""
    serve, dial = endpoints
    server = await serve(family)
    connection = await dial(server, family)
    bodies = [os.urandom((1 << 20) - 1) for _ in range(4)]
    for body in bodies:
        assert await ask(connection, body) == body
    stats = connection._endpoint.stats()
    if os.environ.get("LIGHTNING_PLAIN_UDP"):
        assert not stats["gso"]
        assert stats["send_calls"] >= stats["sent"] > 3000
    elif stats["gso"]:
        assert stats["send_calls"] * 4 < stats["sent"]


@pytest.mark.parametrize("way", [True, False], indirect=True)
def test_what_the_interface_refuses_is_not_tried_again(way):
    """Neither when the MTU is searched for nor when it shrinks: nothing waits for a loss.

    Sizes are of UDP payload, below the interface's by 28 bytes.
    """
    ends = subprocess.run(
        [sys.executable, "-m", "tests.support.narrow_interface", "1400", "1280"],
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    if ends.returncode == SKIPPED:
        pytest.skip("no network of its own")
    assert ends.returncode == 0
    first, second = json.loads(ends.stdout)
    assert all(1372 - 20 < size <= 1372 for size in first["sizes"])
    # Each size that was too large, once.
    assert max(first["not_sent"]) <= 5
    assert all(1252 - 20 < size <= 1252 for size in second["sizes"])
    # What was on its way to the socket.
    assert max(second["not_sent"]) < 200
