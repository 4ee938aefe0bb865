"""What we promise beyond the wire, and the tests that show it."""

import ast
import asyncio
import functools
import threading
from pathlib import Path

import pytest

from lightning import Lightning, LightningServer, QuicAxonInfo
from lightning.errors import ConnectionClosed, HandshakeError, LightningError
from lightning.reports import Reached
from lightning.signer import CallbackSigner
from tests.interop.relay import Relay as UdpPath
from tests.interop.wheel_end import free_port
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    VALIDATOR,
    VALIDATOR_HOTKEY,
    signer,
)
from tests.support.miner_process import peer_miner
from tests.support.raw_peer import is_accepted, raw_client, raw_server
from tests.support.waiting import until, until_async
from tests.unit.test_relay import Relay

ROOT = Path(__file__).parents[2]
ECHO = {"synapse_type": "echo", "data": {"n": 1}}

HERE = "shown/test_promises.py"
STORMS = "shown/test_storms.py"
PROMISES = {
    "a relay in the middle is refused": [
        "unit/test_relay.py::test_a_relay_with_a_certificate_of_its_own_is_refused_by_both",
        "unit/test_relay.py::test_a_relay_that_makes_up_an_accepting_answer_is_refused",
        "unit/test_relay.py::test_the_miners_certificate_with_another_key_is_refused_by_tls",
        f"{HERE}::test_a_relay_before_the_peers_miner_is_refused",
    ],
    "a login is bound to its connection, and survives new ports and addresses": [
        "unit/test_relay.py::test_a_login_survives_a_change_of_the_clients_port",
        "unit/test_relay.py::test_a_stranger_at_an_address_that_was_logged_in_is_a_stranger",
        f"{HERE}::test_a_login_of_the_peers_validator_survives_a_new_port",
    ],
    "a connection has one place, however many hotkeys, and frees it": [
        "unit/test_admission.py::test_hotkeys_of_one_connection_share_its_place",
        f"{HERE}::test_a_connection_frees_its_place_with_all_its_hotkeys",
    ],
    "a known validator may return although all places are taken": [
        "unit/test_admission.py::test_known_validator_returns_from_a_new_connection_even_when_full",
        "unit/test_server.py::test_a_full_server_refuses_new_ones_but_not_old_friends",
    ],
    "strangers have a deadline, a cap, and small frames": [
        "unit/test_server.py::test_a_connection_without_a_login_is_closed_in_time",
        "unit/test_server.py::test_so_many_connections_may_be_without_a_login",
        "unit/test_server.py::test_before_the_login_frames_are_small",
        f"{STORMS}::test_unfinished_frames_of_strangers_cost_less_than_a_mebibyte",
    ],
    "who loses the permit loses the session": [
        "unit/test_server.py::test_permits_come_and_go",
        f"{HERE}::test_a_validator_of_the_peers_loses_its_session_with_its_permit",
    ],
    "the wire has general texts, the log the reasons": [
        "unit/test_server.py::test_a_handler_that_fails_is_told_in_general_terms",
        "unit/test_server.py::test_a_stream_that_fails_is_told_in_general_terms",
        "interop/test_our_server.py::test_failures_are_told_in_general_terms",
    ],
    "a dead port fails a dial at once": [
        "unit/test_transport.py::test_a_port_where_nobody_listens_fails_the_dial_at_once",
        f"{HERE}::test_a_dead_port_fails_at_once",
    ],
    "queries on a dead connection share one reconnect": [
        "unit/test_client.py::test_queries_on_a_dead_connection_make_one_dial",
        f"{STORMS}::test_a_miner_that_was_killed_and_is_back_is_asked_again_at_once",
        f"{STORMS}::test_a_peers_miner_that_was_killed_and_is_back_is_asked_again",
        f"{HERE}::test_queries_to_a_restarted_miner_of_the_peers_share_a_dial",
    ],
    "a new hotkey logs in on the live connection": [
        "unit/test_client.py::test_a_new_hotkey_logs_in_on_the_live_connection",
    ],
    "hotkeys at one address log in concurrently": [
        f"{HERE}::test_hotkeys_at_one_address_log_in_concurrently",
    ],
    "a stop lets what runs finish, for so long": [
        "unit/test_server.py::test_a_stop_lets_running_handlers_finish",
        "unit/test_server.py::test_a_stop_waits_no_longer_than_it_was_told",
        "unit/test_blocking.py::test_a_stop_lets_handlers_finish",
        f"{HERE}::test_a_stop_lets_the_peers_validator_have_its_answer",
    ],
    "streams have a time limit for a chunk, and one for the whole": [
        "unit/test_client.py::test_a_stream_needs_a_chunk_timeout_to_give_up",
        "unit/test_server.py::test_handlers_have_so_much_time",
    ],
    "what is too large is refused before a byte is sent": [
        "unit/test_client.py::test_a_request_over_our_own_limit_is_not_sent",
    ],
    "asyncio, cancellation and Ctrl-C": [
        "unit/test_eventloops.py::test_client_and_server_on_a_loop",
        "unit/test_client.py::test_cancellation_at_every_moment_leaves_nothing",
        "unit/test_blocking.py::test_ctrl_c_ends_a_blocking_call_at_once",
        "unit/test_blocking.py::test_ctrl_c_is_noticed_while_the_call_waits",
    ],
    "handlers know who asks, from where, for what and until when": [
        "unit/test_server.py::test_the_context_says_who_where_and_how_long",
        "unit/test_binding.py::test_data_and_context",
    ],
    "logs, metrics, types and exceptions": [
        "unit/test_logs.py::test_every_line_is_documented",
        "unit/test_metrics.py::test_every_metric_is_documented_and_given",
        "unit/test_public_names.py::test_every_branch_of_the_errors_is_the_peers_builtin",
    ],
    "values arrive as they were, or are refused by their path": [
        "unit/test_packer.py::test_a_value_that_would_turn_into_something_else_is_refused",
        "unit/test_packer.py::test_the_path_leads_to_the_value",
        "interop/test_our_server.py::test_every_kind_of_value_comes_back",
        "interop/test_our_client.py::test_every_kind_of_value_comes_back",
    ],
    "IPv6 and host names": [
        "unit/test_client.py::test_an_ipv6_miner",
        "unit/test_client.py::test_a_miner_by_its_name",
        "unit/test_server.py::test_hosts",
    ],
    "a miner that is killed is noticed, and asked again": [
        f"{STORMS}::test_a_miner_that_was_killed_and_is_back_is_asked_again_at_once",
        f"{STORMS}::test_a_miner_that_was_killed_and_stays_away_is_given_up",
    ],
    "months leave nothing behind": [
        f"{STORMS}::test_a_long_churn_of_validators_leaves_nothing_behind",
        f"{STORMS}::test_a_thousand_reconnects_leave_nothing_behind",
        "soak/test_months.py::test_validators_come_and_go_for_long",
    ],
}


@functools.cache
def _tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / path).read_text())
    return {
        each.name
        for each in tree.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_has_its_tests(promise):
    """Each test that shows it is there."""
    for test in PROMISES[promise]:
        path, _, name = test.partition("::")
        assert name in _tests(path), test


# A relay.


@pytest.mark.interop
async def test_a_relay_before_the_peers_miner_is_refused(peer_server, make_client):
    """Its own certificate is not the one that the miner signs for."""
    axon = peer_server()
    async with raw_client(axon["port"]) as upstream:
        relay = Relay(upstream)
        async with raw_server(prepare=relay.prepare) as middle:
            client = make_client()
            await client.create_endpoint()
            with pytest.raises(LightningError, match="rejected by miner"):
                await client.query_axon(middle.axon, ECHO, 10)
            assert relay.verdicts == [False]
            # Without the relay all is well.
            assert (await client.query_axon(axon, ECHO, 10)).success


# A login and its connection.


@pytest.mark.interop
def test_a_login_of_the_peers_validator_survives_a_new_port(
    start_blocking_server, peer_client
):
    """As behind a NAT that gives it another port."""
    seen = []

    def where(data, context):
        seen.append((context.address.port, context.connection_id))
        return {}

    server = start_blocking_server(
        lambda server: server.register_synapse_handler("where", where)
    )
    path = UdpPath(server.local_addr())
    try:
        axon = {"hotkey": MINER_HOTKEY, "ip": "127.0.0.1", "port": path.address[1]}
        client = peer_client(axon)
        for _ in range(3):
            assert client.query_axon(axon, {"synapse_type": "where"})["success"]
            path.rebind()
        assert client.query_axon(axon, {"synapse_type": "where"})["success"]
        client.close()
    finally:
        path.close()
    ports, names = map(set, zip(*seen, strict=True))
    assert len(names) == 1, "the same login all along"
    assert len(ports) > 1, "and the address did move"


async def test_a_connection_frees_its_place_with_all_its_hotkeys(start_server, connect):
    """Three hotkeys take the only place, and a fourth has it after them."""
    server = await start_server(max_connections=1)
    async with raw_client(server.local_addr().port) as first:
        for number in range(3):
            assert is_accepted(await first.login(signer(10 + number)))
        assert len(server._table) == 1
        async with raw_client(server.local_addr().port) as second:
            assert not is_accepted(await second.login(signer(20)))
        first.close_with(0, "")
        await until_async(lambda: not len(server._table))
    client, axon = await connect(server, signer(20))
    assert (await client.query_axon(axon, ECHO, 10)).success


# Permits.


@pytest.mark.interop
def test_a_validator_of_the_peers_loses_its_session_with_its_permit(
    start_blocking_server, peer_client, axon_of
):
    """It is disconnected when the permits are known, and cannot come back."""
    permitted = [{VALIDATOR_HOTKEY}]
    server = start_blocking_server(
        lambda server: server.set_validator_permit_resolver(lambda: permitted[0]),
        require_validator_permit=True,
        validator_permit_refresh_secs=1,
    )
    ip, port = server.local_addr()
    axon = {"hotkey": MINER_HOTKEY, "ip": ip, "port": port}
    client = peer_client(axon)
    assert client.query_axon(axon, ECHO)["success"]
    permitted[0] = {"somebody else"}
    name = f"connection_{ip}:{port}"
    until(lambda: "validator_permit_lost" in client.get_connection_stats()[name])
    assert server.get_connection_stats()["total_connections"] == "0"


# Dials.


def test_a_dead_port_fails_at_once():
    """The report and a query say that nobody is there, before any timeout."""
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", free_port())
    with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
        report = client.initialize_connections([axon])
        assert report[MINER_HOTKEY].outcome is Reached.UNREACHABLE
        assert report[MINER_HOTKEY].seconds < client.config.connect_timeout / 2
        with pytest.raises(ConnectionError, match="nobody listens") as raised:
            client.query_axon(axon, ECHO)
        assert raised.value.elapsed < client.config.connect_timeout / 2


@pytest.mark.interop
async def test_queries_to_a_restarted_miner_of_the_peers_share_a_dial(
    peer, make_client
):
    """One connection and one login for all of them."""
    axon = QuicAxonInfo(MINER_HOTKEY, "127.0.0.1", free_port())
    client = make_client(unresponsive_timeout=0.5)
    with peer_miner(axon.port):
        await client.initialize_connections([axon])
    with peer_miner(axon.port):
        with pytest.raises(ConnectionClosed):
            await client.query_axon(axon, ECHO)
        signed = []

        def sign(message: bytes) -> bytes:
            signed.append(message)
            return VALIDATOR.sign(message)

        client.set_signer(CallbackSigner(sign))
        answers = await asyncio.gather(
            *[client.query_axon(axon, ECHO, 10) for _ in range(32)]
        )
        assert all(answer.success for answer in answers)
        assert len(signed) == 1
        await client.close()


async def test_hotkeys_at_one_address_log_in_concurrently(
    start_server, make_client, axon_of
):
    """None of four signatures is given before all four are asked for."""
    server = await start_server()
    axon = axon_of(server)
    others = [signer(30 + number).ss58_address for number in range(3)]
    asked = 0
    all_asked = asyncio.Event()

    async def sign(message: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 4:
            all_asked.set()
        await all_asked.wait()
        return VALIDATOR.sign(message)

    client = make_client()
    client.set_signer(CallbackSigner(sign))
    report = await client.initialize_connections(
        [axon, *(QuicAxonInfo(hotkey, axon.ip, axon.port) for hotkey in others)]
    )
    assert report[axon.hotkey].outcome is Reached.CONNECTED
    for hotkey in others:
        assert isinstance(report[hotkey].error, HandshakeError)
    assert len(server._endpoint.connections) == 1


# Stopping.


@pytest.mark.interop
def test_a_stop_lets_the_peers_validator_have_its_answer(peer_client):
    """What runs when a server is stopped is answered before the connection is closed."""
    began, go_on = threading.Event(), threading.Event()

    def slow(data):
        began.set()
        assert go_on.wait(10)
        return data

    server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    server.register_synapse_handler("slow", slow)
    server.start()
    ip, port = server.local_addr()
    axon = {"hotkey": MINER_HOTKEY, "ip": ip, "port": port}
    client = peer_client(axon)
    answers = []
    request = {"synapse_type": "slow", "data": {"n": 1}}
    asking = threading.Thread(
        target=lambda: answers.append(client.query_axon(axon, request))
    )
    asking.start()
    assert began.wait(10)
    stopping = threading.Thread(target=server.stop, args=(10,))
    stopping.start()
    go_on.set()
    for thread in (stopping, asking):
        thread.join(10)
        assert not thread.is_alive()
    assert answers[0]["success"]
    assert answers[0]["data"] == {"n": 1}
