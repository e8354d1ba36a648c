"""Writes the difference between what is wanted and what is there, in one batch.

Wrong duplicates go first; then sets, dependencies first (neighbour, FDB entry, route); then deletes
in the reverse order.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from pyflannel.aio.pace import drained, paced
from pyflannel.backend.engine.state import Pass, State
from pyflannel.backend.engine.tables import KIND, RANK, Key, TableState
from pyflannel.backend.routes import explain
from pyflannel.core.errors import KernelError
from pyflannel.kernel.base import Delete, Netlink, Operation, Set


class Writer:
    """Writes the tables of one engine."""

    def __init__(self, state: State, netlink: Netlink) -> None:
        self._state = state
        self._netlink = netlink
        self.failing: dict[str, str] = {}
        """What fails, by name: made as it changes, for reports are frequent."""

    async def write(self, done: Pass) -> None:
        """Writes what is to be written, and takes note of what came of it."""
        operations: list[Operation] = []
        origin: list[tuple[TableState, Key | None]] = []

        def add(operation: Operation, table: TableState, key: Key | None) -> None:
            operations.append(operation)
            origin.append((table, key))
            # Here and not afterwards: what came of a batch that was interrupted is not known.
            table.forget_listing()

        ranked = [
            table
            for _, table in sorted(self._state.tables.items(), key=lambda item: RANK[item[0][0]])
        ]
        for table in ranked:
            # First of all: while a wrong entry stands beside it, the kernel takes "replace" for
            # "there already" (FDB) or refuses it (IPv4 route).
            for thing, wanted in table.surplus:
                if wanted or self._state.synced:
                    add(Delete(thing), table, None)
            table.surplus = []
        for table in ranked:
            async for key, thing in paced(table.delta.sets()):
                if key not in table.held:
                    add(Set(thing), table, key)
        for table in reversed(ranked) if self._state.synced else ():
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
        self.failing = failing
        self._state.swept = self._state.swept or (self._state.synced and not done.unread)

    async def _account(
        self,
        operations: list[Operation],
        origin: list[tuple[TableState, Key | None]],
        failures: Mapping[int, KernelError],
        done: Pass,
    ) -> None:
        """What came of the operations of a batch, which are used up."""
        # The first sweep removes what an earlier run left behind: nothing was broken.
        sweeping = self._state.synced and not self._state.swept
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
                self._state.dirty.others |= error.errno == errno.EEXIST

    def _name(self, table: TableState, key: Key) -> str:
        """What a failed object is called in reports: its peer, or else itself."""
        owner = table.owners.get(key)
        if owner is not None:
            return f"peer {owner.describe()}"
        return str(table.delta.desired.get(key) or table.delta.actual.get(key))
