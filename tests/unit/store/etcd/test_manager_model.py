"""Whole managers over one fake etcd, with all that can happen to it, in any order.

The machine alone has its own model (`tests/unit/core/test_holding.py`); this one is for what
carries its steps out.
"""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import StoreDenied, StoreUnavailable
from pyflannel.core.holding import CHECK_S, LONGEST_WAIT_S, STALE_S
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"
BELOW = codec.subnets_prefix(PREFIX)
CONFIG = (
    b'{"Network":"10.0.0.0/16","SubnetLen":24,"SubnetMin":"10.0.1.0","SubnetMax":"10.0.3.0",'
    b'"Backend":{"Type":"host-gw"}}'
)
NODES = 3
STRANGER = codec.encode_attrs(LeaseAttrs(public_ip=IPv4Address("192.0.2.99")))
READS = ("get", "range_prefix", "watch_prefix", "time_to_live")
WRITES = ("put", "delete", "grant", "keepalive", "revoke")
DENIED = StoreDenied("permission denied")

EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 20.0, 70.0, 400.0])),
    st.tuples(
        st.sampled_from(
            ["down", "freeze", "deny reads", "deny writes", "deny", "well", "lose an answer"]
        ),
        st.integers(0, NODES - 1),
    ),
    st.tuples(
        st.sampled_from(["delete a key", "take a key", "garble a key", "revoke", "short lease"]),
        st.integers(0, NODES - 1),
    ),
    st.tuples(
        st.sampled_from(["restart", "compact", "back up", "restore", "empty", "publish"]),
        st.integers(0, NODES - 1),
    ),
)


class Cluster:
    def __init__(self, state: str) -> None:
        self.etcd = FakeEtcd(FakeClock())
        self.etcd.put(codec.config_key(PREFIX), CONFIG)
        self.backup = self.etcd.backup()
        self.stores = [FakeStore(self.etcd) for _ in range(NODES)]
        self.managers = [
            EtcdLeaseStore(
                store,
                PREFIX,
                kinds=KINDS,
                clock=self.etcd.clock,
                record=LeaseRecord(f"{state}/{n}", PREFIX),
                renew_margin_s=3600,
                rng=random.Random(n),
            )
            for n, store in enumerate(self.stores)
        ]
        self.true_at = [0.0] * NODES
        self.tasks: list[asyncio.Task[None]] = []
        self.published = 0

    async def start(self) -> None:
        for n, manager in enumerate(self.managers):
            await manager.network_config()
            await manager.acquire(LeaseAttrs(public_ip=IPv4Address(f"192.0.2.{n + 1}")))

        async def watch(manager: EtcdLeaseStore) -> None:
            async for _ in manager.watch_leases():
                pass

        async def keep(manager: EtcdLeaseStore) -> None:
            async for _ in manager.keep():
                pass

        for manager in self.managers:
            self.tasks += [asyncio.create_task(watch(manager)), asyncio.create_task(keep(manager))]
        await self.wait(0.1)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def lease(self, n: int) -> Lease:
        lease = self.managers[n].lease
        assert lease is not None
        return lease

    def owns(self, n: int) -> bool:
        """Whether the store says so."""
        kv = self.etcd.get(codec.lease_key(PREFIX, self.lease(n).key))
        if kv is None:
            return False
        found = codec.decode_lease(PREFIX, kv)
        ours = IPv4Address(f"192.0.2.{n + 1}")
        return isinstance(found, Lease) and found.attrs.public_ip == ours

    async def wait(self, seconds: float) -> None:
        """Lets time pass, and looks in between whether anybody claims what it has not."""
        end = self.etcd.clock.monotonic() + seconds
        while (left := end - self.etcd.clock.monotonic()) > 0:
            await self.etcd.clock.advance(min(left, 10.0))
            now = self.etcd.clock.monotonic()
            for n, manager in enumerate(self.managers):
                if self.owns(n):
                    self.true_at[n] = now
                if manager.standing().held is True:
                    assert now - self.true_at[n] <= STALE_S + 10.0, f"node {n} claims too much"
            assert not any(task.done() for task in self.tasks), "a daemon ended"

    async def happen(self, event: tuple[str, float]) -> None:
        name, argument = event
        if name == "wait":
            await self.wait(argument)
            return
        n = int(argument)
        store, key = self.stores[n], codec.lease_key(PREFIX, self.lease(n).key)
        match name:
            case "down":
                store.down()
            case "freeze":
                store.freeze()
            case "deny reads":
                store.refuse(DENIED, *READS)
            case "deny writes":
                store.refuse(DENIED, *WRITES)
            case "deny":
                store.refuse(DENIED, *READS, *WRITES)
            case "well":
                self.mend(store)
            case "lose an answer":
                store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
            case "delete a key":
                self.etcd.delete(key)
            case "take a key":
                self.etcd.put(key, STRANGER)
            case "garble a key":
                kv = self.etcd.get(key)
                self.etcd.put(key, b"garbage", lease=kv.lease if kv is not None else 0)
            case "revoke":
                self.etcd.revoke(self.lease(n).store_lease)
            case "short lease":
                if self.owns(n):
                    kv = self.etcd.get(key)
                    self.etcd.put(key, kv.value, lease=self.etcd.grant(15))
            case "restart":
                self.etcd.restart()
            case "compact":
                self.etcd.compact()
            case "back up":
                self.backup = self.etcd.backup()
            case "restore":
                self.etcd.restore(self.backup)
            case "empty":
                self.etcd.replace()
                self.etcd.put(codec.config_key(PREFIX), CONFIG)
            case "publish":
                self.published += 1
                attrs = LeaseAttrs(
                    public_ip=IPv4Address(f"192.0.2.{n + 1}"),
                    backend_type="host-gw",
                    backend_data=str(self.published),
                )
                self.tasks_of_writes.append(asyncio.create_task(self.managers[n].publish(attrs)))

    tasks_of_writes: list[asyncio.Task[Lease]]

    def mend(self, store: FakeStore) -> None:
        store.up()
        store.allow()

    async def end_well(self) -> None:
        for store in self.stores:
            self.mend(store)
        for kv in self.etcd.below(BELOW):
            if kv.value in (STRANGER, b"garbage"):
                self.etcd.delete(kv.key)
        await self.wait(CHECK_S + 3 * LONGEST_WAIT_S)
        subnets = set()
        for n, manager in enumerate(self.managers):
            assert self.owns(n)
            assert manager.standing().held is True
            kv = self.etcd.get(codec.lease_key(PREFIX, self.lease(n).key))
            assert kv.lease == self.lease(n).store_lease
            assert kv.value == codec.encode_attrs(self.lease(n).attrs)
            subnets.add(self.lease(n).key)
        assert len(subnets) == NODES
        assert all(task.done() for task in self.tasks_of_writes), "attributes not published"


@pytest.mark.slow
@example(events=[("publish", 1), ("publish", 1)])
@example(events=[("empty", 0), ("down", 0), ("take a key", 2), ("take a key", 1), ("wait", 400.0)])
@example(
    events=[
        ("empty", 0),
        ("down", 0),
        ("wait", 0.1),
        ("garble a key", 2),
        ("garble a key", 0),
        ("lose an answer", 0),
        ("wait", 20.0),
    ]
)
@settings(max_examples=12, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=25))
def test_every_node_has_its_lease_again_after_any_events(tmp_path_factory, events):
    async def go() -> None:
        cluster = Cluster(str(tmp_path_factory.mktemp("state")))
        cluster.tasks_of_writes = []
        await cluster.start()
        try:
            for event in events:
                await cluster.happen(event)
            await cluster.end_well()
        finally:
            for task in cluster.tasks_of_writes:
                task.cancel()
            await asyncio.gather(*cluster.tasks_of_writes, return_exceptions=True)
            await cluster.stop()

    asyncio.run(go())
