"""A lease is renewed, and taken back where it was lost."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from pyflannel.core.errors import (
    NetworkConfigChanged,
    StoreUnavailable,
)
from pyflannel.core.holding import CHECK_S
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import settle
from tests.unit.store.etcd.manager.node import CONFIG, DAY, PREFIX, key, subnet_key, value


class TestKeeping:
    async def test_it_is_renewed_an_hour_before_the_end(self, etcd, make):
        """In place: no new etcd lease, no write that peers would see."""
        node = make()
        await node.start()
        before = etcd.revision
        await etcd.clock.advance(23 * 3600 - 5)
        assert next(iter(etcd.leases.values())).ttl == pytest.approx(3605, abs=2)
        await etcd.clock.advance(10)
        assert next(iter(etcd.leases.values())).ttl == pytest.approx(DAY, abs=10)
        await etcd.clock.advance(DAY)
        assert etcd.revision == before
        assert len(etcd.leases) == 1

    async def test_a_renewal_that_fails_is_tried_until_it_goes_well(self, etcd, make):
        node = make()
        lease = await node.start()
        await etcd.clock.advance(23 * 3600 - 5)
        node.store.down()
        await etcd.clock.advance(1800)
        node.store.up()
        await etcd.clock.advance(120)
        assert next(iter(etcd.leases.values())).ttl > DAY - 130
        assert node.lease.key == lease.key

    async def test_a_deleted_lease_is_taken_back_with_the_same_subnet(self, etcd, make):
        node = make()
        lease = await node.start()
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(1)
        assert node.lease.key == lease.key
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.moves == []
        assert len(etcd.leases) == 1

    async def test_a_subnet_that_another_node_took_is_never_written(self, etcd, make):
        """We move to another one, and say so."""
        node = make()
        lease = await node.start()
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"))
        await etcd.clock.advance(5)
        taken = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert taken.value == value("192.0.2.99")
        assert [moved.key for moved in node.moves] == [node.lease.key]
        assert node.lease.key != lease.key
        assert len(etcd.leases) == 1

    async def test_a_key_that_becomes_ours_again_after_a_moment_leaves_all_as_it_was(
        self, etcd, make
    ):
        """A mistake, mended: the containers of this node live in the subnet."""
        node = make()
        lease = await node.start()
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        etcd.put(kv.key, value("192.0.2.99"))
        await etcd.clock.advance(1)
        etcd.put(kv.key, value("192.0.2.98"))
        await etcd.clock.advance(1)
        etcd.put(kv.key, kv.value, lease=kv.lease)
        await etcd.clock.advance(60)
        assert node.moves == []
        assert node.lease.key == lease.key
        assert etcd.get(kv.key).value == kv.value
        await etcd.clock.advance(10 * DAY)
        assert etcd.get(kv.key) is not None

    async def test_on_an_etcd_lease_of_several_nodes_we_do_not_stay(self, etcd, make):
        """It would end for all of them at once, and tells none of them from the others."""
        node = make()
        lease = await node.start()
        mine, other = codec.lease_key(PREFIX, lease.key), key(7)
        shared = etcd.grant(600)
        etcd.put_all({mine: value("192.0.2.1"), other: value("192.0.2.7")}, lease=shared)
        await etcd.clock.advance(5)
        assert node.moves == []
        assert etcd.get(mine).lease == node.lease.store_lease != shared
        assert etcd.get(other).lease == shared
        assert set(etcd.leases) == {shared, node.lease.store_lease}
        await etcd.clock.advance(DAY)
        assert etcd.get(mine).lease == node.lease.store_lease

    async def test_a_node_without_a_lease_follows_another_division_of_its_network(self, etcd, make):
        """More subnets of the same network need nothing but the lease."""
        for third in (2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        await node.start()
        etcd.put(key(1), value("192.0.2.99"), lease=etcd.grant(DAY))
        await etcd.clock.advance(60)
        assert "out of subnets" in node.reports[-1]
        etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"10.0.3.0", b"10.0.4.0"))
        await etcd.clock.advance(2)
        assert node.lease.key == subnet_key(4)
        assert [moved.key for moved in node.moves] == [subnet_key(4)]

    async def test_a_node_without_a_lease_cannot_follow_to_another_network(self, etcd, make):
        """Routes, rules and files hang on the network: the caller has to start over."""
        for third in (2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        await node.start()
        etcd.put(key(1), value("192.0.2.99"), lease=etcd.grant(DAY))
        await etcd.clock.advance(60)
        etcd.put(codec.config_key(PREFIX), b'{"Network":"10.64.0.0/16"}')
        await etcd.clock.advance(2)
        with pytest.raises(NetworkConfigChanged):
            await node.tasks[1]

    async def test_a_lease_that_expired_during_an_outage_comes_back(self, etcd, make):
        node = make()
        lease = await node.start()
        node.store.down()
        await etcd.clock.advance(60)
        etcd.revoke(lease.store_lease)
        await etcd.clock.advance(60)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is None
        node.store.up()
        await etcd.clock.advance(60)
        assert node.lease.key == lease.key
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None

    async def test_a_key_that_an_outage_took_without_an_event_comes_back_soon(self, etcd, make):
        """An etcd that was emptied and written again may be as far as our watch: that is silent."""
        node = make()
        before = etcd.backup()
        lease = await node.start()
        await etcd.clock.advance(1)
        node.store.down()
        await etcd.clock.advance(5)
        etcd.restore(before)
        for n in range(20):
            etcd.put(b"/elsewhere", b"%d" % n)
        node.store.up()
        await etcd.clock.advance(15)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key

    async def test_a_damaged_value_is_written_again(self, etcd, make):
        node = make()
        lease = await node.start()
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        etcd.put(kv.key, b"garbage", lease=kv.lease)
        await etcd.clock.advance(5)
        assert etcd.get(kv.key).value == value("192.0.2.1")

    async def test_a_lease_made_a_reservation_is_renewed_no_more(self, etcd, make):
        node = make()
        lease = await node.start()
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.1"))
        await etcd.clock.advance(DAY + 60)
        assert node.lease.is_reservation
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).lease == 0
        assert etcd.leases == {}

    async def test_upstreams_daemon_rewriting_our_lease_is_followed(self, etcd, make):
        """It grants a new etcd lease at each start; ours must not be the one we renew then."""
        node = make()
        lease = await node.start()
        theirs = etcd.grant(DAY)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.1"), lease=theirs)
        await etcd.clock.advance(23 * 3600 + 10)
        assert list(etcd.leases) == [theirs]
        assert etcd.leases[theirs].ttl > DAY - 100

    async def test_new_attributes_are_published_in_place(self, etcd, make):
        node = make()
        lease = await node.start()
        attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))
        await node.manager.publish(attrs)
        await settle()
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert kv.value == value("192.0.2.77")
        assert kv.lease == lease.store_lease
        assert node.moves == []

    async def test_a_new_address_whose_confirmation_got_lost_is_not_taken_for_another_node(
        self, etcd, make
    ):
        """The write was carried out: in the store it is ours, not of a node that took over."""
        node = make()
        lease = await node.start()
        attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))
        node.store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
        writing = asyncio.create_task(node.manager.publish(attrs))
        await etcd.clock.advance(30)
        assert (await writing).attrs == attrs
        assert node.moves == []
        assert node.lease.key == lease.key
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert (kv.value, kv.lease) == (value("192.0.2.77"), lease.store_lease)
        assert node.lease.revision == kv.mod_revision

    async def test_the_record_lets_the_next_run_know_its_own_lease(self, etcd, make):
        """Without being asked for a sign of life, which would cost a second."""
        await make("a").start()
        again = make("a")
        await again.acquire()
        assert etcd.clock.monotonic() == 0

    async def test_a_record_that_a_full_disk_did_not_take_is_written_within_a_check(
        self, etcd, make, tmp_path
    ):
        """A file in the directory's place stands for the disk."""
        (tmp_path / "full").touch()

        await make("full").start()
        (tmp_path / "full").unlink()
        await etcd.clock.advance(CHECK_S)
        assert LeaseRecord(str(tmp_path / "full"), PREFIX).load() is not None
