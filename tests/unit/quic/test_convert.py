"""Between Python's values and the engine's records."""

import dataclasses

import pytest

from lightning._core.quic.config import EngineConfig
from lightning._core.quic.convert import (
    read_address,
    read_parameters,
    read_settings,
    read_times,
)
from lightning._core.quic.params import parse
from tests.support.quic import Two, client, frame, server
from tests.unit.quic.test_connection import Attacker

# Times.


@pytest.mark.parametrize(
    ("now", "us"),
    [
        (0.0, 0),
        (0.000001, 1),
        (1e9 + 0.000003, 1_000_000_000_000_003),
        (0.1 + 0.2, 300_000),
        (0.0000019, 2),
    ],
)
def test_a_clocks_time_is_the_nearest_microsecond(now, us):
    assert read_times(now, 0)[0] == us


@pytest.mark.parametrize(
    ("seconds", "us"),
    [(0, 0), (0.025, 25_000), (0.333, 333_000), (150, 150_000_000), (1.5, 1_500_000)],
)
def test_a_settings_time_is_in_microseconds(seconds, us):
    assert read_times(0.0, seconds)[1] == us


# Addresses.


@pytest.mark.parametrize(
    ("address", "family", "ip", "scope"),
    [
        (("10.0.0.1", 4433), 4, bytes([10, 0, 0, 1]), 0),
        (("::1", 1), 6, bytes(15) + b"\1", 0),
        (
            ("2001:db8::5", 65535, 0, 0),
            6,
            bytes.fromhex("20010db8") + bytes(11) + b"\5",
            0,
        ),
        (("fe80::1%eth0", 9, 0, 3), 6, b"\xfe\x80" + bytes(13) + b"\1", 3),
        (("::ffff:10.0.0.1", 9), 6, bytes(10) + b"\xff\xff\n\0\0\1", 0),
    ],
)
def test_addresses_are_read_as_the_socket_module_writes_them(
    address, family, ip, scope
):
    record, _ = read_address(address)
    assert record == (family, ip.ljust(16, b"\0"), address[1], scope)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (("10.0.0.1", 4433), ("10.0.0.1", 4433)),
        (("2001:db8::5", 1, 0, 0), ("2001:db8::5", 1)),
        (("fe80::1%eth0", 9, 0, 3), ("fe80::1", 9, 0, 3)),
    ],
)
def test_addresses_are_told_so_that_they_can_be_sent_to(address, told):
    """With the scope of a link-local one, without which it is nowhere."""
    assert read_address(address)[1] == told
    assert read_address(told)[1] == told


@pytest.mark.parametrize("address", [("localhost", 1), ("", 1), ("10.0.0", 1)])
def test_names_are_not_addresses(address):
    with pytest.raises(ValueError, match="does not appear to be"):
        read_address(address)


def test_a_port_out_of_range_is_refused():
    with pytest.raises(OverflowError):
        read_address(("10.0.0.1", 65536))


def test_many_hosts_are_told_apart():
    """More than are remembered."""
    for number in range(3000):
        host = f"10.1.{number >> 8}.{number & 255}"
        assert read_address((host, 1))[1] == (host, 1)


# Settings.


def test_every_setting_of_the_engine_reaches_its_record():
    """A value of its own for each, so that no two are taken for each other."""
    config = EngineConfig(
        idle_timeout=11, handshake_timeout=12, keep_alive=13, max_data=14_000,
        max_data_window=15_000, max_stream_data=1_600, max_stream_window=1_700,
        max_streams=18, max_uni_streams=19, max_local_streams=20, max_buffered=21_000,
        max_stream_buffered=2_200, active_cids=5, ack_delay=0.024, max_datagram=1250,
        initial_rtt=0.26, congestion="newreno", initial_window=27_000, hystart=False,
        ecn=False, retry=True, retry_from=28, max_connections=29, max_half_open=30,
        key_update_after=31,
    )  # fmt: skip
    record = read_settings(config, False)
    streams, recovery = record["streams"], record["recovery"]
    assert streams == {
        "is_client": False, "max_data": 14_000, "max_stream_data_bidi_local": 1_600,
        "max_stream_data_bidi_remote": 1_600, "max_stream_data_uni": 1_600,
        "max_streams_bidi": 18, "max_streams_uni": 19, "max_data_window": 15_000,
        "max_stream_window": 1_700, "max_buffered": 21_000,
        "max_stream_buffered": 2_200, "max_local_streams": 20,
    }  # fmt: skip
    assert (
        recovery["is_client"], recovery["initial_rtt"], recovery["algorithm"],
        recovery["initial_window"], recovery["hystart"], recovery["ecn"],
        recovery["max_datagram"],
    ) == (False, 260_000, 0, 27_000, False, False, 1250)  # fmt: skip
    assert (
        record["idle_timeout"], record["handshake_timeout"], record["keep_alive"],
        record["ack_delay"],
    ) == (11_000_000, 12_000_000, 13_000_000, 24_000)  # fmt: skip
    assert (
        record["key_update_after"], record["active_cids"], record["max_connections"],
        record["max_half_open"], record["retry_from"], record["retry"],
        record["sends_tokens"],
    ) == (31, 5, 29, 30, 28, True, True)  # fmt: skip


def test_a_window_is_not_below_what_is_granted_at_first():
    config = EngineConfig(
        max_data=100, max_data_window=1, max_stream_data=50, max_stream_window=1
    )
    streams = read_settings(config, True)["streams"]
    assert (streams["max_data_window"], streams["max_stream_window"]) == (100, 50)


def test_only_servers_send_tokens_and_only_if_they_are_good_for_a_while():
    config = EngineConfig()
    assert read_settings(config, False)["sends_tokens"]
    assert not read_settings(config, True)["sends_tokens"]
    none = dataclasses.replace(config, token_lifetime=0)
    assert not read_settings(none, False)["sends_tokens"]


# Transport parameters.


def test_parameters_of_a_peer_become_microseconds_and_bytes():
    heard = dataclasses.replace(
        parse(b"", by_client=False), max_idle_timeout=30_000, max_ack_delay=26,
        ack_delay_exponent=4, max_udp_payload_size=1300, active_connection_id_limit=3,
        initial_max_data=1, initial_max_stream_data_bidi_local=2,
        initial_max_stream_data_bidi_remote=3, initial_max_stream_data_uni=4,
        initial_max_streams_bidi=5, initial_max_streams_uni=6,
        original_destination_cid=b"original", initial_source_cid=b"",
        stateless_reset_token=bytes(range(16)),
    )  # fmt: skip
    record = read_parameters(heard)
    assert record["limits"] == {
        "max_data": 1, "max_stream_data_bidi_local": 2,
        "max_stream_data_bidi_remote": 3, "max_stream_data_uni": 4,
        "max_streams_bidi": 5, "max_streams_uni": 6,
    }  # fmt: skip
    assert (record["idle_timeout"], record["max_ack_delay"]) == (30_000_000, 26_000)
    assert (record["ack_exponent"], record["max_udp_payload"]) == (4, 1300)
    assert record["active_cids"] == 3
    assert (record["original"], record["source"], record["retry"]) == (
        b"original", b"", None,
    )  # fmt: skip
    assert record["token"] == bytes(range(16))
    assert read_parameters(parse(b"", by_client=False))["token"] is None


def test_an_idle_timeout_beyond_reason_is_a_year():
    heard = dataclasses.replace(parse(b"", by_client=True), max_idle_timeout=2**62 - 1)
    assert read_parameters(heard)["idle_timeout"] == 365 * 86_400 * 1_000_000


@pytest.mark.parametrize(
    ("delay", "said"),
    [(0.025, 25), (0.0255, 26), (0.0001, 1), (0, 1), (16.383, 16_383)],
)
def test_we_never_hold_an_acknowledgement_longer_than_we_say(delay, said):
    """In whole milliseconds, rounded up (RFC 9000 section 18.2)."""
    attacker = Attacker(server(ack_delay=delay))
    assert attacker.quic._loss.max_ack_delay == pytest.approx(said / 1000)


# The end of a connection, and its counters.


def test_a_reason_that_is_no_text_is_told_all_the_same():
    attacker = Attacker()
    attacker.send(frame(0x1D, 5, 4, b"a\xff\xfeb"))
    assert attacker.victim.end.reason == "a\ufffd\ufffdb"


def test_counters_have_names_and_are_numbers():
    two = Two(client(), server()).connect()
    stats = two.connection.stats()
    assert all(type(value) is int for value in stats.values())
    assert stats["datagrams_sent"] > 1
    assert stats["bytes_sent"] >= 1200
    assert stats["rtt"] > 10_000
