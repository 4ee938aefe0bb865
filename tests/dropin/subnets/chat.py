"""A subnet that answers in streams, read with ``iter_any`` and ``_raw_headers``."""

from functools import partial
from typing import Any, AsyncIterator, Dict, List, Tuple  # noqa: UP035 - as subnets write it

import pydantic

from lightning import Axon, Dendrite, StreamingSynapse


class StreamPrompting(StreamingSynapse):
    """Messages, and their completion."""

    messages: List[Dict[str, str]] = pydantic.Field(  # noqa: UP006 - as subnets write it
        ..., title="Messages", frozen=True
    )
    required_hash_fields: List[str] = pydantic.Field(  # noqa: UP006 - as subnets write it
        ["messages"], title="Required Hash Fields", frozen=True
    )
    seed: int | None = pydantic.Field(1234)
    completion: str | None = pydantic.Field(None)

    async def process_streaming_response(self, response: Any) -> AsyncIterator[str]:
        if self.completion is None:
            self.completion = ""
        async for chunk in response.content.iter_any():
            token = chunk.decode("utf-8")
            self.completion += token
            yield token

    def deserialize(self) -> str:
        return self.completion

    def extract_response_json(self, response: Any) -> Dict[str, Any]:  # noqa: UP006 - as subnets write it
        headers = {
            key.decode("utf-8"): value.decode("utf-8")
            for key, value in response.__dict__["_raw_headers"]
        }

        def extract_info(prefix: str) -> Dict[str, str]:  # noqa: UP006 - as subnets write it
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
            "dendrite": extract_info("bt_header_dendrite"),
            "axon": extract_info("bt_header_axon"),
            "messages": self.messages,
            "completion": self.completion,
        }


class Miner:
    """Streams each message back, word by word."""

    def __init__(self, wallet: Any, port: int):
        self.axon = Axon(wallet=wallet, port=port, external_ip="127.0.0.1")
        self.axon.attach(forward_fn=self.prompt, blacklist_fn=self.blacklist)

    def prompt(self, synapse: StreamPrompting) -> StreamPrompting:
        async def say(words: List[str], send: Any) -> None:  # noqa: UP006 - as subnets write it
            buffer: List[str] = []  # noqa: UP006 - as subnets write it
            for word in words:
                buffer.append(word)
                if len(buffer) == 3:
                    text = " ".join(buffer) + " "
                    await send(
                        {
                            "type": "http.response.body",
                            "body": text.encode("utf-8"),
                            "more_body": True,
                        }
                    )
                    buffer = []
            await send(
                {
                    "type": "http.response.body",
                    "body": " ".join(buffer).encode("utf-8"),
                    "more_body": False,
                }
            )

        words = synapse.messages[0]["content"].split()
        return synapse.create_streaming_response(partial(say, words))

    async def blacklist(self, synapse: StreamPrompting) -> Tuple[bool, str]:  # noqa: UP006 - as subnets write it
        return False, ""


async def validate(keypair: Any, axons: List[Any]) -> Dict[str, Any]:  # noqa: UP006 - as subnets write it
    """Read a stream of each miner, by both ways."""
    said = "the quick brown fox jumps over the lazy dog again"
    synapse = StreamPrompting(messages=[{"role": "user", "content": said}])
    heard = []
    async with Dendrite(keypair) as dendrite:
        streams = await dendrite(
            axons, synapse, timeout=10, deserialize=False, streaming=True
        )
        for stream in streams:
            full, last = "", None
            async for chunk in stream:
                if isinstance(chunk, str):
                    full += chunk
                last = chunk
            heard.append((full, last.completion, int(last.dendrite.status_code)))
        async for chunk in dendrite.call_stream(
            target_axon=axons[0], synapse=synapse, timeout=10, deserialize=True
        ):
            last = chunk
    return {"heard": heard, "last": last, "untouched": synapse.messages}
