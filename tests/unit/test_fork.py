"""A forked child and what it has from its parent: told clearly, and no harm done."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning import AsyncLightning
from tests.support.identities import VALIDATOR, VALIDATOR_HOTKEY
from tests.support.inspection import connections, in_flight
from tests.support.quic import Two
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
ECHO = {"synapse_type": "echo", "data": {"n": 1}}
TOLD = "made before a fork"

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


class Child:
    """A forked child that runs a function and reports what it returns.

    It ends without finalizers, as the children of multiprocessing do.
    """

    def __init__(self, function):
        gc.collect()
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            text = b"died"
            try:
                text = "\n".join(function()).encode()
            except BaseException as error:
                text = repr(error).encode()
            finally:
                os.write(write, text)
                os._exit(0)
        os.close(write)
        self.pipe = os.fdopen(read)

    def lines(self):
        with self.pipe:
            lines = self.pipe.read().splitlines()
        os.waitpid(self.pid, 0)
        return lines


def told(*calls):
    """Return the errors of calls in a child."""
    texts = []
    for call in calls:
        try:
            texts.append(f"no error: {call()!r}")
        except RuntimeError as error:
            texts.append(str(error))
    return texts


async def test_a_child_is_told_by_the_faces_on_asyncio(start_server, connect):
    """Forked while the loop runs; the child may have a loop of its own."""
    server = await start_server()
    client, axon = await connect(server)
    (session,) = client._sessions.values()
    fan = client.query_many([axon], ECHO)

    def use():
        async def query_many():
            return await client.query_many([axon], ECHO)

        texts = told(
            lambda: asyncio.run(client.query_axon(axon, ECHO)),
            lambda: asyncio.run(client.query_axon_stream(axon, ECHO)),
            lambda: asyncio.run(query_many()),
            lambda: asyncio.run(fan.collect_all()),
            lambda: asyncio.run(client.initialize_connections([axon])),
            lambda: asyncio.run(client.update_miner_registry([axon])),
            lambda: asyncio.run(server.start()),
            lambda: asyncio.run(server.serve_forever()),
        )
        asyncio.run(client.close())
        asyncio.run(client.close_all_connections())
        asyncio.run(server.stop())
        return texts

    lines = await asyncio.to_thread(Child(use).lines)
    assert len(lines) == 8
    assert all(TOLD in line for line in lines), lines
    assert (await fan)[0].data == {"n": 1}
    assert (await client.query_axon(axon, ECHO, 10)).data == {"n": 1}
    assert list(client._sessions.values()) == [session]
    assert session.connection.is_alive


def test_a_child_that_runs_its_parents_loop(start_blocking_server, axon_of):
    """It neither asks nor answers with its parent's keys, nor takes its datagrams."""
    server = start_blocking_server()
    axon = axon_of(server)
    loop = asyncio.new_event_loop()

    async def begin():
        client = AsyncLightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
        await client.initialize_connections([axon])
        assert (await client.query_axon(axon, ECHO, 10)).success
        return client

    async def query_many():
        return await client.query_many([axon], ECHO)

    def use():
        run = loop.run_until_complete
        before = client._sessions[axon.address].connection._engine.stats()
        texts = told(
            lambda: run(client.query_axon(axon, ECHO)),
            lambda: run(client.query_axon_stream(axon, ECHO)),
            lambda: run(query_many()),
            lambda: run(client.initialize_connections([axon])),
        )
        run(asyncio.sleep(0.5))
        run(client.close())
        after = client._sessions[axon.address].connection._engine.stats()
        return [*texts, str(before == after)]

    client = loop.run_until_complete(begin())
    try:
        (connection,) = connections(client)
        child = Child(use)
        # The loop is that of both: what wakes one wakes the other.
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            answer = loop.run_until_complete(client.query_axon(axon, ECHO, 10))
            assert answer.data == {"n": 1}
        lines = child.lines()
        assert all(TOLD in line for line in lines[:4]), lines
        assert lines[4:] == ["True"]
        assert list(connections(client)) == [connection]
        assert loop.run_until_complete(client.query_axon(axon, ECHO, 10)).success
    finally:
        loop.run_until_complete(client.close())
        loop.close()


def test_a_child_is_told_by_the_faces_that_block(
    start_blocking_server, make_blocking_client, axon_of
):
    """Those that `test_blocking` has not, and half-read outcomes."""
    released = threading.Event()
    server = start_blocking_server(
        lambda s: s.register_synapse_handler("hold", lambda _: {"x": released.wait(20)})
    )
    client, axon = make_blocking_client(), axon_of(server)
    client.initialize_connections([axon])
    fan = client.query_many([axon, axon], [ECHO, {"synapse_type": "hold"}])
    assert next(fan)[0] == 0
    (connection,) = connections(client)

    def use():
        texts = told(
            lambda: client.query_many([axon], ECHO),
            lambda: client.query_axon_stream(axon, ECHO),
            lambda: next(fan),
            lambda: client.update_miner_registry([axon]),
            client.__enter__,
            server.start,
        )
        fan.close()
        client.close()
        server.stop()
        return texts

    lines = Child(use).lines()
    assert len(lines) == 6
    assert all(TOLD in line for line in lines), lines
    released.set()
    assert next(fan)[1]["data"] == {"x": True}
    assert client.query_axon(axon, ECHO, 10)["success"]
    assert list(connections(client)) == [connection]


def test_children_of_a_busy_parent_exit_in_silence():
    """With all finalizers: none hangs on a lock of threads that it has not."""
    code = """
import gc, logging, os, sys, threading, time
from lightning import *
from tests.support.identities import *

logging.getLogger("asyncio").addFilter(lambda record: "seconds" not in record.msg)
server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
server.register_synapse_handler("echo", lambda data: data, inline=True)
server.start()
client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
axon = QuicAxonInfo(MINER_HOTKEY, *server.local_addr())
client.initialize_connections([axon])
connection = next(iter(client._client._sessions.values())).connection
stopping = threading.Event()

def ask():
    while not stopping.is_set():
        assert client.query_axon(axon, {"synapse_type": "echo"}, 20)["success"]
        for _, outcome in client.query_many([axon] * 3, {"synapse_type": "echo"}, 20):
            assert outcome["success"]

threads = [threading.Thread(target=ask) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for number in range(12):
    child = os.fork()
    if child == 0:
        if number % 2:
            del client, server, connection
            gc.collect()
        sys.exit(number)
    children.append(child)
statuses = []
deadline = time.monotonic() + 20
for child in children:
    done = 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    statuses.append(os.waitstatus_to_exitcode(status) if done else "hung")
stopping.set()
for thread in threads:
    thread.join()
assert client.query_axon(axon, {"synapse_type": "echo"}, 20)["success"]
assert connection.is_alive
assert server.get_connection_stats()["total_connections"] == "1"
print(statuses)
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{list(range(12))}\n"


def test_what_was_made_but_not_used_is_the_childs_as_well(
    start_blocking_server, make_client, axon_of
):
    """Nothing of the parent is behind it."""
    axon = axon_of(start_blocking_server())
    client = make_client()

    async def ask():
        async with client:
            return (await client.query_axon(axon, ECHO, 10)).success

    assert Child(lambda: [str(asyncio.run(ask()))]).lines() == ["True"]
    until(lambda: not in_flight(client))


def test_a_child_may_look_at_what_its_parents_threads_were_at():
    """Whoever held the mutex at that moment is not there to give it back."""
    two = Two().connect()
    over = threading.Event()

    def look():
        while not over.is_set():
            two.connection.stats()
            two.near.stats()

    def use():
        connection = two.connection
        return [
            str(connection.stats()["packets_sent"]),
            str(two.near.stats()["connections"]),
            repr((connection.address, connection.token, connection.is_connected)),
            repr((connection.is_confirmed, two.near.next_timeout())),
        ]

    expected = use()
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            assert Child(use).lines() == expected
    finally:
        over.set()
        for thread in threads:
            thread.join()
