"""An axon answers over QUIC what is attached, and says of each refusal what it was."""

import argparse
import asyncio
import copy
import logging
import socket
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import pydantic
import pytest

from lightning import Lightning, LightningServerConfig, QuicAxonInfo
from lightning.dropin.axon import Axon, PortError
from lightning.dropin.dispatch import ping
from lightning.dropin.exceptions import (
    SynapseDendriteNoneException,
    SynapseException,
    UnknownSynapseError,
)
from lightning.dropin.settings import Config
from lightning.dropin.streaming import StreamingSynapse
from lightning.dropin.synapse import Synapse
from lightning.errors import ConfigError, HandshakeError, StreamError
from tests.support.identities import MINER, VALIDATOR
from tests.support.waiting import until

META = {"timeout": 20.0, "uuid": "u-1", "nonce": 12345, "version": 10005000}
MARK = b"\x01mark\xff\x00\x02"


class Echo(Synapse):
    n: int = pydantic.Field(0, ge=0)
    text: str = ""
    reply: str | None = None


class Other(Synapse):
    reply: str = "other"


class Words(StreamingSynapse):
    seen: ClassVar[list] = []
    count: int = 0

    async def process_streaming_response(self, response):
        yield b""

    def extract_response_json(self, response):
        return {}


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["miner"])
    for name in ("PORT", "IP", "EXTERNAL_PORT", "EXTERNAL_IP", "MAX_WORKERS"):
        monkeypatch.delenv(f"BT_AXON_{name}", raising=False)


@pytest.fixture
def make_axon():
    axons = []

    def make(**settings):
        settings = {"port": 0, "external_ip": "127.0.0.1", "http": False} | settings
        axons.append(Axon(MINER, **settings))
        return axons[-1]

    yield make
    for axon in axons:
        axon.stop()


@pytest.fixture
def client():
    with Lightning(VALIDATOR.ss58_address, signer=VALIDATOR) as made:
        yield made


class Caller:
    """Asks an axon as a dendrite does, or as a plain client."""

    def __init__(self, client, axon):
        self.client = client
        self.to = QuicAxonInfo(MINER.ss58_address, "127.0.0.1", axon.port)

    def raw(self, name, **data):
        return self.client.query_axon(self.to, {"synapse_type": name, "data": data})

    def ask(self, name, meta=META, **data):
        answer = self.raw(name, **data, _lightning=meta)
        assert answer["success"]
        told = answer["data"].pop("_lightning")
        return (told["status_code"], told["status_message"]), answer["data"]

    def stream(self, name, **data):
        return self.client.query_axon_stream(
            self.to, {"synapse_type": name, "data": data}
        )


@pytest.fixture
def serve(make_axon, client):
    def serve(*attached, **settings):
        axon = make_axon(**settings)
        for each in attached:
            axon.attach(**each) if isinstance(each, dict) else axon.attach(each)
        axon.start()
        return Caller(client, axon)

    return serve


def echo(synapse: Echo) -> Echo:
    synapse.reply = synapse.text[::-1]
    return synapse


async def echo_later(synapse: Echo) -> Echo:
    await asyncio.sleep(0)
    return echo(synapse)


BOTH = pytest.mark.parametrize("forward", [echo, echo_later])


@BOTH
def test_what_is_attached_answers(serve, forward):
    caller = serve(forward)
    assert caller.ask("Echo", n=0, text="abc") == ((200, "Success"), {"reply": "cba"})


@BOTH
def test_a_plain_client_is_answered_with_all_fields(serve, forward):
    answer = serve(forward).raw("Echo", text="abc")
    assert answer["success"]
    assert answer["data"] == {"n": 0, "text": "abc", "reply": "cba"}


def test_a_synapse_itself_is_a_ping(serve):
    assert serve().ask("Synapse") == ((200, "Success"), {})


@pytest.mark.parametrize("is_async", [False, True])
def test_all_functions_see_the_whole_synapse_in_this_order(serve, is_async):
    seen = []

    def note(role, result):
        def plain(synapse: Echo):
            seen.append((role, synapse))
            return synapse if result is None else result

        async def later(synapse: Echo):
            return plain(synapse)

        return later if is_async else plain

    caller = serve(
        {
            "forward_fn": note("forward", None),
            "blacklist_fn": note("blacklist", (False, "")),
            "priority_fn": note("priority", 2.0),
            "verify_fn": note("verify", False),
        }
    )
    before = time.time_ns()
    assert caller.ask("Echo", n=3, text="x")[0] == (200, "Success")
    assert [role for role, _ in seen] == ["blacklist", "verify", "priority", "forward"]
    (synapse,) = {id(each): each for _, each in seen}.values()
    assert (synapse.n, synapse.text, synapse.timeout) == (3, "x", 20.0)
    dendrite, axon = synapse.dendrite, synapse.axon
    assert dendrite.hotkey == VALIDATOR.ss58_address
    assert (dendrite.ip, dendrite.uuid) == ("127.0.0.1", "u-1")
    assert (dendrite.nonce, dendrite.version) == (12345, 10005000)
    assert dendrite.port > 0
    assert (axon.hotkey, axon.port) == (MINER.ss58_address, caller.to.port)
    assert axon.version == 10005000
    assert axon.nonce >= before
    assert len(axon.uuid) == 36
    # They are what they would be if they had been validated.
    assert type(axon).model_validate(axon.model_dump()) == axon
    dendrite.port = "17"
    assert dendrite.port == 17


@pytest.mark.parametrize(
    "meta", [{}, {"timeout": "x", "uuid": 5, "nonce": "", "version": 1.5}]
)
def test_what_a_dendrite_says_of_itself_is_checked(serve, meta):
    seen = []

    def forward(synapse: Echo) -> Echo:
        seen.append(synapse)
        return synapse

    assert serve(forward).ask("Echo", meta)[0] == (200, "Success")
    dendrite = seen[0].dendrite
    assert (dendrite.uuid, dendrite.nonce, dendrite.version) == (None, None, None)
    assert seen[0].timeout == 12.0


@BOTH
@pytest.mark.parametrize(
    ("result", "told"),
    [
        ((True, "no stake"), "Forbidden. Key is blacklisted: no stake."),
        (True, "Forbidden. Key is blacklisted: ."),
        ([1, None], "Forbidden. Key is blacklisted: None."),
    ],
)
def test_who_is_blacklisted_is_refused(serve, forward, result, told):
    caller = serve({"forward_fn": forward, "blacklist_fn": lambda s: result})
    assert caller.ask("Echo") == ((403, told), {})
    assert caller.raw("Echo")["error"] == told


@BOTH
def test_a_blacklist_may_let_in_by_other_texts(serve, forward):
    caller = serve({"forward_fn": forward, "blacklist_fn": lambda s: [0, "x"]})
    assert caller.ask("Echo")[0] == (200, "Success")


def fail(synapse):
    raise ValueError("the secret reason")


@BOTH
@pytest.mark.parametrize("role", ["forward_fn", "blacklist_fn", "priority_fn"])
def test_what_fails_is_told_by_a_number_and_logged(serve, forward, role, caplog):
    def broken(synapse: Echo) -> Echo:
        fail(synapse)

    async def broken_later(synapse: Echo) -> Echo:
        fail(synapse)

    wrong = broken if forward is echo else broken_later
    caller = serve({"forward_fn": forward, role: wrong})
    (code, message), data = caller.ask("Echo")
    assert (code, data) == (500, {})
    assert message.startswith("Internal Server Error #")
    number = message.partition("#")[2]
    assert (
        f"Echo failed, told as #{number}: ValueError: the secret reason" in caplog.text
    )
    assert "secret" not in str(caller.raw("Echo"))


@BOTH
def test_a_verification_that_raises_refuses(serve, forward):
    caller = serve({"forward_fn": forward, "verify_fn": fail})
    assert caller.ask("Echo")[0] == (401, "Not Verified with error: the secret reason")


@BOTH
def test_a_priority_that_takes_too_long_refuses(serve, forward):
    def late(synapse: Echo) -> float:
        raise TimeoutError

    caller = serve({"forward_fn": forward, "priority_fn": late})
    assert caller.ask("Echo")[0] == (408, "Response timeout after: 20.0s")


@BOTH
@pytest.mark.parametrize("value", [None, "high", float("nan"), 10**400, True, 5])
def test_a_priority_may_be_anything(serve, forward, value):
    caller = serve({"forward_fn": forward, "priority_fn": lambda s: value})
    assert caller.ask("Echo")[0] == (200, "Success")


@pytest.mark.parametrize("message", ["no\nroom", "Привет", "x" * 9000, "", "\ud800"])
def test_a_function_says_its_own_status(serve, message):
    def forward(synapse: Echo) -> Echo:
        synapse.axon.status_code = 429
        synapse.axon.__dict__["status_message"] = message
        synapse.reply = "unheard"
        return synapse

    (code, told), data = serve(forward).ask("Echo")
    assert (code, data) == (429, {})
    assert told == (ascii(message) if message == "\ud800" else message)


def test_a_function_may_praise_itself(serve):
    def forward(synapse: Echo) -> Echo:
        synapse.axon.status_code = "200"
        synapse.axon.status_message = "Well done"
        return synapse

    assert serve(forward).ask("Echo") == (
        (200, "Well done"),
        {"n": 0, "reply": None, "text": ""},
    )


@pytest.mark.parametrize("without", [False, True])
def test_an_exception_may_bring_its_status(serve, without):
    def forward(synapse: Echo) -> Echo:
        if without:
            raise UnknownSynapseError("who knows")
        synapse.axon.status_code = 418
        raise SynapseException("a teapot", synapse=synapse)

    wanted = (404, "who knows") if without else (418, "a teapot")
    assert serve(forward).ask("Echo")[0] == wanted


def test_another_synapse_may_be_the_answer(serve):
    def forward(synapse: Echo) -> Other:
        return Other(reply="mine")

    assert serve(forward).ask("Echo", n=1) == ((200, "Success"), {"reply": "mine"})


@BOTH
@pytest.mark.parametrize("result", [None, {"reply": "x"}, 7, Echo])
def test_what_is_no_synapse_is_no_answer(serve, forward, result):
    def wrong(synapse: Echo) -> Echo:
        return result

    async def wrong_later(synapse: Echo) -> Echo:
        return result

    caller = serve(wrong if forward is echo else wrong_later)
    assert caller.ask("Echo")[0][0] == 500


@BOTH
def test_a_stream_is_no_answer_where_none_was_asked_for(serve, forward):
    def wrong(synapse: Echo) -> Echo:
        return SimpleNamespace(token_streamer=None, synapse=synapse)

    async def wrong_later(synapse: Echo) -> Echo:
        return wrong(synapse)

    caller = serve(wrong if forward is echo else wrong_later)
    assert caller.ask("Echo")[0][0] == 500


@BOTH
def test_data_that_do_not_fit_are_refused_without_details(serve, forward):
    (code, message), _ = serve(forward).ask("Echo", n=-5)
    assert code == 500
    assert message.startswith("Internal Server Error #")


def test_an_unknown_synapse_is_refused_by_the_names_that_there_are(serve):
    caller = serve(echo)
    assert caller.ask("Nope")[0] == (
        404,
        "Synapse name 'Nope' not found. Available synapses ['Synapse', 'Echo']",
    )
    assert caller.raw("Nope")["error"] == "unrecognized synapse type"
    chunks = list(caller.stream("Nope", _lightning={"mark": MARK}))
    assert len(chunks) == 2
    assert all(chunk.startswith(MARK) and b"Nope" in chunk for chunk in chunks)


def test_the_tables_may_be_changed_at_any_time(serve, make_axon, client):
    axon = make_axon().attach(echo).start()
    caller = Caller(client, axon)
    assert caller.ask("Echo")[0][0] == 200
    axon.blacklist_fns["Echo"] = lambda s: (True, "now")
    assert caller.ask("Echo")[0][0] == 403

    async def refuse(synapse):
        raise ValueError("never")

    axon.blacklist_fns["Echo"] = None
    axon.verify_fns["Echo"] = refuse
    assert caller.ask("Echo")[0] == (401, "Not Verified with error: never")
    axon.verify_fns["Echo"] = None
    axon.forward_fns["Echo"] = echo_later
    assert caller.ask("Echo", n=0, text="ab") == ((200, "Success"), {"reply": "ba"})
    del axon.forward_class_types["Echo"]
    assert caller.ask("Echo")[0][0] == 404


def test_attaching_a_name_again_replaces(make_axon, client):
    axon = make_axon().attach(echo, blacklist_fn=lambda s: True).start()
    caller = Caller(client, axon)
    assert caller.ask("Echo")[0][0] == 403
    axon.attach(echo_later)
    assert caller.ask("Echo", n=0, text="ab") == ((200, "Success"), {"reply": "ba"})
    assert axon.blacklist_fns == {"Synapse": None, "Echo": None}
    assert axon.verify_fns["Echo"] == axon.default_verify


@pytest.mark.parametrize(
    "role", ["blacklist_fn", "verify_fn", "priority_fn", "forward_fn"]
)
def test_what_is_async_after_all_is_awaited(serve, role):
    results = {"blacklist_fn": (False, ""), "verify_fn": None, "priority_fn": 1.0}

    async def later(synapse):
        await asyncio.sleep(0)
        return results.get(role, synapse)

    def looks_plain(synapse: Echo):
        return later(synapse)

    caller = serve({"forward_fn": echo, role: looks_plain})
    for _ in range(2):
        assert caller.ask("Echo", text="a")[0] == (200, "Success")


def test_a_verification_may_ask_for_the_default_one(make_axon, client):
    axon = make_axon()

    async def verify(synapse: Echo) -> None:
        await axon.default_verify(synapse)

    axon.attach(echo, verify_fn=verify).start()
    assert Caller(client, axon).ask("Echo")[0] == (200, "Success")


async def test_the_default_verification_wants_a_signature(make_axon):
    axon = make_axon()
    with pytest.raises(HandshakeError):
        await axon.default_verify(Synapse())
    synapse = Synapse()
    synapse.__dict__["dendrite"] = None
    with pytest.raises(SynapseDendriteNoneException):
        await axon.default_verify(synapse)


# Workers.


class Slow(Synapse):
    n: int = 0


def slow(gate, order):
    def forward(synapse: Slow) -> Slow:
        order.append(synapse.n)
        assert gate.wait(20)
        return synapse

    return forward


def in_background(caller, *numbers, answers=None):
    threads = []
    for n in numbers:

        def run(n=n):
            answer = caller.ask("Slow", n=n)
            if answers is not None:
                answers.append((n, answer[0]))

        threads.append(threading.Thread(target=run))
        threads[-1].start()
    return threads


def test_requests_wait_by_priority_and_too_many_are_refused(make_axon, client):
    gate, order, answers = threading.Event(), [], []
    axon = make_axon(
        max_workers=1, server_config=LightningServerConfig(max_queued_requests=3)
    )
    axon.attach(slow(gate, order), priority_fn=lambda s: float(s.n)).start()
    caller = Caller(client, axon)
    work = axon._dispatch.gate
    threads = in_background(caller, 0, answers=answers)
    until(lambda: order == [0])
    for waiting, n in enumerate((1, 3, 2), 1):
        threads += in_background(caller, n, answers=answers)
        until(lambda waiting=waiting: work.waiting == waiting)
    # The least of all is refused, be it the newcomer.
    status, _ = caller.ask("Slow", n=0)
    assert status == (503, "Service busy: 3 requests wait already")
    assert caller.raw("Slow", n=0)["error"] == "server busy"
    threads += in_background(caller, 9, answers=answers)
    until(lambda: (1, (503, status[1])) in answers)
    # Nobody who pings has to wait.
    assert caller.ask("Synapse")[0] == (200, "Success")
    gate.set()
    for thread in threads:
        thread.join(20)
    assert order == [0, 9, 3, 2]
    # The last answer leaves a moment before its worker does.
    until(lambda: (work.running, work.waiting) == (0, 0))


def test_so_many_plain_functions_run_at_once(make_axon, client):
    gate, order = threading.Event(), []
    axon = make_axon(max_workers=3).attach(slow(gate, order)).start()
    threads = in_background(Caller(client, axon), *range(6))
    until(lambda: len(order) == 3 and axon._dispatch.gate.waiting == 3)
    gate.set()
    for thread in threads:
        thread.join(20)
    assert sorted(order) == list(range(6))


def test_who_has_gone_does_not_wait_any_more(make_axon, client):
    gate, order = threading.Event(), []
    axon = make_axon(max_workers=1).attach(slow(gate, order)).start()
    caller = Caller(client, axon)
    threads = in_background(caller, 0)
    until(lambda: order == [0])
    with pytest.raises(TimeoutError):
        client.query_axon(
            caller.to, {"synapse_type": "Slow", "data": {"n": 1}}, timeout_secs=0.2
        )
    until(lambda: axon._dispatch.gate.waiting == 0)
    gate.set()
    for thread in threads:
        thread.join(20)
    assert order == [0]


def test_who_waits_no_longer_than_that_is_not_begun(make_axon, client):
    gate, order = threading.Event(), []
    axon = make_axon(max_workers=1).attach(slow(gate, order)).start()
    caller = Caller(client, axon)
    threads = in_background(caller, 0)
    until(lambda: order == [0])
    told = []
    late = threading.Thread(
        target=lambda: told.append(caller.ask("Slow", {**META, "timeout": 0.01}, n=1))
    )
    late.start()
    until(lambda: axon._dispatch.gate.waiting == 1)
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 0.02)
    gate.set()
    for thread in [*threads, late]:
        thread.join(20)
    assert told == [((408, "Response timeout after: 0.01s"), {})]
    assert order == [0]


def test_an_async_function_ends_with_its_callers_patience(serve):
    ended = threading.Event()

    async def forward(synapse: Slow) -> Slow:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return synapse

    caller = serve(forward)
    status, _ = caller.ask("Slow", {**META, "timeout": 0.05})
    assert status == (408, "Response timeout after: 0.05s")
    assert ended.is_set()
    ended.clear()
    with pytest.raises(TimeoutError):
        caller.client.query_axon(caller.to, {"synapse_type": "Slow"}, timeout_secs=0.1)
    assert ended.wait(20)


def test_async_functions_may_be_bounded_as_well(make_axon, client):
    order, free = [], None

    async def forward(synapse: Slow) -> Slow:
        nonlocal free
        order.append(synapse.n)
        if free is None:
            free = asyncio.Event()
        await free.wait()
        return synapse

    axon = make_axon(
        server_config=LightningServerConfig(
            max_concurrent_requests=1, max_queued_requests=2
        )
    )
    axon.attach(forward, priority_fn=lambda s: s.n).start()
    caller, answers = Caller(client, axon), []
    work = axon._dispatch.async_gate
    threads = in_background(caller, 0, answers=answers)
    until(lambda: order == [0])
    for waiting, n in enumerate((1, 2), 1):
        threads += in_background(caller, n, answers=answers)
        until(lambda waiting=waiting: work.waiting == waiting)
    assert caller.ask("Slow", n=0)[0][0] == 503
    threads += in_background(caller, 7, answers=answers)
    until(lambda: [n for n, (code, _) in answers if code == 503] == [1])
    with pytest.raises(TimeoutError):
        client.query_axon(
            caller.to, {"synapse_type": "Slow", "data": {"n": 9}}, timeout_secs=0.2
        )
    until(lambda: work.waiting == 1)
    axon.server._post(free.set)
    for thread in threads:
        thread.join(20)
    assert order[:2] == [0, 7]
    until(lambda: (work.running, work.waiting) == (0, 0))


def test_a_slow_plain_function_does_not_hold_up_the_loop(make_axon, client):
    gate = threading.Event()

    def blacklist(synapse: Slow):
        if synapse.n:
            assert gate.wait(20)
        return False, ""

    async def forward(synapse: Slow) -> Slow:
        return synapse

    axon = make_axon().attach(forward, blacklist_fn=blacklist).start()
    caller = Caller(client, axon)
    threads = in_background(caller, 1)
    assert caller.ask("Slow", n=0)[0] == (200, "Success")
    gate.set()
    for thread in threads:
        thread.join(20)
    # Those that are quick are not sent to a thread for ever.
    for _ in range(60):
        caller.ask("Slow", n=0)
    assert axon._dispatch.route("Slow").blacklist.seconds < 0.002


# Streams.


def words(ending=None, before=None):
    async def forward(synapse: Words):
        if before is not None:
            before(synapse)

        async def streamer(send):
            await send({"type": "http.response.start", "status": 200})
            for n in range(synapse.count):
                await send(
                    {
                        "type": "http.response.body",
                        "body": b"w%d" % n,
                        "more_body": True,
                    }
                )
            if ending is not None:
                await ending(send, synapse)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await send({"type": "http.response.body", "body": b"too late"})

        return synapse.create_streaming_response(streamer)

    return forward


def marked(chunks):
    """Split chunks into the first status, the body and the last status."""
    import msgspec

    chunks = list(chunks)
    assert chunks[0].startswith(MARK)
    assert chunks[-1].startswith(MARK)
    head, tail = (
        msgspec.msgpack.decode(c[len(MARK) :]) for c in (chunks[0], chunks[-1])
    )
    return head, chunks[1:-1], tail


STREAM = {**META, "mark": MARK}


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_stream_arrives_between_its_statuses(serve, count):
    caller = serve(words())
    head, body, tail = marked(caller.stream("Words", count=count, _lightning=STREAM))
    assert body == [b"w%d" % n for n in range(count)]
    assert (head["status_code"], head["status_message"]) == (200, "Success")
    assert (tail["status_code"], tail["status_message"]) == (200, "Success")
    assert tail["process_time"] > 0
    headers = dict(head["headers"])
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"name"] == b"Words"
    assert headers[b"bt_header_axon_status_code"] == b"200"
    assert headers[b"bt_header_dendrite_hotkey"] == VALIDATOR.ss58_address.encode()
    # A plain client has the words alone.
    assert list(caller.stream("Words", count=count)) == body


def test_a_plain_function_may_return_a_stream(serve):
    def forward(synapse: Words):
        async def streamer(send):
            await send({"type": "http.response.body", "body": b"x", "more_body": False})

        return synapse.create_streaming_response(streamer)

    assert list(serve(forward).stream("Words")) == [b"x"]


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_in_a_stream_is_told_as_such(serve, count):
    async def ending(send, synapse):
        raise ValueError("the secret reason")

    caller = serve(words(ending))
    head, body, tail = marked(caller.stream("Words", count=count, _lightning=STREAM))
    assert len(body) == count
    assert tail["status_code"] == 500
    assert tail["status_message"].startswith("Internal Server Error #")
    assert head["status_code"] == (200 if count else 500)
    with pytest.raises(StreamError):
        list(caller.stream("Words", count=count))


def test_a_status_may_be_raised_in_a_stream(serve):
    async def ending(send, synapse):
        synapse.axon.status_code = 418
        synapse.axon.status_message = None
        raise SynapseException("a teapot", synapse=synapse)

    _, _, tail = marked(
        serve(words(ending)).stream("Words", count=1, _lightning=STREAM)
    )
    assert (tail["status_code"], tail["status_message"]) == (418, "a teapot")


def test_a_streamer_that_speaks_nonsense_fails(serve):
    async def ending(send, synapse):
        await send({"type": "websocket.send"})

    _, _, tail = marked(serve(words(ending)).stream("Words", _lightning=STREAM))
    assert tail["status_code"] == 500


def test_a_stream_ends_with_its_callers_patience(serve):
    async def ending(send, synapse):
        await asyncio.sleep(30)

    meta = {**STREAM, "timeout": 0.2}
    _, body, tail = marked(
        serve(words(ending)).stream("Words", count=1, _lightning=meta)
    )
    assert body == [b"w0"]
    assert (tail["status_code"], tail["status_message"]) == (
        408,
        "Response timeout after: 0.2s",
    )


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"forward_fn": words(), "blacklist_fn": lambda s: (True, "no")}, 403),
        ({"forward_fn": words(before=fail)}, 500),
    ],
)
def test_a_stream_may_be_refused(serve, settings, code):
    caller = serve(settings)
    head, body, tail = marked(caller.stream("Words", count=1, _lightning=STREAM))
    assert (head["status_code"], body, tail["status_code"]) == (code, [], code)
    with pytest.raises(StreamError):
        list(caller.stream("Words", count=1))


def test_data_of_a_stream_that_do_not_fit_are_refused(serve):
    chunks = serve(words()).stream("Words", count="many", _lightning=STREAM)
    assert marked(chunks)[0]["status_code"] == 500


def test_a_whole_synapse_may_answer_for_a_stream(serve):
    def forward(synapse: Words) -> Words:
        return synapse

    caller = serve(forward)
    _, body, tail = marked(caller.stream("Words", count=7, _lightning=STREAM))
    assert pydantic.TypeAdapter(dict).validate_json(body[0])["count"] == 7
    assert tail["status_code"] == 200


def test_the_streamer_stops_when_the_client_leaves(serve):
    stopped = threading.Event()

    async def ending(send, synapse):
        try:
            while True:
                await send(
                    {
                        "type": "http.response.body",
                        "body": b"x" * 1000,
                        "more_body": True,
                    }
                )
        finally:
            stopped.set()

    stream = serve(words(ending)).stream("Words", _lightning=STREAM)
    next(stream)
    next(stream)
    stream.close()
    assert stopped.wait(20)


# Life.


def test_it_is_bound_when_start_returns_and_may_be_restarted(make_axon, client):
    axon = make_axon().attach(echo)
    assert not axon.started
    assert "stopped" in str(axon)
    assert axon.stop() is axon
    assert axon.start() is axon
    port = axon.port
    assert port > 0
    assert axon.external_port == port
    assert axon.full_address == f"[::]:{port}"
    assert axon.start() is axon
    assert axon.started
    assert Caller(client, axon).ask("Echo")[0][0] == 200
    assert axon.server.stats().handlers
    axon.stop()
    assert not axon.started
    with axon:
        assert axon.port == port
        assert Caller(client, axon).ask("Echo")[0][0] == 200
    axon.stop()


def test_both_transports_have_the_same_port(make_axon):
    axon = make_axon(http=None).start()
    assert axon._http_server.port == axon.port == axon.server.local_addr().port


@pytest.mark.parametrize("kind", ["UDP", "TCP"])
def test_a_port_that_is_taken_is_named(make_axon, kind):
    type_ = socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, type_) as taken:
        taken.bind(("0.0.0.0", 0))
        if kind == "TCP":
            taken.listen()
        port = taken.getsockname()[1]
        axon = make_axon(port=port, http=True)
        with pytest.raises(
            ConfigError, match=f"{kind} port {port} is taken.*another port"
        ):
            axon.start()
        assert not axon.started
    axon.start()
    assert axon.started


def test_another_port_is_tried_where_the_system_chooses(make_axon, monkeypatch):
    axon = make_axon(http=True)
    begin, ports = axon._begin_quic, []

    async def fail_once(server, port):
        ports.append(port)
        if len(ports) == 1:
            raise ConfigError("taken")
        return await begin(server, port)

    monkeypatch.setattr(axon, "_begin_quic", fail_once)
    axon.start()
    assert len(ports) == 2
    assert axon.port == ports[1]


def test_stop_lets_requests_end(make_axon, client):
    gate, order, answers = threading.Event(), [], []
    axon = make_axon().attach(slow(gate, order)).start()
    threads = in_background(Caller(client, axon), 1, answers=answers)
    until(lambda: order == [1])
    threading.Timer(0.1, gate.set).start()
    axon.stop(drain=20)
    threads[0].join(20)
    assert answers == [(1, (200, "Success"))]


# Settings.


def test_arguments_win_over_config_over_command_line_over_environment(monkeypatch):
    monkeypatch.setenv("BT_AXON_PORT", "2001")
    monkeypatch.setenv("BT_AXON_MAX_WORKERS", "3")
    monkeypatch.setenv("BT_AXON_EXTERNAL_PORT", "2009")
    monkeypatch.setattr("sys.argv", ["miner", "--axon.port", "2002", "--help"])
    axon = Axon(MINER, external_ip="1.2.3.4")
    assert (axon.port, axon.external_port, axon.ip) == (2002, 2009, "[::]")
    assert axon._dispatch.gate.most == 3
    config = Config(default={"axon": {"port": 2003}})
    assert Axon(MINER, config, external_ip="1.2.3.4").port == 2003
    axon = Axon(MINER, config, 2004, "5.6.7.8", "1.2.3.4", 2005, 7)
    assert (axon.port, axon.ip, axon.external_ip, axon.external_port) == (
        2004,
        "5.6.7.8",
        "1.2.3.4",
        2005,
    )
    assert axon._dispatch.gate.most == axon.server.config.handler_threads == 7
    assert config.to_dict() == {"axon": {"port": 2003}}


def test_a_config_may_be_anybodys():
    config = SimpleNamespace(axon=SimpleNamespace(port=3000))
    assert Axon(MINER, config=config).port == 3000
    assert Axon(MINER, config=SimpleNamespace()).port == 8091
    assert not hasattr(config.axon, "ip")


@pytest.mark.parametrize(
    "settings", [{"port": 80}, {"port": 65535}, {"external_port": 1024}]
)
def test_ports_are_checked(settings):
    with pytest.raises(PortError, match="must be in range") as caught:
        Axon(MINER, **settings)
    assert isinstance(caught.value, AssertionError | ValueError)


def test_arguments_may_have_a_prefix(capsys):
    parser = argparse.ArgumentParser()
    Axon.add_args(parser)
    Axon.add_args(parser)
    Axon.add_args(parser, "validator")
    config = Config(parser, ["--validator.axon.port", "2000"], default={})
    assert config.validator.axon.port == 2000
    assert config.axon.port == 8091
    Axon.check_config(config)
    Axon.help()
    assert "--axon.max_workers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"wallet": 5}, "an int is no wallet|a int is no wallet"),
        ({"wallet": MINER, "quic": False, "http": False}, "serves nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Axon(**settings)


def test_http_needs_aiohttp(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lightning.axon")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs aiohttp"):
        Axon(MINER, http=True)
    assert not Axon(MINER)._http
    assert "only QUIC is served" in caplog.text


def test_the_default_wallet_is_that_of_the_config(monkeypatch):
    asked = []

    class Wallet:
        hotkey = MINER

        def __init__(self, **named):
            asked.append(named)

    import bittensor_wallet

    monkeypatch.setattr(bittensor_wallet, "Wallet", Wallet)
    config = Config(default={"wallet": {"name": "w", "hotkey": "h"}})
    assert isinstance(Axon(config=config).wallet, Wallet)
    assert asked == [{"name": "w", "hotkey": "h"}]
    monkeypatch.setitem(__import__("sys").modules, "bittensor_wallet", None)
    with pytest.raises(ConfigError, match="needs a wallet"):
        Axon()


# What is published.


def test_info_is_what_is_published(make_axon):
    wallet = SimpleNamespace(
        hotkey=MINER, coldkeypub=SimpleNamespace(ss58_address="cold")
    )
    axon = Axon(wallet, port=2000, external_ip="1.2.3.4", external_port=3000)
    info = axon.info()
    assert (info.ip, info.port, info.ip_type) == ("1.2.3.4", 3000, 4)
    assert (info.hotkey, info.coldkey) == (MINER.ss58_address, "cold")
    assert (info.protocol, info.placeholder1, info.placeholder2) == (4, 0, 0)
    assert type(info).from_string(axon.to_string()) == info
    axon.external_ip = "::1"
    assert axon.info().ip_type == 6
    axon.external_ip = "miner.example"
    assert axon.info().ip_type == 4


def test_the_external_address_is_looked_up_when_asked_for(monkeypatch, caplog):
    answers = ["0.0.0.0", "9.8.7.6"]
    monkeypatch.setattr(
        "lightning.dropin.external_ip.external_ip", lambda: answers.pop(0)
    )
    axon = Axon(MINER, port=2000)
    assert len(answers) == 2
    assert axon.external_ip == "0.0.0.0"
    assert "the external address is not known" in caplog.text
    # Not again at once.
    assert axon.info().ip == "0.0.0.0"
    axon._look_up_at = 0.0
    assert axon.external_ip == axon.external_ip == "9.8.7.6"


def test_it_is_published_by_any_subtensor(make_axon, caplog, monkeypatch):
    axon, calls = make_axon(port=2000, external_port=3000), []
    certificate = object()
    subtensor = SimpleNamespace(serve_axon=lambda **given: calls.append(given))
    assert axon.serve(5, subtensor, certificate) is axon
    assert calls == [{"netuid": 5, "axon": axon, "certificate": certificate}]
    assert axon.serve(5) is axon
    assert axon.serve(netuid=5, subtensor=object()) is axon
    assert "a object cannot publish an axon" in caplog.text

    fake = SimpleNamespace(ServeAxon=SimpleNamespace)
    monkeypatch.setitem(__import__("sys").modules, "bittensor", fake)
    newer = SimpleNamespace(
        execute=lambda intent, wallet: calls.append((intent, wallet))
    )
    axon.serve(7, newer)
    intent, wallet = calls[-1]
    assert vars(intent) == {"netuid": 7, "ip": "127.0.0.1", "port": 3000, "protocol": 4}
    assert wallet is axon.wallet

    async def later(**given):
        raise AssertionError

    with pytest.raises(TypeError, match="await"):
        axon.serve(5, SimpleNamespace(serve_axon=later))


@pytest.mark.parametrize(
    "name", ["app", "router", "fast_config", "fast_server", "middleware_cls"]
)
def test_what_is_not_there_says_so(make_axon, name):
    with pytest.raises(NotImplementedError, match=f"Axon.{name}: this axon has no"):
        getattr(make_axon(), name)


async def test_the_integrity_of_a_body_can_be_checked(make_axon):
    class Hashed(Synapse):
        n: int = 0
        required_hash_fields: ClassVar[tuple[str, ...]] = ("n",)

    def forward(synapse: Hashed) -> Hashed:
        return synapse

    axon = make_axon().attach(forward)
    body = b'{"n": 5}'

    async def read():
        return body

    headers = {"computed_body_hash": Hashed(n=5).body_hash}
    request = SimpleNamespace(
        body=read, headers=headers, url=SimpleNamespace(path="/Hashed")
    )
    assert await axon.verify_body_integrity(request) == {"n": 5}
    body = b'{"n": 6}'
    with pytest.raises(ValueError, match="Hash mismatch"):
        await axon.verify_body_integrity(request)
    request = SimpleNamespace(read=lambda: body, headers=headers, path="/Nope")
    with pytest.raises(ValueError, match="'Nope' not found"):
        await axon.verify_body_integrity(request)


def test_ping_returns_what_it_is_given():
    synapse = Synapse()
    assert ping(synapse) is synapse
    assert copy.copy(synapse) == synapse
