"""Traces of connections: complete, and never in the way."""

import logging
import random
import socket
import threading
import time

import pytest
from aioquic.quic.logger import QuicLogger
from aioquic.tls import Epoch

from lightning._core.io import transport
from lightning._core.quic.qlog import QlogWriter
from tests.support.echo_process import CONFIG, Echo
from tests.support.quic import (
    CLIENT,
    SERVER,
    Attacker,
    Two,
    client,
    frame,
    server,
    varint,
)
from tests.support.raw_peer import frame as raw_frame
from tests.support.traces import (
    SECRET,
    closed,
    named,
    packets,
    read_trace,
    traced,
    transfer,
)
from tests.support.waiting import until_async
from tests.unit import test_driver

echo_process = test_driver.echo_process

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


def test_it_agrees_with_aioquics_trace(tmp_path):
    """Another implementation tells of the same packets, from its side."""
    theirs = QuicLogger()
    attacker = Attacker(server(qlog_dir=tmp_path), quic_logger=theirs)
    stream = attacker.quic.get_next_available_stream_id()
    attacker.quic.send_stream_data(stream, SECRET * 20, end_stream=True)
    for _ in range(4):
        attacker.now += 0.05  # It paces.
        attacker.pump()
    attacker.quic.close(3, reason_phrase="so be it")
    attacker.pump()
    (trace,) = theirs.to_dict()["traces"]
    header, events = read_trace(tmp_path, "server")
    fields = trace["common_fields"]
    assert header["trace"]["common_fields"]["ODCID"] == fields["ODCID"]

    def told(events, name):
        return [
            (
                each["header"]["packet_type"],
                each["header"]["packet_number"],
                each["raw"]["length"],
                # Padding is told by one of us only.
                [frame for frame in each["frames"] if frame["frame_type"] != "padding"],
            )
            for each in named(events, name)
        ]

    pairs = (("packet_sent", "packet_received"), ("packet_received", "packet_sent"))
    for their_name, our_name in pairs:
        ours = plain(told(events, our_name))
        assert ours == plain(told(trace["events"], their_name))
        assert len(ours) > 5


def plain(packets):
    """Leave of frames what both traces name alike."""
    names = ("frame_type", "stream_id", "offset", "fin", "error_code", "reason")
    carries = ("stream", "crypto")
    return [
        (
            *packet[:3],
            [
                {k: f[k] for k in names if f.get(k)}
                | ({"length": f["length"]} if f["frame_type"] in carries else {})
                for f in packet[3]
            ],
        )
        for packet in packets
    ]


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
    count = 0
    for event in events:
        count += event["name"] == "recovery:packet_lost"
        if event["name"] == "recovery:metrics_updated":
            # Each is told before the metrics that it changed.
            assert event["data"].get("packets_lost", count) == count


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
    traced(tmp_path).connect().widen()
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
    """Nobody answers at the new address: the server goes back to the one it knows."""
    attacker = Attacker(server(qlog_dir=tmp_path))
    attacker.send(frame(0x01), source=("10.9.9.9", 9))
    for tick in range(1000):
        attacker.end.handle_timeout(tick / 100)
        for data, to in attacker.end.datagrams_to_send(tick / 100):
            if to == CLIENT:
                attacker.quic.receive_datagram(data, SERVER, tick / 100)
        # It answers and says nothing else, which would be a move of its own.
        challenges = attacker.quic._network_paths[0].remote_challenges
        while challenges:
            answer = frame(0x1B, challenges.popleft())
            packet = attacker.seal(Epoch.ONE_RTT, answer)
            attacker.end.receive(packet, CLIENT, tick / 100)
    attacker.collect()
    _, events = read_trace(tmp_path, "server")
    told = [
        (each["peer_ip"], each["peer_port"]) for each in named(events, "path_updated")
    ]
    assert told == [("10.9.9.9", 9), CLIENT]


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


async def test_the_driver_writes_what_its_sockets_carry(tmp_path):
    """Turn by turn, and the rest when it is closed; the secrets too."""
    keys = tmp_path / "keys"
    settings = {**CONFIG, "qlog_dir": str(tmp_path), "keylog_file": str(keys)}
    echo = Echo(qlog_dir=str(tmp_path), keylog_file=str(keys))
    await echo.endpoint.open(socket.AF_INET, ("127.0.0.1", 0))
    endpoint = transport.ClientEndpoint(transport.TransportConfig(**settings))
    await endpoint.open(socket.AF_INET)
    address = ("127.0.0.1", echo.endpoint.local_addr.port)
    connection = await endpoint.connect(address)
    answers = []
    connection.exchanges.start(
        raw_frame(2, SECRET),
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
    lines = [line.split() for line in keys.read_text().splitlines()]
    assert {line[0] for line in lines} >= {"CLIENT_TRAFFIC_SECRET_0"}
    assert all(lines.count(line) == 2 for line in lines), "both ends have the same"


async def test_threads_that_ask_write_what_they_moved(tmp_path, echo_process):
    """The loop beside them need not turn for it."""
    config = transport.TransportConfig(**CONFIG, qlog_dir=str(tmp_path))
    endpoint = transport.ClientEndpoint(config, threads=True)
    await endpoint.open(socket.AF_INET)
    connection = await endpoint.connect(("127.0.0.1", echo_process))

    def ask():
        for _ in range(20):
            connection.ask(raw_frame(2, b"q"), 10)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    _, events = read_trace(tmp_path)
    assert len(named(events, "packet_sent")) > 20
    assert len(named(events, "packet_received")) > 20
    endpoint.close("")


async def test_what_is_traced_while_nobody_asks_is_written(tmp_path):
    """The thread that stands in has the loop do it, before the ring is full."""
    config = transport.TransportConfig(**CONFIG, qlog_dir=str(tmp_path))
    echo = Echo()
    await echo.endpoint.open(socket.AF_INET, ("127.0.0.1", 0))
    endpoint = transport.ClientEndpoint(config, threads=True)
    await endpoint.open(socket.AF_INET)
    await endpoint.connect(("127.0.0.1", echo.endpoint.local_addr.port))
    await until_async(lambda: list(tmp_path.iterdir()))
    (path,) = tmp_path.iterdir()
    before = path.stat().st_size

    def grown():
        echo.connection.engine_connection.ping()
        echo.endpoint.flush()
        return path.stat().st_size > before + 60_000

    await until_async(grown)
    endpoint.close("")
    echo.endpoint.close("")
