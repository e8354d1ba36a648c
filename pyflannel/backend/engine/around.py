"""What is around the overlay on this node, and which of it the overlay would get in the way of.

Addresses of all links, and routes of others near the cluster networks. `kernel/surroundings.py`
sorts them, `core/overlap.py` judges; this module reads them when they may have changed, and says
what it finds once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from pyflannel.aio.pace import paced
from pyflannel.backend.engine.state import Dirty, Pass, State
from pyflannel.backend.plan import TableEntry
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, SubnetKey, family_of
from pyflannel.core.overlap import ANOTHER_SUBNET, CHANGE_NETWORK, Judge, Surroundings
from pyflannel.kernel.base import Address, Link, Netlink, Route
from pyflannel.kernel.ownership import is_kernels, is_protected
from pyflannel.kernel.surroundings import is_part_of_surroundings, obstacles, own_devices, survey
from pyflannel.logs import get_logger

log = get_logger(__name__)

NAMED_WARNINGS: Final = 20
"""Overlaps of one kind that get a log line each; all of them stand in the status."""


class Around:
    """The surroundings of one engine.

    Args:
        store_addresses: as in `Engine`.
        is_own_device: as in `Engine`.
    """

    def __init__(
        self,
        state: State,
        netlink: Netlink,
        store_addresses: Callable[[], Collection[IPAddress]],
        is_own_device: Callable[[str, str], bool],
    ) -> None:
        self._state = state
        self._netlink = netlink
        self._store_addresses = store_addresses
        self._is_own_device = is_own_device
        self._addresses: list[Address] = []
        self._routes: dict[Family, list[Route]] = {}
        self._others: dict[Family, list[Route]] = {}
        self._links: dict[int, Link] = {}
        self._around = Surroundings()
        self._seen: tuple[object, ...] = ()
        self._of_flannel: frozenset[int] = frozenset()
        self.judge = Judge(self._around)
        """Says what a subnet would get in the way of."""
        self.overlaps: list[str] = []
        """What a cluster network overlaps."""
        self.own_overlap = ""
        """What this node's own subnet overlaps."""

    @property
    def has_others(self) -> bool:
        """Whether routing daemons have routes near the cluster networks."""
        return any(self._others.values())

    async def look(self, work: Dirty, done: Pass) -> bool:
        """Reads what may have changed; returns whether something is to be judged anew."""
        if work.addresses:
            try:
                self._addresses = await self._netlink.addresses()
                await self._learn_names()
            except KernelError as error:
                done.failures["list of addresses"] = error
                self._state.dirty.addresses = True
        await self._read_others(work, done)
        around = self._survey() if work else self._around
        if around == self._around:
            return False
        self._around, self.judge = around, Judge(around)
        self._say_overlaps()
        return True

    async def take_routes(self, family: Family, listing: Iterable[TableEntry]) -> None:
        """Keeps of a listing what the overlay may get in the way of.

        That is little, beside a route per peer.
        """
        networks, store = self._state.plan.networks, frozenset(self._store_addresses())
        self._routes[family] = [
            route
            async for route in paced(listing)
            if isinstance(route, Route) and is_part_of_surroundings(route, networks, store)
        ]

    async def _read_others(self, work: Dirty, done: Pass) -> None:
        """Routes of routing daemons that the overlay has to do with."""
        if not work.others:
            return
        networks = self._state.plan.networks
        for family in {family_of(network) for network in networks}:
            try:
                near = await self._netlink.routes(family, near=networks)
            except KernelError as error:
                done.failures["list of routes"] = error
                self._state.dirty.others = True
                return
            self._others[family] = [r for r in near if is_protected(r) and not is_kernels(r)]

    def _survey(self) -> Surroundings:
        own, store = self._state.plan.own, frozenset(self._store_addresses())
        ours = self._state.own_indexes | self._of_flannel
        routes = [*self._routes.values(), *self._others.values()]
        seen = (own, store, ours, self._state.plan.networks, self._addresses, routes)
        if seen == self._seen:
            return self._around
        self._seen = seen
        every = [route for listed in routes for route in listed]
        self._judge_own(own, every, ours, store)
        return survey(
            self._addresses,
            every,
            own=own,
            ours=ours,
            networks=self._state.plan.networks,
            store=store,
            names={index: link.name for index, link in self._links.items()},
        )

    def _judge_own(
        self,
        own: SubnetKey | None,
        routes: Sequence[Route],
        ours: Collection[int],
        store: Collection[IPAddress],
    ) -> None:
        """Says when this node's own subnet gets in the way of something, and when that is over.

        The containers live in it, so it is kept until the next start.
        """
        underlay = self._state.view.underlay
        found = obstacles(
            self._addresses,
            routes,
            self._links.values(),
            ours=ours,
            underlay={underlay.index} if underlay is not None else (),
            networks=self._state.plan.networks,
            store=store,
        )
        conflict = found.of_kept(own) if own is not None else None
        text = str(conflict) if conflict is not None else ""
        if text and text != self.own_overlap:
            log.error(
                "this node's own subnet overlaps what the node is connected to",
                overlap=text,
                remedy=ANOTHER_SUBNET,
            )
        elif self.own_overlap and not text:
            log.info("this node's own subnet overlaps nothing any more")
        self.own_overlap = text

    async def _learn_names(self) -> None:
        """The links that matter; asked for when there is one that is not yet known."""
        indexes = {a.index for a in self._addresses if self._state.is_near(a.interface.network)}
        if not indexes <= self._links.keys():
            links = await self._netlink.links()
            self._links = {link.index: link for link in links}
            named = {link.index for link in links if link.name in self._state.specs}
            self._of_flannel = own_devices(links, self._is_own_device) | named

    def _say_overlaps(self) -> None:
        """Says once of each thing that a cluster network overlaps that it does."""
        found = [
            str(c) for network in self._state.plan.networks for c in self.judge.network(network)
        ]
        for text in found[:NAMED_WARNINGS]:
            if text not in self.overlaps:
                log.warning(
                    "the network overlaps what this node is connected to; where both have a route, "
                    "one of them is out of reach",
                    overlap=text,
                    remedy=CHANGE_NETWORK,
                )
        self.overlaps = found
