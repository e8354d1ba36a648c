"""The settings of a kind of backend: a frozen dataclass, and what each of its fields declares.

Each field declares with `setting` what it is called in JSON, how it is read, its default, what it
does and what it may be. Reading, writing with all defaults filled in, the guesses at misspelt keys
and the tables for people come from that one declaration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, fields
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from pyflannel.core.fields import Mismatch, ObjectReader, Problem, show
from pyflannel.gocompat.json import JsonValue
from pyflannel.records import dataclass

T = TypeVar("T")

_SETTING: Final = "pyflannel.setting"


@dataclass(frozen=True, slots=True)
class Range:
    """The whole numbers that a setting may be."""

    low: int | None
    """`None`: whatever is too low is dealt with elsewhere."""
    high: int
    wanted: str
    """In words, for messages and tables: `a UDP port, 1 to 65535`."""
    remedy: str
    """What to do about another one."""
    also: int | None = None
    """A number outside that is right as well; it means "not given"."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int) or value == self.also:
            return True
        return (self.low is None or self.low <= value) and value <= self.high


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """What a field of the settings declares."""

    key: str
    """In upstream's spelling; read in any case."""
    decode: Callable[[JsonValue], T]
    """Turns JSON into the value or raises `Mismatch`."""
    default: T
    effect: str
    """What it does, one line without a full stop."""
    range: Range | None = None
    together: bool = False
    """Whether nodes with different values are cut off from each other."""

    @property
    def wanted(self) -> str:
        """What it may be, in words: `true or false`."""
        if self.range is not None:
            return self.range.wanted
        try:
            self.decode(None)  # which no field takes: it says what it would
        except Mismatch as mismatch:
            return mismatch.expected
        return "anything"


def setting(
    key: str,
    decode: Callable[[JsonValue], T],
    *,
    default: T,
    effect: str,
    within: Range | None = None,
    together: bool = False,
) -> T:
    """Declares a field of a `Settings` dataclass; the arguments are those of `Setting`."""
    declared = Setting(key, decode, default, effect, within, together)
    return field(default=default, metadata={_SETTING: declared})


# The library's, for classes of other packages may derive from it.
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)  # noqa: TID251
class Settings:
    """The members of `Backend` beside `Type`, as one kind reads them.

    A kind with settings derives a dataclass from it (frozen, keyword-only) whose fields are made by
    `setting`; one without uses this class as it is.
    """

    RUNS_COMMANDS: ClassVar[bool] = False
    """Whether the values are commands that a node would run, so that it has to agree (`trust`)."""
    UNUSED: ClassVar[Mapping[str, str]] = {}
    """Keys that people write and that have no effect, each with the reason."""

    def problems(self) -> Iterable[Problem]:
        """What is wrong or odd with the values, beyond their ranges. Keys start with `Backend.`."""
        return ()

    def settled(self) -> Self:
        """The values as they are used: where upstream silently takes another one, that one."""
        return self

    def tunnel_port(self) -> int | None:
        """The UDP port at which all nodes take packets of the overlay; `None` if they have none."""
        return None

    def minds_checksums(self) -> bool:
        """Whether the backend wants to know where checksums are lost (`probe.checksums`)."""
        return False

    @classmethod
    def declared(cls) -> Mapping[str, Setting[object]]:
        """What the fields declare, by their names, in order."""
        return {each.name: each.metadata[_SETTING] for each in fields(cls)}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys it reads beside `Type`."""
        return tuple(each.key for each in cls.declared().values())

    @classmethod
    def read(cls, reader: ObjectReader) -> tuple[Self, tuple[Problem, ...]]:
        """The settings in an object, and what is wrong with values of the right JSON type.

        Those of the wrong type the reader has noted itself, and they are at their defaults.
        """
        declared = cls.declared()
        given: dict[str, Any] = {
            name: reader.read(each.key, each.decode, each.default)
            for name, each in declared.items()
        }
        raw = cls(**given)
        found = [*_outside(declared, given), *raw.problems()]
        failed = {f"Backend.{key}" for key in reader.failed}
        return raw.settled(), tuple(problem for problem in found if problem.key not in failed)

    def encode(self) -> dict[str, object]:
        """The members that say the same with nothing left to defaults."""
        return {each.key: getattr(self, name) for name, each in self.declared().items()}


def _outside(
    declared: Mapping[str, Setting[object]], given: Mapping[str, object]
) -> Iterator[Problem]:
    for name, each in declared.items():
        value, within = given[name], each.range
        if within is not None and value not in within:
            message = f"{each.key} is {show(value)}, expected {within.wanted}"
            yield Problem.error(f"Backend.{each.key}", message, within.remedy)
