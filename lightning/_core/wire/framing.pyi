import enum
from typing import Final, final

from typing_extensions import Buffer

HEADER_SIZE: Final = 5
DEFAULT_MAX_FRAME_PAYLOAD: Final = 67108864
MIN_FRAME_PAYLOAD_LIMIT: Final = 1048576
MAX_FRAME_PAYLOAD_LIMIT: Final = 4294967295

class MessageType(enum.IntEnum):
    HANDSHAKE_REQUEST = 1
    HANDSHAKE_RESPONSE = 2
    SYNAPSE_PACKET = 3
    SYNAPSE_RESPONSE = 4
    STREAM_CHUNK = 5
    STREAM_END = 6
    @property
    def wire_name(self) -> str: ...

def parse_frame_header(
    data: Buffer, max_payload: int = 67108864
) -> tuple[MessageType, bytes]: ...

@final
class FrameReader:
    max_payload: int
    def __init__(self, max_payload: int = 67108864) -> None: ...
    @property
    def ready(self) -> bool: ...
    @property
    def received(self) -> int: ...
    @property
    def expected(self) -> int: ...
    def feed(self, data: Buffer, offset: int = 0) -> int: ...
    def take(self) -> tuple[int, bytes]: ...
