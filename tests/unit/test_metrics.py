"""Metrics: what Prometheus reads is what happened, never falls, and is documented."""

import gc
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightning import AsyncLightning, LightningServerConfig
from tests.support.identities import MINER_HOTKEY, VALIDATOR_HOTKEY
from tests.support.inspection import connections
from tests.support.raw_peer import is_accepted, raw_client

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402 - extra.

from lightning.metrics import METRICS, _Sum, watch  # noqa: E402 - needs the extra.

ROOT = Path(__file__).parents[2]
ECHO = {"synapse_type": "echo", "data": {"n": 1}}


@pytest.fixture
def registry():
    return CollectorRegistry()


def read(registry, metric: str, /, **labels: str) -> float | None:
    return registry.get_sample_value(f"lightning_{metric}", {"name": "", **labels})


async def test_a_server_and_its_client(start_server, connect, registry):
    server = await start_server(
        lambda s: s.register_synapse_handler("bad", lambda d: 1 / 0)
    )
    client, axon = await connect(server)
    watch(server, registry)
    watch(client, registry)
    for _ in range(3):
        await client.query_axon(axon, ECHO)
    await client.query_axon(axon, {"synapse_type": "bad", "data": {}})
    await client.query_axon(axon, {"synapse_type": "none", "data": {}})
    port = server.local_addr().port
    async with raw_client(port) as raw:
        assert not is_accepted(await raw.login(timestamp=1))
    for name, labels, value in [
        ("server_requests_total", {"synapse": "echo", "outcome": "ok"}, 3),
        ("server_requests_total", {"synapse": "bad", "outcome": "failed"}, 1),
        ("server_requests_total", {"synapse": "", "outcome": "unknown"}, 1),
        ("server_logins_total", {"outcome": "accepted"}, 1),
        ("server_logins_total", {"outcome": "TimestampOutOfRange"}, 1),
        ("server_validators", {}, 1),
        ("client_connections", {"state": "active"}, 1),
        ("client_connections", {"state": "connecting"}, 0),
        ("client_exchanges_total", {}, 6),
        ("client_exchange_failures_total", {}, 0),
        ("client_requests_in_flight", {}, 0),
        ("client_answer_seconds_bucket", {"le": "+Inf"}, 6),
        ("client_lost_packets_total", {}, 0),
    ]:
        assert read(registry, name, **labels) == value, (name, labels)
    sent = read(registry, "client_sent_bytes_total")
    assert sent > 1200
    assert read(registry, "server_received_bytes_total") >= sent
    assert read(registry, "server_handler_seconds_total", synapse="bad") > 0
    assert read(registry, "server_peer_rtt_seconds") is None
    text = generate_latest(registry).decode()
    assert VALIDATOR_HOTKEY not in text
    assert MINER_HOTKEY not in text


async def test_counters_survive_connections_sockets_and_restarts(
    start_server, connect, make_client, registry
):
    server = await start_server()
    client, axon = await connect(server)
    watch(server, registry)
    watch(client, registry)
    await client.query_axon(axon, ECHO)
    before = counters(registry)
    assert before["lightning_client_exchanges_total"] == 2
    (connection,) = connections(client)
    await client.query_axon(axon, {**ECHO, "data": {"b": bytes(100_000)}})
    connection.close()
    assert_no_counter_fell(before, before := counters(registry))
    name = "lightning_client_sent_bytes_total"
    assert before[name] > 100_000, "of connections that have ended, too"
    await client.close()
    await server.stop()
    assert_no_counter_fell(before, before := counters(registry))
    assert read(registry, "server_connections", state="active") == 0
    await server.start()
    other, axon = await connect(server)
    await other.query_axon(axon, ECHO)
    after = counters(registry)
    assert_no_counter_fell(before, after)
    name = "lightning_server_exchanges_total"
    assert after[name] == before[name] + 2


def counters(registry) -> dict[str, float]:
    return {
        sample.name + repr(sample.labels) if len(sample.labels) > 1 else sample.name: (
            sample.value
        )
        for metric in registry.collect()
        if metric.type != "gauge"
        for sample in metric.samples
    }


def assert_no_counter_fell(before: dict, after: dict) -> None:
    for name, value in before.items():
        assert after[name] >= value, name


async def test_series_for_each_peer_if_asked(start_server, connect, registry):
    server = await start_server()
    client, axon = await connect(server)
    watch(server, registry, per_peer=True)
    watch(client, registry, per_peer=True)
    await client.query_axon(axon, ECHO)
    labels = {"address": str(axon.address), "hotkeys": MINER_HOTKEY}
    assert read(registry, "client_peer_exchanges_total", **labels) == 2
    assert read(registry, "client_peer_rtt_seconds", **labels) > 0
    assert f'hotkeys="{VALIDATOR_HOTKEY}"' in generate_latest(registry).decode()
    await client.close()
    assert read(registry, "client_peer_rtt_seconds", **labels) is None


async def test_several_in_one_registry_are_told_apart(start_server, registry):
    servers = [await start_server() for _ in range(2)]
    watches = [watch(s, registry, name=n) for s, n in zip(servers, "ab", strict=True)]
    with pytest.raises(ValueError, match="a server named 'a' is watched already"):
        watch(servers[0], registry, name="a")
    assert read(registry, "server_validators", name="b") == 0
    watches[1].close()
    watches[1].close()
    assert read(registry, "server_validators", name="b") is None
    with watch(servers[1], registry, name="b"):
        assert read(registry, "server_validators", name="b") == 0
    assert read(registry, "server_validators", name="b") is None
    assert read(registry, "server_validators", name="a") == 0


def test_the_blocking_faces_are_watched_from_any_thread(blocking_pair, registry):
    """Scraped from one thread while two others ask."""
    server, client, axon = blocking_pair
    watch(server, registry)
    watch(client, registry)
    before, stop, errors = {}, threading.Event(), []

    def scrape() -> None:
        nonlocal before
        try:
            while not stop.is_set():
                assert_no_counter_fell(before, before := counters(registry))
        except BaseException as error:
            errors.append(error)

    def ask() -> None:
        for _ in range(200):
            client.query_axon(axon, ECHO)

    scraper = threading.Thread(target=scrape)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in (scraper, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    scraper.join()
    assert not errors
    labels = {"synapse": "echo", "outcome": "ok"}
    assert read(registry, "server_requests_total", **labels) == 400


@pytest.fixture
def blocking_pair():
    from lightning import Lightning, LightningServer, QuicAxonInfo
    from tests.support.identities import MINER, VALIDATOR

    server = LightningServer(
        MINER_HOTKEY,
        "127.0.0.1",
        0,
        signer=MINER,
        config=LightningServerConfig(max_concurrent_bidi_streams=16),
    )
    server.register_synapse_handler("echo", lambda data: data)
    server.start()
    client = Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR)
    axon = QuicAxonInfo(MINER_HOTKEY, *server.local_addr())
    client.initialize_connections([axon])
    yield server, client, axon
    client.close()
    server.stop()


async def test_what_is_gone_is_forgotten(make_client, registry):
    client = AsyncLightning(VALIDATOR_HOTKEY)
    watch(client, registry)
    assert read(registry, "client_requests_in_flight") == 0
    del client
    gc.collect()
    assert read(registry, "client_requests_in_flight") is None
    watch(make_client(), registry)


async def test_one_that_cannot_be_read_leaves_the_others(
    start_server, registry, monkeypatch, caplog
):
    broken, well = [await start_server() for _ in range(2)]
    watch(broken, registry, name="broken")
    watch(well, registry)
    monkeypatch.setattr(broken, "stats", lambda: 1 / 0)
    assert read(registry, "server_validators") == 0
    assert "the metrics of 'broken' cannot be read" in caplog.text


async def test_a_socket_that_is_closed_meanwhile_is_read_as_before(
    start_server, connect, registry, monkeypatch
):
    client, _ = await connect(await start_server())
    watch(client, registry)
    before = counters(registry)
    (endpoint,) = client._endpoints.values()

    def closed() -> dict:
        raise RuntimeError("closed")

    monkeypatch.setattr(endpoint, "stats", closed)
    assert_no_counter_fell(before, counters(registry))


def test_only_clients_and_servers_are_watched(registry):
    with pytest.raises(TypeError, match="target must be a client or a server, not str"):
        watch("server", registry)


def test_sums_do_not_fall_with_what_they_are_made_of():
    class Source:
        pass

    total, first, second = _Sum(), Source(), Source()
    total.update([(first, {"n": 3}), (second, {"n": 4})])
    assert total["n"] == 7
    total.update([(first, {"n": 2})])
    assert total["n"] == 7, "one ended, the other was read at a bad moment"
    del first
    total.update([])
    assert (total["n"], total["other"]) == (7, 0)
    assert not total._seen


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import lightning\n"
        "try:\n    import lightning.metrics\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=ROOT,
    )
    assert "pip install 'bittensor-lightning[metrics]'" in done.stdout


def test_every_metric_is_documented_and_given(registry):
    table = {
        row[0].strip("` "): (row[1].strip(), re.findall(r"`(\w+)`", row[2]))
        for line in (ROOT / "docs" / "metrics.md").read_text().splitlines()
        if line.startswith("| `lightning_")
        for row in [line.strip("|").split("|")]
    }
    assert table == {
        name + ("_total" if metric.kind == "counter" else ""): (
            metric.kind,
            list(metric.labels),
        )
        for name, metric in METRICS.items()
    }


async def test_every_metric_has_samples(start_server, connect, registry):
    server = await start_server()
    client, axon = await connect(server)
    watch(server, registry, per_peer=True)
    watch(client, registry, per_peer=True)
    await client.query_axon(axon, ECHO)
    empty = [m.name for m in registry.collect() if not m.samples]
    assert empty == []
