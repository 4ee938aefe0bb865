"""TLS: a handshake between two ends of ours, with its messages changed on the way.

The input is a list of changes, and of sizes into which the CRYPTO streams are cut. Each
end takes what comes or closes with a TLS alert or another error that has a name. Both
complete and stay so only if nothing was changed, and then with the same secrets.
"""

from aioquic.quic.packet import QuicTransportParameters

from lightning._core.quic.config import EngineConfig
from lightning._core.quic.params import encode
from lightning._core.quic.tls import Tls
from tests.fuzz.cutter import Cutter
from tests.support.quic import IDENTITY

CODES = {0x08, 0x0A, *range(0x100, 0x200)}
SET, INSERT, DELETE, FLIP, LEVEL, REPEAT, SWAP, FORGE = range(8)
EMPTY = QuicTransportParameters(initial_source_connection_id=b"12345678")


def check(data):
    """Run the handshake; what is changed is counted in messages sent."""
    cutter = Cutter(data)
    setup = cutter.byte()
    suites = ((0x1301,), (0x1302,), (0x1303,), (0x1303, 0x1301))[setup & 3]
    config = EngineConfig(cipher_suites=suites)
    parameters = encode(EMPTY, b"\x00\x01\x02")
    client = End(Tls(config, True, None, parameters))
    server = End(Tls(EngineConfig(), False, IDENTITY, parameters))
    changes = read_changes(cutter)
    cut = (0, 11, 40, 1000)[setup >> 2 & 3]
    changed = False
    sent = 0
    queue = [(server, level, data) for level, data in client.take(client.tls.start())]
    while queue and sent < 40:
        to, level, message = queue.pop(0)
        was = level, message
        for change in changes.get(sent, ()):
            level, message = change_message(change, level, message, queue)
        sent += 1
        changed |= was != (level, message)
        step = cut or len(message) or 1
        for start in range(0, len(message), step):
            answers = to.receive(level, message[start : start + step])
            other = server if to is client else client
            queue += [(other, *answer) for answer in answers]
    if all(end.complete and not end.failed for end in (client, server)):
        assert not changed
    if not changed:
        assert client.complete
        assert server.complete
        for level in (1, 2):
            assert client.secrets[level, True] == server.secrets[level, False]
            assert client.secrets[level, False] == server.secrets[level, True]
        assert client.tls.certificate == IDENTITY.der


class End:
    """One end, and what became of it."""

    def __init__(self, tls):
        self.tls = tls
        self.complete = False
        self.failed = False
        self.secrets = {}

    def take(self, output):
        """Note what came of a call, and return what is to be sent."""
        if output.error is not None:
            assert output.error.code in CODES, (output.error.code, output.error.reason)
            self.failed = True
            return []
        for level, sealing, _, secret in output.secrets:
            assert (level, sealing) not in self.secrets
            self.secrets[level, sealing] = secret
        if output.complete:
            assert not self.complete
            assert len(self.secrets) == 4
            self.complete = True
        return [
            (level, message)
            for level, data in output.data
            for message in messages_of(data)
        ]

    def receive(self, level, data):
        """Take a piece, unless it failed before."""
        return [] if self.failed else self.take(self.tls.receive(level, data))


def messages_of(data):
    """Cut a flight into its messages."""
    while data:
        size = 4 + int.from_bytes(data[1:4])
        yield data[:size]
        data = data[size:]


def read_changes(cutter):
    """Read them, by the number of the message that each is for."""
    changes = {}
    while cutter:
        number = cutter.byte() % 8
        kind = cutter.byte() % 8
        where = cutter.number(2)
        value = cutter.take(cutter.byte() % 40)
        changes.setdefault(number, []).append((kind, where, value))
    return changes


def change_message(change, level, message, queue):
    """Make one change."""
    kind, where, value = change
    where %= len(message) + 1
    if kind == SET:
        message = message[:where] + value + message[where + len(value) :]
    elif kind == INSERT:
        # With a length that is still right, so that the inside is looked at.
        message = resized(message[:where] + value + message[where:])
    elif kind == DELETE:
        message = resized(message[:where] + message[where + len(value) + 1 :])
    elif kind == FLIP and where < len(message):
        flipped = message[where] ^ (value[0] if value else 1)
        message = message[:where] + bytes([flipped]) + message[where + 1 :]
    elif kind == LEVEL:
        level = len(value) % 3
    elif kind == REPEAT:
        message += message
    elif kind == SWAP and queue:
        message, queue[0] = queue[0][2], (*queue[0][:2], message)
    elif kind == FORGE:
        message = bytes([where & 0xFF]) + len(value).to_bytes(3) + value
    return level, message


def resized(message):
    """Make the length in the header that of the message."""
    return message[:1] + max(len(message) - 4, 0).to_bytes(3) + message[4:]


def seeds():
    """Nothing, each change to each message, and cuts of each size."""
    for setup in range(16):
        yield bytes([setup])
    for number in range(7):
        for kind in range(8):
            for where in (0, 3, 6, 40, 100):
                yield bytes([0, number, kind, 0, where, 2]) + b"\x01\x02"
