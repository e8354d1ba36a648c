"""An etcd that answers with a refusal, and what is said of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from pyflannel.core.errors import (
    StoreDenied,
    StoreUnavailable,
)
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec
from tests.unit.store.etcd.manager.node import DAY, OUR_ADDRESS, PREFIX, value


class TestRefusedWhileRunning:
    """A role that is revoked, a password that is changed: the node goes on trying."""

    DENIED = StoreDenied("permission denied")
    WRITES = ("put", "delete", "grant", "keepalive")

    async def test_a_lease_deleted_while_writing_is_refused_comes_back_when_it_is_allowed(
        self, etcd, make
    ):
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, *self.WRITES)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(600)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is None
        node.store.allow()
        await etcd.clock.advance(10)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key
        assert node.moves == []

    async def test_a_subnet_that_another_node_takes_meanwhile_is_left_to_it(self, etcd, make):
        """The node gets another subnet and tells the daemon."""
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, *self.WRITES)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(60)
        theirs = etcd.grant(DAY)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"), lease=theirs)
        await etcd.clock.advance(60)
        node.store.allow()
        await etcd.clock.advance(10)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.99")
        assert [moved.key for moved in node.moves] == [node.lease.key]
        assert etcd.get(codec.lease_key(PREFIX, node.lease.key)).value == value("192.0.2.1")

    async def test_even_reading_may_be_refused(self, etcd, make):
        """Any refused request is tried again."""
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, "get", "range_prefix", "time_to_live", *self.WRITES)
        etcd.put(codec.lease_key(PREFIX, lease.key), b"garbage")
        await etcd.clock.advance(300)
        node.store.allow()
        await etcd.clock.advance(10)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.1")

    async def test_new_attributes_are_published_when_it_is_allowed_again(self, etcd, make):
        """Also if the lease was lost meanwhile: neither ends the daemon."""
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, *self.WRITES)
        attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        publishing = asyncio.create_task(node.manager.publish(attrs))
        await etcd.clock.advance(30)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        etcd.revoke(lease.store_lease)
        await etcd.clock.advance(30)
        node.store.allow()
        await etcd.clock.advance(10)
        assert (await publishing).attrs == attrs
        found = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert found.value == codec.encode_attrs(attrs)
        assert all(not task.done() for task in node.tasks)

    async def test_a_conflict_whose_second_look_fails_does_not_end_the_daemon(self, etcd, make):
        node = make()
        lease = await node.start()
        attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        node.store.before_next("put", lambda: etcd.put(kv.key, kv.value, lease=kv.lease))
        node.store.refuse(StoreUnavailable("timed out"), "get")
        publishing = asyncio.create_task(node.manager.publish(attrs))
        await etcd.clock.advance(5)
        node.store.allow()
        await etcd.clock.advance(10)
        assert (await publishing).attrs == attrs


class TestReasons:
    """Each kind of failure is said when it begins, when it changes, and when it is over."""

    @pytest.fixture
    def said(self, caplog):
        caplog.set_level(logging.INFO)
        return lambda words: [r for r in caplog.records if words in r.getMessage()]

    async def test_a_second_reason_is_said_although_the_first_was(self, etcd, make, said):
        """First etcd does not answer; then it does, and does not know us."""
        node = make()
        await node.start()
        node.store.down()
        await etcd.clock.advance(300)
        assert len(said("lost the watch of the leases")) == 1
        node.store.refuse(StoreDenied("user not accepted"), "watch_prefix", "range_prefix")
        node.store.up()
        await etcd.clock.advance(300)
        assert len(said("are not watched for another reason")) == 1
        assert node.manager.report().reason == "user not accepted"
        await etcd.clock.advance(1200)
        assert len(said("still not watched")) == 2
        node.store.allow()
        await etcd.clock.advance(10)
        assert len(said("etcd answers again")) == 1
        assert node.manager.report().connected
