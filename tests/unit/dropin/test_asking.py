"""How a dendrite asks, and what it makes of the answer."""

import asyncio
import threading
import time
from contextlib import aclosing

import pytest
from pydantic import Field, field_validator

from lightning import AxonInfo, StreamingSynapse, Synapse
from lightning.dropin import asking
from lightning.dropin.anywhere import Answer
from lightning.dropin.speaks import Way
from lightning.errors import LightningError
from tests.support.identities import MINER_HOTKEY, VALIDATOR_HOTKEY, signer
from tests.support.waiting import until_async


class Echo(Synapse):
    text: str = ""
    answer: str | None = None


class Anything(Synapse):
    value: object = None


class Chat(StreamingSynapse):
    count: int = 3
    said: str = ""

    async def process_streaming_response(self, response):
        async for chunk in response.content.iter_any():
            self.said += chunk.decode()
            yield chunk.decode()

    def extract_response_json(self, response):
        return {"said": self.said}


def axon_info(server, hotkey=MINER_HOTKEY):
    ip, port = server.local_addr()
    return AxonInfo(ip=ip, port=port, hotkey=hotkey)


def answering(handler, name="Echo"):
    return lambda server: server.register_synapse_handler(name, handler)


def shout(data):
    return {**data, "answer": data["text"].upper()}


def failed(synapse, code):
    """Say if a call ended on the way, as subnets look at it."""
    assert synapse.dendrite.status_code == code
    assert synapse.dendrite.process_time is None
    assert synapse.axon.status_code is None
    assert synapse.axon.status_message is None
    assert synapse.axon.process_time is None
    assert synapse.axon.hotkey == MINER_HOTKEY
    return True


async def test_an_answer_looks_as_with_bittensor(make_dendrite, start_server):
    """Every field of both ends, with a server that knows nothing of synapses."""
    dendrite = make_dendrite()
    server = await start_server(answering(shout))
    axon = axon_info(server)
    result = await dendrite.call(axon, Echo(text="hello"), 7.0)
    assert (result.text, result.answer, result.timeout) == ("hello", "HELLO", 7.0)
    found = result.dendrite
    assert (found.status_code, found.status_message) == (200, "Success")
    assert type(found.process_time) is float
    assert 0 < found.process_time < 7
    assert (found.version, found.uuid) == (10_005_000, dendrite.uuid)
    assert found.hotkey == VALIDATOR_HOTKEY
    assert abs(found.nonce - time.time_ns()) < 60e9
    assert (found.ip, found.port, found.signature) == (None, None, None)
    assert result.axon.model_dump(exclude_none=True) == {
        "status_code": 200,
        "status_message": "Success",
        "ip": "127.0.0.1",
        "port": axon.port,
        "hotkey": MINER_HOTKEY,
    }
    assert result.is_success
    assert type(result) is Echo


async def test_an_axon_says_how_long_it_worked(make_dendrite, start_axon):
    """It is the forward's time, and not that of the way."""

    async def forward(synapse: Echo) -> Echo:
        synapse.answer = synapse.dendrite.hotkey
        return synapse

    axon = await asyncio.to_thread(start_axon, forward)
    result = await make_dendrite().call(axon, Echo(text="x"))
    assert result.answer == VALIDATOR_HOTKEY
    assert 0 <= result.axon.process_time <= result.dendrite.process_time
    assert result.axon.status_message == "Success"


async def test_what_a_forward_function_says_arrives(make_dendrite, start_axon):
    """Its status and its message, in any language; the fields stay as they were."""

    async def forward(synapse: Echo) -> Echo:
        synapse.axon.status_code = 429
        synapse.axon.status_message = "später, 等一下\n"
        return synapse

    axon = await asyncio.to_thread(start_axon, forward)
    result = await make_dendrite().call(axon, Echo(text="x"))
    for end in (result.dendrite, result.axon):
        assert (end.status_code, end.status_message) == (429, "später, 等一下\n")
    assert result.dendrite.process_time > 0
    assert (result.text, result.answer) == ("x", None)


async def test_a_refusal_of_the_miner_has_a_time(make_dendrite, start_server):
    """It did answer: 404 for a name it does not know, 500 for a handler that failed."""

    def fail(data):
        raise RuntimeError("secret")

    dendrite = make_dendrite()
    server = await start_server(answering(fail))
    axon = axon_info(server)
    for synapse, code in ((Echo(text="x"), 500), (Anything(), 404)):
        result = await dendrite.call(axon, synapse)
        assert result.dendrite.status_code == result.axon.status_code == code
        assert result.dendrite.status_message == result.axon.status_message
        assert result.dendrite.process_time > 0
        assert not result.is_success
    assert "secret" not in result.dendrite.status_message


async def test_a_closed_port_is_no_service(make_dendrite, dead):
    """At once, with bittensor's words, and again while it is backed off."""
    dendrite = make_dendrite()
    for _ in range(2):
        result = await dendrite.call(dead, Echo(text="x"))
        assert failed(result, 503)
        assert result.dendrite.status_message == (
            f"Service unavailable at 127.0.0.1:{dead.port}/Echo"
        )
        assert result.text == "x"


async def test_silence_ends_with_the_time(make_dendrite, silent):
    """408, as other times that run out; 503 if connecting alone has a limit."""
    result = await make_dendrite().call(silent, Echo(), 0.2)
    assert failed(result, 408)
    assert result.dendrite.status_message == "Request timeout after 0.2 seconds"
    assert result.is_timeout
    result = await make_dendrite(connect_timeout=0.2).call(silent, Echo(), 60)
    assert failed(result, 503)


async def test_a_slow_handler_ends_with_the_time(make_dendrite, start_server):
    """Warm or not, the handler is told to stop."""
    stopped = []

    async def hang(data):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(data)

    dendrite = make_dendrite()
    server = await start_server(answering(hang))
    for _ in range(2):
        result = await dendrite.call(axon_info(server), Echo(), 0.5)
        assert failed(result, 408)
    await until_async(lambda: len(stopped) == 2)


async def test_another_miner_at_the_address_is_not_asked(make_dendrite, start_server):
    """It is not the one that was meant."""
    asked = []
    server = await start_server(answering(asked.append), signer=signer(9))
    result = await make_dendrite().call(axon_info(server), Echo())
    assert failed(result, 503)
    assert not asked


async def test_a_refused_login_is_not_verified(make_dendrite, start_server):
    """401, as bittensor's axon says to who is not who it says."""
    server = await start_server(
        lambda server: server.set_validator_permit_resolver(lambda: [MINER_HOTKEY]),
        require_validator_permit=True,
    )
    result = await make_dendrite().call(axon_info(server), Echo())
    assert failed(result, 401)
    assert result.failed_verification


@pytest.mark.parametrize(
    "where",
    [
        {"ip": "0.0.0.0", "port": 0},
        {"ip": "0.0.0.0", "port": 8091},
        {"ip": "192.0.2.1", "port": 0},
        {"ip": "::", "port": 8091},
        {"ip": "", "port": 8091},
        {"ip": "0", "port": 8091},
        {"ip": 0, "port": 8091},
    ],
)
@pytest.mark.parametrize("kind", [Echo, Chat])
async def test_who_does_not_serve_is_not_asked(make_dendrite, where, kind):
    """503 at once, and nothing is opened for it."""
    dendrite = make_dendrite(http=None)
    axon = {"hotkey": MINER_HOTKEY, **where}
    [result] = await dendrite([axon], kind(), timeout=60)
    if kind is Chat:
        [result] = [item async for item in result]
    assert failed(result, 503)
    assert dendrite._anywhere is None
    assert dendrite._http_client is None


class Broken(Synapse):
    """Its serializer fails."""

    text: str = ""

    def model_dump(self, **_):
        raise ValueError("no dump today")


@pytest.mark.parametrize(
    "synapse",
    [Anything(value=object()), Anything(value=[{"a": lambda: 0}]), Broken()],
)
@pytest.mark.parametrize("many", [1, 3])
async def test_what_cannot_be_sent_is_the_callers_matter(
    make_dendrite, start_server, synapse, many
):
    """422, and no miner hears of it."""
    asked = []
    server = await start_server(answering(asked.append, type(synapse).__name__))
    results = await make_dendrite()([axon_info(server)] * many, synapse)
    assert len(results) == many
    assert all(failed(result, 422) for result in results)
    assert not asked


async def test_a_request_that_is_too_large_is_the_callers_matter(
    make_dendrite, start_server, make_client
):
    """422, and no miner hears of it."""
    server = await start_server(answering(shout))
    client = make_client(max_frame_payload_bytes=2**20)
    dendrite = make_dendrite(client=client)
    axon = axon_info(server)
    large = Echo(text="x" * 2**20)
    result = await dendrite.call(axon, large)
    assert failed(result, 422)
    assert "exceeds maximum 1048576" in result.dendrite.status_message
    assert all(failed(each, 422) for each in await dendrite([axon] * 2, large))


async def test_an_answer_that_is_too_large_is_no_success(make_dendrite, start_server):
    """By the limit of the dendrite, cold and warm, alone and among many."""
    server = await start_server(answering(lambda data: {"text": "y" * 5000}))
    dendrite, axon = make_dendrite(max_response_bytes=4096), axon_info(server)
    for _ in range(2):
        result = await dendrite.call(axon, Echo(text="x"))
        assert failed(result, 400)
        assert result.dendrite.status_message.startswith("Payload error")
        results = await dendrite([axon] * 2, Echo(text="x"))
        assert all(failed(result, 400) for result in results)
    assert (await make_dendrite().call(axon, Echo(text="x"))).is_success


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "soon", [1]])
async def test_an_odd_timeout_is_the_callers_matter(
    make_dendrite, start_server, timeout
):
    """422, with or without a connection."""
    dendrite = make_dendrite()
    axon = axon_info(await start_server(answering(shout)))
    for _ in range(2):
        assert failed(await dendrite.call(axon, Echo(), timeout), 422)
        results = await dendrite([axon, axon], Echo(), timeout)
        assert all(failed(result, 422) for result in results)
        assert (await dendrite.call(axon, Echo())).is_success


@pytest.mark.parametrize("timeout", [None, 0])
async def test_no_timeout_is_no_limit(make_dendrite, start_server, timeout):
    """As bittensor's 0."""
    dendrite = make_dendrite()
    axon = axon_info(await start_server(answering(shout)))
    for _ in range(2):
        assert (await dendrite.call(axon, Echo(), timeout)).is_success
        assert all(r.is_success for r in await dendrite([axon] * 2, Echo(), timeout))


async def test_an_answer_of_another_form_is_none(make_dendrite, start_server):
    """422, and the fields are as they were sent."""
    server = await start_server(answering(lambda data: {"text": ["no", "text"]}))
    result = await make_dendrite().call(axon_info(server), Echo(text="x"))
    assert failed(result, 422)
    assert result.text == "x"


async def test_an_odd_status_is_no_success(make_dendrite, start_server):
    """A miner may say anything."""
    server = await start_server(
        answering(lambda data: {"_lightning": {"status_code": "200"}})
    )
    result = await make_dendrite().call(axon_info(server), Echo(text="x"))
    assert failed(result, 422)


# Asking again.


class Busy:
    """Has a miner say a number of times that it has no room."""

    def __init__(self, dendrite, number):
        self.number = number
        self.asked = 0
        self._way = dendrite._quic_end()
        self._ask = self._way.ask
        self._way.ask = self.ask

    async def ask(self, *args, **options):
        self.asked += 1
        if self.asked <= self.number:
            return Answer(False, {}, "server busy", 0.001, 0.0)
        return await self._ask(*args, **options)


@pytest.fixture
def no_pauses(monkeypatch):
    """Have tries follow each other."""
    monkeypatch.setattr(asking, "RETRY_PAUSE", 0.001)


@pytest.mark.usefixtures("no_pauses")
async def test_what_was_not_begun_is_tried_again(make_dendrite, start_server):
    """As often as is allowed, and the status is that of the last time."""
    axon = axon_info(await start_server(answering(shout)))
    for retries, asked, code in ((0, 1, 503), (1, 2, 503), (2, 3, 200), (5, 3, 200)):
        dendrite = make_dendrite(retries=retries)
        busy = Busy(dendrite, 2)
        result = await dendrite.call(axon, Echo(text="x"))
        assert (result.dendrite.status_code, busy.asked) == (code, asked)
        assert result.axon.status_code == code
        assert result.axon.status_message == result.dendrite.status_message
        assert result.dendrite.process_time > 0
        assert result.answer == (None if code == 503 else "X")


@pytest.mark.usefixtures("no_pauses")
async def test_what_was_begun_is_not_tried_again(make_dendrite, start_server):
    """Whether it failed, took too long or the answer was none."""
    asked = []

    async def handler(data):
        asked.append(data["text"])
        if data["text"] == "fail":
            raise RuntimeError
        if data["text"] == "hang":
            await asyncio.Event().wait()
        return {"text": 7}

    dendrite = make_dendrite(retries=3)
    axon = axon_info(await start_server(answering(handler)))
    for text, code in (("fail", 500), ("odd", 422), ("hang", 408)):
        result = await dendrite.call(axon, Echo(text=text), 2)
        assert result.dendrite.status_code == code
    assert asked == ["fail", "odd", "hang"]


@pytest.mark.usefixtures("no_pauses")
async def test_who_is_not_reached_is_tried_again(make_dendrite, dead, monkeypatch):
    """Whatever the transport."""
    tries = []
    dendrite = make_dendrite(retries=2)
    ask = dendrite._ask_once

    async def count(call):
        tries.append(call)
        return await ask(call)

    monkeypatch.setattr(dendrite, "_ask_once", count)
    assert failed(await dendrite.call(dead, Echo()), 503)
    assert len(tries) == 3


async def test_without_time_for_another_try_the_last_one_counts(make_dendrite, dead):
    """It is no timeout that nothing listens there."""
    result = await make_dendrite(retries=9).call(dead, Echo(), 0.25)
    assert failed(result, 503)


@pytest.mark.usefixtures("no_pauses")
async def test_a_try_leaves_nothing_on_the_next(
    make_dendrite, start_server, monkeypatch
):
    """A refusal, and then a failure on the way: that one is told."""
    dendrite = make_dendrite(retries=1)
    axon = axon_info(await start_server(answering(shout)))
    Busy(dendrite, 9)
    ask, tries = dendrite._ask_once, []

    async def fail_later(call):
        tries.append(call)
        if len(tries) == 2:
            raise ConnectionResetError("gone")
        return await ask(call)

    monkeypatch.setattr(dendrite, "_ask_once", fail_later)
    assert failed(await dendrite.call(axon, Echo()), 503)
    assert len(tries) == 2


# Both transports.


async def echo_forward(synapse: Echo) -> Echo:
    synapse.answer = synapse.text.upper()
    return synapse


def known(axon):
    miner = (axon.hotkey, axon.ip, axon.port)
    return asking._speaks.way(miner, time.monotonic())


async def test_who_speaks_only_http_is_asked_over_http(make_dendrite, start_axon):
    """The second time without a try over QUIC, and the result looks the same."""
    dendrite = make_dendrite(http=True)
    axon = await asyncio.to_thread(start_axon, echo_forward, quic=False)
    for n in range(2):
        assert known(axon) is (Way.HTTP if n else Way.EITHER)
        result = await dendrite.call(axon, Echo(text="x"))
        assert result.answer == "X"
        assert result.dendrite.status_code == result.axon.status_code == 200
        assert result.dendrite.signature.startswith("0x")
        assert 0 < result.dendrite.process_time < 12


async def test_who_speaks_quic_is_not_asked_over_http(make_dendrite, start_axon):
    """Nothing of HTTP is even opened."""
    dendrite = make_dendrite(http=True)
    axon = await asyncio.to_thread(start_axon, echo_forward, http=True)
    for _ in range(2):
        assert (await dendrite.call(axon, Echo(text="x"))).answer == "X"
    assert known(axon) is Way.QUIC
    assert dendrite._http_client is None


async def test_silence_on_udp_costs_a_part_of_the_time(
    make_dendrite, start_axon, silent, monkeypatch
):
    """A miner behind a wall that lets only TCP through is asked over HTTP."""
    monkeypatch.setattr(asking, "PROBE", 0.1)
    dendrite = make_dendrite(http=True)
    axon = await asyncio.to_thread(start_axon, echo_forward, quic=False)
    # QUIC goes to where nobody answers.
    there = asking.QuicAxonInfo(axon.hotkey, silent.ip, silent.port)
    monkeypatch.setattr(dendrite, "_quic_axon", lambda target: there)
    result = await dendrite.call(axon, Echo(text="x"))
    assert result.answer == "X"
    assert result.dendrite.process_time >= 0.1


async def test_who_learns_quic_is_found_out_beside_a_request(
    make_dendrite, start_axon, monkeypatch
):
    """The request itself is not held up by that."""
    dendrite = make_dendrite(http=True)
    axon = await asyncio.to_thread(start_axon, echo_forward, http=True)
    asking._speaks.spoke_http((axon.hotkey, axon.ip, axon.port), -1e6)
    result = await dendrite.call(axon, Echo(text="x"))
    assert result.dendrite.signature is not None
    there = asking.QuicAxonInfo(axon.hotkey, axon.ip, axon.port)
    await until_async(lambda: dendrite._anywhere.is_connected(there))
    result = await dendrite.call(axon, Echo(text="x"))
    assert result.dendrite.signature is None
    assert known(axon) is Way.QUIC


async def test_who_forgets_quic_is_asked_over_http_after_two_failures(
    make_dendrite, start_axon
):
    """The two calls that find it out say so."""
    dendrite = make_dendrite(http=True)
    axon = await asyncio.to_thread(start_axon, echo_forward, quic=False)
    asking._speaks.spoke_quic((axon.hotkey, axon.ip, axon.port))
    codes = [
        (await dendrite.call(axon, Echo(text="x"))).dendrite.status_code
        for _ in range(3)
    ]
    assert codes == [503, 503, 200]
    assert known(axon) is Way.HTTP


async def test_a_dial_that_takes_all_the_time_is_a_failure(make_dendrite, silent):
    """A miner that spoke QUIC is tried over HTTP even if calls are short."""
    dendrite = make_dendrite(http=True)
    asking._speaks.spoke_quic((silent.hotkey, silent.ip, silent.port))
    for _ in range(2):
        assert failed(await dendrite.call(silent, Echo(), 0.2), 408)
    assert known(silent) is Way.EITHER


async def test_a_closed_port_is_no_service_over_either(make_dendrite, dead):
    """What was known of it is forgotten."""
    dendrite = make_dendrite(http=True)
    asking._speaks.spoke_http((dead.hotkey, dead.ip, dead.port), time.monotonic())
    result = await dendrite.call(dead, Echo())
    assert failed(result, 503)
    assert result.dendrite.status_message.endswith(f"127.0.0.1:{dead.port}/Echo")
    assert known(dead) is Way.EITHER
    assert failed(await dendrite.call(dead, Echo()), 503)


async def test_quic_can_be_left_out(make_dendrite, start_axon):
    """Everybody is asked over HTTP."""
    dendrite = make_dendrite(quic=False, http=True)
    axon = await asyncio.to_thread(start_axon, echo_forward, http=True)
    results = await dendrite([axon, axon], Echo(text="x"))
    assert [result.answer for result in results] == ["X", "X"]
    assert dendrite._anywhere is None


# Many.


async def test_one_that_fails_costs_no_other_anything(
    make_dendrite, start_server, start_axon, dead, silent
):
    """Warm, cold, dead, silent, of another key: all come back, in order."""
    dendrite = make_dendrite()
    warm = axon_info(await start_server(answering(shout)))
    other = axon_info(await start_server(answering(shout), signer=signer(9)))
    assert (await dendrite.call(warm, Echo())).is_success
    nowhere = AxonInfo(hotkey=MINER_HOTKEY)
    axons = [warm, dead, silent, nowhere, other, warm]
    results = await dendrite(axons, Echo(text="x"), timeout=1)
    codes = [result.dendrite.status_code for result in results]
    assert codes == [200, 503, 408, 503, 503, 200]
    assert [result.axon.port for result in results] == [axon.port for axon in axons]


async def test_the_body_is_encoded_once(make_dendrite, start_server, monkeypatch):
    """For as many as are asked, each of which fills a synapse of its own."""
    dendrite = make_dendrite()
    axon = axon_info(await start_server(answering(shout)))
    frames = []
    encode = dendrite._quic_end().encode
    monkeypatch.setattr(
        dendrite._anywhere,
        "encode",
        lambda *args: frames.append(args) or encode(*args),
    )
    for n in range(2):
        asked = Echo(text="x")
        results = await dendrite([axon] * 5, asked)
        assert [result.answer for result in results] == ["X"] * 5
        assert len({id(result) for result in results}) == 5
        assert len(frames) == n + 1
        assert asked.answer is None
        assert asked.dendrite.status_code is None


class Odd(Synapse):
    """Its validator makes what its annotation does not say."""

    numbers: list[int] = Field(default=[])

    @field_validator("numbers")
    @classmethod
    def once(cls, value):
        return set(value)


@pytest.mark.parametrize("many", [1, 2])
async def test_what_validators_make_travels(make_dendrite, start_server, many):
    """It is looked into if it cannot be said straight away."""
    seen = []
    server = await start_server(answering(lambda d: seen.append(d) or d, "Odd"))
    axons = [axon_info(server)] * many
    results = await make_dendrite()(axons, Odd(numbers=[1, 2, 1]))
    assert [result.dendrite.status_code for result in results] == [200] * many
    assert [sorted(data["numbers"]) for data in seen] == [[1, 2]] * many


# Streams.


async def words(data):
    for n in range(data["count"]):
        yield b"%d " % n


def streaming(handler):
    return lambda server: server.register_streaming_handler("Chat", handler)


@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("deserialize", [True, False])
async def test_a_stream_gives_its_pieces_and_then_the_synapse(
    make_dendrite, start_server, count, deserialize
):
    """Also of a server that knows nothing of synapses."""
    server = await start_server(streaming(words))
    stream = await make_dendrite().forward(
        axon_info(server), Chat(count=count), 10, deserialize, streaming=True
    )
    *pieces, last = [item async for item in stream]
    whole = "".join(f"{n} " for n in range(count))
    assert "".join(pieces) == whole
    assert (last.said, last.dendrite.status_code) == (whole, 200)
    assert last.axon.status_message == "Success"
    assert last.dendrite.process_time > 0


def chat(*, fail_at=-1):
    async def forward(synapse: Chat) -> Chat:
        async def streamer(send):
            for n in range(synapse.count):
                if n == fail_at:
                    raise RuntimeError("secret")
                body = {"body": b"%d " % n, "more_body": True}
                await send({"type": "http.response.body", **body})

        return synapse.create_streaming_response(streamer)

    return forward


@pytest.mark.parametrize("http", [False, True])
async def test_a_stream_of_an_axon_is_the_same_over_both(
    make_dendrite, start_axon, http
):
    """Pieces, fields and status."""
    axon = await asyncio.to_thread(start_axon, chat(), quic=not http, http=http)
    dendrite = make_dendrite(http=http)
    for _ in range(2):
        *pieces, last = [item async for item in dendrite.call_stream(axon, Chat())]
        assert "".join(pieces) == last.said == "0 1 2 "
        assert last.dendrite.status_code == last.axon.status_code == 200
        assert last.dendrite.process_time > 0
    assert known(axon) is (Way.HTTP if http else Way.QUIC)


@pytest.mark.parametrize("fail_at", [0, 2])
async def test_a_stream_that_breaks_is_no_success(make_dendrite, start_axon, fail_at):
    """Before its first chunk and after."""
    axon = await asyncio.to_thread(start_axon, chat(fail_at=fail_at), http=False)
    stream = make_dendrite().call_stream(axon, Chat())
    *_, last = [item async for item in stream]
    assert last.dendrite.status_code == 500
    assert "secret" not in last.dendrite.status_message


async def test_a_stream_nobody_answers_ends_with_its_synapse(make_dendrite, dead):
    """It is the only item."""
    for http in (False, True):
        dendrite = make_dendrite(http=http)
        [last] = [item async for item in dendrite.call_stream(dead, Chat())]
        assert failed(last, 503)


async def test_a_stream_that_does_not_end_ends_with_the_time(
    make_dendrite, start_server
):
    """What came before that is not lost."""

    async def hang(data):
        yield b"first"
        await asyncio.Event().wait()

    server = await start_server(streaming(hang))
    stream = make_dendrite().call_stream(axon_info(server), Chat(), 0.5)
    first, last = [item async for item in stream]
    assert (first, last.dendrite.status_code) == ("first", 408)
    assert last.dendrite.process_time is None


@pytest.mark.parametrize("leave", ["aclose", "break", "cancel"])
async def test_who_leaves_a_stream_stops_its_handler(
    make_dendrite, start_server, leave
):
    """Without a word in any log."""
    stopped = asyncio.Event()

    async def forever(data):
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            stopped.set()

    server = await start_server(streaming(forever))
    stream = make_dendrite().call_stream(axon_info(server), Chat(), 30)

    async def read():
        async with aclosing(stream):
            async for _ in stream:
                if leave == "break":
                    break
                if leave == "cancel":
                    await asyncio.Event().wait()

    if leave == "aclose":
        assert await anext(stream) == "x"
        await stream.aclose()
    else:
        task = asyncio.create_task(read())
        if leave == "cancel":
            await asyncio.sleep(0.2)
            task.cancel()
        await asyncio.wait([task])
    async with asyncio.timeout(10):
        await stopped.wait()


async def test_nothing_is_sent_before_a_stream_is_read(make_dendrite, start_server):
    """One that is never read costs nothing."""
    dendrite = make_dendrite()
    axon = axon_info(await start_server(streaming(words)))
    streams = await dendrite([axon, axon], Chat(), streaming=True)
    assert dendrite._anywhere is None
    read = [[item async for item in stream] for stream in streams]
    assert [len(items) for items in read] == [4, 4]


async def test_a_class_that_gives_no_fields_is_told_so(make_dendrite, start_server):
    """It is neither a success nor an exception."""

    class Chat(StreamingSynapse):
        async def process_streaming_response(self, response):
            async for chunk in response.content.iter_any():
                yield chunk

        def extract_response_json(self, response):
            return None

    async def one(data):
        yield b"x"

    server = await start_server(streaming(one))
    stream = make_dendrite().call_stream(axon_info(server), Chat())
    piece, last = [item async for item in stream]
    assert piece == b"x"
    assert last.dendrite.status_code == 422


# Safe for threads.


async def test_a_dendrite_is_used_from_many_threads_at_once(
    make_dendrite, start_server
):
    """Each has a loop of its own, or none."""
    dendrite = make_dendrite()
    axon = axon_info(await start_server(answering(shout)))
    results, errors = [], []

    def ask(n):
        try:
            for k in range(5):
                text = f"{n}.{k}"
                if n % 2:
                    result = asyncio.run(dendrite(axon, Echo(text=text)))
                else:
                    result = dendrite.query(axon, Echo(text=text))
                assert result.answer == text
                results.append(text)
        except (AssertionError, LightningError, RuntimeError) as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    await until_async(lambda: not any(thread.is_alive() for thread in threads))
    assert not errors
    assert len(set(results)) == 20
