"""Log lines: whoever wrote the values, a line is a line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from pyflannel import logs
from pyflannel.foreign import MOST_IN_LOG
from tests.support.hostile import HOSTILE

Write = Callable[..., str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pyflannel", "asyncio")]
    before = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    yield
    for each, handlers, propagate, level in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.fixture(params=["text", "key=value", "json"])
def write(request: pytest.FixtureRequest) -> Write:
    """Logs one line in a style and gives it back, without colours."""
    stream = Terminal() if request.param == "text" else io.StringIO()
    logs.set_up("json" if request.param == "json" else "auto", stream=stream)

    def one(event: str, **fields: object) -> str:
        logs.get_logger("pyflannel.x").info(event, **fields)
        line = stream.getvalue()
        stream.truncate(0)
        stream.seek(0)
        return line

    return one


@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_cannot_leave_its_place(write: Write, text: str) -> None:
    line = write(f"said {text}", reason=text, many=[text])
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_value_is_bounded(write: Write) -> None:
    line = write("x" * 100_000, key="y" * 100_000, many=["z" * 100_000])
    assert len(line) < 4 * MOST_IN_LOG
    assert "100000 characters" in line


def test_quotes_and_backslashes_can_be_told_apart() -> None:
    stream = io.StringIO()
    logs.set_up("auto", stream=stream)
    logs.get_logger("pyflannel.x").info('a "b"', path="c\\d", plain="e", empty="")
    assert stream.getvalue().split(" ", 2)[2] == (
        'event="a \\"b\\"" path="c\\\\d" plain=e empty=""\n'
    )


def test_json_stays_json() -> None:
    stream = io.StringIO()
    logs.set_up("json", stream=stream)
    logs.get_logger("pyflannel.x").info("e", n=1, yes=True, text="a\x1bü", list=[1, "x"])
    entry = json.loads(stream.getvalue())
    assert (entry["n"], entry["yes"], entry["text"]) == (1, True, "a\x1bü")
    assert entry["list"] == [1, "x"]
