"""The result of a check, and the codes of all possible findings."""

from __future__ import annotations

from typing import Final

from pyflannel.records import dataclass
from pyflannel.report.model import Problem, Severity

NO_DAEMON: Final = "PF201"
FORWARDING_OFF: Final = "PF202"
FORWARD_POLICY: Final = "PF203"
OVERLAY_DROPPED: Final = "PF204"
UNDERLAY_DROPPED: Final = "PF205"
DEVICE: Final = "PF206"
BRIDGE: Final = "PF207"
MODULE: Final = "PF208"
OTHER_AGENT: Final = "PF209"
NO_LEASE: Final = "PF210"
RP_FILTER: Final = "PF211"
DEVICE_FORWARDING_OFF: Final = "PF212"
FORWARDING6_OFF: Final = "PF213"
IPV6_OFF: Final = "PF214"
RA_IGNORED: Final = "PF215"
NO_CARRIER: Final = "PF216"
ROUTED_ELSEWHERE: Final = "PF217"
OTHER_UNDERLAY: Final = "PF218"
CLOUD_RULES: Final = "PF219"
BRIDGE_MTU: Final = "PF220"
TWO_BRIDGES: Final = "PF222"
LEFT_OVER: Final = "PF223"
NETWORK_MANAGER: Final = "PF224"
SHARED_ADDRESS: Final = "PF225"
FILE_DIFFERS: Final = "PF226"
DISK_FULL: Final = "PF227"
CONNTRACK_FULL: Final = "PF228"
NEIGHBOURS_FULL: Final = "PF229"
DNS_INSIDE: Final = "PF230"
UNIT: Final = "PF231"
CLOCK: Final = "PF232"
PODS_MASKED: Final = "PF233"
OUTER_MASKED: Final = "PF234"
BOTH_FIREWALLS: Final = "PF235"
NO_POD_CIDR: Final = "PF241"
NODE_MISSING: Final = "PF242"
API_DENIED: Final = "PF243"
NO_CONFLIST: Final = "PF244"
OTHER_CONFLIST: Final = "PF245"
NO_PLUGIN: Final = "PF246"
PODS_BRIDGE: Final = "PF247"
NO_PROXY: Final = "PF248"
BRIDGED_UNSEEN: Final = "PF249"
TWO_OWNERS: Final = "PF401"
CONFIGS_DIFFER: Final = "PF402"
ONE_WAY: Final = "PF403"
DEAF_NODE: Final = "PF404"
LEASE_UNKNOWN: Final = "PF405"
VERSIONS_DIFFER: Final = "PF406"
NOT_SEEN: Final = "PF299"

CODES: Final = {
    NO_DAEMON: "no pyflanneld answers on this node",
    FORWARDING_OFF: "the kernel does not forward IPv4 packets",
    FORWARD_POLICY: "a forward chain's policy drops overlay packets, and no rule accepts them",
    OVERLAY_DROPPED: "a firewall rule drops overlay packets, or may",
    UNDERLAY_DROPPED: "a firewall rule drops packets between the nodes' daemons, or may",
    DEVICE: "the overlay's device is missing or down",
    BRIDGE: "docker0 is in another subnet than the leased one",
    MODULE: "the kernel has no module for the backend",
    OTHER_AGENT: "another network agent runs on this node",
    NO_LEASE: "this node has no lease",
    RP_FILTER: "rp_filter drops packets that arrive from a peer",
    DEVICE_FORWARDING_OFF: "packets that arrive by the tunnel or the bridge are not forwarded",
    FORWARDING6_OFF: "the kernel does not forward IPv6 packets",
    IPV6_OFF: "IPv6 is switched off on a device that needs it",
    RA_IGNORED: "the IPv6 default route will go, because advertisements are ignored",
    NO_CARRIER: "the external interface has no carrier or is down",
    ROUTED_ELSEWHERE: "packets of containers to a peer leave by another device, or have no route",
    OTHER_UNDERLAY: "packets to a peer's node leave by another interface than the leased one",
    CLOUD_RULES: "nm-cloud-setup sends packets through tables of its own",
    BRIDGE_MTU: "containers may send larger packets than the overlay carries",
    TWO_BRIDGES: "two devices have an address in the leased subnet",
    LEFT_OVER: "a device of another flannel backend is left over",
    NETWORK_MANAGER: "NetworkManager manages a device of the overlay",
    SHARED_ADDRESS: "several peers have one public address",
    FILE_DIFFERS: "the subnet file and the lease name different subnets",
    DISK_FULL: "there is no room for the daemon's state",
    CONNTRACK_FULL: "the table of connections is full, or nearly",
    NEIGHBOURS_FULL: "the neighbour table is full, or nearly",
    DNS_INSIDE: "a DNS server lies inside the overlay's network",
    UNIT: "the unit has failed, or is not enabled",
    CLOCK: "the clock is not synchronised",
    PODS_MASKED: "packets between containers of two nodes get the node's address",
    OUTER_MASKED: "packets between the nodes get another source, or another port",
    BOTH_FIREWALLS: "both variants of iptables hold rules",
    NO_POD_CIDR: "Kubernetes: the node object has no podCIDR that can be used",
    NODE_MISSING: "Kubernetes: there is no object of this node",
    API_DENIED: "Kubernetes: the API server refuses what the daemon asks for",
    NO_CONFLIST: "Kubernetes: there is no configuration for CNI",
    OTHER_CONFLIST: "Kubernetes: another network's configuration for CNI comes first",
    NO_PLUGIN: "Kubernetes: a program for CNI is missing",
    PODS_BRIDGE: "Kubernetes: cni0 has an address outside of the podCIDR",
    NO_PROXY: "Kubernetes: kube-proxy has not set up anything",
    BRIDGED_UNSEEN: "Kubernetes: the firewall does not see packets between pods of one node",
    NOT_SEEN: "something could not be looked at",
    TWO_OWNERS: "two nodes claim one subnet",
    CONFIGS_DIFFER: "nodes have different network configs in force",
    ONE_WAY: "one of two nodes hears the other, but is not heard",
    DEAF_NODE: "most nodes do not hear one node",
    LEASE_UNKNOWN: "a node does not know another node's lease",
    VERSIONS_DIFFER: "several releases of pyflannel are in use",
}
"""Every code of the doctor, with what it means in a phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A fault, or a possible one. Severity `info` alone is no fault."""

    code: str
    """`PF2…` of `CODES`, or a problem's that the daemon itself reports (`report.problems`)."""
    severity: Severity
    subject: str
    text: str
    """What is so."""
    evidence: tuple[str, ...] = ()
    """The evidence: a sysctl, a rule with its chain, a device."""
    consequence: str = ""
    remedy: str = ""


def of_problem(problem: Problem) -> Finding:
    """A problem that the daemon itself reports, as a finding."""
    return Finding(
        code=problem.code,
        severity=problem.severity,
        subject=problem.subject,
        text=problem.text,
        evidence=("pyflannel status",),
        remedy=problem.remedy,
    )
