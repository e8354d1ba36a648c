"""The reconciling engine: makes the kernel hold what a backend wants, whatever happened to it.

The problem. A node's overlay consists of a device or two, and per peer of one to three objects in
the kernel (neighbour, FDB entry, route). Any root process can change them, and much of the
kernel does: a device that goes down, loses its only address or changes its MAC takes routes and
permanent neighbours along without telling which; an underlay interface that is replaced takes the
vxlan device with it. A daemon that only reacts to lease events never notices.

The objects. A backend says *what*, as values and pure functions, in a `Plan`
(`backend/plan.py`). The engine knows *how*:

1. Devices (`devices.py`): looked up by name; missing → created, unusable → created anew, attributes
   and addresses corrected one by one.
2. Tables (`tables.py`): read back when they may have changed (`reading.py`), each into a `DeltaMap`
   of desired and actual.
3. Surroundings (`around.py`): addresses of all links and routes of others. A peer whose subnet
   would get in their way is left out until they are gone (`core/overlap.py` decides).
4. Paths, for plans that ask for them (direct routing, `paths.py`): route look-ups of the peers'
   underlay addresses, repeated when routes that are not ours changed.
5. Objects (`claims.py`): what this node and each peer want of the tables.
6. The difference, in one batch (`writing.py`): wrong duplicates away; sets, dependencies first
   (neighbour, FDB entry, route); deletes in the reverse order.

All of them share one `State`.

One changed lease costs the objects of that lease, whatever the number of peers. Reading back is
done for what a notification pointed at (`notices.py`), and for everything on `full`.

What the engine never does: delete anything it cannot recognise as its own; sweep leftovers before
`synced`; let one failing peer hold up another. Every failure is named in `PartlyApplied`, stays
pending, and is tried again on the next `full` pass or after the next relevant notification.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pyflannel.backend.base import Applied, BackendContext, DeviceClaim, PartlyApplied, SysctlWriter
from pyflannel.backend.engine.around import Around
from pyflannel.backend.engine.claims import Claims
from pyflannel.backend.engine.devices import DeviceKeeper
from pyflannel.backend.engine.notices import pointed_at
from pyflannel.backend.engine.paths import Paths
from pyflannel.backend.engine.reading import Reader
from pyflannel.backend.engine.state import Dirty, Pass, State
from pyflannel.backend.engine.tables import TableState
from pyflannel.backend.engine.writing import Writer
from pyflannel.backend.plan import Device, Plan, View, shared_devices
from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.core.ip import IPAddress, IPNetwork, SubnetKey
from pyflannel.core.lease import Lease, LeaseAdded, LeaseEvent
from pyflannel.kernel.base import Link, Netlink, Notification
from pyflannel.kernel.sysctl import try_write_sysctl
from pyflannel.report.model import DeviceReport, NetworkReport


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
        self._keeper = DeviceKeeper(netlink, write_sysctl, claim_device)
        self._state = State(plan)
        self._around = Around(self._state, netlink, store_addresses, is_own_device)
        self._lookups = Paths(self._state, netlink)
        self._claims = Claims(self._state, self._around, self._lookups)
        self._reader = Reader(self._state, netlink, self._around, self._lookups)
        self._writer = Writer(self._state, netlink)
        self._held = held
        self._link_failures: dict[str, FlannelError] = {}
        self._replanned = True

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
        return self._state.plan

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """As in `Network`."""
        return None if self._state.plan.follows_routes else self._state.plan.networks

    @property
    def neighbours_of(self) -> frozenset[int]:
        """As in `Network`: of the plan's devices."""
        return self._state.own_indexes

    @property
    def links(self) -> Mapping[str, Link]:
        """The plan's devices as last seen, by name."""
        return self._state.view.links

    @property
    def underlay(self) -> Link | None:
        """The external interface as last seen."""
        return self._state.view.underlay

    @property
    def peers(self) -> Mapping[SubnetKey, Lease]:
        """The peers known, those with problems included."""
        return self._state.peers

    def follow(self, plan: Plan) -> None:
        """Puts another plan in force; the next pass makes the kernel follow."""
        self._state.plan = plan
        self._replanned = True
        self._state.dirty.add(Dirty.all())

    def update(self, events: Iterable[LeaseEvent]) -> None:
        """Takes lease events; the next pass computes the objects of these leases only."""
        for event in events:
            key = event.lease.key
            if isinstance(event, LeaseAdded):
                self._state.peers[key] = event.lease
            else:
                self._state.peers.pop(key, None)
                for address in self._state.plan.destinations(event.lease):
                    self._state.paths.pop(address, None)
            self._state.pending[key] = None

    def synced(self) -> None:
        """From now on what is ours and not wanted is deleted."""
        self._state.synced = True
        self._state.dirty.add(Dirty.all())

    def notice(self, notification: Notification) -> bool:
        """Whether a notification may concern the plan; what it points at is read back next time."""
        dirty = pointed_at(self._state, notification)
        if dirty is None:
            return False
        self._state.dirty.add(dirty)
        return True

    async def ensure_devices(self) -> Applied:
        """Makes the plan's devices right, and nothing else. For what must exist before a lease.

        Raises:
            FlannelError: the first failure, if a device cannot be made, or made right.
        """
        done = Pass()
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
        work, self._state.dirty = self._state.dirty, Dirty()
        if full:
            work.add(Dirty.all())
            # IPv4 routes vanish with their device without a word.
            work.others |= self._around.has_others
        done = Pass()
        self._claims.begin()
        try:
            await self._converge(work, done)
        except BaseException:
            self._state.dirty.add(Dirty.all())
            self._state.dirty.others |= work.others
            raise
        applied = Applied(changed=done.changed, repaired=dict(done.repaired))
        if done.failures:
            raise PartlyApplied(done.failures, applied)
        return applied

    async def _converge(self, work: Dirty, done: Pass) -> None:
        if work.links and await self._ensure_links(done):
            # A device that was corrected has lost who knows what.
            work.add(Dirty.all())
        done.failures.update(self._link_failures)
        if not self._link_failures:
            self._held()
        await self._claims.plan(done)
        if await self._reader.read(work, done) and await self._lookups.look_up_again(done):
            await self._claims.plan(done)
        if await self._around.look(work, done):
            await self._claims.judge_again()
            await self._claims.plan(done)
        if work:
            for table in self._state.tables.values():
                table.held.clear()
        await self._writer.write(done)

    async def _ensure_links(self, done: Pass) -> bool:
        """Looks after every device; returns whether anything was written or replaced."""
        underlay = await self._netlink.link(self._state.plan.underlay)
        failures: dict[str, FlannelError] = {}
        if underlay is None:
            failures[self._state.plan.underlay] = KernelError(
                "external interface", self._state.plan.underlay, errno.ENODEV, "waiting for it"
            )
        links: dict[str, Link] = {}
        specs: dict[str, Device] = {}
        written = False
        for device in self._state.plan.devices(underlay):
            specs[device.name] = device
            try:
                kept = await self._keeper.keep(device)
            except FlannelError as error:
                failures[device.name] = error
                continue
            failures.update(kept.failures)
            links[device.name] = kept.link
            written |= bool(kept.done)
            # What differs because the plan is new was not broken by another program.
            repair = self._state.specs.get(device.name) == device
            for kind in kept.done:
                done.count(kind, repair=repair)
        before = self._state.view
        self._state.view = replace(before, underlay=underlay, links=links)
        self._state.specs = specs
        self._link_failures = failures
        if not self._replanned and _indexes(before) == _indexes(self._state.view):
            return written
        self._replanned = False
        self._rebuild_tables()
        await self._claims.renew_all()
        return True

    def _rebuild_tables(self) -> None:
        """Tables of the devices there are now; what is known of lost devices is forgotten."""
        known, self._state.tables = self._state.tables, {}
        for table in self._state.plan.tables():
            where = self._state.id_of(table)
            if where is not None:
                state = self._state.tables[where] = known.get(where) or TableState()
                # What counts as ours may have become something else.
                state.forget_listing()

    def report(self) -> NetworkReport:
        """Devices, counts of objects, what is ignored and what fails."""
        objects: Counter[str] = Counter()
        for (kind, _, _), table in self._state.tables.items():
            objects[kind] += len(table.delta.desired)
        links = {name: str(error) for name, error in self._link_failures.items()}
        return NetworkReport(
            underlay=self._state.plan.underlay,
            devices={
                link.name: DeviceReport(
                    index=link.index,
                    mac=link.mac,
                    mtu=link.mtu,
                    up=link.up,
                    tx_checksum="off" if self._state.specs[link.name].tx_checksum is False else "",
                )
                for link in self._state.view.links.values()
            },
            peers=len(self._state.peers),
            objects=dict(objects),
            ignored=dict(self._claims.ignored),
            overlaps=tuple(self._around.overlaps),
            own_overlap=self._around.own_overlap,
            shared=shared_devices(self._state.view, self._state.plan.networks),
            failing={**links, **self._writer.failing},
        )


def _indexes(view: View) -> tuple[object, ...]:
    """What the objects of all peers depend on."""
    underlay = view.underlay.index if view.underlay is not None else 0
    return (underlay, sorted((name, link.index) for name, link in view.links.items()))
