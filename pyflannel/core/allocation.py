"""Which subnet this node asks for: the one it holds, the one it had, else a free one.

`ownleases.py` says which leases are this node's, `freesubnets.py` which subnets are free.

1. A lease is *recognised* as ours: it is one that our own record names (subnet, etcd lease, and
   an address that we published), or it has our VTEP MAC. Its public IP may be a former one; the
   containers of this node live in it. The record names the one that we had, and the one that we
   were about to write when we were killed.
2. A lease has our public IP: it is ours, no matter who wrote it (a former run, an operator's
   reservation). But an address may come to this node from another one (a virtual address that
   failed over), and with it the other one's lease. So where we have a record, only a reservation,
   or the lease of a subnet that was ours, is taken for ours by its address.
3. `subnet.env`, a lost lease or the record names a *previous* subnet: it is taken back if it is
   free and fits.
4. A free one is drawn at random among the lowest hundred.

What is ours and does not fit the config has to go, and so has a second one that was recognised.
A subnet that this node is connected to otherwise (`core.overlap.Obstacles`) is not taken in any of
these steps: a lease of ours is given back then, and a reservation left to its author. Steps 2 (for
every lease), 3 and 4 are upstream's.

Everything here is a function of the config and of the leases read; nothing is written. Between the
decision and the write another node may take the subnet: the write is conditional, and after a lost
race the caller reads and plans again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random

from pyflannel.core.config import NetworkConfig
from pyflannel.core.freesubnets import choose, is_compatible, overlap
from pyflannel.core.ip import SubnetKey, format_network
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import Conflict, Obstacles
from pyflannel.core.ownleases import Former, is_recognised, own_leases
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True)
class Reuse:
    """A lease of ours fits: keep its key, put our attributes there."""

    lease: Lease

    @property
    def key(self) -> SubnetKey:
        """The subnet it is about."""
        return self.lease.key


@dataclass(frozen=True, slots=True)
class TakePrevious:
    """No lease is ours, but the subnet we had before is free and fits."""

    key: SubnetKey


@dataclass(frozen=True, slots=True)
class TakeFree:
    """A subnet that is free."""

    key: SubnetKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do about our lease."""

    step: Reuse | TakePrevious | TakeFree
    incompatible: tuple[Lease, ...] = ()
    """Leases of ours that the config does not allow (any more), to be deleted first. Reservations
    too: left in place, peers would go on sending us packets for a subnet that we do not have."""
    superseded: tuple[Lease, ...] = ()
    """Further leases that were recognised as ours, to be deleted when we have the one of `step`:
    two with one VTEP MAC contradict each other."""
    overlapping: tuple[tuple[Lease, Conflict], ...] = ()
    """Leases of ours that are in the way of what this node is connected to, to be deleted first,
    but for reservations."""
    previous_refused: str = ""
    """Why the previous subnet was not taken, as a sentence for the log; empty if there was no need
    to look at it."""

    @property
    def key(self) -> SubnetKey:
        """The subnet that this node is going to have."""
        return self.step.key

    @property
    def reuse(self) -> Lease | None:
        """The lease to be kept, if there is one."""
        return self.step.lease if isinstance(self.step, Reuse) else None

    @property
    def is_previous(self) -> bool:
        """Whether the previous subnet is taken back."""
        return isinstance(self.step, TakePrevious)


def plan(
    config: NetworkConfig,
    leases: Iterable[Lease],
    attrs: LeaseAttrs,
    *,
    previous: SubnetKey | None,
    rng: Random,
    former: Former | None = None,
    intended: Former | None = None,
    foreign: Collection[SubnetKey] = (),
    obstacles: Obstacles | None = None,
    races_lost: int = 0,
) -> Plan:
    """Decides which subnet this node asks for.

    Args:
        config: a valid config; at least one family is enabled.
        leases: all leases in the store.
        attrs: ours; only the public addresses and VTEP MACs are looked at.
        previous: the subnet that this node had before, if it remembers one.
        rng: draws among the free ones.
        former: the lease that our own record says we had.
        intended: the one that it says we were about to write.
        foreign: keys that looked like ours, and whose holder has turned out to be alive.
        obstacles: what this node is connected to; `None` if that is not known.
        races_lost: how often a free subnet that we had drawn was another's when we wrote it.

    Raises:
        SubnetsExhausted: no lease is ours, and nothing is free.
        SubnetsOverlap: the same, and no other node's leases are to blame.
    """
    known = list(leases)
    own = own_leases(
        known,
        attrs,
        config,
        previous=previous,
        former=former,
        intended=intended,
        foreign=foreign,
    )
    incompatible = tuple(lease for lease in own if not is_compatible(lease.key, config))
    fitting: list[Lease] = []
    overlapping: list[tuple[Lease, Conflict]] = []
    for lease in own:
        conflict = obstacles.of_kept(lease.key) if obstacles is not None else None
        if conflict is not None and lease not in incompatible:
            overlapping.append((lease, conflict))
        elif lease not in incompatible:
            fitting.append(lease)
    if fitting:
        superseded = tuple(
            lease
            for lease in fitting[1:]
            if not lease.is_reservation
            and is_recognised(lease, attrs, attrs.macs(), former, intended)
        )
        return Plan(
            step=Reuse(fitting[0]),
            incompatible=incompatible,
            superseded=superseded,
            overlapping=tuple(overlapping),
        )
    ours_if_free = [
        key
        for key in (previous, former.key if former is not None else None)
        if key is not None
        and is_compatible(key, config)
        and (obstacles is None or obstacles.of_kept(key) is None)
    ]
    going = {lease.key for lease in incompatible}
    staying = [lease for lease in known if lease.key not in going]
    refused = ""
    for key in (previous, former.key if former is not None else None):
        if key is None or key in foreign:
            continue
        why_not = _why_not_previous(key, config, staying, obstacles)
        if not why_not:
            return Plan(
                step=TakePrevious(key), incompatible=incompatible, overlapping=tuple(overlapping)
            )
        refused = refused or why_not
    free = choose(
        config, [lease.key for lease in staying], rng, obstacles, races_lost, ours_if_free
    )
    return Plan(
        step=TakeFree(free),
        incompatible=incompatible,
        overlapping=tuple(overlapping),
        previous_refused=refused,
    )


def _why_not_previous(
    previous: SubnetKey,
    config: NetworkConfig,
    taken: Iterable[Lease],
    obstacles: Obstacles | None,
) -> str:
    if not is_compatible(previous, config):
        return f"previous subnet {previous.describe()} does not fit the current config"
    conflict = obstacles.of_kept(previous) if obstacles is not None else None
    if conflict is not None:
        return f"previous subnet {conflict}"
    for other in taken:
        mine = overlap(previous, other.key)
        if mine is not None:
            holder = other.attrs.public_ip or other.attrs.public_ipv6 or "a node without an address"
            return (
                f"previous subnet {format_network(mine)} is leased as {other.key.describe()} "
                f"by {holder}"
            )
    return ""
