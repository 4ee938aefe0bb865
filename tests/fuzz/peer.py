"""A peer of one of our endpoints that holds all keys and can say anything.

TLS is a script: its messages mean nothing and its secrets are known, so that an input
costs packets and no signatures. All else is the engine's.
"""

from contextlib import contextmanager

from lightning._core.quic import engine, frames, packet
from lightning._core.quic.config import EngineConfig
from lightning._core.quic.engine import Endpoint
from lightning._core.quic.params import PeerParameters
from lightning._core.quic.protection import PacketProtection, initial
from lightning._core.quic.tls import TlsError, TlsOutput

INITIAL, HANDSHAKE, APPLICATION = 0, 1, 2
TYPES = (0, 2, 5)  # of packets, by space
SPACES = {kind: space for space, kind in enumerate(TYPES)}
HOME = ("10.0.0.1", 1000)
PLACES = (HOME, ("10.0.0.1", 1001), ("10.0.0.9", 1000), ("fe80::1", 7))
CID = b"peer-cid"
CODES = {*range(0x01, 0x11), *range(0x100, 0x200)}
# Datagrams that one call may give: as many as the largest window has, and some.
DATAGRAMS_MAX = 20_000
TURNS_MAX = 3000
LOCAL_CIDS_MAX = 16
OK, UNKNOWN_VERSION, TOO_SHORT = 0, -6, -7  # of packets; a reset may be short
MAX_PIECE = 100_000  # that the input has an application append


class Script:
    """Stands in for TLS: the first bytes of a level are the whole flight."""

    certificate = b""

    def __init__(self, peer, is_client):
        self.suite = peer.suite
        self._peer = peer
        self._is_client = is_client
        # A connection that a repeated Initial makes has other secrets.
        peer.scripts += 1
        self._number = peer.scripts
        self._seen = set()

    def start(self):
        """Make a client's first flight."""
        return TlsOutput(data=[(INITIAL, b"H" * 280)])

    def receive(self, level, data):
        """Take CRYPTO bytes."""
        out = TlsOutput()
        peer = self._peer
        if level == APPLICATION:
            if data[0] > 0x7F:
                out.error = TlsError(0x100 + data[0] % 128, "refused")
            return out
        if level in self._seen:
            return out
        self._seen.add(level)
        if level == INITIAL:
            out.secrets = [
                (HANDSHAKE, sealing, self.suite, self._secret(HANDSHAKE, sealing))
                for sealing in (True, False)
            ]
        if level == (HANDSHAKE if self._is_client else INITIAL):
            out.parameters = peer.parameters
        if self._is_client and level == HANDSHAKE:
            out.data = [(HANDSHAKE, b"F" * 52)]
            out.secrets = [
                (APPLICATION, sealing, self.suite, self._secret(APPLICATION, sealing))
                for sealing in (True, False)
            ]
        elif not self._is_client:
            out.data = [(INITIAL, b"H" * 90), (HANDSHAKE, b"C" * 700)]
            if level == INITIAL:
                sealing = True
            else:
                sealing, out.data = False, []
            out.secrets.append(
                (APPLICATION, sealing, self.suite, self._secret(APPLICATION, sealing))
            )
        out.complete = level == HANDSHAKE
        return out

    def _secret(self, level, sealing):
        return self._peer.secret(level, sealing, self._number)


class Watched:
    """An endpoint of ours under watch: bounds, datagrams, timers, and its end.

    Attributes:
        end: The endpoint.
        capacity: Of the buffers into which it writes.
        now: The time.
        sent: The datagrams that it received.
        proven: Addresses to which it may send more than three times what came.
        kinds: Of its events, by connection.
    """

    capacity = 65536
    suite = 0x1301
    parameters = None
    scripts = 0

    def __init__(self, end):
        self.end = end
        self.now = 1.0
        self.sent = []
        self.bytes = {}
        self.proven = set(PLACES) if end.is_client else set()
        self.kinds = {}

    def deliver(self, datagram, source=HOME, ecn=0):
        """Have the endpoint receive a datagram."""
        if not datagram:
            return
        self.sent.append(datagram)
        count = self.bytes.setdefault(source, [0, 0])
        count[0] += len(datagram)
        self.end.receive(datagram, source, self.now, ecn)

    def flush(self):
        """Take what the endpoint sends and tells; check all of it."""
        self.check_bounds()
        count = 0
        for data, to, _, segment in self.end.transmit(self.now, self.capacity):
            self.bytes.setdefault(to, [0, 0])[1] += len(data)
            for start in range(0, len(data), segment):
                count += 1
                self.read(data[start : start + segment])
        assert count < DATAGRAMS_MAX, "the endpoint sends without end"
        for place, (received, sent) in self.bytes.items():
            assert place in self.proven or sent <= 3 * received, "amplification"
        while (event := self.end.next_event()) is not None:
            self.on_event(event)

    def secret(self, level, sealing, number=1):
        """Tell a secret of the endpoint's connection of that number."""
        size = 48 if self.suite == 0x1302 else 32
        return bytes([number % 16 * 16 + level * 2 + sealing]) * size

    def on_event(self, event):
        """Note an event; a connection ends once, with a code that has a name."""
        kinds = self.kinds.setdefault(event.connection.number, [])
        assert "closed" not in kinds
        kinds.append(event.kind)
        if event.kind == "closed":
            end = event.connection.end
            if end.initiator == "local" and not end.application:
                assert end.code in CODES, hex(end.code)

    def check_bounds(self):
        """No more connections than the settings allow."""
        config = self.end.config
        stats = self.end.stats()
        assert stats["half_open"] <= max(config.max_half_open, self.end.is_client)
        assert stats["connections"] <= max(config.max_connections, self.end.is_client)

    def wait(self, seconds):
        """Let time pass; timers that come due do something about it."""
        until = self.now + seconds
        turns = 0
        while (due := self.end.next_timeout()) is not None and due <= until:
            turns += 1
            assert turns < TURNS_MAX, "a timer does not go on"
            self.now = max(self.now, due)
            self.end.handle_timeout(self.now)
            self.flush()
        self.now = until

    def finish(self):
        """Run to the end of all connections: everything is given back."""
        self.flush()
        self.wait(2000.0)
        assert self.end.next_timeout() is None, "a timer is left"
        for kinds in self.kinds.values():
            assert kinds[-1] == "closed", kinds
        stats = self.end.stats()
        for name in ("connections", "half_open", "streams_in_use", "blocks_in_use"):
            assert stats[name] == 0, name


class Peer(Watched):
    """One endpoint of ours, its connection, and all that the other end knows.

    Attributes:
        connection: The connection, once there is one.
        cids: Connection IDs that the endpoint gave.
        challenges: What it asked on paths and was not told yet.
    """

    def __init__(self, *, is_client, suite=0x1301, generous=True, **settings):
        self.is_client = is_client
        self.suite = suite
        self.generous = generous
        self.connection = None
        self.cids = []
        self.scid = b""
        self.challenges = []
        self.pn = [0, 0, 0]
        self.phase = 0
        self.largest = [-1, -1, -1]
        self.their_phase = 0
        super().__init__(endpoint(is_client, **settings))
        self.original = b"original"
        if is_client:
            self.connection = self.end.connect(HOME, self.now)
            (datagram, _), *_ = self.end.datagrams_to_send(self.now)
            header = packet.parse(datagram, 8)[1]
            self.original = header["dcid"]
            self.cids.append(header["scid"])
        else:
            self.cids.append(self.original)
        keys = initial(self.original, not is_client)
        self.sealing = [
            keys[0],
            self._keys(HANDSHAKE, True),
            self._keys(APPLICATION, True),
        ]
        self.opening = [
            keys[1],
            self._keys(HANDSHAKE, False),
            self._keys(APPLICATION, False),
        ]

    def _keys(self, level, sealing):
        return PacketProtection(self.suite, self.secret(level, not sealing), sealing)

    @property
    def parameters(self):
        """What the peer grants."""
        scale = 2**30 if self.generous else 40
        return PeerParameters(
            original_destination_cid=self.original if self.is_client else None,
            initial_source_cid=CID, retry_source_cid=None,
            stateless_reset_token=b"R" * 16 if self.is_client else b"",
            max_idle_timeout=0 if self.generous else 40_000,
            max_udp_payload_size=65527 if self.generous else 1200,
            initial_max_data=scale * 4, initial_max_stream_data_bidi_local=scale,
            initial_max_stream_data_bidi_remote=scale,
            initial_max_stream_data_uni=scale,
            initial_max_streams_bidi=100 if self.generous else 2,
            initial_max_streams_uni=100 if self.generous else 0,
            ack_delay_exponent=3, max_ack_delay=25,
            active_connection_id_limit=8 if self.generous else 2,
        )  # fmt: skip

    # --- To the endpoint ---------------------------------------------------------------

    def seal(self, space, payload, *, pn=None, cid=-1, update=False, spoil=0):
        """Build a packet; `update` begins a new key phase, `spoil` flips header bits."""
        if pn is None:
            pn = self.pn[space]
        self.pn[space] = max(self.pn[space], pn + 1)
        if space == HANDSHAKE:
            # Who has the keys has received our Initial (RFC 9000 8.1).
            self.proven.add(HOME)
        if update:
            self.sealing[APPLICATION].update()
            self.phase ^= 1
        payload = payload.ljust(4, b"\0")
        status, plain, offset = packet.build(
            TYPES[space], self.cids[cid % len(self.cids)], CID, pn=pn, pn_size=4,
            key_phase=bool(self.phase), payload=payload, room=len(payload) + 100,
        )  # fmt: skip
        assert status == 0
        header = bytes([plain[0] ^ spoil]) + plain[1 : offset + 4]
        return self.sealing[space].seal(pn, header, payload)[1]

    def say(self, space, payload, **how):
        """Deliver one packet from home."""
        if space == INITIAL and not self.is_client:
            payload = payload.ljust(1160, b"\0")
        self.deliver(self.seal(space, payload, **how))

    def shake_hands(self, stage):
        """Go as far as 0: nothing, 1: the peer's hello, 2: complete, 3: confirmed."""
        hello = frames.write({"type": 6, "offset": 0, "data": b"x" * 90})[1]
        if stage > 0:
            self.say(INITIAL, hello)
            self.flush()
        if stage > 1:
            self.say(HANDSHAKE, hello)
            self.flush()
            self.proven.add(HOME)
        if stage > 2:
            if self.is_client:
                self.say(APPLICATION, b"\x1e")
            self.say(APPLICATION, b"\x01")
            self.flush()

    # --- From the endpoint -------------------------------------------------------------

    def on_event(self, event):
        """Learn of the connection."""
        super().on_event(event)
        if self.connection is None and event.kind != "closed":
            self.connection = event.connection

    def check_bounds(self):
        """Memory stays within the settings."""
        super().check_bounds()
        if self.connection is None:
            return
        config = self.end.config
        told = self.connection.stats()
        window = max(config.max_data, config.max_data_window)
        assert told["recv_buffered"] <= window
        # A stream that holds nothing may always append a piece.
        pieces = (told["streams"] + 1) * MAX_PIECE
        assert told["send_buffered"] <= config.max_buffered + pieces
        assert told["local_cids"] <= LOCAL_CIDS_MAX
        assert told["remote_cids"] <= config.active_cids
        stats = self.end.stats()
        if stats["connections"] == 1:
            blocks = (window + 3 * 65536 + told["send_buffered"]) // 4096
            assert stats["blocks_in_use"] <= blocks + 4 * told["streams"] + 16

    def read(self, datagram):
        """Open the packets of a datagram of the endpoint; they must be in order."""
        assert len(datagram) <= 1500
        while datagram:
            status, header = packet.parse(datagram, len(CID))
            assert status in (OK, UNKNOWN_VERSION, TOO_SHORT), status
            size = header["size"]
            whole, datagram = datagram[:size], datagram[size:]
            space = SPACES.get(header["type"])
            if space is None or not size or header["dcid"] != CID:
                return  # a Retry, a version negotiation, or one of another peer
            if header["scid"] and self.scid and header["scid"] != self.scid:
                return  # of a connection that a repeated Initial has made
            if not self.open(space, whole, header):
                return

    def open(self, space, whole, header):
        """Open one packet; False if it is no packet of this connection."""
        expected = self.largest[space] + 1
        keys = self.opening[space]
        status, plain, payload, pn = keys.open(whole, header["pn_offset"], expected)
        if (
            status
            and space == APPLICATION
            and plain
            and plain[0] & 4 != self.their_phase
        ):
            keys.update()
            self.their_phase ^= 4
            status, plain, payload, pn = keys.open(whole, header["pn_offset"], expected)
        if status:
            return False
        assert pn > self.largest[space], "a packet number came twice"
        self.largest[space] = pn
        if space != APPLICATION and header["scid"] not in self.cids:
            self.cids.append(header["scid"])
            self.scid = self.scid or header["scid"]
        status, found, _ = frames.parse(payload, TYPES[space], self.is_client)
        assert status == 0, (status, payload)
        for frame in found:
            if frame["type"] == 0x18 and frame["cid"] not in self.cids:
                self.cids.append(frame["cid"])
            elif frame["type"] == 0x1A:
                self.challenges.append(frame["data"])
        return True

    def finish(self, *, close):
        """Run to the end; whose, is the input's choice."""
        self.flush()
        if close and self.connection is not None:
            self.connection.close("done", 9)
        self.connection = None
        super().finish()


def endpoint(is_client, identity="none", **settings):
    """Make an endpoint without chance in it."""
    return Endpoint(
        EngineConfig(**settings), is_client=is_client,
        identity=None if is_client else identity, random=lambda n: b"\x07" * n,
    )  # fmt: skip


@contextmanager
def scripted(kind, *args, **settings):
    """Make a peer of that class, with a script in the place of TLS."""
    peer = kind.__new__(kind)
    real = engine.Tls
    engine.Tls = lambda config, is_client, *_: Script(peer, is_client)
    try:
        peer.__init__(*args, **settings)
        yield peer
    finally:
        engine.Tls = real
