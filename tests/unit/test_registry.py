"""The registry: who is where, back-off, reconciling."""

import math
import random

import pytest

from lightning.config import LightningClientConfig
from lightning.errors import LightningConnectionError
from lightning.registry import Backoff, Registry, background_wait
from lightning.types import PeerAddr

CONFIG = LightningClientConfig()
A, B = PeerAddr("127.0.0.1", 1), PeerAddr("127.0.0.1", 2)


def test_backoff_doubles_then_probes_slowly():
    backoff = Backoff()
    waits = []
    for _ in range(7):
        backoff.failed(100.0, CONFIG)
        waits.append(backoff.retry_at - 100.0)
    assert waits == [1, 2, 4, 8, 60, 60, 60]


def test_backoff_never_exceeds_its_maximum():
    config = LightningClientConfig(
        reconnect_initial_backoff=3.0,
        reconnect_max_backoff=10.0,
        reconnect_max_retries=5000,
    )
    backoff = Backoff()
    for _ in range(2000):
        backoff.failed(0.0, config)
        assert backoff.retry_at <= 10.0


def test_backoff_says_when_to_come_back():
    backoff = Backoff()
    backoff.check(A, 0.0, CONFIG)
    backoff.failed(0.0, CONFIG)
    with pytest.raises(
        LightningConnectionError, match=r"in backoff, next retry in 0\.4s"
    ) as caught:
        backoff.check(A, 0.6, CONFIG)
    assert caught.value.retry_after == pytest.approx(0.4)
    assert caught.value.address == "127.0.0.1:1"
    backoff.check(A, 1.0, CONFIG)


def test_without_slow_probe_an_address_is_given_up():
    config = LightningClientConfig(
        reconnect_max_retries=1, reconnect_slow_probe_interval=None
    )
    backoff = Backoff()
    backoff.failed(0.0, config)
    assert backoff.retry_at == math.inf
    with pytest.raises(
        LightningConnectionError,
        match=r"attempts exhausted for 127.0.0.1:1 \(1/1\), awaiting registry refresh",
    ):
        backoff.check(A, 1e9, config)


def test_a_hotkey_is_at_one_address():
    registry = Registry()
    assert registry.register("m", A) is None
    assert registry.register("m", A) is None
    assert registry.register("n", A) is None
    assert registry.register("m", B) is None
    assert registry.register("n", B) == A
    assert registry.hotkeys_at(A) == frozenset()
    assert registry.hotkeys_at(B) == {"m", "n"}
    assert (registry.address_of("m"), len(registry)) == (B, 2)


def test_deregistering_tells_when_an_address_is_vacated():
    registry = Registry()
    assert registry.deregister("nobody") is None
    registry.register("m", A)
    registry.register("n", A)
    assert registry.deregister("m") is None
    registry.backoff(A).failed(0.0, CONFIG)
    assert registry.deregister("n") == A
    assert registry.backoff(A).failures == 0, "back-off leaves with the last hotkey"


def test_indexes_agree_after_random_operations():
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    registry, model = Registry(), {}
    for _ in range(2000):
        hotkey = f"h{dice.randrange(8)}"
        if dice.random() < 0.6:
            address = PeerAddr("127.0.0.1", dice.randrange(4))
            registry.register(hotkey, address)
            model[hotkey] = address
        else:
            registry.deregister(hotkey)
            model.pop(hotkey, None)
        assert {h: registry.address_of(h) for h in registry.hotkeys} == model
        for port in range(4):
            address = PeerAddr("127.0.0.1", port)
            assert registry.hotkeys_at(address) == {
                h for h, a in model.items() if a == address
            }
    registry.clear()
    assert not len(registry)


def test_reconcile_removes_and_moves():
    registry = Registry()
    for hotkey, address in (("gone", A), ("moved", B), ("stays", PeerAddr("c", 3))):
        registry.register(hotkey, address)
    new = PeerAddr("d", 4)
    wanted = {"moved": new, "stays": PeerAddr("c", 3), "new": new}
    changes = registry.reconcile(wanted, ())
    assert (changes.removed, changes.moved) == ([A], [B])
    assert changes.unlisted == ["gone"]
    assert set(registry.hotkeys) == {"stays"}


def test_reconcile_keeps_an_address_that_still_has_somebody():
    registry = Registry()
    for hotkey in ("goes", "moves", "stays"):
        registry.register(hotkey, A)
    changes = registry.reconcile({"moves": B, "stays": A}, ())
    assert (changes.removed, changes.moved) == ([], [])
    assert changes.unlisted == ["goes"]
    assert registry.hotkeys_at(A) == {"stays"}


def test_reconcile_forgets_the_dead_and_resets_backoff():
    registry = Registry()
    registry.register("m", A)
    registry.backoff(A).failed(0.0, CONFIG)
    registry.backoff((A, "m")).failed(0.0, CONFIG)
    registry.backoff(B).failed(0.0, CONFIG)
    registry.replaced(A, 0.0, 1.0, CONFIG)
    changes = registry.reconcile({"m": A}, {A})
    assert not changes.removed
    assert not registry.hotkeys
    assert registry.backoff(A).failures == 0
    assert registry.backoff((A, "m")).failures == 0
    assert registry.wait(A, "m", 0.0) == 0
    assert registry.backoff(B).failures == 1, "not listed, not reset"


def test_a_background_reconnect_waits_for_the_back_off_and_by_chance():
    """It never comes before its time; the first one, at once, is spread, too."""
    config = LightningClientConfig(reconnect_jitter=0.5, reconnect_initial_backoff=2)
    assert background_wait(0.0, 0.0, config) == 0
    assert background_wait(0.0, 0.5, config) == 0.5
    assert background_wait(8.0, 0.0, config) == 8
    assert background_wait(8.0, 0.5, config) == 10
    assert background_wait(math.inf, 0.5, config) is None
    without = LightningClientConfig(reconnect_jitter=0)
    assert [background_wait(left, 0.9, without) for left in (0.0, 4.0)] == [0, 4]


def test_waiting_takes_the_longest_of_the_back_offs():
    registry = Registry()
    assert registry.wait(A, "m", 5.0) == 0
    registry.backoff(A).failed(5.0, CONFIG)
    assert registry.wait(A, "m", 5.5) == 0.5
    for _ in range(3):
        registry.backoff((A, "m")).failed(5.0, CONFIG)
    assert registry.wait(A, "m", 5.0) == 4
    assert registry.wait(A, "other", 5.0) == 1
    assert registry.wait(A, "m", 50.0) == 0
    assert registry.backed_off(5.0) == [A, (A, "m")]
    assert registry.backed_off(7.0) == [(A, "m")]


def test_who_is_replaced_again_and_again_waits_longer():
    """Two processes with one hotkey would end each other's connections for ever."""
    registry, waits = Registry(), []
    registry.register("m", A)
    for _ in range(6):
        registry.replaced(A, 0.0, 1.0, CONFIG)
        waits.append(registry.wait(A, "m", 0.0))
        registry.succeeded(A)
    assert waits == [1, 2, 4, 8, 60, 60]
    registry.replaced(A, 0.0, 61.0, CONFIG)
    assert registry.wait(A, "m", 0.0) == 1, "it had been left alone"
    registry.deregister("m")
    assert registry.wait(A, "m", 0.0) == 0


def test_the_last_error_of_so_many_addresses_is_kept(monkeypatch):
    monkeypatch.setattr("lightning.registry.MAX_TARGETS", 2)
    registry = Registry()
    assert registry.last_error(A) == ""
    for port, error in ((1, "a"), (2, "b"), (1, "c"), (3, "d")):
        registry.note(PeerAddr("127.0.0.1", port), error)
    assert [registry.last_error(PeerAddr("127.0.0.1", p)) for p in (1, 2, 3)] == [
        "c",
        "",
        "d",
    ]
    registry.clear()
    assert registry.last_error(A) == ""


def test_the_backoff_table_stays_bounded():
    registry = Registry()
    for port in range(100):
        registry.backoff(PeerAddr("x", port)).failed(float(port), CONFIG)
    registry.forget_idle(50.5, 1000)
    assert len(registry._backoff) == 100
    registry.forget_idle(50.5, 60)
    assert len(registry._backoff) == 50, "those that may not be tried yet"
    registry.forget_idle(50.5, 10)
    assert [target.port for target in registry._backoff] == list(range(90, 100))
