"""Leases: who owns which subnet, and how the set of them changes.

A *lease* is a dated claim of one node on one subnet, with the attributes its peers need to reach
it. `LeaseTable` is the one place where a snapshot or a batch of changes becomes the difference that
backends are told about. It compares by value, so a peer that came back with another public IP or
VTEP MAC while we were not looking is a change; it never reports our own lease; and it drops what
lies outside the network, so that nobody can draw a route of ours to somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAttrs:
    """What a node publishes about itself; the value of its etcd key."""

    public_ip: IPv4Address | None = None
    """Underlay address the peers send to; `None` is written as `0.0.0.0`."""
    public_ipv6: IPv6Address | None = None
    """The same for IPv6; written as `null` when missing."""
    backend_type: str = ""
    """Canonical backend name; empty (and not written) for udp, alloc and tencent-vpc."""
    backend_data: str | None = None
    """Raw compact JSON text of the backend's own data for IPv4, `None` if there is none."""
    backend_v6_data: str | None = None
    """The same for IPv6."""

    def underlay(self, family: Family) -> IPAddress | None:
        """The public address of one family."""
        return self.public_ip if family is Family.V4 else self.public_ipv6

    def data(self, family: Family) -> str | None:
        """The raw backend data of one family."""
        return self.backend_data if family is Family.V4 else self.backend_v6_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One node's claim on one subnet (or pair of subnets)."""

    key: SubnetKey
    attrs: LeaseAttrs
    expires: float | None = field(default=None, compare=False)
    """Seconds since the epoch; `None` for a reservation, or when nobody asked. Not compared: a
    renewal is not a change."""
    store_lease: int = field(default=0, compare=False)
    """Id of the etcd lease the key hangs on; 0 means no time limit, a *reservation*."""
    revision: int = field(default=0, compare=False)
    """Store revision of the last write of the key (`mod_revision`)."""

    def subnet(self, family: Family) -> IPNetwork | None:
        """The subnet of one family, or `None`."""
        return self.key.subnet(family)

    @property
    def is_reservation(self) -> bool:
        """Whether the lease has no time limit and belongs to its public IP for ever."""
        return self.store_lease == 0


@dataclass(frozen=True, slots=True)
class LeaseAdded:
    """A peer's lease is new, or its attributes changed (then `previous` is what they were)."""

    lease: Lease
    previous: Lease | None = None


@dataclass(frozen=True, slots=True)
class LeaseRemoved:
    """A peer's lease is gone; `lease` is what we knew of it, attributes included."""

    lease: Lease


LeaseEvent = LeaseAdded | LeaseRemoved


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All leases at one revision. Whatever is not in it is gone."""

    leases: Sequence[Lease]
    revision: int


@dataclass(frozen=True, slots=True)
class LeasePut:
    """One key was written."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseDeleted:
    """One key was deleted or expired; the store tells only which."""

    key: SubnetKey


@dataclass(frozen=True, slots=True)
class Changes:
    """Every event of one answer of the store, in order."""

    events: Sequence[LeasePut | LeaseDeleted]
    revision: int


LeaseUpdate = Snapshot | Changes
"""What `LeaseStore.watch_leases` yields; the first one is always a `Snapshot`."""


class LeaseTable:
    """The peers we know. Feed it what the store says, get what is different.

    Not thread-safe; belongs to the driver.
    """

    def __init__(self, *, network: IPv4Network | None, network6: IPv6Network | None) -> None:
        self._network = network
        self._network6 = network6
        self._own: SubnetKey | None = None
        self._at_own: Lease | None = None
        self._peers: dict[SubnetKey, Lease] = {}
        self.rejected: dict[SubnetKey, str] = {}
        """Leases that are not peers, each with the reason; for `status`."""
        self._unsaid: dict[SubnetKey, str] = {}

    @property
    def peers(self) -> dict[SubnetKey, Lease]:
        """The known peers. The caller must not change it."""
        return self._peers

    def new_rejections(self) -> list[tuple[SubnetKey, str]]:
        """Rejections since the last call, each subnet once, also if it was rejected before."""
        fresh, self._unsaid = list(self._unsaid.items()), {}
        return fresh

    def set_own(self, own: SubnetKey | None) -> list[LeaseEvent]:
        """Tells which lease is ours; it is never reported.

        A peer that was known there goes. Whoever holds the key that was ours until now is a peer
        from now on: that is why we lost it.
        """
        if own == self._own:
            return []
        events: list[LeaseEvent] = []
        if own is not None and own in self._peers:
            events.append(LeaseRemoved(self._peers.pop(own)))
        self._own, heir, self._at_own = own, self._at_own, None
        if heir is not None and self._accept(heir):
            self._peers[heir.key] = heir
            events.append(LeaseAdded(heir))
        return events

    def apply(self, update: LeaseUpdate) -> list[LeaseEvent]:
        """Takes one update and returns what changed, removals first.

        Removals come first so that a subnet which moved from one key to another (`10.5.1.0-24` to
        `10.5.1.0-24&fd00::-64`) ends up present.
        """
        if isinstance(update, Snapshot):
            wanted: dict[SubnetKey, Lease | None] = dict.fromkeys(self._peers)
            self.rejected = {}
            self._at_own = None
            for lease in update.leases:
                wanted[lease.key] = lease if self._accept(lease) else None
        else:
            wanted = {}
            for event in update.events:
                if isinstance(event, LeaseDeleted):
                    wanted[event.key] = None
                    if event.key == self._own:
                        self._at_own = None
                    self.rejected.pop(event.key, None)
                else:
                    wanted[event.lease.key] = event.lease if self._accept(event.lease) else None
        return self._difference(wanted.items())

    def _difference(self, wanted: Iterable[tuple[SubnetKey, Lease | None]]) -> list[LeaseEvent]:
        removed: list[LeaseEvent] = []
        added: list[LeaseEvent] = []
        for key, lease in wanted:
            known = self._peers.get(key)
            if lease is None:
                if known is not None:
                    del self._peers[key]
                    removed.append(LeaseRemoved(known))
                continue
            self._peers[key] = lease
            if known != lease:
                added.append(LeaseAdded(lease, known))
        return removed + added

    def _accept(self, lease: Lease) -> bool:
        if lease.key == self._own:
            self._at_own = lease
            return False
        reason = self._why_not(lease.key)
        if reason:
            self._unsaid[lease.key] = reason
            self.rejected[lease.key] = reason
            return False
        self.rejected.pop(lease.key, None)
        return True

    def _why_not(self, key: SubnetKey) -> str:
        if key.v4 is not None and (self._network is None or not key.v4.subnet_of(self._network)):
            return f"{key.v4} is outside the network {self._network}"
        if key.v4 is not None and key.v4 == self._network:
            return f"{key.v4} is the whole network"
        if key.v6 is not None and self._network6 is not None:
            if not key.v6.subnet_of(self._network6):
                return f"{key.v6} is outside the IPv6 network {self._network6}"
        elif key.v4 is None:
            return f"{key.describe()} has no subnet of a family that this network uses"
        return ""
