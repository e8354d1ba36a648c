"""Which addresses of a peer are probed, by its backend and its lease.

Only data in the lease is used, so a peer with upstream's daemon is probed in the same way. With a
tunnel the target is the first address of its subnet, which vxlan, udp and ipip put on their device.
If it is silent, the next address is probed too, its bridge's. (Kernels before 5.14 take the first
address of a bridge's subnet for a broadcast, and do not answer ping to it.) With plain routes over
the underlay no overlay address exists on every node. Then the target is the node's public address,
and the probe shows whether that answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pyflannel.core.ip import Family, IPAddress, SubnetKey
from pyflannel.core.kind import Probed
from pyflannel.core.lease import Lease
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The targets of one peer in one family."""

    key: SubnetKey
    family: Family
    overlay: tuple[IPAddress, ...]
    """Reached through the tunnel. An answer from either counts."""
    underlay: IPAddress | None
    """Reached outside the tunnel; `None` without a tunnel."""


def targets(lease: Lease, probed: Probed, families: Collection[Family]) -> Iterator[Target]:
    """The targets of a peer; none if its backend has no address that answers.

    Args:
        lease: the peer's.
        probed: how its kind of backend is probed.
        families: those that the backend carries and the network config enables.
    """
    if probed is Probed.NOTHING:
        return
    for family in families:
        subnet, public = lease.subnet(family), lease.attrs.underlay(family)
        if subnet is None or public is None or public.is_unspecified:
            continue
        if probed is Probed.NODE:
            yield Target(key=lease.key, family=family, overlay=(public,), underlay=None)
            continue
        first = subnet.network_address
        own = (first, first + 1) if subnet.num_addresses > 1 else (first,)
        yield Target(key=lease.key, family=family, overlay=own, underlay=public)
