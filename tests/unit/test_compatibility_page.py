"""The page on compatibility: complete, and every test that it names exists."""

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text()
_, TESTS, BEHAVIOUR, WISHES = PAGE.split("\n## ")
VERDICTS = {"same", "better", "different"}
GROUPS = {
    "Rust unit tests: errors": 2,
    "Rust unit tests: types": 17,
    "Rust unit tests: client": 15,
    "Rust unit tests: registry": 8,
    "Rust unit tests: signing": 8,
    "Rust unit tests: metagraph": 15,
    "Rust unit tests: server": 47,
    "Rust integration tests": 51,
    "Rust subnet contract tests": 13,
    "Rust chain tests": 5,
    "Python tests": 33,
}


def rows(text: str) -> list[list[str]]:
    """Return the cells of a text's tables, without their heads."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    return [row for row in cells if "what ours does" not in row]


def groups() -> dict[str, list[list[str]]]:
    """Return the rows of each group of the peer's tests."""
    found = {}
    for section in TESTS.split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        name, _, count = title.partition(" (")
        found[name] = rows(text)
        assert int(count.rstrip(")")) == len(found[name]), name
    return found


@functools.cache
def functions(path: str) -> set[str]:
    """Return the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_there_is_one_row_for_each_of_the_peers_214_tests():
    found = groups()
    assert {name: len(listed) for name, listed in found.items()} == GROUPS
    names = [(name, row[0]) for name, listed in found.items() for row in listed]
    assert len(names) == 214
    assert [name for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize(
    "part", [TESTS, BEHAVIOUR, WISHES], ids=["tests", "behaviour", "asked"]
)
def test_each_row_has_a_verdict_and_tests_that_exist(part):
    assert rows(part)
    for row in rows(part):
        assert len(row) == 4, row
        name, verdict, text, shown = row
        assert verdict in VERDICTS, row
        assert text, row
        shown_by = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
        assert shown_by, row
        for path, function in shown_by:
            assert function.startswith("test_"), row
            assert function in functions(path), f"{name}: {path}::{function}"
