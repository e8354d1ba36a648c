"""Text that others wrote, made fit for a line that people read: escaped and bounded. Pure.

etcd's keys and values, error texts of servers, names on the network: each may hold an escape
sequence that rewrites the terminal, a character that turns the direction of writing, a newline that
looks like a second log line, or a hundred kilobytes. `shown` is the one way from there to a log,
an error message, a table or the service manager. JSON output escapes by itself and is not bounded,
because programs read it.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 200
"""Characters shown of one value by default: a key, an address, a sentence; two lines on a
terminal."""
MOST_IN_LOG: Final = 2000
"""Characters shown of one event or field of a log line, and of one sentence on stderr. A command's
output fits; journald's own limit for a line is 48 KiB (journald.conf, `LineMax=`)."""

MOST_LINES: Final = 200
"""Lines shown of a traceback: the last ones, where it says what happened."""

_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(value: object, most: int = MOST) -> str:
    r"""A value as one line of printable characters.

    Characters that are not printable (Unicode: control, format, which includes those for the
    direction of writing, private use, separators but the space) become `\n`, `\x1b`, `\u202e`.
    What is printable already stays as it is, so showing twice does no harm.

    Args:
        value: text, bytes (taken as UTF-8, `\xff` for what is none), or anything with a `str`.
        most: characters of the value; of a longer one the beginning, its length behind it.
    """
    return escape(cut(value, most))


def shown_lines(text: str) -> str:
    """Several lines, each as `shown` makes it; of too many the last ones.

    For tracebacks: the message of an exception holds what somebody wrote.
    """
    lines = text.split("\n")
    left_out = len(lines) - MOST_LINES
    kept = [shown(line, MOST_IN_LOG) for line in lines[-MOST_LINES:]]
    return "\n".join([f"({left_out} lines before)", *kept] if left_out > 0 else kept)


def cut(value: object, most: int = MOST) -> str:
    """The value as text, at most so long; not escaped, for those who escape in their own way."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def escape(text: str) -> str:
    """The text with what is not printable escaped, at full length; for text that is ours."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode keeps it (PEP 383)
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
