"""Which interface carries the overlay, and which addresses stand for this node on it.

The operator names interfaces (`--iface`, by name or address), patterns (`--iface-regex`) or a
destination (`--iface-can-reach`); they are tried in this order, and the first that leads to an
interface with a usable address wins. If none does, that is the end: an explicit wish never falls
back to the default route. Without any of them the interface of `--public-ip` (else `--public-ipv6`)
is taken, and without that, the default route's.

*Interface address* and *external address* are two things. The first belongs to the interface:
sockets bind to it, tunnels start there. The second is what the lease publishes, `--public-ip` if
given, and need not be on this host at all (NAT).

While the daemon runs, the choice is not made again as long as there is no need: what carries the
overlay is left only when it is gone, down or without carrier, or has lost its leased address
(`standing`). Only then is there a search (`move`), which never ends at a device of our own, or at
one that carries this node's own subnet. And what was left is gone back to when it returns.

This module matches; links, addresses and routes are looked up by `kernel.lookup`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.core.errors import InterfaceError
from pyflannel.core.ip import Family, IPAddress, SubnetKey, family_of, format_ip, parse_ip
from pyflannel.core.options import DaemonOptions
from pyflannel.gocompat.regex import compile_go
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
        return text + f"; others: {_listing(self.considered) or 'none'}"


@dataclass(frozen=True, slots=True)
class _Match:
    """An interface, and those of its addresses that the match itself settled."""

    candidate: Candidate
    reason: str
    addresses: Mapping[Family, IPAddress] = field(default_factory=dict)


def select_interface(
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
    *,
    prefer: Sequence[IPAddress] = (),
) -> Selection:
    """Chooses the external interface.

    Args:
        options: only the interface and public-address options are looked at.
        families: the enabled ones, at least one.
        around: what was looked up.
        prefer: addresses to be taken, in this order, where the chosen interface has them and no
            option settles the address.

    Raises:
        InterfaceError: nothing fits; the message says what was tried, what is there and what to do.
    """
    public = {
        Family.V4: _public(options.public_ip, Family.V4),
        Family.V6: _public(options.public_ipv6, Family.V6),
    }
    matcher = _Matcher(families, around, public[Family.V6])
    wishes = _wishes(options, matcher)
    failures: list[str] = []
    for wish, attempt in wishes:
        try:
            match = attempt()
            interface = _settle(match, families, public, prefer)
        except InterfaceError as error:
            failures.append(f"{wish}: {error}")
        else:
            return Selection(
                interface=interface,
                reason=match.reason,
                considered=_others(match.candidate, families, around),
                failures=tuple(failures),
            )
    raise InterfaceError(_nothing_fits(options, failures, around))


def standing(
    current: ExternalInterface,
    home: ExternalInterface,
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
) -> ExternalInterface | None:
    """Where the overlay stays, or goes back to; `None` if it has to move.

    Args:
        current: what carries it now.
        home: what carried it first; the same in most cases.
        options, families: as for `select_interface`.
        around: links and addresses; routes do not matter here.

    Returns:
        The one or the other with its present name, index and MTU.
    """
    for place in (home, current):
        carrier = _carrier_of(place, options, families, around)
        if carrier is not None:
            return replace(
                place,
                name=carrier.name,
                index=carrier.index,
                mtu=carrier.mtu,
                mac=carrier.mac,
            )
    return None


def _carrier_of(
    place: ExternalInterface,
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
) -> Candidate | None:
    """The interface that carries a place's addresses now.

    It is the same interface, whatever it is called now; or another one of its name (the card was
    replaced); or, if no option forbids, one that took its addresses over (a bridge or a bond made
    of it).
    """
    wanted = [ip for family in families if (ip := place.local(family)) is not None]
    able = [
        candidate
        for candidate in around.candidates
        if not candidate.trouble()
        and not candidate.ours
        and candidate.mtu > 0
        and all(candidate.carries(ip) for ip in wanted)
    ]
    able.sort(key=lambda candidate: (candidate.index != place.index, candidate.name != place.name))
    for candidate in able:
        if place.name == candidate.name or place.index == candidate.index:
            return candidate
        if not candidate.loopback and _is_allowed(candidate, wanted, options, families, around):
            return candidate
    return None


def _is_allowed(
    candidate: Candidate,
    wanted: Sequence[IPAddress],
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
) -> bool:
    """Whether the operator's options let this interface be chosen for its addresses."""
    if not (options.iface or options.iface_regex or options.iface_can_reach):
        return True
    alone = replace(around, candidates=(candidate,))
    try:
        found = select_interface(options, families, alone, prefer=wanted).interface
    except InterfaceError:
        return False
    return all(found.local(family_of(ip)) == ip for ip in wanted)


def move(
    current: ExternalInterface,
    home: ExternalInterface,
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
    own: SubnetKey | None,
) -> Selection:
    """Chooses another underlay, now that the present one cannot be used.

    Args:
        current, home, options, families: as for `standing`.
        around: all of it.
        own: the subnet of this node; an interface with an address in it belongs to the containers.

    Raises:
        InterfaceError: nothing fits; the message begins with what is wrong with the present one.
    """
    fit = [
        candidate
        for candidate in around.candidates
        if not candidate.trouble() and not candidate.ours and not candidate.carries_subnet(own)
    ]
    prefer = [
        ip
        for place in (home, current)
        for family in families
        if (ip := place.local(family)) is not None
    ]
    why = _why_left(current, families, around)
    try:
        found = select_interface(options, families, replace(around, candidates=fit), prefer=prefer)
    except InterfaceError as error:
        raise InterfaceError(f"{why}. {error}") from error
    for family in families:
        former, now = current.local(family), found.interface.local(family)
        if now is not None and now.is_link_local and not (former and former.is_link_local):
            raise InterfaceError(
                f"{why}. {found.interface.name} has no {family} address that other nodes can reach"
            )
    return found


def _why_left(current: ExternalInterface, families: Sequence[Family], around: Surroundings) -> str:
    """What is wrong with the present interface."""
    for candidate in around.candidates:
        if candidate.index == current.index:
            if trouble := candidate.trouble():
                return trouble
            lost = [
                format_ip(ip)
                for family in families
                if (ip := current.local(family)) is not None and not candidate.carries(ip)
            ]
            return f"{candidate.name} has lost its address {', '.join(lost)}"
    return f"{current.name} is gone"


class Homing:
    """How long the overlay waits before it goes back. Pure: takes the time.

    Each move is told to every node of the cluster. An interface that comes and goes (a loose cable,
    a driver that resets) would make all of them follow it, so each return within `CALM_S` of the
    one before doubles the wait for the next. The first one is at once.
    """

    FIRST_S: Final = 2.0
    LONGEST_S: Final = 64.0
    CALM_S: Final = 600.0

    def __init__(self) -> None:
        self._returned = float("-inf")
        self._wait_s = 0.0
        self._from = float("-inf")

    def left(self, now: float) -> None:
        """The first underlay had to be left."""
        if now - self._returned > self.CALM_S:
            self._wait_s = 0.0
        self._from = now + self._wait_s

    def returned(self, now: float) -> None:
        """It was gone back to."""
        self._returned = now
        self._wait_s = min(max(self._wait_s * 2, self.FIRST_S), self.LONGEST_S)

    def remaining(self, now: float) -> float:
        """Seconds until it may be gone back to; 0 if it may be now."""
        return max(0.0, self._from - now)


_Attempt = tuple[str, Callable[[], _Match]]


def _wishes(options: DaemonOptions, matcher: _Matcher) -> list[_Attempt]:
    """What to try, in order: how it was asked for, and the attempt."""
    wishes: list[_Attempt] = [
        (f"--iface {text}", partial(matcher.by_text, text, f"--iface {text}"))
        for text in options.iface
    ]
    wishes += [
        (f"--iface-regex {text}", partial(matcher.by_regex, text)) for text in options.iface_regex
    ]
    if reach := options.iface_can_reach:
        wishes.append((f"--iface-can-reach {reach}", partial(matcher.by_reach, reach)))
    if wishes:
        return wishes
    if text := options.public_ip:
        return [(f"--public-ip {text}", partial(matcher.by_text, text, f"--public-ip {text}"))]
    if text := options.public_ipv6:
        return [(f"--public-ipv6 {text}", partial(matcher.by_text, text, f"--public-ipv6 {text}"))]
    return [("default route", matcher.by_default_route)]


def _public(text: str, family: Family) -> IPAddress | None:
    if not text:
        return None
    flag = "--public-ip" if family is Family.V4 else "--public-ipv6"
    try:
        address = parse_ip(text)
    except ValueError as error:
        raise InterfaceError(f"{flag}: {error}") from error
    if family_of(address) is not family:
        raise InterfaceError(f"{flag}: {text!r} is not an {family} address")
    return address


class _Matcher:
    """The rules by which an option leads to an interface."""

    def __init__(
        self, families: Sequence[Family], around: Surroundings, public_ipv6: IPAddress | None
    ) -> None:
        self._families = tuple(families)
        self._around = around
        self._public_ipv6 = public_ipv6

    @property
    def _is_dual(self) -> bool:
        return len(self._families) > 1

    def by_text(self, text: str, reason: str) -> _Match:
        """`--iface`: an address, else a name."""
        try:
            ip = parse_ip(text)
        except ValueError:
            return self._by_name(text, reason)
        if self._is_dual:
            return self._by_ip_dual(ip, reason)
        if family_of(ip) is not self._families[0]:
            raise InterfaceError(
                f"{family_of(ip)} is not enabled in the network config; "
                f"give an {self._families[0]} address or a name"
            )
        return _Match(self._carrier(ip), reason, {family_of(ip): ip})

    def _by_name(self, name: str, reason: str) -> _Match:
        for candidate in self._around.candidates:
            if candidate.name == name:
                return _Match(candidate, reason)
        raise InterfaceError("there is no such interface")

    def _by_ip_dual(self, ip: IPAddress, reason: str) -> _Match:
        """In dual stack one address names the interface, and `--public-ipv6` must agree."""
        if family_of(ip) is Family.V6 and self._public_ipv6 is None:
            raise InterfaceError(
                "in dual stack an IPv6 address needs --public-ipv6 beside it; "
                "give the IPv4 address or the name of the interface"
            )
        candidate = self._carrier(ip)
        addresses = {family_of(ip): ip}
        if self._public_ipv6 is not None:
            other = self._carrier(self._public_ipv6)
            if other.index != candidate.index:
                raise InterfaceError(
                    f"{format_ip(ip)} is on {candidate.name}, "
                    f"but --public-ipv6 {format_ip(self._public_ipv6)} is on {other.name}"
                )
            addresses.setdefault(Family.V6, self._public_ipv6)
        return _Match(candidate, reason, addresses)

    def _carrier(self, ip: IPAddress) -> Candidate:
        for candidate in self._around.candidates:
            if candidate.carries(ip):
                return candidate
        raise InterfaceError(f"no interface has the address {format_ip(ip)}")

    def by_regex(self, text: str) -> _Match:
        """`--iface-regex`: the addresses of all interfaces first, then their names."""
        try:
            pattern = compile_go(text)
        except ValueError as error:
            raise InterfaceError(f"not a regular expression: {error}") from error
        # `flannel0` is made to match `flannel.*`, or the address of the subnet it has.
        candidates = [c for c in self._around.candidates if not c.ours]
        for candidate in candidates:
            matched = self._matching_addresses(candidate, pattern)
            if len(matched) == len(self._families):
                shown = " and ".join(format_ip(ip) for ip in matched.values())
                return _Match(candidate, f"--iface-regex {text}, matching {shown}", matched)
        for candidate in candidates:
            if pattern.search(candidate.name):
                return _Match(candidate, f"--iface-regex {text}, matching the name")
        kinds = " and ".join(str(family) for family in self._families)
        raise InterfaceError(f"matches no interface's {kinds} address, and no name")

    def _matching_addresses(
        self, candidate: Candidate, pattern: re.Pattern[str]
    ) -> dict[Family, IPAddress]:
        """The best matching address of each family; nothing of it counts for another interface.

        (Upstream remembers an IPv4 match of an interface that fails on IPv6, and may combine it
        with another interface found by name.)
        """
        found: dict[Family, IPAddress] = {}
        for family in self._families:
            for ip in candidate.usable(family):
                if pattern.search(format_ip(ip)):
                    found[family] = ip
                    break
        return found

    def by_reach(self, text: str) -> _Match:
        """`--iface-can-reach`: the interface and source address that the kernel would use."""
        try:
            target = parse_ip(text)
        except ValueError as error:
            raise InterfaceError(str(error)) from error
        route = self._around.reach
        if route is None:
            raise InterfaceError("there is no route to it")
        candidate = self._by_index(route, "the route to it")
        if candidate.loopback:
            raise InterfaceError("this is an address of this node itself; name one beyond it")
        addresses: dict[Family, IPAddress] = {}
        if route.source is not None and not route.source.is_unspecified:
            addresses[family_of(route.source)] = route.source
        return _Match(candidate, f"--iface-can-reach {format_ip(target)}", addresses)

    def by_default_route(self) -> _Match:
        """Nothing was said: the default route, of both families if both are enabled."""
        found: list[Candidate] = []
        for family in self._families:
            # One through a device that cannot be taken counts as little as one that is not there.
            there = {c.index for c in self._around.candidates if not c.ours}
            routes = self._around.default_routes.get(family, ())
            route = next((r for r in routes if r.index is None or r.index in there), None)
            if route is None:
                raise InterfaceError(f"unable to find an {family} default route")
            found.append(self._by_index(route, "default route"))
        if any(candidate.index != found[0].index for candidate in found):
            names = " and ".join(
                f"{candidate.name} for {family}"
                for candidate, family in zip(found, self._families, strict=True)
            )
            raise InterfaceError(f"the default routes lead through different interfaces: {names}")
        return _Match(found[0], "default route")

    def _by_index(self, route: RouteFound, what: str) -> Candidate:
        if route.index is None:
            raise InterfaceError(
                f"found {what} but could not determine interface: it has several next hops"
            )
        for candidate in self._around.candidates:
            if candidate.index == route.index:
                return candidate
        raise InterfaceError(f"the interface of {what} (index {route.index}) has vanished")


def _settle(
    match: _Match,
    families: Sequence[Family],
    public: Mapping[Family, IPAddress | None],
    prefer: Sequence[IPAddress],
) -> ExternalInterface:
    """The matched interface with its addresses filled in."""
    candidate = match.candidate
    if candidate.ours:
        raise InterfaceError(
            f"{candidate.name} is a device of flannel's own, which leads into the overlay and "
            "cannot carry it; name the interface that leads to the other nodes"
        )
    local: dict[Family, IPAddress] = {}
    for family in families:
        address = match.addresses.get(family)
        if address is None:
            address = candidate.best(family, prefer)
            if address is None:
                raise InterfaceError(f"{candidate.name} has no usable {family} address")
        local[family] = address
    if candidate.mtu == 0:
        raise InterfaceError(f"failed to determine MTU for {candidate.name} interface: it is 0")
    address4, address6 = local.get(Family.V4), local.get(Family.V6)
    public4 = public[Family.V4] or address4
    public6 = public[Family.V6] or address6
    return ExternalInterface(
        name=candidate.name,
        index=candidate.index,
        mtu=candidate.mtu,
        address=address4 if isinstance(address4, IPv4Address) else None,
        address6=address6 if isinstance(address6, IPv6Address) else None,
        public_ip=public4 if isinstance(public4, IPv4Address) else None,
        public_ipv6=public6 if isinstance(public6, IPv6Address) else None,
        mac=candidate.mac,
    )


def _others(chosen: Candidate, families: Sequence[Family], around: Surroundings) -> tuple[str, ...]:
    return tuple(
        candidate.describe()
        for candidate in around.candidates
        if candidate.index != chosen.index and any(candidate.usable(f) for f in families)
    )


def _nothing_fits(options: DaemonOptions, failures: Sequence[str], around: Surroundings) -> str:
    asked = bool(options.iface or options.iface_regex or options.iface_can_reach)
    if asked:
        text = (
            "Failed to find interface to use that matches the interfaces and/or regexes provided: "
        )
        way_out = "correct --iface, --iface-regex or --iface-can-reach"
    else:
        text = "Failed to find any valid interface to use: "
        way_out = "name one with --iface"
        if options.public_ip or options.public_ipv6:
            way_out += " if the public address is not on this host (NAT)"
    # Those with an address first: they are what can be chosen.
    there = sorted(around.candidates, key=lambda candidate: not candidate.addresses)
    listed = _listing([candidate.describe() for candidate in there]) or "none"
    return f"{text}{'; '.join(failures)}. Interfaces here: {listed}. Way out: {way_out}"


def _listing(items: Sequence[str]) -> str:
    more = len(items) - MOST_LISTED
    text = ", ".join(items[:MOST_LISTED])
    return f"{text} and {more} more" if more > 0 else text
