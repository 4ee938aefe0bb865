"""The priority of requests by the stake of their validators."""

import threading

import pytest

from lightning import HandlerContext, PeerAddr, StakePriority
from lightning import priority as priority_module
from lightning.errors import ConfigError
from tests.support.waiting import until


def of(hotkey: str) -> HandlerContext:
    return HandlerContext(hotkey, PeerAddr("127.0.0.1", 1), "h", 0.0, "conn")


def test_stakes_are_looked_up():
    stakes = {"a": 5.0}
    priority = StakePriority(stakes)
    assert (priority(of("a")), priority(of("b"))) == (5.0, 0.0)
    stakes["b"] = 7
    assert priority(of("b")) == 7


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((5,), TypeError, "stakes must be a mapping or a callable, not int"),
        (({}, 0), ConfigError, "refresh_secs must be above 0"),
        (({}, float("nan")), ConfigError, "refresh_secs must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        StakePriority(*arguments)


def test_whoever_knows_stakes_is_asked_aside_and_now_and_then(monkeypatch, caplog):
    """A slow answer holds up nobody; a failure keeps what was known."""
    now = [100.0]
    monkeypatch.setattr(priority_module.time, "monotonic", lambda: now[0])
    release = threading.Event()
    answers: list[object] = [{"a": 1.0}, {"a": 2.0}, "nonsense", SystemExit(3), {}]
    asked = []

    def resolve() -> object:
        asked.append(threading.current_thread())
        assert release.wait(10)
        answer = answers[len(asked) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    priority = StakePriority(resolve, 10)
    assert priority(of("a")) == 0.0
    assert priority(of("a")) == 0.0, "one question at a time"
    release.set()
    until(lambda: priority(of("a")) == 1.0)
    assert len(asked) == 1
    assert asked[0] is not threading.current_thread()
    for count, stake in ((2, 2.0), (3, 2.0), (4, 2.0), (5, 0.0)):
        until(lambda: not priority._asking.locked())
        now[0] += 10
        priority(of("a"))
        until(lambda n=count: len(asked) == n and not priority._asking.locked())
        assert priority(of("a")) == stake
    assert len(asked) == 5
    assert caplog.text.count("stakes not refreshed, the old ones stay") == 2
    assert "stakes must be a mapping, not str" in caplog.text


def test_without_a_thread_for_it_the_old_stakes_hold(monkeypatch):
    def fail(*args: object, **more: object) -> None:
        raise RuntimeError("can't start new thread")

    priority = StakePriority(lambda: {"a": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(priority_module.threading, "Thread", fail)
        assert priority(of("a")) == 0.0
    assert not priority._asking.locked()
