from typing import Final

MAX_DEPTH: Final = 1024

def packb(value: object) -> bytes: ...
