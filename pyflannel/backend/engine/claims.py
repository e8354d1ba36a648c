"""Who wants which objects: this node and each peer, as the plan says.

A peer whose subnet would get in the way of something (`around.py`) is left out until that is gone;
a peer that cannot be carried is ignored. Both are said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from pyflannel.aio.pace import drained, paced
from pyflannel.backend.engine.around import NAMED_WARNINGS, Around
from pyflannel.backend.engine.paths import Paths
from pyflannel.backend.engine.state import Pass, State, describe
from pyflannel.backend.engine.tables import Key, Owner, table_id
from pyflannel.backend.plan import PeerObjects, TableEntry
from pyflannel.core.ip import SubnetKey, family_of
from pyflannel.core.lease import Lease
from pyflannel.core.overlap import CHANGE_NETWORK, MOVE_PEER, Conflict
from pyflannel.kernel.base import Route
from pyflannel.logs import get_logger

log = get_logger(__name__)

NAMED_PEERS: Final = 20
"""Peers that get a log line in one pass."""


class Claims:
    """The objects of one engine, by who wants them."""

    def __init__(self, state: State, around: Around, paths: Paths) -> None:
        self._state = state
        self._around = around
        self._lookups = paths
        self._conflicts: dict[Owner, tuple[Conflict, ...]] = {}
        self._warned: set[Conflict] = set()
        self._objects: dict[Owner, tuple[TableEntry, ...]] = {}
        self._problems: dict[Owner, str] = {}
        self._contested: set[Key] = set()
        self._named = 0
        self.ignored: dict[str, str] = {}
        """The problems by name: made as they change, for reports are frequent."""

    def begin(self) -> None:
        """A pass begins: its first peers with something to say get a line each."""
        self._named = 0

    async def renew_all(self) -> None:
        """Has the objects of everyone computed anew."""
        everything: dict[Owner, None] = {None: None}
        for owners in (self._objects, self._state.peers, self._state.pending):
            async for owner in paced(owners):
                everything[owner] = None
        self._state.pending = everything

    async def judge_again(self) -> None:
        """Has those computed anew that the surroundings judge otherwise than before."""
        self._state.pending[None] = None
        async for owner, lease in paced(self._state.peers.items()):
            if self._conflicts_of(lease) != self._conflicts.get(owner, ()):
                self._state.pending[owner] = None

    async def plan(self, done: Pass) -> None:
        """Computes the objects of what is pending, and puts in who wants them."""
        pending, self._state.pending = self._state.pending, {}
        try:
            async for owner in drained(list(pending)):
                lease = self._state.peers.get(owner) if owner is not None else None
                if lease is not None and not await self._lookups.look_up(lease, done):
                    self._state.pending[owner] = None
                self._claim(owner, self._objects_of(owner, lease))
                del pending[owner]
        finally:
            # Cancelled or failed on the way: the rest is still to be done.
            self._state.pending = {**pending, **self._state.pending}

    def _objects_of(self, owner: Owner, lease: Lease | None) -> tuple[TableEntry, ...]:
        if owner is None:
            return self._node_objects()
        if lease is None:
            if self._problems.pop(owner, None):
                del self.ignored[describe(owner)]
            self._conflicts.pop(owner, None)
            return ()
        peer = self._state.plan.peer_objects(lease, self._state.view)
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
            self._problems[owner] = self.ignored[describe(owner)] = peer.problem
        elif not peer.problem and self._problems.pop(owner, ""):
            self._say_of_peer(log.info, "peer is no longer ignored", owner)
            del self.ignored[describe(owner)]
        return peer.objects

    def _node_objects(self) -> tuple[TableEntry, ...]:
        """What this node needs, but for a route that would take something else away from it."""
        objects: list[TableEntry] = []
        problems: list[str] = []
        for thing in self._state.plan.node_objects(self._state.view):
            conflict = (
                self._around.judge.network_route(thing.dst) if isinstance(thing, Route) else None
            )
            if conflict is None:
                objects.append(thing)
            else:
                problems.append(f"{thing} left out: {conflict}; {CHANGE_NETWORK}")
        problem = "; ".join(problems)
        if problem and problem != self._problems.get(None):
            log.error(
                "the overlay has no route, its packets do not leave this node", reason=problem
            )
            self._problems[None] = self.ignored[describe(None)] = problem
        elif not problem and self._problems.pop(None, ""):
            log.info("the overlay has its route again")
            del self.ignored[describe(None)]
        return tuple(objects)

    def _conflicts_of(self, lease: Lease) -> tuple[Conflict, ...]:
        """What a peer's subnets are in the way of, family by family."""
        subnets = (lease.subnet(family_of(network)) for network in self._state.plan.networks)
        found = (self._around.judge.subnet(subnet) for subnet in subnets if subnet is not None)
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
            objects = self._state.plan.peer_objects(
                replace(lease, key=left), self._state.view
            ).objects
        reason = "; ".join(str(conflict) for conflict in bad)
        return PeerObjects(objects, f"{reason}; {MOVE_PEER}")

    def _say_of_peer(
        self, say: Callable[..., None], event: str, owner: Owner, **fields: object
    ) -> None:
        """Says something of a peer; of very many in one pass it is said of the first ones."""
        self._named += 1
        if self._named <= NAMED_PEERS:
            say(event, peer=describe(owner), **fields)
        elif self._named == NAMED_PEERS + 1:
            log.warning("more messages about peers are left out; pyflannel peers lists all of them")

    def _warn(self, owner: SubnetKey, conflict: Conflict) -> None:
        """Says once that a peer is carried all the same."""
        if conflict in self._warned:
            return
        self._warned.add(conflict)
        if len(self._warned) <= NAMED_WARNINGS:
            log.warning(
                "peer carried although it overlaps; hosts in its subnet are not reached directly",
                peer=owner.describe(),
                reason=str(conflict),
            )
        elif len(self._warned) == NAMED_WARNINGS + 1:
            log.warning("more peers overlap a connected prefix; they are carried as well")

    def _claim(self, owner: Owner, things: tuple[TableEntry, ...]) -> None:
        before = self._objects.pop(owner, ())
        if things:
            self._objects[owner] = things
        keys = {thing.key for thing in things}
        lease = self._state.peers.get(owner) if owner is not None else None
        rank = lease.revision if lease is not None else 0
        for thing in before:
            table = self._state.tables.get(table_id(thing))
            if table is not None and thing.key not in keys:
                table.unwant(owner, thing.key)
        for thing in things:
            table = self._state.tables[table_id(thing)]
            holder = table.owners.get(thing.key, owner)
            if holder != owner and thing.key not in self._contested:
                self._contested.add(thing.key)
                self._say_of_peer(
                    log.warning,
                    "two peers claim the same entry; the lease that was written last gets it",
                    owner,
                    entry=str(thing),
                    other=describe(holder),
                )
            table.want(owner, thing, rank)
