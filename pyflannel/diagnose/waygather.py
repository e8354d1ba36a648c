"""Gathers what `diagnose.way` judges. Reads only, and this network namespace alone."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final

from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.core.ip import IPAddress, family_of
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.way import Lookup, WayFacts
from pyflannel.kernel import process
from pyflannel.kernel.base import Netlink
from pyflannel.kernel.sysctl import read_sysctl
from pyflannel.report.model import NodeReport, PeerReport

CHILD_S: Final = 5.0


async def gather_way(
    netlink: Netlink,
    node: NodeFacts,
    report: NodeReport,
    source: IPAddress,
    destination: IPAddress,
    *,
    protocol: str = "icmp",
    dport: int | None = None,
) -> WayFacts:
    """The facts that decide about a packet from one address to another.

    Args:
        netlink: of this network namespace.
        node: as `diagnose.gather` gives it.
        report: what the daemon says of itself.
        source: of the packet; a pod.
        destination: the same.
        protocol: `icmp`, `tcp` or `udp`.
        dport: of TCP or UDP.
    """
    facts = _known(node, report, source, destination)
    facts = replace(facts, protocol=protocol, dport=dport, bridge=await _bridge(netlink, report))
    came_by = facts.bridge if facts.source_here else facts.tunnel or facts.underlay
    inner = await lookup(destination, source, came_by)
    outer = Lookup()
    if facts.peer_public is not None and facts.outer and facts.source_here:
        outer = await lookup(facts.peer_public)
    neighbours: dict[tuple[str, str], str] = {}
    fdb: dict[str, str] = {}
    families = {family_of(source)}
    if facts.peer_public is not None:
        families.add(family_of(facts.peer_public))
    for link in await netlink.links():
        if link.name in {inner.device, outer.device, facts.tunnel}:
            for family in families:
                for each in await netlink.neighbours(link.index, family):
                    neighbours[link.name, str(each.ip)] = each.mac
        if link.name == facts.tunnel and facts.outer == "udp" and not facts.datapath:
            fdb = {each.mac: str(each.dst) for each in await netlink.fdb(link.index)}
    return replace(
        facts,
        inner=inner,
        outer_route=outer,
        neighbours=neighbours,
        fdb=fdb,
        forwards=_forwards(source),
    )


def _known(
    node: NodeFacts, report: NodeReport, source: IPAddress, destination: IPAddress
) -> WayFacts:
    """The daemon's report about the two ends."""
    source_here, destination_here = (
        _in(address, _own(report)) for address in (source, destination)
    )
    other = destination if source_here else source
    peer = next((each for each in report.peers if _in(other, _subnets(each))), None)
    six = source.version == 6
    underlay, network = report.underlay, report.network
    tunnel = ""
    if network is not None:
        named = [name for name in network.devices if ("v6" in name) == six]
        tunnel = named[0] if named else ""
    path = network.datapath if network is not None else None
    backend = network.backend if network is not None else ""
    own = (underlay.address6 if six else underlay.address) if underlay is not None else None
    public = (peer.public_ipv6 if six else peer.public_ip) if peer is not None else None
    return WayFacts(
        node=node,
        source=source,
        destination=destination,
        source_here=source_here,
        destination_here=destination_here,
        peer_public=ip_address(public) if public else None,
        peer_trouble=peer.reason
        if peer is not None and peer.state in {"ignored", "failing"}
        else "",
        own_public=ip_address(own) if own else None,
        tunnel=tunnel,
        underlay=underlay.interface if underlay is not None else "",
        outer={"vxlan": "udp", "udp": "udp", "ipip": "ipip"}.get(backend, ""),
        outer_port=node.port,
        datapath=path.name or "" if path is not None else "",
    )


def _own(report: NodeReport) -> tuple[str, ...]:
    lease = report.lease
    found = (lease.subnet, lease.ipv6_subnet) if lease is not None else ()
    return tuple(filter(None, found))


def _subnets(peer: PeerReport) -> tuple[str, ...]:
    return tuple(filter(None, (peer.subnet, peer.ipv6_subnet)))


def _in(address: IPAddress, subnets: tuple[str, ...]) -> bool:
    return any(
        address in network
        for network in map(ip_network, subnets)
        if network.version == address.version
    )


async def _bridge(netlink: Netlink, report: NodeReport) -> str:
    """The device with an address in the leased subnet that is not the overlay's own."""
    devices = report.network.devices if report.network is not None else {}
    names = {link.index: link.name for link in await netlink.links()}
    for each in await netlink.addresses():
        name = names.get(each.index, "")
        if name and name not in devices and _in(each.interface.ip, _own(report)):
            return name
    return ""


async def lookup(destination: IPAddress, source: IPAddress | None = None, iif: str = "") -> Lookup:
    """The kernel's own answer, policy rules and rp_filter included."""
    words = ["ip", "-j", "route", "get", str(destination)]
    if source is not None and iif:
        words += ["from", str(source), "iif", iif]
    try:
        done = await process.run(words, timeout_s=CHILD_S)
    except CommandError as error:
        return Lookup(error=str(error))
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        return Lookup(
            error=said.rpartition("RTNETLINK answers: ")[2] or f"ip(8): {done.returncode}"
        )
    try:
        found = json.loads(done.stdout)[0]
    except (ValueError, LookupError):
        return Lookup(error="ip(8) does not answer in JSON")
    device, gateway = str(found.get("dev", "")), str(found.get("gateway", ""))
    text = f"{found.get('dst', destination)}"
    text += f" via {gateway}" if gateway else ""
    return Lookup(text=f"{text} dev {device}", device=device, gateway=gateway)


def _forwards(address: IPAddress) -> bool | None:
    name = "net.ipv4.ip_forward" if address.version == 4 else "net.ipv6.conf.all.forwarding"
    try:
        return read_sysctl(name) != "0"
    except FlannelError:
        return None
