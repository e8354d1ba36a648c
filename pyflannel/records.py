"""`dataclass` as the product uses it: frozen for the type checker, and quick to build.

A daemon builds 140 classes of records before it has its subnet. For each frozen one the library
compiles six methods, 0.4 ms, which is a sixth of the CPU of a start, and an instance's fields are
assigned by way of `object.__setattr__`. Here `frozen=True` is held by mypy, which reads all of the
product, and not once more by each instance; one `repr` serves all, and comparing and hashing are
left to an `attrgetter`. So a class takes less than half the time, an instance a third, and a
comparison half as much again (`bench/micro`). What is equal, `replace`, `fields`, `asdict` and the
text of `repr` are the library's.

A frozen class of the library can only be derived from another one. So a base of classes in other
people's packages is made by the library, and what is derived from that here is as well.

For the type checker this name is the library's decorator itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass

    from _typeshed import DataclassInstance
else:

    def dataclass(
        *, frozen: bool = False, eq: bool = True, **others: bool
    ) -> Callable[[type], type]:
        """As `dataclasses.dataclass`; an instance is not kept from being changed."""

        def decorate(cls: type) -> type:
            if any(_is_frozen(base) for base in cls.__mro__[1:]):
                return dataclasses.dataclass(frozen=frozen, eq=eq, **others)(cls)
            own = frozenset(cls.__dict__)
            ordered = others.get("order", False)  # the library orders only what it compares
            made = dataclasses.dataclass(eq=ordered, repr=False, **others)(cls)
            if "__repr__" not in own:
                made.__repr__ = _text
            if eq:
                equal, number = _comparison(made)
                if "__eq__" not in own:
                    made.__eq__ = equal
                if "__hash__" not in own:
                    # As in the library: what can be changed cannot be hashed.
                    made.__hash__ = number if frozen else None
            return made

        return decorate


def _comparison(cls: type) -> tuple[Callable[[object, object], object], Callable[[object], int]]:
    """`__eq__` and `__hash__` of a class, over the fields that count."""
    names = [each.name for each in dataclasses.fields(cls) if each.compare]
    values = attrgetter(*names) if names else _nothing

    def equal(self: object, other: object) -> object:
        return (
            values(self) == values(other) if self.__class__ is other.__class__ else NotImplemented
        )

    def number(self: object) -> int:
        return hash(values(self))

    return equal, number


def _nothing(_self: object) -> tuple[()]:
    return ()


def _is_frozen(cls: type) -> bool:
    params = cls.__dict__.get("__dataclass_params__")
    return params is not None and params.frozen


def _text(self: DataclassInstance) -> str:
    """The library's: `Name(field=value, ...)`, without what a field says not to show."""
    shown = (
        f"{each.name}={getattr(self, each.name)!r}"
        for each in dataclasses.fields(self)
        if each.repr
    )
    return f"{type(self).__qualname__}({', '.join(shown)})"
