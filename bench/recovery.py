"""Goodput under loss, in virtual time: our engine, aioquic, and both mixes.

One transfer over the simulated network of `tests/sim`: 50 ms round trip, 20 Mbit/s, a
queue of one bandwidth-delay product, losses from 0 to 5 in a hundred in both
directions. Each cell is the mean of several seeds in Mbit/s, with its standard error;
a seed decides which datagrams of a direction are lost by their number. The times are
the network's, so the machine does not matter. ECN marks nothing here.

    python bench/recovery.py [--size BYTES] [--seeds N] [--sender client|server]
        [--pairs ours-ours,aioquic-aioquic,...] [--control cubic,reno]
"""

import argparse
import contextlib
import io
import logging
import math
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
PAIRS = ("aioquic-aioquic", "ours-ours", "aioquic-ours", "ours-aioquic")


def goodput(
    pair: str, algorithm: str, loss: float, seed: int, size: int, sender: str
) -> float | None:
    """Return Mbit/s from the end of the handshake to the last byte, None on failure."""
    client, server = pair.split("-")
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
        ends = Pair(CLIENTS[client](**settings), SERVERS[server](**settings), net)
    try:
        start = drive(ends, until=lambda ends: ends.connected)
        ends.application = traffic
        end = drive(
            ends,
            until=lambda ends: traffic.done or ends.client.closed or ends.server.closed,
            max_steps=1_000_000,
        )
    except SimulationError:
        return None
    return size * 8 / (end - start) / 1e6 if traffic.done else None


def cell(values: list[float | None]) -> str:
    """Write mean and standard error, or how many runs failed."""
    failed = values.count(None)
    if failed:
        return f"{failed} failed"
    error = statistics.stdev(values) / math.sqrt(len(values)) if values[1:] else 0.0
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=5_000_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sender", choices=("client", "server"), default="client")
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--control", default="cubic,reno")
    options = parser.parse_args()
    # aioquic logs each loss.
    logging.disable(logging.CRITICAL)
    print(
        f"{options.size} bytes from the {options.sender}, {RATE / 1e6:g} Mbit/s, "
        f"{RTT * 1000:g} ms round trip; Mbit/s, mean and standard error of "
        f"{options.seeds} seeds"
    )
    heads = "".join(f"{loss:>15.0%}" for loss in LOSSES)
    print(f"{'client-server':<17}{'control':<8}{heads}")
    for pair in options.pairs.split(","):
        for algorithm in options.control.split(","):
            print(f"{pair:<17}{algorithm:<8}", end="")
            for loss in LOSSES:
                text = cell(
                    [
                        goodput(
                            pair, algorithm, loss, seed, options.size, options.sender
                        )
                        for seed in range(1, options.seeds + 1)
                    ]
                )
                print(f"{text:>15}", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
