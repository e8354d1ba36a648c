"""This node's key in etcd: what we know of it, what a sighting of it means, and each write of it.

Every sighting is judged by value (`core.ownership`): one from the feed that brings the peers, or
one from a read. A subnet that another node holds is never written; every write names the revision
that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.errors import LeaseError, StoreConflict, StoreError, StoreLeaseNotFound
from pyflannel.core.holding import Holding
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.ownership import Verdict, judge
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.acquire import discard_store_lease
from pyflannel.store.etcd.base import KeyValue, Store
from pyflannel.store.etcd.challenge import ANSWER_INTERVAL_S
from pyflannel.store.record import LeaseRecord

log = get_logger(__name__)

GIVEN_BACK_POLL_S: Final = 0.1
GIVEN_BACK_S: Final = 3.0
"""How long a subnet that another address was written to is not given up yet: an operator's mistake
is mended within seconds, and the containers of this node live in the subnet. Peers send to the
other address at once, so waiting costs nothing."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How the lease was lost that is being taken back."""

    lease: Lease
    why: str
    at: float
    """By the monotonic clock."""
    to_another: bool
    """Whether another node has it."""


class OwnLease:
    """The lease of this node.

    Args:
        holding: told what is shown, won and lost.
        previous: the subnet that `subnet.env` names.
        ttl_s: for how many seconds a lease is asked.
        tell: told in words what is being waited for.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        clock: Clock,
        record: LeaseRecord,
        holding: Holding,
        *,
        previous: SubnetKey | None,
        ttl_s: Callable[[], int],
        tell: Callable[[str], None],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._record = record
        self._holding = holding
        self._ttl_s = ttl_s
        self._tell = tell
        self._key = b""
        self._sighting: tuple[KeyValue | None] | None = None
        self._answered = float("-inf")
        self.lease: Lease | None = None
        """As we know it now; the last one while it is being taken back."""
        self.loss: Loss | None = None
        """Set while it is being taken back."""
        self.previous = previous
        """The subnet that is asked for first."""
        self.wanted = LeaseAttrs()
        """What the key should say."""
        self.coming = 0
        """The etcd lease under which a key is being written that will be ours; else 0."""

    def held(self) -> Lease:
        """The lease.

        Raises:
            LeaseError: there was none yet.
        """
        if self.lease is None:
            raise LeaseError("no lease has been acquired yet")
        return self.lease

    def moved_from(self, key: SubnetKey) -> bool:
        """Whether we hold another subnet than this one."""
        return self._holding.has and self.held().key != key

    def is_key(self, key: bytes) -> bool:
        """Whether a key of etcd is ours."""
        return key == self._key

    def is_coming(self, lease: Lease) -> bool:
        """Whether we are writing this lease. The watch may show it before the answer comes."""
        return lease.store_lease == self.coming != 0

    def saw(self, kv: KeyValue | None) -> None:
        """Takes note of what the feed saw under our key: `judge_sighting` judges it."""
        self._sighting = (kv,)

    @property
    def is_sighted(self) -> bool:
        """Whether there is something to judge."""
        return self._sighting is not None

    async def look(self) -> None:
        """Reads our key and acts on what it shows."""
        sent = self._clock.monotonic()
        found = await self._store.get(codec.lease_key(self._prefix, self.held().key))
        await self._judge(found.kvs[0] if found.kvs else None)
        if self._holding.has:
            self._holding.shown(sent)

    async def judge_sighting(self) -> None:
        """Judges what the feed saw of our key."""
        if self._sighting is None:
            return
        (kv,), self._sighting = self._sighting, None
        ours = self.held()
        if not self._holding.has:
            self._holding.wake(self._clock.monotonic())
        elif kv is None or kv.mod_revision >= ours.revision:
            try:
                await self._judge(kv)
            except StoreConflict:
                self._holding.doubt(
                    self._clock.monotonic(), "our key changed between a read and a write"
                )
        elif kv.mod_revision < ours.revision:
            # Late news of an earlier write of ours, or a store that was set back.
            self._holding.doubt(self._clock.monotonic(), "an older revision of our key was seen")

    async def _judge(self, kv: KeyValue | None) -> None:
        ours = self.held()
        decoded = codec.decode_lease(self._prefix, kv) if kv is not None else None
        seen = decoded if isinstance(decoded, Lease) else None
        readable = kv is None or seen is not None
        if kv is not None and seen is not None:
            if self._is_own_write(seen):
                log.info(
                    "etcd carried out a write of our lease that it had not answered",
                    subnet=ours.key.describe(),
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
        ours = self.held()
        return seen.store_lease == ours.store_lease and ours.attrs != seen.attrs == self.wanted

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
            self.lease = replace(ours, revision=kv.mod_revision)
            now = self._clock.monotonic()
            if now - self._answered < ANSWER_INTERVAL_S:
                return
            self._answered = now
            log.warning(
                "another client wrote our lease unchanged; another node may be using our public IP",
                subnet=subnet,
                public_ip=ours.attrs.public_ip,
            )
            await self._publish(self.lease)
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
            "another node's address was written to our lease; waiting a moment before giving it up",
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
            self.adopt(replace(seen, expires=None))
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
                self.adopt(replace(seen, expires=self._clock.time() + status.ttl))
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
        self.adopt(replace(self.held(), expires=self._clock.time() + granted.ttl))

    def _lose(self, why: str, *, to_another: bool = False) -> None:
        """Our key is gone or another's: from now on it is sought."""
        ours = self.held()
        log.error("subnet lease lost, getting it back", subnet=ours.key.describe(), reason=why)
        self._tell(f"lease {ours.key.describe()} lost: {why}")
        self.loss = Loss(ours, why, self._clock.monotonic(), to_another)
        self.previous = None if to_another else ours.key
        self._holding.lost(self._clock.monotonic(), why)

    async def publish_wanted(self) -> None:
        """Writes what the key should say, if it says something else."""
        ours = self.held()
        if self.wanted != ours.attrs:
            await self._publish(replace(ours, attrs=self.wanted))
        # Something else may have become wanted under the write.
        if self.wanted == self.held().attrs:
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

    async def renew(self) -> None:
        """Renews the etcd lease in place."""
        lease = self.held()
        sent = self._clock.monotonic()
        ttl = await self._store.keepalive(lease.store_lease)
        self._holding.renewed(sent, ttl)
        self.lease = replace(lease, expires=self._clock.time() + ttl)
        log.info(
            f"Lease renewed, new expiration: {self.lease.expires:.0f}",
            subnet=lease.key.describe(),
            ttl_s=ttl,
        )

    def adopt(self, lease: Lease) -> None:
        """This is our lease from now on, no matter who wrote it."""
        self.previous = lease.key
        self.coming = 0
        self._sighting = None
        self._set_lease(lease)
        if lease.attrs != self.wanted:
            self._holding.want(self._clock.monotonic())
        renewal = self._holding.renewal
        if renewal is not None and renewal.deadline is not None:
            wait = renewal.deadline - self._clock.monotonic()
            log.info(
                f"Waiting for {_go_duration(wait)} to renew lease", subnet=lease.key.describe()
            )

    def _set_lease(self, lease: Lease) -> None:
        self.lease = lease
        self._key = codec.lease_key(self._prefix, lease.key)
        self._record.save(lease, self._store.cluster)


def _go_duration(seconds: float) -> str:
    """`22h59m58s`, as Go prints it: people grep for it."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
