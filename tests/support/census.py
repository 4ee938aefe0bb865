"""Counting what a program holds: memory, descriptors, threads, objects, table entries."""

import asyncio
import ctypes
import fnmatch
import gc
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning._core.quic.engine import Endpoint as Engine

_CONTAINERS = (dict, list, set, frozenset, tuple)
_ENGINE = ("connections", "half_open", "blocks_in_use", "streams_in_use")


def is_ours(thing: object) -> bool:
    """Say if something is an instance of a class of the package."""
    module = type(thing).__module__
    return isinstance(module, str) and module.partition(".")[0] == "lightning"


def _attributes(thing: object) -> dict[str, Any]:
    found = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__}{name}" if name.startswith("__") else name
            if hasattr(thing, mangled):
                found[name] = getattr(thing, mangled)
    return found


def tables(*roots: object) -> Counter[str]:
    """Return how many entries there are in all containers that some objects refer to.

    Returns:
        The sum over all objects of our classes that are reached through attributes and
        containers, by class and attribute; and what the engines count, by "engine".
    """
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    left: list[object] = list(roots)
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            left += [*thing.keys(), *thing.values()]
        elif isinstance(thing, _CONTAINERS):
            left += list(thing)
        elif is_ours(thing):
            for name, value in _attributes(thing).items():
                sized = hasattr(type(value), "__len__")
                if (
                    sized
                    and not isinstance(value, str | bytes | type)
                    and (not is_ours(value))
                ):
                    counts[f"{type(thing).__name__}.{name}"] += len(value)
                left.append(value)
            if isinstance(thing, Engine):
                stats = thing.stats()
                for name in _ENGINE:
                    counts[f"engine.{name}"] += stats.get(name, 0)
    return counts


def objects() -> Counter[str]:
    """Return how many objects there are of each class of the package, and of tasks."""
    gc.collect()
    counts: Counter[str] = Counter()
    for thing in gc.get_objects():
        if is_ours(thing):
            counts[f"{type(thing).__module__}.{type(thing).__qualname__}"] += 1
        elif isinstance(thing, asyncio.Future):
            counts["asyncio.Future"] += 1
    return counts


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
            "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def malloc_bytes():
    """Return the bytes that malloc has given out, or None where libc does not say."""
    try:
        told = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    told.restype = _MallocInfo
    info = told()
    total = info.uordblks + info.hblkhd
    return total or None


def resident() -> int:
    """Return the bytes of memory that this program has, after what is free is returned."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        pass
    return resident_of(os.getpid())


def resident_of(pid: int) -> int:
    """Return the bytes of memory that a program has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def census(*roots: object) -> dict[str, Any]:
    """Return all counts of this program, as JSON can say them."""
    return {
        "memory": resident(),
        "allocated": malloc_bytes() or 0,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(threading.enumerate()),
        "native threads": len(os.listdir("/proc/self/task")),
        "tables": dict(tables(*roots)),
        "objects": dict(objects()),
    }


def grown(
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    memory: int,
    allowed: Mapping[str, int] = {},
) -> dict[str, tuple[int, int]]:
    """Return what there is more of, each with how much there was and is.

    Args:
        before: A census.
        after: A later one.
        memory: Bytes that may have been added.
        allowed: What else may have been added, by a pattern of its name.
    """
    allowance = {"memory": memory, **allowed}
    flat = [
        {
            **{name: value for name, value in each.items() if isinstance(value, int)},
            **each["tables"],
            **each["objects"],
        }
        for each in (before, after)
    ]
    found = {}
    for name, now in flat[1].items():
        then = flat[0].get(name, 0)
        most = max(
            (n for pattern, n in allowance.items() if fnmatch.fnmatch(name, pattern)),
            default=0,
        )
        if now > then + most:
            found[name] = then, now
    return found
