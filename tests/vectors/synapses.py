"""Synapses in the ways that subnets write them, for whichever base classes are given.

`make_synapse.py` makes them of bittensor's classes and keeps what they say;
`tests/unit/dropin/test_synapse.py` makes them of ours and compares.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator


class Inner(BaseModel):
    """A nested model."""

    a: int
    b: list[str] = []


def _upper(cls: type[Any], value: str) -> str:
    return value.upper()


def classes(base: type[Any]) -> dict[str, type[Any]]:
    """Return synapse classes by name, derived from a base class."""

    def make(name: str, **fields: Any) -> type[Any]:
        return create_model(name, __base__=base, **fields)

    class Hashed(base):  # type: ignore[misc]  # The base is an argument.
        required_hash_fields: ClassVar[tuple[str, ...]] = ("second", "first", "inner")
        first: str = ""
        second: Any = None
        inner: Inner | None = None

    with warnings.catch_warnings():
        # That it shadows the class's own.
        warnings.simplefilter("ignore", UserWarning)

        class OldHashed(base):  # type: ignore[misc]  # As above.
            text: str = ""
            number: float = 0.5
            required_hash_fields: list[str] = Field(  # type: ignore[misc]  # The old way.
                ["number", "text"], title="Required Hash Fields", frozen=True
            )

    class Checked(base):  # type: ignore[misc]  # As above.
        model_config = ConfigDict(validate_assignment=True)
        word: str = Field(min_length=1)
        _upper = field_validator("word")(_upper)

    class Custom(base):  # type: ignore[misc]  # As above.
        text: str = ""

        def deserialize(self) -> str:
            return self.text[::-1]

    made = {
        "Plain": make("Plain", text=(str, "")),
        "Required": make(
            "Required",
            text=(str, ...),
            numbers=(list[int], ...),
            table=(dict[str, float], ...),
            inner=(Inner, ...),
            flag=(bool, ...),
            ratio=(float, ...),
            maybe=(str | None, ...),
            free=(Any, ...),
            raw=(tuple[int, ...], ()),
        ),
        "Frozen": make("Frozen", asked=(str, Field("", frozen=True)), got=(str, "")),
        "Chosen": make("Chosen", kind=(Literal["a", "b"], "a")),
    }
    for kind in (Hashed, OldHashed, Checked, Custom):
        kind.__qualname__ = kind.__name__
        made[kind.__name__] = kind
    return made


TERMINAL = {
    "status_code": 200,
    "status_message": "Success",
    "process_time": 0.25,
    "ip": "1.2.3.4",
    "port": 8091,
    "version": 10005000,
    "nonce": 1_700_000_000_000_000_001,
    "uuid": "5ecbd69c-1cec-11ee-b0dc-e29ce36fec1a",
    "hotkey": "5EnjDGNqqWnuL2HCAdxeEtN2oqtXZw6BMBe936Kfy2PFz1J1",
    "signature": "0x08",
}
FULL = {
    "text": "héllo",
    "numbers": [1, 2],
    "table": {"x": 1.5},
    "inner": {"a": 1, "b": ["c"]},
    "flag": True,
    "ratio": 2.0,
    "maybe": None,
    "free": {"k": [None]},
}
MAKINGS: list[tuple[str, dict[str, Any]]] = [
    ("Plain", {}),
    ("Plain", {"text": "x" * 100, "timeout": 3, "name": "other"}),
    ("Plain", {"text": "é", "dendrite": TERMINAL, "axon": {"port": "80"}}),
    ("Plain", {"total_size": "12", "header_size": "3", "timeout": "1.5"}),
    ("Plain", {"dendrite": None, "axon": None, "timeout": None}),
    ("Plain", {"computed_body_hash": "abc", "unknown": 1}),
    ("Plain", {"text": 1}),
    ("Plain", {"timeout": "soon"}),
    ("Plain", {"axon": {"port": "x"}}),
    ("Required", FULL),
    ("Required", {**FULL, "maybe": "m", "free": 1, "raw": [1, 2]}),
    ("Required", {**FULL, "free": None}),
    ("Required", {}),
    ("Frozen", {"asked": "a", "got": "b"}),
    ("Chosen", {"kind": "b"}),
    ("Chosen", {"kind": "c"}),
    ("Hashed", {}),
    ("Hashed", {"first": "1", "second": 1.0, "inner": {"a": 5}}),
    ("Hashed", {"first": "ü", "second": {"b": [1, None, True], "a": "x"}}),
    ("OldHashed", {"text": "t", "number": 1e300}),
    ("Checked", {"word": "w"}),
    ("Checked", {"word": ""}),
    ("Custom", {"text": "abc"}),
]
ASSIGNMENTS: list[tuple[str, str, Any]] = [
    ("Plain", "text", "new"),
    ("Plain", "text", 5),
    ("Plain", "unknown", 5),
    ("Plain", "timeout", "7"),
    ("Plain", "timeout", None),
    ("Plain", "name", "other"),
    ("Plain", "body_hash", "x"),
    ("Plain", "computed_body_hash", "x"),
    ("Plain", "is_success", True),
    ("Plain", "dendrite", TERMINAL),
    ("Plain", "dendrite", 5),
    ("Plain", "dendrite.status_code", "503"),
    ("Plain", "dendrite.status_code", 408.0),
    ("Plain", "dendrite.status_code", "x"),
    ("Plain", "dendrite.status_message", 5),
    ("Plain", "axon.process_time", "0.5"),
    ("Plain", "axon.nonce", "123"),
    ("Plain", "axon.port", None),
    ("Plain", "axon.unknown", 1),
    ("Frozen", "asked", "x"),
    ("Checked", "word", "up"),
    ("Checked", "word", ""),
]
STATUSES = [None, 200, 401, 403, 404, 408, 422, 500, 503]
HEADERS: list[tuple[str, dict[str, str]]] = [
    ("Plain", {}),
    ("Plain", {"timeout": "5", "name": "x", "bt_header_axon_port": "1"}),
    ("Plain", {"bt_header_dendrite_nonce": "1", "bt_header_dendrite_odd": "y"}),
    ("Plain", {"bt_header_axon_port": "x"}),
    ("Plain", {"bt_header_input_obj_text": "ImEi", "computed_body_hash": "h"}),
    ("Plain", {"bt_header_input_obj_text": "!", "total_size": "4", "header_size": "5"}),
    ("Plain", {"bt_header_input_obj_text": "", "accept": "*/*", "timeout": ""}),
    ("Plain", {"xbt_header_axon_ip": "1.1.1.1", "bt_header_input_obj_axon": "e30="}),
    ("Required", {"bt_header_input_obj_text": "ImEi"}),
]


def told(function: Any) -> Any:
    """Return what a function returns, or the class of what it raises."""
    try:
        return function()
    except Exception as error:  # What it is, is what is compared.
        return {"raises": type(error).__name__}


def observed(made: dict[str, type[Any]]) -> dict[str, Any]:
    """Return everything that synapses of these classes show."""
    return {
        "made": [_made(made[name], given) for name, given in MAKINGS],
        "assigned": [_assigned(made[name], to, v) for name, to, v in ASSIGNMENTS],
        "statuses": [_status(made["Plain"], status) for status in STATUSES],
        "read": [_read(made[name], headers) for name, headers in HEADERS],
        "required": {k: list(kind().get_required_fields())
                     if k not in ("Required", "Checked") else None
                     for k, kind in made.items()},
    }  # fmt: skip


def _made(kind: type[Any], given: dict[str, Any]) -> Any:
    synapse = told(lambda: kind(**given))
    if isinstance(synapse, dict):
        return synapse
    shown = {
        "dump": synapse.model_dump(),
        "json": synapse.model_dump_json(),
        "repr": repr(synapse),
        "hash": synapse.body_hash,
        "headers": told(synapse.to_headers),
        "required": synapse.get_required_fields(),
        "set": sorted(synapse.model_fields_set),
        "copied": synapse.model_copy() == synapse,
    }
    result = synapse.deserialize()
    shown["deserialized"] = "self" if result is synapse else result
    again = told(lambda: kind.from_headers(shown["headers"]))
    shown["again"] = again if isinstance(again, dict) else again.model_dump()
    return shown


def _assigned(kind: type[Any], path: str, value: Any) -> Any:
    synapse = kind(word="w") if "word" in kind.model_fields else kind()
    *first, last = path.split(".")
    owner = getattr(synapse, first[0]) if first else synapse
    outcome = told(lambda: setattr(owner, last, value))
    return [outcome, synapse.model_dump()]


def _status(kind: type[Any], status: int | None) -> list[bool]:
    synapse = kind(dendrite={"status_code": status})
    names = ("is_success", "is_failure", "is_timeout", "is_blacklist",
             "failed_verification")  # fmt: skip
    return [getattr(synapse, name) for name in names]


def _read(kind: type[Any], headers: dict[str, str]) -> Any:
    inputs = kind.parse_headers_to_inputs(headers)
    synapse = told(lambda: kind.from_headers(headers))
    return [inputs, synapse if isinstance(synapse, dict) else synapse.model_dump()]


AXONS: list[dict[str, Any]] = [
    {"version": 1, "ip": "1.2.3.4", "port": 80, "ip_type": 4, "hotkey": "h",
     "coldkey": "c"},
    {"version": 7, "ip": "::1", "port": 1, "ip_type": 6, "hotkey": "h", "coldkey": "",
     "protocol": 0, "placeholder1": 3, "placeholder2": 4},
    {"version": 0, "ip": "0.0.0.0", "port": 0, "ip_type": 0, "hotkey": "",
     "coldkey": ""},
]  # fmt: skip
NEURONS = [
    {"hotkey": "h", "coldkey": "c",
     "axon_info": {"version": 1, "ip": 16909060, "port": 80, "ip_type": 4}},
    {"hotkey": "h", "coldkey": "c",
     "axon_info": {"version": 1, "ip": "1", "port": 80, "ip_type": 4}},
    {"hotkey": "h", "coldkey": "c",
     "axon_info": {"version": 1, "ip": 1 << 127, "port": 80, "ip_type": 6}},
]  # fmt: skip
TEXTS = [
    '{"version": 1, "ip": "i", "port": 2, "ip_type": 4, "hotkey": "h", "coldkey": "c"}',
    "nonsense",
    "{}x",
    '{"unknown": 1}',
]


def _axon(info: Any) -> Any:
    return {
        "fields": {name: getattr(info, name) for name in AXONS[1]},
        "is_serving": info.is_serving,
        "ip_str": info.ip_str(),
        "str": str(info),
        "repr": repr(info),
        "string": info.to_string(),
        "parameters": dict(info.to_parameter_dict()),
    }


def observed_axons(kind: type[Any]) -> dict[str, Any]:
    """Return everything that axon infos of a class show."""
    infos = [kind(**given) for given in AXONS]
    return {
        "made": [_axon(info) for info in infos],
        "equal": [[one == kind(**given) for given in AXONS] for one in infos],
        "protocols_differ": kind(**AXONS[0]) == kind(**{**AXONS[0], "protocol": 9}),
        "hash": told(lambda: hash(infos[0])),
        "neurons": [_axon(kind.from_neuron_info(each)) for each in NEURONS],
        "texts": [_axon(kind.from_string(text)) for text in TEXTS],
        "again": kind.from_parameter_dict(infos[0].to_parameter_dict()) == infos[0],
    }


def observed_errors(module: Any) -> dict[str, Any]:
    """Return what the exceptions of a module are."""
    names = (
        "BlacklistedException", "InternalServerError", "InvalidRequestNameError",
        "NotVerifiedException", "PostProcessException", "PriorityException",
        "RunException", "SynapseDendriteNoneException", "SynapseException",
        "SynapseParsingError", "UnknownSynapseError",
    )  # fmt: skip
    found = {}
    for name in names:
        kind = getattr(module, name)
        error = kind()
        found[name] = {
            "bases": [base.__name__ for base in kind.__mro__[1:-2]],
            "text": str(error),
            "message": getattr(error, "message", None),
            "given": str(kind("m")),
        }
    return found
