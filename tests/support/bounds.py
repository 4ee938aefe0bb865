"""What an attack costs: bytes of memory, and a server that says what it likes."""

import gc
import tracemalloc

from aioquic.quic.crypto import CryptoContext
from aioquic.tls import CipherSuite, Epoch

from lightning._core.quic.config import EngineConfig
from lightning._core.quic.engine import Endpoint
from tests.support.census import malloc_bytes
from tests.support.quic import IDENTITY, SERVER, Two


class Memory:
    """Measure what a piece of code holds on to.

    What malloc gives out holds the engine's and libcrypto's memory, tracemalloc Python's;
    large Python objects count twice.
    """

    def __enter__(self):
        gc.collect()
        tracemalloc.start()
        self.before = (malloc_bytes() or 0) + tracemalloc.get_traced_memory()[0]
        return self

    def measure(self):
        """Return the bytes held now and not before."""
        gc.collect()
        now = (malloc_bytes() or 0) + tracemalloc.get_traced_memory()[0]
        return now - self.before

    def __exit__(self, *_):
        tracemalloc.stop()


class HostileServer:
    """A client of ours whose server says whatever a test wants, with the real keys.

    Attributes:
        two: The pair.
        connection: The client's side.
    """

    def __init__(self):
        lines, first = [], []
        far = Endpoint(
            EngineConfig(), is_client=False, identity=IDENTITY, keylog=lines.append
        )

        def watch(to_server, _number, data):
            if not to_server and data[0] & 0x80:
                first.append(data[6 : 6 + data[5]])
            return False

        self.two = Two(far=far, lose=watch).connect()
        self.two.run(1)
        self.connection = self.two.connection
        self.cid = first[0]
        self.number = 10_000
        (secret,) = (
            bytes.fromhex(line.split()[2])
            for line in lines
            if line.startswith("SERVER_TRAFFIC_SECRET_0")
        )
        self.keys = CryptoContext()
        self.keys.setup(
            cipher_suite=CipherSuite(self.connection.suite), secret=secret, version=1
        )

    def send(self, payload):
        """Have the client receive a packet with that payload."""
        header = b"\x43" + self.cid + self.number.to_bytes(4)
        packet = self.keys.encrypt_packet(header, payload.ljust(4, b"\0"), self.number)
        self.number += 1
        self.two.near.receive(packet, SERVER, self.two.now)
        self.two.collect()


def last_number(attacker):
    """Return a function that tells the 1-RTT packet number that our server sent last.

    It counts from what the attacker has received; a number that the server leaves out
    on purpose, no sooner than 64 packets on, is not counted.
    """
    attacker.pump()
    space = attacker.quic._spaces[Epoch.ONE_RTT]
    victim = attacker.victim
    base = space.largest_received_packet - victim.stats()["packets_sent"]
    return lambda: base + victim.stats()["packets_sent"]
