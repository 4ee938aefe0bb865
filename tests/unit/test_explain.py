"""The words of errors: paths, keys and hints."""

import pytest

from lightning._core.wire.explain import hint, join_path, key_step, short


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("name", "'name'"),
        ("x" * 1_000_000, f"'{'x' * 40}'"),
        (b"\xff" * 41, repr(b"\xff" * 40)[:80]),
        ("\ud83d", r"'\ud83d'"),
        ("é", r"'\xe9'"),
        (5, "5"),
        (10**200, "1" + "0" * 79),
    ],
)
def test_a_key_is_shown_short_and_in_ascii(key, text):
    assert short(key) == text
    assert len(text) <= 80


def test_a_key_that_cannot_be_shown_says_why():
    class Key:
        def __repr__(self):
            raise KeyError

    assert short(Key()) == "its repr() failed: KeyError"


def test_only_a_short_identifier_is_a_step_by_itself():
    assert key_step("name") == ".name"
    assert key_step("n" * 40) == "." + "n" * 40
    assert key_step("n" * 41).startswith("['nnn")
    assert key_step("a-b") == "['a-b']"
    assert key_step(b"name") == "[b'name']"


@pytest.mark.parametrize("count", [0, 1, 15, 16])
def test_a_short_path_is_given_in_full(count):
    assert join_path("data", [f"[{i}]" for i in range(count)]) == "data" + "".join(
        f"[{i}]" for i in range(count)
    )


def test_a_long_path_keeps_both_ends():
    steps = [f"[{i}]" for i in range(1000)]
    path = join_path("data", steps)
    assert path == "data" + "".join(steps[:8]) + "..." + "".join(steps[-8:])
    assert len(steps) == 1000


def test_the_hint_is_that_of_the_nearest_base():
    class Tags(set):
        pass

    assert hint(Tags()) == "use a list, such as sorted(value)"
    assert hint(object()) == "convert it to one that is"


def test_the_hint_looks_at_the_type_and_not_at_the_value():
    class Odd:
        def __getattribute__(self, name):
            raise AssertionError

    assert hint(Odd()) == "convert it to one that is"
