"""Flags that are declared where their values live: as fields of a dataclass of options.

A field made by `option` is a flag with the field's name, `-` for `_`, behind the prefix of its
class. Parsing, usage text, man pages and completion take the table that `flags_of` makes; `read`
makes the options from what was parsed, and `written` the flags' values from options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, field, fields, replace
from typing import Any, Final, NamedTuple, TypeVar

from pyflannel.gocompat.flags import Flag, Flags, Kind, Mode, Value

T = TypeVar("T")

_FLAG: Final = "flag"
_KINDS: Final[Mapping[type, Kind]] = {
    str: Kind.STRING,
    bool: Kind.BOOL,
    int: Kind.INT,
    tuple: Kind.LIST,
}


class _Declared(NamedTuple):
    name: str
    """As given; empty for the field's own."""
    template: Flag
    commas: bool
    convert: Callable[[Any], Any] | None


def option(
    default: T,
    text: str,
    *,
    name: str = "",
    commas: bool = False,
    kind: Kind | None = None,
    mode: Mode = Mode.BOTH,
    ours: bool = False,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    urls: bool = False,
    convert: Callable[[T], T] | None = None,
) -> T:
    """Declares a field of options that is a flag.

    Args:
        default: of both; its type says what the flag takes.
        text: what it does, without a full stop at the end.
        name: the flag's, where it is not the field's.
        commas: a tuple that is given as one text, split at commas.
        kind: what the flag takes, where the default does not say it.
        mode: as in `Flag`, and so are the next four.
        ours: whether upstream has no such flag.
        choices: see there.
        secret: see there; the field is not shown either.
        urls: see there.
        convert: makes the option of what the flag says.
    """
    usual = Kind.STRING if commas else _KINDS[type(default)]
    template = Flag(
        name=name,
        kind=kind or usual,
        default=_as_text(default) if commas else _value(default),
        help=text,
        since="pyflannel" if ours else "flannel",
        mode=mode,
        choices=choices,
        secret=secret,
        urls=urls,
    )
    declared = _Declared(name, template, commas, convert)
    return field(default=default, repr=not secret, metadata={_FLAG: declared})


def flags_of(options: type, prefix: str = "") -> tuple[Flag, ...]:
    """The flags that a class of options declares, in its order.

    Args:
        options: the class.
        prefix: what the names of its flags begin with, but for those that have a name given.
    """
    return tuple(_flag(each, declared, prefix) for each, declared in _declared(options))


def read(options: type, flags: Flags, prefix: str = "") -> dict[str, Any]:
    """The fields' values from parsed flags, to build the options with."""
    found: dict[str, Any] = {}
    for each, declared in _declared(options):
        value: Any = flags.values[_name(each, declared, prefix)]
        if declared.commas:
            value = tuple(value.split(",")) if value else ()
        found[each.name] = declared.convert(value) if declared.convert is not None else value
    return found


def written(options: object, prefix: str = "") -> dict[str, Value]:
    """The options by the names of their flags."""
    return {
        _name(each, declared, prefix): _as_text(value) if declared.commas else _value(value)
        for each, declared in _declared(type(options))
        for value in (getattr(options, each.name),)
    }


def _declared(options: type) -> Iterator[tuple[Field[Any], _Declared]]:
    for each in fields(options):
        declared = each.metadata.get(_FLAG)
        if declared is not None:
            yield each, declared


def _flag(each: Field[Any], declared: _Declared, prefix: str) -> Flag:
    return replace(declared.template, name=_name(each, declared, prefix))


def _name(each: Field[Any], declared: _Declared, prefix: str) -> str:
    return declared.name or prefix + each.name.replace("_", "-")


def _as_text(words: Any) -> str:  # noqa: ANN401 - a tuple of words, of whatever option it is
    return ",".join(words)


def _value(value: Any) -> Value:  # noqa: ANN401 - checked against the kinds of flags
    if not isinstance(value, str | bool | int | tuple):
        raise TypeError(f"no flag takes {value!r}")
    return value
