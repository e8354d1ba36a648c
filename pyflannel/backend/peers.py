"""What every plan asks of a peer first: is it of our kind, and where is it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.core.lease import Lease
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """Where a peer is, in one family."""

    family: Family
    subnet: IPNetwork
    """Of its containers."""
    address: IPAddress
    """Its public one, on the underlay."""


def sites(
    lease: Lease, backend_type: str, families: Sequence[Family]
) -> tuple[tuple[Site, ...], str]:
    """Where a peer is in each family that both sides have, and why not in more of them.

    Args:
        lease: the peer's.
        backend_type: what must stand in it.
        families: those that this node carries.

    Returns:
        The sites in the order of the families, and what is wrong with the lease; empty if nothing.
    """
    problem = type_problem(lease, backend_type)
    if problem:
        return (), problem
    found: list[Site] = []
    shared = [(family, subnet) for family in families if (subnet := lease.subnet(family))]
    if not shared:
        problem = f"it has no {' or '.join(map(str, families))} subnet"
    for family, subnet in shared:
        address = public_address(lease, family)
        if address is None:
            problem = f"it publishes no {family} address"
        else:
            found.append(Site(family, subnet, address))
    return tuple(found), problem


def type_problem(lease: Lease, backend_type: str) -> str:
    """Why a peer cannot be reached by this backend, if it published another type; else empty."""
    theirs = lease.attrs.backend_type
    if theirs == backend_type:
        return ""
    return f"its backend type is {theirs or 'not given'}, this node's is {backend_type}"


def public_address(lease: Lease, family: Family) -> IPAddress | None:
    """The underlay address of a peer; `None` also for `0.0.0.0`, which upstream writes for none."""
    address = lease.attrs.underlay(family)
    return None if address is None or address.is_unspecified else address
