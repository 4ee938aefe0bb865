"""The registry: who is where, back-off, reconciling."""

import math
import random

import pytest

from lightning.config import LightningClientConfig
from lightning.errors import LightningConnectionError
from lightning.registry import Backoff, Registry
from lightning.types import PeerAddr, QuicAxonInfo

CONFIG = LightningClientConfig()
A, B = PeerAddr("127.0.0.1", 1), PeerAddr("127.0.0.1", 2)


def axon(hotkey: str, address: PeerAddr) -> QuicAxonInfo:
    return QuicAxonInfo(hotkey, *address)


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


def test_reconcile_removes_moves_and_adds():
    registry = Registry()
    for hotkey, address in (("gone", A), ("moved", B), ("stays", PeerAddr("c", 3))):
        registry.register(hotkey, address)
    new = PeerAddr("d", 4)
    changes = registry.reconcile(
        [axon("moved", new), axon("stays", PeerAddr("c", 3)), axon("new", new)], ()
    )
    assert (changes.removed, changes.moved) == ([A], [B])
    assert changes.wanted == {new: ["moved", "new"]}
    assert set(registry.hotkeys) == {"stays"}


def test_reconcile_keeps_an_address_that_still_has_somebody():
    registry = Registry()
    for hotkey in ("goes", "moves", "stays"):
        registry.register(hotkey, A)
    changes = registry.reconcile([axon("moves", B), axon("stays", A)], ())
    assert (changes.removed, changes.moved) == ([], [])
    assert changes.wanted == {B: ["moves"]}
    assert registry.hotkeys_at(A) == {"stays"}


def test_reconcile_wants_the_dead_again_and_resets_backoff():
    registry = Registry()
    registry.register("m", A)
    registry.backoff(A).failed(0.0, CONFIG)
    registry.backoff((A, "m")).failed(0.0, CONFIG)
    registry.backoff(B).failed(0.0, CONFIG)
    changes = registry.reconcile([axon("m", A)], {A})
    assert changes.wanted == {A: ["m"]}
    assert not changes.removed
    assert registry.backoff(A).failures == 0
    assert registry.backoff((A, "m")).failures == 0
    assert registry.backoff(B).failures == 1, "not listed, not reset"


def test_of_a_hotkey_listed_twice_the_last_counts():
    changes = Registry().reconcile([axon("m", A), axon("m", B)], ())
    assert changes.wanted == {B: ["m"]}


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
