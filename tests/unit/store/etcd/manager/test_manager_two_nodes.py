"""Two nodes that want one subnet with one address."""

from __future__ import annotations

import asyncio

from pyflannel.store.etcd import codec
from tests.unit.store.etcd.manager.node import PREFIX


class TestTwoNodesWithOneAddress:
    async def test_the_second_is_told_and_the_first_keeps_its_lease(self, etcd, make):
        first, second = make("a"), make("b")
        lease = await first.start()
        acquiring = asyncio.create_task(second.acquire())
        await etcd.clock.advance(30)
        assert not acquiring.done()
        assert "public IP 192.0.2.1 is in use by another live node" in second.reports[-1]
        assert first.lease.key == lease.key
        assert first.moves == []
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)

    async def test_the_second_takes_over_when_the_first_is_gone(self, etcd, make):
        """A node that was set up anew, with its old address, gets its old subnet."""
        first, second = make("a"), make("b")
        lease = await first.start()
        acquiring = asyncio.create_task(second.acquire())
        await etcd.clock.advance(10)
        await first.stop()
        await etcd.clock.advance(10)
        assert acquiring.result().key == lease.key

    async def test_of_several_challengers_in_a_row_none_takes_over(self, etcd, make):
        """They come within one interval between two answers of the first."""
        first = make("a")
        lease = await first.start()
        others = []
        for n in range(4):
            others.append(asyncio.create_task(make(f"other{n}").acquire()))
            await etcd.clock.advance(0.15)
        await etcd.clock.advance(60)
        assert not any(task.done() for task in others)
        assert first.lease.key == lease.key
        assert first.moves == []
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def test_two_owners_do_not_echo_without_end(self, etcd, make):
        """Should two daemons hold one lease all the same, they do not answer each other's answers
        without end."""
        nodes = [make("a"), make("a")]
        for node in nodes:
            await node.start()
        kv = etcd.get(codec.lease_key(PREFIX, nodes[0].lease.key))
        before = etcd.revision
        etcd.put(kv.key, kv.value, lease=kv.lease)
        await etcd.clock.advance(60)
        assert etcd.revision - before < 10
