"""Forward and masquerade rules as values: one list, rendered by both traffic managers.

With C the cluster network and P this node's own subnet, traffic between pods keeps its source; what
leaves the cluster is masqueraded; what comes from outside straight to a pod of this node keeps its
source; and what this host itself (or anybody else that is no pod) sends to a *remote* pod is
masqueraded, so that the answer comes back through the overlay.

The order is upstream's for iptables, which its own tests and clean-up compare literally. Upstream's
list for nftables differs (its fourth rule makes the last one unreachable); ours does not, so that
both managers give the same NAT for the same packet.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, IPNetwork, SubnetKey
from pyflannel.records import dataclass

KUBE_PROXY_MARK: Final = 0x4000
"""kube-proxy's masquerade mark: it has decided already, and a second NAT corrupts checksums."""
MULTICAST: Final[dict[Family, IPNetwork]] = {
    Family.V4: IPv4Network("224.0.0.0/4"),
    Family.V6: IPv6Network("ff00::/8"),
}


class Action(enum.Enum):
    """What a rule does with a packet."""

    RETURN = "RETURN"
    ACCEPT = "ACCEPT"
    MASQUERADE = "MASQUERADE"
    DROP = "DROP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: all conditions must hold."""

    action: Action
    source: IPNetwork | None = None
    source_is_not: bool = False
    destination: IPNetwork | None = None
    destination_is_not: bool = False
    mark: int | None = None
    """Bits of the packet mark that must be set."""
    udp_port: int | None = None
    """Destination port of a UDP datagram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRules:
    """The rules of one address family, in the order in which they are asked."""

    family: Family
    network: IPNetwork | None = None
    """The cluster network. All rules but that of the mark name it; by it a daemon knows its rules
    from those of another one on the same node."""
    masquerade: tuple[Rule, ...] = ()
    forward: tuple[Rule, ...] = ()
    guard: tuple[Rule, ...] = ()
    """Before all else, as soon as a packet has come in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules this node should have; a family or part that is missing has none."""

    families: tuple[FamilyRules, ...] = ()

    @property
    def networks(self) -> frozenset[IPNetwork]:
        """The cluster networks of all families."""
        return frozenset(part.network for part in self.families if part.network is not None)

    def of(self, family: Family) -> FamilyRules:
        """The rules of one family, empty ones if it has none."""
        for rules in self.families:
            if rules.family is family:
                return rules
        return FamilyRules(family=family)


def build(config: NetworkConfig, key: SubnetKey, *, ip_masq: bool, forward: bool) -> RuleSet:
    """The rules for a lease.

    Args:
        config: the network's.
        key: of our lease.
        ip_masq: `--ip-masq`.
        forward: `--iptables-forward-rules`.

    A family has rules if it is enabled *and* has a network (upstream looks at the network only).
    Who wants neither part has a firewall without flannel's rules, and gets no guard either.
    """
    return RuleSet(families=tuple(_family_rules(config, key, ip_masq=ip_masq, forward=forward)))


def _family_rules(
    config: NetworkConfig, key: SubnetKey, *, ip_masq: bool, forward: bool
) -> Iterable[FamilyRules]:
    for family in config.families:
        cluster, own = config.network_of(family), key.subnet(family)
        if cluster is None or own is None:
            continue
        yield FamilyRules(
            family=family,
            network=cluster,
            masquerade=masquerade_rules(family, cluster, own) if ip_masq else (),
            forward=forward_rules(cluster) if forward else (),
            guard=guard_rules(cluster, config.backend.tunnel_port()) if ip_masq or forward else (),
        )


def is_about(rule: Rule, networks: Collection[IPNetwork]) -> bool:
    """Whether a rule names one of some networks."""
    return rule.source in networks or rule.destination in networks


def masquerade_rules(family: Family, cluster: IPNetwork, own: IPNetwork) -> tuple[Rule, ...]:
    """The six rules of the masquerade chain (reference: upstream v0.28.9, iptables mode)."""
    leave = Action.RETURN
    hide = Action.MASQUERADE
    return (
        Rule(mark=KUBE_PROXY_MARK, action=leave),
        Rule(source=own, destination=cluster, action=leave),
        Rule(source=cluster, destination=own, action=leave),
        Rule(source=cluster, source_is_not=True, destination=own, action=leave),
        Rule(source=cluster, destination=MULTICAST[family], destination_is_not=True, action=hide),
        Rule(source=cluster, source_is_not=True, destination=cluster, action=hide),
    )


def forward_rules(cluster: IPNetwork) -> tuple[Rule, ...]:
    """Accepts everything from and to the cluster network."""
    return (
        Rule(source=cluster, action=Action.ACCEPT),
        Rule(destination=cluster, action=Action.ACCEPT),
    )


def guard_rules(cluster: IPNetwork, tunnel_port: int | None) -> tuple[Rule, ...]:
    """Keeps pods from speaking to the tunnel ports of nodes, this one's included.

    Where pods are masqueraded (docker does it by itself) a datagram of theirs has the node's
    address, and its port too if it is free: peers take it for the node's own, and what is in it
    for a packet from the overlay. Nodes are outside of the overlay's network, and so is all that
    the rule is about. It stands before connection tracking, because in the forward chain docker's
    rules come first, and accept.
    """
    if tunnel_port is None:
        return ()
    outside = Rule(
        source=cluster,
        destination=cluster,
        destination_is_not=True,
        udp_port=tunnel_port,
        action=Action.DROP,
    )
    return (outside,)
