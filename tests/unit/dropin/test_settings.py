"""Settings are a tree that is read and written by dots."""

import argparse
import copy

import pytest

from lightning.dropin.settings import Config


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("PORT", "IP", "EXTERNAL_PORT", "EXTERNAL_IP", "MAX_WORKERS"):
        monkeypatch.delenv(f"BT_AXON_{name}", raising=False)
    monkeypatch.delenv("BT_NO_PARSE_CLI_ARGS", raising=False)


def parser():
    made = argparse.ArgumentParser()
    made.add_argument("--netuid", type=int, default=1)
    made.add_argument("--neuron.epoch.length", type=int, default=100)
    made.add_argument("--neuron.name", default="n")
    return made


def test_without_a_parser_it_has_an_axons_defaults():
    assert Config().to_dict() == {
        "axon": {
            "port": 8091,
            "ip": "[::]",
            "external_port": None,
            "external_ip": None,
            "max_workers": 10,
        }
    }


def test_the_environment_has_the_defaults(monkeypatch):
    monkeypatch.setenv("BT_AXON_PORT", "9000")
    monkeypatch.setenv("BT_AXON_EXTERNAL_PORT", "9001")
    monkeypatch.setenv("BT_AXON_IP", "127.0.0.1")
    axon = Config().axon
    assert (axon.port, axon.external_port, axon.ip) == (9000, 9001, "127.0.0.1")


def test_arguments_with_dots_are_branches():
    config = Config(parser(), ["--neuron.epoch.length", "7", "--other", "x"])
    assert config.netuid == 1
    assert config.neuron.epoch.length == 7
    assert config["neuron"]["name"] == "n"
    assert config.is_set("neuron.epoch.length")
    assert not config.is_set("neuron.name")


def test_the_command_line_is_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["miner", "--netuid=3"])
    assert Config(parser()).netuid == 3
    monkeypatch.setenv("BT_NO_PARSE_CLI_ARGS", "1")
    assert Config(parser()).netuid is None


def test_strict_ones_refuse_what_is_unknown(capsys):
    with pytest.raises(SystemExit):
        Config(parser(), ["--other", "x"], strict=True)
    assert "--other" in capsys.readouterr().err


def test_required_arguments_are():
    strict = parser()
    strict.add_argument("--wallet.name", required=True)
    with pytest.raises(ValueError, match=r"wallet\.name"):
        Config(strict, [])
    assert Config(strict, ["--wallet.name=w"]).wallet.name == "w"


def test_what_is_not_there_is_none_and_can_be_set():
    config = Config(default={"a": {"b": 1}})
    assert config.c is None
    assert not hasattr(config, "__no_such_protocol__")
    config.c = 5
    assert config["c"] == 5
    del config.c
    assert "c" not in config
    with pytest.raises(AttributeError):
        del config.c


def test_a_copy_is_deep_and_of_the_same_kind():
    config = Config(parser(), ["--netuid", "2"])
    twin = copy.deepcopy(config)
    twin.neuron.name = "other"
    assert type(twin.neuron) is Config
    assert config.neuron.name == "n"
    assert twin.is_set("netuid")


def test_merging_takes_over_leaf_by_leaf():
    config = Config(default={"a": {"x": 1, "y": 2}, "b": 1})
    config.merge(Config(parser(), ["--netuid", "2"], default={"a": {"x": 5}}))
    assert config.to_dict() == {
        "a": {"x": 5, "y": 2},
        "b": 1,
        "netuid": 2,
        "neuron": {"epoch": {"length": 100}, "name": "n"},
    }
    assert config.toDict() == config.to_dict()
    assert config.is_set("netuid")


def test_its_text_is_a_tree():
    config = Config(default={"a": {"x": 1}, "b": None})
    assert str(config) == "\na:\n  x: 1\nb: None\n"
    assert repr(config) == "Config({'a': Config({'x': 1}), 'b': None})"
