"""`dataclass` as the product uses it: frozen for the type checker, and quick to build.

A daemon builds 140 classes of records before it has its subnet. For each frozen one the library
compiles six methods, 0.4 ms, which is a sixth of the CPU of a start, and an instance's fields are
assigned by way of `object.__setattr__`. Here `frozen=True` is held by mypy, which reads all of the
product, and not once more by each instance; and one `repr` serves all. So a class takes half the
time, and an instance a third (`bench/micro`). Equality, hashes, `replace`, `fields`, `asdict` and
the text of `repr` are the library's.

A frozen class of the library can only be derived from another one. So a base of classes in other
people's packages is made by the library, and what is derived from that here is as well.

For the type checker this name is the library's decorator itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
            has_text = "__repr__" in cls.__dict__
            # A frozen class of the library can be hashed; one that brings its own keeps it.
            hashed = frozen and eq and "__hash__" not in cls.__dict__
            made = dataclasses.dataclass(eq=eq, repr=False, unsafe_hash=hashed, **others)(cls)
            if not has_text:
                made.__repr__ = _text
            return made

        return decorate


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
