from collections.abc import Mapping
from typing import Any, ClassVar, Self, final

from typing_extensions import Buffer, disjoint_base

@disjoint_base
class Message:
    __hash__: ClassVar[None]  # type: ignore[assignment]  # equal, so not hashable
    @classmethod
    def from_payload(cls, payload: Buffer) -> Self: ...
    def to_frame(self, max_payload: int = 67108864) -> bytes: ...

@final
class HandshakeRequest(Message):
    def __init__(
        self, validator_hotkey: str, timestamp: int, nonce: str, signature: str
    ) -> None: ...
    @property
    def validator_hotkey(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def nonce(self) -> str: ...
    @property
    def signature(self) -> str: ...

@final
class HandshakeResponse(Message):
    def __init__(
        self,
        miner_hotkey: str,
        timestamp: int,
        signature: str,
        accepted: bool,
        connection_id: str,
        cert_fingerprint: str | None = None,
    ) -> None: ...
    @property
    def miner_hotkey(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def signature(self) -> str: ...
    @property
    def accepted(self) -> bool: ...
    @property
    def connection_id(self) -> str: ...
    @property
    def cert_fingerprint(self) -> str | None: ...

@final
class SynapsePacket(Message):
    def __init__(
        self, synapse_type: str, data: Mapping[str, Any], timestamp: int
    ) -> None: ...
    @property
    def synapse_type(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def timestamp(self) -> int: ...

@final
class SynapseResponse(Message):
    def __init__(
        self,
        success: bool,
        data: Mapping[str, Any],
        timestamp: int,
        error: str | None = None,
    ) -> None: ...
    @property
    def success(self) -> bool: ...
    @property
    def data(self) -> Any: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def error(self) -> str | None: ...

@final
class StreamChunk(Message):
    def __init__(self, data: Buffer) -> None: ...
    @property
    def data(self) -> Any: ...

@final
class StreamEnd(Message):
    def __init__(self, success: bool, error: str | None = None) -> None: ...
    @property
    def success(self) -> bool: ...
    @property
    def error(self) -> str | None: ...

@final
class Layout:
    @property
    def name(self) -> str: ...
    @property
    def fields(self) -> tuple[str, ...]: ...

def encode_synapse_packet(
    synapse_type: str,
    data: Mapping[str, Any],
    timestamp: int,
    max_payload: int = 67108864,
) -> bytes: ...
def encode_synapse_response(
    success: bool,
    data: Mapping[str, Any],
    timestamp: int,
    error: str | None = None,
    max_payload: int = 67108864,
) -> bytes: ...
def encode_stream_chunk(data: Buffer, max_payload: int = 67108864) -> bytes: ...
def encode_stream_end(
    success: bool, error: str | None = None, max_payload: int = 67108864
) -> bytes: ...
def decode_message(frame_type: int, payload: Buffer) -> Message: ...
