"""Which synapse a function answers, by its annotations."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from lightning.binding import code_of, name_of, signature_of
from lightning.errors import ConfigError
from lightning.handlers import _resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AttachError", "is_synapse_class", "synapse_class_of"]

# What a class has that is a synapse, ours or another's.
SHAPE = ("model_fields", "model_dump", "deserialize")


class AttachError(ConfigError, TypeError, AssertionError):
    """A function cannot be attached to an axon: it takes no synapse, or another."""


def synapse_class_of(
    forward_fn: Any,
    others: Mapping[str, Any],
    local_names: Mapping[str, Any],
) -> type:
    """Find the synapse that functions are for.

    The annotation of the first parameter says it, whatever that parameter's name; it
    may be a string. Where the forward function has none, those of the others do. They
    need none, but may not say another synapse, unless it is a base of that one. What a
    function says it returns does not matter.

    Args:
        forward_fn: A function, method, ``functools.partial`` or callable object.
        others: Blacklist, priority and verify functions by name, or None for each.
        local_names: Names that string annotations may use besides those of the
            functions' modules.

    Returns:
        The class.

    Raises:
        AttachError: A function cannot be called with a synapse alone, or no synapse or
            two different ones are annotated.
    """
    said = _annotated("forward_fn", forward_fn, local_names)
    if said is not None and not is_synapse_class(said):
        raise AttachError(
            f"the first argument of forward_fn {name_of(forward_fn)} must be annotated "
            f"with a subclass of Synapse, not {_name(said)}"
        )
    for role, function in others.items():
        if function is None:
            continue
        other = _annotated(role, function, local_names)
        if not is_synapse_class(other):
            continue
        if said is None:
            said = other
        elif not issubclass(said, other):
            raise AttachError(
                f"{role} {name_of(function)} is for {_name(other)}, but forward_fn "
                f"{name_of(forward_fn)} is for {_name(said)}"
            )
    if said is None:
        raise AttachError(
            f"annotate the first argument of forward_fn {name_of(forward_fn)} with a "
            "subclass of Synapse, which must exist when it is attached"
        )
    result: type = said
    return result


def is_synapse_class(thing: Any) -> bool:
    """Say if something is a synapse class, ours or one of the same shape."""
    return isinstance(thing, type) and all(hasattr(thing, name) for name in SHAPE)


def _annotated(role: str, function: Any, local_names: Mapping[str, Any]) -> Any:
    """Return what the first parameter is annotated with, None if with nothing."""
    if not callable(function):
        raise AttachError(f"{role} must be callable, not {type(function).__name__}")
    try:
        signature = signature_of(function)
    except (TypeError, ValueError):
        # Some builtins have none.
        return None
    try:
        signature.bind(object())
    except TypeError as error:
        raise AttachError(
            f"{role} {name_of(function)} must take a synapse and nothing else: {error}"
        ) from None
    first = next(iter(signature.parameters.values()))
    if first.kind is first.VAR_POSITIONAL or first.annotation is first.empty:
        return None
    try:
        return _resolve(first.annotation, _source(function), local_names)
    except ConfigError as error:
        raise AttachError(error.detail) from error


def _source(function: Any) -> Any:
    """Return the plain function whose module the annotations' names are of."""
    return inspect.unwrap(code_of(function))


def _name(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, type) else repr(thing)
