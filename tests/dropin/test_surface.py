"""Every public name of bittensor's classes is here too, with its arguments and defaults."""

import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.dropin import faces

# Where a class is: bittensor's module, ours, and its name.
CLASSES = (
    ("bittensor.core.dendrite", "lightning.dropin.dendrite", "Dendrite"),
    ("bittensor.core.axon", "lightning.dropin.axon", "Axon"),
    ("bittensor.core.synapse", "lightning.dropin.synapse", "Synapse"),
    ("bittensor.core.synapse", "lightning.dropin.synapse", "TerminalInfo"),
    ("bittensor.core.stream", "lightning.dropin.streaming", "StreamingSynapse"),
    ("bittensor.core.chain_data.axon_info", "lightning.dropin.axon_info", "AxonInfo"),
    ("bittensor.core.tensor", "lightning.dropin.tensor", "Tensor"),
    (
        "bittensor.core.threadpool",
        "lightning.dropin.threadpool",
        "PriorityThreadPoolExecutor",
    ),
)
EXCEPTIONS = (
    "SynapseException",
    "UnknownSynapseError",
    "SynapseParsingError",
    "InvalidRequestNameError",
    "NotVerifiedException",
    "BlacklistedException",
    "PriorityException",
    "PostProcessException",
    "RunException",
    "InternalServerError",
    "SynapseDendriteNoneException",
)
MODULE_NAMES = (
    ("bittensor.core.dendrite", "lightning.dropin.dendrite", "DENDRITE_DEFAULT_ERROR"),
    ("bittensor.core.dendrite", "lightning.dropin.dendrite", "DENDRITE_ERROR_MAPPING"),
    ("bittensor.core.dendrite", "lightning.dropin.dendrite", "DendriteMixin"),
    ("bittensor.core.dendrite", "lightning.dropin.dendrite", "event_loop_is_running"),
)
# Names that belong to how bittensor does it, by class.
LEFT_OUT = {
    # A validator, which pydantic calls.
    "Synapse": {"set_name_type"},
    "StreamingSynapse": {"set_name_type"},
    # They decode what a chain's client of bittensor's gets.
    "AxonInfo": {"from_dict", "list_from_dicts"},
}
# Where arguments are named, ordered or awaited in another way, with why.
OTHER_ARGUMENTS = {
    **dict.fromkeys(
        ("Dendrite.forward", "Dendrite.call", "Dendrite.call_stream"),
        "None stands for a new Synapse(), so that no two calls share one",
    ),
    "StreamingSynapse.process_streaming_response": (
        "subclasses write an asynchronous generator, and so does the abstract one"
    ),
    "PriorityThreadPoolExecutor.submit": (
        "as in concurrent.futures, the function is by position, so that its own "
        "arguments may have any name"
    ),
}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Let bittensor keep its threads; it warns too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module", autouse=True)
def imported(bittensor_is_there) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faces.theirs()


def both(places: tuple[str, str, str]) -> tuple[Any, Any]:
    """Return their thing and ours."""
    theirs, ours, name = places
    return (
        getattr(importlib.import_module(theirs), name),
        getattr(importlib.import_module(ours), name),
    )


def public(kind: type) -> set[str]:
    """Return the names that a class itself or a base of the same package defines."""
    package = kind.__module__.partition(".")[0]
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == package:
            found |= {
                name
                for name in (*vars(base), *vars(base).get("__annotations__", {}))
                if not name.startswith("_") or name in ("__call__", "__aenter__")
            }
    return found - {"model_config", "model_fields", "model_computed_fields"}


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def default(parameter: inspect.Parameter) -> Any:
    """Return a default in a form that compares."""
    value = parameter.default
    if value is inspect.Parameter.empty or isinstance(value, str | int | float | tuple):
        return value
    return None if value is None else type(value).__name__


def argument_differences(theirs: Any, ours: Any) -> list[str]:
    """Return in what ours cannot be called as theirs can."""
    wanted, got = parameters(theirs), parameters(ours)
    found = []
    for place, parameter in enumerate(wanted):
        if place >= len(got) or got[place].name != parameter.name:
            found.append(f"{parameter.name} is not at {place}")
        elif got[place].kind != parameter.kind:
            found.append(f"{parameter.name} is {got[place].kind.description}")
        elif parameter.default is not parameter.empty and default(
            got[place]
        ) != default(parameter):
            found.append(
                f"{parameter.name} defaults to {got[place].default!r} and not to "
                f"{parameter.default!r}"
            )
    found += [
        f"{parameter.name} is new and not optional and by keyword"
        for parameter in got[len(wanted) :]
        if parameter.kind
        not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        or (
            parameter.kind is parameter.KEYWORD_ONLY
            and parameter.default is parameter.empty
        )
    ]
    return found


@pytest.mark.parametrize("places", CLASSES, ids=lambda places: places[2])
def test_every_public_name_is_here(places):
    """Whoever uses a name of bittensor's class finds it at ours."""
    theirs, ours = both(places)
    left_out = LEFT_OUT.get(places[2], set())
    missing = {
        name for name in public(theirs) if name not in public(ours) | set(dir(ours))
    }
    if hasattr(ours, "model_fields"):
        missing -= set(ours.model_fields)
    assert missing == left_out


@pytest.mark.parametrize("places", CLASSES, ids=lambda places: places[2])
def test_what_is_called_takes_the_same_arguments(places):
    """Order, kinds and defaults are bittensor's; what is new is optional, by keyword."""
    theirs, ours = both(places)
    found = {}
    for name in sorted({"__init__", *public(theirs)}):
        one, other = getattr(theirs, name, None), getattr(ours, name, None)
        if name == "__init__" and hasattr(theirs, "model_fields"):
            continue
        if inspect.isroutine(one) and other is not None:
            same_kind = inspect.iscoroutinefunction(one) == inspect.iscoroutinefunction(
                other
            ) and inspect.isasyncgenfunction(one) == inspect.isasyncgenfunction(other)
            differs = argument_differences(one, other)
            if not same_kind:
                differs.append("one is a coroutine function, the other is not")
            if differs and f"{places[2]}.{name}" not in OTHER_ARGUMENTS:
                found[name] = differs
    assert not found


@pytest.mark.parametrize("places", CLASSES, ids=lambda places: places[2])
def test_fields_are_the_same(places):
    """Models have the same fields, with the same defaults, required and frozen alike."""
    theirs, ours = both(places)
    if not hasattr(theirs, "model_fields"):
        pytest.skip("it is no model")

    def told(kind: Any) -> dict[str, Any]:
        return {
            name: (
                field.is_required(),
                bool(field.frozen),
                None
                if field.is_required()
                else repr(field.get_default(call_default_factory=True)),
            )
            for name, field in kind.model_fields.items()
        }

    assert told(ours) == told(theirs)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_the_same(name):
    """Exceptions have the same names, bases and arguments."""
    theirs = getattr(importlib.import_module("bittensor.core.errors"), name)
    ours = getattr(importlib.import_module("lightning.dropin.exceptions"), name)
    assert [base.__name__ for base in ours.__mro__][:-3] == [
        base.__name__ for base in theirs.__mro__
    ][:-3]
    if "__init__" in vars(theirs):
        assert not argument_differences(theirs.__init__, ours.__init__)


@pytest.mark.parametrize("places", MODULE_NAMES, ids=lambda places: places[2])
def test_names_of_modules_are_here(places):
    """What subnets import from bittensor's modules has its place here."""
    theirs, ours = both(places)
    assert type(ours).__name__ == type(theirs).__name__
