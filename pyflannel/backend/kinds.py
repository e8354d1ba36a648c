"""The kinds of backend that there are: ours, one file each, and those of other packages.

`BUILT_IN` is the only list of ours: `host-gw` stands for the module `pyflannel.backend.hostgw`
(dashes dropped), whose last name, `KIND`, is its `BackendKind`. Other packages announce theirs in
the entry-point group `pyflannel.backends`, each entry a `BackendKind` under its own name; ours win.

`get` imports one backend and no other, because imports are most of the daemon's start-up time. All
of them are loaded where people want to see the whole list: `--help`, messages about mistakes,
`cleanup`, documents.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from pyflannel.backend.base import Backend, BackendContext, BackendKind, require_fit
from pyflannel.core.errors import ConfigError
from pyflannel.core.kind import DEVICE_PREFIX, every

BUILT_IN: Final = ("alloc", "extension", "host-gw", "ipip", "udp", "vxlan")
"""The names that modules of this package stand for; a test holds it to what is there."""
ENTRY_POINT_GROUP: Final = "pyflannel.backends"


class EntryPoint(Protocol):
    """What another package announces; `importlib.metadata.EntryPoint` is one."""

    @property
    def name(self) -> str:
        """The kind's name."""
        ...

    @property
    def value(self) -> str:
        """Where it is: `package.module:KIND`."""
        ...

    def load(self) -> object:
        """Imports it. Raises whatever the import raises."""
        ...


def installed() -> Iterable[EntryPoint]:
    """What all installed packages announce."""
    # Late: importing it takes 20 ms, and is not needed for one of ours.
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINT_GROUP)


class BackendKinds:
    """The `Kinds` of this node; each is loaded once, when it is first asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, BackendKind] = {}

    def get(self, name: str) -> BackendKind | None:
        """As in `Kinds`."""
        if name not in self._loaded:
            kind = _built_in(name) if name in BUILT_IN else _foreign(name)
            if kind is None:
                return None
            self._loaded[name] = kind
        return self._loaded[name]

    def names(self) -> Sequence[str]:
        """As in `Kinds`; loads none of them."""
        return sorted({*BUILT_IN, *(point.name for point in installed())})

    def is_device(self, name: str, link_kind: str) -> bool:
        """As in `Kinds`. Of others' devices only one with a name like ours makes us load all."""
        return name.startswith(DEVICE_PREFIX) and (
            any(kind.is_device(name, link_kind) for kind in self._loaded.values())
            or any(kind.is_device(name, link_kind) for kind in every(self))
        )


KINDS: Final = BackendKinds()


def create(context: BackendContext, kinds: BackendKinds = KINDS) -> Backend:
    """The backend that the context's config asks for.

    Raises:
        ConfigError: there is none of this type, or it cannot work with this config on this node.
    """
    name = context.config.backend_type
    kind = kinds.get(name)
    if kind is None:
        raise ConfigError(f"unknown backend type: {name} (known are {', '.join(kinds.names())})")
    require_fit(kind, context.config, context.underlay)
    return kind.create(context)


def _built_in(name: str) -> BackendKind:
    module = importlib.import_module(f"pyflannel.backend.{name.replace('-', '')}")
    kind: BackendKind = module.KIND
    return kind


def _foreign(name: str) -> BackendKind | None:
    """The kind that another package announces.

    Raises:
        ConfigError: it cannot be imported, or is no kind of this name.
    """
    for point in installed():
        if point.name != name:
            continue
        where = f"backend {name} of another package ({point.value})"
        try:
            kind = point.load()
        except Exception as error:  # others' code, which may raise anything
            raise ConfigError(f"{where} cannot be loaded: {error!r}") from error
        if not isinstance(kind, BackendKind) or kind.name != name:
            shown = kind.name if isinstance(kind, BackendKind) else type(kind).__name__
            raise ConfigError(f"{where} cannot be used: it is {shown}, expected its BackendKind")
        return kind
    return None
