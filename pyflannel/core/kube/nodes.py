"""Who is a peer, by the node objects of a Kubernetes cluster. Pure: nodes in, leases out.

`NodeTable` holds what matters of each node and says which leases follow from all of them together.
A list replaces it whole, an event one row; a node of the same name with another uid is another
node. What comes out is compared by value, so nothing is lost however long it was not looked at.

A node that cannot be used does not hold up the others. It keeps the last lease that could be read
of it, as long as the same object is there, and the reason is in `troubles`:

* A node that lost `kube-subnet-manager` stays a peer while this table knows it as one: clusters
  with upstream's nodes must not lose peers because a tool removes annotations. A table that begins
  with such a node does not take it.
* Data that were an object and are none now (`null`) are not taken.

Subnets belong to one node. Where they overlap, ours comes first, then the node that was created
first, then its name, so that all nodes choose alike. Kubernetes does not give a range away twice;
people do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from pyflannel.core.ip import (
    Family,
    IPNetwork,
    SubnetKey,
    parse_ipv4_network,
    parse_ipv6_network,
)
from pyflannel.core.kube import annotations as names
from pyflannel.core.lease import (
    Changes,
    Lease,
    LeaseAttrs,
    LeaseDeleted,
    LeasePut,
    Snapshot,
)
from pyflannel.records import dataclass

MOST_PER_NODE: Final = 2
"""podCIDRs of a node: one for each family; the API server takes no third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeNode:
    """What matters of a node object."""

    name: str
    uid: str
    version: str = field(default="", compare=False)
    """`resourceVersion`: opaque. Not compared: each heartbeat of a kubelet has another one."""
    created: str = ""
    """`creationTimestamp`, in RFC 3339 and UTC, so that its text sorts by time."""
    pod_cidrs: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    """flannel's, by their names without the prefix."""
    network_unavailable: str = ""
    """`status/reason` of the condition NetworkUnavailable; empty if there is none, and for other
    nodes than our own."""
    writer: str = ""
    """Who wrote one of the annotations that are ours last, by `managedFields`; our own node's."""


def subnets_of(node: KubeNode, families: tuple[Family, ...]) -> SubnetKey:
    """A node's subnets in the families that the network config enables.

    Raises:
        ValueError: one is missing or cannot be read; a phrase.
    """
    if not node.pod_cidrs:
        raise ValueError("it has no podCIDR yet")
    if len(node.pod_cidrs) > MOST_PER_NODE:
        raise ValueError(f"it has {len(node.pod_cidrs)} podCIDRs: {', '.join(node.pod_cidrs)}")
    v4: IPv4Network | None = None
    v6: IPv6Network | None = None
    for text in node.pod_cidrs:
        if ":" in text:
            v6 = v6 or parse_ipv6_network(text)
        else:
            v4 = v4 or parse_ipv4_network(text)
    for family, found in ((Family.V4, v4), (Family.V6, v6)):
        if family in families and found is None:
            raise ValueError(f"none of its podCIDRs ({', '.join(node.pod_cidrs)}) is {family}")
    return SubnetKey(v4 if Family.V4 in families else None, v6 if Family.V6 in families else None)


@dataclass(slots=True)
class _Row:
    node: KubeNode
    lease: Lease | None
    """The last that could be read of this object."""
    trouble: str
    """Why the object as it is now gives none."""


class NodeTable:
    """All nodes of a cluster, and the leases that follow from them.

    Args:
        own: name of this node; its lease comes out like the others'.
        networks: the network of each family that the network config enables.
    """

    def __init__(self, own: str, networks: Mapping[Family, IPNetwork | None]) -> None:
        self._own = own
        self._networks = networks
        self._families = tuple(networks)
        self._rows: dict[str, _Row] = {}
        self._given: dict[str, Lease] = {}
        self._conflicts: dict[str, str] = {}
        self._claims = {family: _Claims() for family in Family}

    def __len__(self) -> int:
        return len(self._rows)

    def node(self, name: str) -> KubeNode | None:
        """What is known of a node."""
        row = self._rows.get(name)
        return row.node if row is not None else None

    def nodes(self) -> tuple[KubeNode, ...]:
        """All nodes that are known."""
        return tuple(row.node for row in self._rows.values())

    def troubles(self) -> Iterator[tuple[str, str]]:
        """Nodes that are no peers or are followed as they were, each with the reason."""
        for name, row in self._rows.items():
            reason = row.trouble or self._conflicts.get(name, "")
            if reason and name != self._own:
                yield name, reason

    def trouble(self, name: str) -> str:
        """The reason for one node; empty if there is none."""
        row = self._rows.get(name)
        return (row.trouble or self._conflicts.get(name, "")) if row is not None else ""

    def replace(self, nodes: Iterable[KubeNode]) -> Snapshot:
        """Takes a list of all nodes."""
        former = self._rows
        self._rows = {node.name: self._judge(node, former.get(node.name)) for node in nodes}
        self._claims = {family: _Claims() for family in Family}
        for name, row in self._rows.items():
            self._claim(name, row.lease)
        self._conflicts, self._given = {}, {}
        for name in self._rows:
            self._decide(name)
        return Snapshot(tuple(self._given.values()), 0)

    def put(self, node: KubeNode) -> Changes:
        """Takes one node as it is now; empty changes if nothing follows from it."""
        former = self._rows.get(node.name)
        if former is not None and former.node == node:
            former.node = node  # with its version
            return Changes((), 0)
        return self._set(node.name, self._judge(node, former))

    def delete(self, name: str) -> Changes:
        """Takes the end of a node."""
        return self._set(name, None)

    def snapshot(self) -> Snapshot:
        """All leases as they are now."""
        return Snapshot(tuple(self._given.values()), 0)

    def _set(self, name: str, row: _Row | None) -> Changes:
        former = self._rows.get(name)
        before = former.lease if former is not None else None
        after = row.lease if row is not None else None
        if row is None:
            self._rows.pop(name, None)
        else:
            self._rows[name] = row
        affected = {name}
        if _key(before) != _key(after):
            affected |= self._rivals(name, before)
            self._disclaim(name, before)
            self._claim(name, after)
            affected |= self._rivals(name, after)
        known = {one: self._given.get(one) for one in affected}
        for one in affected:
            self._decide(one)
        gone = {lease.key for lease in known.values() if lease is not None}
        puts = [
            LeasePut(lease)
            for one in sorted(affected)
            if (lease := self._given.get(one)) is not None
        ]
        gone -= {put.lease.key for put in puts}
        fresh = [put for put in puts if put.lease not in known.values()]
        return Changes((*(LeaseDeleted(key) for key in sorted(gone)), *fresh), 0)

    # One node

    def _judge(self, node: KubeNode, former: _Row | None) -> _Row:
        last = former.lease if former is not None and former.node.uid == node.uid else None
        if node.annotations.get(names.MANAGED) != names.YES:
            if last is None:
                return _Row(node, None, "")
            text = f'its annotation {names.MANAGED} is not "true" any more; it stays a peer'
            return _Row(node, last, text)
        try:
            key = subnets_of(node, self._families)
            attrs = names.decode(node.annotations, self._families)
        except ValueError as error:
            return _Row(node, last, str(error))
        if outside := self._outside(key):
            return _Row(node, None, outside)
        if last is not None and (lost := _lost_data(last.attrs, attrs)):
            return _Row(node, last, lost)
        return _Row(node, Lease(key=key, attrs=attrs, ours=node.name == self._own), "")

    def _outside(self, key: SubnetKey) -> str:
        for family, network in self._networks.items():
            subnet = key.subnet(family)
            if subnet is None or network is None:
                continue
            inside = subnet.network_address in network and subnet.prefixlen >= network.prefixlen
            if not inside:
                return f"its podCIDR {subnet} is outside the network {network}"
        return ""

    # All nodes together

    def _decide(self, name: str) -> None:
        """Whether a node has its subnets to itself."""
        row = self._rows.get(name)
        self._conflicts.pop(name, None)
        self._given.pop(name, None)
        if row is None or row.lease is None:
            return
        rivals = self._rivals(name, row.lease)
        first = min((name, *rivals), key=self._rank)
        if first == name:
            self._given[name] = row.lease
        elif first == self._own:
            self._conflicts[name] = (
                f"its podCIDR {row.lease.key.describe()} overlaps this node's own"
            )
        else:
            self._conflicts[name] = (
                f"its podCIDR {row.lease.key.describe()} overlaps that of {first}, "
                "which was created before"
            )

    def _rank(self, name: str) -> tuple[bool, str, str]:
        return name != self._own, self._rows[name].node.created, name

    def _rivals(self, name: str, lease: Lease | None) -> set[str]:
        found: set[str] = set()
        for family, claims in self._claims.items():
            subnet = lease.subnet(family) if lease is not None else None
            if subnet is not None:
                found |= claims.overlapping(subnet)
        found.discard(name)
        return found

    def _claim(self, name: str, lease: Lease | None) -> None:
        for family, claims in self._claims.items():
            subnet = lease.subnet(family) if lease is not None else None
            if subnet is not None:
                claims.add(subnet, name)

    def _disclaim(self, name: str, lease: Lease | None) -> None:
        for family, claims in self._claims.items():
            subnet = lease.subnet(family) if lease is not None else None
            if subnet is not None:
                claims.remove(subnet, name)


def _key(lease: Lease | None) -> SubnetKey | None:
    return lease.key if lease is not None else None


def _lost_data(last: LeaseAttrs, now: LeaseAttrs) -> str:
    """What a node of the same backend published before and does not any more."""
    if last.backend_type != now.backend_type:
        return ""
    for family, name in names.DATA.items():
        if names.has_fields(last.data(family)) and not names.has_fields(now.data(family)):
            return f"its {name} is {now.data(family) or names.NO_DATA}; the former is followed"
    return ""


class _Claims:
    """Who claims which subnet of one family. A cluster has one or two prefix lengths."""

    def __init__(self) -> None:
        self._by_subnet: dict[IPNetwork, set[str]] = {}
        self._lengths: Counter[int] = Counter()

    def add(self, subnet: IPNetwork, name: str) -> None:
        claimants = self._by_subnet.setdefault(subnet, set())
        if not claimants:
            self._lengths[subnet.prefixlen] += 1
        claimants.add(name)

    def remove(self, subnet: IPNetwork, name: str) -> None:
        claimants = self._by_subnet.get(subnet, set())
        claimants.discard(name)
        if not claimants and self._by_subnet.pop(subnet, None) is not None:
            self._lengths[subnet.prefixlen] -= 1
            if not self._lengths[subnet.prefixlen]:
                del self._lengths[subnet.prefixlen]

    def overlapping(self, subnet: IPNetwork) -> set[str]:
        found = set(self._by_subnet.get(subnet, ()))
        if len(self._lengths) == 1 and subnet.prefixlen in self._lengths:
            return found
        for length in self._lengths:
            if length < subnet.prefixlen:
                found |= self._by_subnet.get(subnet.supernet(new_prefix=length), set())
            elif length > subnet.prefixlen:
                for other, claimants in self._by_subnet.items():
                    if other.prefixlen == length and other.network_address in subnet:
                        found |= claimants
        return found
