from typing import TypedDict

from typing_extensions import Buffer

class _Header(TypedDict):
    type: int
    version: int
    dcid: bytes
    scid: bytes
    token: bytes
    integrity_tag: bytes
    pn_offset: int
    size: int

def parse(data: Buffer, local_cid_size: int = 8) -> tuple[int, _Header]: ...
def decode_number(truncated: int, size: int, expected: int) -> int: ...
def number_size(number: int, largest_acked: int = -1) -> int: ...
def build(
    packet_type: int,
    dcid: bytes,
    scid: bytes = b"",
    *,
    token: bytes = b"",
    pn: int = 0,
    pn_size: int = 1,
    key_phase: bool = False,
    payload: bytes = b"",
    room: int = 1500,
) -> tuple[int, bytes, int]: ...
def header_size(
    packet_type: int,
    dcid_size: int,
    scid_size: int = 0,
    token_size: int = 0,
    pn_size: int = 1,
) -> int: ...
def build_retry(
    dcid: bytes, scid: bytes, token: bytes, *, random: int = 0, room: int = 1500
) -> tuple[int, bytes]: ...
def build_version_negotiation(
    dcid: bytes, scid: bytes, versions: list[int], *, random: int = 0, room: int = 1500
) -> tuple[int, bytes]: ...
def build_stateless_reset(
    random: bytes, token: bytes, room: int = 1500
) -> tuple[int, bytes]: ...
def reserved_bits(first: int) -> bool: ...
def space(packet_type: int) -> int: ...
def bench_parse(data: Buffer, count: int) -> None: ...
