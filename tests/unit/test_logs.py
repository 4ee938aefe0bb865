"""Lines that a peer can cause are bounded; each line of the package is documented."""

import ast
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning.logs import Throttle, Throttled
from tests.support.raw_peer import frame, is_accepted, raw_client

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, "lightning.test")
    return logging.getLogger("lightning.test")


def test_the_first_are_told_and_then_one_a_minute():
    throttle = Throttle(burst=3, interval=60)
    assert [throttle.take("e", 0.0) for _ in range(5)] == [(0, 0.0)] * 3 + [None] * 2
    assert throttle.take("e", 59.9) is None
    assert throttle.take("e", 60.0) == (3, 60.0)
    assert throttle.take("e", 61.0) is None
    assert throttle.take("other", 61.0) == (0, 0.0)
    assert throttle.take("e", 180.0) == (1, 119.0)


def test_a_quiet_hour_earns_no_more_than_the_burst():
    throttle = Throttle(burst=3, interval=60)
    for _ in range(4):
        throttle.take("e", 0.0)
    assert throttle.take("e", 3600.0) == (1, 3600.0)
    told = [throttle.take("e", 3600.0) for _ in range(4)]
    assert told == [(0, 0.0), (0, 0.0), None, None]


def test_a_clock_that_steps_back_earns_nothing():
    throttle = Throttle(burst=1, interval=60)
    assert throttle.take("e", 100.0)
    assert throttle.take("e", 0.0) is None
    assert throttle.take("e", 59.0) is None


def test_events_without_number_share_one_budget():
    throttle = Throttle(burst=2, interval=60, max_events=10)
    told = [throttle.take(n, 0.0) for n in range(10_000)]
    assert len([t for t in told if t is not None]) == 10 + 2
    assert throttle.drain() == [(None, 10_000 - 12)]
    assert throttle.drain() == []


@given(
    st.integers(1, 20),
    st.floats(0.1, 100),
    st.lists(st.floats(0, 10), min_size=1, max_size=300),
)
def test_never_more_than_it_earned_and_nothing_uncounted(burst, interval, gaps):
    throttle, now, lines, counted = Throttle(burst, interval), 0.0, 0, 0
    for gap in gaps:
        now += gap
        if (told := throttle.take("e", now)) is not None:
            lines += 1
            counted += 1 + told[0]
    assert lines <= burst + now / interval + 1e-6
    assert counted + sum(n for _, n in throttle.drain()) == len(gaps)


def test_the_levels_and_the_caller(log, caplog):
    throttled = Throttled(log)
    throttled.debug("d %s", 1)
    throttled.info("i")
    throttled.warning("w")
    throttled.error("e")
    throttled.log(logging.CRITICAL, "c")
    try:
        raise ValueError("why")
    except ValueError as error:
        throttled.exception("x")
        throttled.error("given", exc_info=error)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("DEBUG", "d 1"),
        ("INFO", "i"),
        ("WARNING", "w"),
        ("ERROR", "e"),
        ("CRITICAL", "c"),
        ("ERROR", "x"),
        ("ERROR", "given"),
    ]
    assert {r.funcName for r in caplog.records} == {"test_the_levels_and_the_caller"}
    assert caplog.text.count("ValueError: why") == 2


def test_a_flood_is_a_few_lines(log, caplog):
    clock = Clock()
    throttled = Throttled(log, burst=10, interval=60, clock=clock)
    for n in range(10_000):
        throttled.warning("refused %d", n)
        clock.now += 0.03
    assert len(caplog.records) == 10 + 300 // 60 - 1
    assert caplog.messages[0] == "refused 0"
    assert caplog.messages[10] == "refused 2000 (and 1990 more like this in 60 s)"
    throttled.flush()
    assert re.fullmatch(r"held back \d+ lines like: refused %d", caplog.messages[-1])
    throttled.flush()
    assert len(caplog.records) == 10 + 300 // 60


def test_keys_have_budgets_of_their_own(log, caplog):
    throttled = Throttled(log, burst=1)
    for key in ("a", "a", "b"):
        throttled.error("handler %r failed", key, key=key)
    assert caplog.messages == ["handler 'a' failed", "handler 'b' failed"]


def test_a_line_may_have_a_burst_of_its_own(log, caplog):
    throttled = Throttled(log, clock=Clock())
    for _ in range(3):
        throttled.warning("full", burst=1)
    assert caplog.messages == ["full"]


def test_too_many_keys_are_counted_as_others(log, caplog):
    throttled = Throttled(log, burst=1)
    for n in range(300):
        throttled.info("e", key=n)
    throttled.flush()
    assert caplog.messages[-1] == "held back 43 lines like: others"


def test_a_level_that_is_off_costs_no_budget(caplog):
    log = logging.getLogger("lightning.test")
    caplog.set_level(logging.WARNING, "lightning.test")
    throttled = Throttled(log, burst=1)
    throttled.info("e")
    caplog.set_level(logging.INFO, "lightning.test")
    throttled.info("e")
    assert caplog.messages == ["e"]


def test_threads_share_a_budget(log, caplog):
    throttled = Throttled(log, burst=10)
    threads = [
        threading.Thread(target=lambda: [throttled.info("e") for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages == ["e"] * 10
    throttled.flush()
    assert caplog.messages[-1] == "held back 1990 lines like: e"


def test_nothing_is_printed_by_default():
    code = (
        "import logging, lightning; "
        "logging.getLogger('lightning.server').error('not for stderr')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("", "")


async def test_validators_that_come_and_go_are_no_warning(
    start_server, connect, caplog
):
    """Closed in good order, replaced by a restart, refused, and with an odd request."""
    server = await start_server()
    client, axon = await connect(server)
    await client.query_axon(axon, {"synapse_type": "none", "data": {}})
    await client.close()
    await connect(server)
    await connect(server)
    async with raw_client(server.local_addr().port) as raw:
        assert not is_accepted(await raw.login(timestamp=1))
        await raw.ask(frame(3, b"nonsense"))
        await raw.ask(frame(9, b""))
    await server.stop()
    assert [r.message for r in caplog.records if r.name == "lightning.server"] == []


def logged() -> dict[tuple[str, str], set[str]]:
    """Return the levels of every line that the package can log, by logger and text."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in sorted((ROOT / "lightning").rglob("*.py")):
        source = path.read_text()
        names = re.findall(r'getLogger\("(lightning\.\w+)"\)', source)
        for call in ast.walk(ast.parse(source)):
            if not isinstance(call, ast.Call) or not isinstance(
                call.func, ast.Attribute
            ):
                continue
            level, args = call.func.attr, call.args
            owner = ast.unparse(call.func.value).split(".")[-1].lstrip("_")
            if owner not in ("log", "logger", "peers") or path.name == "logs.py":
                continue
            if level == "log":
                given, args = ast.unparse(args[0]), args[1:]
                levels = set(re.findall(r"logging\.([A-Z]+)", given)) or {"VARIES"}
            elif level in ("debug", "info", "warning", "error", "exception"):
                levels = {"ERROR" if level == "exception" else level.upper()}
            else:
                continue
            assert isinstance(args[0], ast.Constant), f"{path}:{call.lineno}"
            key = names[0], args[0].value
            found[key] = found.get(key, set()) | levels
    return found


def test_every_line_is_documented():
    table = {
        (row[0].strip(" `"), row[2].strip(" `")): set(row[1].split())
        for line in (ROOT / "docs" / "logs.md").read_text().splitlines()
        if line.startswith("| `")
        for row in [line.strip("|").split("|")]
    }
    actual = logged()
    assert table.keys() - actual.keys() == set(), "no longer logged"
    assert actual.keys() - table.keys() == set(), "add a row to docs/logs.md"
    for key, levels in actual.items():
        if "VARIES" not in levels:
            assert table[key] == levels, key
