from typing import final

__all__ = ["SourceTable"]

@final
class SourceTable:
    def __init__(
        self,
        *,
        max_strangers: int = 0,
        max_new: int = 0,
        capacity: int = 16,
        secret: int = 1,
    ) -> None: ...
    def __len__(self) -> int: ...
    def admit(self, host: bytes, now: float) -> tuple[int, int]: ...
    def leave(self, place: int) -> None: ...
    def strangers(self, host: bytes) -> int | None: ...
