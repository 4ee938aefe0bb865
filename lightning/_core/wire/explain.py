"""Say where in a value the trouble is, and what to do about a type.

Error paths only: nothing here runs while all goes well.
"""

from __future__ import annotations

__all__ = ["hint", "join_path", "key_step", "short"]

# Segments of a path at either end before its middle is left out.
PATH_ENDS = 8

# By the name of a type or of one of its bases.
TYPE_HINTS = {
    "coroutine": "it was never awaited",
    "set": "use a list, such as sorted(value)",
    "frozenset": "use a list, such as sorted(value)",
    "generator": "use list(value)",
    "range": "use list(value)",
    "deque": "use list(value)",
    "dict_keys": "use list(value)",
    "dict_values": "use list(value)",
    "dict_items": "use list(value)",
    "date": "use value.isoformat()",
    "time": "use value.isoformat()",
    "timedelta": "use value.total_seconds()",
    "Decimal": "use str(value), or float(value) if that is exact enough",
    "Fraction": "use str(value), or float(value) if that is exact enough",
    "complex": "use [value.real, value.imag]",
    "Enum": "use value.value",
    "UUID": "use str(value) or value.bytes",
    "PurePath": "use str(value)",
    "Struct": "use msgspec.to_builtins(value)",
    "MaskedArray": "use value.filled(), or value.tolist()",
    "longdouble": "use float(value) if that is exact enough",
    "datetime64": "use str(value), or value.astype('int64')",
    "timedelta64": "use value.astype('int64')",
}

# By an attribute, where the name says too little.
ATTRIBUTE_HINTS = {
    "model_dump": "use value.model_dump()",
    "__dataclass_fields__": "use dataclasses.asdict(value)",
    "tolist": "use value.tolist()",
    "__next__": "use list(value)",
}


def hint(value: object) -> str:
    """Say what to do about a value of a type that MessagePack cannot say.

    Args:
        value: The value; only its type is looked at.

    Returns:
        A clause such as ``use value.isoformat()``.
    """
    kind = type(value)
    for base in kind.__mro__:
        if base.__name__ in TYPE_HINTS:
            return TYPE_HINTS[base.__name__]
    for attribute, text in ATTRIBUTE_HINTS.items():
        if hasattr(kind, attribute):
            return text
    return "convert it to one that is"


def short(key: object) -> str:
    """Show the beginning of a map key, printable whatever it is.

    Args:
        key: The key.

    Returns:
        At most 80 characters.
    """
    try:
        # A slice first: a key may have megabytes.
        text = repr(key[:40] if isinstance(key, (str, bytes)) else key)
    except Exception as error:
        return f"its repr() failed: {type(error).__name__}"
    return text[:80].encode("ascii", "backslashreplace").decode()


def key_step(key: object) -> str:
    """Name a map's value in a path.

    Args:
        key: The value's key.

    Returns:
        ``.name`` for a short identifier, else ``[...]`` around the key's repr.
    """
    if isinstance(key, str) and len(key) <= 40 and key.isidentifier():
        return f".{key}"
    return f"[{short(key)}]"


def join_path(root: str, steps: list[str]) -> str:
    """Join a path's steps, without the middle of a long one.

    Args:
        root: The name of the outermost value.
        steps: A step for each container, outermost first.

    Returns:
        A path such as ``data.items[3].name``.
    """
    if len(steps) > 2 * PATH_ENDS:
        steps = [*steps[:PATH_ENDS], "...", *steps[-PATH_ENDS:]]
    return root + "".join(steps)
