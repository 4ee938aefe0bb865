"""TLS: what proves the peer, and what may come when"""

from dataclasses import replace

import pytest
from aioquic import tls as aioquic_tls
from aioquic.quic.packet import QuicTransportParameters
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lightning._core.quic.config import EngineConfig, Identity
from lightning._core.quic.engine import Endpoint
from lightning._core.quic.params import encode
from lightning._core.quic.tls import Tls
from tests.support.quic import IDENTITY, Two

PARAMETERS = encode(
    QuicTransportParameters(initial_source_connection_id=b"12345678"), bytes(8)
)
ALERT = 0x100


class Pair:
    """A client's and a server's TLS, with CRYPTO streams between."""

    def __init__(self, *, identity=IDENTITY, mine=None, theirs=None, **settings):
        config = EngineConfig(**settings)
        self.client = Tls(config, True, None, mine or PARAMETERS)
        self.server = Tls(
            replace(config, alpn="btlightning"), False, identity, theirs or PARAMETERS
        )
        self.outputs = {self.client: [], self.server: []}

    def run(self, change=lambda sender, level, data: data):
        """Exchange messages until both are silent; return both's last error."""
        waiting = [(self.server, self.client, self.client.start())]
        while waiting:
            receiver, sender, output = waiting.pop(0)
            self.outputs[sender].append(output)
            for level, data in output.data:
                data = change(sender, level, data)
                answer = receiver.receive(level, data)
                waiting.append((sender, receiver, answer))
        return self

    def error(self, end):
        """Return the code that an end failed with."""
        codes = [each.error.code for each in self.outputs[end] if each.error]
        return codes[0] if codes else None

    def complete(self, end):
        """Say if an end completed the handshake."""
        return any(each.complete for each in self.outputs[end])


def test_a_handshake_gives_both_the_same_secrets():
    """Each end's sealing secret is the other's opening one, level by level."""
    pair = Pair().run()
    assert pair.complete(pair.client)
    assert pair.complete(pair.server)
    made = {
        end: {
            (level, sealing): secret
            for output in pair.outputs[end]
            for level, sealing, _, secret in output.secrets
        }
        for end in (pair.client, pair.server)
    }
    for level in (1, 2):
        for sealing in (False, True):
            mine = made[pair.client][level, sealing]
            assert mine == made[pair.server][level, not sealing]
    assert pair.client.certificate == IDENTITY.der
    assert pair.server.certificate == b""
    assert pair.client.suite == 0x1301


def test_the_key_log_has_what_captures_need():
    """Four secrets, the same at both ends, under the client's random."""
    mine, theirs = [], []
    near = Endpoint(EngineConfig(), is_client=True, keylog=mine.append)
    far = Endpoint(
        EngineConfig(), is_client=False, identity=IDENTITY, keylog=theirs.append
    )
    Two(near, far).connect()
    assert sorted(mine) == sorted(theirs)
    assert {line.split()[0] for line in mine} == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    }
    assert len({line.split()[1] for line in mine}) == 1


def test_the_client_hello_is_small_and_says_no_name():
    """One X25519 share, AES-128 first, no SNI: it fits one datagram."""
    output = Pair().client.start()
    ((level, data),) = output.data
    assert level == 0
    assert len(data) < 350
    hello = aioquic_tls.pull_client_hello(aioquic_tls.Buffer(data=data))
    assert [group for group, _ in hello.key_share] == [0x1D]
    assert hello.cipher_suites[0] == 0x1301
    assert hello.server_name is None
    assert hello.alpn_protocols == ["btlightning"]
    assert hello.pre_shared_key is None


def test_a_certificate_without_its_key_is_refused():
    """A relay that shows another's certificate cannot sign for it."""
    stolen = Identity(IDENTITY.certificate, ec.generate_private_key(ec.SECP256R1()))
    pair = Pair(identity=stolen).run()
    assert pair.error(pair.client) == ALERT + 51
    assert not pair.complete(pair.client)
    assert pair.client.certificate == b""


def test_a_relay_is_refused_on_the_wire():
    """The same through packets: the connection closes with decrypt_error."""
    stolen = Identity(IDENTITY.certificate, ec.generate_private_key(ec.SECP256R1()))
    two = Two(far=Endpoint(EngineConfig(), is_client=False, identity=stolen))
    two.run(1)
    assert two.connection.end.code == ALERT + 51
    assert two.connection.certificate == b""
    assert two.kinds(two.near_events) == ["closed"]


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_changed_signature_is_refused(place):
    """Any bit of CertificateVerify and Finished counts."""

    def change(sender, level, data):
        if sender is pair.server and level == 1:
            position = len(data) - 1 - place
            return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        return data

    pair = Pair()
    pair.run(change)
    assert pair.error(pair.client) is not None
    assert not pair.complete(pair.client)


def test_another_protocol_is_refused():
    """ALPN is required, both ways (RFC 9001 section 8.1)."""
    pair = Pair(alpn="h3").run()
    assert pair.error(pair.server) == ALERT + 120


def test_messages_may_come_in_any_pieces():
    """Byte by byte is fine."""
    pair = Pair()
    output = pair.client.start()
    answers = [
        pair.server.receive(0, output.data[0][1][at : at + 1])
        for at in range(len(output.data[0][1]))
    ]
    assert all(not each.data for each in answers[:-1])
    assert [level for level, _ in answers[-1].data] == [0, 1]
    for level, data in answers[-1].data:
        for at in range(len(data)):
            last = pair.client.receive(level, data[at : at + 1])
    assert last.complete


def test_a_message_at_another_level_is_refused():
    """RFC 9001 section 4.1.3."""
    pair = Pair()
    hello = pair.client.start().data[0][1]
    assert pair.server.receive(1, hello).error.code == 0x0A


def test_a_message_may_not_span_levels():
    """Half of it in Initial, half in Handshake packets."""
    pair = Pair()
    flight = pair.server.receive(0, pair.client.start().data[0][1])
    hello, rest = flight.data[0][1], flight.data[1][1]
    assert pair.client.receive(0, hello + rest[:3]).error.code == 0x0A


def test_a_long_message_is_refused_before_it_comes():
    """Sixteen megabytes are announced, four bytes are enough to refuse."""
    assert Pair().server.receive(0, b"\x01\xff\xff\xff").error.code == ALERT + 50


@pytest.mark.parametrize("seed", range(50))
def test_noise_is_an_alert(seed):
    """Whatever comes is an error with a code, never an exception."""
    pair = Pair()
    hello = bytearray(pair.client.start().data[0][1])
    hello[4 + seed * 5 % (len(hello) - 4)] ^= 0xFF
    output = pair.server.receive(0, bytes(hello))
    if output.error is not None:
        assert 0x100 <= output.error.code < 0x200 or output.error.code in (1, 8)


def test_after_the_handshake_only_tickets_are_taken():
    """And only by clients; nobody uses them."""
    pair = Pair().run()
    ticket = b"\x04\x00\x00\x0d" + bytes(13)
    assert pair.client.receive(2, ticket).error is None
    assert pair.server.receive(2, ticket).error.code == ALERT + 10
    assert pair.client.receive(2, b"\x18\x00\x00\x01\x00").error.code == ALERT + 10


def test_nobody_is_asked_to_authenticate_after_the_handshake():
    """RFC 9001 section 4.4 has an error of its own for it."""
    pair = Pair().run()
    request = b"\x0d\x00\x00\x03\x00\x00\x00"
    assert pair.client.receive(2, request).error.code == 0x0A
    pair = Pair().run()
    assert pair.server.receive(2, request).error.code == ALERT + 10


def test_middlebox_compatibility_mode_is_refused():
    """A ClientHello with a session identifier (RFC 9001 section 8.4)."""
    pair = Pair()
    hello = pair.client.start().data[0][1]
    assert hello[38] == 0
    size = int.from_bytes(hello[1:4]) + 32
    changed = hello[:1] + size.to_bytes(3) + hello[4:38] + b"\x20" + bytes(32)
    output = pair.server.receive(0, changed + hello[39:])
    assert output.error.code == 0x0A
    assert not output.data


def test_older_versions_of_tls_are_refused():
    """RFC 9001 section 4.2, by either end."""
    pair = Pair()
    hello = pair.client.start().data[0][1]
    offers = b"\x00\x2b\x00\x03\x02\x03\x04"
    assert hello.count(offers) == 1
    older = hello.replace(offers, offers[:-1] + b"\x03")
    assert pair.server.receive(0, older).error.code == ALERT + 70
    pair = Pair()
    answer = pair.server.receive(0, pair.client.start().data[0][1]).data[0][1]
    chooses = b"\x00\x2b\x00\x02\x03\x04"
    assert answer.count(chooses) == 1
    output = pair.client.receive(0, answer.replace(chooses, chooses[:-1] + b"\x03"))
    assert output.error.code in (ALERT + 47, ALERT + 70)


def test_a_handshake_without_a_common_group_fails():
    """No HelloRetryRequest is sent or followed: every peer has X25519 (4.7)."""
    pair = Pair()
    pair.client._context._supported_groups = [aioquic_tls.Group.SECP384R1]
    pair.run()
    assert pair.error(pair.server) == ALERT + 40
    assert not pair.complete(pair.client)


def test_an_unforeseen_exception_is_an_internal_error(monkeypatch):
    """A bug in TLS ends one connection and not the endpoint."""
    pair = Pair()

    def fail(*_):
        raise RuntimeError("bug")

    monkeypatch.setattr(pair.server._context, "handle_message", fail)
    output = pair.server.receive(0, pair.client.start().data[0][1])
    assert output.error.code == 0x01


def test_without_parameters_nothing_goes():
    """The extension is required (RFC 9001 section 8.2)."""
    pair = Pair()
    pair.client._context.handshake_extensions = []
    pair.run()
    assert pair.error(pair.server) == ALERT + 109


@pytest.mark.parametrize(
    "names",
    [
        ("certificate", "certificate_private_key", "handshake_extensions"),
        ("alpn_cb", "update_traffic_key_cb", "received_extensions"),
        ("_supported_groups", "_peer_certificate", "key_schedule", "state"),
    ],
)
def test_aioquic_still_has_what_we_use(names):
    """A new version that moves one of these is found here."""
    context = aioquic_tls.Context(is_client=True, alpn_protocols=["x"], verify_mode=0)
    assert all(hasattr(context, name) for name in names)


def test_generated_identities_are_p256_and_differ():
    """Each start makes its own."""
    first, second = Identity.generate(), Identity.generate()
    assert first.der != second.der
    assert isinstance(first.key.curve, ec.SECP256R1)
    assert x509.load_der_x509_certificate(first.der) == first.certificate
