"""Leases given back and subnets reserved by an operator."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.configparse import load_network_config
from pyflannel.core.errors import LeaseError, StoreConflict
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec, operator
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"
CONFIG = load_network_config('{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}', KINDS)
DAY = 86400
IP = IPv4Address("192.0.2.1")


def subnet(third: int, length: int = 24) -> SubnetKey:
    return SubnetKey(IPv4Network(f"10.0.{third}.0/{length}"))


def name(third: int, length: int = 24) -> bytes:
    return codec.lease_key(PREFIX, subnet(third, length))


def value(address: str, **more: str) -> bytes:
    return codec.encode_attrs(LeaseAttrs(public_ip=IPv4Address(address), **more))


@pytest.fixture
def etcd():
    return FakeEtcd(FakeClock())


def play(etcd, work, *, seconds=3.0):
    """Runs one piece of work over the fake clock; what it gives or raises."""

    async def main():
        task = asyncio.create_task(work(FakeStore(etcd)))
        await etcd.clock.advance(seconds)
        assert task.done()
        return task.result()

    return asyncio.run(main())


def release(etcd, third, *, force=False, dry_run=False, before=None):
    async def work(store):
        if before is not None:
            store.before_next("delete", before)
        return await operator.release(
            store, PREFIX, subnet(third), etcd.clock, force=force, dry_run=dry_run
        )

    return play(etcd, work)


def reserve(etcd, third, address=IP, *, dry_run=False, length=24, before=None):
    async def work(store):
        if before is not None:
            store.before_next("put", before)
        return await operator.reserve(
            store, PREFIX, CONFIG, subnet(third, length), address, dry_run=dry_run
        )

    return play(etcd, work)


class TestRelease:
    def test_a_dead_nodes_lease_goes_with_its_etcd_lease(self, etcd):
        etcd.put(name(2), value("192.0.2.1"), lease=etcd.grant(DAY))
        done = release(etcd, 2)
        assert "released the lease 10.0.2.0/24 of 192.0.2.1" in done.text
        assert "takes it back" in done.text
        assert etcd.get(name(2)) is None
        assert etcd.leases == {}

    def test_an_etcd_lease_on_which_others_hang_stays(self, etcd):
        shared = etcd.grant(DAY)
        etcd.put_all({name(2): value("192.0.2.1"), name(3): value("192.0.2.2")}, lease=shared)
        release(etcd, 2)
        assert etcd.get(name(3)) is not None

    def test_a_living_owner_is_not_robbed(self, etcd):
        """It answers the question with a write of its own."""
        etcd.put(name(2), value("192.0.2.1"), lease=etcd.grant(DAY))
        kv = etcd.get(name(2))
        etcd.clock.call_at(1.0, lambda: etcd.put(kv.key, kv.value, lease=kv.lease))
        with pytest.raises(LeaseError, match="its node is alive"):
            release(etcd, 2)
        assert etcd.get(name(2)) is not None

    def test_with_force_the_owner_is_not_asked(self, etcd):
        etcd.put(name(2), value("192.0.2.1"), lease=etcd.grant(DAY))
        before = etcd.revision
        release(etcd, 2, force=True)
        assert etcd.revision == before + 1

    def test_a_write_in_between_keeps_it(self, etcd):
        etcd.put(name(2), value("192.0.2.1"), lease=etcd.grant(DAY))
        with pytest.raises(StoreConflict, match="nothing was released"):
            release(etcd, 2, force=True, before=lambda: etcd.put(name(2), value("192.0.2.7")))
        assert etcd.get(name(2)).value == value("192.0.2.7")

    def test_a_dry_run_writes_nothing(self, etcd):
        etcd.put(name(2), value("192.0.2.1"))
        before = etcd.revision
        assert "would release the reservation" in release(etcd, 2, dry_run=True).text
        assert etcd.revision == before

    def test_what_is_not_there_is_an_error(self, etcd):
        with pytest.raises(LeaseError, match=r"no lease 10\.0\.2\.0/24"):
            release(etcd, 2)

    def test_a_key_that_cannot_be_read_can_be_released(self, etcd):
        etcd.put(name(2), b"garbage")
        assert "no one that can be read" in release(etcd, 2).text
        assert etcd.get(name(2)) is None


class TestReserve:
    def test_it_is_a_key_without_an_etcd_lease_as_upstream_documents_it(self, etcd):
        assert reserve(etcd, 2).text == "reserved 10.0.2.0/24 for 192.0.2.1"
        kv = etcd.get(name(2))
        assert kv.lease == 0
        assert kv.value == b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'

    def test_a_lease_that_its_node_has_becomes_a_reservation_with_all_it_publishes(self, etcd):
        published = value("192.0.2.1", backend_type="vxlan", backend_data='{"VNI":1}')
        etcd.put(name(2), published, lease=etcd.grant(DAY))
        reserve(etcd, 2)
        assert (etcd.get(name(2)).value, etcd.get(name(2)).lease) == (published, 0)
        assert etcd.leases == {}

    def test_it_may_be_said_twice(self, etcd):
        reserve(etcd, 2)
        before = etcd.revision
        assert "already" in reserve(etcd, 2).text
        assert etcd.revision == before

    @pytest.mark.parametrize(
        ("third", "length", "words"),
        [(2, 24, "overlaps 10.0.2.0/24, which 192.0.2.9 has"), (7, 25, "no subnet that may be")],
    )
    def test_another_nodes_subnet_and_one_that_does_not_fit_are_refused(
        self, etcd, third, length, words
    ):
        etcd.put(name(2), value("192.0.2.9"), lease=etcd.grant(DAY))
        before = etcd.revision
        with pytest.raises(LeaseError, match=words):
            reserve(etcd, third, length=length)
        assert etcd.revision == before

    def test_a_node_that_has_another_subnet_is_named(self, etcd):
        """It would go on with that, and the reservation would be of no use."""
        etcd.put(name(3), value("192.0.2.1"), lease=etcd.grant(DAY))
        with pytest.raises(LeaseError, match=r"has 10\.0\.3\.0/24 already"):
            reserve(etcd, 2)

    def test_a_race_for_the_same_key_is_lost(self, etcd):
        with pytest.raises(StoreConflict):
            reserve(etcd, 2, before=lambda: etcd.put(name(2), value("192.0.2.9")))
        assert etcd.get(name(2)).value == value("192.0.2.9")

    def test_a_race_for_an_overlapping_key_is_given_up(self, etcd):
        wide = codec.lease_key(PREFIX, SubnetKey(IPv4Network("10.0.2.0/23")))
        with pytest.raises(StoreConflict, match="nothing was reserved"):
            reserve(etcd, 2, before=lambda: etcd.put(wide, value("192.0.2.9")))
        assert etcd.get(name(2)) is None

    def test_a_dry_run_writes_nothing(self, etcd):
        before = etcd.revision
        assert reserve(etcd, 2, dry_run=True).text == "would reserve 10.0.2.0/24 for 192.0.2.1"
        assert etcd.revision == before
