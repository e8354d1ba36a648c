"""JSON by the rules of Go's `encoding/json`, as far as a difference can be seen.

The network config and the leases are read by upstream with `encoding/json`, so what that accepts,
ignores and refuses is part of the interface. Python's `json` differs: it takes `NaN` and a byte
order mark in text, loses which of two equal keys came first, keeps unpaired surrogates, and gives
up on nesting at the interpreter's recursion limit. `msgspec` and friends match keys exactly, while
Go folds case. Hence an own reader:

* RFC 8259 grammar and nothing beyond it: no `NaN`, comment, trailing comma, BOM, leading zero.
* Nesting up to 10,000 levels, without recursion here; one level more is an error, as in Go.
* Whole numbers become `int`, anything with a fraction or an exponent `float`, so that `24.0` can be
  refused where `24` is wanted. `-0` becomes the float `-0.0`, for Go's unsigned fields refuse it.
* Invalid UTF-8 and unpaired surrogates inside strings become U+FFFD, one for each byte or escape.
* An object is a `JsonObject`: all its members in order, duplicates included, each with its text.
  Keys are found as Go finds struct fields: any case, the last occurrence wins, whatever its case.

`compact_raw` treats JSON as text, so that the numbers and escapes of a peer's `BackendData` stay as
that peer wrote them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

MAX_DEPTH: Final = 10_000
"""Deepest nesting Go decodes (`maxNestingDepth` in encoding/json/scanner.go)."""

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | JsonObject | None"
"""What `loads_go` gives."""


class JsonError(ValueError):
    """A text is not JSON; the message says what was found, where, and the likely slip."""

    def __init__(self, text: str, offset: int, problem: str, hint: str = "") -> None:
        self.offset = offset
        """Index into the decoded text, in characters."""
        self.line = text.count("\n", 0, offset) + 1
        self.column = offset - (text.rfind("\n", 0, offset) + 1) + 1
        self.problem = problem
        self.hint = hint
        """What was probably meant, or empty."""
        where = f"line {self.line}, column {self.column}"
        super().__init__(f"{problem} ({where})" + (f": {hint}" if hint else ""))


class JsonObject(Mapping[str, "JsonValue"]):
    """A JSON object that still knows its duplicates, their order and their text.

    As a mapping it is exact (`obj["Type"]`: same case, last occurrence); `find` is what Go does.
    """

    __slots__ = ("_index", "_members", "_text")

    def __init__(self, text: str, members: list[tuple[str, JsonValue, int, int]]) -> None:
        self._text = text
        self._members = members
        self._index: dict[str, int] | None = None

    @property
    def pairs(self) -> list[tuple[str, JsonValue]]:
        """Every member in the order of the text, duplicates included."""
        return [(key, value) for key, value, _, _ in self._members]

    def find(self, name: str) -> JsonValue:
        """The value of the last member whose key folds to `name`; `None` if there is none.

        `null` gives `None` as well; `find_raw` tells the two apart.
        """
        wanted = fold(name)
        for key, value, _, _ in reversed(self._members):
            if key == name or fold(key) == wanted:
                return value
        return None

    def find_raw(self, name: str) -> str | None:
        """The text of the value that `find` returns, byte for byte, or `None` if there is none."""
        wanted = fold(name)
        for key, _, start, end in reversed(self._members):
            if key == name or fold(key) == wanted:
                return self._text[start:end]
        return None

    def _last(self) -> dict[str, int]:
        if self._index is None:
            self._index = {member[0]: n for n, member in enumerate(self._members)}
        return self._index

    def __getitem__(self, key: str) -> JsonValue:
        return self._members[self._last()[key]][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last())

    def __len__(self) -> int:
        return len(self._last())

    def __repr__(self) -> str:
        return f"JsonObject({[key for key, _, _, _ in self._members]})"


def fold(key: str) -> str:
    """A key as Go compares it with the names of fields.

    Go folds each character to the smallest one of its simple case folding. Against a name in ASCII
    that comes down to lower case, with the long s (U+017F) as `s` and the Kelvin sign (U+212A,
    which `lower` already maps) as `k`.

    Source: Go, encoding/json/fold.go.
    """
    return key.lower().replace("\u017f", "s")


def loads_go(text: bytes | str) -> JsonValue:
    """The value of a JSON text, under Go's rules.

    Raises:
        JsonError: it is not JSON, or nested deeper than 10,000 levels.
    """
    decoded = decode_text(text)
    value, end = _scan(decoded, 0)
    rest = _SPACE.match(decoded, end)
    end = rest.end() if rest else end
    if end != len(decoded):
        raise _unexpected(decoded, end, "after top-level value")
    return value


def decode_text(text: bytes | str) -> str:
    """Text in which every byte that is not UTF-8 is a U+FFFD of its own, as Go reads it."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def compact_raw(text: bytes | str) -> str:
    r"""The same JSON without white space and safe inside HTML, as Go writes a `RawMessage`.

    Numbers, escapes and the order of keys stay as they are; `<`, `>`, `&`, U+2028 and U+2029 become
    `\u003c` and so on.

    Raises:
        JsonError: `text` is not JSON.

    Source: Go, encoding/json/indent.go, `appendCompact` with `escape` set.
    """
    decoded = decode_text(text)
    loads_go(decoded)
    return _STRING_OR_SPACE.sub(_keep_string, decoded).translate(HTML)


def plain(value: JsonValue) -> object:
    """The value with dictionaries for objects: of equal keys the last one stays.

    Keys that differ in case stay apart. Does not recurse: any depth that `loads_go` takes is fine.
    """
    top: list[object] = []
    work: list[tuple[JsonValue, list[object] | dict[str, object], str]] = [(value, top, "")]
    while work:
        item, parent, key = work.pop()
        made: object = item
        if isinstance(item, JsonObject):
            # The places are taken first, for the work list is emptied from its end.
            members: dict[str, object] = dict.fromkeys(item)
            made = members
            work += [(item[name], members, name) for name in members]
        elif isinstance(item, list):
            made = []
            work += [(inner, made, "") for inner in reversed(item)]
        if isinstance(parent, dict):
            parent[key] = made
        else:
            parent.append(made)
    return top[0]


_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def nesting(text: str) -> int:
    """How deep arrays and objects are nested in a text that is JSON; 0 for a plain value."""
    level = deepest = 0
    for token in _BRACKETS.finditer(text):
        if token[0] in "[{":
            level += 1
            deepest = max(deepest, level)
        elif token[0] in "]}":
            level -= 1
    return deepest


_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_PLAIN: Final = r'"[^"\\\x00-\x1f]*"'
_ESCAPE: Final = r'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})'
_ESCAPED: Final = rf'"[^"\\\x00-\x1f]*(?:{_ESCAPE}[^"\\\x00-\x1f]*)+"'
_KEY: Final = re.compile(rf"[ \t\n\r]*({_PLAIN}|{_ESCAPED})[ \t\n\r]*:")
_VALUE: Final = re.compile(
    rf"""[ \t\n\r]*(?:
        ({_PLAIN})
        | (-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)
        | (true|false|null)
        | ([{{\[])
        | ({_ESCAPED})
    )""",
    re.VERBOSE,
)
_PLAIN_STRING, _NUMBER, _WORD, _OPEN, _ESCAPED_STRING = range(1, 6)
"""The groups of `_VALUE`. The caller judges what follows a number or a word."""
_EMPTY: Final = re.compile(r"(?<=\{)[ \t\n\r]*\}|(?<=\[)[ \t\n\r]*\]")
_DELIMITER: Final = re.compile(r"[ \t\n\r]*([,}\]])")
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}

_STRING_OR_SPACE: Final = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\n\r]+')
HTML: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""What Go escapes inside strings beyond JSON's own rules (encoding/json, `HTMLEscape`)."""

_UNESCAPE: Final = re.compile(r'((?:\\u[0-9A-Fa-f]{4})+)|\\(["\\/bfnrt])')
_CONTROL: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def _scan(text: str, pos: int) -> tuple[JsonValue, int]:
    """Reads one value that starts at `pos` (or after white space there) and where it ends."""
    outer: list[tuple[list[Any], str | None, int]] = []
    items: list[Any] = []
    key: str | None = None
    while True:
        match = _VALUE.match(text, pos)
        if match is None:
            raise _unexpected(text, pos, "looking for beginning of value")
        kind = match.lastindex or 0
        start = match.start(kind)
        pos = match.end()
        value: JsonValue
        if kind == _PLAIN_STRING:
            value = text[start + 1 : pos - 1]
        elif kind == _NUMBER:
            value = _number(match[_NUMBER])
        elif kind == _WORD:
            value = _WORDS[match[_WORD]]
        elif kind == _ESCAPED_STRING:
            value = _unescape(text[start + 1 : pos - 1])
        else:
            if len(outer) >= MAX_DEPTH:
                raise JsonError(text, start, "exceeded max depth", f"at most {MAX_DEPTH} levels")
            is_object = text[start] == "{"
            empty = _EMPTY.match(text, pos)
            if empty is None:
                outer.append((items, key, start))
                items = []
                key = None
                if is_object:
                    key, pos = _key(text, pos)
                continue
            value = JsonObject(text, []) if is_object else []
            pos = empty.end()

        # A value is complete; so may be the containers around it.
        while outer:
            items.append(value if key is None else (key, value, start, pos))
            delimiter = _DELIMITER.match(text, pos)
            if delimiter is None:
                raise _unexpected(text, pos, _after(key))
            mark = delimiter[1]
            if mark == ",":
                pos = delimiter.end()
                if key is not None:
                    key, pos = _key(text, pos)
                break
            if (mark == "}") is (key is None):
                raise _unexpected(text, pos, _after(key))
            pos = delimiter.end()
            value = items if key is None else JsonObject(text, items)
            items, key, start = outer.pop()
        else:
            return value, pos


def _key(text: str, pos: int) -> tuple[str, int]:
    """A key, and where its value starts."""
    match = _KEY.match(text, pos)
    if match is None:
        raise _bad_key(text, pos)
    quoted = match[1]
    return (_unescape(quoted[1:-1]) if "\\" in quoted else quoted[1:-1]), match.end()


def _number(text: str) -> int | float:
    """`int` for digits only, else `float`; what no double can hold becomes the largest one.

    Go refuses such a number only where it is used. As a float it fits no field of ours either, and
    unlike infinity it can be written as JSON again.
    """
    if text == "-0":
        return -0.0
    try:
        return int(text)
    except ValueError:
        # A fraction, an exponent, or more digits than Python converts in reasonable time.
        number = float(text)
        return max(-sys.float_info.max, min(number, sys.float_info.max))


def _unescape(text: str) -> str:
    """The inside of a string literal with its escapes resolved."""
    return _UNESCAPE.sub(_resolve, text)


def _resolve(match: re.Match[str]) -> str:
    if match[1] is None:
        return _CONTROL.get(match[2], match[2])
    units = bytes.fromhex(match[1].replace("\\u", ""))
    # UTF-16 in, so that pairs are joined; what has no partner is replaced, one for one, as in Go.
    return _SURROGATE.sub("\ufffd", units.decode("utf-16-be", "surrogatepass"))


def _keep_string(match: re.Match[str]) -> str:
    return match[1] or ""


def _after(key: str | None) -> str:
    return "after array element" if key is None else "after object key:value pair"


def _bad_key(text: str, pos: int) -> JsonError:
    """Why no `"key":` could be read at `pos`."""
    pos = _skip(text, pos)
    string = re.compile(f"{_PLAIN}|{_ESCAPED}").match(text, pos)
    if string is None:
        return _unexpected(text, pos, "looking for beginning of object key string")
    return _unexpected(text, string.end(), "after object key")


def _skip(text: str, pos: int) -> int:
    space = _SPACE.match(text, pos)
    return space.end() if space else pos


_HINTS: Final = (
    (re.compile("\ufeff"), "a byte order mark; save the text as UTF-8 without one"),
    (re.compile(r"//|/\*|#"), "JSON has no comments"),
    (re.compile("[\u2018\u2019\u201c\u201d']"), 'strings stand in straight double quotes: "text"'),
    (re.compile(r"[-+]?(NaN|nan|Inf|inf)"), "JSON has no such number"),
    (re.compile(r"True|False|TRUE|FALSE|None|NULL|Null"), "write true, false or null"),
    (re.compile(r"[+.][0-9]"), "a number starts with a digit or a minus sign"),
)
"""What people write that is not JSON, and what to tell them."""


def _unexpected(text: str, pos: int, context: str) -> JsonError:
    """The error for whatever stands at `pos` (after white space), in Go's words plus a hint."""
    pos = _skip(text, pos)
    if pos >= len(text):
        return JsonError(text, pos, "unexpected end of JSON input", "is it cut off?")
    if text[pos] == '"' and context.startswith("looking"):
        return _bad_string(text, pos)
    hint = next((hint for pattern, hint in _HINTS if pattern.match(text, pos)), "")
    if context.startswith("looking") and text[pos] in "]}":
        hint = "a comma too many before it, or a value is missing"
    elif not hint and context.startswith("after"):
        if text[pos].isdigit() and text[pos - 1] == "0":
            hint = "numbers have no leading zeros"
        elif text[pos] in ".eE" and text[pos - 1].isdigit():
            hint = "digits must follow in a number"
        elif context == "after object key":
            hint = "a colon must follow the key"
        elif context == "after top-level value":
            hint = "one value is the whole text"
        else:
            hint = "a comma or a closing bracket must follow the value"
    elif not hint and "key string" in context:
        hint = "keys stand in double quotes"
    return JsonError(text, pos, f"invalid character {_quoted(text[pos])} {context}", hint)


def _bad_string(text: str, pos: int) -> JsonError:
    """Why the string literal at `pos` is none."""
    good = re.compile(rf'"(?:[^"\\\x00-\x1f]|{_ESCAPE})*').match(text, pos)
    pos = good.end() if good else pos
    if pos >= len(text):
        return JsonError(text, pos, "unexpected end of JSON input", "a closing quote is missing")
    if text[pos] != "\\":
        problem = f"invalid character {_quoted(text[pos])} in string literal"
        return JsonError(text, pos, problem, "a closing quote is missing, or write \\n and so on")
    if pos + 1 >= len(text):
        return JsonError(text, pos + 1, "unexpected end of JSON input", "is it cut off?")
    where = "\\u hexadecimal character escape" if text[pos + 1] == "u" else "string escape code"
    return JsonError(text, pos, f"invalid escape in {where}", "a backslash is written as \\\\")


def _quoted(char: str) -> str:
    if char in "'\"":
        return "'\\''" if char == "'" else "'\"'"
    if char == "\\":
        return "'\\\\'"
    if char.isprintable():
        return f"'{char}'"
    return f"'\\x{ord(char):02x}'" if char.isascii() else f"'\\u{ord(char):04x}'"
