"""What a validator reads of a streamed answer, and what a miner returns for one."""

import pytest

from lightning.dropin.streaming import (
    BTStreamingResponse,
    StreamedResponse,
    StreamingSynapse,
)

RAW = ((b"Content-Type", b"text/plain"), (b"X-Odd", b"\xe9"))


async def chunks(*parts):
    for part in parts:
        yield part


def response(*parts):
    return StreamedResponse(chunks(*parts), 200, RAW)


class Told(StreamingSynapse):
    prompt: str = ""

    async def process_streaming_response(self, response):
        async for piece in response.content.iter_any():
            yield piece

    def extract_response_json(self, response):
        return {}


async def listed(pieces):
    return [piece async for piece in pieces]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("read", "parts", "expected"),
    [
        (lambda c: c.iter_any(), [b"a", b"", b"bc"], [b"a", b"bc"]),
        (lambda c: c.iter_any(), [], []),
        (lambda c: c.iter_chunked(2), [b"abc", b"d"], [b"ab", b"c", b"d"]),
        (lambda c: c.iter_chunks(), [b"a", b"b"], [(b"a", True), (b"b", True)]),
        (lambda c: c, [b"a\nb", b"c\n", b"\nd"], [b"a\n", b"bc\n", b"\n", b"d"]),
        (lambda c: c, [b"\n"], [b"\n"]),
        (lambda c: c, [], []),
    ],
)
async def test_a_body_can_be_read_in_these_ways(read, parts, expected):
    got = response(*parts)
    assert await listed(read(got.content)) == expected
    assert got.content.at_eof()


@pytest.mark.asyncio
async def test_a_body_can_be_read_step_by_step():
    content = response(b"line\nab", b"c", b"rest", b"!").content
    assert await content.readline() == b"line\n"
    assert await content.read(1) == b"a"
    assert await content.readany() == b"b"
    assert await content.readchunk() == (b"c", True)
    assert await content.read(0) == b""
    assert not content.at_eof()
    assert await content.read() == b"rest!"
    assert await content.read(5) == await content.readany() == b""
    assert await content.readchunk() == (b"", False)


@pytest.mark.asyncio
async def test_a_long_body_is_read_in_a_time_that_grows_with_it():
    """Copying all that has come for every piece would take minutes here."""
    parts = [bytes(4096)] * 8192
    assert len(await response(*parts).read()) == 4096 * 8192
    assert len(await response(*parts).content.readline()) == 4096 * 8192


@pytest.mark.asyncio
async def test_whole_bodies_and_headers():
    assert await response(b"a", b"b").read() == b"ab"
    assert await response("é".encode()).text() == "é"
    got = response()
    assert (got.status, got.ok) == (200, True)
    assert got.headers["content-TYPE"] == got.headers.get("CONTENT-type")
    assert "x-odd" in got.headers
    assert 3 not in got.headers
    assert got.headers.get("none", "else") == "else"
    assert dict(got.headers) == {"Content-Type": "text/plain", "X-Odd": "é"}
    # Where many subnets look for them.
    assert got.__dict__["_raw_headers"] == got.raw_headers == RAW


@pytest.mark.asyncio
async def test_an_error_comes_where_it_happens_and_stays():
    """As of aiohttp: what is cut off never looks like what has ended."""

    async def failing():
        yield b"a"
        raise ConnectionError("gone")

    content = StreamedResponse(failing()).content
    assert await content.readany() == b"a"
    for read in (content.readany, content.read, content.readline):
        with pytest.raises(ConnectionError, match="gone"):
            await read()
    assert not content.at_eof()


@pytest.mark.asyncio
async def test_a_synapse_reads_its_own_answer():
    pieces = Told().process_streaming_response(response(b"a", b"b"))
    assert await listed(pieces) == [b"a", b"b"]


def test_a_streaming_synapse_needs_its_two_functions():
    class Half(StreamingSynapse):
        async def process_streaming_response(self, response):
            yield b""

    with pytest.raises(TypeError, match="extract_response_json"):
        Half()


def test_what_a_forward_function_returns():
    async def streamer(send):
        await send({})

    synapse = Told(prompt="p")
    made = synapse.create_streaming_response(streamer)
    assert isinstance(made, StreamingSynapse.BTStreamingResponse)
    assert (made.synapse, made.token_streamer) == (synapse, streamer)
    assert (made.status_code, made.headers) == (200, {})
    assert made.media_type == "text/event-stream"
    wrapped = BTStreamingResponse(made, headers={"a": "b"}, status_code=201)
    assert (wrapped.token_streamer, wrapped.synapse) == (streamer, None)
    assert (wrapped.headers, wrapped.status_code) == ({"a": "b"}, 201)
