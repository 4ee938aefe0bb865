"""Goodput over a lossy path in real time: ours beside the peer's wheel.

Both pass through one and the same relay process, which holds each datagram back for
half the round trip and loses some of them, by a seed for each transfer and direction.
A transfer is one exchange of the peer's protocol on a connection of its own: a
request of a few bytes with a large answer ("down"), or the reverse ("up"). It is timed
from the request to the answer; connecting and login come before.

Transfers of both stacks run side by side, a few at a time, for they wait nearly all
the time. Which datagrams are lost follows from the seed and from what a stack sends
before, so a pair of the same seed has the same luck at first and another later:
compare means.

The stacks: "peer" is the wheel; "engine" two endpoints of ours on plain sockets,
moved along from Python; "faces" what a user of ours has, `Lightning` and
`LightningServer`.

The peer allows 10 s for sending a request: keep "up" small.

    python bench/relay.py [--stacks peer,engine,faces] [--directions down,up]
        [--size BYTES] [--seeds N] [--loss P] [--rtt SECONDS]
"""

import argparse
import math
import multiprocessing
import random
import select
import socket
import statistics
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import btlightning

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning
from lightning._core.wire.messages import (
    encode_synapse_packet,
    encode_synapse_response,
)
from tests.interop.ours import Address, FramedClient, FramedServer
from tests.interop.wheel_end import free_port
from tests.support.identities import (
    MINER_HOTKEY,
    MINER_SEED,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
)

# What has the peer's Python interface.
MODULES = {"peer": btlightning, "faces": lightning}
STACKS = ["peer", "engine", "faces"]
DIRECTIONS = ["down", "up"]
PATIENCE = 200.0


# --- The relay ------------------------------------------------------------------------


class Flow:
    """One client and its server, and the luck of the datagrams between them."""

    def __init__(self, server: Address, seed: int, loss: float):
        self.near = self._open()
        self.far = self._open()
        self.far.connect(server)
        self.client: Address | None = None
        self._loss = loss
        self._luck = [random.Random(f"{seed}/{way}") for way in ("down", "up")]

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        return made

    def take(self, source: socket.socket) -> bytes | None:
        """Receive a datagram; None if it is lost."""
        data, address = source.recvfrom(65536)
        if source is self.near:
            self.client = address
        lucky = self._luck[source is self.near].random() >= self._loss
        return data if lucky else None

    def give(self, source: socket.socket, data: bytes) -> None:
        """Send on what came in at `source`."""
        if source is self.near:
            self.far.send(data)
        elif self.client is not None:
            self.near.sendto(data, self.client)


def relay(servers: list[tuple[Address, int]], loss: float, delay: float, pipe: Pipe):
    """Pass datagrams on for good, `delay` seconds late each.

    All are as late, so they leave in the order in which they came.
    """
    flows = [Flow(server, seed, loss) for server, seed in servers]
    owners = {sock: flow for flow in flows for sock in (flow.near, flow.far)}
    late: deque[tuple[float, Flow, socket.socket, bytes]] = deque()
    pipe.send([flow.near.getsockname() for flow in flows])
    while True:
        pause = max(0.0, late[0][0] - time.monotonic()) if late else None
        for source in select.select(list(owners), [], [], pause)[0]:
            flow = owners[source]
            for _ in range(64):
                try:
                    data = flow.take(source)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    continue
                if data is not None:
                    late.append((time.monotonic() + delay, flow, source, data))
        while late and late[0][0] <= time.monotonic():
            _, flow, source, data = late.popleft()
            try:
                flow.give(source, data)
            except (BlockingIOError, ConnectionRefusedError):
                pass


# --- Servers --------------------------------------------------------------------------


def answer(data: dict[str, Any]) -> dict[str, Any]:
    """Give as many bytes as were asked for."""
    return {"b": bytes(data["n"])}


class OurServer(FramedServer):
    """Our engine, answering as the peer's server does."""

    def reply(self, message: Any) -> bytes:
        if hasattr(message, "synapse_type"):
            return encode_synapse_response(True, answer(message.data), int(time.time()))
        return super().reply(message)


def serve(stack: str, count: int, pipe: Pipe):
    """Run so many servers for good."""
    addresses = []
    for _ in range(count):
        if stack == "engine":
            server = OurServer()
            addresses.append(server.address)
            threading.Thread(target=_turn, args=(server,), daemon=True).start()
        else:
            port = free_port()
            server = MODULES[stack].LightningServer(MINER_HOTKEY, "127.0.0.1", port)
            server.set_miner_keypair(MINER_SEED)
            server.register_synapse_handler("give", answer)
            server.start()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            addresses.append(("127.0.0.1", port))
    pipe.send(addresses)
    threading.Event().wait()


def _turn(server: OurServer) -> None:
    while True:
        server.step(1.0)


# --- Clients --------------------------------------------------------------------------


def transfer(stack: str, address: Address, request: dict[str, Any]) -> float:
    """Return the seconds of one exchange."""
    if stack == "engine":
        return engine_transfer(address, request)
    client = MODULES[stack].Lightning(VALIDATOR_HOTKEY, connect_timeout_secs=30)
    client.set_validator_keypair(VALIDATOR_SEED)
    axon = {"hotkey": MINER_HOTKEY, "ip": address[0], "port": address[1]}
    client.initialize_connections([axon])
    start = time.monotonic()
    reply = client.query_axon(axon, {"synapse_type": "give", "data": request}, PATIENCE)
    seconds = time.monotonic() - start
    assert reply["success"], reply
    client.close()
    return seconds


def engine_transfer(address: Address, request: dict[str, Any]) -> float:
    """Return the seconds of one exchange between two of our endpoints."""
    client = FramedClient()
    (connection,) = client.dial(address)
    frame = encode_synapse_packet("give", request, int(time.time()))
    start = time.monotonic()
    (reply,) = client.ask(connection, [frame], PATIENCE)
    seconds = time.monotonic() - start
    assert reply.success, reply
    connection.close("", 0)
    client.close()
    return seconds


# --- Runs -----------------------------------------------------------------------------


def child(target: Any, *args: Any) -> tuple[multiprocessing.Process, Any]:
    """Start a process; return it and what it says first."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    return process, ours.recv()


def batch(direction: str, seeds: list[int], options: argparse.Namespace) -> dict:
    """Run a transfer of each stack for each seed, all at a time; Mbit/s by stack."""
    size = options.size
    request = {"n": size} if direction == "down" else {"n": 1, "b": bytes(size)}
    processes, servers = [], []
    for stack in options.stacks:
        process, addresses = child(serve, stack, len(seeds))
        processes.append(process)
        servers += zip(addresses, seeds, strict=True)
    process, near = child(relay, servers, options.loss, options.rtt / 2)
    processes.append(process)
    with ThreadPoolExecutor(len(near)) as pool:
        runs = {
            stack: [
                pool.submit(transfer, stack, near[place * len(seeds) + index], request)
                for index in range(len(seeds))
            ]
            for place, stack in enumerate(options.stacks)
        }
        rates = {
            stack: [size * 8 / run.result() / 1e6 for run in each]
            for stack, each in runs.items()
        }
    for process in processes:
        process.terminate()
    return rates


def summary(rates: list[float]) -> str:
    """Write mean and standard error."""
    error = statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else 0
    return f"{statistics.mean(rates):.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stacks", type=lambda text: text.split(","), default=STACKS)
    parser.add_argument(
        "--directions", type=lambda text: text.split(","), default=DIRECTIONS
    )
    parser.add_argument("--size", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--rtt", type=float, default=0.05)
    parser.add_argument("--parallel", type=int, default=5, help="of each stack")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    print(
        f"{options.size} bytes, {options.rtt * 1000:g} ms round trip, "
        f"{options.loss:.1%} loss; Mbit/s, mean and standard error of {options.seeds}"
    )
    for direction in options.directions:
        found: dict[str, list[float]] = {stack: [] for stack in options.stacks}
        for start in range(0, options.seeds, options.parallel):
            seeds = list(range(start, min(start + options.parallel, options.seeds)))
            for stack, rates in batch(direction, seeds, options).items():
                found[stack] += rates
        for stack, rates in found.items():
            ratio = statistics.mean(rates) / statistics.mean(found[options.stacks[0]])
            print(
                f"{direction:<6}{stack:<8}{summary(rates):>15}   {ratio:.2f} of "
                f"{options.stacks[0]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
