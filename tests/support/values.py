"""Values that must survive a trip through either side's handlers."""

VALUES = {
    "none": None,
    "yes": True,
    "no": False,
    "zero": 0,
    "small": 42,
    "negative": -7,
    "largest": 2**64 - 1,
    "smallest": -(2**63),
    "float": 3.14,
    "infinite": float("inf"),
    "text": "hello",
    "empty text": "",
    "other scripts": "τάο 道 🌩",
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "list": [1, "two", [3.0, None], {}],
    "nested": {"a": {"b": {"c": [True, b"x"]}}},
}
