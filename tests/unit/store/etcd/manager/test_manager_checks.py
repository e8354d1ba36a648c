"""A lease is looked at from time to time, lives for its TTL, and may be given back."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.core.holding import CHECK_S
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.own import GIVEN_BACK_S
from pyflannel.testing.fakeclock import settle
from tests.unit.store.etcd.manager.node import CONFIG, DAY, OUR_ADDRESS, PREFIX, key, value


class TestChecks:
    """What the watch did not tell, the node's own look at its key does; here there is no watch."""

    @staticmethod
    async def keeping(node):
        lease = await node.acquire()
        task = asyncio.create_task(anext(node.manager.keep()))
        node.tasks.append(task)
        await settle()
        return lease, task

    async def test_a_key_that_is_gone_is_back_within_one_check(self, etcd, make):
        node = make()
        lease, _ = await self.keeping(node)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(CHECK_S + 1)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key

    async def test_a_key_that_is_another_nodes_is_given_up_within_one_check(self, etcd, make):
        node = make()
        lease, moved = await self.keeping(node)
        theirs = etcd.grant(2 * DAY)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"), lease=theirs)
        await etcd.clock.advance(CHECK_S + GIVEN_BACK_S + 1)
        assert moved.result().key != lease.key
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.99")

    async def test_a_key_that_was_moved_to_a_short_etcd_lease_is_moved_back(self, etcd, make):
        """An operator's script put it on one of fifteen seconds: it would end with that."""
        node = make()
        lease = await node.start()
        short = etcd.grant(15)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.1"), lease=short)
        await etcd.clock.advance(30)
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert etcd.leases[kv.lease].granted_ttl == DAY
        assert node.lease.store_lease == kv.lease
        assert node.moves == []

    async def test_what_is_claimed_follows_from_what_was_shown(self, etcd, make):
        """Held, then not confirmed while etcd is away, then held again."""
        node = make()
        await node.start()
        started = etcd.clock.time()
        assert node.manager.standing().held is True
        node.store.down()
        await etcd.clock.advance(600)
        standing = node.manager.standing()
        assert standing.held is None
        assert standing.confirmed <= started + CHECK_S
        assert "connection refused" in standing.reason
        assert standing.since <= started + CHECK_S
        await etcd.clock.advance(DAY)
        standing = node.manager.standing()
        assert standing.held is False
        assert "ended by our clock" in standing.reason
        node.store.up()
        await etcd.clock.advance(20)
        standing = node.manager.standing()
        assert (standing.held, standing.reason, standing.since) == (True, "", None)


class TestLeaseTTL:
    async def test_the_network_config_says_it_and_the_option_overrides_it(self, etcd, make):
        etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"{", b'{"LeaseTTL":600,', 1))
        lease = await make("a").acquire()
        assert etcd.leases[lease.store_lease].granted_ttl == 600
        other = LeaseAttrs(public_ip=OUR_ADDRESS + 1)
        lease = await make("b", ttl=90).acquire(other)
        assert etcd.leases[lease.store_lease].granted_ttl == 90

    async def test_it_is_renewed_a_third_before_the_end_at_the_latest(self, etcd, make):
        """The margin of an hour is meant for a day."""
        node = make(ttl=600)
        await node.start()
        await etcd.clock.advance(399)
        assert next(iter(etcd.leases.values())).ttl == pytest.approx(201, abs=2)
        await etcd.clock.advance(3)
        assert next(iter(etcd.leases.values())).ttl >= 595
        await etcd.clock.advance(3600)
        assert len(etcd.below(codec.subnets_prefix(PREFIX))) == 1

    async def test_a_restart_with_another_ttl_moves_the_lease(self, etcd, make):
        """Same subnet, another etcd lease, the former one given back."""
        first = await make().acquire()
        second = await make(ttl=600).acquire()
        assert second.key == first.key
        assert [status.granted_ttl for status in etcd.leases.values()] == [600]


class TestRelease:
    async def test_the_subnet_is_free_at_once(self, etcd, make):
        node = make()
        await node.start()
        assert await node.manager.release()
        assert etcd.below(codec.subnets_prefix(PREFIX)) == ()
        assert etcd.leases == {}

    async def test_what_is_not_as_we_know_it_stays(self, etcd, make):
        """Another node's key, and a reservation."""
        node = make()
        lease = await node.acquire()
        theirs = etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"))
        assert not await node.manager.release()
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).mod_revision == theirs
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        etcd.put(key(2), value("192.0.2.2"))
        reserved = make("b")
        acquiring = asyncio.create_task(reserved.acquire(LeaseAttrs(public_ip=OUR_ADDRESS + 1)))
        await etcd.clock.advance(2)
        assert acquiring.result().is_reservation
        assert not await reserved.manager.release()
        assert etcd.get(key(2)) is not None
