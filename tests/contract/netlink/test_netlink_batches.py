"""Many operations in one call, and calls beside each other."""

import asyncio
import contextlib
import errno
from ipaddress import IPv4Address, ip_interface
from typing import Any

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    Address,
    Delete,
    FdbEntry,
    Neighbour,
    Set,
)
from tests.contract.netlink.world import BOTH, World
from tests.support.netns import without_fallback


class TestBatches:
    async def test_nothing_to_do_is_done(self, w: World) -> None:
        """An empty batch."""
        assert await w.netlink.apply([]) == {}

    @BOTH
    async def test_operations_are_carried_out_in_order(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """The last word on an object is what counts, within a batch too."""
        first, second = w.route(dst, one), w.route(dst, two)
        await w.done(Set(first), Delete(first))
        assert await w.routes(dst) == []
        await w.done(Delete(first), Set(second), Delete(first))
        assert await w.routes(dst) == [second]
        await w.done(Set(first), Set(second), Set(first))
        assert await w.routes(dst) == [first]
        await w.done(Delete(first), Set(second), Delete(second), Set(first), Delete(first))
        assert await w.routes(dst) == []
        own = Address(
            index=first.oif or 0, interface=ip_interface(f"{one}/{32 if '.' in one else 128}")
        )
        await w.done(Set(own), Delete(own), Set(own))
        assert own in await w.netlink.addresses()
        await w.done(Delete(own), Set(own), Delete(own))
        assert own not in await w.netlink.addresses()

    async def test_a_batch_of_everything(self, w: World) -> None:
        """Hundreds of objects of all kinds; all are there, and all are gone after."""
        index = w.device.index
        items: list[Any] = []
        for i in range(300):
            ip, mac = (
                IPv4Address(f"10.6.{i % 256}.{i // 256}"),
                f"0e:00:00:01:{i >> 8:02x}:{i & 255:02x}",
            )
            items += [
                Neighbour(index=index, ip=ip, mac=mac),
                FdbEntry(index=index, mac=mac, dst=IPv4Address("198.51.100.1") + i),
                w.route(f"{ip}/32", str(ip)),
            ]
        await w.done(*[Set(item) for item in items])
        assert len(await w.netlink.neighbours(index, Family.V4)) == 300
        assert len(await w.netlink.fdb(index)) == 300
        assert len(await w.netlink.routes(Family.V4, oif=index)) == 300
        found = set(await w.netlink.routes(Family.V4)) | set(await w.netlink.fdb(index))
        found |= set(await w.netlink.neighbours(index, Family.V4))
        assert found >= set(items)
        await w.done(*[Delete(item) for item in items])
        assert await w.netlink.neighbours(index, Family.V4) == []
        assert await w.netlink.fdb(index) == []
        assert await w.netlink.routes(Family.V4, oif=index) == []

    async def test_calls_may_run_at_the_same_time(self, w: World) -> None:
        """Answers are not mixed up."""

        async def peer(i: int) -> None:
            route = w.route(f"10.6.{i}.0/24", f"10.6.{i}.0")
            assert await w.netlink.apply([Set(route)]) == {}
            assert route in await w.netlink.routes(Family.V4, oif=w.device.index)
            assert await w.netlink.link(f"none{i}") is None
            assert (await w.link()).index == w.device.index
            found = await w.netlink.route_lookup(IPv4Address(f"10.6.{i}.9"))
            assert found is not None
            assert found.gateway == IPv4Address(f"10.6.{i}.0")

        async with asyncio.TaskGroup() as group:
            for i in range(40):
                group.create_task(peer(i))

    async def test_a_big_batch_lets_others_run(self, w: World) -> None:
        """The event loop turns while hundreds of objects are set."""
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(count())
        await asyncio.sleep(0)
        before = turns
        routes = [w.route(f"10.{6 + i // 250}.{i % 250}.0/24") for i in range(4000)]
        await w.done(*[Set(route) for route in routes])
        assert turns - before >= 5
        counter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counter

    async def test_a_cancelled_batch_leaves_the_netlink_usable(self, w: World) -> None:
        """With any number of answers outstanding."""
        routes = [w.route(f"10.{6 + i // 250}.{i % 250}.0/24") for i in range(1000)]
        for _ in range(5):
            batch = asyncio.create_task(w.netlink.apply([Set(route) for route in routes]))
            for _ in range(3):
                await asyncio.sleep(0)
            batch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await batch
            assert (await w.link()).name == "flannel.1"
            assert len(without_fallback(await w.netlink.links())) == 4

    async def test_a_closed_netlink_refuses(self, w: World) -> None:
        """With a KernelError; closing twice is fine."""
        await w.netlink.close()
        await w.netlink.close()
        with pytest.raises(KernelError) as refusal:
            await w.netlink.links()
        assert refusal.value.errno == errno.EBADF
        with pytest.raises(KernelError):
            await w.netlink.apply([Set(w.route("10.5.7.0/24"))])
