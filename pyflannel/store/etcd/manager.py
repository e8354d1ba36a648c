"""This node's lease in etcd, kept for ever; and the way to everybody else's.

Keeping: the etcd lease is renewed in place (no second one, nothing to leak, no event at the peers).
The key is seen through the same feed that brings the peers, and each sighting is judged by value
(`core.ownership`). What is lost is taken back if it is free; a subnet that another node holds is
never written.

While the node runs, no answer of etcd ends the trying: whatever fails or is refused, the key is
read again after a back-off and judged by what it shows then. A renewed etcd lease says nothing
about the key, so each renewal reads that too.
"""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from pyflannel.aio.backoff import Backoff
from pyflannel.aio.clock import Clock
from pyflannel.core import allocation
from pyflannel.core.config import NetworkConfig, parse_network_config
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
)
from pyflannel.core.ip import IPAddress, SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate
from pyflannel.core.ownership import Verdict, judge
from pyflannel.core.renewal import Renewal
from pyflannel.core.trust import ConfigOrigin
from pyflannel.foreign import escape, shown
from pyflannel.logs import get_logger
from pyflannel.report.model import StoreReport
from pyflannel.store.base import Standing
from pyflannel.store.configlog import log_problems
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.acquire import LEASE_TTL_S, Acquisition, discard_store_lease
from pyflannel.store.etcd.base import (
    DeleteEvent,
    KeyValue,
    PutEvent,
    RangeResult,
    Store,
)
from pyflannel.store.etcd.feed import LeaseFeed, known_leases
from pyflannel.store.record import LeaseRecord

log = get_logger(__name__)

EXHAUSTED_RETRY_S: Final = 5.0
"""Between two looks for a free subnet, or for a public IP that is no longer in use."""
CONFIG_RETRY_S: Final = 1.0
"""Between two looks for the network config (upstream's interval)."""
RACE_RETRY_S: Final = 0.05
"""After the first lost race for a subnet: the rival's write is there, so looking again at once is
right; by chance it is up to half of that sooner, or two that race would do so again."""
RACE_CEILING_S: Final = 1.0
"""After many: fifty nodes that start together lose two or three each, hardly one five."""
ANSWER_INTERVAL_S: Final = 0.3
"""Least time between two answers to a challenge, so that two owners can never echo for ever; well
below the second that a challenger waits."""
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
        renew_margin_s: renew this long before the lease would expire.
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
        rng: random.Random | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._kinds = kinds
        self._clock = clock
        self._record = record
        self._previous = previous
        self._margin_s = renew_margin_s
        self._random = rng or random.Random()  # noqa: S311 - spreads choices, protects nothing
        self._tell = tell
        self._config: NetworkConfig | None = None
        self._config_revision = 0
        self._lease: Lease | None = None
        self._renewal: Renewal | None = None
        self._writing = asyncio.Lock()
        self._listed: RangeResult | None = None
        self._sighting: tuple[KeyValue | None] | None = None
        self._wanted: LeaseAttrs | None = None
        self._unseen = False
        self._sighted = asyncio.Event()
        self._answered = float("-inf")
        self.feed = LeaseFeed(store, prefix, clock, is_own=self._is_own_key, own=self._saw_own)

    @property
    def origin(self) -> ConfigOrigin:
        """As in `LeaseStore`."""
        return ConfigOrigin.ETCD

    @property
    def lease(self) -> Lease | None:
        """The lease as we know it now."""
        return self._lease

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
        key = codec.config_key(self._prefix)
        backoff = Backoff()
        said = ""

        def waiting(state: str) -> bool:
            nonlocal said
            changed, said = state != said, state
            if changed:
                self._tell(state)
            return changed

        while True:
            try:
                found = await self._store.get(key)
            except (StoreDenied, StoreConfigError):
                raise
            except StoreError as error:
                if waiting(f"waiting for etcd at {self._store.describe()}"):
                    log.warning(
                        "Couldn't fetch network config: etcd does not answer, waiting",
                        endpoints=self._store.describe(),
                        key=shown(key),
                        error=error,
                    )
                await self._clock.sleep(backoff.next())
                continue
            backoff.reset()
            if not found.kvs:
                if waiting(f"waiting for the network config {shown(key)} in etcd"):
                    log.warning(
                        "Couldn't fetch network config: flannel config not found in etcd store. "
                        "Did you create your config using etcdv3 API?",
                        endpoints=self._store.describe(),
                        prefix=self._prefix,
                        key=shown(key),
                        remedy=self._set_command(),
                    )
            else:
                parsed = parse_network_config(found.kvs[0].value, self._kinds)
                if parsed.config is not None:
                    self._config_revision = found.kvs[0].mod_revision
                    log_problems(parsed.problems, shown(key))
                    self._tell("")
                    self._config = parsed.config
                    return parsed.config
                revision = found.kvs[0].mod_revision
                if waiting(f"waiting for a valid network config in {shown(key)} (r{revision})"):
                    log_problems(parsed.problems, shown(key))
            await self._clock.sleep(CONFIG_RETRY_S)

    def _set_command(self) -> str:
        """The command that writes the config where this node reads it."""
        endpoints = self._store.describe().replace(", ", ",")
        words = [f"--etcd-endpoints={endpoints}", f"--etcd-prefix={escape(self._prefix)}", "FILE"]
        return shlex.join(["pyflannel", "config", "set", *words])

    async def watch_config(self) -> AsyncIterator[bytes | None]:
        """The raw config whenever it is written or deleted (`None`), for ever."""
        key = codec.config_key(self._prefix)
        backoff = Backoff()
        known = self._config_revision
        while True:
            try:
                found = await self._store.get(key)
                revision = found.kvs[0].mod_revision if found.kvs else 0
                if known != revision:
                    known = revision
                    yield found.kvs[0].value if found.kvs else None
                async for response in self._store.watch_prefix(key, found.header.revision + 1):
                    backoff.reset()
                    for event in response.events:
                        if isinstance(event, PutEvent) and event.kv.key == key:
                            known = event.mod_revision
                            yield event.kv.value
                        elif isinstance(event, DeleteEvent) and event.key == key:
                            known = 0
                            yield None
            except StoreError as error:
                log.debug("watch of the config broke", error=error)
                await self._clock.sleep(max(backoff.next(), CONFIG_RETRY_S))

    # Winning the lease

    async def previous(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """What the store holds under our public IP: the attributes of our former run.

        A lease of ours under another address does not count: the machine that was copied onto this
        one may hold it, and two nodes must not publish one VTEP MAC.

        Args:
            attrs: our addresses; the rest of it does not matter.
        """
        self._listed = listed = await self._store.range_prefix(codec.subnets_prefix(self._prefix))
        config, remembered = self._settled(), self._record.load()
        own = allocation.own_leases(
            known_leases(self._prefix, listed.kvs),
            attrs,
            config,
            previous=self._previous,
            former=remembered.former if remembered is not None else None,
        )
        if not own or not allocation.is_under_our_address(own[0], attrs, config):
            return None
        return own[0].attrs

    def prescribed(self, attrs: LeaseAttrs) -> None:
        """As in `LeaseStore`: what we publish is ours to say."""
        del attrs

    async def acquire(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`.

        Raises:
            StoreDenied: etcd refuses us; waiting would not help.
            NetworkConfigChanged: there is another valid network config than the one waited under.
                The caller reads it with `network_config`, derives anew what hangs on it, and calls
                again.
        """
        async with self._writing:
            return await self._acquire(attrs, starting=True)

    async def _acquire(self, attrs: LeaseAttrs, *, starting: bool) -> Lease:
        """Waits for a lease, whatever happens.

        Args:
            starting: no lease was held yet, so nothing hangs on the network config and a refusal
                may end the attempt.
        """
        self._wanted = attrs
        remembered = self._record.load()
        acquisition = Acquisition(
            self._store,
            self._prefix,
            self._settled(),
            self._clock,
            self._random,
            previous=self._previous,
            former=remembered.former if remembered is not None else None,
            listed=self._listed,
        )
        self._listed = None
        backoff = Backoff()
        races = Backoff(first=RACE_RETRY_S, ceiling=RACE_CEILING_S, rng=self._random)
        said = ""
        try:
            while True:
                try:
                    lease = await acquisition.attempt(attrs)
                except StoreConflict as error:
                    log.debug("lost a race for a subnet, trying again", error=error)
                    await self._clock.sleep(races.next())
                    continue
                except StoreDenied as error:
                    if starting:
                        raise
                    if str(error) != said:
                        log.error("etcd refuses us the subnet lease, still trying", error=error)
                    self._tell(said := str(error))
                    wait = backoff.next()
                except (SubnetsExhausted, PublicIPInUse) as error:
                    if str(error) != said:
                        log.error(f"no subnet lease yet, still trying: {error}")
                    self._tell(said := str(error))
                    wait = EXHAUSTED_RETRY_S
                except (StoreError, LeaseError) as error:
                    state = f"waiting for etcd at {self._store.describe()} with the subnet lease"
                    if state != said:
                        log.warning(
                            "etcd does not answer, waiting with the subnet lease",
                            endpoints=self._store.describe(),
                            error=error,
                        )
                    self._tell(said := state)
                    wait = backoff.next()
                else:
                    self._tell("")
                    self._adopt(lease)
                    if acquisition.listed is not None:
                        self.feed.prime(acquisition.listed)
                    return lease
                acquisition.config = await self._pause(wait, starting=starting)
        finally:
            await acquisition.close()

    async def _pause(self, seconds: float, *, starting: bool) -> NetworkConfig:
        """Waits between two attempts, but not beyond a change of the network config.

        Returns:
            The config for the next attempt.

        Raises:
            NetworkConfigChanged: as in `acquire`. If a lease was held, only where the change
                is more than another way to divide the same network.
        """
        former = self._settled()
        end = self._clock.monotonic() + seconds
        while True:
            left = end - self._clock.monotonic()
            await self._clock.sleep(min(left, CONFIG_RETRY_S))
            config = await self._changed_config()
            if config is not None:
                if starting or not config.allots_differently(former):
                    raise NetworkConfigChanged(
                        "the network config changed before a subnet was to be had; "
                        "starting over with the new one"
                    )
                log.info("the network is divided differently now, trying at once")
                self._config = config
                return config
            if left <= CONFIG_RETRY_S:
                return former

    async def _changed_config(self) -> NetworkConfig | None:
        """Another valid network config than ours, if the store has one now."""
        try:
            found = await self._store.get(codec.config_key(self._prefix))
        except StoreError:
            return None  # the next attempt meets the same failure, and tells
        if not found.kvs or found.kvs[0].mod_revision == self._config_revision:
            return None
        parsed = parse_network_config(found.kvs[0].value, self._kinds)
        if parsed.config is None or parsed.config == self._settled():
            return None
        self._config_revision = found.kvs[0].mod_revision
        return parsed.config

    # Keeping it

    async def keep(self) -> AsyncIterator[Lease]:
        """Keeps the lease for ever; yields it whenever its subnet is another one than before.

        Needs `watch_leases` to be consumed at the same time: that is where sightings come from.
        """
        told = self._held().key
        backoff = Backoff()
        said = ""
        while True:
            try:
                await self._tend()
            except StoreError as error:
                if str(error) != said:
                    log.warning("own lease not looked after, trying again", error=error)
                said = str(error)
                self._unseen = True
                await self._clock.sleep(backoff.next())
            else:
                backoff.reset()
                said = ""
            if self._held().key != told:
                told = self._held().key
                yield self._held()

    async def _tend(self) -> None:
        """Waits for the next thing that our lease needs, and does it.

        Raises:
            StoreError: etcd failed or refused; our key has to be looked at again.
        """
        if not self._unseen and not await self._next_sighting():
            async with self._writing:
                await self._renew()
        self._sighted.clear()
        async with self._writing:
            if self._unseen:
                await self._look()
            elif self._sighting is not None:
                (kv,), self._sighting = self._sighting, None
                await self._judge_sighting(kv)

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`: retries until written, re-acquiring if the lease is lost.

        May be called by whoever consumes `keep`, which stands still meanwhile: so what is in
        the way of the write is judged here.
        """
        backoff = Backoff()
        said = ""
        while True:
            try:
                async with self._writing:
                    return await self._write_attrs(attrs)
            except StoreError as error:
                if str(error) != said:
                    log.warning("own lease not updated, retrying", error=error)
                said = str(error)
            await self._clock.sleep(backoff.next())

    async def _write_attrs(self, attrs: LeaseAttrs) -> Lease:
        lease = self._held()
        if attrs == lease.attrs:
            return lease
        self._wanted = attrs
        try:
            return await self._publish(replace(lease, attrs=attrs))
        except StoreConflict:
            await self._look()
            raise
        except StoreLeaseNotFound:
            await self._lost("its etcd lease ended", lease)
            self._sighted.set()  # keep tells of the subnet if it is another one now
            return self._held()

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
        return replace(self.feed.report(), kind="etcd", where=self._store.describe())

    def standing(self) -> Standing:
        """As in `LeaseStore`."""
        return Standing(held=True if self._lease is not None else None)

    async def close(self) -> None:
        """As in `LeaseStore`."""
        await self._store.close()

    def _held(self) -> Lease:
        if self._lease is None:
            raise LeaseError("no lease has been acquired yet")
        return self._lease

    def _settled(self) -> NetworkConfig:
        if self._config is None:
            raise LeaseError("the network config has not been read yet")
        return self._config

    def _is_own_key(self, key: bytes) -> bool:
        lease = self._lease
        return lease is not None and key == codec.lease_key(self._prefix, lease.key)

    def _saw_own(self, kv: KeyValue | None) -> None:
        self._sighting = (kv,)
        self._sighted.set()

    async def _next_sighting(self) -> bool:
        """Waits for a sighting (`True`) or for the time to renew (`False`)."""
        waits: set[asyncio.Future[object]] = {asyncio.ensure_future(self._sighted.wait())}
        due = self._renewal.deadline if self._renewal is not None else None
        if due is not None:
            left = max(0.0, due - self._clock.monotonic())
            waits.add(asyncio.ensure_future(self._clock.sleep(left)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._sighted.is_set()

    async def _judge_sighting(self, kv: KeyValue | None) -> None:
        """Judges what the feed saw of our key."""
        ours = self._held()
        if kv is not None and kv.mod_revision == ours.revision:
            return
        if kv is not None and kv.mod_revision < ours.revision:
            # Late news of an earlier write of ours, or a store that was set back.
            await self._look()
            return
        await self._judge(kv)

    async def _look(self) -> None:
        """Reads our key and acts on what it shows."""
        self._unseen = True
        found = await self._store.get(codec.lease_key(self._prefix, self._held().key))
        await self._judge(found.kvs[0] if found.kvs else None)
        self._unseen = False

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
                self._lease = replace(ours, attrs=seen.attrs, revision=kv.mod_revision)
                self._record.save(self._lease)
                return
            same = seen.attrs == ours.attrs and kv.lease == ours.store_lease
            if same and kv.mod_revision < ours.revision:
                # The store was set back to a time at which the lease was ours already.
                self._lease = replace(ours, revision=kv.mod_revision)
                return
        try:
            await self._act_on(judge(ours, seen, readable=readable), ours, kv, seen)
        except StoreLeaseNotFound:
            await self._lost("its etcd lease ended", ours)

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
            await self._lost("it was deleted or expired", ours)
        elif verdict is Verdict.TAKEN and seen is not None:
            holder = seen.attrs.public_ip or seen.attrs.public_ipv6
            if await self._is_given_back(ours, holder):
                return
            self._previous = None
            await self._lost(f"another node took it over: public IP {holder}", ours)
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
            await self._publish(replace(ours, revision=kv.mod_revision, store_lease=kv.lease))
        elif seen is not None:
            await self._adopt_move(verdict, ours, seen)

    async def _is_given_back(self, ours: Lease, holder: object) -> bool:
        """Waits a moment for our key to become ours again; if so, it is judged again."""
        log.warning(
            "another node's address was written to our lease; waiting whether that stays",
            subnet=ours.key.describe(),
            holder=holder,
        )
        deadline = self._clock.monotonic() + GIVEN_BACK_S
        while self._clock.monotonic() < deadline:
            await self._clock.sleep(GIVEN_BACK_POLL_S)
            if not self._sighted.is_set() or self._sighting is None:
                continue
            self._sighted.clear()
            kv = self._sighting[0]
            decoded = codec.decode_lease(self._prefix, kv) if kv is not None else None
            seen = decoded if isinstance(decoded, Lease) else None
            readable = kv is None or seen is not None
            if judge(ours, seen, readable=readable) is not Verdict.TAKEN:
                self._sighted.set()
                return True
        return False

    async def _adopt_move(self, verdict: Verdict, ours: Lease, seen: Lease) -> None:
        if verdict is Verdict.RESERVED:
            log.info("our lease became a reservation: no time limit", subnet=ours.key.describe())
            self._adopt(replace(seen, expires=None))
        else:
            status = await self._store.time_to_live(seen.store_lease, keys=True)
            log.warning(
                "our lease was written by another daemon with our public IP, keeping it",
                subnet=ours.key.describe(),
                public_ip=ours.attrs.public_ip,
            )
            if list(status.keys) == [codec.lease_key(self._prefix, ours.key)]:
                self._adopt(replace(seen, expires=self._clock.time() + max(status.ttl, 0)))
            else:
                await self._leave_shared(seen)
        await discard_store_lease(self._store, ours.store_lease)

    async def _leave_shared(self, seen: Lease) -> None:
        """Puts our key on an etcd lease of its own: by that a node is known, and it alone ends."""
        granted = await self._store.grant(LEASE_TTL_S)
        try:
            await self._publish(replace(seen, store_lease=granted.id))
        except StoreError:
            await discard_store_lease(self._store, granted.id)
            raise
        self._adopt(replace(self._held(), expires=self._clock.time() + granted.ttl))

    async def _publish(self, lease: Lease) -> Lease:
        """Writes our lease over exactly the revision it names."""
        header = await self._store.put(
            codec.lease_key(self._prefix, lease.key),
            codec.encode_attrs(lease.attrs),
            lease=lease.store_lease,
            if_mod_revision=lease.revision,
        )
        self._lease = replace(lease, revision=header.revision)
        self._record.save(self._lease)
        return self._lease

    async def _lost(self, why: str, ours: Lease) -> None:
        log.error("subnet lease lost, getting it back", subnet=ours.key.describe(), reason=why)
        self._tell(f"lease {ours.key.describe()} lost: {why}")
        if not why.startswith("another node"):
            self._previous = ours.key
        lease = await self._acquire(self._wanted or ours.attrs, starting=False)
        if lease.store_lease != ours.store_lease:
            await discard_store_lease(self._store, ours.store_lease)
        log.warning(
            "subnet lease is back" if lease.key == ours.key else "subnet changed",
            subnet=lease.key.describe(),
            former=ours.key.describe(),
        )

    def _adopt(self, lease: Lease) -> None:
        self._lease = lease
        self._previous = lease.key
        self._sighting = None
        self._unseen = False
        self._record.save(lease)
        ttl = None if lease.expires is None else lease.expires - self._clock.time()
        self._renewal = Renewal(ttl, self._margin_s, self._clock.monotonic())
        if ttl is not None and self._renewal.deadline is not None:
            wait = self._renewal.deadline - self._clock.monotonic()
            log.info(
                f"Waiting for {_go_duration(wait)} to renew lease", subnet=lease.key.describe()
            )

    async def _renew(self) -> None:
        lease = self._held()
        renewal = self._renewal
        if renewal is None:
            return
        try:
            ttl = await self._store.keepalive(lease.store_lease)
        except StoreLeaseNotFound:
            renewal.failed(self._clock.monotonic())
            self._unseen = True
        except StoreError as error:
            renewal.failed(self._clock.monotonic())
            log.warning(
                "Error renewing lease, trying again",
                subnet=lease.key.describe(),
                reason=renewal.reason,
                error=error,
            )
        else:
            renewal.succeeded(self._clock.monotonic(), ttl)
            self._lease = replace(lease, expires=self._clock.time() + ttl)
            log.info(
                f"Lease renewed, new expiration: {self._lease.expires:.0f}",
                subnet=lease.key.describe(),
                ttl_s=ttl,
            )
            self._unseen = True


def _go_duration(seconds: float) -> str:
    """`22h59m58s`, as Go prints it: people grep for it."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
