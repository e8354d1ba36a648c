"""Log lines: whoever wrote the values, a line is a line."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
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


class TestJournal:
    """A file stands for the socket that systemd connects: both are known by device and inode."""

    @pytest.fixture
    def journal(self, tmp_path, monkeypatch):
        with (tmp_path / "journal").open("w+") as stream:
            found = os.fstat(stream.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
            yield stream

    @staticmethod
    def written(stream) -> list[str]:
        stream.flush()
        stream.seek(0)
        return stream.read().splitlines()

    def test_the_level_is_the_priority_and_the_time_is_the_journals(self, journal):
        logs.set_up("auto", verbosity=1, stream=journal)
        log = logs.get_logger("pyflannel.x")
        log.debug("d")
        log.info("i", subnet="10.5.1.0/24")
        log.warning("w")
        log.error("e")
        assert self.written(journal) == [
            "<7>level=debug event=d",
            "<6>level=info event=i subnet=10.5.1.0/24",
            "<4>level=warning event=w",
            "<3>level=error event=e",
        ]

    def test_a_traceback_stays_in_the_line_of_its_priority(self, journal):
        logs.set_up("auto", stream=journal)
        try:
            int("a\nb")
        except ValueError:
            logs.get_logger("pyflannel.x").exception("defect")
        (line,) = self.written(journal)
        assert line.startswith("<3>level=error event=defect traceback=")

    def test_json_keeps_its_time_and_is_json_behind_the_priority(self, journal):
        logs.set_up("json", stream=journal)
        logs.get_logger("pyflannel.x").warning("w")
        (line,) = self.written(journal)
        assert line.startswith("<4>{")
        assert {"time", "level", "event"} <= set(json.loads(line[3:]))

    def test_a_redirected_stream_is_not_the_journal(self, journal, tmp_path):
        with (tmp_path / "file").open("w+") as stream:
            logs.set_up("auto", stream=stream)
            logs.get_logger("pyflannel.x").error("e")
            (line,) = self.written(stream)
        assert line.startswith("time=")

    @pytest.mark.parametrize("value", ["", "x", "1:2", "0:0"])
    def test_another_journal_stream_is_not_ours(self, journal, value):
        assert logs.is_journal(journal)
        assert not logs.is_journal(journal, {"JOURNAL_STREAM": value})
        assert not logs.is_journal(journal, {})
        assert not logs.is_journal(io.StringIO(), {"JOURNAL_STREAM": value})

    def test_last_words_have_a_priority_too_on_every_line(self, journal, monkeypatch):
        monkeypatch.setattr(sys, "stderr", journal)
        logs.say(logging.ERROR, "Traceback\nwhy")
        assert self.written(journal) == ["<3>Traceback", "<3>why"]


def test_elsewhere_last_words_are_bare(capsys, monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    logs.say(logging.ERROR, "why")
    assert capsys.readouterr().err == "why\n"


@pytest.mark.parametrize(
    "formatter", [logs.TextFormatter(color=False), logs.KeyValueFormatter(), logs.JsonFormatter()]
)
def test_what_others_wrote_is_escaped_and_cut_in_a_traceback_too(formatter):
    """An exception's message may be a value from etcd."""

    def fail() -> None:
        raise ValueError("\x1b]0;owned\x07\u202e" + "x" * 100_000)

    try:
        fail()
    except ValueError:
        record = logging.LogRecord("pyflannel", logging.ERROR, "", 0, "defect", (), sys.exc_info())
    text = formatter.format(record)
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text) < 10_000
    assert "ValueError" in text
