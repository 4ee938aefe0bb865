"""What a type checker sees of the public names; run by ``make types``, never executed."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_type

from lightning import (
    AsyncLightning,
    AsyncLightningServer,
    BlockingStreamingResponse,
    HandlerContext,
    Lightning,
    LightningClientConfig,
    LightningServer,
    LightningServerConfig,
    MessageType,
    PeerAddr,
    QuicAxonInfo,
    QuicRequest,
    QuicResponse,
    SourceAllowlist,
    Sr25519Signer,
    StreamingResponse,
    SynapsePacket,
    parse_frame_header,
    typed_async_handler,
    typed_handler,
)
from lightning.types import SynapseResponseDict


@dataclass
class Question:
    text: str


@dataclass
class Answer:
    words: int


@typed_handler
def count(question: Question) -> Answer:
    return Answer(len(question.text))


@typed_async_handler
async def count_later(question: Question, context: HandlerContext) -> Answer:
    assert_type(context.hotkey, str)
    assert_type(context.address, PeerAddr)
    return Answer(len(question.text))


async def numbers(data: dict[str, Any]) -> AsyncIterator[bytes]:
    yield b"1"


async def asynchronous() -> None:
    signer = Sr25519Signer.from_seed(bytes(32))
    assert_type(signer.sign(b""), bytes)
    async with AsyncLightningServer("m", port=0, signer=signer) as server:
        server.register_synapse_handler("count", count)
        await server.register_async_synapse_handler("later", count_later)
        server.register_streaming_handler("numbers", numbers)
        server.set_validator_permit_resolver(lambda: {"v"})
        server.set_source_address_resolver(SourceAllowlist.bypass)
        assert_type(server.local_addr(), PeerAddr)
        assert_type(server.config, LightningServerConfig)
    config = LightningClientConfig.builder().connect_timeout(3.0).build()
    assert_type(config, LightningClientConfig)
    async with AsyncLightning("v", signer=signer, config=config) as client:
        axon = QuicAxonInfo("m", "127.0.0.1", 1)
        answer = await client.query_axon(axon, QuicRequest("echo", {"a": 1}))
        assert_type(answer, QuicResponse)
        assert_type(answer.data, dict[str, Any])
        assert_type(answer.error, str | None)
        assert_type(answer.deserialize_data(Answer), Answer)
        stream = await client.query_axon_stream(axon, {"synapse_type": "numbers"})
        assert_type(stream, StreamingResponse)
        async for chunk in stream:
            assert_type(chunk, bytes)
        assert_type(await stream.collect_all(), list[bytes])
        assert_type(await client.authenticated_hotkeys(), set[str])


def blocking() -> None:
    with LightningServer("m", port=0) as server, Lightning("v") as client:
        assert_type(server.local_addr(), PeerAddr)
        axon = {"hotkey": "m", "ip": "127.0.0.1", "port": 1}
        answer = client.query_axon(axon, {"synapse_type": "echo"}, timeout_secs=1)
        assert_type(answer, SynapseResponseDict)
        assert_type(answer["success"], bool)
        stream = client.query_axon_stream(axon, {"synapse_type": "s"})
        assert_type(stream, BlockingStreamingResponse)
        for chunk in stream:
            assert_type(chunk, bytes)


def wire() -> None:
    assert_type(parse_frame_header(b""), tuple[MessageType, bytes])
    packet = SynapsePacket("echo", {}, 0)
    assert_type(packet.to_frame(), bytes)
    assert_type(packet.synapse_type, str)
