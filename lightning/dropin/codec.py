"""Synapses and what travels: their own fields, and one key for what is about the call.

A request's ``data`` has the fields that a synapse's class adds to `Synapse`, and under
`RESERVED` a map with ``timeout``, ``uuid``, ``nonce`` and ``version`` of the dendrite. An
answer has fields, and under the same key ``status_code``, ``status_message``,
``process_time``, and ``partial``: fields that are missing are as in the request.

======================================  =============================================
A value                                 travels as
======================================  =============================================
None, bool, int, float, str, bytes      itself
list, tuple, set, frozenset             an array
dict                                    a map
a pydantic model, a dataclass           a map of its fields
an Enum's member                        its value
date, time, timedelta, UUID, Decimal    the text that pydantic writes to JSON
a numpy array                           ``{"__ndarray__": [dtype, shape, bytes]}``
an int beyond 64 bits                   its digits as text
======================================  =============================================

The class's own validation makes values of its types from these. Serializers of a class
or of a type, such as pydantic's ``Base64Bytes``, come first, and fields with ``exclude``
stay. It works for bittensor's synapses as well: what counts is the shape.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Final, Literal, Union, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    PlainValidator,
    ValidationError,
    WrapValidator,
)
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lightning.dropin.exceptions import SynapseParsingError
from lightning.dropin.synapse import TerminalInfo
from lightning.errors import EncodeTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "NDARRAY",
    "RESERVED",
    "Plan",
    "carefully",
    "plan_of",
    "set_terminals",
    "terminal",
    "terminal_of",
]

RESERVED: Final = "_lightning"
"""The key for what is about the call. No field of a pydantic model can be called so."""

NDARRAY: Final = "__ndarray__"

_BASE: Final = frozenset(
    {
        "name",
        "timeout",
        "total_size",
        "header_size",
        "dendrite",
        "axon",
        "computed_body_hash",
    }
)
_SCALARS: Final = frozenset({str, bytes, int, float, bool, type(None)})
_NUMBERS: Final = frozenset({int, float, bool})
# Deeper than that is no data, or holds itself.
_DEPTH: Final = 64
# Bools, integers, floats and complex numbers of widths that are the same everywhere.
_DTYPE: Final = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|c8|c16)")
_LONGEST_TEXT: Final = 500
_VALIDATORS: Final = (BeforeValidator, AfterValidator, PlainValidator, WrapValidator)

# Fields of terminals, by class; of these there are two.
_blanks: dict[type[Any], dict[str, Any]] = {}

_UNKNOWN: Final = object()
_PLAN: Final = "__lightning_plan__"

_new = object.__new__
_set = object.__setattr__


def terminal(cls: type[Any] = TerminalInfo, **fields: Any) -> Any:
    """Make a terminal without validating its fields.

    Args:
        cls: `TerminalInfo`, or bittensor's.
        fields: Those that are known, of their types; the others are None.
    """
    return terminal_of(cls, {**blank_of(cls), **fields}, fields)


def blank_of(cls: type[Any]) -> dict[str, Any]:
    """Return the fields of a terminal that says nothing; not to be changed."""
    blank = _blanks.get(cls)
    if blank is None:
        blank = _blanks[cls] = {
            name: field.default if type(field.default) in _SCALARS else None
            for name, field in cls.model_fields.items()
        }
    return blank


def terminal_of(cls: type[Any], values: dict[str, Any], given: Iterable[str]) -> Any:
    """Make a terminal of all its fields, without validating them.

    Args:
        cls: `TerminalInfo`, or bittensor's.
        values: Each field; the terminal keeps this dict.
        given: The names of those that were given.
    """
    made = _new(cls)
    _set(made, "__dict__", values)
    _set(made, "__pydantic_fields_set__", set(given))
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


def set_terminals(synapse: Any, dendrite: Any, axon: Any) -> None:
    """Set both ends without validating them."""
    synapse.__dict__["dendrite"] = dendrite
    synapse.__dict__["axon"] = axon
    synapse.__pydantic_fields_set__.update(("dendrite", "axon"))


class Plan:
    """How synapses of one class travel; made by `plan_of`.

    Attributes:
        kind: The class.
        name: Where requests go: the name of the class.
        is_streaming: Whether answers come in pieces.
        own: The names of the fields that travel.
        terminal_class: `TerminalInfo`, or bittensor's.
        settable: The types of values that assigning would only keep, by the name of the
            field; see `Synapse`.
    """

    __slots__ = (
        "__weakref__",
        "_alike",
        "_dumped",
        "_exact",
        "_extra",
        "_filled",
        "_frozen",
        "_names",
        "_own_dump",
        "_own_init",
        "_plain",
        "_sent",
        "_template",
        "_validate",
        "is_streaming",
        "kind",
        "name",
        "own",
        "settable",
        "terminal_class",
    )

    def __init__(self, kind: type[Any]) -> None:
        if not getattr(kind, "__pydantic_complete__", True):
            kind.model_rebuild()
        fields = kind.model_fields
        self.kind = kind
        self.name = kind.__name__
        self.is_streaming = hasattr(kind, "process_streaming_response")
        self.own = tuple(name for name in fields if name not in _BASE)
        self.terminal_class = _terminal_class(fields.get("dendrite"))
        frozen = bool(kind.model_config.get("frozen"))
        self._extra = kind.model_config.get("extra") == "allow"
        self._names = frozenset(self.own)
        self._sent = tuple(name for name in self.own if not fields[name].exclude)
        # What an answer may set.
        self._frozen = frozenset(
            name for name in self.own if frozen or fields[name].frozen
        )
        self._filled = tuple(name for name in self.own if name not in self._frozen)
        # What validation makes can be sent as it is, so that nothing is dumped.
        made = kind.__pydantic_decorators__
        self._own_dump = kind.model_dump is not BaseModel.model_dump
        self._plain = frozenset(
            name
            for name in self.own
            if not (self._own_dump or made.model_serializers or made.field_serializers)
            and _is_plain(fields[name])
        )
        self._dumped = set(self._sent) - self._plain
        # What may be left out of an answer if it is equal to what came.
        self._alike = frozenset(
            name for name in self._plain if _tells_by_equality(fields[name].annotation)
        )
        self._own_init = kind.__init__ is not BaseModel.__init__
        self._validate = kind.__pydantic_validator__.validate_python
        # Where validation would change nothing it is left out.
        self._exact: dict[str, frozenset[type]] = {}
        self._template: dict[str, Any] | None = None
        if not self._own_init and _only_types(kind):
            self._exact = {
                name: types_
                for name in self.own
                if (types_ := _exact_types(fields[name]))
            }
            self._template = {
                name: _static_default(field) for name, field in fields.items()
            }
            self._template["name"] = self.name
        self.settable = {
            name: types_
            for name, types_ in self._exact.items()
            if name not in self._frozen
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # At the dendrite.

    def request_data(self, synapse: Any, meta: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a request.

        Args:
            synapse: Of this class.
            meta: Goes under `RESERVED`.

        Raises:
            EncodeTypeError: A field has a value that cannot travel.
        """
        data = self._dump(synapse)
        data[RESERVED] = meta
        return data

    def fill(self, local: Any, data: dict[str, Any]) -> dict[str, Any] | None:
        """Set the fields of a request's synapse to those of the answer.

        Frozen fields keep the caller's value, unknown ones are dropped. Fields that are
        missing take the class's defaults, or stay as they are in a ``partial`` answer.

        Args:
            local: The synapse that was sent.
            data: Of the answer; what is under `RESERVED` is taken out.

        Returns:
            What was under `RESERVED`; None if the other end does not know it.

        Raises:
            SynapseParsingError: The fields do not fit the class; nothing was changed.
        """
        meta = _meta(data)
        values = local.__dict__
        is_partial = meta is not None and meta.get("partial") is True
        if self._fill_exact(local, data, is_partial=is_partial):
            return meta
        if is_partial:
            if not (data if self._extra else self._names.intersection(data)):
                return meta
            # As it was sent: a validator takes no value that it has made itself.
            given = self._given(self.completed(local, data))
        else:
            given = self._given(data)
        # Whole ones are taken as they are; empty ones would have to be made.
        for end in ("dendrite", "axon"):
            if type(values.get(end)) is self.terminal_class:
                given[end] = values[end]
        made = self._make(given)
        found = made.__dict__
        for name in self._filled:
            if name in found:
                values[name] = found[name]
        if self._extra and made.__pydantic_extra__:
            local.__pydantic_extra__.update(made.__pydantic_extra__)
        local.__pydantic_fields_set__.update(self._filled)
        return meta

    def completed(self, local: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return all own fields of a ``partial`` answer, as they travel.

        Args:
            local: The synapse that was sent.
            data: Of the answer.
        """
        return {**self._dump(local), **data}

    # At the axon.

    def build(
        self, data: dict[str, Any], dendrite: Any = None, axon: Any = None
    ) -> tuple[Any, dict[str, Any] | None]:
        """Make the synapse of a request.

        Args:
            data: Of the request; what is under `RESERVED` is taken out.
            dendrite: The terminal of who asks; None for an empty one.
            axon: The terminal of who is asked; likewise.

        Returns:
            The synapse, and what was under `RESERVED`.

        Raises:
            SynapseParsingError: The fields do not fit the class.
        """
        meta = _meta(data)
        # As in `fill`.
        if dendrite is None:
            dendrite = terminal(self.terminal_class)
        if axon is None:
            axon = terminal(self.terminal_class)
        made = self._build_exact(data, dendrite, axon)
        if made is None:
            given = self._given(data)
            given["dendrite"], given["axon"] = dendrite, axon
            made = self._make(given)
        return made, meta

    def answer_data(
        self, synapse: Any, data: dict[str, Any] | None, meta: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return the data of an answer.

        Args:
            synapse: The answer; of any class.
            data: Of the request, if fields that are the same may be left out.
            meta: Goes under `RESERVED`; None for a client that does not know it, which
                gets all fields.

        Raises:
            EncodeTypeError: A field has a value that cannot travel.
        """
        plan = self if type(synapse) is self.kind else plan_of(type(synapse))
        answer = plan._dump(synapse)
        if meta is None:
            return answer
        if data is not None and plan is self:
            for name in tuple(answer):
                if name in data and self._is_same(name, answer[name], data[name]):
                    del answer[name]
            meta = {**meta, "partial": True}
        answer[RESERVED] = meta
        return answer

    # How.

    def _fill_exact(
        self, local: Any, data: dict[str, Any], *, is_partial: bool
    ) -> bool:
        """Do as `fill` if all values are of the fields' very types; say if so."""
        template, exact = self._template, self._exact
        if template is None:
            return False
        new = {}
        for name in self.own:
            if name in data:
                value = data[name]
                if name not in exact or type(value) not in exact[name]:
                    return False
            elif is_partial:
                continue
            else:
                value = template[name]
                if value is _UNKNOWN:
                    return False
            if name not in self._frozen:
                new[name] = value
        local.__dict__.update(new)
        local.__pydantic_fields_set__.update(new)
        return True

    def _build_exact(self, data: dict[str, Any], dendrite: Any, axon: Any) -> Any:
        """Do as `build` if all values are of the fields' very types; None if not."""
        if self._template is None:
            return None
        values, exact = self._template.copy(), self._exact
        given = {"name", "dendrite", "axon"}
        for name in self.own:
            if name in data:
                value = data[name]
                if name not in exact or type(value) not in exact[name]:
                    return None
                values[name] = value
                given.add(name)
            elif values[name] is _UNKNOWN:
                return None
        values["dendrite"], values["axon"] = dendrite, axon
        made = _new(self.kind)
        _set(made, "__dict__", values)
        _set(made, "__pydantic_fields_set__", given)
        _set(made, "__pydantic_extra__", None)
        _set(made, "__pydantic_private__", None)
        return made

    def _given(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the own fields out of data that somebody sent."""
        plain = self._plain
        given = {
            name: data[name] if name in plain else _restored(data[name])
            for name in self.own
            if name in data
        }
        if self._extra:
            for name in data.keys() - self._names - _BASE - {RESERVED}:
                given[name] = _restored(data[name])
        return given

    def _make(self, given: dict[str, Any]) -> Any:
        try:
            return self.kind(**given) if self._own_init else self._validate(given)
        except ValidationError as error:
            raise SynapseParsingError(_told(self.name, error)) from error
        except Exception as error:
            # Of a validator that a user wrote.
            raise SynapseParsingError(
                f"{self.name}: {type(error).__name__}: {error}"[:_LONGEST_TEXT]
            ) from error

    def _dump(self, synapse: Any) -> dict[str, Any]:
        """Return the own fields as they travel."""
        values, plain, data = synapse.__dict__, self._plain, {}
        dumped = self._dumped_by_model(synapse) if self._dumped else {}
        for name in self._sent:
            if name in plain:
                if name in values:
                    data[name] = values[name]
            elif name in dumped:
                data[name] = _wire(dumped[name], name)
        if self._extra and synapse.__pydantic_extra__:
            for name, value in synapse.__pydantic_extra__.items():
                if name not in _BASE and name != RESERVED:
                    data[name] = _wire(value, name)
        return data

    def _dumped_by_model(self, synapse: Any) -> dict[str, Any]:
        try:
            if self._own_dump:
                dumped = synapse.model_dump()
            else:
                dumped = synapse.model_dump(include=self._dumped, warnings=False)
        except Exception as error:
            # Of a serializer that a user wrote, or of a model that holds itself.
            raise EncodeTypeError(f"{self.name}: {error}") from error
        if not isinstance(dumped, dict):
            raise EncodeTypeError(f"{self.name} is dumped as a {type(dumped).__name__}")
        return dumped

    def _is_same(self, name: str, value: Any, sent: Any) -> bool:
        kind = type(value)
        if kind is not type(sent):
            return False
        # True equals 1, and 1.0 as well, also inside of containers.
        return (kind in _SCALARS or name in self._alike) and (
            value is sent if value is None else value == sent
        )


def plan_of(kind: type[Any]) -> Plan:
    """Return how synapses of a class travel, worked out once.

    Raises:
        TypeError: It is no class of synapses.
    """
    # It is kept in the class, and not found in what derives from it.
    plan = getattr(kind, "__dict__", {}).get(_PLAN)
    if plan is None:
        fields = getattr(kind, "model_fields", None)
        if not isinstance(fields, dict) or not {"dendrite", "axon"} <= fields.keys():
            raise TypeError(
                f"{getattr(kind, '__name__', kind)!r} is no synapse: derive it from "
                "lightning.Synapse"
            )
        plan = Plan(kind)
        setattr(kind, _PLAN, plan)
    return cast("Plan", plan)


def _terminal_class(field: Any) -> type[Any]:
    for kind in (
        getattr(field, "annotation", None),
        *get_args(field and field.annotation),
    ):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return TerminalInfo


def _is_plain(annotation: Any) -> bool:
    """Say if what validation gives for an annotation travels as it is."""
    if isinstance(annotation, FieldInfo):
        return all(map(_is_harmless, annotation.metadata)) and _is_plain(
            annotation.annotation
        )
    if annotation in _SCALARS or annotation is None:
        return True
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _is_plain(args[0]) and all(map(_is_harmless, args[1:]))
    if origin in (Union, types.UnionType, list):
        return all(map(_is_plain, args))
    if origin is dict:
        return _is_plain(args[1]) and _is_text(args[0])
    return origin is Literal and all(type(value) in _SCALARS for value in args)


def _only_types(kind: type[Any]) -> bool:
    """Say if a class validates nothing of its own but the types of its fields."""
    made = kind.__pydantic_decorators__
    base = kind
    for each in kind.__mro__:
        if each.__name__ == "Synapse" and issubclass(each, BaseModel):
            base = each
    ours = base.__pydantic_decorators__
    return (
        made.field_validators.keys() == ours.field_validators.keys()
        and made.model_validators.keys() == ours.model_validators.keys()
        and not made.validators
        and not made.root_validators
        and kind.model_config.keys()
        <= {"validate_assignment", "arbitrary_types_allowed"}
        and not kind.__private_attributes__
        and kind.__pydantic_post_init__ is None
        and cast("Any", kind).__new__ is object.__new__
    )


def _exact_types(field: Any) -> frozenset[type] | None:
    """Return the types whose values a field takes as they are; None for others."""
    annotation = field.annotation
    if field.metadata:
        return None
    if get_origin(annotation) in (Union, types.UnionType):
        found = frozenset(type(None) if a is None else a for a in get_args(annotation))
    else:
        found = frozenset({type(None) if annotation is None else annotation})
    return found if found <= _SCALARS else None


def _static_default(field: Any) -> Any:
    """Return the default of a field if it is the same for all, `_UNKNOWN` if not."""
    default = field.default
    if type(default) in _SCALARS and not (
        field.default_factory or field.validate_default
    ):
        return default
    return _UNKNOWN


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is typing.Annotated:
        return _is_plain(annotation) and get_args(annotation)[0] is str
    return annotation is str


def _is_harmless(note: Any) -> bool:
    """Say if what annotates a type leaves alone how its values are dumped."""
    if isinstance(note, FieldInfo):
        return all(map(_is_harmless, note.metadata))
    return isinstance(note, _VALIDATORS) or not hasattr(
        note, "__get_pydantic_core_schema__"
    )


def _tells_by_equality(annotation: Any) -> bool:
    """Say if equal values of a plain annotation are the same, types included."""
    return len(_leaves(annotation) & _NUMBERS) < 2


def _leaves(annotation: Any) -> set[Any]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {type(value) for value in args}
    if origin is typing.Annotated:
        args = args[:1]
    return set().union(*map(_leaves, args)) if args else {annotation}


def _meta(data: dict[str, Any]) -> dict[str, Any] | None:
    meta = data.pop(RESERVED, None)
    return meta if isinstance(meta, dict) else None


def _told(name: str, error: ValidationError) -> str:
    """Say which fields are wrong and how, without their values."""
    parts = [
        f"{'.'.join(map(str, each['loc'])) or name}: {each['msg']}"
        for each in error.errors(
            include_url=False, include_input=False, include_context=False
        )[:5]
    ]
    return f"{name}: {'; '.join(parts)}"[:_LONGEST_TEXT]


def carefully(data: Mapping[str, Any]) -> dict[str, Any]:
    """Look into every value of a message's data, for when it could not be encoded.

    Fields whose types say that it is not needed are passed on as they are. They may yet
    have ints beyond 64 bits, or a set that a validator has made.

    Raises:
        EncodeTypeError: A value cannot travel.
    """
    return {_wire_key(name, "data"): _wire(data[name], name) for name in data}


def _wire(value: Any, path: str, depth: int = 0) -> Any:
    """Return a value as it travels."""
    kind = type(value)
    if kind in _SCALARS and kind is not int:
        return value
    if depth > _DEPTH:
        raise EncodeTypeError("nested too deeply, or holds itself", path=path)
    if isinstance(value, dict):
        return {
            _wire_key(key, path): _wire(item, f"{path}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_wire(item, f"{path}[{n}]", depth + 1) for n, item in enumerate(value)]
    if isinstance(value, enum.Enum):
        return _wire(value.value, path, depth + 1)
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(int(value))
    if kind.__module__ == "numpy":
        return _wire_numpy(value, path)
    if isinstance(value, str | bytes | bytearray | memoryview | float):
        return value
    try:
        if isinstance(value, BaseModel):
            value = value.model_dump()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            value = {field.name: getattr(value, field.name) for field in fields}
        else:
            return to_jsonable_python(value)
    except Exception as error:
        raise EncodeTypeError(
            f"cannot send a {kind.__module__}.{kind.__qualname__}", path=path
        ) from error
    return _wire(value, path, depth + 1)


def _wire_key(key: Any, path: str) -> Any:
    if type(key) is str:
        return key
    told = _wire(key, path)
    if isinstance(told, dict | list):
        raise EncodeTypeError(f"a {type(key).__name__} cannot be a key", path=path)
    return told


def _wire_numpy(value: Any, path: str) -> Any:
    shape: Any = getattr(value, "shape", None)
    form = "" if shape is None else value.dtype.str
    if not _DTYPE.fullmatch(form):
        raise EncodeTypeError(
            f"cannot send numpy's {type(value).__name__} of "
            f"{getattr(value, 'dtype', 'no dtype')}: only numbers",
            path=path,
        )
    if not shape and value.dtype.kind != "c":
        return value.item()
    return {NDARRAY: [form, list(shape), value.tobytes()]}


def _restored(value: Any, depth: int = 0) -> Any:
    """Return a value that came, arrays made of what stands for them."""
    kind = type(value)
    if kind is dict:
        if len(value) == 1 and NDARRAY in value:
            return _array(value[NDARRAY])
        items: Any = value.values()
    elif kind is list:
        items = value
    else:
        return value
    if not any(type(item) in (dict, list) for item in items):
        return value
    if depth > _DEPTH:
        raise SynapseParsingError("nested too deeply")
    if kind is dict:
        return {key: _restored(item, depth + 1) for key, item in value.items()}
    return [_restored(item, depth + 1) for item in value]


def _array(form: Any) -> Any:
    try:
        import numpy as np  # noqa: PLC0415 - only who is sent arrays needs it.
    except ImportError:
        raise SynapseParsingError("an array came, and numpy is not installed") from None
    try:
        dtype, shape, data = form
        if type(dtype) is not str or not _DTYPE.fullmatch(dtype):
            raise SynapseParsingError("not an array of numbers")
        if type(data) is not bytes or any(length < 0 for length in shape):
            raise SynapseParsingError("not an array: it has no data, or no shape")
        # A copy, which can be written to.
        return np.frombuffer(data, dtype).reshape(shape).copy()
    except (TypeError, ValueError, OverflowError) as error:
        raise SynapseParsingError(f"not a numpy array: {error}") from error
