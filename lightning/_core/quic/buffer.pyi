from typing import Literal, TypeAlias

from typing_extensions import Buffer

_Kind: TypeAlias = Literal["u8", "u16", "u32", "u64", "varint", "bytes", "skip"]

def read(
    kind: _Kind, data: Buffer, size: int = 0
) -> tuple[int, int | bytes | None, int]: ...
def write(kind: _Kind, value: int | Buffer, room: int) -> tuple[int, bytes]: ...
def size_varint(value: int) -> int: ...
