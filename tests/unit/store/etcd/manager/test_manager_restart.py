"""What the next run of a node makes of its lease."""

from __future__ import annotations

import asyncio
import shutil
from ipaddress import IPv4Address

from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec
from tests.unit.store.etcd.manager.node import (
    ATTRS,
    DAY,
    OUR_ADDRESS,
    PREFIX,
    key,
    subnet_key,
    value,
)


class TestRestart:
    async def test_the_etcd_lease_of_the_former_run_is_used_again(self, etcd, make):
        """Same subnet, same etcd lease with a full day again, no write that peers would see."""
        first = await make().acquire()
        await etcd.clock.advance(3600)
        before = etcd.revision
        second = await make().acquire()
        assert second.key == first.key
        assert second.store_lease == first.store_lease
        assert etcd.revision == before
        (status,) = etcd.leases.values()
        assert status.ttl >= DAY - 1

    async def test_ten_restarts_leave_one_etcd_lease(self, etcd, make):
        for _ in range(10):
            await make().acquire()
        assert len(etcd.leases) == 1

    async def test_changed_attributes_are_published_under_the_same_subnet(self, etcd, make):
        first = await make().acquire()
        attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        second = await make().acquire(attrs)
        assert second.key == first.key
        assert etcd.get(codec.lease_key(PREFIX, first.key)).value == codec.encode_attrs(attrs)
        assert len(etcd.leases) == 1

    async def test_a_lease_that_shares_its_etcd_lease_gets_one_of_its_own(self, etcd, make):
        """Revoking the shared one would delete the others' keys."""
        shared = etcd.grant(DAY)
        etcd.put_all({key(1): value("192.0.2.1"), key(2): value("192.0.2.2")}, lease=shared)
        lease = await make(previous=subnet_key(1)).acquire()
        assert lease.store_lease != shared
        assert etcd.get(key(2)).lease == shared


class TestAnotherAddress:
    """The node was down while its address changed."""

    NEW = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))

    async def test_the_subnet_stays_and_is_published_with_the_new_one(self, etcd, make):
        first = make("a")
        lease = await first.start()
        await first.stop()
        acquiring = asyncio.create_task(make("a").acquire(self.NEW))
        await etcd.clock.advance(2)
        again = await acquiring
        assert again.key == lease.key
        assert again.store_lease == lease.store_lease
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert (kv.value, kv.lease) == (value("192.0.2.77"), lease.store_lease)
        assert len(etcd.leases) == 1

    async def test_another_nodes_lease_under_that_address_is_left_alone(self, etcd, make):
        """A virtual address failed over; its former holder's daemon is down."""
        first = make("a")
        lease = await first.start()
        await first.stop()
        theirs = key(2) if lease.key == subnet_key(1) else key(1)
        etcd.put(theirs, value("192.0.2.77"), lease=etcd.grant(DAY))
        before = etcd.get(theirs).mod_revision
        acquiring = asyncio.create_task(make("a").acquire(self.NEW))
        await etcd.clock.advance(2)
        assert (await acquiring).key == lease.key
        assert etcd.get(theirs).mod_revision == before

    async def test_a_copied_disk_does_not_take_the_subnet_of_a_live_node(
        self, etcd, make, tmp_path
    ):
        original = make("a")
        lease = await original.start()
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        copy = make("copy", previous=lease.key)
        acquiring = asyncio.create_task(copy.acquire(self.NEW))
        await etcd.clock.advance(5)
        assert (await acquiring).key != lease.key
        assert original.lease.key == lease.key
        assert original.moves == []
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.1")

    async def test_the_vtep_mac_of_a_copied_disks_original_is_not_looked_up(
        self, etcd, make, tmp_path
    ):
        original = make("a")
        await original.start()
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        copy = make("copy")
        await copy.manager.network_config()
        assert await copy.manager.previous(self.NEW) is None
        assert await copy.manager.previous(ATTRS) == ATTRS

    async def test_a_second_lease_with_our_vtep_mac_is_deleted(self, etcd, make):
        mac = {
            "backend_type": "vxlan",
            "backend_data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}',
        }
        old = LeaseAttrs(public_ip=IPv4Address("192.0.2.5"), **mac)
        etcd.put(key(1), codec.encode_attrs(old), lease=etcd.grant(DAY))
        mine = LeaseAttrs(public_ip=OUR_ADDRESS, **mac)
        etcd.put(key(2), codec.encode_attrs(mine), lease=etcd.grant(DAY))
        acquiring = asyncio.create_task(make("a").acquire(mine))
        await etcd.clock.advance(5)
        assert (await acquiring).key == subnet_key(2)
        assert etcd.get(key(1)) is None
        assert len(etcd.leases) == 1
