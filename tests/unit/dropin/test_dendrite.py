"""The dendrite's own names, its life, and what subclasses may replace."""

import asyncio
import gc
import importlib.util
import pickle
import threading
from types import SimpleNamespace

import pytest

import lightning
from lightning import AxonInfo, Dendrite, StreamingSynapse, Synapse
from lightning.dropin import asking
from lightning.dropin.dendrite import (
    DENDRITE_DEFAULT_ERROR,
    DENDRITE_ERROR_MAPPING,
    DendriteMixin,
    event_loop_is_running,
)
from lightning.errors import ConfigError
from tests.support.identities import MINER_HOTKEY, VALIDATOR, VALIDATOR_HOTKEY
from tests.support.inspection import connections
from tests.support.waiting import until


class Ask(Synapse):
    text: str = ""
    answer: str | None = None

    def deserialize(self):
        return self.answer


class Chat(StreamingSynapse):
    said: str = ""

    async def process_streaming_response(self, response):
        async for chunk in response.content.iter_any():
            self.said += chunk.decode()
            yield chunk.decode()

    def extract_response_json(self, response):
        return {"said": self.said}


def shout(data):
    return {**data, "answer": data["text"].upper()}


async def words(data):
    yield b"one "
    yield b"two"


@pytest.fixture
def axon(start_blocking_server, axon_of):
    """A miner that answers `Ask` and `Chat`, as bittensor's axon info."""

    def prepare(server):
        server.register_synapse_handler("Ask", shout)
        server.register_streaming_handler("Chat", words)

    axon = axon_of(start_blocking_server(prepare))
    return AxonInfo(ip=axon.ip, port=axon.port, hotkey=axon.hotkey)


# Names.


def test_the_names_are_bittensors():
    """In both spellings."""
    assert lightning.dendrite is Dendrite
    assert issubclass(Dendrite, DendriteMixin)
    assert DENDRITE_ERROR_MAPPING[TimeoutError] == ("408", "Request timeout")
    assert DENDRITE_DEFAULT_ERROR == ("422", "Failed to parse response")


async def test_a_running_loop_is_seen():
    """In this thread, and not in another."""
    assert event_loop_is_running()
    assert not await asyncio.to_thread(event_loop_is_running)


def test_a_dendrite_says_who_it_is(make_dendrite):
    """As bittensor's; each has a name of its own."""
    one, other = make_dendrite(), make_dendrite(SimpleNamespace(hotkey=VALIDATOR))
    assert str(one) == repr(one) == f"dendrite({VALIDATOR_HOTKEY})"
    assert one.keypair is other.keypair is VALIDATOR
    assert one.uuid != other.uuid
    assert type(one.uuid) is str


# What can be asked for.


def test_one_gives_one_and_many_give_many(make_dendrite, axon):
    """In order, and nothing for nobody."""
    dendrite = make_dendrite()
    assert dendrite.query(axon, Ask(text="a")) == "A"
    assert dendrite.query([axon], Ask(text="a")) == ["A"]
    assert dendrite.query((axon, axon), Ask(text="a")) == ["A", "A"]
    assert dendrite.query([], Ask()) == []
    nowhere = AxonInfo(hotkey=MINER_HOTKEY)
    assert dendrite.query([nowhere, axon, nowhere], Ask(text="a")) == [None, "A", None]


def test_axons_are_taken_by_their_shape(make_dendrite, axon):
    """A mapping, an object, an axon; what is none raises."""
    shapes = [
        dict(axon),
        SimpleNamespace(**dict(axon)),
        SimpleNamespace(info=lambda: axon),
        axon,
    ]
    dendrite = make_dendrite()
    assert dendrite.query(shapes, Ask(text="a")) == ["A"] * 4
    for none in (None, [None], 7, "192.0.2.1"):
        with pytest.raises(TypeError, match="give an AxonInfo"):
            dendrite.query(none, Ask())
    with pytest.raises(TypeError, match="no synapse"):
        dendrite.query(axon, {"text": "a"})


def test_all_spellings_do_the_same(make_dendrite, axon):
    """By position and by name, with and without deserializing."""
    dendrite = make_dendrite()

    async def main():
        asked = Ask(text="a")
        given = {"axons": [axon], "synapse": asked, "timeout": 5}
        for function in (dendrite, dendrite.forward, dendrite.aquery):
            assert await function(**given) == ["A"]
            assert await function([axon], asked, 5, True) == ["A"]
            [result] = await function(**given, deserialize=False, run_async=False)
            assert (result.answer, result.timeout) == ("A", 5)
        assert await dendrite.call(axon, asked) == "A"
        result = await dendrite.call(
            target_axon=axon, synapse=asked, timeout=5, deserialize=False
        )
        assert result is asked

    asyncio.run(main())


def test_what_was_asked_with_is_not_changed(make_dendrite, axon):
    """Each axon fills a copy; values inside are shared, as with bittensor."""
    asked = Ask(text="a")
    before = asked.model_dump()
    results = make_dendrite().query([axon, axon], asked, deserialize=False)
    assert asked.model_dump() == before
    assert len({id(result) for result in results} | {id(asked)}) == 3
    assert all(type(result) is Ask for result in results)


def test_one_after_the_other_if_wanted(make_dendrite, axon):
    """The second is asked when the first has answered."""
    under_way, most = [], []

    class Watching(Dendrite):
        async def call(self, *args, **options):
            under_way.append(1)
            most.append(len(under_way))
            result = await super().call(*args, **options)
            under_way.pop()
            return result

    dendrite = make_dendrite(kind=Watching)
    assert dendrite.query([axon] * 3, Ask(text="a"), run_async=False) == ["A"] * 3
    assert max(most) == 1
    assert dendrite.query([axon] * 3, Ask(text="a")) == ["A"] * 3
    assert max(most) == 3


def test_streams_come_as_generators(make_dendrite, axon):
    """One for each axon; the last item is the synapse."""
    dendrite = make_dendrite()

    async def main():
        one = await dendrite(axon, Chat(), streaming=True)
        many = await dendrite([axon, axon], Chat())
        for stream in (one, *many, dendrite.call_stream(axon, Chat())):
            *pieces, last = [item async for item in stream]
            assert "".join(pieces) == last.said == "one two"

    asyncio.run(main())


def test_without_a_synapse_axons_are_pinged(make_dendrite, start_axon):
    """Every axon answers that."""
    axon = start_axon(http=False)
    dendrite = make_dendrite()
    assert dendrite.query(axon).is_success
    assert asyncio.run(dendrite.call(axon)).is_success


# Loops and threads.


def test_every_loop_will_do(make_dendrite, axon):
    """One after the other, over one connection."""
    dendrite = make_dendrite()
    for _ in range(3):
        assert asyncio.run(dendrite(axon, Ask(text="a"))) == "A"


async def test_query_works_inside_of_a_loop(make_dendrite, axon):
    """It blocks that loop, and nothing else."""
    dendrite = make_dendrite()
    assert dendrite.query(axon, Ask(text="a")) == "A"
    assert await dendrite(axon, Ask(text="b")) == "B"
    assert dendrite.query([axon], Ask(text="c")) == ["C"]


async def test_query_says_where_it_would_wait_for_itself(
    make_dendrite, make_client, axon
):
    """In the loop of the client that is to answer."""
    dendrite = make_dendrite(client=make_client())
    assert await dendrite(axon, Ask(text="a")) == "A"
    with pytest.raises(RuntimeError, match="await aquery"):
        dendrite.query(axon, Ask(text="a"))
    assert await asyncio.to_thread(dendrite.query, axon, Ask(text="b")) == "B"


def test_a_client_of_the_callers_is_used(make_dendrite, make_blocking_client, axon):
    """It stays open."""
    client = make_blocking_client()
    dendrite = make_dendrite(client=client)
    assert dendrite.query(axon, Ask(text="a")) == "A"
    dendrite.close_session()
    response = client.query_axon(
        dict(axon), {"synapse_type": "Ask", "data": {"text": ""}}
    )
    assert response["success"]


def test_dendrites_of_a_hotkey_share_their_connections(
    make_dendrite, start_blocking_server, axon_of
):
    """One for each broadcast finds them warm."""
    server = start_blocking_server(lambda s: s.register_synapse_handler("Ask", shout))
    there = axon_of(server)
    for _ in range(3):
        with make_dendrite() as dendrite:
            assert dendrite.query(there, Ask(text="a")) == "A"
    assert len(list(connections(server))) == 1


# Life.


def test_closing_is_not_the_end(make_dendrite, axon):
    """As often as one likes, in any way, and it can be used again."""
    dendrite = make_dendrite()

    async def main():
        async with dendrite as same:
            assert same is dendrite
            assert await dendrite.aquery(axon, Ask(text="a")) == "A"
        await dendrite.aclose_session()
        await dendrite.aclose_session()
        dendrite.close_session()
        assert await dendrite.aquery(axon, Ask(text="a")) == "A"
        assert await dendrite.aquery(axon, Ask(text="a")) == "A"

    dendrite.close_session()
    for _ in range(2):
        asyncio.run(main())
    with dendrite as same:
        assert same.query(axon, Ask(text="a")) == "A"
    dendrite.close_session(using_new_loop=True)
    dendrite.close()
    assert dendrite.query(axon, Ask(text="a")) == "A"


async def test_http_is_closed_as_well(make_dendrite, start_axon):
    """And opened again by the next call; `session` is aiohttp's."""

    async def forward(synapse: Ask) -> Ask:
        synapse.answer = synapse.text.upper()
        return synapse

    axon = await asyncio.to_thread(start_axon, forward, quic=False, http=True)
    dendrite = make_dendrite(quic=False, http=True)
    for _ in range(2):
        assert await dendrite(axon, Ask(text="a")) == "A"
        session = await dendrite.session
        assert not session.closed
        await dendrite.aclose_session()
        assert session.closed


def test_a_dendrite_that_is_dropped_says_nothing(axon, recwarn, caplog):
    """Whether it was closed or not."""
    with caplog.at_level("WARNING"):
        dendrite = Dendrite(VALIDATOR, http=False)
        asyncio.run(dendrite(axon, Ask(text="a")))
        del dendrite
        gc.collect()
    asking.Anywhere.close_idle()
    assert not caplog.records
    assert not recwarn.list


def test_a_dendrite_cannot_be_pickled(make_dendrite):
    """It says so."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(make_dendrite())


def test_what_cannot_be_used_is_refused_at_once(monkeypatch):
    """And not by the first call."""
    with pytest.raises(ConfigError, match="neither QUIC nor HTTP"):
        Dendrite(VALIDATOR, quic=False, http=False)
    with pytest.raises(ConfigError, match="timeout"):
        Dendrite(VALIDATOR, connect_timeout=-1)
    with pytest.raises(ConfigError, match="neither a wallet nor a keypair"):
        Dendrite("validator")
    monkeypatch.setattr(asking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bittensor-lightning\[http\]'"):
        Dendrite(VALIDATOR, http=True)
    assert not Dendrite(VALIDATOR)._http
    assert importlib.util.find_spec("aiohttp")


# What is kept.


def test_the_history_is_kept_if_wanted(make_dendrite, axon):
    """The last calls without their bodies; none by default."""
    dendrite = make_dendrite()
    dendrite.query(axon, Ask(text="a"))
    assert len(dendrite.synapse_history) == 0
    dendrite = make_dendrite(history=2)
    for text in "abc":
        dendrite.query(axon, Ask(text=text))
    assert len(dendrite.synapse_history) == 2
    for kept in dendrite.synapse_history:
        assert (kept.name, kept.dendrite.status_code) == ("Ask", 200)
        assert kept.axon.hotkey == MINER_HOTKEY
        assert not hasattr(kept, "text")


def test_our_address_is_looked_up_if_somebody_reads_it(
    make_dendrite, axon, monkeypatch
):
    """Once, and not for a call."""
    looked = []
    monkeypatch.setattr(
        asking.addresses, "external_ip", lambda: looked.append(1) or "192.0.2.5"
    )
    dendrite = make_dendrite()
    result = dendrite.query(axon, Ask(), deserialize=False)
    assert (result.dendrite.ip, looked) == (None, [])
    assert dendrite.external_ip == dendrite.external_ip == "192.0.2.5"
    assert looked == [1]
    result = dendrite.query(axon, Ask(), deserialize=False)
    assert result.dendrite.ip == "192.0.2.5"
    dendrite.external_ip = "192.0.2.6"
    result = dendrite.query(axon, Ask(), deserialize=False)
    assert result.dendrite.ip == dendrite.external_ip == "192.0.2.6"
    assert looked == [1]


async def test_our_address_is_told_to_http_too(make_dendrite):
    """Also if it was set later."""
    dendrite = make_dendrite(http=True)
    client = dendrite._http_end()
    assert client.external_ip is None
    dendrite.external_ip = "192.0.2.6"
    assert dendrite._http_end() is client
    assert client.external_ip == "192.0.2.6"
    there = AxonInfo(ip="192.0.2.6", port=8091)
    assert dendrite._get_endpoint_url(there, "Ask") == "http://0.0.0.0:8091/Ask"


# What subclasses replace.


class Hooked(Dendrite):
    """Notes what is called, and does as its parent."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.called = []

    def preprocess_synapse_for_request(self, target_axon_info, synapse, timeout=12.0):
        self.called.append("preprocess_synapse_for_request")
        synapse.text += f" to {len(self.called)}"
        return super().preprocess_synapse_for_request(
            target_axon_info, synapse, timeout
        )

    def process_server_response(self, server_response, json_response, local_synapse):
        self.called.append("process_server_response")
        assert server_response.status in (200, 404)
        super().process_server_response(server_response, json_response, local_synapse)

    def process_error_message(self, synapse, request_name, exception):
        self.called.append("process_error_message")
        return super().process_error_message(synapse, request_name, exception)

    def log_exception(self, exception):
        self.called.append("log_exception")

    def _log_outgoing_request(self, synapse):
        self.called.append("_log_outgoing_request")

    def _log_incoming_response(self, synapse):
        self.called.append("_log_incoming_response")

    def _get_endpoint_url(self, target_axon, request_name):
        self.called.append("_get_endpoint_url")
        return super()._get_endpoint_url(target_axon, request_name)


@pytest.mark.parametrize("http", [False, True])
def test_what_a_subclass_replaces_is_called(make_dendrite, start_axon, http):
    """In bittensor's order, over both, and warm as well as cold."""

    async def forward(synapse: Ask) -> Ask:
        synapse.answer = synapse.text
        return synapse

    axon = start_axon(forward, quic=not http, http=http)
    dendrite = make_dendrite(kind=Hooked, quic=not http, http=http)
    for _ in range(2):
        dendrite.called.clear()
        result = dendrite.query(axon, Ask(text="a"), timeout=9, deserialize=False)
        url = ["_get_endpoint_url"] if http else []
        assert dendrite.called == [
            "preprocess_synapse_for_request",
            "_log_outgoing_request",
            *url,
            "process_server_response",
            "_log_incoming_response",
        ]
        assert result.answer == result.text == "a to 1"
        assert result.dendrite.status_code == result.axon.status_code == 200
        assert result.dendrite.signature.startswith("0x")
        assert result.dendrite.uuid == dendrite.uuid
        assert result.dendrite.hotkey == VALIDATOR_HOTKEY
        assert (result.axon.ip, result.axon.port) == ("127.0.0.1", axon.port)
        assert result.timeout == 9.0
    dendrite.called.clear()
    answers = dendrite.query([axon, axon], Ask(text="a"))
    # Each has the body that the hook gave it.
    assert all(answer.startswith("a to ") for answer in answers)
    assert len(set(answers)) == 2


def test_a_replaced_hook_is_called_for_streams(make_dendrite, axon):
    """At their end, and the result is the same."""
    dendrite = make_dendrite(kind=Hooked)

    async def main():
        return [item async for item in dendrite.call_stream(axon, Said())]

    class Said(Chat):
        text: str = ""

    Said.__name__ = "Chat"
    *_, last = asyncio.run(main())
    assert "process_server_response" in dendrite.called
    assert last.said == "one two"
    assert last.dendrite.status_code == last.axon.status_code == 200
    assert (last.dendrite.uuid, last.axon.port) == (dendrite.uuid, axon.port)


def test_replaced_error_hooks_are_called(make_dendrite, dead):
    """Once for each failure."""
    dendrite = make_dendrite(kind=Hooked)
    [result] = dendrite.query([dead], Ask(), deserialize=False)
    assert dendrite.called[2:] == [
        "process_error_message",
        "log_exception",
        "_log_incoming_response",
    ]
    assert result.dendrite.status_code == 503


def test_a_refusal_goes_through_the_hook(make_dendrite, axon):
    """With the status that it would have over HTTP."""

    class Unknown(Ask):
        pass

    dendrite = make_dendrite(kind=Hooked)
    result = dendrite.query(axon, Unknown(text="a"), deserialize=False)
    assert "process_server_response" in dendrite.called
    assert result.dendrite.status_code == result.axon.status_code == 404
    assert result.dendrite.status_message == "Synapse name 'Unknown' not found"


def test_a_replaced_call_is_called_for_each(make_dendrite, axon):
    """Of a class and of one object, as tests of subnets do."""

    class Canned(Dendrite):
        async def call(self, target_axon, synapse, timeout=12.0, deserialize=True):
            return target_axon.port

    assert make_dendrite(kind=Canned).query([axon, axon], Ask()) == [axon.port] * 2

    async def canned(**given):
        return sorted(given)

    dendrite = make_dendrite()
    dendrite.call = canned
    names = ["deserialize", "synapse", "target_axon", "timeout"]
    assert dendrite.query([axon, axon], Ask()) == [names] * 2


def test_a_replaced_forward_answers_all_ways_to_ask(make_dendrite):
    """As the mock of the subnet template has it."""

    class Mock(Dendrite):
        async def forward(self, axons, synapse=None, timeout=12, **_):
            return [axon["uid"] for axon in axons]

    dendrite = make_dendrite(kind=Mock)
    axons = [{"uid": 1}, {"uid": 2}]
    assert dendrite.query(axons) == [1, 2]
    assert asyncio.run(dendrite(axons)) == [1, 2]
    assert asyncio.run(dendrite.aquery(axons=axons)) == [1, 2]


# What it costs.


def test_failed_calls_are_told_at_debug_level_only(make_dendrite, dead, caplog):
    """One line for each, without the address above debug."""
    dendrite = make_dendrite()
    with caplog.at_level("INFO"):
        dendrite.query([dead] * 3, Ask())
    assert not caplog.records
    with caplog.at_level("DEBUG", "lightning.dendrite"):
        dendrite.query(dead, Ask())
    failed = [r for r in caplog.records if r.msg.startswith("a call failed")]
    assert len(failed) == 1


def test_threads_that_ask_at_once_share_one_loop(make_dendrite, axon):
    """Blocking queries need no loop of their own."""
    dendrite = make_dendrite()
    answers = []

    def ask(text):
        answers.append(dendrite.query(axon, Ask(text=text)))

    threads = [threading.Thread(target=ask, args=(text,)) for text in "abcdef"]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) == 6)
    for thread in threads:
        thread.join()
    assert sorted(answers) == list("ABCDEF")
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("lightning-dendrite") == 1
