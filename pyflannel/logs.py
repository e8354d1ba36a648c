"""Logs as events with fields, on top of the standard library.

`log.info("lease acquired", subnet=…, expires=…)`: the phrase is fixed, the values are fields that
are named alike everywhere. Three renderings: text for a terminal, `key=value` lines otherwise, JSON
on request. To systemd's journal each goes as an entry with its priority and, where it has them, the
fields PEER and CODE; its own clock is left out: the journal has one. Where that way is shut, lines
on stderr begin with their priority, which the journal takes off.
Secrets never get here; should one slip into a field, `redact` hides it by its name.
Events and values are escaped and bounded (`pyflannel.foreign`), no matter who wrote them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Final, TextIO

from pyflannel.foreign import MOST_IN_LOG, cut, escape, shown, shown_lines
from pyflannel.journal import SOCKET, JournalHandler

_FIELDS: Final = "pyflannel_fields"
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""From which level on a line has which priority of syslog(3)."""
_DEBUG_PRIORITY: Final = 7
_SECRET: Final = ("password", "token", "psk", "secret", "private")


class EventLogger:
    """A logger whose records are an event and its fields."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        """Each event, for those who look closely (`-v 1` and up)."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """What belongs in an incident's timeline."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """We are coping."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Someone must act."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """A defect of ours, with its traceback."""
        self._logger.log(logging.ERROR, event, extra={_FIELDS: fields}, exc_info=True)

    def _log(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields})


def get_logger(name: str) -> EventLogger:
    """The event logger of a module; called once at its top with its `__name__`."""
    return EventLogger(name)


def redact(name: str, value: object) -> object:
    """The value, or `***` if the field's name says that it is a secret."""
    if value and any(word in name.lower() for word in _SECRET):
        return "***"
    return value


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: Mapping[str, object] = getattr(record, _FIELDS, {})
    return {name: redact(name, value) for name, value in fields.items() if value is not None}


def _quote(value: object) -> str:
    text = cut(value, MOST_IN_LOG)
    if text and not any(c in text for c in ' "=\\') and text.isprintable():
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape(quoted)}"'


class TextFormatter(logging.Formatter):
    """`23:59:01.123 INFO    lease acquired  subnet=10.5.1.0/24 …`, for people at a terminal."""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - as inherited
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        tone = {"WARNING": "33", "ERROR": "31;1", "DEBUG": "2"}.get(record.levelname)
        event = shown(record.getMessage(), MOST_IN_LOG)
        if self._color and tone:
            event = f"\x1b[{tone}m{event}\x1b[0m"
        fields = " ".join(f"{name}={_quote(value)}" for name, value in _fields(record).items())
        text = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {event}"
        if fields:
            text += f"  {fields}"
        return text + _traceback(self, record)


class KeyValueFormatter(logging.Formatter):
    """`time=… level=info event="lease acquired" subnet=…`, one line each, for files and grep.

    Args:
        clock: whether a line has its time; not where its reader adds one.
    """

    def __init__(self, *, clock: bool = True) -> None:
        super().__init__()
        self._clock = clock

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - as inherited
        parts = [
            *([f"time={_timestamp(record)}"] if self._clock else []),
            f"level={record.levelname.lower()}",
            f"event={_quote(record.getMessage())}",
        ]
        parts += [f"{name}={_quote(value)}" for name, value in _fields(record).items()]
        trace = _traceback(self, record)
        if trace:
            parts.append(f"traceback={json.dumps(trace.strip())}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; numbers and booleans stay what they are."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - as inherited
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "event": cut(record.getMessage(), MOST_IN_LOG),
            "module": record.name.removeprefix("pyflannel."),
        }
        for name, value in _fields(record).items():
            entry[name] = _plain(value)
        trace = _traceback(self, record)
        if trace:
            entry["traceback"] = trace.strip()
        return json.dumps(entry, default=str)


class JournalFormatter(logging.Formatter):
    """Another formatter's lines, each with its priority in front (sd-daemon(3))."""

    def __init__(self, lines: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - as inherited
        return with_priority(record.levelno, self._lines.format(record))


def _priority(level: int) -> int:
    return next((code for floor, code in _PRIORITIES if level >= floor), _DEBUG_PRIORITY)


_IN_JOURNAL: Final = ("peer", "code")
"""Fields of ours that are fields of the journal: `PEER=`, `CODE=`. The line has all."""


def _journal_fields(record: logging.LogRecord, text: str) -> dict[str, str]:
    fields = _fields(record)
    named = {name.upper(): cut(fields[name], MOST_IN_LOG) for name in _IN_JOURNAL if name in fields}
    return {"MESSAGE": text, "PRIORITY": str(_priority(record.levelno)), **named}


def with_priority(level: int, text: str) -> str:
    """The text, each line with the priority of a level of `logging` in front.

    The journal takes each line for an entry of its own (systemd.exec(5), `SyslogLevelPrefix=`).
    """
    priority = _priority(level)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def is_journal(stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """Whether what is written to a stream goes to systemd's journal as it is.

    `JOURNAL_STREAM` has device and inode of what systemd connected (systemd.exec(5)). It is
    inherited, so a stream that was redirected since does not match.

    Args:
        stream: to be written to.
        environ: the environment, ours by default.
    """
    there = (os.environ if environ is None else environ).get("JOURNAL_STREAM")
    if not there:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no descriptor (io.UnsupportedOperation is both), or closed
        return False
    return there == f"{found.st_dev}:{found.st_ino}"


def say(level: int, text: str) -> None:
    """Writes bare words to stderr, for what is told before there is a log, or after its end.

    Args:
        level: of `logging`; the journal is told it.
        text: one line or more, fit to be shown, without a newline at its end.
    """
    print(with_priority(level, text) if is_journal(sys.stderr) else text, file=sys.stderr)


def _plain(value: object) -> object:
    """The value as JSON has it, if that is not too long."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | dict) and len(json.dumps(value, default=str)) <= MOST_IN_LOG:
        return value
    return cut(value, MOST_IN_LOG)


def _timestamp(record: logging.LogRecord) -> str:
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{clock}.{int(record.msecs):03d}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info:
        return ""
    return "\n" + shown_lines(formatter.formatException(record.exc_info))


def set_up(
    style: str,
    *,
    verbosity: int = 0,
    stream: TextIO | None = None,
    journal_socket: str = SOCKET,
) -> None:
    """Sends our logs to `stream` (stderr).

    Args:
        style: `auto` (text on a terminal, key=value lines otherwise), `text` or `json`. On a stream
            that is no terminal `text` gives the key=value lines as well. If the stream is the
            journal, lines have their priority, and those that are not JSON no time.
        journal_socket: where the journal takes entries with fields.
        verbosity: 0 = info and above; 1 and more = debug (upstream's `-v`).
    """
    out = stream if stream is not None else sys.stderr
    terminal, journal = out.isatty(), is_journal(out)
    formatter: logging.Formatter
    if style == "json":
        formatter = JsonFormatter()
    elif terminal:
        formatter = TextFormatter(color=True)
    else:
        formatter = KeyValueFormatter(clock=not journal)
    lines = formatter
    if journal:
        formatter = JournalFormatter(lines)
    handler: logging.Handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    if journal:
        # With fields; what the journal's socket does not take still goes the way of stderr.
        handler = JournalHandler(handler, _journal_fields, path=journal_socket)
        handler.setFormatter(lines)
    root = logging.getLogger("pyflannel")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if verbosity > 0 else logging.INFO)
    logging.getLogger("asyncio").handlers[:] = [handler]
