"""Which addresses of a peer are probed, by what its backend makes of a lease.

Only what stands in the lease is used, so a peer with upstream's daemon is probed alike. With a
tunnel that is the first address of its subnet, which vxlan, udp and ipip put on their device; the
address of its bridge, the next one, is asked as well when that one is silent. (Kernels before 5.14
take the first address of a bridge's subnet for a broadcast, and answer no ping to it.) With plain
routes over the underlay there is no address of the overlay that every node has: then the node
itself is asked, at its public address, and what is told is whether that answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pyflannel.core.ip import Family, IPAddress, SubnetKey
from pyflannel.core.kind import Probed
from pyflannel.core.lease import Lease
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked of one peer in one family."""

    key: SubnetKey
    family: Family
    overlay: tuple[IPAddress, ...]
    """Reached through the tunnel; the second one counts as well as the first."""
    underlay: IPAddress | None
    """Reached beside it; `None` where there is no tunnel."""


def targets(lease: Lease, probed: Probed, families: Collection[Family]) -> Iterator[Target]:
    """What can be asked of a peer; nothing if its backend has nothing that answers.

    Args:
        lease: the peer's.
        probed: what its kind of backend says.
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
