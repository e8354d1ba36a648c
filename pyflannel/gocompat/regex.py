"""Go's regular expressions on Python's engine, for the options that take one.

Operators wrote their patterns for RE2. The two syntaxes agree on all that is common; where they do
not, a pattern is translated if that is exact, and else refused with the reason. Above all refused
is what Python has and RE2 has not: a pattern that starts to work when a node moves here would stop
to work when it moves back. Classes of characters are ASCII, as in Go.

Source: the documentation of Go's package `regexp/syntax`.
"""

from __future__ import annotations

import re
from typing import Final

MOST_REPEATS: Final = 1000
"""RE2 refuses larger counts."""

_POSIX: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\x0b\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_GROUPS: Final = {
    "?=": "look-ahead",
    "?!": "look-ahead",
    "?<=": "look-behind",
    "?<!": "look-behind",
    "?P=": "a back-reference",
    "?(": "a conditional",
    "?>": "an atomic group",
    "?#": "a comment",
}
_REPEAT: Final = re.compile(r"\{(\d+)(,(\d*))?\}", re.ASCII)
_HEX: Final = re.compile(r"x\{([0-9A-Fa-f]{1,6})\}", re.ASCII)
_CLASS_NAME: Final = re.compile(r"\[:(\^?)([a-z]+):\]", re.ASCII)
_FLAGS: Final = re.compile(r"\(\?[ims]+\)", re.ASCII)
_SCOPED_FLAGS: Final = re.compile(r"\(\?[ims]*(-[ims]+)?:", re.ASCII)
_NAMED: Final = re.compile(r"\(\?P?<([A-Za-z_]\w*)>", re.ASCII)


def compile_go(pattern: str) -> re.Pattern[str]:
    """The pattern, ready for `search`.

    Raises:
        ValueError: it is no regular expression in Go; the message says what is wrong.
    """
    try:
        return re.compile(_Translator(pattern).translate(), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


class _Translator:
    """One pass over a pattern, piece by piece."""

    def __init__(self, pattern: str) -> None:
        self._rest = pattern
        self._out: list[str] = []

    def translate(self) -> str:
        if flags := _FLAGS.match(self._rest):
            self._take(flags[0])
        repeated = False
        while self._rest:
            here = self._rest[0]
            was_repeated, repeated = repeated, False
            if here == "\\":
                self._escape(in_class=False)
            elif here == "[":
                self._class()
            elif here == "(":
                self._group()
            elif here == "{" and not _REPEAT.match(self._rest):
                self._take("{", r"\{")
            elif here in "*+?{":
                if was_repeated:
                    raise ValueError("a repetition of a repetition")
                self._repetition()
                repeated = True
            else:
                self._take(here)
        return "".join(self._out)

    def _take(self, piece: str, replacement: str | None = None) -> None:
        self._out.append(piece if replacement is None else replacement)
        self._rest = self._rest[len(piece) :]

    def _repetition(self) -> None:
        counted = _REPEAT.match(self._rest)
        if counted is None:
            self._take(self._rest[0])
        else:
            if max(int(counted[1]), int(counted[3] or 0)) > MOST_REPEATS:
                raise ValueError(f"{counted[0]} repeats more than {MOST_REPEATS} times")
            self._take(counted[0])
        if self._rest.startswith("?"):
            self._take("?")

    def _group(self) -> None:
        for opening, what in _GROUPS.items():
            if self._rest.startswith(opening, 1):
                raise ValueError(f"{what}, ({opening}…), which Go does not have")
        if named := _NAMED.match(self._rest):
            self._take(named[0], f"(?P<{named[1]}>")
        elif scoped := _SCOPED_FLAGS.match(self._rest):
            self._take(scoped[0])
        elif self._rest.startswith("(?"):
            raise ValueError(f"{self._rest[:4]!r}: flags are i, m and s, at the very start only")
        else:
            self._take("(")

    def _escape(self, *, in_class: bool) -> None:
        if len(self._rest) < 2:
            raise ValueError("a backslash at the end")
        letter = self._rest[1]
        if hexadecimal := _HEX.match(self._rest, 1):
            if int(hexadecimal[1], 16) > 0x10FFFF:
                raise ValueError(f"\\{hexadecimal[0]} is no character")
            self._take("\\" + hexadecimal[0], re.escape(chr(int(hexadecimal[1], 16))))
        elif letter == "Q" and not in_class:
            literal, _, _ = self._rest[2:].partition(r"\E")
            piece = "\\Q" + literal + (r"\E" if r"\E" in self._rest else "")
            self._take(piece, re.escape(literal))
        elif letter == "z" and not in_class:
            self._take(r"\z", r"\Z")
        elif letter in "123456789":
            raise ValueError(f"the back-reference \\{letter}, which Go does not have")
        elif letter in "pP":
            raise ValueError(f"the Unicode class \\{letter}, which is not supported here")
        elif letter.isalpha() and letter not in (
            "adDfnrsStvwWx" if in_class else "aAbBdDfnrsStvwWx"
        ):
            raise ValueError(f"the escape \\{letter}, which Go does not have")
        else:
            self._take("\\" + letter)

    def _class(self) -> None:
        self._take("[")
        if self._rest.startswith("^"):
            self._take("^")
        if self._rest.startswith("]"):
            self._take("]", r"\]")
        while self._rest and not self._rest.startswith("]"):
            here = self._rest[0]
            if here == "\\":
                self._escape(in_class=True)
            elif self._rest.startswith("--"):
                raise ValueError("a doubled - in a class; write \\- for a literal one")
            elif self._rest.startswith("[:"):
                self._named_class()
            elif here in "[&~|":
                self._take(
                    here, "\\" + here
                )  # doubled, they are to become set operations in Python
            else:
                self._take(here)
        if not self._rest:
            raise ValueError("a [ without its ]")
        self._take("]")

    def _named_class(self) -> None:
        named = _CLASS_NAME.match(self._rest)
        if named is None or named[2] not in _POSIX or named[1]:
            raise ValueError(f"the class {self._rest.partition(']')[0]}], which is not known here")
        self._take(named[0], _POSIX[named[2]])
