"""What a backend wants in the kernel, as values and pure functions.

A `Plan` is all that the engine knows of a backend: its devices, its objects, how it recognises
them. It never acts and never looks anything up; what it may look at is handed to it in a `View`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from typing import Protocol

from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.lease import Lease
from pyflannel.kernel.base import (
    Address,
    Delete,
    FdbEntry,
    IPInterface,
    Link,
    LinkSpec,
    Neighbour,
    Operation,
    Route,
    Set,
)
from pyflannel.records import dataclass

TableEntry = Route | Neighbour | FdbEntry
"""What plans name: everything but addresses, which belong to their device."""


@dataclass(frozen=True, slots=True)
class Table:
    """A kernel table (or the part of one on a device) that a plan keeps objects in."""

    kind: type[TableEntry]
    family: Family | None = None
    """Family of routes and neighbours; `None` for the FDB, which has none."""
    device: str = ""
    """Name of the plan's device, for neighbours and the FDB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that must exist, and how it must be. What is `None` or empty is left alone."""

    name: str
    create: LinkSpec | None = None
    """How to create it through netlink."""
    open: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)
    """How to create it otherwise, if `create` is `None`: a TUN device appears by opening it."""
    mismatch: Callable[[Link], str] = field(default=lambda _link: "", compare=False)
    """Pure: which difference makes an existing link unusable, so that it is deleted and created
    anew; empty if none. Raises `FlannelError` if the link must not be touched either."""
    mtu: int | None = None
    mac: str | None = None
    txqlen: int | None = None
    tx_checksum: bool | None = None
    """Whether it takes packets without a checksum, see `Netlink.tx_checksum`."""
    up: bool = True
    """Whether to bring it up; `False` leaves it as it is."""
    addresses: tuple[IPInterface, ...] = ()
    """At most one per family. Of a family without an entry no address is added or removed."""
    networks: tuple[IPNetwork, ...] = ()
    """The cluster networks: other addresses inside them are removed, the rest is foreign."""
    sysctls: tuple[tuple[str, str], ...] = ()
    """`("net/ipv6/conf/flannel.1/accept_ra", "0")`, kept at this value; failures ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a plan may look at when it computes objects."""

    underlay: Link | None = None
    """The external interface as it is now; `None` while it is missing."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """The plan's devices by name; one that could not be made is missing."""
    paths: Mapping[IPAddress, Route | None] = field(default_factory=dict)
    """Answers to `Plan.destinations`; `None` = unreachable."""
    strangers: Mapping[int, Mapping[str, Neighbour]] = field(default_factory=dict)
    """By ifindex of the plan's devices and by MAC: permanent neighbours that are not ours, so those
    of another daemon with this device."""


@dataclass(frozen=True, slots=True)
class PeerObjects:
    """What one peer needs in the kernel, and what is wrong with its lease, if anything."""

    objects: tuple[TableEntry, ...] = ()
    problem: str = ""
    """Why the peer is ignored, or a family of it; logged once, shown in the status."""


class Plan(Protocol):
    """What a backend wants, as pure functions. Immutable; a change of mind is another plan."""

    @property
    def underlay(self) -> str:
        """Name of the external interface."""
        ...

    @property
    def own(self) -> SubnetKey | None:
        """Our own subnet; `None` before there is a lease."""
        ...

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """The cluster network of each family that the backend carries."""
        ...

    @property
    def follows_routes(self) -> bool:
        """Whether `destinations` may name any, so that every route of others may matter."""
        ...

    def devices(self, underlay: Link | None) -> Sequence[Device]:
        """The devices to keep; those that need the underlay may be left out without it."""
        ...

    def tables(self) -> Sequence[Table]:
        """Every table that the functions below name objects of."""
        ...

    def node_objects(self, view: View) -> Sequence[TableEntry]:
        """What this node needs however many peers there are."""
        ...

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """What a peer needs. Never raises; devices missing from the view mean fewer objects."""
        ...

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """Underlay addresses whose path `peer_objects` wants to find in the view."""
        ...

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """Whether an object that is not wanted (any more) is one of ours and may be deleted.

        Args:
            thing: from a listing of one of `tables()`.
            view: as it is now.
            startup: this is about leftovers of an earlier run. On tables that we share with others
                it is the only time to claim what we did not put there.
        """
        ...

    def concerns(self, dst: IPNetwork) -> bool:
        """Whether a change of a route to `dst` may be a change of one of ours."""
        ...


def shared_devices(view: View, networks: Sequence[IPNetwork]) -> dict[str, str]:
    """The devices that another daemon keeps as well, each with what shows it."""
    where = ", ".join(map(str, networks))
    found: dict[str, str] = {}
    for link in view.links.values():
        strangers = view.strangers.get(link.index)
        if strangers:
            first = min(strangers.values(), key=lambda neighbour: int(neighbour.ip))
            found[link.name] = (
                f"{len(strangers)} of its permanent neighbours are not in {where}, "
                f"such as {first.ip} ({first.mac})"
            )
    return found


def address_operations(device: Device, index: int, present: Sequence[Address]) -> list[Operation]:
    """What must happen to the addresses of a device: ours added, those in its way removed.

    Another address inside the cluster network is a former one of ours and goes; an address outside
    is another program's and stays. One exception: in IPv6 an address that a router advertised goes,
    since no host in the overlay may configure this node. Ours is added before others are removed: a
    device that loses its last address loses its routes.
    """
    there = {address.interface for address in present}
    adds: list[Operation] = [
        Set(Address(index=index, interface=wanted))
        for wanted in device.addresses
        if wanted not in there
    ]
    deletes: list[Operation] = [
        Delete(address) for address in present if _in_the_way(device, address)
    ]
    return adds + deletes


def _in_the_way(device: Device, address: Address) -> bool:
    theirs = address.interface
    ours = [wanted for wanted in device.addresses if wanted.version == theirs.version]
    if not ours or theirs in ours:
        return False
    advertised = theirs.version == 6 and not address.permanent and not theirs.ip.is_link_local
    return advertised or any(theirs.ip in network for network in device.networks)
