"""bittensor's HTTP from our client to our server, over loopback."""

import asyncio
import dataclasses
import gc
import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from lightning.dropin.axon_info import AxonInfo
from lightning.dropin.dispatch import Dispatch
from lightning.dropin.exceptions import SynapseException
from lightning.dropin.http_auth import RequestGate
from lightning.dropin.http_client import HttpClient
from lightning.dropin.http_headers import request_body, request_headers
from lightning.dropin.http_server import HttpLimits, HttpServer
from lightning.dropin.streaming import StreamingSynapse
from lightning.dropin.synapse import Synapse
from lightning.dropin.threadpool import PriorityThreadPoolExecutor
from lightning.errors import ConfigError, SigningError
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR, VALIDATOR_HOTKEY
from tests.support.waiting import until, until_async


class Echo(Synapse):
    text: str = ""
    answer: str | None = None


class Hashed(Synapse):
    text: str = ""
    required_hash_fields = ("text",)


class Required(Synapse):
    text: str


class Stream(StreamingSynapse):
    count: int = 3
    fail_at: int = -1
    completion: str = ""

    async def process_streaming_response(self, response):
        async for chunk in response.content.iter_any():
            self.completion += chunk.decode()
            yield chunk.decode()

    def extract_response_json(self, response):
        headers = dict(response.__dict__["_raw_headers"])
        return {"name": headers[b"name"].decode(), "completion": self.completion}


class Record(list):
    """What the forward functions saw."""


@pytest.fixture
def record():
    return Record()


@pytest.fixture
def axon(record):  # noqa: C901 - one function for each synapse.
    """An axon with forward functions for each way a request may end."""

    async def echo(synapse):
        record.append(synapse)
        what = synapse.text
        if what == "raise":
            raise RuntimeError("secret")
        if what == "synapse exception":
            synapse.axon.status_code = 429
            raise SynapseException("slow down", synapse)
        if what == "hang":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                record.append("cancelled")
                raise
        if what.startswith("status "):
            code, _, message = what.removeprefix("status ").partition(" ")
            synapse.axon.status_code = int(code)
            synapse.axon.status_message = message
        if what == "unsayable":
            synapse.__dict__["answer"] = object()
            return synapse
        synapse.answer = what.upper()
        return synapse

    async def hashed(synapse):
        return synapse

    async def stream(synapse):
        async def streamer(send):
            try:
                for n in range(synapse.count):
                    if n == synapse.fail_at:
                        raise RuntimeError("secret")
                    await send(
                        {
                            "type": "http.response.body",
                            "body": b"%d " % n,
                            "more_body": True,
                        }
                    )
                    await asyncio.sleep(0)
                if synapse.count == 7:
                    end = {
                        "type": "http.response.body",
                        "body": b"",
                        "more_body": False,
                    }
                    await send(end)
                    await send(end)
                if synapse.count > 1000:
                    await asyncio.sleep(3600)
            except (asyncio.CancelledError, ConnectionError):
                record.append("stopped")
                raise

        return synapse.create_streaming_response(streamer)

    def blacklist(synapse):
        return synapse.text == "blacklisted", "no"

    classes = {"Echo": Echo, "Hashed": Hashed, "Stream": Stream, "Required": Required}
    forwards = {
        "Echo": echo,
        "Hashed": hashed,
        "Stream": stream,
        "Required": hashed,
    }
    return SimpleNamespace(
        wallet=SimpleNamespace(hotkey=MINER),
        uuid="axon",
        forward_class_types=classes,
        forward_fns=forwards,
        blacklist_fns={"Echo": blacklist},
        verify_fns={},
        priority_fns={},
    )


@pytest.fixture
async def serve(axon):
    """Start servers; at the end nothing may be left of any request."""
    servers, pools = [], []

    async def start(host="127.0.0.1", **limits):
        pool = PriorityThreadPoolExecutor(max_workers=1)
        dispatch = Dispatch(axon, object(), pool, most_workers=1)
        server = HttpServer(
            dispatch,
            axon,
            gate=RequestGate(MINER_HOTKEY),
            limits=HttpLimits(**limits),
        )
        await server.start(host, 0)
        servers.append(server)
        pools.append(pool)
        return server

    yield start
    for server in servers:
        await server.stop(0.1)
        assert not server._connections
        assert not server._answering
        assert not server._receiving
        assert not +server._sources
    for pool in pools:
        pool.shutdown()


@pytest.fixture
async def client():
    client = HttpClient(VALIDATOR, "dendrite")
    yield client
    await client.aclose()


def target(server, ip="127.0.0.1"):
    port = server if isinstance(server, int) else server.port
    return AxonInfo(ip=ip, port=port, hotkey=MINER_HOTKEY)


async def ask(client, server, text, **more):
    synapse = Echo(text=text)
    await client.call(target(server), synapse, 10, **more)
    return synapse


async def raw(server, request, *, end=False):
    """Send bytes, and return all that comes until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def signed(client, server, synapse, *, change=None, body=None):
    """Return a request as bytes, with its connection to be closed."""
    client.prepare(target(server), synapse, 10)
    headers = request_headers(synapse)
    headers.update(change or {})
    body = request_body(synapse) if body is None else body
    lines = [f"POST /{type(synapse).__name__} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{k}: {v}" for k, v in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def status_of(answer):
    return int(answer.split(b" ", 2)[1])


# Calls.


async def test_a_call_as_bittensor_would_make_it(serve, client, record):
    server = await serve()
    client.external_ip = "9.9.9.9"
    synapse = await ask(client, server, "żółw")
    assert synapse.answer == "ŻÓŁW"
    dendrite, axon = synapse.dendrite, synapse.axon
    assert (dendrite.status_code, dendrite.status_message) == (200, "Success")
    assert 0 < axon.process_time < dendrite.process_time
    assert (dendrite.ip, dendrite.port) == ("9.9.9.9", None)
    assert dendrite.hotkey == VALIDATOR_HOTKEY
    assert (axon.ip, axon.port, axon.hotkey) == ("127.0.0.1", server.port, MINER_HOTKEY)
    assert axon.version is axon.nonce is axon.uuid is axon.signature is None
    [seen] = record
    assert seen.dendrite.ip == "127.0.0.1"
    assert seen.dendrite.port > 0
    assert seen.dendrite.hotkey == VALIDATOR_HOTKEY
    assert seen.dendrite.uuid == "dendrite"
    assert seen.axon.hotkey == MINER_HOTKEY
    assert seen.timeout == 10
    assert seen.computed_body_hash == seen.body_hash


async def test_a_large_body_goes_both_ways(serve, client):
    server = await serve()
    text = "ab" * (3 << 19)
    assert (await ask(client, server, text)).answer == text.upper()


async def test_connections_are_kept(serve, client):
    server = await serve()
    for _ in range(5):
        await ask(client, server, "x")
    assert len(server._connections) == 1


async def test_two_hundred_calls_at_a_time_wait_for_nobody(serve, client, record):
    server = await serve()
    calls = [asyncio.create_task(ask(client, server, "hang")) for _ in range(200)]
    await until_async(lambda: len(record) == 200)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await until_async(lambda: record.count("cancelled") == 200)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("blacklisted", 403, "Forbidden. Key is blacklisted: no."),
        ("synapse exception", 429, "slow down"),
        ("status 418 teapot", 418, "teapot"),
        ("status 400 żółw", 400, "żółw"),
        ("status 400 日本語", 400, "日本語"),
        ("status 400 two\nlines", 400, "two\nlines"),
        ("status 400 " + "x" * 20000, 400, "x" * 20000),
        ("status 400 \x00\x7f", 400, "\x00\x7f"),
        ("status 200 żółw\r\nSet-Cookie: a=b", 200, "żółw\r\nSet-Cookie: a=b"),
        ("status 204 none", 204, "none"),
        ("status 304 none", 304, "none"),
        ("status 1000 far", 1000, "far"),
        ("status 0 zero", 0, "zero"),
        ("status -5 less", -5, "less"),
        ("status 301 moved", 301, "moved"),
    ],
)
async def test_every_status_and_message_comes_through(
    serve, client, text, code, message
):
    server = await serve()
    synapse = await ask(client, server, text)
    assert synapse.dendrite.status_code == synapse.axon.status_code == code
    assert synapse.dendrite.status_message == message
    assert synapse.text == text
    assert synapse.dendrite.process_time > 0
    assert synapse.axon.process_time >= 0


async def test_a_failure_is_told_as_a_number_only(serve, client, caplog):
    server = await serve()
    synapse = await ask(client, server, "raise")
    assert synapse.dendrite.status_code == 500
    message = synapse.dendrite.status_message
    assert message.startswith("Internal Server Error #")
    assert message.rpartition("#")[2] in caplog.text
    assert "secret" not in str(synapse)
    assert (synapse.axon.version, synapse.axon.uuid) == (10_005_000, "axon")
    text = f"{synapse.axon.nonce}.{VALIDATOR_HOTKEY}.{MINER_HOTKEY}.{synapse.axon.uuid}"
    from lightning.signer import verify

    assert verify(
        MINER.public_key, text.encode(), bytes.fromhex(synapse.axon.signature[2:])
    )
    assert synapse.dendrite.ip == "127.0.0.1"
    assert synapse.dendrite.port > 0


@pytest.mark.parametrize("code", [401, 403, 404, 500, 503])
async def test_a_status_that_a_forward_sets_is_no_refusal(serve, client, code):
    server = await serve()
    client.external_ip = "9.9.9.9"
    synapse = await ask(client, server, f"status {code} mine")
    assert synapse.dendrite.status_code == code
    assert synapse.axon.version is synapse.axon.signature is None
    assert synapse.dendrite.ip == "9.9.9.9"
    assert len(server.gate._used) == 1


async def test_an_answer_that_json_cannot_say_is_a_failure(serve, client, caplog):
    server = await serve()
    synapse = await ask(client, server, "unsayable")
    assert synapse.dendrite.status_code == 500
    assert "answering Echo by HTTP failed" in caplog.text


async def test_an_unknown_synapse_and_get_are_told_what_there_is(serve, client):
    server = await serve()

    class Unknown(Synapse):
        pass

    synapse = Unknown()
    await client.call(target(server), synapse, 10)
    assert synapse.dendrite.status_code == 404
    assert synapse.dendrite.status_message == (
        "Synapse name 'Unknown' not found. Available synapses "
        "['Echo', 'Hashed', 'Stream', 'Required']"
    )
    for line in (b"GET /Echo", b"GET /", b"PUT /Echo/more", b"DELETE /x?y"):
        answer = await raw(
            server, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert status_of(answer) == 404, answer
        assert b"Available synapses" in answer


# Who asks.


async def test_a_replayed_request_is_refused(serve, client, record):
    server = await serve()
    request = signed(client, server, Echo(text="once"))
    assert status_of(await raw(server, request)) == 200
    again = await raw(server, request)
    assert status_of(again) == 401
    assert b"Nonce was used before" in again
    assert len(record) == 1


async def test_many_at_once_of_one_request_are_done_once(serve, client, record):
    server = await serve()
    request = signed(client, server, Echo(text="once"))
    answers = await asyncio.gather(*[raw(server, request) for _ in range(20)])
    assert sorted(map(status_of, answers)) == [200] + [401] * 19
    assert len(record) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"bt_header_dendrite_signature": ""},
        {"bt_header_dendrite_signature": "0x" + "11" * 64},
        {"bt_header_dendrite_hotkey": MINER_HOTKEY},
        {"bt_header_dendrite_hotkey": "x" * 3000},
        {"bt_header_dendrite_nonce": "1"},
        {"bt_header_dendrite_nonce": str(1 << 70)},
        {"bt_header_dendrite_uuid": "other"},
        {"bt_header_dendrite_version": "1", "bt_header_dendrite_signature": ""},
        {"bt_header_dendrite_version": "7001000", "bt_header_dendrite_nonce": "1"},
        {"computed_body_hash": "00"},
    ],
)
async def test_what_is_not_signed_as_it_is_is_refused(serve, client, record, change):
    server = await serve()
    answer = await raw(server, signed(client, server, Echo(), change=change))
    assert status_of(answer) == 401
    assert b"Not Verified with error: " in answer
    assert not record


async def test_nothing_is_signed_for_others(serve, client):
    server = await serve()
    change = {"bt_header_axon_hotkey": VALIDATOR_HOTKEY + ".u"}
    answer = await raw(
        server,
        signed(client, server, Echo(), change={**change, "computed_body_hash": "0"}),
    )
    assert status_of(answer) == 401
    assert b"bt_header_axon_nonce" in answer
    assert b"bt_header_axon_signature" not in answer


async def test_a_request_for_another_miner_is_refused(serve, client):
    server = await serve()
    synapse = Echo()
    other = AxonInfo(ip="127.0.0.1", port=server.port, hotkey=VALIDATOR_HOTKEY)
    await client.call(other, synapse, 10)
    assert synapse.failed_verification


async def test_a_body_other_than_signed_is_refused(serve, client):
    server = await serve()
    good = Hashed(text="x")
    await client.call(target(server), good, 10)
    assert good.is_success
    bad = request_body(Hashed(text="y"))
    answer = await raw(server, signed(client, server, Hashed(text="x"), body=bad))
    assert status_of(answer) == 500
    assert b"Internal Server Error #" in answer


async def test_a_verify_function_decides_alone(serve, client, axon, record):
    server = await serve()

    def verify(synapse):
        if synapse.text != "secret word":
            raise ValueError("no")

    axon.verify_fns["Echo"] = verify
    change = {"bt_header_dendrite_signature": ""}
    request = signed(client, server, Echo(text="secret word"), change=change)
    assert status_of(await raw(server, request)) == 200
    refused = await ask(client, server, "x")
    assert refused.dendrite.status_code == 401
    assert refused.dendrite.status_message == "Not Verified with error: no"
    assert len(record) == 1


async def test_the_blacklisted_fill_no_memory(serve, client):
    server = await serve()
    for _ in range(3):
        await ask(client, server, "blacklisted")
    assert len(server.gate._used) == 0
    await ask(client, server, "status 403 mine")
    assert len(server.gate._used) == 1


# What is no request.


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 500),
        (b"[]", 500),
        (b"null", 500),
        (b'{"text": 1}', 500),
        (b"\xff\xfe", 500),
        (b"{" * 100_000, 500),
        (b"[" * 100_000, 500),
        (b"1" * 5000, 500),
    ],
)
async def test_bodies_that_are_no_such_synapse(serve, client, body, code):
    server = await serve()
    answer = await raw(server, signed(client, server, Echo(), body=body))
    assert status_of(answer) == code
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["message"]


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST /Echo HTTP/9.9\r\n\r\n",
        b"POST /Echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /Echo HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /Echo HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
        b"POST /Echo HTTP/1.1\r\n" + b"A: x\r\n" * 500 + b"\r\n",
        b"POST /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_connection_closed(serve, request_):
    server = await serve()
    answer = await raw(server, request_)
    assert status_of(answer) == 400
    await until_async(lambda: not server._connections)


async def test_a_body_that_is_too_large_is_refused(serve, client):
    server = await serve(max_body_bytes=1000)
    synapse = await ask(client, server, "x" * 2000)
    assert synapse.dendrite.status_code == 413
    head, _, body = signed(client, server, Echo(text="x" * 2000)).partition(b"\r\n\r\n")
    lines = [x for x in head.split(b"\r\n") if not x.startswith(b"Content-Length")]
    chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n"
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert status_of(await raw(server, chunked)) == 413


async def test_bodies_have_room_together_only(serve, client):
    server = await serve(max_body_bytes=1 << 20, max_bodies_bytes=1 << 20)
    first = signed(client, server, Echo(text="x" * (1 << 19)))
    second = signed(client, server, Echo(text="x" * (1 << 19) + "y" * 1000))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(first[:-10])
    await until_async(lambda: server._receiving)
    assert status_of(await raw(server, second)) == 503
    writer.write(first[-10:])
    assert b"200 OK" in await reader.read()
    writer.close()
    assert (await ask(client, server, "x")).is_success


async def test_bodies_of_unknown_length_have_room_together_only(serve, client):
    server = await serve(max_bodies_bytes=1000)
    head, _, body = signed(client, server, Echo(text="x" * 2000)).partition(b"\r\n\r\n")
    lines = [x for x in head.split(b"\r\n") if not x.startswith(b"Content-Length")]
    chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n"
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert status_of(await raw(server, chunked)) == 503


@pytest.mark.parametrize("timeout", [0, None, "-1", "nan", "inf"])
async def test_timeouts_that_are_none_are_no_limit(serve, client, timeout):
    server = await serve()
    synapse = Echo(text="x")
    if timeout is None or timeout == 0:
        await client.call(target(server), synapse, timeout)
        assert synapse.is_success
        return
    change = {"timeout": timeout}
    answer = await raw(server, signed(client, server, synapse, change=change))
    assert status_of(answer) == 200


async def test_a_body_that_does_not_come_ends_the_request(serve, client, monkeypatch):
    monkeypatch.setattr("lightning.dropin.http_server._LINGER", 0.05)
    server = await serve(body_timeout=0.05)
    request = signed(client, server, Echo(text="x"))
    answer = await raw(server, request[:-1])
    assert status_of(answer) == 408


async def test_headers_that_do_not_come_end_the_connection(serve, monkeypatch):
    monkeypatch.setattr("lightning.dropin.http_server._WATCH_INTERVAL", 0.02)
    server = await serve(header_timeout=0.05)
    for start in (b"", b"POST /Echo HTTP/1.1\r\nA: b"):
        try:
            assert await raw(server, start) == b""
        except ConnectionResetError:
            pass
    await until_async(lambda: not server._connections)


async def test_a_client_that_does_not_read_is_cut(serve, client, monkeypatch):
    monkeypatch.setattr("lightning.dropin.http_server._WATCH_INTERVAL", 0.02)
    server = await serve(write_timeout=0.1)
    request = signed(client, server, Echo(text="x" * (8 << 20)))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    await asyncio.to_thread(sock.sendall, request)
    await until_async(lambda: not server._connections)
    sock.close()


async def test_connections_have_a_limit_and_the_idle_make_room(serve, client, record):
    server = await serve(max_connections_per_ip=3)
    idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
    await until_async(lambda: len(server._connections) == 3)
    assert (await ask(client, server, "x")).is_success
    assert len(server._connections) == 3
    assert await idle[0][0].read() == b""
    calls = [asyncio.create_task(ask(client, server, "hang")) for _ in range(3)]
    await until_async(lambda: len(record) == 4)
    with pytest.raises(aiohttp.ClientError):
        await ask(client, server, "x")
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    for _, writer in idle:
        writer.close()


async def test_pipelined_requests_are_all_answered(serve, client):
    server = await serve()
    requests = b""
    for n in range(20):
        request = signed(client, server, Echo(text=str(n)))
        requests += (
            request.replace(b"Connection: close\r\n", b"") if n < 19 else request
        )
    answers = await raw(server, requests)
    assert answers.count(b"HTTP/1.1 200 OK") == 20


@pytest.mark.parametrize("page", ["dropin.md", "limits.md"])
def test_the_tables_of_limits_are_complete_and_have_the_defaults(page):
    text = (Path(__file__).parents[3] / "docs" / page).read_text()
    section = text.split("`HttpLimits`\n")[1].split("\n#")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    fields = {each.name: str(each.default) for each in dataclasses.fields(HttpLimits)}
    assert listed == fields


def test_limits_are_positive():
    with pytest.raises(ConfigError, match="keep_alive"):
        HttpLimits(keep_alive=0)


async def test_a_port_that_is_taken_is_said_at_once(serve, axon):
    server = await serve()
    other = HttpServer(None, axon)
    with pytest.raises(OSError, match="in use"):
        await other.start("127.0.0.1", server.port)
    assert other.port == 0
    await other.stop()


async def test_ipv6(serve, client):
    try:
        server = await serve("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    synapse = Echo(text="x")
    await client.call(target(server, "::1"), synapse, 10)
    assert synapse.is_success
    synapse = Echo(text="x")
    await client.call(target(server, "[::1]"), synapse, 10)
    assert synapse.is_success


async def test_a_host_name(serve, client):
    server = await serve("127.0.0.1")
    synapse = Echo(text="x")
    await client.call(target(server, "localhost"), synapse, 10)
    assert synapse.is_success


# Ends.


async def test_a_client_that_goes_cancels_the_work(serve, client, record):
    server = await serve()
    call = asyncio.create_task(ask(client, server, "hang"))
    await until_async(lambda: record)
    call.cancel()
    await asyncio.wait([call])
    await until_async(lambda: record[-1] == "cancelled")


async def test_a_stop_waits_and_then_cancels(serve, client, record):
    server = await serve()
    call = asyncio.create_task(ask(client, server, "hang"))
    await until_async(lambda: record)
    await server.stop(0.01)
    assert record[-1] == "cancelled"
    with pytest.raises(aiohttp.ClientError):
        await call


async def test_a_timeout_counts_from_the_sending(serve, client, record):
    server = await serve()
    synapse = Echo(text="hang")
    with pytest.raises(TimeoutError):
        await client.call(target(server), synapse, 0.05)
    assert synapse.dendrite.process_time is None
    await until_async(lambda: record[-1] == "cancelled")


async def test_what_is_left_of_a_timeout_bounds_it_and_is_not_told(
    serve, client, record
):
    server = await serve()
    synapse = Echo(text="hang")
    with pytest.raises(TimeoutError):
        await client.call(target(server), synapse, 3600, left=0.05)
    assert record[0].timeout == synapse.timeout == 3600
    stream = Stream(count=2000)
    with pytest.raises(TimeoutError):
        [_ async for _ in client.stream(target(server), stream, 3600, left=0.2)]
    await until_async(lambda: {"cancelled", "stopped"} <= set(map(str, record)))


async def test_nobody_there_and_nobody_serving(client):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.call(target(port), Echo(), 5)
    for nowhere in (AxonInfo(ip="1.2.3.4", port=0), AxonInfo(ip="0", port=80)):
        with pytest.raises(aiohttp.ClientConnectorError, match="does not serve"):
            await client.call(nowhere, Echo(), 5)


async def test_a_connection_that_takes_too_long(client):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        full = [socket.socket() for _ in range(4)]
        for each in full:
            each.setblocking(False)
            each.connect_ex(sock.getsockname())
        with pytest.raises(TimeoutError):
            await client.call(target(sock.getsockname()[1]), Echo(), 5, 0.05)
        for each in full:
            each.close()


class Scripted:
    """A server that answers each connection by a script."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.requests = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            for answer in script:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(
                    next(
                        x
                        for x in head.split(b"\r\n")
                        if x.lower().startswith(b"content-length")
                    ).split(b":")[1]
                )
                self.requests.append(head + await reader.readexactly(length))
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def ok(body=b"{}", *headers, status="200 OK", kind="application/json"):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    if kind:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_a_kept_connection_that_was_closed_is_no_failure(client):
    async with Scripted([ok()], [ok(b'{"text": "again"}')]) as server:
        first, second = Echo(), Echo()
        await client.call(target(server.port), first, 10)
        # It is closed by now, and whether the client has seen that is chance.
        await client.call(target(server.port), second, 10)
        assert second.text == "again"


async def test_a_request_is_sent_again_as_it_was(client):
    # The second request on the first connection is read, and the connection closed.
    async with Scripted([ok(), b""], [ok()]) as server:
        await client.call(target(server.port), Echo(), 10)
        await client.call(target(server.port), Echo(), 10)
        assert len(server.requests) == 3
        assert server.requests[1] == server.requests[2]


async def test_what_was_refused_the_second_time_was_lost_the_first(client):
    refused = ok(b'{"message": "used"}', status="401 Unauthorized")
    async with Scripted([ok(), b""], [refused]) as server:
        await client.call(target(server.port), Echo(), 10)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.call(target(server.port), Echo(), 10)


async def test_a_new_connection_that_is_closed_is_a_failure(client):
    async with Scripted([b""]) as server:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.call(target(server.port), Echo(), 10)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ok(b"<html>", kind="text/html"), ValueError),
        (ok(b"x", kind="text/html", status="502 Bad"), aiohttp.ContentTypeError),
        (ok(b"{}", kind=None), ValueError),
        (ok(b"{"), ValueError),
        (ok(b""), TypeError),
        (ok(b"[]"), TypeError),
        (ok(b'{"text": 5}'), ValueError),
        (ok(b"[" * 100_000), RecursionError),
        (ok(b"{}", "bt_header_axon_port: x"), ValueError),
        (ok(b"{}")[:-1], aiohttp.ClientPayloadError),
        (ok(b"x" * 2000), aiohttp.ClientPayloadError),
        (
            ok(gzip.compress(b" " * 5000), "Content-Encoding: gzip"),
            aiohttp.ClientPayloadError,
        ),
        (ok(b"no", "Content-Encoding: gzip"), aiohttp.ClientPayloadError),
        (ok(b"no", "Content-Encoding: br"), aiohttp.ClientPayloadError),
        (
            ok(gzip.compress(b"{}")[:-9], "Content-Encoding: gzip"),
            aiohttp.ClientPayloadError,
        ),
        (b"what?\r\n\r\n", aiohttp.ClientError),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\n\r\n"
            + b"400\r\n%s\r\n"
            % (b" " * 1024)
            * 3,
            aiohttp.ClientPayloadError,
        ),
    ],
)
async def test_answers_that_are_none(client, answer, error):
    client.max_response_bytes = 1500 if len(answer) < 50_000 else 1 << 20
    async with Scripted([answer]) as server:
        synapse = Echo(text="mine")
        with pytest.raises(error):
            await client.call(target(server.port), synapse, 10)
        assert synapse.text == "mine"
        assert synapse.dendrite.process_time is None


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_compressed_answer(client, pack):
    name = "gzip" if pack is gzip.compress else "deflate"
    packed = pack(b'{"text": "small"}')
    async with Scripted([ok(packed, f"Content-Encoding: {name}")]) as server:
        synapse = Echo()
        await client.call(target(server.port), synapse, 10)
        assert synapse.text == "small"


async def test_redirects_are_not_followed_and_cookies_not_kept(client):
    moved = ok(
        b"{}", "Location: http://127.0.0.1:1/", "Set-Cookie: a=b", status="307 Moved"
    )
    async with Scripted([moved, ok()]) as server:
        synapse = Echo()
        await client.call(target(server.port), synapse, 10)
        assert synapse.dendrite.status_code == 307
        await client.call(target(server.port), Echo(), 10)
        assert b"ookie" not in server.requests[1]


async def test_hooks_take_the_place_of_what_is_built_in(serve, client):
    server = await serve()
    seen = []
    synapse = client.prepare(target(server), Echo(text="x"), 10)
    nonce = synapse.dendrite.nonce
    await client.call(
        AxonInfo(ip="1.1.1.1", port=1),
        synapse,
        10,
        prepared=True,
        url=f"http://127.0.0.1:{server.port}/Echo",
        process=lambda response, data, given: seen.append((response.status, data)),
    )
    assert seen[0][0] == 200
    assert seen[0][1]["answer"] == "X"
    assert synapse.answer is None
    assert synapse.dendrite.nonce == nonce


# Keys.


async def test_a_key_that_signs_asynchronously_or_not_at_all(serve):
    server = await serve()

    async def later(text):
        return VALIDATOR.sign(text)

    key = SimpleNamespace(ss58_address=VALIDATOR_HOTKEY, sign=later)
    client = HttpClient(key, "u")
    assert (await ask(client, server, "x")).is_success
    with pytest.raises(SigningError, match="asynchronously"):
        client.prepare(target(server), Echo(), 1)
    key.sign = lambda text: "0x" + VALIDATOR.sign(text).hex()
    assert (await ask(client, server, "x")).is_success
    key.sign = lambda text: 1 / 0
    with pytest.raises(SigningError, match="division"):
        await ask(client, server, "x")
    key.sign = lambda text: None
    with pytest.raises(SigningError, match="NoneType"):
        await ask(client, server, "x")
    await client.aclose()


# Streams.


async def streamed(client, server, **fields):
    synapse = Stream(**fields)
    return [item async for item in client.stream(target(server), synapse, 10)]


@pytest.mark.parametrize("count", [0, 1, 7, 300])
async def test_streams(serve, client, count):
    server = await serve()
    *chunks, last = await streamed(client, server, count=count)
    assert "".join(chunks) == "".join(f"{n} " for n in range(count))
    assert last.completion == "".join(chunks)
    assert last.dendrite.status_code == last.axon.status_code == 200
    assert last.dendrite.status_message == "Success"
    assert last.dendrite.process_time > 0
    assert last.axon.hotkey == MINER_HOTKEY


async def test_a_stream_that_fails_at_once_is_a_500(serve, client, caplog):
    server = await serve()
    *_, last = await streamed(client, server, fail_at=0)
    assert last.dendrite.status_code == 500
    assert last.dendrite.status_message.startswith("Internal Server Error #")
    assert "the stream of Stream failed" in caplog.text


async def test_a_stream_that_fails_later_does_not_end_well(serve, client):
    server = await serve()
    synapse = Stream(count=5, fail_at=2)
    with pytest.raises(aiohttp.ClientPayloadError):
        [item async for item in client.stream(target(server), synapse, 10)]
    assert synapse.completion == "0 1 "


async def test_a_stream_left_early_stops_the_work(serve, client, record):
    server = await serve()
    made = client.stream(target(server), Stream(count=2000), 10)
    async for _ in made:
        break
    await made.aclose()
    await until_async(lambda: record == ["stopped"])
    await until_async(lambda: not server._connections)


async def test_a_stream_has_a_timeout_and_a_limit(serve, client, record):
    server = await serve()
    with pytest.raises(TimeoutError):
        async for _ in client.stream(target(server), Stream(count=2000), 0.2):
            pass
    client.max_response_bytes = 10
    with pytest.raises(aiohttp.ClientPayloadError):
        async for _ in client.stream(target(server), Stream(count=100), 10):
            pass
    await until_async(lambda: "stopped" in record)


async def test_a_refused_stream_tells_its_status(serve, client):
    server = await serve()
    other = AxonInfo(ip="127.0.0.1", port=server.port, hotkey=VALIDATOR_HOTKEY)
    *_, last = [item async for item in client.stream(other, Stream(), 10)]
    assert last.dendrite.status_code == 401


@pytest.mark.parametrize(
    ("headers", "body"),
    [(["Content-Encoding: gzip"], b"x"), ([], b"x" * 200)],
)
async def test_streams_that_were_not_asked_for(client, headers, body):
    client.max_response_bytes = 100
    async with Scripted([ok(body, *headers)]) as server:
        with pytest.raises(aiohttp.ClientPayloadError):
            await streamed(client, server.port)


# Loops and threads.


def test_a_client_serves_any_loop_and_says_nothing_at_the_end(axon, recwarn):
    """Each loop has its own connections, closed with it, nothing left to warn of."""
    port, stop, loops = [], threading.Event(), []

    async def run_server():
        pool = PriorityThreadPoolExecutor(max_workers=1)
        server = HttpServer(Dispatch(axon, object(), pool, most_workers=1), axon)
        await server.start("127.0.0.1", 0)
        port.append(server.port)
        await asyncio.to_thread(stop.wait)
        await server.stop()
        pool.shutdown()

    thread = threading.Thread(target=asyncio.run, args=(run_server(),))
    thread.start()
    until(lambda: port)
    client = HttpClient(VALIDATOR, "u")

    async def use():
        loops.append(asyncio.get_running_loop())
        return (await ask(client, port[0], "x")).is_success

    try:
        for _ in range(3):
            assert asyncio.run(use())
        others = []
        threads = [
            threading.Thread(target=lambda: others.append(asyncio.run(use())))
            for _ in range(3)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert others == [True] * 3
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(use())
        assert len(client._held) <= 4
        client.close()
        loop.run_until_complete(asyncio.sleep(0.01))
        assert loop.run_until_complete(use())
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

        async def drop():
            dropped = HttpClient(VALIDATOR, "u")
            assert (await ask(dropped, port[0], "x")).is_success
            del dropped
            await asyncio.sleep(0.01)

        asyncio.run(drop())
        gc.collect()
        assert not [w for w in recwarn if "nclosed" in str(w.message)]
    finally:
        stop.set()
        thread.join()


def test_a_loop_that_was_closed_at_once_leaves_nothing_to_say(axon, recwarn):
    """Where a loop is closed without ceremony, its connections are just let go."""
    client = HttpClient(VALIDATOR, "u")

    async def refused():
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.call(AxonInfo(ip="127.0.0.1", port=1), Echo(), 5)

    for _ in range(2):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(refused())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert len(client._held) == 1
    client.close()
    gc.collect()
    assert not [w for w in recwarn if "nclosed" in str(w.message)]


async def test_closing_from_another_thread(serve, client):
    server = await serve()
    await ask(client, server, "x")
    held = client._held[asyncio.get_running_loop()]
    await asyncio.to_thread(client.close)
    await until_async(lambda: held.session.closed)
    assert (await ask(client, server, "x")).is_success


async def test_a_session_that_was_closed_is_not_used_again(serve, client):
    server = await serve()
    await ask(client, server, "x")
    await client._held[asyncio.get_running_loop()].session.close()
    assert (await ask(client, server, "x")).is_success


def test_uvloop(axon):
    uvloop = pytest.importorskip("uvloop")

    async def both():
        pool = PriorityThreadPoolExecutor(max_workers=1)
        server = HttpServer(Dispatch(axon, object(), pool, most_workers=1), axon)
        await server.start("127.0.0.1", 0)
        client = HttpClient(VALIDATOR, "u")
        synapse = Echo(text="x")
        # What a header may say and uvloop's timers may not take.
        await client.call(target(server), synapse, 1e300)
        *_, last = await streamed(client, server)
        assert last.is_success
        # The connection is left open, and closed with the loop.
        await server.stop()
        pool.shutdown()
        return synapse.is_success

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(both())


def test_what_is_missing_is_said():
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "for name in ('http_client', 'http_server'):\n"
        "    try: __import__('lightning.dropin.' + name)\n"
        "    except ImportError as error: print(error)\n"
        "import lightning.dropin.http_headers, lightning.dropin.http_auth"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told.count("pip install 'bittensor-lightning[http]'") == 2
