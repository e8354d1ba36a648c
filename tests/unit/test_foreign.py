"""Text of others, as it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.foreign import MOST, MOST_IN_LOG, MOST_LINES, cut, escape, shown, shown_lines
from tests.support.hostile import HOSTILE


@given(st.one_of(st.text(), st.binary()), st.integers(1, 50))
def test_it_is_always_one_bounded_printable_line(value: str | bytes, most: int) -> None:
    text = shown(value, most)
    assert text.isprintable()
    assert len(text) <= len("\\U0010ffff") * most + len("… (10000 characters)")


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=MOST))
def test_what_is_printable_stays(text: str) -> None:
    assert shown(text) == text


@given(st.text(max_size=20))
def test_showing_twice_does_no_harm(text: str) -> None:
    assert shown(shown(text)) == shown(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_obeys_is_spelled_out(text: str) -> None:
    assert shown(text).isprintable()
    assert shown(text).isascii()


def test_the_spelling_is_the_usual_one() -> None:
    assert shown("a\n\t\x1b\x9b\u202e\U000e0001\udcff") == (
        "a\\n\\t\\x1b\\x9b\\u202e\\U000e0001\\xff"
    )
    assert shown(b"\xff\n") == "\\xff\\n"
    assert shown("ünï 中 🙂") == "ünï 中 🙂"


def test_a_long_one_is_cut_and_its_length_told() -> None:
    assert shown("x" * 300) == "x" * MOST + "… (300 characters)"
    assert cut("\n" * 3, 2) == "\n\n… (3 characters)"
    assert escape("x" * 300) == "x" * 300


@given(st.text())
def test_of_many_lines_each_is_printable_and_stays_a_line(text: str) -> None:
    lines = shown_lines(text).split("\n")
    assert len(lines) == min(text.count("\n") + 1, MOST_LINES + 1)
    assert all(line.isprintable() for line in lines)


def test_of_too_many_lines_the_last_are_shown_and_the_others_counted() -> None:
    text = "\n".join(str(number) for number in range(1000))
    before = 1000 - MOST_LINES
    assert shown_lines(text).startswith(f"({before} lines before)\n{before}\n")
    assert shown_lines(text).endswith("\n999")
    assert len(shown_lines("x" * 100_000)) < 2 * MOST_IN_LOG
