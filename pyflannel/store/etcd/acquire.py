"""Winning a lease in etcd: one attempt at a time, every write conditional on what was read.

Which one is asked for is decided by `core.allocation`: the lease that is ours, then the previous
subnet, then a free one. A lost race is a `StoreConflict`, and the caller simply tries again.

With two families a race can be lost unnoticed: the key names both subnets, so two nodes that start
together may write different keys with one IPv6 subnet in them. (Upstream's do, one pair in a
hundred, and keep it.) After its write a node therefore looks again, and the later one gives way.

A lease found for our public IP may belong to a *second live node* with the same address. If neither
the state directory nor `subnet.env` knows it as ours, its holder is asked (`challenge.py`). An
answer means that the address is in use. If the holder is silent the lease is reused, as upstream
would.

The same question is put to the holder of a lease that we recognise as ours and that names another
address than we have now. As a rule the holder is our own former run, before the address changed.
But the record may have come with a copied disk, and the machine that it was copied from be alive:
then it answers, and we look for another subnet.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from pyflannel.aio.clock import Clock
from pyflannel.aio.pace import paced
from pyflannel.core import allocation, freesubnets, ownleases
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import PublicIPInUse, StoreConflict, StoreError, StoreLeaseNotFound
from pyflannel.core.ip import SubnetKey, format_network
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import CHANGE_NETWORK, Conflict, Obstacles
from pyflannel.logs import get_logger
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import LeaseStatus, Store
from pyflannel.store.etcd.challenge import Reply, challenge
from pyflannel.store.etcd.feed import Listing, list_leases

log = get_logger(__name__)

T = TypeVar("T")

PLANNED_AT_ONCE: Final = 2000
"""Leases among which a subnet is chosen without a thread: 10 ms."""
FRESH_S: Final = 5.0
"""Age of a grant beyond which its TTL is no longer taken for what is left. Short against the margin
of every renewal, long against a few lost races."""


class Acquisition:
    """A lease being won. Call `attempt` until it gives one, then `close` in any case.

    Args:
        ttl_s: of the etcd lease; one that is found with another is replaced.
        previous: the subnet that `subnet.env` or a lost lease names.
        former: the lease that the state directory knows as ours.
        intended: the one that it knows we were about to write.
        intend: told of a lease on a new etcd lease before it is written.
        obstacles: looks what this node is connected to, under a network config; asked at each
            attempt.
        listed: a listing of all leases made a moment ago, for the first attempt. That it may be
            stale does no harm, since every write is conditional.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        config: NetworkConfig,
        clock: Clock,
        rng: random.Random,
        *,
        ttl_s: int,
        previous: SubnetKey | None,
        former: ownleases.Former | None,
        obstacles: Callable[[NetworkConfig, LeaseAttrs], Awaitable[Obstacles | None]],
        intended: ownleases.Former | None = None,
        intend: Callable[[Lease], None] = lambda _: None,
        listed: Listing | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self.config = config
        """The network config that the next attempt goes by; may be replaced between two."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._random = rng
        self._previous = previous
        self._former = former
        self._intended = intended
        self._intend = intend
        self._look_for_obstacles = obstacles
        self._foreign: set[SubnetKey] = set()
        self._races_lost = 0
        self._granted: LeaseStatus | None = None
        self._granted_at = 0.0
        self._fresh = listed
        self.listed: Listing | None = None
        """The listing that the last attempt decided on."""
        self.term: tuple[float, int | None] = (0.0, None)
        """Of the lease that was won: when the request for its time was sent (monotonic), and how
        many seconds it got; `None` for a reservation."""

    async def attempt(self, attrs: LeaseAttrs) -> Lease:
        """Reads all leases, decides, and writes once.

        Raises:
            StoreConflict: another node was faster; try again.
            SubnetsExhausted: nothing is free.
            SubnetsOverlap: each subnet would get in the way of something, the taken ones as well.
            PublicIPInUse: another live node holds a lease under our public IP.
            StoreError: etcd failed; what was written is found by the next attempt.
        """
        try:
            return await self._attempt(attrs)
        except StoreLeaseNotFound as error:
            # The one we were granted, or that of a lease we found: by now it has ended.
            self._granted = None
            raise StoreConflict(f"an etcd lease ended under the attempt ({error})") from error

    async def _attempt(self, attrs: LeaseAttrs) -> Lease:
        listed, self._fresh = self._fresh, None
        if listed is None:
            listed = await list_leases(self._store, self._prefix)
        self.listed = listed
        # Any node may take a free one. The few are looked up among the many.
        self._foreign = {key for key in self._foreign if key in listed.by_key}
        written = self._carried_out(listed.leases)
        if written is not None:
            return await self._finish(written, attrs)
        plan = await self._plan(await listed.taken(self._prefix), attrs)
        if plan.previous_refused:
            log.warning(f"{plan.previous_refused}, ignoring it")
        for stale in plan.incompatible:
            await self._drop_incompatible(stale, attrs)
        for overlapping, conflict in plan.overlapping:
            await self._drop_overlapping(overlapping, conflict, attrs)
        if plan.reuse is None:
            return await self._create(plan.key, attrs, is_previous=plan.is_previous)
        lease = await self._reuse(plan.reuse, attrs)
        for stale in plan.superseded:
            await self._drop_superseded(stale, attrs)
        return lease

    def _carried_out(self, leases: Sequence[Lease]) -> Lease | None:
        """What an attempt before this one wrote although it got no answer.

        Our record does not know it yet. The etcd lease that it hangs on was granted to us alone.
        """
        if self._granted is None:
            return None
        for lease in leases:
            if lease.store_lease == self._granted.id:
                return lease if freesubnets.is_compatible(lease.key, self.config) else None
        return None

    async def _plan(self, leases: Sequence[Lease], attrs: LeaseAttrs) -> allocation.Plan:
        obstacles = await self._look_for_obstacles(self.config, attrs)
        work = functools.partial(
            allocation.plan,
            self.config,
            leases,
            attrs,
            previous=self._previous,
            rng=self._random,
            former=self._former,
            intended=self._intended,
            foreign=self._foreign,
            obstacles=obstacles,
            races_lost=self._races_lost,
        )
        return await aside(len(leases), work)

    async def close(self) -> None:
        """Gives an etcd lease back that was granted and not used; failures are left to its TTL."""
        if self._granted is not None:
            granted, self._granted = self._granted, None
            await discard_store_lease(self._store, granted.id)

    async def _reuse(self, found: Lease, attrs: LeaseAttrs) -> Lease:
        revision = await self._challenge(found, attrs)
        mine = replace(found, attrs=attrs)
        if found.is_reservation:
            if found.attrs != attrs:
                revision = await self._write(mine, if_revision=revision)
            self._say_reused(found, mine)
            self.term = (self._clock.monotonic(), None)
            return replace(mine, expires=None, revision=revision)
        former = await self._store.time_to_live(found.store_lease, keys=True)
        alone = list(former.keys) == [codec.lease_key(self._prefix, found.key)]
        if former.ttl > 0 and former.granted_ttl == self._ttl_s and alone:
            sent = self._clock.monotonic()
            self.term = (sent, await self._store.keepalive(found.store_lease))
            if found.attrs != attrs:
                revision = await self._write(mine, if_revision=revision)
        else:
            granted = await self._grant()
            mine = replace(mine, store_lease=granted.id)
            self._intend(mine)
            revision = await self._write(mine, if_revision=revision)
            self.term = (self._granted_at, granted.ttl)
            self._granted = None
            await discard_store_lease(self._store, found.store_lease)
        self._say_reused(found, mine)
        return replace(mine, expires=self._expires(), revision=revision)

    def _say_reused(self, found: Lease, mine: Lease) -> None:
        """Upstream's line, and with a changed address another one that says so."""
        reservation = True if mine.is_reservation else None
        if ownleases.is_under_our_address(found, mine.attrs, self.config):
            log.info(
                f"Found lease ({describe(mine)}) for current IP ({mine.attrs.public_ip}), reusing",
                subnet=mine.key.describe(),
                reservation=reservation,
            )
            return
        log.warning(
            "the public IP has changed; own lease kept and published with the new one",
            subnet=mine.key.describe(),
            public_ip=mine.attrs.public_ip or mine.attrs.public_ipv6,
            former=found.attrs.public_ip or found.attrs.public_ipv6,
        )

    async def _create(self, key: SubnetKey, attrs: LeaseAttrs, *, is_previous: bool) -> Lease:
        if is_previous:
            log.info(
                f"Found previously leased subnet ({key.describe()}), reusing",
                subnet=key.describe(),
            )
        granted = await self._grant()
        lease = Lease(key=key, attrs=attrs, store_lease=granted.id)
        self._intend(lease)
        try:
            lease = replace(lease, revision=await self._write(lease, if_revision=0))
        except StoreConflict:
            self._races_lost += 1
            raise
        return await self._finish(lease, attrs)

    async def _finish(self, lease: Lease, attrs: LeaseAttrs) -> Lease:
        """Makes what we have written under a key that was free our lease."""
        granted = await self._grant()
        if granted.id != lease.store_lease:
            raise StoreConflict("the etcd lease of a subnet that we wrote has ended")
        if lease.attrs != attrs:
            lease = replace(lease, attrs=attrs)
            lease = replace(lease, revision=await self._write(lease, if_revision=lease.revision))
        await self._give_way(lease)
        self.term = (self._granted_at, granted.ttl)
        self._granted = None
        log.info(
            f"Allocated lease ({describe(lease)}) to current node ({attrs.public_ip})",
            subnet=lease.key.describe(),
        )
        return replace(lease, expires=self._expires())

    def _expires(self) -> float | None:
        sent, ttl = self.term
        left = None if ttl is None else sent + ttl - self._clock.monotonic()
        return None if left is None else self._clock.time() + left

    async def _give_way(self, mine: Lease) -> None:
        """Takes a new lease back if one that was there before it has one of its two subnets.

        Raises:
            StoreConflict: there was one; the new lease is taken back.
        """
        if mine.key.v4 is None or mine.key.v6 is None:
            return
        listed = await list_leases(self._store, self._prefix)
        async for other in paced(listed.leases):
            if other.key == mine.key:
                continue
            # What was written again meanwhile was there before as well.
            kv = listed.kvs.get(codec.lease_key(self._prefix, other.key))
            again = kv is not None and kv.version > 1
            earlier = other.revision < mine.revision or again
            if earlier and freesubnets.overlap(other.key, mine.key):
                key = codec.lease_key(self._prefix, mine.key)
                await self._store.delete(key, if_mod_revision=mine.revision)
                raise StoreConflict(f"{mine.key.describe()}: part of it is {other.key.describe()}")

    async def _write(self, lease: Lease, *, if_revision: int) -> int:
        header = await self._store.put(
            codec.lease_key(self._prefix, lease.key),
            codec.encode_attrs(lease.attrs),
            lease=lease.store_lease,
            if_mod_revision=if_revision,
        )
        return header.revision

    async def _grant(self) -> LeaseStatus:
        """The etcd lease of this acquisition, with its whole TTL before it.

        One is enough for any number of lost races; but between two of them a node may have waited
        for days, and etcd may have been emptied.
        """
        if self._granted is not None and self._clock.monotonic() - self._granted_at > FRESH_S:
            sent = self._clock.monotonic()
            try:
                ttl = await self._store.keepalive(self._granted.id)
            except StoreLeaseNotFound:
                self._granted = None
            else:
                self._granted, self._granted_at = replace(self._granted, ttl=ttl), sent
        if self._granted is None:
            sent = self._clock.monotonic()
            self._granted, self._granted_at = await self._store.grant(self._ttl_s), sent
        return self._granted

    async def _drop_incompatible(self, stale: Lease, attrs: LeaseAttrs) -> None:
        revision = await self._challenge(stale, attrs)
        log.warning(
            f"Found lease ({describe(stale)}) for current IP ({stale.attrs.public_ip}) "
            "but not compatible with current config, deleting",
            subnet=stale.key.describe(),
        )
        await self._delete(stale, revision)

    async def _drop_overlapping(self, stale: Lease, conflict: Conflict, attrs: LeaseAttrs) -> None:
        """Gives a lease back that takes something else away from this node.

        A reservation was written by somebody who wants this node to have it: it stays until they
        move it, and the node takes another subnet meanwhile.
        """
        reason, subnet = str(conflict), stale.key.describe()
        if stale.is_reservation:
            log.warning(
                "the reservation for this node is not used, another subnet is taken",
                subnet=subnet,
                reason=reason,
                remedy=f"release it and reserve another subnet, or {CHANGE_NETWORK}",
            )
            return
        revision = await self._challenge(stale, attrs)
        log.warning(
            "the subnet of this node is given back, another one is taken",
            subnet=subnet,
            reason=reason,
            remedy=CHANGE_NETWORK,
        )
        await self._delete(stale, revision)

    async def _delete(self, stale: Lease, revision: int) -> bool:
        """Deletes a lease if it still is as it was at a revision, and its etcd lease with it."""
        key = codec.lease_key(self._prefix, stale.key)
        gone = await self._store.delete(key, if_mod_revision=revision)
        if gone:
            await discard_store_lease(self._store, stale.store_lease)
        return gone

    async def _drop_superseded(self, stale: Lease, attrs: LeaseAttrs) -> None:
        """Deletes a second lease of ours; what fails is left to its time limit."""
        try:
            if await self._delete(stale, await self._challenge(stale, attrs)):
                log.warning("deleted another lease of this node", subnet=stale.key.describe())
        except (StoreError, PublicIPInUse) as error:
            log.warning(
                "another lease of this node is not deleted, it ends by itself",
                subnet=stale.key.describe(),
                error=error,
            )

    async def _challenge(self, found: Lease, attrs: LeaseAttrs) -> int:
        """Makes sure that a lease which looks like ours is not another live node's.

        Returns:
            The revision at which the key stands now.

        Raises:
            StoreConflict: it is, or it changed meanwhile; try again.
            PublicIPInUse: it is, and has the very address that we have.
        """
        same_address = ownleases.is_under_our_address(found, attrs, self.config)
        known = found.key == self._previous or any(
            named is not None and found.store_lease == named.store_lease != 0
            for named in (self._former, self._intended)
        )
        if same_address and known:
            return found.revision
        key = codec.lease_key(self._prefix, found.key)
        before = await self._store.get(key)
        if not before.kvs or before.kvs[0].mod_revision != found.revision:
            raise StoreConflict(f"{found.key.describe()} changed while it was looked at")
        asked = await challenge(self._store, before.kvs[0], self._clock)
        if asked.reply is Reply.GONE:
            raise StoreConflict(f"{found.key.describe()} vanished while it was looked at")
        if asked.reply is Reply.ANSWER:
            if not same_address:
                self._foreign.add(found.key)
                log.warning(
                    "a live node holds the lease that our record or VTEP MAC names; was this "
                    "machine copied from it? Looking for another subnet",
                    subnet=found.key.describe(),
                    holder=found.attrs.public_ip or found.attrs.public_ipv6,
                )
                raise StoreConflict(f"{found.key.describe()} is held by a live node")
            address = attrs.public_ip or attrs.public_ipv6
            raise PublicIPInUse(
                f"public IP {address} is in use by another live node, which holds "
                f"{found.key.describe()}; give this node an address of its own "
                "(--public-ip, --iface), or stop the other one"
            )
        return asked.revision


def describe(lease: Lease) -> str:
    """Upstream's words for a lease in its log: `ip: 10.5.1.0/24 ipv6: ::/0`."""
    v4 = format_network(lease.key.v4) if lease.key.v4 is not None else "0.0.0.0/0"
    v6 = format_network(lease.key.v6) if lease.key.v6 is not None else "::/0"
    return f"ip: {v4} ipv6: {v6}"


async def aside(leases: int, work: Callable[[], T]) -> T:
    """Computes something out of so many leases, in a thread unless they are few."""
    return await asyncio.to_thread(work) if leases > PLANNED_AT_ONCE else work()


async def discard_store_lease(store: Store, store_lease: int) -> None:
    """Ends an etcd lease if no key hangs on it any more; a failure is left to its TTL.

    Asked first, because revoking deletes every key that hangs on it, and somebody may have put
    several nodes' keys on one.
    """
    if store_lease == 0:
        return
    try:
        status = await store.time_to_live(store_lease, keys=True)
        if status.ttl > 0 and not status.keys:
            await store.revoke(store_lease)
    except StoreError as error:
        log.debug("etcd lease not given back, it ends by itself", lease=store_lease, error=error)
