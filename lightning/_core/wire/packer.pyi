from typing import Final, final

MAX_DEPTH: Final = 1024

def packb(value: object) -> bytes: ...

@final
class Writer: ...
