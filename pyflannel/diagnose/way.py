"""The path of one packet between two pods through this node. Values in, values out.

Hop by hop: the incoming device, the chains, the route, the tunnel's entries, and the same for the
outer packet. Each hop names the kernel object that decides there. The path ends where that object
drops the packet or is missing, and at the edge of this node, after which the other node decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum
from typing import Final

from pyflannel.core.ip import IPAddress
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.filter import Hook, Packet, bases, drops
from pyflannel.records import dataclass


class Outcome(StrEnum):
    """What happens to the packet at a hop."""

    PASSES = "passes"
    MAY_END = "may end"
    ENDS = "ends"
    LEAVES = "leaves"
    """This node has done its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One place on the path."""

    place: str
    """`docker0`, `forward`, `route`, `FDB`."""
    decides: str
    """The kernel's object, in the words of its own tool."""
    outcome: Outcome = Outcome.PASSES
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What the kernel answers to `ip route get`."""

    text: str = ""
    """The route, in iproute2's words."""
    device: str = ""
    gateway: str = ""
    error: str = ""
    """Why there is no route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFacts:
    """The facts along the path."""

    node: NodeFacts
    source: IPAddress
    destination: IPAddress
    source_here: bool
    """Whether the source is in this node's subnet; the same of the destination."""
    destination_here: bool
    peer_public: IPAddress | None = None
    """Public address of the peer that has the other end."""
    peer_trouble: str = ""
    """Why this node has no route to the peer, as the daemon reports."""
    own_public: IPAddress | None = None
    protocol: str = "icmp"
    dport: int | None = None
    bridge: str = ""
    tunnel: str = ""
    underlay: str = ""
    outer: str = ""
    """`udp`, `ipip`; empty where there is no tunnel."""
    outer_port: int | None = None
    datapath: str = ""
    """Of backend udp."""
    inner: Lookup = field(default_factory=Lookup)
    outer_route: Lookup = field(default_factory=Lookup)
    neighbours: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """MACs by device and address; an entry without a MAC is empty."""
    fdb: Mapping[str, str] = field(default_factory=dict)
    """Public addresses by MAC, of the tunnel's device."""
    forwards: bool | None = None
    """Whether the kernel forwards packets of this family."""


_ENDS: Final = frozenset({Outcome.ENDS, Outcome.LEAVES})


def way(facts: WayFacts) -> list[Hop]:
    """Every hop, up to the one where it ends."""
    found: list[Hop] = []
    for hop in _hops(facts):
        found.append(hop)
        if hop.outcome in _ENDS:
            break
    return found


def _hops(facts: WayFacts) -> Iterator[Hop]:
    if facts.source_here and facts.destination_here:
        yield from _within(facts)
    elif facts.source_here:
        yield from _outwards(facts)
    elif facts.destination_here:
        yield from _inwards(facts)
    else:
        yield Hop(
            place="this node",
            decides="its lease",
            outcome=Outcome.ENDS,
            text="neither of the two is a pod of this node; ask on one of theirs",
        )


def _within(facts: WayFacts) -> Iterator[Hop]:
    yield from _device(facts, facts.bridge, "the pods' bridge")
    yield Hop(
        place=facts.bridge,
        decides=f"bridge fdb show br {facts.bridge}",
        outcome=Outcome.LEAVES,
        text="both pods are behind this bridge; only br_netfilter can interfere",
    )


def _outwards(facts: WayFacts) -> Iterator[Hop]:
    inner = _packet(facts)
    yield from _device(facts, facts.bridge, "the pods' bridge")
    yield from _chains(facts, Hook.PREROUTING, replace(inner, iif=facts.bridge, oif=""))
    yield from _forwarding(facts)
    if facts.peer_trouble:
        yield Hop(
            place="route",
            decides="pyflanneld",
            outcome=Outcome.ENDS,
            text=f"this node has no route to that peer: {facts.peer_trouble}",
        )
    yield from _route(facts.inner, f"ip route get {facts.destination} iif {facts.bridge}")
    out = facts.inner.device
    if facts.tunnel and out not in {facts.tunnel, facts.underlay}:
        yield Hop(
            place="route",
            decides=facts.inner.text,
            outcome=Outcome.MAY_END,
            text=f"it leaves by {out}, which is not the overlay's device {facts.tunnel}",
        )
    through = replace(inner, iif=facts.bridge, oif=out)
    yield from _chains(facts, Hook.FORWARD, through)
    yield from _chains(facts, Hook.POSTROUTING, through)
    if facts.outer and out == facts.tunnel:
        yield from _device(facts, facts.tunnel, "the overlay's device")
        yield from _encapsulation(facts)
        wrapped = _outer(facts, outwards=True)
        yield from _route(facts.outer_route, f"ip route get {facts.peer_public}")
        wrapped = replace(wrapped, iif="", oif=facts.outer_route.device or facts.underlay)
        yield from _chains(facts, Hook.OUTPUT, wrapped, "outer ")
        yield from _chains(facts, Hook.POSTROUTING, wrapped, "outer ")
    yield from _gateway(facts)


def _inwards(facts: WayFacts) -> Iterator[Hop]:
    yield from _device(facts, facts.underlay, "the external interface")
    came_by = facts.tunnel or facts.underlay
    if facts.outer:
        wrapped = replace(_outer(facts, outwards=False), iif=facts.underlay, oif="")
        yield from _chains(facts, Hook.PREROUTING, wrapped, "outer ")
        yield from _chains(facts, Hook.INPUT, wrapped, "outer ")
        yield from _device(facts, facts.tunnel, "the overlay's device")
    inner = replace(_packet(facts), iif=came_by)
    yield from _chains(facts, Hook.PREROUTING, replace(inner, oif=""))
    yield from _forwarding(facts)
    asked = f"ip route get {facts.destination} from {facts.source} iif {came_by}"
    yield from _route(facts.inner, asked)
    if facts.inner.device and facts.inner.device != facts.bridge:
        yield Hop(
            place="route",
            decides=facts.inner.text,
            outcome=Outcome.MAY_END,
            text=f"it uses {facts.inner.device}, and the pods are behind {facts.bridge or '?'}",
        )
    through = replace(inner, oif=facts.inner.device)
    yield from _chains(facts, Hook.FORWARD, through)
    yield from _chains(facts, Hook.POSTROUTING, through)
    yield from _device(facts, facts.inner.device, "the pods' bridge")
    mac = facts.neighbours.get((facts.inner.device, str(facts.destination)))
    yield Hop(
        place="neighbour",
        decides=f"ip neigh show {facts.destination} dev {facts.inner.device}",
        outcome=Outcome.MAY_END if mac == "" else Outcome.LEAVES,
        text="the pod does not answer ARP: there may be none"
        if mac == ""
        else f"handed to {mac or 'the pod, which is asked for its MAC then'}; it decides from here",
    )


def _packet(facts: WayFacts) -> Packet:
    icmp = "icmp" if facts.source.version == 4 else "ipv6-icmp"
    return Packet(
        source=facts.source,
        destination=facts.destination,
        protocol=icmp if facts.protocol == "icmp" else facts.protocol,
        dport=facts.dport,
        to_us=False,
        from_us=False,
        returns=True,
    )


def _outer(facts: WayFacts, *, outwards: bool) -> Packet:
    ends = (facts.own_public, facts.peer_public)
    source, destination = ends if outwards else ends[::-1]
    return Packet(
        source=source,
        destination=destination,
        protocol=facts.outer,
        dport=facts.outer_port,
        to_us=not outwards,
        from_us=outwards,
        returns=True,
    )


def _device(facts: WayFacts, name: str, what: str) -> Iterator[Hop]:
    links = facts.node.links
    if not name:
        yield Hop(
            place="device",
            decides="ip address",
            outcome=Outcome.ENDS,
            text=f"this node has no such device: {what}",
        )
    elif links is not None and (name not in links or not links[name].up):
        state = "missing" if name not in links else "down"
        yield Hop(
            place=name,
            decides=f"ip link show {name}",
            outcome=Outcome.ENDS,
            text=f"{what} is {state}",
        )
    else:
        yield Hop(place=name, decides=f"ip link show {name}", text=f"{what}, up")


def _chains(facts: WayFacts, hook: Hook, packet: Packet, prefix: str = "") -> Iterator[Hop]:
    """The chains of one hook: the rule that drops the packet, one that may, or none."""
    place = f"{prefix}{hook}"
    met = [
        f"{table.name} {chain.name}"
        for chain, table in bases(facts.node.tables, hook, packet.version)
    ]
    found = drops(facts.node.tables, hook, packet)
    for drop in found:
        yield Hop(
            place=place,
            decides=drop.rule,
            outcome=Outcome.ENDS if drop.certain else Outcome.MAY_END,
            text="dropped here" if drop.certain else "dropped here, if the rule's match holds",
        )
    if not found:
        chains = f"{len(met)} chain{'s' * (len(met) != 1)}: " + ", ".join(met)
        yield Hop(place=place, decides=chains if met else "no chain", text="no rule drops it")


def _forwarding(facts: WayFacts) -> Iterator[Hop]:
    name = "net.ipv4.ip_forward" if facts.source.version == 4 else "net.ipv6.conf.all.forwarding"
    if facts.forwards is False:
        yield Hop(
            place="forwarding",
            decides=f"{name} = 0",
            outcome=Outcome.ENDS,
            text="the kernel does not forward packets",
        )
    elif facts.forwards:
        yield Hop(place="forwarding", decides=f"{name} = 1")


def _route(lookup: Lookup, asked: str) -> Iterator[Hop]:
    if lookup.error:
        yield Hop(
            place="route",
            decides=asked,
            outcome=Outcome.ENDS,
            text=_WHY.get(lookup.error, f"the kernel has none: {lookup.error}"),
        )
    else:
        yield Hop(place="route", decides=lookup.text or asked)


_WHY: Final = {
    "Invalid cross-device link": "rp_filter drops it: the way back to its source leads by another "
    "device",
    "Invalid argument": "the kernel takes no such packet here: rp_filter drops it, if the way back "
    "to its source leads by another device; or its source is an address of this node",
    "Network is unreachable": "no route leads there",
    "No route to host": "a route says that it cannot be reached",
}
"""Answers of the kernel: EXDEV of fib_validate_source, or since Linux 6.14 EINVAL for all that it
refuses; ENETUNREACH, EHOSTUNREACH."""


def _encapsulation(facts: WayFacts) -> Iterator[Hop]:
    """The hops in which the tunnel's device finds the peer's public address."""
    gateway = facts.inner.gateway or str(facts.destination)
    if facts.datapath:
        yield Hop(
            place=facts.tunnel,
            decides=f"data path {facts.datapath}",
            text=f"wrapped for {facts.peer_public} by its lease",
        )
        return
    if facts.outer == "ipip":
        yield Hop(place=facts.tunnel, decides=facts.inner.text, text=f"wrapped for {gateway}")
        return
    mac = facts.neighbours.get((facts.tunnel, gateway), "")
    asked = f"ip neigh show {gateway} dev {facts.tunnel}"
    if not mac:
        yield Hop(
            place="neighbour",
            decides=asked,
            outcome=Outcome.ENDS,
            text="there is no entry with a MAC, so there is no destination",
        )
        return
    yield Hop(place="neighbour", decides=asked, text=f"MAC {mac}")
    there = facts.fdb.get(mac, "")
    asked = f"bridge fdb show dev {facts.tunnel} | grep {mac}"
    if not there:
        yield Hop(
            place="FDB", decides=asked, outcome=Outcome.ENDS, text="no entry tells where it is"
        )
        return
    wrong = facts.peer_public is not None and there != str(facts.peer_public)
    yield Hop(
        place="FDB",
        decides=asked,
        outcome=Outcome.MAY_END if wrong else Outcome.PASSES,
        text=f"sent to {there}"
        + (f", but the peer's lease says {facts.peer_public}" if wrong else ""),
    )


def _gateway(facts: WayFacts) -> Iterator[Hop]:
    """The last hop: the neighbour on the underlay."""
    last = facts.outer_route if facts.outer and facts.inner.device == facts.tunnel else facts.inner
    next_hop = last.gateway or str(facts.peer_public or facts.destination)
    mac = facts.neighbours.get((last.device, next_hop))
    outer = f", {facts.outer} port {facts.outer_port}" if facts.outer_port else ""
    if mac == "":
        yield Hop(
            place="neighbour",
            decides=f"ip neigh show {next_hop} dev {last.device}",
            outcome=Outcome.ENDS,
            text=f"{next_hop} does not answer on {last.device}",
        )
        return
    yield Hop(
        place=last.device or "device",
        decides=f"ip neigh show {next_hop} dev {last.device}",
        outcome=Outcome.LEAVES,
        text=f"leaves this node for {facts.peer_public or next_hop}{outer}; from here on the "
        "underlay and the peer decide",
    )


def ends(hops: Sequence[Hop]) -> Hop | None:
    """Where the packet ends on this node; `None` if it does not."""
    return next((hop for hop in hops if hop.outcome is Outcome.ENDS), None)
