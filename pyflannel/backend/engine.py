"""The reconciling engine: makes the kernel hold what a backend wants, whatever happened to it.

The problem. A node's overlay consists of a device or two, and per peer of one to three objects in
the kernel (neighbour, FDB entry, route). Everybody with root can change them, and much of the
kernel does: a device that goes down, loses its only address or changes its MAC takes routes and
permanent neighbours along without telling which; an underlay interface that is replaced takes the
vxlan device with it. A daemon that only reacts to lease events never notices.

The objects. A backend says *what*, as values and pure functions, in a `Plan` (`plan.py`). The
engine knows *how*:

1. Devices (`devices.py`): looked up by name; missing → created, unusable → created anew, attributes
   and addresses corrected one by one.
2. Tables (`tables.py`): read back when they may have changed, each into a `DeltaMap` of desired and
   actual.
3. Surroundings (`kernel/surroundings.py`): addresses of all links and routes of others. A peer
   whose subnet would get in their way is left out until they are gone (`core/overlap.py` decides).
4. Paths, for plans that ask for them (direct routing): route look-ups of the peers' underlay
   addresses, repeated when routes that are not ours changed.
5. The difference, in one batch: wrong duplicates away; sets, dependencies first (neighbour, FDB
   entry, route); deletes in the reverse order.

One changed lease costs the objects of that lease, whatever the number of peers. Reading back is
done for what a notification pointed at, and for everything on `full`. A notification that reports
what is wanted anyway, or the end of what is not wanted, costs nothing: so the kernel echoes our own
writes. (To expect an echo for each write, and swallow it, was tried and is wrong: the
kernel is silent about a write that changes nothing, and the expectation then swallows the next
change that somebody else makes.)

What the engine never does: delete anything it cannot recognise as its own; sweep leftovers before
`synced`; let one failing peer hold up another. Every failure is named in `PartlyApplied`, stays
pending, and is tried again on the next `full` pass or after the next relevant notification.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Final

from pyflannel.aio.pace import Pace, drained, paced
from pyflannel.backend.base import (
    Applied,
    BackendContext,
    DeviceClaim,
    PartlyApplied,
    SysctlWriter,
)
from pyflannel.backend.devices import DeviceKeeper
from pyflannel.backend.plan import (
    Device,
    PeerObjects,
    Plan,
    Table,
    TableEntry,
    View,
    shared_devices,
)
from pyflannel.backend.routes import explain
from pyflannel.backend.tables import (
    KIND,
    RANK,
    Key,
    Owner,
    TableId,
    TableState,
    overrules,
    table_id,
)
from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey, family_of
from pyflannel.core.kind import OWN_VNI
from pyflannel.core.lease import Lease, LeaseAdded, LeaseEvent
from pyflannel.core.overlap import (
    ANOTHER_SUBNET,
    CHANGE_NETWORK,
    DELETE_LEASE,
    Conflict,
    Judge,
    Surroundings,
    overlap,
)
from pyflannel.kernel.base import (
    NUD_PERMANENT,
    Address,
    Delete,
    FdbEntry,
    Link,
    Neighbour,
    Netlink,
    Notification,
    Operation,
    Route,
    Set,
    Topic,
)
from pyflannel.kernel.ownership import LISTED, is_kernels, is_near, is_protected
from pyflannel.kernel.surroundings import (
    is_part_of_surroundings,
    obstacles,
    own_devices,
    survey,
)
from pyflannel.kernel.sysctl import try_write_sysctl
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import DeviceReport, NetworkReport

log = get_logger(__name__)

NAMED_PEERS: Final = 20
"""Peers that get a log line in one pass."""
NAMED_WARNINGS: Final = 20
"""Overlaps of one kind that get a log line each; all of them stand in the status."""


@dataclass(slots=True)
class _Dirty:
    """What the next pass must read back."""

    links: bool = False
    addresses: bool = False
    """Those of all links: what the overlay must not get in the way of."""
    others: bool = False
    """Routes of routing daemons near the network. There may be a hundred thousand farther off, so
    they are read when one of them may have changed, and not with every full pass."""
    kinds: set[type[TableEntry]] = field(default_factory=set)

    @classmethod
    def all(cls) -> _Dirty:
        return cls(links=True, addresses=True, kinds={Route, Neighbour, FdbEntry})

    @classmethod
    def unknown(cls) -> _Dirty:
        """Anything may have happened."""
        work = cls.all()
        work.others = True
        return work

    def add(self, other: _Dirty) -> None:
        self.links |= other.links
        self.others |= other.others
        self.addresses |= other.addresses
        self.kinds |= other.kinds

    def __bool__(self) -> bool:
        return self.links or self.addresses or self.others or bool(self.kinds)


@dataclass(slots=True)
class _Pass:
    """What one pass has done so far."""

    changed: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    failures: dict[str, FlannelError] = field(default_factory=dict)
    unread: bool = False
    """Whether a table could not be listed."""

    def count(self, kind: str, *, repair: bool) -> None:
        if repair:
            self.repaired[kind] += 1
        else:
            self.changed += 1


class Engine:
    """Keeps the kernel as a plan says.

    Owned by one task. `notice` may be called while another method is under way, nothing else may.

    Args:
        netlink: the kernel.
        plan: what to keep; `follow` replaces it.
        write_sysctl: how a sysctl is written; by default the file under /proc/sys.
        claim_device: as in `BackendContext`.
        store_addresses: where the store is; no route of ours may lead there.
        is_own_device: whether a device, by name and kind of link, is of any backend; its addresses
            and routes are in no one's way.
        held: called when a pass finds all devices as they are to be.
    """

    def __init__(
        self,
        netlink: Netlink,
        plan: Plan,
        *,
        write_sysctl: SysctlWriter = try_write_sysctl,
        claim_device: DeviceClaim = lambda _name: None,
        store_addresses: Callable[[], Collection[IPAddress]] = tuple,
        is_own_device: Callable[[str, str], bool] = lambda _name, _kind: False,
        held: Callable[[], None] = lambda: None,
    ) -> None:
        self._netlink = netlink
        self._plan = plan
        self._keeper = DeviceKeeper(netlink, write_sysctl, claim_device)
        self._paths: dict[IPAddress, Route | None] = {}
        self._strangers: dict[int, Mapping[str, Neighbour]] = {}
        self._view = View(paths=self._paths, strangers=self._strangers)
        self._specs: dict[str, Device] = {}
        self._tables: dict[TableId, TableState] = {}
        self._foreign: dict[Family, list[TableEntry]] = {}
        self._store_addresses = store_addresses
        self._is_own_device = is_own_device
        self._held = held
        self._addresses: list[Address] = []
        self._routes: dict[Family, list[Route]] = {}
        self._others: dict[Family, list[Route]] = {}
        self._links: dict[int, Link] = {}
        self._around = Surroundings()
        self._judge = Judge(self._around)
        self._conflicts: dict[Owner, tuple[Conflict, ...]] = {}
        self._seen: tuple[object, ...] = ()
        self._of_flannel: frozenset[int] = frozenset()
        self._warned: set[Conflict] = set()
        self._overlaps: list[str] = []
        self._own_overlap = ""
        self._peers: dict[SubnetKey, Lease] = {}
        self._objects: dict[Owner, tuple[TableEntry, ...]] = {}
        self._pending: dict[Owner, None] = {}
        self._problems: dict[Owner, str] = {}
        self._ignored: dict[str, str] = {}
        """The same by name, and below what fails: made as they change, for reports are frequent."""
        self._failing: dict[str, str] = {}
        self._named = 0
        self._contested: set[Key] = set()
        self._link_failures: dict[str, FlannelError] = {}
        self._dirty = _Dirty.unknown()
        self._replanned = True
        self._synced = False
        self._swept = False

    @classmethod
    def of(cls, context: BackendContext, plan: Plan) -> Engine:
        """The engine of a backend, with what its context offers."""
        return cls(
            context.netlink,
            plan,
            write_sysctl=context.write_sysctl,
            claim_device=context.claim_device,
            store_addresses=context.store_addresses,
            is_own_device=context.is_own_device,
            held=context.held,
        )

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._plan

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """As in `Network`."""
        return None if self._plan.follows_routes else self._plan.networks

    @property
    def links(self) -> Mapping[str, Link]:
        """The plan's devices as last seen, by name."""
        return self._view.links

    @property
    def underlay(self) -> Link | None:
        """The external interface as last seen."""
        return self._view.underlay

    @property
    def peers(self) -> Mapping[SubnetKey, Lease]:
        """The peers known, those with problems included."""
        return self._peers

    def follow(self, plan: Plan) -> None:
        """Puts another plan in force; the next pass makes the kernel follow."""
        self._plan = plan
        self._replanned = True
        self._dirty.add(_Dirty.all())

    def update(self, events: Iterable[LeaseEvent]) -> None:
        """Takes lease events; the next pass computes the objects of these leases only."""
        for event in events:
            key = event.lease.key
            if isinstance(event, LeaseAdded):
                self._peers[key] = event.lease
            else:
                self._peers.pop(key, None)
                for address in self._plan.destinations(event.lease):
                    self._paths.pop(address, None)
            self._pending[key] = None

    def synced(self) -> None:
        """From now on what is ours and not wanted is deleted."""
        self._synced = True
        self._dirty.add(_Dirty.all())

    def notice(self, notification: Notification) -> bool:
        """Whether a notification may concern the plan; what it points at is read back next time."""
        dirty = self._pointed_at(notification)
        if dirty is None:
            return False
        self._dirty.add(dirty)
        return True

    def _pointed_at(self, notification: Notification) -> _Dirty | None:
        indexes = {0, *(link.index for link in self._view.links.values())}
        match notification.topic:
            case Topic.OVERFLOW:
                return _Dirty.unknown()
            case Topic.NEIGHBOUR:
                if notification.index not in indexes or not self._is_news(notification):
                    return None
                if notification.family is not None:
                    return _Dirty(kinds={Neighbour})
                # Whose an FDB entry is, its neighbour tells.
                return _Dirty(kinds={FdbEntry, Neighbour})
            case Topic.ROUTE:
                if self._is_of_others(notification):
                    return _Dirty(kinds={Route}, others=True)
                if notification.dst is None or self._plan.concerns(notification.dst):
                    return _Dirty(kinds={Route}) if self._is_news(notification) else None
                # A route of somebody else may be the way to a peer, or to one that failed so far.
                failing = any(table.held for table in self._tables.values())
                if self._paths or failing or self._is_in_the_way(notification):
                    return _Dirty(kinds={Route})
                return None
            case Topic.LINK | Topic.ADDRESS:
                if self._view.underlay is not None:
                    indexes.add(self._view.underlay.index)
                named = notification.name in {self._plan.underlay, *self._specs}
                unknown = notification.index == 0 and not notification.name
                known = notification.index in indexes and notification.index != 0
                if named or known or unknown:
                    return _Dirty.all()
                # One on another link may be in a peer's way, or its prefix.
                address = notification.object
                near = isinstance(address, Address) and self._is_near(address.interface.network)
                # Routes vanish with an address without a word of their own (IPv4).
                return _Dirty(addresses=True, kinds={Route}) if near else None

    def _is_near(self, net: IPNetwork) -> bool:
        """Whether a prefix has something in common with the cluster networks."""
        return any(overlap(net, network) for network in self._plan.networks)

    def _is_of_others(self, notification: Notification) -> bool:
        """Whether a route is one of a routing daemon which the overlay has to do with."""
        route = notification.object
        return (
            isinstance(route, Route)
            and is_protected(route)
            and not is_kernels(route)
            and is_near(route, self._plan.networks)
        )

    def _is_in_the_way(self, notification: Notification) -> bool:
        """Whether a route of somebody else changes what the overlay must not get in the way of."""
        route = notification.object
        if not isinstance(route, Route):
            return False
        if is_kernels(route):
            return self._is_near(route.dst)
        return is_near(route, self._plan.networks)

    def _is_news(self, notification: Notification) -> bool:
        """Whether what is reported is other than wanted.

        Reports come in the order of the changes: after that of what is right, any change is
        reported again.
        """
        thing = notification.object
        if thing is None or isinstance(thing, Address):
            return True
        table = self._tables.get(table_id(thing))
        if table is None or table.held:
            return True
        if isinstance(thing, Route) and is_protected(thing):
            return True
        wanted = table.delta.desired.get(thing.key)
        if notification.deleted or thing == wanted:
            return notification.deleted and wanted is not None
        if wanted is not None or overrules(thing, table.delta.desired):
            return True
        return self._plan.is_ours(thing, self._view, startup=not self._swept)

    async def ensure_devices(self) -> Applied:
        """Makes the plan's devices right, and nothing else. For what must exist before a lease.

        Raises:
            FlannelError: the first failure, if a device cannot be made, or made right.
        """
        done = _Pass()
        await self._ensure_links(done)
        for error in self._link_failures.values():
            raise error
        return Applied(changed=done.changed, repaired=dict(done.repaired))

    async def apply(self, *, full: bool) -> Applied:
        """One pass; see the module's description.

        Raises:
            PartlyApplied: naming each peer, object or device that failed.
            KernelError: the kernel did not even answer; nothing was decided.
        """
        work, self._dirty = self._dirty, _Dirty()
        if full:
            work.add(_Dirty.all())
            # IPv4 routes vanish with their device without a word.
            work.others |= any(self._others.values())
        done, self._named = _Pass(), 0
        try:
            await self._converge(work, done)
        except BaseException:
            self._dirty.add(_Dirty.all())
            self._dirty.others |= work.others
            raise
        applied = Applied(changed=done.changed, repaired=dict(done.repaired))
        if done.failures:
            raise PartlyApplied(done.failures, applied)
        return applied

    async def _converge(self, work: _Dirty, done: _Pass) -> None:
        if work.links and await self._ensure_links(done):
            # A device that was corrected has lost who knows what.
            work.add(_Dirty.all())
        done.failures.update(self._link_failures)
        if not self._link_failures:
            self._held()
        await self._plan_peers(done)
        if await self._read_tables(work, done) and await self._look_up_again(done):
            await self._plan_peers(done)
        if await self._look_around(work, done):
            await self._plan_peers(done)
        if work:
            for table in self._tables.values():
                table.held.clear()
        await self._write(done)

    async def _ensure_links(self, done: _Pass) -> bool:
        """Looks after every device; returns whether anything was written or replaced."""
        underlay = await self._netlink.link(self._plan.underlay)
        failures: dict[str, FlannelError] = {}
        if underlay is None:
            failures[self._plan.underlay] = KernelError(
                "external interface", self._plan.underlay, errno.ENODEV, "waiting for it"
            )
        links: dict[str, Link] = {}
        specs: dict[str, Device] = {}
        written = False
        for device in self._plan.devices(underlay):
            specs[device.name] = device
            try:
                kept = await self._keeper.keep(device)
            except FlannelError as error:
                failures[device.name] = error
                continue
            failures.update(kept.failures)
            links[device.name] = kept.link
            written |= bool(kept.done)
            # What differs because the plan is new was not broken by anybody.
            repair = self._specs.get(device.name) == device
            for kind in kept.done:
                done.count(kind, repair=repair)
        before = self._view
        self._view = replace(before, underlay=underlay, links=links)
        self._specs = specs
        self._link_failures = failures
        if not self._replanned and _indexes(before) == _indexes(self._view):
            return written
        self._replanned = False
        self._rebuild_tables()
        everything: dict[Owner, None] = {None: None}
        for owners in (self._objects, self._peers, self._pending):
            async for owner in paced(owners):
                everything[owner] = None
        self._pending = everything
        return True

    def _rebuild_tables(self) -> None:
        """Tables of the devices there are now; what is known of lost devices is forgotten."""
        known, self._tables = self._tables, {}
        for table in self._plan.tables():
            where = self._id_of(table)
            if where is not None:
                state = self._tables[where] = known.get(where) or TableState()
                # What counts as ours may have become something else.
                state.forget_listing()

    def _id_of(self, table: Table) -> TableId | None:
        version = table.family.value if table.family is not None else 0
        if table.kind is Route:
            return ("route", version, 0)
        link = self._view.links.get(table.device)
        return None if link is None else (KIND[table.kind], version, link.index)

    async def _plan_peers(self, done: _Pass) -> None:
        """Computes the objects of what is pending, and puts in who wants them."""
        pending, self._pending = self._pending, {}
        try:
            async for owner in drained(list(pending)):
                lease = self._peers.get(owner) if owner is not None else None
                if lease is not None and not await self._look_up(lease, done):
                    self._pending[owner] = None
                self._claim(owner, self._objects_of(owner, lease))
                del pending[owner]
        finally:
            # Cancelled or failed on the way: the rest is still to be done.
            self._pending = {**pending, **self._pending}

    def _objects_of(self, owner: Owner, lease: Lease | None) -> tuple[TableEntry, ...]:
        if owner is None:
            return self._node_objects()
        if lease is None:
            if self._problems.pop(owner, None):
                del self._ignored[_describe(owner)]
            self._conflicts.pop(owner, None)
            return ()
        peer = self._plan.peer_objects(lease, self._view)
        conflicts = self._conflicts_of(lease)
        self._conflicts.pop(owner, None)
        if conflicts:
            self._conflicts[owner] = conflicts
        # A backend without a route for each peer (udp) takes nothing away by carrying one.
        if conflicts and any(isinstance(thing, Route) for thing in peer.objects):
            peer = self._without(lease, conflicts, peer)
            for conflict in conflicts:
                if not conflict.forbids:
                    self._warn(owner, conflict)
        if peer.problem and peer.problem != self._problems.get(owner):
            self._say_of_peer(log.warning, "peer ignored", owner, reason=peer.problem)
            self._problems[owner] = self._ignored[_describe(owner)] = peer.problem
        elif not peer.problem and self._problems.pop(owner, ""):
            self._say_of_peer(log.info, "peer is no longer ignored", owner)
            del self._ignored[_describe(owner)]
        return peer.objects

    def _node_objects(self) -> tuple[TableEntry, ...]:
        """What this node needs, but for a route that would take something else away from it."""
        objects: list[TableEntry] = []
        problems: list[str] = []
        for thing in self._plan.node_objects(self._view):
            conflict = self._judge.network_route(thing.dst) if isinstance(thing, Route) else None
            if conflict is None:
                objects.append(thing)
            else:
                problems.append(f"{thing} left out: {conflict}; {CHANGE_NETWORK}")
        problem = "; ".join(problems)
        if problem and problem != self._problems.get(None):
            log.error(
                "the overlay has no route, its packets do not leave this node", reason=problem
            )
            self._problems[None] = self._ignored[_describe(None)] = problem
        elif not problem and self._problems.pop(None, ""):
            log.info("the overlay has its route again")
            del self._ignored[_describe(None)]
        return tuple(objects)

    def _conflicts_of(self, lease: Lease) -> tuple[Conflict, ...]:
        """What a peer's subnets are in the way of, family by family."""
        subnets = (lease.subnet(family_of(network)) for network in self._plan.networks)
        found = (self._judge.subnet(subnet) for subnet in subnets if subnet is not None)
        return tuple(conflict for conflict in found if conflict is not None)

    def _without(
        self, lease: Lease, conflicts: Iterable[Conflict], peer: PeerObjects
    ) -> PeerObjects:
        """What a peer needs, but for the families whose subnet is in the way of something."""
        bad = [conflict for conflict in conflicts if conflict.forbids]
        if not bad:
            return peer
        subnets = [conflict.subnet for conflict in bad]
        v4, v6 = lease.key.v4, lease.key.v6
        left = SubnetKey(None if v4 in subnets else v4, None if v6 in subnets else v6)
        objects: tuple[TableEntry, ...] = ()
        if left != SubnetKey(None):
            objects = self._plan.peer_objects(replace(lease, key=left), self._view).objects
        reason = "; ".join(str(conflict) for conflict in bad)
        return PeerObjects(objects, f"{reason}; {DELETE_LEASE}")

    def _say_of_peer(
        self, say: Callable[..., None], event: str, owner: Owner, **fields: object
    ) -> None:
        """Says something of a peer; of very many in one pass it is said of the first ones."""
        self._named += 1
        if self._named <= NAMED_PEERS:
            say(event, peer=_describe(owner), **fields)
        elif self._named == NAMED_PEERS + 1:
            log.warning("there is something with more peers; pyflannel peers has all of them")

    def _warn(self, owner: SubnetKey, conflict: Conflict) -> None:
        """Says once that a peer is carried all the same."""
        if conflict in self._warned:
            return
        self._warned.add(conflict)
        if len(self._warned) <= NAMED_WARNINGS:
            log.warning(
                "peer carried, hosts with addresses of its subnet are no longer reached directly",
                peer=owner.describe(),
                reason=str(conflict),
            )
        elif len(self._warned) == NAMED_WARNINGS + 1:
            log.warning("more peers overlap a connected prefix; they are carried all the same")

    async def _look_around(self, work: _Dirty, done: _Pass) -> bool:
        """Sees what the overlay must not get in the way of; whether a peer is judged otherwise."""
        if work.addresses:
            try:
                self._addresses = await self._netlink.addresses()
                await self._learn_names()
            except KernelError as error:
                done.failures["list of addresses"] = error
                self._dirty.addresses = True
        await self._read_others(work, done)
        around = self._survey() if work else self._around
        if around == self._around:
            return False
        self._around, self._judge = around, Judge(around)
        self._say_overlaps()
        self._pending[None] = None
        async for owner, lease in paced(self._peers.items()):
            if self._conflicts_of(lease) != self._conflicts.get(owner, ()):
                self._pending[owner] = None
        return True

    async def _read_others(self, work: _Dirty, done: _Pass) -> None:
        """Routes of routing daemons that the overlay has to do with."""
        if not work.others:
            return
        networks = self._plan.networks
        for family in {family_of(network) for network in networks}:
            try:
                near = await self._netlink.routes(family, near=networks)
            except KernelError as error:
                done.failures["list of routes"] = error
                self._dirty.others = True
                return
            self._others[family] = [r for r in near if is_protected(r) and not is_kernels(r)]

    def _survey(self) -> Surroundings:
        own, store = self._plan.own, frozenset(self._store_addresses())
        ours = frozenset(link.index for link in self._view.links.values()) | self._of_flannel
        routes = [*self._routes.values(), *self._others.values()]
        seen = (own, store, ours, self._plan.networks, self._addresses, routes)
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
            networks=self._plan.networks,
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
        underlay = self._view.underlay
        found = obstacles(
            self._addresses,
            routes,
            self._links.values(),
            ours=ours,
            underlay={underlay.index} if underlay is not None else (),
            networks=self._plan.networks,
            store=store,
        )
        conflict = found.of_kept(own) if own is not None else None
        text = str(conflict) if conflict is not None else ""
        if text and text != self._own_overlap:
            log.error(
                "this node's own subnet overlaps what the node is connected to",
                overlap=text,
                remedy=ANOTHER_SUBNET,
            )
        elif self._own_overlap and not text:
            log.info("this node's own subnet overlaps nothing any more")
        self._own_overlap = text

    async def _learn_names(self) -> None:
        """The links that matter; asked for when there is one that is not yet known."""
        indexes = {a.index for a in self._addresses if self._is_near(a.interface.network)}
        if not indexes <= self._links.keys():
            links = await self._netlink.links()
            self._links = {link.index: link for link in links}
            named = {link.index for link in links if link.name in self._specs}
            self._of_flannel = own_devices(links, self._is_own_device) | named

    def _say_overlaps(self) -> None:
        """Says once of each thing that a cluster network overlaps that it does."""
        found = [str(c) for network in self._plan.networks for c in self._judge.network(network)]
        for text in found[:NAMED_WARNINGS]:
            if text not in self._overlaps:
                log.warning(
                    "the network overlaps what this node is connected to; where both have a route, "
                    "one of them is out of reach",
                    overlap=text,
                    remedy=CHANGE_NETWORK,
                )
        self._overlaps = found

    def _claim(self, owner: Owner, things: tuple[TableEntry, ...]) -> None:
        before = self._objects.pop(owner, ())
        if things:
            self._objects[owner] = things
        keys = {thing.key for thing in things}
        lease = self._peers.get(owner) if owner is not None else None
        rank = lease.revision if lease is not None else 0
        for thing in before:
            table = self._tables.get(table_id(thing))
            if table is not None and thing.key not in keys:
                table.unwant(owner, thing.key)
        for thing in things:
            table = self._tables[table_id(thing)]
            holder = table.owners.get(thing.key, owner)
            if holder != owner and thing.key not in self._contested:
                self._contested.add(thing.key)
                self._say_of_peer(
                    log.warning,
                    "two peers claim the same entry, the one that was written last gets it",
                    owner,
                    entry=str(thing),
                    other=_describe(holder),
                )
            table.want(owner, thing, rank)

    async def _look_up(self, lease: Lease, done: _Pass) -> bool:
        """Asks for the paths to a peer that are not known yet; `False` if one got no answer."""
        answered = True
        for address in self._plan.destinations(lease):
            if address not in self._paths:
                try:
                    self._paths[address] = await self._netlink.route_lookup(address)
                except KernelError as error:
                    done.failures[f"path to {address}"] = error
                    answered = False
        return answered

    async def _look_up_again(self, done: _Pass) -> bool:
        """Repeats all look-ups; returns whether a peer is reached another way than before."""
        before = dict(self._paths)
        # Emptied, not replaced: the view that plans look at shares it.
        self._paths.clear()
        async for owner, lease in paced(self._peers.items()):
            await self._look_up(lease, done)
            for address in self._plan.destinations(lease):
                if _way(before.get(address)) != _way(self._paths.get(address)):
                    self._pending[owner] = None
        return bool(self._pending)

    async def _read_tables(self, work: _Dirty, done: _Pass) -> bool:
        """Reads what may have changed; returns whether routes that are not ours did."""
        startup = not self._swept
        rerouted = False

        def is_ours(thing: TableEntry) -> bool:
            return self._plan.is_ours(thing, self._view, startup=startup)

        for table in self._plan.tables():
            where = self._id_of(table)
            if where is None or where not in self._tables:
                continue
            state = self._tables[where]
            if table.kind not in work.kinds and state.listing is not None:
                continue
            try:
                listing = await self._list(table, where)
            except KernelError as error:
                done.failures[f"list of {where[0]}s"] = error
                done.unread = True
                self._dirty.kinds.add(table.kind)
                continue
            if table.kind is Route and table.family is not None:
                self._routes[table.family] = await self._around_us(listing)
            rerouted |= await self._foreign_changed(table, listing)
            pace = Pace()
            for _ in state.taking(listing, is_ours):
                await pace.breathe()
            if table.kind is Neighbour:
                await self._meet(where[2], state.not_ours)
        return rerouted

    async def _meet(self, index: int, not_ours: Iterable[TableEntry]) -> None:
        """Takes note of the neighbours that another daemon has on a device of ours."""
        found = {
            thing.mac: thing
            async for thing in paced(not_ours)
            if isinstance(thing, Neighbour) and thing.state & NUD_PERMANENT
        }
        before = self._strangers.get(index, {})
        if found == before:
            return
        self._strangers[index] = found
        for (kind, _, on), table in self._tables.items():
            if kind == KIND[FdbEntry] and on == index:
                table.forget_listing()
        if bool(found) == bool(before):
            return
        device = next(link.name for link in self._view.links.values() if link.index == index)
        if found:
            sign = shared_devices(self._view, self._plan.networks)[device]
            log.warning("another daemon uses this device", device=device, sign=sign, remedy=OWN_VNI)
        else:
            log.info("no other daemon uses this device any more", device=device)

    async def _around_us(self, listing: Iterable[TableEntry]) -> list[Route]:
        """Of a listing what the overlay may get in the way of: little, beside a route per peer."""
        networks, store = self._plan.networks, frozenset(self._store_addresses())
        return [
            route
            async for route in paced(listing)
            if isinstance(route, Route) and is_part_of_surroundings(route, networks, store)
        ]

    async def _list(self, table: Table, where: TableId) -> list[TableEntry]:
        if table.family is None:
            return list(await self._netlink.fdb(where[2]))
        if table.kind is Neighbour:
            return list(await self._netlink.neighbours(where[2], table.family))
        # Not only what leaves through our device: a route that somebody put in the place of ours
        # leaves elsewhere. The way to a peer may be any program's route.
        protocols = () if self._plan.follows_routes else LISTED
        return list(await self._netlink.routes(table.family, protocols=protocols))

    async def _foreign_changed(self, table: Table, listing: Sequence[TableEntry]) -> bool:
        """Whether the way to a peer may be another than when we looked it up.

        A look-up per peer is dear, and a listing is at hand: as long as the routes of others are
        what they were, so are the answers (but for policy rules, which we do not follow).
        """
        if not self._paths or table.family is None or table.kind is not Route:
            return False
        foreign: list[TableEntry] = [
            route
            async for route in paced(listing)
            if isinstance(route, Route) and not self._plan.concerns(route.dst)
        ]
        before = self._foreign.get(table.family)
        if before is None:
            self._foreign[table.family] = foreign
            return False
        changed = len(before) != len(foreign)
        if not changed:
            async for one, other in paced(zip(before, foreign, strict=True)):
                changed = changed or one != other
        if changed:
            self._foreign[table.family] = foreign
        return changed

    async def _write(self, done: _Pass) -> None:
        operations: list[Operation] = []
        origin: list[tuple[TableState, Key | None]] = []

        def add(operation: Operation, table: TableState, key: Key | None) -> None:
            operations.append(operation)
            origin.append((table, key))
            # Here and not afterwards: what came of a batch that was interrupted is not known.
            table.forget_listing()

        ranked = [
            table for _, table in sorted(self._tables.items(), key=lambda item: RANK[item[0][0]])
        ]
        for table in ranked:
            # First of all: while a wrong entry stands beside it, the kernel takes "replace" for
            # "there already" (FDB) or refuses it (IPv4 route).
            for thing, wanted in table.surplus:
                if wanted or self._synced:
                    add(Delete(thing), table, None)
            table.surplus = []
        for table in ranked:
            async for key, thing in paced(table.delta.sets()):
                if key not in table.held:
                    add(Set(thing), table, key)
        for table in reversed(ranked) if self._synced else ():
            async for key, thing in paced(table.delta.deletes()):
                if key not in table.held:
                    add(Delete(thing), table, key)
        if operations:
            failures = await self._netlink.apply(operations)
            await self._account(operations, origin, failures, done)
        failing: dict[str, str] = {}
        for table in ranked:
            async for key, error in paced(table.held.items()):
                name = self._name(table, key)
                done.failures.setdefault(name, error)
                failing.setdefault(name, str(error))
        self._failing = failing
        self._swept = self._swept or (self._synced and not done.unread)

    async def _account(
        self,
        operations: list[Operation],
        origin: list[tuple[TableState, Key | None]],
        failures: Mapping[int, KernelError],
        done: _Pass,
    ) -> None:
        """What came of the operations of a batch, which are used up."""
        # The first sweep removes what an earlier run left behind: nothing was broken.
        sweeping = self._synced and not self._swept
        origin.reverse()
        position = -1
        async for operation in drained(operations):
            position += 1
            table, key = origin.pop()
            kind = KIND[type(operation.object)]
            error = failures.get(position)
            if key is None:
                if error is None:
                    done.count(kind, repair=not sweeping)
                else:
                    # Found again, and tried again, when the table is next read.
                    done.failures[str(operation.object)] = error
            elif error is None:
                done.count(kind, repair=key in table.drifted and not sweeping)
                table.drifted.discard(key)
                table.delta.applied(key)
            else:
                table.held[key] = explain(error, operation.object)
                # One that we had not heard of is in the way: the next pass leaves the peer out.
                self._dirty.others |= error.errno == errno.EEXIST

    def _name(self, table: TableState, key: Key) -> str:
        """What a failed object is called in reports: its peer, or else itself."""
        owner = table.owners.get(key)
        if owner is not None:
            return f"peer {owner.describe()}"
        return str(table.delta.desired.get(key) or table.delta.actual.get(key))

    def report(self) -> NetworkReport:
        """Devices, counts of objects, what is ignored and what fails."""
        objects: Counter[str] = Counter()
        for (kind, _, _), table in self._tables.items():
            objects[kind] += len(table.delta.desired)
        links = {name: str(error) for name, error in self._link_failures.items()}
        return NetworkReport(
            underlay=self._plan.underlay,
            devices={
                link.name: DeviceReport(
                    index=link.index,
                    mac=link.mac,
                    mtu=link.mtu,
                    up=link.up,
                    tx_checksum="off" if self._specs[link.name].tx_checksum is False else "",
                )
                for link in self._view.links.values()
            },
            peers=len(self._peers),
            objects=dict(objects),
            ignored=dict(self._ignored),
            overlaps=tuple(self._overlaps),
            own_overlap=self._own_overlap,
            shared=shared_devices(self._view, self._plan.networks),
            failing={**links, **self._failing},
        )


def _indexes(view: View) -> tuple[object, ...]:
    """What the objects of all peers depend on."""
    underlay = view.underlay.index if view.underlay is not None else 0
    return (underlay, sorted((name, link.index) for name, link in view.links.items()))


def _way(path: Route | None) -> tuple[object, ...] | None:
    return None if path is None else (path.oif, path.gateway)


def _describe(owner: Owner) -> str:
    return "this node" if owner is None else owner.describe()
