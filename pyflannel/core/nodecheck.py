"""A network config and the leases in the store, against what one node is connected to. Pure.

What `pyflannel config check --node` says, by the rules that the daemon follows: `overlap.Judge` for
the network and the peers, `allocation.plan` for this node's own subnet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from random import Random
from typing import Final

from pyflannel.core import allocation, ownleases
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import SubnetsExhausted, SubnetsOverlap
from pyflannel.core.fields import Problem
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import CHANGE_NETWORK, MOVE_PEER, Judge, Kind, Obstacles
from pyflannel.records import dataclass

MOST_NAMED: Final = 20
"""Peers of one kind that are named each; of more the number is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What this node will have."""

    plan: allocation.Plan | None
    """`None` if there is nothing for it."""
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> SubnetKey | None:
        """The subnet that it has already, or had; a new one is drawn at the start."""
        plan = self.plan
        return None if plan is None or isinstance(plan.step, allocation.TakeFree) else plan.key


def own(
    config: NetworkConfig,
    leases: Collection[Lease],
    attrs: LeaseAttrs,
    obstacles: Obstacles | None,
    *,
    previous: SubnetKey | None,
    former: ownleases.Former | None,
) -> Own:
    """Which subnet a start would take, and what is said about it; arguments as for `plan`."""
    try:
        plan = allocation.plan(
            config,
            leases,
            attrs,
            previous=previous,
            rng=Random(0),  # noqa: S311 - which of the free ones does not matter
            former=former,
            obstacles=obstacles,
        )
    except SubnetsOverlap as error:
        return Own(plan=None, problems=(Problem.error("Network", str(error)),))
    except SubnetsExhausted as error:
        return Own(plan=None, problems=(Problem.warning("Network", str(error)),))
    found = [
        Problem.warning(
            "",
            f"this node's {'reservation' if lease.is_reservation else 'lease'} is not used: "
            f"{conflict}; another subnet is taken at the next start",
            CHANGE_NETWORK,
        )
        for lease, conflict in plan.overlapping
    ]
    if plan.previous_refused and not plan.overlapping:
        found.append(Problem.warning("", f"{plan.previous_refused}; another one is taken"))
    return Own(plan=plan, problems=tuple(found))


def overlaps(
    config: NetworkConfig,
    judge: Judge,
    peers: Iterable[Lease],
    *,
    route_per_peer: bool,
) -> Iterator[Problem]:
    """What the network and the peers' subnets are in the way of on this node.

    Args:
        judge: of this node, with the subnet that it has.
        peers: the leases of the other nodes.
        route_per_peer: whether the backend has a route for each; else it has one for the network.
    """
    for network in config.networks:
        left_out = None if route_per_peer else judge.network_route(network)
        if left_out is not None:
            yield Problem.warning(
                "Network", f"the overlay gets no route here: {left_out}", CHANGE_NETWORK
            )
        for conflict in judge.network(network):
            if left_out is None or conflict.other != left_out.other:
                yield Problem.warning("Network", str(conflict), CHANGE_NETWORK)
    if route_per_peer:
        yield from _peers(config, judge, peers)


def _peers(config: NetworkConfig, judge: Judge, peers: Iterable[Lease]) -> Iterator[Problem]:
    found = [
        (conflict.kind is Kind.INSIDE, lease, conflict)
        for lease in peers
        for family in config.families
        if (subnet := lease.subnet(family)) is not None
        and (conflict := judge.subnet(subnet)) is not None
    ]
    for carried, verdict, remedy in (
        (False, "left out", MOVE_PEER),
        (True, "carried all the same", CHANGE_NETWORK),
    ):
        of_kind = [(lease, conflict) for inside, lease, conflict in found if inside is carried]
        for lease, conflict in of_kind[:MOST_NAMED]:
            address = lease.attrs.public_ip or lease.attrs.public_ipv6
            yield Problem.warning("", f"the peer {address} is {verdict}: {conflict}", remedy)
        if len(of_kind) > MOST_NAMED:
            more = len(of_kind) - MOST_NAMED
            yield Problem.warning("", f"{more} more peers are {verdict} for such a reason", remedy)
