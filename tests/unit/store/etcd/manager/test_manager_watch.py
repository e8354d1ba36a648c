"""What a restored etcd and keys that are no leases do to a node."""

from __future__ import annotations

import asyncio

from pyflannel.core.lease import LeaseAttrs, Snapshot
from pyflannel.store.etcd import codec
from pyflannel.testing.fakeclock import settle
from tests.unit.store.etcd.manager.node import (
    ATTRS,
    DAY,
    OUR_ADDRESS,
    PREFIX,
    key,
    subnet_key,
    value,
)


class TestRestoredEtcd:
    async def test_an_empty_etcd_gets_our_lease_again_with_the_same_subnet(self, etcd, make):
        etcd.put(key(1), value("192.0.2.50"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(2))
        lease = await node.start()
        etcd.replace()
        await etcd.clock.advance(20)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key

    async def test_peers_stay_for_a_while_and_go_if_they_do_not_come_back(self, etcd, make):
        """A store's mishap is not the peers' death; a peer that stays away is gone in the end."""
        etcd.put(key(1), value("192.0.2.50"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(2))
        await node.start()
        etcd.replace()
        await etcd.clock.advance(15)
        snapshots = [u for u in node.updates if isinstance(u, Snapshot)]
        assert subnet_key(1) in {lease.key for lease in snapshots[-1].leases}
        await etcd.clock.advance(60)
        snapshots = [u for u in node.updates if isinstance(u, Snapshot)]
        assert subnet_key(1) not in {lease.key for lease in snapshots[-1].leases}

    async def test_an_own_lease_of_an_older_revision_is_ours_and_can_be_written(self, etcd, make):
        """A backup that holds our key already: the next write names the revision it has there."""
        node = make()
        lease = await node.start()
        backup = etcd.backup()
        for address in (77, 78):
            attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type=f"t{address}")
            await node.manager.publish(attrs)
        await node.manager.publish(ATTRS)
        etcd.restore(backup)
        await etcd.clock.advance(20)
        wanted = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        writing = asyncio.create_task(node.manager.publish(wanted))
        await etcd.clock.advance(20)
        assert writing.done()
        found = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert found.value == codec.encode_attrs(wanted)

    async def test_a_restored_etcd_in_which_the_subnet_is_another_nodes_is_believed(
        self, etcd, make
    ):
        """Its revisions are smaller than those we know; the key is read and judged all the same."""
        etcd.put(key(2), value("192.0.2.99"), lease=etcd.grant(DAY))
        backup = etcd.backup()
        etcd.delete(key(2))
        node = make(previous=subnet_key(2))
        assert (await node.start()).key == subnet_key(2)
        etcd.restore(backup)
        await etcd.clock.advance(20)
        assert etcd.get(key(2)).value == value("192.0.2.99")
        assert [moved.key for moved in node.moves] == [node.lease.key]
        assert node.lease.key != subnet_key(2)

    async def test_in_a_strangers_cluster_no_peer_is_given_up_after_half_a_minute(self, etcd, make):
        """What that one lacks has not ended; peers stay until their leases would have."""
        etcd.put(key(1), value("192.0.2.50"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(2))
        await node.start()
        node.store.is_stranger = True
        etcd.replace()
        await etcd.clock.advance(600)
        snapshots = [u for u in node.updates if isinstance(u, Snapshot)]
        assert len(snapshots) > 1
        assert subnet_key(1) in {lease.key for lease in snapshots[-1].leases}

    async def test_the_next_run_knows_the_cluster(self, etcd, make):
        await make("a").start()
        assert make("a").store.expected == etcd.cluster_id
        assert make("b").store.expected == 0


async def test_a_bad_key_is_logged_once_in_one_readable_line(etcd, make, caplog):
    """100 KB, an escape sequence, and written again and again: each was a line of 100 KB."""
    await make().start()
    stray = codec.subnets_prefix(PREFIX) + b"\x1b[2J" + b"x" * 100_000
    with caplog.at_level("WARNING"):
        for number in range(30):
            etcd.put(stray, b"%d" % number)
            await settle()
    lines = [r for r in caplog.records if r.getMessage() == "ignoring a key that is not a lease"]
    assert len(lines) == 1
    fields = lines[0].pyflannel_fields
    assert fields["key"].isprintable()
    assert len(fields["key"]) < 300
