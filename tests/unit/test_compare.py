"""The report of `bench/compare`: ratios, goals, tables and charts, from made-up results."""

import re
import socket
import sys
import threading
from xml.etree import ElementTree

import pytest

from bench.compare import charts, dendrites, report, wire
from bench.compare.contenders import Contender, python_ends
from bench.compare.goals import GOALS, ONE, TWO, equal_messages, ratios
from bench.compare.measure import (
    LAYOUTS,
    Plan,
    attempt,
    percentile,
    run,
    setup,
    summed_up,
)
from bench.compare.processes import Ends
from bench.compare.words import duration, size_name

TITLES = {
    "ours": "lightning, blocking",
    "ours-asyncio": "lightning, asyncio",
    "peer": "btlightning 0.2.15, Python",
    "peer-rust": "btlightning 0.2.15, Rust",
}
PLAN = Plan(sizes=(256,), setups=1, latencies=10, requests=32, seconds=0.01, turns=1)


def block(contender: str, op: str, turn: int, **more) -> dict:
    layout = more.pop("layout", TWO)
    made = {
        "layout": layout, "contender": contender, "op": op, "turn": turn,
        "cpu": 0.002, "server_cpu": 0.001 if layout == TWO else 0.0, "peak_kib": 2048,
        "server_peak_kib": 1024 * turn if layout == TWO else None,
    }  # fmt: skip
    return made | more


def latency(contender: str, turn: int, seconds: list[float], **more) -> dict:
    count = len(seconds)
    more = {"size": 1024, **more}
    return block(contender, "latency", turn, count=count, seconds=seconds, **more)


def throughput(contender: str, turn: int, rate: float, how: str, **more) -> dict:
    more = {"size": 1024, **more}
    return block(
        contender, "throughput", turn, count=100, elapsed=100 / rate, how=how, **more
    )


def found() -> dict:
    blocks = []
    for turn in (1, 2, 3):
        blocks += [
            latency("ours-asyncio", turn, [0.0001 * turn] * 10),
            latency("peer-rust", turn, [0.0002 * turn] * 10),
            throughput("ours-asyncio", turn, 12_000, "tasks"),
            throughput("peer-rust", turn, 10_000 * turn, "tasks"),
            latency("ours", turn, [0.003] * 5, layout=ONE, size=1_048_576),
            latency("peer", turn, [0.002] * 5, layout=ONE, size=1_048_576),
            block("ours", "setup", turn, layout=ONE, count=2, seconds=[0.001, 0.001]),
            block("peer", "setup", turn, layout=ONE, count=2, seconds=[0.002, 0.002]),
        ]
    message = {"size": 1024, "request_bytes": 1052, "answer_bytes": 1049}
    sent = {"sent_bytes": 1091, "answered_bytes": 1087}
    return {
        "about": {
            "date": "2026-11-25T16:59+00:00", "machine": "a machine", "load": 0.1,
            "stolen": 0.0, "others": 0.1, "failures": [],"versions": {"python": "3.11.7"}, "contenders": TITLES,
        },
        "plan": {
            "sizes": (1024,), "setups": 2, "latencies": 10, "requests": 100,
            "seconds": 1.0, "turns": 3,
        },
        "messages": [
            {"contender": name, "canonical": True, **message} for name in TITLES
        ],
        "wire": [
            {"contender": name, "size": 1024, "how": None, **sent,
             "sent_datagrams": datagrams, "answered_datagrams": datagrams}
            for name, datagrams in (("ours", 1.0), ("bittensor", 0.0))
        ],
        "results": summed_up(blocks, 3),
    }  # fmt: skip


def row(rows: list[dict], **wanted) -> dict:
    (only,) = (r for r in rows if wanted.items() <= r.items())
    return only


def test_turns_are_joined():
    """Percentiles are over all samples of all turns, a rate is the median turn's."""
    rows = found()["results"]
    slow = row(rows, contender="ours-asyncio", op="latency")
    assert slow["p50_us"] == pytest.approx(200)
    assert slow["p99_us"] == pytest.approx(300)
    assert slow["turns"] == pytest.approx([100, 200, 300])
    assert slow["requests"] == 30
    assert slow["cpu_us"] == pytest.approx(0.006 / 30 * 1e6)
    assert slow["server_peak_kib"] == 3 * 1024
    fast = row(rows, contender="peer-rust", op="throughput")
    assert fast["rate"] == pytest.approx(20_000)
    assert row(rows, contender="ours", op="setup")["server_peak_kib"] is None


def test_turns_that_come_out_of_order_are_paired():
    """A ratio pairs turns by their number, not by when they were done."""
    blocks = [
        latency("ours", 1, [0.001]),
        latency("ours", 2, [0.010]),
        latency("peer-rust", 2, [0.020]),
        latency("peer-rust", 1, [0.002]),
    ]
    (ratio,) = ratios(summed_up(blocks, 2))
    assert (ratio.low, ratio.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_percentile_is_the_published_one():
    """The value at round(part x (n - 1)) of sorted samples."""
    assert percentile([1, 2, 3, 4], 0.5) == 3
    assert percentile([1, 2, 3], 0.99) == 3
    assert percentile([7], 0.95) == 7


def test_ratios_are_medians_of_turns():
    """A ratio is of turns that were made side by side."""
    rates = [r for r in ratios(found()["results"]) if r.goal.is_rate]
    (ratio,) = rates
    # 12 000 to 10 000, 20 000 and 30 000.
    assert ratio.value == pytest.approx(0.6)
    assert (ratio.low, ratio.high) == (pytest.approx(0.4), pytest.approx(1.2))
    assert not ratio.reaches(ratio.floor)


def test_goals_are_judged_by_their_direction():
    """Times must be at most so much, rates at least so much."""
    by_operation = {(r.goal.operation, r.size): r for r in ratios(found()["results"])}
    small = by_operation["latency", 1024]
    assert (small.floor, small.aim) == (0.9, 0.7)
    assert small.reaches(0.5)
    assert not small.reaches(0.49)
    large = by_operation["latency", 1_048_576]
    assert (large.floor, large.aim) == (0.8, None)
    assert not large.reaches(large.floor)
    assert not large.reaches(large.aim)
    assert by_operation["setup", None].reaches(0.6)
    rate = by_operation["throughput", 1024]
    assert rate.reaches(0.6)
    assert not rate.reaches(0.61)


def test_a_pair_without_a_goal_is_not_judged():
    """Its ratio is on the page, without a verdict."""
    blocks = [
        latency("ours-asyncio", 1, [0.0001]),
        latency("peer-rust", 1, [0.0004], how="task"),
    ]
    page = report.markdown(found() | {"results": summed_up(blocks, 1)})
    assert (
        "| two processes, latency | ours-asyncio / peer-rust, task | 1 KiB | 0.25 "
        "| 0.25 to 0.25 |  |  |"
    ) in page


def test_no_goal_aims_below_its_floor():
    """An aim asks for more than the floor, at a size that has one."""
    for goal in GOALS:
        for size, aim in goal.aims.items():
            floor = goal.floors[size]
            assert aim > floor if goal.is_rate else aim < floor


def test_messages_differ_when_one_is_longer_or_not_canonical():
    """Equal means the same bytes from everybody."""
    rows = found()["messages"]
    assert equal_messages(rows) == [(1024, True)]
    assert equal_messages([*rows, rows[0] | {"canonical": False}]) == [(1024, False)]
    assert equal_messages([*rows, rows[0] | {"answer_bytes": 9}]) == [(1024, False)]


def test_page_has_sound_tables():
    """Every row of a table has as many cells as its head, and all goals are there."""
    page = report.markdown(found())
    width = 0
    for line in page.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = line.count(" |")
        assert width in (0, cells), line
        width = cells
    assert (
        "| two processes, throughput | ours-asyncio, tasks / peer-rust, tasks |" in page
    )
    assert "| at least 1.3, aim 2 | **not reached** |" in page
    assert "| at most 0.9, aim 0.7 | aim reached |" in page
    assert "| 1 KiB | 1,052 | 1,049 | yes |" in page
    assert "2026-11-25 (16:59 UTC)" in page


def test_page_says_where_the_run_was():
    """Machine, load, versions and who took part are on the page."""
    page = report.markdown(found())
    for said in (
        "a machine",
        "load before 0.1",
        "10.0% of the",
        "python 3.11.7",
        *TITLES.values(),
    ):
        assert said in page


@pytest.mark.parametrize("theme", charts.THEMES)
@pytest.mark.parametrize("name", charts.CHARTS)
def test_charts_are_svg_and_stay_in_their_frame(name, theme):
    """A chart is well-formed, and nothing that it draws is beyond its edges."""
    root = ElementTree.fromstring(charts.svg(found(), name, theme))
    places = [
        (float(each.get(x)), float(each.get(y)))
        for each in root.iter()
        for x, y in (("x", "y"), ("cx", "cy"))
        if each.get(x) is not None
    ]
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        pairs = (pair.split(",") for pair in line.get("points").split())
        places += [(float(x), float(y)) for x, y in pairs]
    assert len(places) > 10
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in places)


def test_charts_show_the_fastest_way_to_ask():
    """Of a contender's ways, the one with the shortest time or the highest rate."""
    slow = [latency("peer-rust", 1, [0.0004]), throughput("ours", 1, 10, "executor")]
    fast = [
        latency("peer-rust", 1, [0.0001], how="task"),
        throughput("ours", 1, 20, "threads"),
    ]
    for name in ("latency", "throughput"):
        made = [
            charts.svg(found() | {"results": summed_up(blocks, 1)}, name, "light")
            for blocks in (fast, slow + fast, fast + slow)
        ]
        assert made[0] == made[1] == made[2]


def test_themes_know_every_contender():
    """Both themes have a colour for whoever may take part."""
    for theme in charts.THEMES.values():
        assert set(theme.series) >= {*TITLES, "ours-uvloop", "bittensor"}


def test_scale_is_logarithmic():
    """Equal factors are equal distances, and round values are marked."""
    scale = charts.Scale([10.0, 1000.0], 0.0, 100.0)
    one, two, three = (scale.place(value) for value in (10, 100, 1000))
    assert two - one == pytest.approx(three - two)
    assert {10.0, 100.0, 1000.0} <= set(scale.ticks())
    assert len(charts.Scale([90.0, 110.0], 0.0, 1.0).ticks()) >= 1


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (None, ""),
        (256, "256 B"),
        (1024, "1 KiB"),
        (102_400, "100 KiB"),
        (1 << 20, "1 MiB"),
    ],
)
def test_sizes_have_names(size, name):
    """A size is written with its largest whole unit."""
    assert size_name(size) == name


def test_durations_have_units():
    """Below a millisecond in microseconds."""
    assert [duration(us) for us in (93.4, 1234, 45_678)] == [
        "93 µs",
        "1.23 ms",
        "45.7 ms",
    ]


def test_commands_name_python_contenders_only():
    """The program in Python serves several contenders, that in Rust is one."""
    python = Contender("ours", "", ("python", "-m", "bench.compare.ends"), ())
    assert python.command("both", 7)[-3:] == ["both", "ours", "7"]
    rust = Contender("peer-rust", "", ("program",), ())
    assert rust.command("client", 7) == ["program", "client", "7"]


def test_pictures_are_light_and_dark():
    """The page names both files of each chart."""
    page = report.markdown(found())
    names = re.findall(r"charts/([a-z]+-[a-z]+)\.svg", page)
    assert sorted(names) == sorted(
        f"{c}-{t}" for c in charts.CHARTS for t in charts.THEMES
    )


@pytest.mark.parametrize("is_tcp", [False, True])
def test_relay_counts_what_it_passes_on(is_tcp, monkeypatch):
    """Bytes each way, and datagrams where there are any."""
    monkeypatch.setattr(wire, "SETTLE", 0.0)
    kind = socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM

    def answer() -> None:
        end = server.accept()[0] if is_tcp else server
        for _ in range(3):
            data, address = end.recvfrom(100)
            if is_tcp:
                end.sendall(data * 2)
            else:
                end.sendto(data * 2, address)
        if is_tcp:
            end.close()

    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        if is_tcp:
            server.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        relay = wire.Relay(server.getsockname()[1], is_tcp=is_tcp)
        with socket.socket(socket.AF_INET, kind) as client:
            client.settimeout(10)
            client.connect(("127.0.0.1", relay.port))
            for _ in range(3):
                client.send(b"12345")
                heard = b""
                while len(heard) < 10:
                    heard += client.recv(100)
                assert heard == b"1234512345"
        thread.join(10)
        counts = relay.counts()
        relay.close()
    assert counts == ([15, 0, 30, 0] if is_tcp else [15, 3, 30, 3])


def test_frames_are_compared_with_our_encoding():
    """The shortest spelling is ours; a longer one of the same content is not."""
    frame = wire.encode_synapse_packet("echo", {"payload": b"x"}, 1_700_000_000)
    assert wire.is_canonical(frame)
    # The name as str 8 where a fixstr will do.
    longer = (
        frame[:4]
        + bytes([frame[4] + 1])
        + frame[5:].replace(b"\xa4echo", b"\xd9\x04echo")
    )
    assert not wire.is_canonical(longer)


def test_a_run_has_everything_that_the_page_shows():
    """A whole run, as small as can be, of one contender in both layouts."""
    contender = Contender(
        "ours-asyncio", "lightning, asyncio", python_ends(), ("tasks",)
    )
    made = run([contender], PLAN, LAYOUTS)
    kinds = {(r["layout"], r["op"], r["size"], r["how"]) for r in made["results"]}
    assert kinds == {
        (layout, *kind)
        for layout in LAYOUTS
        for kind in (
            ("latency", 256, None), ("throughput", 256, "tasks"), ("setup", None, None),
        )
    }  # fmt: skip
    for each in made["results"]:
        assert each["cpu_us"] > 0
        assert each["peak_kib"] > 1024
    (message,) = made["messages"]
    assert (message["request_bytes"], message["answer_bytes"]) == (284, 281)
    assert message["canonical"]
    assert made["wire"][0]["sent_bytes"] > 284
    assert 0 <= made["about"]["others"] < 1
    page = report.markdown(made)
    assert "| ours-asyncio |" in page
    for name in charts.CHARTS:
        ElementTree.fromstring(charts.svg(made, name, "light"))


def test_who_fails_is_left_out(capfd):
    """A run goes on without a contender whose process ends, and says so."""
    contender = Contender(
        "gone", "", (sys.executable, "-c", "print('ready', flush=True); input()"), ()
    )
    ends = Ends(contender, TWO)
    try:
        assert list(attempt(ONE, 1, ends, setup, PLAN)) == []
        assert list(attempt(ONE, 2, ends, setup, PLAN)) == []
    finally:
        ends.stop()
    assert "gone, client" in ends.failure
    assert capfd.readouterr().err.count("goes on without") == 1


def test_what_lacks_a_turn_is_left_out():
    """A row has all turns, or is not there."""
    blocks = [latency("ours", 1, [0.1]), latency("peer", 1, [0.1])]
    blocks.append(latency("ours", 2, [0.1]))
    assert [each["contender"] for each in summed_up(blocks, 2)] == ["ours"]


def test_dendrites_have_a_section_if_they_were_measured():
    one = {"p50_us": 70.4, "rate": 41_563.2, "cpu_us": 12.0}
    everybody = {"last_us": 5930.0, "cpu_us": 73.0, "targets": 256}
    rows = [
        {"name": "plain", "one": one},
        {"name": "ours", "one": one, "all": everybody},
    ]
    lines = dendrites.tables(rows)
    assert lines[0] == "## Dendrite and axon"
    assert "| `AsyncLightning` | 70 µs | 41,563 | 12 µs |" in lines
    assert "| `Dendrite` and `Axon` | 256 | 5.93 ms | 73 µs |" in lines
