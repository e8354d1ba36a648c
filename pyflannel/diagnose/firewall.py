"""The doctor's checks of every firewall chain: would it let the overlay's packets pass?

Both IP versions that the overlay carries, both ways, the first packet of a connection; and the
packets between the nodes that carry them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Final

from pyflannel.core.ip import IPNetwork
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.filter import Drop, Hook, Packet, drops, masked, translated
from pyflannel.diagnose.finding import (
    BOTH_FIREWALLS,
    FORWARD_POLICY,
    OUTER_MASKED,
    OVERLAY_DROPPED,
    PODS_MASKED,
    UNDERLAY_DROPPED,
    Finding,
)
from pyflannel.report.model import NodeReport, PeerReport, Severity

MOST_PEERS: Final = 16
"""Whose packets are tried on the firewall. Rules seldom tell one peer from another."""
VERSIONS: Final = (4, 6)


def dropped_overlay(facts: NodeFacts) -> Iterator[Finding]:
    """Packets between containers here and on other nodes, on their way through this node."""
    told: set[str] = set()
    for version in VERSIONS:
        yield from _overlay(facts, version, told)


def _overlay(facts: NodeFacts, version: int, told: set[str]) -> Iterator[Finding]:
    network, subnet = facts.network_of(version), facts.subnet_of(version)
    tunnel, bridge = facts.tunnel_of(version), facts.bridge_of(version)
    if network is None or subnet is None or tunnel is None:
        return
    ours = subnet[min(2, subnet.num_addresses - 1)]
    ping = "icmp" if version == 4 else "ipv6-icmp"
    for there in _overlay_peers(facts, network, subnet):
        theirs = there[min(2, there.num_addresses - 1)]
        packets = [
            Packet(
                source=source,
                destination=destination,
                iif=iif,
                oif=oif,
                protocol=p,
                dport=port,
                to_us=False,
                from_us=False,
                # Peers' subnets are programmed, so the route back uses the tunnel.
                returns=True,
            )
            for source, destination, iif, oif in (
                (theirs, ours, tunnel, bridge),
                (ours, theirs, bridge, tunnel),
            )
            for p, port in ((ping, None), ("tcp", 80))
        ]
        for packet in packets:
            rule = masked(facts.tables, packet) if packet.oif == tunnel else ""
            if rule and rule not in told:
                told.add(rule)
                yield _masked_pods(rule, packet)
            for drop in _on_the_way(
                facts, (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING), packet
            ):
                if drop.rule not in told:
                    told.add(drop.rule)
                    yield _dropped_overlay(drop, packet, network, may=_is_bypassed(facts))


def dropped_underlay(facts: NodeFacts) -> Iterator[Finding]:
    """Packets between the nodes that carry the overlay's, in and out."""
    told: set[str] = set()
    for version in VERSIONS:
        yield from _underlay(facts, version, told)


def _underlay(facts: NodeFacts, version: int, told: set[str]) -> Iterator[Finding]:
    report = facts.report
    if report is None or report.network is None or report.underlay is None:
        return
    carrier, port = facts.carrier
    device = report.underlay.interface
    own = report.underlay.address if version == 4 else report.underlay.address6
    if not carrier or own is None:
        return
    here = ip_address(own)
    for peer in _some_peers(report, version):
        public = peer.public_ip if version == 4 else peer.public_ipv6
        there = ip_address(public) if public is not None else None
        inwards = Packet(
            source=there,
            destination=here,
            iif=device,
            oif="",
            protocol=carrier,
            dport=port,
            to_us=True,
            from_us=False,
            returns=True,
        )
        outwards = Packet(
            source=here,
            destination=there,
            iif="",
            oif=device,
            protocol=carrier,
            dport=port,
            to_us=False,
            from_us=True,
        )
        rule = masked(facts.tables, outwards)
        if rule and rule not in told:
            told.add(rule)
            yield _masked_outer(rule, outwards)
        for way, packet in (
            ((Hook.PREROUTING, Hook.INPUT), inwards),
            ((Hook.OUTPUT, Hook.POSTROUTING), outwards),
        ):
            for drop in _on_the_way(facts, way, packet):
                if drop.rule not in told:
                    told.add(drop.rule)
                    yield _dropped_underlay(drop, packet, may=_is_bypassed(facts))


def _on_the_way(facts: NodeFacts, hooks: Sequence[Hook], packet: Packet) -> Iterator[Drop]:
    for hook in hooks:
        # Before the route look-up there is no outgoing device.
        here = replace(packet, oif="") if hook is Hook.PREROUTING else packet
        for drop in drops(facts.tables, hook, here):
            yield drop
            if drop.certain:
                return
        if hook is Hook.PREROUTING:
            moved = translated(facts.tables, hook, here)
            packet = replace(packet, destination=moved.destination, dport=moved.dport)


def _masked_pods(rule: str, packet: Packet) -> Finding:
    return Finding(
        code=PODS_MASKED,
        severity=Severity.WARNING,
        subject="firewall",
        text=f"packets of {packet.source} to {packet.destination} on another node get this node's "
        "address",
        evidence=(rule,),
        consequence="containers there see the node's address instead of the container's: policies "
        "and logs are wrong",
        remedy="let one program masquerade: use --ip-masq of pyflanneld, and switch docker's off "
        "(pyflannel doctor docker)",
    )


def _masked_outer(rule: str, packet: Packet) -> Finding:
    return Finding(
        code=OUTER_MASKED,
        severity=Severity.WARNING,
        subject="firewall",
        text=f"the overlay's own packets to {packet.destination} get another source on their way",
        evidence=(rule,),
        consequence="backend udp drops what comes from another port; kernels before 5.7 send "
        "vxlan's with a wrong checksum, so connections take seconds",
        remedy="put a rule that accepts them before it",
    )


def both_firewalls(facts: NodeFacts) -> Iterator[Finding]:
    """Rules of legacy iptables beside those of nftables: each tool sees its own alone."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for table in facts.tables:
        if any(chain.rules for chain in table.chains.values()):
            kinds["-legacy" in table.name.partition(" ")[0]].append(table.name)
    if kinds[True] and kinds[False]:
        yield Finding(
            code=BOTH_FIREWALLS,
            severity=Severity.INFO,
            subject="firewall",
            text="legacy iptables and nftables both hold rules",
            evidence=(", ".join(kinds[True]), ", ".join(kinds[False])),
            consequence="both apply to a packet, but each tool shows only its own",
            remedy="clear one: iptables-legacy -F, or update-alternatives --config iptables",
        )


def _dropped_overlay(drop: Drop, packet: Packet, network: IPNetwork, *, may: bool) -> Finding:
    certain = drop.certain and not may
    verb = "drops" if certain else "may drop"
    what = f"{packet.protocol} packets {packet.source} to {packet.destination}"
    if drop.is_policy and drop.certain:
        code, text = FORWARD_POLICY, f"no rule accepts {what}, and the chain's policy {verb} them"
        tool = "iptables" if network.version == 4 else "ip6tables"
        remedy = (
            "leave --iptables-forward-rules of pyflanneld on (the default), or "
            f"{tool} -A FORWARD -s {network} -j ACCEPT and the same with -d"
        )
    else:
        code, text = OVERLAY_DROPPED, f"a firewall rule {verb} {what}"
        remedy = _remedy(
            drop.rule,
            firewalld=f"firewall-cmd --permanent --zone=trusted --add-source={network} && "
            "firewall-cmd --reload",
            ufw=f"ufw route allow from {network} && ufw route allow to {network}",
        )
    return Finding(
        code=code,
        severity=Severity.ERROR if certain else Severity.INFO,
        subject="firewall",
        text=text,
        evidence=(drop.rule,),
        consequence="containers here and on other nodes cannot reach each other" if certain else "",
        remedy=remedy,
    )


def _dropped_underlay(drop: Drop, packet: Packet, *, may: bool) -> Finding:
    certain = drop.certain and not may
    way = f"from {packet.source}" if packet.iif else f"to {packet.destination}"
    port = packet.dport
    what = f"UDP port {port}" if port is not None else "IP protocol 4"
    return Finding(
        code=UNDERLAY_DROPPED,
        severity=Severity.ERROR if certain else Severity.INFO,
        subject="firewall",
        text=f"a firewall rule {'drops' if certain else 'may drop'} the overlay's own packets "
        f"{way}, {what}",
        evidence=(drop.rule,),
        consequence="no overlay packet passes in that direction" if certain else "",
        remedy=_remedy(
            drop.rule,
            firewalld=f"firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"
            if port is not None
            else "firewall-cmd --permanent --add-protocol=ipip && firewall-cmd --reload",
            ufw=f"ufw allow {port}/udp"
            if port is not None
            else "accept protocol 4 in /etc/ufw/before.rules",
        ),
    )


def _remedy(rule: str, *, firewalld: str, ufw: str) -> str:
    """The command to type, by the rule's owner."""
    if " firewalld" in rule:
        return firewalld
    if "ufw-" in rule:
        return ufw
    if "DOCKER" in rule or "docker-bridges" in rule:
        return "pyflannel doctor docker says how docker lets them through"
    return "delete the rule, or put one that accepts these packets before it"


def _is_bypassed(facts: NodeFacts) -> bool:
    """Whether packets may bypass the firewall: eBPF programs take them before it."""
    network = facts.report.network if facts.report is not None else None
    return network is not None and network.datapath is not None and network.datapath.name == "ebpf"


def _overlay_peers(facts: NodeFacts, network: IPNetwork, subnet: IPNetwork) -> Iterator[IPNetwork]:
    """Subnets of peers; without peers, one that a peer could have."""
    report = facts.report
    peers = _some_peers(report, subnet.version) if report is not None else iter(())
    named = (peer.subnet if subnet.version == 4 else peer.ipv6_subnet for peer in peers)
    known = [ip_network(each) for each in named if each is not None]
    if known:
        yield from known
    elif subnet.prefixlen > network.prefixlen and subnet.network_address in network:
        yield next(each for each in network.subnets(new_prefix=subnet.prefixlen) if each != subnet)


def _some_peers(report: NodeReport, version: int) -> Iterator[PeerReport]:
    return islice(
        (
            peer
            for peer in report.peers
            if (peer.public_ip if version == 4 else peer.public_ipv6) is not None
        ),
        MOST_PEERS,
    )
