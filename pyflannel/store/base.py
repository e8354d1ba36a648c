"""The seam between the agent and what keeps the leases.

Implementations: `store/etcd/`, `store/kubernetes/` and `store/static.py`. One suite runs over all
(`tests/contract/test_lease_store_contract.py`); what stands here is what it checks. With etcd a
node *takes* a subnet; a static file and Kubernetes *give* it one, so there is nothing to win, to
renew or to give back.

*Order.* `network_config`, `previous`, `acquire`, in this order, and again from the beginning after
`NetworkConfigChanged`; then `keep`, `watch_config` and `watch_leases` side by side, each consumed
by one task, and `publish` at any time. `keep` may rely on `watch_leases` being consumed. `close`
comes last, when no other call is under way; after it nothing else may be called.

*Gaps.* `watch_leases` gives a `Snapshot` first and after every gap, `Changes` between. Whatever is
not in a snapshot is gone. A store that is away gives nothing: leases do not vanish for it.

*Waiting.* Every method waits for the store as long as it takes, unless it says otherwise; it can be
cancelled at any time and then has either written or not, which the next start finds out. Waiting
is told in `report` and by the `tell` function that a store is made with.

*Refusals.* A store that refuses us for good at the start (credentials, configuration) raises
`StoreDenied` or `StoreConfigError` from `network_config`, `previous` or `acquire`. (Kubernetes'
never does: roles and tokens come later than the daemon as a rule.) Once a lease is held, a refusal
is reported and never raised, and the store goes on trying.

*Restarts.* The same node gets the same subnet again as long as its lease lives, whether its address
changed or not. A subnet that another node holds is never written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Protocol

from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import IPAddress, IPNetwork
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate
from pyflannel.core.overlap import Obstacles
from pyflannel.core.trust import ConfigOrigin
from pyflannel.records import dataclass
from pyflannel.report.model import StoreReport

FindObstacles = Callable[
    [Collection[IPNetwork], Collection[IPAddress], Collection[IPAddress]],
    Awaitable[Obstacles | None],
]
"""Looks what keeps a subnet from being this node's: given the cluster networks, the addresses of
the store and those that the node publishes. `None` if it cannot tell. See
`kernel.surroundings.look_for_obstacles`."""


async def no_obstacles(
    networks: Collection[IPNetwork],
    store: Collection[IPAddress],
    public: Collection[IPAddress],
) -> None:
    """A `FindObstacles` that knows of none."""
    del networks, store, public


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whether our lease is ours."""

    held: bool | None = None
    """`True` if the store has shown it as ours a moment ago. `False` if it has shown another thing,
    or if the lease has ended by our own clock. `None` if that is not known: before there is one,
    and while the store does not show it."""
    confirmed: float | None = None
    """When the store last showed it as ours, in seconds since the epoch."""
    reason: str = ""
    """Why it is not held, or cannot be read or renewed, as it is at present."""
    since: float | None = None
    """When the reason began, in seconds since the epoch."""
    taken: bool = False
    """Another node has our subnet, or the one that we had before our start, and there is none for
    us at present."""


class LeaseStore(Protocol):
    """Owns this node's lease and knows those of all nodes."""

    @property
    def origin(self) -> ConfigOrigin:
        """Where the network config is read: who may write it decides what it may do here."""
        ...

    @property
    def lease(self) -> Lease | None:
        """Our lease as we know it now; `None` before `acquire`."""
        ...

    @property
    def allots(self) -> bool:
        """Whether subnets follow the network config's SubnetLen, SubnetMin and SubnetMax."""
        ...

    def wished(self) -> Collection[IPAddress]:
        """Public addresses that an operator prescribes for this node in the store.

        At most one a family; they count more than `--public-ip`. Asked after `network_config`.
        """
        ...

    def published(self) -> Sequence[IPAddress]:
        """The addresses that a former run of this node published, as far as it is remembered."""
        ...

    async def network_config(self) -> NetworkConfig:
        """The network config, as soon as there is a valid one.

        Waits without end: for the store, for the config, for one that is right, and with Kubernetes
        for this node's object. A bad one is logged once per change of it, naming the key, what is
        wrong and the remedy.

        Raises:
            StoreDenied: the store refuses us.
            StoreConfigError: the way to the store is configured wrongly.
        """
        ...

    def watch_config(self) -> AsyncIterator[bytes | None]:
        """The text of the network config whenever it changes, `None` if it is deleted.

        Starts from the one that `network_config` gave.
        """
        ...

    async def previous(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """What this node published before (its VTEP MAC, say), if its lease still exists.

        Does not wait.

        Args:
            attrs: our addresses; the rest of it does not matter.

        Raises:
            StoreError: the store cannot tell just now.
        """
        ...

    def prescribed(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """What our lease carries, where nothing can be published and the backend has to conform.

        `None` where it publishes what it likes. Asked after `previous`.
        """
        ...

    async def acquire(self, attrs: LeaseAttrs) -> Lease:
        """Gets this node's lease: its own one, the previous subnet, or a free one.

        Keeps trying while all subnets are taken or while another live node uses our public IP,
        telling so each time the reason changes.

        Raises:
            StoreDenied: the store refuses us.
            SubnetsOverlap: every subnet that there is for this node is in the way of what the node
                is connected to.
            NetworkConfigChanged: another network config is valid than the one waited under. The
                caller reads it with `network_config`, derives anew what hangs on it, and calls
                again.
        """
        ...

    def keep(self) -> AsyncIterator[Lease]:
        """Keeps the lease until cancelled; yields it whenever its *subnet* is another one.

        The caller then rewrites files, devices and rules.
        """
        ...

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """Publishes changed attributes (a new public IP or MAC) under the same subnet, in place."""
        ...

    def ready(self) -> None:
        """Tells that this node carries packets and has written its files; more than once is fine.

        For a store that others ask whether the node can be used.
        """
        ...

    async def release(self) -> bool:
        """Gives the subnet back, for a node that is thrown away.

        Called when the lease is not kept or published any more. A lease that does not end by
        itself, and one that is not as we know it, stay.

        Returns:
            Whether the subnet is free now.

        Raises:
            StoreError: the store failed; the lease then ends by itself.
        """
        ...

    def watch_leases(self) -> AsyncIterator[LeaseUpdate]:
        """All leases, our own among them: a snapshot, then changes. Until cancelled.

        Our own may come before `keep` yields it. It is marked as ours then, if it has another
        subnet than the one before.
        """
        ...

    def reconnect(self, why: str) -> None:
        """Drops connections that go through an address which this node no longer has."""
        ...

    def describe(self) -> str:
        """Where the leases are, for a log line, without secrets."""
        ...

    def addresses(self) -> Collection[IPAddress]:
        """Where the store is reached, as far as known now: no route of ours may lead there."""
        ...

    def report(self) -> StoreReport:
        """Whether the store answers; cheap."""
        ...

    def standing(self) -> Standing:
        """Whether our lease is ours; cheap."""
        ...

    async def close(self) -> None:
        """Releases connections, threads and watches. May be called twice."""
        ...
