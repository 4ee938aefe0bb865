"""MessagePack for the messages: Python values to bytes and back.

| Python | MessagePack | Python again |
| --- | --- | --- |
| None, bool | nil, bool | the same |
| int, ``__index__``; -2 ** 63 to 2 ** 64 - 1 | int | int |
| float, numpy.float16; numpy.float32 | float 64; float 32 | float |
| str | str | str; bytes if it is not UTF-8 |
| bytes, bytearray, memoryview, other buffers of single bytes | bin | bytes |
| list, tuple, other buffers of numbers | array | list |
| dict, Mapping | map | dict |
| | ext | bytes; the type is dropped |
"""

from lightning._core.wire.packer import MAX_DEPTH, packb
from lightning._core.wire.unpacker import BUDGET_BASE, BUDGET_FACTOR, unpackb

__all__ = ["BUDGET_BASE", "BUDGET_FACTOR", "MAX_DEPTH", "packb", "unpackb"]
