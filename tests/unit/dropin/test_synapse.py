"""Synapses, axon infos and exceptions show what bittensor's show."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import pydantic
import pytest

import lightning
from lightning.dropin import exceptions
from lightning.dropin.axon_info import AxonInfo, target_of
from lightning.dropin.synapse import Synapse, TerminalInfo

VECTORS = Path(__file__).parents[2] / "vectors"
RECORDED = json.loads((VECTORS / "synapse.json").read_text())
# Sizes of objects in memory, which differ from one Python to the next.
SIZES = ("header_size", "total_size")
SAME_SIZES = (
    RECORDED["python"] == list(sys.version_info[:2])
    and RECORDED["pydantic"] == pydantic.VERSION
)


def load_ways():
    spec = importlib.util.spec_from_file_location("synapses", VECTORS / "synapses.py")
    module = importlib.util.module_from_spec(spec)
    # pydantic looks for the names of annotations there.
    sys.modules["synapses"] = module
    spec.loader.exec_module(module)
    return module


WAYS = load_ways()


def comparable(shown):
    """Return what was shown as JSON has it, sizes only where they must be equal."""
    if isinstance(shown, dict):
        return {
            key: comparable(value)
            for key, value in shown.items()
            if SAME_SIZES or (key not in SIZES and key != "json")
        }
    return (
        [comparable(item) for item in shown]
        if isinstance(shown, list | tuple)
        else shown
    )


@pytest.fixture(scope="module")
def shown():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WAYS.observed(WAYS.classes(Synapse))


@pytest.mark.parametrize(
    ("number", "name"), [(n, name) for n, (name, _) in enumerate(WAYS.MAKINGS)]
)
def test_what_is_made_shows_the_same(shown, number, name):
    """Dumps, texts, hashes, headers byte by byte, and what headers make again."""
    ours, theirs = shown["made"][number], RECORDED["synapses"]["made"][number]
    assert comparable(ours) == comparable(theirs), name


@pytest.mark.parametrize("number", range(len(WAYS.ASSIGNMENTS)))
def test_what_is_assigned_has_the_same_effect(shown, number):
    ours, theirs = shown["assigned"][number], RECORDED["synapses"]["assigned"][number]
    assert comparable(ours) == comparable(theirs), WAYS.ASSIGNMENTS[number]


@pytest.mark.parametrize("what", ["statuses", "read", "required"])
def test_the_rest_is_the_same(shown, what):
    assert comparable(shown[what]) == comparable(RECORDED["synapses"][what])


def test_axon_infos_show_the_same():
    ours = json.loads(json.dumps(WAYS.observed_axons(AxonInfo)))
    for name, theirs in RECORDED["axons"].items():
        assert ours[name] == theirs, name


def test_exceptions_are_the_same():
    assert WAYS.observed_errors(exceptions) == RECORDED["errors"]


def test_the_old_way_to_name_hash_fields_is_told():
    kind = WAYS.classes(Synapse)["OldHashed"]
    with pytest.warns(DeprecationWarning, match="OldHashed: make required_hash_fields"):
        kind().body_hash  # noqa: B018 - the warning is what matters.


def test_a_required_field_without_an_empty_value_is_named():
    class Asked(Synapse):
        given: complex

    with pytest.raises(ValueError, match="'given' in a header"):
        Asked(given=1j).to_headers()


def test_synapses_share_no_terminal():
    one, other = Synapse(), Synapse()
    one.dendrite.hotkey = "h"
    assert other.dendrite == TerminalInfo()


def test_an_old_copy_is_a_copy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Synapse(timeout=3).copy().timeout == 3


def test_the_size_counts_every_object_once():
    class Holding(Synapse):
        many: list = []  # noqa: RUF012 - pydantic copies it.

    text = "x" * 1000
    one = Holding(many=[text]).get_total_size()
    assert Holding(many=[text, text]).get_total_size() - one < 100
    synapse = Holding(many=[text])
    synapse.many.append(synapse.many)
    assert synapse.get_total_size() == synapse.total_size > 1000


def test_an_axon_info_is_a_mapping_too():
    info = AxonInfo(hotkey="h", ip="1.2.3.4", port=5)
    as_dict = {"hotkey": "h", "ip": "1.2.3.4", "port": 5, "protocol": 4}
    assert dict(info) == as_dict
    assert (info == as_dict, len(info), bool(info)) == (True, 4, True)
    assert (info == 3, info.get("coldkey"), "ip" in info) == (False, None, True)
    assert lightning.QuicAxonInfo.coerce(info).port == 5


class Chain:
    """An axon info by shape, with an ``info`` of another kind."""

    ip, port, hotkey, info = "1.2.3.4", 5, "h", None


class Serving:
    """An axon: what it says itself is not where it is."""

    ip, port = "[::]", 1

    def info(self):
        return {"ip": "1.2.3.4", "port": 5, "hotkey": "h", "coldkey": None}


@pytest.mark.parametrize(
    "axon",
    [
        AxonInfo(ip="1.2.3.4", port=5, hotkey="h"),
        {"ip": "1.2.3.4", "port": 5, "hotkey": "h"},
        lightning.QuicAxonInfo("h", "1.2.3.4", 5),
        Chain(),
        Serving(),
    ],
    ids=lambda axon: type(axon).__name__,
)
def test_whatever_says_where_an_axon_is_will_do(axon):
    assert target_of(axon) == AxonInfo(ip="1.2.3.4", port=5, hotkey="h")


@pytest.mark.parametrize("axon", [None, "1.2.3.4:5", 3, ("h", "1.2.3.4", 5)])
def test_what_does_not_is_a_type_error(axon):
    with pytest.raises(TypeError, match="give an AxonInfo"):
        target_of(axon)
