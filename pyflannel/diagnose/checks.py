"""The doctor's checks of a node: facts in, findings out, one function a kind of fault.

What is certain is an error or a warning; what only may be so is information, with the rule or the
device it rests on, and makes no healthy node ill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Final

from pyflannel.diagnose.facts import NodeFacts, backend_of
from pyflannel.diagnose.filter import Drop, Hook, Packet, drops
from pyflannel.diagnose.finding import (
    BRIDGE,
    DEVICE,
    FORWARD_POLICY,
    FORWARDING_OFF,
    MODULE,
    NO_DAEMON,
    NO_LEASE,
    NOT_SEEN,
    OTHER_AGENT,
    OVERLAY_DROPPED,
    UNDERLAY_DROPPED,
    Finding,
    of_problem,
)
from pyflannel.report.model import NodeReport, PeerReport, Severity
from pyflannel.report.problems import DEVICE_DOWN, problems

MOST_PEERS: Final = 16
"""Whose packets are tried on the firewall. Rules seldom tell one peer from another."""
DOCKER_BRIDGE: Final = "docker0"
_OTHERS: Final = {
    "cilium_": "Cilium",
    "cali": "Calico",
    "weave": "Weave Net",
    "antrea-": "Antrea",
    "ovn-k8s": "OVN-Kubernetes",
    "kube-bridge": "kube-router",
}
"""How other agents' devices are called."""
_ORDER: Final = (Severity.ERROR, Severity.WARNING, Severity.INFO)


def findings(facts: NodeFacts) -> list[Finding]:
    """Everything that is wrong with a node, the worst first."""
    found = [finding for check in _CHECKS for finding in check(facts)]
    if any(finding.code == DEVICE for finding in found):
        # The kernel's word on the device is the later one.
        found = [finding for finding in found if finding.code != DEVICE_DOWN]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _daemon(facts: NodeFacts) -> Iterator[Finding]:
    if facts.report is not None:
        yield from map(of_problem, problems(facts.report))
        return
    if facts.flanneld:
        text = "flannel's own daemon works here, and no pyflanneld answers"
        evidence = tuple(f"process {pid}, flanneld" for pid in facts.flanneld)
        remedy = "ask flanneld, or stop it and start pyflanneld (docs/migrating-from-flannel.md)"
    else:
        text = "no pyflanneld answers"
        evidence, remedy = (facts.silence,), "systemctl start pyflannel"
    yield Finding(
        code=NO_DAEMON,
        severity=Severity.ERROR,
        subject="pyflanneld",
        text=text,
        evidence=evidence,
        consequence="what it last programmed goes on; new nodes and changed leases are not seen, "
        "and the lease ends some day",
        remedy=remedy,
    )


def _no_lease(facts: NodeFacts) -> Iterator[Finding]:
    report = facts.report
    if report is not None and report.lease is None and not report.waiting_for:
        yield Finding(
            code=NO_LEASE,
            severity=Severity.ERROR,
            subject="lease",
            text="this node has no lease",
            evidence=(f"pyflannel status: {report.phase}",),
            consequence="no peer knows the way to containers of this node",
            remedy="wait a few seconds; then see the log of pyflanneld",
        )


def _forwarding(facts: NodeFacts) -> Iterator[Finding]:
    if facts.ip_forward is False and facts.subnet is not None:
        yield Finding(
            code=FORWARDING_OFF,
            severity=Severity.ERROR,
            subject="kernel",
            text="the kernel does not forward IPv4 packets",
            evidence=("net.ipv4.ip_forward = 0",),
            consequence="nothing passes between containers here and on other nodes; the node "
            "itself reaches both",
            remedy="sysctl -w net.ipv4.ip_forward=1, and the same line in /etc/sysctl.d; look "
            "which file there sets 0",
        )


def _devices(facts: NodeFacts) -> Iterator[Finding]:
    for name in facts.devices if facts.links is not None else ():
        link = facts.links.get(name) if facts.links is not None else None
        if link is None or not link.up:
            yield Finding(
                code=DEVICE,
                severity=Severity.ERROR,
                subject=name,
                text=f"the overlay's device {name} is " + ("missing" if link is None else "down"),
                evidence=(f"ip link show {name}",),
                consequence="no packet to or from another node's containers passes",
                remedy="pyflanneld puts it right by itself within seconds; if not, restart it",
            )


def _modules(facts: NodeFacts) -> Iterator[Finding]:
    for name, there in facts.modules.items():
        if not there:
            backend = backend_of(facts.report)
            yield Finding(
                code=MODULE,
                severity=Severity.ERROR,
                subject="kernel",
                text=f"the kernel has no module {name}, which backend {backend} needs",
                evidence=(f"/sys/module/{name} and the modules of the running kernel",),
                consequence="the overlay's device cannot be made",
                remedy="install the distribution's package with the rest of the modules "
                "(linux-modules-extra, kernel-modules), or take another backend",
            )


def _bridge(facts: NodeFacts) -> Iterator[Finding]:
    docker = (facts.links or {}).get(DOCKER_BRIDGE)
    subnet = facts.subnet
    if docker is None or subnet is None or not docker.addresses or facts.bridge is not None:
        return
    seen = ", ".join(map(str, docker.addresses))
    yield Finding(
        code=BRIDGE,
        severity=Severity.WARNING,
        subject=DOCKER_BRIDGE,
        text=f"{DOCKER_BRIDGE} has {seen}, and this node's lease is {subnet}",
        evidence=(f"ip address show {DOCKER_BRIDGE}",),
        consequence="docker's containers cannot be reached from other nodes",
        remedy="pyflannel doctor docker says what keeps docker out of the subnet",
    )


def _agents(facts: NodeFacts) -> Iterator[Finding]:
    if facts.report is not None and facts.flanneld:
        yield Finding(
            code=OTHER_AGENT,
            severity=Severity.WARNING,
            subject="flanneld",
            text="flannel's own daemon works here too",
            evidence=tuple(f"process {pid}, flanneld" for pid in facts.flanneld),
            consequence="if it has the same network, both program the same device and files",
            remedy="stop one of them; pyflanneld takes over what flanneld leaves",
        )
    if len(facts.daemons) > 1:
        yield Finding(
            code=OTHER_AGENT,
            severity=Severity.INFO,
            subject="pyflanneld",
            text=f"{len(facts.daemons)} daemons work here",
            evidence=tuple(f"process {pid}, pyflanneld" for pid in facts.daemons),
            consequence="that is right for several networks (--instance)",
        )
    for prefix, name in _OTHERS.items():
        theirs = tuple(link for link in facts.links or () if link.startswith(prefix))
        if theirs:
            yield Finding(
                code=OTHER_AGENT,
                severity=Severity.INFO,
                subject=name,
                text=f"{name} works here, or has left devices",
                evidence=tuple(f"device {link}" for link in theirs[:3]),
                consequence="its routes and rules may come first",
                remedy=f"if {name} is not in use any more, remove what it left",
            )


def _unseen(facts: NodeFacts) -> Iterator[Finding]:
    for what, reason in facts.unseen.items():
        yield Finding(
            code=NOT_SEEN,
            severity=Severity.INFO,
            subject=what,
            text=f"could not be looked at: {reason}",
            consequence="what is wrong there is not found",
        )


def _overlay(facts: NodeFacts) -> Iterator[Finding]:
    """Packets between containers here and on other nodes, on their way through this node."""
    network, subnet, tunnel = facts.network, facts.subnet, facts.tunnel
    if network is None or subnet is None or tunnel is None:
        return
    ours = subnet[min(2, subnet.num_addresses - 1)]
    told: set[str] = set()
    for there in _overlay_peers(facts, network, subnet):
        theirs = there[min(2, there.num_addresses - 1)]
        packets = [
            Packet(source=source, destination=destination, iif=iif, oif=oif, protocol=p, dport=port)
            for source, destination, iif, oif in (
                (theirs, ours, tunnel, facts.bridge),
                (ours, theirs, facts.bridge, tunnel),
            )
            for p, port in (("icmp", None), ("tcp", 80))
        ]
        for packet in packets:
            for drop in _on_the_way(
                facts, (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING), packet
            ):
                if drop.rule not in told:
                    told.add(drop.rule)
                    yield _dropped_overlay(drop, packet, network, may=_is_bypassed(facts))


def _underlay(facts: NodeFacts) -> Iterator[Finding]:
    """Packets between the nodes' daemons, in and out."""
    report = facts.report
    if report is None or report.network is None or report.underlay is None:
        return
    port, device = facts.port, report.underlay.interface
    if port is None:
        return
    here = _address(report.underlay.address)
    told: set[str] = set()
    for peer in _some_peers(report):
        there = _address(peer.public_ip)
        inwards = Packet(
            source=there, destination=here, iif=device, oif="", protocol="udp", dport=port
        )
        outwards = Packet(
            source=here, destination=there, iif="", oif=device, protocol="udp", dport=port
        )
        for way, packet in (
            ((Hook.PREROUTING, Hook.INPUT), inwards),
            ((Hook.OUTPUT, Hook.POSTROUTING), outwards),
        ):
            for drop in _on_the_way(facts, way, packet):
                if drop.rule not in told:
                    told.add(drop.rule)
                    yield _dropped_underlay(drop, packet, port, may=_is_bypassed(facts))


def _on_the_way(facts: NodeFacts, hooks: Sequence[Hook], packet: Packet) -> Iterator[Drop]:
    for hook in hooks:
        # Before the route is looked up there is no device to go out by.
        here = replace(packet, oif="") if hook is Hook.PREROUTING else packet
        for drop in drops(facts.tables, hook, here):
            yield drop
            if drop.certain:
                return


def _dropped_overlay(drop: Drop, packet: Packet, network: IPv4Network, *, may: bool) -> Finding:
    certain = drop.certain and not may
    verb = "drops" if certain else "may drop"
    what = f"{packet.protocol} packets {packet.source} to {packet.destination}"
    if drop.is_policy and drop.certain:
        code, text = FORWARD_POLICY, f"no rule accepts {what}, and the chain's policy {verb} them"
        remedy = (
            "leave --iptables-forward-rules of pyflanneld on (the default), or "
            f"iptables -A FORWARD -s {network} -j ACCEPT and the same with -d"
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
        consequence="containers here and on other nodes do not reach each other" if certain else "",
        remedy=remedy,
    )


def _dropped_underlay(drop: Drop, packet: Packet, port: int, *, may: bool) -> Finding:
    certain = drop.certain and not may
    way = f"from {packet.source}" if packet.iif else f"to {packet.destination}"
    return Finding(
        code=UNDERLAY_DROPPED,
        severity=Severity.ERROR if certain else Severity.INFO,
        subject="firewall",
        text=f"a firewall rule {'drops' if certain else 'may drop'} the overlay's own packets "
        f"{way}, UDP port {port}",
        evidence=(drop.rule,),
        consequence="no packet of the overlay passes that way" if certain else "",
        remedy=_remedy(
            drop.rule,
            firewalld=f"firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload",
            ufw=f"ufw allow {port}/udp",
        ),
    )


def _remedy(rule: str, *, firewalld: str, ufw: str) -> str:
    """What to type, by whose rule it is."""
    if " firewalld" in rule:
        return firewalld
    if "ufw-" in rule:
        return ufw
    if "DOCKER" in rule or "docker-bridges" in rule:
        return "pyflannel doctor docker says how docker lets them through"
    return "delete the rule, or put one that accepts these packets before it"


def _is_bypassed(facts: NodeFacts) -> bool:
    """Whether packets may go past the firewall: eBPF programs take them before it."""
    network = facts.report.network if facts.report is not None else None
    return network is not None and network.datapath is not None and network.datapath.name == "ebpf"


def _overlay_peers(
    facts: NodeFacts, network: IPv4Network, subnet: IPv4Network
) -> Iterator[IPv4Network]:
    """Subnets of peers; one that could be a peer's where there is none."""
    known = [
        IPv4Network(peer.subnet)
        for peer in (_some_peers(facts.report) if facts.report is not None else ())
        if peer.subnet is not None
    ]
    if known:
        yield from known
    elif subnet.prefixlen > network.prefixlen and subnet.subnet_of(network):
        yield next(each for each in network.subnets(new_prefix=subnet.prefixlen) if each != subnet)


def _some_peers(report: NodeReport) -> Iterator[PeerReport]:
    return islice((peer for peer in report.peers if peer.public_ip is not None), MOST_PEERS)


def _address(text: str | None) -> IPv4Address | None:
    return None if text is None else IPv4Address(text)


_CHECKS: Final[tuple[Callable[[NodeFacts], Iterator[Finding]], ...]] = (
    _daemon,
    _no_lease,
    _forwarding,
    _devices,
    _modules,
    _overlay,
    _underlay,
    _bridge,
    _agents,
    _unseen,
)
