"""Datagrams before anybody has shaken hands, from whoever.

The input is a program for a fresh endpoint, a server or a client that has sent its first
datagram: noise, headers of every kind, Initials sealed with the keys that everybody has,
and forged answers. Connections stay within their number, an address that is not proven
gets at most three times what came from it, errors have names, no timer spins, and time
gives everything back.
"""

from contextlib import nullcontext

from lightning._core.quic import frames, packet
from lightning._core.quic.protection import initial, retry_integrity_tag
from tests.fuzz.connection import TIMES
from tests.fuzz.cutter import Cutter
from tests.fuzz.peer import HOME, PLACES, Watched, endpoint, scripted
from tests.support.quic import IDENTITY

CIDS = (b"original", b"a CID of twenty bytes"[:20], b"short", b"another!")
RAW, SEALED, HEADER, WAIT, FLUSH, AGAIN, RETRY, NEGOTIATE = range(8)


class Fresh(Watched):
    """An endpoint that knows nobody.

    Attributes:
        original: What a client chose as the server's connection ID.
        token: That of the last Retry, and `retry_cid` what it said to use.
    """

    def __init__(self, is_client, **settings):
        super().__init__(endpoint(is_client, IDENTITY, **settings))
        self.original = CIDS[0]
        self.scid = CIDS[3]
        self.token = b""
        self.retry_cid = CIDS[0]
        if is_client:
            self.connection = self.end.connect(HOME, self.now)
            (datagram, _), *_ = self.end.datagrams_to_send(self.now)
            header = packet.parse(datagram, 8)[1]
            self.original, self.scid = header["dcid"], header["scid"]

    def read(self, datagram):
        """Note a Retry."""
        header = packet.parse(datagram, 8)[1]
        if header["type"] == 3:
            self.token, self.retry_cid = header["token"], header["scid"]


def check(data):
    """Run the program."""
    cutter = Cutter(data)
    setup = cutter.byte()
    few = {"max_connections": 3, "max_half_open": 2} if setup & 4 else {}
    # Without TLS more is done in the time.
    tls = real if setup & 2 else scripted
    with tls(
        Fresh, bool(setup & 1), retry=bool(setup & 8), retry_from=setup >> 4 & 1, **few
    ) as fresh:
        while cutter:
            step(fresh, cutter)
        fresh.connection = None
        fresh.finish()


def real(kind, *args, **settings):
    """Make one of that class with TLS."""
    return nullcontext(kind(*args, **settings))


def step(fresh, cutter):
    """Do what comes next."""
    kind = cutter.byte() % 8
    if kind == WAIT:
        fresh.wait(TIMES[cutter.byte() % len(TIMES)])
    elif kind == FLUSH:
        fresh.flush()
    else:
        place = PLACES[cutter.byte() % 4]
        datagram = MAKE[kind](fresh, cutter)
        if fresh.token and fresh.token in datagram:
            fresh.proven.update(PLACES)
        fresh.deliver(datagram[:65535], place)


def make_raw(_fresh, cutter):
    """Noise."""
    return cutter.take(cutter.number(2) % 1500)


def make_sealed(fresh, cutter):
    """An Initial that can be opened."""
    how = cutter.byte()
    cid = fresh.original if fresh.end.is_client else CIDS[how & 3]
    token = b""
    if how & 4:
        token = fresh.token or cutter.take(cutter.byte())
        cid = fresh.retry_cid
    keys = initial(cid, not fresh.end.is_client)[0]
    payload = cutter.take(cutter.number(2) % 1400)
    if not how & 8:
        payload = payload.ljust(1200 - 50 - len(token), b"\0")
    pn = how >> 4
    to = fresh.scid if fresh.end.is_client else cid
    status, plain, offset = packet.build(
        0, to, CIDS[1][: cutter.byte() % 21], token=token, pn=pn, pn_size=2,
        payload=payload.ljust(4, b"\0"), room=3000,
    )  # fmt: skip
    assert status == 0
    sealed = keys.seal(pn, plain[: offset + 2], plain[offset + 2 :])[1]
    return sealed if how & 8 else sealed.ljust(1200, b"\0")


def make_header(fresh, cutter):
    """A header that is well formed, of any type and version, and noise."""
    first = cutter.byte()
    to = fresh.scid if first & 1 else CIDS[cutter.byte() % 4]
    if not first & 0x80:
        return bytes([first]) + to + cutter.take(cutter.byte())
    version = cutter.byte()
    version = 1 if version < 128 else version * 0x01010101
    scid = cutter.take(cutter.byte() % 22)
    body = cutter.take(cutter.byte()).ljust(1200 if first & 2 else 0, b"\x55")
    return (
        bytes([first]) + version.to_bytes(4) + bytes([len(to)]) + to
        + bytes([len(scid)]) + scid + body
    )  # fmt: skip


def make_again(fresh, cutter):
    """An earlier datagram, or one with a bit flipped, or cut."""
    number, where, bit = cutter.byte(), cutter.number(2), cutter.byte()
    if not fresh.sent:
        return b""
    again = bytearray(fresh.sent[-1 - number % len(fresh.sent)])
    if bit & 8:
        again[where % len(again)] ^= 1 << (bit & 7)
    if bit & 16:
        del again[where % len(again) :]
    return bytes(again)


def make_retry(fresh, cutter):
    """A Retry, with the tag that everybody can make."""
    how = cutter.byte()
    scid = cutter.take(how & 31)[:20]
    plain = packet.build_retry(fresh.scid, scid, cutter.take(cutter.byte()))[1][:-16]
    if how & 32:
        return plain + bytes(16)
    fresh.retry_cid = scid
    return plain + retry_integrity_tag(fresh.original, plain)


def make_negotiation(fresh, cutter):
    """A version negotiation."""
    versions = [cutter.number(4) for _ in range(cutter.byte() % 5)]
    scid = fresh.original if cutter.byte() & 1 else CIDS[0]
    return packet.build_version_negotiation(fresh.scid, scid, versions)[1]


MAKE = {
    RAW: make_raw, SEALED: make_sealed, HEADER: make_header, AGAIN: make_again,
    RETRY: make_retry, NEGOTIATE: make_negotiation,
}  # fmt: skip


def sealed(payload, how=0, place=0):
    """Write the step that delivers an Initial."""
    return bytes([SEALED, place, how]) + len(payload).to_bytes(2) + payload + b"\x08"


def crypto(offset, data):
    """Write a CRYPTO frame."""
    return frames.write({"type": 6, "offset": offset, "data": data}, room=2000)[1]


def seeds():
    """Each step, hellos whole and in pieces, and all of it with Retry."""
    hello = client_hello()
    half = len(hello) // 2
    steps = (
        bytes([RAW, 0, 0, 5]) + b"noise",
        bytes([RAW, 1, 0, 60]) + b"\x40" + bytes(59),
        sealed(crypto(0, hello)),
        sealed(crypto(half, hello[half:])) + sealed(crypto(0, hello[:half]), 16),
        sealed(b"\x01", place=1) + bytes([AGAIN, 0, 0, 0, 30, 9]),
        sealed(b"\x1c\x0a\x06\x00"),
        sealed(b"\x02\x00\x00\x00\x00"),
        sealed(crypto(70_000, b"x"), 1),
        sealed(crypto(0, hello), 4) + bytes([FLUSH]) + sealed(crypto(0, hello), 4),
        bytes([HEADER, 0, 0xC2, 0, 0, 8]) + b"12345678" + bytes([3, 0, 1, 2]),
        bytes([HEADER, 0, 0xC2, 0, 200, 8]) + b"12345678" + bytes([3, 0, 1, 2]),
        bytes([HEADER, 0, 0xE3, 0, 0, 0, 30]) + b"\x1d" + bytes(29),
        bytes([HEADER, 2, 0x41, 40]) + bytes(40),
        bytes([RETRY, 0, 8]) + b"retrycid" + bytes([5]) + b"token" + bytes([FLUSH])
        + sealed(crypto(0, hello), 4),
        bytes([NEGOTIATE, 0, 1, 0xFF, 0, 0, 29, 1]),
        bytes([NEGOTIATE, 0, 2, 0, 0, 0, 1, 0xFF, 0, 0, 29, 1]),
        bytes([AGAIN, 0, 0, 1, 0, 24]),
    )  # fmt: skip
    after = bytes([FLUSH, WAIT, 6, FLUSH, WAIT, 8])
    for each in steps:
        for setup in range(16):
            yield bytes([setup]) + each + after
    yield bytes([4]) + b"".join(
        sealed(crypto(0, hello), how, place) for how in range(4) for place in range(4)
    )
    yield bytes([1]) + b"".join(steps) + after


def client_hello():
    """Give the first message of a client of ours."""
    client = endpoint(True)
    client.connect(HOME, 1.0)
    datagram = client.datagrams_to_send(1.0)[0][0]
    header = packet.parse(datagram, 8)[1]
    keys = initial(header["dcid"], False)[1]
    payload = keys.open(datagram, header["pn_offset"])[2]
    return frames.parse(payload, 0)[1][0]["data"]
