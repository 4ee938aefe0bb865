from typing import Any, Final

from typing_extensions import Buffer

BUDGET_BASE: Final = 16777216
BUDGET_FACTOR: Final = 32
PROBE_BASE: Final = 67108864
PROBE_FACTOR: Final = 8

def unpackb(data: Buffer, *, max_depth: int = 1024) -> Any: ...
