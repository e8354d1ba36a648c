"""How peers' underlay addresses are reached, for plans that ask for it (direct routing)."""

from __future__ import annotations

from collections.abc import Sequence

from pyflannel.aio.pace import paced
from pyflannel.backend.engine.state import Pass, State
from pyflannel.backend.plan import Table, TableEntry
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family
from pyflannel.core.lease import Lease
from pyflannel.kernel.base import Netlink, Route


class Paths:
    """The route look-ups of one engine."""

    def __init__(self, state: State, netlink: Netlink) -> None:
        self._state = state
        self._netlink = netlink
        self._foreign: dict[Family, list[TableEntry]] = {}

    async def look_up(self, lease: Lease, done: Pass) -> bool:
        """Asks for the paths to a peer that are not known yet; `False` if one got no answer."""
        answered = True
        for address in self._state.plan.destinations(lease):
            if address not in self._state.paths:
                try:
                    self._state.paths[address] = await self._netlink.route_lookup(address)
                except KernelError as error:
                    done.failures[f"path to {address}"] = error
                    answered = False
        return answered

    async def look_up_again(self, done: Pass) -> bool:
        """Repeats all look-ups; returns whether a peer is reached another way than before."""
        before = dict(self._state.paths)
        # Emptied, not replaced: the view that plans look at shares it.
        self._state.paths.clear()
        async for owner, lease in paced(self._state.peers.items()):
            await self.look_up(lease, done)
            for address in self._state.plan.destinations(lease):
                if _way(before.get(address)) != _way(self._state.paths.get(address)):
                    self._state.pending[owner] = None
        return bool(self._state.pending)

    async def may_differ(self, table: Table, listing: Sequence[TableEntry]) -> bool:
        """Whether the way to a peer may be another than when we looked it up.

        A look-up per peer is dear, and a listing is at hand: as long as the routes of others are
        what they were, so are the answers (but for policy rules, which we do not follow).
        """
        if not self._state.paths or table.family is None or table.kind is not Route:
            return False
        foreign: list[TableEntry] = [
            route
            async for route in paced(listing)
            if isinstance(route, Route) and not self._state.plan.concerns(route.dst)
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


def _way(path: Route | None) -> tuple[object, ...] | None:
    return None if path is None else (path.oif, path.gateway)
