from typing import final

from typing_extensions import Buffer

__all__ = ["Udp"]

@final
class Udp:
    def __init__(
        self,
        fd: int,
        *,
        gso: bool = True,
        gro: bool = True,
        ecn: bool = True,
        plain: bool = False,
    ) -> None: ...
    def send(
        self,
        data: Buffer,
        address: tuple[str, int],
        *,
        segment: int = 0,
        ecn: int = 0,
    ) -> bool: ...
    def answer(self, data: Buffer, *, segment: int = 0, ecn: int = 0) -> bool: ...
    def flush(self) -> bool: ...
    def receive(self) -> list[tuple[bytes, tuple[str, int], int]]: ...
    def errors(self) -> list[tuple[tuple[str, int] | None, int]]: ...
    def fail_next(self, error: int, after: int = 0) -> None: ...
    def fail_receive(self, error: int) -> None: ...
    def stats(self) -> dict[str, int]: ...
