"""Reading the members of a JSON object into typed values, collecting everything that is wrong.

Go decodes an object member by member: keys match in any case, a later member overwrites an earlier
one (which must be right all the same), `null` leaves most types as they were. `ObjectReader` does
that for one field at a time and keeps a list of problems instead of stopping at the first, so that
an operator sees all mistakes at once. What was not read in the end is an unknown key.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, cast

from pyflannel.gocompat.json import JsonObject, JsonValue, fold
from pyflannel.records import dataclass

T = TypeVar("T")

_LONGEST_QUOTE: Final = 60
"""Characters of a wrong value that a message quotes: enough to recognise it, and still one line."""


class Severity(enum.StrEnum):
    """Whether a problem stops us."""

    ERROR = "error"
    """Upstream refuses it, or nothing could work with it."""
    WARNING = "warning"
    """Upstream ignores it; so do we, but not silently."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a config."""

    severity: Severity
    key: str
    """The key as upstream spells it, `Backend.Port` for nested ones; an unknown key as found; empty
    when the text as a whole is meant."""
    message: str
    """What is wrong: key, value, what was expected. A sentence without a full stop."""
    remedy: str = ""
    """What to do about it, or empty."""

    @classmethod
    def error(cls, key: str, message: str, remedy: str = "") -> Problem:
        """One that stops us."""
        return cls(Severity.ERROR, key, message, remedy)

    @classmethod
    def warning(cls, key: str, message: str, remedy: str = "") -> Problem:
        """One that does not."""
        return cls(Severity.WARNING, key, message, remedy)

    @property
    def is_error(self) -> bool:
        """Whether it stops us."""
        return self.severity is Severity.ERROR

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class Mismatch(ValueError):
    """A value is not what its field wants.

    Args:
        expected: what it wants, as a noun phrase: `a whole number`.
        remedy: what to write instead, if that can be told.
    """

    def __init__(self, expected: str, remedy: str = "") -> None:
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"expected {expected}")


def boolean(value: JsonValue) -> bool:
    """`true` or `false`, nothing that merely looks like it.

    Raises:
        Mismatch: it is something else.
    """
    if isinstance(value, bool):
        return value
    remedy = ""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        remedy = f"write {value.lower()} without quotes"
    raise Mismatch("true or false", remedy)


def integer(value: JsonValue) -> int:
    """A whole number without fraction or exponent (`24`, not `24.0`).

    Raises:
        Mismatch: it is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if -(1 << 63) <= value < 1 << 64:
            return value
        raise Mismatch("a whole number of at most 64 bits")
    remedy = ""
    if isinstance(value, str) and value.strip().isdecimal():
        remedy = f"write {value.strip()} without quotes"
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        remedy = f"write {int(value)}"
    raise Mismatch("a whole number", remedy)


def unsigned(value: JsonValue) -> int:
    """A whole number that is not negative.

    Raises:
        Mismatch: it is something else.
    """
    number = integer(value)
    if number < 0:
        raise Mismatch("a whole number that is not negative")
    return number


def string(value: JsonValue) -> str:
    """A string.

    Raises:
        Mismatch: it is something else.
    """
    if isinstance(value, str):
        return value
    scalar = isinstance(value, bool | int | float)
    raise Mismatch("a string", f'write "{show(value)}"' if scalar else "")


def show(value: object) -> str:
    """A value as it stands in JSON, shortened; containers only by their kind."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "an array"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > _LONGEST_QUOTE:
        text = text[:_LONGEST_QUOTE] + "…"
    return text


class ObjectReader:
    """Reads one JSON object, field by field.

    Args:
        members: the object: a `JsonObject`, or a plain mapping.
        path: what stands before a key in `Problem.key`: `Backend.` for the backend's object.
        intro: what stands before a message, such as `error decoding VXLAN backend config: `.
    """

    def __init__(self, members: Mapping[str, object], *, path: str = "", intro: str = "") -> None:
        if isinstance(members, JsonObject):
            self._pairs = members.pairs
        else:
            self._pairs = [(key, cast("JsonValue", value)) for key, value in members.items()]
        self._folded = [fold(key) for key, _ in self._pairs]
        self._path = path
        self._intro = intro
        self._read: set[str] = set()
        self._found: list[tuple[int, Problem]] = []
        self.given: dict[str, JsonValue] = {}
        """The last value of every field that was read and is there, by the field's name."""
        self.failed: set[str] = set()
        """Fields that have a value of the wrong kind."""

    def read(
        self, name: str, decode: Callable[[JsonValue], T], default: T, *, nullable: bool = True
    ) -> T:
        """The value of a field, or its default if it is missing, `null` or wrong.

        Args:
            name: the key in upstream's spelling.
            decode: turns JSON into the value or raises `Mismatch`.
            default: for a missing field.
            nullable: whether `null` leaves what was there before, or is wrong.
        """
        wanted = fold(name)
        self._read.add(wanted)
        result = default
        seen = ""
        for position, (key, value) in enumerate(self._pairs):
            if self._folded[position] != wanted:
                continue
            if seen:
                again = f"{name} is given more than once ({seen}, {key}), the last one counts"
                self._add(position, Severity.WARNING, name, again, "remove the others")
            seen = key
            self.given[name] = value
            if value is None and nullable:
                continue
            try:
                result = decode(value)
            except Mismatch as mismatch:
                self.failed.add(name)
                wrong = f"{name} is {show(value)}, expected {mismatch.expected}"
                remedy = "leave it out" if value is None else mismatch.remedy
                self._add(position, Severity.ERROR, name, self._intro + wrong, remedy)
        return result

    def unknown(self) -> list[str]:
        """Keys that were not read, as they stand there, without repetition."""
        return list(
            dict.fromkeys(
                key
                for (key, _), folded in zip(self._pairs, self._folded, strict=True)
                if folded not in self._read
            )
        )

    def warn_unknown(self, key: str, message: str, remedy: str) -> None:
        """Notes a warning about an unknown key at its place in the text."""
        position = next(n for n, (name, _) in enumerate(self._pairs) if name == key)
        self._add(position, Severity.WARNING, key, message, remedy)

    def problems(self) -> Sequence[Problem]:
        """Everything noted so far, in the order of the text: the order in which Go meets it."""
        return [problem for _, problem in sorted(self._found, key=lambda found: found[0])]

    def _add(self, position: int, severity: Severity, key: str, message: str, remedy: str) -> None:
        self._found.append((position, Problem(severity, self._path + key, message, remedy)))
