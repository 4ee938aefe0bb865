from collections.abc import Buffer
from typing import Any, Final

BUDGET_BASE: Final = 16777216
BUDGET_FACTOR: Final = 32

def unpackb(data: Buffer, *, max_depth: int = 1024) -> Any: ...
