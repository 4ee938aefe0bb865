from typing import TypeAlias, final

_Record: TypeAlias = tuple[int, int, str, int, int, int, int, int, bytes]

@final
class TraceRing:
    now: int
    def __init__(self, capacity: int = 4194304) -> None: ...
    def append(self, kind: str, data: bytes = b"", number: int = 0) -> None: ...
    def read(self) -> tuple[list[_Record], int]: ...
