"""Which interface carries the overlay, and which addresses stand for this node on it.

The operator names interfaces (`--iface`, by name or address), patterns (`--iface-regex`) or a
destination (`--iface-can-reach`); they are tried in this order, and the first that leads to an
interface with a usable address wins. If none does, that is the end: an explicit wish never falls
back to the default route. Without any of them the interface of `--public-ip` (else `--public-ipv6`)
is taken, and without that, the default route's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from pyflannel.core.errors import InterfaceError
from pyflannel.core.ip import Family, IPAddress, family_of, format_ip, parse_ip
from pyflannel.core.options import DaemonOptions
from pyflannel.core.underlay import (
    Candidate,
    ExternalInterface,
    RouteFound,
    Selection,
    Surroundings,
    listing,
)
from pyflannel.gocompat.regex import compile_go
from pyflannel.records import dataclass


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
    listed = listing([candidate.describe() for candidate in there]) or "none"
    return f"{text}{'; '.join(failures)}. Interfaces here: {listed}. Way out: {way_out}"
