"""The allowlist that is learned from logins: when it is enforced, and what it keeps."""

import asyncio
import inspect
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning import (
    AsyncLightningServer,
    LightningServerConfig,
    SourceAllowlist,
)
from lightning import learning as learning_module
from lightning.errors import ConfigError
from lightning.learning import MAX_HOLDERS, LearnedSources, SourceLearner
from tests.support.identities import MINER, MINER_HOTKEY, VALIDATOR_HOTKEY
from tests.support.raw_peer import is_accepted, raw_client
from tests.support.waiting import until_async

BYPASS = SourceAllowlist.bypass()
STAKES = {"a": 60.0, "b": 30.0, "c": 10.0}


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    def make(stakes=STAKES, **settings) -> LearnedSources:
        return LearnedSources(lambda: stakes, clock=clock, **settings)

    return make


# When it is enforced.


def test_it_is_enforced_once_enough_stake_was_seen_for_long_enough(make, clock, caplog):
    caplog.set_level(logging.INFO, "lightning.learning")
    sources = make()
    sources.observe_successful_handshake("a", "192.0.2.1")
    assert sources.resolve_allowed_sources() == BYPASS
    clock.now += 4320
    assert sources.resolve_allowed_sources() == BYPASS, "60 % is not enough"
    sources.observe_successful_handshake("b", "::ffff:192.0.2.2")
    assert sources.share_seen == 0.9
    assert not sources.is_enforcing
    expected = SourceAllowlist.enforce(["192.0.2.1", "192.0.2.2"])
    assert sources.resolve_allowed_sources() == expected
    assert sources.resolve_allowed_sources() == expected
    assert repr(sources) == "<LearnedSources enforcing, 90% of stake seen>"
    assert caplog.messages == [
        "learning: 60 % of the stake was seen, at least 4320 s are left",
        "learning: 60 % of the stake was seen, at least 0 s are left",
        "only 2 addresses may connect from now on: 90 % of the stake was seen",
    ]


def test_enough_stake_alone_is_not_enough(make, clock):
    sources = make()
    for hotkey in STAKES:
        sources.observe_successful_handshake(hotkey, "192.0.2.1")
    clock.now += 4319.9
    assert sources.resolve_allowed_sources() == BYPASS
    clock.now += 0.1
    assert not sources.resolve_allowed_sources().is_bypass


def test_moving_stake_lets_it_go_again_with_a_margin(clock, caplog):
    stakes = dict(STAKES)
    sources = LearnedSources(lambda: stakes, clock=clock, settle_secs=0)
    sources.observe_successful_handshake("a", "192.0.2.1")
    sources.observe_successful_handshake("c", "192.0.2.3")
    assert not sources.resolve_allowed_sources().is_bypass, "70 %"
    stakes["b"] = 50.0
    assert sources.share_seen == 0.7, "as last asked"
    assert not sources.resolve_allowed_sources().is_bypass, "58 %: within the margin"
    stakes["b"] = 60.0
    assert sources.resolve_allowed_sources() == BYPASS, "54 %"
    assert caplog.messages == [
        "everybody may connect again: 54 % of the stake was seen"
    ]
    stakes["b"] = 50.0
    assert sources.resolve_allowed_sources() == BYPASS, "58 % is not 67 %"
    stakes["b"] = 30.0
    assert not sources.resolve_allowed_sources().is_bypass


def test_a_clock_that_was_set_back_does_not_have_it_wait_for_ever(make, clock):
    sources = make()
    for hotkey in STAKES:
        sources.observe_successful_handshake(hotkey, "192.0.2.1")
    clock.now -= 1e6
    assert sources.resolve_allowed_sources() == BYPASS
    clock.now += 4320
    assert not sources.resolve_allowed_sources().is_bypass


# What it learns.


def test_who_loses_the_permit_is_forgotten(clock):
    stakes = dict(STAKES)
    sources = LearnedSources(lambda: stakes, clock=clock, settle_secs=0)
    for n, hotkey in enumerate(STAKES):
        sources.observe_successful_handshake(hotkey, f"192.0.2.{n}")
    assert sources.resolve_allowed_sources().count == 3
    del stakes["c"]
    assert sources.resolve_allowed_sources().addresses == {"192.0.2.0", "192.0.2.1"}
    sources.observe_successful_handshake("c", "192.0.2.3")
    assert sources.addresses == {"a": ("192.0.2.0",), "b": ("192.0.2.1",)}


def test_the_latest_addresses_of_a_hotkey_are_kept(make):
    sources = make(max_ips_per_hotkey=2)
    sources.resolve_allowed_sources()
    for n in (1, 2, 1, 3, 3):
        sources.observe_successful_handshake("a", f"2001:db8::{n}")
    assert sources.addresses == {"a": ("2001:db8::1", "2001:db8::3")}


def test_before_the_holders_are_known_anybody_is_noted_within_bounds(make, monkeypatch):
    monkeypatch.setattr(learning_module, "MAX_HOLDERS", 3)
    sources = make()
    for n, hotkey in enumerate("xyabc"):
        sources.observe_successful_handshake(hotkey, f"192.0.2.{n}")
    assert set(sources.addresses) == {"x", "y", "a"}
    sources.resolve_allowed_sources()
    assert set(sources.addresses) == {"a"}


def test_more_addresses_can_be_told(make, caplog):
    sources = make(settle_secs=0, extra=lambda: ["198.51.100.1", "0.0.0.0/0", "", 7])
    sources.observe_successful_handshake("a", "192.0.2.1")
    sources.observe_successful_handshake("b", "192.0.2.1")
    sources.allow("203.0.113.1")
    assert sources.resolve_allowed_sources().addresses == {
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
    }
    assert "3 of the extra addresses are none" in caplog.text
    with pytest.raises(ValueError, match="not an IP address"):
        sources.allow("example.org")


def test_told_addresses_alone_are_never_enforced(make):
    sources = make(settle_secs=0, extra=lambda: ["198.51.100.1"], share=0.05)
    sources.allow("203.0.113.1")
    assert sources.resolve_allowed_sources() == BYPASS


def test_a_small_share_does_not_lock_everybody_out_when_all_have_left(clock):
    stakes = {"a": 1.0}
    sources = LearnedSources(lambda: stakes, clock=clock, settle_secs=0, share=0.05)
    sources.observe_successful_handshake("a", "192.0.2.1")
    assert not sources.resolve_allowed_sources().is_bypass
    stakes["b"] = stakes.pop("a")
    assert sources.resolve_allowed_sources() == BYPASS


def test_told_addresses_have_a_bound(make, monkeypatch):
    monkeypatch.setattr(learning_module, "MAX_EXTRA", 2)
    sources = make(settle_secs=0, extra=lambda: [f"192.0.2.{n}" for n in range(3)])
    for hotkey in STAKES:
        sources.observe_successful_handshake(hotkey, "192.0.2.1")
    with pytest.raises(ValueError, match="more than 2 extra addresses"):
        sources.resolve_allowed_sources()
    sources.allow("203.0.113.1")
    sources.allow("203.0.113.2")
    with pytest.raises(ValueError, match="more than 2 addresses"):
        sources.allow("203.0.113.3")


@pytest.mark.parametrize(
    ("stakes", "text"),
    [
        ({}, "nobody holds a permit"),
        ({"a": float("nan")}, "the stake of a is nan"),
        ({"a": -1}, "the stake of a is -1"),
        ({"a": float("inf")}, "the stake of a is inf"),
        ({str(n): 1 for n in range(MAX_HOLDERS + 1)}, "more than 4096 hotkeys"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_nonsense_of_the_metagraph_changes_nothing(make, stakes, text):
    """A server then goes on with the list it has."""
    current = [STAKES]
    sources = make(settle_secs=0)
    sources._holders = lambda: current[0]
    for hotkey in STAKES:
        sources.observe_successful_handshake(hotkey, "192.0.2.1")
    before = sources.resolve_allowed_sources()
    current[0] = stakes
    with pytest.raises(ValueError, match=text):
        sources.resolve_allowed_sources()
    assert sources.is_enforcing
    current[0] = STAKES
    assert sources.resolve_allowed_sources() == before


def test_stake_of_zero_is_no_share(make):
    sources = make({"a": 0}, settle_secs=0)
    sources.observe_successful_handshake("a", "192.0.2.1")
    assert sources.resolve_allowed_sources() == BYPASS


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"share": 0}, "share"),
        ({"share": 1.1}, "share"),
        ({"share": float("nan")}, "share"),
        ({"settle_secs": -1}, "settle_secs"),
        ({"settle_secs": float("inf")}, "settle_secs"),
        ({"max_ips_per_hotkey": 0}, "max_ips_per_hotkey"),
    ],
)
def test_settings_are_checked(make, settings, text):
    with pytest.raises(ValueError, match=text):
        make(**settings)


HOTKEYS = st.sampled_from("abcdefgh")
STEPS = st.one_of(
    st.tuples(st.just("login"), HOTKEYS, st.integers(1, 20)),
    st.tuples(
        st.just("holders"),
        st.dictionaries(HOTKEYS, st.floats(0, 1e12), max_size=6),
    ),
    st.tuples(st.just("later"), st.floats(-10, 100)),
)


@given(
    st.lists(STEPS, max_size=60),
    st.floats(0.01, 1),
    st.floats(0, 50),
    st.integers(1, 4),
)
def test_it_never_locks_everybody_out_nor_grows_without_bound(
    steps, share, settle, most
):
    now, began = 1000.0, 1000.0
    learner = SourceLearner(share, settle, most, now)
    stakes: dict[str, float] = {}
    for step in steps:
        match step:
            case ("login", hotkey, n):
                learner.observe(hotkey, f"10.0.0.{n}")
            case ("holders", given_stakes):
                if given_stakes:
                    learner.take_holders(given_stakes)
                    stakes = given_stakes
            case ("later", seconds):
                now += seconds
        was = learner.is_enforcing
        enforces = learner.decide(now)
        began = min(began, now)
        seen = sum(stakes[h] for h in learner.addresses if h in stakes)
        total = sum(stakes.values())
        assert all(1 <= len(ips) <= most for ips in learner.addresses.values())
        assert not stakes or learner.addresses.keys() <= stakes.keys()
        if enforces:
            assert learner.addresses
            assert seen > 0
            assert seen / total >= share - 0.1 - 1e-9
        if enforces and not was:
            assert seen / total >= share - 1e-9
            assert now - began >= settle - 1e-6
        again = SourceLearner(share, settle, most, now)
        again.from_state(json.loads(json.dumps(learner.to_state())))
        assert again.to_state() == learner.to_state()


# Async, and with a server.


@pytest.mark.parametrize("which", ["holders", "extra", "both"])
async def test_holders_and_extra_may_be_async(clock, which):
    async def holders() -> dict:
        return STAKES

    async def extra() -> list:
        return ["198.51.100.1"]

    sources = LearnedSources(
        holders if which != "extra" else lambda: STAKES,
        extra=extra if which != "holders" else lambda: ["198.51.100.1"],
        settle_secs=0,
        clock=clock,
    )
    for hotkey in STAKES:
        sources.observe_successful_handshake(hotkey, "192.0.2.1")
    asked = sources.resolve_allowed_sources()
    assert inspect.isawaitable(asked)
    assert (await asked).addresses == {"192.0.2.1", "198.51.100.1"}
    permitted = sources.resolve_permitted_validators()
    permitted = await permitted if inspect.isawaitable(permitted) else permitted
    assert permitted == set(STAKES)


async def test_an_async_failure_is_the_callers_and_leaves_nothing(clock):
    async def holders() -> dict:
        raise OSError("chain")

    async def extra() -> list:
        return []

    sources = LearnedSources(holders, extra=extra, clock=clock)
    with pytest.raises(OSError, match="chain"):
        await sources.resolve_allowed_sources()


async def test_a_server_learns_and_then_ignores_strangers(start_server):
    """127.0.0.1 logs in and is learned; from then on 127.0.0.2 gets no answer."""
    clock = Clock()
    sources = LearnedSources(
        lambda: {VALIDATOR_HOTKEY: 5.0}, settle_secs=60, clock=clock
    )

    def prepare(server: AsyncLightningServer) -> None:
        object.__setattr__(server.config, "source_allowlist_refresh_secs", 0.02)
        assert sources.attach(server) is sources
        server.set_validator_permit_resolver(sources)

    server = await start_server(
        prepare, enforce_source_allowlist=True, require_validator_permit=True
    )
    port = server.local_addr().port
    await until_async(lambda: server._sources.is_bypass)
    async with raw_client(port) as raw:
        assert is_accepted(await raw.login())
        await until_async(lambda: sources.share_seen == 1.0)
        clock.now += 60
        await until_async(lambda: not server._sources.is_bypass)
        assert server._sources.addresses == {"127.0.0.1"}
        assert await server.get_allowed_source_count() == 1
    async with raw_client(port) as raw:
        assert is_accepted(await raw.login())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), raw_client(port, local_host="127.0.0.2"):
            pass


def test_a_server_without_an_allowlist_is_pointed_out(make):
    server = AsyncLightningServer(MINER_HOTKEY, signer=MINER)
    with pytest.raises(ConfigError, match="enforce_source_allowlist"):
        make().attach(server)
    config = LightningServerConfig(enforce_source_allowlist=True)
    make().attach(AsyncLightningServer(MINER_HOTKEY, config=config))


# The file.


def test_it_remembers_over_a_restart(make, clock, tmp_path):
    path = tmp_path / "sources.json"
    sources = make(path=path)
    for hotkey in STAKES:
        sources.observe_successful_handshake(hotkey, "192.0.2.1")
    clock.now += 4320
    expected = sources.resolve_allowed_sources()
    assert not expected.is_bypass
    again = make(path=path)
    assert again.is_enforcing
    assert again.addresses == sources.addresses
    assert again.resolve_allowed_sources() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["sources.json"]
    assert path.stat().st_mode & 0o077 == 0


def test_it_is_written_only_when_something_has_changed(make, tmp_path, monkeypatch):
    path = tmp_path / "sources.json"
    sources = make(path=path)
    sources.save()
    written = path.stat().st_ino
    sources.save()
    sources.resolve_allowed_sources()
    assert path.stat().st_ino == written
    sources.observe_successful_handshake("a", "192.0.2.1")
    sources.resolve_allowed_sources()
    assert path.stat().st_ino != written
    make().save()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nonsense",
        "[]",
        "[" * 100_000,
        '{"version": 2}',
        '{"version": 1, "began": "x", "enforcing": true, "addresses": {}}',
        '{"version": 1, "began": NaN, "enforcing": true, "addresses": {}}',
        '{"version": 1, "began": 1%s, "enforcing": true, "addresses": {}}'
        % ("0" * 400),
        '{"version": 1, "began": 1, "enforcing": true, "addresses": {"a": 1}}',
        '{"version": 1, "began": 1, "enforcing": true, "addresses": {"a": [1]}}',
        '{"version": 1, "began": 1, "enforcing": true, "addresses": {"a": ["x"]}}',
        b"\xff\xfe",
        " " * (learning_module.MAX_FILE_SIZE + 1) + "{}",
    ],
    ids=lambda value: str(value[:40]),
)
def test_a_file_that_makes_no_sense_is_ignored_with_a_warning(
    make, tmp_path, content, caplog
):
    path = tmp_path / "sources.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    sources = make(path=path)
    assert (sources.is_enforcing, sources.addresses) == (False, {})
    (message,) = caplog.messages
    assert message.startswith(f"{path} is ignored, learning begins anew: ")
    sources.observe_successful_handshake("a", "192.0.2.1")
    sources.save()
    assert make(path=path).addresses == {"a": ("192.0.2.1",)}


def test_too_many_hotkeys_or_addresses_are_not_read(make, tmp_path, caplog):
    path = tmp_path / "sources.json"
    state = {"version": 1, "began": 5, "enforcing": False, "addresses": {}}
    state["addresses"] = {"a": [f"192.0.2.{n}" for n in range(100)]}
    path.write_text(json.dumps(state))
    last = tuple(f"192.0.2.{n}" for n in range(92, 100))
    assert make(path=path).addresses == {"a": last}
    state["addresses"] = {str(n): ["192.0.2.1"] for n in range(MAX_HOLDERS + 1)}
    path.write_text(json.dumps(state))
    assert make(path=path).addresses == {}
    assert "is ignored" in caplog.text


def test_a_disk_that_is_full_is_told_and_leaves_the_old_file(
    make, tmp_path, monkeypatch, caplog
):
    path = tmp_path / "sources.json"
    sources = make(path=path)
    sources.save()
    before = path.read_text()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learning_module.os, "fsync", full)
    sources.observe_successful_handshake("a", "192.0.2.1")
    assert sources.resolve_allowed_sources() == BYPASS
    assert "what was learned cannot be written: " in caplog.text
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["sources.json"]
