"""What a kind of backend is, as values: its settings, what it fits, what it leaves on a node.

A *kind* is what the network config names in `Backend.Type`: `vxlan`, `udp`. All that can be said of
one without running it is its `Kind`, which the backend's own file declares; all others (the
parser of the network config, the daemon, `config check`, `--help`, `cleanup`, the lab, the tables
in the documents) asks a registry of them, `Kinds`.

The settings of a kind are a frozen dataclass of `setting`s (`settings.py`).

`Kind.fits` is the one answer to "can this config work, here?". `config check` asks it without an
interface, the daemon with the one it has chosen, when it starts and whenever that one changes.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError
from pyflannel.core.fields import ObjectReader, Problem, string
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.settings import Settings
from pyflannel.core.underlay import ExternalInterface
from pyflannel.gocompat.json import fold
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

MAX_PORT: Final = 0xFFFF
MAX_DEVICE_NAME: Final = 15
"""`IFNAMSIZ` (16) without the closing zero byte."""

DEVICE_PREFIX: Final = "flannel"
"""What the names of all devices start with, upstream's as well: others' are told by a look."""

OWN_VNI: Final = "give each daemon on this node a VNI, or a backend, of its own"
"""The way out where two daemons want one device."""

UNSUPPORTED: Final = ("ipsec", "tencent-vpc", "wireguard")
"""Types that flannel v0.28 has and pyflannel has not."""
REMOVED: Final = ("ali-vpc", "aws-vpc", "gce")
"""Types that flannel itself had until v0.20.0."""

_SWITCH_OFF: Final = {
    Family.V4: "set EnableIPv4 to false",
    Family.V6: "leave EnableIPv6 out",
}
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class DevicePattern:
    """How devices of a kind are told from others', by a daemon that does not remember them."""

    name: str
    """A regular expression for the whole name."""
    link_kind: str
    """As the kernel calls it: `vxlan`, `tun`. A device that only has the name is not ours."""
    goes_along: bool = False
    """It goes when another one goes, so that `cleanup` need not name it."""

    def matches(self, name: str, link_kind: str) -> bool:
        """Whether a device is one of these."""
        return link_kind == self.link_kind and re.fullmatch(self.name, name) is not None


@dataclass(frozen=True, slots=True)
class StateFile:
    """A file in the state directory."""

    name: str
    members: frozenset[str]
    """It is a JSON object with at least these. One without is not ours, and `cleanup` leaves it."""


class Probed(enum.StrEnum):
    """What of a peer the probes ask; see `pyflannel.probe.targets`."""

    TUNNEL = "tunnel"
    """The first address of its subnet, which its overlay device has, and the node beside it."""
    NODE = "node"
    """The node at its public address: there is no tunnel."""
    NOTHING = "nothing"
    """Its packets are not our business."""


def no_device(config: NetworkConfig) -> Mapping[Family, str]:
    """For kinds that have none."""
    del config
    return {}


def no_data(settings: object, family: Family, subnet: IPNetwork) -> str | None:
    """For kinds whose peers need no more than an address."""
    del settings, family, subnet
    return None


def suits_all(config: NetworkConfig, external: ExternalInterface | None) -> Iterable[Problem]:
    """For kinds that need nothing."""
    del config, external
    return ()


# The library's, for classes of other packages may derive from it.
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)  # noqa: TID251
class Kind:
    """What can be said about a kind of backend without running one."""

    name: str
    """Canonical: lower case, digits, single dashes."""
    summary: str
    """How it carries packets, one line without a full stop."""
    settings: type[Settings] = Settings
    families: tuple[Family, ...] = (Family.V4, Family.V6)
    """Those that it can give pods."""
    overhead: Mapping[Family, int]
    """Bytes it adds to a packet, by the family of the underlay."""
    moves_packets: bool = True
    """Whether its packets are our business; not so with alloc and extension."""
    probed: Probed = Probed.NOTHING
    """What of a peer is asked whether it answers."""
    route_per_peer: bool = True
    """Whether each peer has a route of its own in the kernel, or one serves the whole network."""
    devices: tuple[DevicePattern, ...] = ()
    """All that it may have made, with whatever settings. `cleanup` removes them, and none of them
    carries an overlay. Names start with `DEVICE_PREFIX`."""
    module: str = ""
    """The kernel module that they come from; empty if there are none, or any kernel has it."""
    device_names: Callable[[NetworkConfig], Mapping[Family, str]] = no_device
    """The overlay's device of each enabled family with a given config; no entry where packets leave
    through the external interface."""
    state_files: tuple[StateFile, ...] = ()
    """What it keeps in the state directory."""
    suits: Callable[[NetworkConfig, ExternalInterface | None], Iterable[Problem]] = suits_all
    """What `fits` must know of this kind beyond its families. With `None` for the interface: what
    no interface could mend. A key is empty if the problem is the machine's."""
    lease_type: str | None = None
    """`BackendType` of its leases; by default its name. udp's and alloc's carry none."""
    derive_data: Callable[[Any, Family, IPNetwork], str | None] = no_data
    """`BackendData` of a lease whose node cannot publish any, so that all nodes compute the same:
    from the settings, a family and the lease's subnet of that family. `None` if peers need none."""
    title: str | None = None
    """What upstream's errors call it, if not its name in capitals."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            wanted = "lower case, digits, single dashes"
            raise ValueError(f"{self.name!r} is not a backend name ({wanted})")
        if not all(pattern.name.startswith(DEVICE_PREFIX) for pattern in self.devices):
            raise ValueError(f"backend {self.name}: a device's name starts with {DEVICE_PREFIX}")
        if not self.families:
            raise ValueError(f"backend {self.name} carries no family")

    def is_device(self, name: str, link_kind: str) -> bool:
        """Whether a device on this node was made by this kind of backend."""
        return any(pattern.matches(name, link_kind) for pattern in self.devices)

    def leaves(self, name: str, link_kind: str) -> bool:
        """Whether a device on this node is one that `cleanup` has to remove."""
        return any(p.matches(name, link_kind) and not p.goes_along for p in self.devices)

    def fits(
        self,
        config: NetworkConfig,
        external: ExternalInterface | None = None,
        *,
        kinds: Kinds | None = None,
    ) -> tuple[Problem, ...]:
        """What is in the way of this kind of backend with this config, on this interface.

        Args:
            config: with settings of this kind. It may have errors of its own, and then defaults
                in their places.
            external: `None` asks for what is wrong whatever the interface.
            kinds: where remedies find kinds that would do; without, they name none.

        Returns:
            Errors if it cannot work, warnings if it can and is not what was probably meant. Those
            without an interface are among those with one.
        """
        return (*self._families(config, kinds), *self.suits(config, external))

    def _families(self, config: NetworkConfig, kinds: Kinds | None) -> Iterator[Problem]:
        missing = [family for family in config.families if family not in self.families]
        if not missing:
            return
        both = _carrying_both(kinds) if kinds is not None else ()
        (mine,) = self.families
        message = f"backend {self.name} carries {mine} only"
        if missing == list(config.families):
            use = f"use {' or '.join(both)}, or " if both else ""
            text = f"{message}, and {mine} is not enabled"
            yield Problem.error("Backend.Type", text, f"{use}enable {mine}")
            return
        for family in missing:
            carry = f"{' and '.join(both)} carry both; or " if both else ""
            text = f"{message}: pods get {family} subnets but no way out"
            yield Problem.warning(f"Enable{family}", text, carry + _SWITCH_OFF[family])


class Kinds(Protocol):
    """All kinds of backend that this node has."""

    def get(self, name: str) -> Kind | None:
        """The kind of this (canonical) name.

        Raises:
            ConfigError: there is one, and it cannot be loaded.
        """
        ...

    def names(self) -> Sequence[str]:
        """All names that `get` knows, sorted."""
        ...

    def is_device(self, name: str, link_kind: str) -> bool:
        """Whether a device was made by a backend, of whatever kind."""
        ...


def every(kinds: Kinds) -> Iterator[Kind]:
    """All kinds that can be loaded; loads them, which takes longer than loading one."""
    for name in kinds.names():
        try:
            kind = kinds.get(name)
        except ConfigError:
            continue
        if kind is not None:
            yield kind


def _carrying_both(kinds: Kinds) -> tuple[str, ...]:
    both = [kind for kind in every(kinds) if kind.moves_packets and len(kind.families) > 1]
    # Tunnels first: plain routes need an underlay of one link.
    return tuple(kind.name for kind in sorted(both, key=lambda kind: not kind.devices))


# Reading `Backend`.


def unknown_type(name: str, kinds: Kinds) -> Problem:
    """The error for a backend type that we do not have, `name` as the operator wrote it."""
    names = kinds.names()
    known = ", ".join(names)
    key = "Backend.Type"
    canonical = name.lower()
    if canonical in UNSUPPORTED:
        message = f"backend type {canonical}: known to flannel but not supported by pyflannel"
        return Problem.error(key, message, f"use one of {known}")
    message = f"unknown backend type: {name}"
    if canonical in REMOVED:
        message += " (flannel removed it in v0.20.0)"
    elif not name:
        message += "(Backend is given without a Type)"
    guess = did_you_mean(name, (*names, *UNSUPPORTED)) if name else None
    remedy = f"known types: {known}"
    return Problem.error(key, message, f"did you mean {guess}? {remedy}" if guess else remedy)


def decode(
    kind: Kind, members: Mapping[str, object], kinds: Kinds, *, outside: Sequence[str] = ()
) -> tuple[Settings | None, tuple[Problem, ...]]:
    """The settings of one backend, and what is wrong with them.

    Args:
        kind: what `Type` says.
        members: the `Backend` object, `Type` included or not.
        kinds: asked whose an unknown key is.
        outside: keys that stand beside `Backend`, not in it.

    Returns:
        The settings, `None` if there is an error among the problems.
    """
    # The extension backend's is empty: upstream says "error decoding backend config".
    title = kind.name.upper() if kind.title is None else kind.title
    intro = (
        f"error decoding {title} backend config: " if title else "error decoding backend config: "
    )
    reader = ObjectReader(members, path="Backend.", intro=intro)
    reader.read("Type", string, kind.name)
    settings, checks = kind.settings.read(reader)
    for key in reader.unknown():
        reader.warn_unknown(key, *_about_unknown(key, kind, kinds, outside))
    problems = (*reader.problems(), *checks)
    return (None if any(problem.is_error for problem in problems) else settings), problems


def _about_unknown(key: str, kind: Kind, kinds: Kinds, outside: Sequence[str]) -> tuple[str, str]:
    """What is said about a key that the kind does not read, and what may have been meant."""
    mine = ("Type", *kind.settings.keys())
    ignored = f"Backend.{key} is ignored"
    if fold(key) in map(fold, outside):
        return f"{ignored}: it stands outside Backend", "move it to the top level"
    if fold(key) == "backendtype":
        return f"{ignored}: the key is called Type", "did you mean Type?"
    for unused, reason in kind.settings.UNUSED.items():
        if fold(key) == fold(unused):
            return f"{ignored}: {reason}", "remove it"
    others = [other.name for other in every(kinds) if fold(key) in map(fold, other.settings.keys())]
    if others:
        message = f"{ignored}: backend {kind.name} does not use it, {', '.join(others)} does"
        return message, "remove it, or change Type"
    message = f"{ignored}: backend {kind.name} has no such key"
    guess = did_you_mean(key, mine)
    return message, f"did you mean {guess}?" if guess else f"it knows {', '.join(mine)}"
