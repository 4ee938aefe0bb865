"""Many connections: what an idle one costs, and what many do to requests.

Idle: so many validators (a client object and a hotkey each) on one server, and one client
object with so many miners (a server object, a port and a hotkey each). Of the one process
that has them all: resident memory before and after, garbage collected and what malloc
keeps given back, and processor time while nobody asks anything, keep-alives and their
answers included. The other ends are in several processes.

Busy: requests of 1 KiB through 1, 16 and 256 connections, as many in flight all told, one
process each side.

    python bench/scale.py [--connections 1000] [--seconds 60] [--keep-alive 30] [--quick]

All faces are those on asyncio. Memory is Linux's and glibc's.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    LightningClientConfig,
    LightningServerConfig,
    QuicAxonInfo,
)
from tests.support.identities import signer

PROCESSES = 4
BUSY = (1, 16, 256)
IN_FLIGHT = 256
PAYLOAD = b"\x42" * 1024
# Dials at a time, below what a server keeps of those not logged in yet.
DIALS = 32
# Hotkeys by number: of validators from here on, of miners from 1.
VALIDATORS = 1_000_000
PATIENCE = 120.0
# After which what a login leaves behind for a while is gone.
SETTLE = 2.0


class Worker:
    """What a process does when it is told to; it lives on an event loop.

    Args:
        keep_alive: Seconds between PINGs of an idle connection.
        connections: Most that a client or a server has.
    """

    def __init__(self, keep_alive: int, connections: int) -> None:
        self._server_config = LightningServerConfig(
            keep_alive_interval_secs=keep_alive,
            max_connections=connections,
            max_concurrent_bidi_streams=IN_FLIGHT,
            max_handshake_attempts_per_minute=1_000_000,
            handshake_timeout_secs=60,
            login_deadline_secs=60,
        )
        self._client_config = LightningClientConfig(
            keep_alive_interval=keep_alive,
            max_connections=connections,
            connect_timeout=60,
        )
        self._servers: list[AsyncLightningServer] = []
        self._clients: list[tuple[AsyncLightning, list[QuicAxonInfo]]] = []

    async def serve(self, first: int, count: int) -> list[tuple[str, int]]:
        """Start servers; return hotkey and port of each."""

        async def echo(data: dict[str, Any]) -> dict[str, Any]:
            return data

        for number in range(first, first + count):
            miner = signer(number)
            server = AsyncLightningServer(
                miner.ss58_address,
                "127.0.0.1",
                0,
                config=self._server_config,
                signer=miner,
            )
            server.register_synapse_handler("echo", echo)
            await server.start()
            self._servers.append(server)
        return [(each.miner_hotkey, each.local_addr().port) for each in self._servers]

    async def dial(self, first: int, count: int, miners: list[tuple[str, int]]) -> int:
        """Connect clients to all miners; return how many connections they have."""
        axons = [QuicAxonInfo(hotkey, "127.0.0.1", port) for hotkey, port in miners]
        for number in range(first, first + count):
            validator = signer(number)
            client = AsyncLightning.with_config(
                validator.ss58_address, self._client_config
            )
            client.set_signer(validator)
            self._clients.append((client, axons))
        places = asyncio.Semaphore(DIALS)

        async def connect(client: AsyncLightning) -> None:
            async with places:
                await client.initialize_connections(axons)

        await asyncio.gather(*(connect(client) for client, _ in self._clients))
        stats = [await client.get_connection_stats() for client, _ in self._clients]
        return sum(list(each.values()).count("active") for each in stats)

    async def cpu(self) -> float:
        """Return the processor time that it has used, in seconds."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    async def memory(self) -> int:
        """Return what is resident, in bytes, after giving back what is unused."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return resident()

    async def ask(self, count: int) -> float:
        """Ask through all connections in turn; return requests a second."""
        pairs = [(client, axon) for client, axons in self._clients for axon in axons]
        turns = itertools.cycle(pairs)
        request = {"synapse_type": "echo", "data": {"payload": PAYLOAD}}

        async def call() -> None:
            for _ in range(count // IN_FLIGHT):
                client, axon = next(turns)
                answer = await client.query_axon(axon, request, timeout_secs=PATIENCE)
                if not answer.success:
                    raise RuntimeError(answer.error)

        start = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(IN_FLIGHT)))
        return count // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - start)


def resident() -> int:
    """Return this process's resident memory in bytes (proc(5), ``statm``)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def work(pipe: Pipe, keep_alive: int, connections: int) -> None:
    """Do what comes through the pipe, until it ends."""

    async def run() -> None:
        worker = Worker(keep_alive, connections)
        loop = asyncio.get_running_loop()
        while True:
            try:
                verb, arguments = await loop.run_in_executor(None, pipe.recv)
            except EOFError:
                return
            pipe.send(await getattr(worker, verb)(*arguments))

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run())


class Workers:
    """Some processes, each with a worker."""

    def __init__(self, count: int, keep_alive: int, connections: int) -> None:
        self._processes, self._pipes = [], []
        spawned = multiprocessing.get_context("spawn")
        for _ in range(count):
            ours, theirs = spawned.Pipe()
            process = spawned.Process(
                target=work, args=(theirs, keep_alive, connections), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def tell(self, verb: str, *arguments: tuple[Any, ...]) -> list[Any]:
        """Have each do the same, with arguments of its own; return the answers."""
        for pipe, own in itertools.zip_longest(self._pipes, arguments, fillvalue=()):
            pipe.send((verb, own))
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(2 * PATIENCE):
                raise RuntimeError(f"no answer to {verb} in {2 * PATIENCE:g} s")
            answers.append(pipe.recv())
        return answers

    def stop(self) -> None:
        """End them; what they have connected is just gone."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()


@contextlib.contextmanager
def workers(
    one: int, many: int, keep_alive: int, connections: int
) -> Iterator[tuple[Workers, Workers]]:
    """Start the processes of both sides."""
    started = [Workers(count, keep_alive, connections) for count in (one, many)]
    try:
        yield started[0], started[1]
    finally:
        for each in started:
            each.stop()


def shares(count: int, first: int) -> list[tuple[int, int]]:
    """Part numbers among the processes: the first of each, and how many."""
    sizes = [count // PROCESSES + (n < count % PROCESSES) for n in range(PROCESSES)]
    return list(zip(itertools.accumulate(sizes, initial=first), sizes, strict=False))


def idle(what: str, count: int, seconds: float, keep_alive: int) -> list[str]:
    """Measure what idle connections cost the one who has them all; return a row."""
    with workers(1, PROCESSES, keep_alive, count + 8) as (one, many):
        if what == "server":
            (miners,) = one.tell("serve", (1, 1))
        else:
            found = many.tell("serve", *shares(count, 1))
            miners = [miner for each in found for miner in each]
        (before,) = one.tell("memory")
        start = time.monotonic()
        if what == "server":
            dials = [(first, own, miners) for first, own in shares(count, VALIDATORS)]
            made = sum(many.tell("dial", *dials))
        else:
            (made,) = one.tell("dial", (VALIDATORS, 1, miners))
        took = time.monotonic() - start
        if made != count:
            raise RuntimeError(f"{made} of {count} connections are there")
        time.sleep(SETTLE)
        (after,) = one.tell("memory")
        (began,) = one.tell("cpu")
        time.sleep(seconds)
        (ended,) = one.tell("cpu")
    a_keep_alive = (ended - began) / count / seconds * keep_alive
    return [
        f"one {what}",
        f"{count:,}",
        f"{took:.1f} s",
        f"{before / 2**20:.1f}, {after / 2**20:.1f}",
        f"{(after - before) / count:,.0f}",
        f"{a_keep_alive * 1e6:.0f}",
        f"{a_keep_alive / 30 * 1000:.2%}",
    ]


def busy(what: str, count: int, requests: int) -> tuple[str, str, str]:
    """Measure requests through so many connections: rate, and processor time of each."""
    with workers(1, 1, 30, count + 8) as (client, server):
        servers, clients = (1, count) if what == "server" else (count, 1)
        (miners,) = server.tell("serve", (1, servers))
        (made,) = client.tell("dial", (VALIDATORS, clients, miners))
        if made != count:
            raise RuntimeError(f"{made} of {count} connections are there")
        client.tell("ask", (max(IN_FLIGHT, requests // 10),))
        before = [each.tell("cpu")[0] for each in (client, server)]
        (rate,) = client.tell("ask", (requests,))
        after = [each.tell("cpu")[0] for each in (client, server)]
    micros = [
        f"{(late - early) / requests * 1e6:.0f}"
        for early, late in zip(before, after, strict=True)
    ]
    return f"{rate:,.0f}", micros[0], micros[1]


def show(head: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


def files_needed(connections: int) -> int:
    """Return how many files a process may have open in the worst case."""
    # Sockets, epoll's and eventfd's of each client or server object.
    return 6 * max(connections // PROCESSES + 1, *BUSY) + 100


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of idleness")
    parser.add_argument("--keep-alive", type=int, default=30, help="seconds")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument(
        "--quick", action="store_true", help="half a minute, for a look"
    )
    options = parser.parse_args()
    if options.quick:
        options.connections, options.requests = 200, 5000
        options.seconds, options.keep_alive = 6.0, 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(options.connections)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; open files: "
        f"{soft} a process, at most {hard}, up to {needed} needed; UDP buffers of "
        f"{socket_buffer()} bytes by default; Python {sys.version.split()[0]}.\n"
    )
    if needed > hard:
        raise SystemExit(f"more open files are needed: ulimit -n {needed}")
    print(
        f"Idle connections, keep-alive {options.keep_alive} s, "
        f"{options.seconds:g} s without a request. The last column is of one core, "
        "for 1 000 connections at a keep-alive of 30 s.\n"
    )
    names = ["server", "client"]
    show(
        ["who has them", "connections", "connected in", "MiB before, after",
         "bytes each", "CPU µs a keep-alive", "of a core"],
        [idle(name, options.connections, options.seconds, options.keep_alive)
         for name in names],
    )  # fmt: skip
    print(f"Requests of 1 KiB, {IN_FLIGHT} in flight, a process each side.\n")
    rows = []
    for count in BUSY:
        found = [busy(name, count, options.requests) for name in names]
        rows.append([str(count), *found[0], *found[1]])
    show(
        ["connections", "one server: requests/s", "client µs", "server µs",
         "one client: requests/s", "client µs", "server µs"],
        rows,
    )  # fmt: skip


def socket_buffer() -> int:
    """Return the size of a UDP socket's receive buffer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


if __name__ == "__main__":
    main()
