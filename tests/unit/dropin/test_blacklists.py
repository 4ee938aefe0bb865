"""The ready-made blacklists: permit, stake, rate, and several at once."""

import threading
from types import SimpleNamespace

import pytest

from lightning.dropin import blacklists
from lightning.dropin.blacklists import permit, rate, stake
from lightning.dropin.synapse import Synapse, TerminalInfo
from lightning.errors import ConfigError
from tests.support.waiting import until


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(
        blacklists, "time", SimpleNamespace(monotonic=lambda: now.seconds)
    )
    return now


def ask(check, hotkey):
    return check(Synapse(dendrite=TerminalInfo(hotkey=hotkey)))


def columns():
    return SimpleNamespace(
        hotkeys=["a", "b"], validator_permit=[True, False], S=[1000.0, 10.0]
    )


def neurons():
    return [
        SimpleNamespace(hotkey="a", validator_permit=True, total_stake=1000),
        SimpleNamespace(hotkey="b", validator_permit=False, total_stake=10),
    ]


SHAPES = [
    columns,
    neurons,
    lambda: SimpleNamespace(neurons=neurons()),
    lambda: columns,
    lambda: SimpleNamespace(hotkeys=["a", "b"], neurons=neurons()),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_permit_lets_in_who_holds_one(shape):
    check = permit(shape())
    assert ask(check, "a") == (False, "Hotkey recognized")
    assert ask(check, "b") == (True, "Non-validator hotkey")
    assert ask(check, "c") == (True, "Unrecognized hotkey")
    assert ask(check, None) == (True, "Missing hotkey")


@pytest.mark.parametrize("permits", [{"a": True, "b": False}, {"a"}])
def test_permits_may_be_plain(permits):
    check = permit(permits)
    assert not ask(check, "a")[0]
    assert ask(check, "b")[0]


@pytest.mark.parametrize("shape", [*SHAPES, lambda: {"a": 1000, "b": 10}])
def test_stake_lets_in_who_has_enough(shape):
    check = stake(shape(), 1000)
    assert not ask(check, "a")[0]
    assert ask(check, "b") == (True, "Stake below 1000")
    assert ask(check, "c") == (True, "Unrecognized hotkey")


def test_a_stake_that_is_no_number_is_not_enough():
    assert ask(stake({"a": float("nan")}, 1), "a")[0]


def test_rate_lets_in_so_many(clock):
    check = rate(2, 10)
    assert [ask(check, "a")[0] for _ in range(3)] == [False, False, True]
    assert ask(check, "a") == (True, "More than 2 requests in 10 s")
    assert not ask(check, "b")[0]
    clock.seconds += 5
    assert [ask(check, "a")[0] for _ in range(2)] == [False, True]
    clock.seconds += 1000
    assert [ask(check, "a")[0] for _ in range(3)] == [False, False, True]


def test_rate_remembers_so_many_callers(clock, monkeypatch):
    monkeypatch.setattr(blacklists, "MAX_KNOWN", 2)
    check = rate(1, 10)
    for hotkey in ("a", "b", "c"):
        assert not ask(check, hotkey)[0]
    assert ask(check, "c")[0]
    assert not ask(check, "a")[0]


def test_several_refuse_what_any_refuses(clock):
    check = permit(columns()) | stake(columns(), 500) | rate(1)
    assert ask(check, "b") == (True, "Non-validator hotkey")
    assert ask(check, "a")[0] is False
    assert ask(check, "a")[1].startswith("More than 1 requests")
    with pytest.raises(TypeError):
        check | (lambda synapse: False)


def test_a_metagraph_is_looked_at_again(clock):
    metagraph = columns()
    check = permit(metagraph, refresh_secs=5)
    metagraph.validator_permit = [False, True]
    assert not ask(check, "a")[0]
    clock.seconds += 5
    assert ask(check, "a")[0]
    assert not ask(check, "b")[0]


def test_what_was_said_last_holds_where_it_cannot_be_read(clock, caplog):
    metagraph = columns()
    check = permit(metagraph)
    del metagraph.hotkeys
    clock.seconds += 12
    assert not ask(check, "a")[0]
    assert "a blacklist's metagraph cannot be read, the old one holds" in caplog.text


def test_a_callable_is_asked_again_in_a_thread(clock):
    answers, asked = [{"a"}, {"b"}], threading.Event()

    def resolve():
        if len(answers) == 1:
            assert threading.current_thread().name == "lightning-handler-blacklist"
            asked.set()
        return answers.pop(0)

    check = permit(resolve)
    assert not ask(check, "a")[0]
    clock.seconds += 300
    ask(check, "a")
    assert asked.wait(10)
    until(lambda: ask(check, "a")[0])
    assert not ask(check, "b")[0]


def test_without_a_thread_it_is_tried_again(clock, monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    check = permit(lambda: {"a"})
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        clock.seconds += 300
        assert not ask(check, "a")[0]
    clock.seconds += 300
    assert not ask(check, "a")[0]


@pytest.mark.parametrize("metagraph", [7, [7], [SimpleNamespace(hotkey="a")]])
def test_what_is_no_metagraph_is_refused(metagraph):
    with pytest.raises((TypeError, AttributeError)):
        permit(metagraph)


def test_numbers_are_checked():
    with pytest.raises(ConfigError):
        rate(0)
    with pytest.raises(ConfigError):
        rate(1, 0)
    with pytest.raises(ConfigError):
        permit({"a"}, refresh_secs=0)
