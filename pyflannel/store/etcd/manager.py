"""This node's lease in etcd, kept while the daemon runs; and the way to the others'.

What to do next, and when, is decided by `core.holding`, the same machine for the first lease, for
keeping it and for taking it back. This module has its steps carried out, one at a time, and tells
it what came of them.

Keeping (`own.py`): the etcd lease is renewed in place (no second one, nothing to leak, no event at
the peers). The key is seen through the same feed that brings the peers, and read again every minute
and at each renewal. What is lost is taken back if it is free.

Waiting (`seeking.py`): a node without a lease makes an attempt now and then, and when there is room
or another network config. `complaints.py` says what is in the way.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import assert_never

from pyflannel.aio.clock import Clock
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import (
    LeaseError,
    NetworkConfigChanged,
    StoreConfigError,
    StoreDenied,
    StoreError,
    SubnetsOverlap,
)
from pyflannel.core.holding import Belief, Do, Holding
from pyflannel.core.ip import IPAddress, SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate
from pyflannel.core.trust import ConfigOrigin
from pyflannel.logs import get_logger
from pyflannel.report.model import StoreReport
from pyflannel.store.base import FindObstacles, Standing, no_obstacles
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.acquire import discard_store_lease
from pyflannel.store.etcd.base import KeyValue, Store
from pyflannel.store.etcd.complaints import Complaints, answer_of
from pyflannel.store.etcd.feed import LeaseFeed
from pyflannel.store.etcd.netconfig import ConfigInForce, ConfigKey
from pyflannel.store.etcd.own import OwnLease
from pyflannel.store.etcd.seeking import Seeking
from pyflannel.store.record import LeaseRecord

log = get_logger(__name__)


class EtcdLeaseStore:
    """The `LeaseStore` over etcd.

    Args:
        kinds: the backends that a network config may ask for.
        previous: the subnet that `subnet.env` names.
        renew_margin_s: renew this long before the lease would expire; of a TTL other than
            upstream's at most a third.
        lease_ttl_s: what is asked for, 0 for what the network config says.
        obstacles: looks what a subnet must not take away from this node.
        tell: told in words what is being waited for, and `""` when it is over.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        kinds: Kinds,
        clock: Clock,
        record: LeaseRecord,
        previous: SubnetKey | None = None,
        renew_margin_s: float = 3600.0,
        lease_ttl_s: int = 0,
        obstacles: FindObstacles = no_obstacles,
        rng: random.Random | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads choices, protects nothing
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._record = record
        self._tell_waiting = tell
        self._told = ""
        self._acting = asyncio.Lock()
        self._news = asyncio.Event()
        self._source = ConfigKey(store, prefix, kinds, clock, self._tell)
        self._config = config = ConfigInForce(self._source, lease_ttl_s)
        self._holding = Holding(clock.monotonic(), margin_s=renew_margin_s, rng=rng)
        self._own = OwnLease(
            store,
            prefix,
            clock,
            record,
            self._holding,
            previous=previous,
            ttl_s=lambda: config.ttl_s,
            tell=self._tell,
        )
        self.feed = LeaseFeed(
            store,
            prefix,
            clock,
            is_own=self._own.is_key,
            own=self._saw_own,
            recovered=self._etcd_is_back,
            is_coming=self._own.is_coming,
        )
        self._seeking = Seeking(
            store,
            prefix,
            clock,
            record,
            self._holding,
            self._own,
            config,
            renew_margin_s=renew_margin_s,
            obstacles=obstacles,
            rng=rng,
            won=self.feed.prime,
            news=self._news.set,
        )
        self._complaints = Complaints(store, clock, self._holding, self._own, self._tell)
        remembered = record.load()
        if remembered is not None and remembered.cluster:
            store.expect_cluster(remembered.cluster)

    @property
    def origin(self) -> ConfigOrigin:
        """As in `LeaseStore`."""
        return ConfigOrigin.ETCD

    @property
    def lease(self) -> Lease | None:
        """The lease as we know it now; the last one while it is being taken back."""
        return self._own.lease

    @property
    def allots(self) -> bool:
        """As in `LeaseStore`."""
        return True

    def wished(self) -> Collection[IPAddress]:
        """As in `LeaseStore`: none."""
        return ()

    def published(self) -> Sequence[IPAddress]:
        """As in `LeaseStore`: what the record names."""
        remembered = self._record.load()
        return remembered.public if remembered is not None else ()

    # The network config

    async def network_config(self) -> NetworkConfig:
        """As in `LeaseStore`.

        Raises:
            StoreDenied: etcd refuses us; waiting would not help.
            StoreConfigError: the way to etcd is configured wrongly.
        """
        return await self._config.wait()

    def _tell(self, waiting_for: str) -> None:
        """Reports what is waited for, when that has changed."""
        if waiting_for != self._told:
            self._told = waiting_for
            self._tell_waiting(waiting_for)

    def watch_config(self) -> AsyncIterator[bytes | None]:
        """The raw config whenever it is written or deleted (`None`), without end."""
        return self._source.changes()

    # The lease

    async def previous(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """As in `LeaseStore`."""
        return await self._seeking.previous(attrs)

    def prescribed(self, attrs: LeaseAttrs) -> None:
        """As in `LeaseStore`: what we publish is ours to say."""
        del attrs

    async def acquire(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`.

        Raises:
            StoreDenied, StoreConfigError: etcd refuses us, or cannot be spoken to the way that is
                configured. No lease is held yet, so waiting is no better than ending.
            SubnetsOverlap: as in `LeaseStore`.
            NetworkConfigChanged: there is another valid network config than the one waited under.
                The caller reads it with `network_config`, derives anew what hangs on it, and calls
                again.
        """
        self._own.wanted = attrs
        try:
            await self._act_until(lambda: self._holding.has, starting=True)
        finally:
            await self._seeking.stop()
        return self._own.held()

    async def keep(self) -> AsyncIterator[Lease]:
        """Keeps the lease until cancelled; yields it whenever its subnet is another one.

        Needs `watch_leases` to be consumed at the same time: that is where sightings come from.

        Raises:
            NetworkConfigChanged: the lease is lost, none is to be had, and the store has a config
                for another network by now, to which a running node cannot follow.
        """
        told = self._own.held().key
        try:
            while True:
                await self._act_until(functools.partial(self._own.moved_from, told))
                told = self._own.held().key
                yield self._own.held()
        finally:
            await self._seeking.stop()

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`: returns when they are written, under whatever subnet that is then.

        May be called by the consumer of `keep`, which stands still meanwhile: what is in the
        way of the write is done here.
        """
        self._own.wanted = attrs
        if attrs != self._own.held().attrs:
            self._holding.want(self._clock.monotonic())
        self._news.set()
        await self._act_until(
            lambda: self._holding.has and self._own.held().attrs == self._own.wanted
        )
        return self._own.held()

    def ready(self) -> None:
        """As in `LeaseStore`: etcd is not asked for it."""

    async def release(self) -> bool:
        """As in `LeaseStore`: key and etcd lease go."""
        lease = self._own.lease
        if lease is None or not self._holding.has or lease.is_reservation:
            return False
        key = codec.lease_key(self._prefix, lease.key)
        gone = await self._store.delete(key, if_mod_revision=lease.revision)
        if gone:
            log.info("subnet given back", subnet=lease.key.describe())
            await discard_store_lease(self._store, lease.store_lease)
        return gone

    def watch_leases(self) -> AsyncIterator[LeaseUpdate]:
        """As in `LeaseStore`."""
        return self.feed.updates()

    def reconnect(self, why: str) -> None:
        """As in `LeaseStore`."""
        self._store.reconnect(why)

    def describe(self) -> str:
        """As in `LeaseStore`: the endpoints."""
        return self._store.describe()

    def addresses(self) -> Collection[IPAddress]:
        """As in `LeaseStore`: of the endpoints."""
        return self._store.addresses()

    def report(self) -> StoreReport:
        """As in `LeaseStore`."""
        server = self._store.server()
        return replace(
            self.feed.report(),
            kind="etcd",
            where=self._store.describe(),
            version=server.version,
            alarms=server.alarms,
        )

    def standing(self) -> Standing:
        """As in `LeaseStore`: what a read or a conditional write has shown, and how long ago."""
        if self._own.lease is None:
            return Standing(taken=self._seeking.taken)
        now = self._clock.monotonic()
        trouble, epoch = self._complaints.present, self._clock.time() - now
        belief = self._holding.belief(now)
        confirmed = epoch + self._holding.confirmed
        reasons, since = [], None
        loss = self._own.loss
        if loss is not None:
            reasons, since = [loss.why], loss.at
        elif belief is not Belief.HELD:
            end = self._holding.end
            ended = belief is Belief.NOT_HELD and end is not None
            reasons = ["it has ended by our clock" if ended else "not read for over a minute"]
            since = self._holding.confirmed
        if trouble is not None:
            reasons.append(trouble.reason)
            since = trouble.since if since is None else since
        return Standing(
            held={Belief.HELD: True, Belief.UNCONFIRMED: None, Belief.NOT_HELD: False}[belief],
            confirmed=confirmed,
            reason="; ".join(reasons),
            since=None if since is None else epoch + since,
            taken=self._seeking.taken,
        )

    async def close(self) -> None:
        """As in `LeaseStore`."""
        await self._store.close()

    # Acting

    async def _act_until(self, done: Callable[[], bool], *, starting: bool = False) -> None:
        """Does what is due, and waits for what will be, until `done`.

        Two tasks may be in here at a time (one keeps the lease, the other has attributes to write):
        whichever comes first does the next step, one at a time.
        """
        while True:
            async with self._acting:
                if done():
                    self._news.set()  # the other one has to look at the clock again
                    return
                self._news.clear()
                if self._own.is_sighted:
                    await self._do(Do.LOOK, self._own.judge_sighting)
                    continue
                step = self._holding.step()
                if step.at <= self._clock.monotonic():
                    await self._do(step.do, self._action(step.do), starting=starting)
                    continue
            await self._wait_until(step.at)

    async def _wait_until(self, at: float) -> None:
        """Waits for news, but not beyond a time."""
        news = asyncio.ensure_future(self._news.wait())
        time = asyncio.ensure_future(self._clock.sleep(max(0.0, at - self._clock.monotonic())))
        try:
            await asyncio.wait({news, time}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            time.cancel()

    def _action(self, do: Do) -> Callable[[], Awaitable[None]]:
        match do:
            case Do.ATTEMPT:
                return self._attempt
            case Do.LOOK:
                return self._own.look
            case Do.PUBLISH:
                return self._own.publish_wanted
            case Do.RENEW:
                return self._own.renew
        assert_never(do)

    async def _do(
        self, do: Do, action: Callable[[], Awaitable[None]], *, starting: bool = False
    ) -> None:
        """Carries one step out; whatever is answered, the machine knows the next one."""
        try:
            await action()
        except NetworkConfigChanged as change:
            if starting or not self._seeking.divide_anew():
                raise
            log.info(
                "the network config changed the size or range of subnets, asking at once",
                change=change,
            )
        except (StoreError, LeaseError) as error:
            if starting and isinstance(error, StoreDenied | StoreConfigError | SubnetsOverlap):
                raise
            self._holding.failed(self._clock.monotonic(), do, answer_of(error))
            self._complaints.failed(do, error)
            if do is Do.ATTEMPT:
                await self._seeking.missed(error)
        else:
            self._complaints.over()
            self._record.save_again()

    async def _attempt(self) -> None:
        await self._seeking.attempt()
        self._tell("")

    def _saw_own(self, kv: KeyValue | None) -> None:
        self._own.saw(kv)
        self._news.set()

    def _etcd_is_back(self) -> None:
        self._holding.doubt(self._clock.monotonic(), "etcd was away")
        self._news.set()
