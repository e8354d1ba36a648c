"""The doctor's checks of a node: facts in, findings out, one function a kind of fault.

A certain fault is an error or a warning. A possible one is information, with the rule or device it
is based on, and does not make a healthy node look ill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pyflannel.diagnose.around import Around
from pyflannel.diagnose.aroundchecks import around_findings
from pyflannel.diagnose.facts import NodeFacts, backend_of
from pyflannel.diagnose.finding import (
    BRIDGE,
    DEVICE,
    FORWARDING_OFF,
    MODULE,
    NO_DAEMON,
    NO_LEASE,
    NOT_SEEN,
    OTHER_AGENT,
    Finding,
    of_problem,
)
from pyflannel.diagnose.firewall import both_firewalls, dropped_overlay, dropped_underlay
from pyflannel.diagnose.kubernetes import KubeFacts, kube_findings, without_symptoms
from pyflannel.report.model import Severity
from pyflannel.report.problems import DEVICE_DOWN, problems

MOST_PEERS: Final = 16
"""Peers whose packets are tried on the firewall. Rules seldom differ between peers."""
DOCKER_BRIDGE: Final = "docker0"
_OTHERS: Final = {
    "cilium_": "Cilium",
    "cali": "Calico",
    "weave": "Weave Net",
    "antrea-": "Antrea",
    "ovn-k8s": "OVN-Kubernetes",
    "kube-bridge": "kube-router",
}
"""Names of other agents' devices."""
_ORDER: Final = (Severity.ERROR, Severity.WARNING, Severity.INFO)


def findings(
    facts: NodeFacts,
    around: Around | None = None,
    others: Sequence[Finding] = (),
    kube: KubeFacts | None = None,
) -> list[Finding]:
    """Everything that is wrong with a node and around it, the worst first."""
    found = [finding for check in _CHECKS for finding in check(facts)]
    if around is not None:
        found += around_findings(facts, around)
        if kube is not None:
            found = without_symptoms(found + kube_findings(facts, around, kube))
    found += others
    if any(one.code == "PF310" for one in others):
        # docker's own check says more about it.
        found = [one for one in found if one.code != BRIDGE]
    if any(finding.code == DEVICE for finding in found):
        # The kernel's state of the device is newer.
        found = [finding for finding in found if finding.code != DEVICE_DOWN]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _daemon(facts: NodeFacts) -> Iterator[Finding]:
    if facts.report is not None:
        yield from map(of_problem, problems(facts.report))
        return
    if facts.flanneld:
        text = "flanneld runs here, and no pyflanneld answers"
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
        consequence="what it has programmed stays; new nodes and changed leases are not seen, "
        "and the lease will end",
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
            consequence="no peer has a route to containers of this node",
            remedy="wait a few seconds, then read the log of pyflanneld",
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
                remedy="pyflanneld repairs it within seconds; if not, restart it",
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
                consequence="the overlay's device cannot be created",
                remedy="install the distribution's package with the rest of the modules "
                "(linux-modules-extra, kernel-modules), or take another backend",
            )


def _bridge(facts: NodeFacts) -> Iterator[Finding]:
    docker = (facts.links or {}).get(DOCKER_BRIDGE)
    subnet = facts.subnet
    if docker is None or subnet is None or facts.bridge is not None:
        return
    seen = ", ".join(str(each) for each in docker.addresses if each.version == 4)
    if not seen:
        return
    yield Finding(
        code=BRIDGE,
        severity=Severity.WARNING,
        subject=DOCKER_BRIDGE,
        text=f"{DOCKER_BRIDGE} has {seen}, and this node's lease is {subnet}",
        evidence=(f"ip address show {DOCKER_BRIDGE}",),
        consequence="docker's containers cannot be reached from other nodes",
        remedy="pyflannel doctor docker says why docker does not use the subnet",
    )


def _agents(facts: NodeFacts) -> Iterator[Finding]:
    if facts.report is not None and facts.flanneld:
        yield Finding(
            code=OTHER_AGENT,
            severity=Severity.WARNING,
            subject="flanneld",
            text="flanneld runs here too",
            evidence=tuple(f"process {pid}, flanneld" for pid in facts.flanneld),
            consequence="if it has the same network, both program the same device and files",
            remedy="stop one of them; pyflanneld takes over flanneld's devices and files",
        )
    if len(facts.daemons) > 1:
        yield Finding(
            code=OTHER_AGENT,
            severity=Severity.INFO,
            subject="pyflanneld",
            text=f"{len(facts.daemons)} daemons run here",
            evidence=tuple(f"process {pid}, pyflanneld" for pid in facts.daemons),
            consequence="this is correct for several networks (--instance)",
        )
    for prefix, name in _OTHERS.items():
        theirs = tuple(link for link in facts.links or () if link.startswith(prefix))
        if theirs:
            yield Finding(
                code=OTHER_AGENT,
                severity=Severity.INFO,
                subject=name,
                text=f"{name} runs here, or has left devices",
                evidence=tuple(f"device {link}" for link in theirs[:3]),
                consequence="its routes and rules may take precedence",
                remedy=f"if {name} is not in use any more, remove what it left",
            )


def _unseen(facts: NodeFacts) -> Iterator[Finding]:
    for what, reason in facts.unseen.items():
        yield Finding(
            code=NOT_SEEN,
            severity=Severity.INFO,
            subject=what,
            text=f"could not be looked at: {reason}",
            consequence="faults there are not found",
        )


_CHECKS: Final[tuple[Callable[[NodeFacts], Iterator[Finding]], ...]] = (
    _daemon,
    _no_lease,
    _forwarding,
    _devices,
    _modules,
    dropped_overlay,
    dropped_underlay,
    both_firewalls,
    _bridge,
    _agents,
    _unseen,
)
