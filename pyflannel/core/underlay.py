"""An interface that may carry the overlay, the one that does, and what was looked up to choose it.

*Interface address* and *external address* are two things. The first belongs to the interface:
sockets bind to it, tunnels start there. The second is what the lease publishes, `--public-ip` if
given, and need not be on this host at all (NAT).

`matching.py` chooses, `moving.py` says when the choice is made again; links, addresses and routes
are looked up by `kernel.lookup`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.core.ip import Family, IPAddress, SubnetKey, family_of, format_ip
from pyflannel.records import dataclass

MOST_LISTED: Final = 20
"""So many interfaces are listed in a message; a node that runs containers has hundreds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalInterface:
    """The chosen underlay interface."""

    name: str
    index: int
    mtu: int
    address: IPv4Address | None = None
    """Interface address: what sockets bind to and tunnels use as their source."""
    address6: IPv6Address | None = None
    public_ip: IPv4Address | None = None
    """External address: what the lease publishes; the interface address unless `--public-ip`."""
    public_ipv6: IPv6Address | None = None
    mac: str = field(default="", compare=False)
    """Link-layer address, lower-case `aa:bb:…`, empty if there is none. Not compared: the overlay
    does not depend on it, only the neighbours do."""

    def local(self, family: Family) -> IPAddress | None:
        """The interface address of one family."""
        return self.address if family is Family.V4 else self.address6

    def public(self, family: Family) -> IPAddress | None:
        """The published address of one family."""
        return self.public_ip if family is Family.V4 else self.public_ipv6


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateAddress:
    """An address on an interface, with what the choice depends on."""

    ip: IPAddress
    permanent: bool = True
    """Configured by hand, not by DHCP or a router advertisement."""
    temporary: bool = False
    """An IPv6 privacy address."""
    deprecated: bool = False
    """Not to be used for anything new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An interface of this node."""

    name: str
    index: int
    mtu: int
    up: bool = True
    """Administratively up."""
    running: bool = True
    """The link is operational: it has a carrier, or needs none."""
    loopback: bool = False
    ours: bool = False
    """A device of flannel's own: packets of the overlay lead into it, they cannot leave by it."""
    mac: str = ""
    addresses: tuple[CandidateAddress, ...] = ()
    """In the kernel's order."""

    def usable(self, family: Family) -> tuple[IPAddress, ...]:
        """The addresses of one family that may stand for this node, the best one first.

        Global before link-local, permanent before dynamic, public before temporary, and the
        kernel's order where these are equal. Deprecated ones, loopback and multicast never.
        """
        fit = [
            address
            for address in self.addresses
            if family_of(address.ip) is family
            and not address.deprecated
            and (_is_global_unicast(address.ip) or address.ip.is_link_local)
        ]
        fit.sort(key=lambda a: (not _is_global_unicast(a.ip), not a.permanent, a.temporary))
        return tuple(address.ip for address in fit)

    def best(self, family: Family, prefer: Sequence[IPAddress] = ()) -> IPAddress | None:
        """The address of one family that is to stand for this node; `None` if none can.

        One of those preferred, if it is here, even a deprecated one: it is in use. Else the first
        usable one. A link-local address comes last: other nodes cannot send to it without naming an
        interface, so a deprecated global one is better than that.
        """
        here = {address.ip for address in self.addresses}
        for ip in prefer:
            if family_of(ip) is family and ip in here:
                return ip
        usable = self.usable(family)
        if usable and not usable[0].is_link_local:
            return usable[0]
        for address in self.addresses:
            if family_of(address.ip) is family and _is_global_unicast(address.ip):
                return address.ip
        return usable[0] if usable else None

    def carries_subnet(self, subnet: SubnetKey | None) -> bool:
        """Whether an address of a subnet is on this interface, as on docker's bridge."""
        return subnet is not None and any(
            (network := subnet.subnet(family_of(address.ip))) is not None and address.ip in network
            for address in self.addresses
        )

    def trouble(self) -> str:
        """Why nothing passes through this interface now; empty if nothing is known against it."""
        if not self.up:
            return f"{self.name} is down"
        return "" if self.running else f"{self.name} has no carrier"

    def carries(self, ip: IPAddress) -> bool:
        """Whether the address is on this interface."""
        return any(address.ip == ip for address in self.addresses)

    def describe(self) -> str:
        """`eth0 (192.0.2.1, mtu 1500)`, for messages."""
        parts = [format_ip(address.ip) for address in self.addresses] or ["no address"]
        parts.append(f"mtu {self.mtu}")
        if not self.up:
            parts.append("down")
        elif not self.running:
            parts.append("no carrier")
        return f"{self.name} ({', '.join(parts)})"


def _is_global_unicast(ip: IPAddress) -> bool:
    """Global unicast as Go means it: RFC 1918 and ULA included, loopback and link-local not."""
    return not (
        ip.is_unspecified
        or ip.is_loopback
        or ip.is_multicast
        or ip.is_link_local
        or ip == IPv4Address("255.255.255.255")
    )


@dataclass(frozen=True, slots=True)
class RouteFound:
    """Where a route leads."""

    index: int | None
    """ifindex; `None` when the route has several next hops and so no interface of its own."""
    source: IPAddress | None = None
    """The preferred source address that the kernel would use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What was looked up: all that the choice is made from."""

    candidates: Sequence[Candidate]
    """In the order of their index."""
    default_routes: Mapping[Family, Sequence[RouteFound]] = field(default_factory=dict)
    """The default routes of each family, the best metric first; not needed if an option says
    more."""
    reach: RouteFound | None = None
    """The route to `--iface-can-reach`, if that is given and there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The choice, and how it came about."""

    interface: ExternalInterface
    reason: str
    """Why this one: the option that led to it, or the default route."""
    considered: tuple[str, ...] = ()
    """The other interfaces that have a usable address."""
    failures: tuple[str, ...] = ()
    """Options that came first and led to nothing, each with the reason."""

    def describe(self) -> str:
        """One line: which, why, and instead of what."""
        chosen = self.interface
        addresses = [format_ip(a) for a in (chosen.address, chosen.address6) if a is not None]
        text = f"{chosen.name} ({', '.join(addresses)}, mtu {chosen.mtu}) by {self.reason}"
        public = [
            format_ip(theirs)
            for family in Family
            if (theirs := chosen.public(family)) is not None and theirs != chosen.local(family)
        ]
        if public:
            text += f"; published as {', '.join(public)}"
        if self.failures:
            text += f"; in vain: {'; '.join(self.failures)}"
        return text + f"; others: {listing(self.considered) or 'none'}"


def listing(items: Sequence[str]) -> str:
    """Them, or the first of them and how many more there are."""
    more = len(items) - MOST_LISTED
    text = ", ".join(items[:MOST_LISTED])
    return f"{text} and {more} more" if more > 0 else text
