"""Backends by name, loaded when asked for.

A backend is one module whose class is marked `@register("ip-foo")`. `create("ip-foo", context)`
imports `pyflannel.backend.ipfoo` (lower case, dashes dropped) and no other backend, because imports
are most of the daemon's start-up time. Packages outside ours announce theirs in the entry-point
group `pyflannel.backends`; ours win over theirs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final, TypeVar

from pyflannel.backend.base import Backend, BackendContext
from pyflannel.core.errors import ConfigError

BackendFactory = Callable[[BackendContext], Backend]
F = TypeVar("F", bound=BackendFactory)

BUILT_IN: Final = ("alloc", "extension", "host-gw", "ipip", "udp", "vxlan")
"""The names that modules of this package stand for; a test holds it to what is there."""
ENTRY_POINT_GROUP: Final = "pyflannel.backends"

_REGISTRY: Final[dict[str, BackendFactory]] = {}
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def register(name: str) -> Callable[[F], F]:
    """Marks a class (or function) that makes the backend `name` from a `BackendContext`.

    Raises:
        ValueError: if the name is taken by another, or is not lower case with dashes.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a backend name (lower case, digits, single dashes)")

    def mark(factory: F) -> F:
        taken = _REGISTRY.setdefault(name, factory)
        if taken is not factory:
            raise ValueError(f"backend {name!r} is registered twice: {taken!r} and {factory!r}")
        return factory

    return mark


def create(name: str, context: BackendContext) -> Backend:
    """The backend of this name; upper and lower case are the same, as in upstream's config.

    Raises:
        ConfigError: `unknown backend type: …` with the names that are known; or what the backend
            itself finds wrong in its part of the config.
    """
    wanted = name.lower()
    factory = _REGISTRY.get(wanted) or _load(wanted)
    if factory is None:
        known = ", ".join(known_names())
        raise ConfigError(f"unknown backend type: {name} (known are {known})")
    return factory(context)


def known_names() -> list[str]:
    """All names that `create` understands, sorted."""
    names = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(names | set(BUILT_IN) | set(_REGISTRY))


def _load(name: str) -> BackendFactory | None:
    if not _NAME.fullmatch(name):
        return None
    if name in BUILT_IN:
        importlib.import_module(f"pyflannel.backend.{name.replace('-', '')}")
        return _REGISTRY[name]
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        loaded: BackendFactory = point.load()
        return _REGISTRY.setdefault(name, loaded)
    return None
