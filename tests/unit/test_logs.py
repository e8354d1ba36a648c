"""Log lines: a line is a line, also with values that others wrote."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from pyflannel import logs
from pyflannel.foreign import MOST_IN_LOG
from pyflannel.journal import entry
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
        logs.set_up("auto", verbosity=1, stream=journal, journal_socket="/nowhere")
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

    def test_entries_have_their_peer_and_their_code_as_fields(self, journal, tmp_path):
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            there.bind(path)
            there.settimeout(5)
            logs.set_up("auto", stream=journal, journal_socket=path)
            log = logs.get_logger("pyflannel.x")
            log.warning("w", peer="10.5.7.0/24", code="PF171", other=1)
            log.info("i")
            first, second = (there.recv(65_536).decode().splitlines() for _ in range(2))
        assert self.written(journal) == []
        assert set(first) == {
            "SYSLOG_IDENTIFIER=pyflanneld",
            "MESSAGE=level=warning event=w peer=10.5.7.0/24 code=PF171 other=1",
            "PRIORITY=4",
            "PEER=10.5.7.0/24",
            "CODE=PF171",
        }
        assert "PRIORITY=6" in second
        assert not any(line.startswith(("PEER", "CODE")) for line in second)

    def test_a_value_with_a_newline_cannot_make_a_field(self):
        found = entry({"MESSAGE": "a\nCODE=PF171", "PRIORITY": "4"})
        size = len("a\nCODE=PF171").to_bytes(8, "little")
        assert found == b"MESSAGE\n" + size + b"a\nCODE=PF171\nPRIORITY=4\n"

    def test_a_traceback_stays_in_the_line_of_its_priority(self, journal):
        logs.set_up("auto", stream=journal, journal_socket="/nowhere")
        try:
            int("a\nb")
        except ValueError:
            logs.get_logger("pyflannel.x").exception("defect")
        (line,) = self.written(journal)
        assert line.startswith("<3>level=error event=defect traceback=")

    def test_json_keeps_its_time_and_is_json_behind_the_priority(self, journal):
        logs.set_up("json", stream=journal, journal_socket="/nowhere")
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
