"""What an axon says of a stream, in chunks that begin with our mark."""

import msgspec
import pytest

from lightning.dropin.exceptions import SynapseParsingError
from lightning.dropin.marked import MARK_SIZE, Marked, raw_headers, told

MARK = b"\x00mark\xff\x01\x02"
HEAD = MARK + msgspec.msgpack.encode({"status_code": 200, "headers": [[b"a", b"b"]]})
TAIL = MARK + msgspec.msgpack.encode({"status_code": 500, "status_message": "broken"})


class Chunks:
    """The chunks of a stream."""

    def __init__(self, chunks):
        self.chunks = list(chunks)
        self.is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def aclose(self):
        self.is_closed = True


async def read(*chunks):
    body = Marked(Chunks(chunks), MARK)
    await body.begin()
    head = body.told
    return head, [chunk async for chunk in body if chunk], body.told


async def test_what_is_told_is_no_part_of_the_body():
    """Neither at the beginning nor at the end."""
    head, body, last = await read(HEAD, b"one", b"two", TAIL)
    assert head["status_code"] == 200
    assert body == [b"one", b"two"]
    assert last == {"status_code": 500, "status_message": "broken"}


@pytest.mark.parametrize("body", [[], [b"one"], [b"one", b"two"], [MARK[:-1], b"x"]])
async def test_a_miner_that_knows_no_mark_sends_only_its_body(body):
    """Nothing of it is lost, whatever it begins with."""
    assert await read(*body) == (None, body, None)


async def test_to_know_of_a_refusal_one_chunk_is_read():
    """The rest is not waited for."""
    chunks = Chunks([TAIL, b"more"])
    body = Marked(chunks, MARK)
    await body.begin()
    assert body.told["status_code"] == 500
    assert chunks.chunks == [b"more"]
    await body.aclose()
    assert chunks.is_closed


@pytest.mark.parametrize("packed", [b"", b"\xc1", msgspec.msgpack.encode([1, 2])])
async def test_what_is_no_map_is_refused(packed):
    """By a named exception."""
    with pytest.raises(SynapseParsingError):
        await read(MARK + packed)


def test_headers_are_pairs_of_bytes():
    """What a miner sends beside them is dropped."""
    good = [b"name", b"Chat"]
    assert raw_headers({"headers": [good, [b"a"], "ab", [b"a", 1], 7]}) == [tuple(good)]
    assert raw_headers({"headers": "no"}) == raw_headers({}) == raw_headers(None) == []


@pytest.mark.parametrize(
    ("meta", "status"),
    [
        (None, (200, "Success", None)),
        ("text", (200, "Success", None)),
        ({}, (200, "Success", None)),
        ({"process_time": 0.5}, (200, "Success", 0.5)),
        ({"process_time": "0.5"}, (200, "Success", None)),
        ({"status_code": 403, "status_message": "no"}, (403, "no", None)),
        ({"status_code": 403}, (403, "", None)),
        ({"status_code": 403, "status_message": 7}, (403, "", None)),
    ],
)
def test_an_answer_says_its_status(meta, status):
    """Success if it says none."""
    assert told(meta) == status


@pytest.mark.parametrize("code", ["200", None, True, 99, 1000, -1, 2.0, [200]])
def test_what_is_no_status_is_refused(code):
    """Nobody takes it for success."""
    with pytest.raises(SynapseParsingError, match="no status code"):
        told({"status_code": code})


def test_the_mark_is_long_enough():
    """No chunk begins with it by chance."""
    assert MARK_SIZE == len(MARK) == 8
