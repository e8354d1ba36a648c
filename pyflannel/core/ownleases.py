"""Which leases are this node's own, of those that are in the store.

A lease is *recognised* if our own record names it (subnet, etcd lease, and an address that we
published), or if it has our VTEP MAC. Others are ours by the public address that they have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, IPAddress, SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A lease of this node's former run, as the state directory remembers it."""

    key: SubnetKey
    store_lease: int
    """Id of its etcd lease; 0 for a reservation, which an address tells, not a record."""
    public: frozenset[IPAddress] = frozenset()
    """The addresses it was published with; empty if the record does not say."""

    def is_of(self, lease: Lease, attrs: LeaseAttrs) -> bool:
        """Whether this is the very lease, and not one that another node has put in its place.

        Args:
            lease: what stands in the store.
            attrs: ours now: we may have been ended between publishing an address and noting it.
        """
        if lease.key != self.key or lease.store_lease != self.store_lease or not self.store_lease:
            return False
        ours = self.public | {attrs.public_ip, attrs.public_ipv6}
        theirs = {lease.attrs.public_ip, lease.attrs.public_ipv6} - {None}
        return not self.public or any(ip in ours for ip in theirs if ip and not ip.is_unspecified)


def own_leases(
    leases: Iterable[Lease],
    attrs: LeaseAttrs,
    config: NetworkConfig,
    *,
    previous: SubnetKey | None = None,
    former: Former | None = None,
    intended: Former | None = None,
    foreign: Collection[SubnetKey] = (),
) -> list[Lease]:
    """This node's leases, the one to be used first; arguments as for `allocation.plan`.

    Those that were recognised come first: our record's (what we were about to write is newer than
    what we had), then those with our VTEP MAC, the newest first. Then those that have our public
    IP, in etcd's order: that of the keys' bytes.

    Where IPv4 is disabled every node has the public IP 0.0.0.0, so there the IPv6 one decides.
    (Upstream compares IPv4 even then, and every node takes the first node's lease for its own.)
    """
    candidates = [lease for lease in leases if lease.key not in foreign]
    macs = attrs.macs()
    recognised = [
        lease for lease in candidates if is_recognised(lease, attrs, macs, former, intended)
    ]
    recognised.sort(
        key=lambda lease: (
            intended is None or not intended.is_of(lease, attrs),
            former is None or not former.is_of(lease, attrs),
            -lease.revision,
        )
    )
    by_address = [
        lease
        for lease in candidates
        if lease not in recognised
        and is_under_our_address(lease, attrs, config)
        and (former is None or lease.is_reservation or lease.key in (previous, former.key))
    ]
    return recognised + sorted(by_address, key=lambda lease: str(lease.key))


def is_recognised(
    lease: Lease,
    attrs: LeaseAttrs,
    macs: frozenset[str],
    former: Former | None,
    intended: Former | None,
) -> bool:
    """Whether a lease is named by our record, or has one of our VTEP MACs."""
    if any(named is not None and named.is_of(lease, attrs) for named in (former, intended)):
        return True
    return lease.attrs.has_mac_of(macs)


def is_under_our_address(lease: Lease, attrs: LeaseAttrs, config: NetworkConfig) -> bool:
    """Whether a lease is held for our public IP; of which family see `own_leases`."""
    family = Family.V4 if config.enable_ipv4 else Family.V6
    ours = attrs.underlay(family)
    return ours is not None and lease.attrs.underlay(family) == ours
