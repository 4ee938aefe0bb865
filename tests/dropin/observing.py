"""What a caller can see of a result, in a form in which two can be compared."""

import hashlib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

BASE = (
    "name",
    "timeout",
    "total_size",
    "header_size",
    "dendrite",
    "axon",
    "computed_body_hash",
)
TERMINAL = (
    "status_code",
    "status_message",
    "process_time",
    "ip",
    "port",
    "version",
    "nonce",
    "uuid",
    "hotkey",
    "signature",
)
OUTCOMES = (
    "is_success",
    "is_failure",
    "is_timeout",
    "is_blacklist",
    "failed_verification",
)
# What differs from run to run: its type is compared.
_ANY = ("process_time", "nonce", "uuid", "signature", "version")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SECONDS = re.compile(r"\d+\.\d{3,}")
_ADDRESS = re.compile(r"(?<=127\.0\.0\.1:)\d+")
_LISTED = re.compile(r"Available synapses \[.*\]", re.DOTALL)
_LONG = 200


def is_synapse(thing: Any) -> bool:
    """Tell, by shape, as the package does."""
    return all(hasattr(thing, name) for name in ("model_dump", "dendrite", "axon"))


def observe(thing: Any) -> Any:
    """Return what can be seen of it."""
    if is_synapse(thing):
        return _synapse(thing)
    if isinstance(thing, BaseException):
        return {"raised": type(thing).__name__}
    if hasattr(thing, "model_dump"):
        return {"model": type(thing).__name__, **observe(dict(thing))}
    if isinstance(thing, dict):
        return {str(key): observe(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        kind = type(thing).__name__
        return {"kind": kind, **{str(i): observe(each) for i, each in enumerate(thing)}}
    return _plain(thing)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        value = _ID.sub("<id>", value)
        value = _ADDRESS.sub("<port>", value)
        value = _LISTED.sub("Available synapses <names>", value)
    if isinstance(value, str | bytes) and len(value) > _LONG:
        raw = value.encode() if isinstance(value, str) else value
        digest = hashlib.sha256(raw).hexdigest()[:16]
        return f"{type(value).__name__} of {len(value)}: {digest}"
    if value is None or isinstance(value, bool | int | str):
        return value
    return f"{type(value).__name__} {value!r}"


def _terminal(terminal: Any) -> dict[str, Any]:
    seen = {}
    for name in TERMINAL:
        value = getattr(terminal, name)
        if name in _ANY and value is not None:
            value = f"some {type(value).__name__}"
        if name == "port" and value is not None:
            value = "some port" if value else value
        seen[name] = _plain(value)
    return seen


def _synapse(synapse: Any) -> dict[str, Any]:
    own = {
        name: observe(getattr(synapse, name))
        for name in type(synapse).model_fields
        if name not in BASE
    }
    return {
        "class": type(synapse).__name__,
        "name": synapse.name,
        "timeout": _plain(synapse.timeout),
        "fields": own,
        "dendrite": _terminal(synapse.dendrite),
        "axon": _terminal(synapse.axon),
        **{name: getattr(synapse, name) for name in OUTCOMES},
    }


def flat(seen: Any, path: str = "") -> dict[str, Any]:
    """Return all that was seen, by its path."""
    if not isinstance(seen, dict):
        return {path: seen}
    found: dict[str, Any] = {}
    for name, value in seen.items():
        found |= flat(value, f"{path}.{name}" if path else name)
    return found


ABSENT = "<absent>"


def compared(reference: Any, seen: Any) -> dict[str, tuple[Any, Any]]:
    """Return what is not the same, by its path: what it should be, and what it is."""
    wanted, got = flat(reference), flat(seen)
    return {
        path: (wanted.get(path, ABSENT), got.get(path, ABSENT))
        for path in {**wanted, **got}
        if wanted.get(path, ABSENT) != got.get(path, ABSENT)
    }


def matches(text: str, patterns: Iterable[str]) -> bool:
    """Tell whether a text is as one of some patterns says."""
    return any(fnmatchcase(text, pattern) for pattern in patterns)
