"""Streams."""

import asyncio
import typing
from collections.abc import Awaitable, Callable
from typing import Any

from tests.dropin.cases import MIB, Case, Here, case, tried
from tests.dropin.faces import Face


def streaming(bt: Face, name: str) -> Any:
    """Make a class of streams as subnets write it."""

    class Streamed(bt.StreamingSynapse):
        question: str = "asked"
        completion: str = ""

        async def process_streaming_response(self, response):
            self.completion = ""
            async for chunk in response.content.iter_any():
                text = chunk.decode("utf-8")
                self.completion += text
                yield text

        def deserialize(self):
            return self.completion

        def extract_response_json(self, response):
            headers = {
                key.decode("utf-8"): value.decode("utf-8")
                for key, value in response.__dict__["_raw_headers"]
            }

            def part(prefix):
                return {
                    key.split("_")[-1]: value
                    for key, value in headers.items()
                    if key.startswith(prefix)
                }

            return {
                "name": headers.get("name", ""),
                "timeout": float(headers.get("timeout", 0)),
                "total_size": int(headers.get("total_size", 0)),
                "header_size": int(headers.get("header_size", 0)),
                "dendrite": part("bt_header_dendrite"),
                "axon": part("bt_header_axon"),
                "question": self.question,
                "completion": self.completion,
            }

    Streamed.__name__ = Streamed.__qualname__ = name
    return Streamed


def streamer(kind: Any, *said: Any) -> Any:
    """Make a miner's function that streams; an exception in it is raised there."""

    def forward(synapse: kind) -> kind:
        async def stream(send):
            for each in said:
                if isinstance(each, BaseException):
                    raise each
                await send(
                    {"type": "http.response.body", "body": each, "more_body": True}
                )

        return synapse.create_streaming_response(stream)

    return forward


async def gathered(generator: Any) -> Any:
    """Return the text of a stream and its last item."""
    chunks = []
    async for each in generator:
        chunks.append(each)
    texts = chunks[:-1]
    return {
        "texts": "".join(texts),
        "kinds": sorted({type(each).__name__ for each in texts}),
        "last": chunks[-1],
    }


def streamed(synapse: Any, **other: Any) -> Callable[[Any, Here], Awaitable[Any]]:
    """Ask one miner for a stream."""

    async def ask(dendrite: Any, here: Here) -> Any:
        told = {"timeout": 5, "deserialize": False, "streaming": True, **other}
        return await gathered(await dendrite(here.miner, synapse, **told))

    return ask


@case
def stream_of_nothing(bt: Face) -> Case:
    kind = streaming(bt, "StreamOfNothing")
    return Case(streamed(kind()), {"forward_fn": streamer(kind)})


@case
def stream_of_one(bt: Face) -> Case:
    kind = streaming(bt, "StreamOfOne")
    return Case(streamed(kind()), {"forward_fn": streamer(kind, b"one")})


@case
def stream_of_many(bt: Face) -> Case:
    kind = streaming(bt, "StreamOfMany")
    said = [f"word {i} ".encode() for i in range(300)]
    return Case(streamed(kind()), {"forward_fn": streamer(kind, *said)})


@case
def stream_with_a_large_chunk(bt: Face) -> Case:
    kind = streaming(bt, "StreamWithALargeChunk")
    return Case(streamed(kind()), {"forward_fn": streamer(kind, b"a" * MIB, b"b")})


@case
def streams_in_a_list(bt: Face) -> Case:
    kind = streaming(bt, "StreamsInAList")

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await dendrite([here.miner, here.miner], kind(), streaming=True)
        return [await gathered(each) for each in told]

    return Case(ask, {"forward_fn": streamer(kind, b"a", b"b")})


@case
def stream_by_call_stream(bt: Face) -> Case:
    kind = streaming(bt, "StreamByCallStream")

    async def ask(dendrite: Any, here: Here) -> Any:
        return await gathered(
            dendrite.call_stream(here.miner, kind(question="why"), 5.0, False)
        )

    return Case(ask, {"forward_fn": streamer(kind, b"a", b"b")})


@case
def stream_with_the_last_flag(bt: Face) -> Case:
    kind = streaming(bt, "StreamWithTheLastFlag")

    async def forward(synapse: kind) -> kind:
        async def stream(send):
            for each, more in ((b"a", True), (b"b", False)):
                await send(
                    {"type": "http.response.body", "body": each, "more_body": more}
                )

        return synapse.create_streaming_response(token_streamer=stream)

    return Case(streamed(kind()), {"forward_fn": forward})


@case
def stream_blacklisted(bt: Face) -> Case:
    kind = streaming(bt, "StreamBlacklisted")

    def blacklist(synapse: kind) -> typing.Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        return True, "no streams for you"

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await gathered(
            await dendrite(here.miner, kind(), deserialize=False, streaming=True)
        )
        # What a refusal says arrives where chunks do.
        return {"last": told["last"].dendrite.status_code}

    return Case(ask, {"forward_fn": streamer(kind, b"a"), "blacklist_fn": blacklist})


@case
def stream_that_fails_at_once(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatFailsAtOnce")

    def forward(synapse: kind) -> kind:
        raise RuntimeError("secret")

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await gathered(
            await dendrite(here.miner, kind(), deserialize=False, streaming=True)
        )
        return {"last": told["last"].dendrite.status_code}

    return Case(ask, {"forward_fn": forward})


@case
def stream_that_fails_before_a_chunk(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatFailsBeforeAChunk")
    return Case(
        streamed(kind()), {"forward_fn": streamer(kind, RuntimeError("secret"))}
    )


@case
def stream_that_fails_within(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatFailsWithin")
    said = (b"a", b"b", RuntimeError("secret"))
    return Case(streamed(kind()), {"forward_fn": streamer(kind, *said)})


@case
def stream_whose_reader_fails(bt: Face) -> Case:
    base = streaming(bt, "StreamWhoseReaderFails")

    class Failing(base):
        def extract_response_json(self, response):
            raise ValueError("no json")

    Failing.__name__ = "StreamWhoseReaderFails"

    def forward(synapse: Failing) -> Failing:
        return streamer(Failing, b"a")(synapse)

    return Case(streamed(Failing()), {"forward_fn": forward})


@case
def stream_that_is_too_slow(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatIsTooSlow")

    async def forward(synapse: kind) -> kind:
        async def stream(send):
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(1.5)
            await send({"type": "http.response.body", "body": b"b", "more_body": True})

        return synapse.create_streaming_response(stream)

    return Case(streamed(kind(), timeout=0.4), {"forward_fn": forward})


@case
def stream_from_nobody(bt: Face) -> Case:
    kind = streaming(bt, "StreamFromNobody")

    async def ask(dendrite: Any, here: Here) -> Any:
        return await gathered(
            await dendrite(here.dead, kind(), timeout=3, deserialize=False)
        )

    return Case(ask)


@case
def stream_that_is_left(bt: Face) -> Case:
    kind = streaming(bt, "StreamThatIsLeft")

    async def ask(dendrite: Any, here: Here) -> Any:
        generator = await dendrite(here.miner, kind(), deserialize=False)
        first = await anext(generator)
        return {"first": first[:1], "left": await tried(generator.aclose())}

    return Case(ask, {"forward_fn": streamer(kind, *[b"a"] * 3)})


@case
def answer_without_a_stream(bt: Face) -> Case:
    kind = streaming(bt, "AnswerWithoutAStream")

    async def forward(synapse: kind) -> kind:
        synapse.completion = "no stream"
        return synapse

    async def ask(dendrite: Any, here: Here) -> Any:
        told = await gathered(await dendrite(here.miner, kind(), deserialize=False))
        return {"last": told["last"].dendrite.status_code}

    return Case(ask, {"forward_fn": forward})
