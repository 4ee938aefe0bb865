"""The key log: whole, private, and never in the way."""

import io
import logging
import os
import random
import stat

import pytest

from lightning._core.quic.config import EngineConfig
from lightning._core.quic.engine import Endpoint
from lightning._core.quic.keylog import KeyLog
from lightning.errors import ConfigError
from tests.support.quic import Attacker, Two, client, server


def test_the_key_log_has_four_secrets_a_connection(tmp_path):
    """Both ends name the same ones, so that either's file opens a capture."""
    lines = []
    near, far = tmp_path / "near", tmp_path / "far"
    config = EngineConfig(keylog_file=near)
    end = Endpoint(
        config, is_client=True, random=random.Random(1).randbytes, keylog=lines.append
    )
    Two(end, server(keylog_file=str(far))).connect()
    assert stat.S_IMODE(near.stat().st_mode) == 0o600
    assert near.read_text().splitlines() == lines
    assert sorted(near.read_text().splitlines()) == sorted(far.read_text().splitlines())
    assert sorted(line.split()[0] for line in lines) == [
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_TRAFFIC_SECRET_0",
    ]
    Two(client(seed=9, keylog_file=near), server()).connect()
    assert len(near.read_text().splitlines()) == 8


def test_it_agrees_with_aioquics(tmp_path):
    theirs = io.StringIO()
    Attacker(server(keylog_file=tmp_path / "keys"), secrets_log_file=theirs)
    lines = (tmp_path / "keys").read_text().splitlines()
    assert sorted(lines) == sorted(theirs.getvalue().splitlines())


def test_a_key_log_that_fails_later_is_told_once(tmp_path, caplog):
    directory = tmp_path / "keys"
    directory.mkdir()
    end = client(keylog_file=directory / "log")
    (directory / "log").unlink()
    directory.rmdir()
    with caplog.at_level(logging.WARNING, "lightning.keylog"):
        Two(end).connect()
    assert [each.name for each in caplog.records] == ["lightning.keylog"]


def test_a_key_log_that_cannot_be_opened_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing" / "keys", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="keylog_file cannot be written"):
            client(keylog_file=path)


def test_a_relative_path_is_taken_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keylog = KeyLog("keys")
    monkeypatch.chdir("/")
    keylog("a line")
    assert (tmp_path / "keys").read_text() == "a line\n"
