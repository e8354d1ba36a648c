"""The seam between the daemon and whatever keeps the leases (etcd; Kubernetes would be another)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pyflannel.core.config import NetworkConfig
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate


class SubnetManager(Protocol):
    """Owns this node's lease and knows everybody's.

    Every method waits for the store as long as it takes unless it says otherwise, logs one line per
    change of state while it waits, and can be cancelled at any time.
    """

    async def network_config(self) -> NetworkConfig:
        """The network config, as soon as there is a valid one.

        Waits for ever: for the store, for the key, and for a value that is right. A bad value is
        logged once per change of it, naming the key, what is wrong and the remedy.
        """
        ...

    async def previous(self) -> LeaseAttrs | None:
        """What this node published before (its VTEP MAC, say), if its lease still exists."""
        ...

    async def acquire(self, attrs: LeaseAttrs) -> Lease:
        """Gets this node's lease: the one held for its public IP, the previous one, or a free one.

        Keeps trying while all subnets are taken or while another live node uses our public IP,
        telling so each time the reason changes.
        """
        ...

    async def keep(self, lease: Lease) -> AsyncIterator[Lease]:
        """Keeps the lease for ever; yields it anew whenever it is not the same as before.

        Yields only when the *subnet* changed (the lease was lost and the old subnet was taken) or
        the store lease changed hands. The caller then rewrites files and devices.
        """
        ...
        yield lease

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """Publishes changed attributes (a new public IP or MAC) under the same subnet, in place."""
        ...

    def watch_leases(self) -> AsyncIterator[LeaseUpdate]:
        """All leases: first a snapshot, then changes; a new snapshot after every gap. For ever."""
        ...
