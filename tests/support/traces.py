"""Connections that are traced, and what their traces say."""

import json

from tests.support.quic import Two, client, server

SECRET = b"nobody but the peer is to read this " * 40


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


def closed(directory, end):
    """Return how a trace says that its connection ended."""
    (data,) = named(read_trace(directory, end)[1], "connection_closed")
    return data
