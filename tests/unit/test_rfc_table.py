"""The table of RFC sections names modules and tests that exist, and leaves none out."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "internals" / "rfc.md"

# The sections that say how an endpoint behaves: without introductions, notation, the
# registries of IANA, references, comparisons with TCP, discussions, and chapters whose
# sections say it all.
SECTIONS = {
    "9000": """
        2.1 2.2 2.3 2.4 3.1 3.2 3.3 3.4 3.5 4.1 4.2 4.3 4.4 4.5 4.6
        5.1 5.1.1 5.1.2 5.2 5.2.1 5.2.2 5.2.3 5.3 6.1 6.2 6.3
        7 7.1 7.2 7.3 7.4 7.4.1 7.4.2 7.5
        8.1 8.1.1 8.1.2 8.1.3 8.1.4 8.2 8.2.1 8.2.2 8.2.3 8.2.4
        9 9.1 9.2 9.3 9.3.1 9.3.2 9.3.3 9.4 9.5 9.6 9.7
        10.1 10.1.1 10.1.2 10.2 10.2.1 10.2.2 10.2.3 10.3 10.3.1 10.3.2 10.3.3
        11.1 11.2 12.1 12.2 12.3 12.4 12.5
        13.1 13.2.1 13.2.2 13.2.3 13.2.4 13.2.5 13.2.6 13.2.7 13.3 13.4 13.4.1 13.4.2
        14 14.1 14.2 14.2.1 14.3 14.3.1 14.3.2 14.3.3 14.4 14.4.1 15 16
        17.1 17.2 17.2.1 17.2.2 17.2.3 17.2.4 17.2.5 17.3 17.3.1 17.4 18 18.1 18.2
        19.1 19.2 19.3 19.3.1 19.3.2 19.4 19.5 19.6 19.7 19.8 19.9 19.10 19.11 19.12
        19.13 19.14 19.15 19.16 19.17 19.18 19.19 19.20 19.21 20.1 20.2
        21.1 21.2 21.3 21.4 21.5 21.6 21.7 21.8 21.9 21.10 21.11 21.12 21.13 21.14
    """,
    "9001": """
        4 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.2 4.3 4.4 4.5 4.6 4.6.1 4.6.2 4.6.3 4.7 4.8
        4.9 4.9.1 4.9.2 4.9.3 5.1 5.2 5.3 5.4 5.4.1 5.4.2 5.4.3 5.4.4 5.5 5.6 5.7 5.8
        6 6.1 6.2 6.3 6.4 6.5 6.6 6.7 7 8.1 8.2 8.3 8.4 9.1 9.2 9.3 9.4 9.5 9.6 9.7
    """,
    "9002": """
        5.1 5.2 5.3 6.1 6.1.1 6.1.2 6.2 6.2.1 6.2.2 6.2.3 6.2.4 6.3 6.4
        7 7.1 7.2 7.3 7.3.1 7.3.2 7.3.3 7.4 7.5 7.6 7.6.1 7.6.2 7.7 7.8 8.1 8.2 8.3
    """,
    "8899": """
        3 4.1 4.2 4.3 4.4 4.5 4.6 4.6.1 4.6.2
        5.1.1 5.1.2 5.1.3 5.1.4 5.2 5.3 5.3.1 5.3.2 5.3.3 5.4 6.1 6.2 6.3 8
    """,
    "9438": "4.1 4.1.1 4.1.2 4.2 4.3 4.4 4.5 4.6 4.7 4.8 4.9 4.9.1 4.9.2 4.10 5.8",
    "9406": "4.1 4.2 4.3",
}


def rows(number):
    """Return the rows of an RFC's table, each a list of four cells."""
    (text,) = re.findall(
        rf"^## RFC {number}\b.*?\n(.*?)(?=^## |\Z)",
        TABLE.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert re.match(r"\| Section \| Title \|", lines[0])
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@cache
def functions(path):
    """Name the test functions of a file."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_rfc_of_the_table_is_checked():
    assert re.findall(r"^## RFC (\d+)", TABLE.read_text(), re.MULTILINE) == list(
        SECTIONS
    )


@pytest.mark.parametrize("number", SECTIONS)
def test_every_section_has_its_row(number):
    """In order, once, with a title."""
    listed = rows(number)
    assert all(len(row) == 4 for row in listed)
    assert [row[0] for row in listed] == SECTIONS[number].split()
    assert all(row[1] for row in listed)


@pytest.mark.parametrize("number", SECTIONS)
def test_the_modules_exist(number):
    """Or the row says why there is none, or what is open."""
    for section, _, modules, _ in rows(number):
        if re.match(r"Not needed, because \w+", modules):
            continue
        modules = re.sub(r" Open: \w.*", "", modules)
        named = re.findall(r"`([a-z_/]+)`", modules)
        assert named, section
        assert not re.sub(r"`[a-z_/]+`", "", modules).strip(), section
        for name in named:
            home = ROOT / "lightning" / "_core"
            home = home / name if "/" in name else home / "quic" / name
            assert any(home.with_suffix(e).exists() for e in (".pyx", ".py")), name


@pytest.mark.parametrize("number", SECTIONS)
def test_the_tests_exist(number):
    """Each row with modules has some, and each is a file or a function in it."""
    for section, _, modules, tests in rows(number):
        assert not re.sub(r"`[a-z0-9_/:]+`", "", tests).strip(), section
        named = re.findall(r"`([^`]+)`", tests)
        assert named or not modules.startswith("`"), section
        for name in named:
            file, _, function = name.partition("::")
            directory, _, stem = file.rpartition("/")
            path = ROOT / "tests" / (directory or "unit/quic") / f"test_{stem}.py"
            assert path.exists(), name
            assert not function or function in functions(path), name
