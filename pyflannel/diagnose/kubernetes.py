"""The doctor's checks of a Kubernetes node: its object, CNI, services.

Pure: `kubegather` reads, this judges. A pod sees only those parts of its node that are mounted into
it, so a missing directory is a fault only outside of a pod.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from ipaddress import ip_interface
from typing import Final

from pyflannel.diagnose import finding as codes
from pyflannel.diagnose.around import Around
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.finding import Finding
from pyflannel.records import dataclass
from pyflannel.report import problems
from pyflannel.report.model import Severity, StoreFault

BRIDGE: Final = "cni0"
"""The pods' bridge, as the plugin `bridge` calls it unless told otherwise."""
PLUGINS: Final = ("bridge", "flannel", "host-local", "loopback", "portmap")
"""Programs that flannel's configuration for CNI calls, and `loopback`, which the runtime does."""
SERVICES: Final = "KUBE-SERVICES"
"""kube-proxy's chain in iptables."""
PROXY_TABLE: Final = "kube-proxy"
"""Its table in nftables."""
PROXY_DEVICE: Final = "kube-ipvs0"
_IN_ITS_PLACE: Final = ("cilium_", "kube-dummy-if", "antrea-gw")
"""Devices of programs that replace kube-proxy: Cilium, kube-router, Antrea."""
_BRIDGED: Final = "net/bridge/bridge-nf-call-iptables"
_CALLS_OTHERS: Final = "multus"
"""A plugin that calls those of other configurations."""
REPLACED: Final = frozenset(
    {problems.WAITING, problems.STORE, problems.LEASE_LOST, problems.LEASE_NOT_RENEWED}
) | {codes.NO_LEASE, codes.NO_CONFLIST}
"""Codes that one of `_OF_API` explains."""
_OF_API: Final = frozenset({codes.NO_POD_CIDR, codes.NODE_MISSING, codes.API_DENIED})


@dataclass(frozen=True, slots=True, kw_only=True)
class CniFile:
    """A file in the directory of CNI's configurations."""

    name: str
    plugins: tuple[str, ...] = ()
    """Types of its plugins, in order; none if it cannot be read as a configuration."""
    address_manager: str = ""
    """Type of the first plugin's `ipam`."""

    @property
    def is_flannels(self) -> bool:
        """Whether pods get addresses of this node's subnet by it."""
        return "flannel" in self.plugins or self.address_manager == "host-local"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeFacts:
    """Facts about Kubernetes on a node."""

    in_pod: bool = False
    directory: str = ""
    """Of the configurations for CNI."""
    files: tuple[CniFile, ...] | None = None
    """In the order in which the runtime takes them; `None` if the directory is not there."""
    plugins: Mapping[str, bool] = field(default_factory=dict)
    """Whether a program is installed; empty if their directory is not there."""
    plugin_directory: str = ""
    kubelets: tuple[int, ...] = ()
    """Process ids; a pod does not see them."""
    proxies: tuple[int, ...] = ()
    """Of kube-proxy."""


def kube_findings(facts: NodeFacts, around: Around, kube: KubeFacts) -> list[Finding]:
    """Everything that is wrong with a node of a Kubernetes cluster."""
    return [
        *_object(facts, kube),
        *_configurations(kube),
        *_plugins(kube),
        *_bridge(facts, around),
        *_proxy(facts, around, kube),
        *_bridged(around),
    ]


def without_symptoms(found: list[Finding]) -> list[Finding]:
    """Findings less those whose cause is among them."""
    if any(one.code in _OF_API for one in found):
        return [one for one in found if one.code not in REPLACED]
    return found


def _object(facts: NodeFacts, kube: KubeFacts) -> Iterator[Finding]:
    report = facts.report
    store = report.store if report is not None else None
    if report is None or store is None:
        return
    said = report.waiting_for or (report.lease.reason if report.lease is not None else "")
    said = said or store.reason
    if store.fault == StoreFault.NO_POD_CIDR:
        yield Finding(
            code=codes.NO_POD_CIDR,
            severity=Severity.ERROR,
            subject="node object",
            text="this node's object has no podCIDR that can be used",
            evidence=(said,),
            consequence="no pod of this node gets an address, and no peer knows the node",
            remedy="give kube-controller-manager --allocate-node-cidrs and --cluster-cidr (kubeadm:"
            " --pod-network-cidr), make Network in net-conf.json the same range, and a wider one if"
            " all of it is used",
        )
    if store.fault == StoreFault.NODE_MISSING:
        running = [f"process {pid}, kubelet" for pid in kube.kubelets]
        yield Finding(
            code=codes.NODE_MISSING,
            severity=Severity.ERROR,
            subject="node object",
            text="the API server has no object of this node"
            + (", and a kubelet registers it at its start only" if running else ""),
            evidence=(said, *running),
            consequence="there is no podCIDR to use; existing pods keep their former one",
            remedy="systemctl restart kubelet; if it is not registered then, the kubelet's log says"
            " why, or NODE_NAME is another name than its --hostname-override",
        )
    if store.fault == StoreFault.DENIED:
        yield Finding(
            code=codes.API_DENIED,
            severity=Severity.ERROR,
            subject="API server",
            text="the API server refuses what the daemon asks for",
            evidence=(said, store.where),
            consequence="new nodes and changes are not seen; existing traffic continues",
            remedy="apply the ClusterRole and ClusterRoleBinding of kubernetes/pyflannel.yaml;"
            " kubectl auth can-i list nodes --as system:serviceaccount:kube-flannel:flannel",
        )


def _configurations(kube: KubeFacts) -> Iterator[Finding]:
    if kube.files is None and kube.in_pod:
        yield Finding(
            code=codes.NOT_SEEN,
            severity=Severity.INFO,
            subject="CNI",
            text=f"could not be looked at: {kube.directory} is not mounted into this pod",
            consequence="faults there are not found",
        )
        return
    usable = [each for each in kube.files or () if each.plugins]
    ours = [each for each in usable if each.is_flannels]
    if not usable:
        broken = [f"{each.name}: no configuration can be read in it" for each in kube.files or ()]
        yield Finding(
            code=codes.NO_CONFLIST,
            severity=Severity.ERROR,
            subject="CNI",
            text=f"{kube.directory} has no configuration for CNI",
            evidence=(f"ls {kube.directory}", *broken),
            consequence="the node is not Ready, and no pod gets an interface",
            remedy="start the daemon with --cni-conflist (kubernetes/pyflannel.yaml has it), or"
            " copy cni-conf.json of the ConfigMap there as 10-flannel.conflist",
        )
        return
    first = usable[0]
    if first in ours or _CALLS_OTHERS in first.plugins:
        return
    kind = ", ".join(first.plugins)
    yield Finding(
        code=codes.OTHER_CONFLIST,
        severity=Severity.ERROR if ours else Severity.INFO,
        subject="CNI",
        text=f"the first configuration for CNI is another network's: {first.name} ({kind})",
        evidence=(f"ls {kube.directory}: {', '.join(each.name for each in usable)}",),
        consequence="new pods are attached by it, with addresses that the overlay does not carry",
        remedy=f"if that network is not in use any more, remove {kube.directory}/{first.name} and"
        " create this node's pods again",
    )


def _plugins(kube: KubeFacts) -> Iterator[Finding]:
    wanted = {"loopback", *(name for file in kube.files or () for name in file.plugins)}
    if any(file.is_flannels for file in kube.files or ()):
        wanted |= {"bridge", "host-local"}
    missing = sorted(name for name, there in kube.plugins.items() if not there and name in wanted)
    if missing and kube.files:
        yield Finding(
            code=codes.NO_PLUGIN,
            severity=Severity.ERROR,
            subject="CNI",
            text=f"programs for CNI are missing: {', '.join(missing)}",
            evidence=(f"ls {kube.plugin_directory}",),
            consequence="no pod gets an interface",
            remedy="flannel comes with the manifest's init container (delete this node's pod of it"
            " to have it copied again), the others with the package kubernetes-cni or"
            " containernetworking-plugins",
        )


def _bridge(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    link = around.links.get(BRIDGE)
    if link is None or link.kind != "bridge":
        return
    for version in (4, 6):
        subnet = facts.subnet_of(version)
        found = [a for a in link.addresses if a.version == version and not a.is_link_local]
        if subnet is None or not found:
            continue
        gateway = ip_interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")
        if gateway not in found:
            seen = ", ".join(str(each) for each in found)
            yield Finding(
                code=codes.PODS_BRIDGE,
                severity=Severity.ERROR,
                subject=BRIDGE,
                text=f"{BRIDGE} has {seen}, and this node's podCIDR is {subnet}",
                evidence=(f"ip address show {BRIDGE}",),
                consequence="new pods fail with: cni0 already has an IP address different from"
                f" {gateway}",
                remedy=f"delete this node's pods with addresses of the former podCIDR, then ip link"
                f" delete {BRIDGE}",
            )


def _proxy(facts: NodeFacts, around: Around, kube: KubeFacts) -> Iterator[Finding]:
    if not facts.tables or "nftables" in facts.unseen:
        return
    seen = (
        bool(kube.proxies)
        or any(SERVICES in table.chains for table in facts.tables)
        or any(table.name.split()[-1] == PROXY_TABLE for table in facts.tables)
        or PROXY_DEVICE in around.links
        or any(name.startswith(_IN_ITS_PLACE) for name in around.links)
    )
    if not seen:
        yield Finding(
            code=codes.NO_PROXY,
            severity=Severity.WARNING,
            subject="kube-proxy",
            text="kube-proxy has not set up anything on this node",
            evidence=(f"no chain {SERVICES}, no table {PROXY_TABLE}, no device {PROXY_DEVICE}",),
            consequence="services cannot be reached from here, nor can the API server from pods;"
            " pods reach each other",
            remedy="kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide; its log says why"
            " it does not run",
        )


def _bridged(around: Around) -> Iterator[Finding]:
    value = around.sysctls.get(_BRIDGED)
    if value == "1":
        return
    yield Finding(
        code=codes.BRIDGED_UNSEEN,
        severity=Severity.WARNING,
        subject="kernel",
        text="the firewall does not see packets between pods of this node",
        evidence=(
            "net.bridge.bridge-nf-call-iptables " + ("is not there" if value is None else "= 0"),
        ),
        consequence="a pod cannot reach a service whose pod is on the same node",
        remedy="modprobe br_netfilter, and its name in /etc/modules-load.d; sysctl -w"
        " net.bridge.bridge-nf-call-iptables=1",
    )
