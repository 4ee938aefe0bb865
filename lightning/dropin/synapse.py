"""Synapses: what a validator asks and a miner answers, in one object.

Fields, defaults, validators and texts are those of bittensor 10. What depends only on
the class is worked out once for each class.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Synapse", "TerminalInfo", "required_fields_of"]

_AXON = "bt_header_axon_"
_DENDRITE = "bt_header_dendrite_"
_INPUT = "bt_header_input_obj_"

_required: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def _as_int(value: Any) -> Any:
    return None if value is None else int(value)


def _as_float(value: Any) -> Any:
    return None if value is None else float(value)


class TerminalInfo(BaseModel):
    """One end of a call: who it is, and how the call went there.

    Texts are taken for numbers where a number is meant, as they come out of headers.

    Attributes:
        status_code: As of HTTP; None while nothing is known.
        status_message: What it means.
        process_time: Seconds: at a dendrite for all of the call, at an axon for its
            function. None where the call did not get so far.
        ip: Address of this end.
        port: Port of this end.
        version: Version of the software, as one number.
        nonce: Nanoseconds since 1970 when the request was made.
        uuid: One for each dendrite or axon object.
        hotkey: SS58 address.
        signature: Hexadecimal, with ``0x``; only over HTTP.
    """

    model_config = ConfigDict(validate_assignment=True)

    status_code: int | None = Field(default=None, title="status_code")
    status_message: str | None = Field(default=None, title="status_message")
    process_time: float | None = Field(default=None, title="process_time")
    ip: str | None = Field(default=None, title="ip")
    port: int | None = Field(default=None, title="port")
    version: int | None = Field(default=None, title="version")
    nonce: int | None = Field(default=None, title="nonce")
    uuid: str | None = Field(default=None, title="uuid")
    hotkey: str | None = Field(default=None, title="hotkey")
    signature: str | None = Field(default=None, title="signature")

    @field_validator("status_code", "port", "version", "nonce", mode="before")
    @classmethod
    def _take_int(cls, value: Any) -> Any:
        return _as_int(value)

    @field_validator("process_time", mode="before")
    @classmethod
    def _take_float(cls, value: Any) -> Any:
        return _as_float(value)


class Synapse(BaseModel):
    """A request and its answer; subclasses add the fields that travel.

    The name of the class is where a request goes to. An attribute that is no field
    cannot be set, and what is set is validated.

    Attributes:
        name: Always the name of the class.
        timeout: Seconds that the call may take.
        total_size: Of the object in memory, in bytes; see `get_total_size`.
        header_size: Of the headers in memory, in bytes.
        dendrite: The validator's end.
        axon: The miner's end.
        computed_body_hash: The hash that came with a request over HTTP.
        required_hash_fields: Names of the fields that `body_hash` covers.
    """

    model_config = ConfigDict(validate_assignment=True)

    name: str | None = Field(default=None, title="name", repr=False)
    timeout: float | None = Field(default=12.0, title="timeout", repr=False)
    total_size: int | None = Field(default=0, title="total_size", repr=False)
    header_size: int | None = Field(default=0, title="header_size", repr=False)
    dendrite: TerminalInfo | None = Field(
        default_factory=TerminalInfo, title="dendrite", repr=False
    )
    axon: TerminalInfo | None = Field(
        default_factory=TerminalInfo, title="axon", repr=False
    )
    computed_body_hash: str | None = Field(
        default="", title="computed_body_hash", frozen=True, repr=False
    )
    required_hash_fields: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_by_class(cls, values: Any) -> Any:
        # Also what is assigned to a field passes here, as the fields so far.
        if isinstance(values, dict):
            values["name"] = cls.__name__
        return values

    @field_validator("total_size", "header_size", mode="before")
    @classmethod
    def _take_int(cls, value: Any) -> Any:
        return _as_int(value)

    @field_validator("timeout", mode="before")
    @classmethod
    def _take_float(cls, value: Any) -> Any:
        return _as_float(value)

    def __setattr__(self, name: str, value: Any) -> None:
        # Known once such a synapse has travelled: where validation would do nothing.
        plan = type(self).__dict__.get("__lightning_plan__")
        if plan is not None and type(value) in plan.settable.get(name, ()):
            self.__dict__[name] = value
            self.__pydantic_fields_set__.add(name)
            return
        if name == "body_hash":
            raise AttributeError(
                "body_hash follows from the fields and cannot be set: change a field"
            )
        super().__setattr__(name, value)

    def deserialize(self) -> Any:
        """Return what a caller gets; subclasses return what they like."""
        return self

    @property
    def is_success(self) -> bool:
        """Whether the call succeeded."""
        return self._status() == 200

    @property
    def is_failure(self) -> bool:
        """Whether there is a dendrite's end without success."""
        return self.dendrite is not None and self._status() != 200

    @property
    def is_timeout(self) -> bool:
        """Whether there was no answer in time."""
        return self._status() == 408

    @property
    def is_blacklist(self) -> bool:
        """Whether the axon's blacklist function refused."""
        return self._status() == 403

    @property
    def failed_verification(self) -> bool:
        """Whether the axon did not believe who asked."""
        return self._status() == 401

    def _status(self) -> int | None:
        return None if self.dendrite is None else self.dendrite.status_code

    def get_total_size(self) -> int:
        """Measure the object in memory, everything it refers to included.

        Returns:
            Bytes; also kept in ``total_size``. It is not what travels.
        """
        self.total_size = size = _size_of(self, set())
        return size

    def get_required_fields(self) -> list[str]:
        """Return the names of the fields without a default."""
        return list(required_fields_of(type(self)))

    @property
    def body_hash(self) -> str:
        """Hexadecimal SHA3-256 over those of the fields in ``required_hash_fields``."""
        names = _hash_fields_of(type(self))
        if not names:
            return _sha3("")
        dumped = self.model_dump()
        return _sha3("".join(_sha3(str(dumped[name])) for name in names))

    def to_headers(self) -> dict[str, str]:
        """Return what goes into the headers of an HTTP request.

        Returns:
            ``name``, ``timeout``, both terminals field by field, for each required
            field an empty value of its type, sizes and the hash of the body.

        Raises:
            ValueError: A required field's type has no empty value that JSON can say.
        """
        headers = {"name": str(self.name), "timeout": str(self.timeout)}
        for prefix, terminal in ((_AXON, self.axon), (_DENDRITE, self.dendrite)):
            if terminal is not None:
                for field, value in terminal.model_dump().items():
                    if value is not None:
                        headers[prefix + field] = str(value)
        if required := required_fields_of(type(self)):
            # As they are dumped: a nested model is a dict.
            dumped = self.model_dump(include=set(required))
            for field, value in dumped.items():
                if field not in headers and value is not None:
                    headers[_INPUT + field] = _empty(field, value)
        headers["header_size"] = str(sys.getsizeof(headers))
        headers["total_size"] = str(self.get_total_size())
        headers["computed_body_hash"] = self.body_hash
        return headers

    @classmethod
    def parse_headers_to_inputs(cls, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the arguments of the constructor that headers stand for.

        What cannot be read is left out.
        """
        inputs: dict[str, Any] = {"axon": {}, "dendrite": {}}
        for key, value in headers.items():
            if _AXON in key:
                inputs["axon"][key.split(_AXON)[1]] = value
            elif _DENDRITE in key:
                inputs["dendrite"][key.split(_DENDRITE)[1]] = value
            elif _INPUT in key and (field := key.split(_INPUT)[1]) not in inputs:
                try:
                    inputs[field] = json.loads(base64.b64decode(value))
                except ValueError:
                    continue
        for field in (
            "timeout",
            "name",
            "header_size",
            "total_size",
            "computed_body_hash",
        ):
            inputs[field] = headers.get(field)
        return inputs

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Self:
        """Make a synapse from headers.

        Raises:
            pydantic.ValidationError: They do not fit.
        """
        return cls(**cls.parse_headers_to_inputs(headers))


def required_fields_of(kind: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of a class's fields without a default, worked out once."""
    names = _required.get(kind)
    if names is None:
        names = tuple(
            field.alias or name
            for name, field in kind.model_fields.items()
            if field.is_required()
        )
        _required[kind] = names
    return names


def _hash_fields_of(kind: type[Synapse]) -> tuple[str, ...]:
    """Return the names of the fields that are hashed."""
    field = kind.model_fields.get("required_hash_fields")
    if field is None:
        return kind.required_hash_fields
    # An older way to say it, as a field.
    warnings.warn(
        f"{kind.__name__}: make required_hash_fields a ClassVar, not a field",
        DeprecationWarning,
        stacklevel=3,
    )
    wanted = field.default or ()
    return tuple(name for name in kind.model_fields if name in wanted)


def _sha3(text: str) -> str:
    return hashlib.sha3_256(text.encode()).hexdigest()


def _empty(field: str, value: Any) -> str:
    """Return an empty value of a value's type, as a header says it."""
    try:
        text = json.dumps(type(value)())
    except TypeError as error:
        raise ValueError(
            f"cannot say the field {field!r} in a header: "
            f"JSON has no empty {type(value).__name__}"
        ) from error
    return base64.b64encode(text.encode()).decode()


def _size_of(thing: Any, seen: set[int]) -> int:
    """Return the bytes of an object and of what it refers to, each object once."""
    size = sys.getsizeof(thing)
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, str | bytes | bytearray | int | float):
        return size
    if isinstance(thing, dict):
        parts: Any = [*thing.values(), *thing]
    elif hasattr(thing, "__dict__"):
        parts = [thing.__dict__]
    elif hasattr(thing, "__iter__"):
        parts = thing
    else:
        return size
    return size + sum(_size_of(part, seen) for part in parts)
