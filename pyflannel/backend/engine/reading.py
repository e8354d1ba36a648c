"""Reads back the tables that may have changed, and what that shows beside our own objects."""

from __future__ import annotations

from collections.abc import Iterable

from pyflannel.aio.pace import Pace, paced
from pyflannel.backend.engine.around import Around
from pyflannel.backend.engine.paths import Paths
from pyflannel.backend.engine.state import Dirty, Pass, State
from pyflannel.backend.engine.tables import KIND, TableId
from pyflannel.backend.plan import Table, TableEntry, shared_devices
from pyflannel.core.errors import KernelError
from pyflannel.core.kind import OWN_VNI
from pyflannel.kernel.base import NUD_PERMANENT, FdbEntry, Neighbour, Netlink, Route
from pyflannel.kernel.ownership import LISTED
from pyflannel.logs import get_logger

log = get_logger(__name__)


class Reader:
    """Lists the tables of one engine."""

    def __init__(self, state: State, netlink: Netlink, around: Around, paths: Paths) -> None:
        self._state = state
        self._netlink = netlink
        self._around = around
        self._lookups = paths

    async def read(self, work: Dirty, done: Pass) -> bool:
        """Reads what may have changed; returns whether routes that are not ours did."""
        startup = not self._state.swept
        rerouted = False

        def is_ours(thing: TableEntry) -> bool:
            return self._state.plan.is_ours(thing, self._state.view, startup=startup)

        for table in self._state.plan.tables():
            where = self._state.id_of(table)
            if where is None or where not in self._state.tables:
                continue
            state = self._state.tables[where]
            if table.kind not in work.kinds and state.listing is not None:
                continue
            try:
                listing = await self._list(table, where)
            except KernelError as error:
                done.failures[f"list of {where[0]}s"] = error
                done.unread = True
                self._state.dirty.kinds.add(table.kind)
                continue
            if table.kind is Route and table.family is not None:
                await self._around.take_routes(table.family, listing)
            rerouted |= await self._lookups.may_differ(table, listing)
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
        before = self._state.strangers.get(index, {})
        if found == before:
            return
        self._state.strangers[index] = found
        for (kind, _, on), table in self._state.tables.items():
            if kind == KIND[FdbEntry] and on == index:
                table.forget_listing()
        if bool(found) == bool(before):
            return
        device = next(link.name for link in self._state.view.links.values() if link.index == index)
        if found:
            sign = shared_devices(self._state.view, self._state.plan.networks)[device]
            log.warning("another daemon uses this device", device=device, sign=sign, remedy=OWN_VNI)
        else:
            log.info("no other daemon uses this device any more", device=device)

    async def _list(self, table: Table, where: TableId) -> list[TableEntry]:
        if table.family is None:
            return list(await self._netlink.fdb(where[2]))
        if table.kind is Neighbour:
            return list(await self._netlink.neighbours(where[2], table.family))
        # Not only what leaves through our device: a route that another program put in place of ours
        # leaves elsewhere. The way to a peer may be any program's route.
        protocols = () if self._state.plan.follows_routes else LISTED
        return list(await self._netlink.routes(table.family, protocols=protocols))
