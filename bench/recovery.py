"""Goodput under loss, in virtual time: our engine, aioquic, and both mixes.

One transfer over the simulated network of `tests/sim`: 50 ms round trip, 20 Mbit/s, a
queue of one bandwidth-delay product, losses from 0 to 5 in a hundred in both
directions. Each cell is the median of several seeds, in Mbit/s; the times are the
network's, so the machine does not matter. ECN marks nothing here.

    python bench/recovery.py [--size BYTES] [--seeds N] [--sender client|server]
"""

import argparse
import contextlib
import io
import logging
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.sim.ends import AioquicClient, AioquicServer
from tests.sim.link import network
from tests.sim.ours import OurClient, OurServer
from tests.sim.pair import Pair, SimulationError, drive
from tests.sim.traffic import bulk

RTT = 0.05
RATE = 20e6
LOSSES = (0.0, 0.01, 0.02, 0.05)
CLIENTS = {"aioquic": AioquicClient, "ours": OurClient}
SERVERS = {"aioquic": AioquicServer, "ours": OurServer}
ALGORITHMS = ("reno", "cubic")


def goodput(
    client: str, server: str, algorithm: str, loss: float, seed: int, size: int,
    sender: str,
) -> float | None:  # fmt: skip
    """Return Mbit/s from the end of the handshake to the last byte, None on failure."""
    traffic = bulk(size, sender)
    net = network(
        seed, delay=RTT / 2, rate_bps=RATE, queue_bytes=int(RATE / 8 * RTT), loss=loss
    )
    settings = {
        "congestion_control_algorithm": algorithm,
        # Out of the way of the congestion window.
        "max_data": 4 * size,
        "max_stream_data": 4 * size,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        pair = Pair(CLIENTS[client](**settings), SERVERS[server](**settings), net)
    try:
        start = drive(pair, until=lambda pair: pair.connected)
        pair.application = traffic
        end = drive(
            pair,
            until=lambda pair: traffic.done or pair.client.closed or pair.server.closed,
            max_steps=1_000_000,
        )
    except SimulationError:
        return None
    return size * 8 / (end - start) / 1e6 if traffic.done else None


def cell(values: list[float | None]) -> str:
    """Write a median, or how many runs failed."""
    failed = values.count(None)
    if failed:
        return f"{failed} failed"
    return f"{statistics.median(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=5_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sender", choices=("client", "server"), default="client")
    options = parser.parse_args()
    # aioquic logs each loss.
    logging.disable(logging.CRITICAL)
    print(
        f"{options.size} bytes from the {options.sender}, {RATE / 1e6:g} Mbit/s, "
        f"{RTT * 1000:g} ms round trip; Mbit/s, median of {options.seeds}"
    )
    heads = "".join(f"{loss:>10.0%}" for loss in LOSSES)
    print(f"{'client to server':<20}{'control':<8}{heads}")
    for client in CLIENTS:
        for server in SERVERS:
            for algorithm in ALGORITHMS:
                cells = [
                    cell(
                        [
                            goodput(
                                client, server, algorithm, loss, seed,
                                options.size, options.sender,
                            )
                            for seed in range(1, options.seeds + 1)
                        ]
                    )
                    for loss in LOSSES
                ]  # fmt: skip
                row = "".join(f"{text:>10}" for text in cells)
                print(f"{client + ' to ' + server:<20}{algorithm:<8}{row}", flush=True)


if __name__ == "__main__":
    main()
