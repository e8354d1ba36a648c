"""Which packet path to use: the fastest that works here, or the one that was asked for.

Each implementation is a module with two names: `probe()`, which answers with its `Capabilities` or
with the reason why it cannot be used on this machine, and a class that takes a `DatapathConfig`.
A module is imported only when it is tried: the fast ones may be missing from an installation, and
importing one costs time.

`auto` passes over an implementation that cannot be used here, or that would not be faster here
(`advice.py`). The reason that it returns says so, and the caller logs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from pyflannel.core.errors import DatapathError
from pyflannel.datapath.advice import objection
from pyflannel.datapath.base import Capabilities, Datapath, DatapathConfig, Link
from pyflannel.kernel.limits import linux_version
from pyflannel.records import dataclass

AUTO: Final = "auto"
ANY_LINK: Final = Link()
"""An ordinary network card."""


class Factory(Protocol):
    """Makes data paths of one kind."""

    @property
    def capabilities(self) -> Capabilities:
        """What the probe found; `wants_vnet_hdr` must be known before the TUN is opened."""
        ...

    def __call__(self, config: DatapathConfig) -> Datapath:
        """A new data path, not started.

        Raises:
            DatapathError: if the implementation turns out to be unusable after all.
        """
        ...


class Choice(NamedTuple):
    """What was chosen, and why."""

    factory: Factory
    reason: str
    """For the log and `status`: `asked for`, and what is slow with it; or why nothing faster."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """Where an implementation lives, and the advice for a machine on which it cannot be used."""

    module: str
    class_name: str
    way_out: str

    def probe(self) -> Capabilities | str:
        """Its capabilities, or why it cannot be used here."""
        try:
            module = import_module(self.module)
        except ImportError as error:
            return f"it is not installed: {error}"
        probe: Callable[[], Capabilities | str] | None = getattr(module, "probe", None)
        if probe is None or not hasattr(module, self.class_name):
            return "it is not part of this installation"
        try:
            return probe()
        except (DatapathError, OSError) as error:
            return str(error)

    def make(self, config: DatapathConfig) -> Datapath:
        """A new data path of this kind."""
        factory: Callable[[DatapathConfig], Datapath] = getattr(
            import_module(self.module), self.class_name
        )
        return factory(config)


IMPLEMENTATIONS: Final[Mapping[str, Implementation]] = {
    "ebpf": Implementation(
        "pyflannel.datapath.ebpf",
        "EbpfDatapath",
        "it needs Linux 5.10 with CONFIG_BPF_SYSCALL, tcx (CONFIG_NET_XGRESS) or tc's clsact and "
        "bpf (modules sch_ingress and cls_bpf), and CAP_BPF with CAP_NET_ADMIN",
    ),
    "native": Implementation(
        "pyflannel.datapath.native",
        "NativeDatapath",
        "install a wheel that contains it, or a C compiler and build with "
        "PYFLANNEL_REQUIRE_NATIVE=1",
    ),
    "python": Implementation("pyflannel.datapath.python", "PythonDatapath", ""),
}
"""All implementations, the fastest first: the order in which `auto` asks them."""


@dataclass(frozen=True, slots=True)
class _Factory:
    implementation: Implementation
    capabilities: Capabilities

    def __call__(self, config: DatapathConfig) -> Datapath:
        return self.implementation.make(config)


def probe_all(
    implementations: Mapping[str, Implementation] = IMPLEMENTATIONS,
) -> dict[str, Capabilities | str]:
    """What each implementation says about this machine, for reports."""
    return {kind: implementation.probe() for kind, implementation in implementations.items()}


def create(
    kind: str,
    implementations: Mapping[str, Implementation] = IMPLEMENTATIONS,
    *,
    failed: Mapping[str, str] = MappingProxyType({}),
    link: Link = ANY_LINK,
) -> Choice:
    """The data path of the kind asked for, or the fastest that can be used.

    Args:
        kind: `auto`, or a key of `IMPLEMENTATIONS`.
        implementations: fastest first; tests give their own.
        failed: kinds that `auto` passes over although their probe succeeds, each with the reason:
            their `start` has just raised, or they turned out to be slow.
        link: the external interface.

    Returns:
        Factory and reason. `auto` stops at the first that works, and asks no slower one.

    Raises:
        DatapathError: naming what is missing and the way out, if the kind that was asked for cannot
            be used here, or if there is no such kind.
    """
    if kind == AUTO:
        passed_over: list[str] = []
        for name, implementation in implementations.items():
            found = failed.get(name) or implementation.probe()
            if not isinstance(found, str):
                against = objection(found, linux=linux_version(), link=link)
                if not against:
                    reason = "; ".join(passed_over) or "the fastest there is"
                    return Choice(_Factory(implementation, found), reason)
                found = against
            passed_over.append(f"not {name}: {found}")
        raise DatapathError(f"no data path can be used here: {'; '.join(passed_over)}")
    asked = implementations.get(kind)
    if asked is None:
        known = ", ".join((AUTO, *implementations))
        raise DatapathError(f"there is no data path {kind!r}; choose one of: {known}")
    found = asked.probe()
    if isinstance(found, str):
        hint = f"{asked.way_out}; or" if asked.way_out else "or"
        raise DatapathError(
            f"data path {kind} cannot be used here: {found} ({hint} use --datapath {AUTO})"
        )
    against = objection(found, linux=linux_version(), link=link)
    reason = f"asked for, though {against}" if against else "asked for"
    return Choice(_Factory(asked, found), reason)
