"""Which synapse functions are for is found out by their annotations."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Tuple  # noqa: UP035 - as miners write it.

import pytest

from lightning.dropin.attaching import AttachError, is_synapse_class, synapse_class_of
from lightning.dropin.synapse import Synapse

if TYPE_CHECKING:
    from decimal import Decimal


class One(Synapse):
    n: int = 0


class Two(Synapse):
    n: int = 0


def forward(synapse: One) -> One:
    return synapse


def find(forward_fn, local_names=None, **others):
    return synapse_class_of(forward_fn, others, local_names or {})


class Miner:
    def method(self, request: One) -> One:
        return request

    async def asynchronous(self, s: One) -> One:
        return s

    @classmethod
    def of_class(cls, s: One) -> One:
        return s

    @staticmethod
    def static(s: One) -> One:
        return s

    def with_more(self, extra: int, s: One) -> One:
        return s

    def __call__(self, s: One) -> One:
        return s


@pytest.mark.parametrize(
    "function",
    [
        forward,
        Miner().method,
        Miner().asynchronous,
        Miner.of_class,
        Miner.static,
        Miner(),
        functools.partial(Miner().with_more, 5),
        functools.partial(forward),
        functools.wraps(forward)(Miner()),
    ],
)
def test_every_kind_of_function_is_understood(function):
    assert find(function) is One


def test_annotations_may_be_classes_and_not_texts():
    def plain(s):
        return s

    plain.__annotations__ = {"s": One}
    assert find(plain) is One


def test_a_class_may_be_local_to_who_attaches():
    class Local(Synapse):
        pass

    def answer(s: Local) -> Local:
        return s

    assert find(answer, locals()) is Local


def old_blacklist(synapse: One) -> Tuple[bool, str]:  # noqa: UP006 - as miners write it.
    return False, ""


def new_blacklist(s: One) -> tuple[bool, str]:
    return False, ""


def bare(s):
    return 1.0


def loose(s: Any) -> Any:
    return None


def general(s: Synapse) -> float:
    return 1.0


def unresolved(s: Decimal) -> float:
    return 1.0


def variadic(*args: int) -> float:
    return 1.0


@pytest.mark.parametrize(
    "other",
    [old_blacklist, new_blacklist, bare, loose, general, unresolved, variadic, max],
)
def test_the_other_functions_may_be_annotated_as_they_like(other):
    assert find(forward, blacklist_fn=other, priority_fn=other, verify_fn=None) is One


def test_the_other_functions_say_it_where_forward_does_not():
    assert find(bare, blacklist_fn=None, priority_fn=new_blacklist) is One


def other(s: Two) -> float:
    return 1.0


def test_two_different_synapses_are_refused_by_both_names():
    with pytest.raises(AttachError, match=r"priority_fn other is for Two.* for One"):
        find(forward, priority_fn=other)
    # As miners may have it, and as they would have it from bittensor.
    for kind in (TypeError, AssertionError, ValueError):
        with pytest.raises(kind):
            find(forward, priority_fn=other)


def number(s: int) -> int:
    return s


def nothing():
    return None


def two(s: One, t: One) -> None:
    return None


def nonsense(s) -> None:
    return None


nonsense.__annotations__ = {"s": "5 +"}


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (number, "number must be annotated with a subclass of Synapse, not int"),
        (loose, "not Any|typing"),
        (bare, "annotate the first argument of forward_fn bare"),
        (unresolved, "must exist when it is attached"),
        (nothing, "must take a synapse and nothing else"),
        (two, "missing a required argument: 't'"),
        (variadic, "annotate the first argument"),
        (max, "annotate the first argument"),
        (nonsense, "cannot resolve"),
        (5, "forward_fn must be callable, not int"),
    ],
)
def test_what_is_for_no_synapse_is_refused(function, text):
    with pytest.raises(AttachError, match=text):
        find(function)


def test_others_must_be_callable():
    with pytest.raises(AttachError, match="blacklist_fn must be callable"):
        find(forward, blacklist_fn=True)


def test_a_class_of_the_same_shape_is_a_synapse_class():
    class Alike:
        model_fields = model_dump = deserialize = None

    assert is_synapse_class(Alike)
    assert not is_synapse_class(Alike())
    assert not is_synapse_class(int)
