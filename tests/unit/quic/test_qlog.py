"""Traces and key logs: complete, well-formed whatever comes, and never in the way."""

import json
import logging
import random
import socket
import stat
import struct
import threading
import time
from functools import partial
from typing import get_args, get_type_hints

import pytest
from aioquic.tls import Epoch

from lightning._core.io import transport
from lightning._core.quic.config import EngineConfig
from lightning._core.quic.events import ConnectionEnd
from lightning._core.quic.qlog import QlogWriter
from lightning.errors import ConfigError
from tests.support.echo_process import CONFIG, Echo
from tests.support.quic import (
    CLIENT,
    Attacker,
    Two,
    client,
    frame,
    server,
    varint,
)
from tests.support.raw_peer import frame as raw_frame
from tests.support.waiting import until_async

SECRET = b"nobody but the peer is to read this " * 40
ALL = (1 << 62) - 1


def read_file(path):
    """Check a file's form and return its header and its events."""
    text = path.read_bytes()
    assert text.isascii()
    assert text.startswith(b"\x1e")
    assert text.endswith(b"\n")
    lines = text[1:-1].split(b"\n\x1e")
    assert not any(c in line for line in lines for c in b"\n\x1e")
    header, *events = (json.loads(line) for line in lines)
    assert header["qlog_format"] == "JSON-SEQ"
    assert header["qlog_version"] == "0.3"
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert times[0] == 0
    assert all(set(event) == {"time", "name", "data"} for event in events)
    return header, events


def read_trace(directory, end="client"):
    """Return the header and the events of the one trace of an end."""
    (path,) = directory.glob(f"*_{end}.sqlog")
    return read_file(path)


def named(events, name):
    """Return the data of the events of a name."""
    return [each["data"] for each in events if each["name"].endswith(":" + name)]


def packets(events, name):
    """Return what each packet said, by type and number."""
    return {
        (each["header"]["packet_type"], each["header"].get("packet_number")): each
        for each in named(events, name)
    }


def traced(tmp_path, far=None, near=None, **arguments):
    """Make a pair that is traced at both ends."""
    return Two(
        client(qlog_dir=tmp_path, **(near or {})),
        server(qlog_dir=tmp_path, **(far or {})),
        **arguments,
    )


def transfer(two, size=200_000):
    """Send bytes to the server and have them read there."""
    stream = two.connection.open_stream()
    two.connection.send(stream, (SECRET * (size // len(SECRET) + 1))[:size], fin=True)
    got = b""
    while not two.peer.at_end(stream):
        two.run(0.05)
        got += two.peer.read(stream)
        assert two.now < 60
    return got


# What a trace tells.


def test_a_handshake_and_a_transfer_are_told_by_both_ends_alike(tmp_path):
    """On a link without loss what one sent is what the other received, frame by frame."""
    two = traced(tmp_path).connect()
    transfer(two)
    two.run(1)
    two.connection.close("done", 5)
    two.run(10)
    near_header, near = read_trace(tmp_path, "client")
    far_header, far = read_trace(tmp_path, "server")
    cid = near_header["trace"]["common_fields"]["ODCID"]
    assert far_header["trace"]["common_fields"]["ODCID"] == cid
    assert {each.name for each in tmp_path.iterdir()} == {
        f"{cid}_client.sqlog",
        f"{cid}_server.sqlog",
    }
    assert near_header["trace"]["vantage_point"]["type"] == "client"
    assert far_header["trace"]["vantage_point"]["type"] == "server"
    for sender, receiver in ((near, far), (far, near)):
        sent = packets(sender, "packet_sent")
        received = packets(receiver, "packet_received")
        assert len(sent) > 20
        dropped = named(receiver, "packet_dropped")
        # Initial packets that cross the end of their keys are dropped.
        assert len(sent) - len(received) == len(dropped)
        for key, packet in received.items():
            frames = sent[key]["frames"]
            # A client's ACK delay exponent is known to a server after its first packets.
            assert [f["frame_type"] for f in packet["frames"]] == [
                f["frame_type"] for f in frames
            ]
            assert packet["frames"] == frames
            assert packet["raw"] == sent[key]["raw"]
    stats = two.near.stats()
    assert stats["connections"] == 0


def test_counters_and_trace_agree(tmp_path):
    """Every packet that the engine counts is there once."""
    two = traced(tmp_path).connect()
    transfer(two)
    two.run(2)
    for end, connection in (("client", two.connection), ("server", two.peer)):
        _, events = read_trace(tmp_path, end)
        stats = connection.stats()
        numbers = [
            (each["header"]["packet_type"], each["header"]["packet_number"])
            for each in named(events, "packet_sent")
        ]
        assert len(numbers) == len(set(numbers)) == stats["packets_sent"]
        assert len(named(events, "packet_received")) == stats["packets_received"]
        assert len(named(events, "packet_dropped")) == stats["packets_dropped"]
        size = sum(each["raw"]["length"] for each in named(events, "packet_sent"))
        assert size == stats["bytes_sent"]


def test_a_stream_is_told_by_offsets_and_lengths(tmp_path):
    two = traced(tmp_path).connect()
    transfer(two, 50_000)
    _, events = read_trace(tmp_path, "server")
    frames = [
        each
        for packet in named(events, "packet_received")
        for each in packet["frames"]
        if each["frame_type"] == "stream"
    ]
    assert sum(each["length"] for each in frames) == 50_000
    assert min(each["offset"] for each in frames) == 0
    assert [each["stream_id"] for each in frames if each.get("fin")] == [0]


def test_what_is_carried_is_never_written(tmp_path):
    """Neither stream data, nor tokens, nor keys: also not as hexadecimal digits."""
    keys = tmp_path / "keys"
    two = traced(tmp_path, near={"keylog_file": keys}).connect()
    two.connection.send(two.connection.open_stream(), SECRET)
    two.run(1)
    assert two.peer.read(0) == SECRET
    secrets = [line.split()[2] for line in keys.read_text().splitlines()]
    token = two.connection.token
    assert len(secrets) == 4
    assert token
    for path in tmp_path.glob("*.sqlog"):
        text = path.read_text()
        for each in (SECRET[:20].decode(), SECRET[:20].hex(), token.hex(), *secrets):
            assert each not in text
        for length in (16, len(token)):
            assert f'"length":{length}' in text or length == 16
        assert "stateless_reset_token" not in text


def test_lost_packets_are_told_once_each(tmp_path):
    lost = set()

    def lose(to_server, number, data):
        if to_server and number > 20 and number % 7 == 0:
            lost.add(number)
            return True
        return False

    two = traced(tmp_path, lose=lose).connect()
    transfer(two)
    two.run(5)
    _, events = read_trace(tmp_path, "client")
    told = [each["header"]["packet_number"] for each in named(events, "packet_lost")]
    _, far = read_trace(tmp_path, "server")
    sent = packets(events, "packet_sent")
    received = packets(far, "packet_received")
    missing = [number for kind, number in sent if (kind, number) not in received]
    assert len(told) == len(set(told)) > 10
    assert set(told) == {n for n in missing if ("1RTT", n) in sent}
    stats = two.connection.stats()
    assert stats["packets_lost"] == len(told)
    metrics = [each["packets_lost"] for each in named(events, "metrics_updated")
               if "packets_lost" in each]  # fmt: skip
    assert metrics[-1] == len(told)


def test_a_loss_that_two_acknowledgements_tell_of_is_told_once(tmp_path):
    """The numbers of each space rise; another space has its own."""
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True)
    losses = [(0, 1, "lost", n, 0, kind, 0, 0, b"")
              for n, kind in ((0, 5), (3, 5), (3, 5), (0, 5), (1, 0), (4, 5), (1, 0))]  # fmt: skip
    assert writer.write([started(1, b"a"), sent(1), *losses])
    headers = [each["header"] for each in named(read_trace(tmp_path)[1], "packet_lost")]
    assert [(each["packet_type"], each["packet_number"]) for each in headers] == [
        ("1RTT", 0), ("1RTT", 3), ("initial", 1), ("1RTT", 4)
    ]  # fmt: skip


def test_acknowledgements_are_told_as_ranges_and_milliseconds(tmp_path):
    """The delay is scaled by the exponent of who sent it."""
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True)
    parameters = struct.pack("=11Q", 0, 5, *range(9))
    ack = frame(0x02, 9, 100, 2, 2, 1, 0, 1, 1)
    assert writer.write([
        started(1, b"a"), (0, 1, "parameters", 0, 0, 0, 0, 0, parameters),
        (0, 1, "sent", 0, 30, 5, 0, 0, ack), (0, 1, "received", 0, 30, 5, 0, 0, ack),
    ])  # fmt: skip
    _, events = read_trace(tmp_path)
    for name, delay in (("packet_sent", 0.8), ("packet_received", 3.2)):
        assert named(events, name)[0]["frames"] == [
            {
                "frame_type": "ack",
                "ack_delay": delay,
                "acked_ranges": [[7, 9], [4], [0, 1]],
            }
        ]


@pytest.mark.parametrize("is_client", [True, False])
def test_keys_belong_to_who_seals_with_them(tmp_path, is_client):
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=is_client)
    keys = [(0, 1, "key_updated", seals, 0, 5, 0, 0, b"") for seals in (1, 0)]
    assert writer.write([started(1, b"a"), sent(1), *keys])
    ends = ["client", "server"] if is_client else ["server", "client"]
    _, events = read_trace(tmp_path, ends[0])
    assert [each["key_type"] for each in named(events, "key_updated")] == [
        f"{end}_1rtt_secret" for end in ends
    ]


def test_metrics_are_told_when_they_change(tmp_path):
    two = traced(tmp_path, delay=0.02).connect()
    transfer(two)
    two.run(2)
    _, events = read_trace(tmp_path)
    metrics = named(events, "metrics_updated")
    known = {}
    for each in metrics:
        assert each
        assert all(known.get(name) != value for name, value in each.items())
        known.update(each)
    stats = two.connection.stats()
    assert known["min_rtt"] == 40
    assert known["smoothed_rtt"] == stats["rtt"] / 1000
    assert known["congestion_window"] == stats["congestion_window"]
    assert known["bytes_in_flight"] == 0
    assert "ssthresh" not in metrics[0]


def test_probes_of_the_mtu_and_ecn_marks_are_told(tmp_path):
    two = traced(tmp_path).connect()
    two.run(2)
    _, events = read_trace(tmp_path)
    probes = [
        each for each in named(events, "packet_sent") if "is_mtu_probe_packet" in each
    ]
    assert probes
    assert all(each["raw"]["length"] > 1200 for each in probes)
    assert all(
        [f["frame_type"] for f in each["frames"]] == ["ping", "padding"]
        for each in probes
    )
    assert "ECT(0)" in {each.get("ecn") for each in named(events, "packet_sent")}
    assert "ECT(0)" in {each.get("ecn") for each in named(events, "packet_received")}


def test_parameters_of_both_ends_are_told(tmp_path):
    two = traced(
        tmp_path,
        near={"max_streams": 3, "idle_timeout": 7.0},
        far={"max_data": 99_999, "ack_delay": 0.0205},
    ).connect()
    two.run(0.1)
    for end, other in (("client", "server"), ("server", "client")):
        _, events = read_trace(tmp_path, end)
        _, others = read_trace(tmp_path, other)
        local, remote = named(events, "parameters_set")
        assert (local.pop("owner"), remote.pop("owner")) == ("local", "remote")
        assert remote == {
            key: value
            for key, value in named(others, "parameters_set")[0].items()
            if key != "owner"
        }
    _, events = read_trace(tmp_path, "client")
    local, remote = named(events, "parameters_set")
    assert (local["initial_max_streams_bidi"], local["max_idle_timeout"]) == (3, 7000)
    assert remote["initial_max_data"] == 99_999
    assert remote["max_ack_delay"] == 21


def test_keys_are_told_by_name_only(tmp_path):
    two = traced(tmp_path).connect()
    two.run(0.2)
    assert two.connection.update_keys()
    two.connection.ping()
    two.run(1)
    for end, own, other in (
        ("client", "client", "server"),
        ("server", "server", "client"),
    ):
        _, events = read_trace(tmp_path, end)
        told = [(e["key_type"], e["trigger"]) for e in named(events, "key_updated")]
        assert sorted(told[:6]) == sorted(
            (f"{owner}_{level}_secret", "tls")
            for owner in ("client", "server")
            for level in ("initial", "handshake", "1rtt")
        )
        trigger = "local_update" if end == "client" else "remote_update"
        assert set(told[6:]) == {
            (f"{own}_1rtt_secret", trigger),
            (f"{other}_1rtt_secret", "remote_update"),
        }
        discarded = [each["key_type"] for each in named(events, "key_discarded")]
        assert sorted(discarded) == sorted(
            f"{owner}_{level}_secret"
            for owner in ("client", "server")
            for level in ("initial", "handshake")
        )
        assert all(
            set(e) == {"key_type", "trigger"} for e in named(events, "key_updated")
        )


def test_a_change_of_address_is_told(tmp_path):
    two = traced(tmp_path).connect()
    two.source = ("10.0.0.9", 4321)
    two.connection.ping()
    two.run(1)
    _, events = read_trace(tmp_path, "server")
    assert named(events, "path_updated") == [{"peer_ip": "10.0.0.9", "peer_port": 4321}]


def test_a_path_that_fails_is_told(tmp_path):
    """The server goes back to the address that it knows."""
    two = traced(tmp_path).connect()
    two.source = ("10.0.0.9", 4321)
    two.connection.ping()
    two.flush()
    # Nothing that the server sends to the new address arrives.
    two.run(0.011)
    two.source = CLIENT
    two.run(20)
    _, events = read_trace(tmp_path, "server")
    told = [each["peer_ip"] for each in named(events, "path_updated")]
    assert told[0] == "10.0.0.9"
    assert told[-1] == CLIENT[0]


def test_a_retry_is_told(tmp_path):
    two = traced(tmp_path, far={"retry": True}).connect()
    two.run(0.2)
    _, events = read_trace(tmp_path, "client")
    (retry,) = [
        each
        for each in named(events, "packet_received")
        if each["header"]["packet_type"] == "retry"
    ]
    assert "frames" not in retry
    header, _ = read_trace(tmp_path, "client")
    far_header, _ = read_trace(tmp_path, "server")
    fields = [each["trace"]["common_fields"]["ODCID"] for each in (header, far_header)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize(
    ("address", "family", "host"),
    [(("10.0.0.2", 2000), "v4", "10.0.0.2"), (("::1", 9), "v6", "::1")],
)
def test_addresses_are_told(tmp_path, address, family, host):
    end = client(qlog_dir=tmp_path)
    end.connect(address, 0.0)
    end.datagrams_to_send(0.0)
    end.drain_trace()
    _, events = read_trace(tmp_path)
    (started,) = named(events, "connection_started")
    assert (started["ip_version"], started["dst_ip"]) == (family, host)
    assert started["dst_port"] == address[1]
    assert len(started["src_cid"]) == len(started["dst_cid"]) == 16


# How connections end.


def closed(tmp_path, end):
    (data,) = named(read_trace(tmp_path, end)[1], "connection_closed")
    return data


def test_an_application_closes(tmp_path):
    two = traced(tmp_path).connect()
    two.connection.close("bye", 7)
    two.run(1)
    end = {"application_code": 7, "reason": "bye", "trigger": "application"}
    assert closed(tmp_path, "client") == {"owner": "local", **end}
    assert closed(tmp_path, "server") == {"owner": "remote", **end}


def test_an_error_closes(tmp_path):
    """A frame that nobody knows ends the connection and stands in the trace."""
    attacker = Attacker(server(qlog_dir=tmp_path)).settle()
    attacker.send(frame(0x01) + varint(0x2F) + b"rubbish \x1e\n\xff")
    attacker.collect()
    assert closed(tmp_path, "server") == {
        "owner": "local", "connection_code": "frame_encoding_error", "reason": "",
        "trigger": "error",
    }  # fmt: skip
    _, events = read_trace(tmp_path, "server")
    frames = named(events, "packet_received")[-1]["frames"]
    assert frames == [
        {"frame_type": "ping"},
        {"frame_type": "unknown", "raw_frame_type": 0x2F},
    ]


def test_silence_closes(tmp_path):
    two = traced(tmp_path, near={"idle_timeout": 3.0}).connect()
    two.lose = lambda *_: True
    two.run(30)
    assert closed(tmp_path, "client") == {"owner": "local", "trigger": "idle_timeout"}


def test_a_server_that_is_not_there(tmp_path):
    two = traced(tmp_path, lose=lambda *_: True)
    two.run(30)
    end = {"owner": "local", "trigger": "handshake_timeout"}
    assert closed(tmp_path, "client") == end


def test_a_stateless_reset_closes(tmp_path):
    secret = bytes(range(32))
    two = traced(tmp_path, far={"secret": secret}).connect()
    two.far = server(secret=secret)
    two.connection.ping()
    two.run(2)
    end = {"owner": "remote", "trigger": "stateless_reset"}
    assert closed(tmp_path, "client") == end


@pytest.mark.parametrize("initiator", range(8))
def test_every_way_to_end_has_a_name(tmp_path, initiator):
    """As many as `ConnectionEnd` has."""
    initiators = get_args(get_type_hints(ConnectionEnd)["initiator"])
    assert len(initiators) == 8
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True)
    end = (0, 1, "closed", 0, 0, 0, initiator, 0, bytes(8))
    assert writer.write([started(1, b"a"), sent(1), end])
    assert closed(tmp_path, "client")["owner"] in ("local", "remote")


@pytest.mark.parametrize(
    "reason",
    [
        b'"}]}\n\x1e{"time":0}',
        b"\xff\xfe\x80 not UTF-8",
        "\u2028\u0000\ud7ff\U0001f600".encode(),
        b"\\u0000\\",
        b"\x1e" * 256,
        b"x" * 1000,
    ],
)
def test_no_reason_breaks_the_file(tmp_path, reason):
    attacker = Attacker(server(qlog_dir=tmp_path)).settle()
    attacker.send(frame(0x1D, 9, len(reason), reason))
    attacker.collect()
    data = closed(tmp_path, "server")
    assert data["reason"] == reason[:256].decode("utf-8", "replace")
    assert data["application_code"] == 9
    _, events = read_trace(tmp_path, "server")
    assert named(events, "packet_received")[-1]["frames"][0] == {
        "frame_type": "connection_close", "error_space": "application",
        "error_code": 9, "raw_error_code": 9, "reason": reason.decode("utf-8", "replace"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "name"),
    [(0x0A, "protocol_violation"), (0x128, "crypto_error_0x128"), (ALL, ALL)],
)
def test_errors_of_the_transport_have_names(tmp_path, code, name):
    attacker = Attacker(server(qlog_dir=tmp_path)).settle()
    attacker.send(frame(0x1C, code, 0x06, 0))
    attacker.collect()
    data = closed(tmp_path, "server")
    assert (data["connection_code"], data["trigger"]) == (name, "error")
    _, events = read_trace(tmp_path, "server")
    told = named(events, "packet_received")[-1]["frames"][0]
    assert (told["error_code"], told["raw_error_code"]) == (name, code)
    assert (told["error_space"], told["trigger_frame_type"]) == ("transport", 6)


def test_a_clean_end_is_told_as_such(tmp_path):
    attacker = Attacker(server(qlog_dir=tmp_path)).settle()
    attacker.send(frame(0x1C, 0, 0, 0))
    attacker.collect()
    assert closed(tmp_path, "server")["trigger"] == "clean"


def test_every_kind_of_frame_is_told(tmp_path):
    """Whatever a peer may send has its fields in the trace, and nothing of its bytes."""
    attacker = Attacker(server(qlog_dir=tmp_path, max_uni_streams=9)).settle()
    sent = [
        frame(0x04, 0, 5, 0),
        frame(0x05, 0, 6),
        frame(0x08 | 0x07, 4, 0, 3, b"abc"),
        frame(0x10, ALL),
        frame(0x11, 0, 77),
        frame(0x12, 1000),
        frame(0x13, 1001),
        frame(0x14, 5),
        frame(0x15, 4, 8),
        frame(0x16, 10),
        frame(0x17, 11),
        frame(0x18, 9, 0, bytes([8]), bytes(8), bytes(16)),
        frame(0x1A, b"12345678"),
        frame(0x1B, b"87654321"),
        frame(0x00) * 3,
    ]
    attacker.send(b"".join(sent))
    attacker.collect()
    _, events = read_trace(tmp_path, "server")
    assert named(events, "packet_received")[-1]["frames"] == [
        {"frame_type": "reset_stream", "stream_id": 0, "error_code": 5, "final_size": 0},
        {"frame_type": "stop_sending", "stream_id": 0, "error_code": 6},
        {"frame_type": "stream", "stream_id": 4, "offset": 0, "length": 3, "fin": True},
        {"frame_type": "max_data", "maximum": ALL},
        {"frame_type": "max_stream_data", "stream_id": 0, "maximum": 77},
        {"frame_type": "max_streams", "maximum": 1000, "stream_type": "bidirectional"},
        {"frame_type": "max_streams", "maximum": 1001, "stream_type": "unidirectional"},
        {"frame_type": "data_blocked", "limit": 5},
        {"frame_type": "stream_data_blocked", "stream_id": 4, "limit": 8},
        {"frame_type": "streams_blocked", "limit": 10, "stream_type": "bidirectional"},
        {"frame_type": "streams_blocked", "limit": 11, "stream_type": "unidirectional"},
        {"frame_type": "new_connection_id", "sequence_number": 9, "retire_prior_to": 0,
         "connection_id": "0000000000000000"},
        {"frame_type": "path_challenge"},
        {"frame_type": "path_response"},
        {"frame_type": "padding", "payload_length": 3},
    ]  # fmt: skip


# What is dropped.


def drops(tmp_path, end="server"):
    _, events = read_trace(tmp_path, end)
    return [
        (each["header"]["packet_type"], each["trigger"])
        for each in named(events, "packet_dropped")
    ]


def test_packets_that_are_dropped_are_told_with_the_reason(tmp_path):
    attacker = Attacker(server(qlog_dir=tmp_path)).settle()
    attacker.collect()
    before = len(drops(tmp_path))
    packet = attacker.seal(Epoch.ONE_RTT, frame(0x01))
    # Long enough that header protection does not depend on what is broken.
    broken = attacker.seal(Epoch.ONE_RTT, frame(0x01) * 100)
    broken = broken[:-1] + bytes([broken[-1] ^ 1])
    for data in (packet, packet, broken):
        attacker.end.receive(data, CLIENT, attacker.now)
    attacker.end.receive(packet, ("10.0.0.7", 5), attacker.now)
    attacker.collect()
    assert drops(tmp_path)[before:] == [
        ("1RTT", "duplicate"),
        ("1RTT", "payload_decrypt_error"),
        ("1RTT", "duplicate"),
    ]


def test_garbage_leaves_no_file(tmp_path):
    """An Initial packet that no client can have sealed begins nothing."""
    end = server(qlog_dir=tmp_path)
    garbage = bytes([0xC0, 0, 0, 0, 1, 8]) + bytes(8) + bytes([0, 0, 0x44, 0x80])
    for i in range(20):
        end.receive(garbage.ljust(1200, bytes([i])), CLIENT, 0.0)
    assert end.next_event() is None
    assert end.stats()["datagrams_dropped"] == 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packet_type", [0, 2, 5])
def test_no_payload_breaks_the_file(tmp_path, packet_type):
    """Frames cut short, turned over, and made up, in packets of every kind."""
    source = random.Random(packet_type)
    whole = [
        frame(0x02, 9, 1, 1, 2, 0, 3, 1),
        frame(0x03, ALL, ALL, 0, ALL - 1, 1, ALL, 3),
        frame(0x06, 0, 4, b'\x1e\n"}'),
        frame(0x08 | 0x07, 4, ALL - 9, 3, b"abc"),
        frame(0x18, 9, 9, bytes([20]), bytes(20), bytes(16)),
        frame(0x1C, ALL, ALL, 5, b'\xff\x00\n\x1e"'),
        frame(0x1D, 1, 2, b"\xed\xa0"),
        varint(ALL),
    ]
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True)
    records = [started(1, b"a")]
    for number in range(1500):
        payload = bytearray(b"".join(source.choices(whole, k=source.randrange(1, 6))))
        for _ in range(source.randrange(3)):
            payload[source.randrange(len(payload))] = source.randrange(256)
        if source.random() < 0.3:
            del payload[source.randrange(len(payload)) :]
        kind = source.choice(["sent", "received"])
        records.append((0, 1, kind, number, 30, packet_type, 0, 0, bytes(payload)))
    assert writer.write(records)
    _, events = read_trace(tmp_path)
    told = named(events, "packet_sent") + named(events, "packet_received")
    assert len(told) == 1500
    kinds = {each["frame_type"] for packet in told for each in packet["frames"]}
    assert {"ack", "crypto", "connection_close", "unknown"} <= kinds


# Bounds and failures.


def test_overflow_is_told_and_harms_nobody(tmp_path):
    """Nobody takes the records while megabytes go by."""
    two = traced(tmp_path).connect()
    two.near.drain_trace()
    events, two.collect = [], lambda: None
    payload = random.Random(5).randbytes(6_000_000)
    stream = two.connection.open_stream()
    two.connection.send(stream, payload, fin=True)
    got = b""
    while not two.peer.at_end(stream):
        two.run(0.05)
        got += two.peer.read(stream)
    assert got == payload
    while two.near.next_event() is not None:
        pass
    _, events = read_trace(tmp_path)
    (message,) = named(events, "warning")
    missing = int(message["message"].split()[0])
    stats = two.connection.stats()
    sent = len(named(events, "packet_sent"))
    assert 2000 < sent < stats["packets_sent"]
    assert missing >= stats["packets_sent"] - sent
    two.connection.ping()
    two.run(1)
    two.near.drain_trace()
    _, events = read_trace(tmp_path)
    assert len(named(events, "warning")) == 1
    assert len(named(events, "packet_sent")) > sent


def test_without_a_directory_nothing_is_traced(tmp_path, monkeypatch):
    """No ring, no writer, no thread of thought."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLOGDIR", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setattr(QlogWriter, "write", lambda *_: pytest.fail("it writes"))
    two = Two().connect()
    transfer(two)
    two.near.drain_trace()
    two.far.drain_trace()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["qlog_dir", "keylog_file"])
@pytest.mark.parametrize(
    ("value", "message"), [(5, "must be a path, not int"), ("", "is no path"),
                           ("a\0b", "is no path"), (b"x", "must be a path, not bytes")]
)  # fmt: skip
def test_what_is_no_path_is_refused(setting, value, message):
    with pytest.raises(ConfigError, match=message) as info:
        EngineConfig(**{setting: value})
    assert setting in str(info.value)


def test_a_directory_that_is_not_there_is_refused_at_once(tmp_path):
    for path in (tmp_path / "missing", __file__):
        with pytest.raises(ConfigError, match="qlog_dir cannot be written to"):
            client(qlog_dir=path)


def test_a_failing_disk_ends_the_tracing_and_nothing_else(tmp_path, caplog):
    directory = tmp_path / "traces"
    directory.mkdir()
    two = traced(directory).connect()
    (path,) = directory.glob("*_client.sqlog")
    path.unlink()
    with caplog.at_level(logging.WARNING, "lightning.qlog"):
        transfer(two)
        two.run(1)
    assert [each.name for each in caplog.records] == ["lightning.qlog"]
    assert "turned off" in caplog.text
    assert two.connection.is_connected
    # The other end goes on.
    _, events = read_trace(directory, "server")
    assert len(named(events, "packet_received")) == two.peer.stats()["packets_received"]
    two.near.drain_trace()


def test_a_limit_ends_the_tracing_and_nothing_else(tmp_path, caplog):
    two = traced(tmp_path, near={"qlog_limit": 20_000}).connect()
    with caplog.at_level(logging.WARNING, "lightning.qlog"):
        assert transfer(two) == (SECRET * 1000)[:200_000]
    assert "qlog_limit is reached" in caplog.text
    (path,) = tmp_path.glob("*_client.sqlog")
    assert 20_000 < path.stat().st_size < 60_000
    read_trace(tmp_path)


def test_a_fault_of_the_writer_ends_the_tracing_and_nothing_else(tmp_path, caplog):
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True)
    with caplog.at_level(logging.ERROR, "lightning.qlog"):
        assert not writer.write([(0, 0, "started", 0, 0, 0, 0, 0, b"")])
    assert "it failed" in caplog.text


def started(number, cid, at=0):
    """Make a record of a connection's start."""
    address = bytes([4, 0, 1, 0]) + bytes(16)
    data = address + bytes([len(cid)]) + cid + bytes([0])
    return (at, number, "started", 0, 0, 0, 0, 0, data)


def sent(number, at=0):
    """Make a record of a packet that was sent."""
    return (at, number, "sent", 0, 30, 5, 0, 0, b"\1")


def test_connections_of_one_name_get_files_of_their_own(tmp_path):
    """A client chooses the name; it cannot write into another's trace."""
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=False)
    for number in range(70):
        assert writer.write([started(number, b"12345678"), sent(number), sent(number)])
        assert writer.write([sent(number)])
    files = sorted(tmp_path.iterdir())
    assert len(files) == 64
    for path in files:
        assert len(named(read_file(path)[1], "packet_sent")) == 3
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_connection_whose_start_is_missing_has_no_trace(tmp_path):
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=False)
    ended = (0, 1, "ended", 0, 0, 0, 0, 0, b"")
    assert writer.write([sent(1), ended])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_kept_of_a_connection_that_ended(tmp_path):
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=False)
    ended = (0, 1, "ended", 0, 0, 0, 0, 0, b"")
    assert writer.write([started(1, b"a"), sent(1), ended])
    assert writer.write([sent(1)])
    (path,) = tmp_path.iterdir()
    assert len(named(read_file(path)[1], "packet_sent")) == 1
    assert writer._traces == {}


def test_connections_that_are_followed_are_bounded(tmp_path, monkeypatch):
    """If ends are missing, the oldest connection is given up."""
    monkeypatch.setattr("lightning._core.quic.qlog._MAX_TRACES", 3)
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=False)
    assert writer.write([started(i, bytes([i])) for i in range(5)])
    assert sorted(writer._traces) == [2, 3, 4]


def test_the_time_of_day_is_the_callers(tmp_path):
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True, wall=lambda: 12.5)
    assert writer.write([started(1, b"a", 7_000_000), sent(1, 7_001_500)])
    header, events = read_trace(tmp_path)
    assert header["trace"]["common_fields"]["reference_time"] == 12_500
    assert [each["time"] for each in events] == [0, 0, 1.5]


def test_relative_paths_are_taken_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traces").mkdir()
    end = client(qlog_dir="traces", keylog_file="keys")
    monkeypatch.chdir("/")
    end.connect(("10.0.0.2", 1), 0.0)
    end.datagrams_to_send(0.0)
    end.drain_trace()
    assert len(list((tmp_path / "traces").iterdir())) == 1


def test_an_endpoint_that_is_traced_can_be_dropped_at_any_time(tmp_path):
    """What was not written is not, and nothing leaks or hangs."""
    two = traced(tmp_path).connect()
    two.connection.send(two.connection.open_stream(), SECRET)
    two.flush()
    del two


def test_threads_may_write_while_others_receive(tmp_path):
    """Whoever comes while another writes goes away; every packet is told once."""
    two = traced(tmp_path)
    over = threading.Event()

    def drain():
        while not over.is_set():
            two.near.drain_trace()
            two.far.drain_trace()
            time.sleep(0)

    threads = [threading.Thread(target=drain) for _ in range(4)]
    for thread in threads:
        thread.start()
    two.connect()
    transfer(two, 1_000_000)
    over.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for end, engine, connection in (
        ("client", two.near, two.connection),
        ("server", two.far, two.peer),
    ):
        engine.drain_trace()
        _, events = read_trace(tmp_path, end)
        stats = connection.stats()
        assert len(packets(events, "packet_sent")) == stats["packets_sent"]
        assert len(named(events, "packet_sent")) == stats["packets_sent"]
        assert len(named(events, "packet_received")) == stats["packets_received"]


async def test_the_driver_writes_what_its_sockets_carry(tmp_path, monkeypatch):
    """Turn by turn, and the rest when it is closed."""
    traced_config = partial(EngineConfig, qlog_dir=tmp_path)
    monkeypatch.setattr(transport, "EngineConfig", traced_config)
    echo = Echo()
    await echo.endpoint.open(socket.AF_INET, ("127.0.0.1", 0))
    endpoint = transport.ClientEndpoint(transport.TransportConfig(**CONFIG))
    await endpoint.open(socket.AF_INET)
    address = ("127.0.0.1", echo.endpoint.local_addr.port)
    connection = await endpoint.connect(address)
    answers = []
    connection.exchanges.start(
        raw_frame(3, SECRET),
        lambda exchange, kind, data: (exchange.complete(), answers.append(data)),
        lambda exchange, error: pytest.fail(str(error)),
    )
    await until_async(lambda: answers)
    assert answers == [SECRET]
    _, events = read_trace(tmp_path)
    assert len(named(events, "packet_received")) > 4
    endpoint.close("enough")
    await until_async(lambda: not echo.connection.is_alive)
    echo.endpoint.close("")
    assert closed(tmp_path, "client")["owner"] == "local"
    assert closed(tmp_path, "server")["reason"] == "enough"
    assert SECRET[:20].hex() not in "".join(p.read_text() for p in tmp_path.iterdir())
