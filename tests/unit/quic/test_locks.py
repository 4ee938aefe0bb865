"""The two rules that keep the GIL and the engine's mutex from deadlocking.

Nobody waits for the mutex holding the GIL, and nobody takes the GIL holding the mutex.
The source is read for both; builds with LIGHTNING_DEBUG, as the sanitizers' are, abort
whoever breaks one at run time.
"""

import pathlib
import re
import subprocess
import sys

import pytest

import lightning
from lightning._core.quic import endpoint

# Wherever the tests are started from.
SOURCES = sorted(pathlib.Path(lightning.__file__).parent.glob("_core/**/*.pyx"))
TRIAL = re.compile(r"^\s*if endpoint_trylock\(.*\):$")
CALLS = re.compile(r"\b(endpoint_(?:un)?lock)\(")


def blocks(lines):
    """Give each line with whether it runs without the GIL, and in which function."""
    nogil_at = None
    function = (0, "", False)
    opening = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if nogil_at is not None and indent <= nogil_at:
            nogil_at = None
        if (
            re.match(r"\s*(cdef|cpdef|def)\b.*\(", line)
            and "=" not in line.split("(")[0]
        ):
            function = (indent, line.strip(), False)
            opening = True
        if opening and line.rstrip().endswith(":"):
            function = (function[0], function[1], bool(re.search(r"\bnogil:$", line)))
            opening = False
        elif re.match(r"\s*with nogil:", line):
            nogil_at = indent
        yield line, nogil_at is not None or function[2], function[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_mutex_is_only_waited_for_without_the_gil(path):
    """Every lock is in a ``nogil`` block or function; every lock has its unlock.

    What is only tried is no waiting: it may have the GIL, down to its unlock.
    """
    locked = tried = False
    for line, without_gil, function in blocks(path.read_text().splitlines()):
        if "break_lock_rule" in function:
            continue
        if TRIAL.search(line):
            assert not locked, (path, line)
            assert not tried, (path, line)
            tried = True
            continue
        if tried:
            # No call into Python may let go of the GIL meanwhile.
            assert not re.search(r"\bnogil\b|\b(return|raise)\b", line), (path, line)
            tried = not re.search(r"\bendpoint_unlock\(", line)
            continue
        call = CALLS.search(line)
        if call:
            assert without_gil, (path, line)
            assert locked == (call[1] == "endpoint_unlock"), (path, function, line)
            locked = not locked
        elif locked:
            # What runs under the mutex is C, and leaves by its end only.
            assert without_gil, (path, line)
            assert not re.search(r"\b(with gil|return|raise)\b", line), (path, line)
    assert not locked
    assert not tried


def test_the_engine_never_takes_the_gil():
    """Below its faces there is no ``with gil`` at all."""
    assert "engine" in {path.stem for path in SOURCES}
    for path in SOURCES:
        if path.parent.name == "quic":
            text = path.read_text()
            # The tests' own sink is the exception: it stands for Python.
            allowed = 1 if path.stem == "streams" else 0
            assert len(re.findall(r"\bwith gil\b", text)) <= allowed, path


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("waits", "the mutex is waited for with the GIL held"),
        ("takes", "the GIL is waited for with the mutex held"),
        ("twice", "the mutex is taken twice"),
        ("none", ""),
    ],
)
def test_breaking_a_rule_aborts_a_checking_build(rule, says):
    """With a message that names the rule; other builds check nothing."""
    done = subprocess.run(
        [
            sys.executable, "-c",
            f"from {endpoint.__name__} import break_lock_rule as b; b({rule!r})",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if endpoint.LOCK_RULES and says:
        assert done.returncode < 0
        assert says in done.stderr
    else:
        assert done.returncode == 0, done.stderr
