"""Command lines and environment variables by the rules of Go's `flag` package.

Unit files and sysconfig lines written for upstream must mean the same to us, down to the corners:

* `-flag value`, `-flag=value`, one dash or two. A value may start with a dash or be empty.
* A boolean takes a value only behind `=`, and only Go's spellings of true and false.
* Numbers as in Go's source: `0x1f`, `0o17`, `017`, `0b1`, `1_000`, signed, 64 bits.
* Parsing ends at the first word without a dash, at a lone `-`, or behind `--`.
* The last occurrence of a flag counts; a repeatable one appends.

A flag that the command line does not give is looked up in the environment, as `FLANNELD_` and its
name in capitals with `_` for `-`. An empty variable counts as unset, and a value that cannot be
parsed is a warning, never the end.

The parser knows nothing of flannel: what flags there are is data (`Flag`), from which usage text,
man pages and shell completion are made as well.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

Value = str | bool | int | tuple[str, ...]

TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")
FALSE: Final = ("0", "f", "F", "false", "FALSE", "False")
"""What `strconv.ParseBool` takes, and nothing else."""

_MAX_INT: Final = 2**63 - 1
_MAX_LEVEL: Final = 2**31 - 1
_INTEGER: Final = re.compile(
    r"""([+-]?)(?:
        0[xX](?P<x>(?:_?[0-9A-Fa-f])+)
        | 0[oO](?P<o>(?:_?[0-7])+)
        | 0[bB](?P<b>(?:_?[01])+)
        | 0(?P<old>(?:_?[0-7])*)
        | (?P<d>[1-9](?:_?[0-9])*)
    )""",
    re.VERBOSE | re.ASCII,
)
_BASES: Final = {"x": 16, "o": 8, "b": 2, "old": 8, "d": 10}
_DECIMAL: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)


_HELP: Final = ("-h", "--h", "-help", "--help")


class FlagError(ValueError):
    """A command line that Go would refuse; in Go's words, with what we know."""


class Kind(enum.Enum):
    """What a flag takes, by the word that the usage text prints for it."""

    STRING = "string"
    BOOL = ""
    INT = "int"
    LEVEL = "level"
    """A log level: decimal, 32 bits (klog reads it so, and calls it `value`)."""
    LIST = "value"
    """May be given several times; each time adds one element, commas are not split."""


class Mode(enum.Enum):
    """When a flag has an effect."""

    BOTH = "both"
    ETCD = "etcd"
    KUBE = "kube"
    NONE = "none"
    """On the command line only, or on no feature of the daemon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag: all that parsing, usage text, man page and completion need to know of it."""

    name: str
    """Without dashes, as upstream spells it."""
    kind: Kind
    default: Value
    help: str
    """What it does, without a full stop at the end."""
    since: str = "flannel"
    """`flannel` for a flag of upstream's, `pyflannel` for one of ours."""
    mode: Mode = Mode.BOTH
    choices: tuple[str, ...] = ()
    """The only values a string may have; empty for any."""
    secret: bool = False
    """Never shown."""
    urls: bool = False
    """Holds URLs; a user and password in them are never shown."""
    env: bool = True
    """Whether the environment can set it."""

    def variable(self, prefix: str = "FLANNELD_") -> str:
        """The environment variable that stands for it."""
        return prefix + self.name.upper().replace("-", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Parsed flags: every flag of the table has a value, given or by default."""

    values: Mapping[str, Value]
    given: frozenset[str]
    """Names of the flags that the command line or the environment set."""
    rest: tuple[str, ...] = ()
    """The words at which parsing ended, and all behind them."""
    warnings: tuple[str, ...] = ()
    help: bool = False
    """`-h` or `-help` was met; nothing behind it was looked at."""

    def text(self, name: str) -> str:
        """A string flag's value."""
        value = self.values[name]
        if not isinstance(value, str):
            raise TypeError(name)
        return value

    def number(self, name: str) -> int:
        """A number flag's value."""
        value = self.values[name]
        if not isinstance(value, int):
            raise TypeError(name)
        return value

    def switch(self, name: str) -> bool:
        """A boolean flag's value."""
        value = self.values[name]
        if not isinstance(value, bool):
            raise TypeError(name)
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """A repeatable flag's elements, in order."""
        value = self.values[name]
        if not isinstance(value, tuple):
            raise TypeError(name)
        return value


class BadValue(ValueError):
    """A value does not suit its flag.

    Args:
        reason: in Go's words, `parse error`.
        expected: in ours, `a whole number`.
    """

    def __init__(self, reason: str, expected: str) -> None:
        self.reason = reason
        self.expected = expected
        super().__init__(f"{reason} (expected {expected})")


def convert(flag: Flag, text: str) -> Value:
    """One value from its text; a repeatable flag gives a tuple of one element.

    Raises:
        BadValue: it does not suit.
    """
    match flag.kind:
        case Kind.BOOL:
            if text in TRUE:
                return True
            if text in FALSE:
                return False
            raise BadValue("parse error", "true or false")
        case Kind.INT:
            return parse_int(text)
        case Kind.LEVEL:
            return _parse_level(text)
        case Kind.LIST:
            return (text,)
        case Kind.STRING:
            if flag.choices and text not in flag.choices:
                raise BadValue("unknown value", f"one of {', '.join(flag.choices)}")
            return text


def parse_int(text: str) -> int:
    """A whole number as `strconv.ParseInt(text, 0, 64)` reads it.

    Raises:
        BadValue: it is none, or needs more than 64 bits.
    """
    match = _INTEGER.fullmatch(text)
    if match is None:
        raise BadValue("parse error", "a whole number")
    kind = match.lastgroup or "d"
    digits = match[kind].replace("_", "") or "0"
    return _in_range(match[1], digits, _BASES[kind], _MAX_INT)


def _parse_level(text: str) -> int:
    if _DECIMAL.fullmatch(text) is None:
        raise BadValue("parse error", "a decimal number")
    return _in_range("-" if text[0] == "-" else "+", text.lstrip("+-"), 10, _MAX_LEVEL)


def _in_range(sign: str, digits: str, base: int, largest: int) -> int:
    # 64 bits have at most 64 digits, in base 2; more need no conversion to be out of range.
    number = int(digits, base) if len(digits.lstrip("0")) <= 64 else largest + 2
    if sign == "-":
        number = -number
    if not -largest - 1 <= number <= largest:
        raise BadValue("value out of range", f"a number between {-largest - 1} and {largest}")
    return number


def parse(
    table: Sequence[Flag], args: Sequence[str], *, removed: Mapping[str, str] | None = None
) -> Flags:
    """Reads a command line (without the program's name) as Go does.

    Args:
        table: the flags there are.
        args: the words.
        removed: flags there were once, each with what became of it, for the error about them.

    Raises:
        FlagError: at the first word that Go would stop at, in Go's words and with what we know
            about what was meant.
    """
    return _Parser(table, anywhere=False, removed=removed or {}).run(args)


def extract(table: Sequence[Flag], args: Sequence[str]) -> Flags:
    """Picks the flags of a table out of a command line that holds other things as well.

    For commands with subcommands and flags of their own: what is not in the table, `-h` included,
    stays in `rest` in its order. Nothing behind `--` is looked at.

    Raises:
        FlagError: a flag of the table has a bad value or none.
    """
    return _Parser(table, anywhere=True, removed={}).run(args)


class _Parser:
    """One run over one command line."""

    def __init__(
        self, table: Sequence[Flag], *, anywhere: bool, removed: Mapping[str, str]
    ) -> None:
        self._flags = table
        self._table = {flag.name: flag for flag in table}
        self._anywhere = anywhere
        self._removed = removed
        self._values: dict[str, Value] = {flag.name: flag.default for flag in table}
        self._given: set[str] = set()

    def run(self, args: Sequence[str]) -> Flags:
        rest: list[str] = []
        asked_for_help = False
        position = 0
        while position < len(args):
            word = args[position]
            if word == "--":
                # The marker is ours to remove only if no other parser comes after us.
                position += 0 if self._anywhere else 1
                break
            flag, equals, value = self._split(word)
            if flag is None:
                if self._anywhere:
                    rest.append(word)
                    position += 1
                    continue
                if len(word) < len("-x") or word[0] != "-":
                    break
                if word.partition("=")[0] in _HELP:
                    asked_for_help = True
                    break
                raise self._unknown(word)
            position += 1
            if not equals and flag.kind is Kind.BOOL:
                value = "true"
            elif not equals:
                if position == len(args):
                    raise FlagError(f"flag needs an argument: -{flag.name}")
                value = args[position]
                position += 1
            self._set(flag, value)
        return Flags(
            values=self._values,
            given=frozenset(self._given),
            rest=(*rest, *args[position:]),
            help=asked_for_help,
        )

    def _split(self, word: str) -> tuple[Flag | None, bool, str]:
        """The flag a word is about, `None` if none; whether a value is in the word, and which."""
        head, equals, value = word.partition("=")
        name = head.removeprefix("-").removeprefix("-")
        return (self._table.get(name) if head != name else None), bool(equals), value

    def _set(self, flag: Flag, text: str) -> None:
        try:
            value = convert(flag, text)
        except BadValue as bad:
            raise FlagError(describe_bad(flag, text, bad)) from None
        before = self._values[flag.name]
        if flag.kind is Kind.LIST and flag.name in self._given:
            # Narrowing for the type checker: a list's value is a tuple.
            value = (*(before if isinstance(before, tuple) else ()), text)
        self._values[flag.name] = value
        self._given.add(flag.name)

    def _unknown(self, word: str) -> FlagError:
        name = word.partition("=")[0].removeprefix("-").removeprefix("-")
        if not name or name.startswith("-"):
            return FlagError(f"bad flag syntax: {mask(self._flags, [word])[0]}")
        hint = self._removed.get(name)
        if hint is None:
            guess = did_you_mean(name, self._table)
            hint = f"did you mean -{guess}?" if guess else None
        return FlagError(f"flag provided but not defined: -{name}" + (f" ({hint})" if hint else ""))


HIDDEN: Final = "***"
"""Stands for a secret."""


def mask(table: Iterable[Flag], words: Sequence[str]) -> list[str]:
    """The words of a command line with the values of secret flags as `***`.

    A name that is nearly a secret flag's counts as well, with dashes or without, and so does
    whatever has "password" in it: the value of a mistyped flag is as secret.
    """
    secrets = [flag.name for flag in table if flag.secret]
    shown: list[str] = []
    hide_next = False
    for word in words:
        head, equals, _ = word.partition("=")
        name = head.lstrip("-")
        is_secret = "password" in name.lower() or did_you_mean(name, secrets) is not None
        if hide_next:
            shown.append(HIDDEN)
        else:
            shown.append(f"{head}={HIDDEN}" if is_secret and equals else hide_user_info(word))
        hide_next = is_secret and not equals and not hide_next
    return shown


_URL: Final = re.compile(r"(?=\b[A-Za-z][A-Za-z0-9+.-]*://)")


def hide_user_info(text: str) -> str:
    """URLs separated by commas, with user and password as `***`.

    Whatever stands between the beginning of a URL and its last `@` is hidden, for a password may
    have any character in it, the comma and the slash too.
    """
    shown = []
    for part in _URL.split(text):
        scheme, mark, rest = part.rpartition("://")
        user, at, host = rest.rpartition("@")
        shown.append(f"{scheme}{mark}{HIDDEN}@{host}" if user and at else part)
    return "".join(shown)


def describe_bad(flag: Flag, text: str, bad: BadValue) -> str:
    """The sentence about a bad value, Go's text first; a secret is not shown."""
    shown = quote(_shown(flag, text))
    if flag.kind is Kind.BOOL:
        return f"invalid boolean value {shown} for -{flag.name}: {bad}"
    return f"invalid value {shown} for flag -{flag.name}: {bad}"


def with_environment(
    table: Sequence[Flag], flags: Flags, env: Mapping[str, str], *, prefix: str = "FLANNELD_"
) -> Flags:
    """The same flags with those that were not given taken from the environment.

    Bad values are warnings; so are variables with our prefix that belong to no flag.
    """
    values = dict(flags.values)
    given = set(flags.given)
    warnings = list(flags.warnings)
    for flag in table:
        text = env.get(flag.variable(prefix), "")
        if not text or flag.name in given or not flag.env:
            continue
        try:
            values[flag.name] = convert(flag, text)
        except BadValue as bad:
            warnings.append(
                f"Failed to set flag FLANNELD from env: {flag.variable(prefix)}: "
                f"{describe_bad(flag, text, bad)}; the default {show(flag, flag.default)} stays"
            )
        else:
            given.add(flag.name)
    return Flags(
        values=values,
        given=frozenset(given),
        rest=flags.rest,
        warnings=tuple(warnings),
        help=flags.help,
    )


def unknown_variables(
    table: Iterable[Flag], env: Mapping[str, str], *, prefix: str = "FLANNELD_"
) -> tuple[str, ...]:
    """A warning for each variable that has our prefix and no effect."""
    variables = {flag.variable(prefix): flag for flag in table}
    warnings = []
    for name in sorted(env):
        if not name.startswith(prefix) or not env[name]:
            continue
        flag = variables.get(name)
        if flag is None:
            guess = did_you_mean(name.removeprefix(prefix), (f.name for f in variables.values()))
            meant = next((v for v, f in variables.items() if f.name == guess), "")
            hint = f"; did you mean {meant}?" if meant else ""
            warnings.append(f"{name} is ignored: there is no flag for it{hint}")
        elif not flag.env:
            warnings.append(f"{name} is ignored: -{flag.name} works on the command line only")
    return tuple(warnings)


def usage(program: str, table: Iterable[Flag]) -> str:
    """What `-help` prints: flags in alphabetical order with their types and defaults.

    The layout is that of `flag.PrintDefaults`.
    """
    lines = [f"Usage: {program} [OPTION]...\n"]
    for flag in sorted(table, key=lambda flag: flag.name):
        word = "value" if flag.kind is Kind.LEVEL else flag.kind.value
        head = f"  -{flag.name}" + (f" {word}" if word else "")
        text = flag.help
        if flag.choices:
            text += f": {', '.join(flag.choices)}"
        if flag.default not in ("", False, 0, ()):
            text += f" (default {show(flag, flag.default)})"
        lines.append(f"{head}\n    \t{text}\n")
    return "".join(lines)


def show(flag: Flag, value: Value) -> str:
    """A value as one would write it behind the flag; what is secret in it as `***`."""
    if flag.secret and value:
        return HIDDEN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(quote, value))
    return quote(_shown(flag, value)) if isinstance(value, str) else str(value)


def _shown(flag: Flag, text: str) -> str:
    if flag.secret:
        return HIDDEN
    return hide_user_info(text) if flag.urls else text


def quote(text: str) -> str:
    """A string in double quotes, as Go's `%q`: what cannot be printed is escaped."""
    return '"' + "".join(_escape(char) for char in text) + '"'


_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NAMED: Final = {7: "\\a", 8: "\\b", 11: "\\v", 12: "\\f"}


def _escape(char: str) -> str:
    code = ord(char)
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _NAMED.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
