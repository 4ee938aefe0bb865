"""Settings with dots in their names, from the command line and the environment."""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Config", "add_once", "axon_defaults", "number_from"]

DEFAULT_PORT = 8091
DEFAULT_IP = "[::]"
DEFAULT_MAX_WORKERS = 10


def number_from(variable: str, default: int) -> int:
    """Return the whole number that an environment variable has.

    Raises:
        ConfigError: It is set to something else.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{variable} must be a whole number, not {text!r}") from None


def axon_defaults() -> dict[str, Any]:
    """Return the settings of an axon that nothing else is said about.

    From ``BT_AXON_IP``, ``BT_AXON_PORT``, ``BT_AXON_EXTERNAL_IP``,
    ``BT_AXON_EXTERNAL_PORT`` and ``BT_AXON_MAX_WORKERS``, read at each call.

    Raises:
        ConfigError: A number is none.
    """
    environ = os.environ
    return {
        "port": number_from("BT_AXON_PORT", DEFAULT_PORT),
        "ip": environ.get("BT_AXON_IP") or DEFAULT_IP,
        "external_port": number_from("BT_AXON_EXTERNAL_PORT", 0) or None,
        "external_ip": environ.get("BT_AXON_EXTERNAL_IP") or None,
        "max_workers": number_from("BT_AXON_MAX_WORKERS", DEFAULT_MAX_WORKERS),
    }


def add_once(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Add an argument to a parser, unless it has it already."""
    try:
        parser.add_argument(name, **settings)
    except argparse.ArgumentError:
        pass  # Those who add the same ones twice want them once.


class Config(dict[str, Any]):
    """Settings in a tree: ``config.axon.port``, or ``config["axon"]["port"]``.

    What is not there reads as None; setting it makes it be there. A parser's arguments
    with dots in their names become branches. Arguments that the parser does not know
    are left alone, as others may.

    Args:
        parser: Reads the command line; None for the defaults alone. It is not read
            either if the environment has ``BT_NO_PARSE_CLI_ARGS`` set.
        args: What it reads; None for the command line.
        strict: Whether unknown arguments are an error after all.
        default: What there is besides; None for the settings of an axon.

    Raises:
        ValueError: A required argument is missing.

    Example::

        parser = argparse.ArgumentParser()
        Axon.add_args(parser)
        config = Config(parser)
        axon = Axon(wallet, config=config)
    """

    def __init__(
        self,
        parser: argparse.ArgumentParser | None = None,
        args: Sequence[str] | None = None,
        strict: bool = False,
        default: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_given", set())
        if default is None:
            default = {"axon": axon_defaults()}
        self._add(default)
        if parser is None or os.environ.get("BT_NO_PARSE_CLI_ARGS"):
            return
        arguments = list(sys.argv[1:] if args is None else args)
        missing = _missing(parser, arguments)
        if missing:
            raise ValueError(f"Missing required arguments: {', '.join(missing)}")
        parse = parser.parse_args if strict else _parse_known(parser)
        for name, value in vars(parse(arguments)).items():
            self._put(name, value)
        object.__setattr__(self, "_given", _given(parser, arguments))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self)(default={})
        memo[id(self)] = made
        for name, value in self.items():
            made[name] = copy.deepcopy(value, memo)
        object.__setattr__(made, "_given", set(self._given))
        return made

    def __str__(self) -> str:
        return "\n" + "\n".join(_lines(self, 0)) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({super().__repr__()})"

    def is_set(self, param_name: str) -> bool:
        """Say if an argument was on the command line, and is not just a default.

        Args:
            param_name: With its dots.
        """
        return param_name in self._given

    def merge(self, other: Mapping[str, Any]) -> None:
        """Take over all that another has; in both, its own are replaced."""
        self._add(copy.deepcopy(dict(other)))
        self._given.update(getattr(other, "_given", None) or ())

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dicts."""
        return {
            name: value.to_dict() if isinstance(value, Config) else value
            for name, value in self.items()
        }

    toDict = to_dict  # noqa: N815 - the name that programs know.

    def _add(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                self._branch(name)._add(value)
            else:
                self[name] = value

    def _put(self, name: str, value: Any) -> None:
        *branches, leaf = name.split(".")
        place = self
        for branch in branches:
            place = place._branch(branch)
        place[leaf] = value

    def _branch(self, name: str) -> Config:
        branch = self.get(name)
        if not isinstance(branch, Config):
            branch = self[name] = Config(default={})
        return branch


def _parse_known(parser: argparse.ArgumentParser) -> Any:
    return lambda arguments: parser.parse_known_args(arguments)[0]


def _missing(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    given = {each.split("=")[0] for each in arguments if each.startswith("-")}
    return [
        action.dest
        for action in parser._actions
        if action.required and action.option_strings
        if not given.intersection(action.option_strings)
    ]


def _given(parser: argparse.ArgumentParser, arguments: list[str]) -> set[str]:
    """Return the names of the arguments that were there."""
    bare = copy.deepcopy(parser)
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    bare._defaults.clear()
    return set(vars(bare.parse_known_args(arguments)[0]))


def _lines(settings: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for name, value in settings.items():
        start = "  " * depth + f"{name}:"
        if isinstance(value, Mapping) and value:
            lines += [start, *_lines(value, depth + 1)]
        else:
            lines.append(f"{start} {value}")
    return lines
