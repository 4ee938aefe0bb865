"""The writer of traces: well-formed, whatever comes."""

import logging
import random
import stat
import struct
from typing import get_args, get_type_hints

import pytest

from lightning._core.quic.config import EngineConfig
from lightning._core.quic.events import ConnectionEnd
from lightning._core.quic.qlog import QlogWriter
from lightning.errors import ConfigError
from tests.support.quic import (
    Attacker,
    client,
    frame,
    server,
    varint,
)
from tests.support.traces import (
    closed,
    named,
    read_file,
    read_trace,
)

ALL = (1 << 62) - 1


def started(number, cid, at=0):
    """Make a record of a connection's start."""
    address = bytes([4, 0, 1, 0]) + bytes(16)
    data = address + bytes([len(cid)]) + cid + bytes([0])
    return (at, number, "started", 0, 0, 0, 0, 0, data)


def sent(number, at=0):
    """Make a record of a packet that was sent."""
    return (at, number, "sent", 0, 30, 5, 0, 0, b"\1")


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


@pytest.mark.parametrize("initiator", range(9))
def test_every_way_to_end_has_a_name(tmp_path, initiator):
    """As many as `ConnectionEnd` has."""
    initiators = get_args(get_type_hints(ConnectionEnd)["initiator"])
    assert len(initiators) == 9
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


def test_a_fault_of_the_writer_ends_the_tracing_and_nothing_else(tmp_path, caplog):
    writer = QlogWriter(tmp_path, EngineConfig(), is_client=True)
    with caplog.at_level(logging.ERROR, "lightning.qlog"):
        assert not writer.write([(0, 0, "started", 0, 0, 0, 0, 0, b"")])
    assert "it failed" in caplog.text


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
    # Whose start was not written is not followed, also if there is room again.
    assert len(writer._traces) == 64
    files[0].unlink()
    assert writer.write([sent(69)])
    assert sorted(tmp_path.iterdir()) == files[1:]


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
