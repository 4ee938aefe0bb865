"""What calls are: each names a synapse, a miner's functions and a question; see `calls`.

Each case is made once per library, with that library's classes; the miner's half of one may
then answer the validator's half of another. Class names are routes: each case has its own.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.dropin.faces import Face

MIB = 1 << 20


@dataclass
class Here:
    """What there is to ask.

    Attributes:
        face: Whose classes the validator has.
        miner: An axon that has attached all cases.
        dead: One where nobody listens.
        nowhere: One whose name nobody knows.
        unserved: One that says it does not serve.
        other: The miner, with a hotkey that it does not have.
        stub: Where somebody is who is no axon, by name.
        derived: Makes a dendrite of a class derived from the face's.
    """

    face: Face
    miner: Any
    dead: Any
    nowhere: Any
    unserved: Any
    other: Any
    stub: dict[str, Any]
    derived: Callable[[type], Any]


@dataclass
class Case:
    """One call.

    Attributes:
        ask: What the validator does; what it returns is compared.
        attach: What the miner gives to `attach`; None if it attaches nothing.
        is_plain: Whether `ask` is a plain function, called outside of any loop.
        only: Transports of ours that it can be made over.
    """

    ask: Callable[[Any, Here], Any]
    attach: dict[str, Any] | None = None
    is_plain: bool = False
    only: tuple[str, ...] = ("http", "quic")


MAKERS: dict[str, Callable[[Face], Case]] = {}


def case(make: Callable[[Face], Case]) -> Callable[[Face], Case]:
    """Take part under the function's name."""
    assert make.__name__ not in MAKERS
    MAKERS[make.__name__] = make
    return make


def full(synapse: Any, **other: Any) -> Callable[[Any, Here], Awaitable[Any]]:
    """Ask one miner and look at the whole synapse."""

    async def ask(dendrite: Any, here: Here) -> Any:
        told = {"timeout": 5, "deserialize": False, **other}
        return await dendrite(axons=here.miner, synapse=synapse, **told)

    return ask


async def tried(awaited: Awaitable[Any]) -> Any:
    """Await; give the exception if there is one."""
    try:
        return await awaited
    except Exception as error:
        return error
