"""docs/migrate.md lists what differs from bittensor: all of it and nothing else."""

import re
from pathlib import Path

from tests.dropin.differences import DIFFERENCES

ROOT = Path(__file__).parents[2]
# Rows of what no single call shows, and the file of the test that does.
SHOWN_ELSEWHERE = {
    "`external_ip` of a dendrite": "tests/dropin/test_uses.py",
    "Functions of an axon": "tests/unit/dropin/test_axon.py",
    "Priorities": "tests/unit/dropin/test_dispatch.py",
    "A client that has gone": "tests/unit/dropin/test_http.py",
    "Annotations of `attach`": "tests/unit/dropin/test_attaching.py",
    "`start` of an axon": "tests/unit/dropin/test_axon.py",
    "Replays": "tests/unit/dropin/test_http_auth.py",
    "`app`, `router`, `fast_server`, `middleware_cls` of an axon": (
        "tests/unit/dropin/test_axon.py"
    ),
    "Logging": "tests/unit/test_logs.py",
}


def rows() -> list[str]:
    section = (ROOT / "docs/migrate.md").read_text().split("\n## What differs\n")[1]
    return re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[1:]


def test_each_row_is_what_a_test_shows():
    listed = [row for row in rows() if not row.startswith("-")]
    assert len(listed) == len(set(listed))
    assert set(listed) == {each.row for each in DIFFERENCES} | set(SHOWN_ELSEWHERE)


def test_what_other_tests_show_is_in_files_that_exist():
    assert not [
        path for path in SHOWN_ELSEWHERE.values() if not (ROOT / path).is_file()
    ]
