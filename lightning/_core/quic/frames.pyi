from typing import Any

from typing_extensions import Buffer

__all__ = [
    "bench_parse",
    "crypto_fit",
    "kind",
    "parse",
    "scale_ack_delay",
    "stream_fit",
    "write",
]

def parse(
    payload: Buffer, packet_type: int = 5, by_client: bool = True
) -> tuple[int, list[dict[str, Any]], int]: ...
def write(
    frame: dict[str, Any], *, last: bool = False, room: int = 1500
) -> tuple[int, bytes]: ...
def crypto_fit(room: int, offset: int, available: int) -> tuple[int, int]: ...
def stream_fit(
    room: int, stream_id: int, offset: int, available: int
) -> tuple[int, bool, int]: ...
def kind(frame_type: int) -> tuple[bool, bool, bool]: ...
def scale_ack_delay(delay: int, exponent: int) -> int: ...
def bench_parse(payload: Buffer, count: int) -> None: ...
