"""A lease is won in upstream's order, also if the store changes meanwhile."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Network

import pytest

from pyflannel.core import allocation, freesubnets
from pyflannel.core.errors import (
    NetworkConfigChanged,
    StoreConflict,
    StoreUnavailable,
)
from pyflannel.core.ip import SubnetKey
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.own import GIVEN_BACK_S
from tests.unit.store.etcd.manager.node import (
    ATTRS,
    CONFIG,
    DAY,
    DUAL_STACK,
    PREFIX,
    key,
    subnet_key,
    value,
)


def losing_the_last_subnet(etcd, make):
    """Begins to acquire the last free subnet, which another node takes first."""
    for third in (1, 2):
        etcd.put(key(third), value(f"192.0.2.{100 + third}"))
    node = make()
    node.store.before_next("put", lambda: etcd.put(key(3), value("192.0.2.103")))
    return asyncio.create_task(node.acquire())


class TestWinning:
    async def test_a_free_subnet_is_created_with_a_lease_of_a_day(self, etcd, make):
        """Upstream's bytes, upstream's TTL, one etcd lease."""
        lease = await make().acquire()
        (kv,) = etcd.below(codec.subnets_prefix(PREFIX))
        assert kv.value == b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
        assert kv.key == codec.lease_key(PREFIX, lease.key)
        assert [status.granted_ttl for status in etcd.leases.values()] == [DAY]
        assert lease.expires == etcd.clock.time() + DAY

    async def test_the_lease_held_for_our_public_ip_comes_first(self, etcd, make):
        """Even if `subnet.env` names another subnet that is free."""
        etcd.put(key(2), value("192.0.2.1"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(3))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(2)
        assert acquiring.result().key == subnet_key(2)

    async def test_the_previous_subnet_is_taken_if_it_is_free(self, etcd, make):
        assert (await make(previous=subnet_key(3)).acquire()).key == subnet_key(3)

    async def test_a_previous_subnet_that_another_node_has_is_left_to_it(self, etcd, make):
        etcd.put(key(3), value("192.0.2.9"), lease=etcd.grant(DAY))
        lease = await make(previous=subnet_key(3)).acquire()
        assert lease.key != subnet_key(3)
        assert etcd.get(key(3)).value == value("192.0.2.9")

    async def test_each_lost_race_widens_the_choice(self, etcd, make, monkeypatch):
        seen: list[int] = []
        choose = freesubnets.choose

        def noting(config, leases, rng, obstacles, races_lost, *more):
            seen.append(races_lost)
            return choose(config, leases, rng, obstacles, races_lost, *more)

        monkeypatch.setattr(allocation, "choose", noting)

        node = make()
        for _ in range(3):
            node.store.fail_next("put", StoreConflict("another node was faster"))
        starting = asyncio.create_task(node.acquire())
        await etcd.clock.advance(20)
        await starting
        assert seen == [0, 1, 2, 3]

    async def test_a_lost_race_is_run_again(self, etcd, make):
        """The faster one keeps its subnet; no etcd lease is wasted on the way."""
        node = make(previous=subnet_key(3))
        etcd_lease = etcd.grant(DAY)
        node.store.before_next(
            "put", lambda: etcd.put(key(3), value("192.0.2.9"), lease=etcd_lease)
        )
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(1)
        lease = acquiring.result()
        assert lease.key in {subnet_key(1), subnet_key(2)}
        assert etcd.get(key(3)).value == value("192.0.2.9")
        assert len(etcd.leases) == 2

    @pytest.mark.parametrize("before", [True, False], ids=["theirs first", "ours first"])
    async def test_of_two_that_start_together_the_later_gives_way_in_either_family(
        self, etcd, make, before
    ):
        """Different keys with one IPv6 subnet: etcd itself sees no conflict."""
        etcd.put(codec.config_key(PREFIX), DUAL_STACK)
        shared = IPv6Network("fd00:0:0:7::/64")
        rival = SubnetKey(subnet_key(1).v4, shared)
        ours = SubnetKey(subnet_key(2).v4, shared)
        node = make(previous=ours)

        def race() -> None:
            name = codec.lease_key(PREFIX, rival)
            etcd.put(name, value("192.0.2.9"), lease=etcd.grant(DAY))

        def after_ours() -> None:
            node.store.before_next("range_prefix", race)

        node.store.before_next("put", race if before else after_ours)
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(1)
        lease = acquiring.result()
        assert (lease.key == ours) is not before
        assert (lease.key.v6 == shared) is not before
        found = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert (found.mod_revision, found.lease) == (lease.revision, lease.store_lease)
        assert len(etcd.below(codec.subnets_prefix(PREFIX))) == 2
        assert len(etcd.leases) == 2

    async def test_out_of_subnets_is_told_with_numbers_and_tried_again(self, etcd, make):
        """The fourth node of three is told how many are taken, and gets the first that is freed."""
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(60)
        assert not acquiring.done()
        assert "out of subnets: 3 of 3" in node.reports[-1]
        etcd.delete(key(2))
        await etcd.clock.advance(10)
        assert acquiring.result().key == subnet_key(2)
        assert node.reports[-1] == ""

    async def test_a_full_network_that_is_widened_has_room_within_two_seconds(self, etcd, make):
        """The caller is told, so that what hangs on the config is derived anew, and calls again."""
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(60)
        etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"10.0.3.0", b"10.0.9.0"))
        await etcd.clock.advance(2)
        with pytest.raises(NetworkConfigChanged):
            await acquiring
        assert (await node.acquire()).key in {subnet_key(third) for third in range(4, 10)}

    @pytest.mark.parametrize("what", [b"garbage", None, CONFIG + b" "])
    async def test_a_config_that_is_no_better_does_not_end_the_wait(self, etcd, make, what):
        """Wrong, deleted, or written again as it was: the valid one we know goes on."""
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(30)
        if what is None:
            etcd.delete(codec.config_key(PREFIX))
        else:
            etcd.put(codec.config_key(PREFIX), what)
        await etcd.clock.advance(30)
        assert not acquiring.done()
        etcd.delete(key(3))
        await etcd.clock.advance(6)
        assert acquiring.result().key == subnet_key(3)

    async def test_a_node_that_waited_longer_than_its_etcd_lease_lived_gets_a_new_one(
        self, etcd, make
    ):
        """Granted, lost the race for the last subnet, waited for a day: then one is freed."""
        acquiring = losing_the_last_subnet(etcd, make)
        await etcd.clock.advance(60)
        assert not acquiring.done()
        for unused in etcd.leases:
            etcd.revoke(unused)  # as its end does, for which a test need not wait
        etcd.delete(key(3))
        await etcd.clock.advance(10)
        assert acquiring.result().key == subnet_key(3)
        (status,) = etcd.leases.values()
        assert status.keys == (key(3),)

    async def test_an_etcd_lease_that_was_granted_a_while_ago_is_counted_from_now(self, etcd, make):
        """Else it could end hours before the node thinks of renewing it."""
        acquiring = losing_the_last_subnet(etcd, make)
        await etcd.clock.advance(300)
        etcd.delete(key(3))
        await etcd.clock.advance(10)
        lease = acquiring.result()
        (status,) = etcd.leases.values()
        assert status.ttl == pytest.approx(DAY, abs=15)
        assert lease.expires - etcd.clock.time() == pytest.approx(status.ttl, abs=5)

    async def test_an_etcd_that_was_emptied_while_a_node_waits_gives_it_a_new_lease(
        self, etcd, make
    ):
        """The id that was granted before means nothing to the new cluster."""
        acquiring = losing_the_last_subnet(etcd, make)
        await etcd.clock.advance(3)
        etcd.replace()
        etcd.put(codec.config_key(PREFIX), CONFIG)
        await etcd.clock.advance(10)
        assert acquiring.result().store_lease in etcd.leases

    @pytest.mark.parametrize("operation", ["put", "keepalive"])
    async def test_an_etcd_lease_that_ends_under_a_write_is_replaced(self, etcd, make, operation):
        """Whichever request finds out: a former run's lease, or the one granted just now."""
        if operation == "keepalive":
            await make().acquire()
        node = make()
        node.store.before_next(operation, lambda: [etcd.revoke(i) for i in etcd.leases])
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(2)
        assert acquiring.result().store_lease in etcd.leases

    async def test_an_incompatible_lease_of_ours_is_deleted(self, etcd, make):
        """Outside SubnetMin..SubnetMax: the key goes, its etcd lease as well."""
        stale = etcd.grant(DAY)
        etcd.put(key(9), value("192.0.2.1"), lease=stale)
        acquiring = asyncio.create_task(make().acquire())
        await etcd.clock.advance(2)
        assert acquiring.result().key != subnet_key(9)
        assert etcd.get(key(9)) is None
        assert stale not in etcd.leases

    async def test_a_reservation_stays_one(self, etcd, make):
        """A key without a time limit is used as it is: no lease is put on it, ever."""
        etcd.put(key(2), value("192.0.2.1"))
        node = make()
        starting = asyncio.create_task(node.start())
        await etcd.clock.advance(2)
        lease = await starting
        assert lease.is_reservation
        assert lease.expires is None
        await etcd.clock.advance(DAY + 60)
        assert etcd.get(key(2)).lease == 0
        assert etcd.leases == {}

    async def test_a_subnet_whose_value_cannot_be_read_is_not_free(self, etcd, make):
        """Its key is there, so every write on it would seem to have lost a race."""
        for third in (1, 2):
            etcd.put(key(third), b"garbage")
        node = make(previous=subnet_key(2))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(0.5)
        assert acquiring.result().key == subnet_key(3)
        assert etcd.get(key(2)).value == b"garbage"

    async def test_an_outage_in_the_middle_is_waited_out(self, etcd, make):
        """The answer to the write is lost: what was written is found, not written twice."""
        node = make()
        await node.manager.network_config()
        node.store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
        acquiring = asyncio.create_task(node.manager.acquire(ATTRS))
        await etcd.clock.advance(20)
        assert acquiring.done()
        assert len(etcd.below(codec.subnets_prefix(PREFIX))) == 1


class TestLostAnswers:
    async def test_a_subnet_that_was_won_without_an_answer_is_ours(self, etcd, make):
        """The record still names the former one, so that nothing else tells whose it is."""
        node = make()
        lost = (await node.start()).key
        node.store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
        theirs = etcd.grant(2 * DAY)
        etcd.put(codec.lease_key(PREFIX, lost), value("192.0.2.99"), lease=theirs)
        await etcd.clock.advance(GIVEN_BACK_S + 5)
        (kv,) = [kv for kv in etcd.below(codec.subnets_prefix(PREFIX)) if kv.lease != theirs]
        assert kv.key == codec.lease_key(PREFIX, node.lease.key)
        assert kv.lease == node.lease.store_lease
        assert node.manager.standing().held is True
        assert set(etcd.leases) == {theirs, kv.lease}
