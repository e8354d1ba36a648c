"""This node's lease in etcd, kept while the daemon runs; and the way to the others'.

What to do next, and when, is decided by `core.holding`, the same machine for the first lease, for
keeping it and for taking it back. This module carries its steps out, one at a time, and tells it
what came of them.

Keeping: the etcd lease is renewed in place (no second one, nothing to leak, no event at the peers).
The key is seen through the same feed that brings the peers, read again every minute and at each
renewal, and each sighting is judged by value (`core.ownership`). What is lost is taken back if it
is free; a subnet that another node holds is never written.

Waiting: a node without a lease listens to what may end its wait, the network config and the other
leases, and looks in between as well.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, assert_never

from pyflannel.aio.clock import Clock
from pyflannel.aio.pace import paced
from pyflannel.core import allocation
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import (
    LeaseError,
    NetworkConfigChanged,
    PublicIPInUse,
    StoreConfigError,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreLeaseNotFound,
    SubnetsExhausted,
    SubnetsOverlap,
)
from pyflannel.core.holding import Answer, Belief, Do, Holding
from pyflannel.core.ip import IPAddress, SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate
from pyflannel.core.overlap import Obstacles
from pyflannel.core.ownership import Verdict, judge
from pyflannel.core.renewal import DEFAULT_LEASE_TTL_S, margin_for
from pyflannel.core.trouble import TroubleLog
from pyflannel.core.trust import ConfigOrigin
from pyflannel.logs import get_logger
from pyflannel.report.model import StoreReport
from pyflannel.store.base import FindObstacles, Standing, no_obstacles
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.acquire import (
    Acquisition,
    aside,
    discard_store_lease,
)
from pyflannel.store.etcd.base import (
    KeyValue,
    Store,
)
from pyflannel.store.etcd.challenge import ANSWER_INTERVAL_S
from pyflannel.store.etcd.feed import LeaseFeed, Listing, list_leases
from pyflannel.store.etcd.listening import Listeners
from pyflannel.store.etcd.netconfig import ConfigKey
from pyflannel.store.record import LeaseRecord

log = get_logger(__name__)

LISTEN_AFTER_S: Final = 0.5
"""A wait for a lease that is longer than this is worth two watches."""

GIVEN_BACK_POLL_S: Final = 0.1
GIVEN_BACK_S: Final = 3.0
"""How long a subnet that another address was written to is not given up yet: an operator's mistake
is mended within seconds, and the containers of this node live in the subnet. Peers send to the
other address at once, so waiting costs nothing."""


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
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._record = record
        self._previous = previous
        self._margin_s = renew_margin_s
        self._lease_ttl_s = lease_ttl_s
        self._find_obstacles = obstacles
        self._random = rng or random.Random()  # noqa: S311 - spreads choices, protects nothing
        self._tell_waiting = tell
        self._told = ""
        self._config: NetworkConfig | None = None
        self._source = ConfigKey(store, prefix, kinds, clock, self._tell)
        self._ahead: NetworkConfig | None = None
        self._lease: Lease | None = None
        self._own_key = b""
        self._lost: Lease | None = None
        self._lost_why = ""
        self._lost_at = 0.0
        self._lost_to_another = False
        self._taken = False
        self._wanted = LeaseAttrs()
        self._holding = Holding(clock.monotonic(), margin_s=renew_margin_s, rng=self._random)
        self._trouble = TroubleLog()
        self._acting = asyncio.Lock()
        self._acquisition: Acquisition | None = None
        self._listeners = Listeners(
            store, prefix, clock, config=self._read_config, room=self._make_use_of_room
        )
        self._listed: Listing | None = None
        self._sighting: tuple[KeyValue | None] | None = None
        self._news = asyncio.Event()
        self._answered = float("-inf")
        self._waits_for_room = False
        remembered = record.load()
        if remembered is not None and remembered.cluster:
            store.expect_cluster(remembered.cluster)
        self.feed = LeaseFeed(
            store,
            prefix,
            clock,
            is_own=self._is_own_key,
            own=self._saw_own,
            recovered=self._etcd_is_back,
        )

    @property
    def origin(self) -> ConfigOrigin:
        """As in `LeaseStore`."""
        return ConfigOrigin.ETCD

    @property
    def lease(self) -> Lease | None:
        """The lease as we know it now; the last one while it is being taken back."""
        return self._lease

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
        self._config, self._ahead = await self._source.wait(), None
        return self._config

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
        """What the store holds under our public IP: the attributes of our former run.

        A lease of ours under another address does not count: the machine that was copied onto this
        one may hold it, and two nodes must not publish one VTEP MAC.

        Args:
            attrs: our addresses; the rest of it does not matter.
        """
        self._listed = listed = await list_leases(self._store, self._prefix)
        config, remembered = self._settled(), self._record.load()
        work = functools.partial(
            allocation.own_leases,
            listed.leases,
            attrs,
            config,
            previous=self._previous,
            former=remembered.former if remembered is not None else None,
            intended=remembered.intended if remembered is not None else None,
        )
        own = await aside(len(listed.leases), work)
        if not own or not allocation.is_under_our_address(own[0], attrs, config):
            return None
        return own[0].attrs

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
        self._wanted = attrs
        try:
            await self._act_until(lambda: self._holding.has, starting=True)
        finally:
            await self._stop_seeking()
        return self._held()

    async def keep(self) -> AsyncIterator[Lease]:
        """Keeps the lease until cancelled; yields it whenever its subnet is another one.

        Needs `watch_leases` to be consumed at the same time: that is where sightings come from.

        Raises:
            NetworkConfigChanged: the lease is lost, none is to be had, and the store has a config
                for another network by now, to which a running node cannot follow.
        """
        told = self._held().key
        try:
            while True:
                await self._act_until(functools.partial(self._moved_from, told))
                told = self._held().key
                yield self._held()
        finally:
            await self._stop_seeking()

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`: returns when they are written, under whatever subnet that is then.

        May be called by the consumer of `keep`, which stands still meanwhile: what is in the
        way of the write is done here.
        """
        self._wanted = attrs
        if attrs != self._held().attrs:
            self._holding.want(self._clock.monotonic())
        self._news.set()
        await self._act_until(lambda: self._holding.has and self._held().attrs == self._wanted)
        return self._held()

    def ready(self) -> None:
        """As in `LeaseStore`: etcd is not asked for it."""

    async def release(self) -> bool:
        """As in `LeaseStore`: key and etcd lease go."""
        lease = self._lease
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
        if self._lease is None:
            return Standing(taken=self._taken)
        now = self._clock.monotonic()
        trouble, epoch = self._trouble.present, self._clock.time() - now
        belief = self._holding.belief(now)
        confirmed = epoch + self._holding.confirmed
        reasons, since = [], None
        if self._lost is not None:
            reasons, since = [self._lost_why], self._lost_at
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
            taken=self._taken,
        )

    async def close(self) -> None:
        """As in `LeaseStore`."""
        await self._store.close()

    def _moved_from(self, key: SubnetKey) -> bool:
        return self._holding.has and self._held().key != key

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
                if self._sighting is not None:
                    await self._do(Do.LOOK, self._judge_sighting)
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
                return self._look
            case Do.PUBLISH:
                return self._publish_wanted
            case Do.RENEW:
                return self._renew
        assert_never(do)

    async def _do(
        self, do: Do, action: Callable[[], Awaitable[None]], *, starting: bool = False
    ) -> None:
        """Carries one step out; whatever is answered, the machine knows the next one."""
        try:
            await action()
        except NetworkConfigChanged as change:
            config = self._ahead
            if starting or config is None or not config.allots_differently(self._settled()):
                raise
            log.info("the network is divided differently now, trying at once", change=change)
            self._take_config(config)
        except (StoreError, LeaseError) as error:
            if starting and isinstance(error, StoreDenied | StoreConfigError | SubnetsOverlap):
                raise
            self._holding.failed(self._clock.monotonic(), do, _answer(error))
            self._complain(do, error)
            if do is Do.ATTEMPT:
                self._waits_for_room = isinstance(error, SubnetsExhausted)
                if isinstance(error, LeaseError):  # etcd was read, and what it says still holds
                    self._taken = await self._is_taken()
                self._listen()
        else:
            self._content()
            self._record.save_again()

    async def _is_taken(self) -> bool:
        """Whether the subnet that we had is another node's, now that we have got none."""
        if self._lost is not None:
            # In a full network it is among those that the others have: it is taken back first.
            return self._lost_to_another or self._waits_for_room
        listed = self._acquisition.listed if self._acquisition is not None else None
        if self._previous is None or listed is None:
            return False
        # None of these is ours, for then we would have it.
        holders = [
            lease.key
            async for lease in paced(await listed.taken(self._prefix))
            if allocation.overlap(lease.key, self._previous)
        ]
        return bool(holders)

    def _complain(self, do: Do, error: StoreError | LeaseError) -> None:
        answer = _answer(error)
        if answer in (Answer.RACED, Answer.LEASE_ENDED):
            log.debug("own lease: trying again", step=do.value, error=error)
            return
        kind = f"{answer.name} {error.kind if isinstance(error, StoreError) else error}"
        occasion = self._trouble.failed(self._clock.monotonic(), kind, str(error))
        if not self._holding.has:
            self._tell(_WAITING[answer].format(error=error, etcd=self._store.describe()))
        if occasion is None:
            return
        if not self._holding.has:
            write = log.warning if answer is Answer.UNREACHABLE else log.error
            write(
                f"no subnet lease yet, still trying: {error}"
                if self._lost is None
                else f"the subnet lease is not back yet, still trying: {error}",
                endpoints=self._store.describe(),
            )
        elif do is Do.RENEW and self._holding.renewal is not None:
            log.warning(
                "Error renewing lease, trying again",
                subnet=self._held().key.describe(),
                reason=self._holding.renewal.reason,
                error=error,
            )
        else:
            log.warning(
                "own lease not looked after, trying again",
                subnet=self._held().key.describe(),
                step=do.value,
                error=error,
            )

    def _content(self) -> None:
        lasted = self._trouble.over(self._clock.monotonic())
        if lasted is not None:
            log.info("own lease is looked after again", after_s=round(lasted, 1))

    # The steps

    async def _attempt(self) -> None:
        acquisition = self._acquisition
        if acquisition is None:
            acquisition = self._acquisition = self._new_acquisition()
        elif not self._listeners.listening:
            await self._read_config()
        if self._ahead is not None:
            raise NetworkConfigChanged(
                "the network config changed before a subnet was to be had; "
                "starting over with the new one"
            )
        lease = await acquisition.attempt(self._wanted)
        self._holding.won(*acquisition.term)
        self._adopt(lease)
        if acquisition.listed is not None and self._lost is None:
            self.feed.prime(acquisition.listed)
        await self._stop_seeking()
        former, self._lost, self._taken = self._lost, None, False
        if former is not None:
            if lease.store_lease != former.store_lease:
                await discard_store_lease(self._store, former.store_lease)
            log.warning(
                "subnet lease is back" if lease.key == former.key else "subnet changed",
                subnet=lease.key.describe(),
                former=former.key.describe(),
            )
        self._tell("")

    def _new_acquisition(self) -> Acquisition:
        ttl_s = self._ttl_s()
        self._holding.renew_before_end(
            margin_for(ttl_s, self._margin_s, usual_ttl_s=DEFAULT_LEASE_TTL_S)
        )
        remembered = self._record.load()
        listed, self._listed = self._listed, None
        return Acquisition(
            self._store,
            self._prefix,
            self._settled(),
            self._clock,
            self._random,
            ttl_s=ttl_s,
            previous=self._previous,
            former=remembered.former if remembered is not None else None,
            intended=remembered.intended if remembered is not None else None,
            intend=self._record.intend,
            obstacles=self._obstacles,
            listed=listed,
        )

    async def _obstacles(self, config: NetworkConfig, attrs: LeaseAttrs) -> Obstacles | None:
        published = (attrs.public_ip, attrs.public_ipv6)
        return await self._find_obstacles(
            config.networks, self.addresses(), [ip for ip in published if ip is not None]
        )

    async def _look(self) -> None:
        """Reads our key and acts on what it shows."""
        sent = self._clock.monotonic()
        found = await self._store.get(codec.lease_key(self._prefix, self._held().key))
        await self._judge(found.kvs[0] if found.kvs else None)
        if self._holding.has:
            self._holding.shown(sent)

    async def _judge_sighting(self) -> None:
        """Judges what the feed saw of our key."""
        if self._sighting is None:
            return
        (kv,), self._sighting = self._sighting, None
        ours = self._held()
        if not self._holding.has:
            self._holding.wake(self._clock.monotonic())
        elif kv is None or kv.mod_revision >= ours.revision:
            try:
                await self._judge(kv)
            except StoreConflict:
                self._holding.doubt(self._clock.monotonic(), "our key changed under our hands")
        elif kv.mod_revision < ours.revision:
            # Late news of an earlier write of ours, or a store that was set back.
            self._holding.doubt(self._clock.monotonic(), "an older revision of our key was seen")

    async def _judge(self, kv: KeyValue | None) -> None:
        ours = self._held()
        decoded = codec.decode_lease(self._prefix, kv) if kv is not None else None
        seen = decoded if isinstance(decoded, Lease) else None
        readable = kv is None or seen is not None
        if kv is not None and seen is not None:
            if self._is_own_write(seen):
                log.info(
                    "a write of our lease was carried out after all", subnet=ours.key.describe()
                )
                self._set_lease(replace(ours, attrs=seen.attrs, revision=kv.mod_revision))
                return
            same = seen.attrs == ours.attrs and kv.lease == ours.store_lease
            if same and kv.mod_revision < ours.revision:
                # The store was set back to a time at which the lease was ours already.
                self._set_lease(replace(ours, revision=kv.mod_revision))
                return
        try:
            await self._act_on(judge(ours, seen, readable=readable), ours, kv, seen)
        except StoreLeaseNotFound:
            self._lose("its etcd lease ended")

    def _is_own_write(self, seen: Lease) -> bool:
        """Whether these are the attributes that we are about to write: the answer got lost."""
        ours = self._held()
        return seen.store_lease == ours.store_lease and ours.attrs != seen.attrs == self._wanted

    async def _act_on(
        self, verdict: Verdict, ours: Lease, kv: KeyValue | None, seen: Lease | None
    ) -> None:
        subnet = ours.key.describe()
        if verdict is Verdict.OURS:
            return
        if verdict is Verdict.GONE:
            self._lose("it was deleted or expired")
        elif verdict is Verdict.TAKEN and seen is not None:
            holder = seen.attrs.public_ip or seen.attrs.public_ipv6
            if await self._is_given_back(ours, holder):
                raise StoreConflict(f"{subnet} was another node's for a moment")
            self._lose(f"another node took it over: public IP {holder}", to_another=True)
        elif verdict is Verdict.TOUCHED and kv is not None:
            self._lease = replace(ours, revision=kv.mod_revision)
            now = self._clock.monotonic()
            if now - self._answered < ANSWER_INTERVAL_S:
                return
            self._answered = now
            log.warning(
                "somebody else wrote our lease as it was; another node may be using our public IP",
                subnet=subnet,
                public_ip=ours.attrs.public_ip,
            )
            await self._publish(self._lease)
        elif verdict is Verdict.ALTERED and kv is not None:
            log.warning("our lease was altered in etcd, writing it again", subnet=subnet)
            now = self._clock.monotonic()
            pause = self._answered + ANSWER_INTERVAL_S - now
            if pause > 0:
                await self._clock.sleep(pause)
            self._answered = self._clock.monotonic()
            await self._publish(replace(ours, revision=kv.mod_revision))
        elif seen is not None:
            await self._adopt_move(verdict, ours, seen)

    async def _is_given_back(self, ours: Lease, holder: object) -> bool:
        """Waits a moment for our key to become ours again; then it has to be judged again."""
        log.warning(
            "another node's address was written to our lease; waiting whether that stays",
            subnet=ours.key.describe(),
            holder=holder,
        )
        deadline = self._clock.monotonic() + GIVEN_BACK_S
        while self._clock.monotonic() < deadline:
            await self._clock.sleep(GIVEN_BACK_POLL_S)
            if self._sighting is None:
                continue
            (kv,) = self._sighting
            decoded = codec.decode_lease(self._prefix, kv) if kv is not None else None
            seen = decoded if isinstance(decoded, Lease) else None
            readable = kv is None or seen is not None
            if judge(ours, seen, readable=readable) is not Verdict.TAKEN:
                return True
            self._sighting = None
        return False

    async def _adopt_move(self, verdict: Verdict, ours: Lease, seen: Lease) -> None:
        sent = self._clock.monotonic()
        if verdict is Verdict.RESERVED:
            log.info("our lease became a reservation: no time limit", subnet=ours.key.describe())
            self._holding.won(sent, None)
            self._adopt(replace(seen, expires=None))
        else:
            status = await self._store.time_to_live(seen.store_lease, keys=True)
            log.warning(
                "our lease was written by another daemon with our public IP, keeping it",
                subnet=ours.key.describe(),
                public_ip=ours.attrs.public_ip,
            )
            alone = list(status.keys) == [codec.lease_key(self._prefix, ours.key)]
            if alone and status.granted_ttl == self._ttl_s():
                self._holding.won(sent, status.ttl)
                self._adopt(replace(seen, expires=self._clock.time() + status.ttl))
            else:
                await self._leave_foreign(seen)
        await discard_store_lease(self._store, ours.store_lease)

    async def _leave_foreign(self, seen: Lease) -> None:
        """Puts our key on an etcd lease of its own: by that a node is known, and it alone ends.

        The one it hangs on has other keys too, or another length than ours.
        """
        sent = self._clock.monotonic()
        granted = await self._store.grant(self._ttl_s())
        mine = replace(seen, store_lease=granted.id)
        self._record.intend(mine)
        try:
            await self._publish(mine)
        except StoreError:
            await discard_store_lease(self._store, granted.id)
            raise
        self._holding.won(sent, granted.ttl)
        self._adopt(replace(self._held(), expires=self._clock.time() + granted.ttl))

    def _lose(self, why: str, *, to_another: bool = False) -> None:
        """Our key is gone or another's: from now on it is sought."""
        ours = self._held()
        log.error("subnet lease lost, getting it back", subnet=ours.key.describe(), reason=why)
        self._tell(f"lease {ours.key.describe()} lost: {why}")
        self._lost, self._lost_why, self._lost_at = ours, why, self._clock.monotonic()
        self._lost_to_another = to_another
        self._previous = None if to_another else ours.key
        self._holding.lost(self._clock.monotonic(), why)

    async def _publish_wanted(self) -> None:
        ours = self._held()
        if self._wanted != ours.attrs:
            await self._publish(replace(ours, attrs=self._wanted))
        # Something else may have become wanted under the write.
        if self._wanted == self._held().attrs:
            self._holding.published()

    async def _publish(self, lease: Lease) -> None:
        """Writes our lease over exactly the revision it names."""
        sent = self._clock.monotonic()
        header = await self._store.put(
            codec.lease_key(self._prefix, lease.key),
            codec.encode_attrs(lease.attrs),
            lease=lease.store_lease,
            if_mod_revision=lease.revision,
        )
        self._holding.shown(sent)
        self._set_lease(replace(lease, revision=header.revision))

    async def _renew(self) -> None:
        lease = self._held()
        sent = self._clock.monotonic()
        ttl = await self._store.keepalive(lease.store_lease)
        self._holding.renewed(sent, ttl)
        self._lease = replace(lease, expires=self._clock.time() + ttl)
        log.info(
            f"Lease renewed, new expiration: {self._lease.expires:.0f}",
            subnet=lease.key.describe(),
            ttl_s=ttl,
        )

    def _adopt(self, lease: Lease) -> None:
        """This is our lease from now on, no matter who wrote it."""
        self._previous = lease.key
        self._sighting = None
        self._set_lease(lease)
        if lease.attrs != self._wanted:
            self._holding.want(self._clock.monotonic())
        renewal = self._holding.renewal
        if renewal is not None and renewal.deadline is not None:
            wait = renewal.deadline - self._clock.monotonic()
            log.info(
                f"Waiting for {_go_duration(wait)} to renew lease", subnet=lease.key.describe()
            )

    def _set_lease(self, lease: Lease) -> None:
        self._lease = lease
        self._own_key = codec.lease_key(self._prefix, lease.key)
        self._record.save(lease, self._store.cluster)

    # Sightings and news

    def _held(self) -> Lease:
        if self._lease is None:
            raise LeaseError("no lease has been acquired yet")
        return self._lease

    def _settled(self) -> NetworkConfig:
        if self._config is None:
            raise LeaseError("the network config has not been read yet")
        return self._config

    def _ttl_s(self) -> int:
        return self._lease_ttl_s or self._settled().lease_ttl

    def _is_own_key(self, key: bytes) -> bool:
        return key == self._own_key

    def _saw_own(self, kv: KeyValue | None) -> None:
        self._sighting = (kv,)
        self._news.set()

    def _etcd_is_back(self) -> None:
        self._holding.doubt(self._clock.monotonic(), "etcd was away")
        self._news.set()

    def _listen(self) -> None:
        """Has what may end our wait for a lease wake us; ended by `_stop_seeking`."""
        if self._holding.step().at - self._clock.monotonic() >= LISTEN_AFTER_S:
            self._listeners.start()

    async def _stop_seeking(self) -> None:
        """Ends what an attempt leaves behind while it waits for the next one."""
        acquisition, self._acquisition = self._acquisition, None
        await self._listeners.stop()
        if acquisition is not None:
            await acquisition.close()

    async def _make_use_of_room(self) -> None:
        # Who waits for a public IP is told nothing by that: it asks the other node now and then.
        if self._waits_for_room:
            await self._wake()

    async def _wake(self) -> None:
        self._holding.wake(self._clock.monotonic())
        self._news.set()

    async def _read_config(self) -> None:
        """Notes another valid network config than ours, if the store has one now."""
        ahead = await self._source.newer(self._settled())
        if ahead is not None:
            self._ahead = ahead
            await self._wake()

    def _take_config(self, config: NetworkConfig) -> None:
        self._config, self._ahead = config, None
        if self._acquisition is not None:
            self._acquisition.config = config


_WAITING: Final = {
    Answer.RACED: "{error}",
    Answer.LEASE_ENDED: "{error}",
    Answer.FULL: "{error}",
    Answer.IN_USE: "{error}",
    Answer.REFUSED: "{error}",
    Answer.UNREACHABLE: "waiting for etcd at {etcd} with the subnet lease: {error}",
}
"""What a node without a lease says that it waits for."""


def _answer(error: StoreError | LeaseError) -> Answer:
    match error:
        case StoreConflict():
            return Answer.RACED
        case StoreLeaseNotFound():
            return Answer.LEASE_ENDED
        case SubnetsExhausted() | SubnetsOverlap():
            return Answer.FULL
        case PublicIPInUse():
            return Answer.IN_USE
        case StoreDenied() | StoreConfigError():
            return Answer.REFUSED
        case _:
            return Answer.UNREACHABLE


def _go_duration(seconds: float) -> str:
    """`22h59m58s`, as Go prints it: people grep for it."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
