"""Conversion between typed objects and the ``data`` map of a message.

A typed object is a dataclass, an attrs class, a TypedDict, a msgspec ``Struct``, a
pydantic model, or a mapping. ``bytes`` stay bytes; enums become their values; dates,
UUIDs and decimals become text, from which the receiver's annotation restores them;
tuples and sets become arrays. A field whose value is ``msgspec.UNSET`` is left out.
A value of any other type, such as a numpy array, is passed on as it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeGuard, TypeVar, cast

import msgspec
from msgspec import inspect as typeinfo

from lightning.errors import ConfigError, DecodeError, EncodeError, EncodeTypeError

__all__ = ["check_data_type", "from_data", "to_data"]

_T = TypeVar("_T")

_BINARY: Final = (bytes, bytearray, memoryview)
# Types that msgspec cannot convert, met so far; a plain value for it from then on.
# Bounded, since a program may make types without end.
_MAX_OPAQUE: Final = 256
_opaque: tuple[type, ...] = _BINARY


def to_data(obj: Any) -> dict[str, Any]:
    """Convert a typed object to a map by field name.

    Args:
        obj: The object; nested typed objects are converted too.

    Returns:
        A new dict. It refers to the object's ``bytes``, it does not copy them.

    Raises:
        EncodeTypeError: The object does not become a map: a number, list, NamedTuple…
        EncodeError: It is nested too deeply, or contains itself.
    """
    global _opaque  # noqa: PLW0603 - a cache, replaced as a whole.
    while True:
        try:
            data = msgspec.to_builtins(obj, builtin_types=_opaque, enc_hook=_unpack)
        except _Opaque as met:
            known = _opaque if len(_opaque) < _MAX_OPAQUE else _BINARY
            _opaque = (*known, met.type)
        except RecursionError:
            raise EncodeError("value nested too deeply, or containing itself") from None
        else:
            if isinstance(data, dict):
                return data
            raise EncodeTypeError(f"{_name(type(obj))} does not become a map")


def from_data(type_: type[_T], data: Mapping[str, Any]) -> _T:
    """Build a typed object from a map, checking every value.

    Values are not coerced: a ``float`` or a ``str`` is no ``int``. Unknown keys are
    ignored.

    Args:
        type_: The type to build; see the module for the kinds.
        data: The map, as it came from the wire.

    Returns:
        The object; for ``dict`` or ``Any`` the map itself.

    Raises:
        DecodeError: A key is missing or a value does not fit; its ``path`` says which.
        ConfigError: The type is not one of the kinds.
    """
    if type_ is dict or type_ is Any:
        return cast("_T", data)
    if _is_model(type_):
        try:
            return cast("_T", type_.model_validate(data))
        except ValueError as error:
            detail, path = _describe(error)
            raise DecodeError(detail, path=f"data{path}") from error
    try:
        built = msgspec.convert(
            data, type_, builtin_types=_BINARY, dec_hook=_build, strict=True
        )
        if _needs_completion(cast("Any", type_)):
            _complete(built)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        raise DecodeError(detail, path=f"data{path.removesuffix('`')}") from error
    except RecursionError:
        raise DecodeError("value nested too deeply") from None
    except TypeError as error:
        # Bad data is a ValidationError; what is left is a type without a conversion.
        raise ConfigError(f"{_name(type_)} is not a usable type: {error}") from error
    return built


@functools.lru_cache(maxsize=256)
def check_data_type(type_: Any) -> None:
    """Check that a type can stand for a message's ``data``.

    Raises:
        ConfigError: It cannot; the text names the type and the kinds that can.
    """
    try:
        info = typeinfo.type_info(type_)
    except (TypeError, NameError) as error:
        raise ConfigError(f"{_name(type_)} is not a usable type: {error}") from error
    members = info.types if isinstance(info, typeinfo.UnionType) else (info,)
    for member in members:
        if not _becomes_map(member):
            raise ConfigError(
                f"{_name(type_)} does not stand for a map; use a dataclass, TypedDict, "
                "msgspec Struct, pydantic model or dict"
            )


def _becomes_map(info: typeinfo.Type) -> bool:
    if isinstance(info, typeinfo.StructType):
        return not info.array_like
    if isinstance(info, typeinfo.CustomType):
        return _is_model(info.cls)
    return isinstance(
        info,
        typeinfo.DataclassType
        | typeinfo.TypedDictType
        | typeinfo.DictType
        | typeinfo.AnyType,
    )


class _Opaque(Exception):
    """Carries a type that msgspec does not know out of its hook."""

    def __init__(self, type_: type) -> None:
        self.type = type_


def _unpack(obj: Any) -> Any:
    """Take one step towards a plain value for msgspec, which then goes on from it."""
    if _is_model(type(obj)):
        return obj.model_dump(mode="python")
    if isinstance(obj, Mapping):
        return dict(obj)
    raise _Opaque(type(obj))


def _build(type_: Any, value: Any) -> Any:
    """Make a value of a type that msgspec does not know; its error gets the path."""
    if _is_model(type_):
        try:
            return type_.model_validate(value)
        except ValueError as error:
            detail, path = _describe(error)
            raise ValueError(f"{detail} at {path}" if path else detail) from error
    if isinstance(type_, type) and isinstance(value, type_):
        return value
    raise TypeError(f"Expected `{_name(type_)}`, got `{type(value).__name__}`")


class _Model(Protocol):
    """What a pydantic model has; by shape, since pydantic is not a dependency."""

    @classmethod
    def model_validate(cls, obj: Any) -> Any: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def _complete(value: Any) -> None:
    """Give every dataclass instance in a value all its attributes.

    msgspec leaves a field that has its default to the class, and would not write it
    again: a request that is passed on would lose it.
    """
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        for item in value:
            _complete(item)
    elif kind is dict:
        for item in value.values():
            _complete(item)
    elif dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct):
        defaults, nested = _incomplete_fields(kind)
        for name in defaults:
            # Also a frozen instance may be completed: nobody can tell.
            object.__setattr__(value, name, getattr(value, name))
        for name in nested:
            _complete(getattr(value, name))


@functools.lru_cache(maxsize=256)
def _incomplete_fields(type_: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name the fields that may be left to the class, and those that may hold such."""
    info: Any = typeinfo.type_info(type_)
    left = _fields_left_to_class(info)
    return left, tuple(f.name for f in info.fields if _may_be_incomplete(f.type, set()))


@functools.lru_cache(maxsize=256)
def _needs_completion(type_: Any) -> bool:
    return _may_be_incomplete(typeinfo.type_info(type_), set())


def _may_be_incomplete(info: Any, seen: set[int]) -> bool:
    """Say whether values of a type may hold dataclass instances that lack something."""
    if id(info) in seen:
        return False
    seen.add(id(info))
    if _fields_left_to_class(info):
        return True
    # What msgspec says about a type is a tree of Structs.
    for name in info.__struct_fields__:
        part = getattr(info, name)
        for child in part if isinstance(part, tuple) else (part,):
            if isinstance(child, typeinfo.Type | typeinfo.Field) and _may_be_incomplete(
                child, seen
            ):
                return True
    return False


def _fields_left_to_class(info: Any) -> tuple[str, ...]:
    if not isinstance(info, typeinfo.DataclassType) or not info.cls.__dictoffset__:
        return ()
    return tuple(
        f.name
        for f in dataclasses.fields(info.cls)
        if f.default is not dataclasses.MISSING
    )


def _is_model(type_: Any) -> TypeGuard[type[_Model]]:
    return hasattr(type_, "model_validate") and hasattr(type_, "model_dump")


def _describe(error: Any) -> tuple[str, str]:
    """Name a pydantic error's first fault and its place, without the value."""
    if not hasattr(error, "errors"):
        return str(error), ""
    fault = error.errors(include_url=False, include_context=False, include_input=False)
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault[0]["loc"]
    )
    return fault[0]["msg"], path


def _name(type_: Any) -> str:
    return type_.__name__ if isinstance(type_, type) else str(type_)
